"""Engines of mechanics: chosen once, kept, and refused where they cannot be had."""

from __future__ import annotations

import pytest
from ase.build import bulk
from ase.io import write

from mofal.cli import main
from mofal.data import from_atoms
from mofal.errors import ConfigError, PotentialError
from mofal.mechanics import (
    Curve,
    CurveSettings,
    Elastic,
    PressureSettings,
    PressureVolume,
    choose_engine,
    potential_level,
    reference_level,
)
from mofal.mechanics.engines import evaluations_of, keep_engine, recorded_engine
from mofal.potential import Architecture, create

TINY = Architecture(
    r_max=3.2, n_layers=1, n_features=4, radial_layers=1, radial_neurons=8, feature_dim=4
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "model"
    create(TINY, ["Cu", "O"], seed=1, avg_num_neighbors=8.0).save(place)
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is compiled here before."""
    monkeypatch.setenv("MOFAL_COMPILED", str(tmp_path / "compiled"))


def asked(level, place, wanted=None, evaluations=1e9, **more):
    atoms = [bulk("Cu", cubic=True)]
    return choose_engine(level, place, wanted, atoms=atoms, evaluations=evaluations, **more)


def test_choose_engine__what_was_begun_goes_on(model, tmp_path):
    level = potential_level(model)
    assert asked(level, tmp_path)[0].engine == "eager"
    chosen, reason = asked(level, tmp_path, "compiled")
    assert chosen.engine == "compiled"
    keep_engine(chosen, tmp_path, reason)
    keep_engine(chosen, tmp_path, reason)
    assert recorded_engine(tmp_path, level.identity) == "compiled"
    for wanted in (None, "auto", "compiled"):
        assert asked(level, tmp_path, wanted, 1.0)[0].engine == "compiled"
    with pytest.raises(ConfigError, match="begun with the compiled network of this"):
        asked(level, tmp_path, "eager")
    with pytest.raises(ConfigError, match="meanwhile"):
        keep_engine(level, tmp_path, "")
    # Another model in the same directory is another story.
    create(TINY, ["Cu"], seed=2, avg_num_neighbors=8.0).save(tmp_path / "other")
    other = potential_level(tmp_path / "other")
    assert asked(other, tmp_path, "eager")[0].engine == "eager"
    keep_engine(other, tmp_path, "")
    assert recorded_engine(tmp_path, level.identity) == "compiled"
    assert recorded_engine(tmp_path, other.identity) == "eager"


def test_choose_engine__auto_weighs_the_work(model, tmp_path, monkeypatch):
    level = potential_level(model)
    assert asked(level, tmp_path, "auto", 10.0)[0].engine == "eager"
    assert asked(level, tmp_path, "auto", 1e9)[0].engine == "compiled"
    assert asked(level, tmp_path, "auto", 1e9, workers=10**9)[0].engine == "eager"
    with pytest.raises(ConfigError, match="auto, eager, compiled"):
        asked(level, tmp_path, "fast")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert asked(level, tmp_path, "auto", 1e9)[0].engine == "eager"
    with pytest.raises(PotentialError, match="C\\+\\+ compiler"):
        asked(level, tmp_path, "compiled")
    # Workers elsewhere may have one.
    assert asked(level, tmp_path, "compiled", here=False)[0].engine == "compiled"


def test_choose_engine__a_reference_has_no_network(tmp_path):
    emt = reference_level("ase:ase.calculators.emt:EMT")
    assert asked(emt, tmp_path, "auto")[0] == asked(emt, tmp_path)[0] == emt
    with pytest.raises(ConfigError, match="is a reference"):
        asked(emt, tmp_path, "compiled")
    keep_engine(emt, tmp_path, "")
    assert not any(tmp_path.iterdir())


def test_points_of_two_engines_never_meet(model, tmp_path):
    structure = from_atoms([bulk("Cu", cubic=True)], system="copper")
    keys = set()
    for engine in ("eager", "compiled"):
        level = potential_level(model, engine=engine)
        curve = Curve(structure, level, directory=tmp_path)
        strains = Elastic("copper", curve.point("minimum"), level, directory=tmp_path)
        keys |= {curve.key, strains.key, PressureVolume(curve).key}
        assert curve.first().kwargs["level"]["engine"] == engine
    assert len(keys) == 6
    with pytest.raises(ConfigError, match="eager or compiled"):
        potential_level(model, engine="auto")


def test_evaluations_of__counts_what_the_plans_do(model, tmp_path):
    """Runs and steps of P(V) against those that a plan walks."""
    structure = from_atoms([bulk("Cu", cubic=True)], system="copper")
    curve = Curve(structure, potential_level(model), directory=tmp_path)
    settings = PressureSettings(
        pressures_GPa=(0.0, 0.1), volumes=(0.96, 0.98, 1.0), length_fs=4000.0, timestep_fs=2.0
    )
    plan = PressureVolume(curve, settings)
    runs = sum(len(plan.runs(*point)) for point in plan.points())
    found = evaluations_of(["pv"], curve=CurveSettings(), pressure=settings)
    # The ends of the curve are walked once, which the estimate does not go into.
    assert runs * 2000 <= found <= (runs + 1) * 2000 + 400
    assert evaluations_of(["eos"], curve=CurveSettings()) == 20 * (2 + 18)


def test_command__one_line_before_anything_is_written(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("copper.extxyz", bulk("Cu", a=3.6))

    def refusal(*args):
        assert main(["mechanics", "copper.extxyz", "--rule", "none", *args]) != 0
        lines = [x for x in capsys.readouterr().err.splitlines() if x.strip()]
        assert len(lines) == 1
        return lines[0]

    potential = ("--potential", str(model))
    emt = ("--reference", "ase:ase.calculators.emt:EMT")
    assert "expected auto, eager" in refusal(*potential, "--engine", "fast")
    assert "is a reference" in refusal(*emt, "--engine", "compiled")
    with monkeypatch.context() as bare:
        bare.setenv("PATH", "")
        bare.delenv("CXX", raising=False)
        assert "C++ compiler" in refusal(*potential, "--engine", "compiled")
    assert not (tmp_path / "mechanics").exists()
    keep_engine(potential_level(model), tmp_path / "mechanics", "")
    line = refusal(*potential, "--engine", "compiled")
    assert "leave --engine out, or give another --directory" in line
    assert [p.name for p in (tmp_path / "mechanics").iterdir()] == ["engine.json"]
