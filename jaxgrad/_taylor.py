"""A loss against its Taylor models, the second-order term split into Gauss–Newton and the rest.

    L(u + δ) = L + ⟨g, δ⟩ + ½ δᵀG δ + ½ δᵀT δ + O(‖δ‖³)                            taylor-1
    ⟨g, δ⟩ = ∇_z L · ż     δᵀG δ = ż · (∇²_z L) ż     δᵀT δ = ∇_z L · z̈           hess-5

ż and z̈ are the derivatives of the outputs z along u + tδ, so that neither G nor T is a difference of large numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad._curvature import as_parameters, scalar
from jaxgrad._display import Displayed
from jaxgrad._pytree_operators import as_vectors
from jaxgrad._pytrees import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class TaylorExpansion(Displayed):
    """The terms of L(u + δ) about u, scalars of shape (); with `jax.vmap` over steps they are (...)."""

    value: jax.Array  # L(u)
    linear: jax.Array  # ⟨g, δ⟩
    gauss_newton: jax.Array  # ½ δᵀG δ
    residual: jax.Array  # ½ δᵀT δ
    exact: jax.Array  # L(u + δ)

    @property
    def first_order(self) -> jax.Array:
        """L + ⟨g, δ⟩."""
        return self.value + self.linear

    @property
    def second_order(self) -> jax.Array:
        """L + ⟨g, δ⟩ + ½ δᵀH δ."""
        return self.first_order + (self.gauss_newton + self.residual)

    @property
    def error(self) -> jax.Array:
        """L(u + δ) less its second-order model: O(‖δ‖³), down to the rounding of L."""
        return (self.exact - self.value) - (self.linear + (self.gauss_newton + self.residual))


def taylor_expansion(model_fn: Callable[[Any], Any], loss_fn: Callable[[Any], jax.Array], point: Any, step: Any) -> TaylorExpansion:
    """The terms of L(u + δ) = loss_fn(model_fn(u + δ)) about u, in whatever space u lies (taylor-1, hess-5).

    In the space of the logits `model_fn` is the identity and T is 0; of the features or the head it is linear, and T is 0
    too; in the spaces of the inputs and of the parameters T is the curvature of the network. Steps δ, 2δ, … go through
    `jax.vmap`.

    Args:
      model_fn: maps u to the outputs z, a pytree of floating arrays.
      loss_fn: maps the outputs to a scalar.
      point: u, a pytree of floating arrays (...): logits, features, inputs, head or parameters.
      step: δ, shaped as `point`.

    Returns:
      A `TaylorExpansion` with `value`, `linear`, `gauss_newton`, `residual` and `exact`, in the dtype of the loss.

    Raises:
      TypeError: a leaf is not of a real floating dtype.
      ValueError: `step` is not shaped as `point`, or the loss is not a scalar.

    Source: Schraudolph 2002, doi:10.1162/08997660260028683.
    """
    point = as_parameters("point", point)
    step, is_block = as_vectors("step", step, point)
    if is_block:
        raise ValueError("step: expected one step shaped as the point, got a block of them; use jax.vmap over the steps")
    loss = scalar("loss_fn(outputs)", loss_fn)
    along = lambda u: jax.jvp(model_fn, (u,), (step,))
    (outputs, velocity), (_, acceleration) = jax.jvp(along, (point,), (step,))
    slope = lambda z: jax.jvp(loss, (z,), (velocity,))
    (value, linear), (_, gauss_newton) = jax.jvp(slope, (outputs,), (velocity,))
    _, residual = jax.jvp(loss, (outputs,), (acceleration,))
    exact = loss(model_fn(jax.tree.map(jnp.add, point, step)))
    return TaylorExpansion(value, linear, gauss_newton / 2, residual / 2, exact)
