"""Quasi-Newton descent of atoms and cell, in the metric of a harmonic network on the bonds.

Limited-memory BFGS whose first guess of the Hessian is that of `mofal.dynamics.network`: stiff
bonds, softer angles and torsions, and the cell by the same springs under strain. What is left to
learn is how the level differs from the network, which takes a third of the force calls that a
multiple of the unit matrix takes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg as sl
import scipy.sparse as sp
import scipy.sparse.linalg as spl
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from mofal.dynamics.network import InternalCoordinates, Network, internal_coordinates
from mofal.frameworks.bonds import bonds_of

FRAMEWORK = Network(angle=10.0)
"""Stiffnesses of a framework's bonds; its angles are stiffer at rest than what 600 K asks for."""

LARGEST_DENSE = 3000
"""Coordinates up to which the metric is factorised whole; beyond, it is solved iteratively."""

FLOOR_GPA = 1.0
"""Least stiffness of the cell in the metric."""


class Coordinates:
    """Atoms and the symmetric part of the cell's deformation as one vector.

    The atoms are those of the undeformed cell, the cell is the logarithm of its deformation (as in
    ASE's `FrechetCellFilter`), in an orthonormal basis of symmetric matrices: without the unit
    matrix where the volume is kept, so that no step in any metric can change it.

    Parameters
    ----------
    atoms : ase.Atoms
        With a calculator; they are moved.
    cell : str
        ``"volume"``, ``"free"`` or ``"fixed"``.
    """

    def __init__(self, atoms: Atoms, cell: str) -> None:
        self.atoms = atoms
        self.n_atoms = len(atoms)
        self.basis = symmetric_basis(cell)
        self.filter = None
        if cell != "fixed":
            self.filter = FrechetCellFilter(atoms, constant_volume=cell == "volume")
        target = atoms if self.filter is None else self.filter
        self._place = np.array(target.get_positions(), float)

    def gradient(self) -> NDArray[np.float64]:
        """Derivative of the energy, eV/Å; may call the calculator."""
        if self.filter is None:
            return -np.asarray(self.atoms.get_forces(), float).ravel()
        forces = np.asarray(self.filter.get_forces(), float)
        cell = self.basis @ forces[self.n_atoms :].ravel()
        return -np.concatenate([forces[: self.n_atoms].ravel(), cell])

    def move(self, step: NDArray[np.float64]) -> None:
        """Add a step to all coordinates."""
        n = 3 * self.n_atoms
        self._place[: self.n_atoms] += step[:n].reshape(-1, 3)
        if self.filter is None:
            self.atoms.set_positions(self._place)
            return
        self._place[self.n_atoms :] += (step[n:] @ self.basis).reshape(3, 3)
        self.filter.set_positions(self._place)

    def shortened(self, step: NDArray[np.float64], length: float, strain: float) -> NDArray:
        """The step, no atom further than `length` (Å), no strain of the cell above `strain`."""
        return step / max(1.0, self.share(step, length, strain))

    def share(self, step: NDArray[np.float64], length: float, strain: float) -> float:
        """The farthest move of an atom over `length`, or the strain of the cell over `strain`."""
        n = 3 * self.n_atoms
        longest = float(np.linalg.norm(step[:n].reshape(-1, 3), axis=1).max() / length)
        if len(self.basis):
            # The filter's coordinates of the cell are the strain times the number of atoms.
            longest = max(longest, float(np.linalg.norm(step[n:]) / self.n_atoms / strain))
        return longest


def symmetric_basis(cell: str) -> NDArray[np.float64]:
    """Orthonormal symmetric matrices (k, 9) in which a cell may change: 0, 5 or 6 of them."""
    if cell == "fixed":
        return np.zeros((0, 9))
    out = []
    for i, j in ((1, 2), (0, 2), (0, 1)):
        shear = np.zeros((3, 3))
        shear[i, j] = shear[j, i] = np.sqrt(0.5)
        out.append(shear)
    out += [np.diag([1.0, -1.0, 0.0]) / np.sqrt(2), np.diag([1.0, 1.0, -2.0]) / np.sqrt(6)]
    if cell == "free":
        out.append(np.identity(3) / np.sqrt(3))
    return np.array(out).reshape(-1, 9)


class Metric:
    """Approximate Hessian of a crystal in `Coordinates`, from its geometry alone.

    Where every atom has a bond it is that of a framework, in eV/Å² as it stands. Elsewhere (metals,
    noble gases) it is springs between nearest neighbours, and `known` is false: its scale is to be
    taken from the first steps.

    Parameters
    ----------
    atoms : ase.Atoms
    basis : (k, 9) array
        Of `symmetric_basis`.
    """

    def __init__(self, atoms: Atoms, basis: NDArray[np.float64]) -> None:
        internal, self.known, floor = _internal(atoms)
        n = len(atoms)
        strain = internal.strain.reshape(-1, 9) @ basis.T / n
        rows = sp.csr_matrix(sp.hstack([internal.matrix, sp.csr_matrix(strain)]))
        least = np.full(rows.shape[1], floor)
        least[3 * n :] = FLOOR_GPA * units.GPa * atoms.get_volume() / n**2
        self.hessian = sp.csr_matrix(
            rows.T @ (sp.diags(internal.stiffness) @ rows) + sp.diags(least)
        )
        self.solve: Callable[[NDArray], NDArray] = self._solver()

    def _solver(self) -> Callable[[NDArray], NDArray]:
        size = self.hessian.shape[0]
        if size <= LARGEST_DENSE:
            factor = sl.cho_factor(self.hessian.toarray())
            return lambda v: np.asarray(sl.cho_solve(factor, v))
        diagonal = self.hessian.diagonal()
        scale = spl.LinearOperator((size, size), matvec=lambda v: v / diagonal, dtype=float)
        # The floor bounds the condition number, so that this ends; a metric may be a rough one.
        return lambda v: np.asarray(spl.cg(self.hessian, v, rtol=1e-8, maxiter=2000, M=scale)[0])


def _internal(atoms: Atoms) -> tuple[InternalCoordinates, bool, float]:
    """Internal coordinates, whether their stiffness means something, and the floor (eV/Å²)."""
    numbers, cell, pbc = atoms.numbers, atoms.cell.array, atoms.pbc
    bonds = bonds_of(numbers, atoms.positions, cell, pbc)
    bonds = bonds.kept(bonds.forward)
    pairs, shifts = np.column_stack([bonds.i, bonds.j]), bonds.shift
    framework = len(np.unique(pairs)) == len(atoms)
    network = FRAMEWORK
    if not framework:
        nearest = _nearest(atoms)
        network = Network(near=1.0, near_cutoff=1.3 * nearest, floor=0.05)
        pairs, shifts = np.zeros((0, 2), int), np.zeros((0, 3), int)
    made = internal_coordinates(numbers, atoms.positions, cell, pbc, pairs, shifts, network=network)
    return made, framework, network.floor


def _nearest(atoms: Atoms) -> float:
    """Shortest distance between two atoms of a crystal, Å."""
    reach = 1.5 * (atoms.get_volume() / len(atoms)) ** (1.0 / 3.0)
    while True:
        found = neighbour_list("d", atoms, reach)
        if len(found):
            return float(found.min())
        reach *= 1.5


class QuasiNewton:
    """Steps of limited-memory BFGS in a metric (Nocedal and Wright, Numerical Optimization, 7.2).

    Parameters
    ----------
    metric : Metric
    memory : int
        Pairs of steps and changes of the gradient that are kept.
    """

    def __init__(self, metric: Metric, *, memory: int = 60) -> None:
        self.metric, self.memory = metric, memory
        self.pairs: list[tuple[NDArray, NDArray]] = []
        self._last: tuple[NDArray, NDArray] | None = None

    def learn(self, gradient: NDArray[np.float64]) -> None:
        """Take in the gradient behind the step that was taken last, wanted or not."""
        if self._last is None:
            return
        before, went = self._last
        self._last = None
        change = gradient - before
        # A pair without curvature would make the guess of the Hessian indefinite.
        if went @ change > 1e-10 * np.linalg.norm(went) * np.linalg.norm(change):
            self.pairs = [*self.pairs, (went, change)][-self.memory :]

    def discard(self) -> None:
        """Take nothing in of the step that was taken last."""
        self._last = None

    def step(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """Step from where the gradient is this."""
        rest = gradient.copy()
        shares = []
        for s, y in reversed(self.pairs):
            share = (s @ rest) / (s @ y)
            rest -= share * y
            shares.append(share)
        out = self.metric.solve(rest)
        if self.pairs and not self.metric.known:
            s, y = self.pairs[-1]
            out *= (s @ y) / (y @ self.metric.solve(y))
        for (s, y), share in zip(self.pairs, reversed(shares)):
            out += s * (share - (y @ out) / (s @ y))
        return -out

    def took(self, gradient: NDArray[np.float64], step: NDArray[np.float64]) -> None:
        """Say which step was taken from where the gradient was this."""
        self._last = gradient, step
