"""Whether a Dask cluster whose address a campaign file gives can do what it is meant for.

A run finds out when its first worker is looked at, which is after its preparation. This asks at
once, briefly, and sends nothing that would wait in the cluster's queue or make it start a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mofal.errors import ScheduleError
from mofal.schedule.client import connect, look_expression_of, unfit_environment
from mofal.schedule.execution import one_line
from mofal.schedule.settings import ScheduleSettings

#: Seconds for connecting, and for an answer of scheduler or workers (who import mofal for it).
CONNECT, ANSWER = 5.0, 20.0
#: Workers that are asked, each on a machine of its own: a thousand of them are mostly alike.
ASKED = 8


def survey(settings: ScheduleSettings, *, seconds: float = CONNECT) -> list[str]:
    """Connect to the scheduler that a schedule names, and ask some of its workers who they are.

    Parameters
    ----------
    settings
        The `schedule` section, with backend ``client``.
    seconds
        For connecting.

    Returns
    -------
    list of str
        What was found, for a person; a warning where nobody would do the work as it stands.

    Raises
    ------
    ConfigError
        No address is given.
    ScheduleError
        Nobody answers there, or a worker cannot do what a run would ask of it.
    """
    client = connect(settings, seconds=seconds)
    try:
        place = str(client.scheduler.address)
        try:
            workers, looks = client.sync(_ask, client)
        except (TimeoutError, OSError) as error:
            text = one_line(error) or f"within {ANSWER:.0f} s"
            return [
                f"  warning: the scheduler at {place} takes connections, and it or its workers do "
                f"not answer ({text}): they are busy, or cannot reach each other"
            ]
    finally:
        client.close(timeout=5)
    if not workers:
        return [
            f"  warning: the scheduler at {place} has no worker, and tasks wait until one is "
            f"there: dask worker {place}, or a cluster that scales or adapts"
        ]
    for look in looks:
        if isinstance(look, BaseException):
            raise ScheduleError(f"a worker of the Dask cluster failed: {one_line(look)}")
        complaint = unfit_environment(look)
        if complaint:
            raise ScheduleError(complaint)
    number = f"{workers} worker{'s' if workers > 1 else ''}"
    return [
        f"  the scheduler at {place} answers; {number}, mofal as here on {len(looks)} looked at"
    ]


async def _ask(client: Any) -> tuple[int, list[Any]]:
    """How many workers there are, and what some of them say of themselves."""
    state = await asyncio.wait_for(client.scheduler.identity(n_workers=-1), ANSWER)
    workers: Mapping[str, Mapping[str, Any]] = state["workers"]
    asked = list({str(facts["host"]): address for address, facts in workers.items()}.values())
    if not asked:
        return 0, []
    # Any place will do: whether the campaign's directory is theirs too, a run sees by its mark.
    expression = look_expression_of(Path("/"), patience=-1.0)
    looks = client.run(eval, expression, workers=asked[:ASKED], on_error="return")
    return len(workers), list((await asyncio.wait_for(looks, ANSWER)).values())
