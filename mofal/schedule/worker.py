"""One worker process: a Dask worker with one slot, which runs attempts and tells the driver.

Started by `job.py`. When it loses its scheduler it finishes the task at hand (its result is durable
and found by the next driver), and then says so to its job: by a word on a pipe beside its exit
status, with which a task may end too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
from distributed import Worker
from distributed.comm.addressing import get_address_host

from mofal.schedule.attempt import STATE, TOPIC
from mofal.schedule.files import (
    EXIT_LOST,
    SIGN_CONNECTED,
    SIGN_LOST,
    Layout,
    adopt_orphans,
    end_with_parent,
    read_json,
)
from mofal.schedule.security import load_security
from mofal.streams import forgive


def own_address(peer: str) -> str:
    """The address of this host from which it reaches `peer`: the one to bind to."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # nothing is sent; the kernel picks the route
        return str(probe.getsockname()[0])


async def _started(worker: Worker) -> str:
    """Connect; what went wrong, "" if nothing did."""
    try:
        await worker
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


async def _work(spec: dict[str, Any], options: argparse.Namespace) -> int:
    scheduler = read_json(STATE.layout.scheduler_file)
    if scheduler is None:
        return EXIT_LOST
    address = scheduler["address"]
    security = load_security(STATE.layout.tls) if spec["tls"] else None
    where: dict[str, Any] = (
        {"interface": spec["interface"]}
        if spec["interface"]
        else {"host": own_address(get_address_host(address))}
    )
    worker = Worker(
        address,
        nthreads=1,
        name=options.name,
        resources={spec["pool"]: 1},
        memory_limit=0,  # results go to disk, not into the worker; job.py watches the process
        local_directory=tempfile.gettempdir(),
        security=security,
        dashboard=False,
        dashboard_address="127.0.0.1:0",
        death_timeout=20,
        **where,
    )
    starting = asyncio.ensure_future(_started(worker))
    while not starting.done():
        await asyncio.wait([starting], timeout=0.5)
        current = read_json(STATE.layout.scheduler_file)
        if current is not None and current["id"] != scheduler["id"]:
            return EXIT_LOST  # no use in knocking at the old one's door
    if starting.result():
        print(f"worker {options.name}: {starting.result()}", file=sys.stderr, flush=True)
        return EXIT_LOST
    worker.log_event(
        TOPIC,
        {
            "type": "worker",
            "name": options.name,
            "address": worker.address,
            "pool": spec["pool"],
            "job": spec["name"],
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "remaining": None if STATE.ends_at == float("inf") else STATE.ends_at - time.time(),
        },
    )
    os.write(options.sign, SIGN_CONNECTED)
    await worker.finished()
    while STATE.busy.is_set():  # a label that took hours is not thrown away with its driver
        await asyncio.sleep(0.1)
    return EXIT_LOST


def main(argv: list[str] | None = None) -> None:
    """Run one worker until it is asked to end or its scheduler is gone."""
    forgive()
    parser = argparse.ArgumentParser(prog="mofal.schedule.worker")
    parser.add_argument("spec")
    parser.add_argument("--name", required=True)
    parser.add_argument("--ends-at", type=float, default=float("inf"))
    parser.add_argument("--sign", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(argv)
    end_with_parent(options.parent)
    adopt_orphans()  # what a label starts counts as this worker's, whatever it does to hide
    spec = read_json(Path(options.spec))
    if spec is None:
        sys.exit(f"found no job at {options.spec}; expected the file that the driver wrote")
    STATE.layout = Layout(spec["root"])
    STATE.name, STATE.job, STATE.ends_at = options.name, spec["name"], options.ends_at
    # A task may hold Python's global lock for as long as it likes: no warnings about slow ticks.
    dask.config.set({"distributed.admin.tick.limit": "1h"})
    dask.config.set({"distributed.worker.http.routes": []})  # web pages without a password
    # Lazy data that a task loads is computed here, in its own threads: Dask would send it to the
    # scheduler, where it waits behind the very tasks that wait for it.
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    name = "synchronous" if threads == 1 else "threads"
    dask.config.set({"scheduler": name, "num_workers": threads})
    status = asyncio.run(_work(spec, options))
    sys.stdout.flush()
    if status == EXIT_LOST:
        os.write(options.sign, SIGN_LOST)
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
