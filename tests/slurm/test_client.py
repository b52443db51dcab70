"""A campaign on somebody's own `SLURMCluster`, on a real SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

import mofal
from mofal.schedule import read_events

from . import tasks
from .campaigns import command, compare, content, records

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]


def _write(folder):
    """The campaign of the other tests without its pools; labels long enough to be cut."""
    folder.mkdir()
    campaign = content(folder / "trace") | {"schedule": {"backend": "inline"}}
    campaign["reference"]["name"] = campaign["reference"]["name"].replace("=0.5", "=1.5")
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(campaign))
    return file


def _process(folder, *arguments):
    """A driver in a process of its own; its campaign notes labels beside it."""
    trace = {"MOFAL_TEST_TRACE": str(folder / "trace"), "PYTHONPATH": str(ROOT)}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            arguments, env={**os.environ, **trace}, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )


@pytest.fixture
def cluster(lab, tmp_path, monkeypatch):
    """No job until something waits; then up to two of one worker."""
    # Its import writes a file into the user's configuration.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("dask.config.PATH", str(tmp_path / "dask"))
    jobqueue = pytest.importorskip("dask_jobqueue")
    local = {"dashboard_address": "127.0.0.1:0"}
    environment = f"PYTHONPATH={ROOT} MOFAL_TEST_TRACE={tmp_path / 'slurm' / 'trace'}"
    with jobqueue.SLURMCluster(
        queue="cpu",
        cores=1,
        processes=1,
        memory="1500MB",
        walltime="00:10:00",
        interface="lo",
        scheduler_options=local,
        worker_extra_args=["--dashboard-address", "127.0.0.1:0"],
        job_script_prologue=[f"export {environment}"],
        local_directory=str(tmp_path),
        log_directory=str(tmp_path / "logs"),
    ) as made:
        made.adapt(minimum=0, maximum=2, interval="500ms", wait_count=400)
        yield made


def _cut(lab, trace, done):
    """Give the first job one minute, once a label is in hand; note when SLURM has ended it."""
    while not trace.exists():
        time.sleep(0.2)
    job = min((job[0] for job in lab.jobs() if job[2] == "RUNNING"), key=int)
    lab.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    while True:
        state = lab.run("squeue", "-h", "--states=all", "-j", job, "--format=%T")
        if state not in ("RUNNING", "COMPLETING"):
            done.append((job, state))
            return
        time.sleep(0.2)


def test_campaign__on_a_cluster_that_adapts_from_nothing(lab, cluster, tmp_path):
    """Through a walltime: the same data as without Dask, and as on one worker of four threads."""
    from distributed import Client

    folders = {name: tmp_path / name for name in ("slurm", "plain", "threads")}
    files = {name: _write(folder) for name, folder in folders.items()}
    others = [
        _process(folders["plain"], *command(files["plain"])),
        _process(
            folders["threads"],
            *(sys.executable, "-m", "tests.slurm.session", str(files["threads"])),
            *(str(folders["threads"] / "campaign"), "1", "4"),
        ),
    ]
    assert lab.jobs() == []
    ended, said = [], []
    cutter = threading.Thread(
        target=_cut, args=(lab, folders["slurm"] / "trace", ended), daemon=True
    )
    cutter.start()
    with Client(cluster, set_as_default=False) as client:
        campaign = mofal.Campaign(files["slurm"], directory=folders["slurm"] / "campaign")
        view = campaign.run(client=client, progress=said.append)
        cutter.join(timeout=120)
    assert [state for _, state in ended] == ["TIMEOUT"], said
    assert all(view.site.exists(step.makes) for step in view.site.steps())
    # Others came after it, and no label that was durable was made again.
    workers = {e["worker"] for e in read_events(campaign.directory) if e["event"] == "start"}
    assert len(workers) >= 2
    made, started = records(folders["slurm"]), tasks.starts(folders["slurm"] / "trace")
    assert len(made) == 10
    assert set(started) == set(made)
    assert tasks.started_again(folders["slurm"] / "trace", made) == 0
    for process, name in zip(others, ("plain", "threads"), strict=True):
        log = folders[name] / "log"
        assert process.wait(timeout=300) == 0, log.read_text()
        assert compare(folders["slurm"], folders[name]) == []
