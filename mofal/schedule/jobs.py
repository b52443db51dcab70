"""Jobs of the pools: submitted, watched, replaced, given back; on SLURM and on this machine.

A job of this machine is a process with one worker; a job on SLURM is a script. Both run `job.py`,
and what became of them is read from their beats and, for SLURM, from its queue.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mofal.errors import ScheduleError
from mofal.schedule.backend import Loss
from mofal.schedule.events import EventLog
from mofal.schedule.files import (
    PRIVATE,
    Layout,
    last_lines,
    process_start,
    read_beat,
    write_json,
    write_text,
)
from mofal.schedule.policy import stagger
from mofal.schedule.sections import PoolSettings
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.slurm import (
    ENDED_STATES,
    HOPELESS,
    Commands,
    QueuedJob,
    SlurmCommands,
    SlurmThread,
    worker_script,
)

#: Seconds of silence after which a job's beat counts as stopped.
SILENCE = 60.0
#: The same for one that has not beaten yet (a busy file system imports slowly), and the time
#: between two looks at it.
START_SILENCE, LOOK = 300.0, 10.0
#: A worker plans to end this long before its walltime, and jobs of a pool spread their ends over
#: this fraction of it.
MARGIN, STAGGER = 30.0, 0.1
#: Seconds that a job may take to end when it is given back, before it is cancelled.
PATIENCE = 45.0


@dataclass(eq=False)
class JobRecord:
    """What the driver knows of one of its jobs."""

    name: str
    pool: str
    workers: int
    backend: str
    gpu_ids: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    slurm_id: str = ""
    submitted: float = field(default_factory=time.monotonic)
    connected: bool = False
    ever_connected: bool = False
    ending: float | None = None
    ends_at: float | None = None
    idle_since: float | None = None
    next_look: float = 0.0


class Jobs:
    """All jobs of a campaign; methods are called from the dispatcher's thread."""

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        layout: Layout,
        tls: bool,
        events: EventLog,
        say: Callable[[str], None],
        commands: Commands | None = None,
    ) -> None:
        self._settings = settings
        self._pools = settings.effective_pools()
        self._layout = layout
        self._tls = tls
        self._events = events
        self._say = say
        self._commands = commands or SlurmCommands()
        self._records: dict[str, JobRecord] = {}
        self._deaths: dict[str, list[str]] = {pool: [] for pool in self._pools}
        self._refusals: dict[str, list[str]] = {pool: [] for pool in self._pools}
        self._next_submit: dict[str, float] = {}
        self._last_death: dict[str, float] = {}
        self._queue: dict[str, QueuedJob] | None = None  # by name; None: never seen
        self._beats: dict[str, tuple[int, float]] = {}  # job -> (beat, when it was first seen)
        self._past: dict[str, dict[str, Any]] = {}  # last beats of jobs that are over
        self._number = 0
        self._indices = dict.fromkeys(self._pools, 0)
        self._thread: SlurmThread | None = None
        self._said: dict[str, str] = {}
        #: Jobs of this campaign are known by their names, also to the next driver.
        self.prefix = job_prefix(layout)

    def start(self, wake: Callable[[], None]) -> None:
        """Look for what a driver before left, and begin."""
        for path in self._layout.jobs.glob("*.json"):
            name = path.name.split(".")[0]
            number = name.rpartition("-")[2]
            if number.isdecimal() and len(number) < 10:
                self._number = max(self._number, int(number) + 1)
            beat = read_beat(self._layout.beat(name))
            if beat is not None and (beat.get("ended") or self._local_and_dead(beat)):
                self._put_away(name, "its driver was gone")
        if any(pool.backend == "slurm" for pool in self._pools.values()):
            self._thread = SlurmThread(
                self._commands, interval=self._settings.poll_interval, wake=wake
            )
            self._thread.start()

    # -- jobs in and out
    def of(self, pool: str) -> list[JobRecord]:
        """Jobs of a pool that are not ending."""
        return [r for r in self._records.values() if r.pool == pool and r.ending is None]

    def _ours(self, name: str) -> str:
        """Name of a job of this campaign without the campaign's mark, "" for others."""
        return name.removeprefix(self.prefix) if name.startswith(self.prefix) else ""

    def look(self) -> None:
        """Have the queue looked at before its time."""
        if self._thread is not None:
            self._thread.look()

    def submit(self, pool: str) -> None:
        """Ask for one more job, unless that went wrong a moment ago.

        While jobs of a pool die on arrival or are refused there is one at a time, to see whether
        the next fares better.
        """
        if time.monotonic() < self._next_submit.get(pool, 0.0):
            return
        troubled = self._deaths[pool] or self._refusals[pool]
        if troubled and any(not record.ever_connected for record in self.of(pool)):
            return
        settings = self._pools[pool]
        if settings.backend == "slurm" and self._queue is None:
            return  # what a driver before left in the queue is not known yet
        name = f"{pool}-{self._number}"
        self._number += 1
        index = self._indices[pool]
        self._indices[pool] += 1
        workers = settings.workers_per_job if settings.backend == "slurm" else 1
        record = JobRecord(name=name, pool=pool, workers=workers, backend=str(settings.backend))
        if settings.backend == "local" and settings.gpus:
            record.gpu_ids = self._free_gpus(settings)
        try:
            self._launch(record, self.specification(record, index=index))
        except OSError as error:  # a full disk, no more processes: it may pass
            self._refuse(pool, f"a job could not be started: {error}", counts=False)
            return
        self._records[name] = record
        self._events.write("job", job=name, pool=pool, backend=settings.backend)

    def _launch(self, record: JobRecord, specification: dict[str, Any]) -> None:
        """Write what a job is to do, and start it or have it submitted."""
        settings = self._pools[record.pool]
        spec = self._layout.job(record.name)
        write_json(spec, specification, mode=PRIVATE)
        if record.backend == "slurm":
            assert self._thread is not None
            script = self._layout.jobs / f"{record.name}.sh"
            # A prologue may hold a token, as an environment may.
            write_text(script, self.script(record.pool, name=record.name), mode=PRIVATE)
            self._thread.submit(record.name, script)
            return
        with self._layout.log(record.name).open("ab") as log:
            record.process = subprocess.Popen(
                [settings.python or sys.executable, "-m", "mofal.schedule.job", str(spec)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment(settings, record.pool)},
                start_new_session=True,
            )

    def script(self, pool: str, *, name: str) -> str:
        """Job script of a pool's next job."""
        settings = self._pools[pool]
        return worker_script(
            settings,
            name=self.prefix + name,
            spec=self._layout.job(name),
            log=self._layout.log(name),
            python=settings.python or sys.executable,
            walltime=settings.walltime,
        )

    def specification(self, record: JobRecord, *, index: int) -> dict[str, Any]:
        """What `job.py` reads."""
        settings = self._pools[record.pool]
        local = record.backend == "local"
        early = 0.0
        if not local:
            margin = min(MARGIN, settings.walltime / 10)
            early = margin + stagger(index, walltime=settings.walltime, fraction=STAGGER)
        return {
            "name": record.name,
            "pool": record.pool,
            "root": str(self._layout.root),
            "local": local,
            "driver": os.getpid(),
            "workers": record.workers,
            "cores": settings.cores * record.workers,
            "gpus": settings.gpus,
            "gpu_ids": list(record.gpu_ids),
            "memory": settings.worker_limit(workers=record.workers, local=local),
            "walltime": None if local else settings.walltime,
            "early": early,
            "linger": 60.0 if local else self._settings.linger,
            "tls": self._tls,
            "interface": settings.interface or self._settings.scheduler_interface or "",
            "environment": self.environment(settings, record.pool),
        }

    @staticmethod
    def environment(settings: PoolSettings, pool: str) -> dict[str, str]:
        """Environment of a pool's workers: the number of threads is the pool's, always."""
        threads = str(settings.threads)
        names = ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR")
        return {
            **{f"{name}_NUM_THREADS": threads for name in names},
            "DASK_LOGGING__DISTRIBUTED": "warning",
            "VECLIB_MAXIMUM_THREADS": threads,
            "PYTHONPATH": os.pathsep.join(extra_paths()),
            "MOFAL_POOL": pool,
            "MOFAL_THREADS": threads,
            "MOFAL_MPI_RANKS": str(settings.mpi_ranks),
            **settings.environment,
        }

    def _free_gpus(self, settings: PoolSettings) -> tuple[str, ...]:
        """GPUs of this machine that no other local job has."""
        taken = {gpu for record in self._records.values() for gpu in record.gpu_ids}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        most = settings.workers.max * settings.gpus
        known = [part for part in visible.split(",") if part] or [str(i) for i in range(most)]
        return tuple(gpu for gpu in known if gpu not in taken)[: settings.gpus]

    def end(self, record: JobRecord) -> None:
        """Give a job back."""
        if record.ending is not None:
            return
        record.ending = time.monotonic()
        if record.process is not None:
            record.process.terminate()
        elif record.ever_connected:
            self._layout.end(record.name).touch()  # it ends as completed, not as cancelled
        elif record.slurm_id and self._thread is not None:
            self._layout.end(record.name).touch()
            self._thread.cancel([record.slurm_id])

    def connected(self, name: str, *, ends_at: float | None) -> None:
        """A worker of this job is there."""
        record = self._records.get(name)
        if record is not None:
            record.connected = record.ever_connected = True
            record.ends_at = ends_at
            self._deaths[record.pool].clear()
            self._refusals[record.pool].clear()

    # -- what became of them
    def loss(self, job: str, worker: str) -> Loss | None:
        """How a worker came to its end, None as long as nobody says."""
        beat = read_beat(self._layout.beat(job)) or self._past.get(job, {})
        record = self._records.get(job)
        text = beat.get("losses", {}).get(worker)
        if text is None and beat.get("ended"):
            text = f"its job ended: {beat.get('reason')}"
        if text is None and beat and job in self._past and not beat.get("slurm_id"):
            # A job of this machine that did not say that it ends: by whom is open, as with workers.
            text = "its job was killed"
        if text is None:
            return self._loss_by_queue(job, record)
        if text == "lost its scheduler":
            return Loss(blame="none", reason=text)
        if text.startswith("its job ended") or text == "killed by SIGTERM":
            # SLURM ends jobs by SIGTERM: at their walltime, or when they are cancelled.
            ends_at = None if record is None else record.ends_at
            if ends_at is not None and time.monotonic() > ends_at - 5:
                return Loss(blame="walltime", reason="its walltime was reached")
        if text.startswith("its job ended"):
            return Loss(blame="none", reason=text)
        return Loss(blame="task", reason=text)

    def _loss_by_queue(self, job: str, record: JobRecord | None) -> Loss | None:
        if record is not None and record.process is not None:
            return None  # `tick` enters it among those that are over when it is
        queued = None if self._queue is None else self._queue.get(self.prefix + job)
        if queued is None or queued.state not in ENDED_STATES:
            return None
        if queued.state == "TIMEOUT":
            return Loss(blame="walltime", reason="its walltime was reached")
        innocent = queued.state in ("CANCELLED", "PREEMPTED", "COMPLETED")
        return Loss(blame="none" if innocent else "task", reason=f"its job ended: {queued.state}")

    def alive(self, job: str, worker: str) -> bool:
        """Whether a worker can still be at work, whoever's driver started it."""
        beat = read_beat(self._layout.beat(job))
        if beat is None or beat.get("ended") or worker not in beat.get("workers", ()):
            return False
        if self._local_and_dead(beat):
            return False
        if beat.get("host") == os.uname().nodename and not beat.get("slurm_id"):
            return True
        if beat.get("slurm_id") and self._queue is not None:
            queued = self._queue.get(self.prefix + job)
            if queued is None or queued.state in ENDED_STATES:
                return False
        return self._silence(job, beat) < SILENCE

    def _silence(self, job: str, beat: dict[str, Any] | None) -> float:
        """Seconds for which a job's beat has been the same (by this clock: theirs may differ)."""
        now, number = time.monotonic(), -1 if beat is None else int(beat.get("beat", -1))
        known, since = self._beats.get(job, (-2, 0.0))
        if number != known:
            self._beats[job] = (number, now)
            return 0.0
        return now - since

    def runs(self, record: JobRecord) -> bool:
        """Whether a job runs, as SLURM says."""
        queued = None if self._queue is None else self._queue.get(self.prefix + record.name)
        return queued is not None and queued.state in ("RUNNING", "COMPLETING")

    def give_up_on_silent(self, record: JobRecord) -> None:
        """Cancel a job without work that runs, as SLURM says, and does not beat: its node is lost.

        SLURM may take many minutes to find out; nothing waits for a place that such a job holds.
        """
        now = time.monotonic()
        if self._queue is None or not record.slurm_id or now < record.next_look:
            return
        record.next_look = now + LOOK
        if not self.runs(record):
            return
        beat = read_beat(self._layout.beat(record.name))
        silence = self._silence(record.name, beat)
        if silence > (START_SILENCE if beat is None else SILENCE):
            text = f"job {record.slurm_id} ({record.name}) has not given a sign for {silence:.0f} s"
            self._say(f"{text}: its node is taken for lost, and the job is replaced")
            record.ending = now
            if self._thread is not None:
                self._thread.cancel([record.slurm_id])

    @staticmethod
    def _local_and_dead(beat: dict[str, Any]) -> bool:
        """Whether the job was a process of this machine that is no more."""
        if beat.get("slurm_id") or beat.get("host") != os.uname().nodename:
            return False
        return not process_start(int(beat.get("pid", 0))) == beat.get("process") != ""

    def verdict(self, pool: str) -> ScheduleError | None:
        """The error with which a pool is given up; None as long as there is hope."""
        limit = self._settings.deaths
        deaths, refusals = self._deaths[pool], self._refusals[pool]
        if len(deaths) >= limit:
            return ScheduleError(
                f"pool {pool}: its last {limit} jobs ended before a worker connected, so no more "
                f"are started. The last one, {deaths[-1]}; expected its worker to reach the "
                "driver: see the log above and the pool's prologue, python and interface"
            )
        if len(refusals) >= limit and not self.of(pool):
            return ScheduleError(
                f"pool {pool}: SLURM refused its jobs {len(refusals)} times: {refusals[-1]}; "
                f"expected jobs that this cluster takes: see pools: {pool}: in the campaign file "
                "(`mofal doctor --slurm` checks it)"
            )
        return None

    # -- now and then
    def tick(self) -> None:
        """Look at processes and at the queue's answers."""
        for record in list(self._records.values()):
            if record.process is not None and record.process.poll() is not None:
                self._over(record, f"exit status {record.process.returncode}")
        if self._thread is None:
            return
        while not self._thread.answers.empty():
            self._answer(self._thread.answers.get())
        late = [
            r.slurm_id
            for r in self._records.values()
            if r.slurm_id and r.ending is not None and time.monotonic() - r.ending > PATIENCE
        ]
        for record in self._records.values():
            if record.slurm_id in late:
                record.ending = time.monotonic()
        self._thread.cancel(late)

    def _answer(self, answer: tuple[Any, ...]) -> None:
        match answer:
            case ("submitted", name, identity):
                record = self._records.get(name)
                if record is not None:
                    record.slurm_id = identity
                    self._events.write("submitted", job=name, slurm_id=identity)
                    self._said.pop(record.pool, None)
                    if record.ending is not None and self._thread is not None:
                        self._thread.cancel([identity])
            case ("refused", name, error):
                self._refused(name, error)
            case ("listed", jobs):
                self._listed(jobs)
            case ("unlisted", error):
                self._say_once("squeue", f"squeue: {error}; waiting for it to answer")
            case ("uncancelled", identities):
                for record in self._records.values():
                    if record.slurm_id in identities:
                        record.ending = time.monotonic()  # patience, then once more

    def _refused(self, name: str, error: Any) -> None:
        record = self._records.pop(name, None)
        if record is None:
            return
        self._events.write("refused", job=name, pool=record.pool, reason=str(error))
        counts = not error.transient
        self._refuse(record.pool, f"sbatch: {error}", counts=counts, patient=not error.wrong)

    def _refuse(self, pool: str, reason: str, *, counts: bool = True, patient: bool = True) -> None:
        """Remember that SLURM did not take a job, and wait a little before the next."""
        refusals = self._refusals[pool]
        # Jobs that were submitted together are refused together: that is one refusal.
        if counts and time.monotonic() >= self._next_submit.get(pool, 0.0):
            refusals.append(reason)
        wait = min(self._settings.poll_interval * 2 ** len(refusals), 300.0 if patient else 5.0)
        self._next_submit[pool] = time.monotonic() + wait
        self._say_once(pool, f"pool {pool}: {reason}")

    def _listed(self, jobs: list[QueuedJob]) -> None:
        mine = {job.name: job for job in jobs if self._ours(job.name)}
        first = self._queue is None
        self._queue = mine
        self._said.pop("squeue", None)
        for name, job in mine.items():
            short = self._ours(name)
            if short not in self._records and job.state not in ENDED_STATES:
                self._adopt(short, job, first=first)
        for record in list(self._records.values()):
            if not record.slurm_id:
                continue  # its submission is not answered yet
            queued = mine.get(self.prefix + record.name)
            if queued is None:
                self._over(record, "it is gone from the queue")
            elif queued.state in ENDED_STATES:
                self._over(record, queued.state)
            elif queued.state == "PENDING" and HOPELESS.search(queued.reason):
                self._hopeless(record, queued.reason)

    def _hopeless(self, record: JobRecord, reason: str) -> None:
        """A job that will never start is as good as refused."""
        if record.ending is None:
            self.end(record)
            self._refuse(record.pool, f"job {record.slurm_id} would never start ({reason})")

    def _adopt(self, name: str, job: QueuedJob, *, first: bool) -> None:
        """A job of this campaign that this driver did not submit, or thought it had not."""
        pool = name.rpartition("-")[0]
        assert self._thread is not None
        if pool not in self._pools or self._layout.end(name).exists():
            self._thread.cancel([job.identity])
            return
        settings = self._pools[pool]
        record = JobRecord(name=name, pool=pool, workers=settings.workers_per_job, backend="slurm")
        record.slurm_id = job.identity
        self._records[name] = record
        self._events.write("adopted", job=name, pool=pool, slurm_id=job.identity)
        if first:
            self._say(f"found job {job.identity} ({name}, {job.state.lower()}) of a driver before")

    def _over(self, record: JobRecord, how: str) -> None:
        """A job is no more: count it if it died on arrival."""
        del self._records[record.name]
        beat = read_beat(self._layout.beat(record.name)) or {}
        reason = str(beat.get("reason") or how)
        if record.process is not None and record.process.stdin is not None:
            with suppress(OSError):
                record.process.stdin.close()
        never_started = how == "CANCELLED" and not beat
        if record.ever_connected or record.ending is not None or never_started:
            self._put_away(record.name, how)
            return
        log = last_lines(self._layout.log(record.name))
        worker_log = self._layout.log(f"{record.name}.0")
        if worker_log.exists():
            log += "\n" + last_lines(worker_log)
        # Jobs that were started together die together (one bad node): that is one death.
        if record.submitted >= self._last_death.get(record.pool, 0.0):
            self._deaths[record.pool].append(f"{record.name} ({reason}), says {log}\n")
            self._last_death[record.pool] = time.monotonic()
        self._put_away(record.name, how)
        self._next_submit[record.pool] = time.monotonic() + min(
            1.0 if record.process is not None else self._settings.poll_interval, 60.0
        )

    def _put_away(self, name: str, how: str) -> None:
        """Enter a job that is over into the events, and remove its files."""
        beat = read_beat(self._layout.beat(name)) or {}
        self._events.write(
            "job-end",
            job=name,
            pool=name.rpartition("-")[0],
            reason=beat.get("reason") or how,
            slurm_id=beat.get("slurm_id", ""),
            seconds=round(beat.get("time", 0.0) - beat.get("started", 0.0), 1),
            cores=beat.get("cores", 0),
            slots=beat.get("slots", 1),
        )
        self._past[name] = beat
        while len(self._past) > 1000:
            del self._past[next(iter(self._past))]
        for path in (
            self._layout.job(name),
            self._layout.beat(name),
            self._layout.end(name),
            self._layout.jobs / f"{name}.sh",
        ):
            path.unlink(missing_ok=True)
        for path in self._layout.logs.glob(f"{name}*.log"):
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()

    def _say_once(self, about: str, text: str) -> None:
        """Say what is wrong once, until it is over or something else is."""
        if self._said.get(about) != text:
            self._said[about] = text
            self._say(text)

    def close(self, keep: Callable[[str], bool]) -> None:
        """End all jobs at once, but those on SLURM that stay for another driver."""
        kept = {record.name for record in self._records.values() if keep(record.name)}
        for record in self._records.values():
            if record.process is not None or record.name not in kept:
                self.end(record)
        if self._thread is not None:
            # Work is over: running jobs need not find out by themselves.
            self._thread.sweep(lambda name: self._ours(name) not in {"", *kept})
            self._thread.stop()
        for record in self._records.values():
            if record.process is None:
                continue
            try:
                record.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                record.process.kill()
                record.process.wait()
            if record.process.stdin is not None:
                with suppress(OSError):
                    record.process.stdin.close()
            self._put_away(record.name, "the driver ended")
        self._records.clear()


def job_prefix(layout: Layout) -> str:
    """How the names of a campaign's jobs begin in SLURM's queue: its own name, and a mark that
    tells it from others of that name."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "_", layout.root.parent.name)[:40]
    return f"mofal-{name}-{hashlib.sha256(str(layout.root).encode()).hexdigest()[:6]}-"


def cancel_leftovers(layout: Layout, commands: Commands | None = None) -> None:
    """Cancel what a driver before left in the queue, for a driver that has no use for it."""
    if any(layout.jobs.glob("*.json")):
        thread = SlurmThread(commands or SlurmCommands(), interval=1e9, wake=lambda: None)
        thread.start()
        prefix = job_prefix(layout)
        thread.sweep(lambda name: name.startswith(prefix))
        thread.stop()


def extra_paths() -> list[str]:
    """Import path of this process beyond the interpreter's own: workers import the same modules."""
    own = {
        Path(sysconfig.get_path(name)).resolve()
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    # What the user has asked for is kept, wherever it lies: this list takes its place.
    asked = {Path(p).resolve() for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
    paths = []
    for entry in sys.path:
        path = Path(entry or ".").resolve()
        # And what lies within it: setuptools, once imported, adds its `_vendor` to the path.
        inside = path not in asked and any(path.is_relative_to(own_path) for own_path in own)
        if path.is_dir() and not inside and str(path) not in paths:
            paths.append(str(path))
    return paths
