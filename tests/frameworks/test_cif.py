"""CIF: space groups in every setting, and the forms of the format that are met in files."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import gemmi
import numpy as np
import pytest
import spglib
from ase.cell import Cell

from mofal.cli import main
from mofal.data import to_atoms
from mofal.errors import StructureError
from mofal.frameworks import build, find_bonds, read_framework
from mofal.frameworks.bonds import bonds_of
from mofal.frameworks.cif import read_cif
from mofal.frameworks.spacegroups import by_name, settings, symmetry_of
from tests.frameworks import published

DATA = Path(__file__).parent / "data"
SITES = np.array([[0.137, 0.211, 0.083]])
SPGLIB = range(1, 531)


def fitting_cell(rotations: np.ndarray) -> np.ndarray:
    """A cell as general as the rotations allow: an arbitrary metric, averaged over them."""
    a = Cell.fromcellpar([19.0, 21.7, 24.3, 81.0, 97.0, 103.0]).array
    metric = np.mean([w.T @ (a @ a.T) @ w for w in rotations], axis=0)
    return Cell.fromcellpar(Cell(np.linalg.cholesky(metric)).cellpar()).array


def expanded(rotations, translations) -> np.ndarray:
    """Fractions of all images of the site, sorted: (n, 3)."""
    f = np.concatenate([SITES @ w.T + t for w, t in zip(rotations, translations)])
    return distinct(f)


def distinct(f: np.ndarray) -> np.ndarray:
    return np.unique(np.mod(np.round(np.mod(f, 1.0), 6), 1.0), axis=0)


def written(path: Path, cell: np.ndarray, lines: str) -> Path:
    names = [f"_cell_length_{a}" for a in "abc"]
    names += [f"_cell_angle_{a}" for a in ("alpha", "beta", "gamma")]
    body = "\n".join(f"{n} {v:.6f}" for n, v in zip(names, Cell(cell).cellpar()))
    loop = "loop_\n_atom_site_label\n" + "".join(f"_atom_site_fract_{a}\n" for a in "xyz")
    sites = "\n".join(f"Zr{k} " + " ".join(map(str, f)) for k, f in enumerate(SITES))
    path.write_text(f"data_x\n{body}\n{lines}\n{loop}{sites}\n")
    return path


def fractions_of(path: Path) -> np.ndarray:
    return distinct(read_cif(path)[0].get_scaled_positions())


# ------------------------------------------------------------------------------- the cases
def test_read_cif__hermann_mauguin_symbol_with_a_cell_choice():
    ds = read_framework(DATA / "p21n_by_name.cif", rule="azolate")
    assert ds.attrs["formula"] == "C48H48N32Zn8"
    assert ds.sizes["atom"] == 136


def test_read_cif__hall_symbol_before_number():
    atoms = read_cif(DATA / "p21n_number_and_hall.cif")[0]
    d = atoms.get_all_distances(mic=True)
    lead, oxygen = atoms.numbers == 82, atoms.numbers == 8
    assert d[np.ix_(lead, oxygen)].min() == pytest.approx(2.48, abs=0.01)


def test_read_cif__origin_choice_by_hall_symbol():
    path = DATA / "origin_choice_2_by_hall.cif"
    assert str(read_cif(path)[0].symbols.formula.format("hill")) == "C576H96O912Zr96"
    with pytest.raises(StructureError, match=r"hydrogens are missing.*two alternatives"):
        read_framework(path)


def test_read_cif__comment_after_a_tag(capsys):
    path = DATA / "comment_after_loop_tag.cif"
    ds = read_framework(path)
    assert ds.attrs["formula"] == "C192H104O104Zn32" or ds.sizes["atom"] == 424
    assert main(["blocks", str(path)]) == 0


# ---------------------------------------------------------------------------- every setting
def test_symmetry_of__every_setting_as_spglib_has_it(tmp_path):
    """Hall, short and full symbol of all 530 settings give the atoms of spglib's operations."""
    for number in SPGLIB:
        kind = spglib.get_spacegroup_type(number)
        ops = spglib.get_symmetry_from_database(number)
        wanted = expanded(ops["rotations"], ops["translations"])
        cell = fitting_cell(ops["rotations"])
        full = kind.international_full
        choice = kind.choice if kind.choice in ("1", "2", "H", "R") else ""
        ways = [{"_space_group_name_hall": [kind.hall_symbol]}]
        for name in (full, full.replace("_", ""), re.sub(r"[_\s]", "", full)):
            ways.append({"_symmetry_space_group_name_h-m": [f"{name}:{choice}".strip(":")]})
        for values in ways:
            values = {**values, "_space_group_it_number": [str(kind.number)]}
            if not choice and _shared()[kind.number, full] > 1:
                values["_space_group_it_coordinate_system_code"] = [kind.choice]
            found = symmetry_of(Path("x.cif"), values, cell)
            got = expanded(found.rotation, found.translation)
            assert np.array_equal(got, wanted), (number, kind.international, values)
    assert number == 530


@cache
def _shared() -> Counter:
    kinds = [spglib.get_spacegroup_type(k) for k in SPGLIB]
    return Counter((k.number, k.international_full) for k in kinds)


@pytest.mark.slow
def test_read_cif__every_setting_of_gemmi_round_trips(tmp_path):
    for s in settings():
        cell = fitting_cell(s.symmetry.rotation)
        wanted = expanded(s.symmetry.rotation, s.symmetry.translation)
        group = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(s.hall))
        triplets = [o.triplet() for o in gemmi.symops_from_hall(s.hall)]
        listed = "loop_\n_symmetry_equiv_pos_as_xyz\n" + "\n".join(f"'{t}'" for t in triplets)
        name = f"{s.name}:{s.origin}" if s.origin else s.name
        for lines in (
            f"{listed}\n_symmetry_Int_Tables_number {s.number}",
            f'_space_group_name_Hall "{s.hall}"\n_space_group_name_H-M_alt "{name}"',
            f"_space_group_name_H-M_alt '{name}'",
        ):
            path = written(tmp_path / "x.cif", cell, lines)
            assert np.array_equal(fractions_of(path), wanted), (s.name, s.hall, lines)
        assert group is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("F m 3 m", "F m -3 m"), ("Fm3m", "F m -3 m"), ("P a 3", "P a -3"), ("I a 3 d", "I a -3 d"),
        ("C m c e", "C m c a"), ("A e m 2", "A b m 2"), ("Cmme", "C m m a"),
        ("P 2(1)/n", "P 1 21/n 1"),
        ("P2_1/c", "P 1 21/c 1"), ("p 21 21 21", "P 21 21 21"), ("F d -3 m Z", "F d -3 m"),
        ("R -3 m R", "R -3 m"), ("P 4/n :2", "P 4/n"), ("H -3", "R -3"),
        ("P 4/m 2/m 2/m", "P 4/m m m"),
        ("R -3 2/m:H", "R -3 m"), ("F 41/d -3 2/m:2", "F d -3 m"), ("P 42/m -3 2/n", "P m -3 n"),
    ],
)  # fmt: skip
def test_by_name__spellings(old, new):
    assert {s.name for s in by_name(old)} >= {new}
    assert len({s.number for s in by_name(old)}) == 1


@pytest.mark.parametrize("symbol", ["Q 77", "", "F q", "P 21/q", "P 7"])
def test_by_name__none(symbol):
    assert by_name(symbol) == []


# --------------------------------------------------------------------------- what is refused
MONOCLINIC = Cell.fromcellpar([9.0, 14.0, 11.0, 90, 98.0, 90]).array
CUBIC = np.eye(3) * 20
HEXAGONAL = Cell.fromcellpar([20, 20, 12, 90, 90, 120]).array
RHOMBOHEDRAL = Cell.fromcellpar([12, 12, 12, 81, 81, 81]).array
REFUSED = {
    "number alone, cell choice": (
        MONOCLINIC, {"number": "14"}, r"P 1 21/c 1 .*P 1 21/n 1 .*P 1 21/a 1"
    ),
    "number alone, origin": (CUBIC, {"number": "227"}, r"F d -3 m:1 .*F d -3 m:2"),
    "number alone, axes permuted": (
        np.diag([9.0, 10, 11]), {"number": "62"}, r"P n m a .*P b n m"
    ),
    "number alone, no axes of R fit": (
        MONOCLINIC, {"number": "166"}, r"does not fit .*R -3 m:H, R -3 m:R"
    ),
    "symbol alone, origin": (CUBIC, {"name": "F d -3 m"}, r"F d -3 m:1 .*F d -3 m:2"),
    "symbol and number": (MONOCLINIC, {"name": "P 21/c", "number": "15"}, "disagree"),
    "Hall symbol and number": (MONOCLINIC, {"hall": "-P 2yn", "number": "15"}, "disagree"),
    "Hall symbol and symbol": (MONOCLINIC, {"hall": "-P 2yn", "name": "P 21/c"}, "disagree"),
    "operations and Hall symbol": (
        MONOCLINIC, {"ops": "x,y,z;-x,-y,-z", "hall": "-P 2yn"}, r"listed \(P -1\).*disagree"
    ),
    "operations and symbol": (
        MONOCLINIC, {"ops": "x,y,z;-x,-y,-z", "name": "P 21/c"}, r"listed \(P -1\).*disagree"
    ),
    "operations and number": (CUBIC, {"ops": "x,y,z", "number": "225"}, "disagree"),
    "operations without a product": (
        MONOCLINIC, {"ops": "x,y,z;-x,y+1/2,-z+1/2;-x,-y,-z"}, "are no group"
    ),
    "operations and cell": (MONOCLINIC, {"ops": "x,y,z;y,x,-z"}, "do not fit the cell"),
    "symbol and cell": (MONOCLINIC, {"name": "F m -3 m"}, "does not fit the cell"),
    "Hall symbol and cell": (HEXAGONAL, {"hall": "P 4 2"}, "do not fit the cell"),
    "unknown symbol": (CUBIC, {"name": "Q 77"}, "'Q 77' is not known"),
    "unknown number": (CUBIC, {"number": "231"}, "'231' is not known"),
    "magnetic operations": (CUBIC, {"magnetic": "x,y,z,+1"}, "magnetic operations only"),
}  # fmt: skip
TAGS = {
    "number": "_symmetry_Int_Tables_number", "name": "_symmetry_space_group_name_H-M",
    "hall": "_symmetry_space_group_name_Hall", "ops": "_symmetry_equiv_pos_as_xyz",
    "magnetic": "_space_group_symop_magn_operation.xyz",
}  # fmt: skip


def said(**parts: str) -> str:
    out = []
    for key, value in parts.items():
        if key in ("ops", "magnetic"):
            out.append(f"loop_\n{TAGS[key]}\n" + "\n".join(f"'{v}'" for v in value.split(";")))
        else:
            out.append(f"{TAGS[key]} '{value}'")
    return "\n".join(out)


@pytest.mark.parametrize("name", REFUSED)
def test_read_cif__refused(tmp_path, name):
    cell, parts, message = REFUSED[name]
    path = written(tmp_path / "x.cif", cell, said(**parts))
    with pytest.raises(StructureError, match=message) as error:
        read_cif(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("cell", "parts", "count"),
    [
        (RHOMBOHEDRAL, {"number": "166"}, 12), (HEXAGONAL, {"number": "166"}, 36),
        (HEXAGONAL, {"name": "R -3 m"}, 36), (CUBIC, {"number": "225"}, 192),
        (MONOCLINIC, {"number": "10"}, 4), (MONOCLINIC, {"name": "P 21/n"}, 4),
        (MONOCLINIC, {"hall": "-P 2yn", "name": "P 21/n", "number": "14"}, 4),
        (MONOCLINIC, {"ops": "x,y,z;-x,-y,-z", "name": "unheard of"}, 2),
        # Inversion off the origin: no table has this setting, its point group is that of P -1.
        (MONOCLINIC, {"ops": "x,y,z;0.1-x,-y,-z", "number": "2"}, 2),
        (MONOCLINIC, {"hall": "nonsense", "name": "P 21/n"}, 4), (CUBIC, {}, 1),
    ],
)  # fmt: skip
def test_read_cif__accepted(tmp_path, cell, parts, count):
    assert len(read_cif(written(tmp_path / "x.cif", cell, said(**parts)))[0]) == count


# ------------------------------------------------------------------------------------ forms
def test_read_cif__whatever_the_format_allows(tmp_path):
    plain = written(tmp_path / "a.cif", MONOCLINIC, said(name="P 21/n"))
    wanted = read_cif(plain)[0]
    text = plain.read_text()
    odd = text.replace("_atom_site_label\n", "_atom_site_label # tag\n\n  # a line of its own\n")
    odd = odd.replace("Zr0 ", "'Zr0#1' ").replace("_cell_length_a", "_CELL_LENGTH_A")
    odd = re.sub(r"_cell_length_b (\S+)", r"_cell_length_b\n\1(3)", odd)
    odd = "# before\n\n" + odd.replace(
        "data_x\n",
        "data_global\n_note\n;\nloop_\n_atom_site_fract_x\n0.5\n;\ndata_x\n_title 'it''s'\n",
    )
    odd += "\n\n_end\n#END\n"
    path = tmp_path / "b.cif"
    path.write_text(odd.replace("'it''s'", '"it\'s"').replace("\n", "\r\n"))
    found = read_cif(path)
    assert len(found) == 1
    assert np.allclose(found[0].positions, wanted.positions, atol=1e-4)
    second = text.replace("data_x", "data_y")
    path.write_text(text + second)
    assert len(read_cif(path)) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("_cell_length_a", "_cell_length_a 5.0\n_cell_length_a", "_cell_length_a stands twice"),
        ("Zr0 0.137", "Zr0 0.137 0.1", "cannot be read as CIF.*loop"),
        ("_cell_length_b 14", "_cell_length_b '14", "cannot be read as CIF"),
    ],
)
def test_read_cif__malformed(tmp_path, old, new, message):
    path = written(tmp_path / "x.cif", MONOCLINIC, "")
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(StructureError, match=message) as error:
        read_cif(path)
    assert "\n" not in str(error.value)


def test_read_cif__tags_of_mmcif(tmp_path):
    path = written(tmp_path / "x.cif", MONOCLINIC, said(name="P 21/n"))
    wanted = read_cif(path)[0]
    path.write_text(
        path.read_text().replace("_cell_", "_cell.").replace("_atom_site_", "_atom_site.")
    )
    assert np.allclose(read_cif(path)[0].positions, wanted.positions)


def test_find_bonds__of_a_case():
    ds = read_framework(DATA / "p21n_by_name.cif", rule="azolate")
    zinc = to_atoms(ds, 0).numbers == 30
    pair = find_bonds(ds)["bond_atom"].values
    assert np.bincount(pair[zinc[pair]].ravel(), minlength=len(zinc))[zinc].tolist() == [4] * 8


@pytest.mark.parametrize("said", ["P 1 21/n 1", "P 1 21/n 1  # a comment", "'P 1 21/n 1'"])
def test_read_cif__symbols_without_quotes(tmp_path, said):
    path = written(tmp_path / "x.cif", MONOCLINIC, f"_symmetry_space_group_name_H-M   {said}")
    assert len(read_cif(path)[0]) == 4


def test_read_framework__merges_what_is_one_atom(tmp_path):
    """Exact duplicates and images that just miss a mirror: merged, in the middle, and said."""
    atoms = published.mof5()
    twice = atoms + atoms[[5, 9]]
    twice.positions[-1] += [0.1, 0.0, 0.1]
    path = tmp_path / "x.cif"
    twice.write(path)
    ds = read_framework(path)
    assert ds.sizes["atom"] == 424
    assert "2 atoms merged" in ds.attrs["notes"]
    assert np.allclose(ds["positions"].values[9], atoms.positions[9] + [0.05, 0, 0.05], atol=1e-4)


def test_read_framework__stretched_hydroxide(tmp_path):
    atoms = to_atoms(build("S_pr", cell="primitive"), 0)
    bonds = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    for k in np.flatnonzero(atoms.numbers == 1).tolist():
        edge = bonds.indptr[k]
        oxygen = bonds.j[edge]
        if atoms.numbers[oxygen] == 8:
            bond = atoms.positions[oxygen] + bonds.shift[edge] @ atoms.cell.array
            atoms.positions[k] += 0.32 / 0.97 * (atoms.positions[k] - bond)
    path = tmp_path / "x.cif"
    atoms.write(path)
    assert read_framework(path).attrs["notes"] == ""


def test_every_command_reads_a_cif_alike(tmp_path, monkeypatch, capsys):
    """R-3 on rhombohedral axes, which ASE's reader refuses: labels, with spglib for the group."""
    from mofal.data import read
    from mofal.frameworks import read_structures

    path = tmp_path / "water.cif"
    cell = Cell.fromcellpar([9.0, 9.0, 9.0, 80.0, 80.0, 80.0]).array
    operations = ["x,y,z", "z,x,y", "y,z,x", "-x,-y,-z", "-z,-x,-y", "-y,-z,-x"]
    lines = "loop_\n_space_group_symop_operation_xyz\n" + "\n".join(f"'{o}'" for o in operations)
    written(path, cell, lines)
    water = np.array([[0.3, 0.2, 0.1], [0.38, 0.16, 0.04], [0.34, 0.28, 0.16]])
    sites = "\n".join(f"{e} {x} {y} {z}" for e, (x, y, z) in zip(["O1", "H1", "H2"], water))
    text = path.read_text()
    path.write_text(text[: text.index("Zr0")] + sites + "\n")

    made = to_atoms(read_structures(path), 0)
    assert str(made.symbols.formula.count()) == "{'O': 6, 'H': 12}"
    group = spglib.get_spacegroup((made.cell.array, made.get_scaled_positions(), made.numbers))
    assert group == "R-3 (148)"
    monkeypatch.chdir(tmp_path)
    assert main(["label", "water.cif", "--workers", "1"]) == 0
    labelled = read("water.cif.labelled.extxyz")
    assert np.array_equal(labelled["positions"].values, read_structures(path)["positions"].values)
    # Forces have the symmetry that the file states: of equal size on all images of a site.
    size = np.linalg.norm(labelled["forces"].values, axis=1).reshape(3, -1)
    assert np.allclose(size, size[:, :1], atol=1e-4)
    path.write_text(path.read_text().replace("0.3 0.2 0.1", "0.3 ? 0.1"))
    assert main(["label", "water.cif", "--workers", "1"]) == 1
    assert "water.cif: " in capsys.readouterr().err
