"""ASE calculator of an exported potential that knows how familiar each environment is to it.

    from NAME_calculator import calculator
    atoms.calc = calculator()
    atoms.get_forces(); atoms.calc.results["quantile"]

It needs NumPy, ASE, matscipy, torch and NequIP and nothing else, and reads two files that lie
beside it: the network (``NAME.nequip.pt2`` or ``NAME.nequip.zip``) and its density
(``NAME.density.npz``). Results beside those of any potential, each of shape (n,): `log_likelihood`
of an atom's environment under the density of its element, `quantile` of that among environments
that were known but not trained on (0: as unfamiliar as can be), and, where it was exported with
one, `error_bound` of the force in eV/Å.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

NAME = ""
"""Stem of the files; written by the export. Empty: given to `calculator`."""
HIDDEN = "node_features"
_INPUTS = ("pos", "edge_index", "atom_types", "cell", "edge_cell_shift")
_ROWS, _FEW, _KEPT = 8192, 2048, 128


class Mixtures:
    """Gaussian mixtures of all elements, their quantiles and error bound, as tensor operations.

    Parameters
    ----------
    arrays : mapping of str to array
        ``labels`` (l,), and for each label z ``weights_z`` (k,), ``means_z`` (k, d),
        ``precisions_cholesky_z`` (k, d, d), ``knot_value_z``, ``knot_level_z`` (m,) and
        ``knot_scales_z`` (2,); optionally ``projection_mean`` (f,), ``projection`` (f, d),
        ``bound_factor`` (), ``bound_novelty`` and ``bound_error`` (b,), and ``bound_knot_*`` where
        the bound was made on a scale of its own.
    device : str
    """

    def __init__(self, arrays: Any, device: str = "cpu") -> None:
        def put(value: Any) -> torch.Tensor:
            return torch.as_tensor(np.array(value, np.float64), device=device)

        self.device = device
        names = set(arrays)
        self.labels = [int(z) for z in arrays["labels"]]
        self.projection = None
        if "projection" in names:
            self.projection = put(arrays["projection_mean"]), put(arrays["projection"])
        self._mixtures = {}
        self._knots: dict[int, Any] = {}
        self._bound_knots: dict[int, Any] = {}
        for z in self.labels:
            means, factor = put(arrays[f"means_{z}"]), put(arrays[f"precisions_cholesky_{z}"])
            k, d = means.shape
            # log N = const + sum log diag - |x P - m P|²/2, for all components in one product.
            shift = torch.einsum("kd,kde->ke", means, factor)
            wide = factor.permute(1, 0, 2).reshape(d, k * d).contiguous()
            scale = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
            constant = (
                scale + torch.log(put(arrays[f"weights_{z}"])) - 0.5 * d * math.log(2 * math.pi)
            )
            self._mixtures[z] = wide, shift.reshape(-1), constant, k, d
            for start, into in (("knot", self._knots), ("bound_knot", self._bound_knots)):
                if f"{start}_value_{z}" in names:
                    value, level = (
                        put(arrays[f"{start}_value_{z}"]),
                        put(arrays[f"{start}_level_{z}"]),
                    )
                    below, above = (float(v) for v in arrays[f"{start}_scales_{z}"])
                    into[z] = value, level, below, above
        self._bound = None
        if "bound_factor" in names:
            novelty, error = put(arrays["bound_novelty"]), put(arrays["bound_error"])
            self._bound = float(arrays["bound_factor"]), novelty, error
        self._rows: dict[bytes, list[tuple[int, torch.Tensor]]] = {}
        self._pad()

    def rows_of(self, labels: np.ndarray) -> list[tuple[int, torch.Tensor]]:
        """Rows of each known label; kept for as long as the labels are the same."""
        key = np.ascontiguousarray(labels, np.int64).tobytes()
        if key not in self._rows:
            if len(self._rows) >= _KEPT:
                self._rows.clear()
            found = []
            for z in self.labels:
                rows = np.flatnonzero(np.asarray(labels) == z)
                if len(rows):
                    found.append((z, torch.as_tensor(rows, device=self.device)))
            self._rows[key] = found
        return self._rows[key]

    def log_likelihood(self, features: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        """Log-likelihood (n,) of rows (n, f); -inf for labels never seen."""
        if len(features) <= _FEW and self.device == "cpu":
            return self._few_likelihoods(features, labels)
        x = features.to(torch.float64)
        if self.projection is not None:
            x = (x - self.projection[0]) @ self.projection[1]
        out = torch.full((len(x),), -math.inf, dtype=torch.float64, device=self.device)
        for z, rows in self.rows_of(labels):
            wide, shift, constant, k, d = self._mixtures[z]
            for part in rows.split(_ROWS):
                y = torch.addmm(shift, x[part], wide, beta=-1.0)
                square = (y * y).view(-1, k, d).sum(dim=2)
                out[part] = torch.logsumexp(torch.add(constant, square, alpha=-0.5), dim=1)
        return out

    def quantile(self, log_likelihood: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        """Quantile (n,) in (0, 1) of log-likelihoods; 0 for labels without quantiles."""
        if len(log_likelihood) <= _FEW and self.device == "cpu":
            return self._few_quantiles(log_likelihood, labels)
        return self._quantiles(log_likelihood, labels, self._knots)

    def _quantiles(
        self, log_likelihood: torch.Tensor, labels: np.ndarray, knots: dict[int, Any]
    ) -> torch.Tensor:
        out = torch.zeros_like(log_likelihood)
        for z, rows in self.rows_of(labels):
            if z in knots:
                value, level, below, above = knots[z]
                x = log_likelihood[rows]
                q = _interpolate(x, value, level)
                low = level[0] / (1.0 + (value[0] - x).clamp(min=0.0) / below)
                high = 1.0 - (1.0 - level[-1]) / (1.0 + (x - value[-1]).clamp(min=0.0) / above)
                q = torch.where(x < value[0], low, torch.where(x > value[-1], high, q))
                out[rows] = q
        return out

    # Few rows on a CPU: operations cost more than numbers, and NumPy's half of torch's.
    def _pad(self) -> None:
        def padded(parts: list[torch.Tensor], size: int, fill: float) -> np.ndarray:
            return np.stack(
                [np.pad(p.cpu().numpy(), (*[(0, 0)] * (p.ndim - 1), (0, size - p.shape[-1])),
                        constant_values=fill) for p in parts]
            )  # fmt: skip

        mixtures = [self._mixtures[z] for z in self.labels]
        most = max(k for *_, k, _ in mixtures)
        self._d = mixtures[0][4]
        self._wide = padded([m[0] for m in mixtures], most * self._d, 0.0)
        self._shift = padded([m[1] for m in mixtures], most * self._d, 0.0)[:, None]
        self._constant = padded([m[2] for m in mixtures], most, -math.inf)[:, None]
        self._few_knots = {
            z: (value.cpu().numpy(), level.cpu().numpy(), below, above)
            for z, (value, level, below, above) in self._knots.items()
        }
        self._places: dict[bytes, tuple[Any, ...]] = {}

    def _place(self, labels: np.ndarray) -> tuple[Any, ...]:
        """Rows of each label side by side (l, m), where each row went, which they are, by label."""
        key = np.ascontiguousarray(labels, np.int64).tobytes()
        if key not in self._places:
            if len(self._places) >= _KEPT:
                self._places.clear()
            rows = [np.flatnonzero(np.asarray(labels) == z) for z in self.labels]
            most = max(1, max(len(r) for r in rows))
            table = np.zeros((len(rows), most), np.int64)
            for i, r in enumerate(rows):
                table[i, : len(r)] = r
            flat = [i * most + np.arange(len(r)) for i, r in enumerate(rows)]
            by_label = [(z, r) for z, r in zip(self.labels, rows) if len(r)]
            self._places[key] = table, np.concatenate(flat), np.concatenate(rows), by_label
        return self._places[key]

    def _few_likelihoods(self, features: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        x = features.to(torch.float64)
        if self.projection is not None:
            x = (x - self.projection[0]) @ self.projection[1]
        table, flat, there, _ = self._place(labels)
        y = np.matmul(x.numpy()[table], self._wide)
        y -= self._shift
        y *= y
        values = y.reshape(*table.shape, -1, self._d).sum(axis=3)
        values *= -0.5
        values += self._constant
        top = values.max(axis=2)
        with np.errstate(invalid="ignore"):  # features that are no numbers have no likelihood
            values -= top[..., None]
        found = np.log(np.exp(values, out=values).sum(axis=2)) + top
        out = np.full(len(x), -math.inf)
        out[there] = found.reshape(-1)[flat]
        return torch.from_numpy(out)

    def _few_quantiles(self, log_likelihood: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        given = log_likelihood.numpy()
        out = np.zeros(len(given))
        for z, rows in self._place(labels)[3]:
            if z in self._knots:
                value, level, below, above = self._few_knots[z]
                x = given[rows]
                q = np.interp(x, value, level)
                low, high = x < value[0], x > value[-1]
                if low.any():
                    q[low] = level[0] / (1.0 + (value[0] - x[low]) / below)
                if high.any():
                    q[high] = 1.0 - (1.0 - level[-1]) / (1.0 + (x[high] - value[-1]) / above)
                out[rows] = q
        return torch.from_numpy(out)

    @property
    def bounds(self) -> bool:
        """Whether there is an error bound."""
        return self._bound is not None

    def error_bound(self, log_likelihood: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        """Upper bound (n,) of the force error, eV/Å; infinite at quantile 0."""
        if self._bound is None:
            raise ValueError("this potential was exported without an error bound")
        quantile = self._quantiles(log_likelihood, labels, self._bound_knots or self._knots)
        return self._bounded(quantile)

    def _bounded(self, quantile: torch.Tensor) -> torch.Tensor:
        assert self._bound is not None
        factor, novelty, error = self._bound
        x = -torch.log(quantile)
        inside = _interpolate(x, novelty, error)
        return factor * inside * (x / novelty[-1].clamp(min=1e-12)).clamp(min=1.0)


def _interpolate(x: torch.Tensor, at: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Linear between ascending places, constant beyond them, as `numpy.interp`."""
    if len(at) == 1:
        return value[0].expand_as(x)
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    left = right - 1
    share = ((x - at[left]) / (at[right] - at[left])).clamp(0.0, 1.0)
    return value[left] + share * (value[right] - value[left])


def neighbour_edges(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of atoms within a cutoff.

    Parameters
    ----------
    positions : (atom, 3) float, Å
    cell : (3, 3) float, Å
        Lattice vectors as rows. Not looked at where nothing is periodic: a cluster that keeps its
        parent's lattice would make the search sweep that whole box.
    pbc : (3,) bool
    cutoff : float, Å

    Returns
    -------
    edges : (2, edge) int64
        Centre and neighbour.
    shifts : (edge, 3) float64
        Lattice vectors to add to the neighbour.
    """
    from ase.geometry import complete_cell
    from matscipy.neighbours import neighbour_list

    if len(positions) == 1 and not pbc.any():
        return np.zeros((2, 0), np.int64), np.zeros((0, 3))
    if pbc.any():
        box = complete_cell(np.asarray(cell, float))
    else:
        low, high = positions.min(axis=0), positions.max(axis=0)
        box = np.diag(high - low + 1.0)
        positions = positions - low + 0.5
    i, j, shifts = neighbour_list(
        "ijS", positions=positions, cell=box, pbc=[bool(p) for p in pbc], cutoff=float(cutoff)
    )
    return np.stack([i, j]).astype(np.int64), shifts.astype(np.float64)


class FamiliarityCalculator(Calculator):
    """Energy, forces, stress, and how familiar each atom's environment is, of one pass.

    Parameters
    ----------
    network : callable
        Takes NequIP's dict of tensors, returns one.
    elements : sequence of str
        Types, in the network's order.
    r_max : float
        Å.
    density : mapping of str to array
        As `Mixtures` takes them, with ``readout`` (h, f): what makes features of the hidden layer.
    device : str
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, network: Any, elements: Any, r_max: float, density: Any, *, device: str = "cpu"
    ) -> None:
        super().__init__()
        self.network, self.device, self.r_max = network, device, float(r_max)
        self.mixtures = Mixtures(density, device)
        self.readout = torch.as_tensor(np.array(density["readout"]), device=device)
        self._types = np.full(119, -1, np.int64)
        for k, symbol in enumerate(elements):
            self._types[atomic_numbers[symbol]] = k

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        """Compute all results in one pass."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        frame: Any = self.atoms
        types = self._types[frame.numbers]
        if (types < 0).any():
            raise ValueError(f"the potential has no type for {frame[int(np.argmin(types))].symbol}")
        periodic = np.asarray(frame.pbc, bool)
        edges, shifts = neighbour_edges(frame.positions, frame.cell.array, periodic, self.r_max)
        cell = frame.cell.array if periodic.any() else np.zeros((3, 3))
        graph = {
            "pos": torch.tensor(frame.positions),
            "edge_index": torch.from_numpy(edges),
            "atom_types": torch.from_numpy(types),
            "cell": torch.tensor(cell).view(1, 3, 3),
            "edge_cell_shift": torch.from_numpy(shifts),
        }
        out = self.network({key: value.to(self.device) for key, value in graph.items()})
        energy = float(out["total_energy"].reshape(()))
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": _host(out["atomic_energy"]).reshape(-1),
            "forces": _host(out["forces"]),
        }
        if frame.cell.rank == 3 and periodic.any():
            stress = _host(out["stress"]).reshape(3, 3)
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
        # What was calibrated were features in single precision.
        features = (out[HIDDEN].detach() @ self.readout.to(out[HIDDEN].dtype)).to(torch.float32)
        values = self.mixtures.log_likelihood(features, frame.numbers)
        quantile = self.mixtures.quantile(values, frame.numbers)
        self.results["log_likelihood"], self.results["quantile"] = _host(values), _host(quantile)
        if self.mixtures.bounds:
            bound = self.mixtures.error_bound(values, frame.numbers)
            self.results["error_bound"] = _host(bound)


def _host(value: torch.Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().astype(np.float64)


def calculator(
    network: str | Path | None = None, density: str | Path | None = None, *, device: str = "cpu"
) -> FamiliarityCalculator:
    """Calculator of the files beside this one, or of those that are given."""
    here = Path(__file__).resolve().parent
    if network is None:
        found = [here / f"{NAME}.nequip{end}" for end in (".pt2", ".zip")]
        network = next((path for path in found if path.is_file()), found[0])
    if density is None:
        density = here / f"{NAME}.density.npz"
    with np.load(density, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if str(network).endswith(".zip"):
        from nequip.model.saved_models.load_utils import load_saved_model
        from nequip.utils.global_state import set_global_state

        set_global_state()
        model = load_saved_model(str(network), "eager", "sole_model").eval().to(device)
    else:
        from nequip.model.inference_models import load_compiled_model

        model, _ = load_compiled_model(str(network), device, None, None)
    elements = [str(symbol) for symbol in arrays["elements"]]
    return FamiliarityCalculator(model, elements, float(arrays["r_max"]), arrays, device=device)
