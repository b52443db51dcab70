"""`mofal match`: tables that an independent comparison confirms, stop and resume, blueprints."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mofal.campaign.directory import Site
from mofal.campaign.loading import parse_config
from mofal.cli import main
from mofal.clusters.matched import complaints, weighted
from mofal.commands.match import short_names
from mofal.reference import get_reference
from tests.campaign.conftest import SMALL
from tests.campaign.services import (
    PAIRS,
    SPRINGS,
    calculated,
    durable,
    plugins,  # noqa: F401
    refuse,
    start,
    stop,
    wait_for,
)

PRIMITIVE = ["match", "S_ld", "--cell", "primitive"]


def match(place: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    status = main([*PRIMITIVE, "--directory", str(place), *argv])
    return status, json.loads((place / "match.json").read_text())


def find_in_parent(cluster: Any, parent: Any) -> np.ndarray | None:
    """Atom of the parent under each atom of a cluster, -1 for caps: by geometry alone.

    A cluster is its parent's atoms moved by one vector; which one is found by trying.
    """
    inverse = np.linalg.inv(parent.cell)
    zr = np.flatnonzero(cluster.numbers == 40)[0]
    for other in np.flatnonzero(parent.numbers == 40):
        moved = cluster.positions + parent.positions[other] - cluster.positions[zr]
        apart = (moved[:, None] - parent.positions[None]) @ inverse
        apart = (apart - np.round(apart)) @ parent.cell
        same = cluster.numbers[:, None] == parent.numbers[None]
        near = np.where(same, np.linalg.norm(apart, axis=2), np.inf)
        atom = np.where(near.min(axis=1) < 1e-6, near.argmin(axis=1), -1)
        if (atom < 0).sum() <= 0.2 * len(atom):
            return atom
    return None


def compared_by_hand(place: Path, level: str) -> dict[int, dict[str, float]]:
    """RMSE in meV/Å by number of atoms of the candidate, from the label records."""
    from mofal.reference import get_reference

    hash_ = get_reference(level).level_hash
    labels = [a for a in durable(place / "labels") if a.level_hash == hash_]
    parents = [a for a in labels if a.pbc.all()]
    differences: dict[int, list[np.ndarray]] = {}
    numbers: dict[int, np.ndarray] = {}
    for cluster in (a for a in labels if not a.pbc.any()):
        found = [(p, find_in_parent(cluster, p)) for p in parents]
        [(parent, atom)] = [(p, atom) for p, atom in found if atom is not None]
        real = atom >= 0
        assert (cluster.numbers[~real] == 1).all()
        size = len(atom)
        differences.setdefault(size, []).append(cluster.forces[real] - parent.forces[atom[real]])
        numbers[size] = cluster.numbers[real]
    rmse = {
        size: 1000 * np.sqrt((np.array(d) ** 2).mean(axis=(0, 2)))
        for size, d in differences.items()
    }
    return {
        size: {
            "all": float(np.sqrt((r**2).mean())),
            "Zr": float(np.sqrt((r[numbers[size] == 40] ** 2).mean())),
            "n_frames": len(differences[size]),
        }
        for size, r in rmse.items()
    }


def check(place: Path, level: str, *, frames: int) -> list[dict[str, Any]]:
    rows = json.loads((place / "match.json").read_text())[level]["rows"]
    by_hand = compared_by_hand(place, level)
    assert {r["n_atoms"] for r in rows} == set(by_hand)
    for row in rows:
        hand = by_hand[row["n_atoms"]]
        assert hand["n_frames"] == frames
        assert row["all"] == pytest.approx(hand["all"], rel=1e-6)
        if row["candidate"] == "shells=0":  # all of its Zr is core
            assert row["elements"]["Zr"] == pytest.approx(hand["Zr"], rel=1e-6)
    return list(rows)


@pytest.mark.slow
def test_match__tables_are_those_of_an_independent_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pair potential that ends at 3 Å: what is further from the cut feels nothing of it."""
    place = tmp_path / "match"
    _, found = match(place, "--reference", PAIRS, "--frames", "2", "--tolerance", "50")
    out = capsys.readouterr().out
    small, partial, large = check(place, PAIRS, frames=2)
    assert (small["candidate"], large["candidate"]) == ("shells=0", "shells=1")
    assert small["core"] > 50
    assert large["core"] < 1e-6
    assert large["larger_than_parent"]
    assert large["defect"] == pytest.approx(0, abs=1e-6)
    said = found[PAIRS]["verdict"]
    cheap = min((r for r in (partial, large) if r["core"] <= 50), key=lambda r: r["cost"])
    assert said["candidate"] in (partial["candidate"], large["candidate"])
    assert said["passed"] == (cheap["core"] <= 50)
    assert said["text"] in out
    # Pictures and atoms for a viewer.
    from ase.io import read

    stem = "match-ase-ase-calculators-lj-LennardJones-epsilon-0-2-sigma-1-0-rc-3-0"
    assert sorted(p.name for p in place.glob("*.png")) == [f"{stem}-atoms.png", f"{stem}.png"]
    atoms = read(place / f"{stem}.extxyz", ":")
    assert [len(a) for a in atoms] == [r["n_atoms"] for r in (small, partial, large)]
    rmse = atoms[0].arrays["rmse_meV_per_A"]
    real = np.isfinite(rmse)
    assert (~real).sum() == 10  # twelve carboxylates, two of them formates
    assert np.sqrt((rmse[real] ** 2).mean()) == pytest.approx(small["all"], rel=1e-5)
    # The same again: nothing is calculated twice.
    before = {p: p.stat().st_mtime_ns for p in (place / "labels").rglob("*.npz")}
    _, again = match(place, "--reference", PAIRS, "--frames", "2", "--tolerance", "50")
    assert "every label is there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in (place / "labels").rglob("*.npz")} == before
    assert [r["all"] for r in again[PAIRS]["rows"]] == [r["all"] for r in found[PAIRS]["rows"]]


@pytest.mark.slow
def test_match__quantum_mechanics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "match"
    noise = tmp_path / "noise.json"
    level = {"reference": "gfn1-xtb", "level_hash": get_reference("gfn1-xtb").level_hash}
    noise.write_text(json.dumps({**level, "shift": {"floor": 3.0}, "combined": {"floor": 25.0}}))
    argv = ["--frames", "1", "--shells", "0", "--noise", str(noise)]
    status, found = match(place, "--reference", "gfn1-xtb", *argv)
    [small] = check(place, "gfn1-xtb", frames=1)
    # Without a mantle the environment of the brick is not carried (paper, Table SI.3), but for
    # the formate, which is whole in it.
    assert status == 1
    assert small["core"] > 100
    assert small["defect"] < 0.5 * small["elements"]["C"]
    text = found["gfn1-xtb"]["verdict"]["text"]
    assert text.startswith("none closes within 100 meV/Å; the best is shells=0")
    assert "noise floor 25" in text
    assert "cost, s" in capsys.readouterr().out


@pytest.mark.slow
def test_match__killed_and_started_again(plugins: None, tmp_path: Path) -> None:  # noqa: F811
    counts, log, place = tmp_path / "counts", tmp_path / "log", tmp_path / "match"
    counts.mkdir()
    spec = f"{SPRINGS}?count_in={counts}&seconds=0.5"
    argv = [*PRIMITIVE, "--reference", spec, "--frames", "4", "--shells", "0"]
    argv += ["--directory", str(place), "--workers", "2"]
    process = start(argv, log)
    wait_for(lambda: len(list(place.glob("labels/*/*.npz"))) >= 2, process, log)
    done = {a.structure_id for a in durable(place / "labels")}
    before = calculated(counts)
    stop(process)
    assert main(argv) in (0, 1)
    times = calculated(counts)
    assert len(times) == 4 + 4
    assert all(times[s] == before[s] == 1 for s in done)
    assert sum(times.values()) <= 8 + 2  # what two workers had in hand
    assert [len(r) for r in (durable(place / "labels"),)] == [8]


@pytest.mark.slow
def test_match__parent_too_large_for_the_reference(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    level = "ase:faulty_calculators:FiniteOnly"
    place = tmp_path / "match"
    status, found = match(place, "--reference", level, "--frames", "1", "--tolerance", "30")
    out = capsys.readouterr().out
    assert "1 of 1 parents have no label" in out
    assert "out_of_memory" in out
    said = found[level]["verdict"]
    assert said["compared_with"] == "shells=1"
    assert "convergence, not agreement" in said["text"]
    # The largest is the measure, not a candidate.
    rows = {r["candidate"]: r for r in found[level]["rows"]}
    assert rows["shells=1"]["core"] is None
    # Where nothing passes it is the best that is known.
    assert (said["candidate"] != "shells=1") == said["passed"]
    assert status == (0 if said["passed"] else 1)


@pytest.mark.slow
def test_match__the_frames_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrapped frames of somebody's dynamics; the comparison by geometry alone is the judge."""
    from ase.io import read, write

    frames = perturbed(3)
    for atoms in frames:
        atoms.wrap()
    file, place = tmp_path / "md.extxyz", tmp_path / "match"
    write(file, frames)
    argv = ["match", str(file), "--reference", PAIRS, "--directory", str(place)]
    main([*argv, "--frames", "2", "--shells", "0"])
    assert "frames of" in capsys.readouterr().out
    check(place, PAIRS, frames=2)
    parents = [a for a in durable(place / "labels") if a.pbc.all()]
    for k in (0, 2):
        assert any(np.allclose(p.positions, frames[k].positions, atol=1e-7) for p in parents)
    # One frame as it is; and frames that are not of one system.
    write(tmp_path / "one.extxyz", frames[1])
    argv = ["match", str(tmp_path / "one.extxyz"), "--reference", PAIRS, "--shells", "0"]
    main([*argv, "--directory", str(tmp_path / "one"), "--frames", "0"])
    (parent,) = (a for a in durable(tmp_path / "one" / "labels") if a.pbc.all())
    np.testing.assert_allclose(parent.positions, read(tmp_path / "one.extxyz").positions)
    write(file, [frames[0], frames[1][:-1]])
    refuse(["match", str(file), "--reference", PAIRS], "structure 1: other atoms", capsys)


@pytest.mark.slow
def test_match__a_parent_that_fails_costs_its_frame_only(
    plugins: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ase.io import write

    frames = perturbed(3)
    file, place = tmp_path / "md.extxyz", tmp_path / "match"
    write(file, frames)
    where = sorted(float(a.positions[0, 0]) for a in frames)
    level = f"ase:faulty_calculators:FiniteOrLucky?below={(where[1] + where[2]) / 2}"
    argv = ["match", str(file), "--reference", level, "--directory", str(place), "--shells", "0"]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "1 of 3 parents have no label" in out
    assert "--retry-failed" in out
    said = json.loads((place / "match.json").read_text())[level]
    assert said["verdict"]["compared_with"] == "parent"
    assert said["rows"][0]["n_frames"] == 2
    labels = len(durable(place / "labels"))
    main([*argv, "--retry-failed"])
    assert len(durable(place / "labels")) == labels + 1


def perturbed(n: int) -> list[Any]:
    """Frames of the primitive cell of S_ld."""
    from mofal.data import to_atoms
    from mofal.dynamics import sample_harmonic
    from mofal.frameworks import build

    return to_atoms(sample_harmonic(build("S_ld", cell="primitive"), n=n, seed=5))


def test_short_names__tell_levels_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
    a, b = (str(tmp_path / name / "model") for name in ("a", "b"))
    assert short_names(["gfn1-xtb", a, b]) == ["gfn1-xtb", "a/model", "b/model"]
    assert short_names([a]) == ["model"]


def test_blueprints__wrong_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.json"
    content = {**SMALL, "selection": {"blueprints": str(table)}}
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(content))
    for text, message in (
        ('{"a": 1}', "holds no table `blueprints`"),
        ('{"blueprints": {"k": {"shells": 9}}}', "shells of kind k is 9"),
        ("[]", "holds no table"),
        ('{"blueprints": {"k": {"shells": true}}}', "shells of kind k is True"),
        (
            '{"blueprints": {"k": {"shells": 1, "tolerance_meV_per_A": "x"}}}',
            "of kind k are no table of numbers",
        ),
        (
            '{"blueprints": {"k": {"shells": 1, "rmse_meV_per_A": [1]}}}',
            "of kind k are no table of numbers",
        ),
        (
            '{"blueprints": {"k": {"shells": 1, "distance_A": null}}}',
            "of kind k are no table of numbers",
        ),
        ("{", "expected JSON; expected the blueprints.json of mofal match"),
        ('{"blueprints": {}, "blueprints": {}}', "blueprints stands twice"),
    ):
        table.write_text(text)
        refuse(["run", str(file), "--dry-run"], message, capsys)
    table.write_text('{"blueprints": {"k": {"shells": 1, "passed": false, "formula": "Zr6"}}}')
    assert complaints(table) == [
        "no cluster around Zr6 was within the tolerance of mofal match; the best, shells=1, is used"
    ]


def test_weighted__as_forces_matched_by_distance(tmp_path: Path) -> None:
    """The weights of a campaign's clusters are 1 / (1 + (RMSE / 100)²) at each distance."""
    from scipy.spatial.distance import cdist

    from mofal.clusters import cut, random_cores
    from mofal.frameworks import build, find_blocks

    ds = build("S_ld", cell="primitive")
    blocks = {"S_ld": find_blocks(ds)}
    node = int(np.flatnonzero(blocks["S_ld"]["role"].values == "node")[0])
    kind = str(blocks["S_ld"]["kind_hash"].values[node])
    table = tmp_path / "table.json"
    entry = {"shells": 1, "distance_A": [0.0, 10.0], "rmse_meV_per_A": [1000.0, 0.0]}
    table.write_text(json.dumps({"blueprints": {kind: entry}}))
    site = Site(
        tmp_path,
        parse_config(
            {
                **SMALL,
                "selection": {"blueprints": str(table)},
                "potential": {**SMALL["potential"], "regions": "weighted"},
            }
        ),
    )
    cores = random_cores(ds, blocks, n=7, seed=0)
    cut_out, _ = cut(ds, blocks, cores)
    assert weighted(cut_out, blocks, None) is cut_out
    clusters = weighted(cut_out, blocks, site.config.weights)
    begin = np.concatenate([[0], np.cumsum(clusters["n_atoms"].values)])
    found = 0
    for k, (a, b) in enumerate(pairwise(begin)):
        weight, region = (clusters[v].values[a:b] for v in ("force_weight", "region"))
        if int(clusters["parent_block"].values[k]) != node:
            assert np.isnan(weight).all()
            continue
        found += 1
        x = clusters["positions"].values[a:b]
        away = cdist(x, x[region == 2]).min(axis=1)
        rmse = np.clip(1000 - 100 * away, 0, 1000)
        np.testing.assert_allclose(weight[region < 2], 1 / (1 + (rmse / 100) ** 2)[region < 2])
        assert (weight[region == 2] == 0).all()
    assert found == 1


@pytest.mark.slow
def test_match__blueprints_are_what_a_campaign_cuts(tmp_path: Path) -> None:
    """Force matching that accepts the bare brick makes `mofal run` cut the bare brick."""
    place = tmp_path / "match"
    bare = ["--shells", "0", "--tolerance", "100000", "--frames", "1"]
    status, _ = match(place, "--reference", PAIRS, *bare)
    assert status == 0
    table = json.loads((place / "blueprints.json").read_text())["blueprints"]
    [brick] = table.values()
    assert brick["shells"] == 0
    assert brick["passed"]
    # Another kind of core joins the table and leaves what was found before.
    linker = ["--core", "C6H4", "--shells", "1", "--tolerance", "100000", "--frames", "1"]
    assert match(place, "--reference", PAIRS, *linker)[0] == 0
    table = json.loads((place / "blueprints.json").read_text())["blueprints"]
    assert {(e["formula"], e["shells"]) for e in table.values()} == {
        ("C6H4", 1),
        (brick["formula"], 0),
    }
    with_table = cut_in_a_campaign(tmp_path / "one", place / "blueprints.json")
    without = cut_in_a_campaign(tmp_path / "other", None)
    # The defective brick bare (66 atoms with its caps), linkers and whole bricks as before.
    assert len(with_table) == len(without) == 3
    assert (66, 0) not in without
    assert (66, 0) in with_table


def test_match__blueprints_cut_the_seed_data_too(tmp_path: Path) -> None:
    """Random clusters of the seed data have the shells that force matching found for their kind."""
    from mofal import Campaign
    from mofal.campaign.prepare import examine, settle
    from mofal.campaign.steps.sample import seed_structures
    from tests.campaign.conftest import SMALL

    table = tmp_path / "blueprints.json"
    table.write_text('{"blueprints": {}}')
    content = {
        **SMALL,
        "seed_data": {"clusters": {"per_system": 6}},
        "selection": {"blueprints": str(table)},
    }
    site = Campaign(content, directory=tmp_path / "campaign").site
    findings = examine(site)
    assert findings is not None
    settle(site, findings)
    whole = seed_structures(site)
    of_kind = {str(k): 0 for ds in findings.systems.values() for k in ds[1]["kind_hash"].values}
    table.write_text(json.dumps({"blueprints": {k: {"shells": 0} for k in of_kind}}))
    bare = seed_structures(site)
    assert (whole["region"].values == 1).any()
    assert not (bare["region"].values == 1).any()
    assert bare.sizes["structure"] == whole.sizes["structure"]


def cut_in_a_campaign(directory: Path, blueprints: Path | None) -> list[tuple[int, int]]:
    """Atoms, and bricks in the mantle, of what a campaign's selection cuts, on made-up features."""
    from mofal import Campaign
    from mofal.campaign import paths
    from mofal.campaign.prepare import examine, settle
    from mofal.campaign.steps.select import select_clusters
    from mofal.data import write_group
    from mofal.density import PerElementDensity
    from mofal.dynamics import sample_harmonic
    from tests.campaign.conftest import SMALL

    selection = {"clusters": 3}
    if blueprints is not None:
        selection["blueprints"] = str(blueprints)  # type: ignore[assignment]
    site = Campaign({**SMALL, "selection": selection}, directory=directory).site
    findings = examine(site)
    assert findings is not None
    settle(site, findings)
    frames = sample_harmonic(site.structure("defective"), n=2, seed=1)
    frames["system"] = ("structure", np.array(["defective"] * 2, np.dtypes.StringDType()))
    rng = np.random.default_rng(0)
    features = frames.assign(
        features=(("atom", "feature"), rng.normal(size=(frames.sizes["atom"], 4)).astype("f4"))
    ).assign_attrs(model_hash="made up")
    fitted = PerElementDensity(n_components=1, random_state=0)
    fitted.fit(features["features"].values.astype(float), features["numbers"].values)
    system = "defective"
    write_group(frames, site.path(paths.place(1, system, "samples.zarr")))
    write_group(features, site.path(paths.place(1, system, "features.zarr")), kind="features")
    fitted.save(site.path(paths.place(1, "density.zarr")))
    select_clusters(str(site.root), site.identity, cycle=1, system=system)
    clusters = site.group(paths.place(1, system, "clusters.zarr")).load()
    sizes = clusters["n_atoms"].values
    first = np.concatenate([[0], np.cumsum(sizes)])
    of_mantle = (clusters["region"].values == 1) & (clusters["numbers"].values == 40)
    bricks = [int(of_mantle[a:b].sum() // 6) for a, b in pairwise(first)]
    return list(zip(sizes.tolist(), bricks))


WRONG: list[tuple[list[str], str]] = [
    (["--frames", "-1"], "--frames is -1"),
    (["--rule", "carboxilate"], "--rule is carboxilate; known: "),
    (["--unpaired", "Cu"], "--unpaired is Cu, expected e.g. Cu=1"),
    (["--cache", "nowhere"], "--cache nowhere is no directory"),
    (["--cache", ":rw"], "--cache :rw is no directory"),
    (["--shells", "-1"], "--shells is -1, expected numbers from 0 to 4"),
    (["--shells", "0", "9"], "--shells is 0 9"),
    (["--tolerance", "0"], "--tolerance is 0.0"),
    (["--tolerance", "nan"], "--tolerance is nan"),
    (["--core", "Zr6"], "--core is Zr6, but the blocks are C12H6O32Zr6, C6H4"),
    (["--reference", "gfn9"], "no reference is called 'gfn9'"),
    (["--potential", "nowhere"], "nowhere"),
    (["--noise", "nowhere.json"], "nowhere.json does not exist"),
    (["--workers", "0"], "--workers is 0"),
    (["--seed", "-1"], "--seed is -1"),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_match__mistakes(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "match"
    refuse([*PRIMITIVE, "--directory", str(place), *argv], message, capsys)
    assert not place.exists()  # nothing was paid for


def test_match__mistakes_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("{}")
    refuse([*PRIMITIVE, "--directory", str(file)], "is a file", capsys)
    refuse([*PRIMITIVE, "--noise", str(file)], "holds no noise floor", capsys)
    level = {"reference": "gpaw:lcao", "level_hash": "0" * 20}
    file.write_text(json.dumps({**level, "combined": {"floor": 5.0}}))
    refuse([*PRIMITIVE, "--noise", str(file)], "measured with gpaw:lcao, another level", capsys)
    refuse(["match", str(tmp_path / "no.cif")], "no.cif does not exist", capsys)
    refuse(["match", "S_xx"], "unknown system 'S_xx'", capsys)


def test_match__potential_without_the_elements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mofal.potential import create

    create("tiny", ["H", "C", "O"], seed=0).save(tmp_path / "model")
    argv = ["--potential", str(tmp_path / "model"), "--directory", str(tmp_path / "match")]
    refuse([*PRIMITIVE, *argv], "knows C, H, O, not Zr", capsys)
