"""Flipped bits: a model or a checkpoint is what it was, or it is refused; never something else."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from mofal.data.sealed import read_sealed
from mofal.errors import MofalError, StoreError
from mofal.potential import export, load, train
from mofal.potential.directory import read_described, read_provenance
from mofal.potential.loop import Clock

FLIPS = int(os.environ.get("MOFAL_FLIPS", "60"))
"""How many bits are flipped; 400 by hand."""


@pytest.fixture(scope="module")
def model(labelled, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "model"
    train(labelled, settings, out=out, seed=1)
    return out


def format_1(model: Path, target: Path) -> Path:
    """The directory as the version before wrote it: no checksums."""
    shutil.copytree(model, target)
    described = json.loads((model / "model.json").read_text())
    del described["files"], described["checksum"]
    described["mofal_format"] = 1
    (target / "model.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    return target


def flip(path: Path, rng: np.random.Generator) -> bytes:
    """Flip one bit; return what was there."""
    before = path.read_bytes()
    content = bytearray(before)
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))
    return before


def content_of(potential) -> tuple[object, ...]:
    return potential.model_hash, potential.provenance, potential.history


def test_load__a_flipped_bit_in_any_file_is_refused_or_nothing(model, tmp_path):
    where = tmp_path / "model"
    shutil.copytree(model, where)
    expected = content_of(load(where))
    files = sorted(p for p in where.iterdir())
    assert [p.name for p in files] == [
        "history.json",
        "model.json",
        "provenance.json",
        "weights.pt",
    ]
    rng = np.random.default_rng(7)
    outcomes: Counter[str] = Counter()
    for k in range(FLIPS):
        file = files[k % len(files)]
        before = flip(file, rng)
        try:
            found = content_of(load(where))
        except MofalError as error:
            text = str(error)
            assert "\n" not in text
            assert file.name in text or file.name == "model.json"
            assert "weights_only" not in text
            assert "copy" in text or "upgrade" in text
            outcomes["refused"] += 1
        else:
            # A bit in the white space of model.json.
            assert found == expected
            assert file.name == "model.json"
            outcomes["the same"] += 1
        file.write_bytes(before)
    assert content_of(load(where)) == expected
    assert outcomes["refused"] > 0.9 * FLIPS


def test_load__of_the_version_before_and_its_flipped_bits(model, tmp_path):
    where = format_1(model, tmp_path / "model")
    expected = load(model)
    assert content_of(load(where)) == content_of(expected)
    assert read_provenance(where) == expected.provenance
    rng = np.random.default_rng(8)
    for k in range(FLIPS // 3):
        # Without checksums the weights and what describes them are all that can be checked.
        file = where / ("weights.pt" if k % 2 else "model.json")
        before = flip(file, rng)
        try:
            assert load(where).model_hash == expected.model_hash
        except MofalError as error:
            text = str(error)
        else:
            text = ""
        assert "\n" not in text
        assert "weights_only" not in text
        file.write_bytes(before)
    for name in ("history.json", "provenance.json"):
        (where / name).unlink()
    assert load(where).history == []


@pytest.mark.parametrize("name", ["history.json", "provenance.json", "weights.pt", "model.json"])
def test_model__a_damaged_file_is_refused_by_whoever_reads(model, tmp_path, name):
    where = tmp_path / "model"
    shutil.copytree(model, where)
    content = json.loads((where / name).read_text()) if name != "weights.pt" else None
    if content is None:
        (where / name).write_bytes((where / name).read_bytes() + b"\0")
    else:
        (where / name).write_text(json.dumps({**content, "more": 1}, indent=1))
    for read in (load, lambda d: export(d, tmp_path / "x.nequip.zip")):
        with pytest.raises(StoreError, match=rf"{name} is damaged.*rm -r") as caught:
            read(where)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.nequip.zip").exists()
    readers = [read_provenance] if name == "provenance.json" else []
    for reader in [read_described, read_provenance] if name == "model.json" else readers:
        with pytest.raises(StoreError, match="damaged"):
            reader(where)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", '{"mofal_format": 2}', "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\x00"],
)
def test_load__model_json_of_any_other_kind(model, tmp_path, text):
    where = tmp_path / "model"
    shutil.copytree(model, where)
    (where / "model.json").write_text(text)
    with pytest.raises(StoreError, match=r"model\.json is damaged") as caught:
        load(where)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------- checkpoints
class Stop(Exception):
    pass


@pytest.fixture
def stopped(labelled, settings, tmp_path, monkeypatch):
    """A training that ended after its second epoch; its checkpoint, and how to go on with it."""
    original = Clock.on_train_batch_end

    def wrapped(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.step == 8:
            raise Stop

    def again(out, **more):
        return train(labelled, settings, out=out, seed=1, checkpoint_every=1, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_train_batch_end", wrapped)
        with pytest.raises(Stop):
            again(tmp_path / "m")
    return tmp_path / ".m.training" / "checkpoint.pt", again


def test_train__a_damaged_checkpoint_starts_over_and_says_so(model, stopped, tmp_path):
    from mofal.potential.loop import read_checkpoint

    path, again = stopped
    assert read_checkpoint(path)[0] is not None
    rng = np.random.default_rng(9)
    for _ in range(FLIPS):
        before = flip(path, rng)
        content, fault = read_checkpoint(path)
        assert content is None
        assert fault
        path.write_bytes(before)
    flip(path, rng)
    lines: list[str] = []
    potential = again(tmp_path / "m", progress=lines.append)
    assert sum(line.endswith("the training starts over") for line in lines) == 1
    assert not any(line.startswith("resumed") for line in lines)
    assert potential.model_hash == load(model).model_hash


def test_train__a_checkpoint_of_the_version_before_goes_on(model, stopped, tmp_path):
    from mofal.potential.loop import read_checkpoint

    path, again = stopped
    raw, fault = read_sealed(path)
    assert not fault
    # As torch alone writes it; and one whose training computed on a GPU.
    torch.save(torch.load(io.BytesIO(raw), weights_only=True), path)
    good = path.read_bytes()
    rng = np.random.default_rng(10)
    expected = torch.load(io.BytesIO(good), weights_only=True)
    for _ in range(FLIPS // 6):
        flip(path, rng)
        content, _ = read_checkpoint(path)
        # CRCs cover what a checkpoint holds, not the padding between.
        assert content is None or repr(content) == repr(expected)
        path.write_bytes(good)
    lines: list[str] = []
    potential = again(tmp_path / "m", progress=lines.append)
    assert any(line.startswith("resumed at epoch") for line in lines)
    assert potential.model_hash == load(model).model_hash


def test_train__a_checkpoint_that_the_disk_does_not_give(stopped, tmp_path):
    path, again = stopped
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=r"cannot be read: Is a directory.*rm "):
        again(tmp_path / "m")


def test_train__a_directory_without_a_model_is_in_the_way(labelled, settings, tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(StoreError, match=r"m is in the way.*no model\.json.*rm -r"):
        train(labelled, settings, out=tmp_path / "m", seed=1)
    assert list((tmp_path / "m").iterdir()) == []
