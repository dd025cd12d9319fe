"""Kullback–Leibler and Jensen–Shannon divergence between logits, beside their derivatives in both.

    KL(p‖q) = Σ p log(p/q)                                 kl-1      p = softmax(a), q = softmax(b), t = log(p/q)
    ∂KL/∂a  = p ∘ (t − KL) = J_p (a − b)                   kl-7
    ∂KL/∂b  = q − p                                        kl-8
    ∇²_a KL = J_p + diag(g) − g pᵀ − p gᵀ                  hess-8    g = ∂KL/∂a;  ∇_a∇_b KL = −J_p,  ∇²_b KL = J_q
    JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2        js-1      ∂JS/∂a = ½ J_p log(p/m)

Where p and q are close, KL is a sum of remainders p ψ(−t), ψ(x) = e^x − 1 − x, never a difference of logarithms.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._bregman import NEAR, expm1_and_remainder, mixture_excess
from jaxgrad._exponentials import UNIT, log1p, quotient, split_at_heaviest, two_difference
from jaxgrad._linear import Arrays, LinearMap
from jaxgrad._operators import LinearOperator, PairHessian
from jaxgrad._softmax import SoftmaxJacobian, _softmax, deviation, deviation_transpose, jacobian_product, log_probs, zero_sum_product

SMALL = 0.3  # nats: below, KL is log(1 + Σ p ψ(E_p[D] − D)) with D = a − b, above Σ p ψ(−t)


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
    return _unless_masked(_kl(a, b, _checks.positive("temperature", temperature)), where)


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
    return _of_arguments([lambda: _kl_grad_p(a, b, t) / t, lambda: _kl_grad_q(a, b, t) / t], argnums, dtypes, where)


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
    dtype = jnp.promote_types(*dtypes)
    scale = _unless_masked(jnp.full(a.shape[:-1], t**-2, a.dtype), where)
    x, y = (z if t == 1 else z / t for z in (a, b))
    return PairHessian(
        first=CentredDiagonal(x, x, (_kl_grad_p(a, b, t) + _softmax(x)) * scale[..., None], dtype),
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
    return _unless_masked(_js(a, b), where)


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
    return _of_arguments([lambda: _js_grad(a, b), lambda: _js_grad(b, a)], argnums, dtypes, where)


def js_divergence_hessian(p_logits: ArrayLike, q_logits: ArrayLike, *, where: ArrayLike | None = None) -> PairHessian:
    """Hessian of `js_divergence` in both logits, in three blocks of O(C) memory each (js-1).

    With g = ∂JS/∂a, c = p q/(p + q) and Π_p = I − 1 pᵀ: `first` is Π_pᵀ diag(g + c/2) Π_p, `mixed` −½ Π_pᵀ diag(c) Π_q.

    Args:
      p_logits, q_logits, where: as in `js_divergence`.

    Returns:
      A `PairHessian` of operators of shape (..., C, C), in the wider of the dtypes of the logits.

    Raises:
      TypeError, ValueError: as `kl_divergence`.

    Source: Lin 1991, doi:10.1109/18.61115.
    """
    a, b, where, dtypes = _pair(p_logits, q_logits, where)
    dtype = jnp.promote_types(*dtypes)
    half_c = _harmonic(a, b) / 2
    masked = lambda w: _unless_masked(w, where)
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
    head, tail = (1.4423828125, 3.1222848896340736e-4) if x.dtype == jnp.float32 else (1.4426950408889634, 2.0355273740931033e-17)
    return x * head + x * tail


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CentredDiagonal(LinearOperator):
    """(I − p 1ᵀ) diag(w) (I − 1 qᵀ), diagonal plus rank two: p = softmax(`left`), q = softmax(`right`), w = `weights`, (..., C) each.

    With w = p = q it is the Jacobian of softmax. It annihilates constant vectors. Results come in `result_dtype`.
    """

    left: jax.Array
    right: jax.Array
    weights: jax.Array
    result_dtype: jnp.dtype = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., C, C)."""
        return (*self.weights.shape, self.weights.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype in which everything with a class axis comes back."""
        return self.result_dtype

    @property
    def T(self) -> "CentredDiagonal":
        """The transpose, with left and right exchanged."""
        return CentredDiagonal(self.right, self.left, self.weights, self.result_dtype)

    def matvec(self, vector: ArrayLike) -> jax.Array:
        """The product with one vector (..., C) a row; a common offset of the vector costs no digits.

        Raises:
          TypeError: `vector` is not of a real floating dtype.
          ValueError: its shape is not that of the logits.
        """
        v = _checks.as_floating("vector", vector)
        _checks.same_shape("vector", v, self.weights.shape, "one vector for each row of the logits")
        scaled = self.weights * deviation(self.right, v.astype(self.weights.dtype))
        return deviation_transpose(self.left, scaled).astype(self.dtype)

    def diagonal(self) -> jax.Array:
        """w_i (1 − p_i)(1 − q_i) + p_i q_i Σ_{l≠i} w_l, (..., C)."""
        return self._diagonal().astype(self.dtype)

    def trace(self) -> jax.Array:
        """The sum of the diagonal, (...), at least float32."""
        return self._diagonal().sum(-1)

    def to_dense(self) -> jax.Array:
        """The matrices (..., C, C), symmetric to the bit if left and right are the same.

        For i ≠ j −w_i (1 − p_i) q_j − p_i w_j (1 − q_j) + p_i q_j Σ_{l≠i,j} w_l.
        """
        (p, p_rest), (q, q_rest), w = _with_complement(self.left), _with_complement(self.right), self.weights
        rows, columns = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
        heavy = self._heavy()
        either = rows(heavy) | columns(heavy)
        light = jnp.where(heavy, 0, w)
        others = light.sum(-1)[..., None, None] - (rows(light) + columns(light)) + jnp.where(either, 0, jnp.where(heavy, w, 0).sum(-1)[..., None, None])
        crossed = -(rows(w * p_rest) * columns(q) + rows(p) * columns(w * q_rest)) + rows(p) * columns(q) * others
        return jnp.where(jnp.eye(w.shape[-1], dtype=bool), self._diagonal()[..., None], crossed).astype(self.dtype)

    def _diagonal(self) -> jax.Array:
        (p, p_rest), (q, q_rest), w = _with_complement(self.left), _with_complement(self.right), self.weights
        heavy = self._heavy()
        light = jnp.where(heavy, 0, w)
        others = light.sum(-1, keepdims=True) - light + jnp.where(heavy, 0, jnp.where(heavy, w, 0).sum(-1, keepdims=True))
        return w * p_rest * q_rest + p * q * others

    def _heavy(self) -> jax.Array:
        """True at the (first) weight of the largest magnitude, which sums over the others must leave out, (..., C)."""
        return split_at_heaviest(jnp.abs(self.weights)).heaviest


def _pair(
    p_logits: ArrayLike, q_logits: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple[jnp.dtype, jnp.dtype]]:
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


class Comparison(NamedTuple):
    """What KL, JS and their gradients are made of; p = softmax(a/T), q = softmax(b/T)."""

    p: jax.Array  # (..., C)
    q: jax.Array  # (..., C)
    log_ratio: jax.Array  # (..., C): t = log(p/q), where neither is masked
    kl: jax.Array  # (...)
    by_p: jax.Array  # (..., C): p ∘ (t − KL)
    by_q: jax.Array  # (..., C): q − p


@partial(jax.jit, inline=True, static_argnums=2)
def compare(a: jax.Array, b: jax.Array, temperature: float = 1.0) -> Comparison:
    """Both distributions against each other, without cancellation however near they are.

    With D = (a − b)/T and x = E_p[D] − D, any split of the classes into near and far ones has
        e^KL Σ_near q = Σ_near p e^x     or     KL = log(1 + S / Σ_near q),   S = Σ_near p ψ(x) + Σ_far (q − p (1 + x))
    whose far terms do not need e^x. S depends on the mean E_p[D] to second order only, and no normaliser enters.
    If KL is not small it is S itself with −t in place of x, in which the sign of no sum can flip.
    """
    at_p, at_q = split_at_heaviest(a, temperature), split_at_heaviest(b, temperature)
    p, q = at_p.exps * (at_p.inverse * UNIT), at_q.exps * (at_q.inverse * UNIT)  # times UNIT, as their sums may be small
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
    t = ((head + lead) - log_normalisers) + (tail + lead_tail)

    small = ((shift + origin + lead) - log_normalisers < SMALL) & ~broken
    x = jnp.where(small, -deviation_head, -t)
    near = in_both & (jnp.abs(x) < NEAR)
    x = jnp.where(in_both, x, 0)
    rise, psi = expm1_and_remainder(jnp.where(near, x, 0))
    psi = psi - jnp.where(small, rise * deviation_tail, 0)
    total = jnp.where(near, p * psi, (q - p) - p * x).sum(-1, keepdims=True)
    q_near = 1 - jnp.where(near, 0, q).sum(-1, keepdims=True) / UNIT
    growth = jnp.where(small, total / q_near, 0)  # UNIT · (e^KL − 1)
    kl = jnp.where(small, log1p(growth / UNIT), total / UNIT)

    by_q = jnp.where(near, p * ((rise * UNIT - growth) / (1 + growth / UNIT) / UNIT), q - p) / UNIT
    rests = at_p.others * (at_p.inverse * UNIT), at_q.others * (at_q.inverse * UNIT)
    shared_top = at_p.heaviest & at_q.heaviest & (jnp.maximum(*rests) < 1.5 * (p / UNIT) * (jnp.abs(x) * UNIT + growth))
    by_q = jnp.where(shared_top, (rests[0] - rests[1]) / UNIT, by_q)
    limit = jnp.where(in_p, jnp.where(in_q, -jnp.inf, jnp.inf), 0)
    return Comparison(
        p=p / UNIT,
        q=q / UNIT,
        log_ratio=jnp.where(small, kl + deviation_head, t),
        kl=jnp.where(broken, jnp.where(jnp.isnan(total), jnp.nan, jnp.inf), kl)[..., 0],
        by_p=jnp.where(broken, jnp.where(jnp.isnan(total), jnp.nan, limit), p * deviation_head / UNIT),
        by_q=by_q,
    )


def _renormalised(head: jax.Array, tail: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same sum, with its head rounded to nearest."""
    total, lost = two_difference(head, -tail)
    return total, jnp.where(jnp.isfinite(total), lost, 0)


def _quotient_of(head: jax.Array, tail: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    return (head, tail) if temperature == 1 else quotient(head, tail, temperature)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl(a: jax.Array, b: jax.Array, temperature: float) -> jax.Array:
    return compare(a, b, temperature).kl


@partial(_kl.defjvp, symbolic_zeros=True)
def _(temperature: float, primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    gradients = lambda: (_kl_grad_p(*primals, temperature), _kl_grad_q(*primals, temperature))
    parts = [zero_sum_product(g, v) for g, v in zip(gradients(), tangents, strict=True) if not isinstance(v, SymbolicZero)]
    return _kl(*primals, temperature), _over(sum(parts[1:], start=parts[0]), temperature)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl_grad_p(a: jax.Array, b: jax.Array, temperature: float) -> jax.Array:
    """p ∘ (t − KL), the gradient in a/T."""
    return compare(a, b, temperature).by_p


@partial(_kl_grad_p.defjvp, symbolic_zeros=True)
def _(temperature: float, primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    gradient, x = _kl_grad_p(*primals, temperature), _over(primals[0], temperature)
    da, db = tangents
    by_a = 0 if isinstance(da, SymbolicZero) else _rounded_jacobian_product(x, da) + _twist(x, gradient, da)
    by_b = 0 if isinstance(db, SymbolicZero) else jacobian_product(x, db)
    return gradient, _over(by_a - by_b, temperature)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl_grad_q(a: jax.Array, b: jax.Array, temperature: float) -> jax.Array:
    """q − p, the gradient in b/T."""
    return compare(a, b, temperature).by_q


@partial(_kl_grad_q.defjvp, symbolic_zeros=True)
def _(temperature: float, primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    by_a, by_b = (0 if isinstance(v, SymbolicZero) else jacobian_product(_over(z, temperature), v) for z, v in zip(primals, tangents, strict=True))
    return _kl_grad_q(*primals, temperature), _over(by_b - by_a, temperature)


def _over(x: jax.Array, temperature: float) -> jax.Array:
    return x if temperature == 1 else x / temperature


def _twisted(z: jax.Array, g: jax.Array, v: jax.Array) -> jax.Array:
    """(diag(g) − g pᵀ − p gᵀ) v for Σg = 0 (hess-8); its limit where g is infinite."""
    p = _softmax(z)
    above = jnp.isposinf(g)
    broken = above.any(-1, keepdims=True)
    share, rest = (jnp.where(part, p, 0).sum(-1, keepdims=True) for part in (above, ~above))
    g = jnp.where(broken, p * jnp.where(above, rest, -share), g)
    twist = _rounded(g * deviation(z, v)) - _rounded(p * zero_sum_product(g, v)[..., None])
    return jnp.where(broken, jnp.where(twist == 0, 0, jnp.sign(twist) * jnp.inf), twist)


def _shared_terms(r: jax.Array, sigma: jax.Array, left: jax.Array, right: jax.Array, v: jax.Array) -> jax.Array:
    """σ (J + left rightᵀ) v for Σ right = 0, J of softmax(r)."""
    return _rounded(sigma * jacobian_product(r, v)) + _rounded(sigma * (left * zero_sum_product(right, v)[..., None]))


def _rounded(x: jax.Array) -> jax.Array:
    """A finite product before it is added to another: a fused multiply-add would round one of the two, and the other in the transpose."""
    return jnp.maximum(x, jnp.finfo(x.dtype).min)


_inner = lambda g, v: (g * v).sum(-1, keepdims=True)
_turned = lambda z, v, dz: jacobian_product(z, deviation(z, v) * deviation(z, dz))  # the derivative of J v along dz
_rounded_jacobian_product = LinearMap("rounded_jacobian_product", lambda z, v: _rounded(jacobian_product(z, v)))
_twist = LinearMap("twist", _twisted)
_shared_product = LinearMap("shared_product", _shared_terms)
_rounded_jacobian_product.derive(transpose=_rounded_jacobian_product, in_r=(_turned,))
_twist.derive(
    transpose=_twist,
    in_r=(
        lambda z, g, v, dz: -g * _inner(jacobian_product(z, dz), v) - jacobian_product(z, dz) * _inner(g, v),
        lambda z, _, v, dg: dg * deviation(z, v) - _softmax(z) * _inner(dg, deviation(z, v)),
    ),
)
_shared_product.derive(
    transpose=lambda r, sigma, left, right, v: _shared_product(r, sigma, right, left, v),
    in_r=(
        lambda r, sigma, _left, _right, v, dr: sigma * _turned(r, v, dr),
        lambda r, _, left, right, v, dsigma: dsigma * (jacobian_product(r, v) + left * _inner(right, v)),
        lambda _r, sigma, _left, right, v, dleft: sigma * dleft * _inner(right, v),
        lambda _r, sigma, left, _right, v, dright: sigma * left * _inner(dright, v),
    ),
)


@jax.custom_jvp
def _js(a: jax.Array, b: jax.Array) -> jax.Array:
    both = compare(a, b)
    mass = both.p + both.q
    return (mass * mixture_excess(both.by_q / jnp.where(mass > 0, mass, 1))).sum(-1) / 2


@partial(_js.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    a, b = primals
    gradients = lambda: (_js_grad(a, b), _js_grad(b, a))
    parts = [zero_sum_product(g, v) for g, v in zip(gradients(), tangents, strict=True) if not isinstance(v, SymbolicZero)]
    return _js(a, b), sum(parts[1:], start=parts[0])


@jax.custom_jvp
def _js_grad(a: jax.Array, b: jax.Array) -> jax.Array:
    """½ J_p log(p/m), the gradient in a: log(p/m) = log(1 + u) with u = (p − q)/(p + q), or log 2 − log(1 + e^{−t})."""
    both = compare(a, b)
    mass = both.p + both.q
    u = -both.by_q / jnp.where(mass > 0, mass, 1)
    t = jnp.minimum(both.log_ratio, 0)
    surprise = jnp.where(u > -0.5, jnp.log1p(jnp.maximum(u, -0.5)), (math.log(2) + t) - jnp.log1p(jnp.exp(t)))
    return jacobian_product(a, jnp.where(a == -jnp.inf, 0, surprise)) / 2


@partial(_js_grad.defjvp, symbolic_zeros=True)
def _(primals: Arrays, tangents: Arrays) -> tuple[jax.Array, jax.Array]:
    """The Hessian is ½ (diag(2g) − 2g pᵀ − p 2gᵀ) + ½ Π_pᵀ diag(c) Π_p, and Π_pᵀ diag(c) Π_q = σ (J_r + (r − p)(r − q)ᵀ) with r = c/σ, σ = Σc."""
    a, b = primals
    da, db = tangents
    gradient = _js_grad(a, b)
    log_c = -jnp.logaddexp(-log_probs(a), -log_probs(b))
    disjoint = log_c.max(-1, keepdims=True) == -jnp.inf
    r, half_sigma = jnp.where(disjoint, 0, log_c), _harmonic(a, b).sum(-1, keepdims=True) / 2
    r_minus_p, r_minus_q = _kl_grad_q(a, r, 1.0), _kl_grad_q(b, r, 1.0)
    by_a = 0 if isinstance(da, SymbolicZero) else _shared_product(r, half_sigma, r_minus_p, r_minus_p, da) + _twist(a, gradient, da)
    by_b = 0 if isinstance(db, SymbolicZero) else _shared_product(r, half_sigma, r_minus_p, r_minus_q, db)
    return gradient, by_a - by_b


def _harmonic(a: jax.Array, b: jax.Array) -> jax.Array:
    """p q/(p + q), (..., C)."""
    p, q = _softmax(a), _softmax(b)
    mass = p + q
    return jnp.maximum(p, q) * (jnp.minimum(p, q) / jnp.where(mass > 0, mass, 1))


def _with_complement(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """p and 1 − p, (..., C) each."""
    at_k = split_at_heaviest(z)
    return at_k.probs, jnp.where(at_k.heaviest, at_k.complement, 1 - at_k.probs)


def _unless_masked(x: jax.Array, where: jax.Array | None) -> jax.Array:
    """0 where an example is left out; `where` has the leading axes of x."""
    return x if where is None else jnp.where(where.reshape(where.shape + (1,) * (x.ndim - where.ndim)), x, 0)


def _of_arguments(gradients: Sequence, argnums: int | Sequence[int], dtypes: Sequence[jnp.dtype], where: jax.Array | None) -> jax.Array | tuple[jax.Array, ...]:
    """The gradients in the arguments of these numbers, as `jax.grad` returns them."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(n in range(len(gradients)) for n in numbers):
        raise ValueError(f"argnums: expected numbers from 0 to {len(gradients) - 1}, got {argnums}; 0 is the first argument")
    chosen = tuple(_unless_masked(gradients[n](), where).astype(dtypes[n]) for n in numbers)
    return chosen[0] if isinstance(argnums, int) else chosen
