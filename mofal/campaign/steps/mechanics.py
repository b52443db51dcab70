"""Mechanics of a campaign with its last model, after the last cycle."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import DensitySettings
from mofal.campaign.engines import is_here, mend_of
from mofal.campaign.prepare import make_system
from mofal.data import hash_json, open_group, select, to_atoms
from mofal.errors import ConfigError
from mofal.mechanics import choose_engine, potential_level
from mofal.mechanics.domain import domain_of
from mofal.mechanics.engines import (
    evaluations_of,
    keep_engine,
    prepare_engine,
    recorded_engine,
)
from mofal.mechanics.pieces import describe_outcome, extend_all
from mofal.mechanics.show import show_curves, show_elastic, show_pressure
from mofal.schedule import Pools
from mofal.schedule.settings import cpu_count
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.directory import Site
    from mofal.mechanics import Level
    from mofal.mechanics.pieces import Piece, Plan


_COUNTS = re.compile(r"[a-z]+ \d+/\d+( |,|$)")

Say = Callable[[str], None]


@dataclass
class Plans:
    """Everything that was asked for, by kind and system."""

    what: Sequence[str]
    curves: dict[str, Any]
    elastic: dict[str, Any]
    pressures: dict[str, Any]
    judge: Callable[[xr.Dataset], Any] | None = None

    @property
    def all(self) -> list[Any]:
        """Plans in the order in which their pieces are wanted."""
        from mofal.mechanics import Minimum

        first = [c if "eos" in self.what else Minimum(c) for c in self.curves.values()]
        return [*self.elastic.values(), *self.pressures.values(), *first]

    def show(self, place: Path, say: Say) -> int:
        """Write tables and pictures; 0 where nothing is missing."""
        status = show_curves(self.curves, place, say, self.judge) if "eos" in self.what else 0
        status = max(status, show_elastic(self.elastic, self.curves, place, say))
        return max(status, show_pressure(self.pressures, place, say, self.judge))


class Learnt(NamedTuple):
    """What a model was trained on, and how a density of it is fitted.

    Attributes
    ----------
    name : str
        Tells densities of one model from each other; empty for a campaign's own.
    data : callable
        Gives the structures, with `split`.
    density : DensitySettings
    seed : int
    """

    name: str
    data: Callable[[], xr.Dataset]
    density: DensitySettings
    seed: int


def learnt_in(site: Site) -> Learnt:
    """What the last model of a campaign was trained on."""
    return Learnt(
        "",
        lambda: site.training_set(site.finished_cycles()),
        site.config.density,
        site.integer_seed("mechanics", "density"),
    )


def learnt_from(path: str | Path, level: Level) -> Learnt:
    """What a model was trained on, from a group of structures with `split`.

    Raises
    ------
    ConfigError
        A reference in place of a potential, or structures without both parts.
    DataError
        No such group.
    """
    if level.kind != "potential":
        raise ConfigError(
            "--trained-on tells what a potential has seen; a reference learns nothing"
        )
    data = open_group(path)
    parts = set(map(str, data["split"].values)) if "split" in data else set()
    if not {"train", "validation"} <= parts:
        raise ConfigError(
            f"{path} is not divided into train and validation, so no density can be fitted and "
            "calibrated on it; give the labels that the model was trained on (with `split`)"
        )
    name = hash_json(
        [str(i) for i in data["structure_id"].values] + list(map(str, data["split"].values))
    )
    return Learnt(f"-{name[:8]}", data.load, DensitySettings(), 0)


def judge_of(learnt: Learnt, level: Level, place: Path) -> Callable[[xr.Dataset], Any]:
    """What tells how familiar structures are to a model.

    The density of a campaign's cycle is in the features of the model before; one in the features of
    the model in question is fitted once, calibrated on the validation part, and kept.
    """

    def judge(structures: xr.Dataset) -> Any:
        from mofal.density import PerElementDensity
        from mofal.potential import load

        potential = load(level.spec)
        file = place / f"density-{level.identity[:10]}{learnt.name}.zarr"
        if file.exists():
            density = PerElementDensity.load(file)
        else:
            density = _fit_density(learnt, potential)
            density.save(file)
        return domain_of(structures, potential, density)

    return judge


def _fit_density(learnt: Learnt, potential: Any) -> Any:
    from mofal.density import PerElementDensity

    data, settings = learnt.data(), learnt.density
    density = PerElementDensity(
        n_components=settings.components,
        max_components=settings.max_components,
        pca=settings.pca,
        random_state=learnt.seed,
    )
    for part, use in (("train", density.fit), ("validation", density.calibrate)):
        features = potential.featurize(select(data, data["split"].values == part))
        use(np.asarray(features["features"].values, np.float64), features["numbers"].values)
    return density


def make_plans(
    crystals: dict[str, tuple[xr.Dataset, xr.Dataset | None]],
    level: Level,
    place: Path,
    what: Sequence[str],
    settings: dict[str, Any],
) -> Plans:
    """Plans of all systems at a level, in a directory."""
    from mofal.mechanics import Curve, Elastic, PressureVolume

    curves = {
        name: Curve(
            structure, level, directory=place / name, settings=settings["curve"], blocks=blocks
        )
        for name, (structure, blocks) in crystals.items()
    }
    return Plans(
        what,
        curves,
        {
            name: Elastic(
                name,
                one.point("minimum"),
                level,
                directory=place / name,
                settings=settings["strains"],
            )
            for name, one in curves.items()
            if "elastic" in what
        },
        {
            name: PressureVolume(one, settings["pressure"])
            for name, one in curves.items()
            if "pv" in what
        },
    )


def campaign_plans(site: Site) -> Plans:
    """Plans of the `mechanics` section of a campaign, with its last model, as they were begun."""
    level = potential_level(site.path(paths.model(site.last_cycle())))
    place = site.path("mechanics")
    level = replace(level, engine=recorded_engine(place, level.identity) or "eager")
    return _plans_at(site, level, _crystals(site))


def _crystals(site: Site) -> dict[str, tuple[Any, Any]]:
    section = site.config.mechanics
    assert section is not None
    crystals: dict[str, tuple[Any, Any]] = {}
    for name in section.systems or tuple(site.config.systems):
        settings = site.config.systems[name]
        crystals[name] = site.structure(name), site.blocks(name)
        if settings.disorder is not None or settings.build in ("S_sup", "S_sup*"):
            for k in range(1, section.realisations):
                drawn = settings.model_copy(update={"seed": settings.seed + k})
                crystals[f"{name}-{k}"] = make_system(f"{name}-{k}", drawn)
    return crystals


def _plans_at(site: Site, level: Level, crystals: dict[str, tuple[Any, Any]]) -> Plans:
    section = site.config.mechanics
    assert section is not None
    return make_plans(
        crystals,
        level,
        site.path("mechanics"),
        section.what,
        section.settings(site.integer_seed("mechanics")),
    )


def campaign_mechanics(site: Site, pools: Pools, say: Say) -> None:
    """Do the mechanics of a campaign on its own pools; what failed is said and stops nothing."""
    section = site.config.mechanics
    assert section is not None
    place, crystals = site.path("mechanics"), _crystals(site)
    here = is_here(pools.settings, "mechanics")
    level, reason = choose_engine(
        potential_level(site.path(paths.model(site.last_cycle()))),
        place,
        section.engine,
        atoms=[to_atoms(structure, 0) for structure, _ in crystals.values()],
        evaluations=evaluations_of(section.what, **section.settings(0)),
        here=here,
        workers=cpu_count(),
        mend=mend_of(site),
    )
    if level.engine == "compiled":
        say(f"mechanics: compiled network ({reason})")
        if here:
            prepare_engine(level, say)
    # Not before: a network that cannot be made binds nobody.
    keep_engine(level, place, reason)
    plans = _plans_at(site, level, crystals)
    for one in plans.all:
        one.prepare()
    run_plans(plans.all, pools, say=say)
    plans.judge = judge_of(learnt_in(site), level, place)
    plans.show(place, say)


def quiet(say: Say) -> Say:
    """What pools say, their counts aside: every piece has a line of its own."""

    def pool(text: str) -> None:
        if not _COUNTS.match(text):
            say(text)

    return pool


def run_plans(plans: Sequence[Plan], pools: Pools, *, say: Say) -> None:
    """Have the pieces of all plans done, each as soon as what it needs is there."""

    def open_pieces() -> list[Piece]:
        return [p for plan in plans for p in plan.pieces() if not p.done]

    left = open_pieces()
    completions = pools.completions()
    submitted: dict[str, Piece] = {}
    done, begun = 0.0, time.monotonic()
    while True:
        for piece in left:
            if piece.ready and piece.key not in submitted:
                submitted[piece.key] = piece
                completions.add(pools.submit(task_of(piece)))
        if not completions.pending:
            if extend_all(plans, say):
                left = open_pieces()
                continue
            return
        outcome = completions.next()
        if outcome is None:
            return
        left = open_pieces()
        piece = submitted[outcome.task.key]
        done += piece.cost
        line = (
            describe_outcome(piece.name, outcome.summary or {})
            if outcome.ok
            else f"{piece.name}: {outcome.status}: {outcome.reason}"
        )
        say(f"{line}{_when(done, left, time.monotonic() - begun)}")


def _when(done: float, left: Sequence[Piece], seconds: float) -> str:
    """How many pieces are left and how long they take, by their costs."""
    if not left or not done:
        return ""
    rest = seconds / done * sum(piece.cost for piece in left)
    if rest < 600:
        return f"; {len(left)} left, about {rest:.0f} s"
    # The day too: a P(V) takes some.
    end = time.strftime("%a %H:%M", time.localtime(time.time() + rest))
    return f"; {len(left)} left, about {rest / 60:.0f} min (until {end})"


def task_of(piece: Piece) -> Task:
    """A piece as a task of the schedule; its kind is ``mechanics``."""
    return Task(
        "mechanics",
        piece.key,
        piece.function,
        dict(piece.kwargs),
        output=piece.output,
        cost=piece.cost,
        # What others begin from goes first, though it is short.
        priority=int(piece.kind == "relax"),
        resumable=piece.kind == "walk",
    )
