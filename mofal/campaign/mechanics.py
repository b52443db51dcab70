"""`mofal mechanics`: E(V) of crystals as durable points on a schedule, with tables and pictures."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign.label import check_seed, local_schedule, only_one
from mofal.campaign.mechanics_show import show_curves, show_elastic, show_pressure
from mofal.errors import ConfigError, StructureError
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.site import Site
    from mofal.mechanics import CurveSettings, ElasticSettings, Level, PressureSettings
    from mofal.mechanics.pieces import Piece, Plan

Say = Callable[[str], None]

WHAT = ("eos", "elastic", "pv")
"""Parts of the mechanics that can be asked for."""

_COUNTS = re.compile(r"[a-z]+ \d+/\d+( |,|$)")


def mechanics(
    systems: Sequence[str],
    *,
    potential: str | None = None,
    reference: str | None = None,
    what: Sequence[str] = ("eos",),
    cell: str = "conventional",
    rule: str = "carboxylate",
    curve: CurveSettings | None = None,
    strains: ElasticSettings | None = None,
    pressure: PressureSettings | None = None,
    realisations: int = 1,
    directory: str | os.PathLike[str] = "mechanics",
    workers: int | None = None,
    schedule: str | None = None,
    retry_failed: bool = False,
    say: Say = print,
) -> int:
    """Mechanics of crystals with a potential or any reference; started again, it goes on.

    Parameters
    ----------
    systems : sequence of str
        Names of frameworks, or structure files.
    potential : str, optional
        Directory of a model, or of a campaign (its last model).
    reference : str, optional
        A reference in place of a potential.
    what : sequence of str
        Of `WHAT`.
    cell : str
        Of a framework by name.
    rule : str
        Rule that cuts blocks; ``"none"``: a crystal without building blocks.
    curve : CurveSettings, optional
    strains : ElasticSettings, optional
    pressure : PressureSettings, optional
    realisations : int
        Frameworks drawn for each name whose disorder is drawn (S_sup, S_sup*).
    directory : path
        Of the results.
    workers : int, optional
        Processes; default: one per core.
    schedule : str, optional
        A campaign file whose `schedule` section is used.
    retry_failed : bool
        Try points that failed once more.

    Returns
    -------
    int
        0 where every part has its result, 1 where one lacks it (the reason is said).
    """
    from mofal.campaign.loading import load_config
    from mofal.mechanics import CurveSettings
    from mofal.mechanics.levels import check_level

    unknown = [w for w in what if w not in WHAT]
    if unknown:
        raise ConfigError(f"--what {unknown[0]} is not known; expected {', '.join(WHAT)}")
    place = Path(directory)
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--directory {place} is a file; results need a directory")
    settings = curve or CurveSettings()
    check_seed(settings.seed)
    where = load_config(schedule).schedule if schedule else local_schedule(workers)
    level, site = find_level(potential, reference)
    crystals = load_systems(systems, cell=cell, rule=rule, n=realisations, seed=settings.seed)
    from mofal.data import to_atoms

    for structure, _ in crystals.values():
        check_level(level, to_atoms(structure, 0))
    plans = make_plans(
        crystals, level, place, what, {"curve": settings, "strains": strains, "pressure": pressure}
    )
    with only_one(place):
        if retry_failed:
            n = sum(plan.forget_failed() for plan in plans.all)
            say(f"{n} points are tried again")
        for plan in plans.all:
            plan.prepare()
        if all(piece.done for plan in plans.all for piece in plan.pieces()):
            say("every point is there already")
        else:
            from mofal.schedule import Pools

            with Pools.from_settings(where, directory=place, progress=quiet(say)) as pools:
                run_plans(plans.all, pools, say=say)
        plans.judge = judge_of(site, level, place) if site is not None else None
        return plans.show(place, say)


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


def judge_of(site: Site, level: Level, place: Path) -> Callable[[xr.Dataset], Any]:
    """What tells how familiar structures are to the model of a campaign.

    The density of a cycle is in the features of the model before; one in the features of the last
    model is fitted once, calibrated on the validation part, and kept.
    """

    def judge(structures: xr.Dataset) -> Any:
        from mofal.density import PerElementDensity
        from mofal.mechanics.domain import domain_of
        from mofal.potential import load

        potential = load(level.spec)
        file = place / f"density-{level.identity[:10]}.zarr"
        if file.exists():
            density = PerElementDensity.load(file)
        else:
            density = _fit_density(site, potential)
            density.save(file)
        return domain_of(structures, potential, density)

    return judge


def _fit_density(site: Site, potential: Any) -> Any:
    from mofal.data import select
    from mofal.density import PerElementDensity

    data = site.training_set(site.finished_cycles())
    settings = site.config.density
    density = PerElementDensity(
        n_components=settings.components,
        max_components=settings.max_components,
        pca=settings.pca,
        random_state=site.integer_seed("mechanics", "density"),
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


# ---------------------------------------------------------------------------------- campaigns
def campaign_plans(site: Site) -> Plans:
    """Plans of the `mechanics` section of a campaign, with its last model."""
    from mofal.campaign import plan
    from mofal.campaign.seeding import make_system
    from mofal.mechanics import potential_level

    section = site.config.mechanics
    assert section is not None
    level = potential_level(site.path(plan.model(site.last_cycle())))
    crystals: dict[str, tuple[Any, Any]] = {}
    for name in section.systems or tuple(site.config.systems):
        settings = site.config.systems[name]
        crystals[name] = site.structure(name), site.blocks(name)
        if settings.disorder is not None or settings.build in ("S_sup", "S_sup*"):
            for k in range(1, section.realisations):
                drawn = settings.model_copy(update={"seed": settings.seed + k})
                crystals[f"{name}-{k}"] = make_system(f"{name}-{k}", drawn)
    return make_plans(
        crystals,
        level,
        site.path("mechanics"),
        section.what,
        section.settings(site.integer_seed("mechanics")),
    )


def campaign_mechanics(site: Site, pools: Any, say: Say) -> None:
    """Do the mechanics of a campaign on its own pools; what failed is said and stops nothing."""
    plans = campaign_plans(site)
    for one in plans.all:
        one.prepare()
    if not all(piece.done for one in plans.all for piece in one.pieces()):
        run_plans(plans.all, pools, say=say)
    place = site.path("mechanics")
    level = next(iter(plans.curves.values())).level
    plans.judge = judge_of(site, level, place)
    plans.show(place, say)


def find_level(potential: str | None, reference: str | None) -> tuple[Level, Site | None]:
    """Level that was asked for: a model, the last model of a campaign (and it), a reference."""
    from mofal.mechanics import potential_level, reference_level

    if (potential is None) == (reference is None):
        raise ConfigError("give either --potential MODEL (or CAMPAIGN) or --reference NAME")
    if reference is not None:
        return reference_level(reference), None
    assert potential is not None
    where = Path(potential)
    site: Site | None = None
    if (where / "campaign.yaml").is_file():
        from mofal.campaign import plan
        from mofal.campaign.site import Site

        site = Site(where)
        last = site.finished_cycles()
        if last < 0:
            raise ConfigError(f"the campaign {where} has no model yet; run it first")
        where = site.path(plan.model(last))
    return potential_level(where), site


def load_systems(
    systems: Sequence[str], *, cell: str, rule: str, n: int, seed: int
) -> dict[str, tuple[xr.Dataset, xr.Dataset | None]]:
    """Structures and blocks by name; `n` realisations of those that are drawn."""
    from mofal.campaign.config import SystemSettings
    from mofal.campaign.seeding import make_system

    if n < 1:
        raise ConfigError(f"--realisations is {n}, expected at least 1")
    out: dict[str, tuple[Any, Any]] = {}
    for text in systems:
        file = Path(text)
        if file.is_file():
            name = file.stem
            made = [_read(file, rule)]
        elif file.suffix or len(file.parts) > 1:
            raise ConfigError(
                f"{text} does not exist; expected a structure file, or a name from: "
                "mofal build list"
            )
        else:
            name = text
            made = [
                make_system(
                    text,
                    SystemSettings(build=text, cell=cell, rule=rule, seed=seed + k),  # type: ignore[arg-type]
                )
                for k in range(n)
            ]
        if n > 1:
            ids = {str(s["structure_id"].values[0]) for s, _ in made}
            if len(ids) < n:
                raise ConfigError(
                    f"{text} is not drawn at random, so that {n} realisations are one; "
                    "leave out --realisations, or take S_sup or S_sup*"
                )
        for k, pair in enumerate(made):
            key = f"{name}-{k}" if n > 1 else name
            if key in out:
                raise ConfigError(f"the system {key} is given twice; rename one file")
            out[key] = pair
    return out


def _read(file: Path, rule: str) -> tuple[xr.Dataset, xr.Dataset | None]:
    from mofal.campaign.config import SystemSettings
    from mofal.campaign.label import unlabelled
    from mofal.campaign.seeding import make_system
    from mofal.data import from_atoms
    from mofal.data.text import read_atoms

    if rule != "none":
        try:
            return make_system(file.stem, SystemSettings(file=file, rule=rule))
        except StructureError as error:
            raise StructureError(
                f"{error}; a crystal without building blocks goes with: --rule none"
            ) from None
    frames = read_atoms(file)
    if len(frames) != 1:
        raise StructureError(f"{file} holds {len(frames)} structures, expected one")
    return unlabelled(from_atoms(frames, system=file.stem)), None


# ---------------------------------------------------------------------------------- running
def quiet(say: Say) -> Say:
    """What pools say, their counts aside: every piece has a line of its own."""

    def pool(text: str) -> None:
        if not _COUNTS.match(text):
            say(text)

    return pool


def run_plans(plans: Sequence[Plan], pools: Any, *, say: Say) -> None:
    """Have the pieces of all plans done, each as soon as what it needs is there."""
    from mofal.mechanics.pieces import describe_outcome

    def open_pieces() -> list[Piece]:
        return [p for plan in plans for p in plan.pieces() if not p.done]

    left = open_pieces()
    completions = pools.completions()
    submitted: dict[str, Piece] = {}
    done, begun = 0, time.monotonic()
    while True:
        for piece in left:
            if piece.ready and piece.key not in submitted:
                submitted[piece.key] = piece
                completions.add(pools.submit(task_of(piece)))
        if not completions.pending:
            return
        outcome = completions.next()
        if outcome is None:
            return
        done += 1
        left = open_pieces()
        piece = submitted[outcome.task.key]
        line = (
            describe_outcome(piece.name, outcome.summary or {})
            if outcome.ok
            else f"{piece.name}: {outcome.status}: {outcome.reason}"
        )
        say(f"{line}{_when(done, len(left), time.monotonic() - begun)}")


def _when(done: int, left: int, seconds: float) -> str:
    if not left or done < 2:
        return ""
    rest = seconds / done * left
    end = time.strftime("%H:%M", time.localtime(time.time() + rest))
    return f"; {left} left, about {rest:.0f} s" + (f" (until {end})" if rest > 300 else "")


def task_of(piece: Piece) -> Task:
    """A piece as a task of the schedule; its kind is ``mechanics``."""
    return Task(
        "mechanics",
        piece.key,
        piece.function,
        dict(piece.kwargs),
        output=piece.output,
        cost=piece.cost,
    )
