"""Many cheap labels on workers that are killed at random: none lost, none paid for twice."""

import os
import random
import signal
import time
import warnings
from collections import Counter

import numpy as np
import pytest
from ase import Atoms

from mofal.data import from_atoms, select
from mofal.reference import LabelCache, gather, get_reference, label_one

pytestmark = pytest.mark.slow

N = 200


def _label(structure, spec, directory):
    return label_one(structure, spec, directory=directory).structure_id


def test_label_one__two_hundred_labels_with_workers_killed_at_random(faulty, tmp_path):
    from distributed import Client, LocalCluster, as_completed

    counts = tmp_path / "counts"
    counts.mkdir()
    spec = f"{faulty}?count_in={counts}&seconds=0.05"
    rng = np.random.default_rng(0)
    water = np.array([[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    structures = from_atoms(
        [Atoms("OH2", water + 0.05 * rng.normal(size=(3, 3))) for _ in range(N)]
    )
    cache = LabelCache(tmp_path / "labels")
    level = get_reference(spec).level_hash
    dice = random.Random(1)
    durable_at_kill: list[set[str]] = []
    computed_at_kill: list[Counter] = []

    def computed():
        return Counter(f.name.split("-")[0] for f in counts.iterdir())

    with (
        warnings.catch_warnings(),
        LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        warnings.simplefilter("ignore")
        futures = [
            client.submit(
                _label, select(structures, i), spec, tmp_path / "labels", retries=20, pure=False
            )
            for i in range(N)
        ]
        kills, last = 0, time.monotonic()
        for _ in as_completed(futures):
            if kills < 4 and time.monotonic() - last > 0.7:
                durable_at_kill.append({a.structure_id for a in cache.records()})
                computed_at_kill.append(computed())
                victims = [w.pid for w in cluster.workers.values() if w.pid]
                os.kill(dice.choice(victims), signal.SIGKILL)
                kills, last = kills + 1, time.monotonic()
        assert {f.status for f in futures} == {"finished"}
    assert kills == 4
    times = computed()
    assert len(times) == N
    # What was durable when a worker died was never computed again.
    for durable, before in zip(durable_at_kill, computed_at_kill, strict=True):
        assert durable
        assert all(times[s] == before[s] for s in durable)
    # Each kill costs at most the one label that its worker had in hand.
    assert sum(times.values()) <= N + kills
    labels = gather(structures, cache, level_hash=level)
    assert set(labels.status.values.tolist()) == {"converged"}
    assert len(list(cache.records())) == N
