"""The user's and the site's `jobqueue.yaml`, against dask-jobqueue itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dask
import pytest

from mofal.errors import ConfigError
from mofal.schedule import ScheduleSettings, dry_run
from mofal.schedule.jobqueue import stated
from mofal.schedule.preview import script

SITE = """\
jobqueue:
  slurm:
    queue: batch
    account: lp_site
    cores: 8
    processes: 2
    memory: 128 GB
    walltime: "1-02:00:00"
    job-directives-skip: ["-J"]
    death-timeout: 99
"""
USER = """\
jobqueue:
  slurm:
    account: lp_mine
    interface: lo
    shebang: "#!/usr/bin/env bash -l"
    job-script-prologue: ["module load Python"]
    job-extra-directives: ["--constraint=milan"]
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Where a site's and a user's files are to be written, in the order in which Dask reads."""
    folders = [tmp_path / "site", tmp_path / "user"]
    monkeypatch.setattr(dask.config, "paths", [str(folder) for folder in folders])
    stated.cache_clear()

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "jobqueue.yaml").write_text(text)
        stated.cache_clear()

    yield write
    stated.cache_clear()


def _settings(**pool):
    return ScheduleSettings.model_validate({"backend": "slurm", "pools": {"cpu": pool}})


def _pool(**pool):
    return _settings(**pool).effective_pools()["cpu"]


def test_pool__campaign_before_user_before_site_before_ours(files):
    files(site=SITE, user=USER)
    pool = _pool(walltime="2h")
    assert pool.walltime == 7200
    assert (pool.partition, pool.account) == ("batch", "lp_mine")
    assert (pool.workers_per_job, pool.threads) == (2, 4)
    assert pool.memory == 64 * 10**9  # of each of two workers
    assert pool.prologue == ("module load Python",)
    assert pool.job_extra == ("--constraint=milan",)
    assert pool.qos is None
    assert _settings().scheduler_interface == "lo"
    assert _pool().walltime == 26 * 3600
    # Who says how many cores there are says it all, and an empty list is an answer.
    own = _pool(mpi_ranks=16, prologue=[])
    assert (own.threads, own.workers_per_job, own.prologue) == (1, 1, ())
    assert own.memory == 128 * 10**9


def test_pool__only_what_is_stated(files):
    """The library's own defaults are none, nor is a null."""
    files(user="jobqueue:\n  slurm:\n    queue: batch\n    cores: null\n    walltime: null\n")
    pool = _pool()
    assert (pool.partition, pool.walltime, pool.threads) == ("batch", 12 * 3600, 1)
    assert ScheduleSettings(workers=2).effective_pools()["local"].partition is None


def test_pool__environment_before_files(files, monkeypatch):
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__QUEUE", "fast")
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__JOB_CPU", "6")
    files(site=SITE)
    assert (_pool().partition, _pool().threads) == ("fast", 3)


def test_driver__takes_account_queue_and_prologue(files):
    files(site=SITE, user=USER)
    section = {"backend": "slurm", "pools": {"cpu": {}}, "driver": {"partition": "long"}}
    driver = ScheduleSettings.model_validate(section).effective_driver()
    assert (driver.partition, driver.account) == ("long", "lp_mine")
    assert driver.prologue == ("module load Python",)
    assert (driver.walltime, driver.memory) == (86400, None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("walltime: 12:00:00", "walltime: found 43200, which YAML makes of 12:00:00 without"),
        ("walltime: soon", "walltime: found 'soon'; expected a time in quotes"),
        ("memory: much", "memory: found 'much'; expected an amount of memory"),
        ("cores: many", "cores: found 'many'; expected a whole number"),
        ("job-extra-directives: [exclusive]", "job-extra-directives: found 'exclusive'; expected"),
    ],
)
def test_pool__mistakes_name_the_file(files, tmp_path, line, message):
    files(user=f"jobqueue:\n  slurm:\n    {line}\n")
    with pytest.raises(ConfigError) as caught:
        _pool()
    assert str(caught.value).startswith(str(tmp_path / "user" / "jobqueue.yaml"))
    assert message in str(caught.value)


LONG = {"-J": "--job-name", "-p": "--partition", "-A": "--account", "-t": "--time"}
LONG |= {"-n": "--ntasks", "-e": "--error", "-o": "--output", "-N": "--nodes"}


def _directives(lines):
    """{long name: value} of the directives in a script."""
    found = {}
    for line in lines:
        match = re.match(r"#SBATCH (-\w|--[\w-]+)[ =]?(.*)", line)
        if match:
            found[LONG.get(match[1], match[1])] = match[2]
    return found


def _library(tmp_path):
    """What dask-jobqueue makes of the same files; its import writes into the home directory."""
    pytest.importorskip("dask_jobqueue")
    code = (
        "from dask_jobqueue.slurm import SLURMJob\n"
        "print(SLURMJob(scheduler='tcp://127.0.0.1:1', name='x', job_mem='122070M').job_script())"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment |= {"DASK_ROOT_CONFIG": str(tmp_path / "site")}
    environment |= {"DASK_CONFIG": str(tmp_path / "user")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_script__directives_are_the_library_s(files, tmp_path):
    files(site=SITE, user=USER)
    ours = script(_settings(), "cpu", directory=tmp_path / "campaign")
    theirs = _library(tmp_path)
    assert ours[0] == theirs[0] == "#!/usr/bin/env bash -l"
    mine, other = _directives(ours), _directives(theirs)
    # What is mofal's own: where logs go, that a lost job is not started again by SLURM, one node.
    for name in ("--output", "--open-mode", "--no-requeue", "--nodes"):
        mine.pop(name)
    assert mine == other
    assert "--job-name" not in mine
    assert int(mine["--mem"][:-1]) * 2**20 <= 128 * 10**9
    assert "module load Python" in ours
    assert ours.index("module load Python") < len(ours) - 1
    assert ours[-1].startswith("exec ")


def test_dry_run__prints_the_script_and_says_whose_it_is(files, tmp_path):
    files(site=SITE, user=USER)
    text = dry_run(_settings(walltime="2h"), directory=tmp_path / "campaign")
    place = tmp_path / "site" / "jobqueue.yaml"
    assert re.search(rf"from {place}, .*user/jobqueue.yaml: threads, memory, partition", text)
    assert "not used of" in text
    assert "death-timeout" in text
    assert "#SBATCH --account=lp_mine" in text
    assert "#SBATCH --time=0-02:00:00" in text
    assert "scheduler on lo" in text
    assert not (tmp_path / "campaign").exists()


def test_nothing_is_written_and_the_library_is_not_imported(tmp_path):
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "jobqueue.yaml").write_text(USER)
    code = (
        "import sys\nfrom mofal.schedule import ScheduleSettings\n"
        "s = ScheduleSettings.model_validate({'backend': 'slurm', 'pools': {'cpu': {}}})\n"
        "assert s.effective_pools()['cpu'].account == 'lp_mine'\n"
        "assert 'dask_jobqueue' not in sys.modules\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "DASK_CONFIG": str(tmp_path / "user")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert {path.name for path in Path(tmp_path).iterdir()} == {"user"}
