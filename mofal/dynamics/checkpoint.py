"""Checkpoints of a walk: one file with its checksum, replaced in one step, read without pickle."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofal.data.sealed import read_sealed, starts_over, write_sealed
from mofal.errors import StoreError

FORMAT = 1


def save_checkpoint(path: Path, identity: str, arrays: dict[str, NDArray], meta: dict) -> None:
    """Write a checkpoint so that whoever reads sees the old one or the new one, never a part.

    Parameters
    ----------
    path
        The file: a line with the checksum, then an ``.npz``; its folder is created.
    identity
        JSON text that says which walk this is.
    arrays
        Numeric arrays by name; none of dtype object.
    meta
        What JSON can hold: step, status, state of the random generator.

    Raises
    ------
    StoreError
        The disk refused.
    """
    entries: dict[str, Any] = {f"array_{name}": value for name, value in arrays.items()}
    entries["format"] = np.int64(FORMAT)
    entries["identity"] = np.array(identity)
    entries["meta"] = np.array(json.dumps(meta))
    buffer = io.BytesIO()
    np.savez(buffer, **entries)
    write_sealed(buffer.getvalue(), path)


def load_checkpoint(
    path: Path, identity: str, *, say: Callable[[str], None] | None = None
) -> tuple[dict[str, NDArray], dict[str, Any]] | None:
    """Read a checkpoint of exactly this walk.

    Parameters
    ----------
    path, identity
        As given to `save_checkpoint`.
    say
        Is given one line where the file is damaged.

    Returns
    -------
    arrays, meta
        As given to `save_checkpoint`; None where no file is, or where the file is damaged (the
        walk then starts over, and is the same walk).

    Raises
    ------
    StoreError
        The file belongs to another walk, or to a newer version, or the system does not give it.
    """
    if not path.exists():
        return None
    raw, fault = read_sealed(path)
    unsealed = bool(fault) and raw.startswith(b"PK")  # of a version before there were seals
    try:
        if fault and not unsealed:
            raise ValueError(fault)
        with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
            found_format = int(stored["format"])
            found_identity = str(stored["identity"])
            meta = json.loads(str(stored["meta"]))
            arrays = {
                name.removeprefix("array_"): stored[name]
                for name in stored.files
                if name.startswith("array_")
            }
            _difference(found_identity, identity)
    except (
        *(OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError),
        *(zipfile.BadZipFile, NotImplementedError, RuntimeError, RecursionError),
    ) as error:
        if say is not None:
            say(starts_over(path, "walk", fault or f"it cannot be read, {type(error).__name__}"))
        return None
    if found_format > FORMAT:
        raise StoreError(
            f"{path} has checkpoint format {found_format}, this version reads up to {FORMAT}: "
            "update mofal, or remove the file to walk again"
        )
    differs = _difference(found_identity, identity)
    if unsealed:
        # Walks did not write down their potential then.
        differs = [d for d in differs if d != "model" or json.loads(found_identity)["model"]]
        if differs and not {"seed", "start frame", "n_steps"} & set(differs):
            # The same walk; what ends one has changed since.
            if say is not None:
                say(starts_over(path, "walk", "a version before wrote it, by other rules"))
            return None
    if differs:
        raise StoreError(
            f"{path} is the checkpoint of another walk (it differs in {', '.join(differs)}): "
            "give another file as out=, or remove this one"
        )
    return arrays, meta


def _difference(found: str, expected: str) -> list[str]:
    """Names of the entries in which two identities differ."""
    one, two = json.loads(found), json.loads(expected)
    # What an identity does not name was not there when it was written.
    return [n for n in sorted({*one, *two}) if (one.get(n) or "") != (two.get(n) or "")]
