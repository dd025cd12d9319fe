"""The chain rule of a classifier: every gradient in one pass.

    x --feature_fn(params, .)--> e --head W--> z --softmax--> p --loss with y--> L

    ∂L/∂z = p − y            ce-3         ∂L/∂W = (p − y) eᵀ               chain-3
    ∂L/∂e = Wᵀ (p − y)       chain-1      ∂L/∂θ = (∂e/∂θ)ᵀ Wᵀ (p − y)      chain-4
    ∂L/∂x = (∂e/∂x)ᵀ Wᵀ (p − y)           chain-2

For a batch, L is Σ_n w_n ℓ_n, with the weights w_n = 1/N unless they are given.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._cross_entropy import cross_entropy, cross_entropy_grad


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChainGradients:
    """The losses ℓ_n (...), and the derivatives of L = Σ_n w_n ℓ_n in each quantity of the chain, in its shape and dtype.

    A leaf of `inputs` or `params` that is not floating, such as a token id, has no derivative: it is None.
    """

    loss: jax.Array  # (...): the losses themselves, in nats, not weighted
    logits: jax.Array  # (..., C)
    features: jax.Array  # (..., d)
    inputs: Any  # as `inputs`
    head: jax.Array  # (C, d)
    bias: jax.Array | None  # (C,), or None without one
    params: Any  # as `params`


def chain_gradients(
    feature_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    head: ArrayLike,
    inputs: Any,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> ChainGradients:
    """Every gradient of the chain x → e → z → p → L, with one forward and one backward pass through `feature_fn`.

    L = Σ_n w_n cross_entropy(W e_n + b, y_n) with e = feature_fn(params, inputs) (chain-1 … chain-4, ce-3). What
    comes out is what `jax.grad` of the composed loss gives, accurate also on confident examples.

    Args:
      feature_fn: maps (params, inputs) to the features e, (..., d), floating: one row for each example.
      params: θ, any pytree.
      head: W, (C, d), floating.
      inputs: x, any pytree: one example or a batch, as `feature_fn` takes it.
      targets: class ids (...) or distributions (..., C).
      bias: b, (C,), floating.
      weights: w, (...), floating; 1/N for each of the N examples by default, so that L is the mean.

    Returns:
      A `ChainGradients` with the fields `loss`, `logits`, `features`, `inputs`, `head`, `bias`, `params`.

    Raises:
      TypeError: a dtype is not floating where it must be.
      ValueError: a shape does not fit; nothing broadcasts.
      IndexError: a class id is outside [0, C) and its value is known (outside `jit`).

    Source: Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0.
    """
    head = _checks.as_floating("head", head)
    e, pull_back = jax.vjp(feature_fn, params, inputs)
    e = _checks.as_floating("feature_fn(params, inputs)", e)
    if head.ndim != 2 or e.ndim == 0 or e.shape[-1] != head.shape[-1]:
        raise ValueError(f"head: expected shape (C, d) for features of shape (..., d) = {e.shape}, got {head.shape}; transpose it if it is (d, C)")
    wide = _checks.compute_dtype(e, head)
    z = jnp.matmul(e.astype(wide), head.astype(wide).T)
    if bias is not None:
        bias = _checks.as_floating("bias", bias)
        _checks.same_shape("bias", bias, head.shape[:1], "one for each class")
        z = z + jnp.broadcast_to(bias.astype(wide), z.shape)

    loss = cross_entropy(z, targets)
    if weights is None:
        w = jnp.full(loss.shape, 1 / max(loss.size, 1), wide)
    else:
        w = _checks.as_floating("weights", weights)
        _checks.same_shape("weights", w, loss.shape, "one for each example")
    r = w.astype(wide)[..., None] * cross_entropy_grad(z, targets)
    by_features = jnp.matmul(r, head.astype(wide)).astype(e.dtype)
    rows = r.reshape(-1, r.shape[-1])
    by_head = jnp.matmul(rows.T, e.astype(wide).reshape(-1, e.shape[-1]))
    by_params, by_inputs = (jax.tree.map(_or_none, x) for x in pull_back(by_features))
    return ChainGradients(
        loss=loss,
        logits=r,
        features=by_features,
        inputs=by_inputs,
        head=by_head.astype(head.dtype),
        bias=None if bias is None else rows.sum(0).astype(bias.dtype),
        params=by_params,
    )


def _or_none(derivative: jax.Array) -> jax.Array | None:
    return None if derivative.dtype == jax.dtypes.float0 else derivative
