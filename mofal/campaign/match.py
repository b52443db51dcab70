"""`mofal match`: which cluster carries the environment that it is cut for, and at what cost.

Frames of a system, candidate blueprints for a core, forces in parents and clusters at one or more
levels (references, potentials), a table per level, and a verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mofal.campaign.judgement import defect_atoms
from mofal.campaign.label import check_seed, label_structures, local_schedule
from mofal.campaign.noise import read_noise_floor
from mofal.errors import ConfigError, StructureError

if TYPE_CHECKING:
    import xarray as xr

Say = Callable[[str], None]
Forces: TypeAlias = "tuple[xr.Dataset | None, np.ndarray, tuple[np.ndarray, str]]"
"""Labelled parents (None where that failed), forces in clusters, their cost and its unit."""

MOST_SHELLS = 4


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
    noise: str | os.PathLike[str] | None = None,
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
    noise : path, optional
        Table of `mofal noise` (`noise.json`), for the noise floor beside the verdict on references;
        default: what a GPAW preset states.
    directory : path
        Labels, tables (JSON), plots, clusters with their RMSE per atom (extxyz), and
        `blueprints.json` for `selection.blueprints`; kinds of core matched there before stay in it.
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

    place = Path(directory)
    floors = _examine(references, potentials, frames, shells, tolerance_meV, noise, place)
    check_seed(seed)
    local_schedule(workers)
    structure, blocks = _system(system, cell)
    _check_elements(structure, potentials)
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
    ok = True
    results: dict[str, Any] = {}
    for level in [*references, *potentials]:
        forces = (
            _reference_forces(level, parents, clusters, place, workers, say)
            if level in references
            else _potential_forces(level, parents, clusters)
        )
        result = _compare(
            level, parents, clusters, forces, focus, tolerance_meV, floors.get(level), place, say
        )
        results[level] = result
        ok = ok and bool(result["verdict"]["passed"])
    write_json(results, place / "match.json")
    _write_blueprints(place / "blueprints.json", blocks, chosen, plans, results)
    say(f"for the campaign file: selection: {{blueprints: {place / 'blueprints.json'}}}")
    return 0 if ok else 1


def _examine(
    references: Sequence[str],
    potentials: Sequence[str],
    frames: int,
    shells: Sequence[int],
    tolerance_meV: float,
    noise: str | os.PathLike[str] | None,
    place: Path,
) -> dict[str, float]:
    """Refuse what cannot work before anything is paid for; noise floors (meV/Å) by level."""
    from mofal.reference import get_reference

    if not references and not potentials:
        raise ConfigError("no level to compare at; give --reference or --potential")
    if frames < 1:
        raise ConfigError(f"--frames is {frames}, expected at least 1")
    if not shells or min(shells) < 0 or max(shells) > MOST_SHELLS:
        given = " ".join(map(str, shells))
        raise ConfigError(f"--shells is {given}, expected numbers from 0 to {MOST_SHELLS}")
    if not 0 < tolerance_meV < float("inf"):
        raise ConfigError(f"--tolerance is {tolerance_meV}, expected meV/Å above zero")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--directory {place} is a file; labels and tables need a directory")
    if potentials:
        from mofal.potential import load

        for level in potentials:
            load(level)
    floors: dict[str, float] = {}
    measured = None if noise is None else read_noise_floor(noise)
    for level in references:
        preset = getattr(get_reference(level), "preset", None)
        if measured is not None:
            floors[level] = measured
        elif preset is not None:
            # A preset states the RMSE between two labels; each has its part of it.
            floors[level] = 1000 * preset.noise_rmse / 2**0.5
    return floors


def _check_elements(structure: xr.Dataset, potentials: Sequence[str]) -> None:
    if not potentials:
        return
    from ase.data import chemical_symbols

    from mofal.potential import load

    # Caps are hydrogen, also where the parent has none.
    there = {chemical_symbols[z] for z in np.unique(structure["numbers"].values)} | {"H"}
    for level in potentials:
        known = set(load(level).elements)
        if there - known:
            raise ConfigError(
                f"the potential {level} knows {', '.join(sorted(known))}, "
                f"not {', '.join(sorted(there - known))}; match with one that does"
            )


def _system(system: str, cell: str) -> tuple[xr.Dataset, xr.Dataset]:
    from mofal.campaign.config import SystemSettings
    from mofal.campaign.seeding import make_system

    if Path(system).is_file():
        return make_system(Path(system).stem, SystemSettings(file=Path(system)))
    if Path(system).suffix or len(Path(system).parts) > 1:
        raise ConfigError(
            f"{system} does not exist; expected a structure file, or a name from: mofal build list"
        )
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
) -> Forces:
    """Forces in parents and clusters, and wall times; parents None where their labels failed."""
    from mofal.data import concat

    core_of = ["numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"]
    keep = [*core_of, "structure_id", "system", "parent"]
    attempts = label_structures(
        concat([parents[keep], clusters[keep]]),
        level,
        directory=place / "labels",
        schedule=local_schedule(workers, [level]),
        say=say,
    )
    n = parents.sizes["structure"]
    good = all(a.converged for a in attempts[:n])
    if not good:
        bad = next(a for a in attempts[:n] if not a.converged)
        say(f"parents could not be labelled with {level}: {bad.status}: {bad.reason}")
        say("clusters are compared with the largest of them instead")
    forces = np.concatenate([a.forces for a in attempts[:n]])
    labelled = parents.assign(forces=(("atom", "xyz"), forces)) if good else None
    times = np.array([a.wall_time_s for a in attempts[n:]])
    return labelled, np.concatenate([a.forces for a in attempts[n:]]), (times, "s")


def _potential_forces(level: str, parents: xr.Dataset, clusters: xr.Dataset) -> Forces:
    from mofal.potential import load

    potential = load(level)
    whole = parents.assign(forces=potential.evaluate(parents)["forces"])
    # A potential's cost is that of its atoms; a time of its own would be noise.
    cost = clusters["n_atoms"].values.astype(float)
    return whole, np.asarray(potential.evaluate(clusters)["forces"].values), (cost, "atoms")


def _compare(
    level: str,
    parents: xr.Dataset,
    clusters: xr.Dataset,
    forces: Forces,
    focus: np.ndarray,
    tolerance_meV: float,
    noise_floor: float | None,
    place: Path,
    say: Say,
) -> dict[str, Any]:
    from mofal.campaign.match_plots import plot_by_distance, plot_on_structure, write_structures
    from mofal.clusters import compare_forces, verdict

    labelled, cluster_forces, (cost, unit) = forces
    groups = {"formate": focus} if len(focus) else None
    table = compare_forces(
        labelled,
        clusters.assign(wall_time=("structure", cost, {"units": unit})),
        cluster_forces,
        groups=groups,
    )
    found = verdict(table, tolerance_meV=tolerance_meV, noise_floor=noise_floor)
    symbols = [str(s) for s in table["element"].values]
    in_core = {s for j, s in enumerate(symbols) if table["rmse_element"][:, j].notnull().any()}
    metal = next((s for s in ("Zr", "Hf", "Zn", "Cu", "Al", "Ti", "Cr", "Fe") if s in in_core), "")
    say("")
    say(f"{level}: RMSE of cluster against {found.compared_with}, meV/Å")
    head = f"{'candidate':<22}{'atoms':>6}{'core':>8}"
    head += (f"{metal:>8}" if metal else "") + (f"{'formate':>9}" if groups else "")
    unit = str(table["cost"].attrs.get("units", unit))
    say(head + f"{'all':>8}{f'cost, {unit}':>14}")
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
        say(line + f"{row['all']:>8.0f}{row['cost']:>14.3g}{flag}")
    say(f"verdict: {found.text}")
    place.mkdir(parents=True, exist_ok=True)
    stem = place / f"match-{_slug(level)}"
    plot_by_distance(table, tolerance_meV, Path(level).name, Path(f"{stem}.png"))
    plot_on_structure(table, clusters, Path(level).name, Path(f"{stem}-atoms.png"))
    write_structures(table, clusters, Path(f"{stem}.extxyz"))
    say(f"plots: {stem}.png, {stem}-atoms.png; per atom: {stem}.extxyz")
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


def _write_blueprints(
    path: Path, blocks: xr.Dataset, core: int, plans: xr.Dataset, results: dict[str, Any]
) -> None:
    """Write the verdict as a campaign reads it (`selection.blueprints`): shells by kind of core.

    What every level accepts, so the largest of the chosen whole shells; a kind whose verdicts
    chose a partial mantle takes the whole shell that contains it.
    """
    from mofal.data import read_json, write_json

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
    # Kinds of core that were matched in this directory before keep what was found for them.
    before = read_json(path).get("blueprints", {}) if path.is_file() else {}
    kind = str(blocks["kind_hash"].values[core])
    write_json({"blueprints": {**before, kind: _finite(entry)}}, path)
