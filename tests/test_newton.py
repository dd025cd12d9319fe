"""Solves and steps with a curvature matrix against dense linear algebra, and Newton's method on softmax regression."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxgrad as jg

X64 = jax.config.jax_enable_x64
DTYPE = jnp.float64 if X64 else jnp.float32
EXACT, RTOL = (1e-14, 1e-10) if X64 else (1e-7, 1e-3)
KEYS = jax.random.split(jax.random.key(0), 4)
N, D, C = 40, 4, 3
X, Y = jax.random.normal(KEYS[0], (N, D), DTYPE), jax.random.randint(KEYS[1], (N,), 0, C)
PARAMS = {"head": jnp.zeros((C, D), DTYPE), "bias": jnp.zeros(C, DTYPE)}
flat = lambda tree: np.asarray(ravel_pytree(tree)[0])


def logits(params):
    return X @ params["head"].T + jnp.broadcast_to(params["bias"], (N, C))


def penalty(params):
    return 0.05 * sum((x**2).sum() for x in jax.tree.leaves(params))


def data_loss(z):
    return jg.cross_entropy(z, Y).mean()


def loss(params):
    return data_loss(logits(params)) + penalty(params)


def operator_at(params):
    return jg.ggn(logits, data_loss, params) + jg.hessian(penalty, params)


def dense_hessian(params):
    """By NumPy, from the class probabilities."""
    z = np.asarray(logits(params), np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    x = np.concatenate([np.ones((N, 1)), np.asarray(X)], -1)  # the bias first, as in the order of the leaves
    inner = p[:, :, None] * np.eye(C) - p[:, :, None] * p[:, None]
    blocks = np.einsum("nkl,nd,ne->kdle", inner, x, x) / N + 0.1 * np.einsum("kl,de->kdle", np.eye(C), np.eye(D + 1))
    order = [k * (D + 1) for k in range(C)] + [k * (D + 1) + 1 + d for k in range(C) for d in range(D)]
    return blocks.reshape(C * (D + 1), -1)[np.ix_(order, order)]


AT = jax.tree.map(lambda x, k: jax.random.normal(k, x.shape, DTYPE), PARAMS, {"head": KEYS[2], "bias": KEYS[3]})


@partial(jax.jit, static_argnums=3)
def solve(params, g, damping, preconditioned):
    operator = operator_at(params)
    return jg.damped_solve(operator, g, damping=damping, diagonal=operator.diagonal() if preconditioned else None, tolerance=EXACT)


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_solve_is_that_of_the_dense_matrix(preconditioned, damping):
    dense, g = dense_hessian(AT), jax.grad(loss)(AT)
    solution = solve(AT, g, damping, preconditioned)
    np.testing.assert_allclose(flat(solution), np.linalg.solve(dense + damping * np.eye(len(dense)), flat(g)), rtol=RTOL, atol=RTOL)


def test_a_preconditioner_saves_products():
    scale = jnp.logspace(0, 3, 20, dtype=DTYPE)
    operator = jg.hessian(lambda p: (scale * p**2).sum() / 2, jnp.ones(20, DTYPE))
    g = jnp.ones(20, DTYPE)
    plain = jg.damped_solve(operator, g, tolerance=EXACT, max_products=2)
    better = jg.damped_solve(operator, g, diagonal=operator.diagonal(), tolerance=EXACT, max_products=2)
    np.testing.assert_allclose(better, g / scale, rtol=1e-5)
    assert np.abs(plain - g / scale).max() > 0.1


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_a_function_preconditions_the_damped_matrix(damping):
    """The start, M g, is the solution if M is the inverse; here M is the inverse of the other half of a sum."""
    dense, g = dense_hessian(AT) + damping * np.eye(C * (D + 1)), jax.grad(loss)(AT)
    inverse = jnp.asarray(np.linalg.inv(dense), DTYPE)
    near = lambda v, damping: ravel_pytree(v)[1](inverse @ ravel_pytree(v)[0] * (1 + damping))
    solve = jax.jit(lambda g, k: jg.damped_solve(operator_at(AT), g, damping=damping, preconditioner=near, tolerance=EXACT, max_products=k), static_argnums=1)
    np.testing.assert_allclose(flat(solve(g, 0)), (1 + damping) * np.linalg.solve(dense, flat(g)), rtol=RTOL, atol=RTOL)
    np.testing.assert_allclose(flat(solve(g, 1)), np.linalg.solve(dense, flat(g)), rtol=RTOL, atol=RTOL)


def test_kronecker_factors_precondition_a_softmax_regression():
    """With the Hessian's p stored, whose product with a constant 0 XLA gets wrong on a CPU: the solve must not make one."""
    hessian = lambda params: jg.head_hessian(X, params[0], Y, bias=params[1]).stored()
    at = (AT["head"], AT["bias"])

    @jax.jit
    def errors(at, exact):
        operator = hessian(at)
        g = operator @ exact
        g = jax.tree.map(lambda x, s: x + 0.01 * s, g, exact)
        solve = lambda precondition: jg.damped_solve(operator, g, damping=0.01, preconditioner=precondition, tolerance=EXACT, max_products=4)
        distance = lambda x: optax.tree.norm(jax.tree.map(jnp.subtract, x, exact)) / optax.tree.norm(exact)
        return distance(solve(None)), distance(solve(operator.kronecker().solve))

    exact = tuple(jax.random.normal(key, x.shape, DTYPE) for key, x in zip(KEYS, at, strict=False))
    plain, better = errors(at, exact)
    assert plain < 1
    assert better < 0.2 * plain
    errors(jax.tree.map(jnp.negative, at), exact)
    assert errors._cache_size() == 1


@pytest.mark.skipif(not X64, reason="it takes two dtypes")
def test_products_in_float32_make_steps_in_float64():
    optimizer = jg.scale_by_curvature(0.1, tolerance=1e-6)
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), AT)
    operator = jg.hessian(lambda p: jg.cross_entropy(X.astype(jnp.float32) @ p["head"].T + p["bias"][None], Y).mean() + penalty(p), narrow)
    g = jax.grad(loss)(AT)
    step, state = jax.jit(lambda g: optimizer.update(g, optimizer.init(AT), AT, operator=operator, diagonal=operator.diagonal(), value_fn=loss))(g)
    assert {x.dtype for x in jax.tree.leaves(step)} == {jnp.dtype(jnp.float64)}
    assert state.damping.dtype == jnp.float64
    np.testing.assert_allclose(flat(step), np.linalg.solve(dense_hessian(AT) + 0.1 * np.eye(C * (D + 1)), flat(g)), rtol=1e-4, atol=1e-5)


def test_a_step_on_softmax_regression_is_newtons():
    optimizer = optax.chain(jg.scale_by_curvature(0.0, tolerance=EXACT), optax.scale_by_learning_rate(1.0))
    g = jax.grad(loss)(AT)
    updates, _ = optimizer.update(g, optimizer.init(AT), AT, operator=operator_at(AT))
    np.testing.assert_allclose(flat(updates), -np.linalg.solve(dense_hessian(AT), flat(g)), rtol=RTOL, atol=RTOL)


def test_newtons_method_converges_quadratically_and_compiles_once():
    optimizer = optax.chain(jg.scale_by_curvature(1e-8), optax.scale_by_learning_rate(1.0))

    @jax.jit
    def step(params, state):
        g = jax.grad(loss)(params)
        updates, state = optimizer.update(g, state, params, operator=operator_at(params))
        return optax.apply_updates(params, updates), state, optax.tree.norm(g)

    params, state, sizes = PARAMS, optimizer.init(PARAMS), []
    for _ in range(12):
        params, state, size = step(params, state)
        sizes.append(float(size))
    assert sizes[-1] < (1e-13 if X64 else 1e-6)
    assert step._cache_size() == 1
    assert state[0].count == 12


def test_a_second_fit_of_the_same_shapes_compiles_nothing():
    """Neither new data nor the state after a step make other types; damped, preconditioned and with value_fn too."""
    optimizer = optax.chain(jg.scale_by_curvature(0.1), optax.scale_by_learning_rate(1.0))

    @jax.jit
    def step(params, state, inputs, targets):
        model = lambda p: inputs @ p["head"].T + jnp.broadcast_to(p["bias"], (N, C))
        total = lambda p: jg.cross_entropy(model(p), targets).mean() + penalty(p)
        operator = jg.ggn(model, lambda z: jg.cross_entropy(z, targets).mean(), params) + jg.hessian(penalty, params)
        g = jax.grad(total)(params)
        updates, state = optimizer.update(g, state, params, operator=operator, diagonal=operator.diagonal(), value_fn=total)
        return optax.apply_updates(params, updates), state, optax.tree.norm(g)

    def fit(inputs, targets):
        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(12):
            params, state, size = step(params, state, inputs, targets)
        return float(size)

    resolved = float(jnp.finfo(DTYPE).eps) ** 0.5  # a step that gains less than the rounding of the loss is refused
    assert fit(X, Y) < resolved
    assert fit(X[::-1] + 1, C - 1 - Y) < resolved
    assert step._cache_size() == 1


def test_it_composes_with_schedules_and_chains():
    rates = optax.exponential_decay(0.5, 1, 0.5)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), jg.scale_by_curvature(optax.linear_schedule(1.0, 0.0, 2)), optax.scale_by_learning_rate(rates))
    state, g = optimizer.init(AT), jax.grad(loss)(AT)
    update = jax.jit(lambda g, state: optimizer.update(g, state, AT, operator=operator_at(AT)))
    clipped = flat(g) * min(1, 0.1 / np.linalg.norm(flat(g)))
    for damping, rate in ((1.0, 0.5), (0.5, 0.25), (0.0, 0.125)):
        updates, state = update(g, state)
        expected = -rate * np.linalg.solve(dense_hessian(AT) + damping * np.eye(C * (D + 1)), clipped)
        np.testing.assert_allclose(flat(updates), expected, rtol=0, atol=0.2 * np.abs(expected).max())  # the solve stops early


def test_damping_follows_what_a_step_gains():
    optimizer = jg.scale_by_curvature(1.0, tolerance=EXACT)
    g = jax.grad(loss)(AT)
    update = jax.jit(lambda sign: optimizer.update(g, optimizer.init(AT), AT, operator=operator_at(AT), value_fn=lambda params: sign * loss(params)))
    step, state = update(1.0)
    s, a = flat(step).astype(float), dense_hessian(AT)
    gained = float(loss(AT)) - float(loss(jax.tree.map(jnp.subtract, AT, step)))
    np.testing.assert_allclose(state.reduction_ratio, gained / (flat(g) @ s - s @ a @ s / 2), rtol=max(RTOL, 1e-6))
    assert state.damping == 0.25

    for sign in (-1.0, jnp.nan):  # uphill, and off the domain of the loss
        step, state = update(sign)
        assert (flat(step) == 0).all()
        assert state.damping == 4.0


def test_levenberg_marquardt_fits_a_network_that_plain_gauss_newton_leaves():
    """With so little damping the first full step overshoots; the refused step raises λ until one gains."""
    model = lambda p: jnp.tanh(X @ p["in"]) @ p["out"]
    total = lambda p: data_loss(model(p))
    params = {"in": 3 * jax.random.normal(KEYS[2], (D, 6), DTYPE), "out": 3 * jax.random.normal(KEYS[3], (6, C), DTYPE)}
    optimizer = optax.chain(jg.scale_by_curvature(1e-4), optax.scale_by_learning_rate(1.0))

    @jax.jit
    def step(params, state):
        operator = jg.ggn(model, data_loss, params)
        updates, state = optimizer.update(jax.grad(total)(params), state, params, operator=operator, value_fn=total)
        return optax.apply_updates(params, updates), state, total(params)

    state, values = optimizer.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        values.append(float(value))
    assert (np.diff(values) <= 0).all()
    assert values[-1] < 0.1 * values[0]


ERRORS = {
    "no operator": (lambda: jg.scale_by_curvature().update(AT, jg.scale_by_curvature().init(AT), AT), TypeError, "expected operator=.*jg.ggn"),
    "no params": (
        lambda: jg.scale_by_curvature().update(AT, jg.scale_by_curvature().init(AT), operator=operator_at(AT), value_fn=loss),
        TypeError,
        "expected params together with value_fn=",
    ),
    "structure": (lambda: jg.damped_solve(operator_at(AT), {"head": AT["head"]}), ValueError, r"tree: .* tree\['bias'\] is missing"),
    "damping": (lambda: jg.damped_solve(operator_at(AT), AT, damping=jnp.ones(D)), ValueError, r"damping: expected shape \(\) \(a scalar\), got \(4,\)"),
    "negative damping": (lambda: jg.damped_solve(operator_at(AT), AT, damping=-1.0), ValueError, r"damping: expected a number of at least 0, got -1.0"),
    "two preconditioners": (
        lambda: jg.damped_solve(operator_at(AT), AT, diagonal=AT, preconditioner=lambda v, damping: v),
        ValueError,
        "preconditioner: expected none beside diagonal=",
    ),
    "diagonal": (lambda: jg.damped_solve(operator_at(AT), AT, diagonal={"head": AT["head"]}), ValueError, r"diagonal\['bias'\] is missing"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_by_name(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
