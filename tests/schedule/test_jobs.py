"""Jobs on SLURM as the driver sees them, with a SLURM that only pretends."""

from __future__ import annotations

import json
import sysconfig
import time
import weakref

import pytest

from mofal.errors import ConfigError, ScheduleError
from mofal.schedule import EventLog, HandedOver, ScheduleSettings, submit_driver
from mofal.schedule.backend import WorkerInfo
from mofal.schedule.cluster import ClusterBackend
from mofal.schedule.files import Layout, write_json
from mofal.schedule.handover import COMMAND, Handover, takeover_file
from mofal.schedule.jobs import Jobs, cancel_leftovers, extra_paths
from mofal.schedule.slurm import QueuedJob, SlurmError, SlurmThread, run_command

POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit "
    "limit, user's size and/or time limits)"
)
UNAVAILABLE = (
    "sbatch: error: Batch job submission failed: Requested node configuration is not available"
)


class PretendSlurm:
    """Takes jobs, knows their states, and refuses when told to."""

    def __init__(self):
        self.queue = {}
        self.refusal = ""
        self.away = False
        self.cancelled = []
        self.number = 100

    def submit(self, script):
        if self.refusal:
            raise SlurmError(self.refusal)
        self.number += 1
        name = next(
            line.split("=", 1)[1]
            for line in script.read_text().splitlines()
            if line.startswith("#SBATCH --job-name=")
        )
        self.queue[name] = [str(self.number), "PENDING", "Priority"]
        return str(self.number)

    def cancel(self, identities):
        self.cancelled += identities
        for facts in self.queue.values():
            if facts[0] in identities:
                facts[1] = "CANCELLED"

    def list(self):
        if self.away:
            raise SlurmError("squeue timed out: unable to contact the controller")
        return [QueuedJob(i, name, s, r) for name, (i, s, r) in self.queue.items()]


class Bench:
    """Jobs with their layout, a pretended SLURM, and the lines for a person."""

    def __init__(self, tmp_path, **pool):
        self.settings = ScheduleSettings.model_validate(
            {
                "backend": "slurm",
                "poll_interval": 0.02,
                "pools": {"dft": {"partition": "large", "workers": 10, **pool}},
            }
        )
        self.layout = Layout(tmp_path / "schedule")
        self.layout.make()
        self.slurm = PretendSlurm()
        self.said = []
        self.jobs = self.make()

    def make(self):
        return Jobs(
            self.settings,
            layout=self.layout,
            tls=True,
            events=EventLog(self.layout.root.parent),
            say=self.said.append,
            commands=self.slurm,
        )

    def until(self, condition, timeout=5.0):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            self.jobs.tick()
            time.sleep(0.005)

    def start(self):
        self.jobs.start(lambda: None)
        self.until(lambda: self.jobs._queue is not None)

    def set_state(self, name, state, reason=""):
        self.slurm.queue[self.jobs.prefix + name][1:] = [state, reason]

    def seen(self, record):
        """What the last look at the queue said of a job."""
        nothing = QueuedJob("", "", "")
        return self.jobs._queue.get(self.jobs.prefix + record.name, nothing)

    def beat(self, name, **facts):
        default = {"name": name, "slurm_id": "1", "host": "node", "pid": 1, "process": "1"}
        default |= {"beat": 1, "workers": [], "losses": {}, "ended": False, "reason": ""}
        write_json(self.layout.beat(name), default | facts)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.jobs.close(lambda name: False)


def test_jobs__submitted_and_cancelled_while_pending(bench):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id == "101")
    bench.jobs.end(record)
    bench.until(lambda: bench.slurm.cancelled == ["101"])
    bench.until(lambda: not bench.jobs._records)
    assert not list(bench.layout.jobs.iterdir())  # nothing is left lying about


def test_jobs__connected_ones_are_asked_to_end_not_cancelled(bench):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    bench.jobs.connected(record.name, ends_at=None)
    bench.jobs.end(record)
    assert bench.layout.end(record.name).exists()
    assert not bench.slurm.cancelled
    assert bench.jobs.of("dft") == []


def test_jobs__nothing_is_submitted_before_the_queue_was_seen(bench):
    bench.slurm.away = True
    bench.jobs.start(lambda: None)
    bench.jobs.submit("dft")
    bench.until(lambda: any("squeue" in line for line in bench.said))
    assert not bench.jobs.of("dft")
    bench.slurm.away = False
    bench.until(lambda: bench.jobs._queue is not None)
    bench.jobs.submit("dft")
    assert len(bench.jobs.of("dft")) == 1


def test_jobs__controller_away_changes_nothing(bench):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    bench.slurm.away = True
    bench.until(lambda: any("waiting for it to answer" in line for line in bench.said))
    assert bench.jobs.of("dft") == [record]


def test_jobs__of_a_driver_before_are_adopted_or_cancelled(bench):
    prefix = bench.jobs.prefix
    bench.slurm.queue = {
        f"{prefix}dft-3": ["7", "RUNNING", ""],
        f"{prefix}gone-4": ["8", "RUNNING", ""],  # of a pool that is no more
        f"{prefix}dft-5": ["9", "PENDING", ""],
        f"{prefix}dft-6": ["10", "COMPLETED", ""],
        "mofal-another1-dft-3": ["11", "RUNNING", ""],  # of another campaign
        "somebody": ["12", "RUNNING", ""],
    }
    bench.start()
    assert sorted(record.name for record in bench.jobs.of("dft")) == ["dft-3", "dft-5"]
    bench.until(lambda: set(bench.slurm.cancelled) == {"8"})  # perhaps twice
    assert any("found job 7" in line for line in bench.said)


def test_jobs__numbers_go_on_where_a_driver_before_stopped(bench):
    bench.beat("dft-41", ended=True, started=0.0, time=10.0)
    bench.start()
    bench.jobs.submit("dft")
    assert bench.jobs.of("dft")[0].name == "dft-42"
    assert not bench.layout.beat("dft-41").exists()


def test_jobs__refused_again_and_again_is_the_end_of_a_pool(bench):
    bench.slurm.refusal = "sbatch: error: Batch job submission failed: Invalid account"
    bench.start()
    tries = 0
    while bench.jobs.verdict("dft") is None and tries < 2000:
        for _ in range(5):  # as many as the policy would ask for at once
            bench.jobs.submit("dft")
        tries += 1
        bench.jobs.tick()
        time.sleep(0.002)
    error = bench.jobs.verdict("dft")
    assert isinstance(error, ScheduleError)
    assert "refused its jobs 3 times: sbatch: " in str(error)
    assert "Invalid account" in str(error)
    # The first time all five are tried, then one at a time.
    assert bench.jobs._number <= 5 + 2


@pytest.mark.parametrize(
    ("text", "patience"), [("Invalid account", 5.0), ("Socket is not there", 3600.0)]
)
def test_jobs__what_no_time_mends_is_tried_soon_and_given_up(tmp_path, text, patience):
    """With a look at the queue every half hour, a wrong name is known after seconds."""
    bench = Bench(tmp_path)
    bench.jobs._settings = bench.settings.model_copy(update={"poll_interval": 1800.0})
    bench.slurm.refusal = text
    bench.start()
    bench.jobs.submit("dft")
    bench.until(lambda: bench.said)
    assert bench.jobs._next_submit["dft"] - time.monotonic() <= min(patience, 300.0)
    assert bench.jobs._next_submit["dft"] - time.monotonic() > min(patience, 300.0) - 5.0
    bench.jobs.close(lambda name: False)


def test_jobs__full_disk_is_waited_out(bench, monkeypatch):
    from mofal.schedule import jobs

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    bench.start()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_json", full)
        for _ in range(10):
            bench.jobs.submit("dft")
            time.sleep(0.01)
    assert bench.jobs.of("dft") == []
    assert bench.jobs.verdict("dft") is None
    assert len([line for line in bench.said if "No space left" in line]) == 1
    bench.until(lambda: (bench.jobs.submit("dft"), bench.jobs.of("dft"))[1])


def test_jobs__limit_of_submissions_is_waited_out(bench):
    bench.slurm.refusal = "Job violates accounting/QOS policy (job submit limit)"
    bench.start()
    for _ in range(30):
        bench.jobs.submit("dft")
        bench.jobs.tick()
        time.sleep(0.005)
    assert bench.jobs.verdict("dft") is None
    assert len([line for line in bench.said if "submit limit" in line]) <= 3
    bench.slurm.refusal = ""
    bench.until(lambda: (bench.jobs.submit("dft"), bench.jobs.of("dft"))[1])


@pytest.mark.parametrize(
    ("lines", "passes"),
    [
        (("sbatch: error: AssocMaxSubmitJobLimit", POLICY), True),
        (("sbatch: error: QOSMaxWallDurationPerJobLimit", POLICY), False),
        (("sbatch: error: Batch job submission failed: Invalid account",), False),
        (("sbatch: error: Batch job submission failed: Unable to contact slurm controller",), True),
        (("sbatch: error: Memory specification can not be satisfied", UNAVAILABLE), False),
    ],
)
def test_run_command__what_sbatch_says(tmp_path, lines, passes):
    """A stand-in for sbatch prints what real ones do; the line that tells why is kept."""
    script = tmp_path / "sbatch"
    script.write_text("#!/bin/sh\n" + "".join(f'echo "{line}" >&2\n' for line in lines) + "exit 1")
    script.chmod(0o755)
    with pytest.raises(SlurmError) as caught:
        run_command([str(script)])
    told = lines[0].removeprefix("sbatch: error: ").removeprefix("Batch job submission failed: ")
    assert told in str(caught.value)
    assert "sbatch: error" not in str(caught.value)
    assert caught.value.transient is passes
    assert not (caught.value.transient and caught.value.wrong)


@pytest.mark.parametrize("reason", ["AssociationJobLimit", "QOSMaxJobsPerUserLimit", "Priority"])
def test_jobs__that_only_wait_are_left_alone(bench, reason):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    bench.set_state(record.name, "PENDING", reason)
    bench.until(lambda: bench.seen(record).reason == reason)
    assert bench.jobs.of("dft") == [record]
    assert bench.slurm.cancelled == []


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit"])
def test_jobs__that_would_never_start_are_refusals(bench, reason):
    bench.start()
    deadline = time.monotonic() + 10
    while bench.jobs.verdict("dft") is None:
        assert time.monotonic() < deadline
        bench.jobs.submit("dft")
        for name in list(bench.slurm.queue):
            if bench.slurm.queue[name][1] == "PENDING":
                bench.slurm.queue[name][2] = reason
        bench.jobs.tick()
        time.sleep(0.005)
    assert reason in str(bench.jobs.verdict("dft"))
    assert "never start" in str(bench.jobs.verdict("dft"))


def test_jobs__that_die_on_arrival_are_tried_one_at_a_time(bench):
    bench.start()
    deadline = time.monotonic() + 10
    while bench.jobs.verdict("dft") is None:
        assert time.monotonic() < deadline
        if bench.jobs._deaths["dft"] or not bench.jobs._records:
            for _ in range(4):
                bench.jobs.submit("dft")
        for record in bench.jobs._records.values():
            if record.slurm_id:
                bench.layout.log(record.name).write_text("no such module\n")
                bench.set_state(record.name, "FAILED")
        bench.jobs.tick()
        time.sleep(0.005)
    assert "no such module" in str(bench.jobs.verdict("dft"))
    assert bench.jobs._number <= 4 + 3


def test_jobs__a_worker_that_connects_clears_the_record(bench):
    bench.start()
    bench.jobs._deaths["dft"] += ["a", "b"]
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.jobs.connected(record.name, ends_at=None)
    assert bench.jobs._deaths["dft"] == []


@pytest.mark.parametrize(
    ("text", "blame"),
    [
        ("killed by SIGKILL", "task"),
        ("killed by SIGSEGV", "task"),
        ("exit status 1", "task"),
        ("out of memory: 5.0 GB of 4.0 GB", "task"),
        ("killed by SIGTERM", "task"),
        ("exit status 75", "task"),
        ("lost its scheduler", "none"),
        ("its job ended: given back", "none"),
        ("its job ended: SIGTERM", "none"),
    ],
)
def test_loss__who_is_to_blame(bench, text, blame):
    bench.beat("dft-0", losses={"dft-0.0.1": text})
    loss = bench.jobs.loss("dft-0", "dft-0.0.1")
    assert (loss.blame, loss.reason) == (blame, text)


@pytest.mark.parametrize(
    ("state", "blame"),
    [
        ("CANCELLED", "none"),
        ("PREEMPTED", "none"),
        ("TIMEOUT", "walltime"),
        ("NODE_FAIL", "task"),
        ("OUT_OF_MEMORY", "task"),
    ],
)
def test_loss__as_slurm_tells_it(bench, state, blame):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    assert bench.jobs.loss(record.name, f"{record.name}.0.1") is None
    bench.set_state(record.name, state)
    bench.until(lambda: bench.jobs.loss(record.name, f"{record.name}.0.1") is not None)
    assert bench.jobs.loss(record.name, f"{record.name}.0.1").blame == blame


def test_loss__at_the_end_of_its_walltime(bench):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.jobs.connected(record.name, ends_at=time.monotonic() - 1)
    bench.beat(record.name, losses={"w": "killed by SIGTERM"})
    assert bench.jobs.loss(record.name, "w").blame == "walltime"


def test_alive__claims_are_believed_as_long_as_the_heart_beats(bench, monkeypatch):
    bench.beat("dft-9", workers=["w"])
    assert bench.jobs.alive("dft-9", "w")
    assert not bench.jobs.alive("dft-9", "another")
    assert not bench.jobs.alive("dft-8", "w")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100.0)
    assert not bench.jobs.alive("dft-9", "w")
    bench.beat("dft-9", workers=["w"], beat=2)
    assert bench.jobs.alive("dft-9", "w")
    bench.beat("dft-9", workers=["w"], beat=3, ended=True)
    assert not bench.jobs.alive("dft-9", "w")


def backend_of(bench):
    """The backend that goes with the jobs of a bench."""
    backend = ClusterBackend(
        bench.settings,
        directory=bench.layout.root.parent,
        events=EventLog(bench.layout.root.parent),
        say=bench.said.append,
    )
    backend._jobs = bench.jobs
    return backend


@pytest.mark.parametrize(
    ("state", "busy", "pending"),
    [("PENDING", 0, True), ("PENDING", 1, False), ("RUNNING", 0, False), ("COMPLETED", 0, True)],
)
def test_view__a_job_that_runs_is_there_before_its_worker(bench, state, busy, pending):
    """It is not cancelled as one that only waits would be: it may finish a task of the driver
    before, and else it waited for its start."""
    backend = backend_of(bench)
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    bench.set_state(record.name, state)
    bench.until(lambda: bench.seen(record).state == state)
    view = backend._view(record, busy, 100.0)
    assert view.pending is pending
    assert view.idle_since == (None if busy or pending else 100.0)
    assert backend._view(record, busy, 120.0).idle_since == view.idle_since


def test_scale__job_whose_workers_are_not_connected_is_replaced(bench):
    """Its beat goes on, and nobody but it can tell: after a while it is given back."""
    backend = backend_of(bench)
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    backend._end_orphaned(record, 0.0)
    backend._end_orphaned(record, 1000.0)  # none of them has come yet: it may wait for its start
    bench.jobs.connected(record.name, ends_at=None)
    backend._workers["w"] = WorkerInfo(name="w", pool="dft", job=record.name)
    backend._end_orphaned(record, 1000.0)
    backend._end_orphaned(record, 2000.0)
    backend._workers.clear()
    for now in (2000.0, 2100.0, 2179.0):
        backend._end_orphaned(record, now)
        assert bench.jobs.of("dft") == [record]
    backend._end_orphaned(record, 2181.0)
    assert bench.jobs.of("dft") == []
    assert bench.layout.end(record.name).exists()
    assert "has been connected for 180 s" in bench.said[-1]


@pytest.mark.parametrize(("beats", "after"), [(True, 70.0), (False, 310.0)])
def test_give_up_on_silent__job_on_a_node_that_is_lost(bench, monkeypatch, beats, after):
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def later(seconds):
        clock[0] += seconds
        bench.jobs.give_up_on_silent(record)
        return record.ending is not None

    assert not later(1000.0)  # it waits in the queue, and may for as long as it likes
    bench.set_state(record.name, "RUNNING")
    bench.until(lambda: bench.seen(record).state == "RUNNING")
    for number in range(1, 4):
        if beats:
            bench.beat(record.name, beat=number)
        assert not later(50.0)
    assert later(after)
    assert bench.jobs.of("dft") == []
    bench.until(lambda: bench.slurm.cancelled == [record.slurm_id], timeout=60.0)
    assert "not given a sign" in bench.said[-1]


def test_close__busy_jobs_may_be_kept(bench):
    bench.start()
    bench.jobs.submit("dft")
    bench.jobs.submit("dft")
    first, second = bench.jobs.of("dft")
    bench.until(lambda: first.slurm_id and second.slurm_id)
    bench.jobs.close(lambda name: name == first.name)
    assert bench.slurm.cancelled[-1] == second.slurm_id
    assert first.slurm_id not in bench.slurm.cancelled
    assert not bench.layout.end(first.name).exists()


def test_cancel_leftovers__only_this_campaigns(bench):
    bench.slurm.queue = {
        f"{bench.jobs.prefix}dft-3": ["7", "RUNNING", ""],
        "somebody": ["8", "RUNNING", ""],
    }
    cancel_leftovers(bench.layout, bench.slurm)
    assert bench.slurm.cancelled == []  # there is no trace of a job of ours
    bench.beat("dft-3")
    cancel_leftovers(bench.layout, bench.slurm)
    assert bench.slurm.cancelled == ["7"]


def test_specification__jobs_plan_to_end_before_their_walltime(bench):
    ends = set()
    for index in range(8):
        record = bench.jobs.of("dft")
        bench.start() if index == 0 else None
        bench.jobs.submit("dft")
        record = bench.jobs.of("dft")[-1]
        spec = json.loads(bench.layout.job(record.name).read_text())
        assert 30.0 <= spec["early"] <= 30.0 + 0.1 * spec["walltime"]
        ends.add(spec["early"])
    assert len(ends) == 8


def test_script__an_mpi_pool_books_ranks(tmp_path):
    script = Bench(tmp_path, mpi_ranks=4, threads=2, memory="8GB").jobs.script("dft", name="dft-0")
    assert "#SBATCH --ntasks=4\n#SBATCH --cpus-per-task=2\n#SBATCH --nodes=1\n" in script
    assert "#SBATCH --mem=7629M\n" in script


def test_script__a_job_books_no_more_than_its_pool_says(tmp_path):
    """128 GB are 122,070 MiB, SLURM's M; the keeper's share comes off the worker's."""
    bench = Bench(tmp_path, memory="128GB")
    assert "#SBATCH --mem=122070M\n" in bench.jobs.script("dft", name="dft-0")
    bench.start()
    bench.jobs.submit("dft")
    (record,) = bench.jobs.of("dft")
    bench.until(lambda: record.slurm_id)
    limit = json.loads(bench.layout.job(record.name).read_text())["memory"]
    assert 127.9e9 < limit <= 122070 * 2**20 - 30e6
    bench.jobs.close(lambda name: False)


def test_script__memory_is_shared_out_over_nodes(tmp_path):
    script = Bench(tmp_path, mpi_ranks=4, nodes=2, memory="8GB").jobs.script("dft", name="dft-0")
    assert "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --mem=3814M\n" in script


def test_script__workers_share_a_job(tmp_path):
    script = Bench(tmp_path, workers_per_job=4, threads=2, gpus=1, memory="8GB").jobs.script(
        "dft", name="dft-0"
    )
    assert "#SBATCH --ntasks=1\n#SBATCH --cpus-per-task=8\n#SBATCH --nodes=1\n" in script
    assert "#SBATCH --gres=gpu:4\n" in script
    assert "#SBATCH --mem=30517M\n" in script


def test_extra_paths__what_the_interpreter_has_anyway_is_left_out(tmp_path, monkeypatch):
    # As setuptools does with its `_vendor` as soon as anything imports it.
    packages = tmp_path / "site-packages"
    vendored, asked, other = packages / "_vendor", packages / "mine", tmp_path / "other"
    for folder in (vendored, asked, other):
        folder.mkdir(parents=True)
        monkeypatch.syspath_prepend(str(folder))
    true = sysconfig.get_path
    monkeypatch.setattr(
        sysconfig, "get_path", lambda n: str(packages) if n == "purelib" else true(n)
    )
    monkeypatch.setenv("PYTHONPATH", str(asked))
    paths = extra_paths()
    assert {str(other.resolve()), str(asked.resolve())} <= set(paths)
    assert str(vendored.resolve()) not in paths
    # The true ones: everything of this interpreter's is left out.
    monkeypatch.undo()
    assert not any("python3" in path.rpartition("/")[2] for path in extra_paths())


def test_slurm_thread__a_slow_squeue_does_not_hold_up_the_driver(tmp_path):
    class Slow(PretendSlurm):
        def list(self):
            time.sleep(0.5)
            return []

    thread = SlurmThread(Slow(), interval=10.0, wake=lambda: None)
    thread.start()
    start = time.monotonic()
    thread.look()
    assert time.monotonic() - start < 0.1
    thread.stop()


# -- the driver in a job
def _driver_settings(**driver):
    return ScheduleSettings.model_validate(
        {
            "backend": "slurm",
            "pools": {"cpu": {}},
            "driver": {"partition": "long", "walltime": "1h", "margin": "10m", **driver},
        }
    )


def test_submit_driver__script_that_runs_the_command(tmp_path):
    class Taker(PretendSlurm):
        def submit(self, script):
            self.text = script.read_text()
            return "7"

    taker = Taker()
    command = ["mofal", "run", "my campaign.yaml"]
    job = submit_driver(
        _driver_settings(memory="2GB", prologue=["module load x"]),
        directory=tmp_path / "c",
        command=command,
        commands=taker,
    )
    assert job == "7"
    assert "#SBATCH --partition=long\n" in taker.text
    assert "#SBATCH --mem=1907M\n" in taker.text
    assert taker.text.endswith("exec mofal run 'my campaign.yaml'\n")
    assert "module load x\nexport MOFAL_DRIVER_COMMAND=" in taker.text


def test_submit_driver__no_driver_section(tmp_path):
    with pytest.raises(ConfigError, match="found no `driver`"):
        submit_driver(ScheduleSettings(), directory=tmp_path, command=["x"])


def test_submit_driver__refused(tmp_path):
    slurm = PretendSlurm()
    slurm.refusal = "Invalid partition"
    with pytest.raises(ScheduleError, match="refused the driver's job: Invalid partition"):
        submit_driver(_driver_settings(), directory=tmp_path, command=["x"], commands=slurm)


def _handover(tmp_path, submit, **environment):
    facts = {COMMAND: json.dumps(["mofal", "run"]), **environment}
    said = []
    made = Handover(
        _driver_settings(), directory=tmp_path, say=said.append, environment=facts, submit=submit
    )
    return made, said


def test_handover__successor_before_the_end_and_only_one(tmp_path):
    calls = []
    handover, _ = _handover(tmp_path, lambda *a, **k: calls.append(k["command"]) or "12")
    now = time.time()
    handover.check(now)
    handover.check(now + 3600 - 601)
    assert calls == []
    handover.check(now + 3600 - 598)
    handover.check(now + 3600 - 500)
    assert calls == [["mofal", "run"]]
    assert handover.successor == "12"


def test_handover__successor_that_is_not_needed_is_cancelled(tmp_path):
    handover, _ = _handover(tmp_path, lambda *a, **k: "12")
    slurm = PretendSlurm()
    handover.withdraw(slurm)
    assert slurm.cancelled == []
    handover.check(time.time() + 3600)
    handover.withdraw(slurm)
    assert slurm.cancelled == ["12"]


def test_handover__end_that_slurm_tells(tmp_path):
    calls = []
    handover, _ = _handover(
        tmp_path, lambda *a, **k: calls.append(1) or "12", SLURM_JOB_END_TIME=str(int(time.time()))
    )
    handover.check()
    assert calls == [1]


def test_handover__refused_successor_is_tried_again(tmp_path):
    def refuse(*args, **kwargs):
        raise ScheduleError("sbatch refused")

    handover, said = _handover(tmp_path, refuse)
    now = time.time() + 3600
    handover.check(now)
    handover.check(now + 1)
    assert len(said) == 1
    handover.check(now + 61)
    assert len(said) == 2


def test_handover__leaves_when_asked(tmp_path):
    handover, _ = _handover(tmp_path, lambda *a, **k: "12")
    takeover_file(tmp_path).parent.mkdir()
    takeover_file(tmp_path).touch()
    with pytest.raises(HandedOver, match="handed over"):
        handover.check()
    assert not takeover_file(tmp_path).exists()


def test_handover__successor_that_is_at_work_is_left_alone(tmp_path):
    handover, _ = _handover(tmp_path, lambda *a, **k: "12")
    handover.check(time.time() + 3600)
    takeover_file(tmp_path).parent.mkdir()
    takeover_file(tmp_path).touch()
    with pytest.raises(HandedOver):
        handover.check(time.time() + 3600)
    slurm = PretendSlurm()
    handover.withdraw(slurm)
    assert slurm.cancelled == []


def test_handover__driver_outside_a_job_has_no_successor(tmp_path):
    made = Handover(
        _driver_settings(), directory=tmp_path, say=print, environment={}, submit=pytest.fail
    )
    made.check(time.time() + 10**7)


def test_end__a_future_is_held_until_dask_has_seen_it_and_never_for_ever(bench, monkeypatch):
    class Waiting:
        seen = False

        def done(self):
            return self.seen

    backend = backend_of(bench)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    futures = {name: Waiting() for name in ("seen", "worker-lost", "given-up")}
    backend._futures = dict(futures)
    held = {name: weakref.ref(future) for name, future in futures.items()}
    for name in ("seen", "worker-lost"):  # their workers told their results
        backend._end(name)
    for name in held:
        backend.forget(name)
    futures.clear()
    assert held["given-up"]() is None  # at once: Dask is not to run it again
    backend.tick()
    held["seen"]().seen = True
    backend.tick()
    assert held["seen"]() is None
    assert held["worker-lost"]() is not None
    now += 11.0
    backend.tick()
    assert held["worker-lost"]() is None
