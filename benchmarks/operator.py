"""Time of the softmax Jacobian as an operator: dense, as products, as a damped inverse, and its eigenvalues.

What limits a product is how often XLA on a CPU goes over arrays (B, C). From logits it reads 10 and writes 3 of them: two
maxima, the exponentials, their sum, their products with the vector and with the vector about its mean, the result. `jvp`
reads 8 and writes 3, so that 0.7 of its time is out of reach without giving up the centring, which is what keeps the
digits. With p stored one fusion makes two sums and the result, where p · v makes the result alone. A dense matrix of
few classes costs its 11 small loops, three more than `jacfwd` has, for the place of the heaviest class and a sum
rounded once. A damped solve makes the softmax too, and two more sums of quotients; of few classes the loops cost more
than the arithmetic, for a factorisation of 10 by 10 as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxgrad as jg
from benchmarks import _peers
from benchmarks._harness import DTYPE, Function, Target, TimingCase

DENSE_SHAPES = ((256, 10), (32, 1000))
MATVEC_SHAPES = ((256, 10), (256, 1000), (32, 32768), (256, 32768))
SOLVE_SHAPES = ((256, 10), (8, 1000))
EIGENVALUE_SIZES = (100, 1000)
DAMPING = 0.01


def cases(quick: bool) -> Sequence[TimingCase]:
    """Each operation of the operator against what JAX and dense linear algebra offer."""
    return [
        *(_dense(shape) for shape in (DENSE_SHAPES[:1] if quick else DENSE_SHAPES)),
        *(_matvec(shape) for shape in (MATVEC_SHAPES[:3] if quick else MATVEC_SHAPES)),
        *(_stored(shape) for shape in (MATVEC_SHAPES[1:2] if quick else MATVEC_SHAPES[1:])),
        *(_solve(shape) for shape in (SOLVE_SHAPES[:1] if quick else SOLVE_SHAPES)),
        *(_eigenvalues(size) for size in (EIGENVALUE_SIZES[:1] if quick else EIGENVALUE_SIZES)),
    ]


def _case(
    title: str,
    shape: tuple[int, ...],
    ours: Function,
    peers: Mapping[str, Function],
    limit: Mapping[str, Function],
    *targets: Target,
    prepare: Function | None = None,
) -> TimingCase:
    def arguments() -> tuple[Any, ...]:
        z_key, v_key = jax.random.split(jax.random.key(0))
        z, v = 3 * jax.random.normal(z_key, shape, DTYPE), jax.random.normal(v_key, shape, DTYPE)
        return (z, v) if prepare is None else (*prepare(z), v)

    return TimingCase(
        benchmark="operator",
        title=f"{title}, {shape}",
        arguments=arguments,
        ours={"jaxgrad": ours},
        peers=peers,
        limit=limit,
        targets=targets,
    )


def _dense(shape: tuple[int, int]) -> TimingCase:
    write = "write (B, C, C)"
    return _case(
        "dense softmax Jacobian",
        shape,
        lambda z, v: jg.softmax_jacobian(z).to_dense(),
        {
            "jacfwd": lambda z, v: jax.vmap(jax.jacfwd(jax.nn.softmax))(z),
            "jacrev": lambda z, v: jax.vmap(jax.jacrev(jax.nn.softmax))(z),
            "p (1[i=j] − p)": lambda z, v: _peers.outer_product_jacobian(z),
        },
        {write: lambda z, v: jnp.broadcast_to(z[:, :, None], (*z.shape, z.shape[-1]))},
        Target(0.45, "jacfwd"),
        Target(1.1, write),
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
        Target(0.7, "jvp"),
        Target(1.0, "vjp"),
    )


def _stored(shape: tuple[int, int]) -> TimingCase:
    product = "p * v"
    return _case(
        "softmax Jacobian times vector, p stored",
        shape,
        lambda j, p, v: j.matvec(v),
        {"p ∘ (v − ⟨p, v⟩)": lambda j, p, v: p * (v - (p * v).sum(-1, keepdims=True))},
        {product: lambda j, p, v: p * v},
        Target(1.1, product),
        prepare=lambda z: (jg.softmax_jacobian(z).stored(), jax.nn.softmax(z)),
    )


def _solve(shape: tuple[int, int]) -> TimingCase:
    def dense(z: jax.Array) -> jax.Array:
        return _peers.outer_product_jacobian(z) + DAMPING * jnp.eye(z.shape[-1], dtype=z.dtype)

    def by_cholesky(z: jax.Array, v: jax.Array) -> jax.Array:
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(dense(z)), True), v[..., None])[..., 0]

    return _case(
        "damped solve",
        shape,
        lambda z, v: jg.softmax_jacobian(z).solve(v, damping=DAMPING),
        {"jnp.linalg.solve": lambda z, v: jnp.linalg.solve(dense(z), v[..., None])[..., 0], "Cholesky": by_cholesky},
        {"z * v": lambda z, v: z * v},
        Target(0.2 if shape[-1] < 1000 else 0.001, "jnp.linalg.solve"),
    )


def _eigenvalues(num_classes: int) -> TimingCase:
    return _case(
        "all eigenvalues",
        (num_classes,),
        lambda z, v: jg.softmax_jacobian(z).eigenvalues()[1:],
        {"jnp.linalg.eigvalsh": lambda z, v: jnp.linalg.eigvalsh(_peers.outer_product_jacobian(z[None])[0])[1:]},
        {"Σ_j 1 / (v_i − z_j), one step of all": lambda z, v: (1 / (v[:, None] - z)).sum(-1)},
    )
