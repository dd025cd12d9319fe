"""Kullback–Leibler and Jensen–Shannon divergence between logits, beside their derivatives in both.

    KL(p‖q) = Σ p log(p/q)                                 kl-1      p = softmax(a), q = softmax(b), t = log(p/q)
    ∂KL/∂a  = p ∘ (t − KL) = J_p (a − b)                   kl-7
    ∂KL/∂b  = q − p                                        kl-8
    ∇²_a KL = J_p + diag(g) − g pᵀ − p gᵀ                  hess-8    g = ∂KL/∂a;  ∇_a∇_b KL = −J_p,  ∇²_b KL = J_q
    JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2        js-1      ∂JS/∂a = ½ J_p log(p/m)

Where p and q are close, KL is a sum of remainders p ψ(−t), ψ(x) = e^x − 1 − x, never a difference of logarithms.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._bregman import NEAR, expm1_and_remainder, mixture_excess
from jaxgrad._centred_diagonal import CentredDiagonal, rounded_jacobian_product, shared_product, twist
from jaxgrad._comparison import compare
from jaxgrad._exponentials import UNIT, log1p
from jaxgrad._linear import Arrays, unless_zero
from jaxgrad._operators import PairHessian
from jaxgrad._softmax import _softmax, jacobian_product, log_probs, zero_sum_product
from jaxgrad._softmax_jacobian import SoftmaxJacobian


def kl_divergence(p_logits: ArrayLike, q_logits: ArrayLike, *, temperature: float = 1.0, where: ArrayLike | None = None) -> jax.Array:
    """Kullback–Leibler divergence KL(P‖Q) = Σ_k p_k log(p_k/q_k), one value for each row, in nats (kl-1).

    p = softmax(p_logits/T), q = softmax(q_logits/T). Never negative, exactly 0 if the logits are equal or differ by a
    constant, and as accurate where p and q differ by little. A class masked by −inf in `p_logits` costs nothing (kl-4);
    one masked only in `q_logits` makes the divergence +inf, and its gradient in `q_logits` is finite. Derivatives of
    every order, forward and reverse, are the closed forms of `kl_divergence_grad` and `kl_divergence_hessian`.

    For distillation P is the teacher. The gradient then scales with 1/T, the Hessian with 1/T² (distil-1); multiply the
    loss by T² to keep the gradient's size, which for large T tends to that of the squared difference of the logits.

    Args:
      p_logits: (..., C), floating; −inf masks a class.
      q_logits: (..., C), floating.
      temperature: T, a positive number, not an array: divide the logits by an array yourself.
      where: (...), boolean; a row where it is False has divergence and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32.

    Raises:
      TypeError: a dtype is none of these, or `temperature` is not a number.
      ValueError: the shapes differ (nothing broadcasts), or `temperature` is not positive.

    Source: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694; Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    """
    a, b, where, _ = _pair(p_logits, q_logits, where)
    return unless_masked(_kl(a, b, _checks.positive("temperature", temperature)), where)


def kl_divergence_grad(
    p_logits: ArrayLike, q_logits: ArrayLike, *, temperature: float = 1.0, where: ArrayLike | None = None, argnums: int | Sequence[int] = (0, 1)
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `kl_divergence`: p ∘ (log p − log q − KL)/T in `p_logits` (kl-7), (q − p)/T in `q_logits` (kl-8, distil-1).

    Where a class has p > 0 = q the first is its limit: +inf there, −inf elsewhere on the support of p, 0 off it.

    Args:
      p_logits, q_logits, temperature, where: as in `kl_divergence`.
      argnums: which of the two, as in `jax.grad`: a number for one array, a sequence for a tuple.

    Returns:
      For each, (..., C), in the dtype of these logits; computed in at least float32.

    Raises:
      TypeError, ValueError: as `kl_divergence`; `argnums` is neither 0 nor 1.

    Source: Williams and Peng 1991, doi:10.1080/09540099108946587; Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    """
    a, b, where, dtypes = _pair(p_logits, q_logits, where)
    t = _checks.positive("temperature", temperature)
    _, by_p, by_q = _kl_and_gradients(a, b, t)
    return of_arguments([lambda: by_p / t, lambda: by_q / t], argnums, dtypes, where)


def kl_divergence_hessian(p_logits: ArrayLike, q_logits: ArrayLike, *, temperature: float = 1.0, where: ArrayLike | None = None) -> PairHessian:
    """Hessian of `kl_divergence` in both logits, in three blocks of O(C) memory each (hess-8, hess-1).

    With g = p ∘ (log p − log q − KL): `first` is (J_p + diag(g) − g pᵀ − p gᵀ)/T², not positive semi-definite in
    general, `mixed` is −J_p/T², and `second` is J_q/T².

    Args:
      p_logits, q_logits, temperature, where: as in `kl_divergence`.

    Returns:
      A `PairHessian` of operators of shape (..., C, C), in the wider of the dtypes of the logits.

    Raises:
      TypeError, ValueError: as `kl_divergence`.

    Source: Amari 2016, doi:10.1007/978-4-431-55978-8.
    """
    a, b, where, dtypes = _pair(p_logits, q_logits, where)
    t = _checks.positive("temperature", temperature)
    dtype = _checks.wider_dtype(*dtypes)
    scale = unless_masked(jnp.full(a.shape[:-1], t**-2, a.dtype), where)
    x, y = (z if t == 1 else z / t for z in (a, b))
    return PairHessian(
        first=CentredDiagonal(x, x, (_kl_and_gradients(a, b, t)[1] + _softmax(x)) * scale[..., None], dtype),
        mixed=SoftmaxJacobian(x.astype(dtype), -scale),
        second=SoftmaxJacobian(y.astype(dtype), scale),
    )


def js_divergence(p_logits: ArrayLike, q_logits: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    """Jensen–Shannon divergence ½ KL(P‖M) + ½ KL(Q‖M), M = (P + Q)/2, one value for each row, in nats (js-1).

    Symmetric, between 0 and log 2, finite also where the supports differ, exactly 0 if the logits are equal or differ
    by a constant. Derivatives of every order are closed forms.

    Args:
      p_logits, q_logits: (..., C), floating; −inf masks a class.
      where: (...), boolean; a row where it is False has divergence and derivatives 0, and is not looked at.

    Returns:
      (...), at least float32.

    Raises:
      TypeError, ValueError: as `kl_divergence`.

    Source: Lin 1991, doi:10.1109/18.61115.
    """
    a, b, where, _ = _pair(p_logits, q_logits, where)
    return unless_masked(_js(a, b), where)


def js_divergence_grad(
    p_logits: ArrayLike, q_logits: ArrayLike, *, where: ArrayLike | None = None, argnums: int | Sequence[int] = (0, 1)
) -> jax.Array | tuple[jax.Array, ...]:
    """Gradients of `js_divergence`, ½ J_p log(p/m) in `p_logits` and ½ J_q log(q/m) in `q_logits` (js-1).

    Args:
      p_logits, q_logits, where: as in `js_divergence`.
      argnums: which of the two, as in `jax.grad`.

    Returns:
      For each, (..., C), in the dtype of these logits; computed in at least float32.

    Raises:
      TypeError, ValueError: as `kl_divergence_grad`.

    Source: Lin 1991, doi:10.1109/18.61115.
    """
    a, b, where, dtypes = _pair(p_logits, q_logits, where)
    return of_arguments([lambda: _js_grad(a, b), lambda: _js_grad(b, a)], argnums, dtypes, where)


def js_divergence_hessian(p_logits: ArrayLike, q_logits: ArrayLike, *, where: ArrayLike | None = None) -> PairHessian:
    """Hessian of `js_divergence` in both logits, in three blocks of O(C) memory each (js-1).

    With g = ∂JS/∂a, c = p q/(p + q) and Π_p = I − 1 pᵀ: `first` is Π_pᵀ diag(g + c/2) Π_p, `mixed` −½ Π_pᵀ diag(c) Π_q.
    Where p and q hardly overlap its small entries keep their digits; those of `jax.hessian` only have the digits of Σc.

    Args:
      p_logits, q_logits, where: as in `js_divergence`.

    Returns:
      A `PairHessian` of operators of shape (..., C, C), in the wider of the dtypes of the logits.

    Raises:
      TypeError, ValueError: as `kl_divergence`.

    Source: Lin 1991, doi:10.1109/18.61115.
    """
    a, b, where, dtypes = _pair(p_logits, q_logits, where)
    dtype = _checks.wider_dtype(*dtypes)
    half_c = _harmonic(a, b) / 2
    masked = lambda w: unless_masked(w, where)
    return PairHessian(
        first=CentredDiagonal(a, a, masked(_js_grad(a, b) + half_c), dtype),
        mixed=CentredDiagonal(a, b, masked(-half_c), dtype),
        second=CentredDiagonal(b, b, masked(_js_grad(b, a) + half_c), dtype),
    )


def nats_to_bits(nats: ArrayLike) -> jax.Array:
    """An entropy, cross-entropy or divergence in bits: nats / log 2 (kl-2).

    Args:
      nats: (...), floating.

    Returns:
      bits: (...), at least float32.

    Raises:
      TypeError: `nats` is not of a real floating dtype.

    Source: Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x.
    """
    x = _checks.as_floating("nats", nats)
    x = x.astype(_checks.compute_dtype(x))
    return x * (1 / math.log(2))


def _pair(p_logits: ArrayLike, q_logits: ArrayLike, where: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple[jnp.dtype, jnp.dtype]]:
    """Checked logits in the dtype to compute in, 0 where masked, and their dtypes."""
    a, b = _checks.as_logits("p_logits", p_logits), _checks.as_logits("q_logits", q_logits)
    _checks.same_shape("q_logits", b, a.shape, "the shape of p_logits")
    dtypes, wide = (a.dtype, b.dtype), _checks.compute_dtype(a, b)
    a, b = a.astype(wide), b.astype(wide)
    if where is not None:
        where = _checks.as_mask("where", where, a.shape[:-1])
        a, b = jnp.where(where[..., None], a, 0), jnp.where(where[..., None], b, 0)
    return a, b, where, dtypes


# The functions below take logits of the dtype to compute in, at least float32.


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl(a: jax.Array, b: jax.Array, temperature: float) -> jax.Array:
    return compare(a, b, temperature).kl


@partial(_kl.defjvp, symbolic_zeros=True)
def _(temperature: float, primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    kl, by_p, by_q = _kl_and_gradients(*primals, temperature)
    by_a, by_b = (unless_zero(v, partial(zero_sum_product, g), kl) for g, v in zip((by_p, by_q), tangents, strict=True))
    return kl, _over(by_a + by_b, temperature)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl_and_gradients(a: jax.Array, b: jax.Array, temperature: float) -> Arrays:
    """KL, and p ∘ (t − KL) and q − p, its gradients in a/T and b/T."""
    both = compare(a, b, temperature)
    return both.kl, both.by_p / UNIT, both.by_q / UNIT


@partial(_kl_and_gradients.defjvp, symbolic_zeros=True)
def _(temperature: float, primals: Arrays, tangents: Arrays) -> tuple[Arrays, Arrays]:
    kl, by_p, by_q = _kl_and_gradients(*primals, temperature)
    (da, db), x, y = tangents, *(_over(z, temperature) for z in primals)
    along = lambda v, function: unless_zero(v, function, by_p)
    by_a, by_b = (unless_zero(v, partial(zero_sum_product, g), kl) for g, v in ((by_p, da), (by_q, db)))
    j_da = along(da, partial(rounded_jacobian_product, x))
    by_pp = j_da + along(da, partial(twist, x, by_p))
    return (kl, by_p, by_q), (
        _over(by_a + by_b, temperature),
        _over(by_pp - along(db, partial(jacobian_product, x)), temperature),
        _over(along(db, partial(jacobian_product, y)) - j_da, temperature),
    )


def _over(x: jax.Array, temperature: float) -> jax.Array:
    return x if temperature == 1 else x / temperature


@jax.custom_jvp
def _js(a: jax.Array, b: jax.Array) -> jax.Array:
    both = compare(a, b)
    return jnp.minimum(mixture_excess(both.p, both.q, both.ratio_less_one).sum(-1) / UNIT, math.log(2))  # not past its limit by rounding


@partial(_js.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    (a, b), (da, db), js = primals, tangents, _js(*primals)
    by_a = unless_zero(da, lambda v: zero_sum_product(_js_grad(a, b), v), js)
    by_b = unless_zero(db, lambda v: zero_sum_product(_js_grad(b, a), v), js)
    return js, by_a + by_b


@jax.custom_jvp
def _js_grad(a: jax.Array, b: jax.Array) -> jax.Array:
    """½ J_p log(p/m), the gradient in a.

    J annihilates constants, so log(p/m) − log(2/(1 + e^{−t*})) = −log(1 + w (e^x − 1)) will do, with x = t* − log(p/q)
    and w = 1/(1 + e^{t*}): near t* it is as accurate as x. Most of p is near the t* at which log(p/m) takes its mean, and t*
    is the mean of what is near that.
    """
    both = compare(a, b)
    p, q, t, in_p = both.p, both.q, both.log_ratio, a > -jnp.inf
    ratio = jnp.minimum(p, q) / jnp.where(p + q > 0, jnp.maximum(p, q), 1)
    softplus = log1p(ratio) - jnp.where(p < q, t, 0)  # log(1 + e^{−t})
    mean = jnp.where(in_p, p * softplus, 0).sum(-1, keepdims=True) / UNIT
    typical = -jnp.log(jnp.maximum(jnp.expm1(mean), jnp.finfo(mean.dtype).tiny))
    weight = jnp.where(in_p & (jnp.abs(t - typical) < 1), p, 0)
    bulk = weight.sum(-1, keepdims=True)
    centre = jnp.where(bulk > 0, jnp.where(weight > 0, weight * t, 0).sum(-1, keepdims=True) / jnp.where(bulk > 0, bulk, 1), typical)
    x = (centre - t) - both.log_ratio_tail
    near = jnp.abs(x) < NEAR
    rise, _ = expm1_and_remainder(jnp.where(near, x, 0))
    return jacobian_product(a, jnp.where(in_p, -jnp.where(near, log1p(jax.nn.sigmoid(-centre) * rise), softplus - jax.nn.softplus(-centre)), 0)) / 2


@partial(_js_grad.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    """The Hessian is ½ (diag(2g) − 2g pᵀ − p 2gᵀ) + ½ Π_pᵀ diag(c) Π_p, and Π_pᵀ diag(c) Π_q = σ (J_r + (r − p)(r − q)ᵀ) with r = c/σ, σ = Σc."""
    a, b = primals
    da, db = tangents
    gradient = _js_grad(a, b)
    log_c = -jnp.logaddexp(-log_probs(a), -log_probs(b))
    disjoint = log_c.max(-1, keepdims=True) == -jnp.inf
    r, half_sigma = jnp.where(disjoint, 0, log_c), _harmonic(a, b).sum(-1, keepdims=True) / 2
    r_minus_p, r_minus_q = _kl_and_gradients(a, r, 1.0)[2], _kl_and_gradients(b, r, 1.0)[2]
    by_a = unless_zero(da, lambda v: shared_product(r, half_sigma, r_minus_p, r_minus_p, v) + twist(a, gradient, v), gradient)
    by_b = unless_zero(db, lambda v: shared_product(r, half_sigma, r_minus_p, r_minus_q, v), gradient)
    return gradient, by_a - by_b


def _harmonic(a: jax.Array, b: jax.Array) -> jax.Array:
    """p q/(p + q), (..., C)."""
    p, q = _softmax(a), _softmax(b)
    mass = p + q
    return jnp.maximum(p, q) * (jnp.minimum(p, q) / jnp.where(mass > 0, mass, 1))


def unless_masked(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """0 where an example is left out; `where` has the leading axes of x."""
    return x if where is None else jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, 0)


def of_arguments(
    gradients: Sequence[Callable[[], jax.Array]], argnums: int | Sequence[int], dtypes: Sequence[jnp.dtype], where: jax.Array | None
) -> jax.Array | tuple[jax.Array, ...]:
    """The gradients in the arguments of these numbers, as `jax.grad` returns them."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(n in range(len(gradients)) for n in numbers):
        raise ValueError(f"argnums: expected numbers from 0 to {len(gradients) - 1}, got {argnums}; 0 is the first argument")
    chosen = tuple(unless_masked(gradients[n](), where).astype(dtypes[n]) for n in numbers)
    return chosen[0] if isinstance(argnums, int) else chosen
