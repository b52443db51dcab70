"""The model for torch-sim: its conformance kit, our potential's numbers, its integrator."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule

from mofal import data
from mofal.density import PerElementDensity
from mofal.potential import create
from tests.potential.conftest import EXACT

torch_sim = pytest.importorskip(
    "torch_sim", reason="torch-sim is not installed: pip install 'mofal[torch-sim]'"
)
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def potential():
    return create(EXACT, ["H", "C", "O", "Si", "Fe", "Zr"], seed=3, avg_num_neighbors=8.0)


def frames():
    rng = np.random.default_rng(5)
    crystal = bulk("ZrO", "rocksalt", a=4.6, cubic=True)
    other = crystal.repeat((2, 1, 1))
    other.set_cell(other.cell.array @ np.array([[1, 0.06, 0], [0, 1, 0.04], [0.02, 0, 1]]))
    for atoms in (crystal, other):
        atoms.positions += rng.normal(0, 0.06, atoms.positions.shape)
    return [crystal, other]


def test_torchsim__passes_the_kit_of_torch_sim(potential):
    from torch_sim.models.interface import validate_model_outputs

    from mofal.potential import TorchSimModel

    validate_model_outputs(TorchSimModel(potential), torch.device("cpu"), torch.float64)


def test_torchsim__gives_what_the_potential_gives(potential):
    from mofal.potential import TorchSimModel

    ds = data.from_atoms(frames(), system="oxide")
    jiggled = data.concat([ds] * 8)
    moved = np.random.default_rng(1).normal(0, 0.05, jiggled["positions"].shape)
    known = potential.featurize(jiggled.assign(positions=jiggled["positions"] + moved))
    density = PerElementDensity(1, random_state=0).fit(
        known["features"].values, known["numbers"].values, model_hash=potential.model_hash
    )
    model = TorchSimModel(potential, density=density)
    for atoms in (frames(), frames()[::-1], [a[::-1] for a in frames()]):
        out = model(torch_sim.io.atoms_to_state(atoms, torch.device("cpu"), torch.float64))
        ds = data.from_atoms(atoms, system="oxide")
        wanted = potential.evaluate(ds)
        np.testing.assert_allclose(out["energy"], wanted["energy"], atol=1e-9)
        np.testing.assert_allclose(out["forces"], wanted["forces"], atol=1e-9)
        voigt = out["stress"].numpy()[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(voigt, wanted["stress"], atol=1e-9)
        found = potential.featurize(ds)
        labels = found["numbers"].values
        rows = density.score_samples(found["features"].values, labels)
        np.testing.assert_allclose(out["quantile"], density.quantile(rows, labels), rtol=1e-4)
    cluster = molecule("C6H6")
    out = model(torch_sim.io.atoms_to_state([cluster], torch.device("cpu"), torch.float64))
    one = potential.evaluate(data.from_atoms([cluster], system="benzene"))
    np.testing.assert_allclose(out["forces"], one["forces"], atol=1e-9)


@pytest.mark.physics
def test_torchsim__its_integrator_conserves_energy(potential):
    """Constant energy: the drift falls with the square of the step."""
    from mofal.potential import TorchSimModel

    model = TorchSimModel(potential)

    def drift(dt_fs, steps):
        state = torch_sim.io.atoms_to_state(frames(), torch.device("cpu"), torch.float64)
        step = torch.tensor(dt_fs * units.fs, dtype=torch.float64)
        init, update = torch_sim.nve(model=model, dt=step, kT=torch.tensor(units.kB * 300.0))
        state, energies = init(state, seed=1), []
        for _ in range(steps):
            state = update(state, dt=step)
            kinetic = torch_sim.calc_kinetic_energy(
                momenta=state.momenta, masses=state.masses, system_idx=state.system_idx
            )
            energies.append((state.energy + kinetic).numpy())
        return np.ptp(energies, axis=0).max()

    coarse, fine = drift(2.0, 12), drift(0.5, 48)
    assert fine < coarse / 8.0
