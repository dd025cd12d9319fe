"""diag(w) between two centrings: the Hessians of divergences, diagonal plus rank two.

(I − p 1ᵀ) diag(w) (I − 1 qᵀ) = diag(w) − w qᵀ − p wᵀ + Σw p qᵀ
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._exponentials import split_at_heaviest
from jaxgrad._linear import LinearMap
from jaxgrad._operators import LinearOperator
from jaxgrad._pytrees import pytree
from jaxgrad._softmax import _softmax, deviation, deviation_transpose, jacobian_product, zero_sum_product


@pytree
@dataclasses.dataclass(frozen=True)
class CentredDiagonal(LinearOperator):
    """(I − p 1ᵀ) diag(w) (I − 1 qᵀ), diagonal plus rank two: p = softmax(`left`), q = softmax(`right`), w = `weights`, (..., C) each.

    With w = p = q it is the Jacobian of softmax. It annihilates constant vectors. Results come in `result_dtype`.
    """

    left: jax.Array
    right: jax.Array
    weights: jax.Array
    result_dtype: jnp.dtype = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., C, C)."""
        return (*self.weights.shape, self.weights.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which everything with a class axis comes back."""
        return self.result_dtype

    @property
    def T(self) -> "CentredDiagonal":
        """The transpose, with left and right exchanged."""
        return CentredDiagonal(self.right, self.left, self.weights, self.result_dtype)

    def matvec(self, vector: ArrayLike) -> jax.Array:
        """The product with one vector (..., C) a row; a common offset of the vector costs no digits.

        Raises:
          TypeError: `vector` is not of a real floating dtype.
          ValueError: its shape is not that of the logits.
        """
        v = _checks.as_floating("vector", vector)
        _checks.same_shape("vector", v, self.weights.shape, "one vector for each row of the logits")
        scaled = self._finite_weights() * deviation(self.right, v.astype(self.weights.dtype))
        return self._at_limit(deviation_transpose(self.left, scaled)).astype(self.dtype)

    def diagonal(self) -> jax.Array:
        """w_i (1 − p_i)(1 − q_i) + p_i q_i Σ_{l≠i} w_l, (..., C)."""
        return self._diagonal().astype(self.dtype)

    def trace(self) -> jax.Array:
        """The sum of the diagonal, (...), at least float32."""
        return self._diagonal().sum(-1)

    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C), symmetric to the bit if left and right are the same.

        For i ≠ j −w_i (1 − p_i) q_j − p_i w_j (1 − q_j) + p_i q_j Σ_{l≠i,j} w_l.
        """
        factors = _with_complement(self.left), _with_complement(self.right), self._finite_weights()
        (p, p_rest), (q, q_rest), w = lax.optimization_barrier(factors)  # computed again for rows and for columns they may differ in a bit
        rows, columns = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
        heavy = self._heavy()
        either = rows(heavy) | columns(heavy)
        light = jnp.where(heavy, 0, w)
        others = light.sum(-1)[..., None, None] - (rows(light) + columns(light)) + jnp.where(either, 0, jnp.where(heavy, w, 0).sum(-1)[..., None, None])
        crossed = _rounded(rows(p) * columns(q) * others) - (_rounded(rows(w * p_rest) * columns(q)) + _rounded(rows(p) * columns(w * q_rest)))
        return jnp.where(jnp.eye(w.shape[-1], dtype=bool), self._diagonal()[..., None], self._at_limit(crossed)).astype(self.dtype)

    def _diagonal(self) -> jax.Array:
        (p, p_rest), (q, q_rest), w = _with_complement(self.left), _with_complement(self.right), self._finite_weights()
        heavy = self._heavy()
        light = jnp.where(heavy, 0, w)
        others = light.sum(-1, keepdims=True) - light + jnp.where(heavy, 0, jnp.where(heavy, w, 0).sum(-1, keepdims=True))
        return self._at_limit(w * p_rest * q_rest + p * q * others)

    def _heavy(self) -> jax.Array:
        """True at the (first) weight of the largest magnitude, which sums over the others must leave out, (..., C)."""
        return split_at_heaviest(jnp.abs(self._finite_weights())).heaviest

    def _finite_weights(self) -> jax.Array:
        """The weights; where they are infinite, with a divergence, what they are proportional to."""
        return _finite_part(_softmax(self.left), self.weights)

    def _at_limit(self, x: jax.Array) -> jax.Array:
        """x, or its sign times infinity where the weights are infinite."""
        broken = jnp.isposinf(self.weights).any(-1).reshape(self.weights.shape[:-1] + (1,) * (x.ndim - self.weights.ndim + 1))
        return _infinite(broken, x)


def _with_complement(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p and 1 − p, (..., C) each."""
    at_k = split_at_heaviest(z)
    return at_k.probs, jnp.where(at_k.heaviest, at_k.complement, 1 - at_k.probs)


# The same as linear maps, whose products AD assembles into matrices that are symmetric to the bit.


def _twisted(z: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
    """(diag(g) − g pᵀ − p gᵀ) v for Σg = 0 (hess-8); its limit where g is infinite."""
    p, broken = _softmax(z), jnp.isposinf(g).any(-1, keepdims=True)
    g = _finite_part(p, g)
    return _infinite(broken, _rounded(g * deviation(z, v)) - _rounded(p * zero_sum_product(g, v)[..., None]))


def _finite_part(p: jax.Array, g: jax.Array) -> jax.Array:
    """g; for a row in which it is infinite, the gradient of log(p/q) at the classes where that grows without bound."""
    above = jnp.isposinf(g)
    share, rest = (jnp.where(part, p, 0).sum(-1, keepdims=True) for part in (above, ~above))
    return jnp.where(above.any(-1, keepdims=True), p * jnp.where(above, rest, -share), g)


def _infinite(broken: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(broken, jnp.where(x == 0, 0, jnp.sign(x) * jnp.inf), x)


def _shared_terms(r: jax.Array, sigma: jax.Array, left: jax.Array, right: jax.Array, v: jax.Array) -> jax.Array:
    """σ (J + left rightᵀ) v for Σ right = 0, J of softmax(r)."""
    return _rounded(sigma * jacobian_product(r, v)) + _rounded(sigma * (left * zero_sum_product(right, v)[..., None]))


def _rounded(x: jax.Array) -> jax.Array:
    """A finite product before it is added to another: a fused multiply-add would round one of the two, and the other in the transpose."""
    return jnp.maximum(x, jnp.finfo(x.dtype).min)


_inner = lambda g, v: (g * v).sum(-1, keepdims=True)
_turned = lambda z, v, dz: jacobian_product(z, deviation(z, v) * deviation(z, dz))  # the derivative of J v along dz
rounded_jacobian_product = LinearMap("rounded_jacobian_product", lambda z, v: _rounded(jacobian_product(z, v)))
twist = LinearMap("twist", _twisted)
shared_product = LinearMap("shared_product", _shared_terms)
rounded_jacobian_product.derive(transpose=rounded_jacobian_product, in_r=(_turned,))
twist.derive(
    transpose=twist,
    in_r=(
        lambda z, g, v, dz: -g * _inner(jacobian_product(z, dz), v) - jacobian_product(z, dz) * _inner(g, v),
        lambda z, _, v, dg: dg * deviation(z, v) - _softmax(z) * _inner(dg, deviation(z, v)),
    ),
)
shared_product.derive(
    transpose=lambda r, sigma, left, right, v: shared_product(r, sigma, right, left, v),
    in_r=(
        lambda r, sigma, _left, _right, v, dr: sigma * _turned(r, v, dr),
        lambda r, _, left, right, v, dsigma: dsigma * (jacobian_product(r, v) + left * _inner(right, v)),
        lambda _r, sigma, _left, right, v, dleft: sigma * dleft * _inner(right, v),
        lambda _r, sigma, left, _right, v, dright: sigma * left * _inner(dright, v),
    ),
)
