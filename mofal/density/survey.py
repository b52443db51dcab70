"""One look at all rows: how many of each label, and a sample that does not depend on the chunking.

Each row has a pseudo-random priority computed from its global number, and the sample is the rows of
lowest priority: that merges over chunks in any order and is the same however the rows are chunked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mofal.density.rows import Chunk
from mofal.errors import DataError

SAMPLE = 16384
"""Rows of each label that starts and coordinates are taken from."""


@dataclass(frozen=True)
class Sample:
    """What is known of the rows of one label.

    Attributes
    ----------
    count : int
        Rows with a positive weight.
    weight : float
        Sum of their weights.
    priority : ndarray of uint64, shape (s,)
    numbers : ndarray of int64, shape (s,)
        Global row numbers, ascending.
    x : ndarray, shape (s, d)
    w : ndarray, shape (s,)
    size : int
        Rows that may be kept.
    """

    count: int
    weight: float
    priority: np.ndarray
    numbers: np.ndarray
    x: np.ndarray
    w: np.ndarray
    size: int

    @property
    def mean_weight(self) -> float:
        """Of the rows that count."""
        return self.weight / max(self.count, 1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean (d,) and covariance (d, d) of the sample, float64."""
        x = self.x.astype(np.float64)
        total = self.w.sum()
        mean = (self.w @ x) / total
        x -= mean
        return mean, (x * (self.w / total)[:, None]).T @ x


Survey = dict[int, Sample]


def priorities(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random 64-bit integer for each row number (SplitMix64 of Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) + np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def survey_chunk(chunk: Chunk, shared: tuple[int, int]) -> Survey:
    """Count and sample one chunk; `shared` is (seed, rows to keep of each label)."""
    seed, size = shared
    check_chunk(chunk)
    return {label: _sample(part, seed, size) for label, part in chunk.by_label()}


def _sample(part: Chunk, seed: int, size: int) -> Sample:
    numbers = part.row_numbers()
    w = part.weights
    if w is None:
        keep = np.arange(numbers.size)
        weight = float(numbers.size)
    else:
        keep = np.flatnonzero(w > 0)
        weight = float(np.asarray(w, np.float64).sum())
    count = keep.size
    priority = priorities(numbers[keep], seed)
    if count > size:
        lowest = np.sort(np.argpartition(priority, size - 1)[:size])
        keep, priority = keep[lowest], priority[lowest]
    weights = np.ones(keep.size) if w is None else np.asarray(w[keep], np.float64)
    return Sample(count, weight, priority, numbers[keep], part.x[keep], weights, size)


def survey_combine(a: Survey, b: Survey) -> Survey:
    """Merge two surveys."""
    return {
        label: _merge(a[label], b[label])
        if label in a and label in b
        else (a.get(label) or b[label])
        for label in sorted({*a, *b})
    }


def _merge(a: Sample, b: Sample) -> Sample:
    priority = np.concatenate([a.priority, b.priority])
    numbers = np.concatenate([a.numbers, b.numbers])
    keep = np.arange(priority.size)
    if priority.size > a.size:
        keep = np.argpartition(priority, a.size - 1)[: a.size]
    keep = keep[np.argsort(numbers[keep])]
    x, w = np.concatenate([a.x, b.x]), np.concatenate([a.w, b.w])
    return Sample(
        a.count + b.count,
        a.weight + b.weight,
        priority[keep],
        numbers[keep],
        x[keep],
        w[keep],
        a.size,
    )


def check_chunk(chunk: Chunk) -> None:
    """Refuse NaN, infinity and negative weights; the message names the row."""
    x = chunk.x
    # A sum is one pass without a temporary; only if it is not finite is each value looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = x.size and not np.isfinite(x.sum(dtype=np.float64))
    if suspicious:
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if bad.size:
            row = int(chunk.row_numbers()[bad[0]])
            raise DataError(
                f"row {row} contains NaN or infinity (and {bad.size - 1} more rows near it); "
                "drop such rows first: x = x[numpy.isfinite(x).all(axis=1)]"
            )
    w = chunk.weights
    if w is not None and (not np.isfinite(w).all() or (w < 0).any()):
        row = int(chunk.row_numbers()[np.flatnonzero(~(np.isfinite(w) & (w >= 0)))[0]])
        raise DataError(f"sample_weight of row {row} is negative, NaN or infinite; expected >= 0")


def take(rows: Any, seed: int, size: int = SAMPLE) -> Any:
    """Survey of a source of rows, as a handle that is kept where the work is done."""
    return rows.keep(rows.reduce(survey_chunk, survey_combine, rows.put((seed, size))))


def counts(survey: Survey) -> dict[int, tuple[int, float]]:
    """Rows and weight of each label."""
    return {label: (sample.count, sample.weight) for label, sample in survey.items()}
