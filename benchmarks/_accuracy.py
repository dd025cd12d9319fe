"""The yardstick of accuracy: contenders on the same float32 arrays, and how far each is from the exact answers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks._harness import Effort
from benchmarks._report import Table

DIGITS = 80
FLOAT32 = np.finfo(np.float32)

Contender = Callable[..., Any]  # of the arrays of a block


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows with the same number of classes C: arrays with an axis of rows, the first (N, C), and the exact answers."""

    arrays: tuple[np.ndarray, ...]
    kinds: Sequence[str]  # (N,)
    exact: Mapping[str, np.ndarray]  # float64, rounded from 80 digits: 2^-29 of a float32 ULP
    scale: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)  # where an ULP is taken at this, if larger

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.arrays[0].shape[-1])


@dataclasses.dataclass(frozen=True)
class AccuracyCase:
    """One quantity, and those who compute it."""

    benchmark: str
    title: str
    contenders: Mapping[str, Contender]
    suite: Callable[[], Sequence[Block]]

    def measure(self, effort: Effort) -> "AccuracyResult":
        """Compare; rounding errors need no second round."""
        del effort
        suite = self.suite()
        rows = [Row.of(name, [_errors(block, self.title, contender) for block in suite]) for name, contender in self.contenders.items()]
        return AccuracyResult(self.benchmark, self.title, sum(block.exact[self.title].size for block in suite), tuple(rows))


@dataclasses.dataclass(frozen=True)
class Errors:
    """The errors of one contender on one block, (N, answers a row) each."""

    num_classes: int
    kinds: Sequence[str]
    ulp: np.ndarray  # NaN where the answer is
    lost: np.ndarray  # the exact zeros
    negative: np.ndarray | None  # counted for quantities with one value a row


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender: the largest error of a number and where, and how many answers are zeros, negative or NaN and must not be."""

    contender: str
    max_ulp: float
    worst: str
    median_ulp: float
    zeros: int
    negative: int | None
    nan: int

    @classmethod
    def of(cls, contender: str, blocks: Sequence[Errors]) -> "Row":
        """Over all blocks."""
        largest = [np.fmax.reduce(errors.ulp, axis=-1, initial=0) for errors in blocks]
        at = max(range(len(blocks)), key=lambda i: float(largest[i].max()))
        negative = [int(errors.negative.sum()) for errors in blocks if errors.negative is not None]
        return cls(
            contender=contender,
            max_ulp=float(largest[at].max()),
            worst=f"{blocks[at].kinds[int(largest[at].argmax())]}, C = {blocks[at].num_classes}",
            median_ulp=float(np.nanmedian(np.concatenate([errors.ulp.ravel() for errors in blocks]))),
            zeros=sum(int(errors.lost.sum()) for errors in blocks),
            negative=sum(negative) if negative else None,
            nan=sum(int(np.isnan(errors.ulp).sum()) for errors in blocks),
        )


@dataclasses.dataclass(frozen=True)
class AccuracyResult:
    """The contenders for one quantity."""

    benchmark: str
    title: str
    answers: int
    rows: tuple[Row, ...]

    def table(self) -> Table:
        """One line a contender; negative answers where they are counted."""
        headers = (f"{self.answers} answers, float32", "max ULP", "at", "median ULP", "zeros", "negative", "NaN")
        rows = []
        for row in self.rows:
            counts = ("" if count is None else str(count) for count in (row.zeros, row.negative, row.nan))
            rows.append((row.contender, f"{row.max_ulp:.3g}", row.worst, f"{row.median_ulp:.2g}", *counts))
        kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
        return Table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])


def as_float64(answers: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Numbers of mpmath, or sequences of them, rounded to float64."""
    return {quantity: np.array(answer, dtype=np.float64) for quantity, answer in answers.items()}


def stacked(answers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The answers of every row, (N, ...) for each quantity."""
    return {quantity: np.stack([answer[quantity] for answer in answers]) for quantity in answers[0]}


def _errors(block: Block, quantity: str, contender: Contender) -> Errors:
    computed, exact = np.asarray(contender(*block.arrays)), block.exact[quantity]
    if computed.dtype != np.float32 or computed.shape != exact.shape:
        raise ValueError(f"{quantity}: expected float32 of shape {exact.shape}, got {computed.dtype} of shape {computed.shape}; correct the contender")
    negligible = 100 * block.num_classes * float(FLOAT32.tiny)
    wide, exact = computed.astype(np.float64), np.where(np.abs(exact) < negligible, 0, exact)
    size = np.maximum(np.abs(np.where(exact == 0, wide, exact)), block.scale.get(quantity, 0))
    _, exponent = np.frexp(np.clip(np.nan_to_num(size), FLOAT32.tiny, FLOAT32.max))
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        ulp = np.abs(wide - exact) / np.ldexp(1.0, exponent - 1 - FLOAT32.nmant)
    forgiven = (wide == exact) | ((exact == 0) & (np.abs(wide) < negligible))
    per_row = lambda x: x.reshape(len(block.kinds), -1)
    return Errors(
        num_classes=block.num_classes,
        kinds=block.kinds,
        ulp=per_row(np.where(forgiven, 0, ulp)),
        lost=per_row((wide == 0) & (exact != 0)),
        negative=per_row((wide < 0) & (exact >= 0)) if exact.ndim == 1 else None,
    )
