"""The log of a campaign's schedule: one JSON object per line, written by the driver alone.

A line is written with one call and a reader skips what it cannot read, so a driver killed while
it writes costs one line. `status.py` tells from this file alone what a campaign is doing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mofal.schedule.files import LAST_TIME, between

#: Version of the lines; a reader skips fields that it does not know.
EVENTS_FORMAT = 1


def schedule_directory(directory: str | os.PathLike[str]) -> Path:
    """Where a campaign keeps what its schedule writes."""
    return Path(directory) / "schedule"


class EventLog:
    """Appends events to ``schedule/events.jsonl`` of a campaign.

    Parameters
    ----------
    directory
        Of the campaign; ``schedule/`` is made inside.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = schedule_directory(directory) / "events.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd: int | None = os.open(self.path, flags, 0o666)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # a driver was killed in the middle of its last line
        self._lost = 0

    def write(self, event: str, /, **facts: Any) -> None:
        """Append one event; `facts` must be JSON. A full disk costs the line, not the campaign."""
        if self._fd is None:
            return
        line = {"t": round(time.time(), 3), "event": event, **facts}
        data = json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n"
        try:
            os.write(self._fd, data)
        except OSError:
            self._lost += 1

    def close(self) -> None:
        """Close the file; writing afterwards does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


#: Bytes of a line; a driver's are some hundred.
MOST_LINE = 2**20
_NUMBERS = {
    **dict.fromkeys(("wall_time", "seconds", "cores", "slots"), (0.0, 1e15)),
    "cost": (1e-6, 1e30),
}
_WORDS = frozenset(
    ("kind", "key", "pool", "job", "worker", "status", "reason", "text", "slurm_id", "dashboard")
)


def read_line(line: bytes) -> dict[str, Any] | None:
    """An event; None for what is none. What has another type than a driver writes is left out.

    The file may have been cut, edited, or mixed up with another: it decides nothing, so that a
    reader that stops at it would lose more than the line.
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    if not between(event.get("t"), 0.0, LAST_TIME):
        return None
    return {
        key: value
        for key, value in event.items()
        if (key not in _NUMBERS or between(value, *_NUMBERS[key]))
        and (key not in _WORDS or isinstance(value, str))
    }


def complete_lines(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Lines that end, and the bytes they take; of one that is too long nothing but its length."""
    while line := stream.readline(MOST_LINE):
        length = len(line)
        while not line.endswith(b"\n"):
            rest = stream.readline(MOST_LINE)
            if not rest:
                return  # being written right now, or cut
            length += len(rest)
            line = rest[-1:]
        yield line, length


def read_events(directory: str | os.PathLike[str], *, start: int = 0) -> Iterator[dict[str, Any]]:
    """Events of a campaign in the order written; lines that cannot be read are skipped.

    Parameters
    ----------
    directory
        Of the campaign.
    start
        Byte to start from (the size of the file at an earlier look).
    """
    path = schedule_directory(directory) / "events.jsonl"
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        stream.seek(start)
        for line, _ in complete_lines(stream):
            event = read_line(line)
            if event is not None:
                yield event
