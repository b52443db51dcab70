"""The driver: looks what is there, has the next steps done, and stops when nothing is left.

It keeps no state of its own. Killed at any moment and started again, it finds what is finished on
the disk and goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mofal.campaign import plan
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import FACTS, RECORDS, Site, changed_file, write_config
from mofal.campaign.estimate import unfit_cores
from mofal.campaign.loading import as_begun, load_config, parse_config
from mofal.campaign.plan import Step
from mofal.campaign.prepare import OURS, examine, settle
from mofal.campaign.steps import STAGES, closing, expand, failure, finish
from mofal.campaign.steps.label import closed_failures, record_quarantine
from mofal.campaign.steps.mechanics import campaign_mechanics
from mofal.campaign.view import open_campaign
from mofal.clusters.matched import complaints
from mofal.errors import CampaignError
from mofal.files import is_being_written, is_temporary, remove_leftovers
from mofal.reference.cache import LabelCache
from mofal.schedule import CampaignLock, Pools
from mofal.schedule.client import CONNECT, check_client
from mofal.schedule.survey import survey

if TYPE_CHECKING:
    from distributed import Client

    from mofal.campaign.view import CampaignView
    from mofal.schedule.task import Outcome, Task

Say = Callable[[str], None]


def _silent(_: str) -> None:
    return None


@contextlib.contextmanager
def _here(client: Client | None) -> Iterator[None]:
    """Have what the driver itself looks at computed in its own threads.

    A session's client is Dask's default: on its workers a look at a few labels would wait behind
    labels that take hours.
    """
    if client is None:
        yield
        return
    import dask

    with dask.config.set(scheduler="threads"):
        yield


class Campaign:
    """A campaign: a validated file and a directory.

    Parameters
    ----------
    config : path, mapping or CampaignConfig
        The campaign file or its content.
    directory : path, optional
        Where it lives; default: the name of the campaign, in the current directory.

    Raises
    ------
    ConfigError
        The file cannot be meant; says where and why.
    StoreError
        The directory is a campaign whose ``campaign.json`` is damaged.

    Examples
    --------
    >>> import mofal
    >>> content = {
    ...     "name": "first", "seed": 1, "cycles": 0,
    ...     "systems": {"pristine": {"build": "S_pr", "cell": "primitive"}},
    ...     "seed_data": {"example": "uio66-gfn1", "frames": 5},
    ...     "potential": {"start": "example:uio66-gfn1"},
    ...     "schedule": {"backend": "inline"},
    ... }
    >>> campaign = mofal.Campaign(content, directory="my-first").run()
    >>> campaign.training_set().sizes["structure"]
    5
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any] | CampaignConfig,
        *,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(config, CampaignConfig):
            self.config = config
        elif isinstance(config, Mapping):
            self.config = parse_config(dict(config))
        else:
            self.config = load_config(Path(config))
        self.directory = Path(directory if directory is not None else self.config.name)
        self.site = Site(self.directory, self.config)
        if self.site.exists(FACTS):
            self.config = as_begun(self.config, self.site.facts.get("settings", {}))
            self.site = Site(self.directory, self.config)

    def __repr__(self) -> str:
        return f"Campaign({self.config.name!r}, directory={str(self.directory)!r})"

    def run(
        self,
        *,
        progress: Say | None = None,
        retry_failed: bool = False,
        client: Client | None = None,
    ) -> CampaignView:
        """Run, or go on with, the campaign until nothing is left to do.

        Parameters
        ----------
        progress : callable, optional
            Called with one line of text at a time.
        retry_failed : bool
            Give labels whose attempts failed one more, also those of clusters of earlier cycles,
            which join the cycle that is open. Groups of labels that are finished stay as they are.
        client : distributed.Client, optional
            Whose workers do the work, whatever the file's `schedule` says: of a ``LocalCluster``,
            a ``dask_jobqueue.SLURMCluster`` (also one that adapts, from no worker), a scheduler
            that was started by hand. It stays open. The file's pools say which kinds of task go
            where the workers declare resources of these names.

        Returns
        -------
        CampaignView
            What `mofal.open` returns.

        Raises
        ------
        CampaignError
            The directory is another campaign's or another driver runs in it; or a step that the
            campaign cannot do without has failed (run again to retry it).
        ScheduleError
            Workers cannot be had.
        """
        if client is not None:
            check_client(client)
        refuse_foreign(self.directory)
        if (
            client is None
            and self.config.schedule.backend == "client"
            and not self.site.exists(FACTS)
        ):
            survey(
                self.config.schedule, seconds=CONNECT
            )  # before the preparation, which takes long
        findings = examine(self.site)
        with CampaignLock(self.directory), _here(client):
            self._clear(client)
            display = Display(self.site, progress or _silent)
            # Another driver may have come first, with other settings.
            if findings is not None and self.site.exists(FACTS):
                findings = examine(self.site)
            if findings is not None:
                settle(self.site, findings)
            else:
                note = changed_file(self.site)
                if note:
                    display.line(note)
                write_config(self.site.root, self.config)
            for note in findings.notes if findings is not None else ():
                display.line(f"note: {note}")
            if self.config.selection.blueprints is not None:
                for line in complaints(self.config.selection.blueprints):
                    display.line(line)
            if retry_failed:
                note = closed_failures(self.site)
                if note:
                    display.line(note)
            steps = self.site.steps()
            left = plan.unfinished(steps, self.site.exists)
            if not left and self.config.mechanics is None:
                display.line("nothing is left to do: every step of the campaign is finished")
                return open_campaign(self.directory)
            if len(left) < len(steps):
                display.line(f"going on: {len(steps) - len(left)} of {len(steps)} steps are done")
            warning = unfit_cores(self.site) if client is None else ""
            if warning:
                display.line(warning)
            with Pools(
                self.config.schedule,
                directory=self.directory,
                progress=display.pool,
                client=client,
            ) as pools:
                _Driver(self.site, pools, display, retry_failed=retry_failed).run()
                if self.config.mechanics is not None:
                    campaign_mechanics(self.site, pools, display.line)
        return open_campaign(self.directory)

    def _clear(self, client: Client | None = None) -> None:
        """Remove what killed processes left half-written; the lock is held."""
        pools = self.config.schedule.effective_pools().values()
        # Workers of a dead driver may be at work elsewhere, under ids that mean nothing here.
        remote = client is not None or any(p.backend in ("slurm", "client") for p in pools)
        elsewhere_s = 86400.0 if remote else 0.0
        remove_leftovers(
            self.site.root, spare=lambda path: is_being_written(path, elsewhere_s=elsewhere_s)
        )
        LabelCache(self.site.root / RECORDS).sweep(older_than_s=elsewhere_s or 10.0)


def refuse_foreign(directory: Path) -> None:
    """Refuse a place that cannot become a campaign, before anything is written into it."""
    if directory.exists() and not directory.is_dir():
        raise CampaignError(f"{directory} is a file; a campaign lives in a directory of its own")
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise CampaignError(f"{parent} cannot be written; give another place with --directory")
    if directory.is_dir() and not (directory / "campaign.json").exists():
        names = (p.name for p in directory.iterdir())
        foreign = sorted(n for n in names if n not in OURS and not is_temporary(n))
        if foreign:
            raise CampaignError(
                f"{directory} is not empty ({foreign[0]}) and holds no campaign; "
                "give another directory: mofal run campaign.yaml --directory NEW"
            )


@dataclass
class _Open:
    """A step whose tasks are under way."""

    names: set[str]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    closing: bool = False

    @property
    def settled(self) -> int:
        return len(self.outcomes)


class _Driver:
    def __init__(
        self, site: Site, pools: Pools, display: Display, *, retry_failed: bool = False
    ) -> None:
        self.site = site
        self.retry_failed = retry_failed
        self.pools = pools
        self.display = display
        self.completions = pools.completions()
        self.open: dict[Step, _Open] = {}
        self.waiting: dict[str, list[Step]] = {}
        self.settled: dict[str, Outcome] = {}

    def run(self) -> None:
        while True:
            steps = self.site.steps()
            left = plan.unfinished(steps, self.site.exists)
            if not left and not self.open:
                return
            started = self._start(plan.ready(steps, self.site.exists))
            if self._finish_settled() or started:
                continue
            if not self.open:
                raise CampaignError(
                    f"nothing can be done and {len(left)} steps are left, the first is "
                    f"{left[0].name}: it needs {', '.join(left[0].needs)}"
                )
            outcome = self.completions.next(timeout=1.0)
            if outcome is not None:
                self._settle(outcome)
            for step, state in self.open.items():
                self.display.moved(step, state.settled, len(state.names))

    def _start(self, ready: list[Step]) -> bool:
        started = False
        for step in sorted(ready, key=lambda s: -STAGES[s.stage].priority):
            if step in self.open:
                continue
            tasks = expand(self.site, step, retry_failed=self.retry_failed)
            state = self.open[step] = _Open({t.name for t in tasks})
            self.display.began(step, len(tasks))
            for task in tasks:
                self._submit(step, state, task)
            started = True
        return started

    def _submit(self, step: Step, state: _Open, task: Task) -> None:
        known = self.settled.get(task.name)
        if known is not None:
            state.outcomes[task.name] = known
            return
        self.waiting.setdefault(task.name, []).append(step)
        self.completions.add(self.pools.submit(task))

    def _settle(self, outcome: Outcome) -> None:
        name = outcome.task.name
        if outcome.ok:
            self.settled[name] = outcome
        steps = [step for step in self.waiting.pop(name, ()) if step in self.open]
        if outcome.status == "quarantined" and outcome.task.kind == "label":
            record_quarantine(self.site, outcome)
        for step in steps:
            self.open[step].outcomes[name] = outcome
        # Whatever step waited for it: nobody makes it any more.
        for step in steps:
            why = failure(step, outcome)
            if why:
                self._stop(why)

    def _stop(self, why: str) -> NoReturn:
        """Keep the labels that are in hand, then stop: the same command goes on from there.

        Raises
        ------
        CampaignError
            Always.
        """
        said = False
        for outcome in self.completions.wind_down(("label",)):
            if not said:
                self.display.line("stopping; labels in hand come to their end first")
                said = True
            if outcome.status == "quarantined" and outcome.task.kind == "label":
                record_quarantine(self.site, outcome)
        raise CampaignError(why)

    def _closing(self, step: Step, state: _Open) -> Task | None:
        outcomes = list(state.outcomes.values())
        return (
            None if any(failure(step, o) for o in outcomes) else closing(self.site, step, outcomes)
        )

    def _finish_settled(self) -> bool:
        """Finish steps whose tasks have all ended (of labels: a quorum of them)."""
        done = []
        for step, state in self.open.items():
            share = waited_for(self.site.config, step)
            if state.settled >= share * len(state.names) - 1e-9:
                done.append(step)
        for step in done:
            state = self.open[step]
            last = None if state.closing else self._closing(step, state)
            if last is not None:
                state.closing = True
                state.names.add(last.name)
                self._submit(step, state, last)
                continue
            del self.open[step]
            text = finish(
                self.site,
                step,
                list(state.outcomes.values()),
                pending=state.names - state.outcomes.keys(),
            )
            self.display.ended(step, text)
            if step.stage == "train" and self.site.config.schedule.performance_reports:
                name = f"cycle-{step.cycle:03d}.html"
                self.pools.performance_report(self.site.root / "schedule" / "performance" / name)
            if not self.site.exists(step.makes):
                raise CampaignError(f"{step.name} ended without its product {step.makes}")
        return bool(done)


def waited_for(config: CampaignConfig, step: Step) -> float:
    """Share of its tasks that a step waits for: the quorum for a cycle's labels.

    All of them in the last cycle: after it comes none that a late label could join. (Where `stop`
    ends a campaign earlier, that is known only once the labels of that cycle have been gathered.)
    """
    if step.stage != "label" or step.holdout or not 0 < step.cycle < config.cycles:
        return 1.0
    return config.quorum


_COUNTS = re.compile(r"[a-z]+ \d+/\d+( |,|$)")


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
        stage = STAGES[step.stage]
        verb = (stage.judged_title if step.holdout else "") or stage.title
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
        notes = STAGES[step.stage].notes(self.site, step)
        try:
            newest = max(notes, key=lambda p: p.stat().st_mtime, default=None)
            # Notes of tasks that have ended stay where they are.
            if newest is None or time.time() - newest.stat().st_mtime > STALE:
                return ""
            return newest.read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, ValueError):
            return ""
