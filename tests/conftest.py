"""The order of the files: long ones first, so that no process is left alone with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

#: The longest first; the rest as they are found.
LONG = (
    "campaign/test_compiled.py",
    "analysis/test_paper.py",
    "campaign/test_resume.py",
    "campaign/test_wheel.py",
    "campaign/test_durable.py",
    "attacks/test_attacks.py",
    "trajectories/test_watching.py",
    "test_notebooks.py",
    "schedule/test_local.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONG` first; pytest-xdist hands files out in this order."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(LONG)))
