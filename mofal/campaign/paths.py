"""Where things of a campaign are, relative to its directory; nothing here touches a disk."""

from __future__ import annotations

from pathlib import PurePosixPath

from mofal.campaign.config import HoldingSettings

HOLDOUT = "holdout"


def place(cycle: int, *parts: str) -> str:
    """Path of something of a cycle: ``cycle-003/...``."""
    return str(PurePosixPath(f"cycle-{cycle:03d}", *parts))


def seed(source: int, name: str) -> str:
    """Path of something of a source of seed data; the first has no folder of its own."""
    return place(0, *((f"seed-{source + 1}",) if source else ()), name)


def model(cycle: int) -> str:
    """Directory of the model that a cycle ends with."""
    return place(cycle, "model")


def marker(relative: str) -> str:
    """Path that is there if and only if something of a campaign is: of a model its `model.json`."""
    return f"{relative}/model.json" if PurePosixPath(relative).name == "model" else relative


def control(cycle: int) -> str:
    """Directory of the control: as many atoms seen as the cycle's model, seed data alone."""
    return "/".join(("control", place(cycle, "model"))) if cycle else model(0)


def holdout(system: str, name: str) -> str:
    """Path of something of the held-out frames of a system."""
    return str(PurePosixPath(HOLDOUT, system, name))


def system_place(system: str, name: str) -> str:
    """Path of something of a system: its structure and its blocks."""
    return str(PurePosixPath("systems", system, name))


def holding(settings: HoldingSettings, system: str, tag: str) -> str:
    """Where the runs of a model (``model-000``) on a system are."""
    name = f"{tag}-{settings.temperature_K:g}K-{settings.length_fs:g}fs-{settings.runs}"
    # A compiled network rounds otherwise, and a trajectory is not the same after some picoseconds.
    if settings.engine != "eager":
        name += f"-{settings.engine}"
    return str(PurePosixPath("holding", system, name))
