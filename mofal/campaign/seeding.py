"""Where a campaign begins: its systems, its seed data, and the frames that walks start from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import plan
from mofal.campaign.config import CampaignConfig, SystemSettings, completed, differences
from mofal.campaign.site import CONFIG, FACTS, ISOLATED, Site, write_config
from mofal.errors import CampaignError, ConfigError, DataError, ReferenceError, StructureError

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

    from mofal.reference import Reference

_TEXT = np.dtypes.StringDType()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------- systems
def make_system(name: str, settings: SystemSettings) -> tuple[xr.Dataset, xr.Dataset]:
    """Build or read a system and find its blocks.

    Returns
    -------
    structure, blocks : xarray.Dataset

    Raises
    ------
    ConfigError, StructureError
        No such framework, or a file that cannot be what it says.
    """
    from mofal.frameworks import build, disorder, find_blocks, read_framework, supercell

    if settings.build is not None:
        structure = build(
            settings.build, cell=settings.cell, repeat=settings.repeat, seed=settings.seed
        )
    else:
        assert settings.file is not None  # the config gives one of the two
        structure = read_framework(settings.file, rule=settings.rule, charge=settings.charge)
        if settings.repeat is not None:
            structure = supercell(structure, settings.repeat)
    if settings.disorder is not None:
        options = settings.disorder.model_dump()
        structure = disorder(structure, **options, seed=settings.seed, rule=settings.rule)
    structure["system"] = ("structure", np.array([name], _TEXT))
    return structure, find_blocks(structure, rule=settings.rule)


@dataclass(frozen=True)
class Findings:
    """What examining a campaign found: its systems, its elements, its level of theory."""

    systems: dict[str, tuple[xr.Dataset, xr.Dataset]]
    elements: list[str]
    level_hash: str


def examine(site: Site) -> Findings | None:
    """Build every system and check all that the campaign names; nothing is written.

    Returns
    -------
    Findings or None
        None where the campaign was prepared before.

    Raises
    ------
    CampaignError
        The directory belongs to another campaign.
    MofalError
        Anything in the campaign file that cannot work.
    """
    from mofal.data import read_json

    config = site.config
    facts_file = site.root / FACTS
    if facts_file.exists():
        known = read_json(facts_file)
        if known.get("identity") != config.identity():
            refuse_another(site, known)
        return None
    for cache in config.reference.caches:
        if cache.mode == "rw" and not os.access(cache.path, os.W_OK):
            raise ConfigError(
                f"reference.caches: {cache.path} cannot be written; write `mode: r`, or ask its "
                "owner for the right to write"
            )
    made = {name: make_system(name, s) for name, s in config.systems.items()}
    reference = site.reference()
    seed = read_seed_file(config, reference) if config.seed_data.file is not None else None
    check_ranking(config.selection.ranking)
    elements = campaign_elements(config, [s for s, _ in made.values()], seed)
    return Findings(made, elements, reference.level_hash)


def refuse_another(site: Site, facts: dict[str, Any]) -> None:
    """Refuse a directory whose campaign began with other settings, and name them.

    A setting that a newer mofal knows in addition has its default, so an upgrade does not make
    another campaign.

    Raises
    ------
    CampaignError
    """
    what = ""
    if "settings" in facts:
        changed = differences(site.config.deciding(), completed(facts["settings"]))
        if not changed:
            return
        what = " (" + "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "") + ")"
    raise CampaignError(
        f"{site.root} holds another campaign ({facts.get('name')!r}): settings that decide results "
        f"differ from this file's{what}. Write what it began with, or give another directory: "
        "mofal run campaign.yaml --directory NEW"
    )


def settle(site: Site, findings: Findings) -> None:
    """Write down what examining found; the facts come last, so that they stand for all of it."""
    from mofal.data import write_group, write_json

    site.reference().isolated_atom_energies(findings.elements, cache=site.root / ISOLATED)
    for name, (structure, blocks) in findings.systems.items():
        write_group(structure, site.path(plan.system_place(name, "structure.zarr")))
        write_group(blocks, site.path(plan.system_place(name, "blocks.zarr")), kind="table")
    write_config(site.root, site.config)
    write_json(
        {
            "name": site.config.name,
            "identity": site.config.identity(),
            "settings": site.config.deciding(),
            "elements": findings.elements,
            "level_hash": findings.level_hash,
            "systems": {
                name: {"n_atoms": int(s["n_atoms"][0]), "n_blocks": int(b.sizes["block"])}
                for name, (s, b) in findings.systems.items()
            },
        },
        site.root / FACTS,
    )


OURS = frozenset({"systems", ISOLATED, "schedule", "work", CONFIG, "driver.lock", "driver.json"})
"""What an interrupted preparation may have left behind."""


def campaign_elements(
    config: CampaignConfig, structures: list[xr.Dataset], seed: xr.Dataset | None
) -> list[str]:
    """Chemical symbols of the whole campaign, by atomic number."""
    from ase.data import atomic_numbers, chemical_symbols

    found = set(config.potential.elements)
    for ds in [*structures, *([seed] if seed is not None else [])]:
        found |= {chemical_symbols[z] for z in np.unique(ds["numbers"].values)}
    found.add("H")  # clusters are capped with it
    return sorted(found, key=lambda s: atomic_numbers[s])


def check_ranking(name: str) -> None:
    """Refuse a ranking that does not exist before anything has been paid for."""
    from mofal.clusters import ranking_names

    known = ranking_names()
    if name not in known:
        raise ConfigError(f"selection.ranking is {name!r}; known: {', '.join(sorted(known))}")


# ---------------------------------------------------------------------------------- seed data
def read_seed_file(config: CampaignConfig, reference: Reference) -> xr.Dataset:
    """Given seed data: labelled at the reference's level, or structures still to be labelled.

    Labels whose level of theory nobody states are refused, and so is a file that has labels for
    some structures only: a group of the campaign is labelled as a whole or not at all.

    Parameters
    ----------
    config : CampaignConfig
        With `seed_data.file`; its `labels` say how labels in the file are taken.
    reference : Reference
        The campaign's.

    Returns
    -------
    Dataset
        Of kind ``labels`` or ``structures``.

    Raises
    ------
    ConfigError
        Labels that are not of the reference's level, do not say their level, or are not whole; or
        an element that the reference cannot do.
    StructureError
        The file cannot be read.
    """
    from mofal.data.text import read_atoms
    from mofal.reference import import_labels

    file, stated = config.seed_data.file, config.seed_data.labels
    assert file is not None  # who calls has looked
    anew = "to have all its structures labelled anew, write `labels: ignore` under seed_data"
    frames = read_atoms(file)
    labels = [_results(frame) for frame in frames]
    if stated == "ignore" or (stated is None and not any(labels)):
        return _unlabelled(frames, file)
    faults: dict[str, list[int]] = {}
    for k, (frame, found) in enumerate(zip(frames, labels)):
        for name, shape in (("energy", ()), ("forces", (len(frame), 3))):
            fault = _fault(found.get(name), shape)
            if fault:
                faults.setdefault(f"{name} {fault}", []).append(k)
    if faults:
        shown = "; ".join(f"{fault} in {_listed(ks)}" for fault, ks in faults.items())
        raise ConfigError(
            f"{file} is not labelled as a whole: {shown} (counted from 0, there are "
            f"{len(frames)}); take what lacks labels out of the file, or, {anew}"
        )
    silent = [k for k, frame in enumerate(frames) if "level_hash" not in frame.info]
    if stated is None and silent:
        raise ConfigError(
            f"{file} holds labels that do not say their level of theory (in {_listed(silent)}); "
            f"if they were made with reference {config.reference.name}, write "
            f"`labels: reference` under seed_data; {anew}"
        )
    try:
        return import_labels(file, level=reference)
    except (DataError, StructureError) as error:
        raise ConfigError(f"{error}; {anew}") from None
    except ReferenceError as error:
        raise ConfigError(f"{file}: {error}") from None


_LABELS = (
    *("energy", "forces", "stress", "status", "reason", "wall_time"),
    *("level_of_theory", "level_hash", "isolated_atom_energies"),
)


def _results(frame: Atoms) -> dict[str, Any]:
    """Energy and forces that came with a structure, wherever ASE's reader has put them."""
    found = {"energy": frame.info.get("energy"), "forces": frame.arrays.get("forces")}
    results = getattr(frame.calc, "results", {})
    found.update({k: results[k] for k in found if results.get(k) is not None})
    return {k: v for k, v in found.items() if v is not None}


def _fault(value: Any, shape: tuple[int, ...]) -> str:
    """What is wrong with an energy or with forces; "" where nothing is."""
    if value is None:
        return "missing"
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return "not a number"
    # Looked at here, since NumPy would spread one number per atom over x, y and z.
    if numbers.shape != shape:
        return "of a foreign shape"
    return "" if np.isfinite(numbers).all() else "NaN or infinite"


def _listed(indices: list[int]) -> str:
    some = ", ".join(map(str, indices[:5]))
    more = f", ... ({len(indices)} of them)" if len(indices) > 5 else ""
    return f"structure{'s' if len(indices) > 1 else ''} {some}{more}"


def _unlabelled(frames: list[Atoms], file: Path) -> xr.Dataset:
    """Structures alone; whatever stood in the labels is not looked at."""
    from mofal.data import from_atoms

    for frame in frames:
        frame.calc = None
        for name in _LABELS:
            frame.info.pop(name, None)
            frame.arrays.pop(name, None)
    try:
        return from_atoms(frames, system=[str(f.info.get("system", file.stem)) for f in frames])
    except DataError as error:
        raise StructureError(f"{file}: {error}") from None


def seed_structures(site: Site) -> xr.Dataset:
    """Structures of the seed data, labelled or not."""
    from mofal.campaign.blueprints import shells_of, weighted
    from mofal.campaign.tasks import perturb
    from mofal.clusters import cut, random_cores
    from mofal.data import concat

    settings = site.config.seed_data
    if settings.file is not None:
        return read_seed_file(site.config, site.reference())
    if settings.perturbed is not None:
        name = settings.perturbed.system
        ds = perturb(site, name, settings.perturbed, ("seed", name))
        ds["system"] = ("structure", np.array([name] * ds.sizes["structure"], _TEXT))
        return ds
    assert settings.clusters is not None  # the config gives one of the three
    parts = []
    for name in site.config.explored:
        frames = perturb(site, name, settings.clusters, ("seed", name))
        frames["system"] = ("structure", np.array([name] * frames.sizes["structure"], _TEXT))
        blocks = {name: site.blocks(name)}
        cores = random_cores(
            frames,
            blocks,
            n=settings.clusters.per_system,
            seed=site.integer_seed("seed-clusters", name),
        )
        clusters, _ = cut(frames, blocks, cores, shells=shells_of(site, blocks))
        clusters = weighted(site, clusters, blocks)
        parts.append(clusters)
    return concat(parts)


# ---------------------------------------------------------------------------------- walks
def start_frame(site: Site, cycle: int, system: str, index: int) -> xr.Dataset:
    """Frame that a walk starts from: thermal around the structure, then ends of earlier walks.

    In the first cycle it is a frame of the network of springs at the walk's temperature: the first
    potentials do not hold for long enough to make environments differ by themselves. Later walks
    start from a seeded choice among the ends of the cycle before that went to their end and whose
    bonds still hold, where there are such; a bond that a poor potential broke would stay broken.
    """
    from mofal.clusters import check_bonds
    from mofal.data import select
    from mofal.dynamics import sample_harmonic

    blocks = site.blocks(system)
    if cycle > 1:
        walks = site.group(plan.place(cycle - 1, system, "walks.zarr")).load()
        finished = walks["walk_status"].values == "finished"
        ends = {str(v) for v in walks["end_frame"].values[finished]}
        samples = site.group(plan.place(cycle - 1, system, "samples.zarr")).load()
        holds = check_bonds(samples, {system: blocks})["holds"].values
        ids = [str(v) for v in samples["structure_id"].values]
        good = [k for k, s in enumerate(ids) if s in ends and holds[k]]
        # As many walks go on as there are good ends; the others begin anew.
        chosen = site.rng("start", cycle, system).permutation(site.config.exploration.walks)[index]
        if chosen < len(good):
            return select(samples, good[chosen])
    return sample_harmonic(
        site.structure(system),
        n=1,
        temperature_K=site.config.exploration.temperature_K,
        seed=site.seed("start", cycle, system, index),
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
        volume_strain=(-0.01, 0.01),
        shear=0.003,
    )
