"""Small labelled data (EMT: exact forces, no set-up) and small potentials, made once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from mofal import data
from mofal.potential import Architecture, NequIPPotential, TrainingSettings, create

SMALL = Architecture(
    r_max=3.2, n_layers=2, n_features=4, radial_layers=1, radial_neurons=8, feature_dim=4
)
EXACT = SMALL.model_copy(update={"dtype": "float64", "r_max": 4.0})


def emt_frames(n: int, *, seed: int, system: str = "alloy") -> xr.Dataset:
    """Crystals (16 atoms, with stress) and clusters (8 atoms, three regions), alternately."""
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(n):
        if k % 2:
            frame = bulk("Cu", cubic=True) * (2, 2, 1)
        else:
            frame = bulk("Cu", cubic=True) * (2, 1, 1)
            frame.pbc, frame.cell = False, None
        frame.numbers[::3] = 28
        frame.positions += rng.normal(0, 0.08, frame.positions.shape)
        frame.calc = EMT()
        frame.get_forces()
        if k % 2:
            frame.get_stress()
        region = np.zeros(len(frame), np.int8)
        if not k % 2:
            region[4:6], region[6:] = 1, 2
        frame.arrays["region"] = region
        frames.append(frame)
    ds = data.from_atoms(frames, labels=True, system=system)
    ds.attrs["isolated_atom_energies"] = json.dumps(emt_atoms())
    ds.attrs["level_hash"] = "emt"
    return ds


def emt_atoms() -> dict[str, float]:
    """Isolated-atom energies, eV."""
    out = {}
    for symbol in ("Cu", "Ni"):
        atom = Atoms(symbol, positions=[[0, 0, 0]])
        atom.calc = EMT()
        out[symbol] = float(atom.get_potential_energy())
    return out


@pytest.fixture(scope="session")
def labelled() -> xr.Dataset:
    return emt_frames(12, seed=0)


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    """Few steps at a high rate: enough to learn something in a second."""
    return TrainingSettings(architecture=SMALL, learning_rate=0.02, batch_size=4, max_steps=12)


@pytest.fixture(scope="session")
def exact() -> NequIPPotential:
    """Untrained, double precision: derivatives are exact whatever the weights are."""
    return create(EXACT, ["H", "C", "O", "Zr"], seed=3, avg_num_neighbors=8.0)


@pytest.fixture(scope="session")
def single() -> NequIPPotential:
    """Untrained, single precision, as every trained potential is."""
    return create(SMALL, ["H", "C", "O", "Zr"], seed=4, avg_num_neighbors=6.0)


@pytest.fixture(scope="session")
def mixed() -> xr.Dataset:
    """Two crystals, a slab, two molecules and an atom, of H, C, O and Zr."""
    from ase.build import molecule

    rng = np.random.default_rng(5)
    crystal = bulk("ZrO", "rocksalt", a=4.6, cubic=True)
    sheared = crystal.copy()
    shear = np.array([[1, 0.06, 0], [0, 1, 0.04], [0.02, 0, 1]])
    sheared.set_cell(sheared.cell.array @ shear)
    slab = crystal.copy()
    slab.pbc = [True, True, False]
    frames = [crystal, molecule("HCOOH"), sheared, slab, molecule("C6H6"), Atoms("O")]
    for frame in frames:
        frame.positions += rng.normal(0, 0.06, frame.positions.shape)
    return data.from_atoms(frames, system="mixed")
