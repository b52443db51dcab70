"""Whole campaigns on a real SLURM: from sbatch to report, and through accidents."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

import mofal
from mofal.campaign.plan import ready
from mofal.campaign.steps import expand
from mofal.cli import main
from mofal.density import PerElementDensity
from mofal.schedule import Pools, ScheduleSettings, read_events, read_status
from tests.campaign.generated import pid_of, prepare_density

from . import tasks
from .campaigns import command, compare, records, write_campaign
from .chaos import Chaos

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def undisturbed(session_lab, tmp_path_factory):
    """Folder of a campaign that ran from a batch job to its end, and nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    driver = {"partition": "cpu", "memory": "900MB", "walltime": "30m"}
    file = write_campaign(folder)
    text = file.read_text()
    file.write_text(text.replace("schedule:\n", f"schedule:\n  driver: {driver}\n"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, session_lab.environment[name])
        session_lab.restore()
        arguments = ["run", str(file), "--directory", str(folder / "campaign"), "--submit"]
        assert main(arguments) == 0
        _wait(session_lab)
    return folder


def _wait(lab, timeout=1200.0):
    """Until SLURM has no job."""
    import time

    deadline = time.monotonic() + timeout
    while lab.jobs():
        assert time.monotonic() < deadline, "the campaign does not end"
        time.sleep(0.2)


def test_campaign__from_sbatch_to_report(undisturbed):
    directory = undisturbed / "campaign"
    log = (directory / "schedule" / "logs" / "driver-job.log").read_text()
    assert "Traceback" not in log, log
    assert (directory / "report" / "report.html").exists(), log
    campaign = mofal.open(directory)
    assert all(campaign.site.exists(step.makes) for step in campaign.site.steps())
    # Each kind of work was done by its pool, the GPU's with its GPU.
    events = list(read_events(directory))
    where = {(e["kind"], e["pool"]) for e in events if e["event"] == "end"}
    assert {("label", "dft"), ("train", "gpu"), ("walk", "gpu"), ("sample", "cpu")} <= where
    # Dask's own report of each cycle, since the file asks for it; or why there is none.
    for cycle in (0, 1):
        page = directory / "schedule" / "performance" / f"cycle-{cycle:03d}.html"
        if importlib.util.find_spec("bokeh") is None:
            assert "no performance report" in log
            assert "pip install bokeh" in log
        else:
            assert "label-" in page.read_text()
    status = read_status(directory)
    assert status["node_hours"] > 0
    assert not status["driver"]["alive"]
    # Nothing was computed twice, and every label is there.
    started = tasks.starts(undisturbed / "trace")
    assert set(started.values()) == {1}
    assert set(started) == set(records(undisturbed))
    assert len(started) == campaign.labels.sizes["structure"] == 10


@pytest.mark.parametrize(
    ("seed", "accidents"),
    [
        (0, ("driver", "scancel", "worker")),
        (1, ("scheduler", "node", "controller", "driver")),
    ],
)
def test_campaign__through_accidents(lab, undisturbed, tmp_path, seed, accidents):
    """The same structures, labels and models as the campaign that nobody disturbed."""
    file = write_campaign(tmp_path)
    chaos = Chaos(
        lab,
        command(file),
        tmp_path,
        seed=seed,
        accidents=accidents,
        number=len(accidents),
        pause=(2.0, 8.0),
        log=tmp_path / "driver.log",
        first=(tmp_path / "trace").exists,
    )
    result = chaos.run(timeout=1200)
    log = (tmp_path / "driver.log").read_text()
    assert result.finished, log
    assert sum(result.accidents.values()) == len(accidents), result
    assert compare(undisturbed, tmp_path) == []
    made, started = records(tmp_path), tasks.starts(tmp_path / "trace")
    assert len(made) == 10
    # A result that was durable is not computed again; what was in hand may be, once per worker.
    assert tasks.started_again(tmp_path / "trace", made) == 0
    assert sum(started.values()) - 10 <= result.at_risk
    assert "Traceback" not in log


def test_benchmarks__run_at_their_tiny_size(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))
    from schedule_chaos import main as chaos

    assert chaos(["--size", "tiny"]) == 0
    assert "1 of 1 runs ended as if nothing had happened" in capsys.readouterr().out
    assert "schedule_chaos" in sys.modules


def test_density__wide_on_slurm_and_killed_once_is_that_of_one_process(
    session_lab, tmp_path, until, monkeypatch
):
    """To the bit: the shards decide, and not who worked on them."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, session_lab.environment[name])
    session_lab.restore()
    pool = {"kinds": ["*"], "partition": "cpu", "workers": 3, "memory": "700MB", "walltime": "10m"}
    settings = {
        "inline": {"backend": "inline"},
        "slurm": {
            "backend": "slurm",
            "interface": "lo",
            "poll_interval": 1.0,
            "pools": {"cpu": {**pool, "environment": {"PYTHONPATH": str(ROOT)}}},
        },
    }
    hashes = {}
    for backend, content in settings.items():
        site = prepare_density(tmp_path / backend, in_memory=4000, structures=600)
        step = next(s for s in ready(site.steps(), site.exists) if s.stage == "density")
        schedule = ScheduleSettings.model_validate(content)
        with Pools(schedule, directory=site.root) as pools:
            (handle,) = [pools.submit(task) for task in expand(site, step)]
            if backend == "slurm":
                note = site.work("progress", "density-001.txt")
                until(lambda note=note: note.exists() and "iteration" in note.read_text())
                started = [e["worker"] for e in read_events(site.root) if e["event"] == "start"]
                os.kill(pid_of(started[0], site.root), signal.SIGKILL)
            (outcome,) = pools.as_completed([handle])
        assert outcome.status == "done", outcome.reason
        hashes[backend] = PerElementDensity.load(site.path("cycle-001/density.zarr")).density_hash
    assert hashes["inline"] == hashes["slurm"]
    events = [e["event"] for e in read_events(tmp_path / "slurm")]
    assert events.count("start") == 2
    assert "lent" in events
