"""Text files that grow: where whole frames begin and end in LAMMPS dumps and extended XYZ.

ASE reads the text of a frame. What it has not is a way to one frame: `ase.io.read` with an index
goes through the file line by line from its start (processor time for the tenth of 20 frames of
23,700 atoms: 0.35 s, against 0.04 s where its place is known), so that all frames one by one cost
the square of their number; and it takes a half-written last frame for an error. So only the places
of frames are found here, by looking for marks and counting lines, and found once.
"""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mofal.errors import ConfigError, StructureError
from mofal.trajectories.frames import NO_STEP, Frame

_MARK = b"ITEM: TIMESTEP"
_CHUNK = 16 * 2**20
_UNITS = ("metal", "real", "si", "cgs", "electron", "micro", "nano")
_POSITIONS = (("x", "y", "z"), ("xs", "ys", "zs"), ("xu", "yu", "zu"), ("xsu", "ysu", "zsu"))


class _TextTrajectory(ABC):
    """A file, and the spans of its whole frames."""

    grows = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spans: list[tuple[int, int]] = []
        self.notes: list[str] = []
        self._next = 0
        self._size = -1

    @property
    def unfinished(self) -> bool:
        """Whether something after the last whole frame is there."""
        return self._size > self._next

    def look(self) -> int:
        """Find the frames that were written since; how many whole ones there are."""
        try:
            size = self.path.stat().st_size
            if size < self._next:
                raise StructureError(
                    f"{self.path} has become shorter while it was looked at: another trajectory is "
                    "being written in its place"
                )
            if size != self._size:
                with self.path.open("rb") as stream:
                    self._find(stream, size)
                self._size = size
        except FileNotFoundError:
            pass
        return len(self.spans)

    @abstractmethod
    def _find(self, stream: BinaryIO, size: int) -> None:
        """Note the whole frames from where the last look ended."""

    def _text(self, k: int) -> str:
        begin, end = self.spans[k]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            content = stream.read(end - begin)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            raise StructureError(f"{self.path}, frame {k} is no text") from None

    def _refuse(self, k: int, error: Exception) -> StructureError:
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        return StructureError(f"{self.path}, frame {k} cannot be read: {reason}")


class LammpsDump(_TextTrajectory):
    """A text dump of LAMMPS: orthogonal and triclinic boxes, atoms in any order.

    Positions are ``x``, ``xu`` (Å, or what ``ITEM: UNITS`` says), or ``xs``, ``xsu`` (scaled);
    elements are those of `types`, else the column ``element``, else ``mass``.

    Parameters
    ----------
    path : path
    types : sequence of str, optional
        Element of the types 1, 2, ...; it goes before a column ``element``, which LAMMPS fills with
        C unless ``dump_modify element`` says otherwise.
    """

    def __init__(self, path: str | Path, types: Sequence[str] | None = None) -> None:
        super().__init__(path)
        self._numbers = None if types is None else _numbers_of(types)
        self._units = ""

    def _find(self, stream: BinaryIO, size: int) -> None:
        marks = list(_marks(stream, self._next))
        if not self.spans and self._next == 0:
            self._read_head(stream, marks[0] if marks else size)
        for begin, end in zip(marks, [*marks[1:], size]):
            is_last = end == size
            stop, needed = self._stop(stream, begin, end)
            if stop is not None:
                self.spans.append((begin, stop))
                self._next = stop
            elif is_last:
                self._next = begin
            else:
                # A run that was ended while it wrote and went on in the same file.
                self.notes.append(
                    f"{self.path}: a frame that was never finished is left out "
                    f"(after frame {len(self.spans) - 1}; expected {needed} atoms)"
                )
                self._next = end

    def _read_head(self, stream: BinaryIO, first: int) -> None:
        """Read what stands before the first frame."""
        stream.seek(0)
        head = stream.read(min(first, 4096)).decode("utf-8", "replace").split("\n")
        if "ITEM: UNITS" in head:
            self._units = head[head.index("ITEM: UNITS") + 1].strip()
            if self._units not in (*_UNITS, ""):
                raise StructureError(
                    f"{self.path} is in units {self._units}, which have no length in Å; "
                    f"expected one of {', '.join(_UNITS)}"
                )

    def _stop(self, stream: BinaryIO, begin: int, end: int) -> tuple[int | None, int]:
        """Where the last row of a frame ends, None if it is not there yet; atoms it should have.

        A row counts once its line has ended: a number of fewer digits is a number too.
        """
        stream.seek(begin)
        content = stream.read(end - begin)
        at = content.find(b"ITEM: NUMBER OF ATOMS")
        body = content.find(b"ITEM: ATOMS")
        start = content.find(b"\n", body) + 1 if body >= 0 else 0
        if at < 0 or not start:
            return None, 0
        line = content[at:].split(b"\n", 2)[1].strip()
        if not line.isdigit():
            return None, 0
        needed = int(line)
        after = content.find(b"\nITEM:", start - 1)  # of the head of the next frame
        rows = np.frombuffer(content, np.uint8, offset=start)
        ends = np.flatnonzero(rows[: len(rows) if after < 0 else after + 1 - start] == 10)
        if len(ends) > needed:
            raise StructureError(
                f"{self.path}, frame {len(self.spans)} says {needed} atoms and has {len(ends)}"
            )
        if len(ends) < needed or not needed:
            return None, needed
        return begin + start + int(ends[-1]) + 1, needed

    def frame(self, k: int) -> Frame:
        """Read one frame; atoms in the order of their ``id``."""
        from ase.io.lammpsrun import read_lammps_dump_text

        text = self._text(k)
        columns = self._columns(text, k)
        try:
            # A column of text that is no element would be an error of ASE's.
            atoms = read_lammps_dump_text(io.StringIO(text), index=0, units=self._units or "metal")
        except Exception as error:
            raise self._refuse(k, error) from None
        numbers = atoms.numbers
        if self._numbers is not None:
            if "type" not in columns:
                raise StructureError(
                    f"{self.path}: the dump has no column type, which --types names elements for; "
                    f"its columns: {' '.join(columns)}"
                )
            types = atoms.arrays["type"]
            if types.min() < 1 or types.max() > len(self._numbers):
                raise ConfigError(
                    f"{self.path}, frame {k} has types {types.min()} to {types.max()}, --types "
                    f"names {len(self._numbers)}; give the element of each type from 1 on"
                )
            numbers = self._numbers[types - 1]
        step = int(atoms.info.get("timestep", NO_STEP))
        return Frame(
            np.asarray(numbers, np.int32),
            np.asarray(atoms.positions, np.float64),
            np.asarray(atoms.cell.array, np.float64),
            np.asarray(atoms.pbc, bool),
            step,
        )

    def _columns(self, text: str, k: int) -> list[str]:
        at = text.find("ITEM: ATOMS")
        columns = text[at : text.find("\n", at)].split()[2:]
        if self._numbers is None and not {"element", "mass"} & set(columns):
            raise ConfigError(
                f"{self.path} names types and no elements (columns: {' '.join(columns)}); give the "
                "element of each type from 1 on, e.g. --types Zr C O H"
            )
        if not any(set(names) <= set(columns) for names in _POSITIONS):
            raise StructureError(
                f"{self.path}, frame {k} has no positions (columns: {' '.join(columns)}); "
                "expected x y z, xs ys zs, xu yu zu or xsu ysu zsu"
            )
        return columns


def _numbers_of(types: Sequence[str]) -> np.ndarray:
    """Atomic numbers of the elements of types 1, 2, ...

    Raises
    ------
    ConfigError
        One of them is no element.
    """
    from ase.data import atomic_numbers

    wrong = [t for t in types if atomic_numbers.get(t, 0) < 1]
    if wrong or not types:
        raise ConfigError(
            f"--types names {wrong[0]!r}, which is no element; " if wrong else "--types is empty; "
        )
    return np.array([atomic_numbers[t] for t in types], np.int32)


def _marks(stream: BinaryIO, begin: int) -> Any:
    """Where frames begin, from `begin` on."""
    at, kept = begin, b""
    stream.seek(begin)
    while chunk := stream.read(_CHUNK):
        content = kept + chunk
        first = at - len(kept)
        found = content.find(_MARK)
        while found >= 0:
            fresh = found + len(_MARK) > len(kept)
            place = first + found
            if fresh and (place == begin or content[found - 1 : found] == b"\n"):
                yield place
            found = content.find(_MARK, found + 1)
        at += len(chunk)
        kept = content[-len(_MARK) :]


class ExtendedXyz(_TextTrajectory):
    """Extended XYZ: frames one after the other, each with its lattice."""

    def _find(self, stream: BinaryIO, size: int) -> None:
        while self._next < size:
            stream.seek(self._next)
            head = stream.readline(100)
            if not head.endswith(b"\n"):
                return
            if not head.strip():
                self._next += len(head)  # an empty line between frames
                continue
            if not head.strip().isdigit():
                raise StructureError(
                    f"{self.path}, frame {len(self.spans)} begins with {head.strip()[:40]!r}; "
                    "expected the number of its atoms"
                )
            end = _after_lines(stream, int(head) + 1)
            if end is None:
                return
            self.spans.append((self._next, end))
            self._next = end

    def frame(self, k: int) -> Frame:
        """Read one frame."""
        import ase.io

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                atoms: Any = ase.io.read(io.StringIO(self._text(k)), index=0, format="extxyz")
        except StructureError:
            raise
        except Exception as error:
            raise self._refuse(k, error) from None
        return of_atoms(atoms)


def of_atoms(atoms: Any) -> Frame:
    """Frame of an `ase.Atoms`; a step is looked for where programs put it."""
    named = [atoms.info[n] for n in ("step", "Step", "timestep", "md_step") if n in atoms.info]
    step = NO_STEP
    if named and isinstance(named[0], (int, float, np.integer, np.floating)):
        step = int(named[0])
    return Frame(
        np.asarray(atoms.numbers, np.int32),
        np.asarray(atoms.positions, np.float64),
        np.asarray(atoms.cell.array, np.float64),
        np.asarray(atoms.pbc, bool),
        step,
    )


def _after_lines(stream: BinaryIO, count: int) -> int | None:
    """Place after so many lines from here on; None where the file ends before."""
    left = count
    while chunk := stream.read(max(4096, min(_CHUNK, 80 * left))):
        found = chunk.count(b"\n")
        if found >= left:
            ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == 10)
            return stream.tell() - len(chunk) + int(ends[left - 1]) + 1
        left -= found
    return None
