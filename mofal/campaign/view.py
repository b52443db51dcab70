"""`mofal.open(path)`: a campaign as lazy Datasets over all its cycles."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import plan
from mofal.campaign.site import COMMON, Site
from mofal.errors import PotentialError, StoreError

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
        return self.site.group(plan.place(cycle, "proposal.zarr"))

    def holdout(self, system: str) -> xr.Dataset:
        """Held-out labels of a system."""
        return self.site.group(plan.holdout(system, "labels.zarr"))

    def judgement(self, system: str, tag: str) -> xr.Dataset:
        """Predictions of a model (``model-000``, ``control-002``) on held-out frames."""
        return self.site.group(plan.holdout(system, f"{tag}.zarr"))

    @property
    def holding(self) -> dict[str, dict[str, tuple[xr.Dataset, xr.Dataset]]]:
        """How long models hold: by system and model (seed, control, campaign), the records of the
        runs (dim ``walk``) and their traces (dim ``sample``, with `walk_index`)."""
        from mofal.campaign.holding import found_runs

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
        return load(self.site.path(plan.model(last)), device=device)

    def density(self, cycle: int | None = None) -> PerElementDensity:
        """Load the density that a cycle was scored with (default: the last one)."""
        from mofal.density import PerElementDensity

        known = [
            c
            for c in range(1, self.config.cycles + 1)
            if self.site.exists(plan.place(c, "density.zarr"))
        ]
        if not known:
            raise StoreError(f"{self.path} has no density yet; look again when cycle 1 has begun")
        last = known[-1] if cycle is None else cycle
        return PerElementDensity.load(self.site.path(plan.place(last, "density.zarr")))

    # -- joining
    def _groups(self, name: str) -> list[tuple[int, str]]:
        out = [(0, plan.place(0, name))]
        for c in range(1, self.config.cycles + 1):
            out += [(c, plan.place(c, s, name)) for s in self.config.explored]
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
