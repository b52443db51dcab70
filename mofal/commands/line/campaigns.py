"""The commands of a campaign: demo, init, run, status, set-aside, report, export, explore."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mofal.commands.line.parser import command, say


def add_demo(commands: Any) -> None:
    p = command(commands, "demo", run_demo, "a whole campaign on this machine, with its report")
    p.add_argument(
        "--dft",
        action="store_true",
        help="on labels of density functional theory (GPAW), some hours; see also --dry-run",
    )
    p.add_argument("--dry-run", action="store_true", help="show what would run, and what it costs")
    p.add_argument("--directory", help="where it lives (default: demo; with --dft: demo-dft)")
    p.add_argument("--seed", type=int, default=None, help="another seed (default: the file's)")
    p.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")


def run_demo(args: argparse.Namespace) -> int:
    """`mofal demo`."""
    from mofal.commands.demo import demo

    return demo(
        args.directory or ("demo-dft" if args.dft else "demo"),
        dft=args.dft,
        dry_run=args.dry_run,
        seed=args.seed,
        workers=args.workers,
        say=say,
    )


def add_init(commands: Any) -> None:
    p = command(commands, "init", run_init, "write a campaign file to edit")
    p.add_argument("file", help="the file to write, e.g. campaign.yaml")
    p.add_argument(
        "--example",
        default="minimal",
        help="minimal, realistic, slurm, demo or dft (default: minimal)",
    )


def run_init(args: argparse.Namespace) -> int:
    """`mofal init`."""
    from mofal.commands.init import write_example

    write_example(args.file, args.example)
    say(f"wrote {args.file}; edit it, then: mofal run {args.file} --dry-run")
    return 0


def add_run(commands: Any) -> None:
    p = command(commands, "run", run_run, "run a campaign, or go on with it")
    p.add_argument("file", help="the campaign file, or the directory of a campaign")
    p.add_argument("--directory", help="where it lives (default: the campaign's name)")
    p.add_argument("--dry-run", action="store_true", help="show what would run, submit nothing")
    p.add_argument("--submit", action="store_true", help="run the driver itself in a SLURM job")
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")


def run_run(args: argparse.Namespace) -> int:
    """`mofal run`."""
    from mofal.campaign.driver import Campaign
    from mofal.commands.report import report
    from mofal.commands.run import describe_run

    file, directory = Path(args.file), args.directory
    if file.is_dir():
        directory = directory or file
        file = file / "campaign.yaml"
    campaign = Campaign(file, directory=directory)
    if args.dry_run:
        say(describe_run(campaign))
        return 0
    if args.submit:
        from mofal.campaign.prepare import examine
        from mofal.schedule.handover import submit_driver

        examine(campaign.site)  # what would be refused in the job is refused here
        command = [sys.executable, "-m", "mofal", "run", str(file.absolute())]
        command += ["--directory", str(campaign.directory.absolute())]
        command += ["--retry-failed"] if args.retry_failed else []
        job = submit_driver(campaign.config.schedule, directory=campaign.directory, command=command)
        say(f"the driver is job {job}; look at it with: mofal status {campaign.directory} --watch")
        return 0
    from mofal.schedule.handover import HandedOver

    try:
        campaign.run(progress=say, retry_failed=args.retry_failed)
    except HandedOver as done:
        say(str(done))
        return 0
    page = report(campaign.directory, progress=say)
    say(f"report: {page}")
    return 0


def add_status(commands: Any) -> None:
    p = command(commands, "status", run_status, "how far a campaign is, whether or not it runs")
    p.add_argument("directory")
    p.add_argument("--watch", action="store_true", help="look again every few seconds")


def run_status(args: argparse.Namespace) -> int:
    """`mofal status`."""
    from mofal.commands.status import show, watch

    if args.watch:
        watch(args.directory, say=say)
    else:
        say(show(args.directory))
    return 0


def add_set_aside(commands: Any) -> None:
    p = command(commands, "set-aside", run_set_aside, "have nothing learn from a label any more")
    p.add_argument("directory", help="of a campaign that does not run now")
    p.add_argument("structure", nargs="*", help="structure_id, or its beginning; none: list them")
    p.add_argument("--reason", default="", help="one line, kept with it")
    p.add_argument("--undo", action="store_true", help="learn from it again")


def run_set_aside(args: argparse.Namespace) -> int:
    """`mofal set-aside`."""
    from mofal.commands.set_aside import take_out

    take_out(args.directory, args.structure, reason=args.reason, back=args.undo, say=say)
    return 0


def add_report(commands: Any) -> None:
    p = command(commands, "report", run_report, "tables and plots: DIRECTORY/report/report.html")
    p.add_argument("directory")


def run_report(args: argparse.Namespace) -> int:
    """`mofal report`."""
    from mofal.commands.report import report

    page = report(args.directory, progress=say)
    say(f"report: {page}")
    return 0


def add_export(commands: Any) -> None:
    p = command(commands, "export", run_export, "the potential for ASE and LAMMPS, without mofal")
    p.add_argument("directory", help="a campaign, or a model directory")
    p.add_argument("-o", "--output", required=True, help="e.g. potential.nequip.pt2")
    p.add_argument("--energies", choices=["relative", "total"], default="relative")
    p.add_argument("--target", choices=["ase", "lammps", "batch"], default="ase")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (default: cpu)")
    p.add_argument(
        "--density",
        metavar="CAMPAIGN|FILE",
        help="what the potential knows, written beside it with an ASE calculator that tells",
    )


def run_export(args: argparse.Namespace) -> int:
    """`mofal export`."""
    from mofal.commands.export import export_potential

    export_potential(
        args.directory,
        args.output,
        energies=args.energies,
        target=args.target,
        device=args.device,
        density=args.density,
        say=say,
    )
    return 0


def add_explore(commands: Any) -> None:
    p = command(commands, "explore", run_explore, "atoms and a map of their features, as a page")
    p.add_argument("what", help="a campaign, or a file of structures")
    p.add_argument("-o", "--output", help="*.html, or *.json.gz for chemiscope.org")
    p.add_argument("--cycle", type=int, help="of a campaign (default: the last with clusters)")
    p.add_argument("--potential", metavar="DIR", help="for a file: a campaign, or a model")
    p.add_argument("--index", type=int, help="for a file: which structure (default: all)")


def run_explore(args: argparse.Namespace) -> int:
    """`mofal explore`."""
    from mofal.commands.explore import explore

    explore(
        args.what,
        output=args.output,
        cycle=args.cycle,
        potential=args.potential,
        index=args.index,
        say=say,
    )
    return 0
