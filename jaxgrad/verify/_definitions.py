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


def chain(feature_fn: Callable[[Any, Any], jax.Array], params: Any, head: jax.Array, bias: jax.Array, x: Any, y: jax.Array) -> jax.Array:
    """The composed loss of one example, x → e → z → p → L; a scalar."""
    return cross_entropy(head @ feature_fn(params, x) + bias, y)
