"""Pools on a real SLURM: what they get, how they grow and shrink, what they survive."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mofal.schedule import (
    Pools,
    ScheduleSettings,
    Task,
    format_status,
    read_status,
)
from mofal.schedule.files import read_json

from . import tasks
from .driver import work
from .sections import CPU, events, make_content, make_settings

ROOT = Path(__file__).parent.parent.parent


def test_pools__kinds_go_where_they_belong(lab, tmp_path, until):
    pools = {
        "cpu": CPU,
        "dft": {
            "kinds": ["label"],
            "partition": "dft",
            "workers": 2,
            "mpi_ranks": 3,
            "memory": "900MB",
            "walltime": "10m",
        },
        "gpu": {**CPU, "kinds": ["train"], "partition": "gpu", "workers": 2, "gpus": 1},
    }
    with Pools.from_settings(make_settings(pools=pools), directory=tmp_path) as made:
        batch = []
        for kind in ("label", "walk"):
            for index in range(4):
                path = tmp_path / f"{kind}{index}.json"
                arguments = {"output": str(path), "seconds": 0.7, "trace": str(tmp_path / "trace")}
                batch.append(Task(kind, f"{index:04d}", tasks.label, arguments, path))
        batch.append(Task("label", "mpi", tasks.parallel, {"ranks": 3}))
        for index in range(2):  # both must be at work at the same time
            meeting = {"folder": str(tmp_path), "name": f"train{index}", "number": 2}
            batch.append(Task("train", f"{index:04d}", tasks.meet, meeting))
        outcomes = {o.task.name: o for o in made.run(batch)}
        assert {o.status for o in outcomes.values()} == {"done"}

        def seen(kind, name):
            return {
                outcome.summary[name]
                for task, outcome in outcomes.items()
                if task.startswith(kind) and task != "label-mpi"
            }

        assert seen("label", "SLURMD_NODENAME") == {"d1"}
        assert seen("train", "SLURMD_NODENAME") == {"g1"}
        assert seen("walk", "SLURMD_NODENAME") <= {"c1", "c2"}
        # One GPU per worker, and an MPI task has the whole allocation to itself.
        assert seen("train", "CUDA_VISIBLE_DEVICES") == {"0", "1"}
        assert seen("label", "SLURM_NTASKS") == {"3"}
        assert outcomes["label-mpi"].summary["ranks"] == ["0", "1", "2"], outcomes["label-mpi"]
        # Keys are the owner's alone, scripts hold paths only, connections are encrypted.
        for path in (tmp_path / "schedule" / "tls").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "schedule" / "tls").stat().st_mode) == 0o700
        facts = read_json(tmp_path / "schedule" / "scheduler.json")
        assert facts["address"].startswith("tls://127.0.0.1:")
        _refuses_strangers(facts["address"])
        # Idle jobs are given back, and end as completed, not as cancelled.
        until(lambda: not lab.jobs())
        listed = lab.run("squeue", "--noheader", "--states=all", "--format=%i %T").splitlines()
        states = dict(line.split() for line in listed)
        numbers = {event["job"]: event["slurm_id"] for event in events(tmp_path, "submitted")}
        served = {event["job"] for event in events(tmp_path, "worker")}
        assert len(served) >= 4
        assert {states[numbers[job]] for job in served} == {"COMPLETED"}
    status = read_status(tmp_path)
    assert status["kinds"]["train"]["done"] == 2
    assert status["node_hours"] > 0
    assert "dft" in format_status(status)


def _refuses_strangers(address):
    """Neither plain connections nor keys of somebody else get in."""
    from distributed import Client
    from distributed.security import Security

    for security, there in (
        (None, address.replace("tls:", "tcp:")),
        (Security.temporary(), address),
    ):
        with pytest.raises(OSError):
            Client(there, security=security, timeout=2)


def test_pools__lost_workers_and_jobs_are_replaced(lab, tmp_path, until):
    """A worker killed, a job cancelled, a pending job cancelled: nothing is computed twice but
    what they had in hand."""
    batch = work(tmp_path, 18, 1.0)
    with Pools.from_settings(make_settings(), directory=tmp_path) as pools:
        interrupted = 0
        for number, _ in enumerate(pools.run(batch), start=1):
            running = [job for job in lab.jobs() if job[2] == "RUNNING"]
            if number == 3:
                os.kill(_process(tmp_path), signal.SIGKILL)
                interrupted += 1
            elif number == 6:
                lab.run("scancel", running[0][0])
                interrupted += 1
            elif number == 9:
                # The next job has to wait; it is cancelled while it does.
                lab.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
                lab.run("scancel", running[-1][0])
                interrupted += 1
                pending = until(lambda: [job for job in lab.jobs() if job[2] == "PENDING"])
                lab.run("scancel", pending[0][0])
                lab.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    assert set(tasks.durables(tmp_path / "trace").values()) == {1}
    assert len(tasks.durables(tmp_path / "trace")) == 18
    assert sum(tasks.starts(tmp_path / "trace").values()) <= 18 + interrupted


def _process(folder, what="worker"):
    """A worker process of this campaign, or its scheduler."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"mofal.schedule.{what}".encode() in command and str(folder).encode() in command:
                return int(entry.name)
    raise AssertionError(f"no {what} there")


def _driver(folder, number, seconds, content):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.slurm.driver", str(folder), str(number), str(seconds)]
    return subprocess.Popen(
        [*command, json.dumps(content)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_driver__killed_and_its_jobs_serve_the_next(lab, tmp_path):
    content = make_content(idle_time=120.0)
    first = _driver(tmp_path, 14, 1.5, content)
    for _ in range(3):
        assert first.stdout.readline().startswith("done")
    jobs = {job[0] for job in lab.jobs()}
    first.kill()
    first.wait()
    first.stdout.close()
    second = _driver(tmp_path, 14, 1.5, content)
    out, _ = second.communicate(timeout=180)
    assert out.splitlines()[-1] == "FINISHED"
    # Nobody did anything twice: what the workers had in hand, they finished without a driver.
    assert set(tasks.starts(tmp_path / "trace").values()) == {1}
    assert len(tasks.durables(tmp_path / "trace")) == 14
    assert {event["slurm_id"] for event in events(tmp_path, "adopted")} == jobs
    assert not events(tmp_path, "submitted")[3:]  # the three of the first driver served both
    assert out.count("found") >= 3


@pytest.mark.parametrize("who", ["driver", "scheduler"])
def test_claims__what_is_in_hand_is_left_to_end(lab, tmp_path, until, who):
    """Nothing else waits, the next driver (or scheduler) has no worker yet: no reason to cancel
    the jobs, however long what they do takes."""
    content = make_content(cpu={"workers": 2}, idle_time=1.0)
    driver = _driver(tmp_path, 2, 10.0, content)
    until(lambda: len(tasks.starts(tmp_path / "trace")) == 2)
    if who == "driver":
        driver.kill()
        driver.wait()
        driver.stdout.close()
        driver = _driver(tmp_path, 2, 10.0, content)
    else:
        os.kill(_process(tmp_path, "scheduler"), signal.SIGKILL)
    out, _ = driver.communicate(timeout=180)
    assert out.splitlines()[-1] == "FINISHED"
    assert out.count("found") == 2
    assert set(tasks.starts(tmp_path / "trace").values()) == {1}


def test_driver__killed_for_good_and_its_jobs_end_by_themselves(lab, tmp_path, until):
    driver = _driver(tmp_path, 3, 1.0, make_content(linger=2.0))
    assert driver.stdout.readline().startswith("done")
    driver.kill()
    driver.wait()
    driver.stdout.close()
    until(lambda: not lab.jobs())


def test_controller__killed_and_restarted(lab, tmp_path):
    """Without a controller work goes on, and sbatch that fails is tried again."""
    batch = work(tmp_path, 12, 1.0)
    said = []
    with Pools.from_settings(
        make_settings(cpu={"workers": 2}), directory=tmp_path, progress=said.append
    ) as pools:
        for number, _ in enumerate(pools.run(batch), start=1):
            if number == 2:
                lab.signal_daemon("slurmctld")
                os.kill(_process(tmp_path), signal.SIGKILL)
            elif number == 6:
                lab.start_daemon("slurmctld")
    assert len(tasks.durables(tmp_path / "trace")) == 12
    assert sum(tasks.starts(tmp_path / "trace").values()) <= 13


def test_node__lost_with_everything_on_it(lab, tmp_path, until):
    lab.run("scontrol", "update", "NodeName=c2", "State=DRAIN", "Reason=test")
    batch = work(tmp_path, 10, 1.0)
    with Pools.from_settings(make_settings(cpu={"workers": 2}), directory=tmp_path) as pools:
        for number, _ in enumerate(pools.run(batch), start=1):
            if number == 3:
                assert {job[3] for job in lab.jobs("%i|%j|%T|%N")} == {"c1"}
                lab.run("scontrol", "update", "NodeName=c2", "State=RESUME")
                lab.kill_node("c1")
    assert len(tasks.durables(tmp_path / "trace")) == 10
    assert sum(tasks.starts(tmp_path / "trace").values()) <= 12


def test_walltime__nothing_is_started_that_would_not_end(lab, tmp_path):
    """Generations of jobs, and not one task is cut: each worker drains before its end."""
    settings = make_settings(cpu={"walltime": "24s", "workers": 2}, idle_time=1.0)
    with Pools.from_settings(settings, directory=tmp_path) as pools:
        outcomes = list(pools.run(work(tmp_path, 30, 1.5)))
    assert len(outcomes) == 30
    assert set(tasks.starts(tmp_path / "trace").values()) == {1}
    assert len(events(tmp_path, "submitted")) >= 3
    assert not events(tmp_path, "lost")


def test_handover__driver_in_a_job_passes_the_campaign_on(lab, tmp_path, until):
    content = make_content(
        cpu={"workers": 2},
        idle_time=120.0,
        # The successor is submitted after 20 s, and there is time for it to start.
        driver={"partition": "dft", "memory": "500MB", "walltime": "180s", "margin": "160s"},
    )
    from mofal.schedule import submit_driver

    command = [sys.executable, "-m", "tests.slurm.driver", str(tmp_path), "46", "1.0"]
    command.append(json.dumps(content))
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        submit_driver(ScheduleSettings.model_validate(content), directory=tmp_path, command=command)
    finally:
        del os.environ["PYTHONPATH"]
    log = tmp_path / "schedule" / "logs" / "driver-job.log"
    until(lambda: log.exists() and "FINISHED" in log.read_text(), timeout=400)
    assert "LEFT handed over to another driver" in log.read_text()
    assert len(events(tmp_path, "driver-start")) == 2
    assert len(events(tmp_path, "submitted")) == 2  # the workers served both
    # What they had in hand was not lost.
    assert set(tasks.starts(tmp_path / "trace").values()) == {1}
    assert len(tasks.durables(tmp_path / "trace")) == 46
    until(lambda: not [job for job in lab.jobs() if "driver" not in job[1]])
