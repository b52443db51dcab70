"""The notebooks run, at small sizes, and say what they are there for; pictures are stored."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import pytest

from tests.notebooks import NOTEBOOKS, execute, pictures, printed

pytestmark = pytest.mark.slow
PICTURES = {
    "lazy_rows": 3,
    "cif_to_clusters": 2,
    "reading_a_campaign": 3,
    "slurm_session": 4,
    "supercell": 4,
}
STORED = ("cif_to_clusters", "lazy_rows", "reading_a_campaign", "slurm_session", "supercell")
"""Notebooks whose stored pictures are those of the sizes that they state."""
MOST_MB = 1.0


def test_lazy_rows(tmp_path: Path) -> None:
    book = execute("lazy_rows", ROWS=40_000, ATOMS=1_000, DIRECTORY=str(tmp_path))
    text = printed(book)
    assert "40,000 rows of 40 structures" in text
    for step in ("open", "minima of structures", "histogram", "density map"):
        (peak,) = re.findall(rf"^{step} .* million rows/s +peak ([\d.]+) GB", text, re.M)
        assert float(peak) < 2.0
    assert len(pictures(book)) == PICTURES["lazy_rows"]
    assert not list(tmp_path.iterdir())


def test_cif_to_clusters() -> None:
    book = execute("cif_to_clusters")
    text = printed(book)
    assert "C72H46O32Zr6" in text
    assert re.search(r"^[1-9] clusters, 0 refused", text, re.M)
    assert len(pictures(book)) == PICTURES["cif_to_clusters"]


def test_supercell() -> None:
    book = execute("supercell", ATOMS=[1_000], CLUSTERS=4, WORKERS=1)
    text = printed(book)
    (off, size) = re.search(r"difference from the whole: ([\d.e+-]+) of ([\d.]+)", text).groups()
    assert float(off) < 1e-4 * float(size)
    assert re.search(r"^[1-4] clusters of \d+ to \d+ atoms, 0 refused", text, re.M)
    assert "from nothing to 4 clusters" in text
    assert len(pictures(book)) == PICTURES["supercell"]


@pytest.mark.parametrize("name", STORED)
def test_notebooks__carry_their_pictures(name: str) -> None:
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    found = [base64.b64decode(p) for p in pictures(book)]
    assert len(found) == PICTURES[name]
    assert all(p.startswith(b"\x89PNG") and len(p) > 5_000 for p in found)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 1e6 * MOST_MB
    text = printed(book)
    assert "Traceback" not in text
    assert sys.prefix not in text
