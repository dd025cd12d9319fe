"""Time of cross-entropy and its derivatives in the logits, with class ids and with distributions as targets.

Value and gradient together are `jax.vjp` with a cotangent of ones, which is an argument; the Hessian-vector product
is `jax.jvp` of `jax.grad` of the sum. Limits: one pass that reads the logits, and writes the result if it has classes.

For value and gradient with class ids XLA on a CPU reads 5 arrays (N, C) and writes 2, for optax 5 and 3; what ours costs
more is the exponential, which takes the low part of z − max z too. Distributions add the targets without that of the
heaviest class, which a sum has written first. A Hessian-vector product is a product with the softmax Jacobian: see there.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import DTYPE, Function, Target, TimingCase
from benchmarks._peers import Loss

SHAPES = ((4096, 10), (256, 1000), (32, 32768))
QUICK_SHAPES = {"class ids": SHAPES[:2], "distributions": SHAPES[1:2]}


def cases(quick: bool) -> Sequence[TimingCase]:
    """Value, value and gradient, and Hessian-vector product, for both kinds of targets."""
    return [
        case
        for targets, peers in (("class ids", _peers.CROSS_ENTROPY_IDS), ("distributions", _peers.CROSS_ENTROPY_DISTRIBUTIONS))
        for shape in (QUICK_SHAPES[targets] if quick else SHAPES)
        for case in _cases(targets, peers, shape)
    ]


def _cases(targets: str, peers: Mapping[str, Loss], shape: tuple[int, int]) -> Sequence[TimingCase]:
    def arguments() -> tuple[jax.Array, ...]:
        """Logits, targets, cotangent of the loss, tangent of the logits."""
        keys = jax.random.split(jax.random.key(0), 3)
        z = 3 * jax.random.normal(keys[0], shape, DTYPE)
        ids = jax.random.randint(keys[1], shape[:1], 0, shape[1])
        y = ids if peers is _peers.CROSS_ENTROPY_IDS else jax.nn.softmax(jax.random.normal(keys[1], shape, DTYPE))
        return z, y, jnp.ones(shape[:1], DTYPE), jax.random.normal(keys[2], shape, DTYPE)

    def case(
        quantity: str, derive: Callable[[Loss], Function], closed_forms: Mapping[str, Function], limit: Mapping[str, Function], *promised: Target
    ) -> TimingCase:
        return TimingCase(
            benchmark="cross_entropy",
            title=f"{quantity}, {targets}, {shape}",
            arguments=arguments,
            ours={"jaxgrad": derive(jg.cross_entropy), **closed_forms},
            peers={name: derive(loss) for name, loss in peers.items()},
            limit=limit,
            targets=promised,
        )

    return [
        case("value", _value, {}, {"z.sum(-1)": lambda z, y, w, v: z.sum(-1)}),
        case(
            "value and gradient",
            _value_and_gradient,
            {"jaxgrad, cross_entropy_grad": lambda z, y, w, v: (jg.cross_entropy(z, y), jg.cross_entropy_grad(z, y))},
            {"z + 1": lambda z, y, w, v: z + 1},
            Target(1.5, "optax"),
        ),
        case(
            "Hessian-vector product",
            _hessian_vector_product,
            {"jaxgrad, cross_entropy_hessian": lambda z, y, w, v: jg.cross_entropy_hessian(z, y).matvec(v)},
            {"z + v": lambda z, y, w, v: z + v},
            Target(2.0, "optax"),
        ),
    ]


def _value(loss: Loss) -> Function:
    return lambda z, y, w, v: loss(z, y)


def _value_and_gradient(loss: Loss) -> Function:
    def function(z: jax.Array, y: jax.Array, w: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, pullback = jax.vjp(lambda z: loss(z, y), z)
        return value, pullback(w)[0]

    return function


def _hessian_vector_product(loss: Loss) -> Function:
    return lambda z, y, w, v: jax.jvp(lambda z: jax.grad(_peers.summed(loss))(z, y), (z,), (v,))[1]
