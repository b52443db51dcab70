"""What a campaign is doing, from its directory alone."""

from __future__ import annotations

import json
import os
import time

import pytest

from mofal.schedule import (
    CampaignLock,
    EventLog,
    Pools,
    ScheduleSettings,
    StatusReader,
    Task,
    format_status,
    read_status,
)
from mofal.schedule.files import Layout, write_json

from . import tasks


def _log(tmp_path, *events):
    log = EventLog(tmp_path)
    for name, facts in events:
        log.write(name, **facts)
    log.close()


def _task(number, pool="dft", kind="label", **more):
    return {"kind": kind, "key": f"{number:04d}", "pool": pool, **more}


def test_read_status__nothing_there(tmp_path):
    status = read_status(tmp_path)
    assert status["kinds"] == {}
    assert status["since"] is None
    assert not status["driver"]["alive"]
    assert format_status(status) == "driver   none runs"


def test_read_status__tasks_by_kind_and_failures(tmp_path):
    _log(
        tmp_path,
        ("driver-start", {}),
        *(("queued", _task(i)) for i in range(6)),
        *(("start", _task(i)) for i in range(5)),
        ("end", _task(0, status="done", wall_time=3600.0)),
        ("end", _task(1, status="failed", reason="no convergence", wall_time=1800.0)),
        ("end", _task(2, status="quarantined", reason="it ended 3 workers")),
        ("lost", _task(3)),
        ("found", _task(7)),
    )
    status = read_status(tmp_path)
    counts = status["kinds"]["label"]
    assert {k: counts[k] for k in ("waiting", "running", "done", "failed", "quarantined")} == {
        "waiting": 2,
        "running": 1,
        "done": 1,
        "failed": 1,
        "quarantined": 1,
    }
    assert counts["found"] == 1
    assert counts["seconds"] == 5400.0
    assert [failure["key"] for failure in status["failures"]] == ["0001", "0002"]
    text = format_status(status)
    assert "failed  label 0001: no convergence" in text
    assert "2 tasks failed" in text


def test_read_status__the_next_driver_starts_anew(tmp_path):
    _log(
        tmp_path,
        ("driver-start", {}),
        ("queued", _task(0)),
        ("start", _task(0)),
        ("queued", _task(1)),
        ("start", _task(1)),
        ("end", _task(1, status="done", wall_time=1.0)),
        ("driver-start", {}),
    )
    counts = read_status(tmp_path)["kinds"]["label"]
    assert counts.get("done") == 1
    assert not counts.get("running")
    assert not counts.get("waiting")


def test_read_status__jobs_hours_and_expected_end(tmp_path):
    _log(
        tmp_path,
        ("driver-start", {}),
        ("job", {"job": "dft-0", "pool": "dft"}),
        ("job", {"job": "dft-1", "pool": "dft"}),
        ("job", {"job": "dft-2", "pool": "dft"}),
        ("job-end", {"job": "dft-0", "pool": "dft", "seconds": 7200.0, "cores": 8, "slots": 1}),
        *(("queued", _task(i)) for i in range(20)),
        *(("end", _task(i, status="done", wall_time=3600.0)) for i in range(4)),
    )
    layout = Layout(tmp_path / "schedule")
    layout.make()
    now = time.time()
    beat = {"started": now - 3600, "time": now, "cores": 8, "slots": 2, "ended": False}
    write_json(layout.beat("dft-1"), beat)
    assert read_status(tmp_path)["expected_end"] is None  # without a driver nothing ends
    with CampaignLock(tmp_path):
        status = read_status(tmp_path)
    pool = status["pools"]["dft"]
    assert (pool["jobs_running"], pool["jobs_pending"], pool["waiting"]) == (1, 1, 16)
    assert status["node_hours"] == pytest.approx(3.0, abs=0.01)
    assert status["core_hours"] == pytest.approx(24.0, abs=0.1)
    assert pool["slot_hours"] == pytest.approx(4.0, abs=0.01)
    assert pool["busy_hours"] == pytest.approx(4.0)
    # 16 labels of an hour each on two workers.
    assert (status["expected_end"] - now) / 3600 == pytest.approx(8.0, rel=0.1)
    text = format_status(status)
    assert "100 %" in text
    assert "(in 8 h" in text


def test_read_status__why_jobs_wait(tmp_path, monkeypatch):
    """A stand-in for squeue says what a real one does."""
    queue = tmp_path / "squeue"
    queue.write_text(
        "#!/bin/sh\n"
        "echo '7|mofal-x-dft-0|PENDING|Priority'\n"
        "echo '8|mofal-x-dft-1|PENDING|QOSMaxJobsPerUserLimit'\n"
        "echo '9|mofal-x-dft-2|PENDING|Priority'\n"
    )
    queue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    jobs = [("job", {"job": f"dft-{i}", "pool": "dft"}) for i in range(3)]
    sent = [("submitted", {"job": f"dft-{i}", "slurm_id": str(7 + i)}) for i in range(3)]
    _log(tmp_path, *jobs, *sent)
    status = read_status(tmp_path)
    assert status["pools"]["dft"]["reasons"] == {"Priority": 2, "QOSMaxJobsPerUserLimit": 1}
    words = "dft         jobs wait in SLURM's queue: Priority 2, QOSMaxJobsPerUserLimit 1"
    assert words in format_status(status)


def test_read_status__job_that_is_silent_is_not_running(tmp_path):
    _log(tmp_path, ("job", {"job": "dft-1", "pool": "dft"}))
    layout = Layout(tmp_path / "schedule")
    layout.make()
    beat = {"started": time.time() - 900, "time": time.time() - 600, "cores": 1}
    write_json(layout.beat("dft-1"), beat)
    assert read_status(tmp_path)["pools"]["dft"]["jobs_running"] == 0


def test_read_status__driver_alive_and_dead(tmp_path):
    with CampaignLock(tmp_path):
        status = read_status(tmp_path)
        assert status["driver"]["alive"]
        assert f"pid {os.getpid()}" in format_status(status)
    status = read_status(tmp_path)
    assert not status["driver"]["alive"]
    assert "none runs; the last one was seen" in format_status(status)


def test_status_reader__goes_on_where_it_stopped(tmp_path):
    reader = StatusReader(tmp_path)
    log = EventLog(tmp_path)
    log.write("queued", **_task(0))
    assert reader.read()["kinds"]["label"] == {"waiting": 1, "seconds": 0}
    log.write("end", **_task(0, status="done", wall_time=2.0))
    assert reader.read()["kinds"]["label"] == {"done": 1, "seconds": 2.0}
    log.close()


def test_status_reader__line_that_is_being_written(tmp_path):
    log = EventLog(tmp_path)
    log.write("queued", **_task(0))
    log.close()
    line = json.dumps({"t": 1.0, "event": "queued", **_task(1)})
    reader = StatusReader(tmp_path)
    with log.path.open("a") as stream:
        stream.write(line[:20])
        stream.flush()
        assert reader.read()["kinds"]["label"]["waiting"] == 1
        stream.write(line[20:] + "\n")
        stream.flush()
        assert reader.read()["kinds"]["label"]["waiting"] == 2


def test_read_status__of_a_real_run(tmp_path):
    with Pools.from_settings(ScheduleSettings(backend="inline"), directory=tmp_path) as pools:
        list(pools.run([Task("walk", "x", tasks.fail), Task("walk", "y", tasks.summary)]))
    counts = read_status(tmp_path)["kinds"]["walk"]
    assert (counts["done"], counts["failed"]) == (1, 1)


def test_status_reader__many_events_are_read_quickly(tmp_path):
    log = EventLog(tmp_path)
    for i in range(20_000):
        log.write("queued", **_task(i))
        log.write("end", **_task(i, status="done", wall_time=1.0))
    log.close()
    reader = StatusReader(tmp_path)
    start = time.process_time()
    assert reader.read()["kinds"]["label"]["done"] == 20_000
    first = time.process_time() - start
    start = time.process_time()
    reader.read()
    assert time.process_time() - start < first / 3
    assert first < 10.0
