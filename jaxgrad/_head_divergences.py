"""Kullback–Leibler divergence between two linear heads over a large vocabulary, in blocks of classes (kl-1, distil-1).

    a = W_p e_p + b_p, b = W_q e_q + b_q;   D = a − b;   p = softmax(a), q = softmax(b)
    KL(p‖q) = log(1 + E_p ψ(E_p[D] − D)),  ψ(x) = e^x − 1 − x          no term is negative, no normaliser enters
    ∂KL/∂a  = p ∘ (D − E_p[D])                                          kl-7
    ∂KL/∂b  = q − p = p ∘ (e^{−t} − 1),  t = D − E_p[D] + KL            kl-8

Classes come in groups of weight w, mean m of D and excess r = Σ w ψ(m − D), which two groups combine to

    m = Σ w_i m_i / Σ w_i,   r = Σ w_i ψ(m − m_i) + e^{m − m_i} r_i

so that one pass over both heads will do. Everything is taken from the heaviest class k of p: where p_k rounds to 1,
E_p[D] − D_k = (1 − p_k) (E_{j≠k}[D] − D_k) keeps its digits. JAX differentiates all this but the sums over classes.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._blocks import Block, Moving, begins, block_of, block_size_for, block_sums, exps_beside, finite, varying_alike
from jaxgrad._bregman import NEAR, expm1_and_remainder
from jaxgrad._exponentials import log1p

Arrays = tuple[Any, ...]


def linear_kl_divergence(
    p_features: ArrayLike,
    p_head: ArrayLike,
    q_features: ArrayLike,
    q_head: ArrayLike,
    *,
    p_bias: ArrayLike | None = None,
    q_bias: ArrayLike | None = None,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    block_size: int | None = None,
) -> jax.Array:
    """KL(P‖Q) of p = softmax((W_p e_p + b_p)/T) and q = softmax((W_q e_q + b_q)/T), one value for each example, in nats (kl-1).

    It is `kl_divergence(p_features @ p_head.T + p_bias, q_features @ q_head.T + q_bias, temperature=T)` in the memory of
    two blocks of logits: the value and derivatives of every order, forward and reverse, in all six arrays. It is never
    negative, exactly 0 for equal models, and as accurate as the rounded logits allow where they differ by little.

    A class masked by a bias of −inf in both models, or in P alone, costs nothing (kl-4). One that is masked only in Q
    makes every divergence +inf: derivatives in the arrays of Q are finite, those in the arrays of P are not.

    For distillation P is the teacher; in the other order it is the reverse KL, which seeks a mode (kl-6). The gradient
    scales with 1/T, the Hessian with 1/T² (distil-1): multiply by T² to keep the gradient's size.

    Args:
      p_features: e_p, (..., d), floating.
      p_head: W_p, (C, d), floating.
      q_features: e_q, (..., d'), floating, as many as e_p; the widths may differ.
      q_head: W_q, (C, d'), floating, of the same classes.
      p_bias, q_bias: (C,), floating; −inf masks a class.
      temperature: T, a positive number, not an array: divide features and biases by an array yourself.
      where: (...), boolean; an example where it is False has divergence and derivatives 0, and is not looked at.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      (...), at least float32, in which everything is computed.

    Raises:
      TypeError: a dtype is none of these, or `temperature` is not a number.
      ValueError: a shape is none of these (nothing broadcasts), or `temperature` is not positive.

    Source: Hinton, Vinyals and Dean 2015, arXiv:1503.02531; Gu et al. 2024, arXiv:2306.08543.
    """
    p = _checks.as_linear_head("p_features", p_features, p_head, p_bias)
    q = _checks.as_linear_head("q_features", q_features, q_head, q_bias)
    lead, num_classes = p[0].shape[:-1], p[1].shape[0]
    _checks.same_shape("q_features", q[0], (*lead, q[0].shape[-1]), "an example for each of p_features")
    _checks.same_shape("q_head", q[1], (num_classes, q[1].shape[-1]), "the classes of p_head")
    t = _checks.positive("temperature", temperature)
    keep = None if where is None else _checks.as_mask("where", where, lead).reshape(-1)
    wide = _checks.compute_dtype(*(x for x in (*p, *q) if x is not None))

    def rows(e: jax.Array, w: jax.Array, b: jax.Array | None) -> Arrays:
        e = e.reshape(math.prod(lead), e.shape[-1]).astype(wide)
        e = e if keep is None else jnp.where(keep[:, None], e, 0)
        return (e, w, b) if t == 1 else (e / t, w, None if b is None else b.astype(wide) / t)

    kl = _sums(block_size_for(math.prod(lead), num_classes, block_size), varying_alike((*rows(*p), *rows(*q)))).kl
    return (kl if keep is None else jnp.where(keep, kl, 0)).reshape(lead)


class _Sums(NamedTuple):
    """What is known of each example, (N,), once all classes have been seen."""

    k: jax.Array  # the first class with the largest a
    p_others: jax.Array  # log Σ_{j≠k} e^{a_j}
    p_logit: jax.Array  # a_k
    q_others: jax.Array  # log Σ_{j≠k} e^{b_j}
    q_logit: jax.Array  # b_k
    mean: jax.Array  # of D over the others of k, weighted by e^a; +inf where a class is masked in q alone
    kl: jax.Array


class _Group(NamedTuple):
    """Classes of each example taken together, (N,)."""

    weight: jax.Array  # Σ e^{a − top}
    mean: jax.Array  # of D
    excess: jax.Array  # Σ e^{a − top} ψ(mean − D)


def _merged(*groups: _Group) -> _Group:
    """All of these as one."""
    g = _Group(*(jnp.stack(x) for x in zip(*groups, strict=True)))
    weight = g.weight.sum(0)
    mean = (g.weight * g.mean).sum(0) / jnp.where(weight == 0, 1, weight)
    x = mean[None] - g.mean
    return _Group(weight, mean, (g.weight * _psi(x) + jnp.exp(x) * g.excess).sum(0))


def _psi(x: jax.Array) -> jax.Array:
    """ψ(x) = e^x − 1 − x."""
    near = jnp.abs(x) < NEAR
    return jnp.where(near, expm1_and_remainder(jnp.where(near, x, 0))[1], jnp.exp(x) - 1 - x)


class _Running(NamedTuple):
    """What is known of each example, (N,), after some of the blocks."""

    k: jax.Array
    top: jax.Array  # a_k
    at_top: jax.Array  # b_k
    others: _Group
    q_top: jax.Array  # max_{j≠k} b_j
    q_total: jax.Array  # Σ_{j≠k} e^{b_j − q_top}
    broken: jax.Array  # whether a class other than k is masked in q alone


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, inline=True, static_argnums=0)
def _sums(size: int, arrays: Arrays) -> _Sums:
    """The sums for arrays e_p (N, d), W_p (C, d), b_p (C,) or None, and those of q, in one pass over both heads."""
    e_p, w_p, b_p, e_q, w_q, b_q = arrays

    def add(seen: _Running, begin: jax.Array) -> tuple[_Running, None]:
        p, q = block_of(e_p, w_p, b_p, begin, size), block_of(e_q, w_q, b_q, begin, size)
        a, b = (x.logits if x.new is None else jnp.where(x.new, x.logits, -jnp.inf) for x in (p, q))
        largest = a.max(-1)
        first = jnp.where(a == largest[:, None], jnp.arange(size, dtype=jnp.int32)[None], size).min(-1)
        moved = largest > seen.top
        k, top = jnp.where(moved, p.start + first, seen.k), jnp.maximum(seen.top, largest)
        beside, shift = p.beside(k), finite(top)
        a, b_others = jnp.where(beside, a, -jnp.inf), jnp.where(beside, b, -jnp.inf)
        was_top = jnp.where(moved, seen.at_top, -jnp.inf)
        q_top = jnp.maximum(jnp.maximum(seen.q_top, b_others.max(-1)), was_top)
        q_exps = jnp.exp(b_others - finite(q_top)[:, None])
        scale = jnp.exp(seen.top - shift)
        others = _merged(
            seen.others._replace(weight=seen.others.weight * scale, excess=seen.others.excess * scale),
            _Group(jnp.where(moved, scale, 0), jnp.where(moved & (seen.at_top > -jnp.inf), seen.top - seen.at_top, 0), zero),
            _of_block(a - shift[:, None], _difference(a, b), q_exps, q_top - shift),
        )
        return _Running(
            k=k,
            top=top,
            at_top=jnp.where(moved, jnp.where(p.at(k), b, 0).sum(-1), seen.at_top),
            others=others,
            q_top=q_top,
            q_total=seen.q_total * jnp.exp(seen.q_top - finite(q_top)) + jnp.exp(was_top - finite(q_top)) + q_exps.sum(-1),
            broken=seen.broken | ((a > -jnp.inf) & (b == -jnp.inf)).any(-1) | (moved & (seen.top > -jnp.inf) & (seen.at_top == -jnp.inf)),
        ), None

    zero = jnp.zeros_like(e_p.sum(-1))  # sharded as the examples are
    low = zero - jnp.inf
    start = _Running(zero.astype(jnp.int32), low, low, _Group(zero, zero, zero), low, zero, zero > 0)
    seen, _ = lax.scan(add, start, begins(w_p.shape[0], size))
    broken = seen.broken | (seen.at_top == -jnp.inf)
    at_k = _Group(zero + 1, jnp.where(broken, 0, seen.top - seen.at_top), zero)
    everything = _merged(seen.others, at_k)
    excess = everything.excess / everything.weight
    p_odds, q_others = jnp.log(seen.others.weight), seen.q_top + jnp.log(seen.q_total)
    shares = everything.mean - at_k.mean
    direct = (jax.nn.softplus(q_others - seen.at_top) - jax.nn.softplus(p_odds)) + shares  # past the largest number
    kl = jnp.where(broken, jnp.inf, jnp.where(excess < jnp.inf, log1p(excess), direct))
    kl = jnp.where(jnp.isnan(everything.weight + seen.q_total), jnp.nan, kl)
    return _Sums(seen.k, seen.top + p_odds, seen.top, q_others, seen.at_top, jnp.where(broken, jnp.inf, seen.others.mean), kl)


def _of_block(below: jax.Array, difference: jax.Array, q_exps: jax.Array, q_shift: jax.Array) -> _Group:
    """The group of a block, from a − top (N, B), where −inf is not in it, D, e^{b − q_top}, and q_top − top."""
    exps, d = jnp.exp(below), jnp.where(difference == jnp.inf, 0, difference)
    weight = exps.sum(-1)
    mean = (exps * d).sum(-1) / jnp.where(weight == 0, 1, weight)
    x = mean[:, None] - d
    near = (jnp.abs(x) < NEAR) & (below > -jnp.inf)
    psi = expm1_and_remainder(jnp.where(near, x, 0))[1]
    far = q_exps * jnp.exp(q_shift + mean)[:, None] - exps * (1 + x)
    return _Group(weight, mean, jnp.where(near, exps * psi, far).sum(-1))


def _difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """D = a − b, and 0 at a class that p masks."""
    return jnp.where(a == -jnp.inf, 0, a - b)


@partial(_sums.defjvp, symbolic_zeros=True)
def _(size: int, primals: tuple[Arrays], tangents: tuple[Arrays]) -> tuple[_Sums, _Sums]:
    (arrays,) = primals
    sums, moving = _sums(size, arrays), Moving.of(tangents[0])

    def derivative(arrays: Arrays, along: list[jax.Array], floats: Arrays, begin: jax.Array) -> Arrays:
        def logits(e_p: jax.Array, w_p: jax.Array, b_p: jax.Array | None, *of_q: Any) -> tuple[tuple[jax.Array, jax.Array], Block]:
            e_q, w_q, b_q = of_q
            p = block_of(e_p, w_p, b_p, begin, size)
            return (p.logits, block_of(e_q, w_q, b_q, begin, size).logits), p

        (_, b), (da, db), block = moving.jvp(logits, arrays, along)
        return _derivative(block, b, da if min(moving.places) < 3 else None, db if max(moving.places) >= 3 else None, _Sums(sums.k, *floats))

    zeros = tuple(jnp.zeros_like(x) for x in sums[1:])
    parts = block_sums(derivative, arrays[1].shape[0], size, zeros, arrays, moving.along(tangents[0]), tuple(sums[1:]))
    of_k: Any = SymbolicZero(jax.typeof(sums.k).to_tangent_aval())
    return sums, _Sums(of_k, *parts)


def _derivative(block: Block, b: jax.Array, da: jax.Array | None, db: jax.Array | None, sums: _Sums) -> Arrays:
    """What a block adds to the derivatives of the sums, along that of its logits a and b, (N, B), or None for 0."""
    a, column = block.logits, lambda x: x[:, None]
    at_k = block.at(sums.k)
    of_p, of_q = exps_beside(block, sums.k, sums.p_others), exps_beside(block._replace(logits=b), sums.k, sums.q_others)  # of the others of k
    p_odds, q_odds = sums.p_others - sums.p_logit, sums.q_others - sums.q_logit
    probs = lambda odds, of_others: jnp.where(at_k, column(jax.nn.sigmoid(-odds)), column(jax.nn.sigmoid(odds)) * of_others)
    p, q = probs(p_odds, of_p), probs(q_odds, of_q)
    d, d_k = _difference(a, b), sums.p_logit - sums.q_logit
    gap = jax.nn.sigmoid(p_odds) * (sums.mean - d_k)  # E_p[D] − D_k
    x = jnp.where(at_k, 0, d - column(d_k)) - column(gap)
    t = x + column(sums.kl)
    near = (jnp.abs(t) < 1) & (a > -jnp.inf)
    q_less_p = jnp.where(near, p * jnp.expm1(-jnp.where(near, t, 0)), q - p)
    none = jnp.zeros_like(sums.kl)
    by_p = by_q = (none,) * 6
    if da is not None:
        mean = (of_p * (1 + (d - column(sums.mean))) * da).sum(-1)
        by_p = (of_p * da).sum(-1), jnp.where(at_k, da, 0).sum(-1), none, none, mean, jnp.where(p == 0, 0, p * x * da).sum(-1)
    if db is not None:
        by_q = none, none, (of_q * db).sum(-1), jnp.where(at_k, db, 0).sum(-1), -(of_p * db).sum(-1), (q_less_p * db).sum(-1)
    return jax.tree.map(jnp.add, by_p, by_q)
