"""Structures too large for one pass: spatial domains, each with all that its atoms can feel.

The energy of an atom depends on atoms no further away than the layers of the network times its
cutoff, from neighbour to neighbour. So a domain that carries that much of its surroundings gives
its own atoms the features and energies that they have in the whole. Its energy is that of its own
atoms alone; the gradients of it on atoms of the surroundings go to the domains that own them, and
their sum over all domains is that of the whole. The virial is Σ r ⊗ g of each domain by itself,
since a domain is finite and its gradients add up to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from mofal.errors import DataError
from mofal.potential.base import Networked, require_elements, symbols_of
from mofal.potential.network import energy_part, readout_weights
from mofal.potential.standalone import neighbour_edges

if TYPE_CHECKING:
    import xarray as xr


Domains = Literal["auto"] | int | tuple[int, int, int]
"""What `evaluate` and `featurize` take: ``"auto"``, atoms of a task, or a grid."""

LARGEST = {"featurize_arrays": 60_000, "evaluate_arrays": 30_000}
"""Atoms of a task with its surroundings: 2 to 3 GB for `tiny` (docs/engine.md has the figures)."""


def reach(potential: Networked) -> float:
    """How far away an atom can be that changes the features of another, Å."""
    return potential.architecture.n_layers * potential.r_max


# ---------------------------------------------------------------------------------- geometry
@dataclass(frozen=True)
class Box:
    """A structure in the coordinates of its box: [0, 1) along each of its vectors.

    Attributes
    ----------
    numbers : (n,) int
    inside : (n, 3) float
        Coordinates, wrapped where the box is periodic.
    vectors : (3, 3) float, Å
        Of the box, as rows: the cell where it is periodic, elsewhere what holds all atoms.
    origin : (3,) float, Å
    periodic : (3,) bool
    volume : float, Å³
        Of the cell; NaN where nothing is periodic.
    """

    numbers: np.ndarray
    inside: np.ndarray
    vectors: np.ndarray
    origin: np.ndarray
    periodic: np.ndarray
    volume: float

    @property
    def widths(self) -> np.ndarray:
        """Distance between opposite faces along each vector, Å."""
        return _widths(self.vectors)


def _widths(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / np.linalg.norm(np.linalg.inv(vectors), axis=0))


def make_box(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Box:
    """Box of one structure.

    Raises
    ------
    DataError
        Positions or a cell that are not finite.
    """
    from ase.geometry import complete_cell

    x, periodic = np.asarray(positions, np.float64), np.asarray(pbc, bool)
    lattice = np.asarray(cell, np.float64) if periodic.any() else np.zeros((3, 3))
    if not (np.isfinite(x).all() and np.isfinite(lattice).all()):
        raise DataError(
            "positions or cell hold NaN or infinities: this structure has exploded; leave it out"
        )
    vectors = np.array(complete_cell(lattice))
    inside = x @ np.linalg.inv(vectors)
    inside[:, periodic] -= np.floor(inside[:, periodic])
    # What is a rounding below zero becomes one.
    inside[:, periodic] *= inside[:, periodic] < 1.0
    origin = np.zeros(3)
    for k in np.flatnonzero(~periodic):
        low = inside[:, k].min()
        length = max((inside[:, k].max() - low) * (1.0 + 1e-9), 1e-3 / _widths(vectors)[k])
        inside[:, k] = (inside[:, k] - low) / length
        origin += low * vectors[k]
        vectors[k] *= length
    volume = abs(float(np.linalg.det(lattice))) if periodic.any() else np.nan
    return Box(np.asarray(numbers), inside, vectors, origin, periodic, volume)


def grid_of(widths: np.ndarray, n: int, *, reach: float, largest: int) -> tuple[int, int, int]:
    """Domains along each vector: the longest side is cut until a domain is small enough.

    Parameters
    ----------
    widths : (3,) float, Å
        Of the box.
    n : int
        Atoms.
    reach : float, Å
        Width of the surroundings.
    largest : int
        Atoms of a domain, its surroundings included, where that is possible.
    """
    counts = np.ones(3, int)
    if n <= largest:
        return (1, 1, 1)
    while n * np.prod(1.0 / counts + 2.0 * reach / widths) > largest:
        sides = widths / counts
        if sides.max() < reach:
            break  # Beyond this, surroundings grow faster than domains shrink.
        counts[int(sides.argmax())] += 1
    return int(counts[0]), int(counts[1]), int(counts[2])


def halo_factor(widths: np.ndarray, grid: tuple[int, int, int], reach: float) -> float:
    """Volume of a domain with a slab of `reach` on every side over its own: (x + 2 reach)³/x³."""
    return float(np.prod(1.0 + 2.0 * reach * np.array(grid) / widths))


class Domain(NamedTuple):
    """One domain with its surroundings, a finite graph.

    Attributes
    ----------
    atom : (m,) int64
        Which atom of the structure each is, those of the domain itself first.
    own : int
        How many are of the domain itself.
    positions : (m, 3) float, Å
        Where they are, unwrapped, about the middle of the domain.
    edges : (2, e) int64
        Pairs within the cutoff, of centres whose messages reach the domain.
    """

    atom: np.ndarray
    own: int
    positions: np.ndarray
    edges: np.ndarray


def cut_domain(
    box: Box,
    grid: tuple[int, int, int],
    place: tuple[int, int, int],
    *,
    r_max: float,
    n_layers: int,
) -> Domain:
    """One domain of a grid, and all from which messages come to it in so many layers.

    The search takes atoms in a slab about the domain and then follows edges from the domain's own
    atoms, so that neither corners nor atoms that nothing connects are carried along.
    """
    counts, at = np.array(grid), np.array(place)
    margin = n_layers * r_max / box.widths
    low, high = at / counts - margin, (at + 1) / counts + margin
    atom, image = np.arange(len(box.inside)), np.zeros((len(box.inside), 3))
    for k in range(3):
        x = box.inside[atom, k]
        images = range(int(np.floor(low[k])), int(np.ceil(high[k]))) if box.periodic[k] else (0,)
        rows, shifts = [], []
        for shift in images:
            rows.append(np.flatnonzero((x + shift >= low[k]) & (x + shift < high[k])))
            shifts.append(np.full(len(rows[-1]), float(shift)))
        found = np.concatenate(rows)
        atom, image = atom[found], image[found]
        image[:, k] = np.concatenate(shifts)
    cell_of = np.minimum((box.inside[atom] * counts).astype(int), counts - 1)
    own = (cell_of == at).all(axis=1) & ~image.any(axis=1)
    if not own.any():
        return Domain(atom[:0], 0, np.zeros((0, 3)), np.zeros((2, 0), np.int64))
    order = np.concatenate([np.flatnonzero(own), np.flatnonzero(~own)])
    atom, n_own = atom[order], int(own.sum())
    # About the middle of the domain: a virial of large numbers would lose digits.
    middle = (at + 0.5) / counts
    positions = (box.inside[atom] + image[order] - middle) @ box.vectors
    edges, _ = neighbour_edges(positions, np.zeros((3, 3)), np.zeros(3, bool), r_max)
    hops = np.full(len(atom), n_layers + 1, np.int8)
    hops[:n_own] = 0
    for k in range(1, n_layers + 1):
        to = edges[1][hops[edges[0]] == k - 1]
        hops[to[hops[to] > k]] = k
    kept = np.flatnonzero(hops <= n_layers)
    number = np.zeros(len(atom), np.int64)
    number[kept] = np.arange(len(kept))
    edges = number[edges[:, hops[edges[0]] < n_layers]]
    return Domain(atom[kept], n_own, positions[kept], edges)


# ---------------------------------------------------------------------------------- one task
def _graph(potential: Networked, box: Box, domain: Domain) -> dict[str, torch.Tensor]:
    graph = {
        "pos": torch.from_numpy(domain.positions),
        "atom_types": torch.from_numpy(potential.types[box.numbers[domain.atom].astype(np.int64)]),
        "cell": torch.zeros((1, 3, 3), dtype=torch.float64),
        "edge_index": torch.from_numpy(domain.edges),
        "edge_cell_shift": torch.zeros((domain.edges.shape[1], 3), dtype=torch.float64),
    }
    return {key: value.to(potential.device) for key, value in graph.items()}


def _cut(potential: Networked, box: Box, grid: Any, place: Any) -> Domain:
    a = potential.architecture
    return cut_domain(box, grid, place, r_max=a.r_max, n_layers=a.n_layers)


def featurize_domain(
    potential: Networked, box: Box, grid: tuple[int, int, int], place: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Which atoms a domain owns, and their features (own, feature_dim) in single precision."""
    domain = _cut(potential, box, grid, place)
    if not domain.own:
        return domain.atom, np.zeros((0, potential.architecture.feature_dim), np.float32)
    first, _ = readout_weights(potential.network)
    with torch.no_grad():
        out = energy_part(potential.network)(_graph(potential, box, domain))
        features = (out["node_features"][: domain.own] @ first).to(torch.float32)
    return domain.atom[: domain.own], features.cpu().numpy()


def evaluate_domain(
    potential: Networked, box: Box, grid: tuple[int, int, int], place: tuple[int, int, int]
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Energy of the atoms that a domain owns, and its gradients.

    Returns
    -------
    energy : float, eV
    atom : (k,) int64
        Atoms of the structure that the energy depends on, each once.
    gradient : (k, 3) float64, eV/Å
        Of this energy, images of an atom added up.
    virial : (3, 3) float64, eV
        Of this energy: its derivative by a strain.
    """
    domain = _cut(potential, box, grid, place)
    if not domain.own:
        return 0.0, domain.atom, np.zeros((0, 3)), np.zeros((3, 3))
    graph = _graph(potential, box, domain)
    place_of = graph["pos"].requires_grad_()
    with torch.enable_grad():
        out = energy_part(potential.network)(graph)
        energy = out["atomic_energy"][: domain.own].to(torch.float64).sum()
        (gradient,) = torch.autograd.grad(energy, place_of)
    g = gradient.to(torch.float64).cpu().numpy()
    virial = domain.positions.T @ g
    atom, where = np.unique(domain.atom, return_inverse=True)
    summed = np.stack([np.bincount(where, g[:, k], len(atom)) for k in range(3)], axis=1)
    return float(energy.detach()), atom, summed, 0.5 * (virial + virial.T)


# ---------------------------------------------------------------------------------- the whole
def _gather_features(n: int, dim: int, parts: list[Any]) -> tuple[np.ndarray]:
    out = np.empty((n, dim), np.float32)
    for atom, values in parts:
        out[atom] = values
    return (out,)


def _gather_forces(box: Box, parts: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    energy, virial = 0.0, np.zeros((3, 3))
    forces = np.zeros((len(box.numbers), 3))
    for part_energy, atom, gradient, part_virial in parts:
        energy += part_energy
        forces[atom] -= gradient
        virial += part_virial
    stress = virial / box.volume if box.volume != 0.0 else np.full((3, 3), np.nan)
    voigt = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    return np.array([energy]), forces, voigt[None]


def _check(potential: Networked, box: Box) -> Box:
    require_elements(symbols_of(box.numbers), potential.elements, what="this potential")
    return box


def _one_pass(potential: Networked, method: str, *arrays: np.ndarray) -> Any:
    numbers, positions, cell, pbc = arrays
    n_atoms = np.array([len(numbers)])
    return getattr(potential, method)(numbers, positions, cell[None], pbc[None], n_atoms)


def check_domains(domains: Any) -> Domains:
    """Refuse what is neither ``"auto"``, a number of atoms nor a grid.

    Raises
    ------
    DataError
        Saying what is expected.
    """
    if domains == "auto" and isinstance(domains, str):
        return "auto"
    whole = (int, np.integer)
    if isinstance(domains, whole) and not isinstance(domains, bool) and domains > 0:
        return int(domains)
    if isinstance(domains, (tuple, list)) and len(domains) == 3:
        a, b, c = domains
        if all(isinstance(x, whole) and not isinstance(x, bool) and x > 0 for x in domains):
            return int(a), int(b), int(c)
    raise DataError(
        f"domains is {domains!r}; expected 'auto', the largest number of atoms of a task (30000), "
        "or how many domains lie along each vector of the cell (4, 4, 4)"
    )


def map_domains(
    potential: Networked,
    method: str,
    ds: xr.Dataset,
    *,
    outputs: list[tuple[str, tuple[int, ...], Any]],
    domains: Any,
) -> list[Any]:
    """Apply an array method to structures domain by domain; nothing is computed.

    One domain is one task; what they give is put together in one more. The structure and the
    potential are nodes of the graph, so that each travels once to a worker. Of the structures the
    sizes are read, and the cells where the grid depends on them.

    Parameters
    ----------
    potential : Networked
    method : str
        ``"featurize_arrays"`` or ``"evaluate_arrays"``.
    ds : xarray.Dataset
        Structures, lazy or not.
    outputs
        As in `mofal.potential.base.map_structures`.
    domains
        ``"auto"``, largest number of atoms of a task, or a grid.

    Returns
    -------
    list of dask.array.Array
        One for each output.
    """
    import dask
    import dask.array as da

    chosen = check_domains(domains)
    n_atoms = np.asarray(ds["n_atoms"].values)
    starts = np.concatenate([[0], np.cumsum(n_atoms)])
    node = dask.delayed(potential, name=f"potential-{potential.model_hash}", traverse=False)
    lazy = {name: da.asarray(ds[name].data) for name in ("numbers", "positions", "cell", "pbc")}
    pieces: list[list[Any]] = [[] for _ in outputs]
    for i, n in enumerate(n_atoms.tolist()):
        a, b = int(starts[i]), int(starts[i + 1])
        arrays = lazy["numbers"][a:b], lazy["positions"][a:b], lazy["cell"][i], lazy["pbc"][i]
        grid = _grid_of(chosen, method, potential, ds, i, slice(a, b))
        if grid is None:
            results = dask.delayed(_one_pass, pure=True, nout=len(outputs))(node, method, *arrays)
        else:
            box = dask.delayed(make_box, pure=True)(*arrays)
            box = dask.delayed(_check, pure=True)(node, box)
            work = featurize_domain if method == "featurize_arrays" else evaluate_domain
            one = dask.delayed(work, pure=True)
            parts = [one(node, box, grid, place) for place in product(*map(range, grid))]
            if method == "featurize_arrays":
                gather = dask.delayed(_gather_features, pure=True, nout=1)
                results = gather(n, potential.architecture.feature_dim, parts)
            else:
                results = dask.delayed(_gather_forces, pure=True, nout=3)(box, parts)
        for piece, result, (along, shape, dtype) in zip(pieces, results, outputs):
            rows = n if along == "atom" else 1
            piece.append(da.from_delayed(result, (rows, *shape), dtype=dtype))
    return [da.concatenate(piece, axis=0) for piece in pieces]


def _grid_of(
    domains: Domains, method: str, potential: Networked, ds: xr.Dataset, i: int, rows: slice
) -> tuple[int, int, int] | None:
    """Grid of a structure; None where it goes in one pass."""
    if isinstance(domains, tuple):
        return domains
    n, largest = rows.stop - rows.start, LARGEST[method] if domains == "auto" else domains
    if n <= largest:
        return None
    cell, pbc = np.asarray(ds["cell"].data[i]), np.asarray(ds["pbc"].data[i])
    if pbc.all():
        widths = _widths(cell)
    else:  # how far it extends where it is not periodic, its positions know
        widths = make_box(np.zeros(n), np.asarray(ds["positions"].data[rows]), cell, pbc).widths
    grid = grid_of(widths, n, reach=reach(potential), largest=int(largest))
    return None if grid == (1, 1, 1) else grid


def compute(arrays: list[Any]) -> list[np.ndarray]:
    """Compute arrays over the session's client, or one domain after another in this process."""
    from dask.base import get_scheduler

    from mofal.data import computing

    how = {} if get_scheduler() is not None else {"scheduler": "sync"}
    return [np.asarray(a) for a in computing.compute(*arrays, **how)]
