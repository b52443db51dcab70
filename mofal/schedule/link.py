"""The driver's link to its workers: the scheduler process and the client that talks to it.

Nothing here knows of jobs or tasks. A link that is lost is never mended, it is replaced: Dask's
client forgets its attempts and its subscriptions when it reconnects, and a new scheduler, to which
the workers come over, is the state that is well understood.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.errors import ConfigError, DependencyError, ScheduleError
from mofal.schedule.execution import one_line
from mofal.schedule.files import Layout, last_lines, read_json
from mofal.schedule.jobs import extra_paths
from mofal.schedule.settings import ScheduleSettings

if TYPE_CHECKING:
    from distributed import Client

#: Seconds for the scheduler to come up (a busy machine imports slowly).
SCHEDULER_START = 120.0
#: Seconds for one attempt at connecting to it, and for one answer of it.
CONNECT, ANSWER = 15.0, 20.0
#: A scheduler that dies this often within a minute is not started again.
SCHEDULER_DEATHS = 4
#: Answers that may stay away, one after the other, before the scheduler is taken for stuck.
UNANSWERED = 3

State = dict[str, Any]


class Link:
    """One scheduler after the other, each with a client.

    Parameters
    ----------
    settings
        The `schedule` section.
    layout
        Where the scheduler says its address.
    tls
        Whether everything is encrypted and authenticated.
    remote
        Whether workers are on other machines.
    event
        Called in the client's thread with each message of workers and scheduler.
    say
        Called with a line for a person.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        *,
        layout: Layout,
        tls: bool,
        remote: bool,
        event: Callable[[tuple[float, dict[str, Any]]], None],
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._tls = tls
        self._remote = remote
        self._event = event
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._comm: Any = None
        self._deaths: list[float] = []
        self._unanswered = 0
        self._quiet = False
        self.client: Client | None = None
        self.dashboard = ""

    # -- start and end
    def start(self) -> None:
        """Start a scheduler and connect to it.

        Raises
        ------
        DependencyError
            `distributed` is not installed.
        ScheduleError
            The scheduler ended by itself, does not answer, or dies again and again.
        """
        try:
            from distributed import Client
        except ImportError as error:
            raise DependencyError(
                "found no `distributed`, which the local and slurm backends need; expected it: "
                "pip install 'mofal[parallel]' (or set schedule: {backend: threads})"
            ) from error
        if not self._quiet:
            quiet_distributed(self._layout.log("driver"))
            self._quiet = True
        while not self._try(Client):
            self.died()

    def _try(self, client: type[Client]) -> bool:
        """Start a scheduler and connect to it; False if something killed it meanwhile."""
        self._layout.scheduler_file.unlink(missing_ok=True)
        port = self._settings.dashboard_port
        command = [sys.executable, "-m", "mofal.schedule.scheduler"]
        command += ["--file", str(self._layout.scheduler_file), "--host", self._host()]
        command += ["--dashboard", str(-1 if port is None else port), "--parent", str(os.getpid())]
        if self._tls:
            command += ["--tls", str(self._layout.tls)]
        with self._layout.log("scheduler").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "DASK_LOGGING__DISTRIBUTED": "warning",
                    "PYTHONPATH": os.pathsep.join(extra_paths()),
                },
                start_new_session=True,
            )
        deadline = time.monotonic() + SCHEDULER_START
        while (facts := read_json(self._layout.scheduler_file)) is None:
            if (self._process.poll() or 0) < 0:
                return False
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ScheduleError(
                    "the scheduler did not start; its log says: "
                    f"{last_lines(self._layout.log('scheduler'))}"
                )
            time.sleep(0.02)
        security = None
        if self._tls:
            from mofal.schedule.security import load_security

            security = load_security(self._layout.tls)
        while True:
            try:
                self.client = client(
                    facts["address"],
                    security=security,
                    set_as_default=False,
                    name="mofal",
                    timeout=CONNECT,
                )
                break
            except OSError as error:
                if (self._process.poll() or 0) < 0:
                    return False
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise ScheduleError(
                        f"the scheduler at {facts['address']} does not answer ({one_line(error)}); "
                        f"its log says: {last_lines(self._layout.log('scheduler'))}"
                    ) from error
        self._comm, self._unanswered = self.client.scheduler_comm, 0
        self.client.subscribe_topic("mofal", self._event)
        if self._settings.performance_reports:
            with suppress(OSError):  # it died this moment: `lost` sees that
                self.client.get_task_stream(count=0)  # Dask keeps no record before it is asked
        if facts["dashboard"] and port is not None:
            self.dashboard = f"http://127.0.0.1:{facts['dashboard']}/status"
        return True

    def died(self) -> None:
        """Count a death of the scheduler, and say so, unless it is too often."""
        now = time.monotonic()
        self._deaths = [t for t in self._deaths if now - t < 60] + [now]
        if self.hopeless:
            raise ScheduleError(
                f"the scheduler died {SCHEDULER_DEATHS} times in a minute; its log says: "
                f"{last_lines(self._layout.log('scheduler'))}"
            )
        self._say("the scheduler is gone; starting another")

    @property
    def hopeless(self) -> bool:
        """Whether the scheduler has died too often."""
        return len(self._deaths) >= SCHEDULER_DEATHS

    def _host(self) -> str:
        """The one address that the scheduler binds to."""
        return scheduler_host(self._settings) if self._remote else "127.0.0.1"

    def drop(self) -> None:
        """Leave this scheduler for good: its end sends the workers to the next one."""
        client, self.client, self._comm = self.client, None, None
        if client is not None:
            with suppress(Exception):
                client.close(timeout=0.1)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End client and scheduler in order."""
        client, self.client = self.client, None
        if client is not None:
            with suppress(Exception):
                client.close(timeout=2)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._layout.scheduler_file.unlink(missing_ok=True)

    # -- how it is
    def dead(self) -> bool:
        """Whether the scheduler's process has ended."""
        return self._process is not None and self._process.poll() is not None

    def lost(self) -> str:
        """Why this link cannot be used any more, "" as long as it can."""
        if self.client is None:
            return ""
        if self._unanswered >= UNANSWERED:
            return "the scheduler does not answer"
        # A client that has reconnected by itself counts as well: see the module.
        if self.client.status != "running" or self.client.scheduler_comm is not self._comm:
            return "the connection to the scheduler broke"
        return ""

    def ask(self, answer: Callable[[State], None]) -> None:
        """Have the scheduler say what it knows; `answer` is called in the client's thread.

        What it knows is ``workers`` (their addresses), ``facts`` (what each said of itself when it
        came) and ``attempts`` ({key: Dask's state}).
        """
        client = self.client
        if client is None:
            return

        async def ask() -> None:
            scheduler: Any = client.scheduler
            try:
                state = await asyncio.wait_for(scheduler.mofal_state(), ANSWER)
            except (TimeoutError, OSError):
                if client is self.client:
                    self._unanswered += 1
                return
            if client is self.client:
                self._unanswered = 0
                answer(state)

        if client.loop is not None:
            client.loop.add_callback(ask)


def scheduler_host(settings: ScheduleSettings) -> str:
    """The one address that the scheduler of pools on SLURM binds to.

    Raises
    ------
    ConfigError
        This machine has no such interface, or its name leads to the loopback, where no node is.
    """
    interface = settings.scheduler_interface
    if interface:
        from distributed.utils import get_ip_interface

        try:
            return str(get_ip_interface(interface))
        except ValueError as error:
            raise ConfigError(
                f"found interface {interface!r}, which this machine does not have; "
                "expected one that `ip -brief address` lists"
            ) from error
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        address = f"nothing ({error.strerror or error})"
    if address.startswith(("127.", "nothing")):
        raise ConfigError(
            f"found {address} for this machine's name {name}, which no node can reach; expected "
            "the network interface that nodes see: schedule: interface: eth0 (or ib0, ...; "
            "`ip -brief address` lists them)"
        )
    return address


def quiet_distributed(log: Path) -> None:
    """Send what Dask logs in this process to a file: a person reads the terminal."""
    logger = logging.getLogger("distributed")
    import distributed  # noqa: F401  (its import sets up the handlers that are replaced here)

    handler = logging.FileHandler(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    for name in list(logger.manager.loggerDict):
        if name.startswith("distributed."):
            child = logging.getLogger(name)
            child.handlers.clear()
            child.propagate = True  # Dask cuts some of them off
    for name in ("distributed", "tornado"):
        top = logging.getLogger(name)
        top.handlers[:] = [handler]
        top.propagate = False
    for name in ("tornado.application", "tornado.general", "tornado.access"):
        child = logging.getLogger(name)
        child.handlers.clear()
        child.propagate = True
