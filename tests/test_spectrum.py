"""Spectra by products against dense eigenvalue decompositions, with error bars that hold what they promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgrad as jg

X64 = jax.config.jax_enable_x64
DTYPE = jnp.float64 if X64 else jnp.float32
RTOL = 1e-11 if X64 else 2e-5
KEYS = jax.random.split(jax.random.key(0), 8)
N, C, P = 6, 3, 43
PARAMS = {"in": jax.random.normal(KEYS[0], (4, 5), DTYPE), "out": [jax.random.normal(KEYS[1], (5, 4), DTYPE), jax.random.normal(KEYS[2], (3,), DTYPE)]}
X, Y = jax.random.normal(KEYS[3], (N, 4), DTYPE), jnp.array([0, 1, 2, 2, 1, 0])


def model(p):
    return jnp.tanh(X @ p["in"]) @ p["out"][0][:, :3] + jnp.broadcast_to(p["out"][1], (N, C)) * X[:, :3]


def loss(p):
    return jg.cross_entropy(model(p), Y).mean()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored(jg.PytreeOperator):
    """A matrix (P, P) over the parameters: what is compiled for one serves all of them."""

    matrix: jax.Array

    @property
    def like(self):
        return PARAMS

    def matvec(self, tree):
        flat, unravel = ravel_pytree(tree)
        return unravel(self.matrix @ flat)


@jax.jit
def curvature(params):
    hessian, fisher = jg.hessian(loss, params), jg.fisher(model, params)
    return hessian, fisher, hessian.to_dense(), fisher.to_dense()


HESSIAN, FISHER, H, F = curvature(PARAMS)
OPERATORS = {"hessian": Stored(H), "fisher": Stored(F), "difference": Stored(H - F)}
MATRICES = {name: np.asarray(operator.matrix) for name, operator in OPERATORS.items()}
EIGENVALUES = {name: np.linalg.eigvalsh(m.astype(float))[::-1] for name, m in MATRICES.items()}


@pytest.mark.parametrize(("operator", "name"), [(HESSIAN - FISHER, "difference"), *((a, name) for name, a in OPERATORS.items())])
def test_extreme_eigenpairs_are_those_of_the_dense_matrix(operator, name):
    pairs = jg.extreme_eigenpairs(operator, KEYS[4], num_largest=3, num_smallest=1)
    exact = EIGENVALUES[name]
    wanted = exact[[0, 1, 2, -1]]
    np.testing.assert_allclose(pairs.values, wanted, rtol=0, atol=RTOL * exact[0])
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e3 * RTOL)
    residuals = np.linalg.norm(vectors @ MATRICES[name] - np.asarray(pairs.values)[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residual_norms, residuals, atol=RTOL * exact[0])
    for value, residual in zip(pairs.values, pairs.residual_norms, strict=True):
        assert np.abs(exact - value).min() <= residual + RTOL * exact[0]


def test_few_products_are_shown_by_the_residuals():
    pairs = jg.extreme_eigenpairs(OPERATORS["hessian"], KEYS[4], num_largest=2, num_matvecs=4)
    assert pairs.residual_norms[1] > 1e-3
    nearest = np.abs(EIGENVALUES["hessian"][:, None] - np.asarray(pairs.values)[None]).min(0)
    assert (nearest <= np.asarray(pairs.residual_norms)).all()


@pytest.mark.parametrize("name", ["fisher", "zero", "identity"])
def test_lanczos_stops_where_the_space_is_exhausted(name):
    """Rounding after the last step made eigenvalues of 120 for a matrix of norm 1.6."""
    matrix = {"fisher": MATRICES["fisher"], "zero": np.zeros((P, P)), "identity": np.eye(P)}[name]
    operator = Stored(jnp.asarray(matrix, DTYPE))
    exact = np.unique(np.round(np.linalg.eigvalsh(matrix), 6))[::-1] + 0.0
    values = np.asarray(jg.extreme_eigenpairs(operator, KEYS[4], num_largest=N * (C - 1) + 3, num_matvecs=P).values)
    np.testing.assert_allclose(values[: len(exact)], exact, atol=2e-5)
    last = values[len(exact)]
    assert np.isnan(last) or np.abs(exact - last).min() < 1e-6  # one vector more may be found before the cut
    assert np.isnan(values[len(exact) + 1 :]).all()
    spectrum = jg.spectral_density(operator, KEYS[4], num_matvecs=P, num_samples=3)
    trace = jg.trace_estimate(operator, KEYS[4], num_samples=3)
    np.testing.assert_allclose(spectrum.trace_of(lambda t: t).value, trace.value, rtol=1e-4, atol=1e-6)


def test_gram_eigenpairs_are_all_of_the_gauss_newton_matrix():
    pairs = jg.gram_eigenpairs(FISHER)
    exact = EIGENVALUES["fisher"]
    np.testing.assert_allclose(pairs.values, exact[: N * C], rtol=0, atol=RTOL * exact[0])
    assert (pairs.residual_norms < RTOL * exact[0]).all()
    assert (exact[N * (C - 1) :] < 1e-6 * exact[0]).all()  # J has rank C − 1
    vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors))
    dense = (vectors.T * np.asarray(pairs.values)) @ vectors
    np.testing.assert_allclose(dense, MATRICES["fisher"], atol=RTOL * exact[0])
    empirical = jg.empirical_fisher(lambda p: jg.cross_entropy(model(p), Y), PARAMS)
    np.testing.assert_allclose(jg.gram_eigenpairs(empirical).values.sum(), empirical.trace(), rtol=10 * RTOL)


def test_estimates_are_within_their_error_bars():
    operator, matrix = OPERATORS["hessian"], MATRICES["hessian"]
    keys = jax.random.split(KEYS[5], 200)
    estimates = jax.vmap(lambda key: jg.trace_estimate(operator, key, num_samples=16))(keys)
    z = (np.asarray(estimates.value) - np.trace(matrix)) / np.asarray(estimates.standard_error)
    assert np.abs(z.mean()) < 0.25
    assert 0.75 < z.std() < 1.4
    diagonal = jg.diagonal_estimate(operator, KEYS[6], num_samples=400)
    off, error = np.asarray(ravel_pytree(diagonal.value)[0] - np.diag(matrix)), np.asarray(ravel_pytree(diagonal.standard_error)[0])
    unused = np.diag(matrix) == 0
    assert (off[unused] == 0).all()
    assert np.sqrt(np.mean((off[~unused] / error[~unused]) ** 2)) < 1.4


def test_the_standard_error_is_that_of_the_mean():
    operator, matrix = OPERATORS["hessian"], MATRICES["hessian"]
    probes = np.asarray(jax.random.rademacher(KEYS[5], (7, P), DTYPE))
    samples = np.einsum("sa,ab,sb->s", probes, matrix, probes)
    estimate = jg.trace_estimate(operator, KEYS[5], num_samples=7)
    np.testing.assert_allclose(estimate.value, samples.mean(), rtol=10 * RTOL)
    np.testing.assert_allclose(estimate.standard_error, samples.std(ddof=1) / np.sqrt(7), rtol=100 * RTOL)


def test_the_density_of_enough_products_has_the_moments_of_the_matrix():
    spectrum = jg.spectral_density(OPERATORS["difference"], KEYS[5], num_matvecs=20, num_samples=6)
    np.testing.assert_allclose(spectrum.weights.sum(-1), 1, rtol=10 * RTOL)
    probes = np.asarray(jax.random.rademacher(KEYS[5], (6, P), DTYPE))
    power = np.eye(P)
    for k in range(4):
        exact = np.einsum("sa,ab,sb->s", probes, power, probes)
        estimate = spectrum.trace_of(lambda t, k=k: t**k)
        np.testing.assert_allclose(estimate.value, exact.mean(), rtol=0, atol=1e3 * RTOL)
        np.testing.assert_allclose(estimate.standard_error, exact.std(ddof=1) / np.sqrt(6), rtol=0, atol=1e3 * RTOL)
        power = power @ MATRICES["difference"]
    at = jnp.linspace(-10, 10, 2001, dtype=DTYPE)
    curve = spectrum.density(at, width=0.05)
    np.testing.assert_allclose(curve.value.sum() * 0.01, 1, rtol=1e-3)
    nodes, weights = np.asarray(spectrum.nodes)[:, None], np.asarray(spectrum.weights)
    bumps = np.exp(-(((np.asarray(at)[:, None] - nodes) / 0.05) ** 2) / 2) / (0.05 * np.sqrt(2 * np.pi))
    curves = np.einsum("sam,sm->sa", bumps, weights)
    np.testing.assert_allclose(curve.value, curves.mean(0), rtol=0, atol=1e-4)
    np.testing.assert_allclose(curve.standard_error, curves.std(0, ddof=1) / np.sqrt(6), rtol=0, atol=1e-4)


def test_log_determinant_of_the_damped_matrix():
    exact = np.log(np.maximum(EIGENVALUES["fisher"], 0) + 0.1).sum()
    estimate = jg.log_determinant(OPERATORS["fisher"], KEYS[5], damping=0.1, num_matvecs=P, num_samples=64)
    assert np.abs(estimate.value - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.05 * np.abs(exact)


def test_array_operators_have_spectra_too():
    logits = jax.random.normal(KEYS[7], (6,), DTYPE)
    operator = jg.softmax_jacobian(logits)
    exact = np.linalg.eigvalsh(np.asarray(operator.to_dense()))[::-1]
    pairs = jg.extreme_eigenpairs(operator, KEYS[0], num_largest=2, num_smallest=1)
    np.testing.assert_allclose(pairs.values, exact[[0, 1, -1]], atol=RTOL)
    trace = jg.trace_estimate(operator, KEYS[0], num_samples=500)
    assert np.abs(trace.value - exact.sum()) < 4 * trace.standard_error


def test_gradient_descent_is_stable_up_to_twice_the_inverse_sharpness():
    """`sharpness` is λ_max along a training; on a quadratic model the line 2/η is exact."""
    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.5 * g, p, jax.grad(loss)(p)))
    at = jax.jit(lambda p: (jg.sharpness(loss, p, KEYS[0]), jg.hessian(loss, p).to_dense()))
    params = PARAMS
    for _ in range(3):
        params = step(params)
        value, dense = at(params)
        np.testing.assert_allclose(value, np.linalg.eigvalsh(dense)[-1], rtol=100 * RTOL)
    quadratic = lambda u: u @ F @ u / 2
    top, start = jg.sharpness(quadratic, jnp.ones(P, DTYPE), KEYS[0]), jnp.asarray(np.linalg.eigh(F)[1][:, -1])
    for factor, grows in ((0.99, False), (1.01, True)):
        moved = jax.lax.fori_loop(0, 50, lambda _, u, f=factor: u - f * 2 / top * jax.grad(quadratic)(u), start)
        assert (jnp.linalg.norm(moved) > 1) == grows


def test_streams_have_traces_and_are_refused_by_lanczos():
    batches = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    of = lambda p, batch, w: jg.fisher(lambda q: batch[0] @ q["in"], p, weights=w)
    streamed, full = jg.streamed_curvature(of, PARAMS, batches), of(PARAMS, (X, Y), None)
    a, b = (jg.trace_estimate(operator, KEYS[0], num_samples=4) for operator in (streamed, full))
    np.testing.assert_allclose((a.value, a.standard_error), (b.value, b.standard_error), rtol=100 * RTOL)
    with pytest.raises(TypeError, match=r"got a stream over batches; hold the data in arrays"):
        jg.extreme_eigenpairs(2.0 * streamed, KEYS[0])


ERRORS = {
    "batch": (lambda: jg.trace_estimate(jg.softmax_jacobian(jnp.zeros((2, 3))), KEYS[0]), ValueError, r"operator: expected one matrix \(C, C\), got a batch"),
    "one sample": (lambda: jg.trace_estimate(OPERATORS["fisher"], KEYS[0], num_samples=1), ValueError, "num_samples: expected at least 2"),
    "no pair": (lambda: jg.extreme_eigenpairs(OPERATORS["fisher"], KEYS[0], num_largest=0), ValueError, "expected 1 to 20 pairs"),
    "few products": (lambda: jg.extreme_eigenpairs(OPERATORS["fisher"], KEYS[0], num_largest=5, num_matvecs=4), ValueError, "expected 1 to 4 pairs"),
    "no product": (lambda: jg.spectral_density(OPERATORS["fisher"], KEYS[0], num_matvecs=0), ValueError, "num_matvecs: expected at least 1"),
    "not a Gauss-Newton matrix": (lambda: jg.gram_eigenpairs(HESSIAN), TypeError, "got a Hessian; use extreme_eigenpairs"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_by_name(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
