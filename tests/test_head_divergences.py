"""Divergences and few-class losses of large heads are those of dense logits, to every order, without their N·C numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_head import arrays, arrays_of, assert_same, every_order

import jaxgrad as jg

N, C, D, K = 7, 23, 5, 4
T = 2.5
RNG = np.random.default_rng(0)
SHAPES = {"features": (N, D), "head": (C, D), "bias": (C,)}
PAIR = {**SHAPES, "q_features": (N, D - 1), "q_head": (C, D - 1), "q_bias": (C,)}
IDS = jnp.asarray(RNG.integers(0, C, (N, K)), jnp.int32).at[:, 1].set(3).at[:, 3].set(3)  # one class twice
WEIGHTS = RNG.normal(size=N)
WHERE = jnp.asarray(np.arange(N) % 3 != 1)


def example(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return {name: np.abs(x) if name == "probs" else x for name, shape in shapes.items() for x in [rng.normal(size=shape)]}


def logits(x, of=""):
    e, b = x[f"{of}features"], x[f"{of}bias"]
    return e @ x[f"{of}head"].T + jnp.broadcast_to(b, (*e.shape[:-1], *b.shape))


def dense_probs(x):
    lead, rows = x["probs"].shape[:-1], x["probs"].reshape(-1, K)
    return jnp.zeros((len(rows), C), rows.dtype).at[jnp.arange(len(rows))[:, None], IDS.reshape(-1, K)[: len(rows)]].add(rows).reshape(*lead, C)


# The definitions on dense logits, with no rule of ours in them.


def plain_kl(x):
    log_p, log_q = jax.nn.log_softmax(logits(x) / T), jax.nn.log_softmax(logits(x, "q_") / T)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def plain_cross_entropy(x):
    return -(dense_probs(x) * jax.nn.log_softmax(logits(x))).sum(-1)


def plain_forward_kl(x):
    y = dense_probs(x)
    return plain_cross_entropy(x) + jnp.where(y > 0, y * jnp.log(jnp.where(y > 0, y, 1)), 0).sum(-1)


def plain_logsumexp(x):
    return jax.nn.logsumexp(logits(x), axis=-1)


# Ours.


def our_kl(x, where=None, block_size=4, temperature=T):
    given = x["features"], x["head"], x["q_features"], x["q_head"]
    biases = {"p_bias": x.get("bias"), "q_bias": x.get("q_bias")}
    return jg.linear_kl_divergence(*given, **biases, temperature=temperature, where=where, block_size=block_size)


def our_cross_entropy(x, where=None, block_size=4, ids=IDS):
    return jg.linear_sparse_cross_entropy(x["features"], x["head"], ids, x["probs"], bias=x.get("bias"), where=where, block_size=block_size)


def our_forward_kl(x, where=None, block_size=4, ids=IDS):
    return jg.linear_sparse_forward_kl(x["features"], x["head"], ids, x["probs"], bias=x.get("bias"), where=where, block_size=block_size)


def our_logsumexp(x, where=None, block_size=4):
    return jg.linear_logsumexp(x["features"], x["head"], bias=x.get("bias"), where=where, block_size=block_size)


FEW = {**SHAPES, "probs": (N, K)}
FUNCTIONS = {
    "kl": (PAIR, plain_kl, our_kl),
    "cross-entropy": (FEW, plain_cross_entropy, our_cross_entropy),
    "forward kl": (FEW, plain_forward_kl, our_forward_kl),
    "logsumexp": (SHAPES, plain_logsumexp, our_logsumexp),
}


@pytest.mark.parametrize(("name", "masked", "block_size"), [("kl", True, 5), ("forward kl", False, 4), ("logsumexp", True, 4)])
def test_every_derivative_is_that_of_the_definition_on_dense_logits(name, masked, block_size, widest_dtype):
    shapes, plain, ours = FUNCTIONS[name]
    x, v, weights = arrays(widest_dtype, example(shapes)), arrays(widest_dtype, example(shapes, 2)), jnp.asarray(WEIGHTS, widest_dtype)
    where = WHERE if masked else None
    definition = lambda x: (weights * (jnp.where(where, plain(x), 0) if masked else plain(x))).sum()
    total = lambda x: (weights * ours(x, where=where, block_size=block_size)).sum()
    expected, found = jax.jit(lambda x, v: [every_order(loss, x, v) for loss in (definition, total)])(x, v)
    jax.tree.map(assert_same, found, expected)


def test_only_the_teacher_or_the_student_moves(widest_dtype):
    x = arrays(widest_dtype, example(PAIR))
    teacher, student = ({name: x[f"{of}{name}"] for name in SHAPES} for of in ("", "q_"))
    kl_of = lambda kl: (lambda y: kl(x | y).sum(), lambda y: kl(x | {f"q_{name}": value for name, value in y.items()}).sum())
    product = lambda f, y: jax.jvp(jax.grad(f), (y,), (jax.tree.map(jnp.cos, y),))
    both = lambda kl, teacher, student: [product(f, y) for f, y in zip(kl_of(kl), (teacher, student), strict=True)]
    expected, found = jax.jit(lambda *given: [both(kl, *given) for kl in (plain_kl, our_kl)])(teacher, student)
    jax.tree.map(assert_same, found, expected)


def test_the_dense_functions_give_the_same(widest_dtype):
    pair, few = arrays(widest_dtype, example(PAIR)), arrays(widest_dtype, example(FEW))
    few["probs"] = few["probs"].at[:, 2].set(0).at[:, 1].set(0)  # 0 · log 0; and a class that comes with and without weight
    dense = {
        "kl": lambda x: jg.kl_divergence(logits(x), logits(x, "q_"), temperature=T),
        "cross-entropy": lambda x: jg.cross_entropy(logits(x), dense_probs(x)),
        "forward kl": lambda x: jg.forward_kl(logits(x), dense_probs(x)),
        "logsumexp": lambda x: jg.logsumexp(logits(x)),
    }
    both = lambda f, x: (f(x), jax.grad(lambda x: f(x).sum())(x))
    programs = lambda pair, few: {name: [both(f, pair if name == "kl" else few) for f in (dense[name], FUNCTIONS[name][2])] for name in FUNCTIONS}
    for expected, found in jax.jit(programs)(pair, few).values():
        jax.tree.map(assert_same, found, expected)


@pytest.mark.parametrize(("num_rows", "num_classes", "width"), [(1, 1, 1), (13, 97, 17), (0, 5, 3)])
def test_ragged_sizes(num_rows, num_classes, width, widest_dtype):
    shapes = {"features": (num_rows, width), "head": (num_classes, width), "bias": (num_classes,)}
    x = arrays(widest_dtype, example({**shapes, "q_features": (num_rows, 2), "q_head": (num_classes, 2), "q_bias": (num_classes,)}))
    both = lambda f: (f(x), jax.grad(lambda x: f(x).sum())(x))
    for definition, ours in ((plain_kl, our_kl), (plain_logsumexp, our_logsumexp)):
        expected, *found = jax.jit(lambda: [both(f) for f in (definition, ours, functools.partial(ours, block_size=None))])()  # noqa: B023
        for mine in found:
            jax.tree.map(assert_same, mine, expected)


@pytest.mark.parametrize("name", ["kl", "forward kl", "logsumexp"])
def test_no_array_has_as_many_numbers_as_the_logits(name):
    shapes, definition, ours = FUNCTIONS[name]
    x = arrays(jnp.float32, example(shapes))
    largest = lambda f: max(np.prod(shape, dtype=int) for shape in arrays_of(jax.make_jaxpr(lambda x: every_order(lambda x: f(x).sum(), x, x))(x).jaxpr))
    assert largest(functools.partial(ours, block_size=5)) < N * C
    assert largest(definition) >= N * C  # it would be seen


def test_a_vocabulary_of_131072_takes_32_mib():
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    model = {"features": spec(2048, 256), "head": spec(131072, 256)}  # whose logits are 1 GiB
    ids = jax.ShapeDtypeStruct((2048, 16), jnp.int32)
    kl = lambda x, ids: our_kl(x, block_size=None).sum()
    few = lambda x, ids: our_forward_kl(x, ids=ids, block_size=None).sum()
    product = lambda x, ids: jax.jvp(lambda x: jax.grad(kl)(x, ids), (x,), (x,))[1]
    pair = {**model, "q_features": spec(2048, 128), "q_head": spec(131072, 128)}
    for program, x in ((jax.grad(kl), pair), (product, pair), (jax.grad(few), {**model, "probs": spec(2048, 16)})):
        temporary = jax.jit(program).lower(x, ids).compile().memory_analysis().temp_size_in_bytes
        assert temporary <= 2**25, temporary


@jax.jit
def kl_and_gradients(a, b):
    """KL and its gradients in both logits, (N, C), which are those of unit features without rounding."""
    e = jnp.eye(len(a), dtype=a.dtype)
    losses = lambda a, b: jg.linear_kl_divergence(e, a.T, e, b.T, block_size=16)
    return losses(a, b), *jax.grad(lambda *logits: losses(*logits).sum(), (0, 1))(a, b)


def exact_kl_and_gradients(a, b):
    """The same in numbers of 50 digits."""
    from exactness import exactly, exp, log
    from mpmath import mp

    with mp.workdps(50):
        p, q = (exp(exactly(z.astype(np.float64))) for z in (a, b))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        t = log(p) - log(q)
        kl = (p * t).sum(-1)
        return [x.astype(np.float64) for x in (kl, p * (t - kl[:, None]), q - p)]


@pytest.mark.parametrize("lead", [0, 20, 40])
@pytest.mark.parametrize("distance", [1e-6, 1e-3, 1, 30])
def test_kl_keeps_its_digits_near_and_far_and_on_confident_examples(distance, lead):
    rng = np.random.default_rng(3)
    a = 3 * rng.normal(size=(5, 50))
    a[:, 17] = a.max(-1) + lead
    a = a.astype(np.float32)
    b = (a + distance * rng.normal(size=a.shape)).astype(np.float32)
    tolerance = 1e-6 * (1 + max(np.ptp(a), np.ptp(b)))  # differences of logits are rounded
    for first, second in ((a, b), (b, a)):
        for found, exact in zip(kl_and_gradients(first, second), exact_kl_and_gradients(first, second), strict=True):
            assert (np.abs(np.asarray(found) - exact) <= tolerance * (np.abs(exact).max(-1, keepdims=True) if exact.ndim > 1 else exact)).all()


def test_kl_of_equal_models_is_0_and_so_are_its_gradients():
    x = arrays(jnp.float32, example(SHAPES))
    both = {**x, **{f"q_{name}": value + 0 for name, value in x.items()}}
    value, gradient = VALUE_AND_GRADIENT["kl"](both)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((value, gradient)))


def test_kl_is_not_negative():
    rng, kl = np.random.default_rng(4), jax.jit(our_kl)
    for distance in 10.0 ** np.arange(-8, 3):
        x = {"features": rng.normal(size=(64, D)), "head": rng.normal(size=(C, D))}
        x = arrays(jnp.float32, x | {f"q_{name}": value + distance * rng.normal(size=value.shape) for name, value in x.items()})
        assert (kl(x) >= 0).all()


def test_kl_past_the_largest_exponential():
    a, b = np.zeros((2, 40), np.float32), np.zeros((2, 40), np.float32)
    a[:, 3], b[:, 30] = 500, (200, 3e4)
    kl, by_p, by_q = kl_and_gradients(a, b)
    np.testing.assert_allclose(kl, [200, 3e4], rtol=1e-5)
    np.testing.assert_allclose(by_q[:, [3, 30]], [[-1, 1]] * 2)
    assert np.isfinite(by_p).all()


@jax.jit
def dense_and_ours_of(x, moved):
    """KL, its gradient in what is moved and a second derivative along ones, of the dense function and of ours."""
    dense = lambda x: jg.kl_divergence(logits(x), logits(x, "q_"), temperature=T)
    total = lambda kl: lambda y: kl({**x, **y}).sum()
    orders = lambda f: (jax.grad(f)(moved), jax.jvp(jax.grad(f), (moved,), (jax.tree.map(jnp.ones_like, moved),))[1])
    return [(kl({**x, **moved}), orders(total(kl))) for kl in (dense, our_kl)]


@pytest.mark.parametrize("masked", ["both", "p", "q"])
def test_a_class_of_bias_minus_infinity(masked, widest_dtype):
    x, out = arrays(widest_dtype, example(PAIR)), np.arange(C) % 3 == 0
    for name in ("bias", "q_bias"):
        if masked == "both" or (name == "q_bias") == (masked == "q"):
            x[name] = jnp.where(out, -jnp.inf, x[name])
    of_q = {name: x[name] for name in ("q_features", "q_head", "q_bias")}
    expected, found = dense_and_ours_of(x, of_q if masked == "q" else x)  # +inf: derivatives in the arrays of p are not finite
    assert np.isinf(found[0]).all() == (masked == "q")
    if masked == "q":
        np.testing.assert_array_equal(found[0], np.inf)
        expected, found = expected[1], found[1]
    jax.tree.map(assert_same, found, expected)


def test_a_masked_class_far_below_the_others_of_p_counts_too():
    x = arrays(jnp.float32, example(PAIR))
    x["bias"] = x["bias"].at[jnp.array([0, 9])].set(-500.0)
    for masked in (0, 9):
        np.testing.assert_array_equal(our_kl({**x, "q_bias": x["q_bias"].at[masked].set(-jnp.inf)}), np.inf)
    assert np.isfinite(our_kl(x)).all()


def test_few_classes_of_a_masked_class():
    x = arrays(jnp.float32, example(FEW))
    x["bias"] = x["bias"].at[3].set(-jnp.inf)
    losses = jax.jit(lambda x: [f(x) for f in (our_cross_entropy, our_forward_kl)])
    np.testing.assert_array_equal(losses(x), np.inf)
    x["probs"] = jnp.where(IDS == 3, 0, x["probs"])
    dense = jax.jit(lambda x: [f(jnp.where(jnp.isfinite(logits(x)), logits(x), -jnp.inf), dense_probs(x)) for f in (jg.cross_entropy, jg.forward_kl)])
    np.testing.assert_allclose(losses(x), dense(x), rtol=1e-5)
    gradient, product = jax.jit(
        lambda x: (f := jax.grad(lambda x: our_cross_entropy(x).sum()), (f(x), jax.jvp(f, (x,), (arrays(jnp.float32, example(FEW)),))[1]))[1]
    )(x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, product)))
    assert not np.any(gradient["head"][3])


def test_no_weight_on_any_class_costs_nothing_where_the_first_is_masked(widest_dtype):
    """A row of zeros, as what fills a batch may be, has a masked class as its heaviest."""
    x = arrays(widest_dtype, example(FEW))
    x["bias"], x["probs"] = x["bias"].at[jnp.array([0, 3])].set(-jnp.inf), jnp.zeros_like(x["probs"])
    ids = jnp.full((N, K), 3, jnp.int32)
    dense = lambda x: jg.linear_cross_entropy(x["features"], x["head"], jnp.zeros((N, C), widest_dtype), bias=x["bias"], block_size=4)
    losses = [dense, functools.partial(our_cross_entropy, ids=ids), functools.partial(our_forward_kl, ids=ids)]
    moved = {name: x[name] for name in ("features", "head")}
    results = lambda moved: [
        (f({**x, **moved}), g(moved), jax.jvp(g, (moved,), (moved,))[1]) for f in losses for g in [jax.grad(lambda y, f=f: f({**x, **y}).sum())]
    ]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(results)(moved)))


def test_confident_examples_keep_their_digits():
    lead = np.array([5.0, 20.0, 50.0, 80.0])
    head = np.concatenate([np.ones((1, 1)), np.zeros((C - 1, 1))]).astype(np.float32)
    features, ids = jnp.asarray(lead[:, None], jnp.float32), jnp.tile(jnp.array([4, 0, 0], jnp.int32), (4, 1))
    probs = jnp.tile(jnp.array([0, 0.25, 0.75], jnp.float32), (4, 1))
    others = (C - 1) * np.exp(-lead)
    p = np.exp(-lead) / (1 + others)
    for loss in (jg.linear_sparse_cross_entropy, jg.linear_sparse_forward_kl):
        value = lambda e, w, loss=loss: loss(e, w, ids, probs, block_size=4)
        loss_of_each, (by_features, by_head) = jax.jit(lambda *x, value=value: (value(*x), jax.jacrev(value, (0, 1))(*x)))(features, head)
        np.testing.assert_allclose(loss_of_each, np.log1p(others), rtol=1e-5)
        np.testing.assert_allclose(np.diagonal(by_features[..., 0]), -others / (1 + others), rtol=1e-5)
        np.testing.assert_allclose(by_head[:, 1, 0], p * lead, rtol=1e-5)
        np.testing.assert_allclose(by_head[:, 0, 0], -(C - 1) * p * lead, rtol=1e-5)


@pytest.mark.parametrize("name", ["kl", "forward kl", "logsumexp"])
def test_a_masked_example_is_0_and_not_looked_at(name):
    shapes, _, ours = FUNCTIONS[name]
    x = {
        key: jnp.where(WHERE[:, None], value, jnp.nan) if key.endswith(("features", "probs")) else value
        for key, value in arrays(jnp.float32, example(shapes)).items()
    }
    ids = {"ids": jnp.where(WHERE[:, None], IDS, -100)} if "probs" in shapes else {}
    loss = lambda x: ours(x, where=WHERE, **ids)
    assert (np.asarray(loss(x))[~WHERE] == 0).all()
    gradient, product = jax.jit(lambda x: (f := jax.grad(lambda x: loss(x).sum()), (f(x), jax.jvp(f, (x,), (x,))[1]))[1])(x)
    for key, value in gradient.items():
        if value.shape[:1] == (N,):
            assert not np.any(np.asarray(value)[~WHERE]), key
    assert all(np.isfinite(leaf).all() for leaf in (*jax.tree.leaves(gradient), product["head"], product["bias"]))


@jax.jit
def every_order_in_features(x, ids):
    def orders(loss):
        gradient = jax.grad(lambda e: loss(e).sum())
        return loss(x["features"]), gradient(x["features"]), jax.jvp(gradient, (x["features"],), (x["features"],))[1]

    return [orders(lambda e, ours=ours: ours({**x, "features": e}, ids=ids)) for ours in (our_cross_entropy, our_forward_kl)]


@pytest.mark.parametrize("bad", [-1, C, 2**31 - 1])
def test_a_class_id_out_of_range_raises_or_makes_nan(bad):
    x, ids = arrays(jnp.float32, example(FEW)), IDS.at[2, 1].set(bad)
    for ours in (our_cross_entropy, our_forward_kl):
        with pytest.raises(IndexError, match=rf"ids\[2\]\[1\]: expected a class id from 0 to {C - 1}, got {bad}"):
            ours(x, ids=ids)
    for orders in every_order_in_features(x, ids):
        for found in orders:
            assert (np.isnan(np.reshape(found, (N, -1))).all(-1) == (np.arange(N) == 2)).all()


def test_a_bad_class_id_is_named_by_its_place_also_among_tokens():
    e, ids, where = jnp.zeros((2, 3, D), jnp.float32), jnp.zeros((2, 3, 2), jnp.int32).at[1, 2, 0].set(C), jnp.ones((2, 3), bool)
    loss = lambda where: jg.linear_sparse_cross_entropy(e, jnp.zeros((C, D), jnp.float32), ids, jnp.ones((2, 3, 2), jnp.float32) / 2, where=where)
    with pytest.raises(IndexError, match=re.escape(f"ids[1][2][0]: expected a class id from 0 to {C - 1}, got {C}")):
        loss(where)
    assert loss(where.at[1, 2].set(False)).shape == (2, 3)


@pytest.mark.parametrize("name", ["kl", "forward kl"])
def test_leading_axes_vmap_and_checkpoint(name):
    shapes, definition, ours = FUNCTIONS[name]
    x = arrays(jnp.float32, example(shapes))
    each = [key for key in x if x[key].shape[0] == N]
    tokens = {key: jnp.stack([value, 2 * value]) if key in each else value for key, value in x.items()}
    ids = {"ids": jnp.stack([IDS, IDS])} if "probs" in shapes else {}
    mapped = lambda f: lambda x: jax.vmap(f, in_axes=({key: 0 if key in each else None for key in x},))(x)
    derivatives = lambda f: lambda x: (f(x), (g := jax.grad(lambda x: f(x).sum()))(x), jax.jvp(g, (x,), (x,))[1])
    programs = [mapped(definition), functools.partial(ours, **ids), mapped(ours), jax.checkpoint(functools.partial(ours, **ids))]
    expected, *found = jax.jit(lambda x: [derivatives(f)(x) for f in programs])(tokens)
    for mine in found:
        assert mine[0].shape == (2, N)
        jax.tree.map(assert_same, mine, expected)


def test_heads_may_be_mapped_over():
    x = arrays(jnp.float32, example(PAIR))
    heads = jnp.stack([x["q_head"], 2 * x["q_head"]])
    each = jax.vmap(lambda w: our_kl({**x, "q_head": w}))(heads)
    np.testing.assert_allclose(each[1], plain_kl({**x, "q_head": heads[1]}), rtol=1e-5)


VALUE_AND_GRADIENT = {name: jax.jit(lambda x, ours=ours: (ours(x), jax.grad(lambda x: ours(x).sum())(x))) for name, (_, _, ours) in FUNCTIONS.items()}


@pytest.mark.parametrize("name", ["kl", "forward kl"])
def test_narrow_inputs_are_computed_with_in_float32(name, narrow_dtype):
    x = arrays(narrow_dtype, example(FUNCTIONS[name][0]))
    (loss, gradient), (wide_loss, wide_gradient) = (VALUE_AND_GRADIENT[name](given) for given in (x, arrays(jnp.float32, x)))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, wide_loss, rtol=1e-6)
    for key, found in gradient.items():
        assert found.dtype == narrow_dtype
        np.testing.assert_allclose(found.astype(jnp.float32), wide_gradient[key], rtol=float(jnp.finfo(narrow_dtype).eps), atol=1e-6)


def all_losses_and_derivatives(x, ids):
    total = lambda x: (our_kl(x) + our_forward_kl(x, ids=ids) + our_logsumexp(x) ** 2).sum()
    return total(x), jax.grad(total)(x), jax.jvp(jax.grad(total), (x,), (x,))[1]


@functools.cache
def on_one_device():
    """Arrays, ids and what they give."""
    rng = np.random.default_rng(5)
    shapes = {"features": (8, D), "head": (52, D), "bias": (52,), "q_features": (8, 3), "q_head": (52, 3), "q_bias": (52,), "probs": (8, K)}
    x, ids = arrays(jnp.float32, {name: rng.normal(size=shape) for name, shape in shapes.items()}), jnp.asarray(rng.integers(0, 52, (8, K)), jnp.int32)
    return x, ids, jax.jit(all_losses_and_derivatives)(x, ids)


@pytest.mark.parametrize(("axis_type", "head_spec"), [(AxisType.Auto, P("vocab")), (AxisType.Explicit, P())], ids=["auto", "explicit"])
def test_sharded_arrays_under_jit(axis_type, head_spec):
    x, ids, expected = on_one_device()
    mesh = jax.make_mesh((2, 2), ("data", "vocab"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        put = lambda value: jax.device_put(value, NamedSharding(mesh, P("data") if value.shape[0] == 8 else head_spec))
        found = jax.jit(all_losses_and_derivatives)(jax.tree.map(put, x), put(ids))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4), found, expected)


E, W = jnp.zeros((N, D), jnp.float32), jnp.zeros((C, D), jnp.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: jg.linear_kl_divergence(E, W.T, E, W),
            ValueError,
            "p_head: expected shape (C, d) for features of shape (..., d) = (7, 5), got (5, 23); transpose",
        ),
        (lambda: jg.linear_kl_divergence(E, W, E[:1], W), ValueError, "q_features: expected shape (7, 5) (an example for each of p_features), got (1, 5)"),
        (lambda: jg.linear_kl_divergence(E, W, E, W[1:]), ValueError, "q_head: expected shape (23, 5) (the classes of p_head), got (22, 5)"),
        (lambda: jg.linear_kl_divergence(E, W, E.astype(int), W), TypeError, "q_features: expected a real floating dtype"),
        (lambda: jg.linear_kl_divergence(E, W, E, W, q_bias=E[0]), ValueError, "q_bias: expected shape (23,) (one for each class), got (5,)"),
        (lambda: jg.linear_kl_divergence(E, W, E, W, temperature=0), ValueError, "temperature: expected a positive finite number, got 0"),
        (lambda: jg.linear_kl_divergence(E, W, E, W, where=jnp.ones((N, 1), bool)), ValueError, "where: expected shape (7,)"),
        (lambda: jg.linear_kl_divergence(E, W, E, W, block_size=0), ValueError, "block_size: expected at least one class in a block, got 0"),
        (lambda: jg.linear_sparse_cross_entropy(E, W, IDS[0], E), ValueError, "ids: expected integers of shape (7,) + (K,), K >= 1, got int32 of shape (4,)"),
        (lambda: jg.linear_sparse_cross_entropy(E, W, E, E), ValueError, "ids: expected integers of shape (7,) + (K,), K >= 1, got float32 of shape (7, 5)"),
        (lambda: jg.linear_sparse_cross_entropy(E, W, IDS, E), ValueError, "probs: expected shape (7, 4) (one for each of ids), got (7, 5)"),
        (lambda: jg.linear_sparse_forward_kl(E, W, IDS, IDS), TypeError, "probs: expected a real floating dtype, got int32"),
        (lambda: jg.linear_logsumexp(E, W, bias=E[0]), ValueError, "bias: expected shape (23,) (one for each class), got (5,)"),
        (lambda: jg.linear_logsumexp(E, W, block_size=2.0), TypeError, "block_size: expected an int, got float"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
