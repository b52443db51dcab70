"""What the held-out frames say: the seed model, the control, and the campaign's model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.view import CampaignView

MODELS = ("seed", "control", "campaign")


@dataclass(frozen=True)
class Row:
    """One figure for each model.

    Attributes
    ----------
    system : str
        System of the held-out frames.
    atoms : str
        Which atoms: ``all``, or ``defect`` for those of the formates that cap a missing block.
    metric : str
        ``MAE`` or ``MAE_P95``.
    values : dict of str to float
        meV/Å, by model: ``seed``, ``control`` (where there is one), ``campaign``.
    n_frames : int
        Held-out frames.
    """

    system: str
    atoms: str
    metric: str
    values: dict[str, float]
    n_frames: int

    @property
    def ratio(self) -> float:
        """Control (or, without one, seed) over campaign: how many times smaller the error is."""
        base = self.values.get("control", self.values["seed"])
        return base / self.values["campaign"]


def defect_atoms(blocks: xr.Dataset) -> np.ndarray:
    """Atoms of the caps that stand where a block is missing: shape (n_defect_atoms,).

    Of a formate or an acetate its carbon, what that is bonded to (both oxygens too) and the
    hydrogens; of an OH beside a water all but the metal that they sit on.
    """
    if blocks.sizes.get("defect", 0) == 0:
        return np.zeros(0, np.int64)
    ends = np.stack([blocks[f"defect_{part}"].values for part in ("atom", "hydrogen", "other")])
    acid = np.array(["C" in str(cap) for cap in blocks["defect_cap"].values])
    bonds = blocks["bond_atom"].values
    hubs = np.concatenate([ends[:2, acid].ravel(), ends[:, ~acid].ravel()])
    found = set(hubs[hubs >= 0].tolist())
    carbon = set(ends[0, acid].tolist())
    # A metal is bonded to several, a hydrogen to one.
    degree = np.bincount(bonds.ravel(), minlength=int(hubs.max()) + 1)
    for pair in bonds.tolist():
        for a, b in (pair, pair[::-1]):
            if a in found and (a in carbon or degree[b] == 1):
                found.add(b)
    return np.array(sorted(found), np.int64)


def atom_mask(labels: xr.Dataset, atoms: np.ndarray) -> np.ndarray:
    """Mask over all frames of atoms given by their index in the structure: (atom,) bool."""
    first = np.concatenate([[0], np.cumsum(labels["n_atoms"].values)])[:-1]
    index = np.arange(labels.sizes["atom"]) - np.repeat(first, labels["n_atoms"].values)
    return np.isin(index, atoms)


def tags(view: CampaignView) -> dict[str, str]:
    """Judgements that are there, by model."""
    last = view.site.finished_cycles()
    found = {"seed": "model-000", "campaign": f"model-{last:03d}", "control": f"control-{last:03d}"}
    systems = view.config.holdout_systems
    return {
        model: found[model]
        for model in MODELS
        if all(view.site.exists(f"holdout/{s}/{found[model]}.zarr") for s in systems)
    }


def judged_labels(view: CampaignView, system: str) -> xr.Dataset:
    """Held-out labels that the judgements are about: the converged ones."""
    from mofal.data import select

    labels = view.holdout(system).load()
    return select(labels, np.flatnonzero(labels["status"].values == "converged"))


def holdout_table(view: CampaignView) -> list[Row]:
    """Force errors on held-out frames, by system, atoms and metric; empty without a hold-out.

    Errors are per force component, predicted minus reference (method.md, Metrics).
    """
    from mofal.analysis import mae, mae_p

    rows: list[Row] = []
    known = tags(view)
    if "seed" not in known or "campaign" not in known:
        return rows
    for system in view.config.holdout_systems:
        labels = judged_labels(view, system)
        n = labels.sizes["structure"]
        errors = {
            model: view.judgement(system, tag)["predicted_forces"].values - labels["forces"].values
            for model, tag in known.items()
        }
        defect = defect_atoms(view.blocks(system))
        if len(defect):
            mask = atom_mask(labels, defect)
            rows.append(
                Row(
                    system,
                    "defect",
                    "MAE",
                    {m: 1000 * float(mae(e[mask])) for m, e in errors.items()},
                    n,
                )
            )
        for metric, function in (("MAE", mae), ("MAE_P95", lambda e: mae_p(e, 95))):
            values = {m: 1000 * float(function(e)) for m, e in errors.items()}
            rows.append(Row(system, "all", metric, values, n))
    return rows


def format_table(rows: list[Row]) -> list[str]:
    """Table of the held-out errors as lines of text."""
    if not rows:
        return ["no hold-out: add a `holdout` section to the campaign file to judge the models"]
    models = [m for m in MODELS if m in rows[0].values]
    base = "control" if "control" in models else "seed"
    head = f"{'force error on held-out frames (meV/Å)':<44}" + "".join(f"{m:>10}" for m in models)
    head += f"{base + '/campaign':>20}"
    out = [head, "-" * len(head)]
    for row in rows:
        what = {"defect": "formate atoms", "all": "whole cell"}[row.atoms]
        name = f"{row.system} ({row.n_frames} frames), {what}, {row.metric}"
        values = "".join(f"{row.values[m]:>10.0f}" for m in models)
        out.append(f"{name:<44}{values}{row.ratio:>20.2f}")
    return out


def as_records(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as plain dicts, for JSON."""
    return [
        {
            "system": r.system,
            "atoms": r.atoms,
            "metric": r.metric,
            "n_frames": r.n_frames,
            **{f"{m}_meV_per_A": v for m, v in r.values.items()},
            "ratio": r.ratio,
        }
        for r in rows
    ]
