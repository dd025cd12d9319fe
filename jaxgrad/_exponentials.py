"""Exponentials of logits, to the last bits: what is near 1 is kept as its distance from 1.

Let k be the (first) heaviest class and s the sum of e^{z_j − z_k} over the others. Then

    p_k = 1/(1+s)        1 − p_k = s/(1+s)        log p_k = −log(1+s)

are accurate however close p_k is to 1, and so is p_j = e^{z_j − z_k}/(1+s). Logits here have the dtype to compute in.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LARGEST_EXPONENT = 60.0  # for `exp`
UNIT = 2.0**20  # exponentials are kept times this, so that small ones count in a sum before they underflow


class Split(NamedTuple):
    """Softmax about its (first) heaviest class k: what is near 1 is written with its distance from 1."""

    top: jax.Array  # (..., 1): z_k, the maximum
    k: jax.Array  # (..., 1), integer
    heaviest: jax.Array  # (..., C): True at k
    shifted: jax.Array  # (..., C): z − z_k, rounded
    shifted_tail: jax.Array  # (..., C): what that rounding lost
    rest: jax.Array  # (..., C): UNIT · e^{z − z_k}, and 0 at k
    others: jax.Array  # (..., 1): its sum, UNIT · s with s = Σ_{j≠k} e^{z_j − z_k}

    def at_heaviest(self, x: jax.Array) -> jax.Array:
        """x_k of x (..., C), (..., 1). A sum of what a mask leaves would write all of it, but is all there is for a sharded axis."""
        if _is_whole(x):
            return jnp.take_along_axis(x, self.k, axis=-1, mode="clip")
        return jnp.where(self.heaviest, x, 0).sum(-1, keepdims=True)

    @property
    def exps(self) -> jax.Array:
        """UNIT · e^{z − z_k}, (..., C)."""
        return jnp.where(self.heaviest, UNIT, self.rest)

    @property
    def inverse(self) -> jax.Array:
        """1 / (UNIT · (1 + s)), (..., 1)."""
        return reciprocal_of_sum(jnp.full_like(self.others, UNIT), self.others)[0]

    @property
    def inverse_square(self) -> jax.Array:
        """1 / (UNIT · (1 + s)²), (..., 1)."""
        return reciprocal_of_sum(jnp.full_like(self.others, UNIT), self.others)[1] * UNIT

    @property
    def probs(self) -> jax.Array:
        """p, (..., C)."""
        return self.exps * self.inverse

    @property
    def complement(self) -> jax.Array:
        """1 − p_k, (..., 1)."""
        return self.others * self.inverse

    @property
    def log_sum(self) -> jax.Array:
        """log Σ_j e^{z_j − z_k} = −log p_k, (..., 1)."""
        return log1p(self.others / UNIT)


def with_rounded_sum(at_k: Split) -> Split:
    """The same with `others`, (..., 1), rounded once: for what takes the error of the sum more than once, and can afford another pass."""
    return at_k._replace(others=rounded_sum(at_k.rest))


def rounded_sum(x: jax.Array) -> jax.Array:
    """Σx over the last axis for x >= 0, (..., 1), rounded little more than once.

    The multiples of a power of two that hold the leading digits add up exactly, and what they leave is small.
    """
    info = jnp.finfo(x.dtype)
    bound = x.max(-1, keepdims=True) * x.shape[-1]
    grid = jnp.ldexp(jnp.ones_like(bound), jnp.maximum(jnp.frexp(bound)[1] - 1 - info.nmant, info.minexp))
    coarse = jnp.round(x / grid) * grid
    return coarse.sum(-1, keepdims=True) + (x - coarse).sum(-1, keepdims=True)


def reciprocal_of_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 / (a + b) and 1 / (a + b)² for a, b >= 0, without the rounding of the sum (fast two_sum: Dekker 1971, doi:10.1007/BF01397083).

    The maximum, which changes nothing, keeps the compiler from folding (a + b) − a into b.
    """
    larger = jnp.maximum(a, b)
    total = jnp.maximum(a + b, larger)
    lost = (jnp.minimum(a, b) - (total - larger)) / total
    inverse, square = 1 / total, 1 / (total * total)
    return inverse - inverse * lost, square - square * (2 * lost)


def split_at_heaviest(z: jax.Array, temperature: float = 1.0) -> Split:
    """Softmax of logits (..., C) over a temperature, split at k; NaN throughout a row that has no finite maximum."""
    m, k = _first_max(z)
    heaviest = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1, out_sharding=jax.typeof(z).sharding) == k
    e, d, tail = exp_shifted(z, m, temperature)
    rest = jnp.where(heaviest, 0, e)
    return Split(m, k, heaviest, d, tail, rest, rest.sum(-1, keepdims=True))


def _first_max(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """max z, or NaN where that is not finite so that the whole row becomes NaN, and its first index, (..., 1) each.

    The largest of each block comes first, and then the place within a block: XLA on a CPU has no fast argmax, and any
    other index by a reduction writes an array as large as z.
    """
    num_classes = z.shape[-1]
    size = 1
    if num_classes >= 64 and _is_whole(z):  # blocks of a sharded axis would lie across devices
        size = max(b for b in range(1, math.isqrt(num_classes) + 1) if num_classes % b == 0)
    blocks = z.reshape(*z.shape[:-1], num_classes // size, size)
    largest = blocks.max(-1)
    m = largest.max(-1, keepdims=True)
    k = _first(largest == m)
    if size > 1:
        k = k * size + _first(jnp.take_along_axis(blocks, k[..., None], axis=-2, mode="clip")[..., 0, :] == m)
    return jnp.where(jnp.isfinite(m), m, jnp.nan), k


def _is_whole(x: jax.Array) -> bool:
    """False if the last axis is known to be sharded."""
    spec = jax.typeof(x).sharding.spec
    return len(spec) < x.ndim or spec[-1] is None


def _first(hits: jax.Array) -> jax.Array:
    """The index of the first True on the last axis, (..., 1), or the last index if there is none."""
    index = lax.broadcasted_iota(jnp.int32, hits.shape, hits.ndim - 1, out_sharding=jax.typeof(hits).sharding)
    return jnp.where(hits, index, hits.shape[-1] - 1).min(-1, keepdims=True)


def exp_shifted(z: jax.Array, m: jax.Array, temperature: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """UNIT · e^{(z − m)/T} for m >= z, (z − m)/T rounded, and what that rounding lost."""
    d, tail = two_difference(z, m)
    if temperature != 1:
        d, tail = quotient(d, tail, temperature)
    tail = jnp.where(jnp.isfinite(d), tail, 0)
    return exp(d, jnp.where(d > jnp.finfo(d.dtype).minexp, tail, 0)), d, tail


def two_difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a − b rounded, and what that lost (Knuth, TAOCP 2, 4.2.2); the latter NaN where the former is infinite."""
    d = a - b
    a_part = d + b
    return d, (a - a_part) - (b - (a_part - d))


def two_product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a b rounded, and what that lost (Dekker 1971, doi:10.1007/BF01397083), each factor cut in two where its bits are halved."""
    product, (a_head, a_tail), (b_head, b_tail) = a * b, _halves(a), _halves(b)
    return product, ((a_head * b_head - product) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as the sum of two numbers of half the digits."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int32 if info.bits == 32 else jnp.int64
    mask = -(1 << (info.nmant // 2 + 1))
    head = lax.bitcast_convert_type(lax.bitcast_convert_type(x, integer) & mask, x.dtype)
    return head, x - head


def quotient(head: jax.Array, tail: jax.Array, divisor: float) -> tuple[jax.Array, jax.Array]:
    """(head + tail) / divisor rounded, and what that lost."""
    t = jnp.asarray(divisor, head.dtype)
    quotient = head / t
    product, lost = two_product(quotient, t)
    return quotient, (((head - product) - lost) + tail) / t


def log1p(x: jax.Array) -> jax.Array:
    """log(1 + x) for x > −1 within 1.5 ULP, where the backend's is off by 2.4 in float32 and by 60 in float64 for some x.

    The maximum, which changes nothing, keeps the compiler from folding (1 + x) − 1 into x (Higham 2002,
    doi:10.1137/1.9780898718027, 1.14.1).
    """
    near = jnp.maximum(1 + x, 0)
    return jnp.where(jnp.abs(x) < 0.3, jnp.log1p(x), jnp.log(near) + (x - (near - 1)) / near)


def exp(d: jax.Array, lo: jax.Array) -> jax.Array:
    """UNIT · e^{d + lo} for d <= LARGEST_EXPONENT within 0.6 ULP; the backends' own differ, and take no low part of the argument.

    e^{d + lo} = 2^n e^r with |r| <= log(2)/2 (Tang 1989, doi:10.1145/63522.214389).
    """
    power, r, r_tail = _reduced(d, lo)
    linear = power * r
    rounded = power + linear
    return rounded + ((linear - (rounded - power)) + power * (r_tail + r * r * _exp_series(r, 2)))


def exp_pair(d: jax.Array, lo: jax.Array) -> tuple[jax.Array, jax.Array]:
    """UNIT · e^{d + lo} as head and tail, (...) each, with 6 more bits than `exp`."""
    power, r, r_tail = _reduced(d, lo)
    square, square_tail = two_product(r, r)
    head, lost = two_difference(jnp.ones_like(r), -r)
    head, lost_too = two_difference(head, -square / 2)
    head, tail = two_difference(head, -((lost + lost_too) + (r_tail * (1 + r) + (square_tail / 2 + r * square * _exp_series(r, 3)))))
    return power * head, power * tail


def _reduced(d: jax.Array, lo: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """UNIT · 2^n, and r as head and tail."""
    info = jnp.finfo(d.dtype)
    log2_head, log2_tail = (0.693359375, -2.12194440054690583e-4) if info.bits == 32 else (6.93147180369123816e-1, 1.90821492927058770e-10)
    shift = int(math.log2(UNIT))
    d = jnp.maximum(d, (info.minexp - shift - 1) * math.log(2))  # there the exponent below is 0, and the power 0
    n = jnp.round(d * (1 / math.log(2)))
    head, tail = d - n * log2_head, n * log2_tail - lo
    r = head - tail
    exponent = n.astype(jnp.int32 if info.bits == 32 else jnp.int64) + (shift + info.maxexp - 1)
    return lax.bitcast_convert_type(exponent << info.nmant, d.dtype), r, (head - r) - tail


def _exp_series(r: jax.Array, first: int) -> jax.Array:
    """Σ_k r^{k − first}/k! from k = first."""
    terms = 7 if r.dtype == jnp.float32 else 13
    series = jnp.full_like(r, 1 / math.factorial(terms))
    for k in range(terms - 1, first - 1, -1):
        series = series * r + 1 / math.factorial(k)
    return series
