"""Cutters of others on the same frames: what their clusters are worth before anything is trained.

Re-implemented from their descriptions:

- *sphere*: all atoms within a radius of the worst one, bonds left dangling (MLIP-3: Podryabinkin,
  Garifullin, Shapeev, Novikov, J. Chem. Phys. 159, 084112, 2023).
- *whole molecules*: every molecule that reaches into the sphere (DP-GEN for reactive systems: Zeng,
  Cao, Xu, Zhu, Zhang, Nat. Commun. 11, 5713, 2020). A framework is one molecule without an end:
  taken by the letter it gives the parent back; here building blocks stand for molecules, uncapped.
- *centre only*: the sphere again, of which the force on its centre alone is learnt (nearsighted
  force training).
- *blocks*: mofal's, a block with its first neighbours, capped.

The worst atom is the carbon of a formate: that is where the pristine model fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mofal.analysis import bonded_kinds
from mofal.clusters import cut
from mofal.data import concat, make_structures, offsets, open_group, select, write_group
from mofal.frameworks import find_blocks
from paper.data import defective_nodes
from paper.lab import Lab
from paper.masks import FORMATE

MEV = 1000.0
RADIUS = 7.0
"""Å: what MLIP-3 cuts by default."""
CUTTERS = ("sphere", "whole blocks", "blocks")


def neighbourhood(frame: xr.Dataset, centre: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (with images) within a radius of an atom: indices and positions around it, Å."""
    from matscipy.neighbours import neighbour_list

    i, j, d = neighbour_list(
        "ijD",
        positions=frame["positions"].values,
        cell=frame["cell"].values[0],
        pbc=frame["pbc"].values[0],
        cutoff=radius,
    )
    mine = i == centre
    return np.r_[centre, j[mine]], np.vstack([np.zeros(3), d[mine]])


def sphere(frame: xr.Dataset, centre: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Parent atoms and positions of the sphere around an atom."""
    return neighbourhood(frame, centre, radius)


def whole_blocks(
    frame: xr.Dataset, blocks: xr.Dataset, centre: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Every block of which an atom lies in the sphere, whole, with what it was bonded to open."""
    atoms, places = neighbourhood(frame, centre, radius)
    cell = frame["cell"].values[0]
    x = frame["positions"].values
    start = offsets(blocks["block_n_atoms"].values)
    member, shift = blocks["member_atom"].values, blocks["member_shift"].values
    of_atom = np.empty(len(x), int)
    of_atom[member] = np.repeat(np.arange(len(start) - 1), np.diff(start))
    own_shift = np.empty((len(x), 3), int)
    own_shift[member] = shift
    found: dict[tuple[int, ...], None] = {}
    for atom, place in zip(atoms.tolist(), places):
        image = np.rint((place - x[atom] + x[centre]) @ np.linalg.inv(cell)).astype(int)
        found[int(of_atom[atom]), *(image - own_shift[atom]).tolist()] = None
    out_atoms, out_places = [], []
    for block, *image in found:
        mine = slice(start[block], start[block + 1])
        lattice = (shift[mine] + np.array(image)) @ cell
        out_atoms.append(member[mine])
        out_places.append(x[member[mine]] + lattice - x[centre])
    return np.concatenate(out_atoms), np.vstack(out_places)


def worst_atom(frame: xr.Dataset) -> int:
    """The first formate carbon of a frame."""
    return int(np.flatnonzero(bonded_kinds(frame) == FORMATE)[0])


def make_cuts(path: Path, system: Path, frames: Path, *, cutter: str, radius: float) -> None:
    """One cluster per frame: `parent_atom` (-1 for caps), the centre first where there is one."""
    ds, start = open_group(frames).load(), open_group(system).load()
    blocks = find_blocks(start)
    if cutter == "blocks":
        nodes = defective_nodes(start, blocks)
        centre = worst_atom(select(ds, 0))
        first = offsets(blocks["block_n_atoms"].values)
        holds = [
            k for k in nodes if centre in blocks["member_atom"].values[first[k] : first[k + 1]]
        ]
        n = ds.sizes["structure"]
        cores = xr.Dataset(
            {
                "core_structure": ("core", np.arange(n)),
                "core_block": ("core", np.full(n, holds[0])),
            }
        )
        out, _ = cut(ds, {str(start["system"].values[0]): blocks}, cores)
        keep = {*ds.data_vars, "parent_atom"}
        write_group(out.drop_vars([v for v in out.data_vars if v not in keep]), path)
        return
    parts = []
    for k in range(ds.sizes["structure"]):
        frame = select(ds, k)
        centre = worst_atom(frame)
        atoms, places = (
            sphere(frame, centre, radius)
            if cutter == "sphere"
            else whole_blocks(frame, blocks, centre, radius)
        )
        one = make_structures(
            frame["numbers"].values[atoms],
            places,
            n_atoms=[len(atoms)],
            cell=np.zeros((1, 3, 3)),
            pbc=False,
            system=str(frame["system"].values[0]),
            parent=str(frame["structure_id"].values[0]),
        )
        parts.append(one.assign(parent_atom=("atom", atoms.astype(np.int64))))
    write_group(concat(parts), path)


def compare(lab: Lab) -> list[dict[str, Any]]:
    """A row for each cutter: size, electrons that pair, forces against the parent's."""
    n = lab.size.match_frames
    system = lab.system("S_ld")
    frames = lab.frames(system, n, "test")
    (parents,) = lab.get(lab.label(frames, n))
    size = int(parents["n_atoms"][0])
    rows = []
    for cutter in CUTTERS:
        node = lab.store.node(
            f"clusters.{cutter.replace(' ', '-')}",
            make_cuts,
            system,
            frames,
            cutter=cutter,
            radius=RADIUS,
        )
        # Labelled whatever its electrons are: this level does not know them.
        (ds,) = lab.get(lab.label(node, n))
        parent = ds["parent_atom"].values
        which = np.repeat(np.arange(n), ds["n_atoms"].values)
        real = parent >= 0
        truth = parents["forces"].values[which[real] * size + parent[real]]
        error = MEV * (ds["forces"].values[real] - truth)
        centres = np.array([worst_atom(select(parents, k)) for k in range(n)])
        centre = parent[real] == centres[which[real]]
        electrons = np.array([ds["numbers"].values[which == k].sum() for k in range(n)], dtype=int)
        rows.append(
            {
                "cutter": cutter,
                "atoms": float(ds["n_atoms"].values.mean()),
                "even electrons": float((electrons % 2 == 0).mean()),
                "RMSE, all atoms (meV/Å)": float(np.sqrt((error**2).mean())),
                "RMSE, centre (meV/Å)": float(np.sqrt((error[centre] ** 2).mean())),
                "n": n,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
