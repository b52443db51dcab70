"""When and where: durable tasks on pools of workers, local or on SLURM."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Task": "task",
    "Outcome": "task",
    "Pools": "pools",
    "Handle": "pools",
    "ScheduleSettings": "settings",
    "PoolSettings": "settings",
    "DriverSettings": "settings",
    "WorkerRange": "settings",
    "EventLog": "events",
    "read_events": "events",
    "CampaignLock": "lock",
    "read_status": "status",
    "format_status": "status",
}

__all__ = [
    "CampaignLock",
    "DriverSettings",
    "EventLog",
    "Handle",
    "Outcome",
    "PoolSettings",
    "Pools",
    "ScheduleSettings",
    "Task",
    "WorkerRange",
    "format_status",
    "read_events",
    "read_status",
]

if TYPE_CHECKING:
    from mofal.schedule.events import EventLog, read_events
    from mofal.schedule.lock import CampaignLock
    from mofal.schedule.pools import Handle, Pools
    from mofal.schedule.settings import DriverSettings, PoolSettings, ScheduleSettings, WorkerRange
    from mofal.schedule.status import format_status, read_status
    from mofal.schedule.task import Outcome, Task


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"mofal.schedule.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mofal.schedule' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
