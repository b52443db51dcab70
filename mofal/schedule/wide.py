"""Tasks that need more than one worker: their Dask graphs, spread over what their pool lends them.

A wide task (`Task.width`) runs on one worker, as every task does. While it runs the dispatcher
lends it idle workers of its pool: they are given a resource of the attempt's name, which the tasks
of its graphs ask for, and no other work. Its own worker has that resource too: the task leaves its
thread to them while it waits. So a graph never waits behind somebody's label.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["HERE", "set_resource", "spread"]


class _Here(threading.local):
    """What the attempt that runs in this thread may use."""

    resource = ""


HERE = _Here()


@contextmanager
def spread() -> Iterator[bool]:
    """Have Dask collections that are computed inside computed by the workers lent to this task.

    Where there is nobody to lend (backends ``inline`` and ``threads``, a pool of one worker, a task
    that is not wide), nothing changes: graphs are computed by the scheduler of the moment, which in
    a worker is its own threads.

    Yields
    ------
    bool
        Whether there are others.
    """
    if not HERE.resource:
        yield False
        return
    import dask
    from distributed import get_worker, worker_client
    from distributed.utils import sync

    worker = get_worker()
    sync(worker.loop, worker.set_resources, **{HERE.resource: 1})
    try:
        # In a worker graphs go to its own threads unless told otherwise: see worker.py.
        with (
            worker_client(separate_thread=True),
            dask.config.set(scheduler="distributed"),
            dask.annotate(resources={HERE.resource: 1}),
        ):
            yield True
    finally:
        with suppress(Exception):  # without a scheduler there is nobody to tell
            sync(worker.loop, worker.set_resources, **{HERE.resource: 0})


async def set_resource(*, name: str, amount: int, dask_worker: Any) -> None:
    """Give a worker so much of a resource; runs in its event loop, whatever its thread is at."""
    await dask_worker.set_resources(**{name: amount})
