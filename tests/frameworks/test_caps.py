"""Caps: where they go, how far."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import covalent_radii

from mofal.errors import StructureError
from mofal.frameworks import cap_length, cap_positions


def test_cap_positions__on_the_bond_at_the_length():
    rng = np.random.default_rng(0)
    kept, lost = rng.normal(size=(2, 50, 3))
    length = rng.uniform(0.9, 1.5, 50)
    out = cap_positions(kept, lost, length)
    step = out - kept
    assert np.allclose(np.linalg.norm(step, axis=1), length, rtol=1e-14)
    bond = lost - kept
    assert np.allclose(np.cross(step, bond), 0.0, atol=1e-14)
    assert np.all(np.einsum("ij,ij->i", step, bond) > 0)


def test_cap_positions__one_length_for_all_and_none():
    out = cap_positions([[0, 0, 0], [1, 0, 0]], [[0, 0, 2], [1, 3, 0]], 1.1)
    assert np.allclose(out, [[0, 0, 1.1], [1, 1.1, 0]])
    assert cap_positions(np.zeros((0, 3)), np.zeros((0, 3)), 1.0).shape == (0, 3)


@pytest.mark.parametrize("lost", [[[0.0, 0, 0]], [[np.nan, 0, 0]]])
def test_cap_positions__no_direction(lost):
    with pytest.raises(StructureError, match="no direction"):
        cap_positions([[0.0, 0, 0]], lost, 1.0)


@pytest.mark.parametrize(
    ("pair", "length"),
    # CRC Handbook of Chemistry and Physics: CH4 1.087, NH3 1.012, H2O 0.958, PH3 1.420, H2S 1.336
    [(("C", "H"), 1.087), (("N", "H"), 1.012), (("O", "H"), 0.958), (("P", "H"), 1.420),
     (("S", "H"), 1.336), ((6, 1), 1.087)],
)  # fmt: skip
def test_cap_length__close_to_molecules(pair, length):
    assert cap_length(*pair) == pytest.approx(length, abs=0.015)


def test_cap_length__covalent_radii_elsewhere():
    assert cap_length("C", "F") == pytest.approx(covalent_radii[[6, 9]].sum())
    assert cap_length("H", "C") == cap_length("C", "H")
    with pytest.raises(StructureError, match="two chemical symbols"):
        cap_length("Qq", "H")
