"""Wrong input and damaged stores: one clear message, status 1, no traceback, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mofal.cli import main
from tests.campaign.conftest import SMALL, write_campaign


def listing(directory: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(directory.rglob("*")) if p.is_file()}


def refuse(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(argv)
    out, err = capsys.readouterr()
    assert status == 1, out + err
    assert message in err, err
    assert err.startswith("mofal: ")
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) <= 3, err


def patched(changes: dict[str, Any]) -> dict[str, Any]:
    return {**SMALL, **changes}


FILES: list[tuple[str, dict[str, Any], str]] = [
    ("unknown key", {"cylces": 3}, "did you mean 'cycles'"),
    ("negative temperature", {"exploration": {"temperature_K": -600}}, "temperature_K is -600"),
    (
        "missing CIF",
        {"systems": {"x": {"file": "no.cif"}}, "seed_data": {"clusters": {}}},
        "no.cif",
    ),
    ("no such framework", {"systems": {"pristine": {"build": "S_xy"}}}, "S_xy"),
    ("no such reference", {"reference": {"name": "gfn9-xtb"}}, "gfn9-xtb"),
    ("no such ranking", {"selection": {"ranking": "luck"}}, "luck"),
    ("no such rule", {"systems": {"pristine": {"build": "S_pr", "rule": "magic"}}}, "magic"),
    ("no such ASE calculator", {"reference": {"name": "ase:no.such:Thing"}}, "no.such"),
    ("no such element", {"potential": {"elements": ["Zz"]}}, "'Zz' is no chemical symbol"),
    ("unit in a number", {"exploration": {"length_fs": "0.5 ps"}}, "length_fs is '0.5 ps'"),
]


@pytest.mark.parametrize(("what", "changes", "message"), FILES, ids=[f[0] for f in FILES])
def test_run__campaign_files(
    what: str,
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if what in ("no such framework", "no such rule"):
        changes = {**changes, "holdout": None}
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(patched(changes)))
    refuse(["run", str(file), "--directory", str(tmp_path / "out")], message, capsys)
    assert not (tmp_path / "out").exists()


STRUCTURES = {
    "empty.cif": ("", "is empty"),
    "nan.xyz": ('1\nLattice="9 0 0 0 9 0 0 0 9"\nC nan 0 0\n', "not a number"),
    "words.cif": ("this is no structure\n", "cannot be read"),
    "short.xyz": ("3\n\nC 0 0 0\n", "cannot be read"),
    "atoms-on-atoms.xyz": (
        '2\nLattice="9 0 0 0 9 0 0 0 9" pbc="T T T"\nC 0 0 0\nC 0 0 0.01\n',
        "",
    ),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_run__structure_files(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = STRUCTURES[name]
    (tmp_path / name).write_text(text)
    changes = {
        "systems": {"x": {"file": name}},
        "seed_data": {"clusters": {"per_system": 1}},
        "holdout": None,
    }
    file = write_campaign(tmp_path / "campaign.yaml", **changes)
    refuse(["run", str(file), "--directory", str(tmp_path / "out")], message, capsys)
    assert not (tmp_path / "out").exists()


def test_run__places_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_campaign(tmp_path / "campaign.yaml")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    refuse(["run", str(file), "--directory", str(other)], "holds no campaign", capsys)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    refuse(["run", str(file), "--directory", str(file)], "is a file", capsys)
    refuse(["run", str(tmp_path / "no.yaml")], "does not exist", capsys)
    refuse(["status", str(other)], "holds no campaign", capsys)
    refuse(["report", str(tmp_path)], "nothing of a campaign", capsys)  # a file, not started yet
    refuse(["report", str(tmp_path / "nowhere")], "holds no campaign", capsys)


def test_build_and_label__mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(["build", "S_xx"], "S_xx", capsys)
    refuse(["blocks", str(tmp_path / "no.cif")], "does not exist", capsys)
    cell = tmp_path / "x.extxyz"
    assert main(["build", "S_ld", "-o", str(cell)]) == 0
    capsys.readouterr()
    refuse(["blocks", str(cell), "--charge", "2"], "--charge 0", capsys)
    refuse(["blocks", str(cell), "--index", "1"], "none of index 1", capsys)
    cell.write_text(cell.read_text() * 2)
    refuse(["blocks", str(cell)], "--index 0", capsys)
    assert main(["blocks", str(cell), "--index", "1"]) == 0
    capsys.readouterr()
    cell.unlink()
    refuse(["label", str(tmp_path / "no.xyz")], "does not exist", capsys)
    (tmp_path / "x.xyz").write_text("1\n\nH 0 0 0\n")
    refuse(["label", str(tmp_path / "x.xyz"), "--reference", "magic"], "magic", capsys)
    refuse(["init", str(tmp_path / "c.yaml"), "--example", "small"], "no example", capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.xyz"]


def test_usage__is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rnu", "x"])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------------------------- damage
def another_campaign(root: Path) -> None:
    settings = (root / "campaign.yaml").read_text()
    (root / "campaign.yaml").write_text(settings.replace("\nseed: ", "\nseed: 9"))


def truncated(root: Path) -> None:
    shard = next((root / "cycle-000" / "labels.zarr" / "forces").rglob("c/*/*"))
    shard.write_bytes(shard.read_bytes()[:-20])


def missing_shard(root: Path) -> None:
    next((root / "cycle-000" / "labels.zarr" / "forces").rglob("c/*/*")).unlink()


def flipped_byte(root: Path) -> None:
    shard = next((root / "cycle-000" / "labels.zarr" / "positions").rglob("c/*/*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))


def newer_format(root: Path) -> None:
    for file in (root / "cycle-000" / "labels.zarr").rglob("zarr.json"):
        file.write_text(file.read_text().replace('"mofal_format": 1', '"mofal_format": 99'))


def no_manifest(root: Path) -> None:
    shutil.rmtree(root / "cycle-000" / "labels.zarr" / "manifest")


def lost_metadata(root: Path) -> None:
    (root / "cycle-000" / "labels.zarr" / "zarr.json").unlink()


def edited_array(root: Path) -> None:
    file = root / "cycle-000" / "labels.zarr" / "forces" / "zarr.json"
    file.write_text(file.read_text().replace("float64", "float32"))


def broken_facts(root: Path) -> None:
    (root / "campaign.json").write_text("{")


def broken_weights(root: Path) -> None:
    file = root / "cycle-000" / "model" / "weights.pt"
    file.write_bytes(file.read_bytes()[:100])


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (another_campaign, "(seed: 3 -> 93)"),
    (truncated, "bytes, expected"),
    (missing_shard, "is missing"),
    (flipped_byte, "was changed after it was written"),
    (newer_format, "format 99"),
    (no_manifest, "no manifest"),
    (lost_metadata, "zarr.json"),
    (edited_array, "was changed after it was written"),
    (broken_facts, "is damaged"),
    (broken_weights, "restore it from a copy"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d.__name__ for d, _ in DAMAGE])
def test_run__damaged_store(
    damage: Callable[[Path], None],
    message: str,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last model and the report are lost; to make them again what is damaged is needed."""
    damage(copied)
    shutil.rmtree(copied / "cycle-001" / "model")
    for file in (copied / "holdout").rglob("*-001.zarr"):
        shutil.rmtree(file)
    shutil.rmtree(copied / "control")
    before = {k: v for k, v in listing(copied).items() if "/cycle-" in k}
    refuse(["run", str(copied)], message, capsys)
    assert {k: v for k, v in listing(copied).items() if "/cycle-" in k} == before
