"""Thirty and more frameworks that people use, as a chemist would take them apart.

Files of CoRE MOF 2019 (package `core-mof`) by their names in the Cambridge database, and published
coordinates of those that it lacks. What is expected is what their articles say they are made of.
"""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mofal.errors import StructureError
from mofal.frameworks import find_blocks, read_framework
from tests.clusters.common import benchmark
from tests.frameworks import published_cifs

BDC, ZR6, CU2 = ("C6H4", 0), ("C12H4O32Zr6", 0), ("C4Cu2O8", 0)
OPEN = "open d or f shells"


def rod(metal: str, state: int, ligand: str, count: int, oxide: tuple[str, int] = ("HO", -1)):
    """Blocks of a chain of metals, with one OH and one dianion to each."""
    return {(metal, state): count, oxide: count, (ligand, -2): count}


# Name, file, blocks (formula and charge: how many in the cell), and what the notes say.
NAMED = [
    ("MOF-5", "EDUSIF_clean", {("C6O13Zn4", 0): 2, BDC: 6}, ""),
    ("HKUST-1", "FIQCEN_clean", {CU2: 6, ("C6H3", 0): 8}, OPEN),
    ("UiO-66", "RUBTAK03_auto", {ZR6: 4, BDC: 24}, ""),
    ("UiO-67", "WIZMAV02_auto", {ZR6: 4, ("C12H8", 0): 24}, ""),
    ("MIL-53(Al)", "SABVUN_clean_h_min", rod("Al", 3, "C8H4O4", 16), ""),
    ("MIL-53(Cr)", "MINVUA_SL", rod("Cr", 3, "C8H4O4", 4), OPEN),
    ("MIL-53(Fe)", "YAXBOP_SL", rod("Fe", 3, "C8H4O4", 4), OPEN),
    ("MIL-53(Ga)", "SICDAL_clean", rod("Ga", 3, "C8H4O4", 2), ""),
    ("MIL-53(Al)-NH2", "NAXKOO01_SL", rod("Al", 3, "C8H5NO4", 2), ""),
    ("MIL-47(V)", "IDIWIB_clean", rod("V", 4, "C8H4O4", 4, ("O", -2)), OPEN),
    ("Al(OH)(1,4-ndc)", "WOJJOV_SL", rod("Al", 3, "C12H6O4", 8), ""),
    ("Al-fumarate", "DOYBEA_clean", rod("Al", 3, "C4H2O4", 4), ""),
    ("MFM-300(Al)", "TOXNEB_clean",
     {("Al", 3): 8, ("HO", -1): 8, ("C16H6O8", -4): 4}, ""),
    ("MFM-300(V)", "XAPCOJ03_clean",
     {("V", 3): 8, ("HO", -1): 8, ("C16H6O8", -4): 4}, OPEN),
    ("MIL-101(Cr)", "OCUNAC_manual", {("C6Cr3O13", 1): 68, ("C6H4", 0): 204},
     "anions missing: framework +68"),
    ("Mg-MOF-74", "VOGTIV_clean_h", {("Mg", 2): 6, ("C8H2O6", -4): 3}, ""),
    ("Ni-MOF-74", "LEJRIC_clean", {("Ni", 2): 6, ("C8H2O6", -4): 3}, OPEN),
    ("Zn-MOF-74", "FIJDOS_clean", {("Zn", 2): 6, ("C8H2O6", -4): 3}, ""),
    ("Mn-MOF-74", "ORIWET_clean", {("Mn", 2): 18, ("C8H2O6", -4): 9}, OPEN),
    ("ZIF-8", "OFERUN_clean", {("Zn", 2): 6, ("C4H5N2", -1): 12}, ""),
    ("ZIF-67", "GITTOT_manual", {("Co", 2): 6, ("C4H5N2", -1): 12}, OPEN),
    ("ZIF-4", "VEJYUF01_clean", {("Zn", 2): 16, ("C3H3N2", -1): 32}, ""),
    ("MOF-177", "ERIRIG_auto", {("C6O13Zn4", 0): 8, ("C24H15", 0): 16}, ""),
    ("IRMOF-10", "EDUVOO_clean", {("C6O13Zn4", 0): 2, ("C16H8", 0): 6}, ""),
    ("MOF-505", "LASYOU_clean", {CU2: 3, ("C12H6", 0): 3}, OPEN),
    ("Ni3(btp)2", "UTEWOG_clean", {("Ni", 2): 12, ("C15H9N6", -3): 8}, OPEN),
    ("PCN-222", "BEDYEQ_clean", {("C8O24Zr6", 0): 3, ("C44H24ClFeN4", 0): 6},
     "OH/H2O stripped (Zr 6-coordinate)"),
    ("SIFSIX-3-Zn", "FUDQIF_clean", {("Zn", 2): 1, ("F6Si", -2): 1, ("C4H4N2", 0): 2}, ""),
    ("bio-MOF-1", "NUDLAA_clean",
     {("C4O9Zn4", 2): 2, ("C2O4Zn", 0): 8, ("C5H4N5", -1): 8, ("C12H8", 0): 12},
     "cations missing: framework -4"),
    ("tetramethylammonium cobaltate", "VEGMIE01_charged",
     {("C8Co3O16", -2): 2, ("C6H4", 0): 8, ("C4H12N", 1): 4}, "4 guest molecules"),
    ("phosphotungstate of Cu(I)", "EDORIY_charged",
     {("O40PW12", -3): 4, ("C2H3CuN", 1): 8, ("Cu", 1): 4, ("C10H8N2", 0): 20}, "4 guest"),
    ("samarium nitrilotriacetate", "FAVGOB_clean", None, ""),
    # Its F or OH are not in the file, and all bonds are those of Fe(III).
    ("MIL-100(Fe)", "CIGXIA_manual", None, "anions missing: framework +68"),
    # All Co are bound like Co(II), and its ammonium ions are not in the file.
    ("cobalt oxalate phosphite", "MATHEV_clean",
     {("Co", 2): 8, ("C2O4", -2): 6, ("HO3P", -2): 4}, "cations missing: framework -4"),
    # Two kinds of site with a state each.
    ("copper thiocyanate", "PYDCUT_clean", None, "mixed valence (Cu)"),
    # A cluster whose charges the file leaves open: its composition is what is known.
    ("UTSA-16", "GEBCAT_clean", None, ""),
]  # fmt: skip

# Ends of metals whose protons a program put on by halves: what is said, and with them.
INCOMPLETE = [
    ("NU-1000", "ja4050828_auto", r"4 hydrogens are missing on it \(4 of its 8 OH are water\)",
     {("C8H16O32Zr6", 0): 3, ("C40H22", 0): 6}),
    ("MOF-808", "ja500330a_si_007_auto", r"6 of its 12 OH are water",
     {("C6H22O32Zr6", 0): 16, ("C6H3", 0): 32}),
    ("ZIF-8 without methyl H", "OFERUN06_clean", r"1 neighbour and lacks one",
     {("Zn", 2): 6, ("C4H5N2", -1): 12}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The named files of the package, read out of its archive once."""
    if importlib.util.find_spec("CoRE_MOF") is None:
        pytest.skip("core-mof is not installed (pip install --no-deps core-mof)")
    out = tmp_path_factory.mktemp("core")
    wanted = {row[1] for row in [*NAMED, *INCOMPLETE]}
    archive = benchmark("frameworks_core_mof").archives(None)["2019-ASR.tar.xz"]
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            name = Path(member.name).stem
            if name in wanted:
                handle = tar.extractfile(member)
                assert handle is not None
                (out / f"{name}.cif").write_bytes(handle.read())
    return out


def blocks_of(path: Path, **settings) -> tuple[Counter, str]:
    ds = read_framework(path, **settings)
    blocks = find_blocks(ds)
    found = Counter(zip(blocks["formula"].values.tolist(), blocks["charge"].values.tolist()))
    return found, str(ds.attrs["notes"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "expected", "note"), NAMED, ids=[r[0] for r in NAMED])
def test_read_framework__named(folder, name, file, expected, note):
    found, notes = blocks_of(folder / f"{file}.cif")
    if expected is not None:
        assert found == expected
    assert note in notes
    if not note:
        assert notes == "" or expected is None
    formulas = Counter()
    for (formula, _), count in found.items():
        formulas[formula] += count
    if name == "samarium nitrilotriacetate":
        # Finite cores of two Sm that O-C-O joins, and no rod.
        assert formulas["C4H2O9Sm2"] == 2
        assert sum(charge * count for (_, charge), count in found.items()) == 0
    if name == "MIL-100(Fe)":
        assert formulas == {"C6Fe3O13": 68, "C6H3": 136}
        assert sum(charge * count for (_, charge), count in found.items()) == 68
    if name == "UTSA-16":
        # K Co3 (citrate 4-)(citrate 3-): one of the file's two half H is too many.
        assert formulas == {"K": 4, "Co": 12, "C6H5O7": 8}
        assert "anions missing: framework +4" in notes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file", "said", "expected"), INCOMPLETE)
def test_read_framework__incomplete_ends(folder, name, file, said, expected):
    with pytest.raises(StructureError, match=said):
        read_framework(folder / f"{file}.cif")
    found, notes = blocks_of(folder / f"{file}.cif", add_hydrogens=True)
    assert found == expected, name
    assert "added" in notes


@pytest.mark.slow
def test_read_framework__utsa_16_with_its_protons(folder, tmp_path):
    """One H of every second citrate's alcohol taken away: Co(II) all over, and neutral."""
    import ase.io
    from ase import Atoms

    from mofal.frameworks.bonds import bonds_of

    atoms: Atoms = ase.io.read(folder / "GEBCAT_clean.cif")
    bonds = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    acidic = [int(i) for i, j in zip(bonds.i, bonds.j)
              if atoms.numbers[i] == 1 and atoms.numbers[j] == 8]  # fmt: skip
    assert len(acidic) == 8
    del atoms[acidic[::2]]
    path = tmp_path / "utsa16.extxyz"
    ase.io.write(path, atoms)
    found, notes = blocks_of(path)
    assert found == {("K", 1): 4, ("Co", 2): 12, ("C6H5O7", -3): 4, ("C6H4O7", -4): 4}
    assert "missing" not in notes
    assert "mixed" not in notes


PUBLISHED = [
    ("CALF_20", {("Zn", 2): 4, ("C2H2N3", -1): 4, ("C2O4", -2): 2}, "dropped", {}),
    ("MOF_303", {("Al", 3): 8, ("C5H2N2O4", -2): 8, ("HO", -1): 8}, "", {}),
    ("CAU_10", {("Al", 3): 16, ("HO", -1): 16, ("C8H4O4", -2): 16}, "16 mu2-OH",
     {"add_hydrogens": True}),
    ("MFM_300", {("Al", 3): 8, ("HO", -1): 8, ("C16H6O8", -4): 4}, "8 mu2-OH",
     {"add_hydrogens": True}),
    ("NU_1000", {("C8H16O32Zr6", 0): 3, ("C40H22", 0): 6}, "12 mu3-OH, 12 H2O",
     {"add_hydrogens": True, "alternatives": "major"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected", "note", "settings"), PUBLISHED, ids=[r[0] for r in PUBLISHED]
)
def test_read_framework__published(tmp_path, name, expected, note, settings):
    path = tmp_path / f"{name}.cif"
    path.write_text(getattr(published_cifs, name).cif())
    found, notes = blocks_of(path, **settings)
    assert found == expected
    assert note in notes
    assert sum(charge * count for (_, charge), count in found.items()) == 0
    assert notes or not note


def test_read_framework__published_as_they_stand(tmp_path):
    """Without a word of the user what is disordered or incomplete is refused by name."""
    said = {
        "CAU_10": r"C \(atom \d+\) has 2 neighbours and lacks one \(8 such atoms\).*add-hydrogens",
        "MFM_300": r"\(24 such atoms\).*add-hydrogens",
        "NU_1000": r"site O5 is partly occupied \(0.25\), an alternative of O5A and 1 other site: "
        r"disorder.*alternatives='major'",
    }
    for name, message in said.items():
        path = tmp_path / f"{name}.cif"
        path.write_text(getattr(published_cifs, name).cif())
        with pytest.raises(StructureError, match=message) as error:
            read_framework(path)
        assert len(str(error.value)) < 500


def test_read_framework__nu_1000_has_its_formula(tmp_path):
    """Zr6(mu3-O)4(mu3-OH)4(OH)4(H2O)4(TBAPy)2, TBAPy = C44H22O8, as its authors found it."""
    path = tmp_path / "x.cif"
    path.write_text(published_cifs.NU_1000.cif())
    ds = read_framework(path, alternatives="major", add_hydrogens=True)
    counts = np.bincount(ds["numbers"].values)
    assert {z: int(counts[z]) for z in (1, 6, 8, 40)} == {
        1: 3 * (4 + 4 + 8 + 2 * 22), 6: 3 * 88, 8: 3 * (8 + 8 + 16), 40: 18
    }  # fmt: skip
