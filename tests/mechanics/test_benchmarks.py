"""The benchmarks of this room at their tiny size, so that they do not rot."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mechanics_ipi__runs_without_it_or_with_it(capsys, monkeypatch):
    """Where i-PI is missing, it says so; mofal keeps the volume."""
    module = load("mechanics_ipi")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert module.main(["--size", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "pip install ipi" in out
    assert float(re.search(r"dV/V\|\s+(\S+)", out)[1]) < 1e-12


def test_mechanics_uio66__both_precisions_walk_alike(capsys):
    """The same weights: over 20 fs the conserved energies differ by rounding only."""
    assert load("mechanics_uio66").main(["--size", "tiny"]) == 0
    found = re.findall(r"(float\d+): \S+ ± \S+ µeV/ps/atom, rms about the line (\S+)",
                       capsys.readouterr().out)  # fmt: skip
    assert [name for name, _ in found] == ["float32", "float64"]
    assert abs(float(found[0][1]) - float(found[1][1])) < 0.1
