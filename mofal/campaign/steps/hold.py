"""How long potentials hold: a step of campaigns, and `mofal hold`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import Stage
from mofal.data import open_group, write_group
from mofal.data.store import atomic_path
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.directory import Site
    from mofal.campaign.plan import Step
    from mofal.dynamics.holding import Survival

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
    engine: str = "eager",
) -> dict[str, Any]:
    """One run with one model; its record and trace are on disk when this returns."""
    from mofal.dynamics.holding import hold, hold_settings
    from mofal.dynamics.limits import bond_limits
    from mofal.potential import load

    found = open_group(blocks).load()
    frame = open_group(structure).load()
    place = Path(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = place.with_name(place.name + ".checkpoint.npz")
    potential = load(model, device=device)
    if engine == "compiled":
        potential.compile()
    result = hold(
        frame,
        calculator=potential.calculator(),
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
def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """Tasks of a step: one for each run."""
    settings = site.config.holding
    assert settings is not None
    work = site.work(step.makes)
    return [
        Task(
            kind="walk",
            key="-".join(("hold", *step.makes.split("/")[1:], f"{k:02d}")),
            function=hold_once,
            kwargs={
                "structure": str(site.path(paths.system_place(step.system, "structure.zarr"))),
                "blocks": str(site.path(paths.system_place(step.system, "blocks.zarr"))),
                "model": str(site.path(step.needs[0])),
                "out": str(work / f"run-{k:02d}"),
                # The same noise for every model: what differs is the potential.
                "seed": [int(s) for s in site.seed("hold", step.system, k)],
                "temperature_K": settings.temperature_K,
                "length_fs": settings.length_fs,
                "timestep_fs": settings.timestep_fs,
                "device": site.device("walk"),
                "engine": settings.engine,
            },
            output=work / f"run-{k:02d}",
            priority=PRIORITY,
            resumable=True,
        )
        for k in range(settings.runs)
    ]


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Gather the runs of a step; one line for a person."""
    import shutil

    settings = site.config.holding
    assert settings is not None
    work = site.work(step.makes)
    records, traces = gather_runs([work / f"run-{k:02d}" for k in range(settings.runs)])
    with atomic_path(site.path(step.makes)) as temporary:
        write_group(records, temporary / "walks.zarr", kind="table")
        write_group(traces, temporary / "traces.zarr", kind="table")
    shutil.rmtree(work, ignore_errors=True)
    tag = "-".join(step.makes.rsplit("/", 1)[-1].split("-")[:2])  # model-000, control-002
    return f"{tag} " + line(step.system, records)


def found_runs(site: Site) -> dict[str, dict[str, tuple[xr.Dataset, xr.Dataset]]]:
    """Records and traces that are there: by system, then by model (seed, control, campaign)."""
    settings = site.config.holding
    out: dict[str, dict[str, tuple[xr.Dataset, xr.Dataset]]] = {}
    if settings is None:
        return out
    last = site.last_cycle()
    names = {"seed": "model-000", "control": f"control-{last:03d}", "campaign": f"model-{last:03d}"}
    for system in settings.systems or site.config.explored:
        for model, tag in names.items():
            place = site.path(paths.holding(settings, system, tag))
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


def _expected(config: CampaignConfig, step: Step) -> int:
    return config.holding.runs if config.holding is not None else 1


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return site.work(step.makes).glob("*.progress")


PRIORITY = 15
STAGE = Stage(
    "how long it holds", PRIORITY, tasks, finish, kind="walk", expected=_expected, notes=_notes
)
