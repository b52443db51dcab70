"""What `mofal match` is asked for, and what is refused before anything is paid for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mofal.clusters.matched import MOST_SHELLS
from mofal.commands.label import check_seed
from mofal.commands.noise import read_noise_floor
from mofal.errors import ConfigError
from mofal.potential.devices import resolve_device
from mofal.reference import get_reference


@dataclass(frozen=True)
class MatchSettings:
    """How `mofal.commands.match.match` compares.

    Attributes
    ----------
    references, potentials : sequence of str
        Levels: specifications of references, directories of models.
    cell : str
        Of a framework by name.
    rule : str
        Rule that cuts the framework into blocks.
    frames : int
        Frames to average over: perturbed ones (600 K), or so many of the file's, evenly chosen.
        0: the structure alone, as it is.
    shells : sequence of int, optional
        Whole shells of blocks around the core to try, half of the first shell too; default: 0 and
        1, along rods 2 as well. Along rods two orders of protons are tried for each.
    core : str, optional
        Formula of the core block; default: a node that lacks a neighbour, else the first node.
    max_atoms : int, optional
        Largest candidate; where whole shells make more, the part of the mantle that fits is tried.
    tolerance_meV : float
        Largest RMSE on core atoms, meV/Å.
    noise : path, optional
        Table of `mofal noise` (`noise.json`), for the noise floor beside the verdict on references;
        default: what a GPAW preset states.
    directory : path
        Labels, tables (JSON), plots, clusters with their RMSE per atom (extxyz), and
        `blueprints.json` for `selection.blueprints`; kinds of core matched there before stay in it.
    workers : int, optional
        Processes; default: one per core.
    seed : int
        Of the frames.
    unpaired : mapping
        Unpaired electrons per atom of open-shell elements.
    retry_failed : bool
        Try labels that failed before once more.
    caches : sequence of str
        Shared label caches, see `label_structures`.
    device : str
        Where potentials compute: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
    """

    references: Sequence[str] = ()
    potentials: Sequence[str] = ()
    cell: str = "conventional"
    rule: str = "auto"
    frames: int = 3
    shells: Sequence[int] | None = None
    core: str | None = None
    max_atoms: int | None = None
    tolerance_meV: float = 100.0
    noise: str | os.PathLike[str] | None = None
    directory: str | os.PathLike[str] = "match"
    workers: int | None = None
    seed: int = 0
    unpaired: Mapping[str, int] = field(default_factory=dict)
    retry_failed: bool = False
    caches: Sequence[str] = ()
    device: str = "cpu"

    @property
    def place(self) -> Path:
        """The directory."""
        return Path(self.directory)


def examine(settings: MatchSettings, say: Callable[[str], None]) -> dict[str, float]:
    """Refuse what cannot work before anything is paid for; noise floors (meV/Å) by level.

    Raises
    ------
    ConfigError
        Names the option of the command line.
    """
    references, potentials = settings.references, settings.potentials
    if potentials:
        resolve_device(settings.device)
    if not references and not potentials:
        raise ConfigError("no level to compare at; give --reference or --potential")
    if settings.frames < 0:
        raise ConfigError(
            f"--frames is {settings.frames}, expected at least 1 (or 0: the structure as it is)"
        )
    shells = (0, 1) if settings.shells is None else settings.shells
    if not shells or min(shells) < 0 or max(shells) > MOST_SHELLS:
        given = " ".join(map(str, shells))
        raise ConfigError(f"--shells is {given}, expected numbers from 0 to {MOST_SHELLS}")
    tolerance = settings.tolerance_meV
    if not 0 < tolerance < float("inf"):
        raise ConfigError(f"--tolerance is {tolerance}, expected meV/Å above zero")
    place = settings.place
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--directory {place} is a file; labels and tables need a directory")
    if potentials:
        from mofal.potential import load

        for level in potentials:
            load(level)
    if tolerance < 1:
        say(f"--tolerance is {tolerance:g} meV/Å; 0.1 eV/Å would be --tolerance 100")
    floors = noise_floors(settings)
    check_seed(settings.seed)
    return floors


def noise_floors(settings: MatchSettings) -> dict[str, float]:
    """Noise of the forces of references, meV/Å, as far as it is known."""
    references = settings.references
    floors: dict[str, float] = {}
    measured = None if settings.noise is None else read_noise_floor(settings.noise)
    methods = {level: get_reference(level) for level in references}
    for level, method in methods.items():
        stated = getattr(method, "stated_noise", None)
        if measured is not None and method.level_hash == measured[1]:
            floors[level] = measured[0]
        elif stated is not None:
            # A preset states the RMSE between two labels; each has its part of it.
            floors[level] = 1000 * stated / 2**0.5
    if measured is not None and measured[1] not in {m.level_hash for m in methods.values()}:
        raise ConfigError(
            f"--noise {settings.noise} was measured with {measured[2]}, another level than "
            f"{', '.join(references) or 'that of a potential'}; measure it with: mofal noise"
        )
    return floors
