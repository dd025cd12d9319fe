"""Every gradient of the chain equals what `jax.grad` of the composed loss gives, and the closed forms on paper."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxgrad as jg

KEYS = jax.random.split(jax.random.key(0), 8)
HEAD, BIAS = jax.random.normal(KEYS[0], (3, 4), jnp.float32), jax.random.normal(KEYS[1], (3,), jnp.float32)


def tanh_features(params, inputs):
    """A nested pytree of parameters, and inputs with a leaf that has no derivative."""
    return jnp.tanh(inputs["x"] @ params["dense"] + params["embedding"][inputs["token"]])


def make(leading, dtype=jnp.float32):
    params = {"dense": jax.random.normal(KEYS[2], (5, 4), dtype), "embedding": jax.random.normal(KEYS[3], (7, 4), dtype)}
    inputs = {"x": jax.random.normal(KEYS[4], (*leading, 5), dtype), "token": jax.random.randint(KEYS[5], leading, 0, 7)}
    return params, inputs, jax.random.randint(KEYS[6], leading, 0, 3)


def composed(params, head, x, bias, inputs, targets, weights):
    e = tanh_features(params, {**inputs, "x": x})
    losses = jg.cross_entropy(e @ head.T + jnp.broadcast_to(bias, (*e.shape[:-1], 3)), targets)
    return losses.mean() if weights is None else (weights * losses).sum()


@pytest.mark.parametrize(
    ("leading", "soft", "weighted", "transform"),
    [
        ((), False, False, jax.jit),
        ((), True, True, jax.jit),
        ((6,), False, True, jax.jit),
        ((6,), True, False, jax.jit),
        ((2, 3), False, False, jax.jit),
        ((2, 3), True, True, lambda function: function),
    ],
)
def test_chain_gradients_are_those_of_the_composed_loss(leading, soft, weighted, transform):
    params, inputs, targets = make(leading)
    if soft:
        targets = jax.nn.softmax(jax.random.normal(KEYS[7], (*leading, 3), jnp.float32))
    weights = jax.random.uniform(KEYS[7], leading, jnp.float32) if weighted else None
    chain = lambda params, head, inputs, targets, bias, weights: jg.chain_gradients(tanh_features, params, head, inputs, targets, bias=bias, weights=weights)
    g = transform(chain)(params, HEAD, inputs, targets, BIAS, weights)
    expected = transform(jax.grad(composed, argnums=(0, 1, 2, 3)))(params, HEAD, inputs["x"], BIAS, inputs, targets, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), (g.params, g.head, g.inputs["x"], g.bias), expected)
    assert g.inputs["token"] is None

    e = tanh_features(params, inputs)
    z = e @ HEAD.T + jnp.broadcast_to(BIAS, (*leading, 3))
    w = jnp.full(leading, 1 / max(1, np.prod(leading, dtype=int)), jnp.float32) if weights is None else weights
    np.testing.assert_allclose(g.loss, jg.cross_entropy(z, targets), rtol=1e-6)
    r = w[..., None] * jg.cross_entropy_grad(z, targets)
    np.testing.assert_allclose(g.logits, r, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(g.features, r @ HEAD, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(g.head, np.reshape(r, (-1, 3)).T @ np.reshape(e, (-1, 4)), rtol=1e-5, atol=1e-6)


def test_the_head_gradient_of_one_example_has_rank_one():
    params, inputs, targets = make(())
    g = jg.chain_gradients(tanh_features, params, HEAD, inputs, targets, bias=BIAS)
    np.testing.assert_allclose(g.head, np.outer(g.logits, tanh_features(params, inputs)), rtol=1e-6)


def test_one_forward_and_one_backward_pass():
    calls = []

    def features(params, x):
        calls.append(x.shape)
        return x @ params

    jg.chain_gradients(features, jnp.ones((5, 4), jnp.float32), HEAD, jnp.ones((6, 5), jnp.float32), jnp.zeros(6, jnp.int32))
    assert calls == [(6, 5)]
    network = lambda params, head, x, y: jg.chain_gradients(lambda p, x: jnp.tanh(x @ p), params, head, x, y)
    text = str(jax.make_jaxpr(network)(jnp.ones((5, 4), jnp.float32), HEAD, jnp.ones((6, 5), jnp.float32), jnp.zeros(6, jnp.int32)))
    assert text.count("dot_general") == 6  # forward: features, logits; backward: features, head, params, inputs
    assert text.count(" tanh ") == 1


def test_an_empty_batch_has_gradient_zero():
    params, inputs, targets = make((0,))
    g = jg.chain_gradients(tanh_features, params, HEAD, inputs, targets)
    assert g.loss.shape == (0,)
    assert not np.any(g.head)
    assert not np.any(g.params["dense"])


def test_derivatives_come_in_the_dtype_of_their_quantity():
    params, inputs, targets = make((6,), jnp.bfloat16)
    g = jg.chain_gradients(tanh_features, params, HEAD.astype(jnp.bfloat16), inputs, targets)
    assert {x.dtype for x in jax.tree.leaves((g.params, g.head, g.inputs, g.features))} == {jnp.dtype(jnp.bfloat16)}
    assert g.loss.dtype == jnp.float32


def test_a_confident_example_keeps_its_gradient():
    e, w = jnp.array([[30.0]], jnp.float32), jnp.array([[1.0], [0.0]], jnp.float32)
    g = jg.chain_gradients(lambda _, e: e, (), w, e, jnp.array([0], jnp.int32))
    p = np.exp(-30.0) / (1 + np.exp(-30.0))
    np.testing.assert_allclose(g.head, [[-30 * p], [30 * p]], rtol=5e-7)


@pytest.mark.parametrize(("soft", "weighted"), [(False, False), (True, True)])
def test_a_masked_example_is_inert(soft, weighted):
    """Its target out of range, its weight and its logits NaN: the gradients are those of the other examples alone."""
    params, inputs, targets = make((6,))
    targets = jax.nn.softmax(jax.random.normal(KEYS[7], (6, 3), jnp.float32)) if soft else targets
    weights = jax.random.uniform(KEYS[7], (6,), jnp.float32) if weighted else None
    where = jnp.array([True, True, False, True, False, True])
    kept = lambda x: None if x is None else x[where]
    expected = jg.chain_gradients(tanh_features, params, HEAD, jax.tree.map(kept, inputs), kept(targets), bias=BIAS, weights=kept(weights))

    spoilt = lambda x, value: None if x is None else jnp.where(where[(..., *[None] * (x.ndim - 1))], x, jnp.asarray(value, x.dtype))
    features = lambda params, inputs: spoilt(tanh_features(params, inputs), jnp.nan)
    chain = jax.jit(lambda inputs, targets, weights: jg.chain_gradients(features, params, HEAD, inputs, targets, bias=BIAS, weights=weights, where=where))
    g = chain(inputs, spoilt(targets, jnp.nan if soft else 99), spoilt(weights, jnp.nan))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)
    jax.tree.map(close, (g.params, g.head, g.bias), (expected.params, expected.head, expected.bias))
    by_example, of_others = ((g.loss, g.logits, g.features, g.inputs["x"]) for g in (g, expected))
    jax.tree.map(lambda a, b: close(a[where], b), by_example, of_others)
    assert not any(np.any(x[~where]) for x in by_example)


def test_without_examples_that_count_all_is_zero():
    params, inputs, targets = make((6,))
    g = jg.chain_gradients(tanh_features, params, HEAD, inputs, targets, bias=BIAS, where=jnp.zeros(6, bool))
    assert not any(np.any(x) for x in jax.tree.leaves(g))


def test_flax_and_equinox_models_are_feature_functions():
    x, y = jax.random.normal(KEYS[4], (6, 5), jnp.float32), jnp.zeros(6, jnp.int32)
    dense = nn.Dense(4, param_dtype=jnp.float32)
    params = dense.init(KEYS[2], x)
    by_flax = jg.chain_gradients(dense.apply, params, HEAD, x, y)
    assert jax.tree.structure(by_flax.params) == jax.tree.structure(params)
    graph, state = nnx.split(nnx.Linear(5, 4, param_dtype=jnp.float32, rngs=nnx.Rngs(0)))
    by_nnx = jg.chain_gradients(lambda state, x: nnx.merge(graph, state)(x), state, HEAD, x, y)
    assert jax.tree.structure(by_nnx.params) == jax.tree.structure(state)
    linear = eqx.nn.Linear(5, 4, key=KEYS[2], dtype=jnp.float32)
    arrays, static = eqx.partition(linear, eqx.is_inexact_array)
    by_equinox = jg.chain_gradients(lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), arrays, HEAD, x, y)
    assert by_equinox.params.weight.shape == (4, 5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head": jnp.zeros((4, 3), jnp.float32)}, ValueError, r"head: expected shape \(C, d\) .* got \(4, 3\); transpose it"),
        ({"bias": jnp.zeros(4, jnp.float32)}, ValueError, r"bias: expected shape \(3,\) .*got \(4,\)"),
        ({"weights": jnp.ones((1,), jnp.float32)}, ValueError, r"weights: expected shape \(6,\) .*got \(1,\); pass jnp.broadcast_to"),
        ({"weights": jnp.ones((6,), jnp.int32)}, TypeError, r"weights: expected a real floating dtype, got int32"),
        ({"where": jnp.ones((6,), jnp.int32)}, TypeError, r"where: expected booleans, True for the examples that count, got int32"),
        ({"where": jnp.ones((5,), bool)}, ValueError, r"where: expected shape \(6,\) .*got \(5,\)"),
        ({"targets": jnp.zeros((5,), jnp.int32)}, ValueError, r"targets: .*expected shape \(6,\)"),
        ({"targets": jnp.full((6,), 3)}, IndexError, r"targets\[0\]: expected a class id from 0 to 2, got 3"),
        ({"feature_fn": lambda params, inputs: inputs["token"]}, TypeError, r"feature_fn\(params, inputs\): expected a real floating dtype"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    params, inputs, targets = make((6,))
    given = {"feature_fn": tanh_features, "params": params, "head": HEAD, "inputs": inputs, "targets": targets, **change}
    with pytest.raises(error, match=message):
        jg.chain_gradients(**given)
