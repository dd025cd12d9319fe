"""How time and temporary memory grow: with classes, examples, parameters and devices, and the exponents between neighbours.

An exponent is log(t₂/t₁) / log(x₂/x₁) of the median times of neighbouring points: 1 where the cost is proportional, 0
where it is constant. Devices are those that XLA makes of one CPU, in a process each, with the same work in all: on a
machine with as many cores as devices the exponent would be −1, and beyond that 0.

Theory has every time here proportional to C, N and the parameters. It starts near 0 instead, as a call costs most of a
small problem, and jumps where XLA hands the work to another thread. Past the caches it exceeds 1: fresh pages come from
the kernel with each call, see `limits` at 1 MiB and at 128 MiB. A Gauss–Newton product over few examples costs the
reading of the weights, whatever their number. Temporary memory of the large head stops growing at a block of about 2¹⁹
logits; that of what keeps exponentials is proportional to N C.
"""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgrad as jg
from benchmarks._harness import DTYPE, Effort, Function, Spread, compiled_in_rounds, interleave, three_digits
from benchmarks._report import Table

CLASSES, EXAMPLES, WIDTHS, DEVICES = (10, 64, 512, 4096, 32768, 262144), (16, 128, 1024, 8192, 65536), (32, 128, 512, 2048), (1, 2, 4, 8)
POINT_SECONDS = 3.0
TO_DEVICES = {"cross_entropy, examples sharded": "data", "linear_cross_entropy, examples sharded": "data", "linear_cross_entropy, vocab_axis": "vocab"}

Problem = tuple[tuple[Any, ...], dict[str, Function]]  # arguments and contenders at one point


def cases(quick: bool) -> Sequence["_Curve | _Devices"]:
    """Losses, Jacobian and head against C and N, Gauss–Newton products against N and parameters, sharded losses against devices."""
    classes = CLASSES[1:4:2] if quick else CLASSES
    of_classes = [
        _Curve("cross-entropy, value and gradient, N = 64", "C", {c: partial(_cross_entropy, 64, c) for c in classes}),
        _Curve("large head, value and gradient, N = 256, d = 64", "C", {c: partial(_head, 256, 64, c) for c in classes}),
    ]
    if quick:
        return [*of_classes[1:], _Devices(DEVICES[1:2])]
    return [
        _Curve("softmax, N = 64", "C", {c: partial(_softmax, 64, c) for c in classes}),
        *of_classes,
        _Curve("softmax Jacobian times vector, N = 64", "C", {c: partial(_jacobian, 64, c) for c in classes}),
        _Curve("cross-entropy, value and gradient, C = 100", "N", {n: partial(_cross_entropy, n, 100) for n in EXAMPLES}),
        _Curve("large head, value and gradient, d = 64, C = 8192", "N", {n: partial(_head, n, 64, 8192) for n in EXAMPLES[:4]}),
        _Curve("Gauss-Newton product, MLP of width 512", "N", {n: partial(_ggn, n, 512) for n in EXAMPLES[:4]}),
        _Curve("Gauss-Newton product, MLP, N = 128", "parameters", {64 * w + w * w + w * 10: partial(_ggn, 128, w) for w in WIDTHS}),
        _Devices(DEVICES),
    ]


@dataclasses.dataclass(frozen=True)
class _Curve:
    """Contenders at several sizes of one thing."""

    what: str
    along: str
    problems: Mapping[int, Callable[[], Problem]]

    @property
    def title(self) -> str:
        """What is measured, along what."""
        return f"{self.what}, against {self.along}"

    def measure(self, effort: Effort) -> "ScalingResult":
        """Each point on its own."""
        return ScalingResult("scaling", self.title, self.along, tuple(Point(x, _measured(*make(), effort)) for x, make in self.problems.items()))


@dataclasses.dataclass(frozen=True)
class _Devices:
    """The same work on more and more devices."""

    points: Sequence[int]
    title: str = "losses over sharded arrays, N = 128, d = 128, C = 32768, against devices"

    def measure(self, effort: Effort) -> "ScalingResult":
        """Each number of devices in a process of its own."""
        return ScalingResult("scaling", self.title, "devices", tuple(Point(n, self._at(n, effort)) for n in self.points))

    def _at(self, count: int, effort: Effort) -> dict[str, "Cost"]:
        command = [sys.executable, "-m", "benchmarks.scaling", str(count), str(effort.rounds)]
        output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]).stdout
        costs = json.loads(output.splitlines()[-1])
        return {name: Cost(Spread(**cost["milliseconds"]), cost["temp_bytes"]) for name, cost in costs.items()}


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one call: time, and temporary bytes of the compiled program."""

    milliseconds: Spread
    temp_bytes: int


@dataclasses.dataclass(frozen=True)
class Point:
    """What the contenders cost at one size."""

    size: int
    costs: Mapping[str, Cost]


@dataclasses.dataclass(frozen=True)
class ScalingResult:
    """The points of one curve."""

    benchmark: str
    title: str
    along: str
    points: tuple[Point, ...]

    def table(self) -> Table:
        """One line a point: for each contender its time, the exponent from the point before, and temporary memory."""
        names = list(self.points[0].costs)
        headers = (self.along, *itertools.chain.from_iterable((f"{name}, ms", "exponent", "temp KiB") for name in names))
        exponents = {name: ["", *(f"{x:.2f}" for x in self.exponents(name))] for name in names}
        cells = lambda i, cost, name: (three_digits(cost.milliseconds.median), exponents[name][i], f"{cost.temp_bytes / 1024:.0f}")
        rows = [(str(point.size), *itertools.chain.from_iterable(cells(i, point.costs[name], name) for name in names)) for i, point in enumerate(self.points)]
        return Table(headers, rows)

    def exponents(self, name: str) -> list[float]:
        """Of the time of a contender between neighbouring points."""
        cost = lambda point: math.log(point.costs[name].milliseconds.median)
        return [(cost(b) - cost(a)) / math.log(b.size / a.size) for a, b in itertools.pairwise(self.points)]


def _measured(arguments: tuple[Any, ...], functions: Mapping[str, Function], effort: Effort) -> dict[str, Cost]:
    arguments = jax.block_until_ready(arguments)
    compiled, _ = compiled_in_rounds(functions, arguments, 1)
    samples = interleave(compiled, arguments, min(effort.rounds, 15), min(effort.seconds, POINT_SECONDS))
    return {name: Cost(Spread.of(1e3 * wall), compiled[name].memory_analysis().temp_size_in_bytes) for name, (wall, _) in samples.items()}


def _softmax(num_rows: int, num_classes: int) -> Problem:
    return (_normal(0, (num_rows, num_classes)),), {"jaxgrad": jg.softmax, "jax.nn.softmax": jax.nn.softmax}


def _cross_entropy(num_rows: int, num_classes: int) -> Problem:
    of = lambda loss: lambda z, y: jax.value_and_grad(lambda z: loss(z, y).sum())(z)
    ours, peer = of(jg.cross_entropy), of(optax.softmax_cross_entropy_with_integer_labels)
    return (_normal(0, (num_rows, num_classes)), _ids(num_rows, num_classes)), {"jaxgrad": ours, "optax": peer}


def _jacobian(num_rows: int, num_classes: int) -> Problem:
    shape = num_rows, num_classes
    functions: dict[str, Function] = {"jaxgrad": lambda z, v: jg.softmax_jacobian(z) @ v, "jvp": lambda z, v: jax.jvp(jax.nn.softmax, (z,), (v,))[1]}
    return (_normal(0, shape), _normal(1, shape)), functions


def _head(num_rows: int, width: int, num_classes: int) -> Problem:
    dense = lambda e, w, y: optax.softmax_cross_entropy_with_integer_labels(e @ w.T, y)
    of = lambda loss: lambda e, w, y: jax.value_and_grad(lambda e, w: loss(e, w, y).mean(), (0, 1))(e, w)
    arguments = _normal(0, (num_rows, width)), _normal(1, (num_classes, width)) / 8, _ids(num_rows, num_classes)
    return arguments, {"jaxgrad": of(jg.linear_cross_entropy), "optax on logits": of(dense)}


def _ggn(num_rows: int, width: int) -> Problem:
    shapes = (64, width), (width, width), (width, 10)
    params = [_normal(i, shape) / shape[0] ** 0.5 for i, shape in enumerate(shapes)]
    model = lambda params, x: jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]
    loss = lambda params, x, y: jg.cross_entropy(model(params, x), y).mean()
    functions: dict[str, Function] = {
        "ggn": lambda params, x, y: jg.ggn(lambda p: model(p, x), lambda z: jg.cross_entropy(z, y).mean(), params) @ params,
        "one gradient": lambda params, x, y: jax.grad(loss)(params, x, y),
    }
    return (params, _normal(3, (num_rows, 64)), _ids(num_rows, 10)), functions


def _normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, DTYPE)


def _ids(num_rows: int, num_classes: int) -> jax.Array:
    return jax.random.randint(jax.random.key(9), (num_rows,), 0, num_classes)


def _on_devices(count: int, rounds: int) -> dict[str, Cost]:
    """What value and gradient cost in this process, made of so many devices."""
    jax.config.update("jax_num_cpu_devices", count)
    costs: dict[str, Cost] = {}
    for name, axis in TO_DEVICES.items():
        mesh = jax.make_mesh((count,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))
        with jax.set_mesh(mesh):
            put = lambda spec, x, mesh=mesh: jax.device_put(x, NamedSharding(mesh, spec))
            of_data, of_vocab = (P(axis), P()) if axis == "data" else (P(), P(axis))
            ids = put(of_data, _ids(128, 32768))
            if name.startswith("cross_entropy"):
                arguments: tuple[Any, ...] = (put(of_data, _normal(0, (128, 32768))),)
                function: Function = lambda z, y: jax.value_and_grad(lambda z: jg.cross_entropy(z, y).sum())(z)
            else:
                options = {"vocab_axis": axis} if axis == "vocab" else {}
                loss = lambda e, w, y, options=options: jg.linear_cross_entropy(e, w, y, **options).mean()
                function = lambda e, w, y, loss=loss: jax.value_and_grad(loss, (0, 1))(e, w, y)
                arguments = put(of_data, _normal(0, (128, 128))), put(of_vocab, _normal(1, (32768, 128)) / 10)
            costs |= _measured((*arguments, ids), {name: function}, Effort(rounds, 1))
    return costs


if __name__ == "__main__":
    print(json.dumps({name: dataclasses.asdict(cost) for name, cost in _on_devices(int(sys.argv[1]), int(sys.argv[2])).items()}))
