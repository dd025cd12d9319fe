"""Operators and results show themselves in a few words: one line as text, a small table in a notebook, also while tracing."""

import dataclasses
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrad as jg
from jaxgrad import verify
from jaxgrad._display import Displayed, short

FEATURE_FN = lambda params, x: jnp.tanh(x @ params)
PARAMS, HEAD, INPUTS, IDS = jnp.ones((4, 2)), jnp.ones((3, 2)), jnp.ones((20, 4)), jnp.zeros(20, jnp.int32)
LOGITS = jnp.linspace(0, 1, 60, dtype=jnp.float32).reshape(20, 3)
TREE = {"a|b": jnp.ones((5, 3), jnp.float32), "<w>": jnp.zeros(20, jnp.float32)}


@pytest.fixture(scope="module")
def things():
    """One of each by the name of its class, of arrays of more numbers than are shown."""
    loss_fn = lambda tree: sum((leaf**4).sum() for leaf in tree.values())
    h = jg.hessian(loss_fn, TREE)
    g = jg.ggn(lambda tree: tree["<w>"], lambda z: (z**2).sum(), TREE)
    f = jg.batched_curvature(lambda p, x, w: jg.fisher(lambda p: x @ p, p, weights=w), jnp.ones((4, 3)), INPUTS, batch_size=5)
    chain = jg.chain_hessian(FEATURE_FN, PARAMS, HEAD, INPUTS, IDS)
    j = jg.softmax_jacobian(LOGITS)
    things = [h, g, f, h - 2 * g, chain, chain.features, chain.head, chain.inputs, chain.ggn, chain.residual, j, j.stored()]
    things += [
        jg.kl_divergence_hessian(LOGITS, LOGITS + 1),
        jg.kl_divergence_hessian(LOGITS, LOGITS + 1).first,
        jg.binary_cross_entropy_hessian(LOGITS, LOGITS),
    ]
    things += [jg.spectral_density(h, jax.random.key(0)), jg.extreme_eigenpairs(h, jax.random.key(0)), jg.diagonal_estimate(h, jax.random.key(0))]
    things += [jg.chain_gradients(FEATURE_FN, PARAMS, HEAD, INPUTS, IDS), jg.per_example_gradients(INPUTS, jnp.ones((3, 4)), IDS)]
    things += [jg.linear_log_probs(INPUTS, jnp.ones((3, 4)), top_k=2), jg.HeadVector(head=LOGITS), jg.ChainVector(LOGITS, head=LOGITS)]
    things += [jax.vmap(lambda t: jg.taylor_expansion(lambda x: x, lambda x: (x**2).sum(), LOGITS, t * LOGITS))(jnp.ones(20))]
    things += [jg.scale_by_curvature(1e-3).init(PARAMS)]
    things += [verify.check_gradient(lambda z: jg.cross_entropy(z, 0), lambda z: jg.cross_entropy_grad(z, 0), LOGITS[0])]
    return {type(thing).__name__: thing for thing in things}


def test_what_is_shown_is_short_and_holds_no_dump_of_an_array(things):
    for name, thing in things.items():
        assert repr(thing).startswith(name.lstrip("_"))
        assert len(repr(thing)) < 1000
        for text in (repr(thing), thing._repr_markdown_(), thing._repr_html_()):
            assert not any(dump in text for dump in ("Array(", "ShapeDtypeStruct", "Partial", " at 0x")), text


def test_html_and_markdown_are_the_same_table(things):
    plain = lambda text: text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").replace("¦", "|")
    for name, thing in things.items():
        html = [["".join(cell.itertext()) for cell in row] for row in ET.fromstring(thing._repr_html_()).iter("tr")]
        lines = thing._repr_markdown_().replace(r"\|", "¦").splitlines()
        assert html == [[plain(cell.strip()) for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
        assert html[0] == [name.lstrip("_"), ""]
        assert all(len(row) == 2 and row[0] and row[1] for row in html[1:])


def test_every_public_result_and_operator_is_shown(things):
    public = {name for name, value in vars(jg).items() if isinstance(value, type) and dataclasses.is_dataclass(value)}
    assert {*public, "ClaimReport"} <= set(things)
    assert all(issubclass(getattr(jg, name), Displayed) for name in public)


def test_inside_jit_and_vmap_there_are_only_shapes_and_dtypes():
    seen = []

    def look(z):
        j = jg.softmax_jacobian(z)
        curvature = jg.hessian(lambda w: (w**4).sum(), z)
        seen.append((repr(j), j._repr_html_(), j._repr_markdown_(), repr(curvature), repr(2.0 * curvature)))
        return j.diagonal()

    jax.jit(look)(LOGITS)
    jax.vmap(look)(LOGITS)
    assert seen[0][0] == "SoftmaxJacobian(shape=(20, 3, 3), logits=float32[20,3], scale=float32[20])"
    assert seen[1][3] == "Hessian(num_params=3, like=float32[3])"
    assert all("from" not in text for texts in seen for text in texts)


def test_an_array_is_its_numbers_or_its_shape_with_their_range():
    assert short(jnp.array([0.1, 2.0, jnp.nan], jnp.bfloat16)) == "[0.1001, 2, nan]"
    assert short(jnp.float32(1.25)) == "1.25"
    assert short(jnp.array([True, False])) == "[True, False]"
    assert short(jnp.arange(9)) == f"{jnp.arange(9).dtype}[9]"
    assert short(jnp.arange(9), ranges=True) == f"{jnp.arange(9).dtype}[9] from 0 to 8"
    assert short(jnp.zeros((0, 3), jnp.float32), ranges=True) == "float32[0,3]"
    assert short({"w": np.zeros((2, 2), np.float32)}) == "{'w': float32[2,2]}"
    assert short(jax.random.key(0)) == "key<fry>[]"
    assert short((2, None)) == "(2, None)"


def test_a_deleted_array_is_its_shape():
    logits = jnp.zeros((2, 3), jnp.float32) + 1
    j = jg.softmax_jacobian(logits)
    logits.delete()
    assert repr(j) == "SoftmaxJacobian(shape=(2, 3, 3), logits=float32[2,3], scale=[1, 1])"
    assert "float32[2,3]<" in j._repr_html_()


def test_a_tree_of_something_else_than_arrays_shows_its_fields():
    assert repr(jax.tree.map(jnp.shape, jg.softmax_jacobian(LOGITS))) == "SoftmaxJacobian(logits=(20, 3), scale=(20,))"


def test_names_and_values_are_escaped():
    table = jg.Estimate({"<b>": LOGITS}, "a | b\nc")
    assert "&lt;b&gt;" in table._repr_html_()
    assert "<b>" not in table._repr_html_()
    assert r"a \| b c |" in table._repr_markdown_()


def test_a_report_has_enough_digits_to_tell_claim_and_reference_apart():
    with pytest.raises(verify.VerificationError) as failure:
        verify.check_gradient(lambda z: jg.cross_entropy(z, 0), lambda z: jg.cross_entropy_grad(z, 0) * (1 + 1e-6), LOGITS[0], max_ulp=4)
    report = failure.value.report
    text = report._repr_markdown_()
    assert "| passed | False |" in text
    assert f"{report.worst_claimed:.9g}" in text
    assert f"{report.worst_autodiff:.9g}" in text
    assert f"{report.worst_claimed:.9g}" != f"{report.worst_autodiff:.9g}"


def test_a_state_of_an_optimiser_shows_its_numbers():
    optimizer = optax.chain(jg.scale_by_curvature(0.5), optax.scale_by_learning_rate(1.0))
    assert repr(optimizer.init(jnp.ones(3, jnp.float32))[0]) == "CurvatureState(count=0, damping=0.5, reduction_ratio=nan)"
