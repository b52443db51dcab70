"""The parser that all commands share, and how they speak."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    """Add a command to the parser of all."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(function=function)
    return parser


def say(line: str) -> None:
    """Print one line at once, also into a pipe."""
    print(line, flush=True)
