"""Feature clouds and likelihood maps: separation that is known, kinds that chemistry gives."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from mofal.analysis import bonded_kinds, feature_clouds, likelihood_maps
from mofal.analysis.panels import plot_feature_clouds, plot_likelihood_maps
from mofal.errors import DataError
from mofal.frameworks import build
from tests.analysis.material import held_out


def _features(centres: list[float], n: int = 60, *, width: float = 0.1, model: str = "m"):
    rng = np.random.default_rng(3)
    rows = [c + width * rng.normal(size=(n, 4)) for c in centres]
    kinds = np.repeat([f"kind {k}" for k in range(len(centres))], n).astype(object)
    ds = xr.Dataset(
        {
            "features": (("atom", "feature"), np.concatenate(rows)),
            "numbers": ("atom", np.full(n * len(centres), 6)),
        },
        attrs={"model_hash": model},
    )
    return ds, kinds


def test_bonded_kinds__carbons_of_a_defect():
    ds = build("S_ld", cell="primitive")
    kinds = bonded_kinds(ds)
    carbon = ds["numbers"].values == 6
    names, counts = np.unique(kinds[carbon].astype(str), return_counts=True)
    # 5 linkers stay: 10 carboxylates, 10 ring C that hold them, 20 ring C-H; 2 formates.
    assert dict(zip(names, counts.tolist())) == {
        "C-COO": 10,
        "C-CCC": 10,
        "C-HCC": 20,
        "C-HOO": 2,
    }


def test_feature_clouds__apart_and_mixed():
    apart, kinds = _features([0.0, 5.0])
    mixed, _ = _features([0.0, 0.0], model="other")
    clouds = feature_clouds({"mixed": mixed, "apart": apart}, {"mixed": kinds, "apart": kinds})
    assert clouds["purity"].sel(cloud="apart").item() == 1.0
    assert clouds["silhouette"].sel(cloud="apart").item() > 0.9
    assert abs(clouds["purity"].sel(cloud="mixed").item() - 0.5) < 0.1
    assert abs(clouds["silhouette"].sel(cloud="mixed").item()) < 0.1
    # Two clouds at distance 10 (5 along each of four axes): half of it from the centre.
    assert clouds["spread"].sel(cloud="apart").item() == pytest.approx(5.0, rel=0.02)
    figure = plot_feature_clouds(clouds, new_kind="kind 1")
    assert len(figure.axes) == 2


def test_feature_clouds__one_basis_for_a_model():
    old, kinds = _features([0.0, 5.0])
    new, more = _features([0.0, 5.0, 9.0])
    clouds = feature_clouds({"old": old, "new": new}, {"old": kinds, "new": more})
    x, panel = clouds["x"].values, clouds["panel"].values
    # The same atoms are at the same places in both panels, although the second has more.
    np.testing.assert_allclose(x[panel == 0], x[panel == 1][: len(kinds)], atol=0.5)
    assert np.isnan(clouds["kind_purity"].sel(cloud="old", kind_name="kind 2"))
    assert clouds["kind_purity"].sel(cloud="new", kind_name="kind 2") == 1.0


def test_feature_clouds__what_does_not_belong():
    ds, kinds = _features([0.0, 5.0])
    with pytest.raises(DataError, match="one for each atom"):
        feature_clouds({"a": ds}, {"a": kinds[1:]})
    with pytest.raises(DataError, match="0 atoms of Zr"):
        feature_clouds({"a": ds}, {"a": kinds}, element="Zr")


def test_likelihood_maps__means_and_scatter():
    held = held_out("S_ld", 4)
    maps = likelihood_maps(held.labels, held.predictions["seed"], held.scores["seed"])
    n = int(held.labels["n_atoms"][0])
    likelihood = held.scores["seed"]["log_likelihood"].values
    np.testing.assert_allclose(maps["log_likelihood"], likelihood.reshape(4, n).mean(axis=0))
    error = held.predictions["seed"]["predicted_forces"].values - held.labels["forces"].values
    oxygen = held.labels["numbers"].values == 8
    expected = np.corrcoef(np.linalg.norm(error, axis=1)[oxygen], likelihood[oxygen])[0, 1]
    assert maps["pearson_r"].sel(element="O").item() == pytest.approx(expected)
    figure = plot_likelihood_maps({"D": maps}, {"D": held.labels})
    assert len(figure.axes) >= 3
    with pytest.raises(DataError, match="score the very frames"):
        likelihood_maps(
            held.labels, held.predictions["seed"], held.scores["seed"].isel(atom=slice(9))
        )
