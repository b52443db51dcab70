"""The noise floor: variants, un-rotated forces, and the statistics."""

import numpy as np
import pytest
from ase.build import bulk, molecule

from mofal.data import atom_slice, from_atoms
from mofal.errors import DataError
from mofal.reference import get_reference, measure_noise, noise_floor, noise_variants
from mofal.reference.gpaw_memory import box_crystal
from mofal.reference.noise import pair_rmse, random_rotation, standard_deviation, variant_specs


def test_standard_deviation__finds_the_noise_that_was_put_in():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1, 400, 3))
    noisy = truth + rng.normal(scale=0.02, size=(6, 400, 3))
    assert standard_deviation(noisy) == pytest.approx(0.02, rel=0.03)
    assert pair_rmse(noisy) == pytest.approx(np.sqrt(2) * standard_deviation(noisy), rel=1e-12)


def test_standard_deviation__needs_two():
    with pytest.raises(DataError, match="two repeats"):
        standard_deviation(np.zeros((1, 5, 3)))


def test_random_rotation__is_one():
    rng = np.random.default_rng(1)
    turns = np.array([random_rotation(rng) for _ in range(300)])
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (300, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(turns), 1.0)
    assert np.abs(turns.mean(axis=0)).max() < 0.12  # uniform: no direction is preferred


def test_noise_variants__what_varies():
    ds = from_atoms([molecule("HCOOH"), bulk("C", cubic=True)])
    out = noise_variants(ds, spacing=0.2, repeats=3, seed=4)
    factor = np.array(out.factor.values.tolist())
    assert list(factor[:2]) == ["", ""]
    for name in ("shift", "grid", "combined"):
        assert (factor[out.original.values == 0] == name).sum() == 3
    # The grid of a crystal turns with its cell, so turning it changes nothing.
    assert (factor[out.original.values == 1] == "rotation").sum() == 0
    for i in np.flatnonzero(factor == "shift"):
        first = ds.positions.values[atom_slice(ds, int(out.original[i]))]
        moved = out.positions.values[atom_slice(out, int(i))] - first
        np.testing.assert_allclose(moved, np.tile(moved[:1], (len(moved), 1)), atol=1e-12)
        assert 0 <= moved.min() <= moved.max() < 0.2
    assert np.isfinite(out.spacing.values[np.isin(factor, ["grid", "combined"])]).all()
    assert np.isnan(out.spacing.values[np.isin(factor, ["", "shift", "rotation"])]).all()
    again = noise_variants(ds, spacing=0.2, repeats=3, seed=4)
    assert list(again.structure_id.values) == list(out.structure_id.values)


def test_noise_variants__crystal_gets_other_grids():
    ds = from_atoms([bulk("C", cubic=True).repeat(3)])
    out = noise_variants(ds, spacing=0.2, factors=["grid"], repeats=2)
    cell = ds.cell.values[0]
    points = {
        box_crystal(np.zeros((1, 3)), cell, h=h).grid_points for h in [0.2, *out.spacing.values[1:]]
    }
    assert len(points) == 3


def test_variant_specs__carry_the_spacing():
    ds = from_atoms([molecule("H2O")])
    out = noise_variants(ds, spacing=0.2, factors=["shift", "grid"], repeats=1)
    specs = variant_specs(out, "gpaw:lcao?ranks=2")
    assert specs[:2] == ["gpaw:lcao?ranks=2"] * 2
    assert specs[2].startswith("gpaw:lcao?h=0.")


@pytest.mark.parametrize(("factors", "repeats"), [(["twist"], 2), ([], 2), (["shift"], 0)])
def test_noise_variants__refuses(factors, repeats):
    with pytest.raises(DataError):
        noise_variants(from_atoms([molecule("H2O")]), spacing=0.2, factors=factors, repeats=repeats)


def test_noise_floor__unrotates_and_separates_the_factors():
    """Forces that turn with the molecule are no noise; what is added on top is found again."""
    ds = from_atoms([molecule("C6H6"), molecule("C2H6")])
    variants = noise_variants(ds, spacing=0.2, repeats=8, seed=2)
    factor = np.array(variants.factor.values.tolist())
    rng = np.random.default_rng(3)
    truth = [rng.normal(size=(int(n), 3)) for n in ds.n_atoms.values]
    added = {"": 0.0, "shift": 0.01, "rotation": 0.02, "grid": 0.04, "combined": 0.05}
    forces = np.empty((variants.sizes["atom"], 3))
    for i in range(len(factor)):
        turned = truth[int(variants.original[i])] @ variants.rotation.values[i].T
        forces[atom_slice(variants, i)] = turned + rng.normal(
            scale=added[factor[i]], size=turned.shape
        )
    labelled = variants.assign(forces=(("atom", "xyz"), forces))
    floor = noise_floor(labelled)
    # The original, without noise here, is one of the nine repeats of each factor.
    for name in ("shift", "rotation", "grid", "combined"):
        expected = added[name] * np.sqrt(8 / 9)
        found = floor.sel(factor=name)
        assert float(found.floor) == pytest.approx(expected, rel=0.1)
        assert float(found.pair_rmse) == pytest.approx(np.sqrt(2) * float(found.floor), rel=1e-9)
        assert float(found.largest) > float(found.floor)
    assert floor.attrs["quadrature"] == pytest.approx(
        np.sqrt(sum(float(floor.floor.sel(factor=f)) ** 2 for f in ("shift", "rotation", "grid")))
    )
    assert floor.element.values.tolist() == ["H", "C"]


def test_noise_floor__failed_labels_are_left_out():
    variants = noise_variants(
        from_atoms([molecule("H2O")]), spacing=0.2, factors=["shift"], repeats=2
    )
    forces = np.zeros((9, 3))
    forces[3:6] = np.nan
    floor = noise_floor(variants.assign(forces=(("atom", "xyz"), forces)))
    assert int(floor.repeats.sel(factor="shift")) == 2
    with pytest.raises(DataError, match="no structure has two"):
        noise_floor(variants.assign(forces=(("atom", "xyz"), forces * np.nan)))


def test_measure_noise__method_without_a_grid_has_none(tmp_path):
    seen = []
    ds = from_atoms([molecule("HCOOH")])
    floor = measure_noise(
        ds, get_reference("gfn1-xtb?accuracy=0.01"), directory=tmp_path, repeats=2,
        progress=seen.append,
    )  # fmt: skip
    assert set(floor.factor.values.tolist()) == {"shift", "rotation", "combined"}
    assert float(floor.floor.max()) < 1e-5
    assert floor.attrs["failed"] == 0
    assert seen[-1].startswith("noise: 7 of 7")
