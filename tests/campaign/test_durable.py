"""What fails around a calculation is no result: it stops with its reason, and then it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ase.io import write

from mofal.campaign import plan, steps
from mofal.campaign.directory import CONFIG, Site
from mofal.campaign.driver import Campaign, Display, _Driver
from mofal.campaign.loading import parse_config
from mofal.campaign.prepare import examine, settle
from mofal.campaign.steps import label
from mofal.campaign.steps.sample import perturb
from mofal.cli import main
from mofal.data import open_group, read_json, select, to_atoms, write_group
from mofal.errors import CampaignError, MofalError
from mofal.reference import LabelCache, files
from mofal.reference.base import begin, fail, finish
from mofal.schedule import Pools
from mofal.schedule.execution import execute_task
from mofal.schedule.task import Outcome, Task
from tests.campaign.services import PAIRS, plugins, stop, wait_for, waters  # noqa: F401

SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "systems": {"defective": {"build": "S_ld", "cell": "primitive"}},
    "seed_data": {"perturbed": {"system": "defective", "frames": 3}},
    "cycles": 2,
    "reference": {"name": PAIRS},
    "exploration": {"walks": 2},
    "schedule": {"backend": "inline"},
}


def prepared(root: Path, **changes: Any) -> Site:
    """A campaign that is prepared, and nothing more."""
    config = parse_config({**SMALL, **changes})
    site = Site(root, config)
    root.mkdir(exist_ok=True)
    findings = examine(site)
    if findings is not None:
        settle(site, findings)
    return site


class Begun(Site):
    """A campaign that ends with the labels of its seed data."""

    def steps(self) -> list[plan.Step]:
        return [s for s in super().steps() if s.stage in ("sample", "label") and s.cycle == 0]


def run(root: Path, *, retry_failed: bool = False) -> Begun:
    """Sample and label the seed data, by the real driver."""
    site = Begun(root)
    settings = site.config.schedule
    with Pools(settings, directory=root) as pools:
        display = Display(site, lambda _: None)
        _Driver(site, pools, display, retry_failed=retry_failed).run()
    return site


def records(root: Path) -> list[str]:
    return sorted(a.status for a in LabelCache(root / "label-records").records())


# ------------------------------------------------------------------ faults around the calculator
@contextmanager
def full_disk(site: Site, monkeypatch: pytest.MonkeyPatch) -> Any:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        yield


@contextmanager
def moved(path: Path, put: Callable[[Path], Any] | None = None) -> Any:
    """A file or directory that is not there for a while; something else may be in its place."""
    aside = path.with_name(f"{path.name}.aside")
    there = path.exists()
    if there:
        path.rename(aside)
    if put is not None:
        put(path)
    yield
    if put is not None:
        path.rmdir() if path.is_dir() else path.unlink()
    if there:
        aside.rename(path)


FAULTS: dict[str, tuple[Callable[[Site, Any], Any], str]] = {
    "full disk": (full_disk, "No space left"),
    "records are a file": (
        lambda site, _: moved(site.root / "label-records", Path.touch),
        "is a file",
    ),
    "unreadable campaign file": (
        lambda site, _: moved(site.root / CONFIG, Path.mkdir),
        "campaign.yaml",
    ),
    "no campaign file": (lambda site, _: moved(site.root / CONFIG), "campaign.yaml"),
    "no structure file": (
        lambda site, _: moved(site.config.systems["defective"].file),
        "does not exist",
    ),
    "no structures": (lambda site, _: moved(site.path("cycle-000/samples.zarr")), "samples.zarr"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_run__a_fault_around_a_label_stops_and_the_same_command_goes_on(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mofal.frameworks import build

    file = tmp_path / "ld.extxyz"
    write(file, to_atoms(build("S_ld", cell="primitive"), 0))
    root = tmp_path / "campaign"
    site = prepared(root, systems={"defective": {"file": str(file)}})
    make, words = FAULTS[fault]
    sample = steps.expand(site, site.steps()[0])
    assert execute_task(sample[0])["status"] == "done"
    # The tasks are known; then something happens to what is around them.
    (step,) = [s for s in Begun(root).steps() if s.stage == "label"]
    made = steps.expand(site, step)
    assert len(made) == 3
    with make(site, monkeypatch):
        result = execute_task(made[0])
    assert result["status"] == "failed"
    assert words in result["reason"]
    assert records(root) == []
    why = steps.failure(step, Outcome(made[0], status="failed", reason=result["reason"]))
    assert words in why
    assert "run the same command again" in why
    assert "\n" not in why
    run(root)
    assert records(root) == ["converged"] * 3
    labels = open_group(root / "cycle-000" / "labels.zarr")
    assert labels["status"].values.tolist() == ["converged"] * 3


def test_driver__a_failed_task_stops_it_and_what_waits_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "campaign"
    prepared(root)
    calls = []
    real = files.write_new

    def second_fails(file: Path, content: bytes) -> bool:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return real(file, content)

    with monkeypatch.context() as patch:
        patch.setattr("mofal.reference.cache.write_new", second_fails)
        with pytest.raises(CampaignError, match=r"Read-only file system.*same command"):
            run(root)
    assert len(calls) == 2  # the third one was not tried on a disk that takes nothing
    assert records(root) == ["converged"]
    run(root)
    assert records(root) == ["converged"] * 3


@pytest.mark.slow
def test_label__records_that_find_no_place(tmp_path: Path) -> None:
    """`mofal label` with real workers, whose records have no place for a while."""
    file = tmp_path / "x.extxyz"
    waters(file, 3)
    argv = ["label", str(file), "--reference", PAIRS, "--workers", "1"]
    # Folders that lead nowhere: nothing is in them, and none can be made.
    place = Path(f"{file}.labels")
    place.mkdir()
    key = "0123456789abcdef"
    blocked = [place / f"{a}{b}" for a in key for b in key]
    for path in blocked:
        path.symlink_to("nowhere/at/all")
    done = subprocess.run(
        [sys.executable, "-m", "mofal", *argv],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "could not be made" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for path in blocked:
        path.unlink()
    assert main(argv) == 0
    assert sorted(a.status for a in LabelCache(place).records()) == ["converged"] * 3


def walk_step(site: Site) -> plan.Step:
    return next(s for s in site.steps() if s.stage == "walk" and s.cycle == 1)


def test_finish__a_failed_walk_is_not_passed_over(tmp_path: Path) -> None:
    site = prepared(tmp_path / "campaign")
    step = walk_step(site)
    made = steps.expand(site, step)
    full = Outcome(made[0], status="failed", reason="OSError: [Errno 28] No space left on device")
    with pytest.raises(CampaignError, match="No space left"):
        steps.finish(site, step, [full, Outcome(made[1], status="done")])
    assert steps.failure(step, Outcome(made[0], status="quarantined", reason="killed 3")) == ""
    # A walk that is said to be done and is not there is not left out either.
    last = steps.closing(site, step, [Outcome(t, status="done") for t in made])
    assert last is not None
    result = execute_task(last)
    assert result["status"] == "failed"
    assert "walk 0 is not in" in result["reason"]
    # Nor does the step go on without the task that gathers.
    assert steps.failure(step, Outcome(last, status="quarantined", reason="killed 3"))


@pytest.mark.parametrize("stage", ["train", "density", "select", "propose", "sample"])
def test_failure__no_other_stage_goes_on_without_its_task(stage: Any, tmp_path: Path) -> None:
    step = plan.Step(stage, 1, "", (), "x")
    task = Task(stage, "x", label.label)
    for status in ("failed", "quarantined"):
        assert steps.failure(step, Outcome(task, status=status, reason="why"))  # type: ignore[arg-type]


def test_record_quarantine__is_a_result(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    site = prepared(root)
    sample, *_ = site.steps()
    execute_task(steps.expand(site, sample)[0])
    (step,) = [s for s in Begun(root).steps() if s.stage == "label"]
    made = steps.expand(site, step)
    label.record_quarantine(
        site, Outcome(made[1], status="quarantined", reason="it ended 3 workers")
    )
    assert records(root) == ["crashed"]
    assert len(steps.expand(site, step)) == 2
    assert len(steps.expand(site, step, retry_failed=True)) == 3
    run(root)
    labels = open_group(root / "cycle-000" / "labels.zarr")
    assert labels["status"].values.tolist() == ["converged", "crashed", "converged"]
    assert "it ended 3 workers" in labels["reason"].values[1]


def test_finish__a_record_that_is_gone_is_not_left_out(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    site = prepared(root)
    execute_task(steps.expand(site, site.steps()[0])[0])
    (step,) = [s for s in Begun(root).steps() if s.stage == "label"]
    made = steps.expand(site, step)
    outcomes = []
    for task in made:
        assert execute_task(task)["status"] == "done"
        outcomes.append(Outcome(task, status="done"))
    record = sorted((root / "label-records").rglob("*.npz"))[0]
    record.unlink()
    with pytest.raises(CampaignError, match="run the same command again"):
        steps.finish(site, step, outcomes)
    assert not site.exists(step.makes)
    run(root)
    assert records(root) == ["converged"] * 3


def test_training_set__labels_that_are_not_there_now_are_missed(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    prepared(root)
    site = run(root)
    assert site.training_set(0, whole=True).sizes["structure"] == 3
    with pytest.raises(MofalError, match=r"labels\.zarr"):
        site.training_set(1, whole=True)
    with (
        moved(root / "cycle-000" / "labels.zarr"),
        pytest.raises(MofalError, match=r"labels\.zarr"),
    ):
        Site(root).training_set(0, whole=True)


# ------------------------------------------------------------------ failed labels, once more
def cycles(site: Site) -> list[plan.Step]:
    """Label steps of both cycles, with clusters that are frames, two in each."""
    steps = [s for s in site.steps() if s.stage == "label" and s.cycle]
    frames = perturb(
        site,
        "defective",
        parse_config({**SMALL, "holdout": {"frames": 4}}).holdout,
        ("x",),
    )
    for k, step in enumerate(steps):
        write_group(select(frames, [2 * k, 2 * k + 1]), site.path(step.needs[0]))
    return steps


def put(site: Site, group: str, index: int, status: str) -> None:
    atoms = to_atoms(site.group(group).load(), index)
    attempt = begin(site.reference(), atoms)
    if status == "converged":
        attempt = finish(attempt, energy=1.0, forces=np.zeros((len(atoms), 3)))
    else:
        attempt = fail(attempt, status, "no luck")
    site.cache().put(attempt)


def test_retry_failed__closed_cycles_join_the_open_one(tmp_path: Path) -> None:
    site = prepared(tmp_path / "campaign")
    first, second = cycles(site)
    put(site, first.needs[0], 0, "converged")
    put(site, first.needs[0], 1, "crashed")
    assert steps.expand(site, first) == []
    steps.finish(site, first, [])
    assert site.group(first.makes)["status"].values.tolist() == ["converged", "crashed"]
    # The failure stands, unless it is asked for once more.
    assert len(steps.expand(site, second)) == 2
    again = steps.expand(site, second, retry_failed=True)
    assert len(again) == 3
    assert {t.kwargs["group"] for t in again} == {first.needs[0], second.needs[0]}
    assert "1 failed labels of earlier cycles join" in label.closed_failures(site)
    outcomes = []
    for task in again:
        assert execute_task(task)["status"] == "done"
        outcomes.append(Outcome(task, status="done"))
    steps.finish(site, second, outcomes)
    labels = site.group(second.makes)
    assert labels["status"].values.tolist() == ["converged"] * 3
    late = site.group(first.needs[0])["structure_id"].values[1]
    assert labels["structure_id"].values[2] == late
    assert "stay as they are" in label.closed_failures(site)


def test_quorum__no_label_of_the_last_cycle_is_left_behind(tmp_path: Path) -> None:
    """What comes late joins the next cycle; the last one has no next, and waits."""
    from mofal.campaign import driver

    site = prepared(tmp_path / "campaign", cycles=2, quorum=0.8)
    shares = {
        (s.cycle, s.holdout): driver.waited_for(site.config, s)
        for s in site.steps()
        if s.stage == "label"
    }
    assert {cycle for cycle, _ in shares} == {0, 1, 2}
    assert {key for key, share in shares.items() if share < 1} == {(1, False)}
    assert shares[1, False] == 0.8


def test_retry_failed__attempts_may_be_raised_in_a_campaign_that_runs(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    site = prepared(root, cycles=2)
    first, _ = cycles(site)
    put(site, first.needs[0], 0, "crashed")
    assert len(steps.expand(site, first)) == 1
    more = prepared(root, reference={"name": PAIRS, "attempts": 2, "time_limit_s": 60})
    assert len(steps.expand(more, first)) == 2
    # More threads make the same labels; another potential does not.
    prepared(root, reference={"name": f"{PAIRS}&threads=2"})
    with pytest.raises(CampaignError, match=r"reference\.name"):
        prepared(root, reference={"name": PAIRS.replace("0.2", "0.3")})
    with pytest.raises(CampaignError, match=r"reference\.name"):
        prepared(root, reference={"name": PAIRS + '&isolated_atom_energies={"H":-1.0}'})
    memory = {"pools": {"all": {"memory": "8GB", "workers": 1}}}
    prepared(root, schedule=memory)


# ------------------------------------------------------------------ one campaign in a directory
def test_task__refuses_settings_that_are_not_the_drivers(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    site = prepared(root)
    made = steps.expand(site, site.steps()[0])
    text = (root / CONFIG).read_text()
    (root / CONFIG).write_text(text.replace("seed: 3", "seed: 4", 1))
    result = execute_task(made[0])
    assert result["status"] == "failed"
    assert "seed: 3 -> 4" in result["reason"]
    assert not site.exists(site.steps()[0].makes)
    # What decides nothing may be changed.
    (root / CONFIG).write_text(text.replace("cycles: 2", "cycles: 3", 1))
    assert execute_task(made[0])["status"] == "done"


def test_task__refuses_a_file_whose_content_changed(tmp_path: Path) -> None:
    file, root = tmp_path / "seed.extxyz", tmp_path / "campaign"
    waters(file, 3)
    site = prepared(root, seed_data={"file": str(file)})
    made = steps.expand(site, site.steps()[0])
    waters(file, 4)
    result = execute_task(made[0])
    assert result["status"] == "failed"
    assert "seed_data.file: another content" in result["reason"]


def test_run__another_driver_that_came_first_is_seen_after_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mofal.campaign.driver as driver

    root = tmp_path / "campaign"
    seen = []

    def late(site: Site) -> Any:
        found = examine(site)
        if not seen:  # the other one settles between the look and the lock
            seen.append(prepared(root, seed=11))
        return found

    monkeypatch.setattr(driver, "examine", late)
    with pytest.raises(CampaignError, match=r"another campaign.*seed: 11 -> 12"):
        Campaign({**SMALL, "seed": 12}, directory=root).run()
    assert "seed: 11" in (root / CONFIG).read_text()
    assert read_json(root / "campaign.json")["identity"] == seen[0].identity


def test_settle__does_not_take_what_another_preparation_left(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    site = prepared(root)
    (root / "campaign.json").unlink()
    with pytest.raises(CampaignError, match=r"the file of another campaign.*seed: 3 -> 4"):
        prepared(root, seed=4)
    (root / CONFIG).unlink()
    conventional = prepared(root, systems={"defective": {"build": "S_pr", "cell": "primitive"}})
    assert conventional.structure("defective").sizes["atom"] == 114
    assert site.config.seed == 3


def test_dump_config__null_that_means_something(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    site = prepared(root, exploration={"max_bond_strain": None})
    assert Site(root).config.exploration.max_bond_strain is None
    Site(root).refuse_changed(site.identity)


# ------------------------------------------------------------------ killed while it begins
@pytest.mark.slow
def test_run__killed_at_any_moment_of_the_preparation(tmp_path: Path) -> None:
    """SIGKILL before many a file operation; the same command then prepares the same."""
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(SMALL))
    script = Path(__file__).with_name("kill_preparation.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "campaign.yaml"), str(tmp_path), "200"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed" in done.stdout


@pytest.mark.parametrize(
    "name",
    [
        ".campaign.json.123456.0123abcd.tmp",
        ".campaign.yaml.123456.0123abcd.tmp",
        ".driver.json.123456",
    ],
)
def test_run__own_temporaries_are_recognised(name: str, tmp_path: Path) -> None:
    from mofal.campaign.driver import refuse_foreign

    root = tmp_path / "campaign"
    root.mkdir()
    (root / name).write_text("half")
    refuse_foreign(root)
    Campaign(dict(SMALL), directory=root)._clear()
    assert list(root.iterdir()) == []
    (root / ".mine.123456").write_text("a person's")
    with pytest.raises(CampaignError, match="not empty"):
        refuse_foreign(root)


# ------------------------------------------------------------------ set aside
def spoilt(root: Path, energy: float, force: float) -> None:
    """The second of the seed labels says nonsense."""
    site = prepared(root)
    execute_task(steps.expand(site, site.steps()[0])[0])
    group = "cycle-000/samples.zarr"
    atoms = to_atoms(site.group(group).load(), 1)
    forces = np.zeros((len(atoms), 3))
    forces[0, 0] = force
    site.cache().put(finish(begin(site.reference(), atoms), energy=energy, forces=forces))


@pytest.mark.parametrize(
    ("energy", "force", "words"),
    [
        (1e300, 0.0, "eV per atom"),
        (-1e300, 0.0, "eV per atom"),
        (1e5, 0.0, "eV per atom"),
        (0.0, 1e300, "eV/Å"),
        (0.0, 51.0, "eV/Å"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_labels__absurd_ones_are_set_aside(
    energy: float, force: float, words: str, tmp_path: Path
) -> None:
    root = tmp_path / "campaign"
    spoilt(root, energy, force)
    site = run(root)
    labels = site.group("cycle-000/labels.zarr")
    assert labels["status"].values.tolist() == ["converged", "set_aside", "converged"]
    assert words in labels["reason"].values[1]
    learnt = site.training_set(0)
    assert learnt.sizes["structure"] == 2
    assert np.abs(learnt["energy"].values).max() < 1e4


def test_labels__absurd_ones_of_older_groups_stop_no_training(tmp_path: Path) -> None:
    """A group from before there was a limit says converged; it is not learnt from all the same."""
    root = tmp_path / "campaign"
    spoilt(root, 1e300, 0.0)
    site = run(root)
    labels = site.group("cycle-000/labels.zarr").load()
    status = np.array(["converged"] * 3, np.dtypes.StringDType())  # type: ignore[attr-defined]
    site.path("cycle-000/labels.zarr").rename(tmp_path / "aside.zarr")
    write_group(labels.assign(status=("structure", status)), site.path("cycle-000/labels.zarr"))
    assert Site(root).training_set(0).sizes["structure"] == 2


def test_set_aside__by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "campaign"
    prepared(root)
    site = run(root)
    ids = [str(s) for s in site.group("cycle-000/labels.zarr")["structure_id"].values]
    before = site.training_set(0)
    argv = ["set-aside", str(root), ids[1][:12], "--reason", "wrong spin\nstate"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "no model has learnt from it; the training of cycle 0 goes by the list" in out
    after = Site(root).training_set(0)
    assert set(after["structure_id"].values) == {ids[0], ids[2]}
    # The others stay in the part that they were in.
    parts = dict(zip(before["structure_id"].values, before["split"].values))
    assert all(parts[s] == p for s, p in zip(after["structure_id"].values, after["split"].values))
    assert main(["set-aside", str(root)]) == 0
    assert capsys.readouterr().out.split()[:3] == [ids[1], "wrong", "spin"]
    # A model that has learnt from it stays; the command says so.
    model = root / "cycle-000" / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    (root / "cycle-001" / ".model.training").mkdir(parents=True)
    assert main(["set-aside", str(root), ids[0], "--reason", "x"]) == 0
    out = capsys.readouterr().out
    assert "the model of cycle 0 has learnt from it and stays as it is" in out
    assert "starts over: cycle-001/model" in out
    assert not (root / "cycle-001" / ".model.training").exists()
    assert main(["set-aside", str(root), ids[0], ids[1], "--undo"]) == 0
    assert Site(root).training_set(0).sizes["structure"] == 3


def test_set_aside__later_groups_say_so(tmp_path: Path) -> None:
    site = prepared(tmp_path / "campaign")
    first, _ = cycles(site)
    clusters = site.group(first.needs[0])["structure_id"].values
    put(site, first.needs[0], 0, "converged")
    put(site, first.needs[0], 1, "converged")
    assert main(["set-aside", str(site.root), clusters[1], "--reason", "a doubt"]) == 0
    again = Site(site.root)
    steps.finish(again, first, [])
    labels = again.group(first.makes)
    assert labels["status"].values.tolist() == ["converged", "set_aside"]
    assert labels["reason"].values[1] == "by hand: a doubt"


WRONG = [
    (["0123456789ab", "--reason", "x"], "no structure of this campaign"),
    (["0123", "--reason", "x"], "at least 8 characters"),
    (["{id}"], "say why"),
    (["{id}", "--undo"], "is not set aside"),
]


@pytest.mark.parametrize(("more", "message"), WRONG)
def test_set_aside__mistakes(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = prepared(tmp_path / "campaign")
    first, _ = cycles(site)
    one = str(site.group(first.needs[0])["structure_id"].values[0])
    argv = ["set-aside", str(site.root), *(m.format(id=one) for m in more)]
    assert main(argv) == 1
    assert message in capsys.readouterr().err
    assert not (site.root / "set-aside.json").exists()
    assert main(["set-aside", str(tmp_path / "nowhere"), "x"]) == 1


def test_set_aside__damaged_list_stops_training(tmp_path: Path) -> None:
    root = tmp_path / "campaign"
    prepared(root)
    run(root)
    for text in ("{", "[]", '{"structures": 3}'):
        (root / "set-aside.json").write_text(text)
        with pytest.raises(MofalError, match=r"set-aside\.json"):
            Site(root).training_set(0)
