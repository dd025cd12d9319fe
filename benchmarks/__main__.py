"""The command line: `python -m benchmarks --help`."""

import argparse
import inspect
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import (
    _pictures,
    _readme,
    _report,
    _results,
    accuracy,
    accuracy_divergences,
    chain,
    cross_entropy,
    curvature,
    divergences,
    head,
    imports,
    limits,
    memory,
    newton,
    operator,
    scaling,
    softmax_family,
)
from benchmarks._harness import DTYPE, Case, Effort

MODULES: Sequence[ModuleType] = (
    limits,
    cross_entropy,
    divergences,
    softmax_family,
    operator,
    chain,
    curvature,
    newton,
    head,
    imports,
    memory,
    scaling,
    accuracy,
    accuracy_divergences,
)
BENCHMARKS: dict[str, ModuleType] = {module.__name__.rpartition(".")[2]: module for module in MODULES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, tables to stdout and progress to stderr; 0, or 2 if it cannot be done as asked."""
    options = _parser().parse_args(arguments)
    names = list(dict.fromkeys(options.only or BENCHMARKS))
    problems = [f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}" for name in names if name not in BENCHMARKS]
    folders = [file.parent for file in (options.json, options.markdown) if file] + [options.pictures or Path()]
    problems += [f"cannot write there: {folder} is not a folder" for folder in folders if not folder.is_dir()]
    if problems:
        print(f"python -m benchmarks: {problems[0]}", file=sys.stderr)
        return 2
    if options.readme:
        _readme.update(_results.read(_results.FILE), _explanations())
        return 0

    rounds = options.rounds or (7 if options.quick else 31)
    effort = Effort(rounds=rounds, compile_rounds=1 if options.quick else 3, seconds=2 if options.quick else 20)
    setting = _report.Setting.of_this_process(_command(options), DTYPE.__name__)
    print(_report.setting_text(setting), flush=True)
    cases = [(name, case) for name in names for case in BENCHMARKS[name].cases(options.quick)]
    before = _results.read(options.json) if options.json else []
    kept: list[_results.Kept] = []
    for name, case in _reported(cases):
        start = time.perf_counter()
        result = case.measure(effort)
        kept.append(_results.Kept.of(result, setting, time.perf_counter() - start))
        print(f"\n{_report.result_text(result)}", flush=True)
        if options.json and (name, case) == [each for each in cases if each[0] == name][-1]:
            _results.write(options.json, _results.merged(before, kept, list(BENCHMARKS)))

    if options.pictures:
        _pictures.draw(kept, options.pictures)
    if options.markdown:
        options.markdown.write_text(_report.markdown([(result.setting, result) for result in kept], _explanations()), encoding="utf-8")
    return 0


def _explanations() -> dict[str, str]:
    return {name: inspect.cleandoc(module.__doc__ or "") for name, module in BENCHMARKS.items()}


def _reported(cases: Sequence[tuple[str, Case]]) -> Iterator[tuple[str, Case]]:
    """The cases, each announced; at first how long the kept results took them."""
    seconds = {(result.benchmark, result.title): result.seconds for result in _results.read(_results.FILE)}
    known = [seconds[name, case.title] for name, case in cases if (name, case.title) in seconds]
    if known:
        print(f"{len(known)} of {len(cases)} cases took {sum(known) / 60:.0f} minutes for {_results.FILE.name}", file=sys.stderr)
    start = time.perf_counter()
    for number, (name, case) in enumerate(cases, start=1):
        print(f"[{number}/{len(cases)}, {time.perf_counter() - start:.0f} s] {name}: {case.title}", file=sys.stderr, flush=True)
        yield name, case


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results in FILE, in place of those of the same benchmarks there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables to FILE as Markdown")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also draw the curves of `scaling` there (extra `plots`)")
    parser.add_argument("--readme", action="store_true", help="measure nothing: write README.md and benchmarks/results.md from benchmarks/results.json")
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
