"""Seeded faults in a small campaign: each must end with the result of one that met none.

A fault is one kind (an error of the operating system, a kill, a file that vanishes, a flipped bit)
at one moment (the n-th call of its sort on one sort of file). What it is follows from its seed and
from the calls that an undisturbed campaign made.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.attacks.campaigns import Target

ROOT = Path(__file__).parent.parent.parent
SHIM = Path(__file__).with_name("faults.c")

#: Calls that a fault of a kind can meet.
CHANGES = "open,write,sync,rename,link,mkdir"
KINDS: dict[str, str] = {
    "ENOSPC": CHANGES,
    "SHORT": "write",
    "EIO": "read,write,sync",
    "EROFS": "open,write,rename,link,mkdir,unlink",
    "EACCES": "open,look,rename,mkdir",
    "EMFILE": "open,look",
    "ESTALE": "open,look,read,write",
    "KILL": CHANGES + ",unlink",
    "KILLED": CHANGES + ",unlink",
}
#: Kinds that are no errors of a call: done to the files while the command is held at a moment.
DONE_TO_FILES = ("vanish", "flip")
#: Runs of the same command that may be needed once the fault is gone.
PATIENCE = 3


def build_shim(folder: Path) -> Path:
    """Compile the shim.

    Raises
    ------
    RuntimeError
        There is no compiler here, or it is not Linux.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform != "linux":
        raise RuntimeError("no C compiler (cc) on this machine, or it is not Linux")
    target = folder / "faults.so"
    command = [compiler, "-O1", "-fPIC", "-shared", "-o", str(target), str(SHIM), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the shim cannot be compiled: {done.stderr.strip()[:300]}")
    return target


@dataclass(frozen=True)
class Attack:
    """One fault at one moment.

    Attributes
    ----------
    kind
        What happens.
    call, match, at
        The moment: the `at`-th call of this sort on a path that holds `match`.
    seconds
        How long it lasts; 0: one call (of SHORT two).
    """

    seed: int
    kind: str
    call: str
    match: str
    at: int
    seconds: float

    @property
    def name(self) -> str:
        """In one line."""
        lasts = f" for {self.seconds:g} s" if self.seconds else ""
        return f"seed {self.seed}: {self.kind}{lasts} at {self.call} {self.at} of {self.match!r}"


@dataclass
class Verdict:
    """What became of a campaign that was attacked.

    Attributes
    ----------
    met
        How many calls met the fault.
    statuses
        Exit status of each run of the command.
    wrong
        What breaks the promise; empty where it is kept.
    """

    attack: Attack
    met: int = 0
    statuses: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Nursery:
    """The process whose forks run the commands (see `nursery.py`)."""

    def __init__(self, shim: Path | None, modules: tuple[str, ...]) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FAULT_")}
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        environment |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.nursery", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that runs the commands has died")
        return dict(json.loads(line))

    def ask(self, **order: Any) -> dict[str, Any]:
        """Have something run, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Range:
    """Where campaigns are attacked: a folder, a shim, and a campaign that nobody attacked.

    Parameters
    ----------
    folder
        Kept between runs: the undisturbed campaign is made once.
    target
        What is attacked.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder, self.target = folder, target
        folder.mkdir(parents=True, exist_ok=True)
        self.nursery = Nursery(build_shim(folder), target.modules)
        self.quiet = folder / "quiet"
        self.calls: list[tuple[str, str]] = []

    def __enter__(self) -> Range:
        try:
            self._prepare()
        except BaseException:
            self.nursery.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.nursery.close()

    def _prepare(self) -> None:
        trace, modules = self.folder / "quiet.trace", self.folder / "quiet.modules"
        if not (self.folder / "quiet.done").exists():
            shutil.rmtree(self.quiet, ignore_errors=True)
            trace.unlink(missing_ok=True)
            self.target.write(self.quiet)
            faults = {"FAULT_CALLS": "open,look,read,write,sync,rename,link,mkdir,unlink"}
            faults["FAULT_TRACE"] = str(trace)
            status = self.command(self.quiet, faults, learn=str(modules))["status"]
            if status != 0:
                raise RuntimeError(f"undisturbed: status {status}: {self.quiet / 'log'}")
            (self.folder / "quiet.done").touch()
        self.nursery.ask(**{"import": str(modules)})
        lines = trace.read_text(errors="replace").splitlines()
        self.calls = [(call, path) for call, _, path in (line.partition(" ") for line in lines)]

    def command(
        self,
        folder: Path,
        faults: dict[str, str] | None = None,
        *,
        timeout: float = 600,
        **order: Any,
    ) -> dict[str, Any]:
        """Run, or go on with, the campaign of a folder."""
        environment = {"XDG_CACHE_HOME": str(folder / "cache"), "FAULT_DIR": ""}
        if faults is not None:
            environment |= {"FAULT_DIR": str(folder / "campaign"), **faults}
        return self.nursery.ask(
            argv=self.target.argv(folder),
            environment=environment,
            log=str(folder / "log"),
            timeout=timeout,
            **order,
        )

    # -- choosing
    def attack(self, seed: int, kinds: tuple[str, ...] = ()) -> Attack:
        """The fault of a seed; kinds take turns, moments are drawn evenly over sorts of files."""
        kinds = kinds or (*KINDS, *DONE_TO_FILES)
        kind = kinds[seed % len(kinds)]
        dice = random.Random(seed)
        wanted = set(KINDS.get(kind, CHANGES).split(","))
        sorts: dict[str, list[tuple[str, int]]] = defaultdict(list)
        counts: dict[tuple[str, str], int] = defaultdict(int)
        # Before there are files, nothing can be done to them.
        begin = len(self.calls) // 5 if kind in DONE_TO_FILES else 0
        for position, (call, path) in enumerate(self.calls):
            if call in wanted:
                sort = sort_of(path)
                counts[call, sort] += 1
                if position >= begin:
                    sorts[sort].append((call, counts[call, sort]))
        match = dice.choice(sorted(sorts))
        call, at = dice.choice(sorts[match])
        lasts = kind not in ("SHORT", "KILL", "KILLED", *DONE_TO_FILES) and dice.random() < 0.4
        return Attack(seed, kind, call, match, at, dice.choice((0.3, 1.0, 3.0)) if lasts else 0.0)

    # -- attacking
    def run(self, attack: Attack) -> Verdict:
        """Attack one campaign, go on with it, and compare."""
        folder = self.folder / f"seed-{attack.seed}"
        shutil.rmtree(folder, ignore_errors=True)
        self.target.write(folder)
        verdict = Verdict(attack)
        began = time.monotonic()
        state = self.folder / f"seed-{attack.seed}.state"
        state.unlink(missing_ok=True)
        faults = {
            "FAULT_KIND": "KILL" if attack.kind in DONE_TO_FILES else attack.kind,
            # A fault that lasts is one of the whole directory, and begins at its moment.
            "FAULT_CALLS": attack.call,
            "FAULT_MATCH": attack.match,
            "FAULT_AT": str(attack.at),
            "FAULT_TIMES": "2" if attack.kind == "SHORT" else "1",
            "FAULT_SECONDS": str(attack.seconds),
            "FAULT_STATE": str(state),
        }
        if attack.seconds:
            faults |= {"FAULT_WIDE": KINDS[attack.kind]}
        self._once(folder, verdict, faults)
        verdict.met = int.from_bytes(state.read_bytes()[8:16], sys.byteorder)
        restore = self._done_to_files(attack, folder)
        gone = time.monotonic() + attack.seconds
        while verdict.statuses[-1] != 0 and time.monotonic() < gone:
            time.sleep(0.3)  # a person who tries again and again while the disk is still full
            self._once(folder, verdict, faults)
        for _ in range(PATIENCE):
            if verdict.statuses[-1] == 0:
                break
            self._once(folder, verdict, None)
            restore()
        if verdict.statuses[-1] != 0:
            verdict.wrong.append(f"lost for good: {verdict.said[-1]}")
        else:
            wrong = self.differences(folder)
            if wrong == [UNREADABLE] and _refused_as_damaged(folder / "log"):
                # The bit flipped when the command had nothing left to read: whoever reads it is
                # refused, by its path. With the back-up put back it must be the undisturbed one.
                restore()
                wrong = self.differences(folder)
            verdict.wrong += wrong
        verdict.seconds = time.monotonic() - began
        state.unlink()
        if not verdict.wrong:
            shutil.rmtree(folder, ignore_errors=True)
        return verdict

    def _once(self, folder: Path, verdict: Verdict, faults: dict[str, str] | None) -> None:
        log = folder / "log"
        before = log.stat().st_size if log.exists() else 0
        status = self.command(folder, faults)["status"]
        verdict.statuses.append(status)
        with open(log, "rb") as stream:
            stream.seek(before)
            text = stream.read().decode(errors="replace")
        verdict.said.append(text.strip().rpartition("\n")[2][:300])
        if status == -999:
            verdict.wrong.append("it hangs")
        if "Traceback (most recent call last)" in text:
            verdict.wrong.append(f"a traceback: {verdict.said[-1]}")
        elif status > 0 and not re.match(r"mofal: |\d+ failed; try", verdict.said[-1]):
            verdict.wrong.append(f"stopped without a reason: {verdict.said[-1]!r}")

    def _done_to_files(self, attack: Attack, folder: Path) -> Any:
        """Do to the files of a killed campaign what the attack says; returns how to undo it."""
        dice = random.Random(attack.seed)
        campaign = folder / "campaign"
        files = sorted(p for p in campaign.rglob("*") if p.is_file() and p.stat().st_size)
        if attack.kind == "vanish" and files:
            file = dice.choice([folder / "campaign.yaml", *files])
            away = folder / "away"
            file.rename(away)

            def restore() -> None:
                if away.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    away.replace(file)

            return restore
        if attack.kind == "flip" and files:
            file = dice.choice(files)
            content = bytearray(file.read_bytes())
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            whole = file.read_bytes()
            file.write_bytes(bytes(content))

            def mend() -> None:
                if file.exists() and file.read_bytes() == bytes(content):
                    file.write_bytes(whole)  # from the back-up, as the message asks for

            return mend
        return lambda: None

    def differences(self, folder: Path) -> list[str]:
        """Against the undisturbed campaign."""
        answer = self.nursery.ask(
            call=self.target.compare,
            arguments=[str(self.quiet / "campaign"), str(folder / "campaign")],
            environment={"FAULT_DIR": ""},
            log=str(folder / "log"),
        )
        if answer["status"] != 0:
            return [UNREADABLE]
        return [f"silently different: {line}" for line in answer["result"]]


UNREADABLE = "it cannot be read"


def _refused_as_damaged(log: Path) -> bool:
    """Whether what was read last was refused as damaged, by its path."""
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    return "StoreError" in last and "is damaged" in last


def sort_of(path: str) -> str:
    """What stands for all files of one sort: the part of the path that names it."""
    for known in (
        "label-records",
        "scratch",
        "isolated-atoms",
        "checkpoint",
        ".model.",
        "campaign.json",
        "campaign.yaml",
        "claims",
        ".beat",
        "scheduler.json",
        "logs/",
        "driver.json",
        "driver.lock",
        "events.jsonl",
        "progress",
        "samples.zarr",
        "features.zarr",
        "clusters.zarr",
        "labels.zarr",
        "holdout",
        "walk",
        ".zarr",
        "schedule",
    ):
        if known in path:
            return known
    return ""
