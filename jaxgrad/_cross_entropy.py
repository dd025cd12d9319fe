"""Softmax cross-entropy, its Bernoulli sibling and entropy, beside their derivatives in the logits.

    loss(z, y)    = Σ_k y_k (log Σ_j e^{z_j} − z_k)    ce-1      p = softmax(z)
    grad(z, y)    = p Σy − y                           ce-3
    hessian(z, y) = Σy · (diag(p) − p pᵀ)              hess-1    free of y but for its sum

A class id c stands for the distribution with y_c = 1. If c is the heaviest class and s = Σ_{j≠c} e^{z_j − z_c}, then
loss = log(1 + s) and 1 − p_c = s/(1 + s): nothing is subtracted from 1, and nothing rounds to 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._exponentials import UNIT, exp_shifted, rounded_sum, split_at_heaviest, with_rounded_sum
from jaxgrad._linear import Arrays, unless_zero
from jaxgrad._softmax import deviation_transpose, jacobian_product, log_probs, scaled_jacobian_product, softmax, zero_sum_product
from jaxgrad._softmax_jacobian import SoftmaxJacobian


def cross_entropy(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Cross-entropy H(y, softmax(z)) = −Σ_k y_k log p_k, one value for each example, in nats (ce-1).

    0 · log 0 is 0: a class with y_k = 0 costs nothing, also if it is masked by a logit of −inf. With y_k > 0 there
    the loss is +inf and its gradient is finite. The distributions need not sum to 1, and it is not checked that
    they are non-negative (`jaxgrad.validate` does).

    Derivatives of every order, forward and reverse, are the closed forms below. In the logits of an example whose
    class id is outside [0, C) the loss and every derivative are NaN.

    Args:
      logits: z, (..., C), floating; −inf masks a class.
      targets: class ids (...), integer, or distributions (..., C), floating or boolean.
      where: (...), boolean; an example where it is False has loss and derivatives 0, and is not looked at.

    Returns:
      loss: (...), at least float32.

    Raises:
      TypeError: a dtype is none of these.
      ValueError: a shape is none of these; nothing broadcasts.
      IndexError: a class id is outside [0, C) and its value is known (outside `jit`).

    Source: Bridle 1990, doi:10.1007/978-3-642-76153-9_28.
    """
    z, y, where, _ = _example(logits, targets, where)
    loss = _cross_entropy_ids(z, y) if _are_ids(y) else _cross_entropy_soft(z, y)
    return loss if where is None else jnp.where(where, loss, 0)


def cross_entropy_grad(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Gradient of `cross_entropy` in the logits, p Σy − y (ce-3): exact also where p rounds to y.

    Args:
      logits: z, (..., C), floating.
      targets: class ids (...) or distributions (..., C).
      where: (...), boolean; the gradient is 0 where it is False.

    Returns:
      (..., C), in the dtype of `logits`; computed in at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `cross_entropy`.

    Source: Bridle 1990, doi:10.1007/978-3-642-76153-9_28.
    """
    z, y, where, dtype = _example(logits, targets, where)
    gradient = _grad_ids(z, y) if _are_ids(y) else _grad_soft(z, y)
    return (gradient if where is None else jnp.where(where[..., None], gradient, 0)).astype(dtype)


def cross_entropy_hessian(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> SoftmaxJacobian:
    """Hessian of `cross_entropy` in the logits, Σy · (diag(p) − p pᵀ), as an operator (hess-1).

    Args:
      logits: z, (..., C), floating.
      targets: class ids (...) or distributions (..., C); only their sums enter.
      where: (...), boolean; the matrix is 0 where it is False.

    Returns:
      An operator of shape (..., C, C): `matvec`, `@`, `T`, `diagonal()`, `trace()`, `to_dense()`.

    Raises:
      TypeError, ValueError, IndexError: as `cross_entropy`.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    z, y, where, dtype = _example(logits, targets, where)
    scale = _valid(z, y) if _are_ids(y) else y.sum(-1)
    return SoftmaxJacobian(z.astype(dtype), scale if where is None else jnp.where(where, scale, 0))


def entropy(logits: ArrayLike) -> jax.Array:
    """Entropy of softmax, H(p) = −Σ_k p_k log p_k, one value for each row, in nats; 0 · log 0 is 0.

    Args:
      logits: z, (..., C), floating; −inf masks a class.

    Returns:
      (...), at least float32, never negative.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.
    """
    z = _checks.as_logits("logits", logits)
    return _entropy(z.astype(_checks.compute_dtype(z)))


def entropy_grad(logits: ArrayLike) -> jax.Array:
    """Gradient of `entropy` in the logits, −J z = −p ∘ (log p + H).

    Args:
      logits: z, (..., C), floating; −inf masks a class, where the gradient is 0.

    Returns:
      (..., C), in the dtype of `logits`; computed in at least float32.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Williams and Peng 1991, doi:10.1080/09540099108946587.
    """
    z = _checks.as_logits("logits", logits)
    return _entropy_grad(z.astype(_checks.compute_dtype(z))).astype(z.dtype)


def _example(logits: ArrayLike, targets: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array | None, jnp.dtype]:
    """Checked logits and targets in the dtype to compute in, 0 where masked, and the dtype of the logits."""
    z = _checks.as_logits("logits", logits)
    y = _checks.as_targets("targets", targets, z)
    if where is not None:
        where = _checks.as_mask("where", where, z.shape[:-1])
    dtype = z.dtype
    if _are_ids(y):
        _checks.ids_in_range("targets", y, z.shape[-1], where)
        z, y = z.astype(_checks.compute_dtype(z)), y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)
    else:
        wide = _checks.compute_dtype(z, y)
        z, y = z.astype(wide), y.astype(wide)
    if where is not None:
        z = jnp.where(where[..., None], z, 0)
        y = jnp.where(where if _are_ids(y) else where[..., None], y, 0)
    return z, y, where, dtype


def _are_ids(y: jax.Array) -> bool:
    return jnp.issubdtype(y.dtype, jnp.integer)


# Class ids: z (..., C) of the dtype to compute in, y (...) integer.


def _valid(z: jax.Array, y: jax.Array) -> jax.Array:
    """Σy of a class id, (...): 1, or NaN if it is outside [0, C)."""
    return jnp.where((y >= 0) & (y < z.shape[-1]), jnp.ones((), z.dtype), jnp.nan)


def _exp_at_target(z: jax.Array, y: jax.Array, top: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`exp_shifted` of z_y, (..., 1) each."""
    return exp_shifted(jnp.take_along_axis(z, y[..., None], axis=-1, mode="clip"), top)


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _cross_entropy_ids(z: jax.Array, y: jax.Array) -> jax.Array:
    at_k = split_at_heaviest(z)
    _, shifted, tail = _exp_at_target(z, y, at_k.top)
    loss = (at_k.log_sum - tail) - shifted
    return loss[..., 0] * _valid(z, y)


@_cross_entropy_ids.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    z, y = primals
    return _cross_entropy_ids(z, y), zero_sum_product(_grad_ids(z, y), tangents[0])


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _grad_ids(z: jax.Array, y: jax.Array) -> jax.Array:
    """p − y: at y it is −Σ_{j≠y} p_j."""
    at_k = split_at_heaviest(z)
    at_y = lax.broadcasted_iota(y.dtype, z.shape, z.ndim - 1, out_sharding=jax.typeof(z).sharding) == y[..., None]
    e_y, _, _ = _exp_at_target(z, y, at_k.top)
    return jnp.where(at_y, -((UNIT - e_y) + at_k.others), at_k.exps) * (at_k.inverse * _valid(z, y)[..., None])


@_grad_ids.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    z, y = primals
    return _grad_ids(z, y), scaled_jacobian_product(z, _valid(z, y)[..., None], tangents[0])


# Distributions: z and y (..., C) of the dtype to compute in.


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _cross_entropy_soft(z: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(y == 0, 0, y * jnp.abs(log_probs(z))).sum(-1)


@partial(_cross_entropy_soft.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    z, y = primals
    dz, dy = tangents
    loss = _cross_entropy_soft(z, y)
    by_z = unless_zero(dz, lambda v: zero_sum_product(_grad_soft(z, y), v), loss)
    by_y = unless_zero(dy, lambda v: (_finite_log_probs(z) * v).sum(-1), loss)
    return loss, by_z - by_y


def _finite_log_probs(z: jax.Array) -> jax.Array:
    """log p, and 0 at a masked class: the loss does not respond to a target that is put there."""
    return jnp.where(z == -jnp.inf, 0, log_probs(z))


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _grad_soft(z: jax.Array, y: jax.Array) -> jax.Array:
    """p Σy − y: at the heaviest class k it is p_k Σ_{j≠k} y_j − y_k (1 − p_k)."""
    at_k = split_at_heaviest(z)
    y_rest = jnp.where(at_k.heaviest, 0, y).sum(-1, keepdims=True)
    total = jnp.where(at_k.heaviest, y_rest, y_rest + at_k.at_heaviest(y))
    return at_k.probs * total - jnp.where(at_k.heaviest, y * at_k.complement, y)


@partial(_grad_soft.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    z, y = primals
    dz, dy = tangents
    gradient = _grad_soft(z, y)
    by_z = unless_zero(dz, lambda v: scaled_jacobian_product(z, y.sum(-1, keepdims=True), v), gradient)
    by_y = unless_zero(dy, lambda v: deviation_transpose(z, v), gradient)
    return gradient, by_z - by_y


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _entropy(z: jax.Array) -> jax.Array:
    at_k = with_rounded_sum(split_at_heaviest(z))
    surprise = jnp.where(at_k.exps == 0, 0, at_k.exps * jnp.abs(at_k.shifted + (at_k.shifted_tail - at_k.log_sum)))
    return (rounded_sum(surprise) * at_k.inverse)[..., 0]


@_entropy.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _entropy(*primals), zero_sum_product(_entropy_grad(*primals), *tangents)


def _entropy_grad(z: jax.Array) -> jax.Array:
    """−J z. As J annihilates constants, z is recentred first, and a masked class may as well be at the centre."""
    shifted = z - lax.stop_gradient(z.max(-1, keepdims=True))
    shifted = jnp.where(shifted == -jnp.inf, 0, shifted)
    mean = (softmax(z) * shifted).sum(-1, keepdims=True)
    return -jacobian_product(z, shifted - lax.stop_gradient(mean))
