"""Worst errors of KL divergence and its gradients over a stress suite of pairs of rows, against mpmath at 80 digits.

Errors and counts are those of the benchmark `accuracy`, but a component of a gradient is a weighted sum of v_j − v_i,
v the difference of the logits, so its ULP is taken at its exact value or, if larger, at p_j Σ_i p_i |v_j − v_i|, and for
the gradient in the logits of q at q_j Σ_i q_i |v_j − v_i| if that is larger still, over the classes that neither masks.

The probability vectors are the softmax of the same logits in float32, subnormal numbers set to 0; the exact answer is
Σ p log(p/q) of these very vectors. They do not sum to exactly 1: it can be negative, distrax and torch normalise them first,
and `scipy.special.kl_div` adds Σ (q − p).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._accuracy import DIGITS, FLOAT32, AccuracyCase, Block, Contender, as_float64, stacked
from benchmarks._harness import Function
from benchmarks._peers import Loss

VALUE, IN_P, IN_Q = "KL divergence between logits", "KL divergence, gradient in p_logits", "KL divergence, gradient in q_logits"
PROBABILITIES = "KL divergence of probability vectors"

SIZES, QUICK_SIZES = ((2, 20), (10, 20), (1000, 4)), ((10, 2),)  # classes, and pairs of each kind
NATS = (5.0, 20.0, 50.0)
DISTANCES = (1e-7, 1e-6, 1e-4, 1e-2)
UNDERFLOW = 200.0  # nats


def cases(quick: bool) -> Sequence[AccuracyCase]:
    """KL divergence between logits, its gradients in both, and KL divergence of probability vectors."""
    losses: Mapping[str, Loss] = {"jaxgrad": jg.kl_divergence, **_peers.kl_divergences()}
    gradient = lambda loss, argnum: jax.jit(jax.grad(_peers.summed(loss), argnums=argnum))
    closed_form = lambda argnum: jax.jit(functools.partial(jg.kl_divergence_grad, argnums=argnum))
    quantities: dict[str, dict[str, Contender]] = {
        VALUE: {name: jax.jit(loss) for name, loss in losses.items()},
        IN_P: {**{name: gradient(loss, 0) for name, loss in losses.items()}, "jaxgrad, kl_divergence_grad": closed_form(0)},
        IN_Q: {**{name: gradient(loss, 1) for name, loss in losses.items()}, "jaxgrad, kl_divergence_grad": closed_form(1)},
        PROBABILITIES: {name: jax.jit(loss) for name, loss in _of_probabilities().items()},
    }
    scipy = _peers.load("scipy.special")
    if scipy:
        quantities[VALUE]["scipy.special.rel_entr"] = lambda a, b: scipy.rel_entr(scipy.softmax(a, axis=-1), scipy.softmax(b, axis=-1)).sum(-1)
        quantities[PROBABILITIES]["scipy.special.rel_entr"] = lambda p, q: scipy.rel_entr(p, q).sum(-1)
        quantities[PROBABILITIES]["scipy.special.kl_div"] = lambda p, q: scipy.kl_div(p, q).sum(-1)
    torch = _peers.load("torch")
    if torch:
        for quantity, contenders in _torch_contenders(torch).items():
            quantities[quantity].update(contenders)
    suites = {quantity: functools.partial(probability_suite if quantity == PROBABILITIES else logit_suite, quick) for quantity in quantities}
    return [AccuracyCase("accuracy_divergences", title, contenders, suites[title]) for title, contenders in quantities.items()]


def _of_probabilities() -> dict[str, Loss]:
    losses: dict[str, Loss] = {
        "jaxgrad": jg.kl_divergence_probs,
        "optax": lambda p, q: optax.kl_divergence(jnp.log(q), p),
        "optax, log targets": lambda p, q: optax.losses.kl_divergence_with_log_targets(jnp.log(q), jnp.log(p)),
    }
    distrax = _peers.load("distrax")
    if distrax:
        losses["distrax"] = lambda p, q: distrax.Categorical(probs=p).kl_divergence(distrax.Categorical(probs=q))
    return losses


def _torch_contenders(torch: Any) -> dict[str, dict[str, Contender]]:
    """Functions of NumPy arrays, by quantity and name."""
    functional, divergence, categorical = torch.nn.functional, torch.distributions.kl_divergence, torch.distributions.Categorical

    def kl_div(a: Any, b: Any) -> Any:
        log_p, log_q = functional.log_softmax(a, dim=-1), functional.log_softmax(b, dim=-1)
        return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)

    def gradient(loss: Function, argnum: int, *logits: Any) -> Any:
        logits[argnum].requires_grad_()
        return torch.autograd.grad(loss(*logits).sum(), logits[argnum])[0]

    def on_numpy(function: Function, *arrays: np.ndarray) -> Any:
        return function(*map(torch.tensor, arrays)).detach().numpy()

    of_logits: dict[str, Function] = {
        "torch kl_div": kl_div,
        "torch Categorical": lambda a, b: divergence(categorical(logits=a), categorical(logits=b)),
    }
    of_probabilities: dict[str, Function] = {
        "torch kl_div": lambda p, q: functional.kl_div(q.log(), p, reduction="none").sum(-1),
        "torch Categorical": lambda p, q: divergence(categorical(probs=p), categorical(probs=q)),
    }
    functions: dict[str, dict[str, Function]] = {
        VALUE: of_logits,
        IN_P: {name: functools.partial(gradient, loss, 0) for name, loss in of_logits.items()},
        IN_Q: {name: functools.partial(gradient, loss, 1) for name, loss in of_logits.items()},
        PROBABILITIES: of_probabilities,
    }
    return {quantity: {name: functools.partial(on_numpy, f) for name, f in by_name.items()} for quantity, by_name in functions.items()}


@functools.cache
def logit_suite(quick: bool) -> Sequence[Block]:
    """Seeded pairs of every kind with 2, 10 and 1000 classes, or some with 10, and the exact answers."""
    random = np.random.default_rng(0)
    return [_block(random, num_classes, repeats) for num_classes, repeats in (QUICK_SIZES if quick else SIZES)]


@functools.cache
def probability_suite(quick: bool) -> Sequence[Block]:
    """The softmax of the logits in float32, and the exact answers for these very vectors."""
    blocks = []
    for block in logit_suite(quick):
        p, q = map(_float32_softmax, block.arrays)
        blocks.append(Block((p, q), block.kinds, stacked([_exact_of_probabilities(*row) for row in zip(p, q, strict=True)])))
    return blocks


def _float32_softmax(logits: np.ndarray) -> np.ndarray:
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = exps / exps.sum(axis=-1, keepdims=True)
    return np.where(p < FLOAT32.tiny, 0, p)


def _block(random: np.random.Generator, num_classes: int, repeats: int) -> Block:
    pairs = [pair for _ in range(repeats) for pair in _pairs(random, num_classes)]
    kinds, *logits = zip(*pairs, strict=True)
    a, b = (np.stack(rows).astype(np.float32) for rows in logits)
    answers, scales = zip(*(_exact(*row) for row in zip(a, b, strict=True)), strict=True)
    return Block((a, b), kinds, stacked(answers), stacked(scales))


def _pairs(random: np.random.Generator, num_classes: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """One pair of logits of every kind; what p and q have in common stands out at class k."""
    float32_row, other, noise = random.standard_normal((3, num_classes)).astype(np.float32)
    z, k = float32_row.astype(np.float64), int(random.integers(num_classes))
    at_k = np.arange(num_classes) == k
    coarse = np.round(z * 1024) / 1024  # exact in float32, also when shifted
    ahead = lambda row, nats: np.where(at_k, row[~at_k].max() + nats, row)
    below = lambda row: np.where(at_k, row - UNDERFLOW, row)
    hidden = at_k | ((random.random(num_classes) < 0.3) & (np.arange(num_classes) != (k + 1) % num_classes))
    masked = lambda row: np.where(hidden, -np.inf, row)

    pairs = [(f"independent, x{factor}", factor * z, factor * other) for factor in (1, 10, 100)]
    pairs += [(f"{distance:g} apart", z, z + distance * noise) for distance in DISTANCES]
    pairs += [("shifted by 8", coarse, coarse + 8), ("shifted by 1000, rounded", z, z + 1000)]
    for nats in NATS:
        pairs += [(f"p {nats:g} nats ahead", ahead(z, nats), other), (f"q {nats:g} nats ahead", z, ahead(other, nats))]
        pairs += [(f"both {nats:g} nats ahead", ahead(z, nats), ahead(other, nats))]
    pairs += [("underflow in p", below(z), other), ("underflow in q", z, below(other)), ("underflow in both", below(z), below(other))]
    pairs += [("masked in p", masked(z), other), ("masked in both", masked(z), masked(other))]
    return pairs


def _exact(a: np.ndarray, b: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The textbook formulas for one pair, and the scales of its gradients."""
    with mpmath.workdps(DIGITS):
        p, log_p = _softmax_and_logarithm(a)
        q, log_q = _softmax_and_logarithm(b)
        log_ratio = [log_p_j - log_q_j if p_j else mpmath.mpf(0) for p_j, log_p_j, log_q_j in zip(p, log_p, log_q, strict=True)]
        kl = mpmath.fdot(p, log_ratio)
        answers = as_float64(
            {
                VALUE: kl,
                IN_P: [p_j * (t_j - kl) for p_j, t_j in zip(p, log_ratio, strict=True)],
                IN_Q: [q_j - p_j for p_j, q_j in zip(p, q, strict=True)],
            }
        )
        probabilities = as_float64({"p": p, "q": q})
    of_p, of_q = (_scale(probabilities[name], a, b) for name in "pq")
    return answers, {IN_P: of_p, IN_Q: np.maximum(of_p, of_q)}


def _softmax_and_logarithm(logits: np.ndarray) -> tuple[list[Any], list[Any]]:
    z = [mpmath.mpf(float(z_j)) for z_j in logits]
    exps = [mpmath.exp(z_j) for z_j in z]
    total = mpmath.fsum(exps)
    log_total = mpmath.log(total)
    return [e_j / total for e_j in exps], [z_j - log_total for z_j in z]


def _scale(p: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """p_j Σ_i p_i |v_j − v_i| with v = a − b, over the classes with a finite v; float64 is plenty for where to take an ULP."""
    finite = np.isfinite(a) & np.isfinite(b)
    v = np.where(finite, a, 0).astype(np.float64) - np.where(finite, b, 0)
    return np.where(finite, p * (np.abs(v[:, None] - v) @ np.where(finite, p, 0)), 0)


def _exact_of_probabilities(p: np.ndarray, q: np.ndarray) -> dict[str, np.ndarray]:
    """Σ p log(p/q) over p > 0, infinite where q = 0 < p."""
    if ((p > 0) & (q == 0)).any():
        return {PROBABILITIES: np.array(np.inf)}
    with mpmath.workdps(DIGITS):
        pairs = [(mpmath.mpf(float(p_j)), mpmath.mpf(float(q_j))) for p_j, q_j in zip(p, q, strict=True) if p_j > 0]
        return as_float64({PROBABILITIES: mpmath.fsum(p_j * mpmath.log(p_j / q_j) for p_j, q_j in pairs)})
