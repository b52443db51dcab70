"""Boxes, grids and memory of a GPAW calculation, before it starts and without importing GPAW."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mofal.errors import ReferenceError
from mofal.reference.program import Box

# Grid sizes are multiples of this, as GPAW chooses them itself, so that multigrid can coarsen.
GRID_MULTIPLE = 4

# Memory in bytes, calibrated on the runs in docs/reference.md: so many for the libraries, which the
# ranks share, so many for each rank before anything is allocated, and for its copy of the atoms,
# and so many arrays of doubles on each grid.
LIBRARIES = 52e6
PER_RANK = 95e6
PER_ATOM_AND_RANK = 0.5e6
ARRAYS_FINE = 26.0
ARRAYS_AUXILIARY = 3.0
ARRAYS_LARGE = 8.0
ARRAYS_BANDS = 3.5
BAND_BUFFER = 200e6
BASIS_VOLUME = 45e3  # basis functions of an average atom on the grid, bytes times Å³ per point
MARGIN = 1.15


@dataclass(frozen=True)
class GpawBox(Box):
    """A structure as GPAW is given it.

    Attributes
    ----------
    poisson_points : tuple of int or None
        Of the extended grid of the electrostatic potential, at the density's spacing.
    """

    poisson_points: tuple[int, int, int] | None


def box_cluster(
    positions: np.ndarray, *, h: float, vacuum: float, poisson_extension: float, coarsenings: int
) -> GpawBox:
    """Put a cluster into an orthorhombic box whose grid has exactly the spacing asked for.

    The grid is fixed in space (its points are whole multiples of `h` from the origin), so a cluster
    that is translated by a part of `h` meets another grid, as it would in a crystal, and clusters
    cut from one parent meet the same one.

    Parameters
    ----------
    positions : ndarray, shape (n, 3)
        Å.
    h : float
        Grid spacing, Å.
    vacuum : float
        Least distance from an atom to a wall, Å.
    poisson_extension : float
        Further vacuum on each side for the electrostatic potential, Å; 0 for none.
    coarsenings : int
        How often the grid of the extended potential is coarsened.
    """
    low = np.floor((positions.min(axis=0) - vacuum) / h + 1e-9).astype(int)
    high = np.ceil((positions.max(axis=0) + vacuum) / h - 1e-9).astype(int)
    points = -(-(high - low) // GRID_MULTIPLE) * GRID_MULTIPLE
    low -= (points - (high - low)) // 2
    shift = -low * h
    extended = None
    if poisson_extension > 0:
        # The density lives on a grid of half the spacing. Every coarsened size, and the margin on
        # each side of it, has to come out whole.
        multiple = GRID_MULTIPLE * 2**coarsenings
        margin = math.ceil(poisson_extension / (h / 2) / multiple - 1e-9) * multiple
        extended = 2 * points + 2 * margin
    return GpawBox(
        positions=positions + shift,
        cell=np.diag(points * h),
        shift=shift,
        grid_points=_three(points),
        poisson_points=None if extended is None else _three(extended),
    )


def box_crystal(positions: np.ndarray, cell: np.ndarray, *, h: float) -> GpawBox:
    """Choose the grid of a crystal: the spacing nearest to `h` that its cell allows."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    points = (heights / h / GRID_MULTIPLE + 0.5).astype(int) * GRID_MULTIPLE
    return GpawBox(
        positions=np.array(positions),
        cell=np.array(cell),
        shift=np.zeros(3),
        grid_points=_three(np.maximum(points, GRID_MULTIPLE)),
        poisson_points=None,
    )


def _three(values: np.ndarray) -> tuple[int, int, int]:
    a, b, c = (int(v) for v in values)
    return a, b, c


# ---------------------------------------------------------------------------------- PAW data
@dataclass(frozen=True)
class PawData:
    """PAW data files of one functional: where they are, and their hash."""

    files: dict[str, Path]
    bases: dict[str, Path]
    sha256: str


@dataclass(frozen=True)
class PawAtom:
    """What one element costs: valence electrons, bands by default, projector functions."""

    valence: float
    default_bands: int
    projectors: int


def find_paw_data(directories: Sequence[Path], *, xc: str, basis: str | None) -> PawData:
    """Find the PAW data sets of a functional (and basis sets), in GPAW's order of search.

    Raises
    ------
    ReferenceError
        There are none.
    """
    return _find_paw_data(tuple(directories), xc, basis)


@functools.lru_cache(maxsize=16)
def _find_paw_data(directories: tuple[Path, ...], xc: str, basis: str | None) -> PawData:
    files = _first_of_each(directories, rf"([A-Z][a-z]?)\.{re.escape(xc)}(?:\.gz)?")
    bases: dict[str, Path] = {}
    if basis is not None:
        bases = _first_of_each(directories, rf"([A-Z][a-z]?)\.{re.escape(basis)}\.basis(?:\.gz)?")
    if not files:
        places = ", ".join(map(str, directories)) or "nowhere"
        raise ReferenceError(
            f"no PAW data for {xc} (looked in {places}); type: pip install gpaw-data"
        )
    digest = hashlib.sha256()
    for found in (files, bases):
        for symbol in sorted(found):
            digest.update(found[symbol].name.removesuffix(".gz").encode())
            digest.update(hashlib.sha256(found[symbol].read_bytes()).digest())
    return PawData(files=files, bases=bases, sha256=digest.hexdigest())


def _first_of_each(directories: Sequence[Path], pattern: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            continue
        for file in sorted(directory.iterdir()):
            match = re.fullmatch(pattern, file.name)
            if match:
                found.setdefault(match.group(1), file)
    return found


@functools.lru_cache(maxsize=256)
def read_paw_atom(file: Path) -> PawAtom:
    """Read valence states from the head of a PAW data file.

    Raises
    ------
    ReferenceError
        It is not one.
    """
    with open(file, "rb") as raw, gzip.open(raw) if file.suffix == ".gz" else raw as data:
        head = data.read(20000).decode(errors="replace")
    atom = re.search(r'<atom[^>]*valence="([0-9.]+)"', head)
    states = re.findall(r"<state ([^>]*?)/?>", head)
    if atom is None or not states:
        raise ReferenceError(f"{file} is no PAW data file")
    projectors = bands = 0
    for state in states:
        values = dict(re.findall(r'(\w+)="\s*([^"]*)"', state))
        degeneracy = 2 * int(values["l"]) + 1
        projectors += degeneracy
        if "n" in values:  # a bound state; GPAW counts these for its number of bands
            bands += degeneracy
    return PawAtom(valence=float(atom.group(1)), default_bands=bands, projectors=projectors)


# ---------------------------------------------------------------------------------- memory
@dataclass(frozen=True)
class Cost:
    """Size of a calculation before it starts, for schedulers and for the choice of clusters.

    Attributes
    ----------
    grid_points : tuple of int
    bands, projectors, electrons : int
    memory_bytes : float
        Upper estimate over all ranks.
    work : float
        Relative cost of one iteration: bands squared times grid points, plus what is linear in
        them; only ratios mean anything.
    """

    grid_points: tuple[int, int, int]
    bands: int
    projectors: int
    electrons: int
    memory_bytes: float
    work: float

    @property
    def memory_GB(self) -> float:
        """Upper estimate over all ranks, 1e9 bytes."""
        return self.memory_bytes / 1e9

    def describe(self) -> str:
        """What makes it large, in a few words."""
        return f"grid {'x'.join(map(str, self.grid_points))}, {self.bands} bands"


def count_bands(atoms: Sequence[PawAtom], charge: int = 0) -> int:
    """Bands that GPAW takes by default: a fifth more than occupied, and four, if so many exist."""
    valence = sum(a.valence for a in atoms) - charge
    return min(math.ceil(1.2 * valence / 2) + 4, sum(a.default_bands for a in atoms))


def estimate_cost(
    box: GpawBox,
    atoms: Sequence[PawAtom],
    *,
    mode: str,
    ranks: int,
    coarsenings: int,
    basis_factor: int = 4,
    charge: int = 0,
    spins: int = 1,
) -> Cost:
    """Estimate what a calculation needs, from its grid, bands and projectors.

    Never below the measured peak and at most 1.5 times it on the runs it was calibrated on
    (docs/reference.md).

    Parameters
    ----------
    box : GpawBox
    atoms : sequence of PawAtom
        One per atom.
    mode : {"fd", "lcao"}
    ranks : int
    coarsenings : int
        Of the extended Poisson grid.
    basis_factor : int
        Functions per valence state of an LCAO basis set, generously.
    charge : int
        Of the structure, e.
    spins : int
        2 for a spin-polarised calculation: every array of bands and of the density twice.
    """
    points = math.prod(box.grid_points)
    fine = 8 * points
    bands = count_bands(atoms, charge)
    projectors = sum(a.projectors for a in atoms)
    doubles = ARRAYS_FINE * fine * spins
    if box.poisson_points is not None:
        doubles += ARRAYS_LARGE * math.prod(n // 2**coarsenings for n in box.poisson_points)
        # The correction is refined on a grid with a margin for the stencils (range 3).
        margin = 3
        for _ in range(coarsenings):
            margin = 2 * margin + 3
        margin = -(-(margin + 3) // 2**coarsenings) * 2**coarsenings
        doubles += ARRAYS_AUXILIARY * math.prod(2 * n + 2 * margin for n in box.grid_points)
    if mode == "fd":
        psi = float(bands * points) * spins
        doubles += ARRAYS_BANDS * psi
        buffer = min(8.0 * psi, BAND_BUFFER * ranks)
        matrices = 8.0 * spins * (4 * (2 * bands) ** 2 + 6 * bands * projectors)
        work = psi * (bands + 100.0)
    else:
        functions = basis_factor * sum(a.default_bands for a in atoms)
        buffer = BASIS_VOLUME * len(atoms) * points / abs(np.linalg.det(box.cell))
        matrices = 8.0 * spins * (8 * functions**2 + 2 * functions * projectors)
        work = spins * (float(points * functions) + float(functions) ** 3 / 10)
    total = (
        LIBRARIES
        + ranks * (PER_RANK + PER_ATOM_AND_RANK * len(atoms))
        + 8.0 * doubles
        + buffer
        + matrices
    ) * MARGIN
    return Cost(
        grid_points=box.grid_points,
        bands=bands,
        projectors=projectors,
        electrons=round(sum(a.valence for a in atoms)),
        memory_bytes=total,
        work=work,
    )
