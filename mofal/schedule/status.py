"""What a campaign's schedule is doing, from its directory and the queue alone.

No driver need run. The event log says what happened to tasks and jobs, the beats of jobs say what
they did last, and SLURM's queue (where there is one) which of them still wait.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from mofal.schedule.events import complete_lines, read_line, schedule_directory
from mofal.schedule.files import LAST_TIME, Layout, read_beat
from mofal.schedule.lock import CampaignLock
from mofal.schedule.policy import Estimator

#: Ways in which a task ends.
ENDS = ("done", "found", "failed", "quarantined")


class StatusReader:
    """Reads the event log as it grows; `read` gives the facts so far.

    Parameters
    ----------
    directory
        Of the campaign.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._path = schedule_directory(directory) / "events.jsonl"
        self._place = 0
        self._tasks: dict[tuple[str, str], dict[str, Any]] = {}
        self._jobs: dict[str, dict[str, Any]] = {}
        self._messages: deque[dict[str, Any]] = deque(maxlen=50)
        self._estimator = Estimator()
        self._busy: Counter[str] = Counter()
        self._first: float | None = None
        self._dashboard = ""

    def _advance(self) -> None:
        try:
            stream = self._path.open("rb")
        except OSError:
            return
        with stream:
            stream.seek(self._place)
            for line, length in complete_lines(stream):
                self._place += length
                event = read_line(line)
                if event is not None:
                    self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        self._first = self._first or event["t"]
        name = event["event"]
        if name == "driver-start":
            # What the driver before had in hand is not known to have ended.
            for identity in [k for k, v in self._tasks.items() if v["state"] not in ENDS]:
                del self._tasks[identity]
        elif name in ("queued", "start", "end", "found", "lost", "claimed"):
            self._take_task(name, event)
        elif name in ("job", "adopted", "submitted", "job-end") and "job" in event:
            facts = self._jobs.setdefault(event["job"], {})
            facts.update(event, state="ended" if name == "job-end" else "there")
        elif name in ("message", "error"):
            self._messages.append(event)
        elif name == "scheduler":
            self._dashboard = event.get("dashboard", "")

    def _take_task(self, name: str, event: dict[str, Any]) -> None:
        identity = (event.get("kind", "?"), event.get("key", "?"))
        facts = self._tasks.setdefault(identity, {"state": "waiting"})
        if name == "found":
            if facts["state"] not in ENDS:
                facts.update(event, state="found")
            return
        known = {"queued": "waiting", "start": "running", "lost": "waiting", "claimed": "running"}
        facts.update(event, state=known.get(name) or event.get("status", "failed"))
        if name == "end" and facts["state"] == "done":
            seconds = float(event.get("wall_time", 0.0))
            self._busy[event.get("pool", "?")] += seconds  # type: ignore[assignment]
            self._estimator.add(identity[0], cost=facts.get("cost"), seconds=seconds)

    def estimator(self) -> Estimator:
        """What the log says of the lengths of tasks."""
        self._advance()
        return self._estimator

    def read(self, *, queue: bool = True) -> dict[str, Any]:
        """The facts; see `read_status`."""
        self._advance()
        lock = CampaignLock(self.directory)
        holder = lock.holder()
        kinds: dict[str, Counter[str]] = {}
        waiting: dict[str, Counter[str]] = {}
        failures = []
        for (kind, key), facts in self._tasks.items():
            counter = kinds.setdefault(kind, Counter())
            counter[facts["state"]] += 1
            counter["seconds"] += facts.get("wall_time", 0.0)
            if facts["state"] in ("waiting", "running"):
                waiting.setdefault(facts.get("pool", "?"), Counter())[facts["state"]] += 1
            if facts["state"] in ("failed", "quarantined"):
                failures.append(
                    {
                        "kind": kind,
                        "key": key,
                        "status": facts["state"],
                        "reason": facts.get("reason", ""),
                        "t": facts["t"],
                    }
                )
        pools = self._pools(waiting, queue=queue)
        alive = lock.held()
        if alive:  # what is in hand keeps workers busy too
            for facts in self._tasks.values():
                if facts["state"] == "running":
                    pool = pools[facts.get("pool", "?")]
                    pool["busy_hours"] += max(time.time() - facts["t"], 0.0) / 3600
        return {
            "driver": {**holder, "alive": alive},
            "dashboard": self._dashboard,
            "kinds": {kind: dict(counter) for kind, counter in sorted(kinds.items())},
            "pools": pools,
            "failures": sorted(failures, key=lambda failure: failure["t"]),
            "messages": list(self._messages),
            "since": self._first,
            "node_hours": sum(pool["hours"] for pool in pools.values()),
            "core_hours": sum(pool["core_hours"] for pool in pools.values()),
            # Without a driver nothing ends.
            "expected_end": self._expected_end(pools) if alive else None,
        }

    def _pools(self, waiting: dict[str, Counter[str]], *, queue: bool) -> dict[str, Any]:
        """Jobs, tasks and hours of each pool."""
        states = self._queue_states() if queue else {}
        layout = Layout(schedule_directory(self.directory))
        pools: dict[str, dict[str, Any]] = {}
        for name in sorted({job.get("pool", "?") for job in self._jobs.values()} | set(waiting)):
            counts = waiting.get(name, Counter())
            pools[name] = {
                "waiting": counts["waiting"],
                "running": counts["running"],
                "jobs_pending": 0,
                "jobs_running": 0,
                "reasons": {},
                "slots": 0,
                "hours": 0.0,
                "core_hours": 0.0,
                "busy_hours": self._busy[name] / 3600,
            }
        for job, facts in self._jobs.items():
            pool = pools[facts.get("pool", "?")]
            seconds, cores, slots = (facts.get(k, 0) for k in ("seconds", "cores", "slots"))
            if facts["state"] == "there":
                beat = read_beat(layout.beat(job)) or {}
                state, reason = states.get(job, (None, ""))
                if not beat and state not in ("RUNNING", "COMPLETING"):
                    pool["jobs_pending"] += 1
                    if state == "PENDING" and reason not in ("", "None"):
                        pool["reasons"][reason] = pool["reasons"].get(reason, 0) + 1
                elif beat and not beat.get("ended") and _beats(beat, state):
                    pool["jobs_running"] += 1
                    pool["slots"] += beat.get("slots", 1)
                seconds = beat.get("time", 0.0) - beat.get("started", 0.0)
                cores, slots = beat.get("cores", 0), beat.get("slots", 1)
            pool["hours"] += seconds / 3600
            pool["core_hours"] += seconds * cores / 3600
            pool.setdefault("slot_hours", 0.0)
            pool["slot_hours"] += seconds * max(slots, 1) / 3600
        return pools

    def _queue_states(self) -> dict[str, tuple[str, str]]:
        """SLURM's state of this campaign's jobs, and why they wait; {} where it does not answer."""
        if not any(job.get("slurm_id") for job in self._jobs.values()):
            return {}
        from mofal.schedule.slurm import SlurmCommands, SlurmError

        by_id = {job.get("slurm_id"): name for name, job in self._jobs.items()}
        try:
            listed = SlurmCommands().list()
        except SlurmError:
            return {}
        return {
            by_id[job.identity]: (job.state, job.reason) for job in listed if job.identity in by_id
        }

    def _expected_end(self, pools: dict[str, Any]) -> float | None:
        """Unix time at which the tasks that are known now will have ended; None: unknown."""
        work: Counter[str] = Counter()
        now = time.time()
        for (kind, _), facts in self._tasks.items():
            if facts["state"] not in ("waiting", "running"):
                continue
            expected = self._estimator.expected(kind, facts.get("cost"))
            if expected is None:
                return None
            spent = now - facts["t"] if facts["state"] == "running" else 0.0
            work[facts.get("pool", "?")] += max(expected - spent, 0.0)  # type: ignore[assignment]
        if not work or any(pools[pool]["slots"] == 0 for pool in work):
            return None
        end = now + max(seconds / pools[pool]["slots"] for pool, seconds in work.items())
        return end if end < LAST_TIME else None


def _beats(beat: dict[str, Any], state: str | None) -> bool:
    """Whether a job that says nothing of its end can still be there."""
    if state is not None:
        return state in ("RUNNING", "COMPLETING", "SUSPENDED")
    return time.time() - float(beat.get("time", 0.0)) < 60.0


def read_status(directory: str | os.PathLike[str], *, queue: bool = True) -> dict[str, Any]:
    """Facts of the schedule of a campaign directory.

    Parameters
    ----------
    directory
        Of the campaign.
    queue
        Ask SLURM for its queue, if the campaign has jobs there.

    Returns
    -------
    dict
        ``driver`` (host, pid, time of its heartbeat, alive); ``kinds`` ({kind: {waiting, running,
        done, found, failed, quarantined, seconds}}); ``pools`` ({pool: {waiting, running,
        jobs_pending, jobs_running, reasons ({why jobs are pending, as SLURM says: how many}),
        slots (workers there), hours (jobs x hours), core_hours, slot_hours, busy_hours}});
        ``node_hours``, ``core_hours`` (sums); ``failures`` (list of
        {kind, key, status, reason, t}); ``messages`` (the last ones, {t, text}); ``since`` (unix
        time of the first event); ``expected_end`` of the tasks known now (unix time or None);
        ``dashboard``.
    """
    return StatusReader(directory).read(queue=queue)


def format_status(status: dict[str, Any], *, failures: int = 5, messages: int = 5) -> str:
    """The facts as text for a terminal.

    Parameters
    ----------
    status
        From `read_status`.
    failures, messages
        How many of the last ones to show.
    """
    driver = status["driver"]
    if driver.get("alive"):
        lines = [f"driver   pid {driver.get('pid')} on {driver.get('host')}"]
        if status["dashboard"]:
            lines[0] += f", dashboard {status['dashboard']} (there)"
    elif driver.get("host"):
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(driver.get("time", 0.0)))
        lines = [f"driver   none runs; the last one was seen {last} on {driver.get('host', '?')}"]
    else:
        lines = ["driver   none runs"]
    if status["pools"]:
        columns = ("waiting", "running", "jobs_pending", "jobs_running")
        titles = ("tasks waiting", "running", "jobs pending", "running", "node-h", "core-h", "busy")
        lines += ["", f"{'pool':<12}" + "".join(f"{title:>14}" for title in titles)]
        for name, pool in status["pools"].items():
            slot_hours = pool.get("slot_hours", 0.0)
            busy = (
                f"{min(100 * pool['busy_hours'] / slot_hours, 100):.0f} %"
                if slot_hours > 0
                else "-"
            )
            lines.append(
                f"{name:<12}"
                + "".join(f"{pool[column]:>14}" for column in columns)
                + f"{pool['hours']:>14.2f}{pool['core_hours']:>14.2f}{busy:>14}"
            )
        for name, pool in status["pools"].items():
            if pool.get("reasons"):
                said = ", ".join(f"{reason} {n}" for reason, n in sorted(pool["reasons"].items()))
                lines.append(f"{name:<12}jobs wait in SLURM's queue: {said}")
    if status["kinds"]:
        words = ("waiting", "running", *ENDS)
        lines += ["", f"{'kind':<12}" + "".join(f"{word:>12}" for word in words) + f"{'hours':>9}"]
        for kind, counter in status["kinds"].items():
            lines.append(
                f"{kind:<12}"
                + "".join(f"{counter.get(word, 0):>12}" for word in words)
                + f"{counter.get('seconds', 0.0) / 3600:>9.2f}"
            )
    if status["expected_end"] is not None:
        left = max(status["expected_end"] - time.time(), 0.0)
        clock = time.strftime("%Y-%m-%d %H:%M", time.localtime(status["expected_end"]))
        lines += ["", f"the tasks known now end about {clock} (in {_duration(left)})"]
    if status["failures"]:
        lines += ["", f"{len(status['failures'])} tasks failed; the last:"]
        for failure in status["failures"][-failures:]:
            lines.append(
                f"  {failure['status']}  {failure['kind']} {failure['key']}: {failure['reason']}"
            )
    if status["messages"]:
        lines.append("")
        for message in status["messages"][-messages:]:
            clock = time.strftime("%H:%M:%S", time.localtime(message["t"]))
            text = str(message.get("text") or message.get("reason", "")).splitlines()
            lines.append(f"{clock}  {text[0] if text else ''}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
