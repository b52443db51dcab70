"""The policy of the pools as pure functions: which task goes where, how many jobs there should be.

Nothing here knows of Dask, SLURM, files or clocks: time comes in as numbers of seconds. The same
functions drive the real pools (`pools.py`) and the simulation by a virtual clock (`simulate.py`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")

#: Normal quantile of the chance (99 %) with which a task that is started must end in time.
SAFETY_QUANTILE = 2.33
#: Spread (of the logarithm) of lengths that is assumed at least, however alike they were so far.
LEAST_SPREAD = 0.1
#: Fraction of its walltime that a worker has left as long as it counts as fresh.
FRESH = 0.8
#: Finished tasks of a kind that an estimate rests on.
ESTIMATE_WINDOW = 200


#: Exponent beyond which an estimate is no estimate, and no number would hold it.
_LARGEST = 100.0


class Estimator:
    """Lengths of tasks, learnt from those that ended: a log-normal in length per cost."""

    def __init__(self) -> None:
        self._logs: dict[str, deque[float]] = {}
        self._sorted: dict[str, list[float]] = {}

    def add(self, kind: str, *, cost: float | None, seconds: float) -> None:
        """Learn that a task of this kind and cost took so many seconds."""
        window = self._logs.setdefault(kind, deque())
        ordered = self._sorted.setdefault(kind, [])
        if len(window) == ESTIMATE_WINDOW:
            del ordered[bisect_left(ordered, window.popleft())]
        new = math.log(max(seconds, 1e-6) / (cost or 1.0))
        window.append(new)
        insort(ordered, new)

    def _parameters(self, kind: str) -> tuple[float, float] | None:
        """Middle and spread of log(seconds / cost); None where nothing has ended yet.

        By quantiles: a few tasks that ended at once, because their work was done already, say
        nothing of the others.
        """
        logs = self._sorted.get(kind)
        if not logs:
            return None
        number = len(logs)
        middle = _quantile(logs, 0.5)
        if number < 3:
            return middle, 0.5
        half = (_quantile(logs, 0.75) - _quantile(logs, 0.25)) / 1.349
        tail = (_quantile(logs, 0.95) - middle) / 1.645
        # Few samples say little about the spread: widen it as a t-interval would, roughly.
        return middle, max(max(half, tail) * (1 + 2 / number), LEAST_SPREAD)

    def expected(self, kind: str, cost: float | None = None) -> float | None:
        """Mean length (s) of such a task, None where nothing is known."""
        parameters = self._parameters(kind)
        if parameters is None:
            return None
        mean, spread = parameters
        return math.exp(min(mean + spread**2 / 2, _LARGEST)) * (cost or 1.0)

    def upper(self, kind: str, cost: float | None = None) -> float | None:
        """Length (s) that such a task exceeds in 1 of 100 cases."""
        parameters = self._parameters(kind)
        if parameters is None:
            return None
        mean, spread = parameters
        return math.exp(min(mean + SAFETY_QUANTILE * spread, _LARGEST)) * (cost or 1.0)

    def largest_cost(self, kind: str, seconds: float) -> float:
        """Cost of the largest task that ends within so many seconds in 99 of 100 cases."""
        upper = self.upper(kind)
        return math.inf if upper is None else seconds / upper


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    """Quantile of sorted numbers, linear between them."""
    place = fraction * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class TaskQueue(Generic[Item]):
    """What waits for a worker of one pool: highest priority first, then the longest that fits."""

    def __init__(self) -> None:
        # (-priority, kind) -> [(-cost, sequence, resumable, item)], sorted: the longest in front.
        self._buckets: dict[tuple[int, str], list[tuple[float, int, bool, Item]]] = {}
        self._sequence = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def priority(self) -> int | None:
        """Highest priority of what waits, None where nothing does."""
        return None if not self._buckets else -min(bucket[0] for bucket in self._buckets)

    def counts(self) -> dict[str, int]:
        """Number waiting per kind."""
        counts: dict[str, int] = {}
        for (_, kind), bucket in self._buckets.items():
            counts[kind] = counts.get(kind, 0) + len(bucket)
        return counts

    def push(
        self,
        item: Item,
        *,
        kind: str,
        cost: float | None = None,
        priority: int = 0,
        resumable: bool = False,
    ) -> None:
        """Add an item."""
        entry = (-(1.0 if cost is None else cost), self._sequence, resumable, item)
        self._sequence += 1
        self._size += 1
        insort(self._buckets.setdefault((-priority, kind), []), entry, key=lambda e: e[:2])

    def pop(
        self, estimator: Estimator, *, remaining: float | None = None, walltime: float | None = None
    ) -> Item | None:
        """Take the next item for a worker that has `remaining` seconds left (None: no end).

        Among items of one priority the one expected to be longest goes first. With an end in
        sight it is the longest that ends before it; one that is resumable fits always. What fits
        into no worker at all, as far as anybody knows, still gets its chance: a worker that has
        nearly all of the pool's `walltime` before it takes the shortest of those.
        """
        best: tuple[int, float, tuple[int, str], int] | None = None
        fresh = remaining is not None and walltime is not None and remaining >= FRESH * walltime
        for (priority, kind), bucket in self._buckets.items():
            if best is not None and priority > best[0]:
                continue
            position = 0
            if remaining is not None and not bucket[0][2]:
                limit = estimator.largest_cost(kind, remaining)
                position = bisect_left(bucket, (-limit, -1), key=lambda e: e[:2])
                if position == len(bucket):
                    if not fresh:
                        continue
                    position -= 1
            length = estimator.expected(kind, -bucket[position][0])
            rank = (priority, -(math.inf if length is None else length), (priority, kind), position)
            if best is None or rank[:2] < best[:2]:
                best = rank
        if best is None:
            return None
        _, _, where, position = best
        bucket = self._buckets[where]
        item = bucket.pop(position)[3]
        if not bucket:
            del self._buckets[where]
        self._size -= 1
        return item

    def seconds(self, estimator: Estimator) -> float | None:
        """Expected work that waits (worker-seconds), None where a kind's length is unknown."""
        total = 0.0
        for (_, kind), bucket in self._buckets.items():
            unit = estimator.expected(kind)
            if unit is None:
                return None
            total -= unit * math.fsum(entry[0] for entry in bucket)
        return total

    def needs(self, estimator: Estimator, *, walltime: float | None = None) -> float:
        """Seconds that a worker must have left to be given anything at all (0: any will do)."""
        least = math.inf if walltime is None else FRESH * walltime
        for (_, kind), bucket in self._buckets.items():
            upper = estimator.upper(kind, -bucket[-1][0])
            if upper is None or bucket[0][2]:
                return 0.0
            least = min(least, upper)
        return least if self._buckets and least < math.inf else 0.0

    def drain(self) -> list[Item]:
        """Take everything."""
        items = [entry[3] for bucket in self._buckets.values() for entry in bucket]
        self._buckets.clear()
        self._size = 0
        return items


def look_ahead(expected: float | None) -> int:
    """Tasks that a worker holds at a time: one, and more only where they are so short that the way
    to the worker counts (unknown lengths: one)."""
    if expected is None or expected > 2.0:
        return 1
    return min(1 + math.ceil(0.1 / max(expected, 1e-3)), 8)


class JobView(NamedTuple):
    """What the policy knows of one job.

    Attributes
    ----------
    name
        Of the job.
    pending
        It waits in the queue, or its worker has not connected yet.
    workers
        In the job.
    busy
        Workers with a task.
    idle_since
        When its last task ended (s), None where a worker is busy.
    remaining
        Seconds until the job's planned end, None where there is none.
    """

    name: str
    pending: bool = False
    workers: int = 1
    busy: int = 0
    idle_since: float | None = None
    remaining: float | None = None


@dataclass(frozen=True)
class PoolView:
    """What the policy knows of one pool when it decides on jobs.

    Attributes
    ----------
    least, most
        Workers.
    workers_per_job
        Workers of one job.
    waiting
        Tasks that wait.
    waiting_seconds
        Their expected work (worker-seconds), None where unknown.
    borrowable
        Further workers that wide tasks, waiting or running, could use.
    needs
        Time (s) that a worker must have left to be given any of them: one with less is draining
        and does not count as capacity.
    jobs
        All jobs that SLURM has, pending or running.
    """

    least: int
    most: int
    workers_per_job: int = 1
    waiting: int = 0
    waiting_seconds: float | None = None
    borrowable: int = 0
    needs: float = 0.0
    jobs: Sequence[JobView] = field(default=())


class Borrower(NamedTuple):
    """A wide task that runs.

    Attributes
    ----------
    identity
        Of its attempt.
    priority
        Of the task.
    width
        Workers that it can use, its own among them.
    lent
        Workers that it has borrowed.
    """

    identity: str
    priority: int
    width: int
    lent: int


def borrower(running: Sequence[Borrower], *, waiting: int | None) -> str:
    """Which wide task an idle worker of their pool is lent to, "" for none.

    What waits goes first if its priority is higher. Of several tasks of one priority the one that
    has borrowed the smallest part of what it could use is served.

    Parameters
    ----------
    running
        Wide tasks of the pool.
    waiting
        Highest priority of what waits in the pool, None where nothing does.
    """
    wanting = [task for task in running if task.lent < task.width - 1]
    if not wanting:
        return ""
    best = min(wanting, key=lambda task: (-task.priority, task.lent / task.width))
    return "" if waiting is not None and waiting > best.priority else best.identity


@dataclass(frozen=True)
class Scaling:
    """What to do: jobs to submit, and jobs to end by name."""

    submit: int = 0
    end: tuple[str, ...] = ()


def scale(pool: PoolView, *, now: float, idle_time: float, worth: float = 60.0) -> Scaling:
    """How many jobs to submit, and which to give back.

    A job is submitted for waiting work only as far as there is enough of it: at least `worth`
    seconds for each worker. A job whose remaining time takes no waiting task is draining: it does
    not count as capacity, is not asked for more, and is ended once it is idle. Pending jobs that
    are not needed any more are ended first, newest first, then jobs idle for `idle_time`.
    """
    end: list[str] = []
    capacity: list[JobView] = []
    draining_busy = 0
    for job in pool.jobs:
        draining = not job.pending and job.remaining is not None and job.remaining <= pool.needs
        if not draining:
            capacity.append(job)
        elif job.busy == 0:
            end.append(job.name)
        else:
            draining_busy += job.busy
    busy = sum(job.busy for job in capacity)
    wanted_for_waiting = pool.waiting
    if pool.waiting and pool.waiting_seconds is not None and worth > 0:
        wanted_for_waiting = min(pool.waiting, max(1, math.ceil(pool.waiting_seconds / worth)))
    # Workers of draining jobs hold places of the pool's maximum until they end.
    most = max(pool.most - draining_busy, 0)
    wanted_for_waiting += pool.borrowable
    wanted = max(min(busy + wanted_for_waiting, most), min(pool.least, most))
    have = sum(job.workers for job in capacity)
    missing = wanted - have
    if missing > 0:
        return Scaling(submit=math.ceil(missing / pool.workers_per_job), end=tuple(end))
    surplus = have - max(wanted, pool.least)
    for job in reversed(capacity):
        if job.pending and surplus >= job.workers:
            end.append(job.name)
            surplus -= job.workers
    for job in capacity:
        idle = not job.pending and job.busy == 0 and job.idle_since is not None
        if idle and surplus >= job.workers and now - (job.idle_since or 0.0) >= idle_time:
            end.append(job.name)
            surplus -= job.workers
    return Scaling(end=tuple(end))


def stagger(index: int, *, walltime: float, fraction: float) -> float:
    """Seconds by which job number `index` plans to end before its walltime would make it.

    Jobs that start together would end together, and queue together for their successors; the
    van der Corput sequence spreads their ends evenly over a fraction of the walltime.
    """
    value, base, n = 0.0, 0.5, index
    while n:
        value += base * (n & 1)
        base /= 2
        n >>= 1
    return value * fraction * walltime
