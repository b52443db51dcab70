"""Fixtures of the reference room."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

PLUGINS = Path(__file__).with_name("plugins")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Isolated-atom energies of the tests stay out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


@pytest.fixture
def faulty(monkeypatch):
    """Make `faulty_calculators` importable, here and in processes started from here."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    paths = [str(PLUGINS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
    return "ase:faulty_calculators:Springs"


@pytest.fixture(scope="session")
def gpaw():
    """Skip where GPAW is not built."""
    if find_spec("gpaw") is None or which("mpirun") is None:
        pytest.skip("GPAW is not built: sh scripts/gpaw/install.sh .venv/bin/python")
