"""Examples from a user's .npz file: every fault is one line that says what to change."""

import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxgrad._checks import validate
from jaxgrad.verify._suites import Examples, examples, join, stress_examples

Array = np.ndarray
MAX_ROWS = 2000
MAX_ENTRIES = 2**22  # of the dense matrices of all rows together


class DataError(Exception):
    """The file cannot be used; the message says why and what to do."""


def load_examples(path: Path, dtype: jnp.dtype, rng: np.random.Generator) -> Examples:
    """The examples of a file, with generated ones of as many classes.

    Args:
      path: an .npz file with `logits` (N, C), floating, and `targets`: class ids (N,) or distributions (N, C);
        optionally both `features` (N, d) and `head` (C, d), and `bias` (C,), for the identities of the chain.

    Raises:
      DataError: the file cannot be read, or an array is not of this kind.
    """
    arrays = _read(path)
    logits = _floating(arrays, "logits", ("N", "C"))
    num_rows, num_classes = logits.shape
    targets = arrays["targets"]
    try:
        validate(logits, targets)
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(str(error)) from error

    chain = {}
    if ("features" in arrays) != ("head" in arrays):
        raise DataError("features, head: expected both or neither; they make the logits together")
    if "features" in arrays:
        features, head = _floating(arrays, "features", (num_rows, "d")), _floating(arrays, "head", (num_classes, "d"))
        if features.shape[1] != head.shape[1]:
            raise DataError(f"head: expected shape (C, d) = ({num_classes}, {features.shape[1]}) to go with the features, got {head.shape}")
        bias = _floating(arrays, "bias", (num_classes,)) if "bias" in arrays else np.zeros(num_classes)
        chain = {"features": features, "head": head, "bias": bias}

    most = max(1, min(MAX_ROWS, MAX_ENTRIES // num_classes**2))
    rows = np.sort(rng.choice(num_rows, min(most, num_rows), replace=False))
    if chain:
        chain = {name: (x[rows] if name == "features" else x).astype(dtype) for name, x in chain.items()}
    by_ids = np.issubdtype(targets.dtype, np.integer)
    labels = targets if by_ids else targets.argmax(-1)
    distributions = None if by_ids else targets[rows].astype(np.float64)
    mine = examples(np.full(len(rows), path.name), logits[rows].astype(np.float64), labels[rows].astype(np.int32), distributions, dtype, rng, **chain)
    return join(mine, stress_examples(num_classes, dtype, rng))


def load_head(path: Path) -> dict[str, Array]:
    """The arrays `features` (N, d), `head` (C, d), `bias` (C,) and `targets` of a file, all of its rows.

    Raises:
      DataError: the file cannot be read, or an array is not of this kind.
    """
    arrays = _read(path, ("features", "head", "targets"))
    features, head = _floating(arrays, "features", ("N", "d")), _floating(arrays, "head", ("C", "d"))
    if features.shape[1] != head.shape[1]:
        raise DataError(f"head: expected shape (C, d) = (C, {features.shape[1]}) to go with the features, got {head.shape}")
    bias = _floating(arrays, "bias", (len(head),)) if "bias" in arrays else np.zeros(len(head))
    try:
        validate(np.zeros((len(features), len(head)), np.float32), arrays["targets"])
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(str(error)) from error
    return {"features": features, "head": head, "bias": bias, "targets": arrays["targets"]}


def _read(path: Path, required: tuple[str, ...] = ("logits", "targets")) -> dict[str, Array]:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an .npz archive, got a single array; save with numpy.savez")
        with file:
            missing = set(required) - set(file.files)
            if missing:
                raise DataError(f"{path}: expected the arrays {' and '.join(map(repr, required))}, got {sorted(file.files)}; add {sorted(missing)}")
            return {name: file[name] for name in ("logits", "targets", "features", "head", "bias") if name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: expected an .npz file, got a directory") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz without pickled objects ({error}); save plain arrays with numpy.savez") from error


def _floating(arrays: dict[str, Array], name: str, shape: tuple[int | str, ...]) -> Array:
    """An array of the file, which must be floating, finite unless it holds logits, and of this shape."""
    x = arrays[name]
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{name}: expected a floating dtype, got {x.dtype}; save it as float32")
    if x.ndim != len(shape) or any(isinstance(want, int) and want != got for want, got in zip(shape, x.shape, strict=True)):
        raise DataError(f"{name}: expected shape {_written(shape)}, got {x.shape}; check its axes")
    if x.size == 0:
        raise DataError(f"{name}: expected at least one example and one class, got shape {x.shape}")
    if name != "logits" and not np.isfinite(x).all():
        raise DataError(f"{name}: expected finite numbers, got NaN or inf; remove those examples")
    return x


def _written(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
