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
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._blocks import Block, Moving, begins, block_of, block_size_for, block_sums_and, finite, varying_alike
from jaxgrad._exponentials import log1p, two_difference

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
    Where an example is sure of a class that is not its label, second derivatives are good to the rounding of 1, not of
    themselves; `linear_cross_entropy_hvp` keeps their digits.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...), integer, or distributions (..., C), floating or boolean, read in blocks.
      bias: b, (C,), floating; −inf masks a class.
      where: (...), boolean; an example where it is False has loss and derivatives 0, and is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.
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
    y = y.reshape(-1) if ids else y.reshape(-1, y.shape[-1])
    keep = None if mask is None else mask.reshape(-1)
    loss = partial(_loss, block_size, vocab_axis)
    if vocab_axis is not None and vocab_axis not in mesh.manual_axes:
        if w.shape[0] % mesh.shape[vocab_axis]:
            raise ValueError(f"head: expected the {w.shape[0]} classes to divide among {mesh.shape[vocab_axis]} devices; pad with a bias of -inf")
        vocab = PartitionSpec(vocab_axis)
        specs = PartitionSpec(), vocab, vocab, PartitionSpec() if ids else PartitionSpec(None, vocab_axis), PartitionSpec()
        loss = jax.shard_map(loss, in_specs=specs, out_specs=PartitionSpec(), axis_names={vocab_axis})
    return loss(rows, w, b, y, keep).reshape(e.shape[:-1])


def _loss(block_size: int | None, axis: str | None, e: jax.Array, w: jax.Array, b: jax.Array | None, y: jax.Array, keep: jax.Array | None) -> jax.Array:
    """The loss, (N,), of features (N, d) of the dtype to compute in; along the mesh axis `axis`, the head is a share."""
    size = block_size_for(e.shape[0], w.shape[0], block_size)
    if keep is not None:
        e = jnp.where(keep[:, None], e, 0)
    if jnp.issubdtype(y.dtype, jnp.integer):
        y = y if keep is None else jnp.where(keep, y, 0)
        valid = (y >= 0) & (y < w.shape[0] * (1 if axis is None else lax.axis_size(axis)))
        sums, _ = class_sums(size, axis, *varying_alike(((e.T, w, b, None), jnp.where(valid, y, -1).astype(jnp.int32), None)))
        loss = log_ratios(*sums.about_top())[0] * jnp.where(valid, jnp.ones((), e.dtype), jnp.nan)
    else:
        sums, _ = class_sums(size, axis, *varying_alike(((e.T, w, b, y), _heaviest_class(y, axis), keep)))
        of_k, of_top = log_ratios(*sums.about_top())
        of_k = jnp.where((sums.logit == -jnp.inf) & (sums.weight == 0), 0, of_k)  # y = 0: there may be no class to take instead
        loss = sums.weight * of_k + (sums.weight_others * of_top + sums.inner_others)
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
    """Sums over classes for each example, (N,), at a class k and beside it; without a distribution y the last three are None.

    `top` is held: no derivative passes through it, and none is lost, as it cancels from whatever the sums are for.
    """

    top: jax.Array  # max_{j≠k} z_j
    total: jax.Array  # Σ_{j≠k} e^{z_j − top}
    logit: jax.Array  # z_k
    weight: Any  # y_k
    weight_others: Any  # Σ_{j≠k} y_j
    inner_others: Any  # Σ_{j≠k} y_j (top − z_j)

    def about(self, top: jax.Array) -> "Sums":
        """The same about another, larger top."""
        total = self.total * jnp.exp(self.top - finite(top))
        inner = None if self.inner_others is None else self.inner_others + self.weight_others * (finite(top) - finite(self.top))
        return self._replace(top=top, total=total, inner_others=inner)

    def about_top(self) -> tuple[jax.Array, jax.Array]:
        """Σ_{j≠k} e^{z_j − top} and z_k − top, where no other class counts 0 and 0: the arguments of `log_ratios` and `shares`."""
        return self.total, self.logit - lax.stop_gradient(jnp.where(self.top == -jnp.inf, self.logit, self.top))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def class_sums(size: int, axis: str | None, arrays: Arrays, k: jax.Array, keep: jax.Array | None) -> tuple[Sums, Arrays]:
    """The sums for arrays eᵀ (d, N), W (C, d), b (C,) or None, y (N, C) or None, in one pass over the head, and the arrays.

    What is to be differentiated again takes the arrays from here: their cotangents then pass through one loop (`block_sums_and`).

    Along a mesh axis, W, b and y are shares, and all arguments must vary over the axes that one of them varies over.
    """
    e, w, b, y = arrays

    def add(carry: tuple[Sums, jax.Array], begin: jax.Array) -> tuple[tuple[Sums, jax.Array], None]:
        sums, lost = carry
        block = block_of(e, w, b, begin, size, axis=0)
        top = jnp.maximum(sums.top, jnp.where(block.beside(here), block.logits, -jnp.inf).max(0))
        before, part = sums.about(top), _of_block(block, y, here, keep, top)
        total, tail = two_difference(before.total, -part[0])  # every block rounds it, and every probability has it
        lost = lost * jnp.exp(sums.top - finite(top)) + tail
        return (Sums(top, total, *jax.tree.map(jnp.add, before[2:], part[1:])), lost), None

    here = _class_of_share(k, w, axis)
    zero = jnp.zeros_like(here, dtype=e.dtype)
    start = Sums(zero - jnp.inf, zero, zero, *[None if y is None else zero] * 3)
    (sums, lost), _ = lax.scan(add, (start, zero), begins(w.shape[0], size))
    sums = sums._replace(total=sums.total + lost)
    if axis is not None:
        sums = sums.about(lax.pmax(sums.top, axis))
        sums = Sums(sums.top, *lax.psum(sums[1:], axis))
    return sums, arrays


@partial(class_sums.defjvp, symbolic_zeros=True)
def _(size: int, axis: str | None, primals: Arrays, tangents: Arrays) -> tuple[tuple[Sums, Arrays], tuple[Sums, Arrays]]:
    sums, arrays = class_sums(size, axis, *primals)
    _, k, keep = primals
    here, top = varying_alike((arrays, _class_of_share(k, arrays[1], axis), sums.top))[1:]
    moving = Moving.of(tangents[0])
    zeros = jax.tree.map(jnp.zeros_like, varying_alike((arrays, tuple(sums[1:])))[1])
    derivative = partial(_derivative_of_block, size, moving)
    parts, along = block_sums_and(derivative, arrays[1].shape[0], size, zeros, (arrays, here, keep, top), moving.along(tangents[0]))
    d_arrays = moving.placed(along, tangents[0])
    return (sums, arrays), (Sums(jnp.zeros_like(sums.top), *(parts if axis is None else lax.psum(parts, axis))), d_arrays)


@jax.custom_jvp
def log_ratios(total: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log(1 + T e^{−x}) and log(T + e^x), (N,): with T and x = z_k − top of `Sums` −log p_k, and log Σ_j e^{z_j − top}."""
    rest = log1p(total * jnp.exp(-jnp.maximum(x, 0)) + jnp.expm1(jnp.minimum(x, 0)))
    return rest + jnp.maximum(-x, 0), rest + jnp.maximum(x, 0)


@log_ratios.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[Arrays, Arrays]:
    (total, _), (d_total, dx) = primals, tangents
    share, p_k = shares(*primals)
    return log_ratios(*primals), (share * (d_total - total * dx), share * d_total + p_k * dx)


@jax.custom_jvp
def shares(total: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 / (T + e^x) and e^x / (T + e^x), (N,): what makes e^{z_j − top} a probability, and p_k."""
    scale, e_k = jnp.exp(-jnp.maximum(x, 0)), jnp.exp(jnp.minimum(x, 0))
    whole = total * scale + e_k
    return scale / whole, e_k / whole


@shares.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[Arrays, Arrays]:
    (total, _), (d_total, dx) = primals, tangents
    share, p_k = shares(*primals)
    return (share, p_k), (-share * (share * d_total + p_k * dx), p_k * share * (total * dx - d_total))


def _class_of_share(k: jax.Array, w: jax.Array, axis: str | None) -> jax.Array:
    """Classes counted from the first of this share of the head."""
    return k if axis is None else k - lax.axis_index(axis) * w.shape[0]


def _derivative_of_block(size: int, moving: Moving, held: Arrays, along: list[jax.Array], begin: jax.Array) -> Arrays:
    """What a block adds to the derivatives of the fields of `Sums` after the first, along some of the arrays."""
    arrays, k, keep, top = held

    def of_block(e: jax.Array, w: jax.Array, b: jax.Array | None, y: jax.Array | None) -> Arrays:
        return _of_block(block_of(e, w, b, begin, size, axis=0), y, k, keep, top), None

    return moving.jvp(of_block, arrays, along)[1]


def _of_block(block: Block, y: jax.Array | None, k: jax.Array, keep: jax.Array | None, top: jax.Array) -> Arrays:
    """What a block adds to the fields of `Sums` after the first."""
    z, at_k, beside = block.logits, block.at(k), block.beside(k)
    top = block.each(finite(top))
    sums = jnp.exp(jnp.where(beside, z - top, -jnp.inf)).sum(0), jnp.where(at_k, z, 0).sum(0)
    if y is None:
        return *sums, None, None, None
    y = block.cut(y).astype(z.dtype)
    y = y if keep is None else jnp.where(block.each(keep), y, 0)
    inert = (z == -jnp.inf) & (y == 0)  # 0 · log 0 = 0, and no derivative in y
    others = jnp.where(beside & ~inert, y, 0)
    inner = others * jnp.where(inert, 0, top - z)
    return *sums, jnp.where(at_k, y, 0).sum(0), others.sum(0), inner.sum(0)
