"""One driver per campaign: an operating-system lock, and a heartbeat for the other hosts.

The lock of a driver that is killed goes with its process. Where the file system does not carry
locks from host to host, the heartbeat does: a driver on another host whose heart has not beaten
for a while is taken for dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from mofal.errors import CampaignError
from mofal.schedule.files import (
    LAST_TIME,
    TAKEOVER,
    between,
    process_start,
    read_json,
    takeover_file,
    write_json,
)

#: Seconds between two heartbeats, and the age at which one from another host counts as stopped.
BEAT_INTERVAL = 10.0
STALE_AFTER = 90.0


class CampaignLock:
    """Context manager: the one driver of a campaign directory.

    Parameters
    ----------
    directory
        Of the campaign.
    stale_after
        Seconds after which a silent driver on another host is taken for dead.
    beat_interval
        Seconds between two heartbeats.
    wait
        Ask a driver that holds the campaign to leave, and wait for that (s); None: what
        ``MOFAL_TAKEOVER`` says, which `handover.py` sets for successors.

    Raises
    ------
    CampaignError
        On entering, when another driver holds the campaign; says where it runs and since when.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        stale_after: float = STALE_AFTER,
        beat_interval: float = BEAT_INTERVAL,
        wait: float | None = None,
    ) -> None:
        self.path = Path(directory) / "driver.lock"
        self.beat = Path(directory) / "driver.json"
        self._stale_after = stale_after
        self._beat_interval = beat_interval
        self._wait = float(os.environ.get(TAKEOVER, 0.0)) if wait is None else wait
        self._fd: int | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> CampaignLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def holder(self) -> dict[str, Any]:
        """What the last driver wrote of itself, {} if none did."""
        facts = read_json(self.beat) or {}
        known = (
            between(facts.get("pid"), 0, 2**31)
            and between(facts.get("time"), 0.0, LAST_TIME)
            and isinstance(facts.get("host"), str)
            and isinstance(facts.get("started"), str)
        )
        return facts if known else {}

    def acquire(self) -> None:
        """Become the driver, or raise."""
        request = takeover_file(self.path.parent)
        deadline = time.monotonic() + self._wait
        while True:
            try:
                self._acquire_now()
                break
            except CampaignError:
                if time.monotonic() >= deadline:
                    request.unlink(missing_ok=True)
                    raise
            request.parent.mkdir(parents=True, exist_ok=True)
            request.touch()
            time.sleep(0.2)
        request.unlink(missing_ok=True)

    def _acquire_now(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise CampaignError(self._refusal("holds its lock")) from error
        except OSError:
            pass  # a file system without locks: the heartbeat alone decides
        holder = self.holder()
        if not holder.get("ended") and self._alive(holder):
            os.close(fd)
            raise CampaignError(self._refusal("still runs"))
        self._fd = fd
        self._since = time.time()
        self._beat_once()
        self._stop.clear()
        self._thread = threading.Thread(target=self._beats, name="mofal-heartbeat", daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """Whether a driver has the campaign now, this process or another."""
        holder = self.holder()
        if not holder or holder.get("ended"):
            return False
        return self._is_self(holder) or self._alive(holder)

    def _alive(self, holder: dict[str, Any]) -> bool:
        """Whether the driver that wrote the heartbeat is there, as far as can be told."""
        if not holder:
            return False
        if holder.get("host") == socket.gethostname():
            # The same process may take the campaign again; a reused pid has another start time.
            started = process_start(int(holder.get("pid", 0)))
            return started != "" and started == holder.get("started") and not self._is_self(holder)
        return time.time() - float(holder.get("time", 0.0)) < self._stale_after

    @staticmethod
    def _is_self(holder: dict[str, Any]) -> bool:
        return holder.get("pid") == os.getpid()

    def _refusal(self, what: str) -> str:
        holder = self.holder()
        where = "another driver"
        if holder:
            age = max(time.time() - float(holder.get("time", 0.0)), 0.0)
            where = (
                f"the driver with pid {holder.get('pid')} on {holder.get('host')} "
                f"(last heartbeat {age:.0f} s ago)"
            )
        return (
            f"found {self.path.parent} in use: {where} {what}; expected one driver at a time: wait "
            f"for it (`mofal status {self.path.parent}`) or end it there"
        )

    def _beat_once(self) -> None:
        write_json(
            self.beat,
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": process_start(os.getpid()),
                "since": self._since,
                "time": time.time(),
                "job": os.environ.get("SLURM_JOB_ID", ""),
            },
        )

    def _beats(self) -> None:
        while not self._stop.wait(self._beat_interval):
            try:
                self._beat_once()
            except OSError:
                continue  # a full disk or a file system that hiccups: the next beat tells

    def release(self) -> None:
        """Stop being the driver."""
        if self._fd is None:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):  # a full disk: the lock itself goes all the same
            write_json(self.beat, {**self.holder(), "ended": True, "time": time.time()})
        os.close(self._fd)
        self._fd = None
