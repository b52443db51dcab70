"""The pools under a virtual clock: the same policy, no work, no waiting.

Answers what a pool's settings would cost before a job is submitted (`dry_run`), and shows in the
tests and in ``benchmarks/schedule_policy.py`` what the policy is worth.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mofal.schedule.policy import (
    Estimator,
    JobView,
    PoolView,
    TaskQueue,
    scale,
    stagger,
)


@dataclass(frozen=True)
class SimulatedPool:
    """One pool of the simulation; all times in seconds.

    Attributes
    ----------
    most, least
        Workers.
    walltime
        Of a job; inf: none.
    workers_per_job
        Workers of one job.
    startup
        From a job's start until its worker takes tasks (allocated, not busy).
    queue_wait
        From submission to a job's start.
    margin, stagger
        By how much a job plans to end before its walltime, and the fraction of the walltime over
        which the planned ends are spread.
    idle_time
        After which an idle job is given back.
    end_lag
        From the decision to give a job back until it is gone.
    worth
        Least work for which one more worker is asked.
    """

    most: int
    least: int = 0
    walltime: float = math.inf
    workers_per_job: int = 1
    startup: float = 10.0
    queue_wait: float = 60.0
    margin: float = 30.0
    stagger: float = 0.1
    idle_time: float = 30.0
    end_lag: float = 2.0
    worth: float = 60.0


@dataclass
class SimulationResult:
    """What came of it.

    Attributes
    ----------
    busy, allocated
        Worker-seconds spent on tasks that ended, and held in jobs.
    lost
        Worker-seconds of tasks that a walltime cut.
    cuts
        Tasks cut.
    jobs
        Submitted.
    makespan
        Until the last task ended (s).
    ended
        Tasks that ended.
    """

    busy: float = 0.0
    allocated: float = 0.0
    lost: float = 0.0
    cuts: int = 0
    jobs: int = 0
    makespan: float = 0.0
    ended: int = 0

    @property
    def efficiency(self) -> float:
        """Busy over allocated time."""
        return self.busy / self.allocated if self.allocated else 1.0


@dataclass
class _Job:
    name: str
    submitted: float
    slots: int
    started: float | None = None
    ready: float | None = None
    ends_at: float = math.inf  # planned
    killed_at: float = math.inf  # walltime
    ending: bool = False
    over: bool = False
    running: dict[int, tuple[int, float]] = field(default_factory=dict)  # slot -> task, start
    idle_since: float | None = None


class _Simulation:
    def __init__(
        self,
        pool: SimulatedPool,
        lengths: Sequence[float],
        costs: Sequence[float | None],
        policy: Literal["mofal", "none"],
        schedule: Callable[[int], float] | None,
    ) -> None:
        self.pool, self.lengths, self.costs = pool, lengths, costs
        self.drains = policy == "mofal"
        self.queue: TaskQueue[int] = TaskQueue()
        self.estimator = Estimator()
        self.result = SimulationResult()
        self.jobs: dict[str, _Job] = {}
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = 0
        self.left = len(lengths)
        for task in range(len(lengths)):
            when = 0.0 if schedule is None else schedule(task)
            if when <= 0.0:
                self._push(task)
            else:
                self._at(when, "arrive", task)

    def _at(self, when: float, what: str, argument: Any) -> None:
        heapq.heappush(self.events, (when, self.order, what, argument))
        self.order += 1

    def _push(self, task: int) -> None:
        # Without a policy tasks go in the order in which they came.
        self.queue.push(task, kind="task", cost=self.costs[task] if self.drains else None)

    def run(self) -> SimulationResult:
        now = 0.0
        self._scale(now)
        while self.left and self.events:
            now, _, what, argument = heapq.heappop(self.events)
            getattr(self, f"_{what}")(now, argument)
        for job in list(self.jobs.values()):
            self._over(now + self.pool.end_lag, job)
        self.result.makespan = now
        return self.result

    # -- events
    def _arrive(self, now: float, task: int) -> None:
        self._push(task)
        self._fill_all(now)
        self._scale(now)

    def _begin(self, now: float, job: _Job) -> None:
        if job.over:
            return
        pool = self.pool
        job.started = now
        early = 0.0
        if self.drains and pool.walltime < math.inf:
            index = int(job.name)
            early = min(pool.margin, pool.walltime / 10)
            early += stagger(index, walltime=pool.walltime, fraction=pool.stagger)
        job.killed_at = now + pool.walltime
        job.ends_at = job.killed_at - early
        if pool.walltime < math.inf:
            self._at(job.killed_at, "kill", job)
        self._at(now + pool.startup, "ready", job)

    def _ready(self, now: float, job: _Job) -> None:
        if not job.over:
            job.ready = job.idle_since = now
            self._fill(now, job)
            if not job.running:
                self._scale(now)

    def _finish(self, now: float, argument: tuple[_Job, int, int]) -> None:
        job, slot, task = argument
        if job.over or job.running.get(slot, (None, 0.0))[0] != task:
            return
        _, start = job.running.pop(slot)
        self.result.busy += now - start
        self.result.ended += 1
        self.left -= 1
        self.estimator.add("task", cost=self.costs[task], seconds=now - start)
        if not job.running:
            job.idle_since = now
        self._fill(now, job)
        if not job.running:
            self._scale(now)

    def _kill(self, now: float, job: _Job) -> None:
        if job.over:
            return
        for task, start in job.running.values():
            self.result.lost += now - start
            self.result.cuts += 1
            self._push(task)
        self._over(now, job)
        self._scale(now)

    def _gone(self, now: float, job: _Job) -> None:
        if not job.over:
            self._over(now, job)
            self._scale(now)

    def _look(self, now: float, _: None) -> None:
        self._scale(now)

    # -- what the driver does
    def _over(self, now: float, job: _Job) -> None:
        job.over = True
        if job.started is not None:
            end = min(now, job.killed_at)
            self.result.allocated += (end - job.started) * job.slots
        del self.jobs[job.name]

    def _fill_all(self, now: float) -> None:
        for job in self.jobs.values():
            if job.ready is not None and not job.ending:
                self._fill(now, job)

    def _fill(self, now: float, job: _Job) -> None:
        if job.ending:
            return
        for slot in range(job.slots):
            if slot in job.running:
                continue
            remaining = job.ends_at - now if self.drains else None
            walltime = self.pool.walltime if self.pool.walltime < math.inf else None
            task = self.queue.pop(self.estimator, remaining=remaining, walltime=walltime)
            if task is None:
                return
            job.running[slot] = (task, now)
            job.idle_since = None
            self._at(now + self.lengths[task], "finish", (job, slot, task))

    def _needs(self) -> float:
        walltime = self.pool.walltime if self.pool.walltime < math.inf else None
        return self.queue.needs(self.estimator, walltime=walltime) if self.drains else 0.0

    def _scale(self, now: float) -> None:
        pool = self.pool
        views = [
            JobView(
                job.name,
                pending=job.ready is None,
                workers=job.slots,
                busy=len(job.running),
                idle_since=job.idle_since,
                remaining=job.ends_at - now if self.drains and job.ends_at < math.inf else None,
            )
            for job in self.jobs.values()
            if not job.ending
        ]
        view = PoolView(
            least=pool.least,
            most=pool.most,
            workers_per_job=pool.workers_per_job,
            waiting=len(self.queue),
            waiting_seconds=self.queue.seconds(self.estimator) if self.drains else None,
            needs=self._needs(),
            jobs=views,
        )
        decision = scale(view, now=now, idle_time=pool.idle_time, worth=pool.worth)
        for name in decision.end:
            job = self.jobs[name]
            job.ending = True
            self._at(now + (pool.end_lag if job.started is not None else 0.0), "gone", job)
        for _ in range(decision.submit):
            job = _Job(str(self.result.jobs), submitted=now, slots=pool.workers_per_job)
            self.result.jobs += 1
            self.jobs[job.name] = job
            self._at(now + pool.queue_wait, "begin", job)
        # An idle job is looked at again when its time is up.
        if any(v.idle_since is not None and not v.pending for v in views) and not decision.end:
            self._at(now + max(pool.idle_time, 1.0), "look", None)


def simulate(
    pool: SimulatedPool,
    lengths: Sequence[float],
    *,
    costs: Sequence[float | None] | None = None,
    policy: Literal["mofal", "none"] = "mofal",
    arrival: Callable[[int], float] | None = None,
) -> SimulationResult:
    """Have tasks of these lengths done by a pool, by a virtual clock.

    Parameters
    ----------
    pool
        The pool.
    lengths
        True length of each task (s).
    costs
        What the driver is told of them beforehand (`Task.cost`); None: nothing.
    policy
        "mofal", or "none": tasks in the order in which they came, started whatever time is left,
        and started again after a walltime cut them.
    arrival
        When a task is submitted (s), as a function of its number; None: all at once.
    """
    told: Sequence[float | None] = [None] * len(lengths) if costs is None else costs
    return _Simulation(pool, lengths, told, policy, arrival).run()
