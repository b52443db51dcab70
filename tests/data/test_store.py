from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.storage import LocalStore

from mofal.data import check_group, open_group, select, write_group
from mofal.data.shards import INNER_BYTES, SHARD_BYTES, plan_rows, widen
from mofal.data.variables import FORMAT
from mofal.errors import DataError, StoreError
from tests.data.common import datasets, features, labelled
from tests.helpers import assert_same_bits, chunked, number_of_tasks, raise_if_dask_computes


def files(group: Path) -> list[str]:
    return sorted(p.relative_to(group).as_posix() for p in group.rglob("*") if p.is_file())


# ------------------------------------------------------------------------------------ round trips
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(ds=datasets(), rows=st.sampled_from([None, 1, 3]))
def test_write_group__reads_back_bit_for_bit(tmp_path_factory, ds, rows):
    path = tmp_path_factory.mktemp("store") / "a.zarr"
    write_group(ds, path, kind="labels" if "status" in ds else "structures", rows_per_shard=rows)
    back = open_group(path)
    assert_same_bits(back, ds)
    assert {k: back.attrs[k] for k in ds.attrs} == ds.attrs
    for name in ds.variables:
        assert back[name].attrs == ds[name].attrs


@pytest.mark.parametrize("rows_per_shard", [1, 7, 100, 10**6])
@pytest.mark.parametrize("dask_rows", [None, 9, 250])
def test_write_group__any_shards_from_any_chunks(tmp_path, rows_per_shard, dask_rows):
    """Also shards and chunks that do not divide, and that are longer than the data."""
    ds = features(3 if rows_per_shard == 1 else 12, seed=1)
    source = ds if dask_rows is None else chunked(ds, dask_rows)
    write_group(source, tmp_path / "a.zarr", kind="features", rows_per_shard=rows_per_shard)
    back = open_group(tmp_path / "a.zarr")
    assert_same_bits(back, ds)
    assert set(back["features"].chunks[0][:-1]) <= {min(rows_per_shard, ds.sizes["atom"])}


def test_write_group__odd_and_differing_chunks(tmp_path):
    ds = features(30)
    n = ds.sizes["atom"]
    odd = ds.assign(
        features=ds["features"].chunk(atom=(5, 1, n - 17, 11), feature=2),
        numbers=ds["numbers"].chunk(atom=17),
        structure_index=ds["structure_index"].chunk(atom=(n - 1, 1)),
    )
    write_group(odd, tmp_path / "a.zarr", kind="features", rows_per_shard=50)
    assert_same_bits(open_group(tmp_path / "a.zarr"), ds)


def test_write_group__does_not_change_its_input(tmp_path):
    ds = chunked(labelled(5), 4)
    ds["system"] = ("structure", ds["system"].values.astype(object))
    ds["positions"].encoding = {"note": 1}
    before = ds.copy(deep=True)
    write_group(ds, tmp_path / "a.zarr", rows_per_shard=3)
    assert ds.identical(before)
    assert ds["positions"].chunks == before["positions"].chunks
    assert ds["positions"].encoding == {"note": 1}
    assert "mofal_format" not in ds.attrs


def test_write_group__what_was_read_can_be_written(tmp_path):
    ds = labelled(9)
    write_group(ds, tmp_path / "a.zarr", rows_per_shard=5)
    write_group(open_group(tmp_path / "a.zarr"), tmp_path / "b.zarr", rows_per_shard=7)
    write_group(select(open_group(tmp_path / "b.zarr"), [8, 3]), tmp_path / "c.zarr")
    assert_same_bits(open_group(tmp_path / "b.zarr"), ds)
    assert_same_bits(open_group(tmp_path / "c.zarr"), select(ds, [8, 3]))


def test_write_group__nothing_in_it(tmp_path):
    ds = select(labelled(3), [])
    write_group(ds, tmp_path / "a.zarr", kind="labels")
    assert_same_bits(open_group(tmp_path / "a.zarr"), ds)


def test_write_group__tables(tmp_path):
    ds = xr.Dataset(
        {
            "kind": ("block", np.array(["brick", "linker"])),
            "name": ("block", np.array(["a", "é"], object)),
            "shift": (("link", "xyz"), np.arange(6).reshape(2, 3)),
            "scalar": ((), 3.5),
            "word": ((), "text"),
            "complex": ("block", np.array([1j, 2.0])),
        },
        coords={"xyz": ["x", "y", "z"], "temperature_K": ("block", [300.0, 600.0])},
        attrs={"note": "é", "n": 3, "list": [1, 2], "numpy": np.float64(0.5)},
    )
    write_group(ds, tmp_path / "a.zarr", kind="table", rows_per_shard=1)
    back = open_group(tmp_path / "a.zarr")
    assert_same_bits(back.compute(), ds.reset_coords("temperature_K"))
    assert back.attrs["note"] == "é"
    assert back.attrs["numpy"] == 0.5
    assert json.loads(back.attrs["written_by"]).keys() >= {"mofal", "zarr", "xarray", "numpy"}


def test_write_group__fill_values_are_written(tmp_path):
    """A shard that is not there must never be legitimate."""
    n = 40
    ds = features(4).isel(structure=slice(0, 0), atom=slice(0, 0))
    ds = xr.Dataset({"zero": ("row", np.zeros(n)), "nan": ("row", np.full(n, np.nan))})
    write_group(chunked(ds, 10, dim="row"), tmp_path / "a.zarr", kind="table", rows_per_shard=10)
    assert [f for f in files(tmp_path / "a.zarr") if "/c/" in f] == [
        f"{name}/c/{k}" for name in ("nan", "zero") for k in range(4)
    ]


WRITE_ERRORS = {
    "contract": (lambda ds: ds.drop_vars("cell"), {}, "it lacks cell"),
    "rows": (lambda ds: ds, {"rows_per_shard": 0}, "rows_per_shard is 0; expected at least 1"),
    "lazy nan": (
        lambda ds: chunked(ds.assign(positions=ds["positions"].where(ds["numbers"] > 1)), 5),
        {},
        "positions holds .* values in one chunk that are NaN",
    ),
    "objects": (
        lambda ds: ds.assign(reason=("structure", np.array([None] * 5))),
        {},
        "reason holds None; expected text or numbers",
    ),
    "attribute": (
        lambda ds: ds.assign_attrs(settings=object()),
        {},
        "the attribute 'settings' of Dataset has no JSON form",
    ),
    "attribute of a variable": (
        lambda ds: ds.assign(extra=("structure", np.zeros(5), {"a": np.nan})),
        {},
        "the attribute 'a' of extra has no JSON form",
    ),
}


@pytest.mark.parametrize("case", WRITE_ERRORS)
def test_write_group__errors_leave_nothing(tmp_path, case):
    change, options, message = WRITE_ERRORS[case]
    with pytest.raises(DataError, match=message):
        write_group(change(labelled(5)), tmp_path / "a.zarr", **options)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ layout
@given(
    n=st.integers(1, 10**9),
    row=st.integers(1, 10**8),
    rows=st.none() | st.integers(1, 10**9),
    narrow=st.integers(1, 100),
)
def test_plan_rows__shards_hold_whole_chunks(n, row, rows, narrow):
    inner, shard = plan_rows(n, row, rows_per_shard=rows)
    assert 1 <= inner <= shard
    assert shard % inner == 0
    assert inner * row <= max(INNER_BYTES, row)
    pieces = shard // inner
    wanted = min(n, rows if rows is not None else max(1, SHARD_BYTES // row))
    assert wanted <= shard < wanted + pieces
    own = widen(inner, shard, -(-row // narrow)) if pieces < 10**4 else inner
    assert shard % own == 0
    assert own % inner == 0
    assert own == inner or own * -(-row // narrow) <= INNER_BYTES


def test_plan_rows__features_of_a_hundred_million_atoms():
    inner, shard = plan_rows(10**8, 8 * 4)
    assert inner * 32 == INNER_BYTES
    assert shard * 32 == SHARD_BYTES
    assert widen(inner, shard, 8) * 8 == INNER_BYTES


def test_open_group__chunks_are_shards_and_aligned(tmp_path):
    ds = labelled(40)
    write_group(ds, tmp_path / "a.zarr", rows_per_shard=30)
    back = open_group(tmp_path / "a.zarr")
    n = ds.sizes["atom"]
    # xarray refuses to name the chunks of a Dataset that are not the same in all variables.
    assert back.chunksizes["atom"] == (30,) * (n // 30) + ((n % 30,) if n % 30 else ())
    shards = {f for f in files(tmp_path / "a.zarr") if f.startswith("forces/c/")}
    assert len(shards) == len(back.chunksizes["atom"])


def test_open_group__structures_in_memory_atoms_on_disk(tmp_path):
    write_group(labelled(40), tmp_path / "a.zarr", kind="labels", rows_per_shard=30)
    with raise_if_dask_computes():
        back = open_group(tmp_path / "a.zarr")
    for name in back.data_vars:
        assert (back[name].chunks is not None) == ("structure" not in back[name].dims), name


def test_open_group__files_per_group(tmp_path):
    """Tens of files, whatever the number of chunks."""
    ds = labelled(200)
    write_group(ds, tmp_path / "a.zarr")
    assert len(files(tmp_path / "a.zarr")) == 2 * len(ds.variables) + 2


def test_open_group__graph_grows_with_shards_only(tmp_path):
    write_group(features(300), tmp_path / "a.zarr", kind="features", rows_per_shard=1000)
    back = open_group(tmp_path / "a.zarr")
    shards = len(back.chunksizes["atom"])
    assert shards > 3
    assert number_of_tasks(back["features"]) <= 2 * shards


# ------------------------------------------------------------------------------------ laziness
def test_open_group__one_structure_touches_only_its_shards(tmp_path):
    ds = labelled(60)
    group = write_group(ds, tmp_path / "a.zarr", rows_per_shard=20)
    back = open_group(group)
    one = select(back, 30)
    last = int(ds["n_atoms"].values[:31].sum()) - 1
    first = last + 1 - int(ds["n_atoms"].values[30])
    needed = {first // 20, last // 20}
    lazy = {name for name in ds.data_vars if "atom" in ds[name].dims}
    for shard in group.glob("*/c/*"):
        if shard.parent.parent.name in lazy and int(shard.name) not in needed:
            shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    assert_same_bits(one.compute(), select(ds, 30))
    with pytest.raises(StoreError, match="is missing"):
        select(back, 0).compute()


def test_open_group__reads_only_the_inner_chunks_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mofal.data.shards.INNER_BYTES", 2000)
    ds = features(400)
    group = write_group(ds, tmp_path / "a.zarr", kind="features", rows_per_shard=2000)
    size = (group / "features" / "c" / "1" / "0").stat().st_size
    back = open_group(group)
    read: list[tuple[str, int]] = []

    def counting(name: str) -> None:
        original = getattr(LocalStore, name)

        async def get(self, key, *args, **kwargs):
            value = await original(self, key, *args, **kwargs)
            if "/c/" in key and value is not None:
                read.append((key, len(value)))
            return value

        monkeypatch.setattr(LocalStore, name, get)

    counting("get")
    middle = int(np.searchsorted(np.cumsum(ds["n_atoms"].values), 3000))
    one = select(back, middle)["features"].compute()
    assert np.array_equal(one, select(ds, middle)["features"])
    assert {key for key, _ in read} == {"features/c/1/0"}
    assert 0 < sum(n for _, n in read) < size / 5
    back["features"].compute()
    assert len({key for key, _ in read}) == len(back.chunksizes["atom"])


def test_write_group__streams(tmp_path):
    """Memory holds some blocks at a time, whatever the length of the variable."""
    alive, most, made = 0, 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def block(index: np.ndarray) -> np.ndarray:
        nonlocal alive, most, made
        out = np.random.default_rng(int(index[0])).normal(size=(len(index) * 100, 4))
        alive, made = alive + 1, made + 1
        most = max(most, alive)
        weakref.finalize(out, gone)
        return out

    index = da.arange(200, chunks=1)
    values = index.map_blocks(block, new_axis=1, chunks=((100,) * 200, (4,)), dtype=float)
    ds = xr.Dataset({"values": (("row", "column"), values)})
    group = write_group(ds, tmp_path / "a.zarr", kind="table", rows_per_shard=250)
    assert made == 200
    assert most < 60
    assert len(list(group.glob("values/c/*"))) == 80


def test_open_group__travels_to_other_processes(tmp_path):
    ds = features(50)
    write_group(ds, tmp_path / "a.zarr", kind="features", rows_per_shard=100)
    sent = pickle.dumps(open_group(tmp_path / "a.zarr")["features"])
    assert len(sent) < 20_000
    assert np.array_equal(pickle.loads(sent), ds["features"])


def test_open_group__same_content_same_keys(tmp_path):
    write_group(features(5), tmp_path / "a.zarr", kind="features")
    first, again = (open_group(tmp_path / "a.zarr")["features"].data.name for _ in range(2))
    shutil.rmtree(tmp_path / "a.zarr")
    write_group(features(5, seed=1), tmp_path / "a.zarr", kind="features")
    assert first == again != open_group(tmp_path / "a.zarr")["features"].data.name
    unchecked = open_group(tmp_path / "a.zarr", check=False)
    assert unchecked["features"].data.name != first
    assert_same_bits(unchecked, features(5, seed=1))


# ------------------------------------------------------------------------------------ other readers
def test_group__plain_xarray_reads_it_without_warnings(tmp_path):
    ds = labelled(9)
    write_group(chunked(ds, 7), tmp_path / "a.zarr", kind="labels", rows_per_shard=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
        assert_same_bits(back.load(), ds)
    assert back.attrs["mofal_format"] == FORMAT
    assert back["forces"].attrs["units"] == "eV/Å"


def test_group__python_without_mofal_reads_it(tmp_path):
    ds = labelled(9)
    write_group(ds, tmp_path / "a.zarr", kind="labels")
    code = (
        "import sys, json, xarray\n"
        "ds = xarray.open_zarr(sys.argv[1], consolidated=False).load()\n"
        "assert 'mofal' not in sys.modules\n"
        "print(json.dumps([ds.energy.values.tolist(), ds.system.values.tolist()]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a.zarr")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == [ds["energy"].values.tolist(), ds["system"].values.tolist()]


def test_group__is_never_consolidated(tmp_path):
    """Consolidated metadata would hide that an array is gone."""
    write_group(labelled(3), tmp_path / "a.zarr")
    assert "consolidated_metadata" not in json.loads((tmp_path / "a.zarr/zarr.json").read_text())


def test_group__every_chunk_has_a_checksum(tmp_path):
    ds = labelled(3)
    group = write_group(ds, tmp_path / "a.zarr")
    for name in ds.variables:
        meta = json.loads((group / name / "zarr.json").read_text())
        codecs = meta["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            assert codecs[0]["configuration"]["index_codecs"][-1]["name"] == "crc32c"
            codecs = codecs[0]["configuration"]["codecs"]
        assert codecs[-1]["name"] == "crc32c", name
    check_group(group, full=True)


@pytest.mark.slow
def test_write_group__on_workers_of_distributed(tmp_path):
    distributed = pytest.importorskip("distributed")
    ds = features(100)
    ds["features"][100:200] = 0
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        group = write_group(
            chunked(ds, 77), tmp_path / "a.zarr", kind="features", rows_per_shard=100
        )
        assert_same_bits(open_group(group).compute(), ds)
        with pytest.raises(DataError, match="features holds"):
            write_group(
                chunked(ds.assign(features=ds["features"] * np.nan), 77),
                tmp_path / "b.zarr",
                kind="features",
            )
        shutil.rmtree(group / "features" / "c" / "2")
        with pytest.raises(StoreError, match="features/c/2/0 is missing"):
            open_group(group, check=False).compute()
    check = [p.name for p in tmp_path.iterdir()]
    assert check == ["a.zarr"]
