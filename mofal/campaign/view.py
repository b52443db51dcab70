"""`mofal.open(path)`: a campaign as lazy Datasets over all its cycles."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.campaign.directory import COMMON, Site
from mofal.errors import PotentialError, StoreError
from mofal.frameworks.defects import defect_atoms

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity
    from mofal.potential import Potential


def open_campaign(path: str | os.PathLike[str]) -> CampaignView:
    """Open a campaign, finished or under way, for looking.

    Parameters
    ----------
    path : path
        Directory of the campaign.

    Raises
    ------
    CampaignError
        There is none.
    """
    return CampaignView(path)


class CampaignView:
    """Lazy look at a campaign.

    The Datasets join all cycles and systems, with a variable `cycle(structure)`; what lies along
    `atom` stays on disk until it is asked for. They hold what is finished at the moment of asking.

    Examples
    --------
    >>> import mofal
    >>> campaign = mofal.open("demo")                       # doctest: +SKIP
    >>> campaign.scores.log_likelihood.min().compute()      # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.site = Site(path)
        self.path = self.site.root
        self.config = self.site.config

    def __repr__(self) -> str:
        done = self.site.finished_cycles()
        state = f"{done} of {self.config.cycles} cycles" if done >= 0 else "seed data"
        return f"<mofal campaign {self.config.name!r}: {state}, {', '.join(self.config.systems)}>"

    # -- Datasets over all cycles
    @property
    def structures(self) -> xr.Dataset:
        """Seed structures, ends of walks and clusters."""
        names = ("samples.zarr", "clusters.zarr")
        return self._join([g for n in names for g in self._groups(n)], "structures")

    @property
    def labels(self) -> xr.Dataset:
        """Structures with their labels, failed and set aside ones too (`status`)."""
        return self._join(self.site.label_groups(self.config.cycles), "labels")

    @property
    def features(self) -> xr.Dataset:
        """Features of the ends of walks, each cycle's by the model that walked.

        Features of two models are not comparable: choose a cycle before comparing.
        """
        return self._join(self._groups("features.zarr"), "features")

    @property
    def scores(self) -> xr.Dataset:
        """Log-likelihoods of the atoms of the ends of walks, each cycle's by its own density."""
        return self._join(self._groups("scores.zarr"), "scores")

    @property
    def walks(self) -> xr.Dataset:
        """One row per walk."""
        import xarray as xr

        parts = []
        for c, relative in self._groups("walks.zarr"):
            ds = self.site.group(relative).load()
            parts.append(ds.assign(cycle=("walk", np.full(ds.sizes["walk"], c))))
        if not parts:
            raise StoreError(f"{self.path} has no walks yet; look again when cycle 1 has begun")
        return xr.concat(parts, "walk")

    @property
    def attempts(self) -> xr.Dataset:
        """One row per attempt of this campaign at a label (not those of shared caches)."""
        from mofal.reference import attempts_table

        return attempts_table(self.site.cache().records(shared=False))

    def training_set(self, cycle: int | None = None) -> xr.Dataset:
        """Return what the model of a cycle learns (default: what the next one is trained on)."""
        return self.site.training_set(self.config.cycles if cycle is None else cycle)

    def proposal(self, cycle: int) -> xr.Dataset:
        """Predictions on a cycle's clusters by the model that proposed them, before learning."""
        return self.site.group(paths.place(cycle, "proposal.zarr"))

    def holdout(self, system: str) -> xr.Dataset:
        """Held-out labels of a system."""
        return self.site.group(paths.holdout(system, "labels.zarr"))

    def judgement(self, system: str, tag: str) -> xr.Dataset:
        """Predictions of a model (``model-000``, ``control-002``) on held-out frames."""
        return self.site.group(paths.holdout(system, f"{tag}.zarr"))

    @property
    def holding(self) -> dict[str, dict[str, tuple[xr.Dataset, xr.Dataset]]]:
        """How long models hold: by system and model (seed, control, campaign), the records of the
        runs (dim ``walk``) and their traces (dim ``sample``, with `walk_index`)."""
        from mofal.campaign.steps.hold import found_runs

        return found_runs(self.site)

    def blocks(self, system: str) -> xr.Dataset:
        """Blocks of a system."""
        return self.site.blocks(system)

    # -- models
    def potential(self, cycle: int | None = None, *, device: str | None = None) -> Potential:
        """Load the potential of a cycle.

        Parameters
        ----------
        cycle : int, optional
            Default: the last one that is there.
        device : str, optional
            ``cpu``, ``cuda``, ``cuda:1`` or ``auto``. Default: that of the campaign file, or the
            CPU where this machine has no such device.

        Raises
        ------
        StoreError
            The cycle has no model, or a damaged one.
        PotentialError
            This machine has not the device that was asked for.
        """
        from mofal.potential import load
        from mofal.potential.devices import resolve_device

        last = self.site.finished_cycles() if cycle is None else cycle
        if device is None:
            device = self.config.potential.device
            try:
                resolve_device(device)
            except PotentialError:
                device = "cpu"
        return load(self.site.path(paths.model(last)), device=device)

    def density(self, cycle: int | None = None) -> PerElementDensity:
        """Load the density that a cycle was scored with (default: the last one)."""
        from mofal.density import PerElementDensity

        known = [
            c
            for c in range(1, self.config.cycles + 1)
            if self.site.exists(paths.place(c, "density.zarr"))
        ]
        if not known:
            raise StoreError(f"{self.path} has no density yet; look again when cycle 1 has begun")
        last = known[-1] if cycle is None else cycle
        return PerElementDensity.load(self.site.path(paths.place(last, "density.zarr")))

    # -- joining
    def _groups(self, name: str) -> list[tuple[int, str]]:
        out = [(0, paths.place(0, name))]
        for c in range(1, self.config.cycles + 1):
            out += [(c, paths.place(c, s, name)) for s in self.config.explored]
        return [(c, p) for c, p in out if self.site.exists(p)]

    def _join(self, groups: list[tuple[int, str]], what: str) -> xr.Dataset:
        from mofal.data import concat

        if not groups:
            raise StoreError(
                f"{self.path} has no {what} yet; look again later, or run the campaign: "
                "mofal run campaign.yaml"
            )
        parts = []
        made_by: dict[str, list[str]] = {"model_hash": [], "density_hash": []}
        for c, relative in groups:
            ds: Any = self.site.group(relative)
            if what in ("structures", "labels"):
                ds = ds[[v for v in COMMON if v in ds]]
            ds = ds.assign(cycle=("structure", np.full(ds.sizes["structure"], c, np.int64)))
            if what in ("features", "scores"):
                # Several models stand side by side here on purpose; `cycle` tells them apart. The
                # attributes name them all, so that no density takes them for its own.
                for key, found in made_by.items():
                    if key in ds.attrs and ds.attrs[key] not in found:
                        found.append(str(ds.attrs[key]))
                ds = ds.drop_attrs(deep=False)
            parts.append(ds)
        return concat(parts).assign_attrs({k: ", ".join(v) for k, v in made_by.items() if v})


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
