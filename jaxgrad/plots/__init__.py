"""Pictures of what the library computes, drawn by matplotlib, which the extra `plots` installs.

>>> import jax.numpy as jnp, jaxgrad as jg
>>> from jaxgrad import plots
>>> ax = plots.softmax_jacobian(jg.softmax_jacobian(jnp.array([1.0, 0.0, -1.0])))
>>> ax.get_xlabel()
'class j of the logit z_j'

Each function draws numbers that are there already on `ax`, by default on new axes, and returns the axes: what it does not
offer is set there. Lines differ in colour, dash and marker, in colours that colour-blind people can tell apart, and
all else takes its colour from matplotlib's style, light or dark. A shape that does not fit raises a `ValueError`, and
what is not made of concrete numbers a `TypeError`: draw outside `jit`.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("jaxgrad.plots: matplotlib not found; install it with: pip install 'jaxgrad[plots]'", name="matplotlib") from error

from jaxgrad.plots._accuracy import ulp_errors as ulp_errors
from jaxgrad.plots._distributions import distributions as distributions
from jaxgrad.plots._distributions import kl_contributions as kl_contributions
from jaxgrad.plots._losses import curvature_along as curvature_along
from jaxgrad.plots._losses import loss_along as loss_along
from jaxgrad.plots._losses import loss_landscape as loss_landscape
from jaxgrad.plots._losses import taylor_error as taylor_error
from jaxgrad.plots._matrices import gram_matrix as gram_matrix
from jaxgrad.plots._matrices import matrix as matrix
from jaxgrad.plots._matrices import softmax_jacobian as softmax_jacobian
from jaxgrad.plots._spectra import spectral_density as spectral_density
from jaxgrad.plots._training import convergence as convergence
from jaxgrad.plots._training import top_eigenvalues as top_eigenvalues

__all__ = [name for name in dir() if not name.startswith("_")]
