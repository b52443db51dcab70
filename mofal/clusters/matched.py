"""What `mofal match` leaves and a campaign reads: which cluster for which kind of core."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.documents import parse_json, read_text
from mofal.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.clusters.graph import BlockGraph

MOST_SHELLS = 4
MOST_TABLE = 2**26
LARGEST = 250
"""Atoms of a cluster along a rod that is taken without being asked for."""


@dataclass(frozen=True)
class MatchedKind:
    """What force matching found for one kind of core.

    Attributes
    ----------
    shells : whole shells of blocks around it
    acid_first : protons of the cluster go to acids before OH and phenolates
    passed : whether the cluster was within the tolerance at every level
    formula : of the core
    distance, rmse : of the cluster's forces, by distance from the nearest cap: Å, meV/Å
    tolerance : where an atom counts half, meV/Å
    """

    shells: int
    passed: bool = True
    formula: str = ""
    distance: list[float] = field(default_factory=list)
    rmse: list[float] = field(default_factory=list)
    tolerance: float = 100.0
    acid_first: bool = False


def read_blueprints(path: str | os.PathLike[str]) -> dict[str, MatchedKind]:
    """Read and check a table: entries by the hash of the kind of core.

    Raises
    ------
    ConfigError
        It is no table of `mofal match`.
    """
    expected = "expected the blueprints.json of mofal match"
    try:
        content = parse_json(read_text(path, most=MOST_TABLE), where=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); {expected}") from None
    except ConfigError as error:
        raise ConfigError(f"{error}; {expected}") from None
    table = content.get("blueprints") if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise ConfigError(f"{path} holds no table `blueprints`; {expected}")
    out = {}
    for kind, given in table.items():
        shells = given.get("shells") if isinstance(given, dict) else None
        if (
            isinstance(shells, bool)
            or not isinstance(shells, int)
            or not 0 <= shells <= MOST_SHELLS
        ):
            raise ConfigError(
                f"{path}: shells of kind {kind} is {shells!r}, expected a whole number from 0 to "
                f"{MOST_SHELLS}; {expected}"
            )
        distance, rmse = given.get("distance_A", []), given.get("rmse_meV_per_A", [])
        tolerance = given.get("tolerance_meV_per_A", 100.0)
        numbers = [*distance, *rmse, tolerance] if _lists(distance, rmse) else [None]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers) or len(
            distance
        ) != len(rmse):
            raise ConfigError(
                f"{path}: distance_A, rmse_meV_per_A and tolerance_meV_per_A of kind {kind} are no "
                f"table of numbers; {expected}"
            )
        passed, formula = bool(given.get("passed", True)), str(given.get("formula", ""))
        acids = bool(given.get("acid_first", False))
        out[kind] = MatchedKind(shells, passed, formula, distance, rmse, float(tolerance), acids)
    return out


def _lists(*values: Any) -> bool:
    return all(isinstance(value, list) for value in values)


def write_blueprints(
    path: Path, blocks: xr.Dataset, core: int, plans: xr.Dataset, results: Mapping[str, Any]
) -> None:
    """Write the verdicts on one core as a campaign reads them (`selection.blueprints`).

    What every level accepts, so the largest of the chosen whole shells; a kind whose verdicts
    chose a partial mantle takes the whole shell that contains it. Kinds of core that were matched
    in this directory before keep what was found for them.
    """
    from mofal.data import read_json, write_json

    names = [str(n) for n in plans["name"].values]
    depths = plans["shells"].values
    wanted = []
    for result in results.values():
        k = names.index(result["verdict"]["candidate"])
        depth = int(depths[k])
        wanted.append((depth if depth >= 0 else 1, bool(plans["acid_first"].values[k])))
    # Of one size in both orders the usual one is taken: levels that differ in it do not matter.
    shells = max(depth for depth, _ in wanted)
    acids = all(first for depth, first in wanted if depth == shells)
    entry: dict[str, Any] = {
        "formula": str(blocks["formula"].values[core]),
        "shells": shells,
        "acid_first": acids,
        "passed": all(r["verdict"]["passed"] for r in results.values()),
        "tolerance_meV_per_A": max(r["verdict"]["tolerance_meV"] for r in results.values()),
        "verdicts": {level: r["verdict"] for level, r in results.items()},
    }
    entry |= _by_distance(f"shells={shells}" + (", acids first" if acids else ""), results)
    before = read_json(path).get("blueprints", {}) if path.is_file() else {}
    kind = str(blocks["kind_hash"].values[core])
    write_json({"blueprints": {**before, kind: entry}}, path)


def _by_distance(name: str, results: Mapping[str, Any]) -> dict[str, list[float]]:
    """RMSE of the cluster that is used, by distance; the worst of the levels counts."""
    found: dict[float, float] = {}
    for result in results.values():
        for row in result["rows"]:
            if row["candidate"] == name:
                for d, value in zip(row["distance_A"], row["distance"]):
                    if value is not None:
                        found[d] = max(value, found.get(d, 0.0))
    return {"distance_A": sorted(found), "rmse_meV_per_A": [found[d] for d in sorted(found)]}


def complaints(path: str | os.PathLike[str]) -> list[str]:
    """One line for each kind of core whose cluster did not pass: it is used all the same."""
    return [
        f"no cluster around {entry.formula or kind} was within the tolerance of mofal match; the "
        f"best, shells={entry.shells}, is used"
        for kind, entry in read_blueprints(path).items()
        if not entry.passed
    ]


def matched_blocks(
    blocks: Mapping[str, xr.Dataset], blueprints: Path | None
) -> dict[str, xr.Dataset]:
    """Blocks that say for each core whether protons go to acids first, as force matching found."""
    known = {} if blueprints is None else read_blueprints(blueprints)
    first = {kind for kind, entry in known.items() if entry.acid_first}
    out = {}
    for system, ds in blocks.items():
        acids = np.array([str(h) in first for h in ds["kind_hash"].values], bool)
        out[system] = ds.assign(acid_first=("block", acids)) if acids.any() else ds
    return out


def _along_rods(graph: BlockGraph, shells: int, along_rods: int) -> np.ndarray:
    """`shells`; on rods `along_rods`, unless that makes more than `LARGEST` atoms: (block,)."""
    from mofal.clusters.blueprints import expand, on_rods

    depth = np.full(graph.n_blocks, shells)
    rods = np.flatnonzero(on_rods(graph))
    for kind in np.unique(graph.kind[rods]).tolist():
        mine = rods[graph.kind[rods] == kind]
        if int(expand(graph, mine[:1], along_rods).n_atoms[0]) <= LARGEST:
            depth[mine] = along_rods
    return depth


def matched_shells(
    blocks: Mapping[str, xr.Dataset],
    shells: int,
    blueprints: Path | None,
    *,
    along_rods: int | None = None,
) -> dict[str, np.ndarray]:
    """Shells of the cluster around each block, by system: what force matching found for its kind
    (in the table `blueprints`), else `shells`, or `along_rods` around metals of rods and their
    bridges (docs/frameworks.md has what was measured)."""
    from mofal.clusters.graph import block_graph

    known = {} if blueprints is None else read_blueprints(blueprints)
    out = {}
    for system, ds in blocks.items():
        depth = np.full(ds.sizes["block"], shells)
        if along_rods is not None:
            depth = _along_rods(block_graph(ds), shells, along_rods)
        for k, kind in enumerate(str(h) for h in ds["kind_hash"].values):
            if kind in known:
                depth[k] = known[kind].shells
        out[system] = depth
    return out


def weighted(
    clusters: xr.Dataset, blocks: Mapping[str, xr.Dataset], blueprints: Path | None
) -> xr.Dataset:
    """Clusters with `force_weight` where force matching knows their kind of core.

    NaN for the other clusters: there the training weighs by region. Without a table they are
    returned as they are.
    """
    import xarray as xr

    from mofal.clusters import match_weights
    from mofal.data import atom_slice, select

    if blueprints is None:
        return clusters
    known = read_blueprints(blueprints)
    weight = np.full(clusters.sizes["atom"], np.nan)
    for k in range(clusters.sizes["structure"]):
        kinds = blocks[str(clusters["system"].values[k])]["kind_hash"].values
        entry = known.get(str(kinds[int(clusters["parent_block"].values[k])]))
        if entry is not None and entry.rmse:
            table = xr.Dataset(
                {"rmse_distance": (("candidate", "distance"), [np.array(entry.rmse) / 1000])},
                {"candidate": ["matched"], "distance": entry.distance},
            )
            weight[atom_slice(clusters, k)] = match_weights(
                select(clusters, [k]), table, tolerance_meV=entry.tolerance
            )
    return clusters.assign(force_weight=("atom", weight))
