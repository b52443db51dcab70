"""Points of P(V) with their errors, a Gaussian process through them, and what it says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.data import describe
from mofal.data.ragged import TEXT
from mofal.errors import DataError
from mofal.mechanics.pressure_settings import PressureSettings

if TYPE_CHECKING:
    import xarray as xr

MORE = (
    "hysteresis",
    "hysteresis_error",
    "fluctuation_modulus",
    "fluctuation_modulus_error",
    "regression_modulus",
    "regression_modulus_error",
)
"""Of a point, beside volume and pressure."""


def mean_and_error(runs: Sequence[NDArray], settings: PressureSettings) -> tuple[float, float]:
    """Mean of correlated series and its standard error, from blocks of all of them."""
    means: list[float] = []
    for values in runs:
        kept = values[int(settings.dropped * len(values)) :]
        if len(kept) < settings.blocks:
            raise DataError(
                f"{len(kept)} samples are left of a run, fewer than its {settings.blocks} blocks; "
                "make it longer, or sample more often"
            )
        means += [float(block.mean()) for block in np.array_split(kept, settings.blocks)]
    x = np.array(means)
    error = x.std(ddof=1) / np.sqrt(len(x))
    # Neighbouring blocks that still know each other make the error larger.
    centred = x - x.mean()
    correlation = float((centred[1:] * centred[:-1]).sum() / max((centred**2).sum(), 1e-300))
    return float(x.mean()), float(error * np.sqrt(max(1.0, 1.0 + 2.0 * correlation)))


@dataclass(frozen=True)
class PressurePoints:
    """Points of P(V): means with standard errors, of whichever is not given.

    Attributes
    ----------
    names, ensemble : list of str
    volume, volume_error : (n,) arrays
        Å³.
    pressure, pressure_error : (n,) arrays
        GPa.
    drift : (n,) array
        Slope of the conserved energy at fixed volume, eV/ps per atom; NaN in NPT.
    runs : (n,) int array
    hysteresis, hysteresis_error : (n,) arrays
        Pressure of runs from the way out less that of runs from the way back, GPa; NaN where there
        is one way only.
    fluctuation_modulus, fluctuation_modulus_error, regression_modulus, regression_modulus_error
        (n,) arrays of `volume_fluctuations`, GPa; NaN at fixed volume.
    """

    names: list[str]
    ensemble: list[str]
    volume: NDArray[np.float64]
    volume_error: NDArray[np.float64]
    pressure: NDArray[np.float64]
    pressure_error: NDArray[np.float64]
    drift: NDArray[np.float64]
    runs: NDArray[np.int64]
    hysteresis: NDArray[np.float64]
    hysteresis_error: NDArray[np.float64]
    fluctuation_modulus: NDArray[np.float64]
    fluctuation_modulus_error: NDArray[np.float64]
    regression_modulus: NDArray[np.float64]
    regression_modulus_error: NDArray[np.float64]

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> PressurePoints:
        """Points from rows, in the order of their volume."""
        ordered = sorted(rows, key=lambda r: r["volume"])

        def column(name: str) -> NDArray[np.float64]:
            return np.array([r.get(name, np.nan) for r in ordered], float)

        return cls(
            [r["name"] for r in ordered],
            [r["ensemble"] for r in ordered],
            column("volume"),
            column("volume_error"),
            column("pressure"),
            column("pressure_error"),
            column("drift"),
            np.array([r.get("runs", 1) for r in ordered], np.int64),
            *(column(name) for name in MORE),
        )


@dataclass(frozen=True)
class Interval:
    """A value with the quantiles 2.5 % and 97.5 % over drawn curves."""

    value: float
    low: float
    high: float

    def text(self, form: str = ".2f") -> str:
        """``37.2 (36.1 to 38.4)``."""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class PressureCurve:
    """A Gaussian process through P(V), and what it says.

    Attributes
    ----------
    volume, pressure, deviation : (m,) arrays
        The mean curve on a grid, Å³ and GPa, and its standard deviation.
    equilibrium_volume, bulk_modulus : Interval or None
        V0 (Å³) and K (GPa); None where the curve does not cross zero.
    largest_pressure : Interval
        GPa: the maximum of the mean curve; the interval is that of the maxima of drawn curves,
        which are biased upwards.
    bound : bool
        The maximum lies at the edge of the data: the largest pressure is at least this.
    """

    volume: NDArray[np.float64]
    pressure: NDArray[np.float64]
    deviation: NDArray[np.float64]
    equilibrium_volume: Interval | None
    bulk_modulus: Interval | None
    largest_pressure: Interval
    bound: bool


@dataclass(frozen=True)
class Smooth:
    """A Gaussian process on top of a parabola: what `fit_pressure` draws from.

    Attributes
    ----------
    process : GaussianProcessRegressor
        In reduced units.
    line : array
        Coefficients of the parabola, GPa, of the reduced volume.
    scale : float
        GPa per unit of the process.
    error : (n,) array
        Of the points in P, GPa.
    grid, volume, curve : (m,) arrays
        Reduced volume, volume in Å³, mean pressure in GPa.
    """

    process: Any
    line: NDArray[np.float64]
    scale: float
    error: NDArray[np.float64]
    grid: NDArray[np.float64]
    volume: NDArray[np.float64]
    curve: NDArray[np.float64]


def smooth(points: PressurePoints, *, seed: int = 0, kernel: Any = None) -> Smooth:
    """Fit the Gaussian process, or (with a kernel) take its kernel as given.

    Raises
    ------
    DataError
        Fewer than four points.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct

    n = len(points.volume)
    if n < 4:
        raise DataError(f"{n} points of P(V); a curve takes at least 4")
    middle, width = points.volume.mean(), np.ptp(points.volume)
    x = (points.volume - middle) / width
    # A parabola is taken off first: between distant points the process falls back on it.
    line = np.polyfit(x, points.pressure, min(2, n - 2))
    scale = max(float(np.ptp(points.pressure)), 1e-6)
    rest = (points.pressure - np.polyval(line, x)) / scale
    slope = np.abs(np.polyval(np.polyder(line), x)) / width
    grid = np.linspace(x.min(), x.max(), 401)
    # Any parabola besides, with a wide prior: that the one taken off is known no better than the
    # points are belongs into the intervals, all the more where nothing else is left to explain.
    parabola = ConstantKernel(10.0, "fixed") * DotProduct(1.0, "fixed") ** 2
    free: dict[str, Any] = {"n_restarts_optimizer": 2, "random_state": seed}
    if kernel is not None:
        free = {"optimizer": None}
    for _ in range(2):
        error = np.hypot(points.pressure_error, slope * points.volume_error)
        alpha = np.maximum(error / scale, 1e-4) ** 2
        wave = ConstantKernel(0.1, (1e-6, 1e2)) * RBF(0.3, (0.05, 3.0))
        start = kernel or parabola + wave
        process = GaussianProcessRegressor(start, alpha=alpha, **free)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a hyperparameter at its bound is an answer too
            process.fit(x[:, None], rest)
            mean = process.predict(grid[:, None])
        curve = scale * mean + np.polyval(line, grid)
        slope = np.abs(np.interp(x, grid, np.gradient(curve, grid))) / width
    return Smooth(process, line, scale, error, grid, middle + width * grid, curve)


def fit_pressure(points: PressurePoints, *, draws: int = 400, seed: int = 0) -> PressureCurve:
    """Run a Gaussian process through the points.

    Errors of NPT points, which lie in V, become errors in P by the local slope of a first fit.

    Raises
    ------
    DataError
        Fewer than four points.
    """
    fitted = smooth(points, seed=seed)
    volume, curve, scale = fitted.volume, fitted.curve, fitted.scale
    _, deviation = fitted.process.predict(fitted.grid[:, None], return_std=True)
    drawn = fitted.process.sample_y(fitted.grid[:, None], draws, random_state=seed).T
    drawn = scale * drawn + np.polyval(fitted.line, fitted.grid)
    own = at_zero(volume, curve)
    zeros = [z for z in (at_zero(volume, d) for d in drawn) if z is not None]
    v0 = modulus = None
    if own is not None and len(zeros) > draws / 2:
        v0 = Interval(own[0], *np.percentile([z[0] for z in zeros], [2.5, 97.5]))
        modulus = Interval(own[1], *np.percentile([z[1] for z in zeros], [2.5, 97.5]))
    top = int(np.argmax(curve))
    bound = top <= 2 or (curve[top] - curve[0]) < 2 * scale * deviation[0]
    low, high = np.percentile(drawn.max(axis=1), [2.5, 97.5])
    return PressureCurve(
        volume,
        curve,
        scale * deviation,
        v0,
        modulus,
        Interval(float(curve[top]), float(low), float(high)),
        bool(bound),
    )


def at_zero(volume: NDArray, pressure: NDArray) -> tuple[float, float] | None:
    """V0 (Å³) and K = -V dP/dV (GPa) where the pressure falls through zero last."""
    crossing = np.flatnonzero((pressure[:-1] > 0) & (pressure[1:] <= 0))
    if not len(crossing):
        return None
    k = int(crossing[-1])
    share = pressure[k] / (pressure[k] - pressure[k + 1])
    v0 = float(volume[k] + share * (volume[k + 1] - volume[k]))
    slope = np.gradient(pressure, volume)
    return v0, float(-v0 * np.interp(v0, volume, slope))


def pressure_table(points: PressurePoints, curve: PressureCurve) -> xr.Dataset:
    """Points and curve as a table (dims ``pv_point`` and ``pv_grid``) with units."""
    import xarray as xr

    attrs: dict[str, Any] = {"largest_pressure_is_bound": int(curve.bound)}
    for name in ("equilibrium_volume", "bulk_modulus", "largest_pressure"):
        value = getattr(curve, name)
        if value is not None:
            attrs[name] = [value.value, value.low, value.high]
    return describe(
        xr.Dataset(
            {
                "pv_name": ("pv_point", np.array(points.names, TEXT)),
                "pv_volume": ("pv_point", points.volume),
                "pv_volume_error": ("pv_point", points.volume_error),
                "pv_pressure": ("pv_point", points.pressure),
                "pv_pressure_error": ("pv_point", points.pressure_error),
                "pv_drift": ("pv_point", points.drift),
                "pv_runs": ("pv_point", points.runs),
                **{f"pv_{name}": ("pv_point", getattr(points, name)) for name in MORE},
                "curve_volume": ("pv_grid", curve.volume),
                "curve_pressure": ("pv_grid", curve.pressure),
                "curve_deviation": ("pv_grid", curve.deviation),
            },
            attrs=attrs,
        )
    )


def describe_pressure(
    name: str, points: PressurePoints, curve: PressureCurve, *, temperature_K: float
) -> list[str]:
    """P(V) as lines of text."""
    lines = [f"{name}: P(V) at {temperature_K:g} K, classical nuclei, intervals 95 %"]
    if curve.bulk_modulus is None or curve.equilibrium_volume is None:
        lines.append("  the curve does not cross zero pressure: no V0, no K; add volumes")
    else:
        lines.append(
            f"  V0 {curve.equilibrium_volume.text('.1f')} Å³   "
            f"K {curve.bulk_modulus.text('.2f')} GPa"
        )
    top = curve.largest_pressure
    lines.append(
        f"  P_max > {min(top.low, top.value):.3f} GPa (97.5 %): the largest pressure of the curve, "
        f"{top.value:.3f} GPa, lies at the edge of the data"
        if curve.bound
        else f"  P_max {top.text('.3f')} GPa"
    )
    for k, point in enumerate(points.names):
        more = "" if np.isnan(points.drift[k]) else f"   drift {points.drift[k]:.1e} eV/ps/atom"
        if np.isfinite(points.hysteresis[k]):
            more += (
                f"   out less back {1000 * points.hysteresis[k]:.0f} ± "
                f"{1000 * points.hysteresis_error[k]:.0f} MPa"
            )
        if np.isfinite(points.fluctuation_modulus[k]):
            more += (
                f"   K of its volume's fluctuations {points.fluctuation_modulus[k]:.1f} ± "
                f"{points.fluctuation_modulus_error[k]:.1f}, of P on V "
                f"{points.regression_modulus[k]:.1f} ± {points.regression_modulus_error[k]:.1f} GPa"
            )
        lines.append(
            f"  {point:12s} {points.volume[k]:10.2f} ± {points.volume_error[k]:5.2f} Å³  "
            f"{points.pressure[k]:8.4f} ± {points.pressure_error[k]:.4f} GPa{more}"
        )
    return lines
