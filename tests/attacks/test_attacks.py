"""Faults at the level of system calls: nothing is lost, nothing is different, each has its reason.

Hundreds more, drawn from seeds, are made by benchmarks/attacks.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.attacks import Attack, Range, build_shim
from tests.attacks.campaigns import CAMPAIGN, LABELS

SCRIPT = """
import os, sys
place = sys.argv[1]
try:
    with open(os.path.join(place, "file.tmp"), "wb", buffering=0) as out:
        print("wrote", out.write(b"0123456789"))
        print("wrote", out.write(b"0123456789"))
        os.fsync(out.fileno())
    os.rename(os.path.join(place, "file.tmp"), os.path.join(place, "file"))
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    try:
        return build_shim(tmp_path_factory.mktemp("shim"))
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("faults", "out", "files"),
    [
        ({"KIND": "ENOSPC", "CALLS": "write"}, ["No space left on device"], {"file.tmp": 0}),
        (
            {"KIND": "SHORT", "CALLS": "write", "TIMES": "2"},
            ["wrote 5", "No space left on device"],
            {"file.tmp": 5},
        ),
        (
            {"KIND": "EIO", "CALLS": "sync", "MATCH": "file.tmp"},
            ["wrote 10", "wrote 10", "Input/output error"],
            {"file.tmp": 20},
        ),
        ({"KIND": "EROFS", "CALLS": "open"}, ["Read-only file system"], {}),
        ({"KIND": "KILL", "CALLS": "rename"}, ["wrote 10", "wrote 10"], {"file.tmp": 20}),
        ({"KIND": "KILLED", "CALLS": "rename"}, ["wrote 10", "wrote 10"], {"file": 20}),
        ({"KIND": "ENOSPC", "CALLS": "write", "AT": "3"}, ["wrote 10", "wrote 10"], {"file": 20}),
        (
            {"KIND": "ENOSPC", "CALLS": "write", "MATCH": "other"},
            ["wrote 10", "wrote 10"],
            {"file": 20},
        ),
        (
            {"KIND": "EACCES", "CALLS": "open", "SECONDS": "60", "WIDE": "open,write"},
            ["Permission denied"],
            {},
        ),
    ],
)
def test_shim__lets_the_chosen_call_fail(shim, tmp_path, faults, out, files):
    """A tool that nothing came of would make every attack pass."""
    place = tmp_path / "place"
    place.mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULT_DIR": str(place)}
    environment |= {f"FAULT_{name}": value for name, value in faults.items()}
    done = subprocess.run(
        [sys.executable, "-u", "-c", SCRIPT, str(place)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:-1] == out
    assert (done.returncode == -9) == faults["KIND"].startswith("KILL")
    assert {p.name: p.stat().st_size for p in place.iterdir()} == files


@pytest.fixture(scope="module")
def labels(shim, tmp_path_factory):
    with Range(tmp_path_factory.mktemp("labels"), LABELS) as made:
        yield made


@pytest.fixture(scope="module")
def campaign(shim, tmp_path_factory):
    with Range(tmp_path_factory.mktemp("campaign"), CAMPAIGN) as made:
        yield made


def kept(place: Range, attack: Attack) -> None:
    """One attack, and the promise."""
    verdict = place.run(attack)
    log = place.folder / f"seed-{attack.seed}" / "log"
    assert not verdict.wrong, f"{attack.name}: {verdict.statuses}: {log.read_text()[-2000:]}"
    assert verdict.met, f"{attack.name} met no call"


RECORD = ".npz"


@pytest.mark.slow
def test_range__sees_what_is_different(labels):
    """A comparison that sees nothing would keep every promise."""
    folder = labels.folder / "other"
    shutil.copytree(labels.quiet, folder)
    assert labels.differences(folder) == []
    file = folder / "campaign" / "out.extxyz"
    whole = file.read_text()
    atoms = whole.rstrip().split("\n")
    words = atoms[-1].split()
    atoms[-1] = " ".join([words[0], str(float(words[1]) + 1e-7), *words[2:]])
    file.write_text("\n".join(atoms) + "\n")
    assert labels.differences(folder)
    file.write_text(whole)
    next(iter((folder / "campaign" / "records").glob("*/*.npz"))).unlink()
    assert any("records differ" in line for line in labels.differences(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        Attack(1, "ENOSPC", "write", "records/", 1, 0.0),
        Attack(2, "SHORT", "write", "records/", 8, 0.0),
        Attack(3, "EROFS", "link", RECORD, 2, 1.0),
        Attack(4, "EIO", "sync", "records/", 3, 0.0),
        Attack(5, "KILL", "link", RECORD, 2, 0.0),
        Attack(6, "KILLED", "link", RECORD, 2, 0.0),
        Attack(7, "flip", "link", RECORD, 3, 0.0),
        Attack(8, "vanish", "link", RECORD, 3, 0.0),
        Attack(9, "EACCES", "look", "structures", 5, 1.0),
    ],
    ids=lambda attack: attack.kind,
)
def test_labels__whatever_fails(labels, attack):
    kept(labels, attack)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        Attack(1, "ENOSPC", "link", "label-records", 2, 1.0),
        Attack(2, "KILL", "rename", "cycle-001/model", 1, 0.0),
    ],
    ids=lambda attack: attack.kind,
)
def test_campaign__whatever_fails(campaign, attack):
    kept(campaign, attack)


@pytest.mark.slow
def test_attacks__tiny(shim, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))
    from attacks import main

    assert main(["--size", "tiny"]) == 0
