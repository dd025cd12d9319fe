"""Time outside the arithmetic: importing the package, dispatching a jitted call, and calling without jit.

XLA on CPU runs what it counts as less than 1000 flops in the calling thread and hands the rest to another, which can
take longer than the arithmetic of a few rows: 5 to 100 µs, as that thread is awake or not. jaxgrad's exponential counts
as 50 flops, so a loss is handed over from two rows of ten on, that of its peers from 25 on: hence two sizes.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import DTYPE, Function, Target, TimingCase

SMALL, LARGER = (8, 10), (64, 10)


def cases(quick: bool) -> Sequence[TimingCase]:
    """Whole processes that import and end; then cross-entropy of a few rows, where the call is all that counts."""
    values: Mapping[str, Function] = {"jaxgrad": jg.cross_entropy, **_peers.CROSS_ENTROPY_IDS}
    jitted = {name: jax.jit(loss) for name, loss in values.items()}
    gradients = {name: jax.grad(_peers.summed(loss)) for name, loss in values.items()}
    processes = _processes("import jaxgrad", "import jax; import optax", "import jax")
    return [
        TimingCase(
            benchmark="imports",
            title="import in a fresh process",
            arguments=tuple,
            ours={"import jaxgrad": processes["import jaxgrad"]},
            peers={"import jax; import optax": processes["import jax; import optax"]},
            limit={"import jax": processes["import jax"]},
            targets=(Target(1.10, "import jax; import optax"),),
            compiled=False,
            least_rounds=7,
        ),
        *(_call("jitted cross_entropy", shape, jitted, {"jit of z + 1": jax.jit(lambda z, y: z + 1)}) for shape in (SMALL, LARGER)),
        _call("eager cross_entropy", SMALL, values, {"z + 1": lambda z, y: z + 1}),
        _call("eager gradient of cross_entropy", SMALL, gradients, {"z + 1": lambda z, y: z + 1}),
    ]


def _processes(*statements: str) -> Mapping[str, Function]:
    """Calls that run a statement in a new interpreter like this one, at the root of this checkout.

    They keep their bytecode in a folder of their own, so that none of them compiles sources while it is timed.
    """
    folder = tempfile.TemporaryDirectory(prefix="jaxgrad-bytecode-")

    def run(statement: str) -> None:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder.name}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run([sys.executable, "-c", statement], check=True, env=environment, cwd=Path(__file__).parents[1])

    return {statement: functools.partial(run, statement) for statement in statements}


def _call(title: str, shape: tuple[int, int], functions: Mapping[str, Function], limit: Mapping[str, Function]) -> TimingCase:
    def arguments() -> tuple[jax.Array, jax.Array]:
        z_key, y_key = jax.random.split(jax.random.key(0))
        return jax.random.normal(z_key, shape, DTYPE), jax.random.randint(y_key, shape[:1], 0, shape[1])

    return TimingCase(
        benchmark="imports",
        title=f"{title}, {shape}",
        arguments=arguments,
        ours={"jaxgrad": functions["jaxgrad"]},
        peers={name: function for name, function in functions.items() if name != "jaxgrad"},
        limit=limit,
        compiled=False,
    )
