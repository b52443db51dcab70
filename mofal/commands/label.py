"""`mofal label`: label the structures of a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mofal.campaign.loading import load_config
from mofal.campaign.seed_file import open_without_spin
from mofal.campaign.steps.label import Say, label_structures, local_schedule
from mofal.data import to_atoms, write
from mofal.errors import ConfigError
from mofal.frameworks import read_structures
from mofal.reference import gather, get_reference

if TYPE_CHECKING:
    import xarray as xr


HOLD_FORCES = (".extxyz", ".xyz", ".traj", ".db", ".json")
"""Endings of files that keep what a label is."""


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes."""
    if seed < 0:
        raise ConfigError(f"--seed is {seed}, expected a whole number from 0 up")


def label_file(
    path: str | os.PathLike[str],
    *,
    reference: str,
    output: str | None = None,
    records: str | None = None,
    caches: Sequence[str] = (),
    workers: int | None = None,
    schedule: str | None = None,
    retry_failed: bool = False,
    say: Say = print,
) -> int:
    """`mofal label`: label the structures of a file, write them labelled.

    Returns
    -------
    int
        0 where every label converged, 1 where some failed (they are listed).
    """
    method = get_reference(reference)
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a directory; expected a file of structures")
    structures = unlabelled(read_structures(path), say)
    silent = open_without_spin(to_atoms(structures))
    if silent:
        say(f"note: {silent}")
    target = Path(output) if output else Path(f"{path}.labelled.extxyz")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is no directory; make it first: mkdir {target.parent}")
    if target.suffix.lower() not in HOLD_FORCES:
        raise ConfigError(
            f"-o {target}: a file of that kind holds no energies and forces; expected "
            + ", ".join(HOLD_FORCES)
        )
    settings = (
        load_config(schedule).schedule
        if schedule
        else local_schedule(workers, [reference], structures)
    )
    place = Path(records) if records else Path(f"{path}.labels")
    attempts = label_structures(
        structures,
        reference,
        directory=place,
        schedule=settings,
        retry_failed=retry_failed,
        caches=caches,
        say=say,
    )
    labels = gather(structures, attempts, reference=method, cache=place / "isolated-atoms")
    write(labels, target)
    if not getattr(method, "keep", False):
        shutil.rmtree(place / "scratch", ignore_errors=True)
    failed = [k for k, a in enumerate(attempts) if not a.converged]
    say(f"wrote {target}: {len(attempts) - len(failed)} labels at level {method.level_hash}")
    for k in failed:
        say(f"  structure {k}: {attempts[k].status}: {attempts[k].reason}")
    if failed:
        say(f"{len(failed)} failed; try them again with --retry-failed")
    return 1 if failed else 0


def unlabelled(structures: xr.Dataset, say: Say | None = None) -> xr.Dataset:
    """Structures alone, without the labels that a file may bring along.

    What its reader noted is said.
    """
    if say is not None and structures.attrs.get("notes"):
        say(f"note: {structures.attrs['notes']}")
    names = ("energy", "forces", "stress", "status", "reason", "wall_time")
    out = structures.drop_vars([v for v in names if v in structures])
    out.attrs = {}
    return out
