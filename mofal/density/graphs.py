"""Graphs over the chunks of Dask arrays: one task per chunk, what reads it included, and a tree."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from mofal.errors import DataError

FAN_IN = 16
"""Partial results that one task of the tree combines."""


def is_dask(x: Any) -> bool:
    """Whether x is a Dask array, without importing Dask."""
    return type(x).__module__.startswith("dask.") and hasattr(x, "dask")


def plain(x: Any) -> np.ndarray:
    """A NumPy array (Dask arrays are computed).

    What is masked is refused, because NumPy would hand out what lies below the mask.

    Raises
    ------
    DataError
        A value is masked.
    """
    if is_dask(x):
        x = x.compute()
    if isinstance(x, np.ma.MaskedArray):
        count = int(np.ma.count_masked(x))
        if count:
            raise DataError(
                f"found {count} masked values, expected numbers; drop such rows first: "
                "x = x[~numpy.ma.getmaskarray(x).any(axis=1)].data"
            )
    return np.asarray(x)


def has_known_rows(x: Any) -> bool:
    """Whether a Dask array knows how many rows its chunks have (after x[mask] it does not)."""
    return not np.isnan(x.shape[0])


def whole_rows(x: Any) -> Any:
    """A Dask array (n, d) whose chunks hold whole rows; lazy."""
    return x.rechunk({1: -1}) if x.numblocks[1] > 1 else x


def one_column_chunk(x: Any) -> Any:
    """A Dask array (n, d) whose chunks hold whole rows, with known sizes."""
    return whole_rows(x if has_known_rows(x) else x.compute_chunk_sizes())


def column_of(column: Any, x: Any, name: str) -> Any:
    """A column beside the rows of x as a Dask array; its own chunks are kept.

    Raises
    ------
    DataError
        It has not one entry per row.
    """
    if not is_dask(column):
        column = plain(column)
    elif not has_known_rows(column):
        column = column.compute_chunk_sizes()
    if column.shape != (x.shape[0],):
        raise DataError(f"{name} has shape {column.shape}, expected ({x.shape[0]},): one per row")
    if is_dask(column):
        return column
    import dask.array as da

    return da.from_array(column, chunks=(x.chunks[0],))


class Blocks:
    """Chunks of a leading array, and beside each the rows of other arrays, as parts of tasks.

    The other arrays may have other chunks (a shard of labels holds more rows than one of features):
    theirs are cut and joined inside the tasks, so that nothing is rechunked.

    Attributes
    ----------
    graph : dict
        What several tasks share.
    inputs : list of tuple
        For each chunk that is not empty: number of its first row, then for each array a key or a
        task that makes the rows. A task that only one chunk needs is nested in that chunk's task
        (Dask by itself leaves it outside, because the latter depends on a shared object too), so
        that a chunk never lies in memory between two tasks.
    """

    def __init__(self, arrays: list[Any]) -> None:
        import dask
        from dask.core import get_dependencies

        graph: dict[Any, Any] = {}
        for array in dask.optimize(*arrays):
            graph.update(array.__dask_graph__())
        uses = Counter(key for k in graph for key in get_dependencies(graph, k))
        edges = [np.concatenate([[0], np.cumsum(array.chunks[0])]) for array in arrays]
        spans = [(int(a), int(b)) for a, b in pairwise(edges[0]) if b > a]
        wanted = [[_overlap(*pair, *span) for pair in zip(arrays, edges)] for span in spans]
        for parts in wanted:
            for array, (keys, _, _) in zip(arrays, parts):
                uses.update(keys)
                # Chunks that lie on workers are futures, which optimising has dropped.
                missing = [key for key in keys if key not in graph]
                graph.update({key: array.__dask_graph__()[key] for key in missing})

        def input_of(keys: list[Any], offset: int, length: int, whole: bool) -> Any:
            parts = [
                graph.pop(key) if uses[key] == 1 and _is_task(graph[key]) else key for key in keys
            ]
            return parts[0] if whole else (_cut, parts, offset, offset + length)

        self.inputs = [
            (start, *(input_of(keys, offset, stop - start, whole) for keys, offset, whole in parts))
            for (start, stop), parts in zip(spans, wanted)
        ]
        self.graph = graph


def _overlap(array: Any, edges: np.ndarray, start: int, stop: int) -> tuple[list[Any], int, bool]:
    """Chunks that hold rows start to stop, where these begin in them, and whether they are all."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    rest = (0,) * (array.ndim - 1)
    keys = [(array.name, i, *rest) for i in range(first, last) if array.chunks[0][i]]
    low, high = int(edges[first]), int(edges[last])
    return keys, start - low, len(keys) == 1 and (low, high) == (start, stop)


def _cut(parts: list[np.ndarray], start: int, stop: int) -> np.ndarray:
    # One by one: joining masked arrays by np.concatenate would lose their masks.
    whole = [plain(part) for part in parts]
    joined = whole[0] if len(whole) == 1 else np.concatenate(whole)
    return joined[start:stop]


def _is_task(value: Any) -> bool:
    """Whether a value of a graph is something to be called (and not data, an alias or a future)."""
    if isinstance(value, tuple):
        return bool(value) and callable(value[0])
    return type(value).__name__ == "Task"


def tree(
    blocks: Blocks,
    call: tuple[Any, ...],
    name: str,
    combine: Callable[[Any, Any], Any],
    shared: Any,
) -> Any:
    """A Delayed that reduces the chunks: one task each, and a tree over their results.

    Parameters
    ----------
    blocks : Blocks
    call : tuple
        Head of each task: it is called with the first row, the shared object, and the rows of each
        array.
    name : str
        For the dashboard.
    combine : callable
        Makes one result of two; must not change them.
    shared : Delayed
        One object for all tasks: each worker receives it once.
    """
    from dask.delayed import Delayed
    from dask.highlevelgraph import HighLevelGraph

    token = uuid.uuid4().hex[:16]
    name = name.strip("_").replace("_", "-")
    graph = dict(blocks.graph)
    keys: list[Any] = []
    for i, (first_row, *inputs) in enumerate(blocks.inputs):
        graph[f"{name}-{token}", i] = (*call, first_row, shared.key, *inputs)
        keys.append((f"{name}-{token}", i))
    level = 0
    while len(keys) > 1 or level == 0:
        groups = [keys[i : i + FAN_IN] for i in range(0, len(keys), FAN_IN)]
        keys = [(f"{name}-combine-{token}", level, i) for i in range(len(groups))]
        graph.update({key: (_combine_all, combine, group) for key, group in zip(keys, groups)})
        level += 1
    final = f"{name}-all-{token}"
    graph[final] = keys[0]
    return Delayed(final, HighLevelGraph.from_collections(final, graph, dependencies=[shared]))


def _combine_all(combine: Callable[[Any, Any], Any], parts: list[Any]) -> Any:
    result = parts[0]
    for part in parts[1:]:
        result = combine(result, part)
    return result
