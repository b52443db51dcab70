"""The bulk modulus at one pressure, from how the volume fluctuates there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ase import units
from numpy.typing import NDArray


class Fluctuations(NamedTuple):
    """Isothermal bulk moduli of NPT runs with their standard errors, GPa."""

    fluctuation_modulus: float
    fluctuation_modulus_error: float
    regression_modulus: float
    regression_modulus_error: float


def volume_fluctuations(
    volumes: Sequence[NDArray],
    pressures: Sequence[NDArray],
    *,
    temperature_K: float,
    blocks: int = 10,
) -> Fluctuations:
    """K = kT <V> / <δV²>, and K = -<V> <δV δP> / <δV²>, of NPT runs at one pressure.

    Both have the same limit, since <δV δP> = -kT in NPT (P the internal pressure, its kinetic part
    included). The noise of <δV²> cancels in the second, which is the more precise by far where the
    internal pressure follows the volume closely; neither needs another pressure.

    Parameters
    ----------
    volumes, pressures : sequences of arrays
        Of each run, equilibrated, Å³ and GPa.
    temperature_K : float
    blocks : int
        Blocks per run that are left out in turn for the errors (jackknife); each should be longer
        than the volume's memory.

    Notes
    -----
    Allen and Tildesley, Computer Simulation of Liquids (2017), section 2.5, for the fluctuations.
    A short series knows its own mean too well: <δV²> is then too small and K too large by about
    the volume's memory over the length.
    """
    parts = [
        (v, p)
        for volume, pressure in zip(volumes, pressures)
        for v, p in zip(np.array_split(volume, blocks), np.array_split(pressure, blocks))
        if len(v)
    ]
    # Sums of each block, so that leaving one out costs nothing.
    sums = np.array([[len(v), v.sum(), p.sum(), v @ v, v @ p] for v, p in parts])
    whole = _moduli(sums.sum(axis=0), temperature_K)
    n = len(parts)
    left_out = np.array([_moduli(sums.sum(axis=0) - one, temperature_K) for one in sums])
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    return Fluctuations(float(whole[0]), float(error[0]), float(whole[1]), float(error[1]))


def _moduli(sums: NDArray[np.float64], temperature_K: float) -> NDArray[np.float64]:
    n, v, p, vv, vp = sums
    variance = max(vv / n - (v / n) ** 2, 1e-300)
    covariance = vp / n - v * p / n**2
    mean = v / n
    kT = units.kB * temperature_K / units.GPa
    return np.array([kT * mean / variance, -mean * covariance / variance])
