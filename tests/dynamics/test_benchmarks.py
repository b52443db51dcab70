"""The benchmark of this room runs, at a tiny size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dynamics_sampling__runs(capsys):
    assert load("dynamics_sampling").main(["--size", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "walk / ASE" in out
    assert "GPa from fluctuations" in out
