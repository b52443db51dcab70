"""The script that builds GPAW, and what importing the room costs."""

import os
import resource
import subprocess
import sys
from importlib.util import find_spec
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
    stamps = list((Path(sys.prefix) / "share" / "mofal").glob("gpaw-*"))
    if not stamps:
        pytest.skip("GPAW was not built by this script")
    library = Path(find_spec("_gpaw").origin)
    before = (library.stat().st_mtime_ns, [f.stat().st_mtime_ns for f in stamps])
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(["sh", str(SCRIPT), sys.executable], capture_output=True, text=True)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "built and verified" in done.stdout
    assert "compiling" not in done.stdout
    assert "installing" not in done.stdout
    assert (library.stat().st_mtime_ns, [f.stat().st_mtime_ns for f in stamps]) == before
    # CPU time: a compilation takes a minute of it, however busy the machine is.
    assert end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime < 5


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
