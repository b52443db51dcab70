"""A potential of mofal as a model of torch-sim, for those who integrate or relax there.

    import torch_sim
    from mofal.potential import TorchSimModel, load

    model = TorchSimModel(load("model"))
    torch_sim.integrate(atoms, model, integrator=torch_sim.nvt_langevin, ...)

Forces come from the same engine as those of mofal's own walks: on a CPU system after system, with a
neighbour list that lasts some steps. Needs torch-sim (``pip install 'mofal[torch-sim]'``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mofal.errors import DependencyError
from mofal.potential.base import Networked
from mofal.potential.engine import make_engine

try:
    from torch_sim.models.interface import ModelInterface
except ModuleNotFoundError as error:
    raise DependencyError(
        f"a model of torch-sim wants the package {error.name}, which is not installed; type: "
        "pip install 'mofal[torch-sim]'"
    ) from None

if TYPE_CHECKING:
    from mofal.density import PerElementDensity


class _Systems(NamedTuple):
    """What an engine is given (`mofal.dynamics.engine.Systems`)."""

    keys: tuple[int, ...]
    numbers: np.ndarray
    n_atoms: np.ndarray
    first: np.ndarray
    pbc: np.ndarray
    positions: Any
    cells: Any


class TorchSimModel(ModelInterface):  # type: ignore[misc]
    """Energies (s,) eV, forces (n, 3) eV/Å, stresses (s, 3, 3) eV/Å³ of the states of torch-sim.

    Parameters
    ----------
    potential : NequIPPotential
        Its device is the model's.
    engine : str
        ``"eager"`` or ``"compiled"``.
    density : PerElementDensity, optional
        Then results hold ``quantile`` (n,) too: how familiar each atom's environment is.

    Raises
    ------
    DependencyError
        torch-sim is not installed (on import).
    PotentialError
        An engine that cannot be had, or a density of another potential.
    """

    def __init__(
        self,
        potential: Networked,
        *,
        engine: str = "eager",
        density: PerElementDensity | None = None,
    ) -> None:
        super().__init__()
        self.engine = make_engine(potential, engine, density=density)
        self._device, self._dtype = torch.device(potential.device), torch.float64
        self._compute_forces = self._compute_stress = True
        self._memory_scales_with = "n_atoms_x_density"
        self._known: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._first_key = 0

    def forward(self, state: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """One pass over a state, or a mapping that makes one."""
        if not hasattr(state, "positions"):
            import torch_sim

            state = torch_sim.SimState(**state)
        numbers = state.atomic_numbers.cpu().numpy()
        n_atoms = np.bincount(state.system_idx.cpu().numpy(), minlength=len(state.cell))
        pbc = torch.as_tensor(state.pbc).cpu().numpy()
        pbc = np.broadcast_to(pbc, (len(n_atoms), 3))
        now = numbers, n_atoms, pbc
        if self._known is None or not all(map(np.array_equal, self._known, now)):
            # Neighbours belong to a system: another company begins anew.
            self._first_key += 0 if self._known is None else len(self._known[1])
            self._known = now
        systems = _Systems(
            tuple(range(self._first_key, self._first_key + len(n_atoms))),
            numbers,
            n_atoms,
            np.concatenate([[0], np.cumsum(n_atoms)[:-1]]),
            pbc,
            self._given(state.positions),
            self._given(state.row_vector_cell),
        )
        out = self.engine.evaluate(systems)
        found = {"energy": out.energy, "forces": out.forces, "stress": out.stress}
        if out.quantile is not None:
            found["quantile"] = out.quantile
        like = {"dtype": state.positions.dtype, "device": state.positions.device}
        return {name: torch.as_tensor(value).to(**like) for name, value in found.items()}

    def _given(self, values: torch.Tensor) -> Any:
        """Double precision, as the engine takes it: NumPy on a CPU."""
        exact = values.detach().to(torch.float64).contiguous()
        return exact.numpy() if self.engine.device == "cpu" else exact
