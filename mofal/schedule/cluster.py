"""The backend of real workers: one Dask scheduler, jobs of several pools, their lives and deaths.

Dask carries the work and the messages. Which worker gets which task is the dispatcher's decision,
how many jobs there are is the policy's, and what became of a job is read from its beat.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.errors import MofalError
from mofal.schedule.backend import Attempt, Loss, Post, WorkerInfo, performance_report
from mofal.schedule.events import EventLog, schedule_directory
from mofal.schedule.execution import make_payload, one_line
from mofal.schedule.files import Layout, job_of_worker, read_json
from mofal.schedule.jobqueue import describe
from mofal.schedule.jobs import JobRecord, Jobs
from mofal.schedule.link import Link
from mofal.schedule.policy import JobView, PoolView, scale
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.task import Task

if TYPE_CHECKING:
    from distributed import Future

#: Seconds between two comparisons of what is known here with what scheduler and jobs say (at
#: least, and per worker: each is a file of a shared file system).
COMPARISON, COMPARISON_EACH = 10.0, 0.02
#: Seconds for which another scheduler is tried for, and between two tries: a network may be away.
REPLACEMENT, RETRY = 120.0, 5.0
#: Seconds that a job may say its workers run while none of them is connected.
ORPHANED = 180.0
#: Seconds that the reason of a worker's death is waited for before it is taken as it is.
REASON_TIMEOUT = 10.0
#: States of attempts of which a message will tell how they ended.
IN_HAND = frozenset({"queued", "processing", "waiting", "no-worker"})
#: Seconds that Dask may take to see the end of an attempt that has told its result.
SEEN = 10.0
#: Least worth (s of work) of one more worker on SLURM; local ones cost nothing.
WORTH = 60.0


class ClusterBackend:
    """See the module; made by the dispatcher, in whose thread all methods run."""

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        directory: Path,
        events: EventLog,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._pools = settings.effective_pools()
        self._events = events
        self._say = say
        self._layout = Layout(schedule_directory(directory).resolve())
        self._slurm = any(pool.backend == "slurm" for pool in self._pools.values())
        self._tls = settings.encrypted
        self._post: Post = lambda message: None
        self._futures: dict[str, Future] = {}
        self._ending: list[tuple[Future, float]] = []  # held until then, see `_end`
        self._workers: dict[str, WorkerInfo] = {}
        self._seen: set[str] = set()  # all that ever came
        self._names: dict[str, str] = {}  # address -> worker
        self._addresses: dict[str, str] = {}  # worker -> address
        self._leaving: dict[str, float] = {}  # worker -> when its connection broke
        self._missing: set[str] = set()  # attempts that the scheduler did not know at the last look
        self._orphaned: dict[str, float] = {}  # job -> since when none of its workers is here
        self._gone_since: float | None = None  # without a scheduler
        self._next_start = self._next_comparison = 0.0
        self._given_up: set[str] = set()
        self._priority = 0
        self._reported = time.time()
        self._jobs = Jobs(settings, layout=self._layout, tls=self._tls, events=events, say=say)
        self._link = Link(
            settings,
            layout=self._layout,
            tls=self._tls,
            remote=self._slurm,
            event=self._event,
            say=say,
        )

    # -- start and end
    def start(self, post: Post) -> None:
        """Start scheduler and client; jobs come when there is work."""
        self._post = post
        self._layout.make()
        if self._tls:
            from mofal.schedule.security import make_keys

            make_keys(self._layout.tls)
        self._link.start()
        self._linked()
        for name, pool in self._settings.pools.items():
            if self._pools[name].backend == "slurm":
                for line in describe(pool):
                    self._say(f"pool {name}: {line}")
        self._jobs.start(lambda: post(("wake",)))

    def _linked(self) -> None:
        """A scheduler is there."""
        self._next_comparison = time.monotonic() + COMPARISON
        self._events.write("scheduler", dashboard=self._link.dashboard, tls=self._tls)

    @property
    def dashboard(self) -> str:
        """Address of the dashboard, "" where there is none."""
        return self._link.dashboard

    def close(self, keep: Callable[[str], bool]) -> None:
        """End all jobs (but those on SLURM that stay for another driver) and the rest."""
        self._jobs.close(keep)
        self._futures.clear()
        self._ending.clear()
        self._link.close()

    def performance_report(self, path: Path) -> bool:
        """Dask's report of the time since the last one, as one HTML file; False without bokeh."""
        client = self._link.client
        if client is None:
            return False
        while self._still_ending():
            time.sleep(0.01)
        since, self._reported = self._reported, time.time()
        return performance_report(client, path, since=since, say=self._say)

    # -- messages (in the client's thread)
    def _event(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        match message["type"]:
            case "finished":
                self._post(("call", lambda: self._end(message["attempt"])))
                self._post(("finished", message["attempt"], json.loads(message["result"])))
            case "worker":
                self._post(("call", lambda: self._arrived(message)))
            case "gone":
                self._post(("call", lambda: self._disconnected(message["address"])))
            case "erred":
                result = {"status": "failed", "summary": {}, "reason": message["reason"]}
                result |= {"traceback": message["reason"], "wall_time": 0.0}
                self._post(("finished", message["attempt"], result))

    # -- workers
    def _arrived(self, facts: Mapping[str, Any]) -> None:
        now = time.monotonic()
        remaining = facts["remaining"]
        info = WorkerInfo(
            name=facts["name"],
            pool=facts["pool"],
            job=facts["job"],
            ends_at=None if remaining is None else now + remaining,
        )
        if info.pool not in self._pools or info.name in self._seen:
            return  # names are unique: one that has gone meanwhile does not come again
        self._seen.add(info.name)
        self._workers[info.name] = info
        self._names[facts["address"]] = info.name
        self._addresses[info.name] = facts["address"]
        self._jobs.connected(info.job, ends_at=info.ends_at)
        self._events.write(
            "worker", worker=info.name, pool=info.pool, host=facts["host"], job=info.job
        )
        self._post(("worker", info))

    def _disconnected(self, address: str) -> None:
        name = self._names.pop(address, None)
        if name is not None:
            del self._addresses[name]
            self._leaving[name] = time.monotonic()
            self._jobs.look()  # SLURM may know how its job ended
            self._judge()

    def _judge(self) -> None:
        """Tell the dispatcher of workers that are gone, as soon as it is known how."""
        for name, since in list(self._leaving.items()):
            info = self._workers[name]
            loss = self._jobs.loss(info.job, name)
            if loss is None:
                if time.monotonic() - since < REASON_TIMEOUT:
                    continue
                if self._jobs.alive(info.job, name):  # it finishes what it has in hand
                    loss = Loss(blame="none", reason="its connection broke")
                else:
                    text = "its connection broke and its job says nothing"
                    loss = Loss(blame="task", reason=text)
            del self._leaving[name], self._workers[name]
            self._events.write("worker-gone", worker=name, pool=info.pool, reason=loss.reason)
            self._post(("gone", name, loss))

    def send(self, worker: str, attempt: Attempt) -> None:
        """Give an attempt to one worker, and to no other."""
        from mofal.schedule.attempt import run_attempt

        payload = make_payload(attempt.task)
        payload["attempt"] = attempt.identity
        # With no other worker in its pool, a task is wide in its own threads.
        most = self._pools[attempt.pool].workers.max
        payload["spread"] = attempt.task.width > 1 and most > 1
        self._priority -= 1  # a worker takes what it was sent first
        client, address = self._link.client, self._addresses.get(worker)
        if client is None or address is None:
            return  # it has just gone, and the dispatcher is about to hear so
        self._futures[attempt.identity] = client.submit(
            run_attempt,
            payload,
            key=attempt.identity,
            workers=[address],
            allow_other_workers=False,
            pure=False,
            priority=self._priority,
        )

    def forget(self, identity: str) -> None:
        """The dispatcher has no more use for this attempt."""
        self._futures.pop(identity, None)

    def _end(self, identity: str) -> None:
        """Keep the future of an attempt that has told its result until Dask has seen the end.

        Released before, it is an attempt given up, of which no record of Dask's says anything.
        """
        if identity in self._futures:
            self._ending.append((self._futures[identity], time.monotonic() + SEEN))

    def _still_ending(self) -> bool:
        """Let go of those whose end Dask has seen, or never will; whether any is left."""
        now = time.monotonic()
        self._ending = [(f, until) for f, until in self._ending if not f.done() and now < until]
        return bool(self._ending)

    lends = True

    def lend(self, worker: str, identity: str) -> None:
        """Let the graphs of an attempt be computed on this worker too."""
        self._give(worker, identity, 1)

    def take_back(self, worker: str, identity: str) -> None:
        """Let them be computed there no more."""
        self._give(worker, identity, 0)

    def _give(self, worker: str, identity: str, amount: int) -> None:
        """Give a worker the resource that the tasks of an attempt's graphs ask for, or none of it.

        The name is the attempt's own: what comes late means nothing to another one.
        """
        from mofal.schedule.wide import set_resource

        client, address = self._link.client, self._addresses.get(worker)
        if client is None or address is None or client.loop is None:
            return  # it has just gone

        async def give() -> None:
            with suppress(Exception):  # a worker that goes away takes what it has with it
                await client.run(
                    set_resource, name=identity, amount=amount, workers=[address], on_error="ignore"
                )

        client.loop.add_callback(give)

    # -- jobs
    def scale(self, pool: str, view: PoolView, *, busy: Mapping[str, int]) -> None:
        """Submit and give back jobs as the policy says."""
        if pool in self._given_up:
            return
        error = self._jobs.verdict(pool)
        if error is not None:
            self._given_up.add(pool)
            for record in self._jobs.of(pool):
                self._jobs.end(record)
            self._post(("give-up", pool, error))
            return
        now = time.monotonic()
        for record in self._jobs.of(pool):
            if busy.get(record.name):
                self._orphaned.pop(record.name, None)
            else:
                self._jobs.give_up_on_silent(record)
                self._end_orphaned(record, now)
        records = self._jobs.of(pool)
        jobs = [self._view(record, busy.get(record.name, 0), now) for record in records]
        slurm = self._pools[pool].backend == "slurm"
        decision = scale(
            replace(view, jobs=jobs),
            now=now,
            idle_time=self._settings.idle_time,
            worth=WORTH if slurm else 0.0,
        )
        if slurm:  # local workers cost nobody anything while they wait for the next stage
            by_name = {record.name: record for record in records}
            for name in decision.end:
                self._jobs.end(by_name[name])
        for _ in range(decision.submit):
            self._jobs.submit(pool)

    def _view(self, record: JobRecord, busy: int, now: float) -> JobView:
        # A job that runs counts as there before its worker has come: it waited for its start, or
        # finishes what the driver before gave it.
        pending = not (busy or record.connected or self._jobs.runs(record))
        if busy or pending:
            record.idle_since = None
        elif record.idle_since is None:
            record.idle_since = now
        return JobView(
            name=record.name,
            pending=pending,
            workers=record.workers,
            busy=busy,
            idle_since=record.idle_since,
            remaining=None if record.ends_at is None else record.ends_at - now,
        )

    def tick(self) -> None:
        """Look after scheduler and jobs."""
        self._still_ending()
        if self._gone_since is not None:
            self._replace_scheduler()
        elif self._link.dead():
            self._link.died()
            self._leave_scheduler("the scheduler ended")
        elif lost := self._link.lost():
            self._say(f"{lost}; starting another, to which the workers come over")
            self._leave_scheduler(lost)
        elif time.monotonic() >= self._next_comparison:
            number = len(self._workers)
            self._next_comparison = time.monotonic() + max(COMPARISON, COMPARISON_EACH * number)
            self._ask()
        self._jobs.tick()
        self._judge()

    def _leave_scheduler(self, reason: str) -> None:
        self._link.drop()
        self._futures.clear()
        self._ending.clear()
        self._missing.clear()
        # Its workers finish what they have in hand, and then come to the new one.
        for name in list(self._workers):
            self._post(("gone", name, Loss(blame="none", reason=reason)))
        self._workers.clear()
        self._names.clear()
        self._addresses.clear()
        self._leaving.clear()
        self._gone_since = time.monotonic()
        self._next_start = 0.0
        self._replace_scheduler()

    def _replace_scheduler(self) -> None:
        """Start another scheduler; what does not go at once may go when the network is back."""
        now = time.monotonic()
        if self._gone_since is None or now < self._next_start:
            return
        try:
            self._link.start()
        except (MofalError, OSError) as error:
            self._link.drop()
            if self._link.hopeless or now - self._gone_since > REPLACEMENT:
                raise
            self._say(f"no other scheduler yet: {one_line(error)}")
            self._next_start = time.monotonic() + RETRY
            return
        self._gone_since = None
        self._linked()

    # -- comparisons: messages may be lost, and connections may break on one side only
    def _ask(self) -> None:
        addresses, attempts = set(self._names), set(self._futures)

        def answer(state: dict[str, Any]) -> None:
            self._post(("call", lambda: self._compare(state, addresses, attempts)))

        self._link.ask(answer)

    def _compare(self, state: Mapping[str, Any], addresses: set[str], attempts: set[str]) -> None:
        """Mend what differs from what the scheduler and the jobs say.

        Parameters
        ----------
        state
            What the scheduler said: see `Link.ask`.
        addresses, attempts
            Workers and attempts that were known here when it was asked.
        """
        for facts in state["facts"]:
            self._arrived(facts)  # those that are known already change nothing
        there = set(state["workers"])
        for address in addresses & set(self._names):
            name = self._names[address]
            if address not in there or self._jobs.loss(self._workers[name].job, name) is not None:
                self._disconnected(address)
        # Dask computes it or waits for it, or has nothing of it: then its result will never come,
        # but a message may be on its way, so what counts is to be missing twice.
        known = {key for key, word in state["attempts"].items() if word in IN_HAND}
        missing = (attempts & set(self._futures)) - known
        for identity in missing & self._missing:
            loss = Loss(blame="none", reason="the scheduler does not know of it any more")
            self._post(("lost", identity, loss))
        self._missing = missing - self._missing

    def _end_orphaned(self, record: JobRecord, now: float) -> None:
        """Give a job back that says its workers run, while none has been connected for long."""
        here = any(info.job == record.name for info in self._workers.values())
        if here or not record.connected or self._gone_since is not None:
            self._orphaned.pop(record.name, None)
        elif now - self._orphaned.setdefault(record.name, now) > ORPHANED:
            del self._orphaned[record.name]
            self._say(f"no worker of job {record.name} has been connected for {ORPHANED:.0f} s")
            self._jobs.end(record)

    # -- claims
    def fate(self, worker: str) -> Loss | None:
        """How a worker that was claimed to be at work came to its end, as far as anybody says."""
        return self._jobs.loss(job_of_worker(worker), worker)

    def claim(self, task: Task) -> str:
        """The worker that has this task in hand, as far as its claim can be believed."""
        path = self._layout.claim(task.name)
        facts = read_json(path)
        if facts is None:
            return ""
        worker, job = str(facts.get("worker", "")), str(facts.get("job", ""))
        if self._jobs.alive(job, worker):
            return worker
        path.unlink(missing_ok=True)
        return ""
