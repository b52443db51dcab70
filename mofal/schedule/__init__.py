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
    "PoolSettings": "sections",
    "DriverSettings": "sections",
    "WorkerRange": "sections",
    "EventLog": "events",
    "read_events": "events",
    "CampaignLock": "lock",
    "read_status": "status",
    "format_status": "status",
    "StatusReader": "status",
    "HandedOver": "handover",
    "submit_driver": "handover",
    "Work": "preview",
    "dry_run": "preview",
    "doctor_slurm": "doctor",
    "Completions": "pools",
    "spread": "wide",
}

__all__ = [
    "CampaignLock",
    "Completions",
    "DriverSettings",
    "EventLog",
    "HandedOver",
    "Handle",
    "Outcome",
    "PoolSettings",
    "Pools",
    "ScheduleSettings",
    "StatusReader",
    "Task",
    "Work",
    "WorkerRange",
    "doctor_slurm",
    "dry_run",
    "format_status",
    "read_events",
    "read_status",
    "spread",
    "submit_driver",
]

if TYPE_CHECKING:
    from mofal.schedule.doctor import doctor_slurm
    from mofal.schedule.events import EventLog, read_events
    from mofal.schedule.handover import HandedOver, submit_driver
    from mofal.schedule.lock import CampaignLock
    from mofal.schedule.pools import Completions, Handle, Pools
    from mofal.schedule.preview import Work, dry_run
    from mofal.schedule.sections import DriverSettings, PoolSettings, WorkerRange
    from mofal.schedule.settings import ScheduleSettings
    from mofal.schedule.status import StatusReader, format_status, read_status
    from mofal.schedule.task import Outcome, Task
    from mofal.schedule.wide import spread


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"mofal.schedule.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mofal.schedule' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
