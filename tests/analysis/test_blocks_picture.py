"""The picture of a framework taken apart: what is drawn, and the command that draws it."""

from __future__ import annotations

import numpy as np
import pytest

from mofal.analysis.blocks import _Layout, plot_blocks
from mofal.cli import main
from mofal.data import from_atoms
from mofal.frameworks import find_blocks
from tests.frameworks import published

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("make", [published.mil53, published.hkust1])
def test_layout__blocks_are_whole_and_bonds_are_as_long_as_in_the_crystal(make):
    atoms = make()
    ds = from_atoms(atoms, system="x")
    blocks = find_blocks(ds)
    layout = _Layout(ds, blocks, 0)
    piece = layout.piece(layout.around(0))
    first, second = piece.places[piece.bonds[:, 0]], piece.places[piece.bonds[:, 1]]
    assert np.linalg.norm(first - second, axis=1).max() < 2.4
    cut = piece.places[piece.cuts]
    assert np.linalg.norm(cut[:, 0] - cut[:, 1], axis=1).max() < 2.4
    stub = piece.stubs[:, 1] - piece.stubs[:, 0]
    assert np.linalg.norm(stub, axis=1).max() < 1.2
    # Every cut bond of the block in the middle is drawn, whole or as a stub.
    links = (blocks["link_block"].values == 0).sum()
    ends = (piece.owner[piece.cuts] == 0).any(axis=1).sum()
    assert ends == links


def test_plot_blocks__says_kinds_and_charges():
    ds = from_atoms(published.mil53(), system="MIL-53")
    figure = plot_blocks(ds, find_blocks(ds))
    titles = " ".join(ax.get_title(loc="left") for ax in figure.axes)
    assert "4 \N{MULTIPLICATION SIGN} Cr (3+)" in titles
    assert "4 \N{MULTIPLICATION SIGN} C8H4O4 (2\N{MINUS SIGN})" in titles
    written = [t.get_text() for t in figure.axes[0].texts]
    assert written.count("3+") == 3  # the metal, and those that its OH lead to


def test_blocks__picture_and_output(tmp_path, capsys):
    path = tmp_path / "mil53.cif"
    published.mil53().write(path)
    picture, copy = tmp_path / "x.png", tmp_path / "x.extxyz"
    assert main(["blocks", str(path), "--picture", str(picture), "-o", str(copy)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert copy.read_text().splitlines()[0] == str(len(published.mil53()))
    capsys.readouterr()
    assert main(["blocks", str(path), "--picture", str(tmp_path / "x.doc")]) != 0
    assert "ends in .png, .svg or .pdf" in capsys.readouterr().err
    assert main(["blocks", str(path), "--picture", str(tmp_path / "no" / "x.png")]) != 0
    assert "there is no directory" in capsys.readouterr().err
