"""A linear head read in blocks of classes: the logits of a block, and sums over blocks that store none of them.

The last block ends with the last class. If the block size does not divide C it begins among the classes of the block
before, which are not counted again: no copy of the head is made to pad it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxgrad import _checks

TILE = 2**20  # the numbers in a block of logits, by default: 4 MiB


class Block(NamedTuple):
    """Logits (N, B) of consecutive classes, the first of which is `start`; `new` (1, B) says which are counted."""

    logits: jax.Array
    start: jax.Array
    new: jax.Array | None  # None: all

    def at(self, classes: jax.Array) -> jax.Array:
        """Where the class of an example (N,) is in this block, (N, B)."""
        here = self._ids()[None] == classes[:, None]
        return here if self.new is None else here & self.new

    def beside(self, classes: jax.Array) -> jax.Array:
        """Where a class counts that is not the one of the example, (N, B)."""
        others = self._ids()[None] != classes[:, None]
        return others if self.new is None else others & self.new

    def cut(self, x: jax.Array) -> jax.Array:
        """The numbers of these classes, (N, B), of all in x, (N, C)."""
        return lax.dynamic_slice_in_dim(x, self.start, self.logits.shape[-1], axis=-1)

    def _ids(self) -> jax.Array:
        return self.start + jnp.arange(self.logits.shape[-1], dtype=self.start.dtype)


def block_of(features: jax.Array, head: jax.Array, bias: jax.Array | None, begin: jax.Array, size: int) -> Block:
    """The block that counts from the class `begin` on: logits in the dtype of `features` (N, d)."""
    start = jnp.minimum(begin, head.shape[0] - size)
    rows = lambda x: lax.dynamic_slice_in_dim(x, start, size).astype(features.dtype)
    z = jnp.matmul(features, rows(head).T)
    if bias is not None:
        z = z + rows(bias)[None]
    ragged = head.shape[0] % size != 0
    return Block(z, start, (start + jnp.arange(size, dtype=start.dtype) >= begin)[None] if ragged else None)


def begins(num_classes: int, size: int) -> jax.Array:
    """The first class that each block counts."""
    return jnp.arange(0, num_classes, size, dtype=jnp.int32)


def block_sums(f: Callable[..., Any], num_classes: int, size: int, zeros: Any, *arrays: Any) -> Any:
    """Σ f(*arrays, begin) over blocks, from `zeros` on; a derivative computes f again and stores nothing of it."""
    again = jax.checkpoint(f, prevent_cse=False)
    add = lambda total, begin: (jax.tree.map(jnp.add, total, again(*arrays, begin)), None)
    return lax.scan(add, zeros, begins(num_classes, size))[0]


def block_size_for(num_rows: int, num_classes: int, block_size: int | None) -> int:
    """The given size, checked, or one that makes a block of logits of about `TILE` numbers; at most C."""
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
    """Which of the arrays of a rule with `symbolic_zeros=True` have tangents that are not known to be 0, and these."""

    places: list[int]
    tangents: list[jax.Array]

    @classmethod
    def of(cls, tangents: Sequence[Any]) -> "Moving":
        """From the tangents of the arrays, some of which may be None."""
        places = [i for i, tangent in enumerate(tangents) if tangent is not None and not isinstance(tangent, SymbolicZero)]
        return cls(places, [tangents[i] for i in places])

    def jvp(self, f: Callable[..., Any], arrays: Sequence[Any], tangents: Sequence[jax.Array]) -> tuple[Any, Any, Any]:
        """f(*arrays) = (value, more): value, its derivative along the tangents, and more."""
        held = lambda *moved: f(*(moved[self.places.index(i)] if i in self.places else x for i, x in enumerate(arrays)))
        return jax.jvp(held, [arrays[i] for i in self.places], tangents, has_aux=True)
