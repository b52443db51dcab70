"""How many files of other people give blocks: CoRE MOF 2019, drawn at random.

    python benchmarks/frameworks_core_mof.py [--size tiny|full] [--n 2000] [--seed 0] [--rule auto]
                                             [--list refused.json]

The files come from the package `core-mof` (Chung et al., J. Chem. Eng. Data 64, 5985, 2019; CC BY
4.0; `pip install --no-deps core-mof`): its archives are read as they lie in the package, or in a
wheel given by `--wheel`, without importing it. Nothing of them is kept.

Prints the share of files that hold all their atoms (`missing_atoms`: geometry alone, so that a
file is not called incomplete because mofal cannot read it), how many of these and of all files give
finite blocks with an explainable charge, why the others are refused, and the time a file takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import re
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from matscipy.neighbours import neighbour_list

ARCHIVES = ("2019-ASR.tar.xz", "2019-FSR.tar.xz")
SIZES = {"tiny": 20, "full": 2000}
# Metals that hold a terminal oxo (M=O) by right.
OXO = "Ti V Cr Mn Nb Mo Tc Ru Ta W Re Os Th Pa U Np Pu Am"
OXO_NUMBERS = [atomic_numbers[s] for s in OXO.split()]


# ---------------------------------------------------- the rule for "holds all its atoms"
def missing_atoms(atoms: Atoms) -> str:
    """Why a file does not hold all its atoms, or holds some twice; empty where it does.

    By distances alone, without any of mofal's own judgements. A file is incomplete when

    1. it has no carbon or no metal;
    2. two atoms lie closer than 0.62 sums of covalent radii, the same element within 0.3 Å apart
       (what is printed twice is one atom);
    3. an H has no neighbour within 1.4 Å, or a carbon more than four;
    4. a carbon lacks a hydrogen: one neighbour that is no N or O, two at less than 148 degrees, or
       three of which the angles add up to less than 345 degrees while a bond to C or N is longer
       than 1.43 Å for each of them (a pyramid of single bonds);
    5. an O lacks a hydrogen: alone; on one metal only, longer than 1.9 Å or on a metal that makes
       no oxo; on one carbon only with a single bond (over 1.31 Å) where that carbon holds no
       second O; or both O of a free carboxyl (no metal, no H) that differ by over 0.07 Å;
    6. an N lacks a hydrogen: on one carbon only (over 1.26 Å, at most one metal), or between two
       carbons at over 1.43 Å each, without metal and H.
    """
    z = atoms.numbers
    metal = np.isin(z, METALS)
    if not metal.any() or not (z == 6).any():
        return "no metal or no carbon"
    cut = 1.3 * (covalent_radii[z].max() * 2)
    i, j, d, vector = neighbour_list("ijdD", atoms, float(cut))
    radii = covalent_radii[z[i]] + covalent_radii[z[j]]
    twice = (d < 0.3) & (z[i] == z[j])
    if (twice & (i < j)).any():
        keep = np.ones(len(z), bool)
        keep[j[twice & (i < j)]] = False
        return missing_atoms(atoms[keep])
    if (d < 0.62 * radii).any():
        return "overlapping atoms"
    near = d < np.where(metal[i] | metal[j], radii + 0.4, radii + 0.25)
    near &= ~(metal[i] & metal[j])
    near[(z[i] == 1) | (z[j] == 1)] &= (d < 1.4)[(z[i] == 1) | (z[j] == 1)]
    i, j, d, vector = i[near], j[near], d[near], vector[near]
    neighbours: list[list[int]] = [[] for _ in z]
    for edge, first in enumerate(i.tolist()):
        neighbours[first].append(edge)
    for k in range(len(z)):
        edges = neighbours[k]
        on_metal = [e for e in edges if metal[j[e]]]
        other = [e for e in edges if not metal[j[e]]]
        text = _lacks(k, z, j, d, vector, on_metal, other, neighbours, metal)
        if text:
            return text
    return ""


def _lacks(k, z, j, d, vector, on_metal, other, neighbours, metal) -> str:
    near = [int(z[j[e]]) for e in other]
    if z[k] == 1:
        return "" if on_metal or other else "stray hydrogen"
    if z[k] == 6 and 5 not in near:
        if len(other) > 4:
            return "carbon with five bonds"
        if on_metal:
            return ""
        unit = [vector[e] / d[e] for e in other]
        if len(other) == 0 or (len(other) == 1 and near[0] not in (7, 8)):
            return "hydrogen missing on C"
        if len(other) == 2 and unit[0] @ unit[1] > np.cos(np.radians(148)):
            return "hydrogen missing on C"
        if len(other) == 3:
            angles = [np.degrees(np.arccos(np.clip(unit[a] @ unit[b], -1, 1)))
                      for a, b in ((0, 1), (0, 2), (1, 2))]  # fmt: skip
            single = all(d[e] > 1.43 for e, n in zip(other, near) if n in (6, 7))
            if sum(angles) < 345 and single and 8 not in near:
                return "hydrogen missing on C"
    if z[k] == 8 and 1 not in near:
        if not on_metal and not other:
            return "hydrogen missing on O"
        if not other and len(on_metal) == 1:
            holder = int(z[j[on_metal[0]]])
            if d[on_metal[0]] > 1.9 or holder not in OXO_NUMBERS:
                return "hydrogen missing on O"
        if not on_metal and near == [6]:
            second = [e for e in neighbours[j[other[0]]] if z[j[e]] == 8 and j[e] != k]
            if not second and d[other[0]] > 1.31:
                return "hydrogen missing on O"
            for e in second:
                beyond = [int(z[j[f]]) for f in neighbours[j[e]]]
                bare = len(beyond) == 1
                if bare and d[other[0]] - d[e] > 0.07:
                    return "hydrogen missing on O"
    if z[k] == 7 and 1 not in near:
        if near == [6] and d[other[0]] > 1.26 and len(on_metal) <= 1:
            return "hydrogen missing on N"
        if near == [6, 6] and not on_metal and min(d[e] for e in other) > 1.43:
            return "hydrogen missing on N"
    return ""


_NONMETALS = "H He B C N O F Ne Si P S Cl Ar As Se Br Kr Te I Xe At Rn"
METALS = [n for n in range(1, 119) if n not in [atomic_numbers[s] for s in _NONMETALS.split()]]


# ------------------------------------------------------------------------------- the files
def archives(wheel: Path | None) -> dict[str, bytes]:
    """The archives of the package, by name."""
    if wheel is not None:
        with zipfile.ZipFile(wheel) as file:
            return {a: file.read(f"CoRE_MOF/data/{a}") for a in ARCHIVES}
    spec = importlib.util.find_spec("CoRE_MOF")
    if spec is None or spec.origin is None:
        raise SystemExit("core-mof is not installed: pip install --no-deps core-mof, or --wheel")
    folder = Path(spec.origin).parent / "data"
    return {a: (folder / a).read_bytes() for a in ARCHIVES}


def draw(found: dict[str, bytes], n: int, seed: int, skip: int = 0) -> dict[str, str]:
    """Text of n files at random, two in three of the first archive; by name."""
    rng = np.random.default_rng(seed)
    out: dict[str, str] = {}
    for archive, share in zip(ARCHIVES, (2 / 3, 1 / 3)):
        with tarfile.open(fileobj=io.BytesIO(found[archive])) as tar:
            members = sorted(m.name for m in tar.getmembers() if m.name.endswith(".cif"))
            order = rng.permutation(len(members))
            first = round(skip * share)
            wanted = {members[k] for k in order[first : first + round(n * share)]}
        with tarfile.open(fileobj=io.BytesIO(found[archive])) as tar:
            for member in tar:
                if member.name in wanted:
                    handle = tar.extractfile(member)
                    assert handle is not None
                    name = f"{archive[5:8]}/{Path(member.name).name}"
                    out[name] = handle.read().decode("latin-1")
    return out


KINDS = [
    ("overlap", r"Å apart"), ("hydrogen on O or N", r"hydrogens? (is|are) missing on"),
    ("hydrogen on C", r"lacks one|hydrogens are missing"), ("five bonds", r"has \d+ bonds"),
    ("stray hydrogen", r"bonded to nothing"), ("no carbon", r"no carbon"), ("no metal", "no metal"),
    ("endless", r"infinite along"), ("nothing to cut", r"cuts no bond"), ("occupancy", "occupied"),
    ("charge", r"formal charge|neutral"), ("cell", "cell|volume"),
]  # fmt: skip


def classify(text: str) -> str:
    """One word on a refusal."""
    return next((name for name, pattern in KINDS if re.search(pattern, text)), "other")


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, read, count."""
    from mofal.errors import MofalError
    from mofal.frameworks import find_blocks, read_framework
    from mofal.frameworks.cif import read_cif

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--n", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first files drawn")
    parser.add_argument("--rule", default="auto")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--list", type=Path, help="write what happened to each file")
    args = parser.parse_args(argv)
    n = args.n or SIZES[args.size]
    files = draw(archives(args.wheel), n, args.seed, args.skip)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder) / "file.cif"
            path.write_bytes(text.encode("latin-1"))
            row: dict[str, object] = {"name": name}
            try:
                atoms = read_cif(path)[0]
                row["incomplete"] = missing_atoms(atoms)
            except MofalError as error:
                row["incomplete"] = f"unreadable: {error}"
            start = time.process_time()
            try:
                ds = read_framework(path, rule=args.rule)
                find_blocks(ds, rule=args.rule)
                row["notes"] = ds.attrs["notes"]
                row["verdict"] = "works"
            except MofalError as error:
                row["verdict"] = classify(str(error))
                row["said"] = str(error).replace(str(path), name)
            except Exception:
                row["verdict"] = "traceback"
                row["said"] = traceback.format_exc()
            row["seconds"] = time.process_time() - start
            rows.append(row)
            if args.list and (len(rows) % 50 == 0 or len(rows) == len(files)):
                args.list.write_text(json.dumps(rows, indent=1))
    report(rows)
    return int(any(r["verdict"] == "traceback" for r in rows))


def report(rows: list[dict[str, object]]) -> None:
    """Print the counts."""
    whole = [r for r in rows if not r["incomplete"]]
    good, good_whole = (sum(r["verdict"] == "works" for r in some) for some in (rows, whole))
    seconds = np.array([r["seconds"] for r in rows], float)
    print(f"{len(rows)} files, {len(whole)} hold all their atoms "
          f"({100 * (1 - len(whole) / len(rows)):.1f} % called incomplete)")  # fmt: skip
    print(f"finite blocks and an explainable charge: {good_whole} of {len(whole)} complete files "
          f"({100 * good_whole / max(len(whole), 1):.1f} %), {good} of all "
          f"({100 * good / len(rows):.1f} %)")  # fmt: skip
    print(f"time per file: {seconds.mean():.2f} s on average, {seconds.max():.1f} s at most")
    for title, some in (("complete", whole), ("all", rows)):
        print(
            f"verdicts on {title} files: {dict(Counter(r['verdict'] for r in some).most_common())}"
        )
    why = Counter(re.sub(r":.*", "", str(r["incomplete"])) for r in rows if r["incomplete"])
    print(f"incomplete because of: {dict(why.most_common())}")
    notes = Counter(
        re.sub(r"[-+]?\d+", "n", part) for r in rows for part in str(r.get("notes", "")).split(", ")
        if part
    )  # fmt: skip
    print(f"notes: {dict(notes.most_common(12))}")


if __name__ == "__main__":
    sys.exit(main())
