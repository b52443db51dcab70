"""See before you submit."""

from __future__ import annotations

import re

import pytest

from mofal.schedule import ScheduleSettings, Work, dry_run


def _settings(**dft):
    return ScheduleSettings.model_validate(
        {
            "backend": "slurm",
            "interface": "ib0",
            "pools": {
                "cpu": {"partition": "small", "workers": 2, "walltime": "10h"},
                "dft": {
                    "kinds": ["label"],
                    "partition": "large",
                    "account": "lp_mofs",
                    "workers": {"min": 1, "max": 50},
                    "mpi_ranks": 16,
                    "threads": 2,
                    "memory": "64GB",
                    "walltime": "12:00:00",
                    "prologue": ["module load GPAW"],
                    "job_extra": ["--constraint=milan"],
                    **dft,
                },
            },
            "driver": {"walltime": "2-00:00:00", "margin": "20m"},
        }
    )


def test_dry_run__says_what_would_happen(tmp_path):
    text = dry_run(
        _settings(),
        directory=tmp_path / "campaign",
        work=[Work("label", 600, 3600.0, at_once=150), Work("walk", 500)],
    )
    assert "scheduler on ib0, dashboard on 127.0.0.1, TLS on" in text
    assert "pool dft (slurm): 1 to 50 workers, each 32 cores (16 MPI ranks x 2 threads)" in text
    assert "600 x label, 60 min each" in text
    assert "500 x walk, unknown length" in text
    assert "and what walk takes: say what you expect, e.g. schedule: lengths: {walk: 2h}" in text
    for line in (
        "#SBATCH --partition=large",
        "#SBATCH --account=lp_mofs",
        "#SBATCH --ntasks=16",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --time=0-12:00:00",
        "#SBATCH --constraint=milan",
        "#SBATCH --mem=61035M",
        "module load GPAW",
    ):
        assert re.search(rf"^ *{re.escape(line)}$", text, re.M), line
    assert "driver in a job of 2-00:00:00, followed by another 20 min before its end" in text
    assert "KEY" not in text
    assert not list(tmp_path.iterdir())


def test_dry_run__hours_are_those_of_the_work(tmp_path):
    text = dry_run(_settings(), directory=tmp_path, work=[Work("label", 600, 3600.0, at_once=150)])
    match = re.search(r"about (\S+) node-hours \(jobs x hours\), (\S+) core-hours", text)
    assert float(match[1]) == pytest.approx(600, rel=0.03)
    assert float(match[2]) == pytest.approx(600 * 32, rel=0.03)


def test_dry_run__large_campaign_is_estimated_quickly(tmp_path):
    text = dry_run(_settings(), directory=tmp_path, work=[Work("label", 100_000, 3600.0)])
    match = re.search(r"about (\S+) node-hours", text)
    assert float(match[1]) == pytest.approx(100_000, rel=0.05)


def test_dry_run__walltime_too_short_for_the_labels(tmp_path):
    text = dry_run(_settings(walltime="1h"), directory=tmp_path, work=[Work("label", 10, 3600.0)])
    assert "warning: a walltime of 0-01:00:00 holds few or none of them" in text


def test_dry_run__local_pool_has_no_script(tmp_path):
    text = dry_run(ScheduleSettings(workers=4), directory=tmp_path, work=[Work("label", 8, 60.0)])
    assert "pool local (local): 0 to 4 workers" in text
    assert "#SBATCH" not in text
    assert re.search(r"in all about 0\.[12] node-hours", text)
