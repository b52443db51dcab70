"""Walks: molecular dynamics from one frame to a new one, checked, checkpointed, never fatal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.data import hash_arrays, make_structures, to_atoms
from mofal.data.ragged import TEXT
from mofal.dynamics.checkpoint import load_checkpoint, save_checkpoint
from mofal.dynamics.checks import (
    bond_lengths,
    check_bond_strain,
    check_cell,
    check_distances,
    check_motion,
)
from mofal.dynamics.integrator import FixedVolumeIntegrator, Integrator
from mofal.dynamics.limits import BondLimits, check_limits
from mofal.dynamics.settings import WalkSettings
from mofal.dynamics.watch import Density, Place, Watch
from mofal.errors import ConfigError, StructureError

Progress = Callable[[str], None]
Bonds = BondLimits | tuple[NDArray, NDArray, NDArray]
Seed = int | tuple[int, ...] | np.random.SeedSequence

STATUSES = ("finished", "bond_broken", "unfamiliar", "exploded", "crashed")
TRACE_VARIABLES = {
    "time_fs": "fs",
    "temperature_K": "K",
    "volume": "Å³",
    "potential_energy": "eV",
    "pressure_GPa": "GPa",
    "largest_force": "eV/Å",
    "largest_strain": "1",
}
SHAPE_VARIABLES = {"conserved_energy": "eV"}
"""Beside `TRACE_VARIABLES` where the shape of the cell moves at its volume."""


class Walk(NamedTuple):
    """What a walk leaves behind.

    Attributes
    ----------
    frame
        Structures Dataset with one structure: the last frame, its `parent` the start frame.
        Positions are continuous with the start frame's (never wrapped), so that lattice shifts of
        blocks and bonds stay valid.
    record
        Walks Dataset with one row (dim ``walk``): `start_frame` and `end_frame` (structure_id),
        `walk_system`, `walk_status` ("finished", "bond_broken", "unfamiliar", "exploded",
        "crashed") and its `walk_reason`, `unfamiliar_atoms` (JSON: those that ended the walk) and
        `unfamiliar_at_start` (how many there were),
        `ensemble`, `temperature_K`, `pressure_GPa` (NaN in NVT), `timestep_fs`, `planned_fs`,
        `length_fs` (where the frame was taken), `stopped_fs` (where the walk came to its end),
        `seed` (JSON), `model_hash`, `volume` (Å³). Join rows with ``xr.concat(..., "walk")``.
    trace
        Samples along the walk (dim ``sample``): time, temperature, volume, potential energy,
        pressure (kinetic part included; NaN where the calculator gives no stress), largest force,
        largest relative change of a bond's length (NaN where the walk was given no bonds); in
        "nvst" the conserved energy too (energy of atoms and cell less the heat of the bath).
    """

    frame: xr.Dataset
    record: xr.Dataset
    trace: xr.Dataset


def walk(
    structures: xr.Dataset,
    i: int = 0,
    *,
    calculator: Calculator | Callable[[], Calculator],
    settings: WalkSettings | None = None,
    seed: Seed,
    length_fs: float | None = None,
    bonds: Bonds | None = None,
    density: Density | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Walk:
    """Walk from one structure to a new one with Langevin dynamics (paper, section Exploration).

    Velocities (Maxwell-Boltzmann), pressure and noise come from three generators spawned from
    `seed`. A walk that explodes, or whose calculator fails on the way, ends at its last checkpoint
    and says so in its status; it raises nothing. Interrupted and called again with the same `out`,
    it goes on from the checkpoint and is bit for bit the walk that would have been, provided that
    the calculator's results depend on nothing but the structure.

    Parameters
    ----------
    structures
        Structures Dataset.
    i
        Which of them is the start frame.
    calculator
        An ASE calculator, or a function without arguments that makes one.
    settings
        Conditions; the defaults are the paper's.
    seed
        Whole number, tuple of them, or SeedSequence (it is not changed).
    length_fs
        Length of this walk where it differs from the settings' (see `walk_length`), fs.
    bonds
        What must hold together: a `BondLimits` (see `bond_limits`), or only pairs of atoms
        (n_bonds, 2), lattice shifts of the second against the first (n_bonds, 3), and the lengths
        (n_bonds,) in Å that `max_bond_strain` is meant against. None: bonds are not checked.
    density
        A calibrated density per element in the features of the potential: what it does not know
        ends the walk (see `WalkSettings.unfamiliar_quantile`). The calculator must put `features`
        into its results: ``potential.calculator(features=True)``.
    out
        File of the checkpoint. None keeps checkpoints in memory only.
    progress
        Called with one line at each checkpoint.

    Returns
    -------
    Walk
        Named tuple (frame, record, trace).

    Raises
    ------
    ConfigError, StructureError
        A walk that cannot be meant: NPT of a cluster, a length shorter than the barostat's time.
    StoreError
        `out` is the checkpoint of another walk.
    Exception
        Whatever the calculator raises on the start frame: a set-up that cannot work at all.

    Notes
    -----
    Source of the integrator: Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013); of the
    flexible cell: Quigley and Probert, J. Chem. Phys. 120, 11432 (2004), as in ASE.
    """
    settings = settings if settings is not None else WalkSettings()
    n_steps = settings.n_steps(length_fs)
    if settings.ensemble != "nvt" and n_steps * settings.timestep_fs <= settings.barostat_fs:
        raise ConfigError(
            f"a walk of {n_steps * settings.timestep_fs:g} fs with barostat_fs = "
            f"{settings.barostat_fs:g} does not feel the pressure: give a longer length_fs"
        )
    atoms = to_atoms(structures, i)
    atoms.calc = None
    if settings.ensemble != "nvt" and not (atoms.pbc.all() and abs(atoms.cell.volume) > 1e-6):
        raise StructureError(
            f"structure {i} is not periodic along all three cell vectors, as "
            f"{settings.ensemble.upper()} needs: "
            "write WalkSettings(ensemble='nvt')"
        )
    start_id = str(structures["structure_id"].values[i])
    runner = _Runner(
        atoms=atoms,
        calculator=_make_calculator(calculator),
        settings=settings,
        n_steps=n_steps,
        seed=_seed_sequence(seed),
        start_id=start_id,
        bonds=bonds,
        density=density if settings.unfamiliar_quantile > 0.0 else None,
        out=None if out is None else Path(out),
        progress=progress,
    )
    runner.run()
    return runner.result(
        system=str(structures["system"].values[i]), parent=str(structures["parent"].values[i])
    )


def _make_calculator(calculator: Any) -> Calculator:
    made = not isinstance(calculator, type) and hasattr(calculator, "get_potential_energy")
    return calculator if made else calculator()


def _seed_sequence(seed: Seed) -> np.random.SeedSequence:
    if isinstance(seed, np.random.SeedSequence):
        return seed
    return np.random.SeedSequence(seed)


def _stream(seed: np.random.SeedSequence, number: int) -> np.random.Generator:
    """Generator `number` of this seed, without counting up the children of the caller's object."""
    child = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, number))
    return np.random.Generator(np.random.PCG64(child))


@dataclass
class _Saved:
    """The last frame that passed every check."""

    step: int
    state: dict[str, NDArray]
    generator: dict[str, Any]
    bond_mean: NDArray = field(default_factory=lambda: np.zeros(0))
    watch: dict[str, NDArray] | None = None


class _Runner:
    """One walk in progress."""

    def __init__(
        self,
        *,
        atoms: Atoms,
        calculator: Calculator,
        settings: WalkSettings,
        n_steps: int,
        seed: np.random.SeedSequence,
        start_id: str,
        bonds: Bonds | None,
        density: Density | None,
        out: Path | None,
        progress: Progress | None,
    ) -> None:
        self.atoms = atoms
        self.settings = settings
        self.n_steps = n_steps
        self.start_id = start_id
        self.bonds = None if bonds is None else (*map(np.asarray, bonds),)
        self.limits = bonds if isinstance(bonds, BondLimits) else None
        # Of the relative change of every bond's length, over `bond_mean_fs`.
        self.bond_mean = np.zeros(0 if bonds is None else len(bonds[0]))
        self.watch = (
            None
            if density is None
            else Watch(
                density,
                settings.unfamiliar_quantile,
                max(1, round(settings.unfamiliar_fs / settings.timestep_fs)),
            )
        )
        self.unfamiliar: list[int] = []
        self.at_start = 0
        self.out = out
        self.progress = progress
        self.start_cell = np.array(atoms.cell.array)
        self.calculator = calculator
        self.model_hash = str(getattr(calculator, "model_hash", ""))
        theirs = str(getattr(density, "model_hash", ""))
        if theirs and self.model_hash and theirs != self.model_hash:
            raise ConfigError(
                f"the density was fitted on features of potential {theirs}, this walk's is "
                f"{self.model_hash}; features of two potentials are not comparable: fit the "
                "density anew"
            )
        self.seed_text = json.dumps(
            {"entropy": _plain(seed.entropy), "spawn_key": list(seed.spawn_key)}
        )
        low, high = settings.pressure_range
        self.pressure_GPa = float(_stream(seed, 0).uniform(low, high))
        self.velocities_rng = _stream(seed, 1)
        self.noise_rng = _stream(seed, 2)
        self.status = ""
        self.reason = ""
        self.stopped_step = 0
        self.trace: list[list[float]] = []
        self.saved: _Saved | None = None
        self.identity = json.dumps(
            {
                "settings": asdict(settings),
                "n_steps": n_steps,
                "seed": self.seed_text,
                "start frame": start_id,
                "model": self.model_hash,
                "bonds": "" if self.bonds is None else hash_arrays(*self.bonds),
                "density": str(getattr(density, "density_hash", "")),
            },
            sort_keys=True,
        )

    # -- life of a walk

    def run(self) -> None:
        found = None
        if self.out is not None:
            found = load_checkpoint(self.out, self.identity, say=self.progress)
        if found is not None and found[1]["status"]:
            self._recall(*found)
            return
        self.atoms.calc = self.calculator
        # On the start frame errors are the caller's to see: the set-up cannot work.
        integrator = self._integrator()
        if found is not None:
            self._recall(*found)
            assert self.saved is not None
            integrator.restore(self.saved.state)
            self.noise_rng.bit_generator.state = self.saved.generator
            self._say(f"walk goes on from {self.saved.step * self.settings.timestep_fs:g} fs")
            step = self.saved.step
        else:
            integrator.draw_momenta(self.velocities_rng)
            step = 0
            self._save(step, integrator)
            problem = self._motion(integrator) or self._distances()
            broken = "" if problem else self._bonds()
            if problem or broken:
                status = "exploded" if problem else "bond_broken"
                self._end(status, f"start frame: {problem or broken}", step)
                return
            if self.watch is not None:
                self.watch.begin(self._features(), self.atoms.numbers)
                self.at_start = int(self.watch.from_start.sum())
            self._sample(step, integrator)
        self._advance(integrator, step)

    def _integrator(self) -> Integrator:
        settings = self.settings
        npt = settings.ensemble == "npt"
        if settings.ensemble == "nvst":
            return FixedVolumeIntegrator(
                self.atoms,
                timestep_fs=settings.timestep_fs,
                temperature_K=settings.temperature_K,
                thermostat_fs=settings.thermostat_fs,
                barostat_fs=settings.barostat_fs,
                rng=self.noise_rng,
            )
        return Integrator(
            self.atoms,
            timestep_fs=settings.timestep_fs,
            temperature_K=settings.temperature_K,
            thermostat_fs=settings.thermostat_fs,
            rng=self.noise_rng,
            pressure_GPa=self.pressure_GPa if npt else None,
            barostat_fs=settings.barostat_fs if npt else None,
        )

    def _advance(self, integrator: Integrator, step: int) -> None:
        settings = self.settings
        while step < self.n_steps:
            step += 1
            problem = self._step(integrator)
            if self.status == "crashed":
                self._end("crashed", problem, step)
                return
            problem = problem or self._motion(integrator)
            last = step == self.n_steps
            checkpoint = step % settings.checkpoint_every == 0
            sample = last or step % settings.sample_every == 0
            broken = "" if problem else self._bonds()
            if not problem and not broken and (sample or checkpoint):
                problem = self._distances()
            if problem or broken:
                self._end("exploded" if problem else "bond_broken", problem or broken, step)
                return
            if sample:
                self._sample(step, integrator)
                if self.bonds is not None:
                    self._save(step, integrator)
            if self._lost(step):
                return
            if last:
                self._save(step, integrator)
                self._end("finished", "", step)
                return
            if checkpoint:
                self._save(step, integrator)
                self._write()
                self._say(
                    f"walk at {step * settings.timestep_fs:g} of "
                    f"{self.n_steps * settings.timestep_fs:g} fs, "
                    f"{self.atoms.get_temperature():.0f} K"
                )

    def _step(self, integrator: Integrator) -> str:
        """One step; what went wrong in it, if anything."""
        try:
            with np.errstate(all="ignore"):
                integrator.step()
        except (MemoryError, OSError, ImportError):  # the machine, not the walk
            raise
        except Exception as error:
            # A calculator refuses NaN and flown-away atoms in its own way: that is an explosion.
            # Anything else it raises ends this walk, and not the campaign.
            sane = np.all(np.isfinite(self.atoms.positions)) and np.all(
                np.isfinite(self.atoms.cell.array)
            )
            if sane:
                self.status = "crashed"
            first_line = (str(error).strip().splitlines() or [""])[0]
            return f"{type(error).__name__}: {first_line}"
        return ""

    def _motion(self, integrator: Integrator) -> str:
        problem = ""
        if integrator.flexible:
            problem = check_cell(
                self.start_cell, self.atoms.cell.array, max_stretch=self.settings.max_stretch
            )
        return problem or check_motion(
            self.atoms.positions,
            self.atoms.get_momenta(),
            integrator.accel * self.atoms.get_masses()[:, None],
            self.atoms.get_temperature(),
            highest_temperature=self.settings.max_temperature * self.settings.temperature_K,
            max_force=self.settings.max_force,
        )

    def _bonds(self) -> str:
        if self.bonds is None or len(self.bonds[0]) == 0:
            return ""
        settings = self.settings
        pairs, shifts, expected = self.bonds[:3]
        lengths = bond_lengths(self.atoms.positions, self.atoms.cell.array, pairs, shifts)
        if settings.max_bond_strain is not None:
            found = check_bond_strain(lengths, expected, pairs, max_strain=settings.max_bond_strain)
            if found:
                return found
        if self.limits is None:
            return ""
        strain = lengths / expected - 1.0
        share = min(1.0, settings.timestep_fs / settings.bond_mean_fs)
        self.bond_mean += share * (strain - self.bond_mean)
        return check_limits(
            strain,
            self.bond_mean,
            self.limits,
            most=np.inf if settings.bond_z is None else settings.bond_z,
            most_mean=np.inf if settings.bond_mean_z is None else settings.bond_mean_z,
        )

    def _largest_strain(self) -> float:
        """Largest relative change of a bond's length, without its sign; NaN without bonds."""
        if self.bonds is None or len(self.bonds[0]) == 0:
            return float("nan")
        pairs, shifts, expected = self.bonds[:3]
        lengths = bond_lengths(self.atoms.positions, self.atoms.cell.array, pairs, shifts)
        return float(np.abs(lengths / expected - 1.0).max())

    def _features(self) -> NDArray:
        found = self.calculator.results.get("features")
        if found is None:
            raise ConfigError(
                "a density can watch a walk only where its calculator gives features: write "
                "calculator=potential.calculator(features=True)"
            )
        return np.asarray(found, np.float64)

    def _lost(self, step: int) -> bool:
        """Whether atoms that the potential knew have been out of what it knows for too long."""
        if self.watch is None:
            return False
        atoms = self.watch.step(self._features(), self.atoms.numbers)
        if len(atoms) == 0:
            return False
        place = self.watch.first(step)
        if place is not None:
            arrays = {"positions": place.positions, "cell": place.cell}
            generator = {} if self.saved is None else self.saved.generator
            self.saved = _Saved(place.step, arrays, generator)
        self.unfamiliar = [int(a) for a in atoms]
        symbols = sorted({chemical_symbols[z] for z in self.atoms.numbers[atoms]})
        self._end(
            "unfamiliar",
            f"{len(atoms)} atom{'s' * (len(atoms) > 1)} ({', '.join(symbols)}) below the quantile "
            f"{self.settings.unfamiliar_quantile:g} for {self.settings.unfamiliar_fs:g} fs",
            step,
        )
        return True

    def _distances(self) -> str:
        return check_distances(
            self.atoms.numbers,
            self.atoms.positions,
            self.atoms.cell.array,
            self.atoms.pbc,
            shortest=self.settings.min_distance,
        )

    # -- records

    def _sample(self, step: int, integrator: Integrator) -> None:
        atoms = self.atoms
        pressure = np.nan
        if "stress" in self.calculator.results and atoms.pbc.all():
            stress = atoms.get_stress(voigt=True, include_ideal_gas=True)
            pressure = -float(np.mean(stress[:3])) / units.GPa
        forces = atoms.get_forces()
        self.trace.append(
            [
                step * self.settings.timestep_fs,
                float(atoms.get_temperature()),
                float(abs(atoms.cell.volume)),
                float(atoms.get_potential_energy()),
                pressure,
                float(np.sqrt(np.max(np.einsum("ij,ij->i", forces, forces)))),
                self._largest_strain(),
            ]
        )
        if self.watch is not None:
            self.watch.sample(Place(step, atoms.positions.copy(), np.array(atoms.cell.array)))
        if isinstance(integrator, FixedVolumeIntegrator):
            self.trace[-1].append(integrator.conserved_energy())

    def _save(self, step: int, integrator: Integrator) -> None:
        generator = json.loads(json.dumps(self.noise_rng.bit_generator.state))
        self.saved = _Saved(
            step,
            integrator.state(),
            generator,
            self.bond_mean.copy(),
            None if self.watch is None else self.watch.state(),
        )

    def _write(self) -> None:
        if self.out is None or self.saved is None:
            return
        arrays = {
            **self.saved.state,
            "trace": self._trace_array(),
            "bond_mean": self.saved.bond_mean,
            **(self.saved.watch or {}),
        }
        meta = {
            "step": self.saved.step,
            "generator": self.saved.generator,
            "status": self.status,
            "reason": self.reason,
            "stopped_step": self.stopped_step,
            "unfamiliar": self.unfamiliar,
            "unfamiliar_at_start": self.at_start,
        }
        save_checkpoint(self.out, self.identity, arrays, meta)

    def _recall(self, arrays: dict[str, NDArray], meta: dict[str, Any]) -> None:
        self.trace = arrays.pop("trace").tolist()
        self.bond_mean = arrays.pop("bond_mean")
        self.unfamiliar = [int(a) for a in meta["unfamiliar"]]
        self.at_start = int(meta["unfamiliar_at_start"])
        watched = {k: arrays.pop(k) for k in list(arrays) if k.startswith("watch_")}
        if self.watch is not None and watched:
            self.watch.restore(watched)
        self.saved = _Saved(int(meta["step"]), arrays, meta["generator"])
        self.status = str(meta["status"])
        self.reason = str(meta["reason"])
        self.stopped_step = int(meta["stopped_step"])

    def _end(self, status: str, reason: str, step: int) -> None:
        self.status, self.reason, self.stopped_step = status, reason, step
        self._write()
        time_fs = step * self.settings.timestep_fs
        self._say(
            f"walk {status.replace('_', ' ')} at {time_fs:g} fs" + (f": {reason}" if reason else "")
        )

    def _trace_array(self) -> NDArray:
        return np.array(self.trace, dtype=float).reshape(-1, len(self.columns))

    @property
    def columns(self) -> dict[str, str]:
        """Names and units of what is sampled."""
        shape = self.settings.ensemble == "nvst"
        return TRACE_VARIABLES | (SHAPE_VARIABLES if shape else {})

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text)

    def result(self, *, system: str, parent: str) -> Walk:
        assert self.saved is not None
        settings = self.settings
        cell = self.saved.state["cell"]
        frame = make_structures(
            self.atoms.numbers,
            self.saved.state["positions"],
            n_atoms=[len(self.atoms)],
            cell=cell[None],
            pbc=self.atoms.pbc[None],
            system=system,
            # A walk that never got to a checkpoint returns its start frame, which is no child of
            # itself.
            parent=self.start_id if self.saved.step else parent,
        )
        npt = settings.ensemble == "npt"
        row: dict[str, Any] = {
            "start_frame": self.start_id,
            "end_frame": str(frame["structure_id"].values[0]),
            "walk_system": system,
            "ensemble": settings.ensemble,
            "temperature_K": float(settings.temperature_K),
            "pressure_GPa": self.pressure_GPa if npt else np.nan,
            "timestep_fs": float(settings.timestep_fs),
            "planned_fs": self.n_steps * settings.timestep_fs,
            "length_fs": self.saved.step * settings.timestep_fs,
            "stopped_fs": self.stopped_step * settings.timestep_fs,
            "walk_status": self.status,
            "walk_reason": self.reason,
            "unfamiliar_atoms": json.dumps(self.unfamiliar),
            "unfamiliar_at_start": self.at_start,
            "seed": self.seed_text,
            "model_hash": self.model_hash,
            "volume": float(abs(np.linalg.det(cell))),
        }
        record = xr.Dataset({name: ("walk", _column(value)) for name, value in row.items()})
        values = self._trace_array()
        trace = xr.Dataset(
            {
                name: ("sample", values[:, column], {"units": unit})
                for column, (name, unit) in enumerate(self.columns.items())
            },
            attrs={"system": system, "start_frame": self.start_id},
        )
        return Walk(frame, record, trace)


def _column(value: Any) -> NDArray:
    """An array of one row; text in the dtype that the store keeps."""
    return np.array([value], TEXT) if isinstance(value, str) else np.array([value])


def _plain(entropy: Any) -> Any:
    """Entropy of a SeedSequence in a form that JSON holds."""
    if entropy is None or isinstance(entropy, int):
        return entropy
    return [int(value) for value in np.atleast_1d(entropy)]
