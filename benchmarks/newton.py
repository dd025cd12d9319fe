"""Time of whole fits of a softmax regression by Newton–CG, in float64, beside the solvers of scikit-learn.

The embedded digits, 1797 × 64 in 10 classes, and a synthetic problem of 20000 × 200 in 20. All stop at the first iterate
whose gradient of the mean objective has no entry above 1e-6, with the penalty of C = 1 and a bias that is free of it.
newton-cholesky is left out of the larger problem: its dense Hessian of 4000 × 4000 takes ten times as long as the others.
Iterates, gradients and the test of convergence are in float64; products with the Hessian are in float64 or, in the second
row, in float32. On a loaded machine the threads of OpenBLAS wait for each other and make scikit-learn up to 16 times slower
than it is with OPENBLAS_NUM_THREADS=1, which is the fair setting there, and those of XLA wait too: `taskset -c 0` is fair.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import Effort, Function, Target, TimingCase, TimingResult
from jaxgrad.verify import _data

Params = tuple[jax.Array, jax.Array]

MAX_GRADIENT = 1e-6
NEWTON_CG, LBFGS, CHOLESKY = "scikit-learn newton-cg", "scikit-learn lbfgs", "scikit-learn newton-cholesky"


def cases(quick: bool) -> Sequence["_InFloat64"]:
    """The digits and, unless `quick`, the synthetic problem; none without scikit-learn, as there is nothing to compare with."""
    if _peers.load("sklearn.linear_model") is None:
        return []
    digits = _case("digits, 1797 x 64 x 10", _digits, 10, 0.6, NEWTON_CG, LBFGS, CHOLESKY)
    return [digits] if quick else [digits, _case("synthetic, 20000 x 200 x 20", _synthetic, 20, 1.0, NEWTON_CG, LBFGS)]


@dataclasses.dataclass(frozen=True)
class _InFloat64:
    """A case with x64 on, and in few rounds, as some fits take seconds."""

    case: TimingCase

    @property
    def title(self) -> str:
        """What is measured."""
        return self.case.title

    def measure(self, effort: Effort) -> TimingResult:
        """Do it."""
        with jax.enable_x64(True):
            return self.case.measure(dataclasses.replace(effort, rounds=min(effort.rounds, 5)))


def _case(name: str, arguments: Callable[[], tuple[jax.Array, jax.Array]], num_classes: int, at_most: float, *solvers: str) -> _InFloat64:
    case = TimingCase(
        benchmark="newton",
        title=f"fit of a softmax regression, {name}, float64",
        arguments=arguments,
        ours={
            "jaxgrad": lambda x, y: fit(x, y, num_classes, jnp.float64),
            "jaxgrad, curvature in float32": lambda x, y: fit(x, y, num_classes, jnp.float32),
        },
        peers={solver: _by_sklearn(solver.split()[-1]) for solver in solvers},
        targets=tuple(Target(at_most, solver) for solver in solvers),
        eager_peers=True,
        compared=_checked_objective,
    )
    return _InFloat64(case)


def fit(x: jax.Array, y: jax.Array, num_classes: int, curvature_dtype: Any) -> Params:
    """The head (C, d) and bias (C,) of a softmax regression by Newton's steps from 0, products with the Hessian in `curvature_dtype`.

    The Kronecker factors of the Hessian at 0 precondition all steps.
    """
    gradient = jax.grad(lambda params: _objective(params, x, y))
    optimizer = optax.chain(jg.scale_by_curvature(0.0), optax.scale_by_learning_rate(1.0))
    features = x.astype(curvature_dtype)

    def hessian(params: Params) -> jg.HeadHessian:
        head, bias = jax.tree.map(lambda leaf: leaf.astype(curvature_dtype), params)
        return jg.head_hessian(features, head, y, bias=bias).stored()

    start = jnp.zeros((num_classes, x.shape[1]), x.dtype), jnp.zeros(num_classes, x.dtype)
    near = hessian(start).kronecker()
    penalty = jg.hessian(lambda params: _penalty(params, y), near.like)
    preconditioner = lambda v, damping: near.solve(v, damping=damping + 1 / len(y))

    def unfinished(carry: Any) -> jax.Array:
        _, state, grads = carry
        return (optax.tree.norm(grads, ord=jnp.inf) > MAX_GRADIENT) & (state[0].count < 50)

    def step(carry: Any) -> Any:
        params, state, grads = carry
        updates, state = optimizer.update(grads, state, operator=hessian(params) + penalty, preconditioner=preconditioner)
        params = optax.apply_updates(params, updates)
        return params, state, gradient(params)

    params, _, _ = jax.lax.while_loop(unfinished, step, (start, optimizer.init(start), gradient(start)))
    return params


def _logits(params: Params, x: jax.Array) -> jax.Array:
    head, bias = params
    return x @ head.T + bias


def _penalty(params: Params, y: jax.Array) -> jax.Array:
    return (params[0] ** 2).sum() / (2 * len(y))


def _objective(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    return jg.cross_entropy(_logits(params, x), y).mean() + _penalty(params, y)


def _checked_objective(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The objective at the end of a fit; the parameters themselves are only as close as the gradient is small."""
    value, grads = jax.value_and_grad(_objective)(params, x, y)
    if not optax.tree.norm(grads, ord=jnp.inf) <= MAX_GRADIENT:
        raise ValueError(f"params: expected a gradient of at most {MAX_GRADIENT}, got {optax.tree.norm(grads, ord=jnp.inf)}; lower the tolerance of the fit")
    return value


def _by_sklearn(solver: str) -> Function:
    linear_model = _peers.load("sklearn.linear_model")
    assert linear_model is not None

    def by_sklearn(x: jax.Array, y: jax.Array) -> Params:
        model = linear_model.LogisticRegression(solver=solver, tol=MAX_GRADIENT, max_iter=10_000).fit(np.asarray(x), np.asarray(y))
        return model.coef_, model.intercept_

    return by_sklearn


def _digits() -> tuple[jax.Array, jax.Array]:
    x, y = _data.digits()
    return jnp.asarray(x, jnp.float64), jnp.asarray(y)


def _synthetic() -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (20_000, 200)), jax.random.normal(keys[1], (20, 200)) / 200**0.5
    return x, jax.random.categorical(keys[2], x @ w.T)
