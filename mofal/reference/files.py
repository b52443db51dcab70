"""Files that are whole or not there: written under a temporary name, flushed, put in place."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path


def write_atomic(file: Path, content: bytes) -> None:
    """Write a file so that a reader finds all of it or what was there before."""
    temporary = _write_temporary(file, content)
    try:
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(file.parent)


def write_new(file: Path, content: bytes) -> bool:
    """Write a file that must not exist yet; return whether it was this call that made it."""
    temporary = _write_temporary(file, content)
    try:
        os.link(temporary, file)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links: the content is addressed by its name, so whoever
        # comes second writes an equally good record.
        if file.exists():
            return False
        os.replace(temporary, file)
    finally:
        with contextlib.suppress(OSError):  # `sweep` removes it later
            temporary.unlink()
    sync_directory(file.parent)
    return True


def _write_temporary(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    # Who may read it, the user's umask says (`tempfile` would say: nobody else).
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    return temporary


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable, where the file system can.

    Raises
    ------
    OSError
        The disk failed (EIO, ENOSPC); a file system that cannot do it is none of that.
    """
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(directory)) from error
