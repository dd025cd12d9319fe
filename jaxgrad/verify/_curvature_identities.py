"""The identities of curvature in the parameters, in the direction of the kernel A of the features itself.

z = W s tanh(A x + a) + b, so that along A the derivatives of z are ż = W s t′ ∘ u̇ and z̈ = W s t″ ∘ u̇² with u̇ = A x.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._suites import STEPS, Examples, feature_fn

Array = np.ndarray
ARGUMENTS = ("params", "inputs", "head", "bias", "labels", "weights")


def curvature_identities() -> list[Identity]:
    """The table of curvature: H = G + T, the Fisher, and the Taylor models."""
    fisher = lambda t, x, w, b, c, weights: jg.fisher(_logits(t, x, w, b), t["kernel"], weights=weights) @ t["kernel"]
    return [
        Identity(
            "hess-5",
            "∇²_θ L θ = (G + T) θ with G = J_zᵀ J J_z and T = Σ_k r_k ∇²_θ z_k",
            ARGUMENTS,
            autodiff=lambda t, x, w, b, c, weights: jax.jvp(jax.grad(_loss(plain_ids, t, x, w, b, c, weights)), (t["kernel"],), (t["kernel"],))[1],
            closed=lambda t, x, w, b, c, weights: fisher(t, x, w, b, c, weights) + _residual_product(t, x, w, b, c, weights),
            public=lambda t, x, w, b, c, weights: jg.hessian(_loss(jg.cross_entropy, t, x, w, b, c, weights), t["kernel"]) @ t["kernel"],
            arbiter=lambda *arguments: _exact_gauss_newton(*arguments) + _exact_residual(*arguments),
            scale=lambda *arguments: _scale_gauss_newton(*arguments) + _scale_residual(*arguments),
            bound=3,
            over_batch=True,
            of_chain=True,
        ),
        Identity(
            "hess-6",
            "E_{y∼p}[∇log p ∇log pᵀ] θ = G θ, the Fisher in a direction",
            ARGUMENTS,
            autodiff=_expected_outer_product,
            closed=fisher,
            public=lambda t, x, w, b, c, weights: (
                jg.ggn(_logits(t, x, w, b), lambda z: (weights.astype(z.dtype) * jg.cross_entropy(z, c)).sum(), t["kernel"]) @ t["kernel"]
            ),
            arbiter=_exact_gauss_newton,
            scale=_scale_gauss_newton,
            bound=3,
            ordinary=lambda examples: _moderate(examples) & (examples.lead <= 3),
            over_batch=True,
            of_chain=True,
        ),
        Identity(
            "taylor-1",
            "L(θ + δ) and gᵀδ, ½ δᵀG δ, ½ δᵀT δ; what they leave out shrinks as ‖δ‖³",
            ARGUMENTS,
            autodiff=lambda *arguments: _terms(plain_ids, _plain_terms, *arguments),
            closed=lambda *arguments: _terms(jg.cross_entropy, _public_terms, *arguments),
            public=lambda *arguments: _terms(jg.cross_entropy, _plain_terms, *arguments),
            arbiter=_exact_terms,
            scale=_scale_terms,
            bound=1,
            applies=_moderate,
            laws=_laws_of_taylor,
            over_batch=True,
            of_chain=True,
        ),
    ]


def _moderate(examples: Examples) -> Array:
    """Real rows on which a small step is small: the logits within 30 of 0."""
    return (examples.suite != "stress") & (examples.size <= 30)


def plain_ids(z: jax.Array, c: jax.Array) -> jax.Array:
    return jax.vmap(lambda z, c: plain.cross_entropy(z, jax.nn.one_hot(c, z.shape[-1], dtype=z.dtype)))(z, c)


def _logits(t: Any, x: Any, w: jax.Array, b: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The logits as a function of the kernel, in at least float32."""
    wide = jnp.promote_types(jnp.float32, w.dtype)
    return lambda kernel: feature_fn({**t, "kernel": kernel}, x).astype(wide) @ w.astype(wide).T + b.astype(wide)[None]


def _loss(losses: Callable[..., jax.Array], t: Any, x: Any, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> Callable[[jax.Array], jax.Array]:
    def total(kernel: jax.Array) -> jax.Array:
        each = losses(_logits(t, x, w, b)(kernel), c)
        return (weights.astype(each.dtype) * each).sum()

    return total


def _residual_product(t: Any, x: Any, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> jax.Array:
    """T θ by hand: Aᵀ-side products of s t″ ∘ u̇ ∘ Wᵀ r."""
    r = jg.cross_entropy_grad(_logits(t, x, w, b)(t["kernel"]), c)
    h = jnp.tanh(x["pixels"] @ t["kernel"] + t["bias"][None])
    bend = x["scale"][:, None] * (-2 * h * (1 - h * h)) * (x["pixels"] @ t["kernel"])
    return x["pixels"].T @ (weights.astype(h.dtype)[:, None] * bend * (r @ w.astype(r.dtype)))


def _expected_outer_product(t: Any, x: Any, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_n w_n Σ_y p_n(y) ∇log p_n(y) ⟨∇log p_n(y), θ⟩, literally."""

    def log_probs(kernel: jax.Array) -> jax.Array:
        z = _logits(t, x, w, b)(kernel)
        shifted = z - jax.lax.stop_gradient(z.max(-1, keepdims=True))
        return shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))

    log_p, slopes = jax.jvp(log_probs, (t["kernel"],), (t["kernel"],))
    return jax.vjp(log_probs, t["kernel"])[1](weights.astype(log_p.dtype)[:, None] * jnp.exp(log_p) * slopes)[0]


def _terms(losses: Callable[..., jax.Array], terms: Callable[..., jax.Array], t: Any, x: Any, w: Any, b: Any, c: Any, weights: Any) -> jax.Array:
    """L, L(θ + δ), gᵀδ, ½ δᵀG δ and ½ δᵀT δ for each δ = 2^{−k} θ, (STEPS, 5)."""
    loss_of = lambda z: (weights.astype(z.dtype) * losses(z, c)).sum()
    return jax.vmap(lambda scale: terms(_logits(t, x, w, b), loss_of, t["kernel"], scale * t["kernel"]))(jnp.asarray(_SCALES, t["kernel"].dtype))


def _plain_terms(model_fn: Any, loss_of: Any, kernel: jax.Array, step: jax.Array) -> jax.Array:
    loss = lambda k: loss_of(model_fn(k))
    velocity = jax.jvp(model_fn, (kernel,), (step,))[1]
    z = model_fn(kernel)
    gauss_newton = jnp.vdot(velocity, jax.jvp(jax.grad(loss_of), (z,), (velocity,))[1])
    acceleration = jax.jvp(lambda k: jax.jvp(model_fn, (k,), (step,))[1], (kernel,), (step,))[1]
    residual = jnp.vdot(jax.grad(loss_of)(z), acceleration)
    return jnp.stack([loss(kernel), loss(kernel + step), jnp.vdot(jax.grad(loss)(kernel), step), gauss_newton / 2, residual / 2])


def _public_terms(model_fn: Any, loss_of: Any, kernel: jax.Array, step: jax.Array) -> jax.Array:
    e = jg.taylor_expansion(model_fn, loss_of, kernel, step)
    return jnp.stack([e.value, e.exact, e.linear, e.gauss_newton, e.residual])


_SCALES = 2.0 ** (-2.0 - np.arange(STEPS))

# The arbiter, and the scales: sums of magnitudes, the rounding of z and of tanh included.


def _parts(t: Any, x: Any, w: Array, b: Array) -> tuple[Array, ...]:
    """Features, logits, u̇, and s t′ and s t″."""
    h = exact.tanh(x["pixels"] @ t["kernel"] + t["bias"])
    s = x["scale"][:, None]
    return s * h, (s * h) @ w.T + b, x["pixels"] @ t["kernel"], s * (1 - h * h), s * (-2 * h * (1 - h * h))


def _exact_gauss_newton(t: Any, x: Any, w: Array, b: Array, c: Array, weights: Array) -> Array:
    _, z, du, slope, _ = _parts(t, x, w, b)
    product = exact.jacobian_product(z, (slope * du) @ w.T)
    return x["pixels"].T @ (weights[:, None] * slope * (product @ w))


def _exact_residual(t: Any, x: Any, w: Array, b: Array, c: Array, weights: Array) -> Array:
    e, _, du, _, bend = _parts(t, x, w, b)
    return x["pixels"].T @ (weights[:, None] * bend * du * exact.chain_by_features(e, w, b, c))


def _sizes(t: Any, x: Any, w: Array, b: Array) -> tuple[Array, Array, Array]:
    """What rounding may do to u̇, ż and J ż, in units of eps: sums of magnitudes, and the rounding of z in p."""
    e, z, du, slope, _ = _parts(t, x, w, b)
    dz, p = (slope * du) @ w.T, exact.softmax(z)
    of_du = np.abs(x["pixels"]) @ np.abs(t["kernel"])
    of_dz = (np.abs(slope) * of_du + x["scale"][:, None] * np.abs(du)) @ np.abs(w).T
    of_z = np.abs(e) @ np.abs(w).T + np.abs(b)
    beside = lambda v: v[..., :, None] + v[..., None, :]
    pairs = np.abs(dz[..., :, None] - dz[..., None, :]) * (1 + beside(of_z)) + beside(of_dz)
    return of_du, of_dz, p * (p[..., None, :] * (1 - np.eye(len(w), dtype=int)) * pairs).sum(-1)


def _scale_gauss_newton(t: Any, x: Any, w: Array, b: Array, c: Array, weights: Array) -> Array:
    _, z, du, slope, _ = _parts(t, x, w, b)
    product = np.abs(exact.jacobian_product(z, (slope * du) @ w.T) @ w)
    return np.abs(x["pixels"]).T @ (weights[:, None] * (x["scale"][:, None] * product + np.abs(slope) * (_sizes(t, x, w, b)[2] @ np.abs(w))))


def _scale_residual(t: Any, x: Any, w: Array, b: Array, c: Array, weights: Array) -> Array:
    e, du = _parts(t, x, w, b)[0], _sizes(t, x, w, b)[0]
    return np.abs(x["pixels"]).T @ (weights[:, None] * x["scale"][:, None] * du * exact.chain_by_features_scale(e, w, b, c))


def _exact_terms(t: Any, x: Any, w: Array, b: Array, c: Array, weights: Array) -> Array:
    y = exact.chain_targets(w, c)
    e, z, du, slope, bend = _parts(t, x, w, b)
    dz, ddz, r = (slope * du) @ w.T, (bend * du * du) @ w.T, exact.chain_residual(e, w, b, c)
    total = lambda each: (weights * each).sum()
    linear, gauss_newton, residual = (total((a * v).sum(-1)) for a, v in ((r, dz), (dz, exact.jacobian_product(z, dz)), (r, ddz)))
    value = total(exact.cross_entropy(z, y))
    moved = [total(exact.cross_entropy(_parts({**t, "kernel": t["kernel"] * (1 + s)}, x, w, b)[1], y)) for s in _SCALES]
    return np.array([[value, there, s * linear, s * s * gauss_newton / 2, s * s * residual / 2] for s, there in zip(_SCALES, moved, strict=True)])


def _scale_terms(t: Any, x: Any, w: Array, b: Array, c: Array, weights: Array) -> Array:
    e, z = _parts(t, x, w, b)[:2]
    du, dz, product = _sizes(t, x, w, b)
    r = exact.chain_residual_scale(e, w, b, c)
    total = lambda each: (weights * each).sum()
    value = total(r.sum(-1) + exact.cross_entropy(z, exact.chain_targets(w, c)))
    linear, gauss_newton = total((r * dz).sum(-1)), total((dz * product).sum(-1))
    residual = total((r * ((x["scale"][:, None] * du * du) @ np.abs(w).T)).sum(-1))
    return np.array([[value, 2 * value, s * linear, s * s * gauss_newton / 2, s * s * residual / 2] for s in _SCALES])


def _laws_of_taylor(closed: Array) -> dict[str, bool]:
    value, there, *terms = np.moveaxis(closed.astype(np.float64), -1, 0)
    error = np.abs(there - value - sum(terms))
    known = (error > 1e3 * float(jnp.finfo(closed.dtype).eps) * value)[:, 1:]
    slopes = np.log2(error[:, :-1] / error[:, 1:])[known]
    return {"error of third order": bool(known.any() and 2.5 < np.median(slopes) < 3.5)}
