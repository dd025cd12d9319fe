"""Structured linear operators: products, diagonal, trace and the dense matrix, without storing the matrix.

An operator is a frozen pytree, batched over leading axes: it stands for matrices (..., C, C).
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._display import Displayed
from jaxgrad._pytrees import pytree


class LinearOperator(Displayed, abc.ABC):
    """A batch of square matrices (..., C, C) of which only the structure is stored."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(..., C, C)."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """The dtype of what comes back."""

    @abc.abstractmethod
    def matvec(self, vector: jax.Array) -> jax.Array:
        """The product with one vector (..., C) for each matrix."""

    @abc.abstractmethod
    def diagonal(self) -> jax.Array:
        """The diagonals (..., C)."""

    @abc.abstractmethod
    def trace(self) -> jax.Array:
        """The traces (...)."""

    @abc.abstractmethod
    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C)."""

    @property
    @abc.abstractmethod
    def T(self) -> "LinearOperator":
        """The transpose."""

    def _rows(self) -> Iterable[tuple[str, Any]]:
        return [("shape", self.shape), *self._fields()]

    def __matmul__(self, other: jax.Array) -> jax.Array:
        """The product with vectors (..., C), or with blocks (..., C, K) of K column vectors each.

        Raises:
          TypeError: `other` is not of a real floating dtype.
          ValueError: its shape is neither.
        """
        return self.by_columns("other", self.matvec, other)

    def by_columns(self, name: str, function: Callable[[jax.Array], jax.Array], x: ArrayLike) -> jax.Array:
        """`function` of vectors (..., C), or of each column of blocks (..., C, K)."""
        x = _checks.as_floating(name, x)
        if x.shape == self.shape[:-1]:
            return function(x)
        if x.ndim == len(self.shape) and x.shape[:-1] == self.shape[:-1]:
            return jax.vmap(function, in_axes=-1, out_axes=-1)(x)
        raise ValueError(
            f"{name}: expected vectors {self.shape[:-1]} or blocks {self.shape[:-1]} + (K,) for matrices {self.shape}, got {x.shape}; check its axes"
        )


class SymmetricOperator(LinearOperator):
    """A batch of symmetric matrices (..., C, C), dense symmetric to the bit."""

    @property
    def T(self) -> "SymmetricOperator":
        """The transpose: the operator itself."""
        return self


@pytree
@dataclasses.dataclass(frozen=True)
class Diagonal(SymmetricOperator):
    """diag(values): `values` (..., C) holds the diagonals as computed, at least float32; results come in `result_dtype`."""

    values: jax.Array
    result_dtype: jnp.dtype = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., C, C)."""
        return (*self.values.shape, self.values.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which everything with a class axis comes back."""
        return self.result_dtype

    def matvec(self, vector: jax.Array) -> jax.Array:
        """values ∘ vector, (..., C).

        Raises:
          TypeError: `vector` is not of a real floating dtype.
          ValueError: its shape is not that of the values.
        """
        vector = _checks.as_floating("vector", vector)
        _checks.same_shape("vector", vector, self.values.shape, "one vector for each matrix")
        return (self.values * vector.astype(self.values.dtype)).astype(self.dtype)

    def diagonal(self) -> jax.Array:
        """The values, (..., C)."""
        return self.values.astype(self.dtype)

    def trace(self) -> jax.Array:
        """The sum of the values, (...), at least float32."""
        return self.values.sum(-1)

    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C)."""
        eye = jnp.eye(self.values.shape[-1], dtype=bool)
        return jnp.where(eye, self.values[..., None], 0).astype(self.dtype)


@pytree
@dataclasses.dataclass(frozen=True)
class PairHessian(Displayed):
    """The Hessian of a function of two arguments (..., C) each, in blocks (..., C, C): [[first, mixed], [mixedᵀ, second]]."""

    first: LinearOperator
    mixed: LinearOperator
    second: LinearOperator

    def matvec(self, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The product with a pair of vectors, (..., C) each."""
        return self.first @ first + self.mixed @ second, self.mixed.T @ first + self.second @ second

    def to_dense(self) -> jax.Array:
        """The matrices (..., 2C, 2C), symmetric to the bit."""
        mixed = self.mixed.to_dense()
        upper = jnp.concatenate([self.first.to_dense(), mixed], axis=-1)
        return jnp.concatenate([upper, jnp.concatenate([mixed.swapaxes(-1, -2), self.second.to_dense()], axis=-1)], axis=-2)
