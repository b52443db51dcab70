"""Names of systems: they become directories beside the campaign's own."""

from __future__ import annotations

import re
from collections.abc import Iterable

PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.^-]*"
LONGEST = 60

TAKEN = (
    *("model", "samples.zarr", "labels.zarr", "density.zarr"),
    *("training_features.zarr", "proposal.zarr"),
)
"""What a cycle holds beside the directories of its systems (`mofal.campaign.plan`)."""

RESERVED = (
    *("control", "holdout", "holding", "mechanics", "systems", "schedule", "work", "report"),
    *("progress", "scratch"),
    *("label-records", "isolated-atoms"),
)
"""Directories of a campaign elsewhere: no system's, so that a path says what it is."""

_ENDINGS = (".zarr", ".json", ".yaml", ".npz", ".tmp", ".training")
_BEGINNINGS = ("cycle-",)


def check_name(name: str) -> str:
    """Return a name that can be a directory on any machine.

    Raises
    ------
    ValueError
        It holds a separator or a blank, begins with a dot, or is too long.
    """
    if len(name) > LONGEST:
        raise ValueError(f"{name[:20]!r}... has {len(name)} characters, expected {LONGEST} at most")
    if not re.fullmatch(PATTERN, name):
        raise ValueError(
            f"{name!r} is no name; expected letters, digits, _ . ^ and -, the first a letter or "
            "a digit: it becomes a directory"
        )
    return name


def check_taken(names: Iterable[str]) -> None:
    """Refuse systems that would be written over a cycle's own files.

    Raises
    ------
    ValueError
    """
    for name in names:
        if name in TAKEN:
            raise ValueError(_refusal(name))


def check_new(names: Iterable[str]) -> None:
    """Refuse names that a campaign which begins now had better not have.

    Stricter than `check_taken`, which also holds for campaigns that began earlier: in any case of
    letters, since a directory may move to a file system that does not tell them apart.

    Raises
    ------
    ValueError
    """
    seen: dict[str, str] = {}
    for name in names:
        folded = name.casefold()
        if (
            folded in (*TAKEN, *RESERVED)
            or folded.endswith((*_ENDINGS, "."))
            or folded.startswith(_BEGINNINGS)
        ):
            raise ValueError(_refusal(name))
        if folded in seen:
            raise ValueError(
                f"systems: {seen[folded]!r} and {name!r} differ in case only, and would be one "
                "directory on some file systems; give one of them another name"
            )
        seen[folded] = name


def _refusal(name: str) -> str:
    return (
        f"systems: {name!r} is a name of the campaign's own files and directories; give the "
        "system another one, such as 'my-mof'"
    )
