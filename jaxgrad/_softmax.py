"""Softmax, its logarithms, and their derivatives without cancellation.

    softmax(z)_i     = e^{z_i} / Σ_j e^{z_j} = p_i       softmax-1
    ∂p/∂z            = J = diag(p) − p pᵀ                softmax-3    symmetric, J·1 = 0, PSD
    log_softmax(z)_i = z_i − logsumexp(z)
    ∂(log p)/∂z · v  = v − ⟨p, v⟩
    J v              = p ∘ (v − ⟨p, v⟩)

Their exponentials, and what is left of 1 beside the heaviest class, come from `_exponentials`.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._exponentials import UNIT, Split, split_at_heaviest, with_rounded_sum
from jaxgrad._linear import Arrays, LinearMap, limit_product
from jaxgrad._operators import SymmetricOperator


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


def softmax_jacobian(logits: ArrayLike) -> "SoftmaxJacobian":
    """The Jacobian of softmax, J = diag(p) − p pᵀ (softmax-2, softmax-3), as an operator with O(C) memory.

    It is also the Hessian of cross-entropy in the logits (hess-1), the Fisher information of a categorical
    distribution and the covariance of a one-hot draw from it.

    Args:
      logits: z, (..., C), floating.

    Returns:
      An operator of shape (..., C, C): `matvec`, `@`, `T`, `diagonal()`, `trace()`, `to_dense()`.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    z = _checks.as_logits("logits", logits)
    return SoftmaxJacobian(z, jnp.ones(z.shape[:-1], _checks.compute_dtype(z)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftmaxJacobian(SymmetricOperator):
    """scale · (diag(p) − p pᵀ) with p = softmax(logits): `logits` (..., C), `scale` (...)."""

    logits: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., C, C)."""
        return (*self.logits.shape, self.logits.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of `logits`, in which everything with a class axis comes back."""
        return self.logits.dtype

    def matvec(self, vector: ArrayLike) -> jax.Array:
        """J v, (..., C), for one vector (..., C) a row: p ∘ (v − ⟨p, v⟩), accurate also if v has a large common offset.

        Raises:
          TypeError: `vector` is not of a real floating dtype.
          ValueError: its shape is not that of the logits.
        """
        v = _checks.as_floating("vector", vector)
        _checks.same_shape("vector", v, self.logits.shape, "one vector for each row of the logits")
        z = self._wide_logits()
        return scaled_jacobian_product(z, self.scale[..., None].astype(z.dtype), v.astype(z.dtype)).astype(self.dtype)

    def diagonal(self) -> jax.Array:
        """p_i (1 − p_i), (..., C)."""
        z = self._wide_logits()
        return (self.scale[..., None] * _variances(z)).astype(self.dtype)

    def trace(self) -> jax.Array:
        """Σ_i p_i (1 − p_i) = 1 − ‖p‖², (...), at least float32."""
        z = self._wide_logits()
        return self.scale * _variances(z).sum(-1)

    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C): p_i (1[i=j] − p_j), symmetric to the bit."""
        z = self._wide_logits()
        dense = jnp.where(jnp.eye(z.shape[-1], dtype=bool), _variances(z)[..., None], -_products(z))
        return (self.scale[..., None, None] * dense).astype(self.dtype)

    def _wide_logits(self) -> jax.Array:
        return self.logits.astype(_checks.compute_dtype(self.logits, self.scale))


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
def _variances(z: jax.Array) -> jax.Array:
    """p_i (1 − p_i), (..., C)."""
    at_k = with_rounded_sum(split_at_heaviest(z))
    return at_k.exps * (((UNIT - at_k.exps) + at_k.others) / UNIT) * at_k.inverse_square


@_variances.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _variances(*primals), jacobian_product(*primals, *tangents) * (1 - 2 * _softmax(*primals))


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _products(z: jax.Array) -> jax.Array:
    """p_i p_j, (..., C, C)."""
    at_k = with_rounded_sum(split_at_heaviest(z))
    return at_k.exps[..., :, None] * at_k.exps[..., None, :] * (at_k.inverse_square / UNIT)[..., None]


@_products.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    p, dp = _softmax(*primals), jacobian_product(*primals, *tangents)
    half = p[..., :, None] * dp[..., None, :]
    return _products(*primals), half + half.swapaxes(-1, -2)


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
    return scale * (at_k.exps * _pairwise_differences(at_k, v) * at_k.inverse_square)


def _deviation(z: jax.Array, v: jax.Array) -> jax.Array:
    """v − ⟨p, v⟩."""
    at_k = split_at_heaviest(z)
    return _pairwise_differences(at_k, v) * (at_k.inverse * UNIT)


def _pairwise_differences(at_k: Split, v: jax.Array) -> jax.Array:
    """Σ_i e^{z_i − z_k} (v_j − v_i): v_j − v_k, and the other classes about a centre.

    Any centre will do in exact arithmetic. The mean of the others leaves no common offset to cancel; 0, where v_k
    does not share its sign, makes J e_i hold the very products e_i e_j, so that the matrix is symmetric to the bit.
    """
    v_k = jnp.where(at_k.heaviest, v, 0).sum(-1, keepdims=True)
    mean = jnp.where(at_k.others > 0, (at_k.rest * v).sum(-1, keepdims=True) / at_k.others, v_k)
    u = v - jnp.where(jnp.sign(v_k) * jnp.sign(mean) > 0, mean, 0)
    return (v - v_k) + (at_k.others * u - (at_k.rest * u).sum(-1, keepdims=True)) / UNIT


def _deviation_transpose(z: jax.Array, w: jax.Array) -> jax.Array:
    """w − p Σw; at the heaviest class (1 − p_k) w_k − p_k Σ_{j≠k} w_j."""
    at_k = split_at_heaviest(z)
    rest = jnp.where(at_k.heaviest, 0, w).sum(-1, keepdims=True)
    return jnp.where(at_k.heaviest, at_k.complement * w - at_k.probs * rest, w - at_k.probs * w.sum(-1, keepdims=True))


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
