"""Cutters of others on the same frames: what their clusters are worth before anything is trained.

Re-implemented from their descriptions:

- *sphere*: all atoms within a radius of the worst one, bonds left dangling (MLIP-3: Podryabinkin,
  Garifullin, Shapeev, Novikov, J. Chem. Phys. 159, 084112, 2023).
- *whole molecules*: every molecule that reaches into the sphere (DP-GEN for reactive systems: Zeng,
  Cao, Xu, Zhu, Zhang, Nat. Commun. 11, 5713, 2020). A framework is one molecule without an end:
  taken by the letter it gives the parent back; here building blocks stand for molecules, uncapped.
- *centre only*: the sphere again, of which the force on its centre alone is learnt (nearsighted
  force training).
- *boxes*: a small cube around the worst atom, made periodic, of which the atoms farther out are
  moved into what the potential knows (NEPMaker, arXiv 2604.13848). There a neuroevolution
  potential says how far an atom extrapolates, here the density of mofal's features does.
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
from paper.store import Node

MEV = 1000.0
RADIUS = 7.0
"""Å: what MLIP-3 cuts by default."""
CUTTERS = ("sphere", "whole blocks", "boxes", "blocks")
EDGE = 14.0
"""Å: the cube of *boxes*, as wide as the sphere."""
HELD = 5.0
"""Å around the worst atom within which a box is left as it was: a choice, about one layer."""
CLOSE = 0.65
"""Of the sum of two covalent radii: of closer pairs across the faces the outer atom is left out."""


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


def box(
    frame: xr.Dataset, centre: int, edge: float, held: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parent atoms, positions around the centre and which are held, of a cube that is periodic.

    Where two atoms that were far apart meet across a face, the outer one is left out.
    """
    from ase.data import covalent_radii
    from matscipy.neighbours import neighbour_list

    atoms, places = neighbourhood(frame, centre, 0.5 * np.sqrt(3.0) * edge)
    inside = ((places >= -0.5 * edge) & (places < 0.5 * edge)).all(axis=1)
    atoms, places = atoms[inside], places[inside]
    radii = covalent_radii[frame["numbers"].values]
    while True:
        i, j, d = neighbour_list(
            "ijd", positions=places, cell=edge * np.eye(3), pbc=[True] * 3, cutoff=3.0
        )
        plain = np.linalg.norm(places[i] - places[j], axis=1)
        share = d / (radii[atoms[i]] + radii[atoms[j]])
        share[plain < d + 0.01] = np.inf  # neighbours as they were in the crystal
        if not len(share) or share.min() > CLOSE:
            break
        pair = np.array([i[share.argmin()], j[share.argmin()]])
        outer = pair[np.linalg.norm(places[pair], axis=1).argmax()]
        atoms, places = np.delete(atoms, outer), np.delete(places, outer, axis=0)
    return atoms, places, np.linalg.norm(places, axis=1) <= held


class Strangeness:
    """Mean of the negative log-likelihood of some atoms, and its slope, for an optimiser.

    Parameters
    ----------
    potential : NequIPPotential
    density : PerElementDensity
        In its features.
    """

    def __init__(self, potential: Any, density: Any) -> None:
        from mofal.potential.network import readout_weights, type_table
        from mofal.potential.onboard import density_arrays

        self.potential = potential
        self.readout = readout_weights(potential.network)[0].detach()
        self.types = type_table(potential.elements)
        arrays = density_arrays(density)
        self.mixtures = {}
        for z in map(int, arrays["labels"]):
            names = ("weights", "means", "precisions_cholesky")
            self.mixtures[z] = [np.array(arrays[f"{n}_{z}"]) for n in names]
        self.projection = [arrays[n] for n in ("projection_mean", "projection") if n in arrays]

    def value(
        self, numbers: np.ndarray, positions: np.ndarray, edge: float, of: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Value and slope (atom, 3), 1/Å, over the atoms `of`."""
        import torch

        from mofal.potential.network import collate, energy_part, make_graph

        graph = make_graph(
            numbers,
            positions,
            edge * np.eye(3),
            np.ones(3, bool),
            types=self.types,
            r_max=self.potential.r_max,
        )
        batch = collate([graph])
        batch["pos"].requires_grad_(True)
        x = (energy_part(self.potential.network)(batch)["node_features"] @ self.readout).double()
        if self.projection:
            mean, matrix = (torch.as_tensor(np.array(p)).double() for p in self.projection)
            x = (x - mean) @ matrix
        parts = []
        for z, (weights, means, factors) in self.mixtures.items():
            rows = np.flatnonzero((numbers == z) & of)
            if not len(rows):
                continue
            factor = torch.as_tensor(factors)
            y = torch.einsum("nd,kde->nke", x[torch.as_tensor(rows)], factor)
            y = y - torch.einsum("kd,kde->ke", torch.as_tensor(means), factor)
            scale = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
            constant = scale + torch.log(torch.as_tensor(weights))
            constant = constant - 0.5 * means.shape[1] * np.log(2.0 * np.pi)
            parts.append(torch.logsumexp(constant - 0.5 * (y * y).sum(dim=2), dim=1))
        mean_strangeness = -torch.cat(parts).mean()
        (slope,) = torch.autograd.grad(mean_strangeness, batch["pos"])
        return float(mean_strangeness.detach()), slope.double().numpy()


def settle(
    strangeness: Strangeness,
    numbers: np.ndarray,
    positions: np.ndarray,
    held: np.ndarray,
    *,
    edge: float,
    steps: int,
) -> tuple[np.ndarray, list[float]]:
    """Move what is not held downhill in strangeness: the best positions, the value of each step."""
    x, step = positions.copy(), 0.05
    value, slope = strangeness.value(numbers, x, edge, ~held)
    best, values, speed = x.copy(), [value], np.zeros_like(x)
    for _ in range(steps):
        # Heavy-ball descent of a bounded step: values differ by orders of magnitude at the start.
        slope[held] = 0.0
        speed = 0.7 * speed - slope / max(float(np.abs(slope).max()), 1e-12)
        x = x + step * speed / max(float(np.abs(speed).max()), 1e-12)
        value, slope = strangeness.value(numbers, x, edge, ~held)
        if value < min(values):
            best = x.copy()
        else:
            step = max(0.9 * step, 0.005)
        values.append(value)
    return best, values


def make_boxes(path: Path, frames: Path, model: Path, known: Path, *, steps: int) -> None:
    """One periodic box per frame: `parent_atom` is -1 where an atom was moved, the centre first."""
    from mofal.density import fit_density
    from mofal.potential import split_structures
    from paper.models import loaded

    ds, labels, potential = open_group(frames).load(), open_group(known).load(), loaded(model)
    learnt = split_structures(labels, seed=1)["split"].values.astype(str) == "train"
    density = fit_density(
        potential.featurize(select(labels, np.flatnonzero(learnt))),
        random_state=0,
        max_components=6,
    )
    strangeness = Strangeness(potential, density)
    parts, before, after = [], [], []
    for k in range(ds.sizes["structure"]):
        frame = select(ds, k)
        atoms, places, held = box(frame, worst_atom(frame), EDGE, HELD)
        numbers = frame["numbers"].values[atoms]
        moved, values = settle(strangeness, numbers, places, held, edge=EDGE, steps=steps)
        before.append(values[0])
        after.append(min(values))
        one = make_structures(
            numbers,
            moved,
            n_atoms=[len(atoms)],
            cell=EDGE * np.eye(3)[None],
            pbc=True,
            system=str(frame["system"].values[0]),
            parent=str(frame["structure_id"].values[0]),
        )
        parts.append(one.assign(parent_atom=("atom", np.where(held, atoms, -1).astype(np.int64))))
    out = concat(parts)
    out["strangeness_before"] = ("structure", np.array(before))
    out["strangeness_after"] = ("structure", np.array(after))
    write_group(out, path)


def cuts_of(lab: Lab, cutter: str, frames: Node) -> Node:
    """What a cutter makes of frames of S_ld, one cut for each."""
    name = f"clusters.{cutter.replace(' ', '-')}"
    if cutter == "boxes":
        known = lab.training_set("S_pr")
        steps = lab.size.box_steps
        return lab.store.node(name, make_boxes, frames, lab.pristine(), known, steps=steps)
    return lab.store.node(name, make_cuts, lab.system("S_ld"), frames, cutter=cutter, radius=RADIUS)


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
        node = cuts_of(lab, cutter, frames)
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
