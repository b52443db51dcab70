"""Structures, frames, clusters and labels as artefacts: functions that make one file each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mofal.clusters import cut
from mofal.data import (
    atomic_path,
    concat,
    converged,
    from_atoms,
    make_structures,
    offsets,
    open_group,
    select,
    to_atoms,
    write_group,
)
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, disorder, find_blocks, remove_blocks, substitute, supercell
from mofal.reference import LabelCache, gather, get_reference, label_one
from mofal.reference.ase_calculator import limit_threads
from paper.settings import TEMPERATURE_K, VOLUMES

CONVENTIONAL = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
"""The conventional cell by vectors of the primitive one."""
PAPER_V0 = 9110.0
BRICK_H = 4
"""H of a brick whose carboxylates all hold a linker: those of its four mu3-OH."""


# ------------------------------------------------------------------------------ structures
def make_relaxed(path: Path, *, reference: str, relaxes: bool, steps: int = 120) -> None:
    """S_pr's primitive cell at the minimum of the level, within 10 meV/Å."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import LBFGS

    start = build("S_pr", cell="primitive")
    if relaxes:
        atoms = to_atoms(start, 0)
        atoms.calc = get_reference(reference).make_calculator()  # type: ignore[attr-defined]
        with limit_threads(1):
            LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=steps)
        atoms.calc = None
        start = from_atoms([atoms], system="S_pr")
    else:
        # No stress at this level: the ideal geometry at the paper's volume.
        cell = start["cell"].values[0]
        factor = (PAPER_V0 / 4 / abs(np.linalg.det(cell))) ** (1 / 3)
        start = make_structures(
            start["numbers"].values,
            start["positions"].values * factor,
            n_atoms=start["n_atoms"].values,
            cell=cell[None] * factor,
            pbc=True,
            system="S_pr",
        )
    write_group(start, path)


def make_system(
    path: Path, relaxed: Path, *, name: str, cell: str, options: dict[str, Any]
) -> None:
    """A system of the paper from the relaxed pristine cell; defects keep its geometry.

    `options`: `repeat` and the arguments of `disorder`, for supercells.
    """
    pristine = open_group(relaxed).load()
    if cell == "conventional":
        pristine = supercell(pristine, CONVENTIONAL)
    blocks = find_blocks(pristine)
    role = blocks["role"].values.astype(str)
    if options:
        large = supercell(pristine, tuple(options["repeat"]))
        out = disorder(large, **{k: v for k, v in options.items() if k != "repeat"}, system=name)
    elif name == "S_pr":
        out = pristine
    elif name == "S_hf":
        metal = int(np.flatnonzero(pristine["numbers"].values == 40)[0])
        out = substitute(pristine, [metal], "Hf", system=name)
    elif name == "S_ld":
        gone = np.flatnonzero(role == "linker")[:1]
        out = remove_blocks(pristine, blocks, gone, system=name)
    elif name == "S_reo":
        brick = np.flatnonzero(role == "node")[0]
        pairs = blocks["link_block"].values
        gone = np.unique(pairs[(pairs == brick).any(axis=1)])
        out = remove_blocks(pristine, blocks, gone, system=name)
    else:
        raise ValueError(f"no recipe for {name}")
    write_group(out, path)


def make_frames(path: Path, system: Path, *, n: int, stream: list[int]) -> None:
    """Frames at 600 K over the paper's range of volumes, moved to the V0 of the level.

    Frame k depends on the stream and on k alone: a larger size begins with the same frames.
    """
    frames = sample_harmonic(
        open_group(system).load(),
        n=n,
        temperature_K=TEMPERATURE_K,
        seed=tuple(stream),
        volume_strain=(VOLUMES[0] - 1.0, VOLUMES[1] - 1.0),
    )
    write_group(frames, path)


def defective_nodes(structure: xr.Dataset, blocks: xr.Dataset) -> np.ndarray:
    """Blocks that are bricks with a formate or a Hf: indices along block."""
    numbers = structure["numbers"].values
    start = offsets(blocks["block_n_atoms"].values)
    found = []
    for k in np.flatnonzero(blocks["role"].values.astype(str) == "node").tolist():
        z = numbers[blocks["member_atom"].values[start[k] : start[k + 1]]]
        if (z == 72).any() or (z == 1).sum() != BRICK_H:
            found.append(k)
    return np.array(found, int)


def make_clusters(
    path: Path,
    *sources: Path,
    n: int,
    seed: int,
    shells: int = 1,
    every: bool = False,
    fixed: bool = False,
) -> None:
    """One cluster a frame in turn: a brick with a defect (or any brick) and its mantle.

    `sources`: systems, then frames of each, as many of both. `fixed`: the same brick of all.
    """
    half = len(sources) // 2
    systems = [open_group(p).load() for p in sources[:half]]
    parts = [open_group(p).load() for p in sources[half:]]
    found, left = [], n
    for k, (system, frames) in enumerate(zip(systems, parts)):
        blocks = find_blocks(system)
        nodes = np.flatnonzero(blocks["role"].values.astype(str) == "node")
        cores = nodes if every else defective_nodes(system, blocks)
        cores = cores[:1] if fixed else cores
        mine = -(-left // (half - k))
        rng = np.random.default_rng([seed, k])
        # Every draw is made in the order of the clusters, so that fewer are the first of more.
        picks, used = [], set()
        while len(picks) < mine:
            frame = len(picks) % frames.sizes["structure"]
            free = [c for c in cores.tolist() if (frame, c) not in used]
            if not free:
                raise ValueError(f"{mine} clusters of {frames.sizes['structure']} frames: too many")
            core = free[int(rng.integers(len(free)))]
            used.add((frame, core))
            picks.append((frame, core))
        table = xr.Dataset(
            {
                "core_structure": ("core", np.array([p[0] for p in picks])),
                "core_block": ("core", np.array([p[1] for p in picks])),
            }
        )
        name = str(system["system"].values[0])
        clusters, refused = cut(frames, {name: blocks}, table, shells=shells)
        if refused.sizes.get("core", 0):
            print(f"  {refused.sizes['core']} clusters of {name} refused")
        found.append(clusters)
        left -= mine
    keep = ("region", "parent_atom", "parent_shift", "charge", "n_electrons")
    base = set(systems[0].data_vars) | set(keep)
    found = [c.drop_vars([v for v in c.data_vars if v not in base]) for c in found]
    write_group(concat(found) if len(found) > 1 else found[0], path)


# ------------------------------------------------------------------------------ labels
def make_labels_part(
    path: Path, structures: Path, *, reference: str, first: int, last: int, cache: str
) -> None:
    """Labels of some structures, into the cache; the artefact is a note of how they ended."""
    ds = open_group(structures).load()
    method = get_reference(reference)
    store = LabelCache(cache)
    ended = []
    for k in range(first, min(last, ds.sizes["structure"])):
        attempt = label_one(select(ds, k), method, directory=store)
        ended.append({"status": attempt.status, "wall_s": attempt.wall_time_s})
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(ended))


def make_labels(path: Path, structures: Path, *parts: Path, reference: str, cache: str) -> None:
    """Structures with their labels; those that failed are left out."""
    ds = open_group(structures).load()
    labels = gather(
        ds,
        LabelCache(cache),
        reference=get_reference(reference),
        cache=str(Path(cache) / "isolated"),
    )
    good = converged(labels)
    if good.sizes["structure"] == 0:
        raise RuntimeError(f"no label of {structures.name} converged: {labels['reason'].values[0]}")
    write_group(good, path, kind="labels")
