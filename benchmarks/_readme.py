"""What is written from the kept results: a section of the README, between two comments, and every table in results.md."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._harness import three_digits
from benchmarks._report import Table, markdown, table_markdown
from benchmarks._results import FILE, Kept

README, TABLES = Path(__file__).parents[1] / "README.md", FILE.with_suffix(".md")
BEGIN, END = "<!-- begin: python -m benchmarks --readme -->\n", "<!-- end: python -m benchmarks --readme -->\n"


def update(results: Sequence[Kept], explanations: Mapping[str, str]) -> None:
    """Write both; the explanations are those of the benchmarks."""
    README.write_text(with_section(README.read_text(encoding="utf-8"), section(results)), encoding="utf-8")
    TABLES.write_text(tables(results, explanations), encoding="utf-8")


def tables(results: Sequence[Kept], explanations: Mapping[str, str]) -> str:
    """Every table."""
    return markdown([(result.setting, result) for result in results], explanations)


def with_section(readme: str, text: str) -> str:
    """The README with this text between the two comments."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md: expected the lines {BEGIN.strip()} and {END.strip()}, in this order; put them where the tables belong")
    return f"{before}{BEGIN}{text}{END}{after}"


def section(results: Sequence[Kept]) -> str:
    """The setting, every promise of speed with what became of it, and resident memory."""
    resident = [result for result in results if result.benchmark == "memory"]
    parts = [_settings(results), _speed([result for result in results if _promises(result)]), *([_memory(resident)] if resident else [])]
    return "\n{}\n\n".format("\n\n".join(parts))


def _settings(results: Sequence[Kept]) -> str:
    """The machine and the versions, and how busy it was."""
    settings = [result.setting for result in results]
    peers = [", ".join(f"{name} {version}" for name, version in setting.peers.items() if version) for setting in settings]
    machine = "{0.processor}, {0.cores} cores; python {0.python}, jax {0.jax}, {1}; {0.dtype}.".format
    loads = [setting.load_average for setting in settings]
    return "\n".join([*dict.fromkeys(map(machine, settings, peers)), f"Load average {min(loads):g} to {max(loads):g} at the start of a run."])


def _promises(result: Kept) -> Sequence[Mapping[str, Any]]:
    """The verdicts on the first of our rows, none for a result that is not of times."""
    return result.numbers["rows"][0]["verdicts"] if "best_peer" in result.numbers else []


def _speed(results: Sequence[Kept]) -> str:
    """One line a quantity; its sizes side by side in each cell."""
    lines: dict[str, list[Kept]] = {}
    for result in results:
        lines.setdefault(f"{result.benchmark}: {_quantity_and_size(result.title)[0]}", []).append(result)
    headers = ("claim", "at", "ms", "÷ best peer", "÷ limit", "temp KiB (its)", "target")
    return table_markdown(Table(headers, [(quantity, *_cells(group)) for quantity, group in lines.items()]))


def _cells(results: Sequence[Kept]) -> tuple[str, ...]:
    rows = [result.numbers["rows"][0] for result in results]
    best = [next(row for row in result.numbers["rows"] if row["contender"] == result.numbers["best_peer"]) for result in results]
    side_by_side = lambda cells: " · ".join(cells) if any(cells) else ""
    median = lambda spread: three_digits(spread["median"]) if spread else ""
    temp = lambda *rows: "" if None in (found := [row["temp_bytes"] for row in rows]) else "{:.0f} ({:.0f})".format(*(x / 1024 for x in found))
    return (
        side_by_side([_quantity_and_size(result.title)[1] for result in results]),
        side_by_side([median(row["milliseconds"]) for row in rows]),
        side_by_side([median(row["over_best_peer"]) for row in rows]),
        side_by_side([median(row["over_limit"]) for row in rows]),
        side_by_side([temp(row, peer) for row, peer in zip(rows, best, strict=True)]),
        "; ".join(_verdicts([verdict for row in rows for verdict in row["verdicts"]])),
    )


def _verdicts(verdicts: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """For each target its ratios, and whether they meet it."""
    ratios: dict[str, list[str]] = {}
    for verdict in verdicts:
        reached = three_digits(verdict["ratio"])
        ratios.setdefault(f"≤ {verdict['at_most']:g} {verdict['of']}", []).append(f"{reached} met" if verdict["met"] else f"**{reached} missed**")
    return [f"{target}: {' · '.join(reached)}" for target, reached in ratios.items()]


def _quantity_and_size(title: str) -> tuple[str, str]:
    """A title up to the part that has a digit, and from there on; it names the sizes last."""
    found = re.fullmatch(r"(.*?)(?:, ((?:\(|[^,]*\d).*))?", title)
    assert found is not None
    return found[1], found[2] or ""


def _memory(results: Sequence[Kept]) -> str:
    """One line a case: by how much a fresh process grows."""
    headers = ("resident memory beyond the arguments, MiB", "jaxgrad", "best peer", "one result")
    mebibytes = lambda number: f"{number / 2**20:.0f}"
    rows = []
    for result in results:
        ours, best = result.numbers["rows"][0], result.numbers["best_peer_bytes"]
        rows.append((result.title, mebibytes(ours["more_bytes"]), mebibytes(best), mebibytes(ours["result_bytes"])))
    return table_markdown(Table(headers, rows))
