"""What is known of a campaign's work before it is done."""

from __future__ import annotations

import pytest

from mofal.campaign.driver import Campaign
from mofal.campaign.estimate import known_lengths, seconds_left, unfit_cores, work_left
from mofal.commands.run import describe_run
from mofal.schedule import EventLog

POOLS = {
    "dft": {"kinds": ["label"], "partition": "batch", "mpi_ranks": 4, "workers": 5},
    "cpu": {"partition": "batch", "workers": 2},
}


def _campaign(tmp_path, *, reference="gfn1-xtb", **schedule):
    content = {
        "name": "plan",
        "seed": 1,
        "systems": {"defective": {"build": "S_ld", "cell": "primitive"}},
        "seed_data": {"clusters": {"per_system": 20}},
        "cycles": 2,
        "reference": {"name": reference},
        "exploration": {"walks": 6},
        "selection": {"clusters": 10},
        "schedule": {"backend": "slurm", "interface": "lo", "pools": POOLS, **schedule},
    }
    return Campaign(content, directory=tmp_path / "campaign")


def test_work_left__counts_what_the_file_says(tmp_path):
    work = {item.kind: item for item in work_left(_campaign(tmp_path).site)}
    assert work["label"].number == 20 + 2 * 10
    assert work["walk"].number == 2 * 6
    assert work["train"].number == 3
    assert work["walk"].seconds is None
    assert not (tmp_path / "campaign").exists()


def test_known_lengths__what_was_done_counts_more_than_what_was_expected(tmp_path):
    site = _campaign(tmp_path, lengths={"label": "2h", "walk": "10m"}).site
    assert known_lengths(site) == {"label": 7200, "walk": 600}
    log = EventLog(site.root)
    for seconds in (100.0, 300.0):
        log.write("end", kind="label", key=str(seconds), status="done", wall_time=seconds)
    log.write("end", kind="label", key="c", status="failed", wall_time=9000.0)
    log.close()
    assert known_lengths(site) == {"label": 200.0, "walk": 600}


def test_seconds_left__one_kind_after_the_other(tmp_path):
    kinds = ("sample", "train", "density", "walk", "select", "propose")
    site = _campaign(tmp_path, lengths={"label": 100, **dict.fromkeys(kinds, 10)}).site
    work = {item.kind: item.number for item in work_left(site)}
    assert set(work) == {"label", *kinds}
    # 40 labels on 5 workers, 12 walks on 2, everything else one by one.
    single = sum(work[kind] for kind in kinds if kind != "walk")
    assert seconds_left(site) == pytest.approx(40 * 100 / 5 + 12 * 10 / 2 + 10 * single)
    assert seconds_left(_campaign(tmp_path, lengths={"label": 100}).site) is None


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("gpaw:lcao", "uses 1 MPI ranks x 1 threads, a worker of pool dft has 4 x 1"),
        ("gpaw:lcao?ranks=8", "uses 8 MPI ranks x 1 threads, a worker of pool dft has 4 x 1"),
        ("gpaw:lcao?ranks=4", ""),
        ("gfn1-xtb", ""),
    ],
)
def test_unfit_cores__ranks_of_reference_and_pool(tmp_path, reference, words):
    site = _campaign(tmp_path, reference=reference).site
    warning = unfit_cores(site)
    assert words in warning
    assert bool(warning) == bool(words)


def test_describe_run__warns_and_estimates(tmp_path):
    text = describe_run(_campaign(tmp_path, reference="gpaw:lcao", lengths={"label": "1h"}))
    assert "warning: reference gpaw:lcao uses 1 MPI ranks" in text
    assert "40 x label, 60 min each" in text
    assert "and what density, propose, sample, select, train, walk takes" in text
    assert not (tmp_path / "campaign").exists()
