"""The head read in blocks on a real vocabulary: the 32,000 token embeddings that the package `wordllama` ships.

The package is optional, and only its weights are read. Features are means of 1, 8 and 64 consecutive rows of the table:
from quiet predictions to ones that lead by a hundred nats. The label is a row of the mean, or the one after it.
"""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._routes import head_loss
from jaxgrad.verify._suites import Examples, examples

Array = np.ndarray
MISSING = "real vocabulary skipped: wordllama not found; install it with: pip install wordllama."
WEIGHTS = "weights/l2_supercat_256.safetensors"
BLOCK_SIZE = 4096  # of the 32,000 classes: the last block is ragged
BOUND = 3.0  # ULP, as of the other heads
WINDOWS = (1, 8, 64)  # rows in a mean
MEANS = 2  # of each


def token_embeddings() -> Array | None:
    """The table, (32000, 256), float16; None where the package is not installed.

    Source: Miller 2024, WordLlama, https://github.com/dleemiller/WordLlama, MIT.
    """
    package = importlib.util.find_spec("wordllama")
    files = [Path(folder) / WEIGHTS for folder in (package and package.submodule_search_locations) or ()]
    file = next(filter(Path.is_file, files), None)
    if file is None:
        return None
    content = file.read_bytes()  # the length of a JSON header, the header, the numbers
    begin = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:begin])["embedding.weight"]
    return np.frombuffer(content, np.float16, offset=begin + entry["data_offsets"][0], count=int(np.prod(entry["shape"]))).reshape(entry["shape"])


def vocabulary_examples(table: Array, dtype: jnp.dtype, rng: np.random.Generator) -> Examples:
    """Means of rows as features, all the table as the head."""
    wide = table.astype(np.float64)
    begins = np.linspace(0, len(table) - 1 - max(WINDOWS), MEANS, dtype=int)
    features = np.stack([wide[begin : begin + window].mean(0) for window in WINDOWS for begin in begins]).astype(dtype)
    labels = np.array([begin + window * (i % 2) for window in WINDOWS for i, begin in enumerate(begins)], np.int32)
    head = wide.astype(dtype)
    logits = features.astype(np.float64) @ head.astype(np.float64).T
    one_hot = (labels[:, None] == np.arange(len(table))).astype(float)
    return examples(np.full(len(features), "wordllama"), logits, labels, one_hot, dtype, rng, features=features, head=head)


def vocabulary_identities() -> list[Identity]:
    """Loss and gradient in features."""
    loss = head_loss(lambda z, c: plain.cross_entropy(z, jax.nn.one_hot(c, z.shape[-1], dtype=z.dtype)))
    no_bias = lambda w: jnp.zeros(len(w), w.dtype)
    dense = lambda e, w, c: loss(e, w, no_bias(w), c, jnp.ones(c.shape, w.dtype))
    return [
        Identity(
            "ce-1",
            "log Σ_j e^{z_j} − z_c, z = W e in blocks of a real vocabulary",
            ("features", "head", "labels"),
            autodiff=lambda e, w, c: jax.vmap(lambda e, c: dense(e[None], w, c[None]))(e, c),
            closed=_losses,
            public=_losses,
            arbiter=lambda e, w, c: exact.logsumexp(z := _logits(e, w)) - z[np.arange(len(c)), c],
            scale=_loss_scale,
            bound=BOUND,
            of_chain=True,
            of_vocabulary=True,
        ),
        Identity(
            "chain-1",
            "∂L/∂e = Wᵀ (p − y), in blocks of a real vocabulary",
            ("features", "head", "labels"),
            autodiff=jax.grad(dense),
            closed=jax.grad(lambda e, w, c: _losses(e, w, c).sum()),
            public=lambda e, w, c: jax.vmap(jax.grad(lambda e, c: _losses(e, w, c)))(e, c),
            arbiter=_by_features,
            scale=lambda e, w, c: _residual_scale(e, w, c)[1] @ np.abs(w),
            bound=BOUND,
            of_chain=True,
            of_vocabulary=True,
        ),
    ]


def _losses(e: jax.Array, w: jax.Array, c: jax.Array) -> jax.Array:
    return jg.linear_cross_entropy(e, w, c, block_size=BLOCK_SIZE)


def _logits(e: Array, w: Array) -> Array:
    """W e of a float64 head as mpmath numbers, (N, C): products are exact in a long double, and sums where it has 64 bits."""
    z = e.astype(np.float64).astype(np.longdouble) @ w.T.astype(np.longdouble)
    upper = z.astype(np.float64)
    return exact.to_mpmath(upper) + exact.to_mpmath(z - upper)


def _by_features(e: Array, w: Array, c: Array) -> Array:
    """chain-1, (N, d)."""
    residual = exact.softmax(_logits(e, w))
    residual[np.arange(len(c)), c] -= 1
    upper = residual.astype(np.float64)
    return (upper + (residual - upper).astype(np.float64).astype(np.longdouble)) @ w.astype(np.longdouble)


def _loss_scale(e: Array, w: Array, c: Array) -> Array:
    """The loss and what it moves by when the products in z are rounded, (N,)."""
    z = e @ w.T
    return exact.logsumexp(z) - z[np.arange(len(c)), c] + (_residual_scale(e, w, c)[0] * (np.abs(e) @ np.abs(w).T)).sum(-1)


def _residual_scale(e: Array, w: Array, c: Array) -> tuple[Array, Array]:
    """|p − y|, and with what it moves by when the products in z are rounded, (N, C)."""
    z, spread, classes = e @ w.T, np.abs(e) @ np.abs(w).T, np.arange(len(w))[None]
    p, top = exact.softmax(z), classes == z.argmax(-1)[:, None]
    sum_beside = lambda x: np.where(top, np.where(top, 0, x).sum(-1, keepdims=True), x.sum(-1, keepdims=True) - x)
    others = sum_beside(p)
    size = np.where(classes == c[:, None], others, p)
    return size, size + p * (others * spread + sum_beside(p * spread))
