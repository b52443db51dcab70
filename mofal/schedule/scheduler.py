"""The scheduler process: Dask's scheduler, its address in a file, its events for the driver.

A process of its own, so that array work in the driver does not hold up the workers, and so that
its end is an event that the driver survives. It ends with the driver.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import dask
from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from mofal.schedule.attempt import TOPIC
from mofal.schedule.files import PRIVATE, end_with_parent, write_json
from mofal.schedule.security import load_security
from mofal.streams import forgive


class Watcher(SchedulerPlugin):
    """Tells the driver of workers that leave and of attempts that Dask itself could not run."""

    name = "mofal-watcher"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._facts: dict[str, tuple[float, dict[str, Any]]] = {}  # address -> when, what it said

    def log_event(self, topic: str, msg: Any) -> None:
        """Keep what a worker says of itself when it comes: the driver may not have heard it."""
        if topic == TOPIC and msg["type"] == "worker":
            self._facts[msg["address"]] = (time.monotonic(), msg)

    async def state(self) -> dict[str, Any]:
        """What is known here of workers and attempts; the driver compares it with its own."""
        now = time.monotonic()
        facts = []
        for since, said in self._facts.values():
            left = said["remaining"]
            facts.append({**said, "remaining": None if left is None else left - (now - since)})
        return {
            "workers": list(self._scheduler.workers),
            "facts": facts,
            "attempts": {str(key): task.state for key, task in self._scheduler.tasks.items()},
        }

    def remove_worker(
        self, scheduler: Scheduler, worker: str, *, stimulus_id: str, **kwargs: Any
    ) -> None:
        """Pass on that a worker left."""
        self._facts.pop(worker, None)
        scheduler.log_event(TOPIC, {"type": "gone", "address": worker})

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Pass on that an attempt ended in an error of Dask's (`run_attempt` raises none)."""
        if finish == "erred":
            task = self._scheduler.tasks.get(key)
            text = getattr(task, "exception_text", "") or "Dask could not run it"
            self._scheduler.log_event(
                TOPIC, {"type": "erred", "attempt": str(key), "reason": str(text)}
            )


async def _serve(options: argparse.Namespace) -> None:
    security = load_security(Path(options.tls)) if options.tls else None
    # Web pages have no password: none without a dashboard, and never those that pass on to others.
    pages = dask.config.get("distributed.scheduler.http.routes") if options.dashboard >= 0 else []
    pages = [page for page in pages if page != "distributed.http.proxy"]
    dask.config.set({"distributed.scheduler.http.routes": pages})
    scheduler = Scheduler(
        host=options.host,
        port=0,
        protocol="tls" if security else "tcp",
        security=security,
        dashboard=importlib.util.find_spec("bokeh") is not None and options.dashboard >= 0,
        dashboard_address=f"127.0.0.1:{max(options.dashboard, 0)}",
        # The driver judges: it knows which task a lost worker was at, Dask blames all it held.
        allowed_failures=10**9,
        # A task may hold Python's global lock for long; dead peers are found by TCP.
        worker_ttl=3600,
    )
    async with scheduler:
        watcher = Watcher(scheduler)
        scheduler.add_plugin(watcher)
        scheduler.handlers["mofal_state"] = watcher.state
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        services = [server.port for server in (scheduler.http_server,) if hasattr(server, "port")]
        write_json(
            Path(options.file),
            {
                "address": scheduler.address,
                "id": uuid.uuid4().hex,
                "dashboard": services[0] if services else 0,
            },
            mode=PRIVATE,
        )
        await stop.wait()
        Path(options.file).unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    """Run until SIGTERM or the driver's death."""
    forgive()
    parser = argparse.ArgumentParser(prog="mofal.schedule.scheduler")
    parser.add_argument("--file", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--tls", default="")
    parser.add_argument("--dashboard", type=int, default=0)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(argv)
    end_with_parent(options.parent)
    asyncio.run(_serve(options))


if __name__ == "__main__":
    main(sys.argv[1:])
