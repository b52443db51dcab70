"""Workers that are processes of this machine: what they get, and what happens when they die."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from mofal.reference.keeper import HEAD, TAIL
from mofal.schedule import Pools, ScheduleSettings, Task, cluster, link, read_events
from mofal.schedule.files import EXIT_LOST, Layout, read_json

from . import tasks

ROOT = Path(__file__).parent.parent.parent


def _labels(folder, number, *, start=0, **kwargs):
    for value in range(start, start + number):
        path = folder / f"{value:04d}.json"
        arguments = {"output": str(path), "value": value} | kwargs
        yield Task("label", f"{value:04d}", tasks.label, arguments, path)


def _settings(**pool):
    pool = {"kinds": ["*"], "workers": 2, **pool}
    return ScheduleSettings.model_validate({"backend": "local", "pools": {"local": pool}})


def _until(condition, *, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def _processes(text):
    """Processes whose command line holds a text: {pid: command line}."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text in command and state != "Z":
                found[int(entry.name)] = command
    return found


def _workers(folder):
    return [pid for pid, command in _processes(str(folder)).items() if "schedule.worker" in command]


def _starts(path):
    """How often each task was started, from the trace that the tasks write."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return Counter(words[1] for words in lines if words[0] == "start")


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Pools that the harmless tests share; starting workers takes a second."""
    folder = tmp_path_factory.mktemp("shared")
    with Pools.from_settings(
        _settings(threads=1, environment={"MY_SETTING": "7"}), directory=folder
    ) as made:
        yield made


def test_local__tasks_are_done_elsewhere(pools, tmp_path):
    outcomes = list(pools.run(_labels(tmp_path, 20)))
    assert {o.status for o in outcomes} == {"done"}
    assert {o.task.key: o.summary["value"] for o in outcomes}["0019"] == 361
    assert json.loads((tmp_path / "0004.json").read_text()) == {"value": 16}


def test_local__threads_are_the_pools(pools):
    names = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MOFAL_POOL"]
    task = Task("label", "env", tasks.environment, {"names": [*names, "MY_SETTING"]})
    (outcome,) = pools.run([task])
    assert list(outcome.summary.values()) == ["1", "1", "1", "local", "7"]


@pytest.mark.slow
def test_local__torch_and_blas_use_the_pools_threads(pools):
    pytest.importorskip("torch")
    (outcome,) = pools.run([Task("train", "threads", tasks.torch_threads)])
    assert outcome.summary["torch"] == 1
    assert set(outcome.summary["pools"]) == {1}


def test_local__lazy_data_in_a_task_is_computed_by_the_task(pools: Pools) -> None:
    """Sent to the scheduler it would wait behind the tasks that wait for it."""
    (outcome,) = pools.run([Task("walk", "lazy", tasks.dask_pid)])
    assert outcome.summary["task"] == outcome.summary["computed"]
    assert outcome.summary["scheduler"] == "synchronous"


def test_local__summary_is_what_json_gives_back(pools):
    (outcome,) = pools.run([Task("walk", "summary", tasks.summary)])
    assert outcome.summary == {"list": [1, [2, 3]], "number": 0.1}


def test_local__failure_is_an_outcome(pools):
    (outcome,) = pools.run([Task("walk", "bad", tasks.fail)])
    assert (outcome.status, outcome.reason) == ("failed", "ValueError: no luck")


def test_local__large_arguments_fail_alone(pools, tmp_path):
    large = Task("walk", "large", tasks.fail, {"text": "x" * 2_000_000})
    outcomes = {o.task.key: o for o in pools.run([large, *_labels(tmp_path, 2)])}
    assert outcomes["large"].status == "failed"
    assert "write the data to the store" in outcomes["large"].reason
    assert outcomes["0000"].ok
    assert outcomes["0001"].ok


def test_local__everything_listens_on_the_loopback_only(pools, tmp_path):
    list(pools.run(_labels(tmp_path, 4)))
    inodes = set()
    for pid in _processes(str(pools.directory)):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    assert len(listening) >= 4  # scheduler, its dashboard, and the same of each worker
    assert set(listening) == {"0100007F"}


def test_local__performance_report(pools, tmp_path):
    list(pools.run(_labels(tmp_path, 4)))
    path = tmp_path / "report.html"
    there = importlib.util.find_spec("bokeh") is not None
    assert pools.performance_report(path) == there
    assert path.exists() == there
    if there:
        assert "<html" in path.read_text()


@pytest.mark.skipif(importlib.util.find_spec("bokeh") is None, reason="bokeh is not installed")
@pytest.mark.slow
def test_local__performance_reports_hold_the_first_tasks_too(tmp_path):
    settings = ScheduleSettings(backend="local", workers=1, performance_reports=True)
    with Pools.from_settings(settings, directory=tmp_path) as made:
        list(made.run(_labels(tmp_path, 3)))
        assert made.performance_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "number of tasks: 3" in page
    assert all(f"label-{key:04d}" in page for key in range(3))


@pytest.mark.slow
def test_local__gpus_are_shared_out_one_per_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    with Pools.from_settings(_settings(gpus=1), directory=tmp_path) as pools:
        seen = {}
        number = 0
        visible = "CUDA_VISIBLE_DEVICES"
        while len(seen) < 2:
            batch = [
                Task(
                    "train", f"{number + i}", tasks.environment, {"names": ["CUDA_VISIBLE_DEVICES"]}
                )
                for i in range(4)
            ]
            number += 4
            for outcome in pools.run(batch):
                seen[outcome.worker] = outcome.summary[visible]
        assert sorted(seen.values()) == ["4", "7"]


@pytest.mark.slow
def test_local__worker_dies_once_and_the_task_is_done(tmp_path):
    arguments = {"marker": str(tmp_path / "marker"), "output": str(tmp_path / "x.json")}
    with Pools.from_settings(_settings(), directory=tmp_path) as pools:
        (outcome,) = pools.run([Task("label", "x", tasks.die_once, arguments, tmp_path / "x.json")])
    assert outcome.status == "done"


def test_local__task_that_kills_workers_is_quarantined(tmp_path):
    trace = tmp_path / "trace"
    said = []
    with Pools.from_settings(_settings(), directory=tmp_path, progress=said.append) as pools:
        killer = Task("label", "killer", tasks.die, {"trace": str(trace)})
        outcomes = {
            o.task.key: o for o in pools.run([killer, *_labels(tmp_path, 20, seconds=0.05)])
        }
    assert outcomes["killer"].status == "quarantined"
    assert "ended 3 workers (killed by SIGKILL)" in outcomes["killer"].reason
    assert len(trace.read_text().splitlines()) == 3
    assert sum(outcome.ok for outcome in outcomes.values()) == 20
    kept = json.loads((tmp_path / "schedule/quarantine/label-killer.json").read_text())
    assert kept["kwargs"] == {"trace": str(trace)}
    assert kept["function"].endswith("tasks:die")
    assert len(kept["deaths"]) == 3
    assert any("quarantine" in line for line in said)


@pytest.mark.slow
def test_local__whatever_way_a_task_ends_its_workers_it_is_quarantined(tmp_path):
    """By the status of workers that lost their scheduler, as SLURM would, and with its job."""
    killers = [
        Task("label", "status", tasks.end_with, {"status": EXIT_LOST}),
        Task("label", "term", tasks.die, {"number": signal.SIGTERM}),
        Task("label", "job", tasks.end_job),
    ]
    with Pools.from_settings(_settings(workers=3), directory=tmp_path) as pools:
        reasons = {o.task.key: (o.status, o.reason) for o in pools.run(killers)}
        (after,) = pools.run(_labels(tmp_path, 1))
    assert reasons == {
        "status": ("quarantined", f"it ended 3 workers (exit status {EXIT_LOST})"),
        "term": ("quarantined", "it ended 3 workers (killed by SIGTERM)"),
        "job": ("quarantined", "it ended 3 workers (its job was killed)"),
    }
    assert after.ok


@pytest.mark.slow
def test_local__memory_of_a_pool_is_a_limit(tmp_path):
    with Pools.from_settings(_settings(memory="400MB", workers=1), directory=tmp_path) as pools:
        (outcome,) = pools.run([Task("label", "big", tasks.hoard, {"megabytes": 600})])
    assert outcome.status == "quarantined"
    assert "out of memory" in outcome.reason
    assert "of 0.40 GB" in outcome.reason


def _hidden(folder):
    """Programs that `tasks.leave_behind` started and that still run."""
    pids = [int(path.read_text()) for path in folder.glob("*.hidden") if path.read_text()]
    return [
        pid
        for pid in pids
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.slow
def test_local__memory_of_what_a_label_leaves_behind_counts(tmp_path):
    """None of them is the worker's child or in its session, and each alone is small."""
    arguments = {"folder": str(tmp_path), "megabytes": 150, "number": 3, "seconds": 60}
    with Pools.from_settings(_settings(memory="400MB", workers=1), directory=tmp_path) as pools:
        (outcome,) = pools.run([Task("label", "big", tasks.leave_behind, arguments)])
        assert outcome.status == "quarantined"
        assert "out of memory" in outcome.reason
    assert len(list(tmp_path.glob("*.hidden"))) == 3
    assert _hidden(tmp_path) == []


@pytest.mark.slow
def test_local__nothing_outlives_the_pools(tmp_path):
    arguments = {"folder": str(tmp_path), "megabytes": 0, "number": 2, "seconds": 0}
    with Pools.from_settings(_settings(workers=1), directory=tmp_path) as pools:
        (outcome,) = pools.run([Task("label", "quick", tasks.leave_behind, arguments)])
        assert outcome.ok
        assert len(_hidden(tmp_path)) == 2  # a calculator may keep a server for its next label
    assert _hidden(tmp_path) == []


@pytest.mark.slow
def test_local__logs_of_workers_stay_within_bounds(tmp_path):
    with Pools.from_settings(_settings(workers=1), directory=tmp_path) as pools:
        (outcome,) = pools.run([Task("label", "loud", tasks.chatter, {"megabytes": 20})])
        (other,) = pools.run([Task("label", "cross", tasks.complain, {"megabytes": 20})])
    assert outcome.ok
    assert other.status == "failed"
    assert len(other.reason) < 2000
    (log,) = (tmp_path / "schedule" / "logs").glob("*.0.log")
    content = log.read_bytes()
    assert HEAD + TAIL <= len(content) <= HEAD + 2 * TAIL + 1000
    assert b"the end\n" in content[-5000:]
    everything = sum(f.stat().st_size for f in (tmp_path / "schedule").rglob("*") if f.is_file())
    assert everything < 2_000_000


def test_local__killed_workers_cost_nothing_but_what_they_had_in_hand(tmp_path):
    trace = tmp_path / "trace"
    with Pools.from_settings(_settings(), directory=tmp_path) as pools:
        kills = 0
        work = _labels(tmp_path, 30, seconds=0.2, trace=str(trace))
        for number, _ in enumerate(pools.run(work), start=1):
            if number in (5, 15):
                os.kill(_workers(tmp_path)[0], signal.SIGKILL)
                kills += 1
    starts = _starts(trace)
    assert len(starts) == 30
    # One in hand, and one more that had travelled ahead and may have just been started.
    assert sum(starts.values()) <= 30 + kills
    durable = Counter(
        line.split()[1] for line in trace.read_text().splitlines() if line.startswith("durable")
    )
    assert set(durable.values()) == {1}


@pytest.mark.slow
def test_local__a_scheduler_that_dies_is_replaced(tmp_path):
    trace = tmp_path / "trace"
    said = []
    with Pools.from_settings(_settings(), directory=tmp_path, progress=said.append) as pools:
        work = _labels(tmp_path, 16, seconds=0.4, trace=str(trace))
        outcomes = []
        for outcome in pools.run(work):
            outcomes.append(outcome)
            if len(outcomes) == 4:
                (pid,) = [p for p, c in _processes(str(tmp_path)).items() if "e.scheduler" in c]
                os.kill(pid, signal.SIGKILL)
    assert {outcome.ok for outcome in outcomes} == {True}
    assert len(outcomes) == 16
    assert any("the scheduler is gone" in line for line in said)
    # Workers finished what they had in hand, and nobody did it again.
    assert set(_starts(trace).values()) == {1}


@pytest.mark.slow
def test_local__a_pool_that_dies_on_arrival_is_given_up(tmp_path):
    broken = _settings(environment={"PYTHONHOME": "/nowhere"})
    with (
        Pools.from_settings(broken, directory=tmp_path) as pools,
        pytest.raises(Exception, match="last 3 jobs ended before a worker connected") as caught,
    ):
        list(pools.run(_labels(tmp_path, 2)))
    assert "No module named 'encodings'" in str(caught.value)  # the job's log is in the message
    assert len(list((tmp_path / "schedule" / "logs").glob("local-?.log"))) <= 5


_DRIVER = """
import sys
from pathlib import Path
from typing import Any
from tests.schedule import tasks
from mofal.schedule import Pools, ScheduleSettings, Task
folder = Path(sys.argv[1])
program = folder / "program"
work = [Task("walk", "program", tasks.start_program, {"output": str(program)}, folder / "never")]
for value in range(40):
    path = folder / f"{value:04d}.json"
    arguments = {"output": str(path), "seconds": 0.2, "trace": str(folder / "trace")}
    work.append(Task("label", f"{value:04d}", tasks.label, arguments, path))
settings = ScheduleSettings(backend="local", workers=2)
with Pools.from_settings(settings, directory=folder, progress=print) as pools:
    for outcome in pools.run(work):
        print(outcome.task.key, flush=True)
"""


@pytest.fixture
def driver(tmp_path):
    """A driver in a process of its own, in the middle of its work."""
    script = tmp_path / "driver.py"
    script.write_text(_DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_local__workers_end_with_a_killed_driver(tmp_path, driver):
    for _ in range(3):
        assert driver.stdout.readline()
    _until((tmp_path / "program").exists)
    program = int((tmp_path / "program").read_text())
    everything = {*_processes(str(tmp_path)), program}
    assert len(everything) >= 6  # driver, scheduler, two jobs, a worker, a program
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    start = time.monotonic()
    _until(lambda: not _processes(str(tmp_path)) and not Path(f"/proc/{program}").exists())
    assert time.monotonic() - start < 5.0
    assert "Traceback" not in driver.stderr.read()
    # What is there is whole, and the next driver takes it for done.
    whole = [path for path in tmp_path.glob("0*.json") if json.loads(path.read_text())]
    with Pools.from_settings(_settings(), directory=tmp_path) as pools:
        outcomes = list(pools.run(_labels(tmp_path, 40, trace=str(tmp_path / "trace"))))
    assert sum(o.status == "found" for o in outcomes) == len(whole) >= 2
    assert sum(_starts(tmp_path / "trace").values()) <= 40 + 2  # at most one per worker again


@pytest.mark.slow
def test_local__interrupted_driver_leaves_nothing(tmp_path, driver):
    for _ in range(2):
        assert driver.stdout.readline()
    driver.send_signal(signal.SIGINT)
    _, error = driver.communicate(timeout=20)
    assert error.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert "distributed" not in error
    _until(lambda: not _processes(str(tmp_path)))


def test_local__claim_of_a_dead_worker_is_not_believed(tmp_path):
    layout = Layout(tmp_path / "schedule")
    layout.make()
    layout.claim("label-0000").write_text(json.dumps({"worker": "local-9.0.1", "job": "local-9"}))
    layout.beat("local-9").write_text(
        json.dumps(
            {
                "host": os.uname().nodename,
                "pid": os.getpid(),
                "process": "1",
                "workers": ["local-9.0.1"],
                "beat": 3,
            }
        )
    )
    with Pools.from_settings(_settings(), directory=tmp_path) as pools:
        (outcome,) = pools.run(_labels(tmp_path, 1))
    assert outcome.status == "done"


def test_local__claim_of_a_living_worker_is_waited_for(tmp_path):
    layout = Layout(tmp_path / "schedule")
    layout.make()
    layout.claim("label-0000").write_text(json.dumps({"worker": "local-9.0.1", "job": "local-9"}))
    from mofal.schedule.files import process_start

    beat = {
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "process": process_start(os.getpid()),
        "workers": ["local-9.0.1"],
        "beat": 3,
    }
    layout.beat("local-9").write_text(json.dumps(beat))
    with Pools.from_settings(_settings(), directory=tmp_path) as pools:
        handles = [pools.submit(task) for task in _labels(tmp_path, 1)]
        assert list(pools.as_completed(handles, timeout=1.5)) == []
        tasks.write(tmp_path / "0000.json", '{"value": 0}')  # the other worker is done
        (outcome,) = pools.as_completed(handles)
    assert outcome.status == "found"
    assert "claimed" in [event["event"] for event in read_events(tmp_path)]


def test_local__idle_pools_end_quickly(tmp_path):
    start = time.monotonic()
    with Pools.from_settings(_settings(), directory=tmp_path) as pools:
        list(pools.run(_labels(tmp_path, 2)))
        middle = time.monotonic()
    assert time.monotonic() - middle < 3.0
    assert middle - start < 15.0
    assert read_json(tmp_path / "schedule" / "scheduler.json") is None
    assert not _processes(str(tmp_path))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this test mounts a small file system, which takes root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(path):
    """Write a file until the disk is full."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(fd, b"x" * 1024):
            pass
    except OSError:
        pass
    finally:
        os.close(fd)


def test_local__full_disk_costs_time_and_no_results(small_disk):
    """Tasks fail with the reason while the disk is full, and are done when it is not."""
    with Pools.from_settings(_settings(workers=1), directory=small_disk) as pools:
        (first,) = pools.run(_labels(small_disk, 1))
        assert first.status == "done"
        _fill(small_disk / "filler")
        outcomes = list(pools.run(_labels(small_disk, 3)))
        assert sorted(o.status for o in outcomes) == ["failed", "failed", "found"]
        assert all("No space left" in o.reason for o in outcomes if o.status == "failed")
        (small_disk / "filler").unlink()
        outcomes = list(pools.run(_labels(small_disk, 3)))
        assert sorted(o.status for o in outcomes) == ["done", "done", "found"]
    assert len(list(small_disk.glob("*.json"))) == 3


def _cut(pid: int) -> int:
    """Shut every TCP connection of a process, as if its network were gone; return how many."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    number = 0
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if not os.readlink(entry).startswith("socket:["):
                    continue
            except OSError:
                continue
            copy = libc.syscall(438, process, int(entry.name), 0)  # pidfd_getfd
            if copy < 0:
                pytest.skip("this kernel does not lend file descriptors")
            with socket.socket(fileno=copy) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                try:
                    connection.getpeername()  # one that listens has no peer, and stays
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
                number += 1
    finally:
        os.close(process)
    return number


def _process(folder, module):
    (pid,) = [p for p, c in _processes(str(folder)).items() if f"mofal.schedule.{module}" in c]
    return pid


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["scheduler", "worker", "driver"])
def test_local__connections_that_are_cut_cost_time_alone(tmp_path, whose):
    """All at once, those of the workers, or those of the driver: nothing waits for ever."""
    trace = tmp_path / "trace"
    said = []
    with Pools.from_settings(_settings(), directory=tmp_path, progress=said.append) as pools:
        work = _labels(tmp_path, 8, seconds=0.5, trace=str(trace))
        handles = [pools.submit(task) for task in work]
        outcomes = []
        for outcome in pools.as_completed(handles, timeout=60):
            outcomes.append(outcome)
            if len(outcomes) == 3:
                if whose == "scheduler":
                    assert _cut(_process(tmp_path, "scheduler")) >= 3
                elif whose == "driver":
                    assert _cut(os.getpid()) >= 1
                else:
                    assert all(_cut(pid) >= 1 for pid in _workers(tmp_path))
    assert [outcome.status for outcome in outcomes].count("failed") == 0
    assert len(outcomes) == 8
    # Workers finished what they had in hand, and nobody did it again.
    assert set(_starts(trace).values()) == {1}


@pytest.mark.slow
def test_local__connection_that_breaks_under_a_long_task_is_not_held_against_it(
    tmp_path, monkeypatch
):
    """Its worker says nothing for longer than reasons are waited for: it is at work."""
    monkeypatch.setattr(cluster, "REASON_TIMEOUT", 0.5)
    trace = tmp_path / "trace"
    with Pools.from_settings(_settings(workers=1), directory=tmp_path) as pools:
        (handle,) = [pools.submit(t) for t in _labels(tmp_path, 1, seconds=4.0, trace=str(trace))]
        _until(trace.exists)
        assert _cut(_workers(tmp_path)[0]) >= 1
        (outcome,) = pools.as_completed([handle], timeout=60)
    assert outcome.status == "found"
    assert set(_starts(trace).values()) == {1}
    lost = [event["blame"] for event in read_events(tmp_path) if event["event"] == "lost"]
    assert lost == ["none"]


@pytest.mark.slow
def test_local__task_that_ends_a_worker_without_a_connection_is_held_to_account(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cluster, "REASON_TIMEOUT", 0.5)
    trace = tmp_path / "trace"
    pool = {"kinds": ["*"], "workers": 1}
    settings = ScheduleSettings.model_validate({"kills": 1, "pools": {"local": pool}})
    with Pools.from_settings(settings, directory=tmp_path) as pools:
        killer = Task("label", "x", tasks.die, {"trace": str(trace), "seconds": 5.0})
        handle = pools.submit(killer)
        _until(trace.exists)
        assert _cut(_workers(tmp_path)[0]) >= 1
        (outcome,) = pools.as_completed([handle], timeout=60)
    assert outcome.status == "quarantined"
    assert outcome.reason == "it ended 1 workers (killed by SIGKILL)"
    assert "claimed" in [event["event"] for event in read_events(tmp_path)]


@pytest.mark.slow
def test_local__messages_that_are_lost_and_a_scheduler_that_is_stuck(tmp_path, monkeypatch):
    """What is known of workers and attempts is compared, and no message is relied on."""
    monkeypatch.setattr(cluster, "COMPARISON", 0.2)
    monkeypatch.setattr(link, "ANSWER", 0.5)
    lose = []
    hear = cluster.ClusterBackend._event

    def event(self, message):
        if message[1]["type"] not in lose:
            hear(self, message)

    monkeypatch.setattr(cluster.ClusterBackend, "_event", event)
    said = []
    with Pools.from_settings(_settings(workers=1), directory=tmp_path, progress=said.append) as p:
        lose[:] = ["worker"]
        (first,) = p.as_completed([p.submit(t) for t in _labels(tmp_path, 1)], timeout=60)
        assert first.status == "done"
        lose[:] = ["finished"]
        handles = [p.submit(t) for t in _labels(tmp_path, 1, start=1)]
        (second,) = p.as_completed(handles, timeout=60)
        assert second.status == "found"
        lose[:] = ["gone"]
        os.kill(_workers(tmp_path)[0], signal.SIGKILL)
        handles = [p.submit(t) for t in _labels(tmp_path, 1, start=2)]
        (third,) = p.as_completed(handles, timeout=60)
        assert third.status == "done"
        lose[:] = []
        os.kill(_process(tmp_path, "scheduler"), signal.SIGSTOP)
        handles = [p.submit(t) for t in _labels(tmp_path, 1, start=3)]
        (fourth,) = p.as_completed(handles, timeout=60)
        assert fourth.ok
    assert any("does not answer" in line for line in said)


# ---------------------------------------------------------------------------------- wide tasks
def _wide(folder: Path, *, width: int = 3, priority: int = 5, **kwargs: Any) -> Task:
    path = folder / "wide.json"
    arguments = {"output": str(path), **kwargs}
    return Task("density", "wide", tasks.wide, arguments, path, priority=priority, width=width)


def test_local__a_wide_task_borrows_idle_workers_and_gives_them_back(tmp_path: Path) -> None:
    """Its graphs go to workers of its pool that have nothing else, and those get nothing else."""
    trace = tmp_path / "trace"
    settings = ScheduleSettings.model_validate(
        {
            "backend": "local",
            "pools": {
                "cpu": {"kinds": ["*"], "workers": 3},
                "other": {"kinds": ["train"], "workers": 1},
            },
        }
    )
    with Pools.from_settings(settings, directory=tmp_path) as pools:
        path, until = tmp_path / "0000.json", str(tmp_path / "wide.json")
        arguments = {"output": str(path), "until": until, "trace": str(trace)}
        first = pools.submit(Task("label", "0000", tasks.hold, arguments, path))
        # A worker of another pool has nothing to do with it.
        other = pools.submit(Task("train", "pid", tasks.environment, {"names": []}))
        _until(lambda: trace.exists())
        wide = pools.submit(_wide(tmp_path, rounds=4, trace=str(trace)))
        # Less urgent than the wide task: it waits although a worker will be idle.
        late = [pools.submit(t) for t in _labels(tmp_path, 2, start=1, trace=str(trace))]
        outcomes = {o.task.key: o for o in pools.as_completed([first, other, wide, *late])}
    assert all(o.ok for o in outcomes.values()), [o.reason for o in outcomes.values()]
    found = json.loads((tmp_path / "wide.json").read_text())
    assert found["shared"]
    assert len(set(found["pids"])) == 2  # its own worker and the idle one, not the label's
    assert found["own"] in found["pids"]
    lines = [line.split() for line in trace.read_text().splitlines()]
    busy = next(int(words[2]) for words in lines if words[1] == "0000.json")
    assert busy not in found["pids"]
    order = [words[:2] for words in lines]
    borrowed = next(pid for pid in found["pids"] if pid != found["own"])
    late_on = {int(words[2]) for words in lines if words[1] in ("0001.json", "0002.json")}
    if borrowed in late_on:
        first_late = next(
            i for i, w in enumerate(lines) if w[0] == "start" and int(w[2]) == borrowed
        )
        assert order.index(["durable", "wide.json"]) < first_late
    assert any(e["event"] == "lent" for e in read_events(tmp_path))


def test_local__a_wide_task_whose_worker_or_lent_worker_is_killed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with Pools.from_settings(_settings(workers=3), directory=tmp_path) as pools:
        wide = pools.submit(_wide(tmp_path, rounds=12, trace=str(trace)))

        def lent() -> list[str]:
            return [e["worker"] for e in read_events(tmp_path) if e["event"] == "lent"]

        _until(lambda: len(lent()) == 2)
        time.sleep(0.3)
        own = int(trace.read_text().split()[2])
        borrowed = [pid for pid in _workers(tmp_path) if pid != own]
        os.kill(borrowed[0], signal.SIGKILL)  # its part is done again elsewhere
        time.sleep(0.6)
        os.kill(own, signal.SIGKILL)  # the task begins anew
        (outcome,) = pools.as_completed([wide])
    assert outcome.status == "done"
    assert _starts(trace) == {"wide.json": 2}
    assert len(set(json.loads((tmp_path / "wide.json").read_text())["pids"])) >= 2


@pytest.mark.parametrize("backend", ["inline", "threads"])
def test_wide__elsewhere_its_graphs_run_in_its_own_process(backend: str, tmp_path: Path) -> None:
    with Pools.from_settings(
        ScheduleSettings(backend=backend, workers=2), directory=tmp_path
    ) as pools:
        (outcome,) = pools.run([_wide(tmp_path, number=2)])
    assert outcome.summary == {"processes": 1, "own": True, "shared": False}
