"""The kept results: one JSON file, in which a run replaces the benchmarks that it ran and leaves the others as they are."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._report import Result, Setting, Table

FILE = Path(__file__).parent / "results.json"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A result as numbers and as its table, with the setting it was measured in and the seconds that took; no date."""

    benchmark: str
    title: str
    seconds: float
    setting: Setting
    cells: Table
    numbers: Mapping[str, Any]

    @classmethod
    def of(cls, result: Result, setting: Setting, seconds: float) -> "Kept":
        """Of a result that was just measured."""
        return cls(result.benchmark, result.title, round(seconds, 1), setting, result.table(), _rounded(dataclasses.asdict(result)))  # type: ignore[call-overload]

    def table(self) -> Table:
        """As it was shown when it was measured."""
        return self.cells


def merged(old: Sequence[Kept], new: Sequence[Kept], order: Sequence[str]) -> list[Kept]:
    """The new results and, of the benchmarks that are not among them, the old ones, benchmarks in the given order."""
    measured = {result.benchmark for result in new}
    kept = [*new, *(result for result in old if result.benchmark not in measured and result.benchmark in order)]
    return sorted(kept, key=lambda result: order.index(result.benchmark))


def write(file: Path, results: Sequence[Kept]) -> None:
    """Each setting once, and each result, a line each, with the number of its setting; null where a number is not finite."""
    settings = list(dict.fromkeys(json.dumps(dataclasses.asdict(result.setting), allow_nan=False) for result in results))
    lines = []
    for result in results:
        number = settings.index(json.dumps(dataclasses.asdict(result.setting)))
        lines.append(json.dumps({**dataclasses.asdict(result), "setting": number}, ensure_ascii=False, allow_nan=False))
    text = ",\n".join
    file.write_text(f'{{"settings": [\n{text(settings)}\n], "results": [\n{text(lines)}\n]}}\n', encoding="utf-8")


def read(file: Path) -> list[Kept]:
    """What `write` wrote; nothing if there is no such file."""
    if not file.exists():
        return []
    document = json.loads(file.read_text(encoding="utf-8"))
    settings = [Setting(**setting) for setting in document["settings"]]
    return [Kept(**{**result, "setting": settings[result["setting"]], "cells": Table(**result["cells"])}) for result in document["results"]]


def _rounded(x: Any) -> Any:
    """Floats to six digits, as the clock has no more, and None for one that is not finite."""
    if isinstance(x, dict):
        return {key: _rounded(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_rounded(value) for value in x]
    if isinstance(x, float):
        return float(f"{x:.6g}") if math.isfinite(x) else None
    return x
