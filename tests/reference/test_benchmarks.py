"""The benchmarks of this room run, at a tiny size."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_records__runs(capsys):
    assert load("reference_records").main(["--size", "tiny"]) == 0
    assert "record / label" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.gpaw
@pytest.mark.parametrize("name", ["gpaw_memory", "gpaw_noise"])
def test_gpaw_benchmarks__run(gpaw, capsys, name):
    assert load(name).main(["--size", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "0 of 1 outside" in out if name == "gpaw_memory" else "shift" in out
