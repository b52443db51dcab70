"""A seeded schedule of accidents for a driver and everything that works for it.

Used by the tests of this folder and, with many seeds, by ``benchmarks/schedule_chaos.py``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .lab import SlurmLab

#: Everything that can happen.
ACCIDENTS = ("worker", "driver", "scheduler", "scancel", "node", "controller")


@dataclass
class ChaosResult:
    """What happened to a campaign.

    Attributes
    ----------
    accidents
        How often each of `ACCIDENTS` happened; one waits until there is somebody to hit.
    drivers
        Drivers that were needed.
    seconds
        From the first driver's start to the last one's end.
    at_risk
        Tasks that the accidents may have cut: one per worker that an accident met.
    finished
        Whether the last driver ended well.
    """

    accidents: Counter[str] = field(default_factory=Counter)
    drivers: int = 1
    seconds: float = 0.0
    at_risk: int = 0
    finished: bool = False


class Chaos:
    """Runs a command to its end through accidents.

    Parameters
    ----------
    lab
        The SLURM.
    command
        The driver; it is started again whenever it was killed.
    folder
        Of the campaign: processes that name it on their command line belong to it.
    seed
        Of the accidents' order, times and victims.
    accidents
        Kinds to choose from; each comes once before any comes twice.
    number
        How many.
    pause
        Seconds between two of them: uniform in this range.
    log
        Where the drivers' output goes.
    first
        Holds back the first accident until it returns True.
    """

    def __init__(
        self,
        lab: SlurmLab,
        command: Sequence[str],
        folder: Path,
        *,
        seed: int,
        accidents: Sequence[str] = ACCIDENTS,
        number: int = 6,
        pause: tuple[float, float] = (3.0, 8.0),
        log: Path,
        first: Callable[[], bool] = lambda: True,
    ) -> None:
        self.lab, self.command, self.folder, self.log = lab, list(command), folder, log
        self.rng = random.Random(seed)
        self.pause, self.first = pause, first
        order: list[str] = []
        while len(order) < number:
            batch = list(accidents)
            self.rng.shuffle(batch)
            order += batch
        self.order = order[:number]
        self.result = ChaosResult()
        self.repairs: list[tuple[float, Callable[[], None]]] = []

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as stream:
            return subprocess.Popen(
                self.command,
                env=self.lab.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *, timeout: float = 600.0) -> ChaosResult:
        """Until the driver ends by itself, or for so many seconds."""
        began = time.monotonic()
        deadline = began + timeout
        driver = self._start()
        armed = False
        next_one = 0.0
        try:
            while time.monotonic() < deadline:
                now = time.monotonic()
                self._repair(now)
                status = driver.poll()
                if status == 0:
                    self.result.finished = True
                    break
                if status is not None:
                    if status > 0:  # it gave up by itself
                        break
                    driver = self._start()
                    self.result.drivers += 1
                if not armed and self.first():
                    armed = True
                    next_one = now + self.rng.uniform(*self.pause)
                if armed and self.order and now >= next_one:
                    if getattr(self, f"_{self.order[0]}")(driver):
                        self.result.accidents[self.order.pop(0)] += 1
                        next_one = time.monotonic() + self.rng.uniform(*self.pause)
                    else:  # nobody to hit: no worker is there yet, or no job runs
                        next_one = time.monotonic() + 0.5
                time.sleep(0.05)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
            self._repair(float("inf"))
        self.result.seconds = time.monotonic() - began
        return self.result

    def _repair(self, now: float) -> None:
        due = [repair for when, repair in self.repairs if when <= now]
        self.repairs = [(when, repair) for when, repair in self.repairs if when > now]
        for repair in due:
            repair()

    def _later(self, seconds: float, repair: Callable[[], None]) -> None:
        self.repairs.append((time.monotonic() + seconds, repair))

    # -- victims
    def processes(self, words: str) -> list[int]:
        """Processes of this campaign whose command line holds some words."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if words in command and str(self.folder) in command:
                        found.append(int(entry.name))
        return sorted(found)

    def _running(self) -> list[list[str]]:
        """Running jobs of the campaign: number, name, node."""
        jobs = self.lab.jobs("%i|%j|%T|%N")
        return sorted([i, j, n] for i, j, state, n in jobs if state == "RUNNING" and "mofal-" in j)

    # -- accidents; each says whether there was something to hit
    def _worker(self, driver: subprocess.Popen[bytes]) -> bool:
        victims = self.processes("mofal.schedule.worker")
        if not victims:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.rng.choice(victims), signal.SIGKILL)
        self.result.at_risk += 1
        return True

    def _driver(self, driver: subprocess.Popen[bytes]) -> bool:
        self.result.at_risk += len(self.processes("mofal.schedule.worker"))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        return True

    def _scheduler(self, driver: subprocess.Popen[bytes]) -> bool:
        victims = self.processes("mofal.schedule.scheduler")
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.result.at_risk += len(self.processes("mofal.schedule.worker")) if victims else 0
        return bool(victims)

    def _scancel(self, driver: subprocess.Popen[bytes]) -> bool:
        jobs = self._running()
        if not jobs:
            return False
        self.lab.run("scancel", self.rng.choice(jobs)[0], check=False)
        self.result.at_risk += 1
        return True

    def _node(self, driver: subprocess.Popen[bytes]) -> bool:
        jobs = self._running()
        if not jobs:
            return False
        node = self.rng.choice(jobs)[2]
        self.result.at_risk += sum(job[2] == node for job in jobs)
        self.lab.kill_node(node)

        def back() -> None:
            self.lab.start_daemon(node)
            self.lab.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

        self._later(self.rng.uniform(1.0, 3.0), back)
        return True

    def _controller(self, driver: subprocess.Popen[bytes]) -> bool:
        number = self.rng.choice([signal.SIGTERM, signal.SIGKILL])
        # One that is killed may have forgotten a job, and starts it once more.
        self.result.at_risk += len(self._running())
        self.lab.signal_daemon("slurmctld", number)
        self._later(self.rng.uniform(1.0, 3.0), lambda: self.lab.start_daemon("slurmctld"))
        return True
