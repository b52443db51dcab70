"""Features of a structure in pieces are its features."""

from __future__ import annotations

import numpy as np
import pytest

from mofal.campaign.examples import seed_place
from mofal.data import make_structures
from mofal.errors import DataError
from mofal.frameworks import build
from mofal.potential import load
from mofal.potential.pieces import gather, reach, split


def rattled(repeat: tuple[int, int, int]):
    ds = build("S_pr", cell="primitive", repeat=repeat)
    shift = np.random.default_rng(0).normal(scale=0.05, size=ds["positions"].shape)
    return make_structures(
        ds["numbers"].values,
        ds["positions"].values + shift,
        n_atoms=ds["n_atoms"].values,
        cell=ds["cell"].values,
    )


@pytest.mark.parametrize(("repeat", "pieces"), [((1, 1, 1), 1), ((4, 1, 1), 2)])
def test_pieces__give_the_features_of_the_whole(repeat: tuple[int, int, int], pieces: int) -> None:
    model = load(seed_place("uio66-gfn1") / "model")
    ds = rattled(repeat)
    # The cell is smaller than twice the reach: an atom's own images are among what it feels.
    parts = split(ds, reach=reach(model), largest=1 if pieces > 1 else 10**6)
    assert parts.sizes["structure"] >= pieces
    own = parts["parent_atom"].values[parts["region"].values == 0]
    assert sorted(own.tolist()) == list(range(ds.sizes["atom"]))
    chunks = {"atom": tuple(int(c) for c in parts["n_atoms"].values)}
    found = gather(model.featurize(parts.chunk(chunks)), parts, ds)
    expected = model.featurize(ds)
    np.testing.assert_allclose(
        found["features"].values, expected["features"].values, rtol=1e-4, atol=1e-4
    )
    assert found.attrs["model_hash"] == model.model_hash


def test_pieces__want_one_crystal() -> None:
    ds = rattled((1, 1, 1))
    with pytest.raises(DataError, match="expected one that is periodic"):
        split(ds.assign(pbc=ds["pbc"] & False), reach=4.0)
