"""A linear head over a large vocabulary against K classes of each example, in blocks of classes, and log Σ e^z of it.

    z = W e + b;   t = log Σ_{j≠k} e^{z_j} − z_k
    H(y, p)  = y_k softplus(t) + Σ_{i≠k} y_i (log Σ e^z − z_i)      ce-1    k the class with the largest y
    KL(y‖p)  = H(y, p) + Σ_i y_i log y_i                            kl-5
    log Σ e^z = log(e^{log Σ_{j≠k} e^{z_j}} + e^{z_k})                       for any k

A block of logits gives its part of the sum, and the logits of those of the K classes that are in it. JAX differentiates all
but these two: their derivative is that of a block, with the normaliser held, added up.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._blocks import Moving, begins, block_of, block_size_for, block_sums, exps_beside, finite, varying_alike

Arrays = tuple[Any, ...]


def linear_sparse_cross_entropy(
    features: ArrayLike,
    head: ArrayLike,
    ids: ArrayLike,
    probs: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """Cross-entropy −Σ_i y_i log softmax(W e + b)_{c_i} against K classes c of each example with weights y, in nats (ce-1).

    It is `linear_cross_entropy` against the distribution that is y_i at class c_i and 0 elsewhere, say the largest
    probabilities of a teacher: without arrays (..., C) and with its accuracy on confident examples, in every order of
    differentiation in features, head, bias and probs. The y_i of a class that comes twice add up; they need not sum to 1.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      ids: c, (..., K), integer.
      probs: y, (..., K), floating, not negative; 0 for what only fills the K places, whose id may be any class.
      bias: b, (C,), floating; −inf masks a class.
      where: (...), boolean; an example where it is False has loss and derivatives 0, and is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      loss: (...), at least float32, in which everything is computed.

    Raises:
      TypeError: a dtype is none of these.
      ValueError: a shape is none of these; nothing broadcasts.
      IndexError: an id is outside [0, C) and its value is known; under `jit` it makes loss and derivatives NaN.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; Wijmans et al. 2024, arXiv:2411.09009.
    """
    return _checked(features, head, ids, probs, bias, where, block_size, less_entropy=False)


def linear_sparse_forward_kl(
    features: ArrayLike,
    head: ArrayLike,
    ids: ArrayLike,
    probs: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """KL(y‖softmax(W e + b)) = Σ_i y_i log(y_i/p_{c_i}) of K classes c of each example with weights y, in nats (kl-5).

    It is `linear_sparse_cross_entropy` less the entropy of y, as `forward_kl` is of `cross_entropy`: derivatives in
    features, head and bias are the same. It is as written for y of any sum: where y is what is left of a distribution,
    −log Σy is the least it can be. A y_i = 0 costs nothing, and has derivative 0.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      ids, probs, bias, where, block_size: as in `linear_sparse_cross_entropy`.

    Returns:
      (...), at least float32, in which everything is computed.

    Raises:
      TypeError, ValueError, IndexError: as `linear_sparse_cross_entropy`.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    return _checked(features, head, ids, probs, bias, where, block_size, less_entropy=True)


def linear_logsumexp(
    features: ArrayLike, head: ArrayLike, *, bias: ArrayLike | None = None, where: ArrayLike | None = None, block_size: int | None = None
) -> jax.Array:
    """log Σ_j e^{z_j} of the logits z = W e + b, one value for each example, in nats, without the logits (..., C).

    Its square is the z-loss, which keeps logits small: add 1e-4 · `linear_logsumexp(features, head) ** 2` to a loss.
    Derivatives of every order, forward and reverse, in features, head and bias.

    Args:
      features: e, (..., d), floating.
      head: W, (C, d), floating.
      bias: b, (C,), floating; −inf masks a class.
      where: (...), boolean; an example where it is False has value and derivatives 0, and is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      (...), at least float32, in which everything is computed.

    Raises:
      TypeError, ValueError: a dtype or a shape does not fit.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906.
    """
    e, w, b = _checks.as_linear_head("features", features, head, bias)
    rows, keep = _rows(e, w, b, where)
    class_0 = jnp.zeros_like(rows.sum(-1, keepdims=True), dtype=jnp.int32)  # sharded as the examples are
    log_others, z = _sums(block_size_for(rows.shape[0], w.shape[0], block_size), *varying_alike(((rows, w, b), class_0[:, 0], class_0)))
    return _unless_left_out(jnp.logaddexp(log_others, z[:, 0]), keep).reshape(e.shape[:-1])


def _rows(e: jax.Array, w: jax.Array, b: jax.Array | None, where: ArrayLike | None, *others: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The features as rows (N, d) of the dtype to compute in, 0 where an example is left out, and which are not, (N,)."""
    keep = None if where is None else _checks.as_mask("where", where, e.shape[:-1]).reshape(-1)
    wide = _checks.compute_dtype(*(x for x in (e, w, b, *others) if x is not None))
    e = e.reshape(math.prod(e.shape[:-1]), e.shape[-1]).astype(wide)
    return e if keep is None else jnp.where(keep[:, None], e, 0), keep


def _unless_left_out(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    return x if keep is None else jnp.where(keep, x, 0)


def _checked(
    features: ArrayLike,
    head: ArrayLike,
    ids: ArrayLike,
    probs: ArrayLike,
    bias: ArrayLike | None,
    where: ArrayLike | None,
    block_size: int | None,
    *,
    less_entropy: bool,
) -> jax.Array:
    e, w, b = _checks.as_linear_head("features", features, head, bias)
    lead, num_classes = e.shape[:-1], w.shape[0]
    c, y = _checks.as_array("ids", ids), _checks.as_floating("probs", probs)
    if not jnp.issubdtype(c.dtype, jnp.integer) or c.shape[:-1] != lead or c.ndim != e.ndim or c.shape[-1] == 0:
        raise ValueError(f"ids: expected integers of shape {lead} + (K,), K >= 1, got {c.dtype} of shape {c.shape}; add an axis for one class each")
    _checks.same_shape("probs", y, c.shape, "one for each of ids")
    rows, keep = _rows(e, w, b, where, y)
    _checks.ids_in_range("ids", c, num_classes, None if keep is None else keep.reshape(*lead, 1))
    c, y = c.reshape(-1, c.shape[-1]), y.reshape(-1, c.shape[-1]).astype(rows.dtype)
    if keep is not None:
        c, y = jnp.where(keep[:, None], c, 0), jnp.where(keep[:, None], y, 0)
    valid = (c >= 0) & (c < num_classes)
    c = jnp.where(valid, c, 0).astype(jnp.int32)
    loss = _loss(block_size_for(rows.shape[0], num_classes, block_size), (rows, w, b), c, y, less_entropy=less_entropy)
    return _unless_left_out(loss * jnp.where(valid.all(-1), jnp.ones((), loss.dtype), jnp.nan), keep).reshape(lead)


def _loss(size: int, arrays: Arrays, ids: jax.Array, y: jax.Array, *, less_entropy: bool) -> jax.Array:
    """The loss, (N,), of ids in [0, C) and y, (N, K) each."""
    of_class = jnp.where(ids[:, :, None] == ids[:, None, :], y[:, None, :], 0).sum(-1)  # the sum of the y of each id's class
    if less_entropy:
        y = jnp.where(of_class == 0, 0, y)
    heaviest = lax.stop_gradient(of_class).argmax(-1)[:, None]
    k = jnp.take_along_axis(ids, heaviest, axis=-1)
    log_others, z = _sums(size, *varying_alike((arrays, k[:, 0], ids)))
    z_k = jnp.take_along_axis(z, heaviest, axis=-1)[:, 0]
    left_out = (ids == k) | ((z == -jnp.inf) & (y == 0))  # 0 · log 0 = 0, and no derivative in y
    beside = (jnp.where(left_out, 0, y) * (jnp.logaddexp(log_others, z_k)[:, None] - jnp.where(left_out, 0, z))).sum(-1)
    weight = jnp.where(ids == k, y, 0).sum(-1)
    of_k = jnp.where((z_k == -jnp.inf) & (weight == 0), 0, jax.nn.softplus(log_others - z_k))  # all y are 0
    loss = weight * of_k + beside
    return loss + (y * jnp.log(jnp.where(of_class == 0, 1, of_class))).sum(-1) if less_entropy else loss


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, inline=True, static_argnums=0)
def _sums(size: int, arrays: Arrays, k: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log Σ_{j≠k} e^{z_j}, (N,), and z of the ids, (N, K), for arrays e (N, d), W (C, d), b (C,) or None, in one pass over the head."""
    e, w, b = arrays

    def add(carry: Arrays, begin: jax.Array) -> tuple[Arrays, None]:
        top, total, of_ids = carry
        block = block_of(e, w, b, begin, size)
        new_top = jnp.maximum(top, jnp.where(block.beside(k), block.logits, -jnp.inf).max(-1))
        total = total * jnp.exp(top - finite(new_top)) + exps_beside(block, k, new_top).sum(-1)
        return (new_top, total, of_ids + block.logits_of(ids, begin)), None

    zero = jnp.zeros_like(k, dtype=e.dtype)
    (top, total, of_ids), _ = lax.scan(add, (zero - jnp.inf, zero, jnp.zeros_like(ids, dtype=e.dtype)), begins(w.shape[0], size))
    return top + jnp.log(total), of_ids


@partial(_sums.defjvp, symbolic_zeros=True)
def _(size: int, primals: Arrays, tangents: Arrays) -> tuple[Arrays, Arrays]:
    arrays, k, ids = primals
    sums, moving = _sums(size, *primals), Moving.of(tangents[0])

    def derivative(arrays: Arrays, along: list[jax.Array], log_others: jax.Array, begin: jax.Array) -> Arrays:
        def of_block(e: jax.Array, w: jax.Array, b: jax.Array | None) -> Arrays:
            block = block_of(e, w, b, begin, size)
            return (exps_beside(block, k, log_others).sum(-1), block.logits_of(ids, begin)), None

        return moving.jvp(of_block, arrays, along)[1]

    return sums, block_sums(derivative, arrays[1].shape[0], size, jax.tree.map(jnp.zeros_like, sums), arrays, moving.along(tangents[0]), sums[0])
