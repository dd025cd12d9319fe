"""Second-order products of a large head in closed form, recomputed in blocks of classes rather than stored.

For L = Σ_n w_n ℓ_n and a direction (ė, V, ḃ), with u = W ė + V e + ḃ the derivative of the logits z:

    g = J u = p ∘ (u − ⟨p, u⟩)                                            softmax-3
    GGN:      (Wᵀ g,          Σ_n w_n g eᵀ,            Σ_n w_n g)         hess-2, hess-3, hess-6: it is the Fisher
    Hessian:  (Wᵀ g + Vᵀ r,   Σ_n w_n (g eᵀ + r ėᵀ),   Σ_n w_n g)         hess-4, hess-7: r = p − y

One pass over the head finds the heaviest class h, the normaliser and ⟨p, u⟩, a second one the products. Differences are
taken from h, so that where p_h rounds to 1 the h-th entry of g is −p_h Σ_{j≠h} p_j (u_j − u_h).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._blocks import Block, begins, block_of, block_size_for, finite, varying_alike
from jaxgrad._display import Displayed
from jaxgrad._exponentials import two_difference
from jaxgrad._pytrees import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class HeadVector(Displayed):
    """A direction in the features (..., d), the head (C, d) and the bias (C,), or a product; None for what is held."""

    features: jax.Array | None = None
    head: jax.Array | None = None
    bias: jax.Array | None = None


def linear_cross_entropy_hvp(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    along: HeadVector,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
) -> HeadVector:
    """The Hessian of L = Σ_n w_n ℓ_n in features, head and bias, times a direction (hess-2, hess-3, hess-4).

    It is what `jax.jvp` of the gradient of `linear_cross_entropy` gives, in two passes over the head, and keeps its digits
    also where an example is sure of a class that is not its label. What the direction leaves out as None is held, and has
    no product.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...) or distributions (..., C), read in blocks.
      along: the direction, each part in the shape of what it moves.
      bias: b, (C,), floating; −inf masks a class.
      weights: w, (...), floating; 1/N for each of the N examples by default. With weight 0 an example does not count,
        and its class id is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      The product, in the shapes and dtypes of features, head and bias; computed in at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147.
    """
    return _checked_product(features, head, targets, along, bias, weights, block_size, residual=True)


def linear_cross_entropy_ggn_product(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    along: HeadVector,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
) -> HeadVector:
    """The generalised Gauss–Newton matrix of L = Σ_n w_n ℓ_n in features, head and bias, times a direction (hess-6, hess-7).

    It is also the product with the Fisher information, and in the head and bias alone with the Hessian.

    Args:
      features, head, targets, along, bias, weights, block_size: as in `linear_cross_entropy_hvp`; only the sums of
        distributions (..., C) enter.

    Returns:
      The product, in the shapes and dtypes of features, head and bias; computed in at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """
    return _checked_product(features, head, targets, along, bias, weights, block_size, residual=False)


@pytree
@dataclasses.dataclass(frozen=True)
class Rows:
    """A checked batch as rows: e (N, d), W (C, d), b (C,), y (N,) or (N, C), w (N,), and a class (N,), the heaviest in y."""

    features: jax.Array  # in the dtype to compute in, as the weights
    head: jax.Array
    bias: jax.Array | None
    targets: jax.Array
    weights: jax.Array  # 1/N unless given, NaN at a class id outside [0, C) if not 0
    label: jax.Array
    size: int = dataclasses.field(metadata={"static": True})  # of a block

    @classmethod
    def of(cls, features: ArrayLike, head: ArrayLike, targets: ArrayLike, bias: ArrayLike | None, weights: ArrayLike | None, block_size: int | None) -> "Rows":
        """From what the public functions take."""
        e, w, b = _checks.as_linear_head("features", features, head, bias)
        y = _checks.as_targets("targets", targets, jax.ShapeDtypeStruct((*e.shape[:-1], w.shape[0]), e.dtype))
        ids = jnp.issubdtype(y.dtype, jnp.integer)
        wide = _checks.compute_dtype(e, w, *(x for x in (b, None if ids else y) if x is not None))
        scale = jnp.full(e.shape[:-1], 1 / max(math.prod(e.shape[:-1]), 1), wide)
        if weights is not None:
            scale = _checks.as_floating("weights", weights).astype(wide)
            _checks.same_shape("weights", scale, e.shape[:-1], "one for each example")
        if ids:
            _checks.ids_in_range("targets", y, w.shape[0], None if weights is None else scale != 0)
            scale = jnp.where((scale != 0) & ((y < 0) | (y >= w.shape[0])), jnp.nan, scale)
            y = label = jnp.clip(y, 0, w.shape[0] - 1).astype(jnp.int32).reshape(-1)
        else:
            y = y.reshape(-1, w.shape[0])
            label = y.argmax(-1).astype(jnp.int32)
        rows = e.reshape(-1, e.shape[-1]).astype(wide)
        return cls(rows, w, b, y, scale.reshape(-1), label, block_size_for(rows.shape[0], w.shape[0], block_size))


def _checked_product(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    along: HeadVector,
    bias: ArrayLike | None,
    weights: ArrayLike | None,
    block_size: int | None,
    *,
    residual: bool,
) -> HeadVector:
    if not isinstance(along, HeadVector):
        raise TypeError(f"along: expected a HeadVector, got {type(along).__name__}; pass for example HeadVector(head=...)")
    rows = Rows.of(features, head, targets, bias, weights, block_size)
    e = jnp.asarray(features)
    for name, like in (("features", e), ("head", rows.head), ("bias", rows.bias)):
        part = getattr(along, name)
        if part is not None:
            if like is None:
                raise ValueError(f"along.{name}: expected None without a {name}, got shape {jnp.shape(part)}; pass {name}=, zeros if need be")
            _checks.same_shape(f"along.{name}", _checks.as_floating(f"along.{name}", part), like.shape, f"that of the {name}")
    if not jax.tree.leaves(along):
        raise ValueError("along: expected a direction in features, head or bias, got none; pass for example HeadVector(head=...)")
    along = jax.tree.map(jnp.asarray, along)
    if along.features is not None:
        along = dataclasses.replace(along, features=along.features.reshape(rows.features.shape).astype(rows.features.dtype))
    product = _product(rows, along, residual=residual)
    return HeadVector(
        None if product.features is None else product.features.reshape(e.shape).astype(e.dtype),
        None if product.head is None else product.head.astype(rows.head.dtype),
        None if product.bias is None or rows.bias is None else product.bias.astype(rows.bias.dtype),
    )


def _product(rows: Rows, along: HeadVector, *, residual: bool) -> HeadVector:
    """The product of a direction given as rows, in the dtype to compute in."""
    rows, along = varying_alike((rows, along))
    e, w, size = rows.features.T, rows.head, rows.size
    de, dw, db = None if along.features is None else along.features.T, along.head, along.bias
    factors: list[tuple[jax.Array, jax.Array, jax.Array | None]] = [] if de is None else [(de, w, None)]  # of the terms of u
    if dw is not None:
        factors.append((e, dw, db))
    elif db is not None:
        factors.append((e[:0], w[:, :0], db))
    derivative = lambda begin: sum(block_of(*factor, begin, size, axis=0).logits for factor in factors)
    softmax = heaviest_of(rows, derivative)
    total_y, residual_of = residuals(rows, softmax)
    scale = rows.weights * total_y

    def multiply(out: HeadVector, begin: jax.Array) -> tuple[HeadVector, None]:
        block = block_of(e, w, rows.bias, begin, size, axis=0)
        each, probs = block.each, softmax.probs(block)
        g = each(scale) * probs * jnp.where(block.at(softmax.label), each(-softmax.mean), derivative(begin) - each(softmax.along + softmax.mean))
        by_features, by_head, by_bias = out.features, out.head, out.bias
        part = lambda x: lax.dynamic_slice_in_dim(x, block.start, size).astype(e.dtype)
        add = lambda x, term: lax.dynamic_update_slice_in_dim(x, part(x) + term, block.start, axis=0)
        r = each(rows.weights) * residual_of(block, probs) if residual else g
        if by_features is not None:
            by_features = by_features + part(w).T @ g + (part(dw).T @ r if residual and dw is not None else 0)
        if dw is not None:
            by_head = add(by_head, g @ rows.features + (r @ along.features if residual and along.features is not None else 0))
        if db is not None:
            by_bias = add(by_bias, g.sum(1))
        return HeadVector(by_features, by_head, by_bias), None

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=e.dtype), HeadVector(de, dw, db))
    product = lax.scan(multiply, zeros, begins(w.shape[0], size))[0]
    return product if product.features is None else dataclasses.replace(product, features=product.features.T)


class Heaviest(NamedTuple):
    """The softmax of each example about its heaviest class h, (N,): p_h = share, p_j = share · e^{z_j − z_h}."""

    logit: jax.Array  # z_h
    label: jax.Array  # h
    rest: jax.Array  # Σ_{j≠h} e^{z_j − z_h}
    along: jax.Array  # u_h
    moment: jax.Array  # Σ_{j≠h} e^{z_j − z_h} (u_j − u_h)

    @property
    def share(self) -> jax.Array:
        """1 / (1 + rest), NaN where every class is masked."""
        return jnp.where(self.logit == -jnp.inf, jnp.nan, 1 / (1 + self.rest))

    @property
    def mean(self) -> jax.Array:
        """⟨p, u⟩ − u_h."""
        return self.share * self.moment

    def probs(self, block: Block) -> jax.Array:
        """p as the logits of the block, 0 where a class was counted in the block before."""
        below = block.logits - block.each(finite(self.logit))
        return block.each(self.share) * jnp.exp(below if block.new is None else jnp.where(block.new, below, -jnp.inf))


def heaviest_of(rows: Rows, derivative: Callable[[jax.Array], Any] | None = None) -> Heaviest:
    """In one pass over the head; `derivative(begin)` gives u as the logits of a block, 0 unless given."""
    e = rows.features.T

    def normalise(carry: tuple[Heaviest, jax.Array], begin: jax.Array) -> tuple[tuple[Heaviest, jax.Array], None]:
        (top, label, rest, u_h, moment), lost = carry
        block = block_of(e, rows.head, rows.bias, begin, rows.size, axis=0)
        z = block.logits if block.new is None else jnp.where(block.new, block.logits, -jnp.inf)
        largest = lax.stop_gradient(z.max(0))
        risen = largest > top
        label = jnp.where(risen, block.first(z == block.each(largest)), label)
        at_h = block.at(label)
        new_top = jnp.where(risen, jnp.where(at_h, z, 0).sum(0), top)  # not `largest`, whose derivative is shared out at ties
        scale = jnp.exp(top - finite(new_top))
        exps = jnp.exp(jnp.where(at_h, -jnp.inf, z - block.each(finite(new_top))))
        others = jnp.where(risen, scale * (1 + rest), rest)  # of the blocks before
        if derivative is not None:
            u = derivative(begin)
            new_u = jnp.where(risen, jnp.where(at_h, u, 0).sum(0), u_h)
            moment = scale * moment + others * (u_h - new_u) + (exps * (u - block.each(new_u))).sum(0)
            u_h = new_u
        rest, tail = two_difference(others, -exps.sum(0))  # every block rounds it
        return (Heaviest(new_top, label, rest, u_h, moment), scale * lost + tail), None

    zero = jnp.zeros_like(rows.weights)
    start = Heaviest(zero - jnp.inf, jnp.full_like(rows.label, -1), zero, zero, zero)
    (softmax, lost), _ = lax.scan(normalise, (start, zero), begins(rows.head.shape[0], rows.size))
    return softmax._replace(rest=softmax.rest + lost)


def residuals(rows: Rows, softmax: Heaviest) -> tuple[jax.Array, Callable[[Block, jax.Array], jax.Array]]:
    """Σ y, (N,), and p Σy − y as the logits of a block with the probabilities p; at the label t (Σy − y_t) p_t − y_t Σ_{j≠t} p_j."""
    t, ids = rows.label, rows.targets.ndim == 1
    total_y = jnp.ones_like(rows.weights) if ids else rows.targets.sum(-1, dtype=rows.weights.dtype)
    y_t = total_y if ids else jnp.take_along_axis(rows.targets, t[:, None], axis=-1)[:, 0].astype(total_y.dtype)
    z_t = _logit_of(rows.features.T, rows.head, rows.bias, t)
    is_h = t == softmax.label
    p_t = softmax.share * jnp.where(is_h, 1, jnp.exp(z_t - finite(softmax.logit)))
    r_t = (total_y - y_t) * p_t - y_t * jnp.where(is_h, softmax.rest * softmax.share, 1 - p_t)

    def of_block(block: Block, probs: jax.Array) -> jax.Array:
        y = 0 if ids else jnp.where(block.beside(t), block.cut(rows.targets).astype(probs.dtype), 0)
        return jnp.where(block.at(t), block.each(r_t), block.each(total_y) * probs - y)

    return total_y, of_block


def _logit_of(e: jax.Array, w: jax.Array, b: jax.Array | None, k: jax.Array) -> jax.Array:
    """(W e + b)_k, (N,), of e (d, N)."""
    z = (e * w[k].astype(e.dtype).T).sum(0)
    return z if b is None else z + b[k].astype(e.dtype)
