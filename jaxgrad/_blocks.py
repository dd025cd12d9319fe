"""A linear head read in blocks of classes: the logits of a block, and sums over blocks that store none of them.

The last block ends with the last class. If the block size does not divide C it begins among the classes of the block
before, which are not counted again: no copy of the head is made to pad it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxgrad import _checks

TILE = 2**19  # the numbers in a block of logits, by default, of up to 2048 examples: 2 MiB


class Block(NamedTuple):
    """Logits (N, B) of consecutive classes, the first of which is `start`; `new` (1, B) says which are counted.

    With `axis` 0 the classes come first, (B, N) and (B, 1): so the products of a gradient are those that XLA is fastest at.
    """

    logits: jax.Array
    start: jax.Array
    new: jax.Array | None  # None: all
    axis: int = -1  # of the classes

    def at(self, classes: jax.Array) -> jax.Array:
        """Where the class of an example (N,) is in this block, as the logits."""
        here = self._ids() == self.each(classes)
        return here if self.new is None else here & self.new

    def beside(self, classes: jax.Array) -> jax.Array:
        """Where a class counts that is not the one of the example, as the logits."""
        others = self._ids() != self.each(classes)
        return others if self.new is None else others & self.new

    def first(self, mask: jax.Array) -> jax.Array:
        """The first class (N,) where a mask as the logits holds; a large number where it holds nowhere."""
        return jnp.where(mask, self._ids(), jnp.iinfo(self.start.dtype).max).min(self.axis)

    def each(self, x: jax.Array) -> jax.Array:
        """Numbers of the examples (N,), with an axis for the classes."""
        return jnp.expand_dims(x, self.axis)

    def cut(self, x: jax.Array) -> jax.Array:
        """The numbers of these classes, as the logits, of all in x, (N, C)."""
        part = lax.dynamic_slice_in_dim(x, self.start, self.logits.shape[self.axis], axis=-1)
        return part if self.axis == -1 else part.T

    def logits_of(self, ids: jax.Array, begin: jax.Array) -> jax.Array:
        """The logits (N, K) of those of the ids (N, K) that this block counts, from the class `begin` on, and 0 for the others."""
        end = self.start + self.logits.shape[-1]
        here = jnp.clip(ids - self.start, 0, self.logits.shape[-1] - 1)
        return jnp.where((ids >= begin) & (ids < end), jnp.take_along_axis(self.logits, here, axis=-1), 0)

    def _ids(self) -> jax.Array:
        return jnp.expand_dims(self.start + jnp.arange(self.logits.shape[self.axis], dtype=self.start.dtype), -1 - self.axis)


def block_of(features: jax.Array, head: jax.Array, bias: jax.Array | None, begin: jax.Array, size: int, *, axis: int = -1) -> Block:
    """The block that counts from the class `begin` on: logits in the dtype of `features`, (N, d), or (d, N) with `axis` 0."""
    start = jnp.minimum(begin, head.shape[0] - size)
    rows = lambda x: lax.dynamic_slice_in_dim(x, start, size).astype(features.dtype)
    z = jnp.matmul(features, rows(head).T) if axis == -1 else jnp.matmul(rows(head), features)
    if bias is not None:
        z = z + jnp.expand_dims(rows(bias), -1 - axis)
    ragged = head.shape[0] % size != 0
    return Block(z, start, jnp.expand_dims(start + jnp.arange(size, dtype=start.dtype) >= begin, -1 - axis) if ragged else None, axis)


def begins(num_classes: int, size: int) -> jax.Array:
    """The first class that each block counts."""
    return jnp.arange(0, num_classes, size, dtype=jnp.int32)


def block_sums(f: Callable[..., Any], num_classes: int, size: int, zeros: Any, *arrays: Any) -> Any:
    """Σ f(*arrays, begin) over blocks, from `zeros` on; a derivative computes f again and stores nothing of it."""
    again = jax.checkpoint(f, prevent_cse=False)
    add = lambda total, begin: (jax.tree.map(jnp.add, total, again(*arrays, begin)), None)
    return lax.scan(add, zeros, begins(num_classes, size))[0]


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def block_sums_and(f: Callable[..., Any], num_classes: int, size: int, zeros: Any, held: Any, along: Any) -> tuple[Any, Any]:
    """Σ f(held, along, begin) over blocks, linear in `along`, and `along` itself.

    Whoever takes that from here gives back a cotangent to which the transposed loop adds in place, where JAX would add
    a second array of the size of the head at the end.
    """
    again = jax.checkpoint(f, prevent_cse=False)

    def add(carry: Any, begin: jax.Array) -> tuple[Any, None]:
        total, along = carry
        total = jax.tree.map(jnp.add, total, again(held, along, begin))
        return (total, jax.tree.map(lambda x: x * 1, along)), None  # without the 1 JAX takes it out of the loop

    return lax.scan(add, (zeros, along), begins(num_classes, size))[0]


@block_sums_and.defjvp
def _(f: Callable[..., Any], num_classes: int, size: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    plain = lambda zeros, held, along: (block_sums(f, num_classes, size, zeros, held, along), along)  # nothing is carried, and kept for each block
    return block_sums_and(f, num_classes, size, *primals), jax.jvp(plain, primals, tangents)[1]


def block_size_for(num_rows: int, num_classes: int, block_size: int | None) -> int:
    """The given size, checked, or the multiple of 128 that makes a block of logits of `TILE` numbers, at least 256; at most C."""
    if block_size is None:
        return min(num_classes, max(256, TILE // max(num_rows, 1) // 128 * 128))
    return min(num_classes, _checks.at_least_one("block_size", block_size, "class in a block"))


def varying_alike(arrays: Any) -> Any:
    """The arrays, within `jax.shard_map` all varying over the mesh axes that one of them varies over.

    A loop over blocks then adds up what a device knows of a derivative, and the sum over devices follows once.
    """
    varies = lambda x: jax.typeof(x).manual_axis_type.varying
    axes = frozenset().union(*map(varies, jax.tree.leaves(arrays)))
    missing = lambda x: tuple(axes - varies(x))
    return jax.tree.map(lambda x: lax.pcast(x, missing(x), to="varying") if missing(x) else x, arrays)


def finite(top: jax.Array) -> jax.Array:
    """What to subtract from logits of which `top` is the largest: 0 if all are −inf."""
    return jnp.where(top == -jnp.inf, 0, top)


def exps_beside(block: Block, classes: jax.Array, top: jax.Array) -> jax.Array:
    """e^{z − top} where a class of the block counts that is not the one of the example, and 0 elsewhere, (N, B)."""
    return jnp.exp(jnp.where(block.beside(classes), block.logits - finite(top)[:, None], -jnp.inf))


class Moving(NamedTuple):
    """Which of the arrays of a rule with `symbolic_zeros=True` have tangents that are not known to be 0."""

    places: tuple[int, ...]

    @classmethod
    def of(cls, tangents: Sequence[Any]) -> "Moving":
        """From the tangents of the arrays, some of which may be None."""
        return cls(tuple(i for i, tangent in enumerate(tangents) if tangent is not None and not isinstance(tangent, SymbolicZero)))

    def along(self, tangents: Sequence[Any]) -> list[jax.Array]:
        """The tangents of those that move."""
        return [tangents[i] for i in self.places]

    def placed(self, moved: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The arrays with those that move replaced."""
        return tuple(moved[self.places.index(i)] if i in self.places else x for i, x in enumerate(arrays))

    def jvp(self, f: Callable[..., Any], arrays: Sequence[Any], tangents: Sequence[jax.Array]) -> tuple[Any, Any, Any]:
        """f(*arrays) = (value, more): value, its derivative along the tangents, and more."""
        held = lambda *moved: f(*self.placed(moved, arrays))
        return jax.jvp(held, self.along(arrays), tangents, has_aux=True)
