"""What the tests of `mofal label`, `match` and `noise` share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mofal.cli import main

PLUGINS = Path(__file__).parents[1] / "reference" / "plugins"
SPRINGS = "ase:faulty_calculators:Springs"
PAIRS = "ase:ase.calculators.lj:LennardJones?epsilon=0.2&sigma=1.0&rc=3.0"
"""A real, cheap potential that ends at 3 Å, in crystals and clusters alike."""


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `faulty_calculators` importable, here and in processes started from here."""
    monkeypatch.syspath_prepend(str(PLUGINS))
    paths = [str(PLUGINS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))


def refuse(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and one message of a line or two that says what is wrong."""
    status = main(argv)
    out, err = capsys.readouterr()
    assert status == 1, out + err
    assert message in err, err
    assert err.startswith("mofal: ")
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) <= 3, err


def start(argv: list[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Run a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mofal", *argv],
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until something is so while the command still runs."""
    end = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> int:
    """Signal a command and wait for its end."""
    process.send_signal(number)
    return process.wait(timeout=120)


def calculated(counts: Path) -> Counter[str]:
    """How often each structure was calculated (`count_in` of the plug-in)."""
    return Counter(f.name.split("-")[0] for f in counts.iterdir())


def durable(records: Path) -> list[Any]:
    """Attempts on the disk."""
    from mofal.reference import LabelCache

    return list(LabelCache(records).records())


def waters(path: Path, n: int) -> np.ndarray:
    """Write so many shaken waters; return their positions, (n, 3, 3) Å."""
    from ase import Atoms
    from ase.io import read, write

    rng = np.random.default_rng(0)
    water = np.array([[0, 0, 0.1], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    frames = [Atoms("OH2", water + 0.05 * rng.normal(size=(3, 3))) for _ in range(n)]
    write(path, frames)
    return np.array([a.positions for a in read(path, ":")])
