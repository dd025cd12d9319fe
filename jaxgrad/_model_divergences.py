"""Kullback–Leibler divergence between a model and a target distribution, beside its derivatives.

    forward_kl(z, y) = Σ y log(y/p)    kl-5    ∂/∂z = p Σy − y                        p = softmax(z)
    reverse_kl(z, y) = Σ p log(p/y)    kl-7    ∂/∂z = p ∘ (log(p/y) − KL) = J log(p/y)

As written, for y of any sum: a sum of y log(y/p) − y + p, or of p log(p/y) − p + y, never negative, and Σy − 1 added up
exactly.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad._bregman import exact_sum, relative_entropy_excess
from jaxgrad._centred_diagonal import CentredDiagonal, rounded_jacobian_product, twist
from jaxgrad._cross_entropy import _are_ids, _example, _grad_ids, _grad_soft, cross_entropy, cross_entropy_hessian
from jaxgrad._divergences import of_arguments, unless_masked
from jaxgrad._exponentials import UNIT, exp_pair, log1p, split_at_heaviest, two_difference, two_product
from jaxgrad._linear import Arrays, limit_product, unless_zero
from jaxgrad._probability_divergences import minus_ratio
from jaxgrad._softmax import _softmax, deviation, jacobian_product, log_probs, zero_sum_product
from jaxgrad._softmax_jacobian import SoftmaxJacobian


def forward_kl(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """KL(y‖softmax(z)) = Σ_k y_k log(y_k/p_k) of a model to its target, one value for each example, in nats (kl-5).

    It is `cross_entropy` less the entropy of the target, so that every derivative in the logits is the same; for class
    ids they are equal. 0 · log 0 is 0, and with y_k > 0 at a masked class the divergence is +inf (kl-4). Fitting by it
    covers the modes of the target (kl-6). It is as written for y of any sum, and so may be negative by the rounding of Σy;
    where y is near p, `kl_divergence` between logits keeps more digits.

    Args:
      logits: z, (..., C), floating; −inf masks a class.
      targets: class ids (...), integer, or distributions (..., C), floating or boolean, not negative.
      where: (...), boolean; an example where it is False has loss and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `cross_entropy`.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    z, y, mask, _ = _example(logits, targets, where)
    return cross_entropy(logits, targets, where=where) if _are_ids(y) else unless_masked(_forward(z, y), mask)


def forward_kl_grad(
    logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None, argnums: int | Sequence[int] = 0
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `forward_kl`: p Σy − y in the logits, as for cross-entropy (kl-5), and log(y/p) + 1 in the targets.

    The gradient in a target y_k = 0 is 0: its limit, −inf, would leave no digit of any product.

    Args:
      logits, targets, where: as in `forward_kl`.
      argnums: 0 for the logits, 1 for the distributions, as in `jax.grad`: a number for one array, a sequence for a tuple.

    Returns:
      For each, (..., C), in the dtype of that argument; computed in at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `cross_entropy`; class ids have no derivative.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    z, y, mask, dtype = _example(logits, targets, where)
    gradients = [lambda: _grad_ids(z, y) if _are_ids(y) else _grad_soft(z, y), lambda: _forward_by_targets(z, _distributions(y))]
    return of_arguments(gradients, argnums, (dtype, _result_dtype(targets)), mask)


def forward_kl_hessian(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> SoftmaxJacobian:
    """Hessian of `forward_kl` in the logits, Σy · (diag(p) − p pᵀ), as for cross-entropy (hess-1).

    Args:
      logits, targets, where: as in `forward_kl`.

    Returns:
      An operator of shape (..., C, C): `matvec`, `@`, `T`, `diagonal()`, `trace()`, `to_dense()`.

    Raises:
      TypeError, ValueError, IndexError: as `cross_entropy`.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    return cross_entropy_hessian(logits, targets, where=where)


def reverse_kl(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """KL(softmax(z)‖y) = Σ_k p_k log(p_k/y_k) of a model to its target, one value for each example, in nats (kl-7).

    +inf if a class that is not masked has y_k = 0; a masked class costs nothing (kl-4). Fitting by it seeks a mode of the
    target (kl-6). It is as written for y of any sum; where y is near p, `kl_divergence` between logits keeps more digits.

    Args:
      logits: z, (..., C), floating; −inf masks a class.
      targets: distributions (..., C), floating or boolean, not negative.
      where: (...), boolean; an example where it is False has loss and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32.

    Raises:
      TypeError: a dtype is none of these; class ids leave no distribution to be near to.
      ValueError: the shapes differ; nothing broadcasts.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694; Minka 2005, Divergence measures and message passing, MSR-TR-2005-173.
    """
    z, y, mask, _ = _example(logits, targets, where)
    return unless_masked(_reverse(z, _distributions(y)), mask)


def reverse_kl_grad(
    logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None, argnums: int | Sequence[int] = 0
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `reverse_kl`: p ∘ (log(p/y) − KL) in the logits (kl-7), and −p/y in the targets.

    If y_k = 0 at a class that is not masked, the first is its limit: +inf there, −inf at the other classes of the model.

    Args:
      logits, targets, where: as in `reverse_kl`.
      argnums: 0 for the logits, 1 for the targets, as in `jax.grad`.

    Returns:
      For each, (..., C), in the dtype of that argument; computed in at least float32.

    Raises:
      TypeError, ValueError: as `reverse_kl`.

    Source: Williams and Peng 1991, doi:10.1080/09540099108946587.
    """
    z, y, mask, dtype = _example(logits, targets, where)
    y = _distributions(y)
    gradients = [lambda: _reverse_by_logits(z, y), lambda: minus_ratio(_softmax(z), y)]
    return of_arguments(gradients, argnums, (dtype, _result_dtype(targets)), mask)


def reverse_kl_hessian(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> CentredDiagonal:
    """Hessian of `reverse_kl` in the logits, J + diag(g) − g pᵀ − p gᵀ with g its gradient (hess-8); not positive semi-definite in general.

    Args:
      logits, targets, where: as in `reverse_kl`.

    Returns:
      An operator of shape (..., C, C): `matvec`, `@`, `T`, `diagonal()`, `trace()`, `to_dense()`.

    Raises:
      TypeError, ValueError: as `reverse_kl`.

    Source: Amari 2016, doi:10.1007/978-4-431-55978-8.
    """
    z, y, mask, dtype = _example(logits, targets, where)
    return CentredDiagonal(z, z, unless_masked(_reverse_by_logits(z, _distributions(y)) + _softmax(z), mask), dtype)


def _distributions(y: jax.Array) -> jax.Array:
    """Targets that must not be class ids."""
    if _are_ids(y):
        raise TypeError("targets: expected floating distributions (..., C), got class ids; pass jax.nn.one_hot(targets, num_classes) for a distribution")
    return y


def _result_dtype(targets: ArrayLike) -> jnp.dtype:
    """The dtype of a gradient in the targets: theirs, or float32 for booleans."""
    dtype = jnp.asarray(targets).dtype
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(jnp.float32)


# The functions below take logits z and probabilities y, (..., C) each, of the dtype to compute in.


def _against(z: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """p, p − y rounded once, and log(p/y) where they are far apart, (..., C) each.

    p has a tail here. What its sum, and so every p, is off by in common the divergences do not feel where p is near y.
    """
    at_k = split_at_heaviest(z)
    e, e_tail = exp_pair(at_k.shifted, jnp.where(at_k.shifted > jnp.finfo(z.dtype).minexp, at_k.shifted_tail, 0))
    e, e_tail = jnp.where(at_k.heaviest, UNIT, e), jnp.where(at_k.heaviest, 0, e_tail)
    inverse = at_k.inverse
    product, lost = two_product(inverse, at_k.others)
    left, lost_too = two_difference(1 - inverse * UNIT, product)
    inverse_tail = (left + (lost_too - lost)) * inverse
    p, p_tail = two_product(e, inverse)
    p_tail = p_tail + (e * inverse_tail + e_tail * inverse)
    beside = at_k.heaviest & (at_k.others < UNIT) & (jnp.abs(y - 1) <= 0.5)
    difference = jnp.where(beside, ((1 - y) - product) - (lost + at_k.others * inverse_tail), (p - y) + p_tail)
    ratio, info = p / y, jnp.finfo(p.dtype)
    log_ratio = jnp.where((p > info.tiny) & (ratio > info.tiny) & (ratio < info.max), jnp.log(ratio), log_probs(z) - jnp.log(y))
    return p, difference, log_ratio


def _sum_less_one(y: jax.Array) -> jax.Array:
    """Σy − 1, (...)."""
    total, lost = exact_sum(y)
    return ((total - 1) + lost)[..., 0]


@jax.custom_jvp
def _forward(z: jax.Array, y: jax.Array) -> jax.Array:
    p, difference, log_ratio = _against(z, y)
    return relative_entropy_excess(y, p, -difference, -log_ratio).sum(-1) + _sum_less_one(y)


@partial(_forward.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z, y), (dz, dy), kl = primals, tangents, _forward(*primals)
    by_z = unless_zero(dz, lambda v: zero_sum_product(_grad_soft(z, y), v), kl)
    by_y = unless_zero(dy, lambda v: limit_product(_forward_by_targets(z, y), v).sum(-1), kl)
    return kl, by_z + by_y


@jax.custom_jvp
def _forward_by_targets(z: jax.Array, y: jax.Array) -> jax.Array:
    """log(y/p) + 1, and 0 where y is 0."""
    return jnp.where(y == 0, 0, 1 - _log_ratio_of_model(z, y))


@partial(_forward_by_targets.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z, y), (dz, dy), gradient = primals, tangents, _forward_by_targets(*primals)
    by_z = unless_zero(dz, lambda v: jnp.where(y == 0, 0, deviation(z, v)), gradient)
    by_y = unless_zero(dy, lambda v: limit_product(jnp.where(y == 0, 0, 1 / y), v), gradient)
    return gradient, by_y - by_z


def _log_ratio_of_model(z: jax.Array, y: jax.Array) -> jax.Array:
    """log(p/y)."""
    _, difference, far = _against(z, y)
    near = jnp.abs(difference) < y / 2
    return jnp.where(near, log1p(jnp.where(near, difference / y, 0)), far)


@jax.custom_jvp
def _reverse(z: jax.Array, y: jax.Array) -> jax.Array:
    p, difference, log_ratio = _against(z, y)
    excess = jnp.where((y == 0) & (z > -jnp.inf), jnp.inf, relative_entropy_excess(p, y, difference, log_ratio))
    return excess.sum(-1) - _sum_less_one(y)


@partial(_reverse.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z, y), (dz, dy), kl = primals, tangents, _reverse(*primals)
    by_z = unless_zero(dz, lambda v: zero_sum_product(_reverse_by_logits(z, y), v), kl)
    by_y = unless_zero(dy, lambda v: limit_product(minus_ratio(_softmax(z), y), v).sum(-1), kl)
    return kl, by_z + by_y


@jax.custom_jvp
def _reverse_by_logits(z: jax.Array, y: jax.Array) -> jax.Array:
    """p ∘ (log(p/y) − KL)."""
    outside = (y == 0) & (z > -jnp.inf)
    gradient = jacobian_product(z, jnp.where((y == 0) | (z == -jnp.inf), 0, _log_ratio_of_model(z, y)))
    limit = jnp.where(z == -jnp.inf, 0, jnp.where(outside, jnp.inf, -jnp.inf))
    return jnp.where(outside.any(-1, keepdims=True) & ~jnp.isnan(gradient), limit, gradient)


@partial(_reverse_by_logits.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z, y), (dz, dy), gradient = primals, tangents, _reverse_by_logits(*primals)
    by_z = unless_zero(dz, lambda v: rounded_jacobian_product(z, v) + twist(z, gradient, v), gradient)
    by_y = unless_zero(dy, lambda v: jacobian_product(z, limit_product(jnp.where(z == -jnp.inf, 0, 1 / y), v)), gradient)
    return gradient, by_z - by_y
