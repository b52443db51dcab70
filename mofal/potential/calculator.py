"""An ASE calculator on a potential in memory: one graph, one forward and one backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mofal.potential.base import require_elements, symbols_of
from mofal.potential.network import readout_weights

if TYPE_CHECKING:
    from ase import Atoms

    from mofal.potential.model import NequIPPotential


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
        given = potential.network(graph)
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
