"""Computing what is lazy, whoever computes it."""

from __future__ import annotations

import warnings
from typing import Any


def compute(*lazy: Any, **how: Any) -> tuple[Any, ...]:
    """`dask.compute` for tasks that share one large object.

    Dask warns of the size of a graph in which a framework or a potential travels along. It travels
    once, and a future in its place would live on the scheduler for as long as the session.

    Parameters
    ----------
    *lazy : Dask collections
    **how
        Options of `dask.compute`.
    """
    import dask

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        return tuple(dask.compute(*lazy, **how))
