"""Products with the Hessian and the Gauss–Newton matrix of a large head are those of the dense loss, without its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

N, C, D = 7, 23, 5
RNG = np.random.default_rng(0)
SHAPES = {"features": (N, D), "head": (C, D), "bias": (C,)}
POINT = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
ALONG = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
SOFT = np.exp(RNG.normal(size=(N, C)))
IDS = RNG.integers(0, C, N).astype(np.int32)
WEIGHTS = RNG.uniform(size=N)


def arrays(dtype, of):
    return {name: jnp.asarray(x, dtype) for name, x in of.items()}


def plain_logits(x):
    return x["features"] @ x["head"].T + jnp.broadcast_to(x["bias"], (N, C))


def plain_loss(z, targets, weights):
    y = targets if targets.ndim == 2 else jax.nn.one_hot(targets, C, dtype=z.dtype)
    return -(weights * (y * jax.nn.log_softmax(z)).sum(-1)).sum()


def plain_products(x, targets, weights, along, moving):
    """H v and Jᵀ (∇²_z L) J v by JAX, in the parts that move."""
    held = lambda moved: {**x, **moved}
    point, v = ({name: of[name] for name in moving} for of in (x, along))
    loss = lambda z: plain_loss(z, targets, weights)
    hvp = jax.jvp(jax.grad(lambda moved: loss(plain_logits(held(moved)))), (point,), (v,))[1]
    z, pull_back = jax.vjp(lambda moved: plain_logits(held(moved)), point)
    along_z = jax.jvp(lambda moved: plain_logits(held(moved)), (point,), (v,))[1]
    return hvp, pull_back(jax.jvp(jax.grad(loss), (z,), (along_z,))[1])[0]


def our_products(x, targets, weights, along, moving, block_size=4):
    v = jg.HeadVector(**{name: along[name] for name in moving})
    given = x["features"], x["head"], targets, v
    found = [f(*given, bias=x["bias"], weights=weights, block_size=block_size) for f in (jg.linear_cross_entropy_hvp, jg.linear_cross_entropy_ggn_product)]
    return tuple({name: getattr(product, name) for name in moving} for product in found)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    tolerance = 1e-12 if expected.dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("targets", [IDS, SOFT], ids=["ids", "distributions"])
def test_products_are_those_of_the_dense_loss(targets, widest_dtype):
    x, v, weights = arrays(widest_dtype, POINT), arrays(widest_dtype, ALONG), jnp.asarray(WEIGHTS, widest_dtype)
    y = jnp.asarray(targets, widest_dtype if targets.ndim == 2 else jnp.int32)
    for moving in (("features", "head", "bias"), ("head",), ("features",), ("bias",), ("features", "bias"), ("head", "bias")):
        both = jax.jit(lambda x, v, moving=moving: (our_products(x, y, weights, v, moving), plain_products(x, y, weights, v, moving)))
        found, expected = both(x, v)
        jax.tree.map(assert_same, found, expected)
