"""Products with the Hessian and the Gauss–Newton matrix of a large head are those of the dense loss, without its logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg

N, C, D = 7, 23, 5
RNG = np.random.default_rng(0)
SHAPES = {"features": (N, D), "head": (C, D), "bias": (C,)}
POINT = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
ALONG = {name: RNG.normal(size=shape) for name, shape in SHAPES.items()}
SOFT = np.exp(RNG.normal(size=(N, C)))
IDS = RNG.integers(0, C, N).astype(np.int32)
WEIGHTS = RNG.uniform(size=N)


def arrays(dtype, of):
    return {name: jnp.asarray(x, dtype) for name, x in of.items()}


def plain_logits(x):
    return x["features"] @ x["head"].T + jnp.broadcast_to(x["bias"], (N, C))


def plain_loss(z, targets, weights):
    y = targets if targets.ndim == 2 else jax.nn.one_hot(targets, C, dtype=z.dtype)
    return -(weights * (y * jax.nn.log_softmax(z)).sum(-1)).sum()


def plain_products(x, targets, weights, along, moving):
    """H v and Jᵀ (∇²_z L) J v by JAX, in the parts that move."""
    held = lambda moved: {**x, **moved}
    point, v = ({name: of[name] for name in moving} for of in (x, along))
    loss = lambda z: plain_loss(z, targets, weights)
    hvp = jax.jvp(jax.grad(lambda moved: loss(plain_logits(held(moved)))), (point,), (v,))[1]
    z, pull_back = jax.vjp(lambda moved: plain_logits(held(moved)), point)
    along_z = jax.jvp(lambda moved: plain_logits(held(moved)), (point,), (v,))[1]
    return hvp, pull_back(jax.jvp(jax.grad(loss), (z,), (along_z,))[1])[0]


def our_products(x, targets, weights, along, moving, block_size=4):
    v = jg.HeadVector(**{name: along[name] for name in moving})
    given = x["features"], x["head"], targets, v
    found = [f(*given, bias=x["bias"], weights=weights, block_size=block_size) for f in (jg.linear_cross_entropy_hvp, jg.linear_cross_entropy_ggn_product)]
    return tuple({name: getattr(product, name) for name in moving} for product in found)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    tolerance = 1e-12 if expected.dtype == jnp.float64 else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("targets", [IDS, SOFT], ids=["ids", "distributions"])
def test_products_are_those_of_the_dense_loss(targets, widest_dtype):
    x, v, weights = arrays(widest_dtype, POINT), arrays(widest_dtype, ALONG), jnp.asarray(WEIGHTS, widest_dtype)
    y = jnp.asarray(targets, widest_dtype if targets.ndim == 2 else jnp.int32)
    parts = (("features", "head", "bias"), ("head",), ("features", "bias")) if targets.ndim == 1 else (("features", "head"), ("bias",))
    for moving in parts:
        both = jax.jit(lambda x, v, moving=moving: (our_products(x, y, weights, v, moving), plain_products(x, y, weights, v, moving)))
        found, expected = both(x, v)
        jax.tree.map(assert_same, found, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_products_through_a_feature_function(weighted, widest_dtype):
    x, v = arrays(widest_dtype, POINT), arrays(widest_dtype, ALONG)
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(N, 4)), widest_dtype)
    params, along_params = ({"dense": jnp.asarray(np.random.default_rng(seed).normal(size=(4, D)), widest_dtype)} for seed in (2, 3))
    weights = jnp.asarray(WEIGHTS, widest_dtype) if weighted else None
    feature_fn = lambda params, inputs: jnp.tanh(inputs @ params["dense"])
    scale = jnp.full((N,), 1 / N, widest_dtype) if weights is None else weights
    logits = lambda params, head, bias: plain_logits({"features": feature_fn(params, inputs), "head": head, "bias": bias})
    loss = lambda z: plain_loss(z, jnp.asarray(IDS), scale)

    def both(params, along_params):
        point, along = (params, x["head"], x["bias"]), (along_params, v["head"], v["bias"])
        products = [
            f(feature_fn, *point[:2], inputs, IDS, jg.ChainVector(*along), bias=x["bias"], weights=weights) for f in (jg.chain_hvp, jg.chain_ggn_product)
        ]
        hvp = jax.jvp(jax.grad(lambda *point: loss(logits(*point)), (0, 1, 2)), point, along)[1]
        z, u = jax.jvp(logits, point, along)
        ggn = jax.vjp(logits, *point)[1](jax.jvp(jax.grad(loss), (z,), (u,))[1])
        return [jax.tree.leaves(product) for product in products], [jax.tree.leaves(product) for product in (hvp, ggn)]

    found, expected = jax.jit(both)(params, along_params)
    jax.tree.map(assert_same, found, expected)


@pytest.mark.parametrize("targets", [IDS, SOFT], ids=["ids", "distributions"])
def test_statistics_are_those_of_the_dense_loss(targets, widest_dtype):
    x, weights = arrays(widest_dtype, POINT), jnp.asarray(WEIGHTS, widest_dtype)
    y = jnp.asarray(targets, widest_dtype if targets.ndim == 2 else jnp.int32)
    given = {"bias": x["bias"], "block_size": 4}

    def ours(x):
        data = x["features"], x["head"], y
        diagonal = jg.linear_cross_entropy_ggn_diagonal(*data, **given, weights=weights)
        return jg.linear_cross_entropy_grad_norms(*data, **given), jg.linear_cross_entropy_grad_gram(*data, **given), diagonal.head, diagonal.bias

    def plain(x):
        basis = jnp.eye(N, dtype=widest_dtype)
        gradients = jax.vmap(lambda w: jax.grad(lambda m: plain_loss(plain_logits({**x, **m}), y, w))({"head": x["head"], "bias": x["bias"]}))(basis)
        flat = jnp.concatenate([gradients["head"].reshape(N, -1), gradients["bias"]], axis=-1)
        of_head = lambda w: plain_loss(plain_logits({**x, "head": w}), y, weights)
        of_bias = lambda b: plain_loss(plain_logits({**x, "bias": b}), y, weights)
        diagonals = jnp.diagonal(jax.hessian(of_head)(x["head"]).reshape(C * D, C * D)).reshape(C, D), jnp.diagonal(jax.hessian(of_bias)(x["bias"]))
        return jnp.sqrt((flat**2).sum(-1)), flat @ flat.T, *diagonals

    found, expected = jax.jit(lambda x: (ours(x), plain(x)))(x)
    jax.tree.map(assert_same, found, expected)


@pytest.mark.parametrize("block_size", [4, 7, None])
def test_log_probs_entropy_and_the_largest(block_size, widest_dtype):
    x = arrays(widest_dtype, POINT)
    x["bias"] = x["bias"].at[5].set(-jnp.inf)
    ids = jnp.stack([jnp.asarray(IDS), jnp.asarray(IDS[::-1].copy())], axis=-1)
    found = jg.linear_log_probs(x["features"], x["head"], bias=x["bias"], ids=ids, top_k=3, block_size=block_size)
    log_probs = jax.nn.log_softmax(plain_logits(x))
    top, top_ids = jax.lax.top_k(log_probs, 3)
    entropy = -jnp.where(log_probs == -jnp.inf, 0, jnp.exp(log_probs) * log_probs).sum(-1)
    assert_same(found.entropy, entropy)
    assert_same(found.logsumexp, jax.nn.logsumexp(plain_logits(x), axis=-1))
    assert_same(found.of_ids, jnp.take_along_axis(log_probs, ids, axis=-1))
    assert_same(found.top, top)
    np.testing.assert_array_equal(found.top_ids, top_ids)


@pytest.mark.parametrize("block_size", [1, 2, 5])
def test_the_largest_come_with_their_own_classes_also_where_they_are_masked(block_size):
    bias = jnp.array([-jnp.inf, 1.0, -jnp.inf, 2.0, -jnp.inf], jnp.float32)
    found = jg.linear_log_probs(jnp.ones((1, 1), jnp.float32), jnp.zeros((5, 1), jnp.float32), bias=bias, top_k=np.int64(5), block_size=block_size)
    np.testing.assert_array_equal(found.top_ids[0], [3, 1, 0, 2, 4])
    np.testing.assert_array_equal(found.top[0, 2:], [-np.inf] * 3)


def test_log_probs_have_derivatives_also_where_classes_of_several_blocks_tie(widest_dtype):
    e, w, masked = jnp.ones((2, 1), widest_dtype), jnp.zeros((5, 1), widest_dtype), jnp.array([-jnp.inf], widest_dtype)
    b, v = jnp.array([0.0, 0.0, 0.0, -1.0], widest_dtype), jnp.array([1.0, -2.0, 0.5, 3.0], widest_dtype)
    ids = jnp.array([[0, 3]] * 2)

    def ours(b):
        found = jg.linear_log_probs(e, w, bias=jnp.concatenate([b, masked]), ids=ids, block_size=1)
        return jnp.stack([found.logsumexp[0], found.entropy[0], *found.of_ids[0]])

    def plain(b):
        log_probs = jax.nn.log_softmax(b)
        return jnp.stack([jax.nn.logsumexp(b), -(jnp.exp(log_probs) * log_probs).sum(), log_probs[0], log_probs[3]])

    second = lambda f: lambda b: jax.jvp(jax.jacrev(f), (b,), (v,))
    found, expected = jax.jit(lambda b: (second(ours)(b), second(plain)(b)))(b)
    jax.tree.map(assert_same, found, expected)


def test_confident_examples_keep_their_digits():
    lead = np.array([5.0, 20.0, 50.0, 80.0])
    head = jnp.concatenate([jnp.ones((1, 1), jnp.float32), jnp.zeros((C - 1, 1), jnp.float32)])
    features, ids = jnp.asarray(lead[:, None], jnp.float32), jnp.zeros(4, jnp.int32)
    s = (C - 1) * np.exp(-lead)
    p_rest, p_k = np.exp(-lead) / (1 + s), 1 / (1 + s)
    given = {"weights": jnp.ones(4, jnp.float32), "block_size": 4}
    diagonal = jg.linear_cross_entropy_ggn_diagonal(features, head, ids, **given).head[:, 0]
    np.testing.assert_allclose(diagonal[0], (p_k * s * p_k * lead**2).sum(), rtol=1e-5)
    for lone, e in enumerate(lead):
        only = {**given, "weights": jnp.asarray(np.arange(4) == lone, jnp.float32)}
        for product in (jg.linear_cross_entropy_hvp, jg.linear_cross_entropy_ggn_product):
            g = product(features, head, ids, jg.HeadVector(head=head + 1), **only).head[:, 0]
            np.testing.assert_allclose(g[0], p_k[lone] * s[lone] * p_k[lone] * e**2, rtol=1e-5)
            np.testing.assert_allclose(g[1:], -p_k[lone] * p_rest[lone] * e**2 * np.ones(C - 1), rtol=1e-5)
    norms = jg.linear_cross_entropy_grad_norms(features, head, ids, block_size=4)
    np.testing.assert_allclose(norms[:2], (lead * np.sqrt((s * p_k) ** 2 + (C - 1) * p_rest**2))[:2], rtol=1e-5)  # squares of the others underflow
    summary = jg.linear_log_probs(features, head, ids=jnp.tile(jnp.array([0, C - 1]), (4, 1)), block_size=4)
    np.testing.assert_allclose(summary.entropy, np.log1p(s) + s * p_k * lead, rtol=1e-5)
    for of_k in (summary.top[:, 0], summary.of_ids[:, 0]):
        np.testing.assert_allclose(of_k, -np.log1p(s), rtol=1e-5)
    np.testing.assert_allclose(summary.of_ids[:, 1], -lead - np.log1p(s), rtol=1e-5)


@pytest.mark.parametrize("block_size", [4, None])
def test_confident_examples_keep_their_digits_whatever_their_label(block_size):
    spread = np.repeat([1.0, 8.0, 40.0, 70.0], 8)  # in float32 nothing underflows
    rng = np.random.default_rng(5)
    rows = rng.uniform(0, 1, (32, C)).astype(np.float32)
    rows[np.arange(32), rng.integers(0, C, 32)] += 0.25
    rows = np.round(64 * rows * spread[:, None]).astype(np.float32) / 64  # their differences are exact in float32
    u, labels = rng.normal(size=(32, C)).astype(np.float32), rng.integers(0, C, 32)  # most of the labels are not the heaviest class
    z, du = rows.astype(np.float64), u.astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    pairs = p[:, :, None] * p[:, None] * ~np.eye(C, dtype=bool)
    apart = du[:, :, None] - du[:, None]
    data = jnp.eye(32, dtype=jnp.float32), jnp.asarray(rows.T), jnp.asarray(labels)  # the logits of an example are a column of the head
    given = {"weights": jnp.ones(32, jnp.float32), "block_size": block_size}
    diagonal = jg.linear_cross_entropy_ggn_diagonal(*data, **given).head.T
    np.testing.assert_allclose(diagonal, pairs.sum(-1), rtol=2e-6)
    for product in (jg.linear_cross_entropy_hvp, jg.linear_cross_entropy_ggn_product):
        g = np.asarray(product(*data, jg.HeadVector(head=jnp.asarray(u.T)), **given).head.T)
        assert (np.abs(g - (pairs * apart).sum(-1)) <= 2e-6 * (pairs * np.abs(apart)).sum(-1)).all()


def test_products_and_diagonals_have_derivatives_also_at_ties(widest_dtype):
    e, w, v = jnp.ones((1, 1), widest_dtype), jnp.array([[2.0], [2.0], [1.0], [2.0]], widest_dtype), jnp.array([[1.0], [-2.0], [0.5], [3.0]], widest_dtype)
    ids, along, one = jnp.array([2]), jg.HeadVector(head=v), jnp.ones(1, widest_dtype)

    def ours(w):
        product = jg.linear_cross_entropy_ggn_product(e, w, ids, along, weights=one, block_size=1)
        return product.head[:, 0], jg.linear_cross_entropy_ggn_diagonal(e, w, ids, weights=one, block_size=2).head[:, 0]

    def plain(w):
        p = jax.nn.softmax(w[:, 0])
        return p * (v[:, 0] - p @ v[:, 0]), p * (1 - p)

    found, expected = jax.jit(lambda w: (jax.jvp(ours, (w,), (v,))[1], jax.jvp(plain, (w,), (v,))[1]))(w)
    jax.tree.map(assert_same, found, expected)


def test_an_example_with_weight_0_does_not_count():
    x, v = arrays(jnp.float32, POINT), jg.HeadVector(**arrays(jnp.float32, ALONG))
    weights, padded = jnp.asarray(WEIGHTS, jnp.float32).at[2].set(0), jnp.asarray(IDS).at[2].set(-1)
    for f in (jg.linear_cross_entropy_hvp, jg.linear_cross_entropy_ggn_product):
        found, expected = (f(x["features"], x["head"], ids, v, bias=x["bias"], weights=weights) for ids in (padded, jnp.asarray(IDS)))
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("targets", [IDS, SOFT], ids=["ids", "distributions"])
def test_a_masked_example_has_norm_0_and_is_not_looked_at(targets):
    x, keep = arrays(jnp.float32, POINT), np.arange(N) != 2
    y = np.where(keep.reshape(-1, *[1] * (targets.ndim - 1)), targets, -1 if targets.ndim == 1 else np.nan)
    data = jnp.where(keep[:, None], x["features"], jnp.nan), x["head"], jnp.asarray(y, jnp.int32 if targets.ndim == 1 else jnp.float32)
    rest = x["features"][keep], x["head"], data[2][keep]
    norms, gram = (f(*data, bias=x["bias"], where=keep) for f in (jg.linear_cross_entropy_grad_norms, jg.linear_cross_entropy_grad_gram))
    assert norms[2] == 0
    assert not gram[2].any()
    np.testing.assert_allclose(norms[keep], jg.linear_cross_entropy_grad_norms(*rest, bias=x["bias"]), rtol=1e-6)
    np.testing.assert_allclose(gram[keep][:, keep], jg.linear_cross_entropy_grad_gram(*rest, bias=x["bias"]), rtol=1e-5, atol=1e-5)


def test_a_vocabulary_of_131072_takes_32_mib():
    spec = jax.ShapeDtypeStruct
    e, w, ids = spec((2048, 256), jnp.float32), spec((131072, 256), jnp.float32), spec((2048,), jnp.int32)
    programs = [
        lambda e, w, ids: jg.linear_cross_entropy_hvp(e, w, ids, jg.HeadVector(e, w)),
        lambda e, w, ids: jg.linear_cross_entropy_ggn_product(e, w, ids, jg.HeadVector(e, w)),
        jg.linear_cross_entropy_ggn_diagonal,
        jg.linear_cross_entropy_grad_norms,
        lambda e, w, ids: jg.linear_log_probs(e, w, top_k=8),
    ]
    for number, program in enumerate(programs):
        assert jax.jit(program).lower(e, w, ids).compile().memory_analysis().temp_size_in_bytes <= 2**25, number


def test_products_come_in_the_dtypes_of_their_quantities(narrow_dtype):
    x, v = arrays(narrow_dtype, POINT), arrays(narrow_dtype, ALONG)
    product = jg.linear_cross_entropy_hvp(x["features"], x["head"], jnp.asarray(IDS), jg.HeadVector(**v), bias=x["bias"])
    wide = jg.linear_cross_entropy_hvp(*(x[n].astype(jnp.float32) for n in ("features", "head")), IDS, jg.HeadVector(**arrays(jnp.float32, v)), bias=x["bias"])
    for found, expected in zip(jax.tree.leaves(product), jax.tree.leaves(wide), strict=True):
        assert found.dtype == narrow_dtype
        np.testing.assert_allclose(found.astype(jnp.float32), expected.astype(jnp.float32), rtol=float(jnp.finfo(narrow_dtype).eps), atol=1e-6)


def test_a_class_id_out_of_range_raises_or_makes_nan():
    x, v, ids = arrays(jnp.float32, POINT), jg.HeadVector(**arrays(jnp.float32, ALONG)), jnp.asarray(IDS).at[2].set(C)
    with pytest.raises(IndexError, match=r"targets\[2\]: expected a class id from 0 to 22, got 23"):
        jg.linear_cross_entropy_hvp(x["features"], x["head"], ids, v, bias=x["bias"])
    with pytest.raises(IndexError, match=r"targets\[2\]"):  # they are known, though the features are not
        jax.jit(lambda e: jg.linear_cross_entropy_ggn_diagonal(e, x["head"], ids).head)(x["features"])
    product, norms = jax.jit(
        lambda x, ids: (
            jg.linear_cross_entropy_hvp(x["features"], x["head"], ids, v, bias=x["bias"]),
            jg.linear_cross_entropy_grad_norms(x["features"], x["head"], ids),
        )
    )(x, ids)
    assert (np.isnan(product.features).all(-1) == (np.arange(N) == 2)).all()
    assert (np.isnan(norms) == (np.arange(N) == 2)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"along": jg.HeadVector()}, "along: expected a direction in features, head or bias, got none"),
        ({"along": jg.HeadVector(head=np.zeros((D, C), np.float32))}, "along.head: expected shape (23, 5) (that of the head), got (5, 23)"),
        ({"along": jg.HeadVector(bias=np.zeros(C, np.float32))}, "along.bias: expected None without a bias"),
        ({"weights": np.ones((N, 1), np.float32)}, "weights: expected shape (7,)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    x = arrays(jnp.float32, POINT)
    given = {"along": jg.HeadVector(x["features"], x["head"]), **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        jg.linear_cross_entropy_hvp(x["features"], x["head"], jnp.asarray(IDS), given.pop("along"), **given)


def test_other_refusals():
    x = arrays(jnp.float32, POINT)
    with pytest.raises(TypeError, match=r"along: expected a HeadVector, got tuple; pass for example HeadVector\(head=...\)"):
        jg.linear_cross_entropy_hvp(x["features"], x["head"], jnp.asarray(IDS), (x["features"], x["head"]))
    with pytest.raises(TypeError, match="along: expected a ChainVector, got HeadVector; pass ChainVector"):
        jg.chain_hvp(lambda params, inputs: inputs, x["features"], x["head"], x["features"], IDS, jg.HeadVector(head=x["head"]))
    with pytest.raises(ValueError, match=r"top_k: expected an int from 0 to the 23 classes, got 24"):
        jg.linear_log_probs(x["features"], x["head"], top_k=24)
    with pytest.raises(ValueError, match=r"ids: expected integers of shape \(7,\) \+ \(M,\), got int32 of shape \(7,\); add an axis"):
        jg.linear_log_probs(x["features"], x["head"], ids=IDS)
