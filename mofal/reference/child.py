"""Run a reference in a process of its own, so that a limit can be kept and a crash is a status.

`python -m mofal.reference.child DIRECTORY` reads `input.npz` there and writes `output.npz`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.reference.base import Attempt, fail, tail
from mofal.reference.faults import EXIT_MACHINE, machine_error, refuse_full

if TYPE_CHECKING:
    from mofal.reference.ase_calculator import AseReference

# Runs before the command proper, in the same process: it asks the kernel to end the command when
# the process that waits for it is killed, so that a dead worker leaves nothing running behind, and
# to write no core files, which would be as large as the calculation.
_DIE_WITH_PARENT = """
import ctypes, os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
try:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except (OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

GRACE_S = 5.0
"""Seconds between asking a process group to end and ending it."""


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit status, whether the limit ended it, what it wrote."""

    returncode: int
    timed_out: bool
    log: str
    wall_time_s: float
    peak_memory_bytes: int = 0
    out_of_memory: bool = False


def run_process(
    command: Sequence[str],
    *,
    directory: Path,
    time_limit_s: float | None,
    environment: Mapping[str, str] | None = None,
    log_name: str = "log.txt",
    watch_memory: bool = False,
    memory_limit_bytes: float | None = None,
) -> Finished:
    """Run a command in a session of its own; at the limit its whole process group is ended.

    Parameters
    ----------
    command : sequence of str
    directory : Path
        Working directory; holds the log of both output streams.
    time_limit_s : float, optional
    environment : mapping, optional
        On top of this process's environment.
    watch_memory : bool
        Sum the resident memory of its processes as they run (Linux).
    memory_limit_bytes : float, optional
        With `watch_memory`: beyond this they are ended.
    """
    start = time.perf_counter()
    log_file = directory / log_name
    peak = 0
    with open(log_file, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        timed_out = out_of_memory = False
        try:
            while True:
                if watch_memory:
                    peak = max(peak, group_memory_bytes(process.pid))
                    if memory_limit_bytes is not None and peak > memory_limit_bytes:
                        out_of_memory = True
                        break
                left = None
                if time_limit_s is not None:
                    left = time_limit_s - (time.perf_counter() - start)
                    if left <= 0:
                        timed_out = True
                        break
                # Looking costs a few milliseconds; a long calculation is not looked at as often.
                look = 0.2 if time.perf_counter() - start < 30 else 1.0
                waits = [t for t in (left, look if watch_memory else None) if t is not None]
                wait = min(waits) if waits else None
                try:
                    process.wait(wait)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            # Also when the leader has ended: a rank that outlives it would hold its cores.
            end_group(process)
    return Finished(
        returncode=process.returncode,
        timed_out=timed_out,
        log=read_tail(log_file),
        wall_time_s=time.perf_counter() - start,
        peak_memory_bytes=peak,
        out_of_memory=out_of_memory,
    )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and every other one of its session, gently first."""
    pids = session_pids(process.pid)
    if process.poll() is not None and not pids:
        return
    for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        # mpirun puts its ranks in process groups of their own, but leaves them in its session.
        for pid in session_pids(process.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        deadline = time.perf_counter() + patience
        while time.perf_counter() < deadline:
            if process.poll() is not None and not session_pids(process.pid):
                return
            time.sleep(0.02)


def session_pids(session: int) -> list[int]:
    """Processes of a session that are alive (Linux; elsewhere none are found)."""
    found: list[int] = []
    try:
        entries = os.listdir("/proc")
    except OSError:
        return found
    for entry in entries:
        if not entry.isdigit():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_text()
        except OSError:
            continue
        fields = stat[stat.rfind(")") + 2 :].split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(entry))
    return found


def group_memory_bytes(session: int) -> int:
    """Resident memory of all processes of a session now, bytes (Linux; elsewhere zero).

    Private memory is summed. Files (libraries) and memory segments that the ranks share count once,
    as much as the process that has most of them.
    """
    private = files = segments = 0
    for pid in session_pids(session):
        try:
            status = Path("/proc", str(pid), "status").read_text()
        except OSError:
            continue
        found = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB$", status, re.MULTILINE))
        private += int(found.get("RssAnon", 0))
        files = max(files, int(found.get("RssFile", 0)))
        segments = max(segments, int(found.get("RssShmem", 0)))
    return 1024 * (private + files + segments)


def read_tail(file: Path) -> str:
    """Last part of a text file, whatever bytes are in it; empty if there is none."""
    try:
        with open(file, "rb") as text:
            text.seek(0, os.SEEK_END)
            text.seek(max(0, text.tell() - 16384))
            return tail(text.read().decode(errors="replace"))
    except OSError:
        return ""


def describe_exit(returncode: int) -> str:
    """What an exit status means, in words."""
    code = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
    if code:
        try:
            return f"it was ended by {signal.Signals(code).name}"
        except ValueError:
            pass
    return f"it ended with status {returncode}"


KILLS = 3
"""Processes that a calculation may lose to a signal from outside before that is its result."""
STARTED = "started"
"""Exists once a process got as far as its calculation."""
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)


def calculate_in_child(
    reference: AseReference, attempt: Attempt, *, directory: Path, time_limit_s: float | None
) -> Attempt:
    """Make an attempt in a process of its own.

    A process that is killed did not say why: it may have been the memory that it took, or somebody
    who ended it. So it gets another one, and only the third loss is a result.

    Parameters
    ----------
    reference : AseReference
        Found again there by its specification.
    attempt : Attempt
        As `begin` makes it.
    directory : Path
        A temporary directory is made in it and removed when all went well.
    time_limit_s : float, optional
        Wall time, start of the process included.

    Raises
    ------
    OSError
        The machine failed (`mofal.reference.faults`): that is no result.
    """
    start = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    retries: list[Mapping[str, Any]] = []
    while True:
        with tempfile.TemporaryDirectory(
            # The calculation runs in its directory: a relative path would mean another place there.
            prefix="attempt-",
            dir=Path(directory).absolute(),
            ignore_cleanup_errors=True,
        ) as work:
            done, ended = _once(reference, attempt, Path(work), time_limit_s)
        killed = ended.returncode in _FROM_OUTSIDE and not ended.timed_out
        if done.status != "crashed" or not killed or len(retries) + 1 >= KILLS:
            took = time.perf_counter() - start
            return replace(done, retries=tuple(retries), wall_time_s=took)
        retries.append({"failed": "process", "status": done.status, "reason": done.reason})


def _once(
    reference: AseReference, attempt: Attempt, place: Path, time_limit_s: float | None
) -> tuple[Attempt, Finished]:
    with open(place / "input.npz", "wb") as file:
        np.savez(
            file,
            spec=np.array(reference.spec),
            numbers=attempt.numbers,
            positions=attempt.positions,
            cell=attempt.cell,
            pbc=attempt.pbc,
        )
    ended = run_process(
        [sys.executable, "-m", "mofal.reference.child", str(place)],
        directory=place,
        time_limit_s=time_limit_s,
        environment={"OMP_NUM_THREADS": str(reference.threads)},
    )
    more: dict[str, Any] = {"log_tail": ended.log, "wall_time_s": ended.wall_time_s}
    if ended.timed_out:
        return fail(attempt, "timed_out", f"not done after {time_limit_s:g} s", **more), ended
    try:
        with np.load(place / "output.npz", allow_pickle=False) as found:
            result = {name: found[name] for name in found.files}
        status, reason = json.loads(str(result["outcome"]))
    except FileNotFoundError:
        killed = ended.returncode < 0
        if ended.returncode == EXIT_MACHINE or not (killed or (place / STARTED).exists()):
            raise machine_error(last_line(ended.log) or "its process could not start") from None
        refuse_full(place)
        if ended.returncode == 0:
            return fail(attempt, "crashed", "it ended without a result", **more), ended
        return fail(attempt, "crashed", describe_exit(ended.returncode), **more), ended
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        # It is renamed when it is whole: what is not whole now was damaged by the disk.
        raise OSError(errno.EIO, f"a result that cannot be read ({error})", str(place)) from error
    if status != "converged":
        return fail(attempt, status, reason, **more), ended
    if not np.array_equal(result["positions"], attempt.positions):
        return fail(attempt, "inconsistent", "it calculated another structure", **more), ended
    done = replace(
        attempt,
        status=status,
        reason="",
        energy=float(result["energy"]),
        forces=result["forces"],
        stress=result["stress"],
        **more,
    )
    return done, ended


def last_line(log: str) -> str:
    """Last line of a log that says something."""
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")


def main(argv: Sequence[str]) -> int:
    """Read `input.npz` of a directory, calculate, write `output.npz`.

    Returns
    -------
    int
        `EXIT_MACHINE` where the machine failed: the last line of the log says how.
    """
    try:
        _main(argv)
    except Exception as error:  # those of the calculation itself are in its attempt
        with contextlib.suppress(OSError):
            print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return EXIT_MACHINE
    return 0


def _main(argv: Sequence[str]) -> None:
    from ase import Atoms

    from mofal.reference.registry import get_reference

    place = Path(argv[0])
    with np.load(place / "input.npz", allow_pickle=False) as given:
        spec = str(given["spec"])
        atoms = Atoms(
            numbers=given["numbers"],
            positions=given["positions"],
            cell=given["cell"],
            pbc=given["pbc"],
        )
    reference = get_reference(spec)
    (place / STARTED).touch()
    attempt = reference.calculate_here(atoms)  # type: ignore[attr-defined]
    if attempt.log_tail:
        print(attempt.log_tail)
    temporary = place / "output.tmp.npz"
    with open(temporary, "wb") as file:
        np.savez(
            file,
            outcome=np.array(json.dumps([attempt.status, attempt.reason])),
            positions=attempt.positions,
            energy=np.float64(attempt.energy),
            forces=attempt.forces,
            stress=attempt.stress,
        )
    os.replace(temporary, place / "output.npz")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
