"""Campaigns: a file says what is wanted, a directory holds what there is, a plan what is left.

The driver looks into the directory, has the steps of the plan done whose needs are there, and
looks again. It keeps no state of its own: killed at any moment and started again, it goes on from
what is finished. `steps` has one file a stage (which tasks it has, what a task does, what becomes
of what tasks left); `config` and `loading` are the campaign file, `paths` and `directory` where
things are, `plan` the graph of steps, `prepare` what is checked before anything is paid for,
`estimate` what is left to do and how long that takes, `view` what a finished or running campaign
looks like. Nothing here prints: that is what `mofal.commands` is for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.campaign.driver import Campaign
    from mofal.campaign.view import CampaignView, open_campaign

_HOME = {"Campaign": "driver", "CampaignView": "view", "open_campaign": "view"}
__all__ = ["Campaign", "CampaignView", "open_campaign"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.campaign.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.campaign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
