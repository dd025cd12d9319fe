"""The chain rule of a classifier: every gradient in one pass.

    x --feature_fn(params, .)--> e --head W--> z --softmax--> p --loss with y--> L

    ∂L/∂z = p − y            ce-3         ∂L/∂W = (p − y) eᵀ               chain-3
    ∂L/∂e = Wᵀ (p − y)       chain-1      ∂L/∂θ = (∂e/∂θ)ᵀ Wᵀ (p − y)      chain-4
    ∂L/∂x = (∂e/∂x)ᵀ Wᵀ (p − y)           chain-2

For a batch, L is Σ_n w_n ℓ_n, with the weights w_n = 1/N unless they are given, N the number of examples that count.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._cross_entropy import cross_entropy, cross_entropy_grad
from jaxgrad._display import Displayed
from jaxgrad._pytrees import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class ChainGradients(Displayed):
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
    where: ArrayLike | None = None,
) -> ChainGradients:
    """Every gradient of the chain x → e → z → p → L, with one forward and one backward pass through `feature_fn`.

    L = Σ_n w_n cross_entropy(W e_n + b, y_n) with e = feature_fn(params, inputs) (chain-1 … chain-4, ce-3). What
    comes out is what `jax.grad` of the composed loss gives, accurate also on confident examples.

    Args:
      feature_fn: maps (params, inputs) to the features e, (..., d), floating: one row for each example.
      params: θ, any pytree of arrays; split a module that holds anything else first (`eqx.partition`, `nnx.split`).
      head: W, (C, d), floating.
      inputs: x, any pytree: one example or a batch, as `feature_fn` takes it.
      targets: class ids (...) or distributions (..., C).
      bias: b, (C,), floating.
      weights: w, (...), floating; 1/N for each of the N examples that count by default, so that L is the mean.
      where: (...), boolean; an example where it is False has loss and gradients 0, and its features, target and weight
        are not looked at. Its inputs go through `feature_fn` all the same: pad with ones whose derivative is finite.

    Returns:
      A `ChainGradients` with the fields `loss`, `logits`, `features`, `inputs`, `head`, `bias`, `params`.

    Raises:
      TypeError: a dtype is not floating where it must be.
      ValueError: a shape does not fit; nothing broadcasts.
      IndexError: a class id is outside [0, C) and its value is known (outside `jit`).

    Source: Rumelhart, Hinton and Williams 1986, doi:10.1038/323533a0.
    """
    e, pull_back = jax.vjp(feature_fn, params, inputs)
    link = head_link("feature_fn(params, inputs)", e, head, bias, where)
    w = example_weights(weights, link)
    r = w[..., None] * cross_entropy_grad(link.logits, targets, where=where)
    by_features = jnp.matmul(r, link.head).astype(e.dtype)
    by_head, by_bias = sum_of_outer_products(r, link.features)
    by_params, by_inputs = (jax.tree.map(_or_none, x) for x in pull_back(by_features))
    return ChainGradients(
        loss=cross_entropy(link.logits, targets, where=where),
        logits=r,
        features=by_features,
        inputs=by_inputs,
        head=by_head.astype(jnp.asarray(head).dtype),
        bias=None if bias is None else by_bias.astype(jnp.asarray(bias).dtype),
        params=by_params,
    )


class HeadLink(NamedTuple):
    """What links features to logits, checked, in the dtype to compute in; features are 0 where an example is masked."""

    features: jax.Array  # (..., d)
    head: jax.Array  # (C, d)
    logits: jax.Array  # (..., C): W e + b
    where: jax.Array | None  # (...)


def head_link(name: str, features: ArrayLike, head: ArrayLike, bias: ArrayLike | None, where: ArrayLike | None) -> HeadLink:
    """The logits W e + b of features (..., d), which `name` is the name of."""
    e, w, b = _checks.as_linear_head(name, features, head, bias)
    wide = _checks.compute_dtype(e, w)
    e, w = e.astype(wide), w.astype(wide)
    where = None if where is None else _checks.as_mask("where", where, e.shape[:-1])
    e = mask_features(e, where)
    z = jnp.matmul(e, w.T)
    if b is not None:
        z = z + jnp.broadcast_to(b.astype(wide), z.shape)
    return HeadLink(e, w, z, where)


def mask_features(e: jax.Array, where: jax.Array | None) -> jax.Array:
    """Features (..., d), 0 where an example is masked."""
    return e if where is None else jnp.where(where[..., None], e, 0)


def with_one_for_bias(e: jax.Array, has_bias: bool) -> jax.Array:
    """Features (..., d), or with a bias (..., d + 1) with a last entry of 1, whose weights are the bias."""
    return jnp.concatenate([e, jnp.ones((*e.shape[:-1], 1), e.dtype)], axis=-1) if has_bias else e


def example_weights(weights: ArrayLike | None, link: HeadLink) -> jax.Array:
    """The weights (...), 0 where an example is masked; by default 1/N for each of the N others."""
    shape, wide, where = link.logits.shape[:-1], link.logits.dtype, link.where
    if weights is None:
        count = jnp.asarray(math.prod(shape)) if where is None else where.sum()
        w = jnp.full(shape, 1 / jnp.maximum(count, 1).astype(wide))
    else:
        w = _checks.as_floating("weights", weights)
        _checks.same_shape("weights", w, shape, "one for each example")
    return w.astype(wide) if where is None else jnp.where(where, w.astype(wide), 0)


def sum_of_outer_products(r: jax.Array, e: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ_n r_n e_nᵀ, (C, d), and Σ_n r_n, (C,): what vectors (..., C) in the logits are in the head and the bias."""
    rows = r.reshape(-1, r.shape[-1])
    return jnp.matmul(rows.T, e.reshape(-1, e.shape[-1])), rows.sum(0)


def _or_none(derivative: jax.Array) -> jax.Array | None:
    return None if derivative.dtype == jax.dtypes.float0 else derivative
