"""Where a campaign begins: its systems, its seed data, and the frames that walks start from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig, SystemSettings
from mofal.campaign.devices import check_devices
from mofal.campaign.directory import CONFIG, FACTS, ISOLATED, Site, write_config
from mofal.campaign.electrons import check_electrons
from mofal.campaign.engines import check_engines, trained_stages
from mofal.campaign.given import check_start, example_labels, start_potential
from mofal.campaign.loading import completed, differences, load_config
from mofal.campaign.names import check_new
from mofal.campaign.seed_check import check_seed_file
from mofal.campaign.steps.select import check_ranking
from mofal.data import write_group, write_json
from mofal.data.variables import STRING
from mofal.errors import CampaignError, ConfigError, MofalError, StructureError
from mofal.frameworks import supercell
from mofal.frameworks.cells import LEAST_IMAGE, nearest_image, wide_enough
from mofal.reference import get_reference
from mofal.reference.code import check_unimported, is_foreign

if TYPE_CHECKING:
    import xarray as xr

    from mofal.reference import Reference


# ---------------------------------------------------------------------------------- systems
def make_system(name: str, settings: SystemSettings) -> tuple[xr.Dataset, xr.Dataset]:
    """Build or read a system and find its blocks.

    A file without `repeat` whose cell is so small that atoms have images within 12 Å is repeated;
    ``structure.attrs["remarks"]`` says so, and where a draw of disorder left no defect.

    Returns
    -------
    structure, blocks : xarray.Dataset

    Raises
    ------
    ConfigError, StructureError
        No such framework, or a file that cannot be what it says.
    """
    from mofal.frameworks import build, disorder, find_blocks, read_framework

    remarks: list[str] = []
    if settings.build is not None:
        structure = build(
            settings.build, cell=settings.cell, repeat=settings.repeat, seed=settings.seed
        )
    else:
        assert settings.file is not None  # the config gives one of the two
        structure = read_framework(
            settings.file,
            rule=settings.rule,
            charge=settings.charge,
            alternatives=settings.alternatives,
            add_hydrogens=settings.add_hydrogens,
        )
        if settings.repeat is not None:
            structure = supercell(structure, settings.repeat)
        else:
            structure, widened = _widened(structure)
            remarks += [widened] if widened else []
    if settings.disorder is not None:
        options = settings.disorder.model_dump()
        try:
            structure = disorder(structure, **options, seed=settings.seed, rule=settings.rule)
        except StructureError as error:
            raise StructureError(f"systems.{name}.disorder: {error}") from None
        drawn = json.loads(structure.attrs["disorder"])
        if not any(drawn[name] for name in ("c_hf", "c_brick", "c_linker")):
            remarks.append(
                f"seed {settings.seed} draws no defect, so this is the perfect framework (another "
                "seed of the system, or disorder: {exact: true})"
            )
    structure["system"] = ("structure", np.array([name], STRING))
    if remarks:
        structure.attrs["remarks"] = "; ".join(remarks)
    return structure, find_blocks(structure, rule=settings.rule)


def _widened(structure: xr.Dataset) -> tuple[xr.Dataset, str]:
    """The structure of a file, repeated where its images are too near for clusters cut from it.

    Also what is said of it, "" where nothing was done.
    """
    cell = structure["cell"].values[0]
    repeat = wide_enough(cell)
    if repeat == (1, 1, 1) or not structure["pbc"].values.all():
        return structure, ""
    out = supercell(structure, repeat)
    out.attrs = {**structure.attrs, **out.attrs}
    return out, (
        f"repeated {' x '.join(map(str, repeat))}: atoms of the file have images at "
        f"{nearest_image(cell):.1f} Å, {LEAST_IMAGE:g} Å are wanted "
        "(in a campaign file repeat: [1, 1, 1] keeps its cell)"
    )


@dataclass(frozen=True)
class Findings:
    """What examining a campaign found: its systems, its elements, its level of theory."""

    systems: dict[str, tuple[xr.Dataset, xr.Dataset]]
    elements: list[str]
    level_hash: str
    notes: tuple[str, ...] = ()


def examine(site: Site, *, run_code: bool = True) -> Findings | None:
    """Build every system and check all that the campaign names; nothing is written.

    Parameters
    ----------
    site : Site
    run_code : bool
        Import the reference where it is code of others; else it is only looked for, and its level
        and what depends on it (labels of a seed file) are not known.

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
    config = site.config
    check_devices(config)
    check_engines(site)
    facts_file = site.root / FACTS
    if facts_file.exists():
        known = site.facts
        if known.get("identity") != config.identity():
            refuse_another(site, known)
        if run_code or not is_foreign(config.reference.name):
            refuse_another_level(site, str(known["level_hash"]))
        return None
    try:
        check_new(config.systems)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for cache in config.reference.caches:
        # One to write into that is not there yet is made by the first driver.
        there = next(p for p in (cache.path, *cache.path.absolute().parents) if p.exists())
        if cache.mode == "rw" and not os.access(there, os.W_OK):
            raise ConfigError(
                f"reference.caches: {there} cannot be written; write `mode: r`, or ask its "
                "owner for the right to write"
            )
    made = {name: make_system(name, s) for name, s in config.systems.items()}
    reference = None
    if run_code or not is_foreign(config.reference.name):
        reference = site.reference()
    else:
        check_unimported(config.reference.name)
    seed: list[xr.Dataset] = []
    notes: list[str] = []
    for source in config.seed_sources:
        if source.seed_data.file is not None:
            read, said = check_seed_file(source, reference)
            seed.append(read)
            notes += said
        elif source.seed_data.example is not None:
            seed.append(example_labels(source, reference))
    check_ranking(config, seed_size(config, seed))
    check_stress(config, seed, reference)
    for name, (structure, _) in made.items():
        notes += [f"{name}: {said}" for said in [structure.attrs.get("remarks", "")] if said]
    notes += check_electrons(site, made, reference)
    elements = campaign_elements(config, [s for s, _ in made.values()], seed)
    level = reference.level_hash if reference is not None else ""
    if config.potential.begins:
        check_start(config, elements, level)
    notes += [f"{new} begins as {old}" for new, old in config.potential.like.items()]
    notes += unlearnt(config, {name: s for name, (s, _) in made.items()}, seed)
    return Findings(made, elements, level, tuple(notes))


def unlearnt(
    config: CampaignConfig, structures: Mapping[str, xr.Dataset], seed: Sequence[xr.Dataset]
) -> list[str]:
    """Say which elements of the systems nothing holds that the first model learns from.

    Parameters
    ----------
    config : CampaignConfig
    structures : mapping of str to Dataset
        The systems, by name.
    seed : sequence of Dataset
        Seed data that is there.

    Raises
    ------
    ConfigError
        `like` would have an element forget what it has learnt.
    """
    from ase.data import chemical_symbols

    start = config.potential.start
    known = list(seed)
    if start is None:
        for source in (s.seed_data for s in config.seed_sources):
            if source.perturbed is not None:
                known.append(structures[source.perturbed.system])
            elif source.clusters is not None:
                known += [structures[name] for name in config.explored]
    elif not seed:
        return []  # what the start learnt is not known
    there, learnt = (
        {int(z) for ds in several for z in np.unique(ds["numbers"].values)}
        for several in (structures.values(), known)
    )
    like, symbols = config.potential.like, [chemical_symbols[z] for z in sorted(learnt)]
    unknown = [chemical_symbols[z] for z in sorted(there - learnt)]
    unknown = [e for e in unknown if e not in like]
    lacking = ", ".join(unknown)
    for new, old in like.items():
        if start is not None and new in symbols and old not in symbols:
            raise ConfigError(
                f"potential.like: {new} is among the labels of the seed data and {old} is not, so "
                f"that what {new} has learnt would be lost; the other way round, {old}: {new}?"
            )
    if not lacking:
        return []
    said = f"no label of the seed data holds {lacking}: "
    if start is None:
        return [said + "its type is untrained and the first walks go astray; add labels with it"]
    return [
        f"{said}if {start} has not learnt it elsewhere, its type is untrained and the first walks "
        "go astray; let it begin as what it resembles among "
        f"{', '.join(symbols)}, potential: "
        f"{{like: {{{unknown[-1]}: ...}}}}, or train it first: labels with it in seed_data, and "
        "potential.pretrained in the place of potential.start"
    ]


def check_stress(
    config: CampaignConfig, seed: Sequence[xr.Dataset], reference: Reference | None
) -> None:
    """Refuse stresses in the loss where no crystal that is learnt from will have one.

    Parameters
    ----------
    config : CampaignConfig
    seed : sequence of Dataset
        Seed data that is there.
    reference : Reference, optional
        What labels the rest; unknown code is believed to give stresses.

    Raises
    ------
    ConfigError
    """
    from mofal.potential.training import stress_targets

    asked = [s for s in trained_stages(config) if getattr(config.potential, s).stress_weight > 0]
    if not asked or any(np.isfinite(stress_targets(ds)).any() for ds in seed):
        return
    gives = getattr(reference, "gives_stress", True)
    if gives and any(source.seed_data.perturbed is not None for source in config.seed_sources):
        return
    weight = getattr(config.potential, asked[0]).stress_weight
    why = "clusters have none" if gives else f"{config.reference.name} gives none"
    raise ConfigError(
        f"potential.{asked[0]}.stress_weight is {weight:g}, and no crystal that is learnt from "
        f"will have a stress ({why}): write 0, or give seed data with stresses (seed_data: a "
        "file, an example, or perturbed frames of a crystal and a level that has stresses)"
    )


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
        old = completed(facts["settings"])
        changed = differences(site.config.deciding(), old)
        if not changed or (
            [c.partition(":")[0] for c in changed] == ["reference.name"]
            and _same_labels(site.reference(), str(old["reference"]["name"]), facts)
        ):
            return
        what = " (" + "; ".join(changed[:4]) + ("; ..." if len(changed) > 4 else "") + ")"
    raise CampaignError(
        f"{site.root} holds another campaign ({facts.get('name')!r}): settings that decide results "
        f"differ from this file's{what}. Write what it began with, or give another directory: "
        "mofal run campaign.yaml --directory NEW"
    )


def refuse_another_level(site: Site, level_hash: str) -> None:
    """Refuse to go on where the reference of the file means another level than at the beginning.

    A preset of a newer mofal may have other parameters, and data of a program may be replaced.

    Raises
    ------
    CampaignError
    """
    try:
        now = site.reference().level_hash
    except MofalError:
        return  # its first label will say what is wrong; what is done needs none
    if now == level_hash:
        return
    name = site.config.reference.name
    before = {"gpaw:lcao": "gpaw:lcao?h=0.2", "cp2k:pbe": "cp2k:pbe?smooth=none"}
    changed = [f"; {k} was {v} before" for k, v in before.items() if name.startswith(k)]
    hint = "".join(changed)
    raise CampaignError(
        f"{site.root} began at level of theory {level_hash}, and {name} is {now} here: one "
        "potential cannot learn two levels. Name the level that it began with (its parameters are "
        f"in the attributes of cycle-000's labels){hint}, or begin another campaign: "
        "mofal run campaign.yaml --directory NEW"
    )


def _same_labels(reference: Reference, before: str, facts: dict[str, Any]) -> bool:
    """Whether a reference gives the labels of another specification: only ranks or limits differ,
    or the other one has come to mean another level since the campaign began."""
    try:
        other = get_reference(before)
    except MofalError:
        return False
    stated = [getattr(r, "stated_atoms", None) for r in (reference, other)]
    return reference.level_hash == facts["level_hash"] and stated[0] == stated[1]


def settle(site: Site, findings: Findings) -> None:
    """Write down what examining found; the facts come last, so that they stand for all of it.

    What an interrupted preparation left may be of other settings, so its systems are made anew.

    Raises
    ------
    CampaignError
        Another campaign's file is in the directory.
    """
    refuse_foreign_file(site)
    if site.path("systems").is_dir():
        shutil.rmtree(site.path("systems"))
    site.reference().isolated_atom_energies(findings.elements, cache=site.root / ISOLATED)
    for name, (structure, blocks) in findings.systems.items():
        write_group(structure, site.path(paths.system_place(name, "structure.zarr")))
        write_group(blocks, site.path(paths.system_place(name, "blocks.zarr")), kind="table")
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


def refuse_foreign_file(site: Site) -> None:
    """Refuse to write over the file of another campaign, which nobody has begun yet.

    Raises
    ------
    CampaignError
    """
    file = site.root / CONFIG
    if not file.exists():
        return
    try:
        there = load_config(file)
    except ConfigError:
        return  # half of one, or of no use to anybody
    changed = differences(site.config.deciding(), there.deciding())
    if changed:
        raise CampaignError(
            f"{file} is the file of another campaign ({'; '.join(changed[:4])}); run that one "
            f"(mofal run {site.root}), delete it, or give another directory"
        )


OURS = frozenset({"systems", ISOLATED, "schedule", "work", CONFIG, "driver.lock", "driver.json"})
"""What an interrupted preparation may have left behind."""


def seed_size(config: CampaignConfig, read: list[xr.Dataset]) -> int:
    """Structures of the seed data: those that were read, and those that are going to be drawn."""
    n = sum(int(ds.sizes["structure"]) for ds in read)
    for source in config.seed_sources:
        settings = source.seed_data
        if settings.perturbed is not None:
            n += settings.perturbed.frames
        elif settings.clusters is not None:
            n += settings.clusters.per_system * len(config.explored)
    return n


def campaign_elements(
    config: CampaignConfig, structures: list[xr.Dataset], seed: list[xr.Dataset]
) -> list[str]:
    """Chemical symbols of the whole campaign, by atomic number."""
    from ase.data import atomic_numbers, chemical_symbols

    found = set(config.potential.elements)
    if config.potential.begins:
        found |= set(start_potential(config).elements)
    for ds in [*structures, *seed]:
        found |= {chemical_symbols[z] for z in np.unique(ds["numbers"].values)}
    found.add("H")  # clusters are capped with it
    return sorted(found, key=lambda s: atomic_numbers[s])


# ---------------------------------------------------------------------------------- seed data
# ---------------------------------------------------------------------------------- walks
