"""Linear maps v ↦ A(r) v whose rounding is not linear, with their transposes given.

JAX transposes a function step by step. Where the steps remove a cancellation (recentring v, say, which changes
nothing because A kills constants) the transposed steps bring it back, so the transpose must be given as a whole.
`jax.custom_derivatives.linear_call` has no batching rule and `lax.custom_linear_solve` drops the derivative in r of
a transposed map; hence a primitive. All arguments have the classes on the last axis and as many axes as each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = tuple[jax.Array, ...]


def unless_zero(tangent: Any, f: Callable[[jax.Array], jax.Array], like: jax.Array) -> jax.Array:
    """f(tangent), or zeros like `like` for a tangent that a rule with `symbolic_zeros=True` knows to be 0."""
    return jnp.zeros_like(like) if isinstance(tangent, SymbolicZero) else f(tangent)


class LinearMap:
    """A(r) v, called as `linear_map(*r, v)`, one primitive of JAX.

    `apply(*r, v)` works on the last axis; v has the shape of the result, and an axis of r may have size 1 instead.
    `derive` must be called before it is differentiated.
    """

    def __init__(self, name: str, apply: Callable[..., jax.Array]) -> None:
        """Name the primitive, and say how it is computed."""
        self.primitive = Primitive(name)
        self.primitive.def_impl(jax.jit(apply))
        self.primitive.def_abstract_eval(lambda *arguments: arguments[-1].update(weak_type=False))
        mlir.register_lowering(self.primitive, mlir.lower_fun(apply, multiple_results=False))
        batching.primitive_batchers[self.primitive] = self._batch

    def __call__(self, *arguments: jax.Array) -> jax.Array:
        """A(r) v."""
        return self.primitive.bind(*arguments)

    def derive(self, *, transpose: Callable[..., jax.Array], in_r: tuple[Callable[..., jax.Array], ...]) -> None:
        """Give Aᵀ(r) w as `transpose(*r, w)`, and for each array of r the derivative along ṙ as a function of (*r, v, ṙ)."""

        def jvp(primals: Arrays, tangents: tuple[Any, ...]) -> Arrays:
            along = (*in_r, lambda *arguments: self(*arguments[:-2], arguments[-1]))
            parts = [part(*primals, tangent) for part, tangent in zip(along, tangents, strict=True) if not isinstance(tangent, ad.Zero)]
            return self(*primals), sum(parts[1:], start=parts[0])

        def transposed(w: Any, *arguments: Any) -> list[Any]:
            r = arguments[:-1]
            return [*[None] * len(r), None if isinstance(w, ad.Zero) else transpose(*r, w)]

        ad.primitive_jvps[self.primitive] = jvp
        ad.primitive_transposes[self.primitive] = transposed

    def _batch(self, arguments: Arrays, axes: tuple[int | None, ...]) -> tuple[jax.Array, int]:
        size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
        *r, v = (x[None] if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arguments, axes, strict=True))
        return self(*r, jnp.broadcast_to(v, (size, *v.shape[1:]))), 0


def _limit(g: jax.Array, v: jax.Array) -> jax.Array:
    """g ∘ v, where 0 and an infinite derivative make 0."""
    return jnp.where(((v == 0) & jnp.isinf(g)) | ((g == 0) & jnp.isinf(v)), 0, g * v)


limit_product = LinearMap("limit_product", _limit)
limit_product.derive(transpose=limit_product, in_r=(lambda _, v, dg: limit_product(v, jnp.broadcast_to(dg, v.shape)),))
