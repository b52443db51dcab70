"""Frames of a trajectory: what one is, what a source of them must do, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mofal.errors import StructureError

NO_STEP = -1
"""Step of a frame whose file does not state one."""


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes
    ----------
    numbers : (atom,) int32
    positions : (atom, 3) float64, Å
    cell : (3, 3) float64, Å, lattice vectors as rows
    pbc : (3,) bool
    step : int
        Of the simulation, as the file states it; `NO_STEP` where it does not.
    """

    numbers: NDArray
    positions: NDArray
    cell: NDArray
    pbc: NDArray
    step: int = NO_STEP


class Trajectory(Protocol):
    """Frames that lie somewhere, of which any one can be read; can be pickled.

    Attributes
    ----------
    path : Path
    grows : bool
        Whether frames may be added while somebody looks.
    notes : list of str
        What was left out, one line each.
    """

    path: Path
    grows: bool
    notes: list[str]

    def look(self) -> int:
        """Look for new frames; how many whole ones there are now."""

    @property
    def unfinished(self) -> bool:
        """Whether a frame was half-written when it was looked at last."""

    def frame(self, k: int) -> Frame:
        """Read one frame, as it is there; `read_frame` checks it."""


def read_frame(trajectory: Trajectory, k: int, *, numbers: NDArray | None = None) -> Frame:
    """Read one frame and check it.

    Parameters
    ----------
    trajectory : Trajectory
    k : int
        Number of the frame, from 0.
    numbers : (atom,) int, optional
        What every frame must consist of: those of the first.

    Raises
    ------
    StructureError
        A value that is no number, no cell, an unknown element, or other atoms than `numbers`.
    """
    frame = trajectory.frame(k)
    said = "" if frame.step == NO_STEP else f" (step {frame.step})"
    place = f"{trajectory.path}, frame {k}{said}"
    bad = np.flatnonzero(~np.isfinite(frame.positions).all(axis=1))
    if len(bad):
        raise StructureError(
            f"{place}: the position of atom {bad[0]} is not a number; the simulation blew up, or "
            "the file is damaged: cut the file before this frame"
        )
    if not np.isfinite(frame.cell).all():
        raise StructureError(f"{place}: the cell holds a value that is not a number")
    if not frame.pbc.any() or abs(np.linalg.det(frame.cell)) < 1e-6:
        raise StructureError(
            f"{place} has no cell; expected a periodic framework: in extended XYZ "
            'Lattice="ax ay az bx by bz cx cy cz" on the second line of every frame'
        )
    unknown = np.flatnonzero((frame.numbers < 1) | (frame.numbers > 118))
    if len(unknown):
        raise StructureError(f"{place}: atom {unknown[0]} is of an unknown element")
    if numbers is None:
        return frame
    if len(frame.numbers) != len(numbers):
        raise StructureError(
            f"{place} has {len(frame.numbers)} atoms, the first frame {len(numbers)}; expected the "
            "same atoms in every frame: give each part a file of its own"
        )
    other = np.flatnonzero(frame.numbers != numbers)
    if len(other):
        raise StructureError(
            f"{place}: atom {other[0]} is of another element than in the first frame; expected the "
            "same atoms in the same order (a LAMMPS dump needs the column id to be sorted by it)"
        )
    return frame
