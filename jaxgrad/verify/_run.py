"""Run the identities over examples, judge each route by the arbiter, and say so row by row."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

from jaxgrad.verify import _arbiter
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._suites import Examples
from jaxgrad.verify._ulp import ulp_errors

Array = np.ndarray

FLOAT64_LEAD = 11.0  # nats: up to here 1 − p has enough digits in float64 to judge float32
PLAIN_BOUND = 1024.0  # ULP at the largest component of the row: what agreeing means for a plain formula
SAMPLE = 32  # rows of each suite that mpmath looks at


@dataclasses.dataclass(frozen=True)
class Worst:
    """Where an error was largest."""

    ulp: float
    place: str
    computed: float
    exact: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found for one identity."""

    id: str
    formula: str
    shapes: str
    num_examples: int
    num_mpmath: int  # of them judged by mpmath, the rest by float64
    autodiff_ordinary: float | None  # ULP at the largest component of the row, on ordinary rows, if there are any
    autodiff_worst: float  # ULP, on all rows: the reason for the closed form
    closed: Worst
    closed_bound: float  # ULP
    public: Worst
    public_bound: float  # ULP
    broken_laws: tuple[str, ...]
    autodiff_ms: float
    closed_ms: float

    @property
    def holds(self) -> bool:
        """Closed form and public function within the contract, the plain formula right where it can be, the laws kept."""
        within = self.closed.ulp <= self.closed_bound and self.public.ulp <= self.public_bound
        return within and self.plain_agrees and not self.broken_laws

    @property
    def plain_agrees(self) -> bool:
        """Whether JAX through the plain definition is right on ordinary rows."""
        return self.autodiff_ordinary is None or self.autodiff_ordinary <= PLAIN_BOUND


def run(table: Sequence[Identity], examples: Examples, *, dtype: jnp.dtype, seed: int) -> list[Row]:
    """A `Row` for each identity; there must be no `reason_to_skip` it."""
    return [_run_identity(identity, examples, dtype, np.random.default_rng(seed)) for identity in table]


def reason_to_skip(identity: Identity, examples: Examples) -> str | None:
    """Why these examples cannot be used for an identity, or None."""
    missing = [name for name in identity.arguments if name != "weights" and getattr(examples, name) is None]
    if missing:
        return f"the file has no {', '.join(missing)}"
    return None if identity.applies(examples).any() else "it applies to none of the examples"


def _run_identity(identity: Identity, examples: Examples, dtype: jnp.dtype, rng: np.random.Generator) -> Row:
    num_rows = len(examples.features) if identity.of_chain and examples.features is not None else len(examples.logits)
    suite, applies, agrees = (x[:num_rows] for x in (examples.suite, identity.applies(examples), identity.ordinary(examples)))
    within_float64 = (examples.lead <= FLOAT64_LEAD)[:num_rows] & (examples.size <= 100)[:num_rows] & (dtype != jnp.float64)
    by_mpmath = _sample(suite, applies & ~within_float64, rng) | _sample(suite, applies, rng)
    by_float64 = applies & within_float64 & ~by_mpmath

    arrays = {name: _cut(getattr(examples, name), name, num_rows) for name in identity.arguments if name != "weights"}
    routes = [jax.jit(route) for route in (identity.autodiff, identity.closed, identity.public)]
    found: list[list[tuple[Array, Array, Array, Array]]] = [[], [], []]
    elapsed: list[float] = []
    found_names: list[Array] = []
    for chosen, digits in ((by_mpmath, _digits(dtype)), (by_float64 & agrees, 0), (by_float64 & ~agrees, 0)):
        if not chosen.any():
            continue
        weights = {"weights": (chosen / chosen.sum()).astype(dtype)} if identity.over_batch else {}
        computed = [np.asarray(route(*{**arrays, **weights}.values())) for route in routes]
        elapsed = elapsed or [_milliseconds(route, list({**arrays, **weights}.values())) for route in routes[:2]]
        exact, scale = _judge(identity, {**arrays, **weights}, chosen, digits)
        ordinary = agrees[chosen]
        for results, result in zip(found, computed, strict=True):
            mine = result[None] if identity.over_batch else result[chosen]
            results.append((mine, exact, scale, np.array([ordinary.all()]) if identity.over_batch else ordinary))
        rows = [f"{s} row {i}" for s, i in zip(suite[chosen], np.flatnonzero(chosen), strict=True)]
        found_names.append(np.array([f"{len(rows)} rows"] if identity.over_batch else rows))

    flushed_terms = 1 if identity.of_vocabulary else 100 * examples.logits.shape[-1] * (1e3 if identity.of_chain else 1)
    forgiven = max(float(jnp.finfo(dtype).tiny), flushed_terms * float(jnp.finfo(jnp.promote_types(dtype, jnp.float32)).tiny))  # 16 bits are computed in 32
    autodiff_ordinary = max((_plain_error(*part, forgiven) for part in found[0] if part[-1].any()), default=None)
    autodiff, closed, public = (_worst(parts, found_names, forgiven) for parts in found)
    closed_values = np.concatenate([part[0] for part in found[1]])
    return Row(
        id=identity.id,
        formula=identity.formula,
        shapes=" ".join(f"{name}{list(np.shape(x))}" for name, x in arrays.items() if not isinstance(x, dict)),
        num_examples=int(by_mpmath.sum() + by_float64.sum()),
        num_mpmath=int(by_mpmath.sum()),
        autodiff_ordinary=autodiff_ordinary,
        autodiff_worst=autodiff.ulp,
        closed=closed,
        closed_bound=_bound(identity.bound, closed_values.dtype),
        public=public,
        public_bound=_bound(identity.public_bound or identity.bound, closed_values.dtype),
        broken_laws=tuple(law for law, holds in identity.laws(closed_values).items() if not holds),
        autodiff_ms=elapsed[0],
        closed_ms=elapsed[1],
    )


def _sample(suite: Array, eligible: Array, rng: np.random.Generator) -> Array:
    """Up to SAMPLE eligible rows of each suite, and all the generated ones, (N,)."""
    chosen = eligible & (suite == "stress")
    for name in np.unique(suite):
        mine = np.flatnonzero(eligible & (suite == name))
        chosen[rng.choice(mine, min(SAMPLE, len(mine)), replace=False)] = True
    return chosen


def _digits(dtype: jnp.dtype) -> int:
    """Enough to hold 1 − p for the smallest p of the dtype, and 20 more."""
    return 20 - math.floor(math.log10(float(jnp.finfo(jnp.promote_types(jnp.float32, dtype)).tiny)))


def _judge(identity: Identity, arrays: dict[str, Any], chosen: Array, digits: int) -> tuple[Array, Array]:
    """The exact results for the chosen rows and their scale, by mpmath with so many digits or, with 0, by float64."""
    rows = {name: jax.tree.map(lambda x: x[chosen], x) if name in _PER_EXAMPLE else x for name, x in arrays.items()}
    float64 = [x if name == "labels" else jax.tree.map(lambda x: x.astype(np.float64), x) for name, x in rows.items()]
    kept = ("labels", "head") if identity.of_vocabulary else ("labels",)
    with mpmath.workdps(max(digits, 15)):
        exact = identity.arbiter(*(jax.tree.map(_arbiter.to_mpmath, x) if digits and name not in kept else x for name, x in zip(rows, float64, strict=True)))
    with np.errstate(over="ignore"):
        scale = np.abs(exact).astype(np.float64) if identity.scale is None else identity.scale(*float64)
    return (exact[None], scale[None]) if identity.over_batch else (exact, scale)


_PER_EXAMPLE = ("logits", "labels", "targets", "tangents", "others", "nearby", "features", "inputs", "weights")


def _cut(value: Any, name: str, num_rows: int) -> Any:
    return jax.tree.map(lambda x: x[:num_rows], value) if name in _PER_EXAMPLE else value


def _bound(ulp: float, dtype: jnp.dtype) -> float:
    """The contract: in float64 twice the bound of float32, in 16 bits one rounding."""
    return 2 * ulp if dtype == jnp.float64 else ulp if dtype == jnp.float32 else 0.51


def _plain_error(computed: Array, exact: Array, scale: Array, ordinary: Array, forgiven: float) -> float:
    """The error of a plain formula on ordinary rows, in ULP at the largest component of the row."""
    computed, exact = computed[ordinary], exact[ordinary]
    largest = np.abs(exact).astype(np.float64)
    largest = np.broadcast_to(largest.reshape(len(largest), -1).max(-1).reshape(-1, *[1] * (exact.ndim - 1)), exact.shape)
    return float(ulp_errors(computed, exact, scale=np.maximum(largest, scale[ordinary].astype(np.float64)), forgiven=forgiven).max())


def _worst(parts: Iterable[tuple[Array, Array, Array, Array]], names: Iterable[Array], forgiven: float) -> Worst:
    worst = Worst(-1.0, "", 0.0, 0.0)
    for (computed, exact, scale, _), name in zip(parts, names, strict=True):
        errors = ulp_errors(computed, exact, scale=scale, forgiven=forgiven)
        at = np.unravel_index(int(errors.argmax()), errors.shape)
        if errors[at] > worst.ulp:
            worst = Worst(float(errors[at]), f"{name[at[0]]}{[int(i) for i in at[1:]] or ''}", float(computed[at]), float(exact[at]))
    return worst


def _milliseconds(function: Callable[..., Any], arguments: list[Any], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))
