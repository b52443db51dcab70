"""Functions that jobs run in the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def note(path: str, text: str) -> None:
    """Append a short line; lines of several processes do not mix."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def label(*, output: str, seconds: float, trace: str) -> dict[str, Any]:
    """A durable piece of work that says where it runs, and notes its start and end."""
    name = Path(output).name
    note(trace, f"start {name} {os.environ.get('SLURM_JOB_ID')} {time.time():.3f}")
    time.sleep(seconds)
    temporary = f"{output}.{os.getpid()}.tmp"
    Path(temporary).write_text(f'{{"name": "{name}"}}')
    os.replace(temporary, output)
    note(trace, f"durable {name} {os.environ.get('SLURM_JOB_ID')} {time.time():.3f}")
    names = ("SLURM_JOB_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return {each: os.environ.get(each) for each in (*names, "SLURM_NTASKS", "MOFAL_ENDS_AT")}


def meet(*, folder: str, name: str, number: int) -> dict[str, Any]:
    """Wait until so many of these run at the same time; says where this one did."""
    (Path(folder) / f"{name}.here").touch()
    deadline = time.monotonic() + 300
    while len(list(Path(folder).glob("*.here"))) < number:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.05)
    return {each: os.environ.get(each) for each in ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")}


def parallel(*, ranks: int) -> dict[str, Any]:
    """Start an MPI-like program on the whole allocation."""
    command = ["srun", f"--ntasks={ranks}", "bash", "-c", "echo $SLURM_PROCID"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return {"ranks": sorted(out.stdout.split()), "error": out.stderr}


def starts(trace: str | Path) -> Counter[str]:
    """How often each task was started."""
    return Counter(name for name, _ in _lines(trace, "start"))


def durables(trace: str | Path) -> Counter[str]:
    """How often each task said that its result is there."""
    return Counter(name for name, _ in _lines(trace, "durable"))


def first_durable(trace: str | Path) -> dict[str, float]:
    """When each task's result was there for the first time (unix time)."""
    made: dict[str, float] = {}
    for name, when in _lines(trace, "durable"):
        made[name] = min(when, made.get(name, when))
    return made


def started_again(trace: str | Path, made: Mapping[str, float]) -> int:
    """How often something was started whose result had been on disk already."""
    return sum(when > made.get(name, float("inf")) + 0.2 for name, when in _lines(trace, "start"))


def _lines(trace: str | Path, word: str) -> list[tuple[str, float]]:
    path = Path(trace)
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(fields[1], float(fields[3])) for fields in lines if fields[0] == word]
