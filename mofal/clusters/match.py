"""Force matching: forces in, verdict out (Section 2.1.1, SI.6).

A cluster is good when the forces on its core equal those in the parent. Nothing here calculates a
force: parents and clusters come labelled, by a reference or by a potential.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

from mofal.clusters.blueprints import CORE, TERMINATION
from mofal.clusters.graph import FloatArray, IntArray
from mofal.data import offsets
from mofal.errors import ConfigError, DataError

MEV = 1000.0


# ---------------------------------------------------------------------------------- comparison
@dataclass
class _Matched:
    """One candidate over its frames: squared force differences and where its atoms are."""

    name: str
    numbers: IntArray
    region: IntArray
    parent_atom: IntArray
    cut_distance: FloatArray
    squared: FloatArray
    count: IntArray
    n_frames: int
    n_electrons: int
    wall_time: float
    larger: bool


def compare_forces(
    parents: xr.Dataset | None,
    clusters: xr.Dataset,
    cluster_forces: npt.ArrayLike | xr.DataArray | None = None,
    *,
    groups: Mapping[str, npt.ArrayLike] | None = None,
    bin_width: float = 1.5,
) -> xr.Dataset:
    """Compare forces in clusters with those in their parents, atom by atom, over frames.

    Clusters must stand as they were cut: translated, never rotated against the parent.

    Parameters
    ----------
    parents : Dataset with `structure_id` and `forces` in eV/Å, or None
        None where the parent is too large for the level of theory: every candidate is compared
        with the largest one instead (Section 2.1.1).
    clusters : Dataset of `cut_candidates`
        `candidate` (structure) names the blueprint; without it, all are one candidate.
    cluster_forces : (atom, 3) eV/Å, optional; default: ``clusters["forces"]``
        NaN where there is no label: such atoms of such frames are left out.
    groups : named sets of atoms of the parent to report apart, e.g. ``{"formate": [3, 4, 5]}``
        Only core atoms are looked at.
    bin_width : of the table over the distance from the cut, Å

    Returns
    -------
    Dataset with dims candidate, atom (all candidates one after another), element, distance, group
        `rmse` (atom): root mean square over frames and components of the force difference, eV/Å;
        NaN for caps. `rmse_core`, `rmse_all`, `worst_core` (candidate); `rmse_element` (core
        atoms) and `rmse_element_all` (candidate, element); `rmse_distance` (candidate, distance)
        over all atoms; `rmse_group` (candidate, group). `cut_distance` (atom): distance to the
        nearest cap in Å, mean over frames. `n_frames`, `n_atoms` with caps, `n_electrons`, `cost`
        (mean `wall_time` of the labels in its own unit, else electrons), `larger_than_parent`
        (candidate).
        ``attrs["compared_with"]`` is ``"parent"`` or the name of the largest candidate.

    Raises
    ------
    DataError
        If a parent is missing, or a candidate is not the same cluster in all frames.
    """
    if not bin_width > 0:
        raise ConfigError(f"bin_width={bin_width!r}: expected a length in Å")
    if cluster_forces is None and "forces" not in clusters:
        raise DataError("clusters carry no forces: label them, or give cluster_forces=")
    forces = np.asarray(clusters["forces"] if cluster_forces is None else cluster_forces, float)
    if forces.shape != (clusters.sizes["atom"], 3):
        raise DataError(
            f"cluster_forces have shape {forces.shape}, expected {(clusters.sizes['atom'], 3)}"
        )
    if clusters.sizes["structure"] == 0:
        raise DataError("no cluster to compare: all of them were refused; see their reasons")
    names = ["cluster"] * clusters.sizes["structure"]
    if "candidate" in clusters:
        names = [str(name) for name in clusters["candidate"].values]
    start = offsets(clusters["n_atoms"].values)
    by_name = {
        name: [k for k in range(len(names)) if names[k] == name] for name in dict.fromkeys(names)
    }
    size = {name: int(clusters["n_atoms"].values[rows[0]]) for name, rows in by_name.items()}
    largest = max(by_name, key=lambda name: size[name])
    target = (
        _Parent(parents)
        if parents is not None
        else _Largest(clusters, forces, start, by_name[largest])
    )
    matched = []
    for name in sorted(by_name, key=lambda name: size[name]):
        rows = by_name[name]
        one = _match(name, clusters, forces, start, rows, target)
        if parents is None and name == largest:
            one.squared[:], one.count[:] = 0.0, 0
        matched.append(one)
    unit = "s"
    if "wall_time" in clusters:
        unit = str(clusters["wall_time"].attrs.get("units", unit))
    table = _table(matched, groups or {}, bin_width, unit)
    table.attrs["compared_with"] = "parent" if parents is not None else largest
    return table


class _Parent:
    """Forces of parents, looked up by structure."""

    def __init__(self, parents: xr.Dataset) -> None:
        if "forces" not in parents:
            raise DataError("parents carry no forces: label them, or pass None to compare clusters")
        ids = [str(text) for text in parents["structure_id"].values]
        self.index = {name: k for k, name in enumerate(ids)}
        self.start = offsets(parents["n_atoms"].values)
        self.forces = np.asarray(parents["forces"].values, dtype=float)

    def of(self, clusters: xr.Dataset, k: int, span: slice, real: IntArray) -> FloatArray:
        """Forces on the atoms `real` (indices into the cluster): (atom, 3), NaN if not known."""
        name = str(clusters["parent"].values[k])
        if name not in self.index:
            raise DataError(
                f"the parent {name} of cluster {k} is not among the parents: pass the labelled "
                "frames that the clusters were cut from"
            )
        begin = self.start[self.index[name]]
        return self.forces[begin + clusters["parent_atom"].values[span][real]]

    def n_atoms(self, clusters: xr.Dataset, k: int) -> int | None:
        """Size of the parent of cluster `k`."""
        at = self.index[str(clusters["parent"].values[k])]
        return int(self.start[at + 1] - self.start[at])


class _Largest:
    """Forces of the largest candidate, looked up by parent atom and lattice shift."""

    def __init__(
        self, clusters: xr.Dataset, forces: FloatArray, start: IntArray, rows: list[int]
    ) -> None:
        self.of_parent: dict[str, dict[tuple[int, ...], FloatArray]] = {}
        for k in rows:
            span = slice(start[k], start[k + 1])
            self.of_parent[str(clusters["parent"].values[k])] = dict(
                zip(_addresses(clusters, span), forces[span])
            )

    def of(self, clusters: xr.Dataset, k: int, span: slice, real: IntArray) -> FloatArray:
        """Forces on the atoms `real` (indices into the cluster): (atom, 3), NaN if not known."""
        table = self.of_parent.get(str(clusters["parent"].values[k]), {})
        unknown = np.full(3, np.nan)
        address = _addresses(clusters, span)
        return np.array([table.get(address[a], unknown) for a in real.tolist()]).reshape(-1, 3)

    def n_atoms(self, clusters: xr.Dataset, k: int) -> int | None:
        """Not known: the parent is not there."""
        return None


def _addresses(clusters: xr.Dataset, span: slice) -> list[tuple[int, ...]]:
    """Parent atom and lattice shift of each atom: the same atom in clusters of one frame."""
    table = np.column_stack(
        [clusters["parent_atom"].values[span], clusters["parent_shift"].values[span]]
    )
    return [tuple(row) for row in table.tolist()]


def _match(
    name: str,
    clusters: xr.Dataset,
    forces: FloatArray,
    start: IntArray,
    rows: list[int],
    target: _Parent | _Largest,
) -> _Matched:
    first = slice(start[rows[0]], start[rows[0] + 1])
    parent_atom = np.asarray(clusters["parent_atom"].values[first], dtype=np.int64)
    region = np.asarray(clusters["region"].values[first], dtype=np.int64)
    numbers = np.asarray(clusters["numbers"].values[first], dtype=np.int64)
    real = np.flatnonzero(region != TERMINATION)
    squared = np.zeros(len(parent_atom))
    count = np.zeros(len(parent_atom), dtype=np.int64)
    distance = np.zeros(len(parent_atom))
    n_frames = 0
    for k in rows:
        span = slice(start[k], start[k + 1])
        if not np.array_equal(clusters["parent_atom"].values[span], parent_atom):
            raise DataError(
                f"candidate {name!r} is not the same cluster in all frames (cluster {k} differs): "
                "cut all of them with cut_candidates"
            )
        difference = forces[span][real] - target.of(clusters, k, span, real)
        known = np.isfinite(difference).all(axis=1)
        squared[real[known]] += (difference[known] ** 2).sum(axis=1)
        count[real[known]] += 1
        n_frames += bool(known.any())
        where = np.asarray(clusters["positions"].values[span])
        caps = where[region == TERMINATION]
        distance += cKDTree(caps).query(where)[0] if len(caps) else np.inf
    # What failed, perhaps at once, says nothing of what a label costs.
    paid = [k for k in rows if np.isfinite(forces[start[k] : start[k + 1]]).all()]
    wall = clusters["wall_time"].values[paid] if "wall_time" in clusters else np.array([np.nan])
    limit = target.n_atoms(clusters, rows[0])
    return _Matched(
        name=name,
        numbers=numbers,
        region=region,
        parent_atom=parent_atom,
        cut_distance=distance / len(rows),
        squared=squared,
        count=count,
        n_frames=n_frames,
        n_electrons=int(clusters["n_electrons"].values[rows[0]]),
        wall_time=float(np.nanmean(wall)) if np.isfinite(wall).any() else np.nan,
        larger=limit is not None and len(real) > limit,
    )


def _rmse(one: _Matched, mask: np.ndarray) -> float:
    """Root mean square over chosen atoms, their frames and the three components, eV/Å."""
    n = int(one.count[mask].sum())
    return float(np.sqrt(one.squared[mask].sum() / (3 * n))) if n else np.nan


def _table(
    matched: list[_Matched], groups: Mapping[str, npt.ArrayLike], bin_width: float, unit: str
) -> xr.Dataset:
    elements = np.unique(
        np.concatenate([one.numbers[one.region != TERMINATION] for one in matched])
    )
    reach = max(
        float(one.cut_distance[np.isfinite(one.cut_distance)].max(initial=0.0)) for one in matched
    )
    edges = bin_width * np.arange(int(reach / bin_width) + 2)
    everything = [one.region != TERMINATION for one in matched]
    core = [one.region == CORE for one in matched]
    with np.errstate(invalid="ignore", divide="ignore"):
        atom_rmse = [np.sqrt(one.squared / (3 * one.count)) for one in matched]
    wall = np.array([one.wall_time for one in matched])
    labelled = np.array([one.n_frames > 0 for one in matched])
    timed = bool(np.isfinite(wall[labelled]).all() and labelled.any())
    electrons = np.array([one.n_electrons for one in matched], dtype=np.int64)

    def grid(masks: Sequence[Sequence[np.ndarray]]) -> FloatArray:
        rows = [[_rmse(one, mask) for mask in of] for one, of in zip(matched, masks)]
        return np.array(rows, dtype=float).reshape(len(matched), -1)

    by_element = [[c & (one.numbers == z) for z in elements] for one, c in zip(matched, core)]
    by_element_all = [
        [a & (one.numbers == z) for z in elements] for one, a in zip(matched, everything)
    ]
    by_distance = [
        [a & (one.cut_distance >= low) & (one.cut_distance < high) for low, high in pairwise(edges)]
        for one, a in zip(matched, everything)
    ]
    by_group = [
        [c & np.isin(one.parent_atom, np.asarray(atoms)) for atoms in groups.values()]
        for one, c in zip(matched, core)
    ]
    worst = [np.nanmax(r[c], initial=-np.inf) for r, c in zip(atom_rmse, core)]
    units = {"units": "eV/Å"}
    variables: dict[str, Any] = {
        "n_atoms": ("candidate", [len(one.numbers) for one in matched]),
        "n_electrons": ("candidate", electrons),
        "n_frames": ("candidate", [one.n_frames for one in matched]),
        "larger_than_parent": ("candidate", [one.larger for one in matched]),
        "cost": (
            "candidate",
            wall if timed else electrons.astype(float),
            {"units": unit if timed else "electrons"},
        ),
        "rmse_core": ("candidate", grid([[c] for c in core])[:, 0], units),
        "rmse_all": ("candidate", grid([[a] for a in everything])[:, 0], units),
        "worst_core": ("candidate", np.where(np.isfinite(worst), worst, np.nan), units),
        "rmse_element": (("candidate", "element"), grid(by_element), units),
        "rmse_element_all": (("candidate", "element"), grid(by_element_all), units),
        "rmse_distance": (("candidate", "distance"), grid(by_distance), units),
        "candidate_index": (
            "atom",
            np.repeat(np.arange(len(matched)), [len(one.numbers) for one in matched]),
        ),
        "rmse": ("atom", np.concatenate(atom_rmse), units),
        "numbers": ("atom", np.concatenate([one.numbers for one in matched])),
        "region": ("atom", np.concatenate([one.region for one in matched])),
        "parent_atom": ("atom", np.concatenate([one.parent_atom for one in matched])),
        "cut_distance": ("atom", np.concatenate([one.cut_distance for one in matched])),
    }
    coords: dict[str, Any] = {
        "candidate": np.array([one.name for one in matched], dtype=object),
        "element": np.array([chemical_symbols[z] for z in elements], dtype=object),
        "distance": ("distance", (edges[:-1] + edges[1:]) / 2, {"units": "Å"}),
    }
    if groups:
        variables["rmse_group"] = (("candidate", "group"), grid(by_group), units)
        coords["group"] = np.array(list(groups), dtype=object)
    return xr.Dataset(variables, coords=coords)


# ---------------------------------------------------------------------------------- weights
def match_weights(
    clusters: xr.Dataset,
    table: xr.Dataset,
    *,
    candidate: str | None = None,
    tolerance_meV: float = 100.0,
    termination: float = 0.0,
) -> FloatArray:
    """Weigh each atom of clusters by how well forces match at its distance from the cut.

    What a potential may learn from a cluster (`force_weight` of the training, with
    ``regions="weighted"``): 1 / (1 + (RMSE / tolerance)^2), the RMSE interpolated over the distance
    to the nearest cap, beyond the table's ends its last values.

    Parameters
    ----------
    clusters : Dataset of `cut` or `cut_candidates`
        Any clusters of the kind that was compared, also of other frames.
    table : Dataset of `compare_forces`
    candidate : str, optional
        Whose RMSE to take; default: the only one of the table.
    tolerance_meV : float
        Where an atom counts half, meV/Å.
    termination : float
        Weight of the caps, which have no counterpart in the parent.

    Returns
    -------
    (atom,) float64
        From 0 to 1; 1 for all but the caps of a cluster without caps.

    Raises
    ------
    ConfigError, DataError
        Several candidates and none named, or none with forces that were compared.
    """
    if not tolerance_meV > 0:
        raise ConfigError(f"tolerance_meV={tolerance_meV!r}: expected a positive number (meV/Å)")
    names = [str(name) for name in table["candidate"].values]
    if candidate is None and len(names) == 1:
        candidate = names[0]
    if candidate not in names:
        raise ConfigError(f"candidate={candidate!r}: expected one of {', '.join(names)}")
    rmse = MEV * np.asarray(table["rmse_distance"].values[names.index(candidate)], dtype=float)
    known = np.isfinite(rmse)
    if not known.any():
        raise DataError(f"candidate {candidate!r} has no forces to compare: label it first")
    at, rmse = np.asarray(table["distance"].values, dtype=float)[known], rmse[known]
    region = np.asarray(clusters["region"].values)
    weight = np.ones(len(region))
    start = offsets(clusters["n_atoms"].values)
    for first, last in pairwise(start.tolist()):
        where = np.asarray(clusters["positions"].values[first:last], dtype=float)
        caps = where[region[first:last] == TERMINATION]
        if len(caps):
            distance = cKDTree(caps).query(where)[0]
            weight[first:last] = 1.0 / (1.0 + (np.interp(distance, at, rmse) / tolerance_meV) ** 2)
    weight[region == TERMINATION] = termination
    return weight


# ---------------------------------------------------------------------------------- verdict
@dataclass(frozen=True)
class Verdict:
    """What force matching says of the candidates for one core.

    Attributes
    ----------
    candidate : name of the cheapest one that passes; where none does, of the best, which is the
        largest where the parent has no forces
    passed : whether it passes
    rmse_core_meV, tolerance_meV : root mean square force difference on core atoms, meV/Å; where the
        largest is named, that of the best of the others
    noise_floor_meV : of the reference, meV/Å, None where it is not known
    larger_than_parent : whether the chosen one has more atoms than its parent
    compared_with : ``"parent"`` or the name of the largest candidate
    text : the verdict in a sentence or two
    """

    candidate: str
    passed: bool
    rmse_core_meV: float
    tolerance_meV: float
    noise_floor_meV: float | None
    larger_than_parent: bool
    compared_with: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def verdict(
    table: xr.Dataset, *, tolerance_meV: float = 100.0, noise_floor: float | None = None
) -> Verdict:
    """Name the cheapest candidate whose core forces are within tolerance.

    A candidate larger than its parent is taken only where no other one passes: the parent itself
    could be labelled instead.

    Parameters
    ----------
    table : Dataset of `compare_forces`
    tolerance_meV : largest RMSE on core atoms, meV/Å; the paper accepted 67 on Zr
    noise_floor : standard deviation of the reference's own forces, meV/Å; two noisy labels differ
        by the square root of two times as much, and no cluster can do better than that
    """
    if not tolerance_meV > 0:
        raise ConfigError(f"tolerance_meV={tolerance_meV!r}: expected a positive number (meV/Å)")
    names = [str(name) for name in table["candidate"].values]
    rmse = MEV * np.asarray(table["rmse_core"].values, dtype=float)
    cost = np.asarray(table["cost"].values, dtype=float)
    larger = np.asarray(table["larger_than_parent"].values, dtype=bool)
    target = str(table.attrs.get("compared_with", "parent"))
    known = np.flatnonzero(np.isfinite(rmse))
    if not len(known):
        raise DataError(
            "no candidate has forces to compare: label the clusters and their parents (or at "
            "least two candidates) first"
        )
    passing = [k for k in known.tolist() if rmse[k] <= tolerance_meV]
    order = sorted(passing, key=lambda k: (larger[k], cost[k], names[k]))
    best = order[0] if order else int(known[rmse[known].argmin()])
    unit = str(table["cost"].attrs.get("units", ""))
    what = "its parent" if target == "parent" else f"the largest candidate, {target}"
    text = (
        f"{names[best]} is the cheapest that passes"
        if order
        else f"none closes within {tolerance_meV:.3g} meV/Å; the best is {names[best]}"
    )
    n_frames = int(table["n_frames"].values[best])
    text += (
        f": {rmse[best]:.3g} meV/Å on core atoms against {what} over {n_frames} "
        f"frame{'s' if n_frames > 1 else ''} (tolerance {tolerance_meV:.3g}), "
        f"{int(table['n_atoms'].values[best])} atoms, cost {cost[best]:.4g} {unit}."
    )
    chosen = best
    if not order and target != "parent":
        # Nothing says how good the largest is, but the others are worse.
        chosen = names.index(target)
        text += f" Take {target}: nothing better is known."
    if noise_floor is not None:
        pair = float(np.sqrt(2.0)) * noise_floor
        text += f" Two noisy labels differ by {pair:.3g} meV/Å (noise floor {noise_floor:.3g})"
        text += ": no more than that is seen here." if rmse[best] <= 1.2 * pair else "."
    if larger[chosen]:
        text += " It is larger than its parent: think of labelling the parent itself."
    if target != "parent":
        text += " The parent has no forces at this level: this is convergence, not agreement."
    return Verdict(
        candidate=names[chosen],
        passed=bool(order),
        rmse_core_meV=float(rmse[best]),
        tolerance_meV=float(tolerance_meV),
        noise_floor_meV=None if noise_floor is None else float(noise_floor),
        larger_than_parent=bool(larger[chosen]),
        compared_with=target,
        text=text,
    )
