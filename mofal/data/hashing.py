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

    An integer and a float are two contents, even where they are equal: 1 is not 1.0.

    Raises
    ------
    TypeError
        Something in it has no JSON form.
    ValueError
        It holds NaN or infinity.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def hash_arrays(*arrays: np.ndarray) -> str:
    """Hash of arrays: shape, kind and bytes, independent of the machine's byte order.

    Text counts by its characters, whatever NumPy type holds it.

    Raises
    ------
    TypeError
        An array holds something else than numbers, booleans or text.
    """
    digest = hashlib.sha256()
    for array in arrays:
        a = np.asarray(array)
        if a.dtype.kind in "OTU":
            digest.update(_text(a))
            continue
        if a.dtype.kind not in "biufcS":
            raise TypeError(f"an array of {a.dtype} has no hash; expected numbers or text")
        little = a.astype(a.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little.dtype.str}{a.shape}".encode())
        digest.update(np.ascontiguousarray(little).tobytes())
    return digest.hexdigest()[:LENGTH]


def _text(array: np.ndarray) -> bytes:
    # The bytes of such an array are addresses: take the words themselves.
    words = array.ravel().tolist()
    odd = [w for w in words if not isinstance(w, str)]
    if odd:
        raise TypeError(f"an array that holds {odd[0]!r} has no hash; expected numbers or text")
    return f"text{array.shape}{json.dumps(words)}".encode()


def structure_hash(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    charge: float = 0,
    n_unpaired: int = 0,
) -> str:
    """Identity of one structure: elements, positions (Å), cell (Å), periodicity, charge, spin.

    Negative zeros count as zeros, so that writing to a text file and back keeps the identity.
    A charge (e) and a number of unpaired electrons count where they are not zero: an ion, or a
    triplet, is another structure than the neutral closed shell.
    """
    return hash_arrays(
        np.asarray(numbers, np.int32),
        np.asarray(positions, np.float64) + 0.0,
        np.asarray(cell, np.float64) + 0.0,
        np.asarray(pbc, np.bool_),
        *([np.asarray(charge, np.float64)] if charge else []),
        # Of another type than the charge, so that the two are never taken for each other.
        *([np.asarray(n_unpaired, np.int32)] if n_unpaired else []),
    )
