"""A campaign judges a trajectory from elsewhere, and may take it as its next cycle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

import mofal
from mofal.campaign import plan
from mofal.campaign.directory import Site
from mofal.campaign.steps.density import density as fit_step
from mofal.cli import main
from mofal.data import open_group, select, write_group
from mofal.density import PerElementDensity
from mofal.frameworks import build
from mofal.trajectories import FittedKnown, WatchSettings, open_trajectory, watch

pytestmark = pytest.mark.slow


def test_watch__scores_are_those_of_the_campaign(finished: Path, tmp_path: Path) -> None:
    """The ends of its walks as a trajectory, by the model and density of that cycle."""
    view = mofal.open(finished)
    place = finished / "cycle-001" / "defective"
    known = FittedKnown(view.potential(0), view.density(1))
    watch(
        open_trajectory(place / "samples.zarr"), known, directory=tmp_path / "out",
        settings=WatchSettings(clusters=0), say=lambda line: None,
    )  # fmt: skip
    (group,) = (tmp_path / "out" / "scores").iterdir()
    found, wanted = open_group(group).load(), open_group(place / "scores.zarr").load()
    assert found["structure_id"].values.tolist() == wanted["structure_id"].values.tolist()
    for name in ("log_likelihood", "quantile"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-7)
    assert found.attrs["density_hash"] == wanted.attrs["density_hash"]


def test_watch__what_is_refused_leaves_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, no frame, a foreign element, another system: said before a density is fitted."""
    (tmp_path / "empty.dump").touch()
    write(tmp_path / "salt.extxyz", bulk("NaCl", "rocksalt", a=5.6) * (3, 3, 3))
    write_group(build("S_reo"), tmp_path / "reo.zarr")
    before = sorted(tmp_path.iterdir())
    for name, more, says in (
        ("none.dump", [], "does not exist"),
        ("empty.dump", [], "holds no frame"),
        ("salt.extxyz", [], "no type for Na, Cl"),
        ("reo.zarr", ["--next-cycle"], "the atoms of none of them"),
    ):
        assert main(["watch", str(tmp_path / name), "--potential", str(finished), *more]) == 1
        printed = capsys.readouterr()
        assert says in printed.err
        assert "fitting" not in printed.out
    assert sorted(tmp_path.iterdir()) == before


def test_watch__next_cycle(copied: Path, tmp_path: Path) -> None:
    """The density is that of the cycle that comes next; its walks and selection are done then."""
    samples = open_group(copied / "cycle-001" / "defective" / "samples.zarr").load()
    write_group(select(samples, [1, 0]), tmp_path / "a.zarr")
    out = tmp_path / "out"
    command = ["watch", str(tmp_path / "a.zarr"), "--potential", str(copied)]
    command += ["--directory", str(out), "--next-cycle"]
    assert main(command) == 0
    site = Site(copied)
    assert site.config.cycles == 2
    ready = [s.name for s in plan.ready(site.steps(), site.exists)]
    assert ready == ["cycle 2 defective label"]
    clusters = site.group("cycle-002/defective/clusters.zarr").load()
    assert clusters.sizes["structure"] == site.config.selection.clusters
    assert set(clusters["parent"].values) <= set(samples["structure_id"].values)
    view = mofal.open(copied)
    parents = set(map(str, clusters["parent"].values))
    assert (view.walks["walk_status"].values == "watched").sum() == len(parents)
    assert 2 in view.scores["cycle"].values
    assert main(command) == 1  # it has begun
    # The step of a campaign would have fitted the same density.
    (copied / "cycle-002" / "density.zarr").rename(tmp_path / "ours.zarr")
    fit_step(str(copied), site.identity, cycle=2)
    theirs = PerElementDensity.load(copied / "cycle-002" / "density.zarr")
    ours = PerElementDensity.load(tmp_path / "ours.zarr")
    for z in theirs.labels_.tolist():
        np.testing.assert_allclose(ours.mixtures_[z].means_, theirs.mixtures_[z].means_, rtol=1e-3)
