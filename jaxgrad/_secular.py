"""Eigenvalues and eigenvectors of diag(p) − p pᵀ/Σp, by its secular equation (op-4).

    Σ_j p_j / (p_j − μ) = 0

has one root between each two neighbours of the sorted p, as its left side rises from −∞ to ∞ there; that, 0, and the
values that occur repeatedly are the eigenvalues (Golub 1973, doi:10.1137/1015032). J is the Laplacian of a graph with the
weights p_i p_j, so small relative changes of p change each eigenvalue relatively little, and the roots keep the digits of p.
"""

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 2**18  # numbers that are worked on at a time


def eigenpairs(p: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest eigenvalues, (..., K) ascending, and orthonormal eigenvectors in columns, (..., C, K)."""
    num_classes = p.shape[-1]
    order = jnp.argsort(p, axis=-1)
    poles = jnp.take_along_axis(p, order, -1)
    uppers = jnp.arange(num_classes - min(count, num_classes - 1), num_classes)  # the upper ends of the intervals
    origins, offsets = lax.map(lambda upper: _root(poles, upper), uppers, batch_size=max(1, BLOCK // max(1, poles.size)))
    vectors = jax.vmap(_vector, (None, 0, 0, 0), -1)(poles, uppers, origins, offsets)
    values = jnp.moveaxis(origins + offsets, 0, -1)
    if count == num_classes:
        live = (poles > 0).astype(p.dtype)
        values = jnp.concatenate([jnp.zeros_like(poles[..., :1]), values], -1)
        vectors = jnp.concatenate([_normalised(live)[..., None], vectors], -1)
    valid = ~jnp.isnan(p).any(-1)[..., None]
    vectors = jnp.take_along_axis(vectors, jnp.argsort(order, axis=-1)[..., None], -2)
    return jnp.where(valid, values, jnp.nan), jnp.where(valid[..., None], vectors, jnp.nan)


def _root(poles: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearer end of the interval below a pole, and the distance of the root from it, (...) each.

    By bisection on the bits of the distance, whose order is that of the numbers: all of its digits in one step for each bit.
    """
    info = jnp.finfo(poles.dtype)
    low, high = poles[..., upper - 1], poles[..., upper]
    half = (high - low) / 2
    below = _secular(poles, low, half) > 0
    origin, sign = jnp.where(below, low, high), jnp.where(below, 1, -1).astype(poles.dtype)
    as_number = lambda bits: lax.bitcast_convert_type(bits, poles.dtype)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        near, far = ends
        middle = near + (far - near) // 2
        too_far = (_secular(poles, origin, sign * as_number(middle)) > 0) == below
        return jnp.where(too_far, near, middle), jnp.where(too_far, middle, far)

    bits = lax.bitcast_convert_type(half, jnp.int32 if info.bits == 32 else jnp.int64)
    distance = as_number(lax.fori_loop(0, info.bits, halve, (jnp.zeros_like(bits), bits))[0])
    exact = (low == high) | (low == 0)  # the root is the pole itself, or 0 where there is no weight
    return jnp.where(exact, low, origin), jnp.where(exact, 0, sign * distance)


def _secular(poles: jax.Array, origin: jax.Array, offset: jax.Array) -> jax.Array:
    """Σ_j p_j / (p_j − μ) at μ = origin + offset, (...)."""
    return (poles / _distances(poles, origin, offset)).sum(-1)


def _distances(poles: jax.Array, origin: jax.Array, offset: jax.Array) -> jax.Array:
    """p_j − μ, (..., C), to the last digits also beside a pole."""
    return (poles - origin[..., None]) - offset[..., None]


def _vector(poles: jax.Array, upper: jax.Array, origin: jax.Array, offset: jax.Array) -> jax.Array:
    """The unit eigenvector of the root below a pole, (..., C) in the order of the poles: p_j / (p_j − μ).

    Of m equal poles come m − 1 vectors (1, …, 1, −t, 0, …), and from poles that are 0 another one, which is constant there.
    """
    low, high = poles[..., upper - 1, None], poles[..., upper, None]
    distances = _distances(poles, origin, offset)
    at_root = poles / jnp.where(distances == 0, 1, distances)
    index = lax.broadcasted_iota(upper.dtype, poles.shape, poles.ndim - 1)
    before = ((poles == high) & (index < upper)).astype(poles.dtype)
    tied = jnp.where(index == upper, -before.sum(-1, keepdims=True), before)
    at_zero = (poles == 0).astype(poles.dtype)
    return _normalised(jnp.where(low == high, tied, jnp.where(low == 0, at_zero, at_root)))


def _normalised(vector: jax.Array) -> jax.Array:
    vector = vector / jnp.abs(vector).max(-1, keepdims=True)
    return vector / jnp.sqrt((vector * vector).sum(-1, keepdims=True))
