"""Routes that several identities share: losses through the head and the network, and the size of what cancels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify._suites import Examples, feature_fn

Array = np.ndarray


def pairwise_scale(z: Array, v: Array) -> Array:
    """p_j Σ_i p_i |v_j − v_i|, (N, C)."""
    p = exact.softmax(z)
    return p * np.stack([(p * np.abs(v[:, j : j + 1] - v)).sum(-1) for j in range(v.shape[-1])], axis=-1)


def one_pass(e: jax.Array, w: jax.Array, b: jax.Array, c: jax.Array) -> jg.ChainGradients:
    return jg.chain_gradients(lambda _, e: e, (), w, e, c, bias=b, weights=jnp.ones(c.shape[:1], w.dtype))


def head_loss(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Σ_n w_n loss(W e_n + b, c_n), the head applied in at least float32."""

    def function(e: jax.Array, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array) -> jax.Array:
        wide = jnp.promote_types(jnp.float32, w.dtype)
        z = e.astype(wide) @ w.astype(wide).T + b.astype(wide)[None]
        return (weights.astype(wide) * jax.vmap(loss)(z, c)).sum()

    return function


def chain_gradient(loss: Callable[..., jax.Array], by: int) -> Callable[..., jax.Array]:
    return lambda e, w, b, c: jax.grad(head_loss(loss), by)(e, w, b, c, jnp.ones(c.shape[:1], w.dtype))


def network_gradient(loss: Callable[..., jax.Array], by: int) -> Callable[..., Any]:
    def function(t: Any, x: Any, w: jax.Array, b: jax.Array, c: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return head_loss(loss)(feature_fn(t, x), w, b, c, jnp.ones(c.shape[:1], w.dtype) if weights is None else weights)

    return jax.grad(function, by)


def keeps_probs(examples: Examples) -> Array:
    """Rows in which no probability underflows: a range of 80 nats in float32."""
    spread = np.ptp(examples.logits.astype(np.float64), axis=-1)
    return np.nan_to_num(spread, nan=np.inf) <= -0.92 * np.log(float(jnp.finfo(examples.logits.dtype).tiny))
