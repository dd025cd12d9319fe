"""The softmax Jacobian as an operator: each operation against mpmath and dense float64 algebra, on rows of every kind."""

from functools import cache

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jaxgrad as jg

WIDTHS = (1, 2, 10)
DAMPINGS = (1e-6, 1e-2, 10.0)
DIGITS = 220  # for 1 − p and the smallest eigenvalue, 200 nats away


def make_logits(num_classes, dtype):
    """Names and logits (N, C): uniform, random, tied, up to 200 nats apart, masked."""
    rng = np.random.default_rng(num_classes)
    normal = lambda: rng.normal(size=num_classes)
    rows = {"uniform": 0 * normal(), "random": 3 * normal(), "tied": np.round(normal()), "wide": 20 * normal(), "nearly tied": 1e-6 * normal()}
    for lead in (5, 20, 60, 80, 200):
        rows[f"{lead} nats ahead"] = normal() + lead * (np.arange(num_classes) == num_classes // 2)
    rows["masked"] = np.where(rng.random(num_classes) < 0.4, -np.inf, normal())
    rows["masked"][0] = 1
    rows["one left"] = np.where(np.arange(num_classes) == num_classes - 1, 0, -np.inf)
    return list(rows), jnp.asarray(np.stack(list(rows.values())), dtype)


def operations(z, v):
    """Everything that the operator offers, in one program."""
    jacobian, eye = jg.softmax_jacobian(z), jnp.broadcast_to(jnp.eye(z.shape[-1], dtype=z.dtype), (*z.shape, z.shape[-1]))
    columns = lambda f: jax.vmap(f, in_axes=-1, out_axes=-1)(eye)
    return {
        "eigenvalues": jacobian.eigenvalues(),
        "largest": jacobian.eigenvalues(1),
        "eigh": jacobian.eigh(),
        "frobenius norm": jacobian.frobenius_norm(),
        "log pseudo-determinant": jacobian.log_pseudo_determinant(),
        "solve": jnp.stack([jacobian.solve(v, damping=damping) for damping in DAMPINGS]),
        "pinv": jacobian.pinv_matvec(v),
    } | (
        {}
        if z.shape[-1] > 100
        else {
            "B": columns(jacobian.root_matvec),
            "Bᵀ": columns(jacobian.root_rmatvec),
            "stored": columns(jacobian.stored().matvec),
            "stored dense": jacobian.stored().to_dense(),
            "stored diagonal": jacobian.stored().diagonal(),
        }
    )


@cache
def computed(num_classes, dtype):
    names, z = make_logits(num_classes, dtype)
    v = jnp.asarray(np.random.default_rng(1).normal(size=z.shape), dtype)
    results = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.jit(operations)(z, v))
    return names, np.asarray(z, np.float64), np.asarray(v, np.float64), results


@cache
def exact(num_classes, dtype):
    """The matrix J, its eigenvalues, and what the operator should return, row by row in mpmath."""
    _, logits, vectors, _ = computed(num_classes, dtype)
    tiny = float(jnp.finfo(dtype).tiny)
    found = []
    with mpmath.workdps(DIGITS):
        for z, v in zip(logits, vectors, strict=True):
            e = [mpmath.exp(mpmath.mpf(x)) if np.isfinite(x) else mpmath.mpf(0) for x in z]
            p = [x / mpmath.fsum(e) for x in e]
            n, live = len(p), [float(x) >= tiny for x in p]
            j = mpmath.matrix(n, n)
            for a in range(n):
                for b in range(n):
                    j[a, b] = p[a] - p[a] ** 2 if a == b else -p[a] * p[b]
            v = mpmath.matrix([mpmath.mpf(x) for x in v])
            solutions = []
            for damping in DAMPINGS:
                shifted = j + mpmath.mpf(float(jnp.asarray(damping, dtype))) * mpmath.eye(n)
                inverse = mpmath.inverse(shifted)
                solutions.append((inverse * v, inverse.apply(abs) * v.apply(abs)))
            # J⁺ v by the textbook: J restricted to the classes that count, plus the projection on its null space, is invertible
            kept = [a for a in range(n) if live[a]]
            part = mpmath.matrix([[j[a, b] + mpmath.mpf(1) / len(kept) for b in kept] for a in kept])
            inverse = mpmath.inverse(part) - mpmath.ones(len(kept)) / len(kept)
            pinv = [mpmath.mpf(0)] * n, [mpmath.mpf(0)] * n
            for row, a in enumerate(kept):
                pinv[0][a] = mpmath.fsum(inverse[row, i] * v[b] for i, b in enumerate(kept))
                pinv[1][a] = mpmath.fsum(abs(inverse[row, i] * v[b]) for i, b in enumerate(kept))
            eigenvalues = sorted(mpmath.eigsy(j, eigvals_only=True)) if n > 1 else [j[0, 0]]
            eigenvalues = [x if abs(x) > mpmath.mpf(10) ** (30 - DIGITS) else mpmath.mpf(0) for x in eigenvalues]  # of that, eigsy makes noise
            found.append({"p": p, "J": j, "eigenvalues": eigenvalues, "solve": solutions, "pinv": pinv})
    return found


def ulps(dtype, actual, expected, scale=None):
    """The error in units of the last place of `scale`, or 0 where that underflows."""
    with mpmath.workdps(DIGITS):
        scale = abs(expected) if scale is None else scale
        if scale < 100 * mpmath.mpf(float(jnp.finfo(dtype).tiny)):
            return 0.0 if abs(actual) < 1000 * float(jnp.finfo(dtype).tiny) else np.inf
        return float(abs(mpmath.mpf(float(actual)) - expected) / (scale * mpmath.mpf(float(jnp.finfo(dtype).eps)) / 2))


def bound(dtype, float32):
    return 2 * float32 if dtype == jnp.float64 else float32


@pytest.mark.parametrize("num_classes", WIDTHS)
def test_eigenvalues_have_relative_accuracy_down_to_the_smallest(num_classes, widest_dtype):
    names, _, _, results = computed(num_classes, widest_dtype)
    for i, truth in enumerate(exact(num_classes, widest_dtype)):
        for name, values in (("eigenvalues", results["eigenvalues"][i]), ("eigh", results["eigh"][0][i])):
            errors = [ulps(widest_dtype, a, e) for a, e in zip(values, truth["eigenvalues"], strict=True)]
            assert max(errors) <= bound(widest_dtype, 4), (name, names[i], errors)
        assert results["largest"][i][0] == results["eigenvalues"][i][-1]


@pytest.mark.parametrize("num_classes", WIDTHS)
def test_eigenvectors_are_orthonormal_and_satisfy_their_equation(num_classes, widest_dtype):
    names, _, _, results = computed(num_classes, widest_dtype)
    eps = float(jnp.finfo(widest_dtype).eps)
    for i, truth in enumerate(exact(num_classes, widest_dtype)):
        values, vectors = results["eigh"][0][i], results["eigh"][1][i]
        assert np.abs(vectors.T @ vectors - np.eye(num_classes)).max() <= 8 * eps, names[i]
        with mpmath.workdps(DIGITS):
            residual = truth["J"] * mpmath.matrix(vectors.tolist()) - mpmath.matrix((vectors * values).tolist())
            size = max(truth["eigenvalues"][-1], mpmath.mpf(float(jnp.finfo(widest_dtype).tiny)) / eps)
            assert max(abs(x) for x in residual) <= 8 * eps * size, names[i]


@pytest.mark.parametrize("num_classes", WIDTHS)
def test_solutions_are_those_of_the_dense_system(num_classes, widest_dtype):
    names, _, _, results = computed(num_classes, widest_dtype)
    for i, truth in enumerate(exact(num_classes, widest_dtype)):
        for k, (solution, size) in enumerate(truth["solve"]):
            errors = [ulps(widest_dtype, *x) for x in zip(results["solve"][k][i], solution, size, strict=True)]
            assert max(errors) <= bound(widest_dtype, 6), (names[i], DAMPINGS[k], errors)
        errors = [ulps(widest_dtype, *x) for x in zip(results["pinv"][i], *truth["pinv"], strict=True)]
        assert max(errors) <= bound(widest_dtype, 6), (names[i], "pinv", errors)


@pytest.mark.parametrize("num_classes", WIDTHS)
def test_entries_of_the_roots_and_the_norm(num_classes, widest_dtype):
    names, _, _, results = computed(num_classes, widest_dtype)
    for i, truth in enumerate(exact(num_classes, widest_dtype)):
        with mpmath.workdps(DIGITS):
            p, j, live = truth["p"], truth["J"], [x for x in truth["p"] if x > 0]
            norm = mpmath.sqrt(mpmath.fsum(x * x for x in j))
            root = [[(1 - x if a == b else -mpmath.sqrt(x * y)) * mpmath.sqrt(x) for b, y in enumerate(p)] for a, x in enumerate(p)]
            logarithm = mpmath.fsum(mpmath.log(x) for x in live) + mpmath.log(len(live))
        errors = [
            max(ulps(widest_dtype, results[name][i][(a, b) if name == "B" else (b, a)], root[a][b]), 0)
            for name in ("B", "Bᵀ")
            for a in range(num_classes)
            for b in range(num_classes)
        ]
        assert max(errors) <= bound(widest_dtype, 6), (names[i], errors)
        assert ulps(widest_dtype, results["frobenius norm"][i], norm) <= bound(widest_dtype, 4), names[i]
        assert ulps(widest_dtype, results["log pseudo-determinant"][i], logarithm) <= bound(widest_dtype, 4), names[i]
        stored = [
            ulps(widest_dtype, results[name][i][a, b], j[a, b]) for name in ("stored", "stored dense") for a in range(num_classes) for b in range(num_classes)
        ]
        assert max(stored) <= bound(widest_dtype, 6), (names[i], stored)
        np.testing.assert_array_equal(results["stored diagonal"][i], np.diag(results["stored dense"][i]))


@pytest.mark.parametrize("num_classes", [100, 1000])
def test_many_classes_against_dense_algebra_in_float64(num_classes, widest_dtype):
    names, z, v, results = computed(num_classes, widest_dtype)
    eps = max(float(jnp.finfo(widest_dtype).eps), 2e-14)  # NumPy itself has no more digits
    chosen = ("uniform", "random", "tied", "nearly tied", "5 nats ahead", "masked") if num_classes <= 100 else ("random", "masked")
    for i in map(names.index, chosen):
        p = np.exp(z[i] - z[i].max())
        p /= p.sum()
        j = np.diag(p) - np.outer(p, p)
        values, vectors = results["eigh"][0][i], results["eigh"][1][i]
        largest = values[-1]
        np.testing.assert_allclose(results["eigenvalues"][i], np.linalg.eigvalsh(j), rtol=8 * eps, atol=1e-15)
        assert np.abs(vectors.T @ vectors - np.eye(num_classes)).max() <= 32 * eps, names[i]
        assert np.abs(j @ vectors - vectors * values).max() <= 16 * eps * largest, names[i]
        if "B" in results:
            np.testing.assert_allclose(results["B"][i] @ results["B"][i].T, j, rtol=16 * eps, atol=8 * eps * largest)
            np.testing.assert_allclose(results["B"][i].T, results["Bᵀ"][i], rtol=16 * eps, atol=1e-300)
        np.testing.assert_allclose(results["frobenius norm"][i], np.linalg.norm(j), rtol=8 * eps)
        for k, damping in enumerate(DAMPINGS):
            solution = np.linalg.solve(j + float(jnp.asarray(damping, widest_dtype)) * np.eye(num_classes), v[i])
            np.testing.assert_allclose(results["solve"][k][i], solution, rtol=0, atol=16 * eps * np.abs(v[i]).max() / damping)
        pinv = np.linalg.pinv(j, rcond=1e-10, hermitian=True) @ v[i]
        np.testing.assert_allclose(results["pinv"][i], pinv, rtol=0, atol=32 * max(eps, 1e-10) * np.abs(pinv).max())


def test_the_largest_eigenpairs_of_a_hundred_thousand_classes():
    """Each between its neighbours among the sorted p, so that no larger one is missed, and with a small residual in float64."""
    z = jnp.asarray(3 * np.random.default_rng(0).normal(size=100_000), jnp.float32)
    values, vectors = (np.asarray(x, np.float64) for x in jax.jit(lambda z: jg.softmax_jacobian(z).eigh(4))(z))
    e = np.exp(np.asarray(z, np.float64))
    p, eps = e / e.sum(), float(jnp.finfo(jnp.float32).eps)
    ordered = np.sort(p)
    assert (ordered[-5:-1] < values * (1 + 4 * eps)).all()
    assert (values * (1 - 4 * eps) < ordered[-4:]).all()
    residuals = p[:, None] * (vectors - p @ vectors) - vectors * values
    assert (np.linalg.norm(residuals, axis=0) <= 4 * eps * values).all()
    assert np.abs(vectors.T @ vectors - np.eye(4)).max() <= 8 * eps


def shapes_made(jaxpr):
    """Of what is made one after the other, outside of what is compiled as a whole."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        if "call_jaxpr" in equation.params:  # that of a custom rule
            yield from shapes_made(equation.params["call_jaxpr"].jaxpr)


def test_eigenvalues_alone_make_no_vectors():
    eigenvalues = lambda z: jg.softmax_jacobian(z).eigenvalues()
    made = list(shapes_made(jax.make_jaxpr(eigenvalues)(jnp.zeros(64, jnp.float32)).jaxpr))
    assert (64,) in made
    assert (64, 64) not in made
    compiled = jax.jit(eigenvalues).lower(jnp.zeros(4096, jnp.float32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**23  # 64 MiB with them


# Derivatives, transformations


def dense(z):
    p = jnp.exp(z) / jnp.exp(z).sum()
    return jnp.diag(p) - jnp.outer(p, p)


def dense_root(z):
    s = jnp.sqrt(jnp.exp(z) / jnp.exp(z).sum())
    return jnp.diag(s) @ (jnp.eye(len(z), dtype=z.dtype) - jnp.outer(s, s))


REGULAR = lambda z: dense(z) + 1 / jnp.asarray(len(z), z.dtype)  # of full rank, with the same pseudo-inverse beside the null space
DIFFERENTIABLE = {
    "matvec": (lambda j, v, s: j @ v, lambda z, v, s: dense(z) @ v),
    "stored": (lambda j, v, s: j.stored() @ v, lambda z, v, s: dense(z) @ v),
    "root_matvec": (lambda j, v, s: j.root_matvec(v), lambda z, v, s: dense_root(z) @ v),
    "root_rmatvec": (lambda j, v, s: j.root_rmatvec(v), lambda z, v, s: dense_root(z).T @ v),
    "solve": (lambda j, v, s: j.solve(v, damping=s), lambda z, v, s: jnp.linalg.solve(dense(z) + s * jnp.eye(len(z), dtype=z.dtype), v)),
    "pinv_matvec": (lambda j, v, s: j.pinv_matvec(v), lambda z, v, s: jnp.linalg.solve(REGULAR(z), v) - v.mean()),
    "stored dense": (lambda j, v, s: j.stored().to_dense(), lambda z, v, s: dense(z)),
    "diagonal": (lambda j, v, s: j.diagonal(), lambda z, v, s: jnp.diag(dense(z))),
    "frobenius_norm": (lambda j, v, s: j.frobenius_norm(), lambda z, v, s: jnp.sqrt((dense(z) ** 2).sum())),
    "log_pseudo_determinant": (lambda j, v, s: j.log_pseudo_determinant(), lambda z, v, s: jnp.linalg.slogdet(REGULAR(z))[1]),
    "eigenvalues": (lambda j, v, s: j.eigenvalues(), lambda z, v, s: jnp.linalg.eigvalsh(dense(z))),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_are_those_of_dense_algebra(name, widest_dtype):
    """At logits with and without ties for the heaviest class, of which JAX would share the derivative of a maximum."""
    operation, definition = DIFFERENTIABLE[name]
    v = jnp.asarray([1.0, 0.9, -0.5, -2.0], widest_dtype)
    rows = jnp.asarray([[0.3, -1.2, 0.8, 2.0], [1.0, 0.3, 1.0, -2.0], [0.5, 0.5, 0.5, 0.5]], widest_dtype)
    rows = rows[:1] if name == "eigenvalues" else rows
    s = jnp.asarray(0.3, widest_dtype)
    ours = lambda *x: operation(jg.softmax_jacobian(x[0]), *x[1:])
    orders = {"forward": (1, jax.jacfwd), "reverse": (1, jax.jacrev)}
    if name != "eigenvalues":
        orders["forward over reverse"] = 2, lambda f, n: jax.jacfwd(jax.jacrev(f, n), 0)
        orders["reverse over forward"] = 2, lambda f, n: jax.jacrev(jax.jacfwd(f, n), 0)
    n = (0, 1, 2) if name == "solve" else (0, 1)
    by_row = lambda f: jax.jit(jax.vmap(f, (0, None, None)))
    actual = by_row(lambda *x: {order: derivative(ours, n)(*x) for order, (_, derivative) in orders.items()})(rows, v, s)
    oracles = {1: jax.jacfwd(definition, n), 2: jax.jacfwd(jax.jacfwd(definition, n), 0)}
    oracle = by_row(lambda *x: {number: oracles[number](*x) for number in {number for number, _ in orders.values()}})(rows, v, s)
    expected = {order: oracle[number] for order, (number, _) in orders.items()}
    tolerance = 300 * float(jnp.finfo(widest_dtype).eps)
    for order in orders:
        for a, e in zip(jax.tree.leaves(actual[order]), jax.tree.leaves(expected[order]), strict=True):
            np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * max(1, float(jnp.abs(e).max())), err_msg=order)


def test_eigenvectors_are_not_differentiated_in_silence(widest_dtype):
    z = jnp.asarray([0.3, -1.2, 0.8], widest_dtype)
    with pytest.raises(TypeError, match=r"eigh: expected no derivative of eigenvectors.*eigenvalues\(\), once"):
        jax.grad(lambda z: jg.softmax_jacobian(z).eigh()[1].sum())(z)
    with pytest.raises(TypeError, match="differentiate eigenvalues"):
        jax.hessian(lambda z: jg.softmax_jacobian(z).eigenvalues().sum())(z)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_eager_jit_vmap_and_blocks_agree(dtype):
    rng = np.random.default_rng(0)
    z, block = jnp.asarray(2 * rng.normal(size=(2, 3, 5)), dtype), jnp.asarray(rng.normal(size=(2, 3, 5, 4)), dtype)
    damping = jnp.asarray(rng.uniform(0.1, 1, size=(2, 3)), dtype)

    def everything(z, block, damping):
        j = jg.softmax_jacobian(z)
        return (
            j.solve(block, damping=damping), j @ block, j.pinv_matvec(block[..., 0]), j.eigenvalues(2), j.eigh()[0], j.frobenius_norm(),
            j.log_pseudo_determinant(), j.stored() @ block, j.root_matvec(block[..., 1]), j.root_rmatvec(block[..., 1]), j.trace(), j.stored().trace(),
        )  # fmt: skip

    once, mapped = jax.jit(lambda *x: (everything(*x), jax.vmap(jax.vmap(everything))(*x)))(z, block, damping)
    tolerance = 16 * float(jnp.finfo(dtype).eps)
    for a, b in zip(once, mapped, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance)
    for column in range(4):
        one = jg.softmax_jacobian(z).solve(block[..., column], damping=damping)  # not compiled as a whole
        np.testing.assert_allclose(np.asarray(once[0][..., column], np.float64), np.asarray(one, np.float64), rtol=tolerance, atol=tolerance)
    assert once[0].dtype == once[2].dtype == dtype
    assert once[3].dtype == (dtype if dtype == jnp.float64 else jnp.float32)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("product", [lambda j, v: j @ v, lambda j, v: j.stored() @ v], ids=["from logits", "stored"])
def test_products_keep_their_digits_where_the_vector_has_an_offset(product, offset):
    rng = np.random.default_rng(0)
    z = (np.geomspace(0.1, 30, 60)[:, None] * rng.normal(size=(60, 100))).astype(np.float32)
    v = (rng.normal(size=(60, 100)) + offset).astype(np.float32)
    p = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True).astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    differences = v[:, :, None].astype(np.float64) - v[:, None, :]
    exact, size = (p * np.einsum("ni,nji->nj", p, d) for d in (differences, np.abs(differences)))
    product_of = jax.jit(lambda z, v: product(jg.softmax_jacobian(z), v))
    errors = np.abs(np.asarray(product_of(z, v), np.float64) - exact) / np.maximum(size * 2.0**-24, 1e-36)
    assert errors.max() <= 12  # 6 ULP


def test_operator_crosses_jit_and_carries_its_scale(widest_dtype):
    z, y = jnp.asarray([[0.5, -1.0, 2.0]] * 2, widest_dtype), jnp.asarray([[0.6, 1.4, 0.0], [0.0, 0.0, 0.0]], widest_dtype)
    hessian = jax.jit(jg.cross_entropy_hessian)(z, y)
    j = jg.softmax_jacobian(z)
    v = jnp.asarray([[1.0, 2.0, -4.0]] * 2, widest_dtype)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=20 * float(jnp.finfo(widest_dtype).eps), atol=1e-30)
    close(hessian.eigenvalues()[0], 2 * j.eigenvalues()[0])
    close(hessian.solve(v, damping=0.2)[0], j.solve(v, damping=0.1)[0] / 2)
    close(hessian.solve(v, damping=0.2)[1], v[1] / 0.2)
    close(hessian.pinv_matvec(v), j.pinv_matvec(v) * jnp.asarray([[0.5], [0.0]], widest_dtype))
    close(hessian.root_matvec(v), j.root_matvec(v) * jnp.sqrt(jnp.asarray([[2.0], [0.0]], widest_dtype)))
    close(hessian.frobenius_norm(), j.frobenius_norm() * jnp.asarray([2.0, 0.0], widest_dtype))
    close(hessian.log_pseudo_determinant()[0], j.log_pseudo_determinant()[0] + 2 * jnp.log(2.0))
    assert hessian.log_pseudo_determinant()[1] == 0
    close(hessian.stored() @ v, hessian @ v)
    negative = jg.kl_divergence_hessian(z, z).mixed
    assert np.isnan(negative.eigenvalues()).all()
    assert np.isnan(negative.solve(v, damping=1.0)).all()
    assert np.isnan(negative.root_matvec(v)).all()
    assert np.isnan(negative.eigh()[1]).all()


def test_draws_have_the_covariance_and_sum_to_0(widest_dtype):
    z = jnp.asarray([[0.0, 1.0, -1.0], [3.0, 0.0, -jnp.inf]], widest_dtype)
    draws = jax.jit(lambda key: jg.softmax_jacobian(z).sample(key, (20000,)))(jax.random.key(0))
    assert draws.shape == (20000, 2, 3)
    assert np.abs(draws.sum(-1)).max() <= 8 * float(jnp.finfo(widest_dtype).eps)
    covariance = np.einsum("nbi,nbj->bij", draws, draws) / 20000
    np.testing.assert_allclose(covariance, jg.softmax_jacobian(z).to_dense(), atol=0.01)
    assert jg.softmax_jacobian(z).sample(jax.random.key(0)).shape == (2, 3)


def test_nan_stays_in_its_row(widest_dtype):
    z = jnp.asarray([[0.0, 1.0, 2.0], [0.0, jnp.nan, 1.0], [jnp.inf, 0.0, 1.0], [-jnp.inf] * 3], widest_dtype)
    j, v = jg.softmax_jacobian(z), jnp.ones((4, 3), widest_dtype)
    for result in (j.eigenvalues(), j.eigh()[1], j.solve(v, damping=0.1), j.pinv_matvec(v), j.root_matvec(v), j.frobenius_norm(), j.log_pseudo_determinant()):
        assert np.isfinite(result[0]).all()
        assert np.isnan(result[1:]).all()
    assert np.isnan(j.solve(v, damping=jnp.asarray([0.0, 1.0, 1.0, 1.0], widest_dtype))[0]).all()


def test_a_large_head_needs_a_few_batches_of_memory():
    z, v = jax.ShapeDtypeStruct((64, 128_000), jnp.float32), jax.ShapeDtypeStruct((64, 128_000), jnp.float32)
    batch = 64 * 128_000 * 4
    for name, operation, batches in (
        ("matvec", lambda z, v: jg.softmax_jacobian(z) @ v, 3),
        ("solve", lambda z, v: jg.softmax_jacobian(z).solve(v, damping=0.1), 3),
        ("pinv", lambda z, v: jg.softmax_jacobian(z).pinv_matvec(v), 4),
        ("root", lambda z, v: jg.softmax_jacobian(z).root_matvec(v), 4),
        ("norm", lambda z, v: jg.softmax_jacobian(z).frobenius_norm(), 3),
        ("largest eigenvalue", lambda z, v: jg.softmax_jacobian(z).eigenvalues(1), 5),
    ):
        temporary = jax.jit(operation).lower(z, v).compile().memory_analysis().temp_size_in_bytes
        assert temporary <= batches * batch, (name, temporary / batch)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda j, v: j.solve(v, damping=0.0), ValueError, "damping: expected a positive finite number, got 0"),
        (lambda j, v: j.solve(v, damping=np.float32(-1)), ValueError, "damping: expected a positive finite number, got -1.0; .*pinv_matvec"),
        (lambda j, v: j.solve(v, damping=1e-46), ValueError, "damping: expected a positive finite number, got 0.0; 1e-46 is 0 in float32"),
        (lambda j, v: j.sample(jax.random.key(0), 5), TypeError, r"shape: expected a tuple of sizes, got 5; pass \(5,\)"),
        (lambda j, v: j.eigenvalues(True), ValueError, "num_largest: expected from 1 to 3"),
        (lambda j, v: j.matvec(v[..., None]), ValueError, r"vector: expected shape \(2, 3\) .*@ takes blocks"),
        (lambda j, v: j.solve(v, damping=v[:1, 0]), ValueError, r"damping: expected shape \(2,\) \(one for each matrix\), got \(1,\)"),
        (lambda j, v: j.solve(v, damping=jnp.ones(2, int)), TypeError, "damping: expected a real floating dtype, got int"),
        (lambda j, v: j.solve(v[:, :2], damping=1.0), ValueError, r"vector: expected vectors \(2, 3\) or blocks \(2, 3\) \+ \(K,\)"),
        (lambda j, v: j.solve(v, damping=True), TypeError, "damping: expected a number, got bool; pass λ > 0"),
        (lambda j, v: j.pinv_matvec(v[0]), ValueError, r"vector: expected vectors \(2, 3\) or blocks"),
        (lambda j, v: j.eigenvalues(4), ValueError, "num_largest: expected from 1 to 3, the number of classes, got 4"),
        (lambda j, v: j.stored().matvec(v[0]), ValueError, r"vector: expected shape \(2, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    v = jnp.ones((2, 3), jnp.float32)
    with pytest.raises(error, match=message):
        call(jg.softmax_jacobian(v), v)
