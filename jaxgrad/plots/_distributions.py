"""Distributions, and what each class or point adds to KL in both directions (kl-1, kl-3, kl-6)."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes

from jaxgrad.plots._drawing import Array, axes, legend, line_style, numbers, same_length, whole_ticks


def distributions(probs: Mapping[str, ArrayLike], *, at: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Distributions beside each other: bars over classes, or densities as lines over the points `at`.

    With a mixture and what fits it best in either direction of KL, it shows which covers the modes and which seeks one.

    Args:
      probs: for each name a distribution, (C,), or the values of a density at the M points, (M,).
      at: the points x, (M,), ascending, for densities.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    found = {name: numbers(f"probs[{name!r}]", p, "C" if at is None else "M") for name, p in probs.items()}
    if not found:
        raise ValueError("probs: expected at least one distribution, got none; pass {name: probabilities}")
    x = _places(at, len(next(iter(found.values()))))
    for name, p in found.items():
        same_length(f"probs[{name!r}]", p, len(x), "one number for each class or point")
    ax = axes(ax)
    _draw(ax, x, found, at is None)
    ax.set(xlabel="class" if at is None else "x", ylabel="probability" if at is None else "density (per unit of x)")
    legend(ax)
    return ax


def kl_contributions(p: ArrayLike, q: ArrayLike, *, at: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """What each class adds to KL(p‖q), p log(p/q), and to KL(q‖p), q log(q/p), in nats (kl-1, kl-3).

    The legend has the sums, both KL. An infinite term, of a class that one side has and the other has not, is a sign
    at the upper edge. Of densities it is the integrands that are drawn, in nats per unit of x.

    Args:
      p, q: distributions (C,), or the values of two densities at the M points, (M,).
      at: the points x, (M,), ascending, for densities; KL is the integral by trapezoids then.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    first, second = (numbers(name, values, "C" if at is None else "M") for name, values in (("p", p), ("q", q)))
    same_length("q", second, len(first), "as many as in p")
    x = _places(at, len(first))
    found = {}
    for name, a, b in (("p‖q", first, second), ("q‖p", second, first)):
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(a == 0, 0, a * np.log(a / b))
        total = terms.sum() if at is None else np.trapezoid(terms, x)
        found[f"KL({name}) = {total:.3g} nats"] = terms
    ax = axes(ax)
    _draw(ax, x, found, at is None)
    ax.axhline(0, color=ax.spines["bottom"].get_edgecolor(), linewidth=ax.spines["bottom"].get_linewidth())
    ax.set(xlabel="class" if at is None else "x", ylabel="contribution (nats)" if at is None else "contribution (nats per unit of x)")
    legend(ax)
    return ax


def _places(at: ArrayLike | None, length: int) -> Array:
    """The points, ascending, or the numbers of the classes."""
    if at is None:
        return np.arange(length, dtype=np.float64)
    x = numbers("at", at, "M")
    same_length("at", x, length, "a point for each value")
    if (np.diff(x) <= 0).any():
        raise ValueError("at: expected ascending points, got others; sort the points, and the densities with them")
    return x


def _draw(ax: Axes, x: Array, found: Mapping[str, Array], of_classes: bool) -> None:
    """Groups of bars, hatched so that they differ without colour, or lines."""
    width, hatches = 0.8 / len(found), ("", "///", "...", "xx", "\\\\\\", "++")
    for number, (name, values) in enumerate(found.items()):
        style, finite = line_style(number), np.isfinite(values)
        if of_classes:
            left = x + (number - (len(found) - 1) / 2) * width
            ax.bar(
                left, np.where(finite, values, 0), width, label=name, color=style["color"], hatch=hatches[number % len(hatches)], edgecolor=ax.get_facecolor()
            )
        else:
            left = x
            ax.plot(x, np.where(finite, values, np.nan), label=name, markevery=max(len(x) // 12, 1), **style)
        if not finite.all():
            sign = {**style, "marker": r"$\infty$", "markersize": 12, "linestyle": "none"}
            ax.plot(left[~finite], np.full((~finite).sum(), 0.95), transform=ax.get_xaxis_transform(), **sign)
    if of_classes:
        whole_ticks(ax.xaxis)
