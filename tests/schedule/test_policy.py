"""The policy of the pools, as the pure functions that it is."""

from __future__ import annotations

import numpy as np
import pytest

from mofal.schedule.policy import (
    Borrower,
    Estimator,
    JobView,
    PoolView,
    Scaling,
    TaskQueue,
    borrower,
    look_ahead,
    scale,
    stagger,
)


def _taught(seconds: float, *, kind: str = "label", sigma: float = 0.0, number: int = 50):
    estimator = Estimator()
    rng = np.random.default_rng(1)
    for _ in range(number):
        estimator.add(kind, cost=None, seconds=seconds * float(np.exp(sigma * rng.normal())))
    return estimator


def test_estimator__knows_nothing_at_first():
    estimator = Estimator()
    assert estimator.expected("label") is None
    assert estimator.upper("label") is None
    assert estimator.largest_cost("label", 1.0) == np.inf


def test_estimator__learns_seconds_per_cost():
    estimator = Estimator()
    for cost in (1.0, 2.0, 4.0, 8.0):
        estimator.add("label", cost=cost, seconds=3 * cost)
    assert estimator.expected("label", 10.0) == pytest.approx(30.0, rel=0.02)
    assert estimator.upper("label", 10.0) > 35.0


def test_estimator__log_normal_mean_and_quantile():
    estimator = _taught(10.0, sigma=0.5, number=200)
    assert estimator.expected("label") == pytest.approx(10 * np.exp(0.125), rel=0.1)
    assert estimator.upper("label") == pytest.approx(10 * np.exp(2.33 * 0.5), rel=0.15)


def test_estimator__few_samples_are_not_trusted():
    few, many = _taught(10.0, number=2), _taught(10.0, number=100)
    assert few.upper("label") > 2 * many.upper("label")


def test_estimator__tasks_that_were_done_already_do_not_count():
    estimator = _taught(100.0, sigma=0.3, number=60)
    before = estimator.upper("label")
    for _ in range(10):
        estimator.add("label", cost=None, seconds=0.001)
    assert estimator.expected("label") == pytest.approx(100.0, rel=0.25)
    assert before / 2 < estimator.upper("label") < 2 * before


def test_estimator__forgets_what_is_long_ago():
    estimator = _taught(1.0, number=200)
    for _ in range(200):
        estimator.add("label", cost=None, seconds=50.0)
    assert estimator.expected("label") == pytest.approx(50.0, rel=0.01)


def test_queue__longest_first_then_in_order():
    queue, estimator = TaskQueue[str](), Estimator()
    for name, cost in (("a", 1.0), ("b", 3.0), ("c", 3.0), ("d", 2.0)):
        queue.push(name, kind="label", cost=cost)
    assert [queue.pop(estimator) for _ in range(5)] == ["b", "c", "d", "a", None]


def test_queue__priority_before_length():
    queue, estimator = TaskQueue[str](), Estimator()
    queue.push("long", kind="label", cost=9.0)
    queue.push("urgent", kind="walk", cost=1.0, priority=1)
    assert queue.pop(estimator) == "urgent"


def test_queue__kinds_compare_by_expected_seconds():
    queue, estimator = TaskQueue[str](), Estimator()
    for _ in range(20):
        estimator.add("label", cost=1.0, seconds=1.0)
        estimator.add("train", cost=None, seconds=50.0)
    queue.push("label", kind="label", cost=20.0)
    queue.push("train", kind="train")
    assert queue.pop(estimator) == "train"


def test_queue__longest_that_fits_before_the_end():
    queue, estimator = TaskQueue[str](), _taught(1.0)
    for name, cost in (("10", 10.0), ("5", 5.0), ("1", 1.0)):
        queue.push(name, kind="label", cost=cost)
    assert queue.pop(estimator, remaining=7.0) == "5"
    assert queue.pop(estimator, remaining=7.0) == "1"
    assert queue.pop(estimator, remaining=7.0) is None
    assert queue.pop(estimator) == "10"


def test_queue__nothing_fits_then_nothing_goes():
    queue, estimator = TaskQueue[str](), _taught(10.0)
    queue.push("a", kind="label")
    assert queue.pop(estimator, remaining=10.5) is None
    assert len(queue) == 1
    assert queue.needs(estimator) == pytest.approx(10 * np.exp(2.33 * 0.1))


def test_queue__what_fits_nowhere_gets_a_fresh_worker():
    """The estimate may be wrong, and a job that is never used is never worth its place."""
    queue, estimator = TaskQueue[str](), _taught(100.0)
    queue.push("huge", kind="label", cost=50.0)
    queue.push("large", kind="label", cost=20.0)
    assert queue.needs(estimator, walltime=1000.0) == pytest.approx(800.0)
    assert queue.pop(estimator, remaining=700.0, walltime=1000.0) is None
    assert queue.pop(estimator, remaining=900.0, walltime=1000.0) == "large"


def test_queue__resumable_fits_always():
    queue, estimator = TaskQueue[str](), _taught(100.0, kind="train")
    queue.push("train", kind="train", resumable=True)
    assert queue.needs(estimator) == 0.0
    assert queue.pop(estimator, remaining=1.0) == "train"


def test_queue__unknown_length_is_tried():
    queue, estimator = TaskQueue[str](), Estimator()
    queue.push("a", kind="label")
    assert queue.pop(estimator, remaining=1.0) == "a"


def test_queue__seconds_of_what_waits():
    queue, estimator = TaskQueue[str](), _taught(2.0, number=100)
    assert queue.seconds(estimator) == 0.0
    for cost in (1.0, 2.0, 3.0):
        queue.push("x", kind="label", cost=cost)
    assert queue.seconds(estimator) == pytest.approx(12.0, rel=0.05)
    queue.push("y", kind="walk")
    assert queue.seconds(estimator) is None
    assert queue.counts() == {"label": 3, "walk": 1}
    assert sorted(queue.drain()) == ["x", "x", "x", "y"]
    assert len(queue) == 0


def test_queue__large_queue_is_fast():
    queue, estimator = TaskQueue[int](), _taught(1.0)
    rng = np.random.default_rng(0)
    costs = rng.lognormal(size=20_000)
    for number, cost in enumerate(costs):
        queue.push(number, kind="label", cost=float(cost))
    order = [queue.pop(estimator) for _ in range(len(costs))]
    assert order == list(np.argsort(-costs, kind="stable"))


def test_look_ahead__only_short_tasks_travel_ahead():
    assert look_ahead(None) == 1
    assert look_ahead(100.0) == 1
    assert look_ahead(0.05) == 3
    assert look_ahead(1e-6) == 8


def _scale(now: float = 100.0, idle_time: float = 30.0, **view):
    view = {"least": 0, "most": 10, **view}
    return scale(PoolView(**view), now=now, idle_time=idle_time)


def test_scale__as_many_jobs_as_work():
    assert _scale(waiting=4).submit == 4
    assert _scale(waiting=40).submit == 10
    assert _scale(waiting=5, workers_per_job=2).submit == 3
    assert _scale(least=2).submit == 2


def test_scale__little_work_does_not_start_many_jobs():
    assert _scale(waiting=100, waiting_seconds=90.0).submit == 2
    assert _scale(waiting=3, waiting_seconds=1e6).submit == 3
    assert _scale(waiting=3, waiting_seconds=0.1).submit == 1


def test_scale__pending_jobs_count():
    jobs = [JobView("a", pending=True), JobView("b", busy=1)]
    assert _scale(waiting=3, jobs=jobs).submit == 2


def test_scale__pending_jobs_without_work_go_first():
    jobs = [JobView("a", pending=True), JobView("b", idle_since=99.0), JobView("c", pending=True)]
    assert _scale(jobs=jobs).end == ("c", "a")


def test_scale__idle_jobs_are_given_back_after_a_while():
    jobs = [JobView("a", idle_since=50.0), JobView("b", idle_since=90.0), JobView("c", busy=1)]
    assert _scale(jobs=jobs).end == ("a",)
    assert _scale(jobs=jobs, now=200.0).end == ("a", "b")
    assert _scale(jobs=jobs, now=200.0, least=2).end == ("a",)


def test_scale__draining_jobs_are_replaced_and_given_back():
    jobs = [
        JobView("tired", idle_since=99.0, remaining=5.0),
        JobView("busy", busy=1, remaining=5.0),
        JobView("fresh", busy=1, remaining=500.0),
    ]
    decision = _scale(waiting=5, needs=20.0, jobs=jobs)
    assert decision.end == ("tired",)
    assert decision.submit == 5
    # The busy one holds its place of the maximum until it is done.
    assert _scale(waiting=5, needs=20.0, jobs=jobs, most=3).submit == 1


def test_scale__enough_is_enough():
    jobs = [JobView(str(i), busy=1) for i in range(10)]
    decision = _scale(waiting=1000, jobs=jobs)
    assert (decision.submit, decision.end) == (0, ())


def test_stagger__spreads_evenly():
    ends = [stagger(i, walltime=100.0, fraction=0.1) for i in range(16)]
    assert len(set(ends)) == 16
    assert min(ends) == 0.0
    assert max(ends) < 10.0
    assert np.diff(np.sort(ends)).max() == pytest.approx(0.625)


# ---------------------------------------------------------------------------------- wide tasks
def test_scale__jobs_are_asked_for_what_a_wide_task_could_borrow():
    """However little waits besides; never more than the pool may have."""
    running = JobView("a", busy=1)
    pool = PoolView(least=0, most=4, borrowable=2, jobs=(running,))
    assert scale(pool, now=0.0, idle_time=30.0).submit == 2
    pool = PoolView(least=0, most=2, borrowable=7, jobs=(running,))
    assert scale(pool, now=0.0, idle_time=30.0).submit == 1
    # What is lent counts as busy: it is not given back while the task runs.
    lent = JobView("b", busy=1, idle_since=None)
    pool = PoolView(least=0, most=4, jobs=(running, lent))
    assert scale(pool, now=1e6, idle_time=30.0) == Scaling()


def test_borrower__by_priority_and_then_by_what_it_has():
    few, many = Borrower("few", 5, 4, 0), Borrower("many", 5, 4, 2)
    assert borrower([many, few], waiting=None) == "few"
    assert borrower([many, few], waiting=5) == "few"  # it has begun
    assert borrower([many, few], waiting=6) == ""
    assert borrower([few, Borrower("urgent", 9, 2, 0)], waiting=6) == "urgent"
    assert borrower([Borrower("full", 5, 3, 2), Borrower("narrow", 5, 1, 0)], waiting=None) == ""
    assert borrower([], waiting=None) == ""


def test_queue__priority_of_what_waits():
    queue = TaskQueue[str]()
    assert queue.priority is None
    queue.push("a", kind="label", priority=3)
    queue.push("b", kind="walk", priority=7)
    assert queue.priority == 7
    queue.pop(Estimator())
    assert queue.priority == 3
