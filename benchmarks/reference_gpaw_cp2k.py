"""GPAW and CP2K at PBE-D3(BJ) on the same structures: forces compared.

    python benchmarks/reference_gpaw_cp2k.py [--size tiny|full] [--levels cp2k:pbe gpaw:lcao ...]
        [--frames 1] [--directory DIR]

Structures: a ring of three water molecules, and (`full`) the bare brick of S_ld, 66 atoms, in the
first `--frames` of the frames of force matching. The first level is what the others are compared
with. Labels are durable: an interrupted run goes on with the same command; those that lie in
`examples/labels` are taken from there. What differs is basis, pseudopotential and grid, no more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms

from mofal.reference import LabelCache, get_reference, label_one
from mofal.reference.gpaw import gpaw_reference

LABELS = Path(__file__).resolve().parents[1] / "examples" / "labels"
LEVELS = {
    "tiny": ["cp2k:pbe?basis=SZV-MOLOPT-SR-GTH&cutoff=150&rel_cutoff=40&vacuum=3",
             "gpaw:lcao?h=0.25"],
    "full": ["cp2k:pbe", "gpaw:lcao"],
}  # fmt: skip


def waters() -> Atoms:
    """Three rattled water molecules in a ring, each a donor and an acceptor."""
    corners = 1.65 * np.array([[np.cos(x), np.sin(x), 0] for x in np.arange(3) * 2 * np.pi / 3])
    ring = Atoms()
    for k, oxygen in enumerate(corners):
        along = corners[(k + 1) % 3] - oxygen
        along /= np.linalg.norm(along)
        turned = np.cos(np.radians(104.5)) * along + np.sin(np.radians(104.5)) * np.array([0, 0, 1])
        ring += Atoms("OHH", [oxygen, oxygen + 0.97 * along, oxygen + 0.96 * turned])
    ring.rattle(0.03, seed=4)
    return ring


def bricks(n: int) -> list[Atoms]:
    """Bare bricks that are among the labels of force matching, in the order of their identities."""
    cache, level = LabelCache(LABELS, mode="r"), gpaw_reference("lcao").level_hash
    found = {
        a.structure_id: Atoms(a.numbers, a.positions)
        for a in cache.records()
        if a.level_hash == level and len(a.numbers) == 66
    }
    return [found[key] for key in sorted(found)][:n]


def main(argv: list[str] | None = None) -> list[dict[str, float | str]]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=LEVELS, default="full")
    parser.add_argument("--levels", nargs="+")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--directory")
    options = parser.parse_args(argv)
    structures = {"3 H2O": waters()}
    if options.size == "full":
        structures |= {f"brick {k}": a for k, a in enumerate(bricks(options.frames))}
    levels = options.levels or LEVELS[options.size]
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.directory or scratch)
        for name, atoms in structures.items():
            forces: dict[str, np.ndarray] = {}
            for level in levels:
                begun = time.monotonic()
                attempt = label_one(
                    atoms, get_reference(level), directory=place, shared=[LABELS], attempts=2
                )
                print(
                    f"{name}, {level}: {attempt.status}, {time.monotonic() - begun:.0f} s here, "
                    f"{attempt.wall_time_s:.0f} s when it was made {attempt.reason}",
                    flush=True,
                )
                if attempt.status == "converged":
                    forces[level] = attempt.forces
            rows += compare(name, atoms, forces, levels[0])
    return rows


def compare(
    name: str, atoms: Atoms, forces: dict[str, np.ndarray], first: str
) -> list[dict[str, float | str]]:
    """Print, by element, how far levels are from the first, meV/Å."""
    rows: list[dict[str, float | str]] = []
    symbols = np.array(atoms.get_chemical_symbols())
    for level, other in forces.items():
        if level == first or first not in forces:
            continue
        error = 1000 * (other - forces[first])
        row: dict[str, float | str] = {"structure": name, "level": level}
        for element in ("all", *sorted(set(symbols))):
            chosen = error if element == "all" else error[symbols == element]
            row[element] = float(np.sqrt((chosen**2).mean()))
        row["largest"] = float(np.abs(error).max())
        row["size"] = float(1000 * np.sqrt((forces[first] ** 2).mean()))
        a, b = other.ravel(), forces[first].ravel()
        row["correlation"] = float(np.corrcoef(a, b)[0, 1])
        rows.append(row)
        shown = [f"{k} {v:.0f}" for k, v in row.items() if k not in ("structure", "level")][:-1]
        print(
            f"{name}, {level} less {first}, RMSE of force components (meV/Å): "
            f"{', '.join(shown)}; correlation {row['correlation']:.4f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
