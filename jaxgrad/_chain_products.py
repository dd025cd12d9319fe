"""Second-order products through the chain x → e → z → L, with the head in blocks: no logits (..., C) are stored.

GGN:      (J_eᵀ Wᵀ g, Σ_n w_n g eᵀ, Σ_n w_n g)     hess-6, hess-7    with ė = J_e θ̇, u = W ė + V e + ḃ, g = J u
Hessian:  that of the head along (ė, V, ḃ), and the derivative of the pull-back θ, c ↦ J_eᵀ c      hess-5
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad._display import Displayed
from jaxgrad._head import linear_cross_entropy
from jaxgrad._head_products import HeadVector, linear_cross_entropy_ggn_product, linear_cross_entropy_hvp
from jaxgrad._pytrees import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class ChainVector(Displayed):
    """A direction in the parameters of the features (..., d), the head (C, d) and the bias (C,), or a product."""

    params: Any
    head: jax.Array | None = None  # None: held, as the bias
    bias: jax.Array | None = None


def chain_hvp(
    feature_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    head: ArrayLike,
    inputs: Any,
    targets: ArrayLike,
    along: ChainVector,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
) -> ChainVector:
    """The Hessian of L = Σ_n w_n ℓ_n in θ, W and b, times a direction, where e = feature_fn(θ, inputs) (hess-5, hess-7).

    Args:
      feature_fn: maps (params, inputs) to the features e, (..., d), floating.
      params: θ, any pytree of floating arrays.
      head: W, (C, d), floating.
      inputs: x, any pytree.
      targets: class ids (...) or distributions (..., C), read in blocks.
      along: the direction, in the structure and shapes of params, head and bias; head and bias may be held as None.
      bias: b, (C,), floating; −inf masks a class.
      weights: w, (...), floating; 1/N for each of the N examples by default.
      block_size: the number of classes in a block; by default 256, or more while a block of logits has at most 2¹⁹ numbers.

    Returns:
      The product, in the structure, shapes and dtypes of params, head and bias.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Pearlmutter 1994, doi:10.1162/neco.1994.6.1.147.
    """
    _is_direction(along)
    of_params = lambda params: feature_fn(params, inputs)
    e, de = jax.jvp(of_params, (params,), (along.params,))
    direction = HeadVector(de, along.head, along.bias)
    product = linear_cross_entropy_hvp(e, head, targets, direction, bias=bias, weights=weights, block_size=block_size)
    losses, pull_back_losses = jax.vjp(lambda e: linear_cross_entropy(e, head, targets, bias=bias, block_size=block_size), e)
    scale = jnp.full_like(losses, 1 / max(losses.size, 1)) if weights is None else jnp.asarray(weights).astype(losses.dtype)
    pull_back = lambda params, cotangent: jax.vjp(of_params, params)[1](cotangent)[0]
    by_params = jax.jvp(pull_back, (params, *pull_back_losses(scale)), (along.params, product.features))[1]
    return ChainVector(by_params, product.head, product.bias)


def chain_ggn_product(
    feature_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    head: ArrayLike,
    inputs: Any,
    targets: ArrayLike,
    along: ChainVector,
    *,
    bias: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    block_size: int | None = None,
) -> ChainVector:
    """The generalised Gauss–Newton matrix of L = Σ_n w_n ℓ_n in θ, W and b, times a direction (hess-6, hess-7).

    Args:
      feature_fn, params, head, inputs, targets, along, bias, weights, block_size: as in `chain_hvp`; only the sums of
        distributions (..., C) enter.

    Returns:
      The product, in the structure, shapes and dtypes of params, head and bias.

    Raises:
      TypeError, ValueError, IndexError: as `linear_cross_entropy`.

    Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """
    _is_direction(along)
    e, push = jax.linearize(lambda params: feature_fn(params, inputs), params)
    direction = HeadVector(push(along.params), along.head, along.bias)
    product = linear_cross_entropy_ggn_product(e, head, targets, direction, bias=bias, weights=weights, block_size=block_size)
    (by_params,) = jax.linear_transpose(push, params)(product.features)
    return ChainVector(by_params, product.head, product.bias)


def _is_direction(along: ChainVector) -> None:
    if not isinstance(along, ChainVector):
        raise TypeError(f"along: expected a ChainVector, got {type(along).__name__}; pass ChainVector(params, head, bias)")
