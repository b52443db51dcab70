"""Rows of data, wherever they are: chunk / combine / finalise over NumPy and Dask arrays.

A source of rows offers one parallel algorithm: a function of a chunk, a function that combines two
partial results, and functions of the whole. In memory the chunks are slices that threads work on;
for Dask arrays they are the array's own chunks, and what is shared (the parameters of a mixture)
is one object of the graph that each worker receives once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from mofal.density.graphs import Blocks, column_of, one_column_chunk, plain, tree
from mofal.errors import DataError

CHUNK = 32768
"""Rows per task in memory. Fixed, so that results do not depend on the number of threads."""


class Chunk:
    """Rows of one chunk.

    Attributes
    ----------
    x : ndarray, shape (n, d)
    weights : ndarray, shape (n,), or None
    labels : ndarray of int, shape (n,), or int, or None
        One for each row, or one for all of them.
    numbers : ndarray of int, shape (n,), or int
        Global numbers of the rows, or that of the first of consecutive ones.
    """

    __slots__ = ("labels", "numbers", "weights", "x")

    def __init__(
        self,
        x: np.ndarray,
        weights: np.ndarray | None = None,
        labels: np.ndarray | int | None = None,
        numbers: np.ndarray | int = 0,
    ) -> None:
        self.x, self.weights, self.labels, self.numbers = x, weights, labels, numbers

    def row_numbers(self) -> np.ndarray:
        """Global number of each row."""
        if isinstance(self.numbers, np.ndarray):
            return self.numbers
        return np.arange(self.numbers, self.numbers + self.x.shape[0])

    def by_label(self) -> Iterator[tuple[int, Chunk]]:
        """Each label with its rows, copied together."""
        if not isinstance(self.labels, np.ndarray):
            if self.x.shape[0]:
                yield self.labels or 0, self
            return
        numbers = self.row_numbers()
        for label, rows in group_rows(self.labels):
            w = None if self.weights is None else self.weights[rows]
            yield label, Chunk(self.x[rows], w, label, numbers[rows])


def group_rows(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of each label in order, by one stable sort."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    if not ordered.size:
        return
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for rows in np.split(order, cuts):
        yield int(labels[rows[0]]), rows


ChunkFunction = Callable[[Chunk, Any], Any]
CombineFunction = Callable[[Any, Any], Any]


class Rows(Protocol):
    """What every source of rows can do. Handles are opaque; `get` gives the value."""

    n_rows: int
    n_features: int

    def put(self, value: Any) -> Any: ...
    def reduce(self, chunk: ChunkFunction, combine: CombineFunction, shared: Any) -> Any: ...
    def apply(self, function: Callable[..., Any], *handles: Any) -> Any: ...
    def keep(self, handle: Any) -> Any: ...
    def get(self, handle: Any) -> Any: ...


# ---------------------------------------------------------------------------------- threads
_limit_lock = threading.Lock()
_limit_users = 0
_limiter: Any = None
_controller: Any = None


def _blas() -> Any:
    """Controller of the BLAS libraries of NumPy and SciPy; finding them takes 10 ms, once."""
    global _controller
    if _controller is None:
        import scipy.linalg  # noqa: F401
        from threadpoolctl import ThreadpoolController

        _controller = ThreadpoolController()
    return _controller


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread per caller while anyone is inside; safe to enter from many threads."""
    global _limit_users, _limiter
    with _limit_lock:
        if _limit_users == 0:
            _limiter = _blas().limit(limits=1)
            _limiter.__enter__()
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                _limiter.__exit__(None, None, None)


def threads() -> int:
    """Threads to use: as many as BLAS may now (OMP_NUM_THREADS, threadpoolctl), or the cores."""
    with _limit_lock:
        if _limit_users:
            return 1
        found = [lib["num_threads"] for lib in _blas().info() if lib["user_api"] == "blas"]
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores, *found)) if found else cores


def walk(pieces: Sequence[Any], work: Callable[[Any], Any]) -> Iterator[Any]:
    """``work(piece)`` for every piece in threads; results in the order of the pieces."""
    n = min(threads(), len(pieces))
    with one_blas_thread():
        if n <= 1:
            for piece in pieces:
                yield work(piece)
            return
        with ThreadPoolExecutor(n) as pool:
            yield from pool.map(work, pieces)


# ---------------------------------------------------------------------------------- in memory
def _refuse_none(n_rows: int) -> None:
    if n_rows == 0:
        raise DataError("there is no row; expected at least one")


class LocalRows:
    """Rows in memory."""

    def __init__(
        self,
        x: np.ndarray,
        *,
        weights: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self.n_rows, self.n_features = x.shape
        _refuse_none(self.n_rows)
        self._pieces: list[Chunk] = []
        if labels is None:
            self._cut(x, weights, None, None)
            return
        # Grouped once, not in every pass.
        for label, rows in group_rows(labels):
            self._cut(x[rows], None if weights is None else weights[rows], label, rows)

    def _cut(
        self,
        x: np.ndarray,
        weights: np.ndarray | None,
        label: int | None,
        numbers: np.ndarray | None,
    ) -> None:
        for a in range(0, x.shape[0], CHUNK):
            part = slice(a, a + CHUNK)
            w = None if weights is None else weights[part]
            self._pieces.append(Chunk(x[part], w, label, a if numbers is None else numbers[part]))

    def put(self, value: Any) -> Any:
        return value

    def reduce(self, chunk: ChunkFunction, combine: CombineFunction, shared: Any) -> Any:
        result = None
        for i, part in enumerate(walk(self._pieces, lambda piece: chunk(piece, shared))):
            result = part if i == 0 else combine(result, part)
        return result

    def apply(self, function: Callable[..., Any], *handles: Any) -> Any:
        return function(*handles)

    def keep(self, handle: Any) -> Any:
        return handle

    def get(self, handle: Any) -> Any:
        return handle


# ---------------------------------------------------------------------------------- Dask
class DaskRows:
    """Rows in the chunks of Dask arrays, on whatever scheduler is set.

    Each pass is a graph of one task per chunk, reading included, and a tree over their results.
    """

    def __init__(self, x: Any, *, weights: Any = None, labels: Any = None) -> None:
        x = one_column_chunk(x)
        self.n_rows, self.n_features = map(int, x.shape)
        _refuse_none(self.n_rows)
        self._has = (weights is not None, labels is not None)
        columns = [
            column_of(other, x, name)
            for name, other in (("sample_weight", weights), ("labels", labels))
            if other is not None
        ]
        self._arrays = [x, *columns]
        self._blocks: Blocks | None = None

    def put(self, value: Any) -> Any:
        import dask

        return dask.delayed(value, traverse=False)

    def reduce(self, chunk: ChunkFunction, combine: CombineFunction, shared: Any) -> Any:
        if self._blocks is None:
            self._blocks = Blocks(self._arrays)
        call = (_run_chunk, chunk, self._has)
        return tree(self._blocks, call, chunk.__name__, combine, shared)

    def apply(self, function: Callable[..., Any], *handles: Any) -> Any:
        import dask

        return dask.delayed(function, pure=False, traverse=False)(*handles)

    def keep(self, handle: Any) -> Any:
        return handle.persist()

    def get(self, handle: Any) -> Any:
        return handle.compute()


def _run_chunk(
    function: ChunkFunction,
    has: tuple[bool, bool],
    first_row: int,
    shared: Any,
    x: np.ndarray,
    *columns: np.ndarray,
) -> Any:
    rest = list(columns)
    # Sums of float16 weights would overflow, those of float32 lose digits.
    weights = plain(rest.pop(0)).astype(np.float64) if has[0] else None
    labels = plain(rest.pop(0)) if has[1] else None
    with one_blas_thread():
        return function(Chunk(plain(x), weights, labels, first_row), shared)
