"""Ragged structures: flat along `atom`, with `n_atoms(structure)` (CF contiguous ragged arrays).

Array functions first, then their Dask forms, then the verbs on Datasets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.hashing import structure_hash
from mofal.data.variables import VARIABLES, check_counts, describe, validate
from mofal.errors import DataError

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

BASE = ("numbers", "positions", "cell", "pbc", "n_atoms", "structure_index")
"""What every structure has; what cannot be filled in."""
_NOT_COMPARABLE = {
    "level_hash": "labels of two levels of theory",
    "model_hash": "features of two models",
    "density_hash": "scores of two densities",
}
TEXT = np.dtype(object)
"""How text is held in memory: Python strings. NumPy's own text of any length is what is stored, but
xarray cannot put a missing value into it, and so `ds.where(...)` would fail on every Dataset."""


# ---------------------------------------------------------------------------------- arrays
def offsets(n_atoms: np.ndarray) -> np.ndarray:
    """First atom of each structure, and the total at the end: shape (structure + 1,)."""
    return np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)])


def gather_index(n_atoms: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Flat atom indices of the chosen structures, in their order: shape (atom,)."""
    start = offsets(n_atoms)[:-1][indices]
    count = np.asarray(n_atoms)[indices]
    shift = np.repeat(start - offsets(count)[:-1], count)
    return np.arange(int(count.sum()), dtype=np.int64) + shift


def count_elements(numbers: np.ndarray, structure_index: np.ndarray, n: int) -> np.ndarray:
    """How many atoms of each element each structure has: shape (structure, 119)."""
    return _count_columns(numbers, structure_index, n=n, column=np.arange(119), width=119)


def _count_columns(
    numbers: np.ndarray, structure_index: np.ndarray, *, n: int, column: np.ndarray, width: int
) -> np.ndarray:
    """Count atoms per structure and column, where `column[Z]` is the column of an element.

    Raises
    ------
    DataError
        An element has no column (-1).
    """
    z = np.asarray(numbers)
    where = column[z]
    if where.size and where.min() < 0:
        from ase.data import chemical_symbols

        unknown = [chemical_symbols[k] for k in np.unique(z[where < 0])]
        raise DataError(
            f"the isolated-atom energy of {', '.join(unknown)} at this level of theory is not "
            "known; add it to isolated_atom_energies"
        )
    cells = np.asarray(structure_index, np.int64) * width + where
    return np.bincount(cells, minlength=n * width).astype(np.int64).reshape(n, width)


def fill_value(name: str, dtype: np.dtype) -> Any:
    """Value of a variable where a structure does not have it: NaN, ``""``, or the registry's."""
    if dtype.kind in "UTO":
        return ""
    if dtype.kind == "f":
        return np.nan
    return VARIABLES[name].missing if name in VARIABLES else 0


# ---------------------------------------------------------------------------------- Dask
def _lazy_index(n_atoms: np.ndarray, chunks: Sequence[int]) -> da.Array:
    """`structure_index` in given chunks; each task holds only the counts of its own structures."""
    import dask
    import dask.array as da

    start = offsets(n_atoms)
    edges = offsets(np.asarray(chunks))
    blocks = []
    for a, b in pairwise(edges):
        first = int(np.searchsorted(start, a, "right")) - 1
        last = max(first, int(np.searchsorted(start, b, "left")))
        inside = np.minimum(start[first + 1 : last + 1], b) - np.maximum(start[first:last], a)
        block = dask.delayed(np.repeat, pure=True)(np.arange(first, last), inside)
        blocks.append(da.from_delayed(block, shape=(int(b - a),), dtype=np.int64))
    return da.concatenate(blocks)


def _lazy_counts(
    numbers: Any, structure_index: Any, *, n: int, column: np.ndarray, width: int
) -> da.Array:
    """`_count_columns` chunk by chunk, added up as a tree; counts are exact in any order."""
    import dask.array as da

    z, index = da.asarray(numbers), da.asarray(structure_index)
    if z.chunks != index.chunks:
        (z, index) = da.core.unify_chunks(z, "i", index, "i")[1]

    def block(z: np.ndarray, index: np.ndarray) -> np.ndarray:
        return _count_columns(z, index, n=n, column=column, width=width)[np.newaxis]

    parts = da.map_blocks(
        block,
        z,
        index,
        new_axis=[1, 2],
        chunks=((1,) * z.numblocks[0], (n,), (width,)),
        dtype=np.int64,
        meta=np.empty((0, 0, 0), np.int64),
    )
    return parts.sum(axis=0)


# ---------------------------------------------------------------------------------- verbs
def make_structures(
    numbers: np.ndarray,
    positions: np.ndarray,
    *,
    n_atoms: Sequence[int] | np.ndarray,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | bool | None = None,
    system: str | Sequence[str] = "",
    parent: str | Sequence[str] = "",
    **more: Any,
) -> xr.Dataset:
    """Make a structures Dataset from flat arrays.

    Parameters
    ----------
    numbers : (atom,) int
    positions : (atom, 3) float, Å
    n_atoms : (structure,) int
    cell : (structure, 3, 3) float, Å, optional
        None, or zeros, for a finite structure.
    pbc : (structure, 3) bool, optional
        Default: periodic wherever there is a cell.
    system, parent : str or sequence of str
        One for all, or one each.
    **more
        Further registered variables, e.g. `region`.

    Raises
    ------
    DataError
        Shapes do not fit together.
    """
    import xarray as xr

    count = _cast("n_atoms", n_atoms).ravel()
    n = len(count)
    check_counts(count)
    z = _cast("numbers", numbers).ravel()
    xyz = _cast("positions", positions)
    if xyz.size == 0:
        xyz = xyz.reshape(0, 3)
    if len(z) != count.sum() or xyz.shape != (len(z), 3):
        raise DataError(
            f"{len(z)} numbers, positions of shape {xyz.shape} and n_atoms adding up to "
            f"{int(count.sum())} do not belong together"
        )
    lattice = np.zeros((n, 3, 3)) if cell is None else _cast("cell", cell)
    if lattice.shape == (3, 3) and n == 1:
        lattice = lattice[np.newaxis]
    if lattice.shape != (n, 3, 3):
        raise DataError(f"cell has shape {lattice.shape}, expected {(n, 3, 3)}")
    if pbc is None:
        periodic = np.abs(lattice).sum(axis=2) > 0
    else:
        given = np.asarray(pbc, np.bool_)
        if given.shape not in ((), (3,), (n, 3)):
            raise DataError(f"pbc has shape {given.shape}, expected {(n, 3)}")
        periodic = np.broadcast_to(given, (n, 3)).copy()
    variables: dict[str, Any] = {
        "numbers": ("atom", z),
        "positions": (("atom", "xyz"), xyz),
        "cell": (("structure", "cell_vector", "xyz"), lattice),
        "pbc": (("structure", "cell_vector"), periodic),
        "n_atoms": ("structure", count),
        "structure_index": ("atom", np.repeat(np.arange(n), count)),
        "structure_id": ("structure", np.full(n, "", TEXT)),
        "system": ("structure", _text(system, n)),
        "parent": ("structure", _text(parent, n)),
    }
    for name, value in more.items():
        spec = VARIABLES.get(name)
        if spec is None:
            known = ", ".join(v for v in VARIABLES if v not in variables)
            raise DataError(f"{name!r} is no registered variable; registered: {known}")
        data = _cast(name, value)
        length = {"structure": n, "atom": len(z)}.get(spec.dims[0], len(data) if data.ndim else 0)
        if data.ndim != len(spec.dims) or len(data) != length:
            raise DataError(
                f"{name} has shape {data.shape}, expected {len(spec.dims)} dims {spec.dims} with "
                f"{length} along {spec.dims[0]}"
            )
        variables[name] = (spec.dims, data)
    out = xr.Dataset(variables)
    if "structure_id" not in more:
        out["structure_id"] = ("structure", structure_ids(out))
    return validate(describe(out), "structures")


def _cast(name: str, value: Any) -> np.ndarray:
    """Turn a value into the registered type, or say why that would change it."""
    spec = VARIABLES[name]
    if spec.dtype == "str":
        return np.asarray([str(v) for v in value], TEXT)
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} cannot be {spec.dtype}: {error}") from None
    if given.size and given.dtype.kind not in "biuf":
        raise DataError(
            f"{name} holds {given.ravel()[0]!r}, expected {spec.dtype} ({spec.meaning})"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        out = given.astype(spec.dtype)
    differs = (out != given) & (out.dtype.kind != "f")
    changed = np.flatnonzero(differs.ravel())
    if len(changed):
        raise DataError(
            f"{name} holds {given.ravel()[changed[0]].item()!r}, expected {spec.dtype} "
            f"({spec.meaning})"
        )
    return out


def _text(value: str | Iterable[str], n: int) -> np.ndarray:
    values = [value] * n if isinstance(value, str) else [str(v) for v in value]
    if len(values) != n:
        raise DataError(f"{len(values)} names for {n} structures")
    return np.array(values, TEXT)


def structure_ids(ds: xr.Dataset) -> np.ndarray:
    """Identity of each structure, computed from what it is now: shape (structure,), text.

    Reads lazy variables. `structure_id` of a sound Dataset is equal to this.
    """
    z, xyz, lattice, periodic, count = (
        ds[v].values for v in ("numbers", "positions", "cell", "pbc", "n_atoms")
    )
    none = np.zeros(len(count))
    charge, unpaired = (
        ds[name].values if name in ds else none for name in ("charge", "n_unpaired")
    )
    ids = [
        structure_hash(z[a:b], xyz[a:b], lattice[i], periodic[i], charge[i], unpaired[i])
        for i, (a, b) in enumerate(pairwise(offsets(count)))
    ]
    return np.array(ids, TEXT)


def atom_slice(ds: xr.Dataset, i: int) -> slice:
    """Atoms of structure `i` as a slice along `atom`."""
    start = offsets(ds["n_atoms"].values)
    n = len(start) - 1
    if not -n <= i < n:
        raise DataError(f"structure {i} of a Dataset that has {n}")
    i %= n
    return slice(int(start[i]), int(start[i + 1]))


def select(
    ds: xr.Dataset,
    indices: int | Sequence[int] | np.ndarray | slice | None = None,
    **where: Any,
) -> xr.Dataset:
    """Choose structures, with their atoms, in the order given; stays lazy.

    Parameters
    ----------
    indices : int, sequence of int, boolean mask or slice, optional
        Along `structure`; default: all.
    **where
        Values of variables along `structure`, or sequences of the values that will do:
        ``select(labels, status="converged", cycle=[1, 2])``.

    Raises
    ------
    DataError
        An index outside, or a name that is no variable along `structure`.
    """
    if where:
        found = ds if indices is None else select(ds, indices)
        return select(found, _matching(found, where))
    n = ds.sizes["structure"]
    if indices is None:
        indices = slice(None)
    if isinstance(indices, slice):
        chosen = np.arange(n)[indices]
    else:
        chosen = np.atleast_1d(np.asarray(indices))
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.dtype == bool:
            if len(chosen) != n:
                raise DataError(f"a mask of {len(chosen)} for {n} structures")
            chosen = np.flatnonzero(chosen)
    if chosen.dtype.kind not in "iu":
        raise DataError(f"structures are chosen by integers or a mask, not by {chosen.dtype}")
    outside = chosen[(chosen < -n) | (chosen >= n)]
    if outside.size:
        raise DataError(f"structure {int(outside[0])} of a Dataset that has {n}")
    chosen = chosen % n if n else chosen
    count = ds["n_atoms"].values
    out = ds.isel(structure=_as_slice(chosen))
    if "atom" in ds.sizes:
        if isinstance(_as_slice(chosen), slice):
            # A slice, unlike an index, reaches the store: only what is asked for is read.
            start = offsets(count)
            first, last = (int(chosen[0]), int(chosen[-1]) + 1) if chosen.size else (0, 0)
            out = out.isel(atom=slice(int(start[first]), int(start[last])))
        else:
            out = out.isel(atom=gather_index(count, chosen))
        if "structure_index" in out:
            old = out["structure_index"]
            index: Any
            if old.chunks is None:
                index = np.repeat(np.arange(len(chosen)), count[chosen])
            else:
                index = _lazy_index(count[chosen], old.chunks[0])
            out["structure_index"] = ("atom", index, old.attrs)
    return out


def _matching(ds: xr.Dataset, where: dict[str, Any]) -> np.ndarray:
    """Mask of the structures whose variables have the values that were asked for."""
    keep = np.ones(ds.sizes["structure"], bool)
    for name, wanted in where.items():
        if name not in ds.variables or ds[name].dims != ("structure",):
            known = [str(v) for v in ds.variables if ds[v].dims == ("structure",)]
            raise DataError(
                f"{name!r} is no variable along structure; these are: {', '.join(known) or 'none'}"
            )
        single = isinstance(wanted, str) or np.ndim(wanted) == 0
        values = ds[name].values
        keep &= np.isin(values, np.array([wanted] if single else list(wanted), values.dtype))
    return keep


def converged(ds: xr.Dataset) -> xr.Dataset:
    """Choose the structures whose label has converged, with their atoms; stays lazy.

    ``ds.where(ds.status == "converged", drop=True)`` gives the same rows along `structure`; but it
    knows nothing of ragged data, spreads what lies along `atom` over all structures, and turns
    integers into floats.

    Parameters
    ----------
    ds : xarray.Dataset
        Labels: with `status(structure)`.

    Raises
    ------
    DataError
        There is no `status`.
    """
    if "status" not in ds.variables:
        raise DataError(
            "these structures carry no status, so none is labelled; take labels, such as "
            'mofal.open("DIR").labels'
        )
    return select(ds, np.array([str(s) == "converged" for s in ds["status"].values], bool))


def _as_slice(chosen: np.ndarray) -> np.ndarray | slice:
    if chosen.size == 0:
        return slice(0, 0)
    if np.all(np.diff(chosen) == 1):
        return slice(int(chosen[0]), int(chosen[-1]) + 1)
    return chosen


def concat(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join Datasets of structures, labels, features or scores, one after the other; stays lazy.

    A variable that only some of them have is filled: NaN for labels and numbers, ``""`` for text,
    for integers what the registry says (core for `region`, -1 for `parent_atom`). Numbers and
    positions, and integers that are not registered, are never made up.

    Raises
    ------
    DataError
        There is none, or labels of two levels of theory (or features of two models) would be mixed,
        or a variable is missing that cannot be filled.
    """
    import xarray as xr

    parts = [d for d in datasets if d.sizes.get("structure", 0) > 0] or list(datasets[:1])
    if not parts:
        raise DataError("nothing to concatenate")
    attrs = _join_attrs(parts)
    models: dict[str, xr.DataArray] = {}
    for part in parts:
        for name in map(str, part.data_vars):
            models.setdefault(name, part[name])
    columns: dict[str, list[xr.Variable]] = {name: [] for name in models}
    shift = 0
    for k, part in enumerate(parts):
        for name, model in models.items():
            piece = part[name].variable if name in part else _filled(part, k, name, model)
            if piece.dims != model.dims or piece.shape[1:] != model.shape[1:]:
                raise DataError(
                    f"{name} of Dataset {k} has dims {dict(zip(piece.dims, piece.shape))}, that of "
                    f"another {dict(model.sizes)}; they cannot be joined"
                )
            if name == "structure_index":
                piece = piece + shift
            elif piece.dtype.kind in "UT" and model.dtype.kind in "UTO":
                piece = piece.astype(TEXT)
            columns[name].append(piece)
        shift += part.sizes["structure"]
    variables = {}
    for name, model in models.items():
        along = next((d for d in ("atom", "structure") if d in model.dims[:1]), None)
        joined = columns[name][0] if along is None else xr.Variable.concat(columns[name], along)
        variables[name] = (model.dims, joined.data, model.attrs)
    return xr.Dataset(variables, attrs=attrs)


def _join_attrs(parts: Sequence[xr.Dataset]) -> dict[str, Any]:
    attrs: dict[str, Any] = {}
    for part in parts:
        for key, value in part.attrs.items():
            if key in _NOT_COMPARABLE and attrs.get(key, value) != value:
                raise DataError(
                    f"{_NOT_COMPARABLE[key]} in one Dataset: {attrs[key]} and {value}; "
                    "they are not comparable"
                )
            if key == "isolated_atom_energies" and attrs.get(key, value) != value:
                value = _join_energies(attrs[key], value)
            attrs[key] = value
    return attrs


def _join_energies(one: str, other: str) -> str:
    a, b = json.loads(one), json.loads(other)
    for symbol in a.keys() & b.keys():
        if a[symbol] != b[symbol]:
            raise DataError(
                f"the isolated {symbol} has {a[symbol]} eV in one Dataset and {b[symbol]} eV in "
                "another; labels of two levels of theory are not comparable"
            )
    return json.dumps({**a, **b}, sort_keys=True)


def _filled(part: xr.Dataset, k: int, name: str, model: xr.DataArray) -> xr.Variable:
    """Make the variable that `part` lacks, lazily where the rest of it is lazy."""
    import xarray as xr

    registered = name in VARIABLES
    if name in (*BASE, "structure_id") or (model.dtype.kind in "iub" and not registered):
        raise DataError(
            f"Dataset {k} lacks {name}, which others have and which cannot be made up; "
            f"leave it out: ds.drop_vars({name!r})"
        )
    shape = tuple(part.sizes.get(d, model.sizes[d]) for d in model.dims)
    dtype = TEXT if model.dtype.kind in "UTO" else model.dtype
    value = fill_value(name, dtype)
    beside = [v for v in part.data_vars.values() if v.dims[:1] == model.dims[:1] and v.chunks]
    if beside and dtype.kind != "O":
        import dask.array as da

        rows = (beside[0].chunks or ((shape[0],),))[0]
        chunks = (rows, *((n,) for n in shape[1:]))
        return xr.Variable(model.dims, da.full(shape, value, dtype=dtype, chunks=chunks))
    return xr.Variable(model.dims, np.full(shape, value, dtype))


def relative_energy(ds: xr.Dataset) -> xr.DataArray:
    """Energy minus the isolated atoms at the same level, in eV: shape (structure,).

    This is what a potential is trained on (arXiv:2504.03881): totals of a capped cluster and of a
    crystal differ per atom by far more than what is to be learnt. Lazy where `numbers` are lazy.

    Raises
    ------
    DataError
        The isolated-atom energies of an element are not known (said while computing, if lazy).
    """
    import xarray as xr

    text = ds.attrs.get("isolated_atom_energies")
    if text is None:
        raise DataError(
            "these labels carry no isolated_atom_energies: "
            'set ds.attrs["isolated_atom_energies"] to JSON such as {"H": -10.9, ...} in eV'
        )
    from ase.data import atomic_numbers

    known = {atomic_numbers[symbol]: float(value) for symbol, value in json.loads(text).items()}
    column = np.full(119, -1)
    column[list(known)] = np.arange(len(known))
    numbers, index = ds["numbers"], ds["structure_index"]
    lazy = numbers.chunks is not None or index.chunks is not None
    counts = (_lazy_counts if lazy else _count_columns)(
        numbers.data, index.data, n=ds.sizes["structure"], column=column, width=len(known)
    )
    # Element by element, in a fixed order: a sum per structure does not depend on the others.
    atoms: Any = 0.0
    for k, energy in enumerate(known.values()):
        atoms = atoms + counts[:, k] * energy
    return xr.DataArray(
        ds["energy"].data - atoms,
        dims="structure",
        attrs={"units": "eV", "long_name": "energy minus isolated atoms"},
    )
