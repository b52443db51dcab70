"""How often a cell is repeated so that an atom is far from its images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mofal.frameworks import build
from mofal.frameworks.cells import nearest_image, wide_enough

RHOMB = np.array([[15.0, 0, 2.27], [-7.5, 12.99, 2.27], [-7.5, -12.99, 2.27]])
CELLS = [
    np.diag([6.6, 16.7, 12.8]),
    np.diag([6.0, 6.5, 4.2]),
    RHOMB,  # its vectors are 15 Å long, their sum is 6.8 Å
    np.array([[7.0, 0, 0], [6.9, 2.0, 0], [0, 0, 30.0]]),
]


def shortest(cell: np.ndarray) -> float:
    """The shortest lattice vector, from all of them nearby."""
    steps = np.array([s for s in itertools.product(range(-8, 9), repeat=3) if any(s)])
    return float(np.linalg.norm(steps @ cell, axis=1).min())


@pytest.mark.parametrize("cell", CELLS)
def test_wide_enough__the_fewest_cells(cell: np.ndarray) -> None:
    assert nearest_image(cell) == pytest.approx(shortest(cell), abs=1e-9)
    repeat = wide_enough(cell)
    assert shortest(np.array(repeat)[:, None] * cell) >= 12
    for fewer in itertools.product(range(1, 5), repeat=3):
        if np.prod(fewer) < np.prod(repeat):
            assert shortest(np.array(fewer)[:, None] * cell) < 12


def test_wide_enough__what_is_wide_stays() -> None:
    assert wide_enough(build("S_pr", cell="primitive")["cell"].values[0]) == (1, 1, 1)
    assert wide_enough(CELLS[2]) == (1, 1, 2)
