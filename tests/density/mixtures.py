"""Mixtures of known conditioning, rows drawn from them, and their log-likelihood in 80 bits."""

from __future__ import annotations

import numpy as np

from mofal.density import GaussianMixture
from mofal.density.parameters import Parameters, make, stacked_cholesky


def random_parameters(
    seed: int,
    *,
    n_components: int,
    n_features: int,
    condition: float = 1.0,
    kind: str = "full",
    spread: float = 3.0,
) -> Parameters:
    """Components with covariances of this condition number, largest eigenvalue 1, any direction."""
    rng = np.random.default_rng(seed)
    k, d = n_components, n_features
    means = rng.normal(size=(k, d)) * spread
    variances = np.exp(-np.log(condition) * rng.uniform(size=(k, d)))
    variances[:, 0], variances[:, -1] = 1.0, 1.0 / condition
    turn = np.stack([np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(k)])
    full = (turn * variances[:, None, :]) @ np.swapaxes(turn, 1, 2)
    full = 0.5 * (full + np.swapaxes(full, 1, 2))
    covariances = {
        "full": full,
        "tied": full[0],
        "diag": rng.permuted(variances, axis=1),
        "spherical": variances[:, d // 2],
    }[kind]
    return make(kind, rng.dirichlet(np.full(k, 5.0)), means, covariances)


def draw(parameters: Parameters, n: int, *, seed: int = 0, far: float = 1.0) -> np.ndarray:
    """Rows of the mixture; one in twenty is moved out by a factor `far`."""
    model = GaussianMixture.from_parameters(parameters, random_state=seed)
    x = model.sample(n)[0]
    x[::20] *= far
    return np.random.default_rng(seed).permutation(x)


def exact_log_likelihood(parameters: Parameters, x: np.ndarray) -> np.ndarray:
    """Log-likelihood of each row in extended precision, one component after the other."""
    chol = stacked_cholesky(parameters).astype(np.longdouble)
    rows, means = x.astype(np.longdouble), parameters.means.astype(np.longdouble)
    d = rows.shape[1]
    joint = np.empty((rows.shape[0], means.shape[0]), np.longdouble)
    with np.errstate(divide="ignore"):
        log_weights = np.log(parameters.weights.astype(np.longdouble))
    for k, factor in enumerate(chol):
        shift = rows - means[k]
        if factor.ndim == 1:
            y, diagonal = shift * factor, factor
        else:
            y = sum(shift[:, [i]] * factor[i] for i in range(d))
            diagonal = np.diag(factor)
        joint[:, k] = (
            log_weights[k]
            + np.log(diagonal).sum()
            - 0.5 * d * np.log(2 * np.longdouble(np.pi))
            - 0.5 * (y**2).sum(axis=1)
        )
    top = joint.max(axis=1)
    return top + np.log(np.exp(joint - top[:, None]).sum(axis=1))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest |Δℓ| / max(1, |ℓ|)."""
    scale = np.maximum(1.0, np.abs(expected))
    return float((np.abs(found - expected) / scale).max())


def blobs(
    seed: int, n: int, n_features: int, n_components: int, *, spread: float = 4.0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of overlapping clusters of moderate shape, and the centres of the clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_components, n_features)) * spread
    shape = np.eye(n_features) + 0.4 * rng.normal(size=(n_components, n_features, n_features))
    which = rng.integers(n_components, size=n)
    x = centres[which] + np.einsum("nij,nj->ni", shape[which], rng.normal(size=(n, n_features)))
    return x, centres


def start(seed: int, centres: np.ndarray, kind: str) -> dict[str, object]:
    """A start near the centres, as keyword arguments for either library."""
    k, d = centres.shape
    rng = np.random.default_rng(seed)
    precisions = {
        "full": np.broadcast_to(np.eye(d), (k, d, d)).copy(),
        "tied": np.eye(d),
        "diag": np.ones((k, d)),
        "spherical": np.ones(k),
    }[kind]
    return {
        "covariance_type": kind,
        "weights_init": np.full(k, 1.0 / k),
        "means_init": centres + rng.normal(size=centres.shape),
        "precisions_init": precisions,
    }
