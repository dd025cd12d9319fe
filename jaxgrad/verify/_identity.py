"""What an identity is: three routes to one quantity, the public function between them, and what must hold of it."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jaxgrad.verify._suites import Examples

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Identity:
    """One promise of the identity table, with the three routes to it, and the public function between them."""

    id: str
    formula: str
    arguments: tuple[str, ...]
    autodiff: Callable[..., jax.Array]  # JAX differentiates the plain definition
    closed: Callable[..., jax.Array]  # the closed form
    public: Callable[..., jax.Array]  # JAX differentiates the public function
    arbiter: Callable[..., Array]  # the textbook formula, on mpmath numbers or float64
    bound: float  # of the closed form, in ULP
    public_bound: float | None = None  # of the public function, if another
    scale: Callable[..., Array] | None = None  # the size below which no formula can go
    ordinary: Callable[[Examples], Array] = lambda examples: (examples.suite != "stress") & (examples.lead <= 3)  # where plain formulas must agree
    applies: Callable[[Examples], Array] = lambda examples: np.ones(len(examples.logits), bool)  # to which rows
    laws: Callable[[Array], dict[str, bool]] = lambda closed: {}  # what must hold of the closed form besides
    over_batch: bool = False  # one result for the batch, weighted by `weights`, rather than one for each example
    of_chain: bool = False  # it passes through the head, and adds up the rounding of its products
    of_real_rows: bool = False  # it says nothing about generated rows
    of_vocabulary: bool = False  # its head is too large for mpmath numbers: the arbiter takes it as float64
