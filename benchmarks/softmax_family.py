"""Time of softmax and its logarithms."""

from collections.abc import Mapping, Sequence

import jax

import jaxgrad as jg
from benchmarks._harness import DTYPE, Function, TimingCase

SHAPES = ((4096, 10), (256, 1000), (32, 32768))


def cases(quick: bool) -> Sequence[TimingCase]:
    """Values at three sizes."""
    return [case for shape in (SHAPES[1:2] if quick else SHAPES) for case in _values(shape)]


def _case(title: str, shape: tuple[int, int], ours: Function, peers: Mapping[str, Function], limit: Mapping[str, Function]) -> TimingCase:
    return TimingCase(
        benchmark="softmax_family",
        title=f"{title}, {shape}",
        arguments=lambda: (3 * jax.random.normal(jax.random.key(0), shape, DTYPE),),
        ours={"jaxgrad": ours},
        peers=peers,
        limit=limit,
    )


def _values(shape: tuple[int, int]) -> Sequence[TimingCase]:
    elementwise: Mapping[str, Function] = {"z + 1": lambda z: z + 1}
    return [
        _case("softmax", shape, lambda z: jg.softmax(z), {"jax.nn.softmax": lambda z: jax.nn.softmax(z)}, elementwise),
        _case("log_softmax", shape, lambda z: jg.log_softmax(z), {"jax.nn.log_softmax": lambda z: jax.nn.log_softmax(z)}, elementwise),
        _case(
            "logsumexp",
            shape,
            lambda z: jg.logsumexp(z),
            {"jax.nn.logsumexp": lambda z: jax.nn.logsumexp(z, axis=-1)},
            {"z.sum(-1)": lambda z: z.sum(-1)},
        ),
    ]
