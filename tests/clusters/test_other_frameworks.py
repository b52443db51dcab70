"""Clusters of frameworks other than UiO-66, from published structures."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from ase.data import covalent_radii

from mofal.clusters import cut
from mofal.data import from_atoms
from mofal.frameworks import find_blocks
from tests.clusters.common import cluster, cores_of
from tests.frameworks import published

# framework, rule, formula of the core, shells -> atoms, electrons, charge
TABLE = [
    ("mof5", "carboxylate", "C6O13Zn4", 0, 29, 266, 0),
    ("mof5", "carboxylate", "C6O13Zn4", 1, 89, 506, 0),
    ("mof5", "carboxylate", "C6H4", 1, 66, 570, 0),
    ("mil125", "carboxylate", "C12H4O36Ti8", 1, 192, 1032, 0),
    ("mil125", "carboxylate", "C6H4", 1, 152, 1142, 0),
    # A zinc ion cannot be capped: its four 2-methylimidazolates come along, each with a proton.
    ("zif", "azolate", "Zn", 0, 49, 204, 2),
    ("zif", "azolate", "Zn", 1, 49, 204, 2),
    ("zif", "azolate", "C4H5N2", 0, 13, 44, 1),
    ("zif", "azolate", "C4H5N2", 1, 85, 364, 3),
    # Nothing takes the place of a neutral pillar: the metal's end stays open.
    ("dmof", "pillar", "C4O8Zn2", 0, 18, 152, 0),
    ("dmof", "pillar", "C4O8Zn2", 1, 98, 436, 0),
    ("dmof", "pillar", "C6H12N2", 1, 56, 366, 0),
]


def _load(name, rule):
    ds = from_atoms(getattr(published, name)(), system=name)
    return ds, find_blocks(ds, rule=rule)


@pytest.mark.parametrize(
    ("name", "rule", "core", "shells", "n_atoms", "n_electrons", "charge"), TABLE
)
def test_cut__published(name, rule, core, shells, n_atoms, n_electrons, charge):
    ds, blocks = _load(name, rule)
    first = int(np.flatnonzero(blocks["formula"].values == core)[0])
    clusters, refused = cut(ds, {name: blocks}, cores_of([0], [first]), shells=shells)
    assert refused["reason"].values.tolist() == []
    assert int(clusters["n_atoms"][0]) == n_atoms
    assert int(clusters["n_electrons"][0]) == n_electrons
    assert int(clusters["charge"][0]) == charge
    one = cluster(clusters, 0)
    z, x = one["numbers"], one["positions"]
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    limit = 1.3 * (covalent_radii[z][:, None] + covalent_radii[z][None])
    assert nx.is_connected(nx.from_numpy_array((distance < limit) & (distance > 0)))


@pytest.mark.parametrize(
    ("name", "metal", "unpaired", "n_electrons", "n_unpaired"),
    [("hkust1", "Cu", 1, 150, 2), ("mil88b", "Cr", 3, 247, 9)],
)
def test_cut__published_open_shells(name, metal, unpaired, n_electrons, n_unpaired):
    """A copper paddlewheel is even and open; a chromium trimer is odd, which three d3 explain."""
    ds, blocks = _load(name, "carboxylate")
    node = int(np.flatnonzero(blocks["role"].values == "node")[0])
    core = cores_of([0], [node])
    clusters, refused = cut(ds, {name: blocks}, core, shells=0)
    assert clusters.sizes["structure"] == 0
    assert f"on {metal}" in str(refused["reason"].values[0])
    assert int(refused["n_electrons"][0]) == n_electrons
    clusters, _ = cut(ds, {name: blocks}, core, shells=0, unpaired={metal: unpaired})
    assert int(clusters["n_unpaired"][0]) == n_unpaired
    # Linkers hold no metal: they need no spin.
    linker = int(np.flatnonzero(blocks["role"].values == "linker")[0])
    clusters, _ = cut(ds, {name: blocks}, cores_of([0], [linker]), shells=0)
    assert not clusters["open_shell"].values.any()


def test_cut__published_wrong_spin_is_refused():
    ds, blocks = _load("mil88b", "carboxylate")
    node = int(np.flatnonzero(blocks["role"].values == "node")[0])
    _, refused = cut(ds, {"mil88b": blocks}, cores_of([0], [node]), shells=0, unpaired={"Cr": 0})
    assert "odd number of electrons: 247, with 0 unpaired" in str(refused["reason"].values[0])
