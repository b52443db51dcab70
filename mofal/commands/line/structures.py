"""The commands of structures: build, blocks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mofal.commands.line.parser import command, say
from mofal.errors import ConfigError


def add_build(commands: Any) -> None:
    p = command(commands, "build", run_build, "build a framework and write it to a file")
    p.add_argument("name", help="S_pr, S_ld, S_reo, UiO-67, ...; `mofal build list` names all")
    p.add_argument("-o", "--output", help="extxyz, cif, or anything ASE writes")
    p.add_argument("--cell", choices=["primitive", "conventional"], default="conventional")
    p.add_argument("--repeat", type=int, nargs=3, metavar=("A", "B", "C"))
    p.add_argument("--seed", type=int, default=0, help="of the disorder of S_sup and S_sup*")


def run_build(args: argparse.Namespace) -> int:
    """`mofal build`."""
    from mofal.data import write
    from mofal.frameworks import build, system_names

    if args.name == "list":
        say("\n".join(system_names()))
        return 0
    repeat = tuple(args.repeat) if args.repeat else None
    ds = build(args.name, cell=args.cell, repeat=repeat, seed=args.seed)
    if args.output:  # first: who pipes the description into `head` wants the file all the same
        write(ds, args.output)
    say(describe_structure(ds))
    if args.output:
        say(f"wrote {args.output}")
    return 0


def add_blocks(commands: Any) -> None:
    p = command(commands, "blocks", run_blocks, "the building blocks of a structure file")
    p.add_argument("file", help="CIF, extxyz, anything ASE reads")
    p.add_argument("--rule", default="auto", help="how to cut it (default: auto)")
    p.add_argument("--index", type=int, help="which structure, where the file holds several")
    p.add_argument("--charge", type=int, default=0, help="formal charge of the cell (default: 0)")
    p.add_argument(
        "--alternatives",
        choices=["refuse", "major"],
        default="refuse",
        help="of a disordered CIF; major: keep the larger one of each (default: refuse)",
    )
    p.add_argument(
        "--add-hydrogens",
        action="store_true",
        help="complete what the file leaves out, where geometry and charge leave one way",
    )
    p.add_argument(
        "--picture",
        nargs="?",
        const="",
        metavar="FILE",
        help="draw what was decided (png, svg or pdf; default: NAME.blocks.png)",
    )
    p.add_argument("-o", "--output", help="write the structure as it was read (extxyz, cif, ...)")


def run_blocks(args: argparse.Namespace) -> int:
    """`mofal blocks`."""
    from mofal.frameworks import read_framework

    picture = picture_file(args.picture, args.file)
    ds = read_framework(
        args.file,
        rule=args.rule,
        index=args.index,
        charge=args.charge,
        alternatives=args.alternatives,
        add_hydrogens=args.add_hydrogens,
    )
    say(describe_structure(ds, rule=args.rule))
    if picture is not None:
        from mofal.analysis.blocks import plot_blocks
        from mofal.frameworks import find_blocks

        plot_blocks(ds, find_blocks(ds, rule=args.rule)).savefig(picture, dpi=150)
        say(f"wrote {picture}")
    if args.output:
        from mofal.data import write

        write(ds, args.output)
        say(f"wrote {args.output}")
    return 0


def picture_file(said: str | None, structure: str) -> Path | None:
    """Where a picture goes: refused before anything is read where it cannot be written."""
    if said is None:
        return None
    path = Path(said or f"{Path(structure).stem}.blocks.png")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--picture {path}: expected a name that ends in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise ConfigError(f"--picture {path}: there is no directory {path.parent}")
    return path


def describe_structure(ds: Any, *, rule: str = "auto") -> str:
    """Say what a framework is made of."""
    import numpy as np
    from ase.formula import Formula

    from mofal.campaign.electrons import describe_electrons
    from mofal.data import to_atoms
    from mofal.frameworks import find_blocks
    from mofal.frameworks.auto import explain

    atoms = to_atoms(ds, 0)
    blocks = find_blocks(ds, rule=rule)
    name = str(ds["system"].values[0]) or "structure"
    formula = Formula(atoms.get_chemical_formula()).format("hill")
    lines = [f"{name}: {len(atoms)} atoms, {formula}, {atoms.cell.volume:.1f} Å³"]
    names = ("role", "formula", "coordination", "charge")
    rows = list(zip(*(blocks[n].values.tolist() for n in names)))
    for row in sorted(set(rows)):
        role, text, coordination, charge = row
        said = f"{coordination}-connected" + (f", charge {charge:+d}" if charge else "")
        lines.append(f"  {rows.count(row):6d} x {role:8s} {text:24s} {said}")
    lines += [f"    {line}" for line in describe_electrons(ds, blocks)]
    n_links = int(blocks.sizes["link"])
    lines.append(f"  {len(np.unique(blocks['kind'].values))} kinds of blocks, {n_links} links")
    lines += [f"  {line}" for line in explain(ds, rule=rule)]
    notes = str(ds.attrs.get("notes", ""))
    lines += [f"  notes: {notes}"] if notes else []
    return "\n".join(lines)
