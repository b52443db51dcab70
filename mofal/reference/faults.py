"""What is a calculation's own failure, and what is the machine's: only the former is a result.

A structure that does not converge fails again tomorrow. A full disk, a file without permission or
a package that is not installed says nothing about the structure: it is an error, without a record,
and the label is made once it is mended.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from pathlib import Path

from mofal.errors import ConfigError, ReferenceError, StoreError

EXIT_MACHINE = 74
"""How a process of its own says that the machine failed it (sysexits.h: EX_IOERR)."""

MACHINE = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENOLCK),
        *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP),
        *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EXDEV),
        *(errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EAGAIN, errno.EBUSY),
        *(errno.ETXTBSY, errno.ENOEXEC, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTCONN),
    }
)
"""Errors of the system that no structure causes."""


def is_machine(error: BaseException) -> bool:
    """Whether an exception is about the machine: its disks, files, permissions or packages.

    A file that is missing is the calculation's own failure (a program that crashed leaves no
    output), unless it is a program that could not be started, or its directory is gone too.
    """
    if isinstance(error, ImportError | ConfigError | StoreError | ReferenceError):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno != errno.ENOENT:
        return error.errno in MACHINE
    frames = traceback.extract_tb(error.__traceback__)
    if frames and Path(frames[-1].filename).name == "subprocess.py":
        return True
    name = error.filename
    if not isinstance(name, str | os.PathLike):
        return False
    return not Path(name).absolute().parent.is_dir()


def machine_in(text: str) -> str:
    """The line of a log that tells of a failure of the machine, "" where none does.

    Programs in processes of their own leave such a failure only in words.
    """
    for line in reversed(text.splitlines()):
        number = re.search(r"\[Errno (\d+)\]", line)
        if number is not None and int(number[1]) in MACHINE:
            return line.strip()
    return ""


def machine_error(reason: str) -> OSError | ReferenceError:
    """Return the error for a failure of the machine that another process met."""
    number = re.search(r"\[Errno (\d+)\] (.*)", reason)
    if number is not None and int(number[1]) in MACHINE:
        return OSError(int(number[1]), number[2])
    return ReferenceError(reason or "its process could not start and left no word")


def refuse_full(directory: Path) -> None:
    """Write a little into a directory, so that what kept a process from leaving a word is seen.

    Raises
    ------
    OSError
        It cannot be written.
    """
    probe = directory / f".probe-{os.getpid()}"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(65536))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
