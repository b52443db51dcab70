"""Files: what is accepted and how it is named; thirty and more that are refused, each by name."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from mofal.data import from_atoms, to_atoms, write
from mofal.errors import ConfigError, MofalError, StructureError
from mofal.frameworks import build, check_structure, find_blocks, read_framework
from mofal.frameworks.bonds import bonds_of
from mofal.frameworks.cif import read_cif
from mofal.frameworks.spacegroups import parse_operation
from mofal.frameworks.symmetry import inorganic_bridges
from tests.frameworks import published


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def uio66(**kwargs) -> Atoms:
    return to_atoms(build("S_pr", **kwargs), 0)


def dehydroxylated() -> Atoms:
    """432 atoms: two of the four mu3-OH of each brick leave as water."""
    ds = build("S_pr")
    z = ds["numbers"].values
    bridge = np.flatnonzero(inorganic_bridges(ds))
    atoms = to_atoms(ds, 0)
    bonds = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    hydrogens = [k for k in bridge if z[k] == 1]
    owner = {h: int(bonds.j[bonds.indptr[h]]) for h in hydrogens}
    gone = list(hydrogens)
    for brick in range(4):
        mine = [h for h in hydrogens if h // 54 == brick]
        gone += [owner[h] for h in mine[:2]]
    del atoms[gone]
    return atoms


def without_mu3_hydrogens() -> Atoms:
    """440 atoms: the H of the mu3-OH forgotten."""
    ds = build("S_pr")
    atoms = to_atoms(ds, 0)
    z = ds["numbers"].values
    del atoms[[k for k in np.flatnonzero(inorganic_bridges(ds)) if z[k] == 1]]
    return atoms


# --------------------------------------------------------------------------- accepted
def test_read_framework__round_trip(tmp_path):
    path = tmp_path / "frame.extxyz"
    ds = build("S_ld")
    write(ds, path)
    back = read_framework(path)
    assert back["structure_id"].values[0] == ds["structure_id"].values[0]
    assert back.attrs["notes"] == ""
    assert back.attrs["formula"] == "C186H110O128Zr24"
    assert str(back["system"].values[0]) == "frame"
    assert str(read_framework(path, system="S_ld")["system"].values[0]) == "S_ld"


@pytest.mark.parametrize("ending", ["cif", "vasp", "extxyz", "json", "traj"])
def test_read_framework__any_format(tmp_path, ending):
    path = tmp_path / f"mof5.{ending}"
    ase.io.write(path, published.mof5(), **({"direct": True} if ending == "vasp" else {}))
    ds = read_framework(path)
    assert ds.sizes["atom"] == 424
    assert find_blocks(ds).sizes["block"] == 32


def test_read_framework__dehydroxylated_is_named(tmp_path):
    path = tmp_path / "dehydroxylated.cif"
    atoms = dehydroxylated()
    assert len(atoms) == 432
    ase.io.write(path, atoms)
    ds = read_framework(path)
    assert ds.attrs["notes"] == "dehydroxylated"
    blocks = find_blocks(ds)
    assert set(blocks["charge"].values.tolist()) == {0}
    assert "C12O30Zr6" in blocks["formula"].values


def test_read_framework__forgotten_hydrogens_have_even_electrons_and_are_refused(tmp_path):
    path = tmp_path / "forgotten.cif"
    atoms = without_mu3_hydrogens()
    assert len(atoms) == 440
    assert atoms.numbers.sum() % 2 == 0
    ase.io.write(path, atoms)
    with pytest.raises(StructureError, match="formal charge -4 per brick C12O32Zr6") as error:
        read_framework(path)
    assert "4 hydrogens are missing" in str(error.value)
    assert "charge=-16" in str(error.value)
    # Who means it may say so.
    assert read_framework(path, charge=-16).sizes["atom"] == 440
    assert read_framework(path, charge=None).sizes["atom"] == 440


def test_read_framework__symmetry_and_rounded_special_positions(tmp_path):
    # 0.3333 instead of 1/3: images of one site miss each other by 0.002 Å, and are one atom.
    text = """data_mil88b
_cell_length_a 15.6261
_cell_length_b 15.6261
_cell_length_c 15.9604
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_Int_Tables_number 194
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cr1 Cr3+ 0.7385513 0.4771026 0.75 1
O1 O2- 0.6667 0.3333 0.75 1.0
O2 O 0.6585354 0.4841042 0.8350334 .
O3 O 0.808658 0.6173159 0.75 1
C1 C 0.5723107 0.4276893 0.8636902 1
C2 C 0.535443 0.464557 0.933739 1
C3 C 0.4401451 0.4052841 0.9674038 1
H1 D 0.3922223 0.3318028 0.9433881 1
"""
    path = tmp_path / "mil88b.cif"
    path.write_text(text)
    ds = read_framework(path, charge=None)
    assert ds.attrs["formula"] == "C48H24Cr6O32"
    blocks = find_blocks(ds)
    assert sorted(set(blocks["formula"].values.tolist())) == ["C6Cr3O16", "C6H4"]


def test_check_structure__a_charge_that_guests_balance():
    # The cationic trimers of MIL-88B with one loose chloride each: neutral as a whole.
    atoms = published.mil88b(terminal="cation")
    with pytest.raises(StructureError, match=r"formal charge \+1 per brick.*anion is missing"):
        check_structure(from_atoms(atoms, system="x"), rule="carboxylate")
    # Under `auto` it is a note.
    noted = check_structure(from_atoms(atoms, system="x"))
    assert "anions missing: framework +2 (+1 per brick" in noted.attrs["notes"]
    blocks = find_blocks(from_atoms(atoms, system="x"))
    of_node = blocks["role"].values == "node"
    assert blocks["charge"].values[of_node].tolist() == [1, 1]
    # Above and below the trimers, where the channels are wide.
    f = atoms.get_scaled_positions(wrap=False)
    assert len(f) == 122
    free = _emptiest(atoms, 2)
    salt = atoms + Atoms("Cl2", positions=free)
    checked = check_structure(from_atoms(salt, system="x"))
    assert checked["charge"].values.sum() == 0
    assert "2 guest molecules" in checked.attrs["notes"]


def _emptiest(atoms: Atoms, count: int) -> np.ndarray:
    """Points far from all atoms and from each other."""
    from ase.geometry import get_distances

    axis = np.linspace(0, 1, 12, endpoint=False)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    points = grid @ atoms.cell.array
    chosen = np.zeros((0, 3))
    for _ in range(count):
        others = np.vstack([atoms.positions, chosen])
        d = get_distances(points, others, cell=atoms.cell, pbc=True)[1].min(axis=1)
        chosen = np.vstack([chosen, points[d.argmax()]])
    return chosen


# --------------------------------------------------------------------------- refused
CIF = """data_test
_cell_length_a {a}
_cell_length_b 10
_cell_length_c 10
_cell_angle_alpha {alpha}
_cell_angle_beta 90
_cell_angle_gamma {gamma}
_symmetry_space_group_name_H-M 'P 1'
loop_
_symmetry_equiv_pos_as_xyz
'{op}'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Zr1 Zr 0.1 0.1 0.1 1.0
{label} {symbol} {x} {y} {z} {occupancy}
"""
DEFAULTS = {
    "a": 10, "alpha": 90, "gamma": 90, "op": "x,y,z", "label": "C2", "symbol": "C", "x": 0.5,
    "y": 0.5, "z": 0.5,
    "occupancy": 1.0,
}  # fmt: skip


def cif(**changes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "bad.cif"
        path.write_text(CIF.format(**{**DEFAULTS, **changes}))
        return path

    return make


def text(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
        return path

    return make


def atoms_file(make_atoms: Callable[[], Atoms], name="bad.extxyz") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        ase.io.write(path, make_atoms())
        return path

    return make


def plain(atoms: Atoms) -> Atoms:
    """Without the names that would be written along."""
    atoms.info.clear()
    return atoms


def edited(change: Callable[[Atoms], Atoms | None], **kwargs) -> Callable[[Path], Path]:
    def make_atoms() -> Atoms:
        atoms = uio66(**kwargs)
        return plain(change(atoms) or atoms)

    return atoms_file(make_atoms)


def no_cell(atoms: Atoms) -> Atoms:
    return Atoms(atoms.numbers, positions=atoms.positions)


def not_periodic(atoms: Atoms) -> None:
    atoms.pbc = False


def flat_cell(atoms: Atoms) -> None:
    atoms.cell[2] = atoms.cell[0] + atoms.cell[1]


def far_out(atoms: Atoms) -> None:
    atoms.positions[7, 0] = 1e12


def open_above(atoms: Atoms) -> None:
    atoms.pbc = (True, True, False)


def fractions(atoms: Atoms) -> None:
    atoms.positions = atoms.get_scaled_positions()


def nanometres(atoms: Atoms) -> None:
    atoms.set_cell(atoms.cell.array / 10, scale_atoms=True)


def picometres(atoms: Atoms) -> None:
    atoms.set_cell(atoms.cell.array * 100, scale_atoms=True)


def twice(atoms: Atoms) -> Atoms:
    return atoms + atoms[[10]]


def alternatives(atoms: Atoms) -> Atoms:
    extra = atoms[[300]]
    extra.positions += [0.35, 0.2, 0.1]
    return atoms + extra


def linkers_only(atoms: Atoms) -> Atoms:
    return atoms[4 * 54 :]


def no_hydrogen(atoms: Atoms) -> Atoms:
    return atoms[atoms.numbers != 1]


def no_ring_hydrogen(atoms: Atoms) -> None:
    del atoms[[k for k in range(4 * 54, len(atoms)) if atoms.numbers[k] == 1]]


def one_hydrogen_less(atoms: Atoms) -> None:
    del atoms[len(atoms) - 1]


def stray_hydrogen(atoms: Atoms) -> Atoms:
    return atoms + Atoms("H", positions=[[5.1875, 5.1875, 5.1875]])


def crowded_carbon(atoms: Atoms) -> Atoms:
    # Two carbons above and below a ring carbon: the ring lies in the xy plane.
    return atoms + Atoms("C2", positions=atoms.positions[4 * 54] + [[0, 0, 1.5], [0, 0, -1.5]])


def methyl_without_hydrogen(atoms: Atoms) -> Atoms:
    atoms.numbers[-1] = 6
    return atoms


def zirconia(atoms: Atoms) -> Atoms:
    keep = list(range(18))
    return Atoms(atoms.numbers[keep], positions=atoms.positions[keep] + 8, cell=[16] * 3, pbc=True)


def water_without_hydrogen() -> Atoms:
    """HKUST-1 whose axial water lost its H: one O on each Cu."""
    atoms = published.hkust1()
    cut = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    new = []
    for k in np.flatnonzero(atoms.numbers == 29).tolist():
        span = slice(cut.indptr[k], cut.indptr[k + 1])
        near = atoms.positions[cut.j[span]] + cut.shift[span] @ atoms.cell.array
        out = atoms.positions[k] - near.mean(axis=0)
        new.append(atoms.positions[k] + 2.17 * out / np.linalg.norm(out))
    return atoms + Atoms(["O"] * len(new), positions=new)


def anionic_nodes() -> Atoms:
    """Paddlewheels of Li(I): anions without any O that could carry a hydrogen."""
    atoms = published.hkust1()
    atoms.numbers[atoms.numbers == 29] = 3
    return atoms


def aniline_without_hydrogen(atoms: Atoms) -> Atoms:
    hydrogens = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    gone = [
        k for k in np.flatnonzero(atoms.numbers == 1).tolist()
        if atoms.numbers[hydrogens.j[hydrogens.indptr[k]]] == 7
    ]  # fmt: skip
    del atoms[gone]
    return atoms


def guest_oxygen(atoms: Atoms) -> Atoms:
    return atoms + Atoms("O", positions=[[10.375, 10.375, 10.375]])


def in_the_pore(symbols: str, *positions: tuple[float, float, float]):
    """A group of atoms in the middle of UiO-66, Å."""
    return edited(lambda atoms: atoms + Atoms(symbols, positions=np.array(positions) + 10.375))


def benzyl(atoms: Atoms) -> Atoms:
    """A CH2 that lacks its third H, flat, in the place of the last ring H."""
    near = atoms.get_distances(len(atoms) - 1, range(len(atoms)), mic=True)
    ring = int(np.argsort(near)[1])
    out = atoms.get_distance(ring, len(atoms) - 1, mic=True, vector=True)
    out /= np.linalg.norm(out)
    other = next(k for k in range(len(atoms) - 1) if atoms.numbers[k] == 6 and k != ring
                 and atoms.get_distance(ring, k, mic=True) < 1.5)  # fmt: skip
    side = atoms.get_distance(ring, other, mic=True, vector=True)
    side -= (side @ out) * out
    side /= np.linalg.norm(side)
    c = atoms.positions[ring] + 1.50 * out
    new = [c, *(c + 1.09 * (0.5 * out + s * 0.866 * side) for s in (1, -1))]
    del atoms[len(atoms) - 1]
    return atoms + Atoms("CH2", positions=new)


def two_frames(folder: Path) -> Path:
    path = folder / "two.extxyz"
    ase.io.write(path, [uio66(), uio66()])
    return path


def nan_position(folder: Path) -> Path:
    path = edited(lambda a: None, cell="primitive")(folder)
    lines = path.read_text().splitlines()
    fields = lines[5].split()
    lines[5] = " ".join([fields[0], "nan", *fields[2:]])
    path.write_text("\n".join(lines) + "\n")
    return path


def nan_cell(folder: Path) -> Path:
    path = edited(lambda a: None, cell="primitive")(folder)
    body = path.read_text()
    start = body.index('Lattice="') + len('Lattice="')
    path.write_text(body[:start] + "nan" + body[body.index(" ", start) :])
    return path


def zero_vector(folder: Path) -> Path:
    path = folder / "zero.extxyz"
    atoms = uio66(cell="primitive")
    atoms.cell[2] = 0.0
    ase.io.write(path, atoms)
    body = path.read_text()
    assert 'pbc="T T T"' in body
    return path


def truncated(folder: Path) -> Path:
    path = edited(lambda a: None)(folder)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:100]) + "\n")
    return path


# How to make it, what is said; and the rule, where it is not `auto`.
MALFORMED: dict[str, tuple] = {
    "missing file": (lambda f: f / "nothing.cif", "does not exist"),
    "directory": (lambda f: f, "is a directory"),
    "empty file": (text("empty.cif", ""), "is empty"),
    "empty xyz": (text("empty.xyz", ""), "is empty"),
    "not text": (text("noise.xyz", bytes(range(256))), "cannot be read"),
    "unknown format": (text("notes.dat", "hello\nworld\n"), "cannot be read"),
    "CIF without sites": (text("no.cif", "data_x\n_cell_length_a 5\n"), "no atomic sites"),
    "CIF that is a web page": (
        text("page.cif", "<html>404: not found</html>"), "does not begin with data_"
    ),
    "CIF that is prose": (text("prose.cif", "this is not a CIF\n"), "CIF"),
    "partial occupancy": (
        cif(occupancy=0.5, x=0.35, symbol="O", label="O2", y=0.1, z=0.1),
        r"site O2 is partly occupied \(0.5\)"
    ),
    "occupancy above one": (cif(occupancy=1.5), "site C2 has occupancy 1.5"),
    "occupancy in words": (cif(occupancy="half"), "site C2 has occupancy 'half'"),
    "unknown coordinate": (cif(x="?"), "site C2 has no position"),
    "unknown element": (cif(symbol="Xx", label="Xx1"), "site Xx1 is of element 'Xx'"),
    "dummy atom": (cif(symbol="X", label="X1"), "site X1 is of element 'X'"),
    "negative cell length": (cif(a=-10), "_cell_length_a is -10"),
    "cell length of zero": (cif(a=0), "_cell_length_a is 0"),
    "cell length missing": (cif(a="?"), "_cell_length_a is '\\?'"),
    "angle of 180": (cif(gamma=180), "_cell_angle_gamma is 180"),
    "angles that meet at no corner": (cif(alpha=170, gamma=170), "angles of 170, 90, 170"),
    "fraction beyond all digits": (cif(x="1e30"), r"site C2 has no position.*1e\+30"),
    "symmetry of two parts": (cif(op="x,y"), "operation cannot be read.*expected 3"),
    "symmetry with a letter too many": (cif(op="x,y,q"), "'q' is no sum of x, y, z"),
    "symmetry that is no rotation": (cif(op="x,x,z"), "is no rotation"),
    "truncated xyz": (truncated, "cannot be read"),
    "several structures": (two_frames, "holds 2 structures.*index=0"),
    "no cell": (edited(no_cell), "no cell is given"),
    "cell but not periodic": (edited(not_periodic), 'pbc="T T T"'),
    "zero cell vector": (zero_vector, "cell vector 2 is zero|no volume|not a number"),
    "flat cell": (edited(flat_cell), "no volume"),
    "position not a number": (nan_position, "position of atom 3.*not a number"),
    "atom far out": (edited(far_out), r"atom 7 lies at 1e\+12"),
    "not periodic along one vector": (
        edited(open_above, cell="primitive"), "periodic along cell vector 2 too"
    ),
    "cell not a number": (nan_cell, "cell holds a value"),
    "fractions as positions": (edited(fractions), "look like fractions"),
    "cell in nm": (edited(nanometres), "no solid is as dense"),
    "cell in pm": (edited(picometres), "no framework is as empty"),
    "atom there twice": (edited(twice), r"O \(atom 10\) and O \(atom 456\).*there twice"),
    "both alternatives of a site": (edited(alternatives), "two alternatives of a disordered site"),
    "no metal": (edited(linkers_only), "no metal in it"),
    "no carbon": (edited(zirconia), "no carbon in it"),
    "mu3-OH hydrogens missing": (
        atoms_file(without_mu3_hydrogens), "formal charge -4 per brick C12O32Zr6"
    ),
    "no hydrogens at all": (edited(no_hydrogen), r"C \(atom \d+\) has 2 neighbours and lacks one"),
    "ring hydrogens missing": (edited(no_ring_hydrogen), r"\(96 such atoms\): hydrogens"),
    "one hydrogen missing": (edited(one_hydrogen_less), r"\(1 such atoms\): hydrogens"),
    "water without hydrogens": (
        atoms_file(water_without_hydrogen), "formal charge -4 per brick C4Cu2O10"
    ),
    "amine without hydrogens": (
        edited(aniline_without_hydrogen, linker="BDC-NH2"), "per linker C6H3N.*2 hydrogens"
    ),
    "methyl without hydrogens": (edited(methyl_without_hydrogen), "1 neighbour and lacks"),
    "guest without hydrogens": (edited(guest_oxygen), "formal charge -2 per guest molecule O"),
    "stray hydrogen": (edited(stray_hydrogen), "bonded to nothing"),
    "phosphate in two orientations": (
        in_the_pore("PO8", (0, 0, 0), *(0.88 * np.array(list(np.ndindex(2, 2, 2))) * 2 - 0.88)),
        r"P \(atom 456\) has 8 bonds .1 such atoms.: two alternatives",
    ),
    "oxygen in two places": (in_the_pore("O2", (0, 0, 0), (1, 0, 0)), "are 1.00 Å apart.*keep one"),
    "chloride in two places": (
        in_the_pore("ZnCl2", (0, 0, 0), (2, 1, 0), (2, -1, 0)), "Cl.*2.00 Å apart.*keep one"
    ),
    "cyanide on a centre": (
        in_the_pore("LiC2Li", (-2.7, 0, 0), (-0.58, 0, 0), (0.58, 0, 0), (2.7, 0, 0)),
        r"1.16 Å apart with metals on both \(1 such pairs\): a cyanide",
    ),
    "hydrogen between two places": (
        in_the_pore("NHNH", (-2, 0, 0), (-1, 0, 0), (1.6, 0, 0), (0.6, 0, 0)),
        r"on two atoms, are 1.60 Å apart .1 such pairs.: halves of a disordered hydrogen",
    ),
    "benzylic hydrogen missing": (
        edited(benzyl), "linker C7H5.*1 hydrogen is missing on its carbon"
    ),
    "two molecules in one place": (edited(crowded_carbon), "has 5 bonds"),
    "rod, MIL-53": (
        atoms_file(published.mil53), r"rod, infinite along \[0 0 1\].*rule='auto'", "carboxylate"
    ),
    "rod, MOF-74": (
        atoms_file(published.mof74), r"Mg node is a rod, infinite along \[0 0 1\]", "carboxylate"
    ),
    "azolate under carboxylate": (atoms_file(published.zif), "rule='azolate'", "carboxylate"),
    "pillars under carboxylate": (atoms_file(published.dmof), "rule='pillar'", "carboxylate"),
    "bare trimers": (
        atoms_file(lambda: published.mil88b(terminal="bare")), "-5 per brick C6Cr3O16"
    ),
    "counter-ions missing": (
        atoms_file(anionic_nodes), "cation is missing.*in the pores", "carboxylate"
    ),
    "missing anion": (
        atoms_file(lambda: published.mil88b(terminal="cation")), r"\+1 per brick.*anion is missing",
        "carboxylate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_read_framework__malformed(tmp_path, name):
    make, message, *rule = MALFORMED[name]
    path = make(tmp_path)
    with pytest.raises(StructureError, match=message) as error:
        read_framework(path, rule=rule[0] if rule else "auto")
    said = str(error.value)
    assert "\n" not in said
    assert str(path) in said
    assert len(said) < 400


def test_read_framework__at_least_thirty_malformed():
    assert len(MALFORMED) >= 30


def test_read_framework__index(tmp_path):
    path = two_frames(tmp_path)
    assert read_framework(path, index=1).sizes["atom"] == 456
    with pytest.raises(StructureError, match="none of index 7"):
        read_framework(path, index=7)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8", "latin-1"])
def test_read_framework__encodings_of_cif(tmp_path, encoding):
    path = tmp_path / "x.cif"
    ase.io.write(path, plain(uio66(cell="primitive")))
    path.write_bytes(("# measured at 25 \N{DEGREE SIGN}C\r\n" + path.read_text()).encode(encoding))
    assert read_framework(path).sizes["atom"] == 114


@pytest.mark.parametrize("rename", ["{element}W{k}", "{element}{k}A", "{element}_{k}"])
def test_read_cif__elements_from_labels(tmp_path, rename):
    # Labels as of water and of protein-like tables, where no column tells the element.
    path = tmp_path / "x.cif"
    ase.io.write(path, plain(uio66(cell="primitive")))
    lines = []
    for line in path.read_text().splitlines():
        words = line.split()
        if line.strip() == "_atom_site_type_symbol":
            continue
        if len(words) == 7 and words[1][-1].isdigit():
            element = words[0].upper()
            name = rename.format(element=element, k=words[1][len(element) :])
            # OW1 is water's; CW1 would be no element either.
            words = [name if element == "O" else words[1], *words[2:]]
            line = " ".join(words)
        lines.append(line)
    path.write_text("\n".join(lines) + "\n")
    assert str(read_cif(path)[0].symbols.formula.format("hill")) == "C48H28O32Zr6"


def test_read_cif__large_cell_with_few_atoms(tmp_path):
    # Special positions are searched with boxes of the cutoff's size: not 0.05 Å.
    path = tmp_path / "large.cif"
    text = CIF.format(**{**DEFAULTS, "a": 300, "op": "x,y,z'\n'-x,-y,-z"}).replace(
        "'P 1'", "'P -1'"
    )
    path.write_text(text)
    start = time.process_time()
    assert len(read_cif(path)[0]) == 3
    assert time.process_time() - start < 2.0


def test_read_framework__unknown_rule(tmp_path):
    path = edited(lambda a: None)(tmp_path)
    with pytest.raises(ConfigError, match="unknown rule 'carbo'"):
        read_framework(path, rule="carbo")
    with pytest.raises(MofalError, match=r"infinite.*rule='carboxylate'"):
        read_framework(path, rule="sulfonate")


def test_check_structure__nothing_to_cut():
    # A molecular crystal of paddlewheels with acetates: blocks, but no framework.
    ds = build("S_pr", cell="primitive")
    blocks = find_blocks(ds)
    n = int(blocks["block_n_atoms"].values[0])
    atom, shift = blocks["member_atom"].values[:n], blocks["member_shift"].values[:n]
    x = ds["positions"].values[atom] + shift @ ds["cell"].values[0]
    ends = blocks["link_atom"].values[:, 0]
    caps = _towards(ds, blocks)
    brick = Atoms(ds["numbers"].values[atom], positions=x) + Atoms(
        ["H"] * len(ends), positions=caps
    )
    brick.cell, brick.pbc = np.eye(3) * 18.0, True
    with pytest.raises(StructureError, match="cuts no bond of this structure, and no other"):
        check_structure(from_atoms(brick, system="x"))


def _towards(ds, blocks) -> np.ndarray:
    """Caps on the first block's broken bonds, in the block's own image."""
    from mofal.frameworks import cap_positions

    x, cell = ds["positions"].values, ds["cell"].values[0]
    shift = np.zeros((len(x), 3), int)
    shift[blocks["member_atom"].values] = blocks["member_shift"].values
    atom = blocks["link_atom"].values
    kept = x[atom[:, 0]] + shift[atom[:, 0]] @ cell
    bond = x[atom[:, 1]] + blocks["link_shift"].values @ cell - x[atom[:, 0]]
    return cap_positions(kept, kept + bond, blocks["link_cap_length"].values[:, 0])


def test_read_framework__rule_that_fits(tmp_path):
    path = atoms_file(published.zif, "zif8.cif")(tmp_path)
    ds = read_framework(path, rule="azolate")
    assert ds.attrs["rule"] == "azolate"


def test_read_framework__hexagonal_axes_called_trigonal(tmp_path):
    # Listed operations count, whatever the setting is called; without a list, the cell decides.
    operations = """x,y,z
-y,x-y,z
-x+y,-x,z
-x,-y,-z
y,-x+y,-z
x-y,x,-z""".splitlines()
    shifts = ["", "2/3 1/3 1/3", "1/3 2/3 2/3"]
    listed = []
    for shift in shifts:
        for operation in operations:
            terms = operation.split(",")
            if shift:
                terms = [f"{t}+{s}" for t, s in zip(terms, shift.split())]
            listed.append("'" + ",".join(terms) + "'")
    sites = """Mg1 Mg 0.64159 0.68514 0.47189
O1 O 0.96943 0.29776 0.36038
O2 O 0.92763 0.23048 0.6102
O3 O 0.25494 0.94205 0.67383
C1 C 0.92667 0.2458 0.42703
C2 C 0.87918 0.20711 0.29083
C3 C 0.21254 0.88926 0.7549
C4 C 0.1663 0.84759 0.63558
H1 H 0.16529 0.85803 0.47918"""
    head = """data_mof74
_cell_length_a 26.136
_cell_length_b 26.136
_cell_length_c 6.942
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_cell_setting trigonal
_symmetry_Int_Tables_number 148
"""
    loop = "loop_\n_atom_site_label\n_atom_site_type_symbol\n"
    loop += "".join(f"_atom_site_fract_{a}\n" for a in "xyz") + sites + "\n"
    for body in ("loop_\n_symmetry_equiv_pos_as_xyz\n" + "\n".join(listed) + "\n", ""):
        path = tmp_path / "mof74.cif"
        path.write_text(head + body + loop)
        frames = read_cif(path)
        assert len(frames[0]) == 162
        assert str(frames[0].symbols.formula.format("hill")) == "C72H18Mg18O54"
        with pytest.raises(StructureError, match=r"rod, infinite along \[0 0 1\]"):
            read_framework(path, rule="carboxylate")


def test_read_cif__unknown_group_and_no_group(tmp_path):
    path = tmp_path / "x.cif"
    body = CIF.format(**DEFAULTS)
    start = body.index("loop_\n_symmetry")
    end = body.index("loop_\n_atom_site")
    path.write_text(body[:start].replace("'P 1'", "'Q 77'") + body[end:])
    with pytest.raises(StructureError, match="space group 'Q 77' is not known"):
        read_framework(path)
    path.write_text(body[:start].replace("_symmetry_space_group_name_H-M 'P 1'", "") + body[end:])
    assert len(read_cif(path)[0]) == 2


@pytest.mark.parametrize(
    ("text", "rotation", "translation"),
    [
        ("x, y, z", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0]),
        ("-x+1/2,y,-z", [[-1, 0, 0], [0, 1, 0], [0, 0, -1]], [0.5, 0, 0]),
        ("1/4-Y, X-Z, z+0.75", [[0, -1, 0], [1, 0, -1], [0, 0, 1]], [0.25, 0, 0.75]),
    ],
)
def test_parse_operation__forms(text, rotation, translation):
    r, t = parse_operation(text)
    assert r.tolist() == rotation
    assert t.tolist() == translation
