"""The stopwatch: contenders in turn, round after round, and ratios formed within each round.

A machine that slows down for a while slows all contenders of a round, so the median over rounds of a ratio holds
where the ratio of two medians would not. The arrays are arguments: nothing is folded at compile time. CPU time, of all
threads, stands beside wall time: where the two disagree on who is faster, the machine was busy.
"""

import dataclasses
import functools
import math
import resource
import time
import timeit
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._report import Result, Table

DTYPE = jnp.float32
SAMPLE_SECONDS = 1e-3
LEAST_ROUNDS = 5

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Effort:
    """How often to measure: rounds of running, but `LEAST_ROUNDS` at least where they take more than `seconds`, and of compiling."""

    rounds: int
    compile_rounds: int
    seconds: float = math.inf


class Case(Protocol):
    """One thing to measure."""

    @property
    def title(self) -> str:
        """What is measured."""

    def measure(self, effort: Effort) -> Result:
        """Do it."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A promise: jaxgrad takes at most `at_most` times as long as the contender `of`, or as much time of all cores."""

    at_most: float
    of: str
    of_cpu: bool = False

    def on(self, name: str, samples: Mapping[str, np.ndarray]) -> "Verdict":
        """What became of it for the contender `name`: of each, samples (2, rounds) are seconds by the clock and of the cores."""
        clock = 1 if self.of_cpu else 0
        ratio = float(np.median(samples[name][clock] / samples[self.of][clock]))
        return Verdict(self.at_most, f"{self.of}, CPU time" if self.of_cpu else self.of, ratio, ratio <= self.at_most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimingCase:
    """Contenders that compute the same thing from the same arguments, in the order in which they take turns.

    `limit` is no contender: it does the least that any of them must do, as one pass over the bytes of the result.
    With `compiled=False` the functions are called as they are, and so are always those named in `eager`.
    `compared` makes of a result and the arguments what must be the same for all.
    """

    benchmark: str
    title: str
    arguments: Callable[[], tuple[Any, ...]]
    ours: Mapping[str, Function]
    peers: Mapping[str, Function]
    limit: Mapping[str, Function] = dataclasses.field(default_factory=dict)
    targets: Sequence[Target] = ()
    compiled: bool = True
    eager: Collection[str] = ()
    compared: Function = lambda result, *_: result
    least_rounds: int = 1

    def measure(self, effort: Effort) -> "TimingResult":
        """Compile, check that the contenders agree, and time them in turn.

        Raises:
          ValueError: a contender computes something else.
        """
        roles: dict[str, Role] = {**dict.fromkeys(self.ours, "jaxgrad"), **dict.fromkeys(self.peers, "peer"), **dict.fromkeys(self.limit, "limit")}
        functions: Mapping[str, Any] = {**self.ours, **self.peers, **self.limit}
        arguments = jax.block_until_ready(self.arguments())
        compile_seconds: Mapping[str, np.ndarray] = {}
        if self.compiled:
            compiled, compile_seconds = compiled_in_rounds(
                {name: f for name, f in functions.items() if name not in self.eager}, arguments, effort.compile_rounds
            )
            functions = {**functions, **compiled}
        _agree(self.title, {name: self.compared(functions[name](*arguments), *arguments) for name, role in roles.items() if role != "limit"})
        samples = interleave(functions, arguments, max(effort.rounds, self.least_rounds), effort.seconds)
        seconds = {name: wall for name, (wall, _) in samples.items()}

        best_peer = min(self.peers, key=lambda name: float(np.median(seconds[name])))
        limit = next(iter(self.limit), None)
        rows = [
            Row(
                contender=name,
                role=role,
                milliseconds=Spread.of(1e3 * seconds[name]),
                cpu_milliseconds=1e3 * float(np.median(samples[name][1])),
                over_best_peer=Spread.of(seconds[name] / seconds[best_peer]),
                over_limit=Spread.of(seconds[name] / seconds[limit]) if limit else None,
                compile_milliseconds=1e3 * float(np.median(compile_seconds[name])) if name in compile_seconds else None,
                temp_bytes=functions[name].memory_analysis().temp_size_in_bytes if name in compile_seconds else None,
                verdicts=tuple(target.on(name, samples) for target in self.targets if role == "jaxgrad"),
            )
            for name, role in roles.items()
        ]
        return TimingResult(self.benchmark, self.title, len(seconds[best_peer]), best_peer, tuple(rows))


Role = Literal["jaxgrad", "peer", "limit"]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, samples: np.ndarray) -> "Spread":
        """Of one sample a round."""
        return cls(*(float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75))))

    def __str__(self) -> str:
        """The median to three digits, and the quartiles."""
        return f"{three_digits(self.median)} [{three_digits(self.lower)}–{three_digits(self.upper)}]"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A target, and the median over rounds of the ratio it is about."""

    at_most: float
    of: str
    ratio: float
    met: bool

    def __str__(self) -> str:
        """The target and whether it is met."""
        return f"{self.ratio:.2f} ≤ {self.at_most:g}x {self.of}: met" if self.met else f"{self.ratio:.2f} > {self.at_most:g}x {self.of}: missed"


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender of a case; ratios are medians over rounds of the ratio within a round."""

    contender: str
    role: Role
    milliseconds: Spread
    cpu_milliseconds: float
    over_best_peer: Spread
    over_limit: Spread | None
    compile_milliseconds: float | None
    temp_bytes: int | None
    verdicts: tuple[Verdict, ...]


@dataclasses.dataclass(frozen=True)
class TimingResult:
    """The contenders of one case."""

    benchmark: str
    title: str
    rounds: int
    best_peer: str
    rows: tuple[Row, ...]

    def table(self) -> Table:
        """One line a contender; a column that no contender fills is left out."""
        headers = (f"median of {self.rounds} rounds", "ms", "CPU ms", "÷ best peer", "÷ limit", "compile ms", "temp KiB", "target")
        rows = [
            (
                f"limit: {row.contender}" if row.role == "limit" else row.contender,
                str(row.milliseconds),
                three_digits(row.cpu_milliseconds),
                "best peer" if row.contender == self.best_peer else str(row.over_best_peer),
                "" if row.over_limit is None or row.role == "limit" else str(row.over_limit),
                "" if row.compile_milliseconds is None else f"{row.compile_milliseconds:.0f}",
                "" if row.temp_bytes is None else f"{row.temp_bytes / 1024:.1f}",
                "; ".join(map(str, row.verdicts)),
            )
            for row in self.rows
        ]
        kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
        return Table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows])


def interleave(functions: Mapping[str, Function], arguments: tuple[Any, ...], rounds: int, seconds: float = math.inf) -> dict[str, np.ndarray]:
    """Wall and CPU seconds a call, (2, rounds) for each function: A B C, A B C, …, each sample long enough for the clock.

    The rounds end early, but not before `LEAST_ROUNDS` or all of fewer, when they have taken `seconds`.
    """
    timers = {name: timeit.Timer(functools.partial(_call, function, arguments), timer=clock) for name, function in functions.items()}
    repeats = {name: _repeats(timer) for name, timer in timers.items()}
    samples: list[list[Any]] = []
    stop = clock()[0] + seconds
    while len(samples) < rounds and (len(samples) < LEAST_ROUNDS or clock()[0] < stop):
        samples.append([timers[name].timeit(repeats[name]) / repeats[name] for name in functions])
    return dict(zip(functions, np.array(samples).transpose(1, 2, 0), strict=True))


def clock() -> Any:
    """Wall time, and the CPU time of this process and of the children that have ended, in seconds."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages)])


def _call(function: Function, arguments: tuple[Any, ...]) -> None:
    jax.block_until_ready(function(*arguments))


def _repeats(timer: timeit.Timer) -> int:
    """Calls in a sample, so that it lasts `SAMPLE_SECONDS`; it takes two to tell, as one may have been disturbed."""
    lasted = lambda repeats: np.asarray(timer.timeit(repeats))[0]
    repeats = 1
    if lasted(1) > 100 * SAMPLE_SECONDS:  # the first call is to warm up
        return repeats
    while any(lasted(repeats) < SAMPLE_SECONDS for _ in range(2)):
        repeats *= 2
    return repeats


def compiled_in_rounds(functions: Mapping[str, Function], arguments: tuple[Any, ...], rounds: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The compiled functions, and the seconds that tracing, lowering and compiling them took, (rounds,) for each."""
    jax.jit(lambda: jnp.zeros(())).lower().compile()  # whatever the first compilation of a process sets up
    compiled: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            jax.clear_caches()
            start = time.perf_counter()
            compiled[name] = jax.jit(function).lower(*arguments).compile()
            seconds[name].append(time.perf_counter() - start)
    return compiled, {name: np.array(samples) for name, samples in seconds.items()}


def _agree(title: str, results: Mapping[str, Any]) -> None:
    """Raise unless all results are the same numbers, up to rounding on the scale of the largest."""
    (first, expected), *others = ((name, [np.asarray(x) for x in jax.tree.leaves(result)]) for name, result in results.items())
    for name, result in others:
        same = [x.shape == y.shape and np.allclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(y).max(initial=0)) for x, y in zip(result, expected, strict=True)]
        if not all(same):
            raise ValueError(f"{title}: expected {name!r} to compute what {first!r} does, got something else; correct the case")


def three_digits(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"
