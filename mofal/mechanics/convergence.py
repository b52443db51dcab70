"""Is P(V) converged, which points keep it from being so, and how many more runs they get."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mofal.errors import DataError
from mofal.mechanics.pressure_curve import PressurePoints, at_zero, fit_pressure, smooth
from mofal.mechanics.pressure_settings import PressureSettings

SHARE = 0.7
"""Part of the variance of what is not converged, whose points get more runs."""


class Runs(Protocol):
    """Runs of P(V), as `mofal.mechanics.pressure.PressureVolume` has them."""

    system: str
    settings: PressureSettings

    def points(self) -> list[tuple[str, str, float]]:
        """Name, ensemble and condition of every point."""

    def runs(self, name: str, ensemble: str, value: float) -> list[tuple[int, bool]]:
        """Runs of a point."""

    def gather(self, share: float = 1.0) -> tuple[PressurePoints, list[str]]:
        """Points from a first part of each run."""


def converged(pv: Runs) -> tuple[bool, str]:
    """Whether P_max and K stand still between 40 % and 80 % of the data (paper, SI.9.1)."""
    moved = changes(pv)
    if moved is None:
        return False, "the curve does not cross zero pressure"
    return not any(_moving(pv, moved)), _told(moved)


def _moving(pv: Runs, moved: tuple[float, float]) -> tuple[bool, bool]:
    """Whether P_max, and K, move by more than they may."""
    s = pv.settings
    return moved[0] >= s.pressure_change_GPa, moved[1] >= s.modulus_change_GPa


def _told(moved: tuple[float, float]) -> str:
    return f"P_max moves by {1000 * moved[0]:.0f} MPa and K by {moved[1]:.2f} GPa"


def changes(pv: Runs) -> tuple[float, float] | None:
    """Changes of P_max and K (GPa) between 40 % and 80 % of the data; None without a V0."""
    values = []
    for share in (0.4, 0.8):
        found = fit_pressure(pv.gather(share)[0], draws=50, seed=pv.settings.seed)
        values.append((found.largest_pressure.value, found.bulk_modulus))
    (p1, k1), (p2, k2) = values
    if k1 is None or k2 is None:
        return None
    return abs(p1 - p2), abs(k1.value - k2.value)


def influence(points: PressurePoints, *, seed: int = 0) -> NDArray[np.float64]:
    """How far the error of each point moves K and P_max, (n, 2) in GPa.

    Each point is moved by its own standard error in P with the kernel of the process as it is; the
    squares of a column add up to the variance of K or of P_max by the errors of the points.
    """
    whole = smooth(points, seed=seed)
    kernel = whole.process.kernel_

    def values(pressure: NDArray) -> NDArray[np.float64]:
        curve = smooth(replace(points, pressure=pressure), kernel=kernel)
        zero = at_zero(curve.volume, curve.curve)
        return np.array([np.nan if zero is None else zero[1], curve.curve.max()])

    own = values(points.pressure)
    out = []
    for k, error in enumerate(whole.error):
        moved = points.pressure.copy()
        moved[k] += error
        out.append(values(moved) - own)
    return np.nan_to_num(np.array(out))


def needing(
    points: PressurePoints, *, modulus: bool, pressure: bool, seed: int = 0
) -> list[tuple[str, float]]:
    """Points whose errors weigh most in K or in P_max, with their share of its variance.

    The fewest points that make up most (70 %) of it, of either quantity that is asked for.
    """
    squares = influence(points, seed=seed) ** 2
    weight = np.zeros(len(points.names))
    for column, asked in enumerate((modulus, pressure)):
        total = squares[:, column].sum()
        if asked and total > 0:
            weight = np.maximum(weight, squares[:, column] / total)
    chosen: list[tuple[str, float]] = []
    for k in np.argsort(-weight, kind="stable"):
        if weight[k] <= 0 or sum(w for _, w in chosen) >= SHARE:
            break
        chosen.append((points.names[k], float(weight[k])))
    return chosen


def _lacking(
    pv: Runs, points: PressurePoints, moved: tuple[float, float]
) -> list[tuple[str, float]]:
    """What `needing` says of those of P_max and K that still move."""
    pressure, modulus = _moving(pv, moved)
    return needing(points, pressure=pressure, modulus=modulus, seed=pv.settings.seed)


def extension(pv: Runs) -> tuple[dict[str, int], list[str]]:
    """Further runs by point (none where it is converged or nothing may run), and lines on why."""
    try:
        points, _ = pv.gather()
        moved = changes(pv)
    except DataError as error:
        return {}, [f"{pv.system}: more runs do not help: {error}"]
    if moved is None:
        return {}, [f"{pv.system}: no zero of P(V); more runs do not help, other volumes do"]
    wanted, full, text = {}, [], _told(moved)
    for name, _ in _lacking(pv, points, moved):
        there = len(next(pv.runs(*point) for point in pv.points() if point[0] == name))
        more = min(there, pv.settings.max_runs - there)
        if more > 0:
            wanted[name] = more
        else:
            full.append(name)
    lines = []
    if wanted:
        lines.append(
            f"{pv.system}: not converged ({text}): "
            + ", ".join(f"{k} more of {name}" for name, k in wanted.items())
        )
    elif full:
        lines.append(
            f"{pv.system}: not converged ({text}), and {', '.join(full)} have "
            f"{pv.settings.max_runs} runs: raise the most that a point may have, or lengthen runs"
        )
    return wanted, lines


def describe_needing(pv: Runs, points: PressurePoints) -> str:
    """One line: which points a curve that is not converged should get more of."""
    moved = changes(pv)
    if moved is None:
        return ""
    chosen = _lacking(pv, points, moved)
    if not chosen:
        return ""
    named = ", ".join(f"{name} ({100 * w:.0f} %)" for name, w in chosen)
    return f"the errors of these points weigh most: {named}; --until-converged runs more of them"
