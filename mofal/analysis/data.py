"""What a report is made of. Whoever calls fills it; a section without its data is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr


@dataclass(kw_only=True)
class HeldOut:
    """Held-out frames of one system and what models say about them.

    Attributes
    ----------
    labels
        Labels Dataset of the frames, all of the same atoms in the same order.
    predictions
        By name of the model, in the order in which they are shown (e.g. ``"seed"``, ``"control"``,
        ``"campaign"``): predictions for the same structures (`forces` or `predicted_forces`, and
        the energy where known). The last one is the one that is praised or blamed.
    subsets
        Masks (atom,) over all atoms of `labels`, by name: e.g. ``{"formate": mask}``. The first is
        the defect that figures point at.
    scores
        By name of a model in `predictions`: scores Dataset (`log_likelihood`) of the same atoms,
        in that model's features and the density of its training data.
    by_cycle
        By cycle: predictions of the model that the cycle ended with (0: the seed model).
    control
        Name of the control in `predictions`, against which the last one is compared.
    """

    labels: xr.Dataset
    predictions: Mapping[str, xr.Dataset] = field(default_factory=dict)
    subsets: Mapping[str, NDArray] = field(default_factory=dict)
    scores: Mapping[str, xr.Dataset] = field(default_factory=dict)
    by_cycle: Mapping[int, xr.Dataset] = field(default_factory=dict)
    control: str = "control"

    def __post_init__(self) -> None:
        n = self.labels.sizes["atom"]
        named = {**self.predictions, **self.scores}
        named.update({f"cycle {cycle}": ds for cycle, ds in self.by_cycle.items()})
        for name, ds in named.items():
            if ds.sizes["atom"] != n:
                raise DataError(
                    f"{name!r} speaks of {ds.sizes['atom']} atoms, the held-out labels of {n}: "
                    "evaluate the very frames that are labelled"
                )
        for name, mask in self.subsets.items():
            if np.asarray(mask).shape != (n,) or np.asarray(mask).dtype != bool:
                raise DataError(
                    f"subset {name!r} has shape {np.asarray(mask).shape}, "
                    f"expected booleans of shape ({n},)"
                )

    @property
    def defect(self) -> tuple[str, NDArray] | None:
        """Name and mask of the first subset, if there is one."""
        for name, mask in self.subsets.items():
            return name, np.asarray(mask)
        return None


CYCLE_COLUMNS = {
    "cycle": "cycle",
    "labelled": "clusters labelled",
    "refused": "refused",
    "failed": "failed",
    "set_aside": "set aside",
    "proposal_mae": "proposal MAE (meV/Å)",
    "proposal_mae_p95": "proposal MAE_P95 (meV/Å)",
    "steps": "training steps",
    "model_hash": "model",
}
"""Keys of a row of `ReportData.cycles` and how the table names them."""


@dataclass(kw_only=True)
class ReportData:
    """Everything that a report can show.

    Attributes
    ----------
    title
        Heading of the report.
    lead
        A few sentences in plain language. Composed from the held-out errors where empty.
    summary
        Lines below the lead.
    systems
        Rows of the table of systems: mappings of column name to text or number.
    cycles
        Rows of the table of cycles, cycle 0 (seed) first; keys as in `CYCLE_COLUMNS`, any may be
        missing. Proposal errors (meV/Å): the error of the model that proposed the clusters of a
        cycle on their labels, before it learnt from them. Further keys become columns.
    held_out
        By name of the system.
    training_features
        Features Dataset (`features`, `numbers`) of the training data in one model's features.
    new_features
        Features of newly proposed atoms in the features of the same model; `region(atom)` where
        only the core (0) shall be shown.
    frame
        A structures Dataset: the structure on which log-likelihoods are shown (its first).
    frame_scores
        Scores Dataset of `frame`; all frames of it may be there, the first is drawn.
    frame_cores
        Mask (atom of the first frame,): atoms of the cores that were chosen in it.
    clusters
        Structures Dataset of clusters with `region`; the first few are drawn.
    walks
        Walks Dataset, one row per walk.
    traces
        Traces of walks, in the order of the rows of `walks`.
    holding
        By system, then by model: records and traces of runs that saw how long it holds.
    holding_lines
        What they come to, a line for each.
    attempts
        Attempts Dataset: `status`, `n_atoms`, `wall_time`, one row per attempt at a label.
    mechanics
        Rows of the table of mechanics: mappings of column name to text.
    mechanics_figures
        Figures of mechanics by name.
    explorer
        Page of the explorer (`mofal.analysis.explorer`), as a link from the report.
    facts
        What a reader needs to repeat it: level of theory, seed, hashes, versions, hardware.
    """

    title: str
    lead: str = ""
    explorer: str = ""
    summary: Sequence[str] = ()
    systems: Sequence[Mapping[str, Any]] = ()
    cycles: Sequence[Mapping[str, Any]] = ()
    held_out: Mapping[str, HeldOut] = field(default_factory=dict)
    training_features: xr.Dataset | None = None
    new_features: xr.Dataset | None = None
    frame: xr.Dataset | None = None
    frame_scores: xr.Dataset | None = None
    frame_cores: NDArray | None = None
    clusters: xr.Dataset | None = None
    walks: xr.Dataset | None = None
    traces: Sequence[xr.Dataset] = ()
    holding: Mapping[str, Mapping[str, tuple[xr.Dataset, xr.Dataset]]] = field(default_factory=dict)
    holding_lines: Sequence[str] = ()
    attempts: xr.Dataset | None = None
    mechanics: Sequence[Mapping[str, Any]] = ()
    mechanics_figures: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        both = self.training_features, self.new_features
        if both[0] is not None and both[1] is not None:
            found = [str(ds.attrs.get("model_hash", "")) for ds in both if ds is not None]
            if all(found) and found[0] != found[1]:
                raise DataError(
                    f"training_features are of model {found[0]}, new_features of {found[1]}: "
                    "features of two models are not comparable, featurize both with one"
                )
