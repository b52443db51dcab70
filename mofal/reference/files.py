"""Records: files whose name says what is in them, written once."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from mofal.files import sync_directory, write_temporary


def write_new(file: Path, content: bytes) -> bool:
    """Write a file that must not exist yet; return whether it was this call that made it."""
    temporary = file.with_name(f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    write_temporary(temporary, content, file)
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
