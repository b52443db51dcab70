"""The script that builds GPAW, and what importing the room costs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpaw" / "install.sh"


def run(tmp_path, *, user, required=False):
    """Run the script as this user on a machine without the packages, for a version nobody has."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (
        ("id", f"echo {user}"),
        ("dpkg-query", "exit 1"),
        ("apt-get", f'echo apt-get "$@" >> {tmp_path / "calls"}; exit 1'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    return subprocess.run(
        ["sh", str(SCRIPT), sys.executable],
        env={
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "MOFAL_GPAW_VERSION": "0.0.0",
            "MOFAL_GPAW_REQUIRED": "1" if required else "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_install__not_root_and_packages_missing(tmp_path):
    done = run(tmp_path, user=1000)
    assert done.returncode == 0
    assert "apt-get install g++ libxc-dev" in done.stdout
    assert "works without it" in done.stdout
    assert not (tmp_path / "calls").exists()


def test_install__required(tmp_path):
    assert run(tmp_path, user=1000, required=True).returncode == 1


def test_install__root_whose_apt_fails(tmp_path):
    done = run(tmp_path, user=0)
    assert done.returncode == 0
    assert "failed" in done.stdout
    calls = (tmp_path / "calls").read_text()
    assert "DPkg::Lock::Timeout=300" in calls
    assert "libscalapack-openmpi-dev" in calls


def test_install__no_python_named():
    done = subprocess.run(["sh", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "which Python" in done.stderr


@pytest.mark.gpaw
def test_install__second_time_is_instant(gpaw):
    start = time.perf_counter()
    done = subprocess.run(["sh", str(SCRIPT), sys.executable], capture_output=True, text=True)
    if "built and verified" not in done.stdout:
        pytest.skip("GPAW was not built by this script")
    assert time.perf_counter() - start < 5


def test_import__nothing_heavy():
    code = (
        "import sys, mofal.reference\n"
        "assert 'numpy' not in sys.modules\n"
        "from mofal.reference import LabelCache, gather, get_reference, noise_floor\n"
        "import mofal.reference.gpaw, mofal.reference.xtb, mofal.reference.doctor\n"
        "heavy = {'torch', 'nequip', 'distributed', 'gpaw', 'tblite', 'matplotlib', 'xarray'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
