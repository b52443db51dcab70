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
from mofal.density.conformal import AtomBound, ErrorBound
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
    bound_: AtomBound | None
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
        **_scale_variables(density.quantiles_, labels),
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
    if density.bound_ is not None:
        bound = density.bound_.bound
        variables |= _scale_variables(density.bound_.scale, labels, "bound_")
        variables["bound_novelty"] = ("bound_step", bound.novelty_)
        variables["bound_error"] = ("bound_step", bound.error_, {"units": "eV/Å"})
        attributes["bound"] = json.dumps({name: getattr(bound, name) for name in _BOUND})
    return xr.Dataset(variables, attrs=attributes)


_BOUND = ("coverage", "at_once", "random_state", "factor_", "n_structures_")


def _scale_variables(scale: QuantileScale, labels: np.ndarray, prefix: str = "") -> dict[str, Any]:
    """A scale of quantiles, ragged along a dim of its own."""
    knots = [scale.knots_.get(int(label)) for label in labels]
    known = [k for k in knots if k is not None]
    dim = f"{prefix}knot"
    columns: dict[str, Any] = {
        "n_knots": ("label", np.array([0 if k is None else k.value.size for k in knots], np.int64)),
        "knot_value": (dim, np.concatenate([k.value for k in known])),
        "knot_level": (dim, np.concatenate([k.level for k in known])),
        "below": ("label", np.array([np.nan if k is None else k.below for k in knots])),
        "above": ("label", np.array([np.nan if k is None else k.above for k in knots])),
    }
    return {f"{prefix}{name}": column for name, column in columns.items()}


def _read_scale(value: dict[str, np.ndarray], labels: Any, prefix: str = "") -> QuantileScale:
    """The scale that `_scale_variables` was given."""
    cut = np.concatenate([[0], np.cumsum(value[f"{prefix}n_knots"])])
    scale = QuantileScale()
    scale.knots_ = {
        int(label): Knots(
            value[f"{prefix}knot_value"][a:b],
            value[f"{prefix}knot_level"][a:b],
            float(value[f"{prefix}below"][i]),
            float(value[f"{prefix}above"][i]),
        )
        for i, (label, a, b) in enumerate(zip(labels, cut, cut[1:]))
        if b > a
    }
    return scale


def _read_bound(value: dict[str, np.ndarray], labels: Any, text: str | None) -> AtomBound | None:
    if text is None:
        return None
    settings = json.loads(text)
    bound = ErrorBound(
        settings["coverage"],
        at_once=settings["at_once"],
        random_state=settings["random_state"],
    )
    bound.factor_, bound.n_structures_ = settings["factor_"], settings["n_structures_"]
    bound.novelty_, bound.error_ = value["bound_novelty"], value["bound_error"]
    return AtomBound(bound, _read_scale(value, labels, "bound_"))


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
            )
        }
        parameters, curves = {}, {}
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
        scale = _read_scale(value, labels)
        bound = _read_bound(value, labels, ds.attrs.get("bound"))
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
            training_quantiles_=scale if bound is None else bound.scale,
            bound_=bound,
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
