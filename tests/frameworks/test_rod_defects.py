"""Missing linkers of rods: what they leave on their metals; the framework stays neutral."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mofal.data import from_atoms, to_atoms
from mofal.errors import StructureError
from mofal.frameworks import check_structure, disorder, find_blocks, remove_blocks, supercell
from mofal.frameworks.bonds import IS_METAL, bonds_of
from mofal.frameworks.defects import defect_atoms
from tests.frameworks import published

RODS = [
    # two formates: 2-; of the phenolates of MOF-74 two OH stay too: 4-
    (published.mil53, "C8H4O4", {"CHO2": 2}, {"C": -6, "H": -2, "O": 0}),
    (published.mof74, "C8H2O6", {"CHO2": 2}, {"C": -6, "H": 2, "O": 0}),
]


def load(make):
    ds = from_atoms(make(), system="x")
    return supercell(ds, (1, 1, 2)) if make is published.mil53 else ds


@pytest.mark.parametrize(("make", "linker", "left", "change"), RODS)
def test_remove_blocks__a_linker_of_rods(make, linker, left, change):
    ds = load(make)
    blocks = find_blocks(ds)
    k = int(np.flatnonzero(blocks["formula"].values == linker)[0])
    out = remove_blocks(ds, blocks, [k])
    before, after = (Counter(to_atoms(d, 0).get_chemical_symbols()) for d in (ds, out))
    assert {e: after[e] - before[e] for e in change} == change
    # As many electrons pair as before: what was taken out had an even number of them.
    assert (out["numbers"].values.sum() - ds["numbers"].values.sum()) % 2 == 0
    found = find_blocks(out)
    assert found["charge"].values.sum() == 0
    formulas = Counter(found["formula"].values.tolist())
    assert {f: formulas[f] for f in left} == left
    # Every metal has the donors that it had.
    degree = []
    for d in (ds, out):
        z, x = d["numbers"].values, d["positions"].values
        bonds = bonds_of(z, x, d["cell"].values[0], np.ones(3, bool))
        degree.append(sorted(bonds.degree[IS_METAL[z]].tolist()))
        assert (bonds.degree[z == 1] == 1).all()
    assert degree[0] == degree[1]
    assert set(found["defect_cap"].values) == {"CHO2"}
    here = defect_atoms(found)
    assert Counter(out["numbers"].values[here].tolist()) == {6: 2, 1: 2, 8: 4}
    check_structure(out)


@pytest.mark.parametrize("make", [published.mil53, published.mof74])
def test_disorder__of_rods_draws_linkers_alone(make):
    ds = load(make)
    n = int((find_blocks(ds)["block_n_atoms"].values > 4).sum())
    every = disorder(ds, linker=1.0 / n, exact=True, seed=3)
    assert find_blocks(every)["charge"].values.sum() == 0
    metals = [int(IS_METAL[d["numbers"].values].sum()) for d in (ds, every)]
    assert metals[0] == metals[1]
    # What one missing linker left is no linker that the next draw could remove.
    more = disorder(every, linker=1, seed=1)
    assert Counter(find_blocks(more)["formula"].values.tolist())["CHO2"] == 4


def test_disorder__a_missing_metal_of_a_rod_is_no_neutral_defect():
    with pytest.raises(StructureError, match="the defect would be charged by -3"):
        disorder(load(published.mil53), brick=1, seed=0)
    blocks = find_blocks(load(published.zif))
    ring = int(np.flatnonzero(blocks["formula"].values == "C4H5N2")[0])
    with pytest.raises(StructureError, match="holds its metals by azole"):
        remove_blocks(load(published.zif), blocks, [ring])
