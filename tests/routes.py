"""Ways to the gradient of a function of vectors (C,) in the arguments n, besides `jax.grad`."""

import jax
import jax.numpy as jnp


def by_jvp(f, n):
    """The gradient from one jvp along each unit vector, the other arguments held fixed."""

    def gradient(*x):
        along = lambda i: lambda t: jax.jvp(lambda z: f(*x[:i], z, *x[i + 1 :]), (x[i],), (t,))[1]
        return tuple(jax.vmap(along(i))(jnp.eye(len(x[i]), dtype=x[i].dtype)) for i in n)

    return gradient


def by_vjp(f, n):
    def gradient(*x):
        value, pullback = jax.vjp(f, *x)
        return tuple(pullback(jnp.ones_like(value))[i] for i in n)

    return gradient


def by_linearize(f, n):
    """The gradient from the linear map that `jax.linearize` and then `jax.linear_transpose` make."""

    def gradient(*x):
        value, pushforward = jax.linearize(f, *x)
        cotangents = jax.linear_transpose(pushforward, *x)(jnp.ones_like(value))
        return tuple(cotangents[i] for i in n)

    return gradient
