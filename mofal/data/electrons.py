"""Total charge and unpaired electrons of `ase.Atoms`, however they are stated.

Programs write them in many ways: in `Atoms.info` under several names, and per atom in
`initial_charges` and `initial_magmoms`. Here they become two whole numbers, or one message that
says which statements contradict each other.

- charge (e): `charge`, `total_charge`, `net_charge` ...; the sum of `initial_charges`
- unpaired electrons: `n_unpaired`, `uhf`, `magmom` ...; `multiplicity` less one; the sum of
  `initial_magmoms`, without its sign

`spin` means S, 2S or 2S + 1, depending on who wrote it. It counts where the number of electrons
leaves one of the three, and is refused where it leaves several.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

CHARGE = ("charge", "total_charge", "tot_charge", "net_charge", "formal_charge", "molecular_charge")
UNPAIRED = (
    *("n_unpaired", "unpaired", "unpaired_electrons", "n_unpaired_electrons", "uhf"),
    *("magmom", "total_magmom", "total_magnetization", "magnetic_moment"),
)
MULTIPLICITY = ("multiplicity", "mult", "spin_multiplicity")
SPIN = ("spin", "total_spin")

CHARGES_SUM_TO = 0.1
"""Charges per atom add up to a whole number within this, e: files round them."""
MOMENTS_SUM_TO = 0.25
"""Moments per atom do within this: those of a calculation leave out what is between the atoms."""

_Stated = list[tuple[int, str]]


def electronic_state(atoms: Atoms) -> tuple[int, int]:
    """Total charge and number of unpaired electrons of a structure, as its `Atoms` state them.

    Results of an attached calculator (`charges`, `magmom`, `magmoms`) count where nothing else
    says anything.

    Returns
    -------
    charge : int
        e; 0 where nothing is stated.
    n_unpaired : int
        0 where nothing is stated: as few as the number of electrons allows.

    Raises
    ------
    DataError
        Statements that contradict each other or the number of electrons, that are no whole number,
        or that have several meanings.
    """
    info = {str(k).lower(): (str(k), v) for k, v in atoms.info.items()}
    arrays = atoms.arrays
    charges = [_whole(*info[name]) for name in CHARGE if name in info]
    charges += _summed("initial_charges", arrays.get("initial_charges"), CHARGES_SUM_TO)
    results = getattr(atoms.calc, "results", {})
    if not charges:
        charges += _hinted(results.get("charges"), "charges", CHARGES_SUM_TO)
    charge = _agreed(charges, "the charge")

    unpaired = [_count(*info[name]) for name in UNPAIRED if name in info]
    closed = False
    for name in MULTIPLICITY:
        if name in info:
            value, text = _whole(*info[name])
            if value < 1:
                raise DataError(f"{text} is no multiplicity; expected 1, 2, 3, ... (2S + 1)")
            unpaired.append((value - 1, text))
            closed = closed or value == 1
    unpaired += _summed("initial_magmoms", _moments(arrays), MOMENTS_SUM_TO)
    electrons = int(atoms.numbers.sum()) - charge
    unpaired += [
        _spin(*info[name], electrons, [n for n, _ in unpaired]) for name in SPIN if name in info
    ]
    if not unpaired:
        total = results.get("magmom")
        unpaired += _hinted(results.get("magmoms") if total is None else total, "magmom", 0.1)
    n_unpaired = _agreed(unpaired, "the number of unpaired electrons")
    why = impossible(electrons, n_unpaired) if n_unpaired or closed else ""
    if not why and closed and electrons % 2:
        why = f"a multiplicity of 1 contradicts the odd number of electrons, {electrons}"
    if why:
        stated = ", ".join(text for _, text in [*charges, *unpaired])
        raise DataError(f"{why} (stated: {stated})")
    return charge, n_unpaired


def impossible(electrons: int, n_unpaired: int) -> str:
    """Return why there cannot be so many electrons with so many unpaired, or an empty string."""
    if electrons < 1:
        return f"there are {electrons} electrons in it"
    if n_unpaired and (n_unpaired > electrons or (electrons - n_unpaired) % 2):
        return f"{n_unpaired} unpaired electrons contradict {electrons} electrons"
    return ""


def _agreed(stated: _Stated, what: str) -> int:
    values = {value for value, _ in stated}
    if len(values) > 1:
        raise DataError(
            f"{what} is stated twice: {' and '.join(text for _, text in stated)}; "
            "take out what is wrong"
        )
    return values.pop() if values else 0


def _whole(name: str, value: Any) -> tuple[int, str]:
    text = f"{name}={value}"
    found = _number(value)
    if found is None or found != round(found):
        raise DataError(f"{text} is no whole number")
    return round(found), text


def _count(name: str, value: Any) -> tuple[int, str]:
    found = _number(value)
    if found is None or abs(found - round(found)) > 0.1:
        raise DataError(f"{name}={value} is no number of unpaired electrons")
    return abs(round(found)), f"{name}={value}"


def _number(value: Any) -> float | None:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    return float(array) if array.ndim == 0 and np.isfinite(array) else None


def _summed(name: str, values: Any, within: float) -> _Stated:
    """One statement, or none where all values are zero: ASE fills them in like that."""
    if values is None:
        return []
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise DataError(f"{name} holds a value that is not a number")
    if not numbers.any():
        return []
    total = float(numbers.sum())
    text = f"{name} that add up to {total:.4g}"
    if abs(total - round(total)) > within:
        raise DataError(f"{text}, which is no whole number; take them out or state the total")
    return [(abs(round(total)) if name == "initial_magmoms" else round(total), text)]


def _moments(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    moments = arrays.get("initial_magmoms")
    if moments is None or not np.any(moments):
        return None
    if np.ndim(moments) != 1:
        raise DataError(
            "initial_magmoms are vectors; a label knows the number of unpaired electrons alone: "
            "state n_unpaired and take the moments out"
        )
    if np.abs(moments).sum() - abs(moments.sum()) > 0.5:
        raise DataError(
            "initial_magmoms of both signs (antiferromagnetic); a label knows the number of "
            "unpaired electrons alone: take the moments out, or state n_unpaired instead"
        )
    return np.asarray(moments)


def _hinted(values: Any, name: str, within: float) -> _Stated:
    """What a calculation before has found, where it is near a whole number."""
    try:
        total = float(np.sum(np.asarray(values, np.float64)))
    except (TypeError, ValueError):
        return []
    if not np.isfinite(total) or round(total) == 0 or abs(total - round(total)) > within:
        return []
    value = abs(round(total)) if name == "magmom" else round(total)
    return [(value, f"a calculator's {name} {total:.4g}")]


def _spin(name: str, value: Any, electrons: int, known: Iterable[int]) -> tuple[int, str]:
    """Unpaired electrons by a key that means S, 2S or 2S + 1."""
    text = f"{name}={value}"
    spin = _number(value)
    if spin is None or spin < 0 or 2 * spin != round(2 * spin):
        raise DataError(f"{text} is no spin; state n_unpaired or multiplicity")
    readings = {n: k for k, n in (("S", 2 * spin), ("2S", spin), ("2S + 1", spin - 1))}
    fit = {
        int(n): k
        for n, k in readings.items()
        if n == round(n) and n >= 0 and (n + electrons) % 2 == 0 and n <= electrons
    }
    agreed = [n for n in known if n in fit]
    if agreed:
        return agreed[0], text
    if len(fit) == 1:
        return next(iter(fit)), text
    if not fit:
        raise DataError(f"{text} contradicts {electrons} electrons; state n_unpaired instead")
    meant = " or ".join(f"{n} unpaired electrons (as {k})" for n, k in sorted(fit.items()))
    raise DataError(
        f"{text} means {meant}; write n_unpaired={min(fit)} or multiplicity={max(fit) + 1}"
    )
