"""Content hashes: the same content has the same name on every machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

LENGTH = 20
"""Hexadecimal digits kept: 80 bits, collisions are out of reach for any campaign."""


def hash_json(content: Any) -> str:
    """Hash of anything JSON can hold, whatever the order of its keys.

    Raises
    ------
    TypeError
        Something in it has no JSON form.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def hash_arrays(*arrays: np.ndarray) -> str:
    """Hash of arrays: shape, kind and bytes, independent of the machine's byte order."""
    digest = hashlib.sha256()
    for array in arrays:
        a = np.ascontiguousarray(array)
        little = a.astype(a.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little.dtype.str}{a.shape}".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()[:LENGTH]


def structure_hash(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> str:
    """Identity of one structure: elements, positions (Å), cell (Å) and periodicity, exactly.

    Negative zeros count as zeros, so that writing to a text file and back keeps the identity.
    """
    return hash_arrays(
        np.asarray(numbers, np.int32),
        np.asarray(positions, np.float64) + 0.0,
        np.asarray(cell, np.float64) + 0.0,
        np.asarray(pbc, np.bool_),
    )
