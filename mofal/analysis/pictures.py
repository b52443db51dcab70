"""Pictures of structures: a flat projection that a report can print, coloured by a value.

The direction of view is the one that hides the fewest atoms, those to be shown above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.plots import styled
from mofal.analysis.style import (
    BLUE,
    DARK,
    ELEMENT_COLOURS,
    GREY,
    ORANGE,
    OTHER_ELEMENT,
    new_figure,
)
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_DRAWN = 700
"""Atoms in one picture; of a larger structure the surroundings of the atom shown are drawn."""
REGION_NAMES = ("core", "mantle", "termination")
REGION_COLOURS = (ORANGE, "#9DB8CC", "#FFFFFF")


@dataclass
class Scene:
    """Atoms in a picture: those of the structure, and pale images of their bonded neighbours.

    Attributes
    ----------
    atom
        Shape (s,): atom of the structure that each one is, or is an image of.
    places
        Shape (s, 3), Å.
    is_image
        Shape (s,).
    bonds
        Shape (b, 2): pairs of the s atoms.
    """

    atom: NDArray
    places: NDArray
    is_image: NDArray
    bonds: NDArray


def make_scene(
    numbers: NDArray, positions: NDArray, cell: NDArray, pbc: NDArray, *, reach: int = 1
) -> Scene:
    """Atoms and bonds of a structure, continued over the boundaries by `reach` bonds."""
    from mofal.frameworks.bonds import bonds_of

    bonds = bonds_of(numbers, positions, cell, pbc)
    start = bonds.indptr
    places: dict[tuple[int, ...], int] = {(atom, 0, 0, 0): atom for atom in range(len(numbers))}
    front = list(places)
    for _ in range(reach):
        following: list[tuple[int, ...]] = []
        for atom, *shift in front:
            for edge in range(start[atom], start[atom + 1]):
                step = bonds.shift[edge].tolist()
                key = (int(bonds.j[edge]), *(a + b for a, b in zip(shift, step)))
                if key not in places and len(following) < 4 * len(numbers):
                    places[key] = len(places)
                    following.append(key)
        front = following
    keys = np.array(list(places), dtype=np.int64).reshape(-1, 4)
    pairs = []
    for (atom, *shift), index in places.items():
        for edge in range(start[atom], start[atom + 1]):
            step = bonds.shift[edge].tolist()
            key = (int(bonds.j[edge]), *(a + b for a, b in zip(shift, step)))
            other = places.get(key)
            if other is not None and index < other:
                pairs.append((index, other))
    return Scene(
        atom=keys[:, 0],
        places=positions[keys[:, 0]] + keys[:, 1:] @ np.asarray(cell, float),
        is_image=np.any(keys[:, 1:] != 0, axis=1),
        bonds=np.array(pairs, dtype=np.int64).reshape(-1, 2),
    )


def best_view(
    places: NDArray, radii: NDArray, weights: NDArray, *, n_directions: int = 160
) -> NDArray:
    """Rotation (3, 3) whose rows are right, up and towards the viewer.

    Of directions spread evenly over the sphere, the one in which most weight stays uncovered.
    """
    k = np.arange(n_directions) + 0.5
    height = 1.0 - 2.0 * k / n_directions
    turn = np.pi * (1.0 + np.sqrt(5.0)) * k
    wide = np.sqrt(1.0 - height**2)
    directions = np.column_stack([wide * np.cos(turn), wide * np.sin(turn), height])
    best, best_frame = -np.inf, np.identity(3)
    for direction in directions:
        frame = _frame(places, direction)
        flat = places @ frame.T
        away = np.linalg.norm(flat[:, None, :2] - flat[None, :, :2], axis=2)
        covered = (away < 0.8 * radii[None, :]) & (flat[None, :, 2] > flat[:, None, 2] + 1e-6)
        score = float(weights @ ~covered.any(axis=1))
        if score > best + 1e-9:
            best, best_frame = score, frame
    return best_frame


def _frame(places: NDArray, direction: NDArray) -> NDArray:
    """Right along the largest extent across the direction of view, right-handed."""
    flat = places - places.mean(axis=0)
    flat = flat - np.outer(flat @ direction, direction)
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    right = axes[0] - (axes[0] @ direction) * direction
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction])


@styled
def plot_structure(
    structures: xr.Dataset,
    i: int = 0,
    *,
    values: NDArray | None = None,
    label: str = "",
    high_is_bad: bool = True,
    rings: NDArray | None = None,
    ring_label: str = "",
    outlined: NDArray | None = None,
    outline_label: str = "",
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A structure, its atoms coloured by element or by a value, some of them ringed.

    Parameters
    ----------
    structures
        Structures Dataset.
    i
        Which of them.
    values
        Shape (atoms of the structure,): red is bad. Not finite ones (an unseen element) are black.
    label
        Of the colour bar, with unit.
    high_is_bad
        Whether large values are red (errors) or small ones (log-likelihoods).
    rings
        Mask (atoms of the structure,): atoms with a ring.
    ring_label
        What the rings mean.
    outlined, outline_label
        Mask (atoms of the structure,): atoms with a bold outline, and what it means.
    limits
        Ends of the colour scale; by default the 2nd and the 98th percentile.
    """
    figure = new_figure(5.0, 4.5)
    ax = figure.subplots()
    _structure_panel(
        figure,
        ax,
        structures,
        i,
        values=values,
        label=label,
        high_is_bad=high_is_bad,
        rings=rings,
        outlined=outlined,
        limits=limits,
    )
    if title:
        ax.set_title(title)
    handles = [] if values is not None else _element_handles(structures, i)
    if rings is not None and np.any(rings) and ring_label:
        handles.append(_ring_handle(ring_label))
    if outlined is not None and np.any(outlined) and outline_label:
        handles.append(_outline_handle(outline_label))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


@styled
def plot_atom_errors(
    structures: xr.Dataset,
    errors: dict[str, NDArray],
    *,
    rings: NDArray | None = None,
    ring_label: str = "",
    label: str = "force MAE$_{P95}$ (meV/Å)",
) -> Figure:
    """The same structure once per model, coloured by per-atom errors on one colour scale.

    Parameters
    ----------
    structures
        Structures Dataset; its first structure is drawn.
    errors
        By model: shape (atoms of the structure,), meV/Å.
    """
    top = max(float(np.nanquantile(values, 0.99)) for values in errors.values())
    low = min(float(np.nanmin(values)) for values in errors.values())
    figure = new_figure(2.35 * len(errors) + 0.9, 2.8)
    axes = figure.subplots(1, len(errors), squeeze=False)[0]
    view = None
    image = None
    for ax, (name, values) in zip(axes, errors.items()):
        view, image = _structure_panel(
            figure,
            ax,
            structures,
            0,
            values=values,
            rings=rings,
            limits=(low, top),
            view=view,
            colour_bar=False,
        )
        ax.set_title(name)
    if image is not None:
        figure.colorbar(image, ax=axes, label=label, shrink=0.8, pad=0.01, extend="max")
    if rings is not None and np.any(rings) and ring_label:
        figure.legend(handles=[_ring_handle(ring_label)], loc="outside lower center")
    return figure


@styled
def plot_clusters(clusters: xr.Dataset, *, n: int = 3) -> Figure:
    """The first clusters: core, mantle and termination.

    Parameters
    ----------
    clusters
        Structures Dataset with `region`.
    n
        How many to draw at most.
    """
    from matplotlib.lines import Line2D

    from mofal.data import atom_slice

    if "region" not in clusters:
        raise DataError("these structures have no region: cut them with mofal.clusters.cut")
    n = min(n, clusters.sizes["structure"])
    figure = new_figure(2.9 * n, 3.3)
    axes = figure.subplots(1, n, squeeze=False)[0]
    for i, ax in enumerate(axes):
        region = clusters["region"].values[atom_slice(clusters, i)].astype(int)
        _cluster_panel(
            ax,
            clusters,
            i,
            _rgb(np.array(REGION_COLOURS)[region]),
            np.where(region == 0, 5.0, 1.0),
            f"{clusters['system'].values[i]}, {len(region)} atoms",
        )
    handles = [
        Line2D([], [], marker="o", ls="", ms=8, color=colour, mec=DARK, mew=0.6, label=name)
        for colour, name in zip(REGION_COLOURS, REGION_NAMES)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled
def plot_cluster_values(
    clusters: xr.Dataset, values: NDArray, *, titles: Sequence[str], label: str
) -> Figure:
    """Clusters side by side, their atoms coloured by a value on one logarithmic scale.

    Parameters
    ----------
    clusters
        Structures Dataset.
    values
        Shape (atom,): red is bad; atoms without one (caps) are white.
    titles
        One for each cluster.
    label
        Of the colour bar, with unit.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    from mofal.data import atom_slice

    n = clusters.sizes["structure"]
    known = np.isfinite(values) & (values > 0)
    low, high = np.quantile(values[known], [0.02, 1.0]) if known.any() else (1.0, 10.0)
    norm = LogNorm(low, max(high, 1.01 * low), clip=True)
    colours = np.ones((len(values), 3))
    colours[np.isfinite(values)] = colormaps["YlOrRd"](
        norm(np.maximum(values[np.isfinite(values)], low))
    )[:, :3]
    figure = new_figure(2.9 * n + 0.9, 3.1)
    axes = figure.subplots(1, n, squeeze=False)[0]
    for i, ax in enumerate(axes):
        span = atom_slice(clusters, i)
        weights = np.where(np.isfinite(values[span]), 2.0, 1.0)
        _cluster_panel(ax, clusters, i, colours[span], weights, titles[i])
    image = ScalarMappable(norm, colormaps["YlOrRd"])
    figure.colorbar(image, ax=axes, label=label, shrink=0.85, pad=0.01, extend="min")
    return figure


def _cluster_panel(
    ax: Axes, clusters: xr.Dataset, i: int, colours: NDArray, weights: NDArray, title: str
) -> None:
    from mofal.data import atom_slice

    span = atom_slice(clusters, i)
    numbers = clusters["numbers"].values[span]
    scene = make_scene(
        numbers,
        clusters["positions"].values[span],
        clusters["cell"].values[i],
        clusters["pbc"].values[i],
        reach=0,
    )
    _draw(ax, scene, _radii(numbers), colours, None, weights=weights)
    ax.set_title(title)


def _structure_panel(
    figure: Figure,
    ax: Axes,
    structures: xr.Dataset,
    i: int,
    *,
    values: NDArray | None = None,
    label: str = "",
    high_is_bad: bool = True,
    rings: NDArray | None = None,
    outlined: NDArray | None = None,
    limits: tuple[float, float] | None = None,
    view: NDArray | None = None,
    colour_bar: bool = True,
) -> tuple[NDArray, Any]:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    from mofal.data import atom_slice

    span = atom_slice(structures, i)
    numbers = structures["numbers"].values[span]
    positions = structures["positions"].values[span]
    for what in (values, rings, outlined):
        if what is not None and len(what) != len(numbers):
            raise DataError(
                f"{len(what)} values for a structure of {len(numbers)} atoms: give one per atom "
                "of the structure that is drawn"
            )
    kept = _surroundings(positions, values, rings, high_is_bad)
    scene = make_scene(
        numbers[kept],
        positions[kept],
        structures["cell"].values[i],
        structures["pbc"].values[i] & (len(kept) == len(numbers)),
    )
    image = None
    if values is None:
        colours = _element_colours(numbers[kept])
        weights = np.ones(len(kept))
    else:
        shown = np.asarray(values, dtype=float)[kept]
        fine = np.isfinite(shown)
        low, high = limits or _colour_limits(shown[fine])
        norm = Normalize(low, high)
        colour_map = colormaps["YlOrRd" if high_is_bad else "YlOrRd_r"]
        colours = colour_map(norm(np.where(fine, shown, low)))[:, :3]
        colours[~fine] = 0.0
        # What is worst is shown above all.
        rank = np.argsort(np.argsort(np.where(fine, shown, -np.inf if not high_is_bad else np.inf)))
        rank = rank if high_is_bad else len(rank) - 1 - rank
        weights = 1.0 + 3.0 * (rank / max(len(rank) - 1, 1)) ** 4
        image = ScalarMappable(norm, colour_map)
        if colour_bar:
            bar = figure.colorbar(image, ax=ax, label=label, shrink=0.75, pad=0.01, extend="both")
            if not high_is_bad:
                bar.ax.invert_yaxis()
    ring = None if rings is None else np.asarray(rings, dtype=bool)[kept]
    if ring is not None:
        weights = np.where(ring, 6.0, weights)
    bold = None if outlined is None else np.asarray(outlined, dtype=bool)[kept]
    radii = _radii(numbers[kept])
    return _draw(ax, scene, radii, colours, ring, bold, weights=weights, view=view), image


def _colour_limits(values: NDArray) -> tuple[float, float]:
    if len(values) == 0:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.02, 0.98])
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def _surroundings(
    positions: NDArray, values: NDArray | None, rings: NDArray | None, high_is_bad: bool
) -> NDArray:
    """All atoms, or those around the one that matters most where there are too many to draw."""
    n = len(positions)
    if n <= LARGEST_DRAWN:
        return np.arange(n)
    centre = positions.mean(axis=0)
    if rings is not None and np.any(rings):
        centre = positions[np.flatnonzero(rings)[0]]
    elif values is not None:
        order = np.nan_to_num(np.asarray(values, float) * (1.0 if high_is_bad else -1.0))
        centre = positions[int(np.argmax(order))]
    away = np.linalg.norm(positions - centre, axis=1)
    return np.sort(np.argsort(away, kind="stable")[: LARGEST_DRAWN // 2])


def _draw(
    ax: Axes,
    scene: Scene,
    radii: NDArray,
    colours: NDArray,
    rings: NDArray | None,
    bold: NDArray | None = None,
    *,
    weights: NDArray,
    view: NDArray | None = None,
) -> NDArray:
    """Painter's algorithm: bonds and atoms from back to front, paler with depth."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Polygon

    size = radii[scene.atom]
    if view is None:
        weight = np.where(scene.is_image, 0.2, weights[scene.atom])
        view = best_view(scene.places, size, weight)
    flat = scene.places @ view.T
    depth = flat[:, 2]
    nearness = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-9)
    colour = colours[scene.atom]
    pale = 0.45 * (1.0 - nearness)
    pale = np.where(scene.is_image, np.maximum(pale, 0.75), pale)[:, None]
    face = colour * (1.0 - pale) + pale
    edge = 0.25 * (1.0 - pale) + pale * 0.9
    items: list[tuple[float, Any, Any, Any, float]] = []
    for i, j in scene.bonds:
        # Sticks end at the balls, so that they never cross the face of an atom.
        along = flat[j] - flat[i]
        along /= max(float(np.linalg.norm(along)), 1e-9)
        start, end = flat[i] + 0.9 * size[i] * along, flat[j] - 0.9 * size[j] * along
        tone = 0.45 + 0.5 * float(max(pale[i, 0], pale[j, 0]))
        stick = Polygon(_bar(start[:2], end[:2], 0.11))
        items.append((0.5 * (start[2] + end[2]), stick, (tone,) * 3, (tone,) * 3, 0.0))
    for k in range(len(flat)):
        circle = Circle(flat[k, :2], size[k])
        outline: tuple[Any, float] = (float(edge[k, 0]),) * 3, 0.6
        if bold is not None and bold[scene.atom[k]] and not scene.is_image[k]:
            outline = DARK, 1.7
        items.append((depth[k], circle, face[k], *outline))
        if rings is not None and rings[scene.atom[k]] and not scene.is_image[k]:
            # Rings lie above everything: what they point at may be behind other atoms.
            ring = Circle(flat[k, :2], size[k] + 0.2)
            items.append((np.inf, ring, (0, 0, 0, 0), BLUE, 1.6))
    items.sort(key=lambda item: item[0])
    ax.add_collection(
        PatchCollection(
            [item[1] for item in items],
            facecolors=[item[2] for item in items],
            edgecolors=[item[3] for item in items],
            linewidths=[item[4] for item in items],
            match_original=False,
        )
    )
    low, high = flat[:, :2].min(axis=0), flat[:, :2].max(axis=0)
    middle, half = 0.5 * (low + high), 0.5 * float((high - low).max()) + 1.2
    # Square, so that panels side by side keep their titles on one line.
    ax.set(
        xlim=(middle[0] - half, middle[0] + half),
        ylim=(middle[1] - half, middle[1] + half),
        aspect="equal",
    )
    ax.axis("off")
    return view


def _bar(start: NDArray, end: NDArray, half_width: float) -> NDArray:
    along = end - start
    length = max(float(np.linalg.norm(along)), 1e-9)
    side = half_width * np.array([-along[1], along[0]]) / length
    return np.array([start + side, end + side, end - side, start - side])


def _radii(numbers: NDArray) -> NDArray:
    """Radii of the discs, Å: between ball-and-stick and covalent."""
    from ase.data import covalent_radii

    return 0.25 + 0.35 * covalent_radii[numbers]


def _element_colours(numbers: NDArray) -> NDArray:
    from ase.data import chemical_symbols

    names = [ELEMENT_COLOURS.get(chemical_symbols[number], OTHER_ELEMENT) for number in numbers]
    return _rgb(names)


def _rgb(names: Sequence[str] | NDArray) -> NDArray:
    from matplotlib.colors import to_rgb

    return np.array([to_rgb(str(name)) for name in names]).reshape(-1, 3)


def _element_handles(structures: xr.Dataset, i: int) -> list[Any]:
    from ase.data import chemical_symbols
    from matplotlib.lines import Line2D

    from mofal.data import atom_slice

    present = np.unique(structures["numbers"].values[atom_slice(structures, i)])
    return [
        Line2D([], [], marker="o", ls="", ms=7, mec=GREY, mew=0.6, label=chemical_symbols[number],
               color=ELEMENT_COLOURS.get(chemical_symbols[number], OTHER_ELEMENT))
        for number in present
    ]  # fmt: skip


def _outline_handle(label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", ls="", ms=7, mfc="#F7E3A1", mec=DARK, mew=1.7, label=label)


def _ring_handle(label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", ls="", ms=9, mfc="none", mec=BLUE, mew=1.8, label=label)
