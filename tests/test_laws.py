"""The laws of softmax, cross-entropy and entropy, each against a definition that shares no code with the package.

Closed forms are compared with NumPy in float64, automatic differentiation of the package with automatic
differentiation of the plain definition: `exp(z) / Σ exp(z)` and what follows from it, no custom rule anywhere.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routes import by_jvp, by_linearize, by_vjp

import jaxgrad as jg

C = 4
SHAPES = [(C,), (2, 3, C), (0, C)]


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


def as_float64(*inputs):
    return [np.asarray(x, np.int32 if x.dtype == jnp.int32 else np.float64) for x in inputs]


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
    """Every formula in one program."""
    inputs = draw(shape, dtype)
    return every_formula(*inputs), as_float64(*inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_closed_form_is_the_definition_with_any_leading_axes(name, shape, widest_dtype):
    actual, inputs = formulas(widest_dtype, shape)
    assert actual[name].dtype == widest_dtype
    close(actual[name], FORMULAS[name][1](*inputs))


# Laws that need no second formula

twice = lambda outer, inner: outer(inner(jg.cross_entropy))
# each of one example's logits, class id, that as a distribution, and a distribution of any sum
JACOBIANS = {
    "softmax_jacobian": lambda z, i, one_hot, y: jg.softmax_jacobian(z).to_dense(),
    "cross_entropy_hessian": lambda z, i, one_hot, y: jg.cross_entropy_hessian(z, i).to_dense(),
    "jacfwd of softmax": lambda z, i, one_hot, y: jax.jacfwd(jg.softmax)(z),
    "jacrev of softmax": lambda z, i, one_hot, y: jax.jacrev(jg.softmax)(z),
    "jacfwd of cross_entropy_grad": lambda z, i, one_hot, y: jax.jacfwd(jg.cross_entropy_grad)(z, one_hot),
    "jacrev of cross_entropy_grad": lambda z, i, one_hot, y: jax.jacrev(jg.cross_entropy_grad)(z, i),
    "hessian of cross_entropy": lambda z, i, one_hot, y: jax.hessian(jg.cross_entropy)(z, i),
    "reverse over forward": lambda z, i, one_hot, y: twice(jax.jacrev, jax.jacfwd)(z, i),
    "reverse over reverse": lambda z, i, one_hot, y: twice(jax.jacrev, jax.jacrev)(z, i),
    "forward over forward": lambda z, i, one_hot, y: twice(jax.jacfwd, jax.jacfwd)(z, i),
    "matvec with the unit vectors": lambda z, i, one_hot, y: jg.softmax_jacobian(z) @ jnp.eye(z.shape[-1], dtype=z.dtype),
}
SCALED = {
    "cross_entropy_hessian": lambda z, i, one_hot, y: jg.cross_entropy_hessian(z, y).to_dense(),
    "forward over reverse": lambda z, i, one_hot, y: twice(jax.jacfwd, jax.jacrev)(z, y),
    "reverse over forward": lambda z, i, one_hot, y: twice(jax.jacrev, jax.jacfwd)(z, y),
    "reverse over reverse": lambda z, i, one_hot, y: twice(jax.jacrev, jax.jacrev)(z, y),
    "forward over forward": lambda z, i, one_hot, y: twice(jax.jacfwd, jax.jacfwd)(z, y),
}
TWINS = {
    "cross_entropy": jg.cross_entropy,
    "cross_entropy_grad": jg.cross_entropy_grad,
    "cross_entropy_hessian": lambda z, y: jg.cross_entropy_hessian(z, y).to_dense(),
}


def everything(z, i, one_hot, y):
    return {
        "jacobians": {route: f(z, i, one_hot, y) for route, f in JACOBIANS.items()},
        "scaled": {route: f(z, i, one_hot, y) for route, f in SCALED.items()},
        "of ids": {name: f(z, i) for name, f in TWINS.items()},
        "of one-hot": {name: f(z, one_hot) for name, f in TWINS.items()},
        "probabilities": (jg.softmax(z), jg.log_softmax(z)),
        "of constants": [jg.softmax_jacobian(z) @ jnp.full_like(z, constant) for constant in (1, -1e4)],
        "binary curvature": jg.binary_cross_entropy_hessian(z, one_hot).diagonal(),
    }


@cache
def of_rows(dtype, num_rows=32, num_classes=5):
    """All that for rows from nearly uniform to a few hundred nats apart, in one program."""
    rng = np.random.default_rng(1)
    z = jnp.asarray(rng.normal(size=(num_rows, num_classes)) * np.geomspace(1e-2, 200, num_rows)[:, None], dtype)
    ids = rng.integers(0, num_classes, num_rows)
    y = jnp.asarray(rng.exponential(size=z.shape), dtype)
    return jax.jit(jax.vmap(everything))(z, jnp.asarray(ids, jnp.int32), jnp.asarray(np.eye(num_classes)[ids], dtype), y), z


@pytest.mark.parametrize("route", JACOBIANS)
def test_jacobian_is_symmetric_to_the_bit_annihilates_ones_is_psd_with_norm_at_most_a_half(route, dtype):
    results, z = of_rows(dtype)
    close(results["jacobians"][route], jacobian(*as_float64(z)))
    matrices = np.asarray(results["jacobians"][route], np.float64)
    slack = z.shape[-1] * float(jnp.finfo(dtype).eps)
    np.testing.assert_array_equal(matrices, np.swapaxes(matrices, -1, -2))
    assert (np.abs(matrices.sum(-1)) <= slack * np.abs(matrices).sum(-1)).all()
    eigenvalues = np.linalg.eigvalsh(matrices)
    assert (eigenvalues >= -slack * eigenvalues.max(-1, keepdims=True)).all()
    assert (eigenvalues <= 0.5 + slack).all()


@pytest.mark.parametrize("route", SCALED)
def test_hessian_is_symmetric_to_the_bit_whatever_the_sum_of_the_targets(route, dtype):
    hessians = np.asarray(of_rows(dtype)[0]["scaled"][route], np.float64)
    np.testing.assert_array_equal(hessians, np.swapaxes(hessians, -1, -2))


def test_softmax_sums_to_one(dtype):
    results, z = of_rows(dtype)
    probs, log_probs = as_float64(*results["probabilities"])
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=z.shape[-1] * eps)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=5 * eps)


def test_jacobian_of_a_constant_vector_is_exactly_zero(dtype):
    assert all((product == 0).all() for product in of_rows(dtype)[0]["of constants"])


def test_binary_hessian_is_at_most_a_quarter(dtype):
    curvature = of_rows(dtype)[0]["binary curvature"]
    assert ((curvature >= 0) & (curvature <= 0.25 * (1 + 2 * float(jnp.finfo(dtype).eps)))).all()
    assert (jg.binary_cross_entropy_hessian(jnp.zeros(1, dtype), jnp.ones(1, dtype)).diagonal() == 0.25).all()


@pytest.mark.parametrize("name", TWINS)
def test_class_id_is_its_one_hot(name, dtype):
    of_ids, of_soft = (np.asarray(of_rows(dtype)[0][kind][name]) for kind in ("of ids", "of one-hot"))
    assert of_ids.dtype == of_soft.dtype
    maxulp = 1 if of_ids.dtype.itemsize < 4 else 4
    wide = [x.astype(at_least_float32(x.dtype)) * np.float32(1) for x in (of_ids, of_soft)]
    np.testing.assert_allclose(*wide, rtol=maxulp * float(jnp.finfo(of_ids.dtype).eps), atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_a_batch_is_the_gradient_of_each_example(shape, widest_dtype):
    z, y, ids, _ = draw(shape, widest_dtype)
    both = jax.jit(lambda z, y, ids: (jax.grad(lambda z: jg.cross_entropy(z, ids).sum())(z), jax.grad(lambda z: jg.cross_entropy(z, y).sum())(z)))
    of_ids, of_soft = both(z, y, ids)
    z, y = np.asarray(z, np.float64), np.asarray(y, np.float64)
    close(of_ids, p(z) - one_hot(ids))
    close(of_soft, ce_grad(z, y))


def test_operator_is_a_pytree_that_passes_through_jit_and_vmap(widest_dtype):
    z, y, _, v = draw((2, 3, C), widest_dtype)
    hessian = jax.jit(jax.vmap(jax.vmap(jg.cross_entropy_hessian)))(z, y)
    assert hessian.shape == hessian.T.shape == (2, 3, C, C)
    assert hessian.dtype == widest_dtype
    products = jax.jit(lambda a, v: (jax.vmap(lambda a, v: a @ v)(a, v), jax.vmap(lambda a: a @ v[0])(a), jax.vmap(jax.vmap(lambda a: a.to_dense()))(a)))
    both, first, dense = products(hessian, v)
    z, y, v = as_float64(z, y, v)
    close(both, times(jacobian(z, y.sum(-1)), v))
    close(first[0], times(jacobian(z, y.sum(-1)), v)[0])
    close(dense, jacobian(z, y.sum(-1)))


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
QUANTITIES = FORMULAS | {
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
def quantities(dtype):
    inputs = draw((64, C), dtype)
    return jax.jit(jax.vmap(lambda *inputs: {name: f(*inputs) for name, (f, _) in QUANTITIES.items()}))(*inputs), as_float64(*inputs)


@pytest.mark.parametrize("name", QUANTITIES)
def test_narrow_dtypes_are_rounded_to_once_or_not_at_all(name, narrow_dtype):
    """Within 0.51 ULP of the exact result, and what float32 loses to cancellation: a few of its own units at the size of the row."""
    results, inputs = quantities(narrow_dtype)
    exact = QUANTITIES[name][1](*inputs)
    if name in PER_EXAMPLE:
        assert results[name].dtype == jnp.float32
        close(results[name], exact)
        return
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
USES_TARGETS = {"cross_entropy", "binary_cross_entropy", "cross_entropy_grad", "cross_entropy_hessian"}
USES_TARGETS |= {"binary_cross_entropy_grad", "binary_cross_entropy_hessian", "softmax_jacobian"}
LOGITS, BOTH = (0,), (0, 1)


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
        "checkpoint twice": lambda f, n: fwd(ckpt(rev(ckpt(f), n)), n),
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


@pytest.mark.parametrize("name", SCALARS)
def test_first_derivative_is_that_of_the_definition(name, widest_dtype):
    routes = ROUTES[1].keys() if name in LOSSES_AND_PROBABILITIES else {"jvp", "vjp"}
    check_routes(name, routes, BOTH if name in USES_TARGETS else LOGITS, widest_dtype)


@pytest.mark.parametrize("name", [*LOSSES_AND_PROBABILITIES, "diagonal"])
def test_second_derivative_is_that_of_the_definition(name, widest_dtype):
    routes = ROUTES[2].keys() - {"checkpoint twice"} if name in LOSSES_AND_PROBABILITIES else {"forward over reverse"}
    check_routes(name, routes, BOTH if name in USES_TARGETS else LOGITS, widest_dtype)


@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy of ids"])
def test_derivatives_in_the_logits_alone(name, widest_dtype):
    check_routes(name, {"checkpoint", "jvp", "vjp"}, LOGITS, widest_dtype)
    check_routes(name, {"checkpoint twice", "reverse over forward"}, LOGITS, widest_dtype)


@pytest.mark.parametrize("name", [name for name in LOSSES_AND_PROBABILITIES if name != "logsumexp"])
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
