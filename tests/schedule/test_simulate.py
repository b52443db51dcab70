"""The policy under a virtual clock: what it is worth."""

from __future__ import annotations

import numpy as np
import pytest

from mofal.schedule.simulate import SimulatedPool, simulate

HOUR = 3600.0


def _lengths(number, *, sigma=0.5, mean=HOUR, seed=0):
    rng = np.random.default_rng(seed)
    return np.exp(sigma * rng.normal(size=number) - sigma**2 / 2) * mean


def test_simulate__all_tasks_end_and_busy_is_their_length():
    lengths = _lengths(100)
    result = simulate(SimulatedPool(most=10), lengths.tolist())
    assert result.ended == 100
    assert result.busy == pytest.approx(lengths.sum())
    assert result.allocated >= result.busy
    assert result.cuts == 0


def test_simulate__one_worker_by_hand():
    pool = SimulatedPool(most=1, startup=10.0, queue_wait=100.0, end_lag=2.0)
    result = simulate(pool, [50.0, 30.0])
    assert result.makespan == pytest.approx(190.0)
    assert result.allocated == pytest.approx(10 + 80 + 2)
    assert result.jobs == 1


def test_simulate__walltime_without_policy_cuts_tasks():
    pool = SimulatedPool(most=1, walltime=100.0, startup=0.0, queue_wait=0.0, end_lag=0.0)
    result = simulate(pool, [60.0, 60.0], policy="none")
    # The second is cut after 40 s and started again in the next job.
    assert (result.cuts, result.jobs) == (1, 2)
    assert result.lost == pytest.approx(40.0)
    assert result.efficiency == pytest.approx(120 / 160)


def test_simulate__longest_first_ends_sooner():
    lengths = [*[10.0] * 30, 100.0]
    pool = SimulatedPool(most=4, startup=0.0, queue_wait=0.0)
    blind = simulate(pool, lengths, policy="none")
    knowing = simulate(pool, lengths, costs=lengths)
    assert knowing.makespan == pytest.approx(100.0)
    assert blind.makespan > 160.0


def test_simulate__idle_workers_are_given_back():
    """Work that comes in two lots, with hours between them."""
    lengths = [600.0] * 20
    pool = SimulatedPool(most=10)
    result = simulate(pool, lengths, arrival=lambda task: 0.0 if task < 10 else 8 * HOUR)
    assert result.makespan > 8 * HOUR
    assert result.efficiency > 0.9
    assert result.jobs <= 20


def test_simulate__work_too_little_for_many_jobs():
    result = simulate(SimulatedPool(most=100, worth=60.0), [1.0] * 200, costs=[1.0] * 200)
    # Nothing is known before the first task ends; then a handful is enough.
    assert result.jobs <= 100
    known = simulate(
        SimulatedPool(most=100, worth=60.0),
        [1.0] * 200,
        arrival=lambda task: 0.0 if task == 0 else 500.0,
    )
    assert known.jobs <= 1 + 4


@pytest.mark.parametrize("knowledge", ["exact", "noisy", "none"])
def test_simulate__labels_on_jobs_of_ten_labels(knowledge):
    """A smaller form of the target: busy over allocated at least 95 %."""
    lengths = _lengths(2000, seed=1)
    rng = np.random.default_rng(2)
    costs = {
        "exact": lengths.tolist(),
        "noisy": (lengths * np.exp(0.2 * rng.normal(size=2000))).tolist(),
        "none": None,
    }[knowledge]
    pool = SimulatedPool(most=40, walltime=10 * HOUR)
    result = simulate(pool, lengths.tolist(), costs=costs)
    blind = simulate(pool, lengths.tolist(), policy="none")
    assert result.ended == 2000
    assert result.efficiency >= (0.98 if costs is None else 0.99)
    assert result.cuts <= 10
    assert 0.90 <= blind.efficiency <= 0.96
    assert result.makespan < 1.1 * blind.makespan


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_simulate__ten_thousand_labels_on_two_hundred_workers(known):
    lengths = _lengths(10_000, seed=3)
    pool = SimulatedPool(most=200, walltime=10 * HOUR)
    result = simulate(pool, lengths.tolist(), costs=lengths.tolist() if known else None)
    assert result.ended == 10_000
    assert result.efficiency >= 0.99


def test_simulate__tasks_that_seem_too_long_for_any_job_are_done():
    """Costs that promise eleven hours where there are ten, and lengths that take three."""
    lengths = [HOUR] * 10 + [3 * HOUR] * 10
    costs = [1.0] * 10 + [11.0] * 10
    result = simulate(SimulatedPool(most=5, walltime=10 * HOUR), lengths, costs=costs)
    assert result.ended == 20
    assert result.jobs <= 20


def test_simulate__several_workers_in_a_job():
    lengths = _lengths(400, seed=4)
    pool = SimulatedPool(most=16, workers_per_job=4, walltime=10 * HOUR)
    result = simulate(pool, lengths.tolist(), costs=lengths.tolist())
    assert result.ended == 400
    # A job ends when the last of its workers does, so a little more is idle.
    assert result.efficiency > 0.9
