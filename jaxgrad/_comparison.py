"""Two distributions compared through their logits, without cancellation however near they are."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad._bregman import NEAR, expm1_and_remainder
from jaxgrad._exponentials import UNIT, log1p, quotient, split_at_heaviest, two_difference

SMALL = 0.3  # nats: below, KL is log(1 + Σ p ψ(E_p[D] − D)) with D = a − b, above Σ p ψ(−t)


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
    in_p, in_q = a > -jnp.inf, b > -jnp.inf
    in_both, broken = in_p & in_q, (in_p & ~in_q).any(-1, keepdims=True)
    s_p, s_q = at_p.others / UNIT, at_q.others / UNIT

    # D − D_k as head + tail, k the heaviest class of p, and its mean, which is 0 plus the share of the others in it.
    b_k = jnp.where(at_p.heaviest, b, 0).sum(-1, keepdims=True)
    b_k = jnp.where(b_k == -jnp.inf, at_q.top, b_k)
    head_k, tail_k = two_difference(at_p.top, b_k)
    head, tail = two_difference(jnp.where(in_both, a, head_k), jnp.where(in_both, b, 0))
    head, lost = two_difference(head, head_k)
    head, tail = _quotient_of(*_renormalised(head, lost + jnp.where(in_both, tail - tail_k, 0)), temperature)
    weight = at_p.rest * jnp.where(at_p.others > 0, 1 / at_p.others, 0)
    centre = (weight * head).sum(-1, keepdims=True)
    residual = (weight * ((head - centre) + tail)).sum(-1, keepdims=True)

    # x = E_p[D] − D as x + x_tail, from D_k where p_k is most of the sum and from the mean of the others where it is not.
    confident = s_p < 1
    origin = jnp.where(confident, 0, centre)
    shift = jnp.where(confident, at_p.complement * (centre + residual), residual - (at_p.inverse * UNIT) * (centre + residual))
    deviation_head, lost = two_difference(head, origin)
    deviation_head, lost_too = two_difference(deviation_head, shift)
    deviation_head, deviation_tail = _renormalised(deviation_head, tail + (lost + lost_too))

    # t = D + (a_k − b_k) − (log of the normalisers' ratio), each relative to the heaviest class of its own.
    log_normalisers = jnp.sign(s_p - s_q) * log1p(jnp.abs(s_p - s_q) / (1 + jnp.minimum(s_p, s_q)))
    lead, lead_tail = _quotient_of(*two_difference(at_q.top, b_k), temperature)
    t, lost = two_difference(head, -lead)
    t, lost_too = two_difference(t, log_normalisers)
    t, t_tail = _renormalised(t, (tail + lead_tail) + (lost + lost_too))

    small = ((shift + origin + lead) - log_normalisers < SMALL) & ~broken
    x = jnp.where(small, -deviation_head, -t)
    near = in_both & (jnp.abs(x) < NEAR)
    x = jnp.where(in_both, x, 0)
    rise, psi = expm1_and_remainder(jnp.where(near, x, 0))
    x_tail = jnp.where(small, -deviation_tail, 0)
    rise, psi = rise + (1 + rise) * x_tail, psi + rise * x_tail
    total = jnp.where(near, p * psi, (q - p) - p * x).sum(-1, keepdims=True)
    q_near = 1 - jnp.where(near, 0, q).sum(-1, keepdims=True) / UNIT
    growth = jnp.where(small, total / q_near, 0)  # UNIT · (e^KL − 1)
    kl = jnp.where(small, log1p(growth / UNIT), total / UNIT)

    ratio_less_one = (rise * UNIT - growth) / (1 + growth / UNIT) / UNIT
    by_q = jnp.where(near, p * ratio_less_one, q - p)
    rests = at_p.others * (at_p.inverse * UNIT), at_q.others * (at_q.inverse * UNIT)
    shared_top = at_p.heaviest & at_q.heaviest & (jnp.maximum(*rests) < 1.5 * (p / UNIT) * (jnp.abs(x) * UNIT + growth))
    by_q = jnp.where(shared_top, rests[0] - rests[1], by_q)
    limit = jnp.where(in_p, jnp.where(in_q, -jnp.inf, jnp.inf), 0)
    return Comparison(
        p=p,
        q=q,
        kl=jnp.where(broken, jnp.where(jnp.isnan(total), jnp.nan, jnp.inf), kl)[..., 0],
        log_ratio=jnp.where(in_q, t, jnp.inf),
        log_ratio_tail=jnp.where(in_both, t_tail, 0),
        ratio_less_one=jnp.where(near, ratio_less_one, 0),
        by_p=jnp.where(broken, jnp.where(jnp.isnan(total), jnp.nan, limit), p * deviation_head),
        by_q=by_q,
    )


def _renormalised(head: jax.Array, tail: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same sum, with its head rounded to nearest."""
    total, lost = two_difference(head, -tail)
    return total, jnp.where(jnp.isfinite(total), lost, 0)


def _quotient_of(head: jax.Array, tail: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    return (head, tail) if temperature == 1 else quotient(head, tail, temperature)
