"""Frames, scores and toy frameworks for the tests of this room."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import dask
import numpy as np
import xarray as xr

from mofal.data import make_structures
from mofal.frameworks import build, find_blocks


@cache
def system(name: str, cell: str = "conventional") -> tuple[xr.Dataset, xr.Dataset]:
    """A structure of the UiO-66 family and its blocks."""
    ds = build(name, cell=cell)
    return ds, find_blocks(ds)


def with_positions(ds: xr.Dataset, positions: np.ndarray, **changes: np.ndarray) -> xr.Dataset:
    """The same structure elsewhere."""
    return make_structures(
        changes.get("numbers", ds["numbers"].values),
        positions,
        n_atoms=ds["n_atoms"].values,
        cell=changes.get("cell", ds["cell"].values),
        pbc=ds["pbc"].values,
        system=[str(s) for s in ds["system"].values],
    )


def shaken(ds: xr.Dataset, seed: int, *, amplitude: float = 0.05, n: int = 1) -> xr.Dataset:
    """Frames of a structure: atoms displaced at random (Å)."""
    rng = np.random.default_rng(seed)
    x = ds["positions"].values
    frames = [x + amplitude * rng.normal(size=x.shape) for _ in range(n)]
    return make_structures(
        np.tile(ds["numbers"].values, n),
        np.concatenate(frames),
        n_atoms=np.repeat(ds["n_atoms"].values, n),
        cell=np.repeat(ds["cell"].values, n, axis=0),
        pbc=np.repeat(ds["pbc"].values, n, axis=0),
        system=str(ds["system"].values[0]),
    )


def scores_of(ds: xr.Dataset, log_likelihood: np.ndarray) -> xr.Dataset:
    """A scores Dataset of the structures."""
    base = ds[["numbers", "n_atoms", "structure_index"]]
    return base.assign(log_likelihood=("atom", np.asarray(log_likelihood, float)))


def features_of(ds: xr.Dataset, features: np.ndarray) -> xr.Dataset:
    """A features Dataset of the structures."""
    base = ds[["numbers", "n_atoms", "structure_index"]]
    return base.assign(features=(("atom", "feature"), np.asarray(features)))


def cores_of(structure: Sequence[int], block: Sequence[int]) -> xr.Dataset:
    """A cores Dataset by hand."""
    return xr.Dataset(
        {
            "core_structure": ("core", np.asarray(structure, np.int64)),
            "core_block": ("core", np.asarray(block, np.int64)),
        }
    )


def atoms_of(blocks: xr.Dataset, block: int) -> np.ndarray:
    """Atoms of a block."""
    count = blocks["block_n_atoms"].values
    begin = int(count[:block].sum())
    return blocks["member_atom"].values[begin : begin + count[block]]


def first_of(blocks: xr.Dataset, role: str) -> int:
    """First block of a role."""
    return int(np.flatnonzero(blocks["role"].values == role)[0])


def cluster(ds: xr.Dataset, i: int) -> dict[str, np.ndarray]:
    """Per-atom arrays of one cluster."""
    count = ds["n_atoms"].values
    begin = int(count[:i].sum())
    span = slice(begin, begin + int(count[i]))
    names = ("numbers", "positions", "region", "parent_atom", "parent_shift")
    return {name: ds[name].values[span] for name in names}


def fingerprint(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Distances by pair of elements, sorted: equal for clusters that differ by their pose."""
    first, second = np.triu_indices(len(numbers), 1)
    distance = np.linalg.norm(positions[first] - positions[second], axis=1)
    low = np.minimum(numbers[first], numbers[second])
    high = np.maximum(numbers[first], numbers[second])
    order = np.lexsort([distance, high, low])
    return np.column_stack([low, high, distance])[order]


def blocks_dataset(
    members: Sequence[Sequence[int]],
    links: Sequence[tuple[int, int, tuple[int, int, int]]],
    *,
    shifts: dict[int, tuple[int, int, int]] | None = None,
    bonds: Sequence[tuple[int, int, tuple[int, int, int]]] = (),
    **more: Sequence[object] | np.ndarray,
) -> xr.Dataset:
    """A blocks Dataset by hand, for toy frameworks."""
    n, m = len(members), len(links)
    flat = [atom for block in members for atom in block]
    owner = {atom: b for b, block in enumerate(members) for atom in block}
    shift = [(shifts or {}).get(atom, (0, 0, 0)) for atom in flat]
    pairs = np.array([[i, j] for i, j, _ in links], np.int64).reshape(m, 2)
    both = [*bonds, *links]
    variables: dict[str, object] = {
        "kind": ("block", np.asarray(more.pop("kind", np.zeros(n)), np.int32)),
        "role": ("block", np.asarray(more.pop("role", ["linker"] * n))),
        "charge": ("block", np.asarray(more.pop("charge", np.zeros(n)), np.int32)),
        "block_n_atoms": ("block", np.array([len(b) for b in members], np.int64)),
        "member_atom": ("member", np.array(flat, np.int64)),
        "member_shift": (("member", "xyz"), np.array(shift, np.int32).reshape(-1, 3)),
        "bond_atom": (
            ("bond", "end"),
            np.array([[i, j] for i, j, _ in both], np.int64).reshape(-1, 2),
        ),
        "bond_shift": (
            ("bond", "xyz"),
            np.array([s for _, _, s in both], np.int32).reshape(-1, 3),
        ),
        "link_block": (
            ("link", "end"),
            np.array([[owner[i], owner[j]] for i, j in pairs.tolist()], np.int64).reshape(m, 2),
        ),
        "link_atom": (("link", "end"), pairs),
        "link_shift": (
            ("link", "xyz"),
            np.array([s for _, _, s in links], np.int32).reshape(-1, 3),
        ),
        "link_cap": (
            ("link", "end"),
            np.asarray(more.pop("link_cap", np.ones((m, 2))), np.int32).reshape(m, 2),
        ),
        "link_cap_length": (
            ("link", "end"),
            np.asarray(more.pop("link_cap_length", np.full((m, 2), 1.09)), float).reshape(m, 2),
        ),
    }
    for name, value in more.items():
        dims = ("link", "end") if name.startswith("link") else ("block",)
        variables[name] = (dims, np.asarray(value))
    return xr.Dataset(variables)


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def count_tasks(work):
    """How many Dask tasks some work sends to the scheduler, all its computations together."""
    sizes = []

    def scheduler(dsk, keys, **kwargs):
        graph = dsk if hasattr(dsk, "keys") else dsk.__dask_graph__()
        sizes.append(len(graph))
        return dask.get(dsk, keys, **kwargs)

    with dask.config.set(scheduler=scheduler):
        work()
    return sum(sizes)


def rattled_frames(n=4, seed=0, name="S_ld", cell="primitive"):
    ds, blocks = system(name, cell)
    return shaken(ds, seed, n=n), {name: blocks}


def noise_of(ds, seed=0):
    return np.random.default_rng(seed).normal(size=ds.sizes["atom"])


def core_pairs(cores):
    return list(zip(cores["core_structure"].values.tolist(), cores["core_block"].values.tolist()))


def block_values(frames, by_system, values, reduce):
    """Reduction over the atoms of every block, written without any of the code under test."""
    out = {}
    begin = 0
    for k, n in enumerate(frames["n_atoms"].values.tolist()):
        blocks = by_system[str(frames["system"].values[k])]
        for b in range(blocks.sizes["block"]):
            out[k, b] = reduce(begin + atoms_of(blocks, b), values)
        begin += n
    return out
