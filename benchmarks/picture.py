"""The picture of the README: `python -m benchmarks.picture notebooks/jaxgrad.png`.

Left, the error of the gradient at the label as the label goes from far behind the other classes to far ahead. In the middle,
the eigenvalues of the Hessian of a classifier of the digits. Right, what loss and gradients of a head take beside their
arguments and results, as compiled and not run.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import jaxgrad as jg
from jaxgrad import plots, verify
from jaxgrad.plots._drawing import legend, line_style
from jaxgrad.verify._curvature_report import embedded_problem

ROWS, CLASSES = 240, 10
EXAMPLES, FEATURES, VOCABULARIES = 2048, 256, 2 ** np.arange(10, 18)

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def exact(ax: Axes) -> None:
    """Errors of ∂L/∂z at the label in float32, along its lead."""
    random = np.random.default_rng(0)
    others, lead = random.standard_normal((ROWS, CLASSES - 1)), np.linspace(-120, 60, ROWS)
    z = np.concatenate([others.max(-1, keepdims=True) + lead[:, None], others], axis=-1).astype(np.float32)
    wide = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    gradient = -wide[:, 1:].sum(-1) / wide.sum(-1)  # p − 1 = −Σ of the other p, which has no cancellation
    losses: dict[str, Loss] = {
        "jaxgrad": jg.cross_entropy,
        "−log(jax.nn.softmax)": lambda z, y: -jnp.log(jnp.take_along_axis(jax.nn.softmax(z), y[:, None], -1)),
        "optax": optax.softmax_cross_entropy_with_integer_labels,
    }
    labels = jnp.zeros(ROWS, jnp.int32)
    slope = lambda loss: jax.grad(lambda z: loss(z, labels).sum())(jnp.asarray(z))[:, 0]
    plots.ulp_errors(lead, {name: verify.ulp_errors(slope(loss), gradient) for name, loss in losses.items()}, bound=4, ax=ax)
    ax.set(title="Exact: p − y in float32", xlabel="lead of the label over the other classes (nats)")


def curvature(ax: Axes) -> None:
    """The spectrum of the Hessian of the fitted classifier of the digits."""
    problem = embedded_problem(0, lambda steps: None)
    operator = jax.jit(lambda p: jg.hessian(lambda q: problem.loss_fn(problem.model_fn(q)), p))(problem.params)
    keys = jax.random.split(jax.random.key(0))
    density = jg.spectral_density(operator, keys[0], num_matvecs=60)
    plots.spectral_density(density, eigenpairs=jg.extreme_eigenpairs(operator, keys[1], num_largest=9, num_smallest=1), ax=ax)
    ax.set(title=f"Curvature: H over {operator.num_params} parameters")


def at_scale(ax: Axes) -> None:
    """Temporary memory of the loss of a head and its gradients, with logits and without."""
    with_logits = lambda e, w, y: optax.softmax_cross_entropy_with_integer_labels(e @ w.T, y).mean()
    without = lambda e, w, y: jg.linear_cross_entropy(e, w, y).mean()
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    ids = jax.ShapeDtypeStruct((EXAMPLES,), jnp.int32)

    def mebibytes(loss: Callable[..., jax.Array], num_classes: int) -> float:
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(shape(EXAMPLES, FEATURES), shape(num_classes, FEATURES), ids).compile()
        analysis: Any = compiled.memory_analysis()
        return float(analysis.temp_size_in_bytes) / 2**20

    for number, (name, loss) in enumerate({"linear_cross_entropy": without, "optax of the logits": with_logits}.items()):
        ax.plot(VOCABULARIES, [mebibytes(loss, int(c)) for c in VOCABULARIES], label=name, **line_style(number))
    ax.set(title=f"At scale: a head over {EXAMPLES} examples", xlabel="classes", ylabel="temporary memory (MiB)", yscale="log")
    ax.set_xscale("log", base=2)
    legend(ax)


def main(path: str) -> None:
    """Draw all three into a PNG file."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for draw, ax in zip((exact, curvature, at_scale), figure.subplots(1, 3), strict=True):
        draw(ax)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size


if __name__ == "__main__":
    main(sys.argv[1])
