"""Newton, Gauss–Newton and natural-gradient steps: (A + λI)⁻¹ g by conjugate gradients, and as an optax transformation.

    s = (A + λI)⁻¹ g,   θ ← θ − η s          A = H: Newton    A = G: Gauss–Newton    A = F: natural gradient

For softmax regression the three are one, as T = 0 (hess-5). Levenberg–Marquardt damping compares what a step gains
with what its quadratic model promised: ρ = (L(θ) − L(θ − s)) / (gᵀs − ½ sᵀA s).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _checks
from jaxgrad._display import Displayed
from jaxgrad._pytree_operators import PytreeOperator, same_structure, wide_dtype
from jaxgrad._pytrees import pytree


def damped_solve(
    operator: PytreeOperator,
    tree: Any,
    *,
    damping: ArrayLike = 0.0,
    diagonal: Any = None,
    preconditioner: Callable[..., Any] | None = None,
    tolerance: ArrayLike = 1e-5,
    max_products: int | None = None,
) -> Any:
    """(A + λI)⁻¹ g for a positive semi-definite A over leaves (...), by preconditioned conjugate gradients.

    Products are made in the dtype of the operator, all else in that of g: with an A in float32 and g in float64 each takes
    half the time, and the solution has a relative accuracy of about 1e-6, enough for a step of Newton's method.

    Args:
      operator: A, such as `ggn`, `fisher`, or `hessian` where the loss is convex.
      tree: g, shaped as the parameters.
      damping: λ ≥ 0, a scalar, also traced; positive unless A is definite.
      diagonal: an approximation of diag(A), ≥ 0, shaped as the parameters: the preconditioner is its inverse, damped. With
        a preconditioner M the iteration starts from M g.
      preconditioner: instead of it, a function that maps (v, damping=λ) to an approximation of (A + λI)⁻¹ v, symmetric and
        positive definite; such as `solve` of the `KroneckerHessian` of a softmax regression, `head_hessian(...).kronecker()`.
      tolerance: stop at ‖g − (A + λI)x‖ ≤ tolerance · ‖g‖.
      max_products: stop after as many products with A beside one at the start; ten times P by default.

    Returns:
      A tree shaped as the parameters. Where the products run out it is the best so far: look at the residual.

    Raises:
      TypeError, ValueError: a tree is not shaped as the parameters, or not floating.
      ValueError: `damping` is not a scalar, or known to be negative, or there is both a diagonal and a preconditioner.

    Source: Hestenes and Stiefel 1952, doi:10.6028/jres.049.044.
    """
    from jax.scipy.sparse.linalg import cg  # here, so that importing the package stays cheap

    same_structure("tree", tree, operator.like)
    λ = _checks.as_scalar("damping", damping)
    if not isinstance(λ, jax.core.Tracer) and not λ >= 0:
        raise ValueError(f"damping: expected a number of at least 0, got {λ}; a negative one makes the matrix indefinite")
    damped = lambda product, v: jax.tree.map(lambda a, x: a.astype(x.dtype) + λ.astype(x.dtype) * x, product, v)
    precondition = None
    if diagonal is not None:
        if preconditioner is not None:
            raise ValueError("preconditioner: expected none beside diagonal=, got both; leave one of them out")
        same_structure("diagonal", diagonal, operator.like)
        scale = damped(diagonal, jax.tree.map(jnp.ones_like, tree))
        precondition = lambda v: jax.tree.map(lambda x, d: jnp.where(d > 0, x / jnp.where(d > 0, d, 1), x), v, scale)
    elif preconditioner is not None:
        precondition = lambda v: jax.tree.map(lambda x, like: x.astype(like.dtype), preconditioner(v, damping=λ), v)
    # Not from zeros, where a product is wasted: XLA on a CPU leaves parts of one with a constant 0 unwritten (jax 0.10 and 0.12).
    start = jax.tree.map(lambda x: 0 * x, tree) if precondition is None else precondition(tree)
    solution, _ = cg(lambda v: damped(operator @ v, v), tree, x0=start, tol=tolerance, maxiter=max_products, M=precondition)
    return solution


@pytree
@dataclasses.dataclass(frozen=True)
class CurvatureState(Displayed):
    """State of `scale_by_curvature`: steps taken, λ of the next one, ρ of the last (NaN without value_fn); scalars, (...) under `vmap`."""

    count: jax.Array
    damping: jax.Array
    reduction_ratio: jax.Array


def scale_by_curvature(
    damping: float | Callable[[jax.Array], ArrayLike] = 1e-3,
    *,
    tolerance: float | None = None,
    max_products: int | None = None,
) -> Any:
    """An optax transformation of gradients g into (A + λI)⁻¹ g over leaves (...), for damped Gauss–Newton steps.

        optimizer = optax.chain(jg.scale_by_curvature(1e-3), optax.scale_by_learning_rate(1.0))
        updates, state = optimizer.update(grads, state, params, operator=jg.ggn(model_fn, loss_fn, params))

    `update` takes `operator=`, the matrix A at the present parameters, and optionally `diagonal=` or `preconditioner=` as
    `damped_solve` does, and `value_fn=`, the loss as a function of the parameters. With `value_fn` λ follows Levenberg and Marquardt: it falls
    by 4 where the step gains more than ¾ of what the model promised, and grows by 4 where it gains less than ¼; a step
    that gains nothing is refused, the update is 0.

    Args:
      damping: λ, or a schedule that maps the count of steps to it, as optax's are; with `value_fn` the first λ.
      tolerance: of the solve, relative; min(0.1, √‖g‖) by default, so that Newton's method converges superlinearly.
      max_products: stop the solve after as many products.

    Returns:
      An `optax.GradientTransformationExtraArgs`, with a `CurvatureState`.

    Raises:
      TypeError: `update` is called without `operator` or, with `value_fn`, without the parameters.

    Source: Martens 2010 (ICML), Deep learning via Hessian-free optimization.
    """
    import optax  # here, so that importing the package stays cheap

    schedule = damping if callable(damping) else lambda _: damping

    def init(params: Any) -> CurvatureState:
        dtype = wide_dtype(params)
        return CurvatureState(jnp.zeros((), jnp.int32), jnp.asarray(schedule(jnp.zeros((), jnp.int32)), dtype), jnp.full((), jnp.nan, dtype))

    def update(
        grads: Any,
        state: CurvatureState,
        params: Any = None,
        *,
        operator: PytreeOperator | None = None,
        diagonal: Any = None,
        preconditioner: Callable[..., Any] | None = None,
        value_fn: Callable[[Any], jax.Array] | None = None,
        **_: Any,
    ) -> tuple[Any, CurvatureState]:
        if operator is None:
            raise TypeError("update: expected operator=, the curvature at the present parameters; pass jg.ggn(model_fn, loss_fn, params)")
        size = jnp.sqrt(_dot(grads, grads))
        accuracy = jnp.minimum(0.1, jnp.sqrt(size)) if tolerance is None else tolerance
        step = damped_solve(
            operator,
            grads,
            damping=state.damping,
            diagonal=diagonal,
            preconditioner=preconditioner,
            tolerance=accuracy,
            max_products=max_products,
        )
        count = state.count + 1
        if value_fn is None:
            return step, CurvatureState(count, jnp.asarray(schedule(count), state.damping.dtype), state.reduction_ratio)
        if params is None:
            raise TypeError("update: expected params together with value_fn=; pass update(grads, state, params, ...)")
        promised = _dot(grads, step) - _dot(step, operator @ step) / 2
        gained = value_fn(params) - value_fn(jax.tree.map(jnp.subtract, params, step))
        ratio = (gained.astype(promised.dtype) / promised).astype(state.damping.dtype)
        factor = jnp.where(ratio > 0.75, 0.25, jnp.where(ratio >= 0.25, 1.0, 4.0))  # NaN: 4
        taken = jax.tree.map(lambda s: jnp.where(gained > 0, s, 0), step)
        return taken, CurvatureState(count, state.damping * factor.astype(state.damping.dtype), ratio)

    return optax.GradientTransformationExtraArgs(init, update)


def _dot(a: Any, b: Any) -> jax.Array:
    """⟨a, b⟩ over all leaves, at least float32."""
    wide = lambda x: x.astype(wide_dtype(a)).ravel()
    return jnp.stack([jnp.vdot(wide(x), wide(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]).sum()
