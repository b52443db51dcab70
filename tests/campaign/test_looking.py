"""mofal.open for people: what it prints, its tables, and a campaign as xarray opens it."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import mofal
from mofal.campaign.backend import MofalBackend
from mofal.data import select
from mofal.errors import DataError, MofalError, StoreError

pytestmark = pytest.mark.slow


def test_summary__is_text_and_html(finished: Path) -> None:
    view = mofal.open(finished)
    text, page = str(view), view._repr_html_()
    for words in ("small", "1 of 1 finished", "gfn1-xtb", "defective (106 atoms)", "6 converged"):
        assert words in text
        assert words in page
    assert str(finished) in text


def test_learning_curve__is_what_the_groups_say(finished: Path) -> None:
    view = mofal.open(finished)
    curve = view.learning_curve()
    assert float(curve["proposal_mae"].sel(cycle=1)) == pytest.approx(
        view.proposal(1).attrs["mae_meV_per_A"]
    )
    labels, said = view.holdout("defective").load(), view.judgement("defective", "model-001").load()
    error = np.abs(said["predicted_forces"].values - labels["forces"].values)
    expected = 1000.0 * error.mean()
    assert float(curve["campaign_mae"].sel(cycle=1, system="defective")) == pytest.approx(expected)
    assert np.isnan(float(curve["control_mae"].sel(cycle=0, system="defective")))
    assert curve.to_dataframe().loc[(1, "defective"), "campaign_mae"] == pytest.approx(expected)


def test_errors__are_those_of_the_held_out_table(finished: Path) -> None:
    from mofal.campaign.view import holdout_table

    view = mofal.open(finished)
    table = view.errors("defective")
    rows = [r for r in holdout_table(view) if r.system == "defective" and r.atoms != "all"]
    assert rows
    for row in rows:
        name = {"MAE": "mae", "MAE_P95": "mae_p95"}[row.metric]
        for model, value in row.values.items():
            found = table[name].sel(model=model, subset="defect")
            assert float(found) == pytest.approx(value)
    assert table["mae"].attrs["units"] == "meV/Å"
    with pytest.raises(StoreError, match="no held-out frames of 'nothing'; it has some of"):
        view.errors("nothing")


def test_text__can_be_chosen_by(finished: Path) -> None:
    labels = mofal.open(finished).labels
    chosen = select(labels, status="converged", cycle=1)
    assert chosen["cycle"].values.tolist() == [1, 1]
    assert chosen.sizes["atom"] == int(chosen["n_atoms"].sum())
    assert chosen["forces"].chunks is not None
    both = select(labels, system=["defective", "pristine"])
    assert both.sizes == labels.sizes
    with pytest.raises(DataError, match="'forces' is no variable along structure"):
        select(labels, forces=1)
    text = labels[["structure_id", "system", "status"]]
    kept = text.where(text["system"] == "defective", drop=True)
    assert set(kept["system"].values) == {"defective"}
    assert kept.to_dataframe().shape == (2, 3)


def test_open_datatree__holds_every_group_lazily(finished: Path) -> None:
    tree = xr.open_datatree(finished, engine=MofalBackend, chunks={})
    assert tree.attrs["name"] == "small"
    assert {"/cycle-000/labels", "/cycle-001/defective/features", "/systems/pristine/blocks"} <= {
        node.path for node in tree.leaves
    }
    found = tree["cycle-001/defective/features"].to_dataset()
    assert found["features"].chunks is not None
    alone = mofal.data.open_group(finished / "cycle-001" / "defective" / "features.zarr")
    xr.testing.assert_identical(found.load(), alone.load())
    part = xr.open_dataset(
        finished, engine=MofalBackend, group="cycle-001/proposal", drop_variables="numbers"
    )
    assert "numbers" not in part
    whole = mofal.open(finished).proposal(1)["predicted_forces"].values
    assert part["predicted_forces"][5:9, 1].values.tolist() == whole[5:9, 1].tolist()
    with pytest.raises(MofalError, match=r"open_datatree, or name one group"):
        xr.open_dataset(finished, engine=MofalBackend)
    assert MofalBackend().guess_can_open(finished)
    assert not MofalBackend().guess_can_open(finished / "cycle-001")


def test_backend__is_what_the_package_registers() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    place = project["project"]["entry-points"]["xarray.backends"]["mofal"]
    module, _, name = place.partition(":")
    assert getattr(import_module(module), name) is MofalBackend


def test_notebook__reads_a_finished_campaign(finished: Path) -> None:
    from xarray.backends import list_engines

    from tests.notebooks import execute, pictures, printed

    if "mofal" not in list_engines():
        pytest.skip("xarray does not know engine='mofal' yet: pip install -e . once more")
    book = execute("reading_a_campaign", DIRECTORY=str(finished))
    text = printed(book)
    assert "6 of 6 labels converged" in text
    assert "attempts" in text
    assert len(pictures(book)) == 3
