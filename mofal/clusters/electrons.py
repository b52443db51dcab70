"""Electrons of a cluster: how many, odd or even, and whether a d or f shell is partly filled.

Even is not the same as closed: a copper paddlewheel has an even number of electrons and two
unpaired ones. Such a cluster needs a spin from the user.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from mofal.clusters.graph import BlockGraph, BoolArray, IntArray
from mofal.errors import ConfigError

HOW = "sum of atomic numbers minus charge; charge = formal charges of blocks and caps"

_CLOSED = "Sc Zn Y Zr Cd La Ce Lu Ti Hf Hg Nb Ta"
_D_OR_F = [*range(21, 31), *range(39, 49), *range(57, 81), *range(89, 104)]
OFTEN_OPEN = frozenset(_D_OR_F) - {atomic_numbers[symbol] for symbol in _CLOSED.split()}
"""Metals whose d or f shell is partly filled in their usual oxidation state in frameworks."""


def open_atoms(graph: BlockGraph, numbers: IntArray, atoms: IntArray) -> BoolArray:
    """Metals that make the blocks they are in open: (len(atoms),) bool.

    Parameters
    ----------
    numbers : (atom,) atomic numbers of a structure of the system
    atoms : atoms of that structure
    """
    z = np.asarray(numbers)[atoms]
    often = np.isin(z, list(OFTEN_OPEN))
    if graph.open_shell is None:
        return often
    # Which blocks are open is known from their oxidation states. Where no metal of such a block is
    # usually open, the state of one of them is unusual: all of them are named.
    block = graph.atom_block[atoms]
    has_usual = np.zeros(graph.n_blocks, dtype=np.bool_)
    has_usual[block[often]] = True
    suspect = np.where(has_usual[block], often, np.isin(z, _D_OR_F))
    return graph.open_shell[block] & suspect


def count_electrons(numbers: IntArray, owner: IntArray, charge: IntArray) -> IntArray:
    """Electrons of each cluster: (cluster,).

    Parameters
    ----------
    numbers, owner : (atom,) atomic number, caps included, and the cluster of each atom
    charge : (cluster,) sum of the formal charges of its blocks
    """
    total = np.bincount(owner, weights=numbers, minlength=len(charge)).astype(np.int64)
    return total - charge


def unpaired_electrons(
    numbers: IntArray,
    owner: IntArray,
    n: int,
    unpaired: Mapping[str, int],
    is_open: BoolArray | None = None,
) -> IntArray:
    """Unpaired electrons of each cluster, all metals parallel: (cluster,).

    Parameters
    ----------
    unpaired : unpaired electrons per atom of an element, e.g. ``{"Cu": 1}``; 0 declares it closed
    is_open : (atom,) `open_atoms`
        Where a cluster holds open and closed atoms of an element, as Cu(II) and Cu(I), only the
        open ones count.

    Raises
    ------
    ConfigError
        If a key is no element or a number is negative.
    """
    per_element = np.zeros(119, dtype=np.int64)
    for symbol, count in unpaired.items():
        if symbol not in chemical_symbols[1:] or int(count) != count or count < 0:
            raise ConfigError(
                f"unpaired: {symbol!r}: {count!r} is not a number of electrons of an element; "
                'expected for example unpaired={"Cu": 1}'
            )
        per_element[atomic_numbers[symbol]] = int(count)
    each = per_element[numbers]
    if is_open is not None:
        here = owner * np.int64(119) + numbers
        each = np.where(is_open | ~np.isin(here, here[is_open]), each, 0)
    return np.bincount(owner, weights=each, minlength=n).astype(np.int64)


def electron_reasons(
    numbers: IntArray,
    owner: IntArray,
    is_open: BoolArray,
    n_electrons: IntArray,
    unpaired: Mapping[str, int],
) -> tuple[BoolArray, IntArray, list[str]]:
    """Whether the electrons of each cluster can be labelled as they are counted.

    Parameters
    ----------
    numbers, owner, is_open : (atom,) atomic number, cluster, and `open_atoms`
    n_electrons : (cluster,)
    unpaired : unpaired electrons per atom of an element, e.g. ``{"Cu": 1}``

    Returns
    -------
    open_shell : (cluster,) a d or f shell is partly filled
    n_unpaired : (cluster,) from `unpaired`; -1 where the user has not said
    reasons : one text per cluster, empty where nothing is wrong
    """
    n = len(n_electrons)
    n_unpaired = unpaired_electrons(numbers, owner, n, unpaired, is_open)
    at = np.flatnonzero(is_open)
    open_shell = np.zeros(n, dtype=np.bool_)
    open_shell[owner[at]] = True
    silent: dict[int, str] = {}
    for k, z in zip(owner[at].tolist(), numbers[at].tolist()):
        if chemical_symbols[z] not in unpaired:
            silent.setdefault(k, chemical_symbols[z])
    reasons = []
    for k in range(n):
        if k in silent:
            n_unpaired[k] = -1
            reasons.append(
                f"partly filled d or f shell on {silent[k]}: give its unpaired electrons, for "
                f'example unpaired={{"{silent[k]}": 1}} (0 if it is closed here)'
            )
        elif (n_electrons[k] - n_unpaired[k]) % 2:
            parity = "odd" if n_electrons[k] % 2 else "even"
            reasons.append(
                f"{parity} number of electrons: {n_electrons[k]}, with {n_unpaired[k]} unpaired"
            )
        else:
            reasons.append("")
    return open_shell, n_unpaired, reasons
