"""`mofal bench supercell` at its smallest, on workers of its own and on a scheduler's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mofal.cli import main
from mofal.commands.bench import CELL, STAGES, supercell_of


@pytest.mark.parametrize("atoms", [1, 456, 3648, 29_184, 98_496, 1_000_000])
def test_supercell_of__comes_near(atoms: int) -> None:
    repeat = supercell_of(atoms)
    assert abs(CELL * np.prod(repeat) - atoms) <= max(CELL, 0.01 * atoms)
    assert max(repeat) <= 2 * min(repeat) + 1


@pytest.mark.slow
def test_bench__prints_a_table_of_every_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nequip")
    from distributed import Client, LocalCluster

    file = tmp_path / "table.json"
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0
        ) as pool,
        Client(pool),
    ):
        command = ["bench", "supercell", "--atoms", "456", "--clusters", "3"]
        assert main([*command, "--scheduler", pool.scheduler_address, "-o", str(file)]) == 0
        both = [*command, "--scheduler", pool.scheduler_address, "--workers", "2"]
        assert main(both) == 1
    out, err = capsys.readouterr()
    assert "its own are used" in err
    rows = json.loads(file.read_text())
    assert [row["stage"] for row in rows] == list(STAGES)
    assert rows[0]["atoms"] == CELL
    assert rows[1]["atoms"] < CELL
    for row in rows:
        assert row["seconds"] > 0
        assert row["atoms_per_s"] == pytest.approx(row["atoms"] / row["seconds"])
        assert 0.05 < row["GB"] < 100
        assert row["stage"] in out
