"""Running one task, wherever: the part that driver threads and workers share."""

from __future__ import annotations

import json
import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mofal.errors import ScheduleError
from mofal.schedule.task import MAX_KWARGS_BYTES, Task, function_reference, resolve

Result = dict[str, Any]
LONGEST = 100_000
"""Characters of a traceback that are kept, from its end: an exception may hold a whole array."""


def make_payload(task: Task) -> dict[str, Any]:
    """What travels to a worker: names, paths and the pickled keyword arguments.

    The function goes by name and is imported inside the attempt, so that a worker that lacks its
    module reports a failure (Dask would end the worker instead).
    """
    try:
        kwargs = pickle.dumps(dict(task.kwargs), protocol=5)
    except Exception as error:
        raise ScheduleError(
            f"found arguments of {task.name} that cannot be pickled ({error}); expected paths and "
            "settings"
        ) from error
    if len(kwargs) > MAX_KWARGS_BYTES:
        raise ScheduleError(
            f"found {len(kwargs) / 1e6:.1f} MB of arguments for {task.name}; expected less than "
            f"{MAX_KWARGS_BYTES / 1e6:.0f} MB: write the data to the store and pass its path"
        )
    return {
        "name": task.name,
        "function": function_reference(task.function),
        "kwargs": kwargs,
        "output": None if task.output is None else str(task.output),
    }


def execute_payload(payload: Mapping[str, Any]) -> Result:
    """Run what `make_payload` packed; never raises on what the task does."""

    def call() -> Any:
        return resolve(payload["function"])(**pickle.loads(payload["kwargs"]))

    return _execute(call, output=payload["output"])


def execute_task(task: Task) -> Result:
    """Run a task in this thread; never raises on what the task does."""
    return _execute(lambda: task.function(**task.kwargs), output=task.output)


def _execute(call: Callable[[], Any], *, output: str | Path | None) -> Result:
    """``{status, summary, reason, traceback, wall_time}`` of a call."""
    start = time.perf_counter()
    result: Result = {"status": "done", "summary": {}, "reason": "", "traceback": ""}
    path = None if output is None else Path(output)
    try:
        if path is not None and path.exists():
            result["status"] = "found"
        else:
            result["summary"] = _checked_summary(call())
            if path is not None and not path.exists():
                raise ScheduleError(f"the task returned, but its output {path} is not there")
    except (Exception, SystemExit) as error:
        result.update(status="failed", summary={}, reason=one_line(error))
        text = traceback.format_exc()
        result["traceback"] = text if len(text) < LONGEST else text[-LONGEST:]
    result["wall_time"] = time.perf_counter() - start
    return result


def _checked_summary(summary: Any) -> Any:
    """A summary as JSON gives it back, so that it is the same whichever way it came."""
    if summary is None:
        return {}
    try:
        return json.loads(json.dumps(summary))
    except (TypeError, ValueError) as error:
        raise ScheduleError(
            f"found a summary that JSON cannot hold ({error}); expected numbers, strings, lists"
        ) from error


def one_line(error: BaseException) -> str:
    """``Class: first line`` of an error, the class left out for errors that mofal words itself."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    if len(text) > 1000:
        text = text[:1000] + " ..."
    kind = type(error).__name__
    if type(error).__module__.startswith("mofal.") and text:
        return text
    return f"{kind}: {text}" if text else kind
