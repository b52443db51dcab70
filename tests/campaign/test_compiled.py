"""A campaign on compiled networks: refused early where they cannot be had, run to its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from mofal.cli import main
from tests.campaign.conftest import SMALL, write_campaign


@pytest.mark.parametrize("section", ["exploration", "mechanics"])
def test_dry_run__compiled_without_a_compiler(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    part = {**SMALL.get(section, {}), "engine": "compiled"}
    file = write_campaign(tmp_path / "campaign.yaml", **{section: part})
    monkeypatch.setenv("MOFAL_COMPILED", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert main(["run", str(file), "--directory", str(tmp_path / "a"), "--dry-run"]) != 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.strip()]
    assert len(lines) == 1
    assert f"{section}.engine is compiled" in lines[0]
    assert "g++" in lines[0]
    assert not (tmp_path / "a").exists()
