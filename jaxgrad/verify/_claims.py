"""Check a claimed derivative against JAX's own, entry by entry, in units in the last place (ULP).

    error = |claimed − reference| / spacing(max(|reference|, floor))        spacing(x) = eps · 2^⌊log₂ x⌋

eps is that of the dtype of the claim. The claim is evaluated at the arguments as given; the reference is autodiff at
the same numbers in float64, so it does not carry the rounding that it judges. The floor is the largest |reference| of
the array (a norm-wise error), or with `componentwise=True` the smallest normal number. An infinity or a NaN agrees
with its like and with nothing else.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxgrad._display import Displayed
from jaxgrad.verify._ulp import ulp_errors

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class ClaimReport(Displayed):
    """The worst array of a claim over all routes and samples, and its worst entry."""

    quantity: str  # what was claimed, "gradient"
    route: str  # how the reference was computed, "jacrev"
    leaf: str  # path of the array in a claimed pytree, "['bias']"; "" for a single array
    dtype: np.dtype[Any]  # in whose ULP the claim is judged: its own
    max_ulp: float  # allowed
    worst_ulp: float  # inf where one side is not finite and the other is not the same
    worst_index: tuple[int, ...]
    worst_claimed: float
    worst_autodiff: float
    num_entries: int
    num_exceeding: int  # of these, further off than allowed
    hint: str  # what is likely wrong, if the mistake is a known one

    @property
    def passed(self) -> bool:
        """Whether every entry is as close as allowed."""
        return self.worst_ulp <= self.max_ulp

    def _rows(self) -> Iterable[tuple[str, Any]]:
        values = {name: f"{getattr(self, name):.{self._digits}g}" for name in ("worst_claimed", "worst_autodiff")}
        rows = {"passed": self.passed, **dict(self._fields()), **values}
        return [(name, value) for name, value in rows.items() if value != ""]

    @property
    def _digits(self) -> int:
        """As many as a number of the dtype has, and one to tell two of them apart."""
        return 17 if self.dtype.itemsize > 4 else 9

    def __str__(self) -> str:
        """The verdict in one line."""
        verdict = f"{self.quantity}{self.leaf} {'agrees' if self.passed else 'disagrees'} with {self.route}"
        count = f"{self.num_exceeding} of {self.num_entries} entries exceed that"
        return f"{verdict}: off by {self.worst_ulp:.3g} ULP of {self.dtype} at worst, {self.max_ulp:.4g} allowed; {count}"


class VerificationError(AssertionError):
    """A claimed derivative is wrong; `report` says where and by how much."""

    def __init__(self, report: ClaimReport) -> None:
        """Keep `report`, of which the message is made."""
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        """The verdict, then the worst entry, then what is likely wrong."""
        r, digits = self.report, self.report._digits
        worst = f"at {list(r.worst_index)}: {r.worst_claimed:.{digits}g} claimed, {r.worst_autodiff:.{digits}g} by {r.route}"
        return "\n  ".join([str(r), worst, *filter(None, [r.hint])])


def check_gradient(
    function: Function,
    claimed: Function,
    *arguments: Any,
    argnum: int = 0,
    max_ulp: float | None = None,
    componentwise: bool = False,
    floor: float = 0.0,
    reference_dtype: DTypeLike | None = jnp.float64,
) -> ClaimReport:
    """Check `claimed(*arguments)` against the gradient of a scalar function in `arguments[argnum]`.

    Arrays that `function` closes over keep their dtype: pass them as arguments, so that they are widened too. At a
    kink (relu, max) the two precisions may take different sides; `reference_dtype=None` keeps them together.

    Args:
      function: function(*arguments), of shape ().
      claimed: claimed(*arguments), shaped like `arguments[argnum]`, each array in any floating dtype.
      arguments: any pytrees; `arguments[argnum]` holds arrays of any shape, of real floating dtypes.
      argnum: the argument to differentiate in.
      max_ulp: error allowed in every entry; by default 256, or 1/√eps where that is less (bfloat16 11, float16 32).
      componentwise: measure each entry by its own size, not by the largest of its array.
      floor: measure no entry by less than this; a derivative that vanishes, which autodiff itself finds only up to
        rounding, needs one.
      reference_dtype: floating arguments narrower than this are widened to it for autodiff; None leaves them alone.

    Returns:
      The report of the worst entry.

    Raises:
      VerificationError: an entry of the claim is further off than `max_ulp`.
      TypeError: the claim or `arguments[argnum]` is not of real floating dtypes.
      ValueError: the claim has another shape or structure, `function` is not scalar, `argnum` or `max_ulp` is out of range.

    Source: Higham 2002, doi:10.1137/1.9780898718027, section 2.1.
    """
    arguments = _as_arguments(arguments, argnum)
    _require_scalar(function, arguments, argnum, "check its Jacobian with check_jacobian")
    routes = {"grad": lambda f, x: jax.grad(f)(x)}
    return _check("gradient", routes, function, claimed, arguments, [()], argnum, max_ulp, componentwise, floor, reference_dtype)


def check_jacobian(
    function: Function,
    claimed: Function,
    *arguments: Any,
    argnum: int = 0,
    max_ulp: float | None = None,
    componentwise: bool = False,
    floor: float = 0.0,
    reference_dtype: DTypeLike | None = jnp.float64,
) -> ClaimReport:
    """Check `claimed(*arguments)` against the Jacobian of a function, by `jax.jacfwd` and by `jax.jacrev`.

    The claim is an array of shape output.shape + input.shape, or an operator with `to_dense()`. An operator for a
    batch of matrices (..., C, C) has no entries across rows: check it on a function of one row.

    All else as `check_gradient`.
    """
    arguments = _as_arguments(arguments, argnum)
    routes = {"jacfwd": lambda f, x: jax.jacfwd(f)(x), "jacrev": lambda f, x: jax.jacrev(f)(x)}
    return _check("jacobian", routes, function, claimed, arguments, [()], argnum, max_ulp, componentwise, floor, reference_dtype)


def check_hessian(
    function: Function,
    claimed: Function,
    *arguments: Any,
    argnum: int = 0,
    max_ulp: float | None = None,
    componentwise: bool = False,
    floor: float = 0.0,
    reference_dtype: DTypeLike | None = jnp.float64,
) -> ClaimReport:
    """Check `claimed(*arguments)` against the Hessian of a scalar function, forward and reverse over reverse.

    The claim is an array of shape input.shape + input.shape, or an operator with `to_dense()`. An operator for a
    batch of matrices (..., C, C) has no entries across examples: check it on the loss of one example.

    All else as `check_gradient`.
    """
    arguments = _as_arguments(arguments, argnum)
    _require_scalar(function, arguments, argnum, "take one example")
    routes = {
        "forward-over-reverse": lambda f, x: jax.jacfwd(jax.grad(f))(x),
        "reverse-over-reverse": lambda f, x: jax.jacrev(jax.grad(f))(x),
    }
    return _check("hessian", routes, function, claimed, arguments, [()], argnum, max_ulp, componentwise, floor, reference_dtype)


def check_jvp(
    function: Function,
    claimed_jvp: Function,
    *arguments: Any,
    argnum: int = 0,
    key: jax.Array | None = None,
    num_samples: int = 4,
    max_ulp: float | None = None,
    componentwise: bool = False,
    floor: float = 0.0,
    reference_dtype: DTypeLike | None = jnp.float64,
) -> ClaimReport:
    """Check `claimed_jvp(*arguments, tangent)`, J v, against `jax.jvp` for random v.

    v is shaped like `arguments[argnum]` and J v like the output of `function`. `num_samples` standard normal v are
    drawn from `key`, `jax.random.key(0)` by default. All else as `check_gradient`.
    """
    arguments = _as_arguments(arguments, argnum)
    tangents = [(_normal_like(k, arguments[argnum]),) for k in _keys(key, num_samples)]
    routes = {"jvp": lambda f, x, v: jax.jvp(f, (x,), (v,))[1]}
    return _check("jvp", routes, function, claimed_jvp, arguments, tangents, argnum, max_ulp, componentwise, floor, reference_dtype)


def check_vjp(
    function: Function,
    claimed_vjp: Function,
    *arguments: Any,
    argnum: int = 0,
    key: jax.Array | None = None,
    num_samples: int = 4,
    max_ulp: float | None = None,
    componentwise: bool = False,
    floor: float = 0.0,
    reference_dtype: DTypeLike | None = jnp.float64,
) -> ClaimReport:
    """Check `claimed_vjp(*arguments, cotangent)`, Jᵀ w, against `jax.vjp` for random w.

    w is shaped like the output of `function` and Jᵀ w like `arguments[argnum]`. `num_samples` standard normal w are
    drawn from `key`, `jax.random.key(0)` by default. All else as `check_gradient`.
    """

    def pull_back(f: Function, x: Any, w: Any) -> Any:
        output, transpose = jax.vjp(f, x)
        return transpose(jax.tree.map(lambda w, y: w.astype(y.dtype), w, output))[0]

    arguments = _as_arguments(arguments, argnum)
    output = jax.eval_shape(_in_argument(function, arguments, argnum), arguments[argnum])
    cotangents = [(_normal_like(k, output),) for k in _keys(key, num_samples)]
    return _check("vjp", {"vjp": pull_back}, function, claimed_vjp, arguments, cotangents, argnum, max_ulp, componentwise, floor, reference_dtype)


def check_adjoint(
    jvp: Function, vjp: Function, *arguments: Any, argnum: int = 0, key: jax.Array | None = None, num_samples: int = 4, max_ulp: float | None = None
) -> ClaimReport:
    """Check that `vjp` is the transpose of `jvp`: ⟨w, jvp(*arguments, v)⟩ = ⟨vjp(*arguments, w), v⟩ for random v and w.

    v is shaped like `arguments[argnum]` and w like the output of `jvp`. No autodiff: both sides are the caller's, in
    their own dtypes, and the inner products are summed in float64. The error is counted in ULP, of the coarser dtype
    of the two products, of the larger of Σ|w||Jv| and Σ|Jᵀw||v|, which condition the sums. In the report ⟨w, Jv⟩ is claimed,
    ⟨Jᵀw, v⟩ stands for autodiff and the index is that of the sample. All else as `check_jvp`.
    """
    arguments = _as_arguments(arguments, argnum)
    terms, dtypes = [], set()
    for k in _keys(key, num_samples):
        key_v, key_w = jax.random.split(k)
        v = _normal_like(key_v, arguments[argnum])
        jv = jvp(*arguments, v)
        w = _normal_like(key_w, jv)
        sides = _leaves("jvp", jv, like=w), _leaves("vjp", vjp(*arguments, w), like=v)
        dtypes |= {x.dtype for side in sides for _, x, y in side}
        terms.append([np.concatenate([np.ravel(x.astype(np.float64) * y.astype(np.float64)) for _, x, y in side]) for side in sides])
    left, right = np.array([[side.sum() for side in sides] for sides in terms]).T
    scale = np.array([max(np.abs(side).sum() for side in sides) for sides in terms])
    coarsest = max(dtypes, key=lambda dtype: float(jnp.finfo(dtype).eps))
    return _verdict([_report("⟨w, jvp(v)⟩", "⟨vjp(w), v⟩", "", left, right, scale, coarsest, max_ulp, arguments)])


def _check(
    quantity: str,
    routes: Mapping[str, Function],
    function: Function,
    claimed: Function,
    arguments: tuple[Any, ...],
    directions: Iterable[tuple[Any, ...]],
    argnum: int,
    max_ulp: float | None,
    componentwise: bool,
    floor: float,
    reference_dtype: DTypeLike | None,
) -> ClaimReport:
    """Hold claimed(*arguments, *direction) against derivative(f, x, *direction) for each derivative in `routes`."""
    reports = []
    for sample, direction in enumerate(directions):
        claim = claimed(*arguments, *direction)
        for name, derivative in routes.items():
            route = f"{name}, sample {sample}" if direction else name
            reference = _autodiff(derivative, function, arguments, argnum, direction, reference_dtype)
            for leaf, x, r in _leaves("claimed", claim, like=reference):
                least = floor if componentwise else np.max(np.abs(r), where=np.isfinite(r), initial=floor)
                reports.append(_report(quantity, route, leaf, x, r, np.full(r.shape, least), x.dtype, max_ulp, arguments))
    return _verdict(reports)


def _verdict(reports: list[ClaimReport]) -> ClaimReport:
    """The worst report, raised if it did not pass."""
    worst = max(reports, key=lambda report: (not report.passed, report.worst_ulp))
    if not worst.passed:
        raise VerificationError(worst)
    return worst


def _autodiff(derivative: Function, function: Function, arguments: Any, argnum: int, direction: Any, reference_dtype: DTypeLike | None) -> Any:
    """derivative(f, x, *direction) as float64 NumPy arrays, all that is floating having been widened to `reference_dtype`."""
    wide = None if reference_dtype is None else jnp.dtype(reference_dtype)

    def widen(x: Any) -> Any:
        is_narrow = wide is not None and isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < wide.itemsize
        return x.astype(wide) if is_narrow else x

    with jax.enable_x64(True) if wide == jnp.float64 else contextlib.nullcontext():
        arguments, direction = jax.tree.map(widen, (arguments, direction))
        try:
            result = derivative(_in_argument(function, arguments, argnum), arguments[argnum], *direction)
        except Exception as error:
            if wide is not None:
                error.add_note(
                    f"jaxgrad.verify was differentiating the function with its arguments widened to {wide}: pass the arrays "
                    "that it closes over as arguments too, or reference_dtype=None to widen nothing"
                )
            raise
        return jax.tree.map(lambda r: np.asarray(r).astype(np.float64), result)


def _report(
    quantity: str, route: str, leaf: str, claimed: Any, reference: Any, floor: Any, dtype: np.dtype[Any], max_ulp: float | None, arguments: Any
) -> ClaimReport:
    """The worst entry of one array, its error in ULP of `dtype` at |reference| or `floor`, whichever is larger."""
    eps = float(jnp.finfo(dtype).eps)
    allowed = min(256.0, eps**-0.5) if max_ulp is None else float(max_ulp)
    if not 0 <= allowed * eps <= 0.5:
        raise ValueError(f"max_ulp: expected 0 to {0.5 / eps:g}, half of all there is in {dtype}, got {allowed:g}; allow less, or leave it out")

    def errors_against(reference: Any, floor: Any) -> Any:
        return ulp_errors(claimed, reference, scale=floor) * (float(jnp.finfo(claimed.dtype).eps) / eps)

    def agrees_with(reference: Any, factor: float = 1.0) -> bool:
        return bool((errors_against(factor * reference, abs(factor) * floor) <= allowed).all())

    errors = errors_against(reference, floor)
    exceeding = int((errors > allowed).sum())
    hint = _hint(claimed, reference, agrees_with, allowed * eps, route, arguments) if exceeding else ""
    index = tuple(int(i) for i in np.unravel_index(errors.argmax(), errors.shape)) if errors.size else ()
    ulp, ours, theirs = (float(x[index]) for x in (errors, claimed, reference)) if errors.size else (0.0, math.nan, math.nan)
    return ClaimReport(quantity, route, leaf, dtype, allowed, ulp, index, ours, theirs, errors.size, exceeding, hint)


def _hint(claimed: Any, reference: Any, agrees_with: Callable[..., bool], tolerance: float, route: str, arguments: Any) -> str:
    """What is likely wrong with a claim that is the reference but for a transpose or a factor; else nothing."""
    if reference.ndim >= 2 and reference.shape[-1] == reference.shape[-2] and agrees_with(reference.swapaxes(-1, -2)):
        return "the transpose agrees: swap the last two axes"
    largest = np.unravel_index(np.abs(reference).argmax(), reference.shape)
    with np.errstate(all="ignore"):
        factor = float(claimed[largest].astype(np.float64) / reference[largest])
    if not math.isfinite(factor) or not agrees_with(reference, factor):
        return ""
    if factor == 0:
        return "every entry of the claim is 0"
    is_near = lambda value: abs(abs(factor) - value) <= tolerance * value
    sizes = sorted({n for x in jax.tree.leaves(arguments) for n in np.shape(x) if n > 1})
    causes = [f"a factor {name}" for name, value in (("2", 2), ("1/2", 0.5)) if is_near(value)]
    causes += [f"a sum for the mean over an axis of size {n}" for n in sizes if is_near(n)]
    causes += [f"a mean for the sum over an axis of size {n}" for n in sizes if is_near(1 / n)]
    named = ["a sign"] * (factor < 0) + [" or ".join(causes)] * bool(causes)
    if claimed.size == 1 and not named:
        return ""  # any one number is a multiple of any other
    return f"every entry is {factor:.4g} times {route}: {' and '.join(named) or 'a constant factor'}"


def _leaves(name: str, tree: Any, *, like: Any) -> list[tuple[str, Any, Any]]:
    """Path, NumPy array and its counterpart in `like` for each array or operator of `tree`, floating and shaped the same."""
    is_operator = lambda x: hasattr(x, "to_dense")
    tree = jax.tree.map(lambda x: np.asarray(x.to_dense() if is_operator(x) else x), tree, is_leaf=is_operator)
    structures: Any = jax.tree.structure(tree), jax.tree.structure(like)
    got, expected = structures
    if got != expected:
        raise ValueError(f"{name}: expected {expected}, got {got}; return the same containers with the same keys")
    leaves = []
    for (path, x), y in zip(jax.tree.leaves_with_path(tree), map(np.asarray, jax.tree.leaves(like)), strict=True):
        leaf = jax.tree_util.keystr(path)
        _require_floating(f"{name}{leaf}", x.dtype)
        if x.shape != y.shape:
            is_transpose = y.ndim >= 2 and x.shape == (*y.shape[:-2], y.shape[-1], y.shape[-2])
            remedy = "that is the shape of the transpose: swap the last two axes" if is_transpose else "return one entry for each derivative"
            raise ValueError(f"{name}{leaf}: expected shape {y.shape}, got {x.shape}; {remedy}")
        leaves.append((leaf, x, y))
    return leaves


def _as_arguments(arguments: tuple[Any, ...], argnum: int) -> tuple[Any, ...]:
    """The arguments with NumPy arrays as JAX takes them, so that claim and reference see the same numbers."""
    if not 0 <= argnum < len(arguments):
        raise ValueError(f"argnum: expected one of the {len(arguments)} arguments, counted from 0, got {argnum}; pass them after the claim")
    if not jax.tree.leaves(arguments[argnum]):
        raise ValueError(f"arguments[{argnum}]: expected at least one array, got none in {arguments[argnum]!r}; choose another argnum")
    for path, x in jax.tree.leaves_with_path(arguments[argnum]):
        _require_floating(f"arguments[{argnum}]{jax.tree_util.keystr(path)}", x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype)

    def as_jax(x: Any) -> Any:
        return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) and jnp.issubdtype(x.dtype, jnp.floating) else x

    return tuple(jax.tree.map(jnp.asarray if i == argnum else as_jax, argument) for i, argument in enumerate(arguments))


def _require_floating(name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name}: expected a real floating dtype, got {dtype}; convert with .astype(jnp.float32)")


def _require_scalar(function: Function, arguments: tuple[Any, ...], argnum: int, remedy: str) -> None:
    shape = jax.tree.map(lambda y: y.shape, jax.eval_shape(_in_argument(function, arguments, argnum), arguments[argnum]))
    if shape != ():
        raise ValueError(f"function: expected a scalar, got shape {shape}; sum it, or {remedy}")


def _in_argument(function: Function, arguments: tuple[Any, ...], argnum: int) -> Function:
    """`function` of one argument, the others being fixed."""
    return lambda x: function(*arguments[:argnum], x, *arguments[argnum + 1 :])


def _keys(key: jax.Array | None, num_samples: int) -> Any:
    if num_samples < 1:
        raise ValueError(f"num_samples: expected at least 1, got {num_samples}; without a sample nothing is checked")
    return jax.random.split(jax.random.key(0) if key is None else key, num_samples)


def _normal_like(key: jax.Array, tree: Any) -> Any:
    """Standard normal draws in the shapes and dtypes of `tree`, the same numbers in all dtypes but for rounding."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, x.shape, jnp.float32).astype(x.dtype) for k, x in zip(keys, leaves, strict=True)])
