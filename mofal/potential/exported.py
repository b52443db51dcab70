"""An export with its density, read back: features and scores of frames, without a model directory.

What stands beside the network (``NAME.density.npz``) is all that is known of the data it learnt
from, so a trajectory can be scored by whoever was given these files and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mofal.errors import PotentialError, StoreError
from mofal.potential.base import require_elements, symbols_of
from mofal.potential.devices import resolve_device
from mofal.potential.exporting import COMPILED, DENSITY, PACKAGE
from mofal.potential.network import Graph, energy_part, make_graph, prepare, type_table
from mofal.potential.standalone import HIDDEN, Mixtures


class ExportedPotential:
    """Network and density of an export.

    Parameters
    ----------
    path : path
        ``NAME.nequip.zip`` or ``NAME.nequip.pt2``; ``NAME.density.npz`` lies beside it.
    device : str

    Attributes
    ----------
    elements : tuple of str
        Types of the network.
    known : tuple of int
        Atomic numbers that the density was fitted to.
    model_hash, density_hash : str
    error_coverage : float or None
        Of the bound of the force error, where it was exported with one.
    feature_dim : int

    Raises
    ------
    PotentialError
        There is no density beside it, or it is no export.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu") -> None:
        self.path = Path(path)
        self._asked = device
        self.device = resolve_device(device)
        stem = self.path.name.removesuffix(PACKAGE).removesuffix(COMPILED)
        beside = self.path.with_name(stem + DENSITY)
        if not self.path.is_file():
            raise PotentialError(f"{self.path} does not exist")
        if not beside.is_file():
            raise PotentialError(
                f"{self.path} was exported without a density (no {beside.name} lies beside it); "
                "export it with one: mofal.potential.export(model, path, density=density)"
            )
        try:
            with np.load(beside, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            self.mixtures = Mixtures(arrays, self.device)
            self.elements = tuple(str(s) for s in arrays["elements"])
            self.r_max = float(arrays["r_max"])
            readout = np.array(arrays["readout"])
        except (OSError, KeyError, ValueError) as error:
            raise StoreError(f"{beside} is damaged ({error}); export the potential anew") from None
        self.known = tuple(self.mixtures.labels)
        self.model_hash = str(arrays["model_hash"])
        self.density_hash = str(arrays["density_hash"])
        bound = arrays.get("bound_coverage")
        self.error_coverage = None if bound is None else float(bound)
        self.feature_dim = int(readout.shape[1])
        self._readout = torch.as_tensor(readout, device=self.device)
        self._types = type_table(self.elements)
        self._network = self._open()

    def _open(self) -> Any:
        prepare()
        try:
            if self.path.name.endswith(PACKAGE):
                from nequip.model.saved_models.load_utils import load_saved_model

                model: Any = load_saved_model(str(self.path), "eager", "sole_model")
                # Features need no derivatives of the energy: a third of the time of forces.
                return energy_part(model.eval().to(self.device))
            from nequip.model.inference_models import load_compiled_model

            return load_compiled_model(str(self.path), self.device, None, None)[0]
        except Exception as error:
            text = str(error).strip().splitlines()
            raise PotentialError(
                f"{self.path} cannot be read as a potential of NequIP: "
                f"{text[0] if text else type(error).__name__}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "device": self._asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], device=state["device"])  # type: ignore[misc]

    def features(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> torch.Tensor:
        """Features (n, feature_dim) of one structure, float32."""
        require_elements(symbols_of(numbers), self.elements, what="this potential")
        graph: Graph = make_graph(
            numbers, positions, cell, pbc, types=self._types, r_max=self.r_max
        )
        graph = {key: value.to(self.device) for key, value in graph.items()}
        with torch.no_grad():
            hidden = self._network(graph)[HIDDEN].detach()
            return (hidden @ self._readout.to(hidden.dtype)).to(torch.float32)

    def score(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Features and scores of one structure.

        Parameters
        ----------
        numbers, positions, cell, pbc : (n,), (n, 3) Å, (3, 3) Å, (3,)

        Returns
        -------
        dict of str to ndarray
            `features` (n, feature_dim), `log_likelihood`, `quantile` and, where there is a bound,
            `error_bound` in eV/Å, (n,) each.

        Raises
        ------
        PotentialError
            An element that it has no type for.
        """
        features = self.features(numbers, positions, cell, pbc)
        values = self.mixtures.log_likelihood(features, numbers)
        out = {
            "features": features,
            "log_likelihood": values,
            "quantile": self.mixtures.quantile(values, numbers),
        }
        if self.mixtures.bounds:
            out["error_bound"] = self.mixtures.error_bound(values, numbers)
        return {name: value.cpu().numpy() for name, value in out.items()}
