"""Disorder: what is drawn, what it leaves, and the statistics of many draws."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from mofal.data import to_atoms
from mofal.errors import StructureError
from mofal.frameworks import build, disorder, disorder_statistics, find_blocks, supercell
from mofal.frameworks.domains import BlockNet, second_shell
from mofal.frameworks.sampling import Sampler


@pytest.fixture(scope="module")
def large():
    ds = build("S_pr", repeat=(4, 4, 4))
    return ds, find_blocks(ds)


@pytest.fixture(scope="module")
def small():
    ds = build("S_pr", repeat=(2, 2, 2))
    return ds, find_blocks(ds)


def counts(ds):
    symbols = to_atoms(ds, 0).get_chemical_symbols()
    return {s: symbols.count(s) for s in set(symbols)}


def realised(ds):
    return json.loads(ds.attrs["disorder"])


def test_disorder__report_agrees_with_the_structure(small):
    ds, blocks = small
    out = disorder(ds, hf=0.2, linker=0.2, brick=0.1, seed=3, blocks=blocks)
    report = realised(out)
    found = find_blocks(out)
    n = counts(out)
    node = found["role"].values == "node"
    assert report["c_hf"] == pytest.approx(n["Hf"] / (n["Hf"] + n["Zr"]))
    assert report["c_brick"] == pytest.approx(1 - node.sum() / 32)
    assert report["c_linker"] == pytest.approx(1 - (~node).sum() / 192)
    assert report["coordination"] == pytest.approx(found["coordination"].values[node].mean())
    assert set(found["charge"].values.tolist()) == {0}
    # A brick, its cut carboxylates, the linkers and one H per formate: nothing else is left.
    ends = int(found["n_missing"].values.sum())
    assert out.sizes["atom"] == node.sum() * 54 + (~node).sum() * 10 + ends
    assert ends == 12 * node.sum() - 2 * (~node).sum()


def test_disorder__atoms_that_stay_do_not_move(small):
    ds, blocks = small
    out = disorder(ds, hf=0.2, linker=0.2, brick=0.1, seed=3, blocks=blocks)
    before = {tuple(x) for x in ds["positions"].values}
    kept = sum(tuple(x) in before for x in out["positions"].values)
    assert kept == out.sizes["atom"] - int(find_blocks(out)["n_missing"].values.sum())


def test_disorder__same_seed_same_structure_other_seed_other(small):
    ds, blocks = small
    a, b, c = (
        disorder(ds, hf=0.2, linker=0.2, brick=0.1, seed=s, blocks=blocks) for s in (1, 1, 2)
    )
    assert a["structure_id"].values[0] == b["structure_id"].values[0]
    assert a["structure_id"].values[0] != c["structure_id"].values[0]


def test_disorder__streams_are_independent(small):
    ds, blocks = small
    sampler = Sampler(ds, blocks)
    a = sampler.draw(linker=0.2, brick=0.1, seed=5)
    b = sampler.draw(linker=0.0, brick=0.1, seed=5)
    nodes = sampler.nodes
    assert np.array_equal(a.removed[nodes], b.removed[nodes])
    c = sampler.draw(linker=0.3, seed=5)
    d = sampler.draw(linker=0.2, seed=5)
    assert np.all(c.removed[d.removed])  # a larger fraction removes the same ones and more


def test_disorder__exact_counts(small):
    ds, blocks = small
    out = disorder(ds, hf=0.25, linker=0.25, seed=1, exact=True, blocks=blocks)
    assert counts(out)["Hf"] == 48
    assert realised(out)["c_linker"] == 0.25
    integers = disorder(ds, linker=7, hf=11, seed=1, blocks=blocks)
    assert counts(integers)["Hf"] == 11
    assert integers.sizes["atom"] == ds.sizes["atom"] - 7 * 8


def test_disorder__missing_brick_takes_its_linkers(small):
    ds, blocks = small
    out = disorder(ds, brick=1, blocks=blocks)
    assert out.sizes["atom"] == ds.sizes["atom"] - 54 - 12 * 10 + 12
    found = find_blocks(out)
    assert set(found["defect_label"].values.tolist()) == {"missing brick"}
    assert len(set(found["defect_hole"].values.tolist())) == 1


def test_disorder__unconnected_blocks_are_discarded(small):
    ds, blocks = small
    # 95 % of the linkers gone: pieces hang on nothing; what stays is one endless framework or one
    # piece, and every block of it is connected.
    out = disorder(ds, linker=0.8, seed=2, exact=True, blocks=blocks)
    assert realised(out)["n_unconnected"] > 0
    found = find_blocks(out)
    assert np.all(found["net"].values == 0)
    assert np.all(found["coordination"].values > 0)


def test_disorder__works_on_another_framework():
    from mofal.data import from_atoms
    from tests.frameworks.published import mof5

    ds = supercell(from_atoms(mof5(), system="MOF-5"), (1, 1, 2))
    out = disorder(ds, linker=3, brick=1, seed=0)
    found = find_blocks(out)
    assert set(found["charge"].values.tolist()) == {0}
    assert realised(out)["c_brick"] == pytest.approx(1 / 16)


def test_disorder__s_sup_is_built_in_time():
    build("S_pr")
    start = time.perf_counter()
    ds = build("S_sup", seed=4)
    assert time.perf_counter() - start < 5.0
    assert 20_000 < ds.sizes["atom"] < 26_000
    assert str(ds["system"].values[0]) == "S_sup"


def test_disorder_statistics__independent_draws(large):
    ds, blocks = large
    told = []
    s = disorder_statistics(
        ds, blocks=blocks, seeds=range(200), hf=0.2, linker=0.2, brick=0.1, progress=told.append
    )
    assert told == ["100 of 200 draws", "200 of 200 draws"]
    mean, std = s.mean("seed"), s.std("seed", ddof=1)
    # Expected: 23,160 ± 660 atoms, c_linker 0.35 ± 0.03, coordination 8.63 ± 0.22. The mean of
    # 200 draws is known to a fourteenth of a standard deviation: three of these are allowed.
    for name, value, spread in (
        ("n_atoms", 23160, 660),
        ("c_linker", 0.352, 0.03),
        ("coordination", 8.63, 0.22),
        ("c_brick", 0.10, 0.019),
        ("c_hf", 0.20, 0.010),
    ):
        assert abs(float(mean[name]) - value) < 3 * spread / np.sqrt(200), name
        assert float(std[name]) == pytest.approx(spread, rel=0.2), name


@pytest.mark.parametrize(
    ("arguments", "paper"),
    [
        ({"hf": 0.2, "linker": 0.2, "brick": 34}, {"n_atoms": 22052, "c_linker": 0.40,
                                                   "coordination": 8.3, "c_brick": 0.13}),
        ({"hf": 0.1, "linker": 0.1, "brick": 10}, {"c_linker": 0.17, "coordination": 10.4,
                                                   "c_brick": 0.04}),
    ],
)  # fmt: skip
def test_disorder_statistics__holds_the_realisation_of_the_paper(large, arguments, paper):
    ds, blocks = large
    s = disorder_statistics(ds, blocks=blocks, seeds=range(200), **arguments)
    for name, value in paper.items():
        mean, std = float(s[name].mean()), float(s[name].std(ddof=1))
        # What the paper prints is rounded to two digits.
        assert abs(mean - value) < 2 * std + 0.005, name


def test_disorder_statistics__counts_what_is_built(small):
    ds, blocks = small
    s = disorder_statistics(ds, blocks=blocks, seeds=[7, 8], hf=0.2, linker=0.3, brick=0.2)
    for k, seed in enumerate((7, 8)):
        out = disorder(ds, blocks=blocks, seed=seed, hf=0.2, linker=0.3, brick=0.2)
        assert out.sizes["atom"] == int(s["n_atoms"][k])
        assert realised(out)["coordination"] == float(s["coordination"][k])


def test_disorder__reo_everywhere_is_s_reo(small):
    ds, blocks = small
    out = disorder(ds, brick=0.25, pattern="reo", domain_size=500.0, seed=1, blocks=blocks)
    assert out.sizes["atom"] == 8 * 294
    node = (found := find_blocks(out))["role"].values == "node"
    assert set(found["coordination"].values[node].tolist()) == {8}


def test_disorder__bcu_everywhere_is_s_bcu(small):
    ds, blocks = small
    out = disorder(ds, linker=64, pattern="bcu", domain_size=500.0, seed=1, blocks=blocks)
    assert out.sizes["atom"] == 8 * 392
    node = (found := find_blocks(out))["role"].values == "node"
    assert set(found["coordination"].values[node].tolist()) == {8}


def test_disorder__reo_domains_are_correlated(large):
    ds, blocks = large
    sampler = Sampler(ds, blocks)
    x, cell = ds["positions"].values, ds["cell"].values[0]
    net = BlockNet.of(blocks, x, cell)
    i, j, vector = second_shell(net, sampler.nodes)
    assert np.allclose(np.linalg.norm(vector, axis=1), 20.75, atol=1e-6)

    def pair_excess(**arguments):
        """Missing pairs an edge of the cell apart, against what independence would give."""
        out = []
        for seed in range(5):
            gone = sampler.draw(brick=0.1, seed=seed, exact=True, **arguments).removed
            missing = gone[sampler.nodes]
            out.append((missing[i] & missing[j]).mean() / missing.mean() ** 2)
        return float(np.mean(out))

    assert pair_excess() == pytest.approx(1.0, abs=0.5)
    assert pair_excess(pattern="reo", domain_size=60.0) > 4.0
    # Larger domains have less surface.
    assert pair_excess(pattern="reo", domain_size=80.0) > pair_excess(
        pattern="reo", domain_size=45.0
    )


def test_disorder__reo_domains_never_touch_across_a_linker(large):
    ds, blocks = large
    sampler = Sampler(ds, blocks)
    draw = sampler.draw(brick=0.15, seed=2, pattern="reo", domain_size=50.0)
    bricks, _ = sampler.net.linker_bricks(sampler.linkers)
    assert not draw.removed[bricks].all(axis=1).any()
    assert draw.c_brick == pytest.approx(round(0.15 * 256) / 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"linker": 1.5}, "more than all"),
        ({"linker": -0.1}, "fraction from 0 to 1"),
        ({"hf": float("nan")}, "fraction from 0 to 1"),
        ({"brick": 1000}, "of 4 sites"),
        ({"linker": 0.2, "pattern": "sql"}, "unknown pattern.*reo, bcu"),
        ({"brick": 0.2, "pattern": "reo"}, "a pattern and a size"),
        ({"brick": 0.2, "domain_size": 30.0}, "a pattern and a size"),
        ({"brick": 0.2, "pattern": "reo", "domain_size": -1.0}, "a length in Å"),
        ({"brick": 0.6, "pattern": "reo", "domain_size": 60.0}, "one brick in four"),
        ({"linker": 0.5, "pattern": "bcu", "domain_size": 60.0}, "one linker in three"),
        ({"hf": 0.2, "metal": "Qq"}, "'Qq' is no metal"),
        ({"hf": 0.2, "metal": "C"}, "'C' is no metal"),
        ({"hf": 0.2, "metal": "Zr"}, "is Zr already"),
        ({"hf": "0.2"}, "fraction from 0 to 1"),
        ({"hf": None}, "fraction from 0 to 1"),
        ({"linker": [0.2]}, "fraction from 0 to 1"),
        ({"linker": True}, "fraction from 0 to 1"),
        ({"linker": 0.1, "seed": -1}, "whole number from 0 on"),
        ({"linker": 0.1, "seed": None}, "whole number from 0 on"),
        ({"linker": 0.1, "seed": 1.5}, "whole number from 0 on"),
        ({"brick": 0.1, "pattern": "bcu", "domain_size": 30.0}, "made of missing linkers"),
        ({"linker": 0.1, "pattern": "reo", "domain_size": 30.0}, "made of missing bricks"),
        ({"brick": 0.1, "pattern": "reo", "domain_size": "30"}, "a length in Å"),
        ({"brick": 1.0}, "nothing is left"),
    ],
)
def test_disorder__refuses(arguments, message):
    with pytest.raises(StructureError, match=message):
        disorder(build("S_pr"), **arguments)


def test_disorder__numbers_of_numpy_are_numbers(small):
    arguments = {"hf": 0.5, "linker": 0.25, "brick": 1, "seed": 3}
    numpy_ones = {
        "hf": np.float32(0.5), "linker": np.float64(0.25), "brick": np.int64(1), "seed": np.int64(3)
    }  # fmt: skip
    ds, blocks = small
    a, b = (disorder(ds, blocks=blocks, **given) for given in (arguments, numpy_ones))
    assert a.identical(b)
    assert json.loads(b.attrs["disorder"])["brick"] == 1


def test_disorder__one_is_a_site_and_one_point_zero_is_all(small):
    ds, blocks = small
    one, every = (
        json.loads(disorder(ds, blocks=blocks, hf=hf).attrs["disorder"])["c_hf"] for hf in (1, 1.0)
    )
    assert one == pytest.approx(1 / int((ds["numbers"].values == 40).sum()))
    assert every == 1.0


def test_disorder__refuses_a_structure_without_linkers():
    from ase.build import bulk

    from mofal.data import from_atoms

    with pytest.raises(StructureError, match="no bricks joined by linkers"):
        disorder(from_atoms(bulk("Cu", cubic=True), system="x"), linker=0.1)
