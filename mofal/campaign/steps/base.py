"""What all stages share: what a stage is, and how its tasks find the campaign and are heard."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import Site
from mofal.campaign.plan import Step
from mofal.data.sealed import STARTS_OVER
from mofal.files import write_bytes
from mofal.schedule.task import Outcome, Task

Summary = dict[str, Any]
"""What a task says of itself when it is over."""


def _silent(site: Site, step: Step) -> Iterable[Path]:
    return ()


def _one(config: CampaignConfig, step: Step) -> int:
    return 1


@dataclass(frozen=True)
class Stage:
    """One stage of a campaign; `mofal.campaign.steps.STAGES` lists all of them.

    Attributes
    ----------
    title : str
        What a line of progress calls it.
    priority : int
        A free worker takes the highest first: the chain that the next cycle waits for, then the
        rest.
    tasks : callable
        Of (site, step, retry_failed): the tasks that a step still needs.
    finish : callable
        Of (site, step, outcomes, pending): makes the step's product of what its tasks left, where
        they did not make it themselves, and returns one line for a person.
    kind : str
        Of its tasks, which the pools know; the name of the stage where it is not given.
    expected : callable
        Of (config, step): how many tasks a step is going to have, as the campaign file says.
    notes : callable
        Of (site, step): the files in which tasks under way say how far they are.
    loses : bool
        Whether a task that ended every worker which it met is left out, and the step goes on.
    judged_title : str
        Its title of the held-out frames, where that is another one.
    closing : callable, optional
        Of (site, step, outcomes): one more task, once all others have ended.
    """

    title: str
    priority: int
    tasks: Callable[[Site, Step, bool], list[Task]]
    finish: Callable[[Site, Step, Sequence[Outcome], Collection[str]], str]
    kind: str = ""
    expected: Callable[[CampaignConfig, Step], int] = _one
    notes: Callable[[Site, Step], Iterable[Path]] = _silent
    loses: bool = False
    judged_title: str = ""
    closing: Callable[[Site, Step, Sequence[Outcome]], Task] | None = None


def one_task(
    site: Site,
    step: Step,
    priority: int,
    function: Callable[..., Any],
    *,
    width: int = 1,
    **arguments: Any,
) -> list[Task]:
    """Return the one task of a step that makes the step's product itself."""
    kind = "train" if step.stage == "control" else step.stage
    return [
        Task(
            kind=kind,
            key="-".join((step.stage, step.makes)).replace("/", "-").removesuffix(".zarr"),
            function=function,
            kwargs={"root": str(site.root), "identity": site.identity, **arguments},
            output=site.path(paths.marker(step.makes)),
            priority=priority,
            resumable=kind == "train",
            width=width,
        )
    ]


def counted(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Line of a step whose one task counted what it made."""
    return ", ".join(f"{v} {k}" for k, v in summary_of(outcomes).items() if v or k != "refused")


def summary_of(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    """What the one task of a step said of itself; empty where it was there already."""
    return (outcomes[0].summary if outcomes else {}) or {}


def progress_files(site: Site, pattern: str) -> Iterable[Path]:
    """Files of `notice` by a pattern of names."""
    return site.work("progress").glob(f"{pattern}.txt")


def on_site(function: Callable[..., Summary]) -> Callable[..., Summary]:
    """Give a task the campaign that its driver runs, or refuse another one.

    A worker reads the settings from the directory: whoever changes them there while the campaign
    runs must not change what comes out.
    """

    @functools.wraps(function)
    def task(root: str, identity: str, **arguments: Any) -> Summary:
        site = Site(root)
        site.refuse_changed(identity)
        return function(site, **arguments)

    return task


def notice(site: Site, name: str) -> Callable[[str], None]:
    """Let a driver on any machine see how far a task is: its last line, in one small file."""
    file = site.work("progress", f"{name}.txt")
    last = [0.0]

    def say(line: str) -> None:
        if time.monotonic() - last[0] < 0.5:
            return
        last[0] = time.monotonic()
        with contextlib.suppress(OSError):  # no result hangs on it
            write_bytes(file, line.encode(), durable=False)

    return say


class Heard:
    """Passes progress on, and keeps what a person should read when the task is over."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        """Take one line."""
        if line.endswith(STARTS_OVER):
            self.lines.append(line)
        self.say(line)

    @property
    def notes(self) -> Summary:
        """For the summary of a task: nothing, mostly."""
        return {"note": "; ".join(self.lines)} if self.lines else {}
