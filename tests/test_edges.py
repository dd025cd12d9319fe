"""The edge table: what infinite, missing, invalid and ill-shaped inputs give, in value and every derivative."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

inf, nan = np.inf, np.nan
C = 3


def close(actual, expected, msg=""):
    """Equal to float32 rounding, with NaN, the infinities and 0 exactly where they should be."""
    actual, expected = np.asarray(actual, np.float64), np.broadcast_to(np.asarray(expected, np.float64), np.shape(actual))
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6, equal_nan=True, err_msg=msg)
    assert (actual[np.abs(expected) < 1e-37] == 0).all(), f"{msg} is {actual}, not 0 where {expected} is"
    assert (actual[np.abs(expected) > 1e-14] != 0).all(), f"{msg} is {actual}, 0 where {expected} is not"


# The definitions in NumPy, with 0 · log 0 = 0.


def probabilities(z):
    with np.errstate(invalid="ignore"):
        e = np.exp(z - z.max())
        return e / e.sum() if np.isfinite(e).all() else np.full_like(z, nan)


def jacobian(z):
    p = probabilities(z)
    return np.diag(p) - np.outer(p, p)


def log_probabilities(z):
    with np.errstate(divide="ignore"):
        return np.log(probabilities(z))


def weighted(p, x):
    return np.where(p == 0, 0, p * np.where(p == 0, 0, x))


def entropy_derivatives(z):
    """H, its gradient g and ∂g/∂z from g = −p (log p + H)."""
    p, log_p = probabilities(z), log_probabilities(z)
    log_p = np.where(p == 0, 0, log_p)
    h = -weighted(p, log_p).sum()
    g = -p * (log_p + h)
    return h, g, -jacobian(z) * (log_p + h)[:, None] - np.diag(p) + np.outer(p, p) - np.outer(p, g)


def cross_entropy_derivatives(z, y):
    """Loss, gradient and Hessian in the logits."""
    return -weighted(y, log_probabilities(z)).sum(), probabilities(z) * y.sum() - y, y.sum() * jacobian(z)


# Every route to the loss, the gradient and the Hessian, of f(z, *rest) for one example.

LOSS, GRADIENT, HESSIAN = range(3)
ROUTES = {
    "value": (LOSS, lambda f: f),
    "grad": (GRADIENT, jax.grad),
    "jacfwd": (GRADIENT, jax.jacfwd),
    "jacrev": (GRADIENT, jax.jacrev),
    "hessian": (HESSIAN, jax.hessian),
    "reverse over forward": (HESSIAN, lambda f: jax.jacrev(jax.jacfwd(f))),
    "reverse over reverse": (HESSIAN, lambda f: jax.jacrev(jax.jacrev(f))),
    "forward over forward": (HESSIAN, lambda f: jax.jacfwd(jax.jacfwd(f))),
}


def every_route(f):
    return lambda *inputs: {route: build(f)(*inputs) for route, (_, build) in ROUTES.items()}


def loss_routes(loss, gradient, hessian, **routes):
    """Those, and the closed forms, of a loss f(z, y, where)."""

    def all_routes(z, y, where):
        masked = every_route(lambda z, y: loss(z, y, where=where))(z, y)
        closed = {"closed gradient": gradient(z, y, where=where), "closed hessian": hessian(z, y, where=where).to_dense()}
        return masked | closed

    return all_routes


def kind(route):
    return ROUTES[route][0] if route in ROUTES else GRADIENT if route == "closed gradient" else HESSIAN


def one_by_one(f):
    """A batch from single examples."""
    return lambda *inputs: jax.tree.map(lambda *x: jnp.stack(x), *map(f, *inputs))


TRANSFORMS = {"jit": lambda f: one_by_one(jax.jit(f)), "vmap": lambda f: jax.jit(jax.vmap(f))}
eager_or_jit = pytest.mark.parametrize("compile", [lambda f: f, jax.jit], ids=["eager", "jit"])


def check_rows(actual, expected, names):
    """`actual` from a program that returns all routes for a batch, against (loss, gradient, Hessian) for each row."""
    for route, batch in actual.items():
        for n, name in enumerate(names):
            close(batch[n], expected[n][kind(route)], msg=f"{route} of {name}")
            if kind(route) == HESSIAN:
                np.testing.assert_array_equal(batch[n], batch[n].T, err_msg=f"{route} of {name}")


big = 3e38
# name: logits, distribution; what comes out follows from the definitions above, and a row is 0 if it is left out by where=
SOFT_ROWS = {
    "no target at a masked class": ([0.5, -inf, 1], [0.25, 0, 0.75]),
    "a target at a masked class": ([0.5, -inf, 1], [0.25, 0.5, 0.25]),
    "one class left": ([-inf, 2, -inf], [0, 1, 0]),
    "targets that sum to 3": ([0.5, -1, 1], [0.5, 0.5, 2]),
    "targets that sum to 0": ([0.5, -1, 1], [0, 0, 0]),
    "a negative target": ([0.5, -1, 1], [-0.5, 1, 0.25]),
    "equal logits, largest": ([big] * 3, [0.2, 0.3, 0.5]),
    "equal logits, smallest": ([-big] * 3, [0.2, 0.3, 0.5]),
    "all classes masked": ([-inf] * 3, [0.2, 0.3, 0.5]),
    "+inf": ([0.5, inf, 1], [0.2, 0.3, 0.5]),
    "+inf and -inf": ([-inf, inf, 1], [0, 0.5, 0.5]),
    "NaN": ([0.5, nan, 1], [0.2, 0, 0.8]),
    "a NaN target": ([0.5, -1, 1], [0.2, nan, 0.8]),
}
ID_ROWS = {
    "a class": ([0.5, -1, 1], 1),
    "a class beside a masked one": ([0.5, -inf, 1], 0),
    "a masked class": ([0.5, -inf, 1], 1),
    "one class left": ([-inf, 2, -inf], 1),
    "equal logits, largest": ([big] * 3, 2),
    "equal logits, smallest": ([-big] * 3, 2),
    "all classes masked": ([-inf] * 3, 0),
    "+inf": ([0.5, inf, 1], 0),
    "+inf at the target": ([0.5, inf, 1], 1),
    "NaN": ([0.5, nan, 1], 0),
    "NaN at the target": ([0.5, nan, 1], 1),
}
INVALID_IDS = {f"class {i} of 3": ([0.5, -1, 1], i) for i in (C, 10**6, -4, -1)}
VALUE_AND_DERIVATIVES = loss_routes(jg.cross_entropy, jg.cross_entropy_grad, jg.cross_entropy_hessian)


def cross_entropy_table(rows, where):
    """Inputs for all rows, once as they are and once left out where `where` says so, and what should come out."""
    names = [f"{name}, where={w}" for name in rows for w in where]
    logits = [np.array(z, np.float32) for z, _ in rows.values() for _ in where]
    targets = [y for _, y in rows.values() for _ in where]
    keep = [w for _ in rows for w in where]
    expected = []
    for z, y, w in zip(logits, targets, keep, strict=True):
        distribution = np.eye(C)[y] if np.ndim(y) == 0 and 0 <= y < C else np.full(C, nan) if np.ndim(y) == 0 else np.array(y, float)
        expected.append(cross_entropy_derivatives(z.astype(float), distribution) if w else (0, np.zeros(C), np.zeros((C, C))))
    dtype = np.int32 if np.ndim(targets[0]) == 0 else np.float32
    return names, [jnp.asarray(x) for x in (np.stack(logits), np.array(targets, dtype), np.array(keep))], expected


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("rows", [SOFT_ROWS, ID_ROWS | INVALID_IDS], ids=["soft", "ids"])
def test_cross_entropy(rows, transform):
    names, inputs, expected = cross_entropy_table(rows, [True, False])
    check_rows(TRANSFORMS[transform](VALUE_AND_DERIVATIVES)(*inputs), expected, names)


@eager_or_jit
@pytest.mark.parametrize("rows", [SOFT_ROWS, ID_ROWS, ID_ROWS | INVALID_IDS], ids=["soft", "ids", "invalid ids"])
def test_cross_entropy_of_a_batch_is_that_of_its_rows(rows, compile):
    """With the rows in one array, without where= and vmap: what is bad in one does not reach another."""
    names, (z, y, _), expected = cross_entropy_table(rows, [True])

    def batch(z, y):
        return {
            "value": jg.cross_entropy(z, y),
            "grad": jax.grad(lambda z: jg.cross_entropy(z, y).sum())(z),
            "closed gradient": jg.cross_entropy_grad(z, y),
            "closed hessian": jg.cross_entropy_hessian(z, y).to_dense(),
        }

    if compile is not jax.jit and "class 3 of 3" in names[-4]:
        with pytest.raises(IndexError, match=re.escape(f"targets[{len(ID_ROWS)}]: expected a class id from 0 to 2, got 3;")):
            batch(z, y)
    else:
        check_rows(compile(batch)(z, y), expected, names)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivative_in_the_targets_is_minus_log_p_and_inert_at_a_masked_class(transform):
    rows = {name: row for name, row in SOFT_ROWS.items() if "target" in name and "NaN" not in name}
    _, (z, y, _), _ = cross_entropy_table(rows, [True])
    zero = jnp.zeros(C, jnp.float32)
    routes = lambda z, y: {
        "grad": jax.grad(jg.cross_entropy, 1)(z, y),
        "jacfwd": jax.jacfwd(jg.cross_entropy, 1)(z, y),
        "mixed": jax.jacfwd(jax.grad(jg.cross_entropy), 1)(z, y),
        "jvp along nothing": jax.jvp(jg.cross_entropy, (z, y), (zero, zero))[1],
    }
    actual = TRANSFORMS[transform](routes)(z, y)
    for n, (name, (logits, _)) in enumerate(rows.items()):
        log_p, p = log_probabilities(np.array(logits, float)), probabilities(np.array(logits, float))
        expected = {"mixed": p[:, None] - np.eye(C), "jvp along nothing": 0.0}
        for route in actual:
            close(actual[route][n], expected.get(route, np.where(np.isinf(log_p), 0, -log_p)), msg=f"{route} of {name}")


def test_an_example_left_out_is_not_looked_at_even_eagerly():
    z, ids = jnp.array([[nan, 0, inf], [0.5, -1, 1]]), jnp.array([-100, 1])
    for where in (jnp.array([False, True]), jnp.array([False, False])):
        gradient = jax.grad(lambda z, where: jg.cross_entropy(z, ids, where=where).sum())(z, where)
        hessian = jg.cross_entropy_hessian(z, ids, where=where).to_dense()
        for x in (jg.cross_entropy(z, ids, where=where), gradient, jg.cross_entropy_grad(z, ids, where=where), hessian):
            np.testing.assert_array_equal((x == 0).all(axis=tuple(range(1, x.ndim))), ~where)


@pytest.mark.parametrize("f", [jg.cross_entropy, jg.cross_entropy_grad, jg.cross_entropy_hessian, jax.grad(lambda z, i: jg.cross_entropy(z, i).sum())])
@pytest.mark.parametrize(("ids", "place", "value"), [([0, 3], "[1]", 3), ([10**6, 0], "[0]", 10**6), ([2, -4], "[1]", -4), ([-1, -1], "[0]", -1)])
def test_invalid_class_id_raises_eagerly(f, ids, place, value):
    with pytest.raises(IndexError, match=re.escape(f"targets{place}: expected a class id from 0 to 2, got {value};")):
        f(jnp.zeros((2, 3)), jnp.array(ids))


def test_invalid_class_id_is_found_at_any_depth():
    with pytest.raises(IndexError, match=re.escape("targets[1][2]: expected a class id from 0 to 3, got 4")):
        jg.cross_entropy(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int).at[1, 2].set(4))
    with pytest.raises(IndexError, match="targets: expected a class id from 0 to 3, got 4"):
        jg.cross_entropy(jnp.zeros(4), 4)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_integers_of_any_width_are_class_ids_among_a_thousand(dtype):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1000)), jnp.float32)
    ids = np.array([0, 7, 127])
    exact = [cross_entropy_derivatives(np.asarray(row, float), np.eye(1000)[i]) for row, i in zip(z, ids, strict=True)]
    both = jax.jit(lambda z, i: (jg.cross_entropy(z, i), jax.grad(lambda z: jg.cross_entropy(z, i).sum())(z)))
    loss, gradient = both(z, jnp.asarray(ids, dtype))
    close(loss, [e[LOSS] for e in exact])
    np.testing.assert_allclose(gradient, np.stack([e[GRADIENT] for e in exact]), rtol=1e-5)
    np.testing.assert_array_equal(jg.cross_entropy(z, jnp.asarray(ids, dtype)), jg.cross_entropy(z, ids))
    if dtype.startswith("int"):
        loss, gradient = both(z, jnp.array([-1, 7, -128], dtype))
        np.testing.assert_array_equal(np.isnan(loss), [True, False, True])
        np.testing.assert_array_equal(np.isnan(gradient), np.isnan(loss)[:, None] | np.zeros((1, 1000), bool))


def test_boolean_targets_are_exact_zeros_and_ones():
    z, y = jnp.array([0.5, -1, 1], jnp.float32), jnp.array([True, False, True])
    closed = lambda z, y: {"closed gradient": jg.cross_entropy_grad(z, y), "closed hessian": jg.cross_entropy_hessian(z, y).to_dense()}
    routes = jax.jit(lambda z, y: every_route(jg.cross_entropy)(z, y) | closed(z, y))(z, y)
    exact = cross_entropy_derivatives(np.asarray(z, float), np.array([1.0, 0, 1]))
    for route, value in routes.items():
        close(value, exact[kind(route)], msg=route)


@pytest.mark.parametrize("target", [0, [1.0], [0.25], [True]], ids=str)
def test_one_class_costs_nothing(target):
    y, routes = jnp.array(target), jax.jit(every_route(jg.cross_entropy))
    for logit in (0.5, -big, big):
        z = jnp.array([logit], jnp.float32)
        for route, value in routes(z, y).items():
            assert (value == 0).all(), route
        assert jg.entropy(z) == jg.log_softmax(z) == jg.cross_entropy_grad(z, y) == 0
        assert jg.softmax(z) == 1


def test_empty_batch_is_empty():
    z, ids, y = jnp.zeros((0, C)), jnp.zeros(0, int), jnp.zeros((0, C))
    assert jg.cross_entropy(z, ids).shape == jg.cross_entropy(z, y).shape == jg.entropy(z).shape == jg.logsumexp(z).shape == (0,)
    assert jg.cross_entropy_grad(z, ids).shape == jg.softmax(z).shape == jg.log_softmax(z).shape == (0, C)
    assert jax.grad(lambda z: jg.cross_entropy(z, ids).sum())(z).shape == (0, C)
    assert jg.cross_entropy_hessian(z, ids).to_dense().shape == jax.vmap(jax.hessian(jg.cross_entropy))(z, ids).shape == (0, C, C)
    assert jg.cross_entropy(z, ids, where=jnp.zeros(0, bool)).shape == (0,)


# Functions of the logits alone: (value, Jacobian) by definition, and nothing but NaN in the Jacobian where the row is undefined


def log_softmax_derivatives(z):
    return log_probabilities(z), np.eye(C) - probabilities(z)


def logsumexp_derivatives(z):
    m = z.max()
    return (m + np.log(np.exp(z - m).sum()) if np.isfinite(m) else m), probabilities(z)


LOGIT_ROWS = {name: z for name, (z, _) in SOFT_ROWS.items() if "target" not in name} | {
    "masked": [0.5, -inf, 1],
    "far apart": [0, -200, 500],
    "all masked but for +inf": [-inf, inf, -inf],
}
OF_LOGITS = {
    "softmax": (jg.softmax, lambda z: (probabilities(z), jacobian(z))),
    "log_softmax": (jg.log_softmax, log_softmax_derivatives),
    "logsumexp": (jg.logsumexp, logsumexp_derivatives),
    "entropy": (jg.entropy, lambda z: entropy_derivatives(z)[:2]),
    "entropy_grad": (jg.entropy_grad, lambda z: entropy_derivatives(z)[1:]),
    "softmax_jacobian": (lambda z: jg.softmax_jacobian(z) @ jnp.ones_like(z), lambda z: (0 * probabilities(z), None)),
    "diagonal": (lambda z: jg.softmax_jacobian(z).diagonal(), lambda z: (np.diag(jacobian(z)), None)),
    "to_dense": (lambda z: jg.softmax_jacobian(z).to_dense(), lambda z: (jacobian(z), None)),
    "trace": (lambda z: jg.softmax_jacobian(z).trace(), lambda z: (np.trace(jacobian(z)), None)),
}


@cache
def of_logits(transform):
    z = jnp.array(list(LOGIT_ROWS.values()), jnp.float32)
    routes = lambda z: {
        (name, r): build(f)(z) for name, (f, _) in OF_LOGITS.items() for r, build in [("value", lambda f: f), ("jacfwd", jax.jacfwd), ("jacrev", jax.jacrev)]
    }
    return TRANSFORMS[transform](routes)(z)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", OF_LOGITS)
def test_function_of_the_logits(name, transform):
    for n, (row, z) in enumerate(LOGIT_ROWS.items()):
        value, derivative = OF_LOGITS[name][1](np.array(z, float))
        close(of_logits(transform)[name, "value"][n], value, msg=row)
        for route in ("jacfwd", "jacrev"):
            actual = of_logits(transform)[name, route][n]
            if derivative is not None:
                close(actual, derivative, msg=f"{route} of {row}")
            assert np.isnan(actual).all() if np.isnan(probabilities(np.array(z, float))).all() else np.isfinite(actual).all()


@eager_or_jit
def test_nan_and_infinities_stay_in_their_row(compile):
    z = jnp.array(list(LOGIT_ROWS.values()), jnp.float32)
    for name, (f, definition) in OF_LOGITS.items():
        batch = compile(f)(z)
        for n, (row, logits) in enumerate(LOGIT_ROWS.items()):
            close(batch[n], definition(np.array(logits, float))[0], msg=f"{name} of {row}")


# Binary cross-entropy


def binary_derivatives(z, y):
    with np.errstate(over="ignore", divide="ignore"):
        s, t = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
        return weighted(np.array(y), -np.log(s)) + weighted(np.array(1 - y), -np.log(t)), s - y, s * t + 0 * y


BINARY_ROWS = {f"logit {z}, target {y}": (z, y) for z in (0.5, -2, 30, inf, -inf, nan) for y in (0, 1, 0.25)}
BINARY_ROWS |= {"a negative target": (0.5, -0.5), "a NaN target": (0.5, nan), "a NaN target, far out": (inf, nan)}
BINARY_IDS = {name: row for name, row in BINARY_ROWS.items() if row[1] in (0, 1)}
INVALID_BINARY_IDS = {f"logit {z}, id {y}": (z, y) for z in (0.5, inf) for y in (2, -1, 100)}


def binary_routes(z, y, where):
    loss = lambda z, y: jg.binary_cross_entropy(z, y, where=where)
    hessian = jg.binary_cross_entropy_hessian(z[None], y[None], where=where[None]).to_dense()[0, 0]
    return every_route(loss)(z, y) | {"closed gradient": jg.binary_cross_entropy_grad(z, y, where=where), "closed hessian": hessian}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("ids", [False, True], ids=["soft", "ids"])
def test_binary_cross_entropy(ids, transform):
    rows = BINARY_IDS | INVALID_BINARY_IDS if ids else BINARY_ROWS
    names = [f"{name}, where={w}" for name in rows for w in (True, False)]
    z, y, where = zip(*[(*row, w) for row in rows.values() for w in (True, False)], strict=True)
    valid = lambda y: y if not ids or y in (0, 1) else nan
    expected = [binary_derivatives(float(a), valid(b)) if w else (0, 0, 0) for a, b, w in zip(z, y, where, strict=True)]
    inputs = jnp.array(z, jnp.float32), jnp.array(y, jnp.int32 if ids else jnp.float32), jnp.array(where)
    check_rows(TRANSFORMS[transform](binary_routes)(*inputs), expected, names)


@pytest.mark.parametrize("rows", [BINARY_ROWS, BINARY_IDS], ids=["soft", "ids"])
def test_binary_cross_entropy_eagerly(rows):
    z, y = (jnp.array(column) for column in zip(*rows.values(), strict=True))
    expected = [binary_derivatives(float(a), float(b)) for a, b in rows.values()]
    gradient = jax.grad(lambda z: jg.binary_cross_entropy(z, y).sum())(z)
    close(jg.binary_cross_entropy(z, y), [e[LOSS] for e in expected])
    close(gradient, [e[GRADIENT] for e in expected])
    close(jg.binary_cross_entropy_grad(z, y), [e[GRADIENT] for e in expected])
    close(jg.binary_cross_entropy_hessian(z, y).diagonal(), [e[HESSIAN] for e in expected])


def test_binary_derivative_in_the_target_is_minus_the_logit_and_inert_at_an_infinite_one():
    z = jnp.array([0.5, -2, 60, inf, -inf])
    for y in (0.0, 0.25, 1.0):
        close(jax.grad(lambda y: jg.binary_cross_entropy(z[:3], y).sum())(jnp.full(3, y)), [-0.5, 2, -60])
        close(jax.vmap(jax.jacfwd(jg.binary_cross_entropy, 1))(z, jnp.full(5, y)), [-0.5, 2, -60, 0, 0])


@pytest.mark.parametrize("f", [jg.binary_cross_entropy, jg.binary_cross_entropy_grad, jg.binary_cross_entropy_hessian])
def test_binary_target_that_is_neither_0_nor_1_raises_eagerly(f):
    with pytest.raises(IndexError, match=re.escape("targets[1]: expected a class id from 0 to 1, got 2;")):
        f(jnp.zeros(3), jnp.array([0, 2, -1]))
    assert f(jnp.zeros(3), jnp.array([0, 1, 7]), where=jnp.array([True, True, False])).shape[0] == 3


# What is refused, and in which words

z23, ids2 = jnp.zeros((2, 3), jnp.float32), jnp.zeros(2, int)
REFUSED = {
    "ids (N, 1)": (
        lambda f: f(z23, ids2[:, None]),
        ValueError,
        "targets: integers are class ids, expected shape (2,) for logits of shape (2, 3), got (2, 1); pass",
    ),
    "ids (1,)": (lambda f: f(z23, ids2[:1]), ValueError, "got (1,); pass jnp.broadcast_to(targets, (2,))"),
    "one id for a batch": (lambda f: f(z23, 0), ValueError, "got (); pass jnp.broadcast_to(targets, (2,))"),
    "ids (N, C)": (lambda f: f(z23, jnp.zeros((2, 3), int)), ValueError, "got (2, 3); pass targets.astype(jnp.float32) if these are distributions"),
    "soft (C,)": (lambda f: f(z23, jnp.ones(3)), ValueError, "expected the shape of the logits (2, 3), got (3,); pass jnp.broadcast_to(targets, (2, 3))"),
    "soft (N, 1)": (lambda f: f(z23, jnp.ones((2, 1))), ValueError, "expected the shape of the logits (2, 3), got (2, 1); pass jnp.broadcast_to"),
    "soft (N, C + 1)": (lambda f: f(z23, jnp.ones((2, 4))), ValueError, "got (2, 4); pass one distribution for each row"),
    "booleans (C,)": (
        lambda f: f(z23, jnp.ones(3, bool)),
        ValueError,
        "targets: bool values are distributions, expected the shape of the logits (2, 3), got (3,)",
    ),
    "float ids": (
        lambda f: f(z23, z23[:, 0]),
        TypeError,
        "targets: float32 values are distributions, expected shape (2, 3), got (2,); pass targets.astype(jnp.int32)",
    ),
    "complex targets": (
        lambda f: f(z23, jnp.ones((2, 3), jnp.complex64)),
        TypeError,
        "targets: expected integer class ids or floating distributions, got complex64",
    ),
    "integer logits": (
        lambda f: f(jnp.zeros((2, 3), jnp.int32), ids2),
        TypeError,
        "logits: expected a real floating dtype, got int32; convert with .astype(jnp.float32)",
    ),
    "complex logits": (lambda f: f(jnp.zeros((2, 3), jnp.complex64), ids2), TypeError, "logits: expected a real floating dtype, got complex64"),
    "scalar logits": (lambda f: f(1.0, 0), ValueError, "logits: expected shape (..., C) with the classes on the last axis, got a scalar; pass an array"),
    "no classes": (lambda f: f(jnp.zeros((2, 0)), ids2), ValueError, "logits: expected at least one class on the last axis, got shape (2, 0); check"),
    "ragged logits": (lambda f: f([[1.0], [1.0, 2.0]], ids2), TypeError, "logits: expected an array, got list; pass a JAX or NumPy array"),
    "no logits": (lambda f: f(None, ids2), TypeError, "logits: expected an array, got NoneType"),
    "no targets": (lambda f: f(z23, None), TypeError, "targets: expected an array, got NoneType"),
    "names for targets": (lambda f: f(z23, ["cat", "dog"]), TypeError, "targets: expected an array, got list"),
    "where (1,)": (
        lambda f: f(z23, ids2, where=jnp.ones(1, bool)),
        ValueError,
        "where: expected shape (2,) (one boolean for each example), got (1,); pass jnp.broadcast_to(where, (2,))",
    ),
    "where (N, C)": (
        lambda f: f(z23, ids2, where=jnp.ones((2, 3), bool)),
        ValueError,
        "where: expected shape (2,) (one boolean for each example), got (2, 3); check its axes",
    ),
    "a scalar where": (lambda f: f(z23, ids2, where=True), ValueError, "where: expected shape (2,) (one boolean for each example), got ()"),
    "weights for where": (
        lambda f: f(z23, ids2, where=z23[:, 0]),
        TypeError,
        "where: expected booleans, True for the examples that count, got float32; pass where.astype(bool)",
    ),
}


@pytest.mark.parametrize("f", [jg.cross_entropy, jg.cross_entropy_grad, jg.cross_entropy_hessian])
@pytest.mark.parametrize("case", REFUSED)
def test_cross_entropy_refuses(case, f):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        call(f)
    if "ragged" not in case and "no " not in case and "names" not in case:
        with pytest.raises(error, match=re.escape(message)):
            jax.eval_shape(lambda: call(f))


@pytest.mark.parametrize("f", [jg.softmax, jg.log_softmax, jg.logsumexp, jg.softmax_jacobian, jg.entropy, jg.entropy_grad])
def test_functions_of_the_logits_refuse(f):
    for logits, error, message in [
        (jnp.zeros((2, 3), jnp.int32), TypeError, "logits: expected a real floating dtype, got int32; convert with .astype(jnp.float32)"),
        (jnp.zeros((2, 3), bool), TypeError, "logits: expected a real floating dtype, got bool"),
        (1.0, ValueError, "logits: expected shape (..., C) with the classes on the last axis, got a scalar; pass an array of C scores"),
        (jnp.zeros((2, 0)), ValueError, "logits: expected at least one class on the last axis, got shape (2, 0); check the class axis"),
        ([[1.0], [1.0, 2.0]], TypeError, "logits: expected an array, got list; pass a JAX or NumPy array"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            f(logits)


@pytest.mark.parametrize("f", [jg.binary_cross_entropy, jg.binary_cross_entropy_grad, jg.binary_cross_entropy_hessian])
def test_binary_cross_entropy_refuses(f):
    for inputs, error, message in [
        (
            (z23, jnp.zeros((2, 1))),
            ValueError,
            "targets: expected shape (2, 3) (one target for each logit), got (2, 1); pass jnp.broadcast_to(targets, (2, 3))",
        ),
        ((z23, jnp.zeros(2)), ValueError, "targets: expected shape (2, 3) (one target for each logit), got (2,); check its axes"),
        ((jnp.zeros((2, 3), int), z23), TypeError, "logits: expected a real floating dtype, got int"),
        (
            (z23, jnp.zeros((2, 3), jnp.complex64)),
            TypeError,
            "targets: expected probabilities, booleans or the integers 0 and 1, got complex64; pass float32 or int32",
        ),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            f(*inputs)
    with pytest.raises(ValueError, match=re.escape("where: expected shape (2, 3) (one boolean for each example), got (2,); check its axes")):
        f(z23, z23, where=jnp.ones(2, bool))


def test_binary_hessian_needs_an_axis():
    with pytest.raises(ValueError, match=re.escape("logits: expected shape (..., K) for a Hessian, got a scalar; pass logits[None] and targets[None]")):
        jg.binary_cross_entropy_hessian(1.0, 0.0)


@pytest.mark.parametrize("operator", [jg.softmax_jacobian(z23), jg.binary_cross_entropy_hessian(z23, z23)], ids=["softmax", "diagonal"])
def test_operators_refuse(operator):
    with pytest.raises(ValueError, match=re.escape("other: expected vectors (2, 3) or blocks (2, 3) + (K,) for matrices (2, 3, 3), got (3,); check its axes")):
        operator @ jnp.zeros(3)
    with pytest.raises(ValueError, match=re.escape("vector: expected shape (2, 3) (one vector for each")):
        operator.matvec(jnp.zeros(3))
    for product in (operator.matvec, operator.__matmul__):
        with pytest.raises(TypeError, match=r"^(vector|other): expected a real floating dtype, got int32"):
            product(jnp.zeros((2, 3), jnp.int32))


def test_numpy_arrays_and_lists_are_accepted():
    z, ids, y = [[0.5, -1.0, 1.0], [2.0, 0.0, 0.0]], [1, 0], [[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]]
    for targets in (ids, y):
        expected = jg.cross_entropy(jnp.array(z), jnp.array(targets))
        np.testing.assert_array_equal(jg.cross_entropy(z, targets), expected)
        np.testing.assert_array_equal(jg.cross_entropy(np.array(z), np.array(targets), where=[True, True]), expected)
    np.testing.assert_array_equal(jg.softmax(z), jg.softmax(jnp.array(z)))
    np.testing.assert_array_equal(jg.softmax_jacobian(np.array(z, np.float32)) @ np.ones((2, 3), np.float32), np.zeros((2, 3)))
    np.testing.assert_array_equal(jg.binary_cross_entropy(z[0], [0, 1, 1]), jg.binary_cross_entropy(jnp.array(z[0]), jnp.array([0, 1, 1])))
