"""Boxes, grids, basis sets and memory of a CP2K calculation, before it starts and without it."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.units import Bohr

from mofal.errors import ReferenceError
from mofal.reference.program import Box

# Memory in bytes, calibrated on the runs in docs/reference.md: so many for each rank at its
# start, arrays of doubles on the grid of the density (free and periodic boundaries), and
# matrices of basis functions.
LIBRARIES = 150e6
PER_RANK = 100e6
ARRAYS_CLUSTER = 45.0
ARRAYS_CRYSTAL = 35.0
ARRAYS_MESH = 25.0  # of the Ewald sum of GFN1-xTB
MATRICES = 14.0
MARGIN = 1.2

# Shells in the order in which cores of pseudopotentials are filled: whole shells, innermost first.
_SHELLS = [(n, k) for n in range(1, 8) for k in range(n)]
_LETTERS = "spdfghi"


@dataclass(frozen=True)
class Cp2kCost:
    """Size of a calculation before it starts.

    Attributes
    ----------
    grid_points : tuple of int
    functions, electrons : int
        Basis functions and valence electrons.
    memory_bytes : float
        Upper estimate over all ranks.
    """

    grid_points: tuple[int, int, int]
    functions: int
    electrons: int
    memory_bytes: float

    @property
    def memory_GB(self) -> float:
        """Upper estimate over all ranks, 1e9 bytes."""
        return self.memory_bytes / 1e9

    def describe(self) -> str:
        """What makes it large, in a few words."""
        return f"grid {'x'.join(map(str, self.grid_points))}, {self.functions} basis functions"


def spacing_of(cutoff_Ry: float) -> float:
    """Grid spacing (Å) that carries plane waves up to a cutoff (Ry)."""
    return math.pi / math.sqrt(cutoff_Ry) * Bohr


def fft_length(least: int) -> int:
    """Smallest even length from `least` up that has no prime factor above five."""
    n = max(2, least + least % 2)
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def cube_cluster(positions: np.ndarray, *, h: float, vacuum: float) -> Box:
    """Put a cluster into a cube whose grid has exactly the spacing asked for.

    The wavelet Poisson solver wants a cube. As with GPAW the grid is fixed in space: its points are
    whole multiples of `h` from the origin.
    """
    low = np.floor((positions.min(axis=0) - vacuum) / h + 1e-9).astype(int)
    high = np.ceil((positions.max(axis=0) + vacuum) / h - 1e-9).astype(int)
    n = fft_length(int((high - low).max()))
    low -= (n - (high - low)) // 2
    shift = -low * h
    return Box(
        positions=positions + shift,
        cell=np.eye(3) * (n * h),
        shift=shift,
        grid_points=(n, n, n),
    )


def grid_crystal(positions: np.ndarray, cell: np.ndarray, *, h: float) -> Box:
    """Keep a crystal as it is; its grid is as fine as `h` or finer."""
    lengths = np.linalg.norm(cell, axis=1)
    a, b, c = (fft_length(math.ceil(length / h)) for length in lengths)
    return Box(np.array(positions), np.array(cell), np.zeros(3), (a, b, c))


# ---------------------------------------------------------------------------------- data
@dataclass(frozen=True)
class Kind:
    """What an element is calculated with.

    Attributes
    ----------
    basis, potential : str
        Names in CP2K's files.
    per_l : tuple of int
        Valence electrons of the pseudopotential by angular momentum.
    functions : int
        Of the basis set.
    """

    basis: str
    potential: str
    per_l: tuple[int, ...]
    functions: int

    @property
    def valence(self) -> int:
        """Electrons that are calculated."""
        return sum(self.per_l)

    def configuration(self, z: int) -> tuple[str, str]:
        """Valence and core of the neutral atom, as CP2K's atomic code reads them.

        Cores of pseudopotentials are whole shells, filled by principal quantum number (zirconium of
        twelve electrons: up to 3d); what the pseudopotential counts by angular momentum comes on
        top.
        """
        left, core = z - self.valence, []
        for n, k in _SHELLS:
            if left <= 0:
                break
            left -= 2 * (2 * k + 1)
            core.append((n, k))
        if left < 0:
            raise ReferenceError(
                f"the {z - self.valence} core electrons of {self.potential} (Z = {z}) "
                "fill no whole shells"
            )
        valence = []
        for k, electrons in enumerate(self.per_l):
            n = max([n for n, other in core if other == k], default=k) + 1
            while electrons > 0:
                here = min(electrons, 2 * (2 * k + 1))
                valence.append(f"{n}{_LETTERS[k]}{here}")
                electrons -= here
                n += 1
        text = " ".join(f"{n}{_LETTERS[k]}{2 * (2 * k + 1)}" for n, k in core)
        return " ".join(valence), text


@dataclass(frozen=True)
class Cp2kData:
    """What of CP2K's data a level uses: kinds by element, and a hash over all of them."""

    directory: Path
    kinds: dict[str, Kind]
    sha256: str


def data_directory(program: str, stated: str | None = None) -> Path:
    """Where CP2K's basis sets, pseudopotentials and parameters are.

    Parameters
    ----------
    program : str
        Its executable.
    stated : str, optional
        As the specification says; else ``CP2K_DATA_DIR``, else beside the executable.

    Raises
    ------
    ReferenceError
        There are none.
    """
    own = stated or os.environ.get("CP2K_DATA_DIR")
    places = [Path(own)] if own else []
    if not own:
        found = shutil.which(program)
        above = [*Path(found).resolve().parents][1:4] if found else []
        for place in above:
            places += [place / "share" / "cp2k", place / "share" / "cp2k" / "data", place / "data"]
    for place in places:
        if (place / "xTB_parameters").is_file():
            return place
    looked = ", ".join(map(str, places)) or "nowhere"
    raise ReferenceError(
        f"CP2K's data (BASIS_MOLOPT, xTB_parameters, ...) is not there (looked in {looked}); "
        "set CP2K_DATA_DIR, or say ...?data=/path/to/cp2k/data"
    )


@functools.lru_cache(maxsize=16)
def read_kinds(directory: Path, basis: str, potential: str) -> Cp2kData:
    """Find the basis set and the pseudopotential of every element that has both.

    Only what is used goes into the hash, with spaces made equal: files that have got further basis
    sets are the same level.

    Raises
    ------
    ReferenceError
        A file is not there, or none of its elements has both.
    """
    bases = _entries(directory / "BASIS_MOLOPT")
    potentials = _entries(directory / "GTH_POTENTIALS")
    digest = hashlib.sha256()
    kinds: dict[str, Kind] = {}
    for symbol in sorted(bases):
        found = _pair(bases[symbol], potentials.get(symbol, []), basis, potential)
        if found is None:
            continue
        (names, text), (other_names, other) = found
        functions = _count_functions(text)
        per_l = tuple(int(n) for n in other[0].split())
        # Of an entry's names the longest says how many electrons it is for.
        kinds[symbol] = Kind(max(names, key=len), max(other_names, key=len), per_l, functions)
        for block in (names, text, other_names, other):
            digest.update(" ".join(" ".join(block).split()).encode() + b"\n")
    if not kinds:
        raise ReferenceError(f"{directory} has no basis set {basis} with {potential}")
    digest.update(_without_blanks(directory / "dftd3.dat"))
    return Cp2kData(directory=directory, kinds=kinds, sha256=digest.hexdigest())


@functools.lru_cache(maxsize=16)
def read_xtb(directory: Path) -> Cp2kData:
    """Find the elements that CP2K's parameters of GFN1-xTB are for.

    Raises
    ------
    ReferenceError
        The file is not there.
    """
    file = directory / "xTB_parameters"
    text = _text(file)
    kinds: dict[str, Kind] = {}
    symbol, functions = "", 0
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) > 5 and re.fullmatch(r"[A-Z][a-z]?", words[0]):
            symbol, functions = words[0], 0
        level = next((w for w in words if re.fullmatch(r"[1-7][spdf]", w)), "")
        if symbol and level:
            functions += 2 * _LETTERS.index(level[1]) + 1
            kinds[symbol] = Kind("", "", (), functions)
    digest = hashlib.sha256(_without_blanks(file) + _without_blanks(directory / "dftd3.dat"))
    return Cp2kData(directory=directory, kinds=kinds, sha256=digest.hexdigest())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReferenceError(f"CP2K's data cannot be read: {error}") from error


def _without_blanks(file: Path) -> bytes:
    lines = (" ".join(line.split()) for line in _text(file).splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#")).encode()


@functools.lru_cache(maxsize=8)
def _entries(file: Path) -> dict[str, list[tuple[list[str], list[str]]]]:
    """Blocks of a file of basis sets or potentials by element: their names, their lines."""
    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    block: list[str] = []
    for line in _text(file).splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        if re.fullmatch(r"[A-Z][a-z]?", words[0]) and len(words) > 1:
            block = []
            found.setdefault(words[0], []).append((words[1:], block))
        else:
            block.append(" ".join(words))
    return found


def _pair(
    bases: Sequence[tuple[list[str], list[str]]],
    potentials: Sequence[tuple[list[str], list[str]]],
    basis: str,
    potential: str,
) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]] | None:
    """Basis set and potential of one element that are for as many electrons; most of them first."""
    here = {q: e for e in potentials for q in _electrons(e[0], potential)}
    ours = {q: e for e in bases for q in _electrons(e[0], basis)}
    both = sorted(set(here) & set(ours))
    return (ours[both[-1]], here[both[-1]]) if both else None


def _electrons(names: Sequence[str], family: str) -> list[int]:
    pattern = rf"{re.escape(family)}-q(\d+)"
    return [int(m[1]) for m in (re.fullmatch(pattern, name) for name in names) if m]


def _count_functions(lines: Sequence[str]) -> int:
    """Basis functions of an entry in CP2K's format: sets with their contractions by l."""
    count = 0
    at = 1
    for _ in range(int(lines[0])):
        head = [int(w) for w in lines[at].split()]
        l_min, l_max, exponents = head[1:4]
        for k, n in zip(range(l_min, l_max + 1), head[4:], strict=True):
            count += n * (2 * k + 1)
        at += 1 + exponents
    return count


def estimate_cp2k(
    box: Box, kinds: Sequence[Kind], *, ranks: int, arrays: float, spins: int
) -> Cp2kCost:
    """Estimate the memory that a calculation needs, from its grid and its basis functions.

    Parameters
    ----------
    box : Box
    kinds : sequence of Kind
        One per atom.
    ranks : int
    arrays : float
        Of doubles on the grid.
    spins : int
        2 for a spin-polarised calculation.
    """
    functions = sum(kind.functions for kind in kinds)
    points = math.prod(box.grid_points)
    total = LIBRARIES + ranks * PER_RANK + 8.0 * MATRICES * functions**2 * spins
    total += 8.0 * arrays * (1 + 0.5 * (spins - 1)) * points
    return Cp2kCost(
        grid_points=box.grid_points,
        functions=functions,
        electrons=sum(kind.valence for kind in kinds),
        memory_bytes=MARGIN * total,
    )
