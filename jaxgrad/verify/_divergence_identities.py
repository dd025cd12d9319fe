"""The identities of the divergences: Kullback–Leibler in both directions, Jensen–Shannon, Gaussians, distillation.

To add a row, add an `Identity`. Its functions take the fields of `Examples` that it names, for a whole batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._routes import chain_gradient, head_loss, network_gradient, one_pass, pairwise_scale
from jaxgrad.verify._suites import Examples, feature_fn

Array = np.ndarray
TEMPERATURE = 2.5
WIDTHS = (0.75, 1.5, 3.0, 6.0)  # of the Gaussians that are fitted to a target of two modes, in classes


def divergence_identities() -> list[Identity]:
    """The table, in the order of its IDs."""
    each = jax.vmap
    total = lambda function: lambda *arguments: function(*arguments).sum()
    of_probs = lambda function: lambda z, w: function(plain.softmax(z), plain.softmax(w))
    exact_of_probs = lambda function: lambda z, w: function(exact.softmax(z), exact.softmax(w))
    both_ways = lambda function: lambda z, w: jnp.stack([function(z, w), function(w, z)], axis=-1)
    plain_kl, plain_js = of_probs(plain.kl_divergence), of_probs(plain.js_divergence)
    plain_forward = plain.forward_kl
    plain_reverse = lambda z, y: plain.kl_divergence(plain.softmax(z), y)
    exact_forward = lambda z, y: exact.kl_divergence(y, exact.softmax(z))
    exact_reverse = lambda z, y: exact.kl_divergence(exact.softmax(z), y)
    chained: dict[str, Any] = {"over_batch": False, "of_chain": True, "bound": 3}
    return [
        Identity(
            "kl-1",
            "KL(p‖q) = Σ p log(p/q)",
            ("logits", "others"),
            autodiff=each(plain_kl),
            closed=jg.kl_divergence,
            public=each(jg.kl_divergence),
            arbiter=exact_of_probs(exact.kl_divergence),
            bound=4,
            ordinary=_both_ordinary,
            laws=lambda closed: {"never negative": bool((closed >= 0).all())},
        ),
        Identity(
            "kl-2",
            "KL(P‖Q) / log 2 = Σ p ((−log₂ q) − (−log₂ p)), in bits",
            ("logits", "others"),
            autodiff=each(of_probs(plain.kl_divergence_in_bits)),
            closed=lambda z, w: jg.nats_to_bits(jg.kl_divergence(z, w)),
            public=each(lambda z, w: jg.nats_to_bits(jg.kl_divergence(z, w))),
            arbiter=lambda z, w: exact_of_probs(exact.kl_divergence)(z, w) / exact.log(0 * z[:, 0] + 2),
            bound=4,
            ordinary=_both_ordinary,
        ),
        Identity(
            "kl-3",
            "KL(P‖Q) ≠ KL(Q‖P); both ≥ 0, both 0 iff P = Q",
            ("logits", "others"),
            autodiff=each(both_ways(plain_kl)),
            closed=both_ways(jg.kl_divergence),
            public=each(both_ways(jg.kl_divergence)),
            arbiter=lambda z, w: np.stack([exact_of_probs(exact.kl_divergence)(*pair) for pair in ((z, w), (w, z))], axis=-1),
            bound=4,
            ordinary=_both_ordinary,
            applies=_same_support,
            laws=_laws_of_both_directions,
        ),
        Identity(
            "kl-4",
            "KL(y‖p) = +∞ where y > 0 = p; 0 · log 0 = 0",
            ("logits", "labels"),
            autodiff=lambda z, c: each(plain_forward)(*_masked(jnp, z, c)),
            closed=lambda z, c: jg.forward_kl(*_masked(jnp, z, c)),
            public=lambda z, c: each(jg.forward_kl)(*_masked(jnp, z, c)),
            arbiter=lambda z, c: exact.kl_divergence(_masked(np, z, c)[1], exact.softmax(_masked(np, z, c)[0])),
            bound=4,
            ordinary=lambda examples: np.zeros(len(examples.logits), bool),
            applies=lambda examples: (examples.suite != "stress") & (examples.logits.shape[-1] > 2),
            laws=lambda closed: {"infinite for every other class id": bool(np.isinf(closed).any() and np.isfinite(closed).any())},
            of_real_rows=True,
        ),
        Identity(
            "kl-5",
            "∂KL(y‖p)/∂z = ∂H(y, p)/∂z = p Σy − y",
            ("logits", "targets"),
            autodiff=each(jax.grad(plain_forward)),
            closed=jg.cross_entropy_grad,
            public=jax.grad(total(jg.forward_kl)),
            arbiter=exact.cross_entropy_grad,
            bound=6,
            scale=lambda z, y: np.maximum(exact.softmax(z) * y.sum(-1, keepdims=True), y),
        ),
        Identity(
            "kl-5",
            "∂KL(y‖p)/∂e = ∂H(y, p)/∂e",
            ("features", "head", "bias", "targets"),
            autodiff=chain_gradient(plain_forward, by=0),
            closed=lambda e, w, b, y: one_pass(e, w, b, y).features,
            public=chain_gradient(jg.forward_kl, by=0),
            arbiter=exact.chain_by_features,
            scale=exact.chain_by_features_scale,
            **chained,
        ),
        Identity(
            "kl-5",
            "∂KL(y‖p)/∂x = ∂H(y, p)/∂x",
            ("params", "inputs", "head", "bias", "targets"),
            autodiff=lambda *arguments: network_gradient(plain_forward, by=1)(*arguments)["pixels"],
            closed=lambda t, x, w, b, y: jg.chain_gradients(feature_fn, t, w, x, y, bias=b, weights=jnp.ones(len(y), w.dtype)).inputs["pixels"],
            public=lambda *arguments: network_gradient(jg.forward_kl, by=1)(*arguments)["pixels"],
            arbiter=exact.chain_by_pixels,
            scale=exact.chain_by_pixels_scale,
            **chained,
        ),
        Identity(
            "kl-5",
            "∂KL(y‖p)/∂W = ∂H(y, p)/∂W",
            ("features", "head", "bias", "targets", "weights"),
            autodiff=lambda e, w, b, y, weights: jax.grad(head_loss(plain_forward), 1)(e, w, b, y, weights),
            closed=lambda e, w, b, y, weights: jg.chain_gradients(lambda _, e: e, (), w, e, y, bias=b, weights=weights).head,
            public=lambda e, w, b, y, weights: jax.grad(head_loss(jg.forward_kl), 1)(e, w, b, y, weights),
            arbiter=exact.chain_by_head,
            scale=exact.chain_by_head_scale,
            **(chained | {"over_batch": True}),
        ),
        Identity(
            "kl-5",
            "∂KL(y‖p)/∂θ = ∂H(y, p)/∂θ",
            ("params", "inputs", "head", "bias", "targets", "weights"),
            autodiff=lambda *arguments: network_gradient(plain_forward, by=0)(*arguments)["kernel"],
            closed=lambda t, x, w, b, y, weights: jg.chain_gradients(feature_fn, t, w, x, y, bias=b, weights=weights).params["kernel"],
            public=lambda *arguments: network_gradient(jg.forward_kl, by=0)(*arguments)["kernel"],
            arbiter=exact.chain_by_kernel,
            scale=exact.chain_by_kernel_scale,
            **(chained | {"over_batch": True}),
        ),
        Identity(
            "kl-6",
            "argmin KL(y‖p) covers the modes of y, argmin KL(p‖y) seeks one",
            ("logits", "labels"),
            autodiff=lambda z, c: _over_family(z, c, each(plain_forward), each(plain_reverse), _wide(z)),
            closed=lambda z, c: _over_family(z, c, jg.forward_kl, jg.reverse_kl, _wide(z)),
            public=lambda z, c: _over_family(z, c, each(jg.forward_kl), each(jg.reverse_kl), _wide(z)),
            arbiter=lambda z, c: _over_family(z, c, exact_forward, exact_reverse, _exactly(z)),
            bound=4,
            ordinary=lambda examples: examples.suite != "stress",
            applies=_first_of_each_label,
            laws=_laws_of_fitting,
            of_real_rows=True,
        ),
        Identity(
            "kl-7",
            "∂KL(p‖q)/∂z_p = p ∘ (log p − log q − KL) = J_p (z_p − z_q)",
            ("logits", "others"),
            autodiff=each(jax.grad(plain_kl)),
            closed=lambda z, w: jg.kl_divergence_grad(z, w)[0],
            public=jax.grad(total(jg.kl_divergence)),
            arbiter=exact.kl_divergence_grad_p,
            bound=8,
            scale=_scale_p,
            ordinary=_both_ordinary,
        ),
        Identity(
            "kl-8",
            "∂KL(p‖q)/∂z_q = q − p",
            ("logits", "others"),
            autodiff=each(jax.grad(plain_kl, 1)),
            closed=lambda z, w: jg.kl_divergence_grad(z, w)[1],
            public=jax.grad(total(jg.kl_divergence), 1),
            arbiter=lambda z, w: exact.softmax(w) - exact.softmax(z),
            bound=8,
            scale=lambda z, w: np.maximum(_scale_p(z, w), _scale_p(w, z)),
            ordinary=_both_ordinary,
        ),
        Identity(
            "vae-1",
            "KL(N(μ, σ²)‖N(m, s²)) = ½ (σ²/s² − 1 − log(σ²/s²) + (μ − m)²/s²)",
            ("logits", "tangents", "others", "targets"),
            autodiff=each(each(plain.gaussian_kl)),
            closed=jg.gaussian_kl,
            public=each(each(jg.gaussian_kl)),
            arbiter=exact.gaussian_kl,
            bound=4,
            applies=_of_gaussians,
        ),
        Identity(
            "vae-1",
            "∂/∂μ = (μ − m)/s², ∂/∂log σ = σ²/s² − 1, the prior fixed",
            ("logits", "tangents", "others", "targets"),
            autodiff=_posterior_gradient(each(each(plain.gaussian_kl))),
            closed=lambda *arguments: _with_log_sigma(*jg.gaussian_kl_grad(*arguments)[:2]),
            public=_posterior_gradient(jg.gaussian_kl),
            arbiter=exact.gaussian_kl_grad,
            bound=4,
            applies=_of_gaussians,
        ),
        Identity(
            "js-1",
            "JS(p, q) = ½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2",
            ("logits", "others"),
            autodiff=each(plain_js),
            closed=jg.js_divergence,
            public=each(jg.js_divergence),
            arbiter=exact_of_probs(exact.js_divergence),
            bound=8,
            ordinary=_both_ordinary,
            laws=lambda closed: {"from 0 to log 2": bool(((closed >= 0) & (closed <= np.float32(math.log(2)))).all())},
        ),
        Identity(
            "js-1",
            "∂JS/∂z_p = ½ J_p log(p/m)",
            ("logits", "others"),
            autodiff=each(jax.grad(plain_js)),
            closed=lambda z, w: jg.js_divergence_grad(z, w)[0],
            public=jax.grad(total(jg.js_divergence)),
            arbiter=exact.js_divergence_grad_p,
            bound=8,
            scale=_scale_js,
            ordinary=_overlapping,
        ),
        Identity(
            "distil-1",
            "∂KL(softmax(t/T)‖softmax(z/T))/∂z = (softmax(z/T) − softmax(t/T))/T",
            ("logits", "others"),
            autodiff=each(jax.grad(lambda t, z: plain_kl(t / TEMPERATURE, z / TEMPERATURE), 1)),
            closed=lambda t, z: jg.kl_divergence_grad(t, z, temperature=TEMPERATURE)[1],
            public=jax.grad(total(lambda t, z: jg.kl_divergence(t, z, temperature=TEMPERATURE)), 1),
            arbiter=lambda t, z: (exact.softmax(z / TEMPERATURE) - exact.softmax(t / TEMPERATURE)) / TEMPERATURE,
            bound=8,
            scale=lambda t, z: np.maximum(_scale_p(t / TEMPERATURE, z / TEMPERATURE), _scale_p(z / TEMPERATURE, t / TEMPERATURE)) / TEMPERATURE,
            ordinary=_both_ordinary,
        ),
        Identity(
            "distil-1",
            "the same in the teacher: ∂/∂t = J_p (t − z)/T², p = softmax(t/T)",
            ("logits", "others"),
            autodiff=each(jax.grad(lambda t, z: plain_kl(t / TEMPERATURE, z / TEMPERATURE))),
            closed=lambda t, z: jg.kl_divergence_grad(t, z, temperature=TEMPERATURE)[0],
            public=jax.grad(total(lambda t, z: jg.kl_divergence(t, z, temperature=TEMPERATURE))),
            arbiter=lambda t, z: exact.kl_divergence_grad_p(t / TEMPERATURE, z / TEMPERATURE) / TEMPERATURE,
            bound=8,
            scale=lambda t, z: _scale_p(t / TEMPERATURE, z / TEMPERATURE) / TEMPERATURE,
            ordinary=_both_ordinary,
        ),
        Identity(
            "hess-8",
            "∇²_{z_p} KL(p‖q) = J + diag(g) − g pᵀ − p gᵀ, g = ∂KL/∂z_p",
            ("logits", "others"),
            autodiff=each(jax.hessian(plain_kl)),
            closed=lambda z, w: jg.kl_divergence_hessian(z, w).first.to_dense(),
            public=each(jax.hessian(jg.kl_divergence)),
            arbiter=exact.kl_divergence_hessian_p,
            bound=10,
            scale=_scale_hessian,
            ordinary=_both_ordinary,
            laws=lambda closed: {"symmetric to the bit": bool((closed == closed.swapaxes(-1, -2)).all())},
        ),
        Identity(
            "hess-9",
            "KL(p_θ‖p_{θ+δ}) = ½ δᵀ F δ + O(‖δ‖³)",
            ("logits", "nearby"),
            autodiff=lambda z, nearby: _quadratic(z, nearby, each(each(plain_kl)), each(each(lambda z, v: jax.jvp(plain.softmax, (z,), (v,))[1]))),
            closed=lambda z, nearby: _quadratic(z, nearby, jg.kl_divergence, lambda z, v: jg.softmax_jacobian(z) @ v),
            public=lambda z, nearby: _quadratic(z, nearby, each(jg.kl_divergence), each(each(lambda z, v: jax.vjp(jg.softmax, z)[1](v)[0]))),
            arbiter=_exact_quadratic,
            bound=6,
            scale=_scale_quadratic,
            ordinary=lambda examples: np.zeros(len(examples.logits), bool),  # the plain formula has few digits where they are near
            applies=lambda examples: (examples.suite != "stress") & (examples.lead <= 3),
            laws=_laws_of_the_metric,
            of_real_rows=True,
        ),
    ]


def _both_ordinary(examples: Examples) -> Array:
    """Real rows that neither distribution is confident or far apart in."""
    lead = lambda z: np.diff(np.sort(z.astype(np.float64), axis=-1)[:, -2:], axis=-1).max(-1, initial=0)
    spread = -0.4 * np.log(float(jnp.finfo(examples.logits.dtype).tiny))
    near = (np.ptp(x.astype(np.float64), axis=-1) <= spread for x in (examples.logits, examples.others))
    return (examples.suite != "stress") & (lead(examples.logits) <= 3) & (lead(examples.others) <= 3) & np.logical_and(*near)


def _overlapping(examples: Examples) -> Array:
    """Of these, the rows in which q/p varies by no more than e⁸: where p and q lie apart the gradient of JS is all but 0."""
    with np.errstate(invalid="ignore"):
        return _both_ordinary(examples) & (np.ptp(examples.logits.astype(np.float64) - examples.others.astype(np.float64), axis=-1) <= 8)


def _same_support(examples: Examples) -> Array:
    return (np.isinf(examples.logits) == np.isinf(examples.others)).all(-1)


def _laws_of_both_directions(closed: Array) -> dict[str, bool]:
    apart = closed[closed.max(-1) > 1e-30]  # below, one may be flushed to 0 before the other
    return {
        "never negative": bool((closed >= 0).all()),
        "0 together": bool((apart > 0).all()),
        "different as a rule": bool((apart[:, 0] != apart[:, 1]).sum() >= len(apart) / 2),
    }


def _masked(numpy: Any, z: Any, c: Any) -> tuple[Any, Any]:
    """Logits with the class after c masked, and a target on c and on the masked class if c is odd, on the one after that if it is even."""
    num_classes = z.shape[-1]
    classes = np.arange(num_classes, dtype=c.dtype)[None]
    after, next_one = (c[:, None] + 1) % num_classes == classes, (c[:, None] + 2) % num_classes == classes
    other = numpy.where((c % 2 == 1)[:, None], after, next_one)
    return numpy.where(after, -numpy.inf, z), numpy.where((c[:, None] == classes) | other, z * 0 + 0.5, z * 0)


def _over_family(z: Any, c: Any, forward: Callable[..., Any], reverse: Callable[..., Any], cast: Callable[[Array], Any]) -> Any:
    """Both divergences between the target of two modes for each label and every Gaussian of the family, (N, 2, members)."""
    members, targets = _two_modes(z.shape[-1])
    pairs = cast(np.tile(members, (len(targets), 1))), cast(np.repeat(targets, len(members), axis=0))
    numpy = jnp if isinstance(z, jax.Array) else np
    table = numpy.stack([forward(*pairs), reverse(*pairs)], axis=-1).reshape(len(targets), len(members), 2)
    return numpy.moveaxis(table, -1, 1)[c]


def _two_modes(num_classes: int) -> tuple[Array, Array]:
    """Logits of Gaussians on the line of classes, centres by half a class and widths in turn, and targets (C, C) with modes at c and half the classes on."""
    line = np.arange(num_classes)
    members = [-((line - at) ** 2) / (2 * width**2) for at in np.arange(0, num_classes - 0.5, 0.5) for width in WIDTHS]
    bumps = np.exp(-((line - line[:, None]) ** 2))
    targets = 0.6 * bumps + 0.4 * np.roll(bumps, -(num_classes // 2), axis=0) + 1e-3
    return np.array(members, np.float32), (targets / targets.sum(-1, keepdims=True)).astype(np.float32)


def _wide(z: jax.Array) -> Callable[[Array], jax.Array]:
    return lambda x: jnp.asarray(x, jnp.promote_types(jnp.float32, z.dtype))


def _exactly(z: Array) -> Callable[[Array], Array]:
    return exact.to_mpmath if z.dtype == object else lambda x: x.astype(np.float64)


def _first_of_each_label(examples: Examples) -> Array:
    """One real row for each label, if there are classes enough for two modes."""
    _, first = np.unique(examples.labels, return_index=True)
    return np.isin(np.arange(len(examples.labels)), first) & (examples.suite != "stress") & (examples.logits.shape[-1] >= 8)


def _laws_of_fitting(closed: Array) -> dict[str, bool]:
    width = np.array(WIDTHS)[closed.argmin(-1) % len(WIDTHS)]
    return {"forward covers both modes": bool((width[:, 0] >= 3).all()), "reverse seeks one": bool((width[:, 1] <= 1.5).all())}


def _of_gaussians(examples: Examples) -> Array:
    """Rows whose numbers can stand for means and logarithms of variances."""
    largest = np.abs(np.stack([examples.logits, examples.tangents, examples.others]).astype(np.float64)).max((0, -1))
    return largest <= 30


def _posterior_gradient(kl: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """∂/∂μ and ∂/∂log σ of the summed divergence, (..., 2)."""

    def gradient(mean: jax.Array, log_variance: jax.Array, *prior: jax.Array) -> jax.Array:
        return _with_log_sigma(*jax.grad(lambda m, v: kl(m, v, *prior).sum(), (0, 1))(mean, log_variance))

    return gradient


def _with_log_sigma(by_mean: jax.Array, by_log_variance: jax.Array) -> jax.Array:
    """The gradients in the mean and in log σ, (..., 2): log σ² is 2 log σ."""
    return jnp.stack([by_mean, 2 * by_log_variance], axis=-1)


def _scale_p(z: Array, w: Array) -> Array:
    """p_j Σ_i p_i |t_j − t_i| with t = log(p/q), where neither is masked."""
    with np.errstate(invalid="ignore"):
        difference = exact.log_softmax(z) - exact.log_softmax(w)
    return pairwise_scale(z, np.where(np.isfinite(difference), difference, 0))


def _scale_js(z: Array, w: Array) -> Array:
    """½ p_j Σ_i p_i |s_j − s_i| with s = log(p/m) = log 2 − log(1 + e^{−t}), t = log(p/q)."""
    with np.errstate(invalid="ignore"):
        t = exact.log_softmax(z) - exact.log_softmax(w)
    return pairwise_scale(z, -np.logaddexp(0, -np.where(np.isnan(t), 0, t))) / 2


def _scale_hessian(z: Array, w: Array) -> Array:
    """p_i p_j (1 + |x_i| + |x_j|) with x = log(p/q) − KL, and p_i (1 − p_i + |x_i|) on the diagonal."""
    p = exact.softmax(z)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.abs(_scale_p(z, w) / p)
    x = np.where(p == 0, 0, x)
    crossed = p[..., :, None] * p[..., None, :] * (1 + x[..., :, None] + x[..., None, :])
    others = np.stack([np.delete(p, i, axis=-1).sum(-1) for i in range(p.shape[-1])], axis=-1)
    return np.where(np.eye(p.shape[-1], dtype=bool), (p * (others + x))[..., None], crossed)


def _quadratic(z: jax.Array, nearby: jax.Array, kl: Callable[..., jax.Array], product: Callable[..., jax.Array]) -> jax.Array:
    """KL(p_θ‖p_{θ+δ}) and ½ δᵀ F δ for each of the steps, (N, STEPS, 2)."""
    wide = jnp.promote_types(jnp.float32, z.dtype)
    here = jnp.broadcast_to(z[:, None], nearby.shape).astype(wide)
    step = nearby.astype(wide) - here
    return jnp.stack([kl(here, nearby.astype(wide)), (step * product(here, step)).sum(-1) / 2], axis=-1)


def _exact_quadratic(z: Array, nearby: Array) -> Array:
    here = np.broadcast_to(z[:, None], nearby.shape)
    step = nearby - here
    kl = exact.kl_divergence(exact.softmax(here), exact.softmax(nearby))
    return np.stack([kl, (step * exact.jacobian_product(here, step)).sum(-1) / 2], axis=-1)


def _scale_quadratic(z: Array, nearby: Array) -> Array:
    """KL itself, and the magnitudes that ½ δᵀ F δ adds up."""
    here = np.broadcast_to(z[:, None], nearby.shape)
    step = nearby - here
    size = pairwise_scale(here.reshape(-1, z.shape[-1]), step.reshape(-1, z.shape[-1])).reshape(step.shape)
    return np.stack([0 * step[..., 0], (np.abs(step) * size).sum(-1) / 2], axis=-1)


def _laws_of_the_metric(closed: Array) -> dict[str, bool]:
    """The error is of third order: it shrinks as the quadratic term to the power 3/2."""
    kl, quadratic = np.moveaxis(closed.astype(np.float64), -1, 0)
    error = np.abs(kl - quadratic)
    known = (error > 1e-5 * quadratic).all(-1)
    slopes = np.log(error[known, 0] / error[known, -1]) / np.log(quadratic[known, 0] / quadratic[known, -1])
    return {"error of third order": bool(known.any() and 1.4 < np.median(slopes) < 1.7)}
