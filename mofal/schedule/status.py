"""What a campaign's schedule is doing, from its directory alone: also when no driver runs."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from mofal.schedule.events import read_events
from mofal.schedule.lock import CampaignLock


def read_status(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Facts of the schedule of a campaign directory.

    Returns
    -------
    dict
        ``driver`` (host, pid, alive), ``kinds`` ({kind: {waiting, running, done, found, failed,
        quarantined, wall_time (s)}}), ``failures`` (list of {kind, key, status, reason}),
        ``messages`` (the last ones), ``since`` (unix time of the first event).
    """
    lock = CampaignLock(directory)
    holder = lock.holder()
    state: dict[tuple[str, str], dict[str, Any]] = {}
    messages: list[dict[str, Any]] = []
    first = None
    for event in read_events(directory):
        first = first or event["t"]
        name = event["event"]
        if name == "driver-start":
            # What the driver before had in hand was not finished.
            state = {k: v for k, v in state.items() if v["state"] not in ("waiting", "running")}
        elif name in ("queued", "start", "end", "found", "lost", "claimed"):
            identity = (event.get("kind", "?"), event.get("key", "?"))
            known = {"queued": "waiting", "start": "running", "lost": "waiting", "found": "found"}
            word = known.get(name) or event.get("status", "running")
            before = state.get(identity, {})
            if name == "found" and before.get("state") in ("done", "found"):
                continue
            state[identity] = {**before, **event, "state": word}
        elif name in ("message", "error"):
            messages.append(event)
    kinds: dict[str, Counter[str]] = {}
    failures = []
    for (kind, key), facts in state.items():
        counter = kinds.setdefault(kind, Counter())
        counter[facts["state"]] += 1
        counter["wall_time"] += facts.get("wall_time", 0.0)
        if facts["state"] in ("failed", "quarantined"):
            failures.append(
                {"kind": kind, "key": key, "status": facts["state"], "reason": facts.get("reason")}
            )
    alive = bool(holder) and not holder.get("ended") and lock._alive(holder)
    return {
        "driver": {**holder, "alive": alive or (bool(holder) and lock._is_self(holder))},
        "kinds": {kind: dict(counter) for kind, counter in sorted(kinds.items())},
        "failures": failures,
        "messages": messages[-5:],
        "since": first,
    }


def format_status(status: dict[str, Any]) -> str:
    """The facts as text for a terminal."""
    driver = status["driver"]
    lines = []
    if driver.get("alive"):
        lines.append(f"driver   pid {driver.get('pid')} on {driver.get('host')}")
    else:
        lines.append("driver   none runs")
    words = ("waiting", "running", "done", "found", "failed", "quarantined")
    if status["kinds"]:
        lines.append(f"{'kind':<12}" + "".join(f"{word:>12}" for word in words) + f"{'hours':>9}")
        for kind, counter in status["kinds"].items():
            hours = counter.get("wall_time", 0.0) / 3600
            lines.append(
                f"{kind:<12}"
                + "".join(f"{counter.get(word, 0):>12}" for word in words)
                + f"{hours:>9.2f}"
            )
    for failure in status["failures"][-5:]:
        lines.append(
            f"{failure['status']}  {failure['kind']} {failure['key']}: {failure['reason']}"
        )
    for message in status["messages"]:
        clock = time.strftime("%H:%M:%S", time.localtime(message["t"]))
        lines.append(f"{clock}  {message.get('text') or message.get('reason', '')}")
    return "\n".join(lines)
