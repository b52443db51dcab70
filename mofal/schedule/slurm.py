"""SLURM as mofal sees it: job scripts, and sbatch, squeue and scancel in a thread of their own.

SLURM's commands may take many seconds to fail when its controller is away; nothing else waits for
them. What is not known (the queue could not be read) changes nothing.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mofal.schedule.sections import DriverSettings, PoolSettings
from mofal.schedule.units import format_walltime

#: States of jobs that are over.
ENDED_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "REVOKED", "TIMEOUT"}
)
#: What sbatch says when it is not the request's fault: the same request may pass later.
TRANSIENT = re.compile(
    r"unable to contact|connection (refused|timed out|reset)|socket timed out|zero bytes|"
    r"communication|temporarily|try again|slurm_load|submit.*limit|limit.*submit|"
    r"MaxSubmitJob|controller",
    re.IGNORECASE,
)
#: Reasons for which a pending job will never start, whatever time goes by. (PartitionNodeLimit is
#: none of them: SLURM also says so while the partition's nodes are down.)
HOPELESS = re.compile(
    r"PartitionTimeLimit|BadConstraints|NotAllowed|InvalidAccount|InvalidQOS|MaxWall|PerJob"
)


#: What sbatch says of a request that no time will mend.
WRONG = re.compile(
    r"invalid (partition|account|qos|wckey|generic|feature|constraint)|time limit is invalid|"
    r"configuration is not available|invalid job|unrecognized option|invalid option",
    re.IGNORECASE,
)


class SlurmError(Exception):
    """A command of SLURM that failed; its message is what the command printed."""

    @property
    def wrong(self) -> bool:
        """Whether the request itself is at fault."""
        return WRONG.search(str(self)) is not None

    @property
    def transient(self) -> bool:
        """Whether the same may pass later."""
        text = str(self)
        # "submit limit, user's size and/or time limits" may be either; the line before says which.
        return TRANSIENT.search(text) is not None and HOPELESS.search(text) is None


def run_command(command: Sequence[str], *, timeout: float = 60.0) -> str:
    """Standard output of a command of SLURM.

    Raises
    ------
    SlurmError
        It is not installed, failed, or took too long.
    """
    # What SLURM told this process of its own job (a driver may run in one) is not for the next.
    keep = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in keep
    }
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            env=environment,
        )
    except FileNotFoundError as error:
        raise SlurmError(f"found no {command[0]}; expected a machine that submits jobs") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} timed out: unable to contact the controller") from error
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SlurmError(_said(lines) or f"{command[0]} failed ({done.returncode})")
    return done.stdout


def _said(lines: Sequence[str]) -> str:
    """What a command said when it failed: its last line, and the one before where that explains it.

    ``sbatch: error: QOSMaxWallDurationPerJobLimit`` comes before ``sbatch: error: Batch job
    submission failed: Job violates accounting/QOS policy (...)``; what all of them begin with is
    left out.
    """
    texts = [re.sub(r"^sbatch: (error: )?(Batch job submission failed: )?", "", e) for e in lines]
    if len(lines) > 1 and "submission failed" in lines[-1] and lines[-2].startswith("sbatch:"):
        return f"{texts[-1]} ({texts[-2]})"
    return texts[-1] if texts else ""


@dataclass(frozen=True)
class QueuedJob:
    """One line of the queue."""

    identity: str
    name: str
    state: str
    reason: str = ""


class Commands(Protocol):
    """The commands that the pools need; the tests have one without SLURM."""

    def submit(self, script: Path) -> str:
        """Number of the job."""

    def cancel(self, identities: Sequence[str]) -> None:
        """Cancel jobs; those that are gone are no error."""

    def list(self) -> list[QueuedJob]:
        """All jobs of this user, those that ended lately too."""


class SlurmCommands:
    """sbatch, scancel and squeue."""

    def submit(self, script: Path) -> str:
        """Submit a script."""
        out = run_command(["sbatch", "--parsable", str(script)])
        return out.strip().split(";")[0]

    def cancel(self, identities: Sequence[str]) -> None:
        """Cancel jobs."""
        if identities:
            run_command(["scancel", "--quiet", *identities])

    def list(self) -> list[QueuedJob]:
        """The queue of this user."""
        out = run_command(["squeue", "--noheader", "--me", "--states=all", "--format=%i|%j|%T|%r"])
        jobs = []
        for line in out.splitlines():
            fields = line.strip().split("|")
            if len(fields) == 4:
                jobs.append(QueuedJob(*fields))
        return jobs


def mebibytes(memory: float) -> int:
    """What SLURM calls ``M``, rounded down: a job asks for no more than its pool says."""
    return int(memory // 2**20)


def directives(
    settings: PoolSettings | DriverSettings, *, name: str, log: Path, cores: int, walltime: float
) -> list[str]:
    """The lines after ``#SBATCH`` that pools and the driver have in common."""
    lines = [f"--job-name={name}", f"--output={log}", "--open-mode=append", "--no-requeue"]
    for option in ("partition", "account", "qos"):
        value = getattr(settings, option)
        if value is not None:
            lines.append(f"--{option}={value}")
    lines.append(f"--time={format_walltime(walltime)}")
    if cores and settings.memory is not None:
        workers = getattr(settings, "workers_per_job", 1)
        share = settings.memory * workers // getattr(settings, "nodes", 1)
        lines.append(f"--mem={mebibytes(share)}M")
    return lines


def worker_script(
    settings: PoolSettings, *, name: str, spec: Path, log: Path, python: str, walltime: float
) -> str:
    """Job script of a pool: paths only, no secrets.

    An MPI pool books its ranks as SLURM tasks, so that ``srun`` or ``mpirun`` in a task of the
    campaign finds the whole allocation; other pools book cores of one SLURM task per worker.
    """
    lines = directives(settings, name=name, log=log, cores=settings.cores, walltime=walltime)
    if settings.mpi_ranks > 1:
        lines += [f"--ntasks={settings.mpi_ranks}", f"--cpus-per-task={settings.threads}"]
    else:
        lines += ["--ntasks=1", f"--cpus-per-task={settings.threads * settings.workers_per_job}"]
    lines.append(f"--nodes={settings.nodes}")
    if settings.gpus:
        lines.append(f"--gres=gpu:{settings.gpus * settings.workers_per_job}")
    lines = [*wanted(lines, settings.job_skip), *settings.job_extra]
    head = "".join(f"#SBATCH {line}\n" for line in lines)
    body = "".join(f"{line}\n" for line in settings.prologue)
    command = shlex.join([python, "-m", "mofal.schedule.job", str(spec)])
    return f"{settings.shebang}\n{head}\n{body}exec {command}\n"


#: How sbatch, and those who write what it shall not see, abbreviate directives.
SHORT = {
    "--job-name=": "-J ",
    "--output=": "-o ",
    "--partition=": "-p ",
    "--account=": "-A ",
    "--time=": "-t ",
    "--ntasks=": "-n ",
    "--cpus-per-task=": "-c ",
    "--nodes=": "-N ",
}


def wanted(lines: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Directives without those that contain what is to be skipped, long or abbreviated."""

    def forms(line: str) -> list[str]:
        short = [line.replace(a, b, 1) for a, b in SHORT.items() if line.startswith(a)]
        return [f"#SBATCH {form}" for form in (line, *short)]

    return [e for e in lines if not any(part in form for part in skip for form in forms(e))]


class SlurmThread:
    """Runs the commands one after the other; answers come through a queue.

    Answers: ("submitted", tag, identity), ("refused", tag, SlurmError), ("listed", jobs),
    ("unlisted", SlurmError), ("uncancelled", identities). They come in the order of the orders, so
    a job whose submission was answered is in every listing that is answered later.
    """

    def __init__(self, commands: Commands, *, interval: float, wake: Callable[[], None]) -> None:
        self._commands = commands
        self._interval = interval
        self._wake = wake
        self._orders: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="mofal-slurm", daemon=True)
        self._next_look = 0.0

    def start(self) -> None:
        """Begin; the first look at the queue comes at once."""
        self._thread.start()

    def submit(self, tag: str, script: Path) -> None:
        """Order a submission."""
        self._orders.put(("submit", (tag, script)))

    def cancel(self, identities: Sequence[str]) -> None:
        """Order cancellations."""
        if identities:
            self._orders.put(("cancel", list(identities)))

    def look(self) -> None:
        """Order a look at the queue before the next one is due."""
        self._orders.put(("look", None))

    def sweep(self, chosen: Callable[[str], bool]) -> None:
        """Order that every job whose name is chosen is cancelled."""
        self._orders.put(("sweep", chosen))

    def stop(self, *, timeout: float = 30.0) -> None:
        """Carry out what was ordered and end."""
        self._orders.put(None)
        self._thread.join(timeout)

    def _loop(self) -> None:
        while True:
            wait = max(self._next_look - time.monotonic(), 0.0)
            try:
                order = self._orders.get(timeout=wait)
            except queue.Empty:
                order = ("look", None)
            if order is None:
                return
            what, argument = order
            if what == "submit":
                self._submit(*argument)
            elif what == "cancel":
                self._cancel(argument)
            elif what == "sweep":
                self._sweep(argument)
            else:
                self._look()
            self._wake()

    def _submit(self, tag: str, script: Path) -> None:
        try:
            self.answers.put(("submitted", tag, self._commands.submit(script)))
        except SlurmError as error:
            self.answers.put(("refused", tag, error))

    def _cancel(self, identities: list[str]) -> None:
        try:
            self._commands.cancel(identities)
        except SlurmError as error:
            if error.transient:  # the controller is away: once more, later
                self.answers.put(("uncancelled", identities))

    def _sweep(self, chosen: Callable[[str], bool]) -> None:
        with suppress(SlurmError):  # a controller that is away: the jobs end by themselves
            jobs = [job for job in self._commands.list() if chosen(job.name)]
            self._commands.cancel([job.identity for job in jobs if job.state not in ENDED_STATES])

    def _look(self) -> None:
        try:
            self.answers.put(("listed", self._commands.list()))
        except SlurmError as error:
            self.answers.put(("unlisted", error))
        self._next_look = time.monotonic() + self._interval
