"""`mofal match`: which cluster carries the environment that it is cut for, and at what cost.

Frames of a system, candidate blueprints for a core, forces in parents and clusters at one or more
levels (references, potentials), a table per level, and a verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign.judgement import defect_atoms
from mofal.campaign.label import label_structures, local_schedule
from mofal.errors import ConfigError, StructureError

if TYPE_CHECKING:
    import xarray as xr

Say = Callable[[str], None]


def match(
    system: str,
    *,
    cell: str = "conventional",
    references: Sequence[str],
    potentials: Sequence[str] = (),
    frames: int = 3,
    shells: Sequence[int] = (0, 1),
    core: str | None = None,
    tolerance_meV: float = 100.0,
    directory: str | os.PathLike[str] = "match",
    workers: int | None = None,
    seed: int = 0,
    say: Say = print,
) -> int:
    """Compare forces in clusters with those in their parent; say which cluster is good.

    Parameters
    ----------
    system : str
        Name of a framework, or a structure file.
    cell : str
        Of a framework by name.
    references, potentials : sequence of str
        Levels: specifications of references, directories of models.
    frames : int
        Perturbed frames (600 K) to average over.
    shells : sequence of int
        Whole shells of blocks around the core to try; half of the first shell is tried too.
    core : str, optional
        Formula of the core block; default: a node that lacks a neighbour, else the first node.
    tolerance_meV : float
        Largest RMSE on core atoms, meV/Å.
    directory : path
        Labels, tables (JSON), plots, and `blueprints.json` for `selection.blueprints`.
    workers : int, optional
        Processes; default: one per core.
    seed : int
        Of the frames.

    Returns
    -------
    int
        0 where a candidate passes at every level, 1 where none does at some level.
    """
    from mofal.clusters import candidates, cut_candidates
    from mofal.data import write_json
    from mofal.dynamics import sample_harmonic

    if frames < 1:
        raise ConfigError(f"--frames is {frames}, expected at least 1")
    structure, blocks = _system(system, cell)
    chosen = _core(blocks, core)
    name = str(structure["system"].values[0])
    parents = sample_harmonic(
        structure,
        n=frames,
        seed=(seed, 7),
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
    )
    parents["system"] = ("structure", np.array([name] * frames, np.dtypes.StringDType()))
    focus = np.intersect1d(defect_atoms(blocks), _atoms_of(blocks, chosen))
    plans = candidates(
        blocks, chosen, shells=shells, partial=1 in shells, focus=focus if len(focus) else None
    )
    clusters, refused = cut_candidates(parents, plans, blocks)
    for why in sorted({str(r) for r in refused["reason"].values}):
        say(f"refused: {why}")
    if not clusters.sizes["structure"]:
        raise StructureError("no candidate is a sound cluster; the reasons stand above")
    say(
        f"{name}: core {blocks['formula'].values[chosen]}, "
        f"{plans.sizes['blueprint']} candidates, "
        f"{frames} frames of {int(structure.n_atoms[0])} atoms"
    )
    place = Path(directory)
    ok = True
    results: dict[str, Any] = {}
    for level in [*references, *potentials]:
        forces = (
            _reference_forces(level, parents, clusters, place, workers, say)
            if level in references
            else _potential_forces(level, parents, clusters)
        )
        result = _compare(level, parents, clusters, forces, focus, tolerance_meV, place, say)
        results[level] = result
        ok = ok and bool(result["verdict"]["passed"])
    write_json(results, place / "match.json")
    _write_blueprints(place / "blueprints.json", blocks, chosen, plans, results)
    return 0 if ok else 1


def _system(system: str, cell: str) -> tuple[xr.Dataset, xr.Dataset]:
    from mofal.campaign.config import SystemSettings
    from mofal.campaign.seeding import make_system

    if Path(system).is_file():
        return make_system(Path(system).stem, SystemSettings(file=Path(system)))
    return make_system(system, SystemSettings(build=system, cell=cell))  # type: ignore[arg-type]


def _core(blocks: xr.Dataset, formula: str | None) -> int:
    formulas = [str(f) for f in blocks["formula"].values]
    if formula is not None:
        if formula not in formulas:
            raise ConfigError(
                f"--core is {formula}, but the blocks are {', '.join(sorted(set(formulas)))}"
            )
        return formulas.index(formula)
    nodes = np.flatnonzero([str(r) == "node" for r in blocks["role"].values])
    if not len(nodes):
        return 0
    missing = blocks["n_missing"].values[nodes]
    return int(nodes[int(np.argmax(missing))])


def _atoms_of(blocks: xr.Dataset, block: int) -> np.ndarray:
    first = np.concatenate([[0], np.cumsum(blocks["block_n_atoms"].values)])
    return blocks["member_atom"].values[first[block] : first[block + 1]]


def _reference_forces(
    level: str,
    parents: xr.Dataset,
    clusters: xr.Dataset,
    place: Path,
    workers: int | None,
    say: Say,
) -> tuple[xr.Dataset | None, np.ndarray, np.ndarray]:
    """Forces in parents and clusters, and wall times; parents None where their labels failed."""
    from mofal.data import concat

    core_of = ["numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"]
    keep = [*core_of, "structure_id", "system", "parent"]
    attempts = label_structures(
        concat([parents[keep], clusters[keep]]),
        level,
        directory=place / "labels",
        schedule=local_schedule(workers),
        say=say,
    )
    n = parents.sizes["structure"]
    good = all(a.converged for a in attempts[:n])
    if not good:
        say(f"parents could not be labelled with {level}: {attempts[0].reason}")
    forces = np.concatenate([a.forces for a in attempts[:n]])
    labelled = parents.assign(forces=(("atom", "xyz"), forces)) if good else None
    times = np.array([a.wall_time_s for a in attempts[n:]])
    return labelled, np.concatenate([a.forces for a in attempts[n:]]), times


def _potential_forces(
    level: str, parents: xr.Dataset, clusters: xr.Dataset
) -> tuple[xr.Dataset, np.ndarray, np.ndarray]:
    from mofal.potential import load

    potential = load(level)
    whole = parents.assign(forces=potential.evaluate(parents)["forces"])
    # A potential's cost is that of its atoms; a time of its own would be noise.
    cost = clusters["n_atoms"].values.astype(float)
    return whole, np.asarray(potential.evaluate(clusters)["forces"].values), cost


def _compare(
    level: str,
    parents: xr.Dataset,
    clusters: xr.Dataset,
    forces: tuple[xr.Dataset | None, np.ndarray, np.ndarray],
    focus: np.ndarray,
    tolerance_meV: float,
    place: Path,
    say: Say,
) -> dict[str, Any]:
    from mofal.clusters import compare_forces, verdict

    labelled, cluster_forces, wall_time = forces
    groups = {"formate": focus} if len(focus) else None
    table = compare_forces(
        labelled,
        clusters.assign(wall_time=("structure", wall_time)),
        cluster_forces,
        groups=groups,
    )
    found = verdict(table, tolerance_meV=tolerance_meV)
    symbols = [str(s) for s in table["element"].values]
    metal = next((s for s in ("Zr", "Hf", "Zn", "Cu", "Al", "Ti", "Cr", "Fe") if s in symbols), "")
    say("")
    say(f"{level}: RMSE of cluster against {found.compared_with}, meV/Å")
    head = f"{'candidate':<22}{'atoms':>6}{'core':>8}"
    head += (f"{metal:>8}" if metal else "") + (f"{'formate':>9}" if groups else "")
    say(head + f"{'all':>8}{'cost':>10}")
    rows = []
    for k, name in enumerate(str(c) for c in table["candidate"].values):
        row: dict[str, Any] = {
            "candidate": name,
            "n_atoms": int(table["n_atoms"][k]),
            "n_electrons": int(table["n_electrons"][k]),
            "core": 1000 * float(table["rmse_core"][k]),
            "all": 1000 * float(table["rmse_all"][k]),
            "cost": float(table["cost"][k]),
            "larger_than_parent": bool(table["larger_than_parent"][k]),
            "elements": {
                s: 1000 * float(table["rmse_element"][k, j]) for j, s in enumerate(symbols)
            },
        }
        if groups:
            row["formate"] = 1000 * float(table["rmse_group"][k, 0])
        rows.append(row)
        line = f"{name:<22}{row['n_atoms']:>6}{row['core']:>8.0f}"
        line += f"{row['elements'][metal]:>8.0f}" if metal else ""
        line += f"{row['formate']:>9.0f}" if groups else ""
        flag = "  (larger than its parent)" if row["larger_than_parent"] else ""
        say(line + f"{row['all']:>8.0f}{row['cost']:>10.3g}{flag}")
    say(f"verdict: {found.text}")
    picture = place / f"match-{_slug(level)}.png"
    _plot(table, tolerance_meV, level, picture)
    say(f"plot: {picture}")
    return {"rows": _finite(rows), "verdict": found.to_dict()}


def _finite(content: Any) -> Any:
    """NaN as None, so that JSON can hold it."""
    if isinstance(content, dict):
        return {k: _finite(v) for k, v in content.items()}
    if isinstance(content, list):
        return [_finite(v) for v in content]
    return None if isinstance(content, float) and content != content else content


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in Path(text).name).strip("-")


def _plot(table: xr.Dataset, tolerance_meV: float, level: str, path: Path) -> None:
    """Force difference against the distance to the nearest cut bond, one line per candidate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), constrained_layout=True)
    candidate = table["candidate_index"].values
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, table.sizes["candidate"]))
    for k, name in enumerate(str(c) for c in table["candidate"].values):
        values = 1000 * table["rmse_distance"].values[k]
        good = np.isfinite(values)
        axes.plot(
            table["distance"].values[good], values[good], "o-", color=colours[k], label=name, ms=4
        )
        mine = candidate == k
        axes.plot(
            table["cut_distance"].values[mine],
            1000 * table["rmse"].values[mine],
            ".",
            color=colours[k],
            alpha=0.35,
            ms=4,
        )
    axes.axhline(tolerance_meV, color="0.4", ls="--", lw=1, label="tolerance (core)")
    axes.set(
        xlabel="distance to the nearest cut bond (Å)",
        ylabel="RMSE of forces (meV/Å)",
        yscale="log",
        title=f"Cluster against parent, {Path(level).name}",
    )
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _write_blueprints(
    path: Path, blocks: xr.Dataset, core: int, plans: xr.Dataset, results: dict[str, Any]
) -> None:
    """Write the verdict as a campaign reads it (`selection.blueprints`): shells by kind of core.

    What every level accepts, so the largest of the chosen whole shells; a kind whose verdicts
    chose a partial mantle takes the whole shell that contains it.
    """
    from mofal.data import write_json

    names = [str(n) for n in plans["name"].values]
    wanted = []
    for result in results.values():
        depth = int(plans["shells"].values[names.index(result["verdict"]["candidate"])])
        wanted.append(depth if depth >= 0 else 1)
    entry = {
        "formula": str(blocks["formula"].values[core]),
        "shells": max(wanted),
        "passed": all(r["verdict"]["passed"] for r in results.values()),
        "verdicts": {level: r["verdict"] for level, r in results.items()},
    }
    write_json({"blueprints": {str(blocks["kind_hash"].values[core]): _finite(entry)}}, path)
