"""The commands of a machine: bench, doctor."""

from __future__ import annotations

import argparse
from typing import Any

from mofal.commands.line.parser import command, say


def add_bench(commands: Any) -> None:
    p = command(commands, "bench", run_bench, "how fast is this machine? compare it with others")
    p.add_argument("what", choices=["supercell"], help="supercell: from the build to clusters")
    p.add_argument("--atoms", type=int, nargs="+", default=[29184], help="(default: 29184)")
    p.add_argument("--workers", type=int, help="processes (default: one per core)")
    p.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask scheduler, or its file")
    p.add_argument("--clusters", type=int, default=150, help="to cut (default: 150)")
    p.add_argument("--potential", metavar="DIR", help="a model (default: one that travels along)")
    p.add_argument("-o", "--output", metavar="FILE", help="the table as JSON")


def run_bench(args: argparse.Namespace) -> int:
    """`mofal bench`."""
    from mofal.commands.bench import bench_supercell

    bench_supercell(
        args.atoms,
        workers=args.workers,
        scheduler=args.scheduler,
        clusters=args.clusters,
        potential=args.potential,
        output=args.output,
        say=say,
    )
    return 0


def add_doctor(commands: Any) -> None:
    p = command(commands, "doctor", run_doctor, "what works on this machine")
    p.add_argument("--slurm", metavar="FILE", nargs="?", const="", help="check SLURM too")


def run_doctor(args: argparse.Namespace) -> int:
    """`mofal doctor`."""
    from mofal.commands.doctor import doctor

    return doctor(slurm=args.slurm, say=say)
