"""What mechanics found, in words, tables, pictures, and a section of the report."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import ConfigError, DataError
from mofal.frameworks import system_names

if TYPE_CHECKING:
    import xarray as xr

    from mofal.mechanics.levels import Level

Say = Callable[[str], None]

ROUND = 14.672  # Å between the centres of two bricks of UiO-66


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


def show_curves(
    curves: dict[str, Any], place: Path, say: Say, judge: Callable[[xr.Dataset], Any] | None = None
) -> int:
    """Write tables and pictures of E(V), and say what was found."""
    from mofal.data import select, write_group, write_json
    from mofal.mechanics import block_motion, energy_volume
    from mofal.mechanics.curve import fit_table
    from mofal.mechanics.domain import describe_domain
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
        known = None
        if judge is not None:
            domain = judge(select(curve, found.index))
            known = domain.known
            for line in describe_domain(found.volume, domain):
                say(line)
            table["unfamiliar_share"] = ("volume_point", domain.share)
            table["mean_log_likelihood"] = ("volume_point", domain.log_likelihood)
        if one.complete:
            write_group(table, one.place / "fit.zarr", kind="table")
        plot_curve(found, title=f"{name}, {one.level.label}", n_atoms=n, known=known).savefig(
            place / f"{name}-eos.png", dpi=150
        )
        if one.blocks is not None:
            motion = block_motion(curve, found.index, one.blocks)
            if one.complete:
                write_group(motion, one.place / "motion.zarr", kind="table")
            for line in describe_motion(motion):
                say(line)
            plot_motion(motion, title=f"{name}, {one.level.label}").savefig(
                place / f"{name}-motion.png", dpi=150
            )
        shown[name], sizes[name] = found, n
        results[name] = summary_of(found, one, cells)
    if len(shown) > 1:
        plot_overlay(shown, sizes).savefig(place / "eos.png", dpi=150)
        for line in describe_realisations(results):
            say(line)
    if results:
        write_json(results, place / "eos.json")
        say(f"tables and pictures: {place}")
    return status


def describe_realisations(results: dict[str, dict[str, Any]]) -> list[str]:
    """Mean and spread of K over realisations of one composition (``S_sup-0``, ``S_sup-1``, ...).

    Parameters
    ----------
    results : mapping
        Of `summary_of`, by name; a campaign's first realisation has no number.
    """
    groups: dict[str, list[float]] = {}
    named = system_names()
    for name, result in results.items():
        numbered = re.fullmatch(r"(.+)-\d+", name)
        # S_ld-2-1 is a framework of its own: no realisation of another.
        base = numbered.group(1) if numbered and name not in named else name
        if "bulk_modulus_GPa" in result:
            groups.setdefault(base, []).append(result["bulk_modulus_GPa"])
    return [
        f"{base}: K of {len(moduli)} realisations {np.mean(moduli):.2f} GPa on average, standard "
        f"deviation {np.std(moduli, ddof=1):.2f}, {min(moduli):.2f} to {max(moduli):.2f} GPa"
        for base, moduli in groups.items()
        if len(moduli) > 1
    ]


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
            **engine_of(one.level),
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


def show_pressure(
    pressures: dict[str, Any],
    place: Path,
    say: Say,
    judge: Callable[[xr.Dataset], Any] | None = None,
) -> int:
    """Write tables and a picture of P(V), and say what was found."""
    from mofal.data import write_group, write_json
    from mofal.mechanics.convergence import converged, describe_needing
    from mofal.mechanics.domain import describe_domain
    from mofal.mechanics.plots import plot_pressure
    from mofal.mechanics.pressure_curve import (
        describe_pressure,
        fit_pressure,
        pressure_table,
    )

    status = 0
    shown: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
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
        verdict = ""
        if judge is not None:
            frames, volumes = one.frames()
            domain = judge(frames)
            for line in describe_domain(volumes, domain):
                say(line)
            unknown[name] = volumes[~domain.known]
            # What decides P_max lies at volumes down to that of the maximum.
            top = float(found.volume[int(np.argmax(found.pressure))])
            near = volumes >= top - 0.005 * top
            inside = bool(domain.known[near].all())
            verdict = "inside" if inside else "outside"
            say(f"  P_max lies {verdict} what the potential has learnt")
        if lost or not one.complete:
            status = 1
        else:
            write_group(pressure_table(points, found), one.place / "pv.zarr", kind="table")
        needs = ""
        try:
            still, text = converged(one)
            needs = "" if still else describe_needing(one, points)
        except DataError as error:
            still, text = False, str(error)
        say(f"  {'converged' if still else 'NOT converged'}: {text}")
        if needs:
            say(f"  {needs}")
        shown[name] = points, found
        results[name] = {
            "level": one.curve.level.spec,
            **engine_of(one.curve.level),
            "temperature_K": one.settings.temperature_K,
            "converged": still,
            "largest_pressure_is_bound": found.bound,
            "what_the_potential_has_learnt": verdict,
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
        kelvin = next(iter(pressures.values())).settings.temperature_K
        title = f"P(V) at {kelvin:g} K, classical nuclei"
        plot_pressure(shown, title=title, unknown=unknown).savefig(place / "pv.png", dpi=150)
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


def engine_of(level: Level) -> dict[str, str]:
    """The engine of a potential, for the record; nothing of a reference."""
    return {"engine": level.engine} if level.kind == "potential" else {}


def summary_of(found: Any, one: Any, cells: float | None) -> dict[str, Any]:
    """What `eos.json` holds of one system."""
    out: dict[str, Any] = {
        "level": one.level.spec,
        "level_identity": one.level.identity,
        **engine_of(one.level),
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
            "misfit": None if np.isnan(w.misfit) else w.misfit,
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
        + ("" if w.agreed else ", NOT to be relied on: the equations of state do not describe it")
    )
    for fit in [*w.fits, w.energy_alone]:
        label = fit.equation if fit is not w.energy_alone else "energies alone"
        lines.append(
            f"  {label:16s} K {fit.bulk_modulus:8.3f} GPa   V0 {fit.volume:10.3f} Å³   "
            f"K' {fit.derivative:6.2f}   residual {1000 * fit.residual / n_atoms:.4f} meV/atom"
        )
    how = "" if w.agreed else "only "
    follow = "" if np.isnan(w.misfit) else f", and follow the pressures to {100 * w.misfit:.1f} %"
    lines.append(
        f"  window {w.window[0]:.1f} to {w.window[1]:.1f} Å³ ({w.n_volumes} of "
        f"{len(found.volume)} volumes); the equations agree {how}within "
        f"{100 * w.spread:.1f} %{follow}"
    )
    worst = _largest(found.hysteresis)
    if worst is not None:
        lines.append(f"  hysteresis {1000 * worst:.3f} meV at most between the ways out and back")
    return lines


# ---------------------------------------------------------------------------------- report
