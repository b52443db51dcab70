"""What the policy of the pools is worth, by a virtual clock.

    python benchmarks/schedule_policy.py [--size tiny|full]

Labels of log-normal length (sigma 0.5) on jobs whose walltime is ten mean labels. Prints busy over
allocated time, labels cut by a walltime, jobs, and the time until the last label, for no policy
(labels in the order in which they came, started whatever time is left) and for the pools' own, told
the lengths exactly, to 20 %, or not at all.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from mofal.schedule.simulate import SimulatedPool, SimulationResult, simulate

SIZES = {"tiny": (300, 10), "full": (10_000, 200)}
HOUR = 3600.0


def main(argv: list[str] | None = None) -> dict[str, SimulationResult]:
    """Run and print; returns the results by name."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    number, workers = SIZES[options.size]
    rng = np.random.default_rng(options.seed)
    lengths = np.exp(0.5 * rng.normal(size=number) - 0.125) * HOUR
    guesses = lengths * np.exp(0.2 * rng.normal(size=number))
    pool = SimulatedPool(most=workers, walltime=10 * HOUR)
    cases = {
        "no policy": ("none", None),
        "lengths unknown": ("mofal", None),
        "lengths to 20 %": ("mofal", guesses.tolist()),
        "lengths exact": ("mofal", lengths.tolist()),
    }
    print(
        f"{number} labels of 1 h (sigma 0.5), {workers} workers, walltime 10 h, "
        f"{pool.startup:.0f} s until a worker is up, {pool.queue_wait:.0f} s in the queue"
    )
    print(f"{'':<18}{'busy/allocated':>15}{'cut':>7}{'jobs':>7}{'hours':>8}{'ideal':>8}{'took':>8}")
    results = {}
    for name, (policy, costs) in cases.items():
        start = time.perf_counter()
        result = simulate(pool, lengths.tolist(), costs=costs, policy=policy)
        took = time.perf_counter() - start
        results[name] = result
        print(
            f"{name:<18}{100 * result.efficiency:>13.2f} %{result.cuts:>7}{result.jobs:>7}"
            f"{result.makespan / HOUR:>8.1f}{lengths.sum() / workers / HOUR:>8.1f}{took:>6.1f} s"
        )
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
