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


def rows(variants):
    """What tells one label from another: factor, structure and spacing of each variant."""
    names = ("factor", "structure_id", "spacing")
    return [tuple(map(str, row)) for row in zip(*(variants[n].values.tolist() for n in names))]


def test_noise_variants__no_grid_twice():
    """Small cells allow few grids near their own: one, and for the primitive cell none."""
    one = rows(noise_variants(from_atoms([bulk("C", cubic=True)]), spacing=0.3, repeats=4))
    assert [r[0] for r in one] == ["", *["shift"] * 4, "grid", "combined"]
    none = noise_variants(from_atoms([bulk("C")]), spacing=0.25, repeats=4)
    assert [r[0] for r in rows(none)] == ["", *["shift"] * 4, *["combined"] * 4]
    assert np.isnan(none.spacing.values).all()
    assert len(set(none.structure_id.values.tolist())) == 9


def test_noise_variants__more_repeats_keep_the_earlier_ones():
    big = bulk("C", cubic=True).repeat(3)
    ds = from_atoms([molecule("HCOOH"), big, bulk("C", cubic=True)])
    few = rows(noise_variants(ds, spacing=0.2, repeats=2, seed=5))
    many = rows(noise_variants(ds, spacing=0.2, repeats=4, seed=5))
    assert len(set(few)) == len(few) < len(set(many)) == len(many)
    assert set(few) < set(many)
    # Nor do they depend on the other factors, or on structures that come later.
    part = noise_variants(
        from_atoms([molecule("HCOOH")]), spacing=0.2, factors=["combined"], repeats=3, seed=5
    )
    assert set(rows(part)) < set(many)
    other = rows(noise_variants(ds, spacing=0.2, repeats=2, seed=6))
    assert {r for r in few if r[0] == "shift"}.isdisjoint(other)


@pytest.mark.parametrize(("spacing", "others"), [(0.3, 1), (0.175, 2)])
def test_noise_floor__of_a_small_cell_is_the_noise_that_was_put_in(spacing, others):
    """Monte Carlo: an error of known size that a grid and a place on it have for good."""
    cell = bulk("C", cubic=True)
    variants = noise_variants(from_atoms([cell]), spacing=spacing, repeats=4)
    edge = cell.cell.lengths()[0]
    h = np.where(np.isnan(variants.spacing.values), spacing, variants.spacing.values)
    where = [
        (4 * int(edge / one / 4 + 0.5), str(name))
        for one, name in zip(h, variants.structure_id.values)
    ]
    rng = np.random.default_rng(8)
    squares = {"shift": 0.0, "grid": 0.0, "combined": 0.0}
    trials = 150
    for _ in range(trials):
        error = {key: rng.normal(scale=0.03, size=(8, 3)) for key in dict.fromkeys(where)}
        forces = np.concatenate([1.0 + error[key] for key in where])
        floor = noise_floor(variants.assign(forces=(("atom", "xyz"), forces)))
        for name in squares:
            squares[name] += float(floor.floor.sel(factor=name)) ** 2 / trials
    assert floor.repeats.values.tolist() == [5, 1 + others, 1 + others]
    for name, square in squares.items():
        # As many independent numbers as repeats less one: 3600 or more, so 1.2 % at most.
        assert np.sqrt(square) == pytest.approx(0.03, rel=0.05), name


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
    assert floor.attrs["quadrature_of"] == "shift, rotation, grid"
    assert floor.element.values.tolist() == ["H", "C"]


def test_noise_floor__one_factor_alone_has_no_sum():
    """A crystal at a method without a grid: neither turned nor on another grid."""
    variants = noise_variants(from_atoms([bulk("C", cubic=True)]), spacing=None, repeats=2)
    forces = np.random.default_rng(0).normal(size=(variants.sizes["atom"], 3))
    floor = noise_floor(variants.assign(forces=(("atom", "xyz"), forces)))
    assert floor.factor.values.tolist() == ["shift", "combined"]
    assert np.isnan(floor.attrs["quadrature"])
    assert floor.attrs["quadrature_of"] == "shift"


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
    both = np.hypot(*(float(floor.floor.sel(factor=f)) for f in ("shift", "rotation")))
    assert floor.attrs["quadrature"] == pytest.approx(both)
    assert floor.attrs["quadrature_of"] == "shift, rotation"
    assert seen[-1].startswith("noise: 7 of 7")
