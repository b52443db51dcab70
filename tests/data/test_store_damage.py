"""What happens to groups: each ends in one clear message, and never in numbers that are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from mofal.data import check_group, open_group, read_json, write_group, write_json
from mofal.data.manifest import MANIFEST, SMALL, _checksum
from mofal.data.variables import FORMAT
from mofal.errors import StoreError
from tests.data.common import labelled
from tests.helpers import assert_same_bits

BIG = "features/c/1/0"
"""A shard that is too large to be read whenever the group is opened."""


def wide() -> xr.Dataset:
    """Labelled structures with features, in shards of which some are small and some are not."""
    ds = labelled(90, seed=5)
    values = np.random.default_rng(0).normal(size=(ds.sizes["atom"], 160)).astype(np.float32)
    return ds.assign(features=(("atom", "feature"), values))


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "labels.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mofal.data.shards.INNER_BYTES", 2**15)
        write_group(wide(), path, kind="labels", rows_per_shard=150)
    assert (path / BIG).stat().st_size > SMALL
    return path


@pytest.fixture
def group(sound, tmp_path) -> Path:
    path = tmp_path / "labels.zarr"
    shutil.copytree(sound, path)
    return path


def flip(file: Path, position: int = -1, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1 << bit
    file.write_bytes(content)


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def set_format(group: Path, value) -> None:
    edit(group / MANIFEST, lambda m: m["attributes"].update(mofal_format=value))


def foreign(group: Path) -> None:
    shutil.rmtree(group)
    group.mkdir()
    (group / "thesis.tex").write_text("")


def replace_by(make):
    def damage(group: Path) -> None:
        shutil.rmtree(group)
        make(group)

    return damage


def add_array(group: Path) -> None:
    zarr.create_array(group / "extra", data=np.zeros(3), dimension_names=["structure"])


def seal_again(change):
    """Damage a manifest and make its checksum fit, as no accident would."""

    def damage(group: Path) -> None:
        def both(content) -> None:
            change(content["attributes"]["files"])
            content["attributes"]["checksum"] = _checksum(content["attributes"]["files"])

        edit(group / MANIFEST, both)

    return damage


DAMAGE = {
    "missing group": (shutil.rmtree, "does not exist"),
    "a file": (replace_by(lambda g: g.write_text("")), "is a file; expected the directory"),
    "empty directory": (replace_by(lambda g: g.mkdir()), "is an empty directory"),
    "foreign directory": (foreign, "it is another program's, or damaged"),
    "zarr v2": (
        replace_by(lambda g: zarr.create_group(g, zarr_format=2)),
        "is no Zarr v3 group",
    ),
    "zarr of another program": (
        replace_by(lambda g: xr.Dataset({"a": ("x", [1])}).to_zarr(g, consolidated=False)),
        "has no manifest: it was not written by mofal",
    ),
    "manifest missing": (lambda g: (g / MANIFEST).unlink(), "has no manifest"),
    "manifest truncated": (
        lambda g: (g / MANIFEST).write_bytes((g / MANIFEST).read_bytes()[:-100]),
        "its manifest cannot be read",
    ),
    "manifest empty": (lambda g: (g / MANIFEST).write_text(""), "its manifest cannot be read"),
    "manifest no object": (lambda g: (g / MANIFEST).write_text("[]"), "its manifest cannot be"),
    "manifest of no text": (
        lambda g: (g / MANIFEST).write_bytes(b"\xff\xfe{}"),
        "its manifest cannot be read",
    ),
    "manifest without files": (
        lambda g: edit(g / MANIFEST, lambda m: m["attributes"].pop("files")),
        "its manifest cannot be read",
    ),
    "manifest changed": (
        lambda g: edit(g / MANIFEST, lambda m: m["attributes"]["files"].pop(BIG)),
        "its manifest was changed after it was written",
    ),
    "manifest of another version": (
        seal_again(lambda files: files.update({"zarr.json": {"length": 1}})),
        "cannot be checked (KeyError('size'))",
    ),
    "newer format": (lambda g: set_format(g, FORMAT + 1), f"has format {FORMAT + 1}, this mofal"),
    "no format": (lambda g: set_format(g, None), "states no mofal_format (found None)"),
    "format in words": (lambda g: set_format(g, "1"), "states no mofal_format (found '1')"),
    "format zero": (lambda g: set_format(g, 0), "states no mofal_format (found 0)"),
    "root metadata missing": (lambda g: (g / "zarr.json").unlink(), "zarr.json is missing"),
    "root metadata changed": (
        lambda g: edit(g / "zarr.json", lambda m: m["attributes"].update(level_hash="f")),
        "zarr.json has ",
    ),
    "root metadata flipped": (lambda g: flip(g / "zarr.json", 40), "zarr.json was changed after"),
    "array metadata missing": (
        lambda g: (g / "energy/zarr.json").unlink(),
        "energy/zarr.json is missing",
    ),
    "array metadata flipped": (
        lambda g: flip(g / "energy/zarr.json", 30, 4),
        "energy/zarr.json was changed after it was written",
    ),
    "array missing": (lambda g: shutil.rmtree(g / "numbers"), "numbers/c/0 is missing"),
    "array added": (add_array, "extra was added after it was written"),
    "small shard missing": (lambda g: (g / "energy/c/0").unlink(), "energy/c/0 is missing"),
    "small shard flipped": (lambda g: flip(g / "energy/c/0", 9), "energy/c/0 was changed after"),
    "small shard truncated": (
        lambda g: (g / "energy/c/0").write_bytes((g / "energy/c/0").read_bytes()[:-1]),
        "energy/c/0 has ",
    ),
    "text flipped": (lambda g: flip(g / "system/c/0", 9), "system/c/0 was changed after"),
    "big shard missing": (lambda g: (g / BIG).unlink(), f"{BIG} is missing"),
    "big shard a directory": (
        lambda g: ((g / BIG).unlink(), (g / BIG).mkdir()),
        f"{BIG} is missing",
    ),
    "big shard truncated": (
        lambda g: (g / BIG).write_bytes((g / BIG).read_bytes()[:5000]),
        f"{BIG} has 5000 bytes, expected ",
    ),
    "big shard empty": (lambda g: (g / BIG).write_bytes(b""), f"{BIG} has 0 bytes, expected "),
    "big shard longer": (
        lambda g: (g / BIG).write_bytes((g / BIG).read_bytes() + b"x"),
        f"{BIG} has ",
    ),
    "shards exchanged": (
        lambda g: (g / "energy/c/0").write_bytes((g / "wall_time/c/0").read_bytes()),
        "energy/c/0 ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_open_group__damaged(group, case):
    damage, message = DAMAGE[case]
    damage(group)
    with pytest.raises(StoreError) as caught:
        open_group(group)
    text = str(caught.value)
    assert message in text
    assert str(group) in text
    assert "\n" not in text
    if case == "missing group":
        return
    assert any(
        mend in text for mend in ("or delete it to have", "rmdir", "pip install", "is a file")
    )


def test_check_group__sound(group):
    check_group(group)
    check_group(group, full=True)
    assert_same_bits(open_group(group).compute(), wide())


@pytest.mark.parametrize(
    ("where", "bit"), [(0, 0), (1, 7), (0.25, 3), (0.5, 1), (0.75, 6), (-100, 2), (-5, 0), (-1, 7)]
)
def test_open_group__flipped_bit_in_a_big_shard(group, where, bit):
    """Opening does not read it; whoever reads it gets an error and never a wrong number."""
    size = (group / BIG).stat().st_size
    position = int(where * size) if isinstance(where, float) else where
    flip(group / BIG, position, bit)
    ds = open_group(group)
    with pytest.raises(StoreError) as caught:
        ds["features"].compute()
    text = str(caught.value)
    assert f"{group} is damaged: features, rows 150 to 300 cannot be read" in text
    assert "or delete it to have this stage run again" in text
    assert "\n" not in text
    with pytest.raises(StoreError, match=f"{BIG} was changed after it was written"):
        check_group(group, full=True)


def test_open_group__flipped_bit_elsewhere_does_not_matter(group):
    flip(group / BIG, 1000)
    ds = open_group(group)
    expected = wide()["features"]
    assert np.array_equal(ds["features"][:150], expected[:150])
    assert np.array_equal(ds["features"][300:], expected[300:])
    with pytest.raises(StoreError, match="features, rows 150 to 151"):
        ds["features"][150:151].compute()


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized")
def test_open_group__files_of_no_concern(group):
    """What file systems and people leave in a directory is not read by anyone."""
    (group / ".nfs0000").write_text("")
    (group / "README").write_text("hands off")
    (group / "features" / "c" / ".DS_Store").write_text("")
    assert_same_bits(open_group(group).compute(), wide())


def test_open_group__big_variable_that_is_loaded_at_once(tmp_path):
    n = 20_000
    rng = np.random.default_rng(0)
    ds = xr.Dataset(
        {"energy": ("structure", rng.normal(size=n)), "odd": (("structure", "x"), [[1]] * n)}
    )
    path = write_group(ds, tmp_path / "a.zarr", kind="table")
    assert (path / "energy/c/0").stat().st_size > SMALL
    flip(path / "energy/c/0", 70_000)
    with pytest.raises(StoreError, match="is damaged: energy cannot be read") as caught:
        open_group(path)
    assert "\n" not in str(caught.value)


LATER = {
    "deleted": lambda g: (g / BIG).unlink(),
    "truncated": lambda g: (g / BIG).write_bytes((g / BIG).read_bytes()[:5000]),
    "almost emptied": lambda g: (g / BIG).write_bytes((g / BIG).read_bytes()[:1]),
    "last byte lost": lambda g: (g / BIG).write_bytes((g / BIG).read_bytes()[:-1]),
    "only its index": lambda g: (g / BIG).write_bytes((g / BIG).read_bytes()[-84:]),
    "emptied": lambda g: (g / BIG).write_bytes(b""),
    "group moved": lambda g: g.rename(g.with_name("elsewhere.zarr")),
}


@pytest.mark.parametrize("case", LATER)
def test_open_group__damaged_after_it_was_opened(group, case):
    """Zarr alone would give zeros for a file that has gone."""
    ds = open_group(group)
    LATER[case](group)
    with pytest.raises(StoreError, match=r"is damaged: features"):
        ds["features"].compute()
    with pytest.raises(StoreError, match=r"is damaged: features"):
        (ds["features"].mean("feature") * 2)[200].compute()


@pytest.mark.parametrize("key", [slice(140, 160), slice(160, 140, -1), [10, 299], 299, slice(0, 0)])
def test_open_group__keys_of_every_kind(group, key):
    expected = wide()["features"]
    (group / "features/c/2/0").unlink()
    ds = open_group(group, check=False)
    assert np.array_equal(ds["features"][key], expected[key])
    with pytest.raises(StoreError, match="features/c/2/0 is missing"):
        ds["features"][[10, 300]].compute()
    with pytest.raises(StoreError, match="features/c/2/0 is missing"):
        ds["features"][::-1].compute()


def test_open_group__without_checking_still_refuses_a_newer_format(group):
    edit(group / "zarr.json", lambda m: m["attributes"].update(mofal_format=FORMAT + 1))
    with pytest.raises(StoreError, match=f"has format {FORMAT + 1}"):
        open_group(group, check=False)


def test_open_group__without_checking_a_missing_group(tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        open_group(tmp_path / "nothing.zarr", check=False)


def test_read_json__errors(tmp_path):
    file = tmp_path / "a.json"
    with pytest.raises(StoreError, match="does not exist"):
        read_json(file)
    file.write_text('{"a": ')
    with pytest.raises(StoreError, match=r"is damaged .*; delete it to have it made again"):
        read_json(file)
    file.write_bytes(b"\xff")
    with pytest.raises(StoreError, match="is damaged"):
        read_json(file)
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_write_json__replaces_in_one_step(tmp_path):
    file = tmp_path / "deep" / "a.json"
    write_json({"b": [1.5, "é"], "a": None}, file)
    write_json({"c": 1}, file)
    assert read_json(file) == {"c": 1}
    assert [p.name for p in file.parent.iterdir()] == ["a.json"]
    with pytest.raises(TypeError):
        write_json({"a": object()}, file)
    assert read_json(file) == {"c": 1}
