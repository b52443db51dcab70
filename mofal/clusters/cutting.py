"""Cutting: from frames, blocks and cores to sound clusters, and the reasons of those refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mofal.clusters.blueprints import (
    MANTLE,
    TERMINATION,
    Plan,
    Shells,
    check_cores,
    dataset_plan,
    join,
    shells_of,
    take,
)
from mofal.clusters.electrons import HOW, count_electrons, electron_reasons, open_atoms
from mofal.clusters.frames import STRETCH, check_frame, graph_of
from mofal.clusters.graph import (
    BlockGraph,
    BoolArray,
    FloatArray,
    IntArray,
    block_graph,
    ragged_take,
)
from mofal.clusters.mantle import check_max_atoms, expand_within
from mofal.clusters.soundness import NEAREST, broken_in, nearest_pairs
from mofal.data import make_structures, offsets
from mofal.data.computing import compute
from mofal.data.ragged import TEXT
from mofal.errors import DataError
from mofal.frameworks.bonds import IS_METAL
from mofal.frameworks.caps import cap_positions

MANTLE_OF = {
    "mantle_shells": "whole_shells",
    "mantle_left_out": "left_out",
    "mantle_shortened": "shortened",
}
"""What a cluster says of its mantle, and where its blueprint has it."""


# ---------------------------------------------------------------------------------- arrays
def place(
    plan: Plan,
    numbers: IntArray,
    positions: FloatArray,
    cell: FloatArray,
    offset: IntArray | None,
) -> tuple[IntArray, FloatArray, IntArray]:
    """Put the atoms of blueprints where one frame has them.

    Parameters
    ----------
    numbers, positions, cell : (atom,), (atom, 3) Å, (3, 3) Å of the frame
    offset : (atom, 3) lattice shifts that undo the wrapping of the frame, or None

    Returns
    -------
    numbers, positions, shift : (cluster atom,), (cluster atom, 3) Å, (cluster atom, 3)
        ``positions == parent positions + shift @ cell`` for every atom that is no cap.
    """
    shift, outer_shift = plan.shift, plan.cap_outer_shift
    if offset is not None:
        shift = shift + offset[plan.inner_atom]
        outer_shift = outer_shift + offset[plan.cap_outer]
    where = positions[plan.inner_atom] + shift @ cell
    z = np.asarray(numbers)[plan.inner_atom].astype(np.int64)
    if len(plan.cap_atom):
        inner = where[plan.cap_atom]
        outer = positions[plan.cap_outer] + outer_shift @ cell
        # A bond without a direction is refused later; its cap must not end the whole batch.
        flat = ~(np.linalg.norm(outer - inner, axis=1) > 1e-6)
        outer[flat] = inner[flat] + np.array([1.0, 0.0, 0.0])
        bad = ~np.isfinite(outer).all(axis=1) | ~np.isfinite(inner).all(axis=1)
        capped = np.full_like(inner, np.nan)
        capped[~bad] = cap_positions(inner[~bad], outer[~bad], plan.cap_length[~bad])
        where[plan.cap_atom] = capped
        z[plan.cap_atom] = plan.cap_number
    return z, where, shift


# ---------------------------------------------------------------------------------- verb
def cut(
    structures: xr.Dataset,
    blocks_by_system: Mapping[str, xr.Dataset],
    cores: xr.Dataset,
    *,
    shells: Shells = 1,
    max_atoms: int | None = None,
    blueprints: Mapping[str, xr.Dataset] | None = None,
    unpaired: Mapping[str, int] | None = None,
    stretch: float = STRETCH,
    nearest: float = NEAREST,
    task_mb: float = 32.0,
    progress: Callable[[str], None] | None = None,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Cut one cluster per core: core, mantle and caps as one connected molecule (SI.5).

    Positions of core and mantle are those of the parent up to a lattice vector, exactly; caps sit
    on the broken bonds at the length that the blocks name. A cluster that is not sound is refused
    with its reason: a broken bond or ring, atoms too close, electrons that do not pair, a partly
    filled d or f shell without a spin from the user.

    Parameters
    ----------
    structures : Dataset of kind ``structures``; may be lazy, then frames are cut as Dask tasks
    blocks_by_system : blocks Dataset of each name in ``structures.system``
    cores : Dataset with `core_structure` and `core_block` (core), from `select` or `random_cores`
        With `core_blueprint` (core), that one of the system's blueprints is used.
    shells : shells of neighbouring blocks in the mantle
        One number, or for each system one number per block.
    max_atoms : most atoms of a cluster, caps included
        Where `shells` make more, outer shells are left out, then neighbours of the core, and its
        broken bonds are capped as all are: those stay that are nearest to a missing block
        (`defect_atom` of the blocks), else a choice spread evenly. A blueprint that is given is not
        changed. What is too large with no mantle at all is refused.
    blueprints : for each system a Dataset of `blueprint`, optional
        Made once and reused; a core without one in it, or no entry, uses `shells`.
    unpaired : unpaired electrons per atom of an open-shell element, e.g. ``{"Cu": 1}``
    stretch : longest bond, in sums of covalent radii
    nearest : smallest distance, in sums of covalent radii
    task_mb : size of one Dask task in MB where the positions are lazy
    progress : called with a line of text now and then

    Returns
    -------
    clusters : Dataset of kind ``structures``
        One per accepted core, in the order of `cores`: cell zero, not periodic, `region`,
        `parent_atom`, `parent`, `system`, `charge`, `n_unpaired`, `n_electrons`, and beyond the
        contract `mantle_shells`, the whole shells of the mantle, `mantle_left_out`, neighbours of
        the core that are not in it, `mantle_shortened`, whether `max_atoms` made it smaller
        (structure), `parent_shift` (atom, xyz) lattice shift against the parent, `core_index`
        (along `cores`), `parent_structure`, `parent_block`, `open_shell`, `smallest_distance` in Å
        (structure). ``attrs["electrons"]`` says how they were counted.
    refused : Dataset with dim core
        `core`, `core_structure`, `core_block`, `system`, `parent`, `n_atoms`, `n_electrons`,
        `smallest_distance`, `open_shell`, `reason`.

    Raises
    ------
    DataError
        If cores, blocks and structures do not belong together.
    """
    structure, block = _core_arrays(structures, cores)
    check_max_atoms(max_atoms)
    graphs = {name: block_graph(blocks) for name, blocks in blocks_by_system.items()}
    which = None
    if "core_blueprint" in cores:
        which = np.asarray(cores["core_blueprint"].values, dtype=np.int64)
    wanted = np.unique(structure)
    for index in wanted.tolist():
        graph_of(graphs, structures, index)
    names = np.array([str(structures["system"].values[k]) for k in structure.tolist()], object)
    start = offsets(structures["n_atoms"].values)
    sources = (structures["numbers"].data, structures["positions"].data)
    cells = np.asarray(structures["cell"].values)
    parts: list[_Part] = []
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        graph = graphs[name]
        own = check_cores(graph, block[rows])
        ready = None if blueprints is None or name not in blueprints else blueprints[name]
        plan, number = _blueprints_of(
            graph,
            own,
            shells_of(shells, name, graph)[own],
            ready,
            None if which is None else which[rows],
            max_atoms,
        )
        order = np.argsort(structure[rows], kind="stable")
        frames, first = np.unique(structure[rows][order], return_index=True)
        jobs = [
            _Job(rows[k], number[k], cells[f])
            for f, k in zip(frames.tolist(), np.split(order, first[1:]))
        ]
        spans = [slice(int(start[f]), int(start[f + 1])) for f in frames.tolist()]
        parts += _run(graph, plan, jobs, sources, spans, stretch, nearest, task_mb, progress)
    return _collect(structures, structure, block, parts, unpaired or {}, max_atoms)


@dataclass(frozen=True)
class _Job:
    """What is to be cut from one frame: rows of the cores, their blueprints, the frame's cell."""

    rows: IntArray
    blueprint: IntArray
    cell: FloatArray


@dataclass(frozen=True)
class _Part:
    """Clusters of one frame, before they are judged."""

    rows: IntArray
    n_atoms: IntArray
    charge: IntArray
    mantle: dict[str, np.ndarray]
    numbers: IntArray
    positions: FloatArray
    shift: IntArray
    region: IntArray
    parent_atom: IntArray
    is_open: BoolArray
    smallest: FloatArray
    broken: dict[int, str]
    close: dict[int, str]


def cut_frames(
    graph: BlockGraph,
    plan: Plan,
    jobs: list[_Job],
    numbers: list[IntArray],
    positions: list[FloatArray],
    stretch: float,
    nearest: float,
) -> list[_Part]:
    """Cut clusters from some frames of one system; what one Dask task does."""
    parts = []
    for job, elements, where in zip(jobs, numbers, positions):
        mine = take(plan, job.blueprint)
        check = check_frame(graph, elements, where, job.cell, stretch=stretch)
        z, placed, shift = place(mine, elements, where, job.cell, check.offset)
        is_open = open_atoms(graph, elements, mine.inner_atom) & (mine.region != TERMINATION)
        broken = broken_in(mine, graph, check, elements)
        smallest, close = nearest_pairs(z, placed, mine.n_atoms, nearest=nearest)
        parts.append(
            _Part(
                rows=job.rows,
                n_atoms=mine.n_atoms,
                charge=mine.charge,
                mantle={name: getattr(mine, of) for name, of in MANTLE_OF.items()},
                numbers=z,
                positions=placed,
                shift=shift,
                region=mine.region,
                parent_atom=mine.parent_atom,
                is_open=is_open,
                smallest=smallest,
                broken={int(job.rows[k]): text for k, text in broken.items()},
                close={int(job.rows[k]): text for k, text in close.items()},
            )
        )
    return parts


def _runs(spans: list[slice], frames: list[int]) -> list[list[int]]:
    """Frames whose atoms follow one another without a gap, together."""
    runs: list[list[int]] = []
    for k in frames:
        if runs and spans[runs[-1][-1]].stop == spans[k].start:
            runs[-1].append(k)
        else:
            runs.append([k])
    return runs


def _cut_runs(
    graph: BlockGraph,
    plan: Plan,
    jobs: list[_Job],
    numbers: list[IntArray],
    positions: list[FloatArray],
    stretch: float,
    nearest: float,
    length: list[list[int]],
) -> list[_Part]:
    """`cut_frames` on arrays of several frames each, of which `length` tells the atoms."""
    apart: list[list[Any]] = [
        [
            frame
            for run, sizes in zip(runs, length)
            for frame in np.split(np.asarray(run), np.cumsum(sizes)[:-1])
        ]
        for runs in (numbers, positions)
    ]
    return cut_frames(graph, plan, jobs, apart[0], apart[1], stretch, nearest)


def _run(
    graph: BlockGraph,
    plan: Plan,
    jobs: list[_Job],
    sources: tuple[Any, Any],
    spans: list[slice],
    stretch: float,
    nearest: float,
    task_mb: float,
    progress: Callable[[str], None] | None,
) -> list[_Part]:
    """Cut all frames of one system: one after another, or as Dask tasks of about `task_mb`."""
    size = np.array([span.stop - span.start for span in spans], dtype=float)
    mb = (size * 24 + 400.0 * np.array([plan.n_atoms[j.blueprint].sum() for j in jobs])) / 1e6
    group = np.floor((np.cumsum(mb) - mb) / task_mb).astype(np.int64)
    bunches = [np.flatnonzero(group == g).tolist() for g in np.unique(group).tolist()]
    if any(hasattr(source, "dask") for source in sources):
        import dask

        task = dask.delayed(_cut_runs, pure=True)
        shared = dask.delayed(graph, pure=True, traverse=False)
        drawn = dask.delayed(plan, pure=True, traverse=False)
        tasks = []
        for bunch in bunches:
            # Frames that follow one another are one slice: few tasks where many frames are cut.
            runs = _runs(spans, bunch)
            length = [[spans[k].stop - spans[k].start for k in run] for run in runs]
            pieces = [slice(spans[run[0]].start, spans[run[-1]].stop) for run in runs]
            tasks.append(
                task(
                    shared,
                    drawn,
                    dask.delayed([jobs[k] for k in bunch], traverse=False),
                    *[[source[piece] for piece in pieces] for source in sources],
                    stretch,
                    nearest,
                    length,
                )
            )
        return [part for parts in compute(*tasks) for part in parts]
    out: list[_Part] = []
    for bunch in bunches:
        numbers, where = ([source[spans[k]] for k in bunch] for source in sources)
        out += cut_frames(graph, plan, [jobs[k] for k in bunch], numbers, where, stretch, nearest)
        if progress is not None:
            progress(f"cut clusters from {len(out)} of {len(jobs)} frames")
    return out


def _core_arrays(structures: xr.Dataset, cores: xr.Dataset) -> tuple[IntArray, IntArray]:
    missing = [name for name in ("core_structure", "core_block") if name not in cores.variables]
    if missing:
        raise DataError(
            f"not a cores Dataset: {', '.join(missing)} missing; make one with "
            "mofal.clusters.select or mofal.clusters.random_cores"
        )
    structure = np.asarray(cores["core_structure"].values, dtype=np.int64)
    wrong = (structure < 0) | (structure >= structures.sizes["structure"])
    if wrong.any():
        raise DataError(
            f"core in structure {structure[wrong][0]}, but there are "
            f"{structures.sizes['structure']} structures: pass the ones that were ranked"
        )
    return structure, np.asarray(cores["core_block"].values, dtype=np.int64)


def _blueprints_of(
    graph: BlockGraph,
    cores: IntArray,
    depth: IntArray,
    ready: xr.Dataset | None,
    which: IntArray | None,
    max_atoms: int | None,
) -> tuple[Plan, IntArray]:
    """Blueprints of one system, each grown once, and which of them each core uses.

    Parameters
    ----------
    depth : (core,) shells of each
    ready : blueprints made before, or None
    which : (core,) blueprint of each core in `ready`, or None: found by the core's block
    max_atoms : of the ones that are grown
    """
    if which is not None:
        if ready is None:
            raise DataError("cores name a core_blueprint: pass blueprints= for their system")
        plan = dataset_plan(ready)
        if len(which) and (which.min() < 0 or which.max() >= len(plan.core)):
            raise DataError(
                f"core_blueprint {which.max()}: there are blueprints 0 to {len(plan.core) - 1}"
            )
        if not np.array_equal(plan.core[which], cores):
            raise DataError("core_blueprint names a blueprint of another core")
        return plan, which
    known = [] if ready is None else [dataset_plan(ready)]
    have = known[0].core if known else np.zeros(0, dtype=np.int64)
    own, first = np.unique(cores, return_index=True)
    new = ~np.isin(own, have)
    if new.any() or not known:
        known.append(expand_within(graph, own[new], depth[first][new], max_atoms))
    plan = join(known)
    order = np.argsort(plan.core, kind="stable")
    return plan, order[np.searchsorted(plan.core[order], cores)]


def _collect(
    structures: xr.Dataset,
    structure: IntArray,
    block: IntArray,
    parts: list[_Part],
    unpaired: Mapping[str, int],
    max_atoms: int | None,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Judge all clusters together and put them into the order of the cores."""
    n = len(structure)
    if not parts:
        return _empty(structures, n)
    n_atoms_by_part = np.concatenate([part.n_atoms for part in parts])
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    atom, owner = ragged_take(np.cumsum(n_atoms_by_part) - n_atoms_by_part, n_atoms_by_part, order)
    n_atoms = n_atoms_by_part[order]
    numbers = np.concatenate([part.numbers for part in parts])[atom]
    positions = np.concatenate([part.positions for part in parts])[atom]
    shift = np.concatenate([part.shift for part in parts])[atom]
    region = np.concatenate([part.region for part in parts])[atom]
    parent_atom = np.concatenate([part.parent_atom for part in parts])[atom]
    is_open = np.concatenate([part.is_open for part in parts])[atom]
    charge = np.concatenate([part.charge for part in parts])[order]
    broken = {k: text for part in parts for k, text in part.broken.items()}

    n_electrons = count_electrons(numbers, owner, charge)
    smallest = np.concatenate([part.smallest for part in parts])[order]
    close = {k: text for part in parts for k, text in part.close.items()}
    open_shell, n_unpaired, electron_reason = electron_reasons(
        numbers, owner, is_open, n_electrons, unpaired
    )
    finite = np.bincount(owner[~np.isfinite(positions).all(axis=1)], minlength=n) == 0
    mantle = {
        name: np.concatenate([part.mantle[name] for part in parts])[order] for name in MANTLE_OF
    }
    # A linker that lost all of its nodes is no environment of the framework.
    around = np.bincount(owner[IS_METAL[numbers] | (region == MANTLE)], minlength=n)
    alone = mantle["mantle_shortened"] & (around == 0)
    reasons = []
    for k in range(n):
        why = []
        if not finite[k]:
            why.append("positions that are not finite")
        elif k in broken:
            why.append(broken[k])
        if k in close:
            why.append(close[k])
        if electron_reason[k]:
            why.append(electron_reason[k])
        if max_atoms is not None and n_atoms[k] > max_atoms:
            why.append(f"{n_atoms[k]} atoms with the smallest mantle, max_atoms is {max_atoms}")
        elif alone[k]:
            why.append(f"no neighbour of it fits, max_atoms is {max_atoms}: a molecule by itself")
        reasons.append("; ".join(why))
    sound = np.array([not why for why in reasons], dtype=np.bool_)
    info: dict[str, Any] = {
        "core": np.arange(n),
        "core_structure": structure,
        "core_block": block,
        "n_electrons": n_electrons,
        "n_unpaired": n_unpaired.astype(np.int32),
        "open_shell": open_shell,
        "smallest_distance": smallest,
        **mantle,
    }
    keep = sound[owner]
    return (
        _clusters(
            structures,
            {name: value[sound] for name, value in info.items()},
            n_atoms=n_atoms[sound],
            numbers=numbers[keep],
            positions=positions[keep],
            region=region[keep],
            parent_atom=parent_atom[keep],
            shift=shift[keep],
            charge=charge[sound],
        ),
        _refused(
            structures,
            {name: value[~sound] for name, value in info.items()},
            n_atoms[~sound],
            [why for why in reasons if why],
        ),
    )


def _clusters(
    structures: xr.Dataset,
    info: dict[str, Any],
    *,
    n_atoms: IntArray,
    numbers: IntArray,
    positions: FloatArray,
    region: IntArray,
    parent_atom: IntArray,
    shift: IntArray,
    charge: IntArray,
) -> xr.Dataset:
    parent = info["core_structure"]
    ids, systems = structures["structure_id"].values, structures["system"].values
    out = make_structures(
        numbers,
        positions,
        n_atoms=n_atoms,
        system=[str(s) for s in systems[parent]],
        parent=[str(s) for s in ids[parent]],
        region=region,
        parent_atom=parent_atom,
        charge=charge,
        n_electrons=info["n_electrons"],
        n_unpaired=info["n_unpaired"],
    )
    names = {
        "core_index": "core",
        "parent_structure": "core_structure",
        "parent_block": "core_block",
        "open_shell": "open_shell",
        **{name: name for name in MANTLE_OF},
    }
    more: dict[str, Any] = {name: ("structure", info[key]) for name, key in names.items()}
    more["parent_shift"] = (("atom", "xyz"), shift.astype(np.int32))
    more["smallest_distance"] = ("structure", info["smallest_distance"], {"units": "Å"})
    out = out.assign(more)
    out.attrs["electrons"] = HOW
    return out


def _refused(
    structures: xr.Dataset, info: dict[str, Any], n_atoms: IntArray, reasons: list[str]
) -> xr.Dataset:
    parent = info["core_structure"]
    text = {
        "system": [str(s) for s in structures["system"].values[parent]],
        "parent": [str(s) for s in structures["structure_id"].values[parent]],
        "reason": reasons,
    }
    out = xr.Dataset(
        {name: ("core", value) for name, value in info.items() if name not in ("core", *MANTLE_OF)}
        | {"n_atoms": ("core", n_atoms)}
        | {name: ("core", np.array(value, TEXT)) for name, value in text.items()}
    )
    return out.assign_coords(core=info["core"])


def _empty(structures: xr.Dataset, n: int) -> tuple[xr.Dataset, xr.Dataset]:
    none = np.zeros(0, dtype=np.int64)
    info: dict[str, Any] = dict.fromkeys(
        ("core", "core_structure", "core_block", "n_electrons"), none
    )
    info |= dict.fromkeys(MANTLE_OF, none) | {"mantle_shortened": none.astype(bool)}
    info |= {"n_unpaired": none, "open_shell": none.astype(bool), "smallest_distance": none + 0.0}
    clusters = _clusters(
        structures,
        info,
        n_atoms=none,
        numbers=none,
        positions=np.zeros((0, 3)),
        region=none,
        parent_atom=none,
        shift=np.zeros((0, 3), dtype=np.int64),
        charge=none,
    )
    return clusters, _refused(structures, info, none, [])
