"""What a real SLURM refuses or cannot give: it is said, and not tried for ever."""

from __future__ import annotations

import signal
import time

import pytest

from mofal.errors import ScheduleError
from mofal.schedule import Pools, doctor_slurm

from .driver import work
from .sections import events, make_settings


def test_sbatch__controller_away_at_the_start(lab, tmp_path, until):
    lab.signal_daemon("slurmctld", signal.SIGTERM)
    said = []
    with Pools.from_settings(make_settings(), directory=tmp_path, progress=said.append) as pools:
        handles = [pools.submit(task) for task in work(tmp_path, 2, 0.1)]
        until(lambda: any("squeue" in line for line in said))
        assert not any(handle.done for handle in handles)
        lab.start_daemon("slurmctld")
        assert [outcome.status for outcome in pools.as_completed(handles)] == ["done", "done"]


@pytest.mark.parametrize(
    ("pool", "words"),
    [({"partition": "nowhere"}, "[Ii]nvalid partition"), ({"walltime": "3h"}, "TimeLimit")],
)
def test_sbatch__request_that_this_cluster_never_takes(lab, tmp_path, pool, words):
    settings = make_settings(cpu=pool, poll_interval=0.2)
    with (
        Pools.from_settings(settings, directory=tmp_path) as pools,
        pytest.raises(ScheduleError, match=rf"SLURM refused its jobs \d times: .*{words}"),
    ):
        list(pools.run(work(tmp_path, 2, 0.1)))


def test_pools__jobs_that_die_on_arrival_are_not_submitted_for_ever(lab, tmp_path):
    settings = make_settings(cpu={"prologue": ["echo the module is not there >&2", "exit 3"]})
    with (
        Pools.from_settings(settings, directory=tmp_path) as pools,
        pytest.raises(ScheduleError, match="before a worker connected") as caught,
    ):
        list(pools.run(work(tmp_path, 3, 0.1)))
    assert "the module is not there" in str(caught.value)
    assert len(events(tmp_path, "submitted")) <= 6


def test_doctor_slurm__pools_that_work(lab, tmp_path):
    findings = list(doctor_slurm(make_settings(), folder=tmp_path))
    assert [finding[0] for finding in findings] == [
        "slurm commands",
        "slurm controller",
        "pool cpu",
        "way back from cpu",
    ]
    assert all(finding[1] for finding in findings), findings
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"partition": "nowhere"}, "no partition 'nowhere'"),
        ({"walltime": "3h"}, "walltime beyond"),
        ({"threads": 64}, "64 cores on nodes of 4"),
        ({"memory": "1TB"}, "more memory than a node has"),
        ({"gpus": 1}, "GPUs where the partition has none"),
    ],
)
def test_doctor_slurm__pools_that_cannot_be_had(lab, tmp_path, pool, words):
    findings = list(doctor_slurm(make_settings(cpu=pool), folder=tmp_path))
    name, ok, detail, mend = findings[-1]
    assert (name, ok) == ("pool cpu", False)
    assert words in detail
    assert mend


def test_doctor_slurm__worker_that_cannot_come_back(lab, tmp_path):
    settings = make_settings(cpu={"python": "/nowhere/python"})
    *_, (name, ok, detail, mend) = doctor_slurm(settings, folder=tmp_path, timeout=30)
    assert (name, ok) == ("way back from cpu", False)
    assert "/nowhere/python" in detail
    assert "python:" in mend


def test_doctor_slurm__no_controller(lab, tmp_path):
    lab.signal_daemon("slurmctld", signal.SIGTERM)
    start = time.monotonic()
    *_, (name, ok, detail, _) = doctor_slurm(make_settings(), folder=tmp_path)
    assert (name, ok) == ("slurm controller", False)
    assert detail
    assert time.monotonic() - start < 120
