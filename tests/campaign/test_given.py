"""What a campaign is given to start from, and how long potentials hold: what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tblite.ase import TBLite

from mofal import Campaign
from mofal.campaign.directory import Site
from mofal.campaign.examples import seed_place
from mofal.campaign.given import example_labels
from mofal.campaign.loading import dump_config, load_config, parse_config
from mofal.campaign.prepare import examine, unlearnt
from mofal.cli import main
from mofal.commands.hold import hold_file
from mofal.data import open_group, relative_energy, select, to_atoms
from mofal.data.documents import parse_yaml
from mofal.dynamics.holding import survival
from mofal.errors import ConfigError
from mofal.frameworks import build
from mofal.potential import load

START = "example:uio66-gfn1"


def campaign(**changes: Any) -> dict[str, Any]:
    return {
        "name": "given", "seed": 1, "cycles": 1,
        "systems": {"d": {"build": "S_ld", "cell": "primitive"}},
        "seed_data": {"example": "uio66-gfn1"}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "frames"), [("uio66-gfn1", 40), ("uio66-gpaw-lcao", 10)])
def test_example_labels__a_share_of_both_parts(name: str, frames: int) -> None:
    whole = open_group(seed_place(name) / "labels.zarr").load()
    some = example_labels(
        parse_config(campaign(seed_data={"example": name, "frames": frames})), None
    )
    assert abs(some.sizes["structure"] - frames) <= 1
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
        (
            {"potential": {"pretrained": START}, "systems": {"z": {"build": "UiO-66-NH2"}}},
            "potential.pretrained: it has no type for N",
        ),
        ({"potential": {"start": START, "like": {"N": "P"}}}, "nothing can begin as P.*knows H, C"),
        (
            {
                "potential": {"start": START},
                "reference": {"name": "gfn2-xtb"},
                "seed_data": {"perturbed": {"system": "d", "frames": 2}},
            },
            "potential.pretrained begins a training",
        ),
    ],
)
def test_examine__a_start_that_cannot_be(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        examine(Site(tmp_path / "out", parse_config(campaign(**changes))))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("potential", "words"),
    [
        ({"like": {"Hf": "Zr"}}, "give `start` or `pretrained` with it"),
        ({"start": START, "like": {"Hf": "Zk"}}, "'Zk' is no chemical symbol"),
    ],
)
def test_parse_config__what_elements_begin_as(potential: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(campaign(potential=potential))


@pytest.mark.parametrize("key", ["start", "pretrained"])
def test_examine__elements_that_begin_as_another(key: str, tmp_path: Path) -> None:
    """One without a type (N), one whose type is untrained (Hf); no campaign is renamed."""
    systems = {"a": {"build": "UiO-66-NH2"}, "hf": {"build": "S_hf", "cell": "primitive"}}
    given = {key: START, "like": {"N": "C", "Hf": "Zr"}}
    found = examine(Site(tmp_path, parse_config(campaign(systems=systems, potential=given))))
    assert {"N", "Hf"} <= set(found.elements)
    assert not found.notes or not any("untrained" in note for note in found.notes)
    plain, empty = (
        parse_config(campaign(potential={key: START, **also})) for also in ({}, {"like": {}})
    )
    assert plain.identity() == empty.identity()
    assert "like" not in plain.deciding()["potential"]
    compiled = parse_config(campaign(potential={key: START, "final": {"engine": "compiled"}}))
    assert compiled.identity() == plain.identity()  # so that it may change between two runs


def test_examine__what_is_learnt_does_not_begin_anew(tmp_path: Path) -> None:
    given = {"start": START, "like": {"Zr": "Hf"}}
    with pytest.raises(ConfigError, match="other way round, Hf: Zr"):
        examine(Site(tmp_path / "out", parse_config(campaign(potential=given))))


@pytest.mark.parametrize("key", ["start", "pretrained"])
def test_campaign__an_element_begins_as_another(key: str, tmp_path: Path) -> None:
    """The first model knows Hf as Zr; run again, it is the same."""
    file = tmp_path / "campaign.yaml"
    file.write_text(
        yaml.safe_dump(
            campaign(
                cycles=0,
                systems={"hf": {"build": "S_hf", "cell": "primitive"}},
                seed_data={"example": "uio66-gfn1", "frames": 6},
                potential={
                    key: START,
                    "like": {"Hf": "Zr"},
                    "seed": {"max_epochs": 1, "batch_size": 2, "learning_rate": 1e-4},
                },
                holdout=None,
                control=False,
                schedule={"backend": "inline"},
            )
        )
    )
    for _ in range(2):
        assert main(["run", str(file), "--directory", str(tmp_path / "c")]) == 0
    model = load(tmp_path / "c" / "cycle-000" / "model")
    frame = build("S_hf", cell="primitive")
    as_zr = frame.assign(numbers=frame["numbers"].where(frame["numbers"] != 72, 40))
    forces, expected = (model.evaluate(ds)["forces"].values for ds in (frame, as_zr))
    # An epoch without Hf moves the embedding of Zr a little.
    assert np.abs(forces - expected).max() < (1e-6 if key == "start" else 0.1)
    untrained = load(seed_place("uio66-gfn1") / "model").evaluate(frame)["forces"].values
    assert np.abs(untrained - expected).max() > 0.3


def test_unlearnt__an_element_of_the_systems_that_no_label_holds() -> None:
    labels = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    one = {"d": build("S_ld", cell="primitive")}
    both = {**one, "hf": build("S_hf")}
    systems = {name: {"build": "S_ld"} for name in both}
    given = parse_config(campaign(systems=systems, potential={"start": START}))
    alone = parse_config(campaign(systems=systems))
    drawn = parse_config(
        campaign(systems=systems, seed_data={"perturbed": {"system": "hf", "frames": 2}})
    )
    assert unlearnt(given, one, [labels]) == unlearnt(given, both, []) == []
    for config, words in ((given, "potential.pretrained in the place"), (alone, "add labels with")):
        (said,) = unlearnt(config, both, [labels])
        assert said.startswith("no label of the seed data holds Hf:")
        assert words in said
    assert unlearnt(drawn, both, []) == []


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


def test_pretrained__weights_of_another_level_begin_the_training(tmp_path: Path) -> None:
    """One tiny step: forces are the given potential's, energies those of the new level."""
    short = {"max_epochs": 1, "learning_rate": 1e-9, "min_learning_rate": 0.0}
    content = campaign(
        cycles=0,
        systems={"p": {"build": "S_pr", "cell": "primitive"}},
        seed_data={"clusters": {"per_system": 2, "frames": 1}},
        selection={"shells": 0},  # bare bricks, 66 atoms
        reference={"name": "gfn2-xtb"},
        potential={"pretrained": START, "validation_fraction": 0.5, "seed": short},
        schedule={"backend": "inline"},
    )
    Campaign(parse_config(content), directory=tmp_path / "out").run()
    site = Site(tmp_path / "out")
    data = site.training_set(0, whole=True)
    given, model = load(seed_place("uio66-gfn1") / "model"), load(site.path("cycle-000/model"))
    assert model.architecture == given.architecture
    before, after = given.evaluate(data), model.evaluate(data)
    np.testing.assert_allclose(after["forces"], before["forces"], atol=1e-4)
    learnt = data["split"].values == "train"
    off = [
        np.asarray((relative_energy(data) - e["energy"]) / data["n_atoms"])[learnt]
        for e in (before, after)
    ]
    assert abs(off[1]).max() < 1e-3 < 0.05 < abs(off[0]).min()
    with pytest.raises(ConfigError, match="and not both"):
        parse_config(campaign(potential={"pretrained": START, "start": START}))


def test_pretrained__a_directory_is_found_beside_its_file_and_known_by_its_content(
    tmp_path: Path,
) -> None:
    known = []
    for place in ("here", "there"):
        folder = tmp_path / place
        shutil.copytree(seed_place("uio66-gfn1") / "model", folder / f"of-{place}")
        (folder / "c.yaml").write_text(
            json.dumps(campaign(potential={"pretrained": f"of-{place}", "architecture": "tiny"}))
        )
        known.append(load_config(folder / "c.yaml"))
    assert known[0].identity() == known[1].identity()
    again = parse_config(parse_yaml(dump_config(known[0]), where="c").content)
    assert (again.potential.pretrained, again.identity()) == (
        str(tmp_path / "here" / "of-here"), known[0].identity(),
    )  # fmt: skip
    assert known[0].identity() != parse_config(campaign()).identity()
    (tmp_path / "here" / "of-here" / "model.json").unlink()
    with pytest.raises(ConfigError, match=r"potential.pretrained is .*holds no model.json"):
        load_config(tmp_path / "here" / "c.yaml")
    wrong = campaign(potential={"pretrained": START, "architecture": "extended"})
    with pytest.raises(ConfigError, match="architecture: tiny"):
        examine(Site(tmp_path / "out", parse_config(wrong)))


# ---------------------------------------------------------------------------------- several sources
def test_seed_data__sources_are_learnt_together_and_divided_as_they_say(tmp_path: Path) -> None:
    whole = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    content = campaign(
        cycles=0,
        systems={"p": {"build": "S_pr", "cell": "primitive"}},
        seed_data=[
            {"example": "uio66-gfn1", "frames": 6},
            {"perturbed": {"system": "p", "frames": 1}},
        ],
        potential={"architecture": "tiny", "start": START},
        schedule={"backend": "inline"},
    )
    config = parse_config(content)
    assert parse_config(parse_yaml(dump_config(config), where="c").content) == config
    Campaign(config, directory=tmp_path / "out").run()
    site = Site(tmp_path / "out")
    data = site.training_set(0, whole=True)
    taken = example_labels(config.seed_sources[0], None)
    assert data.sizes["structure"] == taken.sizes["structure"] + 1
    given = dict(zip(whole["structure_id"].values, whole["split"].values))
    split = dict(zip(data["structure_id"].values, data["split"].values))
    assert all(split[s] == given[s] for s in taken["structure_id"].values)
    assert set(split.values()) <= {"train", "validation"}
    new = select(data, [s not in given for s in data["structure_id"].values])
    drawn = to_atoms(new, 0)
    drawn.calc = TBLite(method="GFN1-xTB", verbosity=0)
    assert abs(drawn.get_forces() - new["forces"].values).max() < 1e-3


def test_seed_data__a_mistake_is_placed_in_its_source() -> None:
    for source, words in (
        ({"perturbed": {"system": "q"}}, "seed_data.perturbed.system names the system 'q'"),
        ({"perturbd": {"system": "d"}}, "unknown key seed_data.1.perturbd; did you mean"),
        ({"example": "x"}, "seed_data.1: no example seed is called 'x'"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_config(campaign(seed_data=[{"example": "uio66-gfn1"}, source]))
    with pytest.raises(ConfigError, match="empty list"):
        parse_config(campaign(seed_data=[]))


def test_seed_data__one_source_is_the_campaign_that_it_was() -> None:
    one = parse_config(campaign())
    assert (
        parse_config(campaign(seed_data=[{"example": "uio66-gfn1"}])).identity() == one.identity()
    )
    assert "more_seed_data" not in one.deciding()
