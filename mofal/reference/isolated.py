"""Energies of isolated atoms, kept on disk: one small file per level of theory."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from mofal.errors import ReferenceError
from mofal.files import write_bytes


def isolated_energies(
    elements: Iterable[str], one: Callable[[str], float], *, file: Path
) -> dict[str, float]:
    """Look energies of isolated atoms up in a file, and compute and keep those not in it.

    Parameters
    ----------
    elements : iterable of str
        Chemical symbols.
    one : callable
        Energy of one atom in eV, given its symbol.
    file : Path
        JSON object of symbol to eV. A file that cannot be read is written anew.

    Raises
    ------
    ReferenceError
        Something that is no chemical symbol.
    """
    from ase.data import atomic_numbers

    wanted = sorted(set(elements), key=lambda s: atomic_numbers.get(s, -1))
    unknown = [s for s in wanted if atomic_numbers.get(s, 0) < 1]
    if unknown:
        raise ReferenceError(f"{', '.join(map(repr, unknown))} is no chemical symbol")
    known = _read(file)
    new = {s: float(one(s)) for s in wanted if s not in known}
    if new:
        known = {**_read(file), **new}
        # A cache: a disk that cannot be written costs a second calculation and nothing more.
        try:
            write_bytes(file, json.dumps(known, indent=1, sort_keys=True).encode())
        except OSError as error:
            warnings.warn(f"isolated-atom energies are not kept: {error}", stacklevel=3)
    return {s: known[s] for s in wanted}


def _read(file: Path) -> dict[str, float]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        energies = {str(k): float(v) for k, v in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        warnings.warn(f"{file} is damaged and is made anew", stacklevel=4)
        return {}
    return {k: v for k, v in energies.items() if math.isfinite(v)}
