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
from typing import Any

from mofal import __version__
from mofal.commands.line import campaigns, labels, machine, motion, structures
from mofal.commands.line.parser import Parser
from mofal.errors import MofalError
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


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = Parser(
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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    for add in (
        campaigns.add_demo,
        campaigns.add_init,
        campaigns.add_run,
        campaigns.add_status,
        campaigns.add_set_aside,
        campaigns.add_report,
        campaigns.add_export,
        structures.add_build,
        structures.add_blocks,
        campaigns.add_explore,
        machine.add_bench,
        labels.add_label,
        labels.add_match,
        labels.add_noise,
        motion.add_hold,
        motion.add_watch,
        motion.add_mechanics,
        machine.add_doctor,
    ):
        add(commands)
    return parser
