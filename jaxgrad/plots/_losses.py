"""The loss along directions in any space: against its Taylor models (taylor-1, hess-5), its curvature, a slice of it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from jaxgrad import TaylorExpansion
from jaxgrad.plots._drawing import Array, axes, colour_bar, legend, line_style, neutral, numbers, same_length


def loss_along(offsets: ArrayLike, expansions: TaylorExpansion, *, ax: Axes | None = None) -> Axes:
    """L(u + tδ) along a direction with its models about u: of first order, with G alone, and with H = G + T (taylor-1).

        expansions = jax.vmap(lambda t: jg.taylor_expansion(model_fn, loss_fn, u, t * δ))(offsets)

    Args:
      offsets: t, (S,).
      expansions: about the same point, with the steps tδ: fields (S,).
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    t, parts = _along("offsets", offsets, expansions)
    ax = axes(ax)
    linear = parts["value"] + parts["linear"]
    lines = {
        "L(u + tδ)": parts["exact"],
        "first order": linear,
        "second order, G alone": linear + parts["gauss_newton"],
        "second order, G + T": linear + parts["gauss_newton"] + parts["residual"],
    }
    return _lines(ax, t, lines, "t, along δ", "loss (nats)")


def curvature_along(offsets: ArrayLike, expansions: TaylorExpansion, *, ax: Axes | None = None) -> Axes:
    """δᵀHδ along a direction, split into δᵀGδ and δᵀTδ (hess-5).

        expansions = jax.vmap(lambda t: jg.taylor_expansion(model_fn, loss_fn, u + t * δ, δ))(offsets)

    Args:
      offsets: t, (S,).
      expansions: about the points u + tδ, with the one step δ: fields (S,).
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    t, parts = _along("offsets", offsets, expansions)
    ax = axes(ax)
    g, rest = 2 * parts["gauss_newton"], 2 * parts["residual"]
    ax.axhline(0, **neutral())
    return _lines(ax, t, {"δᵀHδ": g + rest, "δᵀGδ": g, "δᵀTδ": rest}, "t, along δ", "curvature along δ (nats)")


def taylor_error(step_sizes: ArrayLike, expansions: TaylorExpansion, *, ax: Axes | None = None) -> Axes:
    """The errors of the Taylor models of order 0, 1 and 2 against the size of the step, log–log, beside slopes 1, 2 and 3 (taylor-1).

        expansions = jax.vmap(lambda t: jg.taylor_expansion(model_fn, loss_fn, u, t * δ))(step_sizes)    # ‖δ‖ = 1

    Each slope goes through the smallest step whose error is a hundred times the rounding of L, the lowest line: below that
    it takes float64 to see more.

    Args:
      step_sizes: ‖δ‖, (S,), positive and ascending.
      expansions: about the same point, with steps of these sizes: fields (S,).
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes, or a size is not positive.
    """
    sizes, parts = _along("step_sizes", step_sizes, expansions)
    if (sizes <= 0).any():
        raise ValueError(f"step_sizes: expected positive numbers, for a logarithmic axis, got {sizes.min():g}; pass norms of the steps")
    ax = axes(ax)
    zeroth = parts["exact"] - parts["value"]
    first = zeroth - parts["linear"]
    second = zeroth - (parts["linear"] + (parts["gauss_newton"] + parts["residual"]))
    errors = {name: np.abs(error) for name, error in zip(("zeroth order", "first order", "second order"), (zeroth, first, second), strict=True)}
    rounding = float(jnp.finfo(expansions.exact.dtype).eps * np.abs(parts["exact"]).min())
    for order, error in enumerate(errors.values(), 1):
        anchor = int((error > 100 * rounding).argmax()) if (error > 100 * rounding).any() else -1
        ax.plot(sizes, error[anchor] * (sizes / sizes[anchor]) ** order, label="slopes 1, 2, 3" if order == 1 else "_slope", zorder=1, **neutral())
    ax.axhline(rounding, label="rounding of L", **{**neutral(), "linestyle": ":"})
    _lines(ax, sizes, errors, "size of the step ‖δ‖", "|L(u + δ) − model| (nats)")
    ax.set(xscale="log", ylim=(rounding / 30, None))
    ax.set_yscale("log", nonpositive="mask")
    return ax


def loss_landscape(first: ArrayLike, second: ArrayLike, losses: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """The loss on a plane through θ, such as that of the two largest eigenvectors of H: colours with contour lines; θ is marked.

        pairs = jg.extreme_eigenpairs(H, key, num_largest=2)
        moved = lambda a, b: jax.tree.map(lambda x, v: x + a * v[0] + b * v[1], params, pairs.vectors)
        losses = jax.vmap(lambda a: jax.vmap(lambda b: loss_fn(moved(a, b)))(second))(first)

    Args:
      first: a, (A,), ascending: offsets along the first direction, to the right.
      second: b, (B,), ascending: offsets along the second one, upwards.
      losses: L(θ + a v₁ + b v₂), (A, B), in nats; what is not finite is left out.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    a, b, z = numbers("first", first, "A"), numbers("second", second, "B"), numbers("losses", losses, "A", "B")
    if z.shape != (len(a), len(b)):
        raise ValueError(f"losses: expected shape {(len(a), len(b))}, one for each pair of offsets, got {z.shape}; transpose them if that fits")
    ax = axes(ax)
    image = ax.pcolormesh(a, b, z.T, shading="nearest", cmap="viridis", rasterized=True)
    lines = ax.contour(a, b, np.ma.masked_invalid(z.T), colors="0.95", linewidths=0.8)
    cross = ax.plot(0, 0, marker="+", color="0.95", markersize=10)
    for light in (lines, *ax.clabel(lines, fontsize="x-small"), *cross):
        light.set_path_effects([withStroke(linewidth=2, foreground="0.2")])  # on what is light too
    colour_bar(ax, image, "loss (nats)")
    ax.set(xlabel="offset along v₁", ylabel="offset along v₂")
    return ax


def _along(name: str, at: ArrayLike, expansions: TaylorExpansion) -> tuple[Array, dict[str, Array]]:
    """The places, (S,), and the terms of the expansions there."""
    if not isinstance(expansions, TaylorExpansion):
        raise TypeError(f"expansions: expected a TaylorExpansion, got {type(expansions).__name__}; make it with jax.vmap over jaxgrad.taylor_expansion")
    places = numbers(name, at, "S")
    parts = {part: numbers(f"expansions.{part}", getattr(expansions, part), "S") for part in ("value", "linear", "gauss_newton", "residual", "exact")}
    for part, values in parts.items():
        same_length(f"expansions.{part}", values, len(places), f"one for each of the {name}")
    return places, parts


def _lines(ax: Axes, x: Array, lines: dict[str, Any], xlabel: str, ylabel: str) -> Axes:
    for number, (name, y) in enumerate(lines.items()):
        ax.plot(x, y, label=name, markevery=max(len(x) // 12, 1), **line_style(number))
    ax.set(xlabel=xlabel, ylabel=ylabel)
    legend(ax)
    return ax
