"""Run a reference in a process of its own, so that a limit can be kept and a crash is a status.

`python -m mofal.reference.child DIRECTORY` reads `input.npz` there and writes `output.npz`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mofal.files import atomic_path
from mofal.reference.base import Attempt, fail, tail
from mofal.reference.faults import EXIT_MACHINE, machine_error, refuse_full
from mofal.reference.keeper import GRACE_S
from mofal.reference.processes import descendants, memory_bytes, pool_memory_bytes

KEEPER = Path(__file__).with_name("keeper.py")


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
    """Run a command in a session of its own; all its descendants end with it, or at a limit.

    Parameters
    ----------
    command : sequence of str
    directory : Path
        Working directory; holds the log of both output streams, of a long one head and tail.
    time_limit_s : float, optional
    environment : mapping, optional
        On top of this process's environment.
    watch_memory : bool
        Sum the memory of all its descendants as they run.
    memory_limit_bytes : float, optional
        Beyond this they are ended.
    """
    start = time.perf_counter()
    log_file = directory / log_name
    log_file.write_bytes(b"")
    peak = 0
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(KEEPER), str(os.getpid()), str(log_file), *command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    timed_out = out_of_memory = False
    family: list[psutil.Process] = []
    try:
        while True:
            if watch_memory or memory_limit_bytes is not None:
                family = descendants(process.pid)
                used = memory_bytes(family, limit=memory_limit_bytes)
                peak = max(peak, used)
                if memory_limit_bytes is not None and used > memory_limit_bytes:
                    out_of_memory = True
                    break
            left = None
            if time_limit_s is not None:
                left = time_limit_s - (time.perf_counter() - start)
                if left <= 0:
                    timed_out = True
                    break
            # Looking costs a few milliseconds; a long calculation is not looked at as often.
            look = 0.2 if time.perf_counter() - start < 30 else 0.5
            watched = watch_memory or memory_limit_bytes is not None
            waits = [t for t in (left, look if watched else None) if t is not None]
            wait = min(waits) if waits else None
            try:
                process.wait(wait)
                break
            except subprocess.TimeoutExpired:
                continue
    finally:
        end_family(process, family)
    return Finished(
        returncode=process.returncode,
        timed_out=timed_out,
        log=read_tail(log_file),
        wall_time_s=time.perf_counter() - start,
        peak_memory_bytes=peak,
        out_of_memory=out_of_memory,
    )


def end_family(process: subprocess.Popen[bytes], family: Sequence[psutil.Process] = ()) -> None:
    """End a keeper (see `keeper.py`) and all below it, gently first.

    Parameters
    ----------
    process : Popen
        The keeper.
    family : sequence of psutil.Process
        Who was seen below it: a keeper that was killed itself can no longer tell.
    """
    known = {p.pid: p for p in (*family, *descendants(process.pid))}
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2 * GRACE_S + 1.0)
    known |= {p.pid: p for p in descendants(process.pid)}
    for member in known.values():
        with contextlib.suppress(psutil.Error):  # it compares when the process was started
            member.kill()
    if process.poll() is None:
        process.kill()
        process.wait()


def read_tail(file: Path) -> str:
    """Last part of a text file, whatever bytes are in it; empty if there is none."""
    try:
        with open(file, "rb") as text:
            text.seek(0, os.SEEK_END)
            text.seek(max(0, text.tell() - 16384))
            return tail(text.read().decode(errors="replace"))
    except OSError:
        return ""


def beyond_pool(limit: float) -> str:
    """Say that a label used more than its pool gives."""
    return (
        f"it grew beyond {limit / 1e9:.2f} GB, what its pool's memory leaves it, and was ended; "
        "give the pool more memory, or the label fewer processes"
    )


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
    spec: str, attempt: Attempt, *, threads: int, directory: Path, time_limit_s: float | None
) -> Attempt:
    """Make an attempt in a process of its own.

    A process that is killed did not say why: it may have been the memory that it took, or somebody
    who ended it. So it gets another one, and only the third loss is a result.

    Parameters
    ----------
    spec : str
        Of the reference, which is found again there by it.
    attempt : Attempt
        As `begin` makes it.
    threads : int
        Of the process.
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
            done, ended = _once(spec, attempt, threads, Path(work), time_limit_s)
        killed = ended.returncode in _FROM_OUTSIDE and not ended.timed_out
        if done.status != "crashed" or not killed or len(retries) + 1 >= KILLS:
            took = time.perf_counter() - start
            return replace(done, retries=tuple(retries), wall_time_s=took)
        retries.append({"failed": "process", "status": done.status, "reason": done.reason})


def _once(
    spec: str, attempt: Attempt, threads: int, place: Path, time_limit_s: float | None
) -> tuple[Attempt, Finished]:
    with open(place / "input.npz", "wb") as file:
        np.savez(
            file,
            spec=np.array(spec),
            numbers=attempt.numbers,
            positions=attempt.positions,
            cell=attempt.cell,
            pbc=attempt.pbc,
            state=np.array([attempt.charge, attempt.n_unpaired]),
        )
    limit = pool_memory_bytes()
    ended = run_process(
        [sys.executable, "-m", "mofal.reference.child", str(place)],
        directory=place,
        time_limit_s=time_limit_s,
        memory_limit_bytes=limit,
        environment={"OMP_NUM_THREADS": str(threads)},
    )
    more: dict[str, Any] = {"log_tail": ended.log, "wall_time_s": ended.wall_time_s}
    if ended.timed_out:
        return fail(attempt, "timed_out", f"not done after {time_limit_s:g} s", **more), ended
    if ended.peak_memory_bytes:
        more["memory_peak"] = ended.peak_memory_bytes / 1e9
    if ended.out_of_memory:
        assert limit is not None
        return fail(attempt, "out_of_memory", beyond_pool(limit), **more), ended
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
            info=dict(zip(("charge", "n_unpaired"), given["state"].tolist())),
        )
    reference = get_reference(spec)
    (place / STARTED).touch()
    attempt = reference.calculate_here(atoms)  # type: ignore[attr-defined]
    if attempt.log_tail:
        print(attempt.log_tail)
    with atomic_path(place / "output.npz") as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            outcome=np.array(json.dumps([attempt.status, attempt.reason])),
            positions=attempt.positions,
            energy=np.float64(attempt.energy),
            forces=attempt.forces,
            stress=attempt.stress,
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
