"""The Hessian of a softmax regression in its head: Σ_n w_n Σy_n J_n ⊗ e_n e_nᵀ with J = diag(p) − p pᵀ (hess-3).

Row-major, so that the block of classes i and j is Σ_n w_n Σy_n (J_n)_ij e_n e_nᵀ. A bias is a weight of one more feature, 1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad._chain import HeadLink, example_weights, head_link, sum_of_outer_products, with_one_for_bias
from jaxgrad._cross_entropy import cross_entropy_hessian
from jaxgrad._pytree_operators import PytreeOperator
from jaxgrad._softmax_jacobian import SoftmaxJacobian

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
      An operator on arrays (C, d), or with a bias on pairs of (C, d) and (C,).

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadHessian(PytreeOperator):
    """Σ_n J_n ⊗ e_n e_nᵀ with `jacobian` J, (..., C, C), and `features` e, (..., d), over `parameters`: W, or the pair (W, b)."""

    jacobian: SoftmaxJacobian
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
        dense = (dense + dense.T) / 2
        if not self._has_bias:
            return dense
        places = np.arange(num_classes * size).reshape(num_classes, size)
        order = np.concatenate([places[:, :-1].ravel(), places[:, -1]])
        return dense[order[:, None], order[None]]

    @property
    def _has_bias(self) -> bool:
        return isinstance(self.parameters, tuple)


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
