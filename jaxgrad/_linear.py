"""Linear maps v ↦ A(r) v whose rounding is not linear, with their transposes given.

JAX transposes a function step by step. Where the steps remove a cancellation (recentring v, say, which changes
nothing because A kills constants) the transposed steps bring it back, so the transpose must be given as a whole.
`jax.custom_derivatives.linear_call` has no batching rule and `lax.custom_linear_solve` drops the derivative in r of
a transposed map; hence a primitive. Both arguments have the classes on the last axis and as many axes as each other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Map = Callable[[jax.Array, jax.Array], jax.Array]


def linear_map(name: str, apply: Map) -> Map:
    """`apply(r, v)`, linear in v, as one primitive; `define_derivatives` must follow.

    `apply` works on the last axis, and v has the shape of the result: an axis of r may have size 1 instead.
    """
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(apply))
    primitive.def_abstract_eval(lambda r, v: v.update(weak_type=False))
    mlir.register_lowering(primitive, mlir.lower_fun(apply, multiple_results=False))

    def batch(arguments, axes):
        size = next(x.shape[a] for x, a in zip(arguments, axes, strict=True) if a is not None)
        r, v = (x[None] if a is None else jnp.moveaxis(x, a, 0) for x, a in zip(arguments, axes, strict=True))
        return primitive.bind(r, jnp.broadcast_to(v, (size, *v.shape[1:]))), 0

    batching.primitive_batchers[primitive] = batch
    return primitive.bind


def define_derivatives(bound: Map, *, transpose: Map, in_r: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]) -> None:
    """Give the map Aᵀ(r) w as `transpose(r, w)` and the derivative of A(r) v along ṙ as `in_r(r, v, ṙ)`."""
    primitive = bound.__self__

    def jvp(primals, tangents):
        (r, v), (dr, dv) = primals, tangents
        parts = []
        if not isinstance(dv, ad.Zero):
            parts.append(bound(r, dv))
        if not isinstance(dr, ad.Zero):
            parts.append(in_r(r, v, dr))
        return bound(r, v), sum(parts[1:], start=parts[0])

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = lambda w, r, v: [None, None if isinstance(w, ad.Zero) else transpose(r, w)]
