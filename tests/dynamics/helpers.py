"""What several tests of the room need."""

from __future__ import annotations

from mofal.dynamics import Network, internal_coordinates
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
