"""Operators over pytrees: the algebra of the matrices they stand for, blocks, exact traces, and errors that name the leaf."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgrad as jg

PARAMS = {"layers": [jnp.zeros((2, 3), jnp.float32), jnp.ones((), jnp.float32)], "skipped": None, "bias": jnp.zeros(2, jnp.float32)}
P = 9


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored(jg.PytreeOperator):
    """The least that an operator must say: its matrix (P, P), applied to the raveled tree."""

    matrix: jax.Array
    params: Any

    @property
    def like(self):
        return self.params

    def matvec(self, tree):
        flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(self.matrix.dtype), tree))
        return jax.tree.map(lambda x, leaf: x.astype(leaf.dtype), unravel(self.matrix @ flat), tree)


def stored(seed, params=PARAMS):
    a = jax.random.normal(jax.random.key(seed), (P, P), jnp.float32)
    return Stored(a + a.T, params)


def tree(seed, leading=()):
    leaves, structure = jax.tree.flatten(PARAMS)
    return structure.unflatten(
        [jax.random.normal(k, (*leading, *x.shape), x.dtype) for k, x in zip(jax.random.split(jax.random.key(seed), 3), leaves, strict=True)]
    )


def flat(x):
    return np.asarray(ravel_pytree(x)[0])


A, B = stored(0), stored(1)
COMBINED = {
    "one": (A, A.matrix),
    "sum": (A + B, A.matrix + B.matrix),
    "difference": (A - B, A.matrix - B.matrix),
    "minus": (-A, -A.matrix),
    "number": (3 * A, 3 * A.matrix),
    "right": (A * 0.5, A.matrix / 2),
    "numpy": (np.float64(0.5) * A, A.matrix / 2),
    "array": (jnp.float32(2) * (A - 2.0 * B), 2 * A.matrix - 4 * B.matrix),
}


@pytest.mark.parametrize("case", COMBINED)
def test_an_operator_is_its_matrix(case):
    operator, matrix = COMBINED[case]

    @jax.jit
    def everything(operator, v):
        return operator @ v, operator.to_dense(), operator.diagonal(), operator.trace()

    v = tree(2)
    product, dense, diagonal, trace = everything(operator, v)
    assert jax.tree.structure(product) == jax.tree.structure(diagonal) == jax.tree.structure(PARAMS)
    np.testing.assert_allclose(flat(product), matrix @ flat(v), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense, matrix, rtol=1e-6)
    np.testing.assert_allclose(flat(diagonal), np.diag(matrix), rtol=1e-6)
    np.testing.assert_allclose(trace, np.trace(matrix), rtol=1e-5)
    assert operator.num_params == P


def test_a_block_is_its_columns():
    block = tree(3, (4,))
    columns = [(A - B) @ jax.tree.map(lambda x, k=k: x[k], block) for k in range(4)]
    product = (A - B) @ block
    for k, column in enumerate(columns):
        np.testing.assert_allclose(flat(jax.tree.map(lambda x, k=k: x[k], product)), flat(column), rtol=1e-5, atol=1e-5)


def test_the_factor_may_be_traced_and_differentiated():
    v = tree(4)
    slope = jax.jit(jax.grad(lambda t: flat_dot((t * A) @ v, v)))(jnp.float32(3))
    np.testing.assert_allclose(slope, flat(v) @ A.matrix @ flat(v), rtol=1e-5)


def flat_dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_more_columns_than_go_at_once():
    params = jnp.zeros((65, 2), jnp.float32)
    operator = Stored(jnp.diag(jnp.arange(130, dtype=jnp.float32)), params)
    np.testing.assert_array_equal(operator.to_dense(), np.diag(np.arange(130.0)))
    np.testing.assert_array_equal(operator.diagonal(), np.arange(130.0).reshape(65, 2))


def test_leaves_of_two_dtypes_keep_them():
    params = (jnp.zeros(8, jnp.bfloat16), jnp.zeros(1, jnp.float32))
    operator = Stored(A.matrix, params)
    product = operator @ jax.tree.map(jnp.ones_like, params)
    assert [x.dtype for x in product] == [x.dtype for x in params]
    assert operator.to_dense().dtype == jnp.float32
    np.testing.assert_allclose(operator.to_dense(), A.matrix, rtol=0.01)


BAD = {
    "missing": ({"layers": PARAMS["layers"], "skipped": None}, ValueError, r"other\['bias'\] is missing; make it with jax.tree.map"),
    "more": ({**PARAMS, "skipped": jnp.ones(1)}, ValueError, r"other\['skipped'\] is not among them"),
    "container": ({**PARAMS, "layers": tuple(PARAMS["layers"])}, ValueError, "got PyTreeDef.*expected PyTreeDef"),
    "shape": ({**PARAMS, "bias": jnp.zeros(3)}, ValueError, r"other\['bias'\]: expected shape \(2,\) or \(K,\) \+ \(2,\), .* got \(3,\)"),
    "transposed": ({**PARAMS, "layers": [jnp.zeros((3, 2)), jnp.zeros(())]}, ValueError, r"other\['layers'\]\[0\]: expected shape .*\(2, 3\).* got \(3, 2\)"),
    "mixed": ({**PARAMS, "bias": jnp.zeros((4, 2))}, ValueError, r"other\['layers'\]\[0\]: expected shape \(4, 2, 3\), as the leaves before it"),
    "integer": ({**PARAMS, "bias": jnp.zeros(2, int)}, TypeError, r"other\['bias'\]: expected a real floating dtype, got int"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_vector_of_another_shape_is_refused_by_name(case):
    vector, error, message = BAD[case]
    with pytest.raises(error, match=message):
        A @ vector


def test_operators_over_other_parameters_do_not_add():
    with pytest.raises(ValueError, match=r"other\['bias'\]: expected an operator over leaves float32\(2,\), got float32\(3,\)"):
        A + Stored(jnp.zeros((10, 10)), {**PARAMS, "bias": jnp.zeros(3, jnp.float32)})
    with pytest.raises(TypeError, match="unsupported operand"):
        A + 1
    with pytest.raises(TypeError, match="unsupported operand"):
        A * B
    with pytest.raises(ValueError, match=r"factor: expected a scalar, got shape \(3,\); use @"):
        A * jnp.ones(3)
    with pytest.raises(TypeError, match="factor: expected a real number, got complex"):
        A * 1j
