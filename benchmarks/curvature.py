"""Time of products with the Hessian and the Gauss–Newton matrix of two models, as multiples of one gradient.

An MLP 784-512-512-10 over 512 examples, and a transformer of 2 layers, width 128, over 16 × 64 tokens of 512. "fresh"
linearises at the parameters and makes one product; "amortised" makes a product with an operator that is there. The
limit is one gradient of the mean loss by JAX.

Counted in multiplications of matrices, a gradient of a layer is 3 products, or 2 where its input needs none. A Hessian
product is 8, fresh, and 6, amortised; one with the Gauss–Newton matrix 5 and 4. XLA's count in gradients is 1.92, 1.50, 1.58
and 1.17 for the MLP, and 2.68, 1.98, 1.65 and 1.32 for the transformer, whose gradient takes longer than its products.
curvlinops calls torch eagerly; on a loaded machine its threads wait for each other: OMP_NUM_THREADS=1 and one core are fair.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxgrad as jg
from benchmarks import _curvature_peers
from benchmarks._curvature_peers import Model
from benchmarks._harness import DTYPE, Function, Target, TimingCase

GRADIENT = "one gradient"


def cases(quick: bool) -> Sequence[TimingCase]:
    """Four products of each model; with `quick`, of the MLP."""
    mlp = _cases("MLP", _mlp, _curvature_peers.torch_mlp, _mlp_arguments, (1.85, 1.5, 1.45, 1.15))
    if quick:
        return mlp
    return [*mlp, *_cases("transformer", _transformer, _curvature_peers.torch_transformer, _transformer_arguments, (1.85, 1.5, 1.2, 0.8))]


def _cases(name: str, model: Model, torch_model: Model, data: Callable[[], tuple[Any, ...]], gradients: Sequence[float]) -> Sequence[TimingCase]:
    """Hessian and Gauss–Newton, fresh and amortised, each of at most so many `gradients`; `data` makes params, x and y."""

    def loss(logits: jax.Array, y: jax.Array) -> jax.Array:
        return jg.cross_entropy(logits, y).mean()

    total = lambda params, x, y: loss(model(params, x), y)
    hessian = lambda params, x, y: jg.hessian(lambda p: total(p, x, y), params)
    ggn = lambda params, x, y: jg.ggn(lambda p: model(p, x), lambda z: loss(z, y), params)
    by_jax = lambda params, x, y, v, *_: jax.jvp(jax.grad(lambda p: total(p, x, y)), (params,), (v,))[1]

    def by_hand(params: Any, x: jax.Array, y: jax.Array, v: Any, *_: Any) -> Any:
        z, pull_back = jax.vjp(lambda p: model(p, x), params)
        dz = jax.jvp(lambda p: model(p, x), (params,), (v,))[1]
        return pull_back(jax.jvp(jax.grad(lambda z: loss(z, y)), (z,), (dz,))[1])[0]

    def fresh() -> tuple[Any, ...]:
        params, x, y = data()
        return params, x, y, jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape, w.dtype), params)

    def case(title: str, build: Callable[..., jg.PytreeOperator], peers: Mapping[str, Function], of_fresh: float, of_amortised: float) -> Sequence[TimingCase]:
        gradient: Function = lambda params, x, y, *_: jax.grad(total)(params, x, y)
        with_operator = lambda: (*fresh(), jax.jit(build)(*fresh()[:3]))
        kinds: Sequence[tuple[str, Function, Callable[[], tuple[Any, ...]], float]] = [
            ("fresh", lambda params, x, y, v: build(params, x, y) @ v, fresh, of_fresh),
            ("amortised", lambda params, x, y, v, operator: operator @ v, with_operator, of_amortised),
        ]
        of_peers = [target for target in (Target(0.4, _curvature_peers.CURVLINOPS), Target(1.0, "laplax")) if target.of in peers]
        return [
            TimingCase(
                benchmark="curvature",
                title=f"{title} product, {kind}, {name}",
                arguments=arguments,
                ours={"jaxgrad": ours},
                peers=peers,
                limit={GRADIENT: gradient},
                targets=(Target(at_most, GRADIENT), *of_peers),
                eager=(_curvature_peers.CURVLINOPS,),
            )
            for kind, ours, arguments, at_most in kinds
        ]

    return [
        *case("Hessian", hessian, {"jax.jvp of jax.grad": by_jax, **_curvature_peers.hessian_products(model, torch_model, fresh)}, *gradients[:2]),
        *case("Gauss-Newton", ggn, {"jax.jvp and jax.vjp": by_hand, **_curvature_peers.ggn_products(model, torch_model, fresh)}, *gradients[2:]),
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
