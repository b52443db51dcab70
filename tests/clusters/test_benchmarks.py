"""The benchmarks of this room at their tiny size, so that they do not rot."""

from __future__ import annotations

from pathlib import Path

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


@pytest.mark.slow
def test_clusters_converge__goes_on(capsys, tmp_path, monkeypatch):
    """Two molecules for clusters: one each time, then nothing is left."""
    pytest.importorskip("tblite")
    import json

    from ase.build import molecule
    from ase.io import write

    converge = benchmark("clusters_converge")
    monkeypatch.syspath_prepend(str(Path(converge.__file__).parent))
    few = [molecule(name) for name in ("H2O", "CH4")]
    for atoms in few:
        atoms.info.update(mof=atoms.get_chemical_formula(), core="C", charge=0)
    write(tmp_path / "clusters.extxyz", few)
    (tmp_path / "count.json").write_text(json.dumps({"accepted": 2}))
    assert converge.main([str(tmp_path), "--most", "3"]) == 0
    assert "1 of 2 clusters were run, of up to 3 atoms: {'converged': 1}" in capsys.readouterr().out
    assert converge.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "H2O C" not in printed
    assert "MOFs of which every cluster was run: 2; all of these converged: 2" in printed
