"""Many cheap labels on workers that are killed at random: none lost, none paid for twice."""

import contextlib
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
KILLS = 4
QUIET_S = 60.0
ROUNDS = 4


def _label(structure, spec, directory):
    return label_one(structure, spec, directory=directory).structure_id


class Bookkeeper:
    """What is durable and what was calculated, and how things stood when workers were killed."""

    def __init__(self, cache, counts):
        self.cache, self.counts = cache, counts
        self.at_kill = []

    def durable(self):
        return {a.structure_id for a in self.cache.records()}

    def calculated(self):
        return Counter(f.name.split("-")[0] for f in self.counts.iterdir())

    def n_durable(self):
        return sum(1 for _ in self.cache.path.glob("*/*.npz"))

    def kill(self, pid):
        # In this order: whatever is durable has been counted.
        durable = self.durable()
        self.at_kill.append((durable, self.calculated()))
        with contextlib.suppress(ProcessLookupError):  # one that is being replaced
            os.kill(pid, signal.SIGKILL)


def work(book, structures, spec, moments, dice):
    """One pool on all that is not durable yet; ends when all is, or after a quiet time."""
    from distributed import Client, LocalCluster

    with (
        warnings.catch_warnings(),
        LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        warnings.simplefilter("ignore")
        done = book.durable()
        ids = structures["structure_id"].values.tolist()
        futures = [
            client.submit(
                _label, select(structures, i), spec, book.cache.path, retries=20, pure=False
            )
            for i in range(N)
            if ids[i] not in done
        ]
        before, last = len(done), time.monotonic()
        while time.monotonic() - last < QUIET_S:
            now = book.n_durable()
            if now > before:
                before, last = now, time.monotonic()
            if moments and now >= moments[0]:
                moments.pop(0)
                book.kill(dice.choice([w.pid for w in cluster.workers.values() if w.pid]))
            if now >= N:
                return
            time.sleep(0.02)
        # Dask lost something: said here, because a test that goes on all the same hides it.
        print("quiet:", Counter(f.status for f in futures), client.scheduler_info()["workers"])


def test_label_one__two_hundred_labels_with_workers_killed_at_random(faulty, tmp_path):
    counts = tmp_path / "counts"
    counts.mkdir()
    spec = f"{faulty}?count_in={counts}&seconds=0.05"
    rng = np.random.default_rng(0)
    water = np.array([[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    structures = from_atoms(
        [Atoms("OH2", water + 0.05 * rng.normal(size=(3, 3))) for _ in range(N)]
    )
    cache = LabelCache(tmp_path / "labels")
    dice = random.Random(1)
    # The first kill hits a pool that has just begun; the later ones hit workers that start anew.
    moments = [3, *sorted(dice.sample(range(20, N - 40), KILLS - 1))]
    book = Bookkeeper(cache, counts)
    rounds = 0
    # A pool that has gone quiet is started again on what is not durable, as a user would do it.
    while len(book.durable()) < N:
        assert rounds < ROUNDS, "labels were lost again and again"
        work(book, structures, spec, moments, dice)
        rounds += 1
    assert len(book.at_kill) == KILLS
    times = book.calculated()
    assert len(times) == N
    # What was durable when a worker died was never computed again.
    for durable, before in book.at_kill:
        assert durable
        assert all(times[s] == before[s] for s in durable)
    # Each kill costs at most the one label that its worker had in hand; a new pool one per worker.
    assert sum(times.values()) <= N + KILLS + 3 * (rounds - 1)
    labels = gather(structures, cache, level_hash=get_reference(spec).level_hash)
    assert set(labels.status.values.tolist()) == {"converged"}
    assert len(list(cache.records())) == N
