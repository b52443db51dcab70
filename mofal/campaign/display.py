"""What a person sees while a campaign runs: a line when something begins, moves on, or ends."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from mofal.campaign.plan import Step
from mofal.campaign.site import Site

_COUNTS = re.compile(r"[a-z]+ \d+/\d+( |,|$)")
_VERBS = {
    "sample": "structures",
    "label": "labels",
    "train": "training",
    "control": "training of the control",
    "density": "density of what is known",
    "walk": "walks",
    "select": "clusters",
    "propose": "test before learning",
    "judge": "hold-out",
    "hold": "how long it holds",
}


SILENT = 10.0
"""Seconds after which a line is said whether there is news or not."""
STALE = 120.0
"""Seconds after which what a task has said last is no news."""


class Display:
    """Prints progress lines, none more often than every few seconds per step.

    Parameters
    ----------
    say : callable
        Takes one line.
    every : float
        Seconds between two lines about the same step.
    """

    def __init__(self, site: Site, say: Callable[[str], None], *, every: float = 5.0) -> None:
        self.site = site
        self.say = say
        self.every = every
        self.start = time.monotonic()
        self._began: dict[Step, float] = {}
        self._spoke: dict[Step, float] = {}
        self._shown: dict[Step, str] = {}
        self._last = self.start

    def clock(self) -> str:
        """Time since the driver started, minutes and seconds."""
        minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def title(self, step: Step) -> str:
        """What a step is called in a line."""
        head = "hold-out" if step.holdout else f"cycle {step.cycle}" if step.cycle else "seed"
        verb = (
            _VERBS[step.stage]
            if not step.holdout
            else {"judge": "judged"}.get(step.stage, _VERBS[step.stage])
        )
        return f"{head:9s} {step.system:8s} {verb}"

    def line(self, text: str) -> None:
        """Say something that is about no step."""
        self._last = time.monotonic()
        self.say(f"[{self.clock()}] {text}")

    def pool(self, text: str) -> None:
        """Say what the pools say, their counts aside: those stand in the lines of the steps."""
        if not _COUNTS.match(text):
            self.line(text)

    def began(self, step: Step, n: int) -> None:
        """Note that a step has started, with so many tasks."""
        self._began[step] = self._spoke[step] = time.monotonic()

    def moved(self, step: Step, done: int, n: int) -> None:
        """Say how far a step is, if it was silent for a while; in any case that it goes on."""
        now = time.monotonic()
        if now - self._spoke.get(step, now) < self.every:
            return
        text = "; ".join(t for t in (f"{done}/{n}" if n > 1 else "", self._inside(step)) if t)
        if text == self._shown.get(step, ""):
            # Nothing new to say of this step: that it goes on is said where all are silent.
            if now - self._last < SILENT:
                return
            took = now - self._began.get(step, now)
            self.line(f"{self.title(step)}: {text or 'under way'}, for {took:.0f} s")
        else:
            self.line(f"{self.title(step)}: {text}")
        self._shown[step] = text
        self._spoke[step] = now

    def ended(self, step: Step, text: str) -> None:
        """Say what a step came to."""
        took = time.monotonic() - self._began.get(step, time.monotonic())
        after = f" ({took:.0f} s)" if took >= 1 else ""
        self.line(f"{self.title(step)}: {text}{after}")

    def _inside(self, step: Step) -> str:
        """What tasks of a step that are under way have said last: the newest of them."""
        folder = self.site.work("progress")
        cycle = f"{step.cycle:03d}"
        name = {
            "train": f"train-{cycle}.txt",
            "control": f"control-{cycle}.txt",
            "density": f"density-{cycle}.txt",
            "walk": f"walk-{cycle}-{step.system}-*.txt",
            "select": f"select-{cycle}-{step.system}.txt",
        }.get(step.stage)
        if step.stage == "hold":
            folder, name = self.site.work(step.makes), "*.progress"
        if name is None:
            return ""
        try:
            newest = max(folder.glob(name), key=lambda p: p.stat().st_mtime, default=None)
            # Notes of tasks that have ended stay where they are.
            if newest is None or time.time() - newest.stat().st_mtime > STALE:
                return ""
            return newest.read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, ValueError):
            return ""
