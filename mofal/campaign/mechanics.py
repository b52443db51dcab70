"""`mofal mechanics`: E(V) of crystals as durable points on a schedule, with tables and pictures."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign.label import check_seed, local_schedule, only_one
from mofal.errors import ConfigError, DataError, StructureError
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.mechanics import CurveSettings, ElasticSettings, Level, PressureSettings
    from mofal.mechanics.pieces import Piece, Plan
    from mofal.schedule.settings import ScheduleSettings

Say = Callable[[str], None]

WHAT = ("eos", "elastic", "pv")
"""Parts of the mechanics that can be asked for."""

_COUNTS = re.compile(r"[a-z]+ \d+/\d+( |,|$)")
ROUND = 14.672  # Å between the centres of two bricks of UiO-66


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
    from mofal.campaign.config import load_config
    from mofal.mechanics import Curve, CurveSettings, Elastic, Minimum, PressureVolume
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
    level = find_level(potential, reference)
    crystals = load_systems(systems, cell=cell, rule=rule, n=realisations, seed=settings.seed)
    from mofal.data import to_atoms

    for structure, _ in crystals.values():
        check_level(level, to_atoms(structure, 0))
    curves = {
        name: Curve(structure, level, directory=place / name, settings=settings, blocks=blocks)
        for name, (structure, blocks) in crystals.items()
    }
    elastic = {
        name: Elastic(name, one.point("minimum"), level, directory=place / name, settings=strains)
        for name, one in curves.items()
        if "elastic" in what
    }
    pressures = {
        name: PressureVolume(one, pressure) for name, one in curves.items() if "pv" in what
    }
    plans: list[Any] = [*elastic.values(), *pressures.values()]
    plans += [one if "eos" in what else Minimum(one) for one in curves.values()]
    with only_one(place):
        if retry_failed:
            n = sum(plan.forget_failed() for plan in plans)
            say(f"{n} points are tried again")
        for plan in plans:
            plan.prepare()
        run_plans(plans, where, directory=place, say=say)
        status = show_curves(curves, place, say) if "eos" in what else 0
        status = max(status, show_elastic(elastic, curves, place, say))
        return max(status, show_pressure(pressures, place, say))


def find_level(potential: str | None, reference: str | None) -> Level:
    """Level that was asked for: a model, the last model of a campaign, or a reference."""
    from mofal.mechanics import potential_level, reference_level

    if (potential is None) == (reference is None):
        raise ConfigError("give either --potential MODEL (or CAMPAIGN) or --reference NAME")
    if reference is not None:
        return reference_level(reference)
    assert potential is not None
    where = Path(potential)
    if (where / "campaign.yaml").is_file():
        from mofal.campaign import plan
        from mofal.campaign.site import Site

        site = Site(where)
        last = site.finished_cycles()
        if last < 0:
            raise ConfigError(f"the campaign {where} has no model yet; run it first")
        where = site.path(plan.model(last))
    return potential_level(where)


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
def run_plans(
    plans: Sequence[Plan],
    schedule: ScheduleSettings,
    *,
    directory: Path,
    say: Say,
) -> None:
    """Have the pieces of all plans done, each as soon as what it needs is there."""
    from mofal.mechanics.pieces import describe_outcome
    from mofal.schedule import Pools

    def open_pieces() -> list[Piece]:
        return [p for plan in plans for p in plan.pieces() if not p.done]

    left = open_pieces()
    if not left:
        say("every point is there already")
        return

    def pool(text: str) -> None:
        if not _COUNTS.match(text):  # every piece has a line of its own
            say(text)

    with Pools.from_settings(schedule, directory=directory, progress=pool) as pools:
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


# ---------------------------------------------------------------------------------- results
def uio_cells(structure: xr.Dataset, blocks: xr.Dataset | None) -> float | None:
    """Conventional cells (of 456 atoms where pristine) in a cell of UiO-66; None for others."""
    if blocks is None:
        return None
    formulas = {str(f) for f, r in zip(blocks["formula"].values, blocks["role"].values)
                if str(r) == "linker"}  # fmt: skip
    metals = set(np.unique(structure["numbers"].values)) - {1, 6, 8}
    if formulas != {"C6H4"} or not metals <= {40, 72}:
        return None
    lengths = np.linalg.norm(structure["cell"].values[0], axis=1)
    volume = abs(float(np.linalg.det(structure["cell"].values[0])))
    # Whole multiples of the primitive or of the conventional vectors, whatever the strain.
    primitive = np.prod(np.maximum(1, np.rint(lengths / ROUND))) / 4.0
    conventional = np.prod(np.maximum(1, np.rint(lengths / (ROUND * np.sqrt(2.0)))))
    each = ROUND**3 * 2**1.5
    return float(min((primitive, conventional), key=lambda n: abs(np.log(volume / (n * each)))))


def show_curves(curves: dict[str, Any], place: Path, say: Say) -> int:
    """Write tables and pictures of E(V), and say what was found."""
    from mofal.data import write_group, write_json
    from mofal.mechanics import block_motion, energy_volume
    from mofal.mechanics.curve import fit_table
    from mofal.mechanics.motion import describe_motion
    from mofal.mechanics.plots import plot_curve, plot_motion, plot_overlay

    status = 0
    shown, sizes, results = {}, {}, {}
    for name, one in curves.items():
        if not one.first().done or not one.sound:
            status = 1
            say(f"{name}: no E(V): {_why(one)}")
            continue
        curve = one.gather()
        found = energy_volume(curve, tolerance=one.settings.tolerance)
        n = int(one.structure["n_atoms"].values[0])
        cells = uio_cells(one.structure, one.blocks)
        for line in describe_curve(name, found, n_atoms=n, cells=cells):
            say(line)
        for line in found.failed:
            say(f"  {line}")
        missing = sum(not p.done for p in one.pieces())
        if missing:
            say(f"  {missing} points are missing; run the same command again")
        if missing or found.failed or found.windows is None:
            status = 1
        if not len(found.index):
            continue
        table = fit_table(found)
        if one.complete:
            write_group(table, one.place / "fit.zarr", kind="table")
        plot_curve(found, title=f"{name}, {one.level.spec}", n_atoms=n).savefig(
            place / f"{name}-eos.png", dpi=150
        )
        if one.blocks is not None:
            motion = block_motion(curve, found.index, one.blocks)
            if one.complete:
                write_group(motion, one.place / "motion.zarr", kind="table")
            for line in describe_motion(motion):
                say(line)
            plot_motion(motion, title=f"{name}, {one.level.spec}").savefig(
                place / f"{name}-motion.png", dpi=150
            )
        shown[name], sizes[name] = found, n
        results[name] = summary_of(found, one, cells)
    if len(shown) > 1:
        plot_overlay(shown, sizes).savefig(place / "eos.png", dpi=150)
        moduli = [r["bulk_modulus_GPa"] for r in results.values() if "bulk_modulus_GPa" in r]
        if len(moduli) > 1:
            say(f"K of {len(moduli)} systems: {np.mean(moduli):.2f} GPa on average, "
                f"standard deviation {np.std(moduli, ddof=1):.2f} GPa")  # fmt: skip
    if results:
        write_json(results, place / "eos.json")
        say(f"tables and pictures: {place}")
    return status


def show_elastic(elastic: dict[str, Any], curves: dict[str, Any], place: Path, say: Say) -> int:
    """Write tables of elastic constants, and say what was found."""
    from mofal.data import read_json, write_group, write_json
    from mofal.mechanics.elastic import describe_elastic, elastic_table

    status = 0
    results: dict[str, Any] = {}
    known = read_json(place / "eos.json") if (place / "eos.json").exists() else {}
    for name, one in elastic.items():
        if not one.sound or not one.complete:
            status = 1
            reason = _why(curves[name]) if not one.sound else "run the same command again"
            say(f"{name}: no elastic constants: {reason}")
            continue
        try:
            found = one.gather()
        except ConfigError as error:
            status = 1
            say(f"{error}; the others went on")
            continue
        write_group(elastic_table(found), one.place / "elastic.zarr", kind="table")
        modulus = known.get(name, {}).get("bulk_modulus_GPa")
        for line in describe_elastic(name, found, modulus):
            say(line)
        results[name] = {
            "level": one.level.spec,
            "level_identity": one.level.identity,
            "elastic_constants_GPa": found.constants.tolist(),
            "pressure_GPa": found.pressure,
            "symmetry": found.symmetry,
            "stable": found.stable,
            "softest_mode": found.softest,
            "bulk_modulus_GPa": {"Voigt": found.voigt[0], "Reuss": found.reuss[0]}
            if found.stable
            else {"Voigt": found.voigt[0]},
            "nonlinearity": None if np.isnan(found.nonlinearity) else found.nonlinearity,
        }
    if results:
        write_json(results, place / "elastic.json")
    return status


def show_pressure(pressures: dict[str, Any], place: Path, say: Say) -> int:
    """Write tables and a picture of P(V), and say what was found."""
    from mofal.data import write_group, write_json
    from mofal.mechanics.plots import plot_pressure
    from mofal.mechanics.pressure import (
        converged,
        describe_pressure,
        fit_pressure,
        pressure_table,
    )

    status = 0
    shown: dict[str, Any] = {}
    results: dict[str, Any] = {}
    for name, one in pressures.items():
        if not one.sound:
            status = 1
            say(f"{name}: no P(V): {_why(one.curve)}")
            continue
        try:
            points, lost = one.gather()
            found = fit_pressure(points, draws=one.settings.draws, seed=one.settings.seed)
        except DataError as error:
            status = 1
            say(f"{name}: no P(V): {error}")
            continue
        for line in describe_pressure(
            name, points, found, temperature_K=one.settings.temperature_K
        ):
            say(line)
        for line in lost:
            say(f"  {line}")
        if lost or not one.complete:
            status = 1
        else:
            write_group(pressure_table(points, found), one.place / "pv.zarr", kind="table")
        try:
            still, text = converged(one)
        except DataError as error:
            still, text = False, str(error)
        say(f"  {'converged' if still else 'NOT converged'}: {text}")
        shown[name] = points, found
        results[name] = {
            "level": one.curve.level.spec,
            "temperature_K": one.settings.temperature_K,
            "converged": still,
            "largest_pressure_is_bound": found.bound,
            **{
                key: None if value is None else [value.value, value.low, value.high]
                for key, value in (
                    ("volume_A3", found.equilibrium_volume),
                    ("bulk_modulus_GPa", found.bulk_modulus),
                    ("largest_pressure_GPa", found.largest_pressure),
                )
            },
        }
    if shown:
        title = f"P(V) at {next(iter(pressures.values())).settings.temperature_K:g} K"
        plot_pressure(shown, title=title).savefig(place / "pv.png", dpi=150)
        write_json(results, place / "pv.json")
    return status


def _why(one: Any) -> str:
    from mofal.mechanics.curve import Record

    if not one.first().done:
        return "the minimum is missing; run the same command again"
    found = Record.load(one.point("minimum"))
    return (
        f"the structure given does not relax ({found.status}: {found.reason}); "
        "once mended: --retry-failed"
    )


def summary_of(found: Any, one: Any, cells: float | None) -> dict[str, Any]:
    """What `eos.json` holds of one system."""
    out: dict[str, Any] = {
        "level": one.level.spec,
        "level_identity": one.level.identity,
        "atoms": int(one.structure["n_atoms"].values[0]),
        "group": str(one.place.name),
        "problem": found.problem,
        "failed": found.failed,
        "largest_hysteresis_eV": _largest(found.hysteresis),
    }
    w = found.windows
    if w is not None:
        out |= {
            "bulk_modulus_GPa": w.bulk_modulus,
            "volume_A3": w.best.volume,
            "bulk_modulus_derivative": w.best.derivative,
            "spread": w.spread,
            "agreed": w.agreed,
            "window_A3": list(w.window),
            "fits": {
                f.equation: {
                    "bulk_modulus_GPa": f.bulk_modulus,
                    "volume_A3": f.volume,
                    "derivative": f.derivative,
                }
                for f in w.fits
            },
        }
        if cells is not None:
            out["volume_per_456_atom_cell_A3"] = w.best.volume / cells
    return out


def _largest(values: np.ndarray) -> float | None:
    kept = values[np.isfinite(values)]
    return float(np.abs(kept).max()) if len(kept) else None


def describe_curve(name: str, found: Any, *, n_atoms: int, cells: float | None) -> list[str]:
    """E(V) as lines of text."""
    w = found.windows
    if w is None:
        return [f"{name}: no equation of state: {found.problem}"]
    lines = []
    per = f" ({w.best.volume / cells:.0f} Å³ per 456-atom cell)" if cells else ""
    lines.append(
        f"{name}: K {w.bulk_modulus:.2f} GPa, V0 {w.best.volume:.2f} Å³{per}, "
        f"K' {w.best.derivative:.2f} at 0 K"
    )
    for fit in [*w.fits, w.energy_alone]:
        label = fit.equation if fit is not w.energy_alone else "energies alone"
        lines.append(
            f"  {label:16s} K {fit.bulk_modulus:8.3f} GPa   V0 {fit.volume:10.3f} Å³   "
            f"K' {fit.derivative:6.2f}   residual {1000 * fit.residual / n_atoms:.4f} meV/atom"
        )
    agreed = "agree within" if w.agreed else "do NOT agree: they differ by"
    lines.append(
        f"  window {w.window[0]:.1f} to {w.window[1]:.1f} Å³ ({w.n_volumes} of "
        f"{len(found.volume)} volumes); the equations {agreed} {100 * w.spread:.1f} %"
    )
    worst = _largest(found.hysteresis)
    if worst is not None:
        lines.append(f"  hysteresis {1000 * worst:.3f} meV at most between the ways out and back")
    return lines
