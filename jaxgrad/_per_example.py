"""Gradients of single examples, without their memory: in the head each is an outer product, and its two factors are enough.

    ∂ℓ_n/∂W = r_n e_nᵀ,  r_n = p_n Σy − y_n                        chain-3
    ‖∂ℓ_n/∂W‖ = ‖r_n‖ ‖e_n‖,   their Gram matrix (R Rᵀ) ∘ (E Eᵀ)     psg-1

With a bias its gradient r_n belongs to them, as if each e_n had one more entry, 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._chain import head_link, sum_of_outer_products, with_one_for_bias
from jaxgrad._cross_entropy import cross_entropy_grad
from jaxgrad._display import Displayed
from jaxgrad._pytrees import pytree


def per_example_gradients(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> "PerExampleGradients":
    """The gradient of each cross_entropy(W e_n + b, y_n) in the head, as its factors r_n and e_n (psg-1, chain-3).

    An example is one row of the features: of a batch of sequences (B, T, d) each token is one, though the sequence
    shares its fate. The memory is that of the logits and the features.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...) or distributions (..., C).
      bias: b, (C,), floating; if given, its gradients belong to those of the head in all that follows.
      where: (...), boolean; an example where it is False has gradient 0 and is not looked at.

    Returns:
      A `PerExampleGradients`: `norms`, `inner`, `gram`, `weighted_sum`, `clipped_sum`, `to_dense`.

    Raises:
      TypeError, ValueError, IndexError: as `chain_gradients`.

    Source: Goodfellow 2015, arXiv:1510.01799.
    """
    link = head_link("features", features, head, bias, where)
    return PerExampleGradients(cross_entropy_grad(link.logits, targets, where=where), link.features, bias is not None)


@pytree
@dataclasses.dataclass(frozen=True)
class PerExampleGradients(Displayed):
    """Gradients g_n = r_n e_nᵀ as their factors `residuals` (..., C) and `features` (..., d), all at least float32.

    A gradient has the form of the head's parameters: an array (C, d), or with a bias the pair of (C, d) and (C,).
    """

    residuals: jax.Array  # (..., C): r_n
    features: jax.Array  # (..., d): e_n, 0 where an example is masked
    has_bias: bool = dataclasses.field(metadata={"static": True})

    def norms(self) -> jax.Array:
        """‖g_n‖ = ‖r_n‖ ‖e_n‖, (...), Frobenius; nothing overflows or underflows unless the norm does (psg-1)."""
        return _norms(self.residuals) * _norms(with_one_for_bias(self.features, self.has_bias))

    def inner(self, other: "PerExampleGradients") -> jax.Array:
        """⟨g_n, g'_n⟩ = (r_n·r'_n)(e_n·e'_n), (...), with the gradients of as many other examples, pair by pair.

        Raises:
          ValueError: the shapes are not the same, or only one has a bias.
        """
        self._check_same_head(other)
        _checks.same_shape("other.residuals", other.residuals, self.residuals.shape, "one example for each")
        paired = lambda x, y: (x * y).sum(-1)
        return self._products(other, paired, jnp.multiply)

    def gram(self, other: "PerExampleGradients | None" = None) -> jax.Array:
        """⟨g_n, g'_m⟩, (N, M), of all N examples and all M others, or all among themselves: (R R'ᵀ) ∘ (E E'ᵀ) (psg-1).

        Where there are several leading axes (...), the examples are numbered in row-major order.

        Raises:
          ValueError: the heads are not of the same shape, or only one has a bias.
        """
        other = self if other is None else other
        self._check_same_head(other)
        flat = lambda x: x.reshape(-1, x.shape[-1])
        return self._products(other, lambda x, y: jnp.matmul(flat(x), flat(y).T), lambda a, b: jnp.outer(a.ravel(), b.ravel()))

    def weighted_sum(self, weights: ArrayLike) -> Any:
        """Σ_n w_n g_n with `weights` (...), finite: the gradient of the weighted loss; (C, d), or with a bias a pair.

        Raises:
          TypeError: `weights` is not of a real floating dtype.
          ValueError: its shape is not that of the examples.
        """
        by_head, by_bias = sum_of_outer_products(self._as_weights(weights)[..., None] * self.residuals, self.features)
        return (by_head, by_bias) if self.has_bias else by_head

    def clipped_sum(self, max_norm: ArrayLike, *, weights: ArrayLike | None = None) -> Any:
        """Σ_n w_n g_n min(1, c/‖g_n‖), with c = `max_norm`, a positive scalar; (C, d), or with a bias a pair.

        The weights (...) are 1 by default, so that one example moves the sum by at most c: what differential privacy
        adds noise to. Clipping comes before weighting.

        Raises:
          TypeError: `max_norm` or `weights` is not of a real floating dtype.
          ValueError: `max_norm` is no scalar or not positive (NaN where only a running program knows it); the shape of `weights` is not that of the examples.

        Source: Abadi et al. 2016, doi:10.1145/2976749.2978318.
        """
        if isinstance(max_norm, int | float | np.integer | np.floating):
            max_norm = _checks.positive("max_norm", max_norm, "use weighted_sum for no bound at all")
        c = _checks.as_floating("max_norm", max_norm).astype(self.residuals.dtype)
        _checks.same_shape("max_norm", c, (), "one bound for all examples")
        r, e = _norms(self.residuals), _norms(with_one_for_bias(self.features, self.has_bias))
        c = jnp.where((c > 0) & (c < jnp.inf), c, jnp.nan)  # a bound that is none must not let a gradient through
        factor = jnp.where(r * e <= c, 1, c / r / e)  # c / r cannot overflow there, as c < r e
        return self.weighted_sum(factor if weights is None else self._as_weights(weights) * factor)

    def to_dense(self) -> Any:
        """All the gradients: (..., C, d), or with a bias the pair of (..., C, d) and (..., C)."""
        by_head = self.residuals[..., :, None] * self.features[..., None, :]
        return (by_head, self.residuals) if self.has_bias else by_head

    def _products(self, other: "PerExampleGradients", product: Callable[..., jax.Array], of_sizes: Callable[..., jax.Array]) -> jax.Array:
        """product(r, r') product(e, e'), the rows scaled to at most 1 first: a square of a small number may underflow."""
        (r, r_size), (e, e_size) = _scaled(self.residuals), _scaled(with_one_for_bias(self.features, self.has_bias))
        (s, s_size), (f, f_size) = _scaled(other.residuals), _scaled(with_one_for_bias(other.features, other.has_bias))
        return product(r, s) * product(e, f) * of_sizes(r_size * e_size, s_size * f_size)

    def _as_weights(self, weights: ArrayLike) -> jax.Array:
        w = _checks.as_floating("weights", weights)
        _checks.same_shape("weights", w, self.residuals.shape[:-1], "one for each example")
        return w.astype(self.residuals.dtype)

    def _check_same_head(self, other: "PerExampleGradients") -> None:
        mine, theirs = ((g.residuals.shape[-1], g.features.shape[-1], g.has_bias) for g in (self, other))
        if mine != theirs:
            raise ValueError(f"other: expected gradients of a head with (C, d, has_bias) = {mine}, got {theirs}; take both of the same head")


def per_example_gradient_norms(
    feature_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    head: ArrayLike,
    inputs: Any,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """The norm of the gradient of each example's loss in all parameters, θ, W and b together (psg-1, chain-4).

    The head's part comes from the factors r_n and e_n, the rest from `jax.vmap` over the examples. The sum of all
    gradients clipped to a norm c is then one ordinary pass: `chain_gradients` with `weights=jnp.minimum(1, c / norms)`.

    An example is one row of the features. If `feature_fn` makes several rows of one input, as tokens of a sequence,
    each has a norm of its own, at the cost of a backward pass.

    Args:
      feature_fn: maps (params, inputs) to the features e, (..., d) with N inputs on the first axis, floating, each input
        apart from the others.
      params: θ, any pytree of arrays, as in `chain_gradients`.
      head: W, (C, d), floating.
      inputs: x, any pytree with leaves (N, ...).
      targets: class ids (...) or distributions (..., C).
      bias: b, (C,), floating.
      where: (...), boolean; an example where it is False has norm 0.
      batch_size: of how many inputs there are gradients in θ in memory at once, for each of their rows; of all N by default.

    Returns:
      (...), at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `chain_gradients`.
      ValueError: the leaves of `inputs` have not the leading axis of the features, or `batch_size` is not positive.

    Source: Li et al. 2022, arXiv:2110.05679.
    """
    e = _checks.as_floating("feature_fn(params, inputs)", feature_fn(params, inputs))
    gradients = per_example_gradients(e, head, targets, bias=bias, where=where)
    if e.ndim < 2 or any(jnp.shape(x)[:1] != e.shape[:1] for x in jax.tree.leaves(inputs)):
        shapes = ", ".join(str(jnp.shape(x)) for x in jax.tree.leaves(inputs))
        raise ValueError(f"inputs: expected leaves (N, ...) for features (N, ..., d) = {e.shape}, got {shapes}; give them a leading axis of examples")
    by_features = jnp.matmul(gradients.residuals, jnp.asarray(head).astype(gradients.residuals.dtype))
    batch_size = None if batch_size is None else _checks.at_least_one("batch_size", batch_size, "input at a time")
    direction, size = _scaled(by_features)  # the gradient is linear in it, and its square may underflow

    def norms_of_one(example: tuple[Any, jax.Array]) -> jax.Array:
        x, by_e = example
        _, pull_back = jax.vjp(lambda params: feature_fn(params, jax.tree.map(lambda leaf: leaf[None], x)), params)
        rows = by_e.reshape(-1, by_e.shape[-1])
        one_row = lambda chosen: _tree_norm(pull_back((chosen[:, None] * rows).reshape(1, *by_e.shape))[0])
        return jax.vmap(one_row)(jnp.eye(len(rows), dtype=rows.dtype)).reshape(by_e.shape[:-1])

    examples = (inputs, direction.astype(e.dtype))
    by_params = jax.vmap(norms_of_one)(examples) if batch_size is None else lax.map(norms_of_one, examples, batch_size=batch_size)
    return jnp.hypot(gradients.norms(), size * by_params.astype(size.dtype))


def _tree_norm(tree: Any) -> jax.Array:
    """‖·‖ of all leaves together, (), at least float32; a leaf that has no derivative has none."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype != jax.dtypes.float0]
    wide = _checks.compute_dtype(*leaves)
    return jnp.sqrt(sum((jnp.square(leaf.astype(wide)).sum() for leaf in leaves), start=jnp.zeros((), wide)))


def _norms(x: jax.Array) -> jax.Array:
    """‖x‖ over the last axis, (...), with derivative 0 at 0."""
    scaled, size = _scaled(x)
    square = (scaled * scaled).sum(-1)
    zero = square == 0
    return jnp.where(zero, 0, size * jnp.sqrt(jnp.where(zero, 1, square)))


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x/s, (..., C), and s, (...), the largest magnitude: squares of x/s do not overflow, nor underflow where they count."""
    size = lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True, initial=0))
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return x / size, size[..., 0]
