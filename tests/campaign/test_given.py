"""What a campaign is given to start from, and how long potentials hold: what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mofal.campaign.directory import Site
from mofal.campaign.examples import seed_place
from mofal.campaign.given import example_labels
from mofal.campaign.loading import parse_config
from mofal.campaign.prepare import examine
from mofal.commands.hold import hold_file
from mofal.data import open_group
from mofal.dynamics.holding import survival
from mofal.errors import ConfigError

START = "example:uio66-gfn1"


def campaign(**changes: Any) -> dict[str, Any]:
    return {
        "name": "given", "seed": 1, "cycles": 1,
        "systems": {"d": {"build": "S_ld", "cell": "primitive"}},
        "seed_data": {"example": "uio66-gfn1"}, **changes,
    }  # fmt: skip


def test_example_labels__a_share_of_both_parts() -> None:
    whole = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    some = example_labels(
        parse_config(campaign(seed_data={"example": "uio66-gfn1", "frames": 40})), None
    )
    assert abs(some.sizes["structure"] - 40) <= 1
    assert set(some["structure_id"].values) <= set(whole["structure_id"].values)
    share = [np.mean(ds["split"].values.astype(str) == "validation") for ds in (whole, some)]
    assert share[1] == pytest.approx(share[0], abs=0.03)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference": {"name": "gfn2-xtb"}}, "the labels of uio66-gfn1 are of level"),
        ({"potential": {"start": "example:nope"}}, "potential.start: no example seed"),
        (
            {"potential": {"start": START}, "systems": {"z": {"build": "UiO-66-NH2"}}},
            "it has no type for N",
        ),
    ],
)
def test_examine__a_start_that_cannot_be(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        examine(Site(tmp_path / "out", parse_config(campaign(**changes))))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["length_fs", "temperature_K", "timestep_fs"])
def test_hold_file__numbers_that_cannot_be_meant(name: str, tmp_path: Path) -> None:
    model = str(seed_place("uio66-gfn1") / "model")
    with pytest.raises(ConfigError, match="expected a positive number"):
        hold_file("S_pr", potential=model, directory=tmp_path / "runs", **{name: 0.0})
    assert not (tmp_path / "runs").exists()


def test_survival__is_a_poisson_rate() -> None:
    """Garwood's interval: no break in 50 ps bounds the rate by 3.689 / 50, one break by 5.572."""
    held = survival(np.full(10, 5000.0), np.zeros(10, bool))
    assert (held.per_ps, held.high) == (1.0, 1.0)
    assert held.low == pytest.approx(np.exp(-3.689 / 50), abs=1e-4)
    once = survival(np.full(10, 5000.0), np.arange(10) == 0)
    assert once.low == pytest.approx(np.exp(-5.572 / 50), abs=1e-4)
    assert once.high == pytest.approx(np.exp(-0.02532 / 50), abs=1e-4)
