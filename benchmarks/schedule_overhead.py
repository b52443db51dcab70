"""What the dispatcher costs beyond bare Dask, on the same scheduler and workers in the same run.

    python benchmarks/schedule_overhead.py [--size tiny|full]

Prints: wall time of 1,000 tasks of 50 ms against ``Client.map``; CPU time of driver and scheduler
per task, ours minus bare Dask's; growth of the driver's memory over 10,000 tasks.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mofal.schedule import Pools, ScheduleSettings, Task

SIZES = {
    # tasks of 50 ms, tasks for CPU time, tasks for memory
    "tiny": (40, 100, 300),
    "full": (1000, 2000, 10_000),
}


def work(*, seconds: float, output: str | None = None) -> dict[str, Any]:
    """Sleep, and write a durable result where one is wanted."""
    if seconds:
        time.sleep(seconds)
    if output is not None:
        temporary = f"{output}.tmp"
        Path(temporary).write_text("{}")
        os.replace(temporary, output)
    return {"seconds": seconds}


def _bare(arguments: tuple[float, str]) -> dict[str, Any]:
    return work(seconds=arguments[0], output=arguments[1])


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss() -> float:
    """Resident memory of this process (MB)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Bench:
    """Pools with all their workers up, and a plain client of the same scheduler."""

    def __init__(self, directory: Path, workers: int) -> None:
        self.directory = directory
        self.workers = workers
        settings = ScheduleSettings(backend="local", workers=workers)
        self.pools = Pools.from_settings(settings, directory=directory)
        self._number = 0

    def tasks(self, number: int, seconds: float) -> Iterator[Task]:
        """Durable tasks with outputs of their own."""
        for _ in range(number):
            self._number += 1
            output = self.directory / "out" / f"{self._number}.json"
            yield Task(
                "label",
                f"{self._number:08x}",
                work,
                {"seconds": seconds, "output": str(output)},
                output,
            )

    def warm_up(self) -> None:
        """Until every worker has had work."""
        (self.directory / "out").mkdir()
        seen: set[str] = set()
        while len(seen) < self.workers:
            seen |= {o.worker for o in self.pools.run(self.tasks(2 * self.workers, 0.05))}

    def ours(self, number: int, seconds: float) -> tuple[float, float, float]:
        """Wall time, CPU time of driver, CPU time of scheduler (s) of so many tasks."""
        return self._measure(
            lambda: sum(outcome.ok for outcome in self.pools.run(self.tasks(number, seconds))),
            number,
        )

    def bare(self, number: int, seconds: float) -> tuple[float, float, float]:
        """The same with ``Client.map`` and ``as_completed``."""
        from distributed import as_completed

        client = self.pools._dispatcher._backend._link.client  # the same scheduler and workers

        def run() -> int:
            arguments = [
                (seconds, str(self.directory / "out" / f"bare-{self._number + i}.json"))
                for i in range(number)
            ]
            self._number += number
            futures = client.map(_bare, arguments, pure=False)
            done = 0
            for future, _ in as_completed(futures, loop=client.loop, with_results=True):
                future.release()
                done += 1
            return done

        return self._measure(run, number)

    def _measure(self, run: Any, number: int) -> tuple[float, float, float]:
        scheduler = self.pools._dispatcher._backend._link._process.pid
        start, driver, other = time.perf_counter(), time.process_time(), _cpu(scheduler)
        if run() != number:
            raise RuntimeError("tasks are missing")
        wall = time.perf_counter() - start
        return wall, time.process_time() - driver, _cpu(scheduler) - other


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run and print; returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    wall_tasks, cpu_tasks, memory_tasks = SIZES[options.size]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.workers)
        with bench.pools:
            bench.warm_up()
            bench.bare(wall_tasks // 10, 0.05)
            ours = [bench.ours(wall_tasks, 0.05)]
            bare = [bench.bare(wall_tasks, 0.05)]
            figures["wall_ours_s"], figures["wall_bare_s"] = ours[0][0], bare[0][0]
            figures["wall_ratio"] = ours[0][0] / bare[0][0]
            ideal = wall_tasks * 0.05 / options.workers
            print(
                f"{wall_tasks} tasks of 50 ms, {options.workers} workers: {ours[0][0]:.2f} s, "
                f"bare Dask {bare[0][0]:.2f} s, ratio {figures['wall_ratio']:.3f} "
                f"(ideal {ideal:.2f} s)"
            )
            a, b = bench.ours(cpu_tasks, 0.0), bench.bare(cpu_tasks, 0.0)
            for index, who in ((1, "driver"), (2, "scheduler")):
                mine, theirs = (1e3 * x[index] / cpu_tasks for x in (a, b))
                figures[f"cpu_{who}_ms"] = mine - theirs
                print(
                    f"CPU of {who} per task: {mine:.2f} ms, bare Dask {theirs:.2f} ms, "
                    f"difference {mine - theirs:.2f} ms"
                )
            figures["cpu_total_ms"] = figures["cpu_driver_ms"] + figures["cpu_scheduler_ms"]
            gc.collect()
            before = _rss()
            half = 0.0
            for number, _ in enumerate(bench.pools.run(bench.tasks(memory_tasks, 0.0)), start=1):
                if number == memory_tasks // 2:
                    half = _rss()
            gc.collect()
            after = _rss()
            figures["memory_growth_MB"] = after - before
            print(
                f"memory of the driver over {memory_tasks} tasks: {before:.1f} MB before, "
                f"{half:.1f} MB half way, {after:.1f} MB after"
            )
    return figures


if __name__ == "__main__":
    # Workers import the functions of this file by its name, which `__main__` is not.
    from schedule_overhead import main as imported

    imported(sys.argv[1:])
