"""Do clusters of files of other people converge? GFN1-xTB on a hundred accepted files of CoRE MOF.

    python benchmarks/clusters_converge.py DIR [--mofs 100] [--most 120] [--seconds 1000]

Draws files at random (`frameworks_core_mof.py` says where they come from), keeps those that hold
all their atoms and are accepted, cuts one cluster around each kind of core, and computes the
smallest first: those of at most `--most` atoms, each within `--limit` seconds, until `--seconds`
are over. What is done is kept in DIR, and the same command goes on. Open shells are taken as
closed as the number of electrons allows: the question is convergence. Prints how many clusters and
how many MOFs were run, and how many of them converged at their declared charge.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

KINDS = 6
"""Kinds of core of one MOF at most."""
HEAVIEST = 86
"""GFN1-xTB ends at Rn."""


def prepare(folder: Path, n: int, seed: int, most: int, wheel: Path | None) -> None:
    """Clusters of `n` accepted files, smallest first, and what became of the files drawn."""
    from clusters_any_mof import clusters_of
    from frameworks_core_mof import archives, draw, missing_atoms

    from mofal.errors import MofalError
    from mofal.frameworks import read_framework
    from mofal.frameworks.cif import read_cif

    found: list[Atoms] = []
    count = {"drawn": 0, "complete": 0, "accepted": 0, "cores": 0, "refused": 0}
    count["without parameters"] = 0
    with tempfile.TemporaryDirectory() as scratch:
        files = list(draw(archives(wheel), 3 * n, seed).items())
        # As the archives have them they are in order.
        for k in np.random.default_rng(seed).permutation(len(files)):
            name, text = files[k]
            if count["accepted"] == n:
                break
            count["drawn"] += 1
            path = Path(scratch) / "mof.cif"
            path.write_bytes(text.encode("latin-1"))
            try:
                atoms = read_cif(path)[0]
                if missing_atoms(atoms):
                    continue
                count["complete"] += 1
                if atoms.numbers.max() > HEAVIEST:
                    count["without parameters"] += 1
                    continue
                ds = read_framework(path)
                made = list(clusters_of(ds, KINDS, most))
            except MofalError:
                continue
            count["accepted"] += 1
            for core, atoms, charge, why in made:
                count["cores"] += 1
                if atoms is None:
                    count["refused"] += 1
                    print(f"{name} {core}: {why}", flush=True)
                    continue
                bare = Atoms(atoms.numbers, atoms.positions)
                bare.info.update(mof=name, core=core, charge=charge)
                found.append(bare)
    found.sort(key=len)
    write(folder / "clusters.extxyz", found)
    (folder / "count.json").write_text(json.dumps(count))


def _work(atoms: Atoms, send: Connection, limit_s: int) -> None:
    from clusters_any_mof import xtb

    from mofal.reference.xtb import unpaired_valence

    # Of the processor, not of the clock: a busy machine makes no cluster harder.
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    charge = int(atoms.info["charge"])
    odd = (int(atoms.numbers.sum()) - charge) % 2
    done, gap = xtb(atoms, charge, unpaired_valence(atoms.numbers, odd))
    send.send((done, gap, time.process_time()))


def compute(atoms: Atoms, limit_s: int) -> tuple[str, float, float]:
    """What became of a label, the gap in eV, and seconds of the processor."""
    receive, send = multiprocessing.Pipe(duplex=False)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=_work, args=(atoms, send, limit_s))
    process.start()
    send.close()
    try:
        done, gap, seconds = receive.recv()
    except EOFError:
        process.join()
        slow = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        return "too slow" if slow else "crashed", float("nan"), float(limit_s)
    process.join()
    return ("converged" if done else "not converged"), float(gap), float(seconds)


def report(clusters: Sequence[Atoms], rows: list[dict[str, Any]], count: dict[str, int]) -> None:
    """Print the counts."""
    print(", ".join(f"{v} {k}" for k, v in count.items()))
    status = {row["k"]: row["status"] for row in rows}
    total = {str(v): list(status.values()).count(v) for v in dict.fromkeys(status.values())}
    largest = max((len(clusters[k]) for k in status), default=0)
    print(f"{len(status)} of {len(clusters)} clusters were run, of up to {largest} atoms: {total}")
    mofs: dict[str, list[str]] = {}
    for k, atoms in enumerate(clusters):
        mofs.setdefault(str(atoms.info["mof"]), []).append(status.get(k, ""))
    for title, some in (
        ("a cluster", [[s for s in own if s] for own in mofs.values() if any(own)]),
        ("every cluster", [own for own in mofs.values() if all(own)]),
    ):
        fine = sum(set(own) == {"converged"} for own in some)
        print(f"MOFs of which {title} was run: {len(some)}; all of these converged: {fine}")
    good = [row for row in rows if row["status"] == "converged"]
    if good:
        gaps = np.array([row["gap"] for row in good])
        charged = sum(clusters[row["k"]].info["charge"] != 0 for row in good)
        print(f"gaps {gaps.min():.2f} to {gaps.max():.2f} eV, {(gaps < 0.5).sum()} under 0.5 eV")
        print(f"{charged} of the converged ones are charged; {sum(r['s'] for r in rows):.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare once, go on, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mofs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--most", type=int, default=120, help="atoms of a cluster that is run")
    parser.add_argument("--limit", type=int, default=120, help="processor seconds of a cluster")
    parser.add_argument("--seconds", type=float, default=1000.0, help="of this call")
    parser.add_argument("--wheel", type=Path)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "count.json").exists():
        prepare(args.folder, args.mofs, args.seed, args.most, args.wheel)
    clusters = read(args.folder / "clusters.extxyz", index=":")
    ledger = args.folder / "results.jsonl"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    known = {row["k"] for row in rows}
    end = time.monotonic() + args.seconds
    for k, atoms in enumerate(clusters):
        if k in known or len(atoms) > args.most or time.monotonic() > end:
            continue
        status, gap, seconds = compute(atoms, args.limit)
        rows.append({"k": k, "status": status, "gap": gap, "s": seconds})
        with ledger.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        info = atoms.info
        print(
            f"{info['mof']} {info['core']}: {len(atoms)} atoms, charge {info['charge']:+d}, "
            f"{status}, gap {gap:.2f} eV, {rows[-1]['s']:.1f} s",
            flush=True,
        )
    report(clusters, rows, json.loads((args.folder / "count.json").read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
