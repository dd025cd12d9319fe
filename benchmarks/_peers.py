"""What jaxgrad is compared with: the optional libraries, and the literal formulas a user would write with jax.nn."""

import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]

LIBRARIES = ("optax", "distrax", "scikit-learn", "scipy", "torch", "tokamax", "jax_cce", "curvlinops-for-pytorch", "laplax", "python-somax")


def versions() -> dict[str, str | None]:
    """The version of every library of `LIBRARIES`, None for one that is not installed."""
    return {name: _version(name) for name in LIBRARIES}


@functools.cache
def load(module: str) -> ModuleType | None:
    """The module, or None where its library is not installed, or, with a warning, does not import on this machine."""
    top = module.partition(".")[0]
    library = {"sklearn": "scikit-learn", "curvlinops": "curvlinops-for-pytorch", "somax": "python-somax"}.get(top, top)
    if _version(library) is None:
        return None
    try:
        return importlib.import_module(module)
    except Exception as error:  # what an old library raises on a new jax can be anything
        warnings.warn(f"{library} {_version(library)} is installed but left out, as it does not import: {error!r}", stacklevel=2)
        return None


def summed(loss: Loss) -> Loss:
    """The sum of a loss over the examples, whose gradient is that of every example."""
    return lambda logits, targets: loss(logits, targets).sum()


def _log_softmax_cross_entropy_ids(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """−log p_y, (...), from `jax.nn.log_softmax`, for class ids (...)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]


def _log_softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ y log p, (...), from `jax.nn.log_softmax`, for distributions (..., C)."""
    return -(targets * jax.nn.log_softmax(logits)).sum(-1)


# Losses of logits (..., C) with class ids (...), and with distributions (..., C).
CROSS_ENTROPY_IDS: Mapping[str, Loss] = {
    "optax": optax.softmax_cross_entropy_with_integer_labels,
    "jax.nn.log_softmax": _log_softmax_cross_entropy_ids,
}
CROSS_ENTROPY_DISTRIBUTIONS: Mapping[str, Loss] = {
    "optax": optax.softmax_cross_entropy,
    "jax.nn.log_softmax": _log_softmax_cross_entropy,
}


def kl_divergences() -> dict[str, Loss]:
    """KL(p‖q) of logits of p and of q, (..., C) each, as optax and distrax have it, and as the formula reads."""
    losses: dict[str, Loss] = {
        "optax": lambda a, b: optax.kl_divergence(jax.nn.log_softmax(b), jax.nn.softmax(a)),
        "optax, log targets": lambda a, b: optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(b), jax.nn.log_softmax(a)),
        "jax.nn.log_softmax": _log_softmax_kl,
    }
    distrax = load("distrax")
    if distrax:
        losses["distrax"] = lambda a, b: distrax.Categorical(logits=a).kl_divergence(distrax.Categorical(logits=b))
    return losses


def linear_cross_entropies() -> dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]]:
    """Mean losses of features (N, d), a head (C, d) and class ids (N,), of those that are installed."""
    losses: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {}
    tokamax, jax_cce = load("tokamax"), load("jax_cce")
    if tokamax:
        of_head = functools.partial(tokamax.linear_softmax_cross_entropy_loss, reduction="mean", implementation="xla")
        losses["tokamax, xla"] = lambda e, w, y: of_head(e, y, w.T)
    if jax_cce:
        losses["jax-cce"] = jax_cce.linear_cross_entropy
    return losses


def _log_softmax_kl(a: jax.Array, b: jax.Array) -> jax.Array:
    """Σ p (log p − log q), (...), from `jax.nn.log_softmax`."""
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def log_softmax_js(a: jax.Array, b: jax.Array) -> jax.Array:
    """½ Σ p (log p − log m) + ½ Σ q (log q − log m), m = (p + q)/2, (...), from `jax.nn.log_softmax`."""
    log_p, log_q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.log((p + q) / 2)
    return (p * (log_p - log_m) + q * (log_q - log_m)).sum(-1) / 2


def p_log_p_entropy(logits: jax.Array) -> jax.Array:
    """−Σ p log p, (...), from `jax.nn.softmax` and `jax.nn.log_softmax`."""
    return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1)


def outer_product_jacobian(logits: jax.Array) -> jax.Array:
    """diag(p) − p pᵀ, (..., C, C), from `jax.nn.softmax`."""
    p = jax.nn.softmax(logits)
    return p[..., :, None] * (jnp.eye(p.shape[-1], dtype=p.dtype) - p[..., None, :])


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
