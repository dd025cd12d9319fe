"""Kullback–Leibler divergence between Gaussians, one for each dimension, beside its derivatives.

    KL(N(m₁, e^{l₁})‖N(m₂, e^{l₂})) = ½ (ψ(l₁ − l₂) + (m₁ − m₂)² e^{−l₂})     vae-1     ψ(x) = e^x − 1 − x
    ∂/∂m₁ = (m₁ − m₂) e^{−l₂} = −∂/∂m₂                                        vae-1
    ∂/∂l₁ = ½ (e^{l₁ − l₂} − 1),  ∂/∂l₂ = −½ (e^{l₁ − l₂} − 1 + (m₁ − m₂)² e^{−l₂})

l = log σ² are logarithms of variances, so that ∂/∂(log σ₁) = 2 ∂/∂l₁ = σ₁²/σ₂² − 1. Both terms are never negative.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._bregman import NEAR, expm1_and_remainder
from jaxgrad._divergences import of_arguments, unless_masked
from jaxgrad._exponentials import LARGEST_EXPONENT, UNIT, exp, two_difference
from jaxgrad._linear import Arrays, limit_product


def gaussian_kl(
    mean: ArrayLike, log_variance: ArrayLike, prior_mean: ArrayLike = 0.0, prior_log_variance: ArrayLike = 0.0, *, where: ArrayLike | None = None
) -> jax.Array:
    """KL(N(m₁, e^{l₁})‖N(m₂, e^{l₂})), one value for each dimension, in nats (vae-1).

    For a variational autoencoder the first is the posterior, the second the prior, and the sum over the latent dimensions
    enters the loss. A prior that is given as numbers has no gradient: only the posterior moves.

    Args:
      mean: m₁, (...), floating.
      log_variance: l₁ = log σ₁², (...), the shape of `mean`.
      prior_mean: m₂, a scalar or (...).
      prior_log_variance: l₂ = log σ₂², a scalar or (...).
      where: (...), boolean; a dimension where it is False has divergence and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32, never negative.

    Raises:
      TypeError: a dtype is not floating.
      ValueError: the shapes are not equal; of the arguments only scalars of the prior broadcast.

    Source: Kingma and Welling 2014, arXiv:1312.6114.
    """
    arguments, where, _ = _arguments(mean, log_variance, prior_mean, prior_log_variance, where)
    return unless_masked(_kl(*arguments), where)


def gaussian_kl_grad(
    mean: ArrayLike,
    log_variance: ArrayLike,
    prior_mean: ArrayLike = 0.0,
    prior_log_variance: ArrayLike = 0.0,
    *,
    where: ArrayLike | None = None,
    argnums: int | Sequence[int] = (0, 1, 2, 3),
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `gaussian_kl` in its four arguments, one value for each dimension (vae-1).

    Args:
      mean, log_variance, prior_mean, prior_log_variance, where: as in `gaussian_kl`.
      argnums: which of the four, as in `jax.grad`: a number for one array, a sequence for a tuple.

    Returns:
      For each, (...), the shape of `mean` also for a scalar of the prior, in the dtype of that argument.

    Raises:
      TypeError, ValueError: as `gaussian_kl`.

    Source: Kingma and Welling 2014, arXiv:1312.6114.
    """
    arguments, where, dtypes = _arguments(mean, log_variance, prior_mean, prior_log_variance, where)
    return of_arguments([partial(_gradient, n, *arguments) for n in range(4)], argnums, dtypes, where)


def gaussian_kl_hessian(
    mean: ArrayLike, log_variance: ArrayLike, prior_mean: ArrayLike = 0.0, prior_log_variance: ArrayLike = 0.0, *, where: ArrayLike | None = None
) -> jax.Array:
    """Hessians of `gaussian_kl`, one 4×4 matrix for each dimension, in the order of the arguments.

    Args:
      mean, log_variance, prior_mean, prior_log_variance, where: as in `gaussian_kl`.

    Returns:
      (..., 4, 4), at least float32, symmetric to the bit.

    Raises:
      TypeError, ValueError: as `gaussian_kl`.

    Source: Kingma and Welling 2014, arXiv:1312.6114.
    """
    (m1, l1, m2, l2), where, _ = _arguments(mean, log_variance, prior_mean, prior_log_variance, where)
    precision, ratio = _precision(l2), _ratio(l1, l2)
    pull, cost, none = limit_product(precision, m1 - m2), _squares(m1, m2, l2), jnp.zeros_like(m1)
    rows = (
        (precision, none, -precision, -pull),
        (none, ratio / 2, none, -ratio / 2),
        (-precision, none, precision, pull),
        (-pull, -ratio / 2, pull, (ratio + cost) / 2),
    )
    return unless_masked(jnp.stack([jnp.stack(row, -1) for row in rows], -2), where)


def _arguments(
    mean: ArrayLike, log_variance: ArrayLike, prior_mean: ArrayLike, prior_log_variance: ArrayLike, where: ArrayLike | None
) -> tuple[Arrays, jax.Array | None, tuple[jnp.dtype, ...]]:
    """The checked arguments in the dtype to compute in and the shape of `mean`, 0 where masked, and their dtypes."""
    first = _checks.as_floating("mean", mean)
    arrays = [first]
    for name, x in (("log_variance", log_variance), ("prior_mean", prior_mean), ("prior_log_variance", prior_log_variance)):
        array = jnp.asarray(x, first.dtype) if isinstance(x, int | float) and not isinstance(x, bool) else _checks.as_floating(name, x)
        if array.ndim or not name.startswith("prior"):
            _checks.same_shape(name, array, first.shape, "the shape of mean")
        arrays.append(array)
    if where is not None:
        where = _checks.as_mask("where", where, first.shape)
    wide = _checks.compute_dtype(*arrays)
    full = [jnp.broadcast_to(x.astype(wide), first.shape) for x in arrays]
    return tuple(unless_masked(x, where) for x in full), where, tuple(x.dtype for x in arrays)


# The functions below take four arrays (...) of the dtype to compute in.


@jax.custom_jvp
def _kl(m1: jax.Array, l1: jax.Array, m2: jax.Array, l2: jax.Array) -> jax.Array:
    return (_ratio_and_excess(l1, l2)[1] + _squares(m1, m2, l2)) / 2


@_kl.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    by_m1, by_l1, by_m2, by_l2 = (limit_product(g, v) for g, v in zip(_gradients(*primals), tangents, strict=True))
    return _kl(*primals), (by_m1 + by_l1) + (by_m2 + by_l2)


def _gradient(number: int, *arguments: jax.Array) -> jax.Array:
    return _gradients(*arguments)[number]


def _gradients(m1: jax.Array, l1: jax.Array, m2: jax.Array, l2: jax.Array) -> Arrays:
    pull, rise = limit_product(_precision(l2), m1 - m2), _ratio_less_one(l1, l2)
    return pull, rise / 2, -pull, -(rise + _squares(m1, m2, l2)) / 2


@jax.custom_jvp
def _ratio_less_one(l1: jax.Array, l2: jax.Array) -> jax.Array:
    """e^{l1 − l2} − 1."""
    return _ratio_and_excess(l1, l2)[0]


@_ratio_less_one.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _ratio_less_one(*primals), limit_product(_ratio(*primals), tangents[0] - tangents[1])


@jax.custom_jvp
def _ratio(l1: jax.Array, l2: jax.Array) -> jax.Array:
    """e^{l1 − l2}."""
    x, tail = two_difference(l1, l2)
    return _exp(x, jnp.where(jnp.isfinite(x), tail, 0))


@_ratio.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _ratio(*primals), limit_product(_ratio(*primals), tangents[0] - tangents[1])


@jax.custom_jvp
def _precision(l2: jax.Array) -> jax.Array:
    """e^{−l2}."""
    return _exp(-l2, jnp.zeros_like(l2))


@_precision.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _precision(*primals), -limit_product(_precision(*primals), tangents[0])


@jax.custom_jvp
def _squares(m1: jax.Array, m2: jax.Array, l2: jax.Array) -> jax.Array:
    """(m1 − m2)² e^{−l2}, whose factors may leave the range that it does not."""
    difference = m1 - m2
    scaled = difference * jnp.exp(-l2 / 2)
    squares = jnp.where((jnp.abs(l2) < LARGEST_EXPONENT) & (jnp.abs(difference) < 1e10), difference * (difference * _precision(l2)), scaled * scaled)
    return jnp.where(difference == 0, 0, squares)


@_squares.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (m1, m2, l2), (dm1, dm2, dl2) = primals, tangents
    squares = _squares(m1, m2, l2)
    return squares, 2 * limit_product(limit_product(_precision(l2), m1 - m2), dm1 - dm2) - limit_product(squares, dl2)


def _ratio_and_excess(l1: jax.Array, l2: jax.Array) -> Arrays:
    """e^x − 1 and ψ(x) of x = l1 − l2."""
    x, tail = two_difference(l1, l2)
    near = jnp.abs(x) < NEAR
    rise, psi = expm1_and_remainder(jnp.where(near, x, 0))
    power = _exp(x, jnp.where(jnp.isfinite(x), tail, 0))
    return jnp.where(near, rise, power - 1), jnp.where(near, psi + rise * jnp.where(near, tail, 0), power - (1 + x))


def _exp(x: jax.Array, tail: jax.Array) -> jax.Array:
    """e^{x + tail}."""
    return jnp.where(jnp.abs(x) < LARGEST_EXPONENT, exp(x, tail) / UNIT, jnp.exp(x) * (1 + tail))
