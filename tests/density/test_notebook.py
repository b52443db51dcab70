"""The notebook on real features runs, and still says what it concludes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.slow
def test_density_on_uio66__runs_and_holds():
    pytest.importorskip("nequip")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(NOTEBOOKS / "density_on_uio66.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute()
    outputs = [o for cell in book.cells for o in cell.get("outputs", [])]
    printed = "".join(o.get("text", "") for o in outputs)
    found = {m[0]: float(m[1]) for m in re.findall(r"pca=(\S+) .*found ([\d.]+)", printed)}
    assert set(found) == {"None", "0.99", "0.9", "2"}
    assert found["None"] > 0.95
    assert found["0.9"] < found["None"]
    components = {m[0]: int(m[1]) for m in re.findall(r"^(\w+) +(\d+) components", printed, re.M)}
    assert set(components) == {"H", "C", "O", "Zr"}
    assert components["Zr"] < components["C"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 4
