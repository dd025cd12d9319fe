"""The calculus of softmax classifiers, exact and at scale.

>>> import jax.numpy as jnp, jaxgrad as jg
>>> jnp.set_printoptions(precision=4)
>>> logits, targets = jnp.array([[20.0, 0.0, -3.0]], jnp.float32), jnp.array([0])
>>> jg.cross_entropy(logits, targets)             # in nats; not rounded to 0
Array([2.1638e-09], dtype=float32)
>>> jg.cross_entropy_grad(logits, targets)        # p - y, exact where p rounds to y
Array([[-2.1638e-09,  2.0612e-09,  1.0262e-10]], dtype=float32)
"""

from jaxgrad._binary_cross_entropy import binary_cross_entropy as binary_cross_entropy
from jaxgrad._binary_cross_entropy import binary_cross_entropy_grad as binary_cross_entropy_grad
from jaxgrad._binary_cross_entropy import binary_cross_entropy_hessian as binary_cross_entropy_hessian
from jaxgrad._centred_diagonal import CentredDiagonal as CentredDiagonal
from jaxgrad._chain import ChainGradients as ChainGradients
from jaxgrad._chain import chain_gradients as chain_gradients
from jaxgrad._chain_hessian import ChainGaussNewton as ChainGaussNewton
from jaxgrad._chain_hessian import ChainHessian as ChainHessian
from jaxgrad._chain_hessian import ChainResidual as ChainResidual
from jaxgrad._chain_hessian import FeatureHessian as FeatureHessian
from jaxgrad._chain_hessian import InputHessian as InputHessian
from jaxgrad._chain_hessian import chain_hessian as chain_hessian
from jaxgrad._chain_products import ChainVector as ChainVector
from jaxgrad._chain_products import chain_ggn_product as chain_ggn_product
from jaxgrad._chain_products import chain_hvp as chain_hvp
from jaxgrad._checks import validate as validate
from jaxgrad._cross_entropy import cross_entropy as cross_entropy
from jaxgrad._cross_entropy import cross_entropy_grad as cross_entropy_grad
from jaxgrad._cross_entropy import cross_entropy_hessian as cross_entropy_hessian
from jaxgrad._cross_entropy import entropy as entropy
from jaxgrad._cross_entropy import entropy_grad as entropy_grad
from jaxgrad._curvature import empirical_fisher as empirical_fisher
from jaxgrad._curvature import fisher as fisher
from jaxgrad._curvature import ggn as ggn
from jaxgrad._curvature import hessian as hessian
from jaxgrad._data_sets import batched_curvature as batched_curvature
from jaxgrad._data_sets import streamed_curvature as streamed_curvature
from jaxgrad._divergences import js_divergence as js_divergence
from jaxgrad._divergences import js_divergence_grad as js_divergence_grad
from jaxgrad._divergences import js_divergence_hessian as js_divergence_hessian
from jaxgrad._divergences import kl_divergence as kl_divergence
from jaxgrad._divergences import kl_divergence_grad as kl_divergence_grad
from jaxgrad._divergences import kl_divergence_hessian as kl_divergence_hessian
from jaxgrad._divergences import nats_to_bits as nats_to_bits
from jaxgrad._gaussian_kl import gaussian_kl as gaussian_kl
from jaxgrad._gaussian_kl import gaussian_kl_grad as gaussian_kl_grad
from jaxgrad._gaussian_kl import gaussian_kl_hessian as gaussian_kl_hessian
from jaxgrad._head import linear_cross_entropy as linear_cross_entropy
from jaxgrad._head_divergences import linear_kl_divergence as linear_kl_divergence
from jaxgrad._head_hessian import HeadHessian as HeadHessian
from jaxgrad._head_hessian import KroneckerHessian as KroneckerHessian
from jaxgrad._head_hessian import head_hessian as head_hessian
from jaxgrad._head_products import HeadVector as HeadVector
from jaxgrad._head_products import linear_cross_entropy_ggn_product as linear_cross_entropy_ggn_product
from jaxgrad._head_products import linear_cross_entropy_hvp as linear_cross_entropy_hvp
from jaxgrad._head_sparse import linear_logsumexp as linear_logsumexp
from jaxgrad._head_sparse import linear_sparse_cross_entropy as linear_sparse_cross_entropy
from jaxgrad._head_sparse import linear_sparse_forward_kl as linear_sparse_forward_kl
from jaxgrad._head_statistics import HeadLogProbs as HeadLogProbs
from jaxgrad._head_statistics import linear_cross_entropy_ggn_diagonal as linear_cross_entropy_ggn_diagonal
from jaxgrad._head_statistics import linear_cross_entropy_grad_gram as linear_cross_entropy_grad_gram
from jaxgrad._head_statistics import linear_cross_entropy_grad_norms as linear_cross_entropy_grad_norms
from jaxgrad._head_statistics import linear_log_probs as linear_log_probs
from jaxgrad._model_divergences import forward_kl as forward_kl
from jaxgrad._model_divergences import forward_kl_grad as forward_kl_grad
from jaxgrad._model_divergences import forward_kl_hessian as forward_kl_hessian
from jaxgrad._model_divergences import reverse_kl as reverse_kl
from jaxgrad._model_divergences import reverse_kl_grad as reverse_kl_grad
from jaxgrad._model_divergences import reverse_kl_hessian as reverse_kl_hessian
from jaxgrad._newton import CurvatureState as CurvatureState
from jaxgrad._newton import damped_solve as damped_solve
from jaxgrad._newton import scale_by_curvature as scale_by_curvature
from jaxgrad._operators import Diagonal as Diagonal
from jaxgrad._operators import PairHessian as PairHessian
from jaxgrad._per_example import PerExampleGradients as PerExampleGradients
from jaxgrad._per_example import per_example_gradient_norms as per_example_gradient_norms
from jaxgrad._per_example import per_example_gradients as per_example_gradients
from jaxgrad._probability_divergences import generalized_kl_divergence as generalized_kl_divergence
from jaxgrad._probability_divergences import generalized_kl_divergence_grad as generalized_kl_divergence_grad
from jaxgrad._probability_divergences import generalized_kl_divergence_hessian as generalized_kl_divergence_hessian
from jaxgrad._probability_divergences import kl_divergence_probs as kl_divergence_probs
from jaxgrad._probability_divergences import kl_divergence_probs_grad as kl_divergence_probs_grad
from jaxgrad._probability_divergences import kl_divergence_probs_hessian as kl_divergence_probs_hessian
from jaxgrad._pytree_operators import PytreeOperator as PytreeOperator
from jaxgrad._softmax import log_softmax as log_softmax
from jaxgrad._softmax import logsumexp as logsumexp
from jaxgrad._softmax import softmax as softmax
from jaxgrad._softmax_jacobian import SoftmaxJacobian as SoftmaxJacobian
from jaxgrad._softmax_jacobian import StoredSoftmaxJacobian as StoredSoftmaxJacobian
from jaxgrad._softmax_jacobian import softmax_jacobian as softmax_jacobian
from jaxgrad._spectrum import Eigenpairs as Eigenpairs
from jaxgrad._spectrum import Estimate as Estimate
from jaxgrad._spectrum import SpectralDensity as SpectralDensity
from jaxgrad._spectrum import diagonal_estimate as diagonal_estimate
from jaxgrad._spectrum import extreme_eigenpairs as extreme_eigenpairs
from jaxgrad._spectrum import gram_eigenpairs as gram_eigenpairs
from jaxgrad._spectrum import log_determinant as log_determinant
from jaxgrad._spectrum import sharpness as sharpness
from jaxgrad._spectrum import spectral_density as spectral_density
from jaxgrad._spectrum import trace_estimate as trace_estimate
from jaxgrad._taylor import TaylorExpansion as TaylorExpansion
from jaxgrad._taylor import taylor_expansion as taylor_expansion

__all__ = [name for name in dir() if not name.startswith("_")]
