"""The benchmarks of this room at their tiny size, so that they do not rot."""

from __future__ import annotations

import pytest

from tests.clusters.common import benchmark


def test_clusters_scale__tiny(capsys):
    assert benchmark("clusters_scale").main(["--size", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "same clusters: 5/5" in printed
    assert "exponents" in printed


def test_clusters_coverage__tiny(capsys):
    assert benchmark("clusters_coverage").main(["--size", "tiny"]) == 0
    assert "least likely, features" in capsys.readouterr().out


@pytest.mark.slow
def test_clusters_match__tiny(capsys, tmp_path):
    pytest.importorskip("tblite")
    assert benchmark("clusters_match").main(["--size", "tiny", "--labels", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "meV/Å on core atoms against its parent over 1 frame" in printed
