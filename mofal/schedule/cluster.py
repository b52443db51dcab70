"""The backend of real workers: one Dask scheduler, jobs of several pools, their lives and deaths.

Dask carries the work and the messages. Which worker gets which task is the dispatcher's decision,
how many jobs there are is the policy's, and what became of a job is read from its beat.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.errors import ConfigError, DependencyError, ScheduleError
from mofal.schedule.backend import Attempt, Loss, Post, WorkerInfo
from mofal.schedule.events import EventLog, schedule_directory
from mofal.schedule.execution import make_payload, one_line
from mofal.schedule.files import Layout, read_json
from mofal.schedule.jobs import JobRecord, Jobs, extra_paths
from mofal.schedule.policy import JobView, PoolView, scale
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.task import Task

if TYPE_CHECKING:
    from distributed import Client, Future

#: Seconds for the scheduler to come up (a busy machine imports slowly).
SCHEDULER_START = 120.0
#: Seconds for one attempt at connecting to it.
CONNECT = 15.0
#: Seconds that the reason of a worker's death is waited for before it is taken as it is.
REASON_TIMEOUT = 10.0
#: A scheduler that dies this often within a minute is not started again.
SCHEDULER_DEATHS = 4
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
        self._tls = self._slurm if settings.tls is None else settings.tls
        self._post: Post = lambda message: None
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None
        self._futures: dict[str, Future] = {}
        self._workers: dict[str, WorkerInfo] = {}
        self._names: dict[str, str] = {}  # address -> worker
        self._addresses: dict[str, str] = {}  # worker -> address
        self._leaving: dict[str, float] = {}  # worker -> when its connection broke
        self._scheduler_deaths: list[float] = []
        self._given_up: set[str] = set()
        self._priority = 0
        self._reported = time.time()
        self.dashboard = ""
        self._jobs = Jobs(settings, layout=self._layout, tls=self._tls, events=events, say=say)

    # -- start and end
    def start(self, post: Post) -> None:
        """Start scheduler and client; jobs come when there is work."""
        self._post = post
        self._layout.make()
        _quiet_distributed(self._layout.log("driver"))
        if self._tls:
            from mofal.schedule.security import make_keys

            make_keys(self._layout.tls)
        self._start_scheduler()
        self._jobs.start(lambda: post(("wake",)))

    def _start_scheduler(self) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise DependencyError(
                "found no `distributed`, which the local and slurm backends need; expected it: "
                "pip install 'mofal[parallel]' (or set schedule: {backend: threads})"
            ) from error
        while not self._try_to_start_scheduler(Client):
            self._scheduler_died()

    def _try_to_start_scheduler(self, client: type[Client]) -> bool:
        """Start a scheduler and connect to it; False if something killed it meanwhile.

        Raises
        ------
        ScheduleError
            It ended by itself, or does not answer.
        """
        self._layout.scheduler_file.unlink(missing_ok=True)
        port = self._settings.dashboard_port
        command = [sys.executable, "-m", "mofal.schedule.scheduler"]
        command += ["--file", str(self._layout.scheduler_file), "--host", self._host()]
        command += ["--dashboard", str(-1 if port is None else port), "--parent", str(os.getpid())]
        if self._tls:
            command += ["--tls", str(self._layout.tls)]
        with self._layout.log("scheduler").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "DASK_LOGGING__DISTRIBUTED": "warning",
                    "PYTHONPATH": os.pathsep.join(extra_paths()),
                },
                start_new_session=True,
            )
        deadline = time.monotonic() + SCHEDULER_START
        while (facts := read_json(self._layout.scheduler_file)) is None:
            if (self._process.poll() or 0) < 0:
                return False
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ScheduleError(
                    "the scheduler did not start; its log says: "
                    f"{last_lines(self._layout.log('scheduler'))}"
                )
            time.sleep(0.02)
        security = None
        if self._tls:
            from mofal.schedule.security import load_security

            security = load_security(self._layout.tls)
        while True:
            try:
                self._client = client(
                    facts["address"],
                    security=security,
                    set_as_default=False,
                    name="mofal",
                    timeout=CONNECT,
                )
                break
            except OSError as error:
                if (self._process.poll() or 0) < 0:
                    return False
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise ScheduleError(
                        f"the scheduler at {facts['address']} does not answer ({one_line(error)}); "
                        f"its log says: {last_lines(self._layout.log('scheduler'))}"
                    ) from error
        self._client.subscribe_topic("mofal", self._event)
        if self._settings.performance_reports:
            with suppress(OSError):  # it died this moment: `tick` sees that
                self._client.get_task_stream(count=0)  # Dask keeps no record before it is asked
        if facts["dashboard"] and self._settings.dashboard_port is not None:
            self.dashboard = f"http://127.0.0.1:{facts['dashboard']}/status"
        self._events.write(
            "scheduler", address=facts["address"], dashboard=self.dashboard, tls=self._tls
        )
        return True

    def _scheduler_died(self) -> None:
        """Say so, unless it is too often."""
        now = time.monotonic()
        self._scheduler_deaths = [t for t in self._scheduler_deaths if now - t < 60] + [now]
        if len(self._scheduler_deaths) >= SCHEDULER_DEATHS:
            raise ScheduleError(
                f"the scheduler died {SCHEDULER_DEATHS} times in a minute; its log says: "
                f"{last_lines(self._layout.log('scheduler'))}"
            )
        self._say("the scheduler is gone; starting another")

    def _host(self) -> str:
        """The one address that the scheduler binds to."""
        return scheduler_host(self._settings) if self._slurm else "127.0.0.1"

    def close(self, keep: Callable[[str], bool]) -> None:
        """End all jobs (but those on SLURM that stay for another driver) and the rest."""
        self._jobs.close(keep)
        self._futures.clear()
        if self._client is not None:
            with suppress(Exception):
                self._client.close(timeout=2)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._layout.scheduler_file.unlink(missing_ok=True)

    def performance_report(self, path: Path) -> bool:
        """Dask's report of the time since the last one, as one HTML file; False without bokeh."""
        if self._client is None:
            return False
        since, self._reported = self._reported, time.time()
        scheduler: Any = self._client.scheduler
        try:
            page = self._client.sync(
                scheduler.performance_report,
                start=since,
                last_count=0,
                code="",
                mode="inline",
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8")
        except Exception as error:  # a report is not worth a campaign
            self._say(f"no performance report: {one_line(error)} (it needs `pip install bokeh`)")
            return False
        return True

    # -- messages (in the client's thread)
    def _event(self, event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        match message["type"]:
            case "finished":
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
        if info.pool not in self._pools:
            return
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
                loss = Loss(blame="task", reason="its connection broke and its job says nothing")
            del self._leaving[name], self._workers[name]
            self._events.write("worker-gone", worker=name, pool=info.pool, reason=loss.reason)
            self._post(("gone", name, loss))

    def send(self, worker: str, attempt: Attempt) -> None:
        """Give an attempt to one worker, and to no other."""
        from mofal.schedule.attempt import run_attempt

        assert self._client is not None
        payload = make_payload(attempt.task)
        payload["attempt"] = attempt.identity
        self._priority -= 1  # a worker takes what it was sent first
        address = self._addresses.get(worker)
        if address is None:
            return  # it has just gone, and the dispatcher is about to hear so
        self._futures[attempt.identity] = self._client.submit(
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
            if not busy.get(record.name):
                self._jobs.give_up_on_silent(record)
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
        if self._process is not None and self._process.poll() is not None:
            self._restart_scheduler()
        self._jobs.tick()
        self._judge()

    def _restart_scheduler(self) -> None:
        self._scheduler_died()
        if self._client is not None:
            with suppress(Exception):
                self._client.close(timeout=0.1)
        self._futures.clear()
        # Its workers finish what they have in hand, and then come to the new one.
        for name in list(self._workers):
            self._post(("gone", name, Loss(blame="none", reason="the scheduler ended")))
        self._workers.clear()
        self._names.clear()
        self._addresses.clear()
        self._leaving.clear()
        self._start_scheduler()

    # -- claims
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


def scheduler_host(settings: ScheduleSettings) -> str:
    """The one address that the scheduler of pools on SLURM binds to.

    Raises
    ------
    ConfigError
        This machine has no such interface, or its name leads to the loopback, where no node is.
    """
    if settings.interface:
        from distributed.utils import get_ip_interface

        try:
            return str(get_ip_interface(settings.interface))
        except ValueError as error:
            raise ConfigError(
                f"found interface {settings.interface!r}, which this machine does not have; "
                "expected one that `ip -brief address` lists"
            ) from error
    import socket

    name = socket.gethostname()
    address = socket.gethostbyname(name)
    if address.startswith("127."):
        raise ConfigError(
            f"found {address} for this machine's name {name}, which no node can reach; expected "
            "the network interface that nodes see: schedule: interface: eth0 (or ib0, ...; "
            "`ip -brief address` lists them)"
        )
    return address


def last_lines(path: Path, number: int = 12) -> str:
    """The end of a log, indented; a hint where it is empty."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()[-number:]
    except OSError:
        lines = []
    if not lines:
        return f"(nothing in {path})"
    return f"({path})\n" + "\n".join("    " + line for line in lines)


def _quiet_distributed(log: Path) -> None:
    """Send what Dask logs in this process to a file: a person reads the terminal."""
    logger = logging.getLogger("distributed")
    import distributed  # noqa: F401  (its import sets up the handlers that are replaced here)

    handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in list(logger.manager.loggerDict):
        if name.startswith("distributed."):
            child = logging.getLogger(name)
            child.handlers.clear()
            child.propagate = True  # Dask cuts some of them off
    for name in ("distributed", "tornado"):
        top = logging.getLogger(name)
        top.handlers[:] = [handler]
        top.propagate = False
    for name in ("tornado.application", "tornado.general", "tornado.access"):
        child = logging.getLogger(name)
        child.handlers.clear()
        child.propagate = True
