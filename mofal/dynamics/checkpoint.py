"""Checkpoints of a walk: one file, replaced in one step, read without pickle."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofal.errors import StoreError

FORMAT = 1


def save_checkpoint(path: Path, identity: str, arrays: dict[str, NDArray], meta: dict) -> None:
    """Write a checkpoint so that whoever reads sees the old one or the new one, never a part.

    Parameters
    ----------
    path
        The file (``.npz``); its folder is created.
    identity
        JSON text that says which walk this is.
    arrays
        Numeric arrays by name; none of dtype object.
    meta
        What JSON can hold: step, status, state of the random generator.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            entries: dict[str, Any] = {f"array_{name}": value for name, value in arrays.items()}
            entries["format"] = np.int64(FORMAT)
            entries["identity"] = np.array(identity)
            entries["meta"] = np.array(json.dumps(meta))
            np.savez(stream, **entries)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, identity: str) -> tuple[dict[str, NDArray], dict[str, Any]] | None:
    """Read a checkpoint of exactly this walk.

    Returns
    -------
    arrays, meta
        As given to `save_checkpoint`; None where no file is, or where the file is damaged (the
        walk then starts over, and is the same walk).

    Raises
    ------
    StoreError
        The file belongs to another walk, or to a newer version.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found_format = int(stored["format"])
            found_identity = str(stored["identity"])
            meta = json.loads(str(stored["meta"]))
            arrays = {
                name.removeprefix("array_"): stored[name]
                for name in stored.files
                if name.startswith("array_")
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if found_format > FORMAT:
        raise StoreError(
            f"{path} has checkpoint format {found_format}, this version reads up to {FORMAT}: "
            "update mofal, or remove the file to walk again"
        )
    if found_identity != identity:
        raise StoreError(
            f"{path} is the checkpoint of another walk ({_difference(found_identity, identity)}): "
            "give another file as out=, or remove this one"
        )
    return arrays, meta


def _difference(found: str, expected: str) -> str:
    """Which entries of two identities differ, in a few words."""
    one, two = json.loads(found), json.loads(expected)
    names = [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    return "it differs in " + ", ".join(names)
