"""The real data that ships with the package."""

from importlib import resources

import numpy as np

Array = np.ndarray


def digits() -> tuple[Array, Array]:
    """The embedded handwritten digits: pixels (1797, 64) from 0 to 1 in float32, labels (1797,) from 0 to 9.

    NumPy arrays: make JAX arrays of them before a function under `jit` and `vmap` closes over them.

    Source: Alpaydin and Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49, CC BY 4.0.
    """
    with resources.files("jaxgrad.verify").joinpath("data/digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        return arrays["images"].reshape(-1, 64).astype(np.float32) / 16, arrays["labels"].astype(np.int32)
