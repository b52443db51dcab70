"""How P(V) is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mofal.dynamics import WalkSettings
from mofal.errors import ConfigError

_JUDGED = ("until_converged", "max_runs", "pressure_change_GPa", "modulus_change_GPa")
"""What decides when runs are enough, and not what they give."""

_OF_A_RUN = (
    "temperature_K",
    "length_fs",
    "timestep_fs",
    "sample_every",
    "thermostat_fs",
    "barostat_fs",
    "seed",
)
"""What a single run depends on, beside its point, its number and its start."""

CHECKPOINT_STEPS = 1000
"""Steps between two checkpoints of a run, about."""


@dataclass(frozen=True)
class PressureSettings:
    """How P(V) is made.

    Attributes
    ----------
    temperature_K : float
    pressures_GPa : tuple of float
        Of the NPT points.
    volumes : tuple of float
        Of the points at fixed volume, relative to the minimum of E(V) at 0 K.
    length_fs, timestep_fs : float
        Of each run.
    runs : int
        Runs per point, each with its own seed.
    dropped : float
        Fraction of each run that is left out at its start.
    sample_every : int
        Steps between two samples. The pressure follows the bonds, whose vibrations average out
        where they are resolved: of UiO-66's primitive cell at 300 K, means over 2 ps scatter by
        35 MPa where every 50 fs is sampled and by 17 MPa where every 5 fs is.
    thermostat_fs, barostat_fs : float
    blocks : int
        Blocks of each run for the statistical error.
    draws : int
        Curves drawn from the Gaussian process.
    seed : int
    both_ways : bool
        Runs at a volume begin in turn from the curve as it is walked to from the minimum and as it
        is walked back from its end.
    until_converged : bool
        Where K or the largest pressure still moves, points get more runs (`PressureVolume.extend`).
    max_runs : int
        Runs that a point gets at most that way.
    pressure_change_GPa, modulus_change_GPa : float
        How far P_max and K may move between 40 % and 80 % of the data (paper, SI.9.1).
    """

    temperature_K: float = 300.0
    pressures_GPa: tuple[float, ...] = (-0.4, -0.2, 0.0, 0.2, 0.4)
    volumes: tuple[float, ...] = (0.92, 0.94, 0.96, 0.98, 1.0)
    length_fs: float = 50_000.0
    timestep_fs: float = 0.5
    runs: int = 1
    dropped: float = 0.2
    sample_every: int = 10
    thermostat_fs: float = 100.0
    barostat_fs: float = 1000.0
    blocks: int = 10
    draws: int = 400
    seed: int = 0
    both_ways: bool = True
    until_converged: bool = False
    max_runs: int = 8
    pressure_change_GPa: float = 0.015
    modulus_change_GPa: float = 1.0

    def __post_init__(self) -> None:
        if len(self.pressures_GPa) + len(self.volumes) < 4:
            raise ConfigError("P(V) takes at least 4 points; give more pressures or volumes")
        for what, values, digits in (
            ("pressures", self.pressures_GPa, 3),
            ("volumes", self.volumes, 4),
        ):
            if len({f"{v:.{digits}f}" for v in values}) < len(values):
                raise ConfigError(
                    f"two {what} of P(V) are the same to {digits} digits; name each once, and "
                    "give --runs for more of each"
                )
        if not all(0.5 < v < 1.5 for v in self.volumes):
            raise ConfigError(
                f"volumes are {self.volumes}, expected fractions of V0 between 0.5 and 1.5"
            )
        if self.runs < 1 or self.blocks < 4 or self.draws < 50 or not 0 <= self.dropped < 0.9:
            raise ConfigError("expected runs >= 1, blocks >= 4, draws >= 50, dropped from 0 to 0.9")
        if not (self.pressure_change_GPa > 0 and self.modulus_change_GPa > 0):
            raise ConfigError("the changes of P_max and K that may be left are expected above zero")
        if self.until_converged and self.max_runs < self.runs:
            raise ConfigError(f"max_runs is {self.max_runs}, below the {self.runs} runs of a point")
        self.walk("nvst", 0.0)  # what a walk would refuse is refused here

    @property
    def content(self) -> dict[str, Any]:
        """What the numbers of a run depend on."""
        return {k: v for k, v in asdict(self).items() if k not in _JUDGED}

    @property
    def run_content(self) -> dict[str, Any]:
        """What a single run depends on: other points beside it change nothing."""
        return {name: getattr(self, name) for name in _OF_A_RUN}

    def walk(self, ensemble: str, pressure_GPa: float) -> WalkSettings:
        """Conditions of one run."""
        return WalkSettings(
            ensemble=ensemble,
            temperature_K=self.temperature_K,
            pressure_GPa=pressure_GPa,
            timestep_fs=self.timestep_fs,
            length_fs=self.length_fs,
            thermostat_fs=self.thermostat_fs,
            barostat_fs=self.barostat_fs,
            sample_every=self.sample_every,
            checkpoint_every=max(1, CHECKPOINT_STEPS // self.sample_every) * self.sample_every,
            max_bond_strain=0.5,
        )
