"""What a fitted mixture says of each row: in threads over NumPy arrays, lazily over Dask arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from mofal.density.basis import make_basis
from mofal.density.graphs import is_dask, one_column_chunk
from mofal.density.kernels import SCORE_TOLERANCE, Evaluator
from mofal.density.parameters import Parameters, total_moments
from mofal.density.rows import CHUNK, one_blas_thread, walk


def evaluator_of(parameters: Parameters, *, form: str = "auto") -> Evaluator:
    """Evaluator in the coordinates of the mixture itself: no data needed."""
    mean, covariance = total_moments(parameters)
    basis = make_basis(mean, covariance, parameters.covariance_type)
    return Evaluator([parameters], basis, tolerance=SCORE_TOLERANCE, form=form)


def pieces(n: int) -> list[slice]:
    """Slices of at most `CHUNK` rows."""
    return [slice(a, min(a + CHUNK, n)) for a in range(0, n, CHUNK)]


def log_likelihood_rows(evaluator: Evaluator, x: np.ndarray) -> np.ndarray:
    """Log-likelihood (n,) of rows in memory."""
    out = np.empty((1, x.shape[0]))

    def work(rows: slice) -> None:
        evaluator.evaluate(x[rows], out=out[:, rows], numbers=rows.start)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out[0]


def responsibility_rows(evaluator: Evaluator, x: np.ndarray) -> np.ndarray:
    """Responsibilities (n, K) of rows in memory."""
    out = np.empty((x.shape[0], evaluator.models[0].n_components))

    def work(rows: slice) -> None:
        part = out[rows]

        def visit(_: int, block: slice, responsibilities: np.ndarray) -> None:
            part[block] = responsibilities.T

        evaluator.evaluate(x[rows], visit=visit, numbers=rows.start)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out


def component_rows(evaluator: Evaluator, x: np.ndarray) -> np.ndarray:
    """Most responsible component (n,) of rows in memory."""
    out = np.empty(x.shape[0], np.int64)

    def work(rows: slice) -> None:
        part = out[rows]

        def visit(_: int, block: slice, responsibilities: np.ndarray) -> None:
            part[block] = responsibilities.argmax(axis=0)

        evaluator.evaluate(x[rows], visit=visit, numbers=rows.start)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out


def on_chunks(function: Any, shared: Any, x: Any, *columns: Any, width: int = 0, dtype: Any) -> Any:
    """``function(shared, x, *columns)`` for each chunk of Dask arrays, lazily.

    `shared` is one object of the graph, whatever the number of chunks. The result has one value
    per row, or `width` of them.
    """
    import dask
    import dask.array as da

    x = one_column_chunk(x)
    inputs: list[Any] = [x, "ij"]
    for column in columns:
        if not is_dask(column):
            column = da.from_array(np.asarray(column), chunks=(x.chunks[0],))
        inputs += [column.rechunk((x.chunks[0],)), "i"]
    return da.blockwise(
        _one_thread,
        "ik" if width else "i",
        function,
        None,
        dask.delayed(shared, traverse=False),
        None,
        *inputs,
        new_axes={"k": width} if width else None,
        dtype=dtype,
        meta=np.empty((0, 0) if width else (0,), dtype),
        concatenate=True,
        align_arrays=False,
    )


def _one_thread(function: Any, shared: Any, *arrays: np.ndarray) -> np.ndarray:
    with one_blas_thread():
        return function(shared, *(np.asarray(a) for a in arrays))
