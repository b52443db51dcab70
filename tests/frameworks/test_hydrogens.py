"""Hydrogens taken away and put back; where nobody can tell, nothing is guessed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ase import Atoms
from ase.geometry import get_distances

from mofal.data import from_atoms, to_atoms
from mofal.errors import StructureError
from mofal.frameworks import build, check_structure
from mofal.frameworks.bonds import bonds_of
from mofal.frameworks.hydrogens import add_hydrogens
from tests.frameworks import published


def bare(atoms: Atoms) -> Atoms:
    return atoms[atoms.numbers != 1]


def uio66(name: str = "S_pr") -> Atoms:
    return to_atoms(build(name, cell="primitive" if name == "S_pr" else "conventional"), 0)


def nearest(a: Atoms, b: Atoms) -> np.ndarray:
    """Distance (Å) from each H of a to the nearest H of b."""
    x, y = a.positions[a.numbers == 1], b.positions[b.numbers == 1]
    return get_distances(x, y, cell=a.cell, pbc=a.pbc)[1].min(axis=1)


@pytest.mark.parametrize(
    ("make", "off"),
    [
        (published.mof5, 0.2), (published.hkust1, 0.25), (published.mil53, 0.25),
        (published.mof74, 0.1), (published.dmof, 0.2), (uio66, 0.15),
    ],
)  # fmt: skip
def test_add_hydrogens__where_they_were(make, off):
    """All H taken off and put back: as many, where diffraction or relaxation has them."""
    atoms = make()
    grown, notes = add_hydrogens(bare(atoms))
    assert Counter(grown.numbers.tolist()) == Counter(atoms.numbers.tolist())
    assert grown[: len(bare(atoms))] == bare(atoms)
    away = nearest(grown, atoms)
    if make is uio66:
        # Two patterns of the four mu3-OH are the same up to symmetry; the ring H are unique.
        assert (away < off).sum() in (len(away), len(away) - 4)
    else:
        assert (away < off).all()
    assert notes
    if make in (published.mof5, published.mil53, published.mof74, uio66):
        assert check_structure(from_atoms(grown, system="x")).attrs["notes"].count("missing") == 0


def test_add_hydrogens__methyls_of_zif_8():
    atoms = published.zif()
    grown, notes = add_hydrogens(bare(atoms))
    assert Counter(grown.numbers.tolist()) == Counter(atoms.numbers.tolist())
    assert "CH3, turned" in notes[0]
    d = grown.get_all_distances(mic=True) + 9 * np.eye(len(grown))
    hydrogen = grown.numbers == 1
    assert d[np.ix_(hydrogen, hydrogen)].min() > 1.7
    assert d[hydrogen].min(axis=1).max() < 1.1


@pytest.mark.parametrize("average", [False, True])
def test_add_hydrogens__alternates_over_the_cube(average):
    """No two mu3-OH of a brick share two metals: a tetrahedron in the cube of its mu3-O.

    By the bond valences where the file tells OH from oxo; where it holds their average, one of the
    two equal patterns.
    """
    atoms = bare(uio66())
    metals = atoms.positions[atoms.numbers == 40]
    if average:
        for k in np.flatnonzero(atoms.numbers == 8).tolist():
            away = np.linalg.norm(metals - atoms.positions[k], axis=1)
            three = metals[np.argsort(away)[:3]]
            if np.sort(away)[2] < 2.6:
                out = atoms.positions[k] - three.mean(axis=0)
                atoms.positions[k] = three.mean(axis=0) + out / np.linalg.norm(out) * 0.65
    grown, notes = add_hydrogens(atoms)
    bonds = bonds_of(grown.numbers, grown.positions, grown.cell.array, grown.pbc)
    z = grown.numbers
    sets = []
    for k in np.flatnonzero(z == 8).tolist():
        j = bonds.j[bonds.indptr[k] : bonds.indptr[k + 1]]
        if (z[j] == 40).sum() == 3 and 1 in z[j]:
            sets.append(set(j[z[j] == 40].tolist()))
    assert len(sets) == 4
    assert all(len(a & b) == 1 for i, a in enumerate(sets) for b in sets[:i])
    assert any("two equal patterns" in note for note in notes) == average


def test_add_hydrogens__what_nobody_can_tell():
    # Aniline: NH2 or NH or N is no matter of geometry alone; it stays missing and is refused.
    atoms = to_atoms(build("S_pr", cell="primitive", linker="BDC-NH2"), 0)
    bonds = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    on_nitrogen = [i for i, j in zip(bonds.i.tolist(), bonds.j.tolist())
                   if atoms.numbers[i] == 1 and atoms.numbers[j] == 7]  # fmt: skip
    del atoms[on_nitrogen]
    grown, notes = add_hydrogens(atoms)
    assert notes == []
    with pytest.raises(StructureError, match="hydrogens are missing"):
        check_structure(from_atoms(grown, system="x"))
    # A chain of two carbons at 1.455 Å: neither single nor double.
    chain = Atoms("ZnOCCCOZn", positions=[
        [-3.3, 0, 0], [-1.9, 1.2, 0], [-0.6, 1.2, 0], [0, -0.12, 0], [1.33, -0.7, 0],
        [2.0, -1.8, 0], [3.9, -1.8, 0],
    ], cell=[15, 15, 15], pbc=True)  # fmt: skip
    with pytest.raises(StructureError, match=r"neither single nor double|no geometry tells"):
        add_hydrogens(chain)


def test_add_hydrogens__neutral_cells_get_none_on_metals():
    """V(IV)=O and V(III)-OH of one average structure: the charge alone tells, and it is neutral."""
    atoms = bare(published.mil53())
    atoms.numbers[atoms.numbers == 24] = 23
    _, notes = add_hydrogens(atoms)
    assert len(notes) == 1  # C-H alone
    assert "on C" in notes[0]
