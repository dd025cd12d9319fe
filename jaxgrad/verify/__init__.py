"""Check derivatives: a claimed closed form against JAX's automatic differentiation, in your own CI.

>>> import jax, jax.numpy as jnp, jaxgrad as jg
>>> from jaxgrad import verify
>>> logits = jnp.array([2.0, -1.0, 0.5])
>>> verify.check_gradient(lambda z: jg.cross_entropy(z, 0), lambda z: jax.nn.softmax(z), logits)
Traceback (most recent call last):
    ...
jaxgrad.verify._claims.VerificationError: ...

`python -m jaxgrad verify` is the other half: jaxgrad's own identities by three independent routes.
"""

from jaxgrad.verify._claims import ClaimReport as ClaimReport
from jaxgrad.verify._claims import VerificationError as VerificationError
from jaxgrad.verify._claims import check_adjoint as check_adjoint
from jaxgrad.verify._claims import check_gradient as check_gradient
from jaxgrad.verify._claims import check_hessian as check_hessian
from jaxgrad.verify._claims import check_jacobian as check_jacobian
from jaxgrad.verify._claims import check_jvp as check_jvp
from jaxgrad.verify._claims import check_vjp as check_vjp
from jaxgrad.verify._data import digits as digits
from jaxgrad.verify._ulp import ulp_errors as ulp_errors

__all__ = [name for name in dir() if not name.startswith("_")]
