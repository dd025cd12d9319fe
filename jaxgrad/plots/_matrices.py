"""Matrices as heat maps: the Jacobian of softmax, any curvature, inner products of gradients."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.colors import rgb_to_hsv

from jaxgrad import PerExampleGradients
from jaxgrad.plots._drawing import Array, axes, colour_bar, numbers, same_length, whole_ticks

ROOM = 28  # points that a cell must measure to have its number in it


def softmax_jacobian(jacobian: Any, *, ax: Axes | None = None) -> Axes:
    """The entries ∂p_i/∂z_j = p_i (1[i=j] − p_j) as a heat map: purple above 0, orange below (softmax-2, softmax-3).

    Args:
      jacobian: J, (C, C), as of `jaxgrad.softmax_jacobian`; also of `cross_entropy_hessian`, or an array.
      ax: where to draw.

    Raises:
      TypeError, ValueError: it is not one square matrix of numbers.
    """
    ax = _heat_map(ax, _dense("jacobian", jacobian), "∂p_i/∂z_j (per nat)", None)
    ax.set(xlabel="class j of the logit z_j", ylabel="class i of the probability p_i")
    return ax


def matrix(matrix: Any, *, label: str = "entry", limit: float | None = None, ax: Axes | None = None) -> Axes:
    """Any matrix as a heat map, purple above 0, orange below.

    Panels that share a limit need one colour bar: `ax.get_images()[0].colorbar.remove()` takes one away.

    Args:
      matrix: (P, P), an operator with `to_dense()`, such as of `jaxgrad.hessian` over few parameters, or an array.
      label: what an entry is, with its unit, at the colour bar.
      limit: the absolute value of the strongest colour, to share among pictures; by default that of the largest entry.
      ax: where to draw.

    Raises:
      TypeError, ValueError: it is not one square matrix of numbers, or `limit` is not positive.
    """
    ax = _heat_map(ax, _dense("matrix", matrix), label, limit)
    ax.set(xlabel="column", ylabel="row")
    return ax


def gram_matrix(gradients: Any, *, labels: ArrayLike | None = None, cosines: bool = True, ax: Axes | None = None) -> Axes:
    """The inner products ⟨g_n, g_m⟩ of the gradients of single examples as a heat map (psg-1).

    Args:
      gradients: of `jaxgrad.per_example_gradients`, or their Gram matrix, (N, N), as of `linear_cross_entropy_grad_gram`.
      labels: class ids, (N,): the examples are sorted by them, and the classes divided by lines.
      cosines: divide by the norms, for the cosine of the angle between two gradients, 0 where one is 0; without that, few
        large gradients outshine the others.
      ax: where to draw.

    Raises:
      TypeError, ValueError: something is not numbers of these shapes.
    """
    gram = _dense("gradients", gradients.gram() if isinstance(gradients, PerExampleGradients) else gradients)
    if cosines:
        squares = np.diagonal(gram)
        if (squares < 0).any():
            raise ValueError(f"gradients: expected squared norms on the diagonal, got {squares.min():g}; pass a Gram matrix")
        norms = np.sqrt(np.where(squares == 0, 1, squares))
        gram = gram / norms[:, None] / norms[None]
    ids = None if labels is None else numbers("labels", labels, "N")
    if ids is not None:
        same_length("labels", ids, len(gram), "one for each example")
        order = np.argsort(ids, kind="stable")
        gram, ids = gram[order][:, order], ids[order]
    ax = _heat_map(ax, gram, "cosine of g_n and g_m" if cosines else "⟨g_n, g_m⟩ (nats²)", 1.0 if cosines else None)
    ax.set(xlabel="example m", ylabel="example n")
    if ids is not None:
        classes, starts, counts = np.unique(ids, return_index=True, return_counts=True)
        for start in starts[1:]:
            ax.axvline(start - 0.5, color="0.5", linewidth=0.5)
            ax.axhline(start - 0.5, color="0.5", linewidth=0.5)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(starts + (counts - 1) / 2, [f"{c:g}" for c in classes])
        ax.set(xlabel="examples m by class", ylabel="examples n by class")
    return ax


def _dense(name: str, x: Any) -> Array:
    """`x` as one square matrix."""
    dense = numbers(name, x.to_dense() if hasattr(x, "to_dense") else x, "n", "n")
    if dense.shape[0] != dense.shape[1]:
        raise ValueError(f"{name}: expected a square matrix (n, n), got {dense.shape}; check its axes")
    return dense


def _heat_map(ax: Axes | None, values: Array, label: str, limit: float | None) -> Axes:
    """Colours symmetric about 0, with a colour bar, and the numbers where there is room for them."""
    if limit is not None and not 0 < limit < np.inf:
        raise ValueError(f"limit: expected a positive number, got {limit}; leave it out for the largest entry")
    if limit is None:
        limit = float(np.abs(values).max(where=np.isfinite(values), initial=0)) or 1.0
    ax = axes(ax)
    image = ax.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
    colour_bar(ax, image, label)
    whole_ticks(ax.xaxis, ax.yaxis)
    if min(ax.bbox.width, ax.bbox.height) * 72 / ax.figure.dpi > ROOM * len(values):
        for (i, j), value in np.ndenumerate(values):
            is_light = rgb_to_hsv(image.to_rgba(value)[:3])[2] > 0.6
            ax.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize="x-small", color="0.1" if is_light else "0.95")
    return ax
