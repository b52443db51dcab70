"""The benchmarks of this room at their tiny size, so that they do not rot."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


def module(name):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
def test_potential_speed__runs(capsys):
    rows = module("potential_speed").main(["--size", "tiny"])
    assert list(rows) == ["tiny primitive 1"]
    assert all(value > 0 for value in rows["tiny primitive 1"].values())
    assert "ratio" in capsys.readouterr().out


@pytest.mark.slow
def test_potential_regions__runs(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))  # its level
    table = module("potential_regions").main(["--size", "tiny", "--directory", str(tmp_path)])
    assert set(table) == {"seed", "control", "all", "core", "weighted", "matched"}
    assert np.isfinite([v for values in table.values() for v in values]).all()
    assert "formate MAE" in capsys.readouterr().out


@pytest.mark.slow
def test_potential_stress__runs(tmp_path, capsys):
    rows = module("potential_stress").main(["--size", "tiny", "--directory", str(tmp_path)])
    assert [row["weight"] for row in rows] == [0.0, 1000.0]
    assert all(np.isfinite([row["forces"], row["stress"]]).all() for row in rows)
    assert "GFN1-xTB itself" in capsys.readouterr().out


def test_potential_as_is__the_example_of_dft_is_what_it_says(capsys, monkeypatch):
    """The potential that travels with mofal on a frame of DFT's that it has not seen."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    rows = module("potential_as_is").main(["--size", "tiny"])
    assert rows["defective, the campaign's"]["formates"] < 130
    assert rows["defective, the campaign's"]["others"] < 70
    assert rows["pristine, the campaign's"]["others"] < 70
    assert np.isnan(rows["pristine, the campaign's"]["formates"])
    assert "MAE of forces" in capsys.readouterr().out


def test_potential_stretched__without_a_campaign(tmp_path):
    with pytest.raises(SystemExit, match="holds no campaign"):
        module("potential_stretched").main([str(tmp_path)])


def test_potential_stretched__errors_that_are_known():
    """A frame with two formates: lengths are ASE's, kinds the builder's, errors those put in."""
    from mofal.campaign.examples import seed_place
    from mofal.data import open_group, select, to_atoms

    found = module("potential_stretched")
    group = open_group(seed_place("uio66-gpaw-lcao") / "holdout-defective.zarr").load()
    one = select(group, 0)
    # Twelve carboxylates of two O each around the brick, two of them formates.
    bonds = found.long_bonds(one)
    numbers = one["numbers"].values
    assert bonds["formate"].sum() == 4
    assert len(bonds["atom"]) == 24
    atoms = to_atoms(one, 0)
    for atom, length in zip(bonds["atom"], bonds["length"]):
        distances = atoms.get_distances(atom, np.flatnonzero(numbers == 40), mic=True)
        assert length == pytest.approx(distances.min())
    assert np.linalg.norm(bonds["away"], axis=1) == pytest.approx(1.0)
    # What pushes every O outwards by 0.3 eV/Å more than the reference is found as +0.3.
    wrong = one["forces"].values.copy()
    wrong[bonds["atom"]] += 0.3 * bonds["away"]
    rows = found.table(one, {"right": one["forces"].values, "wrong": wrong})
    assert sum(row["n"] for row in rows) == 24
    assert {row["of"] for row in rows} == {"crystals, linkers", "crystals, formates"}
    assert all(row["right"] == (0.0, 0.0) for row in rows)
    assert all(row["wrong"] == pytest.approx((0.3, 0.3)) for row in rows)
