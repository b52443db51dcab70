"""Tables of the report, as rows of plain values that any front end can print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.data import CYCLE_COLUMNS, HeldOut
from mofal.analysis.metrics import error_table

if TYPE_CHECKING:
    import xarray as xr

METRIC_NAMES = {"mae": "MAE", "mae_p95": "MAE_P95", "rmse": "RMSE"}


def held_out_table(
    held_out: Mapping[str, HeldOut], *, metrics: Sequence[str] = ("mae", "mae_p95")
) -> list[dict[str, Any]]:
    """Force errors of every model on held-out frames.

    Parameters
    ----------
    held_out
        By name of the system.
    metrics
        Of `METRIC_NAMES`.

    Returns
    -------
    rows
        One per system, set of atoms and metric: `system`, `atoms` (a subset's name or "all"),
        `n_frames`, `metric`, `unit` ("meV/Å"), `errors` (by model) and `ratio`, the control's
        error over the last model's (None without a control).
    """
    rows: list[dict[str, Any]] = []
    for system, held in held_out.items():
        tables = {name: _table(held, ds) for name, ds in held.predictions.items()}
        if not tables:
            continue
        for subset in (*held.subsets, "all"):
            for metric in metrics:
                errors = {
                    name: 1000.0 * float(table[metric].sel(subset=subset))
                    for name, table in tables.items()
                }
                rows.append(
                    {
                        "system": system,
                        "atoms": subset,
                        "n_frames": held.labels.sizes["structure"],
                        "metric": METRIC_NAMES[metric],
                        "unit": "meV/Å",
                        "errors": errors,
                        "ratio": _ratio(errors, held.control),
                    }
                )
    return rows


def _table(held: HeldOut, predicted: xr.Dataset) -> xr.Dataset:
    return error_table(held.labels, predicted, subsets=held.subsets)


def _ratio(errors: Mapping[str, float], control: str) -> float | None:
    last = list(errors)[-1]
    if control not in errors or last == control or not errors[last] > 0.0:
        return None
    return errors[control] / errors[last]


def element_table(held: HeldOut) -> dict[str, xr.Dataset]:
    """Error tables by model, with one subset per element and per named subset."""
    return {name: _table(held, predicted) for name, predicted in held.predictions.items()}


def compose_lead(held_out: Mapping[str, HeldOut]) -> str:
    """Say what the held-out errors say, in words; empty without them."""
    sentences = []
    for system, held in held_out.items():
        if len(held.predictions) < 2:
            continue
        rows = [
            row
            for row in held_out_table({system: held}, metrics=("mae",))
            if row["atoms"] == (held.defect[0] if held.defect else "all")
        ]
        errors = rows[0]["errors"]
        first, *_, last = errors
        where = f"On {rows[0]['n_frames']} held-out frames of {system}"
        if held.defect is None:
            every = ", ".join(f"{value:.0f} ({name})" for name, value in errors.items())
            sentences.append(f"{where} the mean force error over all atoms is {every} meV/Å.")
            continue
        text = (
            f"{where} that no model has seen, the mean force error on the {rows[0]['atoms']} atoms "
            f"went from {errors[first]:.0f} meV/Å ({first}) to {errors[last]:.0f} meV/Å ({last})"
        )
        if rows[0]["ratio"] is not None:
            text += (
                f". The control, trained as long without the new clusters, is at "
                f"{errors[held.control]:.0f} meV/Å, {rows[0]['ratio']:.1f} times as much"
            )
        sentences.append(text + ".")
    return " ".join(sentences)


def cycle_rows(cycles: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of cycles; columns that no row fills are left out."""
    known = [key for key in CYCLE_COLUMNS if any(row.get(key) is not None for row in cycles)]
    extra = list(dict.fromkeys(k for row in cycles for k in row if k not in CYCLE_COLUMNS))
    header = [CYCLE_COLUMNS[key] for key in known] + extra
    return header, [[cell(row.get(key)) for key in known + extra] for row in cycles]


def plain_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of rows with any keys."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, [[cell(row.get(key)) for key in header] for row in rows]


def walk_rows(walks: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """How the walks of each system ended."""
    systems = walks["walk_system"].values.astype(object).astype(str)
    statuses = walks["walk_status"].values.astype(object).astype(str)
    known = ("finished", "unfamiliar", "bond_broken", "exploded", "crashed")
    kinds = [s for s in known if (statuses == s).any()]
    kinds += sorted({*statuses.tolist()} - {*known})  # no walk is left out, whatever ended it
    rows = []
    for system in dict.fromkeys(systems.tolist()):
        mine = systems == system
        lengths = walks["length_fs"].values[mine]
        pressures = walks["pressure_GPa"].values[mine]
        rows.append(
            [
                system,
                *(str(int((statuses[mine] == kind).sum())) for kind in kinds),
                _span(lengths, "{:.0f}"),
                _span(pressures, "{:.2f}"),
            ]
        )
    shown = [kind.replace("_", " ") for kind in kinds]
    return ["system", *shown, "length (fs)", "pressure (GPa)"], rows


def attempt_rows(attempts: xr.Dataset) -> tuple[list[str], list[list[str]]]:
    """Attempts at labels by status: how many, how large, how long."""
    statuses = attempts["status"].values.astype(object).astype(str)
    rows = []
    for status in dict.fromkeys(statuses.tolist()):
        mine = statuses == status
        rows.append(
            [
                status.replace("_", " "),
                str(int(mine.sum())),
                _span(attempts["n_atoms"].values[mine], "{:.0f}"),
                _span(attempts["wall_time"].values[mine], "{:.1f}"),
                f"{np.nansum(attempts['wall_time'].values[mine]):.0f}",
            ]
        )
    return ["status", "attempts", "atoms", "time each (s)", "time in all (s)"], rows


def _span(values: NDArray, form: str) -> str:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return "–"
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"


def cell(value: Any) -> str:
    """A value as the tables print it."""
    if value is None:
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if not np.isfinite(number):
            return "–"
        return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
    return str(value)
