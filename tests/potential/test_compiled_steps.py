"""Trainings through the compiled network: the eager one's, with the same bits when resumed."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from torch._dynamo.utils import counters

from mofal.campaign.examples import seed_place
from mofal.data import open_group, select
from mofal.errors import PotentialError
from mofal.potential import TrainingSettings, compiled_steps, train
from mofal.potential.compiling import has_compiler
from tests.potential.conftest import SMALL
from tests.potential.test_training import Stop, interrupt, vary

ONE_LAYER = SMALL.model_copy(update={"n_layers": 1, "n_features": 2, "l_max": 0, "parity": False})


@pytest.fixture(scope="module")
def plan() -> TrainingSettings:
    return TrainingSettings(
        architecture=ONE_LAYER, learning_rate=0.02, batch_size=4, max_epochs=4, engine="compiled"
    )


@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")
def test_train__compiled_is_the_eager_training_and_goes_on_with_its_bits(
    plan, tmp_path, monkeypatch
):
    """Crystals and clusters of DFT, 106 to 166 atoms; the last batch of an epoch is smaller."""
    # (A batch of less than 31 atoms is compiled for once more: torch multiplies otherwise there.)
    labelled = open_group(seed_place("uio66-gpaw-lcao") / "labels.zarr").load()
    labelled = select(labelled, range(1, 20, 2))
    assert len(set(labelled["n_atoms"].values)) > 1
    from mofal.potential.loop import Clock

    monkeypatch.setenv("MOFAL_COMPILED", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    lines: list[str] = []
    compiled: list[int] = []  # graphs so far, whenever there is news

    def hear(line: str) -> None:
        lines.append(line)
        compiled.append(counters["stats"]["unique_graphs"])

    options = {"seed": 1, "checkpoint_every": 2}
    whole = train(labelled, plan, out=tmp_path / "whole", progress=hear, **options)
    # Batches of four and of two, of training and validation, run what was compiled before them.
    assert compiled[0] < compiled[1] == counters["stats"]["unique_graphs"]
    assert any(line.startswith("compiling") for line in lines)
    assert list((tmp_path / "cache" / "steps").rglob("*.so"))
    eager = train(labelled, vary(plan, engine="eager"), out=tmp_path / "eager", **options)
    for name in ("train_loss", "validation_loss", "validation_force_mae"):
        expected = [row[name] for row in eager.history]
        assert np.allclose([row[name] for row in whole.history], expected, rtol=1e-5)
    forces = whole.evaluate(labelled)["forces"].values
    assert np.allclose(forces, eager.evaluate(labelled)["forces"].values, atol=1e-4)
    # Stopped in its third epoch, and called again.
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_train_batch_end", interrupt(4))
        with pytest.raises(Stop):
            train(labelled, plan, out=tmp_path / "parts", **options)
    # One is compiled anew, as in another process; the next takes what it finds.
    compiled_steps._KEPT.clear()
    lines.clear()
    parts = train(labelled, plan, out=tmp_path / "parts", progress=lines.append, **options)
    assert any(line.startswith("resumed at epoch") for line in lines)
    assert any(line.startswith("compiling") for line in lines)
    assert parts.model_hash == whole.model_hash
    assert parts.history == whole.history
    # The engine is no part of what a training is: this one is finished, whoever asks.
    again = train(labelled, vary(plan, engine="eager"), out=tmp_path / "whole", **options)
    assert again.model_hash == whole.model_hash


def test_compiled__traces_that_differ_once_are_made_again(tmp_path):
    """NequIP's message, and the files that it leaves where it was started."""
    calls = []

    def module(batch):
        calls.append(batch)
        if len(calls) < 3:
            dump = tmp_path / f"nequip_fx_dump_{len(calls)}"
            dump.mkdir()
            raise RuntimeError(
                "An unexpected internal error has occurred (the fx'ed models for different input "
                "shapes do not agree) -- please report this issue on the NequIP GitHub, and upload "
                f"the files in {dump}."
            )
        return {"forces": 1}

    assert compiled_steps._compiled(module, {}) == {"forces": 1}
    assert list(tmp_path.iterdir()) == []

    def broken(batch):
        calls.append(batch)
        raise RuntimeError("something else")

    before = len(calls)
    with pytest.raises(RuntimeError, match="something else"):
        compiled_steps._compiled(broken, {})
    assert len(calls) == before + 1


def test_train__without_a_compiler(labelled, plan, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PotentialError, match=r"wants a C\+\+ compiler.*engine: eager"):
        train(labelled, plan, out=tmp_path / "model", seed=1)
    assert not (tmp_path / "model").exists()


def test_train__a_compiler_that_fails(labelled, plan, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/bin:/usr/bin")
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("MOFAL_COMPILED", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    other = vary(plan, architecture=ONE_LAYER.model_copy(update={"n_features": 3}))  # not kept yet
    with pytest.raises(PotentialError, match=r"compiling the training failed: .*engine: eager"):
        train(labelled, other, out=tmp_path / "model", seed=1)
    assert not (tmp_path / "model").exists()


def test_settings__one_structure_a_step_is_never_compiled():
    with pytest.raises(ValidationError, match="batch_size is 1"):
        TrainingSettings(engine="compiled", batch_size=1)


def test_settings__the_eager_training_is_what_it_was():
    assert "engine" not in TrainingSettings().model_dump()
    assert TrainingSettings(engine="compiled").model_dump()["engine"] == "compiled"
