import numpy as np
import pytest

from mofal import data
from mofal.errors import DataError
from mofal.potential import split_structures
from mofal.potential.split import split_array

from .conftest import emt_frames


def parts(ds):
    return {str(i): str(s) for i, s in zip(ds["structure_id"].values, ds["split"].values)}


def test_split_array__fraction_within_each_source():
    ids = [f"{i:04d}" for i in range(300)]
    sources = ["a"] * 200 + ["b"] * 100
    out = np.array(split_array(ids, sources, fraction=0.2, seed=1))
    assert (out[:200] == "validation").sum() == 40
    assert (out[200:] == "validation").sum() == 20


def test_split_array__another_seed_is_another_split():
    ids = [f"{i:04d}" for i in range(100)]
    first, second = (split_array(ids, ["a"] * 100, fraction=0.2, seed=s) for s in (1, 2))
    assert first != second
    assert first == split_array(ids, ["a"] * 100, fraction=0.2, seed=1)


def test_split_array__new_structures_fill_up_and_old_ones_stay():
    ids = [f"{i:04d}" for i in range(60)]
    old = split_array(ids[:20], ["a"] * 20, fraction=0.25, seed=3)
    new = split_array(ids, ["a"] * 60, fraction=0.25, seed=3, previous=old + [""] * 40)
    assert new[:20] == old
    assert new.count("validation") == 15


def test_split_array__sources_too_small_for_the_fraction_still_validate():
    out = split_array(["x", "y"], ["a", "b"], fraction=0.2, seed=0)
    assert sorted(out) == ["train", "validation"]


def test_split_array__all_new_ones_can_not_starve_training():
    out = split_array(["x", "y"], ["a", "b"], fraction=0.9, seed=0)
    assert sorted(out) == ["train", "validation"]


def test_split_structures__order_does_not_matter():
    ds = emt_frames(20, seed=2)
    shuffled = data.select(ds, np.random.default_rng(0).permutation(20))
    assert parts(split_structures(ds, seed=5)) == parts(split_structures(shuffled, seed=5))


def test_split_structures__clusters_and_crystals_apart():
    split = split_structures(emt_frames(20, seed=2), seed=5)
    periodic = split["pbc"].values.any(axis=1)
    validation = split["split"].values == "validation"
    assert validation[periodic].sum() == validation[~periodic].sum() == 2


def test_split_structures__foreign_value_refused():
    ds = emt_frames(2, seed=2)
    ds["split"] = ("structure", np.array(["train", "test"], np.dtypes.StringDType()))
    with pytest.raises(DataError, match="'test'; expected 'train', 'validation'"):
        split_structures(ds, seed=1)
