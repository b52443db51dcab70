"""The benchmark of this room at its tiny size, so that it does not rot."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_watch_trajectory__runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "watch_trajectory.py"
    spec = importlib.util.spec_from_file_location("benchmarks_watch_trajectory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["watch_trajectory.py", "--directory", str(tmp_path)])
    module.main()
    said = capsys.readouterr().out
    assert "wrote" in said
    assert "3 clusters of" in said
    assert "by ASE (processor)" in said
