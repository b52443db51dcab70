"""`Pools` in the driver's own process: backends inline and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from mofal.errors import ConfigError, ScheduleError
from mofal.schedule import Pools, ScheduleSettings, Task, read_events
from mofal.schedule.dispatcher import Entry

from . import tasks


def _labels(folder, number, *, start=0, **kwargs):
    for value in range(start, start + number):
        path = folder / f"{value:04d}.json"
        yield Task(
            "label",
            f"{value:04d}",
            tasks.label,
            {"output": str(path), "value": value} | kwargs,
            path,
        )


@pytest.fixture(params=["inline", "threads"])
def pools(request, tmp_path):
    settings = ScheduleSettings(backend=request.param, workers=2)
    with Pools.from_settings(settings, directory=tmp_path) as made:
        yield made


def test_run__all_are_done_and_durable(pools, tmp_path):
    outcomes = list(pools.run(_labels(tmp_path, 7)))
    assert {o.task.key for o in outcomes} == {f"{i:04d}" for i in range(7)}
    assert {o.status for o in outcomes} == {"done"}
    assert all(o.task.output.exists() and o.wall_time > 0 and o.worker for o in outcomes)
    assert {o.task.key: o.summary["value"] for o in outcomes}["0003"] == 9


def test_run__summary_is_what_json_gives_back(pools):
    (outcome,) = pools.run([Task("walk", "x", tasks.summary)])
    assert outcome.summary == {"list": [1, [2, 3]], "number": 0.1}


def test_run__nothing_is_nothing(pools):
    assert list(pools.run([])) == []


def test_run__what_is_there_is_found(pools, tmp_path):
    list(pools.run(_labels(tmp_path, 3)))
    again = list(pools.run(_labels(tmp_path, 5)))
    assert sorted(o.status for o in again) == ["done", "done", "found", "found", "found"]


def test_run__a_task_given_twice_is_one_task(pools, tmp_path):
    (task,) = _labels(tmp_path, 1)
    assert len(list(pools.run([task, task]))) == 1


def test_run__failure_is_an_outcome(pools, tmp_path):
    outcomes = {
        o.task.kind: o for o in pools.run([Task("walk", "x", tasks.fail), *_labels(tmp_path, 1)])
    }
    assert outcomes["walk"].status == "failed"
    assert outcomes["walk"].reason == "ValueError: no luck"
    assert not outcomes["walk"].ok
    assert outcomes["label"].ok
    trace = (tmp_path / "schedule" / "failures" / "walk-x.txt").read_text()
    assert "raise ValueError(text)" in trace


def test_run__a_failed_task_is_tried_again_when_asked_again(pools):
    for _ in range(2):
        (outcome,) = pools.run([Task("walk", "x", tasks.fail)])
        assert outcome.status == "failed"


def test_run__quorum_leaves_the_rest_in_the_background(pools, tmp_path):
    assert len(list(pools.run(_labels(tmp_path, 10), quorum=0.75))) == 8
    assert len(list(pools.run(_labels(tmp_path, 10)))) == 10


@pytest.mark.parametrize("quorum", [0.0, -1.0, 1.1])
def test_run__quorum_out_of_range(pools, tmp_path, quorum):
    with pytest.raises(ScheduleError, match="quorum"):
        list(pools.run(_labels(tmp_path, 1), quorum=quorum))


def test_submit__several_systems_at_once(pools, tmp_path):
    first = [pools.submit(task) for task in _labels(tmp_path, 3)]
    second = [pools.submit(task) for task in _labels(tmp_path, 3, start=3)]
    assert len(list(pools.as_completed(second))) == 3
    assert len(list(pools.as_completed(first))) == 3
    assert all(handle.done for handle in first + second)


def test_submit__more_work_while_results_come(pools, tmp_path):
    done = []
    for outcome in pools.run(_labels(tmp_path, 2)):
        done.append(outcome.task.key)
        more = list(pools.run(_labels(tmp_path, 2, start=10 * len(done))))
        assert len(more) == 2
    assert len(done) == 2


def test_submit__longest_first(tmp_path):
    with Pools.from_settings(ScheduleSettings(backend="inline"), directory=tmp_path) as pools:
        order = [
            Task("label", str(cost), tasks.fail, cost=float(cost), priority=int(cost == 2))
            for cost in (1, 5, 2, 9)
        ]
        assert [o.task.key for o in pools.run(order)] == ["2", "9", "5", "1"]


def test_submit__kind_without_a_pool(tmp_path):
    settings = ScheduleSettings.model_validate(
        {"backend": "inline", "pools": {"dft": {"kinds": ["label"]}}}
    )
    with (
        Pools.from_settings(settings, directory=tmp_path) as pools,
        pytest.raises(ConfigError, match="which no pool takes"),
    ):
        pools.submit(Task("walk", "x", tasks.fail))


def test_submit__lambda_is_refused_before_it_runs(pools):
    with pytest.raises(ScheduleError, match="cannot import"):
        pools.submit(Task("walk", "x", lambda: None))


def test_submit__after_close(tmp_path):
    pools = Pools.from_settings(ScheduleSettings(backend="threads"), directory=tmp_path)
    pools.close()
    pools.close()
    with pytest.raises(ScheduleError, match="closed pools"):
        pools.submit(Task("walk", "x", tasks.fail))


def test_as_completed__timeout(tmp_path):
    with Pools.from_settings(
        ScheduleSettings(backend="threads", workers=1), directory=tmp_path
    ) as pools:
        handles = [pools.submit(task) for task in _labels(tmp_path, 1, seconds=0.5)]
        assert list(pools.as_completed(handles, timeout=0.05)) == []
        assert len(list(pools.as_completed(handles))) == 1


def test_cancel__what_waits_is_forgotten(tmp_path):
    with Pools.from_settings(
        ScheduleSettings(backend="threads", workers=1), directory=tmp_path
    ) as pools:
        handles = [pools.submit(task) for task in _labels(tmp_path, 6, seconds=0.2)]
        next(iter(pools.as_completed(handles)))
        assert pools.cancel(handles) >= 3  # one ended, and two travelled
        with pytest.raises(ScheduleError, match="was cancelled"):
            list(pools.as_completed(handles))
        (again,) = pools.run(list(_labels(tmp_path, 6))[5:])
        assert again.status == "done"


def test_threads__run_at_the_same_time(tmp_path):
    with Pools.from_settings(
        ScheduleSettings(backend="threads", workers=4), directory=tmp_path
    ) as pools:
        start = time.perf_counter()
        list(pools.run(_labels(tmp_path, 4, seconds=0.3)))
        assert time.perf_counter() - start < 0.9


def test_threads__no_thread_is_left(tmp_path):
    before = set(threading.enumerate())
    with Pools.from_settings(
        ScheduleSettings(backend="threads", workers=3), directory=tmp_path
    ) as pools:
        list(pools.run(_labels(tmp_path, 3)))
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_inline__imports_neither_distributed_nor_dask(tmp_path):
    code = f"""
import sys
from mofal.schedule import Pools, ScheduleSettings, Task
from mofal.schedule.files import read_json
with Pools.from_settings(ScheduleSettings(backend="inline"), directory={str(tmp_path)!r}) as pools:
    (outcome,) = pools.run([Task("label", "x", read_json, {{"path": __file__}})])
heavy = {{"distributed", "dask", "torch", "xarray", "numpy"}} & set(sys.modules)
assert outcome.status == "failed" and not heavy, (outcome, heavy)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    subprocess.run([sys.executable, str(script)], check=True)


def test_performance_report__threads_have_none(pools, tmp_path):
    list(pools.run(_labels(tmp_path, 1)))
    assert not pools.performance_report(tmp_path / "report.html")


def test_pools__lengths_are_known_from_the_driver_before(tmp_path):
    settings = ScheduleSettings(backend="inline")
    for number in range(2):
        with Pools.from_settings(settings, directory=tmp_path) as pools:
            assert (pools._dispatcher._estimator.expected("label") is None) == (number == 0)
            list(pools.run(_labels(tmp_path, 2, start=number)))


def test_claims__many_are_not_looked_at_all_the_time(tmp_path):
    """Two hundred workers that outlived their driver: their files are not read twice a second."""

    class Watched:
        looks = 0

        def claim(self, task):
            self.looks += 1
            return "dft-1.0.1"

    settings = ScheduleSettings(backend="threads", workers=1)
    with Pools.from_settings(settings, directory=tmp_path) as pools:
        dispatcher = pools._dispatcher
        dispatcher._backend = watched = Watched()
        dispatcher._claimed = [Entry(task, "local") for task in _labels(tmp_path, 200)]
        for _ in range(10):
            dispatcher._look_at_claims()
        assert watched.looks == 200
        assert len(dispatcher._claimed) == 200
        dispatcher._next_claims = 0.0
        dispatcher._look_at_claims()
        assert watched.looks == 400
        dispatcher._backend = None


def test_events__tell_the_whole_story(pools, tmp_path):
    list(pools.run([*_labels(tmp_path, 2), Task("walk", "x", tasks.fail)]))
    pools.close()
    events = list(read_events(tmp_path))
    names = [event["event"] for event in events]
    assert names[0] == "driver-start"
    assert names[-1] == "driver-end"
    for name in ("queued", "start", "end"):
        assert names.count(name) == 3
    ends = {event["key"]: event for event in events if event["event"] == "end"}
    assert ends["x"]["status"] == "failed"
    assert ends["0001"]["pool"] == "local"
    assert ends["0001"]["wall_time"] >= 0
