"""`kill -9` of the driver in every stage, then the same command: nothing is lost or paid twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mofal
from mofal.schedule.events import read_events
from tests.campaign.conftest import write_campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKERS = 1


def start(file: Path, directory: Path) -> subprocess.Popen[bytes]:
    log = (directory.parent / "log.txt").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "mofal", "run", str(file), "--directory", str(directory)],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 400
    while not condition():
        if process.poll() is not None:
            raise AssertionError("the driver ended before it could be killed")
        assert time.monotonic() < end, "the moment to kill at never came"
        time.sleep(0.02)


def running(directory: Path, kind: str) -> Callable[[], bool]:
    """Whether a task of a kind has started since now, and not ended."""
    events = directory / "schedule" / "events.jsonl"
    seen = events.stat().st_size if events.exists() else 0

    def look() -> bool:
        if not events.exists():
            return False
        with events.open("rb") as handle:
            handle.seek(seen)
            new = handle.read().decode(errors="replace")
        return any(f'"{kind}"' in line and '"start"' in line for line in new.splitlines())

    return look


def records(directory: Path) -> int:
    return sum(1 for _ in (directory / "label-records").rglob("*.npz"))


def test_run__killed_in_each_stage_ends_as_if_it_had_not_been(
    finished: Path, tmp_path: Path
) -> None:
    """With one worker, killed six times, against two workers and no kill: the same campaign."""
    directory = tmp_path / "small"
    file = write_campaign(tmp_path / "campaign.yaml", schedule={"workers": WORKERS})
    moments: list[tuple[str, Callable[[], Callable[[], bool]]]] = [
        ("seed labels", lambda: lambda: records(directory) >= 2),
        ("seed training", lambda: running(directory, "train")),
        ("walks", lambda: running(directory, "walk")),
        ("selection", lambda: running(directory, "select")),
        ("cluster labels", lambda: running(directory, "label")),
        ("last training", lambda: running(directory, "train")),
    ]
    durable: dict[str, int] = {}
    for name, moment in moments:
        condition = moment()
        process = start(file, directory)
        wait(condition, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path, size in durable.items():
            assert Path(path).stat().st_size == size, f"a durable label changed at {name}"
        durable = {str(p): p.stat().st_size for p in (directory / "label-records").rglob("*.npz")}
    process = start(file, directory)
    assert process.wait(timeout=600) == 0, (tmp_path / "log.txt").read_text()

    undisturbed, disturbed = mofal.open(finished), mofal.open(directory)
    for step in disturbed.site.steps():
        assert disturbed.site.exists(step.makes), step.name
    one, other = undisturbed.labels.load(), disturbed.labels.load()
    assert one["structure_id"].values.tolist() == other["structure_id"].values.tolist()
    np.testing.assert_allclose(one["energy"].values, other["energy"].values, atol=1e-6)
    np.testing.assert_allclose(one["forces"].values, other["forces"].values, atol=1e-4)
    same = np.array_equal(one["forces"].values, other["forces"].values)
    for cycle in (0, 1) if same else ():  # the same labels give the same bits
        assert undisturbed.potential(cycle).model_hash == disturbed.potential(cycle).model_hash

    # Each label is recorded once; a label started more than once was in flight at a kill.
    attempts = Counter(disturbed.attempts["structure_id"].values.tolist())
    assert set(attempts.values()) == {1}
    started = Counter(
        event["key"]
        for event in read_events(directory)
        if event["event"] == "start" and event["kind"] == "label"
    )
    again = sum(n - 1 for n in started.values())
    assert again <= len(moments) * WORKERS
    assert not list(directory.rglob(".*.tmp"))


def test_run__second_driver_is_refused(finished: Path, tmp_path: Path) -> None:
    directory = tmp_path / "small"
    file = write_campaign(tmp_path / "campaign.yaml", schedule={"workers": 1})
    first = start(file, directory)
    try:
        wait(lambda: (directory / "campaign.json").exists(), first)
        second = subprocess.run(
            [sys.executable, "-m", "mofal", "run", str(file), "--directory", str(directory)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert second.returncode == 1
        assert "Traceback" not in second.stderr
        assert str(first.pid) in second.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
