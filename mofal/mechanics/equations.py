"""Equations of state, each with the same four parameters: E0, V0, K, K'.

Energies and pressures are fitted together, over windows of volumes that shrink until the bulk
moduli of all equations agree and the equations follow the pressures. Both are asked: near a
collapse K changes so fast that all three agree on the same wrong modulus of a wide window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import units
from numpy.typing import NDArray
from scipy.optimize import least_squares

from mofal.errors import DataError

Parameters = Sequence[float] | NDArray[np.float64]
Curve = Callable[[NDArray[np.float64], Parameters], tuple[NDArray, NDArray]]


def polynomial(volume: NDArray, parameters: Parameters) -> tuple[NDArray, NDArray]:
    """Third order in the volume: energies (eV) and pressures (eV/Å³)."""
    e0, v0, k, kp = parameters
    x = volume - v0
    energy = e0 + k / (2 * v0) * x**2 - (1 + kp) * k / (6 * v0**2) * x**3
    pressure = -(k / v0 * x - (1 + kp) * k / (2 * v0**2) * x**2)
    return energy, pressure


def birch_murnaghan(volume: NDArray, parameters: Parameters) -> tuple[NDArray, NDArray]:
    """Third order in the Eulerian strain (Birch, Phys. Rev. 71, 809 (1947))."""
    e0, v0, k, kp = parameters
    x = (v0 / volume) ** (2.0 / 3.0)
    energy = e0 + 9 * v0 * k / 16 * ((x - 1) ** 3 * kp + (x - 1) ** 2 * (6 - 4 * x))
    pressure = 1.5 * k * (x**3.5 - x**2.5) * (1 + 0.75 * (kp - 4) * (x - 1))
    return energy, pressure


def vinet(volume: NDArray, parameters: Parameters) -> tuple[NDArray, NDArray]:
    """Vinet, Ferrante, Smith, Rose, J. Phys. C 19, L467 (1986)."""
    e0, v0, k, kp = parameters
    x = (volume / v0) ** (1.0 / 3.0)
    eta = 1.5 * (kp - 1)
    with np.errstate(over="ignore"):
        grown = np.exp(eta * (1 - x))
    if abs(eta) < 1e-6:
        energy = e0 + 4.5 * k * v0 * (1 - x) ** 2
    else:
        energy = e0 + 9 * k * v0 / eta**2 * (1 + (eta * (1 - x) - 1) * grown)
    pressure = 3 * k * (1 - x) / x**2 * grown
    return energy, pressure


EQUATIONS: dict[str, Curve] = {
    "polynomial": polynomial,
    "Birch-Murnaghan": birch_murnaghan,
    "Vinet": vinet,
}


@dataclass(frozen=True)
class Fit:
    """One equation of state on one window.

    Attributes
    ----------
    equation : str
    energy : float
        E0, eV.
    volume : float
        V0, Å³.
    bulk_modulus : float
        K, GPa.
    derivative : float
        K' = dK/dP at zero pressure.
    residual : float
        Root mean square of the residuals of energies, eV.
    pressure_residual : float
        That of the pressures, GPa.
    """

    equation: str
    energy: float
    volume: float
    bulk_modulus: float
    derivative: float
    residual: float
    pressure_residual: float


def fit(
    volume: NDArray,
    energy: NDArray,
    pressure: NDArray | None = None,
    *,
    equation: str = "Birch-Murnaghan",
) -> Fit:
    """Fit one equation of state.

    Parameters
    ----------
    volume, energy : (n,) arrays
        Å³, eV.
    pressure : (n,) array, optional
        eV/Å³. An error of pressure counts as that of an energy over the mean spacing of volumes.
    equation : str
        Key of `EQUATIONS`.

    Raises
    ------
    DataError
        Too few points, or a curve without a minimum.
    """
    volume, energy = np.asarray(volume, float), np.asarray(energy, float)
    if len(volume) < 4:
        raise DataError(f"{len(volume)} volumes; an equation of state takes 4 at least, better 7")
    curve = EQUATIONS[equation]
    guess = _guess(volume, energy)
    spacing = (volume.max() - volume.min()) / (len(volume) - 1)
    # Parameters in units of their guess, so that all are of order one.
    scale = np.array([guess[2] * (spacing / guess[1]) ** 2 * guess[1], guess[1], guess[2], 1.0])

    def parameters(x: NDArray) -> NDArray:
        return np.array([guess[0], 0.0, 0.0, 0.0]) + x * scale

    def residuals(x: NDArray) -> NDArray:
        if x[1] <= 0.2:  # no volume: a wall for the optimiser
            return np.full(len(volume) * (1 if pressure is None else 2), 1e3)
        e, p = curve(volume, parameters(x))
        rows = [e - energy] if pressure is None else [e - energy, spacing * (p - pressure)]
        return np.nan_to_num(np.concatenate(rows) / scale[0], nan=1e3, posinf=1e3, neginf=-1e3)

    start = np.array([0.0, 1.0, 1.0, 4.0])
    found = least_squares(residuals, start, x_scale=[1.0, 0.01, 1.0, 4.0], xtol=1e-14, ftol=1e-14)
    e0, v0, k, kp = parameters(found.x)
    if not k > 0:
        raise DataError("the energies have no minimum in the volume")
    e, p = curve(volume, (e0, v0, k, kp))
    rms = np.sqrt(np.mean((e - energy) ** 2))
    rms_p = np.nan if pressure is None else np.sqrt(np.mean((p - pressure) ** 2)) / units.GPa
    return Fit(equation, e0, v0, k / units.GPa, kp, float(rms), float(rms_p))


def _guess(volume: NDArray, energy: NDArray) -> tuple[float, float, float]:
    """E0 (eV), V0 (Å³), K (eV/Å³) of a parabola through the points."""
    middle = volume.mean()
    c, b, a = np.polynomial.polynomial.polyfit(volume - middle, energy, 2)
    if not a > 0:
        raise DataError("the energies have no minimum in the volume")
    v0 = middle - b / (2 * a)
    v0 = float(np.clip(v0, 0.5 * volume.min(), 2.0 * volume.max()))
    return float(c - b**2 / (4 * a)), v0, float(2 * a * v0)


@dataclass(frozen=True)
class Windows:
    """Fits over windows that shrink until all equations agree.

    Attributes
    ----------
    fits : list of Fit
        Of the window that was chosen, one per equation.
    window : (float, float)
        Its lowest and highest volume, Å³.
    n_volumes : int
    agreed : bool
        Whether the bulk moduli agree within the tolerance there, and `misfit` is within half of it.
    spread : float
        Largest less smallest bulk modulus over their mean.
    misfit : float
        Largest root mean square of the residuals of the pressures, of any equation, over half the
        range of the pressures; NaN without pressures.
    tried : list of (int, float)
        Number of volumes and spread of every window.
    energy_alone : Fit
        Birch-Murnaghan of the energies without the pressures: tells forces from their energy.
    """

    fits: list[Fit]
    window: tuple[float, float]
    n_volumes: int
    agreed: bool
    spread: float
    misfit: float
    tried: list[tuple[int, float]]
    energy_alone: Fit

    @property
    def best(self) -> Fit:
        """Birch-Murnaghan's."""
        return next(f for f in self.fits if f.equation == "Birch-Murnaghan")

    @property
    def bulk_modulus(self) -> float:
        """Mean of the equations, GPa."""
        return float(np.mean([f.bulk_modulus for f in self.fits]))


def fit_windows(
    volume: NDArray,
    energy: NDArray,
    pressure: NDArray | None = None,
    *,
    tolerance: float = 0.02,
    fewest: int = 5,
) -> Windows:
    """Fit all equations over windows around the minimum that shrink until K agrees (SI.9.2).

    Parameters
    ----------
    volume, energy, pressure
        As in `fit`; any order.
    tolerance : float
        Relative spread of the bulk moduli at which they agree; pressures are to be followed to half
        of it.
    fewest : int
        Volumes of the smallest window.

    Raises
    ------
    DataError
        Too few volumes, or none on one side of the minimum.
    """
    volume, energy = np.asarray(volume, float), np.asarray(energy, float)
    order = np.argsort(volume)
    volume, energy = volume[order], energy[order]
    pressure = None if pressure is None else np.asarray(pressure, float)[order]
    if len(volume) < fewest:
        raise DataError(f"{len(volume)} volumes with an energy; a fit takes {fewest} at least")
    lowest = int(np.argmin(energy))
    if lowest in (0, len(volume) - 1):
        side = "smaller" if lowest == 0 else "larger"
        raise DataError(
            f"the volumes ({volume[0]:.1f} to {volume[-1]:.1f} Å³) do not enclose the minimum, "
            f"which lies at {side} ones; add some there"
        )
    tried: list[tuple[int, float]] = []
    best: Windows | None = None
    least = np.inf
    first, last = 0, len(volume)
    while last - first >= fewest:
        rows = slice(first, last)
        p = None if pressure is None else pressure[rows]
        fits = [fit(volume[rows], energy[rows], p, equation=name) for name in EQUATIONS]
        moduli = np.array([f.bulk_modulus for f in fits])
        spread = float(np.ptp(moduli) / abs(moduli.mean()))
        tried.append((last - first, spread))
        misfit = np.nan
        if p is not None:
            misfit = max(f.pressure_residual for f in fits) / (np.ptp(p) / units.GPa / 2)
        # fmax: without pressures only the moduli count.
        worst = float(np.fmax(spread, 2 * misfit))
        if best is None or worst < least:
            least = worst
            best = Windows(
                fits,
                (float(volume[first]), float(volume[last - 1])),
                last - first,
                worst <= tolerance,
                spread,
                float(misfit),
                tried,
                fit(volume[rows], energy[rows]),
            )
        if worst <= tolerance:
            break
        # The point farthest from the minimum goes first.
        middle = float(np.median([f.volume for f in fits]))
        if abs(volume[first] - middle) > abs(volume[last - 1] - middle):
            first += 1
        else:
            last -= 1
    assert best is not None
    return best
