"""Second derivatives of the chain: equal to `jax.hessian` of the plain composed loss, and to the formulas on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgrad as jg

KEYS = jax.random.split(jax.random.key(2), 9)
C, D = 3, 4


def tanh_features(params, inputs):
    """Parameters and inputs in nested pytrees, each with a leaf that has no derivative."""
    u = inputs["x"] @ params["dense"] + params["embedding"][inputs["token"]]
    return params["step"].astype(u.dtype) + jnp.tanh(u)


def make(leading, dtype, biased=True, soft=True, masked=False):
    params = {"dense": jax.random.normal(KEYS[0], (3, D), dtype), "embedding": jax.random.normal(KEYS[1], (2, D), dtype), "step": jnp.array(1, jnp.int32)}
    inputs = {"x": jax.random.normal(KEYS[2], (*leading, 3), dtype), "token": jax.random.randint(KEYS[3], leading, 0, 2)}
    targets = jax.random.uniform(KEYS[5], (*leading, C), dtype) if soft else jax.random.randint(KEYS[5], leading, 0, C)
    return {
        "params": params,
        "head": jax.random.normal(KEYS[4], (C, D), dtype),
        "inputs": inputs,
        "targets": targets,
        "bias": jax.random.normal(KEYS[6], (C,), dtype) if biased else None,
        "weights": jax.random.uniform(KEYS[7], leading, dtype),
        "where": jax.random.bernoulli(KEYS[8], 0.7, leading) if masked else None,
    }


def chain_hessian(given):
    """Through `jit`, in and out: the operators are pytrees."""
    return jax.jit(lambda given: jg.chain_hessian(tanh_features, **given))(given)


def plain_losses(z, y):
    """The losses, with no custom rule in them."""
    y = jax.nn.one_hot(y, C, dtype=z.dtype) if jnp.issubdtype(y.dtype, jnp.integer) else y
    return -(y * (z - jnp.log(jnp.exp(z).sum(-1, keepdims=True)))).sum(-1)


def plain(given):
    """The logits and the loss as functions of (dense, embedding, head, bias, x)."""

    def logits(dense, embedding, head, bias, x):
        e = tanh_features({**given["params"], "dense": dense, "embedding": embedding}, {**given["inputs"], "x": x})
        z = e @ head.T
        return z if bias is None else z + jnp.broadcast_to(bias, z.shape)

    counted = given["weights"] if given["where"] is None else jnp.where(given["where"], given["weights"], 0)
    loss = lambda z: (counted * plain_losses(z, given["targets"])).sum()
    point = (given["params"]["dense"], given["params"]["embedding"], given["head"], given["bias"], given["inputs"]["x"])
    return logits, loss, point


def dense_parts(given):
    """∇²L, G and T over (θ, W, b), and ∇²_x L, from JAX's derivatives of the plain functions, (P, P)."""
    logits, loss, point = plain(given)
    flat, unravel = ravel_pytree(point[:4])
    z_of = lambda flat: logits(*unravel(flat), point[4]).ravel()
    loss_of_z = lambda z: loss(z.reshape(*given["weights"].shape, C))

    @jax.jit
    def parts(flat, x):
        z = z_of(flat)
        jacobian, r = jax.jacrev(z_of)(flat), jax.grad(loss_of_z)(z)
        ggn = jacobian.T @ jax.hessian(loss_of_z)(z) @ jacobian
        residual = jax.hessian(lambda flat: r @ z_of(flat))(flat)
        hessian = jax.hessian(lambda flat: loss_of_z(z_of(flat)))(flat)
        by_inputs = jax.hessian(lambda x: loss(logits(*point[:4], x)))(x)
        return hessian, ggn, residual, by_inputs.reshape(x.size, x.size)

    return parts(flat, point[4])


CASES = pytest.mark.parametrize(("leading", "biased", "soft", "masked"), [((5,), True, True, True), ((2, 3), False, False, False), ((), True, False, False)])


@CASES
def test_each_block_is_that_of_the_composed_loss(leading, biased, soft, masked, widest_dtype):
    given = make(leading, widest_dtype, biased, soft, masked)
    H = chain_hessian(given)
    found = jax.jit(lambda H: [A.to_dense() for A in (H.hessian, H.ggn, H.residual, H.inputs)])(H)
    tolerance = {"rtol": 1e-4, "atol": 3e-6} if widest_dtype == jnp.float32 else {"rtol": 1e-10, "atol": 1e-12}
    for computed, expected in zip(found, dense_parts(given), strict=True):
        np.testing.assert_allclose(computed, expected, **tolerance)
    sizes = [leaf.size for leaf in jax.tree.leaves((given["params"]["dense"], given["params"]["embedding"], given["head"], given["bias"]))]
    head = slice(sum(sizes[:2]), None)
    np.testing.assert_allclose(H.head.to_dense(), found[1][head, head], **tolerance)
    assert not np.any(found[2][head, head])


def on_paper(given):
    """J, r and e in float64, flat: (N, C, C), (N, C), (N, d), the weights in J and r."""
    e = np.asarray(tanh_features(given["params"], given["inputs"]), np.float64).reshape(-1, D)
    w, y = np.asarray(given["weights"], np.float64).ravel(), np.asarray(given["targets"])
    y = np.eye(C)[y.ravel()] if y.dtype.kind == "i" else y.reshape(-1, C).astype(np.float64)
    if given["where"] is not None:
        w = w * np.asarray(given["where"]).ravel()
    z = e @ np.asarray(given["head"], np.float64).T + (0 if given["bias"] is None else np.asarray(given["bias"], np.float64))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    total = y.sum(-1, keepdims=True)
    j = (w[:, None] * total)[..., None] * np.stack([np.diag(row) - np.outer(row, row) for row in p])
    return j, w[:, None] * (p * total - y), e


@CASES
def test_blocks_of_single_quantities_are_those_on_paper(leading, biased, soft, masked, widest_dtype):
    given = make(leading, widest_dtype, biased, soft, masked)
    H = chain_hessian(given)
    j, r, e = on_paper(given)
    w = np.asarray(given["head"], np.float64)
    close = lambda computed, expected: np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=2e-6)
    flat = lambda x, axes: np.reshape(x, (-1, *np.shape(x)[len(leading) : len(leading) + axes]))
    close(flat(H.logits.to_dense(), 2), j)
    metric = w.T @ j @ w
    close(flat(H.features.to_dense(), 2), metric)
    close(flat(H.features.diagonal(), 1), np.diagonal(metric, axis1=1, axis2=2))
    close(np.ravel(H.features.trace()), np.trace(metric, axis1=1, axis2=2))
    assert H.features.shape == (*leading, D, D)

    v, v_head = jax.random.normal(KEYS[0], (*leading, D), widest_dtype), (jnp.cos(given["head"]), jnp.sin(given["head"][:, 0]))
    v_paper, head_paper, bias_paper = (np.asarray(x, np.float64) for x in (v.reshape(-1, D), v_head[0], v_head[1] if biased else jnp.zeros(C)))
    close(flat(H.features @ v, 1), np.einsum("nab,nb->na", metric, v_paper))
    by_features = H.head_by_features(v)
    jwv = np.einsum("nij,jb,nb->ni", j, w, v_paper)
    close(by_features[0] if biased else by_features, jwv.T @ e + r.T @ v_paper)
    if biased:
        close(by_features[1], jwv.sum(0))
    by_head = H.features_by_head(v_head if biased else v_head[0])
    close(flat(by_head, 1), np.einsum("ij,nik,nk->nj", w, j, e @ head_paper.T + bias_paper) + r @ head_paper)

    extended = np.concatenate([e, np.ones((len(e), 1))], -1) if biased else e
    kronecker = sum(np.kron(a, np.outer(b, b)) for a, b in zip(j, extended, strict=True))
    places = np.arange(C * extended.shape[1]).reshape(C, -1)
    order = np.concatenate([places[:, :D].ravel(), places[:, D:].ravel()])
    kronecker = kronecker[np.ix_(order, order)]
    dense = H.head.to_dense()
    close(dense, kronecker)
    np.testing.assert_array_equal(dense, dense.T)
    close(ravel_pytree(H.head.diagonal())[0], np.diag(kronecker))
    close(H.head.trace(), np.trace(kronecker))
    knobs = {name: given[name] for name in ("bias", "weights", "where")}
    direct = jg.head_hessian(tanh_features(given["params"], given["inputs"]), given["head"], given["targets"], **knobs)
    np.testing.assert_allclose(direct.to_dense(), dense, rtol=1e-5, atol=1e-7)
    block = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), v_head if biased else v_head[0])
    expected = kronecker @ np.concatenate([head_paper.ravel(), bias_paper if biased else []])
    close(ravel_pytree(jax.tree.map(lambda x: x[1], direct @ block))[0], 2 * expected)


def test_the_mixed_term_of_the_residual_is_counted_once():
    """With e = θ, a number, d²L is 2 Σ_k r_k dW_k dθ beside Gauss–Newton: T has r once in each of two places."""
    theta, head, r = jnp.array([0.5], jnp.float32), jnp.zeros((2, 1), jnp.float32), np.array([-0.5, 0.5])
    T = jg.chain_hessian(lambda theta, _: theta, theta, head, (), jnp.array(0)).residual
    np.testing.assert_allclose(T.to_dense(), [[0, *r], [r[0], 0, 0], [r[1], 0, 0]], atol=1e-7)
    step = (jnp.ones(1, jnp.float32), jnp.array([[1.0], [0.0]], jnp.float32))
    np.testing.assert_allclose(sum(jnp.vdot(a, b) for a, b in zip(step, T @ step, strict=True)), 2 * r[0])


@pytest.mark.parametrize("lead", [5.0, 40.0])
def test_blocks_of_confident_examples_keep_their_digits(lead):
    """The label leads by 4 or 39 nats and the head has a common offset: against ½ Σ_ij p_i p_j (w_i − w_j)(w_i − w_j)ᵀ."""
    head = 100_000 + jnp.array([[3.0, -10.0], [0.0, -8.0], [1.0, -3.0]], jnp.float32)
    bias = jnp.array([lead, 0.0, 1.0], jnp.float32)
    features = jnp.array([[0.0, 0.0]], jnp.float32)
    H = jg.chain_hessian(lambda _, e: e, (), head, features, jnp.array([0]), bias=bias)
    z, w = np.asarray(bias, np.float64), np.asarray(head, np.float64)
    p = np.exp(z) / np.exp(z).sum()
    expected = sum(p[i] * p[j] * np.outer(w[i] - w[j], w[i] - w[j]) for i in range(3) for j in range(i))
    np.testing.assert_allclose(H.features.to_dense()[0], expected, rtol=1e-5)
    np.testing.assert_allclose(H.features.diagonal()[0], np.diag(expected), rtol=1e-5)
    np.testing.assert_allclose(H.features.matvec(jnp.ones_like(features))[0], expected.sum(-1), rtol=2e-2)  # Wᵀ s has the offset
    ones = jg.head_hessian(jnp.ones((1, 1), jnp.float32), bias[:, None], jnp.array([0]))
    j = np.diag([p[0] * (p[1] + p[2]), p[1] * (p[0] + p[2]), p[2] * (p[0] + p[1])]) - (np.outer(p, p) - np.diag(p * p))
    np.testing.assert_allclose(ones.to_dense(), j, rtol=1e-5)


def test_a_masked_example_is_inert():
    given = make((5,), jnp.float32)
    given["where"] = jnp.arange(5) != 2
    expected = chain_hessian(given)
    spoil = lambda params, inputs: jnp.where(given["where"][:, None], tanh_features(params, inputs), jnp.nan)
    weights, targets = given["weights"].at[2].set(jnp.nan), given["targets"].at[2].set(jnp.nan)
    H = jg.chain_hessian(spoil, **{**given, "weights": weights, "targets": targets})
    by_features = jnp.ones((5, D), jnp.float32)
    for mine, theirs in zip(*[(A.hessian.to_dense(), A.head.to_dense(), A.features.to_dense(), A.inputs.to_dense()) for A in (H, expected)], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    jax.tree.map(np.testing.assert_array_equal, H.head_by_features(by_features.at[2].set(jnp.nan)), expected.head_by_features(by_features))
    assert not np.any(H.features.to_dense()[2])
    assert not np.any(H.inputs.to_dense().reshape(5, 3, 5, 3)[2])


def test_products_come_in_the_dtypes_of_the_parameters():
    def products(given):
        H = jg.chain_hessian(tanh_features, **given)
        return H.hessian.like, H.hessian @ H.hessian.like, H.inputs @ H.inputs.like, H.features.to_dense(), H.head.to_dense()

    like, product, by_inputs, *dense = jax.eval_shape(products, make((5,), jnp.bfloat16))
    assert jax.tree.structure(product) == jax.tree.structure(like)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype(jnp.bfloat16)}
    assert product[0]["step"] is None
    assert by_inputs["token"] is None
    assert [matrix.dtype for matrix in dense] == [jnp.float32] * 2


def test_the_dense_hessian_of_a_wide_head_is_symmetric_to_the_bit():
    e, head = jax.random.normal(KEYS[0], (50, 30), jnp.float32), jax.random.normal(KEYS[1], (11, 30), jnp.float32)
    H = jg.head_hessian(e, head, jnp.zeros(50, jnp.int32))
    dense = np.asarray(H.to_dense())
    np.testing.assert_array_equal(dense, dense.T)
    assert np.linalg.eigvalsh(dense.astype(np.float64))[0] > -1e-6
    v = np.cos(np.asarray(head))
    np.testing.assert_allclose((H @ jnp.asarray(v)).ravel(), dense.astype(np.float64) @ v.ravel(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda H: H.features @ jnp.ones((5, C), jnp.float32), ValueError, r"other: expected vectors \(5, 4\)"),
        (lambda H: H.features.matvec(jnp.ones((4,), jnp.float32)), ValueError, r"vector: expected shape \(5, 4\)"),
        (lambda H: H.head_by_features(jnp.ones((4,), jnp.float32)), ValueError, r"tangent: expected shape \(5, 4\)"),
        (lambda H: H.features_by_head(jnp.ones((C, D), jnp.float32)), ValueError, r"tangent: expected \[\(3, 4\), \(3,\)\], .* got \[\(3, 4\)\]"),
        (lambda H: H.head @ jnp.ones((C, D), jnp.float32), ValueError, r"other: expected a pytree built as the parameters are"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    given = make((5,), jnp.float32)
    with pytest.raises(error, match=message):
        call(jg.chain_hessian(tanh_features, **given))
