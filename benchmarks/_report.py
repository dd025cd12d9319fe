"""The report: where the numbers come from, and their tables as text and Markdown."""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax

from benchmarks import _peers

ENVIRONMENT = ("MALLOC_", "XLA_", "JAX_", "OMP_", "OPENBLAS_", "PYTHONDONTWRITEBYTECODE")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The command, the machine, the versions and the environment of one run."""

    command: str
    processor: str
    cores: int
    load_average: float
    device: str
    system: str
    python: str
    jaxgrad: str
    jax: str
    jaxlib: str
    peers: dict[str, str | None]  # None: not installed
    environment: dict[str, str]
    dtype: str

    @classmethod
    def of_this_process(cls, command: str, dtype: str) -> "Setting":
        """What can be seen from here, now."""
        device = jax.devices()[0]
        return cls(
            command=command,
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
            load_average=round(os.getloadavg()[0], 2),
            device=f"{device.platform} ({device.device_kind})",
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            jaxgrad=_installed("jaxgrad"),
            jax=_installed("jax"),
            jaxlib=_installed("jaxlib"),
            peers=_peers.versions(),
            environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)},
            dtype=dtype,
        )

    def lines(self) -> list[tuple[str, str]]:
        """Label and value, for a reader."""
        malloc = [name for name in self.environment if name.startswith("MALLOC_")]
        environment = [f"{name}={value}" for name, value in self.environment.items()]
        return [
            ("command", self.command),
            ("machine", f"{self.processor}, {self.cores} cores, load average {self.load_average:.2f} at the start, {self.system}"),
            ("device", self.device),
            ("versions", f"python {self.python}, jax {self.jax}, jaxlib {self.jaxlib}, jaxgrad {self.jaxgrad}"),
            ("peers", ", ".join(f"{name} {version}" for name, version in self.peers.items() if version) or "none"),
            ("missing peers", ", ".join(name for name, version in self.peers.items() if version is None) or "none"),
            ("environment", ", ".join(environment + ([] if malloc else ["no MALLOC_* is set"]))),
            ("dtype", self.dtype),
        ]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text under headers; the first column names the row."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


class Result(Protocol):
    """What was measured for one case: a frozen dataclass of numbers."""

    @property
    def benchmark(self) -> str:
        """The name of the benchmark it belongs to."""

    @property
    def title(self) -> str:
        """What was measured."""

    def table(self) -> Table:
        """The numbers, for a reader."""


def setting_text(setting: Setting) -> str:
    """The setting, one line a fact."""
    return "\n".join(f"{label + ':':<15}{value}" for label, value in setting.lines())


def result_text(result: Result) -> str:
    """One result under its title, columns aligned."""
    table = result.table()
    columns = list(zip(table.headers, *table.rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in (table.headers, *table.rows)]
    return "\n".join([f"{result.benchmark}: {result.title}", *("  " + line for line in lines)])


def markdown(results: Sequence[tuple[Setting, Result]], explanations: Mapping[str, str]) -> str:
    """The whole report in Markdown, each benchmark with its explanation and, where it is not that of the one before, its setting."""
    parts = ["# jaxgrad benchmarks"]
    benchmark, last = "", None
    for setting, result in results:
        if setting != last:
            last = setting
            parts.append("\n".join(f"- {label}: {value}" for label, value in setting.lines()))
        if result.benchmark != benchmark:
            benchmark = result.benchmark
            parts += [f"## {benchmark}", explanations[benchmark]]
        parts += [f"### {result.title}", table_markdown(result.table())]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> str:
    """The table in Markdown, all columns but the first to the right."""
    alignment = ["---", *["---:"] * (len(table.headers) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (table.headers, alignment, *table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "from the working tree"
