"""Faults by the hundred at the level of system calls: is anything lost, is anything different?

    python benchmarks/attacks.py [--size tiny|full] [--seeds 0-199]
                                 [--what labels|labels-local|campaign|campaign-local]
                                 [--kinds ENOSPC,KILL,...] [--folder DIR]

Each seed is one fault (an error of the operating system, a kill, a file that vanishes, a flipped
bit) at one moment of a command: `mofal label` of three molecules, or `mofal run` of a small
campaign with eight labels, each in one process or (`-local`) with a scheduler, a job and a worker.
The same command is then given again until it ends well, and what it made is compared, bit for bit,
with what an undisturbed one made. A fault that stops a command must leave one line that says why,
and no traceback.

Prints a table by kind, and for each broken promise its seed, with which it can be made again. With
`--folder` what was tried is kept there, and the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.attacks.attacks import DONE_TO_FILES, KINDS, Range  # noqa: E402
from tests.attacks.campaigns import (  # noqa: E402
    CAMPAIGN,
    CAMPAIGN_LOCAL,
    LABELS,
    LABELS_LOCAL,
)

TARGETS = {
    "labels": LABELS,
    "labels-local": LABELS_LOCAL,
    "campaign": CAMPAIGN,
    "campaign-local": CAMPAIGN_LOCAL,
}
#: What is attacked, and how often.
SIZES = {"tiny": ("labels", "0-2"), "full": ("campaign", "0-199")}


def seeds_of(text: str) -> list[int]:
    """``0-199`` or ``3,5,8``."""
    first, dash, last = text.partition("-")
    if dash:
        return list(range(int(first), int(last) + 1))
    return [int(part) for part in text.split(",")]


def table(found: list[dict[str, Any]]) -> str:
    """What became of the attacks, by kind."""
    words = ("attacks", "met", "went on", "stopped", "killed", "lost", "different", "no reason")
    lines = [f"{'kind':<9}" + "".join(f"{word:>11}" for word in words)]
    total: Counter[str] = Counter()
    for kind in dict.fromkeys(one["attack"]["kind"] for one in found):
        rows: Counter[str] = Counter()
        for one in found:
            if one["attack"]["kind"] != kind:
                continue
            first, text = one["statuses"][0], "\n".join(one["wrong"])
            rows["attacks"] += 1
            rows["met"] += bool(one["met"])
            rows["went on"] += first == 0
            rows["stopped"] += first > 0
            rows["killed"] += first < 0
            rows["lost"] += "lost for good" in text or "it hangs" in text
            rows["different"] += "silently different" in text or "cannot be read" in text
            rows["no reason"] += "traceback" in text or "without a reason" in text
        total.update(rows)
        lines.append(f"{kind:<9}" + "".join(f"{rows[word]:>11}" for word in words))
    lines.append(f"{'all':<9}" + "".join(f"{total[word]:>11}" for word in words))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run and print; returns the number of broken promises."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--what", choices=TARGETS)
    parser.add_argument("--seeds")
    parser.add_argument("--kinds", default=",".join((*KINDS, *DONE_TO_FILES)))
    parser.add_argument("--folder", help="keep everything there, and go on from what is there")
    options = parser.parse_args(argv)
    what, seeds = options.what or SIZES[options.size][0], options.seeds or SIZES[options.size][1]
    kinds = tuple(options.kinds.split(","))
    with tempfile.TemporaryDirectory(prefix="mofal-attacks-", ignore_cleanup_errors=True) as place:
        folder = Path(options.folder or place) / what
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "results.jsonl"
        done: dict[str, dict[str, Any]] = {}
        if results.exists():
            for one in map(json.loads, results.read_text().splitlines()):
                done[json.dumps(one["attack"])] = one
        found = []
        try:
            attacked = Range(folder, TARGETS[what])
        except RuntimeError as error:
            print(f"nothing can be attacked: {error}")
            return 0
        with attacked:
            for seed in seeds_of(seeds):
                attack = attacked.attack(seed, kinds)
                one = done.get(json.dumps(asdict(attack)))
                if one is None:
                    verdict = attacked.run(attack)
                    one = asdict(verdict)
                    with results.open("a") as stream:
                        stream.write(json.dumps(one) + "\n")
                found.append(one)
                statuses = " ".join(map(str, one["statuses"]))
                print(f"{attack.name}: {statuses}: {'; '.join(one['wrong']) or 'kept'}", flush=True)
    bad = [one for one in found if one["wrong"]]
    print(table(found))
    print(f"{len(found) - len(bad)} of {len(found)} promises kept")
    if bad:
        again = ",".join(str(one["attack"]["seed"]) for one in bad)
        print(f"again: python benchmarks/attacks.py --what {what} --seeds {again}", end="")
        print("" if options.kinds == parser.get_default("kinds") else f" --kinds {options.kinds}")
    return len(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
