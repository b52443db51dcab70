"""Campaign files: every example is valid, and every mistake gets its one message."""

from __future__ import annotations

import os
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mofal.campaign.directory import write_config
from mofal.campaign.examples import example_names, example_text
from mofal.campaign.loading import differences, dump_config, load_config, parse_config
from mofal.commands.init import write_example
from mofal.dynamics.settings import WalkSettings
from mofal.errors import ConfigError

GOOD: dict[str, Any] = {
    "name": "x",
    "seed": 1,
    "systems": {"ld": {"build": "S_ld"}},
    "seed_data": {"perturbed": {"system": "ld"}},
    "cycles": 2,
}


@pytest.mark.parametrize("name", example_names())
def test_examples__are_valid_and_survive_being_written_out(name: str) -> None:
    config = parse_config(yaml.safe_load(example_text(name)))
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_examples__known_by_name_and_never_overwritten(tmp_path: Path) -> None:
    file = write_example(tmp_path / "c.yaml", "minimal")
    assert load_config(file).cycles == 3
    with pytest.raises(ConfigError, match="exists already"):
        write_example(file, "minimal")
    with pytest.raises(ConfigError, match="did you mean 'minimal'"):
        write_example(tmp_path / "d.yaml", "minimul")


def test_defaults__are_the_papers() -> None:
    config = parse_config(GOOD)
    assert config.exploration.walks == 50
    assert config.exploration.length_fs == 500
    assert config.exploration.timestep_fs == 0.5
    assert config.exploration.temperature_K == 600
    assert config.exploration.pressure_GPa == (-1.5, 1.5)
    assert config.exploration.thermostat_fs == 100
    assert config.selection.clusters == 150
    assert config.selection.shells == 1
    final = config.potential.final
    assert (final.learning_rate, final.batch_size) == (0.004, 5)
    assert (final.plateau_factor, final.plateau_patience) == (0.75, 25)
    assert (final.stop_delta, final.stop_patience, final.min_learning_rate) == (1e-5, 250, 1e-5)
    assert (final.force_weight, final.energy_weight) == (1, 100)
    assert config.potential.cycle.learning_rate > final.learning_rate
    assert config.potential.cycle.stop_patience < final.stop_patience
    assert config.potential.cycle.warm_up_epochs == 10


def test_identity__depends_on_results_and_not_on_where_things_run(tmp_path: Path) -> None:
    one = parse_config(GOOD)
    assert one.identity() == parse_config({**GOOD, "schedule": {"workers": 7}}).identity()
    assert one.identity() == parse_config({**GOOD, "cycles": 9}).identity()
    assert one.identity() != parse_config({**GOOD, "seed": 2}).identity()
    # As it was before there was such a setting.
    assert "labels" not in one.deciding()["seed_data"]
    assert one.identity() != parse_config({**GOOD, "selection": {"shells": 2}}).identity()


def test_identity__of_a_file_is_its_content(tmp_path: Path) -> None:
    for name in ("a.cif", "b.cif"):
        (tmp_path / name).write_text("same")
    (tmp_path / "c.cif").write_text("other")
    found = [
        parse_config({**GOOD, "systems": {"ld": {"file": str(tmp_path / n)}}}).identity()
        for n in ("a.cif", "b.cif", "c.cif")
    ]
    assert found[0] == found[1] != found[2]


def test_differences__name_the_place() -> None:
    one = parse_config(GOOD).deciding()
    assert differences(one, one) == []
    final = {"potential": {"final": {"max_epochs": 7}}}
    other = parse_config({**GOOD, "seed": 2, **final}).deciding()
    assert differences(other, one) == [
        f"seed: {GOOD['seed']} -> 2",
        "potential.final.max_epochs: None -> 7",
    ]


BAD = [
    ({"sed": 2}, "unknown key sed; did you mean 'seed'"),
    ({"cycles": -1}, "cycles is -1"),
    ({"cycles": 1.5}, "cycles is 1.5"),
    ({"seed": "one"}, "seed is 'one'"),
    ({"seed": -1}, "seed is -1"),
    ({"name": "a/b"}, "name: 'a/b' is no name"),
    ({"systems": {}}, "systems"),
    ({"systems": {"a": {}}}, "systems.a: give either `build: NAME` or `file: PATH`"),
    ({"systems": {"ld": {"build": "S_ld", "file": "x.cif"}}}, "and not both"),
    ({"systems": {"ld": {"build": "S_ld", "cell": "cubic"}}}, "systems.ld.cell is 'cubic'"),
    ({"systems": {"ld": {"build": "S_ld", "repeat": [0, 1, 1]}}}, "systems.ld.repeat.0 is 0"),
    ({"seed_data": {}}, "exactly one of `example`, `file`, `perturbed` or `clusters`"),
    ({"seed_data": {"perturbed": {"system": "pr"}}}, "names the system 'pr'"),
    ({"seed_data": {"perturbed": {"system": "ld", "frames": 0}}}, "frames is 0"),
    (
        {"seed_data": {"perturbed": {"system": "ld", "temperature_K": -600}}},
        "temperature_K is -600",
    ),
    ({"seed_data": {"file": "x.xyz", "labels": "mine"}}, "seed_data.labels is 'mine'"),
    ({"seed_data": {"clusters": {}, "labels": "ignore"}}, "and `clusters` has none"),
    ({"exploration": {"temperature_K": -3}}, "exploration.temperature_K is -3"),
    ({"exploration": {"temperature_K": float("nan")}}, "exploration.temperature_K is nan"),
    ({"exploration": {"temperature": 600}}, "did you mean 'temperature_K'"),
    ({"exploration": {"pressure_GPa": [2, -2]}}, "expected the lower end first"),
    ({"exploration": {"length_fs": 50}}, "would not be felt"),
    ({"exploration": {"timestep_fs": 20}}, "exploration.timestep_fs is 20"),
    ({"potential": {"architecture": "tinny"}}, "did you mean 'tiny'"),
    ({"potential": {"architecture": {"r_max": 4}}}, "n_layers"),
    ({"potential": {"elements": ["Xx"]}}, "'Xx' is no chemical symbol"),
    ({"potential": {"seed": {"learning_rat": 0.1}}}, "did you mean 'learning_rate'"),
    ({"potential": {"final": {"threads": 2}}}, "belongs one level up"),
    ({"potential": {"cycle": {"min_learning_rate": 1.0}}}, "training would stop at once"),
    ({"quorum": 0}, "quorum is 0"),
    ({"holdout": {"systems": ["hf"]}}, "holdout.systems names the system 'hf'"),
    ({"systems": {"ld": {"build": "S_ld", "explore": False}}}, "has nothing to walk"),
    ({"schedule": {"backend": "slurm"}}, "without pools"),
    ({"schedule": {"backend": "pbs"}}, "schedule.backend is 'pbs'"),
    ({"reference": {"max_force_eV_per_A": 0}}, "reference.max_force_eV_per_A is 0"),
    ({"density": {"components": 0}}, "density.components"),
    ({"reference": {"caches": "labels"}}, "reference.caches is 'labels'"),
    ({"reference": {"caches": [{"path": "x", "mod": "rw"}]}}, "did you mean 'mode'"),
    ({"reference": {"caches": [{"path": "x", "mode": "w"}]}}, "mode is 'w'"),
]


@pytest.mark.parametrize(("patch", "message"), BAD, ids=[m for _, m in BAD])
def test_parse_config__one_clear_message(patch: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({**GOOD, **patch}, where="campaign.yaml")
    assert message in str(error.value)
    assert str(error.value).startswith("campaign.yaml")


def test_caches__read_only_and_written_to(tmp_path: Path) -> None:
    from ase.build import molecule

    from mofal.campaign.directory import Site
    from mofal.reference import LabelCache, label_one

    for name in ("everybody", "group"):
        (tmp_path / name).mkdir()
    caches = ["everybody", {"path": "group", "mode": "rw"}]
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "reference": {"caches": caches}}))
    config = load_config(file)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert config.identity() == parse_config(GOOD).identity()
    cache = Site(tmp_path / "campaign", config).cache()
    label_one(molecule("H2"), "gfn1-xtb", directory=cache)
    assert [len(list(LabelCache(tmp_path / n).records())) for n in ("everybody", "group")] == [0, 1]
    file.write_text(yaml.safe_dump({**GOOD, "reference": {"caches": ["campaign.yaml"]}}))
    with pytest.raises(ConfigError, match="expected a directory"):
        load_config(file)


def test_load_config__files_that_are_none(tmp_path: Path) -> None:
    cases = {
        "missing.yaml": (None, "does not exist"),
        "empty.yaml": ("", "holds no keys"),
        "list.yaml": ("- a\n- b\n", "holds no keys"),
        "broken.yaml": ("name: x\n  seed: 1\n", "line 2"),
        "tabs.yaml": ("name: x\n\tseed: 1\n", "line 2"),
    }
    for name, (text, message) in cases.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="is a directory"):
        load_config(tmp_path)


def test_load_config__paths_are_taken_from_the_files_place(tmp_path: Path) -> None:
    (tmp_path / "my.cif").write_text("data_x")
    content = {**GOOD, "systems": {"ld": {"file": "my.cif"}}}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(content))
    assert load_config(file).systems["ld"].file == tmp_path / "my.cif"
    (tmp_path / "my.cif").unlink()
    with pytest.raises(ConfigError, match=r"systems\.ld\.file is my\.cif"):
        load_config(file)


@pytest.mark.parametrize(
    ("schedule", "private"),
    [
        ({}, False),
        ({"pools": {"cpu": {"environment": {"TOKEN": "1"}}}}, True),
        ({"pools": {"cpu": {"prologue": ["export TOKEN=1"]}}}, True),
        ({"driver": {"job_extra": ["--export=TOKEN=1"]}}, True),
    ],
)
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_write_config__tokens_are_nobody_elses_to_read(
    tmp_path: Path, schedule: dict[str, Any], private: bool, umask: int
) -> None:
    config = parse_config({**GOOD, "schedule": schedule})
    before = os.umask(umask)
    try:
        write_config(tmp_path, config)
    finally:
        os.umask(before)
    file = tmp_path / "campaign.yaml"
    assert load_config(file) == config
    assert stat.S_IMODE(file.stat().st_mode) == (0o600 if private else 0o666 & ~umask)


def test_exploration__has_every_condition_of_a_walk() -> None:
    """A file reaches all of them, with the same defaults."""
    found = parse_config(GOOD).exploration
    ours = {"walks", "engine"}
    assert set(type(found).model_fields) == {f.name for f in fields(WalkSettings)} | ours
    assert found.walk_settings() == WalkSettings()
    changed = parse_config({**GOOD, "exploration": {"sample_every": 5, "checkpoint_every": 20}})
    settings = changed.exploration.walk_settings()
    assert (settings.sample_every, settings.checkpoint_every) == (5, 20)
    assert changed.identity() != parse_config(GOOD).identity()
    assert "sample_every" not in parse_config(GOOD).deciding()["exploration"]
