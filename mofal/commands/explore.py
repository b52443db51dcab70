"""`mofal explore`: atoms of a campaign or a file, a map of their features beside the structure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.analysis.explorer import Column, Exploration, write_explorer
from mofal.campaign import paths
from mofal.campaign.view import CampaignView, open_campaign
from mofal.errors import ConfigError, DependencyError, StoreError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity
    from mofal.potential import Potential

Say = Callable[[str], None]
REGIONS = np.array(["core", "mantle", "termination"], object)
FRAME = "whole frame"
MOST_FRAMES = 12
"""Ends of walks that a page of a campaign holds: those that most clusters were cut from."""


def explore(
    what: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    cycle: int | None = None,
    potential: str | os.PathLike[str] | None = None,
    index: int | None = None,
    say: Say = print,
) -> Path:
    """Write a page of a campaign, or of a file of structures in the features of a potential.

    Parameters
    ----------
    what : path
        A campaign's directory, or a file.
    output : path, optional
        ``*.html`` (default: ``explore.html`` in the campaign's report, or beside the file), or
        ``*.json``, ``*.json.gz`` for chemiscope.
    cycle : int, optional
        Of a campaign; default: the last one with clusters.
    potential : path, optional
        For a file: a model's directory, or a campaign (its last model, and its density).
    index : int, optional
        For a file: which structure; default: all.

    Returns
    -------
    path

    Raises
    ------
    MofalError
        Nothing can be shown of it; the message says why.
    """
    path = Path(what)
    if path.is_dir() and not path.name.endswith(".zarr"):
        if potential is not None:
            raise ConfigError("--potential goes with a file; a campaign has its own potentials")
        if index is not None:
            raise ConfigError("--index goes with a file; of a campaign, --cycle can be chosen")
        view = open_campaign(path)
        exploration = campaign_exploration(view, cycle)
        target = Path(output) if output else view.path / "report" / "explore.html"
    else:
        if not path.exists():
            raise ConfigError(
                f"{path} does not exist; expected a campaign's directory or a file of structures"
            )
        if potential is None:
            raise ConfigError(
                f"the map of {path} is made of a potential's features; name one: "
                f"mofal explore {path} --potential DIR (a campaign, or a model's directory)"
            )
        if cycle is not None:
            raise ConfigError("--cycle goes with a campaign, not with a file")
        exploration = file_exploration(path, potential, index=index)
        target = Path(output) if output else path.with_name(f"{path.stem}.explore.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = write_explorer(exploration, target)
    ds = exploration.structures
    say(f"wrote {written}: {ds.sizes['atom']:,} atoms of {ds.sizes['structure']} structures")
    return written


def write_page(view: CampaignView, directory: Path) -> tuple[str, str]:
    """Put the page of the last cycle beside a report.

    Returns
    -------
    name, hint : str
        Of the file, empty where there is none; a line for the reader where something is missing.
    """
    name = "explore.html"
    try:
        write_explorer(campaign_exploration(view), directory / name)
    except StoreError:
        # No cycle has clusters, or its groups are gone: the report stands by itself.
        (directory / name).unlink(missing_ok=True)
        return "", ""
    except DependencyError as error:
        return "", f"There is no explorer beside this report: {error}"
    return name, ""


# ---------------------------------------------------------------------------------- a campaign
def _has_clusters(view: CampaignView, cycle: int, system: str) -> bool:
    """Whether a cycle cut any: all that were proposed may have been refused."""
    place = paths.place(cycle, system, "clusters.zarr")
    return view.site.exists(place) and view.site.group(place).sizes["structure"] > 0


def campaign_exploration(view: CampaignView, cycle: int | None = None) -> Exploration:
    """Clusters of a cycle and the ends of walks that they were cut from, in one model's features.

    Parameters
    ----------
    view : CampaignView
    cycle : int, optional
        Default: the last one with clusters.

    Raises
    ------
    StoreError
        The cycle has no clusters.
    """
    from mofal.data import concat, select

    explored = view.config.explored
    with_clusters = [
        c
        for c in range(1, view.config.cycles + 1)
        if any(_has_clusters(view, c, s) for s in explored)
    ]
    if not with_clusters or (cycle is not None and cycle not in with_clusters):
        asked = "no cycle" if cycle is None else f"cycle {cycle}"
        known = f"; cycles that have: {with_clusters}" if with_clusters else ""
        raise StoreError(
            f"{view.path}: {asked} has clusters to explore{known}; look again later, or explore a "
            "file: mofal explore FILE --potential DIR"
        )
    c = with_clusters[-1] if cycle is None else cycle
    density = view.density(c)
    model = view.potential(c - 1)
    parts, names, ids = [], [], []
    for system in explored:
        if not _has_clusters(view, c, system):
            continue
        clusters = view.site.group(paths.place(c, system, "clusters.zarr")).load()
        frames = view.site.group(paths.place(c, system, "samples.zarr")).load()
        wanted = [str(p) for p in clusters["parent"].values]
        chosen = [k for k, s in enumerate(frames["structure_id"].values) if str(s) in wanted]
        chosen.sort(key=lambda k: (-wanted.count(str(frames["structure_id"].values[k])), k))
        chosen = sorted(chosen[:MOST_FRAMES])
        parts += [select(frames, chosen), clusters]
        names += [f"{system}: end of walk {k}" for k in chosen]
        names += [f"{system}: cluster {k}" for k in range(clusters.sizes["structure"])]
    ds = _shown(concat([_shown(part) for part in parts]))
    ids = [str(s) for s in ds["structure_id"].values]
    place = {s: k for k, s in enumerate(ids)}
    parents = np.array(
        [place.get(str(p), -1) if str(p) != "" else -1 for p in ds["parent"].values], int
    )
    is_cluster = parents >= 0
    region = np.where(
        is_cluster[ds["structure_index"].values], REGIONS[ds["region"].values], FRAME
    ).astype(object)
    features, columns, unfamiliarity = _familiarity(ds, model, density)
    columns["force error"] = Column(
        _proposal_errors(view, c, ds),
        "length of the error of the force by the model that proposed the cluster, before it "
        "learnt from it; known where the cluster is labelled",
        "meV/Å",
        palette="magma",
    )
    columns["region"] = Column(region, "part of a cluster")
    return Exploration(
        structures=ds,
        names=names,
        features=features,
        columns=columns,
        parents=parents,
        unfamiliarity=unfamiliarity,
        title=f"{view.config.name}, cycle {c}: clusters and where they were cut",
        notes=f"Features of the model of cycle {c - 1}, which proposed these clusters. ",
    )


_VARIABLES = (
    "numbers", "positions", "cell", "pbc", "n_atoms", "structure_index", "structure_id", "system",
    "parent", "region", "parent_atom",
)  # fmt: skip


def _shown(ds: xr.Dataset) -> xr.Dataset:
    """What the page needs, parents of whole frames forgotten (they are no cuts)."""
    out = ds[[v for v in _VARIABLES if v in ds]].drop_attrs(deep=False)
    if "region" not in out:
        n = out.sizes["atom"]
        out = out.assign(
            region=("atom", np.zeros(n, np.int8)), parent_atom=("atom", np.full(n, -1, np.int64))
        )
        out["parent"] = ("structure", np.full(out.sizes["structure"], "", object))
    return out


def _familiarity(
    ds: xr.Dataset, model: Potential, density: PerElementDensity | None
) -> tuple[np.ndarray, dict[str, Column], np.ndarray | None]:
    """Features, and the columns that a density adds, with the order of the least familiar."""
    from mofal.density import score

    known = model.featurize(ds)
    features = np.asarray(known["features"].values, float)
    if density is None:
        return features, {}, None
    found = np.asarray(score(known, density)["log_likelihood"].values, float)
    columns = {
        "quantile": Column(
            np.asarray(density.quantile(found, ds["numbers"].values), float),
            "share of known atoms of the element that are less familiar: 0 as unfamiliar as can be",
            limits=(0.0, 1.0),
        ),
        "log-likelihood": Column(found, "under the density of the element's known environments"),
    }
    return features, columns, found


def _proposal_errors(view: CampaignView, cycle: int, ds: xr.Dataset) -> np.ndarray:
    """Length of the force error of every atom in meV/Å, NaN where there is no label."""
    from mofal.data import atom_slice

    out = np.full(ds.sizes["atom"], np.nan)
    if not view.site.exists(paths.place(cycle, "proposal.zarr")):
        return out
    predicted = view.proposal(cycle).load()
    if "structure_id" not in predicted:  # of all clusters none could be labelled
        return out
    at = {str(s): k for k, s in enumerate(predicted["structure_id"].values)}
    place = {str(s): k for k, s in enumerate(ds["structure_id"].values)}
    for c, relative in view.site.label_groups(cycle):
        if c != cycle:
            continue
        labels = view.site.group(relative).load()
        for k, name in enumerate(map(str, labels["structure_id"].values)):
            if name in at and name in place and str(labels["status"].values[k]) == "converged":
                errors = (
                    predicted["predicted_forces"].values[atom_slice(predicted, at[name])]
                    - labels["forces"].values[atom_slice(labels, k)]
                )
                out[atom_slice(ds, place[name])] = 1000.0 * np.linalg.norm(errors, axis=1)
    return out


# ---------------------------------------------------------------------------------- a file
def file_exploration(
    path: Path, potential: str | os.PathLike[str], *, index: int | None = None
) -> Exploration:
    """Structures of a file in the features of a potential; force errors where it has labels.

    Parameters
    ----------
    path : path
        Anything that `mofal.frameworks.read_structures` reads, or a group of the store.
    potential : path
        A model's directory, or a campaign.
    """
    from mofal.data import open_group, select
    from mofal.frameworks import read_structures
    from mofal.potential import load

    density: PerElementDensity | None = None
    if (Path(potential) / "campaign.yaml").is_file():
        view = open_campaign(potential)
        last = view.site.finished_cycles()
        known = [
            c
            for c in range(1, last + 2)
            if view.site.exists(paths.place(c, "density.zarr"))
        ]  # fmt: skip
        # The density of a cycle is that of the model before it.
        c = known[-1] if known else last + 1
        model = view.potential(c - 1)
        density = view.density(c) if known else None
        whose = f"the model of cycle {c - 1} of {view.config.name}"
    else:
        model = load(Path(potential))
        whose = str(potential)
    ds = open_group(path).load() if path.name.endswith(".zarr") else read_structures(path)
    ds = ds if index is None else select(ds, index)
    names = [f"{path.name} {k}" for k in range(ds.sizes["structure"])]
    features, columns, unfamiliarity = _familiarity(ds, model, density)
    if "forces" in ds and np.isfinite(ds["forces"].values).any():
        predicted = model.evaluate(ds)["forces"].values
        error = 1000.0 * np.linalg.norm(predicted - ds["forces"].values, axis=1)
        columns["force error"] = Column(
            error, "length of the error of the force", "meV/Å", palette="magma"
        )
        unfamiliarity = -error if unfamiliarity is None else unfamiliarity
    if "region" in ds:
        columns["region"] = Column(REGIONS[ds["region"].values], "part of a cluster")
    return Exploration(
        structures=ds,
        names=names,
        features=features,
        columns=columns,
        unfamiliarity=unfamiliarity,
        title=path.name,
        notes=f"Features of {whose}. ",
    )
