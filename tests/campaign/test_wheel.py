"""An installed mofal: a wheel beside the repository runs every command of the README elsewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.campaign.conftest import SMALL

REPOSITORY = Path(__file__).resolve().parents[2]

#: Commands one after the other in one process, which imports everything once.
IN_TURN = """
import json, sys
import mofal
from mofal.cli import main
print(mofal.__file__)
for argv in json.loads(sys.argv[1]):
    try:
        code = main(argv)
    except SystemExit as ended:  # --help
        code = ended.code
    if code:
        sys.exit(f"mofal {' '.join(argv)} ended with {code}")
"""


def readme_commands() -> list[list[str]]:
    """Every `mofal ...` that the README tells one to type."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(mofal [a-z][^`]*)`", text)
    return [shlex.split(line) for line in lines if line.startswith("mofal ")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "-w", str(place)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    (found,) = place.glob("mofal-*.whl")
    return found


class Installed:
    """A wheel unpacked beside the repository, and a directory to work in."""

    def __init__(self, wheel: Path, place: Path) -> None:
        self.packages = place / "packages"
        self.work = place / "work"
        self.work.mkdir()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        command += ["--disable-pip-version-check", "--target", str(self.packages), str(wheel)]
        subprocess.run(command, check=True, capture_output=True)
        self.environment = {**os.environ, "PYTHONPATH": str(self.packages), "OMP_NUM_THREADS": "1"}
        self.script = str(self.packages / "bin" / "mofal")

    def run(self, *argv: str) -> str:
        """Output of a command that must end well."""
        return self._run(self.script, *argv)

    def run_in_turn(self, *commands: list[str]) -> str:
        """Where mofal lies, and the output of commands that must all end well."""
        return self._run(sys.executable, "-c", IN_TURN, json.dumps(commands))

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("beside"))


@pytest.mark.slow
def test_wheel__holds_all_files_of_the_package(wheel: Path) -> None:
    files = [
        p.relative_to(REPOSITORY).as_posix()
        for p in (REPOSITORY / "mofal").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc"
    ]
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert not set(files) - inside
    assert {"mofal/examples/demo.yaml", "mofal/examples/minimal.yaml"} <= inside


@pytest.mark.slow
def test_wheel__readme_commands_run_from_another_directory(
    installed: Installed, finished: Path
) -> None:
    # What the README shows, in the smallest form of its kind: a campaign, a molecule, few frames.
    assert "mofal init" in installed.run("--help")
    installed.run("build", "S_ld", "--cell", "primitive", "-o", "my.cif")
    (installed.work / "x.extxyz").write_text(
        "2\nProperties=species:S:1:pos:R:3\nH 0 0 0\nH 0 0 .74\n"
    )
    shutil.copytree(finished, installed.work / "my-first")
    (installed.work / "small.yaml").write_text(yaml.safe_dump(SMALL))
    instead = {
        "run campaign.yaml": ["run", "small.yaml", "--directory", "my-first"],  # finds it finished
        "run campaign.yaml --dry-run": ["run", "campaign.yaml", "--dry-run", "--directory", "new"],
        "status my-first --watch": ["status", "my-first", "--watch"],  # ends with the campaign
        "label x.extxyz --reference gpaw:lcao": ["label", "x.extxyz", "--workers", "1"],
        "match S_ld --frames 3": ["match", "--help"],
        "watch run.lammpstrj --potential my-first": ["watch", "--help"],
        "hold S_ld --potential my-first": ["hold", "--help"],
        "mechanics S_ld --cell primitive --potential my-first": ["mechanics", "--help"],
        "mechanics my.cif --reference gfn1-xtb": ["mechanics", "--help"],
        "noise x.extxyz --reference gpaw:lcao": ["noise", "--help"],
    }
    commands = readme_commands()
    assert len(commands) >= 10
    said = installed.run_in_turn(
        *(instead.get(" ".join(argv), argv) for _, *argv in commands),
        *(
            ["init", f"{example}.yaml", "--example", example]
            for example in ("realistic", "slurm", "demo", "dft")
        ),
        ["run", "demo.yaml", "--dry-run"],
    )
    assert Path(said.splitlines()[0]).is_relative_to(installed.packages)
    assert (installed.work / "reo.cif").is_file()
    assert (installed.work / "my-first" / "report" / "report.html").is_file()
    assert (installed.work / "uio66.nequip.zip").is_file()


@pytest.mark.slow
def test_wheel__demo_begins(installed: Installed) -> None:
    demo = subprocess.Popen(
        [installed.script, "demo", "--workers", "1"],
        cwd=installed.work,
        env=installed.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert demo.stdout is not None
        said = demo.stdout.readline() + demo.stdout.readline()  # read, checked, about to start
        demo.send_signal(signal.SIGINT)
        said += demo.communicate(timeout=200)[0]
    finally:
        demo.kill()
    assert "a missing linker" in said
    assert "directory demo" in said
    assert demo.returncode == 130, said
    assert "Traceback" not in said
