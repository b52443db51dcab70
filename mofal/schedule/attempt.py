"""One attempt at one task, as a worker runs it."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import Any

from distributed import get_worker

from mofal.schedule.execution import execute_payload
from mofal.schedule.files import Layout, write_json
from mofal.schedule.wide import HERE

#: Topic of the events through which workers and scheduler tell the driver what happens.
TOPIC = "mofal"


class State:
    """What the threads of this process share."""

    layout: Layout
    name = ""
    job = ""
    ends_at = float("inf")  # time.time
    busy = threading.Event()


STATE = State()


def run_attempt(payload: dict[str, Any]) -> None:
    """Run a task in this worker and send its result to the driver; what Dask calls.

    The result goes as an event with the stream on which Dask's own messages go: nothing has to be
    fetched from a worker that may be gone by then.
    """
    worker = get_worker()
    claim = STATE.layout.claim(payload["name"])
    STATE.busy.set()
    try:
        with suppress(OSError):  # a full disk: the task itself will say so
            write_json(claim, {"worker": STATE.name, "job": STATE.job, "time": time.time()})
        HERE.resource = payload["attempt"] if payload.get("spread") else ""
        result = execute_payload(payload)
    finally:
        with suppress(OSError):
            claim.unlink(missing_ok=True)
        STATE.busy.clear()
    # As JSON: Dask's own packing of messages turns lists into tuples.
    message = {"type": "finished", "attempt": payload["attempt"], "result": json.dumps(result)}
    worker.log_event(TOPIC, message)
