"""Curvature of a whole data set as a sum over batches: the same numbers however the examples are split.

    A = Σ_n w_n A_n = Σ_batches operator_fn(params, batch, w of the batch)

The weights go with the examples, 1/N each unless they are given, so that a ragged last batch, padding of weight 0,
micro-batches and device shards change nothing but rounding. A mean over each batch would.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._pytree_operators import PytreeOperator, ravel, unravel, wide_dtype
from jaxgrad._pytrees import pytree

OperatorFn = Callable[[Any, Any, jax.Array], PytreeOperator]
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def batched_curvature(operator_fn: OperatorFn, params: Any, data: Any, *, batch_size: int, weights: ArrayLike | None = None) -> PytreeOperator:
    """Σ_n w_n A_n over arrays, `batch_size` examples at a time, as an operator on trees of leaves (...).

    A product is one compiled scan over the batches, in the memory of one of them; what is left of N goes through at its
    own size, with no padding. Products with other params and data of the same shapes do not compile again, as long as
    `operator_fn` is the same function.

    Args:
      operator_fn: maps (params, batch, weights of the batch) to the operator Σ_n w_n A_n over the batch, such as
        `lambda params, batch, w: jg.fisher(lambda p: model(p, batch), params, weights=w)`. It must use the weights.
      params: θ, a pytree of floating arrays.
      data: a pytree of arrays (N, ...), the examples first.
      batch_size: examples at a time.
      weights: w, (N, ...), floating, as `operator_fn` takes them; (N,) of 1/N by default.

    Returns:
      A `PytreeOperator`, a frozen pytree that goes in and out of `jit`.

    Raises:
      TypeError: the weights are not of a real floating dtype.
      ValueError: the arrays do not agree in N, `batch_size` is not positive, or `operator_fn` does not use its weights.
    """
    size = _num_examples("data", data)
    batch_size = _checks.at_least_one("batch_size", batch_size, "example at a time")
    params, data = jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, data)
    if weights is None:
        w = jnp.full(size, 1 / size, wide_dtype(params))
    else:
        w = _checks.as_floating("weights", weights)
        if w.shape[:1] != (size,):
            raise ValueError(f"weights: expected shape ({size}, ...), the examples first, got {w.shape}; give one weight for each example")
    batch_size = min(batch_size, size)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), (data, w))
    _refuse_unweighted(operator_fn, params, *first)
    return _Batched(operator_fn, batch_size, params, data, w)


def streamed_curvature(
    operator_fn: OperatorFn,
    params: Any,
    batches: Iterable[Any],
    *,
    weights_fn: Callable[[Any], ArrayLike] | None = None,
    progress: Progress | None = None,
) -> PytreeOperator:
    """Σ_n w_n A_n over any iterable of batches, read once for each product, as an operator on trees of leaves (...).

    For data that do not fit in memory. The loop is Python, so that a product cannot run under `jit`; a block of K vectors
    reads the data once. Each shape of batch compiles once.

    Args:
      operator_fn: as in `batched_curvature`.
      params: θ, a pytree of floating arrays.
      batches: pytrees of arrays (n, ...), n may differ; a list or a data loader, not a generator: it is read again and again.
      weights_fn: maps a batch to the weights of its examples, (n, ...), taken as they are: give 0 to padding. Without it
        each example of all N counts 1/N.
      progress: wraps the batches of each pass to show that it is under way, such as `rich.progress.track` or `tqdm.tqdm`.

    Returns:
      A `PytreeOperator` for use outside `jit`.

    Raises:
      TypeError: `batches` can be read only once, or a product is traced.
      ValueError: there is no batch, or `operator_fn` does not use its weights.
    """
    if iter(batches) is batches:
        raise TypeError(f"batches: expected an iterable that can be read again for each product, got a {type(batches).__name__}; pass a list or a data loader")
    return _Streamed(operator_fn, jax.tree.map(jnp.asarray, params), batches, weights_fn, progress)


@pytree
@dataclasses.dataclass(frozen=True)
class _Batched(PytreeOperator):
    """The sum over slices of the data, scanned."""

    operator_fn: OperatorFn = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    params: Any
    data: Any
    weights: jax.Array

    @property
    def like(self) -> Any:
        """The parameters."""
        return self.params

    def matvec(self, tree: Any) -> Any:
        """The product with one tree, batch by batch."""
        return _scan(self, tree)


@jax.jit
def _scan(operator: _Batched, tree: Any) -> Any:
    examples = (operator.data, operator.weights)
    count, rest = divmod(operator.weights.shape[0], operator.batch_size)

    def add(total: Any, start: jax.Array | int, size: int) -> Any:
        batch, w = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), examples)
        return _add(operator.operator_fn(operator.params, batch, w).matvec(tree), total)

    total, _ = jax.lax.scan(lambda total, i: (add(total, i * operator.batch_size, operator.batch_size), None), _zeros(tree), jnp.arange(count))
    total = add(total, count * operator.batch_size, rest) if rest else total
    return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), total, tree)


@dataclasses.dataclass(frozen=True, eq=False)
class _Streamed(PytreeOperator):
    """The sum over the batches of an iterable, one after the other."""

    operator_fn: OperatorFn
    params: Any
    batches: Iterable[Any]
    weights_fn: Callable[[Any], ArrayLike] | None
    progress: Progress | None

    @property
    def like(self) -> Any:
        """The parameters."""
        return self.params

    def matvec(self, tree: Any) -> Any:
        """The product with one tree, in one pass over the batches."""
        return jax.tree.map(lambda x: x[0], self.products(jax.tree.map(lambda x: x[None], tree)))

    def products(self, block: Any) -> Any:
        """The products with a block (K, ...) of trees, in one pass over the batches."""
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(block)):
            raise TypeError("other: a product over an iterable cannot run under jit; use it outside, or hold the data in arrays: batched_curvature")
        total, count = _zeros(block), 0
        for batch in self.batches if self.progress is None else self.progress(self.batches):
            size = _num_examples("batches", batch)
            w = jnp.ones(size, wide_dtype(self.params)) if self.weights_fn is None else _checks.as_floating("weights_fn(batch)", self.weights_fn(batch))
            if not count:
                _refuse_unweighted(self.operator_fn, self.params, batch, w)
            total, count = _add_batch(self.operator_fn, self.params, batch, w, block, total), count + size
        if not count:
            raise ValueError("batches: expected at least one batch with an example, got none; is the iterable exhausted?")
        mean = 1 / count if self.weights_fn is None else 1.0
        return jax.tree.map(lambda x, leaf: (x * mean).astype(leaf.dtype), total, block)

    def to_dense(self) -> jax.Array:
        """The matrix (P, P), in one pass over the batches with P vectors."""
        basis = jax.vmap(lambda e: unravel(e, self.params))(jnp.eye(self.num_params, dtype=wide_dtype(self.params)))
        return jax.vmap(ravel)(self.products(basis))

    def diagonal(self) -> Any:
        """The exact diagonal, by the matrix."""
        return unravel(jnp.diagonal(self.to_dense()), self.params)


@partial(jax.jit, static_argnums=0)
def _add_batch(operator_fn: OperatorFn, params: Any, batch: Any, w: jax.Array, block: Any, total: Any) -> Any:
    return _add(operator_fn(params, batch, w).products(block), total)


def _zeros(tree: Any) -> Any:
    """Where to sum: at least float32."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, _checks.compute_dtype(x)), tree)


def _add(product: Any, total: Any) -> Any:
    return jax.tree.map(lambda x, t: t + x.astype(t.dtype), product, total)


def _num_examples(name: str, data: Any) -> int:
    """N, the size of the leading axis of every array."""
    sizes = {jax.tree_util.keystr(path): jnp.shape(x)[:1] for path, x in jax.tree_util.tree_leaves_with_path(data)}
    if not sizes or len(set(sizes.values())) > 1 or () in sizes.values() or (0,) in sizes.values():
        got = ", ".join(f"{name}{path}: {size[0] if size else 'a scalar'}" for path, size in sizes.items())
        raise ValueError(f"{name}: expected arrays (N, ...) with the same N >= 1 examples first, got {got or 'no array'}; check the leading axes")
    return next(iter(sizes.values()))[0]


def _refuse_unweighted(operator_fn: OperatorFn, params: Any, batch: Any, w: Any) -> None:
    """Raise if the products do not depend on the weights: sums over batches would not be Σ w_n A_n."""
    closed = jax.make_jaxpr(lambda w, params, batch: operator_fn(params, batch, w).matvec(params))(w, params, batch)
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    if not used[0]:
        raise ValueError(
            "operator_fn: expected an operator that is Σ w_n A_n over its batch, got one that does not use the weights; "
            "a mean over each batch would count the examples of a smaller batch more: pass weights=w, or write (w * losses).sum()"
        )
