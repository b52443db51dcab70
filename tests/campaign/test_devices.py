"""One device per stage or pool: asked for where it should be, refused where it cannot be."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mofal
from mofal.campaign import paths
from mofal.campaign.devices import KINDS, check_devices, device_of
from mofal.campaign.loading import completed, load_config, parse_config
from mofal.campaign.steps import density, judge, select, train, walk
from mofal.cli import main
from mofal.errors import ConfigError, DataError, PotentialError
from tests.campaign.conftest import SMALL

PARTITION = {"partition": "p"}


def campaign(device: str = "cuda", **schedule: Any) -> dict[str, Any]:
    return {
        **SMALL,
        "potential": {**SMALL["potential"], "device": device},
        "schedule": schedule or {"workers": 2},
    }


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a GPU, whatever this one has."""
    from mofal.potential import devices

    monkeypatch.setattr(devices, "count_gpus", lambda: 0)


ALL = [*KINDS, "sample", "label", "select"]
REFUSED: list[tuple[dict[str, Any], str]] = [
    (campaign(), r"potential\.device \(for train\): the device is cuda, and torch finds no GPU"),
    (campaign("cuda:0", backend="inline"), r"the device is cuda:0, and torch finds no GPU"),
    (campaign("cuda", backend="threads"), "write cpu, or auto"),
    (
        campaign("cpu", pools={"a": {"device": "cuda", "gpus": 1}}),
        r"schedule\.pools\.a\.device \(for train\)",
    ),
    (
        campaign("cpu", pools={"a": {"kinds": ["judge"], "device": "cuda"}, "b": {}}),
        r"schedule\.pools\.a\.device \(for judge\)",
    ),
    (
        campaign(backend="slurm", pools={"cpu": {**PARTITION}}),
        r"potential\.device is cuda, and train runs in pool cpu, which books no GPU; write gpus: 1",
    ),
    (
        campaign(
            backend="slurm",
            pools={
                "gpu": {**PARTITION, "kinds": ["train", "walk", "density"], "gpus": 1},
                "cpu": {**PARTITION},
            },
        ),
        "and propose runs in pool cpu, which books no GPU",
    ),
    (
        campaign("cuda:1", backend="slurm", pools={"gpu": {**PARTITION, "gpus": 1}}),
        "sees 1 GPU, counted from 0; write cuda",
    ),
    (
        # A pool on this machine in a campaign on SLURM.
        campaign(
            backend="slurm",
            pools={
                "gpu": {**PARTITION, "gpus": 1},
                "here": {"backend": "local", "kinds": ["judge"]},
            },
        ),
        r"potential\.device \(for judge\): the device is cuda, and torch finds no GPU",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_check_devices__refuses(no_gpu: None, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_devices(parse_config(content))
    assert "\n" not in str(caught.value)


GOOD = [
    campaign("cpu"),
    campaign("auto"),
    campaign("auto", backend="slurm", pools={"cpu": {**PARTITION}}),
    campaign(backend="slurm", pools={"gpu": {**PARTITION, "gpus": 1}}),
    campaign("cuda:1", backend="slurm", pools={"gpu": {**PARTITION, "gpus": 2}}),
    campaign(
        backend="slurm",
        pools={
            "gpu": {**PARTITION, "gpus": 1, "kinds": ["train", "walk"]},
            "cpu": {**PARTITION, "device": "cpu"},
        },
    ),
    {**campaign(pools={"a": {"kinds": ["judge"]}, "b": {"device": "cpu"}}), "holdout": None},
]


@pytest.mark.parametrize("content", GOOD)
def test_check_devices__takes(no_gpu: None, content: dict[str, Any]) -> None:
    check_devices(parse_config(content))


def test_check_devices__as_many_gpus_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from mofal.potential import devices

    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    check_devices(parse_config(campaign("cuda:1")))
    assert devices.resolve_device("auto") == "cuda"
    with pytest.raises(ConfigError, match=r"finds 2 GPUs here, the last is cuda:1"):
        check_devices(parse_config(campaign("cuda:2")))


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:x", "cpu:0", "mps", "", "cuda "])
def test_parse_config__words_that_are_no_device(device: str) -> None:
    with pytest.raises(ConfigError, match=r"potential\.device is"):
        parse_config(campaign(device))
    with pytest.raises(ConfigError, match=r"pools\.a\.device is"):
        parse_config(campaign("cpu", pools={"a": {"device": device}}))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_run__a_device_that_is_not_here(
    no_gpu: None, more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(campaign()))
    assert main(["run", str(file), "--directory", str(tmp_path / "out"), *more]) == 1
    err = capsys.readouterr().err
    assert "torch finds no GPU here" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_match_and_export__a_device_that_is_not_here(
    no_gpu: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mofal.potential import create

    model = str(create("tiny", ["H", "C", "O", "Zr"], seed=0).save(tmp_path / "model"))
    place = str(tmp_path / "match")
    for argv in (
        ["match", "S_ld", "--potential", model, "--device", "cuda:1", "--directory", place],
        ["hold", "S_ld", "--potential", model, "--device", "cuda:0", "--directory", place],
        ["export", model, "-o", str(tmp_path / "x.nequip.pt2"), "--device", "cuda"],
    ):
        assert main(argv) == 1
        assert "torch finds no GPU here" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_identity__does_not_follow_the_device() -> None:
    one, other = parse_config(campaign("cpu")), parse_config(campaign("auto"))
    assert one.identity() == other.identity()
    # As a campaign on GPUs wrote it down before.
    stated = parse_config(campaign("cuda")).model_dump(
        mode="json", exclude={"schedule", "cycles", "stop", "quorum"}
    )
    stated["reference"].pop("caches")
    assert stated["potential"]["seed"]["device"] == "cuda"
    assert completed(stated)["potential"] == one.deciding()["potential"]


# ---------------------------------------------------------------------------------- the potential
@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every device that anything is moved to, in order; all of them are the CPU here."""
    from mofal.potential import devices, loop, model

    words: list[str] = []

    def record(device: str) -> str:
        words.append(device)
        return "cpu"

    for module in (devices, loop, model):
        monkeypatch.setattr(module, "resolve_device", record)
    return words


def test_potential__keeps_its_device(asked: list[str], tmp_path: Path) -> None:
    from mofal.data import from_atoms
    from mofal.potential import create, grow, load

    potential = create("tiny", ["H", "O"], seed=0, device="cuda:1")
    assert asked.pop() == "cuda:1"
    again = pickle.loads(pickle.dumps(potential))
    assert asked.pop() == "cuda:1"
    assert again.model_hash == potential.model_hash
    assert pickle.loads(pickle.dumps(again)).calculator().model_hash == potential.model_hash
    assert asked.pop() == "cuda:1"
    assert grow(again.to("auto"), ["C"]).elements == ("H", "O", "C")
    assert set(asked) == {"auto", "cpu"}
    asked.clear()
    assert load(potential.save(tmp_path / "m"), device="cuda:2").device == "cpu"
    assert set(asked) == {"cpu", "cuda:2"}
    # A lazy evaluation takes its potential, with its device, to wherever it is computed.
    from ase.build import molecule

    asked.clear()
    ds = from_atoms([molecule("H2O")]).chunk({"atom": 3, "structure": 1})
    ds["n_atoms"] = ds["n_atoms"].compute()
    lazy = potential.evaluate(ds)["forces"]
    travelled = pickle.loads(pickle.dumps(lazy)).compute(scheduler="sync")
    assert set(asked) == {"cuda:1"}
    np.testing.assert_array_equal(travelled, potential.evaluate(ds.compute())["forces"])


def test_load__a_device_that_is_not_here(no_gpu: None, tmp_path: Path) -> None:
    from mofal.potential import create, load

    where = create("tiny", ["H"], seed=0, device="auto").save(tmp_path / "m")
    assert load(where, device="auto").device == "cpu"
    with pytest.raises(PotentialError, match="the device is cuda, and torch finds no GPU"):
        load(where, device="cuda")
    with pytest.raises(PotentialError, match="'gpu'; expected cpu, cuda, cuda:0 or auto"):
        load(where, device="gpu")


# ---------------------------------------------------------------------------------- the stages
OWN = {kind: f"cuda:{k + 1}" for k, kind in enumerate(KINDS)}


def on_devices(root: Path) -> None:
    """Let each kind of a campaign that has begun compute on a GPU of its own."""
    content = yaml.safe_load((root / "campaign.yaml").read_text())
    pools = {k: {"kinds": [k], "device": d, "gpus": 8, **PARTITION} for k, d in OWN.items()}
    content["schedule"] = {"backend": "slurm", "pools": {**pools, "rest": PARTITION}}
    (root / "campaign.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.slow
def test_tasks__each_stage_asks_for_its_own_device(copied: Path, asked: list[str]) -> None:
    on_devices(copied)
    config = load_config(copied / "campaign.yaml")
    assert {kind: device_of(config, kind) for kind in KINDS} == OWN
    who = {"root": str(copied), "identity": config.identity()}
    for group in ("density.zarr", "training_features.zarr", "proposal.zarr", "model"):
        shutil.rmtree(copied / "cycle-001" / group)
    shutil.rmtree(copied / "control")
    judgement = paths.holdout("defective", "model-000.zarr")
    shutil.rmtree(copied / judgement)
    cycle: dict[str, Any] = {"cycle": 1}
    judging = {"system": "defective", "model": paths.model(0), "makes": judgement}
    stages: list[tuple[str, Any, dict[str, Any]]] = [
        ("density", density.density, cycle),
        ("walk", walk.walk, {**cycle, "system": "defective", "index": 0}),
        ("propose", judge.propose, cycle),
        ("train", train.train, {**cycle, "last": True}),
        ("train", train.train_control, {**cycle, "last": True}),
        ("judge", judge.judge, judging),
    ]
    for kind, function, arguments in stages:
        asked.clear()
        function(**who, **arguments)
        # A model is put together on the CPU before it is moved.
        assert set(asked) - {"cpu"} == {OWN[kind]}, kind
        assert asked[-1] == OWN[kind], kind
    asked.clear()
    view = mofal.open(copied)
    view.potential(device="cuda:7")
    assert set(asked) - {"cpu"} == {"cuda:7"}


@pytest.mark.slow
def test_open__potential_of_a_gpu_campaign_on_a_machine_without(copied: Path, no_gpu: None) -> None:
    file = copied / "campaign.yaml"
    file.write_text(file.read_text().replace("device: cpu", "device: cuda"))
    view = mofal.open(copied)
    assert view.config.potential.device == "cuda"
    assert view.potential().device == "cpu"  # type: ignore[attr-defined]
    with pytest.raises(PotentialError, match="torch finds no GPU"):
        view.potential(device="cuda")


# ---------------------------------------------------------------------------------- whose features
@pytest.mark.slow
def test_select__features_of_another_model_are_refused(copied: Path) -> None:
    from mofal.data import write_group
    from mofal.density import score

    view = mofal.open(copied)
    seed, last = view.potential(0), view.potential(1)
    fitted = view.density(1)
    assert fitted.model_hash == seed.model_hash
    assert view.features.attrs["model_hash"] == seed.model_hash
    here = copied / "cycle-001" / "defective"
    who = {"root": str(copied), "identity": view.site.identity}
    which = {"cycle": 1, "system": "defective"}
    for group in ("features.zarr", "scores.zarr", "clusters.zarr", "labels.zarr"):
        shutil.rmtree(here / group)
    samples = view.site.group("cycle-001/defective/samples.zarr").load()
    foreign = last.featurize(samples)
    with pytest.raises(DataError, match="features of two potentials are not comparable"):
        score(foreign, fitted)
    unknown = seed.featurize(samples).drop_attrs(deep=False)
    for features, said in ((foreign, last.model_hash), (unknown, "unknown")):
        write_group(features, here / "features.zarr", kind="features")
        with pytest.raises(DataError, match=rf"features\.zarr holds features of potential {said}"):
            select.select_clusters(**who, **which)
        assert not (here / "scores.zarr").exists()
        shutil.rmtree(here / "features.zarr")
    write_group(seed.featurize(samples), here / "features.zarr", kind="features")
    select.select_clusters(**who, **which)
    assert view.scores.attrs["model_hash"] == seed.model_hash


@pytest.mark.slow
def test_density__is_that_of_the_version_before(copied: Path) -> None:
    """Through the verb, with the model's name in it: the same density to the bit."""
    from mofal.density import PerElementDensity

    view = mofal.open(copied)
    features = view.site.group("cycle-001/training_features.zarr").load()
    settings = view.config.density
    directly = PerElementDensity(
        n_components=settings.components,
        max_components=settings.max_components,
        pca=settings.pca,
        random_state=view.site.integer_seed("density", 1),
    ).fit(np.asarray(features["features"].values, np.float64), features["numbers"].values)
    assert directly.density_hash == view.density(1).density_hash
