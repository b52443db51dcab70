"""A harmonic network on the bonds of a framework: no model, no reference, only its topology.

The energy is a sum of squares of linearised internal coordinates (stretches, angles, torsions,
planes, distances of close pairs) plus a small spring that holds each atom where it is:

    E(u, ε) = 1/2 Σ_m k_m (b_m · u + S_m : ε)² + 1/2 f |u|²

with displacements u (atoms), a homogeneous strain ε, and rows b_m and S_m given by geometry alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mofal.dynamics.checks import search_box
from mofal.errors import ConfigError, DataError
from mofal.frameworks.bonds import IS_METAL

KINDS = ("stretch", "angle", "torsion", "plane", "near")


@dataclass(frozen=True, kw_only=True)
class Network:
    """Stiffness of each kind of internal coordinate.

    Attributes
    ----------
    stretch, metal_stretch
        Bonds between non-metals, and bonds with a metal, eV/Å².
    angle, metal_angle
        Distances of atoms bonded to the same atom (1-3), the latter where one of the three is a
        metal, eV/Å².
    torsion
        Rotation about a bond between non-metals, all its 1-4 chains together, eV/rad².
    plane
        An atom with three neighbours out of their plane, eV/Å².
    near, near_cutoff
        Distances of pairs that are neither bonded nor 1-3, up to the cutoff, eV/Å² and Å.
    floor
        Every atom to its own place, eV/Å². It bounds what nothing else holds: a linker that flips.
    """

    stretch: float = 35.0
    metal_stretch: float = 10.0
    angle: float = 5.0
    metal_angle: float = 1.5
    torsion: float = 1.5
    plane: float = 2.0
    near: float = 0.1
    near_cutoff: float = 4.0
    floor: float = 0.2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and np.isfinite(value) and value >= 0.0):
                raise ConfigError(f"{field.name} is {value!r}, expected a number of at least 0")
        if self.floor == 0.0:
            raise ConfigError(
                "floor is 0, so that nothing holds the crystal as a whole: write floor=0.2"
            )


@dataclass(frozen=True)
class InternalCoordinates:
    """Linearised internal coordinates of one structure.

    Attributes
    ----------
    matrix
        Sparse (m, 3 n): change of each coordinate with the displacements of the n atoms.
    strain
        Shape (m, 3, 3): change of each coordinate with a homogeneous strain.
    stiffness
        Shape (m,): eV/Å² (torsions eV/rad²).
    kind
        Shape (m,): index into `KINDS`.
    """

    matrix: sp.csr_matrix
    strain: NDArray
    stiffness: NDArray
    kind: NDArray

    def hessian(self, floor: float) -> sp.csc_matrix:
        """Sparse Hessian (3 n, 3 n), eV/Å²."""
        weighted = sp.diags(self.stiffness) @ self.matrix
        size = self.matrix.shape[1]
        return sp.csc_matrix(self.matrix.T @ weighted + floor * sp.identity(size))


class _Rows:
    """Collects coordinates; each has up to four atoms with a gradient and an unwrapped place."""

    def __init__(self, n_atoms: int) -> None:
        self.n_atoms = n_atoms
        self.atoms: list[NDArray] = []
        self.gradients: list[NDArray] = []
        self.places: list[NDArray] = []
        self.stiffness: list[NDArray] = []
        self.kind: list[NDArray] = []

    def add(
        self, kind: str, atoms: NDArray, gradients: NDArray, places: NDArray, stiffness: NDArray
    ) -> None:
        """Atoms (m, a), gradients and places (m, a, 3), stiffness (m,); a up to 4."""
        count, width = atoms.shape
        pad = 4 - width
        self.atoms.append(np.pad(atoms, ((0, 0), (0, pad))))
        self.gradients.append(np.pad(gradients, ((0, 0), (0, pad), (0, 0))))
        self.places.append(np.pad(places, ((0, 0), (0, pad), (0, 0))))
        self.stiffness.append(np.broadcast_to(stiffness, (count,)).astype(float))
        self.kind.append(np.full(count, KINDS.index(kind), dtype=np.int8))

    def build(self) -> InternalCoordinates:
        atoms = np.concatenate(self.atoms)
        gradients = np.concatenate(self.gradients)
        places = np.concatenate(self.places)
        stiffness = np.concatenate(self.stiffness)
        kind = np.concatenate(self.kind)
        used = stiffness > 0.0
        atoms, gradients, places = atoms[used], gradients[used], places[used]
        rows = np.repeat(np.arange(len(atoms)), 12)
        columns = (3 * atoms[:, :, None] + np.arange(3)).ravel()
        # Duplicates are summed: a pair of an atom and its own image has no gradient, as it must be.
        matrix = sp.csr_matrix(
            (gradients.ravel(), (rows, columns)), shape=(len(atoms), 3 * self.n_atoms)
        )
        strain = np.einsum("maj,mak->mjk", gradients, places)
        strain = 0.5 * (strain + strain.transpose(0, 2, 1))
        return InternalCoordinates(matrix, strain, stiffness[used], kind[used])


def internal_coordinates(
    numbers: NDArray,
    positions: NDArray,
    cell: NDArray,
    pbc: NDArray,
    bonds: NDArray,
    shifts: NDArray,
    *,
    network: Network | None = None,
) -> InternalCoordinates:
    """Internal coordinates of a structure and their linear dependence on atoms and strain.

    Parameters
    ----------
    numbers, positions, cell, pbc
        Shapes (n,), (n, 3), (3, 3), (3,); Å.
    bonds, shifts
        Shapes (b, 2), (b, 3), each bond once: the bond runs from ``positions[bonds[:, 0]]`` to
        ``positions[bonds[:, 1]] + shifts @ cell``.
    network
        Stiffnesses.

    Raises
    ------
    DataError
        Bonds that cannot be: an index out of range, a length of zero.
    """
    network = network if network is not None else Network()
    numbers = np.asarray(numbers)
    positions = np.asarray(positions, dtype=float)
    cell = np.asarray(cell, dtype=float)
    bonds = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    shifts = np.asarray(shifts, dtype=np.int64).reshape(-1, 3)
    if len(bonds) != len(shifts):
        raise DataError(f"{len(bonds)} bonds and {len(shifts)} shifts: give one shift per bond")
    if len(bonds) and (bonds.min() < 0 or bonds.max() >= len(numbers)):
        raise DataError(
            f"a bond names atom {int(bonds.max())} of a structure of {len(numbers)} atoms"
        )
    metal = IS_METAL[numbers]
    rows = _Rows(len(numbers))
    neighbours = _neighbours(len(numbers), bonds, shifts)
    stiffness = np.where(metal[bonds].any(axis=1), network.metal_stretch, network.stretch)
    _add_pairs(rows, "stretch", positions, cell, bonds, shifts, stiffness)
    angles, angle_shifts, centres = _angles(neighbours)
    soft = metal[angles].any(axis=1) | metal[centres]
    stiffness = np.where(soft, network.metal_angle, network.angle)
    _add_pairs(rows, "angle", positions, cell, angles, angle_shifts, stiffness)
    _add_torsions(rows, positions, cell, bonds, shifts, neighbours, metal, network.torsion)
    _add_planes(rows, positions, cell, neighbours, metal, network.plane)
    if network.near > 0.0 and network.near_cutoff > 0.0:
        taken = np.concatenate([bonds, angles]), np.concatenate([shifts, angle_shifts])
        near, near_shifts = _near_pairs(
            numbers, positions, cell, pbc, network.near_cutoff, taken[0], taken[1]
        )
        _add_pairs(rows, "near", positions, cell, near, near_shifts, np.array(network.near))
    return rows.build()


_Neighbour = tuple[int, tuple[int, int, int]]


def _neighbours(n_atoms: int, bonds: NDArray, shifts: NDArray) -> list[list[_Neighbour]]:
    """Bonded atoms of each atom, each with the lattice shift that leads to it."""
    out: list[list[_Neighbour]] = [[] for _ in range(n_atoms)]
    for (i, j), shift in zip(bonds.tolist(), shifts.tolist()):
        out[i].append((j, (shift[0], shift[1], shift[2])))
        out[j].append((i, (-shift[0], -shift[1], -shift[2])))
    return out


def _angles(neighbours: list[list[_Neighbour]]) -> tuple[NDArray, NDArray, NDArray]:
    """Pairs of atoms bonded to the same atom, each pair once, with shift and central atom."""
    found: dict[tuple[int, int, tuple[int, int, int]], int] = {}
    for centre, around in enumerate(neighbours):
        for (i, s), (j, t) in combinations(around, 2):
            found.setdefault(_pair_key(i, j, (t[0] - s[0], t[1] - s[1], t[2] - s[2])), centre)
    pairs = np.array([key[:2] for key in found], dtype=np.int64).reshape(-1, 2)
    shifts = np.array([key[2] for key in found], dtype=np.int64).reshape(-1, 3)
    return pairs, shifts, np.fromiter(found.values(), dtype=np.int64, count=len(found))


def _pair_key(i: int, j: int, shift: tuple[int, int, int]) -> tuple[int, int, tuple[int, int, int]]:
    """The same key from both ends of a pair."""
    back = (-shift[0], -shift[1], -shift[2])
    return min((i, j, shift), (j, i, back))


def _add_pairs(
    rows: _Rows,
    kind: str,
    positions: NDArray,
    cell: NDArray,
    pairs: NDArray,
    shifts: NDArray,
    stiffness: NDArray,
) -> None:
    if len(pairs) == 0:
        return
    first = positions[pairs[:, 0]]
    second = positions[pairs[:, 1]] + shifts @ cell
    vectors = second - first
    lengths = np.linalg.norm(vectors, axis=1)
    if np.any(lengths < 1e-6):
        i, j = pairs[int(np.argmin(lengths))]
        raise DataError(f"atoms {i} and {j} are at the same place: find the bonds again")
    direction = vectors / lengths[:, None]
    gradients = np.stack([-direction, direction], axis=1)
    places = np.stack([first, second], axis=1)
    rows.add(kind, pairs, gradients, places, stiffness)


def _add_torsions(
    rows: _Rows,
    positions: NDArray,
    cell: NDArray,
    bonds: NDArray,
    shifts: NDArray,
    neighbours: list[list[_Neighbour]],
    metal: NDArray,
    stiffness: float,
) -> None:
    """Torsions about bonds between non-metals; a bond's chains share its stiffness."""
    chains, places, shares = [], [], []
    for (j, k), shift in zip(bonds.tolist(), shifts.tolist()):
        if metal[j] or metal[k]:
            continue
        place_j = positions[j]
        place_k = positions[k] + np.array(shift) @ cell
        ends_j = _ends(positions, cell, neighbours[j], place_j, place_k, np.zeros(3))
        ends_k = _ends(positions, cell, neighbours[k], place_k, place_j, np.array(shift))
        share = len(ends_j) * len(ends_k)
        for i, place_i in ends_j:
            for m, place_m in ends_k:
                chains.append((i, j, k, m))
                places.append((place_i, place_j, place_k, place_m))
                shares.append(stiffness / share)
    if chains:
        place_array = np.array(places)
        rows.add(
            "torsion",
            np.array(chains),
            torsion_gradients(place_array),
            place_array,
            np.array(shares),
        )


def _ends(
    positions: NDArray,
    cell: NDArray,
    around: Iterable[_Neighbour],
    centre: NDArray,
    across: NDArray,
    base: NDArray,
) -> list[tuple[int, NDArray]]:
    """Neighbours of `centre` other than `across`, unless in line with it (no torsion then)."""
    out = []
    axis = (across - centre) / np.linalg.norm(across - centre)
    for atom, shift in around:
        place = positions[atom] + (np.array(shift) + base) @ cell
        arm = place - centre
        if np.linalg.norm(np.cross(axis, arm)) > 0.2 * np.linalg.norm(arm):
            out.append((atom, place))
    return out


def torsion_gradients(places: NDArray) -> NDArray:
    """Gradients of torsion angles i-j-k-l, shape (m, 4, 3), rad/Å, for places of that shape.

    Wilson, Decius, Cross, Molecular Vibrations (1955), the s vectors of a torsion; in the form
    without divisions by sines of Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996).
    """
    f = places[:, 0] - places[:, 1]
    g = places[:, 1] - places[:, 2]
    h = places[:, 3] - places[:, 2]
    a = np.cross(f, g)
    b = np.cross(h, g)
    length = np.linalg.norm(g, axis=1, keepdims=True)
    a2 = np.einsum("ij,ij->i", a, a)[:, None]
    b2 = np.einsum("ij,ij->i", b, b)[:, None]
    fg = np.einsum("ij,ij->i", f, g)[:, None]
    hg = np.einsum("ij,ij->i", h, g)[:, None]
    first = -length * a / a2
    last = length * b / b2
    inner = fg * a / (a2 * length) - hg * b / (b2 * length)
    return np.stack([first, -first + inner, -last - inner, last], axis=1)


def _add_planes(
    rows: _Rows,
    positions: NDArray,
    cell: NDArray,
    neighbours: list[list[_Neighbour]],
    metal: NDArray,
    stiffness: float,
) -> None:
    """Non-metal atoms with three neighbours, out of the plane of these."""
    atoms, places = [], []
    for centre, around in enumerate(neighbours):
        if metal[centre] or len(around) != 3:
            continue
        atoms.append((centre, *(atom for atom, _ in around)))
        places.append(
            (
                positions[centre],
                *(positions[atom] + np.array(shift) @ cell for atom, shift in around),
            )
        )
    if not atoms:
        return
    place = np.array(places)
    edge_1, edge_2 = place[:, 2] - place[:, 1], place[:, 3] - place[:, 1]
    normal = np.cross(edge_1, edge_2)
    area2 = np.einsum("ij,ij->i", normal, normal)
    fine = area2 > 1e-4
    place, edge_1, edge_2, normal = place[fine], edge_1[fine], edge_2[fine], normal[fine]
    area2 = area2[fine]
    arm = place[:, 0] - place[:, 1]
    # Barycentric weights of the centre's foot in the triangle: with them the coordinate does not
    # change when the whole group is moved or turned.
    second = np.einsum("ij,ij->i", np.cross(arm, edge_2), normal) / area2
    third = np.einsum("ij,ij->i", np.cross(edge_1, arm), normal) / area2
    weights = np.stack([np.ones_like(second), second + third - 1.0, -second, -third], axis=1)
    unit = normal / np.sqrt(area2)[:, None]
    gradients = weights[:, :, None] * unit[:, None, :]
    rows.add("plane", np.array(atoms)[fine], gradients, place, np.array(stiffness))


def _near_pairs(
    numbers: NDArray,
    positions: NDArray,
    cell: NDArray,
    pbc: NDArray,
    cutoff: float,
    taken_pairs: NDArray,
    taken_shifts: NDArray,
) -> tuple[NDArray, NDArray]:
    """Pairs within the cutoff that are not among those taken, each once, with shifts."""
    from matscipy.neighbours import neighbour_list

    box, shifted = search_box(positions, cell, pbc)
    first, second, shift = neighbour_list(
        "ijS",
        cutoff=float(cutoff),
        positions=shifted,
        cell=box,
        pbc=np.asarray(pbc, dtype=bool),
        numbers=np.asarray(numbers, dtype=np.int32),
    )
    taken = {
        _pair_key(i, j, (s[0], s[1], s[2]))
        for (i, j), s in zip(taken_pairs.tolist(), taken_shifts.tolist())
    }
    found = {
        _pair_key(i, j, (s[0], s[1], s[2]))
        for i, j, s in zip(first.tolist(), second.tolist(), shift.tolist())
    }
    kept = sorted(found - taken)
    pairs = np.array([key[:2] for key in kept], dtype=np.int64).reshape(-1, 2)
    shifts = np.array([key[2] for key in kept], dtype=np.int64).reshape(-1, 3)
    return pairs, shifts
