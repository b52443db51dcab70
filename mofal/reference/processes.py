"""Processes and their memory, whatever sessions and groups they hide in."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

MEMORY_LIMIT = "MOFAL_WORKER_MEMORY"
"""Environment variable: bytes that a worker and all its descendants may use."""


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one, whatever session or group they are in."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def memory_bytes(processes: Iterable[psutil.Process], *, limit: float | None = None) -> int:
    """Memory of some processes, bytes.

    What they share (libraries, segments of MPI ranks) counts once, as much as the process that has
    most of it. That is cheap and nearly right; where even the sum of all that is resident stays
    below `limit`, it is enough. Beyond, the kernel is asked to share each page out among those that
    have it (the proportional set size, about a tenth of a second for 10 GB): pages that are the
    same since a fork are counted once too, and nobody is ended for memory that is not there.
    """
    there = list(processes)
    resident = private = shared = 0
    for process in there:
        with contextlib.suppress(psutil.Error):
            found = process.memory_info()
            resident += found.rss
            private += found.rss - getattr(found, "shared", 0)
            shared = max(shared, getattr(found, "shared", 0))
    if limit is None or resident <= limit:
        return private + shared
    shared_out = 0
    for process in there:
        with contextlib.suppress(psutil.Error):
            try:
                full = process.memory_full_info()
                shared_out += getattr(full, "pss", full.rss)
            except psutil.AccessDenied:  # it belongs to another user
                shared_out += process.memory_info().rss
    return shared_out


def pool_memory_bytes() -> float | None:
    """What a label's own processes may use: the pool's memory less what this worker itself holds.

    None where no limit is set; the environment variable comes from the job that keeps the worker.
    """
    try:
        limit = float(os.environ.get(MEMORY_LIMIT, ""))
    except ValueError:
        return None
    return max(limit - psutil.Process().memory_info().rss, 0.1 * limit)


def machine_memory_bytes() -> float:
    """Memory that this process may ever have: the machine's, or its control group's if less."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        total = math.inf
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(file).read_text()))
        except (OSError, ValueError):
            continue
    return total
