"""The laws of softmax, cross-entropy and entropy, each against a definition that shares no code with the package.

Closed forms are compared with NumPy in float64, automatic differentiation of the package with automatic
differentiation of the plain definition: `exp(z) / Σ exp(z)` and what follows from it, no custom rule anywhere.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

C = 4
SHAPES = [(C,), (5, C), (2, 3, C), (0, C)]


def draw(shape, dtype):
    """Logits, soft targets that do not sum to 1, class ids and a tangent."""
    rng = np.random.default_rng(shape)
    z, y, v = 2 * rng.normal(size=shape), rng.exponential(size=shape), rng.normal(size=shape)
    return *(jnp.asarray(x, dtype) for x in (z, y)), jnp.asarray(rng.integers(0, shape[-1], shape[:-1]), jnp.int32), jnp.asarray(v, dtype)


def at_least_float32(dtype):
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def close(actual, expected, ulps=64, msg=""):
    """Equal up to `ulps` units of the larger of 1 and the largest entry; float64 on the side of the oracle."""
    expected = np.asarray(expected, np.float64)
    eps = float(jnp.finfo(actual.dtype).eps)
    assert actual.shape == expected.shape, msg
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=ulps * eps * max(1, np.abs(expected).max(initial=0)), err_msg=msg)


# The definitions, in NumPy float64 ...


def p(z):
    e = np.exp(z)
    return e / e.sum(-1, keepdims=True)


def one_hot(ids):
    return np.eye(C)[ids]


def jacobian(z, scale=1.0):
    return np.asarray(scale)[..., None, None] * (p(z)[..., None] * np.eye(z.shape[-1]) - p(z)[..., :, None] * p(z)[..., None, :])


def times(matrix, v):
    return np.einsum("...ij,...j->...i", matrix, v)


def ce(z, y):
    return -(y * np.log(p(z))).sum(-1)


def ce_grad(z, y):
    return p(z) * y.sum(-1, keepdims=True) - y


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def bce(z, y):
    return -y * np.log(sigmoid(z)) - (1 - y) * np.log(sigmoid(-z))


def diagonal(x):
    return x[..., None] * np.eye(x.shape[-1])


# name: (from the package, by definition), each of logits, soft targets, class ids, vectors
FORMULAS = {
    "softmax": (lambda z, y, i, v: jg.softmax(z), lambda z, y, i, v: p(z)),
    "log_softmax": (lambda z, y, i, v: jg.log_softmax(z), lambda z, y, i, v: np.log(p(z))),
    "logsumexp": (lambda z, y, i, v: jg.logsumexp(z), lambda z, y, i, v: np.log(np.exp(z).sum(-1))),
    "jacobian": (lambda z, y, i, v: jg.softmax_jacobian(z).to_dense(), lambda z, y, i, v: jacobian(z)),
    "jacobian diagonal": (lambda z, y, i, v: jg.softmax_jacobian(z).diagonal(), lambda z, y, i, v: p(z) * (1 - p(z))),
    "jacobian trace": (lambda z, y, i, v: jg.softmax_jacobian(z).trace(), lambda z, y, i, v: 1 - (p(z) ** 2).sum(-1)),
    "jacobian matvec": (lambda z, y, i, v: jg.softmax_jacobian(z).matvec(v), lambda z, y, i, v: times(jacobian(z), v)),
    "jacobian @ vector": (lambda z, y, i, v: jg.softmax_jacobian(z) @ v, lambda z, y, i, v: times(jacobian(z), v)),
    "jacobian @ block": (
        lambda z, y, i, v: jg.softmax_jacobian(z) @ jnp.stack([v, 2 * v, z], -1),
        lambda z, y, i, v: jacobian(z) @ np.stack([v, 2 * v, z], -1),
    ),
    "jacobian transposed": (lambda z, y, i, v: jg.softmax_jacobian(z).T @ v, lambda z, y, i, v: times(np.swapaxes(jacobian(z), -1, -2), v)),
    "cross_entropy of ids": (lambda z, y, i, v: jg.cross_entropy(z, i), lambda z, y, i, v: ce(z, one_hot(i))),
    "cross_entropy": (lambda z, y, i, v: jg.cross_entropy(z, y), lambda z, y, i, v: ce(z, y)),
    "cross_entropy of booleans": (lambda z, y, i, v: jg.cross_entropy(z, y > 1), lambda z, y, i, v: ce(z, y > 1)),
    "gradient of ids": (lambda z, y, i, v: jg.cross_entropy_grad(z, i), lambda z, y, i, v: p(z) - one_hot(i)),
    "gradient carries the sum of targets": (lambda z, y, i, v: jg.cross_entropy_grad(z, y), lambda z, y, i, v: ce_grad(z, y)),
    "hessian of ids": (lambda z, y, i, v: jg.cross_entropy_hessian(z, i).to_dense(), lambda z, y, i, v: jacobian(z)),
    "hessian carries the sum of targets": (lambda z, y, i, v: jg.cross_entropy_hessian(z, y).to_dense(), lambda z, y, i, v: jacobian(z, y.sum(-1))),
    "hessian diagonal": (lambda z, y, i, v: jg.cross_entropy_hessian(z, y).diagonal(), lambda z, y, i, v: y.sum(-1, keepdims=True) * p(z) * (1 - p(z))),
    "hessian trace": (lambda z, y, i, v: jg.cross_entropy_hessian(z, y).trace(), lambda z, y, i, v: y.sum(-1) * (1 - (p(z) ** 2).sum(-1))),
    "hessian @ vector": (lambda z, y, i, v: jg.cross_entropy_hessian(z, y) @ v, lambda z, y, i, v: times(jacobian(z, y.sum(-1)), v)),
    "entropy": (lambda z, y, i, v: jg.entropy(z), lambda z, y, i, v: ce(z, p(z))),
    "entropy gradient": (lambda z, y, i, v: jg.entropy_grad(z), lambda z, y, i, v: -p(z) * (np.log(p(z)) + ce(z, p(z))[..., None])),
    "binary_cross_entropy": (lambda z, y, i, v: jg.binary_cross_entropy(z, y / 8), lambda z, y, i, v: bce(z, y / 8)),
    "binary gradient": (lambda z, y, i, v: jg.binary_cross_entropy_grad(z, y / 8), lambda z, y, i, v: sigmoid(z) - y / 8),
    "binary gradient of ids": (lambda z, y, i, v: jg.binary_cross_entropy_grad(z, (z > 0).astype(int)), lambda z, y, i, v: sigmoid(z) - (z > 0)),
    "binary hessian": (lambda z, y, i, v: jg.binary_cross_entropy_hessian(z, y / 8).to_dense(), lambda z, y, i, v: diagonal(sigmoid(z) * sigmoid(-z))),
    "binary hessian diagonal": (lambda z, y, i, v: jg.binary_cross_entropy_hessian(z, y / 8).diagonal(), lambda z, y, i, v: sigmoid(z) * sigmoid(-z)),
    "binary hessian trace": (lambda z, y, i, v: jg.binary_cross_entropy_hessian(z, y / 8).trace(), lambda z, y, i, v: (sigmoid(z) * sigmoid(-z)).sum(-1)),
    "binary hessian @ vector": (lambda z, y, i, v: jg.binary_cross_entropy_hessian(z, y / 8) @ v, lambda z, y, i, v: sigmoid(z) * sigmoid(-z) * v),
}
PER_EXAMPLE = {"logsumexp", "jacobian trace", "cross_entropy of ids", "cross_entropy", "cross_entropy of booleans", "hessian trace", "entropy"}
PER_EXAMPLE |= {"binary_cross_entropy", "binary hessian trace"}  # these have no class axis: at least float32


every_formula = jax.jit(lambda *inputs: {name: f(*inputs) for name, (f, _) in FORMULAS.items()})


@cache
def formulas(dtype, shape):
    inputs = draw(shape, dtype)
    return every_formula(*inputs), [np.asarray(x, np.int32 if x.dtype == jnp.int32 else np.float64) for x in inputs]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_closed_form_is_the_definition_with_any_leading_axes(name, shape, widest_dtype):
    actual, inputs = formulas(widest_dtype, shape)
    close(actual[name], FORMULAS[name][1](*inputs))


@pytest.mark.parametrize("name", FORMULAS)
def test_closed_form_is_the_definition_in_the_dtype_of_the_logits(name, dtype):
    actual, inputs = formulas(dtype, (2, 3, C))
    assert actual[name].dtype == (at_least_float32(dtype) if name in PER_EXAMPLE else dtype)
    close(actual[name], FORMULAS[name][1](*inputs))


# Laws that need no second formula


def rows(dtype, num_rows=32, num_classes=5):
    """Logits from nearly uniform to a few hundred nats apart, and class ids."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(num_rows, num_classes)) * np.geomspace(1e-2, 200, num_rows)[:, None]
    return jnp.asarray(z, dtype), jnp.asarray(rng.integers(0, num_classes, num_rows), jnp.int32)


JACOBIANS = {
    "softmax_jacobian": lambda z, i: jg.softmax_jacobian(z).to_dense(),
    "cross_entropy_hessian": lambda z, i: jg.cross_entropy_hessian(z, i).to_dense(),
    "jacfwd of softmax": lambda z, i: jax.jacfwd(jg.softmax)(z),
    "jacrev of softmax": lambda z, i: jax.jacrev(jg.softmax)(z),
    "jacfwd of cross_entropy_grad": lambda z, i: jax.jacfwd(jg.cross_entropy_grad)(z, i),
    "jacrev of cross_entropy_grad": lambda z, i: jax.jacrev(jg.cross_entropy_grad)(z, i),
    "hessian of cross_entropy": lambda z, i: jax.hessian(jg.cross_entropy)(z, i),
    "reverse over forward": lambda z, i: jax.jacrev(jax.jacfwd(jg.cross_entropy))(z, i),
    "reverse over reverse": lambda z, i: jax.jacrev(jax.jacrev(jg.cross_entropy))(z, i),
    "forward over forward": lambda z, i: jax.jacfwd(jax.jacfwd(jg.cross_entropy))(z, i),
    "matvec with the unit vectors": lambda z, i: jg.softmax_jacobian(z) @ jnp.eye(z.shape[-1], dtype=z.dtype),
}


@pytest.mark.parametrize("route", JACOBIANS)
def test_jacobian_is_symmetric_to_the_bit_annihilates_ones_is_psd_with_norm_at_most_a_half(route, dtype):
    z, ids = rows(dtype)
    matrices = np.asarray(jax.jit(jax.vmap(JACOBIANS[route]))(z, ids), np.float64)
    slack = z.shape[-1] * float(jnp.finfo(dtype).eps)
    np.testing.assert_array_equal(matrices, np.swapaxes(matrices, -1, -2))
    assert (np.abs(matrices.sum(-1)) <= slack * np.abs(matrices).sum(-1)).all()
    eigenvalues = np.linalg.eigvalsh(matrices)
    assert (eigenvalues >= -slack * eigenvalues.max(-1, keepdims=True)).all()
    assert (eigenvalues <= 0.5 + slack).all()
    close(jnp.asarray(matrices, dtype), jacobian(np.asarray(z, np.float64)))


@pytest.mark.parametrize("route", ["forward over reverse", "reverse over forward", "reverse over reverse", "forward over forward"])
def test_hessian_is_symmetric_to_the_bit_whatever_the_sum_of_the_targets(route, dtype):
    z, _ = rows(dtype)
    y = jnp.asarray(np.random.default_rng(2).exponential(size=z.shape), dtype)
    hessians = np.asarray(jax.jit(jax.vmap(ROUTES[2][route](jg.cross_entropy, 0)))(z, y), np.float64)
    np.testing.assert_array_equal(hessians, np.swapaxes(hessians, -1, -2))


def test_softmax_sums_to_one(dtype):
    z, _ = rows(dtype)
    total = np.asarray(jax.jit(jg.softmax)(z), np.float64).sum(-1)
    np.testing.assert_allclose(total, 1, rtol=z.shape[-1] * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(np.exp(np.asarray(jax.jit(jg.log_softmax)(z), np.float64)).sum(-1), 1, rtol=0.1 if jnp.finfo(dtype).bits == 16 else 1e-6)


def test_jacobian_of_a_constant_vector_is_exactly_zero(dtype):
    z, _ = rows(dtype)
    for constant in (1, -1e4):
        assert (jax.jit(lambda z, v: jg.softmax_jacobian(z) @ v)(z, jnp.full_like(z, constant)) == 0).all()


def test_binary_hessian_is_at_most_a_quarter(dtype):
    z, _ = rows(dtype)
    curvature = jax.jit(lambda z: jg.binary_cross_entropy_hessian(z, jnp.zeros_like(z)).diagonal())(z)
    assert ((curvature >= 0) & (curvature <= 0.25)).all()
    assert (jg.binary_cross_entropy_hessian(jnp.zeros(1, dtype), jnp.ones(1, dtype)).diagonal() == 0.25).all()


def test_class_id_is_its_one_hot(dtype):
    z, ids = rows(dtype)
    soft = jax.nn.one_hot(ids, z.shape[-1], dtype=dtype)
    hessian = lambda z, y: jg.cross_entropy_hessian(z, y).to_dense()
    for f in (jg.cross_entropy, jg.cross_entropy_grad, hessian):
        of_ids, of_soft = (np.asarray(jax.jit(f)(z, y)) for y in (ids, soft))
        np.testing.assert_array_max_ulp(*(x.astype(at_least_float32(dtype)) for x in (of_ids, of_soft)), maxulp=4 if of_ids.dtype.itemsize > 2 else 0)
        assert of_ids.dtype == of_soft.dtype


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_a_batch_is_the_gradient_of_each_example(shape, widest_dtype):
    z, y, ids, _ = draw(shape, widest_dtype)
    both = jax.jit(lambda z, y, ids: (jax.grad(lambda z: jg.cross_entropy(z, ids).sum())(z), jax.grad(lambda z: jg.cross_entropy(z, y).sum())(z)))
    of_ids, of_soft = both(z, y, ids)
    z, y = np.asarray(z, np.float64), np.asarray(y, np.float64)
    close(of_ids, p(z) - one_hot(ids))
    close(of_soft, ce_grad(z, y))


def test_operator_is_a_pytree_that_passes_through_jit_and_vmap(dtype):
    z, y, _, v = draw((2, 3, C), dtype)
    make = jax.jit(jax.vmap(jax.vmap(jg.cross_entropy_hessian)))
    hessian = make(z, y)
    assert type(hessian) is type(jg.cross_entropy_hessian(z, y))
    assert hessian.shape == hessian.T.shape == (2, 3, C, C)
    assert hessian.dtype == hessian.to_dense().dtype == (hessian @ v).dtype == dtype
    expected = times(jacobian(np.asarray(z, np.float64), np.asarray(y, np.float64).sum(-1)), np.asarray(v, np.float64))
    close(jax.jit(jax.vmap(lambda a, v: a @ v))(hessian, v), expected)
    close(jax.jit(lambda a, v: jax.vmap(lambda a: a @ v[0])(a))(hessian, v)[0], expected[0])


# Dtypes: what has a class axis comes back in the dtype of the logits, what has none in at least float32


def test_mixed_dtypes_are_computed_with_in_the_wider(dtype):
    for targets in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64, jnp.bool_):
        if targets == jnp.float64 and not jax.config.jax_enable_x64:
            continue
        z, y = jax.ShapeDtypeStruct((2, C), dtype), jax.ShapeDtypeStruct((2, C), targets)
        wide = jnp.float64 if jnp.float64 in (dtype, targets) else jnp.float32
        assert jax.eval_shape(jg.cross_entropy, z, y).dtype == wide
        assert jax.eval_shape(jg.binary_cross_entropy, z, y).dtype == wide
        assert jax.eval_shape(jax.grad(lambda z, y: jg.cross_entropy(z, y).sum()), z, y).dtype == dtype
        assert jax.eval_shape(jg.cross_entropy_grad, z, y).dtype == dtype
        assert jax.eval_shape(lambda z, y: jg.cross_entropy_hessian(z, y).to_dense(), z, y).dtype == dtype
        if targets != jnp.bool_:
            assert jax.eval_shape(jax.grad(lambda y, z: jg.cross_entropy(z, y).sum()), y, z).dtype == targets
            assert jax.eval_shape(lambda z, v: jg.softmax_jacobian(z) @ v, z, y).dtype == dtype


along = lambda f: lambda z, y, i, v: jax.jvp(lambda z: f(z, y, i), (z,), (v,))[1]
against = lambda f: lambda z, y, i, v: jax.vjp(lambda z: f(z, y, i), z)[1](v)[0]
grad_of = lambda z, target: jax.grad(jg.cross_entropy)(z, target)
ROUNDED = {name: FORMULAS[name] for name in FORMULAS if name not in PER_EXAMPLE} | {
    "jvp of softmax": (along(lambda z, y, i: jg.softmax(z)), lambda z, y, i, v: times(jacobian(z), v)),
    "vjp of softmax": (against(lambda z, y, i: jg.softmax(z)), lambda z, y, i, v: times(jacobian(z), v)),
    "grad": (lambda z, y, i, v: grad_of(z, y), lambda z, y, i, v: ce_grad(z, y)),
    "grad of ids": (lambda z, y, i, v: grad_of(z, i), lambda z, y, i, v: p(z) - one_hot(i)),
    "hessian-vector product, forward": (along(lambda z, y, i: grad_of(z, i)), lambda z, y, i, v: times(jacobian(z), v)),
    "hessian-vector product, reverse": (against(lambda z, y, i: grad_of(z, y)), lambda z, y, i, v: times(jacobian(z, y.sum(-1)), v)),
    "hessian": (lambda z, y, i, v: jax.hessian(jg.cross_entropy)(z, i), lambda z, y, i, v: jacobian(z)),
    "grad of entropy": (lambda z, y, i, v: jax.grad(jg.entropy)(z), FORMULAS["entropy gradient"][1]),
}


@cache
def rounded(dtype):
    inputs = draw((64, C), dtype)
    return jax.jit(jax.vmap(lambda *inputs: {name: f(*inputs) for name, (f, _) in ROUNDED.items()}))(*inputs), inputs


@pytest.mark.parametrize("name", ROUNDED)
def test_narrow_dtypes_are_rounded_to_once(name, narrow_dtype):
    """Within 0.51 ULP of the exact result, and what float32 loses to cancellation: a few of its own units at the size of the row."""
    results, inputs = rounded(narrow_dtype)
    exact = ROUNDED[name][1](*[np.asarray(x, np.int32 if x.dtype == jnp.int32 else np.float64) for x in inputs])
    info = jnp.finfo(narrow_dtype)
    ulp = np.exp2(np.maximum(np.floor(np.log2(np.abs(exact) + 1e-300)), info.minexp) - info.nmant)
    excess = np.abs(np.asarray(results[name], np.float64) - exact) - 8 * 2.0**-24 * np.abs(exact).max(-1, keepdims=True)
    assert results[name].dtype == narrow_dtype
    assert (excess <= 0.51 * ulp).all(), f"{(excess / ulp).max()} ULP"


# Automatic differentiation, every route


def plain_softmax(z):
    e = jnp.exp(z)
    return e / e.sum(-1, keepdims=True)


def plain_cross_entropy(z, y):
    return -(y * jnp.log(plain_softmax(z))).sum(-1)


def plain_jacobian(z):
    return jnp.diag(plain_softmax(z)) - jnp.outer(plain_softmax(z), plain_softmax(z))


def plain_entropy(z):
    return plain_cross_entropy(z, plain_softmax(z))


def plain_sigmoid(z):
    return 1 / (1 + jnp.exp(-z))


def plain_binary_cross_entropy(z, y):
    return -y * jnp.log(plain_sigmoid(z)) - (1 - y) * jnp.log(1 - plain_sigmoid(z))


U = np.array([0.3, -1.1, 0.7, 0.4])
u = lambda x: jnp.vdot(jnp.asarray(U, x.dtype), x)  # a result with a class axis as one number
unit = lambda x: jnp.eye(C, dtype=x.dtype)[1]

# name: (from the package, by definition), one number for one example's logits z and soft targets y
LOSSES_AND_PROBABILITIES = {
    "cross_entropy": (jg.cross_entropy, plain_cross_entropy),
    "cross_entropy of ids": (lambda z, y: jg.cross_entropy(z, 1), lambda z, y: plain_cross_entropy(z, unit(z))),
    "binary_cross_entropy": (lambda z, y: u(jg.binary_cross_entropy(z, y)), lambda z, y: u(plain_binary_cross_entropy(z, y))),
    "softmax": (lambda z, y: u(jg.softmax(z)), lambda z, y: u(plain_softmax(z))),
    "log_softmax": (lambda z, y: u(jg.log_softmax(z)), lambda z, y: u(jnp.log(plain_softmax(z)))),
    "logsumexp": (lambda z, y: jg.logsumexp(z), lambda z, y: jnp.log(jnp.exp(z).sum())),
    "entropy": (lambda z, y: jg.entropy(z), lambda z, y: plain_entropy(z)),
}
CLOSED_FORMS = {
    "cross_entropy where": (lambda z, y: jg.cross_entropy(z, y, where=True), plain_cross_entropy),
    "cross_entropy_grad": (lambda z, y: u(jg.cross_entropy_grad(z, y)), lambda z, y: u(plain_softmax(z) * y.sum() - y)),
    "cross_entropy_grad of ids": (lambda z, y: u(jg.cross_entropy_grad(z, 1)), lambda z, y: u(plain_softmax(z) - unit(z))),
    "cross_entropy_hessian": (lambda z, y: u(jg.cross_entropy_hessian(z, y) @ y), lambda z, y: u(y.sum() * plain_jacobian(z) @ y)),
    "binary_cross_entropy_grad": (lambda z, y: u(jg.binary_cross_entropy_grad(z, y)), lambda z, y: u(plain_sigmoid(z) - y)),
    "binary_cross_entropy_hessian": (
        lambda z, y: u(jg.binary_cross_entropy_hessian(z, y) @ y),
        lambda z, y: u(plain_sigmoid(z) * (1 - plain_sigmoid(z)) * y),
    ),
    "softmax_jacobian": (lambda z, y: u(jg.softmax_jacobian(z) @ y), lambda z, y: u(plain_jacobian(z) @ y)),
    "diagonal": (lambda z, y: u(jg.softmax_jacobian(z).diagonal()), lambda z, y: u(jnp.diagonal(plain_jacobian(z)))),
    "trace": (lambda z, y: jg.softmax_jacobian(z).trace(), lambda z, y: jnp.trace(plain_jacobian(z))),
    "to_dense": (lambda z, y: u(jg.softmax_jacobian(z).to_dense() @ unit(z)), lambda z, y: u(plain_jacobian(z) @ unit(z))),
    "entropy_grad": (lambda z, y: u(jg.entropy_grad(z)), lambda z, y: -u(plain_softmax(z) * (jnp.log(plain_softmax(z)) + plain_entropy(z)))),
}
SCALARS = LOSSES_AND_PROBABILITIES | CLOSED_FORMS
USES_TARGETS = {"cross_entropy", "binary_cross_entropy", "cross_entropy where", "cross_entropy_grad", "cross_entropy_hessian"}
USES_TARGETS |= {"binary_cross_entropy_grad", "binary_cross_entropy_hessian", "softmax_jacobian"}
LOGITS, BOTH = (0,), (0, 1)


def by_jvp(f, argnums):
    """The gradient from one jvp along each unit vector, the other argument held fixed."""

    def gradient(*primals):
        along = lambda i: jax.vmap(lambda t: jax.jvp(lambda x: f(*primals[:i], x, *primals[i + 1 :]), (primals[i],), (t,))[1])(
            jnp.eye(C, dtype=primals[i].dtype)
        )
        return tuple(along(i) for i in argnums)

    return gradient


def by_vjp(f, argnums):
    def gradient(*primals):
        value, pullback = jax.vjp(f, *primals)
        return tuple(pullback(jnp.ones_like(value))[i] for i in argnums)

    return gradient


def by_linearize(f, argnums):
    """The gradient from the linear map that `jax.linearize` and then `jax.linear_transpose` make."""

    def gradient(*primals):
        value, pushforward = jax.linearize(f, *primals)
        cotangents = jax.linear_transpose(pushforward, *primals)(jnp.ones_like(value))
        return tuple(cotangents[i] for i in argnums)

    return gradient


rev, fwd, ckpt = jax.jacrev, jax.jacfwd, jax.checkpoint
ROUTES = {
    1: {
        "grad": jax.grad,
        "jacfwd": fwd,
        "jacrev": rev,
        "jvp": by_jvp,
        "vjp": by_vjp,
        "linearize": by_linearize,
        "checkpoint": lambda f, n: jax.grad(ckpt(f), n),
    },
    2: {
        "forward over reverse": lambda f, n: fwd(rev(f, n), n),
        "reverse over forward": lambda f, n: rev(fwd(f, n), n),
        "reverse over reverse": lambda f, n: rev(rev(f, n), n),
        "forward over forward": lambda f, n: fwd(fwd(f, n), n),
        "checkpoint": lambda f, n: fwd(ckpt(rev(ckpt(f), n)), n),
    },
    3: {
        "forward over forward over reverse": lambda f, n: fwd(fwd(rev(f, n), n), n),
        "reverse over reverse over reverse": lambda f, n: rev(rev(rev(f, n), n), n),
    },
}
ORACLE = {1: fwd, 2: lambda f, n: fwd(fwd(f, n), n), 3: lambda f, n: fwd(fwd(fwd(f, n), n), n)}


def test_definitions_hold_no_custom_rule():
    z = jnp.zeros(C)
    for _, definition in SCALARS.values():
        assert "custom" not in str(jax.make_jaxpr(definition)(z, z))


def check_routes(name, routes, argnums, dtype, transform=lambda f: jax.jit(jax.vmap(f))):
    """All `routes` to one derivative in one program, a batch of two, against the definition."""
    order = next(n for n in ROUTES if routes <= ROUTES[n].keys())
    f, definition = SCALARS[name]
    z, y, _, _ = draw((2, C), dtype)
    y = y / 8
    expected = jax.tree.leaves(jax.jit(jax.vmap(ORACLE[order](definition, argnums)))(z, y))
    actual = transform(lambda z, y: {route: ROUTES[order][route](f, argnums)(z, y) for route in routes})(z, y)
    for route in routes:
        for a, e in zip(jax.tree.leaves(actual[route]), expected, strict=True):
            close(a, e, ulps=200, msg=route)


@pytest.mark.parametrize(("name", "argnums"), [(name, LOGITS) for name in SCALARS] + [(name, BOTH) for name in SCALARS if name in USES_TARGETS])
def test_first_derivative_is_that_of_the_definition(name, argnums, widest_dtype):
    check_routes(name, ROUTES[1].keys() if name in LOSSES_AND_PROBABILITIES else {"jvp", "vjp"}, argnums, widest_dtype)


@pytest.mark.parametrize(
    ("name", "argnums"), [*((name, LOGITS) for name in [*LOSSES_AND_PROBABILITIES, "diagonal"]), ("cross_entropy", BOTH), ("binary_cross_entropy", BOTH)]
)
def test_second_derivative_is_that_of_the_definition(name, argnums, widest_dtype):
    check_routes(name, ROUTES[2].keys() if name in LOSSES_AND_PROBABILITIES else {"forward over reverse"}, argnums, widest_dtype)


@pytest.mark.parametrize("name", LOSSES_AND_PROBABILITIES)
def test_third_derivative_is_that_of_the_definition(name, widest_dtype):
    check_routes(name, ROUTES[3].keys(), BOTH if name == "cross_entropy" else LOGITS, widest_dtype)


def one_by_one(transform):
    """A batch from single examples, without vmap."""
    return lambda f: lambda z, y: jax.tree.map(lambda *rows: jnp.stack(rows), *map(transform(f), z, y))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("route", ["grad", "forward over reverse"])
@pytest.mark.parametrize("name", ["cross_entropy of ids", "cross_entropy"])
def test_derivative_is_the_same_without_vmap(name, route, transform, widest_dtype):
    check_routes(name, {route}, BOTH, widest_dtype, one_by_one(transform))
