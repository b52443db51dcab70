"""What is lazy computes on the client of the session, wherever that is."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mofal.clusters import cut, random_cores
from mofal.commands.mechanics import mechanics
from mofal.data import open_group, write_group
from mofal.density import fit_density, score
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, find_blocks
from mofal.mechanics import CurveSettings
from mofal.schedule import read_events

from .helpers import assert_same_bits, chunked

MODEL = Path(__file__).parents[1] / "notebooks" / "density_on_uio66" / "model"


@pytest.fixture(scope="module")
def client():
    """The session's: one worker process, and Dask's default from now on."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as made,
    ):
        yield made


@contextlib.contextmanager
def on_workers(client, monkeypatch):
    """Everything that Dask computes inside is computed by the client's workers, and it is some."""

    def here(*_, **__):
        raise AssertionError("computed in the session's own process")

    from distributed import get_task_stream

    with monkeypatch.context() as patch, get_task_stream(client) as stream:
        for scheduler in ("dask.local.get_sync", "dask.threaded.get", "dask.multiprocessing.get"):
            patch.setattr(scheduler, here)
        yield
    assert Counter(task["status"] for task in stream.data).keys() == {"OK"}


@pytest.fixture(scope="module")
def frames():
    cell = build("S_ld", cell="primitive")
    return cell, sample_harmonic(cell, n=6, temperature_K=300.0, seed=1)


def test_density__fits_and_scores_on_the_session_s_workers(client, monkeypatch):
    rng = np.random.default_rng(0)
    import xarray as xr

    table = xr.Dataset(
        {
            "features": (("atom", "feature"), rng.normal(size=(600, 3))),
            "numbers": ("atom", np.repeat([1, 6], 300)),
            "n_atoms": ("structure", [600]),
        }
    )
    lazy = chunked(table, 100)
    with dask.config.set(scheduler="synchronous"):
        expected = fit_density(lazy, max_components=2)
        known = score(lazy, expected).compute()
    with on_workers(client, monkeypatch):
        density = fit_density(lazy, max_components=2)
    with on_workers(client, monkeypatch):
        found = score(lazy, density).compute()
    np.testing.assert_allclose(found["log_likelihood"], known["log_likelihood"], rtol=1e-10)


def test_cut__lazy_frames(client, monkeypatch, frames):
    cell, ds = frames
    blocks = find_blocks(cell)
    ds = ds.assign(system=("structure", np.array(["a"] * 6, np.dtypes.StringDType())))
    cores = random_cores(ds, {"a": blocks}, n=4, seed=2)
    expected, _ = cut(ds, {"a": blocks}, cores)
    with on_workers(client, monkeypatch):
        found, _ = cut(chunked(ds, 200), {"a": blocks}, cores)
    assert_same_bits(found, expected)


def test_potential__featurizes_and_evaluates(client, monkeypatch, frames, tmp_path):
    pytest.importorskip("nequip")
    from mofal.potential import load

    potential = load(MODEL)
    _, ds = frames
    expected = potential.featurize(ds).load(), potential.evaluate(ds).load()
    write_group(ds, tmp_path / "frames.zarr")
    lazy = open_group(tmp_path / "frames.zarr")
    for verb, known, name in zip(
        (potential.featurize, potential.evaluate), expected, ("features", "forces"), strict=True
    ):
        with on_workers(client, monkeypatch):
            found = verb(lazy).compute()
        np.testing.assert_allclose(found[name], known[name], atol=1e-5)


def test_mechanics__points_of_a_curve(client, tmp_path, monkeypatch):
    """Durable pieces, as a campaign's: done by the session's workers, and found again."""
    monkeypatch.chdir(tmp_path)
    write("copper.extxyz", bulk("Cu", a=3.6))
    said = []
    arguments = {
        "reference": "ase:ase.calculators.emt:EMT",
        "rule": "none",
        "curve": CurveSettings(volumes=5),
        "directory": "eos",
        "client": client,
        "say": said.append,
    }
    assert mechanics(["copper.extxyz"], **arguments) == 0
    assert any("copper: K 13" in line for line in said), said
    ended = [e for e in read_events("eos") if e["event"] == "end"]
    assert {e["worker"] for e in ended} == {"0"}
    assert not any(e["event"] == "job" for e in read_events("eos"))
    assert mechanics(["copper.extxyz"], **arguments) == 0
    assert "every point is there already" in said
    assert client.status == "running"
    assert os.path.isdir("eos")
