"""`mofal explore` of a campaign and of a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import mofal
from mofal.cli import main
from mofal.commands.explore import campaign_exploration, write_page
from mofal.data import atom_slice, open_group, select, write, write_group
from mofal.errors import StoreError
from tests.analysis.test_explorer import unpacked

pytestmark = pytest.mark.slow
pytest.importorskip("chemiscope", reason="chemiscope is missing: pip install 'mofal[explore]'")


def test_campaign__all_clusters_refused(copied: Path) -> None:
    """A cycle without clusters has no page, and the report of the campaign stands by itself."""
    place = copied / "cycle-001" / "defective" / "clusters.zarr"
    clusters = open_group(place).load()
    shutil.rmtree(place)
    write_group(select(clusters, []), place)
    with pytest.raises(StoreError, match="no cycle has clusters"):
        campaign_exploration(mofal.open(copied))
    assert write_page(mofal.open(copied), copied / "report") == ("", "")


def test_campaign__clusters_beside_the_frames_they_were_cut_from(finished: Path) -> None:
    view = mofal.open(finished)
    shown = campaign_exploration(view)
    ds, parents = shown.structures, shown.parents
    assert parents is not None
    clusters = view.site.group("cycle-001/defective/clusters.zarr").load()
    assert (parents >= 0).sum() == clusters.sizes["structure"] == 2
    ids = [str(s) for s in ds["structure_id"].values]
    for k in np.flatnonzero(parents >= 0):
        assert str(ds["parent"].values[k]) == ids[parents[k]]
        # An atom of a cluster is its parent's atom: the same element, up to a lattice vector apart.
        mine, whole = atom_slice(ds, int(k)), atom_slice(ds, int(parents[k]))
        origin = ds["parent_atom"].values[mine]
        real = origin >= 0
        assert (ds["numbers"].values[mine][real] == ds["numbers"].values[whole][origin[real]]).all()
    # Frames have the scores that the campaign stored.
    scores = view.scores.load()
    stored = {str(s): k for k, s in enumerate(scores["structure_id"].values)}
    for k in np.flatnonzero(parents < 0):
        np.testing.assert_allclose(
            shown.columns["log-likelihood"].values[atom_slice(ds, int(k))],
            scores["log_likelihood"].values[atom_slice(scores, stored[ids[k]])],
            rtol=1e-4,
            atol=1e-3,
        )
    # Force errors are known on clusters alone; their mean is the campaign's.
    error = shown.columns["force error"].values
    on_cluster = parents[ds["structure_index"].values] >= 0
    assert np.isfinite(error[on_cluster]).all()
    assert np.isnan(error[~on_cluster]).all()
    said, labels = view.proposal(1).load(), view.labels.load()
    names = [str(s) for s in labels["structure_id"].values]
    k = names.index(str(said["structure_id"].values[0]))
    by_hand = said["predicted_forces"].values[: said["n_atoms"].values[0]]
    by_hand = by_hand - labels["forces"].values[atom_slice(labels, k)]
    place = ids.index(names[k])
    np.testing.assert_allclose(
        error[atom_slice(ds, place)], 1000.0 * np.sqrt((by_hand**2).sum(axis=1))
    )


def test_campaign__whose_clusters_could_not_be_labelled(finished: Path, tmp_path: Path) -> None:
    """What a cycle leaves whose labels were all set aside: no prediction, and the page is drawn."""
    shutil.copytree(finished, tmp_path / "c", symlinks=True)
    proposal = tmp_path / "c" / "cycle-001" / "proposal.zarr"
    shutil.rmtree(proposal)
    write_group(xr.Dataset(attrs={"structures": 0}), proposal, kind="table")
    shown = campaign_exploration(mofal.open(tmp_path / "c"))
    assert "quantile" in shown.columns
    error = shown.columns.get("force error")
    assert error is None or np.isnan(error.values).all()
    assert main(["report", str(tmp_path / "c")]) == 0


def test_report__has_the_explorer_one_click_away(finished: Path) -> None:
    text = (finished / "report" / "report.html").read_text("utf-8")
    assert '<a href="explore.html">' in text
    assert len(unpacked(finished / "report" / "explore.html")["structures"]) >= 3


def test_command__file_in_a_campaigns_features(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "frames.extxyz"
    write(mofal.open(finished).holdout("defective").load(), file)
    assert main(["explore", str(file)]) == 1
    assert "--potential" in capsys.readouterr().err
    out = tmp_path / "page.html"
    assert main(["explore", str(file), "--potential", str(finished), "-o", str(out)]) == 0
    data = unpacked(out)
    assert {"quantile", "force error", "element"} <= set(data["properties"])
    error = np.array(data["properties"]["force error"]["values"], float)
    assert error.min() >= 0.0
    assert "106 atoms of 1 structures" in capsys.readouterr().out
    assert main(["explore", str(finished), "--cycle", "7"]) == 1
    assert "cycles that have: [1]" in capsys.readouterr().err


def test_command__without_clusters_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "c", ignore=shutil.ignore_patterns("clusters.zarr"))
    assert main(["explore", str(tmp_path / "c")]) == 1
    assert "no cycle has clusters to explore" in capsys.readouterr().err


def test_explore__what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["explore", "nothing"]) == 1
    assert "nothing does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
