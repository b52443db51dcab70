"""Terminals and logs that do not know every character: what they lack is replaced, never fatal."""

from __future__ import annotations

import codecs
import contextlib
import sys
from typing import Any

_PLAIN = {"Å": "A", "²": "2", "³": "3", "×": "x", "±": "+-", "Δ": "d", "µ": "u", "→": "->"}


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in missing), error.end


codecs.register_error("mofal.plain", _replace)


def forgive(*streams: Any) -> None:
    """Let text streams replace what their encoding lacks: `Å³` on an ASCII terminal is `A3`.

    A locale of no encoding (``LC_ALL=C``, many batch jobs) would otherwise stop a campaign at the
    first unit that it prints.

    Parameters
    ----------
    *streams
        Default: standard output and standard error of this process.
    """
    for stream in streams or (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # one that cannot, or closed
            if stream.errors in ("strict", "surrogateescape"):
                stream.reconfigure(errors="mofal.plain")
