"""The identities of the softmax Jacobian as an operator: its root, its inverses and its eigenvalues."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._routes import keeps_probs
from jaxgrad.verify._suites import Examples

Array = np.ndarray
DAMPING = exact.DAMPING
EVERY = 16  # of the real rows that are judged by linear algebra in mpmath, which takes long


def operator_identities() -> list[Identity]:
    """op-1 … op-4."""
    each, jacobian = jax.vmap, jg.softmax_jacobian
    return [
        Identity(
            "op-1",
            "J v = B Bᵀ v,  B = diag(√p) (I − √p √pᵀ)",
            ("logits", "tangents"),
            autodiff=each(lambda z, v: jax.jvp(plain.softmax, (z,), (v,))[1]),
            closed=_by_root,
            public=each(jax.grad(lambda z, v: (jacobian(z).root_rmatvec(v) ** 2).sum() / 2, 1)),
            arbiter=exact.jacobian_product,
            bound=12,
            scale=_root_scale,
        ),
        Identity(
            "op-2",
            "J⁺ v = Π diag(1/p) Π v,  Π = I − 1 1ᵀ/C",
            ("logits", "tangents"),
            autodiff=each(lambda z, v: _dense(lambda j: jnp.linalg.pinv(j, hermitian=True), z, v)),
            closed=lambda z, v: jacobian(z).pinv_matvec(v),
            public=each(jax.grad(lambda z, v: (v * jacobian(z).pinv_matvec(v)).sum() / 2, 1)),
            arbiter=exact.pseudo_solution,
            bound=6,
            scale=exact.pseudo_solution_scale,
            ordinary=lambda examples: (examples.suite != "stress") & (examples.lead <= 3) & (np.ptp(examples.logits, axis=-1) <= 6),
            applies=lambda examples: _some(examples) & keeps_probs(examples),
        ),
        Identity(
            "op-3",
            f"(J + λI)⁻¹ v by Sherman–Morrison, λ = {DAMPING}",
            ("logits", "tangents"),
            autodiff=each(lambda z, v: _dense(lambda j: jnp.linalg.inv(j + DAMPING * jnp.eye(len(j), dtype=j.dtype)), z, v)),
            closed=lambda z, v: jacobian(z).solve(v, damping=DAMPING),
            public=each(jax.grad(lambda z, v: (v * jacobian(z).solve(v, damping=DAMPING)).sum() / 2, 1)),
            arbiter=exact.damped_solution,
            bound=6,
            scale=exact.damped_solution_scale,
        ),
        Identity(
            "op-4",
            "eigenvalues μ of J: 0 and the roots of Σ_j p_j/(p_j − μ), between the sorted p",
            ("logits",),
            autodiff=each(lambda z: jnp.linalg.eigvalsh(_by_jax(z)).astype(z.dtype)),
            closed=lambda z: jacobian(z).eigenvalues().astype(z.dtype),
            public=each(lambda z: jacobian(z).eigh()[0].astype(z.dtype)),
            arbiter=exact.eigenvalues,
            bound=4,
            applies=lambda examples: _some(examples) & keeps_probs(examples),
            laws=_laws_of_the_eigenvalues,
        ),
        Identity(
            "op-4",
            "Σ log μ over the eigenvalues μ > 0 = Σ_j log p_j + log C",
            ("logits",),
            autodiff=each(lambda z: jnp.log(jnp.linalg.eigvalsh(_by_jax(z))[1:]).sum()),
            closed=lambda z: jacobian(z).log_pseudo_determinant(),
            public=lambda z: jnp.log(jacobian(z).eigenvalues()[..., 1:]).sum(-1),
            arbiter=lambda z: exact.log(exact.eigenvalues(z)[:, 1:]).sum(-1),
            bound=4,
            public_bound=8,
            ordinary=lambda examples: (examples.suite != "stress") & (examples.lead <= 3) & (np.ptp(examples.logits, axis=-1) <= 6),
            applies=lambda examples: _some(examples) & keeps_probs(examples),
        ),
    ]


def _by_root(z: jax.Array, v: jax.Array) -> jax.Array:
    return jg.softmax_jacobian(z).root_matvec(jg.softmax_jacobian(z).root_rmatvec(v))


def _by_jax(z: jax.Array) -> jax.Array:
    """The Jacobian of the plain definition, in a dtype that has linear algebra."""
    return jax.jacfwd(plain.softmax)(z.astype(jnp.promote_types(jnp.float32, z.dtype)))


def _dense(inverse: Callable[[jax.Array], jax.Array], z: jax.Array, v: jax.Array) -> jax.Array:
    matrix = _by_jax(z)
    return (inverse(matrix) @ v.astype(matrix.dtype)).astype(v.dtype)


def _root_scale(z: Array, v: Array) -> Array:
    """|B| |Bᵀ| |v|, (N, C), with the differences of v for |v|."""
    p = exact.softmax(z)
    s = np.sqrt(p)
    w = s * np.stack([(p * np.abs(v[:, j : j + 1] - v)).sum(-1) for j in range(v.shape[-1])], axis=-1)
    return s * (w + s * (s * w).sum(-1, keepdims=True))


def _some(examples: Examples) -> Array:
    """All generated rows, and one in sixteen of the others."""
    return (examples.suite == "stress") | (np.arange(len(examples.logits)) % EVERY == 0)


def _laws_of_the_eigenvalues(closed: Array) -> dict[str, bool]:
    eps = float(jnp.finfo(closed.dtype).eps)
    values = closed.astype(np.float64)
    return {
        "the first is 0": bool((values[:, 0] == 0).all()),
        "ascending": bool((np.diff(values, axis=-1) >= 0).all()),
        "at most 1/2": bool((values <= 0.5 * (1 + 4 * eps)).all()),
    }
