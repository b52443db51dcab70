"""`schedule` sections and events for the tests of this folder."""

from __future__ import annotations

from mofal.schedule import ScheduleSettings, read_events

CPU = {"kinds": ["*"], "partition": "cpu", "workers": 3, "memory": "400MB", "walltime": "10m"}


def make_content(**more):
    """Content of a `schedule` section with one pool, at the pace of a test."""
    pools = more.pop("pools", None) or {"cpu": {**CPU, **more.pop("cpu", {})}}
    return {
        "backend": "slurm",
        "interface": "lo",
        "poll_interval": 1.0,
        "idle_time": 2.0,
        "linger": 180.0,
        "pools": pools,
        **more,
    }


def make_settings(**more):
    """The same, read."""
    return ScheduleSettings.model_validate(make_content(**more))


def events(folder, name):
    """Events of one name that a driver wrote."""
    return [event for event in read_events(folder) if event["event"] == name]
