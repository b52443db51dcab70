"""Walks: they look for environments that the potential has not met."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import (
    Heard,
    Stage,
    Summary,
    notice,
    on_site,
    progress_files,
)
from mofal.campaign.steps.density import in_memory, shard_rows
from mofal.data import concat, open_group, select, write_group
from mofal.data.ragged import TEXT
from mofal.data.store import atomic_path
from mofal.dynamics import walk_length
from mofal.errors import CampaignError
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.dynamics import BondLimits
    from mofal.potential import NequIPPotential


def start_frame(site: Site, cycle: int, system: str, index: int) -> xr.Dataset:
    """Frame that a walk starts from: thermal around the structure, then ends of earlier walks.

    In the first cycle it is a frame of the network of springs at the walk's temperature: the first
    potentials do not hold for long enough to make environments differ by themselves. Later walks
    start from a seeded choice among the ends of the cycle before that went to their end and whose
    bonds still hold, where there are such; a bond that a poor potential broke would stay broken.
    """
    from mofal.clusters import check_bonds
    from mofal.dynamics import sample_harmonic

    blocks = site.blocks(system)
    if cycle > 1:
        walks = site.group(paths.place(cycle - 1, system, "walks.zarr")).load()
        finished = walks["walk_status"].values == "finished"
        ends = {str(v) for v in walks["end_frame"].values[finished]}
        samples = site.group(paths.place(cycle - 1, system, "samples.zarr")).load()
        holds = check_bonds(samples, {system: blocks})["holds"].values
        ids = [str(v) for v in samples["structure_id"].values]
        good = [k for k, s in enumerate(ids) if s in ends and holds[k]]
        # As many walks go on as there are good ends; the others begin anew.
        chosen = site.rng("start", cycle, system).permutation(site.config.exploration.walks)[index]
        if chosen < len(good):
            return select(samples, good[chosen])
    return sample_harmonic(
        site.structure(system),
        n=1,
        temperature_K=site.config.exploration.temperature_K,
        seed=site.seed("start", cycle, system, index),
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
        volume_strain=(-0.01, 0.01),
        shear=0.003,
    )


@on_site
def walk(site: Site, cycle: int, system: str, index: int) -> Summary:
    """Walk once, and featurize where it ended."""
    from mofal.density import PerElementDensity
    from mofal.dynamics import walk as walk_from
    from mofal.potential import load

    potential = load(site.path(paths.model(cycle - 1)), device=site.device("walk"))
    settings = site.config.exploration.walk_settings()
    watched = settings.unfamiliar_quantile > 0.0
    density = (
        PerElementDensity.load(site.path(paths.place(cycle, "density.zarr"))) if watched else None
    )
    name = f"walk-{cycle:03d}-{system}-{index:04d}"
    out = walk_place(site, cycle, system, index)
    checkpoint = out.with_name(out.name + ".checkpoint.npz")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    heard = Heard(notice(site, name))
    frame = start_frame(site, cycle, system, index)
    engine = engine_of(site, cycle, potential, frame)
    result = walk_from(
        frame,
        calculator=potential.engine(engine, density=density, progress=heard),
        settings=settings,
        seed=site.seed("walk", cycle, system, index),
        length_fs=walk_length(cycle, settings),
        bonds=bonds_of(site, system, settings.temperature_K),
        density=density,
        out=checkpoint,
        progress=heard,
    )
    features = potential.featurize(result.frame)
    with atomic_path(out) as temporary:
        write_group(result.frame, temporary / "frame.zarr")
        write_group(result.record, temporary / "walk.zarr", kind="table")
        write_group(result.trace, temporary / "trace.zarr", kind="table")
        write_group(features, temporary / "features.zarr", kind="features")
    checkpoint.unlink(missing_ok=True)
    record = result.record
    return {
        "status": str(record["walk_status"].values[0]),
        "reason": str(record["walk_reason"].values[0]),
        "length_fs": float(record["length_fs"].values[0]),
        **heard.notes,
    }


def engine_of(site: Site, cycle: int, potential: NequIPPotential, frame: xr.Dataset) -> str:
    """Network that the walks of a cycle run, eager or compiled: chosen once, and kept.

    The first walk that asks times the eager network, and writes down what follows for all walks of
    the cycle: none of them is begun by one network and ended by the other.
    """
    from mofal.potential import choose

    exploration = site.config.exploration
    if exploration.engine != "auto":
        return exploration.engine
    record = site.work(paths.place(cycle), "engine.json")
    if not record.exists():
        if potential.device != "cpu":
            # One walk at a time leaves a GPU idle either way.
            chosen = {"engine": "eager", "reason": "walks of a campaign go one by one"}
        else:
            potential.evaluate(frame)
            start = time.perf_counter()
            potential.evaluate(frame)
            seconds = time.perf_counter() - start
            settings = exploration.walk_settings()
            steps = settings.n_steps(walk_length(cycle, settings))
            walks = exploration.walks * len(site.config.explored) / (os.cpu_count() or 1)
            choice = choose(potential, evaluations=steps * walks, seconds_each=seconds)
            chosen = {"engine": choice.engine, "reason": choice.reason}
        record.parent.mkdir(parents=True, exist_ok=True)
        mine = record.with_name(f"{record.name}.{uuid.uuid4().hex}")
        mine.write_text(json.dumps(chosen))
        with contextlib.suppress(FileExistsError):  # another walk was first
            os.link(mine, record)
        mine.unlink()
    return str(json.loads(record.read_text())["engine"])


def bonds_of(site: Site, system: str, temperature_K: float) -> BondLimits:
    """Bonds of a system with their lengths as built, and the spread of each kind."""
    from mofal.dynamics import bond_limits

    blocks = site.blocks(system)
    return bond_limits(
        site.structure(system),
        temperature_K=temperature_K,
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
    )


def walk_place(site: Site, cycle: int, system: str, index: int) -> Path:
    """Where one walk leaves its end, until all of the cycle are gathered."""
    return site.work(paths.place(cycle), system, f"walk-{index:04d}")


def sweep_work(site: Site, relative: str) -> None:
    """Delete what a finished step no longer needs."""
    shutil.rmtree(site.work(relative), ignore_errors=True)


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task for each walk."""
    return [
        Task(
            kind="walk",
            key=f"{step.cycle:03d}-{step.system}-{k:04d}",
            function=walk,
            kwargs={
                "root": str(site.root),
                "identity": site.identity,
                "cycle": step.cycle,
                "system": step.system,
                "index": k,
            },
            output=walk_place(site, step.cycle, step.system, k),
            priority=PRIORITY,
            resumable=True,
        )
        for k in range(site.config.exploration.walks)
    ]


@on_site
def gather(site: Site, cycle: int, system: str, lost: dict[str, str]) -> Summary:
    """Bring the ends of the walks of a cycle together, with their features and their traces.

    Walks that are `lost` (their index: the reason) are left out. What lies along atoms goes from
    shard to shard where it is more than may be in memory.
    """
    import xarray as xr

    frames, features, records, traces = [], [], [], []
    for k in range(site.config.exploration.walks):
        where = walk_place(site, cycle, system, k)
        if not where.exists():
            if str(k) in lost:
                continue
            raise CampaignError(
                f"cycle {cycle} {system} walk: walk {k} is not in {where.parent} any more; run the "
                "same command again, which makes what is missing"
            )
        frames.append(open_group(where / "frame.zarr"))
        features.append(open_group(where / "features.zarr"))
        row = open_group(where / "walk.zarr").load()
        if "walk_engine" not in row:  # of a version before, which had one engine
            row["walk_engine"] = ("walk", np.array(["eager"], TEXT))
        records.append(row)
        trace = open_group(where / "trace.zarr").load()
        traces.append(trace.assign(walk_index=("sample", np.full(trace.sizes["sample"], k))))
    if not frames:
        reason = next(iter(lost.values()), "no reason given")
        raise CampaignError(
            f"cycle {cycle} {system} walk: not one walk of {site.config.exploration.walks} gave a "
            f"frame: {reason}"
        )
    walks = xr.concat(records, "walk")
    target = paths.place(cycle, system)
    rows = shard_rows(site)
    write_group(
        in_memory(site, concat(features)),
        site.path(f"{target}/features.zarr"),
        kind="features",
        rows_per_shard=rows,
    )
    write_group(walks, site.path(f"{target}/walks.zarr"), kind="table")
    write_group(xr.concat(traces, "sample"), site.path(f"{target}/traces.zarr"), kind="table")
    write_group(
        in_memory(site, concat(frames)), site.path(f"{target}/samples.zarr"), rows_per_shard=rows
    )
    status = [str(s).replace("_", " ") for s in walks["walk_status"].values]
    return {
        "walks": ", ".join(f"{status.count(s)} {s}" for s in dict.fromkeys(status)),
        "length_fs": float(walks["length_fs"].mean()),
    }


def closing(site: Site, step: Step, outcomes: Sequence[Outcome]) -> Task:
    """The task that gathers, once all walks have ended."""
    lost = {str(o.task.kwargs["index"]): o.reason for o in outcomes if not o.ok}
    return Task(
        kind="gather",
        key=f"{step.cycle:03d}-{step.system}",
        function=gather,
        kwargs={
            "root": str(site.root),
            "identity": site.identity,
            "cycle": step.cycle,
            "system": step.system,
            "lost": lost,
        },
        output=site.path(step.makes),
        priority=PRIORITY + 5,
    )


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Say what became of the walks; what they left aside is not needed any more."""
    sweep_work(site, paths.place(step.cycle, step.system))
    walked = [o for o in outcomes if o.task.kind == "walk"]
    summary = next((o.summary for o in outcomes if o.task.kind == "gather"), None) or {}
    notes = "".join(f"; {o.summary['note']}" for o in walked if o.ok and "note" in o.summary)
    number = sum(not o.ok for o in walked)
    failed = f", {number} failed" if number else ""
    if not summary:
        return f"{len(walked)} walks" + failed + notes
    return f"{summary['walks']}, {summary['length_fs']:.0f} fs on average" + failed + notes


def _expected(config: CampaignConfig, step: Step) -> int:
    return config.exploration.walks


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return progress_files(site, f"walk-{step.cycle:03d}-{step.system}-*")


PRIORITY = 70
STAGE = Stage(
    "walks",
    PRIORITY,
    tasks,
    finish,
    expected=_expected,
    notes=_notes,
    loses=True,
    closing=closing,
)
