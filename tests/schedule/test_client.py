"""`Pools` on the workers of a Dask client that somebody else started."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import pytest

import mofal
from mofal.errors import ConfigError, ScheduleError
from mofal.schedule import Pools, ScheduleSettings, Task, read_events

from . import tasks

distributed = pytest.importorskip("distributed")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster():
    """Two workers, on which a task that has ended two of them is given up."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as made,
    ):
        yield made


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster, set_as_default=False) as made:
        yield made


def _labels(folder, number, **kwargs):
    for value in range(number):
        path = folder / f"{value:04d}.json"
        arguments = {"output": str(path), "value": value} | kwargs
        yield Task("label", f"{value:04d}", tasks.label, arguments, path)


def _pools(client, folder, said=None, **settings):
    section = ScheduleSettings.model_validate(settings)
    progress = None if said is None else said.append
    return Pools(section, directory=folder, client=client, progress=progress)


def test_run__on_workers_of_others(client, tmp_path):
    said = []
    with _pools(client, tmp_path, said) as pools:
        outcomes = list(pools.run(_labels(tmp_path, 8, seconds=0.05)))
        again = list(pools.run(_labels(tmp_path, 9)))
        inside = list(pools.run([Task("walk", str(n), tasks.dask_pid) for n in range(4)]))
        failed = list(pools.run([Task("walk", "x", tasks.fail), Task("walk", "y", tasks.summary)]))
    assert {o.status for o in outcomes} == {"done"}
    assert all(o.task.output.exists() and o.wall_time > 0.05 for o in outcomes)
    names = {str(facts["name"]) for facts in client.scheduler_info()["workers"].values()}
    assert {o.worker for o in outcomes} == names == {"0", "1"}
    assert sorted(o.status for o in again) == ["done", *["found"] * 8]
    # What a task asks Dask for is computed where the task is, and not behind the tasks that wait.
    assert all(o.summary["task"] == o.summary["computed"] != os.getpid() for o in inside)
    assert {o.reason for o in failed if not o.ok} == {"ValueError: no luck"}
    assert [o.summary for o in failed if o.ok] == [{"list": [1, [2, 3]], "number": 0.1}]
    # Who begins is known when it begins, and what this cannot give is said.
    started = [e for e in read_events(tmp_path) if e["event"] == "start"]
    assert {e["worker"] for e in started} == {"0", "1"}
    assert len(started) == 15
    assert any("no jobs that wait for the next driver" in line for line in said)
    assert client.status == "running"
    assert not list((tmp_path / "schedule").glob("mark-*"))
    assert not list((tmp_path / "schedule" / "claims").iterdir())


def test_run__priority_then_the_longest(client, tmp_path):
    """What waits in Dask goes in the order of the other backends, however it came."""

    def begun():
        return [e["key"] for e in read_events(tmp_path) if e["event"] == "start"]

    with _pools(client, tmp_path) as pools:
        held = []
        for number in range(2):
            arguments = {"output": str(tmp_path / f"h{number}"), "seconds": 0.7}
            held.append(pools.submit(Task("walk", f"h{number}", tasks.label, arguments)))
        deadline = time.monotonic() + 60
        while len(begun()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        for cost in (1, 5, 2, 9, 700, 40):
            facts = {"cost": float(cost), "priority": int(cost == 2)}
            held.append(
                pools.submit(Task("walk", str(cost), tasks.environment, {"names": []}, **facts))
            )
            time.sleep(0.02)
        assert all(o.ok for o in pools.as_completed(held))
    order = begun()
    assert set(order[:2]) == {"h0", "h1"}
    # A worker that is at work may hold one more already: the two that came first.
    rest = [key for key in order[2:] if key not in ("1", "5")]
    # Two workers begin at nearly the same time, whoever was sent its task first.
    assert "2" in rest[:2], order
    places = [rest.index(key) for key in ("700", "40", "9")]
    assert all(b >= a - 1 for a, b in itertools.pairwise(places)), order


def test_run__a_task_that_ends_workers_is_put_aside(client, tmp_path):
    bad = Task("label", "bad", tasks.die, {"trace": str(tmp_path / "trace")}, tmp_path / "bad")
    with _pools(client, tmp_path) as pools:
        outcomes = {o.task.key: o for o in pools.run([bad])}
        after = list(pools.run(_labels(tmp_path, 3)))
    assert outcomes["bad"].status == "quarantined"
    assert "2 workers ended with it in hand" in outcomes["bad"].reason
    assert "allowed-failures" in outcomes["bad"].reason
    assert len((tmp_path / "trace").read_text().splitlines()) == 2
    kept = json.loads((tmp_path / "schedule" / "quarantine" / "label-bad.json").read_text())
    assert kept["function"] == "tests.schedule.tasks:die"
    assert {o.status for o in after} == {"done"}


def test_run__a_task_that_its_driver_gave_up_is_waited_for(client, tmp_path):
    """A second driver does not compute what a worker still has in hand for the first."""
    trace = tmp_path / "trace"
    with contextlib.suppress(KeyboardInterrupt), _pools(client, tmp_path) as pools:
        pools.submit(*_labels(tmp_path, 1, seconds=1.5, trace=str(trace)))
        deadline = time.monotonic() + 60
        while not trace.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        raise KeyboardInterrupt
    with _pools(client, tmp_path) as pools:
        (outcome,) = pools.run(_labels(tmp_path, 1, seconds=1.5, trace=str(trace)))
    assert outcome.status == "found"
    assert [line.split()[0] for line in trace.read_text().splitlines()] == ["start", "durable"]


def test_cancel__what_waits_in_dask(client, tmp_path):
    with _pools(client, tmp_path) as pools:
        handles = [pools.submit(task) for task in _labels(tmp_path, 20, seconds=0.4)]
        next(pools.as_completed(handles))
        cancelled = pools.cancel(handles)
        left = [h for h in handles if h._entry.error is None]
        assert 12 <= cancelled == 20 - len(left)
        assert all(o.ok for o in pools.as_completed(left))


def _refusal(client, folder, *, tasks=1, meanwhile=None, **settings):
    """The one line with which a run ends that cannot be."""
    with pytest.raises((ConfigError, ScheduleError)) as caught:
        _run(client, folder, tasks, meanwhile, settings)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def _run(client, folder, number, meanwhile, settings):
    with _pools(client, folder, **settings) as pools:
        for index, _ in enumerate(pools.run(_labels(folder, number, seconds=0.2))):
            if index == 2:
                threading.Thread(target=meanwhile).start()


def test_start__workers_of_another_kind_are_refused(tmp_path):
    """Another version, or none: one line, and nothing has been done."""
    with (
        distributed.LocalCluster(n_workers=1, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.submit(exec, "import mofal; mofal.__version__ = '0.0.1'").result()
        another = _refusal(client, tmp_path)
        client.submit(exec, "import sys; sys.modules['mofal'] = None").result()
        none = _refusal(client, tmp_path)
    assert "found mofal 0.0.1 on a worker" in another
    assert f"and {mofal.__version__} here" in another
    assert "cannot import mofal (ModuleNotFoundError" in none
    assert not list(tmp_path.glob("*.json"))


def test_start__adaptive_from_no_worker(tmp_path):
    """It starts none until something waits, and the first that comes is looked at."""
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="200ms")
        with _pools(client, tmp_path) as pools:
            outcomes = list(pools.run(_labels(tmp_path, 6, seconds=0.1)))
    assert [o.status for o in outcomes] == ["done"] * 6


def test_run__in_the_session_itself(tmp_path, monkeypatch):
    """Four threads of this process: one task at a time, and everything as it was afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with (
        distributed.LocalCluster(
            processes=False, n_workers=1, threads_per_worker=4, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        before = dask.config.get("scheduler", None)
        settings = {"pools": {"all": {"threads": 2, "environment": {"MOFAL_TEST": "here"}}}}
        with _pools(client, tmp_path, **settings) as pools:
            trace = tmp_path / "trace"
            list(pools.run(_labels(tmp_path, 5, seconds=0.05, trace=str(trace))))
            names = ["OMP_NUM_THREADS", "MOFAL_THREADS", "MOFAL_POOL", "MOFAL_TEST"]
            (seen,) = pools.run([Task("walk", "e", tasks.environment, {"names": names})])
    words = [line.split()[:2] for line in trace.read_text().splitlines()]
    assert [word for word, _ in words] == ["start", "durable"] * 5
    assert [name for _, name in words[::2]] == [name for _, name in words[1::2]]
    assert seen.summary == dict(zip(names, ("2", "2", "all", "here"), strict=True))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MOFAL_TEST" not in os.environ
    assert dask.config.get("scheduler", None) == before


def _keys(folder):
    """Dask's own keys, as its configuration names them."""
    from distributed.security import Security

    security = Security.temporary()
    (folder / "ca.pem").write_text(security.tls_ca_file)
    (folder / "cert.pem").write_text(security.tls_client_cert + security.tls_client_key)
    config = {"distributed.comm.require-encryption": True}
    config["distributed.comm.tls.ca-file"] = str(folder / "ca.pem")
    for role in ("scheduler", "worker", "client"):
        config[f"distributed.comm.tls.{role}.cert"] = str(folder / "cert.pem")
    return config


def _hand_started(folder, environment):
    """A scheduler and two workers, one of which declares a resource, as one types them."""
    file = folder / "scheduler.json"
    python = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, **environment, "PYTHONPATH": python}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    scheduler += ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
    command = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard"]
    command += ["--scheduler-file", str(file), "--nthreads", "1", "--no-nanny"]
    command += ["--host", "127.0.0.1", "--local-directory", str(folder)]
    kinds = [["--name", "plain"], ["--name", "qm", "--resources", "dft=1"]]
    with (folder / "log").open("wb") as log:
        return [
            subprocess.Popen(line, env=environment, stdout=log, stderr=log, cwd=folder)
            for line in (scheduler, *[[*command, *kind] for kind in kinds])
        ]


def test_run__hand_started_with_tls_and_resources(tmp_path, monkeypatch):
    """By address: TLS from Dask's configuration; a kind goes where its resource is."""
    pytest.importorskip("cryptography")
    config = _keys(tmp_path)
    names = {k.upper().replace(".", "__").replace("-", "_"): v for k, v in config.items()}
    processes = _hand_started(tmp_path, {f"DASK_{k}": str(v) for k, v in names.items()})
    try:
        file = tmp_path / "scheduler.json"
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        assert address.startswith("tls://")
        with dask.config.set(config):
            section = {
                "backend": "client",
                "address": address,
                "resources": ["dft"],
                "pools": {"cpu": {}, "dft": {"kinds": ["label"]}},
            }
            settings = ScheduleSettings.model_validate(section)
            with Pools(settings, directory=tmp_path / "work") as pools:
                list(pools.run([Task("walk", "first", tasks.environment, {"names": []})]))
                outcomes = list(pools.run(_labels(tmp_path, 4, seconds=0.05)))
        assert [o.status for o in outcomes] == ["done"] * 4
        assert {o.worker for o in outcomes} == {"qm"}
        # Without those certificates nobody gets in, and that is one line.
        plain = address.replace("tls:", "tcp:")
        monkeypatch.setattr("mofal.schedule.client.CONNECT", 1.0)
        message = _refusal(None, tmp_path / "work", backend="client", address=plain)
        assert message.startswith(f"found no Dask scheduler at {plain} (")
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(timeout=20)


def _has_namespaces():
    command = ["unshare", "-rm", "true"] if os.geteuid() else ["unshare", "-m", "true"]
    found = shutil.which("unshare") is not None
    return found and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not _has_namespaces(), reason="needs mount namespaces")
def test_start__no_shared_file_system_is_one_line(tmp_path, monkeypatch):
    """A worker in whose view the campaign's directory is another one."""
    monkeypatch.setattr("mofal.schedule.client.PATIENCE", 1.0)
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir(), own.mkdir()
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        line = f"mount -t tmpfs none {own} && exec {sys.executable} -m distributed.cli.dask_worker "
        line += f"{cluster.scheduler_address} --no-nanny --no-dashboard --local-directory {shared}"
        unshare = ["unshare", "-rm" if os.geteuid() else "-m", "sh", "-c", line]
        python = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        worker = subprocess.Popen(
            unshare, env={**os.environ, "PYTHONPATH": python}, stderr=subprocess.DEVNULL
        )
        try:
            said = _refusal(client, own)
        finally:
            worker.terminate()
            worker.wait(timeout=20)
    assert f"found no {own} on a worker (" in said
    assert "expected a file system that the session and all workers share" in said


def test_run__a_cluster_that_goes_is_one_line(tmp_path):
    with distributed.LocalCluster(n_workers=1, dashboard_address=None, silence_logs=50) as cluster:
        client = distributed.Client(cluster, set_as_default=False, timeout="1s")
        said = _refusal(client, tmp_path, tasks=30, meanwhile=cluster.close)
        client.close(timeout=1)
    assert said.endswith("run the campaign again")
    assert len(list(tmp_path.glob("0*.json"))) >= 3


def test_client__mistakes_are_one_line(tmp_path):
    for client in (3, "tcp://127.0.0.1:1"):
        assert "expected a distributed.Client" in _refusal(client, tmp_path)
    assert "backend client without an address" in _refusal(None, tmp_path, backend="client")
    for section, message in (
        ({"address": "tcp://a:1"}, "found address with backend local"),
        ({"backend": "client", "resources": ["dft"]}, "which no pool is called"),
    ):
        with pytest.raises(ValueError, match=message):
            ScheduleSettings.model_validate(section)
