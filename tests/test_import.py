"""Importing mofal, and asking for help, costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign.conftest import BASE

HEAVY = ("torch", "nequip", "distributed", "xarray", "dask", "zarr", "sklearn", "gpaw", "tblite")

PROBE = """
import sys, time
t = time.process_time()
{body}
took = time.process_time() - t
print(took, *[m for m in {heavy!r} if m in sys.modules])
"""
BODIES = {
    "import": "import mofal",
    "help": """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    from mofal.cli import main
    main(["--help"])
""",
}


@pytest.mark.parametrize("what", BODIES)
def test_import__light_and_lazy(what: str) -> None:
    code = PROBE.format(body=BODIES[what], heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    took, *loaded = run.stdout.split()
    assert loaded == []
    assert float(took) < 0.5  # of the processor: the machine may be busy


def test_rooms_and_a_dry_run__import_no_heavy_package(tmp_path: Path) -> None:
    """A driver is started again after each kill: what its workers import is theirs to pay."""
    rooms = (
        "analysis campaign clusters data density dynamics frameworks mechanics potential reference "
        "schedule trajectories"
    )
    (tmp_path / "campaign.yaml").write_text(BASE)
    body = "\n".join(f"import mofal.{room}" for room in rooms.split())
    body += """
import contextlib, io
from mofal.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["run", "campaign.yaml", "--directory", "a", "--dry-run"]) == 0
"""
    code = PROBE.format(body=body, heavy=("torch", "nequip", "distributed", "gpaw", "tblite"))
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.split()[1:] == []
