from __future__ import annotations

import hashlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mofal.data import hash_arrays, hash_json, structure_hash

NUMBERS = np.array([8, 1, 1])
POSITIONS = np.array([[0.0, 0, 0.1], [0, 0.75, -0.5], [0, -0.75, -0.5]])
CELL = np.diag([4.0, 5.0, 6.0])
PBC = np.array([True, False, True])


def test_hashes__pinned():
    """Names of labels on disk: a change of these makes every campaign compute its labels again."""
    assert structure_hash(NUMBERS, POSITIONS, CELL, PBC) == "4e6ed777e4f321ab4eeb"
    assert (
        hash_json({"method": "GFN1-xTB", "h": 0.175, "a": [1, True, None]})
        == "64a573e4d385f24c37d4"
    )
    assert hash_arrays(np.arange(4, dtype=np.int64), np.float32([[1.5]])) == "8600454bdbd269a9db81"


def test_structure_hash__as_docs_format_specifies_it():
    digest = hashlib.sha256()
    digest.update(b"<i4(3,)" + struct.pack("<3i", *NUMBERS))
    digest.update(b"<f8(3, 3)" + struct.pack("<9d", *POSITIONS.ravel()))
    digest.update(b"<f8(3, 3)" + struct.pack("<9d", *CELL.ravel()))
    digest.update(b"|b1(3,)" + bytes(PBC.tolist()))
    assert structure_hash(NUMBERS, POSITIONS, CELL, PBC) == digest.hexdigest()[:20]
    # Without a charge, or with none, it is that; another charge comes after it.
    assert structure_hash(NUMBERS, POSITIONS, CELL, PBC, np.int32(0)) == digest.hexdigest()[:20]
    digest.update(b"<f8()" + struct.pack("<d", -1.0))
    assert structure_hash(NUMBERS, POSITIONS, CELL, PBC, -1, 0) == digest.hexdigest()[:20]
    # So do unpaired electrons after it.
    digest.update(b"<i4()" + struct.pack("<i", 2))
    assert structure_hash(NUMBERS, POSITIONS, CELL, PBC, -1, 2) == digest.hexdigest()[:20]


def test_hash_json__same_in_another_process():
    code = "from mofal.data import hash_json; print(hash_json({'b': [1.5], 'a': 'Å'}))"
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )
    assert out.stdout.strip() == hash_json({"a": "Å", "b": [1.5]})


@pytest.mark.parametrize(
    "other", [{"a": 1.0}, {"a": "1"}, {"a": True}, {"a": [1]}, {"A": 1}, {"a": 1, "b": None}]
)
def test_hash_json__sensitive(other):
    assert hash_json(other) != hash_json({"a": 1})


@pytest.mark.parametrize("content", [{"a": {1, 2}}, {"a": np.float32(1)}, object()])
def test_hash_json__refuses(content):
    with pytest.raises(TypeError):
        hash_json(content)


def test_hash_json__refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_json({"a": float("nan")})


@given(atom=st.integers(0, 2), axis=st.integers(0, 2), bit=st.integers(0, 62))
def test_structure_hash__every_bit_counts(atom, axis, bit):
    moved = POSITIONS.copy()
    moved.view(np.int64)[atom, axis] ^= 1 << bit
    same = structure_hash(NUMBERS, moved, CELL, PBC) == structure_hash(
        NUMBERS, POSITIONS, CELL, PBC
    )
    assert not same


def test_structure_hash__every_part_counts():
    base = (NUMBERS, POSITIONS, CELL, PBC)
    changed = [
        (NUMBERS[::-1], POSITIONS, CELL, PBC),
        (NUMBERS, POSITIONS[[0, 2, 1]], CELL, PBC),
        (NUMBERS, POSITIONS, CELL.T + np.eye(3) * 1e-15, PBC),
        (NUMBERS, POSITIONS, CELL, PBC[[1, 0, 2]]),
        (NUMBERS[:2], POSITIONS[:2], CELL, PBC),
    ]
    assert len({structure_hash(*c) for c in [base, *changed]}) == 6


def test_structure_hash__same_content_in_other_clothes():
    expected = structure_hash(NUMBERS, POSITIONS, CELL, PBC)
    assert structure_hash(NUMBERS.astype(np.int8), POSITIONS, CELL, PBC) == expected
    assert structure_hash(NUMBERS, np.asfortranarray(POSITIONS), CELL, PBC) == expected
    assert structure_hash(NUMBERS, POSITIONS.astype(">f8"), CELL, PBC) == expected
    assert structure_hash(NUMBERS.tolist(), POSITIONS.tolist(), CELL, PBC.astype(int)) == expected
    assert structure_hash(NUMBERS, np.where(POSITIONS == 0, -0.0, POSITIONS), CELL, PBC) == expected


def test_hash_arrays__shape_order_and_type_count():
    a = np.arange(6)
    variants = [
        (a,),
        (a.reshape(2, 3),),
        (a.reshape(3, 2),),
        (a[:3], a[3:]),
        (a[3:], a[:3]),
        (a.astype(np.int32),),
        (a.astype(float),),
        (np.array(["0", "1"]),),
        (np.array(["01", ""]),),
        (),
    ]
    assert len({hash_arrays(*v) for v in variants}) == len(variants)


def test_hash_arrays__byte_order_and_strides_do_not_count():
    a = np.arange(12.0).reshape(3, 4)
    assert hash_arrays(a.astype(">f8")) == hash_arrays(a)
    assert hash_arrays(np.repeat(a, 2, axis=0)[::2]) == hash_arrays(a)


def test_hash_arrays__text_is_its_characters():
    words = ["a", "longer than the space inside a string of NumPy", ""]
    expected = hash_arrays(np.array(words, np.dtypes.StringDType()))
    assert hash_arrays(np.array(words)) == expected
    assert hash_arrays(np.array(words, object)) == expected


def test_hash_arrays__refuses_objects():
    with pytest.raises(TypeError, match="holds None has no hash"):
        hash_arrays(np.array(["a", None], object))
    with pytest.raises(TypeError, match="has no hash"):
        hash_arrays(np.array([{}], object))
    with pytest.raises(TypeError, match="has no hash"):
        hash_arrays(np.array(["2020-01-01"], "datetime64[D]"))
