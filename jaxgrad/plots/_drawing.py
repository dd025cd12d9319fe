"""What every picture shares: axes to draw on, lines that can be told apart, and numbers that can be drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator

Array = np.ndarray

# The palette of Okabe and Ito, https://jfly.uni-koeln.de/color, those first that have a contrast of 3 to 1 on white as on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")


def line_style(number: int) -> dict[str, Any]:
    """Colour, marker and dash of a line: no two of the first 42 share both colour and marker."""
    return {**point_style(number), "linestyle": DASHES[number % len(DASHES)], "markersize": 4}


def point_style(number: int) -> dict[str, Any]:
    """The same for points, without a line."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "linestyle": "none"}


def neutral() -> dict[str, Any]:
    """A thin dashed line in the colour of the text, for what is no data."""
    return {"color": mpl.rcParams["text.color"], "linestyle": (0, (4, 3)), "linewidth": 1}


def axes(ax: Axes | None) -> Axes:
    """The given axes, or new ones in a figure of their own."""
    if ax is None:
        return plt.subplots(layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected one matplotlib Axes, got {type(ax).__name__}; pass figure.subplots(), or one of the axes in an array of them")
    return ax


def colour_bar(ax: Axes, image: Any, label: str) -> None:
    """The scale of an image beside it, as high as the axes."""
    figure: Any = ax.get_figure()
    figure.colorbar(image, cax=ax.inset_axes((1.04, 0, 0.05, 1)), label=label)


def legend(ax: Axes) -> None:
    """The names of the lines, small and with the data shining through."""
    ax.legend(loc="best", fontsize="small", framealpha=0.7)


def whole_ticks(*each: Axis) -> None:
    """Ticks at whole numbers only."""
    for axis in each:
        axis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))


def numbers(name: str, x: Any, *sizes: str) -> Array:
    """`x` as float64 with one axis of at least one entry for each of the sizes, which are for the message."""
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{name}: expected concrete numbers, got traced ones; draw outside jit, grad and vmap")
    array = np.asarray(x)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name}: expected real numbers, got {type(x).__name__ if array.dtype == object else array.dtype}; pass a JAX or NumPy array")
    if array.ndim != len(sizes) or not array.size:
        raise ValueError(f"{name}: expected a shape ({', '.join(sizes)}{',' * (len(sizes) == 1)}) with nothing empty, got {array.shape}; check its axes")
    return array.astype(np.float64)


def same_length(name: str, x: Array, length: int, meaning: str) -> None:
    """Raise unless the first axis of `x` has this length."""
    if len(x) != length:
        raise ValueError(f"{name}: expected {length}, {meaning}, got {len(x)}; check its first axis")
