"""What the identities are verified on: real examples, and generated ones that break plain formulas."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgrad._cross_entropy import cross_entropy
from jaxgrad.verify._data import digits

Array = np.ndarray
NUM_FEATURES = 16
STEPS = 6


@dataclasses.dataclass(frozen=True)
class Examples:
    """N rows in the dtype to verify in. The first M of them also come with the chain that made their logits."""

    suite: Array  # (N,): the name of the suite that the row is of
    logits: Array  # (N, C)
    labels: Array  # (N,)
    targets: Array  # (N, C), distributions
    tangents: Array  # (N, C)
    others: Array  # (N, C): logits to compare with: another row's, or nearly the same; finite where `logits` are
    nearby: Array  # (N, STEPS, C): logits + 2^{−k} normal, k = 1, 2, …
    features: Array | None = None  # (M, d)
    head: Array | None = None  # (C, d)
    bias: Array | None = None  # (C,)
    params: Any = None  # of `feature_fn`
    inputs: Any = None  # of `feature_fn`, leaves (M, ...)

    @property
    def lead(self) -> Array:
        """By how many nats the heaviest class leads the next, (N,)."""
        ahead = np.sort(self.logits.astype(np.float64), axis=-1)
        return ahead[:, -1] - ahead[:, -2] if ahead.shape[-1] > 1 else np.zeros(len(ahead))

    @property
    def size(self) -> Array:
        """The largest magnitude among the logits, (N,); inf where a class is masked."""
        return np.abs(self.logits.astype(np.float64)).max(-1)


def feature_fn(params: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> jax.Array:
    """The feature extractor of the embedded classifier, s · tanh(A x + a): (N, D) to (N, d)."""
    return inputs["scale"][:, None] * jnp.tanh(inputs["pixels"] @ params["kernel"] + params["bias"][None])


def fit_digits(seed: int, num_steps: int, progress: Callable[[int], None]) -> dict[str, Any]:
    """A classifier of the digits, tanh features and a linear head, fitted in float32 by full-batch Adam.

    Returns:
      "params" of `feature_fn`, "head" (10, 16) and "bias" (10,).
    """
    images, labels = digits()
    keys = jax.random.split(jax.random.key(seed), 2)
    classifier = {
        "params": {"kernel": jax.random.normal(keys[0], (64, NUM_FEATURES), jnp.float32) / 8, "bias": jnp.zeros(NUM_FEATURES, jnp.float32)},
        "head": jax.random.normal(keys[1], (10, NUM_FEATURES), jnp.float32) / 4,
        "bias": jnp.zeros(10, jnp.float32),
    }
    optimiser = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))

    def mean_loss(classifier: dict[str, Any], images: jax.Array, labels: jax.Array) -> jax.Array:
        e = feature_fn(classifier["params"], {"pixels": images, "scale": jnp.ones(len(images), jnp.float32)})
        return cross_entropy(e @ classifier["head"].T + classifier["bias"][None], labels).mean()

    @jax.jit
    def steps(classifier: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        def step(carry: Any, _: None) -> Any:
            classifier, state = carry
            updates, state = optimiser.update(jax.grad(mean_loss)(classifier, images, labels), state)
            return (optax.apply_updates(classifier, updates), state), None

        return jax.lax.scan(step, (classifier, state), None, length=num_steps // 10)[0]

    carry = (classifier, optimiser.init(classifier))
    for _ in range(10):
        carry = jax.block_until_ready(steps(*carry, images, labels))
        progress(num_steps // 10)
    return carry[0]


def digits_examples(classifier: dict[str, Any], dtype: jnp.dtype, rng: np.random.Generator) -> Examples:
    """The digits under the classifier, and again with features 40 times as large: the same examples, confident."""
    images, labels = digits()
    wide = jnp.promote_types(jnp.float32, dtype)
    params = jax.tree.map(lambda x: x.astype(wide), classifier["params"])
    inputs = {"pixels": np.tile(images, (2, 1)).astype(wide), "scale": np.repeat([1, 40], len(images)).astype(wide)}
    features = jax.jit(feature_fn)(params, inputs).astype(dtype)
    head, bias = (classifier[k].astype(dtype) for k in ("head", "bias"))
    logits = jax.jit(lambda e, w, b: e.astype(wide) @ w.astype(wide).T + b.astype(wide)[None])(features, head, bias)
    names = np.repeat(["digits", "digits, features x 40"], len(images))
    chain = {"features": features, "head": head, "bias": bias, "params": params, "inputs": inputs}
    return examples(names, np.asarray(logits), np.tile(labels, 2), None, dtype, rng, **jax.tree.map(np.asarray, chain))


def stress_examples(num_classes: int, dtype: jnp.dtype, rng: np.random.Generator, repeats: int = 1) -> Examples:
    """Generated logits on which plain formulas lose digits, with targets of any sum."""
    logits, labels = stress_logits(num_classes, rng, repeats)
    largest = float(jnp.finfo(dtype).max)
    logits = np.where(np.isfinite(logits), np.clip(logits, -largest, largest), logits)
    targets = rng.dirichlet(np.full(num_classes, 0.3), size=len(logits)) * rng.choice([1.0, 0.7], size=(len(logits), 1))
    return examples(np.full(len(logits), "stress"), logits, labels, targets, dtype, rng)


def examples(suite: Array, logits: Array, labels: Array, targets: Array | None, dtype: jnp.dtype, rng: np.random.Generator, **chain: Any) -> Examples:
    """Rows rounded to `dtype`, with targets that put 0.9 on the label unless given, and tangents, with a common offset where generated."""
    num_classes = logits.shape[-1]
    if targets is None:
        targets = 0.1 / num_classes + 0.9 * np.eye(num_classes)[labels]
    offsets = np.where(suite == "stress", rng.choice([0.0, 1e4], size=len(logits)), 0)
    tangents = rng.normal(size=logits.shape) + offsets[:, None]
    rounded = logits.astype(dtype)
    wide = rounded.astype(np.float64)
    with np.errstate(invalid="ignore"):
        nearby = wide[:, None] + np.exp2(-1.0 - np.arange(STEPS))[:, None] * rng.normal(size=logits.shape)[:, None]
    targets = np.where(logits == -np.inf, 0, targets)
    compared = logits_to_compare(wide, suite, rng)
    largest = float(jnp.finfo(dtype).max)
    rounded_too = lambda x: np.where(np.isfinite(x), np.clip(x, -largest, largest), x).astype(dtype)
    return Examples(suite, rounded, labels, targets.astype(dtype), tangents.astype(dtype), rounded_too(compared), rounded_too(nearby), **chain)


def logits_to_compare(logits: Array, suite: Array, rng: np.random.Generator) -> Array:
    """Logits (N, C) of another row for every real row and half of the generated ones, and nearly the same ones, or the same shifted, for the rest."""
    num_rows = len(logits)
    another = np.roll(logits, 1, axis=0) if num_rows > 1 else -logits
    another = np.where(np.isfinite(another), another, rng.normal(size=logits.shape))
    distance = rng.choice([0, 1e-7, 1e-5, 1e-3, 0.1, 1], size=(num_rows, 1))
    with np.errstate(invalid="ignore"):
        near = logits + distance * rng.normal(size=logits.shape) + np.where(distance == 0, 4.0, 0)
    return np.where(((suite == "stress") & (rng.random(num_rows) < 0.5))[:, None], near, another)


def first_rows(given: Examples, most: int, rng: np.random.Generator) -> Examples:
    """At most so many of the rows, in a random order."""
    chosen = rng.permutation(len(given.logits))[:most]
    return dataclasses.replace(given, **{name: getattr(given, name)[chosen] for name in _ROWS})


def join(first: Examples, second: Examples) -> Examples:
    """The rows of both; the chain, if any, is that of the first."""
    return dataclasses.replace(first, **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in _ROWS})


_ROWS = ("suite", "logits", "labels", "targets", "tangents", "others", "nearby")


def stress_logits(num_classes: int, rng: np.random.Generator, repeats: int = 1) -> tuple[Array, Array]:
    """Rows of logits (N, C) on which plain formulas lose digits, and labels (N,); float64, to be rounded by the caller.

    Scales from 1 to 1e30; the label ahead or behind by 5 to 200 nats, also far from 0; equal logits, huge ones,
    ties, masks, and leads of almost nothing.
    """
    rows, labels = [], []

    def add(row: Array, label: int | None = None) -> None:
        rows.append(row)
        labels.append(rng.integers(num_classes) if label is None else label)

    normal = lambda: rng.normal(size=num_classes)
    for _ in range(repeats):
        for scale in (1, 3, 10, 100, 1e4, 1e30):
            add(scale * normal())
        for gap in (5, 17, 20, 50, 90, 200):
            for offset in (0, -911.7, 1e4):
                row, label = normal(), int(rng.integers(num_classes))
                row[label] = np.delete(row, label).max(initial=0) + gap
                add(row + offset, label)
            row, label = normal(), int(rng.integers(num_classes))
            row[label] = row.min() - gap
            add(row, label)
        for value in (0, 1e4, 3e38, -3e38):
            add(np.full(num_classes, float(value)))
        for offset in (1e4, -1e4):
            add(normal() + offset)
        for lead in (1e-7, 1e-3, 0.1, 1, 3):
            row, label = normal(), int(rng.integers(num_classes))
            row[label] = np.delete(row, label).max(initial=0) + lead
            add(row, label)
        for gap in (0, 30):
            row = normal()
            row[: 1 + num_classes // 2] = row.max() + gap
            add(row)
        masked = 3 * normal()
        masked[1::2] = -np.inf
        add(masked, 0)
    return np.array(rows), np.array(labels, np.int32)
