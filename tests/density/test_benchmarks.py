"""The benchmarks of this room at their tiny size, so that they do not rot."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_density_speed__tiny(capsys):
    module = _module("density_speed")
    results = module.main(["--size", "tiny", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert len(results) == len(module.CASES) - 1  # the line nequip wants a file
    assert all(r["em"] > 0 and r["score"] > 0 and r["share"] >= 0 for r in results)
    assert printed.count("one thread,") == 2
    assert "Gflop/s" in printed


def test_density_scale__parts():
    """The rows of the benchmark are the same however they are cut, and the fit is timed."""
    module = _module("density_scale")
    assert module.rows_of(10, 3).shape == (10, 16)
    assert (module.rows_of(10, 3) == module.rows_of(10, 3)).all()
    wall, cpu = module._fit(module.rows_of(2000, 0), 3)
    assert len(wall) == len(cpu) == 3
    assert min(wall) > 0


@pytest.mark.slow
def test_density_scale__tiny(capsys, tmp_path, monkeypatch):
    module = _module("density_scale")
    # The processes it starts import it by name.
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(__import__("sys").modules, "density_scale", module)
    found = module.main(["--size", "tiny", "--directory", str(tmp_path)])
    printed = capsys.readouterr().out
    assert found["on_disk"] > 0
    assert 0 < found["peak_GB"] < 2
    assert "10¹⁰ rows in 10000 chunks" in printed
    assert list(tmp_path.iterdir()) == []
