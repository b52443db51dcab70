"""`Pools`: the one door through which a campaign has its tasks done."""

from __future__ import annotations

import math
import os
import queue
import time
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mofal.errors import MofalError, ScheduleError
from mofal.schedule.dispatcher import Dispatcher, Entry
from mofal.schedule.events import EventLog
from mofal.schedule.execution import execute_task
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.task import Outcome, Task, function_reference

if TYPE_CHECKING:
    from distributed import Client

Progress = Callable[[str], None]


class Handle:
    """A task that was submitted."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    @property
    def task(self) -> Task:
        """The task."""
        return self._entry.task

    @property
    def done(self) -> bool:
        """Whether its outcome is there."""
        return self._entry.outcome is not None


class Completions:
    """Outcomes of handles in the order in which they end; more handles may join at any time."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._done: queue.SimpleQueue[Outcome | MofalError] = queue.SimpleQueue()
        self._seen: set[int] = set()
        self._handles: list[Handle] = []
        self.pending = 0

    def add(self, handle: Handle) -> None:
        """Wait for this one too; the same task counts once."""
        entry = handle._entry
        if entry.number not in self._seen:
            self._seen.add(entry.number)
            self._handles.append(handle)
            self._pools._dispatcher.listen(entry, self._done)
            self.pending += 1

    def next(self, timeout: float | None = None) -> Outcome | None:
        """Return the next outcome, or None when nothing ended for `timeout` seconds.

        Raises
        ------
        ScheduleError
            A pool was given up (its jobs die on arrival); the message holds the job's log.
        """
        if not self.pending:
            return None
        outcome = self._pools._next(self._done, timeout)
        if isinstance(outcome, MofalError):
            raise outcome
        if outcome is not None:
            self.pending -= 1
        return outcome

    def wind_down(self, kinds: Container[str]) -> Iterator[Outcome]:
        """Forget what waits, and give the outcomes of what is in hand, of some kinds.

        Whoever stops after a mistake keeps so what has run for hours. On SLURM nothing is waited
        for: there workers bring what they have in hand to its end without a driver.
        """
        self._pools.cancel(self._handles)
        settings = self._pools.settings
        pools = settings.effective_pools()
        left = [
            handle._entry
            for handle in self._handles
            if handle.task.kind in kinds
            and pools[settings.pool_of(handle.task.kind)].backend != "slurm"
        ]
        while any(entry.state != "ended" for entry in left):
            outcome = self._pools._next(self._done, 1.0)
            if outcome is not None and not isinstance(outcome, MofalError):
                yield outcome
        while not self._done.empty():
            outcome = self._done.get()
            if not isinstance(outcome, MofalError):
                yield outcome


class Pools:
    """Pools of workers behind one queue; a context manager.

    Work that is submitted starts at once and goes on while the caller does something else; the
    results of `run` and `as_completed` come in the order in which tasks end. A task whose output
    is on disk is "found" without a worker. All methods are for one thread, the driver's.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        directory: str | os.PathLike[str],
        progress: Progress | None = None,
        client: Client | None = None,
    ) -> None:
        if client is not None:
            settings = settings.on_client()
        self.settings = settings
        self.directory = Path(directory)
        self._events = EventLog(self.directory)
        self._dispatcher = Dispatcher(
            settings,
            directory=self.directory,
            events=self._events,
            progress=progress,
            client=client,
        )
        self._closed = False
        self._events.write(
            "driver-start", pid=os.getpid(), host=os.uname().nodename, backend=settings.backend
        )

    @classmethod
    def from_settings(
        cls,
        settings: ScheduleSettings,
        *,
        directory: str | os.PathLike[str],
        progress: Progress | None = None,
        client: Client | None = None,
    ) -> Pools:
        """Pools as the `schedule` section of a campaign file says.

        Parameters
        ----------
        settings
            Validated section.
        directory
            Of the campaign; logs, keys and events go to ``schedule/`` inside.
        progress
            Called with one line of text now and then, from another thread.
        client
            A Dask client whose cluster does the work, whatever backend the section names; it
            stays open.
        """
        return cls(settings, directory=directory, progress=progress, client=client)

    def __enter__(self) -> Pools:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a mistake, labels on SLURM that have run for hours may run to their end; a user
        # who interrupts wants it all to stop.
        self.close(keep_busy=isinstance(error, Exception))

    def submit(self, task: Task) -> Handle:
        """Have a task done; one that is known already (same kind and key) is joined.

        Raises
        ------
        ConfigError
            No pool takes tasks of this kind.
        ScheduleError
            The function cannot be imported by another process, or the pools are closed.
        """
        if self._closed:
            raise ScheduleError("found closed pools; expected a task before close()")
        pool = self.settings.pool_of(task.kind)
        function_reference(task.function)
        return Handle(self._dispatcher.submit(task, pool=pool))

    def as_completed(
        self, handles: Iterable[Handle], *, timeout: float | None = None
    ) -> Iterator[Outcome]:
        """Outcomes of these tasks in the order in which they end.

        Parameters
        ----------
        handles
            From `submit`.
        timeout
            Stop, without an error, when nothing ended for so many seconds.

        Raises
        ------
        ScheduleError
            A pool was given up (its jobs die on arrival); the message holds the job's log.
        """
        completions = self.completions()
        for handle in handles:
            completions.add(handle)
        while completions.pending:
            outcome = completions.next(timeout)
            if outcome is None:
                return
            yield outcome

    def completions(self) -> Completions:
        """Return an empty stream of outcomes, to which handles are added as they are submitted."""
        return Completions(self)

    def _next(
        self, done: queue.SimpleQueue[Outcome | MofalError], timeout: float | None
    ) -> Outcome | MofalError | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                if self._dispatcher.inline:
                    return done.get_nowait()
                wait = 1.0 if deadline is None else min(max(deadline - time.monotonic(), 0), 1.0)
                return done.get(timeout=wait)
            except queue.Empty:
                if self._dispatcher.inline:
                    self._dispatcher.step_inline(execute_task)
                elif deadline is not None and time.monotonic() >= deadline:
                    return None

    def run(self, tasks: Iterable[Task], *, quorum: float = 1.0) -> Iterator[Outcome]:
        """Submit tasks and give their outcomes in the order in which they end.

        Parameters
        ----------
        tasks
            Any number.
        quorum
            Stop after this fraction has ended, whatever way it ended; the others go on in the
            background and are joined when they are submitted again.
        """
        if not 0 < quorum <= 1:
            raise ScheduleError(f"found a quorum of {quorum}; expected a fraction in (0, 1]")
        unique = {(task.kind, task.key): task for task in tasks}
        handles = [self.submit(task) for task in unique.values()]
        enough = math.ceil(quorum * len(handles) - 1e-9)
        for number, outcome in enumerate(self.as_completed(handles), start=1):
            yield outcome
            if number >= enough:
                return

    def cancel(self, handles: Iterable[Handle]) -> int:
        """Forget tasks that have not started; returns how many. Those that run go on."""
        return self._dispatcher.cancel([handle._entry for handle in handles])

    def performance_report(self, path: str | os.PathLike[str]) -> bool:
        """Write Dask's performance report of the time since the last one (or the start).

        Parameters
        ----------
        path
            Of the HTML file.

        Returns
        -------
        bool
            Whether there is one: it takes workers that are processes, and `bokeh` installed.
        """
        return self._dispatcher.performance_report(Path(path))

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, "" where there is none."""
        return self._dispatcher.dashboard

    def close(self, *, keep_busy: bool = False) -> None:
        """End all workers; what was not finished is not lost, only not done.

        Parameters
        ----------
        keep_busy
            Let jobs on SLURM finish the tasks that they have in hand; they end by themselves, or
            serve the next driver if it comes soon.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._dispatcher.close(keep_busy=keep_busy)
        finally:
            self._events.write("driver-end", pid=os.getpid())
            self._events.close()
