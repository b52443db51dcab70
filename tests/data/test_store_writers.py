"""Writers that are killed, that come second, or that find the disk full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from mofal.data import (
    atomic_path,
    check_group,
    open_group,
    read_json,
    remove_leftovers,
    write_group,
    write_json,
)
from mofal.errors import StoreError
from tests.data.common import features, labelled
from tests.helpers import assert_same_bits, chunked

START = """
    import resource, sys, time
    import dask, dask.array as da, numpy as np, xarray as xr
    import mofal.files, mofal.data.store
    from mofal.data import write_group, write_json
    from mofal.errors import StoreError

    place = sys.argv[1]

    def ready():
        print("ready", flush=True)
        time.sleep(600)

    def block(index):
        if stop_at is not None and index[0] == stop_at:
            ready()
        return np.random.default_rng(int(index[0])).normal(size=len(index) * 1000)

    stop_at = None
    index = da.arange(8, chunks=1)
    values = index.map_blocks(block, chunks=((1000,) * 8,), dtype=float)
    ds = xr.Dataset({"values": ("row", values)})

    def write():
        write_group(ds, place + "/a.zarr", kind="table", rows_per_shard=1000)
"""


def child(code: str, place: Path, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(START) + textwrap.dedent(code), str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ------------------------------------------------------------------------------------ killed
KILLS = {
    "between shards": """
        stop_at = 5
        dask.config.set(scheduler="sync")
        write()
    """,
    "before the manifest": """
        mofal.data.store.write_manifest = lambda group: ready()
        write()
    """,
    "before the rename": """
        mofal.files.os.rename = lambda *a: ready()
        write()
    """,
}


@pytest.mark.parametrize("case", KILLS)
def test_write_group__killed(tmp_path, case):
    process = child(KILLS[case], tmp_path)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
    finally:
        process.kill()
        process.communicate()

    group = tmp_path / "a.zarr"
    (leftover,) = tmp_path.iterdir()
    assert leftover != group
    written = len(list(leftover.glob("values/c/*")))
    assert 0 < written < 8 if case == "between shards" else written == 8
    with pytest.raises(StoreError, match="does not exist"):
        open_group(group)

    # The next one is not disturbed by what is left, and what is left can be found.
    write_group(features(5), group, kind="features")
    assert_same_bits(open_group(group), features(5))
    assert remove_leftovers(tmp_path) == [leftover]
    assert list(tmp_path.iterdir()) == [group]
    check_group(group, full=True)


# ------------------------------------------------------------------------------------ disk full
FULL = """
    from pathlib import Path
    from mofal.data import make_structures, write

    eager = ds.compute()
    noise = np.random.default_rng(0).normal(size=(999, 3))
    structure = make_structures(np.ones(999, int), noise, n_atoms=[999])
    writers = {
        "json": lambda path: write_json(["x" * 10_000], path + ".json"),
        "text": lambda path: write(structure, path + ".extxyz"),
        "lazy": lambda path: write_group(ds, path, kind="table", rows_per_shard=1000),
        "eager": lambda path: write_group(eager, path, kind="table", rows_per_shard=1000),
    }
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    for kind, act in writers.items():
        Path(place, kind).mkdir()
        try:
            act(place + "/" + kind + "/a")
        except StoreError as error:
            print(kind, error)
"""


def test_write__no_space(tmp_path):
    """A limit on the size of files stands for a full disk: a writer meets it in mid-file."""
    process = child(FULL, tmp_path)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert [line.split()[0] for line in out.splitlines()] == ["json", "text", "lazy", "eager"]
    for line in out.splitlines():
        assert "could not be written: File too large; raise the limit on the size" in line
    assert [p for p in tmp_path.rglob("*") if p.parent != tmp_path] == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"No space left on device; free some space \(df -h\) and start again"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "choose another directory"),
        (errno.EIO, "Input/output error$"),
    ],
)
def test_write_group__reasons_of_the_disk(tmp_path, monkeypatch, number, message):
    def refuse(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("mofal.data.store.write_manifest", refuse)
    with pytest.raises(StoreError, match=message) as caught:
        write_group(features(3), tmp_path / "a.zarr", kind="features")
    assert str(tmp_path / "a.zarr") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_write_group__below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is in the place of a directory"):
        write_group(features(3), tmp_path / "file" / "a.zarr", kind="features")
    with pytest.raises(StoreError, match="could not be written: "):
        write_json({}, tmp_path / "file" / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------ failing
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_write_group__a_failing_task_leaves_nothing(tmp_path, error, scheduler):
    """Also not what other threads were still writing when it failed."""
    import dask

    started = threading.Event()

    def block(index):
        if index[0] == 3:
            started.wait(1)
            raise error
        started.set()
        return np.zeros(len(index) * 50_000)

    index = da.arange(8, chunks=1)
    values = index.map_blocks(block, chunks=((50_000,) * 8,), dtype=float)
    ds = xr.Dataset({"values": ("row", values)})
    with dask.config.set(scheduler=scheduler), pytest.raises(type(error)):
        write_group(ds, tmp_path / "a.zarr", kind="table", rows_per_shard=50_000)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ second
def state(group: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in group.rglob("*") if p.is_file()}


def test_write_group__a_second_writer_changes_nothing(tmp_path):
    group = write_group(features(5), tmp_path / "a.zarr", kind="features")
    before = state(group)
    write_group(features(9, seed=1), group, kind="features")
    assert state(group) == before
    assert list(tmp_path.iterdir()) == [group]


def test_write_group__a_second_writer_that_began_before_the_first_had_finished(
    tmp_path, monkeypatch
):
    from mofal.data import store

    group = tmp_path / "a.zarr"
    original = store.write_manifest
    first = []

    def overtaken(temporary):
        original(temporary)
        if not first:
            first.append(temporary)
            write_group(features(5), group, kind="features")
            first.append(state(group))

    monkeypatch.setattr(store, "write_manifest", overtaken)
    write_group(features(9, seed=1), group, kind="features")
    assert state(group) == first[1]
    assert_same_bits(open_group(group), features(5))
    assert list(tmp_path.iterdir()) == [group]


def test_write_group__many_writers_at_once(tmp_path):
    ds = chunked(features(20), 50)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            write_group(ds, tmp_path / "a.zarr", kind="features", rows_per_shard=100)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_same_bits(open_group(tmp_path / "a.zarr"), features(20))
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_write_group__into_an_empty_directory(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    write_group(features(5), tmp_path / "a.zarr", kind="features")
    assert_same_bits(open_group(tmp_path / "a.zarr"), features(5))


@pytest.mark.parametrize("what", ["file", "directory", "half a group"])
def test_write_group__something_else_is_there(tmp_path, what):
    path = tmp_path / "a.zarr"
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        (path / "thesis").mkdir(parents=True)
    else:
        features(3).to_zarr(path, consolidated=False)
    expected = "is a file" if what == "file" else "is a directory that is no finished group"
    before = sorted(path.rglob("*"))
    with pytest.raises(StoreError, match=f"{expected}; choose another path, or delete it first"):
        write_group(features(3), path, kind="features")
    assert sorted(path.rglob("*")) == before


# ------------------------------------------------------------------------------------ files
def test_atomic_path__flushes_before_it_renames(tmp_path, flushes):
    group = write_group(labelled(3), tmp_path / "a.zarr")
    temporary = Path(flushes[0][1])
    while temporary.parent != tmp_path:
        temporary = temporary.parent
    renamed = flushes.index(("rename", str(group)))
    flushed = {Path(p).relative_to(temporary) for kind, p in flushes[:renamed] if kind == "flush"}
    assert flushed >= {p.relative_to(group) for p in group.rglob("*")}
    assert flushes[renamed + 1 :] == [("flush", str(tmp_path))]


def test_atomic_path__a_file_that_was_there_stays_when_writing_fails(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_atomic_path__nested(tmp_path):
    with atomic_path(tmp_path / "walk") as temporary:
        write_group(features(3), temporary / "a.zarr", kind="features")
        write_json({"a": 1}, temporary / "a.json")
        assert not (tmp_path / "walk").exists()
    assert_same_bits(open_group(tmp_path / "walk" / "a.zarr"), features(3))
    assert read_json(tmp_path / "walk" / "a.json") == {"a": 1}


def test_remove_leftovers__touches_nothing_else(tmp_path):
    keep = [
        tmp_path / "a.zarr" / "zarr.json",
        tmp_path / ".notes.tmp",
        tmp_path / ".a.b.c.tmp",
        tmp_path / "a.123.0123abcd.tmp",
        tmp_path / ".a.zarr.123.0123abcd.tmp.txt",
    ]
    gone = [
        tmp_path / ".a.zarr.123.0123abcd.tmp" / "values" / "zarr.json",
        tmp_path / "cycle-001" / ".b.json.7.ffffffff.tmp",
    ]
    for path in (*keep, *gone):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("")
    link = tmp_path / ".c.zarr.9.00000000.tmp"
    link.symlink_to(outside)
    assert remove_leftovers(tmp_path) == sorted([gone[0].parent.parent, gone[1], link])
    assert all(p.exists() for p in (*keep, outside / "file"))
    assert not any(p.exists() for p in gone)
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path / "nowhere") == []
