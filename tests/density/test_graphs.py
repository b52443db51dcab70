"""Task counts, bytes through the scheduler, laziness, and the same results on a cluster."""

from __future__ import annotations

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

from mofal.density import GaussianMixture, PerElementDensity
from mofal.density.em import em_chunk, em_combine, em_step, start_state
from mofal.density.graphs import FAN_IN
from mofal.density.rows import DaskRows
from mofal.density.start import Spec
from mofal.density.survey import take
from tests.density.mixtures import blobs, start
from tests.helpers import raise_if_dask_computes

MOST_BYTES = 4096
"""Bytes per task that may go through the scheduler."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Features and labels in a sharded Zarr group, as the store of a campaign keeps them."""
    path = tmp_path_factory.mktemp("features") / "features.zarr"
    x, _ = blobs(0, 40_000, 4, 3)
    labels = np.random.default_rng(0).choice([1, 6, 8], size=40_000).astype(np.int32)
    ds = xr.Dataset(
        {"features": (("atom", "feature"), x.astype("f4")), "numbers": ("atom", labels)}
    )
    encoding = {
        "features": {"chunks": (500, 4), "shards": (1000, 4)},
        "numbers": {"chunks": (4000,), "shards": (8000,)},
    }
    ds.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding)
    return path


def _open(store, rows: int) -> xr.Dataset:
    ds = xr.open_zarr(store, consolidated=False, chunks=None)
    return ds.assign(
        features=ds["features"].chunk(atom=rows), numbers=ds["numbers"].chunk(atom=8 * rows)
    )


def _tree(chunks: int) -> int:
    nodes = 0
    while chunks > 1 or nodes == 0:
        chunks = -(-chunks // FAN_IN)
        nodes += chunks
    return nodes


def _iteration(rows: DaskRows, n_components: int):
    """The graph of one iteration, with the state of the fits as a key of its own."""
    spec = Spec(n_components, "full", np.full(rows.n_features, 1e-6))
    with dask.config.set(scheduler="sync"):
        survey = take(rows, 0)
        plan = {0: [spec]}
        state = rows.keep(
            rows.apply(start_state, survey, rows.put(plan), rows.put(0.0), rows.put(9))
        )
    statistics = rows.reduce(em_chunk, em_combine, state)
    new = rows.apply(em_step, state, statistics)
    (optimised,) = dask.optimize(new)
    return dict(optimised.__dask_graph__()), state.key


def _sizes(graph: dict, state_key: str) -> dict:
    return {key: len(cloudpickle.dumps(task)) for key, task in graph.items() if key != state_key}


@pytest.mark.parametrize("rows_per_chunk", [1000, 4000])
def test_iteration__tasks_are_chunks_and_a_tree(store, rows_per_chunk):
    """Reading is fused into the task of its chunk: a chunk is never a result of its own."""
    x = _open(store, rows_per_chunk)["features"].data
    graph, _ = _iteration(DaskRows(x), 3)
    chunks = x.numblocks[0]
    fixed = 5  # the array on disk, the state, the alias of the result, the M-step, its function
    assert chunks + _tree(chunks) < len(graph) <= chunks + _tree(chunks) + fixed


def test_iteration__tasks_with_labels_are_chunks_and_a_tree(store):
    """Labels lie in longer chunks than features; each is read once and cut."""
    ds = _open(store, 1000)
    rows = DaskRows(ds["features"].data, labels=ds["numbers"].data)
    graph, _ = _iteration_of_labels(rows)
    chunks, label_chunks = 40, 5
    assert len(graph) <= chunks + _tree(chunks) + label_chunks + 8


def _iteration_of_labels(rows: DaskRows):
    spec = Spec(2, "full", np.full(4, 1e-6))
    with dask.config.set(scheduler="sync"):
        survey = take(rows, 0)
        plan = {label: [spec] for label in (1, 6, 8)}
        state = rows.keep(
            rows.apply(start_state, survey, rows.put(plan), rows.put(0.0), rows.put(9))
        )
    (optimised,) = dask.optimize(
        rows.apply(em_step, state, rows.reduce(em_chunk, em_combine, state))
    )
    return dict(optimised.__dask_graph__()), state.key


def test_iteration__bytes_per_task_are_few_and_independent_of_rows(store):
    """No task carries rows or parameters: those are read, or referred to by their key."""
    largest = []
    for rows_per_chunk in (1000, 4000):
        x = _open(store, rows_per_chunk)["features"].data
        for n_components in (2, 30):
            graph, state_key = _iteration(DaskRows(x), n_components)
            assert state_key in graph
            sizes = _sizes(graph, state_key)
            assert max(sizes.values()) <= MOST_BYTES, max(sizes, key=sizes.get)
            largest.append(max(sizes.values()))
    assert max(largest) - min(largest) < 64


def test_score_samples__parameters_are_one_object_of_the_graph(store):
    ds = _open(store, 1000)
    density = PerElementDensity(n_components=20).fit(ds["features"].values, ds["numbers"].values)
    with raise_if_dask_computes():
        scores = density.score_samples(ds["features"].data, ds["numbers"].data)
    (optimised,) = dask.optimize(scores)
    graph = dict(optimised.__dask_graph__())
    sizes = sorted(len(cloudpickle.dumps(task)) for task in graph.values())
    assert sizes[-1] > 20_000
    assert sizes[-2] <= MOST_BYTES
    assert len(graph) <= 2 * 40 + 2 * 40 + 5 + 5


def test_score_samples__reads_only_the_chunks_it_needs(store, monkeypatch):
    ds = _open(store, 1000)
    density = PerElementDensity(n_components=2).fit(ds["features"].values, ds["numbers"].values)
    scores = density.score_samples(ds["features"].data, ds["numbers"].data)
    read = []
    plain = zarr.Array.__getitem__

    async_get = zarr.AsyncArray.getitem

    async def spy(self, selection, **kwargs):
        read.append((self.path, selection))
        return await async_get(self, selection, **kwargs)

    monkeypatch.setattr(zarr.AsyncArray, "getitem", spy)
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda s, k: (read.append((s.path, k)), plain(s, k))[1]
    )
    scores[5500:5600].compute(scheduler="sync")
    of_features = {str(k) for path, k in read if path == "features"}
    assert len(of_features) == 1


# ------------------------------------------------------------------------------------- schedulers
@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_fit__schedulers_agree(store, scheduler):
    x = _open(store, 3000)["features"].data
    centres = blobs(0, 40_000, 4, 3)[1]
    settings = {**start(1, centres, "full"), "max_iter": 4, "tol": 0.0}
    local = GaussianMixture(3, **settings)
    with pytest.warns(UserWarning, match="no convergence"), dask.config.set(scheduler=scheduler):
        lazy = GaussianMixture(3, **settings).fit(x)
    with pytest.warns(UserWarning, match="no convergence"):
        local.fit(x.compute())
    np.testing.assert_allclose(lazy.lower_bounds_, local.lower_bounds_, rtol=1e-12)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fit__a_cluster_gives_the_same(store, cluster):
    """Starts are equal bit for bit; fits to rounding; scores stay lazy on the cluster."""
    x = _open(store, 3000)["features"].data
    with dask.config.set(scheduler="sync"):
        here = GaussianMixture(3, random_state=1, max_iter=6, tol=0.0).fit(x)
        begin = GaussianMixture(3, random_state=1, max_iter=0).fit(x)
    there = GaussianMixture(3, random_state=1, max_iter=6, tol=0.0).fit(x)
    assert (GaussianMixture(3, random_state=1, max_iter=0).fit(x).means_ == begin.means_).all()
    np.testing.assert_array_equal(there.lower_bounds_, here.lower_bounds_)
    np.testing.assert_array_equal(there.covariances_, here.covariances_)
    np.testing.assert_array_equal(there.score_samples(x).compute(), here.score_samples(x.compute()))
    # Rows that are kept in the memory of the workers are used there.
    kept = GaussianMixture(3, random_state=1, max_iter=6, tol=0.0).fit(x.persist())
    np.testing.assert_array_equal(kept.lower_bounds_, here.lower_bounds_)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fit__what_the_scheduler_is_sent_per_task(store, cluster, monkeypatch):
    """Whatever the rows of a chunk: parameters stay on the workers, rows never leave the disk."""
    sent: list[int] = []
    plain = cluster.scheduler_comm.send

    def spy(*messages):
        sent.append(len(cloudpickle.dumps(messages)))
        return plain(*messages)

    monkeypatch.setattr(cluster.scheduler_comm, "send", spy)
    per_task = []
    for rows_per_chunk in (1000, 4000):
        x = _open(store, rows_per_chunk)["features"].data
        totals = []
        for max_iter in (1, 5):
            sent.clear()
            GaussianMixture(30, random_state=1, tol=0.0, max_iter=max_iter).fit(x)
            totals.append(sum(sent))
        tasks = x.numblocks[0] + _tree(x.numblocks[0])
        per_task.append((totals[1] - totals[0]) / 4 / tasks)
    assert 100 < max(per_task) < MOST_BYTES


@pytest.mark.slow
def test_per_element__a_cluster_gives_the_same(store, cluster):
    ds = _open(store, 3000)
    settings = {"max_components": 4, "max_iter": 20}
    there = PerElementDensity(**settings).fit(ds["features"].data, ds["numbers"].data)
    with dask.config.set(scheduler="sync"):
        here = PerElementDensity(**settings).fit(ds["features"].data, ds["numbers"].data)
    assert there.density_hash == here.density_hash


def test_fit__a_bad_row_is_found_in_its_chunk(store):
    x = _open(store, 1000)["features"].data
    spoiled = da.where(da.arange(40_000, chunks=1000)[:, None] == 34_567, np.nan, x)
    with pytest.raises(ValueError, match="row 34567 contains NaN"):
        GaussianMixture(2).fit(spoiled)
