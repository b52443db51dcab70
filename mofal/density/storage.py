"""A density on disk: a plain Zarr group that xarray opens, exact to the bit, no pickle.

Everything is ragged along `component`, `candidate` and `knot`, with the number of each along
`label`. Covariances of all types are stored along `component` in the shape of their type.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from mofal.density.calibration import Knots, QuantileScale
from mofal.density.parameters import Parameters
from mofal.density.selection import Curve
from mofal.errors import DataError, StoreError

if TYPE_CHECKING:
    import xarray as xr


class Stored(Protocol):
    """What of a density (`mofal.density.elements.PerElementDensity`) goes to disk."""

    covariance_type: str
    labels_: np.ndarray
    mixtures_: dict[int, Any]
    curves_: dict[int, Curve]
    counts_: dict[int, int]
    quantiles_: QuantileScale
    projection_: Any
    n_features_in_: int
    density_hash: str
    model_hash: str
    fitted_on: dict[str, Any]

    def get_params(self) -> dict[str, Any]:
        """Return the settings that it was made with."""


Density = TypeVar("Density", bound=Stored)

_COVARIANCE_DIMS = {
    "full": ("component", "direction", "direction_2"),
    "tied": ("label", "direction", "direction_2"),
    "diag": ("component", "direction"),
    "spherical": ("component",),
}


def to_dataset(density: Stored) -> xr.Dataset:
    """A fitted density as a Dataset."""
    import xarray as xr

    labels = density.labels_
    mixtures = [density.mixtures_[int(label)] for label in labels]
    curves = [density.curves_[int(label)] for label in labels]
    knots = [density.quantiles_.knots_.get(int(label)) for label in labels]
    dims = _COVARIANCE_DIMS[density.covariance_type]
    stack = np.stack if dims[0] == "label" else np.concatenate
    variables: dict[str, Any] = {
        "label": ("label", labels),
        "count": ("label", np.array([density.counts_[int(k)] for k in labels], np.int64)),
        "n_components": ("label", np.array([m.weights_.size for m in mixtures], np.int64)),
        "converged": ("label", np.array([m.converged_ for m in mixtures], np.int8)),
        "n_iter": ("label", np.array([m.n_iter_ for m in mixtures], np.int64)),
        "lower_bound": ("label", np.array([m.lower_bound_ for m in mixtures])),
        "weights": ("component", np.concatenate([m.weights_ for m in mixtures])),
        "means": (("component", "direction"), np.concatenate([m.means_ for m in mixtures])),
        "covariances": (dims, stack([m.covariances_ for m in mixtures])),
        "precisions_cholesky": (dims, stack([m.precisions_cholesky_ for m in mixtures])),
        "n_candidates": ("label", np.array([len(c.n_components) for c in curves], np.int64)),
        "candidate_n_components": ("candidate", _flat(curves, "n_components", np.int64)),
        "candidate_bic": ("candidate", _flat(curves, "bic", np.float64)),
        "candidate_aic": ("candidate", _flat(curves, "aic", np.float64)),
        "candidate_log_likelihood": ("candidate", _flat(curves, "log_likelihood", np.float64)),
        "candidate_n_iter": ("candidate", _flat(curves, "n_iter", np.int64)),
        "candidate_converged": ("candidate", _flat(curves, "converged", np.int8)),
        "n_knots": ("label", np.array([0 if k is None else k.value.size for k in knots], np.int64)),
        "knot_value": ("knot", np.concatenate([k.value for k in knots if k is not None])),
        "knot_level": ("knot", np.concatenate([k.level for k in knots if k is not None])),
        "below": ("label", np.array([np.nan if k is None else k.below for k in knots])),
        "above": ("label", np.array([np.nan if k is None else k.above for k in knots])),
    }
    if density.projection_ is not None:
        mean, matrix = density.projection_
        variables["projection_mean"] = ("feature", mean)
        variables["projection"] = (("feature", "direction"), matrix)
    attributes = {
        "density_hash": density.density_hash,
        "model_hash": density.model_hash,
        "n_features": density.n_features_in_,
        "criterion": curves[0].criterion,
        "settings": json.dumps(_settings(density), sort_keys=True),
        "fitted_on": json.dumps(density.fitted_on, sort_keys=True),
    }
    return xr.Dataset(variables, attrs=attributes)


def _flat(curves: list[Curve], name: str, dtype: Any) -> np.ndarray:
    return np.concatenate([np.array(getattr(curve, name), dtype) for curve in curves])


def _settings(density: Stored) -> dict[str, Any]:
    settings = density.get_params()
    if settings["counts"] is not None:
        settings["counts"] = [int(k) for k in settings["counts"]]
    seed = settings["random_state"]
    settings["random_state"] = int(seed) if isinstance(seed, (int, np.integer)) else None
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in settings.items()
    }


def from_dataset(ds: xr.Dataset, build: Callable[..., Density]) -> Density:
    """The density that `to_dataset` was given, made of its parts by `build`.

    Raises
    ------
    DataError
        The Dataset is no density, or was changed.
    """
    try:
        settings, labels = json.loads(ds.attrs["settings"]), ds["label"].values
        value = {str(name): ds[name].values for name in ds.variables}
        cuts = {
            dim: np.concatenate([[0], np.cumsum(value[number])])
            for dim, number in (
                ("component", "n_components"),
                ("candidate", "n_candidates"),
                ("knot", "n_knots"),
            )
        }
        parameters, curves, knots = {}, {}, {}
        kind = settings["covariance_type"]
        for i, label in enumerate(map(int, labels)):
            own = {dim: slice(cut[i], cut[i + 1]) for dim, cut in cuts.items()}
            part: Any = i if kind == "tied" else own["component"]
            parameters[label] = Parameters(
                kind,
                value["weights"][own["component"]],
                value["means"][own["component"]],
                value["covariances"][part],
                value["precisions_cholesky"][part],
            )
            rows = own["candidate"]
            curves[label] = Curve(
                ds.attrs["criterion"],
                [int(k) for k in value["candidate_n_components"][rows]],
                [float(v) for v in value["candidate_bic"][rows]],
                [float(v) for v in value["candidate_aic"][rows]],
                [float(v) for v in value["candidate_log_likelihood"][rows]],
                [int(k) for k in value["candidate_n_iter"][rows]],
                [bool(v) for v in value["candidate_converged"][rows]],
            )
            if value["n_knots"][i]:
                knots[label] = Knots(
                    value["knot_value"][own["knot"]],
                    value["knot_level"][own["knot"]],
                    float(value["below"][i]),
                    float(value["above"][i]),
                )
        scale = QuantileScale()
        scale.knots_ = knots
        projection = None
        if "projection" in value:
            projection = (value["projection_mean"], value["projection"])
        density = build(
            settings,
            parameters,
            curves,
            counts_={int(k): int(n) for k, n in zip(labels, value["count"])},
            projection_=projection,
            quantiles_=scale,
            n_features_in_=int(ds.attrs["n_features"]),
            model_hash=str(ds.attrs["model_hash"]),
            fitted_on=json.loads(ds.attrs["fitted_on"]),
        )
        for i, label in enumerate(map(int, labels)):
            model = density.mixtures_[label]
            model.converged_ = bool(value["converged"][i])
            model.n_iter_ = int(value["n_iter"][i])
            model.lower_bound_ = float(value["lower_bound"][i])
    except (KeyError, IndexError) as error:
        raise DataError(
            f"this is no density: it lacks {error}; write it with density.save"
        ) from None
    if density.density_hash != ds.attrs["density_hash"]:
        raise DataError(
            f"the parameters hash to {density.density_hash}, the group states "
            f"{ds.attrs['density_hash']}: it was changed; fit it again"
        )
    return density


def save(density: Stored, path: Any, build: Callable[..., Stored]) -> None:
    """Write a density once, under a temporary name that is renamed into place.

    Raises
    ------
    StoreError
        Another density has this path.
    """
    from mofal.data.store import write_group

    if not hasattr(density, "mixtures_"):
        raise DataError("this density is not fitted; fit it first: density.fit(features, labels)")
    if Path(path).exists() and load(path, build).density_hash != density.density_hash:
        raise StoreError(f"{path} holds another density; give another path")
    write_group(to_dataset(density), path, kind="table")


def load(path: Any, build: Callable[..., Density]) -> Density:
    """Read a density, made of its parts by `build`.

    Raises
    ------
    StoreError
        The group is missing, damaged, or of a newer format.
    DataError
        It is another kind of group.
    """
    from mofal.data.store import open_group

    return from_dataset(open_group(path).load(), build)
