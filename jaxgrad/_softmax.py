"""Softmax, its logarithms, and their derivatives without cancellation.

    softmax(z)_i     = e^{z_i} / Σ_j e^{z_j} = p_i       softmax-1
    ∂p/∂z            = J = diag(p) − p pᵀ                softmax-3    symmetric, J·1 = 0, PSD
    log_softmax(z)_i = z_i − logsumexp(z)
    ∂(log p)/∂z · v  = v − ⟨p, v⟩
    J v              = p ∘ (v − ⟨p, v⟩)

Their exponentials, and what is left of 1 beside the heaviest class, come from `_exponentials`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._exponentials import UNIT, Split, split_at_heaviest
from jaxgrad._linear import Arrays, LinearMap, limit_product


def softmax(logits: ArrayLike) -> jax.Array:
    """Softmax over the last axis: p_i = e^{z_i} / Σ_j e^{z_j} (softmax-1).

    A class with logit −inf has probability 0. A row that is all −inf, or holds +inf or NaN, is NaN throughout.

    Args:
      logits: z, (..., C), floating.

    Returns:
      probs: p, (..., C), in the dtype of `logits`; computed in at least float32.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Bridle 1990, doi:10.1007/978-3-642-76153-9_28.
    """
    z = _checks.as_logits("logits", logits)
    return _softmax(z.astype(_checks.compute_dtype(z))).astype(z.dtype)


def log_softmax(logits: ArrayLike) -> jax.Array:
    """Logarithm of softmax over the last axis: z_i − log Σ_j e^{z_j}, in nats.

    Accurate at the heaviest class too, where it is −log1p(Σ_{j≠k} e^{z_j − z_k}) and does not round to 0.

    Args:
      logits: z, (..., C), floating; −inf masks a class, whose log-probability is −inf.

    Returns:
      log_probs: (..., C), in the dtype of `logits`; computed in at least float32.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Blanchard, Higham and Higham 2021, doi:10.1093/imanum/draa038.
    """
    z = _checks.as_logits("logits", logits)
    return log_probs(z.astype(_checks.compute_dtype(z))).astype(z.dtype)


def logsumexp(logits: ArrayLike) -> jax.Array:
    """Logarithm of the sum of exponentials over the last axis, log Σ_j e^{z_j}, in nats.

    −inf if all logits are, +inf if one is. Its relative accuracy near 0 is that of max z.

    Args:
      logits: z, (..., C), floating.

    Returns:
      (...), at least float32.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Blanchard, Higham and Higham 2021, doi:10.1093/imanum/draa038.
    """
    z = _checks.as_logits("logits", logits)
    return _logsumexp(z.astype(_checks.compute_dtype(z)))


# The functions below take logits of the dtype to compute in, at least float32. They are compiled also where the caller is not: a
# step may meet inf − inf, which no result does, and which would stop a program that debugs NaN.


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _softmax(z: jax.Array) -> jax.Array:
    return split_at_heaviest(z).probs


@_softmax.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _softmax(*primals), jacobian_product(*primals, *tangents)


@jax.custom_jvp
@partial(jax.jit, inline=True)
def log_probs(z: jax.Array) -> jax.Array:
    at_k = split_at_heaviest(z)
    return at_k.shifted + (at_k.shifted_tail - at_k.log_sum)


@log_probs.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return log_probs(*primals), deviation(*primals, *tangents)


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _logsumexp(z: jax.Array) -> jax.Array:
    m = z.max(-1)
    return jnp.where(jnp.isfinite(m), m + split_at_heaviest(z).log_sum[..., 0], m)


@_logsumexp.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z,), (dz,) = primals, tangents
    return _logsumexp(z), (_softmax(z) * dz).sum(-1)


def _scaled_jacobian_product(z: jax.Array, scale: jax.Array, v: jax.Array) -> jax.Array:
    """scale · J v = scale · p ∘ (v − ⟨p, v⟩), scaled last: scaling v first would round away what differs in it."""
    at_k = split_at_heaviest(z)
    differences = _pairwise_differences(at_k, v)
    return scale * (jnp.where(at_k.heaviest, UNIT * differences, at_k.rest * differences) * at_k.inverse_square)  # one pass; exps would be written first


def _deviation(z: jax.Array, v: jax.Array) -> jax.Array:
    """v − ⟨p, v⟩."""
    at_k = split_at_heaviest(z)
    return _pairwise_differences(at_k, v) * (at_k.inverse * UNIT)


def _pairwise_differences(at_k: Split, v: jax.Array) -> jax.Array:
    """Σ_i e^{z_i − z_k} (v_j − v_i): v_j − v_k, and the other classes about a centre.

    Any centre will do in exact arithmetic. The mean of the others leaves no common offset to cancel; 0, where v_k
    does not share its sign, makes J e_i hold the very products e_i e_j, so that the matrix is symmetric to the bit.
    """
    v_k = at_k.at_heaviest(v)
    mean = jnp.where(at_k.others > 0, (at_k.rest * v).sum(-1, keepdims=True) / at_k.others, v_k)
    u = v - jnp.where(jnp.sign(v_k) * jnp.sign(mean) > 0, mean, 0)
    return (v - v_k) + (at_k.others * u - (at_k.rest * u).sum(-1, keepdims=True)) / UNIT


def _deviation_transpose(z: jax.Array, w: jax.Array) -> jax.Array:
    """w − p Σw; at the heaviest class (1 − p_k) w_k − p_k Σ_{j≠k} w_j."""
    at_k = split_at_heaviest(z)
    rest = jnp.where(at_k.heaviest, 0, w).sum(-1, keepdims=True)
    return jnp.where(at_k.heaviest, at_k.complement * w - at_k.probs * rest, w - at_k.probs * (rest + at_k.at_heaviest(w)))


def _zero_sum_terms(gradient: jax.Array, v: jax.Array) -> jax.Array:
    """g ∘ (v − c): if Σg = 0 a centre c does not change the sum, and removes a common offset of v.

    c is the mean of v over the classes where g > 0 or over those where g < 0, the one nearer to 0, and 0 if that
    lies between: then the product with a basis vector is the very entry of g. An infinite entry of g, where a
    divergence is infinite, meets 0 as a limit does.
    """
    finite = jnp.where(jnp.isinf(gradient), 0, gradient)
    up, down = jnp.maximum(finite, 0), jnp.maximum(-finite, 0)
    mean = lambda weight: (weight * v).sum(-1, keepdims=True) / jnp.maximum(weight.sum(-1, keepdims=True), jnp.finfo(v.dtype).tiny)
    a, b = mean(up), mean(down)
    product = gradient * (v - (jnp.maximum(jnp.minimum(a, b), 0) + jnp.minimum(jnp.maximum(a, b), 0)))
    return jnp.where(jnp.isinf(gradient), jnp.where(v == 0, 0, gradient * v), product)


scaled_jacobian_product = LinearMap("scaled_jacobian_product", _scaled_jacobian_product)  # scale · J v, scale (..., 1)
deviation = LinearMap("deviation", _deviation)  # v − ⟨p, v⟩, the derivative of log_softmax
deviation_transpose = LinearMap("deviation_transpose", _deviation_transpose)  # w − p Σw
_zero_sum_products = LinearMap("zero_sum_products", _zero_sum_terms)


def jacobian_product(z: jax.Array, v: jax.Array) -> jax.Array:
    """J v = p ∘ (v − ⟨p, v⟩), (..., C)."""
    return scaled_jacobian_product(z, jnp.ones_like(z.max(-1, keepdims=True)), v)


scaled_jacobian_product.derive(
    transpose=scaled_jacobian_product,
    in_r=(
        lambda z, scale, v, dz: scaled_jacobian_product(z, scale, deviation(z, v) * deviation(z, dz)),
        lambda z, _, v, dscale: dscale * jacobian_product(z, v),
    ),
)
deviation.derive(
    transpose=deviation_transpose,
    in_r=(lambda z, v, dz: -(jacobian_product(z, v) * dz).sum(-1, keepdims=True) * jnp.ones_like(v),),
)
deviation_transpose.derive(
    transpose=deviation,
    in_r=(lambda z, w, dz: -jacobian_product(z, dz) * w.sum(-1, keepdims=True),),
)
_zero_sum_products.derive(transpose=jnp.multiply, in_r=(lambda _, v, dg: limit_product(v, jnp.broadcast_to(dg, v.shape)),))


def zero_sum_product(gradient: jax.Array, v: jax.Array) -> jax.Array:
    """⟨g, v⟩ over the last axis for a gradient in the logits, Σg = 0: a common offset in v costs no digits."""
    return _zero_sum_products(gradient, v).sum(-1)
