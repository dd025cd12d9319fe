"""Errors of several functions along the confidence of a row."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from jaxgrad.plots._drawing import axes, legend, neutral, numbers, point_style, same_length

MANY = 1000  # points, from which on a vector format holds an image of them


def ulp_errors(confidence: ArrayLike, errors: Mapping[str, ArrayLike], *, bound: float | None = None, ax: Axes | None = None) -> Axes:
    """Errors in ULP along the confidence of the rows, one kind of points for each name.

    The axis of the errors is linear from 0 to 1 ULP and logarithmic above. A NaN or an infinite error, where no digit
    is right, is at the upper edge.

    Args:
      confidence: (N,), in nats: how far the class is ahead of the others, or −log(1 − p).
      errors: for each name, of a library or a formula, the errors in ULP, (N,), as from `jaxgrad.verify.ulp_errors`.
      bound: what is allowed, in ULP, drawn as a line.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    x = numbers("confidence", confidence, "N")
    found = {name: numbers(f"errors[{name!r}]", error, "N") for name, error in errors.items()}
    for name, error in found.items():
        same_length(f"errors[{name!r}]", error, len(x), "one for each row")
    ax = axes(ax)
    for number, (name, error) in enumerate(found.items()):
        style, finite = {**point_style(number), "markersize": 4, "alpha": 0.7, "rasterized": len(x) > MANY}, np.isfinite(error)
        ax.plot(x[finite], error[finite], label=name, **style)
        if not finite.all():
            ax.plot(x[~finite], np.ones((~finite).sum()), transform=ax.get_xaxis_transform(), clip_on=False, markerfacecolor="none", **style)
    if bound is not None:
        ax.axhline(bound, label=f"bound: {bound:g} ULP", **neutral())
    largest = max([1.0, bound or 0.0, *(error.max(where=np.isfinite(error), initial=0) for error in found.values())])
    ax.set(xlabel="confidence (nats)", ylabel="error (ULP)", ylim=(0, 10 * largest))
    ax.set_yscale("symlog", linthresh=1)
    legend(ax)
    return ax
