"""Symmetric linear maps on pytrees of parameters: products, sums, exact diagonals and the dense matrix, without storing it.

An operator is a frozen pytree: it goes in and out of `jit`. A vector is a pytree with the structure of the parameters θ;
P is how many numbers θ holds, and dense matrices have their rows in the order of `jax.flatten_util.ravel_pytree`.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._display import Displayed
from jaxgrad._pytrees import pytree

COLUMNS_AT_ONCE = 64


class PytreeOperator(Displayed, abc.ABC):
    """A symmetric matrix (P, P) over a pytree of P parameters, known by its products with trees of leaves (...).

    `operator @ tree` is one product, and `operator @ block` is K of them where each leaf of `block` has an extra leading
    axis, (K, ...). `+`, `-` and `*` with a scalar make operators. `diagonal`, `trace` and `to_dense` are exact and cost
    P products where nothing better is known.
    """

    __array_ufunc__ = None  # so that a NumPy scalar leaves `scalar * operator` to the operator

    @property
    @abc.abstractmethod
    def like(self) -> Any:
        """A pytree whose leaves have the shapes and dtypes of the parameters."""

    @abc.abstractmethod
    def matvec(self, tree: Any) -> Any:
        """The product with one tree shaped as the parameters; `@` also checks the tree and takes blocks."""

    def products(self, block: Any) -> Any:
        """The products with a block (K, ...) of K trees; `@` also checks it."""
        return jax.vmap(self.matvec)(block)

    @property
    def num_params(self) -> int:
        """P, how many numbers the parameters hold."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.like))

    def diagonal(self) -> Any:
        """The exact diagonal, a tree shaped as the parameters, by P products."""
        return unravel(_by_basis(self, _entry), self.like)

    def trace(self) -> jax.Array:
        """The exact trace, a scalar of at least float32, by P products."""
        return ravel(self.diagonal()).sum()

    def to_dense(self) -> jax.Array:
        """The matrix (P, P), at least float32, whose row j is the product with the basis vector j."""
        return _by_basis(self, _whole)

    def _rows(self) -> Iterable[tuple[str, Any]]:
        return [("num_params", self.num_params), ("like", jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.like))]

    def __matmul__(self, other: Any) -> Any:
        """The product with one tree shaped as the parameters, or with a block (K, ...) of K trees.

        Raises:
          TypeError: a leaf is not of a real floating dtype.
          ValueError: the structure is not that of the parameters, or the shape of a leaf is neither; the leaf is named.
        """
        tree, is_block = as_vectors("other", other, self.like)
        return self.products(tree) if is_block else self.matvec(tree)

    def __add__(self, other: "PytreeOperator") -> "PytreeOperator":
        """The sum of two operators over the same parameters."""
        if not isinstance(other, PytreeOperator):
            return NotImplemented
        _same_parameters(self.like, other.like)
        return Sum(self, other)

    def __sub__(self, other: "PytreeOperator") -> "PytreeOperator":
        """The difference of two operators over the same parameters."""
        return self + -other if isinstance(other, PytreeOperator) else NotImplemented

    def __mul__(self, factor: ArrayLike) -> "PytreeOperator":
        """The multiple by a real scalar, a number or an array of shape ()."""
        if isinstance(factor, PytreeOperator):
            return NotImplemented
        scalar = _checks.as_array("factor", factor)
        if not (jnp.issubdtype(scalar.dtype, jnp.floating) or jnp.issubdtype(scalar.dtype, jnp.integer)):
            raise TypeError(f"factor: expected a real number, got {scalar.dtype}; pass a float")
        if scalar.shape:
            raise ValueError(f"factor: expected a scalar, got shape {scalar.shape}; use @ for a product with a vector")
        return Multiple(scalar, self)

    __rmul__ = __mul__

    def __neg__(self) -> "PytreeOperator":
        """The operator times −1."""
        return -1.0 * self


@pytree
@dataclasses.dataclass(frozen=True)
class Sum(PytreeOperator):
    """first + second."""

    first: PytreeOperator
    second: PytreeOperator

    def _rows(self) -> Iterable[tuple[str, Any]]:
        return self._fields()

    @property
    def like(self) -> Any:
        """A pytree whose leaves have the shapes and dtypes of the parameters."""
        return self.first.like

    def matvec(self, tree: Any) -> Any:
        """The sum of both products."""
        return jax.tree.map(jnp.add, self.first.matvec(tree), self.second.matvec(tree))

    def products(self, block: Any) -> Any:
        """The sum of both blocks of products."""
        return jax.tree.map(jnp.add, self.first.products(block), self.second.products(block))

    def diagonal(self) -> Any:
        """The sum of both diagonals."""
        return jax.tree.map(jnp.add, self.first.diagonal(), self.second.diagonal())

    def to_dense(self) -> jax.Array:
        """The sum of both matrices."""
        return self.first.to_dense() + self.second.to_dense()


@pytree
@dataclasses.dataclass(frozen=True)
class Multiple(PytreeOperator):
    """factor · operator."""

    factor: jax.Array  # ()
    operator: PytreeOperator

    def _rows(self) -> Iterable[tuple[str, Any]]:
        return self._fields()

    @property
    def like(self) -> Any:
        """A pytree whose leaves have the shapes and dtypes of the parameters."""
        return self.operator.like

    def matvec(self, tree: Any) -> Any:
        """The product, scaled."""
        return jax.tree.map(self._scale, self.operator.matvec(tree))

    def products(self, block: Any) -> Any:
        """The products, scaled."""
        return jax.tree.map(self._scale, self.operator.products(block))

    def diagonal(self) -> Any:
        """The diagonal, scaled."""
        return jax.tree.map(self._scale, self.operator.diagonal())

    def to_dense(self) -> jax.Array:
        """The matrix, scaled."""
        return self._scale(self.operator.to_dense())

    def _scale(self, x: jax.Array) -> jax.Array:
        return x * jnp.asarray(self.factor).astype(x.dtype)


@partial(jax.jit, static_argnames="keep")
def _by_basis(operator: PytreeOperator, keep: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """keep(A e_j, j) for each basis vector e_j, stacked (P, ...)."""

    def of(j: jax.Array) -> jax.Array:
        basis = (jnp.arange(operator.num_params) == j).astype(wide_dtype(operator.like))
        return keep(ravel(operator.matvec(unravel(basis, operator.like))), j)

    return jax.lax.map(of, jnp.arange(operator.num_params), batch_size=COLUMNS_AT_ONCE)


def _entry(column: jax.Array, j: jax.Array) -> jax.Array:
    return column[j]


def _whole(column: jax.Array, _: jax.Array) -> jax.Array:
    return column


def wide_dtype(like: Any) -> jnp.dtype:
    """The dtype to compute in, at least float32."""
    return _checks.compute_dtype(*jax.tree.leaves(like))


def ravel(tree: Any) -> jax.Array:
    """The leaves one after the other, (P,), at least float32."""
    return jnp.concatenate([leaf.ravel().astype(wide_dtype(tree)) for leaf in jax.tree.leaves(tree)])


def unravel(vector: jax.Array, like: Any) -> Any:
    """The inverse of `ravel`."""
    leaves, structure = jax.tree.flatten(like)
    ends = [sum(math.prod(leaf.shape) for leaf in leaves[: i + 1]) for i in range(len(leaves))]
    parts = jnp.split(vector, ends[:-1])
    return jax.tree.unflatten(structure, [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)])


def as_vectors(name: str, tree: Any, like: Any) -> tuple[Any, bool]:
    """`tree` with the dtypes of `like`, and whether it is a block (K, ...) of vectors rather than one."""
    same_structure(name, tree, like)
    leaves, structure = jax.tree.flatten(like)
    vectors, leading = [], None
    for (path, x), leaf in zip(jax.tree_util.tree_leaves_with_path(tree), leaves, strict=True):
        place = f"{name}{jax.tree_util.keystr(path)}"
        x = _checks.as_floating(place, x)
        axes = x.shape[: x.ndim - len(leaf.shape)]
        if x.shape != (*axes, *leaf.shape) or len(axes) > 1 or axes != (axes if leading is None else leading):
            expected = f"{leaf.shape} or (K,) + {leaf.shape}" if leading is None else f"{(*leading, *leaf.shape)}, as the leaves before it"
            raise ValueError(f"{place}: expected shape {expected}, for one vector or a block of K, got {x.shape}; check its axes")
        leading = axes
        vectors.append(x.astype(leaf.dtype))
    return jax.tree.unflatten(structure, vectors), bool(leading)


def same_structure(name: str, tree: Any, like: Any) -> None:
    """Raise unless `tree` is built as the parameters are; a leaf that only one of them has is named."""
    structures: list[Any] = [jax.tree.structure(tree), jax.tree.structure(like)]
    got, expected = structures
    if got != expected:
        paths = [[jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(t)] for t in (tree, like)]
        missing, more = ([f"{name}{path}" for path in a if path not in b] for a, b in (paths[::-1], paths))
        which = f"{missing[0]} is missing" if missing else f"{more[0]} is not among them" if more else f"got {got}, expected {expected}"
        raise ValueError(f"{name}: expected a pytree built as the parameters are; {which}; make it with jax.tree.map over the parameters")


def _same_parameters(like: Any, other: Any) -> None:
    """Raise unless two operators are over the same parameters."""
    same_structure("other", other, like)
    for (path, x), leaf in zip(jax.tree_util.tree_leaves_with_path(other), jax.tree.leaves(like), strict=True):
        if (x.shape, x.dtype) != (leaf.shape, leaf.dtype):
            name = f"other{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name}: expected an operator over leaves {leaf.dtype}{leaf.shape}, got {x.dtype}{x.shape}; use the same parameters for both")
