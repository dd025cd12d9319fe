"""The rows of a run as a table for the terminal, as Markdown and as JSON."""

import dataclasses
import json
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
from rich.table import Table
from rich.text import Text

from jaxgrad.verify._run import Row

_HEADINGS = ("ID", "formula", "autodiff: ordinary", "autodiff: worst", "closed form", "public function", "contract", "ms", "verdict")
NOTE = (
    "Errors are the largest over all examples, in ULP. autodiff: JAX through the plain definition, on ordinary rows (in ULP at the "
    "largest component of the row) and anywhere; closed form and public function (JAX through jaxgrad's own) must be within the contract "
    "everywhere. ms: autodiff / closed form, once over the batch."
)


def table(rows: Sequence[Row]) -> Table:
    """A rich table, one row for each identity, with what failed below its formula."""
    drawn = Table(show_lines=False, pad_edge=False)
    for heading in _HEADINGS:
        drawn.add_column(heading, justify="left" if heading in ("ID", "formula", "verdict") else "right", overflow="fold")
    for row in rows:
        formula = Text(row.formula)
        formula.append(f"\n{row.shapes}: {row.num_examples} examples judged, {row.num_mpmath} of them by mpmath", style="dim")
        for fault in faults(row):
            formula.append(f"\n{fault}", style="red")
        cells = _cells(row)
        drawn.add_row(cells[0], formula, *cells[2:-1], Text(cells[-1], style="green" if row.holds else "bold red"))
    return drawn


def markdown(rows: Sequence[Row], summary: str) -> str:
    """A Markdown document with the table, the faults, the summary and the versions."""
    lines = [f"| {' | '.join(_HEADINGS)} |", f"|{' --- |' * len(_HEADINGS)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    lines += ["", *(f"- {row.id}: {fault}" for row in rows for fault in faults(row)), summary, "", NOTE, "", versions(), ""]
    return "\n".join(lines)


def as_json(rows: Sequence[Row], settings: dict[str, Any], summary: str) -> str:
    """Everything that was found, as JSON; a number that is not finite is written as a string."""
    found = [{**dataclasses.asdict(row), "holds": row.holds} for row in rows]
    return dump({"summary": summary, "settings": settings, "versions": versions(), "rows": found})


def dump(document: dict[str, Any]) -> str:
    """JSON with numbers that are not finite as strings."""
    return json.dumps(_finite(document), indent=1, ensure_ascii=False) + "\n"


def faults(row: Row) -> list[str]:
    """What keeps a row from holding, a line each."""
    found = [
        f"{name}: {worst.ulp:.3g} ULP > {bound:g} at {worst.place}: computed {worst.computed:.9g}, exact {worst.exact:.9g}"
        for name, worst, bound in (("closed form", row.closed, row.closed_bound), ("public function", row.public, row.public_bound))
        if not worst.ulp <= bound
    ]
    if not row.plain_agrees:
        found.append(f"the plain definition disagrees on ordinary rows: {row.autodiff_ordinary:.3g} ULP at the largest component")
    return found + [f"law broken: {law}" for law in row.broken_laws]


def versions() -> str:
    """Python, jax, jaxlib and the backend."""
    return f"Python {platform.python_version()}, jax {jax.__version__}, jaxlib {version('jaxlib')}, {jax.default_backend()}"


def _cells(row: Row) -> tuple[str, ...]:
    bounds = f"{row.closed_bound:g}" if row.closed_bound == row.public_bound else f"{row.closed_bound:g} / {row.public_bound:g}"
    return (
        row.id,
        row.formula,
        "-" if row.autodiff_ordinary is None else ulp(row.autodiff_ordinary),
        ulp(row.autodiff_worst),
        ulp(row.closed.ulp),
        ulp(row.public.ulp),
        bounds,
        f"{row.autodiff_ms:.2f} / {row.closed_ms:.2f}",
        "holds" if row.holds else "FAILS",
    )


def ulp(error: float) -> str:
    return f"{error:.2f}" if error < 100 else f"{error:.0f}" if error < 1e4 else f"{error:.1e}" if math.isfinite(error) else "no digit"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
