"""What one reads off a large head besides its loss, in blocks of classes: log-probabilities, entropy, sizes of gradients.

log p_j = z_j − log Σ e^z;   H(p) = −Σ p log p
‖∂ℓ_n/∂(W, b)‖² = ‖r_n‖² (‖e_n‖² + 1),   Gram matrix (R Rᵀ) ∘ (E Eᵀ + 1)      psg-1    r = p − y
diagonal of the GGN in W: Σ_n w_n p_j (1 − p_j) e_d²,   trace Σ_n w_n (1 − ‖p‖²) ‖e‖²      hess-3
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._blocks import begins, block_of, block_size_for, varying_alike
from jaxgrad._display import Displayed
from jaxgrad._exponentials import log1p
from jaxgrad._head_products import HeadVector, Rows, heaviest_of, residuals
from jaxgrad._pytrees import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class HeadLogProbs(Displayed):
    """Of each example (...): log Σ e^z, the entropy, the log-probabilities of the ids asked for, and the k largest with their classes."""

    logsumexp: jax.Array  # (...)
    entropy: jax.Array  # (...)
    of_ids: jax.Array | None  # (..., M)
    top: jax.Array  # (..., k), falling
    top_ids: jax.Array  # (..., k)


def linear_log_probs(
    features: ArrayLike,
    head: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    top_k: int = 1,
    block_size: int | None = None,
) -> HeadLogProbs:
    """Log-probabilities, entropy and log Σ e^z of softmax(W e + b), in nats, in one pass over the head.

    JAX differentiates it, in the memory of a block of logits and some numbers for each block and example.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      bias: b, (C,), floating; −inf masks a class.
      ids: (..., M), integer: M classes of each example whose log-probabilities are wanted; NaN outside [0, C).
      top_k: how many of the largest log-probabilities, at most C.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      A `HeadLogProbs`, at least float32.

    Raises:
      TypeError, ValueError: a dtype or a shape does not fit.
      IndexError: one of `ids` is outside [0, C) and its value is known (outside `jit`).

    Source: Milakov and Gimelshein 2018, arXiv:1805.02867.
    """
    e, w, b = _checks.as_linear_head("features", features, head, bias)
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or not 0 <= top_k <= w.shape[0]:
        raise ValueError(f"top_k: expected an int from 0 to the {w.shape[0]} classes, got {top_k!r}; pass 0 for none")
    wide = _checks.compute_dtype(e, w, *([] if b is None else [b]))
    rows = e.reshape(-1, e.shape[-1]).astype(wide)
    flat = jnp.zeros((rows.shape[0], 0), jnp.int32)
    if ids is not None:
        ids = _checks.as_array("ids", ids)
        if not jnp.issubdtype(ids.dtype, jnp.integer) or ids.shape[:-1] != e.shape[:-1] or ids.ndim != e.ndim:
            raise ValueError(f"ids: expected integers of shape {e.shape[:-1]} + (M,), got {ids.dtype} of shape {ids.shape}; add an axis for one class each")
        _checks.ids_in_range("ids", ids, w.shape[0], None)
        flat = ids.reshape(rows.shape[0], ids.shape[-1])
    valid = (flat >= 0) & (flat < w.shape[0])
    rows, w, b, flat = varying_alike((rows, w, b, jnp.where(valid, flat, 0).astype(jnp.int32)))
    size, lowest = block_size_for(rows.shape[0], w.shape[0], block_size), jnp.finfo(wide).min

    def add(carry: Any, begin: jax.Array) -> tuple[Any, None]:
        shift, rest, inner, of_ids, best, best_ids = carry  # rest = Σ e^{z − shift} − 1, which does not round to 0
        block = block_of(rows, w, b, begin, size)
        z = block.logits if block.new is None else jnp.where(block.new, block.logits, -jnp.inf)
        new_shift = lax.stop_gradient(jnp.maximum(shift, z.max(-1)))  # it cancels, and JAX's derivative of it is wrong at ties
        finite = jnp.where(new_shift == -jnp.inf, 0, new_shift)
        below, scale, counted = z - finite[:, None], jnp.exp(shift - finite), jnp.where(shift == -jnp.inf, 0, 1 + rest)
        exps = jnp.exp(below)
        ties = (below == 0).sum(-1, dtype=wide)
        rest = jnp.where(shift == new_shift, rest + ties, counted * scale + (ties - 1)) + jnp.where(below == 0, jnp.expm1(below), exps).sum(-1)
        inner = scale * (inner + jnp.where(counted == 0, 0, (shift - finite) * counted)) + (exps * jnp.where(exps == 0, 0, below)).sum(-1)
        ranked = jnp.maximum(block.logits, lowest)  # masked classes come before none at all
        largest, at = lax.top_k(ranked if block.new is None else jnp.where(block.new, ranked, -jnp.inf), min(top_k, size))
        best, order = lax.top_k(jnp.concatenate([best, largest], axis=-1), top_k)
        best_ids = jnp.take_along_axis(jnp.concatenate([best_ids, block.start + at], axis=-1), order, axis=-1)
        return (new_shift, rest, inner, of_ids + block.logits_of(flat, begin), best, best_ids), None

    zero, nothing = jnp.zeros_like(rows, shape=rows.shape[:1]), jnp.zeros_like(rows, shape=(rows.shape[0], top_k))
    start = zero - jnp.inf, zero, zero, jnp.zeros_like(flat, dtype=wide), nothing - jnp.inf, nothing.astype(jnp.int32)
    (shift, rest, inner, of_ids, best, best_ids), _ = lax.scan(jax.checkpoint(add, prevent_cse=False), start, begins(w.shape[0], size))
    log_sum = log1p(rest)
    log_probs = lambda z: (z - shift[:, None]) - log_sum[:, None]  # of the largest it is −log_sum, which shift + log_sum has lost
    lead = e.shape[:-1]
    return HeadLogProbs(
        (shift + log_sum).reshape(lead),
        (log_sum - inner / (1 + rest)).reshape(lead),
        None if ids is None else jnp.where(valid, log_probs(of_ids), jnp.nan).reshape(ids.shape),
        log_probs(jnp.where(best == lowest, -jnp.inf, best)).reshape(*lead, top_k),
        best_ids.reshape(*lead, top_k),
    )


class _Probabilities(NamedTuple):
    """Those of a block of classes from `start` on, (B, N); 0 where a class was counted in the block before."""

    start: jax.Array
    probs: jax.Array  # p
    complement: jax.Array  # 1 − p
    residual: jax.Array  # p Σy − y


def _fold(rows: Rows, step: Callable[[jax.Array, _Probabilities], jax.Array], start: jax.Array) -> jax.Array:
    """step(… step(start, first block) …, last block)."""
    rows, start = varying_alike((rows, start))
    softmax = heaviest_of(rows)
    _, residual_of = residuals(rows, softmax)
    valid = jnp.where(jnp.isnan(rows.weights), jnp.nan, jnp.ones_like(rows.weights))[None]

    def add(total: jax.Array, begin: jax.Array) -> tuple[jax.Array, None]:
        block = block_of(rows.features.T, rows.head, rows.bias, begin, rows.size, axis=0)
        probs = softmax.probs(block) * valid
        complement = jnp.where(block.at(softmax.label), block.each(softmax.rest * softmax.share), 1 - probs)
        return step(total, _Probabilities(block.start, probs, complement, residual_of(block, probs) * valid)), None

    return lax.scan(add, start, begins(rows.head.shape[0], rows.size))[0]


def linear_cross_entropy_grad_norms(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """The norm of the gradient of each loss in the head, and in the bias if there is one: ‖p − y‖ √(‖e‖² + 1) (psg-1).

    It is the root of a sum of squares: in float32 what is below about 1e-19 underflows to 0.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...) or distributions (..., C), read in blocks.
      bias: b, (C,), floating; −inf masks a class. Without one it is ‖p − y‖ ‖e‖.
      where: (...), boolean; an example where it is False has norm 0, and is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      (...), at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Goodfellow 2015, arXiv:1510.01799.
    """
    rows, keep = _rows_where(features, head, targets, bias, where, block_size)
    squares = _fold(rows, lambda total, at: total + (at.residual**2).sum(0), jnp.zeros_like(rows.weights))
    norms = jnp.sqrt(squares * ((rows.features**2).sum(-1) + (0 if bias is None else 1)))
    return jnp.where(keep, norms, 0).reshape(jnp.shape(features)[:-1])


def linear_cross_entropy_grad_gram(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """The inner products of the gradients of the losses in head and bias, ((p − y)(p − y)ᵀ) ∘ (e eᵀ + 1) (psg-1).

    Args:
      features: e, (..., d), floating; its leading axes become one, of N examples.
      head: W, (C, d), floating.
      targets: class ids (...) or distributions (..., C), read in blocks.
      bias: b, (C,), floating; −inf masks a class. Without one the + 1 is left out.
      where: (...), boolean; an example where it is False has gradient 0, and is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      (N, N), at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Goodfellow 2015, arXiv:1510.01799.
    """
    rows, keep = _rows_where(features, head, targets, bias, where, block_size)
    num_rows = rows.features.shape[0]
    residuals = _fold(rows, lambda total, at: total + at.residual.T @ at.residual, jnp.zeros((num_rows, num_rows), rows.features.dtype))
    return jnp.where(keep[:, None] & keep[None], residuals * (rows.features @ rows.features.T + (0 if bias is None else 1)), 0)


def _rows_where(
    features: ArrayLike, head: ArrayLike, targets: ArrayLike, bias: ArrayLike | None, where: ArrayLike | None, block_size: int | None
) -> tuple[Rows, jax.Array]:
    """The batch as rows, and which of them count, (N,); the class id of one that does not is not looked at."""
    if where is None:
        rows = Rows.of(features, head, targets, bias, None, block_size)
        return rows, jnp.ones_like(rows.label, dtype=bool)
    keep = _checks.as_mask("where", where, jnp.shape(features)[:-1])
    return Rows.of(features, head, targets, bias, keep.astype(jnp.float32), block_size), keep.reshape(-1)


def linear_cross_entropy_ggn_diagonal(
    features: ArrayLike,
    head: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
) -> HeadVector:
    """The diagonal of the Gauss–Newton matrix of Σ_n w_n ℓ_n in head and bias, Σ_n w_n p_j (1 − p_j) e_d² (hess-3).

    It is also that of the Hessian and of the Fisher information; its sum is the trace, Σ_n w_n (1 − ‖p_n‖²)(‖e_n‖² + 1).

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      targets: class ids (...) or distributions (..., C), of which only the sums enter.
      bias: b, (C,), floating; −inf masks a class.
      weights: w, (...), floating; 1/N for each of the N examples by default.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      A `HeadVector` of head (C, d), and bias (C,) if there is one, at least float32.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Böhning 1992, doi:10.1007/BF00048682.
    """
    rows = Rows.of(features, head, targets, bias, weights, block_size)
    scale = rows.weights * (1 if rows.targets.ndim == 1 else rows.targets.sum(-1, dtype=rows.weights.dtype))
    ones = jnp.ones_like(scale)[:, None]
    squares = rows.features**2 if bias is None else jnp.concatenate([rows.features**2, ones], axis=-1)

    def add(total: jax.Array, at: _Probabilities) -> jax.Array:
        before = lax.dynamic_slice_in_dim(total, at.start, rows.size)
        return lax.dynamic_update_slice_in_dim(total, before + (scale[None] * at.probs * at.complement) @ squares, at.start, axis=0)

    diagonal = _fold(rows, add, jnp.zeros((rows.head.shape[0], squares.shape[1]), squares.dtype))
    width = rows.features.shape[1]
    return HeadVector(head=diagonal[:, :width], bias=None if bias is None else diagonal[:, width])
