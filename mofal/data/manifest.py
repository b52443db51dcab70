"""The manifest of a group: which files it has, how long they are, what is in them.

A Zarr reader takes a shard that is not there for fill values. The manifest is how a lost shard
becomes an error instead of a force of zero.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mofal.data.variables import FORMAT
from mofal.errors import StoreError
from mofal.files import read_json

MANIFEST = "manifest/zarr.json"
"""The manifest is the attributes of an empty Zarr group of that name, so that every Zarr reader
passes over it in silence."""
SMALL = 2**16
"""Files up to this size are checked by content whenever a group is opened, larger ones by size
(a flipped byte in them is met by the CRC32C of the chunk when it is read)."""


def how_to_mend(group: Path) -> str:
    """Return the end of every message about a damaged group."""
    return f"restore {group} from a copy, or delete it to have this stage run again"


def write_manifest(group: Path) -> None:
    """Write the manifest of a group that is otherwise finished."""
    # A worker that was killed while it wrote a shard leaves a file that nothing refers to.
    for stray in group.rglob("*.partial"):
        stray.unlink(missing_ok=True)
    files = sorted(p for p in group.rglob("*") if p.is_file())
    entries = {
        p.relative_to(group).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)}
        for p in files
    }
    content = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"mofal_format": FORMAT, "files": entries, "checksum": _checksum(entries)},
    }
    target = group / MANIFEST
    target.parent.mkdir()
    target.write_text(json.dumps(content, indent=0, sort_keys=True), encoding="utf-8")


def check_group(path: str | os.PathLike[str], *, full: bool = False) -> None:
    """Compare a group with its manifest.

    Parameters
    ----------
    path : path
    full : bool
        Read every file; default: large files by size, small ones and all metadata by content.

    Raises
    ------
    StoreError
        It is no group of mofal, is of a newer format, or a file is missing, truncated or changed.
    """
    read_manifest(path, full=full)


def read_manifest(path: str | os.PathLike[str], *, full: bool = False) -> dict[str, Any]:
    """Check a group as `check_group` does; return the attributes of its manifest."""
    group = Path(path)
    mend = how_to_mend(group)
    try:
        manifest = _read(group)
        for name, entry in manifest["files"].items():
            _check_file(group, name, entry, full=full)
        _refuse_strangers(group, manifest["files"])
    except (OSError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{group} cannot be checked ({error!r}); {mend}") from error
    return manifest


def has_manifest(group: Path) -> bool:
    """Tell whether a directory is a group that mofal has finished."""
    return (group / MANIFEST).is_file()


def _read(group: Path) -> dict[str, Any]:
    mend = how_to_mend(group)
    if not group.exists():
        raise StoreError(f"{group} does not exist")
    if not group.is_dir():
        raise StoreError(f"{group} is a file; expected the directory of a group")
    if not (group / MANIFEST).is_file():
        if not any(group.iterdir()):
            raise StoreError(f"{group} is an empty directory; delete it: rmdir {group}")
        if not (group / "zarr.json").is_file():
            raise StoreError(
                f"{group} is no Zarr v3 group (it has no zarr.json): it is another program's, "
                f"or damaged; {mend}"
            )
        raise StoreError(
            f"{group} has no manifest: it was not written by mofal, or is damaged; {mend}"
        )
    damaged = StoreError(f"{group} is damaged: its manifest cannot be read; {mend}")
    try:
        manifest = read_json(group / MANIFEST)["attributes"]
    except (StoreError, KeyError, TypeError):
        raise damaged from None
    if not isinstance(manifest, dict):
        raise damaged
    refuse_format(group, manifest.get("mofal_format"))
    if not isinstance(manifest.get("files"), dict) or "zarr.json" not in manifest["files"]:
        raise damaged
    if manifest.get("checksum") != _checksum(manifest["files"]):
        raise StoreError(
            f"{group} is damaged: its manifest was changed after it was written; {mend}"
        )
    return manifest


def _check_file(group: Path, name: str, entry: dict[str, Any], *, full: bool) -> None:
    file = group / name
    mend = how_to_mend(group)
    if not file.is_file():
        raise StoreError(f"{group} is damaged: {name} is missing; {mend}")
    size = file.stat().st_size
    if size != entry["size"]:
        raise StoreError(
            f"{group} is damaged: {name} has {size} bytes, expected {entry['size']}; {mend}"
        )
    if (full or size <= SMALL) and _sha256(file) != entry["sha256"]:
        raise StoreError(f"{group} is damaged: {name} was changed after it was written; {mend}")


def _refuse_strangers(group: Path, files: dict[str, Any]) -> None:
    for entry in os.scandir(group):
        metadata = f"{entry.name}/zarr.json"
        if metadata not in files and metadata != MANIFEST and (group / metadata).exists():
            raise StoreError(
                f"{group} is damaged: {entry.name} was added after it was written; "
                f"{how_to_mend(group)}"
            )


def refuse_format(group: Path, found: Any) -> None:
    """Raise unless this version of mofal reads that format."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise StoreError(
            f"{group} states no mofal_format (found {found!r}): it is damaged, or another "
            f"program's; {how_to_mend(group)}"
        )
    if found > FORMAT:
        raise StoreError(
            f"{group} has format {found}, this mofal reads up to {FORMAT}; "
            "update it: pip install --upgrade mofal"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _checksum(entries: dict[str, Any]) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
