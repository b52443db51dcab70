import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.stress import voigt_6_to_full_3x3_stress

from mofal import data
from mofal.data import select
from mofal.errors import DataError, PotentialError, StoreError
from mofal.potential import TrainingSettings, create, load, split_structures, train
from mofal.potential.metrics import StressError
from mofal.potential.network import collate, energy_part, weights_of
from mofal.potential.training import (
    align_shifts,
    energy_targets,
    force_weights,
    prepare_graphs,
    unfounded_energies,
)

from .conftest import SMALL, emt_atoms, emt_frames


def vary(settings: TrainingSettings, **changes) -> TrainingSettings:
    return TrainingSettings(**{**settings.model_dump(), **changes})


@pytest.fixture(scope="module")
def trained(labelled, settings, tmp_path_factory):
    lines: list[str] = []
    out = tmp_path_factory.mktemp("trained") / "model"
    potential = train(labelled, settings, out=out, seed=1, progress=lines.append)
    return potential, out, lines


# ---------------------------------------------------------------------------------- result
def test_train__writes_a_model_directory(trained):
    potential, out, _ = trained
    assert sorted(p.name for p in out.iterdir()) == [
        "history.json",
        "model.json",
        "provenance.json",
        "weights.pt",
    ]
    assert [p.name for p in out.parent.iterdir()] == ["model"]
    assert load(out).model_hash == potential.model_hash
    assert load(out).history == potential.history
    p = potential.provenance
    assert (p["steps"], p["stopped_by"]) == (12, "max_steps 12")
    assert p["structures"] == {"train": 10, "validation": 2}
    assert p["isolated_atom_energies"] == emt_atoms()


def test_train__learns(labelled, settings, tmp_path):
    history = train(labelled, vary(settings, max_steps=60), out=tmp_path / "m", seed=1).history
    assert history[-1]["validation_loss"] < 0.7 * history[0]["validation_loss"]
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))


def test_train__progress_says_what_matters(trained):
    _, _, lines = trained
    assert lines[0].startswith("training on 10 structures")
    assert "validation" in lines[-1]
    assert "force MAE" in lines[-1]
    assert lines[-1].endswith("stopped: max_steps 12")


def test_train__nothing_is_printed(labelled, settings, tmp_path, capfd, caplog):
    train(labelled, vary(settings, max_steps=1), out=tmp_path / "m", seed=1)
    out = capfd.readouterr()
    assert out.out + out.err == ""
    assert not caplog.records


def test_train__loss_is_the_papers(trained, labelled, settings):
    """Forces (weight 1) and energies per atom (weight 100) of the averaged weights."""
    potential = trained[0]
    split = split_structures(labelled, seed=1)
    chosen = data.select(split, split["split"].values == "validation")
    out = potential.evaluate(chosen)
    wrong = (out["energy"] - data.relative_energy(chosen)) / chosen["n_atoms"]
    loss = float(((out["forces"] - chosen["forces"]) ** 2).mean() + 100 * (wrong**2).mean())
    best = min(potential.history, key=lambda row: row["validation_loss"])
    assert best["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert potential.provenance["best_epoch"] == best["epoch"]
    mae = float(np.abs(out["forces"] - chosen["forces"]).mean())
    assert best["validation_force_mae"] == pytest.approx(mae, rel=1e-4)


@pytest.mark.parametrize("shift", ["mean", "isolated"])
def test_train__shift_is_fixed_and_scales_start_at_the_force_rms(
    labelled, settings, tmp_path, shift
):
    slow = vary(settings, max_steps=1, learning_rate=1e-4, energy_shift=shift, align_energies=False)
    elements = ["Cu", "Ni", "Zr"]
    potential = train(labelled, slow, out=tmp_path / "m", seed=1, elements=elements)
    last = energy_part(potential.network).per_type_energy_scale_shift
    split = split_structures(labelled, seed=1)
    part = data.select(split, split["split"].values == "train")
    mean = float((data.relative_energy(part) / part["n_atoms"]).mean())
    expected = mean if shift == "mean" else 0.0
    np.testing.assert_allclose(last.shifts.numpy(), expected, rtol=1e-6)
    assert np.ptp(last.shifts.numpy()) == 0
    warm = train(emt_frames(4, seed=3), slow, out=tmp_path / "w", seed=1, start=potential)
    again = energy_part(warm.network).per_type_energy_scale_shift
    np.testing.assert_array_equal(again.shifts, last.shifts)
    assert potential.elements == ("Ni", "Cu", "Zr")
    rms = float(np.sqrt((labelled["forces"] ** 2).mean()))
    np.testing.assert_allclose(last.scales.numpy(), rms, rtol=0.2)


# ---------------------------------------------------------------------------------- NequIP's
def test_module__is_nequips_with_its_ema(settings):
    """One step of ours equals one step of NequIP's own module, configured from a dict."""
    from nequip.train import EMALightningModule

    from mofal.potential.loop import Module, averaged_weights, make_module, network_of
    from mofal.potential.network import builder_config, prepare

    prepare()
    assert issubclass(Module, EMALightningModule)
    for name in ("training_step", "validation_step", "optimizer_step", "forward"):
        assert getattr(Module, name) is getattr(EMALightningModule, name)
    module = make_module(builder_config(SMALL, ["Cu", "Ni"], avg_num_neighbors=9.0), settings)
    coefficients = {k: v.coeff for k, v in module.loss.entries.items()}
    assert coefficients == pytest.approx({"forces_mse": 1 / 101, "per_atom_energy_mse": 100 / 101})
    before = weights_of(network_of(module))
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(1.0)
    module.ema.update_parameters(module.model)
    decay = min(settings.ema_decay, 2 / 11)
    for name, value in averaged_weights(module).items():
        moved = 0 if name.endswith("shifts") else 1 - decay
        torch.testing.assert_close(value, before[name] + moved)


# ---------------------------------------------------------------------------------- bits
def test_train__threads_do_not_matter_and_seeds_do(trained, labelled, settings, tmp_path):
    two = train(labelled, vary(settings, threads=2), out=tmp_path / "two", seed=1)
    assert two.model_hash == trained[0].model_hash
    other = train(labelled, settings, out=tmp_path / "other", seed=2)
    assert other.model_hash != trained[0].model_hash


def test_train__called_again_loads(trained, labelled, settings):
    potential, out, _ = trained
    lines: list[str] = []
    again = train(labelled, settings, out=out, seed=1, progress=lines.append)
    assert again.model_hash == potential.model_hash
    assert lines == []
    with pytest.raises(StoreError, match="model of another training"):
        train(labelled, settings, out=out, seed=2)


class Stop(Exception):
    pass


def interrupt(at_step: int):
    """Make the training fail from inside when its clock says so."""
    from mofal.potential.loop import Clock

    original = Clock.on_train_batch_end

    def wrapped(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.step == at_step:
            raise Stop

    return wrapped


@pytest.mark.parametrize("start", [False, True])
def test_train__resumed_is_what_would_have_been(
    start, trained, labelled, settings, tmp_path, monkeypatch
):
    from mofal.potential.loop import Clock

    # A scheduler that acts within these few epochs: a resume that lost a step of it would show.
    eager = vary(
        settings,
        learning_rate=1e-4 if start else 1e-6,
        min_learning_rate=0.0,
        plateau_patience=1,
        plateau_factor=0.5,
        warm_up_epochs=2,
        max_steps=18,
    )
    options = {"seed": 1, "start": trained[0] if start else None, "checkpoint_every": 4}
    whole = train(labelled, eager, out=tmp_path / "whole", **options)
    for at in (2, 7, 14):
        with monkeypatch.context() as patch:
            patch.setattr(Clock, "on_train_batch_end", interrupt(at))
            with pytest.raises(Stop):
                train(labelled, eager, out=tmp_path / "parts", **options)
        assert not (tmp_path / "parts").exists()
    torch.manual_seed(123)
    lines: list[str] = []
    parts = train(labelled, eager, out=tmp_path / "parts", progress=lines.append, **options)
    assert any(line.startswith("resumed at epoch 4, step 12") for line in lines)
    assert parts.model_hash == whole.model_hash
    assert parts.history == whole.history
    rates = [row["learning_rate"] for row in whole.history]
    assert len(set(rates)) > 1


def test_train__checkpoint_of_another_training_refused(labelled, settings, tmp_path, monkeypatch):
    from mofal.potential.loop import Clock

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_train_batch_end", interrupt(2))
        with pytest.raises(Stop):
            train(labelled, settings, out=tmp_path / "m", seed=1)
    with pytest.raises(StoreError, match="another training"):
        train(labelled, settings, out=tmp_path / "m", seed=2)
    path = tmp_path / ".m.training" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:300])
    lines: list[str] = []
    train(labelled, settings, out=tmp_path / "m", seed=1, progress=lines.append)
    assert sum(line.endswith("the training starts over") for line in lines) == 1


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from potential.conftest import SMALL, emt_frames
from mofal.potential import TrainingSettings, train
settings = TrainingSettings(
    architecture=SMALL, learning_rate=0.02, batch_size=4, max_steps=90, plateau_patience=3
)
lines = open({log!r}, "a", buffering=1)
train(
    emt_frames(12, seed=0), settings, out={out!r}, seed=1, checkpoint_every=1,
    progress=lambda line: lines.write(line + "\\n"),
)
"""


@pytest.mark.slow
def test_train__killed_and_resumed_has_the_same_bits(labelled, settings, tmp_path):
    """SIGKILL in the middle, from outside, then the same command."""
    tests = str(Path(__file__).parents[1])

    script = KILLED.format(tests=tests, log=str(tmp_path / "log"), out=str(tmp_path / "parts"))
    command = [sys.executable, "-c", script]
    checkpoint = tmp_path / ".parts.training" / "checkpoint.pt"
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    seen = set()
    while len(seen) < 6 and time.monotonic() < deadline:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "parts").exists()
    subprocess.run(command, check=True)
    assert "resumed at epoch" in (tmp_path / "log").read_text()
    plan = vary(settings, max_steps=90, plateau_patience=3)
    whole = train(labelled, plan, out=tmp_path / "whole", seed=1)
    assert load(tmp_path / "parts").model_hash == whole.model_hash
    assert load(tmp_path / "parts").history == whole.history


# ---------------------------------------------------------------------------------- warm start
def test_train__warm_start_takes_weights_and_resets_the_rest(trained, settings, tmp_path):
    potential, path, _ = trained
    ds = emt_frames(12, seed=7)
    slow = vary(
        settings, learning_rate=1e-4, max_steps=1, architecture="base", align_energies=False
    )
    warm = train(ds, slow, out=tmp_path / "warm", seed=1, start=path)
    assert warm.architecture == potential.architecture
    assert warm.avg_num_neighbors == potential.avg_num_neighbors
    assert warm.provenance["start"] == potential.model_hash
    # One step of Adam moves a weight by about the rate, here a tenth of it: the warm-up's first
    # step of a hundred; momentum of the training before would move it further.
    old, new = weights_of(potential.network), weights_of(warm.network)
    moved = max(float((old[k] - new[k]).abs().max()) for k in old)
    steps_in_warm_up = slow.warm_up_epochs * 3
    assert 0 < moved < 1.5 * slow.learning_rate / steps_in_warm_up


def test_train__warm_up_rises_linearly_before_the_scheduler(trained, labelled, settings, tmp_path):
    plan = vary(
        settings, warm_up_epochs=3, max_epochs=8, max_steps=None, plateau_patience=1, ema_decay=0.0
    )
    lazy = vary(plan, stop_delta=0.0, learning_rate=1e-9, min_learning_rate=0.0)
    warm = train(labelled, lazy, out=tmp_path / "warm", seed=1, start=trained[0])
    rates = [row["learning_rate"] / lazy.learning_rate for row in warm.history]
    np.testing.assert_allclose(rates[:3], [1 / 3, 2 / 3, 1.0])
    assert max(rates) == rates[2]


def test_train__cosine_takes_the_rate_to_nothing_whatever_bounds_it(labelled, settings, tmp_path):
    """Against the formula, at the last of the three steps of each epoch; plateaus do not matter."""
    plan = vary(settings, decay="cosine", max_steps=None, max_epochs=6, plateau_patience=1)
    by_epochs = train(labelled, plan, out=tmp_path / "e", seed=1)
    other = vary(plan, max_epochs=None, max_atoms_seen=by_epochs.provenance["atoms_seen"])
    by_atoms = train(labelled, other, out=tmp_path / "a", seed=1)
    done = np.array([row["step"] - 1 for row in by_epochs.history]) / 18
    expected = plan.learning_rate * 0.5 * (1 + np.cos(np.pi * done))
    for model in (by_epochs, by_atoms):
        assert model.provenance["steps"] == 18
        rates = [row["learning_rate"] for row in model.history]
        np.testing.assert_allclose(rates, expected, atol=0.05 * plan.learning_rate)
    np.testing.assert_allclose([r["learning_rate"] for r in by_epochs.history], expected)


def test_training_settings__cosine_needs_an_end():
    with pytest.raises(ValueError, match="give max_epochs, max_steps or max_atoms_seen"):
        TrainingSettings(decay="cosine")


def test_align_shifts__takes_new_compositions_and_leaves_known_ones(trained, labelled):
    """Energies off by a constant per type are mended to rounding, and forces do not change."""
    from mofal.potential.network import SHIFTS, put_weights, weights_of

    trained, *_ = trained
    counts = data.count_elements(
        labelled["numbers"].values, labelled["structure_index"].values, labelled.sizes["structure"]
    )[:, [28, 29]]
    exact = trained.evaluate(labelled)
    off = np.array([0.7, -0.3])
    atoms = json.loads(labelled.attrs["isolated_atom_energies"])
    raw = exact["energy"].values + counts @ np.array([atoms["Ni"], atoms["Cu"]])
    known = labelled.assign(energy=("structure", raw), forces=exact["forces"])
    np.testing.assert_allclose(align_shifts(trained, known, ["Ni", "Cu"]), 0, atol=1e-5)
    new = known.assign(energy=("structure", raw + counts @ off))
    change = align_shifts(trained, new, ["Ni", "Cu"])
    # All frames have nearly one composition, so only its direction is fixed, and the fit is least.
    per_atom = (counts @ change - counts @ off) / counts.sum(axis=1)
    assert np.abs(per_atom).max() < 0.02
    assert np.linalg.norm(change) <= np.linalg.norm(off) + 1e-9
    weights = weights_of(trained.network)
    put_weights(trained.network, {**weights, SHIFTS: weights[SHIFTS] + 1.0})
    try:
        moved = trained.evaluate(labelled)
    finally:
        put_weights(trained.network, weights)
    np.testing.assert_array_equal(moved["forces"].values, exact["forces"].values)


def test_train__start_without_a_type(trained, settings, tmp_path):
    ds = emt_frames(4, seed=1)
    ds["numbers"].values[ds["numbers"].values == 28] = 79
    with pytest.raises(PotentialError, match="start model has no type for Au"):
        train(ds, settings, out=tmp_path / "m", seed=1, start=trained[0])
    with pytest.raises(PotentialError, match="list of elements has no type for Ni"):
        train(emt_frames(4, seed=1), settings, out=tmp_path / "m", seed=1, elements=["Cu"])
    assert list(tmp_path.iterdir()) == []


def test_train__start_of_another_level(trained, labelled, settings, tmp_path):
    other = labelled.copy()
    other.attrs["level_hash"] = "better"
    with pytest.raises(DataError, match="level of theory emt, these labels are of better"):
        train(other, settings, out=tmp_path / "m", seed=1, start=trained[0])
    allowed = vary(settings, allow_other_level=True, max_steps=1)
    train(other, allowed, out=tmp_path / "m", seed=1, start=trained[0])


# ---------------------------------------------------------------------------------- stops
def test_train__stops_at_atoms_seen(labelled, settings, tmp_path):
    plan = vary(settings, max_steps=None, max_atoms_seen=150)
    potential = train(labelled, plan, out=tmp_path / "m", seed=1)
    p = potential.provenance
    assert p["stopped_by"] == "max_atoms_seen 150"
    # No less than asked for, and no more than one batch too many.
    assert 150 <= p["atoms_seen"] < 150 + 4 * 16
    assert potential.history[-1]["atoms_seen"] == p["atoms_seen"]


def test_train__stops_when_nothing_more_is_learnt(labelled, settings, tmp_path):
    plan = vary(settings, max_steps=None, max_epochs=50, stop_patience=3, stop_delta=1e9)
    p = train(labelled, plan, out=tmp_path / "m", seed=1).provenance
    assert p["stopped_by"].startswith("the validation loss fell by less than 1e+09")
    assert p["steps"] == 4 * 3  # the first epoch improves on nothing at all, three more do not


def test_train__stops_at_the_lowest_rate(labelled, settings, tmp_path):
    plan = vary(
        settings,
        max_steps=None,
        max_epochs=60,
        learning_rate=1e-6,
        min_learning_rate=5e-7,
        plateau_patience=1,
    )
    p = train(labelled, plan, out=tmp_path / "m", seed=1).provenance
    assert p["stopped_by"] == "the learning rate fell below 5e-07"


def test_train__divergence_is_told(labelled, settings, tmp_path):
    broken = labelled.copy(deep=True)
    broken["energy"].values[:] = 1e300
    with pytest.raises(PotentialError, match="diverged at step 1"):
        train(broken, settings, out=tmp_path / "m", seed=1)


# ---------------------------------------------------------------------------------- masks
def spoil(ds, which):
    """Change the forces of some atoms beyond recognition."""
    out = ds.copy(deep=True)
    out["forces"].values[which] += 5.0
    return out


def test_train__core_only_does_not_see_the_rest_of_clusters(labelled, settings, tmp_path):
    plan = vary(settings, regions="core", max_steps=4)
    of_cluster = np.repeat(~labelled["pbc"].values.all(axis=1), labelled["n_atoms"].values)
    rest = of_cluster & (labelled["region"].values > 0)
    assert rest.sum() > 10
    first = train(labelled, plan, out=tmp_path / "a", seed=1)
    second = train(spoil(labelled, rest), plan, out=tmp_path / "b", seed=1)
    assert first.model_hash == second.model_hash
    third = train(spoil(labelled, ~rest), plan, out=tmp_path / "c", seed=1)
    assert third.model_hash != first.model_hash


def test_train__masked_atoms_and_nan_forces_are_the_same(labelled, settings, tmp_path):
    plan = vary(settings, max_steps=4)
    chosen = np.zeros(labelled.sizes["atom"], bool)
    chosen[::5] = True
    masked = spoil(labelled, chosen).assign(masked=("atom", chosen))
    missing = labelled.copy(deep=True)
    missing["forces"].values[chosen] = np.nan
    first = train(masked, plan, out=tmp_path / "a", seed=1)
    second = train(missing, plan, out=tmp_path / "b", seed=1)
    assert first.model_hash == second.model_hash


def test_train__weights_of_one_and_nought_are_core_only(labelled, settings, tmp_path):
    core = vary(settings, regions="core", max_steps=6)
    weighted = vary(core, regions="weighted", mantle_weight=0.0, termination_weight=0.0)
    first = train(labelled, core, out=tmp_path / "a", seed=1)
    second = train(labelled, weighted, out=tmp_path / "b", seed=1)
    for a, b in zip(first.history, second.history):
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-3)


def test_force_weights__by_region_and_by_variable(labelled, settings):
    plan = vary(settings, regions="weighted", mantle_weight=0.3, termination_weight=0.1)
    weight = force_weights(labelled, plan)
    np.testing.assert_allclose(weight[:8], [1, 1, 1, 1, 0.3, 0.3, 0.1, 0.1])
    np.testing.assert_array_equal(weight[8:24], 1)
    given = np.full(labelled.sizes["atom"], np.nan)
    given[2] = 0.7
    own = force_weights(labelled.assign(force_weight=("atom", given)), plan)
    np.testing.assert_allclose(own[:5], [1, 1, 0.7, 1, 0.3])
    with pytest.raises(DataError, match="negative weight"):
        force_weights(labelled.assign(force_weight=("atom", given - 1)), plan)


def test_weighted_force_mse__is_the_weighted_mean():
    from mofal.potential.metrics import FORCE_WEIGHT_KEY, WeightedForceMSE

    rng = np.random.default_rng(0)
    found, wanted, weight = rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), rng.random(9)
    wanted[2], wanted[4, 1] = np.nan, np.nan
    metric = WeightedForceMSE()
    prediction = torch.from_numpy(found).requires_grad_(True)
    parts = []
    for rows in (slice(0, 5), slice(5, 9)):
        target = {
            "forces": torch.from_numpy(wanted[rows]),
            FORCE_WEIGHT_KEY: torch.from_numpy(weight[rows]),
        }
        parts.append(metric({"forces": prediction[rows]}, target))
    parts[0].backward()
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad[2].abs().max() == 0
    there = ~np.isnan(wanted)
    weights = np.repeat(weight[:, None], 3, axis=1)[there]
    expected = (weights * (found - wanted)[there] ** 2).sum() / weights.sum()
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------- bad data
def test_train__only_converged_labels(labelled, settings, tmp_path):
    worse = spoil(labelled, slice(0, 8)).copy()
    worse["status"] = worse["status"].copy(deep=True)
    worse["status"].values[0] = "not_converged"
    lines: list[str] = []
    plan = vary(settings, max_steps=2)
    potential = train(worse, plan, out=tmp_path / "m", seed=1, progress=lines.append)
    assert lines[0] == "1 of 12 labels left out: they have not converged"
    assert sum(potential.provenance["structures"].values()) == 11


def without(ds, **changes):
    out = ds.copy(deep=True)
    for name, value in changes.items():
        out[name].values[:] = value
    return out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda ds: without(ds, status="crashed"), "none of 12 labels has converged"),
        (
            lambda ds: without(ds, energy=np.nan),
            "structure 0 is converged, but its energy is not a number",
        ),
        (lambda ds: without(ds, forces=np.nan), "structure 0 has no force that counts"),
        (lambda ds: ds.drop_vars("forces"), "lacks forces"),
        (lambda ds: data.select(ds, [0]), "1 structures to train on and 0 to validate on"),
        (
            lambda ds: ds.assign(
                split=("structure", np.array(["train"] * 12, np.dtypes.StringDType()))
            ),
            "12 structures to train on and 0 to validate on",
        ),
    ],
)
def test_train__data_it_cannot_use(labelled, settings, tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        train(change(labelled), settings, out=tmp_path / "m", seed=1)
    assert not (tmp_path / "m").exists()


def test_train__labels_without_isolated_atoms(labelled, settings, tmp_path):
    bare = labelled.copy()
    del bare.attrs["isolated_atom_energies"]
    with pytest.raises(DataError, match="isolated_atom_energies"):
        train(bare, settings, out=tmp_path / "m", seed=1)


def test_train__two_at_once_are_what_each_is_alone(labelled, settings, tmp_path):
    """In threads of one process, as a backend of threads runs tasks."""
    plan = vary(settings, max_steps=6)

    def one(name: str) -> str:
        seed = int(name[-1])
        return train(labelled, plan, out=tmp_path / name, seed=seed).model_hash

    alone = [one("alone1"), one("alone2")]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(one, ["both1", "both2"]))
    assert together == alone


# ---------------------------------------------------------------------------------- charges
def with_charges(ds):
    """Every cluster carries a charge; crystals do not."""
    charge = np.where(ds["pbc"].values.any(axis=1), 0, 2).astype(np.int32)
    return ds.assign(charge=("structure", charge))


def test_train__of_charged_clusters_only_core_forces_count(labelled, settings, tmp_path):
    """Their energies and the forces beyond the core may be anything: the same weights, bit by bit.

    Batches of one: some hold no energy at all.
    """
    one = vary(settings, batch_size=1, max_steps=6)
    charged = with_charges(labelled)
    finite = ~charged["pbc"].values.any(axis=1)
    assert np.isnan(energy_targets(charged)[finite]).all()
    assert np.isfinite(energy_targets(charged)[~finite]).all()
    beyond = np.repeat(finite, charged["n_atoms"].values) & (charged["region"].values > 0)
    assert np.array_equal(force_weights(charged, one) == 0, beyond)
    other = charged.assign(
        energy=charged["energy"] + np.where(finite, 55.0, 0.0),
        forces=charged["forces"] + np.where(beyond, 3.0, 0.0)[:, None],
    )
    first = train(charged, one, out=tmp_path / "a", seed=1)
    second = train(other, one, out=tmp_path / "b", seed=1)
    assert first.model_hash == second.model_hash
    assert all(np.isfinite(row["validation_loss"]) for row in first.history)
    # Without the charge they are learnt: another model.
    neutral = train(labelled, one, out=tmp_path / "c", seed=1)
    assert neutral.model_hash != first.model_hash


def test_unfounded_energies__are_of_compositions_beyond_the_span():
    """Water and ethene make ethanol, and neither methane nor carbon dioxide."""
    frames = [molecule(m) for m in ("H2O", "C2H4", "H2O", "CH4", "CO2", "CH3CH2OH")]
    ds = data.from_atoms(frames, system="gas")

    def unfounded(training: list[int]) -> list[int]:
        mask = np.isin(np.arange(len(frames)), training)
        return np.flatnonzero(unfounded_energies(ds, mask)).tolist()

    assert unfounded([0, 1]) == [3, 4]
    assert unfounded([0, 1, 4]) == []
    assert unfounded([0]) == [1, 3, 4, 5]
    assert unfounded([1, 3, 4, 5]) == []
    alone = select(ds, np.array([0, 1]))
    assert not unfounded_energies(alone, np.array([True, False])).any()  # what else to judge by?


def test_train__foreign_compositions_do_not_choose_the_epoch(labelled, settings, tmp_path):
    """The energy of one that validates, and is of copper alone, may be anything."""
    plan = vary(settings, max_steps=40)
    ds = split_structures(labelled, seed=1)
    ends = np.cumsum(ds["n_atoms"].values)
    k = int(np.flatnonzero(ds["split"].values == "validation")[0])
    numbers = ds["numbers"].values.copy()
    numbers[ends[k] - ds["n_atoms"].values[k] : ends[k]] = 29
    ds = ds.assign(numbers=("atom", numbers))
    shifted = ds.assign(
        energy=ds["energy"] + np.where(np.arange(ds.sizes["structure"]) == k, 55, 0)
    )
    lines: list[str] = []
    first = train(ds, plan, out=tmp_path / "a", seed=1, progress=lines.append)
    second = train(shifted, plan, out=tmp_path / "b", seed=1)
    assert first.model_hash == second.model_hash
    assert first.history == second.history
    assert any("not by the energies of 1, of compositions unlike" in line for line in lines)
    assert np.isfinite(first.history[-1]["validation_energy_mae_per_atom"])


def test_per_atom_energy_mse__is_nequips_where_all_energies_are_known():
    from nequip.data import PerAtomModifier
    from nequip.train import MeanSquaredError

    from mofal.potential.metrics import PerAtomEnergyMSE

    counts = torch.tensor([3, 5])
    target = {"total_energy": torch.tensor([[1.0], [4.0]]), "num_atoms": counts}
    found = {"total_energy": torch.tensor([[2.5], [3.0]]), "num_atoms": counts}
    mine, theirs = PerAtomEnergyMSE(), MeanSquaredError()
    mine.update(found, target)
    theirs.update(*PerAtomModifier("total_energy")(found, target))
    assert float(mine.compute()) == pytest.approx(float(theirs.compute()))
    assert float(mine.compute()) == pytest.approx(((1.5 / 3) ** 2 + (1 / 5) ** 2) / 2)
    nothing = PerAtomEnergyMSE()
    nothing.update(found, {**target, "total_energy": torch.full((2, 1), torch.nan)})
    assert float(nothing.compute()) == 0.0


def test_train__stress_is_learnt_where_it_counts(labelled, settings, tmp_path):
    """One structure a batch, so that some hold clusters alone, whose stress is no number."""
    plan = vary(settings, max_steps=60, batch_size=1, keep="last")
    crystal = select(labelled, np.flatnonzero(labelled["pbc"].values.all(axis=1)))
    error = {}
    for weight in (0.0, 3e4):
        model = train(
            labelled, vary(plan, stress_weight=weight), out=tmp_path / f"{weight:g}", seed=1
        )
        said = model.evaluate(crystal)["stress"].values
        error[weight] = np.abs(said - crystal["stress"].values).mean()
        if weight:
            assert model.history[-1]["validation_stress_mae"] > 0
        else:
            assert "validation_stress_mae" not in model.history[0]
    assert error[3e4] < 0.2 * error[0.0]


def test_stress_error__is_numpys(labelled, settings):
    plan = vary(settings, stress_weight=1.0)
    network = create(plan.architecture, ["Cu", "Ni"], seed=3, avg_num_neighbors=8.0)
    graphs = prepare_graphs(
        labelled, plan, elements=network.elements, r_max=plan.architecture.r_max
    )
    batch = collate(graphs)
    there = np.isfinite(labelled["stress"].values).all(axis=1)
    truth = np.array([voigt_6_to_full_3x3_stress(v) for v in labelled["stress"].values[there]])
    np.testing.assert_array_equal(batch["stress"][torch.from_numpy(there)], truth)
    said = network.evaluate(labelled)["stress"].values[there]
    said = np.array([voigt_6_to_full_3x3_stress(v) for v in said])
    given = torch.full((len(graphs), 3, 3), torch.nan, dtype=torch.float64)
    given[torch.from_numpy(there)] = torch.from_numpy(said)
    for power in (1, 2):
        metric = StressError(power=power)
        metric.update({"stress": given}, batch)
        expected = (np.abs(said - truth) ** power).mean()
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-12)
    clusters = collate([g for g, here in zip(graphs, there) if not here])
    metric = StressError()
    metric.update({"stress": given[~torch.from_numpy(there)]}, clusters)
    assert float(metric.compute()) == 0.0


def test_training_settings__without_stress_are_those_of_before():
    """Hashes of trainings and campaigns begun before there was the weight."""
    assert "stress_weight" not in TrainingSettings().model_dump()
    assert TrainingSettings(stress_weight=10).model_dump()["stress_weight"] == 10
    assert TrainingSettings(stress_weight=10).loss_weight == 111


def test_train__stress_of_a_level_without(labelled, settings, tmp_path):
    without = labelled.assign(stress=labelled["stress"] * np.nan)
    with pytest.raises(DataError, match="no crystal of this data has a stress"):
        train(without, vary(settings, stress_weight=10.0), out=tmp_path / "m", seed=1)
    assert not (tmp_path / "m").exists()
