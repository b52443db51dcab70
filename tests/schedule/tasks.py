"""Functions that workers run in the tests; they import this module by its name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def write(path: str | Path, text: str = "{}") -> None:
    """Write a file atomically."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def label(*, output: str, seconds: float = 0.0, value: int = 0, trace: str = "") -> dict[str, Any]:
    """A cheap label; `trace` gets a line when it starts and one when it is durable."""
    note(trace, f"start {Path(output).name} {os.getpid()}")
    time.sleep(seconds)
    write(output, json.dumps({"value": value**2}))
    note(trace, f"durable {Path(output).name} {os.getpid()}")
    return {"value": value**2}


def note(path: str, text: str) -> None:
    """Append a line; short lines of several processes do not mix."""
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, f"{text}\n".encode())
        os.close(fd)


def environment(*, names: list[str]) -> dict[str, Any]:
    """Environment variables of the worker."""
    return {name: os.environ.get(name) for name in names}


def torch_threads() -> dict[str, Any]:
    """Threads that torch and BLAS would use."""
    import numpy  # noqa: F401  (loads its BLAS)
    import threadpoolctl
    import torch

    return {
        "torch": torch.get_num_threads(),
        "pools": [info["num_threads"] for info in threadpoolctl.threadpool_info()],
    }


def fail(*, text: str = "no luck") -> None:
    """Raise."""
    raise ValueError(text)


def silent() -> None:
    """Return without writing what was promised."""


def summary() -> dict[str, Any]:
    """A summary with lists and tuples in it."""
    return {"list": (1, [2, 3]), "number": 0.1}


def unprintable() -> dict[str, Any]:
    """A summary that JSON cannot hold."""
    return {"data": object()}


def complain(*, megabytes: int) -> None:
    """Raise an exception that has a lot to say."""
    raise ValueError("x" * megabytes * 1_000_000)


def die(*, number: int = signal.SIGKILL, trace: str = "", seconds: float = 0.0) -> None:
    """End the worker, after a while."""
    note(trace, f"die {os.getpid()}")
    time.sleep(seconds)
    os.kill(os.getpid(), number)
    time.sleep(60)


def end_with(*, status: int) -> None:
    """End the worker with an exit status."""
    os._exit(status)


def end_job() -> None:
    """End the job that keeps the worker."""
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def die_once(*, marker: str, output: str) -> dict[str, Any]:
    """End the first worker that runs it."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    write(output)
    return {}


def hoard(*, megabytes: int) -> None:
    """Take memory and keep it."""
    data = bytearray(megabytes * 1_000_000)
    for position in range(0, len(data), 4096):
        data[position] = 1
    time.sleep(60)


def start_program(*, output: str) -> None:
    """Start a program that would outlive this process, say which, and wait for it."""
    program = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True
    )
    write(output, str(program.pid))
    program.wait()


def dask_pid() -> dict[str, Any]:
    """Where Dask computes what a task asks it for: the process, beside that of the task."""
    import dask

    (pid,) = dask.compute(dask.delayed(os.getpid)())
    return {"task": os.getpid(), "computed": pid, "scheduler": dask.config.get("scheduler")}


def leave_behind(*, folder: str, megabytes: int, number: int, seconds: float) -> dict[str, Any]:
    """Start programs that hide: each forks twice into a session of its own and takes memory."""
    code = (
        "import os, sys, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "data = bytearray(int(sys.argv[1]) * 1_000_000); data[::4096] = b'x' * len(data[::4096])\n"
        "open(sys.argv[2], 'w').write(str(os.getpid()))\n"
        "time.sleep(300)\n"
    )
    for index in range(number):
        path = Path(folder, f"{index}.hidden")
        subprocess.run([sys.executable, "-c", code, str(megabytes), str(path)], check=True)
        while not path.exists() or not path.read_text():
            time.sleep(0.02)
    time.sleep(seconds)
    return {}


def chatter(*, megabytes: int) -> dict[str, Any]:
    """Print a lot, from Python and from below it."""
    line = b"x" * 999 + b"\n"
    for _ in range(500 * megabytes):
        os.write(1, line)
        sys.stderr.write(line.decode())
    print("the end", flush=True)
    return {}


def hold(*, output: str, until: str, trace: str = "") -> None:
    """Keep a worker busy until a file is there."""
    note(trace, f"start {Path(output).name} {os.getpid()}")
    while not Path(until).exists():
        time.sleep(0.05)
    write(output)


def nap(seconds: float) -> int:
    """One task of a graph: sleep, and say where."""
    time.sleep(seconds)
    return os.getpid()


def wide(*, output: str, number: int = 12, rounds: int = 1, trace: str = "") -> dict[str, Any]:
    """Graphs of naps, one after the other, each with what is kept from the one before."""
    import dask

    from mofal.schedule import spread

    note(trace, f"start {Path(output).name} {os.getpid()}")
    pids: list[int] = []
    with spread() as shared:
        kept = dask.delayed(nap, pure=False)(0.0).persist()
        for _ in range(rounds):
            parts = [dask.delayed(nap, pure=False)(0.1 + 0 * k) for k in range(number)]
            kept = dask.delayed(max)(kept, *parts).persist()
            pids += dask.compute(*parts)
            kept.compute()
    write(output, json.dumps({"pids": pids, "own": os.getpid(), "shared": shared}))
    note(trace, f"durable {Path(output).name} {os.getpid()}")
    return {"processes": len(set(pids)), "own": os.getpid() in pids, "shared": shared}
