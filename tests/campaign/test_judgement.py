"""What counts as a defect's atoms in the table of held-out frames."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import chemical_symbols
from ase.formula import Formula

from mofal.frameworks import build, find_blocks
from mofal.frameworks.defects import defect_atoms
from tests.frameworks.test_blocks import recapped


def symbols_of(ds):
    z = ds["numbers"].values[defect_atoms(find_blocks(ds))]
    return Formula.from_list([chemical_symbols[k] for k in z]).format("hill")


@pytest.mark.parametrize(
    ("cap", "atoms"),
    [
        ("OH + H2O", "H6O4"),
        ("2 H2O", "H8O4"),
        ("acetate", "C4H6O4"),
        ("CF3CO2", "C4F6O4"),
    ],
)
def test_defect_atoms__are_the_whole_caps_and_nothing_else(cap, atoms):
    assert symbols_of(recapped(build("S_ld", cell="primitive"), cap)) == atoms


def test_defect_atoms__of_formates_and_of_a_crystal_without_defects():
    assert symbols_of(build("S_ld", cell="primitive")) == "C2H2O4"
    none = defect_atoms(find_blocks(build("S_pr", cell="primitive")))
    assert none.size == 0
    assert none.dtype == np.int64
