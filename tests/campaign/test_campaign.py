"""A small real campaign: GFN1-xTB labels, NequIP, real Dask-scheduled workers, real Zarr."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

import mofal
from mofal.campaign.directory import Site, write_config
from mofal.campaign.loading import load_config, parse_config
from mofal.campaign.prepare import examine
from mofal.campaign.view import atom_mask, holdout_table
from mofal.cli import main
from mofal.errors import CampaignError
from mofal.frameworks.defects import defect_atoms

pytestmark = pytest.mark.slow


def test_run__leaves_every_group_of_every_step(finished: Path) -> None:
    site = mofal.open(finished).site
    for step in site.steps():
        assert site.exists(step.makes), step.name
    assert not list(finished.rglob("*.tmp"))


def test_open__groups_read_without_mofal(finished: Path) -> None:
    ds = xr.open_zarr(finished / "cycle-001" / "defective" / "labels.zarr", consolidated=False)
    assert ds["forces"].attrs["units"] == "eV/Å"
    assert ds.attrs["level_hash"]
    assert set(np.unique(ds["region"].values)) == {0, 1, 2}


def test_open__lazy_over_all_cycles(finished: Path) -> None:
    view = mofal.open(finished)
    features = view.features
    assert features["features"].chunks is not None
    assert features["features"].dims == ("atom", "feature")
    labels = view.labels
    assert set(labels["cycle"].values.tolist()) == {0, 1}
    assert labels.sizes["structure"] == 4 + 2
    assert "small" in repr(view)
    assert view.walks.sizes["walk"] == 2
    assert (view.attempts["status"].values == "converged").all()
    traces = view.traces
    assert set(traces["walk_index"].values.tolist()) == {0, 1}
    assert set(traces["system"].values) == {"defective"}
    predictions = view.predictions
    assert predictions["predicted_forces"].chunks is not None
    table = predictions[["model", "judged", "cycle"]].to_dataframe()
    expected = {("model-000", "held out"), ("model-001", "held out"), ("control-001", "held out")}
    assert set(zip(table["model"], table["judged"])) == {*expected, ("model-000", "proposed")}
    mine = np.flatnonzero(
        (predictions["model"].values == "model-000") & (predictions["judged"].values == "proposed")
    )
    forces = mofal.data.select(predictions, mine)["predicted_forces"].values
    np.testing.assert_array_equal(forces, view.proposal(1)["predicted_forces"].values)


def test_training_set__holds_crystals_and_clusters_of_one_level(finished: Path) -> None:
    data = mofal.open(finished).training_set()
    periodic = data["pbc"].values.all(axis=1)
    assert periodic.sum() == 4
    assert (~periodic).sum() == 2
    assert set(data["split"].values) == {"train", "validation"}
    raw = data["energy"].values / data["n_atoms"].values
    relative = mofal.data.relative_energy(data).values / data["n_atoms"].values
    # Isolated atoms bring crystals and clusters together (GFN1-xTB: -8.8 and -9.2 eV/atom, the
    # raw totals -66 and -80); what an untrained walk distorts costs some tenths more.
    assert np.ptp(raw) > 10
    assert np.ptp(relative) < 1.5
    assert abs(relative[periodic].mean() + 8.8) < 0.1


def test_clusters__are_the_defective_brick_with_its_neighbours(finished: Path) -> None:
    view = mofal.open(finished)
    clusters = view.site.group("cycle-001/defective/clusters.zarr").load()
    assert (clusters["n_electrons"].values % 2 == 0).all()
    assert not clusters["pbc"].values.any()
    assert not clusters["cell"].values.any()
    formates = set(defect_atoms(view.blocks("defective")).tolist())
    assert len(formates) == 8
    core = set(clusters["parent_atom"].values[clusters["region"].values == 0].tolist())
    assert formates <= core


def test_scores__are_those_of_the_saved_density(finished: Path) -> None:
    view = mofal.open(finished)
    features, scores = view.features.load(), view.scores.load()
    x = np.asarray(features["features"].values, float)
    expected = view.density(1).score_samples(x, features["numbers"].values)
    np.testing.assert_allclose(scores["log_likelihood"].values, np.asarray(expected), rtol=1e-9)


def test_proposal__is_the_error_of_the_model_before_it_learnt(finished: Path) -> None:
    view = mofal.open(finished)
    proposal = view.proposal(1).load()
    labels = view.site.group("cycle-001/defective/labels.zarr").load()
    seed = view.potential(0)
    assert proposal.attrs["model_hash"] == seed.model_hash
    error = seed.evaluate(labels)["forces"].values - labels["forces"].values
    assert proposal.attrs["mae_meV_per_A"] == pytest.approx(1000 * np.abs(error).mean(), rel=1e-4)
    large = np.sort(np.abs(error).ravel())
    tail = large[large >= np.percentile(large, 95)].mean()
    assert proposal.attrs["mae_p95_meV_per_A"] == pytest.approx(1000 * tail, rel=1e-4)


def test_control__saw_no_fewer_atoms_and_no_cluster(finished: Path) -> None:
    site = mofal.open(finished).site
    control, model = (
        site.model_record("control/cycle-001/model"),
        site.model_record("cycle-001/model"),
    )
    assert control["atoms_seen"] >= model["atoms_seen"]
    assert control["atoms_seen"] < model["atoms_seen"] + 5 * 200


def test_holdout__frames_are_nobodys_training_data(finished: Path) -> None:
    view = mofal.open(finished)
    learnt = set(view.training_set()["structure_id"].values)
    for system in ("pristine", "defective"):
        assert not learnt & set(view.holdout(system)["structure_id"].values)


def test_holdout_table__is_what_the_predictions_say(finished: Path) -> None:
    view = mofal.open(finished)
    rows = {(r.system, r.atoms, r.metric): r for r in holdout_table(view)}
    labels = view.holdout("defective").load()
    predicted = view.judgement("defective", "model-001").load()
    error = np.abs(predicted["predicted_forces"].values - labels["forces"].values)
    mask = atom_mask(labels, defect_atoms(view.blocks("defective")))
    assert mask.sum() == 8
    row = rows["defective", "defective".replace("defective", "defect"), "MAE"]
    assert row.values["campaign"] == pytest.approx(1000 * error[mask].mean())
    assert set(row.values) == {"seed", "control", "campaign"}


def test_status_and_report__show_the_campaign(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(finished)]) == 0
    text = capsys.readouterr().out
    assert "finished" in text
    assert "label" in text
    page = finished / "report" / "report.html"
    html = page.read_text()
    assert "data:image/png;base64," in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "small" in html


def test_run__again_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("cycle-*/**/zarr.json")}
    assert main(["run", str(finished)]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("cycle-*/**/zarr.json")}


def test_examine__goes_on_after_an_upgrade_that_knows_more_settings(
    finished: Path, copied: Path
) -> None:
    facts = json.loads((copied / "campaign.json").read_text())
    for section, key in (("selection", "unpaired"), ("exploration", "max_bond_strain")):
        del facts["settings"][section][key]
    (copied / "campaign.json").write_text(json.dumps({**facts, "identity": "0" * 20}))
    config = load_config(finished.parent / "campaign.yaml")
    assert examine(Site(copied, config)) is None  # there is nothing to prepare anew
    other = config.model_copy(update={"seed": 8})
    with pytest.raises(CampaignError, match="seed: 3 -> 8"):
        examine(Site(copied, other))


def test_campaign__keeps_the_defaults_that_it_began_with(finished: Path, copied: Path) -> None:
    """A default that a newer mofal has changed makes no other campaign; what the file says does."""
    file = finished.parent / "campaign.yaml"
    content = yaml.safe_load(file.read_text())
    former = {"unfamiliar_quantile": 0.005, "unfamiliar_fs": 20.0}
    stated = {**content, "exploration": {**content["exploration"], **former}}
    old = parse_config(stated)
    facts = json.loads((copied / "campaign.json").read_text())
    facts |= {"settings": old.deciding(), "identity": old.identity()}
    (copied / "campaign.json").write_text(json.dumps(facts))
    assert mofal.Campaign(file).config.exploration.unfamiliar_quantile == 0.001
    begun = mofal.Campaign(file, directory=copied)
    assert begun.config.exploration.unfamiliar_quantile == 0.005
    assert begun.config.identity() == facts["identity"]
    assert examine(begun.site) is None
    write_config(copied, begun.config)  # what workers read
    Site(copied).refuse_changed(facts["identity"])
    other = {**content, "exploration": {**content["exploration"], "unfamiliar_quantile": 0.001}}
    with pytest.raises(CampaignError, match=r"unfamiliar_quantile: 0\.005 -> 0\.001"):
        examine(mofal.Campaign(other, directory=copied).site)
    # From before there were these settings: continued by a mofal that had the former defaults.
    for name in former:
        del facts["settings"]["exploration"][name]
    (copied / "campaign.json").write_text(json.dumps({**facts, "identity": "0" * 20}))
    for again in (file, copied / "campaign.yaml"):
        begun = mofal.Campaign(again, directory=copied)
        assert begun.config.identity() == old.identity()
        assert examine(begun.site) is None


def test_events__each_label_ran_once(finished: Path) -> None:
    lines = (finished / "schedule" / "events.jsonl").read_text().splitlines()
    started = [json.loads(t)["key"] for t in lines if '"start"' in t and '"label"' in t]
    assert len(started) == len(set(started)) == 4 + 2 + 2
