"""One small real campaign, run once for all tests that look at it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "systems": {
        "pristine": {"build": "S_pr", "cell": "primitive", "explore": False},
        "defective": {"build": "S_ld", "cell": "primitive"},
    },
    "seed_data": {"perturbed": {"system": "pristine", "frames": 4}},
    "cycles": 1,
    "reference": {"name": "gfn1-xtb"},
    "potential": {
        "architecture": {"r_max": 3.5, "n_layers": 2, "n_features": 4},
        "seed": {"learning_rate": 0.02, "ema_decay": 0.9, "energy_shift": "mean", "max_epochs": 40},
        "cycle": {"max_epochs": 3},
        "final": {"learning_rate": 0.01, "ema_decay": 0.9, "max_epochs": 12},
    },
    "density": {"max_components": 2},
    "exploration": {"walks": 2, "length_fs": 30, "barostat_fs": 20, "ramp_cycles": 1},
    "selection": {"clusters": 2},
    "holdout": {"frames": 1},
    "holding": {"runs": 2, "length_fs": 10},
    "control": True,
    "schedule": {"workers": 2},
}
"""A whole campaign on real labels, as small as can be: it shows that it runs, not more."""


BASE = """\
name: a
seed: 1
systems:
  p: {build: S_pr, cell: primitive}
seed_data:
  perturbed: {system: p, frames: 2}
cycles: 1
reference: {name: gfn1-xtb, max_force_eV_per_A: 100}
"""
"""A small campaign file as text, for tests of its text."""


@contextlib.contextmanager
def in_time(seconds: int = 30) -> Iterator[None]:
    """End what hangs; the limit holds on a busy machine too."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write_campaign(path: Path, **changes: Any) -> Path:
    """Write a campaign file."""
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the small campaign, run through the command line; not to be changed.

    Test processes side by side share one: who comes second waits for it.
    """
    from mofal.cli import main

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    place = place / "finished-campaign"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            file = write_campaign(place / "campaign.yaml")
            assert main(["run", str(file), "--directory", str(place / "small")]) == 0
            (place / "done").touch()
    return place / "small"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished campaign that a test may damage."""
    target = tmp_path / "small"
    shutil.copytree(finished, target)
    return target
