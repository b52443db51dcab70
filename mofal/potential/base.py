"""What the rest of mofal knows of a potential, and how one is mapped over data that is too big.

Nothing here imports torch: a potential of another kind needs this file only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mofal.errors import PotentialError

if TYPE_CHECKING:
    import xarray as xr
    from ase.calculators.calculator import Calculator


@runtime_checkable
class Potential(Protocol):
    """An interatomic potential with features.

    Energies are in eV relative to isolated atoms at the level of theory of the training data,
    forces in eV/Å, stress in eV/Å³ with ASE's sign and order (NaN for a finite structure).
    """

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that it has a type for."""

    @property
    def model_hash(self) -> str:
        """Identity: architecture and weights, nothing else."""

    @property
    def feature_dim(self) -> int:
        """Length of F, the same for every element."""

    @property
    def r_max(self) -> float:
        """Cutoff radius, in Å."""

    def evaluate(self, ds: xr.Dataset) -> xr.Dataset:
        """Structures to `energy(structure)`, `forces(atom, xyz)`, `stress(structure, voigt)`."""

    def featurize(self, ds: xr.Dataset) -> xr.Dataset:
        """Structures to `features(atom, feature)`."""

    def calculator(self) -> Calculator:
        """Return an ASE calculator of this potential."""

    def save(self, path: str | Path) -> Path:
        """Write the potential into a directory that does not exist yet."""


class Networked(Protocol):
    """A potential that is a network of torch: what engines, compilation and export ask of it."""

    architecture: Any
    network: Any
    avg_num_neighbors: float
    provenance: dict[str, Any]

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that it has a type for."""

    @property
    def model_hash(self) -> str:
        """Identity: architecture and weights."""

    @property
    def r_max(self) -> float:
        """Cutoff radius, in Å."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def types(self) -> np.ndarray:
        """Type of each atomic number, shape (119,)."""

    def description(self) -> dict[str, Any]:
        """Return all that the network depends on beside its weights."""

    def graph(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> dict[str, Any]:
        """One structure as a graph."""


Evaluation = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Energies (structure,), forces (atom, 3) and stresses (structure, 6) of one chunk."""


# ---------------------------------------------------------------------------------- elements
def symbols_of(numbers: np.ndarray) -> list[str]:
    """Distinct chemical symbols, by atomic number."""
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in np.unique(np.asarray(numbers))]


def require_elements(found: Iterable[str], known: Sequence[str], *, what: str) -> None:
    """Refuse data with an element that a potential has no type for.

    Raises
    ------
    PotentialError
        Naming the element, the elements that are known, and what to do.
    """
    missing = [symbol for symbol in found if symbol not in known]
    if missing:
        names = ", ".join(missing)
        raise PotentialError(
            f"{what} has no type for {names}: its elements are {', '.join(known)}; name all "
            "elements of the campaign when the first model is trained "
            f"(elements=[..., {missing[0]!r}]), or add them: "
            f"mofal.potential.grow(potential, {missing!r})"
        )


# ---------------------------------------------------------------------------------- chunks
def chunk_structures(n_atoms: np.ndarray, max_atoms: int) -> list[tuple[int, int]]:
    """Cut a list of structures into runs of at most `max_atoms` atoms, at structure boundaries.

    A structure that is larger than that is a run of its own.

    Returns
    -------
    list of (int, int)
        First structure and the one after the last, of each run.
    """
    runs: list[tuple[int, int]] = []
    start, held = 0, 0
    for i, n in enumerate(np.asarray(n_atoms).tolist()):
        if held and held + n > max_atoms:
            runs.append((start, i))
            start, held = i, 0
        held += n
    if held:
        runs.append((start, len(n_atoms)))
    return runs


def is_lazy(ds: xr.Dataset) -> bool:
    """Whether the positions are still on disk."""
    return ds["positions"].chunks is not None


def map_structures(
    potential: Any,
    method: str,
    ds: xr.Dataset,
    *,
    outputs: Sequence[tuple[str, tuple[int, ...], Any]],
    max_atoms: int,
) -> list[Any]:
    """Apply an array method to runs of structures of a lazy Dataset; nothing is computed.

    The potential is one node of the graph, so that it travels once to a worker and not with every
    task.

    Parameters
    ----------
    potential : Potential
    method : str
        Name of ``method(numbers, positions, cell, pbc, n_atoms) -> tuple of arrays``.
    ds : xarray.Dataset
        Structures; `n_atoms` is read, everything else stays lazy.
    outputs : sequence of (str, tuple of int, dtype)
        For each output: ``"atom"`` or ``"structure"``, its shape after that dim, its dtype.
    max_atoms : int
        Atoms per run; one run is one task.

    Returns
    -------
    list of dask.array.Array
        One for each output.
    """
    import dask
    import dask.array as da

    n_atoms = np.asarray(ds["n_atoms"].values)
    starts = np.concatenate([[0], np.cumsum(n_atoms)])
    call = dask.delayed(_call, pure=True, nout=len(outputs))
    node = dask.delayed(potential, name=f"potential-{potential.model_hash}", traverse=False)
    lazy = {name: da.asarray(ds[name].data) for name in ("numbers", "positions", "cell", "pbc")}
    pieces: list[list[Any]] = [[] for _ in outputs]
    for first, last in chunk_structures(n_atoms, max_atoms):
        a, b = int(starts[first]), int(starts[last])
        results = call(
            node,
            method,
            lazy["numbers"][a:b],
            lazy["positions"][a:b],
            lazy["cell"][first:last],
            lazy["pbc"][first:last],
            n_atoms[first:last],
        )
        for piece, result, (along, shape, dtype) in zip(pieces, results, outputs):
            rows = b - a if along == "atom" else last - first
            piece.append(da.from_delayed(result, (rows, *shape), dtype=dtype))
    return [da.concatenate(piece, axis=0) for piece in pieces]


def _call(potential: Any, method: str, *arrays: np.ndarray) -> Any:
    return getattr(potential, method)(*arrays)


# ---------------------------------------------------------------------------------- results
def carry(ds: xr.Dataset, names: Sequence[str]) -> dict[str, Any]:
    """Variables that a result takes along from its structures, where they are there."""
    return {name: ds[name] for name in names if name in ds.variables}


def isolated_energies(attrs: dict[str, Any]) -> dict[str, float] | None:
    """Isolated-atom energies of a labelled Dataset's attributes, eV by chemical symbol."""
    text = attrs.get("isolated_atom_energies")
    if text is None:
        return None
    return {str(k): float(v) for k, v in json.loads(text).items()}
