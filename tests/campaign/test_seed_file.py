"""Seed data from a file: whose labels are taken, and what is refused before anything is paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write as write_with_ase

from mofal.campaign.config import CampaignConfig, dump_config, load_config, parse_config
from mofal.campaign.seeding import read_seed_file, refuse_another
from mofal.campaign.site import Site
from mofal.cli import main
from mofal.data import structure_ids, write
from mofal.data.hashing import hash_json
from mofal.errors import CampaignError, ConfigError
from mofal.reference import get_reference, import_labels
from tests.campaign.conftest import write_campaign

BOTH = ("`labels: reference`", "`labels: ignore`")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def water(n: int = 4, *, labelled: bool = True) -> list[Atoms]:
    """Water molecules with energies and forces that nobody has calculated."""
    out = []
    for k in range(n):
        atoms = molecule("H2O")
        atoms.rattle(0.02, seed=k)
        if labelled:
            forces = np.random.default_rng(k).normal(size=(3, 3))
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 - k, forces=forces)
        out.append(atoms)
    return out


def foreign(tmp_path: Path, frames: list[Atoms] | None = None, name: str = "seed.xyz") -> Path:
    """A file as other programs leave it: no level of theory."""
    write_with_ase(tmp_path / name, frames or water(), format="extxyz")
    return tmp_path / name


def own(tmp_path: Path, name: str = "own.xyz") -> Path:
    """A file that says that its labels are GFN1-xTB's."""
    labels = import_labels(foreign(tmp_path), level=get_reference("gfn1-xtb"))
    return write(labels, tmp_path / name)


def config_of(file: Path, labels: str | None = None, reference: str = "gfn1-xtb") -> CampaignConfig:
    seed: dict[str, Any] = {"file": str(file)} | ({"labels": labels} if labels else {})
    return parse_config(
        {
            "name": "x",
            "seed": 1,
            "systems": {"a": {"build": "S_pr"}},
            "seed_data": seed,
            "cycles": 0,
            "reference": {"name": reference},
        }
    )


def taken(file: Path, labels: str | None = None, reference: str = "gfn1-xtb") -> Any:
    return read_seed_file(config_of(file, labels, reference), get_reference(reference))


def refused(file: Path, *words: str, labels: str | None = None, reference: str = "gfn1-xtb") -> str:
    with pytest.raises(ConfigError) as error:
        taken(file, labels, reference)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    for word in (file.name, *words):
        assert word in text, text
    return text


# ---------------------------------------------------------------------------------- whose labels
def test_read_seed_file__labels_without_a_level_want_a_word(tmp_path: Path) -> None:
    file = foreign(tmp_path)
    refused(file, "do not say their level", "structures 0, 1, 2, 3", "gfn1-xtb", *BOTH)
    labels = taken(file, "reference")
    np.testing.assert_allclose(labels.energy.values, [-1, -2, -3, -4])
    assert labels.attrs["level_hash"] == get_reference("gfn1-xtb").level_hash
    anew = taken(file, "ignore")
    assert not {"energy", "forces", "stress", "status"} & set(anew.variables)
    np.testing.assert_array_equal(anew.structure_id.values, labels.structure_id.values)
    assert "level_hash" not in anew.attrs


def test_read_seed_file__own_labels_are_compared_with_the_reference(tmp_path: Path) -> None:
    file = own(tmp_path)
    np.testing.assert_allclose(taken(file).energy.values, [-1, -2, -3, -4])
    for labels in (None, "reference"):
        text = refused(file, "level of theory", BOTH[1], labels=labels, reference="gfn2-xtb")
        assert "GFN1-xTB" in text
    assert "energy" not in taken(file, "ignore", "gfn2-xtb")


def test_read_seed_file__own_and_foreign_labels_in_one_file(tmp_path: Path) -> None:
    file = own(tmp_path)
    # Some of another program's behind them: they do not become ours by that.
    file.write_text(file.read_text() + foreign(tmp_path, water(6)[4:]).read_text())
    refused(file, "in structures 4, 5)", *BOTH)
    assert taken(file, "reference").sizes["structure"] == 6
    other = import_labels(foreign(tmp_path), level=get_reference("gfn2-xtb"))
    two = own(tmp_path, "two.xyz")
    two.write_text(two.read_text() + write(other, tmp_path / "x.xyz").read_text())
    refused(two, "2 different", BOTH[1])
    assert taken(two, "ignore").sizes["structure"] == 8


def test_read_seed_file__structures_alone(tmp_path: Path) -> None:
    file = foreign(tmp_path, water(labelled=False))
    for labels in (None, "ignore"):
        ds = taken(file, labels)
        assert "energy" not in ds
        np.testing.assert_array_equal(ds.structure_id.values, structure_ids(ds))
        assert set(ds.system.values) == {"seed"}
    refused(file, "energy missing", BOTH[1], labels="reference")


# ---------------------------------------------------------------------------------- broken labels
def drop_all(frames: list[Atoms]) -> None:
    frames[1].calc = None


def drop_energy(frames: list[Atoms]) -> None:
    del frames[2].calc.results["energy"]


def drop_forces(frames: list[Atoms]) -> None:
    del frames[3].calc.results["forces"]


def nan_energy(frames: list[Atoms]) -> None:
    frames[1].calc.results["energy"] = np.nan


def nan_force(frames: list[Atoms]) -> None:
    for frame in frames[1:3]:
        frame.calc.results["forces"][1, 1] = np.nan


def infinite_force(frames: list[Atoms]) -> None:
    frames[0].calc.results["forces"][2, 0] = -np.inf


BROKEN = [
    (drop_all, ("energy missing in structure 1;", "forces missing in structure 1 ")),
    (drop_energy, ("energy missing in structure 2 ",)),
    (drop_forces, ("forces missing in structure 3 ",)),
    (nan_energy, ("energy NaN or infinite in structure 1 ",)),
    (nan_force, ("forces NaN or infinite in structures 1, 2 ",)),
    (infinite_force, ("forces NaN or infinite in structure 0 ",)),
]


@pytest.mark.parametrize(("spoil", "words"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_read_seed_file__labels_are_taken_for_all_or_none(
    spoil: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    frames = water()
    spoil(frames)
    file = foreign(tmp_path, frames)
    for labels in (None, "reference"):
        refused(file, *words, "there are 4", BOTH[1], labels=labels)
    ds = taken(file, "ignore")
    assert ds.sizes["structure"] == 4
    assert "energy" not in ds


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_read_seed_file__forces_of_another_shape(columns: int, tmp_path: Path) -> None:
    file = tmp_path / "seed.xyz"
    # One column would be spread over x, y and z.
    rows = [f"{a} {k} 0 0" + " 0.5" * columns for k, a in enumerate("OHH")]
    head = f"Properties=species:S:1:pos:R:3:forces:R:{columns} energy=-1.0"
    file.write_text("\n".join(["3", head, *rows, ""]))
    for labels in (None, "reference"):
        refused(file, "forces of a foreign shape in structure 0 ", labels=labels)
    assert taken(file, "ignore").sizes["atom"] == 3


def test_read_seed_file__element_that_the_reference_cannot_do(tmp_path: Path) -> None:
    atoms = Atoms("Og")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)))
    refused(foreign(tmp_path, [atoms]), "Og", "gfn1-xtb", labels="reference")


# ---------------------------------------------------------------------------------- the campaign
@pytest.mark.parametrize("what", ["labelled", "Og"])
def test_run__seed_file_refused_before_anything_is_paid_for(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = water() if what == "labelled" else [Atoms("Og")]
    changes = {"seed_data": {"file": foreign(tmp_path, frames).name}, "holdout": None}
    file = write_campaign(tmp_path / "campaign.yaml", **changes)
    out = tmp_path / "out"
    assert main(["run", str(file), "--directory", str(out)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("mofal: ")
    assert len(shown.err.strip().splitlines()) == 1
    assert "Traceback" not in shown.out + shown.err
    if what == "labelled":
        assert all(word in shown.err for word in ("seed.xyz", *BOTH))
        assert not out.exists()
        assert main(["run", str(file), "--directory", str(out), "--dry-run"]) == 1
        assert BOTH[0] in capsys.readouterr().err
    else:
        assert "Og" in shown.err
        assert not (out / "campaign.json").exists()
        assert not (out / "label-records").exists()


def test_sample_seed__workers_know_what_was_asked(tmp_path: Path) -> None:
    """The campaign file that workers read says it too."""
    from mofal.campaign.site import write_config
    from mofal.campaign.tasks import sample_seed

    file = foreign(tmp_path)
    for labels in ("reference", "ignore"):
        config = config_of(file, labels)
        assert parse_config(yaml.safe_load(dump_config(config))) == config
        root = tmp_path / labels
        root.mkdir()
        write_config(root, config)
        assert sample_seed(str(root), config.identity()) == {"structures": 4}
        samples = Site(root).group("cycle-000/samples.zarr")
        assert ("energy" in samples) == (labels == "reference")


def test_identity__labels_decide_and_older_campaigns_go_on(tmp_path: Path) -> None:
    file = foreign(tmp_path)
    given = [config_of(file, labels) for labels in (None, "reference", "ignore")]
    assert len({c.identity() for c in given}) == 3
    # What a campaign wrote down that began before there was such a key.
    before = given[0].deciding()
    assert "labels" not in before["seed_data"]
    facts = {"name": "x", "identity": hash_json(before), "settings": before}
    refuse_another(Site(tmp_path / "out", given[0]), facts)
    with pytest.raises(CampaignError, match=r"seed_data\.labels: None -> ignore"):
        refuse_another(Site(tmp_path / "out", given[2]), facts)


def test_load_config__labels_beside_a_file(tmp_path: Path) -> None:
    foreign(tmp_path)
    changes = {"seed_data": {"file": "seed.xyz", "labels": "reference"}}
    config = load_config(write_campaign(tmp_path / "campaign.yaml", **changes))
    assert config.seed_data.labels == "reference"
    assert config.seed_data.file == tmp_path / "seed.xyz"
