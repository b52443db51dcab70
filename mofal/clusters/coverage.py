"""What a pick covers: the environments that need not be taken again.

With features, a pick is treated as what it will become, training data: the log-likelihood of every
other atom is raised to what a density that also holds the atoms of the picked cores would give it.
Without features, a pick halves the weight of the blocks of its own class (same kind, same kinds of
neighbours) in its own walk.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from mofal.clusters.graph import BlockGraph, FloatArray, IntArray

RIDGE = 1e-6
"""Smallest variance that counts, relative to the mean variance of an element's features."""
QUERIES, HAYSTACK = 1000, 4000
"""Atoms of each element whose most similar atom is looked for, and among how many."""
TRIMMED = 0.9
"""Share of those pairs that counts: the rest are atoms that nothing is similar to."""
ROWS = 32_768
"""Atoms whose distances from those of a pick are in memory at one time."""


def sample_stride(n_atoms: int) -> int:
    """Every how many-th atom of a pool is looked at to learn how much alike atoms are."""
    return max(1, n_atoms // 200_000)


class Kernel:
    """The density that a picked atom adds, per element: a Gaussian as wide as atoms are alike.

    Its covariance is half that of the difference between an atom and the one most similar to it
    in a sample of the pool: the scatter within one environment, whatever the number of
    environments. Its weight is one in ``n + 1``, where n counts the atoms of the element.

    Parameters
    ----------
    features, numbers : (sample, feature), (sample,) a sample of the pool, evenly spaced
    stride : one in so many atoms of the pool is in the sample
    bandwidth : multiplies the width; larger covers more
    """

    def __init__(
        self, features: FloatArray, numbers: IntArray, *, stride: int = 1, bandwidth: float = 1.0
    ) -> None:
        self.features = np.asarray(features, dtype=np.float64)
        self.numbers, self.stride, self.bandwidth = numbers, stride, bandwidth
        self._cache: dict[int, tuple[FloatArray, float]] = {}

    def of(self, z: int) -> tuple[FloatArray, float]:
        """Whitening matrix (feature, feature) and log-density at zero distance of an element."""
        if z not in self._cache:
            x = self.features[self.numbers == z]
            width = self.features.shape[1]
            lower = np.linalg.cholesky(self._scatter(x)) * self.bandwidth
            top = (
                -0.5 * width * np.log(2 * np.pi)
                - np.log(np.diag(lower)).sum()
                - np.log(len(x) * self.stride + 1.0)
            )
            self._cache[z] = (np.linalg.inv(lower).T, float(top))
        return self._cache[z]

    def _scatter(self, x: FloatArray) -> FloatArray:
        """Covariance within one environment, never singular: (feature, feature)."""
        width = self.features.shape[1]
        # All elements together stand in where one has too few atoms, or atoms that are all alike.
        whole = np.atleast_2d(np.cov(self.features.T, bias=True))
        whole += max(RIDGE * np.trace(whole) / width, 1e-12) * np.eye(width)
        if len(x) <= width + 1:
            return whole
        spread = np.atleast_2d(np.cov(x.T, bias=True))
        if not np.trace(spread) > RIDGE * np.trace(whole):
            return whole
        spread += RIDGE * np.trace(spread) / width * np.eye(width)
        root = np.linalg.cholesky(spread)
        hay = (x - x.mean(axis=0))[:: max(1, len(x) // HAYSTACK)] @ np.linalg.inv(root).T
        asked = hay[:: max(1, len(hay) // QUERIES)]
        away, at = cKDTree(hay).query(asked, k=2)
        kept = away[:, 1] <= np.quantile(away[:, 1], TRIMMED)
        step = (asked - hay[at[:, 1]])[kept]
        near = 0.5 * step.T @ step / max(len(step), 1)
        near += max(RIDGE * np.trace(near) / width, RIDGE) * np.eye(width)
        return root @ near @ root.T


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
            white *= -2.0
            self._of[z] = (rows, np.ascontiguousarray(white.T), norm)

    def pick(self, features: FloatArray, numbers: IntArray) -> None:
        """Let picked atoms, features (atom, feature) and numbers (atom,), cover what is like them.

        Picks add up; within one pick only the atom that is most alike counts.
        """
        for z in np.unique(numbers).tolist():
            if z not in self._of:
                continue
            rows, minus_twice, norm = self._of[z]
            matrix, top = self.kernel.of(z)
            picked = np.asarray(features[numbers == z], dtype=np.float64) @ matrix
            own = (picked**2).sum(axis=1)[:, None]
            for begin in range(0, len(rows), ROWS):
                part = slice(begin, begin + ROWS)
                squared = picked @ minus_twice[:, part]
                squared += own
                density = top - 0.5 * np.maximum(squared.min(axis=0) + norm[part], 0.0)
                self.raised[rows[part]] = np.logaddexp(self.raised[rows[part]], density)

    @property
    def effective(self) -> FloatArray:
        """(atom,) log-likelihood with the picks taken as training data."""
        return np.logaddexp(self.log_likelihood, self.raised)

    @property
    def counts(self) -> np.ndarray:
        """(atom,) bool: atoms that the picks explain no better than the density does."""
        return self.raised < self.log_likelihood


def block_classes(graph: BlockGraph) -> IntArray:
    """Class of every block: equal kind and equal kinds of neighbours: (block,)."""
    label: IntArray = np.unique(graph.kind, return_inverse=True)[1].reshape(-1)
    near = np.repeat(np.arange(graph.n_blocks), np.diff(graph.half_start))
    # The multiset of neighbours as a sum of random 64-bit numbers, one per kind.
    word = np.random.default_rng(0).integers(
        0, 2**63, size=int(label.max(initial=0)) + 1, dtype=np.uint64
    )
    around = np.zeros(graph.n_blocks, dtype=np.uint64)
    np.add.at(around, near, word[label[graph.half_block]])
    code = word[label] * np.uint64(0x9E3779B97F4A7C15) + around
    label = np.unique(code, return_inverse=True)[1].reshape(-1)
    return label
