"""One attempt at one task on a worker that mofal did not start.

Such a worker knows nothing of mofal: it may have several threads, Dask may compute on the cluster
what a task asks it for, and the numbers of threads are somebody else's. Each attempt brings what it
needs and takes it away again, for the process may be the user's own (``Client(processes=False)``).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
from distributed import get_worker

from mofal.reference.processes import MEMORY_LIMIT
from mofal.schedule.execution import execute_payload
from mofal.schedule.files import lock_of

#: One task at a time in a process: torch's random state, numbers of threads and the environment are
#: the process's.
_TURN = threading.Lock()
#: Seconds between two looks at a task that another worker has in hand.
POLL = 0.5

#: What the look at a worker runs. It travels as text, since a worker on which mofal cannot be
#: imported ends itself over a function of mofal's, and everything after waits for ever.
LOOK = """
import json, os, socket, sys, time
facts = {"host": socket.gethostname(), "python": sys.version.split()[0], "version": "", "error": ""}
try:
    import mofal, mofal.schedule.foreign
    facts["version"] = mofal.__version__
    facts["place"] = os.path.dirname(mofal.__file__)
except Exception as error:
    facts["error"] = f"{type(error).__name__}: {error}"
deadline = time.time() + patience
while True:  # directories of a network file system may be some seconds old
    try:
        os.listdir(os.path.dirname(path))
        with open(path) as file:
            facts["mark"] = json.load(file)["mark"]
        break
    except (OSError, ValueError, KeyError):
        facts["mark"] = ""
        if time.time() > deadline:
            break
        time.sleep(0.25)
facts["writable"] = os.access(os.path.dirname(path), os.W_OK)
"""


def look_expression(path: Path, *, patience: float) -> str:
    """The look as an expression for `eval`, which every worker can import."""
    names = {"path": str(path), "patience": patience}
    return f"(lambda names: (exec({LOOK!r}, names), names['facts'])[1])({names!r})"


def run_attempt(payload: dict[str, Any]) -> dict[str, Any]:
    """Run a task in this worker; what Dask calls.

    Parameters
    ----------
    payload
        From `make_payload`, with ``attempt``, ``key``, ``topic``, ``claims``, ``pool``,
        ``threads``, ``ranks`` and ``environment`` beside.

    Returns
    -------
    dict
        As `execute_payload`, with the worker's name; its result is on disk before this returns.
    """
    worker = get_worker()
    name = str(worker.name)
    claim = lock_of(Path(payload["claims"]), payload["name"])
    limit = getattr(worker.memory_manager, "memory_limit", None)
    with _TURN, _alone(claim, payload["key"]), _settings(payload, memory=limit):
        message = {"type": "started", "attempt": payload["attempt"], "name": name}
        with contextlib.suppress(Exception):  # nothing but a display hangs on it
            worker.log_event(payload["topic"], message)
        result = execute_payload(payload)
    # As JSON, as the other backends have it: what a summary holds is the same everywhere.
    return {"result": json.dumps(result), "worker": name}


@contextlib.contextmanager
def _alone(path: Path, key: str) -> Iterator[None]:
    """Wait for whoever has this task in hand: one that Dask or its driver gave up runs on.

    An operating-system lock, so that it goes with the process that holds it, however that ends. On
    a file system without locks nobody waits; results are renamed into place there as everywhere.
    What is in the file says on how many workers that are no more an attempt had begun.
    """
    fd = _lock(path)
    try:
        if fd is not None:
            with contextlib.suppress(OSError):
                os.write(fd, f"{key}\n".encode())
        yield
    finally:
        if fd is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: nobody else can have it
            os.close(fd)


def _lock(path: Path) -> int | None:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == os.stat(path).st_ino:
                return fd
        except FileNotFoundError:
            pass  # it was removed between the two: once more
        except BlockingIOError:
            time.sleep(POLL)
        except OSError:
            os.close(fd)
            return None
        os.close(fd)


@contextlib.contextmanager
def _settings(payload: dict[str, Any], *, memory: int | None) -> Iterator[None]:
    """Threads, environment and Dask's scheduler as a worker of mofal's own pools has them."""
    from threadpoolctl import threadpool_limits

    threads = int(payload["threads"])
    names = ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR")
    environment = {f"{name}_NUM_THREADS": str(threads) for name in names}
    environment |= {
        "MOFAL_POOL": payload["pool"],
        "MOFAL_THREADS": str(threads),
        "MOFAL_MPI_RANKS": str(payload["ranks"]),
        **payload["environment"],
    }
    if memory:  # Dask counts the worker's process alone, and not what a label starts
        environment[MEMORY_LIMIT] = str(int(memory))
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    torch: Any = sys.modules.get("torch")  # where it comes later, it reads the environment
    torch_threads = None if torch is None else torch.get_num_threads()
    # Lazy data that a task loads is computed here: on the cluster it would wait behind the very
    # tasks that wait for it.
    scheduler = {"scheduler": "synchronous" if threads == 1 else "threads", "num_workers": threads}
    try:
        if torch is not None:
            torch.set_num_threads(threads)
        with dask.config.set(scheduler), threadpool_limits(limits=threads):
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(torch_threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
