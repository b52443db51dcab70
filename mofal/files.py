"""Files that are whole or not there: temporary name, flush, rename. Standard library only.

Whatever mofal writes, it writes through here; the one exception is a script for the interpreter of
GPAW, which may have no mofal.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mofal.errors import StoreError

_TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")
"""What temporary files are called: hidden, process id, a random part."""
_SMALL = re.compile(r"\..+\.(?:json|txt)\.\d+")
"""What small files were called until they were whole, by the version before."""


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write JSON under a temporary name, flush it to the disk and rename it into place.

    Raises
    ------
    StoreError
        The disk refused; what was there before is still there.
    """
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise not_written(path, error) from error


def read_json(
    path: str | os.PathLike[str], *, needs: Iterable[str] | None = None, mend: str = ""
) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    path : path
    needs : iterable of str, optional
        It must be an object with these keys.
    mend : str
        What to do about a damaged one; default: delete it.

    Raises
    ------
    StoreError
        It is missing, cannot be read, is no JSON, or lacks what it needs.
    """
    mend = mend or "delete it to have it made again"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise StoreError(f"{path} is damaged ({reason}); {mend}") from None
    if needs is not None:
        lacking = [k for k in needs if not (isinstance(content, dict) and k in content)]
        if lacking or not isinstance(content, dict):
            what = f"it lacks {', '.join(lacking)}" if lacking else "it is no object"
            raise StoreError(f"{path} is damaged ({what}); {mend}")
    return content


def not_written(path: str | os.PathLike[str], error: OSError) -> StoreError:
    """Return the error for a disk that refused, with what can be done about it."""
    reason = error.strerror or str(error) or type(error).__name__
    mend = {
        errno.ENOSPC: "; free some space (df -h) and start again",
        errno.EDQUOT: "; free some of your quota and start again",
        errno.EFBIG: "; raise the limit on the size of files (ulimit -f) and start again",
        errno.EACCES: "; give yourself the right to write there",
        errno.EROFS: "; choose another directory",
        errno.EEXIST: "; a file is in the place of a directory above it",
        errno.ENOTDIR: "; a file is in the place of a directory above it",
    }.get(error.errno or 0, "")
    return StoreError(f"{path} could not be written: {reason}{mend}")


def write_bytes(
    path: str | os.PathLike[str], content: bytes, *, mode: int = 0o666, durable: bool = True
) -> None:
    """Write a file so that a reader finds all of it, or what was there before.

    Parameters
    ----------
    path : path
        Directories above it are made.
    content : bytes
    mode : int
        Who may read it, less what the user's umask says; 0600: nobody else, at any time.
    durable : bool
        Flush it to the disk. False: for what says how things stand, and is written often.

    Raises
    ------
    OSError
        The disk refused; it names the file.
    """
    final = Path(path)
    temporary = _temporary(final)
    write_temporary(temporary, content, final, mode=mode, durable=durable)
    try:
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_directory(final.parent)


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def write_temporary(
    temporary: Path, content: bytes, final: Path, *, mode: int = 0o666, durable: bool = True
) -> None:
    """Write a new file that is going to become `final`; nothing is left of it where that fails.

    Raises
    ------
    OSError
        The disk refused; it names `final`.
    """
    temporary.parent.mkdir(parents=True, exist_ok=True)
    # Who may read it, the user's umask says (`tempfile` would say: nobody else).
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            if durable:
                os.fsync(out.fileno())
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(final)) from error
        raise


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


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `target`; what is written there becomes `target`, or nothing.

    Works for files and for directories. A target that exists is replaced if it is a file, and left
    alone (the new one is dropped) if it is a directory: a finished group is never changed. An empty
    directory does not count as finished. Who may read it, the user's umask says.

    Parameters
    ----------
    target
        Final path.
    private
        A file that nobody else may read (0600), while it is written and afterwards.

    Raises
    ------
    OSError
        The disk refused, or a directory would take the place of a file.
    """
    final = Path(target)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(final)
    try:
        if private:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        if temporary.is_dir():
            _flush_tree(temporary)
            try:
                os.rename(temporary, final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        else:
            _flush(temporary)
            os.replace(temporary, final)
        _flush(final.parent)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            _flush(Path(directory) / name)
        _flush(Path(directory))


def is_temporary(name: str) -> bool:
    """Whether a name is one that mofal gives to what it has not finished writing."""
    return bool(_TEMPORARY.fullmatch(name) or _SMALL.fullmatch(name))


def is_being_written(path: Path, *, elsewhere_s: float = 0.0) -> bool:
    """Whether the process that began a temporary file may still be at work.

    Parameters
    ----------
    path : Path
        A name that holds a process id, as `atomic_path` makes it.
    elsewhere_s : float
        So old must a file be to be left over where processes of other machines write too.
    """
    try:
        made = path.lstat().st_mtime
    except OSError:
        return False
    if elsewhere_s and time.time() - made < elsewhere_s:
        return True
    number = re.search(r"[.-](\d+)(?:[.-][0-9a-z_]{8}(?:\.tmp)?)?$", path.name)
    if number is None:
        return False
    try:
        # The folder of a process is as old as the process: an id may be another's by now.
        return os.stat(f"/proc/{number[1]}").st_mtime <= made + 1.0
    except OSError:
        return False


def remove_leftovers(
    directory: str | os.PathLike[str], *, spare: Callable[[Path], bool] | None = None
) -> list[Path]:
    """Delete what killed processes left half-written below a directory; return what went.

    Only names that mofal gives to what is not finished are touched. Call it only while holding the
    lock of the campaign: what another process is writing looks the same. Workers that outlived
    their driver may be writing all the same, so `spare` says what is not to be touched.
    """
    gone = []
    for parent, directories, files in os.walk(directory):
        for name in sorted([*directories, *files]):
            path = Path(parent) / name
            if is_temporary(name) and not (spare is not None and spare(path)):
                _remove(path)
                gone.append(path)
        directories[:] = [d for d in directories if not is_temporary(d)]
    return sorted(gone)
