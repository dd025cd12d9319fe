"""Curvature of a data set is the same however it is split: batch sizes, ragged ends, padding, streams, shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxgrad as jg

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
RTOL = 1e-13 if jax.config.jax_enable_x64 else 1e-5
KEYS = jax.random.split(jax.random.key(0), 6)
N = 11
PARAMS = {"w": jax.random.normal(KEYS[0], (4, 3), DTYPE), "b": jax.random.normal(KEYS[1], (3,), DTYPE)}
DATA = {"x": jax.random.normal(KEYS[2], (N, 4), DTYPE), "y": jax.random.randint(KEYS[3], (N,), 0, 3)}
WEIGHTS = jax.random.uniform(KEYS[4], (N,), DTYPE)
VECTOR = jax.tree.map(jnp.cos, PARAMS)


def model(params, batch):
    z = jnp.tanh(batch["x"] @ params["w"])
    return z + jnp.broadcast_to(params["b"], z.shape) * z


def hessian_of(params, batch, w):
    return jg.hessian(lambda p: (w * jg.cross_entropy(model(p, batch), batch["y"])).sum(), params)


def ggn_of(params, batch, w):
    return jg.ggn(lambda p: model(p, batch), lambda z: (w * jg.cross_entropy(z, batch["y"])).sum(), params)


def fisher_of(params, batch, w):
    return jg.fisher(lambda p: model(p, batch), params, weights=w)


def empirical_of(params, batch, w):
    return jg.empirical_fisher(lambda p: jg.cross_entropy(model(p, batch), batch["y"]), params, weights=w)


def assert_same(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=RTOL * np.abs(b).max()), actual, expected)


def split(size, data=DATA):
    return [jax.tree.map(lambda x, i=i: x[i : i + size], data) for i in range(0, len(data["y"]), size)]


@pytest.mark.parametrize(("operator_fn", "weights"), [(hessian_of, None), (ggn_of, WEIGHTS), (fisher_of, None), (empirical_of, WEIGHTS)])
def test_every_split_is_the_full_batch(operator_fn, weights):
    @jax.jit
    def products(params, data, weights):
        w = jnp.full(N, 1 / N, DTYPE) if weights is None else weights
        batched = [jg.batched_curvature(operator_fn, params, data, batch_size=size, weights=weights) @ VECTOR for size in (1, 4, 2 * N)]
        return operator_fn(params, data, w) @ VECTOR, batched

    full, batched = products(PARAMS, DATA, weights)
    for product in batched:
        assert_same(product, full)
    batches = split(4, DATA if weights is None else {**DATA, "w": weights})
    streamed = jg.streamed_curvature(operator_fn, PARAMS, batches, weights_fn=None if weights is None else lambda batch: batch["w"])
    assert_same(streamed @ VECTOR, full)


def test_padding_of_weight_0_changes_nothing():
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:5]]), DATA)
    w = jnp.concatenate([jnp.full(N, 1 / N, DTYPE), jnp.zeros(5, DTYPE)])
    full = jax.jit(lambda data, w: ggn_of(PARAMS, data, w) @ VECTOR)(DATA, w[:N])
    assert_same(jax.jit(lambda data, w: jg.batched_curvature(ggn_of, PARAMS, data, batch_size=8, weights=w) @ VECTOR)(padded, w), full)
    batches = split(8, {**padded, "w": w})
    assert_same(jg.streamed_curvature(ggn_of, PARAMS, batches, weights_fn=lambda batch: batch["w"]) @ VECTOR, full)


def test_weights_may_be_of_tokens():
    x, y = DATA["x"][:8].reshape(4, 2, 4), DATA["y"][:8].reshape(4, 2)
    w = WEIGHTS[:8].reshape(4, 2)
    full = lambda data, w: fisher_of(PARAMS, data, w) @ VECTOR
    batched = lambda data, w: jg.batched_curvature(fisher_of, PARAMS, data, batch_size=3, weights=w) @ VECTOR
    assert_same(*jax.jit(lambda data, w: (batched(data, w), full(data, w)))({"x": x, "y": y}, w))


def test_the_dense_matrix_the_diagonal_and_blocks_are_those_of_the_full_batch():
    block = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), VECTOR)
    every = lambda operator: (operator.to_dense(), operator.diagonal(), operator @ block)
    full = jax.jit(lambda w: every(2.0 * fisher_of(PARAMS, DATA, w) - empirical_of(PARAMS, DATA, w)))(jnp.full(N, 1 / N, DTYPE))
    batched = lambda operator_fn: jg.batched_curvature(operator_fn, PARAMS, DATA, batch_size=4)
    streamed = lambda operator_fn: jg.streamed_curvature(operator_fn, PARAMS, split(4))
    assert_same(jax.jit(lambda: every(2.0 * batched(fisher_of) - batched(empirical_of)))(), full)
    assert_same(every(2.0 * streamed(fisher_of) - batched(empirical_of)), full)


def test_a_second_product_of_the_same_shapes_does_not_trace_again():
    traces = []

    def counted(params, batch, w):
        traces.append(jax.tree.leaves(batch)[0].shape)
        return fisher_of(params, batch, w)

    for scale in (1.0, 2.0):
        params = jax.tree.map(lambda x, s=scale: s * x, PARAMS)
        operator = jg.batched_curvature(counted, params, DATA, batch_size=4)
        product = jax.jit(lambda operator, v: operator @ v)(operator, VECTOR)
        assert_same(product, fisher_of(params, DATA, jnp.full(N, 1 / N, DTYPE)) @ VECTOR)
        if scale == 1.0:
            first = len(traces)
    assert len(traces) == first + 1  # only the check of the weights


def test_progress_wraps_the_batches_of_each_pass():
    passes = []

    def progress(batches):
        passes.append(0)
        for batch in batches:
            passes[-1] += 1
            yield batch

    operator = jg.streamed_curvature(fisher_of, PARAMS, split(4), progress=progress)
    operator @ VECTOR
    operator @ jax.tree.map(lambda x: jnp.stack([x] * 7), VECTOR)
    assert passes == [3, 3]


def test_shards_of_the_examples_change_nothing():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    data = jax.tree.map(lambda x: jax.device_put(x[:8], NamedSharding(mesh, PartitionSpec("data"))), DATA)
    full = jax.jit(lambda data: ggn_of(PARAMS, data, jnp.full(8, 1 / 8, DTYPE)) @ VECTOR)(jax.tree.map(lambda x: x[:8], DATA))
    assert_same(jg.batched_curvature(ggn_of, PARAMS, data, batch_size=4) @ VECTOR, full)


def unweighted(params, batch, w):
    return jg.fisher(lambda p: model(p, batch), params)


ERRORS = {
    "unweighted": (lambda: jg.batched_curvature(unweighted, PARAMS, DATA, batch_size=4), ValueError, "does not use the weights; a mean over each batch"),
    "unweighted stream": (lambda: jg.streamed_curvature(unweighted, PARAMS, split(4)) @ VECTOR, ValueError, "does not use the weights"),
    "batch size": (
        lambda: jg.batched_curvature(fisher_of, PARAMS, DATA, batch_size=0),
        ValueError,
        "batch_size: expected at least one example",
    ),
    "ragged": (
        lambda: jg.batched_curvature(fisher_of, PARAMS, {**DATA, "y": DATA["y"][1:]}, batch_size=4),
        ValueError,
        r"data: expected arrays \(N, ...\) .* got data\['x'\]: 11, data\['y'\]: 10",
    ),
    "scalar": (lambda: jg.batched_curvature(fisher_of, PARAMS, {"x": 1.0}, batch_size=4), ValueError, r"data\['x'\]: a scalar"),
    "empty": (lambda: jg.batched_curvature(fisher_of, PARAMS, {"x": jnp.zeros((0, 4))}, batch_size=4), ValueError, "N >= 1 examples"),
    "weights": (
        lambda: jg.batched_curvature(fisher_of, PARAMS, DATA, batch_size=4, weights=WEIGHTS[1:]),
        ValueError,
        r"weights: expected shape \(11, ...\), the examples first, got \(10,\)",
    ),
    "generator": (lambda: jg.streamed_curvature(fisher_of, PARAMS, iter(split(4))), TypeError, "got a list_iterator; pass a list or a data loader"),
    "no batch": (lambda: jg.streamed_curvature(fisher_of, PARAMS, []) @ VECTOR, ValueError, "batches: expected at least one batch"),
    "under jit": (
        lambda: jax.jit(lambda v: jg.streamed_curvature(fisher_of, PARAMS, split(4)) @ v)(VECTOR),
        TypeError,
        "cannot run under jit; .*batched_curvature",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_by_name(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
