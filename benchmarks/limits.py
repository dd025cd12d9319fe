"""What the machine can do: matrix products, copies, element-wise passes, exponentials and sums, as rates.

The rate counts 2 n³ operations of a product of (n, n) matrices and, of the rest, the bytes of arguments and results. The
passes are within the caches at 1 MiB and outside at 128 MiB, where fresh pages are part of the cost.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._harness import DTYPE, Effort, Function, Spread, compiled_in_rounds, interleave
from benchmarks._report import Table

PASSES: dict[str, Function] = {"z + 1": lambda z: z + 1, "exp(z)": lambda z: jnp.exp(z), "z.sum(-1)": lambda z: z.sum(-1), "copy": lambda z: jnp.copy(z)}


def cases(quick: bool) -> Sequence["_Rates"]:
    """Products, and passes over 1 MiB and 128 MiB."""
    sizes = (512,) if quick else (512, 2048)
    products = [_Rates(f"matrix product, ({n}, {n})", (n, n), {"A A": lambda a: a @ a}, 2 * n**3, "GFlop/s") for n in sizes]
    shapes = ((256, 1000),) if quick else ((256, 1000), (1024, 32768))
    return [*products, *(_Rates(f"passes, {shape}", shape, PASSES, None, "GB/s") for shape in shapes)]


@dataclasses.dataclass(frozen=True)
class _Rates:
    """Functions of one array, and how much they do a call: the bytes that go in and out, if not given."""

    title: str
    shape: tuple[int, ...]
    functions: dict[str, Function]
    amount: int | None
    unit: str

    def measure(self, effort: Effort) -> "Rates":
        """Time each in turn."""
        z = jax.random.normal(jax.random.key(0), self.shape, DTYPE)
        compiled, _ = compiled_in_rounds(self.functions, (z,), 1)
        samples = interleave(compiled, (z,), effort.rounds, effort.seconds)
        rows = []
        for name, (seconds, _) in samples.items():
            amount = self.amount or z.nbytes + compiled[name].out_info.size * z.dtype.itemsize
            rows.append(Rate(name, Spread.of(1e3 * seconds), amount / float(np.median(seconds)) / 1e9))
        return Rates("limits", self.title, self.unit, tuple(rows))


@dataclasses.dataclass(frozen=True)
class Rate:
    """One operation: how long a call takes, and how much it does in a nanosecond."""

    operation: str
    milliseconds: Spread
    rate: float


@dataclasses.dataclass(frozen=True)
class Rates:
    """Operations of one size, with the unit of their rates."""

    benchmark: str
    title: str
    unit: str
    rows: tuple[Rate, ...]

    def table(self) -> Table:
        """One line an operation."""
        return Table(("operation", "ms", self.unit), [(row.operation, str(row.milliseconds), f"{row.rate:.1f}") for row in self.rows])
