"""What a campaign is given to start from: labels and a potential of its package or of the user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign.examples import seed_place
from mofal.data import open_group, select
from mofal.errors import ConfigError, MofalError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.config import CampaignConfig
    from mofal.potential import NequIPPotential
    from mofal.reference import Reference


def example_labels(config: CampaignConfig, reference: Reference | None) -> xr.Dataset:
    """Labels of `seed_data.example`, or so many `frames` of them, spread over all.

    Training and validation were divided when they were made (frames of walks by walk), and stay so;
    of both the same share is taken.

    Raises
    ------
    ConfigError
        They are of another level of theory than the campaign's.
    """
    settings = config.seed_data
    assert settings.example is not None  # who calls has looked
    ds = open_group(seed_place(settings.example) / "labels.zarr").load()
    level = str(ds.attrs.get("level_hash", ""))
    if reference is not None and reference.level_hash != level:
        raise ConfigError(
            f"seed_data.example: the labels of {settings.example} are of level {level}, the "
            f"campaign's reference {config.reference.name} is {reference.level_hash}; choose the "
            "reference that they were made with, or other seed data"
        )
    n = ds.sizes["structure"]
    if settings.frames is None or settings.frames >= n:
        return ds
    split = ds["split"].values.astype(str)
    kept: list[int] = []
    for part in ("train", "validation"):
        members = np.flatnonzero(split == part)
        wanted = max(1, round(settings.frames * len(members) / n))
        kept += members[np.linspace(0, len(members) - 1, wanted).round().astype(int)].tolist()
    return select(ds, np.array(sorted(set(kept))))


def given_place(name: str) -> Path:
    """Directory of a potential that travels with mofal (``example:NAME``), or of the user's."""
    example = name.removeprefix("example:")
    return seed_place(example) / "model" if example != name else Path(name)


def start_potential(config: CampaignConfig, level_hash: str = "") -> NequIPPotential:
    """Load the potential that a campaign's first model is, or that its training begins with.

    Parameters
    ----------
    level_hash : str
        Of the campaign's reference; "" where it is not known yet. Weights that a training begins
        with (`pretrained`) may have learnt any level.

    Raises
    ------
    ConfigError
        It is none, or learnt another level of theory.
    """
    from mofal.potential import begin_as, load

    key = "start" if config.potential.start is not None else "pretrained"
    name = getattr(config.potential, key)
    assert name is not None  # who calls has looked
    try:
        place = given_place(name)
        potential = load(place)
    except MofalError as error:
        raise ConfigError(f"potential.{key}: {error}") from None
    learnt = str(potential.provenance.get("level_hash", ""))
    if key == "start" and level_hash and learnt and learnt != level_hash:
        raise ConfigError(
            f"potential.start: {place} learnt labels of level {learnt}, the campaign's reference "
            f"{config.reference.name} is {level_hash}: one potential cannot learn two levels. "
            "potential.pretrained begins a training on the seed data with its weights instead"
        )
    try:
        return begin_as(potential, config.potential.like) if config.potential.like else potential
    except MofalError as error:
        raise ConfigError(f"potential.like: {error}") from None


def check_start(config: CampaignConfig, elements: list[str], level_hash: str) -> None:
    """Refuse a potential that cannot become the campaign's first model, or what that begins with.

    Raises
    ------
    ConfigError
        It is none, learnt another level (`start`), has another architecture than the file says
        (`pretrained`), or has no type for an element of the campaign.
    """
    potential = start_potential(config, level_hash)
    key = "start" if config.potential.start is not None else "pretrained"
    if key == "pretrained" and "architecture" in config.potential.model_fields_set:
        # The default may stand in a file that was written out without being meant.
        default = type(config.potential).model_fields["architecture"].default
        if config.potential.architecture not in (potential.architecture, default):
            raise ConfigError(
                "potential.architecture is not that of potential.pretrained, whose weights fit no "
                f"other network: leave it out, or write architecture: {_written(potential)}"
            )
    lacking = [e for e in elements if e not in potential.elements]
    if lacking:
        raise ConfigError(
            f"potential.{key}: it has no type for {', '.join(lacking)} (it has "
            f"{', '.join(potential.elements)}); say which of those that it has learnt each begins "
            f"as: potential: {{like: {{{lacking[0]}: ...}}}}"
        )


def _written(potential: NequIPPotential) -> str:
    """Architecture of a potential as a campaign file has it."""
    from mofal.potential import ARCHITECTURES

    for name, architecture in ARCHITECTURES.items():
        if architecture == potential.architecture:
            return name
    fields = potential.architecture.model_dump()
    return "{" + ", ".join(f"{k}: {v}" for k, v in fields.items()) + "}"
