"""`mofal export --density`: what a campaign knows goes with its potential, or is refused early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mofal
from mofal.cli import main
from mofal.data import atom_slice, open_group, select, to_atoms
from mofal.density import PerElementDensity, fit_density
from mofal.potential import load
from mofal.potential.exported import ExportedPotential

pytestmark = pytest.mark.slow


def test_export__quantiles_are_those_of_the_campaigns_scores(
    finished: Path, tmp_path: Path
) -> None:
    """The density that a cycle was scored with, as a file, beside the model that it is for."""
    cycle = finished / "cycle-001"
    model, output = str(finished / "cycle-000" / "model"), str(tmp_path / "m.nequip.zip")
    density = str(cycle / "density.zarr")
    assert main(["export", model, "-o", output, "--density", density]) == 0
    opened = ExportedPotential(output)
    scores = open_group(cycle / "defective" / "scores.zarr").load()
    samples = open_group(cycle / "defective" / "samples.zarr").load()
    assert opened.density_hash == scores.attrs["density_hash"]
    for i, frame in enumerate(to_atoms(samples)):
        own = atom_slice(samples, i)
        score = opened.score(frame.numbers, frame.positions, frame.cell.array, frame.pbc)
        wanted = scores["quantile"].values[own]
        np.testing.assert_allclose(score["quantile"], wanted, rtol=2e-3, atol=2e-4)


def test_export__a_campaign_knows_all_that_its_last_model_learnt(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a density that is fitted here on the training part of the campaign's data."""
    output = tmp_path / "m.nequip.zip"
    given = ["export", str(finished), "-o", str(output), "--density", str(finished)]
    assert main(given) == 0
    assert "m.density.npz; its calculator:" in capsys.readouterr().out
    names = {"m.nequip.zip", "m.nequip.zip.sha256", "m.density.npz", "m_calculator.py"}
    assert {p.name for p in tmp_path.iterdir()} == names
    campaign = mofal.open(finished)
    potential = campaign.potential()
    opened = ExportedPotential(output)
    assert opened.model_hash == potential.model_hash
    data = campaign.site.training_set(1, whole=True)
    part = select(data, data["split"].values == "train")
    settings = campaign.config.density
    fitted = fit_density(
        potential.featurize(part),
        n_components=settings.components,
        max_components=settings.max_components,
        random_state=campaign.site.integer_seed("density", 2),
    )
    first = to_atoms(part)[0]
    features = potential.featurize(part)["features"].values[: len(first)]
    score = opened.score(first.numbers, first.positions, first.cell.array, first.pbc)
    wanted = fitted.score_samples(features, first.numbers)
    np.testing.assert_allclose(score["log_likelihood"], wanted, rtol=1e-3, atol=1e-3)


def test_export__density_that_cannot_go_with_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "m.nequip.zip")
    seed = str(finished / "cycle-000" / "model")

    def refusal(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["export", *arguments]) != 0
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.strip()]
        return line

    last = load(finished / "cycle-001" / "model").model_hash
    assert f"its last model is {last}" in refusal(seed, "-o", out, "--density", str(finished))
    of_the_seed = str(finished / "cycle-001" / "density.zarr")
    line = refusal(str(finished), "-o", out, "--density", of_the_seed)
    assert PerElementDensity.load(of_the_seed).model_hash in line
    assert "nowhere" in refusal(seed, "-o", out, "--density", str(tmp_path / "nowhere"))
    lammps = ("--target", "lammps", "--density", str(finished))
    assert "leave the density out" in refusal(str(finished), "-o", out, *lammps)
    assert "ends in neither" in refusal(str(finished), "-o", str(tmp_path / "m.pt"))
    assert list(tmp_path.iterdir()) == []
