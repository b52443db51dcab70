"""The engine of a potential: energies, forces, stresses and familiarity of a batch, on its device.

It is what `mofal.dynamics` asks for forces (its `Engine` protocol). On a CPU systems go through the
network one after the other, since batches do not pay there and a system then has the same bits in
any company; on a GPU all go at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mofal.errors import PotentialError
from mofal.potential.base import Networked, require_elements, symbols_of
from mofal.potential.compile_script import HIDDEN
from mofal.potential.neighbours import MovingNeighbours
from mofal.potential.network import Graph, readout_weights
from mofal.potential.onboard import check_same, density_arrays
from mofal.potential.standalone import Mixtures

if TYPE_CHECKING:
    from mofal.density import PerElementDensity
    from mofal.potential.compiling import CompiledNetwork

GPU_TOGETHER = 64


class Outcome(NamedTuple):
    """What one pass gives (see `mofal.dynamics.engine.Outcome`): arrays of the device, eV and Å."""

    energy: Any
    forces: Any
    stress: Any = None
    quantile: Any = None
    shortest: Any = None
    failed: dict[int, str] = {}  # noqa: RUF012


@dataclass
class _Member:
    """What is kept of a system from one step to the next."""

    neighbours: MovingNeighbours
    types: torch.Tensor


class NetworkEngine:
    """Energies, forces, stresses and quantiles of a batch of systems.

    Parameters
    ----------
    potential : NequIPPotential
    compiled : CompiledNetwork, optional
        For single systems; without one the eager network runs.
    batched : CompiledNetwork, optional
        For batches (a GPU).
    density : PerElementDensity, optional
        On board: the quantile of each atom's environment comes with its forces.
    """

    def __init__(
        self,
        potential: Networked,
        *,
        compiled: CompiledNetwork | None = None,
        batched: CompiledNetwork | None = None,
        density: PerElementDensity | None = None,
    ) -> None:
        self.potential, self.compiled, self.batched = potential, compiled, batched
        self.density = density
        self._mixtures: Mixtures | None = None
        if density is not None:
            check_same(potential.model_hash, density)
            self._mixtures = Mixtures(density_arrays(density), potential.device)
        self._readout, _ = readout_weights(potential.network)
        self._members: dict[int, _Member] = {}

    def with_density(self, density: PerElementDensity) -> NetworkEngine:
        """Return the same engine with a density on board."""
        return NetworkEngine(
            self.potential, compiled=self.compiled, batched=self.batched, density=density
        )

    @property
    def model_hash(self) -> str:
        """Of the potential."""
        return self.potential.model_hash

    @property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``cuda:1``."""
        return self.potential.device

    @property
    def together(self) -> int:
        """Systems that are best advanced at once: one on a CPU."""
        return 1 if self.device == "cpu" else GPU_TOGETHER

    @property
    def identity(self) -> str:
        """``eager`` or ``compiled``: a walk is never continued by the other."""
        return "eager" if self.compiled is None and self.batched is None else "compiled"

    @property
    def name(self) -> str:
        """Network, torch and device, for the record."""
        where = self.device
        if where.startswith("cuda"):
            where = torch.cuda.get_device_name(where)
        return f"{self.identity}, torch {torch.__version__}, {where}"

    # ------------------------------------------------------------------ one pass
    def evaluate(self, systems: Any, *, stress: bool = True) -> Outcome:
        """One pass over a batch (`mofal.dynamics.engine.Systems`)."""
        known = {key: self._members[key] for key in systems.keys if key in self._members}
        self._members = known
        positions = _host(systems.positions)
        cells = _host(systems.cells)
        graphs, shortest = [], np.full(len(systems.keys), np.inf)
        for s, key in enumerate(systems.keys):
            rows = slice(int(systems.first[s]), int(systems.first[s] + systems.n_atoms[s]))
            member = known.get(key)
            if member is None or len(member.types) != systems.n_atoms[s]:
                member = known[key] = self._new(systems.numbers[rows], systems.pbc[s])
            edges, shifts, shortest[s] = member.neighbours.edges(positions[rows], cells[s])
            cell = cells[s] if systems.pbc[s].any() else np.zeros((3, 3))
            graphs.append(
                {
                    # Copies: the network asks for gradients of its own tensors.
                    "pos": torch.tensor(positions[rows]),
                    "edge_index": torch.from_numpy(edges),
                    "atom_types": member.types,
                    "cell": torch.tensor(cell).view(1, 3, 3),
                    "edge_cell_shift": torch.from_numpy(shifts),
                }
            )
        if self.device == "cpu":
            outs = [self._single(graph) for graph in graphs]
            energy = np.array([float(out["total_energy"].detach()) for out in outs])
            forces = _joined([out["forces"] for out in outs]).numpy()
            stresses = _joined([out["stress"].view(1, 3, 3) for out in outs]).numpy()
            found = None
            if self._mixtures is not None:  # one by one: the same bits in any company
                ends = np.cumsum(systems.n_atoms)
                pieces = [
                    self._quantile(out[HIDDEN], systems.numbers[end - n : end]).numpy()
                    for out, end, n in zip(outs, ends, systems.n_atoms)
                ]
                found = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            return Outcome(energy, forces, stresses, found, shortest)
        out = self._batch(graphs)
        quantile = None
        if self._mixtures is not None:
            quantile = self._quantile(out[HIDDEN], systems.numbers)
        return Outcome(
            out["total_energy"].detach().view(-1).to(torch.float64),
            out["forces"].detach().to(torch.float64),
            out["stress"].detach().view(-1, 3, 3).to(torch.float64),
            quantile,
            shortest,
        )

    def _new(self, numbers: np.ndarray, pbc: np.ndarray) -> _Member:
        require_elements(symbols_of(numbers), self.potential.elements, what="this potential")
        types = torch.from_numpy(self.potential.types[np.asarray(numbers, np.int64)])
        return _Member(MovingNeighbours(pbc, self.potential.r_max), types)

    def _single(self, graph: Graph) -> Graph:
        if self.compiled is not None:
            return self.compiled(graph)
        return self.potential.network(graph)  # type: ignore[no-any-return]

    def _batch(self, graphs: list[Graph]) -> Graph:
        from mofal.potential.network import collate

        if len(graphs) == 1 and (self.compiled is not None or self.batched is None):
            return self._single({k: v.to(self.device) for k, v in graphs[0].items()})
        graph = {k: v.to(self.device) for k, v in collate(graphs).items()}
        if self.batched is None:
            return self.potential.network(graph)  # type: ignore[no-any-return]
        if len(graphs) == 1:  # compiled for two at the least
            graph = {k: v.to(self.device) for k, v in collate([*graphs, *graphs]).items()}
            out, n = self.batched(graph), len(graphs[0]["pos"])
            per_system = ("total_energy", "stress")
            return {k: v[:1] if k in per_system else v[:n] for k, v in out.items()}
        return self.batched(graph)

    def _quantile(self, hidden: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
        assert self._mixtures is not None
        with torch.no_grad():
            # What was calibrated were features in single precision.
            features = (hidden.detach() @ self._readout).to(torch.float32)
            values = self._mixtures.log_likelihood(features, numbers)
            return self._mixtures.quantile(values, numbers)


def make_engine(
    potential: Networked,
    engine: str = "eager",
    *,
    density: PerElementDensity | None = None,
    folder: Any = None,
    progress: Any = None,
) -> NetworkEngine:
    """Engine of a potential; ``compiled`` loads the compiled network, made first where none is.

    Raises
    ------
    PotentialError
        A word that is neither ``eager`` nor ``compiled``, or a network that cannot be compiled.
    """
    if engine not in ("eager", "compiled"):
        raise PotentialError(
            f"the engine is {engine!r}; expected eager or compiled (mofal.potential.choose turns "
            "auto into one of them)"
        )
    if engine == "eager":
        return NetworkEngine(potential, density=density)
    from mofal.potential.compiling import compiled_network

    gpu = potential.device != "cpu"
    made = compiled_network(potential, batched=gpu, folder=folder, progress=progress)
    if gpu:
        return NetworkEngine(potential, batched=made, density=density)
    return NetworkEngine(potential, compiled=made, density=density)


def _host(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.detach().to(torch.float64)
