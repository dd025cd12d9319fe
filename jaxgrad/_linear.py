"""Linear maps v ↦ A(r) v whose rounding is not linear, with their transposes given.

JAX transposes a function step by step. Where the steps remove a cancellation (recentring v, say, which changes
nothing because A kills constants) the transposed steps bring it back, so the transpose must be given as a whole.
`jax.custom_derivatives.linear_call` has no batching rule and `lax.custom_linear_solve` drops the derivative in r of
a transposed map; hence a primitive. Both arguments have the classes on the last axis and as many axes as each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = tuple[jax.Array, ...]


class LinearMap:
    """A(r) v, called as `linear_map(r, v)`, one primitive of JAX.

    `apply(r, v)` works on the last axis; v has the shape of the result, and an axis of r may have size 1 instead.
    `derive` must be called before it is differentiated.
    """

    def __init__(self, name: str, apply: Callable[[jax.Array, jax.Array], jax.Array]) -> None:
        """Name the primitive, and say how it is computed."""
        self.primitive = Primitive(name)
        self.primitive.def_impl(jax.jit(apply))
        self.primitive.def_abstract_eval(lambda r, v: v.update(weak_type=False))
        mlir.register_lowering(self.primitive, mlir.lower_fun(apply, multiple_results=False))
        batching.primitive_batchers[self.primitive] = self._batch

    def __call__(self, r: jax.Array, v: jax.Array) -> jax.Array:
        """A(r) v."""
        return self.primitive.bind(r, v)

    def derive(
        self,
        *,
        transpose: Callable[[jax.Array, jax.Array], jax.Array],
        in_r: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    ) -> None:
        """Give Aᵀ(r) w as `transpose(r, w)`, and the derivative of A(r) v along ṙ as `in_r(r, v, ṙ)`."""

        def jvp(primals: Arrays, tangents: tuple[Any, ...]) -> Arrays:
            (r, v), (dr, dv) = primals, tangents
            parts = [] if isinstance(dv, ad.Zero) else [self(r, dv)]
            parts += [] if isinstance(dr, ad.Zero) else [in_r(r, v, dr)]
            return self(r, v), sum(parts[1:], start=parts[0])

        ad.primitive_jvps[self.primitive] = jvp
        ad.primitive_transposes[self.primitive] = lambda w, r, v: [None, None if isinstance(w, ad.Zero) else transpose(r, w)]

    def _batch(self, arguments: Arrays, axes: tuple[int | None, ...]) -> tuple[jax.Array, int]:
        size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
        r, v = (x[None] if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arguments, axes, strict=True))
        return self(r, jnp.broadcast_to(v, (size, *v.shape[1:]))), 0
