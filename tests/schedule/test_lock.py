"""One driver per campaign."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from mofal.errors import CampaignError
from mofal.schedule import CampaignLock

_HOLD = """
import sys, time
from mofal.schedule import CampaignLock
with CampaignLock(sys.argv[1], beat_interval=0.1):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that is the driver."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_lock__second_driver_is_refused(tmp_path, other):
    with pytest.raises(CampaignError, match=rf"pid {other.pid} on .* holds its lock"):
        CampaignLock(tmp_path).acquire()


def test_lock__killed_driver_does_not_strand_the_campaign(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with CampaignLock(tmp_path) as lock:
        assert lock.holder()["pid"] == os.getpid()


def test_lock__released_and_taken_again(tmp_path):
    for _ in range(2):
        with CampaignLock(tmp_path):
            pass
    assert CampaignLock(tmp_path).holder()["ended"]


def test_lock__twice_in_one_process(tmp_path):
    with CampaignLock(tmp_path), pytest.raises(CampaignError, match="one driver at a time"):
        CampaignLock(tmp_path).acquire()


def _elsewhere(tmp_path, age):
    facts = {"host": "another-host", "pid": 1, "started": "1", "time": time.time() - age}
    (tmp_path / "driver.json").write_text(json.dumps(facts))


def test_lock__driver_on_another_host_that_beats(tmp_path):
    _elsewhere(tmp_path, age=5.0)
    with pytest.raises(CampaignError, match=r"pid 1 on another-host .* still runs"):
        CampaignLock(tmp_path).acquire()


def test_lock__driver_on_another_host_that_is_silent(tmp_path):
    _elsewhere(tmp_path, age=1000.0)
    with CampaignLock(tmp_path):
        pass


def test_lock__refused_driver_leaves_the_other_alone(tmp_path):
    _elsewhere(tmp_path, age=5.0)
    before = (tmp_path / "driver.json").read_text()
    with pytest.raises(CampaignError):
        CampaignLock(tmp_path).acquire()
    assert (tmp_path / "driver.json").read_text() == before


def test_lock__reused_pid_is_somebody_else(tmp_path):
    # This process has the pid of the dead driver, but not its start time.
    facts = {"host": socket.gethostname(), "pid": os.getppid(), "started": "1", "time": time.time()}
    (tmp_path / "driver.json").write_text(json.dumps(facts))
    with CampaignLock(tmp_path):
        pass


def test_lock__heart_beats(tmp_path):
    with CampaignLock(tmp_path, beat_interval=0.05) as lock:
        first = lock.holder()["time"]
        time.sleep(0.2)
        assert lock.holder()["time"] > first


def test_lock__damaged_heartbeat_does_not_strand_the_campaign(tmp_path):
    (tmp_path / "driver.json").write_text('{"host": "x", "ti')
    with CampaignLock(tmp_path):
        pass
