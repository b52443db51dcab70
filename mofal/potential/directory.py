"""The directory of a model: four files, each with its checksum; written whole or not at all.

Nothing here imports torch: status and plan read models too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofal.data.sealed import digest
from mofal.errors import StoreError
from mofal.files import atomic_path, not_written

FORMAT = 2
"""Version of the directory of a model (`mofal_format` in model.json). Format 1 had no checksums;
it is still read."""

MAIN, WEIGHTS, HISTORY, PROVENANCE = "model.json", "weights.pt", "history.json", "provenance.json"


@dataclass(frozen=True)
class StoredModel:
    """What a model directory holds, checked.

    Attributes
    ----------
    described : dict
        `model.json`: architecture, elements, hash.
    weights : bytes
        A state dict, as torch saves it.
    history : list of dict
        Losses, epoch by epoch.
    provenance : dict
        Where the model comes from.
    """

    described: dict[str, Any]
    weights: bytes
    history: list[dict[str, Any]]
    provenance: dict[str, Any]


def is_model(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a model: one exists only with its `model.json`."""
    return (Path(path) / MAIN).is_file()


def write_directory(
    path: str | os.PathLike[str],
    *,
    described: Mapping[str, Any],
    weights: bytes,
    history: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> Path:
    """Write a model directory, whole or not at all.

    Raises
    ------
    StoreError
        There is something at `path` already, or the disk refused.
    """
    target = Path(path)
    if target.exists():
        raise StoreError(f"{target} exists; a model is never overwritten: give a new directory")
    files = {
        WEIGHTS: weights,
        HISTORY: _json({"epochs": list(history)}),
        PROVENANCE: _json(dict(provenance)),
    }
    main = {
        **described,
        "mofal_format": FORMAT,
        "files": {n: {"size": len(c), "sha256": digest(c)} for n, c in files.items()},
    }
    files[MAIN] = _json({**main, "checksum": _checksum(main)})
    try:
        with atomic_path(target) as temporary:
            temporary.mkdir()
            for name, content in files.items():
                (temporary / name).write_bytes(content)
    except OSError as error:
        raise not_written(target, error) from error
    return target


def read_directory(path: str | os.PathLike[str]) -> StoredModel:
    """Read and check all files of a model directory.

    Raises
    ------
    StoreError
        No model there, one of a newer format, or a file that is missing or damaged.
    """
    where = Path(path)
    described = read_described(where)
    entries = described.get("files", {})
    content = {name: _file(where, name, entries) for name in (WEIGHTS, HISTORY, PROVENANCE)}
    history = _dict(where, HISTORY, content[HISTORY]).get("epochs", [])
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise damaged(where, HISTORY, "it holds no list of epochs")
    provenance = _dict(where, PROVENANCE, content[PROVENANCE])
    return StoredModel(described, content[WEIGHTS], history, provenance)


def read_described(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check `model.json`: architecture, elements, hash, checksums of the other files.

    Raises
    ------
    StoreError
        No model there, one of a newer format, or a `model.json` that is damaged.
    """
    where = Path(path)
    if not is_model(where):
        raise StoreError(
            f"{where} is no model directory (no {MAIN} in it); expected one that "
            "mofal.potential.train or .save wrote"
        )
    described = _dict(where, MAIN, _bytes(where, MAIN))
    found = described.get("mofal_format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise damaged(where, MAIN, f"it is of format {found}")
    if found > FORMAT:
        raise StoreError(
            f"{where} is of format {found}, this version of mofal reads up to {FORMAT}; "
            "upgrade it: pip install --upgrade mofal"
        )
    given = described.pop("checksum", None)
    if found == 1 and given is None and "files" not in described:
        return described
    if given != _checksum(described):
        raise damaged(where, MAIN, "it was changed after it was written")
    return described


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check what a training left about itself: steps, atoms seen, settings.

    Raises
    ------
    StoreError
        As `read_directory`, for `model.json` and `provenance.json`.
    """
    where = Path(path)
    entries = read_described(where).get("files", {})
    return _dict(where, PROVENANCE, _file(where, PROVENANCE, entries))


def damaged(where: Path, name: str, fault: str) -> StoreError:
    """Return the error for a model directory with a damaged file."""
    return StoreError(
        f"{where / name} is damaged: {fault}; restore it from a copy, or delete the model to have "
        f"it trained again: rm -r {where}"
    )


def _file(where: Path, name: str, entries: Any) -> bytes:
    """Content of a file, as long and as summed as `model.json` says."""
    if not entries and name != WEIGHTS and not (where / name).exists():
        return b"{}"  # format 1 did without
    content = _bytes(where, name)
    if not entries:
        return content
    entry = entries.get(name, {})
    if len(content) != entry.get("size"):
        raise damaged(where, name, f"it has {len(content)} bytes, expected {entry.get('size')}")
    if digest(content) != entry.get("sha256"):
        raise damaged(where, name, "it was changed after it was written")
    return content


def _bytes(where: Path, name: str) -> bytes:
    try:
        return (where / name).read_bytes()
    except FileNotFoundError:
        raise damaged(where, name, f"the model lacks {name}") from None
    except OSError as error:
        raise StoreError(f"{where / name} cannot be read: {error.strerror or error}") from error


def _dict(where: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(where, name, f"it is no JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(found, dict):
        raise damaged(where, name, "it holds no JSON object")
    return found


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode("utf-8")


def _checksum(described: Mapping[str, Any]) -> str:
    return digest(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
