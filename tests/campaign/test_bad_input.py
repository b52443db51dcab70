"""Files that nobody means: one line, status 1, at once, whatever they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mofal.campaign.directory import FACTS
from mofal.campaign.driver import Campaign
from mofal.campaign.prepare import examine, settle
from mofal.cli import main
from mofal.commands.run import describe_run
from mofal.data.documents import dump_yaml, parse_json, parse_yaml
from mofal.errors import CampaignError, ConfigError, MofalError, StructureError
from mofal.reference import get_reference
from tests.campaign.conftest import BASE, in_time


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must refuse."""
    with in_time():
        status = main(argv)
    out, err = capsys.readouterr()
    assert status == 1, out + err
    assert err.startswith("mofal: ")
    assert len(err.strip().splitlines()) == 1, err
    assert len(err) < 1000
    return err


# ---------------------------------------------------------------------------------- campaign files
def edited(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


def list_bomb() -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    return "\n".join(lines) + "\n" + edited("name: a", "name: *a11")


def merge_bomb() -> str:
    lines = ["a0: &a0 {k0: 1}"]
    lines += [
        f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}], k{k}: 1}}" for k in range(1, 9)
    ]
    return "\n".join(lines) + "\n" + BASE


FILES = {
    "duplicate-key": (BASE + "seed: 2\n", "line 9: seed stands twice (first in line 2)"),
    "duplicate-key-inside": (edited("frames: 2", "frames: 2, frames: 3"), "line 6: frames stands"),
    "seed-yes": (edited("seed: 1", "seed: yes"), "line 2: yes is true or false to some"),
    "seed-true": (edited("seed: 1", "seed: true"), "line 2: seed is True"),
    "seed-text": (edited("seed: 1", 'seed: "1"'), "line 2: seed is '1'"),
    "seed-float": (edited("seed: 1", "seed: 1.0"), "line 2: seed is 1.0"),
    "seed-octal": (edited("seed: 1", "seed: 010"), 'write 10, or "010"'),
    "seed-minus-octal": (edited("seed: 1", "seed: -010"), 'write -10, or "-010"'),
    "seed-hexadecimal": (edited("seed: 1", "seed: 0x1F"), "no decimal number"),
    "seed-grouped": (edited("seed: 1", "seed: 1_000"), "no decimal number"),
    "seed-sexagesimal": (edited("seed: 1", "seed: 1:30"), "line 2: seed is '1:30'"),
    "seed-date": (edited("seed: 1", "seed: 2024-13-45"), "line 2: seed is '2024-13-45'"),
    "seed-digits": (edited("seed: 1", f"seed: {'9' * 5000}"), "has 5000 digits"),
    "seed-float-large": (edited("seed: 1", "seed: 1e999"), "too large"),
    "cycles-true": (edited("cycles: 1", "cycles: true"), "line 7: cycles is True"),
    "cycles-1e9": (edited("cycles: 1", "cycles: 1000000000"), "less than or equal to 10000"),
    "frames-1e9": (edited("frames: 2", "frames: 1000000000"), "less than or equal to"),
    "force-yes": (edited("A: 100", "A: yes"), "line 8: yes is true or false"),
    "force-on": (edited("A: 100", "A: On"), "line 8: On is true or false"),
    "force-true": (edited("A: 100", "A: true"), "max_force_eV_per_A is True"),
    "force-nan": (edited("A: 100", "A: .nan"), ".nan is no number"),
    "force-inf": (edited("A: 100", "A: -.inf"), "-.inf is no number"),
    "force-word": (edited("A: 100", "A: nan"), "max_force_eV_per_A is 'nan'"),
    "control-word": (BASE + 'control: "yes"\n', "line 9: control is 'yes'"),
    "control-number": (BASE + "control: 1\n", "line 9: control is 1"),
    "strain": (
        edited("frames: 2", "frames: 2, volume_strain: [0.05, -0.03]"),
        "expected the lower end first: [-0.03, 0.05]",
    ),
    "option-nan": (
        edited("gfn1-xtb", '"ase:ase.calculators.emt:EMT?seconds=NaN"'),
        "seconds: NaN is no number",
    ),
    "option-inf": (edited("gfn1-xtb", '"gfn1-xtb?accuracy=-Infinity"'), "no number"),
    "option-large": (edited("gfn1-xtb", '"gfn1-xtb?accuracy=1e999"'), "too large"),
    "option-digits": (edited("gfn1-xtb", f'"gfn1-xtb?accuracy={"9" * 5000}"'), "5000 digits"),
    "option-deep": (edited("gfn1-xtb", f'"gfn1-xtb?accuracy={"[" * 99999}"'), "too many levels"),
    "option-twice": (edited("gfn1-xtb", "\"ase:a:B?x={'a':1}\"").replace("'", '\\"'), "a"),
    "deep-list": (edited("name: a", f"name: {'[' * 100_000}"), "line 1: more than 20 levels"),
    "deep-mapping": (edited("name: a", f"name: {'{a: ' * 50_000}"), "line 1: more than 20 levels"),
    "deep-block": ("- " * 50_000 + "\n" + BASE, "more than 20 levels"),
    "deep-keys": ("? " * 50_000 + "\n" + BASE, "a key is a word"),
    "alias-bomb-list": (list_bomb(), "aliases repeat too much"),
    "alias-bomb-merge": (merge_bomb(), "aliases repeat too much"),
    "alias-of-itself": (edited("name: a", "name: &a [*a]"), "line 1: *a stands inside itself"),
    "alias-of-nothing": (edited("name: a", "name: *b"), "line 1: *b is not given before"),
    "tag": (edited("name: a", "name: !!python/object/apply:os.getcwd []"), "line 1: the tag"),
    "two-documents": (BASE + "---\n" + BASE, "line 9: a second document"),
    "large": (BASE + "#" * 300_000, "at most 262144"),
    "control-character": (edited("name: a", "name: \x07"), "line 1: special characters"),
    "file-name": (edited("build: S_pr, cell: primitive", 'file: "a\\0b"'), "the name of a file"),
    "walltime-digits": (
        BASE + f"schedule: {{pools: {{a: {{walltime: {'9' * 4000}h}}}}}}\n",
        "",
    ),
    "memory-digits": (BASE + f"schedule: {{pools: {{a: {{memory: {'9' * 4000}GB}}}}}}\n", ""),
    "linger-word": (BASE + "schedule: {linger: nan}\n", "linger is 'nan'"),
    "workers-true": (BASE + "schedule: {workers: true}\n", "workers is True"),
    "workers-1e9": (BASE + "schedule: {workers: 1000000000}\n", "less than or equal to"),
    "features-1e9": (
        BASE + "potential: {architecture: {r_max: 4, n_layers: 2, n_features: 1000000000}}\n",
        "less than or equal to",
    ),
    "repeat": (edited("cell: primitive", "repeat: [9999, 9999, 9999]"), "atoms, more than"),
}


@pytest.mark.parametrize("name", FILES)
def test_campaign_file__one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = FILES[name]
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    said = refused(["run", str(file), "--dry-run", "--directory", str(tmp_path / "x")], capsys)
    assert message in said
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_parse_yaml__what_is_meant() -> None:
    text = (
        "base: &base {threads: 2, kinds: [label]}\n"
        "gpu: {<<: *base, threads: 4}\n"
        "no: [1e-5, +3, -0.5, ~, true, False, 30:00, 2024-01-02, N, y, 'yes', '010', |-\n  a]\n"
    )
    content = parse_yaml(text.replace(", |-\n  a", ""), where="x").content
    assert content["gpu"] == {"threads": 4, "kinds": ["label"]}
    assert content["no"] == [
        *(1e-5, 3, -0.5, None, True, False),
        *("30:00", "2024-01-02", "N", "y", "yes", "010"),
    ]


@pytest.mark.parametrize(
    "value",
    [
        *("1e5", "yes", "010", "0o17", "1_0", "1:30", "2024-01-01", "null", "5.", ".5", ".inf"),
        *("", "~", "a: b", "Å", "- x", "#", 1e-5, 1e22, 3, True, None, -0.25),
    ],
)
def test_dump_yaml__reads_back(value: Any) -> None:
    back = parse_yaml(dump_yaml({"k": [value]}), where="x").content["k"][0]
    assert back == value
    assert type(back) is type(value)
    if not isinstance(value, str) or value != "1e5":  # a float in YAML 1.2 only
        assert yaml.safe_load(dump_yaml({"k": value}))["k"] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "a stands twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": 1e999}', "too large"),
        ("9" * 5000, "5000 digits"),
        ("[" * 100_000, "too many levels"),
        ('{"a": \n 1,}', "line 2"),
    ],
)
def test_parse_json__refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_json(text, where="x.json")


# ---------------------------------------------------------------------------------- structures
HEADS = {
    "atoms": ("999999999999\n\nC 0 0 0\n", "999999999999 atoms"),
    "second": ("1\n\nC 0 0 0\n999999999999\n\nC 0 0 0\n", "structure 1"),
    "digits": ("9" * 5000 + "\n\nC 0 0 0\n", "digits or more atoms"),
    "columns": ("1\nProperties=species:S:1:pos:R:99999999999\nC 0 0 0\n", "99999999999 columns"),
    "brackets": ("1\nx=" + "{" * 100_000 + "\nC 0 0 0\n", "brackets"),
    "deep": ('1\nx="_JSON ' + "[" * 5000 + '"\nC 0 0 0\n', "recursion"),
    "nan": ("1\nProperties=species:S:1:pos:R:3\nC nan 0 0\n", "not a number"),
}


@pytest.mark.parametrize("name", HEADS)
def test_extended_xyz__one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = HEADS[name]
    for suffix in ("xyz", "extxyz"):
        file = tmp_path / f"x.{suffix}"
        file.write_text(text)
        assert message in refused(["blocks", str(file)], capsys)


def test_extended_xyz__energies_of_atoms_that_are_none(tmp_path: Path) -> None:
    from mofal.data.text import read

    file = tmp_path / "x.extxyz"
    for value in ('"[1]"', "3", '"{\\"H\\": NaN}"', '"{\\"H\\": true}"', "abc"):
        file.write_text(f"1\nisolated_atom_energies={value} energy=1\nH 0 0 0\n")
        with pytest.raises(StructureError, match="isolated_atom_energies"):
            read(file)


# ---------------------------------------------------------------------------------- the terminal
@pytest.mark.slow
def test_terminal__without_letters_beyond_ascii(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    (tmp_path / "c.yaml").write_text("# Å\n" + BASE, encoding="utf-8")

    def run(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "mofal", *argv],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
            check=False,
        )

    for argv in (
        ("--help",),
        ("build", "S_ld", "--cell", "primitive", "-o", "é.cif"),
        ("run", "c.yaml", "--dry-run"),
        ("init", "d.yaml"),
    ):
        done = run(*argv)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert b"Traceback" not in done.stderr
    assert b"2233.5 A3" in run("build", "S_ld", "--cell", "primitive").stdout


# ---------------------------------------------------------------------------------- code
def test_dry_run__imports_no_code_and_names_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "it-ran"
    ran = f"open({str(trace)!r}, 'w').write('x')\n"
    package = tmp_path / "foreign"
    package.mkdir()
    (package / "__init__.py").write_text(ran)
    (package / "inner.py").write_text(ran + "def Make(**options): pass\n")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ntouch {trace}\n")
    python.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    pool = {"prologue": ["module load it"], "python": str(python), "job_extra": ["--comment=it"]}
    content = {
        **yaml.safe_load(BASE),
        "reference": {"name": "ase:foreign.inner:Make?cmd=x"},
        "schedule": {"backend": "slurm", "interface": "lo", "pools": {"cpu": pool}},
    }
    text = describe_run(Campaign(content, directory=tmp_path / "c"))
    for words in (
        "factory foreign.inner.Make(cmd='x')",
        "shell module load it",
        f"command {python} -m mofal.schedule.job",
        "#SBATCH --comment=it",
    ):
        assert words in text
    other = {
        **content,
        "reference": {"name": f"gpaw:lcao?python={python}&launcher=it -n {{ranks}}"},
    }
    text = describe_run(Campaign(other, directory=tmp_path / "c"))
    assert f"command it -n {{ranks}}, before: {python} -m gpaw" in text
    for name, words in (("foreign.inner:Mak", "has no Mak"), ("foreign.outer:Make", "no module")):
        bad = {**content, "reference": {"name": f"ase:{name}"}}
        with pytest.raises(MofalError, match=words):
            describe_run(Campaign(bad, directory=tmp_path / "c"))
    assert not trace.exists()
    with pytest.raises(MofalError):  # the same file in earnest: then it is imported
        Campaign(content, directory=tmp_path / "c").site.reference().isolated_atom_energies(["H"])
    assert trace.exists()


def test_examine__level_that_a_name_meant_before(tmp_path: Path) -> None:
    """A preset has other parameters in a newer mofal: nothing is mixed, and the old level can be
    named and goes on."""
    content = {
        "name": "old",
        "seed": 1,
        "systems": {"defective": {"build": "S_ld", "cell": "primitive"}},
        "seed_data": {"perturbed": {"system": "defective", "frames": 2}},
        "cycles": 1,
        "reference": {"name": "gfn1-xtb"},
    }
    site = Campaign(content, directory=tmp_path / "c").site
    settle(site, examine(site))
    facts = json.loads((site.root / FACTS).read_text())
    facts["level_hash"] = get_reference("gfn1-xtb?accuracy=2").level_hash
    (site.root / FACTS).write_text(json.dumps(facts))
    with pytest.raises(CampaignError, match="began at level of theory"):
        examine(Campaign(content, directory=tmp_path / "c").site)
    content["reference"] = {"name": "gfn1-xtb?accuracy=2"}
    assert examine(Campaign(content, directory=tmp_path / "c").site) is None
    content["reference"] = {"name": "gfn1-xtb?accuracy=3"}
    with pytest.raises(CampaignError, match="holds another campaign"):
        examine(Campaign(content, directory=tmp_path / "c").site)
