"""Options of `mofal watch`, and what several commands read alike; nothing heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mofal.errors import ConfigError

_NAMES = (
    "potential", "density", "types", "structure", "directory", "follow", "workers", "device",
    "next_cycle", "rule", "clusters", "ranking", "shells", "unfamiliar_quantile", "every", "seed",
)  # fmt: skip
"""Options that the function calls by the same name."""


def add_options(p: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    p.add_argument("trajectory", help="LAMMPS text dump, extxyz, .traj of ASE, or a group (.zarr)")
    p.add_argument(
        "--potential",
        required=True,
        metavar="WHAT",
        help="a campaign, an export with its density (*.nequip.zip, *.nequip.pt2), or a model",
    )
    p.add_argument("--density", metavar="GROUP", help="of a model: density.zarr of its campaign")
    p.add_argument("--types", nargs="+", metavar="Zr", help="of a dump: element of type 1, 2, ...")
    p.add_argument("--structure", metavar="FILE", help="the same atoms at rest, to find blocks in")
    p.add_argument(
        "--rule", help="how blocks are cut (default: auto; of a system of the campaign as there)"
    )
    p.add_argument("--clusters", type=int, help="to cut; 0: none (default: 150, or the campaign's)")
    p.add_argument("--ranking", help="of cores (default: least_likely_atom, or the campaign's)")
    p.add_argument("--shells", type=int, help="of the mantle (default: 1, or the campaign's)")
    p.add_argument(
        "--unfamiliar-quantile",
        type=float,
        help="atoms below it count as unfamiliar (default: 0.001, or the campaign's)",
    )
    p.add_argument(
        "--next-cycle", action="store_true", help="make them those of the campaign's next cycle"
    )
    p.add_argument("--every", type=int, default=1, help="look at every so many-th frame")
    p.add_argument("--timestep", type=float, metavar="FS", help="of the simulation, for times")
    p.add_argument("--follow", action="store_true", help="wait for frames that are still written")
    p.add_argument(
        "--until-idle", type=float, metavar="SECONDS", help="end when none came for so long"
    )
    p.add_argument(
        "--unpaired", nargs="+", default=[], metavar="Cu=1", help="unpaired electrons per atom"
    )
    p.add_argument("--directory", help="of scores, picture and clusters; default: TRAJECTORY.watch")
    p.add_argument("--workers", type=int, help="frames side by side (default: one per core)")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (default: cpu)")
    p.add_argument("--seed", type=int, default=0)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Options as `watch_file` takes them."""
    given = {name: getattr(args, name) for name in _NAMES}
    return {**given, "until_idle_s": args.until_idle, "timestep_fs": args.timestep}


def unpaired_of(given: Sequence[str]) -> dict[str, int]:
    """``Cu=1`` as a mapping."""
    from ase.data import chemical_symbols

    out = {}
    for text in given:
        symbol, _, number = text.partition("=")
        if symbol not in chemical_symbols[1:] or not number.isdigit():
            raise ConfigError(f"--unpaired is {text}, expected e.g. Cu=1")
        out[symbol] = int(number)
    return out
