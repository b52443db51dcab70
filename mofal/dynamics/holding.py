"""How long does a potential hold a structure? Runs at one temperature until a bond breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from ase.calculators.calculator import Calculator

from mofal.dynamics.limits import BondLimits
from mofal.dynamics.settings import WalkSettings
from mofal.dynamics.walker import Progress, Seed, Walk
from mofal.dynamics.walking import walk
from mofal.errors import ConfigError


def hold_settings(
    *, temperature_K: float = 600.0, length_fs: float = 1000.0, timestep_fs: float = 0.5
) -> WalkSettings:
    """Settings of a run that tests a potential: NVT, ended by bonds and explosions alone."""
    return WalkSettings(
        ensemble="nvt",
        temperature_K=temperature_K,
        timestep_fs=timestep_fs,
        length_fs=length_fs,
        unfamiliar_quantile=0.0,
        checkpoint_every=100,
    )


def hold(
    structures: xr.Dataset,
    i: int = 0,
    *,
    calculator: Calculator | Callable[[], Calculator],
    bonds: BondLimits,
    settings: WalkSettings | None = None,
    seed: Seed,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Walk:
    """Run a structure with a potential until a bond breaks, or to the end.

    A bond is broken where it strays beyond what its kind does at the temperature (`bond_limits`).
    The time that it held is `stopped_fs` of the record, and ``walk_status`` is "finished" where
    nothing broke; `largest_strain` of the trace is the largest relative change of any bond.

    Parameters
    ----------
    bonds
        Limits at the temperature of the settings.
    settings
        See `hold_settings`, which is the default.
    out
        File of the checkpoint: a run that is interrupted goes on, to the same bits.
    """
    return walk(
        structures,
        i,
        calculator=calculator,
        settings=settings if settings is not None else hold_settings(),
        seed=seed,
        bonds=bonds,
        out=out,
        progress=progress,
    )


class Survival(NamedTuple):
    """What runs say of a potential.

    Attributes
    ----------
    n_runs, n_broken : int
    median_ps : float
        Time that the runs held, those that did not break counted with their length.
    per_ps : float
        Probability to hold another picosecond, exp(-rate), the rate being the number of breaks over
        the time of all runs.
    low, high : float
        Its exact 95 % interval (breaks counted as a Poisson process).
    """

    n_runs: int
    n_broken: int
    median_ps: float
    per_ps: float
    low: float
    high: float


def survival(held_fs: np.ndarray, broken: np.ndarray) -> Survival:
    """Survival per picosecond from the times that runs held.

    Parameters
    ----------
    held_fs : array, shape (n_runs,)
        Time until the break, or the length of a run that held, fs.
    broken : array of bool, shape (n_runs,)

    Raises
    ------
    ConfigError
        No runs, or no time.
    """
    from scipy.stats import chi2

    held = np.asarray(held_fs, float) / 1000.0
    k, total = int(np.sum(broken)), float(held.sum())
    if len(held) == 0 or total <= 0.0:
        raise ConfigError("no run held for a single step; nothing can be said of survival")
    most = chi2.ppf(0.975, 2 * k + 2) / (2 * total)
    least = chi2.ppf(0.025, 2 * k) / (2 * total) if k else 0.0
    return Survival(
        len(held),
        k,
        float(np.median(held)),
        float(np.exp(-k / total)),
        float(np.exp(-most)),
        float(np.exp(-least)),
    )
