"""`mofal doctor --slurm`: whether this cluster takes the jobs that a campaign file asks for."""

from __future__ import annotations

import getpass
import math
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mofal.errors import ConfigError
from mofal.schedule.sections import DriverSettings, PoolSettings
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.slurm import (
    SlurmCommands,
    SlurmError,
    directives,
    mebibytes,
    run_command,
    wanted,
)
from mofal.schedule.units import format_walltime, parse_limit

#: One thing looked at: its name, whether it works, what was seen, how to mend it.
Finding = tuple[str, bool, str, str]
#: Facts of partitions by name.
Partitions = dict[str, dict[str, str]]


def doctor_slurm(
    settings: ScheduleSettings | None = None,
    *,
    probe: bool = True,
    timeout: float = 300.0,
    folder: str | os.PathLike[str] | None = None,
) -> Iterator[Finding]:
    """Look at SLURM: its commands, the pools' partitions, accounts and limits, the way back.

    Parameters
    ----------
    settings
        The `schedule` section of a campaign file; None: SLURM alone.
    probe
        Submit one small job per pool that calls back, as a worker would.
    timeout
        Seconds that a probe may wait in the queue.
    folder
        A directory that the nodes see too, for the probe; None: the present one.

    Yields
    ------
    tuple
        (name, ok, what was seen, how to mend it).
    """
    try:
        version = run_command(["sinfo", "--version"], timeout=20).strip()
        yield ("slurm commands", True, version, "")
    except SlurmError as error:
        yield ("slurm commands", False, str(error), "log in to the cluster's login node")
        return
    try:
        partitions = read_partitions()
    except SlurmError as error:
        yield ("slurm controller", False, str(error), "wait for it, or ask the cluster's support")
        return
    names = ", ".join(sorted(partitions))
    yield ("slurm controller", True, f"{len(partitions)} partitions: {names}", "")
    if settings is None:
        return
    accounts = read_accounts()
    if (driver := settings.effective_driver()) is not None:
        yield look_at_driver(driver, partitions, accounts)
    for name, pool in settings.effective_pools().items():
        if pool.backend != "slurm":
            continue
        finding = look_at_pool(name, pool, partitions, accounts)
        yield finding
        if finding[1] and probe:
            yield probe_pool(settings, name, pool, timeout=timeout, folder=folder)


def read_partitions() -> Partitions:
    """Partitions with their facts.

    Those are ``time`` (its limit), ``cores``, ``memory`` (MB) and ``gpus`` of its largest node,
    ``gres``, ``up``, ``states``.
    """
    out = run_command(["sinfo", "--noheader", "--format=%R|%l|%c|%m|%G|%a|%t"], timeout=20)
    partitions: Partitions = {}
    for line in out.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 7:
            continue
        name, limit, cores, memory, gres, up, state = fields
        empty = {"cores": "0", "memory": "0", "gpus": "0", "gres": "", "states": ""}
        known = partitions.setdefault(name, {"time": limit, "up": up, **empty})
        known["cores"] = str(max(int(known["cores"]), _number(cores)))
        known["memory"] = str(max(int(known["memory"]), _number(memory)))
        known["gpus"] = str(max(int(known["gpus"]), count_gpus(gres)))
        known["gres"] += f" {gres}"
        known["states"] += f" {state}"
    return partitions


def count_gpus(gres: str) -> int:
    """GPUs in ``gpu:2``, ``gpu:a100:4(S:0-1)``, ``gpu:h100:2,gpu:a30:1``; one without a number."""
    found = re.findall(r"\bgpu(?::[A-Za-z][^:,(]*)?(?::(\d+))?", gres)
    return sum(int(number or 1) for number in found)


def _number(text: str) -> int:
    """The number in ``64`` or ``64+``."""
    digits = "".join(c for c in text if c.isdigit())
    return int(digits) if digits else 0


def read_accounts() -> set[str] | None:
    """Accounts of this user; None where the cluster keeps none (or does not say)."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations"]
    command += [f"user={getpass.getuser()}", "format=account"]
    try:
        out = run_command(command, timeout=20)
    except SlurmError:
        return None
    accounts = {line.strip() for line in out.splitlines() if line.strip()}
    return accounts or None


def look_at_pool(
    name: str,
    pool: PoolSettings,
    partitions: Partitions,
    accounts: set[str] | None,
) -> Finding:
    """Whether a pool's partition exists and can take a job of it."""
    title, place = f"pool {name}", f"pools: {name}:"
    refused = look_at_names(title, place, pool, partitions, accounts)
    if refused is not None:
        return refused
    if pool.partition is None:
        return (title, True, "the default partition", "")
    facts = partitions[pool.partition]
    wrong = look_at_limits(pool.walltime, facts)
    # What one node has to have of a job, whose ranks are spread over all its nodes.
    cores = math.ceil(pool.mpi_ranks / pool.nodes) * pool.threads * pool.workers_per_job
    memory = (pool.memory or 0) * pool.workers_per_job / pool.nodes
    gpus = pool.gpus * pool.workers_per_job
    if cores > int(facts["cores"]):
        fewer = "threads" if pool.mpi_ranks == 1 else "mpi_ranks, or more nodes:"
        wrong.append((f"{cores} cores on nodes of {facts['cores']}", f"ask for fewer {fewer}"))
    if mebibytes(memory) > int(facts["memory"]):
        have = int(facts["memory"]) * 2**20 / 1e9
        wrong.append((f"more memory than a node has ({have:.1f} GB)", "lower memory:"))
    if gpus and "gpu" not in facts["gres"]:
        wrong.append(("GPUs where the partition has none", "take a partition with GPUs"))
    elif gpus > int(facts["gpus"]):
        wrong.append((f"{gpus} GPUs on nodes of {facts['gpus']}", "lower gpus:"))
    if wrong:
        return (title, False, "; ".join(w for w, _ in wrong), "; ".join(m for _, m in wrong))
    return (title, True, f"partition {pool.partition}, limit {facts['time']}", "")


def look_at_driver(
    driver: DriverSettings, partitions: Partitions, accounts: set[str] | None
) -> Finding:
    """Whether a job of the driver itself (`mofal run --submit`) can be had."""
    title = "driver's job"
    refused = look_at_names(title, "driver:", driver, partitions, accounts)
    if refused is not None:
        return refused
    wrong = []
    if driver.partition is not None:
        wrong = look_at_limits(driver.walltime, partitions[driver.partition])
    if driver.margin >= driver.walltime:
        wrong.append(("a margin as long as its walltime", "set driver: margin: 10m"))
    if wrong:
        return (title, False, "; ".join(w for w, _ in wrong), "; ".join(m for _, m in wrong))
    return (title, True, f"partition {driver.partition or '(default)'}", "")


def look_at_names(
    title: str,
    place: str,
    job: PoolSettings | DriverSettings,
    partitions: Partitions,
    accounts: set[str] | None,
) -> Finding | None:
    """What is wrong with the names of a job's partition and account, None if nothing is."""
    for word, value, known in (
        ("partition", job.partition, set(partitions)),
        ("account", job.account, accounts),
    ):
        if value is not None and known is not None and value not in known:
            mend = f"set {place} {word}: to one of {', '.join(sorted(known))}"
            return (title, False, f"no {word} {value!r}", mend)
    return None


def look_at_limits(walltime: int, facts: dict[str, str]) -> list[tuple[str, str]]:
    """What is wrong with a partition as such, or a walltime in it: (what, how to mend it)."""
    wrong = []
    if facts["up"] != "up":
        wrong.append((f"the partition is {facts['up']}", "wait, or take another partition"))
    limit = parse_limit(facts["time"])
    if limit is not None and walltime > limit:
        mend = f'set walltime: "{format_walltime(limit)}" or less'
        wrong.append((f"walltime beyond the partition's {facts['time']}", mend))
    return wrong


def probe_pool(
    settings: ScheduleSettings,
    name: str,
    pool: PoolSettings,
    *,
    timeout: float,
    folder: str | os.PathLike[str] | None,
) -> Finding:
    """Submit a job of this pool that imports mofal and calls back, and wait for it.

    What works then: sbatch, the prologue, the interpreter, a directory seen by both sides, and the
    way from the node to the scheduler's address.
    """
    from mofal.schedule.link import scheduler_host

    title = f"way back from {name}"
    try:
        host = scheduler_host(settings)
    except ConfigError as error:
        return (title, False, str(error), "set schedule: interface:")
    token = secrets.token_hex(8)
    commands = SlurmCommands()
    with (
        tempfile.TemporaryDirectory(prefix=".mofal-probe-", dir=folder or ".") as place,
        _Listener(host, token) as listener,
    ):
        base = Path(place).resolve()
        script = base / "probe.sh"
        script.write_text(probe_script(pool, base, listener.address, token), encoding="utf-8")
        try:
            identity = commands.submit(script)
        except SlurmError as error:
            return (title, False, f"sbatch: {error}", f"see pools: {name}: in the campaign file")
        deadline = time.monotonic() + timeout
        while not listener.called.wait(0.5):
            try:
                states = {job.identity: job.state for job in commands.list()}
            except SlurmError:
                states = {identity: "UNKNOWN"}
            state = states.get(identity, "GONE")
            if state not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "UNKNOWN"):
                listener.called.wait(2.0)
                break
            if time.monotonic() > deadline:
                commands.cancel([identity])
                waited = f"job {identity} was {state.lower()} for {timeout:.0f} s"
                return (title, False, waited, "the queue is full: try later, or give more time")
        if listener.called.is_set():
            return (title, True, f"job {identity} on {listener.host} called back", "")
        log = base / "probe.log"
        said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return (
            title,
            False,
            f"job {identity} ended without calling back: {said[-1] if said else 'it said nothing'}",
            f"check prologue:, python: and interface: of pools: {name}: "
            f"(the driver listens on {listener.address[0]})",
        )


def probe_script(pool: PoolSettings, place: Path, address: tuple[str, int], token: str) -> str:
    """A small job with the pool's partition, account, prologue and interpreter."""
    import shlex
    import sys

    lines = directives(pool, name="mofal-probe", log=place / "probe.log", cores=0, walltime=120)
    lines += ["--ntasks=1", "--cpus-per-task=1", "--mem=300M"]
    if pool.gpus:
        lines.append("--gres=gpu:1")
    lines = [*wanted(lines, pool.job_skip), *pool.job_extra]
    head = "".join(f"#SBATCH {line}\n" for line in lines)
    body = "".join(f"{line}\n" for line in pool.prologue)
    code = (
        "import socket, sys, mofal.schedule.files; "
        f"s = socket.create_connection(({address[0]!r}, {address[1]}), timeout=20); "
        f"s.sendall(({token!r} + ' ' + socket.gethostname()).encode()); s.close()"
    )
    command = shlex.join([pool.python or sys.executable, "-c", code])
    from mofal.schedule.jobs import extra_paths

    export = f"export PYTHONPATH={shlex.quote(os.pathsep.join(extra_paths()))}\n"
    return f"{pool.shebang}\n{head}\n{body}{export}exec {command}\n"


class _Listener:
    """Waits for a probe that knows the token."""

    def __init__(self, host: str, token: str) -> None:
        self._token = token.encode()
        self._socket = socket.create_server((host, 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self.called = threading.Event()
        self.host = ""

    def __enter__(self) -> _Listener:
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _listen(self) -> None:
        while not self.called.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5.0)
                try:
                    said = connection.recv(300)
                except OSError:
                    continue
            if said.startswith(self._token + b" "):
                self.host = said[len(self._token) + 1 :].decode(errors="replace")
                self.called.set()
