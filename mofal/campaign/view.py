"""`mofal.open(path)`: a campaign as lazy Datasets over all its cycles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.analysis import HeldOut
from mofal.analysis.tables import held_out_table
from mofal.campaign import looking, paths, plan
from mofal.campaign.coverage import core_coverage
from mofal.campaign.directory import COMMON, Site
from mofal.campaign.steps.hold import found_runs
from mofal.data import concat, read_json, select
from mofal.data.ragged import TEXT
from mofal.errors import PotentialError, StoreError
from mofal.frameworks.defects import defect_atoms, defect_name
from mofal.potential.devices import resolve_device
from mofal.potential.directory import read_described
from mofal.reference import attempts_table

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import Coverage, PerElementDensity
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
    >>> campaign = mofal.open("my-campaign")
    >>> campaign.scores.log_likelihood.chunks is not None   # on disk until it is asked for
    True
    >>> bool(campaign.scores.log_likelihood.min().compute() < campaign.scores.log_likelihood.max())
    True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.site = Site(path)
        self.path = self.site.root
        self.config = self.site.config

    def __repr__(self) -> str:
        return looking.as_text(self.site)

    def _repr_html_(self) -> str:
        return looking.as_html(self.site)

    # -- in few numbers
    def learning_curve(self) -> xr.Dataset:
        """Force errors over the cycles, meV/Å.

        Returns
        -------
        xarray.Dataset
            `proposal_mae`, `proposal_mae_p95` (cycle): of the model that proposed a cycle's
            clusters, on their labels, before it learnt from them. `campaign_mae`,
            `campaign_mae_p95`, `control_mae`, `control_mae_p95` (cycle, system): on held-out
            frames. NaN where there is none. ``.to_dataframe()`` makes a table of it.

        Raises
        ------
        StoreError
            No model has been judged yet.
        """
        return looking.learning_curve(self.site, lambda system: judged_labels(self, system))

    def errors(self, system: str) -> xr.Dataset:
        """Errors of seed, control and campaign on held-out frames of a system.

        Parameters
        ----------
        system : str
            One with held-out frames.

        Returns
        -------
        xarray.Dataset
            What `mofal.analysis.error_table` gives, in meV/Å and meV, along `model` (seed,
            control, campaign) and `subset` (all atoms, each element, ``defect`` for the caps of a
            defect).

        Raises
        ------
        StoreError
            It has none, or no model has been judged yet.
        """
        return looking.errors(self.site, system, tags(self), lambda s: judged_labels(self, s))

    # -- Datasets over all cycles
    @property
    def structures(self) -> xr.Dataset:
        """Seed structures, ends of walks and clusters."""
        names = ("samples.zarr", "clusters.zarr")
        return self._join([g for n in names for g in self.groups(n)], "structures")

    @property
    def labels(self) -> xr.Dataset:
        """Structures with their labels, failed and set aside ones too (`status`)."""
        return self._join(self.site.label_groups(self.config.cycles), "labels")

    @property
    def features(self) -> xr.Dataset:
        """Features of the ends of walks, each cycle's by the model that walked.

        Features of two models are not comparable: choose a cycle before comparing.
        """
        return self._join(self.groups("features.zarr"), "features")

    @property
    def scores(self) -> xr.Dataset:
        """Log-likelihoods of the atoms of the ends of walks, each cycle's by its own density."""
        return self._join(self.groups("scores.zarr"), "scores")

    @property
    def walks(self) -> xr.Dataset:
        """One row per walk, with its `cycle` and `system`."""
        return self._rows("walks.zarr", "walk")

    @property
    def traces(self) -> xr.Dataset:
        """What walks looked like on their way: one row per sample of a walk.

        `walk_index(sample)` is the walk's number among those of its `cycle` and `system`.
        """
        return self._rows("traces.zarr", "sample")

    @property
    def predictions(self) -> xr.Dataset:
        """What models said of labelled structures that they had not learnt from.

        `model(structure)` is ``model-002`` or ``control-002``, the model of cycle 2 or its control,
        and `judged(structure)` tells ``held out`` frames from clusters that it ``proposed``, which
        are those of the next cycle. `predicted_forces` and the others stay on disk; the labels
        beside them are those of the same `structure_id`.
        """
        last = self.config.cycles
        groups: list[tuple[int, str, str, str]] = []
        for system in self.config.holdout_systems:
            for tag in plan.judged(self.config, last):
                relative = paths.holdout(system, f"{tag}.zarr")
                groups.append((int(tag.rpartition("-")[2]), relative, tag, "held out"))
        for c in range(1, last + 1):
            tag = paths.model(c - 1).partition("/")[0].replace("cycle", "model")
            groups.append((c - 1, paths.place(c, "proposal.zarr"), tag, "proposed"))
        found = [g for g in groups if self.site.exists(g[1]) and "numbers" in self.site.group(g[1])]
        return self._join(
            [(c, relative) for c, relative, _, _ in found],
            "predictions",
            model=[tag for _, _, tag, _ in found],
            judged=[how for _, _, _, how in found],
        )

    @property
    def attempts(self) -> xr.Dataset:
        """One row per attempt of this campaign at a label (not those of shared caches)."""
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
        return found_runs(self.site)

    def coverage(self, cycle: int) -> dict[str, Coverage]:
        """How often the bound of the force error of a cycle held, cores only.

        By how the cores were chosen: ``drawn`` at random or ``selected``. Empty where there is no
        bound, for too few labelled structures validate, or where the cycle has no labels yet.
        """
        return core_coverage(self.site, cycle)

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
    def _rows(self, name: str, dim: str) -> xr.Dataset:
        """Tables of all cycles and systems below each other."""
        import xarray as xr

        parts = []
        for c, relative in self.groups(name):
            ds = self.site.group(relative)
            n = ds.sizes[dim]
            system = np.full(n, PurePosixPath(relative).parts[1], TEXT)
            parts.append(ds.assign(cycle=(dim, np.full(n, c, np.int64)), system=(dim, system)))
        if not parts:
            raise StoreError(f"{self.path} has no walks yet; look again when cycle 1 has begun")
        return xr.concat(parts, dim, join="outer", combine_attrs="drop_conflicts")

    def groups(self, name: str) -> list[tuple[int, str]]:
        """Cycles and paths of the groups of a name that are there."""
        out = [(0, paths.seed(k, name)) for k in range(len(self.config.seed_sources))]
        for c in range(1, self.config.cycles + 1):
            out += [(c, paths.place(c, s, name)) for s in self.config.explored]
        return [(c, p) for c, p in out if self.site.exists(p)]

    def _join(self, groups: list[tuple[int, str]], what: str, **texts: Sequence[str]) -> xr.Dataset:
        """Groups of all cycles as one Dataset, with a `cycle` and further `texts` of each."""
        if not groups:
            raise StoreError(
                f"{self.path} has no {what} yet; look again later, or run the campaign: "
                "mofal run campaign.yaml"
            )
        parts = []
        made_by: dict[str, list[str]] = {"model_hash": [], "density_hash": []}
        for k, (c, relative) in enumerate(groups):
            ds: Any = self.site.group(relative)
            if what in ("structures", "labels"):
                ds = ds[[v for v in COMMON if v in ds]]
            n = ds.sizes["structure"]
            ds = ds.assign(cycle=("structure", np.full(n, c, np.int64)))
            for name, words in texts.items():
                ds = ds.assign({name: ("structure", np.full(n, words[k], TEXT))})
            if what in ("features", "scores", "predictions"):
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
        Which atoms: ``all``, or ``defect`` for those of the caps where a block is missing.
    metric : str
        ``MAE`` or ``MAE_P95``.
    values : dict of str to float
        meV/Å, by model: ``seed``, ``control`` (where there is one), ``campaign``.
    n_frames : int
        Held-out frames.
    defect : str
        What the caps are, e.g. ``formate``; empty where all atoms are meant.
    """

    system: str
    atoms: str
    metric: str
    values: dict[str, float]
    n_frames: int
    defect: str = ""

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
    labels = view.holdout(system).load()
    return select(labels, np.flatnonzero(labels["status"].values == "converged"))


def held_out(view: CampaignView) -> dict[str, HeldOut]:
    """Held-out frames by system, with the predictions of the seed model, the control and the last.

    Where blocks are missing, the atoms there are a subset, by the name of what stands there.
    """
    known = tags(view)
    out: dict[str, HeldOut] = {}
    if "seed" not in known:
        return out
    for system in view.config.holdout_systems:
        if not view.site.exists(paths.holdout(system, "model-000.zarr")):
            continue
        labels, blocks = judged_labels(view, system), view.blocks(system)
        defect = defect_atoms(blocks)
        out[system] = HeldOut(
            labels=labels,
            predictions={m: predictions(view, system, t) for m, t in known.items()},
            subsets={defect_name(blocks): atom_mask(labels, defect)} if len(defect) else {},
        )
    return out


def predictions(view: CampaignView, system: str, tag: str) -> xr.Dataset:
    """Return what a model says of held-out frames, named as the labels are."""
    ds = view.judgement(system, tag).load()
    names = {f"predicted_{v}": v for v in ("energy", "forces", "stress")}
    return ds.rename({k: v for k, v in names.items() if k in ds})


def holdout_table(view: CampaignView) -> list[Row]:
    """Force errors on held-out frames, by system, atoms and metric; empty without a hold-out.

    Errors are per force component, predicted minus reference (method.md, Metrics).
    """
    found = held_out(view)
    if not all("campaign" in held.predictions for held in found.values()):
        return []
    return [
        Row(
            row["system"],
            "all" if row["atoms"] == "all" else "defect",
            row["metric"],
            row["errors"],
            row["n_frames"],
            "" if row["atoms"] == "all" else row["atoms"],
        )
        for row in held_out_table(found)
        if row["atoms"] == "all" or row["metric"] == "MAE"
    ]


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
        what = "whole cell" if row.atoms == "all" else f"{row.defect} atoms"
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


def cycle_table(site: Site) -> list[dict[str, Any]]:
    """One row for each cycle that has labels: how many, what became of them, errors, the model.

    Returns
    -------
    list of dict
        `cycle`, `labelled`, `failed`, `set_aside`; and where they are known `refused` clusters,
        `proposal_mae` and `proposal_mae_p95` (meV/Å, on the cycle's clusters before learning from
        them), `steps` of the training, `model_hash`.
    """
    rows = []
    for c in range(site.config.cycles + 1):
        groups = [p for k, p in site.label_groups(c) if k == c]
        if not groups:
            continue
        status = [str(s) for g in groups for s in site.group(g)["status"].values]
        good, aside = status.count("converged"), status.count("set_aside")
        row: dict[str, Any] = {
            "cycle": c,
            "labelled": good,
            "failed": len(status) - good - aside,
            "set_aside": aside,
        }
        if c:
            refused = [paths.place(c, s, "refused.json") for s in site.config.explored]
            row["refused"] = sum(len(read_json(site.path(p))) for p in refused if site.exists(p))
        proposal = paths.place(c, "proposal.zarr")
        attrs = site.group(proposal).attrs if site.exists(proposal) else {}
        # None where not one cluster had a label.
        if attrs.get("mae_meV_per_A") is not None:
            row["proposal_mae"] = float(attrs["mae_meV_per_A"])
            row["proposal_mae_p95"] = float(attrs["mae_p95_meV_per_A"])
        if site.exists(paths.model(c)):
            row["steps"] = site.model_record(paths.model(c)).get("steps")
            row["model_hash"] = model_hash(site, c)
        rows.append(row)
    return rows


def model_hash(site: Site, cycle: int) -> str:
    """Hash of the model of a cycle, as its directory says."""
    return str(read_described(site.path(paths.model(cycle))).get("model_hash", "-"))[:12]
