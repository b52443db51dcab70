"""Dataset verbs: Dataset in, Dataset out, nothing computed that is lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mofal.density.elements import PerElementDensity
from mofal.density.graphs import is_dask
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

_KEPT = ("numbers", "n_atoms", "structure_index", "structure_id", "system", "cycle")


def fit_density(ds: xr.Dataset, *, progress: Any = None, **settings: Any) -> PerElementDensity:
    """Fit a density for each element to a Dataset of features; computes.

    Parameters
    ----------
    ds : xarray.Dataset
        With `features(atom, feature)` and `numbers(atom)`; attribute `model_hash`.
    progress : callable, optional
        Is given one line per pass.
    **settings
        Of `PerElementDensity`.

    Raises
    ------
    DataError
        A variable is missing, or the features are NaN or infinite.

    Notes
    -----
    Lazy features are computed again in every pass over them, of which a fit makes tens: of features
    that a potential computes, write a group first (`mofal.data.write_group`), or ``ds.persist()``.
    """
    features, numbers = _columns(ds, "features", "numbers")
    return PerElementDensity(**settings).fit(
        features,
        numbers,
        model_hash=str(ds.attrs.get("model_hash", "")),
        progress=progress,
    )


def score(ds: xr.Dataset, density: PerElementDensity) -> xr.Dataset:
    """Score every atom under the density of its element; lazy on lazy features.

    Parameters
    ----------
    ds : xarray.Dataset
        With `features(atom, feature)` and `numbers(atom)`; attribute `model_hash`.
    density : PerElementDensity

    Returns
    -------
    xarray.Dataset
        `log_likelihood(atom)`, -inf for an element never seen, its `quantile(atom)`, where the
        density keeps a bound `error_bound(atom)` in eV/Å, and what tells which atom is which;
        attributes `model_hash`, `density_hash`, and `error_coverage` of the bound.

    Raises
    ------
    DataError
        A variable is missing, or the features are those of another potential.
    """
    import xarray as xr

    features, numbers = _columns(ds, "features", "numbers")
    found = str(ds.attrs.get("model_hash", ""))
    if found and density.model_hash and found != density.model_hash:
        raise DataError(
            f"the features are those of potential {found}, the density was fitted on those of "
            f"{density.model_hash}; features of two potentials are not comparable, featurize again"
        )
    values = density.score_samples(features, numbers)
    kept = {name: ds[name] for name in _KEPT if name in ds}
    if is_dask(values):
        # One chunking along atoms, so that the result can be written and reduced as it is.
        kept = {
            name: v.chunk(atom=values.chunks[0]) if "atom" in v.dims else v
            for name, v in kept.items()
        }
    attrs: dict[str, Any] = {
        "model_hash": found or density.model_hash,
        "density_hash": density.density_hash,
    }
    own = kept["numbers"].data
    scores = {"log_likelihood": values, "quantile": density.quantile(values, own)}
    if density.bound_ is not None:
        scores["error_bound"] = density.error_bound(values, own)
        attrs["error_coverage"] = density.bound_.bound.coverage
    return xr.Dataset(
        {**kept, **{name: ("atom", value) for name, value in scores.items()}}, attrs=attrs
    )


def _columns(ds: xr.Dataset, *names: str) -> list[Any]:
    missing = [name for name in names if name not in ds]
    if missing:
        raise DataError(
            f"found a Dataset without {', '.join(missing)} (it has "
            f"{', '.join(map(str, ds.data_vars)) or 'nothing'}); "
            "make features with potential.featurize(ds)"
        )
    return [ds[name].data for name in names]
