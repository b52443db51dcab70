import subprocess
import sys
import zipfile

import numpy as np
import pytest

from mofal import data
from mofal.errors import PotentialError, StoreError
from mofal.potential import Architecture, create, export

LEAST = Architecture(
    r_max=3.2, n_layers=1, n_features=2, radial_layers=1, radial_neurons=4, feature_dim=2
)
"""Compilation takes as long as the network is deep."""

# A process of its own, in which importing mofal fails: what runs there runs without it.
STRANGER = """
import sys
sys.modules["mofal"] = None
import numpy as np
from ase.io import read
from nequip.integrations.ase import NequIPCalculator
path, frames, out = sys.argv[1:]
if path.endswith(".nequip.zip"):
    calculator = NequIPCalculator._from_saved_model(path, device="cpu")
else:
    calculator = NequIPCalculator.from_compiled_model(path, device="cpu")
found = {}
for i, frame in enumerate(read(frames, ":")):
    frame.calc = calculator
    found[f"energy{i}"] = frame.get_potential_energy()
    found[f"forces{i}"] = frame.get_forces()
np.savez(out, **found)
"""
ATOMS = {"H": -10.0, "C": -40.0, "O": -100.0, "Zr": -90.0}


def elsewhere(path, frames, tmp_path):
    from ase.io import write

    write(tmp_path / "frames.xyz", frames, format="extxyz")
    command = [sys.executable, "-c", STRANGER, path, tmp_path / "frames.xyz", tmp_path / "out.npz"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return np.load(tmp_path / "out.npz")


def compare(potential, found, ds, *, extra=0.0):
    out = potential.evaluate(ds)
    for i in range(ds.sizes["structure"]):
        forces = out["forces"].values[data.atom_slice(ds, i)]
        np.testing.assert_allclose(found[f"forces{i}"], forces, atol=2e-5)
        expected = float(out["energy"][i]) + (0.0 if np.isscalar(extra) else extra[i])
        assert float(found[f"energy{i}"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_export__package_runs_in_ase_without_mofal(single, mixed, tmp_path):
    chosen = data.select(mixed, [0, 1])
    path = export(single, tmp_path / "model.nequip.zip")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert not any("mofal" in name for name in names)
    assert any(name.endswith("eager_model.pkl") for name in names)
    found = elsewhere(path, data.to_atoms(chosen), tmp_path)
    compare(single, found, chosen)


@pytest.mark.slow
def test_export__compiled_with_totals_runs_in_ase_without_mofal(mixed, tmp_path):
    chosen = data.select(mixed, [0, 1])
    potential = create(LEAST, list(ATOMS), seed=1, avg_num_neighbors=6.0)
    potential.provenance["isolated_atom_energies"] = ATOMS
    lines: list[str] = []
    path = export(potential, tmp_path / "m.nequip.pt2", energies="total", progress=lines.append)
    assert len(lines) == 2
    found = elsewhere(path, data.to_atoms(chosen), tmp_path)
    symbols = [frame.get_chemical_symbols() for frame in data.to_atoms(chosen)]
    extra = [sum(ATOMS[s] for s in names) for names in symbols]
    compare(potential, found, chosen, extra=extra)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("model.pt", {}, r"\.nequip\.zip.*\.nequip\.pt2"),
        ("m.nequip.zip", {"energies": "total"}, "isolated-atom energy of H, C, O, Zr"),
        ("m.nequip.zip", {"energies": "raw"}, "'relative' or 'total'"),
        ("m.nequip.pt2", {"target": "gromacs"}, "ase, lammps, batch"),
    ],
)
def test_export__what_cannot_be_meant(single, tmp_path, name, options, says):
    with pytest.raises(PotentialError, match=says):
        export(single, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_export__never_overwrites(single, tmp_path):
    (tmp_path / "m.nequip.zip").write_text("mine")
    with pytest.raises(StoreError, match="exists"):
        export(single, tmp_path / "m.nequip.zip")


def test_export__failing_script_is_told(single, tmp_path, monkeypatch):
    from mofal.potential import exporting

    monkeypatch.setattr(exporting.sys, "executable", "/bin/false")
    with pytest.raises(PotentialError, match="nequip-package failed"):
        export(single, tmp_path / "m.nequip.zip")
    assert list(tmp_path.iterdir()) == []
