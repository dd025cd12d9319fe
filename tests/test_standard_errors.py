"""Standard errors of a published multinomial logit, from the inverse of the observed information at a fit by Newton's steps.

Party identification, seven outcomes, in the American National Election Study of 1996; outcome 0 is the base. The numbers
are Stata's, which statsmodels 0.15 checks its own fit by (discrete/tests/results/results_discrete.py, Anes.mnlogit_basezero).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrad as jg

pytestmark = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="the published digits need float64: set JAX_ENABLE_X64=1")

# One row for each outcome 1, ..., 6: log(population), left-right self-placement, age, education, income, constant.
COEFFICIENTS = """
    -.01153598  .29771435 -.02494500  .08249144  .00519655  -.37340167
    -.08875065  .39166864 -.02289784  .18104276  .04787398 -2.2509132
    -.10596670  .57345051 -.01485121 -.00715242  .05757516 -3.6655835
    -.09155670 1.2787718 -.00868135  .19982796  .08449838 -7.6138431
    -.09328460 1.3469616 -.01790407  .21693885  .08095841 -7.0604782
    -.14088069 2.0700801 -.00943265  .32192570  .10889408 -12.105751
"""
STANDARD_ERRORS = """
    .0342823657 .0936267950 .0065248584 .0735865799 .0176336937  .6298376313
    .0391615553 .1082386919 .0079144618 .0852893563 .0222809297  .7631899491
    .0570382292 .1585481337 .0113313133 .1262913234 .0336142088 1.156541492
    .0437902764 .1288965854 .0084187486 .0941250559 .0261963632  .9575809602
    .0393516553 .1171860107 .0076110152 .0850070091 .0229760791  .8443638283
    .0421380470 .1434089089 .0081338625 .0910979921 .0253008880 1.059954821
"""
LOG_LIKELIHOOD = -1461.922747312
published = lambda text: np.array(text.split(), float).reshape(6, 6)


@pytest.fixture(scope="module")
def anes96():
    """Variables (944, 6), the last of them 1, and outcomes (944,)."""
    data = pytest.importorskip("statsmodels.datasets.anes96", reason="the data come with statsmodels").load_pandas()
    inputs = np.column_stack([np.asarray(data.exog), np.ones(len(data.exog))])
    inputs[:, 0] = inputs[:, 0].astype(np.float32)  # without it the last two digits differ: Stata stores a new variable in float32
    return jnp.asarray(inputs), jnp.asarray(data.endog, jnp.int32)


@pytest.fixture(scope="module")
def fit(anes96):
    """Coefficients (6, 6), their standard errors and the log-likelihood, after Newton's steps from 0."""
    optimizer = optax.chain(jg.scale_by_curvature(0.0), optax.scale_by_learning_rate(1.0))

    @jax.jit
    def newton(inputs, outcomes):
        def loss(coefficients):
            logits = inputs @ coefficients.T
            return jg.cross_entropy(jnp.pad(logits, ((0, 0), (1, 0))), outcomes).sum()

        def step(_, carry):
            coefficients, state = carry
            information = jg.hessian(loss, coefficients)
            updates, state = optimizer.update(jax.grad(loss)(coefficients), state, operator=information, diagonal=information.diagonal())
            return optax.apply_updates(coefficients, updates), state

        start = jnp.zeros((6, 6))
        coefficients, _ = jax.lax.fori_loop(0, 12, step, (start, optimizer.init(start)))
        return coefficients, jg.hessian(loss, coefficients).to_dense(), -loss(coefficients)

    coefficients, information, log_likelihood = newton(*anes96)
    return coefficients, np.sqrt(np.diag(np.linalg.inv(information))).reshape(6, 6), log_likelihood


def test_the_fit_is_the_published_one(fit):
    coefficients, _, log_likelihood = fit
    half_a_unit = np.reshape([0.5 * 10.0 ** -len(word.partition(".")[2]) for word in COEFFICIENTS.split()], (6, 6))  # of the last digit
    assert (np.abs(coefficients - published(COEFFICIENTS)) < half_a_unit).all()
    np.testing.assert_allclose(log_likelihood, LOG_LIKELIHOOD, rtol=0, atol=0.5e-9)


def test_the_standard_errors_are_the_published_ones(fit):
    """To nine decimals; of the tenth, three of the 36 are off by about 1, as they are from statsmodels."""
    np.testing.assert_allclose(fit[1], published(STANDARD_ERRORS), rtol=0, atol=0.5e-9)
