"""Scores of frames as durable groups, a few frames each: what is there is never computed again.

Every frame is scored by itself, on one thread, so its scores are the same bits whichever frames
were scored beside it, before a kill or after.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.data.ragged import TEXT
from mofal.errors import StoreError
from mofal.files import read_json, remove_leftovers, write_json
from mofal.trajectories.frames import Frame, Trajectory, read_frame
from mofal.trajectories.known import Known, single_thread
from mofal.trajectories.opening import identity_of

if TYPE_CHECKING:
    import xarray as xr

GROUP_ATOMS = 250_000
"""Atoms of a group of scores."""
GROUP_SECONDS = 20.0
"""A group is written after so long, however few frames it has: what a kill costs at most."""
SAY_SECONDS = 5.0
"""Between two lines of progress."""
FORMAT = 1
_NAME = re.compile(r"frames-(\d+)-(\d+)\.zarr")

Say = Callable[[str], None]


def score_frame(
    known: Known, trajectory: Trajectory, k: int, numbers: NDArray
) -> tuple[Frame, str, dict[str, NDArray]]:
    """Read and score one frame: what one task does."""
    single_thread()
    frame = read_frame(trajectory, k, numbers=numbers)
    found = known.score(frame.numbers, frame.positions, frame.cell, frame.pbc)
    return frame, identity_of(frame), found


class Scores:
    """The scores of a trajectory in a directory.

    Parameters
    ----------
    directory : Path
    known : Known
    trajectory : Trajectory
    numbers : (atom,) of every frame
    every : int
        Every how many-th frame is scored.
    system : str
        Name that frames have.

    Raises
    ------
    StoreError
        What is there belongs to another potential, density, trajectory or choice of frames.
    """

    def __init__(
        self,
        directory: Path,
        known: Known,
        trajectory: Trajectory,
        numbers: NDArray,
        *,
        every: int,
        system: str,
    ) -> None:
        self.directory, self.known, self.trajectory = directory, known, trajectory
        self.numbers, self.every, self.system = numbers, every, system
        settings = {
            "mofal_format": FORMAT,
            "trajectory": trajectory.path.name,
            "model_hash": known.model_hash,
            "density_hash": known.density_hash,
            "every": every,
        }
        record = directory / "watch.json"
        if record.exists():
            there = read_json(record)
            changed = [n for n, value in settings.items() if there.get(n) != value]
            if changed:
                raise StoreError(
                    f"{directory} holds scores with another {changed[0].replace('_', ' ')} "
                    f"({there.get(changed[0])}; now {settings[changed[0]]}); give this run a "
                    "directory of its own: --directory NEW"
                )
        (directory / "scores").mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        write_json(settings, record)
        self.groups: list[Path] = sorted(
            p for p in (directory / "scores").iterdir() if _NAME.fullmatch(p.name)
        )
        self.done: set[int] = set()
        for group in self.groups:
            self.done |= set(self._open(group)["frame_number"].values.tolist())

    def _open(self, group: Path) -> xr.Dataset:
        from mofal.data import open_group

        return open_group(group)

    def check(self) -> None:
        """Compare the ends of what was scored with the trajectory as it is now.

        Raises
        ------
        StoreError
            It is another one.
        """
        for group in {self.groups[0], self.groups[-1]} if self.groups else ():
            ds = self._open(group)
            k = int(ds["frame_number"].values[-1])
            frame = read_frame(self.trajectory, k)
            if identity_of(frame) != str(ds["structure_id"].values[-1]):
                raise StoreError(
                    f"frame {k} of {self.trajectory.path} is not the one that was scored in "
                    f"{self.directory}: another trajectory took its place; give this run a "
                    "directory of its own: --directory NEW"
                )

    def wanted(self, count: int) -> list[int]:
        """Frames among the first `count` that have no scores yet."""
        return [k for k in range(0, count, self.every) if k not in self.done]

    def extend(self, frames: Sequence[int], *, workers: int, say: Say) -> Iterator[xr.Dataset]:
        """Score frames, some at a time; gives each group once it is on the disk.

        Work runs on Dask's scheduler of the moment; what was computed is kept whatever ends it.
        """
        import dask

        task = dask.delayed(score_frame, pure=False)
        shared = dask.delayed(self.known, name=f"known-{self.known.density_hash}", traverse=False)
        source = dask.delayed(self.trajectory, pure=False, traverse=False)
        held: list[tuple[int, Any]] = []
        begin = written = said = time.monotonic()
        most = max(1, GROUP_ATOMS // len(self.numbers))
        try:
            for first in range(0, len(frames), workers):
                some = frames[first : first + workers]
                tasks = [task(shared, source, k, self.numbers) for k in some]
                with dask.config.set(num_workers=workers):
                    held += list(zip(some, dask.compute(*tasks)))
                now = time.monotonic()
                if len(held) >= most or now - written > GROUP_SECONDS:
                    group, held, written = self._write(held), [], now
                    yield group
                count = first + len(some)
                if now - said < SAY_SECONDS and count < len(frames):
                    continue
                said = now
                left = (len(frames) - count) * (now - begin) / count
                say(
                    f"scored {count} of {len(frames)} frames, {len(self.numbers):,} atoms each"
                    + (f"; about {left:.0f} s left" if left >= 1 else "")
                )
        except BaseException:
            if held:
                self._write(held)
            raise
        if held:
            yield self._write(held)

    def _write(self, held: Sequence[tuple[int, Any]]) -> xr.Dataset:
        """Make a group of scored frames, and remember that they are done."""
        from mofal.data import write_group

        ds = self._dataset(held)
        numbers = ds["frame_number"].values.tolist()
        target = self.directory / "scores" / f"frames-{numbers[0]:08d}-{numbers[-1]:08d}.zarr"
        write_group(ds, target, kind="scores")
        self.groups = sorted({*self.groups, target})
        self.done |= set(numbers)
        return ds

    def _dataset(self, held: Sequence[tuple[int, Any]]) -> xr.Dataset:
        import xarray as xr

        from mofal.data import describe

        frames = [frame for _, (frame, _, _) in held]
        count = [len(frame.numbers) for frame in frames]
        n = len(held)
        columns = {
            name: np.concatenate([found[name] for _, (_, _, found) in held])
            for name in held[0][1][2]
        }
        attrs = {"model_hash": self.known.model_hash, "density_hash": self.known.density_hash}
        if self.known.error_coverage is not None:
            attrs["error_coverage"] = self.known.error_coverage  # type: ignore[assignment]
        features = columns.pop("features")
        return describe(
            xr.Dataset(
                {
                    "numbers": ("atom", np.concatenate([f.numbers for f in frames])),
                    "n_atoms": ("structure", np.array(count, np.int64)),
                    "structure_index": ("atom", np.repeat(np.arange(n), count)),
                    "structure_id": (
                        "structure", np.array([identity for _, (_, identity, _) in held], TEXT)
                    ),
                    "system": ("structure", np.full(n, self.system, TEXT)),
                    "frame_number": ("structure", np.array([k for k, _ in held], np.int64)),
                    "md_step": ("structure", np.array([f.step for f in frames], np.int64)),
                    "cell": (
                        ("structure", "cell_vector", "xyz"), np.array([f.cell for f in frames])
                    ),
                    "pbc": (("structure", "cell_vector"), np.array([f.pbc for f in frames])),
                    "features": (("atom", "feature"), features),
                    **{name: ("atom", values) for name, values in columns.items()},
                },
                attrs=attrs,
            )
        )  # fmt: skip

    def parts(self) -> Iterator[xr.Dataset]:
        """Groups that are there, one after the other, lazily."""
        for group in self.groups:
            yield self._open(group)

    def joined(self) -> xr.Dataset:
        """All scores so far as one lazy Dataset, in the order of the frames."""
        from mofal.data import concat, select

        ds = concat(list(self.parts()))
        order = np.argsort(ds["frame_number"].values, kind="stable")
        return ds if np.all(np.diff(order) == 1) else select(ds, order)


def lazy_structures(scores: xr.Dataset, trajectory: Trajectory, numbers: NDArray) -> xr.Dataset:
    """Frames that were scored, as structures whose positions are read where they are asked for.

    Parameters
    ----------
    scores : xarray.Dataset
        As `Scores.joined` gives them.
    trajectory : Trajectory
    numbers : (atom,) of every frame

    Returns
    -------
    xarray.Dataset
        Structures; one chunk of `positions` is one frame.
    """
    import dask
    import dask.array as da
    import xarray as xr

    from mofal.data import describe

    read = dask.delayed(_positions, pure=False)
    source = dask.delayed(trajectory, pure=False, traverse=False)
    n = len(numbers)
    pieces = [
        da.from_delayed(read(source, int(k), numbers), (n, 3), dtype=np.float64)
        for k in scores["frame_number"].values
    ]
    count = len(pieces)
    return describe(
        xr.Dataset(
            {
                "numbers": ("atom", np.tile(numbers, count)),
                "positions": (("atom", "xyz"), da.concatenate(pieces)),
                "structure_index": ("atom", np.repeat(np.arange(count), n)),
                **{
                    name: scores[name]
                    for name in ("cell", "pbc", "n_atoms", "structure_id", "system")
                },
                "parent": ("structure", np.full(count, "", TEXT)),
                **{name: scores[name] for name in ("frame_number", "md_step")},
            }
        )
    )


def _positions(trajectory: Trajectory, k: int, numbers: NDArray) -> NDArray:
    return read_frame(trajectory, k, numbers=numbers).positions
