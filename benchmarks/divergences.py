"""Time of Kullback–Leibler and Jensen–Shannon divergence between logits, and of their gradients in both.

Value and both gradients together are `jax.value_and_grad` of the sum over the rows. Limits: one pass that reads both
logits, and writes as much as the result.
"""

from collections.abc import Mapping, Sequence

import jax

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import DTYPE, Function, Target, TimingCase
from benchmarks._peers import Loss

SHAPES = ((4096, 10), (256, 1000), (32, 32768))


def cases(quick: bool) -> Sequence[TimingCase]:
    """Value, and value and both gradients, of both divergences."""
    return [case for shape in (SHAPES[1:2] if quick else SHAPES) for case in _cases(shape)]


def _cases(shape: tuple[int, int]) -> Sequence[TimingCase]:
    def arguments() -> tuple[jax.Array, jax.Array]:
        """The logits of p and of q."""
        p_key, q_key = jax.random.split(jax.random.key(0))
        return 3 * jax.random.normal(p_key, shape, DTYPE), 3 * jax.random.normal(q_key, shape, DTYPE)

    def case(title: str, ours: Mapping[str, Function], peers: Mapping[str, Function], limit: Mapping[str, Function], *targets: Target) -> TimingCase:
        return TimingCase(benchmark="divergences", title=f"{title}, {shape}", arguments=arguments, ours=ours, peers=peers, limit=limit, targets=targets)

    kl_peers, js_peers = _peers.kl_divergences(), {"jax.nn.log_softmax": _peers.log_softmax_js}
    derived = lambda losses: {name: _value_and_gradients(loss) for name, loss in losses.items()}
    both: Mapping[str, Function] = {"a + b, a - b": lambda a, b: (a + b, a - b)}
    return [
        case("KL, value", {"jaxgrad": jg.kl_divergence}, kl_peers, {"(a + b).sum(-1)": lambda a, b: (a + b).sum(-1)}),
        case(
            "KL, value and both gradients",
            {
                "jaxgrad": _value_and_gradients(jg.kl_divergence),
                "jaxgrad, kl_divergence_grad": lambda a, b: (jg.kl_divergence(a, b).sum(), jg.kl_divergence_grad(a, b)),
            },
            derived(kl_peers),
            both,
            Target(2.5, "optax"),
        ),
        case(
            "JS, value and both gradients",
            {
                "jaxgrad": _value_and_gradients(jg.js_divergence),
                "jaxgrad, js_divergence_grad": lambda a, b: (jg.js_divergence(a, b).sum(), jg.js_divergence_grad(a, b)),
            },
            derived(js_peers),
            both,
        ),
    ]


def _value_and_gradients(loss: Loss) -> Function:
    return jax.value_and_grad(_peers.summed(loss), argnums=(0, 1))
