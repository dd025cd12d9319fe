"""Worst errors over a stress suite of logit rows, against mpmath at 80 digits: jaxgrad and its peers on the same inputs.

An error is |computed − exact| in ULP, the spacing of float32 at the exact value, component by component. Numbers below
100 C times the smallest normal number count as 0, as XLA flushes subnormal numbers to zero on CPU. An answer of 0 is off
by up to 2^24 = 1.68e7 ULP, all digits, and so is any other in place of an exact 0. The largest and the median error are
those of numbers; how many answers are 0, negative or NaN where the exact one is not is counted beside them.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._accuracy import DIGITS, AccuracyCase, Block, Contender, as_float64, stacked
from benchmarks._harness import Function
from benchmarks._peers import Loss

NATS = (5.0, 17.0, 20.0, 50.0)


def cases(quick: bool) -> Sequence[AccuracyCase]:
    """Cross-entropy of class ids with its derivatives, softmax, its logarithm, entropy."""
    losses: dict[str, Loss] = {
        "jaxgrad": jg.cross_entropy,
        **_peers.CROSS_ENTROPY_IDS,
        "optax, one-hot": lambda z, y: _peers.CROSS_ENTROPY_DISTRIBUTIONS["optax"](z, jax.nn.one_hot(y, z.shape[-1])),
    }
    softmax: dict[str, Contender] = {"jaxgrad": jax.jit(lambda z, y: jg.softmax(z)), "jax.nn.softmax": jax.jit(lambda z, y: jax.nn.softmax(z))}
    log_softmax: dict[str, Contender] = {
        "jaxgrad": jax.jit(lambda z, y: jg.log_softmax(z)),
        "jax.nn.log_softmax": jax.jit(lambda z, y: jax.nn.log_softmax(z)),
    }
    entropy: dict[str, Contender] = {"jaxgrad": jax.jit(lambda z, y: jg.entropy(z)), "jax.nn, −Σ p log p": jax.jit(lambda z, y: _peers.p_log_p_entropy(z))}

    distrax = _peers.load("distrax")
    if distrax:
        losses["distrax"] = lambda z, y: -distrax.Categorical(logits=z).log_prob(y)
        softmax["distrax"] = jax.jit(lambda z, y: distrax.Categorical(logits=z).probs)
        log_softmax["distrax"] = jax.jit(lambda z, y: distrax.Categorical(logits=z).logits)
        entropy["distrax"] = jax.jit(lambda z, y: distrax.Categorical(logits=z).entropy())
    scipy = _peers.load("scipy.special")
    if scipy:
        softmax["scipy.special"] = lambda z, y: scipy.softmax(z, axis=-1)
        log_softmax["scipy.special"] = lambda z, y: scipy.log_softmax(z, axis=-1)
        entropy["scipy.special.entr"] = lambda z, y: scipy.entr(scipy.softmax(z, axis=-1)).sum(-1)

    quantities: dict[str, dict[str, Contender]] = {
        "cross-entropy": {name: jax.jit(loss) for name, loss in losses.items()},
        "cross-entropy gradient": {
            **{name: jax.jit(jax.grad(_peers.summed(loss))) for name, loss in losses.items()},
            "jaxgrad, cross_entropy_grad": jax.jit(jg.cross_entropy_grad),
        },
        "cross-entropy Hessian diagonal": {
            **{name: jax.jit(_hessian_diagonal(loss)) for name, loss in losses.items()},
            "jaxgrad, cross_entropy_hessian": jax.jit(lambda z, y: jg.cross_entropy_hessian(z, y).diagonal()),
        },
        "softmax": softmax,
        "log_softmax": log_softmax,
        "entropy": entropy,
    }
    torch = _peers.load("torch")
    if torch:
        for quantity, contender in _torch_contenders(torch).items():
            quantities[quantity]["torch"] = contender
    suite = functools.partial(stress_suite, quick)
    return [AccuracyCase("accuracy", title, contenders, suite) for title, contenders in quantities.items()]


def _hessian_diagonal(loss: Loss) -> Function:
    """By automatic differentiation, a row at a time: the matrices of all rows would fill the memory."""
    row = lambda z_y: jnp.diagonal(jax.jacfwd(jax.grad(loss))(*z_y))
    return lambda z, y: jax.lax.map(row, (z, y))


def _torch_contenders(torch: Any) -> dict[str, Contender]:
    """Functions of NumPy arrays: torch takes them in and gives them back."""
    functional = torch.nn.functional

    def loss(z: Any, y: Any) -> Any:
        return functional.cross_entropy(z, y, reduction="none")

    def gradient(z: Any, y: Any) -> Any:
        z.requires_grad_()
        return torch.autograd.grad(loss(z, y).sum(), z)[0]

    def hessian_diagonal(z: Any, y: Any) -> Any:
        hessian = torch.func.hessian(lambda row, y_row: functional.cross_entropy(row, y_row))
        return torch.func.vmap(lambda row, y_row: hessian(row, y_row).diagonal(), chunk_size=16)(z, y)

    functions = {
        "cross-entropy": loss,
        "cross-entropy gradient": gradient,
        "cross-entropy Hessian diagonal": hessian_diagonal,
        "softmax": lambda z, y: functional.softmax(z, dim=-1),
        "log_softmax": lambda z, y: functional.log_softmax(z, dim=-1),
        "entropy": lambda z, y: torch.distributions.Categorical(logits=z).entropy(),
    }

    def on_numpy(function: Function, z: np.ndarray, y: np.ndarray) -> Any:
        return function(torch.tensor(z), torch.tensor(y, dtype=torch.int64)).detach().numpy()

    return {quantity: functools.partial(on_numpy, function) for quantity, function in functions.items()}


@functools.cache
def stress_suite(quick: bool) -> Sequence[Block]:
    """Seeded rows of every kind with 2, 10 and 1000 classes, and the exact answers."""
    random = np.random.default_rng(0)
    return [_block(random, num_classes, repeats) for num_classes, repeats in ((2, 20), (10, 20), (1000, 2 if quick else 12))]


def _block(random: np.random.Generator, num_classes: int, repeats: int) -> Block:
    rows: list[tuple[str, np.ndarray, int]] = []
    for _ in range(repeats):
        z, y = random.standard_normal(num_classes), int(random.integers(num_classes))
        others = np.delete(z, y).max()
        rows += [(f"x{factor}", factor * z, y) for factor in (1, 10, 100)]
        rows += [(f"offset {offset:+.0f}", z + offset, y) for offset in (1e4, -1e4)]
        rows += [("equal", np.full_like(z, z[y]), y)]
        for nats in NATS:
            for kind, z_y in (("ahead", others + nats), ("behind", others - nats)):
                rows.append((f"true class {nats:g} nats {kind}", np.where(np.arange(num_classes) == y, z_y, z), y))
    kinds, logits, ids = zip(*rows, strict=True)
    float32_logits = np.stack(logits).astype(np.float32)
    return Block((float32_logits, np.array(ids, dtype=np.int32)), kinds, stacked([_exact(*row) for row in zip(float32_logits, ids, strict=True)]))


def _exact(logits: np.ndarray, class_id: int) -> dict[str, np.ndarray]:
    """The textbook formulas for one row; what cancels in them, cancels in 80 digits."""
    with mpmath.workdps(DIGITS):
        z = [mpmath.mpf(float(z_j)) for z_j in logits]
        exps = [mpmath.exp(z_j) for z_j in z]
        total = mpmath.fsum(exps)
        p = [e_j / total for e_j in exps]
        log_total = mpmath.log(total)
        log_p = [z_j - log_total for z_j in z]
        return as_float64(
            {
                "cross-entropy": -log_p[class_id],
                "cross-entropy gradient": [p_j - (j == class_id) for j, p_j in enumerate(p)],
                "cross-entropy Hessian diagonal": [p_j * (1 - p_j) for p_j in p],
                "softmax": p,
                "log_softmax": log_p,
                "entropy": -mpmath.fsum(p_j * log_p_j for p_j, log_p_j in zip(p, log_p, strict=True)),
            }
        )
