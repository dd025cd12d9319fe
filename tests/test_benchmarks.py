"""The stopwatch, the kept results and what is written from them; no test here is about how fast something is."""

import dataclasses
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import _harness, _pictures, _readme, _results, memory, scaling
from benchmarks._harness import Effort, Spread, Target, TimingCase
from benchmarks._report import Setting, Table

SETTING = Setting.of_this_process("python -m benchmarks", "float32")
ONCE = Effort(rounds=1, compile_rounds=1)


@pytest.fixture
def lasting(monkeypatch):
    """Makes functions of no argument that return 0 and take the given seconds, call after call, by the clock of the harness."""
    now = [0.0]
    monkeypatch.setattr(_harness, "clock", lambda: np.array([now[0], now[0] / 2]))

    def function(*seconds):
        left = [seconds[0], seconds[0], *seconds]  # a case calls twice before the first round: to compare, and to warm up

        def call():
            now[0] += left.pop(0) if len(left) > 1 else left[0]
            return jnp.zeros(())

        return call

    return function


def timing_case(**options):
    return TimingCase(**{"benchmark": "b", "title": "a sum, (8, 10)", "arguments": tuple, "compiled": False, **options})


def test_ratios_are_formed_within_a_round(lasting):
    ours, peer = lasting(20, 100, 2), lasting(1, 10, 100)
    case = timing_case(ours={"ours": ours}, peers={"peer": peer}, limit={"least": lasting(1, 5, 50)}, targets=(Target(9.0, "peer"), Target(10.0, "peer")))
    result = case.measure(Effort(rounds=3, compile_rounds=1))
    row = result.rows[0]
    assert (row.over_best_peer.median, row.over_limit.median) == (10, 20)  # of the medians they would be 2 and 4
    assert (row.milliseconds.median, row.cpu_milliseconds) == (20_000, 10_000)
    assert [verdict.met for verdict in row.verdicts] == [False, True]
    assert [str(verdict) for verdict in row.verdicts] == ["10.00 > 9x peer: missed", "10.00 ≤ 10x peer: met"]


@pytest.mark.parametrize(("of_cpu", "expected"), [(False, "2.00 ≤ 2x peer: met"), (True, "3.00 > 2x peer, CPU time: missed")])
def test_a_target_is_of_the_clock_or_of_the_cores(of_cpu, expected):
    samples = {"ours": np.array([[2.0, 4.0], [9.0, 3.0]]), "peer": np.array([[1.0, 2.0], [3.0, 1.0]])}
    assert str(Target(2.0, "peer", of_cpu).on("ours", samples)) == expected


def test_the_best_peer_is_the_fastest(lasting):
    result = timing_case(ours={"ours": lasting(3)}, peers={"slow": lasting(2), "fast": lasting(1)}).measure(ONCE)
    assert (result.best_peer, result.rows[0].over_best_peer.median) == ("fast", 3)


@pytest.mark.parametrize(("seconds", "rounds"), [(2.0, 5), (12.5, 7), (math.inf, 31)])
def test_rounds_end_with_the_time_for_them_but_not_too_early(lasting, seconds, rounds):
    functions = {"a": lasting(1), "b": lasting(1)}
    assert _harness.interleave(functions, (), 31, seconds)["a"].shape == (2, rounds)


def test_short_calls_are_repeated_until_the_clock_can_tell(lasting):
    call = lasting(1e-4)
    assert _harness.interleave({"a": call}, (), 3)["a"][0] == pytest.approx(1e-4)


def test_contenders_that_disagree_are_refused():
    case = timing_case(arguments=lambda: (jnp.ones(4),), ours={"ours": jnp.sum}, peers={"half": lambda x: jnp.sum(x) / 2}, compiled=True)
    with pytest.raises(ValueError, match="expected 'half' to compute what 'ours' does"):
        case.measure(ONCE)


def test_compiled_contenders_report_compilation_and_temporaries():
    rows = timing_case(arguments=lambda: (jnp.ones(4),), ours={"ours": jnp.sum}, peers={"peer": lambda x: x @ jnp.ones(4)}, compiled=True).measure(ONCE).rows
    assert all(row.compile_milliseconds > 0 and row.temp_bytes >= 0 for row in rows)


def test_resident_memory_counts_what_is_gone_at_the_end(monkeypatch):
    if not memory.CLEAR_PEAK.exists():
        pytest.skip("reads /proc")
    case = timing_case(ours={"large": lambda: jnp.asarray(np.ones(2**24).sum())}, peers={})
    fresh = memory._FreshProcesses(case, quick=True)
    monkeypatch.setattr(memory, "cases", lambda quick: [fresh])
    _, more, result = memory._measure_here(True, fresh.title, "large")
    assert 0.9 * 2**27 < more < 2**28
    assert result <= 8


def scaling_result(exponent):
    cost = lambda x: scaling.Cost(Spread(x**exponent, x**exponent, x**exponent), 0)
    return scaling.ScalingResult("scaling", "a sum, against C", "C", tuple(scaling.Point(x, {"ours": cost(x)}) for x in (10, 1000, 20000)))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_exponents_between_neighbours(exponent):
    assert scaling_result(exponent).exponents("ours") == pytest.approx([exponent, exponent])


def test_curves_are_drawn(tmp_path):
    _pictures.draw([_results.Kept.of(scaling_result(1.0), SETTING, 1.0), kept("b", "t")], tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a-sum-against-c.png"]


def kept(benchmark, title, seconds=1.0, **numbers):
    return _results.Kept(benchmark, title, seconds, SETTING, Table(["x"], [["1"]]), numbers)


def test_a_run_replaces_its_own_benchmarks_only():
    old = [kept("a", "1"), kept("b", "1"), kept("b", "2"), kept("gone", "1")]
    new = [kept("c", "1"), kept("b", "3")]
    assert [(each.benchmark, each.title) for each in _results.merged(old, new, ["a", "b", "c"])] == [("a", "1"), ("b", "3"), ("c", "1")]


def test_kept_results_come_back(tmp_path):
    other = dataclasses.replace(kept("b", "1", rows=[{"x": 1.5}]), setting=dataclasses.replace(SETTING, command="another"))
    results = [kept("a", "1"), other, kept("c", "1", y=None)]
    _results.write(tmp_path / "r.json", results)
    assert _results.read(tmp_path / "r.json") == results
    assert _results.read(tmp_path / "none.json") == []


def test_numbers_are_kept_to_six_digits_and_null_is_what_is_not_finite(lasting):
    result = timing_case(ours={"ours": lasting(1 / 3)}, peers={"peer": lasting(1)}).measure(ONCE)
    row = dataclasses.replace(result.rows[0], cpu_milliseconds=math.nan)
    numbers = _results.Kept.of(dataclasses.replace(result, rows=(row,)), SETTING, 1.0).numbers
    assert numbers["rows"][0]["milliseconds"]["median"] == 333.333
    assert numbers["rows"][0]["cpu_milliseconds"] is None


class Constant:
    """A case that measures nothing."""

    title = "nothing"

    def __init__(self, benchmark):
        self.benchmark = benchmark

    def measure(self, effort):
        return dataclasses.replace(scaling_result(1.0), benchmark=self.benchmark)


def test_the_command_keeps_the_results_of_each_benchmark_as_it_ends(tmp_path, monkeypatch, capsys):
    def fail(effort):
        raise RuntimeError("interrupted")

    modules = {name: SimpleNamespace(cases=lambda quick, name=name: [Constant(name)], __doc__="D.") for name in "ab"}
    modules["c"] = SimpleNamespace(cases=lambda quick: [SimpleNamespace(title="fails", measure=fail)], __doc__="D.")
    monkeypatch.setattr(command, "BENCHMARKS", modules)
    file = tmp_path / "r.json"
    assert command.main(["--only", "a", "--json", str(file), "--pictures", str(tmp_path)]) == 0
    with pytest.raises(RuntimeError, match="interrupted"):
        command.main(["--only", "b", "c", "--quick", "--json", str(file)])
    results = _results.read(file)
    assert [result.benchmark for result in results] == ["a", "b"]
    assert [result.setting.command for result in results] == ["python -m benchmarks --only a", "python -m benchmarks --quick --only b c"]
    assert "a: a sum, against C" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "unknown benchmark 'nothing'"),
        (["--json", "/nowhere/x"], "/nowhere is not a folder"),
        (["--pictures", "/nowhere"], "/nowhere is"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(arguments, message, capsys):
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("title", "quantity", "size"),
    [
        ("value and gradient, class ids, (4096, 10)", "value and gradient, class ids", "(4096, 10)"),
        ("norms of a network 256-512-100, N = 64", "norms of a network 256-512-100", "N = 64"),
        ("Hessian product, fresh, MLP", "Hessian product, fresh, MLP", ""),
        ("all eigenvalues, (100,)", "all eigenvalues", "(100,)"),
    ],
)
def test_the_sizes_are_the_end_of_a_title(title, quantity, size):
    assert _readme._quantity_and_size(title) == (quantity, size)


def test_the_section_says_what_was_promised_and_what_became_of_it(lasting):
    sizes = [("(8, 10)", 1.0), ("(8, 99)", 2.5)]
    case = lambda size, seconds: timing_case(title=f"a sum, {size}", ours={"ours": lasting(seconds)}, peers={"peer": lasting(1)}, targets=(Target(2, "peer"),))
    results = [_results.Kept.of(case(*each).measure(ONCE), SETTING, 1.0) for each in sizes]
    (line,) = [line for line in _readme.section(results).splitlines() if line.startswith("| b")]
    assert line == "| b: a sum | (8, 10) · (8, 99) | 1000 · 2500 | 1 · 2.5 |  |  | ≤ 2 peer: 1 met · **2.5 missed** |"


def test_readme_and_tables_are_what_the_kept_results_make_them():
    results = _results.read(_results.FILE)
    readme = _readme.README.read_text(encoding="utf-8")
    assert readme == _readme.with_section(readme, _readme.section(results)), "run python -m benchmarks --readme"
    assert _readme.TABLES.read_text(encoding="utf-8") == _readme.tables(results, command._explanations()), "run python -m benchmarks --readme"


def test_a_readme_without_its_comments_is_refused():
    with pytest.raises(ValueError, match=r"README\.md: expected the lines"):
        _readme.with_section("# jaxgrad\n", "x")
