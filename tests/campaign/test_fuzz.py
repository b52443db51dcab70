"""A seeded fuzz test of every kind of file that mofal reads: an error is one of its own, in time.

``MOFAL_FUZZ=5000 pytest tests/campaign/test_fuzz.py`` makes it long, ``MOFAL_FUZZ_SEED=2`` another.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mofal.campaign.driver import Campaign
from mofal.campaign.estimate import known_lengths
from mofal.campaign.examples import example_text
from mofal.campaign.loading import dump_config, load_config, parse_config
from mofal.commands.run import describe_run
from mofal.data.documents import parse_yaml
from mofal.errors import MofalError
from mofal.schedule import EventLog
from tests.campaign.conftest import BASE, SMALL, in_time

ROUNDS = int(os.environ.get("MOFAL_FUZZ", "20"))
SEED = int(os.environ.get("MOFAL_FUZZ_SEED", "1"))

NASTY = [
    *(
        "yes",
        "no",
        "~",
        "null",
        "true",
        "010",
        "0x1",
        "1_0",
        "1:30",
        ".nan",
        "-.inf",
        "nan",
        "1e999",
    ),
    *("9" * 30, "9" * 5000, "-1", "0", "1e-320", "1e300", "2024-13-45", "[" * 2000, "{" * 2000),
    *(
        "]",
        "}",
        "&a",
        "*a",
        "<<: *a",
        "!!binary x",
        "!x",
        "'",
        '"',
        "|",
        ">",
        "---",
        "...",
        "%",
        "\t",
    ),
    *("\x00", "\x1b[31m", "é", "\u2028", "\ud7ff", "- ", "? ", ": ", "#", "a: b", "\n", " " * 50),
]
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1e308, -1e308, math.nan, math.inf, 10**30, 2**63, 1e-320),
    *("", "x", "\x00", "\ud800", "9" * 400, [], {}, [[]], {"": {}}, ["x"] * 3, [None], [1e400]),
]


def mangled(text: str, rng: random.Random) -> str:
    """A text with one to three faults."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        k = rng.randrange(len(lines))
        match rng.randrange(7):
            case 0:
                del lines[k]
            case 1:
                lines.insert(k, lines[rng.randrange(len(lines))])
            case 2:
                lines[k] = lines[k][: rng.randint(0, len(lines[k]))]
            case 3:
                words = lines[k].split(" ")
                words[rng.randrange(len(words))] = rng.choice(NASTY)
                lines[k] = " ".join(words)
            case 4:
                place = rng.randint(0, len(lines[k]))
                lines[k] = lines[k][:place] + rng.choice(NASTY) + lines[k][place:]
            case 5:
                lines[k] = " " * rng.randint(1, 9) + lines[k]
            case 6:
                head, colon, _ = lines[k].partition(":")
                lines[k] = f"{head}{colon} {rng.choice(NASTY)}"
        text = "\n".join(lines) or "x"
    return text


def warped(content: Any, rng: random.Random) -> Any:
    """A JSON content with one value that is another, or none."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(sorted(content))
        if rng.random() < 0.15:
            return {k: v for k, v in content.items() if k != key}
        return {**content, key: warped(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.85:
        k = rng.randrange(len(content))
        return [*content[:k], warped(content[k], rng), *content[k + 1 :]]
    return rng.choice(VALUES)


def broken(text: str, rng: random.Random) -> bytes:
    """A file of JSON, damaged in its values, its letters, or its depth."""
    match rng.randrange(5):
        case 0:
            return mangled(text, rng).encode("utf-8", "surrogatepass")
        case 1:
            return text[: rng.randint(0, len(text))].encode()
        case 2:
            deep = "[" * 100_000 if rng.random() < 0.5 else '{"a":' * 100_000
            return deep.encode()
        case 3:
            return rng.randbytes(200)
        case _:
            return json.dumps(warped(json.loads(text), rng)).encode()


def survive(what: Callable[[], Any], told: str) -> bool:
    """Whether something works; an error that is none of ours fails the test."""
    try:
        with in_time():
            what()
    except MofalError:
        return False
    except Exception as error:
        error.add_note(told[:3000])
        raise
    return True


def test_fuzz__campaign_files(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    texts = [BASE, *map(example_text, ("minimal", "realistic", "slurm", "demo"))]
    file = tmp_path / "c.yaml"
    for _ in range(5 * ROUNDS):
        text = mangled(rng.choice(texts), rng)
        file.write_text(text, encoding="utf-8")

        def load() -> None:
            config = load_config(file)
            assert parse_config(parse_yaml(dump_config(config), where="x").content) == config

        survive(load, text)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:ase.io.cif")
def test_fuzz__structure_files(tmp_path: Path) -> None:
    from mofal.data import write
    from mofal.data.text import read
    from mofal.frameworks import build, read_framework

    rng = random.Random(SEED)
    for suffix in ("extxyz", "cif"):
        good = tmp_path / f"good.{suffix}"
        write(build("S_ld", cell="primitive"), good)
        text = good.read_text()
        file = tmp_path / f"x.{suffix}"
        for k in range(ROUNDS):
            head, rest = text[: 800 if suffix == "extxyz" else 1500], text
            bad = mangled(head, rng) + rest[len(head) :]
            file.write_text(bad, encoding="utf-8")
            survive(partial(read, file), bad)
            if k % 10 == 0:
                survive(partial(read_framework, file), bad)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign that is prepared, with the events of a driver and the beat of a job."""
    from mofal.campaign.prepare import examine, settle
    from mofal.schedule import CampaignLock

    root = tmp_path_factory.mktemp("prepared") / "small"
    campaign = Campaign(SMALL, directory=root)
    findings = examine(campaign.site)
    assert findings is not None
    with CampaignLock(root):
        settle(campaign.site, findings)
    log = EventLog(root)
    log.write("driver-start", pid=1, host="here", backend="local")
    log.write("job", job="local-0", pool="local", backend="local")
    for k in range(3):
        log.write("queued", kind="label", key=f"k{k}", pool="local", cost=100.0)
        log.write("start", kind="label", key=f"k{k}", pool="local", worker="local-0.0.1", attempt=1)
    log.write("end", kind="label", key="k0", pool="local", status="done", wall_time=3.0)
    log.write("end", kind="label", key="k1", pool="local", status="failed", reason="it broke")
    log.write("lost", kind="label", key="k2", worker="local-0.0.1", reason="killed")
    log.write("message", text="hello")
    log.write("scheduler", address="tcp://127.0.0.1:1", dashboard="http://x", tls=False)
    log.close()
    beat = {
        "name": "local-0",
        "pool": "local",
        "slurm_id": "",
        "host": os.uname().nodename,
        "reason": "",
    }
    beat |= {
        "pid": 1,
        "process": "1",
        "started": 1.0,
        "time": 2.0,
        "beat": 3,
        "cores": 1,
        "slots": 1,
        "ended": False,
    }
    beat |= {"workers": ["local-0.0.1"], "generation": 1, "losses": {"local-0.0.0": "x"}}
    jobs = root / "schedule" / "jobs"
    jobs.mkdir()
    (jobs / "local-0.beat.json").write_text(json.dumps(beat))
    (jobs / "local-0.json").write_text(json.dumps({"name": "local-0", "pool": "local"}))
    return root


@pytest.mark.slow
def test_fuzz__files_of_a_campaign(prepared: Path, tmp_path: Path) -> None:
    """Status, a dry run, and what a driver reads when it starts."""
    from mofal.commands.status import show
    from mofal.schedule import CampaignLock, StatusReader
    from mofal.schedule.files import Layout
    from mofal.schedule.jobs import Jobs

    rng = random.Random(SEED)
    root = tmp_path / "small"
    files = [
        p.relative_to(prepared)
        for p in sorted(prepared.rglob("*.json*"))
        if "isolated" not in str(p) and p.suffix in (".json", ".jsonl")
    ]
    assert Path("schedule/events.jsonl") in files
    assert Path("driver.json") in files
    campaign = Campaign(SMALL, directory=root)

    def start() -> None:
        with CampaignLock(root):
            StatusReader(root).estimator().expected("label", 50.0)
            known_lengths(campaign.site)
            log = EventLog(root)
            jobs = Jobs(
                campaign.config.schedule,
                layout=Layout(root / "schedule"),
                tls=False,
                events=log,
                say=lambda text: None,
            )
            jobs.start(lambda: None)
            jobs.alive("local-0", "local-0.0.1")
            jobs.loss("local-0", "local-0.0.1")
            log.close()

    for k in range(ROUNDS):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(prepared, root)
        # Half of them where crafted ones hurt most.
        name = rng.choice([Path("schedule/events.jsonl"), rng.choice(files)])
        text = (prepared / name).read_text()
        if name.suffix == ".jsonl":
            lines = text.splitlines()
            n = rng.randrange(len(lines))
            bad = b"\n".join([*map(str.encode, lines[:n]), broken(lines[n], rng)]) + b"\n"
            bad += "\n".join(lines[n + 1 :]).encode() + b"\n"
        else:
            bad = broken(text, rng)
        (root / name).write_bytes(bad)
        told = f"{name}: {bad[:2000]!r}"
        survive(lambda: show(root), told)
        survive(start, told)
        if k % 10 == 0:
            survive(lambda: describe_run(Campaign(SMALL, directory=root)), told)


@pytest.mark.slow
def test_fuzz__a_group(prepared: Path, tmp_path: Path) -> None:
    from mofal.data import open_group
    from mofal.data.manifest import MANIFEST

    def load(root: Path, check: bool) -> None:
        open_group(root, check=check).load()

    rng = random.Random(SEED)
    group = prepared / "systems" / "pristine" / "structure.zarr"
    files = [p.relative_to(group) for p in sorted(group.rglob("zarr.json"))]
    for _ in range(ROUNDS):
        root = tmp_path / "x.zarr"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(group, root)
        name = rng.choice([Path(MANIFEST), rng.choice(files)])
        bad = broken((group / name).read_text(), rng)
        (root / name).write_bytes(bad)
        for check in (True, False):
            survive(partial(load, root, check), f"{name} {bad[:500]!r}")
    assert np.isfinite(open_group(group)["positions"].values).all()


CRAFTED = [
    "[]",
    '{"event": 1, "t": 1}',
    '{"event": "job", "t": 1.0}',
    '{"event": "job", "t": "x", "job": "a"}',
    '{"event": "queued", "t": 1e300, "kind": "label", "key": "k"}',
    '{"event": "queued", "t": 1, "kind": ["x"], "key": {}, "pool": []}',
    '{"event": "end", "t": 1, "kind": "a", "key": "b", "status": "done"}',
    '{"event": "end", "t": 1, "kind": "a", "key": "b", "status": [], "wall_time": "x"}',
    '{"event": "end", "t": 1, "kind": "a", "key": "c", "status": "done", "wall_time": 1e300}',
    '{"event": "end", "t": 1, "kind": "a", "key": "d", "status": "done", "wall_time": NaN}',
    '{"event": "job-end", "t": 1, "job": "a", "seconds": null, "cores": "x", "slots": []}',
    '{"event": "message", "t": 1, "text": "\\ud800"}',
    '{"event": "scheduler", "t": 1, "dashboard": 3}',
    '{"event": "queued", "t": 1, "kind": "a", "key": "e", "cost": ' + "9" * 5000 + "}",
    '{"event": ' * 20_000,
    "[" * 100_000,
]


def test_status__crafted_events_cost_a_line_and_no_more(tmp_path: Path) -> None:
    from mofal.schedule import StatusReader, format_status, read_events

    log = EventLog(tmp_path)
    log.write("queued", kind="label", key="good", pool="local")
    log.close()
    with log.path.open("a") as stream:
        stream.write("\n".join(CRAFTED) + "\n" + "x" * 3_000_000 + "\n")
    log = EventLog(tmp_path)
    log.write("end", kind="label", key="good", pool="local", status="done", wall_time=2.0)
    log.close()
    status = StatusReader(tmp_path).read()
    assert status["kinds"]["label"] == {"done": 1, "seconds": 2.0}
    assert "label" in format_status(status)
    assert [e["event"] for e in read_events(tmp_path) if e.get("kind") == "label"] == [
        "queued",
        "end",
    ]


WHOLE = {"name": "x", "identity": "y", "elements": ["H"], "level_hash": "z", "systems": {}}
SHAPES = [
    *("[]", "3", "{}", '{"name": "x"}', "[" * 100_000, '{"a": 1'),
    *(json.dumps({**WHOLE, "settings": s}) for s in (None, [1], {"exploration": None})),
]


@pytest.mark.parametrize("content", SHAPES)
def test_facts__of_another_shape_are_damage(content: str, tmp_path: Path) -> None:
    campaign = Campaign(SMALL, directory=tmp_path)
    (tmp_path / "campaign.json").write_text(content)
    with pytest.raises(MofalError, match="is damaged"):
        describe_run(campaign)
    with pytest.raises(MofalError, match="is damaged"):
        Campaign(SMALL, directory=tmp_path)
