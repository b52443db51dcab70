"""`mofal bench supercell`: what a machine does with a supercell, from its build to clusters."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mofal.errors import ConfigError

Say = Callable[[str], None]
CELL = 456
"""Atoms of the conventional cell of UiO-66 that is repeated."""
STAGES = ("build", "blocks", "features", "scores", "selection", "cutting")
NOISE = 0.05
"""Standard deviation of the displacement of each atom of a frame, Å: about that of 300 K."""


@dataclass
class Stage:
    """One row of the table: what a stage took."""

    cells: int
    atoms: int
    stage: str
    seconds: float
    atoms_per_s: float
    GB: float


def bench_supercell(
    atoms: list[int] | tuple[int, ...],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    clusters: int = 150,
    potential: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    client: Any = None,
    say: Say = print,
) -> list[Stage]:
    """Measure a supercell of UiO-66 with missing linkers and bricks, stage by stage.

    Build, blocks and selection run in this process; features, scores and cutting are Dask tasks.
    There is one frame for each worker, or a single one where a frame is large enough to be
    featurized by domains; `atoms/s` counts the atoms of all frames where a stage does (features,
    scores, selection, cutting).

    Parameters
    ----------
    atoms : sequence of int
        Of the crystal before anything is removed; the nearest supercell is taken.
    workers : int, optional
        Processes of one thread. Default: one per core; those of the client, where there is one.
    scheduler : str, optional
        Address, or scheduler file, of a Dask scheduler whose workers are used.
    clusters : int
        To cut.
    potential : path, optional
        A model; default: that of ``example:uio66-gfn1``.
    output : path, optional
        The table as JSON.
    client : distributed.Client, optional
        Of the session.
    say : callable
        Takes lines.

    Returns
    -------
    list of Stage

    Raises
    ------
    ConfigError
        A number that cannot be meant.
    """
    from mofal.campaign.examples import seed_place
    from mofal.data import write_json
    from mofal.potential import load

    if min(atoms, default=0) < 1 or clusters < 1 or (workers is not None and workers < 1):
        raise ConfigError("--atoms, --clusters and --workers are numbers from 1 on")
    if workers is not None and (scheduler or client is not None):
        raise ConfigError("--workers starts workers here; with --scheduler its own are used")
    model = load(Path(potential) if potential else seed_place("uio66-gfn1") / "model")
    rows: list[Stage] = []
    with _client(workers, scheduler, client) as used:
        n = max(1, sum(used.ncores().values()))
        place = scheduler or "this machine"
        say(f"{n} threads of {len(used.ncores())} workers on {place}; model {model.model_hash}")
        say(f"{'atoms':>10} {'stage':<10} {'s':>9} {'atoms/s':>11} {'GB':>6}")
        used.run(_warm_up, model)
        _warm_up(model)
        for wanted in atoms:
            for row in _one(wanted, n, clusters, model, used):
                rows.append(row)
                say(
                    f"{row.atoms:>10,} {row.stage:<10} {row.seconds:>9.3f} "
                    f"{row.atoms_per_s:>11,.0f} {row.GB:>6.2f}"
                )
    if output is not None:
        write_json([asdict(row) for row in rows], Path(output))
    return rows


@contextlib.contextmanager
def _client(workers: int | None, scheduler: str | None, client: Any) -> Iterator[Any]:
    """The client of the session, of a scheduler, or of workers on this machine."""
    if client is not None:
        yield client
        return
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    if scheduler is not None:
        file = (
            {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
        )
        try:
            found = Client(**file, timeout=20)
        except (OSError, TimeoutError) as error:
            raise ConfigError(f"no Dask scheduler answers at {scheduler} ({error})") from None
        with found:
            found.wait_for_workers(1, timeout=60)
            yield found
        return
    with (
        LocalCluster(
            n_workers=workers or CPU_COUNT,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=40,
        ) as pool,
        Client(pool) as own,
    ):
        yield own


def supercell_of(atoms: int) -> tuple[int, int, int]:
    """Repeats of the conventional cell that come nearest to a number of atoms, nearly a cube."""
    cells = max(1, round(atoms / CELL))
    side = round(cells ** (1 / 3)) + 2
    nearly = [
        (a, b, c)
        for a in range(1, side + 1)
        for b in range(a, 2 * a + 2)
        for c in {max(b, cells // (a * b)), max(b, -(-cells // (a * b)))}
        if c <= 2 * a + 1
    ]
    return min(nearly, key=lambda r: (abs(r[0] * r[1] * r[2] - cells), r[2] - r[0]))


def _warm_up(model: Any) -> None:
    """Import what the stages need and compile what compiles, so that nobody measures that."""
    import torch

    from mofal.clusters import cut, random_cores
    from mofal.density import PerElementDensity  # noqa: F401
    from mofal.frameworks import build, find_blocks

    torch.set_num_threads(1)
    ds = build("S_pr", cell="primitive")
    model.featurize(ds)
    blocks = {str(ds["system"].values[0]): find_blocks(ds)}
    cut(ds, blocks, random_cores(ds, blocks, n=1, seed=0))


def _one(atoms: int, n: int, clusters: int, model: Any, client: Any) -> Iterator[Stage]:
    from mofal.clusters import cut, select
    from mofal.data import concat
    from mofal.density import fit_density, score
    from mofal.frameworks import build, disorder, find_blocks
    from mofal.potential.domains import LARGEST

    repeat = supercell_of(atoms)
    meter = _Meter(client)

    def stage(name: str, count: int, work: Callable[[], Any]) -> tuple[Any, Stage]:
        result, seconds, peak = meter.measure(work)
        return result, Stage(int(np.prod(repeat)), count, name, seconds, count / seconds, peak)

    def make() -> Any:
        # Missing bricks leave unconnected parts in very small cells.
        brick = 0.1 if min(repeat) > 1 else 0.0
        return disorder(build("S_pr", repeat=repeat), linker=0.2, brick=brick, seed=0)

    ds, row = stage("build", CELL * int(np.prod(repeat)), make)
    yield row
    size = ds.sizes["atom"]
    blocks, row = stage("blocks", size, lambda: find_blocks(ds))
    yield row
    by_system = {str(ds["system"].values[0]): blocks}
    many = n if size <= LARGEST["featurize_arrays"] else 1
    frames = concat([_rattled(ds, k) for k in range(many)])
    total = frames.sizes["atom"]
    features, row = stage("features", total, lambda: _features(frames, ds, model))
    yield row
    known = _rattled(build("S_pr", cell="primitive", repeat=(2, 2, 2)), -1)
    density = fit_density(model.featurize(known), n_components=4, random_state=0)
    lazy = features.chunk(atom=size)
    scores, row = stage("scores", total, lambda: score(lazy, density).compute())
    yield row
    cores, row = stage(
        "selection",
        total,
        lambda: select(frames, scores, by_system, n=clusters, features=features),
    )
    yield row
    whole = frames.chunk(atom=size)
    (found, _), row = stage("cutting", total, lambda: cut(whole, by_system, cores))
    yield row
    del found


def _rattled(ds: Any, seed: int) -> Any:
    """A frame: every atom displaced at random."""
    from mofal.data import make_structures

    rng = np.random.default_rng(seed + 1)
    return make_structures(
        ds["numbers"].values,
        ds["positions"].values + rng.normal(scale=NOISE, size=ds["positions"].shape),
        n_atoms=ds["n_atoms"].values,
        cell=ds["cell"].values,
        pbc=ds["pbc"].values,
        system=[str(s) for s in ds["system"].values],
    )


def _features(frames: Any, ds: Any, model: Any) -> Any:
    """Features of all frames by the workers; of large ones domain by domain."""
    return model.featurize(frames.chunk(atom=ds.sizes["atom"]), domains="auto").compute()


class _Meter:
    """Seconds, and the largest memory of this process and the workers meanwhile."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def measure(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        peak = self._memory()
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.1):
                peak = max(peak, self._memory())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        begin = time.perf_counter()
        try:
            result = work()
        finally:
            seconds = time.perf_counter() - begin
            done.set()
            thread.join()
        return result, max(seconds, 1e-9), max(peak, self._memory())

    def _memory(self) -> float:
        """Resident memory of this process and of the workers, GB."""
        import psutil

        here = psutil.Process()
        near = {here.pid: here.memory_info().rss}
        for child in here.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                near[child.pid] = child.memory_info().rss
        total = sum(near.values())
        if len(near) == 1:
            # Workers elsewhere: what they last told their scheduler.
            known = self._client.scheduler_info(n_workers=-1)["workers"].values()
            total += sum(int(w["metrics"].get("memory", 0)) for w in known)
        return total / 1e9
