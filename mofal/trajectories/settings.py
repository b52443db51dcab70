"""How a trajectory is watched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mofal.errors import ConfigError


@dataclass(frozen=True)
class WatchSettings:
    """How a trajectory is watched; names and defaults are those of a campaign file.

    Attributes
    ----------
    unfamiliar_quantile : float
        Atoms below it are unfamiliar (``exploration.unfamiliar_quantile``).
    clusters : int
        How many are cut; 0: none, and no blocks are looked for.
    ranking : str
        What makes a block a core.
    shells, shells_along_rods : int
        Shells of blocks in the mantle.
    blueprints : Path, optional
        Table of `mofal match`.
    unpaired : mapping of str to int
        Unpaired electrons per atom of open-shell elements.
    rule : str
        How blocks are cut.
    every : int
        Every how many-th frame is looked at.
    timestep_fs : float, optional
        Of the simulation, for times instead of steps.
    seed : int
        Order of what is tied.

    Raises
    ------
    ConfigError
        A value that cannot be meant.
    """

    unfamiliar_quantile: float = 0.001
    clusters: int = 150
    ranking: str = "least_likely_atom"
    shells: int = 1
    shells_along_rods: int = 2
    blueprints: Path | None = None
    unpaired: Mapping[str, int] = field(default_factory=dict)
    rule: str = "auto"
    every: int = 1
    timestep_fs: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        from mofal.clusters import ranking_names

        known = sorted(ranking_names())
        checks = {
            "unfamiliar_quantile": (
                0.0 < self.unfamiliar_quantile < 0.5,
                "a number above 0 and below 0.5",
            ),
            "clusters": (self.clusters >= 0, "a whole number from 0 on"),
            "shells": (0 <= self.shells <= 4, "a whole number from 0 to 4"),
            "every": (self.every >= 1, "a whole number from 1 on"),
            "timestep_fs": (
                self.timestep_fs is None or self.timestep_fs > 0,
                "a positive number of fs",
            ),
            "seed": (self.seed >= 0, "a whole number from 0 on"),
            "ranking": (self.ranking in known, f"one of {', '.join(known)}"),
        }
        for name, (fine, expected) in checks.items():
            if not fine:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected {expected}")
