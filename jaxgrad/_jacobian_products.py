"""Products with what is made of J = diag(p) − p pᵀ: its root and inverses as linear maps, each with its transpose and derivatives.

    B v         = √p ∘ v − p ⟨√p, v⟩                               op-1      J = B Bᵀ
    J⁺ v        = Π diag(1/p) Π v                                  op-2      d(J⁺) = −J⁺ dJ J⁺, as the null space stays
    (J + λI)⁻¹ v = v/(p + λ) + b c/λ,  b = p/(p + λ),  c = Σbv/Σb     op-3

Logits, or p, come first, of the dtype to compute in; a scale or λ has the shape (..., 1).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxgrad._exponentials import UNIT, exp_shifted, reciprocal_of_sum, split_at_heaviest
from jaxgrad._linear import Arrays, LinearMap
from jaxgrad._softmax import deviation, jacobian_product, scaled_jacobian_product


def _solve(z: jax.Array, scale: jax.Array, damping: jax.Array, v: jax.Array) -> jax.Array:
    """(scale · J + λI)⁻¹ v: v/(p + λ) + b c/λ, with scale · p for p."""
    p = jnp.where(scale < 0, jnp.nan, scale) * split_at_heaviest(z).probs
    shifted = p + jnp.where(damping > 0, damping, jnp.nan)
    b = p / shifted
    total = b.sum(-1, keepdims=True)
    return v / shifted + b * ((b * v).sum(-1, keepdims=True) / jnp.where(total > 0, total, 1) / damping)


def _pseudo_solve(z: jax.Array, scale: jax.Array, v: jax.Array) -> jax.Array:
    """(scale · J)⁺ v = Π diag(1/p) Π v / scale; Π twice first, as the first mean of a large common offset is rounded."""
    p = split_at_heaviest(z).probs
    live = ~(p < jnp.finfo(p.dtype).tiny)
    count = jnp.maximum(live.sum(-1, keepdims=True), 1).astype(p.dtype)
    centred = lambda x: jnp.where(live, x - jnp.where(live, x, 0).sum(-1, keepdims=True) / count, 0)
    return jnp.where(scale == 0, 0, centred(centred(centred(v)) / jnp.where(live, p, 1)) / jnp.where(scale == 0, 1, scale))


def _multiply(p: jax.Array, k: jax.Array, complement: jax.Array, v: jax.Array) -> jax.Array:
    """p ∘ (v − ⟨p, v⟩), about v_k where that is most of ⟨p, v⟩, and twice about the mean: no offset is left to meet the rounding of Σp."""
    v = v - jnp.where(complement < 0.5, jnp.take_along_axis(v, k, -1), 0)
    u = v - (p * v).sum(-1, keepdims=True)
    return p * (u - (p * u).sum(-1, keepdims=True))


def is_at(index: jax.Array, like: jax.Array) -> jax.Array:
    """True at an index (..., 1) of the last axis, (..., C)."""
    return lax.broadcasted_iota(index.dtype, like.shape, like.ndim - 1) == index


def _root(z: jax.Array, v: jax.Array) -> jax.Array:
    """√p ∘ v − p ⟨√p, v⟩; at the heaviest class (1 − p_k) v_k − √p_k Σ_{j≠k} √p_j v_j, times √p_k."""
    at_k = split_at_heaviest(z)
    s = _root_probs(z)
    rest = jnp.where(at_k.heaviest, 0, s * v).sum(-1, keepdims=True)
    return s * jnp.where(at_k.heaviest, at_k.complement * v - s * rest, v - s * (s * v).sum(-1, keepdims=True))


def _root_transpose(z: jax.Array, v: jax.Array) -> jax.Array:
    """√p ∘ (v − ⟨p, v⟩)."""
    return _root_probs(z) * deviation(z, v)


@jax.custom_jvp
def _root_probs(z: jax.Array) -> jax.Array:
    """√p, also where p underflows: e^{(z − z_k)/2} / √(1 + s)."""
    at_k = split_at_heaviest(z)
    half, _, _ = exp_shifted(z, at_k.top, 2.0)
    return half / UNIT * jnp.sqrt(reciprocal_of_sum(jnp.ones_like(at_k.others), at_k.others / UNIT)[0])


@_root_probs.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    root = _root_probs(*primals)
    return root, root * deviation(*primals, *tangents) / 2


damped_solution = LinearMap("softmax_jacobian_solution", _solve)  # (scale · J + λI)⁻¹ v, scale and λ (..., 1)
pseudo_solution = LinearMap("softmax_jacobian_pseudo_solution", _pseudo_solve)  # (scale · J)⁺ v, scale (..., 1)
root_product = LinearMap("softmax_jacobian_root", _root)  # B v
root_transpose_product = LinearMap("softmax_jacobian_root_transpose", _root_transpose)  # Bᵀ v


def _derivative_in_logits(z: jax.Array, scale: jax.Array, x: jax.Array, dz: jax.Array) -> jax.Array:
    """scale · (dJ along ż) x."""
    return scaled_jacobian_product(z, scale, deviation(z, x) * deviation(z, dz))


stored_product = LinearMap("stored_softmax_jacobian_product", _multiply)  # J v from p

stored_product.derive(
    transpose=stored_product,
    in_r=(
        lambda p, k, q, v, dp: dp * (v - (p * v).sum(-1, keepdims=True)) - p * (dp * v).sum(-1, keepdims=True),
        lambda p, k, q, v, dk: jnp.zeros_like(v),
        lambda p, k, q, v, dq: jnp.zeros_like(v),  # 1 − p_k moves with p
    ),
)
damped_solution.derive(
    transpose=damped_solution,
    in_r=(
        lambda z, scale, λ, v, dz: -damped_solution(z, scale, λ, _derivative_in_logits(z, scale, damped_solution(z, scale, λ, v), dz)),
        lambda z, scale, λ, v, dscale: -dscale * damped_solution(z, scale, λ, jacobian_product(z, damped_solution(z, scale, λ, v))),
        lambda z, scale, λ, v, dλ: -dλ * damped_solution(z, scale, λ, damped_solution(z, scale, λ, v)),
    ),
)
pseudo_solution.derive(
    transpose=pseudo_solution,
    in_r=(
        lambda z, scale, v, dz: -pseudo_solution(z, scale, _derivative_in_logits(z, scale, pseudo_solution(z, scale, v), dz)),
        lambda z, scale, v, dscale: -dscale * pseudo_solution(z, scale, v) / scale,
    ),
)
root_product.derive(
    transpose=root_transpose_product,
    in_r=(lambda z, v, dz: root_product(z, deviation(z, dz) * v / 2) - jacobian_product(z, dz) * (_root_probs(z) * v).sum(-1, keepdims=True),),
)
root_transpose_product.derive(
    transpose=root_product,
    in_r=(lambda z, v, dz: deviation(z, dz) * root_transpose_product(z, v) / 2 - _root_probs(z) * (jacobian_product(z, dz) * v).sum(-1, keepdims=True),),
)
