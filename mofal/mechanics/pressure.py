"""P(V) at a temperature: NPT where the crystal is elastic, (N, V, σa = 0, T) elsewhere, one curve.

Every point is a few walks of `mofal.dynamics`; its statistical error comes from block averages; a
Gaussian process with these errors runs through all points, and what is said of K, V0 and the
largest pressure are quantiles over curves drawn from it (paper, SI.9.1).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mofal.data import from_atoms, hash_json, read_json, write_json
from mofal.dynamics import WalkSettings, walk
from mofal.errors import ConfigError, DataError
from mofal.mechanics.curve import Curve, Record, _load, _plain, _save
from mofal.mechanics.fluctuations import volume_fluctuations
from mofal.mechanics.levels import Level
from mofal.mechanics.pieces import Piece
from mofal.reference.ase_calculator import limit_threads

if TYPE_CHECKING:
    import xarray as xr


_TRACE = ("time_fs", "volume", "pressure_GPa", "conserved_energy")
_JUDGED = ("until_converged", "max_runs", "pressure_change_GPa", "modulus_change_GPa")
_MORE = (
    "hysteresis",
    "hysteresis_error",
    "fluctuation_modulus",
    "fluctuation_modulus_error",
    "regression_modulus",
    "regression_modulus_error",
)


@dataclass(frozen=True)
class PressureSettings:
    """How P(V) is made.

    Attributes
    ----------
    temperature_K : float
    pressures_GPa : tuple of float
        Of the NPT points.
    volumes : tuple of float
        Of the points at fixed volume, relative to the minimum of E(V) at 0 K.
    length_fs, timestep_fs : float
        Of each run.
    runs : int
        Runs per point, each with its own seed.
    dropped : float
        Fraction of each run that is left out at its start.
    sample_every : int
        Steps between two samples.
    thermostat_fs, barostat_fs : float
    blocks : int
        Blocks of each run for the statistical error.
    draws : int
        Curves drawn from the Gaussian process.
    seed : int
    both_ways : bool
        Runs at a volume begin in turn from the curve as it is walked to from the minimum and as it
        is walked back from its end.
    until_converged : bool
        Where K or the largest pressure still moves, points get more runs (`PressureVolume.extend`).
    max_runs : int
        Runs that a point gets at most that way.
    pressure_change_GPa, modulus_change_GPa : float
        How far P_max and K may move between 40 % and 80 % of the data (paper, SI.9.1).
    """

    temperature_K: float = 300.0
    pressures_GPa: tuple[float, ...] = (-0.4, -0.2, 0.0, 0.2, 0.4)
    volumes: tuple[float, ...] = (0.92, 0.94, 0.96, 0.98, 1.0)
    length_fs: float = 50_000.0
    timestep_fs: float = 0.5
    runs: int = 1
    dropped: float = 0.2
    sample_every: int = 100
    thermostat_fs: float = 100.0
    barostat_fs: float = 1000.0
    blocks: int = 10
    draws: int = 400
    seed: int = 0
    both_ways: bool = True
    until_converged: bool = False
    max_runs: int = 8
    pressure_change_GPa: float = 0.015
    modulus_change_GPa: float = 1.0

    def __post_init__(self) -> None:
        if len(self.pressures_GPa) + len(self.volumes) < 4:
            raise ConfigError("P(V) takes at least 4 points; give more pressures or volumes")
        if not all(0.5 < v < 1.5 for v in self.volumes):
            raise ConfigError(
                f"volumes are {self.volumes}, expected fractions of V0 between 0.5 and 1.5"
            )
        if self.runs < 1 or self.blocks < 4 or self.draws < 50 or not 0 <= self.dropped < 0.9:
            raise ConfigError("expected runs >= 1, blocks >= 4, draws >= 50, dropped from 0 to 0.9")
        if not (self.pressure_change_GPa > 0 and self.modulus_change_GPa > 0):
            raise ConfigError("the changes of P_max and K that may be left are expected above zero")
        if self.max_runs < self.runs:
            raise ConfigError(f"max_runs is {self.max_runs}, below the {self.runs} runs of a point")
        self.walk("nvst", 0.0)  # what a walk would refuse is refused here

    @property
    def content(self) -> dict[str, Any]:
        """What the numbers of a run depend on."""
        return {k: v for k, v in asdict(self).items() if k not in _JUDGED}

    def walk(self, ensemble: str, pressure_GPa: float) -> WalkSettings:
        """Conditions of one run."""
        return WalkSettings(
            ensemble=ensemble,
            temperature_K=self.temperature_K,
            pressure_GPa=pressure_GPa,
            timestep_fs=self.timestep_fs,
            length_fs=self.length_fs,
            thermostat_fs=self.thermostat_fs,
            barostat_fs=self.barostat_fs,
            sample_every=self.sample_every,
            checkpoint_every=10 * self.sample_every,
            max_bond_strain=0.5,
        )


class PressureVolume:
    """The P(V) of one system at one level, in one directory; begins from points of a curve.

    Parameters
    ----------
    curve : Curve
        Its minimum (and, where there, its nearest volumes) are what runs start from.
    settings : PressureSettings, optional
    """

    def __init__(self, curve: Curve, settings: PressureSettings | None = None) -> None:
        self.curve = curve
        self.settings = settings or PressureSettings()
        self.system = curve.system
        self.key = hash_json(_plain([curve.key, self.settings.content]))
        self.place = curve.place.parent / f"pv-{self.key[:10]}"

    def prepare(self) -> None:
        """Nothing is to be written before."""

    def points(self) -> list[tuple[str, str, float]]:
        """Name, ensemble and condition (GPa, or a fraction of V0) of every point."""
        s = self.settings
        out = [(f"npt{p:+.3f}", "npt", p) for p in s.pressures_GPa]
        return out + [(f"nvst{v:.4f}", "nvst", v) for v in s.volumes]

    def record(self, name: str, run: int) -> Path:
        """Trace of one run."""
        return self.place / "runs" / f"{name}-{run}.npz"

    @property
    def sound(self) -> bool:
        """Whether there is a relaxed structure to start from."""
        return self.curve.first().done and self.curve.sound

    def runs(self, name: str, ensemble: str, value: float) -> list[tuple[int, bool]]:
        """Runs of a point: their number, and whether they begin from the way back."""
        two = ensemble == "nvst" and self.settings.both_ways and not self._is_end(value)
        n = self.settings.runs * (2 if two else 1) + self.more().get(name, 0)
        return [(k, two and k % 2 == 1) for k in range(n)]

    def _is_end(self, value: float) -> bool:
        """Whether the way out ends at this volume (and the way back begins there)."""
        side = [abs(v - 1.0) for v in self.settings.volumes if (v > 1.0) == (value > 1.0)]
        return abs(value - 1.0) == max(side)

    def more(self) -> dict[str, int]:
        """Runs of points beyond those of the settings."""
        file = self.place / "more.json"
        return dict(read_json(file)) if file.exists() else {}

    def extend(self) -> list[str]:
        """Give more runs to the points whose errors weigh most; lines on what was decided.

        Nothing is decided before all runs are there, nor where `until_converged` is not set.
        """
        from mofal.mechanics.convergence import extension

        if not self.settings.until_converged or not self.complete:
            return []
        wanted, lines = extension(self)
        if wanted:
            more = self.more()
            write_json({**more, **{n: more.get(n, 0) + k for n, k in wanted.items()}},
                       self.place / "more.json")  # fmt: skip
        return lines

    def starts(self) -> dict[tuple[float, bool], Piece]:
        """Relaxations at the fixed volumes, each from its neighbour, by volume and way back."""
        v0 = self.curve.minimum_volume
        out: dict[tuple[float, bool], Piece] = {}
        for side in (-1, 1):
            volumes = [v for v in set(self.settings.volumes) if (v > 1.0) == (side > 0)]
            source = self.curve.point("minimum")
            away = sorted(volumes, key=lambda v: abs(v - 1.0))
            walked = [(v, False) for v in away]
            if self.settings.both_ways:
                walked += [(v, True) for v in reversed(away[:-1])]
            for value, back in walked:
                name = f"pv-{self.key[:8]}-{value:.4f}{'-back' if back else ''}"
                out[value, back] = self.curve.piece(name, source, (source,), volume=value * v0)
                source = out[value, back].output
        return out

    def pieces(self) -> list[Piece]:
        """Relaxed starts, and one walk per run; none before the minimum is there."""
        if not self.sound:
            return []
        starts = self.starts()
        out = list(starts.values())
        for name, ensemble, value in self.points():
            for run, back in self.runs(name, ensemble, value):
                source = self.curve.point("minimum")
                if ensemble == "nvst":
                    source = starts[value, back].output
                path = self.record(name, run)
                kwargs = {
                    "source": str(source.absolute()),
                    "output": str(path.absolute()),
                    "level": asdict(self.curve.level),
                    "settings": self.settings.content,
                    "ensemble": ensemble,
                    "pressure_GPa": value if ensemble == "npt" else 0.0,
                    "seed": [self.settings.seed, int(hash_json([name, run])[:12], 16)],
                }
                out.append(
                    Piece(
                        "walk",
                        f"{self.system} {name} run {run}",
                        run_point,
                        kwargs,
                        path,
                        (source,),
                        key=hash_json([self.key, name, run]),
                    )
                )
        return out

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.sound and all(piece.done for piece in self.pieces())

    def forget_failed(self) -> int:
        """Remove runs that did not finish; returns how many."""
        failed = [
            p.output
            for p in self.pieces()
            if p.kind == "walk" and p.done and not _finished(p.output)
        ]
        for path in failed:
            path.unlink(missing_ok=True)
        return len(failed)

    def gather(self) -> tuple[PressurePoints, list[str]]:
        """Means and errors of all points with a finished run, and lines on those without."""
        rows, lost = [], []
        for name, ensemble, value in self.points():
            good: list[dict[str, NDArray]] = []
            ways: list[bool] = []
            for run, back in self.runs(name, ensemble, value):
                path = self.record(name, run)
                if not path.exists():
                    continue
                found = _load(path)
                if str(found["status"]) == "finished":
                    good.append(found)
                    ways.append(back)
                else:
                    lost.append(f"{path.stem}: {found['status']}: {found['reason']}")
            if good:
                rows.append(self._row(name, ensemble, good, ways))
        if not rows:
            raise DataError(f"{self.system}: no run of P(V) has finished")
        return PressurePoints.of(rows), lost

    def frames(self) -> tuple[xr.Dataset, NDArray[np.float64]]:
        """Last frames of all runs that are there, and their volumes (Å³), ascending."""
        frames = []
        for piece in self.pieces():
            if piece.kind == "walk" and piece.done:
                run = _load(piece.output)
                if "positions" in run:
                    frames.append(
                        Atoms(run["numbers"], run["positions"], cell=run["cell"], pbc=True)
                    )
        frames.sort(key=lambda a: a.get_volume())
        volumes = np.array([a.get_volume() for a in frames])
        return from_atoms(frames, system=self.system), volumes

    def _row(
        self, name: str, ensemble: str, runs: list[dict[str, NDArray]], ways: list[bool]
    ) -> dict[str, Any]:
        volume = [run["volume"] for run in runs]
        pressure = [run["pressure_GPa"] for run in runs]
        v, dv = mean_and_error(volume, self.settings)
        p, dp = mean_and_error(pressure, self.settings)
        row = {
            "name": name,
            "ensemble": ensemble,
            "volume": v,
            "volume_error": dv if ensemble == "npt" else 0.0,
            "pressure": float(name[3:]) if ensemble == "npt" else p,
            "pressure_error": 0.0 if ensemble == "npt" else dp,
            "runs": len(runs),
        }
        if ensemble == "npt":
            cut = [int(self.settings.dropped * len(x)) for x in volume]
            row |= volume_fluctuations(
                [x[n:] for x, n in zip(volume, cut)],
                [x[n:] for x, n in zip(pressure, cut)],
                temperature_K=self.settings.temperature_K,
                blocks=self.settings.blocks,
            )._asdict()
            return row
        slopes = [
            np.polyfit(run["time_fs"], run["conserved_energy"], 1)[0] * 1000.0 / int(run["n_atoms"])
            for run in runs
        ]
        row["drift"] = float(np.max(np.abs(slopes)))
        out = [x for x, back in zip(pressure, ways) if not back]
        returned = [x for x, back in zip(pressure, ways) if back]
        if out and returned:
            (p1, d1), (p2, d2) = (mean_and_error(x, self.settings) for x in (out, returned))
            row |= {"hysteresis": p1 - p2, "hysteresis_error": float(np.hypot(d1, d2))}
        return row


def _finished(path: Path) -> bool:
    return str(_load(path)["status"]) == "finished"


def run_point(
    *,
    source: str,
    output: str,
    level: dict[str, Any],
    settings: dict[str, Any],
    ensemble: str,
    pressure_GPa: float,
    seed: Sequence[int],
) -> dict[str, Any]:
    """Walk once at a pressure or a volume and keep the trace; killed, it goes on where it was."""
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    chosen = PressureSettings(**given)
    atoms = Record.load(Path(source)).atoms
    path = Path(output)
    checkpoint = path.with_suffix(".checkpoint.npz")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with limit_threads(1):
        done = walk(
            from_atoms([atoms], system="point"),
            calculator=Level(**level).calculator(),
            settings=chosen.walk(ensemble, pressure_GPa),
            seed=tuple(seed),
            out=checkpoint,
        )
    status = str(done.record["walk_status"].values[0])
    reason = str(done.record["walk_reason"].values[0])
    trace = {str(name): done.trace[name].values for name in done.trace}
    frame = {
        "numbers": done.frame["numbers"].values,
        "positions": done.frame["positions"].values,
        "cell": done.frame["cell"].values[0],
    }
    more = {"status": status, "reason": reason, "n_atoms": len(atoms)}
    _save(path, {**trace, **frame, **more})
    checkpoint.unlink(missing_ok=True)
    half = len(trace["volume"]) // 2
    text = (
        f"{trace['volume'][half:].mean():.1f} Å³, {trace['pressure_GPa'][half:].mean():.3f} GPa, "
        f"{trace['temperature_K'][half:].mean():.0f} K"
    )
    return {"status": status, "reason": reason, "text": text}


# ---------------------------------------------------------------------------------- arrays
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
            *(column(name) for name in _MORE),
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
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    n = len(points.volume)
    if n < 4:
        raise DataError(f"{n} points of P(V); a curve takes at least 4")
    middle, width = points.volume.mean(), np.ptp(points.volume)
    x = (points.volume - middle) / width
    # A straight line is taken off first: far from data the process falls back on it, not on zero.
    line = np.polyfit(x, points.pressure, min(2, n - 2))
    scale = max(float(np.ptp(points.pressure)), 1e-6)
    rest = (points.pressure - np.polyval(line, x)) / scale
    slope = np.abs(np.polyval(np.polyder(line), x)) / width
    grid = np.linspace(x.min(), x.max(), 401)
    free: dict[str, Any] = {"n_restarts_optimizer": 2, "random_state": seed}
    if kernel is not None:
        free = {"optimizer": None}
    for _ in range(2):
        error = np.hypot(points.pressure_error, slope * points.volume_error)
        alpha = np.maximum(error / scale, 1e-4) ** 2
        start = kernel or ConstantKernel(0.1, (1e-6, 1e2)) * RBF(0.3, (0.05, 3.0))
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

    from mofal.data import describe
    from mofal.data.ragged import TEXT

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
                **{f"pv_{name}": ("pv_point", getattr(points, name)) for name in _MORE},
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
        f"  P_max > {top.value:.3f} GPa: the largest pressure lies at the edge of the data"
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
