"""Peak resident memory beyond what a process holds with its arguments, each contender in a fresh process.

The process imports, makes the arguments and compiles; what it holds then is `before`. `more` is by how much it grows at
most over the first call: the result, and temporaries, also those that XLA's `temp` does not count. What the compiler
left free is used again and not counted, up to some 10 MiB. Linux only: it reads /proc.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from benchmarks import divergences, head, operator
from benchmarks._harness import Effort, TimingCase, compiled_in_rounds
from benchmarks._report import Table

STATUS, CLEAR_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cases(quick: bool) -> Sequence["_FreshProcesses"]:
    """The largest of the timed cases of each of some quantities."""
    if not CLEAR_PEAK.exists():
        return []
    chosen = ("value and gradient, N", "Hessian-vector product, features and head", "Gauss-Newton product")
    found = [*_largest(head.cases(quick), *chosen[: 1 if quick else None])]
    if not quick:
        found += [
            *_largest(divergences.cases(quick), "KL, value and both gradients"),
            *_largest(operator.cases(quick), "softmax Jacobian times vector, from", "damped solve"),
        ]
    return [_FreshProcesses(case, quick) for case in found]


def _largest(cases: Sequence[TimingCase], *beginnings: str) -> Sequence[TimingCase]:
    """The last case whose title begins so, for each beginning."""
    return [[case for case in cases if case.title.startswith(beginning)][-1] for beginning in beginnings]


@dataclasses.dataclass(frozen=True)
class _FreshProcesses:
    """A timed case, to be measured in one process for each contender."""

    case: TimingCase
    quick: bool

    @property
    def title(self) -> str:
        """What is measured."""
        return f"{self.case.benchmark}: {self.case.title}"

    def measure(self, effort: Effort) -> "MemoryResult":
        """One run each: there is little to vary."""
        del effort
        case = self.case
        rows = []
        for name in (*case.ours, *case.peers, *case.limit):
            command = [sys.executable, "-m", "benchmarks.memory", json.dumps([self.quick, self.title, name])]
            output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]).stdout
            rows.append(Resident(f"limit: {name}" if name in case.limit else name, *json.loads(output.splitlines()[-1])))
        peers = [row.more_bytes for row in rows if row.contender in case.peers]
        return MemoryResult("memory", self.title, min(peers), tuple(rows))


@dataclasses.dataclass(frozen=True)
class Resident:
    """One contender: resident bytes before it runs, by how much they grow at most, and the bytes of its result."""

    contender: str
    before_bytes: int
    more_bytes: int
    result_bytes: int


@dataclasses.dataclass(frozen=True)
class MemoryResult:
    """The contenders of one case."""

    benchmark: str
    title: str
    best_peer_bytes: int
    rows: tuple[Resident, ...]

    def table(self) -> Table:
        """One line a contender."""
        mebibytes = lambda number: f"{number / 2**20:.1f}"
        headers = ("resident memory of a fresh process", "before, MiB", "more, MiB", "of it one result, MiB", "÷ best peer")
        return Table(
            headers,
            [
                (row.contender, *map(mebibytes, (row.before_bytes, row.more_bytes, row.result_bytes)), f"{row.more_bytes / self.best_peer_bytes:.3g}")
                for row in self.rows
            ],
        )


def _measure_here(quick: bool, title: str, contender: str) -> tuple[int, int, int]:
    """The numbers of one contender, in this process."""
    (case,) = [each.case for each in cases(quick) if each.title == title]
    function = {**case.ours, **case.peers, **case.limit}[contender]
    arguments = jax.block_until_ready(case.arguments())
    if case.compiled:
        function = compiled_in_rounds({contender: function}, arguments, 1)[0][contender]
    CLEAR_PEAK.write_text("5")
    before = _status("VmRSS")
    result = jax.block_until_ready(function(*arguments))
    return before, _status("VmHWM") - before, sum(x.nbytes for x in jax.tree.leaves(result))


def _status(field: str) -> int:
    """Bytes of the present or the largest resident memory."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(json.dumps(_measure_here(*json.loads(sys.argv[1]))))
