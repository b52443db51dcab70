"""Notebooks, run with other parameters than those that are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(name: str, *, limit_s: int = 300, folder: Path = NOTEBOOKS, **parameters: Any) -> Any:
    """Run a notebook and return it with its outputs.

    Parameters
    ----------
    name : str
        Without its ending.
    limit_s : int
        For one cell.
    folder : Path
        Where it runs.
    **parameters
        Assigned after the cell that is tagged as parameters; each must be assigned there.
    """
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (k,) = [k for k, c in enumerate(book.cells) if "parameters" in c.metadata.get("tags", [])]
    for key in parameters:
        assert f"{key} = " in book.cells[k].source, key
    text = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    stored = book.cells[k].source
    book.cells[k].source = f"{stored}\n{text}"
    nbclient.NotebookClient(
        book,
        timeout=limit_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    book.cells[k].source = stored
    return book


def printed(book: Any) -> str:
    """What a run notebook printed."""
    outputs = [o for cell in book.cells for o in cell.get("outputs", [])]
    return "".join(o.get("text", "") for o in outputs)


def pictures(book: Any) -> list[str]:
    """Its pictures: PNG as base64."""
    outputs = [o for cell in book.cells for o in cell.get("outputs", [])]
    return [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
