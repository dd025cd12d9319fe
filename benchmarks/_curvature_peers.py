"""The products of `curvature` by curvlinops, laplax and somax, of the mean loss over all N targets; those that are installed.

curvlinops runs eagerly, on the same models in torch. laplax and somax build their operator within the product: they keep
none from one compiled call to the next.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import _peers
from benchmarks._harness import Function

CURVLINOPS = "curvlinops"

Model = Callable[[Any, Any], Any]


def hessian_products(model: Model, torch_model: Model, arguments: Callable[[], tuple[Any, ...]]) -> Mapping[str, Function]:
    """H v of (params, x, y, v, ...) for each peer."""
    laplax = _peers.load("laplax.curv.hessian")
    products = _by_curvlinops("HessianLinearOperator", torch_model, arguments)
    return {**products, "laplax": _by_laplax(laplax.create_hessian_mv, model)} if laplax else products


def ggn_products(model: Model, torch_model: Model, arguments: Callable[[], tuple[Any, ...]]) -> Mapping[str, Function]:
    """G v of (params, x, y, v, ...) for each peer."""
    laplax, somax = _peers.load("laplax.curv.ggn"), _peers.load("somax.curvature.ggn_ce")
    products = _by_curvlinops("GGNLinearOperator", torch_model, arguments)
    if laplax:
        products["laplax"] = _by_laplax(laplax.create_ggn_mv, model)
    if somax:
        products["somax"] = _by_somax(somax.GGNCE, model)
    return products


def _by_laplax(create: Callable[..., Function], model: Model) -> Function:
    loss = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z, y).sum()

    def product(params: Any, x: jax.Array, y: jax.Array, v: Any, *_: Any) -> Any:
        one = lambda input, params: model(params, input)
        return create(one, params, {"input": x, "target": y}, loss, num_curv_samples=y.size, num_total_samples=1)(v)

    return product


def _by_somax(create: Callable[..., Any], model: Model) -> Function:
    operator = create(predict_fn=lambda params, x: (z := model(params, x)).reshape(-1, z.shape[-1]))

    def product(params: Any, x: jax.Array, y: jax.Array, v: Any, *_: Any) -> Any:
        state, _gradient = operator.init(params, {"x": x, "y": y.ravel()})
        return operator.matvec(params, state, v)

    return product


def _by_curvlinops(name: str, torch_model: Model, arguments: Callable[[], tuple[Any, ...]]) -> dict[str, Function]:
    """The product over tensors that are made once, before the first call is timed."""
    torch, curvlinops = _peers.load("torch"), _peers.load("curvlinops")
    if torch is None or curvlinops is None:
        return {}

    @functools.cache
    def operator_and_vector() -> tuple[Any, Any]:
        tensors = [[torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(tree)] for tree in arguments()[:4]]
        leaves, (x,), (y,), v = tensors
        network = type("Network", (torch.nn.Module,), {"forward": lambda self, x: torch_model(list(self.leaves), x)})()
        network.leaves = torch.nn.ParameterList([torch.nn.Parameter(leaf) for leaf in leaves])
        data = [(x, y.long().flatten())]
        return getattr(curvlinops, name)(network, torch.nn.CrossEntropyLoss(), list(network.parameters()), data, check_deterministic=False), v

    def product(*_: Any) -> Any:
        operator, v = operator_and_vector()
        return operator @ v

    return {CURVLINOPS: product}


def torch_mlp(params: Any, x: Any) -> Any:
    """`curvature`'s MLP on tensors, the leaves in order."""
    for w in params[:-1]:
        x = (x @ w).relu()
    return x @ params[-1]


def torch_transformer(params: Any, tokens: Any) -> Any:
    """`curvature`'s transformer on tensors, the leaves in order; the logits of all tokens, (B T, C)."""
    torch = _peers.load("torch")
    assert torch is not None
    norm = lambda e: (e - e.mean(-1, keepdim=True)) * (e.var(-1, keepdim=True, correction=0) + 1e-6).rsqrt()
    heads = lambda e: e.unflatten(-1, (4, -1)).transpose(1, 2)
    future = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    embedding, *layers = params
    e = embedding[tokens]
    for down, out, qkv, up in zip(*(layers[i::4] for i in range(4)), strict=True):
        q, k, v = map(heads, (norm(e) @ qkv).chunk(3, -1))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
        e = e + (weights @ v).transpose(1, 2).flatten(2) @ out
        e = e + torch.nn.functional.gelu(norm(e) @ up, approximate="tanh") @ down
    return (norm(e) @ embedding.T).flatten(0, 1)
