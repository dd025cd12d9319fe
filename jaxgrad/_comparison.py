"""Two distributions compared through their logits, without cancellation however near they are."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad._bregman import NEAR, expm1_and_remainder
from jaxgrad._exponentials import UNIT, log1p, quotient, split_at_heaviest, two_difference

SMALL = 0.2  # nats: below, KL is log(1 + Σ p ψ(E_p[D] − D)) with D = a − b, above Σ p ψ(−t)


class Comparison(NamedTuple):
    """What KL, JS and their gradients are made of; p = softmax(a/T), q = softmax(b/T)."""

    p: jax.Array  # (..., C): UNIT · p
    q: jax.Array  # (..., C): UNIT · q
    kl: jax.Array  # (...)
    log_ratio: jax.Array  # (..., C): t = log(p/q), up to a constant close to 0, and +inf where q is masked
    log_ratio_tail: jax.Array  # (..., C): what rounding has lost of it
    ratio_less_one: jax.Array  # (..., C): q/p − 1 where that is from −0.86 to 6.3, otherwise 0
    by_p: jax.Array  # (..., C): UNIT · p ∘ (t − KL)
    by_q: jax.Array  # (..., C): UNIT · (q − p)


@partial(jax.jit, inline=True, static_argnums=2)
def compare(a: jax.Array, b: jax.Array, temperature: float = 1.0) -> Comparison:
    """Both distributions against each other, without cancellation however near they are.

    With D = (a − b)/T and x = E_p[D] − D, any split of the classes into near and far ones has
        e^KL Σ_near q = Σ_near p e^x     or     KL = log(1 + S / Σ_near q),   S = Σ_near p ψ(x) + Σ_far (q − p (1 + x))
    whose far terms do not need e^x. S depends on the mean E_p[D] to second order only, and no normaliser enters.
    If KL is not small it is S itself with −t in place of x, in which the sign of no sum can flip.
    """
    at_p, at_q = split_at_heaviest(a, temperature), split_at_heaviest(b, temperature)
    p, q = at_p.exps * (at_p.inverse * UNIT), at_q.exps * (at_q.inverse * UNIT)  # times UNIT: what is small counts before it underflows
    in_p, in_both = a > -jnp.inf, jnp.minimum(a, b) > -jnp.inf
    s_p, s_q = at_p.others / UNIT, at_q.others / UNIT

    # D = (a − max a)/T − (b − max b)/T as head + tail: +inf where only q is masked, 0 where p is.
    from_top, from_top_tail = two_difference(jnp.where(in_p, a, at_p.top), at_p.top)
    subtrahend, subtrahend_tail = two_difference(jnp.where(in_p, b, at_q.top), at_q.top)
    head, tail = two_difference(from_top, subtrahend)
    tail = tail + jnp.where(in_both, from_top_tail - subtrahend_tail, 0)
    head, tail = _renormalised(head, tail)

    # D at the heaviest class k of p.
    b_k = at_p.at_heaviest(b)
    head_k, tail_k = two_difference(at_q.top, jnp.where(b_k == -jnp.inf, at_q.top, b_k))
    if temperature != 1:
        (head, tail), (head_k, tail_k) = quotient(head, tail, temperature), quotient(head_k, tail_k, temperature)
        head, tail = jnp.where(at_p.heaviest, head_k, head), jnp.where(at_p.heaviest, tail_k, tail)  # rounded alike, wherever that is compiled

    # The mean of D over the others of p.
    weight = at_p.rest * jnp.where(at_p.others > 0, 1 / at_p.others, 0)
    centre = (weight * head).sum(-1, keepdims=True)
    residual = (weight * ((head - centre) + tail)).sum(-1, keepdims=True)
    broken = (b_k == -jnp.inf) | ~jnp.isfinite(centre)

    # E_p[D] = origin + its tail + shift, from D_k where p_k is most of the sum and from the mean of the others where it is not.
    gap = ((centre - head_k) - tail_k) + residual
    confident = s_p < 1
    origin, origin_tail = jnp.where(confident, head_k, centre), jnp.where(confident, tail_k, 0)
    shift = jnp.where(confident, at_p.complement * gap, residual - (at_p.inverse * UNIT) * gap)

    # t = D − (log of the normalisers' ratio), with an error of some ULP of 1.
    log_normalisers = jnp.sign(s_p - s_q) * log1p(jnp.abs(s_p - s_q) / (1 + jnp.minimum(s_p, s_q)))

    small = ((origin - log_normalisers) + shift < SMALL) & ~broken
    first, first_tail, second = jnp.where(small, origin, 0), jnp.where(small, origin_tail, 0), jnp.where(small, shift, log_normalisers)
    near = in_both & (jnp.abs((head - first) - second) < NEAR)
    minus_x, x_tail = _twice_subtracted(head, tail - first_tail, first, second)
    rise, psi = expm1_and_remainder(jnp.where(near, -minus_x, 0))
    rise, psi = rise - (1 + rise) * jnp.where(near, x_tail, 0), psi - rise * jnp.where(near, x_tail, 0)
    parts = jnp.where(near, p * psi, (q - p) + p * jnp.where(in_both, minus_x, 0))
    total = parts.sum(-1, keepdims=True)
    q_near = 1 - jnp.where(near, 0, q).sum(-1, keepdims=True) / UNIT
    growth = jnp.where(small, total / q_near, 0)  # UNIT · (e^KL − 1)
    kl = jnp.where(small, log1p(growth / UNIT), total / UNIT)

    # q − p where q/p is known to its distance from 1, or the difference of what is beside a top class that both share.
    ratio_less_one = (rise * UNIT - growth) * (1 / (UNIT + growth))
    rests = at_p.others * (at_p.inverse * UNIT), at_q.others * (at_q.inverse * UNIT)
    distance = jnp.abs(((head_k - first) + (tail_k - first_tail)) - second) * UNIT + growth
    beside = jnp.maximum(*rests) < 1.5 * (at_p.inverse * UNIT) * distance
    gain = jnp.maximum(p / UNIT, 0) * growth  # the maximum keeps the compiler from multiplying small factors first
    by_q = jnp.where(near, ((parts - p * minus_x) - gain) * (UNIT / (UNIT + growth)), q - p)
    by_q = jnp.where(at_p.heaviest & at_q.heaviest & beside, rests[0] - rests[1], by_q)
    limit = jnp.where(in_p, jnp.where(in_both, -jnp.inf, jnp.inf), 0)
    t, t_tail = _twice_subtracted(head, tail, jnp.zeros_like(origin), log_normalisers)
    return Comparison(
        p=p,
        q=q,
        kl=jnp.where(broken, jnp.where(jnp.isnan(total), jnp.nan, jnp.inf), kl)[..., 0],
        log_ratio=t,
        log_ratio_tail=jnp.where(jnp.isfinite(t), t_tail, 0),
        ratio_less_one=jnp.where(near, ratio_less_one, 0),
        by_p=jnp.where(broken, jnp.where(jnp.isnan(total), jnp.nan, limit), p * (((head - origin) + (tail - origin_tail)) - shift)),
        by_q=by_q,
    )


def _twice_subtracted(head: jax.Array, tail: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """head + tail − first − second rounded, and what that lost."""
    head, lost = two_difference(head, first)
    head, lost_too = two_difference(head, second)
    return two_difference(head, -(tail + (lost + lost_too)))


def _renormalised(head: jax.Array, tail: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same sum, with its head rounded to nearest."""
    total, lost = two_difference(head, -tail)
    return total, jnp.where(jnp.isfinite(total), lost, 0)
