"""The backend of somebody else's workers: any Dask client, whatever started its cluster.

The ready queue goes to Dask as it is, with priorities and no worker named: a cluster that adapts
starts its first worker for a task that waits. How long workers live and what they may use is the
cluster's affair; what was finished is on disk before its future resolves, as with every backend.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mofal
from mofal.errors import ConfigError, DependencyError, ScheduleError
from mofal.schedule.backend import Attempt, Loss, Post, WorkerInfo, performance_report
from mofal.schedule.events import EventLog, schedule_directory
from mofal.schedule.execution import make_payload, one_line
from mofal.schedule.files import Layout, lock_of, write_json
from mofal.schedule.policy import PoolView
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.task import Task

if TYPE_CHECKING:
    from distributed import Client, Future

#: Seconds for connecting to a scheduler whose address is given.
CONNECT = 30.0
#: Seconds for which a worker looks for the campaign's mark on its file system.
PATIENCE = 30.0
#: Seconds between two looks at the cluster, and without any worker until that is said.
COMPARISON, DROUGHT = 5.0, 20.0

ABSENT = (
    "walltimes, memory limits and the number of workers are the cluster's: no packing of tasks "
    "into walltimes, no jobs that wait for the next driver, none lent to large array work"
)
"""What only mofal's own pools give."""


class ClientBackend:
    """See the module; made by the dispatcher, in whose thread all methods run.

    Parameters
    ----------
    settings
        The `schedule` section.
    directory
        Of the campaign; driver and workers must both see it.
    events, say
        Log of the campaign, and what takes a line for a person.
    client
        A connected client, which stays open; None: one to `settings.address` is made, and closed.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        directory: Path,
        events: EventLog,
        say: Callable[[str], None],
        client: Client | None = None,
    ) -> None:
        self._settings = settings
        self._pools = settings.effective_pools()
        self._events = events
        self._say = say
        self._layout = Layout(schedule_directory(directory).resolve())
        self._given = client
        self._client: Any = None
        self._comm: Any = None
        self._post: Post = lambda message: None
        self._futures: dict[str, Future] = {}
        self._run = uuid.uuid4().hex[:8]
        self._topic = f"mofal-{self._run}"
        self._mark = self._layout.root / f"mark-{self._run}.json"
        self._look: Any = None
        self._declared: set[str] = set(settings.resources)
        self._next_look = 0.0
        self._workers = 0
        self._without: float | None = None  # since when there is no worker
        self._reported = time.time()
        self.dashboard = ""

    # -- start and end
    def start(self, post: Post) -> None:
        """Connect, and have a worker (the first that comes) looked at before anything is sent."""
        self._post = post
        self._layout.make()
        self._client = self._connect()
        self._comm = self._client.scheduler_comm
        self.dashboard = str(getattr(self._client, "dashboard_link", "") or "")
        tls = str(self._client.scheduler.address).startswith("tls://")
        self._events.write("scheduler", dashboard=self.dashboard, tls=tls)
        self._client.subscribe_topic(self._topic, self._event)
        write_json(self._mark, {"mark": self._run})
        self._say(f"workers of the Dask cluster at {self._client.scheduler.address}: {ABSENT}")
        together = workers_per_adaptive_job(getattr(self._client, "cluster", None))
        if together > 1:
            self._say(
                f"warning: found a cluster that adapts, with jobs of {together} workers: when one "
                "of them has nothing to do the whole job is ended, with what the others have in "
                "hand; expected processes=1, or cluster.scale(jobs=...) instead of adapt()"
            )
        self._look = self._client.submit(
            eval,
            look_expression_of(self._mark, patience=PATIENCE),
            key=f"look-{self._run}",
            priority=1e6,
            pure=False,
        )
        self._client.loop.add_callback(self._await_look, self._look)

    def _connect(self) -> Any:
        if self._given is not None:
            check_client(self._given)
            return self._given
        return connect(self._settings)

    async def _await_look(self, future: Future) -> None:
        """Wait for what a worker says of itself (in the client's loop)."""
        try:
            facts = await future
        except Exception as error:
            text = f"the first task on the Dask cluster failed: {one_line(error)}"
            self._post(("fatal", ScheduleError(text)))
            return
        await self._survey()
        self._post(("call", lambda: self._looked(facts)))

    def _looked(self, facts: Mapping[str, Any]) -> None:
        """Refuse a worker that cannot do what it is here for; else let the work come."""
        self._look = None
        complaint = unfit(facts, self._mark.parent.parent)
        if complaint:
            raise ScheduleError(complaint)
        for pool in self._pools:
            info = WorkerInfo(name=f"dask-{pool}", pool=pool, job="dask", shared=True)
            self._post(("worker", info))

    def close(self, keep: Callable[[str], bool]) -> None:
        """Withdraw what has not started; what runs comes to its end, and its result is found."""
        client, self._client = self._client, None
        futures, self._futures = list(self._futures.values()), {}
        self._mark.unlink(missing_ok=True)
        if client is None:
            return
        try:
            if client.status == "running":
                futures += [] if self._look is None else [self._look]
                if futures:
                    client.cancel(futures, force=True)
                client.unsubscribe_topic(self._topic)
        except Exception as error:  # the cluster is going, or has gone
            self._events.write("message", text=f"on leaving the Dask cluster: {one_line(error)}")
        if self._given is None:
            client.close(timeout=5)

    # -- work
    def send(self, worker: str, attempt: Attempt) -> None:
        """Give an attempt to Dask, for any worker that has what its pool needs."""
        from mofal.schedule.foreign import run_attempt

        task, pool = attempt.task, self._pools[attempt.pool]
        payload = make_payload(task) | {
            "attempt": attempt.identity,
            "topic": self._topic,
            "claims": str(self._layout.claims),
            "pool": attempt.pool,
            "threads": pool.threads,
            "ranks": pool.mpi_ranks,
            "environment": pool.environment,
        }
        key = f"{attempt.identity}-{self._run}"  # the scheduler may know other campaigns
        payload["key"] = key
        future = self._client.submit(
            run_attempt,
            payload,
            key=key,
            priority=priority(task),
            resources={attempt.pool: 1} if attempt.pool in self._declared else None,
            pure=False,
        )
        self._futures[attempt.identity] = future
        claim = lock_of(self._layout.claims, task.name)
        self._client.loop.add_callback(self._await, attempt.identity, future, claim)

    async def _await(self, identity: str, future: Future, claim: Path) -> None:
        """Pass on how an attempt ended (in the client's loop)."""
        from distributed import CancelledError
        from distributed.scheduler import KilledWorker

        try:
            answer = await future
        except KilledWorker as error:
            last = str(getattr(error.last_worker, "name", "") or error.last_worker.address)
            starts = begun(claim, str(future.key))
            self._post(("killed", identity, last, starts, error.allowed_failures))
        except (CancelledError, asyncio.CancelledError) as error:
            await self._cancelled(identity, one_line(error))
        except Exception as error:  # Dask could not run it
            text = one_line(error)
            result = {"status": "failed", "summary": {}, "reason": text, "traceback": text}
            self._post(("finished", identity, result | {"wall_time": 0.0}))
        else:
            result = json.loads(answer["result"]) | {"worker": answer["worker"]}
            self._post(("finished", identity, result))

    async def _cancelled(self, identity: str, reason: str) -> None:
        """Dask forgot an attempt: the cluster was started again, or it is gone."""
        while (client := self._client) is not None and client.status == "connecting":
            await asyncio.sleep(0.2)
        if client is None or identity not in self._futures:
            return
        if client.status == "running":
            self._post(("lost", identity, Loss(blame="none", reason=reason)))
        else:
            text = "the Dask cluster is gone; what was finished is on disk: run the campaign again"
            self._post(("fatal", ScheduleError(text)))

    def forget(self, identity: str) -> None:
        """The dispatcher has no more use for this attempt."""
        future = self._futures.pop(identity, None)
        if future is not None and not future.done() and self._client is not None:
            future.cancel()

    lends = False  # a wide task computes in the threads of its own worker

    def lend(self, worker: str, identity: str) -> None:
        """Nobody is lent: which worker is free is Dask's to know."""

    def take_back(self, worker: str, identity: str) -> None:
        """See `lend`."""

    def _event(self, event: tuple[float, dict[str, Any]]) -> None:
        """A worker has begun with an attempt (in the client's thread)."""
        message = event[1]
        if message.get("type") == "started":
            self._post(("started", message["attempt"], message["name"]))

    # -- now and then
    def scale(self, pool: str, view: PoolView, *, busy: Mapping[str, int]) -> None:
        """The number of workers is the cluster's affair."""

    def tick(self) -> None:
        """See who is there, and say so when nobody is."""
        now = time.monotonic()
        if now < self._next_look or self._client is None:
            return
        self._next_look = now + COMPARISON
        if self._client.status == "closed":
            raise ScheduleError(
                "the client of the Dask cluster is closed; what was finished is on disk: "
                "run the campaign again"
            )
        if self._client.status == "running":
            if self._client.scheduler_comm is not self._comm:  # it forgot who listens
                self._comm = self._client.scheduler_comm
                self._client.unsubscribe_topic(self._topic)
                self._client.subscribe_topic(self._topic, self._event)
            self._client.loop.add_callback(self._survey)
        if self._workers or not (self._futures or self._look):
            self._without = None
        elif self._without is None:
            self._without = now
        elif self._without > 0 and now - self._without > DROUGHT:
            n = len(self._futures)
            waiting = "the first task waits" if n < 2 else f"{n} tasks wait"
            self._say(f"no worker of the Dask cluster is there; {waiting} for one")
            self._without = -1.0  # once

    async def _survey(self) -> None:
        """Count workers and note which resources they declare (in the client's loop)."""
        client = self._client
        if client is None or client.status != "running":
            return
        try:
            state = await client.scheduler.identity(n_workers=-1)
        except (OSError, TypeError):
            return
        self._workers = len(state["workers"])
        for facts in state["workers"].values():
            self._declared |= set(facts.get("resources") or ())

    def claim(self, task: Task) -> str:
        """Nobody adopts on a cluster of others; a worker waits for one that has its task."""
        return ""

    def fate(self, worker: str) -> Loss | None:
        """See `claim`."""
        return None

    def performance_report(self, path: Path) -> bool:
        """Dask's report of the time since the last one, as one HTML file; False without bokeh."""
        since, self._reported = self._reported, time.time()
        return performance_report(self._client, path, since=since, say=self._say)


def look_expression_of(mark: Path, *, patience: float) -> str:
    """What a worker evaluates; see `foreign.look_expression`."""
    from mofal.schedule.foreign import look_expression

    return look_expression(mark, patience=patience)


def workers_per_adaptive_job(cluster: Any) -> int:
    """Workers that an adaptive cluster starts and ends together; 1 where it is not known."""
    if getattr(cluster, "_adaptive", None) is None:
        return 1
    spec = getattr(cluster, "new_spec", None)
    return len(spec.get("group") or ("",)) if isinstance(spec, Mapping) else 1


def begun(claim: Path, key: str) -> int:
    """On how many workers an attempt has begun and not ended, as they wrote it down."""
    try:
        return claim.read_text(encoding="utf-8").splitlines().count(key)
    except OSError:
        return 0


def priority(task: Task) -> float:
    """Dask's priority of a task: its own first, and among equals the longest first."""
    cost = 1.0 if task.cost is None else max(task.cost, 0.0)
    return task.priority + min(math.log1p(cost) / 100, 0.999)


def unfit_environment(facts: Mapping[str, Any]) -> str:
    """What is wrong with the mofal of a worker that looked at itself, "" where nothing is."""
    host = facts["host"]
    if facts["error"]:
        return (
            f"found a worker on {host} that cannot import mofal ({facts['error']}, Python "
            f"{facts['python']}); expected mofal {mofal.__version__} in its environment: "
            "pip install mofal there, or start workers with this interpreter"
        )
    if facts["version"] != mofal.__version__:
        return (
            f"found mofal {facts['version']} on a worker ({host}) and {mofal.__version__} here; "
            "expected one version: start workers with this interpreter"
        )
    return ""


def unfit(facts: Mapping[str, Any], directory: Path) -> str:
    """What is wrong with a worker that looked at itself, in one line; "" where nothing is."""
    host, complaint = facts["host"], unfit_environment(facts)
    if complaint:
        return complaint
    if not facts["mark"]:
        return (
            f"found no {directory} on a worker ({host}); expected a file system that the session "
            "and all workers share: give a directory on one with --directory"
        )
    if not facts["writable"]:
        return (
            f"found {directory} on a worker ({host}), which may not write there; expected the same "
            "user, and a directory that is writable on workers"
        )
    return ""


def check_client(client: Any) -> None:
    """Refuse what is no connected, ordinary client.

    Raises
    ------
    ConfigError
        Says what was found.
    """
    for name in ("submit", "scheduler_info", "subscribe_topic", "loop"):
        if not hasattr(client, name):
            raise ConfigError(
                f"found {type(client).__name__} as client; expected a distributed.Client: "
                "Client(cluster), or Client('tcp://host:8786')"
            )
    if getattr(client, "_asynchronous", False):
        raise ConfigError("found an asynchronous client; expected Client(..., asynchronous=False)")
    if client.status != "running":
        raise ConfigError(f"found a client that is {client.status}; expected one that is connected")


def connect(settings: ScheduleSettings, *, seconds: float | None = None) -> Any:
    """A client to the scheduler that a schedule names; TLS as Dask's configuration says.

    Parameters
    ----------
    settings
        The `schedule` section.
    seconds
        For which it is tried; None: `CONNECT`, for a cluster that is just being started.

    Raises
    ------
    ConfigError
        No address is given.
    ScheduleError
        Nobody answers there, or not with these certificates.
    """
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise DependencyError(
            "found no `distributed`, which a Dask client needs; expected it: "
            "pip install 'mofal[parallel]'"
        ) from error
    address = settings.address or dask.config.get("scheduler-address", None)
    if not address:
        raise ConfigError(
            "found backend client without an address; expected the scheduler's, "
            "schedule: {backend: client, address: tcp://host:8786} (or the path of a scheduler "
            "file), or a client from Python: Campaign(...).run(client=client)"
        )
    seconds = CONNECT if seconds is None else seconds
    where = {"address": address}
    if str(address).endswith(".json"):
        _wait_for(Path(address), seconds)  # Dask would wait for ever
        where = {"scheduler_file": address}
    try:
        return Client(set_as_default=False, name="mofal", timeout=seconds, **where)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ScheduleError(
            f"found no Dask scheduler at {address} ({one_line(error)}); expected one that runs, "
            "and for tls:// the certificates in Dask's configuration (distributed.comm.tls)"
        ) from error


def _wait_for(file: Path, seconds: float) -> None:
    """Wait for the file in which a scheduler says its address."""
    deadline = time.monotonic() + seconds
    while not file.is_file():
        if time.monotonic() > deadline:
            raise ScheduleError(
                f"found no scheduler file {file}; expected the one of a scheduler that runs: "
                f"dask scheduler --scheduler-file {file}"
            )
        time.sleep(0.2)
