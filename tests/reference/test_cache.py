"""Durable labels: whole or not there, never paid for twice."""

import errno
import multiprocessing
import os
import pickle
import resource
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from mofal.clusters import cut
from mofal.data import (
    concat,
    from_atoms,
    open_group,
    read,
    select,
    structure_ids,
    to_atoms,
    write,
    write_group,
)
from mofal.errors import DataError, StoreError
from mofal.files import write_bytes
from mofal.frameworks import find_blocks
from mofal.reference import LabelCache, gather, get_reference, label_one, structure_id_of
from mofal.reference import cache as cache_module
from mofal.reference.cache import decode, encode
from tests.clusters.common import cores_of
from tests.frameworks import published


@pytest.fixture
def attempt(tmp_path):
    return get_reference("gfn1-xtb").calculate(bulk("C", cubic=True), directory=tmp_path)


def test_encode__reads_back_the_same(attempt):
    attempt = replace(attempt, retries=({"failed": "default"},), memory_peak=1.5)
    again = decode(encode(attempt))
    for name in ("numbers", "positions", "cell", "pbc", "forces", "stress"):
        np.testing.assert_array_equal(getattr(again, name), getattr(attempt, name))
    assert again.energy == attempt.energy
    assert dict(again.level_of_theory) == dict(attempt.level_of_theory)
    assert dict(again.versions) == dict(attempt.versions)
    assert again.retries == ({"failed": "default"},)
    assert again.memory_peak == 1.5
    assert np.isnan(again.memory_estimate)


def test_encode__opens_without_mofal(attempt, tmp_path):
    file = LabelCache(tmp_path).put(attempt)
    with np.load(file, allow_pickle=False) as found:
        assert float(found["energy"]) == attempt.energy


def test_decode__every_flipped_byte_is_seen(attempt):
    content = encode(attempt)
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), 200, replace=False):
        broken = bytearray(content)
        broken[position] ^= 0x10
        try:
            again = decode(bytes(broken))
        except StoreError:
            continue
        # A byte that nothing reads (padding, dates of the zip): the label itself is untouched.
        assert again.energy == attempt.energy
        np.testing.assert_array_equal(again.forces, attempt.forces)
        assert again.status == attempt.status


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_decode__truncated(attempt, keep):
    content = encode(attempt)
    n = keep if isinstance(keep, int) else int(keep * len(content))
    with pytest.raises(StoreError, match="damaged"):
        decode(content[:n])


def test_decode__newer_format(attempt, monkeypatch):
    monkeypatch.setattr(cache_module, "FORMAT", 99)
    content = encode(attempt)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 99"):
        decode(content)


def test_get__damaged_record_counts_as_missing(attempt, tmp_path):
    cache = LabelCache(tmp_path)
    file = cache.put(attempt)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="counts as missing"):
        assert cache.get(attempt.structure_id, attempt.level_hash) is None
    # The damaged file stays and its number is not used again.
    assert cache.put(attempt) != file
    assert cache.get(attempt.structure_id, attempt.level_hash).energy == attempt.energy


def test_get__record_under_the_name_of_another(attempt, tmp_path):
    cache = LabelCache(tmp_path)
    file = cache.put(attempt)
    key = cache_module.record_key("other", attempt.level_hash)
    wrong = tmp_path / key[:2] / f"{key}-000.npz"
    wrong.parent.mkdir(exist_ok=True)
    wrong.write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match="another label"):
        assert cache.get("other", attempt.level_hash) is None


def test_put__refuses_what_contradicts_itself(attempt, tmp_path):
    cache = LabelCache(tmp_path)
    broken = [
        replace(attempt, status="fine"),
        replace(attempt, level_hash="0" * 20),
        replace(attempt, energy=float("nan")),
        replace(attempt, forces=attempt.forces * np.nan),
    ]
    for one in broken:
        with pytest.raises(StoreError):
            cache.put(one)
    assert list(cache.records()) == []


def test_put__one_file_per_attempt(attempt, tmp_path):
    cache = LabelCache(tmp_path)
    failed = replace(attempt, status="crashed", reason="x", energy=float("nan"))
    files = [cache.put(failed), cache.put(failed), cache.put(attempt), cache.put(failed)]
    assert len(set(files)) == 4
    assert cache.get(attempt.structure_id, attempt.level_hash).converged
    assert [a.status for a in cache.records()] == ["crashed", "crashed", "converged", "crashed"]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_label_cache__shared_and_read_only(attempt, tmp_path):
    LabelCache(tmp_path / "shared").put(attempt)
    own = LabelCache(tmp_path / "own", shared=[tmp_path / "shared"])
    assert own.get(attempt.structure_id, attempt.level_hash).energy == attempt.energy
    assert not (tmp_path / "own").exists()
    read = LabelCache(tmp_path / "shared", mode="r")
    with pytest.raises(StoreError, match="read-only"):
        read.put(attempt)
    with pytest.raises(StoreError, match="no label cache"):
        LabelCache(tmp_path / "own", shared=[tmp_path / "absent"])
    with pytest.raises(StoreError, match="'rw' or 'r'"):
        LabelCache(tmp_path, mode="w")
    again = pickle.loads(pickle.dumps(own))
    assert again.get(attempt.structure_id, attempt.level_hash).converged


def test_label_cache__copies_labels_and_not_failures_into_a_shared_one(attempt, tmp_path):
    group = LabelCache(tmp_path / "group")
    group.path.mkdir()
    own = pickle.loads(pickle.dumps(LabelCache(tmp_path / "own", shared=[group])))
    failed = replace(attempt, status="crashed", reason="x", energy=float("nan"))
    own.put(failed)
    assert list(group.records()) == []
    for _ in range(2):
        own.put(attempt)
        own.share(attempt)
    (copy,) = group.records()
    assert copy.energy == attempt.energy
    assert np.array_equal(copy.forces, attempt.forces)
    # Another's failure is no reason not to try; another's label is one.
    group.put(failed)
    fresh = LabelCache(tmp_path / "fresh", shared=[group])
    assert [a.status for a in fresh.attempts(attempt.structure_id, attempt.level_hash)] == [
        "converged"
    ]
    assert len(list(fresh.records(shared=False))) == 0


def test_label_cache__a_shared_one_that_cannot_be_written_costs_no_label(attempt, tmp_path):
    group = LabelCache(tmp_path / "group")
    group.path.mkdir()
    own = LabelCache(tmp_path / "own", shared=[group])
    group.path.rmdir()
    group.path.write_text("no directory any more")
    with pytest.warns(UserWarning, match="could not be copied"):
        own.put(attempt)
    assert own.get(attempt.structure_id, attempt.level_hash).converged


def _put_many(path, content, n):
    attempt = decode(content)
    for _ in range(n):
        LabelCache(path).put(attempt)


def test_put__many_processes_at_once(attempt, tmp_path):
    content = encode(attempt)
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workers = [
            context.Process(target=_put_many, args=(tmp_path, content, 10)) for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [w.exitcode for w in workers] == [0] * 4
    assert len(list(LabelCache(tmp_path).records())) == 40


def test_label_one__never_paid_twice(faulty, tmp_path):
    counts = tmp_path / "counts"
    counts.mkdir()
    spec = f"{faulty}?count_in={counts}"
    for directory in ("a", "a"):
        label_one(molecule("H2O"), spec, directory=tmp_path / directory)
    label_one(molecule("H2O"), spec, directory=tmp_path / "b", shared=[tmp_path / "a"])
    assert len(list(counts.iterdir())) == 1


def test_label_one__dataset_and_atoms_are_the_same_label(tmp_path):
    water = molecule("H2O")
    one = label_one(water, "gfn1-xtb", directory=tmp_path)
    other = label_one(from_atoms([water]), "gfn1-xtb", directory=tmp_path)
    assert one.started == other.started
    assert one.structure_id == str(from_atoms([water]).structure_id.values[0])
    with pytest.raises(DataError, match="has 2"):
        label_one(from_atoms([water, water]), "gfn1-xtb", directory=tmp_path)


@pytest.mark.parametrize("first", [0, 1])
def test_label_one__an_ion_and_the_neutral_share_no_record(tmp_path, first):
    frames = [molecule("H2O"), molecule("H2O")]
    frames[1].info["charge"] = 1
    ds = from_atoms(frames)
    found = {}
    for i in (first, 1 - first):
        found[i] = label_one(select(ds, i), "gfn1-xtb", directory=tmp_path)
        again = label_one(frames[i], "gfn1-xtb", directory=tmp_path)  # the same, as atoms
        assert again.started == found[i].started
        assert found[i].structure_id == str(ds.structure_id.values[i])
    assert found[0].converged
    assert found[1].converged
    assert found[1].energy > found[0].energy + 5  # an electron is gone
    records = list(LabelCache(tmp_path).records())
    assert sorted(a.charge for a in records) == [0, 1]
    table = gather(ds, LabelCache(tmp_path), level_hash=found[0].level_hash)
    assert table.energy.values.tolist() == [found[0].energy, found[1].energy]
    assert table.charge.values.tolist() == [0, 1]


def test_label_one__charged_clusters_keep_their_identity(tmp_path):
    """Cut, kept on disk, as text and as atoms: one address for the label of an ion."""
    zif = from_atoms(published.zif(), system="zif")
    blocks = find_blocks(zif, rule="azolate")
    linker = int(np.flatnonzero(blocks["formula"].values == "C4H5N2")[0])
    clusters, _ = cut(zif, {"zif": blocks}, cores_of([0], [linker]), shells=0)
    assert clusters["charge"].values.tolist() == [1]
    (name,) = clusters["structure_id"].values.tolist()
    group = open_group(write_group(clusters, tmp_path / "clusters.zarr"))
    text = read(write(clusters, tmp_path / "clusters.extxyz"))
    for ds in (clusters, group, text, concat([from_atoms(molecule("H2O")), text])):
        last = select(ds, [-1]).load()
        assert last["structure_id"].values.tolist() == structure_ids(last).tolist() == [name]
        assert structure_id_of(to_atoms(last, 0)) == name
    attempt = label_one(select(group, 0).load(), "gfn1-xtb", directory=tmp_path / "labels")
    assert attempt.structure_id == name
    kept = LabelCache(tmp_path / "labels").get(name, attempt.level_hash)
    assert (kept.status, kept.charge) == ("converged", 1)


def test_label_one__failure_is_kept_until_more_attempts_are_asked_for(faulty, tmp_path):
    spec = f"{faulty}?fault=raise"
    first = label_one(molecule("H2O"), spec, directory=tmp_path)
    again = label_one(molecule("H2O"), spec, directory=tmp_path)
    assert again.started == first.started
    label_one(molecule("H2O"), spec, directory=tmp_path, attempts=3)
    assert len(list(LabelCache(tmp_path).records())) == 3


def test_label_one__disk_that_takes_no_record(tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(StoreError, match="is a file"):
        label_one(molecule("H2O"), "gfn1-xtb", directory=tmp_path / "cache")


def test_label_one__full_disk_names_the_record(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            label_one(molecule("H2O"), "gfn1-xtb", directory=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    # The very file that the record comes to lie in once there is space, and no leftovers of it.
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
    label_one(molecule("H2O"), "gfn1-xtb", directory=tmp_path)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == [Path(caught.value.filename)]


def test_write_bytes__file_that_is_too_large(tmp_path):
    """The kernel refuses to write beyond a limit: a real error of a real write."""
    file = tmp_path / "energies.json"
    write_bytes(file, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_bytes(file, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(file))
    assert [f.read_bytes() for f in tmp_path.iterdir()] == [b"before"]


def test_label_one__other_versions_are_warned_about(attempt, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_warned_versions", set())
    old = replace(attempt, versions={**attempt.versions, "tblite": "0.0.1"})
    LabelCache(tmp_path).put(old)
    with pytest.warns(UserWarning, match=r"tblite 0\.0\.1"):
        found = label_one(bulk("C", cubic=True), "gfn1-xtb", directory=tmp_path)
    assert found.energy == attempt.energy


def test_sweep__only_old_leftovers(attempt, tmp_path):
    cache = LabelCache(tmp_path)
    file = cache.put(attempt)
    leftover = file.parent / ".tmp-dead"
    leftover.write_bytes(b"half a record")
    assert cache.sweep() == 0
    assert cache.sweep(older_than_s=-1) == 1
    assert cache.get(attempt.structure_id, attempt.level_hash).converged
