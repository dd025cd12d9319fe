"""On arrays sharded over data and vocabulary, every function gives what it gives on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgrad as jg

Z = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
V = np.random.default_rng(1).normal(size=(8, 12)).astype(np.float32)
Y = np.exp(V) / np.exp(V).sum(-1, keepdims=True)
IDS = np.arange(8, dtype=np.int32)


def of_logits(z, v, y):
    product = lambda loss: jax.grad(lambda z: (v * jax.grad(loss)(z)).sum())(z)
    soft = lambda z: jg.cross_entropy(z, y).sum()
    values = jg.softmax(z), jg.log_softmax(z), jg.logsumexp(z), jg.entropy(z), jg.cross_entropy(z, y)
    return *values, jg.entropy_grad(z), jax.grad(soft)(z), product(soft), jg.softmax_jacobian(z) @ v


def of_ids(z, v, ids):
    loss = lambda z: jg.cross_entropy(z, ids).sum()
    return jg.cross_entropy(z, ids), jax.grad(loss)(z), jax.jvp(jax.grad(loss), (z,), (v,))[1]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("data", None), P("data", "vocab"), P(None, "vocab")])
def test_sharded_results_are_those_of_one_device(axis_type, spec):
    mesh = jax.make_mesh((2, 2), ("data", "vocab"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        put = lambda x: jax.device_put(x, NamedSharding(mesh, P(*spec[: x.ndim])))
        cases = [(of_logits, Y)] if axis_type is AxisType.Explicit and spec[1] else [(of_logits, Y), (of_ids, IDS)]
        for function, targets in cases:
            sharded = jax.jit(function)(put(Z), put(V), put(targets))
            for mine, whole in zip(sharded, jax.tree.map(np.asarray, function(Z, V, targets)), strict=True):
                np.testing.assert_allclose(mine, whole, rtol=2e-6, atol=1e-7)


def test_shard_map_over_data():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    parts = jax.jit(jax.shard_map(of_ids, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(Z, V, IDS)
    for mine, whole in zip(parts, of_ids(jnp.asarray(Z), jnp.asarray(V), jnp.asarray(IDS)), strict=True):
        np.testing.assert_allclose(mine, whole, rtol=2e-6, atol=1e-7)
