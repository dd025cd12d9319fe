"""The curvature matrices of one network in torch and in JAX, on the same weights: curvlinops beside jaxgrad, to 1e-12 in float64.

Both are of the mean loss. With `reduction="mean"` curvlinops counts each example of the full batch 1/N, as jaxgrad does by
default; with `ignore_index` torch's mean is over the tokens that are left, which jaxgrad is told by weights. curvlinops gets
the full batch. jaxgrad gets it at once, and split with a ragged last batch: the numbers must not change.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the peers
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[peers]'")
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed: pip install '.[peers]'")

DTYPE = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
RTOL = 1e-12 if jax.config.jax_enable_x64 else 2e-5
RNG = np.random.default_rng(0)
N, T, D, HIDDEN, C, P = 7, 2, 4, 5, 3, 43  # the last batch of 4 is ragged
PARAMS = [RNG.normal(size=shape) for shape in ((HIDDEN, D), (HIDDEN,), (C, HIDDEN), (C,))]  # as torch orders and stores them
X = RNG.normal(size=(N, T, D))
MASK = np.arange(T)[None] < RNG.integers(1, T + 1, N)[:, None]
IDS, SOFT = RNG.integers(0, C, (N, T)), RNG.dirichlet(np.ones(C), N)
CASES = {
    "ids": (X[:, 0], IDS[:, 0], None),
    "distributions": (X[:, 0], SOFT, None),
    "masked tokens": (X, np.where(MASK, IDS, -100), MASK / MASK.sum()),
}


def matrices_of_curvlinops(x, targets):
    """The matrices (P, P) of the full batch; tokens are axes after the classes in torch."""
    network = torch.nn.Sequential(torch.nn.Linear(D, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, C)).to(torch.float64)
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), PARAMS, strict=True):
            parameter.copy_(torch.from_numpy(value))

    class LogitsLast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).movedim(-1, 1)

    data = [(torch.from_numpy(x), torch.from_numpy(targets))]
    of = lambda operator: operator(LogitsLast(), torch.nn.CrossEntropyLoss(), list(network.parameters()), data)
    dense = lambda operator: (of(operator) @ torch.eye(P, dtype=torch.float64)).numpy()
    found = {"hessian": dense(curvlinops.HessianLinearOperator), "ggn": dense(curvlinops.GGNLinearOperator)}
    if targets.shape == (N,):  # else curvlinops refuses, or counts other examples
        found["empirical"] = dense(curvlinops.EFLinearOperator)
    return found


def model(params, x):
    w, b, v, c = params
    hidden = x @ w.T
    hidden = jnp.tanh(hidden + jnp.broadcast_to(b, hidden.shape))
    return hidden @ v.T + jnp.broadcast_to(c, (*x.shape[:-1], C))


def losses(params, batch, w):
    x, targets = batch
    return jg.cross_entropy(model(params, x), targets, where=w > 0)


OPERATORS = {
    "hessian": lambda params, batch, w: jg.hessian(lambda p: (w * losses(p, batch, w)).sum(), params),
    "ggn": lambda params, batch, w: jg.ggn(lambda p: model(p, batch[0]), lambda z: (w * jg.cross_entropy(z, batch[1], where=w > 0)).sum(), params),
    "fisher": lambda params, batch, w: jg.fisher(lambda p: model(p, batch[0]), params, weights=w),
    "empirical": lambda params, batch, w: jg.empirical_fisher(lambda p: losses(p, batch, w), params, weights=w),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch
@pytest.mark.parametrize("case", CASES)
def test_matrices_are_those_of_curvlinops_and_the_same_in_ragged_batches(case):
    x, targets, weights = CASES[case]
    params, x_, w = (jax.tree.map(lambda a: jnp.asarray(a, DTYPE), a) for a in (PARAMS, x, np.full(N, 1 / N) if weights is None else weights))
    targets_ = jnp.asarray(targets, DTYPE if np.issubdtype(targets.dtype, np.floating) else jnp.int32)

    peer = matrices_of_curvlinops(x, targets)
    peer["fisher"] = peer["ggn"]  # the exact, type-2, Fisher of cross-entropy

    @jax.jit
    def everything(params, batch, w):
        full = {name: operator_fn(params, batch, w) for name, operator_fn in OPERATORS.items()}
        ragged = lambda operator_fn: jg.batched_curvature(operator_fn, params, batch, batch_size=4, weights=None if weights is None else w)
        return {name: (a.to_dense(), ragged(OPERATORS[name]).to_dense(), a.trace()) for name, a in full.items() if name in peer}

    for name, (full, ragged, trace) in everything(params, (x_, targets_), w).items():
        for dense in (full, ragged):
            np.testing.assert_allclose(dense, peer[name], rtol=0, atol=RTOL * np.abs(peer[name]).max(), err_msg=name)
        np.testing.assert_allclose(trace, np.trace(peer[name]), rtol=RTOL, err_msg=name)
    assert np.abs(peer["hessian"] - peer["ggn"]).max() > 1e-2 * np.abs(peer["hessian"]).max()
