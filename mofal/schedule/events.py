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
from typing import Any

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
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event
