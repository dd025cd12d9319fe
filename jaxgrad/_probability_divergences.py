"""Kullback–Leibler divergence of non-negative vectors, beside its derivatives.

    kl_divergence_probs(p, q)       = Σ p log(p/q)            kl-1    ∂/∂p = log(p/q) + 1    ∂/∂q = −p/q
    generalized_kl_divergence(p, q) = Σ p log(p/q) − p + q            ∂/∂p = log(p/q)        ∂/∂q = 1 − p/q

As written, from these numbers: rounded probabilities do not sum to 1, and where p and q are near Σp − Σq is what counts.
So the first is the second, which is never negative, and Σp − Σq added up exactly.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._bregman import exact_sum, relative_entropy_excess
from jaxgrad._divergences import of_arguments, unless_masked
from jaxgrad._exponentials import UNIT, log1p
from jaxgrad._linear import Arrays, limit_product, unless_zero
from jaxgrad._operators import Diagonal, PairHessian


def kl_divergence_probs(p: ArrayLike, q: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Σ_k p_k log(p_k/q_k) of non-negative vectors as they are, one value for each row, in nats (kl-1).

    If they sum to the same it is KL(P‖Q), and not negative; rounded probabilities do not quite. 0 · log 0 is 0, and p_k > 0
    = q_k makes it +inf (kl-4). On a backend that flushes subnormal numbers they are 0: `kl_divergence` takes logits.

    Args:
      p, q: (..., C), floating, not negative; they need not sum to 1.
      where: (...), boolean; a row where it is False has divergence and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32.

    Raises:
      TypeError: a dtype is none of these.
      ValueError: the shapes differ (nothing broadcasts), or there is no class.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    p, q, where, _ = _vectors(p, q, where)
    return unless_masked(_divergence(p, q), where)


def kl_divergence_probs_grad(
    p: ArrayLike, q: ArrayLike, *, where: ArrayLike | None = None, argnums: int | Sequence[int] = (0, 1)
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `kl_divergence_probs`: log(p/q) + 1 in p, and −p/q in q; both 0 where p_k = 0.

    Args:
      p, q, where: as in `kl_divergence_probs`.
      argnums: which of the two, as in `jax.grad`: a number for one array, a sequence for a tuple.

    Returns:
      For each, (..., C), in its dtype; computed in at least float32.

    Raises:
      TypeError, ValueError: as `kl_divergence_probs`.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.
    """
    p, q, where, dtypes = _vectors(p, q, where)
    gradients = [lambda: jnp.where(p == 0, 0, _log_ratio(p, q) + 1), lambda: minus_ratio(p, q)]
    return of_arguments(gradients, argnums, dtypes, where)


def kl_divergence_probs_hessian(p: ArrayLike, q: ArrayLike, *, where: ArrayLike | None = None) -> PairHessian:
    """Hessian of `kl_divergence_probs` and of `generalized_kl_divergence`: diag(1/p), −diag(1/q), diag(p/q²); 0 where p_k = 0.

    Args:
      p, q, where: as in `kl_divergence_probs`.

    Returns:
      A `PairHessian` of diagonal operators (..., C, C), in the wider of the dtypes.

    Raises:
      TypeError, ValueError: as `kl_divergence_probs`.

    Source: Amari 2016, doi:10.1007/978-4-431-55978-8.
    """
    p, q, where, dtypes = _vectors(p, q, where)
    blocks = (1 / p, -1 / q, _over_square(p, q))
    return PairHessian(*(Diagonal(unless_masked(jnp.where(p == 0, 0, block), where), _checks.wider_dtype(*dtypes)) for block in blocks))


def generalized_kl_divergence(p: ArrayLike, q: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Σ_k (p_k log(p_k/q_k) − p_k + q_k) of non-negative vectors, one value for each row, in nats: never negative, 0 only for p = q.

    Args:
      p, q: (..., C), floating, not negative, of any sum.
      where: (...), boolean; a row where it is False has divergence and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32.

    Raises:
      TypeError, ValueError: as `kl_divergence_probs`.

    Source: Csiszár 1991, doi:10.1214/aos/1176348385.
    """
    p, q, where, _ = _vectors(p, q, where)
    return unless_masked(_generalized(p, q), where)


def generalized_kl_divergence_grad(
    p: ArrayLike, q: ArrayLike, *, where: ArrayLike | None = None, argnums: int | Sequence[int] = (0, 1)
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `generalized_kl_divergence`: log(p/q) in p, 0 where p_k = 0, and 1 − p/q in q, 0 where both are 0.

    Args:
      p, q, where: as in `generalized_kl_divergence`.
      argnums: which of the two, as in `jax.grad`.

    Returns:
      For each, (..., C), in its dtype; computed in at least float32.

    Raises:
      TypeError, ValueError: as `kl_divergence_probs`.

    Source: Csiszár 1991, doi:10.1214/aos/1176348385.
    """
    p, q, where, dtypes = _vectors(p, q, where)
    gradients = [lambda: jnp.where(p == 0, 0, _log_ratio(p, q)), lambda: _oneminus_ratio(p, q)]
    return of_arguments(gradients, argnums, dtypes, where)


def generalized_kl_divergence_hessian(p: ArrayLike, q: ArrayLike, *, where: ArrayLike | None = None) -> PairHessian:
    """Hessian of `generalized_kl_divergence`, that of `kl_divergence_probs`: they differ by a linear function.

    Args:
      p, q, where: as in `generalized_kl_divergence`.

    Returns:
      A `PairHessian` of diagonal operators (..., C, C), in the wider of the dtypes.

    Raises:
      TypeError, ValueError: as `kl_divergence_probs`.

    Source: Csiszár 1991, doi:10.1214/aos/1176348385.
    """
    return kl_divergence_probs_hessian(p, q, where=where)


def _vectors(p: ArrayLike, q: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple[jnp.dtype, jnp.dtype]]:
    """Checked vectors in the dtype to compute in, 0 where masked, and their dtypes."""
    p, q = _checks.as_logits("p", p), _checks.as_logits("q", q)
    _checks.same_shape("q", q, p.shape, "the shape of p")
    dtypes, wide = (p.dtype, q.dtype), _checks.compute_dtype(p, q)
    p, q = p.astype(wide), q.astype(wide)
    if where is not None:
        where = _checks.as_mask("where", where, p.shape[:-1])
        p, q = jnp.where(where[..., None], p, 0), jnp.where(where[..., None], q, 0)
    return p, q, where, dtypes


# The functions below take arrays (..., C) of the dtype to compute in.


def _scale(p: jax.Array, q: jax.Array) -> jax.Array:
    """UNIT for rows of probabilities, whose parts then count before they underflow, and 1 for larger numbers, (..., 1)."""
    return jnp.where(jnp.maximum(p, q).max(-1, keepdims=True) <= 2, UNIT, 1.0)


def _far_log_ratio(p: jax.Array, q: jax.Array) -> jax.Array:
    """log(p/q), also where the quotient leaves the range of the dtype."""
    ratio = p / q
    info = jnp.finfo(p.dtype)
    return jnp.where((ratio > info.tiny) & (ratio < info.max), jnp.log(ratio), jnp.log(p) - jnp.log(q))


def _over_square(p: jax.Array, q: jax.Array) -> jax.Array:
    """p/q²; the maximum, which changes nothing, keeps the compiler from squaring q first."""
    return jnp.maximum(p / q, 0) / q


@jax.custom_jvp
def _log_ratio(p: jax.Array, q: jax.Array) -> jax.Array:
    """log(p/q), and 0 where p is 0: there neither moves it."""
    near = jnp.abs(p - q) < q / 2
    return jnp.where(p == 0, 0, jnp.where(near, log1p(jnp.where(near, (p - q) / q, 0)), _far_log_ratio(p, q)))


@_log_ratio.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (p, q), (dp, dq) = primals, tangents
    inverse = lambda x: jnp.where(p == 0, 0, 1 / x)
    return _log_ratio(p, q), limit_product(inverse(p), dp) - limit_product(inverse(q), dq)


@jax.custom_jvp
def minus_ratio(p: jax.Array, q: jax.Array) -> jax.Array:
    """−p/q, and 0 where p is 0: there neither moves it."""
    return jnp.where(p == 0, 0, -p / q)


@minus_ratio.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (p, q), (dp, dq) = primals, tangents
    inverse = jnp.where(p == 0, 0, 1 / q)
    return minus_ratio(p, q), limit_product(jnp.where(p == 0, 0, _over_square(p, q)), dq) - limit_product(inverse, dp)


@jax.custom_jvp
def _oneminus_ratio(p: jax.Array, q: jax.Array) -> jax.Array:
    """1 − p/q, and 0 where both are 0."""
    return jnp.where((p == 0) & (q == 0), 0, (q - p) / q)


@_oneminus_ratio.defjvp
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    return _oneminus_ratio(*primals), jax.jvp(minus_ratio, primals, tangents)[1]


@jax.custom_jvp
def _divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """Where p and q are near, the excess and p − q are added up apart; where not, p log(p/q) needs no help."""
    scale = _scale(p, q)
    x, y = p * scale, q * scale
    near = (x <= 4 * y) & (y <= 4 * x)
    difference, log_ratio = x - y, _far_log_ratio(p, q)
    parts = jnp.where(near, relative_entropy_excess(x, y, difference, log_ratio), jnp.where(x == 0, 0, x * log_ratio))
    total, lost = exact_sum(jnp.where(near, difference, 0))
    return ((parts.sum(-1, keepdims=True) + (total + lost)) / scale)[..., 0]


@partial(_divergence.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (p, q), (dp, dq), kl = primals, tangents, _divergence(*primals)
    by_p = unless_zero(dp, lambda v: limit_product(jnp.where(p == 0, 0, _log_ratio(p, q) + 1), v).sum(-1), kl)
    by_q = unless_zero(dq, lambda v: limit_product(minus_ratio(p, q), v).sum(-1), kl)
    return kl, by_p + by_q


@jax.custom_jvp
def _generalized(p: jax.Array, q: jax.Array) -> jax.Array:
    scale = _scale(p, q)
    x, y = p * scale, q * scale
    return (relative_entropy_excess(x, y, x - y, _far_log_ratio(p, q)).sum(-1, keepdims=True) / scale)[..., 0]


@partial(_generalized.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (p, q), (dp, dq), kl = primals, tangents, _generalized(*primals)
    by_p = unless_zero(dp, lambda v: limit_product(_log_ratio(p, q), v).sum(-1), kl)
    by_q = unless_zero(dq, lambda v: limit_product(_oneminus_ratio(p, q), v).sum(-1), kl)
    return kl, by_p + by_q
