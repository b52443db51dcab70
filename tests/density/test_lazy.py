"""Minima, histograms and maps equal plain NumPy for every chunking, and never hold the rows."""

from __future__ import annotations

import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

from mofal.density import (
    PCA,
    density_map,
    histogram,
    plot_curve,
    plot_density_map,
    plot_histogram,
    plot_minima,
    select_components,
    structure_minima,
)
from mofal.errors import DataError
from tests.helpers import raise_if_dask_computes

N_STRUCTURES = 40


@pytest.fixture(scope="module")
def ds():
    """Structures of very different sizes, one larger than any chunk."""
    rng = np.random.default_rng(0)
    n_atoms = rng.integers(1, 30, N_STRUCTURES)
    n_atoms[7] = 400
    n = int(n_atoms.sum())
    values = rng.normal(size=n)
    values[[3, 500]] = -np.inf
    return xr.Dataset(
        {
            "log_likelihood": ("atom", values),
            "features": (("atom", "feature"), rng.normal(size=(n, 4)).astype("f4")),
            "numbers": ("atom", rng.choice([1, 6, 8], size=n).astype(np.int32)),
            "structure_index": ("atom", np.repeat(np.arange(N_STRUCTURES), n_atoms)),
            "n_atoms": ("structure", n_atoms),
            "system": ("structure", np.where(np.arange(N_STRUCTURES) < 20, "S_pr", "S_ld")),
        },
        attrs={"model_hash": "abc", "density_hash": "def"},
    )


def _chunked(ds: xr.Dataset, rows: int | None) -> xr.Dataset:
    """Variables in chunks of different lengths."""
    if rows is None:
        return ds
    out = ds.copy()
    for i, name in enumerate(("log_likelihood", "features", "numbers", "structure_index")):
        length = rows * (1 + i % 3)
        chunks = {"atom": length, "feature": 3} if name == "features" else {"atom": length}
        out[name] = ds[name].chunk(chunks)
    return out


@pytest.mark.parametrize("rows", [None, 1, 64, 333, 10_000])
def test_structure_minima__equals_numpy(ds, rows):
    with raise_if_dask_computes():
        out = structure_minima(_chunked(ds, rows))
    assert out.attrs == ds.attrs
    out = out.compute()
    index, values = ds["structure_index"].values, ds["log_likelihood"].values
    for i in range(N_STRUCTURES):
        own = np.flatnonzero(index == i)
        assert out["min_log_likelihood"].values[i] == values[own].min()
        assert out["least_likely_atom"].values[i] == own[values[own].argmin()]
    assert list(out["system"].values) == list(ds["system"].values)


@pytest.mark.parametrize("rows", [None, 64, 333])
@pytest.mark.parametrize("limits", [None, (-1.0, 2.0)])
def test_histogram__equals_numpy(ds, rows, limits):
    with raise_if_dask_computes():
        out = histogram(_chunked(ds, rows), bins=30, limits=limits)
    out = out.compute()
    values, numbers = ds["log_likelihood"].values, ds["numbers"].values
    finite = values[np.isfinite(values)]
    expected = limits or (finite.min(), finite.max())
    edges = np.linspace(*expected, 31)
    np.testing.assert_allclose(out["edge"].values, edges)
    for label in (1, 6, 8, 40):
        own = values[numbers == label]
        counts = np.histogram(own[np.isfinite(own)], bins=edges)[0]
        np.testing.assert_array_equal(out["count"].sel(label=label).values, counts)
        assert int(out["below"].sel(label=label)) == (own < expected[0]).sum()
        assert int(out["above"].sel(label=label)) == (own > expected[1]).sum()


@pytest.mark.parametrize("rows", [None, 64, 333])
@pytest.mark.parametrize("label", [None, 6])
def test_density_map__equals_numpy(ds, rows, label):
    pca = PCA(2).fit(ds["features"].values)
    with raise_if_dask_computes():
        out = density_map(_chunked(ds, rows), pca, label=label, bins=12, extent=2.0)
    out = out.compute()
    keep = np.ones(ds.sizes["atom"], bool) if label is None else ds["numbers"].values == label
    plane = pca.transform(ds["features"].values[keep])
    edges = [np.linspace(-w, w, 13) for w in 2.0 * np.sqrt(pca.explained_variance_)]
    expected = np.histogram2d(plane[:, 1], plane[:, 0], bins=[edges[1], edges[0]])[0]
    np.testing.assert_array_equal(out["count"].values, expected)
    assert float(out["outside"]) == keep.sum() - expected.sum()
    np.testing.assert_allclose(out["first"].values, (edges[0][1:] + edges[0][:-1]) / 2)
    values = ds["log_likelihood"].values[keep]
    sums = np.histogram2d(
        plane[:, 1], plane[:, 0], bins=[edges[1], edges[0]], weights=np.nan_to_num(values, neginf=0)
    )[0]
    some = (expected > 0) & np.isfinite(out["mean_log_likelihood"].values)
    np.testing.assert_allclose(
        out["mean_log_likelihood"].values[some], (sums / np.maximum(expected, 1))[some], atol=1e-9
    )
    assert np.isnan(out["mean_log_likelihood"].values[expected == 0]).all()


def test_verbs__tasks_grow_with_chunks_and_not_with_structures(ds):
    counts = {}
    for rows in (50, 100):
        small = _chunked(ds, rows)
        out = structure_minima(small)["min_log_likelihood"].data
        graph = dict(dask.optimize(out)[0].__dask_graph__())
        counts[rows] = len(graph)
        chunks = small["log_likelihood"].data.numblocks[0]
        assert len(graph) < 3 * chunks + 20
    assert counts[50] < 2.2 * counts[100]


def test_verbs__what_cannot_be_meant(ds):
    with pytest.raises(DataError, match="without log_likelihood"):
        structure_minima(ds.drop_vars("log_likelihood"))
    with pytest.raises(DataError, match="structure_index 40, expected 0 to 38"):
        structure_minima(
            ds.isel(structure=slice(0, 39)).assign(structure_index=ds.structure_index + 1)
        )
    with pytest.raises(DataError, match="smaller one first"):
        histogram(ds, limits=(1.0, -1.0))
    with pytest.raises(DataError, match="PCA of 1 direction"):
        density_map(ds, PCA(1).fit(ds["features"].values))
    with pytest.raises(DataError, match="labels -1 to"):
        histogram(ds.assign(numbers=ds.numbers - 2))


def test_plots__show_the_aggregates(ds):
    lazy = _chunked(ds, 100)
    h = histogram(lazy, bins=20)
    ax = plot_histogram(h, names={1: "H", 6: "C", 8: "O"})
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    assert [t.split(" ")[0] for t in texts] == ["H", "C", "O"]
    assert sum(p.get_data().values.sum() > 0 for p in ax.patches) == 3
    ax = plot_minima(structure_minima(lazy))
    assert {t.get_text().split(" ")[0] for t in ax.get_legend().get_texts()} == {"S_pr", "S_ld"}
    assert len(ax.lines[0].get_xdata()) == 20
    pca = PCA(2).fit(ds["features"].values)
    for variable in ("count", "mean_log_likelihood"):
        ax = plot_density_map(density_map(lazy, pca, bins=9), variable=variable)
        assert ax.collections[0].get_array().size == 81
    _, curve = select_components(ds["features"].values, max_components=3, random_state=0)
    ax = plot_curve(curve)
    assert list(ax.lines[0].get_xdata()) == curve.n_components


def test_import__is_light():
    """The room, and the names of its plots, come without matplotlib, Dask, xarray or sklearn."""
    code = (
        "import sys, mofal.density; bad = [m for m in ('matplotlib', 'dask', 'xarray', 'sklearn', "
        "'torch', 'distributed', 'zarr') if m in sys.modules]; assert not bad, bad; "
        "mofal.density.plot_curve, mofal.density.PerElementDensity; "
        "assert not {'matplotlib', 'torch', 'distributed', 'ase'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names__all_are_found():
    import mofal.density

    for name in mofal.density.__all__:
        assert getattr(mofal.density, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mofal.density.nothing


def test_structure_minima__atoms_in_memory_beside_lazy_scores(ds):
    mixed = ds.assign(
        log_likelihood=("atom", da.from_array(ds["log_likelihood"].values, chunks=70))
    )
    found, expected = structure_minima(mixed).compute(), structure_minima(ds)
    xr.testing.assert_identical(found, expected)
