"""The commands of labels: label, match, noise."""

from __future__ import annotations

import argparse
from typing import Any

from mofal.commands.line.parser import command, say


def add_label(commands: Any) -> None:
    p = command(commands, "label", run_label, "label structures; stop and go on at will")
    p.add_argument("file", help="extxyz, or anything ASE reads")
    p.add_argument("--reference", default="gfn1-xtb", help="e.g. gfn1-xtb, gpaw:lcao, gpaw:paper")
    p.add_argument("-o", "--output", help="labelled structures (default: FILE.labelled.extxyz)")
    p.add_argument("--records", help="directory of the durable labels (default: FILE.labels)")
    add_cache(p)
    p.add_argument("--workers", type=int, help="processes (default: one per core)")
    p.add_argument("--schedule", help="a campaign file whose `schedule` section is used")
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")


def run_label(args: argparse.Namespace) -> int:
    """`mofal label`."""
    from mofal.commands.label import label_file

    return label_file(
        args.file,
        reference=args.reference,
        output=args.output,
        records=args.records,
        caches=args.cache,
        workers=args.workers,
        schedule=args.schedule,
        retry_failed=args.retry_failed,
        say=say,
    )


def add_match(commands: Any) -> None:
    p = command(commands, "match", run_match, "force matching: the cheapest cluster that is good")
    p.add_argument("system", help="a framework's name (S_ld), or a structure file")
    p.add_argument("--cell", choices=["primitive", "conventional"], default="conventional")
    p.add_argument("--reference", action="append", help="a level; may be given several times")
    p.add_argument("--potential", action="append", help="a model directory, as a further level")
    p.add_argument("--device", default="cpu", help="of potentials: cpu, cuda, cuda:1, auto")
    p.add_argument("--rule", default="auto", help="how to cut it (default: auto)")
    p.add_argument(
        "--frames",
        type=int,
        default=3,
        help="frames to average over (default: 3): perturbed ones, or the file's where it holds "
        "several; 0: the structure as it is",
    )
    p.add_argument("--shells", type=int, nargs="+", help="(default: 0 1; along rods 0 1 2)")
    p.add_argument("--core", help="formula of the core block (default: the least regular node)")
    p.add_argument("--max-atoms", type=int, help="of a candidate; else its mantle is made smaller")
    p.add_argument("--tolerance", type=float, default=100.0, help="meV/Å RMSE on core atoms")
    p.add_argument("--noise", help="table of `mofal noise`: the floor beside the verdict")
    p.add_argument("--directory", default="match", help="labels, table and plot (default: match)")
    p.add_argument("--workers", type=int)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--unpaired", nargs="+", default=[], metavar="Cu=1", help="unpaired electrons per atom"
    )
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")
    add_cache(p)


def run_match(args: argparse.Namespace) -> int:
    """`mofal match`."""
    from mofal.commands.match import match
    from mofal.commands.match_settings import MatchSettings
    from mofal.commands.options import unpaired_of

    settings = MatchSettings(
        references=args.reference or ([] if args.potential else ["gfn1-xtb"]),
        potentials=args.potential or [],
        cell=args.cell,
        rule=args.rule,
        frames=args.frames,
        shells=args.shells,
        core=args.core,
        max_atoms=args.max_atoms,
        tolerance_meV=args.tolerance,
        noise=args.noise,
        directory=args.directory,
        workers=args.workers,
        seed=args.seed,
        unpaired=unpaired_of(args.unpaired),
        retry_failed=args.retry_failed,
        caches=args.cache,
        device=args.device,
    )
    return match(args.system, settings, say=say)


def add_noise(commands: Any) -> None:
    p = command(commands, "noise", run_noise, "noise floor of a reference under shift and turn")
    p.add_argument("file", help="structures")
    p.add_argument("--reference", default="gpaw:lcao")
    p.add_argument("--repeats", type=int, default=4, help="per factor (default: 4)")
    p.add_argument("--directory", default="noise")
    p.add_argument("--workers", type=int)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")
    add_cache(p)


def run_noise(args: argparse.Namespace) -> int:
    """`mofal noise`."""
    from mofal.commands.noise import noise

    return noise(
        args.file,
        reference=args.reference,
        repeats=args.repeats,
        directory=args.directory,
        workers=args.workers,
        seed=args.seed,
        retry_failed=args.retry_failed,
        caches=args.cache,
        say=say,
    )


def add_cache(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--cache",
        action="append",
        default=[],
        metavar="DIR[:rw]",
        help="a label cache shared with others; with :rw it is given the new labels too",
    )
