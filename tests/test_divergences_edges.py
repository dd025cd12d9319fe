"""The edge table of the divergences: what masked, infinite, missing, zero and ill-shaped inputs give, in value and every derivative."""

import re
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

inf, nan = np.inf, np.nan
C = 3


def close(actual, expected, msg=""):
    """Equal to float32 rounding, with NaN, the infinities and 0 exactly where they should be."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, msg
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6, equal_nan=True, err_msg=msg)
    assert (actual[np.abs(expected) < 1e-37] == 0).all(), f"{msg} is {actual}, not 0 where {expected} is"
    assert (actual[np.abs(expected) > 1e-14] != 0).all(), f"{msg} is {actual}, 0 where {expected} is not"


# The definitions in NumPy, with 0 · log 0 = 0: value, gradients in both arguments, Hessian in as many as the closed form has


class Derivatives(NamedTuple):
    value: object
    gradients: tuple
    hessian: object


def log(x):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(x)


def ratio(x, y):
    """x/y, and 0 where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((x == 0) & (y == 0), 0, x / y)


def weighted(p, x):
    return np.where(p == 0, 0, p * np.where(p == 0, 0, x))


def probabilities(z):
    with np.errstate(invalid="ignore"):
        e = np.exp(z - z.max())
        return e / e.sum() if np.isfinite(e).all() else np.full_like(z, nan)


def jacobian(p):
    return np.diag(p) - np.outer(p, p)


def blocks(first, mixed, second):
    return np.block([[first, mixed], [mixed.T, second]])


def kl_by_logits(p, q):
    """Value, gradient and Hessian of Σ p log(p/q) in the logits of p, at p > 0 = q their limits for q → 0."""
    if np.isnan(p + q).any():
        return nan, np.full(C, nan), np.full((C, C), nan)
    t = np.where(p == 0, 0, log(ratio(p, q)))
    outside = (p > 0) & (q == 0)
    if outside.any():
        pull = p * (outside - p[outside].sum())  # the gradient as a multiple of −log q
        twist = np.diag(pull) - np.outer(p, pull) - np.outer(pull, p)
        with np.errstate(invalid="ignore"):
            return inf, np.where(outside, inf, np.where(p > 0, -inf, 0)), np.where(twist == 0, 0, twist * inf)
    kl = weighted(p, t).sum()
    g = weighted(p, t - kl)
    return kl, g, jacobian(p) + np.diag(g) - np.outer(g, p) - np.outer(p, g)


def kl_derivatives(a, b):
    p, q = probabilities(a), probabilities(b)
    kl, gradient, hessian = kl_by_logits(p, q)
    return Derivatives(kl, (gradient, q - p), blocks(hessian, -jacobian(p), jacobian(q)))


def js_derivatives(a, b):
    p, q = probabilities(a), probabilities(b)

    def half(p, q):
        """½ KL(p‖m), ∂JS/∂a and ∂²JS/∂a²."""
        s, share = np.where(p == 0, 0, log(ratio(2 * p, p + q))), ratio(p, p + q)
        surprise = s - weighted(p, s).sum()
        return weighted(p, s).sum() / 2, p * surprise / 2, (np.diag(surprise + 1 - share) @ jacobian(p) - np.outer(p, (s - share) @ jacobian(p))) / 2

    (of_p, by_p, first), (of_q, by_q, second) = half(p, q), half(q, p)
    share = ratio(p, p + q)
    mixed = (np.outer(p, share @ jacobian(q)) - np.diag(share) @ jacobian(q)) / 2
    return Derivatives(of_p + of_q, (by_p, by_q), blocks(first, mixed, second))


def forward_derivatives(z, y):
    p = probabilities(z)
    t = np.where(y == 0, 0, log(ratio(y, p)))
    return Derivatives(weighted(y, t).sum(), (p * y.sum() - y, np.where(y == 0, 0, t + 1)), y.sum() * jacobian(p))


def reverse_derivatives(z, y):
    p = probabilities(z)
    kl, gradient, hessian = kl_by_logits(p, y)
    return Derivatives(kl, (gradient, -ratio(p, y)), hessian)


def of_vectors(p, q):
    """∂/∂p, ∂/∂q and the Hessian of Σ p log(p/q); all is 0 where p is."""
    t = np.where(p == 0, 0, log(ratio(p, q)))
    inverse = lambda x: np.where(p == 0, 0, ratio(1, np.where(p == 0, 1, x)))
    return t, -ratio(p, q), blocks(np.diag(inverse(p)), np.diag(-inverse(q)), np.diag(inverse(q) * ratio(p, q)))


def probs_derivatives(p, q):
    t, by_q, hessian = of_vectors(p, q)
    return Derivatives(weighted(p, t).sum(), (np.where(p == 0, 0, t + 1), by_q), hessian)


def generalized_derivatives(p, q):
    t, _, hessian = of_vectors(p, q)
    return Derivatives((weighted(p, t) - p + q).sum(), (t, ratio(q - p, q)), hessian)


# The rows: two arguments each


FINITE_ROWS = {
    "finite": ([0.5, -1, 1], [1, 0.25, -2]),
    "the same mask": ([0.5, -inf, 1], [-1, -inf, 2]),
    "masked in the first": ([0.5, -inf, 1], [-1, 0.5, 2]),
    "one class left in the first": ([-inf, 2, -inf], [0.5, -1, 1]),
    "one class left in both": ([-inf, 2, -inf], [-inf, -1, -inf]),
    "far from 0": ([3e38] * 3, [0.5, -1, 1]),
    "at both ends of the range": ([3e38] * 3, [-3e38] * 3),
}
UNDEFINED_ROWS = {
    f"{name} {place}": (bad, good) if place == "in the first" else (good, bad)
    for name, bad in {"all masked": [-inf] * 3, "+inf": [0.5, inf, 1], "NaN": [0.5, nan, 1], "NaN and masked": [nan, -inf, 1]}.items()
    for place in ("in the first", "in the second")
    for good in ([1, 0.25, -inf],)
}
KL_ROWS = FINITE_ROWS | UNDEFINED_ROWS | {"masked in the second": ([0.5, -1, 1], [-1, -inf, 2]), "two masked": ([0.5, -1, 1], [-inf, 2, -inf])}
JS_ROWS = KL_ROWS | {"disjoint": ([0.5, -inf, 1], [-inf, 2, -inf])}
TARGET_ROWS = {
    "finite": ([0.5, -1, 1], [0.25, 0.25, 0.5]),
    "a masked class without a target": ([0.5, -inf, 1], [0.25, 0, 0.75]),
    "one class left": ([-inf, 2, -inf], [0, 1, 0]),
    "targets that sum to 3": ([0.5, -1, 1], [0.5, 0.5, 2]),
    "all masked": ([-inf] * 3, [0.25, 0.25, 0.5]),
    "+inf": ([0.5, inf, 1], [0.25, 0.25, 0.5]),
    "NaN": ([0.5, nan, 1], [0.25, 0.25, 0.5]),
    "a masked class with a target": ([0.5, -inf, 1], [0.25, 0.5, 0.25]),
    "an open class without a target": ([0.5, -1, 1], [0.25, 0, 0.75]),
}
FORWARD_ROWS = TARGET_ROWS | {"no target": ([0.5, -1, 1], [0, 0, 0])}
VECTOR_ROWS = {
    "positive": ([0.25, 0.25, 0.5], [0.5, 0.125, 0.5]),
    "of any sum": ([2, 0.25, 0.5], [0.5, 0.125, 7]),
    "0 in p": ([0.25, 0, 0.75], [0.5, 0.25, 0.25]),
    "0 in q": ([0.5, 0.25, 0.25], [0.25, 0, 0.75]),
    "0 in both": ([0.5, 0, 0.25], [0.25, 0, 1]),
    "0 in p, and in q": ([0.5, 0, 0.25], [0.25, 1, 0]),
    "nothing in p": ([0, 0, 0], [0.5, 0.25, 0]),
    "nothing": ([0, 0, 0], [0, 0, 0]),
}


class Divergence(NamedTuple):
    value: object
    grad: object
    hessian: object
    definition: object
    rows: dict
    twice: tuple = (0, 1)  # the arguments of which the Hessian is


DIVERGENCES = {
    "kl_divergence": Divergence(jg.kl_divergence, jg.kl_divergence_grad, jg.kl_divergence_hessian, kl_derivatives, KL_ROWS),
    "js_divergence": Divergence(jg.js_divergence, jg.js_divergence_grad, jg.js_divergence_hessian, js_derivatives, JS_ROWS),
    "forward_kl": Divergence(jg.forward_kl, partial(jg.forward_kl_grad, argnums=(0, 1)), jg.forward_kl_hessian, forward_derivatives, FORWARD_ROWS, (0,)),
    "reverse_kl": Divergence(jg.reverse_kl, partial(jg.reverse_kl_grad, argnums=(0, 1)), jg.reverse_kl_hessian, reverse_derivatives, TARGET_ROWS, (0,)),
    "kl_divergence_probs": Divergence(jg.kl_divergence_probs, jg.kl_divergence_probs_grad, jg.kl_divergence_probs_hessian, probs_derivatives, VECTOR_ROWS),
    "generalized_kl_divergence": Divergence(
        jg.generalized_kl_divergence, jg.generalized_kl_divergence_grad, jg.generalized_kl_divergence_hessian, generalized_derivatives, VECTOR_ROWS
    ),
}


# Every route to the value, the gradients and the Hessian

VALUE, GRADIENTS, HESSIAN = range(3)
fwd, rev = jax.jacfwd, jax.jacrev
FIRST_ORDER = {"grad": jax.grad, "jacfwd": fwd, "jacrev": rev}
SECOND_ORDER = {
    "forward over reverse": lambda f, n: fwd(rev(f, n), n),
    "reverse over forward": lambda f, n: rev(fwd(f, n), n),
    "reverse over reverse": lambda f, n: rev(rev(f, n), n),
    "forward over forward": lambda f, n: fwd(fwd(f, n), n),
}


def kind(route):
    return VALUE if route == "value" else GRADIENTS if "grad" in route or route in FIRST_ORDER else HESSIAN


def every_route(of):
    """Of one example's two arguments and whether it counts; of JS, which takes long to compile, not every one."""

    def routes(x, y, where):
        f = lambda x, y: of.value(x, y, where=where)
        results = {"value": f(x, y), "closed gradient": of.grad(x, y, where=where), "closed hessian": of.hessian(x, y, where=where).to_dense()}
        results |= {name: route(f, (0, 1))(x, y) for name, route in FIRST_ORDER.items()}
        orders = {name: route for name, route in SECOND_ORDER.items() if of is not DIVERGENCES["js_divergence"] or name.startswith("forward")}
        return results | {name: jnp.block([list(row) for row in route(f, of.twice)(x, y)]) for name, route in orders.items()}

    return routes


def one_by_one(f):
    """A batch from single examples."""
    return lambda *inputs: jax.tree.map(lambda *x: jnp.stack(x), *map(f, *inputs))


TRANSFORMS = {"jit": lambda f: one_by_one(jax.jit(f)), "vmap": lambda f: jax.jit(jax.vmap(f))}


def table(of, where):
    """Inputs for all rows, as they are and left out, and what should come out."""
    names = [f"{name}, where={w}" for name in of.rows for w in where]
    x, y = (np.array([row[i] for row in of.rows.values() for _ in where], np.float32) for i in (0, 1))
    keep = np.array([w for _ in of.rows for w in where])
    expected = [of.definition(*(r.astype(np.float64) for r in rows)) for rows in zip(x, y, strict=True)]
    zeros = lambda e: Derivatives(0, tuple(0 * np.zeros(C) for _ in e.gradients), np.zeros_like(e.hessian))
    return names, (jnp.asarray(x), jnp.asarray(y), jnp.asarray(keep)), [e if w else zeros(e) for e, w in zip(expected, keep, strict=True)]


def check_rows(actual, expected, names):
    """`actual` from a program that returns all routes for a batch, against the definition of each row."""
    for route, batch in actual.items():
        for n, name in enumerate(names):
            if kind(route) == GRADIENTS:
                for i in (0, 1):
                    close(batch[i][n], expected[n].gradients[i], msg=f"{route} of {name}, in argument {i}")
            elif kind(route) == HESSIAN and np.isnan(expected[n].value):  # what depends on one of two arguments may be finite
                assert np.isnan(batch[n][:C, :C]).all(), f"{route} of {name}"
            else:
                close(batch[n], expected[n][kind(route)], msg=f"{route} of {name}")
                if kind(route) == HESSIAN:
                    np.testing.assert_array_equal(batch[n], batch[n].T, err_msg=f"{route} of {name}")


@pytest.mark.parametrize(
    ("name", "transform"),
    [(name, "vmap") for name in DIVERGENCES] + [(name, "jit") for name in ("kl_divergence", "kl_divergence_probs")],
)
def test_value_and_every_derivative(name, transform):
    of = DIVERGENCES[name]
    names, inputs, expected = table(of, [True, False])
    check_rows(TRANSFORMS[transform](every_route(of))(*inputs), expected, names)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_rows_of_a_batch_do_not_reach_each_other(name):
    """All rows in one array, without where= and vmap."""
    of = DIVERGENCES[name]
    names, (x, y, _), expected = table(of, [True])

    def batch(x, y):
        return {
            "value": of.value(x, y),
            "grad": jax.grad(lambda x, y: of.value(x, y).sum(), (0, 1))(x, y),
            "closed gradient": of.grad(x, y),
            "closed hessian": of.hessian(x, y).to_dense(),
        }

    check_rows(jax.jit(batch)(x, y), expected, names)


# Exact zeros

LOGITS = {
    "kl_divergence": (jg.kl_divergence, jg.kl_divergence_grad, jg.kl_divergence_hessian),
    "kl_divergence at T = 3": tuple(partial(f, temperature=3) for f in (jg.kl_divergence, jg.kl_divergence_grad, jg.kl_divergence_hessian)),
    "js_divergence": (jg.js_divergence, jg.js_divergence_grad, jg.js_divergence_hessian),
}
VECTORS = {
    "kl_divergence_probs": (jg.kl_divergence_probs, jg.kl_divergence_probs_grad, jg.kl_divergence_probs_hessian),
    "generalized_kl_divergence": (jg.generalized_kl_divergence, jg.generalized_kl_divergence_grad, jg.generalized_kl_divergence_hessian),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_that_differ_by_a_constant_are_exactly_equal(name, widest_dtype):
    value, gradient, _ = LOGITS[name]
    z = np.random.default_rng(0).integers(-32, 32, (6, 100)) / 8
    z[1::2, ::3] = -inf
    a, b = (jnp.asarray(x, widest_dtype) for x in (z, z + np.array([[0], [0], [0.25], [-4], [16], [-0.125]])))
    everything = jax.jit(lambda a, b: (value(a, b), *gradient(a, b), *jax.grad(lambda a, b: value(a, b).sum(), (0, 1))(a, b)))
    for x in everything(a, b):
        np.testing.assert_array_equal(np.asarray(x, np.float32), 0)
    assert everything(a, b.at[0, 0].add(1))[0][0] > 0


def test_equal_vectors_and_gaussians_are_exactly_at_the_minimum(widest_dtype):
    p = jnp.asarray(np.random.default_rng(0).exponential(size=(4, 100)), widest_dtype)
    of_vectors = jax.jit(lambda p, q: (jg.kl_divergence_probs(p, q), jg.generalized_kl_divergence(p, q), *jg.generalized_kl_divergence_grad(p, q)))
    of_gaussians = jax.jit(lambda *x: (jg.gaussian_kl(*x), *jg.gaussian_kl_grad(*x)))
    for x in (*of_vectors(p, p), *of_gaussians(p, -p, p, -p)):
        np.testing.assert_array_equal(np.asarray(x, np.float32), 0)
    for gradient, expected in zip(jg.kl_divergence_probs_grad(p, p), (1, -1), strict=True):
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), expected)


@pytest.mark.parametrize("name", LOGITS)
def test_one_class_is_no_divergence(name):
    value, gradient, hessian = LOGITS[name]
    everything = jax.jit(lambda a, b: (value(a, b), gradient(a, b), jax.grad(value, (0, 1))(a, b), hessian(a, b).to_dense()))
    for a, b in ([0.5], [-3.0]), ([3e38], [-3e38]), ([0.0], [0.0]):
        for x in jax.tree.leaves(everything(jnp.array(a), jnp.array(b))):
            np.testing.assert_array_equal(x, 0)


def test_one_class_against_a_target():
    z, y = jnp.array([0.5]), jnp.array([0.25])
    close(jg.forward_kl(z, y), np.log(0.25) / 4)
    close(jg.reverse_kl(z, y), np.log(4))
    for gradient in (jg.forward_kl_grad(z, y), jg.reverse_kl_grad(z, y), jax.grad(jg.forward_kl)(z, y), jax.grad(jg.reverse_kl)(z, y)):
        assert gradient == 0


@pytest.mark.parametrize("num_classes", [2, 100])
def test_jensen_shannon_of_disjoint_supports_is_log_2(num_classes, widest_dtype):
    z = np.random.default_rng(num_classes).normal(size=(8, num_classes))
    mine = np.arange(num_classes) < np.arange(1, 9)[:, None] % (num_classes - 1) + 1
    mine[:, -1] = False
    a, b = (jnp.asarray(np.where(part, z, -inf), widest_dtype) for part in (mine, ~mine))
    js, gradients = jax.tree.map(np.asarray, jax.jit(lambda a, b: (jg.js_divergence(a, b), jg.js_divergence_grad(a, b)))(a, b))
    np.testing.assert_allclose(js, np.log(2), rtol=4 * np.finfo(js.dtype).eps)
    assert (js <= np.nextafter(js.dtype.type(np.log(2)), js.dtype.type(1))).all()
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=np.finfo(js.dtype).eps)


# Class ids


def test_class_ids_in_forward_kl_are_those_of_cross_entropy():
    z, ids = jnp.array([[0.5, -1, 1], [0.5, -inf, 1], [2, 0, -3]], jnp.float32), jnp.array([2, 1, 0])
    for where in (None, jnp.array([True, False, True])):
        np.testing.assert_array_equal(jg.forward_kl(z, ids, where=where), jg.cross_entropy(z, ids, where=where))
        np.testing.assert_array_equal(jg.forward_kl_grad(z, ids, where=where), jg.cross_entropy_grad(z, ids, where=where))
        of_ids = lambda f, where=where: jax.grad(lambda z: f(z, ids, where=where).sum())(z)
        np.testing.assert_array_equal(of_ids(jg.forward_kl), of_ids(jg.cross_entropy))
        dense = jg.forward_kl_hessian(z, ids, where=where).to_dense()
        np.testing.assert_array_equal(dense, jg.cross_entropy_hessian(z, ids, where=where).to_dense())


@pytest.mark.parametrize("f", [jg.forward_kl, jg.forward_kl_grad, jg.forward_kl_hessian, jax.grad(lambda z, i: jg.forward_kl(z, i).sum())])
def test_invalid_class_id_raises_eagerly_and_is_nan_under_jit(f):
    z, ids = jnp.zeros((2, 3)), jnp.array([0, 3])
    with pytest.raises(IndexError, match=re.escape("targets[1]: expected a class id from 0 to 2, got 3;")):
        f(z, ids)
    if f is not jg.forward_kl_hessian:
        result = np.asarray(jax.jit(f)(z, ids))
        assert np.isfinite(result[0]).all()
        assert np.isnan(result[1]).all()


def test_an_example_left_out_is_not_looked_at():
    z, ids, where = jnp.array([[nan, 0, inf], [0.5, -1, 1]]), jnp.array([-100, 1]), jnp.array([False, True])
    assert jg.forward_kl(z, ids, where=where)[0] == 0
    np.testing.assert_array_equal(jg.forward_kl_grad(z, ids, where=where)[0], 0)


# What is refused, and in which words

z23, ids2, half = jnp.zeros((2, 3), jnp.float32), jnp.zeros(2, int), jnp.full((2, 3), 0.5)
OF_LOGITS = [f for functions in (LOGITS["kl_divergence"], LOGITS["js_divergence"]) for f in functions]
OF_VECTORS = [f for functions in VECTORS.values() for f in functions]


def refuses(f, *inputs, error, message, **options):
    """Also while tracing."""
    with pytest.raises(error, match=re.escape(message)):
        f(*inputs, **options)
    with pytest.raises(error, match=re.escape(message)):
        jax.eval_shape(lambda: f(*inputs, **options))


@pytest.mark.parametrize("f", OF_LOGITS)
def test_divergence_of_logits_refuses(f):
    for p, q, error, message in [
        (z23, z23[:, :1], ValueError, "q_logits: expected shape (2, 3) (the shape of p_logits), got (2, 1); pass jnp.broadcast_to(q_logits, (2, 3))"),
        (z23, z23[:1], ValueError, "q_logits: expected shape (2, 3) (the shape of p_logits), got (1, 3); pass jnp.broadcast_to(q_logits, (2, 3))"),
        (z23, z23[0], ValueError, "q_logits: expected shape (2, 3) (the shape of p_logits), got (3,); pass"),
        (z23[0], z23, ValueError, "q_logits: expected shape (3,) (the shape of p_logits), got (2, 3); check its axes"),
        (z23.astype(int), z23, TypeError, "p_logits: expected a real floating dtype, got int32; convert with .astype(jnp.float32)"),
        (z23, z23.astype(int), TypeError, "q_logits: expected a real floating dtype, got int32; convert with .astype(jnp.float32)"),
        (z23, ids2, TypeError, "q_logits: expected a real floating dtype, got int32"),
        (z23, z23.astype(jnp.complex64), TypeError, "q_logits: expected a real floating dtype, got complex64"),
        (jnp.zeros((2, 0)), jnp.zeros((2, 0)), ValueError, "p_logits: expected at least one class on the last axis, got shape (2, 0)"),
        (1.0, z23, ValueError, "p_logits: expected shape (..., C) with the classes on the last axis, got a scalar"),
    ]:
        message = message.replace("int32", str(jnp.zeros(0, int).dtype))
        refuses(f, p, q, error=error, message=message)
    for where, error, message in [
        (jnp.ones(1, bool), ValueError, "where: expected shape (2,) (one boolean for each example), got (1,); pass jnp.broadcast_to(where, (2,))"),
        (jnp.ones((2, 3), bool), ValueError, "where: expected shape (2,) (one boolean for each example), got (2, 3); check its axes"),
        (jnp.ones(2), TypeError, "where: expected booleans, True for the examples that count, got float"),
    ]:
        refuses(f, z23, z23, where=where, error=error, message=message)


@pytest.mark.parametrize("f", LOGITS["kl_divergence"])
def test_temperature_is_a_positive_number(f):
    for temperature in (0, 0.0, -1, nan, inf, -inf, np.float32(0)):
        refuses(f, z23, z23, temperature=temperature, error=ValueError, message=f"temperature: expected a positive finite number, got {temperature}")
    for temperature in (jnp.ones(()), jnp.ones(2), np.ones(1), "2", None, True):
        with pytest.raises(TypeError, match="temperature: expected a number, got "):
            f(z23, z23, temperature=temperature)
    with pytest.raises(TypeError, match="temperature: expected a number, got "):
        jax.jit(lambda t: f(z23, z23, temperature=t))(2.0)
    jax.eval_shape(lambda: [f(z23, z23, temperature=t) for t in (2, 0.5, np.float32(2), np.int64(3))])


@pytest.mark.parametrize("f", OF_VECTORS)
def test_divergence_of_probabilities_refuses(f):
    for p, q, error, message in [
        (half, half[:, :1], ValueError, "q: expected shape (2, 3) (the shape of p), got (2, 1); pass jnp.broadcast_to(q, (2, 3))"),
        (half, half[0], ValueError, "q: expected shape (2, 3) (the shape of p), got (3,); pass jnp.broadcast_to(q, (2, 3))"),
        (ids2, half, TypeError, "p: expected a real floating dtype, got int"),
        (half, half.astype(bool), TypeError, "q: expected a real floating dtype, got bool"),
        (jnp.zeros((2, 0)), jnp.zeros((2, 0)), ValueError, "p: expected at least one class on the last axis, got shape (2, 0)"),
    ]:
        refuses(f, p, q, error=error, message=message)
    refuses(f, half, half, where=jnp.ones(3, bool), error=ValueError, message="where: expected shape (2,) (one boolean for each example), got (3,)")


@pytest.mark.parametrize("f", [jg.reverse_kl, jg.reverse_kl_grad, jg.reverse_kl_hessian, jg.forward_kl, jg.forward_kl_grad, jg.forward_kl_hessian])
def test_divergence_from_a_target_refuses(f):
    for z, y, error, message in [
        (z23, half[:, :1], ValueError, "targets: float32 values are distributions, expected the shape of the logits (2, 3), got (2, 1); pass"),
        (z23, half[0], ValueError, "targets: float32 values are distributions, expected the shape of the logits (2, 3), got (3,); pass"),
        (z23, half[:, 0], TypeError, "targets: float32 values are distributions, expected shape (2, 3), got (2,); pass targets.astype(jnp.int32)"),
        (ids2, half, TypeError, "logits: expected a real floating dtype, got int"),
        (jnp.zeros((2, 0)), jnp.zeros((2, 0)), ValueError, "logits: expected at least one class on the last axis, got shape (2, 0)"),
    ]:
        refuses(f, z, y.astype(jnp.float32) if y.size else y, error=error, message=message)


@pytest.mark.parametrize("f", [jg.reverse_kl, jg.reverse_kl_grad, jg.reverse_kl_hessian, partial(jg.forward_kl_grad, argnums=1)])
def test_class_ids_are_no_distribution(f):
    refuses(f, z23, ids2, error=TypeError, message="targets: expected floating distributions (..., C), got class ids; pass jax.nn.one_hot(")


@pytest.mark.parametrize(
    "gradient",
    [
        lambda **n: jg.kl_divergence_grad(z23, z23, **n),
        lambda **n: jg.js_divergence_grad(z23, z23, **n),
        lambda **n: jg.forward_kl_grad(z23, half, **n),
        lambda **n: jg.reverse_kl_grad(z23, half, **n),
        lambda **n: jg.kl_divergence_probs_grad(half, half, **n),
        lambda **n: jg.generalized_kl_divergence_grad(half, half, **n),
        lambda **n: jg.gaussian_kl_grad(z23, z23, z23, z23, **n),
    ],
)
def test_argnums_are_those_of_jax_grad(gradient):
    (first, second), *mine = jax.jit(lambda: [gradient(argnums=n) for n in ((0, 1), 0, 1, [1], (1, 0))])()
    for one, expected in zip(jax.tree.leaves(mine), (first, second, second, second, first), strict=True):
        np.testing.assert_array_equal(one, expected)
    for wrong in (4, -1, (0, 4)):
        with pytest.raises(ValueError, match="argnums: expected numbers from 0 to"):
            gradient(argnums=wrong)


# Empty batches, lists, Gaussians


def test_empty_batch_is_empty():
    @jax.jit
    def shapes_of(z, none, ids):
        pairs = [*LOGITS.values(), *VECTORS.values()]
        values = [f(z, z) for f, _, _ in pairs] + [f(z, z, where=none) for f, _, _ in pairs] + [jg.forward_kl(z, z), jg.reverse_kl(z, z), jg.forward_kl(z, ids)]
        gradients = [g for _, f, _ in pairs for g in f(z, z)] + [jg.forward_kl_grad(z, z), jg.reverse_kl_grad(z, z), jg.gaussian_kl(z, z)]
        hessians = [jg.forward_kl_hessian(z, z).to_dense(), jg.reverse_kl_hessian(z, z).to_dense()]
        return values, gradients, [f(z, z).to_dense() for _, _, f in pairs], hessians, jg.gaussian_kl_hessian(z, z), jg.nats_to_bits(z)

    results = shapes_of(jnp.zeros((0, C)), jnp.zeros(0, bool), jnp.zeros(0, int))
    for result, shape in zip(results, [(0,), (0, C), (0, 2 * C, 2 * C), (0, C, C), (0, C, 4, 4), (0, C)], strict=True):
        assert {x.shape for x in jax.tree.leaves(result)} == {shape}


def test_numpy_arrays_and_lists_are_accepted():
    a, b, y = [[0.5, -1.0, 1.0], [2.0, 0.0, 0.0]], [[1.0, 0.25, -2.0], [0.0, 1.0, 0.5]], [[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]
    for f, x, z in [
        (jg.kl_divergence, a, b),
        (jg.js_divergence, a, b),
        (jg.forward_kl, a, y),
        (jg.forward_kl, a, [1, 0]),
        (jg.reverse_kl, a, np.exp(b).tolist()),
        (jg.kl_divergence_probs, y, np.exp(b).tolist()),
        (jg.generalized_kl_divergence, y, np.exp(b).tolist()),
    ]:
        expected = f(jnp.array(x), jnp.array(z))
        np.testing.assert_array_equal(f(x, z), expected)
        np.testing.assert_array_equal(f(np.array(x), np.array(z), where=[True, True]), expected)
    np.testing.assert_array_equal(jg.gaussian_kl(a, b), jg.gaussian_kl(jnp.array(a), jnp.array(b)))
    np.testing.assert_array_equal(jg.gaussian_kl(np.array(a), np.array(b), 1, 0.5), jg.gaussian_kl(jnp.array(a), jnp.array(b), jnp.ones(()), jnp.full((), 0.5)))
    np.testing.assert_array_equal(jg.nats_to_bits(0.5), jg.nats_to_bits(jnp.array(0.5)))


def test_gaussian_dimension_that_is_nan_or_left_out_reaches_no_other():
    m, v = jnp.array([0.5, nan, 1.0, inf, 0.25]), jnp.array([0.1, 0.2, nan, 0.3, -1.0])
    keep = jnp.array([True, False, False, False, True])

    @jax.jit
    def everything(m, v, where=None):
        by_jax = jax.grad(lambda m, v: jg.gaussian_kl(m, v, where=where).sum(), (0, 1))(m, v)
        return jg.gaussian_kl(m, v, where=where), jg.gaussian_kl_grad(m, v, where=where), by_jax, jg.gaussian_kl_hessian(m, v, where=where)

    alone, among, left_out = (jax.tree.leaves(everything(*inputs)) for inputs in ((m[::4], v[::4]), (m, v), (m, v, keep)))
    assert np.isnan(among[0][1:3]).all()
    for expected, x, y in zip(alone, among, left_out, strict=True):
        np.testing.assert_array_equal(x[::4], expected)
        np.testing.assert_array_equal(y[::4], expected)
        np.testing.assert_array_equal(y[1:4], 0)


@pytest.mark.parametrize("f", [jg.gaussian_kl, jg.gaussian_kl_grad, jg.gaussian_kl_hessian])
def test_gaussian_refuses(f):
    for inputs, error, message in [
        ((z23, z23[0]), ValueError, "log_variance: expected shape (2, 3) (the shape of mean), got (3,); pass jnp.broadcast_to(log_variance, (2, 3))"),
        ((z23, jnp.zeros(())), ValueError, "log_variance: expected shape (2, 3) (the shape of mean), got ()"),
        ((z23, z23, z23[:, :1]), ValueError, "prior_mean: expected shape (2, 3) (the shape of mean), got (2, 1); pass"),
        ((z23, z23, 0.0, z23[0]), ValueError, "prior_log_variance: expected shape (2, 3) (the shape of mean), got (3,); pass"),
        ((ids2, ids2), TypeError, "mean: expected a real floating dtype, got int"),
        ((z23, z23.astype(int)), TypeError, "log_variance: expected a real floating dtype, got int"),
        ((z23, z23, z23.astype(int)), TypeError, "prior_mean: expected a real floating dtype, got int"),
    ]:
        refuses(f, *inputs, error=error, message=message)
    refuses(f, z23, z23, where=jnp.ones(2, bool), error=ValueError, message="where: expected shape (2, 3)")


def test_bits_refuse_integers_and_keep_zero_and_infinities():
    np.testing.assert_array_equal(jg.nats_to_bits(jnp.array([0.0, inf, -inf, nan])), [0, inf, -inf, nan])
    refuses(jg.nats_to_bits, ids2, error=TypeError, message="nats: expected a real floating dtype, got int")
