"""What `mofal doctor --slurm` makes of a cluster, told as sinfo and sacctmgr tell it."""

from __future__ import annotations

import pytest

from mofal.schedule import DriverSettings, PoolSettings
from mofal.schedule.doctor import (
    count_gpus,
    look_at_driver,
    look_at_pool,
    parse_limit,
    read_accounts,
    read_partitions,
)

#: name|time limit|cores|MB|gres|up|state
SINFO = """\
batch|3-00:00:00|64|257000|(null)|up|mix
batch|3-00:00:00|128+|515000|(null)|up|alloc
gpu|1-00:00:00|72|515000|gpu:h100:4(S:0-1)|up|mix
old|infinite|24|64000|(null)|down|idle*
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for sinfo and sacctmgr, which print what a large cluster's do."""
    for name, text in (("sinfo", SINFO), ("sacctmgr", "lp_mofs\nlp_other\nlp_mofs\n")):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        ("(null)", 0),
        ("gpu", 1),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:h100:2,gpu:a30:1", 3),
        ("craynetwork:4,gpu:8", 8),
        ("shard:16", 0),
    ],
)
def test_count_gpus__as_sinfo_prints_them(gres, number):
    assert count_gpus(gres) == number


def test_read_partitions__the_largest_node_counts(cluster):
    found = read_partitions()
    assert sorted(found) == ["batch", "gpu", "old"]
    assert (found["batch"]["cores"], found["batch"]["memory"]) == ("128", "515000")
    assert found["gpu"]["gpus"] == "4"


def test_read_accounts__of_this_user(cluster):
    assert read_accounts() == {"lp_mofs", "lp_other"}


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"partition": "bach"}, "no partition 'bach'"),
        ({"partition": "batch", "account": "lp_nobody"}, "no account 'lp_nobody'"),
        ({"partition": "batch", "walltime": "4-00:00:00"}, "walltime beyond"),
        ({"partition": "batch", "mpi_ranks": 192}, "192 cores on nodes of 128"),
        ({"partition": "batch", "mpi_ranks": 64, "threads": 4}, "256 cores on nodes of 128"),
        ({"partition": "batch", "memory": "600GB"}, "more memory than a node has"),
        ({"partition": "batch", "gpus": 1}, "GPUs where the partition has none"),
        ({"partition": "gpu", "gpus": 4, "workers_per_job": 2}, "8 GPUs on nodes of 4"),
        ({"partition": "old"}, "the partition is down"),
    ],
)
def test_look_at_pool__what_cannot_be_had(cluster, pool, words):
    settings = PoolSettings.model_validate({"walltime": "24h", **pool})
    _, ok, detail, mend = look_at_pool("dft", settings, read_partitions(), read_accounts())
    assert not ok
    assert words in detail
    assert mend


@pytest.mark.parametrize(
    "pool",
    [
        {},
        {"partition": "batch", "mpi_ranks": 192, "nodes": 2, "memory": "900GB"},
        {"partition": "gpu", "gpus": 1, "workers_per_job": 4, "threads": 18},
        {"partition": "batch", "account": "lp_mofs", "walltime": "3-00:00:00"},
    ],
)
def test_look_at_pool__what_can(cluster, pool):
    settings = PoolSettings.model_validate({"walltime": "24h", **pool})
    finding = look_at_pool("dft", settings, read_partitions(), read_accounts())
    assert finding[1], finding


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ({"partition": "nowhere"}, "no partition 'nowhere'"),
        ({"partition": "gpu", "walltime": "2d"}, "walltime beyond"),
        ({"partition": "batch", "walltime": "10m", "margin": "10m"}, "a margin as long as"),
        ({"partition": "batch", "account": "lp_nobody"}, "no account"),
    ],
)
def test_look_at_driver__what_cannot_be_had(cluster, driver, words):
    settings = DriverSettings.model_validate(driver)
    _, ok, detail, mend = look_at_driver(settings, read_partitions(), read_accounts())
    assert not ok
    assert words in detail
    assert mend


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30:00", 1800),
        ("12:00:00", 43200),
        ("1-00:00:00", 86400),
        ("2-12", 216000),
        ("90", 5400),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_parse_limit__as_slurm_prints_it(text, seconds):
    assert parse_limit(text) == seconds


def test_look_at_pool__limit_of_minutes():
    """30:00 is half an hour, and what is proposed is what a campaign file takes."""
    facts = {"time": "30:00", "cores": "4", "memory": "8000", "gpus": "0", "gres": "", "up": "up"}
    for walltime, fine in (("20m", True), ("20h", False)):
        pool = PoolSettings(partition="short", walltime=walltime)
        _, ok, _, mend = look_at_pool("a", pool, {"short": facts}, None)
        assert ok is fine
    assert mend == 'set walltime: "0-00:30:00" or less'
    assert PoolSettings(walltime="0-00:30:00").walltime == 1800


def test_look_at_pool__megabytes_of_slurm():
    facts = {"time": "infinite", "cores": "4", "memory": "122070", "gpus": "0", "gres": ""}
    pool = PoolSettings(partition="all", memory="128GB")
    assert look_at_pool("a", pool, {"all": facts | {"up": "up"}}, None)[1]
