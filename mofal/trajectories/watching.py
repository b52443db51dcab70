"""Watching a trajectory: score what comes, say what is unfamiliar, cut it out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mofal.errors import ConfigError, DependencyError, StructureError
from mofal.files import atomic_path
from mofal.trajectories.cutting import cut_unfamiliar
from mofal.trajectories.frames import Frame, Trajectory, read_frame
from mofal.trajectories.known import Known, one_thread, unseen
from mofal.trajectories.scores import Scores
from mofal.trajectories.settings import WatchSettings
from mofal.trajectories.summary import Tally, lines

if TYPE_CHECKING:
    import xarray as xr

Say = Callable[[str], None]
LOOK_SECONDS = 2.0
"""Between two looks at a trajectory that grows."""
SHOW_SECONDS = 30.0
"""Between two pictures of one that grows."""
SUMMARY, PICTURE = "watched.zarr", "watch.png"


def watch(
    trajectory: Trajectory,
    known: Known,
    *,
    directory: str | os.PathLike[str],
    settings: WatchSettings | None = None,
    blocks: xr.Dataset | None = None,
    system: str = "",
    follow: bool = False,
    until_idle_s: float | None = None,
    workers: int | None = None,
    say: Say = print,
) -> xr.Dataset:
    """Score the frames of a trajectory, say what was unfamiliar, and cut clusters around it.

    Durable: the scores of a frame are computed once. Ended in any way and called again, it goes on
    where it was, with the same result.

    Parameters
    ----------
    trajectory : Trajectory
        From `open_trajectory`.
    known : Known
        From `open_known`, or `FittedKnown(potential, density)`.
    directory : path
        What it leaves: ``scores/``, ``watched.zarr``, ``watch.png``, ``clusters.zarr`` and
        ``clusters.extxyz``.
    settings : WatchSettings, optional
    blocks : xarray.Dataset, optional
        Of the structure, atoms in the trajectory's order; default: found in its first frame.
    system : str
        Name of the system; default: the name of the file.
    follow : bool
        Wait for frames that are written while it looks; Ctrl-C ends the waiting, and all that is
        there is summed up.
    until_idle_s : float, optional
        With `follow`: end when no new frame came for so many seconds.
    workers : int, optional
        Frames that are scored side by side; default: one per core. A Dask client of the moment
        takes them where there is one.
    say : callable
        Takes lines of progress.

    Returns
    -------
    xarray.Dataset
        As `mofal.trajectories.summary.Tally.dataset`; ``watched.zarr`` holds the same.

    Raises
    ------
    StructureError
        There is no whole frame, or one that cannot be scored.
    StoreError
        The directory belongs to another potential or trajectory.
    """
    from dask.system import CPU_COUNT

    chosen = settings or WatchSettings()
    _make_directory(Path(directory))
    with one_thread():
        run = _Run(
            trajectory=trajectory,
            known=known,
            directory=Path(directory),
            settings=chosen,
            given=blocks,
            system=system or trajectory.path.name.split(".")[0],
            workers=max(1, workers or CPU_COUNT),
            say=say,
        )
        try:
            if follow:
                run.follow(until_idle_s)
            else:
                run.catch_up()
        except KeyboardInterrupt:
            if not follow:
                raise
            say("stopped: the picture and clusters of what is there (Ctrl-C leaves at once)")
        return run.finish()


def without_frames(trajectory: Trajectory) -> StructureError:
    """What is wrong with a trajectory that has no whole frame."""
    path = trajectory.path
    if not path.exists():
        return StructureError(f"{path} does not exist")
    half = "only a half-written frame" if trajectory.unfinished else "no frame"
    return StructureError(
        f"{path} holds {half}; expected at least one whole frame (--follow waits for it)"
    )


def _make_directory(place: Path) -> None:
    if place.exists() and not place.is_dir():
        raise ConfigError(f"{place} is a file; expected a directory, or a name for a new one")
    place.mkdir(parents=True, exist_ok=True)


@dataclass
class _Seen:
    """What there is once the first frame is there."""

    scores: Scores
    tally: Tally
    blocks: xr.Dataset | None


@dataclass
class _Run:
    """One call of `watch`."""

    trajectory: Trajectory
    known: Known
    directory: Path
    settings: WatchSettings
    given: xr.Dataset | None
    system: str
    workers: int
    say: Say
    seen: _Seen | None = None
    noted: int = 0

    def catch_up(self) -> int:
        """Score every frame that is there and has no scores; how many they were."""
        count = self.trajectory.look()
        for note in self.trajectory.notes[self.noted :]:
            self.say(f"note: {note}")
        self.noted = len(self.trajectory.notes)
        if not count:
            return 0
        if self.seen is None:
            self.seen = self._begin(count)
        wanted = self.seen.scores.wanted(count)
        for group in self.seen.scores.extend(wanted, workers=self.workers, say=self.say):
            self.seen.tally.add(group)
        return len(wanted)

    def _begin(self, count: int) -> _Seen:
        """Look at the first frame: whether it can be scored, and its blocks."""
        from ase.data import atomic_numbers

        from mofal.potential.base import require_elements, symbols_of

        first = read_frame(self.trajectory, 0)
        require_elements(symbols_of(first.numbers), self.known.elements, what="this potential")
        for symbol in unseen(self.known, first.numbers):
            number = int((first.numbers == atomic_numbers[symbol]).sum())
            self.say(
                f"note: the density has never seen {symbol}: each of its {number:,} atoms counts "
                "as unfamiliar as can be"
            )
        blocks = self._blocks(first) if self.settings.clusters else None
        scores = Scores(
            self.directory,
            self.known,
            self.trajectory,
            first.numbers,
            every=self.settings.every,
            system=self.system,
        )
        scores.check()
        tally = Tally(first, self.settings.unfamiliar_quantile, blocks)
        for part in scores.parts():
            tally.add(part)
        there = f", {len(scores.done)} of them scored before" if scores.done else ""
        self.say(
            f"{self.trajectory.path}: {count} frames of {len(first.numbers):,} atoms{there}; "
            f"model {self.known.model_hash}"
        )
        return _Seen(scores, tally, blocks)

    def _blocks(self, first: Frame) -> xr.Dataset:
        from mofal.data import make_structures
        from mofal.frameworks import find_blocks

        if self.given is not None:
            expected = self.given.sizes["member"]
            if expected != len(first.numbers):
                raise StructureError(
                    f"{self.trajectory.path} has {len(first.numbers)} atoms, the structure whose "
                    f"blocks are to be used {expected}; give the structure that was simulated, "
                    "atoms in the same order"
                )
            return self.given
        ds = make_structures(
            first.numbers,
            first.positions,
            n_atoms=[len(first.numbers)],
            cell=first.cell[None],
            pbc=first.pbc[None],
            system=self.system,
        )
        try:
            return find_blocks(ds, rule=self.settings.rule)
        except StructureError as error:
            raise StructureError(
                f"{self.trajectory.path}: no blocks in its first frame: {error}; give a structure "
                "of the same atoms at rest (--structure FILE), another --rule, or --clusters 0"
            ) from None

    def follow(self, until_idle_s: float | None) -> None:
        """Score frames as they come, until none comes any more or somebody ends it."""
        last = shown = time.monotonic()
        waiting = False
        while True:
            if self.catch_up():
                if time.monotonic() - shown > SHOW_SECONDS:
                    self._show()
                    shown = time.monotonic()
                last, waiting = time.monotonic(), False
                continue
            idle = time.monotonic() - last
            if not self.trajectory.grows or (until_idle_s is not None and idle >= until_idle_s):
                return
            if not waiting:
                half = " (one is half-written)" if self.trajectory.unfinished else ""
                self.say(f"waiting for frames{half}; Ctrl-C ends it")
                waiting = True
            rest = LOOK_SECONDS if until_idle_s is None else until_idle_s - idle
            time.sleep(max(0.05, min(LOOK_SECONDS, rest)))

    def _show(self) -> xr.Dataset:
        """Write the summary and the picture of what is there."""
        from mofal.data import write_group

        assert self.seen is not None  # a frame has been scored
        summary = self.seen.tally.dataset(timestep_fs=self.settings.timestep_fs)
        target = self.directory / SUMMARY
        if target.exists():  # made of the scores, so made again when there are more
            shutil.rmtree(target)
        write_group(summary, target, kind="table")
        try:
            from mofal.trajectories.picture import plot_watched

            with atomic_path(self.directory / PICTURE) as temporary:
                plot_watched(summary).savefig(temporary, dpi=150, format="png")
        except (DependencyError, ModuleNotFoundError):
            self.say("no picture: pip install 'mofal[report]'")
        return summary

    def finish(self) -> xr.Dataset:
        """Sum up, and cut the clusters."""
        if self.seen is None:
            raise without_frames(self.trajectory)
        scores, tally = self.seen.scores, self.seen.tally
        if len(tally) < len(scores.done):  # some were written while somebody pressed Ctrl-C
            for part in scores.parts():
                tally.add(part)
        if not len(tally):
            raise StructureError("ended before the first frame was scored; type the command again")
        if self.trajectory.unfinished:
            self.say("note: the last frame is half-written and was left out")
        summary = self._show()
        for line in lines(summary):
            self.say(line)
        self.say(f"wrote {self.directory / PICTURE} and {self.directory / SUMMARY}")
        if self.seen.blocks is not None and self.settings.clusters:
            cut_unfamiliar(scores, self.seen.blocks, self.settings, say=self.say)
        return summary
