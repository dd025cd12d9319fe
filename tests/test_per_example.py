"""Gradients of single examples from their factors: equal to the dense ones on paper and by `vmap(grad)`, in less memory."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

KEYS = jax.random.split(jax.random.key(1), 8)
C, D = 3, 4
BOUND = 0.5  # of clipping: between the norms that occur


def make(leading, soft=False, dtype=jnp.float32):
    """Features, head, bias, targets with sums other than 1, weights and a mask of which some are False."""
    features = jax.random.normal(KEYS[0], (*leading, D), dtype)
    head, bias = jax.random.normal(KEYS[1], (C, D), dtype), jax.random.normal(KEYS[2], (C,), dtype)
    targets = jax.random.randint(KEYS[3], leading, 0, C)
    if soft:
        targets = jax.random.uniform(KEYS[4], (*leading, C), dtype)
    weights = jax.random.normal(KEYS[5], leading, dtype)
    return features, head, bias, targets, weights, jax.random.bernoulli(KEYS[6], 0.6, leading)


def as_float64(*arrays):
    return [None if x is None else np.asarray(x, np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None) for x in arrays]


def on_paper(features, head, bias, targets, where):
    """Dense gradients (N, P) in the order W, b, in float64: (p Σy − y) eᵀ, one example after the other."""
    features, head, bias, targets, where = as_float64(features, head, bias, targets, where)
    rows = features.reshape(-1, D)
    y = np.eye(C)[targets.ravel()] if targets.dtype.kind == "i" else targets.reshape(-1, C)
    found = []
    for e, y_n, counts in zip(rows, y, where.ravel(), strict=True):
        z = head @ e + (0 if bias is None else bias)
        r = counts * (np.exp(z) / np.exp(z).sum() * y_n.sum() - y_n)
        found.append(np.concatenate([np.outer(r, e).ravel(), r if bias is not None else []]))
    return np.array(found)


def flat(gradient, leading=()):
    """A gradient in the form of the head's parameters as (..., P)."""
    return np.concatenate([np.reshape(x, (*leading, -1)) for x in jax.tree.leaves(gradient)], axis=-1)


@pytest.mark.parametrize(
    ("leading", "soft", "biased"),
    [((), False, True), ((7,), False, False), ((7,), True, True), ((2, 3), True, False)],
)
def test_every_operation_is_that_on_dense_gradients(leading, soft, biased, widest_dtype):
    features, head, bias, targets, weights, where = make(leading, soft, widest_dtype)
    others = features[..., ::-1]

    @jax.jit
    def ours(features, others, head, bias, targets, weights, where):
        g, h = (jg.per_example_gradients(e, head, targets, bias=bias, where=where) for e in (features, others))
        clipped = g.clipped_sum(BOUND), g.clipped_sum(BOUND, weights=weights)
        return g.to_dense(), g.norms(), g.inner(h), g.gram(), g.gram(h), g.weighted_sum(weights), *clipped

    bias = bias if biased else None
    dense, norms, inner, gram, cross, weighted, clipped, clipped_weighted = ours(features, others, head, bias, targets, weights, where)
    exact, other = on_paper(features, head, bias, targets, where), on_paper(others, head, bias, targets, where)
    close = lambda computed, expected: np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=2e-6)
    close(flat(dense, leading).reshape(exact.shape), exact)
    exact_norms = np.linalg.norm(exact, axis=-1)
    assert leading == () or exact_norms.min() < BOUND < exact_norms.max()
    close(norms.ravel(), exact_norms)
    close(inner.ravel(), (exact * other).sum(-1))
    close(gram, exact @ exact.T)
    close(cross, exact @ other.T)
    w = np.asarray(weights, np.float64).ravel()
    close(flat(weighted), w @ exact)
    shrunk = exact * np.minimum(1, BOUND / np.maximum(exact_norms, 1e-30))[:, None]
    close(flat(clipped), shrunk.sum(0))
    close(flat(clipped_weighted), w @ shrunk)


def plain_loss(parameters, e, y):
    """The loss of one example with no custom rule in it."""
    z = parameters[0] @ e + parameters[1]
    return -jnp.sum(y * (z - jnp.log(jnp.exp(z).sum())))


def test_they_are_the_gradients_of_each_loss(widest_dtype):
    features, head, bias, targets, weights, _ = make((7,), True, widest_dtype)
    expected = jax.vmap(jax.grad(plain_loss), (None, 0, 0))((head, bias), features, targets)
    g = jg.per_example_gradients(features, head, targets, bias=bias)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    jax.tree.map(close, g.to_dense(), expected)
    chain = jg.chain_gradients(lambda _, e: e, (), head, features, targets, bias=bias, weights=weights)
    jax.tree.map(close, g.weighted_sum(weights), (chain.head, chain.bias))


def test_norms_neither_overflow_nor_underflow():
    """The label leads by 60 and 80 nats: the squares of r underflow. Then features of 1e25, whose squares overflow."""
    head, targets = jnp.array([[1.0], [0.0]], jnp.float32), jnp.array([0, 0], jnp.int32)
    norms = jg.per_example_gradients(jnp.array([[60.0], [80.0]], jnp.float32), head, targets).norms()
    np.testing.assert_allclose(norms, [60 * np.sqrt(2) * np.exp(-60.0), 80 * np.sqrt(2) * np.exp(-80.0)], rtol=1e-6)
    features = jnp.array([[3e25, 4e25]], jnp.float32)
    g = jg.per_example_gradients(features, jnp.zeros((2, 2), jnp.float32), jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(g.norms(), [5e25 * np.sqrt(0.5)], rtol=1e-6)
    np.testing.assert_allclose(g.clipped_sum(1.0), np.array([[-0.6, -0.8], [0.6, 0.8]]) * np.sqrt(0.5), rtol=1e-6)
    tiny = jg.PerExampleGradients(jnp.full((1, 1), 1e-25, jnp.float32), jnp.full((1, 1), 1e25, jnp.float32), False)
    np.testing.assert_allclose([tiny.inner(tiny)[0], tiny.gram()[0, 0]], 1, rtol=1e-6)


def test_a_masked_example_is_inert():
    features, head, bias, targets, weights, _ = make((7,))
    where = jnp.arange(7) != 2
    spoilt = features.at[2].set(jnp.nan)

    def outcomes(features, targets):
        g = jg.per_example_gradients(features, head, targets, bias=bias, where=where)
        return g.norms(), g.gram(), g.weighted_sum(weights), g.clipped_sum(BOUND)

    expected = outcomes(features, targets)
    jax.tree.map(np.testing.assert_array_equal, outcomes(spoilt, targets.at[2].set(99)), expected)
    assert expected[0][2] == 0
    assert not np.any(expected[1][2])
    by_features = jax.grad(lambda e: sum(x.sum() for x in jax.tree.leaves(outcomes(e, targets))))(spoilt)
    assert np.all(np.isfinite(by_features))
    assert not np.any(by_features[2])


def test_nothing_as_large_as_all_gradients_is_made():
    n, c, d = 16, 40, 30

    def largest(jaxpr):
        sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
        return max(sizes + [largest(inner) for equation in jaxpr.eqns for inner in inner_jaxprs(equation)])

    def inner_jaxprs(equation):
        return [x.jaxpr for x in equation.params.values() if hasattr(x, "jaxpr")]

    def sparing(e, w, y):
        g = jg.per_example_gradients(e, w, y)
        return g.norms(), g.gram(), g.inner(g), g.clipped_sum(1.0)

    arguments = jnp.ones((n, d), jnp.float32), jnp.ones((c, d), jnp.float32), jnp.zeros(n, jnp.int32)
    assert largest(jax.make_jaxpr(sparing)(*arguments).jaxpr) <= max(n * c, n * d, c * d)
    dense = lambda *arguments: jg.per_example_gradients(*arguments).to_dense()
    assert largest(jax.make_jaxpr(dense)(*arguments).jaxpr) == n * c * d


def tanh_features(params, inputs):
    return jnp.tanh(inputs["x"] @ params["dense"] + params["embedding"][inputs["token"]])


def network(leading):
    params = {"dense": jax.random.normal(KEYS[0], (5, D), jnp.float32), "embedding": jax.random.normal(KEYS[1], (6, D), jnp.float32)}
    inputs = {"x": jax.random.normal(KEYS[2], (*leading, 5), jnp.float32), "token": jax.random.randint(KEYS[3], leading, 0, 6)}
    return params, inputs


def whole_gradients(params, head, bias, inputs, targets):
    """One gradient (P,) for each row of the features, by `vmap(grad)` of the plain loss."""

    def gradient(inputs, y):
        loss = lambda parameters: plain_loss(parameters[1:], tanh_features(parameters[0], inputs), jax.nn.one_hot(y, C, dtype=jnp.float32))
        return jax.grad(loss)((params, head, bias))

    rows = jax.tree.map(lambda x: x.reshape(targets.size, *x.shape[targets.ndim :]), inputs)
    return flat(jax.vmap(gradient)(rows, targets.ravel()), (targets.size,))


@pytest.mark.parametrize(("leading", "batch_size"), [((7,), None), ((7,), 3), ((3, 2), None)])
def test_norms_of_a_whole_model_are_those_of_all_its_gradients(leading, batch_size):
    params, inputs = network(leading)
    _, head, bias, targets, _, where = make(leading)
    norms = jax.jit(lambda *arguments: jg.per_example_gradient_norms(tanh_features, *arguments, bias=bias, where=where, batch_size=batch_size))
    expected = np.linalg.norm(whole_gradients(params, head, bias, inputs, targets), axis=-1).reshape(leading)
    np.testing.assert_allclose(norms(params, head, inputs, targets), np.where(where, expected, 0), rtol=1e-5)


def test_norms_of_a_whole_model_keep_confident_examples():
    """The label leads by 60 and 80 nats, x θ with θ = 1: ∂L/∂θ is −p x and ∂L/∂W is (−p x, p x)."""
    x, head = jnp.array([[60.0], [80.0]], jnp.float32), jnp.array([[1.0], [0.0]], jnp.float32)
    norms = jg.per_example_gradient_norms(lambda theta, x: theta * x, jnp.ones((), jnp.float32), head, x, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(norms, [60 * np.sqrt(3) * np.exp(-60.0), 80 * np.sqrt(3) * np.exp(-80.0)], rtol=1e-6)


def test_clipping_a_whole_model_is_a_weighted_pass():
    params, inputs = network((7,))
    _, head, bias, targets, _, _ = make((7,))
    norms = jg.per_example_gradient_norms(tanh_features, params, head, inputs, targets, bias=bias)
    g = jg.chain_gradients(tanh_features, params, head, inputs, targets, bias=bias, weights=jnp.minimum(1, 1 / norms))
    dense = whole_gradients(params, head, bias, inputs, targets)
    expected = (dense / np.maximum(1, np.linalg.norm(dense, axis=-1, keepdims=True))).sum(0)
    np.testing.assert_allclose(flat((g.params, g.head, g.bias)), expected, rtol=1e-4, atol=1e-6)


def test_parameters_without_a_derivative_have_no_norm():
    linear = eqx.nn.Linear(5, D, key=KEYS[2], dtype=jnp.float32)
    arrays, static = eqx.partition(linear, eqx.is_inexact_array)
    features = lambda params, x: jax.vmap(eqx.combine(params["model"], static))(x)
    x, y, head = jnp.ones((2, 5), jnp.float32), jnp.array([0, 2], jnp.int32), make(())[1]
    norms = jg.per_example_gradient_norms(features, {"model": arrays, "step": jnp.array(3)}, head, x, y)
    g = jg.chain_gradients(features, {"model": arrays}, head, x[:1], y[:1])
    np.testing.assert_allclose(norms[0], np.linalg.norm(flat((g.params, g.head))), rtol=1e-5)
    frozen = jg.per_example_gradient_norms(lambda _, x: x[:, :D], (), head, x, y)
    np.testing.assert_allclose(frozen, jg.per_example_gradients(x[:, :D], head, y).norms(), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, h: g.weighted_sum(jnp.ones(6, jnp.float32)), ValueError, r"weights: expected shape \(7,\) \(one for each example\), got \(6,\)"),
        (lambda g, h: g.weighted_sum(jnp.ones(7, jnp.int32)), TypeError, r"weights: expected a real floating dtype, got int32"),
        (lambda g, h: g.clipped_sum(0), ValueError, r"max_norm: expected a positive finite number, got 0"),
        (lambda g, h: g.clipped_sum(np.float32(-0.1)), ValueError, r"max_norm: expected a positive finite number, got -0.1"),
        (lambda g, h: g.clipped_sum(True), TypeError, r"max_norm: expected a number, got bool"),
        (lambda g, h: g.clipped_sum(jnp.ones(7, jnp.float32)), ValueError, r"max_norm: expected shape \(\)"),
        (lambda g, h: g.inner(h), ValueError, r"other: expected gradients of a head with \(C, d, has_bias\) = \(3, 4, False\), got \(3, 4, True\)"),
        (lambda g, h: h.inner(jg.PerExampleGradients(h.residuals[:5], h.features[:5], True)), ValueError, r"other.residuals: expected shape \(7, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    features, head, bias, targets, _, _ = make((7,))
    with pytest.raises(error, match=message):
        call(jg.per_example_gradients(features, head, targets), jg.per_example_gradients(features, head, targets, bias=bias))


@pytest.mark.parametrize("bound", [np.nan, -0.1, 0.0, np.inf])
def test_a_bound_that_is_none_lets_no_gradient_through(bound):
    features, head, _, targets, _, _ = make((7,))
    gradients = jg.per_example_gradients(features, head, targets)
    assert np.isnan(jax.jit(gradients.clipped_sum)(jnp.asarray(bound, jnp.float32))).all()


@pytest.mark.parametrize(("batch_size", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), (1.5, TypeError)])
def test_a_batch_size_that_is_none_is_refused(batch_size, error):
    params, inputs = network((7,))
    _, head, _, targets, _, _ = make((7,))
    with pytest.raises(error, match=r"batch_size: expected (at least one input|an int)"):
        jg.per_example_gradient_norms(tanh_features, params, head, inputs, targets, batch_size=batch_size)


def test_inputs_without_an_axis_of_examples_are_refused():
    params, inputs = network((7,))
    _, head, _, targets, _, _ = make((7,))
    with pytest.raises(ValueError, match=r"inputs: expected leaves \(N, ...\) for features \(N, ..., d\) = \(7, 4\), got \(7,\), \(7, 5\), \(\)"):
        jg.per_example_gradient_norms(tanh_features, params, head, {**inputs, "z": jnp.ones(())}, targets)
