"""What a pool is given and what it gives back: durable tasks and their outcomes.

Everything that costs compute is a durable task: the function writes its result to disk, complete
and atomically, before it returns, and what travels back is a small summary. So whatever dies, what
was finished is found again by its path.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mofal.errors import ScheduleError

Status = Literal["done", "found", "failed", "quarantined"]

#: Pickled keyword arguments beyond this many bytes are refused: data travels through the store.
MAX_KWARGS_BYTES = 1_000_000


@dataclass(frozen=True, eq=False)
class Task:
    """One piece of work, identified by (kind, key) and durable through `output`.

    Parameters
    ----------
    kind
        "train", "walk", "featurize", "label", "score", ...; the settings map it to a pool.
    key
        Hash of everything the result depends on. Two tasks of one kind and key are one task.
    function
        Importable function, called as ``function(**kwargs)``. It writes `output` atomically
        (temporary name, then rename) and returns a small summary that JSON can hold.
    kwargs
        Small and picklable (paths, settings), never arrays.
    output
        Path that exists if and only if the task is done; None if nothing is left on disk, and
        then a task is not found again.
    cost
        Relative length (any unit, the same for all tasks of the kind), None where unknown. Tasks
        of larger cost start first, and none starts that its worker's walltime would cut.
    priority
        Higher first, before `cost`.
    resumable
        The function checkpoints and continues where it stopped: walltime may cut it.
    width
        Workers that it can use at a time, its own among them: what it computes inside
        `mofal.schedule.spread` is computed by all that its pool can lend it.
    """

    kind: str
    key: str
    function: Callable[..., Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    cost: float | None = None
    priority: int = 0
    resumable: bool = False
    width: int = 1

    @property
    def name(self) -> str:
        """What dashboards and logs call this task: ``kind-key``."""
        return f"{self.kind}-{self.key}"

    def found(self) -> bool:
        """Whether its result is on disk already, whoever computed it."""
        return self.output is not None and Path(self.output).exists()


@dataclass
class Outcome:
    """How a task ended.

    Attributes
    ----------
    task
        The task.
    status
        "done" (computed now), "found" (its output was there), "failed" (the function raised; see
        `reason`), "quarantined" (it ended every worker that it met; its input is kept).
    summary
        What the function returned, {} where it did not run.
    reason
        One line, "" where there is nothing to say.
    wall_time
        Seconds on the worker.
    worker
        Name of the worker, "" where none ran it.
    """

    task: Task
    status: Status
    summary: Any = field(default_factory=dict)
    reason: str = ""
    wall_time: float = 0.0
    worker: str = ""

    @property
    def ok(self) -> bool:
        """Whether the task's output is there."""
        return self.status in ("done", "found")


def function_reference(function: Callable[..., Any]) -> str:
    """``module:qualified.name`` of a function that a worker can import.

    Raises
    ------
    ScheduleError
        For lambdas, closures and functions of a script: another process cannot import them.
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not module or not name or "<" in name or module == "__main__":
        raise ScheduleError(
            f"found the function {function!r}, which another process cannot import; expected a "
            "function at the top level of an installed module"
        )
    try:
        found = resolve(f"{module}:{name}")
    except (ImportError, AttributeError):
        found = None
    if found is not function:
        raise ScheduleError(
            f"found the function {module}:{name}, which does not resolve to itself when imported; "
            "expected a function at the top level of an installed module"
        )
    return f"{module}:{name}"


def resolve(reference: str) -> Callable[..., Any]:
    """The function behind ``module:qualified.name``."""
    module, _, name = reference.partition(":")
    target: Any = sys.modules.get(module) or import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    return target
