"""What is left of a convex function beyond its tangent: never negative, and accurate where all but the remainder cancels.

    ψ(x)    = e^x − 1 − x
    g(p, q) = p log(p/q) − p + q
    h(u)    = ((1 + u) log(1 + u) + (1 − u) log(1 − u)) / 2

Bregman divergences in one coordinate (Bregman 1967, doi:10.1016/0041-5553(67)90040-7), element by element, in the
dtype to compute in.
"""

import math

import jax
import jax.numpy as jnp

from jaxgrad._exponentials import two_difference

NEAR = 2.0


def expm1_and_remainder(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """e^x − 1 and ψ(x) within 1.5 ULP, for |x| < NEAR or rounded to it.

    With x = c + y and c in −1, 0, 1, ψ(c + y) = ψ(c) + (e^c − 1) y + e^c ψ(y), of which no term is negative.
    """
    c = jnp.trunc(x)
    y = x - c
    half_square = y * y / 2
    psi = half_square + half_square * y * _series([2 / math.factorial(n) for n in range(3, _terms(x, 12, 20))], y)
    at_c = lambda f: jnp.where(c == 0, f(0), jnp.where(c > 0, f(1), f(-1)))
    power, rise = at_c(math.exp), at_c(math.expm1)
    return rise + power * (y + psi), at_c(lambda c: math.exp(c) - 1 - c) + (rise * y + power * psi)


def mixture_excess(p: jax.Array, q: jax.Array, ratio_less_one: jax.Array) -> jax.Array:
    """½ (p log(p/m) + q log(q/m)) for p, q >= 0, m = (p + q)/2, with r = q/p − 1, or 0 where they are far apart; 0 where both are 0.

    It is m h(u) with u = −r/(2 + r) and h(u) = Σ_n u^{2n} / (2n (2n − 1)), and m u² = p r² / (2 (2 + r)).
    """
    divisor = jnp.where(p + q > 0, p + q, 1)
    near = (jnp.abs(q - p) < 0.5 * divisor) & ((ratio_less_one != 0) | (p == q))
    r = jnp.where(near, ratio_less_one, 0)
    square = (r / (2 + r)) ** 2
    series = 0.5 + square * _series([1 / (2 * n * (2 * n - 1)) for n in range(2, _terms(p, 13, 26))], square)
    part = lambda x: x * jnp.log(jnp.where(x / divisor > 0, 2 * (x / divisor), 1))
    return jnp.where(near, p * (r * r / (2 + r)) * series, part(p) + part(q)) / 2


def relative_entropy_excess(p: jax.Array, q: jax.Array, difference: jax.Array, log_ratio: jax.Array) -> jax.Array:
    """g(p, q) for p, q >= 0 with p − q, and with log(p/q) where p > 4 q or q > 4 p; q where p is 0, and 0 where both are.

    With u = (p − q)/(p + q), g = (p − q) u (1 + (1 + u) u (1/3 + u²/5 + u⁴/7 + …)).
    """
    u = difference / jnp.where(p + q > 0, p + q, 1)
    square = jnp.where(jnp.abs(u) < 0.6, u * u, 0)
    series = _series([1 / (2 * n + 3) for n in range(_terms(u, 15, 33))], square)
    far = jnp.where(p > 0, p * log_ratio, 0) - difference
    return jnp.where(jnp.abs(u) < 0.6, difference * u * (1 + (1 + u) * u * series), far)


def exact_sum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σx over the last axis rounded, and what that lost, (..., 1): pairs are added, and what each addition loses is kept."""
    lost = jnp.zeros_like(x)
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        odd, odd_lost = x[..., 2 * half :], lost[..., 2 * half :]
        total, error = two_difference(x[..., :half], -x[..., half : 2 * half])
        lost = jnp.concatenate([lost[..., :half] + lost[..., half : 2 * half] + error, odd_lost], -1)
        x = jnp.concatenate([total, odd], -1)
    return x, lost


def _series(coefficients: list[float], x: jax.Array) -> jax.Array:
    """Σ_n c_n x^n (Horner)."""
    total = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


def _terms(x: jax.Array, float32: int, float64: int) -> int:
    return float32 if x.dtype == jnp.float32 else float64
