"""Names of systems: none is written over what a campaign keeps of its own."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from mofal.campaign import paths, plan
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.campaign.loading import parse_config
from mofal.campaign.names import TAKEN, check_new
from mofal.cli import main
from mofal.errors import ConfigError
from tests.campaign.conftest import SMALL


def content(*names: str) -> dict[str, Any]:
    systems = {name: {"build": "S_ld", "cell": "primitive"} for name in names}
    seed = {"perturbed": {"system": names[0], "frames": 2}}
    return {**SMALL, "systems": systems, "seed_data": seed, "cycles": 2, "holdout": None}


def test_taken__is_all_that_a_cycle_holds() -> None:
    """By the plan itself: what its steps make directly in the directory of a cycle."""
    found = set()
    for step in plan.steps(parse_config({**content("ld"), "holdout": {"frames": 1}})):
        for path in map(PurePosixPath, (step.makes, *step.needs)):
            if len(path.parts) == 2 and path.parts[0].startswith("cycle-"):
                found.add(path.parts[1])
    assert found <= set(TAKEN)
    # And what the task of the density writes beside.
    assert set(TAKEN) - found == {"training_features.zarr"}


NEVER = [
    *[(name, "campaign's own files") for name in TAKEN],
    ("a/b", "is no name"),
    ("..", "is no name"),
    (".", "is no name"),
    (".hidden", "is no name"),
    ("a\\b", "is no name"),
    ("a b", "is no name"),
    ("a\n", "is no name"),
    ("", "is no name"),
    ("-x", "is no name"),
    ("Å", "is no name"),
    ("x" * 61, "has 61 characters"),
]


@pytest.mark.parametrize(("name", "message"), NEVER)
def test_parse_config__names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(content(name))
    assert "systems" in str(caught.value)


NOT_NEW = [
    "Model",
    "MODEL",
    "Density.zarr",
    "other.zarr",
    "control",
    "Holdout",
    "work",
    "cycle-001",
]


@pytest.mark.parametrize("name", ["model", *NOT_NEW])
def test_run__reserved_names_in_one_message(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(content(name)))
    for more in ([], ["--dry-run"]):
        argv = ["run", str(file), "--directory", str(tmp_path / "out"), *more]
        assert main(argv) == 1
        err = capsys.readouterr().err
        assert f"{name!r} is a name of the campaign's own files" in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NOT_NEW)
def test_parse_config__of_a_campaign_that_has_begun_goes_on(name: str) -> None:
    assert parse_config(content(name)).explored == (name,)


def test_check_new__names_that_differ_in_case_only() -> None:
    check_new(["a", "b", "model-2", "S_pr^hf", "UiO-66.reo"])
    with pytest.raises(ValueError, match="'Ld' and 'lD' differ in case only"):
        check_new(["Ld", "x", "lD"])


def test_exists__a_model_only_with_its_model_json(tmp_path: Path) -> None:
    config: CampaignConfig = parse_config(content("ld"))
    site = Site(tmp_path, config)
    steps = {step.makes: step for step in site.steps()}
    for relative in (paths.model(0), paths.control(1)):
        (tmp_path / relative / "ld").mkdir(parents=True)
        (tmp_path / relative / "weights.pt").touch()
        assert not site.exists(relative)
        assert steps[relative] in plan.unfinished(site.steps(), site.exists)
        (tmp_path / relative / "model.json").touch()
        assert site.exists(relative)
    assert site.finished_cycles() == 0
