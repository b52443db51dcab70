"""Charges and spins of a campaign: from cutting to labels, and refused in the dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.io import write as write_with_ase

from mofal.campaign.config import SystemSettings
from mofal.campaign.driver import Campaign
from mofal.campaign.electrons import check_electrons, representative_cores, with_spin
from mofal.campaign.prepare import examine, make_system, settle
from mofal.campaign.steps.sample import sample_seed
from mofal.cli import main
from mofal.data import select, structure_ids, to_atoms
from mofal.errors import ConfigError, StructureError
from mofal.reference import get_reference, structure_id_of
from tests.frameworks import published

EMT = "ase:ase.calculators.emt:EMT"


def primitive(atoms: Atoms) -> Atoms:
    import spglib

    cell, scaled, numbers = spglib.find_primitive(
        (atoms.cell[:], atoms.get_scaled_positions(), atoms.numbers), symprec=1e-3
    )
    return Atoms(numbers, scaled_positions=scaled, cell=cell, pbc=True)


def campaign(tmp_path: Path, atoms: Atoms, **changes: Any) -> Path:
    write_with_ase(tmp_path / "mof.extxyz", atoms)
    rule = changes.pop("rule", "carboxylate")
    content = {
        "name": "x",
        "seed": 1,
        "cycles": 1,
        "systems": {"mof": {"file": "mof.extxyz", "rule": rule}},
        "seed_data": {"clusters": {"per_system": 3, "frames": 1}},
        **changes,
    }
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def run(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The start, which imports the reference; a dry run does not where it is code of others."""
    out = file.parent / "out"
    status = main(["run", str(file), "--directory", str(out)])
    shown = capsys.readouterr()
    assert not (out / "campaign.json").exists()
    assert len(shown.err.strip().splitlines()) == 1
    return status, shown.out + shown.err


def dry_run(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    out = file.parent / "out"
    status = main(["run", str(file), "--directory", str(out), "--dry-run"])
    shown = capsys.readouterr()
    assert not out.exists()
    if status:
        assert len(shown.err.strip().splitlines()) == 1
    return status, shown.out + shown.err


@pytest.fixture(scope="module")
def copper() -> Atoms:
    return primitive(published.hkust1())


def test_dry_run__open_shell_without_its_electrons(
    copper: Atoms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = dry_run(campaign(tmp_path, copper), capsys)
    assert status == 1
    assert "systems.mof" in text
    assert "partly filled d or f shell on Cu: give its unpaired electrons" in text
    assert "selection: {unpaired: {Cu: 1}}" in text
    status, text = dry_run(campaign(tmp_path, copper, selection={"unpaired": {"Cu": 1}}), capsys)
    assert status == 0
    assert "6 x node C4Cu2O8: open d or f shell" in text
    assert "the cluster around C4Cu2O8 (C28H20Cu2O8) has 2 unpaired electrons" in text
    # A reference that would refuse them: as early.
    file = campaign(tmp_path, copper, selection={"unpaired": {"Cu": 1}}, reference={"name": EMT})
    status, text = run(file, capsys)
    assert status == 1
    assert "2 unpaired electrons, and EMT has no parameter for it" in text


def test_dry_run__whole_frames_of_an_open_shell(
    copper: Atoms, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = {"perturbed": {"system": "mof", "frames": 2}}
    systems = {
        "mof": {"file": "mof.extxyz", "explore": False},
        "a": {"build": "S_pr", "cell": "primitive"},
    }
    file = campaign(tmp_path, copper, seed_data=seed, systems=systems)
    status, text = dry_run(file, capsys)
    assert status == 1
    assert "frames cannot be labelled: partly filled d or f shell on Cu" in text
    file = campaign(
        tmp_path, copper, seed_data=seed, systems=systems, selection={"unpaired": {"Cu": 1}}
    )
    status, text = dry_run(file, capsys)
    assert status == 0
    assert "its frames have 12 unpaired electrons" in text


def test_dry_run__charged_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zif = primitive(published.zif())
    status, text = dry_run(campaign(tmp_path, zif, rule="azolate"), capsys)
    assert status == 0  # labelled with their charge, and said
    assert "has the charge +2" in text
    file = campaign(tmp_path, zif, rule="azolate", reference={"name": EMT})
    status, text = run(file, capsys)
    assert status == 1
    assert f"{EMT} does not label the cluster around" in text
    assert "it has the charge" in text


@pytest.mark.slow
def test_sample_seed__clusters_have_their_spin(copper: Atoms, tmp_path: Path) -> None:
    file = campaign(tmp_path, copper, selection={"unpaired": {"Cu": 1}})
    made = Campaign(file, directory=tmp_path / "out")
    found = examine(made.site)
    assert found is not None
    settle(made.site, found)
    assert sample_seed(str(made.site.root), made.site.identity) == {"structures": 3}
    seed = made.site.group("cycle-000/samples.zarr").load()
    copper_atoms = np.add.reduceat(
        seed["numbers"].values == 29, np.cumsum(seed["n_atoms"].values) - seed["n_atoms"].values
    )
    assert seed["n_unpaired"].values.tolist() == copper_atoms.tolist()
    assert copper_atoms.min() == 2
    for k in range(3):
        one = to_atoms(select(seed, k), 0)
        assert structure_id_of(one) == str(seed["structure_id"].values[k])
    k = int(np.argmin(seed["n_atoms"].values))
    spin = get_reference("gfn1-xtb").calculate(to_atoms(seed, k), directory=tmp_path)
    closed = to_atoms(seed, k)
    closed.info["n_unpaired"] = 0
    singlet = get_reference("gfn1-xtb").calculate(closed, directory=tmp_path)
    assert spin.converged
    assert abs(spin.energy - singlet.energy) > 1e-3


def test_with_spin__closed_shells_are_left_alone() -> None:
    from mofal.frameworks import build, find_blocks

    ds = build("S_pr", cell="primitive")
    assert with_spin(ds, find_blocks(ds), {"Cu": 1}, place="x") is ds
    assert structure_ids(ds).tolist() == ds.structure_id.values.tolist()
    assert len(representative_cores(find_blocks(ds))) == 2


def test_check_electrons__built_systems_are_fine(tmp_path: Path) -> None:
    content = {
        "name": "x",
        "seed": 1,
        "cycles": 1,
        "systems": {"a": {"build": "S_ld", "cell": "primitive"}},
        "seed_data": {"perturbed": {"system": "a"}},
    }
    site = Campaign(content, directory=tmp_path / "out").site
    found = examine(site)
    assert found is not None
    assert found.notes == ()
    assert check_electrons(site, found.systems, site.reference()) == []


def test_cache__a_shared_one_that_is_not_there_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms = primitive(published.zif())
    reference = {"caches": [{"path": "new/labels", "mode": "rw"}]}
    file = campaign(tmp_path, atoms, rule="azolate", reference=reference)
    assert dry_run(file, capsys)[0] == 0
    assert not (tmp_path / "new").exists()
    made = Campaign(file, directory=tmp_path / "out")
    made.site.cache()
    assert (tmp_path / "new" / "labels").is_dir()
    file = campaign(tmp_path, atoms, rule="azolate", reference={"caches": ["other"]})
    status, text = dry_run(file, capsys)
    assert status == 1
    assert "other, which does not exist" in text


def test_blocks__charges_and_hints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign(tmp_path, primitive(published.zif()))
    file = str(tmp_path / "mof.extxyz")
    assert main(["blocks", file, "--rule", "azolate"]) == 0
    assert "x linker C4H5N2: charge -1" in capsys.readouterr().out
    assert main(["blocks", file, "--rule", "carboxylate"]) == 1
    assert "--rule azolate" in capsys.readouterr().err


def test_max_atoms__said_before_anything_is_labelled(tmp_path: Path) -> None:
    """Mantles that are made smaller, cores that no mantle makes small enough, and the seed data."""
    mof5 = primitive(published.mof5())
    for most, expected in (
        (35, "there are no clusters around C6H4: no neighbour of it fits, max_atoms is 35"),
        (50, "the cluster around C6O13Zn4 (C18H14O13Zn4, 49 atoms) lacks 4 of its neighbours"),
    ):
        file = campaign(tmp_path, mof5, selection={"max_atoms": most})
        site = Campaign(file, directory=tmp_path / "out").site
        found = examine(site)
        assert found is not None
        assert expected in "\n".join(found.notes)
        assert f"max_atoms is {most}" in "\n".join(found.notes)
    settle(site, found)
    assert sample_seed(str(site.root), site.identity) == {"structures": 3}
    seed = site.group("cycle-000/samples.zarr").load()
    assert seed["n_atoms"].values.max() <= 50
    assert seed["mantle_shortened"].values.all()
    none = campaign(tmp_path, mof5, selection={"max_atoms": 28})
    with pytest.raises(ConfigError, match="C6O13Zn4 cannot be labelled: 29 atoms with the smalle"):
        examine(Campaign(none, directory=tmp_path / "none").site)


def test_make_system__rods_are_repeated(tmp_path: Path) -> None:
    """MIL-53 repeats at 6.8 Å; so does MOF-74, though no vector of its primitive cell does."""
    from ase.geometry import minkowski_reduce

    from mofal.campaign.config import SystemSettings

    for atoms, n in ((published.mil53(), 2), (primitive(published.mof74()), 2)):
        write_with_ase(tmp_path / "rod.extxyz", atoms)
        settings = SystemSettings(file=tmp_path / "rod.extxyz")
        structure, blocks = make_system("rod", settings)
        assert structure.sizes["atom"] == n * len(atoms)
        assert blocks["charge"].values.sum() == 0
        reduced, _ = minkowski_reduce(structure["cell"].values[0])
        assert np.linalg.norm(reduced, axis=1).min() >= 12
        assert "repeat: [1, 1, 1] keeps" in structure.attrs["remarks"]
        kept, _ = make_system("rod", settings.model_copy(update={"repeat": (1, 1, 1)}))
        assert kept.sizes["atom"] == len(atoms)
        assert "remarks" not in kept.attrs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mil53", ("144 atoms", "2 x linker CHO2: charge -1", "7 x linker C8H4O4: charge -2")),
        ("mof74", ("104 atoms", "2 x node HMg2O: charge +3", "5 x linker C8H2O6: charge -4")),
    ],
)
def test_examples__rods_with_a_missing_linker(
    name: str, expected: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The campaign files of docs/frameworks.md: neutral, every cluster sound."""
    file = Path(__file__).parents[2] / "examples" / f"{name}.yaml"
    assert main(["run", str(file), "--directory", str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for words in (*expected, "note: defective: repeated 1 x 1 x 2"):
        assert words in text
    assert "has the charge" not in text


def test_make_system__disorder_that_leaves_no_defect(tmp_path):
    settings = {"build": "S_pr", "cell": "primitive"}
    few = SystemSettings(**settings, disorder={"linker": 0.01})
    structure, _ = make_system("ld", few)
    assert structure.sizes["atom"] == 114  # the perfect cell
    assert "draws no defect" in structure.attrs["remarks"]
    one = SystemSettings(**settings, disorder={"linker": 1 / 6, "exact": True})
    assert "remarks" not in make_system("ld", one)[0].attrs
    with pytest.raises(
        StructureError,
        match=r"^systems.ld.disorder: .* of 6 sites",
    ):
        make_system("ld", SystemSettings(**settings, disorder={"linker": 0.01, "exact": True}))
