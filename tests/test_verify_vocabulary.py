"""The head in blocks on a vocabulary read from the files of a package, on the real one where it is installed, and what is said where it is not."""

import dataclasses
import importlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.__main__ import main
from jaxgrad.verify import _vocabulary
from jaxgrad.verify._run import run

FLOAT32 = jnp.dtype("float32")
IDENTITIES = _vocabulary.vocabulary_identities()


def judge(table, *identities, dtype=FLOAT32):
    with jax.numpy_dtype_promotion("standard"):  # as on the command line
        return run(identities, _vocabulary.vocabulary_examples(table, dtype, np.random.default_rng(0)), dtype=dtype, seed=0)


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """A package of that name with a table of 200 rows, which it returns."""
    table = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float16) * 3
    header = json.dumps({"__metadata__": {}, "embedding.weight": {"dtype": "F16", "shape": table.shape, "data_offsets": [0, table.nbytes]}}).encode()
    file = tmp_path / "wordllama" / _vocabulary.WEIGHTS
    file.parent.mkdir(parents=True)
    (tmp_path / "wordllama" / "__init__.py").write_text("raise ImportError('only the weights are wanted')")
    file.write_bytes(len(header).to_bytes(8, "little") + header + table.tobytes())
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return table


def test_the_table_is_read_from_the_files_of_the_package(small_package):
    np.testing.assert_array_equal(_vocabulary.token_embeddings(), small_package)


def test_each_identity_holds_on_a_small_vocabulary_and_a_wrong_one_fails(small_package, widest_dtype):
    assert all(row.holds for row in judge(small_package, *IDENTITIES, dtype=jnp.dtype(widest_dtype)))
    loss, gradient = IDENTITIES
    other_class = dataclasses.replace(loss, closed=lambda e, w, c: loss.closed(e, w, c + 1))
    rolled = dataclasses.replace(gradient, closed=lambda e, w, c: gradient.closed(e, w[::-1], c))
    for dtype in (FLOAT32, jnp.dtype("float16")):
        assert not any(row.closed.ulp <= row.closed_bound for row in judge(small_package, other_class, rolled, dtype=dtype))


def test_each_identity_holds_on_the_real_vocabulary():
    table = _vocabulary.token_embeddings()
    if table is None:
        pytest.skip("needs the package wordllama")
    assert table.shape == (32000, 256)
    for row in judge(table, *IDENTITIES):
        assert row.holds, row


def test_verify_says_that_there_is_no_vocabulary(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        assert main(["verify", "--only", "ce-1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "real vocabulary skipped: wordllama not found; install it with: pip install wordllama." in said
    assert "of a real vocabulary" not in said
