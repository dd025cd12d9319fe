"""Route 3: the textbook formulas in NumPy, on mpmath numbers or on float64.

The same lines serve both: NumPy does arithmetic on arrays of mpmath numbers. With enough digits the textbook
formula is exact however much it cancels: 1 − p needs as many as p has nines.
"""

from collections.abc import Callable

import mpmath
import numpy as np

Array = np.ndarray
DAMPING = 0.0078125  # of the linear systems: 1/128, which every dtype holds


def to_mpmath(x: Array) -> Array:
    """The same numbers as mpmath numbers, which hold them exactly."""
    return np.frompyfunc(lambda t: mpmath.mpf(float(t)), 1, 1)(x)


def exp(x: Array) -> Array:
    """e^x of either kind."""
    return np.frompyfunc(mpmath.exp, 1, 1)(x) if x.dtype == object else np.exp(x)


def log(x: Array) -> Array:
    """log x of either kind, −inf at 0."""
    if x.dtype == object:
        return np.frompyfunc(lambda t: mpmath.log(t) if t else mpmath.mpf("-inf"), 1, 1)(x)
    with np.errstate(divide="ignore"):
        return np.log(x)


def tanh(x: Array) -> Array:
    """Tanh x of either kind."""
    return np.frompyfunc(mpmath.tanh, 1, 1)(x) if x.dtype == object else np.tanh(x)


def norm(x: Array) -> Array:
    """‖x‖ over the last axis, of either kind, (...); float64 could not hold the square of what it can hold."""
    size = np.abs(x).max(-1, keepdims=True)
    square = ((x / np.where(size == 0, 1, size)) ** 2).sum(-1)
    return size[..., 0] * (np.frompyfunc(mpmath.sqrt, 1, 1)(square) if square.dtype == object else np.sqrt(square))


def softmax(z: Array) -> Array:
    """softmax-1, (..., C)."""
    e = exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(z: Array) -> Array:
    """z − log Σ_j e^{z_j}, (..., C)."""
    return z - logsumexp(z)[..., None]


def logsumexp(z: Array) -> Array:
    """log Σ_j e^{z_j}, (...)."""
    m = z.max(-1, keepdims=True)
    return (m + log(exp(z - m).sum(-1, keepdims=True)))[..., 0]


def softmax_jacobian(z: Array) -> Array:
    """softmax-2, (..., C, C): p_i (1[i=j] − p_j)."""
    p = softmax(z)
    return p[..., :, None] * (np.eye(z.shape[-1], dtype=int) - p[..., None, :])


def jacobian_product(z: Array, v: Array) -> Array:
    """softmax-3: J v, (..., C)."""
    p = softmax(z)
    return p * (v - (p * v).sum(-1, keepdims=True))


def pseudo_solution(z: Array, v: Array) -> Array:
    """op-2: J⁺ v for a null space of ones, (J + 1 1ᵀ/C)⁻¹ v less the mean of v, (..., C), in mpmath whatever comes in."""
    with mpmath.workdps(max(mpmath.mp.dps, 120)):
        return _each(lambda j, v: _solve(j + np.full_like(j, mpmath.mpf(1) / len(v)), v) - v.sum() / len(v), softmax_jacobian(to_mpmath(z)), to_mpmath(v))


def pseudo_solution_scale(z: Array, v: Array) -> Array:
    """|v_j − mean v| / p_j and the mean of that, (..., C)."""
    size = np.abs(v - v.mean(-1, keepdims=True)) / softmax(z)
    return size + size.mean(-1, keepdims=True)


def damped_solution(z: Array, v: Array) -> Array:
    """op-3: (J + λI)⁻¹ v by elimination, (..., C)."""
    return _each(lambda j, v: _solve(j + np.eye(len(j), dtype=int) * DAMPING, v), softmax_jacobian(z), v)


def damped_solution_scale(z: Array, v: Array) -> Array:
    """(J + λI)⁻¹ |v|, (..., C): the inverse has no negative entry."""
    return damped_solution(z, np.abs(v))


def eigenvalues(z: Array) -> Array:
    """op-4, (..., C) ascending, by QR steps in mpmath whatever comes in: float64 has no digits of the small ones."""
    with mpmath.workdps(max(mpmath.mp.dps, 120)):
        return _each(lambda j: np.array(sorted(mpmath.eigsy(mpmath.matrix(j.tolist()), eigvals_only=True))), softmax_jacobian(to_mpmath(z)))


def _each(function: Callable[..., Array], *arrays: Array) -> Array:
    return np.stack([function(*rows) for rows in zip(*arrays, strict=True)])


def _solve(matrix: Array, v: Array) -> Array:
    if matrix.dtype != object:
        return np.linalg.solve(matrix, v)
    return np.array(list(mpmath.lu_solve(mpmath.matrix(matrix.tolist()), mpmath.matrix(v.tolist()))))


def cross_entropy(z: Array, y: Array) -> Array:
    """ce-1, (...)."""
    costs = log_softmax(z)
    return -np.where(y == 0, 0, y * np.where(y == 0, 0, costs)).sum(-1)


def cross_entropy_grad(z: Array, y: Array) -> Array:
    """ce-3, (..., C)."""
    return softmax(z) * y.sum(-1, keepdims=True) - y


def cross_entropy_hessian(z: Array, y: Array) -> Array:
    """hess-1, (..., C, C)."""
    return softmax_jacobian(z) * y.sum(-1)[..., None, None]


def entropy(z: Array) -> Array:
    """−Σ p log p, (...)."""
    p = softmax(z)
    return -np.where(p == 0, 0, p * np.where(p == 0, 0, log(p))).sum(-1)


def entropy_grad(z: Array) -> Array:
    """−p (log p + H), (..., C)."""
    p = softmax(z)
    return -np.where(p == 0, 0, p * (np.where(p == 0, 0, log(p)) + entropy(z)[..., None]))


def kl_divergence(p: Array, q: Array) -> Array:
    """kl-1, (...); a class with p = 0 costs nothing, one with p > 0 = q everything (kl-4)."""
    with np.errstate(invalid="ignore"):
        return np.where(p == 0, 0, p * (np.where(p == 0, 0, log(p)) - log(q))).sum(-1)


def kl_divergence_grad_p(z: Array, w: Array) -> Array:
    """kl-7, (..., C): p (log(p/q) − KL)."""
    p, q = softmax(z), softmax(w)
    return np.where(p == 0, 0, p * (np.where(p == 0, 0, log(p) - log(q)) - kl_divergence(p, q)[..., None]))


def kl_divergence_hessian_p(z: Array, w: Array) -> Array:
    """hess-8, (..., C, C): J + diag(g) − g pᵀ − p gᵀ."""
    p, g = softmax(z), kl_divergence_grad_p(z, w)
    twist = g[..., :, None] * (np.eye(z.shape[-1], dtype=int) - p[..., None, :]) - p[..., :, None] * g[..., None, :]
    return softmax_jacobian(z) + twist


def js_divergence(p: Array, q: Array) -> Array:
    """js-1, (...)."""
    m = (p + q) / 2
    return (kl_divergence(p, m) + kl_divergence(q, m)) / 2


def js_divergence_grad_p(z: Array, w: Array) -> Array:
    """js-1, (..., C): ½ J log(p/m)."""
    p, q = softmax(z), softmax(w)
    return jacobian_product(z, np.where(p == 0, 0, log(p) - log((p + q) / 2))) / 2


def gaussian_kl(mean: Array, log_variance: Array, prior_mean: Array, prior_log_variance: Array) -> Array:
    """vae-1, (...)."""
    x = log_variance - prior_log_variance
    return (exp(x) - 1 - x + (mean - prior_mean) ** 2 * exp(-prior_log_variance)) / 2


def gaussian_kl_grad(mean: Array, log_variance: Array, prior_mean: Array, prior_log_variance: Array) -> Array:
    """vae-1, (..., 2): in the mean, and in log σ."""
    return np.stack([(mean - prior_mean) * exp(-prior_log_variance), exp(log_variance - prior_log_variance) - 1], -1)


def sigmoid(z: Array) -> Array:
    """1/(1 + e^{−z}), (...)."""
    return 1 / (1 + exp(-z))


def binary_cross_entropy(z: Array, y: Array) -> Array:
    """bce-1, (...)."""
    return -y * log(sigmoid(z)) - (1 - y) * log(sigmoid(-z))


def binary_cross_entropy_grad(z: Array, y: Array) -> Array:
    """bce-1, (...)."""
    return sigmoid(z) - y


def binary_cross_entropy_hessian(z: Array, y: Array) -> Array:
    """hess-10, the diagonal (...)."""
    return sigmoid(z) * (1 - sigmoid(z)) + 0 * y


# The chain x → u = A x + a → e = s tanh u → z = W e + b → p → L. The scales are sums of magnitudes: what rounding
# may cost when the terms cancel, the rounding of z and of tanh included.


def chain_targets(w: Array, c: Array) -> Array:
    """Distributions (N, C): those given, or one-hot of class ids (N,)."""
    return np.eye(len(w), dtype=int)[c] if c.ndim == 1 else c


def chain_residual(e: Array, w: Array, b: Array, c: Array) -> Array:
    """P − y, (N, C)."""
    return cross_entropy_grad(e @ w.T + b, chain_targets(w, c))


def chain_residual_scale(e: Array, w: Array, b: Array, c: Array) -> Array:
    """|p − y| and what it moves by when the products in z are rounded, (N, C)."""
    z, spread = e @ w.T + b, np.abs(e) @ np.abs(w).T + np.abs(b)
    p = softmax(z)
    others = p[..., None, :] * (1 - np.eye(len(w), dtype=int))
    size = np.abs(chain_residual(e, w, b, c)) if c.ndim == 1 else np.maximum(p * c.sum(-1, keepdims=True), c)
    return size + p * (others * (spread[..., :, None] + spread[..., None, :])).sum(-1)


def chain_by_features(e: Array, w: Array, b: Array, c: Array) -> Array:
    """chain-1, (N, d)."""
    return chain_residual(e, w, b, c) @ w


def chain_by_features_scale(e: Array, w: Array, b: Array, c: Array) -> Array:
    """The scale of chain-1, (N, d)."""
    return chain_residual_scale(e, w, b, c) @ np.abs(w)


def chain_by_head(e: Array, w: Array, b: Array, c: Array, weights: Array) -> Array:
    """chain-3, (C, d)."""
    return (weights[:, None] * chain_residual(e, w, b, c)).T @ e


def chain_by_head_scale(e: Array, w: Array, b: Array, c: Array, weights: Array) -> Array:
    """The scale of chain-3, (C, d)."""
    return (weights[:, None] * chain_residual_scale(e, w, b, c)).T @ np.abs(e)


def _tanh_features(params: dict[str, Array], inputs: dict[str, Array]) -> tuple[Array, Array]:
    """e and ∂e/∂u, (N, d) each."""
    h = tanh(inputs["pixels"] @ params["kernel"] + params["bias"])
    return inputs["scale"][:, None] * h, inputs["scale"][:, None] * (1 - h * h)


def chain_by_pixels(params: dict[str, Array], inputs: dict[str, Array], w: Array, b: Array, c: Array) -> Array:
    """chain-2, (N, D)."""
    e, slope = _tanh_features(params, inputs)
    return (chain_by_features(e, w, b, c) * slope) @ params["kernel"].T


def chain_by_pixels_scale(params: dict[str, Array], inputs: dict[str, Array], w: Array, b: Array, c: Array) -> Array:
    """The scale of chain-2, (N, D)."""
    e, _ = _tanh_features(params, inputs)
    return (chain_by_features_scale(e, w, b, c) * inputs["scale"][:, None]) @ np.abs(params["kernel"]).T


def chain_by_kernel(params: dict[str, Array], inputs: dict[str, Array], w: Array, b: Array, c: Array, weights: Array) -> Array:
    """chain-4 in the kernel A, (D, d)."""
    e, slope = _tanh_features(params, inputs)
    return inputs["pixels"].T @ (weights[:, None] * chain_by_features(e, w, b, c) * slope)


def chain_by_kernel_scale(params: dict[str, Array], inputs: dict[str, Array], w: Array, b: Array, c: Array, weights: Array) -> Array:
    """The scale of chain-4, (D, d)."""
    e, _ = _tanh_features(params, inputs)
    return np.abs(inputs["pixels"]).T @ (weights[:, None] * chain_by_features_scale(e, w, b, c) * inputs["scale"][:, None])


# Second derivatives. A scale is the same formula of the magnitudes.


def chain_jacobian(e: Array, w: Array, b: Array, c: Array) -> Array:
    """hess-1, Σy J, (N, C, C)."""
    return cross_entropy_hessian(e @ w.T + b, chain_targets(w, c))


def chain_jacobian_scale(e: Array, w: Array, b: Array, c: Array) -> Array:
    """Σy p_i p_j and what it moves by when the products in z are rounded; on the diagonal the sum of the others, (N, C, C)."""
    z, spread = e @ w.T + b, np.abs(e) @ np.abs(w).T + np.abs(b)
    p = softmax(z)
    moves = 1 + spread[..., :, None] + spread[..., None, :] + 2 * (p * spread).sum(-1)[..., None, None]
    eye = np.eye(len(w), dtype=int)
    between = (1 - eye) * p[..., :, None] * p[..., None, :] * moves * chain_targets(w, c).sum(-1)[..., None, None]
    return between + eye * between.sum(-1)[..., None]


def kronecker_sum(weights: Array, j: Array, e: Array) -> Array:
    """hess-3, Σ_n w_n J_n ⊗ e_n e_nᵀ, (C d, C d)."""
    num_rows, size = len(e), j.shape[-1] * e.shape[-1]
    blocks = (weights[:, None, None] * j).reshape(num_rows, -1).T @ (e[:, :, None] * e[:, None, :]).reshape(num_rows, -1)
    return blocks.reshape(j.shape[-1], j.shape[-1], e.shape[-1], e.shape[-1]).swapaxes(1, 2).reshape(size, size)


def chain_mixed(e: Array, w: Array, b: Array, c: Array, weights: Array) -> Array:
    """hess-4 along the features in reverse, (C, d)."""
    return _mixed(chain_jacobian(e, w, b, c), chain_residual(e, w, b, c), e, w, weights)


def chain_mixed_scale(e: Array, w: Array, b: Array, c: Array, weights: Array) -> Array:
    """The scale of hess-4, (C, d)."""
    return _mixed(chain_jacobian_scale(e, w, b, c), chain_residual_scale(e, w, b, c), np.abs(e), np.abs(w), weights)


def _mixed(j: Array, r: Array, e: Array, w: Array, weights: Array) -> Array:
    e_dot = e[:, ::-1]
    return (weights[:, None] * _products(j, e_dot @ w.T)).T @ e + (weights[:, None] * r).T @ e_dot


def chain_parts(params: dict[str, Array], inputs: dict[str, Array], w: Array, b: Array, c: Array, weights: Array) -> Array:
    """hess-7, G v and T v, (2, P), along v = (a, A, W, b) itself."""
    e, slope = _tanh_features(params, inputs)
    bend = -2 * tanh(inputs["pixels"] @ params["kernel"] + params["bias"]) * slope
    j, r = chain_jacobian(e, w, b, c), chain_residual(e, w, b, c)
    return _parts(inputs["pixels"], params["kernel"], params["bias"], w, b, e, slope, bend, j, r, weights)


def chain_parts_scale(params: dict[str, Array], inputs: dict[str, Array], w: Array, b: Array, c: Array, weights: Array) -> Array:
    """The scale of hess-7, (2, P)."""
    e, _ = _tanh_features(params, inputs)
    slope = np.broadcast_to(inputs["scale"][:, None], e.shape)
    j, r = chain_jacobian_scale(e, w, b, c), chain_residual_scale(e, w, b, c)
    x, kernel, bias, w, b, e = (np.abs(x) for x in (inputs["pixels"], params["kernel"], params["bias"], w, b, e))
    return _parts(x, kernel, bias, w, b, e, slope, 2 * slope, j, r, weights)


def _parts(x: Array, kernel: Array, bias: Array, w: Array, b: Array, e: Array, slope: Array, bend: Array, j: Array, r: Array, weights: Array) -> Array:
    """From e and its first and second derivatives in u: `slope` and `bend`, (N, d)."""
    j, r = weights[:, None, None] * j, weights[:, None] * r
    u_dot = x @ kernel + bias
    e_dot = slope * u_dot
    s = _products(j, e_dot @ w.T + e @ w.T + b)
    by_u = (s @ w) * slope, (r @ w) * (bend * u_dot + slope)
    by_head = (s.T @ e, s.sum(0)), (r.T @ e_dot, 0 * s.sum(0))
    return np.stack([np.concatenate([u.sum(0), (x.T @ u).ravel(), h.ravel(), z]) for u, (h, z) in zip(by_u, by_head, strict=True)])


def _products(matrices: Array, vectors: Array) -> Array:
    """J_n v_n, (N, C)."""
    return (matrices @ vectors[..., None])[..., 0]
