"""A picture of how a framework is taken apart: blocks, their charges, and the bonds cut.

One node with what surrounds it, then every kind of block by itself. Behind each atom lies the
colour of its kind of block; cut bonds are dashed; donors that get a proton where a cluster leaves
their metal out have a ring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.pictures import Scene, _draw, _element_colours, _element_handles, _radii
from mofal.analysis.plots import styled
from mofal.analysis.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    new_figure,
)
from mofal.frameworks.bonds import IS_METAL, bonds_of

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ATOMS = 260
"""Of the node and its surroundings in one picture."""
MOST_KINDS = 8
_SMALLEST = 7.0  # Å across a panel: a single metal does not fill it
_COLOURS = (ORANGE, SKY, GREEN, PURPLE, YELLOW, BLUE, "#B8A07E", "#9BC4BC")
_CUT = VERMILLION


@dataclass
class Piece:
    """Some blocks of a framework, each whole and in its place.

    Attributes
    ----------
    numbers, places : (atom,), (atom, 3) Å
    owner : (atom,) which of the drawn blocks it belongs to
    blocks : number in the framework of each drawn block
    bonds, cuts : (n, 2) pairs of the atoms; cut ones apart
    stubs : (n, 2, 3) Å: cut bonds that lead out of the picture, from the atom to half-way
    """

    numbers: NDArray
    places: NDArray
    owner: NDArray
    blocks: list[int]
    bonds: NDArray
    cuts: NDArray
    stubs: NDArray


class _Layout:
    """Atoms and links of a blocks Dataset, by block."""

    def __init__(self, structures: xr.Dataset, blocks: xr.Dataset, i: int) -> None:
        from mofal.data import atom_slice

        span = atom_slice(structures, i)
        self.numbers = structures["numbers"].values[span]
        self.cell = structures["cell"].values[i]
        count = blocks["block_n_atoms"].values
        start = np.concatenate([[0], np.cumsum(count)])
        self.atom, self.shift = blocks["member_atom"].values, blocks["member_shift"].values
        self.members = [slice(a, b) for a, b in pairwise(start.tolist())]
        self.whole = structures["positions"].values[span][self.atom] + self.shift @ self.cell
        self.row = np.empty(len(self.atom), np.int64)
        self.row[self.atom] = np.arange(len(self.atom))
        self.link_block = blocks["link_block"].values
        self.link_image = blocks["link_image"].values
        self.link_atom = blocks["link_atom"].values
        self.role = [str(r) for r in blocks["role"].values]

    def neighbours(self, key: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Blocks linked to one in some image: block and image of each, once."""
        block, image = key[0], np.array(key[1:])
        out: list[tuple[int, ...]] = []
        for end in (0, 1):
            mine = np.flatnonzero(self.link_block[:, end] == block)
            for k in mine.tolist():
                step = self.link_image[k] * (1 if end == 0 else -1)
                out.append((int(self.link_block[k, 1 - end]), *(image + step).tolist()))
        return list(dict.fromkeys(out))

    def piece(self, keys: Sequence[tuple[int, ...]]) -> Piece:
        """Some blocks in some images."""
        places, numbers, owner = [], [], []
        first: dict[tuple[int, ...], int] = {}
        n = 0
        for k, (block, *image) in enumerate(keys):
            span = self.members[block]
            first[(block, *image)] = n - span.start
            places.append(self.whole[span] + np.array(image) @ self.cell)
            numbers.append(self.numbers[self.atom[span]])
            owner += [k] * (span.stop - span.start)
            n += span.stop - span.start
        x, z = np.concatenate(places), np.concatenate(numbers)
        cuts, stubs = [], []
        for key in keys:
            for end in (0, 1):
                for k in np.flatnonzero(self.link_block[:, end] == key[0]).tolist():
                    step = self.link_image[k] * (1 if end == 0 else -1)
                    image = np.array(key[1:]) + step
                    other = (int(self.link_block[k, 1 - end]), *image.tolist())
                    a = first[key] + self.row[self.link_atom[k, end]]
                    far = self.row[self.link_atom[k, 1 - end]]
                    if other in first:
                        cuts.append((int(a), int(first[other] + far)))
                    else:
                        away = self.whole[far] + image @ self.cell
                        stubs.append((x[a], 0.5 * (x[a] + away)))
        found = bonds_of(z, x, np.zeros((3, 3)), np.zeros(3, bool))
        own = np.asarray(owner)
        inside = found.forward & (own[found.i] == own[found.j])
        return Piece(
            numbers=z,
            places=x,
            owner=own,
            blocks=[key[0] for key in keys],
            bonds=np.column_stack([found.i[inside], found.j[inside]]).astype(np.int64),
            cuts=np.unique(np.sort(np.array(cuts, np.int64).reshape(-1, 2), axis=1), axis=0),
            stubs=np.array(stubs, float).reshape(-1, 2, 3),
        )

    def around(self, block: int) -> list[tuple[int, ...]]:
        """A block, its neighbours, and what short bridges (OH, formate, cyanide) lead to."""
        keys: list[tuple[int, ...]] = [(block, 0, 0, 0)]
        size = self.members[block].stop - self.members[block].start
        near = self.neighbours(keys[0])
        beyond = [
            far
            for key in near
            if self.members[key[0]].stop - self.members[key[0]].start <= 4
            for far in self.neighbours(key)
        ]
        for key in dict.fromkeys([*near, *beyond]):
            more = self.members[key[0]].stop - self.members[key[0]].start
            if key not in keys and size + more <= MOST_ATOMS:
                keys.append(key)
                size += more
        return keys


def _signed(charge: int) -> str:
    """A charge as chemists write it: 2+, -."""
    size = str(abs(charge)) if abs(charge) > 1 else ""
    return size + ("+" if charge > 0 else "\N{MINUS SIGN}")


def _kinds(blocks: xr.Dataset) -> list[int]:
    """One block of each kind and charge: nodes first, then by how many there are."""
    rows = list(zip(blocks["kind"].values.tolist(), blocks["charge"].values.tolist()))
    counts = Counter(rows)
    role = [str(r) for r in blocks["role"].values]
    order = {"node": 0, "linker": 1, "guest": 2}
    first = {row: rows.index(row) for row in counts}
    return sorted(first.values(), key=lambda b: (order[role[b]], -counts[rows[b]], b))


def _panel(
    ax: Axes, piece: Piece, colours: NDArray, charges: Sequence[int], proton: NDArray
) -> None:
    """Atoms by element over the colours of their blocks, cut bonds dashed, charges written."""
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.patches import Circle

    n = len(piece.numbers)
    scene = Scene(np.arange(n), piece.places, np.zeros(n, bool), piece.bonds)
    radii = _radii(piece.numbers)
    view = _draw(
        ax,
        scene,
        radii,
        _element_colours(piece.numbers),
        proton if proton.any() else None,
        weights=np.where(IS_METAL[piece.numbers], 4.0, 1.0),
    )
    flat = (piece.places @ view.T)[:, :2]
    for axis in "xy":
        low, high = getattr(ax, f"get_{axis}lim")()
        if high - low < _SMALLEST:
            getattr(ax, f"set_{axis}lim")(*(0.5 * (low + high) + _SMALLEST * np.array([-0.5, 0.5])))
    halos = PatchCollection(
        [Circle(p, r + 0.42) for p, r in zip(flat, radii)], alpha=0.55, zorder=0, linewidths=0
    )
    halos.set_facecolor(colours[piece.owner])
    ax.add_collection(halos)
    lines = [flat[pair] for pair in piece.cuts]
    lines += [(stub @ view.T)[:, :2] for stub in piece.stubs]
    ax.add_collection(
        LineCollection(lines, colors=_CUT, linewidths=1.6, linestyles=(0, (2.2, 1.2)), zorder=4)
    )
    for k, charge in enumerate(charges):
        if charge:
            mine = np.flatnonzero(piece.owner == k)
            metal = mine[IS_METAL[piece.numbers[mine]]]
            at = flat[metal if len(metal) else mine].mean(axis=0)
            ax.text(
                float(at[0]), float(at[1]), _signed(charge), ha="center", va="center",
                fontsize=7.5, zorder=6, color=DARK,
                bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": GREY, "lw": 0.5,
                      "alpha": 0.85},
            )  # fmt: skip


def _protons(blocks: xr.Dataset, layout: _Layout) -> NDArray:
    """Donors that take a proton where a cluster leaves their metal out: (atom,) bool."""
    out = np.zeros(len(layout.numbers), bool)
    if "link_order" in blocks:
        takes = blocks["link_order"].values > 0
        out[layout.link_atom[takes, 1]] = True
    return out


@styled
def plot_blocks(
    structures: xr.Dataset, blocks: xr.Dataset, i: int = 0, *, compact: bool = False
) -> Figure:
    """How a framework is taken apart.

    Parameters
    ----------
    structures
        Structures Dataset.
    blocks
        Its blocks (`mofal.frameworks.find_blocks`).
    i
        Which structure.
    compact
        Only the node and its surroundings.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D

    layout = _Layout(structures, blocks, i)
    shown = _kinds(blocks)
    kind_of = list(zip(blocks["kind"].values.tolist(), blocks["charge"].values.tolist()))
    colour = {kind_of[b]: _COLOURS[k % len(_COLOURS)] for k, b in enumerate(shown)}
    counts = Counter(kind_of)
    listed = shown[:MOST_KINDS]
    charge = blocks["charge"].values.tolist()
    takes = _protons(blocks, layout)

    def draw(ax: Axes, keys: Sequence[tuple[int, ...]]) -> None:
        piece = layout.piece(keys)
        tones = np.array([to_rgb(colour[kind_of[b]]) for b in piece.blocks])
        rows = np.concatenate([np.arange(s.start, s.stop) for s in
                               (layout.members[b] for b in piece.blocks)])  # fmt: skip
        rings = takes[layout.atom[rows]]
        _panel(ax, piece, tones, [int(charge[b]) for b in piece.blocks], rings)

    centre = next((b for b in shown if layout.neighbours((b, 0, 0, 0))), shown[0])
    columns = 0 if compact else (len(listed) + 1) // 2
    figure = new_figure(5.2 + 2.5 * columns, 5.6)
    grid = figure.add_gridspec(2, 2 + columns)
    ax = figure.add_subplot(grid[:, :2])
    draw(ax, layout.around(centre))
    name = str(structures["system"].values[i])
    ax.set_title(f"{name}: {blocks['formula'].values[centre]} and what surrounds it")
    for k, block in enumerate([] if compact else listed):
        ax = figure.add_subplot(grid[k % 2, 2 + k // 2])
        draw(ax, [(block, 0, 0, 0)])
        text = str(blocks["formula"].values[block])
        if charge[block]:
            text += f" ({_signed(int(charge[block]))})"
        ax.set_title(
            f"{counts[kind_of[block]]} × {text}\n{layout.role[block]}, "
            f"{int(blocks['coordination'].values[block])}-connected"
        )
    handles: list[Any] = _element_handles(structures, i)
    handles.append(Line2D([], [], color=_CUT, ls=(0, (2.2, 1.2)), label="cut"))
    if takes.any():
        handles.append(Line2D([], [], marker="o", ls="", ms=8, mfc="none", mec=BLUE, mew=1.6,
                              label="may take a proton"))  # fmt: skip
    if len(shown) > len(listed) and not compact:
        handles.append(Line2D([], [], ls="", label=f"{len(shown) - len(listed)} more kinds"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9))
    return figure
