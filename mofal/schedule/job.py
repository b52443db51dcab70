"""What runs in a job, on SLURM or on this machine: it keeps the job's workers alive.

Little more than the standard library, so that it is light and is never held up by what its workers
compute. It

- starts its workers, each in a process group of its own, with its threads and its GPUs set;
- starts again a worker that died, and says in its beat how it died;
- ends a worker that, with all it started, uses more memory than the pool allows;
- waits for the next driver when the scheduler is gone, and ends when none comes;
- keeps head and tail of what its workers write;
- ends its workers, and all that they started, when it is told to, or when its driver dies (local).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from mofal.reference.keeper import BoundedLog
from mofal.reference.processes import MEMORY_LIMIT, descendants, memory_bytes
from mofal.schedule.files import (
    EXIT_LOST,
    SIGN_CONNECTED,
    SIGN_LOST,
    Layout,
    adopt_orphans,
    end_with_parent,
    process_start,
    read_beat,
    read_json,
    write_json,
)
from mofal.streams import forgive

#: Seconds between two looks at the workers, on this machine and on a node.
LOOK_LOCAL, LOOK_NODE = 0.1, 0.25
#: Seconds between two beats, and between two looks at memory.
BEAT, MEMORY = 5.0, 1.0
#: Seconds between asking what a dead worker left behind to end, and ending it.
ORPHAN = 2.0
#: A worker that dies this often before it connects ends the job.
CRASHES = 3
#: Seconds for which a worker that was ended by SIGTERM may have been ended together with its job.
TOGETHER = 2.0
#: Seconds until a worker that lost its scheduler looks whether the same one answers again.
RETRY = 5.0
#: Seconds that a job's first connection may take at least (a busy file system imports slowly).
START = 180.0


def signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    """Signal processes that are still those that they were when they were found."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


class _Output:
    """Brings what workers write into their logs, of which head and tail are kept."""

    def __init__(self) -> None:
        self._logs: dict[Path, BoundedLog] = {}
        self._threads: list[threading.Thread] = []

    def stream(self, path: Path) -> int:
        """Return where to write what shall go to this log."""
        if path not in self._logs:
            with contextlib.suppress(OSError):  # a full disk is no reason to do without a worker
                self._logs[path] = BoundedLog(path)
        reader, writer = os.pipe()
        arguments = (reader, self._logs.get(path))
        thread = threading.Thread(target=self._copy, args=arguments, daemon=True)
        thread.start()
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        return writer

    @staticmethod
    def _copy(reader: int, log: BoundedLog | None) -> None:
        with contextlib.suppress(OSError):
            while content := os.read(reader, 1 << 18):
                if log is not None:
                    log.write(content)
        os.close(reader)

    def finish(self, patience: float) -> None:
        """Wait until all is written."""
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


@dataclass
class _Child:
    index: int
    generation: int = 0
    process: subprocess.Popen[bytes] | None = None
    name: str = ""
    scheduler: str = ""
    started: float = 0.0
    crashes: int = 0
    memory_reason: str = ""
    beyond: int = 0  # looks in a row at which it used too much
    signs: int = -1  # end of a pipe on which it says that it is connected
    connected: bool = False
    lost: bool = False  # it said that it lost its scheduler
    terminated: float = 0.0  # when it was seen to have been ended by SIGTERM
    retry_at: float = 0.0


class Job:
    """One job; `run` returns its exit status."""

    def __init__(self, path: Path) -> None:
        spec = read_json(path)
        if spec is None:
            sys.exit(f"found no job at {path}; expected the file that the driver wrote")
        self.path = path
        self.spec: dict[str, Any] = spec
        self.layout = Layout(spec["root"])
        # SLURM may have started this job before (a controller that lost its memory of it).
        before = read_beat(self.layout.beat(spec["name"])) or {}
        first = int(before.get("generation", 0))
        self.children = [_Child(index, generation=first) for index in range(spec["workers"])]
        self.losses: dict[str, str] = dict(before.get("losses", {}))
        for name in before.get("workers", ()):
            self.losses[name] = "its job ended: it was started again"
        self.started = time.time()
        self.ends_at = self._planned_end()
        self.beats = 0
        self.stop_reason = ""
        self.output = _Output()
        self.orphans: dict[psutil.Process, float] = {}  # and since when they are asked to end

    def _planned_end(self) -> float | None:
        """When SLURM will end this job (unix time), less the pool's stagger; None: never."""
        if self.spec["walltime"] is None:
            return None
        end = self.started + self.spec["walltime"]
        with contextlib.suppress(KeyError, ValueError):
            end = min(end, float(os.environ["SLURM_JOB_END_TIME"]))
        return float(end - self.spec["early"])

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_reason = self.stop_reason or signal.Signals(number).name

    # -- workers
    def _environment(self, child: _Child) -> dict[str, str]:
        environment = {**os.environ, **self.spec["environment"]}
        gpus = self.spec["gpus"]
        if gpus:
            # One GPU (or as many as the pool says) per worker, from those that the job was given.
            given = self.spec["gpu_ids"] or [
                part for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part
            ]
            own = given[child.index * gpus : (child.index + 1) * gpus]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in own)
        if self.spec["memory"] is not None:
            environment[MEMORY_LIMIT] = str(self.spec["memory"])
        if self.ends_at is not None:
            environment["MOFAL_ENDS_AT"] = f"{self.ends_at:.0f}"
        return environment

    def _start(self, child: _Child, scheduler: str) -> None:
        child.generation += 1
        child.name = f"{self.spec['name']}.{child.index}.{child.generation}"
        child.scheduler, child.started, child.memory_reason = scheduler, time.time(), ""
        child.connected = child.lost = False
        child.terminated, child.beyond = 0.0, 0
        child.signs, sign = os.pipe()
        os.set_blocking(child.signs, False)
        command = [sys.executable, "-m", "mofal.schedule.worker", str(self.path)]
        command += ["--name", child.name, "--parent", str(os.getpid()), "--sign", str(sign)]
        if self.ends_at is not None:
            command += ["--ends-at", str(self.ends_at)]
        stream = self.output.stream(self.layout.log(f"{self.spec['name']}.{child.index}"))
        child.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=self._environment(child),
            start_new_session=True,
            pass_fds=(sign,),
        )
        os.close(stream)
        os.close(sign)

    @staticmethod
    def _kill(child: _Child, number: int) -> None:
        """Signal a worker and everything that it started."""
        if child.process is None or child.process.poll() is not None:
            return
        members = descendants(child.process.pid)
        child.process.send_signal(number)
        signal_all(members, number)

    def _end_orphans(self, now: float) -> bool:
        """End what workers left behind when they died, gently first; whether there is some."""
        own = {child.process.pid for child in self.children if child.process is not None}
        for orphan in psutil.Process().children():
            if orphan.pid in own:
                continue
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if orphan.status() == psutil.STATUS_ZOMBIE:
                    os.waitpid(orphan.pid, os.WNOHANG)
                    continue
            if orphan not in self.orphans:
                self.orphans[orphan] = now
                signal_all([orphan, *descendants(orphan.pid)], signal.SIGTERM)
            elif now - self.orphans[orphan] > ORPHAN:
                signal_all([orphan, *descendants(orphan.pid)], signal.SIGKILL)
        there = set(psutil.Process().children())
        self.orphans = {o: t for o, t in self.orphans.items() if o in there}
        return bool(self.orphans)

    def _look(self, child: _Child, scheduler: str, now: float) -> bool:
        """Look after one worker; True when something changed."""
        if child.process is None:
            if scheduler and (scheduler != child.scheduler or now >= child.retry_at):
                self._start(child, scheduler)
                return True
            return False
        status = child.process.poll()
        with contextlib.suppress(BlockingIOError):  # after the look: what it said last counts too
            said = os.read(child.signs, 16)
            child.connected |= SIGN_CONNECTED in said
            child.lost |= SIGN_LOST in said
        if status is None:
            return False
        if status == -signal.SIGTERM:
            # SLURM signals job and worker in one go; alone, it was the task's doing.
            child.terminated = child.terminated or now
            if self.stop_reason or now - child.terminated < TOGETHER:
                return False
        os.close(child.signs)
        child.process = None
        if status == EXIT_LOST and child.lost:
            # The next scheduler's turn; or this one's once more, if it was the network.
            self.losses[child.name], child.retry_at = "lost its scheduler", now + RETRY
            return True
        self.losses[child.name] = child.memory_reason or (
            f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        )
        # A worker that had connected died of its task, and the driver counts those.
        child.crashes = 0 if child.connected else child.crashes + 1
        child.retry_at = now
        if child.crashes >= CRASHES and not self.stop_reason:
            self.stop_reason = f"its worker died {child.crashes} times: {self.losses[child.name]}"
        return True

    def _look_at_memory(self) -> None:
        limit = self.spec["memory"]
        for child in self.children:
            if child.process is None or child.process.poll() is not None:
                continue
            with contextlib.suppress(psutil.Error):
                worker = psutil.Process(child.process.pid)
                members = descendants(worker.pid)
                used = memory_bytes([worker, *members], limit=limit)
                child.beyond = child.beyond + 1 if used > limit else 0
                # Who keeps a label's own processes ends them and tells why, if it has the time.
                if child.beyond > (1 if members and worker.memory_info().rss < limit else 0):
                    child.memory_reason = (
                        f"out of memory: {used / 1e9:.2f} GB of {limit / 1e9:.2f} GB"
                    )
                    self._kill(child, signal.SIGKILL)

    # -- what it says of itself
    def _beat(self, *, ended: bool = False) -> None:
        self.beats += 1
        facts = {
            "name": self.spec["name"],
            "pool": self.spec["pool"],
            "slurm_id": os.environ.get("SLURM_JOB_ID", ""),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": process_start(os.getpid()),
            "started": self.started,
            "time": time.time(),
            "beat": self.beats,
            "cores": self.spec["cores"],
            "slots": self.spec["workers"],
            "workers": [child.name for child in self.children if child.process is not None],
            "generation": max(child.generation for child in self.children),
            "losses": dict(list(self.losses.items())[-50:]),
            "ended": ended,
            "reason": self.stop_reason,
        }
        with contextlib.suppress(OSError):  # a full disk: the next beat tells
            write_json(self.layout.beat(self.spec["name"]), facts)

    def run(self) -> int:
        """Until told to end, or no driver comes for the workers."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, self._stop)
        adopt_orphans()
        next_beat = next_memory = next_file = next_orphans = 0.0
        scheduler = ""
        served = False
        waiting: float | None = None  # since when no worker of this job is connected
        while not self.stop_reason:
            now = time.time()
            changed = False
            if now >= next_file:
                facts = read_json(self.layout.scheduler_file)
                scheduler = "" if facts is None else facts["id"]
                if self.layout.end(self.spec["name"]).exists():
                    self.stop_reason = "given back"
                    break
                next_file = now + (0.2 if self.spec["local"] else 1.0)
            for child in self.children:
                changed |= self._look(child, scheduler, now)
            if changed or now >= next_orphans:
                next_orphans = now + (0.2 if self._end_orphans(now) else MEMORY)
            if self.spec["memory"] is not None and now >= next_memory:
                self._look_at_memory()
                next_memory = now + MEMORY
            if any(child.process is not None and child.connected for child in self.children):
                waiting, served = None, True
            else:
                waiting = waiting or now
                patience = self.spec["linger"] if served else max(self.spec["linger"], START)
                if now - waiting > patience:
                    self.stop_reason = f"no driver for {patience:.0f} s"
            if changed or now >= next_beat:
                self._beat()
                next_beat = now + BEAT
            time.sleep(LOOK_LOCAL if self.spec["local"] else LOOK_NODE)
        return self._end()

    def _end(self) -> int:
        for child in self.children:
            self._kill(child, signal.SIGTERM)
        deadline = time.time() + (1.0 if self.spec["local"] else 5.0)
        while time.time() < deadline and any(
            child.process is not None and child.process.poll() is None for child in self.children
        ):
            time.sleep(0.02)
        for child in self.children:
            self._kill(child, signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
                self.losses.setdefault(child.name, f"its job ended: {self.stop_reason}")
        deadline = time.time() + 2 * ORPHAN
        while self._end_orphans(time.time()) and time.time() < deadline:
            time.sleep(0.02)
        self.output.finish(1.0)
        self._beat(ended=True)
        if not self.stop_reason.startswith(("SIG", "given back")):
            print(f"job {self.spec['name']} ended: {self.stop_reason}", flush=True)
        return 1 if "died" in self.stop_reason else 0


def _watch_driver() -> None:
    """End with the driver, of whose end of our standard input nobody else has a copy."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(argv: list[str]) -> int:
    """``python -m mofal.schedule.job SPEC``."""
    forgive()
    job = Job(Path(argv[0]))
    if job.spec["local"]:
        end_with_parent(job.spec["driver"], number=signal.SIGTERM)
        threading.Thread(target=_watch_driver, daemon=True).start()
    return job.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
