"""Whatever holds frames, opened by what it is: LAMMPS dump, extended XYZ, ASE .traj, a group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mofal.errors import ConfigError, StructureError
from mofal.trajectories.frames import NO_STEP, Frame, Trajectory
from mofal.trajectories.text import ExtendedXyz, LammpsDump, of_atoms

_ASE, _XYZ, _DUMPS = (".traj",), (".xyz", ".extxyz"), (".lammpstrj", ".dump", ".lammpsdump")
_ELSEWHERE = {
    ".gz": "unpack it first: gunzip",
    ".bin": "write text instead: dump custom, or LAMMPS's tool binary2txt",
    ".h5md": "write it as extended XYZ first: MDAnalysis, or ase.io with h5py",
    ".h5": "write it as extended XYZ first: MDAnalysis, or ase.io with h5py",
    ".xtc": "write it as extended XYZ first: MDAnalysis",
    ".dcd": "write it as extended XYZ first: MDAnalysis",
}


class AseTrajectory:
    """A ``.traj`` of ASE; it grows frame by frame, and names a frame only once it is whole."""

    grows = True
    unfinished = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._count = 0

    def look(self) -> int:
        """Find how many frames there are."""
        from ase.io.trajectory import Trajectory as Reader
        from ase.io.ulm import InvalidULMFileError

        if not self.path.exists() or self.path.stat().st_size == 0:
            return self._count
        try:
            with contextlib.closing(Reader(str(self.path))) as reader:
                self._count = len(reader)
        except InvalidULMFileError:
            raise StructureError(f"{self.path} is no trajectory of ASE") from None
        except (OSError, ValueError, IndexError):
            pass  # its first frame is being written
        return self._count

    def frame(self, k: int) -> Frame:
        """Read one frame."""
        from ase.io.trajectory import Trajectory as Reader

        try:
            with contextlib.closing(Reader(str(self.path))) as reader:
                return of_atoms(reader[k])
        except Exception as error:
            raise StructureError(f"{self.path}, frame {k} cannot be read: {error}") from None

    def __len__(self) -> int:
        return self._count


class GroupTrajectory:
    """Structures of a group of the store, each one a frame."""

    grows = False
    unfinished = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []

    @cached_property
    def _group(self) -> Any:
        from mofal.data import open_group, validate

        return validate(open_group(self.path), "structures")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "notes": self.notes}

    def look(self) -> int:
        """Tell how many structures the group has."""
        return int(self._group.sizes["structure"])

    def frame(self, k: int) -> Frame:
        """Read one structure."""
        from mofal.data import select

        ds = select(self._group, k).compute()
        step = int(ds["md_step"].values[0]) if "md_step" in ds else NO_STEP
        return Frame(
            ds["numbers"].values, ds["positions"].values, ds["cell"].values[0], ds["pbc"].values[0],
            step,
        )  # fmt: skip


def open_trajectory(
    path: str | os.PathLike[str], *, types: Sequence[str] | None = None
) -> Trajectory:
    """Open a trajectory by what it is; nothing but its beginning is read.

    Parameters
    ----------
    path : path
        LAMMPS text dump (``*.lammpstrj``, ``*.dump``, or whatever begins with ``ITEM:``), extended
        XYZ, ``*.traj`` of ASE, a group of mofal's store (``*.zarr``). One of the first three that
        is not there yet is waited for by whoever looks again.
    types : sequence of str, optional
        Of a dump: the element of each type, from 1 on.

    Raises
    ------
    StructureError, ConfigError
        A file of another kind; types for one that has none.
    """
    file = Path(path)
    kind = file.suffix.lower()
    found: Trajectory
    if file.is_dir():
        if not (file / "zarr.json").is_file():
            raise StructureError(
                f"{file} is a directory and no group; expected a LAMMPS dump, extended XYZ, "
                "a .traj of ASE, or a group of mofal (.zarr)"
            )
        found = GroupTrajectory(file)
    elif kind in _ELSEWHERE:
        raise StructureError(f"{file} is not read as it is; {_ELSEWHERE[kind]}")
    elif kind in _ASE:
        found = AseTrajectory(file)
    elif kind in _XYZ:
        found = ExtendedXyz(file)
    elif kind in _DUMPS or _begins_like_a_dump(file):
        return LammpsDump(file, types)
    else:
        what = "does not exist" if not file.exists() else "begins like none of them"
        raise StructureError(
            f"{file} {what}; expected a LAMMPS text dump (ITEM: TIMESTEP), extended XYZ (.extxyz), "
            "a .traj of ASE, or a group of mofal (.zarr)"
        )
    if types is not None:
        raise ConfigError(f"--types is for LAMMPS dumps; {file} names its elements itself")
    return found


def _begins_like_a_dump(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(5) == b"ITEM:"
    except OSError:
        return False


def identity_of(frame: Frame) -> str:
    """Hash of a frame, as `structure_id` of what is made of it."""
    from mofal.data import structure_hash

    return structure_hash(frame.numbers, frame.positions, frame.cell, frame.pbc, 0, 0)
