"""Whether the engines that a campaign names can be had, said before anything is paid for."""

from __future__ import annotations

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.data import read_json
from mofal.errors import ConfigError
from mofal.mechanics.engines import recorded_engine
from mofal.schedule.settings import ScheduleSettings


def is_here(schedule: ScheduleSettings, kind: str) -> bool:
    """Whether tasks of a kind run on this machine."""
    if schedule.backend in ("inline", "threads"):
        return True
    return schedule.effective_pools()[schedule.pool_of(kind)].backend == "local"


def mend_of(site: Site) -> str:
    """What to do where the campaign file names another engine than its mechanics began with."""
    return f"write that into mechanics of the campaign file, or remove {site.path('mechanics')}"


def trained_stages(config: CampaignConfig) -> list[str]:
    """Trainings that a campaign makes: keys of its potential section."""
    stages = [] if config.potential.start is not None else ["seed"]
    return stages + ["cycle"] * (config.cycles > 1) + ["final"] * (config.cycles > 0)


def check_engines(site: Site) -> None:
    """Refuse an engine that cannot be had on this machine, or is not the one that was begun with.

    What runs on SLURM or on somebody's Dask workers is compiled there; whether they have a compiler
    is not known here.

    Raises
    ------
    ConfigError
        With the place in the campaign file and the mend.
    """
    config = site.config
    named = [("exploration", "walk", config.exploration.engine)] if config.cycles else []
    named += [
        (f"potential.{stage}", "train", getattr(config.potential, stage).engine)
        for stage in trained_stages(config)
    ]
    if config.holding is not None:
        named.append(("holding", "walk", config.holding.engine))
    if config.mechanics is not None:
        named.append(("mechanics", "mechanics", config.mechanics.engine))
    for section, kind, engine in named:
        if engine != "compiled" or not is_here(config.schedule, kind):
            continue
        from mofal.potential.compiling import cache_folder, has_compiler  # with torch

        # One that was compiled elsewhere and brought here may be the right one.
        kept = kind != "train" and any(cache_folder().glob("*/about.json"))
        if not has_compiler() and not kept:
            raise ConfigError(
                f"{section}.engine is compiled, which wants a C++ compiler, and none is found "
                "here: apt-get install g++, or write engine: eager"
            )
    check_recorded(site)


def check_recorded(site: Site) -> None:
    """Refuse another engine than the mechanics of the campaign's last model were begun with."""
    section, place = site.config.mechanics, site.path("mechanics")
    model = site.path(paths.model(site.last_cycle())) / "model.json"
    if section is None or section.engine == "auto" or not place.exists() or not model.exists():
        return
    found = recorded_engine(place, str(read_json(model)["model_hash"]))
    if found not in (None, section.engine):
        raise ConfigError(
            f"mechanics.engine is {section.engine}, and {place} was begun with the {found} "
            f"network; {mend_of(site)}"
        )
