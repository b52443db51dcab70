"""`mofal match`: which cluster carries the environment that it is cut for, and at what cost.

Frames of a system, candidate blueprints for a core, forces in parents and clusters at one or more
levels (references, potentials), a table per level, and a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import atomic_numbers

from mofal.campaign.config import SystemSettings
from mofal.campaign.electrons import with_spin
from mofal.campaign.prepare import make_system
from mofal.campaign.steps.label import label_structures, local_schedule
from mofal.clusters.blueprints import on_rods
from mofal.clusters.graph import block_graph
from mofal.clusters.matched import write_blueprints
from mofal.commands.match_plots import plot_by_distance, plot_on_structure, write_structures
from mofal.commands.match_settings import MatchSettings, examine
from mofal.data import concat, from_atoms, select, write_json
from mofal.data.text import read_atoms
from mofal.data.variables import STRING
from mofal.errors import ConfigError, StructureError
from mofal.frameworks.bonds import IS_METAL
from mofal.frameworks.cells import LEAST_IMAGE, nearest_image
from mofal.frameworks.defects import defect_atoms, defect_name

if TYPE_CHECKING:
    import xarray as xr

Say = Callable[[str], None]
Forces: TypeAlias = "tuple[xr.Dataset | None, np.ndarray, tuple[np.ndarray, str]]"
"""Labelled parents (None where that failed), forces in clusters, their cost and its unit."""


def match(system: str, settings: MatchSettings, *, say: Say = print) -> int:
    """Compare forces in clusters with those in their parent; say which cluster is good.

    Parameters
    ----------
    system : str
        Name of a framework, or a structure file. Where the file holds several structures, they are
        the frames.
    settings : MatchSettings
        Levels to compare at, candidates, where results go.
    say : callable
        Takes the tables, line by line.

    Returns
    -------
    int
        0 where a candidate passes at every level, 1 where none does at some level.
    """
    from mofal.clusters import candidates, cut_candidates

    place = settings.place
    floors = examine(settings, say)
    local_schedule(settings.workers)
    structure, blocks = _system(system, settings.cell, settings.rule)
    if structure.attrs.get("remarks"):
        say(f"{structure['system'].values[0]}: {structure.attrs['remarks']}")
    _check_elements(structure, settings.potentials)
    chosen = _core(blocks, settings.core)
    shells = settings.shells
    if shells is None:
        shells = (0, 1, 2) if on_rods(block_graph(blocks))[chosen] else (0, 1)
    name = str(structure["system"].values[0])
    parents = _frames(system, structure, blocks, settings.frames, settings.seed, say)
    if settings.references and set(settings.unpaired) & set(_elements(structure)):
        parents = with_spin(parents, blocks, settings.unpaired, place=name)
    n_frames = parents.sizes["structure"]
    focus = np.intersect1d(defect_atoms(blocks), _atoms_of(blocks, chosen))
    plans = candidates(
        blocks,
        chosen,
        shells=shells,
        partial=1 in shells,
        focus=focus if len(focus) else None,
        max_atoms=settings.max_atoms,
    )
    clusters, refused = cut_candidates(parents, plans, blocks, unpaired=settings.unpaired or None)
    for why in sorted({str(r) for r in refused["reason"].values}):
        say(f"refused: {why}")
    if not clusters.sizes["structure"]:
        raise StructureError("no candidate is a sound cluster; the reasons stand above")
    say(
        f"{name}: core {blocks['formula'].values[chosen]}, "
        f"{plans.sizes['blueprint']} candidates, "
        f"{n_frames} frame{'s' if n_frames > 1 else ''} of {int(structure.n_atoms[0])} atoms"
    )
    asked = _Comparison(clusters, focus, defect_name(blocks), settings.tolerance_meV, place, say)
    ok = True
    results: dict[str, Any] = {}
    levels = [*settings.references, *settings.potentials]
    for level, short in zip(levels, short_names(levels)):
        forces = (
            _reference_forces(level, parents, clusters, settings, say)
            if level in settings.references
            else _potential_forces(level, parents, clusters, settings.device)
        )
        result = _compare(asked, level, short, forces, floors.get(level))
        results[level] = result
        ok = ok and bool(result["verdict"]["passed"])
    write_json(results, place / "match.json")
    write_blueprints(place / "blueprints.json", blocks, chosen, plans, results)
    say(f"for the campaign file: selection: {{blueprints: {place / 'blueprints.json'}}}")
    return 0 if ok else 1


def _elements(structure: xr.Dataset) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in np.unique(structure["numbers"].values)]


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


def _system(system: str, cell: str, rule: str) -> tuple[xr.Dataset, xr.Dataset]:
    from mofal.frameworks import find_blocks, read_framework, rule_names

    if rule not in rule_names():
        raise ConfigError(f"--rule is {rule}; known: {', '.join(sorted(rule_names()))}")
    if Path(system).is_file():
        if Path(system).suffix.lower() not in (".cif", ".mcif") and len(read_atoms(system)) > 1:
            structure = read_framework(system, index=0, rule=rule)
            return structure, find_blocks(structure, rule=rule)
        return make_system(Path(system).stem, SystemSettings(file=Path(system), rule=rule))
    if Path(system).suffix or len(Path(system).parts) > 1:
        raise ConfigError(
            f"{system} does not exist; expected a structure file, or a name from: mofal build list"
        )
    settings = SystemSettings(build=system, cell=cell, rule=rule)  # type: ignore[arg-type]
    return make_system(system, settings)


def _frames(
    system: str, structure: xr.Dataset, blocks: xr.Dataset, n: int, seed: int, say: Say
) -> xr.Dataset:
    """Parents: the frames of a file that holds several, else perturbed ones, else the structure."""
    from mofal.clusters import check_bonds
    from mofal.dynamics import sample_harmonic

    name = str(structure["system"].values[0])
    # A CIF is read by a reader of our own, which takes one structure.
    several = Path(system).is_file() and Path(system).suffix.lower() not in (".cif", ".mcif")
    frames = read_atoms(system) if several else []
    if len(frames) < 2:
        if n == 0:
            return structure
        parents = sample_harmonic(
            structure,
            n=n,
            seed=(seed, 7),
            bonds=blocks["bond_atom"].values,
            shifts=blocks["bond_shift"].values,
        )
        return parents.assign(system=("structure", np.array([name] * n, STRING)))
    there = len(frames)
    held = from_atoms(frames, system=name, labels=False)
    chosen = np.unique(np.linspace(0, there - 1, min(n or 1, there)).round().astype(int))
    size = int(structure["n_atoms"].values[0])
    for k in chosen.tolist():
        frame = select(held, [k])
        if frame.sizes["atom"] != size or (frame.numbers.values != structure.numbers.values).any():
            raise StructureError(
                f"{system}, structure {k}: other atoms, or in another order, than structure 0; "
                "force matching takes frames of one system"
            )
    if "charge" in held and held["charge"].values[chosen].any():
        raise StructureError(f"{system} holds a charged cell; force matching takes neutral frames")
    image = nearest_image(held["cell"].values[chosen[0]])
    if image < LEAST_IMAGE:
        say(
            f"{system}: atoms have images at {image:.1f} Å, {LEAST_IMAGE:g} Å are wanted; clusters "
            "hold images of their core, and a Gamma-only level is not converged in the frames"
        )
    say(f"frames of {system}: " + ", ".join(map(str, chosen.tolist())) + f" of {there}")
    parents = select(held, chosen)[
        [
            "numbers",
            "positions",
            "cell",
            "pbc",
            "n_atoms",
            "system",
            "structure_index",
            "structure_id",
        ]
    ]
    parents.attrs = {}
    checked = check_bonds(parents, {name: blocks})
    for k, reason in zip(chosen.tolist(), (str(r) for r in checked["reason"].values)):
        if reason:
            raise StructureError(
                f"{system}, structure {k}: {reason}; leave out frames whose bonds are broken"
            )
    return parents


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
    settings: MatchSettings,
    say: Say,
) -> Forces:
    """Forces in parents and clusters, and wall times; parents None where all of them failed."""
    core_of = ["numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"]
    keep = [*core_of, "structure_id", "system", "parent", "charge", "n_unpaired"]
    n = parents.sizes["structure"]
    if "n_unpaired" not in parents:
        parents = parents.assign(n_unpaired=("structure", np.zeros(n, np.int32)))
    neutral = parents.assign(
        parent=("structure", np.array([""] * n, STRING)),
        charge=("structure", np.zeros(n, np.int32)),
    )
    structures = concat([neutral[keep], clusters[keep]])
    attempts = label_structures(
        structures,
        level,
        directory=settings.place / "labels",
        schedule=local_schedule(settings.workers, [level], structures),
        retry_failed=settings.retry_failed,
        caches=settings.caches,
        say=say,
    )
    bad = [a for a in attempts[:n] if not a.converged]
    if bad:
        say(
            f"{len(bad)} of {n} parents have no label with {level} "
            f"({bad[0].status}: {bad[0].reason})"
        )
        say(
            "their frames are left out; try them again with --retry-failed"
            if len(bad) < n
            else "clusters are compared with the largest of them instead"
        )
    forces = np.concatenate([a.forces for a in attempts[:n]])
    labelled = parents.assign(forces=(("atom", "xyz"), forces)) if len(bad) < n else None
    times = np.array([a.wall_time_s for a in attempts[n:]])
    return labelled, np.concatenate([a.forces for a in attempts[n:]]), (times, "s")


def _potential_forces(level: str, parents: xr.Dataset, clusters: xr.Dataset, device: str) -> Forces:
    from mofal.potential import load

    potential = load(level, device=device)
    whole = parents.assign(forces=potential.evaluate(parents)["forces"])
    # A potential's cost is that of its atoms; a time of its own would be noise.
    cost = clusters["n_atoms"].values.astype(float)
    return whole, np.asarray(potential.evaluate(clusters)["forces"].values), (cost, "atoms")


@dataclass(frozen=True)
class _Comparison:
    """What the comparisons at all levels have in common.

    Attributes
    ----------
    clusters : the candidates, cut from all frames
    focus, defect : atoms of the core where a block is missing, and what stands there
    tolerance_meV : RMSE up to which a cluster is good, meV/Å
    place : directory of pictures
    """

    clusters: xr.Dataset
    focus: np.ndarray
    defect: str
    tolerance_meV: float
    place: Path
    say: Say


def _compare(
    asked: _Comparison, level: str, short: str, forces: Forces, noise_floor: float | None
) -> dict[str, Any]:
    from mofal.clusters import compare_forces, verdict

    clusters, say, place = asked.clusters, asked.say, asked.place
    tolerance_meV, defect = asked.tolerance_meV, asked.defect
    labelled, cluster_forces, (cost, unit) = forces
    groups = {"defect": asked.focus} if len(asked.focus) else None
    table = compare_forces(
        labelled,
        clusters.assign(wall_time=("structure", cost, {"units": unit})),
        cluster_forces,
        groups=groups,
    )
    found = verdict(table, tolerance_meV=tolerance_meV, noise_floor=noise_floor)
    symbols = [str(s) for s in table["element"].values]
    in_core = {s for j, s in enumerate(symbols) if table["rmse_element"][:, j].notnull().any()}
    metal = next((s for s in symbols if s in in_core and IS_METAL[atomic_numbers[s]]), "")
    say("")
    say(f"{level}: RMSE of cluster against {found.compared_with}, meV/Å")
    wide = max(9, len(defect) + 1)
    head = f"{'candidate':<22}{'atoms':>6}{'core':>8}"
    head += (f"{metal:>8}" if metal else "") + (f"{defect:>{wide}}" if groups else "")
    unit = str(table["cost"].attrs.get("units", unit))
    frames = table["n_frames"].values
    uneven = len(set(frames.tolist()) - {0}) > 1
    say(head + f"{'all':>8}{f'cost, {unit}':>14}" + ("  frames" if uneven else ""))
    rows = []
    distances = [float(d) for d in table["distance"].values]
    for k, name in enumerate(str(c) for c in table["candidate"].values):
        row: dict[str, Any] = {
            "candidate": name,
            "n_atoms": int(table["n_atoms"][k]),
            "n_electrons": int(table["n_electrons"][k]),
            "core": 1000 * float(table["rmse_core"][k]),
            "all": 1000 * float(table["rmse_all"][k]),
            "cost": float(table["cost"][k]),
            "cost_unit": unit,
            "n_frames": int(frames[k]),
            "larger_than_parent": bool(table["larger_than_parent"][k]),
            "distance_A": distances,
            "distance": [1000 * float(v) for v in table["rmse_distance"].values[k]],
            "elements": {
                s: 1000 * float(table["rmse_element"][k, j]) for j, s in enumerate(symbols)
            },
        }
        if groups:
            row["defect"] = 1000 * float(table["rmse_group"][k, 0])
        rows.append(row)
        line = f"{name:<22}{row['n_atoms']:>6}{row['core']:>8.0f}"
        line += f"{row['elements'][metal]:>8.0f}" if metal else ""
        line += f"{row['defect']:>{wide}.0f}" if groups else ""
        line += f"{row['all']:>8.0f}{row['cost']:>14.3g}" + (f"{frames[k]:>8d}" if uneven else "")
        say(line + ("  (larger than its parent)" if row["larger_than_parent"] else ""))
    width = 22
    say(f"{'Å from the nearest cap':<{width}}" + "".join(f"{d:>7.1f}" for d in distances))
    for row in rows:
        if any(v == v for v in row["distance"]):
            cells = (f"{v:>7.0f}" if v == v else f"{'':>7}" for v in row["distance"])
            say(f"{row['candidate']:<{width}}" + "".join(cells))
    say(f"verdict: {found.text}")
    place.mkdir(parents=True, exist_ok=True)
    stem = place / f"match-{_slug(short)}"
    plot_by_distance(table, tolerance_meV, short, Path(f"{stem}.png"))
    plot_on_structure(table, clusters, short, Path(f"{stem}-atoms.png"))
    write_structures(table, clusters, Path(f"{stem}.extxyz"))
    say(f"plots: {stem}.png, {stem}-atoms.png; per atom: {stem}.extxyz")
    return {"rows": _finite(rows), "verdict": _finite(found.to_dict())}


def _finite(content: Any) -> Any:
    """NaN as None, so that JSON can hold it."""
    if isinstance(content, dict):
        return {k: _finite(v) for k, v in content.items()}
    if isinstance(content, list):
        return [_finite(v) for v in content]
    return None if isinstance(content, float) and content != content else content


def short_names(levels: Sequence[str]) -> list[str]:
    """Specifications as they are, paths by the fewest last parts that tell them apart."""
    out = []
    for level in levels:
        # Only what is a path: a specification may hold one in its options.
        parts = Path(level).absolute().parts if Path(level).exists() else (level,)
        n = 1
        while n < len(parts) and any(
            other != level and Path(other).absolute().parts[-n:] == parts[-n:] for other in levels
        ):
            n += 1
        out.append("/".join(parts[-n:]))
    return out


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")
