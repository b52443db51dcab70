"""`mofal noise`: the floor that was put in is found, nothing is paid for twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.io import write

from mofal.cli import main
from mofal.commands.noise import read_noise_floor
from mofal.errors import ConfigError
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

RIPPLE_meV = 20.0


def noise(file: Path, place: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    status = main(["noise", str(file), "--directory", str(place), "--workers", "1", *argv])
    return status, json.loads((place / "noise.json").read_text())


@pytest.mark.slow
def test_noise__finds_the_ripple_that_was_put_in(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Forces that ripple with the place of an atom: a sine of random phase, so its RMS."""
    file, place = tmp_path / "x.extxyz", tmp_path / "noise"
    write(file, [molecule("C6H6"), molecule("CH3CH2OH")])
    level = f"ase:faulty_calculators:EggBox?ripple={RIPPLE_meV / 1000}"
    status, found = noise(file, place, "--reference", level, "--repeats", "6")
    out = capsys.readouterr().out
    assert status == 0
    rms = RIPPLE_meV / np.sqrt(2)
    for factor in ("shift", "rotation", "combined"):
        assert found[factor]["floor"] == pytest.approx(rms, rel=0.15)
        assert found[factor]["pair_rmse"] == pytest.approx(np.sqrt(2) * found[factor]["floor"])
        assert found[factor]["largest"] <= 2 * RIPPLE_meV
        assert found[factor]["repeats"] == 2 * (6 + 1)
        assert f"{found[factor]['floor']:.2f}" in out
    assert "grid" not in found  # this level has no grid spacing to vary
    both = np.hypot(found["shift"]["floor"], found["rotation"]["floor"])
    assert found["quadrature"]["floor"] == pytest.approx(both)
    floor, level_hash, spec = read_noise_floor(place)
    assert (floor, spec) == (found["combined"]["floor"], level)
    assert read_noise_floor(place / "noise.json") == (floor, level_hash, spec)


@pytest.mark.slow
def test_noise__none_in_a_method_without_a_grid(tmp_path: Path) -> None:
    """GFN1-xTB feels neither shifts nor turns beyond its own convergence."""
    file = tmp_path / "x.extxyz"
    waters(file, 2)
    status, found = noise(file, tmp_path / "noise", "--reference", "gfn1-xtb", "--repeats", "2")
    assert status == 0
    assert 0 <= found["combined"]["floor"] < 0.1


@pytest.mark.slow
@pytest.mark.gpaw
def test_noise__of_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real GPAW on a coarse grid: every factor is there, and it is no small one."""
    from importlib.util import find_spec
    from shutil import which

    if find_spec("gpaw") is None or which("mpirun") is None:
        pytest.skip("GPAW is not built: sh scripts/gpaw/install.sh .venv/bin/python")
    file = tmp_path / "x.extxyz"
    write(file, molecule("H2O"))
    level = "gpaw:lcao?h=0.26&vacuum=2.5&poisson_extension=2"
    status, found = noise(file, tmp_path / "noise", "--reference", level, "--repeats", "1")
    assert status == 0, capsys.readouterr().out
    factors = {"shift", "rotation", "grid", "combined", "quadrature"}
    assert set(found) == factors | {"reference", "level_hash"}
    levels = {a.level_hash for a in durable(tmp_path / "noise")}
    assert len(levels) == 2  # its own spacing, and one other
    floors = {f: found[f]["floor"] for f in ("shift", "rotation", "combined")}
    assert all(1 < floor < 1000 for floor in floors.values()), floors


@pytest.mark.slow
def test_noise__killed_and_started_again(plugins: None, tmp_path: Path) -> None:  # noqa: F811
    file, counts, log = tmp_path / "x.extxyz", tmp_path / "counts", tmp_path / "log"
    counts.mkdir()
    waters(file, 2)
    place = tmp_path / "noise"
    spec = f"{SPRINGS}?count_in={counts}&seconds=0.3"
    argv = ["noise", str(file), "--reference", spec, "--repeats", "2"]
    argv += ["--directory", str(place), "--workers", "2"]
    process = start(argv, log)
    wait_for(lambda: len(list(place.glob("*/*.npz"))) >= 3, process, log)
    done = {a.structure_id for a in durable(place)}
    before = calculated(counts)
    stop(process)
    assert main(argv) == 0
    times = calculated(counts)
    assert len(times) == 2 * (1 + 3 * 2)  # shift, rotation, combined
    assert all(times[s] == before[s] == 1 for s in done)
    assert sum(times.values()) <= len(times) + 2  # what two workers had in hand


@pytest.mark.slow
def test_noise__labels_that_fail_are_left_out(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ase.build import bulk

    file = tmp_path / "x.extxyz"
    write(file, [molecule("H2O"), bulk("C", cubic=True)])
    level = "ase:faulty_calculators:FiniteOnly"
    status, found = noise(file, tmp_path / "noise", "--reference", level, "--repeats", "2")
    out = capsys.readouterr().out
    assert status == 1
    assert "labels failed and are left out" in out
    assert found["shift"]["repeats"] == 3
    assert found["combined"]["floor"] < 1e-6
    write(file, bulk("C", cubic=True))
    argv = ["noise", str(file), "--reference", level, "--directory", str(tmp_path / "noise")]
    refuse([*argv, "--repeats", "2", "--workers", "1"], "no structure has two converged", capsys)


WRONG = [
    (["--repeats", "0"], "--repeats is 0"),
    (["--seed", "-1"], "--seed is -1"),
    (["--workers", "0"], "--workers is 0"),
    (["--reference", "gfn9"], "no reference is called 'gfn9'"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_noise__mistakes(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, place = tmp_path / "x.extxyz", tmp_path / "noise"
    waters(file, 1)
    given = ["noise", str(file), "--directory", str(place), "--reference", "gfn1-xtb"]
    refuse([*given, *argv], message, capsys)
    assert not place.exists()


def test_noise__mistakes_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.extxyz"
    given = ["noise", str(file), "--reference", "gfn1-xtb"]
    refuse(given, "x.extxyz does not exist", capsys)
    file.write_text("")
    refuse(given, "empty", capsys)
    waters(file, 1)
    refuse([*given, "--directory", str(file)], "is a file", capsys)
    table = tmp_path / "noise.json"
    table.write_text(json.dumps({"shift": {"floor": None}}))
    with pytest.raises(ConfigError, match="does not say which level"):
        read_noise_floor(tmp_path)
