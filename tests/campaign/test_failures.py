"""A campaign whose reference fails in every way: each is a status on record, and it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mofal.campaign.driver import Campaign
from tests.campaign.conftest import SMALL, write_campaign
from tests.campaign.services import plugins  # noqa: F401


@pytest.mark.slow
def test_run__goes_on_without_the_labels_that_failed(
    plugins: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    file = write_campaign(
        tmp_path / "campaign.yaml",
        reference={
            "name": f"ase:faulty_calculators:Unlucky?count_in={counts}&isolated=true",
            "time_limit_s": 8,
        },
        potential={
            **SMALL["potential"],
            "seed": {"max_epochs": 2},
            "cycle": {"max_epochs": 1},
            "final": {"max_epochs": 1},
        },
        exploration={"walks": 1, "length_fs": 3, "barostat_fs": 1, "ramp_cycles": 1},
        seed_data={"perturbed": {"system": "pristine", "frames": 2}},
        selection={"clusters": 5, "shells": 0},
        holdout=None,
        control=False,
    )
    place = tmp_path / "campaign"
    said: list[str] = []
    campaign = Campaign(file, directory=place).run(progress=said.append)
    assert any("1 converged" in line for line in said)
    labels = campaign.site.group("cycle-001/defective/labels.zarr").load()
    status = [str(s) for s in labels["status"].values]
    assert sorted(status) == [
        *["converged"], *["crashed"] * 2, "inconsistent", "timed_out",
    ]  # fmt: skip
    reasons = dict(zip(status, (str(r) for r in labels["reason"].values)))
    assert "8 s" in reasons["timed_out"]
    # What failed is nobody's training data; what it was stands in the table of attempts.
    learnt = campaign.training_set(1)
    assert np.isfinite(learnt["forces"].values).all()
    assert (~learnt["pbc"].values.any(axis=1)).sum() == 1
    assert sorted(str(s) for s in campaign.attempts["status"].values if s != "converged") == [
        *["crashed"] * 2, "inconsistent", "timed_out",
    ]  # fmt: skip
