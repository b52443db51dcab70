"""`mofal label`: several workers, progress, stop and resume, failures that are listed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from mofal.campaign.steps import label
from mofal.campaign.steps.label import local_schedule
from mofal.cli import main
from mofal.data import read, to_atoms
from mofal.reference import get_reference
from tests.campaign.services import (
    SPRINGS,
    calculated,
    durable,
    plugins,  # noqa: F401
    refuse,
    start,
    stop,
    wait_for,
    waters,
)


def command(file: Path, spec: str, *argv: str) -> list[str]:
    return ["label", str(file), "--reference", spec, *argv]


def check(file: Path, x: np.ndarray) -> None:
    """The labelled file holds the springs' energies and forces, in the order of the structures."""
    ds, n = read(f"{file}.labelled.extxyz"), len(x)
    assert set(ds["status"].values.tolist()) == {"converged"}
    np.testing.assert_allclose(ds["positions"].values.reshape(n, 3, 3), x, atol=1e-7)
    np.testing.assert_allclose(ds["forces"].values.reshape(n, 3, 3), -x, atol=1e-6)
    np.testing.assert_allclose(ds["energy"].values, 0.5 * (x**2).sum(axis=(1, 2)), atol=1e-6)


@pytest.mark.slow
def test_label__workers_killed_driver_stopped_and_killed(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run of 40 labels through every kind of stop: each label is paid for once."""
    n, workers = 40, 2
    file, counts, log = tmp_path / "x.extxyz", tmp_path / "counts", tmp_path / "log"
    counts.mkdir()
    x = waters(file, n)
    records = Path(f"{file}.labels")
    spec = f"{SPRINGS}?count_in={counts}&seconds=0.2"
    argv = command(file, spec, "--workers", str(workers))
    in_hand, history = 0, []

    def made() -> int:
        return len(list(records.glob("*/*.npz")))

    def remember() -> None:
        history.append(({a.structure_id for a in durable(records)}, calculated(counts)))

    # A worker is killed; the command goes on.
    process = start(argv, log, start_new_session=True)
    wait_for(lambda: made() >= 4, process, log)
    dice = random.Random(0)
    victims = [int(f.name.split("-")[1]) for f in counts.iterdir()]
    remember()
    os.kill(dice.choice(sorted(set(victims))), signal.SIGKILL)
    in_hand += 1
    wait_for(lambda: made() >= 12, process, log)
    # Ctrl-C: it says how to go on, with the status of an interrupt.
    remember()
    assert stop(process, signal.SIGINT) == 130
    assert "type the same command to go on" in log.read_text()
    in_hand += workers
    # Once more, killed.
    process = start(argv, log, start_new_session=True)
    wait_for(lambda: made() >= 20, process, log)
    remember()
    stop(process)
    in_hand += workers
    # And to the end.
    assert main(argv) == 0
    out = capsys.readouterr().out
    left = int(re.search(rf"{n} structures, (\d+) labels to make", out)[1])  # type: ignore[index]
    assert left <= n - 20
    assert f"{left}/{left} done, 0 failed" in out
    assert f"wrote {file}.labelled.extxyz: {n} labels" in out
    check(file, x)
    # Beside the structures only the two isolated atoms were calculated.
    ids = {a.structure_id for a in durable(records)}
    everything = calculated(counts)
    assert len(everything) == n + 2
    times = {s: everything[s] for s in ids}
    assert len(times) == n
    for done, before in history:
        assert done
        assert all(times[s] == before[s] for s in done)
    assert sum(times.values()) <= n + in_hand
    assert len(durable(records)) == n
    # Several workers took part at once.
    assert len({f.name.split("-")[1] for f in counts.iterdir()}) >= 2
    # The same again writes the same file and pays for nothing.
    assert main(argv) == 0
    assert "every label is there already" in capsys.readouterr().out
    assert calculated(counts) == everything
    check(file, x)


@pytest.mark.slow
def test_label__failures_are_listed_and_retried_when_asked(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ase.build import bulk, molecule
    from ase.io import write

    file = tmp_path / "x.extxyz"
    write(file, [molecule("H2O"), bulk("C", cubic=True)])
    argv = command(file, "ase:faulty_calculators:FiniteOnly", "--workers", "1")
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "structure 1: out_of_memory: MemoryError: 2 TB, please" in out
    assert "try them again with --retry-failed" in out
    labelled = read(f"{file}.labelled.extxyz")
    assert labelled["status"].values.tolist() == ["converged", "out_of_memory"]
    assert np.isnan(labelled["forces"].values[3:]).all()
    assert np.isfinite(labelled["forces"].values[:3]).all()
    # Not tried again unless asked to; then once more, and that is on record.
    assert main(argv) == 1
    assert "every label is there already" in capsys.readouterr().out
    records = Path(f"{file}.labels")
    assert len(durable(records)) == 2
    assert main([*argv, "--retry-failed"]) == 1
    assert sorted(a.status for a in durable(records)) == ["converged"] + ["out_of_memory"] * 2


@pytest.mark.slow
def test_label__quantum_mechanics(tmp_path: Path) -> None:
    """Labels of the command are those of the program itself."""
    from ase.io import read as ase_read
    from tblite.ase import TBLite

    file = tmp_path / "x.extxyz"
    waters(file, 3)
    target = tmp_path / "labels.extxyz"
    argv = command(file, "gfn1-xtb", "--workers", "1", "-o", str(target))
    assert main([*argv, "--records", str(tmp_path / "records")]) == 0
    ds = read(target)
    for k, atoms in enumerate(ase_read(file, ":")):
        atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
        np.testing.assert_allclose(
            ds["forces"].values[3 * k : 3 * k + 3], atoms.get_forces(), atol=1e-5
        )
        assert ds["energy"].values[k] == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    assert len(durable(tmp_path / "records")) == 3
    assert json.loads(ds.attrs["level_of_theory"])["method"] == "GFN1-xTB"


def test_local_schedule__ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gpaw")
    monkeypatch.setattr(label, "cpu_count", lambda: 8)
    assert local_schedule(None, ["gfn1-xtb"]).workers == 8
    assert local_schedule(None, ["gfn1-xtb", "gpaw:lcao?ranks=4"]).workers == 2
    assert local_schedule(None, ["gpaw:lcao?ranks=16"]).workers == 1
    assert local_schedule(3, ["gpaw:lcao?ranks=16"]).workers == 3


WRONG = [
    (["--workers", "0"], "--workers is 0"),
    (["--schedule", "nofile.yaml"], "nofile.yaml"),
    (["--reference", "gpaw:paper?rank=2"], "did you mean 'ranks'? There are h, vacuum"),
    (["--reference", "gpaw:papr"], "gpaw:papr is no preset; there are paper, coarse, lcao"),
    (["--reference", "ase:no.such:Thing"], "no.such"),
    (["-o", "nodir/x.extxyz"], "make it first: mkdir"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_label__mistakes(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    waters(Path("x.extxyz"), 1)
    refuse(["label", "x.extxyz", *argv], message, capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["x.extxyz"]


def test_label__records_that_are_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.extxyz"
    waters(file, 1)
    argv = ["label", str(file), "--records", str(file), "--workers", "1"]
    refuse(argv, "is a file; a label cache is a directory", capsys)


@pytest.mark.slow
def test_label__a_second_command_on_the_same_records_is_refused(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, log = tmp_path / "x.extxyz", tmp_path / "log"
    waters(file, 4)
    argv = command(file, f"{SPRINGS}?seconds=1", "--workers", "1")
    process = start(argv, log)
    records = Path(f"{file}.labels")
    wait_for(lambda: (records / "driver.json").exists(), process, log)
    refuse([*argv, "-o", str(tmp_path / "other.extxyz")], "in use", capsys)
    assert process.wait(timeout=120) == 0
    assert len(durable(records)) == 4


@pytest.mark.slow
def test_label__shared_caches(
    plugins: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    counts = tmp_path / "counts"
    for name in ("counts", "group"):
        (tmp_path / name).mkdir()
    spec = f"{SPRINGS}?count_in={counts}"
    for k, cache in enumerate(("group:rw", "group")):
        file = tmp_path / f"{k}.extxyz"
        x = waters(file, 3)
        assert main(command(file, spec, "--cache", str(tmp_path / cache), "--workers", "1")) == 0
        check(file, x)
    labels = durable(tmp_path / "group")
    assert len(labels) == 3
    assert [calculated(counts)[a.structure_id] for a in labels] == [1, 1, 1]
    assert durable(Path(f"{tmp_path}/1.extxyz.labels")) == []


def test_label__what_cannot_hold_a_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.extxyz"
    waters(file, 1)
    refuse(["label", str(file), "-o", str(tmp_path / "x.cif")], "holds no energies", capsys)
    refuse(["label", str(tmp_path)], "is a directory", capsys)
    refuse(["label", str(file), "--cache", str(tmp_path / "no")], "is no directory", capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.extxyz"]


def test_local_schedule__side_by_side_must_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    file = tmp_path / "x.extxyz"
    waters(file, 2)
    structures = read(file)
    reference = get_reference("gpaw:lcao")
    if reference.paw_data is None:
        pytest.skip("no PAW data")
    one = max(reference.cost(a).memory_GB for a in to_atoms(structures))
    monkeypatch.setattr(label, "cpu_count", lambda: 8)
    for there, workers in ((100.0, 8), (3.5, 3), (0.5, 1)):
        monkeypatch.setattr(label, "machine_memory_bytes", lambda t=there: t * one * 1e9)
        assert local_schedule(None, ["gpaw:lcao"], structures).workers == workers
