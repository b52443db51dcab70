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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mofal.files import write_bytes

#: How a worker ends that lost its scheduler (and may be started again for the next one).
EXIT_LOST = 75
#: What a worker says to its job on its pipe: that it is connected, and, with the status above, that
#: it lost its scheduler. Whoever ends with that status and does not say so has died.
SIGN_CONNECTED, SIGN_LOST = b"1", b"L"
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
        """Make the folders; logs, which hold addresses and what a prologue prints, are private."""
        for folder in (self.root, self.jobs, self.claims):
            folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(OSError):
            self.logs.chmod(0o700)


def lock_of(claims: Path, task: str) -> Path:
    """Held by a worker of a cluster of others as long as it has a task in hand (`foreign.py`)."""
    return claims / f"{task}.lock"


def job_of_worker(worker: str) -> str:
    """Name of the job of worker ``JOB.INDEX.GENERATION`` (see `job.py`)."""
    return worker.rsplit(".", 2)[0]


#: Modes of files: as the user's umask has it, and of what nobody else may read.
SHARED, PRIVATE = 0o666, 0o600


def write_json(path: Path, facts: dict[str, Any], *, mode: int = SHARED) -> None:
    """Write a small file so that a reader sees the old or the new one, never half of it."""
    write_text(path, json.dumps(facts) + "\n", mode=mode)


def write_text(path: Path, text: str, *, mode: int = SHARED) -> None:
    """The same for text; a file with `PRIVATE` mode is nobody else's to read at any time."""
    write_bytes(path, text.encode(), mode=mode, durable=False)


def read_json(path: Path) -> dict[str, Any] | None:
    """The facts in a small file, None if it is not there or cannot be read."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


#: Unix times beyond are no times (the year 5138; what `time.localtime` can say).
LAST_TIME = 1e11


def between(value: Any, least: float, most: float) -> bool:
    """Whether a value is a number, and no boolean, within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


_BEAT: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("time", "started"), lambda value: between(value, 0.0, LAST_TIME)),
    **dict.fromkeys(
        ("beat", "pid", "cores", "slots", "generation"), lambda value: between(value, 0, 2**40)
    ),
    **dict.fromkeys(("host", "process", "slurm_id", "reason"), lambda v: isinstance(v, str)),
    "workers": _words,
    "losses": lambda value: isinstance(value, dict) and _words(list(value.values())),
}
"""What a job says of itself (`job.py`), as others rely on it."""


def read_beat(path: Path) -> dict[str, Any] | None:
    """What a job says of itself, None if it is not there; less what no job would write."""
    facts = read_json(path)
    if facts is None:
        return None
    return {key: value for key, value in facts.items() if key not in _BEAT or _BEAT[key](value)}


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


def last_lines(path: Path, number: int = 12) -> str:
    """The end of a log, indented; a hint where it is empty."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()[-number:]
    except OSError:
        lines = []
    if not lines:
        return f"(nothing in {path})"
    return f"({path})\n" + "\n".join("    " + line for line in lines)
