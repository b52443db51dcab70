"""`mofal mechanics` as a user meets it: a bulk modulus, an interruption, clear refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

import mofal
from mofal.campaign.steps.mechanics import judge_of, learnt_from
from mofal.cli import main
from mofal.commands.mechanics import load_systems
from mofal.data import from_atoms, open_group, read_json, select, to_atoms, write_group
from mofal.errors import ConfigError
from mofal.frameworks import build, find_blocks, supercell
from mofal.mechanics import potential_level, reference_level
from mofal.mechanics.show import describe_realisations, uio_cells

EMT = "ase:ase.calculators.emt:EMT"


@pytest.fixture
def copper(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("copper.extxyz", bulk("Cu", a=3.6))
    return "copper.extxyz"


def command(file, *more):
    return ["mechanics", file, "--reference", EMT, "--rule", "none", "--volumes", "5", *more]


@pytest.mark.slow
def test_mechanics__killed_and_typed_again_gives_the_same_numbers(copper, capsys):
    assert main(command(copper, "--directory", "whole", "--workers", "1")) == 0
    out = capsys.readouterr().out
    assert "copper: K 13" in out
    assert "hysteresis" in out
    args = [sys.executable, "-m", "mofal", *command(copper, "--directory", "cut", "--workers", "1")]
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        points = [p for p in _points("cut") if p.startswith("out")]
        if points:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(_points("cut")) < len(_points("whole"))
    assert main(command(copper, "--directory", "cut", "--workers", "1")) == 0
    one, other = read_json("whole/eos.json"), read_json("cut/eos.json")
    assert one == other
    assert one["copper"]["bulk_modulus_GPa"] == pytest.approx(134, rel=0.02)
    assert os.path.getsize("whole/copper-eos.png") > 5000
    assert main(command(copper, "--directory", "cut")) == 0
    assert "every point is there already" in capsys.readouterr().out
    both = ["--what", "eos", "elastic", "--strains", "0.003", "--workers", "1"]
    assert main(command(copper, "--directory", "cut", *both)) == 0
    out = capsys.readouterr().out
    assert "agrees with K of E(V)" in out
    assert "Born: stable" in out
    assert "m-3m" in read_json("cut/elastic.json")["copper"]["symmetry"]


def _points(directory):
    from pathlib import Path

    found = Path(directory).glob("copper/eos-*/points/*.npz")
    return [p.stem for p in found if p.stem not in ("start", "bonds")]


def refusal(capsys, *args):
    assert main(list(args)) != 0
    lines = [x for x in capsys.readouterr().err.splitlines() if x.strip()]
    assert len(lines) == 1
    assert not os.path.exists("mechanics")
    return lines[0]


def test_mechanics__refuses_what_cannot_work(copper, capsys):
    assert "give either --potential" in refusal(capsys, "mechanics", copper)
    assert "--rule none" in refusal(capsys, "mechanics", copper, "--reference", EMT)
    assert "odd number" in refusal(capsys, *command(copper), "--volumes", "6")
    assert "--what nonsense" in refusal(capsys, *command(copper), "--what", "nonsense")
    assert "does not exist" in refusal(capsys, *command("no.cif"))
    assert "expected at least 1" in refusal(capsys, *command(copper), "--realisations", "0")
    assert "above zero" in refusal(capsys, *command(copper), "--grid", "1", "2", "3", "4", "-5")
    write("cluster.extxyz", Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]]))
    assert "needs a crystal" in refusal(capsys, *command("cluster.extxyz"))
    write("salt.extxyz", bulk("NaCl", "rocksalt", a=5.6))
    assert "fails on the structure given" in refusal(capsys, *command("salt.extxyz"))


def test_mechanics__refuses_a_level_without_stress(copper, capsys):
    args = ["mechanics", copper, "--rule", "none", "--reference"]
    error = refusal(capsys, *args, "ase:tests.campaign.test_mechanics:no_stress")
    assert "gives no stress" in error


def no_stress():
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.calculators.emt import EMT as Calculator

    class Flat(Calculator):
        implemented_properties = ["energy", "forces"]  # noqa: RUF012

        def get_stress(self, atoms=None, voigt=True):
            raise PropertyNotImplementedError("stress")

        def get_property(self, name, atoms=None, allow_calculation=True):
            if name == "stress":
                raise PropertyNotImplementedError(name)
            return super().get_property(name, atoms, allow_calculation)

    return Flat()


SEED = Path(mofal.__file__).parent / "examples" / "seeds" / "uio66-gfn1"


def test_mechanics__a_dry_run_tells_the_length_and_begins_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = str(SEED / "model")
    asked = ["mechanics", "S_pr", "--cell", "primitive", "--potential", model]
    assert main([*asked, "--what", "pv", "--one-way", "--length", "10", "--dry-run"]) == 0
    out = capsys.readouterr().out
    # Ten runs of 20,000 steps, 5 relaxed starts, the minimum.
    assert "S_pr: 114 atoms, 7 blocks" in out
    assert "about 200,140 force calls" in out
    assert not list(tmp_path.iterdir())
    assert main([*asked, "--dry-run", "--trained-on", model]) == 1
    assert main([*asked, "--dry-run", "--trained-on", "nowhere.zarr"]) == 1
    assert "nowhere.zarr" in capsys.readouterr().err


def test_trained_on__tells_what_the_model_has_seen(tmp_path):
    """A frame of the data is known, and the same frame far out of it is not."""
    level = potential_level(SEED / "model")
    labels = open_group(SEED / "labels.zarr").load()
    held = select(labels, np.flatnonzero(labels["split"].values == "validation")[:4])
    frames = [to_atoms(held, k) for k in range(4)]
    frames[3].rattle(0.3, seed=0)
    judge = judge_of(learnt_from(SEED / "labels.zarr", level), level, tmp_path)
    found = judge(from_atoms(frames, system="S_pr"))
    assert list(found.known) == [True, True, True, False]
    assert found.share[3] > 0.5
    (kept,) = tmp_path.iterdir()
    stamp = kept.stat().st_mtime_ns
    again = judge(from_atoms(frames, system="S_pr"))
    assert kept.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(again.log_likelihood, found.log_likelihood)
    with pytest.raises(ConfigError, match="reference learns nothing"):
        learnt_from(SEED / "labels.zarr", reference_level(EMT))
    write_group(held.drop_vars("split"), tmp_path / "whole.zarr", kind="labels")
    with pytest.raises(ConfigError, match="train and validation"):
        learnt_from(tmp_path / "whole.zarr", level)


def test_load_systems__realisations_are_draws():
    with pytest.raises(ConfigError, match="not drawn at random"):
        load_systems(["S_pr"], cell="primitive", rule="carboxylate", n=2, seed=0)


def test_realisations__are_drawn_from_the_seed_and_summed_up():
    first, again = (
        load_systems(["S_sup"], cell="conventional", rule="carboxylate", n=2, seed=seed)
        for seed in (3, 4)
    )
    assert list(first) == ["S_sup-0", "S_sup-1"]
    drawn = [
        {k: str(s["structure_id"].values[0]) for k, (s, _) in found.items()}
        for found in (first, again)
    ]
    assert drawn[0]["S_sup-0"] != drawn[0]["S_sup-1"]
    # The second of seed 3 is the first of seed 4.
    assert drawn[0]["S_sup-1"] == drawn[1]["S_sup-0"]
    moduli = {"S_sup-0": 12.0, "S_sup-1": 14.0, "S_sup-2": 13.0, "S_ld-2-1": 30.0, "S_ld-2-2": 28.0}
    lines = describe_realisations({k: {"bulk_modulus_GPa": v} for k, v in moduli.items()})
    assert lines == [
        "S_sup: K of 3 realisations 13.00 GPa on average, standard deviation 1.00, "
        "12.00 to 14.00 GPa"
    ]


@pytest.mark.parametrize(
    ("name", "cell", "repeat", "expected"),
    [
        ("S_pr", "primitive", None, 0.25),
        ("S_pr", "conventional", None, 1.0),
        ("S_reo", "conventional", None, 1.0),
        ("S_pr", "primitive", (2, 1, 1), 0.5),
        ("S_pr", "conventional", (2, 1, 1), 2.0),
    ],
)
def test_uio_cells__counts_conventional_cells(name, cell, repeat, expected):
    structure = build(name, cell=cell)
    if repeat is not None:
        structure = supercell(structure, repeat)
    assert uio_cells(structure, find_blocks(structure)) == expected


def test_uio_cells__other_frameworks_have_none():
    structure = build("UiO-67")
    assert uio_cells(structure, find_blocks(structure)) is None
    assert np.isfinite(structure["cell"].values).all()


@pytest.mark.slow
def test_campaign__ends_with_the_mechanics_of_its_last_model(copied, capsys):
    """Added to a finished campaign: it is the same campaign, its report has a section more.

    Its model is as small as can be and holds no crystal: what fails is said and stops nothing.
    """
    import yaml

    file = copied / "campaign.yaml"
    content = yaml.safe_load(file.read_text())
    loose = {"max_force_meV_per_A": 5000.0, "max_stress_MPa": 1e5}
    content["mechanics"] = {"systems": ["pristine"], "volumes": 5, "both_ways": False, **loose}
    file.write_text(yaml.safe_dump(content))
    assert main(["run", str(copied), "--dry-run"]) == 0
    assert "then mechanics (eos) of pristine" in capsys.readouterr().out
    assert main(["run", str(copied)]) == 0
    out = capsys.readouterr().out
    assert "pristine out-002:" in out
    assert "what the potential has learnt" in out
    assert (copied / "mechanics" / "eos.json").exists()
    assert main(["run", str(copied)]) == 0
    assert "out-002:" not in capsys.readouterr().out
    page = (copied / "report" / "report.html").read_text()
    assert "bricks" in page or "Mechanics" in page


def test_config__mechanics_is_checked_with_the_file():
    from mofal.campaign.loading import parse_config

    from .conftest import SMALL

    def message(**section):
        with pytest.raises(ConfigError) as error:
            parse_config({**SMALL, "mechanics": section})
        return str(error.value)

    assert "mechanics.systems names the system 'no'" in message(systems=["no"])
    assert "odd number" in message(volumes=6)
    assert "mechanics.what" in message(what=["nonsense"])
    assert "unknown key mechanics.volume" in message(volume=5)
    pools = {"a": {"kinds": ["train", "label", "walk"]}}
    with pytest.raises(ConfigError, match="mechanics"):
        parse_config({**SMALL, "schedule": {"pools": pools}, "mechanics": {}})
    one, other = parse_config(SMALL), parse_config({**SMALL, "mechanics": {}})
    assert one.identity() == other.identity()
