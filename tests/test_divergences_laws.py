"""The laws of the divergences, each against a definition that shares no code with the package.

Closed forms and every route of automatic differentiation of the package are compared with automatic differentiation
of the plain definition: `Σ p log(p/q)` with `p = exp(z) / Σ exp(z)`, no custom rule anywhere.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routes import by_jvp, by_linearize, by_vjp

import jaxgrad as jg

C = 4
SHAPE = (2, 3, C)


def close(actual, expected, ulps=64, msg=""):
    """Equal up to `ulps` units of the larger of 1 and the largest entry."""
    actual, eps = np.asarray(actual), float(jnp.finfo(actual.dtype).eps)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, msg
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=ulps * eps * max(1, np.abs(expected).max(initial=0)), err_msg=msg)


# The definitions


def softmax(z):
    return jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True)


def kl(p, q):
    return (p * jnp.log(p / q)).sum(-1)


def plain_js(a, b):
    p, q = softmax(a), softmax(b)
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def plain_gaussian(m1, l1, m2, l2):
    return (jnp.exp(l1 - l2) - 1 - (l1 - l2) + (m1 - m2) ** 2 * jnp.exp(-l2)) / 2


class Divergence(NamedTuple):
    value: object
    grad: object
    hessian: object
    definition: object
    arguments: str
    twice: tuple = (0, 1)  # the arguments of which the closed Hessian is


ALL = (0, 1, 2, 3)
DIVERGENCES = {
    "kl_divergence": Divergence(jg.kl_divergence, jg.kl_divergence_grad, jg.kl_divergence_hessian, lambda a, b: kl(softmax(a), softmax(b)), "logits"),
    "kl_divergence at T = 2.5": Divergence(
        *(partial(f, temperature=2.5) for f in (jg.kl_divergence, jg.kl_divergence_grad, jg.kl_divergence_hessian)),
        lambda a, b: kl(softmax(a / 2.5), softmax(b / 2.5)),
        "logits",
    ),
    "js_divergence": Divergence(jg.js_divergence, jg.js_divergence_grad, jg.js_divergence_hessian, plain_js, "logits"),
    "forward_kl": Divergence(
        jg.forward_kl, partial(jg.forward_kl_grad, argnums=(0, 1)), jg.forward_kl_hessian, lambda z, y: kl(y, softmax(z)), "a model and a target", (0,)
    ),
    "reverse_kl": Divergence(
        jg.reverse_kl, partial(jg.reverse_kl_grad, argnums=(0, 1)), jg.reverse_kl_hessian, lambda z, y: kl(softmax(z), y), "a model and a target", (0,)
    ),
    "kl_divergence_probs": Divergence(jg.kl_divergence_probs, jg.kl_divergence_probs_grad, jg.kl_divergence_probs_hessian, kl, "vectors"),
    "generalized_kl_divergence": Divergence(
        jg.generalized_kl_divergence,
        jg.generalized_kl_divergence_grad,
        jg.generalized_kl_divergence_hessian,
        lambda p, q: kl(p, q) + (q - p).sum(-1),
        "vectors",
    ),
    "gaussian_kl": Divergence(jg.gaussian_kl, jg.gaussian_kl_grad, jg.gaussian_kl_hessian, plain_gaussian, "Gaussians", ALL),
}
OPERATORS = [name for name in DIVERGENCES if name != "gaussian_kl"]
PAIRS = [name for name in OPERATORS if DIVERGENCES[name].twice == (0, 1)]


def draw(arguments, shape, dtype):
    rng = np.random.default_rng(shape)
    normal, positive = lambda: 2 * rng.normal(size=shape), lambda: 0.1 + rng.exponential(size=shape)
    drawn = {
        "logits": lambda: (normal(), normal()),
        "a model and a target": lambda: (normal(), positive()),
        "vectors": lambda: (positive(), positive()),
        "Gaussians": lambda: (normal(), normal() / 4, normal(), normal() / 4),
    }
    return tuple(jnp.asarray(x, dtype) for x in drawn[arguments]())


def argnums(of):
    return ALL if of.arguments == "Gaussians" else (0, 1)


fwd, rev, ckpt = jax.jacfwd, jax.jacrev, jax.checkpoint


def rows(f, depth):
    """f of one example, over `depth` leading axes."""
    return rows(jax.vmap(f), depth - 1) if depth else f


def test_definitions_hold_no_custom_rule():
    for of in DIVERGENCES.values():
        assert "custom" not in str(jax.make_jaxpr(of.definition)(*draw(of.arguments, (C,), jnp.float32)))


@cache
def closed_forms(name, dtype):
    """What the package says in closed form, and the value, gradients and Hessian of the definition through JAX."""
    of = DIVERGENCES[name]
    n, inputs = argnums(of), draw(of.arguments, SHAPE, dtype)

    def by_definition(*x):
        return of.definition(*x), fwd(of.definition, n)(*x), fwd(fwd(of.definition, of.twice), of.twice)(*x)

    closed = jax.jit(lambda *x: (of.value(*x), of.grad(*x), of.hessian(*x)))(*inputs)
    return closed, jax.jit(rows(by_definition, 3 if of.arguments == "Gaussians" else 2))(*inputs)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_closed_form_is_the_definition(name, widest_dtype):
    (value, gradients, _), (expected, expected_gradients, _) = closed_forms(name, widest_dtype)
    assert value.dtype == widest_dtype
    close(value, expected)
    for gradient, e in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == widest_dtype
        close(gradient, e)


def as_matrix(blocks):
    """Nested tuples of blocks (..., C, C) as one matrix."""
    return np.concatenate([np.concatenate([np.asarray(x, np.float64) for x in row], -1) for row in blocks], -2)


def product(matrix, v):
    return np.einsum("...ij,...j->...i", matrix, np.asarray(v, np.float64))


# name: (of an operator and two vectors, of a matrix and two vectors)
USES = {
    "to_dense": (lambda a, u, v: a.to_dense(), lambda m, u, v: m),
    "T.to_dense": (lambda a, u, v: a.T.to_dense(), lambda m, u, v: np.swapaxes(m, -1, -2)),
    "matvec": (lambda a, u, v: a.matvec(u), lambda m, u, v: product(m, u)),
    "@ vector": (lambda a, u, v: a @ v, lambda m, u, v: product(m, v)),
    "@ block": (lambda a, u, v: a @ jnp.stack([u, 2 * v, u], -1), lambda m, u, v: m @ np.stack([u, 2 * v, u], -1)),
    "T @ vector": (lambda a, u, v: a.T @ v, lambda m, u, v: product(np.swapaxes(m, -1, -2), v)),
    "diagonal": (lambda a, u, v: a.diagonal(), lambda m, u, v: np.einsum("...ii->...i", m)),
    "trace": (lambda a, u, v: a.trace(), lambda m, u, v: np.einsum("...ii->...", m)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_the_hessian_of_the_definition(name, widest_dtype):
    (_, _, hessian), (_, _, expected) = closed_forms(name, widest_dtype)
    operators, matrices = {"all": hessian}, {"all": expected[0][0]}
    if name in PAIRS:
        operators = {"first": hessian.first, "mixed": hessian.mixed, "second": hessian.second}
        matrices = {"first": expected[0][0], "mixed": expected[0][1], "second": expected[1][1]}
    u, v = draw("logits", SHAPE, widest_dtype)
    u64, v64 = np.asarray(u, np.float64), np.asarray(v, np.float64)
    used = jax.jit(lambda operators, u, v: {part: {use: f(a, u, v) for use, (f, _) in USES.items()} for part, a in operators.items()})(operators, u, v)
    for part, operator in operators.items():
        assert operator.shape == operator.T.shape == (*SHAPE, C)
        assert operator.dtype == widest_dtype
        for use, (_, f) in USES.items():
            close(used[part][use], f(np.asarray(matrices[part], np.float64), u64, v64), msg=f"{use} of {part}")
    whole, both = jax.jit(lambda hessian, u, v: (hessian.to_dense(), hessian.matvec(u, v) if name in PAIRS else ()))(hessian, u, v)
    close(whole, as_matrix(expected))
    if name in PAIRS:
        close(jnp.concatenate(both, -1), product(as_matrix(expected), np.concatenate([u64, v64], -1)))


def test_gaussian_hessian_is_one_matrix_for_each_dimension(widest_dtype):
    (_, _, hessian), (_, _, expected) = closed_forms("gaussian_kl", widest_dtype)
    close(hessian, np.stack([np.stack([np.asarray(x, np.float64) for x in row], -1) for row in expected], -2))
    np.testing.assert_array_equal(hessian, np.swapaxes(hessian, -1, -2))


# Automatic differentiation, every route


ROUTES = {
    1: {
        "grad": jax.grad,
        "jacfwd": fwd,
        "jacrev": rev,
        "jvp": by_jvp,
        "vjp": by_vjp,
        "linearize": by_linearize,
        "checkpoint": lambda f, n: jax.grad(ckpt(f), n),
        "one argument at a time": lambda f, n: lambda *x: tuple(fwd(f, i)(*x) for i in n),
    },
    2: {
        "forward over reverse": lambda f, n: fwd(rev(f, n), n),
        "reverse over forward": lambda f, n: rev(fwd(f, n), n),
        "reverse over reverse": lambda f, n: rev(rev(f, n), n),
        "forward over forward": lambda f, n: fwd(fwd(f, n), n),
    },
    3: {
        "forward over forward over reverse": lambda f, n: fwd(fwd(rev(f, n), n), n),
        "reverse over reverse over reverse": lambda f, n: rev(rev(rev(f, n), n), n),
    },
}
ORACLE = {1: fwd, 2: lambda f, n: fwd(fwd(f, n), n), 3: lambda f, n: fwd(fwd(fwd(f, n), n), n)}
ONCE = {"forward over reverse", "reverse over reverse", "forward over forward over reverse"}  # the other routes of the rest are in test_divergences_edges
EVERY_ROUTE = {(name, 1) for name in DIVERGENCES} | {("kl_divergence", 2), ("gaussian_kl", 2), ("kl_divergence", 3)}
FEWER_ARGUMENTS = {("js_divergence", 3): (0,), ("gaussian_kl", 3): (1, 3)}
ROWS = 8


def as_number(of):
    """A divergence and its definition, for one example."""
    if of.arguments != "Gaussians":
        return of.value, of.definition
    weights = np.array([0.3, -1.1, 0.7, 0.4])
    return tuple(lambda *x, f=f: (jnp.asarray(weights, x[0].dtype) * f(*x)).sum() for f in (of.value, of.definition))


@cache
def differentiated(name, order, dtype):
    """All routes to one derivative in one program: of rows, and of the same rows nearer to 0 or farther; and the definition's, of the former."""
    of = DIVERGENCES[name]
    (f, definition), n, inputs = as_number(of), argnums(of), draw(of.arguments, (ROWS, C), dtype)
    n = FEWER_ARGUMENTS.get((name, order), n)
    routes = {route: build(f, n) for route, build in ROUTES[order].items() if (name, order) in EVERY_ROUTE or route in ONCE}
    scale = jnp.asarray(np.geomspace(1e-3, 20, ROWS)[:, None], dtype)
    both = [jnp.concatenate([x, scale * x]) for x in inputs]
    actual = jax.jit(jax.vmap(lambda *x: {route: derivative(*x) for route, derivative in routes.items()}))(*both)
    return actual, jax.jit(jax.vmap(ORACLE[order](definition, n)))(*inputs)


@pytest.mark.parametrize(("name", "order"), [(name, order) for name in DIVERGENCES for order in ROUTES if order == 2 or "T = " not in name])
def test_derivative_is_that_of_the_definition(name, order, widest_dtype):
    actual, expected = differentiated(name, order, widest_dtype)
    for route, derivative in actual.items():
        for a, e in zip(jax.tree.leaves(derivative), jax.tree.leaves(expected), strict=True):
            close(a[:ROWS], e, ulps=200, msg=route)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_hessian_is_symmetric_to_the_bit_through_every_route(name, widest_dtype):
    """In the arguments of the closed form: each block is, and the mixed one is the other's transpose.

    Only to rounding, of the largest entry, where the chain rule divides by a T that is no power of two, and where the
    exponentials of a Gaussian are compiled twice.
    """
    ulps = 4 * float(jnp.finfo(widest_dtype).eps) if name in ("kl_divergence at T = 2.5", "gaussian_kl") else 0
    n = len(DIVERGENCES[name].twice) * C
    for route, blocks in differentiated(name, 2, widest_dtype)[0].items():
        matrices = as_matrix(blocks)[:, :n, :n]
        size = np.abs(matrices).max((-2, -1), keepdims=True)
        assert (np.abs(matrices - np.swapaxes(matrices, -1, -2)) <= ulps * size).all(), route


# Laws that need no second formula


@cache
def near_and_far(dtype, num_rows=64, num_classes=5):
    """Pairs of logits from nearly the same to a few hundred nats apart, and what the package makes of them, in one program."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=(num_rows, num_classes)) * np.geomspace(1e-1, 50, num_rows)[:, None]
    b = a + rng.normal(size=a.shape) * np.geomspace(1e-4, 200, num_rows)[:, None]
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)

    def everything(a, b):
        return {
            "kl": (jg.kl_divergence(a, b), jg.kl_divergence(b, a)),
            "js": (jg.js_divergence(a, b), jg.js_divergence(b, a)),
            "kl gradients": jg.kl_divergence_grad(a, b),
            "js gradients": jg.js_divergence_grad(a, b),
            "js gradients of the exchanged": jg.js_divergence_grad(b, a),
            "kl gradients by jax": jax.grad(lambda a, b: jg.kl_divergence(a, b).sum(), (0, 1))(a, b),
            "js gradients by jax": jax.grad(lambda a, b: jg.js_divergence(a, b).sum(), (0, 1))(a, b),
        }

    return jax.tree.map(lambda x: np.asarray(x, np.float64), jax.jit(everything)(a, b)), (a, b)


def test_kl_is_positive_and_js_is_between_0_and_log_2(dtype):
    results, (a, b) = near_and_far(dtype)
    differ = np.asarray(a != b).any(-1)
    for name in ("kl", "js"):
        for value in results[name]:
            np.testing.assert_array_equal(value > 0, differ)
            np.testing.assert_array_equal(value == 0, ~differ)
    rounded = np.log(2) * (1 + float(jnp.finfo(jnp.float64 if dtype == jnp.float64 else jnp.float32).eps))
    assert (results["js"][0] <= rounded).all()
    assert results["js"][0].max() > 0.6
    assert results["kl"][0].max() > 10


def test_js_is_symmetric_in_its_arguments(dtype):
    results, _ = near_and_far(dtype)
    wide = float(jnp.finfo(jnp.float64 if dtype == jnp.float64 else jnp.float32).eps)
    np.testing.assert_allclose(*results["js"], rtol=8 * wide)
    (first, second), exchanged = results["js gradients"], results["js gradients of the exchanged"]
    np.testing.assert_array_equal(first, exchanged[1])
    np.testing.assert_array_equal(second, exchanged[0])


def test_kl_is_not_symmetric_in_its_arguments():
    p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    forth, back, js = jax.jit(lambda p, q: (jg.kl_divergence(p, q), jg.kl_divergence(q, p), jg.js_divergence(p, q)))(p, q)
    close(forth, np.log(0.5 / 0.3))
    close(back, 0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    close(js, (0.5 * np.log(0.5 / 0.7) + 0.5 * np.log(0.5 / 0.3) + 0.9 * np.log(0.9 / 0.7) + 0.1 * np.log(0.1 / 0.3)) / 2)


@pytest.mark.parametrize("name", ["kl gradients", "js gradients", "kl gradients by jax", "js gradients by jax"])
def test_gradient_in_logits_sums_to_0(name, dtype):
    for gradient in near_and_far(dtype)[0][name]:
        assert np.abs(gradient).max() > 0.01
        slack = 4 * float(jnp.finfo(dtype).eps) * np.abs(gradient).sum(-1) + gradient.shape[-1] * float(jnp.finfo(dtype).tiny)
        assert (np.abs(gradient.sum(-1)) <= slack).all(), (gradient.sum(-1) / slack).max()


def test_forward_kl_and_cross_entropy_have_the_same_derivatives_in_the_logits(widest_dtype):
    z, y = draw("a model and a target", (6, C), widest_dtype)

    @jax.jit
    def both(z, y):
        routes = lambda f: jax.vmap(lambda z, y: (jax.grad(f)(z, y), jax.hessian(f)(z, y)))(z, y)
        of_kl = *routes(jg.forward_kl), jg.forward_kl_grad(z, y), jg.forward_kl_hessian(z, y).to_dense()
        of_cross_entropy = *routes(jg.cross_entropy), jg.cross_entropy_grad(z, y), jg.cross_entropy_hessian(z, y).to_dense()
        return of_kl, of_cross_entropy, jg.cross_entropy(z, y) - jg.forward_kl(z, y)

    of_kl, of_cross_entropy, difference = both(z, y)
    for mine, expected in zip(of_kl, of_cross_entropy, strict=True):
        close(mine, expected, ulps=4)
    y = np.asarray(y, np.float64)
    close(difference, -(y * np.log(y)).sum(-1))


def test_every_form_of_the_same_divergence_agrees(widest_dtype):
    a, b = draw("logits", (6, C), widest_dtype)

    @jax.jit
    def every_form(a, b):
        p, q = jg.softmax(a), jg.softmax(b)
        m = (p + q) / 2
        from_logits = [jg.kl_divergence(a, b)] * 4 + [jg.js_divergence(a, b), *jg.kl_divergence_grad(a, b), jg.kl_divergence_hessian(a, b).first.to_dense()]
        values = jg.forward_kl(b, p), jg.reverse_kl(a, q), jg.kl_divergence_probs(p, q), jg.generalized_kl_divergence(p, q)
        js = (jg.kl_divergence_probs(p, m) + jg.kl_divergence_probs(q, m)) / 2
        others = [*values, js, jg.reverse_kl_grad(a, q), jg.forward_kl_grad(b, p), jg.reverse_kl_hessian(a, q).to_dense()]
        return from_logits, others, jg.cross_entropy(b, p) - jg.entropy(a)

    from_logits, others, difference = every_form(a, b)
    for expected, other in zip(from_logits, others, strict=True):
        close(other, expected, ulps=16)
    close(difference, from_logits[0])


def test_generalized_kl_adds_what_the_sums_differ_by(widest_dtype):
    p, q = draw("vectors", (6, C), widest_dtype)
    close(jg.generalized_kl_divergence(p, q) - jg.kl_divergence_probs(p, q), np.asarray(q - p, np.float64).sum(-1))
    assert (jg.generalized_kl_divergence(p, q) > 0).all()
    assert jg.kl_divergence_probs(p[0], 4 * p[0]) < 0


def test_kl_is_half_a_square_of_fisher_length_to_second_order(widest_dtype):
    """KL(z, z + εv) − ½ ε² vᵀ J v shrinks as ε³, and the same of JS, a quarter of it."""
    z, v = jnp.array([0.5, -1.0, 1.0, 0.0], widest_dtype), np.array([0.25, -0.5, 0.0, 2.0])
    sizes = np.array([0.04, 0.02, 0.01])
    b = z[None] + jnp.asarray(sizes[:, None] * v, widest_dtype)
    step = np.asarray(b, np.float64) - np.asarray(z, np.float64)
    p = np.exp(np.asarray(z, np.float64)) / np.exp(np.asarray(z, np.float64)).sum()
    length = (p * (step - step @ p[:, None]) ** 2).sum(-1)
    a = jnp.broadcast_to(z, b.shape)
    fisher = jg.softmax_jacobian(a) @ jnp.asarray(step, widest_dtype)
    np.testing.assert_allclose((step * np.asarray(fisher)).sum(-1), length, rtol=1e-5)
    divergences = jax.jit(lambda a, b: (jg.kl_divergence(a, b), jg.kl_divergence(b, a), jg.js_divergence(a, b)))(a, b)
    for divergence, part in zip(divergences, (1 / 2, 1 / 2, 1 / 8), strict=True):
        remainder = np.abs(np.asarray(divergence, np.float64) - part * length)
        slopes = np.diff(np.log(remainder)) / np.diff(np.log(sizes))
        np.testing.assert_allclose(slopes, 3, atol=0.15)
        assert (remainder < 0.1 * part * length).all()


# Temperature


def test_temperature_divides_the_logits_and_the_derivatives(widest_dtype):
    """Not to the bit, as these are two programs."""
    a, b = draw("logits", (6, C), widest_dtype)

    @partial(jax.jit, static_argnames="options")
    def everything(a, b, options=()):
        return jg.kl_divergence(a, b, **dict(options)), jg.kl_divergence_grad(a, b, **dict(options)), jg.kl_divergence_hessian(a, b, **dict(options)).to_dense()

    for temperature in (np.float32(0.25), 3):
        t = float(temperature)
        value, gradients, hessian = everything(a, b, (("temperature", temperature),))
        expected, expected_gradients, expected_hessian = everything(a / t, b / t)
        np.testing.assert_allclose(value, expected, rtol=(4 if t != 3 else 64) * float(jnp.finfo(widest_dtype).eps))
        for gradient, e in zip(gradients, expected_gradients, strict=True):
            close(t * gradient, e, ulps=8)
        close(t**2 * hessian, expected_hessian, ulps=16)


def test_hot_gradient_is_that_of_the_squared_difference_of_centred_logits(widest_dtype):
    """T² ∂KL/∂b → (b − mean b − (a − mean a))/C for T → ∞."""
    a, b = draw("logits", (6, C), widest_dtype)
    t = 1e4
    limit = np.asarray(b - a, np.float64)
    limit = (limit - limit.mean(-1, keepdims=True)) / C
    np.testing.assert_allclose(t**2 * np.asarray(jg.kl_divergence_grad(a, b, temperature=t, argnums=1), np.float64), limit, atol=2e-3)
    assert np.abs(limit).max() > 0.1


# Bits


def test_bits_times_log_2_are_nats(dtype):
    nats = jnp.asarray(np.random.default_rng(0).exponential(size=(2, 3)), dtype)
    bits = jg.nats_to_bits(nats)
    assert bits.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    np.testing.assert_allclose(np.asarray(bits, np.float64) * np.log(2), np.asarray(nats, np.float64), rtol=2 * float(jnp.finfo(bits.dtype).eps))
    slope = jax.grad(lambda x: jg.nats_to_bits(x).sum())(nats)
    np.testing.assert_allclose(np.asarray(slope, np.float64), 1 / np.log(2), rtol=float(jnp.finfo(dtype).eps))


def test_uniform_against_one_class_of_8_is_3_bits():
    close(jg.nats_to_bits(jg.forward_kl(jnp.zeros(8), 0)), 3.0, ulps=2)


# Gaussians


def test_gaussian_against_a_fixed_prior_moves_only_the_posterior(widest_dtype):
    m, v, m2, v2 = draw("Gaussians", (3, C), widest_dtype)
    m64, v64, s, t = (np.asarray(x, np.float64) for x in (m, v, m2, v2))
    of_standard = jax.grad(lambda m, v: jg.gaussian_kl(m, v).sum(), (0, 1))(m, v)
    close(jg.gaussian_kl(m, v), (m64**2 + np.exp(v64) - 1 - v64) / 2)
    for mine, expected in zip(of_standard, (m64, (np.exp(v64) - 1) / 2), strict=True):
        close(mine, expected)
    by_mean, by_log_sigma = jax.grad(lambda m, log_sigma: jg.gaussian_kl(m, 2 * log_sigma, m2, v2).sum(), (0, 1))(m, v / 2)
    close(by_mean, (m64 - s) * np.exp(-t))
    close(by_log_sigma, np.exp(v64) / np.exp(t) - 1)
    close(jg.gaussian_kl_grad(m, v, m2, v2, argnums=0), by_mean)
    close(2 * jg.gaussian_kl_grad(m, v, m2, v2, argnums=1), by_log_sigma)
    assert len(jg.gaussian_kl_grad(m, v, argnums=(0, 1))) == 2


def test_scalar_prior_is_one_for_all_dimensions(widest_dtype):
    m, v, _, _ = draw("Gaussians", (3, C), widest_dtype)
    prior = jnp.asarray(0.5, widest_dtype), jnp.asarray(-0.25, widest_dtype)
    full = [jnp.full_like(m, x) for x in prior]
    np.testing.assert_array_equal(jg.gaussian_kl(m, v, *prior), jg.gaussian_kl(m, v, *full))
    np.testing.assert_array_equal(jg.gaussian_kl(m, v, 0.5, -0.25), jg.gaussian_kl(m, v, *full))
    closed = jg.gaussian_kl_grad(m, v, *prior)
    assert [g.shape for g in closed] == [m.shape] * 4
    of_scalars = jax.grad(lambda *x: jg.gaussian_kl(m, v, *x).sum(), (0, 1))(*prior)
    for mine, expected in zip(of_scalars, closed[2:], strict=True):
        close(mine, np.asarray(expected, np.float64).sum())
    np.testing.assert_array_equal(jg.gaussian_kl_hessian(m, v, *prior), jg.gaussian_kl_hessian(m, v, *full))


# Pytrees and dtypes


@pytest.mark.parametrize("name", ["kl_divergence", "kl_divergence_probs"])
def test_operators_are_pytrees_that_pass_through_jit_and_vmap(name, widest_dtype):
    of = DIVERGENCES[name]
    x, y = draw(of.arguments, SHAPE, widest_dtype)
    u, v = draw("logits", SHAPE, widest_dtype)
    hessian = jax.jit(jax.vmap(jax.vmap(of.hessian)))(x, y)
    use = lambda h, u, v: (h.to_dense(), *h.matvec(u, v), h.mixed.T @ u)
    dense, first, second, mixed = jax.jit(lambda h, u, v: jax.vmap(jax.vmap(use))(h, u, v))(hessian, u, v)
    matrix = as_matrix(closed_forms(name, widest_dtype)[1][2])
    close(dense, matrix)
    close(jnp.concatenate([first, second], -1), product(matrix, jnp.concatenate([u, v], -1)))
    close(mixed, product(matrix[..., C:, :C], u))


def test_mixed_dtypes_are_computed_with_in_the_wider_and_come_back_in_their_own(dtype):
    for other in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64):
        if other == jnp.float64 and not jax.config.jax_enable_x64:
            continue
        x, y = jax.ShapeDtypeStruct((2, C), dtype), jax.ShapeDtypeStruct((2, C), other)
        wide = jnp.float64 if jnp.float64 in (dtype, other) else jnp.float32
        widest = dtype if dtype == other else wide
        for name in OPERATORS:
            of = DIVERGENCES[name]
            assert jax.eval_shape(of.value, x, y).dtype == wide, name
            assert [g.dtype for g in jax.eval_shape(of.grad, x, y)] == [dtype, other], name
            assert [g.dtype for g in jax.eval_shape(jax.grad(lambda x, y, of=of: of.value(x, y).sum(), (0, 1)), x, y)] == [dtype, other], name
            assert jax.eval_shape(lambda x, y, of=of: of.hessian(x, y).to_dense(), x, y).dtype == (widest if name in PAIRS else dtype), name
        assert jax.eval_shape(jg.gaussian_kl, x, x, y, y).dtype == wide
        assert [g.dtype for g in jax.eval_shape(jg.gaussian_kl_grad, x, x, y, y)] == [dtype, dtype, other, other]


def test_narrow_logits_against_wide_ones_lose_nothing_more(narrow_dtype):
    a, b = draw("logits", (6, C), jnp.float32)
    narrow = a.astype(narrow_dtype)
    same = narrow.astype(jnp.float32)
    np.testing.assert_array_equal(jg.kl_divergence(narrow, b), jg.kl_divergence(same, b))
    np.testing.assert_array_equal(jg.js_divergence(b, narrow), jg.js_divergence(b, same))
    first, second = jg.kl_divergence_grad(narrow, b)
    expected = jg.kl_divergence_grad(same, b)
    np.testing.assert_array_equal(first, expected[0].astype(narrow_dtype))
    np.testing.assert_array_equal(second, expected[1])
