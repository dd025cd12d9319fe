"""The second derivatives of the chain x → e → z → p → L in each of its quantities, as operators.

    ∇²_z ℓ = J                        hess-1      ∇²_e ℓ = Wᵀ J W        hess-2
    ∇²_W ℓ = J ⊗ e eᵀ                 hess-3      ∂(∂ℓ/∂W) along ė = (J W ė) eᵀ + r ėᵀ     hess-4
    ∇²_{θ,W} L = G + T                hess-7
      G from ż = W ė + Ẇ e + ḃ:       ∂e/∂θᵀ Wᵀ J ż in θ,   (J ż) eᵀ in W,   J ż in b
      T from c = Wᵀ r, ċ = Ẇᵀ r:      the derivative of ∂e/∂θᵀ c along (θ̇, ċ) in θ,   r ėᵀ in W

Here J stands for w_n Σy (diag(p) − p pᵀ), r for w_n (p Σy − y), ė for (∂e/∂θ) θ̇. The mixed term of T, once in each of
its two places, is the only second derivative of z = W e in W and e.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._chain import HeadLink, example_weights, head_link, mask_features, sum_of_outer_products
from jaxgrad._cross_entropy import cross_entropy_grad
from jaxgrad._display import Displayed
from jaxgrad._head_hessian import HeadHessian, as_tuple, in_form_of, logits_along, weighted_jacobian
from jaxgrad._operators import SymmetricOperator
from jaxgrad._pytree_operators import PytreeOperator
from jaxgrad._pytrees import pytree
from jaxgrad._softmax import deviation, softmax
from jaxgrad._softmax_jacobian import SoftmaxJacobian


def chain_hessian(
    feature_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    head: ArrayLike,
    inputs: Any,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> "ChainHessian":
    """Every second derivative of the chain x → e → z → p → L as an operator (hess-2, hess-3, hess-4, hess-7).

    L = Σ_n w_n cross_entropy(W e_n + b, y_n) with e = feature_fn(params, inputs), as in `chain_gradients`, with features (..., d) and weights (...).

    Args:
      feature_fn, params, head, inputs, targets, bias, weights, where: as in `chain_gradients`.

    Returns:
      A `ChainHessian`: `logits`, `features`, `head`, `inputs`, `ggn`, `residual`, `hessian` and the mixed block.

    Raises:
      TypeError, ValueError, IndexError: as `chain_gradients`.

    Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """
    link = head_link("feature_fn(params, inputs)", feature_fn(params, inputs), head, bias, where)
    w = example_weights(weights, link)
    r = w[..., None] * cross_entropy_grad(link.logits, targets, where=where)
    jacobian = weighted_jacobian(link, targets, w)
    of_head = jnp.asarray(head) if bias is None else (jnp.asarray(head), jnp.asarray(bias))
    return ChainHessian(Chain(feature_fn, params, inputs, of_head, link, r, jacobian))


@pytree
@dataclasses.dataclass(frozen=True)
class FeatureHessian(SymmetricOperator):
    """Wᵀ J W for each example (hess-2): matrices (..., d, d), the Fisher metric of feature space."""

    jacobian: SoftmaxJacobian  # (..., C, C)
    head: jax.Array  # (C, d), in the dtype to compute in

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., d, d)."""
        return (*self.jacobian.shape[:-2], self.head.shape[-1], self.head.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype to compute in, at least float32."""
        return self.head.dtype

    def matvec(self, vector: ArrayLike) -> jax.Array:
        """Wᵀ J W v, (..., d), for one vector (..., d) an example.

        Raises:
          TypeError: `vector` is not of a real floating dtype.
          ValueError: its shape is not that of the features.
        """
        v = _checks.as_floating("vector", vector)
        _checks.same_shape("vector", v, self.shape[:-1], "one vector for each row of the features")
        return jnp.matmul(self.jacobian.matvec(jnp.matmul(v.astype(self.dtype), self.head.T)), self.head)

    def diagonal(self) -> jax.Array:
        """Σ_i p_i (W_ia − Σ_j p_j W_ja)², (..., d): the variance of each column of W, one after the other."""
        p = softmax(self.jacobian.logits)
        variances = jax.lax.map(lambda column: (p * self._deviation(column) ** 2).sum(-1), self.head.T)
        return self.jacobian.scale[..., None] * jnp.moveaxis(variances, 0, -1)

    def trace(self) -> jax.Array:
        """The sum of the diagonal, (...)."""
        return self.diagonal().sum(-1)

    def to_dense(self) -> jax.Array:
        """The matrices (..., d, d): the covariances of the columns of W, by way of an array (..., d, C)."""
        columns = jnp.moveaxis(jax.vmap(self._deviation)(self.head.T), 0, -2)
        weighted = (self.jacobian.scale[..., None] * softmax(self.jacobian.logits))[..., None, :] * columns
        dense = jnp.matmul(weighted, columns.swapaxes(-1, -2))
        return (dense + dense.swapaxes(-1, -2)) / 2

    def _deviation(self, column: jax.Array) -> jax.Array:
        """w − ⟨p, w⟩ of a column of W, (..., C)."""
        return deviation(self.jacobian.logits, jnp.broadcast_to(column, self.jacobian.logits.shape))


@pytree
@dataclasses.dataclass(frozen=True)
class Chain:
    """The chain at one point with what all its blocks are made of; features (..., d) are functions of floating leaves."""

    feature_fn: Callable[[Any, Any], jax.Array] = dataclasses.field(metadata={"static": True})
    params: Any
    inputs: Any
    of_head: Any  # W, (C, d), or the pair (W, b)
    link: HeadLink
    residuals: jax.Array  # (..., C): w_n r_n
    jacobian: SoftmaxJacobian  # (..., C, C): w_n Σy J_n

    @property
    def parameters(self) -> tuple[Any, ...]:
        """(θ, W), or with a bias (θ, W, b): what of them has a derivative."""
        return (_floating(self.params), *as_tuple(self.of_head))

    def features_of_params(self, params: Any) -> jax.Array:
        """e(θ), (..., d), in the dtype to compute in, 0 where masked."""
        return self._features(_merged(params, self.params), self.inputs)

    def features_of_inputs(self, inputs: Any) -> jax.Array:
        """e(x), (..., d), likewise."""
        return self._features(self.params, _merged(inputs, self.inputs))

    def _features(self, params: Any, inputs: Any) -> jax.Array:
        return mask_features(self.feature_fn(params, inputs).astype(self.link.head.dtype), self.link.where)


@pytree
@dataclasses.dataclass(frozen=True)
class ChainGaussNewton(PytreeOperator):
    """G = J_zᵀ J J_z over (θ, W) or (θ, W, b) (hess-7): positive semi-definite if no w_n Σy is negative.

    A vector is a tuple (params, head) or (params, head, bias), with leaves of the shapes (...) of theirs; a leaf of
    `params` that is not floating is None.
    """

    chain: Chain

    @property
    def like(self) -> Any:
        """The parameters (θ, W), or (θ, W, b)."""
        return self.chain.parameters

    def matvec(self, tree: Any) -> Any:
        """From ż = W ė + Ẇ e + ḃ: ∂e/∂θᵀ Wᵀ J ż, Σ_n (J ż)_n e_nᵀ, and Σ_n (J ż)_n."""
        link = self.chain.link
        e_dot, pull_back = _push_and_pull(self.chain.features_of_params, self.like[0], tree[0])
        z_dot = jnp.matmul(e_dot, link.head.T) + logits_along(tree[1:], link.features)
        s = self.chain.jacobian.matvec(z_dot)
        return (pull_back(jnp.matmul(s, link.head)), *as_tuple(in_form_of(self.chain.of_head, *sum_of_outer_products(s, link.features))))


@pytree
@dataclasses.dataclass(frozen=True)
class ChainResidual(PytreeOperator):
    """T = Σ_{n,k} r_nk ∇²z_nk over (θ, W) or (θ, W, b) (hess-7): what the Hessian has beyond Gauss–Newton.

    A vector is as for `ChainGaussNewton`, with leaves (...); T is 0 in W alone and in b.
    """

    chain: Chain

    @property
    def like(self) -> Any:
        """The parameters (θ, W), or (θ, W, b)."""
        return self.chain.parameters

    def matvec(self, tree: Any) -> Any:
        """The derivative of ∂e/∂θᵀ c along θ̇ and ċ = Ẇᵀ r at c = Wᵀ r, Σ_n r_n ė_nᵀ, and 0."""
        link, r = self.chain.link, self.chain.residuals
        params, c, c_dot = self.like[0], jnp.matmul(r, link.head), jnp.matmul(r, tree[1].astype(r.dtype))
        _, e_dot = jax.jvp(self.chain.features_of_params, (params,), (tree[0],))
        by_head, _ = sum_of_outer_products(r, e_dot)
        by_params = _derivative_of_pull(self.chain.features_of_params, params, tree[0], c, c_dot)
        return (by_params, *as_tuple(in_form_of(self.chain.of_head, by_head, jnp.zeros_like(by_head[:, 0]))))


@pytree
@dataclasses.dataclass(frozen=True)
class InputHessian(PytreeOperator):
    """∇²_x L over the inputs, a pytree of leaves (...) of which those that are not floating are None."""

    chain: Chain

    @property
    def like(self) -> Any:
        """The inputs, as far as they are floating."""
        return _floating(self.chain.inputs)

    def matvec(self, tree: Any) -> Any:
        """The derivative of ∂e/∂xᵀ c along ẋ and ċ = Wᵀ J W ė, at c = Wᵀ r."""
        link = self.chain.link
        metric = FeatureHessian(self.chain.jacobian, link.head)
        _, e_dot = jax.jvp(self.chain.features_of_inputs, (self.like,), (tree,))
        c, c_dot = jnp.matmul(self.chain.residuals, link.head), metric.matvec(e_dot)
        return _derivative_of_pull(self.chain.features_of_inputs, self.like, tree, c, c_dot)


@pytree
@dataclasses.dataclass(frozen=True)
class ChainHessian(Displayed):
    """The second derivatives of L = Σ_n w_n ℓ_n in each quantity of the chain; the weights w, (...), are in all of them."""

    chain: Chain

    def _rows(self) -> Iterable[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in ("logits", "features", "head", "inputs", "ggn", "residual")]

    @property
    def logits(self) -> SoftmaxJacobian:
        """w_n Σy J_n, (..., C, C), one matrix for each example (hess-1)."""
        return self.chain.jacobian

    @property
    def features(self) -> FeatureHessian:
        """w_n Σy Wᵀ J_n W, (..., d, d), one matrix for each example (hess-2)."""
        return FeatureHessian(self.chain.jacobian, self.chain.link.head)

    @property
    def head(self) -> HeadHessian:
        """Σ_n w_n Σy J_n ⊗ e_n e_nᵀ over W, or the pair (W, b) (hess-3)."""
        return HeadHessian(self.chain.jacobian, self.chain.link.features, self.chain.of_head)

    @property
    def inputs(self) -> InputHessian:
        """∇²_x L over the inputs."""
        return InputHessian(self.chain)

    @property
    def ggn(self) -> ChainGaussNewton:
        """G over (θ, W), or (θ, W, b) (hess-7)."""
        return ChainGaussNewton(self.chain)

    @property
    def residual(self) -> ChainResidual:
        """T over (θ, W), or (θ, W, b) (hess-7)."""
        return ChainResidual(self.chain)

    @property
    def hessian(self) -> PytreeOperator:
        """∇²L = G + T over (θ, W), or (θ, W, b) (hess-7)."""
        return self.ggn + self.residual

    def head_by_features(self, tangent: ArrayLike) -> Any:
        """The derivative of ∂L/∂W along ė = `tangent`, (..., d): Σ_n (J W ė)_n e_nᵀ + r_n ė_nᵀ (hess-4).

        Returns:
          (C, d), or with a bias a pair with Σ_n (J W ė)_n, (C,).

        Raises:
          TypeError: `tangent` is not of a real floating dtype.
          ValueError: its shape is not that of the features.
        """
        chain = self.chain
        e_dot = _checks.as_floating("tangent", tangent)
        _checks.same_shape("tangent", e_dot, chain.link.features.shape, "one vector for each row of the features")
        e_dot = mask_features(e_dot.astype(chain.link.head.dtype), chain.link.where)
        s = self.logits.matvec(jnp.matmul(e_dot, chain.link.head.T))
        (first, by_bias), (second, _) = sum_of_outer_products(s, chain.link.features), sum_of_outer_products(chain.residuals, e_dot)
        return in_form_of(chain.of_head, first + second, by_bias)

    def features_by_head(self, tangent: Any) -> jax.Array:
        """The derivative of ∂L/∂e along Ẇ, (C, d), or with a bias the pair (Ẇ, ḃ): Wᵀ J (Ẇ e + ḃ) + Ẇᵀ r, (..., d) (hess-4).

        It is the transpose of `head_by_features`.

        Raises:
          TypeError: a dtype is not floating.
          ValueError: a shape is not that of the head's parameters, or only one of both has a bias.
        """
        chain = self.chain
        of_head = tuple(_checks.as_floating("tangent", x) for x in as_tuple(tangent))
        got, expected = ([x.shape for x in pair] for pair in (of_head, as_tuple(chain.of_head)))
        if got != expected:
            raise ValueError(f"tangent: expected {expected}, the shapes of head and bias, got {got}; pass the pair of both, or an array without a bias")
        s = self.logits.matvec(logits_along(of_head, chain.link.features))
        return jnp.matmul(s, chain.link.head) + jnp.matmul(chain.residuals, of_head[0].astype(s.dtype))


def _push_and_pull(f: Callable[[Any], jax.Array], at: Any, tangent: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The derivative of f along the tangent, and the transposed derivative, with one pass through f."""
    _, push = jax.linearize(f, at)
    pull = jax.linear_transpose(push, at)
    return push(tangent), lambda cotangent: pull(cotangent)[0]


def _derivative_of_pull(f: Callable[[Any], jax.Array], at: Any, tangent: Any, c: jax.Array, c_dot: jax.Array) -> Any:
    """The derivative of ∂f(u)/∂uᵀ c along u̇ = `tangent` and ċ."""
    return jax.jvp(lambda at, c: jax.vjp(f, at)[1](c)[0], (at, c), (tangent, c_dot))[1]


def _floating(tree: Any) -> Any:
    """The leaves that have a derivative, and None for the others."""
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, arrays)


def _merged(floating: Any, tree: Any) -> Any:
    """`tree` with the leaves of `floating` where it has some."""
    return jax.tree.map(lambda leaf, new: leaf if new is None else new, tree, floating)
