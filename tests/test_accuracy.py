"""Accuracy over a seeded suite of hard rows, in units in the last place, against mpmath and the textbook formulas.

Confident rows, hopeless rows, rows far from 0, at the ends of the range, tied, masked, with few and with many
classes; tangents with a common offset and with heavy tails. The arbiter computes p = exp(z) / Σ exp(z) and what
follows from it, with so many digits that no cancellation matters. A bound on the error in ULP of the exact component
also means: nothing is 0, NaN or infinite that should not be.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from exactness import exact_of, exactly, exp, log, ulp

import jaxgrad as jg

DIGITS = {"float32": 75, "bfloat16": 75, "float16": 75, "float64": 345}
NUM_CLASSES = {"float32": [1, 2, 10, 100, 1000], "bfloat16": [10], "float16": [10]}
if jax.config.jax_enable_x64:
    NUM_CLASSES = {"float64": [2, 10, 100], "float32": [10]}  # the rest is the same program as without x64
CASES = [(dtype, num_classes) for dtype in NUM_CLASSES for num_classes in NUM_CLASSES[dtype]]
ROW_CASES = [case for case in CASES if case != ("float32", 100)]  # 10 and 1000 are the same code
MATRIX_CASES = [case for case in CASES if case[1] <= 100 and case != ("float32", 10)]  # 2 and 100 are
DENSE = 10  # whole matrices for up to so many classes, and for a few rows of 100


class Rows(NamedTuple):
    """The suite in one dtype with one number of classes, N rows."""

    names: list  # N
    logits: jax.Array  # (N, C)
    ids: jax.Array  # (N,)
    soft: jax.Array  # (N, C), in turn normalised, with another sum, one-hot, and half zeros
    tangents: jax.Array  # (N, 4, C): normal, with a common offset, heavy-tailed, huge


def hard_rows(rng, num_classes):
    """(name, logits, class id) of every kind."""
    normal = lambda: rng.normal(size=num_classes)
    anything = lambda: int(rng.integers(num_classes))
    for scale in (1, 10, 100, 1e4, 1e30):
        yield f"normal × {scale:g}", scale * normal(), anything()
    for offset in (1e4, -1e4, -911.7):
        yield f"normal {offset:+g}", normal() + offset, anything()
    for level in (0, 1.7, 3e38, -3e38):
        yield f"all {level:g}", np.full(num_classes, level), anything()
    if num_classes == 1:
        return
    for gap in (5, 17, 20, 50, 90, 200):
        for ahead in (True, False):
            z, k = normal(), anything()
            others = np.delete(z, k).max()
            z[k] = others + gap if ahead else others - gap
            yield f"true class {'ahead' if ahead else 'behind'} by {gap}", z, k
    for ties, scale in ((2, 3), (num_classes, 3), (2, 1e30)):
        z = scale * normal()
        at = rng.permutation(num_classes)[:ties]
        z[at] = z.max() + scale
        yield f"{ties} tied for the top, normal × {scale:g}", z, int(at[0])
    for kept in {1, num_classes // 2, num_classes - 1} - {0}:
        z = 5 * normal()
        out = rng.permutation(num_classes)[kept:]
        z[out] = -np.inf
        yield f"{kept} of {num_classes} not masked", z, int(np.isfinite(z).argmax())


@cache
def suite(dtype, num_classes):
    rng = np.random.default_rng([num_classes, len(dtype)])
    names, logits, ids = zip(*[row for _ in range(1 if num_classes > 100 else 2) for row in hard_rows(rng, num_classes)], strict=True)
    if num_classes > 100:
        names, logits, ids = names[::4], logits[::4], ids[::4]
    z = np.asarray(jnp.asarray(np.stack(logits)).astype(dtype), np.float64)
    keep = ~(np.isinf(z) & (z > 0) | np.isinf(z) & ~np.isinf(np.stack(logits))).any(-1)
    names, logits, ids = [n for n, k in zip(names, keep, strict=True) if k], np.stack(logits)[keep], np.array(ids)[keep]
    shape = logits.shape
    soft = rng.exponential(size=shape) * ~np.isinf(logits)
    soft /= soft.sum(-1, keepdims=True)
    soft[1::4] *= 3.7
    soft[2::4] = np.eye(num_classes)[ids[2::4]]
    soft[3::4] *= rng.integers(2, size=soft[3::4].shape)
    normal = lambda: rng.normal(size=shape)
    tangents = np.stack([normal(), normal() + 1e4, np.clip(rng.standard_t(1.5, size=shape), -1e4, 1e4), normal() * float(jnp.finfo(dtype).max) ** 0.7], 1)
    cast = lambda x: jnp.asarray(x).astype(dtype)
    return Rows(list(names), cast(logits), jnp.asarray(ids, jnp.int32), cast(soft), cast(tangents))


# What is measured


def along(f):
    """f(z, i, y)'s Jacobian times a tangent, forward."""
    return lambda z, i, y, v: jax.jvp(lambda z: f(z, i, y), (z,), (v,))[1]


def against(f):
    """A tangent times f(z, i, y)'s Jacobian, in reverse."""
    return lambda z, i, y, v: jax.vjp(lambda z: f(z, i, y), z)[1](v)[0]


def route(transform, f):
    return lambda z, i, y: transform(lambda z: f(z, i, y))(z)


softmax = lambda z, i, y: jg.softmax(z)
of_ids = lambda z, i, y: jg.cross_entropy(z, i)
of_soft = lambda z, i, y: jg.cross_entropy(z, y)
second = lambda outer, inner: lambda f: outer(inner(f))

# name: (the exact quantity, bound in ULP of float32, function of one example's logits, class id and distribution)
OF_ROWS = {
    "softmax": ("p", 4, softmax),
    "log_softmax": ("log p", 4, lambda z, i, y: jg.log_softmax(z)),
    "logsumexp": ("logsumexp", 3, lambda z, i, y: jg.logsumexp(z)),
    "entropy": ("H", 4, lambda z, i, y: jg.entropy(z)),
    "cross_entropy of ids": ("loss of ids", 4, of_ids),
    "cross_entropy": ("loss", 4, of_soft),
    "cross_entropy_grad of ids": ("p - one-hot", 4, lambda z, i, y: jg.cross_entropy_grad(z, i)),
    "cross_entropy_grad": ("p Σy - y", 6, lambda z, i, y: jg.cross_entropy_grad(z, y)),
    "grad of ids": ("p - one-hot", 4, route(jax.grad, of_ids)),
    "grad": ("p Σy - y", 6, route(jax.grad, of_soft)),
    "jacfwd of ids": ("p - one-hot", 10, route(jax.jacfwd, of_ids)),
    "jacfwd": ("p Σy - y", 10, route(jax.jacfwd, of_soft)),
    "entropy_grad": ("-J z", 6, lambda z, i, y: jg.entropy_grad(z)),
    "grad of entropy": ("-J z", 6, route(jax.grad, lambda z, i, y: jg.entropy(z))),
}
# the same of a tangent too
OF_TANGENTS = {
    "softmax_jacobian @ v": ("J v", 6, lambda z, i, y, v: jg.softmax_jacobian(z) @ v),
    "cross_entropy_hessian @ v": ("Σy J v", 6, lambda z, i, y, v: jg.cross_entropy_hessian(z, y) @ v),
    "jvp of softmax": ("J v", 6, along(softmax)),
    "vjp of softmax": ("J v", 6, against(softmax)),
    "forward over reverse of ids": ("J v", 6, along(route(jax.grad, of_ids))),
    "reverse over reverse of ids": ("J v", 6, against(route(jax.grad, of_ids))),
    "forward over reverse": ("Σy J v", 6, along(route(jax.grad, of_soft))),
    "reverse over reverse": ("Σy J v", 6, against(route(jax.grad, of_soft))),
}
# whole matrices
DENSE_OF_ROWS = {
    "softmax_jacobian": ("J", 6, lambda z, i, y: jg.softmax_jacobian(z).to_dense()),
    "cross_entropy_hessian": ("Σy J", 6, lambda z, i, y: jg.cross_entropy_hessian(z, y).to_dense()),
    "jacfwd of softmax": ("J", 10, route(jax.jacfwd, softmax)),
    "jacrev of softmax": ("J", 10, route(jax.jacrev, softmax)),
    "hessian of ids": ("J", 10, route(jax.hessian, of_ids)),
    "hessian": ("Σy J", 10, route(jax.hessian, of_soft)),
    "reverse over reverse hessian": ("J", 10, route(second(jax.jacrev, jax.jacrev), of_ids)),
}


@cache
def computed(dtype, num_classes, dense):
    """All quantities of all rows, in one program."""
    _, *inputs, tangents = suite(dtype, num_classes)

    def one_row(z, i, y, tangents):
        products = {name: jax.vmap(lambda v, f=f: f(z, i, y, v))(tangents) for name, (_, _, f) in OF_TANGENTS.items()}
        return {name: f(z, i, y) for name, (_, _, f) in OF_ROWS.items()} | products

    if dense:
        thin = slice(None, None, 1 if num_classes <= DENSE else 6)
        one_matrix = lambda z, i, y: {name: f(z, i, y) for name, (_, _, f) in DENSE_OF_ROWS.items()}
        results = jax.jit(jax.vmap(one_matrix))(*[x[thin] for x in inputs])
    else:
        results = jax.jit(jax.vmap(one_row))(*inputs, tangents)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), results), {name: x.dtype.name for name, x in results.items()}


# What is exact


@cache
def exact(dtype, num_classes, dense):
    """Every exact quantity of all rows, by the textbook."""
    _, *inputs = suite(dtype, num_classes)
    if dense:
        inputs = [x[:: 1 if num_classes <= DENSE else 6] for x in inputs]
    with mpmath.workdps(DIGITS[dtype]):
        z, y, v = (exactly(np.asarray(x, np.float64)) for x in (inputs[0], inputs[2], inputs[3]))
        one_hot = np.eye(num_classes)[np.asarray(inputs[1])]
        weights = exp(z)
        p = weights / weights.sum(-1, keepdims=True)
        mass = y.sum(-1)[:, None]
        if dense:
            eye = np.eye(num_classes, dtype=int)
            jacobian = p[:, :, None] * (eye - p[:, None, :])
            return {"J": exact_of(jacobian), "Σy J": exact_of(mass[..., None] * jacobian)}
        log_p = log(p)
        times = lambda p, x: np.where(p == 0, 0, p * np.where(p == 0, 0, x))  # 0 · log 0 = 0
        product = lambda v: p[:, None] * (v - (p[:, None] * v).sum(-1, keepdims=True))
        q = p.astype(np.float64)
        size = lambda v: q[:, None] * np.stack([(q[:, None] * np.abs(v[:, :, j, None] - v)).sum(-1) for j in range(num_classes)], -1)
        tangents = np.asarray(inputs[3], np.float64)
        finite = np.where(weights == 0, 0, z)[:, None]
        top = np.abs(np.asarray(inputs[0], np.float64).max(-1))
        as_float = lambda x: x.astype(np.float64)
        return {
            "p": exact_of(p),
            "log p": exact_of(log_p),
            "logsumexp": exact_of(log(weights.sum(-1)), np.maximum(top, -as_float(log_p).max(-1))),
            "H": exact_of(-times(p, log_p).sum(-1)),
            "loss of ids": exact_of(-times(one_hot, log_p).sum(-1)),
            "loss": exact_of(-times(y, log_p).sum(-1)),
            "p - one-hot": exact_of(p - one_hot),
            "p Σy - y": exact_of(p * mass - y, as_float(np.maximum(p * mass, y))),
            "-J z": exact_of(-product(finite)[:, 0], size(as_float(finite))[:, 0]),
            "J v": exact_of(product(v), size(tangents)),
            "Σy J v": exact_of(mass[..., None] * product(v), as_float(mass)[..., None] * size(tangents)),
        }


# How far one is from the other


def check(name, dtype, num_classes, dense=False):
    """Every component within the bound, but for what is flushed to 0: below 100 · C · tiny times the size of the tangent."""
    kind, bound, _ = (OF_ROWS | OF_TANGENTS | DENSE_OF_ROWS)[name]
    results, dtypes = computed(dtype, num_classes, dense)
    actual, (head, tail, scale) = results[name], exact(dtype, num_classes, dense)[kind]
    assert actual.shape == head.shape
    if dtype == "float64":
        bound = 2 * bound
    narrow = jnp.finfo(dtypes[name]).bits < 32
    wide = "float64" if dtype == "float64" else "float32"
    with np.errstate(invalid="ignore"):
        error = np.where(actual == head, 0, actual - head) - tail
    allowed = bound * ulp(scale, wide)
    if narrow:  # rounded once; the float32 inside adds less than a hundredth unless there is cancellation
        allowed = np.where(scale > np.abs(head), allowed, 0) + 0.51 * ulp(head, dtype)
    largest = np.abs(np.asarray(suite(dtype, num_classes).tangents, np.float64)).max(-1, keepdims=True) if name in OF_TANGENTS else 1
    allowed = np.maximum(allowed, 100 * num_classes * float(jnp.finfo(wide).tiny) * largest)
    bad = ~(np.abs(error) <= allowed)
    if bad.any():
        n, *component = np.unravel_index(np.nanargmax(np.where(bad, np.nan_to_num(np.abs(error) / allowed, nan=np.inf), -1)), bad.shape)
        at = (n, *component)
        names = suite(dtype, num_classes).names[:: 1 if not dense or num_classes <= DENSE else 6]
        unit = ulp(scale if not narrow else head, dtypes[name])[at]
        pytest.fail(
            f"{name}, row '{names[n]}', component {[int(c) for c in component]}: computed {actual[at]!r}, exact {head[at]!r}, "
            f"off by {abs(error[at]) / unit:.3g} ULP, {bound if not narrow else 0.51} allowed; {bad.sum()} of {bad.size} exceed that"
        )


@pytest.mark.parametrize("name", [*OF_ROWS, *OF_TANGENTS])
@pytest.mark.parametrize(("dtype", "num_classes"), ROW_CASES)
def test_error_is_within_the_contract(name, dtype, num_classes):
    check(name, dtype, num_classes)


@pytest.mark.parametrize("name", DENSE_OF_ROWS)
@pytest.mark.parametrize(("dtype", "num_classes"), MATRIX_CASES)
def test_matrix_is_within_the_contract_and_symmetric_to_the_bit(name, dtype, num_classes):
    check(name, dtype, num_classes, dense=True)
    matrices = computed(dtype, num_classes, True)[0][name]
    np.testing.assert_array_equal(matrices, np.swapaxes(matrices, -1, -2))


@pytest.mark.parametrize("name", ["cross_entropy of ids", "cross_entropy", "entropy"])
@pytest.mark.parametrize(("dtype", "num_classes"), ROW_CASES)
def test_loss_is_not_negative(name, dtype, num_classes):
    assert (computed(dtype, num_classes, False)[0][name] >= 0).all()


@pytest.mark.parametrize("dtype", list(NUM_CLASSES))
def test_binary_cross_entropy_is_within_the_contract(dtype):
    info = jnp.finfo(dtype)
    size = np.geomspace(1e-3, -np.log(float(jnp.finfo("float64" if dtype == "float64" else "float32").tiny)) - 1, 150)
    z = jnp.asarray(np.concatenate([-size, [0], size]), dtype)
    with mpmath.workdps(DIGITS[dtype]):
        x = exactly(np.asarray(z, np.float64))
        positive, negative = 1 / (1 + exp(-x)), 1 / (1 + exp(x))
        expected = {1: (-log(positive), positive - 1, positive * (1 - positive)), 0: (-log(negative), positive, positive * (1 - positive))}
        expected = {y: [exact_of(q) for q in quantities] for y, quantities in expected.items()}
    loss = lambda z, y: jg.binary_cross_entropy(z, y)
    hessian = lambda z, y: jg.binary_cross_entropy_hessian(z, y).diagonal()
    derivative = lambda f: jax.vmap(jax.grad(f))
    routes = {"loss": (0, loss), "grad": (1, derivative(loss)), "closed gradient": (1, jg.binary_cross_entropy_grad), "hessian": (2, hessian)}
    routes["grad of grad"] = (2, derivative(lambda z, y: jax.grad(loss)(z, y)))
    for name, (kind, f) in routes.items():
        for y in (0, 1):
            actual = jax.jit(f)(z, jnp.full(z.shape, y, jnp.int32))
            head, tail, scale = expected[y][kind]
            error = np.abs((np.asarray(actual, np.float64) - head) - tail) / ulp(scale, actual.dtype.name)
            worst = int(error.argmax())
            bound = 0.51 if actual.dtype == dtype and info.bits < 32 else 8 if dtype == "float64" else 4
            assert error[worst] <= bound, f"{name}: logit {z[worst]}, target {y}: computed {actual[worst]}, exact {head[worst]}, off by {error[worst]} ULP"
