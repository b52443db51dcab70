"""One walk: what it has seen, what it leaves behind, and its checkpoints."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.data import hash_arrays, make_structures
from mofal.data.ragged import TEXT
from mofal.dynamics.checkpoint import load_checkpoint, save_checkpoint
from mofal.dynamics.engine import Engine
from mofal.dynamics.integrator import Member
from mofal.dynamics.limits import BondLimits
from mofal.dynamics.settings import FORMER_DEFAULTS, WalkSettings
from mofal.dynamics.watch import Density, Place, Watch
from mofal.errors import ConfigError

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
WATCH_VARIABLES = {"lowest_quantile": "1", "unfamiliar_now": "1"}
"""Beside them where a density is on board: of all atoms that were familiar at the start."""


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
        `unfamiliar_at_start` (how many there were), `walk_engine` (what gave the forces),
        `ensemble`, `temperature_K`, `pressure_GPa` (NaN in NVT), `timestep_fs`, `planned_fs`,
        `length_fs` (where the frame was taken), `stopped_fs` (where the walk came to its end),
        `seed` (JSON), `model_hash`, `volume` (Å³). Join rows with ``xr.concat(..., "walk")``.
    trace
        Samples along the walk (dim ``sample``): time, temperature, volume, potential energy,
        pressure (kinetic part included; NaN where the calculator gives no stress), largest force,
        largest relative change of a bond's length (NaN where the walk was given no bonds); in
        "nvst" the conserved energy too (energy of atoms and cell less the heat of the bath).
    collected
        Structures Dataset of the frames in which atoms became unfamiliar, where the settings ask
        for them (``when_unfamiliar="collect"``); their `parent` is the start frame.
    """

    frame: xr.Dataset
    record: xr.Dataset
    trace: xr.Dataset
    collected: xr.Dataset | None = None


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


class Walker:
    """One walk: its conditions, what it has seen so far, and how it ends.

    Where it is at the moment is the batch's to know (`mofal.dynamics.crew`).
    """

    def __init__(
        self,
        *,
        atoms: Atoms,
        engine: Engine,
        settings: WalkSettings,
        n_steps: int,
        seed: np.random.SeedSequence,
        start_id: str,
        system: str,
        parent: str,
        bonds: Bonds | None,
        density: Density | None,
        out: Path | None,
        progress: Progress | None,
    ) -> None:
        self.atoms = atoms
        self.settings = settings
        self.n_steps = n_steps
        self.start_id, self.system, self.parent = start_id, system, parent
        self.bonds = None if bonds is None else (*map(np.asarray, bonds),)
        self.limits = bonds if isinstance(bonds, BondLimits) else None
        # Of the relative change of every bond's length, over `bond_mean_fs`.
        self.bond_mean = np.zeros(0 if bonds is None else len(bonds[0]))
        self.watch = (
            None
            if density is None
            else Watch(
                settings.unfamiliar_quantile,
                max(1, round(settings.unfamiliar_fs / settings.timestep_fs)),
            )
        )
        self.unfamiliar: list[int] = []
        self.at_start = 0
        self.collected: list[Place] = []
        self.out = out
        self.progress = progress
        self.start_cell = np.array(atoms.cell.array)
        self.model_hash, self.engine_name = engine.model_hash, engine.name
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
        self.step = self.stopped_step = 0
        self.trace: list[list[float]] = []
        self.saved: _Saved | None = None
        known = asdict(settings)
        if known["when_unfamiliar"] == "stop":  # not named before there was a choice
            del known["when_unfamiliar"]
        if density is None:
            # Nothing is watched: the defaults that there were before are in older checkpoints.
            for name, former in FORMER_DEFAULTS.items():
                if known[name] == getattr(WalkSettings, name):
                    known[name] = former
        self.identity = json.dumps(
            {
                "settings": known,
                "n_steps": n_steps,
                "seed": self.seed_text,
                "start frame": start_id,
                "model": self.model_hash,
                # One engine from beginning to end: last digits differ between them.
                "engine": getattr(engine, "identity", ""),
                "bonds": "" if self.bonds is None else hash_arrays(*self.bonds),
                "density": str(getattr(density, "density_hash", "")),
            },
            sort_keys=True,
        )

    # -- beginning and end
    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return bool(self.status)

    def member(self) -> Member | None:
        """Its part of a batch, at its start or its checkpoint; None for a walk that has ended."""
        found = None
        if self.out is not None:
            found = load_checkpoint(self.out, self.identity, say=self.progress)
        if found is not None:
            self._recall(*found)
            if self.ended:
                return None
        settings = self.settings
        member = Member(
            numbers=self.atoms.numbers.copy(),
            pbc=np.array(self.atoms.pbc),
            masses=self.atoms.get_masses(),
            timestep_fs=settings.timestep_fs,
            temperature_K=settings.temperature_K,
            thermostat_fs=settings.thermostat_fs,
            barostat_fs=settings.barostat_fs,
            pressure_GPa=self.pressure_GPa if settings.ensemble == "npt" else 0.0,
            rng=self.noise_rng,
        )
        if found is None:
            member.place(self.atoms.positions, self.atoms.cell.array)
            member.draw_momenta(self.velocities_rng, ensemble=settings.ensemble)
            return member
        assert self.saved is not None
        member.state = dict(self.saved.state)
        # A version before kept accelerations, and no heat where there was a pressure.
        member.state.setdefault("heat", np.array(0.0))
        self.noise_rng.bit_generator.state = self.saved.generator
        self.step = self.saved.step
        self.say(f"walk goes on from {self.saved.step * settings.timestep_fs:g} fs")
        return member

    def end(self, status: str, reason: str) -> None:
        """End here and write that down."""
        self.status, self.reason, self.stopped_step = status, reason, self.step
        self.write()
        time_fs = self.step * self.settings.timestep_fs
        self.say(
            f"walk {status.replace('_', ' ')} at {time_fs:g} fs" + (f": {reason}" if reason else "")
        )

    def lose(self, atoms: NDArray) -> None:
        """End because these atoms have been unfamiliar for too long, where that began."""
        assert self.watch is not None
        place = self.watch.first(self.step)
        if place is not None:
            arrays = {"positions": place.positions, "cell": place.cell}
            generator = {} if self.saved is None else self.saved.generator
            self.saved = _Saved(place.step, arrays, generator)
        self.unfamiliar = [int(a) for a in atoms]
        symbols = sorted({chemical_symbols[z] for z in self.atoms.numbers[atoms]})
        self.end(
            "unfamiliar",
            f"{len(atoms)} atom{'s' * (len(atoms) > 1)} ({', '.join(symbols)}) below the quantile "
            f"{self.settings.unfamiliar_quantile:g} for {self.settings.unfamiliar_fs:g} fs",
        )

    def mark(self, atoms: NDArray) -> None:
        """Record these atoms and go on; where the settings collect, keep the frame too."""
        assert self.watch is not None
        if not self.watch.note(atoms):
            return
        self.unfamiliar = [int(a) for a in np.flatnonzero(self.watch.noted)]
        if self.settings.when_unfamiliar == "collect":
            place = self.watch.first(self.step)
            if place is not None and all(p.step != place.step for p in self.collected):
                self.collected.append(place)

    # -- records
    def save(self, state: dict[str, NDArray]) -> None:
        """Keep a state that passed every check."""
        self.saved = _Saved(
            self.step,
            state,
            copy.deepcopy(dict(self.noise_rng.bit_generator.state)),
            self.bond_mean.copy(),
            None if self.watch is None else self.watch.state(),
        )

    def write(self) -> None:
        """Write the checkpoint."""
        if self.out is None or self.saved is None:
            return
        n = len(self.atoms)
        arrays = {
            **self.saved.state,
            "trace": self._trace_array(),
            "bond_mean": self.saved.bond_mean,
            **(self.saved.watch or {}),
        }
        if self.collected:
            arrays |= {
                "collected_steps": np.array([p.step for p in self.collected], np.int64),
                "collected_positions": np.array([p.positions for p in self.collected]),
                "collected_cells": np.array([p.cell for p in self.collected]).reshape(-1, 3, 3),
            }
            assert arrays["collected_positions"].shape[1:] == (n, 3)
        meta = {
            "step": self.saved.step,
            "generator": self.saved.generator,
            "status": self.status,
            "reason": self.reason,
            "stopped_step": self.stopped_step,
            "unfamiliar": self.unfamiliar,
            "unfamiliar_at_start": self.at_start,
            "engine": self.engine_name,
        }
        save_checkpoint(self.out, self.identity, arrays, meta)

    def _recall(self, arrays: dict[str, NDArray], meta: dict[str, Any]) -> None:
        # A version before sampled fewer things.
        missing = len(self.columns) - arrays["trace"].shape[1]
        padding = ((0, 0), (0, max(0, missing)))
        self.trace = np.pad(arrays.pop("trace"), padding, constant_values=np.nan).tolist()
        self.bond_mean = arrays.pop("bond_mean")
        self.unfamiliar = [int(a) for a in meta["unfamiliar"]]
        self.at_start = int(meta["unfamiliar_at_start"])
        self.engine_name = str(meta.get("engine", self.engine_name))
        watched = {k: arrays.pop(k) for k in list(arrays) if k.startswith("watch_")}
        if self.watch is not None and watched:
            self.watch.restore(watched)
        kept = [arrays.pop(f"collected_{k}", np.zeros(0)) for k in ("steps", "positions", "cells")]
        self.collected = [Place(int(s), x, c) for s, x, c in zip(*kept)]
        self.saved = _Saved(int(meta["step"]), arrays, meta["generator"], self.bond_mean.copy())
        self.status = str(meta["status"])
        self.reason = str(meta["reason"])
        self.stopped_step = int(meta["stopped_step"])

    def _trace_array(self) -> NDArray:
        return np.array(self.trace, dtype=float).reshape(-1, len(self.columns))

    @property
    def columns(self) -> dict[str, str]:
        """Names and units of what is sampled."""
        shape = self.settings.ensemble == "nvst"
        watched = WATCH_VARIABLES if self.watch is not None else {}
        return TRACE_VARIABLES | (SHAPE_VARIABLES if shape else {}) | watched

    def say(self, text: str) -> None:
        """Tell whoever listens."""
        if self.progress is not None:
            self.progress(text)

    def _frames(self, positions: NDArray, cells: NDArray, parent: str) -> xr.Dataset:
        n = len(cells)
        return make_structures(
            np.tile(self.atoms.numbers, n),
            positions.reshape(-1, 3),
            n_atoms=[len(self.atoms)] * n,
            cell=cells,
            pbc=np.tile(self.atoms.pbc, (n, 1)),
            system=self.system,
            parent=parent,
        )

    def result(self) -> Walk:
        """Frame, record and trace."""
        assert self.saved is not None
        settings = self.settings
        cell = self.saved.state["cell"]
        # A walk that never got to a checkpoint returns its start frame, no child of itself.
        parent = self.start_id if self.saved.step else self.parent
        frame = self._frames(self.saved.state["positions"], cell[None], parent)
        npt = settings.ensemble == "npt"
        row: dict[str, Any] = {
            "start_frame": self.start_id,
            "end_frame": str(frame["structure_id"].values[0]),
            "walk_system": self.system,
            "ensemble": settings.ensemble,
            "temperature_K": float(settings.temperature_K),
            "pressure_GPa": self.pressure_GPa if npt else np.nan,
            "timestep_fs": float(settings.timestep_fs),
            "planned_fs": self.n_steps * settings.timestep_fs,
            "length_fs": self.saved.step * settings.timestep_fs,
            "stopped_fs": self.stopped_step * settings.timestep_fs,
            "walk_status": self.status,
            "walk_reason": self.reason,
            "walk_engine": self.engine_name,
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
            attrs={"system": self.system, "start_frame": self.start_id},
        )
        collected = None
        if self.collected:
            collected = self._frames(
                np.array([p.positions for p in self.collected]),
                np.array([p.cell for p in self.collected]),
                self.start_id,
            )
        return Walk(frame, record, trace, collected)


def _column(value: Any) -> NDArray:
    """An array of one row; text in the dtype that the store keeps."""
    return np.array([value], TEXT) if isinstance(value, str) else np.array([value])


def _plain(entropy: Any) -> Any:
    """Entropy of a SeedSequence in a form that JSON holds."""
    if entropy is None or isinstance(entropy, int):
        return entropy
    return [int(value) for value in np.atleast_1d(entropy)]
