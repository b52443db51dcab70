"""Electrons of what a campaign is going to label, looked at before anything is paid for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mofal.clusters.matched import matched_blocks, matched_shells
from mofal.data import structure_ids, to_atoms
from mofal.errors import ConfigError
from mofal.reference.base import refusal

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.directory import Site
    from mofal.reference import Reference

MOST_CORES = 300
"""Cores whose clusters are cut to be looked at, per system."""


def with_spin(
    structures: xr.Dataset, blocks: xr.Dataset, unpaired: Mapping[str, int], *, place: str
) -> xr.Dataset:
    """Whole frames of a system with their unpaired electrons, all metals parallel.

    Parameters
    ----------
    structures : Dataset of kind ``structures``
        Frames of one system.
    unpaired : mapping
        Unpaired electrons per atom of an element (`selection.unpaired`).
    place : str
        Of the system in the campaign file, for the message.

    Returns
    -------
    Dataset
        With `n_unpaired` and the `structure_id` that belongs to it where it is not zero; else as
        it was.

    Raises
    ------
    ConfigError
        A partly filled shell without its unpaired electrons, or electrons that do not pair.
    """
    from mofal.clusters.electrons import electron_reasons, open_atoms
    from mofal.clusters.graph import block_graph

    first = int(structures["n_atoms"].values[0])
    numbers = structures["numbers"].values[:first].astype(np.int64)
    atoms = np.arange(first)
    charge = int(structures["charge"].values[0]) if "charge" in structures else 0
    _, n_unpaired, reasons = electron_reasons(
        numbers,
        np.zeros(first, np.int64),
        open_atoms(block_graph(blocks), numbers, atoms),
        np.array([numbers.sum() - charge]),
        unpaired,
    )
    if reasons[0]:
        raise ConfigError(f"{place}: frames cannot be labelled: {_mended(reasons[0])}")
    if not n_unpaired[0]:
        return structures
    n = structures.sizes["structure"]
    out = structures.assign(n_unpaired=("structure", np.full(n, n_unpaired[0], np.int32)))
    return out.assign(structure_id=("structure", structure_ids(out)))


def check_electrons(
    site: Site, systems: Mapping[str, tuple[xr.Dataset, xr.Dataset]], reference: Reference | None
) -> list[str]:
    """Refuse what cutting or the reference would refuse later, from the structures as they are.

    Frames that are labelled whole (seed data, hold-out) and one cluster around each kind of core in
    each kind of neighbourhood are looked at; nothing is calculated.

    Parameters
    ----------
    reference : Reference, optional
        None where it is code of others that a dry run does not import: what it takes is then seen
        at the start.

    Returns
    -------
    list of str
        What is worth knowing: charges and unpaired electrons that labels will have.

    Raises
    ------
    ConfigError
        With the place, the reason and the mend.
    """
    config = site.config
    sources = [source.seed_data for source in config.seed_sources]
    whole = set(config.holdout_systems)
    whole |= {s.perturbed.system for s in sources if s.perturbed is not None}
    clusters = any(s.clusters is not None for s in sources)
    notes: list[str] = []
    for name, (structure, blocks) in systems.items():
        place = f"systems.{name}"
        if name in whole:
            frame = with_spin(structure, blocks, config.selection.unpaired, place=place)
            reason = "" if reference is None else refusal(reference, to_atoms(frame, 0))
            if reason:
                raise ConfigError(
                    f"{place}: {config.reference.name} does not label its frames: {reason}"
                )
            if "n_unpaired" in frame:
                n_unpaired = int(frame["n_unpaired"].values[0])
                notes.append(f"{name}: its frames have {n_unpaired} unpaired electrons")
        if name in config.explored and (config.cycles > 0 or clusters):
            lines = _check_clusters(site, name, structure, blocks, reference)
            notes += [f"{name}: {line}" for line in lines]
    return notes


def _check_clusters(
    site: Site, name: str, structure: xr.Dataset, blocks: xr.Dataset, reference: Reference | None
) -> list[str]:
    import xarray as xr

    from mofal.clusters import cut

    config = site.config
    place = f"systems.{name}"
    core = representative_cores(blocks)
    cores = xr.Dataset(
        {"core_structure": ("core", np.zeros(len(core), np.int64)), "core_block": ("core", core)}
    )
    blocks = matched_blocks({name: blocks}, config.selection.blueprints)[name]
    clusters, refused = cut(
        structure,
        {name: blocks},
        cores,
        shells=matched_shells(
            {name: blocks},
            config.selection.shells,
            config.selection.blueprints,
            along_rods=config.selection.shells_along_rods,
        ),
        max_atoms=config.selection.max_atoms,
        unpaired=config.selection.unpaired,
    )
    formula = [str(f) for f in blocks["formula"].values]
    spin, electrons = refused["n_unpaired"].values, refused["n_electrons"].values
    # Geometry differs from frame to frame; electrons do not.
    systematic = np.flatnonzero((spin < 0) | ((electrons - spin) % 2 != 0))
    if not len(systematic) and not clusters.sizes["structure"] and refused.sizes["core"]:
        systematic = np.arange(1)
    if len(systematic):
        k = int(systematic[0])
        raise ConfigError(
            f"{place}: the cluster around {formula[int(refused['core_block'][k])]} cannot be "
            f"labelled: {_mended(str(refused['reason'].values[k]))}"
        )
    notes: dict[str, None] = {}
    too_large = [k for k, why in enumerate(refused["reason"].values) if "max_atoms is" in str(why)]
    for k in too_large:
        around = formula[int(refused["core_block"][k])]
        notes[f"there are no clusters around {around}: {refused['reason'].values[k]}"] = None
    seen: set[tuple[str, int, int]] = set()
    for k in range(clusters.sizes["structure"]):
        atoms = to_atoms(clusters, k)
        charge, n_unpaired = int(atoms.info["charge"]), int(atoms.info["n_unpaired"])
        around = formula[int(clusters["parent_block"].values[k])]
        kind = (str(atoms.symbols.formula.format("hill")), charge, n_unpaired)
        if kind in seen:
            continue
        seen.add(kind)
        reason = "" if reference is None else refusal(reference, atoms)
        if reason:
            raise ConfigError(
                f"{place}: {config.reference.name} does not label the cluster around {around} "
                f"({kind[0]}): {reason}"
            )
        if bool(clusters["mantle_shortened"].values[k]):
            n, shells = (int(clusters[f"mantle_{v}"].values[k]) for v in ("left_out", "shells"))
            whole = f"has {shells} shell{'s' if shells > 1 else ''}"
            lacks = f"lacks {n} of its neighbours" if n else whole
            notes[
                f"the cluster around {around} ({kind[0]}, {len(atoms)} atoms) {lacks}: max_atoms "
                f"is {config.selection.max_atoms}"
            ] = None
        if charge or n_unpaired:
            what = [f"the charge {charge:+d} (core forces are learnt, its energy is not)"]
            what = what if charge else []
            what += [f"{n_unpaired} unpaired electrons"] if n_unpaired else []
            notes[f"the cluster around {around} ({kind[0]}) has {' and '.join(what)}"] = None
    return list(notes)


def _mended(reason: str) -> str:
    """The reason of a cutter, with the line of a campaign file beside that of Python."""
    asked = re.search(r'unpaired={"(\w+)": 1}', reason)
    if asked is None:
        return reason
    return f"{reason}; in the campaign file: selection: {{unpaired: {{{asked.group(1)}: 1}}}}"


def representative_cores(blocks: xr.Dataset) -> np.ndarray:
    """One block of each kind in each kind of neighbourhood, guests aside: their indices.

    Kinds of the neighbours are counted too: the cluster around one kind of linker differs with the
    nodes at its ends.
    """
    kinds = [str(h) for h in blocks["kind_hash"].values]
    around: list[set[str]] = [set() for _ in kinds]
    for a, b in blocks["link_block"].values.tolist():
        around[a].add(kinds[b])
        around[b].add(kinds[a])
    first: dict[tuple[str, ...], int] = {}
    for k, role in enumerate(str(r) for r in blocks["role"].values):
        if role != "guest":
            first.setdefault((kinds[k], *sorted(around[k])), k)
    return np.array(list(first.values())[:MOST_CORES], np.int64)


def describe_electrons(structure: xr.Dataset, blocks: xr.Dataset, *, most: int = 12) -> list[str]:
    """Lines on what blocks are charged or open-shell, and what was noted of the structure."""
    rows = Counter(
        (str(role), str(formula), int(charge), bool(is_open))
        for role, formula, charge, is_open in zip(
            *(blocks[v].values for v in ("role", "formula", "charge", "open_shell"))
        )
        if charge or is_open
    )
    lines = []
    for (role, formula, charge, is_open), n in sorted(rows.items())[:most]:
        what = [f"charge {charge:+d}"] if charge else []
        what += ["open d or f shell"] if is_open else []
        lines.append(f"{n} x {role} {formula}: {', '.join(what)}")
    if len(rows) > most:
        lines.append(f"and {len(rows) - most} more kinds of charged or open-shell blocks")
    noted = str(structure.attrs.get("notes", ""))
    return lines + ([f"note: {noted}"] if noted else [])
