"""Exact numbers beside what is computed: mpmath rounded to two float64, and the unit of an error."""

from typing import NamedTuple

import jax.numpy as jnp
import mpmath
import numpy as np


class Exact(NamedTuple):
    """A number as a sum of two float64, and the size at which its ULP is taken where cancellation is inherent."""

    head: np.ndarray
    tail: np.ndarray
    scale: np.ndarray


def exact_of(x, scale=0.0):
    head = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        tail = np.where(np.isfinite(head), x - head, 0).astype(np.float64)
    return Exact(head, tail, np.maximum(np.abs(head), scale))


exp, log = np.frompyfunc(mpmath.exp, 1, 1), np.frompyfunc(mpmath.log, 1, 1)
exactly = np.frompyfunc(mpmath.mpf, 1, 1)


def ulp(x, dtype):
    """The spacing of a dtype at |x|."""
    info = jnp.finfo(dtype)
    exponent = np.frexp(np.where(np.isfinite(x), x, 0))[1] - 1
    return np.exp2(np.maximum(np.where(x == 0, info.minexp, exponent), info.minexp) - info.nmant)
