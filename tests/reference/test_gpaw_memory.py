"""Boxes, grids, PAW data and memory, without GPAW."""

import gzip
import math

import numpy as np
import pytest

from mofal.errors import ReferenceError
from mofal.reference.gpaw_memory import (
    PawAtom,
    box_cluster,
    box_crystal,
    count_bands,
    estimate_cost,
    find_paw_data,
    read_paw_atom,
)
from mofal.reference.processes import machine_memory_bytes

HEAD = """<?xml version="1.0"?>
<paw_setup version="0.6">
  <atom symbol="C" Z="6" core="2.0" valence="4"/>
  <valence_states>
    <state n="2" l="0" f="2"  rc="1.2" e="-0.5" id="C-2s"/>
    <state n="2" l="1" f="2"  rc="1.2" e="-0.2" id="C-2p"/>
    <state       l="0"        rc="1.2" e=" 0.5" id="C-s1"/>
    <state       l="2"        rc="1.2" e=" 0.0" id="C-d1"/>
  </valence_states>
"""


def cluster_box(positions, **changed):
    given = {"h": 0.175, "vacuum": 4.0, "poisson_extension": 8.0, "coarsenings": 2, **changed}
    return box_cluster(np.asarray(positions, float), **given)


def test_box_cluster__spacing_is_exact_and_vacuum_is_there():
    rng = np.random.default_rng(0)
    for _ in range(20):
        positions = rng.uniform(-9, 5, size=(7, 3))
        box = cluster_box(positions)
        points = np.array(box.grid_points)
        np.testing.assert_allclose(np.diag(box.cell) / points, 0.175, rtol=1e-14)
        assert (points % 4 == 0).all()
        assert box.positions.min() >= 4.0 - 1e-9
        assert (np.diag(box.cell) - box.positions.max(axis=0)).min() >= 4.0 - 1e-9
        # No more than the rounding to four points costs.
        extent = np.ptp(positions, axis=0)
        assert (np.diag(box.cell) - extent - 8.0 < 6 * 0.175).all()
        np.testing.assert_allclose(box.positions - box.shift, positions, atol=1e-12)


def test_box_cluster__grid_is_fixed_in_space():
    positions = np.array([[0.0, 0, 0], [1.0, 0.3, 0.2]])
    for move in (0.0, 0.05, 0.1749, 3.3):
        shift = cluster_box(positions + move).shift
        np.testing.assert_allclose(shift / 0.175, np.round(shift / 0.175), atol=1e-9)


def test_box_cluster__potential_reaches_further():
    box = cluster_box([[0.0, 0, 0]])
    margin = (np.array(box.poisson_points) - 2 * np.array(box.grid_points)) / 2 * 0.175 / 2
    assert (margin >= 8.0).all()
    assert (margin < 9.5).all()
    assert all(n % 4 == 0 for n in box.poisson_points)
    assert cluster_box([[0.0, 0, 0]], poisson_extension=0.0).poisson_points is None


def test_box_crystal__nearest_spacing():
    cell = np.diag([10.0, 12.1, 20.75])
    box = box_crystal(np.zeros((1, 3)), cell, h=0.175)
    assert box.grid_points == (56, 68, 120)
    assert box.poisson_points is None
    sheared = np.array([[0, 5.0, 5.0], [5.0, 0, 5.0], [5.0, 5.0, 0]])
    # Heights of the cell count, not lengths of its vectors: 10/sqrt(3) = 5.77 Å.
    assert box_crystal(np.zeros((1, 3)), sheared, h=0.2).grid_points == (28, 28, 28)


def test_read_paw_atom__counts(tmp_path):
    file = tmp_path / "C.PBE.gz"
    file.write_bytes(gzip.compress(HEAD.encode()))
    plain = tmp_path / "C.PBE"
    plain.write_text(HEAD)
    expected = PawAtom(valence=4.0, default_bands=4, projectors=1 + 3 + 1 + 5)
    assert read_paw_atom(file) == read_paw_atom(plain) == expected
    (tmp_path / "X.PBE").write_text("nothing")
    with pytest.raises(ReferenceError, match="no PAW data file"):
        read_paw_atom(tmp_path / "X.PBE")


def test_find_paw_data__first_place_wins_and_content_is_the_hash(tmp_path):
    for place, text in (("a", HEAD), ("b", HEAD + "<!-- other -->")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "C.PBE.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (tmp_path / "b" / "H.PBE").write_text(HEAD)
    (tmp_path / "b" / "H.LDA").write_text(HEAD)
    (tmp_path / "b" / "H.dzp.basis").write_text("x")
    both = find_paw_data([tmp_path / "a", tmp_path / "b"], xc="PBE", basis=None)
    assert both.files == {"C": tmp_path / "a" / "C.PBE.gz", "H": tmp_path / "b" / "H.PBE"}
    other = find_paw_data([tmp_path / "b"], xc="PBE", basis=None)
    with_basis = find_paw_data([tmp_path / "b"], xc="PBE", basis="dzp")
    assert len({both.sha256, other.sha256, with_basis.sha256}) == 3
    with pytest.raises(ReferenceError, match="gpaw-data"):
        find_paw_data([tmp_path / "nowhere"], xc="PBE", basis=None)


def test_count_bands__as_gpaw_does():
    carbon = PawAtom(valence=4.0, default_bands=4, projectors=13)
    assert count_bands([carbon]) == 4  # no more than there are
    many = PawAtom(valence=4.0, default_bands=9, projectors=13)
    assert count_bands([many] * 10) == math.ceil(1.2 * 20) + 4


def test_estimate_cost__grows_with_everything():
    atom = PawAtom(valence=4.0, default_bands=4, projectors=13)
    box = cluster_box(np.random.default_rng(0).uniform(0, 6, (20, 3)))
    base = estimate_cost(box, [atom] * 20, mode="fd", ranks=1, coarsenings=2)
    more = estimate_cost(box, [atom] * 20, mode="fd", ranks=2, coarsenings=2)
    assert more.memory_bytes > base.memory_bytes
    finer = cluster_box(np.random.default_rng(0).uniform(0, 6, (20, 3)), h=0.1)
    assert estimate_cost(finer, [atom] * 20, mode="fd", ranks=1, coarsenings=2).work > base.work
    assert base.electrons == 80
    assert base.projectors == 260
    assert base.memory_GB == base.memory_bytes / 1e9


def test_machine_memory_bytes__is_plausible():
    assert 1e8 < machine_memory_bytes() < 1e15
