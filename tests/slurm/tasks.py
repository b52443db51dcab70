"""Functions that jobs run in the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
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


def parallel(*, ranks: int) -> dict[str, Any]:
    """Start an MPI-like program on the whole allocation."""
    command = ["srun", f"--ntasks={ranks}", "bash", "-c", "echo $SLURM_PROCID"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return {"ranks": sorted(out.stdout.split()), "error": out.stderr}


def starts(trace: str | Path) -> Counter[str]:
    """How often each task was started."""
    return _count(trace, "start")


def durables(trace: str | Path) -> Counter[str]:
    """How often each task was made durable."""
    return _count(trace, "durable")


def _count(trace: str | Path, word: str) -> Counter[str]:
    path = Path(trace)
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(f"{word} "))
