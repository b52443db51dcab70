"""Columns of the product form, and the buffers that blocks of rows are worked on in."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided


def pair_indices(d: int) -> tuple[np.ndarray, np.ndarray]:
    """Features i, j of each product zᵢ zⱼ, in the order in which `quadratic_columns` makes them.

    Squares first, then pairs by their distance around a ring of d features: each distance is a
    product of two contiguous arrays, and all distances together are one.
    """
    i = np.arange(d)
    firsts, seconds = [i], [i]
    for distance in range(1, (d - 1) // 2 + 1):
        firsts.append(i)
        seconds.append((i + distance) % d)
    if d % 2 == 0:
        half = np.arange(d // 2)
        firsts.append(half)
        seconds.append(half + d // 2)
    return np.concatenate(firsts), np.concatenate(seconds)


def quadratic_columns(ring: np.ndarray, d: int, out: np.ndarray) -> None:
    """All products of the first d rows of `ring`.

    Three calls in all: while they run another thread can work, in between it can not.

    Parameters
    ----------
    ring : ndarray, shape (d + d // 2, n)
        The d rows of z, the first of them repeated at the end.
    d : int
    out : ndarray, shape (d (d + 1) / 2, n)
    """
    n = ring.shape[1]
    z = ring[:d]
    np.multiply(z, z, out=out[:d])
    distances = (d - 1) // 2
    if distances:
        step, item = ring.strides
        shifted = as_strided(ring[1:], (distances, d, n), (step, step, item), writeable=False)
        np.multiply(z, shifted, out=out[d : d + distances * d].reshape(distances, d, n))
    if d % 2 == 0:
        half = d // 2
        np.multiply(z[:half], z[half:], out=out[d + distances * d :])


class Workspace:
    """Buffers of one walk over rows, so that no block allocates large arrays.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        Leading dims of each buffer; the last dim is rows.
    ones : dict of str to int
        Index of the first dim that is one and stays one.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], ones: dict[str, int]) -> None:
        self._shapes, self._ones = shapes, ones
        self.dense = False  # whether guiding has been found of no use for these rows
        self._buffers: dict[tuple[str, int], np.ndarray] = {}

    def take(self, name: str, n: int) -> np.ndarray:
        """The buffer of this name for n rows."""
        key = (name, n)
        if key not in self._buffers:
            buffer = np.empty((*self._shapes[name], n))
            if name in self._ones:
                buffer[self._ones[name]] = 1.0
            self._buffers[key] = buffer
        return self._buffers[key]
