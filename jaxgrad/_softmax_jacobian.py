"""The Jacobian of softmax as an operator: products, roots, inverses and spectrum with O(C) memory.

    J             = diag(p) − p pᵀ                                   softmax-3, hess-1
    J             = B Bᵀ,  B = diag(√p) (I − √p √pᵀ)                 op-1
    J⁺            = Π diag(1/p) Π,  Π = I − 1 1ᵀ/C                   op-2
    (J + λI)⁻¹ v  = v/(p + λ) + b c/λ,  b = p/(p + λ),  c = Σbv/Σb   op-3
    Σ_j p_j / (p_j − μ) = 0  for each eigenvalue μ > 0               op-4
    log det⁺ J    = Σ_j log p_j + log C

As Σp = 1, 1 − Σ p²/(p + λ) = λ Σb and 1 − Σ p²/(p − μ) = −μ Σ p/(p − μ): nothing here takes 1 − p from a rounded p.
C and the sums are over the classes with p > 0.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._exponentials import UNIT, Split, split_at_heaviest, with_rounded_sum
from jaxgrad._jacobian_products import damped_solution, is_at, pseudo_solution, root_product, root_transpose_product, stored_product
from jaxgrad._linear import Arrays
from jaxgrad._operators import SymmetricOperator
from jaxgrad._pytrees import pytree
from jaxgrad._secular import eigenpairs
from jaxgrad._softmax import deviation, jacobian_product, log_probs, scaled_jacobian_product, softmax


def softmax_jacobian(logits: ArrayLike) -> "SoftmaxJacobian":
    """The Jacobian of softmax, J = diag(p) − p pᵀ (softmax-2, softmax-3), as an operator with O(C) memory.

    It is also the Hessian of cross-entropy in the logits (hess-1), the Fisher information of a categorical
    distribution and the covariance of a one-hot draw from it.

    Args:
      logits: z, (..., C), floating.

    Returns:
      A `SoftmaxJacobian` of shape (..., C, C): products, `diagonal()`, `trace()`, `frobenius_norm()`, `to_dense()`, the
      square root both ways, `solve`, `pinv_matvec`, `eigenvalues`, `eigh`, `log_pseudo_determinant()`, `sample`, `stored()`.

    Raises:
      TypeError: `logits` is not of a real floating dtype.
      ValueError: there is no class axis, or no class on it.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    z = _checks.as_logits("logits", logits)
    return SoftmaxJacobian(z, jnp.ones(z.shape[:-1], _checks.compute_dtype(z)))


@pytree
@dataclasses.dataclass(frozen=True)
class SoftmaxJacobian(SymmetricOperator):
    """scale · (diag(p) − p pᵀ) with p = softmax(logits): `logits` (..., C), `scale` (...).

    With a negative scale the matrix has no real root and no eigenvalues here: `root_matvec`, `solve`, `eigenvalues` and
    what else needs it positive semi-definite give NaN.
    """

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
        _checks.same_shape("vector", v, self.logits.shape, "one vector for each row of the logits; @ takes blocks")
        return scaled_jacobian_product(self._z, self._scale, v.astype(self._z.dtype)).astype(self.dtype)

    def diagonal(self) -> jax.Array:
        """p_i (1 − p_i), (..., C)."""
        return (self._scale * _variances(self._z)).astype(self.dtype)

    def trace(self) -> jax.Array:
        """Σ_i p_i (1 − p_i) = 1 − ‖p‖², (...), at least float32."""
        return self.scale * _variances(self._z).sum(-1)

    def frobenius_norm(self) -> jax.Array:
        """√(Σ_ij J_ij²), (...), at least float32."""
        return jnp.abs(self.scale) * _frobenius_norm(self._z)

    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C): p_i (1[i=j] − p_j), symmetric to the bit."""
        return (self._scale[..., None] * _dense(self._z)).astype(self.dtype)

    def root_matvec(self, vector: ArrayLike) -> jax.Array:
        """B v = √p ∘ v − p ⟨√p, v⟩ where J = B Bᵀ (op-1), for vectors (..., C) or blocks (..., C, K): normal v become draws from N(0, J).

        Raises:
          TypeError, ValueError: as `@`.
        """
        return self._of_columns(lambda v: self._root_scale * root_product(self._z, v), vector)

    def root_rmatvec(self, vector: ArrayLike) -> jax.Array:
        """Bᵀ v = √p ∘ (v − ⟨p, v⟩) where J = B Bᵀ (op-1), for vectors (..., C) or blocks (..., C, K): ‖Bᵀ v‖² = vᵀ J v.

        Raises:
          TypeError, ValueError: as `@`.
        """
        return self._of_columns(lambda v: self._root_scale * root_transpose_product(self._z, v), vector)

    def solve(self, vector: ArrayLike, *, damping: ArrayLike) -> jax.Array:
        """(J + λI)⁻¹ v in O(C) time and memory (op-3), with the shape of `vector`.

        Args:
          vector: v, (..., C), or a block (..., C, K) of K column vectors each.
          damping: λ > 0, a number, or one for each matrix, (...). One that is not positive makes NaN.

        Raises:
          TypeError: `vector` or `damping` is not of a real floating dtype.
          ValueError: a shape does not fit, or `damping` is a number and not positive.

        Source: Sherman and Morrison 1950, doi:10.1214/aoms/1177729893.
        """
        if isinstance(damping, int | float | np.integer | np.floating):
            number = _checks.positive("damping", damping, "pass λ > 0, or use pinv_matvec for λ = 0")
            λ = jnp.asarray(_checks.positive("damping", self._z.dtype.type(number), f"{number} is 0 in {self._z.dtype}"), self._z.dtype)
        else:
            λ = _checks.as_floating("damping", damping)
        if λ.ndim:
            _checks.same_shape("damping", λ, self.shape[:-2], "one for each matrix")
        λ = jnp.broadcast_to(λ, self.shape[:-2])[..., None].astype(self._z.dtype)
        return self._of_columns(lambda v: damped_solution(self._z, self._scale, λ, v), vector)

    def pinv_matvec(self, vector: ArrayLike) -> jax.Array:
        """J⁺ v with the Moore–Penrose inverse of J (op-2), for vectors (..., C) or blocks (..., C, K); the sums over classes are 0.

        A class whose probability is 0, or underflows, belongs to the null space: the result is 0 there.

        Raises:
          TypeError, ValueError: as `@`.

        Source: Tanabe and Sagae 1992, doi:10.1111/j.2517-6161.1992.tb01875.x.
        """
        return self._of_columns(lambda v: pseudo_solution(self._z, self._scale, v), vector)

    def eigenvalues(self, num_largest: int | None = None) -> jax.Array:
        """The eigenvalues, or the largest of them, ascending, (..., K), at least float32 (op-4).

        Each has a relative accuracy of some ULP, down to the smallest: one iteration by bisection costs O(K C) time, and
        memory is O(K + C), for derivatives O(K C). A class whose probability is 0 or underflows adds an eigenvalue 0.
        They are differentiable once; among equal ones only the sum of the derivatives has a meaning.

        Args:
          num_largest: K, from 1 to C; all C of them by default.

        Raises:
          ValueError: `num_largest` is not from 1 to C.

        Source: Golub 1973, doi:10.1137/1015032.
        """
        return self._checked_scale * _eigenvalues(self._z, self._count(num_largest))

    def eigh(self, num_largest: int | None = None) -> tuple[jax.Array, jax.Array]:
        """The eigenvalues as `eigenvalues`, (..., K), and orthonormal eigenvectors in columns, (..., C, K) (op-4).

        v_j = p_j / (p_j − μ), normalised; equal eigenvalues have some orthonormal basis. The eigenvectors have no
        derivative here.

        Raises:
          ValueError: `num_largest` is not from 1 to C.
          TypeError: it is differentiated.

        Source: Gu and Eisenstat 1995, doi:10.1137/S0895479892241287.
        """
        values, vectors = _eigh(self._z, self._count(num_largest))
        return self._checked_scale * values, jnp.where(self._checked_scale[..., None] >= 0, vectors, jnp.nan).astype(self.dtype)

    def log_pseudo_determinant(self) -> jax.Array:
        """The sum of the logarithms of the eigenvalues that are not 0, Σ_j log p_j + log C (op-4), (...), at least float32.

        Over the classes whose logit is not −inf; it is 0 where there is one, and where the scale is 0: no eigenvalue is left.
        """
        z, scale = self._z, self._scale[..., 0]
        masked = (z == -jnp.inf) & (z.max(-1, keepdims=True) > -jnp.inf)
        count = (~masked).sum(-1).astype(z.dtype)
        logs = jnp.where(masked, 0, log_probs(z)).sum(-1) + jnp.log(count)
        return jnp.where(scale == 0, 0, logs + (count - 1) * jnp.log(jnp.where(scale == 0, 1, scale)))

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws from N(0, J), shape + (..., C): B ξ with ξ standard normal (op-1); each sums to 0.

        Args:
          key: a key of `jax.random`.
          shape: how many draws, in front of the axes of the logits.

        Raises:
          TypeError: `shape` is not a tuple.
        """
        if not isinstance(shape, tuple):
            raise TypeError(f"shape: expected a tuple of sizes, got {shape!r}; pass ({shape},) for that many draws")
        noise = jax.random.normal(key, (*shape, *self.logits.shape), self._z.dtype)
        draw = self.root_matvec
        for _ in shape:
            draw = jax.vmap(draw)
        return draw(noise)

    def stored(self) -> "StoredSoftmaxJacobian":
        """The same with p computed once, (..., C) numbers more, for many products: half the time for each."""
        p, k = softmax(self._z), split_at_heaviest(self._z).k
        complement = jnp.where(is_at(k, p), 0, p).sum(-1, keepdims=True)
        return StoredSoftmaxJacobian(p, k, complement, self.scale, self.dtype)

    @property
    def _z(self) -> jax.Array:
        """The logits in the dtype to compute in."""
        return self.logits.astype(_checks.compute_dtype(self.logits, self.scale))

    @property
    def _scale(self) -> jax.Array:
        """(..., 1), in the dtype to compute in."""
        return self.scale[..., None].astype(self._z.dtype)

    @property
    def _checked_scale(self) -> jax.Array:
        """The scale, (..., 1), or NaN where it is negative."""
        return jnp.where(self._scale < 0, jnp.nan, self._scale)

    @property
    def _root_scale(self) -> jax.Array:
        """√scale, (..., 1), with derivative 0 at 0."""
        return jnp.where(self._scale == 0, 0, jnp.sqrt(jnp.where(self._scale == 0, 1, self._scale)))

    def _of_columns(self, function: Callable[[jax.Array], jax.Array], vector: ArrayLike) -> jax.Array:
        """`function` of vectors, or of the columns of blocks, in the dtype to compute in."""
        return self.by_columns("vector", lambda v: function(v.astype(self._z.dtype)).astype(self.dtype), vector)

    def _count(self, num_largest: int | None) -> int:
        num_classes = self.shape[-1]
        if num_largest is None:
            return num_classes
        if isinstance(num_largest, bool) or not isinstance(num_largest, int | np.integer) or not 1 <= num_largest <= num_classes:
            raise ValueError(f"num_largest: expected from 1 to {num_classes}, the number of classes, got {num_largest}; pass None for all of them")
        return num_largest


@pytree
@dataclasses.dataclass(frozen=True)
class StoredSoftmaxJacobian(SymmetricOperator):
    """scale · (diag(p) − p pᵀ) with p computed: `probs` (..., C), where it is largest `heaviest` (..., 1), 1 − p there, `scale` (...)."""

    probs: jax.Array
    heaviest: jax.Array
    complement: jax.Array
    scale: jax.Array
    result_dtype: jnp.dtype = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., C, C)."""
        return (*self.probs.shape, self.probs.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which everything with a class axis comes back."""
        return self.result_dtype

    def matvec(self, vector: ArrayLike) -> jax.Array:
        """J v, (..., C), for one vector (..., C) a row: p ∘ (v − ⟨p, v⟩).

        Raises:
          TypeError: `vector` is not of a real floating dtype.
          ValueError: its shape is not that of the probabilities.
        """
        v = _checks.as_floating("vector", vector)
        _checks.same_shape("vector", v, self.probs.shape, "one vector for each row of the probabilities")
        product = stored_product(self.probs, self.heaviest, self.complement, v.astype(self.probs.dtype))
        return (self.scale[..., None] * product).astype(self.dtype)

    def stored(self) -> "StoredSoftmaxJacobian":
        """Itself."""
        return self

    def diagonal(self) -> jax.Array:
        """p_i (1 − p_i), (..., C)."""
        complements = jnp.where(is_at(self.heaviest, self.probs), self.complement, 1 - self.probs)
        return (self.scale[..., None] * self.probs * complements).astype(self.dtype)

    def trace(self) -> jax.Array:
        """Σ_i p_i (1 − p_i), (...), at least float32."""
        return dataclasses.replace(self, result_dtype=self.probs.dtype).diagonal().sum(-1)

    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C): p_i (1[i=j] − p_j), symmetric to the bit."""
        wide = dataclasses.replace(self, result_dtype=self.probs.dtype)
        outer = self.scale[..., None, None] * (self.probs[..., :, None] * self.probs[..., None, :])
        return jnp.where(jnp.eye(self.shape[-1], dtype=bool), wide.diagonal()[..., None], -outer).astype(self.dtype)


# The functions below take logits of the dtype to compute in, at least float32. They are compiled also where the caller is not: a
# step may meet inf − inf, which no result does, and which would stop a program that debugs NaN.


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _variances(z: jax.Array) -> jax.Array:
    """p_i (1 − p_i), (..., C)."""
    return _variances_of(with_rounded_sum(split_at_heaviest(z)))


@_variances.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _variances(*primals), jacobian_product(*primals, *tangents) * (1 - 2 * softmax(*primals))


def _variances_of(at_k: Split) -> jax.Array:
    return at_k.exps * (((UNIT - at_k.exps) + at_k.others) / UNIT) * at_k.inverse_square


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _dense(z: jax.Array) -> jax.Array:
    """p_i (1[i=j] − p_j), (..., C, C)."""
    at_k = with_rounded_sum(split_at_heaviest(z))
    products = at_k.exps[..., :, None] * at_k.exps[..., None, :] * (at_k.inverse_square / UNIT)[..., None]
    return jnp.where(_eye(z), _variances_of(at_k)[..., None], -products)


@_dense.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    p, dp = softmax(*primals), jacobian_product(*primals, *tangents)
    half = p[..., :, None] * dp[..., None, :]
    return _dense(*primals), jnp.where(_eye(p), (dp * (1 - 2 * p))[..., None], -(half + half.swapaxes(-1, -2)))


def _eye(z: jax.Array) -> jax.Array:
    return jnp.eye(z.shape[-1], dtype=bool)


@jax.custom_jvp
@partial(jax.jit, inline=True)
def _frobenius_norm(z: jax.Array) -> jax.Array:
    """√(Σ_i p_i² (1 − p_i)² + Σ_{i≠j} p_i² p_j²), (...), over 1 − p_k so that no square underflows: with r the others' share of it."""
    at_k = split_at_heaviest(z)
    p_k = UNIT * at_k.inverse[..., 0]
    q = at_k.complement
    r = at_k.rest / jnp.where(at_k.others > 0, at_k.others, 1)
    square = (r * r).sum(-1)
    own = p_k * p_k + (r * r * (1 - q * r) ** 2).sum(-1)
    pairs = 2 * p_k * p_k * square + q[..., 0] ** 2 * (square * square - (r**4).sum(-1))
    return q[..., 0] * jnp.sqrt(own + pairs)


@_frobenius_norm.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (z,), (dz,) = primals, tangents
    norm, p, heaviest = _frobenius_norm(z), softmax(z), split_at_heaviest(z).heaviest
    square_k, square_others = (jnp.where(part, p * p, 0).sum(-1, keepdims=True) for part in (heaviest, ~heaviest))
    square = square_others + jnp.where(heaviest, 0, square_k - p * p)  # Σ_{j≠i} p_j²
    over_norm = jnp.where(norm > 0, norm, 1)[..., None]
    weight = p * (_variances(z) / over_norm * (1 - 2 * p) + 2 * p * (square / over_norm))
    return norm, (weight * deviation(z, dz)).sum(-1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)  # so that the vectors are not made
def _eigenvalues(z: jax.Array, count: int) -> jax.Array:
    return _eigh(z, count)[0]


@_eigenvalues.defjvp
def _(count: int, primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    """dμ = vᵀ dJ v = Σ p ∘ dev(ż) ∘ dev(v)², dev(u) = u − ⟨p, u⟩."""
    (z,), (dz,) = primals, tangents
    values, vectors = _eigh(z, count)
    spread = jax.vmap(lambda v: deviation(z, v), in_axes=-1, out_axes=-1)(vectors) ** 2
    return values, jnp.einsum("...c,...ck->...k", softmax(z) * deviation(z, dz), spread)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def _eigh(z: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    at_k = split_at_heaviest(z)
    lift = 2.0**60  # so that the differences of small probabilities do not underflow
    values, vectors = eigenpairs(at_k.exps * lift, count)
    return values / lift * at_k.inverse, vectors


@_eigh.defjvp
def _(count: int, primals: Arrays, tangents: Arrays) -> tuple[Arrays, Arrays]:
    raise TypeError("eigh: expected no derivative of eigenvectors, got one asked for; differentiate eigenvalues(), once: the second order needs them")
