"""What a fitted mixture says of each row: in threads over NumPy arrays, lazily over Dask arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from mofal.density.basis import make_basis
from mofal.density.graphs import has_known_rows, is_dask, one_column_chunk, plain, whole_rows
from mofal.density.kernels import SCORE_TOLERANCE, Evaluator
from mofal.density.parameters import Parameters, total_moments
from mofal.density.rows import CHUNK, one_blas_thread, walk
from mofal.errors import DataError


def evaluator_of(parameters: Parameters, *, form: str = "auto") -> Evaluator:
    """Evaluator in the coordinates of the mixture itself: no data needed."""
    mean, covariance = total_moments(parameters)
    basis = make_basis(mean, covariance, parameters.covariance_type)
    return Evaluator([parameters], basis, tolerance=SCORE_TOLERANCE, form=form)


def pieces(n: int) -> list[slice]:
    """Slices of at most `CHUNK` rows."""
    return [slice(a, min(a + CHUNK, n)) for a in range(0, n, CHUNK)]


def log_likelihood_rows(evaluator: Evaluator, x: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Log-likelihood (n,) of rows in memory; `first` is the global number of the first one."""
    out = np.empty((1, x.shape[0]))

    def work(rows: slice) -> None:
        evaluator.evaluate(x[rows], out=out[:, rows], numbers=first + rows.start)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out[0]


def responsibility_rows(evaluator: Evaluator, x: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Responsibilities (n, K) of rows in memory."""
    out = np.empty((x.shape[0], evaluator.models[0].n_components))

    def work(rows: slice) -> None:
        part = out[rows]

        def visit(_: int, block: slice, responsibilities: np.ndarray) -> None:
            part[block] = responsibilities.T

        evaluator.evaluate(x[rows], visit=visit, numbers=first + rows.start)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out


def component_rows(
    evaluator: Evaluator, x: np.ndarray, *, first: int = 0, numbers: np.ndarray | None = None
) -> np.ndarray:
    """Most responsible component (n,) of rows in memory."""
    out = np.empty(x.shape[0], np.int64)

    def work(rows: slice) -> None:
        part = out[rows]

        def visit(_: int, block: slice, responsibilities: np.ndarray) -> None:
            part[block] = responsibilities.argmax(axis=0)

        where = first + rows.start if numbers is None else numbers[rows]
        evaluator.evaluate(x[rows], visit=visit, numbers=where)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out


def on_chunks(function: Any, shared: Any, x: Any, *columns: Any, width: int = 0, dtype: Any) -> Any:
    """``function(shared, x, *columns, first=...)`` for each chunk of Dask arrays, lazily.

    `shared` is one object of the graph, whatever the number of chunks; `first` is the global number
    of the chunk's first row. The result has one value per row, or `width` of them. Arrays whose
    chunks have unknown sizes stay lazy where their columns have as many chunks of unknown size.
    """
    import dask
    import dask.array as da
    from dask.layers import ArraySliceDep

    x = whole_rows(x)
    blind = all(_is_like(column, x) for column in columns)
    if not (has_known_rows(x) or blind):
        x = one_column_chunk(x)
    inputs: list[Any] = [x, "ij"]
    for column in columns:
        if not is_dask(column):
            column = da.from_array(plain(column), chunks=(x.chunks[0],))
        elif has_known_rows(x):
            known = column if has_known_rows(column) else column.compute_chunk_sizes()
            column = known.rechunk((x.chunks[0],))
        inputs += [column, "i"]
    return da.blockwise(
        _one_thread,
        "ik" if width else "i",
        function,
        None,
        dask.delayed(shared, traverse=False),
        None,
        ArraySliceDep((x.chunks[0],)),
        "i",
        *inputs,
        new_axes={"k": width} if width else None,
        dtype=dtype,
        meta=np.empty((0, 0) if width else (0,), dtype),
        concatenate=True,
        align_arrays=False,
    )


def _is_like(column: Any, x: Any) -> bool:
    """Whether a column has as many chunks as x, sizes unknown, as columns of one table have."""
    return is_dask(column) and not has_known_rows(column) and column.numblocks[0] == x.numblocks[0]


def _one_thread(function: Any, shared: Any, where: tuple[slice], *arrays: np.ndarray) -> np.ndarray:
    rows = [plain(a) for a in arrays]
    if any(a.shape[0] != rows[0].shape[0] for a in rows):
        raise DataError(
            f"chunks of {', '.join(str(a.shape[0]) for a in rows)} rows lie side by side, expected "
            "the same rows in each; give arrays that were cut by the same mask"
        )
    start = where[0].start
    known = bool(np.isfinite(start))
    try:
        with one_blas_thread():
            return function(shared, *rows, first=int(start) if known else 0)
    except DataError as error:
        if known:
            raise
        raise DataError(f"in a chunk of unknown place, counted from its start: {error}") from None
