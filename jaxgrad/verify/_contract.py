"""The accuracy contract, measured: every function, in every dtype, over generated rows of many widths."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identities import identities
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._report import dump, ulp, versions
from jaxgrad.verify._routes import pairwise_scale
from jaxgrad.verify._run import Worst, run
from jaxgrad.verify._suites import first_rows, stress_examples

WIDTHS = {1: 0.02, 2: 0.4, 10: 0.5, 100: 0.08, 1000: 0}  # numbers of classes, and the share of the rows
MIN_ROWS = 12  # of a width, and all there are of the widest
HEADINGS = ("quantity", "formula", "dtype", "rows", "autodiff, plain", "closed form", "public function", "contract", "worst at")
DENSE = ("softmax-2", "hess-1", "hess-8")
MAX_DENSE = 12  # classes up to which dense matrices are measured


def quantities() -> list[Identity]:
    """What the contract bounds: the identities in the logits, and what has no ID of its own."""
    sum_of = lambda function: lambda *arguments: function(*arguments).sum()
    hessian_product = lambda loss: lambda z, y, v: jax.jvp(jax.grad(lambda z: sum_of(loss)(z, y)), (z,), (v,))[1]
    return [
        *[identity for identity in identities() if not (identity.of_chain or identity.of_real_rows)],
        Identity(
            "log_softmax",
            "z − log Σ e^z",
            ("logits",),
            autodiff=lambda z: jnp.log(jax.vmap(plain.softmax)(z)),
            closed=jg.log_softmax,
            public=jax.vmap(jg.log_softmax),
            arbiter=exact.log_softmax,
            bound=4,
        ),
        Identity(
            "logsumexp",
            "log Σ e^z",
            ("logits",),
            autodiff=lambda z: jnp.log(jnp.exp(z).sum(-1)),
            closed=jg.logsumexp,
            public=jax.vmap(jg.logsumexp),
            arbiter=exact.logsumexp,
            scale=lambda z: np.maximum(np.abs(z.max(-1)), np.abs(exact.logsumexp(z - z.max(-1, keepdims=True)))),
            bound=3,
        ),
        Identity(
            "entropy",
            "−Σ p log p",
            ("logits",),
            autodiff=lambda z: -(jax.nn.softmax(z) * jnp.log(jax.nn.softmax(z))).sum(-1),
            closed=jg.entropy,
            public=jax.vmap(jg.entropy),
            arbiter=exact.entropy,
            bound=4,
        ),
        Identity(
            "entropy, gradient",
            "−J z",
            ("logits",),
            autodiff=jax.grad(lambda z: -(jax.nn.softmax(z) * jnp.log(jax.nn.softmax(z))).sum()),
            closed=jg.entropy_grad,
            public=jax.grad(sum_of(jg.entropy)),
            arbiter=exact.entropy_grad,
            scale=_entropy_scale,
            bound=6,
        ),
        Identity(
            "ce, HVP",
            "Σy · J v",
            ("logits", "targets", "tangents"),
            autodiff=hessian_product(jax.vmap(plain.cross_entropy)),
            closed=lambda z, y, v: jg.cross_entropy_hessian(z, y) @ v,
            public=hessian_product(jg.cross_entropy),
            arbiter=lambda z, y, v: y.sum(-1, keepdims=True) * exact.jacobian_product(z, v),
            scale=lambda z, y, v: y.sum(-1, keepdims=True) * pairwise_scale(z, v),
            bound=6,
        ),
    ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """The largest errors of one quantity in one dtype, over all widths."""

    quantity: str
    formula: str
    dtype: str
    num_rows: int
    closed: Worst
    closed_bound: float
    public: Worst
    public_bound: float
    autodiff_worst: float  # the plain definition under JAX, for comparison
    broken_laws: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Both within their bounds, the laws kept."""
        return self.closed.ulp <= self.closed_bound and self.public.ulp <= self.public_bound and not self.broken_laws


def measure(dtype: jnp.dtype, seed: int, num_rows: int, step: Callable[[str], None]) -> list[Cell]:
    """A `Cell` for each quantity, over about `num_rows` rows of 1 to 1000 classes, every one against mpmath."""
    suites = {}
    for num_classes, share in WIDTHS.items():
        wanted = max(MIN_ROWS, round(share * num_rows))
        rng = np.random.default_rng([seed, num_classes])
        suites[num_classes] = first_rows(stress_examples(num_classes, dtype, rng, -(-wanted // 40)), wanted, rng)
    cells = []
    for quantity in quantities():
        step(f"{quantity.id} in {dtype.name}")
        widths = [c for c in suites if c <= MAX_DENSE or quantity.id not in DENSE]
        rows = [run([quantity], suites[c], dtype=dtype, seed=seed)[0] for c in widths]
        cells.append(
            Cell(
                quantity=quantity.id,
                formula=quantity.formula,
                dtype=dtype.name,
                num_rows=sum(row.num_examples for row in rows),
                closed=_worst([row.closed for row in rows], widths),
                closed_bound=rows[0].closed_bound,
                public=_worst([row.public for row in rows], widths),
                public_bound=rows[0].public_bound,
                autodiff_worst=max(row.autodiff_worst for row in rows),
                broken_laws=tuple(sorted({law for row in rows for law in row.broken_laws})),
            )
        )
    return cells


def _worst(found: Sequence[Worst], widths: Sequence[int]) -> Worst:
    """The largest error, with the width at which it was found."""
    worst, width = max(zip(found, widths, strict=True), key=lambda pair: pair[0].ulp)
    return dataclasses.replace(worst, place=f"C = {width}, {worst.place}")


def table(cells: Sequence[Cell]) -> Table:
    """A rich table, one row for each quantity and dtype."""
    drawn = Table(pad_edge=False)
    for heading in HEADINGS:
        drawn.add_column(heading, overflow="fold", justify="left" if heading in ("quantity", "formula", "dtype", "worst at") else "right")
    for cell in cells:
        drawn.add_row(*_written(cell), style=None if cell.holds else "bold red")
    return drawn


def markdown(cells: Sequence[Cell], summary: str) -> str:
    """The table in Markdown, the summary and the versions."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}", *(f"| {' | '.join(_written(cell))} |" for cell in cells)]
    return "\n".join([*lines, "", summary, "", versions(), ""])


def as_json(cells: Sequence[Cell], summary: str) -> str:
    """The cells as JSON."""
    return dump({"summary": summary, "versions": versions(), "cells": [{**dataclasses.asdict(cell), "holds": cell.holds} for cell in cells]})


def _written(cell: Cell) -> tuple[str, ...]:
    bounds = f"{cell.closed_bound:g}" if cell.closed_bound == cell.public_bound else f"{cell.closed_bound:g} / {cell.public_bound:g}"
    worst = max(cell.closed, cell.public, key=lambda w: w.ulp)
    where = f"{worst.place}: {worst.computed:.9g} for {worst.exact:.9g}"
    laws = "".join(f"; broken: {law}" for law in cell.broken_laws)
    return (
        cell.quantity,
        cell.formula,
        cell.dtype,
        str(cell.num_rows),
        ulp(cell.autodiff_worst),
        ulp(cell.closed.ulp),
        ulp(cell.public.ulp),
        bounds,
        where + laws,
    )


def _entropy_scale(z: np.ndarray) -> np.ndarray:
    """p_j Σ_i p_i |z_j − z_i|, (N, C)."""
    finite = np.where(np.isinf(z), 0, z)
    return pairwise_scale(z, finite)
