"""The benchmarks of walks that hold, and of walks that end, in their parts that can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mofal.commands.hold import hold_file
from mofal.errors import ConfigError

from .test_benchmarks import load


def test_recorded__a_walk_that_went_on_repeats_nothing(tmp_path: Path) -> None:
    """Frames 0 to 4, back to the checkpoint at 2, and on to others."""
    first = np.arange(5.0)[:, None, None] * np.ones((5, 2, 3))
    again = np.concatenate([first[2:3], first[3:] + 0.5])
    path = tmp_path / "walk.positions"
    path.write_bytes(first.tobytes() + again.tobytes() + b"cut")
    found = load("dynamics_ends").recorded(path, 2)
    assert found[:, 0, 0].tolist() == [0.0, 1.0, 2.0, 3.5, 4.5]


@pytest.mark.slow
def test_potential_holds__energy_without_a_thermostat(tmp_path: Path) -> None:
    pytest.importorskip("nequip")
    given = ["--nve", "--length", "20", "--directory", str(tmp_path)]
    single, double = load("potential_holds").main(given)
    # Heat of 600 K, 78 meV/atom in all: what of it goes astray is a thousand times less.
    for row in (single, double):
        assert 0.0 < row["rms"] < 0.5
        assert row["ps"] == pytest.approx(0.02)
        assert 200 < row["temperature_K"] < 1000
    # Two precisions of one potential, the same walk.
    assert single["temperature_K"] == pytest.approx(double["temperature_K"], rel=1e-3)
    assert single["rms"] == pytest.approx(double["rms"], rel=0.05)


def test_hold_file__an_engine_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected eager or compiled"):
        hold_file("S_pr", potential="model", engine="fast", directory=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
