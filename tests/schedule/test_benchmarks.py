"""The benchmarks run at their tiny size, so that they do not rot."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The benchmarks' folder on the import path, also of the workers."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent / "benchmarks"))


def test_schedule_policy__tiny():
    from schedule_policy import main

    results = main(["--size", "tiny"])
    assert results["lengths unknown"].efficiency > 0.95
    assert results["lengths exact"].efficiency > results["no policy"].efficiency + 0.02


@pytest.mark.slow
def test_schedule_overhead__tiny():
    from schedule_overhead import main

    figures = main(["--size", "tiny"])
    assert figures["wall_ratio"] < 1.5
    assert figures["cpu_total_ms"] < 4.0
    assert figures["memory_growth_MB"] < 30.0
