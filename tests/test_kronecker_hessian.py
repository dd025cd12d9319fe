"""The Kronecker approximation of the Hessian of a softmax regression, and its inverse, against dense matrices by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgrad as jg

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
CLOSE = {"rtol": 1e-10, "atol": 1e-13} if jax.config.jax_enable_x64 else {"rtol": 1e-4, "atol": 1e-6}
KEYS = jax.random.split(jax.random.key(0), 6)
N, D, C = 30, 4, 3
X, HEAD, BIAS = (jax.random.normal(key, shape, DTYPE) for key, shape in zip(KEYS, ((N, D), (C, D), (C,)), strict=False))
Y = jax.random.uniform(KEYS[3], (N, C), DTYPE)  # sums that are not 1
WEIGHTS, WHERE = jax.random.uniform(KEYS[4], (N,), DTYPE), jax.random.bernoulli(KEYS[5], 0.8, (N,))
flat = lambda tree: np.asarray(ravel_pytree(tree)[0])


def factors(head, bias):
    """Scales ω (N,), J (N, C, C) and e (N, D + 1) by NumPy in float64."""
    x, w, b, y = (np.asarray(a, np.float64) for a in (X, head, bias, Y))
    p = np.exp(x @ w.T + b)
    p /= p.sum(-1, keepdims=True)
    scale = np.asarray(WEIGHTS, np.float64) * y.sum(-1) * np.asarray(WHERE)
    return scale, p[:, :, None] * np.eye(C) - p[:, :, None] * p[:, None], np.concatenate([x, np.ones((N, 1))], -1)


def ordered(dense, has_bias):
    """A matrix over (C, D + 1), as (C, D + 1, C, D + 1), over W and then b, or over W alone."""
    order = [k * (D + 1) + d for k in range(C) for d in range(D)] + [k * (D + 1) + D for k in range(C)] * has_bias
    return dense.reshape(C * (D + 1), -1)[np.ix_(order, order)]


@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_product_of_the_summed_jacobian_and_the_mean_outer_product(has_bias):
    bias = BIAS if has_bias else jnp.zeros_like(BIAS)
    scale, jacobians, e = factors(HEAD, bias)
    classes, features = np.einsum("n,nkl->kl", scale, jacobians), np.einsum("n,nd,ne->de", scale, e, e) / scale.sum()
    expected = ordered(np.einsum("kl,de->kdle", classes, features), has_bias)
    v = np.random.default_rng(0).normal(size=(5, len(expected)))

    @jax.jit
    def results(x, head, bias, y, weights, where, block):
        hessian = jg.head_hessian(x, head, y, bias=bias if has_bias else None, weights=weights, where=where)
        approximation = hessian.stored().kronecker()
        block = jax.vmap(ravel_pytree(approximation.like)[1])(block)
        one = jax.tree.map(lambda leaf: leaf[0], block)
        flatten = jax.vmap(lambda tree: ravel_pytree(tree)[0])
        many = approximation @ block, approximation.solve(block, damping=0.1)
        single = approximation @ one, approximation.solve(one, damping=jnp.asarray(0.1)), approximation.diagonal()
        return approximation.to_dense(), hessian.kronecker().trace(), *map(flatten, many), *(ravel_pytree(tree)[0] for tree in single)

    dense, trace, products, solutions, product, solution, diagonal = results(X, HEAD, bias, Y, WEIGHTS, WHERE, jnp.asarray(v, DTYPE))
    np.testing.assert_allclose(dense, expected, **CLOSE)
    assert (dense == dense.T).all()
    np.testing.assert_allclose(trace, expected.trace(), **CLOSE)
    np.testing.assert_allclose(diagonal, expected.diagonal(), **CLOSE)
    np.testing.assert_allclose(products, v @ expected, **CLOSE)
    exact = np.linalg.solve(expected + 0.1 * np.eye(len(expected)), v.T).T
    np.testing.assert_allclose(solutions, exact, rtol=0, atol=10 * CLOSE["atol"] * np.abs(exact).max())
    np.testing.assert_allclose(product, products[0], **CLOSE)
    np.testing.assert_allclose(solution, exact[0], rtol=0, atol=10 * CLOSE["atol"] * np.abs(exact).max())


def test_it_is_the_hessian_where_all_examples_have_the_same_probabilities():
    zero, bias = jnp.zeros_like(HEAD), BIAS
    scale, jacobians, e = factors(zero, bias)
    expected = ordered(np.einsum("n,nkl,nd,ne->kdle", scale, jacobians, e, e), True)
    dense = jg.head_hessian(X, zero, Y, bias=bias, weights=WEIGHTS, where=WHERE).kronecker().to_dense()
    np.testing.assert_allclose(dense, expected, **CLOSE)


def test_products_with_p_stored_are_those_of_the_hessian():
    scale, jacobians, e = factors(HEAD, BIAS)
    expected = ordered(np.einsum("n,nkl,nd,ne->kdle", scale, jacobians, e, e), True)
    stored = jg.head_hessian(X, HEAD, Y, bias=BIAS, weights=WEIGHTS, where=WHERE).stored()
    np.testing.assert_allclose(flat(stored @ (HEAD, BIAS)), expected @ flat((HEAD, BIAS)), **CLOSE)
    np.testing.assert_allclose(stored.to_dense(), expected, **CLOSE)
    np.testing.assert_allclose(flat(stored.stored().diagonal()), expected.diagonal(), **CLOSE)


def test_without_examples_that_count_it_is_zero():
    approximation = jg.head_hessian(X, HEAD, Y, where=jnp.zeros(N, bool)).kronecker()
    assert (approximation.to_dense() == 0).all()
    np.testing.assert_allclose(approximation.solve(HEAD, damping=2.0), HEAD / 2, **CLOSE)


def test_a_damping_that_is_not_positive_makes_nan_and_a_wrong_tree_is_named():
    approximation = jg.head_hessian(X, HEAD, Y).kronecker()
    assert np.isnan(approximation.solve(HEAD, damping=0.0)).all()
    with pytest.raises(ValueError, match=r"damping: expected shape \(\) \(a scalar\), got \(4,\)"):
        approximation.solve(HEAD, damping=jnp.ones(4))
    with pytest.raises(ValueError, match=r"tree: expected shape \(3, 4\) or \(K,\) \+ \(3, 4\)"):
        approximation.solve(HEAD.T, damping=1.0)
