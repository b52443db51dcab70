"""Loss and metrics, as NequIP's `MetricsManager` wants them described."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric

from mofal.potential.settings import TrainingSettings

FORCE_WEIGHT_KEY = "mofal_force_weight"
"""Name in a graph of the weight of each atom's squared force error."""


class WeightedForceMSE(Metric):
    """Mean squared error of force components with a weight per atom; NaN targets are left out.

    It takes whole graphs (NequIP passes them to a metric without a field), because the weight is a
    variable of its own.
    """

    full_state_update = False
    sum: torch.Tensor
    count: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
        """Add one batch."""
        there = ~torch.isnan(target["forces"])
        weight = target[FORCE_WEIGHT_KEY].view(-1, 1).expand_as(target["forces"])[there]
        error = preds["forces"][there] - target["forces"][there]
        self.sum = self.sum + (weight * error.square()).sum()
        self.count = self.count + weight.sum()

    def compute(self) -> torch.Tensor:
        """Return the weighted mean."""
        return self.sum / self.count

    def __str__(self) -> str:
        return "weighted_mse"


class PerAtomEnergyMSE(Metric):
    """Mean squared error of energies per atom; NaN targets are left out, zero where all are NaN.

    NequIP's own metric gives NaN for a batch without a single energy: of charged clusters alone.
    """

    full_state_update = False
    sum: torch.Tensor
    count: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
        """Add one batch."""
        there = ~torch.isnan(target["total_energy"])
        atoms = target["num_atoms"].view(-1, 1).to(target["total_energy"])
        error = (preds["total_energy"][there] - target["total_energy"][there]) / atoms[there]
        self.sum = self.sum + error.square().sum()
        self.count = self.count + there.sum()

    def compute(self) -> torch.Tensor:
        """Return the mean."""
        return self.sum / self.count.clamp(min=1)

    def __str__(self) -> str:
        return "per_atom_energy_mse"


class StressError(Metric):
    """Mean squared (or, with `power` 1, absolute) error of the components of stresses.

    Structures without a stress are left out, zero where none has one: NequIP's own metrics give NaN
    for a batch of clusters alone.
    """

    full_state_update = False
    sum: torch.Tensor
    count: torch.Tensor

    def __init__(self, power: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.power = power
        self.add_state("sum", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
        """Add one batch."""
        there = ~torch.isnan(target["stress"])
        error = preds["stress"].view(-1, 3, 3)[there] - target["stress"][there]
        self.sum = self.sum + error.abs().pow(self.power).sum()
        self.count = self.count + there.sum()

    def compute(self) -> torch.Tensor:
        """Return the mean."""
        return self.sum / self.count.clamp(min=1)

    def __str__(self) -> str:
        return f"stress_error_{self.power}"


def _entry(name: str, field: Any, metric: str, coeff: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "field": field,
        "coeff": coeff,
        "metric": {"_target_": f"nequip.train.{metric}"},
        "ignore_nan": True,
    }


def _stress(name: str, power: int, coeff: float | None) -> dict[str, Any]:
    metric = {"_target_": "mofal.potential.metrics.StressError", "power": power}
    return {"name": name, "coeff": coeff, "metric": metric}


def loss_config(
    settings: TrainingSettings, *, with_mae: bool, energies_masked: bool = False
) -> dict[str, Any]:
    """Describe the loss of the paper: squared errors of forces and of energies per atom.

    `MetricsManager` divides weights by their sum; multiply a value of it by
    `TrainingSettings.loss_weight` for the paper's. Mean absolute errors carry no weight.
    """
    per_atom = {"_target_": "nequip.data.PerAtomModifier", "field": "total_energy"}
    weight = settings.force_weight
    entries: list[dict[str, Any]] = []
    if settings.regions == "weighted":
        metric = {"_target_": "mofal.potential.metrics.WeightedForceMSE"}
        entries.append({"name": "forces_mse", "coeff": weight, "metric": metric})
    else:
        entries.append(_entry("forces_mse", "forces", "MeanSquaredError", weight))
    if settings.energy_weight > 0 and energies_masked:
        metric = {"_target_": "mofal.potential.metrics.PerAtomEnergyMSE"}
        entries.append(
            {"name": "per_atom_energy_mse", "coeff": settings.energy_weight, "metric": metric}
        )
    elif settings.energy_weight > 0:
        entries.append(
            _entry("per_atom_energy_mse", per_atom, "MeanSquaredError", settings.energy_weight)
        )
    if settings.stress_weight > 0:
        entries.append(_stress("stress_mse", 2, settings.stress_weight))
    if with_mae:
        if settings.stress_weight > 0:
            entries.append(_stress("stress_mae", 1, None))
        entries.append(_entry("forces_mae", "forces", "MeanAbsoluteError", None))
        entries.append(_entry("per_atom_energy_mae", per_atom, "MeanAbsoluteError", None))
    return {"_target_": "nequip.train.MetricsManager", "metrics": entries}
