"""`mofal noise`: what no potential can beat at these settings of a reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mofal.campaign.steps.label import forces_of, label_structures, local_schedule
from mofal.commands.label import check_seed, unlabelled
from mofal.data import read_json, write_json
from mofal.errors import ConfigError
from mofal.frameworks import read_structures
from mofal.reference import get_reference, noise_floor, noise_variants
from mofal.reference.noise import variant_specs

Say = Callable[[str], None]


def noise(
    path: str | os.PathLike[str],
    *,
    reference: str,
    repeats: int = 4,
    directory: str | os.PathLike[str] = "noise",
    workers: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    caches: Sequence[str] = (),
    say: Say = print,
) -> int:
    """Label shifted, turned and regridded copies of structures; print the floor per factor.

    Parameters
    ----------
    path : path
        Structures, clusters or crystals.
    reference : str
        Specification; one with a grid spacing `h` in its level is tried with others too.
    repeats : int
        Per structure and factor, beside the structure itself.
    directory : path
        Labels, and the table: `noise.json`, in meV/Å.
    workers : int, optional
        Processes; default: as many as the cores allow.
    seed : int
        Of shifts, rotations and spacings.
    retry_failed : bool
        Try labels that failed before once more.
    caches : sequence of str
        Shared label caches, see `label_structures`.

    Returns
    -------
    int
        0 where every label converged, 1 where some failed and were left out.
    """
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}, expected at least 1")
    check_seed(seed)
    local_schedule(workers)
    place = Path(directory)
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--directory {place} is a file; labels and the table need a directory")
    method = get_reference(reference)
    structures = unlabelled(read_structures(path), say)
    spacing = method.level_of_theory.get("h")
    variants = noise_variants(
        structures,
        spacing=None if spacing is None else float(spacing),
        repeats=repeats,
        seed=seed,
    )
    specs = variant_specs(variants, reference)
    attempts = label_structures(
        variants,
        specs,
        directory=place,
        schedule=local_schedule(workers, list(dict.fromkeys(specs)), structures),
        retry_failed=retry_failed,
        caches=caches,
        say=say,
    )
    labelled = variants.assign(forces=(("atom", "xyz"), forces_of(attempts)))
    failed = sum(not a.converged for a in attempts)
    if failed:
        say(
            f"{failed} of {len(attempts)} labels failed and are left out; try them again with "
            "--retry-failed"
        )
    floor = noise_floor(labelled)
    say("")
    say(f"noise floor of {reference}, meV/Å (standard deviation about the per-atom mean)")
    say(f"{'factor':<12}{'floor':>9}{'pair RMSE':>12}{'largest':>10}{'repeats':>9}")
    table: dict[str, Any] = {}
    for k, factor in enumerate(str(f) for f in floor["factor"].values):
        row = {
            "floor": 1000 * float(floor["floor"][k]),
            "pair_rmse": 1000 * float(floor["pair_rmse"][k]),
            "largest": 1000 * float(floor["largest"][k]),
            "repeats": int(floor["repeats"][k]),
        }
        table[factor] = row
        say(
            f"{factor:<12}{row['floor']:>9.2f}{row['pair_rmse']:>12.2f}{row['largest']:>10.2f}"
            f"{row['repeats']:>9d}"
        )
    quadrature = 1000 * float(floor.attrs.get("quadrature", np.nan))
    if np.isfinite(quadrature):
        say(f"{floor.attrs['quadrature_of']} added in variance: {quadrature:.2f}")
        table["quadrature"] = {"floor": quadrature}
    rows = {k: {n: None if v != v else v for n, v in r.items()} for k, r in table.items()}
    write_json(
        {"reference": method.spec, "level_hash": method.level_hash, **rows}, place / "noise.json"
    )
    return 1 if failed else 0


def read_noise_floor(path: str | os.PathLike[str]) -> tuple[float, str, str]:
    """Noise floor of a table that `noise` left: combined, else the sum in variance.

    Returns
    -------
    floor, level_hash, reference
        In meV/Å; the level that it was measured at, and its specification.

    Raises
    ------
    ConfigError
        There is no such table, or no floor in it.
    """
    file = Path(path) / "noise.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ConfigError(f"--noise {file} does not exist; make it: mofal noise structures.extxyz")
    content = read_json(file)
    content = content if isinstance(content, dict) else {}
    for name in ("combined", "quadrature", "shift"):
        row = content.get(name)
        floor = row.get("floor") if isinstance(row, dict) else None
        if isinstance(floor, int | float) and "level_hash" in content:
            return float(floor), str(content["level_hash"]), str(content.get("reference"))
    if content and "level_hash" not in content and "shift" in content:
        raise ConfigError(
            f"--noise {file} does not say which level it was measured at (an older mofal made it); "
            "the same mofal noise again costs no label and mends it"
        )
    raise ConfigError(
        f"--noise {file} holds no noise floor; expected the noise.json of mofal noise"
    )
