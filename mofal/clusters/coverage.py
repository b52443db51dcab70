"""What a pick covers: the environments that need not be taken again.

With features, a pick is treated as what it will become, training data: the log-likelihood of every
other atom is raised to what a density that also holds the atoms of the picked cores would give it.
Without features, a pick covers the blocks of its own class (same kind, same neighbours) in its own
walk.
"""

from __future__ import annotations

import numpy as np

from mofal.clusters.graph import BlockGraph, FloatArray, IntArray

RIDGE = 1e-6
"""Smallest variance that counts, relative to the mean variance of an element's features."""


class ElementMoments:
    """Number, sum and outer products of features per element, combined over chunks."""

    def __init__(self, width: int) -> None:
        self.n = np.zeros(119)
        self.sum = np.zeros((119, width))
        self.outer = np.zeros((119, width, width))

    def add(self, features: FloatArray, numbers: IntArray) -> ElementMoments:
        """Take in a chunk: features (atom, feature), numbers (atom,)."""
        for z in np.unique(numbers).tolist():
            x = np.asarray(features[numbers == z], dtype=np.float64)
            self.n[z] += len(x)
            self.sum[z] += x.sum(axis=0)
            self.outer[z] += x.T @ x
        return self

    def merge(self, other: ElementMoments) -> ElementMoments:
        """Take in the moments of another chunk."""
        self.n += other.n
        self.sum += other.sum
        self.outer += other.outer
        return self

    def covariance(self, z: int) -> FloatArray:
        """Covariance of the features of an element, never singular: (feature, feature)."""
        width = self.sum.shape[1]
        n = max(self.n[z], 1.0)
        mean = self.sum[z] / n
        sigma = self.outer[z] / n - np.outer(mean, mean)
        level = np.trace(sigma) / width
        if not level > RIDGE * (np.trace(self.outer[z]) / n / width + 1e-300):
            # All atoms of this element are alike: borrow the spread of all elements together.
            total = max(self.n.sum(), 1.0)
            mean = self.sum.sum(axis=0) / total
            sigma = self.outer.sum(axis=0) / total - np.outer(mean, mean)
            level = max(np.trace(sigma) / width, 1e-12)
        return sigma + RIDGE * level * np.eye(width)


class Kernel:
    """The density that picked atoms add, per element: a Gaussian around each of them.

    Its covariance is the pool's covariance of that element times the square of Scott's factor
    ``n ** (-1 / (d + 4))`` (Scott, Multivariate Density Estimation, 1992), its weight one in
    ``n + 1``, where n counts the atoms of the element in the pool.

    Parameters
    ----------
    moments : of the features of the pool
    bandwidth : multiplies Scott's factor; larger covers more
    """

    def __init__(self, moments: ElementMoments, bandwidth: float = 1.0) -> None:
        self.moments, self.bandwidth = moments, bandwidth
        self._cache: dict[int, tuple[FloatArray, float]] = {}

    def of(self, z: int) -> tuple[FloatArray, float]:
        """Whitening matrix (feature, feature) and log-density at zero distance of an element."""
        if z not in self._cache:
            n = max(self.moments.n[z], 1.0)
            width = self.moments.sum.shape[1]
            scale = self.bandwidth * n ** (-1.0 / (width + 4))
            lower = np.linalg.cholesky(self.moments.covariance(z)) * scale
            top = -0.5 * width * np.log(2 * np.pi) - np.log(np.diag(lower)).sum() - np.log(n + 1.0)
            self._cache[z] = (np.linalg.inv(lower).T, float(top))
        return self._cache[z]


class FeatureCoverage:
    """Log-likelihoods of some atoms, raised by picks.

    Parameters
    ----------
    kernel : densities of picked atoms
    features : (atom, feature); numbers, log_likelihood : (atom,)
    """

    def __init__(
        self, kernel: Kernel, features: FloatArray, numbers: IntArray, log_likelihood: FloatArray
    ) -> None:
        self.kernel, self.numbers = kernel, numbers
        self.log_likelihood = log_likelihood
        self.raised = np.full(len(numbers), -np.inf)
        self._of: dict[int, tuple[IntArray, FloatArray, FloatArray]] = {}
        for z in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == z)
            white = np.asarray(features[rows], dtype=np.float64) @ kernel.of(z)[0]
            norm = np.einsum("ij,ij->i", white, white)
            self._of[z] = (rows, np.ascontiguousarray(-2.0 * white.T), norm)

    def pick(self, features: FloatArray, numbers: IntArray) -> None:
        """Let picked atoms, features (atom, feature) and numbers (atom,), cover what is like them.

        The sum over the Gaussians of all picks is replaced by its largest term.
        """
        for z in np.unique(numbers).tolist():
            if z not in self._of:
                continue
            rows, minus_twice, norm = self._of[z]
            matrix, top = self.kernel.of(z)
            picked = np.asarray(features[numbers == z], dtype=np.float64) @ matrix
            squared = picked @ minus_twice
            squared += (picked**2).sum(axis=1)[:, None]
            density = top - 0.5 * np.maximum(squared.min(axis=0) + norm, 0.0)
            self.raised[rows] = np.maximum(self.raised[rows], density)

    @property
    def effective(self) -> FloatArray:
        """(atom,) log-likelihood with the picks taken as training data."""
        return np.maximum(self.log_likelihood, self.raised)

    @property
    def counts(self) -> np.ndarray:
        """(atom,) bool: atoms that the picks explain no better than the density does."""
        return self.raised < self.log_likelihood


def block_classes(graph: BlockGraph) -> IntArray:
    """Class of every block: equal kind and equal kinds of neighbours: (block,).

    Two rounds of neighbours are looked at: what a cluster with one shell holds and where it ends.
    """
    label: IntArray = np.unique(graph.kind, return_inverse=True)[1].reshape(-1)
    near = np.repeat(np.arange(graph.n_blocks), np.diff(graph.half_start))
    rng = np.random.default_rng(0)
    for _ in range(2):
        # The multiset of neighbours as a sum of random 64-bit numbers, one per label.
        word = rng.integers(0, 2**63, size=int(label.max(initial=0)) + 1, dtype=np.uint64)
        around = np.zeros(graph.n_blocks, dtype=np.uint64)
        np.add.at(around, near, word[label[graph.half_block]])
        code = word[label] * np.uint64(0x9E3779B97F4A7C15) + around
        label = np.unique(code, return_inverse=True)[1].reshape(-1)
    return label
