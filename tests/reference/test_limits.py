"""Limits of a command hold for all that it starts, and its log stays within bounds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ase.build import molecule

from mofal.reference import label_one
from mofal.reference.child import run_process
from mofal.reference.keeper import HEAD, TAIL, BoundedLog
from mofal.reference.processes import MEMORY_LIMIT, descendants

# A process that hides in one of the ways that there are, and says who it is when it has hidden.
HIDE = """
import os, signal, sys, time
way, megabytes = sys.argv[1], int(sys.argv[2])
if way == "group":
    os.setpgid(0, 0)
if way in ("session", "daemon", "stubborn") and os.fork():
    os._exit(0) if way == "daemon" else (os.wait(), os._exit(0))
if way in ("session", "daemon", "stubborn"):
    os.setsid()
if way == "daemon" and os.fork():
    os._exit(0)
if way == "stubborn":
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
if way == "bare":
    os.execve(sys.executable, [sys.executable, "-c",
        "import os, time; open('bare.pid', 'w').write(str(os.getpid())); time.sleep(300)"], {})
data = bytearray(megabytes * 1_000_000)
data[::4096] = b"x" * len(data[::4096])
open(f"{way}.tmp", "w").write(str(os.getpid()))
os.rename(f"{way}.tmp", f"{way}.pid")
time.sleep(300)
"""
WAYS = ("plain", "group", "session", "daemon", "stubborn", "bare")
# Starts one of each and waits until all have hidden; then ends, or sleeps.
START = """
import os, subprocess, sys, time
ways, megabytes, rest = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
for way in ways:
    subprocess.Popen([sys.executable, "hide.py", way, megabytes])
while not all(os.path.exists(f"{way}.pid") for way in ways):
    time.sleep(0.02)
open("ready", "w").close()
if rest != "end":
    time.sleep(300)
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "hide.py").write_text(HIDE)
    (tmp_path / "start.py").write_text(START)
    yield tmp_path
    for file in tmp_path.glob("*.pid"):  # none is left after a test that fails
        if file.read_text() and psutil.pid_exists(int(file.read_text())):
            os.kill(int(file.read_text()), signal.SIGKILL)


def alive(place):
    """Ways of those that still run."""
    found = []
    for file in place.glob("*.pid"):
        try:
            if psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE:
                found.append(file.stem)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def start(ways, megabytes=0, rest="sleep"):
    return [sys.executable, "start.py", ",".join(ways), str(megabytes), rest]


def test_run_process__nothing_outlives_a_command_that_ends(place):
    ways = [way for way in WAYS if way != "stubborn"]  # for whom one has to wait
    ended = run_process(start(ways, rest="end"), directory=place, time_limit_s=60)
    assert ended.returncode == 0
    assert len(list(place.glob("*.pid"))) == len(ways)
    assert alive(place) == []


@pytest.mark.slow
def test_run_process__nothing_outlives_a_time_limit(place, monkeypatch):
    ended = run_process(start(WAYS), directory=place, time_limit_s=3)
    assert ended.timed_out
    assert len(list(place.glob("*.pid"))) == len(WAYS)
    assert alive(place) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["waiter", "keeper", "command"])
def test_run_process__nothing_outlives_whoever_is_killed(place, victim):
    code = (
        "import sys; from pathlib import Path\n"
        "from mofal.reference.child import run_process\n"
        "ended = run_process(sys.argv[2:], directory=Path(sys.argv[1]), time_limit_s=None,\n"
        "                    watch_memory=True)\n"
        "print(ended.returncode)\n"
    )
    waiter = subprocess.Popen(
        [sys.executable, "-c", code, str(place), *start(WAYS)], stdout=subprocess.PIPE, text=True
    )
    wait_for((place / "ready").exists)
    time.sleep(0.5)  # it has looked since
    (keeper,) = psutil.Process(waiter.pid).children()
    command = next(p for p in keeper.children() if "start.py" in p.cmdline())
    {"waiter": waiter, "keeper": keeper, "command": command}[victim].send_signal(signal.SIGKILL)
    out = waiter.communicate(timeout=30)[0]
    if victim != "waiter":
        assert int(out) == -signal.SIGKILL
    wait_for(lambda: alive(place) == [])


def test_run_process__memory_of_all_counts(place):
    """Each alone is far below the limit, and none is in the command's session."""
    ended = run_process(
        start(["session", "daemon", "group"], 60),
        directory=place,
        time_limit_s=30,
        memory_limit_bytes=150e6,
    )
    assert ended.out_of_memory
    assert not ended.timed_out
    assert ended.peak_memory_bytes > 150e6
    assert alive(place) == []


def test_run_process__memory_that_is_shared_counts_once(tmp_path):
    code = (
        "import os, time\n"
        "data = bytearray(80_000_000); data[::4096] = b'x' * len(data[::4096])\n"
        "for _ in range(4):\n"
        "    if not os.fork():\n"
        "        time.sleep(1.0); os._exit(0)\n"
        "time.sleep(1.2)\n"
    )
    ended = run_process(
        [sys.executable, "-c", code],
        directory=tmp_path,
        time_limit_s=30,
        memory_limit_bytes=200e6,
    )
    assert not ended.out_of_memory
    assert ended.returncode == 0
    assert 80e6 < ended.peak_memory_bytes < 200e6


def test_label_one__beyond_the_memory_of_its_pool(faulty, tmp_path, monkeypatch):
    monkeypatch.setenv(MEMORY_LIMIT, str(50_000_000))  # less than Python with ASE takes
    spec = f"{faulty}?isolated=true&fault=sleep"
    attempt = label_one(molecule("H2O"), spec, directory=tmp_path)
    assert attempt.status == "out_of_memory"
    assert "what its pool's memory leaves it" in attempt.reason
    assert not [p for p in descendants(os.getpid()) if "mofal.reference.child" in p.cmdline()]


def label_there(*, spec, directory):
    """Run by a worker."""
    attempt = label_one(molecule("H2O"), spec, directory=directory)
    return {"status": attempt.status, "reason": attempt.reason, "pid": os.getpid()}


@pytest.mark.slow
def test_label_one__the_pools_limit_holds_for_a_process_that_hides(faulty, tmp_path):
    """The label is refused, and its worker goes on."""
    from mofal.schedule import Pools, ScheduleSettings, Task

    pool = {"kinds": ["*"], "workers": 1, "memory": "900MB"}
    settings = ScheduleSettings.model_validate({"backend": "local", "pools": {"local": pool}})
    found = {}
    with Pools.from_settings(settings, directory=tmp_path / "place") as pools:
        for fault in ("hoard", ""):
            spec = f"{faulty}?isolated=true" + (f"&fault={fault}" if fault else "")
            arguments = {"spec": spec, "directory": str(tmp_path / "records")}
            task = Task("label", fault or "good", label_there, arguments)
            (outcome,) = pools.run([task])
            found[fault] = outcome.summary
    assert found["hoard"]["status"] == "out_of_memory"
    assert "what its pool's memory leaves it" in found["hoard"]["reason"]
    assert found[""]["status"] == "converged"
    assert found[""]["pid"] == found["hoard"]["pid"]


def test_run_process__command_that_is_not_there(tmp_path):
    ended = run_process(["no-such-program"], directory=tmp_path, time_limit_s=10)
    assert ended.returncode == 127
    assert ended.log == "no-such-program: No such file or directory\n"


# ---------------------------------------------------------------------------------- logs
BOUND = HEAD + 2 * TAIL + 100


def test_run_process__log_of_one_that_prints_for_ever(tmp_path):
    code = (
        "import os\n"
        "os.write(1, b'first line\\n')\n"
        "for i in range(30_000_000 // 100):\n"
        "    os.write(1 + i % 2, b'%099d\\n' % i)\n"
        "os.write(2, b'last line\\n')\n"
    )
    sizes = []
    log = tmp_path / "log.txt"
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from mofal.reference.child import run_process\n"
            "run_process([sys.executable, '-c', sys.argv[2]], directory=Path(sys.argv[1]),\n"
            "            time_limit_s=60)\n",
            str(tmp_path),
            code,
        ]
    )
    while worker.poll() is None:
        sizes.append(log.stat().st_size if log.exists() else 0)
        time.sleep(0.005)
    assert worker.returncode == 0
    assert max(sizes) <= BOUND
    text = log.read_bytes()
    assert HEAD + TAIL <= len(text) <= BOUND
    assert text.startswith(b"first line\n" + b"0" * 99 + b"\n")
    assert text.endswith(b"%099d\nlast line\n" % (30_000_000 // 100 - 1))
    assert b"were not kept" in text


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
@pytest.mark.parametrize("reopen", [False, True])
def test_bounded_log__head_and_tail(tmp_path, piece, reopen):
    """Against all that was written: what is kept and what is counted as left out make the whole."""
    path = tmp_path / "log"
    log = BoundedLog(path, head=50, tail=80)
    whole = b""
    for k in range(2000 // piece + 2):
        content = (b"%d," % k * piece)[:piece]
        log.write(content)
        whole += content
        assert path.stat().st_size <= 50 + 2 * 80 + 100
        if reopen and k % 5 == 0:
            log.close()
            log = BoundedLog(path, head=50, tail=80)
    log.close()
    kept = path.read_bytes()
    head, _, rest = kept.partition(b"\n[... ")
    count, _, tail = rest.partition(b" bytes of this log were not kept ...]\n")
    assert head == whole[:50]
    assert len(tail) >= 80
    assert whole.endswith(tail)
    assert len(head) + int(count) + len(tail) == len(whole)


def test_bounded_log__short_one_is_whole(tmp_path):
    path = tmp_path / "log"
    for part in (b"one\n", b"two\n"):
        log = BoundedLog(path)
        log.write(part)
        log.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_bounded_log__one_from_before_there_were_bounds(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"a" * 10_000_000 + b"z")
    log = BoundedLog(path)
    log.close()
    assert path.stat().st_size <= BOUND
    assert path.read_bytes().endswith(b"z")


def test_bounded_log__full_disk(tmp_path):
    """Whoever prints goes on, and what could be written is there."""
    log = BoundedLog("/dev/full" if Path("/dev/full").exists() else tmp_path / "log")
    for _ in range(100):
        log.write(b"x" * 10_000)
    log.close()
