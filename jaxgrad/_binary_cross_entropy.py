"""Cross-entropy of a Bernoulli variable with a logistic model, beside its derivatives in the logit.

    loss(z, y)    = (1 − y) log(1 + e^z) + y log(1 + e^{−z})    bce-1     σ(z) = 1/(1 + e^{−z})
    grad(z, y)    = σ(z) − y                                    bce-1
    hessian(z, y) = diag(σ(z) σ(−z))                            hess-10   free of y, at most 1/4

Every sum has terms of one sign, so both tails keep their digits.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._exponentials import UNIT, exp_shifted, log1p, reciprocal_of_sum
from jaxgrad._linear import Arrays
from jaxgrad._operators import Diagonal


def binary_cross_entropy(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Bernoulli cross-entropy −y log σ(z) − (1 − y) log σ(−z), one value for each logit, in nats (bce-1).

    Accurate on both tails. An infinite logit that agrees with its target costs 0, one that does not costs +inf.

    Args:
      logits: z, (...), floating.
      targets: y, (...), the probability of the positive class, floating; or booleans; or the integers 0 and 1.
        An integer that is neither gives NaN in the loss and every derivative.
      where: (...), boolean; a logit where it is False has loss and derivatives 0, and is not looked at.

    Returns:
      loss: (...), at least float32.

    Raises:
      TypeError: a dtype is none of these.
      ValueError: the shapes are not equal; nothing broadcasts.
      IndexError: an integer is neither 0 nor 1 and its value is known (outside `jit`).

    Source: Cox 1958, doi:10.1111/j.2517-6161.1958.tb00292.x.
    """
    z, y, where, _ = _example(logits, targets, where)
    loss = _binary_cross_entropy(z, y)
    return loss if where is None else jnp.where(where, loss, 0)


def binary_cross_entropy_grad(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Gradient of `binary_cross_entropy` in the logits, σ(z) − y (bce-1): exact also where σ(z) rounds to y.

    Args:
      logits: z, (...), floating.
      targets: y, (...), as in `binary_cross_entropy`.
      where: (...), boolean; the gradient is 0 where it is False.

    Returns:
      (...), in the dtype of `logits`; computed in at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `binary_cross_entropy`.

    Source: Cox 1958, doi:10.1111/j.2517-6161.1958.tb00292.x.
    """
    z, y, where, dtype = _example(logits, targets, where)
    gradient = _grad(z, y)
    return (gradient if where is None else jnp.where(where, gradient, 0)).astype(dtype)


def binary_cross_entropy_hessian(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> Diagonal:
    """Hessian of the summed `binary_cross_entropy` in the logits of the last axis, diag(σ(z) σ(−z)) (hess-10).

    Args:
      logits: z, (..., K), floating.
      targets: y, (..., K), as in `binary_cross_entropy`; they only enter if they are invalid.
      where: (..., K), boolean; the diagonal is 0 where it is False.

    Returns:
      An operator of shape (..., K, K): `matvec`, `@`, `T`, `diagonal()`, `trace()`, `to_dense()`.

    Raises:
      TypeError, IndexError: as `binary_cross_entropy`.
      ValueError: the shapes are not equal, or there is no axis.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    z, y, where, dtype = _example(logits, targets, where)
    if z.ndim == 0:
        raise ValueError("logits: expected shape (..., K) for a Hessian, got a scalar; pass logits[None] and targets[None]")
    curvature = _sigmoid(z) * _sigmoid(-z) * jnp.where(jnp.isnan(y), jnp.nan, jnp.ones_like(y))
    return Diagonal(curvature if where is None else jnp.where(where, curvature, 0), dtype)


def _example(logits: ArrayLike, targets: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array | None, jnp.dtype]:
    """Checked logits and targets in the dtype to compute in, 0 where masked, and the dtype of the logits."""
    z = _checks.as_floating("logits", logits)
    y = _checks.as_array("targets", targets)
    _checks.same_shape("targets", y, z.shape, "one target for each logit")
    if where is not None:
        where = _checks.as_mask("where", where, z.shape)
    if jnp.issubdtype(y.dtype, jnp.integer):
        _checks.ids_in_range("targets", y, 2, where)
        wide = _checks.compute_dtype(z)
        y = jnp.where((y == 0) | (y == 1), y.astype(wide), jnp.nan)
    elif jnp.issubdtype(y.dtype, jnp.floating) or y.dtype == jnp.bool_:
        wide = _checks.compute_dtype(z, y)
    else:
        raise TypeError(f"targets: expected probabilities, booleans or the integers 0 and 1, got {y.dtype}; pass float32 or int32")
    dtype, z, y = z.dtype, z.astype(wide), y.astype(wide)
    if where is not None:
        z, y = jnp.where(where, z, 0), jnp.where(where, y, 0)
    return z, y, where, dtype


# z and y (...) of the dtype to compute in, at least float32.


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _binary_cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    weigh = lambda weight, loss: jnp.where(weight == 0, 0, weight * loss)  # 0 · inf is 0
    return weigh(1 - y, _softplus(z)) + weigh(y, _softplus(-z))


@_binary_cross_entropy.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    z, y = primals
    dz, dy = tangents
    return _binary_cross_entropy(z, y), _grad(z, y) * dz - jnp.where(jnp.isinf(z), 0, z) * dy


def _grad(z: jax.Array, y: jax.Array) -> jax.Array:
    """σ(z) − y, as a difference of what is left of both: (1 − y) σ(z) − y σ(−z)."""
    return (1 - y) * _sigmoid(z) - y * _sigmoid(-z)


def _softplus(z: jax.Array) -> jax.Array:
    """log(1 + e^z)."""
    return jnp.maximum(z, 0) + log1p(_exp_of_negative(jnp.abs(z)) / UNIT)


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _sigmoid(z: jax.Array) -> jax.Array:
    """σ(z) = 1/(1 + e^{−z})."""
    e = _exp_of_negative(jnp.abs(z))
    one = jnp.full_like(e, UNIT)
    return jnp.where(z < 0, e, one) * reciprocal_of_sum(one, e)[0]


@_sigmoid.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z,), (dz,) = primals, tangents
    return _sigmoid(z), _sigmoid(z) * _sigmoid(-z) * dz


def _exp_of_negative(x: jax.Array) -> jax.Array:
    """UNIT · e^{−x} for x >= 0."""
    return exp_shifted(-x, jnp.zeros_like(x))[0]
