"""Locks on what a process has only once, for rooms that do not know each other."""

from __future__ import annotations

import threading

TORCH_DEFAULTS = threading.RLock()
"""Held by who changes torch's default dtype or random state for a while: building a network with
NequIP does, and making a calculator of another network may have to."""
