"""Hessian, Gauss–Newton, Fisher and empirical Fisher of real models against dense matrices of the plain definitions."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxgrad as jg

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
RTOL = 1e-12 if jax.config.jax_enable_x64 else 2e-5
KEYS = jax.random.split(jax.random.key(0), 8)
normal = lambda i, shape: jax.random.normal(KEYS[i], shape, DTYPE)


class Case(NamedTuple):
    """A model of any kind as params -> logits, with targets and weights."""

    model_fn: Callable[[Any], jax.Array]
    params: Any
    targets: jax.Array
    weights: jax.Array | None  # where it is 0 the target is out of range


def mlp():
    params = {"in": normal(1, (4, 5)), "bias": normal(2, (5,)), "out": (normal(3, (5, 3)), None)}
    x = normal(4, (7, 4))
    model_fn = lambda p: jnp.tanh(x @ p["in"] + jnp.broadcast_to(p["bias"], (7, 5))) @ p["out"][0]
    return Case(model_fn, params, jnp.array([0, 2, 1, 1, 0, 2, 2]), None)


def linen_mlp_soft_targets():
    model, x = nn.Sequential([nn.Dense(4, param_dtype=DTYPE), nn.gelu, nn.Dense(3, param_dtype=DTYPE)]), normal(4, (2, 3, 4))
    params = model.init(KEYS[5], x)
    return Case(lambda p: model.apply(p, x), params, jax.nn.softmax(normal(6, (2, 3, 3))), jax.random.uniform(KEYS[7], (2, 3), DTYPE))


def nnx_convolution():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 3, (3, 3), strides=2, param_dtype=DTYPE, rngs=rngs)
            self.out = nnx.Linear(12, 4, param_dtype=DTYPE, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.conv(x)).reshape(x.shape[0], -1))

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    images = normal(4, (5, 4, 4, 1))
    return Case(lambda p: nnx.merge(graph, p)(images), params, jnp.array([3, 0, 1, 1, 2]), normal(6, (5,)) ** 2)


def equinox_transformer_masked_tokens():
    class Block(eqx.Module):
        embedding: eqx.nn.Embedding
        attention: eqx.nn.MultiheadAttention
        norm: eqx.nn.LayerNorm
        out: eqx.nn.Linear

        def __init__(self):
            k = jax.random.split(KEYS[5], 3)
            self.embedding = eqx.nn.Embedding(6, 4, dtype=DTYPE, key=k[0])
            self.attention = eqx.nn.MultiheadAttention(2, 4, dtype=DTYPE, key=k[1])
            self.norm = eqx.nn.LayerNorm(4, dtype=DTYPE)
            self.out = eqx.nn.Linear(4, 6, dtype=DTYPE, key=k[2])

        def __call__(self, tokens):
            e = jax.vmap(self.embedding)(tokens)
            e = e + self.attention(e, e, e, mask=jnp.tri(len(tokens), dtype=bool))
            return jax.vmap(lambda x: self.out(jax.nn.gelu(self.norm(x))))(e)

    params, static = eqx.partition(Block(), eqx.is_inexact_array)
    tokens = jax.random.randint(KEYS[6], (3, 5), 0, 6)
    mask = jnp.arange(5)[None] < jnp.array([[5], [3], [4]])
    targets = jnp.where(mask, jnp.roll(tokens, -1, 1), -1)
    return Case(lambda p: jax.vmap(eqx.combine(p, static))(tokens), params, targets, mask.astype(DTYPE) / mask.astype(DTYPE).sum())


MAKERS = [mlp, linen_mlp_soft_targets, nnx_convolution, equinox_transformer_masked_tokens]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__, scope="module")
def case(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the frameworks
        return request.param()


def losses(z, targets, weights):
    """The public losses, with the examples of weight 0 masked."""
    return jg.cross_entropy(z, targets, where=None if weights is None else weights > 0)


def plain_losses(z, targets):
    """−Σ y log softmax(z), with no custom rule; an id out of range costs nothing."""
    y = jax.nn.one_hot(targets, z.shape[-1], dtype=z.dtype) if jnp.issubdtype(targets.dtype, jnp.integer) else targets
    return -(y * jax.nn.log_softmax(z)).sum(-1)


def dense_oracles(case):
    """H by jax.hessian, and F = G and E by NumPy from the Jacobian of the logits, all (P, P)."""
    flat, unravel = ravel_pytree(case.params)
    w = jnp.full(case.targets.shape[:1], 1 / len(case.targets), DTYPE) if case.weights is None else case.weights
    z_of = lambda t: case.model_fn(unravel(t))
    total = lambda z: (w * plain_losses(z, case.targets)).sum()

    @jax.jit
    def differentiate(t):
        return jax.hessian(lambda s: total(z_of(s)))(t), jax.jacrev(z_of)(t), z_of(t)

    h, j, z = map(np.asarray, differentiate(flat))
    w, c = np.asarray(w).ravel(), z.shape[-1]
    j, z = j.reshape(-1, c, flat.size), z.reshape(-1, c)
    y = np.asarray(case.targets)
    y = (y[..., None] == np.arange(c)).reshape(-1, c) if np.issubdtype(y.dtype, np.integer) else y.reshape(-1, c)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    g = np.einsum("ncp,nc->np", j, p - y)
    inner = w[:, None, None] * (p[:, :, None] * np.eye(c, dtype=p.dtype) - p[:, :, None] * p[:, None, :])
    fisher = np.einsum("nca,ncb->ab", j, np.einsum("ncd,ndb->ncb", inner, j))
    return h, fisher, np.einsum("n,na,nb->ab", w, g, g)


def operators(case, params):
    w = case.weights
    mean = lambda each: each.mean() if w is None else (w * each).sum()
    loss_fn = lambda z: mean(losses(z, case.targets, w))
    return {
        "hessian": jg.hessian(lambda p: loss_fn(case.model_fn(p)), params),
        "ggn": jg.ggn(case.model_fn, loss_fn, params),
        "fisher": jg.fisher(case.model_fn, params, weights=w),
        "empirical": jg.empirical_fisher(lambda p: losses(case.model_fn(p), case.targets, w), params, weights=w),
    }


def assert_close(actual, expected, rtol=RTOL):
    """Relative to the largest entry of the matrix."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


def test_every_matrix_is_that_of_the_definition(case):
    h, fisher, empirical = dense_oracles(case)
    flat, unravel = ravel_pytree(case.params)

    @jax.jit
    def everything(params, v):
        ops = operators(case, params)
        t = ops["hessian"] - ops["ggn"]
        products = {name: ravel_pytree(op @ v)[0] for name, op in {"t": t, "fisher": ops["fisher"], "empirical": ops["empirical"]}.items()}
        return {name: op.to_dense() for name, op in ops.items()}, products, t.trace()

    v = np.asarray(jax.random.normal(KEYS[7], flat.shape, DTYPE))
    expected = {"hessian": h, "ggn": fisher, "fisher": fisher, "empirical": empirical, "t": h - fisher}
    dense, products, trace = everything(case.params, unravel(v))
    for name, matrix in dense.items():
        np.testing.assert_allclose(matrix, expected[name], rtol=0, atol=RTOL * max(np.abs(h).max(), np.abs(expected[name]).max()), err_msg=name)
    for name, product in products.items():
        np.testing.assert_allclose(product, expected[name] @ v, rtol=0, atol=10 * RTOL * np.abs(expected[name] @ v).max(), err_msg=name)
    np.testing.assert_allclose(trace, np.trace(h - fisher), rtol=0, atol=10 * RTOL * np.trace(fisher))
    assert np.abs(h - fisher).max() > 1e-3 * np.abs(h).max()
    assert np.abs(empirical - fisher).max() > 1e-2 * np.abs(fisher).max()


def test_operators_cross_jit_and_compile_once():
    case = mlp()
    build = jax.jit(lambda p: jg.hessian(lambda q: losses(case.model_fn(q), case.targets, None).mean(), p) - 2.0 * jg.fisher(case.model_fn, p))
    apply = jax.jit(lambda operator, v: operator @ v)
    for scale in (1.0, 0.5):
        params = jax.tree.map(lambda x, s=scale: s * x, case.params)
        product = apply(build(params), case.params)
        eager = jg.hessian(lambda q: losses(case.model_fn(q), case.targets, None).mean(), params) - 2.0 * jg.fisher(case.model_fn, params)
        jax.tree.map(lambda a, b: assert_close(a, b, 20 * RTOL), product, eager @ case.params)
    assert apply._cache_size() == 1


def test_operators_may_be_vmapped_and_differentiated():
    case = mlp()
    sharpness_along = jax.jit(lambda t: ravel_pytree(jg.fisher(case.model_fn, jax.tree.map(lambda x: t * x, case.params)) @ case.params)[0].sum())
    at = jnp.array([0.5, 1.0], DTYPE)
    np.testing.assert_allclose(jax.vmap(sharpness_along)(at), [sharpness_along(t) for t in at], rtol=1e-4)
    step = 1e-2
    slope = (sharpness_along(at[1] + step) - sharpness_along(at[1] - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(sharpness_along)(at[1]), slope, rtol=1e-2)


def test_sampled_fisher_is_unbiased_and_fixed():
    case = linen_mlp_soft_targets()
    sampled = jax.jit(lambda key, n: jg.fisher(case.model_fn, case.params, weights=case.weights, key=key, num_samples=n).to_dense(), static_argnums=1)
    exact = np.asarray(jax.jit(lambda: jg.fisher(case.model_fn, case.params, weights=case.weights).to_dense())())
    few = np.asarray(jax.vmap(lambda key: sampled(key, 1))(jax.random.split(KEYS[0], 64)))
    standard_error = few.std(0, ddof=1) / 8
    assert np.mean(np.abs(few.mean(0) - exact) < 3 * standard_error + 1e-12) > 0.98
    assert (np.linalg.eigvalsh(few[0]) > -1e-5).all()
    many = sampled(KEYS[1], 4000)
    assert np.abs(many - exact).max() < 0.1 * np.abs(exact).max()
    operator = jg.fisher(case.model_fn, case.params, key=KEYS[2])
    jax.tree.map(np.testing.assert_array_equal, operator @ case.params, operator @ case.params)


def test_fisher_keeps_its_digits_on_confident_rows():
    logits = jnp.array([[30.0, 0.0, -2.0]], jnp.float32)
    z = np.asarray(logits[0], np.float64)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    exact = np.array([[p[1] + p[2], -p[1], -p[2]], [-p[1], p[1], 0], [-p[2], 0, p[2]]])
    dense = jg.fisher(lambda shift: logits + shift, jnp.zeros((1, 3), jnp.float32)).to_dense()
    assert np.abs(np.asarray(dense)[[0, 0, 0, 1, 2], [0, 1, 2, 1, 2]] / exact[[0, 0, 0, 1, 2], [0, 1, 2, 1, 2]] - 1).max() < 1e-5


def test_empirical_fisher_vanishes_where_the_data_are_fitted_and_fisher_is_free_of_the_targets():
    case = mlp()
    fitted = jax.nn.softmax(case.model_fn(case.params))
    assert jax.jit(lambda p: jg.empirical_fisher(lambda p: jg.cross_entropy(case.model_fn(p), fitted), p).trace())(case.params) < 1e-10
    of = jax.jit(lambda targets: jg.ggn(case.model_fn, lambda z: jg.cross_entropy(z, targets).mean(), case.params) @ case.params)
    jax.tree.map(lambda a, b: assert_close(a, b, 10 * RTOL), of(case.targets), of(fitted))


LINEAR = {
    "gather": lambda y: lambda log_p: -jnp.take_along_axis(log_p, y[:, None], -1).mean(),
    "one_hot": lambda y: lambda log_p: -(jax.nn.one_hot(y, 3, dtype=log_p.dtype) * log_p).sum(),
    "jit": lambda y: jax.jit(lambda log_p: -log_p[jnp.arange(7), y].mean()),
    "checkpoint": lambda y: jax.checkpoint(lambda log_p: -log_p[jnp.arange(7), y].mean()),
    "scan": lambda y: lambda log_p: jax.lax.scan(lambda c, at: (c - at[0][at[1]], None), jnp.zeros((), log_p.dtype), (log_p, y))[0],
    "masked": lambda y: lambda log_p: jnp.where(y > 0, -log_p[jnp.arange(7), y], 0).sum(),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_split_after_log_softmax_is_refused(name, transform):
    case = mlp()
    loss_fn = LINEAR[name](case.targets)
    with pytest.raises(ValueError, match="linear in them, so that G would be 0; if the model ends in log_softmax, return its logits"):
        transform(lambda p: jg.ggn(lambda q: jax.nn.log_softmax(case.model_fn(q)), loss_fn, p))(case.params)


def test_the_refused_loss_is_accepted_at_the_logits():
    case = mlp()
    for make in LINEAR.values():
        jg.ggn(case.model_fn, lambda z, make=make: make(case.targets)(jax.nn.log_softmax(z)), case.params)


def test_fisher_is_the_same_after_log_softmax():
    case = mlp()
    models = case.model_fn, lambda p: jax.nn.log_softmax(case.model_fn(p))
    f, g = jax.jit(lambda p: [jg.fisher(model, p) @ p for model in models])(case.params)
    jax.tree.map(lambda a, b: assert_close(a, b, 20 * RTOL), f, g)


def test_outputs_may_be_a_tree():
    case = mlp()
    two = lambda p: {"a": case.model_fn(p)[:3], "b": case.model_fn(p)[3:]}
    loss_fn = lambda z: jg.cross_entropy(jnp.concatenate([z["a"], z["b"]]), case.targets).mean()
    a, b = jax.jit(lambda p: (jg.ggn(two, loss_fn, p) @ p, jg.fisher(case.model_fn, p) @ p))(case.params)
    jax.tree.map(lambda a, b: assert_close(a, b, 20 * RTOL), a, b)


def test_sharded_examples_and_parameters_give_the_same_products():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    w, x = normal(1, (6, 4)), normal(2, (8, 6))
    y = jnp.arange(8) % 4

    @jax.jit
    def products(w, x, y):
        model_fn = lambda w: jnp.tanh(x @ w)
        loss_fn = lambda z: jg.cross_entropy(z, y).mean()
        h = jg.hessian(lambda w: loss_fn(model_fn(w)), w)
        return h @ w, jg.ggn(model_fn, loss_fn, w) @ w, jg.fisher(model_fn, w) @ w, (h - jg.fisher(model_fn, w)).diagonal()

    for one, many in zip(products(w, x, y), products(place(w, None, "model"), place(x, "data"), place(y, "data")), strict=True):
        assert_close(many, one, 10 * RTOL)


ERRORS = {
    "integer leaf": (lambda c: jg.hessian(lambda p: 0.0, {"a": c.params, "step": jnp.zeros((), int)}), TypeError, r"params\['step'\].*nnx.split"),
    "object leaf": (lambda c: jg.fisher(c.model_fn, {"act": jnp.tanh}), TypeError, r"params\['act'\]: expected an array, .*eqx.partition"),
    "no leaf": (lambda c: jg.fisher(c.model_fn, {}), ValueError, "params: expected a pytree with at least one floating array"),
    "vector loss": (lambda c: jg.hessian(c.model_fn, c.params), ValueError, r"loss_fn\(params\): expected a scalar, got shape \(7, 3\); sum over"),
    "vector loss of outputs": (lambda c: jg.ggn(c.model_fn, lambda z: z.sum(0), c.params), ValueError, r"loss_fn\(outputs\): expected a scalar"),
    "integer output": (lambda c: jg.ggn(lambda p: (c.model_fn(p), c.targets), lambda z: 0.0, c.params), TypeError, r"model_fn\(params\)\[1\]: expected"),
    "scalar logits": (lambda c: jg.fisher(lambda p: c.model_fn(p).sum(), c.params), ValueError, r"model_fn\(params\): expected shape \(..., C\)"),
    "scalar losses": (lambda c: jg.empirical_fisher(lambda p: c.model_fn(p).sum(), c.params), ValueError, r"one loss for each example, \(N,\), got a scalar"),
    "weights": (lambda c: jg.fisher(c.model_fn, c.params, weights=jnp.ones((7, 1))), ValueError, r"weights: expected shape \(7,\)"),
    "integer weights": (lambda c: jg.fisher(c.model_fn, c.params, weights=jnp.ones(7, int)), TypeError, "weights: expected a real floating dtype"),
    "samples without key": (lambda c: jg.fisher(c.model_fn, c.params, num_samples=3), ValueError, "num_samples: expected a positive number together with key="),
    "no sample": (lambda c: jg.fisher(c.model_fn, c.params, key=KEYS[0], num_samples=0), ValueError, "num_samples: expected a positive number"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_by_name(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call(mlp())
