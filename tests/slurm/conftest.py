"""A real SLURM for all tests of this folder: started once, stopped at the end."""

from __future__ import annotations

import shutil
import tempfile
import time

import pytest

from .lab import SlurmLab, install


def pytest_collection_modifyitems(items):
    """Everything here is slow and needs SLURM."""
    for item in items:
        if "/tests/slurm/" in str(item.path):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def session_lab():
    """The SLURM of this session."""
    try:
        install()
    except Exception as error:
        pytest.skip(f"no SLURM here: {error}")
    # Not in pytest's folder: munge wants every folder above its socket open to all.
    folder = tempfile.mkdtemp(prefix="mofal-slurm-")
    made = SlurmLab(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(session_lab, monkeypatch):
    """SLURM with an empty queue, which sbatch and squeue of this process talk to."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, session_lab.environment[name])
    session_lab.restore()
    yield session_lab
    session_lab.restore()


@pytest.fixture
def until():
    """Wait for something, or fail; for as long as a busy machine may take."""

    def wait(condition, *, timeout=180.0, every=0.05):
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(every)
        return value

    return wait
