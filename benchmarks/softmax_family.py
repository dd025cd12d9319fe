"""Time of softmax, its logarithms and its Jacobian, dense and as products from the logits."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import DTYPE, Function, Target, TimingCase

SHAPES = ((4096, 10), (256, 1000), (32, 32768))
DENSE_SHAPES = ((256, 10), (32, 1000))
MATVEC_SHAPES = ((256, 10), (256, 1000), (32, 32768), (256, 32768))


def cases(quick: bool) -> Sequence[TimingCase]:
    """Values, dense Jacobians, and Jacobian-vector products."""
    return [
        *(case for shape in (SHAPES[1:2] if quick else SHAPES) for case in _values(shape)),
        *(_dense(shape) for shape in (DENSE_SHAPES[:1] if quick else DENSE_SHAPES)),
        *(_matvec(shape) for shape in (MATVEC_SHAPES[:3] if quick else MATVEC_SHAPES)),
    ]


def _case(title: str, shape: tuple[int, int], ours: Function, peers: Mapping[str, Function], limit: Mapping[str, Function], *targets: Target) -> TimingCase:
    def arguments() -> tuple[jax.Array, jax.Array]:
        z_key, v_key = jax.random.split(jax.random.key(0))
        return 3 * jax.random.normal(z_key, shape, DTYPE), jax.random.normal(v_key, shape, DTYPE)

    return TimingCase(
        benchmark="softmax_family",
        title=f"{title}, {shape}",
        arguments=arguments,
        ours={"jaxgrad": ours},
        peers=peers,
        limit=limit,
        targets=targets,
    )


def _values(shape: tuple[int, int]) -> Sequence[TimingCase]:
    elementwise: Mapping[str, Function] = {"z + 1": lambda z, v: z + 1}
    return [
        _case("softmax", shape, lambda z, v: jg.softmax(z), {"jax.nn.softmax": lambda z, v: jax.nn.softmax(z)}, elementwise),
        _case("log_softmax", shape, lambda z, v: jg.log_softmax(z), {"jax.nn.log_softmax": lambda z, v: jax.nn.log_softmax(z)}, elementwise),
        _case(
            "logsumexp",
            shape,
            lambda z, v: jg.logsumexp(z),
            {"jax.nn.logsumexp": lambda z, v: jax.nn.logsumexp(z, axis=-1)},
            {"z.sum(-1)": lambda z, v: z.sum(-1)},
        ),
    ]


def _dense(shape: tuple[int, int]) -> TimingCase:
    return _case(
        "dense softmax Jacobian",
        shape,
        lambda z, v: jg.softmax_jacobian(z).to_dense(),
        {
            "jacfwd": lambda z, v: jax.vmap(jax.jacfwd(jax.nn.softmax))(z),
            "jacrev": lambda z, v: jax.vmap(jax.jacrev(jax.nn.softmax))(z),
            "p (1[i=j] − p)": lambda z, v: _peers.outer_product_jacobian(z),
        },
        {"write (B, C, C)": lambda z, v: jnp.broadcast_to(z[:, :, None], (*z.shape, z.shape[-1]))},
        Target(0.45, "jacfwd"),
    )


def _matvec(shape: tuple[int, int]) -> TimingCase:
    return _case(
        "softmax Jacobian times vector, from logits",
        shape,
        lambda z, v: jg.softmax_jacobian(z).matvec(v),
        {
            "jvp": lambda z, v: jax.jvp(jax.nn.softmax, (z,), (v,))[1],
            "vjp": lambda z, v: jax.vjp(jax.nn.softmax, z)[1](v)[0],
        },
        {"z * v": lambda z, v: z * v},
    )
