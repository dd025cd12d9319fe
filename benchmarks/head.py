"""Time of cross-entropy through a large head, its gradients and second-order products, beside dense logits.

The loss is the mean over N examples of features (N, d) and a head (C, d); `temp` shows who stores the N × C logits.
Limits: the matrix products that a gradient cannot do without; beside a Gauss–Newton product stands the dense Hessian's, which
is another quantity. torch is compared as it is called, eagerly, and in the first order, to which its fused losses are limited.

Without stored logits they are made twice: value and gradient take 4 matrix products of 2 N C d flops where 3 are the least, a
Hessian product over features and head 10 where `jvp` of `grad` with logits takes 7, a Gauss–Newton product 8, a product in
the head alone 5 where logits take 3. What is saved is the writing and reading of N C numbers, the more the smaller d is.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import DTYPE, Function, Target, TimingCase

SHAPES = ((1024, 512, 32768), (1024, 256, 32768), (2048, 256, 131072))
QUICK = ((256, 64, 4096),)


def cases(quick: bool) -> Sequence[TimingCase]:
    """Value and gradient, jvp, and second-order products over features and head and over the head alone."""
    return [case for shape in (QUICK if quick else SHAPES) for case in _cases(*shape)]


def _cases(num_rows: int, width: int, num_classes: int) -> Sequence[TimingCase]:
    def arguments() -> tuple[jax.Array, ...]:
        """Features, head, class ids, and a direction in features and head, or another model."""
        keys = jax.random.split(jax.random.key(0), 5)
        normal = lambda key, size: jax.random.normal(key, (size, width), DTYPE)
        ids = jax.random.randint(keys[2], (num_rows,), 0, num_classes)
        return normal(keys[0], num_rows), normal(keys[1], num_classes) / 10, ids, normal(keys[3], num_rows), normal(keys[4], num_classes) / 10

    def case(title: str, ours: Mapping[str, Function], peers: Mapping[str, Function], *targets: Target, **options: Any) -> TimingCase:
        title = f"{title}, N = {num_rows}, d = {width}, C = {num_classes}"
        return TimingCase(**{"benchmark": "head", "title": title, "arguments": arguments, "ours": ours, "peers": peers, "targets": targets, **options})

    ours, dense = {"jaxgrad": jg.linear_cross_entropy}, {"optax on logits": _dense}
    products = lambda loss: lambda e, w, y, de, dw: jax.jvp(lambda e, w: jax.grad(_mean(loss), (0, 1))(e, w, y), (e, w), (de, dw))[1]
    of_head = lambda loss: lambda e, w, y, de, dw: jax.jvp(lambda w: jax.grad(_mean(loss), 1)(e, w, y), (w,), (dw,))[1]
    each = lambda derive, losses: {name: derive(loss) for name, loss in losses.items()}
    pair = lambda vector: (vector.features, vector.head)
    second_order = lambda at_most, of: Target(at_most if width <= 256 else 1.15, of)  # a wide head saves less by not storing
    in_cpu_time = [Target(0.8, "optax on logits", of_cpu=True)] if num_classes > 100_000 else []
    hessian = "jvp of grad, optax on logits"
    found = [
        case(
            "value and gradient",
            each(_value_and_gradient, ours),
            each(_value_and_gradient, {**dense, **_peers.linear_cross_entropies()}),
            Target(1.0, "optax on logits"),
            Target(1.15, "three products"),
            *in_cpu_time,
            limit={"three products": lambda e, w, *_: ((z := e @ w.T) @ w, (e.T @ z).T)},
        ),
        case("jvp", each(_jvp, ours), each(_jvp, dense)),
        case(
            "Hessian-vector product, features and head",
            {
                "jaxgrad": lambda e, w, y, de, dw: pair(jg.linear_cross_entropy_hvp(e, w, y, jg.HeadVector(de, dw))),
                "jax.jvp of jax.grad of jaxgrad": products(jg.linear_cross_entropy),
            },
            each(products, dense),
            second_order(1.0, "optax on logits"),
        ),
        case(
            "Hessian-vector product, head",
            {
                "jaxgrad": lambda e, w, y, de, dw: jg.linear_cross_entropy_hvp(e, w, y, jg.HeadVector(head=dw)).head,
                "jax.jvp of jax.grad of jaxgrad": of_head(jg.linear_cross_entropy),
            },
            each(of_head, dense),
            second_order(0.9, "optax on logits"),
        ),
        case(
            "Gauss-Newton product, features and head",
            {"jaxgrad": lambda e, w, y, de, dw: pair(jg.linear_cross_entropy_ggn_product(e, w, y, jg.HeadVector(de, dw)))},
            {"jvp, Hessian of the logits, vjp": _dense_ggn},
            second_order(0.85, hessian),
            limit={hessian: products(_dense)},
        ),
    ]
    distillation = lambda kl: lambda e, w, _, of_teacher, teacher: jax.value_and_grad(lambda e, w: kl(of_teacher, teacher, e, w).mean(), (0, 1))(e, w)
    title = "KL of a student from a teacher, value and gradient"
    found.append(case(title, each(distillation, {"jaxgrad": jg.linear_kl_divergence}), each(distillation, {"optax on logits": _dense_kl})))
    torch = _peers.load("torch")
    if torch:
        step = jax.jit(_value_and_gradient(jg.linear_cross_entropy))
        with_tensors = lambda: (given := arguments()[:3], tuple(torch.from_dlpack(x).clone() for x in given))
        eagerly = lambda loss: lambda _, tensors: _torch_value_and_gradient(loss, *tensors)
        names = {"jaxgrad": lambda given, _: step(*given)}, each(eagerly, _torch_losses(torch))
        found.append(case("value and gradient, eager peers", *names, arguments=with_tensors, compiled=False))
    return found


def _dense(e: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
    """The loss from dense logits, (N,)."""
    return optax.softmax_cross_entropy_with_integer_labels(e @ w.T, y)


def _dense_kl(e_p: jax.Array, w_p: jax.Array, e_q: jax.Array, w_q: jax.Array) -> jax.Array:
    """KL between dense logits, (N,)."""
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(e_q @ w_q.T), jax.nn.log_softmax(e_p @ w_p.T))


def _mean(loss: Function) -> Function:
    return lambda e, w, y: loss(e, w, y).mean()


def _value_and_gradient(loss: Function) -> Function:
    return lambda e, w, y, *_: jax.value_and_grad(_mean(loss), (0, 1))(e, w, y)


def _jvp(loss: Function) -> Function:
    return lambda e, w, y, de, dw: jax.jvp(lambda e, w: _mean(loss)(e, w, y), (e, w), (de, dw))


def _dense_ggn(e: jax.Array, w: jax.Array, y: jax.Array, de: jax.Array, dw: jax.Array) -> Any:
    """Jᵀ H J of the direction through dense logits."""
    z, pull_back = jax.vjp(lambda e, w: e @ w.T, e, w)
    p, u = jax.nn.softmax(z), de @ w.T + e @ dw.T
    return pull_back(p * (u - (p * u).sum(-1, keepdims=True)) / len(y))


def _torch_losses(torch: Any) -> dict[str, Function]:
    """The mean loss by torch, from the logits, and, where it has that, from some of the examples at a time."""
    functional = torch.nn.functional
    losses: dict[str, Function] = {"torch F.cross_entropy(F.linear)": lambda e, w, y: functional.cross_entropy(functional.linear(e, w), y)}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        losses["torch F.linear_cross_entropy"] = functools.partial(functional.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions())
    return losses


def _torch_value_and_gradient(loss: Function, e: Any, w: Any, y: Any) -> Any:
    e, w = e.detach().requires_grad_(), w.detach().requires_grad_()
    value = loss(e, w, y.long())
    value.backward()  # F.linear_cross_entropy does not work under torch.func
    return jnp.asarray(value.item()), (e.grad.numpy(), w.grad.numpy())
