"""Names and atomic writes of the small files that driver, scheduler, jobs and workers share.

Standard library only: every process of a campaign imports this, the lightest ones too.

``schedule/`` of a campaign holds

- ``events.jsonl``: what happened (`events.py`);
- ``scheduler.json``: where the scheduler listens; a new one has a new `id`;
- ``jobs/NAME.json``: what job NAME is to do; ``NAME.beat.json``: what it says of itself;
  ``NAME.end``: it shall end; ``NAME.sh``: its script;
- ``claims/TASK.json``: a worker has this task in hand;
- ``tls/``, ``logs/``, ``failures/``, ``quarantine/``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

#: How a worker says that it lost its scheduler (and may be started again for the next one).
EXIT_LOST = 75
#: Environment variable: how long a driver waits for another one to leave (s).
TAKEOVER = "MOFAL_TAKEOVER"


def takeover_file(directory: str | os.PathLike[str]) -> Path:
    """Exists while a successor asks for the campaign of this directory."""
    return Path(directory) / "schedule" / "takeover"


class Layout:
    """Paths inside ``schedule/``."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    @property
    def scheduler_file(self) -> Path:
        """Where the scheduler listens."""
        return self.root / "scheduler.json"

    @property
    def jobs(self) -> Path:
        """Folder of job files."""
        return self.root / "jobs"

    @property
    def logs(self) -> Path:
        """Folder of logs."""
        return self.root / "logs"

    @property
    def claims(self) -> Path:
        """Folder of claims."""
        return self.root / "claims"

    @property
    def tls(self) -> Path:
        """Folder of keys, nobody else's to read."""
        return self.root / "tls"

    def job(self, name: str) -> Path:
        """What a job is to do."""
        return self.jobs / f"{name}.json"

    def beat(self, name: str) -> Path:
        """What a job says of itself."""
        return self.jobs / f"{name}.beat.json"

    def end(self, name: str) -> Path:
        """Exists when the job shall end."""
        return self.jobs / f"{name}.end"

    def log(self, name: str) -> Path:
        """Log of a job or of a worker."""
        return self.logs / f"{name}.log"

    def claim(self, task: str) -> Path:
        """Claim on a task."""
        return self.claims / f"{task}.json"

    def make(self) -> None:
        """Make the folders."""
        for folder in (self.root, self.jobs, self.logs, self.claims):
            folder.mkdir(parents=True, exist_ok=True)


def job_of_worker(worker: str) -> str:
    """Name of the job of worker ``JOB.INDEX.GENERATION`` (see `job.py`)."""
    return worker.rsplit(".", 2)[0]


def write_json(path: Path, facts: dict[str, Any], *, mode: int = 0o644) -> None:
    """Write a small file so that a reader sees the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    content = json.dumps(facts).encode() + b"\n"
    try:
        while content:  # a disk that is nearly full takes a part
            content = content[os.write(fd, content) :]
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The facts in a small file, None if it is not there or cannot be read."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def process_start(pid: int) -> str:
    """Kernel start time of a process ("" if there is none): a pid alone may be another's now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def end_with_parent(parent: int, *, number: int = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent dies (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the kernel was asked
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Have the kernel give this process what its descendants leave behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
