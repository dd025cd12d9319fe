"""What `python -m jaxgrad curvature` shows: H against G and T in numbers, and the spectrum of H as a picture."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxgrad as jg
from jaxgrad.verify._data import digits
from jaxgrad.verify._files import load_head
from jaxgrad.verify._report import versions
from jaxgrad.verify._suites import feature_fn, fit_digits

Array = np.ndarray
NUM_BINS = 16
BAR = 40


@dataclasses.dataclass(frozen=True)
class Problem:
    """A classifier at its parameters: θ, and its logits and mean loss as functions."""

    source: str
    params: Any
    model_fn: Callable[[Any], jax.Array]
    loss_fn: Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What was found for one matrix."""

    name: str
    trace: float
    trace_error: float
    largest: list[float]
    smallest: float
    residual: float  # the largest residual norm of these pairs
    edges: Array  # (NUM_BINS + 1,)
    counts: Array  # (NUM_BINS,): eigenvalues between the edges, estimated
    count_errors: Array  # (NUM_BINS,)
    density: jg.SpectralDensity  # what all of them come from, to draw
    pairs: jg.Eigenpairs


def embedded_problem(seed: int, progress: Callable[[int], None]) -> Problem:
    """The classifier of the embedded digits, fitted, over all its parameters."""
    pixels, labels = (jnp.asarray(x) for x in digits())
    inputs = {"pixels": pixels, "scale": jnp.ones(len(pixels), jnp.float32)}
    model_fn = lambda p: feature_fn(p["params"], inputs) @ p["head"].T + p["bias"][None]
    return Problem(f"{len(pixels)} digits, the fitted classifier", fit_digits(seed, 300, progress), model_fn, lambda z: jg.cross_entropy(z, labels).mean())


def problem_of_file(path: Path) -> Problem:
    """The head of a file over its features, in float32; raises `DataError`."""
    arrays = {name: jnp.asarray(x if name == "targets" and np.issubdtype(x.dtype, np.integer) else x.astype(np.float32)) for name, x in load_head(path).items()}
    features, targets = arrays["features"], arrays["targets"]
    params = {name: arrays[name] for name in ("head", "bias")}
    model_fn = lambda p: features @ p["head"].T + p["bias"][None]
    return Problem(f"{len(features)} examples of {path.name}, the head", params, model_fn, lambda z: jg.cross_entropy(z, targets).mean())


def analyse(problem: Problem, *, seed: int, num_matvecs: int, num_samples: int, num_largest: int, progress: Callable[[str], None]) -> list[Spectrum]:
    """The spectra of H, G and T = H − G."""
    h = jax.jit(lambda p: jg.hessian(lambda q: problem.loss_fn(problem.model_fn(q)), p))(problem.params)
    g = jax.jit(lambda p: jg.ggn(problem.model_fn, problem.loss_fn, p))(problem.params)
    found = []
    for name, operator in (("H", h), ("G", g), ("T = H - G", h - g)):
        progress(name)
        found.append(_spectrum(name, operator, jax.random.key(seed), num_matvecs, num_samples, num_largest))
    return found


def _spectrum(name: str, operator: jg.PytreeOperator, key: jax.Array, num_matvecs: int, num_samples: int, num_largest: int) -> Spectrum:
    keys = jax.random.split(key)
    num_largest = min(num_largest, operator.num_params)
    num_smallest = int(operator.num_params > num_largest)
    pairs = jg.extreme_eigenpairs(
        operator, keys[0], num_largest=num_largest, num_smallest=num_smallest, num_matvecs=max(num_matvecs, num_largest + num_smallest)
    )
    density = jg.spectral_density(operator, keys[1], num_matvecs=num_matvecs, num_samples=num_samples)
    trace = density.trace_of(lambda t: t)
    nodes = np.asarray(density.nodes)
    edges = np.linspace(min(nodes.min(), 0), max(nodes.max(), np.finfo(np.float32).tiny), NUM_BINS + 1)
    shares = np.stack([np.histogram(t, edges, weights=w)[0] for t, w in zip(nodes, np.asarray(density.weights), strict=True)])
    counts = operator.num_params * shares
    values = [float(x) for x in pairs.values if np.isfinite(x)]
    return Spectrum(
        name=name,
        trace=float(trace.value),
        trace_error=float(trace.standard_error),
        largest=values[:num_largest],
        smallest=values[-1],
        residual=float(np.nanmax(pairs.residual_norms)),
        edges=edges,
        counts=counts.mean(0),
        count_errors=counts.std(0, ddof=1) / len(counts) ** 0.5,
        density=density,
        pairs=pairs,
    )


def table(spectra: list[Spectrum]) -> Table:
    """A rich table, one row for each matrix."""
    drawn = Table()
    for heading in ("matrix", "trace", "largest eigenvalues", "smallest", "residual at most"):
        drawn.add_column(heading, justify="left" if heading == "matrix" else "right")
    for s in spectra:
        drawn.add_row(s.name, f"{s.trace:.4g} ± {s.trace_error:.1g}", "  ".join(f"{x:.4g}" for x in s.largest), f"{s.smallest:.3g}", f"{s.residual:.1g}")
    return drawn


def picture(spectrum: Spectrum) -> str:
    """The density as lines of text: how many eigenvalues lie in each bin, bars in the logarithm of 1 plus the number."""
    longest = np.log1p(max(spectrum.counts.max(), 1e-9))
    lines = [f"eigenvalues of {spectrum.name}, number in each bin, ± one standard error (bars are logarithmic)"]
    for left, right, count, error in zip(spectrum.edges[:-1], spectrum.edges[1:], spectrum.counts, spectrum.count_errors, strict=True):
        bar = "█" * round(BAR * np.log1p(max(count, 0)) / longest)
        lines.append(f"{left:>10.3g} … {right:<10.3g} {count:>9.1f} ± {error:<6.1f} {bar}")
    return "\n".join(lines)


def save_png(spectra: list[Spectrum], path: Path) -> None:
    """The densities with the extreme eigenvalues marked; needs matplotlib."""
    from matplotlib.figure import Figure

    from jaxgrad import plots

    figure = Figure(figsize=(4 * len(spectra), 3.5), layout="constrained")
    for ax, s in zip(figure.subplots(1, len(spectra)), spectra, strict=True):
        plots.spectral_density(s.density, eigenpairs=s.pairs, ax=ax).set_title(s.name)
    figure.savefig(path, dpi=150)


def as_dict(problem: Problem, spectra: list[Spectrum], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that was found, for JSON."""
    numbers = [{k: v for k, v in vars(s).items() if k not in ("density", "pairs")} for s in spectra]
    rows = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in numbers]
    return {"source": problem.source, "settings": settings, "versions": versions(), "matrices": rows}
