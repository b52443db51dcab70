"""`mofal`: the command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mofal import __version__
from mofal.errors import ConfigError, MofalError
from mofal.streams import forgive

EPILOG = """\
the main job, from nothing to a report:
  mofal demo                             a whole campaign on this machine, in minutes
your own:
  mofal init campaign.yaml               write a campaign file to edit
  mofal run campaign.yaml --dry-run      see what would run, and where
  mofal run campaign.yaml                run it, or go on with it after anything
  mofal status DIR --watch               look at it from another terminal
  mofal report DIR                       tables and plots, DIR/report/report.html
  mofal explore DIR                      its atoms: a map of features beside the structure
pieces of the method:
  mofal build S_ld -o ld.extxyz          a framework of the UiO-66 family
  mofal label x.extxyz --reference ...   labels, stoppable and resumable
  mofal match S_ld ...                   is this cluster good enough? force matching
  mofal noise x.extxyz ...               the noise floor of a reference
  mofal hold S_ld --potential DIR        how long a potential holds a structure
  mofal watch dump.lammpstrj ...         what a trajectory from elsewhere met that is unknown
  mofal mechanics S_pr --potential DIR   E(V) and bulk modulus
  mofal doctor                           what works on this machine, and how to mend the rest

Killed at any moment, every command goes on where it stopped when it is typed again.
Every command has its own --help.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name; default: `sys.argv`.

    Returns
    -------
    int
        Exit status: 0 done, 1 a mistake that the message explains, 2 wrong usage, 130 interrupted.
    """
    forgive()
    parser = make_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "function"):
        parser.print_help()
        return 0
    warnings.showwarning = _warn
    try:
        return int(args.function(args) or 0)
    except MofalError as error:
        print(f"mofal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmofal: interrupted; type the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (a pager, `head`) went away; that is not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            from mofal.files import not_written

            text = str(not_written(error.filename or "a file", error))
        else:
            place = f" ({error.filename})" if error.filename else ""
            text = f"the system refused: {error.strerror or error}{place}"
        print(f"mofal: {text}", file=sys.stderr)
        return 1
    except (RecursionError, MemoryError) as error:
        what = "memory ran out" if isinstance(error, MemoryError) else "levels without end"
        print(f"mofal: {what}: an input is larger or deeper than can be meant", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "mofal":
            raise
        print(f"mofal: {missing_package(error.name or '?')}", file=sys.stderr)
        return 1


_PACKAGE = str(Path(__file__).parent)
_show_warning = warnings.showwarning


def _warn(
    message: Warning | str, category: type[Warning], filename: str, *more: Any, **named: Any
) -> None:
    """Show a warning of our own as a line for a person."""
    if category is UserWarning and filename.startswith(_PACKAGE):
        print(f"mofal: {message}", file=sys.stderr)
    else:
        _show_warning(message, category, filename, *more, **named)


EXTRAS = {
    "torch": "potential",
    "nequip": "potential",
    "lightning": "potential",
    "tblite": "xtb",
    "gpaw": "gpaw",
    "dftd3": "gpaw",
    "distributed": "parallel",
    "dask_jobqueue": "slurm",
    "cryptography": "slurm",
    "matplotlib": "report",
    "jinja2": "report",
    "chemiscope": "explore",
}


def missing_package(name: str) -> str:
    """Say how to install what a command lacks."""
    extra = EXTRAS.get(name.split(".")[0])
    if extra is None:
        return f"the package {name} is not installed; type: pip install {name}"
    return f"the package {name} is not installed; type: pip install 'mofal[{extra}]'"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = _Parser(
        prog="mofal",
        description=textwrap.fill(
            "Machine-learned interatomic potentials for disordered metal-organic frameworks: mofal "
            "finds the environments that a potential has never seen, cuts them out as small "
            "clusters, has them labelled by quantum mechanics, retrains, and repeats.",
            88,
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mofal {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    p = _command(commands, "demo", run_demo, "a whole campaign on this machine, with its report")
    p.add_argument(
        "--dft",
        action="store_true",
        help="on labels of density functional theory (GPAW), some hours; see also --dry-run",
    )
    p.add_argument("--dry-run", action="store_true", help="show what would run, and what it costs")
    p.add_argument("--directory", help="where it lives (default: demo; with --dft: demo-dft)")
    p.add_argument("--seed", type=int, default=None, help="another seed (default: the file's)")
    p.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")

    p = _command(commands, "init", run_init, "write a campaign file to edit")
    p.add_argument("file", help="the file to write, e.g. campaign.yaml")
    p.add_argument(
        "--example",
        default="minimal",
        help="minimal, realistic, slurm, demo or dft (default: minimal)",
    )

    p = _command(commands, "run", run_run, "run a campaign, or go on with it")
    p.add_argument("file", help="the campaign file, or the directory of a campaign")
    p.add_argument("--directory", help="where it lives (default: the campaign's name)")
    p.add_argument("--dry-run", action="store_true", help="show what would run, submit nothing")
    p.add_argument("--submit", action="store_true", help="run the driver itself in a SLURM job")
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")

    p = _command(commands, "status", run_status, "how far a campaign is, whether or not it runs")
    p.add_argument("directory")
    p.add_argument("--watch", action="store_true", help="look again every few seconds")

    p = _command(commands, "set-aside", run_set_aside, "have nothing learn from a label any more")
    p.add_argument("directory", help="of a campaign that does not run now")
    p.add_argument("structure", nargs="*", help="structure_id, or its beginning; none: list them")
    p.add_argument("--reason", default="", help="one line, kept with it")
    p.add_argument("--undo", action="store_true", help="learn from it again")

    p = _command(commands, "report", run_report, "tables and plots: DIRECTORY/report/report.html")
    p.add_argument("directory")

    p = _command(commands, "export", run_export, "the potential for ASE and LAMMPS, without mofal")
    p.add_argument("directory", help="a campaign, or a model directory")
    p.add_argument("-o", "--output", required=True, help="e.g. potential.nequip.pt2")
    p.add_argument("--energies", choices=["relative", "total"], default="relative")
    p.add_argument("--target", choices=["ase", "lammps", "batch"], default="ase")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (default: cpu)")

    p = _command(commands, "build", run_build, "build a framework and write it to a file")
    p.add_argument("name", help="S_pr, S_ld, S_reo, UiO-67, ...; `mofal build list` names all")
    p.add_argument("-o", "--output", help="extxyz, cif, or anything ASE writes")
    p.add_argument("--cell", choices=["primitive", "conventional"], default="conventional")
    p.add_argument("--repeat", type=int, nargs=3, metavar=("A", "B", "C"))
    p.add_argument("--seed", type=int, default=0, help="of the disorder of S_sup and S_sup*")

    p = _command(commands, "blocks", run_blocks, "the building blocks of a structure file")
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
    for add in (
        add_explore,
        add_bench,
        add_label,
        add_match,
        add_noise,
        add_hold,
        add_watch,
        add_mechanics,
    ):
        add(commands)
    p = _command(commands, "doctor", run_doctor, "what works on this machine")
    p.add_argument("--slurm", metavar="FILE", nargs="?", const="", help="check SLURM too")
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(function=function)
    return parser


def add_explore(commands: Any) -> None:
    p = _command(commands, "explore", run_explore, "atoms and a map of their features, as a page")
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


def add_bench(commands: Any) -> None:
    p = _command(commands, "bench", run_bench, "how fast is this machine? compare it with others")
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


def add_label(commands: Any) -> None:
    p = _command(commands, "label", run_label, "label structures; stop and go on at will")
    p.add_argument("file", help="extxyz, or anything ASE reads")
    p.add_argument("--reference", default="gfn1-xtb", help="e.g. gfn1-xtb, gpaw:lcao, gpaw:paper")
    p.add_argument("-o", "--output", help="labelled structures (default: FILE.labelled.extxyz)")
    p.add_argument("--records", help="directory of the durable labels (default: FILE.labels)")
    add_cache(p)
    p.add_argument("--workers", type=int, help="processes (default: one per core)")
    p.add_argument("--schedule", help="a campaign file whose `schedule` section is used")
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")


def add_cache(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--cache",
        action="append",
        default=[],
        metavar="DIR[:rw]",
        help="a label cache shared with others; with :rw it is given the new labels too",
    )


def add_match(commands: Any) -> None:
    p = _command(commands, "match", run_match, "force matching: the cheapest cluster that is good")
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


def add_hold(commands: Any) -> None:
    p = _command(commands, "hold", run_hold, "how long does a potential hold a structure?")
    p.add_argument("structure", help="a system of the UiO-66 family, or a file")
    p.add_argument("--potential", required=True, help="directory of a model, or of a campaign")
    p.add_argument("--cell", default="primitive", choices=["conventional", "primitive"])
    p.add_argument("--rule", help="how blocks are cut, where the default does not fit")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--length", type=float, default=1000.0, metavar="FS")
    p.add_argument("--temperature", type=float, default=600.0, metavar="K")
    p.add_argument("--timestep", type=float, default=0.5, metavar="FS")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=int, help="default: as many as there are cores")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (default: cpu)")
    p.add_argument("--directory", help="of runs and checkpoints; default: STRUCTURE.hold")


def run_hold(args: argparse.Namespace) -> int:
    """`mofal hold`: exit status 0 where every run held, 1 where a bond broke."""
    from mofal.campaign.steps.label import local_schedule
    from mofal.commands.hold import hold_file
    from mofal.commands.label import check_seed

    check_seed(args.seed)
    records = hold_file(
        args.structure,
        potential=args.potential,
        cell=args.cell,
        rule=args.rule,
        runs=args.runs,
        length_fs=args.length,
        temperature_K=args.temperature,
        timestep_fs=args.timestep,
        seed=args.seed,
        device=args.device,
        directory=args.directory,
        schedule=local_schedule(args.workers),
    )
    return int(any(str(s) != "finished" for s in records["walk_status"].values))


def add_watch(commands: Any) -> None:
    from mofal.commands.options import add_options

    p = _command(commands, "watch", run_watch, "what did a trajectory meet that is unknown?")
    add_options(p)


def run_watch(args: argparse.Namespace) -> int:
    """`mofal watch`."""
    from mofal.commands.options import options_of, unpaired_of
    from mofal.commands.watch import watch_file

    given = options_of(args)
    watch_file(args.trajectory, unpaired=unpaired_of(args.unpaired) or None, say=say, **given)
    return 0


def add_noise(commands: Any) -> None:
    p = _command(commands, "noise", run_noise, "noise floor of a reference under shift and turn")
    p.add_argument("file", help="structures")
    p.add_argument("--reference", default="gpaw:lcao")
    p.add_argument("--repeats", type=int, default=4, help="per factor (default: 4)")
    p.add_argument("--directory", default="noise")
    p.add_argument("--workers", type=int)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--retry-failed", action="store_true", help="try failed labels once more")
    add_cache(p)


def add_mechanics(commands: Any) -> None:
    p = _command(commands, "mechanics", run_mechanics, "E(V), bulk modulus, and what moves")
    p.add_argument("systems", nargs="+", metavar="SYSTEM", help="names (S_pr), or structure files")
    p.add_argument("--potential", metavar="MODEL", help="a model directory, or a campaign")
    p.add_argument("--reference", help="a reference in its place, e.g. gfn1-xtb")
    p.add_argument("--what", nargs="+", default=["eos"], help="eos, elastic, pv (default: eos)")
    p.add_argument("--cell", choices=["primitive", "conventional"], default="conventional")
    p.add_argument("--rule", default="carboxylate", help="how to cut blocks; none: no blocks")
    p.add_argument("--volumes", type=int, default=9, help="of E(V), an odd number (default: 9)")
    p.add_argument("--spacing", type=float, default=0.005, help="relative (default: 0.005)")
    p.add_argument("--grid", type=float, nargs="+", default=[], help="volumes in Å³ instead")
    p.add_argument("--one-way", action="store_true", help="no way back, no hysteresis")
    p.add_argument("--max-force", type=float, default=1.0, help="meV/Å per component (default: 1)")
    p.add_argument("--max-stress", type=float, default=1.0, help="MPa (default: 1)")
    p.add_argument("--max-steps", type=int, default=2000, help="of a relaxation")
    p.add_argument("--displacement", type=float, default=0.01, help="that breaks symmetry, Å")
    p.add_argument(
        "--strains", type=float, nargs="+", default=[0.0025, 0.005], help="(default: 0.0025 0.005)"
    )
    p.add_argument("--temperature", type=float, default=300.0, help="of P(V), K (default: 300)")
    p.add_argument("--pressures", type=float, nargs="*", help="GPa, of NPT points of P(V)")
    p.add_argument("--pv-volumes", type=float, nargs="*", help="of P(V), as fractions of V0")
    p.add_argument("--length", type=float, default=50.0, help="of a run, ps (default: 50)")
    p.add_argument("--timestep", type=float, default=0.5, help="fs (default: 0.5)")
    p.add_argument("--runs", type=int, default=1, help="per point of P(V)")
    p.add_argument(
        "--until-converged", action="store_true", help="more runs while K or P_max still move"
    )
    p.add_argument("--max-runs", type=int, default=8, help="of a point, then (default: 8)")
    p.add_argument("--pressure-change", type=float, default=15.0, help="MPa that P_max may move")
    p.add_argument("--modulus-change", type=float, default=1.0, help="GPa that K may move")
    p.add_argument("--realisations", type=int, default=1, help="draws of a disordered system")
    p.add_argument("--directory", default="mechanics", help="results (default: mechanics)")
    p.add_argument("--workers", type=int, help="processes (default: one per core)")
    p.add_argument("--schedule", help="a campaign file whose `schedule` section is used")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--retry-failed", action="store_true", help="try failed points once more")


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    print(line, flush=True)


# ---------------------------------------------------------------------------------- campaigns
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


def run_init(args: argparse.Namespace) -> int:
    """`mofal init`."""
    from mofal.commands.init import write_example

    write_example(args.file, args.example)
    say(f"wrote {args.file}; edit it, then: mofal run {args.file} --dry-run")
    return 0


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


def run_status(args: argparse.Namespace) -> int:
    """`mofal status`."""
    from mofal.commands.status import show, watch

    if args.watch:
        watch(args.directory, say=say)
    else:
        say(show(args.directory))
    return 0


def run_set_aside(args: argparse.Namespace) -> int:
    """`mofal set-aside`."""
    from mofal.commands.set_aside import take_out

    take_out(args.directory, args.structure, reason=args.reason, back=args.undo, say=say)
    return 0


def run_report(args: argparse.Namespace) -> int:
    """`mofal report`."""
    from mofal.commands.report import report

    page = report(args.directory, progress=say)
    say(f"report: {page}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    """`mofal export`."""
    import mofal
    from mofal.potential import export, load

    where = Path(args.directory)
    if (where / "campaign.yaml").is_file():
        site = mofal.open(where).site
        where = site.path(f"cycle-{max(site.finished_cycles(), 0):03d}/model")
    export(
        load(where),
        args.output,
        energies=args.energies,
        target=args.target,
        device=args.device,
        progress=say,
    )
    say(f"wrote {args.output}, and its checksum: sha256sum -c {args.output}.sha256")
    return 0


# ---------------------------------------------------------------------------------- structures
def run_build(args: argparse.Namespace) -> int:
    """`mofal build`."""
    from mofal.data import write
    from mofal.frameworks import build, system_names

    if args.name == "list":
        say("\n".join(system_names()))
        return 0
    repeat = tuple(args.repeat) if args.repeat else None
    ds = build(args.name, cell=args.cell, repeat=repeat, seed=args.seed)
    say(describe_structure(ds))
    if args.output:
        write(ds, args.output)
        say(f"wrote {args.output}")
    return 0


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


# ---------------------------------------------------------------------------------- labels
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


def run_mechanics(args: argparse.Namespace) -> int:
    """`mofal mechanics`."""
    from mofal.commands.mechanics import mechanics
    from mofal.mechanics import Criteria, CurveSettings, ElasticSettings

    return mechanics(
        args.systems,
        potential=args.potential,
        reference=args.reference,
        what=args.what,
        cell=args.cell,
        rule=args.rule,
        curve=CurveSettings(
            volumes=args.volumes,
            spacing=args.spacing,
            grid=tuple(args.grid),
            both_ways=not args.one_way,
            displacement=args.displacement,
            seed=args.seed,
            criteria=Criteria(
                max_force=args.max_force / 1000.0,
                max_stress_MPa=args.max_stress,
                max_steps=args.max_steps,
            ),
        ),
        strains=ElasticSettings(
            amplitudes=tuple(args.strains),
            criteria=Criteria(max_force=args.max_force / 2000.0, max_steps=args.max_steps),
        ),
        pressure=pressure_of(args),
        realisations=args.realisations,
        directory=args.directory,
        workers=args.workers,
        schedule=args.schedule,
        retry_failed=args.retry_failed,
        say=say,
    )


def pressure_of(args: argparse.Namespace) -> Any:
    """Settings of P(V) as they were typed."""
    from mofal.mechanics import PressureSettings

    given: dict[str, Any] = {
        "temperature_K": args.temperature,
        "length_fs": 1000.0 * args.length,
        "timestep_fs": args.timestep,
        "runs": args.runs,
        "both_ways": not args.one_way,
        "until_converged": args.until_converged,
        "max_runs": args.max_runs,
        "pressure_change_GPa": args.pressure_change / 1000.0,
        "modulus_change_GPa": args.modulus_change,
        "seed": args.seed,
    }
    if args.pressures is not None:
        given["pressures_GPa"] = tuple(args.pressures)
    if args.pv_volumes is not None:
        given["volumes"] = tuple(args.pv_volumes)
    return PressureSettings(**given)


def run_doctor(args: argparse.Namespace) -> int:
    """`mofal doctor`."""
    from mofal.commands.doctor import doctor

    return doctor(slurm=args.slurm, say=say)
