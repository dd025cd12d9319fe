"""Accuracy of the divergences over seeded suites of hard pairs, in units in the last place, against mpmath.

Pairs that differ by 1e-7 to 1e4, offset, confident, masked, with one class moved; vectors that are no distributions;
Gaussians that nearly agree. The arbiter is the textbook formula with so many digits that no cancellation matters.
Gradients and Hessians are measured at the size of the terms that a divergence of the exact rows must add: that of
∂KL/∂a_j = p_j Σ_i p_i (v_j − v_i), v = a − b, is p_j Σ_i p_i |v_j − v_i|.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from exactness import exact_of, exactly, exp, log, ulp

import jaxgrad as jg

DIGITS = {"float32": 80, "bfloat16": 80, "float16": 80, "float64": 345}
NUM_CLASSES = {"float32": [2, 10, 100, 1000], "bfloat16": [10], "float16": [10]}
if jax.config.jax_enable_x64:
    NUM_CLASSES = {"float64": [2, 10]}  # float32 is the same program as without x64
WIDE = [dtype for dtype in NUM_CLASSES if dtype in ("float32", "float64")]
CASES = [(dtype, num_classes) for dtype in NUM_CLASSES for num_classes in NUM_CLASSES[dtype]]
IN_BFLOAT16 = [("float32", 10), ("float16", 10)]  # what takes long to compile with 10 classes is looked at in bfloat16, computed in float32 and rounded
DRAWS = {2: 6, 10: 2, 100: 1, 1000: 1}  # of every kind of pair
THIN = {2: 1, 10: 1, 100: 20, 1000: 9}  # of how many rows one has its matrices looked at, or at 1000 classes is there at all


class Rows(NamedTuple):
    """A suite in one dtype, N rows."""

    names: list  # N
    inputs: tuple  # of arrays (N, C)


def hard_pairs(rng, num_classes):
    """(name, logits of p, logits of q) of every kind."""
    normal = lambda: rng.normal(size=num_classes)
    anything = lambda: int(rng.integers(num_classes))
    for size in (0, 1e-7, 1e-5, 1e-3, 0.1, 1, 10, 100, 1e4):
        z = normal()
        yield f"{size:g} apart", z, z + size * normal()
    for scale in (1, 10, 100):
        yield f"independent × {scale}", scale * normal(), scale * normal()
    for offset in (1e4, -1e4):
        z = normal()
        yield f"independent {offset:+g}", z + offset, normal()
        yield f"0.1 apart {offset:+g}", z + offset, z + 0.1 * normal()
        yield f"0.01 apart, both {offset:+g}", z + offset, z + offset + 0.01 * normal()
    confident = lambda k, gap: normal() + np.eye(num_classes)[k] * gap
    for gap in (5, 17, 40, 90):
        i, j = rng.permutation(num_classes)[:2]
        yield f"p confident by {gap}", confident(i, gap), normal()
        yield f"q confident by {gap}", normal(), confident(i, gap)
        yield f"both confident by {gap} of one class", confident(i, gap), confident(i, gap)
        yield f"both confident by {gap} of two classes", confident(i, gap), confident(j, gap)
        z = confident(i, gap)
        yield f"both confident by {gap} and 1e-3 apart", z, z + 1e-3 * normal()
    for kept in sorted({1, num_classes // 2, num_classes - 1}):
        out = rng.permutation(num_classes)[kept:]
        mask = lambda z, out=out: np.where(np.isin(np.arange(num_classes), out), -np.inf, z)
        z = normal()
        yield f"{kept} of {num_classes} left in p", mask(2 * z), 2 * normal()
        yield f"{kept} of {num_classes} left in both", mask(2 * z), mask(2 * normal())
        yield f"{kept} of {num_classes} left in both, 1e-3 apart", mask(z), mask(z + 1e-3 * normal())
    for step in (1e-6, -1e-2, 1, 20, -20):
        z = 2 * normal()
        yield f"one class moved by {step:g}", z, z + np.eye(num_classes)[anything()] * step
        yield f"the top moved by {step:g}", z, z + np.eye(num_classes)[z.argmax()] * step


def rounded(rows, dtype):
    """`rows` of (name, *inputs) in this dtype, without those that it makes infinite or 0."""
    cast = lambda x: jnp.asarray(x).astype(dtype)
    fits = lambda x: all((f(np.asarray(cast(x), np.float64)) == f(x)).all() for f in (np.isinf, np.sign))
    names, *inputs = zip(*[row for row in rows if all(map(fits, row[1:]))], strict=True)
    return Rows(list(names), tuple(cast(np.stack(x)) for x in inputs))


@cache
def pairs(dtype, num_classes):
    rng = np.random.default_rng([num_classes, len(dtype)])
    rows = [row for _ in range(DRAWS[num_classes]) for row in hard_pairs(rng, num_classes)]
    return rounded(rows[:: THIN[num_classes] if num_classes == 1000 else 1], dtype)


def thin_pairs(dtype, num_classes):
    """Those of which whole matrices are looked at."""
    names, inputs = pairs(dtype, num_classes)
    return Rows(names[:: THIN[num_classes]], tuple(x[:: THIN[num_classes]] for x in inputs))


@cache
def targets(dtype, num_classes):
    """Logits of a model, and a target that knows nothing of them and is not near by chance."""
    rng = np.random.default_rng([1, num_classes, len(dtype)])
    rows = []
    for scale in (0.5, 1, 3, 10, 30):
        for offset in (0, 0, 1e4, -911.7):
            z, y = scale * rng.normal(size=num_classes), 0.001 + rng.exponential(size=num_classes) ** rng.choice([1, 3])
            p, y = np.exp(z) / np.exp(z).sum(), y / y.sum()
            if min((y * np.log(y / p)).sum(), (p * np.log(p / y)).sum()) > 0.1:
                rows.append((f"model × {scale:g} {offset:+g}", z + offset, y))
    return rounded(rows, dtype)


@cache
def vectors(dtype, num_classes):
    """Non-negative vectors, that sum to 1 or not."""
    rng = np.random.default_rng([2, num_classes, len(dtype)])
    normal, positive = lambda: rng.normal(size=num_classes), lambda: rng.exponential(size=num_classes)
    of_sum_1 = lambda x: x / x.sum()
    rows = []
    for _ in range(2):
        for size in (0, 1e-7, 1e-5, 1e-3, 0.1, 1, 10):
            p, d = positive(), normal()
            rows.append((f"sum 1, {size:g} apart", of_sum_1(p), of_sum_1(p * np.exp(size * d))))
            rows.append((f"of any sum, {size:g} apart", p, p * np.exp(size * d)))
        p = positive()
        rows.append(("permuted", p, rng.permutation(p)))
        for scale in (1e-20, 1e-3, 3.7, 1e20):
            rows.append((f"scaled by {scale:g}", p * scale, positive() * scale))
            rows.append((f"q scaled by {scale:g}", p, p * scale))
        rows.append(("from 1e-15 to 1e15", np.exp(10 * normal().clip(-3.4, 3.4)), np.exp(10 * normal().clip(-3.4, 3.4))))
        kept = rng.permutation(num_classes) < max(1, num_classes // 2)
        rows.append(("zeros in p", p * kept, positive()))
        rows.append(("zeros in both", p * kept, positive() * kept))
        rows.append(("zeros in both, 1e-3 apart", p * kept, 1.001 * p * kept))
        rows.append(("one entry moved", p, p + 0.1 * np.eye(num_classes)[0]))
    return rounded(rows, dtype)


@cache
def gaussians(dtype, num_dimensions):
    """Means and logarithms of variances of two Gaussians, nearly the same and far apart."""
    rng = np.random.default_rng([3, len(dtype)])
    normal = lambda: rng.normal(size=num_dimensions)
    rows = []
    for size in (0, 1e-7, 1e-5, 1e-3, 0.1, 1, 10, 30):
        for level in (1, 10):
            m, v = level * normal(), level * normal()
            rows.append((f"{size:g} apart, × {level}", m, v, m + size * normal(), v + size * normal()))
            rows.append((f"variances {size:g} apart, × {level}", m, v, m, v + size * normal()))
            rows.append((f"means {size:g} apart, × {level}", m, v, m + size * normal(), v))
            rows.append((f"means 0 apart, prior of variance e^{-12 * size:g}", m, v, m, v * 0 - 12 * size))
    return rounded(rows, dtype)


def numbers(dtype, how_many):
    """Entropies and divergences, to be converted."""
    size = np.geomspace(1e-3, 6e4, how_many) if dtype == "float16" else np.geomspace(1e-30, 1e30, how_many)
    return rounded([(f"{x:g}", np.array([x])) for x in (*size, *-size, 0)], dtype)


# What is exact

ratio = np.frompyfunc(lambda x, y: x / y if y else 0 * x, 2, 1)  # 0 where nothing is compared with nothing
as_float = lambda x: x.astype(np.float64)


def mean(p, x):
    return (p * x).sum(-1, keepdims=True)


def probabilities(z):
    """p and log p, which is 0 where p is."""
    weights = exp(z)
    total = weights.sum(-1, keepdims=True)
    return weights / total, np.where(weights == 0, 0, z) - np.where(weights == 0, 0, log(total))


def surprise(p, q):
    """log(p/m) with m = (p + q)/2, and 0 where p is 0."""
    return np.where(p == 0, 0, log(np.where(p == 0, 1, ratio(2 * p, p + q))))


def spread(p, v):
    """Σ_i p_i |v_j − v_i|, (N, C)."""
    p, v = as_float(p), as_float(v)
    return np.stack([(p * np.abs(v[:, j, None] - v)).sum(-1) for j in range(v.shape[-1])], -1)


def outer(x, y):
    return x[:, :, None] * y[:, None, :]


def on_diagonal(x):
    return x[:, :, None] * np.eye(x.shape[-1], dtype=int)


def is_diagonal(x):
    return np.eye(x.shape[-1], dtype=bool)


def twisted(p, t):
    """J + diag(p t) - p (p t)ᵀ - (p t) pᵀ, for Σ p t = 0."""
    return on_diagonal(p * (1 + t)) - outer(p, p) - outer(p, p * t) - outer(p * t, p)


def size_of_twisted(p, t):
    """p_i p_j (1 + |t_i| + |t_j|), and p_i (1 - p_i + |t_i|) on the diagonal, each |t| taken as large as the terms of t - Σ p t."""
    mass, rest, size = as_float(p), as_float(1 - p), spread(p, t)
    return np.where(is_diagonal(p), on_diagonal(mass * (rest + size)), outer(mass, mass) * (1 + size[:, :, None] + size[:, None, :]))


def exact_kl(a, b, temperature=1, name=""):
    (p, log_p), (q, log_q) = probabilities(a / temperature), probabilities(b / temperature)
    t = np.where(p == 0, 0, log_p - log_q)
    divergence = mean(p, t)
    by_p = as_float(p) * spread(p, t)
    by_q = np.minimum(np.maximum(by_p, as_float(q) * spread(np.where(p == 0, 0, q), t)), as_float(np.maximum(p, q)))
    return {
        f"KL{name}": exact_of(divergence[:, 0]),
        f"∂KL/∂p{name}": exact_of(p * (t - divergence) / temperature, by_p / temperature),
        f"∂KL/∂q{name}": exact_of((q - p) / temperature, by_q / temperature),
    }


@cache
def exact_with_temperature(dtype, num_classes):
    with mpmath.workdps(DIGITS[dtype]):
        return exact_kl(*(exactly(np.asarray(z, np.float64)) for z in pairs(dtype, num_classes).inputs), 3, " at T = 3")


@cache
def exact_pairs(dtype, num_classes):
    """Values and gradients of all pairs, by the textbook."""
    with mpmath.workdps(DIGITS[dtype]):
        a, b = (exactly(np.asarray(z, np.float64)) for z in pairs(dtype, num_classes).inputs)
        results = exact_kl(a, b)
        (p, _), (q, _) = probabilities(a), probabilities(b)
        s, r = surprise(p, q), surprise(q, p)
        results["JS"] = exact_of((p * s + q * r).sum(-1) / 2)
        results["∂JS/∂p"] = exact_of(p * (s - mean(p, s)) / 2, as_float(p) * spread(p, s) / 2)
        results["∂JS/∂q"] = exact_of(q * (r - mean(q, r)) / 2, as_float(q) * spread(q, r) / 2)
        return results


@cache
def exact_matrices(dtype, num_classes):
    """The blocks of the Hessians, and the size of the terms in each entry."""
    with mpmath.workdps(DIGITS[dtype]):
        a, b = (exactly(np.asarray(z, np.float64)) for z in thin_pairs(dtype, num_classes).inputs)
        (p, log_p), (q, log_q) = probabilities(a), probabilities(b)
        t = np.where(p == 0, 0, log_p - log_q)
        results = {
            "∂²KL/∂p²": exact_of(twisted(p, t - mean(p, t)), size_of_twisted(p, t)),
            "∂²KL/∂p∂q": exact_of(outer(p, p) - on_diagonal(p)),
            "∂²KL/∂q²": exact_of(on_diagonal(q) - outer(q, q)),
        }
        c = ratio(p * q, p + q) / 2

        def block(w, p, q, w_size):
            """(I - p 1ᵀ) diag(w) (I - 1 qᵀ), and the size of its terms for weights of this size."""
            exactly_this = on_diagonal(w) - outer(w, q) - outer(p, w) + outer(p, q) * w.sum(-1)[:, None, None]
            p, p_rest, q, q_rest, w = (as_float(x) for x in (p, 1 - p, q, 1 - q, w_size))
            others = w.sum(-1)[:, None, None] - np.where(is_diagonal(w), w[:, :, None], w[:, :, None] + w[:, None, :])
            crossed = np.where(is_diagonal(w), on_diagonal(w * p_rest * q_rest), outer(w * p_rest, q) + outer(p, w * q_rest))
            return exact_of(exactly_this, crossed + outer(p, q) * np.maximum(others, 0))

        def of_one(p, q):
            s = surprise(p, q)
            return block(p * (s - mean(p, s)) / 2 + c, p, p, as_float(p) * spread(p, s) / 2 + as_float(c))

        results |= {"∂²JS/∂p²": of_one(p, q), "∂²JS/∂q²": of_one(q, p), "∂²JS/∂p∂q": block(-c, p, q, c)}
        overlap = as_float(c.sum(-1)[:, None, None])  # through JAX small entries only have its digits
        to_overlap = lambda e: e._replace(scale=np.maximum(e.scale, overlap))
        return results | {f"{name} to the overlap": to_overlap(results[name]) for name in ("∂²JS/∂p²", "∂²JS/∂p∂q")}


@cache
def exact_targets(dtype, num_classes):
    with mpmath.workdps(DIGITS[dtype]):
        z, y = (exactly(np.asarray(x, np.float64)) for x in targets(dtype, num_classes).inputs)
        p, log_p = probabilities(z)
        mass = y.sum(-1, keepdims=True)
        t = log_p - log(y)
        reverse = mean(p, t)
        return {
            "KL(y‖p)": exact_of(-mean(y, t)[:, 0]),
            "∂KL(y‖p)/∂z": exact_of(p * mass - y, as_float(np.maximum(p * mass, y))),
            "∂KL(y‖p)/∂y": exact_of(1 - t, np.maximum(1, as_float(abs(t)))),
            "∂²KL(y‖p)/∂z²": exact_of(mass[..., None] * (on_diagonal(p) - outer(p, p))),
            "KL(p‖y)": exact_of(reverse[:, 0]),
            "∂KL(p‖y)/∂z": exact_of(p * (t - reverse), as_float(p) * spread(p, t)),
            "∂KL(p‖y)/∂y": exact_of(-p / y),
            "∂²KL(p‖y)/∂z²": exact_of(twisted(p, t - reverse), size_of_twisted(p, t)),
        }


@cache
def exact_vectors(dtype, num_classes):
    with mpmath.workdps(DIGITS[dtype]):
        p, q = (exactly(np.asarray(x, np.float64)) for x in vectors(dtype, num_classes).inputs)
        t = np.where(p == 0, 0, log(np.where(p == 0, 1, ratio(p, q))))
        kl, difference = (p * t).sum(-1), (p - q).sum(-1)
        inside = as_float(p) > 0
        return {
            "KL": exact_of(kl, np.abs(as_float(difference))),
            "generalized KL": exact_of(kl - difference),
            "log(p/q) + 1": exact_of(np.where(inside, t + 1, 0), np.where(inside, np.maximum(1, np.abs(as_float(t))), 0)),
            "log(p/q)": exact_of(t),
            "-p/q": exact_of(-ratio(p, q)),
            "1 - p/q": exact_of(ratio(q - p, q)),
            "1/p": exact_of(ratio(np.where(inside, exactly(1), 0), p)),
            "-1/q": exact_of(np.where(inside, -ratio(np.where(inside, exactly(1), 0), q), 0)),
            "p/q²": exact_of(ratio(ratio(p, q), q)),
        }


@cache
def exact_gaussians(dtype, num_dimensions):
    with mpmath.workdps(DIGITS[dtype]):
        m1, l1, m2, l2 = (exactly(np.asarray(x, np.float64)) for x in gaussians(dtype, num_dimensions).inputs)
        rise, precision = exp(l1 - l2) - 1, exp(-l2)
        pull = (m1 - m2) * precision
        cost, none = (m1 - m2) * pull, 0 * m1
        hessian = [
            [precision, none, -precision, -pull],
            [none, (rise + 1) / 2, none, -(rise + 1) / 2],
            [-precision, none, precision, pull],
            [-pull, -(rise + 1) / 2, pull, (rise + 1 + cost) / 2],
        ]
        return {
            "KL": exact_of((rise - (l1 - l2) + cost) / 2),
            "pull": exact_of(pull),
            "-pull": exact_of(-pull),
            "rise": exact_of(rise / 2),
            "-rise - cost": exact_of(-(rise + cost) / 2, as_float(np.maximum(abs(rise), cost)) / 2),
            "Hessian": exact_of(np.moveaxis(np.array(hessian), (0, 1), (-2, -1))),
        }


def exact_bits(dtype, how_many):
    with mpmath.workdps(DIGITS[dtype]):
        return {"bits": exact_of(exactly(np.asarray(numbers(dtype, how_many).inputs[0], np.float64)) / mpmath.log(2))}


# What is measured


def of(n, f):
    """The gradient in argument n through JAX."""
    return lambda *inputs: jax.grad(f, n)(*inputs)


def closed(n, gradient):
    return lambda *inputs: gradient(*inputs, argnums=n)


# name: (the exact quantity, bound in ULP of float32, function of one example's two arguments)
OF_PAIRS = {
    "kl_divergence": ("KL", 4, jg.kl_divergence),
    "js_divergence": ("JS", 8, jg.js_divergence),
    "kl_divergence_grad in p": ("∂KL/∂p", 8, closed(0, jg.kl_divergence_grad)),
    "kl_divergence_grad in q": ("∂KL/∂q", 8, closed(1, jg.kl_divergence_grad)),
    "js_divergence_grad in p": ("∂JS/∂p", 8, closed(0, jg.js_divergence_grad)),
    "js_divergence_grad in q": ("∂JS/∂q", 8, closed(1, jg.js_divergence_grad)),
    "grad of kl_divergence in p": ("∂KL/∂p", 8, of(0, jg.kl_divergence)),
    "grad of kl_divergence in q": ("∂KL/∂q", 8, of(1, jg.kl_divergence)),
    "grad of js_divergence in p": ("∂JS/∂p", 8, of(0, jg.js_divergence)),
    "grad of js_divergence in q": ("∂JS/∂q", 8, of(1, jg.js_divergence)),
}


fwd, rev = jax.jacfwd, jax.jacrev
kl_hessian, js_hessian = jg.kl_divergence_hessian, jg.js_divergence_hessian
WITH_TEMPERATURE = {
    "kl_divergence at T = 3": ("KL at T = 3", 4, partial(jg.kl_divergence, temperature=3)),
    "kl_divergence_grad in p at T = 3": ("∂KL/∂p at T = 3", 8, closed(0, partial(jg.kl_divergence_grad, temperature=3))),
    "kl_divergence_grad in q at T = 3": ("∂KL/∂q at T = 3", 8, closed(1, partial(jg.kl_divergence_grad, temperature=3))),
}
eye_of = lambda z: jnp.eye(z.shape[-1], dtype=z.dtype)
MATRICES_OF_PAIRS = {
    "kl_divergence_hessian.first": ("∂²KL/∂p²", 10, lambda a, b: kl_hessian(a, b).first.to_dense()),
    "kl_divergence_hessian.mixed": ("∂²KL/∂p∂q", 10, lambda a, b: kl_hessian(a, b).mixed.to_dense()),
    "kl_divergence_hessian.second": ("∂²KL/∂q²", 10, lambda a, b: kl_hessian(a, b).second.to_dense()),
    "kl_divergence_hessian.first @ eye": ("∂²KL/∂p²", 10, lambda a, b: kl_hessian(a, b).first @ eye_of(a)),
    "hessian of kl_divergence in p": ("∂²KL/∂p²", 10, fwd(rev(jg.kl_divergence, 0), 0)),
    "hessian of kl_divergence in p and q": ("∂²KL/∂p∂q", 10, fwd(rev(jg.kl_divergence, 0), 1)),
    "hessian of kl_divergence in q": ("∂²KL/∂q²", 10, fwd(rev(jg.kl_divergence, 1), 1)),
    "js_divergence_hessian.first": ("∂²JS/∂p²", 10, lambda a, b: js_hessian(a, b).first.to_dense()),
    "js_divergence_hessian.mixed": ("∂²JS/∂p∂q", 10, lambda a, b: js_hessian(a, b).mixed.to_dense()),
    "js_divergence_hessian.second": ("∂²JS/∂q²", 10, lambda a, b: js_hessian(a, b).second.to_dense()),
}


MATRICES_OF_JS_BY_JAX = {  # which take long to compile
    "hessian of js_divergence in p": ("∂²JS/∂p² to the overlap", 10, fwd(rev(jg.js_divergence, 0), 0)),
    "hessian of js_divergence in p and q": ("∂²JS/∂p∂q to the overlap", 10, fwd(rev(jg.js_divergence, 0), 1)),
}
OF_TARGETS = {
    "forward_kl": ("KL(y‖p)", 4, jg.forward_kl),
    "forward_kl_grad in the logits": ("∂KL(y‖p)/∂z", 6, closed(0, jg.forward_kl_grad)),
    "forward_kl_grad in the targets": ("∂KL(y‖p)/∂y", 6, closed(1, jg.forward_kl_grad)),
    "forward_kl_hessian": ("∂²KL(y‖p)/∂z²", 6, lambda z, y: jg.forward_kl_hessian(z, y).to_dense()),
    "reverse_kl": ("KL(p‖y)", 4, jg.reverse_kl),
    "reverse_kl_grad in the logits": ("∂KL(p‖y)/∂z", 8, closed(0, jg.reverse_kl_grad)),
    "reverse_kl_grad in the targets": ("∂KL(p‖y)/∂y", 6, closed(1, jg.reverse_kl_grad)),
    "reverse_kl_hessian": ("∂²KL(p‖y)/∂z²", 10, lambda z, y: jg.reverse_kl_hessian(z, y).to_dense()),
    "grad of forward_kl in the logits": ("∂KL(y‖p)/∂z", 6, of(0, jg.forward_kl)),
    "grad of forward_kl in the targets": ("∂KL(y‖p)/∂y", 6, of(1, jg.forward_kl)),
    "grad of reverse_kl in the logits": ("∂KL(p‖y)/∂z", 8, of(0, jg.reverse_kl)),
    "grad of reverse_kl in the targets": ("∂KL(p‖y)/∂y", 6, of(1, jg.reverse_kl)),
    "hessian of reverse_kl": ("∂²KL(p‖y)/∂z²", 10, jax.hessian(jg.reverse_kl)),
}
probs, probs_grad, probs_hessian = jg.kl_divergence_probs, jg.kl_divergence_probs_grad, jg.kl_divergence_probs_hessian
general, general_grad = jg.generalized_kl_divergence, jg.generalized_kl_divergence_grad
OF_VECTORS = {
    "kl_divergence_probs": ("KL", 4, probs),
    "generalized_kl_divergence": ("generalized KL", 4, general),
    "kl_divergence_probs_grad in p": ("log(p/q) + 1", 4, closed(0, probs_grad)),
    "kl_divergence_probs_grad in q": ("-p/q", 4, closed(1, probs_grad)),
    "generalized_kl_divergence_grad in p": ("log(p/q)", 4, closed(0, general_grad)),
    "generalized_kl_divergence_grad in q": ("1 - p/q", 4, closed(1, general_grad)),
    "grad of kl_divergence_probs in p": ("log(p/q) + 1", 4, of(0, probs)),
    "grad of kl_divergence_probs in q": ("-p/q", 4, of(1, probs)),
    "grad of generalized_kl_divergence in p": ("log(p/q)", 4, of(0, general)),
    "grad of generalized_kl_divergence in q": ("1 - p/q", 4, of(1, general)),
    "kl_divergence_probs_hessian.first": ("1/p", 4, lambda p, q: probs_hessian(p, q).first.diagonal()),
    "kl_divergence_probs_hessian.mixed": ("-1/q", 4, lambda p, q: probs_hessian(p, q).mixed.diagonal()),
    "kl_divergence_probs_hessian.second": ("p/q²", 4, lambda p, q: probs_hessian(p, q).second.diagonal()),
    "hessian of generalized_kl_divergence in p": ("1/p", 4, lambda p, q: jnp.diagonal(jax.hessian(general, 0)(p, q))),
    "hessian of generalized_kl_divergence in q": ("p/q²", 4, lambda p, q: jnp.diagonal(jax.hessian(general, 1)(p, q))),
}
OF_GAUSSIANS = {
    "gaussian_kl": ("KL", 4, jg.gaussian_kl),
    "gaussian_kl_grad in the mean": ("pull", 4, closed(0, jg.gaussian_kl_grad)),
    "gaussian_kl_grad in the log variance": ("rise", 4, closed(1, jg.gaussian_kl_grad)),
    "gaussian_kl_grad in the prior mean": ("-pull", 4, closed(2, jg.gaussian_kl_grad)),
    "gaussian_kl_grad in the prior log variance": ("-rise - cost", 4, closed(3, jg.gaussian_kl_grad)),
    "grad of gaussian_kl in the log variance": ("rise", 4, jax.grad(lambda *x: jg.gaussian_kl(*x).sum(), 1)),
    "grad of gaussian_kl in the prior log variance": ("-rise - cost", 4, jax.grad(lambda *x: jg.gaussian_kl(*x).sum(), 3)),
    "gaussian_kl_hessian": ("Hessian", 4, jg.gaussian_kl_hessian),
    "hessian of gaussian_kl": ("Hessian", 4, lambda *x: jax.vmap(lambda *x: jnp.array(jax.hessian(jg.gaussian_kl, (0, 1, 2, 3))(*x)))(*x)),
}


class Suite(NamedTuple):
    rows: Callable
    exact: Callable
    measured: dict
    cases: list


SUITES = {
    "pairs": Suite(pairs, exact_pairs, OF_PAIRS, [case for case in CASES if case != ("float32", 100)]),  # 10 and 1000 are the same code
    "with temperature": Suite(pairs, exact_with_temperature, WITH_TEMPERATURE, [(dtype, 10) for dtype in WIDE]),
    "matrices": Suite(thin_pairs, exact_matrices, MATRICES_OF_PAIRS, [case for case in CASES if case[1] <= 100 and case not in IN_BFLOAT16]),
    "matrices of JS": Suite(thin_pairs, exact_matrices, MATRICES_OF_JS_BY_JAX, [(dtype, 10) for dtype in WIDE]),
    "targets": Suite(targets, exact_targets, OF_TARGETS, [case for case in CASES if case[1] <= 10 and case[0] != "float16"]),
    "vectors": Suite(vectors, exact_vectors, OF_VECTORS, [case for case in CASES if case[1] <= 100]),
    "gaussians": Suite(gaussians, exact_gaussians, OF_GAUSSIANS, [case for case in CASES if case[1] == 10]),
    "bits": Suite(numbers, exact_bits, {"nats_to_bits": ("bits", 2, jg.nats_to_bits)}, [(dtype, 500) for dtype in NUM_CLASSES]),
}
TESTS = [(suite, *case, name) for suite in SUITES for case in SUITES[suite].cases for name in SUITES[suite].measured]


@cache
def computed(suite, dtype, num_classes):
    """All quantities of all rows, in one program."""
    everything = lambda *inputs: {name: f(*inputs) for name, (_, _, f) in SUITES[suite].measured.items()}
    results = jax.jit(jax.vmap(everything))(*SUITES[suite].rows(dtype, num_classes).inputs)
    return {name: (np.asarray(x, np.float64), x.dtype.name) for name, x in results.items()}


@pytest.mark.parametrize(("suite", "dtype", "num_classes", "name"), TESTS)
def test_error_is_within_the_contract(suite, dtype, num_classes, name):
    """Every component within the bound, but for what is flushed to 0."""
    kind, bound, _ = SUITES[suite].measured[name]
    actual, dtype_of_result = computed(suite, dtype, num_classes)[name]
    head, tail, scale = SUITES[suite].exact(dtype, num_classes)[kind]
    assert actual.shape == head.shape
    overflow = np.abs(head) > float(jnp.finfo(dtype_of_result).max)
    head, tail = np.where(overflow, np.copysign(np.inf, head), head), np.where(overflow, 0, tail)
    wide = "float64" if dtype == "float64" else "float32"
    narrow = jnp.finfo(dtype_of_result).bits < 32
    bound = 2 * bound if wide == "float64" else bound
    with np.errstate(invalid="ignore"):
        error = np.abs(np.where(actual == head, 0, actual - head) - tail)
    allowed = bound * ulp(scale, wide)
    if narrow:  # rounded once; the float32 inside adds less than a hundredth unless there is cancellation
        allowed = np.where(scale > np.abs(head), allowed, 0) + 0.51 * ulp(head, dtype_of_result)
    allowed = np.maximum(allowed, 100 * num_classes * float(jnp.finfo(wide).tiny))
    bad = ~(error <= allowed)
    if bad.any():
        at = np.unravel_index(np.argmax(np.where(bad, np.nan_to_num(error / allowed, nan=np.inf), -1)), bad.shape)
        row = SUITES[suite].rows(dtype, num_classes).names[at[0]]
        pytest.fail(
            f"{name}, row '{row}', component {[int(i) for i in at[1:]]}: computed {actual[at]!r}, exact {head[at]!r}, off by "
            f"{error[at] / ulp(scale, wide)[at]:.3g} ULP at {scale[at]:.3g}, {bound} allowed; {bad.sum()} of {bad.size} exceed that"
        )


SYMMETRIC = [
    (suite, *case, name)
    for suite in ("matrices", "matrices of JS")
    for case in SUITES[suite].cases
    for name, (kind, _, _) in SUITES[suite].measured.items()
    if "∂p∂q" not in kind and "@" not in name
]


@pytest.mark.parametrize(("suite", "dtype", "num_classes", "name"), SYMMETRIC)
def test_matrix_is_symmetric_to_the_bit(suite, dtype, num_classes, name):
    matrices, _ = computed(suite, dtype, num_classes)[name]
    np.testing.assert_array_equal(matrices, np.swapaxes(matrices, -1, -2))


@pytest.mark.parametrize("name", ["kl_divergence", "js_divergence"])
@pytest.mark.parametrize(("dtype", "num_classes"), SUITES["pairs"].cases)
def test_divergence_is_not_negative(name, dtype, num_classes):
    assert (computed("pairs", dtype, num_classes)[name][0] >= 0).all()
