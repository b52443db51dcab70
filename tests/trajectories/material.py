"""Trajectories as other programs write them, and a potential with its density."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms

from mofal.data import to_atoms
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, find_blocks

SYMBOLS = ("Zr", "C", "O", "H")


def frames_of(n: int, *, name: str = "S_ld", seed: int = 0) -> list[Atoms]:
    """Thermal frames of a primitive cell, lower triangular as LAMMPS wants it, wrapped."""
    ds = build(name, cell="primitive")
    blocks = find_blocks(ds)
    found = sample_harmonic(
        ds,
        n=n,
        temperature_K=300.0,
        seed=seed,
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
    )
    out = []
    for atoms in to_atoms(found):
        frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        frame.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
        frame.wrap()
        out.append(frame)
    return out


def dump_text(
    frame: Atoms,
    step: int,
    *,
    columns: str = "id type element x y z",
    box: str = "xy xz yz",
    shuffle: int | None = None,
    symbols: tuple[str, ...] = SYMBOLS,
    time: bool = False,
) -> str:
    """One frame as LAMMPS's ``dump custom`` writes it (its manual, pages dump and Howto_triclinic).

    Parameters
    ----------
    columns : str
        Of ``ITEM: ATOMS``.
    box : str
        ``xy xz yz``, ``abc origin``, or empty: orthogonal.
    shuffle : int, optional
        Seed of the order of the atoms.
    """
    cell = frame.cell.array
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = cell
    sides = {
        "": [(0.0, lx), (0.0, ly), (0.0, lz)],
        "xy xz yz": [
            (min(0.0, xy, xz, xy + xz), lx + max(0.0, xy, xz, xy + xz), xy),
            (min(0.0, yz), ly + max(0.0, yz), xz),
            (0.0, lz, yz),
        ],
        "abc origin": [(*vector, 0.0) for vector in cell],
    }[box]
    inside = frame.get_scaled_positions(wrap=False)
    values = {
        **dict(zip(("x", "y", "z"), frame.positions.T)),
        **dict(zip(("xu", "yu", "zu"), frame.positions.T)),
        **dict(zip(("xs", "ys", "zs"), inside.T)),
        **dict(zip(("xsu", "ysu", "zsu"), inside.T)),
        "id": np.arange(1, len(frame) + 1),
        "type": np.array([symbols.index(s) + 1 for s in frame.get_chemical_symbols()]),
        "element": np.array(frame.get_chemical_symbols()),
        "mass": frame.get_masses(),
        "vx": np.zeros(len(frame)),
    }
    order = np.arange(len(frame))
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(order)
    names = columns.split()
    lines = [f"ITEM: TIME\n{0.5 * step}"] if time else []
    lines += [f"ITEM: TIMESTEP\n{step}", f"ITEM: NUMBER OF ATOMS\n{len(frame)}"]
    lines += [" ".join(f"ITEM: BOX BOUNDS {box} pp pp pp".split())]
    lines += [" ".join(f"{v:.16e}" for v in side) for side in sides]
    lines += [f"ITEM: ATOMS {columns}"]
    lines += [
        " ".join(
            f"{values[n][k]:.12f}" if values[n].dtype.kind == "f" else str(values[n][k])
            for n in names
        )
        for k in order.tolist()
    ]
    return "\n".join(lines) + "\n"


def write_dump(path: Path, frames: list[Atoms], **options: object) -> Path:
    """A whole dump; steps are 0, 100, 200, ..."""
    path.write_text("".join(dump_text(f, 100 * k, **options) for k, f in enumerate(frames)))  # type: ignore[arg-type]
    return path
