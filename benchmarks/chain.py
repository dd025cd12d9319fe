"""Time of gradients of single examples in the head and of a whole model, and of the dense Hessian of a softmax regression.

The peer materialises every gradient by `vmap(grad)`. Beside it stands one ordinary gradient of the mean loss, which is
another quantity, and as a limit the matrix product that makes the logits, or for the Hessian one of as many flops.

Of 64 examples XLA fuses the norms of vmap(grad) and writes no gradient, so that the ratio to it is no measure there; ours
stay near the limit, below which nothing is left to gain. The dense Hessian is below its limit, as it is symmetric.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxgrad as jg
from benchmarks._harness import DTYPE, Function, Target, TimingCase

NUM_FEATURES, NUM_CLASSES = 512, 1000
MAX_NORM = 1.0
WIDTHS = (256, 512, 512)  # of the network, before its head of 100 classes


def cases(quick: bool) -> Sequence[TimingCase]:
    """Norms, clipped sums, Gram and dense gradients of a head; norms of a network; the Hessian of a softmax regression."""
    return [*_head_cases(16 if quick else 64), *([] if quick else [_norms(256)]), _network_norms(16 if quick else 64), _dense_hessian(200 if quick else 1797)]


def _head_case(title: str, num_examples: int, ours: Function, peer: Function, *targets: Target) -> TimingCase:
    def arguments() -> tuple[jax.Array, ...]:
        """Features, head, class ids."""
        return _problem(num_examples, NUM_FEATURES, NUM_CLASSES)

    limit: Mapping[str, Function] = {"E Wᵀ": lambda e, w, y: e @ w.T, "one gradient": jax.grad(_mean_loss, 1)}
    return TimingCase(
        benchmark="chain",
        title=f"{title}, N = {num_examples}, d = {NUM_FEATURES}, C = {NUM_CLASSES}",
        arguments=arguments,
        ours={"jaxgrad": lambda e, w, y: ours(jg.per_example_gradients(e, w, y))},
        peers={"vmap(grad)": lambda e, w, y: peer(jax.vmap(jax.grad(_loss, 1), (0, None, 0))(e, w, y))},
        limit=limit,
        targets=targets,
    )


def _norms(num_examples: int) -> TimingCase:
    norms = lambda g: jnp.sqrt((g * g).sum((-2, -1)))
    return _head_case("norms of the gradients of a head", num_examples, lambda g: g.norms(), norms, Target(0.02, "vmap(grad)"), Target(1, "one gradient"))


def _head_cases(num_examples: int) -> Sequence[TimingCase]:
    def clipped(g: jax.Array) -> jax.Array:
        norms = jnp.sqrt((g * g).sum((-2, -1)))
        return jnp.einsum("n,nca->ca", jnp.minimum(1, MAX_NORM / norms), g)

    gram = lambda g: g.reshape(len(g), -1) @ g.reshape(len(g), -1).T
    fast, as_gradient = Target(0.02, "vmap(grad)"), Target(1, "one gradient")
    return [
        _norms(num_examples),
        _head_case("clipped sum of the gradients of a head", num_examples, lambda g: g.clipped_sum(MAX_NORM), clipped, fast, as_gradient),
        _head_case("Gram matrix of the gradients of a head", num_examples, lambda g: g.gram(), gram, fast),
        _head_case("all gradients of a head", num_examples, lambda g: g.to_dense(), lambda g: g),
    ]


def _network_norms(num_examples: int) -> TimingCase:
    """The head by its factors, the rest by `vmap`, against `vmap` of all."""

    def arguments() -> tuple[Any, ...]:
        """Parameters of the network, head, inputs, class ids."""
        keys = jax.random.split(jax.random.key(1), len(WIDTHS) - 1)
        params = [jax.random.normal(key, shape, DTYPE) / shape[0] ** 0.5 for key, shape in zip(keys, itertools.pairwise(WIDTHS), strict=True)]
        inputs, _, _ = _problem(num_examples, WIDTHS[0], 100)
        _, head, ids = _problem(num_examples, WIDTHS[-1], 100)
        return params, head, inputs, ids

    def features(params: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        for kernel in params:
            x = jax.nn.relu(x @ kernel)
        return x

    def materialised(params: Any, head: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        gradients = jax.vmap(jax.grad(lambda both, x, y: _loss(features(both[0], x), both[1], y)), (None, 0, 0))((params, head), x, y)
        return jnp.sqrt(sum((g * g).sum((-2, -1)) for g in jax.tree.leaves(gradients)))

    mean_loss = lambda both, x, y: _mean_loss(features(both[0], x), both[1], y)
    return TimingCase(
        benchmark="chain",
        title=f"norms of the gradients of a network {'-'.join(map(str, WIDTHS))}-100, N = {num_examples}",
        arguments=arguments,
        ours={"jaxgrad": lambda params, head, x, y: jg.per_example_gradient_norms(features, params, head, x, y)},
        peers={"vmap(grad)": materialised},
        limit={"one gradient": lambda params, head, x, y: jax.grad(mean_loss)((params, head), x, y)},
    )


def _dense_hessian(num_examples: int) -> TimingCase:
    def arguments() -> tuple[jax.Array, ...]:
        """Features, head, class ids."""
        return _problem(num_examples, 64, 10)

    def product(e: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        rows = jnp.tile(e, (1, len(w)))
        return rows.T @ rows

    return TimingCase(
        benchmark="chain",
        title=f"dense Hessian of a softmax regression, N = {num_examples}, d = 64, C = 10",
        arguments=arguments,
        ours={"jaxgrad": lambda e, w, y: jg.head_hessian(e, w, y).to_dense()},
        peers={"jax.hessian": lambda e, w, y: jax.hessian(_mean_loss, 1)(e, w, y).reshape(w.size, w.size)},
        limit={"(N, C d)ᵀ (N, C d)": product},
        targets=(Target(0.07, "jax.hessian"),),
    )


def _problem(num_examples: int, num_features: int, num_classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    head = jax.random.normal(keys[1], (num_classes, num_features), DTYPE) / num_features**0.5
    return jax.random.normal(keys[0], (num_examples, num_features), DTYPE), head, jax.random.randint(keys[2], (num_examples,), 0, num_classes)


def _loss(e: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(w @ e, y)


def _mean_loss(e: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(e @ w.T, y).mean()
