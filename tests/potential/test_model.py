import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from ase.build import make_supercell
from scipy.spatial.transform import Rotation

from mofal import data
from mofal.errors import PotentialError, StoreError
from mofal.potential import Potential, begin_as, create, grow, load
from mofal.potential.base import chunk_structures
from mofal.potential.model import RUN_BATCHES
from mofal.potential.network import energy_part, readout_weights

from .conftest import SMALL

DOUBLE = 1e-9
"""Absolute tolerance in eV or eV/Å of double precision networks."""
SINGLE = 2e-5
"""The same in single precision."""


def test_protocol__is_a_potential(single):
    assert isinstance(single, Potential)
    assert single.r_max == SMALL.r_max


# ---------------------------------------------------------------------------------- physics
@pytest.mark.physics
def test_evaluate__rotation_and_permutation(exact, mixed):
    before = exact.evaluate(mixed)
    turn = Rotation.random(random_state=1).as_matrix()
    rng = np.random.default_rng(2)
    frames, orders = [], []
    for frame in data.to_atoms(mixed):
        order = rng.permutation(len(frame))
        frame.set_cell(frame.cell.array @ turn.T)
        frame.positions = frame.positions @ turn.T
        frames.append(frame[order])
        orders.append(order)
    after = exact.evaluate(data.from_atoms(frames))
    np.testing.assert_allclose(after["energy"], before["energy"], atol=DOUBLE)
    for i, order in enumerate(orders):
        old = before["forces"].values[data.atom_slice(mixed, i)]
        new = after["forces"].values[data.atom_slice(mixed, i)]
        np.testing.assert_allclose(new, (old @ turn.T)[order], atol=DOUBLE)
        assert np.abs(old).max() > 1e-3 or len(old) == 1


@pytest.mark.physics
def test_evaluate__forces_are_the_slope_of_the_energy(exact, mixed):
    step = 1e-4
    atoms = [0, 9, 14, 22, 30]
    shifted = []
    base = data.to_atoms(mixed)
    where = np.asarray(mixed["structure_index"].values)
    for atom in atoms:
        frame = base[where[atom]]
        local = atom - data.atom_slice(mixed, int(where[atom])).start
        for sign in (1, -1):
            moved = frame.copy()
            moved.positions[local, 1] += sign * step
            shifted.append(moved)
    energies = exact.evaluate(data.from_atoms(shifted))["energy"].values.reshape(-1, 2)
    slope = -(energies[:, 0] - energies[:, 1]) / (2 * step)
    np.testing.assert_allclose(exact.evaluate(mixed)["forces"].values[atoms, 1], slope, atol=1e-6)


@pytest.mark.physics
def test_evaluate__stress_is_the_slope_against_strain(exact, mixed):
    step = 1e-5
    frame = data.to_atoms(mixed, 2)
    voigt = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    strained = []
    for a, b in voigt:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            copy = frame.copy()
            copy.set_cell(frame.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.append(copy)
    energies = exact.evaluate(data.from_atoms(strained))["energy"].values.reshape(-1, 2)
    slope = (energies[:, 0] - energies[:, 1]) / (2 * step) / frame.get_volume()
    found = exact.evaluate(mixed)["stress"].values[2]
    np.testing.assert_allclose(found, slope, atol=1e-8)
    assert np.abs(found).max() > 1e-4


@pytest.mark.physics
def test_evaluate__supercell_is_extensive(exact, mixed):
    frame = data.to_atoms(mixed, 2)
    large = make_supercell(frame, [[2, 0, 0], [0, 1, 0], [0, 1, 3]])
    one, many = (exact.evaluate(data.from_atoms(f)) for f in (frame, large))
    assert float(many["energy"][0]) == pytest.approx(6 * float(one["energy"][0]), abs=DOUBLE)
    np.testing.assert_allclose(many["stress"], one["stress"], atol=1e-10)


@pytest.mark.physics
def test_evaluate__isolated_atom_has_no_energy_and_clusters_no_stress(exact, mixed):
    out = exact.evaluate(mixed)
    assert float(out["energy"][5]) == 0.0
    assert not out["forces"].values[-1].any()
    finite = ~mixed["pbc"].values.all(axis=1)
    np.testing.assert_array_equal(np.isnan(out["stress"].values).all(axis=1)[[1, 4, 5]], True)
    assert np.isfinite(out["stress"].values[~finite]).all()


@pytest.mark.physics
def test_evaluate__forces_add_up_to_nothing(exact, mixed):
    out = exact.evaluate(mixed)
    for i in range(mixed.sizes["structure"]):
        total = out["forces"].values[data.atom_slice(mixed, i)].sum(axis=0)
        np.testing.assert_allclose(total, 0, atol=DOUBLE)


# ---------------------------------------------------------------------------------- features
def test_featurize__energies_follow_from_features(exact, mixed):
    """F is what the last linear map of the readout takes."""
    ds = exact.featurize(mixed)
    _, last = readout_weights(exact.network)
    scales = energy_part(exact.network).per_type_energy_scale_shift.scales.numpy()[:, 0]
    kinds = [exact.elements.index(s) for s in data_symbols(mixed)]
    atomic = scales[kinds] * (ds["features"].values.astype(float) @ last.numpy())[:, 0]
    sums = np.bincount(mixed["structure_index"].values, weights=atomic)
    np.testing.assert_allclose(sums, exact.evaluate(mixed)["energy"], atol=1e-5)
    assert np.ptp(sums) > 0.1


def data_symbols(ds):
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in ds["numbers"].values]


def test_featurize__a_dataset_of_the_contract(single, mixed):
    ds = data.validate(single.featurize(mixed), "features")
    assert ds["features"].dims == ("atom", "feature")
    assert ds.sizes["feature"] == single.feature_dim
    assert ds.attrs["model_hash"] == single.model_hash


# ---------------------------------------------------------------------------------- batches
def test_evaluate__batches_do_not_matter(single, mixed):
    together = single.evaluate(mixed)
    alone = [single.evaluate(data.select(mixed, i)) for i in range(mixed.sizes["structure"])]
    for name in ("energy", "forces", "stress"):
        joined = np.concatenate([a[name].values for a in alone])
        np.testing.assert_allclose(together[name].values, joined, atol=SINGLE)


def test_evaluate__parent_lattice_of_a_cluster_does_not_matter(single, mixed):
    frame = data.to_atoms(mixed, 1)
    boxed = frame.copy()
    boxed.cell = np.eye(3) * 30
    boxed.pbc = False
    first, second = (single.evaluate(data.from_atoms(f)) for f in (frame, boxed))
    np.testing.assert_array_equal(first["forces"], second["forces"])
    assert np.isnan(second["stress"].values).all()


@pytest.mark.parametrize("chunk", [5, 11, 40])
def test_evaluate_and_featurize__lazy_equals_eager(single, mixed, chunk):
    import dask

    def forbidden(*args, **kwargs):
        raise AssertionError("computed")

    potential = pickle.loads(pickle.dumps(single))
    potential.batch_atoms = 3
    chunked = mixed.chunk({"atom": chunk, "structure": 2})
    chunked["n_atoms"] = chunked["n_atoms"].compute()
    with dask.config.set(scheduler=forbidden):
        lazy, lazy_f = potential.evaluate(chunked), potential.featurize(chunked)
    assert lazy["forces"].chunks is not None
    eager, eager_f = single.evaluate(mixed), single.featurize(mixed)
    for name in ("energy", "forces", "stress"):
        found = lazy[name].compute(scheduler="sync").values
        np.testing.assert_allclose(found, eager[name].values, atol=SINGLE)
    found = lazy_f["features"].compute(scheduler="threads").values
    np.testing.assert_allclose(found, eager_f["features"].values, atol=SINGLE)


def test_featurize__tasks_grow_with_runs_of_structures_only(single, mixed):
    potential = pickle.loads(pickle.dumps(single))
    potential.batch_atoms = 10
    many = data.concat([mixed] * 40)
    chunked = many.chunk({"atom": 512, "structure": 64})
    features = potential.featurize(chunked)["features"].data
    runs = len(chunk_structures(many["n_atoms"].values, RUN_BATCHES * potential.batch_atoms))
    assert features.numblocks == (runs, 1)
    assert 5 < runs < 20
    graph = dict(features.__dask_graph__())
    assert sum(str(key).startswith("potential-") for key in graph) == 1
    assert len(graph) < 30 * runs


def test_chunk_structures__boundaries():
    assert chunk_structures(np.array([3, 3, 3, 9, 1]), 6) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert chunk_structures(np.array([20]), 6) == [(0, 1)]
    assert chunk_structures(np.array([2, 2]), 100) == [(0, 2)]


def test_evaluate_and_featurize__no_structures_at_all(single, mixed):
    none = data.select(mixed, [])
    assert single.evaluate(none)["forces"].shape == (0, 3)
    assert single.featurize(none)["features"].shape == (0, single.feature_dim)
    assert chunk_structures(np.array([], int), 10) == []


# ---------------------------------------------------------------------------------- elements
@pytest.mark.parametrize("verb", ["evaluate", "featurize"])
def test_evaluate__element_without_a_type(single, verb):
    from ase.build import molecule

    ds = data.from_atoms([molecule("CH3Cl")])
    with pytest.raises(PotentialError, match=r"no type for Cl.*H, C, O, Zr.*grow\(potential"):
        getattr(single, verb)(ds)


def test_create__what_is_no_element():
    with pytest.raises(PotentialError, match="'Xx' is no chemical symbol"):
        create("tiny", ["H", "Xx"], seed=0)
    with pytest.raises(PotentialError, match="tiny, base, extended"):
        create("small", ["H"], seed=0)


def test_grow__knows_what_it_knew(single, mixed):
    grown = grow(single, ["Hf", "N"], like={"Hf": "Zr"})
    assert grown.elements == (*single.elements, "N", "Hf")
    before, after = single.evaluate(mixed), grown.evaluate(mixed)
    np.testing.assert_array_equal(before["forces"], after["forces"])
    np.testing.assert_array_equal(before["energy"], after["energy"])
    assert grown.model_hash != single.model_hash
    swapped = mixed.copy(deep=True)
    swapped["numbers"].values[swapped["numbers"].values == 40] = 72
    np.testing.assert_array_equal(grown.evaluate(swapped)["energy"], before["energy"])
    swapped["numbers"].values[swapped["numbers"].values == 72] = 7
    assert np.abs(grown.evaluate(swapped)["energy"] - before["energy"]).max() > 1e-3


def test_grow__refuses_known_elements_and_foreign_starts(single):
    with pytest.raises(PotentialError, match="type for Zr already"):
        grow(single, ["Zr"])
    with pytest.raises(PotentialError, match="Ti"):
        grow(single, ["Hf"], like={"Hf": "Ti"})


def test_begin_as__new_and_untrained_types_are_what_they_resemble(single, mixed):
    untrained = grow(single, ["Hf"], seed=5)  # a type that means nothing yet
    begun = begin_as(untrained, {"Hf": "Zr", "Ti": "Zr"})
    assert set(begun.elements) == {*single.elements, "Hf", "Ti"}
    before = single.evaluate(mixed)
    np.testing.assert_array_equal(begun.evaluate(mixed)["forces"], before["forces"])
    for z in (72, 22):
        swapped = mixed.copy(deep=True)
        swapped["numbers"].values[swapped["numbers"].values == 40] = z
        np.testing.assert_array_equal(begun.evaluate(swapped)["energy"], before["energy"])
    swapped["numbers"].values[swapped["numbers"].values == 22] = 72
    assert np.abs(untrained.evaluate(swapped)["energy"] - before["energy"]).max() > 1e-3
    assert begin_as(begun, {"Hf": "Zr"}).model_hash == begun.model_hash


@pytest.mark.parametrize("like", [{"Hf": "Ti"}, {"Hf": "Hf"}, {"Hf": "Ce", "Ce": "Zr"}])
def test_begin_as__refuses_what_is_not_known(single, like):
    with pytest.raises(PotentialError, match=r"nothing can begin as (Ti|Hf|Ce)"):
        begin_as(single, like)


# ---------------------------------------------------------------------------------- disk
@pytest.fixture
def saved(single, tmp_path):
    return single.save(tmp_path / "model")


def test_save_load__same_bits(single, mixed, saved):
    again = load(saved)
    assert again.model_hash == single.model_hash
    assert repr(again) == repr(single)
    np.testing.assert_array_equal(again.evaluate(mixed)["forces"], single.evaluate(mixed)["forces"])
    weights = torch.load(saved / "weights.pt", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in weights.values())
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model"]


def test_pickle__same_bits(single, mixed):
    again = pickle.loads(pickle.dumps(single))
    assert again.model_hash == single.model_hash
    np.testing.assert_array_equal(again.evaluate(mixed)["energy"], single.evaluate(mixed)["energy"])


def test_model_hash__follows_weights_and_architecture(single):
    other_seed = create(SMALL, single.elements, seed=5, avg_num_neighbors=6.0)
    other_norm = create(SMALL, single.elements, seed=4, avg_num_neighbors=7.0)
    same = create(SMALL, single.elements, seed=4, avg_num_neighbors=6.0)
    assert same.model_hash == single.model_hash
    assert len({other_seed.model_hash, other_norm.model_hash, single.model_hash}) == 3


def test_save__never_overwrites(single, saved):
    with pytest.raises(StoreError, match="never overwritten"):
        single.save(saved)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip(path):
    raw = bytearray(path.read_bytes())
    # In the middle of a tensor's bytes: the records before and after hold the names.
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(bytes(raw))


DAMAGES = {
    "no such directory": (lambda d: shutil.rmtree(d), "no model directory"),
    "no weights": (lambda d: (d / "weights.pt").unlink(), r"lacks weights\.pt"),
    "cut off": (
        lambda d: (d / "weights.pt").write_bytes((d / "weights.pt").read_bytes()[:500]),
        "it has 500 bytes, expected",
    ),
    "flipped bit": (lambda d: flip(d / "weights.pt"), r"weights\.pt is damaged: it was changed"),
    "newer format": (lambda d: edit_json(d / "model.json", mofal_format=99), "upgrade it"),
    "no format": (lambda d: edit_json(d / "model.json", mofal_format="x"), "of format x"),
    "other architecture": (
        lambda d: edit_json(d / "model.json", elements=["H", "C", "O"]),
        "it was changed after it was written",
    ),
    "other elements": (
        lambda d: edit_json(d / "model.json", elements=["H", "C", "O", "Ti"]),
        "it was changed after it was written",
    ),
    "not json": (lambda d: (d / "model.json").write_text("{"), "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_load__damage_is_told(saved, kind):
    do, says = DAMAGES[kind]
    do(saved)
    with pytest.raises(StoreError, match=says):
        load(saved)
