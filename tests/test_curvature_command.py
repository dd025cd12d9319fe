"""`python -m jaxgrad curvature`: what it prints is that of the dense matrices, and a mistake gets one line and exit code 2."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg
from jaxgrad.__main__ import main

RNG = np.random.default_rng(0)
ARRAYS = {
    "features": RNG.normal(size=(30, 4)).astype(np.float32),
    "head": RNG.normal(size=(3, 4)).astype(np.float32),
    "targets": RNG.integers(0, 3, 30),
}


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_the_spectra_of_a_head_are_those_of_the_dense_matrices_and_drawn(tmp_path, capsys):
    targets = np.where(np.arange(3)[None] == ARRAYS["targets"][:, None], 0.8, 0.1).astype(np.float32)
    file, out, png = save(tmp_path / "head.npz", **{**ARRAYS, "targets": targets}), tmp_path / "out.json", tmp_path / "out.png"
    assert main(["curvature", "--data", file, "--top", "2", "--matvecs", "15", "--samples", "50", "--json", str(out), "--png", str(png)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "30 examples of head.npz, the head" in printed
    assert "█" in printed
    h, g, t = json.loads(out.read_text())["matrices"]
    params = {"head": jnp.asarray(ARRAYS["head"]), "bias": jnp.zeros(3)}
    dense = jg.fisher(lambda p: ARRAYS["features"] @ p["head"].T + p["bias"].astype(jnp.float32)[None], params).to_dense()
    exact = np.linalg.eigvalsh(np.asarray(dense))[::-1]
    for found in (h, g):
        np.testing.assert_allclose(found["largest"], exact[:2], rtol=1e-4)
        assert abs(found["trace"] - exact.sum()) < 4 * found["trace_error"]
        np.testing.assert_allclose(sum(found["counts"]), 15, rtol=1e-3)
    assert abs(t["trace"]) < 1e-5


BAD = {
    "no head": ({k: v for k, v in ARRAYS.items() if k != "head"}, "expected the arrays 'features' and 'head' and 'targets'"),
    "transposed": ({**ARRAYS, "head": ARRAYS["head"].T}, r"head: expected shape (C, d) = (C, 4)"),
    "targets": ({**ARRAYS, "targets": np.full(30, 3)}, "targets[0]: expected a class id from 0 to 2, got 3"),
    "short": ({**ARRAYS, "targets": ARRAYS["targets"][1:]}, "targets: integers are class ids, expected shape (30,)"),
    "bias": ({**ARRAYS, "bias": np.zeros(4)}, "bias: expected shape (3,), got (4,)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, capsys, name):
    arrays, message = BAD[name]
    assert main(["curvature", "--data", save(tmp_path / "bad.npz", **arrays)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_call_that_cannot_be_used_is_refused(tmp_path, capsys):
    assert main(["curvature", "--data", str(tmp_path / "none.npz")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["curvature", "--samples", "1"]) == 2
    assert "--samples: expected at least 2" in capsys.readouterr().err
    assert main(["curvature", "--png", str(tmp_path / "no" / "x.png")]) == 2
    assert "no such directory" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["curvature", "--help"])
    assert stop.value.code == 0
    assert "features (N, d), head (C, d), targets" in capsys.readouterr().out
