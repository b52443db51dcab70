"""`mofal hold`: how long does a potential hold a structure?"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths
from mofal.campaign.directory import Site
from mofal.campaign.steps.hold import Say, _note, gather_runs, hold_once, line
from mofal.campaign.steps.label import only_one
from mofal.data import write_group
from mofal.errors import CampaignError, ConfigError, MofalError
from mofal.schedule import Pools
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr


def hold_file(
    what: str,
    *,
    potential: str,
    cell: str = "primitive",
    rule: str | None = None,
    runs: int = 3,
    length_fs: float = 1000.0,
    temperature_K: float = 600.0,
    timestep_fs: float = 0.5,
    seed: int = 0,
    device: str = "cpu",
    engine: str = "eager",
    directory: str | os.PathLike[str] | None = None,
    schedule: ScheduleSettings | None = None,
    say: Say = print,
) -> xr.Dataset:
    """`mofal hold`: how long does this potential hold this structure?

    Parameters
    ----------
    what : str
        A system of the UiO-66 family, or a file.
    potential : str
        Directory of a model, or of a campaign (its last model).
    device : str
        Where the potential computes: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
    engine : str
        Network that the runs are made with: ``eager``, or ``compiled`` (three times as fast on a
        CPU; made first where there is none for this machine, in minutes).

    Returns
    -------
    xarray.Dataset
        One row per run, as `mofal.dynamics.walk` records it.
    """
    from mofal.frameworks import build, find_blocks, read_framework, system_names
    from mofal.potential import load

    if engine not in ("eager", "compiled"):
        raise ConfigError(f"the engine is {engine!r}, expected eager or compiled")
    if runs < 1:
        raise ConfigError(f"--runs is {runs}, expected at least 1")
    for name, value in (
        ("--length", length_fs),
        ("--temperature", temperature_K),
        ("--timestep", timestep_fs),
    ):
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value:g}, expected a positive number")
    model = Path(potential)
    if (model / "campaign.json").is_file():
        site = Site(model)
        last = site.finished_cycles()
        if last < 0:
            raise CampaignError(f"{model} has no model yet; look again when its seed is trained")
        model = site.path(paths.model(last))
    loaded = load(model, device=device)
    if Path(what).exists():
        structure = read_framework(what)
    elif what in system_names():
        structure = build(what, cell=cell)
    else:
        raise ConfigError(
            f"{what!r} is no file and no system; systems: {', '.join(system_names())}"
        )
    from ase.data import chemical_symbols

    lacking = sorted(
        {chemical_symbols[z] for z in structure["numbers"].values} - set(loaded.elements)
    )
    if lacking:
        raise MofalError(
            f"{what} holds {', '.join(lacking)}, which {model} has never learnt "
            f"(it knows {', '.join(loaded.elements)})"
        )
    blocks = find_blocks(structure) if rule is None else find_blocks(structure, rule=rule)
    if engine == "compiled":
        from mofal.potential.network import threads

        with threads(1):  # as the runs compute
            loaded.compile(progress=say)
    made = "" if engine == "eager" else f"{engine}-"
    place = Path(directory) if directory else Path(f"{Path(what).name}.hold")
    with only_one(place):
        identity = f"{structure['structure_id'].values[0]}"[:12]
        write_group(structure, place / f"structure-{identity}.zarr")
        write_group(blocks, place / f"blocks-{identity}-{rule or 'default'}.zarr", kind="table")
        tasks = []
        for k in range(runs):
            name = (
                f"{identity}-{loaded.model_hash[:12]}-{temperature_K:g}K-{length_fs:g}fs-"
                f"{timestep_fs:g}-{made}{seed}-{k:02d}"
            )
            out = (place / name).absolute()
            kwargs = {
                "structure": str((place / f"structure-{identity}.zarr").absolute()),
                "blocks": str((place / f"blocks-{identity}-{rule or 'default'}.zarr").absolute()),
                "model": str(model.absolute()),
                "out": str(out),
                "seed": [seed, k],
                "temperature_K": temperature_K,
                "length_fs": length_fs,
                "timestep_fs": timestep_fs,
                "device": device,
                "engine": engine,
            }
            tasks.append(
                Task("walk", f"hold-{name}", hold_once, kwargs, output=out, resumable=True)
            )
        todo = [t for t in tasks if not t.found()]
        if todo:
            settings = schedule or ScheduleSettings()

            def follow(text: str) -> None:
                if not re.match(r"walk \d+/\d+", text):
                    say(text)
                    return
                notes = []
                for task in todo:
                    with contextlib.suppress(OSError):
                        at = _note(Path(str(task.output))).read_text(encoding="utf-8")
                        notes.append(f"run {int(task.key[-2:]) + 1} {at.removeprefix('walk ')}")
                say("; ".join(notes) or "runs are starting")

            with Pools.from_settings(settings, directory=place, progress=follow) as pools:
                for outcome in pools.run(todo):
                    if not outcome.ok:
                        raise CampaignError(
                            f"a run {outcome.status}: {outcome.reason}; type the same command again"
                        )
                    done = outcome.summary
                    say(f"run {int(outcome.task.key[-2:]) + 1}: {done['status']}, "
                        f"{done['held_fs'] / 1000:.3f} ps")  # fmt: skip
        records, _ = gather_runs([Path(str(t.output)) for t in tasks])
    say(line(what, records))
    return records
