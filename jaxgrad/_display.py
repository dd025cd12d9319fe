"""How operators and results show themselves: a short `repr`, and a small table in a notebook, never a dump of arrays.

Of an array there is its dtype and shape, and what it holds only where that is known and small: in `jit` it is not.
"""

import dataclasses
import html
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST_NUMBERS = 8  # of an array to show
MOST_TO_SCAN = 10**6  # numbers of an array to look for the range of
MOST_TEXT = 200  # characters of a value


class Displayed:
    """What shows itself as a table of names and values: by default the fields of a dataclass, of arrays of any shapes (...)."""

    def __init_subclass__(cls) -> None:
        """Hand the `repr` down: a dataclass writes one of its own, but not over one that its class has."""
        super().__init_subclass__()
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def _rows(self) -> Iterable[tuple[str, Any]]:
        """Names and values, in the order to show them in."""
        return self._fields()

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]  # type: ignore[arg-type]

    def _table(self, *, ranges: bool = True) -> tuple[str, list[tuple[str, str]]]:
        """The title, and names and values as text."""
        try:
            rows = list(self._rows())
        except (AttributeError, TypeError):  # a tree of something else than arrays, such as of their shapes
            rows = self._fields()
        return type(self).__name__.lstrip("_"), [(name, short(value, ranges=ranges)) for name, value in rows]

    def __repr__(self) -> str:
        """The class with its rows, on one line."""
        title, rows = self._table(ranges=False)
        return f"{title}({', '.join(f'{name}={value}' for name, value in rows)})"

    def _repr_html_(self) -> str:
        """The table as HTML: IPython calls this."""
        title, rows = self._table()
        cell = lambda tag, text: f'<{tag} style="text-align: left">{html.escape(text)}</{tag}>'
        body = "".join(f"<tr>{cell('th', name)}{cell('td', value)}</tr>" for name, value in rows)
        return f"<table><thead><tr>{cell('th', title)}<th></th></tr></thead><tbody>{body}</tbody></table>"

    def _repr_markdown_(self) -> str:
        """The table as Markdown: IPython calls this."""
        title, rows = self._table()
        escape = lambda text: html.escape(text, quote=False).replace("|", r"\|")
        return "\n".join([f"| {title} | |", "| --- | --- |", *(f"| {escape(name)} | {escape(value)} |" for name, value in rows)])


def short(value: Any, *, ranges: bool = False) -> str:
    """A value in a few words on one line: of an array its numbers if they are few and at hand, or else its dtype and shape, and with `ranges` their bounds."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, Displayed):
        text = repr(value)
    elif isinstance(value, float):
        text = f"{value:.8g}"
    elif isinstance(value, np.dtype):
        text = value.name
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        text = _of_array(value, ranges)
    elif jax.tree_util.all_leaves([value]):
        text = repr(value)
    else:
        text = repr(jax.tree.map(_Text, value))
    text = " ".join(text.split())
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"


class _Text:
    """A leaf of a pytree that is shown in a few words."""

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf

    def __repr__(self) -> str:
        return short(self.leaf)


def _of_array(x: Any, ranges: bool) -> str:
    kind = f"{x.dtype}[{','.join(map(str, x.shape))}]"
    is_number = any(jnp.issubdtype(x.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    is_there = isinstance(x, np.ndarray | np.generic) or (
        isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_fully_addressable and not x.is_deleted()
    )
    if not (is_number and is_there) or (x.size > MOST_NUMBERS and not (ranges and x.size <= MOST_TO_SCAN)):
        return kind
    values = np.asarray(x)
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(np.float64)  # 16-bit numbers have no format
    if values.ndim == 0:
        return f"{values[()]:.8g}" if values.dtype == np.float64 else str(values)
    if values.ndim == 1 and values.size <= MOST_NUMBERS:
        return f"[{', '.join(map(_number, values))}]"
    return f"{kind} from {_number(values.min())} to {_number(values.max())}" if ranges and values.size else kind


def _number(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)
