"""Building blocks of a framework, and the graph that they make, as arrays.

A rule says which bonds are cut; what stays connected is a block. Blocks, their kinds, links, nets
and formal charges come out of a handful of passes over the bonds.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.sparse import csgraph

from mofal.frameworks.auto import is_auto
from mofal.frameworks.bonds import (
    IS_METAL,
    Bonds,
    bond_lengths,
    bonds_of,
    structure_arrays,
)
from mofal.frameworks.charges import (
    OXIDATION,
    formula,
    fragment_charges,
    open_shell,
    oxidation_states,
    usual_states,
)
from mofal.frameworks.components import Components
from mofal.frameworks.endless import refuse_endless
from mofal.frameworks.kinds import group_hash, refine
from mofal.frameworks.labels import label_defects
from mofal.frameworks.ligands import head_variables
from mofal.frameworks.partition import (
    Cuts,
    _even_mask,
    _neighbours,
    link_images,
    net_labels,
    partition,
)
from mofal.frameworks.valence import cell_states

if TYPE_CHECKING:
    import xarray as xr

NODE, LINKER, GUEST = 0, 1, 2
ROLES = np.array(["node", "linker", "guest"])


def _sum_by(label: NDArray[np.integer], values: NDArray[np.integer], n: int) -> NDArray[np.int64]:
    return np.rint(np.bincount(label, weights=values, minlength=n)).astype(np.int64)


def block_charges(
    z: NDArray[np.integer],
    bonds: Bonds,
    cuts: Cuts,
    mask: NDArray[np.bool_],
    pieces: Components,
    *,
    states: NDArray[np.integer] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Formal charge of each block with its even caps, and what its metals are.

    Parameters
    ----------
    states : (atom,) int, optional
        Oxidation states of the metals, where they are known; else each block is balanced.

    Returns
    -------
    charge : (block,) int32 array
    open_shell : (block,) bool array
        A metal of the block has a partly filled d or f shell.
    unusual : (block,) bool array
        A metal had to take an unusual oxidation state for the block to balance.
    """
    n = pieces.n
    label = pieces.label
    by_atom = fragment_charges(z, bonds, _even_mask(len(bonds.i), cuts))
    ligand = _sum_by(label, by_atom, n)
    if states is not None:
        return _with_states(z, ligand, label, n, states)
    # A ligand that gives its charge to metals of other blocks (azolate) shares it among its links.
    share = np.zeros(n)
    end = label[np.column_stack([bonds.i[cuts.edge], bonds.j[cuts.edge]])]
    uneven = ~cuts.even
    if uneven.any():
        holds = np.bincount(end[uneven].ravel(), minlength=n)
        has_metal = np.zeros(n, bool)
        has_metal[label[IS_METAL[z]]] = True
        for a, b in ((0, 1), (1, 0)):
            donor = end[uneven, b]
            gives = np.where(has_metal[donor], 0.0, ligand[donor] / np.maximum(holds[donor], 1))
            np.add.at(share, end[uneven, a], gives)
    charge = ligand.astype(np.int64)
    is_open = np.zeros(n, bool)
    unusual = np.zeros(n, bool)
    metals = np.flatnonzero(IS_METAL[z])
    if len(metals):
        kinds, which = np.unique(z[metals], return_inverse=True)
        count = np.zeros((n, len(kinds)), np.int64)
        np.add.at(count, (label[metals], which), 1)
        holders = np.flatnonzero(count.any(axis=1))
        rows = np.column_stack([count[holders], np.rint(12 * (ligand + share)[holders])])
        unique, inverse = np.unique(rows.astype(np.int64), axis=0, return_inverse=True)
        for k, row in enumerate(unique):
            have = {int(kinds[m]): int(c) for m, c in enumerate(row[:-1]) if c}
            usual = usual_states(have)
            found = oxidation_states(have, -row[-1] / 12) or usual
            mine = holders[inverse.ravel() == k]
            charge[mine] += sum(sum(s) for s in found.values())
            is_open[mine] = any(open_shell(e, s) for e, all_s in found.items() for s in all_s)
            unusual[mine] = any(tuple(sorted(usual[e])) != found[e] for e in have)
    return charge.astype(np.int32), is_open, unusual


def _with_states(
    z: NDArray[np.integer],
    ligand: NDArray[np.int64],
    label: NDArray[np.integer],
    n: int,
    states: NDArray[np.integer],
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
    """`block_charges` where the states of the metals are known."""
    charge = ligand + _sum_by(label, states, n)
    is_open, unusual = np.zeros(n, bool), np.zeros(n, bool)
    for atom in np.flatnonzero(IS_METAL[z]).tolist():
        element, state = int(z[atom]), int(states[atom])
        is_open[label[atom]] |= open_shell(element, state)
        unusual[label[atom]] |= state != OXIDATION.get(element, (2,))[0]
    return charge.astype(np.int32), is_open, unusual


def find_blocks(ds: xr.Dataset, i: int = 0, *, rule: str = "auto") -> xr.Dataset:
    """Cut one structure into its building blocks.

    Parameters
    ----------
    ds : Dataset of structures
    i : int
        Which structure.
    rule : str
        Name of a registered rule (`rule_names`), or several joined by ``+``.

    Returns
    -------
    Dataset
        Blocks (dims block, member, link, bond, end, xyz); every variable is described in
        docs/frameworks.md.

    Raises
    ------
    StructureError
        A block is infinite (rods, or bonds that the rule does not cut): its direction is named.
    """
    numbers, positions, cell, pbc = structure_arrays(ds, i)
    bonds = bonds_of(numbers, positions, cell, pbc)
    blocks = blocks_from_bonds(
        numbers,
        bonds,
        rule=rule,
        system=str(ds["system"].values[i]),
        length=bond_lengths(bonds, positions, cell),
    )
    return label_defects(blocks, numbers, positions, cell, pbc)


def blocks_from_bonds(
    z: NDArray[np.integer],
    bonds: Bonds,
    *,
    rule: str = "auto",
    system: str = "",
    length: NDArray[np.float64] | None = None,
) -> xr.Dataset:
    """Blocks of a structure whose bonds are known; see `find_blocks`.

    Parameters
    ----------
    length : (half-edge,) float, Å, optional
        Of the bonds: what tells the oxidation states of metals under `auto`.
    """
    import xarray as xr

    z = np.asarray(z)
    n = len(z)
    cuts, mask, pieces = partition(z, bonds, rule)
    inner = bonds.kept(~mask)
    if pieces.loops.any():
        refuse_endless(z, bonds, pieces, inner, rule)
    label = pieces.label
    n_blocks = pieces.n
    link_atom = np.column_stack([bonds.i[cuts.edge], bonds.j[cuts.edge]]).astype(np.int64)
    link_block = label[link_atom].astype(np.int64)
    image = link_images(bonds, cuts, pieces)

    coordination = _neighbours(link_block, image, n_blocks)
    has_metal = np.zeros(n_blocks, bool)
    has_metal[label[IS_METAL[z]]] = True
    node_side = np.zeros(n_blocks, bool)
    node_side[link_block[cuts.node_end]] = True
    linked = np.zeros(n_blocks, bool)
    linked[link_block] = True
    role = np.full(n_blocks, GUEST)
    role[linked] = LINKER
    role[node_side] = NODE
    if not linked.any():
        role[has_metal] = NODE

    n_cut = np.bincount(link_atom.ravel(), minlength=n)
    colour = z.astype(np.uint64) + np.uint64(128) * n_cut.astype(np.uint64)
    hashes = group_hash(refine(colour, inner), label, n_blocks)
    size = np.bincount(label, minlength=n_blocks).astype(np.int64)
    member_atom = np.argsort(label, kind="stable").astype(np.int64)
    start = np.concatenate([[0], np.cumsum(size)])
    unique, example, of_kind = np.unique(hashes, return_index=True, return_inverse=True)
    formulas = [
        formula(Counter(chemical_symbols[k] for k in z[member_atom[start[b] : start[b + 1]]]))
        for b in example
    ]
    # Kinds are numbered by role, size, formula and hash: the order of the atoms does not matter.
    order = sorted(
        range(len(unique)),
        key=lambda k: (role[example[k]], -size[example[k]], formulas[k], unique[k]),
    )
    rank = np.empty(len(unique), np.int32)
    rank[order] = np.arange(len(unique), dtype=np.int32)
    charge, is_open, unusual = block_charges(z, bonds, cuts, mask, pieces)
    more: dict[str, Any] = {}
    told: dict[str, Any] = {}
    if is_auto(rule):
        if charge.sum() or unusual.any():
            ligands = int(fragment_charges(z, bonds, _even_mask(len(bonds.i), cuts)).sum())
            found = cell_states(z, bonds, length, ligands)
            charge, is_open, unusual = block_charges(
                z, bonds, cuts, mask, pieces, states=found.state
            )
            told = {"left_charge": found.left, "mixed_valence": ", ".join(found.mixed)}
        if not cuts.even.all():
            more = head_variables(z, bonds, cuts, pieces, member_atom)
    net, n_nets, dimension = net_labels(n_blocks, link_block, image)
    once = bonds.kept(bonds.forward)
    return xr.Dataset(
        {
            "kind": ("block", rank[of_kind]),
            "kind_hash": ("block", np.array([f"{h:016x}" for h in unique])[of_kind]),
            "formula": ("block", np.array(formulas)[of_kind]),
            "role": ("block", ROLES[role]),
            "charge": ("block", charge),
            "open_shell": ("block", is_open),
            "unusual_state": ("block", unusual),
            "coordination": ("block", coordination.astype(np.int32)),
            "net": ("block", net),
            "block_n_atoms": ("block", size),
            "member_atom": ("member", member_atom),
            "member_shift": (("member", "xyz"), pieces.shift[member_atom]),
            "bond_atom": (("bond", "end"), np.column_stack([once.i, once.j]).astype(np.int64)),
            "bond_shift": (("bond", "xyz"), once.shift),
            "link_block": (("link", "end"), link_block),
            "link_atom": (("link", "end"), link_atom),
            "link_shift": (("link", "xyz"), bonds.shift[cuts.edge]),
            "link_image": (("link", "xyz"), image),
            "link_cap": (("link", "end"), cuts.cap),
            "link_cap_length": (("link", "end"), cuts.length),
            "link_cap_charge": (("link", "end"), cuts.cap_charge),
            **more,
        },
        attrs={
            "rule": rule,
            "system": system,
            "n_atoms": n,
            "n_nets": n_nets,
            "net_dimension": dimension,
            **told,
        },
    )


def block_adjacency(
    blocks: xr.Dataset,
) -> sp.csr_array:
    """Adjacency of blocks: how many links join each two, whatever their images."""
    n = blocks.sizes["block"]
    pair = blocks["link_block"].values
    ones = np.ones(2 * len(pair), np.int64)
    row = np.concatenate([pair[:, 0], pair[:, 1]])
    column = np.concatenate([pair[:, 1], pair[:, 0]])
    return sp.csr_array((ones, (row, column)), shape=(n, n))


def connected_blocks(blocks: xr.Dataset) -> tuple[int, NDArray[np.int32]]:
    """Connected pieces of the block graph: how many, and the piece of each block."""
    count, label = csgraph.connected_components(block_adjacency(blocks), directed=False)
    return int(count), label
