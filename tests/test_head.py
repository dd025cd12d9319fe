"""The loss of a large head is that of its dense logits, to every order of differentiation, and has no N·C numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from exactness import exactly, exp, ulp
from jax.extend.core import ClosedJaxpr, Jaxpr

import jaxgrad as jg

N, C, D = 7, 23, 5
RNG = np.random.default_rng(0)
EXAMPLE = {"features": RNG.normal(size=(N, D)), "head": RNG.normal(size=(C, D)), "bias": RNG.normal(size=C), "soft": np.exp(RNG.normal(size=(N, C)))}
ALONG = {name: RNG.normal(size=x.shape) for name, x in EXAMPLE.items()}
IDS = jnp.asarray(RNG.integers(0, C, N), jnp.int32)
WEIGHTS = RNG.normal(size=N)
WHERE = np.arange(N) % 3 != 1


def arrays(dtype, of=EXAMPLE):
    return {name: jnp.asarray(x, dtype) for name, x in of.items()}


def plain_loss(x, ids, where=None):
    """The definition on dense logits, with no rule of ours in it."""
    z = x["features"] @ x["head"].T + jnp.broadcast_to(x["bias"], (*x["features"].shape[:-1], x["bias"].shape[0]))
    y = x["soft"] if ids is None else jax.nn.one_hot(ids, z.shape[-1], dtype=z.dtype)
    loss = -(y * jax.nn.log_softmax(z)).sum(-1)
    return loss if where is None else jnp.where(where, loss, 0)


def our_loss(x, ids, where=None, block_size=4):
    return jg.linear_cross_entropy(x["features"], x["head"], x["soft"] if ids is None else ids, bias=x["bias"], where=where, block_size=block_size)


def every_order(loss, x, v):
    """Value, gradient and third derivatives, and the product of the Hessian with v in the four orders."""
    inner = lambda a, b: sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    along = lambda f: lambda x: jax.jvp(f, (x,), (v,))[1]
    grad = jax.grad(loss)
    product = along(grad)(x)
    return {
        "value": loss(x),
        "gradient": grad(x),
        "jvp": along(loss)(x),
        "linearize": jax.linearize(loss, x)[1](v),
        "forward over reverse": product,
        "reverse over forward": jax.grad(along(loss))(x),
        "reverse over reverse": jax.grad(lambda x: inner(grad(x), v))(x),
        "forward over forward": along(along(loss))(x),
        "third": along(along(grad))(x),
    }


def assert_same(found, expected):
    """To 1e-12 of the largest number in float64, 1e-5 in float32."""
    assert found.dtype == expected.dtype
    tolerance = 1e-12 if expected.dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize(("ids", "masked", "block_size"), [(IDS, False, 5), (None, True, 4), (None, False, 100)], ids=["ids", "distributions", "one block"])
def test_every_derivative_is_that_of_the_dense_loss(ids, masked, block_size, widest_dtype):
    x, v, weights = arrays(widest_dtype), arrays(widest_dtype, ALONG), jnp.asarray(WEIGHTS, widest_dtype)
    where = jnp.asarray(WHERE) if masked else None
    total = lambda loss: lambda x: (weights * loss(x, ids, where)).sum()
    ours = total(functools.partial(our_loss, block_size=block_size))
    expected, found = jax.jit(lambda x, v: [every_order(loss, x, v) for loss in (total(plain_loss), ours)])(x, v)
    jax.tree.map(assert_same, found, expected)


@pytest.mark.parametrize(("num_rows", "num_classes", "width"), [(1, 1, 1), (13, 97, 17), (0, 5, 3)])
def test_ragged_sizes(num_rows, num_classes, width, widest_dtype):
    rng = np.random.default_rng(1)
    shapes = {"features": (num_rows, width), "head": (num_classes, width), "bias": (num_classes,)}
    x = arrays(widest_dtype, {name: rng.normal(size=shape) for name, shape in shapes.items()})
    ids = jnp.asarray(rng.integers(0, num_classes, num_rows), jnp.int32)
    both = lambda loss: (loss(x, ids), jax.grad(lambda x: loss(x, ids).sum())(x))
    expected, *found = jax.jit(lambda: [both(loss) for loss in (plain_loss, our_loss, functools.partial(our_loss, block_size=None))])()
    for mine in found:
        jax.tree.map(assert_same, mine, expected)


def arrays_of(jaxpr, kind=np.generic):
    """The shapes of all that a program computes, and what it calls, as far as the dtype is of a kind."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars if jnp.issubdtype(variable.aval.dtype, kind))
        for leaf in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(leaf, ClosedJaxpr | Jaxpr):
                yield from arrays_of(getattr(leaf, "jaxpr", leaf), kind)


@pytest.mark.parametrize("ids", [IDS, None], ids=["ids", "distributions"])
def test_no_array_has_as_many_numbers_as_the_logits(ids):
    x = arrays(jnp.float32)
    if ids is not None:
        del x["soft"]
    v = {name: x[name] for name in x}
    given = {(N, C), (C, N)} if ids is None else set()  # the distributions and their cotangent
    largest = lambda loss: max(np.prod(s, dtype=int) for s in arrays_of(jax.make_jaxpr(lambda x, v: every_order(loss, x, v))(x, v).jaxpr) if s not in given)
    assert largest(lambda x: our_loss(x, ids, block_size=2).sum()) < N * C
    assert largest(lambda x: (plain_loss(x, ids)[:, None] + jnp.zeros((N, C + 1), jnp.float32)).sum()) >= N * C  # it would be seen


def test_a_vocabulary_of_131072_takes_32_mib():
    spec = jax.ShapeDtypeStruct
    x = {"features": spec((2048, 256), jnp.float32), "head": spec((131072, 256), jnp.float32)}
    loss = lambda x, ids: jg.linear_cross_entropy(x["features"], x["head"], ids).mean()
    orders = "value", "gradient", "jvp", "forward over reverse", "reverse over forward", "reverse over reverse", "forward over forward"
    for order in orders:
        product = lambda x, v, ids, order=order: every_order(lambda x: loss(x, ids), x, v)[order]
        temporary = jax.jit(product).lower(x, x, spec((2048,), jnp.int32)).compile().memory_analysis().temp_size_in_bytes
        assert temporary <= 2**25, order


def test_confident_examples_keep_their_digits():
    lead = np.array([5.0, 20.0, 50.0, 80.0])
    head = np.concatenate([np.ones((1, 1)), np.zeros((C - 1, 1))]).astype(np.float32)
    features, ids = jnp.asarray(lead[:, None], jnp.float32), jnp.zeros(4, jnp.int32)
    for targets in (ids, jax.nn.one_hot(ids, C, dtype=jnp.float32)):
        loss = lambda e, w, targets=targets: jg.linear_cross_entropy(e, w, targets, block_size=4)
        others = (C - 1) * np.exp(-lead)
        np.testing.assert_allclose(loss(features, head), np.log1p(others), rtol=1e-5)
        by_features, by_head = jax.jacrev(loss, (0, 1))(features, jnp.asarray(head))
        p = np.exp(-lead) / (1 + others)
        np.testing.assert_allclose(np.diagonal(by_features[..., 0]), -others / (1 + others), rtol=1e-5)
        np.testing.assert_allclose(by_head[:, 1, 0], p * lead, rtol=1e-5)
        np.testing.assert_allclose(by_head[:, 0, 0], -(C - 1) * p * lead, rtol=1e-5)


@pytest.mark.parametrize("num_classes", [23, 1024])
@mpmath.workprec(200)
def test_where_the_product_is_exact_so_are_loss_and_gradient(num_classes, widest_dtype):
    """Logits are multiples of 1/32, so that all error is ours; the bias has the gradient in the logits."""
    rng = np.random.default_rng(0)
    e, w = rng.integers(-8, 9, (12, 8)).astype(float), rng.integers(-8, 9, (num_classes, 8)) / (1 if num_classes < 100 else 32)
    z = e @ w.T
    ids = np.where(np.arange(12) < 6, z.argmax(-1), rng.integers(0, num_classes, 12)).astype(np.int32)
    at_k = np.eye(num_classes)[ids]
    soft = 0.75 * at_k + 0.25 * np.roll(at_k, 1, axis=-1)
    exps = exp(exactly(z - z.max(-1, keepdims=True)))
    probs = exps / exps.sum(-1, keepdims=True)
    others = (np.where(at_k == 1, 0, exps)).sum(-1) / (at_k * exps).sum(-1)
    of_ids = np.frompyfunc(mpmath.log1p, 1, 1)(others)
    losses = {"ids": of_ids, "soft": of_ids + (exactly(soft) * exactly((at_k * z).sum(-1, keepdims=True) - z)).sum(-1)}
    given = [jnp.asarray(x, widest_dtype) for x in (e, w, np.zeros(num_classes), soft)]

    @jax.jit
    def found(e, w, b, soft):
        loss = lambda b, y: jg.linear_cross_entropy(e, w, y, bias=b, block_size=8)
        return {name: (loss(b, y), jax.jacrev(loss)(b, y)) for name, y in (("ids", jnp.asarray(ids)), ("soft", soft))}

    for name, (loss, gradient) in found(*given).items():
        y = at_k if name == "ids" else soft
        unit = lambda x, scale=0: ulp(np.maximum(np.abs(x.astype(float)), scale), widest_dtype)
        assert (np.abs(np.asarray(loss, float) - losses[name]) <= 3 * unit(losses[name])).all()
        assert (np.abs(np.asarray(gradient, float) - (probs - y)) <= 4 * unit(probs - y, 1e-30 if name == "ids" else np.maximum(y, 1e-30))).all()


def test_a_masked_example_is_0_and_not_looked_at():
    x, where = arrays(jnp.float32), jnp.asarray(WHERE)
    x["features"] = jnp.where(where[:, None], x["features"], jnp.nan)
    x["soft"] = jnp.where(where[:, None], x["soft"], jnp.nan)
    for ids in (jnp.where(where, IDS, -100), None):
        loss = our_loss(x, ids, where)
        assert (np.asarray(loss)[~WHERE] == 0).all()
        gradient, product = jax.jit(lambda x, ids=ids: (f := jax.grad(lambda x: our_loss(x, ids, where).sum()), (f(x), jax.jvp(f, (x,), (x,))[1]))[1])(x)
        assert not np.any(np.asarray(gradient["features"])[~WHERE])
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, product["head"], product["bias"])))


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1])
def test_a_class_id_out_of_range_raises_or_makes_nan(bad):
    x, ids = arrays(jnp.float32), IDS.at[2].set(bad)
    with pytest.raises(IndexError, match=rf"targets\[2\]: expected a class id from 0 to {C - 1}, got {bad}"):
        our_loss(x, ids)
    loss, by_features, along = jax.jit(
        lambda x, ids: (
            our_loss(x, ids),
            jax.grad(lambda e: our_loss({**x, "features": e}, ids).sum())(x["features"]),
            jax.jvp(jax.grad(lambda e: our_loss({**x, "features": e}, ids).sum()), (x["features"],), (x["features"],))[1],
        )
    )(x, ids)
    for found in (loss, by_features, along):
        assert (np.isnan(np.reshape(found, (N, -1))).all(-1) == (np.arange(N) == 2)).all()


def test_a_class_of_bias_minus_infinity_is_left_out(widest_dtype):
    x, out = arrays(widest_dtype), np.arange(C) % 3 == 0
    x["bias"] = jnp.where(out, -jnp.inf, x["bias"])
    x["soft"] = jnp.where(out[None], 0, x["soft"])
    ids = jnp.asarray(np.flatnonzero(~out)[IDS % 15], jnp.int32)
    rest = {"features": x["features"], "head": x["head"][~out], "bias": x["bias"][~out], "soft": x["soft"][:, ~out]}
    scalars, gradients = ("value", "jvp"), ("gradient", "forward over reverse")
    orders = lambda f, x: {order: every_order(f, x, jax.tree.map(jnp.ones_like, x))[order] for order in scalars + gradients}
    for mine, fewer in ((ids, jnp.asarray(np.searchsorted(np.flatnonzero(~out), ids), jnp.int32)), (None, None)):
        ours = jax.jit(lambda x, mine=mine: orders(lambda x: our_loss(x, mine).sum(), x))(x)
        want = jax.jit(lambda x, fewer=fewer: orders(lambda x: plain_loss(x, fewer).sum(), x))(rest)
        for order in scalars:
            np.testing.assert_allclose(ours[order], want[order], rtol=1e-5)
        for order in gradients:
            np.testing.assert_allclose(np.asarray(ours[order]["head"])[~out], want[order]["head"], rtol=1e-4, atol=1e-6)
            assert not np.any(np.asarray(ours[order]["head"])[out])
            assert not np.any(np.asarray(ours[order]["bias"])[out])


def test_a_target_that_is_left_out_has_loss_infinity_and_a_finite_gradient():
    x = arrays(jnp.float32)
    x["bias"] = x["bias"].at[0].set(-jnp.inf)
    loss, by_features = jax.value_and_grad(lambda e: our_loss({**x, "features": e}, jnp.zeros(N, jnp.int32)).sum())(x["features"])
    p = jax.nn.softmax(x["features"] @ x["head"].T + x["bias"][None])
    assert loss == jnp.inf
    np.testing.assert_allclose(by_features, p @ x["head"] - x["head"][:1], rtol=1e-4, atol=1e-5)


def test_leading_axes_vmap_and_checkpoint():
    x = arrays(jnp.float32)
    tokens = {**x, "features": jnp.stack([x["features"], -x["features"]])}
    ids = jnp.stack([IDS, IDS[::-1]])
    grad = lambda loss: jax.grad(lambda x: loss(x).sum())
    whole, stacked, plain, again = jax.jit(
        lambda x, ids: (
            (loss := lambda x: our_loss(x, ids)),
            (each := lambda x: jax.vmap(lambda e, ids: our_loss({**x, "features": e}, ids))(x["features"], ids)),
            [(f(x), grad(f)(x), jax.jvp(grad(f), (x,), (x,))[1]) for f in (loss, each, lambda x: plain_loss(x, ids), jax.checkpoint(loss))],
        )[-1]
    )({name: tokens[name] for name in ("features", "head", "bias")}, ids)
    assert whole[0].shape == (2, N)
    for found in (whole, stacked, again):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, plain)
    heads = jnp.stack([x["head"], 2 * x["head"]])
    each = jax.vmap(lambda w: our_loss({**x, "head": w}, IDS))(heads)
    np.testing.assert_allclose(each[1], plain_loss({**x, "head": heads[1]}, IDS), rtol=1e-5)


def test_forward_and_reverse_jacobians_agree():
    x = arrays(jnp.float32)
    loss = lambda w: our_loss({**x, "head": w}, IDS)
    forward, reverse = jax.jit(lambda w: (jax.jacfwd(loss)(w), jax.jacrev(loss)(w)))(x["head"])
    np.testing.assert_allclose(forward, reverse, rtol=1e-5, atol=1e-6)


def test_narrow_inputs_are_computed_with_in_float32(narrow_dtype):
    x = arrays(narrow_dtype)
    wide = arrays(jnp.float32, x)
    for ids in (IDS, None):
        value_and_gradient = jax.jit(lambda x, ids=ids: (our_loss(x, ids), jax.grad(lambda x: our_loss(x, ids).sum())(x)))
        (loss, gradient), (wide_loss, wide_gradient) = value_and_gradient(x), value_and_gradient(wide)
        assert loss.dtype == jnp.float32
        np.testing.assert_array_equal(loss, wide_loss)
        for name, found in gradient.items():
            assert found.dtype == narrow_dtype
            if name != "soft" or ids is None:
                np.testing.assert_allclose(found.astype(jnp.float32), wide_gradient[name], rtol=float(jnp.finfo(narrow_dtype).eps), atol=1e-6)


def test_boolean_distributions_are_class_ids():
    x = arrays(jnp.float32)
    loss = jg.linear_cross_entropy(x["features"], x["head"], jax.nn.one_hot(IDS, C, dtype=jnp.bool_), block_size=4)
    np.testing.assert_allclose(loss, jg.linear_cross_entropy(x["features"], x["head"], IDS), rtol=1e-6)
    gradient = jax.value_and_grad(lambda e, y: jg.linear_cross_entropy(e, x["head"], y, block_size=2).sum())
    program = jax.make_jaxpr(gradient)(x["features"], jnp.ones((N, C), bool)).jaxpr
    assert max(np.prod(shape, dtype=int) for shape in arrays_of(program, jnp.floating)) < N * C  # they are not copied


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head": jnp.zeros((D, C), jnp.float32)}, ValueError, "head: expected shape (C, d) for features of shape (..., d) = (7, 5), got (5, 23); transpose"),
        ({"head": jnp.zeros((0, D), jnp.float32)}, ValueError, "head: expected at least one class, got shape (0, 5)"),
        ({"features": jnp.zeros((N, D), jnp.int32)}, TypeError, "features: expected a real floating dtype, got int32"),
        ({"bias": jnp.zeros(D, jnp.float32)}, ValueError, "bias: expected shape (23,) (one for each class), got (5,)"),
        ({"targets": jnp.zeros((N, 1), jnp.int32)}, ValueError, "targets: integers are class ids, expected shape (7,)"),
        ({"where": jnp.ones((N, 1), bool)}, ValueError, "where: expected shape (7,)"),
        ({"block_size": 0}, ValueError, "block_size: expected at least one class in a block, got 0"),
        ({"block_size": 2.0}, TypeError, "block_size: expected an int, got float"),
        ({"vocab_axis": "vocab"}, ValueError, "vocab_axis: expected an axis of the mesh (), got 'vocab'; call it within jax.set_mesh"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    x = arrays(jnp.float32)
    given = {"features": x["features"], "head": x["head"], "targets": IDS, **change}
    with pytest.raises(error, match=re.escape(message)):
        jg.linear_cross_entropy(given.pop("features"), given.pop("head"), given.pop("targets"), **given)
