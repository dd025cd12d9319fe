"""The Taylor models of the loss in the spaces z, e, x, W and θ: their terms, and errors that shrink as ‖δ‖³."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgrad as jg

X64 = jax.config.jax_enable_x64
DTYPE = jnp.float64 if X64 else jnp.float32
RTOL = 1e-12 if X64 else 1e-4
KEYS = jax.random.split(jax.random.key(0), 6)
N, D, F, C = 5, 3, 4, 3
normal = lambda i, *shape: jax.random.normal(KEYS[i], shape, DTYPE)
THETA, HEAD, INPUTS, Y = {"a": normal(0, D, F), "b": normal(1, F)}, normal(2, C, F), normal(3, N, D), jnp.array([0, 1, 2, 0, 1])


def features(theta, x):
    return jnp.tanh(x @ theta["a"] + jnp.broadcast_to(theta["b"], (N, F)))


E = features(THETA, INPUTS)
SPACES = {
    "z": (lambda z: z, E @ HEAD.T),
    "e": (lambda e: e @ HEAD.T, E),
    "x": (lambda x: features(THETA, x) @ HEAD.T, INPUTS),
    "W": (lambda w: E @ w.T, HEAD),
    "θ": (lambda theta: features(theta, INPUTS) @ HEAD.T, THETA),
}


def loss(z):
    return jg.cross_entropy(z, Y).mean()


def plain_loss(z):
    return -(jax.nn.one_hot(Y, C, dtype=z.dtype) * jax.nn.log_softmax(z)).sum(-1).mean()


@pytest.mark.parametrize("space", SPACES)
def test_terms_are_those_of_the_dense_matrices_and_the_error_is_of_third_order(space):
    model_fn, point = SPACES[space]
    flat, unravel = ravel_pytree(point)
    step = jnp.cos(jnp.arange(flat.size, dtype=DTYPE)) / jnp.sqrt(flat.size).astype(DTYPE)
    scales = 2.0 ** (3 - jnp.arange(10, dtype=DTYPE))

    @jax.jit
    def everything(t):
        of = lambda s: plain_loss(model_fn(unravel(s)))
        z = model_fn(unravel(t))
        j = jax.jacobian(lambda s: model_fn(unravel(s)).ravel())(t)
        h_z = jax.hessian(lambda s: plain_loss(s.reshape(z.shape)))(z.ravel())
        expansions = jax.vmap(lambda scale: jg.taylor_expansion(model_fn, loss, unravel(t), unravel(scale * step)))(scales)
        return expansions, expansions.first_order, expansions.second_order, expansions.error, of(t), jax.grad(of)(t), jax.hessian(of)(t), j.T @ h_z @ j

    expansion, first, second, error, value, g, h, gauss_newton = jax.tree.map(np.asarray, everything(flat))
    d, s = np.asarray(step), np.asarray(scales)
    size = np.abs(d) @ np.abs(h) @ np.abs(d) * s**2
    np.testing.assert_allclose(expansion.value, value, rtol=RTOL)
    np.testing.assert_allclose(expansion.linear, s * (g @ d), rtol=0, atol=RTOL * s[0] * (np.abs(g) @ np.abs(d)))
    for term, matrix in ((expansion.gauss_newton, gauss_newton), (expansion.residual, h - gauss_newton)):
        assert (np.abs(term - s**2 * (d @ matrix @ d) / 2) <= RTOL * size).all()
    np.testing.assert_allclose(first, value + s * (g @ d), rtol=RTOL)
    np.testing.assert_allclose(second, value + s * (g @ d) + s**2 * (d @ h @ d) / 2, rtol=RTOL)
    if space in "zeW":
        assert (expansion.residual == 0).all()
    else:
        assert np.abs(expansion.residual[0]) > 1e-3
    ratios = error[:-1] / error[1:]
    known = np.abs(error[1:]) > 100 * np.finfo(DTYPE).eps
    assert known.any()
    np.testing.assert_allclose(ratios[known][-1], 8, rtol=0.1 if X64 else 0.5)


ERRORS = {
    "block": (lambda: jg.taylor_expansion(lambda z: z, loss, E, jnp.stack([E, E])), ValueError, "step: expected one step .* jax.vmap over the steps"),
    "shape": (lambda: jg.taylor_expansion(lambda z: z, loss, {"u": E}, {"u": E.T}), ValueError, r"step\['u'\]: expected shape"),
    "integer point": (lambda: jg.taylor_expansion(lambda z: z, loss, Y, Y), TypeError, "point: expected a real floating dtype"),
    "vector loss": (lambda: jg.taylor_expansion(lambda z: z, lambda z: z, E, E), ValueError, r"loss_fn\(outputs\): expected a scalar"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_by_name(name):
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()
