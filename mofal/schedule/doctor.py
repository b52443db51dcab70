"""`mofal doctor --slurm`: whether this cluster takes the jobs that a campaign file asks for."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mofal.errors import ConfigError
from mofal.schedule.settings import PoolSettings, ScheduleSettings, parse_walltime
from mofal.schedule.slurm import SlurmCommands, SlurmError, directives, run_command

#: One thing looked at: its name, whether it works, what was seen, how to mend it.
Finding = tuple[str, bool, str, str]


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
    for name, pool in settings.effective_pools().items():
        if pool.backend != "slurm":
            continue
        finding = look_at_pool(name, pool, partitions, accounts)
        yield finding
        if finding[1] and probe:
            yield probe_pool(settings, name, pool, timeout=timeout, folder=folder)


def read_partitions() -> dict[str, dict[str, str]]:
    """Partitions with their facts: ``time`` limit, ``cores``, ``memory`` (MB), ``gres``, ``up``."""
    out = run_command(["sinfo", "--noheader", "--format=%R|%l|%c|%m|%G|%a|%t"], timeout=20)
    partitions: dict[str, dict[str, str]] = {}
    for line in out.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 7:
            continue
        name, limit, cores, memory, gres, up, state = fields
        known = partitions.setdefault(
            name, {"time": limit, "cores": "0", "memory": "0", "gres": "", "up": up, "states": ""}
        )
        known["cores"] = str(max(int(known["cores"]), _number(cores)))
        known["memory"] = str(max(int(known["memory"]), _number(memory)))
        known["gres"] += f" {gres}"
        known["states"] += f" {state}"
    return partitions


def _number(text: str) -> int:
    """The number in ``64`` or ``64+``."""
    digits = "".join(c for c in text if c.isdigit())
    return int(digits) if digits else 0


def read_accounts() -> set[str] | None:
    """Accounts of this user; None where the cluster keeps none (or does not say)."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations"]
    command += [f"user={os.environ.get('USER', '')}", "format=account"]
    try:
        out = run_command(command, timeout=20)
    except SlurmError:
        return None
    accounts = {line.strip() for line in out.splitlines() if line.strip()}
    return accounts or None


def look_at_pool(
    name: str,
    pool: PoolSettings,
    partitions: dict[str, dict[str, str]],
    accounts: set[str] | None,
) -> Finding:
    """Whether a pool's partition exists and can take a job of it."""
    title = f"pool {name}"
    if pool.partition is not None and pool.partition not in partitions:
        return (
            title,
            False,
            f"no partition {pool.partition!r}",
            f"set pools: {name}: partition: to one of {', '.join(sorted(partitions))}",
        )
    if pool.account is not None and accounts is not None and pool.account not in accounts:
        return (
            title,
            False,
            f"no account {pool.account!r}",
            f"set pools: {name}: account: to one of {', '.join(sorted(accounts))}",
        )
    if pool.partition is None:
        return (title, True, "the default partition", "")
    facts = partitions[pool.partition]
    cores = pool.threads * pool.workers_per_job if pool.mpi_ranks == 1 else pool.threads
    wrong = []
    if facts["up"] != "up":
        wrong.append((f"the partition is {facts['up']}", "wait, or take another partition"))
    if facts["time"] not in ("infinite", "n/a"):
        limit = parse_walltime(facts["time"])
        if pool.walltime > limit:
            mend = f"set walltime: {facts['time']} or less"
            wrong.append((f"walltime beyond the partition's {facts['time']}", mend))
    if cores > int(facts["cores"]):
        wrong.append((f"{cores} cores on nodes of {facts['cores']}", "ask for fewer threads"))
    if pool.memory is not None and pool.memory * pool.workers_per_job / 1e6 > int(facts["memory"]):
        have = int(facts["memory"]) / 1e3
        wrong.append((f"more memory than a node has ({have:.1f} GB)", "lower memory:"))
    if pool.gpus and "gpu" not in facts["gres"]:
        wrong.append(("GPUs where the partition has none", "take a partition with GPUs"))
    if wrong:
        return (title, False, "; ".join(w for w, _ in wrong), "; ".join(m for _, m in wrong))
    return (title, True, f"partition {pool.partition}, limit {facts['time']}", "")


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
    from mofal.schedule.cluster import scheduler_host

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
        script.write_text(probe_script(pool, base, listener.address, token))
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
    lines += pool.job_extra
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
    return f"#!/bin/bash\n{head}\n{body}{export}exec {command}\n"


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
