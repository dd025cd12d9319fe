"""Time of products with the Hessian and the Gauss–Newton matrix of two models, as multiples of one gradient.

An MLP 784-512-512-10 over 512 examples, and a transformer of 2 layers, width 128, over 16 × 64 tokens of 512. "fresh"
linearises at the parameters and makes one product; "amortised" makes a product with an operator that is there. The
limit is one gradient of the mean loss by JAX.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxgrad as jg
from benchmarks._harness import DTYPE, Function, Target, TimingCase

Model = Callable[[Any, jax.Array], jax.Array]
GRADIENT = "one gradient"


def cases(quick: bool) -> Sequence[TimingCase]:
    """Four products of each model; with `quick`, of the MLP."""
    mlp = _cases("MLP", _mlp, _mlp_arguments, Target(1.85, GRADIENT), Target(1.5, GRADIENT), Target(1.45, GRADIENT), Target(1.15, GRADIENT))
    if quick:
        return mlp
    targets = (Target(1.85, GRADIENT), Target(1.5, GRADIENT), Target(1.2, GRADIENT), Target(0.8, GRADIENT))
    return [*mlp, *_cases("transformer", _transformer, _transformer_arguments, *targets)]


def _cases(name: str, model: Model, data: Callable[[], tuple[Any, jax.Array, jax.Array]], *targets: Target) -> Sequence[TimingCase]:
    def loss(logits: jax.Array, y: jax.Array) -> jax.Array:
        return jg.cross_entropy(logits, y).mean()

    total = lambda params, x, y: loss(model(params, x), y)
    hessian = lambda params, x, y: jg.hessian(lambda p: total(p, x, y), params)
    ggn = lambda params, x, y: jg.ggn(lambda p: model(p, x), lambda z: loss(z, y), params)
    by_jax = lambda params, x, y, v: jax.jvp(jax.grad(lambda p: total(p, x, y)), (params,), (v,))[1]

    def by_hand(params: Any, x: jax.Array, y: jax.Array, v: Any) -> Any:
        z, pull_back = jax.vjp(lambda p: model(p, x), params)
        dz = jax.jvp(lambda p: model(p, x), (params,), (v,))[1]
        return pull_back(jax.jvp(jax.grad(lambda z: loss(z, y)), (z,), (dz,))[1])[0]

    def fresh() -> tuple[Any, ...]:
        params, x, y = data()
        return params, x, y, jax.tree.map(jnp.cos, params)

    def case(title: str, build: Callable[..., jg.PytreeOperator], peer: tuple[str, Function], of_fresh: Target, of_amortised: Target) -> Sequence[TimingCase]:
        gradient: Function = lambda params, x, y, *_: jax.grad(total)(params, x, y)
        shared: dict[str, Any] = {"benchmark": "curvature", "limit": {GRADIENT: gradient}}
        with_operator = lambda: (*fresh(), jax.jit(build)(*fresh()[:3]))
        peers = {peer[0]: lambda params, x, y, v, *_: peer[1](params, x, y, v)}
        return [
            TimingCase(
                title=f"{title} product, fresh, {name}",
                arguments=fresh,
                ours={"jaxgrad": lambda params, x, y, v: build(params, x, y) @ v},
                peers=peers,
                targets=(of_fresh,),
                **shared,
            ),
            TimingCase(
                title=f"{title} product, amortised, {name}",
                arguments=with_operator,
                ours={"jaxgrad": lambda params, x, y, v, operator: operator @ v},
                peers=peers,
                targets=(of_amortised,),
                **shared,
            ),
        ]

    return [
        *case("Hessian", hessian, ("jax.jvp of jax.grad", by_jax), *targets[:2]),
        *case("Gauss-Newton", ggn, ("jax.jvp and jax.vjp", by_hand), *targets[2:]),
    ]


def _mlp(params: Any, x: jax.Array) -> jax.Array:
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def _mlp_arguments() -> tuple[Any, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    sizes = (784, 512, 512, 10)
    params = [_normal(k, (a, b)) for k, a, b in zip(keys[:3], sizes[:-1], sizes[1:], strict=True)]
    return params, jax.random.normal(keys[3], (512, 784), DTYPE), jax.random.randint(keys[4], (512,), 0, 10)


def _transformer(params: Any, tokens: jax.Array) -> jax.Array:
    norm = lambda e: (e - e.mean(-1, keepdims=True)) * jax.lax.rsqrt(e.var(-1, keepdims=True) + 1e-6)
    heads = lambda e: e.reshape(*e.shape[:-1], 4, -1)
    e = params["embedding"][tokens]
    for layer in params["layers"]:
        q, k, v = jnp.split(norm(e) @ layer["qkv"], 3, -1)
        e = e + jax.nn.dot_product_attention(heads(q), heads(k), heads(v), is_causal=True).reshape(e.shape) @ layer["out"]
        e = e + jax.nn.gelu(norm(e) @ layer["up"]) @ layer["down"]
    return norm(e) @ params["embedding"].T


def _transformer_arguments() -> tuple[Any, jax.Array, jax.Array]:
    keys = iter(jax.random.split(jax.random.key(0), 11))
    shapes = {"qkv": (128, 384), "out": (128, 128), "up": (128, 512), "down": (512, 128)}
    layers = [{name: _normal(next(keys), shape) for name, shape in shapes.items()} for _ in range(2)]
    tokens = jax.random.randint(next(keys), (16, 65), 0, 512)
    return {"embedding": _normal(next(keys), (512, 128)), "layers": layers}, tokens[:, :-1], tokens[:, 1:]


def _normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return jax.random.normal(key, shape, DTYPE) / shape[0] ** 0.5
