"""Frames are what ASE reads, whole ones only, and what cannot be meant is one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.io.trajectory import Trajectory as AseWriter

from mofal.data import from_atoms, write_group
from mofal.errors import MofalError
from mofal.trajectories import open_trajectory, read_frame
from tests.trajectories.material import SYMBOLS, dump_text, frames_of, write_dump


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return frames_of(4)


def assert_same_lattice(found: np.ndarray, atoms: Atoms, atol: float) -> None:
    """Positions are equal up to lattice vectors."""
    away = (found - atoms.positions) @ np.linalg.inv(atoms.cell.array)
    away -= np.rint(away)
    np.testing.assert_allclose(away @ atoms.cell.array, 0.0, atol=atol)


@pytest.mark.parametrize("box", ["xy xz yz", "abc origin"])
@pytest.mark.parametrize(
    "columns",
    [
        "id type element x y z",
        "element id xs ys zs vx",
        "type id xu yu zu",
        "id mass xsu ysu zsu",
    ],
)
def test_dump__is_what_ase_reads_and_what_was_written(
    frames: list[Atoms], tmp_path: Path, box: str, columns: str
) -> None:
    """Triclinic boxes of both kinds, scaled or not, atoms in any order, by element or by type."""
    file = write_dump(tmp_path / "a.lammpstrj", frames, box=box, columns=columns, shuffle=1)
    types = None if "element" in columns or "mass" in columns else SYMBOLS
    theirs = ase.io.read(file, ":", format="lammps-dump-text", specorder=list(SYMBOLS))
    trajectory = pickle.loads(pickle.dumps(open_trajectory(file, types=types)))
    assert trajectory.look() == len(frames)
    for k in (2, 0, 3, 1):
        found = read_frame(trajectory, k)
        assert found.step == 100 * k
        np.testing.assert_array_equal(found.numbers, frames[k].numbers)
        np.testing.assert_array_equal(found.numbers, theirs[k].numbers)
        np.testing.assert_array_equal(found.positions, theirs[k].positions)
        np.testing.assert_array_equal(found.cell, theirs[k].cell.array)
        assert found.pbc.all()
        np.testing.assert_allclose(found.cell, frames[k].cell.array, atol=1e-10)
        assert_same_lattice(found.positions, frames[k], 1e-9)


def test_dump__types_go_before_the_elements_that_lammps_makes_up(
    frames: list[Atoms], tmp_path: Path
) -> None:
    text = (
        dump_text(frames[0], 0).replace(" Zr ", " C ").replace(" O ", " C ").replace(" H ", " C ")
    )
    file = tmp_path / "a.dump"
    file.write_text(text)
    trajectory = open_trajectory(file, types=SYMBOLS)
    assert trajectory.look() == 1
    np.testing.assert_array_equal(read_frame(trajectory, 0).numbers, frames[0].numbers)


def test_dump__units_are_converted(frames: list[Atoms], tmp_path: Path) -> None:
    file = tmp_path / "a.dump"
    file.write_text("ITEM: UNITS\nnano\n" + dump_text(frames[0], 0))
    trajectory = open_trajectory(file)
    assert trajectory.look() == 1
    found = read_frame(trajectory, 0)
    np.testing.assert_allclose(found.positions, 10 * frames[0].positions, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.cell, 10 * frames[0].cell.array, rtol=1e-9, atol=1e-9)


def small(step: int) -> Atoms:
    rng = np.random.default_rng(step)
    return Atoms("ZrO2", rng.random((3, 3)) * 4.0, cell=[4.0, 5.0, 6.0], pbc=True)


@pytest.mark.parametrize("kind", ["dump", "dump with times", "extxyz"])
def test_growing__only_whole_frames_at_every_byte(tmp_path: Path, kind: str) -> None:
    """However far a file has been written, frames are those whose last line has ended."""
    frames = [small(k) for k in range(3)]
    if kind == "extxyz":
        ase.io.write(tmp_path / "all.extxyz", frames)
        whole = (tmp_path / "all.extxyz").read_text()
        parts = [b.split("\n", 5)[:5] for b in (whole[i:] for i in find_all(whole, "3\nLattice"))]
        ends = np.cumsum([len("\n".join(p)) + 1 for p in parts])
    else:
        texts = [dump_text(f, k, time="times" in kind, box="") for k, f in enumerate(frames)]
        whole, ends = "".join(texts), np.cumsum([len(t) for t in texts])
    assert ends[-1] == len(whole)
    file = tmp_path / f"grows.{'extxyz' if kind == 'extxyz' else 'dump'}"
    growing = open_trajectory(file)
    assert growing.look() == 0
    for size in range(len(whole) + 1):
        if size % 5 and size not in ends and size + 1 not in ends:
            continue
        file.write_text(whole[:size])
        expected = int((ends <= size).sum())
        fresh = open_trajectory(file)
        assert growing.look() == fresh.look() == expected, size
        assert growing.unfinished == fresh.unfinished == (size not in (0, *ends))
    for k, frame in enumerate(frames):
        np.testing.assert_allclose(read_frame(growing, k).positions, frame.positions, atol=1e-8)


def find_all(text: str, part: str) -> list[int]:
    return [i for i in range(len(text)) if text.startswith(part, i)]


def test_dump__a_frame_that_was_never_finished_is_left_out(
    frames: list[Atoms], tmp_path: Path
) -> None:
    """A run that was ended while it wrote, and a second one that went on in the same file."""
    file = tmp_path / "a.dump"
    torn = dump_text(frames[1], 100)
    torn = torn[: torn.index("\n", len(torn) // 2) + 1]
    file.write_text(dump_text(frames[0], 0) + torn + dump_text(frames[2], 200))
    trajectory = open_trajectory(file)
    assert trajectory.look() == 2
    assert [read_frame(trajectory, k).step for k in range(2)] == [0, 200]
    assert "never finished" in trajectory.notes[0]


def test_others__traj_and_group(frames: list[Atoms], tmp_path: Path) -> None:
    writer = AseWriter(str(tmp_path / "a.traj"), "w")
    growing = open_trajectory(tmp_path / "a.traj")
    for k, frame in enumerate(frames):
        assert growing.look() == k
        writer.write(frame)
    writer.close()
    write_group(from_atoms(frames, system="s"), tmp_path / "a.zarr")
    for name in ("a.traj", "a.zarr"):
        trajectory = pickle.loads(pickle.dumps(open_trajectory(tmp_path / name)))
        assert trajectory.look() == len(frames)
        for k in (3, 1):
            found = read_frame(trajectory, k)
            np.testing.assert_array_equal(found.positions, frames[k].positions)
            np.testing.assert_array_equal(found.cell, frames[k].cell.array)
            np.testing.assert_array_equal(found.numbers, frames[k].numbers)


def xyz(tmp_path: Path, frame: Atoms) -> Path:
    ase.io.write(tmp_path / "a.extxyz", frame)
    return tmp_path / "a.extxyz"


def dump(tmp_path: Path, text: str) -> Path:
    (tmp_path / "a.dump").write_text(text)
    return tmp_path / "a.dump"


BAD = {
    "types without names": (
        lambda p, f: dump(p, dump_text(f, 0, columns="id type x y z")),
        None,
        r"names types and no elements.*--types Zr C O H",
    ),
    "too few names": (
        lambda p, f: dump(p, dump_text(f, 0, columns="id type x y z")),
        ("Zr", "C"),
        r"types 1 to 4, --types names 2",
    ),
    "a name that is none": (lambda p, f: dump(p, dump_text(f, 0)), ("Zr", "Xx"), "'Xx'"),
    "no positions": (
        lambda p, f: dump(p, dump_text(f, 0, columns="id element vx")),
        None,
        "has no positions",
    ),
    "not a number": (
        lambda p, f: dump(p, dump_text(f, 0).replace(" Zr ", " Zr nan #", 1).replace("#", "")),
        None,
        r"frame 0.*(not a number|cannot be read)",
    ),
    "NaN": (
        lambda p, f: dump(
            p, "\n".join([*dump_text(f, 0).split("\n")[:9], "1 1 Zr nan 1 2"])
            + "\n" + "\n".join(dump_text(f, 0).split("\n")[10:])
        ),
        None,
        r"frame 0 \(step 0\): the position of atom 0 is not a number",
    ),
    "letters": (
        lambda p, f: dump(p, dump_text(f, 0).replace("1 1 Zr ", "1 1 Zr x", 1)),
        None,
        "frame 0 cannot be read",
    ),
    "units without a length": (
        lambda p, f: dump(p, "ITEM: UNITS\nlj\n" + dump_text(f, 0)), None, "units lj"
    ),
    "no cell": (
        lambda p, f: xyz(p, Atoms(f.symbols, f.positions)), None, r"has no cell; .*Lattice="
    ),
    "packed": (lambda p, f: dump(p, "").rename(p / "a.dump.gz"), None, "gunzip"),
    "another kind": (lambda p, f: (p / "a.txt"), None, "does not exist; expected a LAMMPS"),
    "types for extxyz": (lambda p, f: xyz(p, f), ("Zr",), "--types is for LAMMPS dumps"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input__is_one_line(frames: list[Atoms], tmp_path: Path, what: str) -> None:
    make, types, expected = BAD[what]
    file = make(tmp_path, frames[0])

    def read() -> None:
        trajectory = open_trajectory(file, types=types)
        trajectory.look()
        read_frame(trajectory, 0)

    with pytest.raises(MofalError, match=expected) as error:
        read()
    assert "\n" not in str(error.value)


def test_bad_input__other_atoms_in_a_later_frame(frames: list[Atoms], tmp_path: Path) -> None:
    fewer = frames[1][:-1]
    swapped = frames[1].copy()
    swapped.numbers = swapped.numbers[::-1]
    file = dump(
        tmp_path,
        dump_text(frames[0], 0) + dump_text(fewer, 100) + dump_text(swapped, 200),
    )
    trajectory = open_trajectory(file)
    assert trajectory.look() == 3
    numbers = read_frame(trajectory, 0).numbers
    with pytest.raises(
        MofalError, match=r"frame 1 \(step 100\) has 105 atoms, the first frame 106"
    ):
        read_frame(trajectory, 1, numbers=numbers)
    with pytest.raises(MofalError, match=r"frame 2.*atom 0 is of another element"):
        read_frame(trajectory, 2, numbers=numbers)
