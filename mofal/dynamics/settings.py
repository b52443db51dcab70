"""The conditions of a walk, and how long it lasts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mofal.errors import ConfigError

ENSEMBLES = ("npt", "nvt", "nvst")
WHEN_UNFAMILIAR = ("stop", "mark", "collect")
FORMER_DEFAULTS = {"unfamiliar_quantile": 0.005, "unfamiliar_fs": 20.0}
"""Settings whose default was another one before, and which."""


@dataclass(frozen=True, kw_only=True)
class WalkSettings:
    """Conditions of a walk (paper, section Exploration; defaults are its numbers).

    Attributes
    ----------
    ensemble
        ``"npt"`` (flexible cell), ``"nvt"``, or ``"nvst"``: (N, V, σa = 0, T), a flexible shape
        at the volume of the start frame.
    temperature_K
        Temperature of the thermostat, K.
    pressure_GPa
        External pressure, GPa, or the range from which each walk draws its own. Only for NPT.
    timestep_fs, length_fs
        Time step and length of a walk, fs.
    thermostat_fs
        Relaxation time of the Langevin thermostat on the atoms, fs.
    barostat_fs
        Relaxation time of the Langevin thermostat on the cell, and the period of the cell's
        breathing for a modulus of 20 GPa, fs. Must be shorter than the walk, or the pressure is
        never felt.
    max_temperature
        Multiple of `temperature_K` above which a walk counts as exploded.
    min_distance
        Distance between two atoms, Å, below which a walk counts as exploded.
    max_force
        Force on an atom, eV/Å, above which a walk counts as exploded.
    max_stretch
        Largest principal stretch of the cell against the start frame (and the inverse of the
        smallest) before a walk counts as exploded. Catches collapse, expansion and skewing alike.
    bond_z, bond_mean_z, bond_mean_fs
        Where the walk is given bonds with their spread (`bond_limits`), it ends ("bond_broken")
        when a bond strays further than `bond_z` standard deviations of its kind at the walk's
        temperature, or its running mean over `bond_mean_fs` further than `bond_mean_z`; None checks
        none. What a potential that has never seen a group of atoms does with it is not to hold it
        together: frames beyond are no environments of the system, and their forces drown all others
        in training.
    max_bond_strain
        A limit of the relative change of every bond's length besides, whatever its kind; None
        (default) sets none: 0.15 is crossed by sound dynamics too (C-H at 600 K: 0.037 is one
        standard deviation).
    unfamiliar_quantile, unfamiliar_fs
        Where the walk is given a density (`Watch`), it ends ("unfamiliar") when an atom that was
        familiar at its start has stayed below this quantile for so long, fs. Atoms that are
        unfamiliar from the start are recorded and not waited for.
    when_unfamiliar
        What such an atom does to the walk: ``"stop"`` ends it; ``"mark"`` records the atoms and
        goes on; ``"collect"`` goes on too and keeps the frame in which each was met
        (`Walk.collected`).
    sample_every, checkpoint_every
        Steps between samples of the trace (distances are checked there; cell, forces, temperature
        and bonds at every step) and between checkpoints. An exploded walk ends where its last
        checkpoint was; one that is given bonds, at the last sample before.
    ramp_cycles
        Cycles over which the length grows to `length_fs` (see `walk_length`).
    """

    ensemble: str = "npt"
    temperature_K: float = 600.0
    pressure_GPa: float | tuple[float, float] = (-1.5, 1.5)
    timestep_fs: float = 0.5
    length_fs: float = 500.0
    thermostat_fs: float = 100.0
    barostat_fs: float = 100.0
    max_temperature: float = 4.0
    min_distance: float = 0.6
    max_force: float = 50.0
    max_stretch: float = 1.25
    bond_z: float | None = 6.5
    bond_mean_z: float | None = 5.5
    bond_mean_fs: float = 50.0
    max_bond_strain: float | None = None
    unfamiliar_quantile: float = 0.001
    unfamiliar_fs: float = 10.0
    when_unfamiliar: str = "stop"
    sample_every: int = 10
    checkpoint_every: int = 50
    ramp_cycles: int = 3

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ConfigError(
                f"ensemble is {self.ensemble!r}, expected one of {', '.join(ENSEMBLES)}: "
                "write ensemble='npt'"
            )
        if self.when_unfamiliar not in WHEN_UNFAMILIAR:
            raise ConfigError(
                f"when_unfamiliar is {self.when_unfamiliar!r}, expected one of "
                f"{', '.join(WHEN_UNFAMILIAR)}: write when_unfamiliar='stop'"
            )
        positive = (
            "temperature_K",
            "timestep_fs",
            "length_fs",
            "thermostat_fs",
            "barostat_fs",
            "min_distance",
            "max_force",
            "bond_mean_fs",
            "unfamiliar_fs",
        )
        for name in positive:
            value = getattr(self, name)
            if not (_is_number(value) and value > 0.0):
                raise ConfigError(f"{name} is {value!r}, expected a positive number")
        for name in ("bond_z", "bond_mean_z"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value > 0.0):
                raise ConfigError(f"{name} is {value!r}, expected a positive number, or none")
        quantile = self.unfamiliar_quantile
        if not (_is_number(quantile) and 0.0 <= quantile < 0.5):
            raise ConfigError(
                f"unfamiliar_quantile is {quantile!r}, expected a fraction below one half; "
                "0 watches nothing"
            )
        strain = self.max_bond_strain
        if strain is not None and not (_is_number(strain) and 0.0 < strain < 1.0):
            raise ConfigError(
                f"max_bond_strain is {strain!r}, expected a fraction between 0 and 1, or none"
            )
        for name in ("max_temperature", "max_stretch"):
            value = getattr(self, name)
            if not (_is_number(value) and value > 1.0):
                raise ConfigError(f"{name} is {value!r}, expected a factor larger than 1")
        for name in ("sample_every", "checkpoint_every", "ramp_cycles"):
            value = getattr(self, name)
            if not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
                raise ConfigError(f"{name} is {value!r}, expected a whole number of at least 1")
        low, high = self.pressure_range
        if not low <= high:
            raise ConfigError(
                f"pressure_GPa is ({low}, {high}), expected the lower end first: "
                f"write pressure_GPa=({high}, {low})"
            )
        if self.length_fs < self.timestep_fs:
            raise ConfigError(
                f"length_fs is {self.length_fs}, shorter than one step of {self.timestep_fs} fs"
            )
        if self.ensemble != "nvt" and self.barostat_fs >= self.length_fs:
            raise ConfigError(
                f"barostat_fs is {self.barostat_fs} and the walk lasts {self.length_fs} fs, so "
                f"that the pressure would not be felt: write barostat_fs={self.length_fs / 5:g}"
            )

    @property
    def pressure_range(self) -> tuple[float, float]:
        """Lowest and highest external pressure, GPa (equal where one number was given)."""
        value = self.pressure_GPa
        if _is_number(value):
            return float(value), float(value)  # type: ignore[arg-type]
        try:
            low, high = value  # type: ignore[misc]
            if not (_is_number(low) and _is_number(high)):
                raise TypeError
        except (TypeError, ValueError):
            raise ConfigError(
                f"pressure_GPa is {value!r}, expected a number or a pair: "
                "write pressure_GPa=(-1.5, 1.5)"
            ) from None
        return float(low), float(high)

    def n_steps(self, length_fs: float | None = None) -> int:
        """Whole time steps in `length_fs` (by default the full length of a walk)."""
        length = self.length_fs if length_fs is None else length_fs
        return max(1, round(length / self.timestep_fs))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def walk_length(cycle: int, settings: WalkSettings) -> float:
    """Length of a walk in a given cycle, fs: the first models do not hold for a full walk.

    Parameters
    ----------
    cycle
        Cycle of the campaign, counted from 1 (cycle 0 holds the seed data and walks nowhere).
    settings
        Its `ramp_cycles` is the first cycle of full length; before, the length grows in
        proportion to the cycle, in whole time steps.

    Returns
    -------
    length_fs
        Between one time step and ``settings.length_fs``.
    """
    if cycle < 1:
        raise ConfigError(f"cycle is {cycle}, expected at least 1: walks start with cycle 1")
    fraction = min(1.0, cycle / settings.ramp_cycles)
    return settings.n_steps(settings.length_fs * fraction) * settings.timestep_fs
