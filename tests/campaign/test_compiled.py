"""A campaign on compiled networks: refused early where they cannot be had, run to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mofal
from mofal.campaign.directory import Site
from mofal.campaign.steps.walk import bonds_of, start_frame
from mofal.cli import main
from mofal.data import open_group, read_json
from mofal.dynamics import walk, walk_length
from mofal.mechanics import Criteria, Curve, CurveSettings, potential_level
from mofal.mechanics.curve import Record
from mofal.potential import NequIPPotential
from mofal.reference.ase_calculator import limit_threads
from tests.campaign.conftest import SMALL, write_campaign

COMPILED: dict[str, Any] = {
    "seed_data": {"example": "uio66-gfn1", "frames": 24},
    # One layer: compiled in half a minute.
    "potential": {
        "architecture": {"r_max": 3.5, "n_layers": 1, "n_features": 4},
        "seed": {"learning_rate": 0.02, "ema_decay": 0.9, "max_epochs": 20},
        "cycle": {"max_epochs": 2},
        "final": {"learning_rate": 0.01, "ema_decay": 0.9, "max_epochs": 4},
    },
    # Walks of some seconds that nothing ends, with a checkpoint often.
    "exploration": {"engine": "compiled", "walks": 2, "length_fs": 200, "ramp_cycles": 1,
                    "ensemble": "nvt", "temperature_K": 100, "checkpoint_every": 5,
                    "max_temperature": 1000, "max_force": 1000, "min_distance": 0.2,
                    "bond_z": None, "bond_mean_z": None, "unfamiliar_quantile": 0},
    # A potential as poor as this one holds no crystal to the end of a relaxation.
    "mechanics": {"engine": "compiled", "systems": ["pristine"], "volumes": 5, "max_steps": 8},
    "holdout": None, "holding": {"runs": 1, "length_fs": 3, "engine": "compiled"},
    "control": False, "schedule": {"workers": 1},
}  # fmt: skip


@pytest.mark.parametrize("section", ["exploration", "holding", "mechanics", "potential.final"])
def test_dry_run__compiled_without_a_compiler(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    part: dict = {**SMALL.get(section, {}), "engine": "compiled"}
    if section == "potential.final":
        potential = SMALL["potential"]
        part = {**potential, "final": {**potential["final"], "engine": "compiled"}}
    file = write_campaign(tmp_path / "campaign.yaml", **{section.partition(".")[0]: part})
    monkeypatch.setenv("MOFAL_COMPILED", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert main(["run", str(file), "--directory", str(tmp_path / "a"), "--dry-run"]) != 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.strip()]
    assert len(lines) == 1
    assert f"{section}.engine is compiled" in lines[0]
    assert "g++" in lines[0]
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_campaign__compiled_killed_in_a_walk_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Walks against uninterrupted ones, mechanics against the eager network, one compilation."""
    cache, directory = tmp_path / "compiled", tmp_path / "small"
    monkeypatch.setenv("MOFAL_COMPILED", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = write_campaign(tmp_path / "campaign.yaml", **COMPILED)
    command = [sys.executable, "-m", "mofal", "run", str(file), "--directory", str(directory)]
    with (tmp_path / "log.txt").open("ab") as log:
        to_log: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **to_log)
        end = time.monotonic() + 900
        while not any("walk-0000.checkpoint.npz" in names for *_, names in os.walk(directory)):
            assert process.poll() is None, (tmp_path / "log.txt").read_text()
            assert time.monotonic() < end, "the walk never came"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (directory / "cycle-001" / "defective" / "walks.zarr").exists()
        assert subprocess.run(command, check=False, **to_log).returncode == 0, (
            tmp_path / "log.txt"
        ).read_text()

    campaign = mofal.open(directory)
    walks = open_group(directory / "cycle-001" / "defective" / "walks.zarr").load()
    samples = open_group(directory / "cycle-001" / "defective" / "samples.zarr").load()
    assert all(str(name).startswith("compiled, torch") for name in walks["walk_engine"].values)
    assert list(walks["walk_status"].values) == ["finished"] * 2
    first, last = campaign.potential(0), campaign.potential(1)
    assert first.model_hash != last.model_hash
    with limit_threads(1):
        found = uninterrupted(campaign.site, first)
        wanted = samples["positions"].values[: len(found)]
        np.testing.assert_array_equal(found, wanted)
        eager = first.evaluate(samples)
        compiled = first.compile().evaluate(samples)
    np.testing.assert_allclose(compiled["forces"], eager["forces"], atol=1e-4)
    np.testing.assert_allclose(compiled["energy"], eager["energy"], atol=1e-4)
    np.testing.assert_allclose(compiled["stress"], eager["stress"], atol=1e-6)

    place = directory / "mechanics"
    assert read_json(place / "engine.json")[last.model_hash]["engine"] == "compiled"
    (minimum,) = place.rglob("minimum.npz")
    one = Record.load(minimum)
    assert one.status == "not_converged"
    level = potential_level(directory / "cycle-001" / "model")
    curve = Curve(
        campaign.site.structure("pristine"),
        level,
        directory=tmp_path / "eager",
        settings=CurveSettings(
            volumes=5, seed=campaign.site.integer_seed("mechanics"), criteria=Criteria(max_steps=8)
        ),
        blocks=campaign.site.blocks("pristine"),
    )
    curve.prepare()
    curve.first().function(**curve.first().kwargs)
    other = Record.load(curve.point("minimum"))
    assert one.force_calls == other.force_calls
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-3)
    assert one.energy == pytest.approx(other.energy, abs=1e-2)
    for name in ("model-000", "model-001"):
        (runs,) = (directory / "holding" / "defective").glob(f"{name}-*-compiled/walks.zarr")
        (engine,) = open_group(runs).load()["walk_engine"].values
        assert str(engine).startswith("compiled")
    # Models of two cycles, walks, holding and mechanics: one network with the weights of each.
    assert len(list(cache.glob("*/about.json"))) == 1

    write_campaign(file, **{**COMPILED, "mechanics": {**COMPILED["mechanics"], "engine": "eager"}})
    capsys.readouterr()
    assert main(["run", str(file), "--directory", str(directory)]) != 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.strip()]
    assert "mechanics.engine is eager" in line


def uninterrupted(site: Site, potential: NequIPPotential) -> np.ndarray:
    """Where the first walk ends that nobody kills."""
    settings = site.config.exploration.walk_settings()
    done = walk(
        start_frame(site, 1, "defective", 0),
        calculator=potential.engine("compiled"),
        settings=settings,
        seed=site.seed("walk", 1, "defective", 0),
        length_fs=walk_length(1, settings),
        bonds=bonds_of(site, "defective", settings.temperature_K),
    )
    return np.asarray(done.frame["positions"].values)
