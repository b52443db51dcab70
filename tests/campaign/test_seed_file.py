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

from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.campaign.loading import dump_config, load_config, parse_config
from mofal.campaign.prepare import refuse_another
from mofal.campaign.seed_check import check_seed_file
from mofal.campaign.seed_file import load_seed_file, read_seed_file
from mofal.cli import main
from mofal.data import structure_ids, write
from mofal.data.hashing import hash_json
from mofal.errors import CampaignError, ConfigError
from mofal.reference import get_reference, import_labels
from tests.campaign.conftest import write_campaign

BOTH = ("`labels: reference`", "`labels: ignore`")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    # Isolated atoms of these tests, once for all of them.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "seed-cache"))


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
    atoms = Atoms("OgH", [[0, 0, 0], [0, 0, 2]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)))
    refused(foreign(tmp_path, [atoms]), "Og", "gfn1-xtb", labels="reference")


# ---------------------------------------------------------------------------------- what they are
ACID = molecule("HCOOH")
HARTREE, BOHR, KCAL = 27.211386, 0.529177, 0.0433641


@pytest.fixture(scope="module")
def labelled() -> list[Atoms]:
    """Real GFN1-xTB labels of rattled formic acid."""
    out = []
    for k in range(10):
        atoms = ACID.copy()
        atoms.rattle(0.05, seed=k)
        made = get_reference("gfn1-xtb").calculate(atoms, directory=".")
        atoms.calc = SinglePointCalculator(atoms, energy=made.energy, forces=made.forces)
        out.append(atoms)
    return out


def spoilt(frames: list[Atoms], energy: Any = None, forces: Any = None) -> list[Atoms]:
    """Copies whose labels went through functions of label and number."""
    out = []
    for k, atoms in enumerate(frames):
        e, f = atoms.get_potential_energy(), atoms.get_forces()
        new = atoms.copy()
        new.calc = SinglePointCalculator(
            new, energy=energy(e, k) if energy else e, forces=forces(f, k) if forces else f
        )
        out.append(new)
    return out


def checked(file: Path, reference: str = "gfn1-xtb", **seed: Any) -> tuple[Any, list[str]]:
    content = yaml.safe_load(dump_config(config_of(file, reference=reference)))
    content["seed_data"] = {"file": str(file), **seed}
    return check_seed_file(parse_config(content), get_reference(reference))


def unfit(file: Path, *words: str, reference: str = "gfn1-xtb", **seed: Any) -> None:
    with pytest.raises(ConfigError) as error:
        checked(file, reference, **seed)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    for word in (str(file), *words):
        assert word in text, text


WRONG = {
    "relative": ({"energy": lambda e, k: e + 306.109}, "-36.", "relative to isolated atoms"),
    "Hartree": ({"energy": lambda e, k: e / HARTREE}, "-12.5", "Hartree"),
    "kcal/mol": ({"energy": lambda e, k: e / KCAL}, "-78", "kcal/mol"),
    "per atom": ({"energy": lambda e, k: e / 5}, "-68.", "per atom"),
    "gradients": ({"forces": lambda f, k: -f}, "a force on atom", "other sign"),
    "atomic units": ({"forces": lambda f, k: f * BOHR / HARTREE}, "a force", "Hartree/Bohr"),
    "order": ({"forces": lambda f, k: f[[1, 2, 3, 4, 0]]}, "a force on atom", "other atoms"),
    "one energy": ({"energy": lambda e, k: e + (k == 7)}, "structure 7: its energy", ""),
    "one force": ({"forces": lambda f, k: f * (1 + 0.2 * (k == 3))}, "structure 3: a force", ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_check_seed_file__label_made_again(
    case: str, labelled: list[Atoms], tmp_path: Path
) -> None:
    how, *words = WRONG[case]
    file = foreign(tmp_path, spoilt(labelled, **how))
    unfit(file, *words, "gfn1-xtb gives", BOTH[1], labels="reference")
    ds, _ = checked(file, labels="ignore")
    assert "energy" not in ds


def test_check_seed_file__what_is_as_stated(labelled: list[Atoms], tmp_path: Path) -> None:
    file = foreign(tmp_path, labelled)
    ds, notes = checked(file, labels="reference")
    assert ds.energy.values.tolist() == [a.get_potential_energy() for a in labelled]
    assert "10 of 10 labels made again" in notes[-1]


# Where no label is made again (GPAW is dear), with energies on its scale.
BOUNDED = {
    "Hartree": ({"energy": lambda e, k: e / HARTREE}, "another unit"),
    "kcal/mol": ({"energy": lambda e, k: e / KCAL}, "per atom of binding"),
    "total": ({"energy": lambda e, k: e - 306.109}, "per atom of binding"),
    "atomic units": (
        {"energy": lambda e, k: e / HARTREE, "forces": lambda f, k: f * BOHR / HARTREE},
        "another unit",
    ),
    "gradients": ({"forces": lambda f, k: -f}, "the other sign"),
    "order": ({"forces": lambda f, k: f[[1, 2, 3, 4, 0]]}, "other atoms"),
    "one energy": ({"energy": lambda e, k: e + 3 * (k == 7)}, "structure 7: its energy differs"),
}


@pytest.mark.parametrize("case", [*BOUNDED, "as they are"])
def test_check_seed_file__bounds(case: str, labelled: list[Atoms], tmp_path: Path) -> None:
    relative = spoilt(labelled, lambda e, k: e + 306.109)
    how, *words = BOUNDED.get(case, ({},))
    # Turned and moved: frames of a molecule need not lie on one another.
    frames = spoilt(relative, **how)
    for k, atoms in enumerate(frames):
        turned = atoms.copy()
        turned.rotate(37 * k, "xyz"[k % 3])
        turn = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
        if abs(atoms.positions[:, 2]).max() < 0.2:
            turned, turn = atoms.copy(), np.eye(3)
        turned.translate([k, 0, 0])
        forces = atoms.get_forces() @ turn
        turned.calc = SinglePointCalculator(
            turned, energy=atoms.get_potential_energy(), forces=forces
        )
        frames[k] = turned
    file = foreign(tmp_path, frames)
    if case == "as they are":
        _, notes = checked(file, "gpaw:lcao", labels="reference")
        assert "no label was made again" in notes[-1]
    else:
        unfit(file, *words, BOTH[1], reference="gpaw:lcao", labels="reference")


# ---------------------------------------------------------------------------------- foreign keys
def renamed(tmp_path: Path, frames: list[Atoms], energy: str, forces: str) -> Path:
    out = []
    for atoms in frames:
        new = atoms.copy()
        if energy:
            new.info[energy] = atoms.get_potential_energy()
        if forces:
            new.arrays[forces] = atoms.get_forces()
        out.append(new)
    return foreign(tmp_path, out)


@pytest.mark.parametrize(
    ("energy", "forces"),
    [("REF_energy", "REF_forces"), ("dft_energy", "dft_forces"), ("energy_dft", "forces_dft"),
     ("TotEnergy", "MACE_Force")],
)  # fmt: skip
def test_check_seed_file__foreign_keys(
    energy: str, forces: str, labelled: list[Atoms], tmp_path: Path
) -> None:
    file = renamed(tmp_path, labelled, energy, forces)
    keys = {"energy": energy, "forces": forces}
    line = f"`keys: {{energy: {energy}, forces: {forces}}}` and {BOTH[0]}"
    unfit(file, f"holds {energy} and {forces}; ", line, BOTH[1])
    unfit(file, line, labels="reference")
    unfit(file, "do not say their level", BOTH[0], keys=keys)
    ds, notes = checked(file, keys=keys, labels="reference")
    assert ds.energy.values.tolist() == [a.get_potential_energy() for a in labelled]
    assert "10 of 10" in notes[-1]
    ds, _ = checked(file, labels="ignore")
    assert "energy" not in ds
    unfit(file, "no energy called 'E'", f"it holds {energy} and {forces}", keys={"energy": "E"})


def test_check_seed_file__foreign_keys_that_are_no_labels(
    labelled: list[Atoms], tmp_path: Path
) -> None:
    unfit(
        renamed(tmp_path, labelled, "dft_energy", ""), "holds dft_energy; labels also need forces"
    )
    unfit(renamed(tmp_path, labelled, "", "dft_forces"), "labels also need energy", BOTH[1])
    # One of them under ASE's name.
    frames = spoilt(labelled)
    for atoms in frames:
        atoms.arrays["REF_forces"] = atoms.calc.results.pop("forces")
    file = foreign(tmp_path, frames)
    unfit(file, "keys: {energy: energy, forces: REF_forces}")
    ds, _ = checked(file, keys={"energy": "energy", "forces": "REF_forces"}, labels="reference")
    assert ds.sizes["structure"] == 10
    # Beside labels under their own names they are said and not taken.
    frames = spoilt(labelled)
    for atoms in frames:
        atoms.info["MACE_energy"] = 0.0
    _, notes = checked(foreign(tmp_path, frames), labels="reference")
    assert "also holds MACE_energy" in notes[0]


def test_parse_config__keys_beside_what_has_none(tmp_path: Path) -> None:
    file = foreign(tmp_path)
    with pytest.raises(ConfigError, match=r"keys.*labels: ignore"):
        checked(file, labels="ignore", keys={"energy": "E"})
    assert "keys" not in config_of(file).deciding()["seed_data"]


# ---------------------------------------------------------------------------------- single atoms
def lone(symbol: str, energy: float | None = None, **info: Any) -> Atoms:
    atoms = Atoms(symbol)
    atoms.info.update(info)
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


def test_check_seed_file__single_atoms(labelled: list[Atoms], tmp_path: Path) -> None:
    known = get_reference("gfn1-xtb").isolated_atom_energies(["H", "C"])
    atoms = [lone("H", known["H"], config_type="IsolatedAtom"), lone("C", known["C"])]
    file = foreign(tmp_path, [*atoms, *labelled])
    ds, notes = checked(file, labels="reference")
    assert ds.sizes["structure"] == 10
    assert ds.n_atoms.values.min() == 5
    assert "single atoms (H, C) are not trained on" in notes[0]
    assert "isolated atoms at gfn1-xtb" in notes[0]
    assert checked(file, labels="ignore")[0].sizes["structure"] == 10
    # Places in messages are those of the file.
    frames = spoilt(labelled, lambda e, k: e + (k == 4))
    unfit(foreign(tmp_path, [*atoms, *frames]), "structure 6: its energy", labels="reference")


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        ([lone("H", -13.6)], ("structure 0: a single H of -13.6000 eV", "-10.9235 eV")),
        ([lone("H", -10.92345), lone("H", -12.0)], ("structure 1: a single H of -12.0",)),
        ([lone("H", -10.92345 / HARTREE)], ("Hartree",)),
    ],
)
def test_check_seed_file__single_atoms_of_another_level(
    atoms: list[Atoms], words: tuple[str, ...], labelled: list[Atoms], tmp_path: Path
) -> None:
    unfit(foreign(tmp_path, [*atoms, *labelled]), *words, BOTH[1], labels="reference")


def test_check_seed_file__nothing_but_single_atoms(tmp_path: Path) -> None:
    unfit(foreign(tmp_path, [lone("H"), lone("O")]), "nothing but single atoms (H and O)")
    crystal = Atoms("Cu", cell=[[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]], pbc=True)
    ds, _ = checked(foreign(tmp_path, [crystal]), "ase:ase.calculators.emt:EMT")
    assert ds.sizes["structure"] == 1  # its images are its neighbours


def test_check_seed_file__what_the_reference_does_not_label(tmp_path: Path) -> None:
    ion = molecule("OH")
    ion.set_initial_magnetic_moments(None)
    ion.info["charge"] = -1
    frames = [molecule("H2O"), ion]
    ds, _ = checked(foreign(tmp_path, frames))
    assert ds.charge.values.tolist() == [0, -1]
    unfit(
        foreign(tmp_path, frames),
        "structure 1: ase:ase.calculators.emt:EMT does not label it: it has the charge -1",
        reference="ase:ase.calculators.emt:EMT",
    )
    copper = Atoms("CuCl2", [[0, 0, 0], [2.1, 0, 0], [-2.1, 0, 0]])
    _, notes = checked(foreign(tmp_path, [copper]))
    assert "1 structures with Cu, often open-shell, state no unpaired electrons" in notes[0]
    copper.info["n_unpaired"] = 1
    assert checked(foreign(tmp_path, [copper]))[1] == []
    radical = ion.copy()
    radical.info.clear()
    unfit(foreign(tmp_path, [radical]), "9 electrons", "n_unpaired=1", reference="gpaw:lcao")


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
    from mofal.campaign.directory import write_config
    from mofal.campaign.steps.sample import sample_seed

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


def test_seed_file__a_cif_is_read_as_every_command_reads_it(tmp_path):
    """R-3 on rhombohedral axes, which ASE's reader refuses."""
    source = Path(__file__).parents[2] / "examples" / "mof74.cif"
    file = write_campaign(tmp_path / "c.yaml", seed_data={"file": str(source)}, cycles=0)
    found = load_seed_file(load_config(file))
    assert len(found.frames) == 1
    assert len(found.frames[0]) == 54
