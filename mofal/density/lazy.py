"""Looking at 10⁸ rows: minima of structures, histograms and maps, without ever holding the rows.

Each verb is a reduction over chunks: one task each, and a tree. Results are small Datasets, lazy
where the input is lazy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.density.basis import project
from mofal.density.graphs import Blocks, column_of, is_dask, one_column_chunk, plain, tree
from mofal.density.pca import PCA
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

MAX_LABEL = 118
"""Largest label that a histogram counts by itself (the heaviest element)."""


def structure_minima(ds: xr.Dataset) -> xr.Dataset:
    """Least likely atom of every structure; lazy on lazy scores.

    Parameters
    ----------
    ds : xarray.Dataset
        With `log_likelihood(atom)`, `structure_index(atom)` and `n_atoms(structure)`.

    Returns
    -------
    xarray.Dataset
        `min_log_likelihood(structure)`, `least_likely_atom(structure)` (flat index along `atom`,
        the first one among equals).

    Raises
    ------
    DataError
        A variable is missing.
    """
    import xarray as xr

    values, index = _columns(ds, "log_likelihood", "structure_index")
    _columns(ds, "n_atoms")
    n = ds.sizes["structure"]
    both = _reduce([values, index], _minima_chunk, _minima_combine, n)
    small = {
        name: ds[name] for name in ("structure_id", "system", "cycle", "n_atoms") if name in ds
    }
    return xr.Dataset(
        {
            **{name: v for name, v in small.items() if v.dims == ("structure",)},
            "min_log_likelihood": ("structure", _pick(both, 0, (n,), np.float64)),
            "least_likely_atom": ("structure", _pick(both, 1, (n,), np.int64)),
        },
        attrs={k: v for k, v in ds.attrs.items() if k in ("model_hash", "density_hash")},
    )


def _minima_chunk(
    first: int, n: int, values: np.ndarray, index: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray]:
    """Minimum and its place for the structures that a chunk touches, from the first of them on."""
    if not index.size:
        return 0, np.empty(0), np.empty(0, np.int64)
    low, high = int(index.min()), int(index.max())
    if high >= n or low < 0:
        raise DataError(
            f"found structure_index {high if high >= n else low}, expected 0 to {n - 1}"
        )
    order = np.lexsort((values, index))
    groups = np.flatnonzero(np.r_[True, np.diff(index[order]) != 0])
    best = order[groups]
    minima = np.full(high - low + 1, np.inf)
    places = np.full(high - low + 1, -1, np.int64)
    minima[index[best] - low] = values[best]
    places[index[best] - low] = best + first
    return low, minima, places


def _minima_combine(a: Any, b: Any) -> tuple[int, np.ndarray, np.ndarray]:
    low = min(a[0], b[0])
    size = max(a[0] + a[1].size, b[0] + b[1].size) - low
    minima, places = np.full(size, np.inf), np.full(size, -1, np.int64)
    for start, part, where in (a, b):
        rows = slice(start - low, start - low + part.size)
        better = (part < minima[rows]) | ((places[rows] < 0) & (where >= 0))
        minima[rows] = np.where(better, part, minima[rows])
        places[rows] = np.where(better, where, places[rows])
    return low, minima, places


def _minima_pick(result: Any, which: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    low, minima, places = result
    out = np.full(shape, np.inf if which == 0 else -1, dtype)
    out[low : low + minima.size] = (minima, places)[which]
    return out


def histogram(
    ds: xr.Dataset,
    variable: str = "log_likelihood",
    *,
    by: str = "numbers",
    bins: int = 200,
    limits: tuple[float, float] | None = None,
) -> xr.Dataset:
    """Histogram of a variable along `atom` for every label; lazy on lazy input.

    Parameters
    ----------
    ds : xarray.Dataset
    variable, by : str
        What is counted, and the label it is counted by (0 to 118).
    bins : int
    limits : tuple of float, optional
        Range; default: that of the finite values, found in a pass of its own.

    Returns
    -------
    xarray.Dataset
        `count(label, bin)`, `below(label)` (with -inf), `above(label)`, `edge(bin_edge)`.
    """
    import xarray as xr

    values, labels = _columns(ds, variable, by)
    shared: Any = limits
    if limits is None:
        shared = _reduce([values], _limits_chunk, _limits_combine, None)
    elif not limits[0] < limits[1]:
        raise DataError(f"found limits={limits!r}, expected the smaller one first")
    lazy = is_dask(values) or is_dask(labels)
    counts = _reduce([values, labels], _Histogram(bins), _add, shared, lazy=lazy)
    shape = (MAX_LABEL + 1, bins + 2)
    table = _pick(counts, None, shape, np.int64)
    edges = _pick(shared, bins, (bins + 1,), np.float64, picker=_edges)
    return xr.Dataset(
        {
            "count": (("label", "bin"), table[:, 1:-1]),
            "below": ("label", table[:, 0]),
            "above": ("label", table[:, -1]),
            "edge": ("bin_edge", edges),
        },
        coords={"label": np.arange(MAX_LABEL + 1)},
        attrs={"variable": variable, "by": by},
    )


def _limits_chunk(first: int, shared: None, values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return np.inf, -np.inf
    return float(finite.min()), float(finite.max())


def _limits_combine(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return min(a[0], b[0]), max(a[1], b[1])


def _edges(limits: tuple[float, float], bins: int, *_: Any) -> np.ndarray:
    low, high = limits
    if not low <= high:
        low, high = 0.0, 1.0
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


class _Histogram:
    """Chunk function of `histogram`: counts (label, below + bins + above)."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.__name__ = "histogram"

    def __call__(
        self, first: int, limits: tuple[float, float], values: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        if labels.size and (labels.min() < 0 or labels.max() > MAX_LABEL):
            raise DataError(
                f"found labels {labels.min()} to {labels.max()}, expected 0 to {MAX_LABEL}"
            )
        edges = _edges(limits, self.bins)
        place = np.searchsorted(edges, values, side="right")
        place[values == edges[-1]] = self.bins
        flat = labels.astype(np.int64) * (self.bins + 2) + place
        counts = np.bincount(flat, minlength=(MAX_LABEL + 1) * (self.bins + 2))
        return counts.reshape(MAX_LABEL + 1, self.bins + 2)


def density_map(
    ds: xr.Dataset,
    pca: PCA,
    *,
    label: int | None = None,
    bins: int = 200,
    extent: float = 4.0,
) -> xr.Dataset:
    """How many atoms lie where in the plane of the first two principal directions; lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        With `features(atom, feature)`; with `log_likelihood(atom)` its mean is mapped too.
    pca : PCA
        Fitted, with at least two directions.
    label : int, optional
        Count only atoms of this atomic number.
    bins : int
        In each direction.
    extent : float
        Half width of the map in standard deviations.

    Returns
    -------
    xarray.Dataset
        `count(second, first)`, `mean_log_likelihood(second, first)` (NaN where nothing lies),
        `outside` (atoms off the map); coordinates `first`, `second`: centres of the bins.
    """
    import xarray as xr

    if pca.components_.shape[0] < 2:
        raise DataError(f"found a PCA of {pca.components_.shape[0]} direction, expected 2 or more")
    names = ["features"]
    names += ["numbers"] if label is not None else []
    names += ["log_likelihood"] if "log_likelihood" in ds else []
    columns = _columns(ds, *names)
    width = extent * np.sqrt(np.maximum(pca.explained_variance_[:2], 1e-300))
    mapper = _Map(names, label, bins, width, pca.mean_, pca.components_[:2].T)
    total = _reduce(columns, mapper, _add, None)
    table = _pick(total, None, (2, bins * bins + 1), np.float64)
    count = table[0, :-1].reshape(bins, bins)
    out = {"count": (("second", "first"), count), "outside": ((), table[0, -1])}
    if "log_likelihood" in names:
        nan = np.where(count > 0, 1.0, np.nan)
        mean = table[1, :-1].reshape(bins, bins) * nan / np.maximum(count, 1.0)
        out["mean_log_likelihood"] = (("second", "first"), mean)
    centres = [np.linspace(-w, w, bins + 1)[:-1] + w / bins for w in width]
    attrs = {"label": -1 if label is None else label}
    return xr.Dataset(out, coords={"first": centres[0], "second": centres[1]}, attrs=attrs)


class _Map:
    """Chunk function of `density_map`: counts and sums of log-likelihoods in flat bins."""

    def __init__(
        self,
        names: list[str],
        label: int | None,
        bins: int,
        width: np.ndarray,
        mean: np.ndarray,
        matrix: np.ndarray,
    ) -> None:
        self.names, self.label, self.bins, self.width = names, label, bins, width
        self.mean, self.matrix = mean, matrix
        self.__name__ = "density_map"

    def __call__(self, first: int, shared: None, *columns: np.ndarray) -> np.ndarray:
        of = dict(zip(self.names, columns))
        keep: Any = slice(None) if self.label is None else of["numbers"] == self.label
        x = project((self.mean, self.matrix), of["features"][keep])
        scaled = np.floor((x / self.width + 1.0) * (0.5 * self.bins))
        inside = ((scaled >= 0) & (scaled < self.bins)).all(axis=1)
        size = self.bins * self.bins
        place = np.full(x.shape[0], size)
        cells = scaled[inside].astype(np.int64)
        place[inside] = cells[:, 1] * self.bins + cells[:, 0]
        out = np.zeros((2, size + 1))
        out[0] = np.bincount(place, minlength=size + 1)
        if "log_likelihood" in of:
            out[1] = np.bincount(place, of["log_likelihood"][keep], minlength=size + 1)
        return out


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a + b


# ---------------------------------------------------------------------------------- machinery
def _columns(ds: xr.Dataset, *names: str) -> list[Any]:
    missing = [name for name in names if name not in ds]
    if missing:
        raise DataError(
            f"found a Dataset without {', '.join(missing)} (it has "
            f"{', '.join(map(str, ds.data_vars)) or 'nothing'}); "
            "score it first: mofal.density.score(features, density)"
        )
    return [ds[name].data for name in names]


def _reduce(
    columns: list[Any],
    chunk: Callable[..., Any],
    combine: Callable[[Any, Any], Any],
    shared: Any,
    *,
    lazy: bool = False,
) -> Any:
    """Chunk / combine over aligned columns: a value in memory, a Delayed over Dask arrays."""
    if not lazy and not any(is_dask(c) for c in columns):
        return chunk(0, shared, *(plain(c) for c in columns))
    if all(c.shape[0] == 0 for c in columns) and not hasattr(shared, "dask"):
        return chunk(0, shared, *(np.empty(c.shape, c.dtype) for c in columns))
    import dask
    from dask.delayed import Delayed

    # The widest column (features) decides the chunks: it is what costs memory.
    order = sorted(range(len(columns)), key=lambda i: -_rank(columns[i]))
    lead = columns[order[0]]
    lead = one_column_chunk(lead) if lead.ndim == 2 else lead
    arrays = [lead, *(column_of(columns[i], lead, "a variable") for i in order[1:])]
    handle = shared if isinstance(shared, Delayed) else dask.delayed(shared, traverse=False)
    return tree(Blocks(arrays), (_call, chunk, order), chunk.__name__, combine, handle)


def _rank(column: Any) -> float:
    return -1.0 if not is_dask(column) else 1e9 * column.ndim + column.numblocks[0]


def _call(
    chunk: Callable[..., Any], order: list[int], first: int, shared: Any, *columns: np.ndarray
) -> Any:
    in_order = [plain(column) for _, column in sorted(zip(order, columns), key=lambda p: p[0])]
    return chunk(first, shared, *in_order)


def _whole(result: Any, which: None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return np.asarray(result, dtype).reshape(shape)


def _pick(
    result: Any,
    which: Any,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    picker: Callable[..., np.ndarray] | None = None,
) -> Any:
    """An array out of a reduced result, as lazy as the result is."""
    if picker is None:
        picker = _whole if which is None else _minima_pick
    if not hasattr(result, "dask"):
        return picker(result, which, shape, dtype)
    import dask
    import dask.array as da

    delayed = dask.delayed(picker, pure=False, traverse=False)(result, which, shape, dtype)
    return da.from_delayed(delayed, shape=shape, dtype=dtype)
