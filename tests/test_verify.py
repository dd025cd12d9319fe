"""The verifier: its routes are independent, it says no to what is wrong, and its command line is polite."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg
from jaxgrad.__main__ import main
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify import _suites
from jaxgrad.verify._identities import identities
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._run import Row, reason_to_skip, run
from jaxgrad.verify._ulp import ulp_errors

FLOAT32 = jnp.dtype("float32")


def examples() -> _suites.Examples:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 17, (24, 6)).astype(np.float32) / 16
    params = {"kernel": rng.normal(size=(6, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    inputs = {"pixels": pixels, "scale": np.repeat([1, 40], 12).astype(np.float32)}
    features = np.asarray(_suites.feature_fn(params, inputs))
    head, bias = rng.normal(size=(5, 4)).astype(np.float32), np.zeros(5, np.float32)
    chain = {"features": features, "head": head, "bias": bias, "params": params, "inputs": inputs}
    mine = _suites.examples(np.full(24, "mine"), features @ head.T, rng.integers(0, 5, 24).astype(np.int32), None, FLOAT32, rng, **chain)
    return _suites.join(mine, _suites.stress_examples(5, FLOAT32, rng))


def find(name: str, words: str = "") -> Identity:
    return next(i for i in dense_identities() if i.id == name and words in i.formula)


def dense_identities() -> list[Identity]:
    """Those of dense logits: a head in blocks has the same formulas."""
    return [i for i in identities() if "in blocks" not in i.formula]


def judge(identity: Identity, **wrong: object) -> Row:
    return run([dataclasses.replace(identity, **wrong)], examples(), dtype=FLOAT32, seed=0)[0]


@pytest.mark.parametrize(
    ("definition", "num_arguments"),
    [(plain.softmax, 1), (plain.cross_entropy_of_probs, 2), (plain.cross_entropy, 2), (plain.binary_cross_entropy, 2)],
)
def test_definitions_hold_no_custom_rule(definition, num_arguments):
    text = str(jax.make_jaxpr(definition)(*[jnp.full(3, 0.3)] * num_arguments))
    for rule in ("custom_jvp_call", "custom_vjp_call", "jacobian_product", "deviation", "zero_sum"):
        assert rule not in text
    assert "custom_jvp_call" in str(jax.make_jaxpr(jg.softmax)(jnp.ones(3)))  # the words to look for are the right ones


def test_the_arbiter_shares_no_code_with_the_other_routes():
    from jaxgrad.verify import _arbiter

    names = {name.split(".")[0] for name in vars(_arbiter) if not name.startswith("_")}
    assert not names & {"jax", "jnp", "jg", "jaxgrad"}


@pytest.mark.parametrize("identity", identities(), ids=lambda i: f"{i.id} {i.arguments[-1]}")
def test_each_identity_holds(identity):
    if identity.id == "kl-6":
        pytest.skip("needs 8 classes: test_modes_are_covered_or_sought")
    row = judge(identity)
    assert row.holds, row


def ten_classes() -> _suites.Examples:
    rng = np.random.default_rng(0)
    return _suites.examples(np.full(30, "mine"), rng.normal(size=(30, 10)), rng.integers(0, 10, 30).astype(np.int32), None, FLOAT32, rng)


def test_modes_are_covered_or_sought():
    row = run([find("kl-6")], ten_classes(), dtype=FLOAT32, seed=0)[0]
    assert row.holds, row
    exchanged = dataclasses.replace(find("kl-6"), closed=lambda z, c: find("kl-6").closed(z, c)[:, ::-1])
    assert set(run([exchanged], ten_classes(), dtype=FLOAT32, seed=0)[0].broken_laws) == {"forward covers both modes", "reverse seeks one"}


def test_an_identity_that_applies_to_nothing_is_skipped():
    assert reason_to_skip(find("kl-6"), examples()) == "it applies to none of the examples"
    assert reason_to_skip(find("chain-1"), ten_classes()) == "the file has no features, head, bias"
    assert reason_to_skip(find("kl-1"), ten_classes()) is None


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("Σ p log", lambda z, w: jg.kl_divergence(w, z)),
        ("∂z_q", lambda z, w: jg.softmax(z) - jg.softmax(w)),
        ("∂z_p = p", lambda z, w: jg.softmax_jacobian(z) @ (w - z)),
        ("prior fixed", lambda *a: jnp.stack(jg.gaussian_kl_grad(*a)[:2], -1)),  # by log σ², not log σ
        ("− softmax(t/T))/T", lambda t, z: jg.kl_divergence_grad(t / 2.5, z / 2.5)[1]),  # without 1/T
        ("∇²_{z_p}", lambda z, w: jg.softmax_jacobian(z).to_dense()),
        ("½ δᵀ F δ", lambda z, nearby: 2 * find("hess-9").closed(z, nearby)),
        ("∂JS/∂z_p", lambda z, w: jg.js_divergence_grad(z, w)[1]),
    ],
)
def test_a_wrong_divergence_fails(words, wrong):
    identity = next(i for i in dense_identities() if words in i.formula)
    assert identity.id[:2] in ("kl", "va", "di", "he", "js")
    assert not judge(identity, closed=wrong).holds


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("hess-5", lambda *a: find("hess-6").closed(*a)),  # G without T
        ("hess-6", lambda *a: find("hess-5").closed(*a)),  # H for the Fisher
        ("taylor-1", lambda *a: find("taylor-1").closed(*a).at[:, 3:].multiply(2)),  # without ½
        ("taylor-1", lambda *a: find("taylor-1").closed(*a).at[:, 4].multiply(-1)),  # T with the wrong sign
    ],
)
def test_a_wrong_curvature_fails(name, wrong):
    row = judge(find(name), closed=wrong)
    assert not row.holds
    assert row.broken_laws == (("error of third order",) if name == "taylor-1" else ())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ce-3", lambda z, y: y - jg.softmax(z)),
        ("ce-3", lambda z, y: jg.softmax(z) - y),  # without Σy
        ("hess-1", lambda z, y: -jg.cross_entropy_hessian(z, y).to_dense()),
        ("hess-1", lambda z, y: 0.5 * jg.cross_entropy_hessian(z, y).to_dense()),
        ("hess-1", lambda z, y: jg.softmax_jacobian(z).to_dense()),  # without Σy
        ("softmax-3", lambda z, v: jg.softmax(z) * v),
    ],
)
@pytest.mark.parametrize("route", ["closed", "public"])
def test_a_wrong_formula_fails(name, wrong, route):
    arguments = ("logits", "tangents") if name == "softmax-3" else ("logits", "targets")
    identity = next(i for i in identities() if i.id == name and i.arguments == arguments)
    assert not judge(identity, **{route: wrong}).holds


def head_along(e, w, b, c, weights, *, rank_one):
    """∂²L/∂W∂e along the features in reverse, with the part of rank one scaled."""
    chain = jg.chain_hessian(lambda _, e: e, (), w, e, c, bias=b, weights=weights)
    r = jg.chain_gradients(lambda _, e: e, (), w, e, c, bias=b, weights=weights).logits
    return chain.head_by_features(e[:, ::-1])[0] + (rank_one - 1) * r.T @ e[:, ::-1]


def parts(*arguments, mixed):
    """G v and T v of hess-7 with the term r ėᵀ in W, and so T without its block in θ, scaled."""
    found = find("hess-7").closed(*arguments)
    num_head = arguments[2].size + arguments[3].size
    return found.at[1, -num_head:].multiply(mixed)


@pytest.mark.parametrize(
    ("name", "words", "wrong"),
    [
        ("hess-2", "", lambda e, w, b, c: jnp.einsum("ia,nij,jb->nab", w, jg.softmax_jacobian(e @ w.T).to_dense(), jnp.abs(w))),
        ("hess-3", "", lambda e, w, b, c, n: jg.head_hessian(e, w, c, bias=b, weights=n).to_dense()[::-1][b.size :, : w.size]),
        ("hess-3", "", lambda e, w, b, c, n: jg.head_hessian(e, w, c, bias=b).to_dense()[: w.size, : w.size] * c.size),
        ("hess-4", "", lambda *arguments: head_along(*arguments, rank_one=0)),
        ("hess-4", "", lambda *arguments: head_along(*arguments, rank_one=0.5)),
        ("hess-7", "", lambda *arguments: parts(*arguments, mixed=0.5)),
        ("hess-7", "", lambda *arguments: parts(*arguments, mixed=2)),
        ("psg-1", "‖e_n‖", lambda e, w, b, c: jg.per_example_gradients(e, w, c, bias=b).norms()),  # with the part of the bias
        ("psg-1", "Σ_nm", lambda e, w, b, c, n: (n * n * jg.per_example_gradients(e, w, c, bias=b).norms() ** 2).sum()),  # only n = m
    ],
)
def test_a_wrong_block_of_the_chain_fails(name, words, wrong):
    assert judge(find(name, words)).holds
    assert not judge(find(name, words), closed=wrong).holds


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("J v = B Bᵀ v", lambda z, v: jg.softmax_jacobian(z).root_matvec(jg.softmax_jacobian(z).root_matvec(v))),  # B B
        ("J⁺ v", lambda z, v: v / jg.softmax(z)),  # not projected
        ("Sherman", lambda z, v: v / (jg.softmax(z) + 0.0078125)),  # without its second term
        ("eigenvalues μ", lambda z: jnp.sort(jg.softmax(z))),  # the poles for the roots
        ("Σ log μ", lambda z: jg.log_softmax(z).sum(-1)),  # without log C
    ],
)
def test_a_wrong_operator_fails(words, wrong):
    identity = next(i for i in dense_identities() if words in i.formula)
    assert identity.id.startswith("op-")
    assert not judge(identity, closed=wrong).holds


def test_a_transposed_factor_fails():
    identity = dataclasses.replace(find("chain-3"), arbiter=lambda *a: find("chain-3").arbiter(*a)[::-1])
    assert not judge(identity).holds


def test_a_wrong_batch_mean_fails():
    summed = lambda e, w, b, c, weights: jg.chain_gradients(lambda _, e: e, (), w, e, c, bias=b, weights=jnp.ones_like(weights)).head
    assert not judge(find("chain-3"), closed=summed).holds


def test_a_wrong_definition_fails_on_ordinary_rows():
    assert not judge(find("softmax-1"), autodiff=lambda z: 1.01 * jax.nn.softmax(z)).holds


def test_a_broken_law_is_named():
    def lopsided(z, y):
        dense = jg.cross_entropy_hessian(z, y).to_dense()
        return dense.at[:, 0, 1].set(jnp.nextafter(dense[:, 0, 1], -1))

    assert "symmetric to the bit" in judge(find("hess-1"), closed=lopsided).broken_laws


def test_ulp_errors_count_units_in_the_last_place():
    one = np.float32(1)
    above, below = np.nextafter(one, np.float32(2)), np.nextafter(one, np.float32(0))
    computed = np.array([one, above, below, np.nan, np.inf, np.inf, 0], np.float32)
    exact = np.array([1, 1, 1, 1, 1, np.inf, 1e-40])
    errors = ulp_errors(computed, exact, forgiven=1e-38)
    np.testing.assert_array_equal(errors, [0, 1, 0.5, np.inf, np.inf, 0, 0])
    assert ulp_errors(np.array([0], np.float32), np.array([1e-30]))[0] > 1e6
    assert ulp_errors(np.array([1.0078125], jnp.bfloat16), np.array([1.0]))[0] == 1


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_verify_runs_on_a_users_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    features, head = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    file = save(tmp_path / "mine.npz", logits=features @ head.T, targets=rng.integers(0, 4, 40), features=features, head=head)
    report, page = tmp_path / "out.json", tmp_path / "out.md"
    assert main(["verify", "--data", file, "--only", "ce-3", "chain-3", "chain-4", "--json", str(report), "--markdown", str(page)]) == 0
    assert "chain-4 skipped: the file has no params, inputs" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert [row["id"] for row in found["rows"]] == ["ce-3", "ce-3", "chain-3", "chain-3"]
    assert all(row["holds"] for row in found["rows"])
    assert "| ce-3 |" in page.read_text()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((3, 2), np.float32)}, "add ['targets']"),
        ({"logits": np.zeros((3, 2), np.int32), "targets": np.zeros(3, np.int32)}, "logits: expected a floating dtype, got int32"),
        ({"logits": np.zeros(3, np.float32), "targets": np.zeros(3, np.int32)}, "logits: expected shape (N, C), got (3,)"),
        ({"logits": np.zeros((0, 2), np.float32), "targets": np.zeros(0, np.int32)}, "at least one example"),
        ({"logits": np.zeros((3, 2), np.float32), "targets": np.full(3, 2)}, "targets[0]: expected a class id from 0 to 1, got 2"),
        ({"logits": np.zeros((3, 2), np.float32), "targets": np.zeros((3, 1), np.int32)}, "targets: integers are class ids"),
        ({"logits": np.full((3, 2), np.nan, np.float32), "targets": np.zeros(3, np.int32)}, "logits[0, 0]: expected a finite number"),
        ({"logits": np.zeros((3, 2), np.float32), "targets": np.ones((3, 2), np.float32)}, "targets[0]: expected probabilities with sum 1"),
        ({"logits": np.zeros((3, 2), np.float32), "targets": np.zeros(3, np.int32), "head": np.zeros((2, 4))}, "features, head: expected both"),
        (
            {"logits": np.zeros((3, 2), np.float32), "targets": np.zeros(3, np.int32), "head": np.zeros((4, 2)), "features": np.zeros((3, 4))},
            "head: expected shape (2, d), got (4, 2)",
        ),
    ],
)
def test_a_bad_file_gets_one_clear_line_and_exit_code_2(tmp_path, capsys, arrays, message):
    assert main(["verify", "--data", save(tmp_path / "bad.npz", **arrays)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_files_that_are_no_npz_are_refused(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("not an archive")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", logits=np.array([{}], object), targets=np.zeros(1))
    for name, message in (
        ("text.npz", "cannot be read"),
        ("one.npy", "single array"),
        ("pickled.npz", "pickled"),
        ("none.npz", "no such file"),
        (".", "directory"),
    ):
        assert main(["verify", "--data", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_calls_that_make_no_sense_are_refused(tmp_path, capsys):
    assert main(["verify", "--only", "ce-99"]) == 2
    assert "no such identity; there are softmax-1" in capsys.readouterr().err
    assert main(["verify", "--json", str(tmp_path / "no" / "out.json")]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert main([]) == 2
    for call in (["verify", "--dtype", "int8"], ["verify", "--seed", "-1"], ["accuracy", "--rows", "0"], ["prove"]):
        with pytest.raises(SystemExit, match="2"):
            main(call)
    with pytest.raises(SystemExit, match="0"):
        main(["verify", "--help"])
