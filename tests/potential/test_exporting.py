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
frames, out, package, compiled = sys.argv[1:]
calculators = {
    "package": NequIPCalculator._from_saved_model(package, device="cpu"),
    "compiled": NequIPCalculator.from_compiled_model(compiled, device="cpu"),
}
found = {}
for i, frame in enumerate(read(frames, ":")):
    for kind, calculator in calculators.items():
        frame.calc = calculator
        found[f"{kind} energy {i}"] = frame.get_potential_energy()
        found[f"{kind} forces {i}"] = frame.get_forces()
np.savez(out, **found)
"""
ATOMS = {"H": -10.0, "C": -40.0, "O": -100.0, "Zr": -90.0}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the compiler takes a minute on an idle machine
def test_export__runs_in_ase_without_mofal(mixed, tmp_path):
    """An archive with relative energies, and a compiled file with totals."""
    from ase.io import write

    chosen = data.select(mixed, [0, 1])
    potential = create(LEAST, list(ATOMS), seed=1, avg_num_neighbors=6.0)
    potential.provenance["isolated_atom_energies"] = ATOMS
    lines: list[str] = []
    package = export(potential, tmp_path / "m.nequip.zip")
    compiled = export(potential, tmp_path / "m.nequip.pt2", energies="total", progress=lines.append)
    assert len(lines) == 2
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert not any("mofal" in name for name in names)
    assert any(name.endswith("eager_model.pkl") for name in names)
    frames = data.to_atoms(chosen)
    write(tmp_path / "frames.xyz", frames, format="extxyz")
    arguments = [tmp_path / "frames.xyz", tmp_path / "out.npz", package, compiled]
    command = [sys.executable, "-c", STRANGER, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
    found = np.load(tmp_path / "out.npz")
    out = potential.evaluate(chosen)
    for i, frame in enumerate(frames):
        forces = out["forces"].values[data.atom_slice(chosen, i)]
        energy = float(out["energy"][i])
        total = energy + sum(ATOMS[s] for s in frame.get_chemical_symbols())
        np.testing.assert_allclose(found[f"package forces {i}"], forces, atol=2e-5)
        np.testing.assert_allclose(found[f"compiled forces {i}"], forces, atol=2e-5)
        assert float(found[f"package energy {i}"]) == pytest.approx(energy, abs=1e-5)
        assert float(found[f"compiled energy {i}"]) == pytest.approx(total, abs=1e-4)


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
