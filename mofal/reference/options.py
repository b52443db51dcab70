"""Options of a reference: what a specification may say, and what cannot be meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from mofal.errors import ReferenceError


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for an option that the reference `name` does not have, with the closest that it has."""
    names = list(known)
    for option in given:
        if option not in names:
            close = difflib.get_close_matches(option, names, n=1)
            hint = f"did you mean {close[0]!r}? There" if close else "there"
            raise ReferenceError(f"{name} has no option {option!r}; {hint} are {', '.join(names)}")


def whole_number(name: str, option: str, value: Any, *, least: int = 1) -> int:
    """Return a whole number from `least` up, or raise with the option, what is there, what fits."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ReferenceError(
            f"{name}: {option} = {value!r}; expected a whole number from {least} up"
        )
    return int(value)


def number(name: str, option: str, value: Any, *, zero: bool = False) -> float:
    """Return a finite number above zero (with `zero`: from zero up), or raise likewise."""
    if not _is_number(value) or not (value > 0 or (zero and value == 0)):
        expected = "from zero up" if zero else "above zero"
        raise ReferenceError(f"{name}: {option} = {value!r}; expected a number {expected}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def energies(name: str, option: str, value: Any) -> dict[str, float]:
    """Return energies by chemical symbol, or raise likewise."""
    if not isinstance(value, Mapping) or not all(map(_is_number, value.values())):
        raise ReferenceError(
            f'{name}: {option} = {value!r}; expected eV by element, e.g. {{"H":-10.9}}'
        )
    return dict(value)


def flag(name: str, option: str, value: Any) -> bool:
    """Return true or false, or raise likewise: the text "no" would count as true."""
    if not isinstance(value, bool):
        raise ReferenceError(f"{name}: {option} = {value!r}; expected true or false")
    return value
