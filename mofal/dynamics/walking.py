"""Walks: molecular dynamics from one frame to a new one, checked, checkpointed, never fatal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from mofal.data import to_atoms
from mofal.dynamics.crew import run_crew
from mofal.dynamics.engine import Engine, as_engine
from mofal.dynamics.settings import WalkSettings
from mofal.dynamics.walker import Bonds, Progress, Seed, Walk, Walker
from mofal.dynamics.watch import Density
from mofal.errors import ConfigError, StructureError


def walk(
    structures: xr.Dataset,
    i: int = 0,
    *,
    calculator: Any,
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
        An engine of a potential (``potential.engine()``), an ASE calculator, or a function without
        arguments that makes one of them.
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
        ends the walk (see `WalkSettings.unfamiliar_quantile`). An engine takes it on board; an ASE
        calculator must put `features` into its results: ``potential.calculator(features=True)``.
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
    The integrator and its sources: `mofal.dynamics.integrator`.
    """
    plan = Plan(i, seed, length_fs, bonds, None if out is None else Path(out), settings)
    (done,) = walks(structures, [plan], calculator=calculator, density=density, progress=progress)
    return done


class Plan(NamedTuple):
    """One walk of several: start frame, seed, length, bonds, checkpoint and conditions.

    Attributes
    ----------
    frame
        Which structure is the start frame.
    seed
        Whole number, tuple of them, or SeedSequence.
    length_fs, bonds, out, settings
        As `walk` takes them.
    """

    frame: int
    seed: Seed
    length_fs: float | None = None
    bonds: Bonds | None = None
    out: Path | None = None
    settings: WalkSettings | None = None


def walks(
    structures: xr.Dataset,
    plans: Sequence[Plan],
    *,
    calculator: Any,
    density: Density | None = None,
    together: int | None = None,
    progress: Progress | None = None,
) -> list[Walk]:
    """Walk from several structures, so many at once; each is the walk that it would be alone.

    Walks may differ in size, temperature, pressure, length and seed, and not in their ensemble. One
    that ends leaves the batch, and the next takes its place. On a CPU a walk has the same bits in
    any company; on a GPU sums of a batch run in another order (docs/engine.md).

    Parameters
    ----------
    structures
        Structures Dataset.
    plans
        One for each walk.
    calculator, density, progress
        As `walk` takes them; one engine serves all.
    together
        Walks in a batch at once; by default what the engine names (`together`: one on a CPU, where
        batches do not pay, 64 on a GPU).

    Returns
    -------
    list of Walk
        In the order of the plans.

    Raises
    ------
    ConfigError
        Walks of several ensembles, or what `walk` raises.
    """
    watched = any((p.settings or WalkSettings()).unfamiliar_quantile > 0.0 for p in plans)
    engine = as_engine(calculator, density=density if watched else None)
    walkers = [_walker(structures, plan, engine, density, progress) for plan in plans]
    ensembles = sorted({w.settings.ensemble for w in walkers})
    if len(ensembles) > 1:
        raise ConfigError(
            f"walks of {' and '.join(ensembles)} cannot go together: call walks() once for each"
        )
    if together is None:
        together = int(getattr(engine, "together", 1))
    if together < 1:
        raise ConfigError(f"together is {together}, expected at least 1")
    run_crew(walkers, engine, together=together)
    return [w.result() for w in walkers]


def _walker(
    structures: xr.Dataset,
    plan: Plan,
    engine: Engine,
    density: Density | None,
    progress: Progress | None,
) -> Walker:
    settings = plan.settings if plan.settings is not None else WalkSettings()
    i, n_steps = plan.frame, settings.n_steps(plan.length_fs)
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
    return Walker(
        atoms=atoms,
        engine=engine,
        settings=settings,
        n_steps=n_steps,
        seed=_seed_sequence(plan.seed),
        start_id=str(structures["structure_id"].values[i]),
        system=str(structures["system"].values[i]),
        parent=str(structures["parent"].values[i]),
        bonds=plan.bonds,
        density=density if settings.unfamiliar_quantile > 0.0 else None,
        out=plan.out,
        progress=progress,
    )


def _seed_sequence(seed: Seed) -> np.random.SeedSequence:
    if isinstance(seed, np.random.SeedSequence):
        return seed
    return np.random.SeedSequence(seed)
