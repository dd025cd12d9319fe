"""The identities: what JAX makes of the plain definition, the closed form, the public function, and the arbiter.

To add a row, add an `Identity`. Its functions take the fields of `Examples` that it names, for a whole batch.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad as jg
from jaxgrad.verify import _arbiter as exact
from jaxgrad.verify import _definitions as plain
from jaxgrad.verify._chain_identities import chain_identities
from jaxgrad.verify._curvature_identities import curvature_identities
from jaxgrad.verify._divergence_identities import divergence_identities
from jaxgrad.verify._head_identities import head_identities
from jaxgrad.verify._identity import Identity
from jaxgrad.verify._operator_identities import operator_identities
from jaxgrad.verify._routes import keeps_probs, pairwise_scale
from jaxgrad.verify._suites import Examples

Array = np.ndarray


def identities() -> list[Identity]:
    """The table: the classifier and its loss, the chain, the head in blocks, the operator, the curvature, the divergences."""
    one_hot = lambda labels, z: jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
    ids = lambda function: lambda z, c: function(z, np.eye(z.shape[-1], dtype=int)[c])
    plain_ids = lambda z, c: plain.cross_entropy(z, one_hot(c, z))
    total = lambda function: lambda *arguments: function(*arguments).sum()
    each = jax.vmap
    return [
        Identity(
            "softmax-1",
            "p_i = e^{z_i} / Σ_j e^{z_j}",
            ("logits",),
            autodiff=each(plain.softmax),
            closed=jg.softmax,
            public=each(jg.softmax),
            arbiter=exact.softmax,
            bound=4,
        ),
        Identity(
            "softmax-2",
            "∂p_i/∂z_j = p_i (1[i=j] − p_j)",
            ("logits",),
            autodiff=each(jax.jacfwd(plain.softmax)),
            closed=lambda z: jg.softmax_jacobian(z).to_dense(),
            public=each(jax.jacrev(jg.softmax)),
            arbiter=exact.softmax_jacobian,
            bound=6,
            public_bound=10,
            laws=_laws_of_the_jacobian,
        ),
        Identity(
            "softmax-3",
            "(∂p/∂z) v = p ∘ (v − ⟨p, v⟩) = J v = Jᵀ v",
            ("logits", "tangents"),
            autodiff=each(lambda z, v: jax.jvp(plain.softmax, (z,), (v,))[1]),
            closed=lambda z, v: jg.softmax_jacobian(z) @ v,
            public=each(lambda z, v: jax.vjp(jg.softmax, z)[1](v)[0]),
            arbiter=exact.jacobian_product,
            bound=6,
            scale=pairwise_scale,
        ),
        Identity(
            "ce-1",
            "H(y, p) = −Σ_k y_k log p_k, y a class id",
            ("logits", "labels"),
            autodiff=each(plain_ids),
            closed=jg.cross_entropy,
            public=each(jg.cross_entropy),
            arbiter=ids(exact.cross_entropy),
            bound=4,
        ),
        Identity(
            "ce-1",
            "H(y, p) = −Σ_k y_k log p_k, y a distribution",
            ("logits", "targets"),
            autodiff=each(plain.cross_entropy),
            closed=jg.cross_entropy,
            public=each(jg.cross_entropy),
            arbiter=exact.cross_entropy,
            bound=4,
        ),
        Identity(
            "ce-2",
            "∂L/∂p = −y ⊘ p",
            ("logits", "targets"),
            autodiff=each(lambda z, y: jax.grad(plain.cross_entropy_of_probs)(plain.softmax(z), y)),
            closed=_by_probs,
            public=_by_probs,
            arbiter=lambda z, y: -y / exact.softmax(z),
            bound=4,
            applies=keeps_probs,
        ),
        Identity(
            "ce-3",
            "∂L/∂z = p − y, y a class id",
            ("logits", "labels"),
            autodiff=each(jax.grad(plain_ids)),
            closed=jg.cross_entropy_grad,
            public=jax.grad(total(jg.cross_entropy)),
            arbiter=ids(exact.cross_entropy_grad),
            bound=4,
        ),
        Identity(
            "ce-3",
            "∂L/∂z = p Σy − y, y a distribution",
            ("logits", "targets"),
            autodiff=each(jax.grad(plain.cross_entropy)),
            closed=jg.cross_entropy_grad,
            public=jax.grad(total(jg.cross_entropy)),
            arbiter=exact.cross_entropy_grad,
            bound=6,
            scale=lambda z, y: np.maximum(exact.softmax(z) * y.sum(-1, keepdims=True), y),
        ),
        Identity(
            "hess-1",
            "∇²_z L = Σy · (diag(p) − p pᵀ)",
            ("logits", "targets"),
            autodiff=each(jax.hessian(plain.cross_entropy)),
            closed=lambda z, y: jg.cross_entropy_hessian(z, y).to_dense(),
            public=each(jax.hessian(jg.cross_entropy)),
            arbiter=exact.cross_entropy_hessian,
            bound=6,
            public_bound=10,
            laws=_laws_of_the_jacobian,
        ),
        Identity(
            "bce-1",
            "∂/∂z of the Bernoulli cross-entropy = σ(z) − y",
            ("logits", "targets"),
            autodiff=each(each(jax.grad(plain.binary_cross_entropy))),
            closed=jg.binary_cross_entropy_grad,
            public=jax.grad(total(jg.binary_cross_entropy)),
            arbiter=exact.binary_cross_entropy_grad,
            bound=6,
            scale=lambda z, y: np.maximum(exact.sigmoid(z), y),
            ordinary=_keeps_tails,
        ),
        Identity(
            "hess-10",
            "∂²/∂z² of the Bernoulli cross-entropy = σ (1 − σ)",
            ("logits", "targets"),
            autodiff=each(each(jax.grad(jax.grad(plain.binary_cross_entropy)))),
            closed=lambda z, y: jg.binary_cross_entropy_hessian(z, y).diagonal(),
            public=jax.grad(total(jax.grad(total(jg.binary_cross_entropy)))),
            arbiter=exact.binary_cross_entropy_hessian,
            bound=6,
            ordinary=_keeps_tails,
            laws=lambda closed: {"at most 1/4": bool((closed <= 0.25 * (1 + 4 * jnp.finfo(closed.dtype).eps)).all())},
        ),
        *chain_identities(),
        *head_identities(),
        *operator_identities(),
        *curvature_identities(),
        *divergence_identities(),
    ]


def _keeps_tails(examples: Examples) -> Array:
    """Real rows small enough for 1 − σ(z) to have digits, and to lose no more than 9 bits: within 6 of 0."""
    return (examples.suite != "stress") & (examples.size <= min(6, -0.375 * np.log(float(jnp.finfo(examples.logits.dtype).eps))))


def _by_probs(z: jax.Array, y: jax.Array) -> jax.Array:
    """−y ⊘ p, rounded once."""
    wide = jnp.promote_types(jnp.float32, z.dtype)
    return (-y.astype(wide) / jg.softmax(z.astype(wide))).astype(z.dtype)


def _laws_of_the_jacobian(matrices: Array) -> dict[str, bool]:
    finite = matrices.astype(np.float64)
    eps, tiny = float(jnp.finfo(matrices.dtype).eps), float(jnp.finfo(matrices.dtype).tiny)
    eigenvalues = np.linalg.eigvalsh(finite)
    return {
        "symmetric to the bit": bool((finite == finite.swapaxes(-1, -2)).all()),
        "rows sum to 0": bool((np.abs(finite.sum(-1)) <= finite.shape[-1] * (eps * np.abs(finite).max(-1) + tiny)).all()),
        "positive semi-definite": bool((eigenvalues[:, 0] >= -finite.shape[-1] * (eps * eigenvalues[:, -1] + tiny)).all()),
        "norm at most 1/2": bool((eigenvalues[:, -1] <= 0.5 + finite.shape[-1] * eps).all()),
    }
