"""Claims 11 and 12: bulk moduli by E(V), and P(V) up to the pressure that a crystal withstands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from mofal.data import atomic_path
from mofal.errors import DataError
from mofal.frameworks import build, disorder, find_blocks, supercell
from mofal.mechanics import (
    Criteria,
    Curve,
    CurveSettings,
    Minimum,
    PressureVolume,
    energy_volume,
    fit_pressure,
    potential_level,
    run_serial,
)
from mofal.mechanics.curve import Record
from mofal.mechanics.pressure_curve import pressure_table
from mofal.mechanics.pressure_settings import PressureSettings
from paper import judge
from paper.forces import Result, _title
from paper.judge import Finding
from paper.lab import SEED, Lab
from paper.settings import SUPER, SUPER_STAR
from paper.store import Node

PAPER_P_MAX = {"S_pr": 1.09, "S_ld": 1.01, "S_reo": 0.34, "S_bcu": 0.19, "S_scu": 0.05}
"""GPa; P(V) at 300 K. Of S_reo a lower bound."""
PAPER_K = {
    "S_pr": 38.1, "S_reo": 17.7, "S_bcu": 10.7, "S_scu": 4.9, "S_ld": 32, "S_ld-2-1": 28,
    "S_pr^hf": 36, "S_sup": 12.5,
}  # fmt: skip
"""GPa; E(V) at 0 K where the paper has it, P(V) at 300 K for ld, ld-2 and pr^hf."""


def make_curve(
    path: Path,
    model: Path,
    *,
    name: str,
    repeat: list[int],
    seed: int,
    curve: dict[str, Any],
    work: str,
) -> None:
    """E(V) of a system with a model; the points are durable in `work`."""
    if name in ("S_sup", "S_sup*"):
        large = supercell(build("S_pr"), tuple(repeat))
        structure = disorder(
            large, **(SUPER if name == "S_sup" else SUPER_STAR), seed=seed, system=name
        )
    else:
        structure = build(name, repeat=tuple(repeat))
    plan = Curve(
        structure,
        potential_level(model),
        directory=Path(work) / name.replace("*", "-star"),
        settings=CurveSettings(
            volumes=curve["volumes"],
            spacing=curve["spacing"],
            both_ways=False,
            criteria=Criteria(
                max_force=curve["max_force"],
                max_stress_MPa=1e3 * curve["max_force"],
                max_steps=curve["max_steps"],
            ),
        ),
        blocks=find_blocks(structure),
    )
    run_serial(plan, print)
    gathered = plan.gather()
    found = energy_volume(gathered)
    cells = structure.sizes["atom"] and int(np.prod(repeat))
    out: dict[str, Any] = {
        "volume_A3": (found.volume / cells).tolist(),
        "energy_eV": (found.energy / cells).tolist(),
        "pressure_GPa": found.pressure.tolist(),
        "failed": found.failed,
        "problem": found.problem,
        "n_atoms": int(structure.sizes["atom"]),
        "K_GPa": None,
        "V0_A3": None,
    }
    if found.windows is not None:
        out |= {
            "K_GPa": found.windows.bulk_modulus,
            "V0_A3": found.windows.best.volume / cells,
            "agreed": bool(found.windows.agreed),
        }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(out))


def make_pressures(
    path: Path,
    model: Path,
    *,
    name: str,
    engine: str,
    curve: dict[str, Any],
    pressure: dict[str, Any],
    work: str,
) -> None:
    """P(V) of a system's conventional cell with a model; the runs are durable in `work`."""
    structure = build(name)
    start = Curve(
        structure,
        potential_level(model, engine=engine),
        directory=Path(work) / name,
        settings=CurveSettings(
            criteria=Criteria(
                max_force=curve["max_force"],
                max_stress_MPa=1e3 * curve["max_force"],
                max_steps=curve["max_steps"],
            ),
        ),
        blocks=find_blocks(structure),
    )
    run_serial(Minimum(start), print)
    settings = PressureSettings(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in pressure.items()}
    )
    plan = PressureVolume(start, settings)
    run_serial(plan, print)
    out: dict[str, Any] = {"lost": [], "problem": "", "n_atoms": int(structure.sizes["atom"])}
    try:
        if not plan.sound:
            begin = Record.load(start.point("minimum"))
            raise DataError(f"its minimum: {begin.status}, {begin.reason}")
        points, out["lost"] = plan.gather()
        fitted = fit_pressure(points, draws=settings.draws, seed=settings.seed)
    except DataError as error:
        out["problem"] = str(error)
    else:
        table = pressure_table(points, fitted)
        for key in ("pv_volume", "pv_pressure", "pv_pressure_error"):
            out[key] = table[key].values.tolist()
        for key in ("curve_volume", "curve_pressure"):
            out[key] = table[key].values[::10].tolist()
        out |= table.attrs
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(out))


def pressure_node(lab: Lab, name: str) -> Node:
    """P(V) of a system with mlp_sup^c."""
    return lab.store.node(
        f"pv.{name}",
        make_pressures,
        lab.super_model(larger=True),
        suffix=".json",
        where={"work": str(lab.store.work / "pv")},
        name=name,
        engine=lab.size.pressure_engine,
        curve=lab.size.curve,
        pressure=lab.size.pressure,
    )


def curve_node(lab: Lab, name: str, repeat: tuple[int, int, int], seed: int = SEED) -> Node:
    """E(V) of a system with mlp_sup^c."""
    return lab.store.node(
        f"eos.{name}".replace("*", "-star").replace("^", "-"),
        make_curve,
        lab.super_model(larger=True),
        suffix=".json",
        where={"work": str(lab.store.work / "eos")},
        name=name,
        repeat=list(repeat),
        seed=seed,
        curve=lab.size.curve,
    )


def read(lab: Lab, *nodes: Node) -> list[dict[str, Any]]:
    """Curves, made where they are not there."""
    lab.used += nodes
    return [json.loads(p.read_text()) for p in lab.store.make(*nodes)]


def table_of(curves: dict[str, dict[str, Any]]) -> xr.Dataset:
    """K, V0 and the points of all curves; NaN where there is none."""
    n = max(len(c["volume_A3"]) for c in curves.values())
    volume, energy = np.full((2, len(curves), n), np.nan)
    for k, c in enumerate(curves.values()):
        volume[k, : len(c["volume_A3"])] = c["volume_A3"]
        energy[k, : len(c["energy_eV"])] = c["energy_eV"]
    return xr.Dataset(
        {
            "volume": (("curve", "point"), volume, {"units": "Å³"}),
            "energy": (("curve", "point"), energy, {"units": "eV"}),
            "bulk_modulus": ("curve", [_number(c["K_GPa"]) for c in curves.values()]),
            "equilibrium_volume": ("curve", [_number(c["V0_A3"]) for c in curves.values()]),
        },
        coords={"curve": list(curves)},
    )


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def plot(table: xr.Dataset) -> Figure:
    """Energies above the lowest point of each curve."""
    from mofal.analysis.panels import SETS
    from mofal.analysis.style import figure_style, new_figure

    with figure_style():
        figure = new_figure(4.6, 3.4)
        ax = figure.subplots()
        for k, name in enumerate(table["curve"].values):
            v, e = table["volume"].values[k], table["energy"].values[k]
            if not np.isfinite(e).any():
                continue
            label = f"{name}: K = {float(table['bulk_modulus'][k]):.1f} GPa"
            colour = SETS[k % len(SETS)]
            ours = np.isfinite(v) & np.isfinite(e)
            v, e = v[ours], e[ours] - e[ours].min()
            # A line for the eye: K comes from equations of state fitted to energies and stresses.
            middle = v.mean()
            line = np.linspace(v.min(), v.max(), 100)
            fit = np.polynomial.Polynomial.fit(v - middle, e, min(3, len(v) - 1))
            ax.plot(
                line, fit(line - middle), color=colour, lw=1.3, ls="-" if k < len(SETS) else "--"
            )
            marker = "o" if k < len(SETS) else "s"
            ax.plot(v, e, marker, color=colour, ms=4, label=label)
        _label(figure, ax, "energy above the lowest (eV)")
    return figure


def _label(figure: Figure, ax: Any, quantity: str) -> None:
    """Name the axes of something against the volume, and put the legend beside it."""
    ax.set_xlabel("volume per conventional cell (Å³)")
    ax.set_ylabel(quantity)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def _finding(number: int, title: str, table: xr.Dataset, verdict: judge.Verdict) -> Finding:
    ours: dict[str, Any] = {}
    for k, name in enumerate(table["curve"].values.tolist()):
        value = float(table["bulk_modulus"][k])
        ours[f"K of {name} (GPa)"] = round(value, 1) if np.isfinite(value) else "no fit"
        volume = float(table["equilibrium_volume"][k])
        ours[f"V0 of {name} (Å³)"] = round(volume, 0) if np.isfinite(volume) else "no fit"
    names = {str(n).partition(" ")[0] for n in table["curve"].values}
    paper = {f"K of {s} (GPa)": v for s, v in PAPER_K.items() if s in names}
    return Finding(number, title, paper, ours, *verdict)


def pressures_of(curves: dict[str, dict[str, Any]]) -> xr.Dataset:
    """Points and curves of P(V); NaN where there is none."""
    rows = {k: max(len(c.get(k, ())) for c in curves.values()) for k in _PRESSURE}
    out = {}
    for key, (dim, units) in _PRESSURE.items():
        values = np.full((len(curves), rows[key]), np.nan)
        for k, c in enumerate(curves.values()):
            values[k, : len(c.get(key, ()))] = c.get(key, ())
        out[key] = (("system", dim), values, {"units": units})
    nothing = [np.nan] * 3
    for key, units in (("equilibrium_volume", "Å³"), ("bulk_modulus", "GPa"),
                       ("largest_pressure", "GPa")):  # fmt: skip
        found = np.array([c.get(key, nothing) for c in curves.values()], float)
        out[key] = (("system", "of"), found, {"units": units})
    bound = [int(c.get("largest_pressure_is_bound", 0)) for c in curves.values()]
    return xr.Dataset(
        {**out, "largest_pressure_is_bound": ("system", bound)},
        coords={"system": list(curves), "of": ["value", "low", "high"]},
    )


_PRESSURE = {
    "pv_volume": ("point", "Å³"),
    "pv_pressure": ("point", "GPa"),
    "pv_pressure_error": ("point", "GPa"),
    "curve_volume": ("grid", "Å³"),
    "curve_pressure": ("grid", "GPa"),
}


def plot_pressures(table: xr.Dataset) -> Figure:
    """P(V) with its largest pressure."""
    from mofal.analysis.panels import SETS
    from mofal.analysis.style import figure_style, new_figure

    with figure_style():
        figure = new_figure(4.6, 3.4)
        ax = figure.subplots()
        for k, name in enumerate(table["system"].values):
            one = table.isel(system=k)
            if not np.isfinite(one["curve_volume"].values).any():
                continue
            top, low, _ = one["largest_pressure"].values
            sign = "="
            if int(one["largest_pressure_is_bound"]):
                top, sign = min(low, top), ">"
            colour = SETS[k % len(SETS)]
            ax.plot(one["curve_volume"], one["curve_pressure"], color=colour, lw=1.3)
            ax.errorbar(
                one["pv_volume"], one["pv_pressure"], one["pv_pressure_error"],
                fmt="o", ms=4, color=colour, label=f"{name}: P_max {sign} {top:.2f} GPa",
            )  # fmt: skip
        ax.axhline(0.0, color="0.7", lw=0.8, zorder=0)
        _label(figure, ax, "pressure at 300 K (GPa)")
    return figure


def claim_11(lab: Lab) -> Result:
    """K and P_max fall in the order pr, ld, ld-2, reo, bcu, scu."""
    nodes = {s: curve_node(lab, s, (1, 1, 1)) for s in lab.size.curve_systems}
    pressed = {s: pressure_node(lab, s) for s in lab.size.pressure_systems}
    found = read(lab, *nodes.values(), *pressed.values())
    table = table_of(dict(zip(nodes, found)))
    squeezed = dict(zip(pressed, found[len(nodes) :]))
    modulus = dict(zip(map(str, table["curve"].values), table["bulk_modulus"].values.tolist()))
    largest = {
        s: (float(c["largest_pressure"][0]), bool(c["largest_pressure_is_bound"]))
        for s, c in squeezed.items()
        if "largest_pressure" in c
    }
    finding = _finding(11, _title(claim_11), table, judge.judge_order(modulus, largest))
    for s, c in squeezed.items():
        if s in largest:
            top, low, high = c["largest_pressure"]
            finding.ours[f"P_max of {s} (GPa)"] = (
                f"> {min(low, top):.2f}"
                if largest[s][1]
                else f"{top:.2f} ({low:.2f} to {high:.2f})"
            )
            if "bulk_modulus" in c:
                k, low, high = c["bulk_modulus"]
                finding.ours[f"K of {s} at 300 K (GPa)"] = f"{k:.1f} ({low:.1f} to {high:.1f})"
        else:
            finding.ours[f"P_max of {s} (GPa)"] = f"no curve: {c['problem']}"
        if s in PAPER_P_MAX:
            finding.paper[f"P_max of {s} (GPa)"] = PAPER_P_MAX[s] if s != "S_reo" else "> 0.34"
        for line in c["lost"]:
            finding.caveats.append(f"P(V) of {s}: {line}")
    figures, tables = {"curves": plot(table)}, {"curves": table}
    if squeezed:
        tables["pressures"] = pressures_of(squeezed)
        figures["pressures"] = plot_pressures(tables["pressures"])
        ps = lab.size.pressure["length_fs"] / 1000
        finding.scaled.append(
            f"P(V): {', '.join(squeezed)}, {ps:g} ps a point (paper 50), "
            f"{len(lab.size.pressure['volumes'])} volumes"
        )
    else:
        finding.scaled.append("E(V) at 0 K alone; P(V) and P_max not run")
    finding.scaled += _longer(lab)
    return finding, figures, tables


def _longer(lab: Lab) -> list[str]:
    if lab.size.longer == 1:
        return []
    return [f"mlp_sup^c is mlp_sup^c*, trained {lab.size.longer} times as long (paper: larger)"]


def claim_12(lab: Lab) -> Result:
    """K of the disordered supercell falls threefold."""
    repeat = lab.size.mechanics_cell
    nodes = {"S_pr": curve_node(lab, "S_pr", (1, 1, 1))}
    for name in ("S_sup*", "S_sup"):
        for k in range(lab.size.realisations):
            nodes[f"{name} {k}"] = curve_node(lab, name, repeat, SEED + 300 + k)
    table = table_of(dict(zip(nodes, read(lab, *nodes.values()))))
    values: dict[str, list[float]] = {}
    for name, value in zip(table["curve"].values, table["bulk_modulus"].values):
        values.setdefault(str(name).partition(" ")[0], []).append(float(value))
    mean = {s: float(np.mean(v)) for s, v in values.items()}
    finding = _finding(12, _title(claim_12), table, judge.judge_fall(mean))
    spread = {s: (float(np.min(v)), float(np.max(v))) for s, v in values.items() if len(v) > 1}
    for name in mean:
        if np.isfinite(mean[name]):
            finding.ours[f"K of {name} (GPa)"] = round(mean[name], 1)
    finding.ours |= {
        f"K of {s}, least and most (GPa)": [round(x, 1) for x in pair] for s, pair in spread.items()
    }
    finding.scaled.append(
        f"supercells of {repeat}, {lab.size.realisations} realisation(s) (paper: 4x4x4, one)"
    )
    finding.scaled += _longer(lab)
    return finding, {"curves": plot(table)}, {"curves": table}
