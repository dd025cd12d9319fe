"""The Hessian of a softmax regression in its head: Σ_n w_n Σy_n J_n ⊗ e_n e_nᵀ with J = diag(p) − p pᵀ (hess-3).

Row-major, so that the block of classes i and j is Σ_n w_n Σy_n (J_n)_ij e_n e_nᵀ. A bias is a weight of one more feature, 1.
Near it, and with an inverse in closed form, is A ⊗ S with A = Σ_n w_n Σy_n J_n and S the mean of e eᵀ with the weights w Σy.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._chain import HeadLink, example_weights, head_link, sum_of_outer_products, with_one_for_bias
from jaxgrad._cross_entropy import cross_entropy_hessian
from jaxgrad._pytree_operators import PytreeOperator, as_vectors
from jaxgrad._pytrees import pytree
from jaxgrad._softmax_jacobian import SoftmaxJacobian, StoredSoftmaxJacobian

FEATURES_AT_ONCE = 8  # more would not stay in the cache


def head_hessian(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> "HeadHessian":
    """The Hessian in W of Σ_n w_n cross_entropy(W e_n + b, y_n), as an operator (hess-3); it is the GGN and the Fisher too.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...) or distributions (..., C); only their sums enter.
      bias: b, (C,), floating; if given, the operator is over the pair (W, b).
      weights: w, (...), floating; 1/N for each of the N examples that count by default.
      where: (...), boolean; an example where it is False does not enter and is not looked at.

    Returns:
      An operator on arrays (C, d), or with a bias on pairs of (C, d) and (C,): a `PytreeOperator` with `stored()`, for many
      products, and `kronecker()`, an approximation that can be solved with.

    Raises:
      TypeError, ValueError, IndexError: as `chain_gradients`.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    link = head_link("features", features, head, bias, where)
    parameters = jnp.asarray(head) if bias is None else (jnp.asarray(head), jnp.asarray(bias))
    return HeadHessian(weighted_jacobian(link, targets, example_weights(weights, link)), link.features, parameters)


def weighted_jacobian(link: HeadLink, targets: ArrayLike, weights: jax.Array) -> SoftmaxJacobian:
    """The Hessian of Σ_n w_n ℓ_n in the logits, w_n Σy_n J_n, (..., C, C)."""
    hessian = cross_entropy_hessian(link.logits, targets, where=link.where)
    return dataclasses.replace(hessian, scale=weights * hessian.scale)


@pytree
@dataclasses.dataclass(frozen=True)
class HeadHessian(PytreeOperator):
    """Σ_n J_n ⊗ e_n e_nᵀ with `jacobian` J, (..., C, C), and `features` e, (..., d), over `parameters`: W, or the pair (W, b)."""

    jacobian: SoftmaxJacobian | StoredSoftmaxJacobian
    features: jax.Array
    parameters: Any

    @property
    def like(self) -> Any:
        """W, (C, d), or the pair (W, b)."""
        return self.parameters

    def matvec(self, tree: Any) -> Any:
        """Σ_n (J ż)_n e_nᵀ with ż = Ẇ e + ḃ, and with a bias Σ_n (J ż)_n."""
        s = self.jacobian.matvec(logits_along(as_tuple(tree), self.features))
        return in_form_of(self.parameters, *sum_of_outer_products(s, self.features))

    def diagonal(self) -> Any:
        """Σ_n J_n,ii e_na², (C, d), and with a bias Σ_n J_n,ii, (C,)."""
        return in_form_of(self.parameters, *sum_of_outer_products(self.jacobian.diagonal(), self.features**2))

    def trace(self) -> jax.Array:
        """Σ_n tr J_n ‖e_n‖², a scalar, where a bias adds 1 to ‖e_n‖²."""
        e = with_one_for_bias(self.features, self._has_bias)
        return (self.jacobian.trace() * (e * e).sum(-1)).sum()

    def stored(self) -> "HeadHessian":
        """The same with p computed once, (..., C) numbers in place of the logits, for many products."""
        return dataclasses.replace(self, jacobian=self.jacobian.stored())

    def kronecker(self) -> "KroneckerHessian":
        """A ⊗ S with A = Σ_n ω_n J_n and S = Σ_n ω_n e_n e_nᵀ / Σ_n ω_n over examples (...), ω = w Σy ≥ 0, to precondition with.

        It is this very matrix where all examples have the same probabilities, as with W = 0 and b = 0, and for a single
        example; where probabilities and features depend on each other it is an approximation (K-FAC).

        Source: Martens and Grosse 2015, arXiv:1503.05671.
        """
        stored, rows = self.jacobian.stored(), lambda x: x.reshape(-1, x.shape[-1])
        p, e, scale = rows(stored.probs), rows(self.features), stored.scale.ravel()
        classes = jnp.where(jnp.eye(p.shape[-1], dtype=bool), rows(stored.diagonal()).sum(0)[None], -jnp.matmul(p.T, scale[:, None] * p))
        features = jnp.matmul(e.T, scale[:, None] * e)
        if self._has_bias:
            sums = jnp.append(jnp.matmul(scale, e), scale.sum())
            features = jnp.concatenate([jnp.concatenate([features, sums[None, :-1]]), sums[:, None]], axis=-1)
        features = features / jnp.where(scale.sum() == 0, 1, scale.sum())
        (a, u), (s, q) = jnp.linalg.eigh(classes), jnp.linalg.eigh(features)
        return KroneckerHessian(a, u, s, q, self.parameters)

    def to_dense(self) -> jax.Array:
        """The matrix (P, P), at least float32, symmetric to the bit: P = C·d, or C·d + C with a bias.

        Each pair of classes is computed once, and a few features at a time with all the others.
        """
        e, j = (x.reshape(-1, *x.shape[self.features.ndim - 1 :]) for x in (with_one_for_bias(self.features, self._has_bias), self.jacobian.to_dense()))
        num_classes, size = j.shape[-1], e.shape[-1]
        first, second = np.triu_indices(num_classes)
        number = np.zeros((num_classes, num_classes), int)
        number[first, second] = number[second, first] = np.arange(len(first))
        pairs = j[:, first, second].T
        by_feature = jax.lax.map(lambda column: jnp.matmul(pairs * column[None], e), e.T, batch_size=FEATURES_AT_ONCE)  # (d, pairs, d)
        dense = by_feature[:, number].transpose(1, 0, 2, 3).reshape(num_classes * size, num_classes * size)
        return _in_order((dense + dense.T) / 2, num_classes, self._has_bias)

    @property
    def _has_bias(self) -> bool:
        return isinstance(self.parameters, tuple)


@pytree
@dataclasses.dataclass(frozen=True)
class KroneckerHessian(PytreeOperator):
    """A ⊗ S over `parameters`, W (C, d) or the pair (W, b), for leaves (...): V ↦ A V S, where a bias is one more column of V.

    A = U diag(a) Uᵀ is (C, C) with `class_values` a and `class_vectors` U, S = Q diag(s) Qᵀ is (d, d), or (d + 1, d + 1)
    with a bias, with `feature_values` s and `feature_vectors` Q; both are positive semi-definite.
    """

    class_values: jax.Array  # (C,)
    class_vectors: jax.Array  # (C, C)
    feature_values: jax.Array  # (d,) or (d + 1,)
    feature_vectors: jax.Array  # (d, d) or (d + 1, d + 1)
    parameters: Any

    @property
    def like(self) -> Any:
        """W, (C, d), or the pair (W, b)."""
        return self.parameters

    def matvec(self, tree: Any) -> Any:
        """A V S."""
        return self._scaled(tree, self._values)

    def solve(self, tree: Any, *, damping: ArrayLike) -> Any:
        """(A ⊗ S + λI)⁻¹ V = U ((Uᵀ V Q) / (a sᵀ + λ)) Qᵀ, for a V shaped as the parameters or a block (K, ...) of K.

        Args:
          tree: V.
          damping: λ > 0, a scalar, also traced; one that is not positive makes NaN.

        Raises:
          TypeError, ValueError: as `@`.
          ValueError: `damping` is not a scalar.
        """
        tree, is_block = as_vectors("tree", tree, self.like)
        λ = _checks.as_scalar("damping", damping).astype(self.class_values.dtype)
        inverse = 1 / (jnp.maximum(self._values, 0) + jnp.where(λ > 0, λ, jnp.nan))
        return jax.vmap(lambda v: self._scaled(v, inverse))(tree) if is_block else self._scaled(tree, inverse)

    def diagonal(self) -> Any:
        """The diagonal of A times that of S, in all pairs."""
        classes, features = (values @ (vectors**2).T for values, vectors in self._factors)
        return self._as_parameters(classes[:, None] * features[None])

    def trace(self) -> jax.Array:
        """tr A tr S, a scalar."""
        return self.class_values.sum() * self.feature_values.sum()

    def to_dense(self) -> jax.Array:
        """The matrix (P, P), at least float32, symmetric to the bit."""
        classes, features = ((vectors * values[None]) @ vectors.T for values, vectors in self._factors)
        return _in_order(jnp.kron((classes + classes.T) / 2, (features + features.T) / 2), len(classes), isinstance(self.parameters, tuple))

    @property
    def _factors(self) -> tuple[tuple[jax.Array, jax.Array], ...]:
        return (self.class_values, self.class_vectors), (self.feature_values, self.feature_vectors)

    @property
    def _values(self) -> jax.Array:
        """The eigenvalues, (C, d) or (C, d + 1)."""
        return self.class_values[:, None] * self.feature_values[None]

    def _scaled(self, tree: Any, values: jax.Array) -> Any:
        """V with its components along the eigenvectors multiplied by `values`."""
        v = jnp.concatenate([x.reshape(len(values), -1).astype(values.dtype) for x in as_tuple(tree)], axis=-1)
        components = values * (self.class_vectors.T @ v @ self.feature_vectors)
        return self._as_parameters(self.class_vectors @ components @ self.feature_vectors.T)

    def _as_parameters(self, v: jax.Array) -> Any:
        width = as_tuple(self.parameters)[0].shape[-1]
        return in_form_of(self.parameters, v[:, :width], v[:, -1])


def _in_order(dense: jax.Array, num_classes: int, has_bias: bool) -> jax.Array:
    """A matrix over (C, d + 1), or (C, d) without a bias, with its rows in the order of (W, b)."""
    if not has_bias:
        return dense
    places = np.arange(len(dense)).reshape(num_classes, -1)
    order = np.concatenate([places[:, :-1].ravel(), places[:, -1]])
    return dense[order[:, None], order[None]]


def as_tuple(of_head: Any) -> tuple[jax.Array, ...]:
    """(W,) for W, (W, b) for the pair."""
    return of_head if isinstance(of_head, tuple) else (of_head,)


def in_form_of(of_head: Any, by_head: jax.Array, by_bias: jax.Array) -> Any:
    """`by_head` for W, (`by_head`, `by_bias`) for the pair (W, b), in their dtypes."""
    if isinstance(of_head, tuple):
        return by_head.astype(of_head[0].dtype), by_bias.astype(of_head[1].dtype)
    return by_head.astype(of_head.dtype)


def logits_along(of_head: tuple[jax.Array, ...], e: jax.Array) -> jax.Array:
    """Ẇ e + ḃ, (..., C), for (Ẇ,) or (Ẇ, ḃ)."""
    along = jnp.matmul(e, of_head[0].astype(e.dtype).T)
    return along if len(of_head) == 1 else along + jnp.broadcast_to(of_head[1].astype(e.dtype), along.shape)
