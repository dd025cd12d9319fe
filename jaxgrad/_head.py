"""Cross-entropy of a linear head over a large vocabulary, in blocks of classes: no array has N·C elements.

    z = W e + b;   t = log Σ_{j≠k} e^{z_j} − z_k, the log-odds against a class k
    loss = softplus(t)                                           ce-1    k = y, a class id
    ∂loss/∂z_k = −σ(t),  ∂loss/∂z_j = σ(t) softmax_{j≠k}(z)_j    ce-3    nothing is subtracted from 1

A distribution y has its heaviest class as k: loss = y_k softplus(t) + Σ_{j≠k} y_j (log Σ e^z − z_j).

JAX differentiates all this but the sums over classes, a few numbers for each example. Their derivative is the sum over
blocks of that of a block, with the normaliser held: d log Σ e^z = Σ d e^{z − log Σ e^z}. A block is computed again
whenever it is needed, to every order.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._blocks import Block, begins, block_of, block_size_for, block_sums, varying_alike

Arrays = tuple[Any, ...]


def linear_cross_entropy(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    block_size: int | None = None,
    vocab_axis: str | None = None,
) -> jax.Array:
    """Cross-entropy of softmax(W e + b), one value for each example, in nats, without the logits (..., C) (ce-1).

    It is `cross_entropy(features @ head.T + bias, targets)`, exact also on confident examples, in the memory of a block
    of logits: the value and derivatives of every order, forward and reverse, in features, head, bias, distributions.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...), integer, or distributions (..., C), floating or boolean, read in blocks.
      bias: b, (C,), floating; −inf masks a class.
      where: (...), boolean; an example where it is False has loss and derivatives 0, and is not looked at.
      block_size: the number of classes in a block; by default a block of logits has about 2²⁰ numbers.
      vocab_axis: the mesh axis that shards the classes of `head`, `bias` and distributions. Under a `jax.shard_map`
        over it they are the share of the device, and class ids count through all shares; elsewhere they are whole
        arrays, and the mesh is that of `jax.set_mesh`. Of this axis, only sums for each example and the gradient of
        the features are communicated.

    Returns:
      loss: (...), at least float32, in which everything is computed.

    Raises:
      TypeError: a dtype is none of these.
      ValueError: a shape is none of these; nothing broadcasts.
      IndexError: a class id is outside [0, C) and its value is known; under `jit` it makes loss and derivatives NaN.

    Source: Wijmans et al. 2024, arXiv:2411.09009; Milakov and Gimelshein 2018, arXiv:1805.02867.
    """
    e, w, b = _checks.as_linear_head("features", features, head, bias)
    mesh = jax.sharding.get_abstract_mesh()
    if vocab_axis is not None and vocab_axis not in mesh.shape:
        raise ValueError(f"vocab_axis: expected an axis of the mesh {tuple(mesh.shape)}, got {vocab_axis!r}; call it within jax.set_mesh or jax.shard_map")
    y = _checks.as_targets("targets", targets, jax.ShapeDtypeStruct((*e.shape[:-1], w.shape[0]), e.dtype))
    mask = None if where is None else _checks.as_mask("where", where, e.shape[:-1])
    shares = mesh.shape[vocab_axis] if vocab_axis in mesh.manual_axes else 1
    ids = jnp.issubdtype(y.dtype, jnp.integer)
    if ids:
        _checks.ids_in_range("targets", y, w.shape[0] * shares, mask)
    wide = _checks.compute_dtype(e, w, *(x for x in (b, None if ids else y) if x is not None))
    rows = e.reshape(-1, e.shape[-1]).astype(wide)
    y = y.reshape(-1) if ids else y.reshape(-1, y.shape[-1]).astype(wide if y.dtype == jnp.bool_ else y.dtype)
    keep = None if mask is None else mask.reshape(-1)
    size = block_size_for(rows.shape[0], w.shape[0], block_size)
    loss = partial(_loss, size, vocab_axis)
    if vocab_axis is not None and vocab_axis not in mesh.manual_axes:
        if w.shape[0] % mesh.shape[vocab_axis]:
            raise ValueError(f"head: expected the {w.shape[0]} classes to divide among {mesh.shape[vocab_axis]} devices; pad with a bias of -inf")
        vocab = PartitionSpec(vocab_axis)
        specs = PartitionSpec(), vocab, vocab, PartitionSpec() if ids else PartitionSpec(None, vocab_axis), PartitionSpec()
        loss = jax.shard_map(loss, in_specs=specs, out_specs=PartitionSpec(), axis_names={vocab_axis})
    return loss(rows, w, b, y, keep).reshape(e.shape[:-1])


def _loss(size: int, axis: str | None, e: jax.Array, w: jax.Array, b: jax.Array | None, y: jax.Array, keep: jax.Array | None) -> jax.Array:
    """The loss, (N,), of features (N, d) of the dtype to compute in; along the mesh axis `axis`, the head is a share."""
    if keep is not None:
        e = jnp.where(keep[:, None], e, 0)
    if jnp.issubdtype(y.dtype, jnp.integer):
        y = y if keep is None else jnp.where(keep, y, 0)
        valid = (y >= 0) & (y < w.shape[0] * (1 if axis is None else lax.axis_size(axis)))
        sums = class_sums(size, axis, *varying_alike(((e, w, b, None), jnp.where(valid, y, -1).astype(jnp.int32), None)))
        loss = jax.nn.softplus(sums.log_others - sums.logit) * jnp.where(valid, jnp.ones((), e.dtype), jnp.nan)
    else:
        sums = class_sums(size, axis, *varying_alike(((e, w, b, y), _heaviest_class(y, axis), keep)))
        beside = sums.weight_others * jnp.logaddexp(sums.log_others, sums.logit) - sums.inner_others
        loss = sums.weight * jax.nn.softplus(sums.log_others - sums.logit) + beside
    return loss if keep is None else jnp.where(keep, loss, 0)


def _heaviest_class(y: jax.Array, axis: str | None) -> jax.Array:
    """The first class with the largest y, (N,); along a mesh axis, of all shares."""
    y = lax.stop_gradient(y)
    k = jnp.argmax(y, axis=-1).astype(jnp.int32)
    if axis is None:
        return k
    largest = y.max(-1)
    here = largest == lax.pmax(largest, axis)
    return lax.pmin(jnp.where(here, k + lax.axis_index(axis) * y.shape[-1], jnp.iinfo(jnp.int32).max), axis)


class Sums(NamedTuple):
    """Sums over classes for each example, (N,), at a class k and beside it; without a distribution y the last three are None."""

    log_others: jax.Array  # log Σ_{j≠k} e^{z_j}
    logit: jax.Array  # z_k
    weight: jax.Array  # y_k
    weight_others: jax.Array  # Σ_{j≠k} y_j
    inner_others: jax.Array  # Σ_{j≠k} y_j z_j


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def class_sums(size: int, axis: str | None, arrays: Arrays, k: jax.Array, keep: jax.Array | None) -> Sums:
    """The sums for arrays e (N, d), W (C, d), b (C,) or None, y (N, C) or None, in one pass over the head.

    Along a mesh axis, W, b and y are shares, and all arguments must vary over the axes that one of them varies over.
    """
    e, w, b, y = arrays

    def add(carry: Arrays, begin: jax.Array) -> tuple[Arrays, None]:
        top, total, linear = carry
        block = block_of(e, w, b, begin, size)
        new_top = jnp.maximum(top, jnp.where(block.beside(here), block.logits, -jnp.inf).max(-1))
        total = total * jnp.exp(top - _finite(new_top)) + _exp_others(block, here, new_top).sum(-1)
        return (new_top, total, jax.tree.map(jnp.add, linear, _linear_sums(block, y, here, keep))), None

    here = _class_of_share(k, w, axis)
    zero = jnp.zeros_like(here, dtype=e.dtype)
    linear = (zero, None, None, None) if y is None else (zero,) * 4
    (top, total, linear), _ = lax.scan(add, (zero - jnp.inf, zero, linear), begins(w.shape[0], size))
    if axis is not None:
        own, top = top, lax.pmax(top, axis)
        total, linear = lax.psum((total * jnp.exp(own - _finite(top)), linear), axis)
    return Sums(top + jnp.log(total), *linear)


@partial(class_sums.defjvp, symbolic_zeros=True)
def _(size: int, axis: str | None, primals: Arrays, tangents: Arrays) -> tuple[Sums, Sums]:
    sums = class_sums(size, axis, *primals)
    arrays, k, keep = primals
    here, log_others = varying_alike((arrays, _class_of_share(k, arrays[1], axis), sums.log_others))[1:]
    moving = [i for i, tangent in enumerate(tangents[0]) if tangent is not None and not isinstance(tangent, SymbolicZero)]
    along = [tangents[0][i] for i in moving]

    def derivative(arrays: Arrays, along: list[jax.Array], log_others: jax.Array, begin: jax.Array) -> Arrays:
        def of_block(*moved: jax.Array) -> Arrays:
            e, w, b, y = (moved[moving.index(i)] if i in moving else x for i, x in enumerate(arrays))
            block = block_of(e, w, b, begin, size)
            return _exp_others(block, here, log_others).sum(-1), *_linear_sums(block, y, here, keep)

        return jax.jvp(of_block, [arrays[i] for i in moving], along)[1]

    zeros = jax.tree.map(jnp.zeros_like, varying_alike((arrays, tuple(sums)))[1])
    parts = block_sums(derivative, arrays[1].shape[0], size, zeros, arrays, along, log_others)
    return sums, Sums(*(parts if axis is None else lax.psum(parts, axis)))


def _class_of_share(k: jax.Array, w: jax.Array, axis: str | None) -> jax.Array:
    """Classes counted from the first of this share of the head."""
    return k if axis is None else k - lax.axis_index(axis) * w.shape[0]


def _finite(top: jax.Array) -> jax.Array:
    """What to subtract from logits of which `top` is the largest: 0 if all are −inf."""
    return jnp.where(top == -jnp.inf, 0, top)


def _exp_others(block: Block, k: jax.Array, top: jax.Array) -> jax.Array:
    """e^{z_j − top} for the classes j ≠ k of a block, 0 for k, (N, B)."""
    return jnp.exp(jnp.where(block.beside(k), block.logits - _finite(top)[:, None], -jnp.inf))


def _linear_sums(block: Block, y: jax.Array | None, k: jax.Array, keep: jax.Array | None) -> Arrays:
    """What a block adds to the fields of `Sums` after the first."""
    z, at_k = block.logits, block.at(k)
    logit = jnp.where(at_k, z, 0).sum(-1)
    if y is None:
        return logit, None, None, None
    y = block.cut(y).astype(z.dtype)
    y = y if keep is None else jnp.where(keep[:, None], y, 0)
    inert = (z == -jnp.inf) & (y == 0)  # 0 · log 0 = 0, and no derivative in y
    others = jnp.where(block.beside(k) & ~inert, y, 0)
    inner = others * jnp.where(inert, 0, z)
    return logit, jnp.where(at_k, y, 0).sum(-1), others.sum(-1), inner.sum(-1)
