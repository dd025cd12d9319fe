"""What happens along a training: the largest eigenvalues with the limit of stability, gradient norms of several optimisers."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from jaxgrad.plots._drawing import axes, legend, line_style, neutral, numbers, same_length


def top_eigenvalues(steps: ArrayLike, eigenvalues: ArrayLike, *, learning_rate: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """The largest eigenvalues of the Hessian along a training, and 2/η, above which gradient descent is not stable.

    Where 2/η is more than twice the largest eigenvalue all the time, the axis leaves it out, and the legend says so.

    Args:
      steps: (S,), the number of the step at which each was found.
      eigenvalues: (S,), as of `jaxgrad.sharpness`, or (S, K) for the K largest, the first the largest.
      learning_rate: η, a number, or (S,) for a schedule.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes, or a learning rate is not positive.

    Source: Cohen et al. 2021, arXiv:2103.00065.
    """
    x = numbers("steps", steps, "S")
    values = numbers("eigenvalues", eigenvalues, *("S", "K")[: max(np.ndim(eigenvalues), 1)]).reshape(len(np.asarray(eigenvalues)), -1)
    same_length("eigenvalues", values, len(x), "one row for each step")
    rate = None if learning_rate is None else numbers("learning_rate", learning_rate, *["S"] * np.ndim(learning_rate))
    if rate is not None and rate.ndim:
        same_length("learning_rate", rate, len(x), "one for each step")
    if rate is not None and (rate <= 0).any():
        raise ValueError(f"learning_rate: expected positive numbers, got {rate.min():g}; leave it out for no line at 2/η")
    ax = axes(ax)
    for number, column in enumerate(values.T):
        ax.plot(x, column, label=f"λ{_subscript(number + 1)}", markevery=max(len(x) // 12, 1), **line_style(number))
    if rate is not None:
        limit, finite = 2 / rate, np.isfinite(values)
        least, largest = (f(values, where=finite, initial=0) for f in (np.min, np.max))
        is_far = 0 < 2 * largest < limit.min()
        name = f"2/η{'' if rate.ndim else f' = {limit:.3g}'}{', above the axis' if is_far else ''}"
        ax.plot(x, np.broadcast_to(limit, x.shape), label=name, **neutral())
        if is_far:
            ax.set_ylim(1.25 * least, 1.25 * largest)
    ax.set(xlabel="step", ylabel="eigenvalue of the Hessian (nats)")
    legend(ax)
    return ax


def convergence(
    gradient_norms: Mapping[str, ArrayLike], *, costs: Mapping[str, ArrayLike] | None = None, unit: str = "iteration", ax: Axes | None = None
) -> Axes:
    """The gradient norm of several optimisers on a logarithmic axis: a straight line converges linearly, a bend down faster.

    Where one goes more than ten times as far as another, the axis of the costs is logarithmic beyond the first power of
    ten that the shorter does not pass.

    Args:
      gradient_norms: for each name ‖g‖ before the first iteration and after each, (S,); S may differ.
      costs: for each name what had been spent by then, (S,), such as seconds or products; by default 0, 1, 2, …
      unit: what the costs are counted in.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes, or a name has no costs.
    """
    found = {name: numbers(f"gradient_norms[{name!r}]", norms, "S") for name, norms in gradient_norms.items()}
    if costs is not None and set(costs) != set(found):
        raise ValueError(f"costs: expected the names {sorted(found)}, got {sorted(costs)}; give all optimisers or none")
    places = {
        name: np.arange(len(norms), dtype=np.float64) if costs is None else numbers(f"costs[{name!r}]", costs[name], "S") for name, norms in found.items()
    }
    for name, norms in found.items():
        same_length(f"costs[{name!r}]", places[name], len(norms), "one for each norm")
    ax = axes(ax)
    for number, (name, norms) in enumerate(found.items()):
        ax.plot(places[name], norms, label=name, markevery=max(len(norms) // 12, 1), **line_style(number))
    ax.set(xlabel=unit, ylabel="gradient norm ‖g‖ (nats)")
    ax.set_yscale("log", nonpositive="mask")
    shortest, longest = (f((place.max() for place in places.values()), default=0) for f in (min, max))
    if 0 < 10 * shortest < longest:
        ax.set_xscale("symlog", linthresh=10 ** np.ceil(np.log10(shortest)))
        ax.set_xlim(left=0)
    legend(ax)
    return ax


def _subscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
