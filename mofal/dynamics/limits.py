"""How far a bond may go at a temperature: the spread that a harmonic network gives its length.

A limit in per cent of the length cannot be right for all bonds: at 600 K a sound Zr-O bond strays
further from its mean than an aromatic C-C bond does. The spread of each kind of bond follows from
the stiffness of the network (`mofal.dynamics.Network`) and the temperature, never from the walk
that is being watched: a bad potential would calibrate itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mofal.data import atom_slice
from mofal.dynamics.checks import bond_lengths
from mofal.dynamics.harmonic import HarmonicSampler
from mofal.dynamics.network import Network, internal_coordinates
from mofal.errors import ConfigError, StructureError

SAMPLES = 200
"""Bonds of a kind, times draws, that a spread is taken from at least: it is then known to 5 %."""
MOST_DRAWS = 64
SOFT, SOFT_METAL = 1.1, 2.7
"""How much further real bonds stray than the network's, those with a metal apart: measured along
walks of UiO-66 that held (docs/dynamics.md has the figures)."""


class BondLimits(NamedTuple):
    """Bonds that must hold, and how far each may go.

    Attributes
    ----------
    bonds : ndarray (n_bonds, 2)
        Pairs of atoms.
    shifts : ndarray (n_bonds, 3)
        Lattice shift of the second atom against the first.
    expected : ndarray (n_bonds,)
        Lengths that strains are meant against, Å.
    spread : ndarray (n_bonds,)
        Standard deviation of the relative change of length at the temperature.
    """

    bonds: NDArray
    shifts: NDArray
    expected: NDArray
    spread: NDArray


def bond_limits(
    structures: xr.Dataset,
    i: int = 0,
    *,
    temperature_K: float,
    bonds: NDArray,
    shifts: NDArray,
    network: Network | None = None,
) -> BondLimits:
    """Expected lengths of bonds, and the spread of each kind at a temperature.

    The kind of a bond is the elements of both atoms and how many bonds each has. Displacements are
    drawn from the thermal distribution of the network, at least `SAMPLES` bonds of each kind (64
    draws at the most); the same structure gives the same limits.

    Parameters
    ----------
    structures
        Structures Dataset; structure `i` has the lengths that are expected.
    temperature_K
        K.
    bonds, shifts
        Shapes (n_bonds, 2) and (n_bonds, 3), as `mofal.frameworks.find_bonds` gives them.

    Raises
    ------
    ConfigError
        A temperature that is not positive.
    StructureError
        No bonds.
    """
    if not temperature_K > 0.0:
        raise ConfigError(f"temperature_K is {temperature_K}, expected a positive number")
    if len(bonds) == 0:
        raise StructureError("a structure without bonds has no limits for them")
    network = network if network is not None else Network()
    atoms = atom_slice(structures, i)
    numbers = structures["numbers"].values[atoms]
    positions = structures["positions"].values[atoms]
    cell, pbc = structures["cell"].values[i], structures["pbc"].values[i]
    expected = bond_lengths(positions, cell, bonds, shifts)
    degree = np.bincount(np.asarray(bonds).ravel(), minlength=len(numbers))
    ends = np.sort(numbers[bonds] * 64 + np.minimum(degree[bonds], 63), axis=1)
    _, kind, count = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    kind = kind.ravel()
    draws = int(np.clip(np.ceil(SAMPLES / count.min()), 2, MOST_DRAWS))
    sampler = HarmonicSampler(
        internal_coordinates(numbers, positions, cell, pbc, bonds, shifts, network=network),
        floor=network.floor,
        temperature_K=temperature_K,
    )
    rng = np.random.default_rng(0)
    square = np.zeros(len(count))
    for _ in range(draws):
        moved = bond_lengths(positions + sampler.draw(rng), cell, bonds, shifts)
        square += np.bincount(kind, weights=(moved / expected - 1.0) ** 2)
    spread = np.sqrt(square / (draws * count))[kind]
    from mofal.frameworks.bonds import IS_METAL

    soft = np.where(IS_METAL[numbers[bonds]].any(axis=1), SOFT_METAL, SOFT)
    return BondLimits(np.asarray(bonds), np.asarray(shifts), expected, spread * soft)


def check_limits(
    strain: NDArray, mean: NDArray, limits: BondLimits, *, most: float, most_mean: float
) -> str:
    """Which bond is beyond its limit ("" for none).

    Parameters
    ----------
    strain, mean
        Relative change of each bond's length, now and in the running mean: shapes (n_bonds,).
    most, most_mean
        Limits of both, in standard deviations of the bond's kind.
    """
    z, z_mean = np.abs(strain) / limits.spread, np.abs(mean) / limits.spread
    for value, limit, what, where in (
        (z, most, "", strain),
        (z_mean, most_mean, " in the mean", mean),
    ):
        worst = int(np.argmax(value)) if len(value) else -1
        if worst >= 0 and value[worst] > limit:
            a, b = (int(v) for v in limits.bonds[worst])
            return (
                f"the bond of atoms {a} and {b} is {where[worst]:+.0%} off its "
                f"{limits.expected[worst]:.2f} Å{what}: {value[worst]:.1f} standard deviations "
                f"of its kind, limit {limit:g}"
            )
    return ""
