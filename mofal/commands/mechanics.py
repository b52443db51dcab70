"""`mofal mechanics`: E(V) of crystals as durable points on a schedule, with tables and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.campaign import paths
from mofal.campaign.config import SystemSettings
from mofal.campaign.directory import Site
from mofal.campaign.engines import is_here
from mofal.campaign.loading import load_config
from mofal.campaign.prepare import make_system
from mofal.campaign.steps.label import local_schedule, only_one
from mofal.campaign.steps.mechanics import judge_of, make_plans, quiet, run_plans
from mofal.commands.label import check_seed, unlabelled
from mofal.data import to_atoms
from mofal.errors import ConfigError, StructureError
from mofal.frameworks import read_structures
from mofal.mechanics import choose_engine, potential_level, reference_level
from mofal.mechanics.engines import evaluations_of, keep_engine, prepare_engine
from mofal.mechanics.levels import check_level
from mofal.mechanics.pieces import extend_all
from mofal.schedule import Pools
from mofal.schedule.settings import cpu_count

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from mofal.mechanics import CurveSettings, ElasticSettings, Level, PressureSettings

Say = Callable[[str], None]

WHAT = ("eos", "elastic", "pv")
"""Parts of the mechanics that can be asked for."""


def mechanics(
    systems: Sequence[str],
    *,
    potential: str | None = None,
    reference: str | None = None,
    what: Sequence[str] = ("eos",),
    cell: str = "conventional",
    rule: str = "auto",
    curve: CurveSettings | None = None,
    strains: ElasticSettings | None = None,
    pressure: PressureSettings | None = None,
    realisations: int = 1,
    engine: str | None = None,
    directory: str | os.PathLike[str] = "mechanics",
    workers: int | None = None,
    schedule: str | None = None,
    retry_failed: bool = False,
    client: Client | None = None,
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
    engine : str, optional
        Network of a potential: ``"eager"``, ``"compiled"`` or ``"auto"`` (compiled where it is
        worth it); default: the one that the directory was begun with, else eager.
    directory : path
        Of the results.
    workers : int, optional
        Processes; default: one per core.
    schedule : str, optional
        A campaign file whose `schedule` section is used.
    retry_failed : bool
        Try points that failed once more.
    client : distributed.Client, optional
        Whose workers do the work, instead of those of a schedule; it stays open.

    Returns
    -------
    int
        0 where every part has its result, 1 where one lacks it (the reason is said).
    """
    from mofal.mechanics import CurveSettings

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
    for structure, _ in crystals.values():
        check_level(level, to_atoms(structure, 0))
    chosen = {"curve": settings, "strains": strains, "pressure": pressure}
    here = client is None and is_here(where, "mechanics")
    level, reason = choose_engine(
        level,
        place,
        engine,
        atoms=[to_atoms(structure, 0) for structure, _ in crystals.values()],
        evaluations=evaluations_of(what, **chosen),  # type: ignore[arg-type]
        here=here,
        workers=workers or cpu_count(),
        mend="leave --engine out, or give another --directory",
    )
    plans = make_plans(crystals, level, place, what, chosen)
    with only_one(place):
        keep_engine(level, place, reason)
        if level.engine == "compiled":
            say(f"compiled network ({reason})")
            if here:
                prepare_engine(level, say)
        if retry_failed:
            n = sum(plan.forget_failed() for plan in plans.all)
            say(f"{n} points are tried again")
        for plan in plans.all:
            plan.prepare()
        extend_all(plans.all, say)
        if all(piece.done for plan in plans.all for piece in plan.pieces()):
            say("every point is there already")
        else:
            with Pools.from_settings(
                where, directory=place, progress=quiet(say), client=client
            ) as pools:
                run_plans(plans.all, pools, say=say)
        plans.judge = judge_of(site, level, place) if site is not None else None
        return plans.show(place, say)


# ---------------------------------------------------------------------------------- campaigns
def find_level(potential: str | None, reference: str | None) -> tuple[Level, Site | None]:
    """Level that was asked for: a model, the last model of a campaign (and it), a reference."""
    if (potential is None) == (reference is None):
        raise ConfigError("give either --potential MODEL (or CAMPAIGN) or --reference NAME")
    if reference is not None:
        return reference_level(reference), None
    assert potential is not None
    where = Path(potential)
    site: Site | None = None
    if (where / "campaign.yaml").is_file():
        site = Site(where)
        last = site.finished_cycles()
        if last < 0:
            raise ConfigError(f"the campaign {where} has no model yet; run it first")
        where = site.path(paths.model(last))
    return potential_level(where), site


def load_systems(
    systems: Sequence[str], *, cell: str, rule: str, n: int, seed: int
) -> dict[str, tuple[xr.Dataset, xr.Dataset | None]]:
    """Structures and blocks by name; `n` realisations of those that are drawn."""
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
    if rule != "none":
        try:
            return make_system(file.stem, SystemSettings(file=file, rule=rule))
        except StructureError as error:
            raise StructureError(
                f"{error}; a crystal without building blocks goes with: --rule none"
            ) from None
    structures = read_structures(file, system=file.stem)
    if structures.sizes["structure"] != 1:
        raise StructureError(
            f"{file} holds {structures.sizes['structure']} structures, expected one"
        )
    return unlabelled(structures), None


# ---------------------------------------------------------------------------------- running
