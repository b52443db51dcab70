"""What the dispatcher asks of a backend, and the two that need no other process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mofal.schedule.execution import execute_task, one_line
from mofal.schedule.policy import PoolView
from mofal.schedule.task import Task

REPORT = 60.0
"""Seconds that Dask may take for its report."""

#: How a backend tells the dispatcher: ("worker", WorkerInfo), ("gone", name, Loss),
#: ("finished", attempt id, result), ("lost", attempt id, Loss), ("give-up", pool, ScheduleError),
#: ("started", attempt id, worker), ("killed", attempt id, last worker, deaths with it in hand,
#: deaths that are allowed), ("fatal", ScheduleError),
#: ("wake",), and ("call", function) for what must happen in the dispatcher's thread.
Post = Callable[[tuple[Any, ...]], None]


@dataclass
class WorkerInfo:
    """A worker that is there.

    Attributes
    ----------
    name
        Unique, also over restarts of the same process.
    pool, job
        Where it belongs.
    ends_at
        When it plans to end (time.monotonic of the driver), None: never.
    shared
        It stands for a cluster of somebody else, which takes all that waits, and says with
        ("started", attempt id, worker) what has begun.
    """

    name: str
    pool: str
    job: str
    ends_at: float | None = None
    shared: bool = False


@dataclass(frozen=True)
class Loss:
    """Why a worker is gone.

    Attributes
    ----------
    blame
        "task" (it died under its task), "walltime" (its time was up), "none" (it was cancelled,
        given back, or lost its scheduler).
    reason
        In words.
    """

    blame: Literal["task", "walltime", "none"] = "task"
    reason: str = "the worker ended"


@dataclass
class Attempt:
    """One try at one task."""

    identity: str
    task: Task
    pool: str


class Backend(Protocol):
    """Workers, wherever they are. All methods are called from the dispatcher's thread."""

    def start(self, post: Post) -> None:
        """Begin; from now on `post` may be called from any thread."""

    def send(self, worker: str, attempt: Attempt) -> None:
        """Run an attempt on a worker that was posted."""

    def forget(self, identity: str) -> None:
        """The dispatcher has no more use for this attempt."""

    @property
    def lends(self) -> bool:
        """Whether workers can be lent to a task that runs on another one."""

    def lend(self, worker: str, identity: str) -> None:
        """Let the graphs of an attempt be computed on this worker too."""

    def take_back(self, worker: str, identity: str) -> None:
        """Let them be computed there no more."""

    def scale(self, pool: str, view: PoolView, *, busy: Mapping[str, int]) -> None:
        """Bring the number of workers of a pool to what the work wants."""

    def tick(self) -> None:
        """Look after the workers; called about twice a second, and when something happened."""

    def claim(self, task: Task) -> str:
        """Who computes this task already although no attempt of ours does; "" if nobody."""

    def fate(self, worker: str) -> Loss | None:
        """How a worker of `claim` came to its end, None where nobody says."""

    def close(self, keep: Callable[[str], bool]) -> None:
        """End all jobs, but those on SLURM whose name `keep` says stay for another driver."""


class ThreadsBackend:
    """Workers that are threads of the driver: no other process, no limits, no walltime."""

    def __init__(self, pools: Mapping[str, int]) -> None:
        self._pools = dict(pools)
        self._queues: dict[str, queue.SimpleQueue[Attempt | None]] = {}
        self._post: Post = lambda message: None

    def start(self, post: Post) -> None:
        self._post = post
        for pool, number in self._pools.items():
            for index in range(number):
                name = f"{pool}-{index}"
                self._queues[name] = queue.SimpleQueue()
                threading.Thread(
                    target=self._work, args=(name,), name=f"mofal-{name}", daemon=True
                ).start()
                post(("worker", WorkerInfo(name=name, pool=pool, job="threads")))

    def _work(self, name: str) -> None:
        while (attempt := self._queues[name].get()) is not None:
            self._post(("finished", attempt.identity, execute_task(attempt.task)))

    def send(self, worker: str, attempt: Attempt) -> None:
        self._queues[worker].put(attempt)

    def forget(self, identity: str) -> None:
        pass

    lends = False  # a wide task computes in Dask's own threads

    def lend(self, worker: str, identity: str) -> None:
        pass

    def take_back(self, worker: str, identity: str) -> None:
        pass

    def scale(self, pool: str, view: PoolView, *, busy: Mapping[str, int]) -> None:
        pass

    def tick(self) -> None:
        pass

    def claim(self, task: Task) -> str:
        return ""

    def fate(self, worker: str) -> Loss | None:
        return None

    def close(self, keep: Callable[[str], bool]) -> None:
        for waiting in self._queues.values():
            waiting.put(None)


def performance_report(
    client: Any, path: Path, *, since: float, say: Callable[[str], None]
) -> bool:
    """Write Dask's report of the time since then, one HTML file; False, and said, without bokeh."""
    try:
        page = client.sync(
            client.scheduler.performance_report,
            start=since,
            last_count=0,
            code="",
            mode="inline",
            callback_timeout=REPORT,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except Exception as error:  # a report is not worth a campaign
        say(f"no performance report: {one_line(error)} (it needs `pip install bokeh`)")
        return False
    return True
