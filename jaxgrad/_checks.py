"""Refuse bad shapes and dtypes while tracing, bad class ids at once when their values are known.

Three tiers: a static fact raises here; a value that only a running program knows becomes NaN where it
is used; what is promised and not looked at is said in the docstring, and `jaxgrad.validate` looks.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def as_logits(name: str, x: ArrayLike) -> jax.Array:
    """`x` as a floating array (..., C) with C >= 1."""
    x = as_floating(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name}: expected shape (..., C) with the classes on the last axis, got a scalar; pass an array of C scores")
    if x.shape[-1] == 0:
        raise ValueError(f"{name}: expected at least one class on the last axis, got shape {x.shape}; check the class axis")
    return x


def as_floating(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of a real floating dtype."""
    x = as_array(name, x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a real floating dtype, got {x.dtype}; convert with .astype(jnp.float32)")
    return x


def as_scalar(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array ()."""
    x = as_array(name, x)
    same_shape(name, x, (), "a scalar")
    return x


def as_array(name: str, x: ArrayLike) -> jax.Array:
    """`x` as a JAX array; what has no dtype to become one is refused by name."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array, got {type(x).__name__}; pass a JAX or NumPy array") from error


def as_linear_head(name: str, features: ArrayLike, head: ArrayLike, bias: ArrayLike | None) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Features (..., d), which `name` is the name of, head (C, d) with C >= 1 and bias (C,), floating; of `q_features` they are `q_head` and `q_bias`."""
    of = name.removesuffix("features") if name.endswith("_features") else ""
    e, w = as_floating(name, features), as_floating(f"{of}head", head)
    if e.ndim == 0 or w.ndim != 2 or e.shape[-1] != w.shape[-1]:
        raise ValueError(f"{of}head: expected shape (C, d) for features of shape (..., d) = {e.shape}, got {w.shape}; transpose it if it is (d, C)")
    if w.shape[0] == 0:
        raise ValueError(f"{of}head: expected at least one class, got shape {w.shape}; check its first axis")
    if bias is not None:
        bias = as_floating(f"{of}bias", bias)
        same_shape(f"{of}bias", bias, w.shape[:1], "one for each class")
    return e, w, bias


def as_targets(name: str, y: ArrayLike, logits: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """`y` as class ids `logits.shape[:-1]` of an integer dtype, or distributions `logits.shape` of a floating one."""
    y = as_array(name, y)
    ids, distributions = logits.shape[:-1], logits.shape
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != ids:
            remedy = f"jnp.broadcast_to({name}, {ids})" if _broadcasts(y.shape, ids) else "one id for each row of the logits"
            if y.shape == distributions:
                remedy = f"{name}.astype(jnp.float32) if these are distributions"
            raise ValueError(f"{name}: integers are class ids, expected shape {ids} for logits of shape {distributions}, got {y.shape}; pass {remedy}")
    elif jnp.issubdtype(y.dtype, jnp.floating) or y.dtype == jnp.bool_:
        if y.shape != distributions:
            if y.shape == ids:
                raise TypeError(
                    f"{name}: {y.dtype} values are distributions, expected shape {distributions}, got {y.shape}; "
                    f"pass {name}.astype(jnp.int32) if these are class ids"
                )
            remedy = f"jnp.broadcast_to({name}, {distributions})" if _broadcasts(y.shape, distributions) else "one distribution for each row"
            raise ValueError(f"{name}: {y.dtype} values are distributions, expected the shape of the logits {distributions}, got {y.shape}; pass {remedy}")
    else:
        raise TypeError(f"{name}: expected integer class ids or floating distributions, got {y.dtype}; pass int32 ids or float32 distributions")
    return y


def as_mask(name: str, where: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """`where` as booleans of exactly `shape`, one for each example."""
    where = as_array(name, where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"{name}: expected booleans, True for the examples that count, got {where.dtype}; pass {name}.astype(bool)")
    same_shape(name, where, shape, "one boolean for each example")
    return where


def same_shape(name: str, x: jax.Array, shape: tuple[int, ...], meaning: str) -> None:
    """Raise unless `x` has exactly `shape`: nothing broadcasts by itself."""
    if x.shape != shape:
        remedy = f"pass jnp.broadcast_to({name}, {shape})" if _broadcasts(x.shape, shape) else "check its axes"
        raise ValueError(f"{name}: expected shape {shape} ({meaning}), got {x.shape}; {remedy}")


def at_least_one(name: str, x: Any, unit: str) -> int:
    """`x` as a positive int, a number of `unit`."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {type(x).__name__}; pass how many, at least one {unit}")
    if x < 1:
        raise ValueError(f"{name}: expected at least one {unit}, got {x}; pass a positive int")
    return int(x)


def positive(name: str, x: Any, remedy: str = "1 leaves things as they are; divide by an array or a traced value yourself") -> float:
    """`x` as a positive finite number that is known while tracing."""
    if isinstance(x, bool) or not isinstance(x, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {type(x).__name__}; {remedy}")
    if not 0 < x < np.inf:
        raise ValueError(f"{name}: expected a positive finite number, got {x}; {remedy}")
    return float(x)


def ids_in_range(name: str, ids: jax.Array, num_classes: int, where: jax.Array | None) -> None:
    """Raise IndexError for the first class id outside [0, C), if the values are at hand; under a transformation do nothing."""
    if any(isinstance(x, jax.core.Tracer) or not x.is_fully_addressable for x in (ids, where) if x is not None):
        return
    values = np.asarray(ids)
    bad = (values < 0) | (values >= num_classes)
    if where is not None:
        bad &= np.asarray(where)
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), bad.shape)
        place = "".join(f"[{i}]" for i in at)
        raise IndexError(
            f"{name}{place}: expected a class id from 0 to {num_classes - 1}, got {values[at]}; "
            "negative ids do not wrap around; leave an example out with where="
        )


def validate(logits: ArrayLike, targets: ArrayLike, *, where: ArrayLike | None = None) -> None:
    """Check the values that the losses take on trust; call it outside `jit`, on data rather than in a training step.

    Args:
      logits: z, (..., C), floating: finite or −inf, with a finite one in each row.
      targets: class ids (...) from 0 to C − 1, or distributions (..., C): finite, non-negative, with sum 1 to the
        rounding of their dtype, and 0 where the logit is −inf.
      where: (...), boolean; an example where it is False is not looked at.

    Raises:
      TypeError, ValueError, IndexError: as `cross_entropy`.
      ValueError: a value is not as promised; the message names the first.
    """
    z = as_logits("logits", logits)
    y = as_targets("targets", targets, z)
    mask = jnp.ones(z.shape[:-1], bool) if where is None else as_mask("where", where, z.shape[:-1])
    if any(isinstance(x, jax.core.Tracer) for x in (z, y, mask)):
        raise TypeError("validate: expected concrete values, got traced ones; call it outside jit, grad and vmap")
    keep = np.asarray(mask)
    rows, wide = np.asarray(z)[keep], np.promote_types(np.float32, np.float64)
    rows = rows.astype(wide)
    _first_bad("logits", np.isnan(rows) | (rows == np.inf), rows, keep, "a finite number or -inf", "look for an overflow upstream")
    _first_bad("logits", ~np.isfinite(rows).any(-1), rows.max(-1, initial=-np.inf), keep, "a finite logit in each row", "leave the row out with where=")
    if jnp.issubdtype(y.dtype, jnp.integer):
        ids_in_range("targets", y, z.shape[-1], mask)
        return
    weights = np.asarray(y)[keep].astype(wide)
    _first_bad("targets", ~(np.isfinite(weights) & (weights >= 0)), weights, keep, "a finite probability, not negative", "clip the distributions")
    slack = 4 * np.sqrt(z.shape[-1]) * float(jnp.finfo(jnp.float32 if y.dtype == jnp.bool_ else y.dtype).eps)
    _first_bad("targets", np.abs(weights.sum(-1) - 1) > slack, weights.sum(-1), keep, f"probabilities with sum 1 within {slack:.1g}", "divide by the sum")
    _first_bad("targets", (weights > 0) & (rows == -np.inf), weights, keep, "0 where the logit is -inf", "the loss would be inf")


def _first_bad(name: str, bad: np.ndarray, values: np.ndarray, keep: np.ndarray, expected: str, remedy: str) -> None:
    """Raise for the first True of `bad`, (rows kept, ...), at its place in the whole array."""
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), bad.shape)
        place = (*(int(axis[at[0]]) for axis in np.nonzero(keep)), *(int(i) for i in at[1:]))
        raise ValueError(f"{name}{list(place)}: expected {expected}, got {values[at]:.9g}; {remedy}")


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """The dtype to compute in: float64 if one of the arrays has it, and else float32, also for 16 bits."""
    return jnp.dtype(jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32)


def wider_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """The dtype that holds the numbers of all, also where strict promotion of dtypes is on."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(*dtypes)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False
