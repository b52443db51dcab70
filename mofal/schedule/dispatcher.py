"""The dispatcher: holds the queues, hands tasks to workers, judges what becomes of them.

Each worker holds one task at a time (a few where they are very short), and what waits, waits here:
so the longest can go first, none is started that its worker's walltime would cut, late workers
find work, and when a worker dies it is known which task it was working on.

One thread owns all state; others talk to it through one queue of messages.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.errors import MofalError, ScheduleError
from mofal.schedule.backend import Attempt, Backend, Loss, ThreadsBackend, WorkerInfo
from mofal.schedule.events import EventLog, schedule_directory
from mofal.schedule.execution import Result, one_line
from mofal.schedule.files import Layout, job_of_worker
from mofal.schedule.handover import HandedOver, Handover
from mofal.schedule.policy import Borrower, PoolView, TaskQueue, borrower, look_ahead
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.status import StatusReader
from mofal.schedule.task import Outcome, Task, function_reference

if TYPE_CHECKING:
    from distributed import Client

#: Seconds between two looks after the workers when nothing happens.
TICK = 0.5
#: Seconds per claim between two looks at the claims (each is some files of a shared file system).
CLAIM = 0.02
#: Seconds between two lines of progress.
PROGRESS_INTERVAL = 10.0
#: A task cut by this many walltimes in a row does not fit into its pool (resumable ones never).
MAX_CUTS = 3


def _wrapped(error: Exception) -> ScheduleError:
    """An error that nobody foresaw, as one that the command line can tell."""
    wrapped = ScheduleError(f"the dispatcher stopped: {one_line(error)}")
    wrapped.__cause__ = error
    return wrapped


@dataclass(eq=False)
class Entry:
    """A task while the dispatcher knows it."""

    task: Task
    pool: str
    state: str = "waiting"  # waiting, running, claimed, ended
    attempts: int = 0
    kills: int = 0
    cuts: int = 0
    begun: bool = False  # a worker of a cluster of others has it in hand
    owner: str = ""  # worker that lost its driver and still computes this
    was_claimed: bool = False
    deaths: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    error: MofalError | None = None
    number: int = field(default_factory=count().__next__)
    listeners: list[queue.SimpleQueue[Any]] = field(default_factory=list)


@dataclass
class _Worker:
    info: WorkerInfo
    running: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    lent: str = ""  # attempt of the wide task that it is lent to
    started: float = 0.0  # when its first running task started
    idle_since: float = 0.0


class Dispatcher:
    """See the module; made by `Pools`."""

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        directory: Path,
        events: EventLog,
        progress: Callable[[str], None] | None,
        client: Client | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._directory = directory
        self._events = events
        self._progress = progress
        self.inline = settings.backend == "inline"
        self._pools = settings.effective_pools()
        self._queues: dict[str, TaskQueue[Entry]] = {name: TaskQueue() for name in self._pools}
        # What earlier drivers of this campaign saw says how long tasks take.
        self._estimator = StatusReader(directory).estimator()
        self._entries: dict[tuple[str, str], Entry] = {}
        self._attempts: dict[str, tuple[Entry, str]] = {}  # attempt -> entry, worker
        self._workers: dict[str, _Worker] = {}
        self._wide: dict[str, Entry] = {}  # attempts that may borrow workers
        self._claimed: list[Entry] = []
        self._dead: dict[str, MofalError] = {}
        self._lock = threading.Lock()  # guards listeners and outcomes of entries
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._ended: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        self._last_progress = time.monotonic()
        self._thread: threading.Thread | None = None
        self._backend: Backend | None = None
        self._handover = Handover(settings, directory=directory, say=self._say)
        self._next_tick = self._next_claims = 0.0
        self._sent = 0
        self._keep_busy = False

    # ------------------------------------------------------- what the driver's thread calls
    def submit(self, task: Task, *, pool: str) -> Entry:
        """Take a task; a known one is joined, one whose output exists is ended at once."""
        identity = (task.kind, task.key)
        with self._lock:
            known = self._entries.get(identity)
            if known is not None:
                return known
            entry = Entry(task=task, pool=pool)
            if task.found():
                entry.state = "ended"
                entry.outcome = Outcome(task=task, status="found")
                self._events.write("found", kind=task.kind, key=task.key)
                return entry
            self._entries[identity] = entry
        self._events.write("queued", kind=task.kind, key=task.key, pool=pool, cost=task.cost)
        self._inbox.put(("submit", entry))
        if not self.inline and self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="mofal-dispatcher", daemon=True)
            self._thread.start()
        return entry

    def listen(self, entry: Entry, done: queue.SimpleQueue[Any]) -> None:
        """Have the outcome (or the pool's error) put into a queue, now or when it is there."""
        with self._lock:
            if entry.outcome is not None:
                done.put(entry.outcome)
            elif entry.error is not None:
                done.put(entry.error)
            else:
                entry.listeners.append(done)

    def cancel(self, entries: Iterable[Entry]) -> int:
        """Forget those that wait."""
        wanted = list(entries)
        if self.inline or self._thread is None:
            self._empty_inbox()
            return self._cancel(wanted)
        answer: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._inbox.put(("cancel", wanted, answer))
        return answer.get()

    def performance_report(self, path: Path) -> bool:
        """Have the backend write its report; False where it has none."""
        if self._thread is None:
            return False
        answer: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def write() -> None:
            report = getattr(self._backend, "performance_report", None)
            answer.put(report is not None and bool(report(path)))

        self._inbox.put(("call", write))
        while self._thread.is_alive():
            try:
                return answer.get(timeout=1.0)
            except queue.Empty:
                continue
        return False

    @property
    def dashboard(self) -> str:
        """Address of the dashboard."""
        return str(getattr(self._backend, "dashboard", ""))

    def close(self, *, keep_busy: bool = False) -> None:
        """End the workers and the thread; on SLURM, those at work may finish what they have."""
        self._keep_busy = keep_busy
        if self._thread is not None:
            self._inbox.put(("stop",))
            self._thread.join()
            self._thread = None
            if not keep_busy:
                self._handover.withdraw()
        elif not self.inline and any(pool.backend == "slurm" for pool in self._pools.values()):
            # Everything was found, and jobs that a driver before left have nothing to do.
            from mofal.schedule.jobs import cancel_leftovers

            cancel_leftovers(Layout(schedule_directory(self._directory).resolve()))

    def step_inline(self, execute: Callable[[Task], Result]) -> None:
        """Run the next task in the caller's thread (backend inline)."""
        self._empty_inbox()
        for pool in self._queues:
            entry = self._queues[pool].pop(self._estimator)
            if entry is not None:
                self._begin(entry, worker="inline")
                self._finish(entry, execute(entry.task), worker="inline")
                return
        raise ScheduleError("found nothing to run; expected a task that waits")  # pragma: no cover

    def _empty_inbox(self) -> None:
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._handle(message)

    # --------------------------------------------------------- the dispatcher's own thread
    def _loop(self) -> None:
        try:
            self._backend = self._make_backend()
            self._backend.start(self._inbox.put)
            while True:
                stop = False
                try:
                    message = self._inbox.get(timeout=max(self._next_tick - time.monotonic(), 0.0))
                    stop = self._handle(message)
                    for _ in range(1000):  # whatever else is there, before anything is decided
                        if stop or self._inbox.empty():
                            break
                        stop = self._handle(self._inbox.get_nowait())
                except queue.Empty:
                    pass
                if stop:
                    return
                self._assign()
                if time.monotonic() >= self._next_tick:
                    self._tick()
                    self._next_tick = time.monotonic() + TICK
        except HandedOver as error:
            self._say(str(error))
            self._close_backend(lambda job: True)
            self._fail_all(error)
        except Exception as error:
            fatal = error if isinstance(error, MofalError) else _wrapped(error)
            self._close_backend(self._is_busy)
            self._fail_all(fatal)
        finally:
            self._close_backend(self._is_busy if self._keep_busy else lambda job: False)

    def _is_busy(self, job: str) -> bool:
        """Whether a job has work in hand, which it may finish without a driver."""
        return any(w.info.job == job and w.running for w in self._workers.values())

    def _close_backend(self, keep: Callable[[str], bool]) -> None:
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close(keep)

    def _make_backend(self) -> Backend:
        if self._settings.backend == "threads":
            return ThreadsBackend({name: pool.workers.max for name, pool in self._pools.items()})
        if self._settings.backend == "client":
            from mofal.schedule.client import ClientBackend

            return ClientBackend(
                self._settings,
                directory=self._directory,
                events=self._events,
                say=self._say,
                client=self._client,
            )
        from mofal.schedule.cluster import ClusterBackend

        return ClusterBackend(
            self._settings, directory=self._directory, events=self._events, say=self._say
        )

    def _handle(self, message: tuple[Any, ...]) -> bool:
        """Take in one message; True for the last one."""
        match message:
            case ("submit", entry):
                self._enqueue(entry)
            case ("finished", identity, result):
                self._finished(identity, result)
            case ("started", identity, worker):
                self._started(identity, worker)
            case ("killed", identity, worker, starts, allowed):
                self._killed(identity, worker, starts, allowed)
            case ("worker", info):
                self._workers[info.name] = _Worker(info, idle_since=time.monotonic())
            case ("gone", name, loss):
                self._gone(name, loss)
            case ("lost", identity, loss):
                self._lost(identity, loss)
            case ("give-up", pool, error):
                self._give_up(pool, error)
            case ("cancel", entries, answer):
                answer.put(self._cancel(entries))
            case ("call", function):
                function()
            case ("fatal", error):
                raise error
            case ("wake",):
                self._next_tick = 0.0
            case ("stop",):
                return True
        return False

    def _enqueue(self, entry: Entry) -> None:
        if entry.pool in self._dead:
            self._fail(entry, self._dead[entry.pool])
            return
        self._known[entry.task.kind] += 1
        if self._backend is not None and self._is_claimed(entry):
            return
        self._queue(entry)

    def _queue(self, entry: Entry) -> None:
        entry.state = "waiting"
        task = entry.task
        self._queues[entry.pool].push(
            entry,
            kind=task.kind,
            cost=task.cost,
            priority=task.priority,
            resumable=task.resumable,
        )

    def _is_claimed(self, entry: Entry) -> bool:
        """Whether a worker that lost its driver still computes this; then it is watched."""
        assert self._backend is not None
        owner = self._backend.claim(entry.task)
        if not owner:
            return False
        entry.state, entry.owner = "claimed", owner
        entry.was_claimed = True
        self._claimed.append(entry)
        self._events.write("claimed", kind=entry.task.kind, key=entry.task.key, worker=owner)
        return True

    def _cancel(self, entries: Iterable[Entry]) -> int:
        wanted = {id(entry) for entry in entries}
        number = 0
        for waiting in self._queues.values():
            for entry in waiting.drain():
                if id(entry) in wanted:
                    number += 1
                    self._known[entry.task.kind] -= 1
                    self._fail(entry, ScheduleError(f"the task {entry.task.name} was cancelled"))
                else:
                    self._queue(entry)
        for identity, (entry, name) in list(self._attempts.items()):
            # What a cluster of others has not begun with waits there, and can be had back.
            if id(entry) in wanted and self._workers[name].info.shared and not entry.begun:
                number += 1
                self._forget(identity)
                self._known[entry.task.kind] -= 1
                self._fail(entry, ScheduleError(f"the task {entry.task.name} was cancelled"))
        return number

    # -- handing out
    def _assign(self) -> None:
        # First one task for each worker without any; then the short ones that travel ahead.
        for ahead in (False, True):
            for worker in self._workers.values():
                pool = self._queues.get(worker.info.pool)
                if not worker.lent and not worker.running:
                    self._lend(worker)
                if pool and not worker.lent and (ahead or not worker.running):
                    self._fill(worker, pool, self._capacity(worker) if ahead else 1)

    def _lend(self, worker: _Worker) -> None:
        """Lend an idle worker to a wide task of its pool, if one could use it."""
        running = self._borrowers(worker.info.pool)
        if not running:
            return
        assert self._backend is not None
        worker.lent = borrower(running, waiting=self._queues[worker.info.pool].priority)
        if worker.lent:
            self._backend.lend(worker.info.name, worker.lent)
            entry = self._attempts[worker.lent][0]
            self._events.write(
                "lent", worker=worker.info.name, kind=entry.task.kind, key=entry.task.key
            )

    def _borrowers(self, pool: str) -> list[Borrower]:
        """Wide tasks of a pool that run."""
        lent = Counter(worker.lent for worker in self._workers.values() if worker.lent)
        return [
            Borrower(identity, entry.task.priority, self._width(entry), lent[identity])
            for identity, entry in self._wide.items()
            if entry.pool == pool
        ]

    def _width(self, entry: Entry) -> int:
        """Workers that a task can use: never more than its pool may have."""
        return min(entry.task.width, self._pools[entry.pool].workers.max)

    def _borrowable(self, pool: str) -> int:
        """Workers that the wide tasks of a pool could use beside those that they have."""
        assert self._backend is not None
        if not self._backend.lends:
            return 0
        waiting = sum(
            self._width(entry) - 1
            for entry in self._entries.values()
            if entry.task.width > 1 and entry.pool == pool and entry.state == "waiting"
        )
        return waiting + sum(b.width - 1 - b.lent for b in self._borrowers(pool))

    def _take_back(self, identity: str) -> None:
        """Take back what was lent to an attempt that is over."""
        if self._wide.pop(identity, None) is None:
            return
        for worker in self._workers.values():
            if worker.lent == identity:
                worker.lent = ""
                worker.idle_since = time.monotonic()
                if self._backend is not None:
                    self._backend.take_back(worker.info.name, identity)

    def _fill(self, worker: _Worker, pool: TaskQueue[Entry], capacity: float) -> None:
        """Send tasks to a worker until it holds so many, or none fits."""
        ends_at = worker.info.ends_at
        while len(worker.running) < capacity:
            remaining = None if ends_at is None else ends_at - time.monotonic()
            entry = pool.pop(
                self._estimator, remaining=remaining, walltime=self._walltime(worker.info.pool)
            )
            if entry is None:
                return
            if (entry.attempts or entry.was_claimed) and entry.task.found():
                self._end(entry, Outcome(task=entry.task, status="found"))
            else:
                self._send(worker, entry)

    def _walltime(self, pool: str) -> float | None:
        """Seconds that a job of a pool has in all, None where there is no end."""
        settings = self._pools[pool]
        return settings.walltime if settings.backend == "slurm" else None

    def _capacity(self, worker: _Worker) -> float:
        """Tasks that this worker may hold: short ones travel ahead."""
        if worker.info.shared:
            return math.inf
        if not worker.running:
            return 1
        longest = 0.0
        for entry in worker.running.values():
            length = self._estimator.expected(entry.task.kind, entry.task.cost)
            if length is None or entry.kills or entry.task.width > 1:
                return 1
            longest = max(longest, length)
        return look_ahead(longest)

    def _send(self, worker: _Worker, entry: Entry) -> None:
        assert self._backend is not None
        entry.state = "running"
        entry.attempts += 1
        self._sent += 1
        attempt = Attempt(
            identity=f"{entry.task.name}-{self._sent}", task=entry.task, pool=entry.pool
        )
        entry.begun = not worker.info.shared
        if entry.begun:
            self._begin(entry, worker=worker.info.name)
        if not worker.running:
            worker.started = time.monotonic()
        worker.running[attempt.identity] = entry
        self._attempts[attempt.identity] = (entry, worker.info.name)
        if self._backend.lends and self._width(entry) > 1:
            self._wide[attempt.identity] = entry
        try:
            self._backend.send(worker.info.name, attempt)
        except ScheduleError as error:  # arguments that cannot travel
            self._forget(attempt.identity)
            self._end(entry, Outcome(task=entry.task, status="failed", reason=one_line(error)))

    def _begin(self, entry: Entry, *, worker: str) -> None:
        self._events.write(
            "start",
            kind=entry.task.kind,
            key=entry.task.key,
            pool=entry.pool,
            worker=worker,
            attempt=max(entry.attempts, 1),
        )

    def _started(self, identity: str, worker: str) -> None:
        """A worker of a cluster of others has begun with an attempt."""
        entry, _ = self._attempts.get(identity, (None, ""))
        if entry is not None:
            entry.begun = True
            self._begin(entry, worker=worker)

    # -- what comes back
    def _forget(self, identity: str) -> str:
        """Take an attempt off its worker; returns the worker's name."""
        _, name = self._attempts.pop(identity)
        self._take_back(identity)
        if self._backend is not None:
            self._backend.forget(identity)
        worker = self._workers.get(name)
        if worker is not None:
            worker.running.pop(identity, None)
            worker.started = worker.idle_since = time.monotonic()
        return name

    def _finished(self, identity: str, result: Result) -> None:
        if identity not in self._attempts:
            return  # an attempt that was given up before
        entry, _ = self._attempts[identity]
        worker = self._forget(identity)
        self._finish(entry, result, worker=result.get("worker", worker))

    def _finish(self, entry: Entry, result: Result, *, worker: str) -> None:
        task = entry.task
        if result["status"] == "failed":
            self._keep_traceback(task, result["traceback"])
        elif result["status"] == "done":
            self._estimator.add(task.kind, cost=task.cost, seconds=result["wall_time"])
        self._end(
            entry,
            Outcome(
                task=task,
                status=result["status"],
                summary=result["summary"],
                reason=result["reason"],
                wall_time=result["wall_time"],
                worker=worker,
            ),
        )

    def _end(self, entry: Entry, outcome: Outcome) -> None:
        task = entry.task
        self._ended[task.kind] += 1
        self._events.write(
            "end",
            kind=task.kind,
            key=task.key,
            pool=entry.pool,
            status=outcome.status,
            wall_time=round(outcome.wall_time, 4),
            worker=outcome.worker,
            reason=outcome.reason,
        )
        with self._lock:
            entry.state = "ended"
            entry.outcome = outcome
            self._entries.pop((task.kind, task.key), None)
            listeners, entry.listeners = entry.listeners, []
        for listener in listeners:
            listener.put(outcome)

    def _fail(self, entry: Entry, error: MofalError) -> None:
        """End a task without an outcome: its pool is gone."""
        with self._lock:
            entry.state = "ended"
            entry.error = error
            self._entries.pop((entry.task.kind, entry.task.key), None)
            listeners, entry.listeners = entry.listeners, []
        for listener in listeners:
            listener.put(error)

    def _fail_all(self, error: MofalError) -> None:
        self._events.write("error", reason=one_line(error))
        for pool in self._pools:
            self._dead.setdefault(pool, error)
        for entry in list(self._entries.values()):
            self._fail(entry, error)
        # Whoever submits afterwards hears of it too, until the pools are closed.
        while True:
            message = self._inbox.get()
            if message[0] == "stop":
                return
            if message[0] == "submit":
                self._fail(message[1], error)
            elif message[0] == "cancel":
                message[2].put(0)
            elif message[0] == "call":
                message[1]()

    def _give_up(self, pool: str, error: MofalError) -> None:
        self._events.write("error", pool=pool, reason=one_line(error))
        self._dead[pool] = error
        for entry in list(self._entries.values()):
            if entry.pool == pool and entry.state == "waiting":
                self._fail(entry, error)
        self._queues[pool].drain()

    # -- workers that die
    def _gone(self, name: str, loss: Loss) -> None:
        worker = self._workers.pop(name, None)
        if worker is None:
            return
        if worker.running and loss.blame == "task":
            self._say(f"worker {name} is lost: {loss.reason}")
        for position, (identity, entry) in enumerate(worker.running.items()):
            self._attempts.pop(identity, None)
            self._take_back(identity)
            if self._backend is not None:
                self._backend.forget(identity)
            # Only the first was at work; the others had travelled ahead.
            self._interrupted(entry, name, loss, at_work=position == 0)

    def _lost(self, identity: str, loss: Loss) -> None:
        """One attempt is lost, and its worker is not."""
        if identity in self._attempts:
            entry, _ = self._attempts[identity]
            self._interrupted(entry, self._forget(identity), loss, at_work=False)

    def _interrupted(self, entry: Entry, worker: str, loss: Loss, *, at_work: bool) -> None:
        """A task lost its worker: its output, its claim, its place in the queue, or quarantine."""
        task = entry.task
        self._events.write(
            "lost",
            kind=task.kind,
            key=task.key,
            worker=worker,
            blame=loss.blame,
            reason=loss.reason,
        )
        if task.found():
            self._end(entry, Outcome(task=task, status="found", worker=worker))
            return
        if at_work:
            self._count(entry, worker, loss)
        if self._is_too_bad(entry, loss):
            return
        if not self._is_claimed(entry):
            self._queue(entry)

    def _killed(self, identity: str, worker: str, starts: int, allowed: int) -> None:
        """Dask gave up an attempt after the deaths of more workers than are `allowed`.

        It blames every task that was at one of those workers, those that had not begun too: what
        counts is on how many of them this one did, and, where nobody could write that down, that it
        was blamed often.
        """
        if identity not in self._attempts:
            return
        entry, _ = self._attempts[identity]
        self._forget(identity)
        entry.kills += starts
        entry.deaths.append(f"{worker}: {starts} of {allowed + 1} workers died with it in hand")
        if entry.task.found():
            self._end(entry, Outcome(task=entry.task, status="found", worker=worker))
        elif entry.kills > allowed or len(entry.deaths) > allowed:
            number = max(entry.kills, allowed + 1)
            reason = (
                f"{number} workers ended with it in hand, the last of them {worker}; if it was "
                "their walltime, start them with --lifetime below it, or raise "
                "distributed.scheduler.allowed-failures"
            )
            self._quarantine(entry, reason)
        else:
            self._queue(entry)

    @staticmethod
    def _count(entry: Entry, worker: str, loss: Loss) -> None:
        """Remember how a task lost the worker that was at it."""
        entry.deaths.append(f"{worker}: {loss.reason}")
        if loss.blame == "task":
            entry.kills += 1
        elif loss.blame == "walltime" and not entry.task.resumable:
            entry.cuts += 1

    def _is_too_bad(self, entry: Entry, loss: Loss) -> bool:
        """Quarantine a task that has ended too many workers."""
        if entry.kills >= self._settings.kills:
            self._quarantine(entry, f"it ended {entry.kills} workers ({loss.reason})")
        elif entry.cuts >= MAX_CUTS:
            self._quarantine(
                entry, f"{entry.cuts} workers reached their walltime with it; it needs a longer one"
            )
        else:
            return False
        return True

    def _quarantine(self, entry: Entry, reason: str) -> None:
        task = entry.task
        folder = schedule_directory(self._directory) / "quarantine"
        facts = {
            "kind": task.kind,
            "key": task.key,
            "function": function_reference(task.function),
            "kwargs": dict(task.kwargs),
            "output": task.output,
            "reason": reason,
            "deaths": entry.deaths,
        }
        path = folder / f"{task.name}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(facts, indent=1, default=str) + "\n")
            kept = f"its input is kept in {path}"
        except OSError as error:  # a full disk: the campaign goes on
            kept = f"its input could not be kept: {one_line(error)}"
        self._say(f"{task.name} is in quarantine: {reason}; {kept}")
        worker = entry.deaths[-1].partition(":")[0]
        self._end(entry, Outcome(task=task, status="quarantined", reason=reason, worker=worker))

    def _keep_traceback(self, task: Task, trace: str) -> None:
        folder = schedule_directory(self._directory) / "failures"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{task.name}.txt").write_text(trace, encoding="utf-8", errors="replace")
        except OSError:
            pass  # a full disk: the reason is in the outcome

    # -- now and then
    def _look_at_claims(self) -> None:
        """End claimed tasks whose output has come, queue those whose worker gave up."""
        assert self._backend is not None
        if time.monotonic() < self._next_claims:
            return
        claimed, self._claimed = self._claimed, []
        self._next_claims = time.monotonic() + CLAIM * len(claimed)
        for entry in claimed:
            if entry.task.found():
                self._end(entry, Outcome(task=entry.task, status="found"))
                continue
            before, entry.owner = entry.owner, self._backend.claim(entry.task)
            if entry.owner:
                self._claimed.append(entry)
                continue
            if entry.task.found():  # it was written between the two looks
                self._end(entry, Outcome(task=entry.task, status="found"))
                continue
            loss = self._backend.fate(before)
            if loss is not None:  # it died of the task after its driver or its connection
                self._count(entry, before, loss)
                if self._is_too_bad(entry, loss):
                    continue
            self._queue(entry)

    def _tick(self) -> None:
        assert self._backend is not None
        self._handover.check()
        self._backend.tick()
        self._look_at_claims()
        now = time.monotonic()
        for pool, settings in self._pools.items():
            if pool in self._dead:
                continue
            # A job with a claimed task is as busy as any: it must not be given back.
            busy = Counter(
                job_of_worker(entry.owner) for entry in self._claimed if entry.pool == pool
            )
            for worker in self._workers.values():
                if worker.info.pool == pool:
                    busy[worker.info.job] += bool(worker.running or worker.lent)
            view = PoolView(
                least=settings.workers.min,
                most=settings.workers.max,
                workers_per_job=settings.workers_per_job,
                waiting=len(self._queues[pool]),
                waiting_seconds=self._queues[pool].seconds(self._estimator),
                borrowable=self._borrowable(pool),
                needs=self._queues[pool].needs(self._estimator, walltime=self._walltime(pool)),
            )
            self._backend.scale(pool, view, busy=busy)
        if now - self._last_progress >= PROGRESS_INTERVAL and self._attempts:
            self._last_progress = now
            running = Counter(e.task.kind for e, _ in self._attempts.values() if e.begun)
            parts = [
                f"{kind} {self._ended[kind]}/{self._known[kind]}"
                + (f" ({running[kind]} running)" if running[kind] else "")
                for kind in sorted(self._known)
                if self._ended[kind] < self._known[kind]
            ]
            if parts and self._progress is not None:
                self._progress(", ".join(parts))

    def _say(self, text: str) -> None:
        """One line for a person, in the log and on the terminal."""
        self._events.write("message", text=text)
        if self._progress is not None:
            self._progress(text)
