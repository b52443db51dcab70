import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet

from mofal import data
from mofal.errors import PotentialError


@pytest.fixture(autouse=True)
def double():
    """NequIP's own calculator takes torch's default type, which NequIP sets once in a process."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def nequips(potential):
    """NequIP's own calculator on the same network."""
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator

    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=list(potential.elements),
        chemical_species_to_atom_type_map={e: e for e in potential.elements},
    )
    transforms = [mapper, NeighborListTransform(r_max=potential.r_max)]
    return NequIPCalculator(model=potential.network, device="cpu", transforms=transforms)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_calculator__equals_nequips_and_evaluate(exact, mixed, i):
    frame = data.to_atoms(mixed, i)
    theirs = frame.copy()
    frame.calc, theirs.calc = exact.calculator(), nequips(exact)
    assert frame.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(frame.get_forces(), theirs.get_forces(), atol=1e-10)
    np.testing.assert_allclose(
        frame.get_potential_energies(), theirs.get_potential_energies(), atol=1e-10
    )
    out = exact.evaluate(data.select(mixed, i))
    np.testing.assert_allclose(frame.get_forces(), out["forces"], atol=1e-10)
    if frame.pbc.all():
        np.testing.assert_allclose(frame.get_stress(), theirs.get_stress(), atol=1e-12)
        np.testing.assert_allclose(frame.get_stress(), out["stress"].values[0], atol=1e-12)


def test_calculator__whatever_torchs_default_type_is(exact, mixed):
    frame = data.to_atoms(mixed, 0)
    frame.calc = exact.calculator()
    energy, forces = frame.get_potential_energy(), frame.get_forces()
    torch.set_default_dtype(torch.float32)
    again = frame.copy()
    again.calc = exact.calculator()
    assert again.get_potential_energy() == energy
    np.testing.assert_array_equal(again.get_forces(), forces)


def test_calculator__a_molecule_has_no_stress(exact, mixed):
    frame = data.to_atoms(mixed, 1)
    frame.calc = exact.calculator()
    with pytest.raises(PropertyNotImplementedError):
        frame.get_stress()


def test_calculator__element_without_a_type(exact):
    from ase.build import molecule

    frame = molecule("NH3")
    frame.calc = exact.calculator()
    with pytest.raises(PotentialError, match="no type for N"):
        frame.get_potential_energy()


def test_calculator__results_are_not_shared_between_steps(exact, mixed):
    frame = data.to_atoms(mixed, 0)
    frame.calc = exact.calculator()
    first = frame.get_forces()
    kept = first.copy()
    frame.positions[0, 0] += 0.1
    assert np.abs(frame.get_forces() - kept).max() > 1e-6
    np.testing.assert_array_equal(first, kept)


@pytest.mark.physics
def test_calculator__energy_is_conserved(single, mixed):
    frame = data.to_atoms(mixed, 2)
    frame.calc = single.calculator()
    spread = np.sqrt(units.kB * 300 * frame.get_masses())[:, None]
    frame.set_momenta(spread * np.random.default_rng(0).normal(size=(len(frame), 3)))
    totals = []
    walk = VelocityVerlet(frame, timestep=0.5 * units.fs)
    walk.attach(lambda: totals.append(frame.get_total_energy()), interval=5)
    walk.run(100)
    assert np.ptp(totals) < 0.01 * np.abs(frame.get_kinetic_energy())
