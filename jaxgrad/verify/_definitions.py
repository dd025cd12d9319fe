"""Route 1: the literal formulas, which JAX differentiates by itself.

Nothing here is rearranged for accuracy and nothing carries a rule of its own (a test reads their jaxprs): where
they round to 0 or overflow, that is the finding. Each takes one example.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def softmax(z: jax.Array) -> jax.Array:
    """e^{z_i} / Σ_j e^{z_j} (softmax-1), shifted by the maximum, as everybody does; (C,)."""
    e = jnp.exp(z - jax.lax.stop_gradient(z.max()))
    return e / e.sum()


def cross_entropy_of_probs(p: jax.Array, y: jax.Array) -> jax.Array:
    """−Σ_k y_k log p_k (ce-1) in the probabilities; a scalar."""
    return -(y * jnp.log(p)).sum()


def cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    """−Σ_k y_k log softmax(z)_k (ce-1); a scalar."""
    shifted = z - jax.lax.stop_gradient(z.max())
    return -(y * (shifted - jnp.log(jnp.exp(shifted).sum()))).sum()


def binary_cross_entropy(z: jax.Array, y: jax.Array) -> jax.Array:
    """−y log σ(z) − (1 − y) log(1 − σ(z)) (bce-1); a scalar."""
    p = 1 / (1 + jnp.exp(-z))
    return -y * jnp.log(p) - (1 - y) * jnp.log(1 - p)


def kl_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """Σ_k p_k log(p_k/q_k) (kl-1) in the probabilities; a scalar."""
    return (p * jnp.log(p / q)).sum()


def forward_kl(z: jax.Array, y: jax.Array) -> jax.Array:
    """Σ_k y_k (log y_k − log softmax(z)_k) (kl-5); a scalar."""
    return cross_entropy(z, y) + (y * jnp.log(y)).sum()


def kl_divergence_in_bits(p: jax.Array, q: jax.Array) -> jax.Array:
    """Σ_k p_k ((−log₂ q_k) − (−log₂ p_k)) (kl-2): the expected extra information; a scalar."""
    return (p * (jnp.log2(p) - jnp.log2(q))).sum()


def js_divergence(p: jax.Array, q: jax.Array) -> jax.Array:
    """½ KL(p‖m) + ½ KL(q‖m), m = (p + q)/2 (js-1); a scalar."""
    m = (p + q) / 2
    return (kl_divergence(p, m) + kl_divergence(q, m)) / 2


def gaussian_kl(mean: jax.Array, log_variance: jax.Array, prior_mean: jax.Array, prior_log_variance: jax.Array) -> jax.Array:
    """log(s/σ) + (σ² + (μ − m)²)/(2 s²) − ½ (vae-1); one dimension, a scalar."""
    sigma, s = jnp.exp(log_variance / 2), jnp.exp(prior_log_variance / 2)
    return jnp.log(s / sigma) + (sigma**2 + (mean - prior_mean) ** 2) / (2 * s**2) - 0.5


def chain(feature_fn: Callable[[Any, Any], jax.Array], params: Any, head: jax.Array, bias: jax.Array, x: Any, y: jax.Array) -> jax.Array:
    """The composed loss of one example, x → e → z → p → L; a scalar."""
    return cross_entropy(head @ feature_fn(params, x) + bias, y)
