"""The command line: `python -m benchmarks [--quick] [--only NAME ...] [--json FILE] [--markdown FILE] [--rounds N]`."""

import argparse
import inspect
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import _report, accuracy, accuracy_divergences, chain, cross_entropy, curvature, divergences, head, imports, newton, operator, softmax_family
from benchmarks._harness import DTYPE, Effort

MODULES: Sequence[ModuleType] = (
    cross_entropy,
    divergences,
    softmax_family,
    operator,
    chain,
    curvature,
    newton,
    head,
    imports,
    accuracy,
    accuracy_divergences,
)
BENCHMARKS: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, tables to stdout and progress to stderr; 0, or 2 if it cannot be done as asked."""
    options = _parser().parse_args(arguments)
    names = list(dict.fromkeys(options.only or BENCHMARKS))
    files = [file for file in (options.json, options.markdown) if file]
    problems = [f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}" for name in names if name not in BENCHMARKS]
    problems += [f"cannot write {file}: {file.parent} is not a folder" for file in files if not file.parent.is_dir()]
    if problems:
        print(f"python -m benchmarks: {problems[0]}", file=sys.stderr)
        return 2

    rounds = options.rounds or (7 if options.quick else 31)
    effort = Effort(rounds=rounds, compile_rounds=1 if options.quick else 3)
    setting = _report.Setting.of_this_process(_command(options), DTYPE.__name__)
    print(_report.setting_text(setting), flush=True)
    cases = [(name, case) for name in names for case in BENCHMARKS[name].cases(options.quick)]
    results = []
    start = time.perf_counter()
    for number, (name, case) in enumerate(cases, start=1):
        print(f"[{number}/{len(cases)}, {time.perf_counter() - start:.0f} s] {name}: {case.title}", file=sys.stderr, flush=True)
        results.append(case.measure(effort))
        print(f"\n{_report.result_text(results[-1])}", flush=True)

    if options.json:
        options.json.write_text(_report.as_json(setting, results), encoding="utf-8")
    if options.markdown:
        explanations = {name: inspect.cleandoc(module.__doc__ or "") for name, module in BENCHMARKS.items()}
        options.markdown.write_text(_report.markdown(setting, results, explanations), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    summaries = [f"  {name:<22}{(module.__doc__ or '').splitlines()[0]}" for name, module in BENCHMARKS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed and accuracy of jaxgrad beside its peers. Peers that are not installed are listed by name.",
        epilog="\n".join(["benchmarks:", *summaries]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and the smaller sizes: under two minutes in all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these benchmarks; all of them by default")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="how often each contender takes its turn (31; 7 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE as Markdown")
    return parser


def _command(options: argparse.Namespace) -> str:
    """What decides about the numbers, without the files they go to."""
    words = ["python -m benchmarks", *(["--quick"] if options.quick else []), *(["--rounds", str(options.rounds)] if options.rounds else [])]
    return " ".join(words + (["--only", *options.only] if options.only else []))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
