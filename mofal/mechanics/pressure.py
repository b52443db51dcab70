"""P(V) at a temperature: NPT where the crystal is elastic, (N, V, σa = 0, T) elsewhere, one curve.

Every point is a few walks of `mofal.dynamics`; its statistical error comes from block averages; a
Gaussian process with these errors runs through all points, and what is said of K, V0 and the
largest pressure are quantiles over curves drawn from it (paper, SI.9.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mofal.data import from_atoms, hash_json, read_json, write_json
from mofal.dynamics import walk
from mofal.errors import DataError
from mofal.mechanics.convergence import extension
from mofal.mechanics.curve import Curve, Record, _load, _plain, _save, bonds_of
from mofal.mechanics.fluctuations import volume_fluctuations
from mofal.mechanics.levels import Level
from mofal.mechanics.pieces import Piece
from mofal.mechanics.pressure_curve import PressurePoints, mean_and_error
from mofal.mechanics.pressure_settings import PressureSettings
from mofal.reference.ase_calculator import limit_threads

if TYPE_CHECKING:
    import xarray as xr

_TRACE = ("time_fs", "volume", "pressure_GPa", "conserved_energy")


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
        """Trace of one run: beside the curve, where settings with other points find it too."""
        chain = self._chain_of(name, run)
        value = next(v for n, _, v in self.points() if n == name)  # all of its digits
        content = [self.curve.key, self.settings.run_content, name, value, run, chain]
        return self.curve.place / "runs" / f"{name}-{run}-{hash_json(_plain(content))[:8]}.npz"

    def _chain_of(self, name: str, run: int) -> list[float]:
        """Volumes by which the start of a run was reached; none where that is the minimum."""
        ensemble, value = next((e, v) for n, e, v in self.points() if n == name)
        if ensemble == "npt":
            return []
        return self._chain(value, back=dict(self.runs(name, ensemble, value))[run])

    def _chain(self, value: float, *, back: bool) -> list[float]:
        """Volumes by which a volume is reached from the minimum, itself the last."""
        away = self._away(value)
        k = away.index(value)
        return away + away[k:-1][::-1] if back else away[: k + 1]

    def _away(self, value: float) -> list[float]:
        """Volumes on the side of one of them, outwards."""
        side = {v for v in self.settings.volumes if (v > 1.0) == (value > 1.0)}
        return sorted(side, key=lambda v: abs(v - 1.0))

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
        return value == self._away(value)[-1]

    def more(self) -> dict[str, int]:
        """Runs of points beyond those of the settings."""
        file = self.place / "more.json"
        return dict(read_json(file)) if file.exists() else {}

    def extend(self) -> list[str]:
        """Give more runs to the points whose errors weigh most; lines on what was decided.

        Nothing is decided before all runs are there, nor where `until_converged` is not set.
        """
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
        for end in (v for v in self.settings.volumes if self._is_end(v)):
            away = self._away(end)
            walked = [(v, False) for v in away]
            if self.settings.both_ways:
                walked += [(v, True) for v in reversed(away[:-1])]
            source = self.curve.point("minimum")
            for value, back in walked:
                chain = hash_json(self._chain(value, back=back))[:8]
                name = f"pv-{value:.4f}{'-back' if back else ''}-{chain}"
                piece = self.curve.piece(name, source, (source,), volume=value * v0)
                told = f"{self.system} start at {value:.4f} V0{', way back' if back else ''}"
                out[value, back] = replace(piece, name=told)
                source = out[value, back].output
        return out

    def pieces(self) -> list[Piece]:
        """Relaxed starts, and one walk per run; none before the minimum is there."""
        if not self.sound:
            return []
        starts = self.starts()
        n_atoms = int(self.curve.structure["n_atoms"].values[0])
        steps = self.settings.walk("nvst", 0.0).n_steps()
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
                        float(n_atoms * steps),
                        key=hash_json(str(path)),
                    )
                )
        return out

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.sound and all(piece.done for piece in self.pieces())

    def forget_failed(self) -> int:
        """Remove what failed, starts and runs, and all that began from it; returns how many."""
        gone: set[Path] = set()
        for piece in self.pieces():
            stale = bool(gone.intersection(piece.needs))
            if piece.done and not stale:
                stale = not (
                    _finished(piece.output)
                    if piece.kind == "walk"
                    else Record.load(piece.output).status == "relaxed"
                )
            if stale:
                gone.add(piece.output)
        there = [path for path in gone if path.exists()]
        for path in there:
            path.unlink()
        return len(there)

    def gather(self, share: float = 1.0) -> tuple[PressurePoints, list[str]]:
        """Means and errors of all points with a finished run, and lines on those without.

        Of a first part of each run where `share` is less than one.
        """
        rows, lost = [], []
        for (at, back), piece in self.starts().items() if self.sound else []:
            if piece.done and (begin := Record.load(piece.output)).status != "relaxed":
                way = ", way back" if back else ""
                lost.append(f"start at {at:.4f} V0{way}: {begin.status}: {begin.reason}")
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
                    lost.append(f"{name}-{run}: {found['status']}: {found['reason']}")
            if good:
                if share < 1.0:
                    good = [_first(run, share) for run in good]
                rows.append(self._row(name, ensemble, value, good, ways))
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
        self,
        name: str,
        ensemble: str,
        value: float,
        runs: list[dict[str, NDArray]],
        ways: list[bool],
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
            "pressure": value if ensemble == "npt" else p,
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


def _first(run: dict[str, NDArray], share: float) -> dict[str, NDArray]:
    """A first part of a run."""
    n = int(share * len(run["volume"]))
    return {k: v[:n] if k in _TRACE else v for k, v in run.items()}


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
    begin = Record.load(Path(source))
    atoms, path = begin.atoms, Path(output)
    if begin.status not in ("relaxed", "not_converged"):
        reason = f"it was to begin where the crystal was left: {begin.status}, {begin.reason}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, {"status": "not_begun", "reason": reason})
        return {"status": "not_begun", "reason": reason, "text": "not begun"}
    bonds = bonds_of(Path(source).parent)
    checkpoint = path.with_suffix(".checkpoint.npz")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with limit_threads(1):
        done = walk(
            from_atoms([atoms], system="point"),
            calculator=Level(**level).mover(),
            settings=chosen.walk(ensemble, pressure_GPa),
            seed=tuple(seed),
            bonds=bonds,
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
