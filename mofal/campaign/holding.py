"""How long potentials hold: a step of campaigns, and `mofal hold`."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import plan
from mofal.errors import CampaignError, ConfigError, MofalError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.plan import Step
    from mofal.campaign.site import Site
    from mofal.dynamics.holding import Survival
    from mofal.schedule.settings import ScheduleSettings
    from mofal.schedule.task import Task

Say = Callable[[str], None]


# ---------------------------------------------------------------------------------- one run
def hold_once(
    structure: str,
    blocks: str,
    model: str,
    out: str,
    seed: Sequence[int],
    temperature_K: float,
    length_fs: float,
    timestep_fs: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """One run with one model; its record and trace are on disk when this returns."""
    from mofal.data import open_group, write_group
    from mofal.data.store import atomic_path
    from mofal.dynamics.holding import hold, hold_settings
    from mofal.dynamics.limits import bond_limits
    from mofal.potential import load

    found = open_group(blocks).load()
    frame = open_group(structure).load()
    place = Path(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = place.with_name(place.name + ".checkpoint.npz")
    result = hold(
        frame,
        calculator=load(model, device=device).calculator(),
        bonds=bond_limits(
            frame,
            temperature_K=temperature_K,
            bonds=found["bond_atom"].values,
            shifts=found["bond_shift"].values,
        ),
        settings=hold_settings(
            temperature_K=temperature_K, length_fs=length_fs, timestep_fs=timestep_fs
        ),
        seed=tuple(int(s) for s in seed),
        out=checkpoint,
        progress=_notice(place),
    )
    with atomic_path(place) as temporary:
        write_group(result.frame, temporary / "frame.zarr")
        write_group(result.record, temporary / "walk.zarr", kind="table")
        write_group(result.trace, temporary / "trace.zarr", kind="table")
    for left in (checkpoint, _note(place)):
        left.unlink(missing_ok=True)
    record = result.record
    return {
        "status": str(record["walk_status"].values[0]),
        "held_fs": float(record["stopped_fs"].values[0]),
    }


def _note(place: Path) -> Path:
    """Where a run says how far it is, for whoever waits for it on another machine."""
    return place.with_name(place.name + ".progress")


def _notice(place: Path) -> Say:
    def say(text: str) -> None:
        # A note that cannot be written costs nobody anything.
        with contextlib.suppress(OSError):
            _note(place).write_text(text, encoding="utf-8")

    return say


def gather_runs(places: Sequence[Path]) -> tuple[xr.Dataset, xr.Dataset]:
    """Records (dim ``walk``) and traces (dim ``sample``, with `walk_index`) of runs."""
    import xarray as xr

    from mofal.data import open_group

    records, traces = [], []
    for k, place in enumerate(places):
        records.append(open_group(place / "walk.zarr").load())
        trace = open_group(place / "trace.zarr").load()
        traces.append(trace.assign(walk_index=("sample", np.full(trace.sizes["sample"], k))))
    return xr.concat(records, "walk"), xr.concat(traces, "sample")


def survival_of(records: xr.Dataset) -> Survival:
    """Survival per picosecond from the records of runs."""
    from mofal.dynamics.holding import survival

    broken = np.array([str(s) != "finished" for s in records["walk_status"].values])
    return survival(records["stopped_fs"].values, broken)


def line(system: str, records: xr.Dataset) -> str:
    """``holds S_ld at 600 K for 1 ps in 3 of 3 runs; survival per ps ...``."""
    found = survival_of(records)
    temperature = float(records["temperature_K"].values[0])
    length = float(records["planned_fs"].values[0]) / 1000
    text = (
        f"holds {system} at {temperature:.0f} K for {length:g} ps in "
        f"{found.n_runs - found.n_broken} of {found.n_runs} runs"
    )
    if found.n_broken:
        text += f" (median {found.median_ps:.2f} ps)"
    return text + f"; survival per ps {found.per_ps:.2f} ({found.low:.2f} to {found.high:.2f})"


# ---------------------------------------------------------------------------------- a campaign
def expand(site: Site, step: Step) -> list[Task]:
    """Tasks of a step: one for each run."""
    from mofal.schedule.task import Task

    settings = site.config.holding
    assert settings is not None
    work = site.work(step.makes)
    return [
        Task(
            kind="walk",
            key="-".join(("hold", *step.makes.split("/")[1:], f"{k:02d}")),
            function=hold_once,
            kwargs={
                "structure": str(site.path(plan.system_place(step.system, "structure.zarr"))),
                "blocks": str(site.path(plan.system_place(step.system, "blocks.zarr"))),
                "model": str(site.path(step.needs[0])),
                "out": str(work / f"run-{k:02d}"),
                # The same noise for every model: what differs is the potential.
                "seed": [int(s) for s in site.seed("hold", step.system, k)],
                "temperature_K": settings.temperature_K,
                "length_fs": settings.length_fs,
                "timestep_fs": settings.timestep_fs,
                "device": site.device("walk"),
            },
            output=work / f"run-{k:02d}",
            priority=plan.PRIORITY["hold"],
            resumable=True,
        )
        for k in range(settings.runs)
    ]


def finish(site: Site, step: Step) -> str:
    """Gather the runs of a step; one line for a person."""
    import shutil

    from mofal.data import write_group
    from mofal.data.store import atomic_path

    settings = site.config.holding
    assert settings is not None
    work = site.work(step.makes)
    records, traces = gather_runs([work / f"run-{k:02d}" for k in range(settings.runs)])
    with atomic_path(site.path(step.makes)) as temporary:
        write_group(records, temporary / "walks.zarr", kind="table")
        write_group(traces, temporary / "traces.zarr", kind="table")
    shutil.rmtree(work, ignore_errors=True)
    tag = step.makes.rsplit("/", 1)[-1].rsplit("-", 3)[0]
    return f"{tag} " + line(step.system, records)


def found_runs(site: Site) -> dict[str, dict[str, tuple[xr.Dataset, xr.Dataset]]]:
    """Records and traces that are there: by system, then by model (seed, control, campaign)."""
    from mofal.data import open_group

    settings = site.config.holding
    out: dict[str, dict[str, tuple[xr.Dataset, xr.Dataset]]] = {}
    if settings is None:
        return out
    last = site.last_cycle()
    names = {"seed": "model-000", "control": f"control-{last:03d}", "campaign": f"model-{last:03d}"}
    for system in settings.systems or site.config.explored:
        for model, tag in names.items():
            place = site.path(plan.holding(settings, system, tag))
            if place.is_dir():
                out.setdefault(system, {})[model] = (
                    open_group(place / "walks.zarr").load(),
                    open_group(place / "traces.zarr").load(),
                )
    return out


def table(site: Site) -> list[str]:
    """Lines of text: how long each model holds each system."""
    rows = []
    for system, models in found_runs(site).items():
        for model, (records, _) in models.items():
            rows.append(f"{model:<10}" + line(system, records))
    return rows


# ---------------------------------------------------------------------------------- a command
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

    Returns
    -------
    xarray.Dataset
        One row per run, as `mofal.dynamics.walk` records it.
    """
    from mofal.campaign.site import Site
    from mofal.data import write_group
    from mofal.frameworks import build, find_blocks, read_framework, system_names
    from mofal.potential import load
    from mofal.schedule import Pools
    from mofal.schedule.settings import ScheduleSettings
    from mofal.schedule.task import Task

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
        model = site.path(plan.model(last))
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
    place = Path(directory) if directory else Path(f"{Path(what).name}.hold")
    from mofal.campaign.label import only_one

    with only_one(place):
        identity = f"{structure['structure_id'].values[0]}"[:12]
        write_group(structure, place / f"structure-{identity}.zarr")
        write_group(blocks, place / f"blocks-{identity}-{rule or 'default'}.zarr", kind="table")
        tasks = []
        for k in range(runs):
            name = (
                f"{identity}-{loaded.model_hash[:12]}-{temperature_K:g}K-{length_fs:g}fs-"
                f"{timestep_fs:g}-{seed}-{k:02d}"
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
