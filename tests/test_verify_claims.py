"""The checker of claimed derivatives: right claims pass in every dtype, wrong ones are caught and explained."""

import dataclasses
import pickle
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad as jg
from jaxgrad import verify

normal = lambda seed, *shape, dtype=jnp.float32: jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)
ones = partial(jnp.ones, dtype=jnp.float32)
one_hot = jnp.array([0, 0, 1, 0, 0], jnp.float32)


def fails(check, *arguments, **knobs):
    """The error of a claim that must not pass."""
    with pytest.raises(verify.VerificationError) as caught:
        check(*arguments, **knobs)
    assert not caught.value.report.passed
    return caught.value


# Functions, written plainly, and their derivatives by hand.


def loss(z, y):
    """−Σ y log p for distributions, summed over rows."""
    return -(y * jax.nn.log_softmax(z, axis=-1)).sum()


def residual(z, y):
    return jax.nn.softmax(z, axis=-1) * y.sum(-1, keepdims=True) - y


def head_loss(head, e, y):
    return loss(head @ e, y)


def head_grad(head, e, y):
    return jnp.outer(residual(head @ e, y), e)


def quadratic(x, a):
    return x @ (a @ x) * jnp.array(0.5, x.dtype)


def net(params, x):
    return (jnp.tanh(x @ params["w"] + params["b"][None]) @ params["out"][0]).sum()


def net_grad(params, x):
    h = jnp.tanh(x @ params["w"] + params["b"][None])
    back = (1 - h * h) * params["out"][0][None]
    return {"w": x.T @ back, "b": back.sum(0), "out": (h.sum(0),)}


def linear(matrix, x):
    return matrix @ x


@pytest.fixture
def logits():
    return normal(0, 4, 5)


@pytest.fixture
def targets():
    """Distributions that sum to 1.5."""
    return 1.5 * jax.nn.softmax(normal(1, 4, 5), axis=-1)


@pytest.fixture
def params():
    return {"w": normal(2, 3, 4), "b": normal(3, 4), "out": (normal(4, 4),)}


# Right claims pass.


def test_cross_entropy_grad_is_verified_in_every_dtype(dtype, logits, targets):
    report = verify.check_gradient(loss, jg.cross_entropy_grad, logits.astype(dtype), targets.astype(dtype))
    assert report.passed
    assert (report.quantity, report.route, report.dtype, report.num_entries, report.num_exceeding) == ("gradient", "grad", dtype, 20, 0)
    assert report.worst_ulp < (4 if dtype != jnp.float64 else 64)  # of a float64 claim, the reference rounds too


def test_softmax_jacobian_is_verified_in_every_dtype_as_operator_and_as_array(dtype, logits):
    row = logits[0].astype(dtype)
    softmax = partial(jax.nn.softmax, axis=-1)
    for claim in jg.softmax_jacobian, lambda z: jg.softmax_jacobian(z).to_dense():
        report = verify.check_jacobian(softmax, claim, row)
        assert report.route in {"jacfwd", "jacrev"}
        assert report.num_entries == 25


def test_cross_entropy_hessian_is_verified_in_every_dtype_for_one_row(dtype, logits, targets):
    report = verify.check_hessian(loss, jg.cross_entropy_hessian, logits[0].astype(dtype), targets[0].astype(dtype))
    assert report.route in {"forward-over-reverse", "reverse-over-reverse"}
    assert report.passed


def test_gradient_of_a_net_is_verified_over_a_pytree_of_params(dtype, params):
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    assert verify.check_gradient(net, net_grad, params, normal(5, 6, 3, dtype=dtype)).passed


def test_jvp_vjp_and_adjoint_of_softmax_are_verified_in_every_dtype(dtype, logits):
    z = logits.astype(dtype)
    product = lambda z, v: jg.softmax_jacobian(z) @ v
    softmax = partial(jax.nn.softmax, axis=-1)
    assert verify.check_jvp(softmax, product, z).quantity == "jvp"
    assert verify.check_vjp(softmax, product, z).quantity == "vjp"
    assert verify.check_adjoint(product, product, z).dtype == dtype


def test_any_argument_may_be_the_variable(logits, targets):
    minus_log_probs = lambda z, y: -jax.nn.log_softmax(z, axis=-1)
    assert verify.check_gradient(loss, minus_log_probs, logits, targets, argnum=1).passed
    fails(verify.check_gradient, loss, minus_log_probs, logits, targets, argnum=0)


def test_jvp_and_vjp_take_pytrees_in_and_out(params):
    function = lambda p: {"sum": p["w"].sum(0) + p["b"], "square": p["out"][0] ** 2}
    push = lambda p, v: {"sum": v["w"].sum(0) + v["b"], "square": 2 * p["out"][0] * v["out"][0]}
    pull = lambda p, w: {"w": jnp.broadcast_to(w["sum"], (3, 4)), "b": w["sum"], "out": (2 * p["out"][0] * w["square"],)}
    assert verify.check_jvp(function, push, params).passed
    assert verify.check_vjp(function, pull, params).passed
    assert verify.check_adjoint(push, pull, params).passed
    wrong = lambda p, w: pull(p, w) | {"b": 2 * w["sum"]}
    assert fails(verify.check_vjp, function, wrong, params).report.leaf == "['b']"
    fails(verify.check_adjoint, push, wrong, params)


def test_numpy_claims_and_python_numbers_are_taken():
    claim = lambda z, y: np.asarray(z) - np.asarray(y)
    function = lambda z, y: ((z - y) ** 2).sum() / 2
    assert verify.check_gradient(function, claim, np.ones(2, np.float32), np.zeros(2, np.float32)).dtype == np.float32
    assert verify.check_gradient(lambda x: x * x, lambda x: 2 * x, 3.0).worst_autodiff == 6


def test_claim_and_reference_see_the_same_numbers_though_jax_rounds_those_of_numpy():
    function = lambda z, y: (z - y) ** 2 / 2
    for z, y in (1 + 1e-7, 1.0), (1.0, 1 + 1e-7):
        assert verify.check_gradient(function, lambda z, y: jnp.subtract(z, y), np.float64(z), np.float64(y)).worst_ulp == 0


def test_arguments_that_are_no_floating_arrays_are_left_alone(logits):
    ids, keys = jnp.arange(4), jax.random.key(0)
    function = lambda z, ids, key, config: config["scale"] * jg.cross_entropy(z, ids).sum()
    claim = lambda z, ids, key, config: config["scale"] * jg.cross_entropy_grad(z, ids)
    assert verify.check_gradient(function, claim, logits, ids, keys, {"scale": 2, "name": "ce", "none": None}).passed


def test_an_empty_array_passes_and_says_that_nothing_was_compared():
    report = verify.check_gradient(lambda x: x.sum(), jnp.ones_like, jnp.zeros((0, 3)))
    assert report.passed
    assert "0 of 0 entries" in str(report)


# Wrong claims are caught.


def test_wrong_sign_is_caught_and_named(logits, targets):
    error = fails(verify.check_gradient, loss, lambda z, y: -residual(z, y), logits, targets)
    assert "every entry is -1 times grad: a sign" in str(error)
    assert error.report.num_exceeding == 20


def test_wrong_sign_is_caught_in_every_dtype(dtype, logits, targets):
    fails(verify.check_gradient, loss, lambda z, y: -jg.cross_entropy_grad(z, y), logits.astype(dtype), targets.astype(dtype))


def test_missing_half_is_caught_in_every_dtype(dtype):
    a = normal(0, 4, 4, dtype=dtype)
    fails(verify.check_gradient, quadratic, lambda x, a: (a + a.T) @ x, normal(1, 4, dtype=dtype), a)


def test_transposed_factor_of_the_head_gradient_is_caught_and_named():
    head, e, y = normal(0, 5, 5), normal(1, 5), one_hot
    assert verify.check_gradient(head_loss, head_grad, head, e, y).passed
    error = fails(verify.check_gradient, head_loss, lambda *a: head_grad(*a).T, head, e, y)
    assert "the transpose agrees: swap the last two axes" in str(error)


def test_transposed_factor_of_another_shape_is_refused_with_the_remedy():
    head, e, y = normal(0, 5, 3), normal(1, 3), one_hot
    assert verify.check_gradient(head_loss, head_grad, head, e, y).passed
    with pytest.raises(ValueError, match=re.escape("claimed: expected shape (5, 3), got (3, 5); that is the shape of the transpose: swap")):
        verify.check_gradient(head_loss, lambda *a: head_grad(*a).T, head, e, y)


def test_missing_half_of_a_quadratic_form_is_caught_and_named():
    a, x = normal(0, 4, 4), normal(1, 4)
    half = lambda x, a: (a + a.T) @ x / 2
    assert verify.check_gradient(quadratic, half, x, a).passed
    assert verify.check_hessian(quadratic, lambda x, a: (a + a.T) / 2, x, a).passed
    assert "every entry is 2 times grad: a factor 2" in str(fails(verify.check_gradient, quadratic, lambda x, a: 2 * half(x, a), x, a))
    assert "0.5 times" in str(fails(verify.check_gradient, lambda x, a: x @ a @ x, half, x, a))
    assert "-0.5 times grad: a sign and a factor 1/2" in str(fails(verify.check_gradient, lambda x, a: -(x @ a @ x), half, x, a))


def test_dropped_sum_of_soft_targets_is_caught(logits, targets):
    error = fails(verify.check_gradient, loss, lambda z, y: jax.nn.softmax(z, axis=-1) - y, logits, targets)
    assert error.report.hint == ""
    fails(verify.check_hessian, loss, lambda z, y: jg.softmax_jacobian(z), logits[0], targets[0])
    normalised = targets / targets.sum(-1, keepdims=True)
    assert verify.check_gradient(loss, lambda z, y: jax.nn.softmax(z, axis=-1) - y, logits, normalised).passed


def test_sum_for_mean_over_the_batch_is_caught_and_named(logits, targets):
    z, y = normal(0, 7, 5), jax.nn.softmax(normal(1, 7, 5), axis=-1)
    mean = lambda z, y: loss(z, y) / z.shape[0]
    assert verify.check_gradient(mean, lambda z, y: residual(z, y) / 7, z, y).passed
    assert "7 times grad: a sum for the mean over an axis of size 7" in str(fails(verify.check_gradient, mean, residual, z, y))
    error = fails(verify.check_gradient, loss, lambda z, y: residual(z, y) / 7, z, y)
    assert "0.1429 times grad: a mean for the sum over an axis of size 7" in str(error)


def test_dropped_term_of_a_mixed_second_derivative_is_caught():
    head, e, y = normal(0, 5, 3), normal(1, 3), one_hot
    feature_grad = jax.grad(head_loss, argnums=1)

    def gauss_newton(head, e, y):
        return jnp.einsum("jm,jk,l->mkl", head, jg.softmax_jacobian(head @ e).to_dense(), e)

    def exact(head, e, y):
        return gauss_newton(head, e, y) + jnp.einsum("k,lm->mkl", residual(head @ e, y), jnp.eye(3, dtype=jnp.float32))

    assert verify.check_jacobian(feature_grad, exact, head, e, y).passed
    assert fails(verify.check_jacobian, feature_grad, gauss_newton, head, e, y).report.num_exceeding == 15  # where m = l


def test_halved_mixed_term_of_a_hessian_is_caught_at_its_place():
    x = jnp.array([2.0, 3.0])
    claim = lambda mixed: lambda x: jnp.array([[2 * x[1], mixed * x[0]], [2 * x[0], 0]])
    function = lambda x: x[0] ** 2 * x[1]
    assert verify.check_hessian(function, claim(2), x).passed
    report = fails(verify.check_hessian, function, claim(1), x).report
    assert (report.worst_index, report.worst_claimed, report.worst_autodiff, report.num_exceeding) == ((0, 1), 2, 4, 1)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_claim_that_is_not_finite_is_infinitely_wrong(bad, logits, targets):
    error = fails(verify.check_gradient, loss, lambda z, y: residual(z, y).at[1, 2].set(bad), logits, targets)
    assert (error.report.worst_ulp, error.report.worst_index, error.report.num_exceeding) == (np.inf, (1, 2), 1)
    assert "off by inf ULP" in str(error)


def test_a_reference_that_is_not_finite_wants_the_like():
    x = jnp.array([0.0, 4.0, -1.0])  # √ has derivatives inf, 1/4, NaN
    function = lambda x: jnp.sqrt(x).sum()
    right = jnp.array([jnp.inf, 0.25, jnp.nan])
    assert verify.check_gradient(function, lambda x: right, x).passed
    fails(verify.check_gradient, function, lambda x: jnp.array([jnp.inf, 0.26], jnp.float32), x[:2])  # measured by 1/4, not by inf
    for index, value in (0, -jnp.inf), (0, 1.0), (0, jnp.nan), (2, 0.0), (2, jnp.inf), (1, 0.26):
        assert fails(verify.check_gradient, function, lambda x, i=index, v=value: right.at[i].set(v), x).report.worst_index == (index,)


def torn(x):
    """x, as a linear map of which the transpose doubles: forward and reverse mode do not agree."""
    return jax.lax.custom_linear_solve(lambda v: v, x, solve=lambda _, b: b, transpose_solve=lambda _, w: 2 * w)


@jax.custom_jvp
def torn_half_square(x):
    return x @ x / 2


@torn_half_square.defjvp
def _(primals, tangents):
    return torn_half_square(*primals), torn(*primals) @ tangents[0]


@pytest.mark.parametrize(("factor", "route"), [(1, "jacrev"), (2, "jacfwd")])
def test_jacobian_is_held_against_both_modes(factor, route):
    report = fails(verify.check_jacobian, torn, lambda x: factor * jnp.eye(3, dtype=x.dtype), ones(3)).report
    assert (report.route, report.worst_claimed, report.worst_autodiff) == (route, factor, 3 - factor)


@pytest.mark.parametrize(("factor", "route"), [(1, "reverse-over-reverse"), (2, "forward-over-reverse")])
def test_hessian_is_held_against_both_modes(factor, route):
    report = fails(verify.check_hessian, torn_half_square, lambda x: factor * jnp.eye(3, dtype=x.dtype), ones(3)).report
    assert (report.route, report.worst_claimed, report.worst_autodiff) == (route, factor, 3 - factor)


def test_wrong_jvp_is_caught_and_names_its_sample():
    matrix, x = normal(0, 4, 3), normal(1, 3)
    assert verify.check_jvp(linear, lambda m, x, v: m @ v, matrix, x, argnum=1).passed
    error = fails(verify.check_jvp, linear, lambda m, x, v: m @ v + x.sum(), matrix, x, argnum=1)
    assert re.fullmatch(r"jvp, sample [0-3]", error.report.route)


def test_wrong_vjp_is_caught():
    matrix, x = normal(0, 3, 3), normal(1, 3)
    assert verify.check_vjp(linear, lambda m, x, w: m.T @ w, matrix, x, argnum=1).passed
    fails(verify.check_vjp, linear, lambda m, x, w: m @ w, matrix, x, argnum=1)


def test_wrong_transpose_is_not_adjoint():
    matrix, x = normal(0, 3, 3), normal(1, 3)
    push = lambda m, x, v: m @ v
    assert verify.check_adjoint(push, lambda m, x, w: m.T @ w, matrix, x, argnum=1).passed
    error = fails(verify.check_adjoint, push, lambda m, x, w: m @ w, matrix, x, argnum=1)
    assert str(error).startswith("⟨w, jvp(v)⟩ disagrees with ⟨vjp(w), v⟩: off by ")
    assert "2 times ⟨vjp(w), v⟩: a factor 2" in str(fails(verify.check_adjoint, push, lambda m, x, w: m.T @ w / 2, matrix, x, argnum=1))
    fails(verify.check_adjoint, push, lambda m, x, w: (m.T @ w) * jnp.nan, matrix, x, argnum=1)


# The error is counted as promised.


@pytest.mark.parametrize("ulps", [0, 1, 3, -3])
def test_error_is_counted_in_ulp_of_the_dtype_of_the_claim(dtype, ulps):
    spacing = 2 * float(jnp.finfo(dtype).eps)  # from 2 to 4
    claim = lambda x: jnp.array([2.5 + ulps * spacing, 0.5], dtype)
    function = lambda x: jnp.array([2.5, 0.5], x.dtype) @ x
    report = verify.check_gradient(function, claim, jnp.ones(2, dtype), max_ulp=3)
    assert (report.worst_ulp, report.num_exceeding) == (abs(ulps), 0)
    assert verify.check_gradient(function, claim, jnp.ones(2, dtype), max_ulp=abs(ulps)).passed
    if ulps:
        error = fails(verify.check_gradient, function, claim, jnp.ones(2, dtype), max_ulp=abs(ulps) - 0.5)
        assert (error.report.worst_index, error.report.num_exceeding) == ((0,), 1)


def test_small_entries_are_measured_by_the_largest_unless_componentwise():
    function = lambda x: jnp.array([1.0, 1e-20], x.dtype) @ x
    claim = lambda x: jnp.array([1.0, 2e-20], jnp.float32)
    assert verify.check_gradient(function, claim, ones(2)).worst_ulp < 1e-6
    report = fails(verify.check_gradient, function, claim, ones(2), componentwise=True).report
    assert (report.worst_index, report.num_exceeding) == ((1,), 1)
    assert verify.check_gradient(function, lambda x: jnp.array([1.0, 1e-20], jnp.float32), ones(2), componentwise=True).worst_ulp <= 0.5


def test_a_derivative_that_vanishes_needs_a_floor():
    function = lambda x: (x - x.mean()).sum() ** 2 / 3 + (x - x.mean()).sum() / 7  # constant, but not to autodiff
    x = normal(0, 7)
    assert fails(verify.check_gradient, function, jnp.zeros_like, x).report.hint == "every entry of the claim is 0"
    assert verify.check_gradient(function, jnp.zeros_like, x, floor=1e-6).worst_ulp < 1e-3
    fails(verify.check_gradient, function, lambda x: jnp.full_like(x, 1e-6), x, floor=1e-6)
    assert verify.check_gradient(function, jnp.zeros_like, x, floor=1e-6, componentwise=True).passed
    assert verify.check_gradient(lambda x: 2 * x.sum(), lambda x: jnp.full_like(x, 2), x, floor=1e-6).passed
    fails(verify.check_gradient, lambda x: 2 * x.sum(), lambda x: -jnp.full_like(x, 2), x, floor=1e-6)


def test_reference_does_not_carry_the_rounding_of_the_inputs_dtype(narrow_dtype):
    function = lambda x: (jnp.exp(x) - 1 - x).sum()  # whose gradient cancels near 0
    claim = lambda x: jnp.expm1(x.astype(jnp.float32)).astype(x.dtype)
    x = jnp.full(3, 1e-4, narrow_dtype)
    assert verify.check_gradient(function, claim, x).worst_ulp <= 0.51
    for reference_dtype in None, narrow_dtype:
        assert fails(verify.check_gradient, function, claim, x, reference_dtype=reference_dtype).report.worst_autodiff == 0


def test_reference_is_evaluated_in_float64_by_default_and_as_asked_otherwise():
    seen = []

    def function(x, others):
        seen.append((x.dtype, others["c"].dtype, others["n"].dtype))
        return (x * others["c"]).sum()

    others = {"c": jnp.ones(2, jnp.float16), "n": jnp.arange(2, dtype=jnp.int32)}
    for knobs, dtype in ({}, jnp.float64), ({"reference_dtype": jnp.float32}, jnp.float32), ({"reference_dtype": None}, jnp.float16):
        verify.check_gradient(function, lambda x, others: others["c"], jnp.ones(2, jnp.float16), others, **knobs)
        assert seen[-1] == (dtype, dtype, jnp.int32)
    verify.check_gradient(function, lambda x, others: jnp.ones(2, jnp.float32), ones(2), {"c": ones(2), "n": others["n"]}, reference_dtype=jnp.float16)
    assert seen[-1] == (jnp.float32, jnp.float32, jnp.int32)


def test_state_of_x64_is_left_as_it_was(logits, targets):
    before = jax.config.jax_enable_x64
    verify.check_gradient(loss, residual, logits, targets)
    fails(verify.check_gradient, loss, lambda z, y: -residual(z, y), logits, targets)
    assert jax.config.jax_enable_x64 == before


def test_default_allowance_leaves_half_the_digits_of_a_narrow_dtype():
    allowed = {jnp.dtype(d).name: verify.check_gradient(jnp.sum, jnp.ones_like, jnp.ones(2, d)).max_ulp for d in (jnp.float32, jnp.float16, jnp.bfloat16)}
    assert allowed == {"float32": 256, "float16": 32, "bfloat16": pytest.approx(11.3, abs=0.1)}


def test_samples_are_determined_by_the_key_and_the_same_in_all_dtypes():
    def drawn(dtype=jnp.float32, **knobs):
        seen = []

        def push(x, v):
            seen.append(np.stack([v["a"], v["b"]]).astype(np.float32))
            return v

        verify.check_jvp(lambda x: x, push, {"a": jnp.ones(3, dtype), "b": jnp.ones(3, dtype)}, num_samples=2, **knobs)
        return np.stack(seen)  # (samples, leaves, 3)

    draws = drawn()
    assert len(np.unique(draws)) == draws.size == 12
    assert (draws == drawn(key=jax.random.key(0))).all()
    assert (draws != drawn(key=jax.random.key(1))).all()
    assert (draws.astype(jnp.bfloat16) == drawn(jnp.bfloat16)).all()


def test_adjoint_error_is_conditioned_by_the_terms_of_the_inner_products():
    x = ones(64)
    assert verify.check_adjoint(lambda x, v: v.sum(), lambda x, w: w * x, x, num_samples=100).worst_ulp < 4  # though ⟨1, v⟩ is often near 0
    fails(verify.check_adjoint, lambda x, v: v.sum() * 1.01, lambda x, w: w * x, x)


def test_adjoint_error_is_in_ulp_of_the_coarser_dtype_and_may_be_wider_than_its_range():
    push = lambda x, v: (1e4 * v).astype(jnp.float16)
    assert verify.check_adjoint(push, lambda x, w: 1e4 * w.astype(jnp.float32), ones(40), num_samples=1).dtype == jnp.float16
    report = verify.check_adjoint(lambda x, v: 1e4 * v, lambda x, w: 1e4 * w, ones(4000).astype(jnp.float16))
    assert abs(report.worst_autodiff) > float(jnp.finfo(jnp.float16).max)


def test_a_function_may_compute_in_its_own_dtype():
    function = lambda x: jnp.exp(x.astype(jnp.float32))
    x = normal(0, 3)
    assert verify.check_vjp(function, lambda x, w: w * jnp.exp(x), x).passed
    assert verify.check_jvp(function, lambda x, v: v * jnp.exp(x), x).passed
    assert verify.check_jacobian(function, lambda x: jnp.diag(jnp.exp(x)), x).passed


def test_an_error_beyond_all_numbers_is_infinite():
    claim = lambda x: np.full(2, 1e308)
    assert fails(verify.check_gradient, lambda x: x.sum() * 1e-320, claim, ones(2)).report.worst_ulp == np.inf


# Messages.


def test_message_says_what_where_both_values_the_error_and_the_allowance(logits, targets):
    claim = lambda z, y: residual(z, y).at[1, 2].add(0.5)
    error = fails(verify.check_gradient, loss, claim, logits, targets)
    report = error.report
    lines = str(error).split("\n  ")
    assert len(lines) == 2
    pattern = r"gradient disagrees with grad: off by (\S+) ULP of float32 at worst, 256 allowed; 1 of 20 entries exceed that"
    assert float(re.fullmatch(pattern, lines[0])[1]) == pytest.approx(report.worst_ulp, rel=1e-2)
    ours, theirs = re.fullmatch(r"at \[1, 2\]: (\S+) claimed, (\S+) by grad", lines[1]).groups()
    assert np.float32(ours) == claim(logits, targets)[1, 2] == np.float32(report.worst_claimed)
    assert float(ours) - float(theirs) == pytest.approx(0.5, abs=1e-6)
    assert str(report) == lines[0]


def test_message_of_a_float64_claim_shows_digits_that_differ(widest_dtype):
    claim = lambda x: np.full(1, 1 + 1e-12) if widest_dtype == jnp.float32 else jnp.full(1, 1 + 1e-12, jnp.float64)
    text = str(fails(verify.check_gradient, lambda x: x.sum(), claim, jnp.ones(1, widest_dtype)))
    ours, theirs = re.search(r"at \[0\]: (\S+) claimed, (\S+) by", text).groups()
    assert float(ours) - float(theirs) == pytest.approx(1e-12, rel=1e-3, abs=0)


def test_message_names_the_leaf_of_a_pytree(params):
    wrong = lambda params, x: net_grad(params, x) | {"out": (jnp.zeros(4),)}
    error = fails(verify.check_gradient, net, wrong, params, normal(5, 6, 3))
    assert error.report.leaf == "['out'][0]"
    assert "gradient['out'][0] disagrees with grad" in str(error)
    assert "every entry of the claim is 0" in str(error)


def test_report_of_a_right_claim_is_one_line(logits, targets):
    text = str(verify.check_gradient(loss, residual, logits, targets))
    assert re.fullmatch(r"gradient agrees with grad: off by \S+ ULP of float32 at worst, 256 allowed; 0 of 20 entries exceed that", text)


def test_hint_is_given_for_a_constant_factor_but_not_for_one_number():
    x = jnp.array([1.0, 2.0])
    assert "1.3 times grad: a constant factor" in str(fails(verify.check_gradient, jnp.sum, lambda x: 1.3 * ones(2), x))
    assert fails(verify.check_gradient, jnp.sum, lambda x: jnp.array([1.3, 1.0]), x).report.hint == ""
    assert fails(verify.check_gradient, lambda x: x, lambda x: jnp.array(1.3), x[0]).report.hint == ""
    assert "a sign" in fails(verify.check_gradient, lambda x: x, lambda x: jnp.array(-1.0), x[0]).report.hint


def test_report_is_frozen_and_the_error_survives_pickling(logits, targets):
    error = fails(verify.check_gradient, loss, lambda z, y: -residual(z, y), logits, targets)
    assert isinstance(error, AssertionError)
    with pytest.raises(dataclasses.FrozenInstanceError):
        error.report.worst_ulp = 0.0
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.report) == (str(error), error.report)


# Static mistakes are refused, with a remedy.

VECTOR = ones(2)
total = lambda x: x.sum()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: verify.check_gradient(total, lambda x: ones(3), VECTOR), ValueError, "claimed: expected shape (2,), got (3,); return one entry"),
        (lambda: verify.check_hessian(total, jnp.zeros_like, VECTOR), ValueError, "claimed: expected shape (2, 2), got (2,)"),
        (
            lambda: verify.check_jacobian(lambda x: jnp.ones((3, 2), x.dtype) @ x, lambda x: ones((2, 3)), VECTOR),
            ValueError,
            "that is the shape of the transpose",
        ),
        (lambda: verify.check_gradient(total, lambda x: jnp.ones(2, int), VECTOR), TypeError, "claimed: expected a real floating dtype, got int"),
        (lambda: verify.check_gradient(total, lambda x: jax.lax.complex(x, x), VECTOR), TypeError, "got complex"),
        (lambda: verify.check_gradient(total, lambda x: [x], VECTOR), ValueError, "claimed: expected PyTreeDef(*), got PyTreeDef([*]); return the same"),
        (lambda: verify.check_gradient(lambda p: total(p["a"]), lambda p: {"b": p["a"]}, {"a": VECTOR}), ValueError, "{'a': *}), got PyTreeDef({'b': *})"),
        (lambda: verify.check_gradient(lambda p: total(p["a"]), lambda p: {"a": 1}, {"a": VECTOR}), TypeError, "claimed['a']: expected a real floating"),
        (lambda: verify.check_gradient(total, total, jnp.arange(2)), TypeError, "arguments[0]: expected a real floating dtype, got int"),
        (lambda: verify.check_gradient(total, total, {"a": [1]}), TypeError, "arguments[0]['a'][0]: expected a real floating dtype, got int"),
        (lambda: verify.check_gradient(total, total, []), ValueError, "arguments[0]: expected at least one array, got none in []; choose"),
        (lambda: verify.check_gradient(total, total), ValueError, "argnum: expected one of the 0 arguments, counted from 0, got 0; pass them"),
        (lambda: verify.check_gradient(total, total, VECTOR, argnum=-1), ValueError, "argnum: expected one of the 1 arguments, counted from 0, got -1"),
        (lambda: verify.check_gradient(jnp.exp, jnp.exp, VECTOR), ValueError, "function: expected a scalar, got shape (2,); sum it, or check its Jacobian"),
        (lambda: verify.check_hessian(jnp.exp, jnp.exp, VECTOR), ValueError, "function: expected a scalar, got shape (2,); sum it, or take one example"),
        (lambda: verify.check_jvp(total, lambda x, v: v, VECTOR), ValueError, "claimed: expected shape (), got (2,)"),
        (lambda: verify.check_vjp(total, lambda x, w: w, VECTOR), ValueError, "claimed: expected shape (2,), got ()"),
        (lambda: verify.check_adjoint(lambda x, v: v.sum(), lambda x, w: w, VECTOR), ValueError, "vjp: expected shape (2,), got ()"),
        (lambda: verify.check_jvp(total, lambda x, v: v.sum(), VECTOR, num_samples=0), ValueError, "num_samples: expected at least 1, got 0"),
        (
            lambda: verify.check_gradient(total, jnp.ones_like, VECTOR, max_ulp=-1),
            ValueError,
            "max_ulp: expected 0 to 4.1943e+06, half of all there is in float32",
        ),
        (
            lambda: verify.check_gradient(total, jnp.ones_like, VECTOR.astype(jnp.bfloat16), max_ulp=256),
            ValueError,
            "0 to 64, half of all there is in bfloat16",
        ),
    ],
)
def test_static_mistakes_are_refused_by_name(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()


def test_a_function_that_cannot_run_in_float64_is_explained(logits):
    y = jax.nn.softmax(-logits, axis=-1)
    claim = lambda z: jax.nn.softmax(z, axis=-1) - y
    with pytest.raises(Exception, match="promotion") as caught:
        verify.check_gradient(lambda z: loss(z, y), claim, logits)
    assert "widened to float64: pass the arrays that it closes over as arguments too, or reference_dtype=None" in " ".join(caught.value.__notes__)
    assert verify.check_gradient(lambda z: loss(z, y), claim, logits, reference_dtype=None).passed
