"""What every test runs under, strict promotion of dtypes and ranks, and the dtypes to run with."""

import gc

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # for a mesh
gc.set_threshold(100_000, 50, 100)  # tracing makes many small objects that live on: a sixth of its time went into looking for cycles

WIDE = [jnp.float32, jnp.float64] if jax.config.jax_enable_x64 else [jnp.float32]
NARROW = [jnp.bfloat16, jnp.float16]
name = lambda dtype: jnp.dtype(dtype).name


@pytest.fixture(params=WIDE + NARROW, ids=name)
def dtype(request):
    """A dtype that logits may have."""
    return request.param


@pytest.fixture(params=NARROW, ids=name)
def narrow_dtype(request):
    """A dtype that is computed with in float32 and rounded to once."""
    return request.param


@pytest.fixture(scope="session")
def widest_dtype():
    """The widest floating dtype there is: float64 if x64 is on."""
    return WIDE[-1]
