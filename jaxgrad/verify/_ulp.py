"""Errors in units in the last place (ULP) of the dtype that was computed in."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = np.ndarray


def ulp_errors(computed: ArrayLike, exact: ArrayLike, *, scale: ArrayLike | None = None, forgiven: float = 0.0) -> Array:
    """|computed − exact| in ULP of the dtype of `computed`, component by component; inf for a NaN or a wrong infinity.

    The ULP is taken at |exact|, or at `scale` where that is larger (the size below which no formula can go without
    extended precision). Where both numbers are below `forgiven` the error is 0: backends flush subnormal numbers.

    Args:
      computed: (...), any floating dtype.
      exact: (...), float64 or mpmath numbers.
      scale: (...), not negative.
      forgiven: a magnitude.
    """
    computed, exact = np.asarray(computed), np.asarray(exact)
    info = jnp.finfo(computed.dtype)
    wide, near = computed.astype(np.float64), exact.astype(np.float64)
    near = np.where(np.abs(near) > float(info.max), np.copysign(np.inf, near), near)
    size = np.abs(near) if scale is None else np.maximum(np.abs(near), np.abs(np.asarray(scale)).astype(np.float64))
    _, exponent = np.frexp(np.clip(size, float(info.tiny), float(info.max)))
    ulp = np.ldexp(float(info.eps), exponent - 1)
    both = np.isfinite(wide) & np.isfinite(near)
    difference = np.where(both, wide, 0) - np.where(both, exact, 0)
    agree = (np.isnan(wide) & np.isnan(near)) | (wide == near)
    with np.errstate(over="ignore"):
        errors = np.where(both, np.abs(difference).astype(np.float64) / ulp, np.where(agree, 0, np.inf))
    return np.where((np.abs(wide) <= forgiven) & (np.abs(near) <= forgiven), 0, errors)
