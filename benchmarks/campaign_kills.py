"""A campaign file of yours on a real SLURM of this machine, killed once at each stage.

    python benchmarks/campaign_kills.py dft.yaml --directory DIR [--ranks 2] [--stages label,train]

Starts a SLURM (the tests' own: four pretend nodes on the loopback), gives the campaign two pools
of jobs, `dft` (labels, on so many MPI ranks) and `cpu` (everything else), and goes on with it where
it stands. Once a task of a stage has run for some seconds, something dies: the driver, a worker, a
job, a whole node, in turn. Whatever was durable at any kill must be there ever after, to the byte.
Prints a table, line by line as it happens; ends with status 0 only where the campaign came to its
end and nothing was harmed. The same command goes on; labels that are in the file's `caches` are
not computed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mofal.campaign.loading import dump_config, load_config  # noqa: E402
from mofal.errors import MofalError  # noqa: E402
from mofal.reference.registry import format_spec, parse_spec  # noqa: E402
from tests.slurm import lab as slurm  # noqa: E402
from tests.slurm.chaos import Chaos  # noqa: E402

STAGES = ("label", "train", "walk", "density", "propose", "select", "judge")
#: What dies, in turn. The driver first and most often: it is what a person stops.
VICTIMS = ("driver", "worker", "driver", "scancel", "driver", "node", "driver")


def campaign_file(file: Path, folder: Path, ranks: int, memory: str) -> Path:
    """The same campaign, its paths made absolute, with a schedule on the pretend cluster."""
    content = yaml.safe_load(dump_config(load_config(file)))
    reference = content["reference"]
    name, variant, options = parse_spec(reference["name"])
    if name in ("gpaw", "cp2k"):
        # Ranks are no part of the level; whatever else the file states is.
        reference["name"] = format_spec(name, variant, {**options, "ranks": ranks})
    common = {"walltime": "55m", "environment": {"PYTHONPATH": str(ROOT)}}
    content["schedule"] = {
        "backend": "slurm",
        "interface": "lo",
        "poll_interval": 2.0,
        "lengths": content.get("schedule", {}).get("lengths", {}),
        "pools": {
            "dft": {"kinds": ["label"], "partition": "dft", "workers": {"min": 0, "max": 1},
                    "mpi_ranks": ranks, "memory": memory, **common, "walltime": "110m"},
            "cpu": {"kinds": ["*"], "partition": "cpu", "workers": {"min": 0, "max": 1},
                    "threads": 1, "memory": "3GB", **common},
        },
    }  # fmt: skip
    path = folder / f"{file.stem}-slurm.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


class StageKills(Chaos):
    """Accidents of `Chaos`, one for each stage, once a task of it has run for a while."""

    def durable(self) -> dict[str, str]:
        """Records of labels and models that are whole, with a hash of their bytes."""
        found = {}
        patterns = ("label-records/**/*.npz", "cycle-*/model/**/*", "holdout/**/*.zarr/zarr.json")
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # moved to its place meanwhile
                    if path.is_file() and not path.name.startswith("."):
                        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def harmed(self, kept: dict[str, str]) -> list[str]:
        """Which of the durable files seen so far are gone or others; new ones join them."""
        now = self.durable()
        wrong = [path for path, digest in kept.items() if now.get(path) != digest]
        for path, digest in now.items():
            kept.setdefault(path, digest)
        return wrong

    def events(self, since: int) -> list[dict[str, object]]:
        """Events beyond a place in the file."""
        path = self.folder / "schedule" / "events.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(since)
            lines = file.read().decode(errors="replace").splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # cut off by a kill
        return found

    def size(self) -> int:
        """Where the file of events ends now."""
        path = self.folder / "schedule" / "events.jsonl"
        return path.stat().st_size if path.exists() else 0

    def in_hand(self, stage: str, since: int) -> str | None:
        """A task of the stage that began since, and has not ended."""
        begun: list[str] = []
        for event in self.events(since):
            if event.get("kind") == stage and event.get("event") == "start":
                begun.append(str(event["key"]))
            elif event.get("event") in ("end", "failed", "lost") and event.get("key") in begun:
                begun.remove(str(event["key"]))
        return begun[-1] if begun else None

    def run_stages(self, stages: list[str], after: dict[str, float], limit_s: float) -> bool:
        """Run to the end; whether it came there and nothing durable was harmed."""
        left, since = list(stages), self.size()
        start, seen = time.monotonic(), {}
        kept: dict[str, str] = {}
        kill, harmed, finished = 0, 0, False
        driver = self._start()
        try:
            while time.monotonic() - start < limit_s:
                self._repair(time.monotonic())
                status = driver.poll()
                if status is not None and status >= 0:
                    print(f"the driver ended with status {status}", flush=True)
                    finished = status == 0
                    break
                if status is not None:
                    driver = self._start()
                    self.result.drivers += 1
                for stage in left:
                    task = self.in_hand(stage, since)
                    if task is None:
                        continue
                    first = seen.setdefault((stage, task), time.monotonic())
                    if time.monotonic() - first < after.get(stage, 0.3):
                        continue
                    # What became of everything since the kill before, its recovery included.
                    harmed += len(self.harmed(kept))
                    victim = VICTIMS[kill % len(VICTIMS)]
                    if not getattr(self, f"_{victim}")(driver):
                        continue
                    kill += 1
                    left.remove(stage)
                    since = self.size()
                    now = len(self.harmed(kept))
                    harmed += now
                    print(
                        f"{time.monotonic() - start:8.0f} s  {stage:8s} {victim:8s} killed while "
                        f"{task} ran; {len(kept)} durable files, {now} of them harmed",
                        flush=True,
                    )
                    break
                time.sleep(0.2)
            else:
                print("the time is over; the same command goes on", flush=True)
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
            self._repair(float("inf"))
        harmed += len(self.harmed(kept))
        print(
            f"never reached: {', '.join(left) or 'none'}; of {len(kept)} durable files "
            f"{harmed} were harmed",
            flush=True,
        )
        return finished and harmed == 0


def main(argv: list[str] | None = None) -> int:
    """Run and print; 0 if the campaign ended and nothing was harmed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--memory", type=float, default=12.0, help="GB of a label's job")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--label-after", type=float, default=60.0, help="seconds into a label")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds in all")
    options = parser.parse_args(argv)
    unknown = set(options.stages.split(",")) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    slurm.install()
    # The pretend node for labels has 8 GB in the tests; a label of a cluster may take more.
    slurm.NODES = tuple(
        (name, part, cores, int(1000 * options.memory) + 500 if part == "dft" else memory, gpus)
        for name, part, cores, memory, gpus in slurm.NODES
    )
    folder = options.directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="mofal-slurm-"))
    base.chmod(0o755)
    lab = slurm.SlurmLab(base / "slurm")
    try:
        lab.start()
        file = campaign_file(options.file, base, options.ranks, f"{options.memory:g}GB")
        command = [sys.executable, "-m", "mofal", "run", str(file), "--directory", str(folder)]
        chaos = StageKills(
            lab, command, folder, seed=0, number=0, log=folder.parent / f"{folder.name}.slurm.log"
        )
        after = {"label": options.label_after, "train": 10.0, "walk": 5.0, "density": 2.0}
        well = chaos.run_stages(options.stages.split(","), after, options.limit)
        starts: dict[str, int] = {}
        for event in chaos.events(0):
            if event.get("event") == "start" and event.get("kind") == "label":
                starts[str(event["key"])] = starts.get(str(event["key"]), 0) + 1
        print(
            f"drivers {chaos.result.drivers}; labels started {sum(starts.values())} times for "
            f"{len(starts)}; tasks at risk of the accidents {chaos.result.at_risk}"
        )
        done = [sys.executable, "-m", "mofal", "status", str(folder)]
        print(subprocess.run(done, capture_output=True, text=True, check=False).stdout)
        return int(not well)
    except MofalError as error:
        print(f"campaign_kills: {error}", file=sys.stderr)
        return 1
    finally:
        lab.stop()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
