"""Keeps one command: its log within bounds, its descendants together, until all of them have ended.

`python -I -S keeper.py PARENT LOG COMMAND ...` is started between the process that waits and the
command. It adopts what the command leaves behind (sessions of their own and double forks included),
ends all of it when the command ends, when it is told to or when the process that waits is killed,
and takes the command's exit status. Standard library only, mofal not among it: it starts in
milliseconds, and is small enough that a system short of memory ends others first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import select
import signal
import sys
import time
from collections.abc import Sequence

HEAD, TAIL = 64 * 1024, 256 * 1024
"""Bytes of a log that are kept from its start, and at least from its end."""
GRACE_S = 5.0
"""Seconds between asking processes to end and ending them."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_MARK = b"\n[... %18d bytes of this log were not kept ...]\n"
_MARK_READ = re.compile(rb"\n\[\.\.\. +(\d+) bytes of this log were not kept \.\.\.\]\n")


class BoundedLog:
    """A file that keeps the first and the last part of what is written to it.

    It never holds more than `head` + 2 `tail` bytes and a line that says what is left out. One that
    exists is continued. What cannot be written, on a full disk say, is left out.

    Parameters
    ----------
    path : path
    head, tail : int
        Bytes.
    """

    def __init__(self, path: str | os.PathLike[str], *, head: int = HEAD, tail: int = TAIL) -> None:
        self.head, self.tail = head, tail
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._size = os.fstat(self._fd).st_size
        self._left_out = 0
        self._mark = b""  # as it stands in the file
        found = _MARK_READ.match(os.pread(self._fd, len(_MARK % 0), head))
        if found:
            self._left_out, self._mark = int(found.group(1)), found.group(0)
        with contextlib.suppress(OSError):
            self._shrink()  # one that was written without bounds

    def write(self, content: bytes) -> None:
        """Append; never raises."""
        room = self.head + 2 * self.tail
        while content:
            # Whatever of one piece could not be in the end is not written at all.
            part, content = content[: self.tail], content[self.tail :]
            try:
                if self._size + len(part) > room:
                    self._shrink()
                written = os.pwrite(self._fd, part, self._size)
            except OSError:
                written = 0
            self._size += written
            self._left_out += len(part) - written

    def _shrink(self) -> None:
        """Move the last part to where the first one ends."""
        start = self.head + len(self._mark)
        if self._size <= start + self.tail:
            return
        last = os.pread(self._fd, self.tail, self._size - self.tail)
        left_out = self._left_out + self._size - start - len(last)
        mark = _MARK % left_out
        os.ftruncate(self._fd, self.head)
        self._size = self.head
        self._size += os.pwrite(self._fd, mark + last, self.head)
        self._left_out, self._mark = left_out, mark

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(option, value)


def _descendants() -> list[int]:
    """Processes below this one that are alive; all it adopted are."""
    below: dict[int, list[int]] = {}
    try:
        entries = os.listdir("/proc")
    except OSError:
        return []
    for entry in entries:
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{entry}/stat", "rb") as stream:
                    state, parent = stream.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    below.setdefault(int(parent), []).append(int(entry))
    found, todo = [], [os.getpid()]
    while todo:
        new = below.get(todo.pop(), [])
        found += new
        todo += new
    return found


class _Keeper:
    def __init__(self, log: str) -> None:
        self.log = BoundedLog(log)
        self.asked = False
        self.status: int | None = None
        self.command = 0
        self.output, self._write = os.pipe()
        os.set_blocking(self.output, False)
        self._wake, wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def start(self, command: Sequence[str]) -> None:
        keeper = os.getpid()
        self.command = os.fork()
        if self.command:
            os.close(self._write)
            return
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == keeper:
                os.dup2(self._write, 1)
                os.dup2(self._write, 2)
                os.execvp(command[0], list(command))
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        finally:
            os._exit(127)

    def look(self, timeout: float) -> None:
        """Take what was written, and note who has ended."""
        watched = [self._wake] + ([self.output] if self.output >= 0 else [])
        ready = select.select(watched, [], [], timeout)[0]
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        if self.output in ready:
            self._read()
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self.command:
                    self.status = status

    def _read(self) -> bool:
        try:
            content = os.read(self.output, 1 << 20)
        except BlockingIOError:
            return False
        if content:
            self.log.write(content)
            return True
        os.close(self.output)
        self.output = -1
        return False

    def end(self) -> None:
        """End all descendants, gently first."""
        for number, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
            deadline = time.monotonic() + patience
            told: set[int] = set()
            while time.monotonic() < deadline:
                self.look(0.0)
                alive = _descendants()
                if not alive:
                    return
                for pid in set(alive) - told:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
                told.update(alive)
                self.look(0.02)

    def rest(self) -> None:
        """Take what is left in the pipe."""
        while self.output >= 0 and self._read():
            pass
        self.log.close()


def main(argv: Sequence[str]) -> int:
    """Keep a command; returns its exit status, or ends by the signal that ended it."""
    parent, log, command = int(argv[0]), argv[1], list(argv[2:])
    # No core files, which would be as large as the calculation.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    keeper = _Keeper(log)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was killed before the kernel was asked
        return 1
    keeper.start(command)
    while keeper.status is None and not keeper.asked:
        keeper.look(1.0)
    keeper.end()
    keeper.rest()
    if keeper.status is None:
        return 128 + signal.SIGKILL
    if os.WIFSIGNALED(keeper.status):
        number = os.WTERMSIG(keeper.status)
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return os.waitstatus_to_exitcode(keeper.status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
