"""The format on disk, as docs/format.md specifies it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import xarray as xr

from mofal.data import check_group, describe, open_group, structure_ids, validate, write_group
from mofal.data.manifest import MANIFEST
from mofal.data.variables import FORMAT, REQUIRED, VARIABLES
from tests.data import format_1
from tests.helpers import assert_same_bits

OLD = {1: (Path(__file__).parent / "format-1" / "labels.zarr", format_1.content)}
DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"


def test_formats__each_has_a_group_in_the_tests():
    assert set(OLD) == set(range(1, FORMAT + 1))


@pytest.mark.parametrize("number", OLD)
def test_open_group__groups_of_every_format(number):
    path, content = OLD[number]
    check_group(path, full=True)
    ds = open_group(path)
    assert_same_bits(ds.compute(), content())
    for key, value in content().attrs.items():
        assert ds.attrs[key] == value
    assert ds.attrs["mofal_format"] == number
    validate(ds.compute(), "labels")
    # When the group was written, the charge was no part of the identity yet.
    neutral = ds.drop_vars("charge", errors="ignore")
    assert structure_ids(neutral).tolist() == ds["structure_id"].values.tolist()


@pytest.mark.parametrize("number", OLD)
def test_open_zarr__groups_of_every_format(number):
    path, content = OLD[number]
    assert_same_bits(xr.open_zarr(path, consolidated=False).load(), content())


def test_write_group__the_layout_is_that_of_the_committed_group(tmp_path):
    """The same arrays in the same files: a change of the layout needs a new format."""
    path = OLD[FORMAT][0]
    new = write_group(OLD[FORMAT][1](), tmp_path / "a.zarr", kind="labels", rows_per_shard=4)
    assert _arrays(new).keys() == _arrays(path).keys()
    for name, meta in _arrays(new).items():
        old = _arrays(path)[name]
        for key in ("shape", "data_type", "chunk_grid", "codecs", "dimension_names", "fill_value"):
            assert meta[key] == old[key], (name, key)
    for file in sorted(path.glob("*/c/**/*")):
        if file.is_file():
            assert (new / file.relative_to(path)).is_file()


def _arrays(group: Path) -> dict[str, dict]:
    return {
        file.parent.name: meta
        for file in group.glob("*/zarr.json")
        if (meta := json.loads(file.read_text()))["node_type"] == "array"
    }


def test_group__is_what_the_document_says(tmp_path):
    group = write_group(format_1.content(), tmp_path / "a.zarr", kind="labels", rows_per_shard=4)
    root = json.loads((group / "zarr.json").read_text())
    assert root["zarr_format"] == 3
    assert root["node_type"] == "group"
    assert root["attributes"]["mofal_format"] == FORMAT
    assert root["attributes"]["mofal_kind"] == "labels"
    assert json.loads(root["attributes"]["written_by"])["mofal"]

    manifest = json.loads((group / MANIFEST).read_text())
    assert manifest["node_type"] == "group"
    attributes = manifest["attributes"]
    assert set(attributes) == {"mofal_format", "files", "checksum"}
    there = {p.relative_to(group).as_posix() for p in group.rglob("*") if p.is_file()}
    assert set(attributes["files"]) == there - {MANIFEST}
    for name, entry in attributes["files"].items():
        content = (group / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    canonical = json.dumps(attributes["files"], sort_keys=True, separators=(",", ":"))
    assert attributes["checksum"] == hashlib.sha256(canonical.encode()).hexdigest()

    for name, meta in _arrays(group).items():
        assert tuple(meta["dimension_names"]) == VARIABLES[name].dims
        assert meta["attributes"]["units"] == VARIABLES[name].units
        assert meta["chunk_key_encoding"]["configuration"] == {"separator": "/"}
    along_atom = {
        meta["chunk_grid"]["configuration"]["chunk_shape"][0]
        for meta in _arrays(group).values()
        if meta["dimension_names"][0] == "atom"
    }
    assert along_atom == {4}


def test_document__names_every_variable_with_its_unit():
    text = DOCUMENT.read_text(encoding="utf-8")
    for kind in REQUIRED:
        assert f"| `{kind}` |" in text
    text = text[text.index("### Registered variables") :]
    for name, spec in VARIABLES.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert row, f"docs/format.md lacks {name}"
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == ", ".join(spec.dims), name
        assert cells[2] == spec.dtype, name
        assert cells[3] == spec.units, name


def test_document__attributes_of_the_content_are_described():
    text = DOCUMENT.read_text(encoding="utf-8")
    for key in describe(format_1.content()).attrs:
        assert f"`{key}`" in text
