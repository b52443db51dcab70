"""`mofal mechanics`: E(V) of crystals as durable points on a schedule, with tables and pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.campaign import paths
from mofal.campaign.config import SystemSettings
from mofal.campaign.directory import Site
from mofal.campaign.engines import is_here
from mofal.campaign.loading import load_config
from mofal.campaign.prepare import make_system
from mofal.campaign.steps.label import local_schedule, only_one
from mofal.campaign.steps.mechanics import (
    judge_of,
    learnt_from,
    learnt_in,
    make_plans,
    quiet,
    run_plans,
)
from mofal.commands.label import check_seed, unlabelled
from mofal.data import to_atoms
from mofal.errors import ConfigError, StructureError
from mofal.frameworks import read_structures
from mofal.mechanics import choose_engine, potential_level, reference_level
from mofal.mechanics.engines import evaluations_of, keep_engine, prepare_engine
from mofal.mechanics.levels import check_level
from mofal.mechanics.pieces import extend_all
from mofal.potential.compiling import is_compiled
from mofal.reference.ase_calculator import limit_threads
from mofal.schedule import Pools
from mofal.schedule.settings import cpu_count

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms
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
    trained_on: str | None = None,
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
    dry_run: bool = False,
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
    trained_on : path, optional
        Of a model: the structures it was trained on, with `split`. A density in its features tells
        which points lie in what it has learnt; a campaign has its own.
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
    dry_run : bool
        Check everything, say how long it will take, and begin nothing.
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
    if site is not None and trained_on is not None:
        raise ConfigError(f"{potential} is a campaign, which has its own data: no --trained-on")
    learnt = None if site is None else learnt_in(site)
    if trained_on is not None:
        learnt = learnt_from(trained_on, level)
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
    if dry_run:
        for line in describe_work(crystals, level, what, chosen, workers or cpu_count()):
            say(line)
        known = [piece.done for plan in plans.all for piece in plan.pieces()]
        if any(known):
            say(f"of this {sum(known)} points are there already; the time is that of all")
        return 0
    with only_one(place):
        if level.engine == "compiled":
            say(f"compiled network ({reason})")
            if here:
                prepare_engine(level, say)
        # Not before: a network that cannot be made binds nobody.
        keep_engine(level, place, reason)
        if retry_failed:
            n = sum(plan.forget_failed() for plan in plans.all)
            say(f"{n} points are tried again")
        for plan in plans.all:
            plan.prepare()
        extend_all(plans.all, say)
        known = [piece.done for plan in plans.all for piece in plan.pieces()]
        if all(known):
            say("every point is there already")
        else:
            if any(known):
                say(f"{sum(known)} points are there already, {len(known) - sum(known)} are not")
            with Pools.from_settings(
                where, directory=place, progress=quiet(say), client=client
            ) as pools:
                run_plans(plans.all, pools, say=say)
        plans.judge = None if learnt is None else judge_of(learnt, level, place)
        return plans.show(place, say)


def describe_work(
    crystals: dict[str, tuple[xr.Dataset, xr.Dataset | None]],
    level: Level,
    what: Sequence[str],
    settings: dict[str, Any],
    workers: int,
) -> list[str]:
    """What is to be computed and how long it takes, by a force call that is measured here."""
    calls = evaluations_of(what, **settings)
    total, lines = 0.0, []
    for name, (structure, blocks) in crystals.items():
        atoms = to_atoms(structure, 0)
        seconds, engine = _force_call(level, atoms)
        total += calls * seconds
        of = "" if blocks is None else f", {len(blocks['role'])} blocks"
        lines.append(
            f"{name}: {len(atoms)} atoms{of}, {atoms.get_volume():.0f} Å³; {', '.join(what)}: "
            f"about {calls:,.0f} force calls of {1000 * seconds:.0f} ms{engine}"
        )
    rest = total / workers
    long = f"{rest / 3600:.1f} h" if rest > 3600 else f"{rest / 60:.0f} min"
    long = long if rest >= 90 else f"{rest:.0f} s"
    lines.append(f"about {long} on {workers} processes of one thread; nothing was begun")
    return lines


def _force_call(level: Level, atoms: Atoms) -> tuple[float, str]:
    """Seconds of a force call with stress on one thread (the best of three), and of what."""
    told = f" ({level.engine})" if level.kind == "potential" else ""
    with limit_threads(1):
        if level.engine == "compiled" and not is_compiled(level.potential()):
            level, told = replace(level, engine="eager"), " (eager; the compiled one is made first)"
        atoms.calc = level.calculator()
        each = []
        for _ in range(3):
            atoms.positions += 1e-6
            begun = time.perf_counter()
            atoms.get_forces()
            atoms.get_stress()
            each.append(time.perf_counter() - begun)
    return min(each), told


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
