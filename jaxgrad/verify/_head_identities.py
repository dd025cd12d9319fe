"""The head read in blocks of classes, against the same arbiter as the chain through dense logits.

To add a row, add an `Identity`. Its functions take the fields of `Examples` that it names, for a whole batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._routes import chain_gradient, head_loss

Array = np.ndarray
BLOCK_SIZE = 4  # of the 10 digits: the last block is ragged
BOUND = 3.0  # ULP, as with dense logits


def head_identities() -> list[Identity]:
    """Loss, and gradients in features and head; divergence."""
    one_hot = lambda labels, z: jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
    plain_ids = lambda z, c: plain.cross_entropy(z, one_hot(c, z))
    plain_shifted = lambda z, _: plain.kl_divergence(plain.softmax(z), plain.softmax(jnp.roll(z, 1)))
    total = lambda e, w, b, c, weights: (weights.astype(jnp.promote_types(jnp.float32, w.dtype)) * _losses(e, w, b, c)).sum()
    by_features = lambda e, w, b, c: jax.grad(total)(e, w, b, c, jnp.ones(c.shape, w.dtype))
    given: dict[str, Any] = {"bound": BOUND, "of_chain": True}
    return [
        Identity(
            "ce-1",
            "log Σ_j e^{z_j} − z_c, z = W e + b in blocks of classes",
            ("features", "head", "bias", "labels"),
            autodiff=lambda e, w, b, c: jax.vmap(lambda e, c: head_loss(plain_ids)(e[None], w, b, c[None], jnp.ones(1, w.dtype)))(e, c),
            closed=_losses,
            public=_losses,
            arbiter=lambda e, w, b, c: exact.cross_entropy(e @ w.T + b, exact.chain_targets(w, c)),
            scale=_loss_scale,
            **given,
        ),
        Identity(
            "chain-1",
            "∂L/∂e = Wᵀ (p − y), in blocks of classes",
            ("features", "head", "bias", "labels"),
            autodiff=chain_gradient(plain_ids, by=0),
            closed=by_features,
            public=lambda e, w, b, c: jax.vmap(jax.grad(lambda e, c: _losses(e, w, b, c)))(e, c),
            arbiter=exact.chain_by_features,
            scale=exact.chain_by_features_scale,
            **given,
        ),
        Identity(
            "chain-3",
            "∂L/∂W = Σ_n w_n (p_n − y_n) e_nᵀ, in blocks of classes",
            ("features", "head", "bias", "labels", "weights"),
            autodiff=jax.grad(head_loss(plain_ids), 1),
            closed=jax.grad(total, 1),
            public=jax.grad(total, 1),
            arbiter=exact.chain_by_head,
            scale=exact.chain_by_head_scale,
            over_batch=True,
            **given,
        ),
        Identity(
            "kl-1",
            "KL(p‖q) = Σ p log(p/q), q of the head with its classes rolled, in blocks of classes",
            ("features", "head", "bias"),
            autodiff=lambda e, w, b: jax.vmap(lambda e: head_loss(plain_shifted)(e[None], w, b, jnp.zeros(1, jnp.int32), jnp.ones(1, w.dtype)))(e),
            closed=_shifted,
            public=_shifted,
            arbiter=lambda e, w, b: _exact_shifted(e @ w.T + b)[0],
            scale=_shifted_scale,
            laws=lambda closed: {"never negative": bool((closed >= 0).all())},
            **given,
        ),
    ]


def _losses(e: jax.Array, w: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    return jg.linear_cross_entropy(e, w, c, bias=b, block_size=BLOCK_SIZE)


def _loss_scale(e: Array, w: Array, b: Array, c: Array) -> Array:
    """The loss and what it moves by when the products in z are rounded, (N,)."""
    spread = np.abs(e) @ np.abs(w).T + np.abs(b)
    loss = exact.cross_entropy(e @ w.T + b, exact.chain_targets(w, c))
    return loss + (np.abs(exact.chain_residual(e, w, b, c)) * spread).sum(-1)


def _shifted(e: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return jg.linear_kl_divergence(e, w, e, jnp.roll(w, 1, axis=0), p_bias=b, q_bias=jnp.roll(b, 1), block_size=BLOCK_SIZE)


def _exact_shifted(z: Array) -> tuple[Array, Array, Array]:
    """Σ p t, t = log p − log q, p (t − KL) and q − p."""
    p, q, t = exact.softmax(z), exact.softmax(np.roll(z, 1, axis=-1)), exact.log_softmax(z) - exact.log_softmax(np.roll(z, 1, axis=-1))
    kl = (p * t).sum(-1)
    return kl, p * (t - kl[:, None]), q - p


def _shifted_scale(e: Array, w: Array, b: Array) -> Array:
    """The divergence and what it moves by when the products in both z are rounded, (N,)."""
    spread = np.abs(e) @ np.abs(w).T + np.abs(b)
    kl, by_p, by_q = _exact_shifted(e @ w.T + b)
    return kl + (np.abs(by_p) * spread).sum(-1) + (np.abs(by_q) * np.roll(spread, 1, axis=-1)).sum(-1)
