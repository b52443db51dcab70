"""Trajectories from elsewhere: read as they are, scored as they grow, unfamiliar parts cut out.

Public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.trajectories.frames import Frame, Trajectory, read_frame
    from mofal.trajectories.known import FittedKnown, Known, open_known
    from mofal.trajectories.opening import open_trajectory
    from mofal.trajectories.picture import plot_watched
    from mofal.trajectories.scores import lazy_structures
    from mofal.trajectories.settings import WatchSettings
    from mofal.trajectories.watching import watch

_NAMES = {
    "frames": ("Frame", "Trajectory", "read_frame"),
    "known": ("FittedKnown", "Known", "open_known"),
    "opening": ("open_trajectory",),
    "picture": ("plot_watched",),
    "scores": ("lazy_structures",),
    "settings": ("WatchSettings",),
    "watching": ("watch",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "FittedKnown",
    "Frame",
    "Known",
    "Trajectory",
    "WatchSettings",
    "lazy_structures",
    "open_known",
    "open_trajectory",
    "plot_watched",
    "read_frame",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.trajectories.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.trajectories' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
