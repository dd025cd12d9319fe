"""The density of the eigenvalues of an operator, with what sticks out of it."""

import math

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from jaxgrad import Eigenpairs, SpectralDensity
from jaxgrad.plots._drawing import axes, legend, line_style, numbers, point_style


def spectral_density(density: SpectralDensity, *, eigenpairs: Eigenpairs | None = None, width: float | None = None, ax: Axes | None = None) -> Axes:
    """The density of the eigenvalues on a logarithmic axis, in a band of ± one standard error.

    The curve is blurred by a Gaussian, and the axis begins a little below the height of a single eigenvalue, which is
    where the extreme ones are marked: what lies apart from the bulk is one bump each, with its mark on top.
    The unit is that of the curvature of a loss; of anything else, set it on the axes.

    Args:
      density: of `jaxgrad.spectral_density`, nodes and weights (S, M).
      eigenpairs: of `jaxgrad.extreme_eigenpairs`, (K,); each is marked, with its residual norm as error bar.
      width: the standard deviation of the Gaussian; by default a hundredth of what the nodes span.
      ax: where to draw.

    Raises:
      TypeError: `density` or `eigenpairs` is something else, or traced.
      ValueError: `width` is not positive.
    """
    if not isinstance(density, SpectralDensity):
        raise TypeError(f"density: expected a SpectralDensity, got {type(density).__name__}; make it with jaxgrad.spectral_density(operator, key)")
    if not isinstance(eigenpairs, Eigenpairs | None):
        raise TypeError(f"eigenpairs: expected Eigenpairs, got {type(eigenpairs).__name__}; make them with jaxgrad.extreme_eigenpairs(operator, key)")
    nodes = numbers("density.nodes", density.nodes, "S", "M")
    values, residuals = np.zeros(0), np.zeros(0)
    if eigenpairs is not None:
        values, residuals = numbers("eigenpairs.values", eigenpairs.values, "K"), numbers("eigenpairs.residual_norms", eigenpairs.residual_norms, "K")
    found = np.isfinite(values)
    low, high = (f([*nodes.ravel(), *values[found]]) for f in (min, max))
    if width is None:
        width = (high - low) / 100 or max(abs(high), 1) / 100
    if not 0 < width < np.inf:
        raise ValueError(f"width: expected a positive number, the standard deviation of the blur, got {width}; leave it out for a hundredth of the range")
    width = float(width)  # of NumPy it would be float64
    low, high = low - 4 * width, high + 4 * width
    at = np.linspace(low, high, min(max(math.ceil(5 * (high - low) / width), 400), 20000))
    estimate = density.density(jnp.asarray(at, density.nodes.dtype), width=width)
    mean, error = numbers("density", estimate.value, "L"), numbers("density", estimate.standard_error, "L")
    one = 1 / (density.num_params * width * math.sqrt(2 * math.pi))

    ax = axes(ax)
    style = line_style(0)
    ax.plot(at, mean, color=style["color"], label="density ± standard error")
    ax.fill_between(at, np.maximum(mean - error, one / 10), mean + error, color=style["color"], alpha=0.3, linewidth=0)
    if eigenpairs is not None:
        ax.errorbar(values[found], np.full(found.sum(), one), xerr=residuals[found], label="extreme eigenvalues", **{**point_style(1), "marker": "v"})
    ax.set(xlabel="eigenvalue (nats)", ylabel="share of eigenvalues (per nat)", yscale="log", ylim=(one / 10, 10 * (mean + error).max()))
    legend(ax)
    return ax
