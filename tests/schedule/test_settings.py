"""The `schedule` section of a campaign file."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from mofal.errors import ConfigError
from mofal.schedule import PoolSettings, ScheduleSettings
from mofal.schedule.units import format_walltime, parse_memory, parse_walltime


@pytest.mark.parametrize(
    ("text", "number"),
    [("4GB", 4e9), ("4 GiB", 4 * 2**30), ("900M", 9e8), ("1.5G", 1.5e9), (500_000_000, 5e8)],
)
def test_parse_memory__units(text, number):
    assert parse_memory(text) == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12:00:00", 43200),
        ("2-00:00:00", 172800),
        ("90m", 5400),
        ("24h", 86400),
        ("2-12:00", 216000),
        ("00:30:00", 1800),
        (60, 60),
    ],
)
def test_parse_walltime__forms(text, seconds):
    assert parse_walltime(text) == seconds


@pytest.mark.parametrize("seconds", [59, 3600, 90061, 10**6])
def test_format_walltime__round_trip(seconds):
    assert parse_walltime(format_walltime(seconds)) == seconds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pool": {}}, "pool"),
        ({"backend": "pbs"}, "inline"),
        ({"backend": "slurm"}, "without pools"),
        ({"workers": 0}, "greater than or equal to 1"),
        ({"workers": 2, "pools": {"a": {}}}, "both workers and pools"),
        ({"pools": {"a": {"kinds": ["label"]}, "b": {"kinds": ["label"]}}}, "in the pools"),
        ({"pools": {"a b": {}}}, "letters, digits"),
        ({"pools": {"a": {"memory": "much"}}}, "amount of memory"),
        ({"pools": {"a": {"memory": "4XB"}}}, "amount of memory"),
        ({"pools": {"a": {"memory": 0}}}, "expected 150MB or more"),
        ({"pools": {"a": {"memory": "0GB"}}}, "expected 150MB or more"),
        ({"pools": {"a": {"memory": 128}}}, "128 bytes; expected 150MB"),
        (
            {"pools": {"a": {"memory": "400MB", "mpi_ranks": 4, "nodes": 4}}},
            "150MB or more on each",
        ),
        ({"driver": {"memory": "1KB"}}, "expected 150MB or more"),
        ({"pools": {"a": {"memory": "-1GB"}}}, "amount of memory"),
        ({"pools": {"a": {"walltime": "soon"}}}, "expected a time"),
        ({"pools": {"a": {"walltime": "30:00"}}}, 'expected all fields: "30:00:00" or "00:30:00"'),
        ({"driver": {"margin": "12:00"}}, "may be hours and minutes or minutes and seconds"),
        ({"lengths": {"label": "1:30"}}, "may be hours and minutes or minutes and seconds"),
        ({"pools": {"a": {"walltime": 0}}}, "longer than zero"),
        ({"pools": {"a": {"workers": {"min": 3, "max": 2}}}}, "min <= max"),
        ({"pools": {"a": {"job_extra": ["constraint=milan"]}}}, "expected a directive"),
        ({"pools": {"a": {"treads": 2}}}, "treads"),
        ({"pools": {"a": {"mpi_ranks": 2, "workers_per_job": 2}}}, "one MPI worker per job"),
        ({"pools": {"a": {"mpi_ranks": 2, "nodes": 4}}}, "a rank per node"),
        ({"dashboard_port": 99999}, "65535"),
    ],
)
def test_schedule_settings__mistakes_are_named(settings, words):
    with pytest.raises(ValidationError, match=words):
        ScheduleSettings.model_validate(settings)


def test_schedule_settings__default_is_one_local_pool():
    pools = ScheduleSettings(workers=3).effective_pools()
    assert list(pools) == ["local"]
    assert pools["local"].workers.max == 3
    assert pools["local"].threads == 1
    assert pools["local"].backend == "local"


def test_schedule_settings__pools_inherit_the_backend():
    settings = ScheduleSettings.model_validate(
        {
            "backend": "slurm",
            "pools": {"gpu": {"kinds": ["train"]}, "here": {"kinds": ["*"], "backend": "local"}},
        }
    )
    pools = settings.effective_pools()
    assert (pools["gpu"].backend, pools["here"].backend) == ("slurm", "local")


def test_pool_of__named_kind_before_star():
    settings = ScheduleSettings.model_validate({"pools": {"rest": {}, "dft": {"kinds": ["label"]}}})
    assert settings.pool_of("label") == "dft"
    assert settings.pool_of("walk") == "rest"


def test_pool_of__kind_that_nobody_takes():
    settings = ScheduleSettings.model_validate({"pools": {"dft": {"kinds": ["label"]}}})
    with pytest.raises(ConfigError, match=r"kind 'walk', which no pool takes.*kinds: \[walk\]"):
        settings.pool_of("walk")


def test_pool_settings__number_of_workers_is_the_most():
    pool = PoolSettings.model_validate({"workers": 5})
    assert (pool.workers.min, pool.workers.max) == (0, 5)
    assert PoolSettings(threads=4, mpi_ranks=8).cores == 32


def test_pool_of__a_kind_younger_than_the_file_goes_where_selection_goes() -> None:
    pools = {"gpu": {"kinds": ["*"]}, "cpu": {"kinds": ["select", "sample"]}}
    settings = ScheduleSettings.model_validate({"backend": "local", "pools": pools})
    assert settings.pool_of("gather") == "cpu"
    assert settings.pool_of("density") == "gpu"
    pools["disk"] = {"kinds": ["gather"]}
    assert ScheduleSettings.model_validate({"pools": pools}).pool_of("gather") == "disk"
