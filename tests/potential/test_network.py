import logging
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from mofal.errors import DataError
from mofal.potential.network import (
    build_network,
    builder_config,
    collate,
    make_graph,
    neighbour_edges,
    put_weights,
    quiet,
    readout_weights,
    threads,
    type_table,
    weights_of,
)

from .conftest import SMALL


def as_set(edges, shifts):
    return {(int(i), int(j), *map(int, s)) for (i, j), s in zip(edges.T, shifts)}


@pytest.mark.parametrize("pbc", [True, False, (True, True, False)])
def test_neighbour_edges__equals_ase(pbc):
    atoms = bulk("ZrO", "rocksalt", a=4.6, cubic=True)
    atoms.positions += np.random.default_rng(0).normal(0, 0.3, atoms.positions.shape)
    atoms.pbc = pbc
    found = neighbour_edges(atoms.positions, atoms.cell.array, atoms.pbc, 4.1)
    i, j, shifts = neighbor_list("ijS", atoms, 4.1)
    assert len(i) > 20
    assert as_set(*found) == as_set(np.stack([i, j]), shifts)


def test_neighbour_edges__a_cluster_far_from_its_parents_cell():
    atoms = molecule("HCOOH")
    near = neighbour_edges(atoms.positions, np.zeros((3, 3)), atoms.pbc, 3.0)
    far = neighbour_edges(atoms.positions + 500.0, np.eye(3) * 20, atoms.pbc, 3.0)
    assert as_set(*near) == as_set(*far)
    assert near[0].shape[1] > 8


def test_neighbour_edges__isolated_atom_has_none():
    edges, shifts = neighbour_edges(np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    assert edges.shape == (2, 0)
    assert shifts.shape == (0, 3)


def graphs_of(frames):
    types = type_table(["H", "C", "O", "Zr"])
    return [
        make_graph(f.numbers, f.positions, f.cell.array, f.pbc, types=types, r_max=3.5)
        for f in frames
    ]


def test_collate__equals_nequips():
    from nequip.data import AtomicDataDict

    graphs = graphs_of([molecule("HCOOH"), bulk("ZrO", "rocksalt", a=4.6), molecule("C6H6")])
    ours, theirs = collate(graphs), AtomicDataDict.batched_from_list(graphs)
    assert set(ours) == set(theirs)
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key


def test_make_graph__exploded_structure_refused():
    atoms = molecule("H2O")
    atoms.positions[1, 2] = np.nan
    with pytest.raises(DataError, match="exploded"):
        graphs_of([atoms])


@pytest.mark.slow
def test_build_network__leaves_random_states_alone():
    script = (
        "import random, numpy as np, torch\n"
        "random.seed(1); np.random.seed(1); torch.manual_seed(1)\n"
        "from mofal.potential import create\n"
        "create('tiny', ['H'], seed=5)\n"
        "print(random.random(), np.random.rand(), float(torch.rand(1, dtype=torch.float64)))\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    random.seed(1)
    expected = random.Random(1).random(), np.random.RandomState(1).rand()
    found = [float(x) for x in out.stdout.split()]
    assert found[:2] == list(expected)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert found[2] == float(torch.rand(1, dtype=torch.float64))


def test_weights__put_back_what_was_taken():
    config = builder_config(SMALL, ["H", "O"], avg_num_neighbors=5.0, seed=1, scales=2.0)
    first, second = build_network(config), build_network({**config, "seed": 2})
    assert not torch.equal(readout_weights(first)[0], readout_weights(second)[0])
    put_weights(second, weights_of(first))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_put_weights__foreign_ones_refused():
    config = builder_config(SMALL, ["H", "O"], avg_num_neighbors=5.0)
    network = build_network(config)
    weights = weights_of(network)
    name = next(iter(weights))
    with pytest.raises(ValueError, match=r"shape \(1,\), expected"):
        put_weights(network, {**weights, name: torch.zeros(1)})
    with pytest.raises(ValueError, match="missing or foreign"):
        put_weights(network, {k: v for k, v in weights.items() if k != name})


def test_quiet_and_threads__put_back():
    logger = logging.getLogger("lightning.pytorch")
    level, n = logger.level, torch.get_num_threads()
    with quiet(), threads(1):
        assert logger.level == logging.ERROR
        assert torch.get_num_threads() == 1
    assert (logger.level, torch.get_num_threads()) == (level, n)


def test_quiet__threads_leave_in_any_order():
    logger = logging.getLogger("lightning.pytorch")
    level, filters = logger.level, list(warnings.filters)
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logger.level == logging.ERROR
    second.__exit__(None, None, None)
    assert logger.level == level
    assert list(warnings.filters) == filters


def test_build_network__threads_do_not_disturb_each_other():
    seeds = [1, 2, 3] * 4

    def build(seed):
        config = builder_config(SMALL, ["H", "O"], avg_num_neighbors=5.0, seed=seed)
        return weights_of(build_network(config))

    alone = {seed: build(seed) for seed in set(seeds)}
    with ThreadPoolExecutor(6) as pool:
        for seed, found in zip(seeds, pool.map(build, seeds)):
            for name, value in alone[seed].items():
                assert found[name].dtype == value.dtype, name
                assert torch.equal(found[name], value), name
