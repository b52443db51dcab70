"""What the density room can do, a campaign does: shards, bounds, rankings, cores that are drawn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mofal
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.campaign.examples import seed_place
from mofal.campaign.loading import parse_config
from mofal.campaign.plan import Step
from mofal.campaign.prepare import check_stress
from mofal.campaign.steps import density as density_step
from mofal.campaign.steps.select import check_ranking
from mofal.data import open_group
from mofal.density import PerElementDensity
from mofal.errors import ConfigError
from mofal.reference import get_reference
from mofal.schedule import Outcome, Task, read_events

from .conftest import SMALL
from .generated import CHEAP, pid_of, prepare_density

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("joined") / "campaign"
    mofal.Campaign(CHEAP, directory=place).run()
    return place


def test_campaign__features_go_from_shard_to_shard(joined: Path) -> None:
    site = Site(joined)
    for relative in ("training_features.zarr", "p/features.zarr", "p/scores.zarr"):
        ds = site.group(f"cycle-001/{relative}")
        assert ds["numbers"].chunks is not None
        assert max(ds["numbers"].chunks[0]) <= 100 < ds.sizes["atom"]
    # What came of them is what all of them together give.
    potential = mofal.open(joined).potential(0)
    data = site.training_set(0)
    train = mofal.data.select(data, data["split"].values == "train")
    stored = site.group("cycle-001/training_features.zarr")
    np.testing.assert_allclose(
        stored["features"].values, potential.featurize(train)["features"].values, atol=1e-5
    )
    density = PerElementDensity.load(site.path("cycle-001/density.zarr"))
    again = PerElementDensity(2, random_state=site.integer_seed("density", 1)).fit(
        stored["features"].values, stored["numbers"].values
    )
    for label, mixture in again.mixtures_.items():
        own = density.mixtures_[label]
        np.testing.assert_allclose(own.means_, mixture.means_, rtol=1e-6, atol=1e-9)
    walked = site.group("cycle-001/p/features.zarr").load()
    scores = site.group("cycle-001/p/scores.zarr").load()
    likelihood = density.score_samples(walked["features"].values, walked["numbers"].values)
    np.testing.assert_allclose(scores["log_likelihood"].values, likelihood, rtol=1e-9)


def test_campaign__scores_hold_a_bound_and_cores_are_chosen_by_it(joined: Path) -> None:
    view = mofal.open(joined)
    scores, density = view.scores.load(), view.density(1)
    assert view.site.group("cycle-001/p/scores.zarr").attrs["error_coverage"] == 0.5
    bound = scores["error_bound"].values
    expected = density.error_bound(scores["log_likelihood"].values, scores["numbers"].values)
    np.testing.assert_allclose(bound, expected)
    clusters = view.site.group("cycle-001/p/clusters.zarr").load()
    drawn = clusters["drawn"].values
    assert drawn.tolist() == [False, False, True, True]
    # The first core that was selected holds the atom with the largest bound of all.
    frame = scores["structure_id"].values.tolist().index(clusters["parent"].values[0])
    start = int(scores["n_atoms"].values[:frame].sum())
    own = mofal.data.select(clusters, 0)
    core = own["parent_atom"].values[own["region"].values == 0]
    assert bound[start + core].max() == bound.max()
    assert view.labels["drawn"].values.sum() == 2


def test_campaign__coverage_is_counted_on_cores_alone(joined: Path, tmp_path: Path) -> None:
    view = mofal.open(joined)
    met = view.coverage(1)
    assert {how: c.n_structures for how, c in met.items()} == {"drawn": 2, "selected": 2}
    # By hand, for what was drawn.
    labels = view.site.group("cycle-001/p/labels.zarr").load()
    scores = view.site.group("cycle-001/p/scores.zarr").load()
    model = view.potential(0)
    shares = []
    for k in np.flatnonzero(labels["drawn"].values):
        own = mofal.data.select(labels, k)
        error = np.linalg.norm(model.evaluate(own)["forces"].values - own["forces"].values, axis=1)
        frame = scores["structure_id"].values.tolist().index(own["parent"].values[0])
        bound = mofal.data.select(scores, frame)["error_bound"].values
        core = np.flatnonzero(own["region"].values == 0)
        shares.append(np.mean(error[core] <= bound[own["parent_atom"].values[core]]))
    assert met["drawn"].atoms == pytest.approx(np.mean(shares))
    assert met["drawn"].stated == 0.5
    page = mofal.report(joined).read_text() if hasattr(mofal, "report") else ""
    if page:
        assert "within the 0.5 bound, drawn cores" in page


def _config(**changes: Any) -> CampaignConfig:
    return parse_config({**SMALL, "holdout": None, "holding": None, "control": False, **changes})


def test_check_ranking__what_the_campaign_will_not_have_is_refused() -> None:
    for name in ("least_likely_atom", "lowest_quantile", "sum_below_threshold", "per_cost"):
        check_ranking(_config(selection={"ranking": name}), 4)
    wanted = _config(selection={"ranking": "calibrated_score"})
    with pytest.raises(ConfigError, match=r"takes 18 labelled structures.*0.2 of the 4.*give 90"):
        check_ranking(wanted, 4)
    check_ranking(wanted, 90)
    check_ranking(_config(selection={"ranking": "calibrated_score"}, density={"coverage": 0.5}), 10)


def test_check_stress__what_no_crystal_will_have_is_refused() -> None:
    potential = {**SMALL["potential"], "final": {"max_epochs": 1, "stress_weight": 1000}}
    perturbed = {"perturbed": {"system": "defective", "frames": 4}}
    xtb, gpaw = get_reference("gfn1-xtb"), get_reference("gpaw:lcao")
    check_stress(_config(potential=potential, seed_data=perturbed), [], xtb)
    with pytest.raises(ConfigError, match=r"final.stress_weight is 1000.*gives none"):
        check_stress(_config(potential=potential, seed_data=perturbed), [], gpaw)
    clusters = _config(potential=potential, seed_data={"clusters": {"per_system": 2}})
    with pytest.raises(ConfigError, match="clusters have none"):
        check_stress(clusters, [], xtb)
    labels = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    check_stress(clusters, [labels], gpaw)
    with pytest.raises(ConfigError, match="no crystal"):
        check_stress(clusters, [labels.assign(stress=labels["stress"] * np.nan)], xtb)
    check_stress(_config(seed_data={"clusters": {"per_system": 2}}), [], gpaw)


# ------------------------------------------------------------------ one density on every backend
def _run(site: Site, backend: str, *, kill: bool) -> str:
    """Run the step, killed once on the way if asked for; what the process said."""
    command = [sys.executable, "-m", "tests.campaign.one_step", str(site.root), backend]
    log = site.root / "log.txt"
    note = site.work("progress", "density-001.txt")
    note.unlink(missing_ok=True)
    for again in (True, False) if kill else (False,):
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        if not again:
            assert process.wait(timeout=200) == 0, log.read_text()
            break
        end = time.monotonic() + 100
        while not note.exists():  # the fit itself can be over in the half second between notes
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        if backend == "local":  # the worker that has the task; another one takes it up
            started = [e for e in read_events(site.root) if e["event"] == "worker"]
            assert started
            owner = next(e["worker"] for e in read_events(site.root) if e["event"] == "start")
            os.kill(pid_of(owner, site.root), signal.SIGKILL)
            assert process.wait(timeout=200) == 0, log.read_text()
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not site.exists("cycle-001/density.zarr")
    return log.read_text()


def test_density__same_hash_on_every_backend_though_each_is_killed_once(tmp_path: Path) -> None:
    hashes = {}
    for backend in ("inline", "threads", "local"):
        site = prepare_density(tmp_path / backend, in_memory=4000, structures=600)
        said = _run(site, backend, kill=True)
        assert json.loads(said.splitlines()[-1])["status"] == "done"
        density = PerElementDensity.load(site.path("cycle-001/density.zarr"))
        hashes[backend] = density.density_hash
        assert density.counts_ == {1: 18000, 6: 24000, 8: 18000}
    assert len(set(hashes.values())) == 1, hashes
    events = list(read_events(tmp_path / "local"))
    assert sum(e["event"] == "start" for e in events) == 2  # the kill cost one fit
    assert any(e["event"] == "lent" for e in events)


def test_finish__a_density_says_whether_there_is_a_bound() -> None:
    step = Step("density", 1, "", (), "x")
    task = Task("density", "x", density_step.density)
    for summary, text in (
        ({"atoms": 3}, "3 atoms"),
        ({"atoms": 3, "coverage": 0.9}, "3 atoms, a bound of the force error at 0.9"),
        ({}, ""),
    ):
        outcome = Outcome(task, status="done", summary=summary)
        assert density_step.finish(None, step, [outcome], ()) == text  # type: ignore[arg-type]
