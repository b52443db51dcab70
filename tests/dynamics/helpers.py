"""What several tests of the room need."""

from __future__ import annotations

import numpy as np

from mofal.dynamics import Network, internal_coordinates
from mofal.dynamics.engine import CalculatorEngine
from mofal.dynamics.integrator import Integrator, Member
from mofal.frameworks.bonds import find_bonds


def coordinates_of(ds, i=0, **stiffness):
    bonds = find_bonds(ds, i)
    return internal_coordinates(
        ds["numbers"].values,
        ds["positions"].values,
        ds["cell"].values[i],
        ds["pbc"].values[i],
        bonds["bond_atom"].values,
        bonds["bond_shift"].values,
        network=Network(**stiffness),
    )


def member_of(atoms, ensemble, *, seed=1, momenta=True, **conditions):
    """One system at the frame of some atoms, with momenta of its temperature."""
    conditions = {"timestep_fs": 1.0, "temperature_K": 40.0, "thermostat_fs": 100.0} | conditions
    member = Member(
        numbers=atoms.numbers,
        pbc=atoms.pbc,
        masses=atoms.get_masses(),
        rng=np.random.default_rng(seed),
        **conditions,
    )
    member.place(atoms.positions, atoms.cell.array)
    if momenta:
        member.draw_momenta(np.random.default_rng(seed + 1), ensemble=ensemble)
    return member


def alone(atoms, ensemble="nvt", **conditions):
    """An integrator with one system, moved by the calculator of these atoms."""
    engine = CalculatorEngine(atoms.calc)
    return Integrator(engine, ensemble, [member_of(atoms, ensemble, **conditions)])


def total_energy(integrator):
    """Potential and kinetic energy of the first system, eV."""
    return float(integrator.outcome.energy[0] + integrator.kinetic_energies()[0])
