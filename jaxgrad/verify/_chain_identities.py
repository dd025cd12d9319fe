"""The identities of the chain x → e → z → p → L: gradients, second derivatives, and gradients of single examples.

To add a row, add an `Identity`. Its functions take the fields of `Examples` that it names, for a whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._routes import chain_gradient, head_loss, network_gradient, one_pass
from jaxgrad.verify._suites import feature_fn

Array = np.ndarray


def chain_identities() -> list[Identity]:
    """The table, in the order of its IDs."""
    plain_ids = lambda z, c: plain.cross_entropy(z, jax.nn.one_hot(c, z.shape[-1], dtype=z.dtype))
    per_example_head = lambda loss: jax.vmap(lambda e, w, b, c: jax.grad(_example_loss(loss), 1)(e, w, b, c), (0, None, None, 0))
    in_head = lambda loss, function: lambda e, w, b, c, weights: function(lambda w, e: head_loss(loss)(e, w, b, c, weights), w, e)
    dense = lambda loss, w, e: jax.hessian(loss)(w, e).reshape(w.size, w.size)
    mixed = lambda loss, w, e: jax.jvp(lambda e: jax.grad(loss)(w, e), (e,), (e[:, ::-1],))[1]
    whole = lambda loss, w, e: (jax.grad(loss)(w, e) ** 2).sum()
    head: dict[str, Any] = {"arguments": ("features", "head", "bias", "labels"), "of_chain": True, "bound": 3}
    batch: dict[str, Any] = {"arguments": ("features", "head", "bias", "labels", "weights"), "of_chain": True, "over_batch": True, "bound": 3}
    return [
        Identity(
            "chain-1",
            "∂L/∂e = Wᵀ (p − y)",
            ("features", "head", "bias", "labels"),
            autodiff=chain_gradient(plain_ids, by=0),
            closed=lambda e, w, b, c: one_pass(e, w, b, c).features,
            public=chain_gradient(jg.cross_entropy, by=0),
            arbiter=exact.chain_by_features,
            scale=exact.chain_by_features_scale,
            bound=3,
            of_chain=True,
        ),
        Identity(
            "chain-2",
            "∂L/∂x = (∂e/∂x)ᵀ Wᵀ (p − y)",
            ("params", "inputs", "head", "bias", "labels"),
            autodiff=lambda *arguments: network_gradient(plain_ids, by=1)(*arguments)["pixels"],
            closed=lambda t, x, w, b, c: jg.chain_gradients(feature_fn, t, w, x, c, bias=b, weights=jnp.ones(c.shape, w.dtype)).inputs["pixels"],
            public=lambda *arguments: network_gradient(jg.cross_entropy, by=1)(*arguments)["pixels"],
            arbiter=exact.chain_by_pixels,
            scale=exact.chain_by_pixels_scale,
            bound=3,
            of_chain=True,
        ),
        Identity(
            "chain-3",
            "∂L/∂W = Σ_n w_n (p_n − y_n) e_nᵀ",
            ("features", "head", "bias", "labels", "weights"),
            autodiff=lambda e, w, b, c, weights: jax.grad(head_loss(plain_ids), 1)(e, w, b, c, weights),
            closed=lambda e, w, b, c, weights: jg.chain_gradients(lambda _, e: e, (), w, e, c, bias=b, weights=weights).head,
            public=lambda e, w, b, c, weights: jax.grad(head_loss(jg.cross_entropy), 1)(e, w, b, c, weights),
            arbiter=exact.chain_by_head,
            scale=exact.chain_by_head_scale,
            bound=3,
            over_batch=True,
            of_chain=True,
        ),
        Identity(
            "chain-4",
            "∂L/∂θ = Σ_n w_n (∂e_n/∂θ)ᵀ Wᵀ (p_n − y_n)",
            ("params", "inputs", "head", "bias", "labels", "weights"),
            autodiff=lambda *arguments: network_gradient(plain_ids, by=0)(*arguments)["kernel"],
            closed=lambda t, x, w, b, c, weights: jg.chain_gradients(feature_fn, t, w, x, c, bias=b, weights=weights).params["kernel"],
            public=lambda *arguments: network_gradient(jg.cross_entropy, by=0)(*arguments)["kernel"],
            arbiter=exact.chain_by_kernel,
            scale=exact.chain_by_kernel_scale,
            bound=3,
            over_batch=True,
            of_chain=True,
        ),
        Identity(
            "hess-2",
            "∇²_e L = Wᵀ J W",
            autodiff=_by_features(plain_ids),
            closed=lambda e, w, b, c: _head_blocks(e, w, b, c, jnp.ones(c.shape, w.dtype)).features.to_dense(),
            public=_by_features(jg.cross_entropy),
            arbiter=lambda e, w, b, c: w.T @ exact.chain_jacobian(e, w, b, c) @ w,
            scale=lambda e, w, b, c: np.abs(w).T @ exact.chain_jacobian_scale(e, w, b, c) @ np.abs(w),
            laws=lambda closed: {"symmetric to the bit": bool((closed == closed.swapaxes(-1, -2)).all())},
            **head,
        ),
        Identity(
            "hess-3",
            "∇²_W L = Σ_n w_n J_n ⊗ e_n e_nᵀ",
            autodiff=in_head(plain_ids, dense),
            closed=lambda e, w, b, c, weights: jg.head_hessian(_wide(e), _wide(w), c, weights=weights, bias=b).to_dense()[: w.size, : w.size],
            public=in_head(jg.cross_entropy, dense),
            arbiter=lambda e, w, b, c, weights: exact.kronecker_sum(weights, exact.chain_jacobian(e, w, b, c), e),
            scale=lambda e, w, b, c, weights: exact.kronecker_sum(weights, exact.chain_jacobian_scale(e, w, b, c), np.abs(e)),
            laws=lambda closed: {"symmetric to the bit": bool((closed == closed.swapaxes(-1, -2)).all())},
            **batch,
        ),
        Identity(
            "hess-4",
            "d(∂L/∂W) along ė = Σ_n w_n ((J W ė_n) e_nᵀ + r_n ė_nᵀ), ė the features in reverse",
            autodiff=in_head(plain_ids, mixed),
            closed=lambda e, w, b, c, weights: _head_blocks(e, w, b, c, weights).head_by_features(e[:, ::-1])[0],
            public=in_head(jg.cross_entropy, mixed),
            arbiter=exact.chain_mixed,
            scale=exact.chain_mixed_scale,
            **batch,
        ),
        Identity(
            "hess-7",
            "G and T along (θ, W, b): ∂e/∂θᵀ Wᵀ J ż, Σ (J ż) eᵀ; ∂²e/∂θ² (Wᵀ r) + ∂e/∂θᵀ Ẇᵀ r, Σ r ėᵀ once",
            ("params", "inputs", "head", "bias", "labels", "weights"),
            autodiff=_parts_of_the_hessian(plain_ids),
            closed=_closed_parts_of_the_hessian,
            public=_parts_of_the_hessian(jg.cross_entropy),
            arbiter=exact.chain_parts,
            scale=exact.chain_parts_scale,
            bound=3,
            over_batch=True,
            of_chain=True,
        ),
        Identity(
            "psg-1",
            "‖∂L_n/∂W‖ = ‖r_n‖ ‖e_n‖",
            autodiff=lambda *arguments: _norms(per_example_head(plain_ids)(*arguments)),
            closed=lambda e, w, b, c: _without_bias(e, w, b, c).norms(),
            public=lambda *arguments: _norms(per_example_head(jg.cross_entropy)(*arguments)),
            arbiter=lambda e, w, b, c: exact.norm(exact.chain_residual(e, w, b, c)) * exact.norm(e),
            scale=lambda e, w, b, c: exact.norm(exact.chain_residual_scale(e, w, b, c)) * exact.norm(e),
            **head,
        ),
        Identity(
            "psg-1",
            "Σ_nm w_n w_m ((R Rᵀ) ∘ (E Eᵀ))_nm = ‖Σ_n w_n ∂L_n/∂W‖²",
            autodiff=in_head(plain_ids, whole),
            closed=lambda e, w, b, c, weights: _wide(weights) @ _without_bias(e, w, b, c).gram() @ _wide(weights),
            public=in_head(jg.cross_entropy, whole),
            arbiter=lambda *arguments: np.asarray((exact.chain_by_head(*arguments) ** 2).sum()),
            scale=lambda *arguments: np.asarray((exact.chain_by_head_scale(*arguments) ** 2).sum()),
            **batch,
        ),
    ]


def _norms(gradients: jax.Array) -> jax.Array:
    """‖·‖ of matrices (N, C, d), scaled to at most 1 first, as their squares may underflow."""
    size = jnp.abs(gradients).max((-2, -1), keepdims=True)
    scaled = gradients / jnp.where(size > 0, size, 1)
    return size[:, 0, 0] * jnp.sqrt((scaled * scaled).sum((-2, -1)))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def _example_loss(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """loss(W e + b, c) of one example, the head applied in at least float32."""
    return lambda e, w, b, c: loss(_wide(w) @ _wide(e) + _wide(b), c)


def _by_features(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return jax.vmap(jax.hessian(_example_loss(loss)), (0, None, None, 0))


def _head_blocks(e: jax.Array, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> jg.ChainHessian:
    return jg.chain_hessian(lambda _, e: e, (), w, e, c, bias=b, weights=weights)


def _without_bias(e: jax.Array, w: jax.Array, b: jax.Array, c: jax.Array) -> jg.PerExampleGradients:
    """The factors for W alone, where the logits have a bias."""
    g = jg.per_example_gradients(e, w, c, bias=b)
    return jg.PerExampleGradients(g.residuals, g.features, has_bias=False)


def _parts_of_the_hessian(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """G v and T v, (2, P), with v = (θ, W, b): JAX's derivatives of the logits and of the loss in them, apart."""

    def parts(t: Any, x: Any, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> jax.Array:
        v = (t, _wide(w), _wide(b))
        logits = lambda v: feature_fn(v[0], x) @ v[1].T + v[2][None]
        by_z = jax.grad(lambda z: (_wide(weights) * jax.vmap(loss)(z, c)).sum())
        z, z_dot = jax.jvp(logits, (v,), (v,))
        r, j_z_dot = jax.jvp(by_z, (z,), (z_dot,))
        ggn = jax.vjp(logits, v)[1](j_z_dot)[0]
        residual = jax.jvp(jax.grad(lambda v: (r * logits(v)).sum()), (v,), (v,))[1]
        return jnp.stack([ravel_pytree(ggn)[0], ravel_pytree(residual)[0]])

    return parts


def _closed_parts_of_the_hessian(t: Any, x: Any, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> jax.Array:
    v = (t, _wide(w), _wide(b))
    blocks = jg.chain_hessian(feature_fn, t, v[1], x, c, bias=v[2], weights=weights)
    return jnp.stack([ravel_pytree(part @ v)[0] for part in (blocks.ggn, blocks.residual)])
