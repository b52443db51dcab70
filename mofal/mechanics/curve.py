"""E(V): relaxed structures over a grid of volumes, walked from the minimum outwards and back.

Each volume starts from its relaxed neighbour with a small seeded displacement. The way back finds
what the way out did not: of the two energies the lower one counts, their difference is hysteresis.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units

from mofal.data import (
    atomic_path,
    describe,
    hash_arrays,
    hash_json,
    make_structures,
    to_atoms,
    write_group,
)
from mofal.data.ragged import TEXT
from mofal.dynamics.checks import bond_lengths
from mofal.errors import ConfigError, DataError, StoreError
from mofal.mechanics.equations import Windows, fit_windows
from mofal.mechanics.levels import Level
from mofal.mechanics.pieces import CALLS, Piece
from mofal.mechanics.relaxation import (
    Bonds,
    Criteria,
    Relaxed,
    deviator,
    displaced,
    relax,
    scaled,
)
from mofal.reference.ase_calculator import limit_threads

if TYPE_CHECKING:
    import xarray as xr

RESULTS = ("curve.zarr", "fit.zarr", "motion.zarr")
"""Groups that are made of the points."""


@dataclass(frozen=True)
class CurveSettings:
    """How E(V) is made.

    Attributes
    ----------
    volumes : int
        Points of the grid, odd: the minimum in the middle.
    spacing : float
        Relative distance of two volumes.
    grid : tuple of float
        Volumes in Å³ instead (of the cell given).
    both_ways : bool
        Also walk back from the ends, for the hysteresis.
    displacement : float
        Of the seeded displacements that break symmetry, Å.
    seed : int
    tolerance : float
        Relative spread of the bulk moduli at which the equations of state agree.
    criteria : Criteria
        When a relaxation ends.
    """

    volumes: int = 9
    spacing: float = 0.005
    grid: tuple[float, ...] = ()
    both_ways: bool = True
    displacement: float = 0.01
    seed: int = 0
    tolerance: float = 0.02
    criteria: Criteria = field(default_factory=Criteria)

    def __post_init__(self) -> None:
        if self.grid:
            if len(set(self.grid)) < 5 or min(self.grid) <= 0:
                raise ConfigError(
                    f"the grid holds {len(set(self.grid))} volumes, expected at least 5 above zero"
                )
        elif self.volumes < 5 or self.volumes % 2 == 0:
            raise ConfigError(f"volumes is {self.volumes}, expected an odd number of at least 5")
        if not 0 < self.spacing * (self.volumes - 1) / 2 < 0.5:
            raise ConfigError(
                f"a spacing of {self.spacing:g} over {self.volumes} volumes leaves the crystal; "
                "expected e.g. 0.005"
            )
        if self.displacement < 0 or self.seed < 0 or not 0 < self.tolerance < 1:
            raise ConfigError(
                "displacement and seed are expected from 0 up, tolerance between 0 and 1"
            )


def bonds_at_start(atoms: Atoms, blocks: xr.Dataset | None) -> Bonds | None:
    """Bonds of the blocks with their lengths in a structure: what must hold together."""
    if blocks is None or "bond_atom" not in blocks:
        return None
    pairs, shifts = blocks["bond_atom"].values, blocks["bond_shift"].values
    return pairs, shifts, bond_lengths(atoms.positions, atoms.cell.array, pairs, shifts)


class Curve:
    """The E(V) of one structure at one level, in one directory.

    Parameters
    ----------
    structure : Dataset of structures
        One crystal.
    level : Level
    directory : path
        Of the points and of the result; what is there already is used.
    settings : CurveSettings, optional
    blocks : Dataset, optional
        Blocks of the structure, whose bonds must hold and whose motion is told.
    """

    def __init__(
        self,
        structure: xr.Dataset,
        level: Level,
        *,
        directory: str | Path,
        settings: CurveSettings | None = None,
        blocks: xr.Dataset | None = None,
    ) -> None:
        self.settings = settings or CurveSettings()
        self.level = level
        self.structure = structure
        self.blocks = blocks
        self.system = str(structure["system"].values[0]) or "structure"
        content = {
            "structure": str(structure["structure_id"].values[0]),
            "level": level.key,
            "settings": asdict(self.settings),
        }
        self.key = hash_json(_plain(content))
        self.place = Path(directory) / f"eos-{self.key[:10]}"
        self._found: Record | None = None

    # -- what is to be done
    @property
    def start(self) -> Path:
        """Record of the start structure."""
        return self.place / "points" / "start.npz"

    def prepare(self) -> None:
        """Write what the pieces start from."""
        if self.start.exists():
            return
        atoms = to_atoms(self.structure, 0)
        bonds = bonds_at_start(atoms, self.blocks)
        if bonds is not None:
            names = ("bond_atom", "bond_shift", "bond_length")
            _save(self.place / "points" / "bonds.npz", dict(zip(names, bonds)))
        Record.of(atoms, "start", None, None).save(self.start)

    def point(self, name: str) -> Path:
        """Record of a point: ``minimum``, ``out-003``, ``back+002``."""
        return self.place / "points" / f"{name}.npz"

    def _minimum(self) -> Record:
        if self._found is None:
            self._found = Record.load(self.point("minimum"))
        return self._found

    @property
    def minimum_volume(self) -> float:
        """Volume of the relaxed minimum, Å³."""
        return self._minimum().volume

    def piece(self, name: str, source: Path, needs: tuple[Path, ...], **more: Any) -> Piece:
        """The relaxation of a point, at a volume or (None) with a free cell."""
        kwargs = {
            "place": str(self.place.absolute()),
            "name": name,
            "source": str(source.absolute()),
            "level": asdict(self.level),
            "displacement": self.settings.displacement,
            "seed": [self.settings.seed, _stream(name)],
            "criteria": asdict(self.settings.criteria),
            **more,
        }
        n = int(self.structure["n_atoms"].values[0])
        key = hash_json([self.key, name])
        return Piece(
            "relax",
            f"{self.system} {name}",
            relax_point,
            kwargs,
            self.point(name),
            needs,
            float(CALLS["relax"] * n),
            key,
        )

    def first(self) -> Piece:
        """The minimum, with a free cell: the grid stands around it."""
        return self.piece("minimum", self.start, (), volume=None)

    def pieces(self) -> list[Piece]:
        """All pieces that are known now: the rest is known once the minimum is there."""
        first = self.first()
        if not first.done or not self.sound:
            return [first]
        return [first, *self.rest()]

    @property
    def sound(self) -> bool:
        """Whether the minimum was found."""
        return self._minimum().status == "relaxed"

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return all(piece.done for piece in self.pieces())

    def forget_failed(self) -> int:
        """Remove points that failed and all that began from them; returns how many."""
        gone: set[Path] = set()
        for piece in self.pieces() if self.start.exists() else []:
            stale = bool(gone.intersection(piece.needs))
            if piece.done and not stale:
                stale = Record.load(piece.output).status != "relaxed"
            if stale:
                gone.add(piece.output)
        for path in gone:
            path.unlink(missing_ok=True)
        self._found = None
        if gone:
            for name in RESULTS:
                shutil.rmtree(self.place / name, ignore_errors=True)
        return len(gone)

    def grid(self) -> tuple[float, ...]:
        """Volumes of the grid, Å³, once the minimum is there."""
        if self.settings.grid:
            return tuple(sorted(set(self.settings.grid)))
        centre = self._minimum().volume
        half = (self.settings.volumes - 1) // 2
        return tuple(centre * (1.0 + self.settings.spacing * k) for k in range(-half, half + 1))

    def rest(self) -> list[Piece]:
        """All other points, in an order in which they can be done."""
        grid = self.grid()
        centre = self._minimum().volume
        nearest = int(np.argmin(np.abs(np.array(grid) - centre)))
        out: list[Piece] = []
        last = self._out(out, "out+000", grid[nearest], "minimum")
        ends = {}
        for sign in (-1, 1):
            previous = last
            steps = nearest if sign < 0 else len(grid) - 1 - nearest
            for k in range(1, steps + 1):
                name = f"out{sign * k:+04d}"
                previous = self._out(out, name, grid[nearest + sign * k], previous)
            ends[sign] = (previous, steps)
        if self.settings.both_ways:
            for sign, (previous, steps) in ends.items():
                for k in range(steps - 1, -1, -1):
                    # Both ways back end at the centre: each under its own name.
                    name = f"back{sign * k:+04d}" if k else f"back{'-' if sign < 0 else '+'}000"
                    previous = self._out(out, name, grid[nearest + sign * k], previous)
        return out

    def _out(self, out: list[Piece], name: str, volume: float, previous: str) -> str:
        source = self.point(previous)
        out.append(self.piece(name, source, (source,), volume=volume))
        return name

    # -- what was found
    def gather(self) -> xr.Dataset:
        """Join the points that are there: relaxed structures with energy, forces, stress.

        Written as ``curve.zarr`` once all are; the minimum is its first structure.
        """
        records = [Record.load(p.output) for p in self.pieces() if p.done]
        out = curve_dataset(records, self.structure, self.system)
        out.attrs.update(
            level=self.level.spec, level_kind=self.level.kind, level_identity=self.level.identity
        )
        if self.level.kind == "potential":
            out.attrs["engine"] = self.level.engine
        if self.complete:
            write_group(out, self.place / "curve.zarr")
        return out


def _plain(content: Any) -> Any:
    """Numbers as floats where settings hold either, so that 1 and 1.0 are one setting."""
    if isinstance(content, dict):
        return {k: _plain(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(v) for v in content]
    if isinstance(content, (int, float)) and not isinstance(content, bool):
        return float(content)
    return content


def _stream(name: str) -> int:
    """Number of a point's own random stream."""
    return int(hash_arrays(np.array([name]))[:12], 16)


@dataclass(frozen=True)
class Record:
    """One point, as it lies on disk: numbers alone, in one file.

    Attributes
    ----------
    name, status, reason : str
    numbers, positions, cell : arrays
        (n,), (n, 3) Å, (3, 3) Å.
    target : float
        Volume asked for, Å³; NaN for a free cell.
    energy : float
        eV.
    forces, stress : arrays
        (n, 3) eV/Å, (6,) eV/Å³.
    force_calls : int
    """

    name: str
    status: str
    reason: str
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    target: float
    energy: float
    forces: np.ndarray
    stress: np.ndarray
    force_calls: int

    @classmethod
    def of(cls, atoms: Atoms, name: str, relaxed: Relaxed | None, target: float | None) -> Record:
        """Record of a structure; without a relaxation it is a start."""
        n = len(atoms)
        return cls(
            name,
            "" if relaxed is None else relaxed.status,
            "" if relaxed is None else relaxed.reason,
            np.array(atoms.numbers),
            np.array(atoms.positions),
            np.array(atoms.cell.array),
            np.nan if target is None else float(target),
            np.nan if relaxed is None else relaxed.energy,
            np.full((n, 3), np.nan) if relaxed is None else relaxed.forces,
            np.full(6, np.nan) if relaxed is None else relaxed.stress,
            0 if relaxed is None else relaxed.force_calls,
        )

    @property
    def atoms(self) -> Atoms:
        """The structure."""
        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=True)

    @property
    def volume(self) -> float:
        """Volume, Å³."""
        return float(abs(np.linalg.det(self.cell)))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        _save(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Raises
        ------
        StoreError
            It is damaged.
        """
        values: dict[str, Any] = dict(_load(path))
        for name in ("name", "status", "reason"):
            values[name] = str(values[name])
        for name in ("target", "energy"):
            values[name] = float(values[name])
        values["force_calls"] = int(values["force_calls"])
        return cls(**values)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        entries: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
        np.savez(stream, **entries)
        stream.flush()
        os.fsync(stream.fileno())


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); remove it, and run the same command again"
        ) from None


def bonds_of(points: Path) -> Bonds | None:
    """Bonds that must hold, where a curve has kept some beside its points."""
    watched = points / "bonds.npz"
    if not watched.exists():
        return None
    table = _load(watched)
    return table["bond_atom"], table["bond_shift"], table["bond_length"]


def relax_point(
    *,
    place: str,
    name: str,
    source: str,
    level: dict[str, Any],
    volume: float | None,
    displacement: float,
    seed: Sequence[int],
    criteria: dict[str, Any],
) -> dict[str, Any]:
    """Relax one point and write it; a point that fails is written with its reason."""
    begin = Record.load(Path(source)).atoms
    bonds = bonds_of(Path(place) / "points")
    begin = displaced(begin, displacement, tuple(seed))
    if volume is not None:
        begin = scaled(begin, volume)
    with limit_threads(1):
        relaxed = relax(
            begin,
            Level(**level).calculator(),
            cell="free" if volume is None else "volume",
            criteria=Criteria(**criteria),
            bonds=bonds,
        )
    # A point that failed hands its undisturbed start on: the next one may still hold.
    frame = relaxed.atoms if relaxed.status in ("relaxed", "not_converged") else begin
    Record.of(frame, name, relaxed, volume).save(Path(place) / "points" / f"{name}.npz")
    text = (
        f"{frame.get_volume():.2f} Å³, {relaxed.energy:.4f} eV, "
        f"{relaxed.pressure_GPa:.3f} GPa, {relaxed.force_calls} force calls"
    )
    return {
        "status": relaxed.status,
        "reason": relaxed.reason,
        "text": text,
        "force_calls": relaxed.force_calls,
    }


def curve_dataset(records: Sequence[Record], structure: xr.Dataset, system: str) -> xr.Dataset:
    """Relaxed structures with their labels and how they were found, in the order given."""
    parent = str(structure["structure_id"].values[0])
    ds = make_structures(
        np.concatenate([r.numbers for r in records]),
        np.concatenate([r.positions for r in records]),
        n_atoms=[len(r.numbers) for r in records],
        cell=np.array([r.cell for r in records]),
        pbc=True,
        system=system,
        parent=parent,
    )
    forces = [r.forces for r in records]
    stress = np.array([r.stress for r in records])
    with np.errstate(invalid="ignore"):
        deviatoric = [float(np.abs(deviator(s)).max()) / units.GPa for s in stress]
        largest = [float(np.abs(f).max()) for f in forces]
    extra: dict[str, tuple[Any, Any]] = {
        "energy": ("structure", [r.energy for r in records]),
        "forces": (("atom", "xyz"), np.concatenate(forces)),
        "stress": (("structure", "voigt"), stress),
        "relaxed_volume": ("structure", [r.volume for r in records]),
        "target_volume": ("structure", [r.target for r in records]),
        "relaxed_pressure": ("structure", -stress[:, :3].mean(axis=1) / units.GPa),
        "deviatoric_stress": ("structure", deviatoric),
        "largest_force": ("structure", largest),
        "force_calls": ("structure", np.array([r.force_calls for r in records], np.int64)),
        "curve_point": ("structure", np.array([r.name for r in records], TEXT)),
        "point_status": ("structure", np.array([r.status for r in records], TEXT)),
        "point_reason": ("structure", np.array([r.reason for r in records], TEXT)),
    }
    return describe(ds.assign(extra))


class Minimum:
    """The minimum of a curve alone, as a plan: what elastic constants begin from."""

    def __init__(self, curve: Curve) -> None:
        self.curve = curve

    def prepare(self) -> None:
        """Write what it starts from."""
        self.curve.prepare()

    def pieces(self) -> list[Piece]:
        """One piece."""
        return [self.curve.first()]

    def forget_failed(self) -> int:
        """Remove the minimum where it failed."""
        return self.curve.forget_failed()


@dataclass(frozen=True)
class EnergyVolume:
    """E(V) of one system, the lower of both ways at each volume.

    Attributes
    ----------
    index : (n,) int array
        Row of the curve that counts at each volume.
    volume, energy, pressure : (n,) arrays
        Å³, eV, GPa; ascending volume.
    hysteresis : (n,) array
        Energy of the way out less that of the way back, eV; NaN where there is one way only.
    windows : Windows or None
        Fits; None where they are refused, with `problem` saying why.
    problem : str
    failed : list of str
        Points without an energy, one line each.
    """

    index: np.ndarray
    volume: np.ndarray
    energy: np.ndarray
    pressure: np.ndarray
    hysteresis: np.ndarray
    windows: Windows | None
    problem: str
    failed: list[str]


def energy_volume(curve: xr.Dataset, *, tolerance: float = 0.02) -> EnergyVolume:
    """Take the lower energy at each volume, and fit equations of state.

    Parameters
    ----------
    curve : Dataset
        Of `Curve.gather`.
    tolerance : float
        See `fit_windows`.
    """
    names = [str(p) for p in curve["curve_point"].values]
    status = [str(s) for s in curve["point_status"].values]
    target = curve["target_volume"].values
    energy = curve["energy"].values
    failed = [
        f"{n}: {s}: {r}"
        for n, s, r in zip(names, status, (str(r) for r in curve["point_reason"].values))
        if s != "relaxed"
    ]
    good = np.array([s == "relaxed" for s in status]) & np.isfinite(target)
    rows, ways = [], []
    for wanted in np.unique(target[np.isfinite(target)]):
        mine = np.flatnonzero(good & (target == wanted))
        if not len(mine):
            continue
        rows.append(int(mine[np.argmin(energy[mine])]))
        out = [energy[k] for k in mine if names[k].startswith("out")]
        back = [energy[k] for k in mine if names[k].startswith("back")]
        ways.append(min(out) - min(back) if out and back else np.nan)
    index = np.array(rows, int)
    volume, pressure = (
        curve["relaxed_volume"].values[index],
        curve["relaxed_pressure"].values[index],
    )
    windows, problem = None, ""
    try:
        windows = fit_windows(volume, energy[index], pressure * units.GPa, tolerance=tolerance)
    except DataError as error:
        problem = str(error)
    return EnergyVolume(
        index, volume, energy[index], pressure, np.array(ways), windows, problem, failed
    )


def fit_table(found: EnergyVolume) -> xr.Dataset:
    """Fits as a table (dims ``equation`` and ``volume_point``) with units."""
    import xarray as xr

    variables: dict[str, Any] = {
        "curve_structure": ("volume_point", found.index),
        "point_volume": ("volume_point", found.volume),
        "point_energy": ("volume_point", found.energy),
        "point_pressure": ("volume_point", found.pressure),
        "hysteresis": ("volume_point", found.hysteresis),
    }
    attrs: dict[str, Any] = {"problem": found.problem, "failed": "\n".join(found.failed)}
    w = found.windows
    if w is not None:
        fits = [*w.fits, w.energy_alone]
        names = [f.equation for f in w.fits] + ["Birch-Murnaghan, energies alone"]
        variables |= {
            "equation_of_state": ("equation", np.array(names, TEXT)),
            "bulk_modulus": ("equation", np.array([f.bulk_modulus for f in fits])),
            "equilibrium_volume": ("equation", np.array([f.volume for f in fits])),
            "equilibrium_energy": ("equation", np.array([f.energy for f in fits])),
            "bulk_modulus_derivative": ("equation", np.array([f.derivative for f in fits])),
            "energy_residual": ("equation", np.array([f.residual for f in fits])),
            "pressure_residual": ("equation", np.array([f.pressure_residual for f in fits])),
        }
        attrs |= {
            "window_A3": list(w.window),
            "window_volumes": w.n_volumes,
            "spread": w.spread,
            "misfit": w.misfit,
            "agreed": int(w.agreed),
        }
    return describe(xr.Dataset(variables, attrs=attrs))
