"""Pictures of structures: geometry of the scene, direction of view, what is coloured."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
from ase.build import molecule
from matplotlib.collections import PatchCollection

from mofal.analysis import pictures
from mofal.data import from_atoms, select
from mofal.errors import DataError
from mofal.frameworks import build, find_bonds

from .material import clusters, held_out


@pytest.fixture(scope="module")
def crystal():
    return build("S_ld", cell="primitive")


def scene_of(ds, reach=1):
    return pictures.make_scene(
        ds["numbers"].values,
        ds["positions"].values,
        ds["cell"].values[0],
        ds["pbc"].values[0],
        reach=reach,
    )


def test_make_scene__bonds_are_short_and_complete(crystal):
    scene = scene_of(crystal)
    lengths = np.linalg.norm(
        scene.places[scene.bonds[:, 0]] - scene.places[scene.bonds[:, 1]], axis=1
    )
    expected = find_bonds(crystal)["bond_length"].values
    assert lengths.max() <= expected.max() + 1e-9
    # Every bond of the crystal is drawn at least once, those over the boundary at both ends.
    home = ~scene.is_image[scene.bonds].any(axis=1)
    crossing = np.any(find_bonds(crystal)["bond_shift"].values != 0, axis=1).sum()
    assert home.sum() == len(expected) - crossing
    assert (~home).sum() >= 2 * crossing
    assert (scene.atom[: crystal.sizes["atom"]] == np.arange(crystal.sizes["atom"])).all()


def test_make_scene__no_images_without_reach(crystal):
    assert not scene_of(crystal, reach=0).is_image.any()


def test_best_view__right_handed_and_uncovered():
    """Two atoms in a line are not looked at along the line."""
    places = np.array([[0.0, 0, 0], [0, 0, 3.0], [0, 0, 6.0]])
    view = pictures.best_view(places, np.ones(3), np.ones(3))
    np.testing.assert_allclose(view @ view.T, np.identity(3), atol=1e-12)
    assert np.linalg.det(view) == pytest.approx(1.0)
    flat = (places @ view.T)[:, :2]
    assert np.linalg.norm(flat[0] - flat[1]) > 0.8


def discs(figure):
    (collection,) = figure.findobj(PatchCollection)[:1]
    return collection


def test_plot_structure__colours_follow_values(crystal):
    n = crystal.sizes["atom"]
    values = np.linspace(0.0, 1.0, n)
    values[3] = -np.inf
    figure = pictures.plot_structure(crystal, values=values, label="x", high_is_bad=False)
    figure.canvas.draw()
    faces = discs(figure).get_facecolor()[:, :3]
    assert (faces.max(axis=1) < 0.5).any()  # the unseen atom is black, whatever the haze
    labels = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
    assert "x" in labels


def test_plot_structure__rings(crystal):
    rings = np.zeros(crystal.sizes["atom"], bool)
    rings[[1, 5, 9]] = True
    figure = pictures.plot_structure(crystal, rings=rings, ring_label="core")
    ring_edges = (np.asarray(discs(figure).get_linewidths()) == 1.6).sum()
    assert ring_edges == 3


def test_plot_structure__refuses_values_of_another_structure(crystal):
    with pytest.raises(DataError, match="3 values for a structure of 106 atoms"):
        pictures.plot_structure(crystal, values=np.ones(3))


def test_plot_structure__molecule():
    ds = from_atoms([molecule("HCOOH")])
    figure = pictures.plot_structure(ds)
    figure.canvas.draw()


def test_plot_structure__large_ones_are_cropped(crystal, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_DRAWN", 60)
    values = np.zeros(crystal.sizes["atom"])
    values[70] = 5.0
    kept = pictures._surroundings(crystal["positions"].values, values, None, True)
    assert len(kept) == 30
    assert 70 in kept
    pictures.plot_structure(crystal, values=values).canvas.draw()


def test_plot_atom_errors__one_scale():
    held = held_out()
    frame = select(held.labels, [0])
    n = frame.sizes["atom"]
    figure = pictures.plot_atom_errors(
        frame, {"a": np.full(n, 100.0), "b": np.linspace(0, 900, n)}, ring_label="core"
    )
    assert len(figure.axes) == 3
    assert figure.axes[-1].get_ylabel() == "force MAE$_{P95}$ (meV/Å)"


def test_plot_clusters__regions():
    figure = pictures.plot_clusters(clusters(), n=5)
    assert len(figure.axes) == clusters().sizes["structure"]
    with pytest.raises(DataError, match="no region"):
        pictures.plot_clusters(held_out().labels)


def test_pictures__titles_are_inside(tmp_path):
    frame = select(held_out().labels, [0])
    n = frame.sizes["atom"]
    values = {name: np.linspace(0, 900, n) for name in ("seed", "control", "campaign")}
    ringed = pictures.plot_atom_errors(frame, values, rings=np.arange(n) < 3, ring_label="core")
    for k, figure in enumerate((ringed, pictures.plot_clusters(clusters()))):
        figure.savefig(tmp_path / f"{k}.png", dpi=150)
        shown = matplotlib.image.imread(tmp_path / f"{k}.png")[..., :3].min(axis=2)
        for edge in (shown[0], shown[-1], shown[:, 0], shown[:, -1]):
            assert edge.min() > 0.99
