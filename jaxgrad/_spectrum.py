"""Spectra of symmetric operators by products alone: trace, diagonal, eigenpairs, density, log-determinant.

    tr f(A) = P E[Σ_m w_m f(t_m)],   diag A = E[v ∘ A v]      v a random vector of ±1

t_m and w_m are the eigenvalues of the tridiagonal matrix that M steps of Lanczos make of A and v, and the squared
first entries of its eigenvectors. Lanczos is matfree's, with full re-orthogonalisation; every estimate comes with its
standard error over the random vectors, every eigenpair with its residual.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad._curvature import GaussNewton, hessian
from jaxgrad._display import Displayed
from jaxgrad._operators import SymmetricOperator
from jaxgrad._pytree_operators import PytreeOperator, ravel, unravel, wide_dtype
from jaxgrad._pytrees import pytree

Operator = PytreeOperator | SymmetricOperator


@pytree
@dataclasses.dataclass(frozen=True)
class Estimate(Displayed):
    """A mean over random vectors with its standard error, each of any shape (...) or a pytree."""

    value: Any
    standard_error: Any


@pytree
@dataclasses.dataclass(frozen=True)
class Eigenpairs(Displayed):
    """K eigenvalues (K,), the largest first, with unit vectors and ‖A v − λ v‖ for each, (K,).

    A leaf (...) of the parameters is (K, ...) in the vectors. A symmetric matrix has an eigenvalue within the residual norm of each λ.
    """

    values: jax.Array
    vectors: Any
    residual_norms: jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class SpectralDensity(Displayed):
    """Nodes t and weights w, (S, M) each: for each of S random vectors a measure of total weight 1 on the spectrum.

    Shapes are those of arrays (...): a function of the eigenvalues is summed over all `num_params` of them by `trace_of`.
    """

    nodes: jax.Array
    weights: jax.Array
    num_params: int = dataclasses.field(metadata={"static": True})

    def trace_of(self, function: Callable[[jax.Array], jax.Array]) -> Estimate:
        """Σ_i f(λ_i) over all eigenvalues, a scalar; `function` is element-wise."""
        return _mean(self.num_params * (self.weights * function(self.nodes)).sum(-1))

    def density(self, at: jax.Array, *, width: float) -> Estimate:
        """The density of the eigenvalues at the points `at` (...), blurred by a Gaussian of standard deviation `width`."""
        z = (at[..., None, None] - jnp.broadcast_to(self.nodes, (*at.shape, *self.nodes.shape))) / width
        bumps = jnp.exp(-(z**2) / 2) / (width * jnp.sqrt(2 * jnp.pi).astype(z.dtype))
        return _mean(jnp.moveaxis((jnp.broadcast_to(self.weights, bumps.shape) * bumps).sum(-1), -1, 0))


def trace_estimate(operator: Operator, key: jax.Array, *, num_samples: int = 32) -> Estimate:
    """The trace, a scalar, as the mean of vᵀ A v over random vectors of ±1 (...), with its standard error.

    The vectors go through as one block, and through a `streamed_curvature` in one pass over the data.

    Args:
      operator: A, a `PytreeOperator`, or a symmetric operator (C, C).
      key: a key of `jax.random`.
      num_samples: how many random vectors, at least 2.

    Returns:
      An `Estimate` with `value` and `standard_error`.

    Raises:
      ValueError: there are fewer than 2 samples, or the operator is a batch of matrices.

    Source: Hutchinson 1990, doi:10.1080/03610919008812866.
    """
    probes, products = _probe(operator, key, num_samples)
    return _mean((probes * products).sum(-1))


def diagonal_estimate(operator: Operator, key: jax.Array, *, num_samples: int = 32) -> Estimate:
    """The diagonal, shaped as the parameters or (C,), as the mean of v ∘ A v over random vectors of ±1 (...).

    Args:
      operator, key, num_samples: as in `trace_estimate`.

    Returns:
      An `Estimate` whose `value` and `standard_error` are trees as the parameters.

    Raises:
      ValueError: as `trace_estimate`.

    Source: Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003.
    """
    probes, products = _probe(operator, key, num_samples)
    estimate = _mean(probes * products)
    return Estimate(_as_vector(operator, estimate.value), _as_vector(operator, estimate.standard_error))


def extreme_eigenpairs(operator: Operator, key: jax.Array, *, num_largest: int = 1, num_smallest: int = 0, num_matvecs: int | None = None) -> Eigenpairs:
    """The largest and the smallest eigenvalues over leaves (...), with unit eigenvectors, by Lanczos from a random vector.

    Args:
      operator: A, a `PytreeOperator`, or a symmetric operator (C, C).
      key: a key of `jax.random`.
      num_largest: how many at the upper end.
      num_smallest: how many at the lower end.
      num_matvecs: products to spend; by default 4 for each pair and 20 more. As many vectors are stored.

    Returns:
      `Eigenpairs` with `values` (K,), the largest first, `vectors` and `residual_norms` (K,), computed with K more
      products: spend more where they are not small. Of an eigenvalue with several eigenvectors Lanczos sees one; where
      more pairs are asked for than A has distinct eigenvalues, the rest are NaN.

    Raises:
      ValueError: no pair is asked for, more than P are, `num_matvecs` is less than the pairs, or A is a batch.

    Source: Lanczos 1950, doi:10.6028/jres.045.026.
    """
    _refuse_streams(operator)
    size, pairs = _size(operator), num_largest + num_smallest
    steps = min(size, 4 * pairs + 20 if num_matvecs is None else num_matvecs)
    if not 0 < pairs <= steps or min(num_largest, num_smallest) < 0:
        raise ValueError(
            f"num_largest, num_smallest: expected 1 to {steps} pairs for {size} parameters and num_matvecs={num_matvecs}, got {num_largest} and {num_smallest}"
        )
    return _lanczos_pairs(operator, key, num_largest, num_smallest, steps)


def gram_eigenpairs(operator: PytreeOperator) -> Eigenpairs:
    """All eigenpairs of a Gauss–Newton, Fisher or empirical Fisher matrix that may differ from 0, exactly.

    Jᵀ M J has the non-zero eigenvalues of the Gram matrix √M J Jᵀ √M, whose size is the N·C numbers of the outputs (...);
    they come from the singular values of √M J, without squaring it. For few examples: it stores (N·C, P) numbers.

    Args:
      operator: as made by `ggn`, `fisher` or `empirical_fisher`, positive semi-definite.

    Returns:
      `Eigenpairs`, min(N·C, P) of them, the largest first, with orthonormal vectors.

    Raises:
      TypeError: the operator is not made by one of these.

    Source: Dangel, Tatzel and Hennig 2022, arXiv:2106.02624.
    """
    if not isinstance(operator, GaussNewton):
        raise TypeError(f"operator: expected one made by ggn, fisher or empirical_fisher, got a {type(operator).__name__}; use extreme_eigenpairs")
    return _gram_pairs(operator)


def spectral_density(operator: Operator, key: jax.Array, *, num_matvecs: int = 32, num_samples: int = 8) -> SpectralDensity:
    """The density of the eigenvalues over leaves (...) as nodes and weights, (S, M), by stochastic Lanczos quadrature.

    Args:
      operator: A, a `PytreeOperator`, or a symmetric operator (C, C).
      key: a key of `jax.random`.
      num_matvecs: M, products for each random vector, at most P.
      num_samples: S, how many random vectors, at least 2.

    Returns:
      A `SpectralDensity`: `density(at, width=…)` is the curve with error bars, `trace_of(f)` is Σ_i f(λ_i).

    Raises:
      ValueError: there are fewer than 2 samples, no product, or the operator is a batch.

    Source: Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974.
    """
    if num_matvecs < 1:
        raise ValueError(f"num_matvecs: expected at least 1 product, got {num_matvecs}")
    _refuse_streams(operator)
    size = _size(operator)
    nodes, weights = _quadrature(operator, _signs(operator, key, num_samples), min(num_matvecs, size))
    return SpectralDensity(nodes, weights, size)


def log_determinant(operator: Operator, key: jax.Array, *, damping: float, num_matvecs: int = 32, num_samples: int = 8) -> Estimate:
    """log det(A + λI) of a positive semi-definite A over leaves (...), with its standard error, from the spectral density.

    Args:
      operator, key, num_matvecs, num_samples: as in `spectral_density`.
      damping: λ > 0. Nodes that rounding made negative count as 0.

    Returns:
      An `Estimate`, in nats. The standard error is that over the random vectors; few products for a spectrum far wider
      than λ bias the value besides.

    Raises:
      ValueError: as `spectral_density`.

    Source: Ubaru, Chen and Saad 2017, doi:10.1137/16M1104974.
    """
    spectrum = spectral_density(operator, key, num_matvecs=num_matvecs, num_samples=num_samples)
    return spectrum.trace_of(lambda t: jnp.log(jnp.maximum(t, 0) + damping))


def sharpness(loss_fn: Callable[[Any], jax.Array], params: Any, key: jax.Array, *, num_matvecs: int = 24) -> jax.Array:
    """λ_max of the Hessian of a loss over leaves (...), a scalar: gradient descent of step η is stable up to 2/η.

    Call it along the training, under `jit`, and compare with 2/η: full-batch training ends up there.

        optimizer = optax.sgd(learning_rate)

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(jax.grad(loss_fn)(params), state)
            return optax.apply_updates(params, updates), state, jg.sharpness(loss_fn, params, key)

        for _ in range(100):
            params, state, largest = step(params, state)    # stable while largest < 2 / learning_rate

    Args:
      loss_fn: maps the parameters to a scalar.
      params: θ, a pytree of floating arrays.
      key: a key of `jax.random`.
      num_matvecs: Hessian-vector products to spend.

    Raises:
      TypeError, ValueError: as `hessian`.

    Source: Cohen et al. 2021, arXiv:2103.00065.
    """
    return extreme_eigenpairs(hessian(loss_fn, params), key, num_matvecs=num_matvecs).values[0]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _lanczos_pairs(operator: Operator, key: jax.Array, num_largest: int, num_smallest: int, steps: int) -> Eigenpairs:
    start = jax.random.normal(key, (_size(operator),), _dtype(operator))
    basis, values, coordinates, dimension = _lanczos(operator, start, steps)
    order = jnp.concatenate([dimension - 1 - jnp.arange(num_largest), jnp.arange(num_smallest)[::-1]])
    found = (order >= 0) & (order < dimension)
    vectors = (basis @ coordinates[:, order]).T
    return _with_residuals(operator, jnp.where(found, values[order], jnp.nan), vectors)


@jax.jit
def _gram_pairs(operator: GaussNewton) -> Eigenpairs:
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), operator.like)
    outputs = jax.eval_shape(operator.jacobian, zeros)
    size = sum(x.size for x in jax.tree.leaves(outputs))
    basis = jax.vmap(lambda e: unravel(e, outputs))(jnp.eye(size, dtype=wide_dtype(outputs)))
    rows = jax.vmap(lambda u: ravel(jax.linear_transpose(operator.jacobian, zeros)(u)[0]))(basis)  # J, (N·C, P)
    inner, directions = jnp.linalg.eigh(jax.vmap(lambda u: ravel(operator.inner(u)))(basis))
    half = (directions * jnp.sqrt(jnp.maximum(inner, 0))[None]).T @ rows  # half.T @ half = Jᵀ M J
    pairs = min(half.shape)
    _, singular, vectors = jnp.linalg.svd(half, full_matrices=False)
    return _with_residuals(operator, singular[:pairs] ** 2, vectors[:pairs])


@partial(jax.jit, static_argnums=2)
def _quadrature(operator: Operator, probes: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
    def of(probe: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, values, coordinates, dimension = _lanczos(operator, probe, steps)
        return jnp.where(jnp.arange(steps) < dimension, values, values[0]), coordinates[0] ** 2

    return jax.lax.map(of, probes)


def _lanczos(operator: Operator, start: jax.Array, steps: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The basis (P, M) of the Krylov space, eigenvalues (M,) and eigenvectors (M, M) of A in it, and its dimension D <= M.

    A matrix of low rank, as Gauss–Newton matrices are, exhausts the space after D steps, and what Lanczos goes on with is
    rounding. It is cut off there, and eigenvalues from D on are not those of A but lie above them.
    """
    from matfree import decomp  # here, so that importing the package stays cheap

    decomposition = decomp.tridiag_sym(steps, materialize=False, reortho="full", custom_vjp=False)(lambda v: _matvec(operator, v), start)
    diagonal, beside = decomposition.J_small
    scale = jax.lax.cummax(jnp.maximum(jnp.abs(diagonal), jnp.append(jnp.abs(beside), 0)))
    goes_on = beside > 4 * steps * jnp.finfo(beside.dtype).eps * scale[:-1]
    inside = jnp.append(True, jnp.cumprod(goes_on.astype(int)) > 0)
    dimension = inside.sum()
    bound = 4 * scale[dimension - 1]
    diagonal = jnp.where(inside, diagonal, jnp.where(bound > 0, bound, 1))
    beside = jnp.where(inside[1:], beside, 0)
    values, coordinates = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1))
    return jnp.where(inside[:, None], decomposition.Q_tall, 0).T, values, coordinates, dimension


def _with_residuals(operator: Operator, values: jax.Array, vectors: jax.Array) -> Eigenpairs:
    residuals = jax.lax.map(lambda v: _matvec(operator, v), vectors) - values[:, None] * vectors
    return Eigenpairs(values, jax.vmap(partial(_as_vector, operator))(vectors), jnp.linalg.norm(residuals, axis=-1))


def _probe(operator: Operator, key: jax.Array, num_samples: int) -> tuple[jax.Array, jax.Array]:
    """Random vectors of ±1 and their products, (S, P) each."""
    probes = _signs(operator, key, num_samples)
    if isinstance(operator, PytreeOperator):
        return probes, jax.vmap(ravel)(operator @ jax.vmap(partial(_as_vector, operator))(probes))
    return probes, (operator @ probes.T).T.astype(probes.dtype)


def _signs(operator: Operator, key: jax.Array, num_samples: int) -> jax.Array:
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, for a standard error, got {num_samples}")
    return jax.random.rademacher(key, (num_samples, _size(operator)), _dtype(operator))


def _mean(samples: jax.Array) -> Estimate:
    """The mean of samples (S, ...) with its standard error."""
    return Estimate(samples.mean(0), samples.std(0, ddof=1) / len(samples) ** 0.5)


def _size(operator: Operator) -> int:
    if isinstance(operator, PytreeOperator):
        return operator.num_params
    if len(operator.shape) != 2:
        raise ValueError(f"operator: expected one matrix (C, C), got a batch of shape {operator.shape}; use jax.vmap over it")
    return operator.shape[-1]


def _refuse_streams(operator: Operator) -> None:
    """Raise for an operator that is no pytree, or has a part that is none: Lanczos runs under `jit`."""
    for leaf in jax.tree.leaves(operator):
        if isinstance(leaf, PytreeOperator):
            raise TypeError("operator: expected one that may be used under jit, got a stream over batches; hold the data in arrays: batched_curvature")


def _dtype(operator: Operator) -> jnp.dtype:
    return wide_dtype(operator.like if isinstance(operator, PytreeOperator) else operator)


def _matvec(operator: Operator, flat: jax.Array) -> jax.Array:
    """A v for v (P,), in the dtype of v."""
    if isinstance(operator, PytreeOperator):
        return ravel(operator.matvec(unravel(flat, operator.like)))
    return operator.matvec(flat).astype(flat.dtype)


def _as_vector(operator: Operator, flat: jax.Array) -> Any:
    return unravel(flat, operator.like) if isinstance(operator, PytreeOperator) else flat
