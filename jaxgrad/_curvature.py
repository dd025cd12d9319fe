"""The curvature matrices of any model, matrix-free over any pytree of parameters θ.

    H = ∇²_θ L(θ)                       Hessian                          hess-5: H = G + T, T = Σ_k r_k ∇²z_k
    G = J_zᵀ (∇²_z L) J_z               generalised Gauss–Newton         hess-5   J_z = ∂z/∂θ, z the outputs of the model
    F = Σ_n w_n J_nᵀ J(z_n) J_n         Fisher of a softmax model        hess-6   J(z) = diag(p) − p pᵀ
    E = Σ_n w_n g_n g_nᵀ                empirical Fisher                 hess-6: not F   g_n = ∇_θ ℓ_n

Each linearises the model once, at θ; a product then costs a linear pass forward (for all but H) and one backward.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.tree_util import Partial
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._cross_entropy import cross_entropy_grad
from jaxgrad._pytree_operators import PytreeOperator
from jaxgrad._pytrees import pytree
from jaxgrad._softmax_jacobian import SoftmaxJacobian


@pytree
@dataclasses.dataclass(frozen=True)
class Hessian(PytreeOperator):
    """θ̇ ↦ d/dθ (∇L) θ̇."""

    product: Callable[[Any], Any]  # a Partial: a pytree of the residuals
    space: "_Space" = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> Any:
        """A pytree whose leaves have the shapes and dtypes of the parameters."""
        return self.space.like

    def matvec(self, tree: Any) -> Any:
        """H · tree."""
        return _apply(self.product, tree)


@pytree
@dataclasses.dataclass(frozen=True)
class GaussNewton(PytreeOperator):
    """Jᵀ M J for the Jacobian J of the outputs in the parameters, and a symmetric M on the outputs."""

    jacobian: Callable[[Any], Any]  # both are Partials: pytrees of the residuals
    inner: Callable[[Any], Any]
    space: "_Space" = dataclasses.field(metadata={"static": True})

    @property
    def like(self) -> Any:
        """A pytree whose leaves have the shapes and dtypes of the parameters."""
        return self.space.like

    def matvec(self, tree: Any) -> Any:
        """Jᵀ (M (J · tree))."""
        return _apply_gauss_newton(self.jacobian, self.inner, tree)


# Compiled once for each operator, also where the caller is not: an operator is applied many times.
_apply = jax.jit(lambda product, tree: product(tree))


@jax.jit
def _apply_gauss_newton(jacobian: Callable[[Any], Any], inner: Callable[[Any], Any], tree: Any) -> Any:
    (product,) = jax.linear_transpose(jacobian, tree)(inner(jacobian(tree)))
    return product


def hessian(loss_fn: Callable[[Any], jax.Array], params: Any) -> PytreeOperator:
    """The Hessian H = ∇²_θ L(θ) of a scalar loss, as an operator on trees of leaves (...) (hess-5).

    It is exact for the loss that `loss_fn` computes, mean or sum. Built and applied inside one `jit`, or returned from
    one, it compiles once; built outside it compiles at its first product. H = G + T with G from `ggn`, so that
    `hessian(...) - ggn(...)` is T.

    Args:
      loss_fn: maps the parameters to a scalar, twice differentiable.
      params: θ, a pytree of floating arrays. Leave out what is not: `eqx.partition`, `nnx.split`.

    Returns:
      A `PytreeOperator`: `H @ tree`, `H.to_dense()`, `H.diagonal()`, `H.trace()`, `H - G`.

    Raises:
      TypeError: a leaf of `params` or the loss is not of a real floating dtype.
      ValueError: the loss is not a scalar.

    Source: Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147.
    """
    params = as_parameters("params", params)
    _, product = jax.linearize(jax.grad(scalar("loss_fn(params)", loss_fn)), params)
    return Hessian(product, _Space.of(params))


def ggn(model_fn: Callable[[Any], Any], loss_fn: Callable[[Any], jax.Array], params: Any) -> PytreeOperator:
    """The generalised Gauss–Newton matrix G = J_zᵀ (∇²_z L) J_z, as an operator on trees of leaves (...) (hess-5).

    Split the model from the loss at the logits z: log_softmax belongs to the loss. Of log-probabilities the usual
    loss is linear, and G would be 0 without a word; such a `loss_fn` is refused.

    Args:
      model_fn: maps the parameters to the outputs z, a pytree of floating arrays; close over the inputs.
      loss_fn: maps the outputs to a scalar, twice differentiable: Σ w_n ℓ_n, the mean if that is meant. Close over the
        targets: `lambda logits: jg.cross_entropy(logits, targets).mean()`.
      params: θ, a pytree of floating arrays.

    Returns:
      A `PytreeOperator`, positive semi-definite where the loss is convex in the outputs.

    Raises:
      TypeError: a leaf of `params` or of the outputs, or the loss, is not of a real floating dtype.
      ValueError: the loss is not a scalar, or it is linear in the outputs.

    Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """
    params = as_parameters("params", params)
    outputs, jacobian = jax.linearize(model_fn, params)
    outputs = as_parameters("model_fn(params)", outputs)
    _, inner = jax.linearize(jax.grad(scalar("loss_fn(outputs)", loss_fn)), outputs)
    _refuse_linear(inner, outputs)
    return GaussNewton(jacobian, inner, _Space.of(params))


def fisher(
    model_fn: Callable[[Any], jax.Array],
    params: Any,
    *,
    weights: ArrayLike | None = None,
    key: jax.Array | None = None,
    num_samples: int | None = None,
) -> PytreeOperator:
    """The Fisher matrix of a softmax model, F = Σ_n w_n E_{y∼p_n}[∇ log p_n(y) ∇ log p_n(y)ᵀ] (hess-6).

    Without a key it is exact, Σ_n w_n J_nᵀ (diag(p_n) − p_n p_nᵀ) J_n: the Gauss–Newton matrix of the cross-entropy,
    whatever the targets. With a key the expectation is a mean over sampled classes, positive semi-definite and
    unbiased; the samples are drawn once, so that every product is with the same matrix. Products with
    diag(p) − p pᵀ and gradients p − y keep their digits on confident rows.

    Args:
      model_fn: maps the parameters to the logits z, (..., C).
      params: θ, a pytree of floating arrays.
      weights: w, (...), floating; 1/N for each of the N examples by default.
      key: a key of `jax.random`, to sample the classes instead of summing over them.
      num_samples: samples for each example, with a key only; 1 by default.

    Returns:
      A `PytreeOperator`, positive semi-definite for weights ≥ 0.

    Raises:
      TypeError: a dtype is not floating where it must be.
      ValueError: a shape does not fit, or `num_samples` comes without a key or is not positive.

    Source: Martens 2020, arXiv:1412.1193.
    """
    if num_samples is not None and (key is None or num_samples < 1):
        raise ValueError(f"num_samples: expected a positive number together with key=, got {num_samples} and key={key}; without a key the sum is exact")
    params = as_parameters("params", params)
    logits, jacobian = jax.linearize(model_fn, params)
    logits = _checks.as_logits("model_fn(params)", logits)
    w = _as_weights(weights, logits.shape[:-1], logits)
    if key is None:
        return GaussNewton(jacobian, Partial(SoftmaxJacobian.matvec, SoftmaxJacobian(logits, w)), _Space.of(params))
    samples = num_samples or 1
    ids = jax.random.categorical(key, logits.astype(w.dtype), shape=(samples, *logits.shape[:-1]))
    residuals = jax.vmap(lambda y: cross_entropy_grad(logits.astype(w.dtype), y))(ids)
    return GaussNewton(jacobian, Partial(_sampled_inner, residuals, w / samples), _Space.of(params))


def empirical_fisher(losses_fn: Callable[[Any], jax.Array], params: Any, *, weights: ArrayLike | None = None) -> PytreeOperator:
    """The empirical Fisher matrix E = Σ_n w_n g_n g_nᵀ with g_n = ∇_θ ℓ_n, as an operator on trees of leaves (...).

    It has the gradients at the observed targets where the Fisher has an expectation, and equals neither F nor G
    (hess-6): it vanishes where the data are fitted.

    Args:
      losses_fn: maps the parameters to one loss for each example, (...), not weighted and not summed.
      params: θ, a pytree of floating arrays.
      weights: w, (...), floating; 1/N for each of the N examples by default.

    Returns:
      A `PytreeOperator`, positive semi-definite for weights ≥ 0.

    Raises:
      TypeError: a dtype is not floating where it must be.
      ValueError: the losses are a scalar, or the weights have another shape than they.

    Source: Kunstner, Balles and Hennig 2019, arXiv:1905.12558.
    """
    params = as_parameters("params", params)
    losses, jacobian = jax.linearize(losses_fn, params)
    losses = _checks.as_floating("losses_fn(params)", losses)
    if losses.ndim == 0:
        raise ValueError("losses_fn(params): expected one loss for each example, (N,), got a scalar; leave the mean or sum out, and give weights=")
    w = _as_weights(weights, losses.shape, losses)
    return GaussNewton(jacobian, Partial(_weigh, w), _Space.of(params))


# The symmetric matrices between J and Jᵀ are functions of a module, so that operators made twice have one structure.


def _sampled_inner(residuals: jax.Array, w: jax.Array, tangent: jax.Array) -> jax.Array:
    """w_n Σ_s r_sn ⟨r_sn, u_n⟩ for residuals (S, ..., C)."""
    along = jnp.einsum("s...c,...c->s...", residuals, tangent.astype(w.dtype))
    return (w[..., None] * jnp.einsum("s...,s...c->...c", along, residuals)).astype(tangent.dtype)


def _weigh(w: jax.Array, tangent: jax.Array) -> jax.Array:
    return (w * tangent.astype(w.dtype)).astype(tangent.dtype)


def _refuse_linear(inner: Callable[[Any], Any], outputs: Any) -> None:
    """Raise if the second derivative of the loss, u ↦ (∇²L) u, is 0 by structure: no part of u reaches the result."""
    closed = jax.make_jaxpr(inner)(outputs)
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    if not any(used):
        raise ValueError(
            "loss_fn: expected a loss with a second derivative in the outputs of the model, got one that is linear in them, so that G would be 0; "
            "if the model ends in log_softmax, return its logits and take log_softmax in loss_fn, as jg.cross_entropy(logits, targets) does"
        )


@dataclasses.dataclass(frozen=True)
class _Space:
    """Shapes and dtypes of the parameters, hashable."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, params: Any) -> "_Space":
        """The space that `params` lies in."""
        leaves, structure = jax.tree.flatten(params)
        return cls(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))

    @property
    def like(self) -> Any:
        """The tree of shapes and dtypes."""
        return jax.tree.unflatten(self.structure, self.leaves)


def as_parameters(name: str, tree: Any) -> Any:
    """`tree` with every leaf a floating array; one that is not is named by its path."""
    if not jax.tree.leaves(tree):
        raise ValueError(f"{name}: expected a pytree with at least one floating array, got {tree}; pass the parameters")
    try:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _checks.as_floating(f"{name}{jax.tree_util.keystr(path)}", leaf), tree)
    except TypeError as error:
        raise TypeError(f"{error}; or leave it out of the pytree: close over it, or split the model (eqx.partition, nnx.split)") from error


def scalar(name: str, loss_fn: Callable[[Any], jax.Array]) -> Callable[[Any], jax.Array]:
    """`loss_fn`, refusing what is not a floating scalar."""

    def checked(x: Any) -> jax.Array:
        loss = _checks.as_floating(name, loss_fn(x))
        if loss.shape:
            raise ValueError(f"{name}: expected a scalar, got shape {loss.shape}; sum over the examples, Σ w_n ℓ_n, or take the mean")
        return loss

    return checked


def _as_weights(weights: ArrayLike | None, shape: tuple[int, ...], like: jax.Array) -> jax.Array:
    """`weights` of exactly `shape` in the dtype to compute in, by default the mean."""
    dtype = _checks.compute_dtype(like)
    if weights is None:
        return jnp.full(shape, 1 / max(math.prod(shape), 1), dtype)
    weights = _checks.as_floating("weights", weights)
    _checks.same_shape("weights", weights, shape, "one for each example")
    return weights.astype(dtype)
