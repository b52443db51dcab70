"""Files with their own checksum in the first line: what a checkpoint is kept in.

A flipped bit in a checkpoint is another training or another walk, and nothing else would tell.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mofal.errors import StoreError
from mofal.files import atomic_path, not_written

MARK = b"mofal sealed 1 "
"""What the first line begins with; the SHA-256 of all that follows the line, in hexadecimal, ends
it."""
_HEAD = len(MARK) + 64 + 1
STARTS_OVER = "starts over"
"""Ends the line that says that work begins anew because its checkpoint cannot be used."""


def digest(content: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_sealed(content: bytes, path: Path) -> None:
    """Write bytes with their checksum, whole or not at all.

    Raises
    ------
    StoreError
        The disk refused; what was there before is still there.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(MARK + digest(content).encode() + b"\n" + content)
    except OSError as error:
        raise not_written(path, error) from error


def read_sealed(path: Path) -> tuple[bytes, str]:
    """Read bytes that `write_sealed` wrote.

    Returns
    -------
    content, fault : bytes, str
        What was written, and ""; or the bytes as they are on disk, and what is wrong with them. A
        file of a version before this one bears no seal: it begins with ``PK``, and whoever reads it
        checks it by the CRC of its zip archive.

    Raises
    ------
    StoreError
        The file is there and the system does not give it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror or error}; type the same command again, or "
            f"delete the file to start over: rm {path}"
        ) from error
    if not raw.startswith(MARK) or raw[_HEAD - 1 : _HEAD] != b"\n":
        return raw, "it has no checksum"
    if digest(raw[_HEAD:]).encode() != raw[len(MARK) : _HEAD - 1]:
        return raw, "its checksum is another"
    return raw[_HEAD:], ""


def starts_over(path: Path, what: str, fault: str) -> str:
    """Line that says why a walk or a training begins anew."""
    return f"{path} cannot be used ({fault}): the {what} {STARTS_OVER}"
