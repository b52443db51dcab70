"""A NequIP potential: evaluate, featurize, save, load, grow. Imports torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mofal.data import hash_arrays, hash_json, validate
from mofal.potential.base import (
    Evaluation,
    carry,
    chunk_structures,
    is_lazy,
    map_structures,
    require_elements,
    symbols_of,
)
from mofal.potential.devices import resolve_device
from mofal.potential.directory import WEIGHTS, damaged, read_directory, write_directory
from mofal.potential.network import (
    Graph,
    allow_any_order,
    build_network,
    builder_config,
    collate,
    energy_part,
    make_graph,
    prepare,
    put_weights,
    readout_weights,
    type_table,
    weights_of,
)
from mofal.potential.settings import Architecture

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

    from mofal.density import PerElementDensity
    from mofal.potential.compiling import CompiledNetwork
    from mofal.potential.domains import Domains
    from mofal.potential.engine import NetworkEngine


RUN_BATCHES = 16
"""Batches in one task of a lazy evaluation: long enough that Dask's own time does not count."""

_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
_ALONG = ("n_atoms", "structure_index", "structure_id", "numbers", "system")
_PACKAGES = ("mofal", "nequip", "torch", "e3nn", "lightning", "numpy", "matscipy")


class NequIPPotential:
    """A NequIP potential with its elements, history and provenance.

    Made by `train`, `create`, `grow` or `load`. It can be pickled, and its bound method
    `calculator` serves as a factory of ASE calculators on workers.

    Parameters
    ----------
    network : torch.nn.Module
        NequIP's model.
    architecture : Architecture
    elements : sequence of str
        Types, in the order of the network.
    avg_num_neighbors : float
        Neighbours of an atom in the seed data; normalises sums over neighbours.
    provenance, history
        Where it comes from; its losses epoch by epoch.
    batch_atoms : int
        Atoms that are evaluated at once.
    device : str
        Where it computes: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` (a GPU where there is one).

    Raises
    ------
    PotentialError
        This machine has no such device.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        architecture: Architecture,
        elements: Sequence[str],
        *,
        avg_num_neighbors: float,
        provenance: Mapping[str, Any] | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        batch_atoms: int = 600,
        device: str = "cpu",
    ) -> None:
        prepare()
        self.network = network.eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.architecture = architecture
        self.avg_num_neighbors = float(avg_num_neighbors)
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.history: list[dict[str, Any]] = [dict(row) for row in history]
        self.batch_atoms = batch_atoms
        self._compiled: CompiledNetwork | None = None
        self._folder: str | None = None
        self.to(device)
        self._elements = tuple(elements)
        self._types = type_table(elements)

    # ------------------------------------------------------------------ device
    @property
    def device(self) -> str:
        """Where it computes: ``cpu``, ``cuda`` or ``cuda:1``."""
        return self._device

    def to(self, device: str) -> NequIPPotential:
        """Move it to a device, in place; evaluation, features and calculators compute there.

        Parameters
        ----------
        device : str
            ``cpu``, ``cuda``, ``cuda:1`` or ``auto``. It is pickled as it is given here: ``auto``
            is looked up anew on the machine that unpickles.

        Raises
        ------
        PotentialError
            This machine has no such device.
        """
        self._device = resolve_device(device)
        self._asked = device
        self._compiled = None
        allow_any_order(self._device)
        self.network.to(self._device)
        return self

    # ------------------------------------------------------------------ identity
    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols that it has a type for."""
        return self._elements

    @property
    def r_max(self) -> float:
        """Cutoff radius, in Å."""
        return self.architecture.r_max

    @property
    def feature_dim(self) -> int:
        """Length of F."""
        return self.architecture.feature_dim

    @property
    def n_weights(self) -> int:
        """Number of trainable weights, scales per type not counted."""
        return sum(
            p.numel() for n, p in self.network.named_parameters() if not n.endswith(".scales")
        )

    @property
    def isolated_atom_energies(self) -> dict[str, float] | None:
        """Energies of isolated atoms at the level of the training data, eV, where known."""
        return self.provenance.get("isolated_atom_energies")

    @cached_property
    def model_hash(self) -> str:
        """Hash of architecture and weights."""
        return weights_hash(self.description(), weights_of(self.network))

    @property
    def types(self) -> np.ndarray:
        """Type of each atomic number, shape (119,); -1 for elements that it does not know."""
        return self._types

    def description(self) -> dict[str, Any]:
        """Return all that the network depends on beside its weights."""
        return {
            "architecture": self.architecture.model_dump(),
            "elements": list(self.elements),
            "avg_num_neighbors": self.avg_num_neighbors,
        }

    def __repr__(self) -> str:
        a = self.architecture
        return (
            f"<NequIPPotential {self.model_hash}: {' '.join(self.elements)}, r_max {a.r_max} Å, "
            f"{a.n_layers} layers x {a.n_features} features, F {a.feature_dim}, "
            f"{self.n_weights} weights>"
        )

    def __getstate__(self) -> dict[str, Any]:
        weights = {k: v.numpy() for k, v in weights_of(self.network).items()}
        return {
            "description": self.description(),
            "weights": weights,
            "provenance": self.provenance,
            "history": self.history,
            "batch_atoms": self.batch_atoms,
            "device": self._asked,
            "compiled": self._compiled is not None,
            "folder": self._folder,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = {k: torch.from_numpy(np.array(v)) for k, v in state["weights"].items()}
        network, architecture = _rebuild(state["description"], weights)
        self.__init__(  # type: ignore[misc]
            network,
            architecture,
            state["description"]["elements"],
            avg_num_neighbors=state["description"]["avg_num_neighbors"],
            provenance=state["provenance"],
            history=state["history"],
            batch_atoms=state["batch_atoms"],
            device=state.get("device", "cpu"),
        )
        if state.get("compiled"):
            self.compile(folder=state["folder"])

    # ------------------------------------------------------------------ arrays
    def graph(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> Graph:
        """One structure as a graph of this potential."""
        graph = make_graph(numbers, positions, cell, pbc, types=self._types, r_max=self.r_max)
        return {k: v.to(self.device) for k, v in graph.items()}

    def _batches(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        n_atoms: np.ndarray,
        run: Callable[[Graph], tuple[torch.Tensor, ...]],
        *,
        forces: bool,
    ) -> list[np.ndarray]:
        require_elements(symbols_of(numbers), self.elements, what="this potential")
        starts = np.concatenate([[0], np.cumsum(n_atoms)])
        results: list[tuple[torch.Tensor, ...]] = []
        single = self._compiled is not None and forces
        runs = (
            [(i, i + 1) for i in range(len(n_atoms))]
            if single
            else chunk_structures(n_atoms, self.batch_atoms)
        )
        for first, last in runs:
            graphs = [
                make_graph(
                    numbers[starts[i] : starts[i + 1]],
                    positions[starts[i] : starts[i + 1]],
                    cell[i],
                    pbc[i],
                    types=self._types,
                    r_max=self.r_max,
                )
                for i in range(first, last)
            ]
            batch = {k: v.to(self.device) for k, v in collate(graphs).items()}
            results.append(run(batch))
        return [torch.cat(parts, dim=0).cpu().numpy() for parts in zip(*results)]

    def evaluate_arrays(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        n_atoms: np.ndarray,
    ) -> Evaluation:
        """Energies, forces and stresses of flat arrays.

        Parameters
        ----------
        numbers : (atom,) int
        positions : (atom, 3) float, Å
        cell : (structure, 3, 3) float, Å
        pbc : (structure, 3) bool
        n_atoms : (structure,) int

        Returns
        -------
        energy : (structure,) float64, eV relative to isolated atoms
        forces : (atom, 3) float64, eV/Å
        stress : (structure, 6) float64, eV/Å³, ASE sign and order; NaN without a volume
        """

        def run(batch: Graph) -> tuple[torch.Tensor, ...]:
            out = self.run_network(batch)
            stress = out["stress"].view(-1, 3, 3)[:, _VOIGT[0], _VOIGT[1]]
            found = (out["total_energy"].view(-1), out["forces"], stress)
            return tuple(value.detach().to(torch.float64) for value in found)

        arrays = numbers, positions, cell, pbc, n_atoms
        energy, forces, stress = self._batches(*arrays, run, forces=True)
        return energy, forces, stress

    def featurize_arrays(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        n_atoms: np.ndarray,
    ) -> tuple[np.ndarray]:
        """Features of flat arrays (as in `evaluate_arrays`): (atom, feature_dim) float32.

        No gradients are taken, so this costs much less than forces.
        """
        first, _ = readout_weights(self.network)

        def run(batch: Graph) -> tuple[torch.Tensor, ...]:
            with torch.no_grad():
                out = energy_part(self.network)(batch)
                return ((out["node_features"] @ first).to(torch.float32),)

        arrays = numbers, positions, cell, pbc, n_atoms
        (features,) = self._batches(*arrays, run, forces=False)
        return (features,)

    # ------------------------------------------------------------------ Datasets
    def evaluate(self, ds: xr.Dataset, *, domains: Domains | None = None) -> xr.Dataset:
        """Energies, forces and stresses of structures.

        Lazy structures give lazy results, one task per run of structures (`n_atoms` is read for
        that, nothing else); structures in memory are evaluated at once.

        Parameters
        ----------
        ds : xarray.Dataset
            Structures.
        domains : str, int or (int, int, int), optional
            Cut structures into spatial domains, one task each, that give what the whole gives:
            ``"auto"`` those that are too large for one pass, a number those with more atoms than
            that (a task then holds so many at most, its surroundings included), a grid all, with
            so many domains along each vector of the cell. Structures in memory are computed by
            the client of the session, or one domain after another where there is none. Domains
            run the eager network.

        Returns
        -------
        xarray.Dataset
            `energy(structure)` in eV relative to isolated atoms, `forces(atom, xyz)` in eV/Å,
            `stress(structure, voigt)` in eV/Å³ (NaN for finite structures); attrs `model_hash`.

        Raises
        ------
        PotentialError
            An element that it has no type for.
        DataError
            `domains` is none of these.
        """
        import xarray as xr

        f8 = np.dtype("float64")
        outputs = [("structure", (), f8), ("atom", (3,), f8), ("structure", (6,), f8)]
        energy, forces, stress = self._apply("evaluate_arrays", ds, outputs, domains)
        return xr.Dataset(
            {
                **carry(ds, _ALONG),
                "energy": (
                    "structure",
                    energy,
                    {"units": "eV", "long_name": "energy relative to isolated atoms"},
                ),
                "forces": (("atom", "xyz"), forces, {"units": "eV/Å"}),
                "stress": (("structure", "voigt"), stress, {"units": "eV/Å³"}),
            },
            attrs={"model_hash": self.model_hash},
        )

    def featurize(self, ds: xr.Dataset, *, domains: Domains | None = None) -> xr.Dataset:
        """Features F of every atom; lazy where the structures are.

        Parameters
        ----------
        ds : xarray.Dataset
            Structures.
        domains : str, int or (int, int, int), optional
            Cut structures that are too large for one pass into spatial domains (`evaluate`).

        Returns
        -------
        xarray.Dataset
            `features(atom, feature)` with `numbers`, `n_atoms`, `structure_index`; attrs
            `model_hash`: features of two models are not comparable.

        Raises
        ------
        PotentialError
            An element that it has no type for.
        DataError
            `domains` is none of what `evaluate` takes.
        """
        import xarray as xr

        outputs = [("atom", (self.feature_dim,), np.dtype("float32"))]
        (features,) = self._apply("featurize_arrays", ds, outputs, domains)
        return xr.Dataset(
            {
                **carry(ds, _ALONG),
                "features": (
                    ("atom", "feature"),
                    features,
                    {"units": "1", "long_name": "input of the last readout layer"},
                ),
            },
            attrs={"model_hash": self.model_hash},
        )

    def _apply(
        self,
        method: str,
        ds: xr.Dataset,
        outputs: list[tuple[str, Any, Any]],
        domains: Domains | None,
    ) -> Sequence[Any]:
        validate(ds, "structures")
        if ds.sizes["structure"] == 0:
            return [np.zeros((0, *shape), dtype) for _, shape, dtype in outputs]
        if domains is not None:
            from mofal.potential.domains import compute, map_domains

            arrays = map_domains(self, method, ds, outputs=outputs, domains=domains)
            return arrays if is_lazy(ds) else compute(arrays)
        if is_lazy(ds):
            return map_structures(
                self, method, ds, outputs=outputs, max_atoms=RUN_BATCHES * self.batch_atoms
            )
        names = ("numbers", "positions", "cell", "pbc", "n_atoms")
        return getattr(self, method)(*(np.asarray(ds[name].values) for name in names))

    def calculator(self, *, features: bool = False) -> PotentialCalculator:
        """Return an ASE calculator: energy, forces, stress, energies of atoms.

        With ``features`` its results hold the features of every atom too, of the same pass.
        """

        return PotentialCalculator(self, features=features)

    def engine(
        self,
        engine: str = "eager",
        *,
        density: PerElementDensity | None = None,
        folder: str | Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> NetworkEngine:
        """Return what walks run on: energies, forces, stresses and quantiles of batches.

        Parameters
        ----------
        engine : str
            ``"eager"``, or ``"compiled"``: the network as machine code, made first where there is
            none for this architecture and machine (minutes; see `mofal.potential.compiling`).
        density : PerElementDensity, optional
            On board: how familiar each atom's environment is comes with its forces.
        folder : path, optional
            Of compiled networks; by default $MOFAL_COMPILED or the user's cache.
        progress : callable, optional
            Is given lines of text.

        Raises
        ------
        PotentialError
            An engine that cannot be had, or a density of another potential.
        """
        from mofal.potential.engine import make_engine

        return make_engine(self, engine, density=density, folder=folder, progress=progress)

    def compile(
        self,
        *,
        folder: str | Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> NequIPPotential:
        """Compute forces with the compiled network from now on, in place; made first if need be.

        Calculators and `evaluate` use it for structures one by one; features alone stay with the
        eager network, which takes no gradients for them. Pickled, it is loaded anew where it
        arrives.

        Raises
        ------
        PotentialError
            This machine cannot compile, or forces are not the eager network's.
        """
        from mofal.potential.compiling import compiled_network

        self._compiled = compiled_network(self, folder=folder, progress=progress)
        self._folder = None if folder is None else str(folder)
        return self

    @property
    def engine_name(self) -> str:
        """``eager`` or ``compiled``: what calculators and `evaluate` run."""
        return "eager" if self._compiled is None else "compiled"

    def run_network(self, graph: Graph) -> Graph:
        """Run the network, compiled where `compile` was called, on the graph of one structure."""
        return self.network(graph) if self._compiled is None else self._compiled(graph)

    # ------------------------------------------------------------------ disk
    def save(self, path: str | Path) -> Path:
        """Write the model directory, whole or not at all.

        It holds `model.json` (architecture, elements, hash, checksums), `weights.pt` (a state dict
        that loads with ``weights_only=True``), `history.json` and `provenance.json`.

        Raises
        ------
        StoreError
            There is something at `path` already, or the disk refused.
        """
        weights = io.BytesIO()
        torch.save(weights_of(self.network), weights)
        return write_directory(
            path,
            described={"kind": "nequip", "model_hash": self.model_hash, **self.description()},
            weights=weights.getvalue(),
            history=self.history,
            provenance={**self.provenance, "versions": versions()},
        )


# ---------------------------------------------------------------------------------- disk
def load(path: str | Path, *, device: str = "cpu") -> NequIPPotential:
    """Read a model directory that `save` or `train` wrote.

    Parameters
    ----------
    path : path
    device : str
        ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.

    Raises
    ------
    StoreError
        No model there, one of a newer format, or one with a file that is damaged.
    PotentialError
        This machine has no such device.
    """
    where = Path(path)
    resolve_device(device)  # before anything is read
    stored = read_directory(where)
    described = stored.described
    try:
        weights = torch.load(io.BytesIO(stored.weights), map_location="cpu", weights_only=True)
        network, architecture = _rebuild(described, weights)
        potential = NequIPPotential(
            network,
            architecture,
            described["elements"],
            avg_num_neighbors=described["avg_num_neighbors"],
            provenance=stored.provenance,
            history=stored.history,
        )
        found, expected = potential.model_hash, described["model_hash"]
    except Exception as error:
        # Only a model of before there were checksums gets here damaged, and torch may say anything;
        # its advice, to load with pickle, is left out.
        raise damaged(
            where, WEIGHTS, f"it cannot be read as a model ({type(error).__name__})"
        ) from error
    if found != expected:
        raise damaged(where, WEIGHTS, f"its weights have hash {found}, model.json says {expected}")
    return potential.to(device)


def weights_hash(description: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    """Hash of an architecture and the weights of `weights_of`, by name."""
    names = sorted(weights)
    arrays = [weights[name].numpy() for name in names]
    return hash_json({**description, "names": names, "arrays": hash_arrays(*arrays)})


def versions() -> dict[str, str]:
    """Versions of the packages that a model depends on."""
    out = {}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _rebuild(
    described: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> tuple[torch.nn.Module, Architecture]:
    architecture = Architecture(**described["architecture"])
    config = builder_config(
        architecture, described["elements"], avg_num_neighbors=described["avg_num_neighbors"]
    )
    network = build_network(config)
    put_weights(network, weights)
    return network, architecture


class PotentialCalculator(Calculator):
    """ASE calculator of a NequIP potential.

    Energies are relative to isolated atoms, in eV. The neighbour list is made anew at each step: it
    costs a few per cent of the forces (docs/potential.md has the figures), less than the edges
    beyond the cutoff that a list with a skin would send through the network.

    Parameters
    ----------
    potential : NequIPPotential
    features : bool
        Also put the features of every atom, shape (n, feature_dim), into
        ``results["features"]``: they come from the same pass, at the cost of one small product.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, potential: NequIPPotential, *, features: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.potential = potential
        self.features = features

    @property
    def model_hash(self) -> str:
        """Of the potential: checkpoints of walks name it."""
        return self.potential.model_hash

    @property
    def engine_name(self) -> str:
        """``eager`` or ``compiled``, for the record."""
        return self.potential.engine_name

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute everything that the network gives in one pass."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        frame: Any = self.atoms
        potential = self.potential
        require_elements(symbols_of(frame.numbers), potential.elements, what="this potential")
        graph = potential.graph(frame.numbers, frame.positions, frame.cell.array, frame.pbc)
        given = potential.run_network(graph)
        out = {
            key: value.detach().cpu().numpy()
            for key, value in given.items()
            if key in ("total_energy", "atomic_energy", "forces", "stress")
        }
        energy = float(out["total_energy"].reshape(()))
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": out["atomic_energy"].reshape(-1).astype(float),
            "forces": out["forces"].astype(float),
        }
        if self.features:
            first, _ = readout_weights(potential.network)
            hidden = (given["node_features"] @ first).detach()
            self.results["features"] = hidden.cpu().numpy().astype(np.float32)
        # A structure without a volume has no stress: ASE then says that it is not implemented.
        if frame.cell.rank == 3 and frame.pbc.any():
            self.results["stress"] = full_3x3_to_voigt_6_stress(out["stress"].reshape(3, 3))
