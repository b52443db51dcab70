"""Partly occupied sites: dropped, kept, refused, each by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mofal.errors import ConfigError, StructureError
from mofal.frameworks import read_framework
from mofal.frameworks.cif import read_cif
from mofal.frameworks.occupancy import Sites, settle


def cell(rows: str, group: str = "P 1") -> str:
    """A CIF of a cube of 12 Å; rows of label, x, y, z in Å, occupancy, assembly, group."""
    text = f"data_x\n_symmetry_space_group_name_H-M '{group}'\n"
    text += "".join(f"_cell_length_{a} 12\n" for a in "abc")
    text += "".join(f"_cell_angle_{a} 90\n" for a in ("alpha", "beta", "gamma"))
    text += "loop_\n" + "".join(
        f"_atom_site_{c}\n"
        for c in ("label", "fract_x", "fract_y", "fract_z", "occupancy", "disorder_assembly",
                  "disorder_group")
    )  # fmt: skip
    for row in rows.strip().splitlines():
        label, x, y, z, *rest = row.split()
        place = " ".join(f"{float(v) / 12:.6f}" for v in (x, y, z))
        text += " ".join([label, place, *rest, *["1", ".", "."][len(rest) :]]) + "\n"
    return text


def read(tmp_path: Path, rows: str, *, group: str = "P 1", alternatives: str = "major"):
    path = tmp_path / "x.cif"
    path.write_text(cell(rows, group))
    return read_cif(path, alternatives=alternatives)[0]


METAL = "Zn1 6 6 6\nO1 8 6 6\nC1 8.8 7.05 6\n"


def test_settle__guests_that_nothing_binds_are_dropped(tmp_path):
    atoms = read(
        tmp_path, METAL + "O9 1 1 1 0.3\nO8 1 3.5 1 0.3\nH8 1 4.4 1 0.3", alternatives="refuse"
    )
    assert atoms.get_chemical_symbols() == ["Zn", "O", "C"]
    assert atoms.info["reading"] == [
        "dropped partly occupied sites that nothing binds (O9, O8, H8; HO)"
    ]


def test_settle__groups_of_an_assembly(tmp_path):
    """The larger alternative as a whole, also where only one of its atoms is in the way."""
    rows = METAL + (
        "C2A 10.0 7.6 6 0.4 A 1\nC3A 10.6 8.8 6 0.4 A 1\n"
        "C2B 10.1 7.2 6.5 0.6 A 2\nC3B 11.2 7.9 7.1 0.6 A 2"
    )
    atoms = read(tmp_path, rows)
    assert len(atoms) == 5
    assert np.allclose(atoms.positions[3], [10.1, 7.2, 6.5], atol=1e-4)
    assert atoms.info["reading"] == ["kept of alternatives C2B 0.6 (1 places, not C2A)"]
    with pytest.raises(StructureError, match=r"site C2A is partly occupied \(0.4\), an alternative "
                       r"of C2B and 3 other sites: disorder"):  # fmt: skip
        read(tmp_path, rows, alternatives="refuse")


def test_settle__two_elements_on_one_site(tmp_path):
    rows = "Zr1 6 6 6 0.7\nHf1 6 6 6 0.3\nO1 8.1 6 6\nC1 8.9 7.05 6"
    atoms = read(tmp_path, rows)
    assert atoms.get_chemical_symbols() == ["Zr", "O", "C"]
    assert atoms.info["reading"] == ["kept of alternatives Zr1 0.7 (1 places, not Hf1)"]


@pytest.mark.parametrize("group", ["-1", "."])
def test_settle__images_over_a_symmetry_element(tmp_path, group):
    """A CH3 that is turned two ways by a mirror: the atoms of one image, not some of each."""
    rows = (
        METAL.replace("Zn1 6", "Zn1 5.9")
        + f"C2 9.9 7.6 6.3 0.5 A {group}\nO3 10.4 8.6 6.6 0.5 A {group}"
    )
    atoms = read(tmp_path, rows, group="P m")  # unique axis b: the mirror is y -> -y
    assert len(atoms) >= 5
    # And with the mirror through the atoms (z of the rows is y of P m).
    swapped = "\n".join(
        " ".join([w[0], w[1], f"{float(w[3]) - 6:.3f}", w[2], *w[4:]])
        for w in (row.split() for row in rows.splitlines())
    )
    atoms = read(tmp_path, swapped, group="P m")
    y = atoms.positions[:, 1]
    beyond = np.minimum(y, 12 - y) > 0.1
    assert beyond.sum() == 2
    assert len({bool(v > 6) for v in y[beyond]}) == 1


def test_settle__empty_more_often_than_not(tmp_path):
    atoms = read(tmp_path, METAL + "O2 4 6 6 0.2")
    assert len(atoms) == 3
    assert atoms.info["reading"] == ["left out partly occupied O2 0.2"]
    atoms = read(tmp_path, METAL + "O2 4 6 6 0.8")
    assert len(atoms) == 4
    assert atoms.info["reading"] == ["kept partly occupied O2 0.8"]


def test_settle__a_framework_partly_there_as_a_whole_is_no_guest():
    sites = Sites(
        np.array([30, 8], np.int32), np.array([[0.0, 0, 0], [2.0, 0, 0]]), 12 * np.eye(3),
        np.array([0.5, 0.5]), ["Zn1", "O1"], [".", "."], [".", "."], np.array([0, 0]),
    )  # fmt: skip
    keep, notes = settle(sites, "major")
    assert keep.all()
    assert notes == ["kept partly occupied Zn1 0.5"]


def test_read_framework__alternatives_by_name(tmp_path):
    path = tmp_path / "x.cif"
    path.write_text(cell(METAL))
    with pytest.raises(ConfigError, match="alternatives='both': expected refuse or major"):
        read_framework(path, alternatives="both")
