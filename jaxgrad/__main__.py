"""The command line: `python -m jaxgrad verify` proves the identities, `accuracy` measures the contract, `curvature` shows spectra.

Exit codes: 0 all hold, 1 something does not, 2 the call or the file cannot be used.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DTYPES = ("float64", "float32", "bfloat16", "float16")
BAD_CALL = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return BAD_CALL
    missing = [name for name in ("mpmath", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(f"{' and '.join(missing)} not found; install them with: pip install 'jaxgrad[cli]'")
    for file in filter(None, (options.json, options.markdown, options.png)):
        if not file.parent.is_dir():
            return _refuse(f"{file}: no such directory {file.parent}")
    return {"verify": _verify, "accuracy": _accuracy, "curvature": _curvature}[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxgrad", description="The calculus of softmax classifiers, verified.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    verify = commands.add_parser(
        "verify",
        help="prove every identity on real data: autodiff, closed form, high precision",
        description=(
            "Fit a small classifier of the embedded handwritten digits, or take your own arrays, and compare for each identity what JAX "
            "makes of the plain definition, the closed form, and the public function with an arbiter: mpmath on a sample and on every "
            "generated row, float64 on the rest. Exit code 0 if all hold, 1 if one does not, 2 if the call or the file cannot be used."
        ),
    )
    verify.add_argument("--dtype", choices=DTYPES, default="float32", help="of the logits and the chain (default: %(default)s)")
    verify.add_argument("--only", nargs="+", metavar="ID", help="only these identities, such as ce-3 hess-1")
    verify.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="your arrays: logits (N, C) and targets (N,) or (N, C), optionally features (N, d), head (C, d) and bias (C,)",
    )
    accuracy = commands.add_parser(
        "accuracy",
        help="measure the accuracy contract over generated rows",
        description=(
            "Measure the accuracy contract against mpmath over generated rows, 1 to 1000 classes wide. Exit code 0 if it is kept, 1 if not, "
            "2 if the call cannot be used."
        ),
    )
    accuracy.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="one or more (default: float32)")
    accuracy.add_argument("--rows", type=_positive, default=2000, metavar="N", help="rows for each dtype, about (default: %(default)s)")
    curvature = commands.add_parser(
        "curvature",
        help="spectra of the Hessian, the Gauss-Newton matrix and their difference",
        description=(
            "The Hessian H of the mean cross-entropy, the Gauss-Newton matrix G (here also the Fisher), and T = H - G: trace, extreme eigenvalues and "
            "density, by products alone, for a classifier of the embedded handwritten digits over all its parameters, or for your head over your "
            "features (T is 0 then). Exit code 0, or 2 if the call or the file cannot be used."
        ),
    )
    curvature.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="your arrays: features (N, d), head (C, d), targets (N,) or (N, C), optionally bias (C,)"
    )
    curvature.add_argument("--top", type=_positive, default=5, metavar="K", help="largest eigenvalues to find (default: %(default)s)")
    curvature.add_argument("--matvecs", type=_positive, default=60, metavar="M", help="products for each random vector (default: %(default)s)")
    curvature.add_argument("--samples", type=_positive, default=8, metavar="S", help="random vectors, at least 2 (default: %(default)s)")
    curvature.add_argument("--png", type=Path, metavar="FILE", help="also draw the densities into a file; needs matplotlib")
    for command in (verify, accuracy):
        command.set_defaults(png=None)
        command.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    curvature.set_defaults(markdown=None)
    for command in (verify, accuracy, curvature):
        command.add_argument("--seed", type=_natural, default=0, help="of everything random (default: %(default)s)")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the findings as JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _refuse(message: str) -> int:
    print(f"jaxgrad: {message}", file=sys.stderr)
    return BAD_CALL


def _verify(options: argparse.Namespace) -> int:
    import jax

    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import numpy as np

    from jaxgrad.verify import _files, _identities, _report, _run, _suites, _vocabulary

    start, dtype, rng = time.perf_counter(), jnp.dtype(options.dtype), np.random.default_rng(options.seed)
    table = _identities.identities()
    known = list(dict.fromkeys(identity.id for identity in table))
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        return _refuse(f"--only {' '.join(unknown)}: no such identity; there are {', '.join(known)}")
    table = [identity for identity in table if options.only is None or identity.id in options.only]

    with _progress() as bar:
        if options.data is None:
            task = bar.add_task("fitting a classifier of the digits", total=300)
            classifier = _suites.fit_digits(options.seed, 300, lambda steps: bar.advance(task, steps))
            examples = _suites.join(_suites.digits_examples(classifier, dtype, rng), _suites.stress_examples(10, dtype, rng))
        else:
            try:
                examples = _files.load_examples(options.data, dtype, rng)
            except _files.DataError as error:
                return _refuse(f"--data {error}")
        reasons = [(identity, _run.reason_to_skip(identity, examples)) for identity in table]
        skipped = {identity.id: reason for identity, reason in reasons if reason}
        table = [identity for identity, reason in reasons if not reason]
        given, suites = [(identity, examples) for identity in table], [examples.suite]
        of_vocabulary = [identity for identity in _vocabulary.vocabulary_identities() if options.only is None or identity.id in options.only]
        embeddings = _vocabulary.token_embeddings() if options.data is None and of_vocabulary else None
        if embeddings is not None:
            of_tokens = _vocabulary.vocabulary_examples(embeddings, dtype, rng)
            given, suites = given + [(identity, of_tokens) for identity in of_vocabulary], [*suites, of_tokens.suite]
        task = bar.add_task("verifying", total=len(given))
        rows = []
        for identity, its_examples in given:
            bar.update(task, description=f"verifying {identity.id}")
            rows += _run.run([identity], its_examples, dtype=dtype, seed=options.seed)
            bar.advance(task)

    failed = sum(not row.holds for row in rows)
    notes = "".join(f" {name} skipped: {reason}." for name, reason in skipped.items())
    if options.data is None and of_vocabulary and embeddings is None:
        notes += f" {_vocabulary.MISSING}"
    sources = ", ".join(f"{name} ({count})" for name, count in zip(*np.unique(np.concatenate(suites), return_counts=True), strict=True))
    summary = f"{len(rows) - failed} of {len(rows)} identities hold in {options.dtype}, on {sources}, in {time.perf_counter() - start:.0f} s.{notes}"
    console = _console()
    console.print(_report.table(rows))
    console.print(_report.NOTE, style="dim")
    console.print(summary, style="bold red" if failed or not rows else "bold green")
    settings = {"dtype": options.dtype, "seed": options.seed, "data": str(options.data or "digits")}
    return _write(options, _report.as_json(rows, settings, summary), _report.markdown(rows, summary)) or int(failed > 0 or not rows)


def _accuracy(options: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    from jaxgrad.verify import _contract

    start = time.perf_counter()
    with _progress() as bar:
        task = bar.add_task("measuring", total=len(options.dtype) * len(_contract.quantities()))
        steps = lambda text: bar.update(task, advance=1, description=f"measuring {text}")
        cells = [cell for name in options.dtype for cell in _contract.measure(jnp.dtype(name), options.seed, options.rows, steps)]
    failed = sum(not cell.holds for cell in cells)
    summary = f"{len(cells) - failed} of {len(cells)} bounds kept, seed {options.seed}, in {time.perf_counter() - start:.0f} s."
    console = _console()
    console.print(_contract.table(cells))
    console.print(summary, style="bold red" if failed else "bold green")
    return _write(options, _contract.as_json(cells, summary), _contract.markdown(cells, summary)) or int(failed > 0)


def _curvature(options: argparse.Namespace) -> int:
    if options.samples < 2:
        return _refuse("--samples: expected at least 2, for a standard error")
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        return _refuse("--png: matplotlib not found; install it with: pip install 'jaxgrad[plots]'")
    from jaxgrad.verify import _curvature_report as report
    from jaxgrad.verify._files import DataError
    from jaxgrad.verify._report import dump

    with _progress() as bar:
        if options.data is None:
            task = bar.add_task("fitting a classifier of the digits", total=300)
            problem = report.embedded_problem(options.seed, lambda steps: bar.advance(task, steps))
        else:
            try:
                problem = report.problem_of_file(options.data)
            except DataError as error:
                return _refuse(f"--data {error}")
        task = bar.add_task("spectra", total=3)
        spectra = report.analyse(
            problem,
            seed=options.seed,
            num_matvecs=options.matvecs,
            num_samples=options.samples,
            num_largest=options.top,
            progress=lambda name: bar.update(task, advance=1, description=f"spectrum of {name}"),
        )
    console = _console()
    console.print(f"mean cross-entropy over {problem.source}")
    console.print(report.table(spectra))
    for spectrum in spectra:
        console.print(f"\n{report.picture(spectrum)}", highlight=False)
    if options.png is not None:
        try:
            report.save_png(spectra, options.png)
        except (OSError, ValueError) as error:
            return _refuse(f"--png {options.png}: cannot be written ({error})")
    settings = {"seed": options.seed, "data": str(options.data or "digits"), "matvecs": options.matvecs, "samples": options.samples}
    return _write(options, dump(report.as_dict(problem, spectra, settings)), "")


def _write(options: argparse.Namespace, as_json: str, markdown: str) -> int:
    for file, text in ((options.json, as_json), (options.markdown, markdown)):
        if file is not None:
            try:
                file.write_text(text, encoding="utf-8")
            except OSError as error:
                return _refuse(f"{file}: cannot be written ({error.strerror})")
    return 0


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=180)


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    sys.exit(main())
