"""Force matching: candidates, comparison with the parent or with the largest cluster, verdict."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from matscipy.neighbours import neighbour_list

from mofal.clusters import Verdict, candidates, compare_forces, cut_candidates, verdict
from mofal.clusters.match import match_weights
from mofal.errors import ConfigError, DataError
from tests.clusters.common import atoms_of, cluster, first_of, shaken, system
from tests.helpers import chunked

REACH = 4.5
EXACT = 1e-10


def _pair_forces(ds):
    """Forces of a pair potential that ends at `REACH`, in crystals and clusters alike, eV/Å."""
    out = []
    begin = 0
    for k, n in enumerate(ds["n_atoms"].values.tolist()):
        x = ds["positions"].values[begin : begin + n]
        cell, pbc = ds["cell"].values[k], ds["pbc"].values[k]
        if not pbc.any():
            x, cell = x - x.min(axis=0) + 1.0, np.diag(np.ptp(x, axis=0) + 2.0)
        i, d, vector = neighbour_list("idD", positions=x, cell=cell, pbc=pbc, cutoff=REACH)
        pull = (1.0 - d / REACH) ** 2
        force = np.zeros((n, 3))
        np.add.at(force, i, (pull / d)[:, None] * vector)
        out.append(force)
        begin += n
    return np.concatenate(out)


def _matched(name="S_ld", cell="primitive", shells=(0, 1, 2), n=2, seed=0, **options):
    ds, blocks = system(name, cell)
    frames = shaken(ds, seed, n=n)
    frames = frames.assign(forces=(("atom", "xyz"), _pair_forces(frames)))
    proposals = candidates(blocks, first_of(blocks, "node"), shells=shells, **options)
    clusters, refused = cut_candidates(frames, proposals, blocks)
    assert refused.sizes["core"] == 0
    clusters = clusters.assign(forces=(("atom", "xyz"), _pair_forces(clusters)))
    return frames, blocks, clusters


# ------------------------------------------------------------------------- candidates
def test_candidates__whole_and_partial_mantles_by_size():
    _, blocks = system("S_pr", "primitive")
    found = candidates(blocks, first_of(blocks, "node"))
    names = [str(n) for n in found["name"].values]
    assert names == ["shells=0", "6 of 12 neighbours", "shells=1", "shells=2"]
    assert found["n_atoms"].values.tolist() == [66, 126, 186, 954]
    assert found["shells"].values.tolist() == [0, -1, 1, 2]
    assert len(json.loads(str(found["links"].values[1]))) == 6
    more = candidates(blocks, first_of(blocks, "node"), shells=(1,), partial=(0.25, 0.75))
    assert more["n_atoms"].values.tolist() == [54 + 30 + 12, 54 + 90 + 12, 186]


def test_candidates__the_same_cluster_once():
    _, blocks = system("S_pr", "primitive")
    found = candidates(blocks, first_of(blocks, "linker"), shells=(0, 0, 1), partial=False)
    assert found["n_atoms"].values.tolist() == [12, 140]


def test_candidates__focus_keeps_the_nearest_neighbours():
    ds, blocks = system("S_pr", "primitive")
    core = first_of(blocks, "node")
    numbers = ds["numbers"].values
    metal = next(a for a in atoms_of(blocks, core) if numbers[a] == 40)
    found = candidates(blocks, core, shells=(), partial=(1 / 3,), focus=[metal])
    kept = json.loads(str(found["links"].values[0]))
    links = blocks["link_atom"].values[kept]
    assert len(kept) == 4
    # The four carboxylates that hold on to this metal: C, O, metal.
    bonded = {}
    for i, j in blocks["bond_atom"].values.tolist():
        bonded.setdefault(i, set()).add(j)
        bonded.setdefault(j, set()).add(i)
    for i, j in links.tolist():
        carbon = i if i in atoms_of(blocks, core) else j
        assert any(metal in bonded[oxygen] for oxygen in bonded[carbon] if numbers[oxygen] == 8)


def test_candidates__without_focus_neighbours_are_spread():
    ds, blocks = system("S_pr", "primitive")
    core = first_of(blocks, "node")
    found = candidates(blocks, core, shells=(), partial=(1 / 6,))
    (first, second) = json.loads(str(found["links"].values[0]))
    x, cell = ds["positions"].values, ds["cell"].values[0]
    ends = blocks["link_atom"].values[:, 0]
    centre = x[atoms_of(blocks, core)].mean(axis=0)
    assert cell.any()
    a, b = x[ends[first]] - centre, x[ends[second]] - centre
    # Not two neighbours on the same metal: they point away from each other or at right angles.
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) < 0.1


def test_candidates__errors():
    _, blocks = system("S_pr", "primitive")
    core, linker = first_of(blocks, "node"), first_of(blocks, "linker")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        candidates(blocks, core, partial=(1.5,))
    with pytest.raises(DataError, match="shells=-1"):
        candidates(blocks, core, shells=(-1,))
    with pytest.raises(DataError, match="not all in block"):
        candidates(blocks, core, focus=atoms_of(blocks, linker))
    with pytest.raises(DataError, match="core 99"):
        candidates(blocks, 99)


# ------------------------------------------------------------------------- comparison
@pytest.mark.parametrize("cell", ["primitive", "conventional"])
def test_compare_forces__exact_beyond_the_reach_of_the_potential(cell):
    """A pair potential of range R: atoms further than R from every cut feel no difference."""
    frames, _, clusters = _matched(name="S_pr", cell=cell, shells=(0, 1))
    table = compare_forces(frames, clusters)
    rmse, region = table["rmse"].values, table["region"].values
    far = (table["cut_distance"].values > REACH + 1.6) & (region != 2)
    assert far.sum() > 20
    assert np.abs(rmse[far]).max() < EXACT
    near = (table["cut_distance"].values < 2.0) & (region != 2)
    assert rmse[near].min() > 1e-3
    assert np.isnan(rmse[region == 2]).all()
    assert table.attrs["compared_with"] == "parent"
    small, half, large = table["rmse_core"].values
    assert large < EXACT < 1e-3 < half < small


def test_compare_forces__a_formate_feels_its_neighbour_across_the_missing_linker():
    """No bond leads there, so no mantle holds it: force matching is what shows the difference."""
    frames, blocks, clusters = _matched(shells=(1,), partial=False)
    core = atoms_of(blocks, first_of(blocks, "node"))
    z = frames["numbers"].values
    carbon = [int(a) for a in core if z[a] == 6]
    first, second = blocks["bond_atom"].values.T
    formate = [
        int(h)
        for a, b in zip(first, second)
        for h, c in ((a, b), (b, a))
        if z[h] == 1 and int(c) in carbon
    ]
    assert len(formate) == 2
    rest = np.setdiff1d(core, formate)
    table = compare_forces(frames, clusters, groups={"formate": formate, "rest": rest})
    formates, others = table["rmse_group"].values[0]
    assert formates > 1e-2
    assert formates > 5 * others


def test_compare_forces__numbers_by_hand():
    frames, _, clusters = _matched(shells=(1,), n=3, partial=False)
    table = compare_forces(frames, clusters, bin_width=2.0)
    start = np.cumsum([0, *frames["n_atoms"].values])
    differences, distances = [], []
    begin = 0
    for k in range(3):
        one = cluster(clusters, k)
        mine = clusters["forces"].values[begin : begin + len(one["numbers"])]
        begin += len(one["numbers"])
        theirs = frames["forces"].values[start[k] + one["parent_atom"]]
        differences.append(mine - theirs)
        caps = one["positions"][one["region"] == 2]
        gap = np.linalg.norm(one["positions"][:, None] - caps[None], axis=2).min(axis=1)
        distances.append(gap)
    squared = np.mean(np.square(differences), axis=(0, 2))
    distance = np.mean(distances, axis=0)
    real, core = one["region"] != 2, one["region"] == 0
    metal = core & (one["numbers"] == 40)
    np.testing.assert_allclose(table["rmse"].values[real], np.sqrt(squared[real]))
    np.testing.assert_allclose(table["rmse_core"].values, np.sqrt(squared[core].mean()))
    np.testing.assert_allclose(table["rmse_all"].values, np.sqrt(squared[real].mean()))
    np.testing.assert_allclose(table["worst_core"].values, np.sqrt(squared[core].max()))
    np.testing.assert_allclose(
        table["rmse_element"].sel(element="Zr").values, np.sqrt(squared[metal].mean())
    )
    np.testing.assert_allclose(table["cut_distance"].values, distance)
    second = real & (distance >= 2.0) & (distance < 4.0)
    np.testing.assert_allclose(
        table["rmse_distance"].sel(distance=3.0).values, np.sqrt(squared[second].mean())
    )
    assert table["n_frames"].values.tolist() == [3]
    assert table["n_atoms"].values.tolist() == [166]
    assert table["n_electrons"].values.tolist() == [984]
    assert table["cost"].attrs["units"] == "electrons"


def test_compare_forces__groups_look_at_the_core_only():
    frames, blocks, clusters = _matched(shells=(0, 1), partial=False)
    core = atoms_of(blocks, first_of(blocks, "node"))
    formate = [int(a) for a in core if frames["numbers"].values[a] == 1][:2]
    table = compare_forces(frames, clusters, groups={"formate": formate, "core": core})
    np.testing.assert_allclose(
        table["rmse_group"].sel(group="core").values, table["rmse_core"].values
    )
    rows = np.isin(table["parent_atom"].values, formate) & (table["region"].values == 0)
    for k in range(2):
        mine = rows & (table["candidate_index"].values == k)
        np.testing.assert_allclose(
            table["rmse_group"].sel(group="formate").values[k],
            np.sqrt(np.mean(table["rmse"].values[mine] ** 2)),
        )


def test_compare_forces__forces_given_apart_and_lazy():
    frames, _, clusters = _matched(shells=(0,), partial=False)
    expected = compare_forces(frames, clusters)
    bare = clusters.drop_vars("forces")
    xr.testing.assert_identical(compare_forces(frames, bare, clusters["forces"]), expected)
    xr.testing.assert_identical(compare_forces(chunked(frames, 60), clusters), expected)


def test_compare_forces__labels_that_are_missing_are_left_out():
    frames, _, clusters = _matched(shells=(0, 1), partial=False)
    forces = clusters["forces"].values.copy()
    n = clusters["n_atoms"].values
    forces[: n[0]] = np.nan
    some = compare_forces(frames, clusters, forces)
    assert some["n_frames"].values.tolist() == [1, 2]
    whole = compare_forces(frames, clusters)
    assert some["rmse_core"].values[1] == whole["rmse_core"].values[1]
    assert np.isfinite(some["rmse_core"].values[0])
    forces[:] = np.nan
    none = compare_forces(frames, clusters, forces)
    assert np.isnan(none["rmse_core"].values).all()
    with pytest.raises(DataError, match="no candidate has forces"):
        verdict(none)


def test_compare_forces__larger_than_parent_is_flagged():
    frames, _, clusters = _matched(shells=(0, 1), partial=False)
    table = compare_forces(frames, clusters)
    assert table["larger_than_parent"].values.tolist() == [False, True]
    frames, _, clusters = _matched(cell="conventional", shells=(0, 1), partial=False)
    assert not compare_forces(frames, clusters)["larger_than_parent"].values.any()


def test_compare_forces__wall_time_is_the_cost_where_there_is_one():
    frames, _, clusters = _matched(shells=(0, 1), partial=False)
    wall = np.array([2.0, 30.0, 4.0, 50.0])
    table = compare_forces(frames, clusters.assign(wall_time=("structure", wall)))
    assert table["cost"].values.tolist() == [3.0, 40.0]
    assert table["cost"].attrs["units"] == "s"
    of_atoms = ("structure", wall, {"units": "atoms"})
    table = compare_forces(frames, clusters.assign(wall_time=of_atoms))
    assert "cost 3 atoms" in verdict(table, tolerance_meV=1e6).text


def test_compare_forces__growing_clusters_where_the_parent_is_too_large():
    frames, _, clusters = _matched(name="S_pr", shells=(0, 1, 2))
    against_parent = compare_forces(frames, clusters)
    growing = compare_forces(None, clusters)
    assert growing.attrs["compared_with"] == "shells=2"
    assert np.isnan(growing["rmse_core"].values[-1])
    assert not growing["larger_than_parent"].values.any()
    # The core is exact for this potential: the largest cluster stands for the parent.
    assert against_parent["rmse_core"].values[-1] < EXACT
    np.testing.assert_allclose(
        growing["rmse_core"].values[:-1], against_parent["rmse_core"].values[:-1], atol=1e-9
    )
    found = verdict(growing, tolerance_meV=1.0)
    assert (found.candidate, found.passed) == ("shells=1", True)
    loose = verdict(growing, tolerance_meV=1000.0 * growing["rmse_core"].values[1] + 1.0)
    assert (loose.candidate, loose.passed) == ("6 of 12 neighbours", True)
    assert "convergence, not agreement" in found.text


def test_compare_forces__errors():
    frames, _, clusters = _matched(shells=(0,), partial=False)
    other = shaken(system("S_ld", "primitive")[0], 99)
    other = other.assign(forces=(("atom", "xyz"), _pair_forces(other)))
    two = clusters.assign(candidate=("structure", np.array(["a", "a"], object)))
    shuffled = two.assign(parent_atom=two["parent_atom"].copy())
    shuffled["parent_atom"].values[:2] = shuffled["parent_atom"].values[1::-1]
    table = [
        (lambda: compare_forces(frames, clusters.drop_vars("forces")), "clusters carry no forces"),
        (lambda: compare_forces(frames.drop_vars("forces"), clusters), "parents carry no forces"),
        (lambda: compare_forces(frames, clusters, np.zeros((3, 3))), r"shape \(3, 3\)"),
        (lambda: compare_forces(other, clusters), "not among the parents"),
        (lambda: compare_forces(frames, shuffled), "not the same cluster in all frames"),
        (lambda: compare_forces(frames, clusters.isel(structure=[], atom=[])), "all of them were"),
    ]
    for call, text in table:
        with pytest.raises(DataError, match=text):
            call()
    with pytest.raises(ConfigError, match="bin_width=0"):
        compare_forces(frames, clusters, bin_width=0)


def test_cut_candidates__frames_of_one_system():
    from mofal.data import concat

    frames = concat([shaken(system(n, "primitive")[0], 0) for n in ("S_ld", "S_pr")])
    blocks = system("S_ld", "primitive")[1]
    with pytest.raises(DataError, match="frames of one system"):
        cut_candidates(frames, candidates(blocks, 0), blocks)


# ------------------------------------------------------------------------- weights
def test_match_weights__half_at_the_tolerance_and_by_distance_alone():
    frames, _, clusters = _matched(shells=(1,), partial=())
    table = compare_forces(frames, clusters)
    near = float(table["rmse_distance"][0, 0]) * 1000
    assert near > 0
    weight = match_weights(clusters, table, tolerance_meV=near)
    caps = clusters["region"].values == 2
    assert (weight[caps] == 0).all()
    # The pair potential ends at REACH: what is further from the cut matches and counts whole.
    assert weight.max() == pytest.approx(1.0, abs=1e-12)
    assert weight[~caps].min() == pytest.approx(0.5, abs=0.05)
    at, rmse = table["distance"].values, 1000 * table["rmse_distance"].values[0]
    x = clusters["positions"].values.reshape(2, -1, 3)
    for one, cap, found in zip(x, caps.reshape(2, -1), weight.reshape(2, -1)):
        d = np.linalg.norm(one[~cap, None] - one[cap][None], axis=2).min(axis=1)
        expected = 1 / (1 + (np.interp(d, at, rmse) / near) ** 2)
        np.testing.assert_allclose(found[~cap], expected, rtol=1e-12)
    # Clusters of another frame are weighed by the same table.
    other = match_weights(_matched(shells=(1,), partial=(), n=1, seed=3)[2], table)
    assert len(other) == len(weight) // 2


def test_match_weights__errors():
    frames, _, clusters = _matched(shells=(0, 1), partial=(), n=1)
    table = compare_forces(frames, clusters)
    with pytest.raises(ConfigError, match=r"candidate=None: expected one of shells=0, shells=1"):
        match_weights(clusters, table)
    with pytest.raises(ConfigError, match="positive number"):
        match_weights(clusters, table, candidate="shells=0", tolerance_meV=0)
    nothing = compare_forces(frames, clusters, np.full((clusters.sizes["atom"], 3), np.nan))
    with pytest.raises(DataError, match="label it first"):
        match_weights(clusters, nothing, candidate="shells=0")


# ------------------------------------------------------------------------- verdict
def _table(rmse, cost, larger, target="parent"):
    n = len(rmse)
    return xr.Dataset(
        {
            "rmse_core": ("candidate", np.array(rmse) / 1000.0),
            "cost": ("candidate", np.array(cost, float), {"units": "s"}),
            "larger_than_parent": ("candidate", np.array(larger)),
            "n_frames": ("candidate", np.full(n, 3)),
            "n_atoms": ("candidate", np.arange(n) * 60 + 66),
        },
        coords={"candidate": np.array([f"c{k}" for k in range(n)], object)},
        attrs={"compared_with": target},
    )


@pytest.mark.parametrize(
    ("rmse", "cost", "larger", "chosen", "passed"),
    [
        ([114, 67], [1, 10], [False, False], "c1", True),
        ([90, 67], [1, 10], [False, False], "c0", True),
        ([90, 67], [10, 1], [False, False], "c1", True),
        ([300, 150], [1, 10], [False, False], "c1", False),
        ([90, 67], [1, 10], [True, False], "c1", True),
        ([300, 67], [1, 10], [False, True], "c1", True),
        ([np.nan, 67], [1, 10], [False, False], "c1", True),
        ([100, 100], [5, 5], [False, False], "c0", True),
    ],
)
def test_verdict__cheapest_that_passes(rmse, cost, larger, chosen, passed):
    found = verdict(_table(rmse, cost, larger))
    assert isinstance(found, Verdict)
    assert (found.candidate, found.passed) == (chosen, passed)
    assert found.larger_than_parent == larger[int(chosen[1])]
    assert ("none closes" in found.text) != passed
    assert ("larger than its parent" in found.text) == found.larger_than_parent
    assert json.loads(json.dumps(found.to_dict()))["candidate"] == chosen


def test_verdict__beside_the_noise_floor():
    table = _table([27.0, 90.0], [10, 1], [False, False])
    found = verdict(table, noise_floor=20.0, tolerance_meV=50.0)
    assert found.candidate == "c0"
    assert "differ by 28.3 meV/Å" in found.text
    assert "no more than that is seen" in found.text
    assert found.noise_floor_meV == 20.0
    loose = verdict(table, noise_floor=20.0)
    assert loose.candidate == "c1"
    assert "no more than that is seen" not in loose.text
    assert verdict(table).noise_floor_meV is None


def test_verdict__tolerance_must_be_positive():
    with pytest.raises(ConfigError, match="tolerance_meV=0"):
        verdict(_table([1.0], [1.0], [False]), tolerance_meV=0)


def test_verdict__without_a_parent_the_largest_is_the_best_known():
    table = _table([300.0, 150.0, np.nan], [1, 10, 100], [False] * 3, target="c2")
    found = verdict(table)
    assert (found.candidate, found.passed) == ("c2", False)
    assert found.rmse_core_meV == pytest.approx(150)
    assert "the best is c1: 150 meV/Å" in found.text
    assert "Take c2" in found.text
    assert verdict(table, tolerance_meV=200).candidate == "c1"


def test_compare_forces__a_label_that_failed_at_once_is_no_cheap_label():
    frames, _, clusters = _matched(n=3, shells=(0, 1))
    cost = np.full(clusters.sizes["structure"], 100.0)
    forces = clusters["forces"].values.copy()
    begin = np.concatenate([[0], np.cumsum(clusters["n_atoms"].values)])
    large = [k for k, c in enumerate(clusters["candidate"].values) if c == "shells=1"]
    for k in large[:2]:
        cost[k] = 0.1
        forces[begin[k] : begin[k + 1]] = np.nan
    clusters = clusters.assign(wall_time=("structure", cost, {"units": "s"}))
    table = compare_forces(frames, clusters, forces).sel(candidate="shells=1")
    assert float(table["cost"]) == 100.0
    assert int(table["n_frames"]) == 1


def test_compare_forces__a_parent_that_failed_leaves_its_frame_out():
    frames, _, clusters = _matched(n=3, shells=(0,))
    whole = compare_forces(frames, clusters, clusters["forces"])
    first = int(frames["n_atoms"].values[0])
    forces = frames["forces"].values.copy()
    forces[:first] = np.nan
    part = compare_forces(
        frames.assign(forces=(("atom", "xyz"), forces)), clusters, clusters["forces"]
    )
    assert part.attrs["compared_with"] == "parent"
    assert (int(whole["n_frames"][0]), int(part["n_frames"][0])) == (3, 2)
