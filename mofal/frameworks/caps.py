"""Caps: the atom that ends a broken bond. Defects and clusters place theirs with this one function.

Pure arrays, no chemistry beyond a table of bond lengths.
"""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from numpy.typing import ArrayLike, NDArray

from mofal.errors import StructureError

# Lengths of single bonds (Å) between a kept atom and its cap. X-H: equilibrium lengths of methane,
# benzene, ammonia, water, ... (CRC Handbook of Chemistry and Physics, 97th ed., section 9).
_LENGTHS: dict[tuple[str, str], float] = {
    ("B", "H"): 1.19,
    ("C", "H"): 1.09,
    ("N", "H"): 1.01,
    ("O", "H"): 0.97,
    ("F", "H"): 0.92,
    ("Si", "H"): 1.48,
    ("P", "H"): 1.42,
    ("S", "H"): 1.34,
    ("Cl", "H"): 1.27,
    ("Ge", "H"): 1.53,
    ("As", "H"): 1.52,
    ("Se", "H"): 1.46,
}
FORMATE_CH = 1.10  # Å, C-H of formic acid and of formate: longer than an aromatic C-H


def cap_length(kept: str | int, cap: str | int = "H") -> float:
    """Standard length of the bond between a kept atom and its cap.

    Parameters
    ----------
    kept, cap
        Symbols or atomic numbers of the two atoms.

    Returns
    -------
    float
        Length in Å: tabulated for X-H, otherwise the sum of the covalent radii
        (Cordero et al., Dalton Trans. 2008, 2832).
    """
    a, b = (chemical_symbols[s] if isinstance(s, int | np.integer) else s for s in (kept, cap))
    known = _LENGTHS.get((a, b), _LENGTHS.get((b, a)))
    if known is not None:
        return known
    try:
        numbers = [chemical_symbols.index(s) for s in (a, b)]
    except ValueError:
        raise StructureError(
            f"no element is called {a!r} or {b!r}: a cap needs two chemical symbols, "
            f"e.g. cap_length('C', 'H')"
        ) from None
    return float(covalent_radii[numbers].sum())


def cap_positions(kept: ArrayLike, lost: ArrayLike, length: ArrayLike) -> NDArray[np.float64]:
    """Positions of caps: along each broken bond, at the bond's own length for the new pair.

    Parameters
    ----------
    kept : (n_caps, 3)
        Positions of the atoms that stay, Å.
    lost : (n_caps, 3)
        Positions of the atoms that each of them was bonded to, in the same periodic image, Å.
    length : (n_caps,) or scalar
        Length of the new bond, Å.

    Returns
    -------
    (n_caps, 3) array
        Positions of the caps, Å.

    Raises
    ------
    StructureError
        When a kept and a lost atom coincide, so that the bond has no direction.
    """
    start = np.asarray(kept, dtype=np.float64).reshape(-1, 3)
    bond = np.asarray(lost, dtype=np.float64).reshape(-1, 3) - start
    distance = np.linalg.norm(bond, axis=1)
    if not np.all(distance > 1e-6):
        raise StructureError(
            "a broken bond has no direction: its two atoms coincide or are not numbers; "
            "check the structure with mofal.frameworks.check_structure(ds)"
        )
    return start + bond * (np.asarray(length, dtype=np.float64) / distance)[:, None]
