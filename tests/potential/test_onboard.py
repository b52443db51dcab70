"""What a potential knows goes with it: the same numbers as the density room's, on any device."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from mofal import data
from mofal.density import ErrorBound, PerElementDensity
from mofal.errors import PotentialError, StoreError
from mofal.potential import export, standalone
from mofal.potential.exported import ExportedPotential
from mofal.potential.onboard import density_arrays
from mofal.potential.standalone import Mixtures


def rows(seed, n=3000, d=6):
    """Correlated features of three elements, each with two clouds, in single precision."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 6, 8], n)
    mixing = np.random.default_rng(1).standard_normal((d, d))
    x = rng.standard_normal((n, d)) @ mixing
    x += labels[:, None] * 0.3 + 4.0 * (rng.random((n, 1)) < 0.4)
    return x.astype(np.float32), labels


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("pca", [None, 4])
def test_mixtures__as_the_density_room_says(kind, pca, monkeypatch):
    x, labels = rows(0)
    density = PerElementDensity(3, covariance_type=kind, pca=pca, random_state=0).fit(x, labels)
    density.calibrate(*rows(1))
    far, far_labels = rows(2, n=500)
    far[:100] *= 8.0
    far_labels[-40:] = 40  # never seen
    wanted = density.score_samples(far, far_labels)
    wanted_q = density.quantile(wanted, far_labels)
    mixtures = Mixtures(density_arrays(density))
    found = mixtures.log_likelihood(torch.from_numpy(far), far_labels)
    quantile = mixtures.quantile(found, far_labels).numpy()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    np.testing.assert_allclose(quantile, wanted_q, rtol=1e-5)
    assert (quantile[-40:] == 0).all()
    assert 0 < quantile[:100].min() < 1e-3
    monkeypatch.setattr(standalone, "_FEW", 0)  # the operations for many rows, and for a GPU
    found = mixtures.log_likelihood(torch.from_numpy(far), far_labels)
    quantile = mixtures.quantile(found, far_labels).numpy()
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
    np.testing.assert_allclose(quantile, wanted_q, rtol=1e-5)


def test_mixtures__error_bound_as_the_density_room_says():
    x, labels = rows(0)
    density = PerElementDensity(2, random_state=0).fit(x, labels).calibrate(*rows(1))
    rng = np.random.default_rng(3)
    q = rng.random(2000)
    bound = ErrorBound(0.9).fit(q, -0.01 * np.log(q) * rng.random(2000), np.arange(2000) // 20)
    mixtures = Mixtures(density_arrays(density, error_bound=bound))
    far, far_labels = rows(2, n=500)
    far[:100] *= 8.0
    far_labels[-40:] = 40  # never seen
    values = density.score_samples(far, far_labels)
    found = mixtures.error_bound(torch.from_numpy(values), far_labels).numpy()
    wanted = bound.predict(density.quantile(values, far_labels))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert np.isinf(found[-40:]).all()
    # The bound that a density keeps is made on a scale of its own.
    error = 0.1 * rng.random(3000)
    density.bound_errors(*rows(4), error, np.arange(3000) // 50)
    mixtures = Mixtures(density_arrays(density))
    found = mixtures.error_bound(torch.from_numpy(values), far_labels).numpy()
    np.testing.assert_allclose(found, density.error_bound(values, far_labels), rtol=1e-9)


# A process of its own in which importing mofal fails.
STRANGER = """
import sys
sys.modules["mofal"] = None
folder, frames, out = sys.argv[1:]
sys.path.insert(0, folder)
import numpy as np
from ase.io import read
from m_calculator import calculator
calc, found = calculator(), {}
for i, frame in enumerate(read(frames, ":")):
    frame.calc = calc
    frame.get_forces()
    for name in ("forces", "quantile", "log_likelihood", "error_bound"):
        found[f"{name} {i}"] = calc.results[name]
    if frame.pbc.all():
        found[f"stress {i}"] = frame.get_stress()
np.savez(out, **found)
"""


def fitted(potential, mixed):
    """A density of jiggled frames, and a bound."""
    frames = []
    rng = np.random.default_rng(0)
    for _ in range(8):
        for atoms in data.to_atoms(data.select(mixed, [0, 1, 2, 4])):
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            frames.append(atoms)
    features = potential.featurize(data.from_atoms(frames))
    x, labels = features["features"].values, features["numbers"].values
    density = PerElementDensity(1, random_state=0).fit(x, labels, model_hash=potential.model_hash)
    q = np.linspace(0.01, 0.99, 400)
    return density, ErrorBound(0.8).fit(q, 1.0 - q, np.arange(400) // 20)


@pytest.mark.slow
def test_export__tells_what_it_knows_without_mofal(single, mixed, tmp_path):
    """Crystals and molecules, with the archive: quantiles are those of a campaign's scores."""
    from ase.io import write

    density, bound = fitted(single, mixed)
    export(single, tmp_path / "m.nequip.zip", density=density, error_bound=bound)
    names = {"m.nequip.zip", "m.nequip.zip.sha256", "m.density.npz", "m_calculator.py"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert "mofal" not in (tmp_path / "m_calculator.py").read_text()
    chosen = data.select(mixed, [0, 1, 2, 4])
    frames = data.to_atoms(chosen)
    write(tmp_path / "frames.xyz", frames, format="extxyz")
    arguments = [str(tmp_path), str(tmp_path / "frames.xyz"), str(tmp_path / "out.npz")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, capture_output=True)
    found = np.load(tmp_path / "out.npz")
    out, features = single.evaluate(chosen), single.featurize(chosen)
    labels = features["numbers"].values
    values = density.score_samples(features["features"].values, labels)
    quantile = density.quantile(values, labels)
    opened = ExportedPotential(tmp_path / "m.nequip.zip")
    assert (opened.model_hash, opened.density_hash) == (single.model_hash, density.density_hash)
    for i, frame in enumerate(frames):
        own = data.atom_slice(chosen, i)
        score = opened.score(frame.numbers, frame.positions, frame.cell.array, frame.pbc)
        np.testing.assert_allclose(score["features"], features["features"][own], atol=2e-5)
        np.testing.assert_allclose(score["quantile"], quantile[own], rtol=1e-3, atol=1e-6)
        assert np.isfinite(score["error_bound"]).all()
        np.testing.assert_allclose(found[f"forces {i}"], out["forces"].values[own], atol=2e-5)
        np.testing.assert_allclose(found[f"log_likelihood {i}"], values[own], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(found[f"quantile {i}"], quantile[own], rtol=2e-3, atol=2e-4)
        bounds = bound.predict(found[f"quantile {i}"])
        np.testing.assert_allclose(found[f"error_bound {i}"], bounds, rtol=1e-6)
        if frame.pbc.all():
            np.testing.assert_allclose(found[f"stress {i}"], out["stress"].values[i], atol=1e-6)
    with pytest.raises(StoreError, match=r"m\.nequip\.zip exists"):
        export(single, tmp_path / "m.nequip.zip", density=density)


def test_export__density_that_cannot_go_with_it(single, exact, mixed, tmp_path):
    density, bound = fitted(exact, mixed)
    with pytest.raises(PotentialError, match="fit the density anew"):
        export(single, tmp_path / "m.nequip.zip", density=density)
    with pytest.raises(PotentialError, match="target 'lammps'"):
        export(exact, tmp_path / "m.nequip.pt2", density=density, target="lammps")
    with pytest.raises(PotentialError, match="needs its density"):
        export(exact, tmp_path / "m.nequip.pt2", error_bound=bound)
    assert list(tmp_path.iterdir()) == []
