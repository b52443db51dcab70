"""Walks: reproducible, resumable to the last bit, and never fatal."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT

from mofal.data import atom_slice, concat, from_atoms, to_atoms, validate
from mofal.data.sealed import read_sealed, write_sealed
from mofal.dynamics import WalkSettings, walk
from mofal.dynamics.checkpoint import load_checkpoint, save_checkpoint
from mofal.errors import ConfigError, StoreError, StructureError

NPT = WalkSettings(
    temperature_K=40.0,
    pressure_GPa=(-0.02, 0.05),
    timestep_fs=4.0,
    length_fs=240.0,
    thermostat_fs=100.0,
    barostat_fs=100.0,
    min_distance=2.0,
    sample_every=4,
    checkpoint_every=10,
)
NVT = replace(NPT, ensemble="nvt")


class Stop(BaseException):
    """Stands for a process that ends between two instructions."""


def breaking(make_potential, at, how):
    """A potential that goes wrong at call number `at`."""

    class Breaking(make_potential):
        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            if self.n_calls >= at:
                how(self, atoms)

    return Breaking


def same(one, two):
    """Bit for bit."""
    for name in ("positions", "cell"):
        np.testing.assert_array_equal(one.frame[name].values, two.frame[name].values)
    xr.testing.assert_identical(one.record, two.record)
    xr.testing.assert_identical(one.trace, two.trace)


@pytest.mark.parametrize("settings", [NPT, NVT], ids=["npt", "nvt"])
def test_walk__record(settings, argon, make_potential):
    lines = []
    result = walk(
        argon, calculator=make_potential, settings=settings, seed=3, progress=lines.append
    )
    validate(result.frame, "structures")
    record = result.record.isel(walk=0)
    assert record["walk_status"].item() == "finished"
    assert record["walk_reason"].item() == ""
    assert record["length_fs"] == record["planned_fs"] == record["stopped_fs"] == 240.0
    assert record["start_frame"].item() == argon["structure_id"].values[0]
    assert record["end_frame"].item() == result.frame["structure_id"].values[0]
    assert result.frame["parent"].values[0] == argon["structure_id"].values[0]
    assert record["walk_system"].item() == "argon" == result.frame["system"].values[0]
    np.testing.assert_array_equal(result.trace["time_fs"], np.arange(0, 241, 16))
    assert len(lines) == 6
    if settings is NPT:
        assert -0.02 <= record["pressure_GPa"] <= 0.05
        assert np.ptp(result.trace["volume"].values) > 1.0
    else:
        assert np.isnan(record["pressure_GPa"])
        np.testing.assert_array_equal(result.frame["cell"], argon["cell"])


def test_walk__seed_decides(argon, make_potential):
    one = walk(argon, calculator=make_potential(), settings=NPT, seed=5)
    seed = np.random.SeedSequence(5)
    two = walk(argon, calculator=make_potential(), settings=NPT, seed=seed)
    three = walk(argon, calculator=make_potential(), settings=NPT, seed=6)
    same(one, two)
    assert seed.n_children_spawned == 0
    assert np.abs(one.frame["positions"] - three.frame["positions"]).max() > 0.05
    assert one.record["pressure_GPa"].item() != three.record["pressure_GPa"].item()


def test_walk__records_join(argon, make_potential):
    walks = [walk(argon, calculator=make_potential, settings=NVT, seed=s) for s in (1, 2)]
    frames = concat([w.frame for w in walks])
    table = xr.concat([w.record for w in walks], "walk")
    assert frames.sizes["structure"] == table.sizes["walk"] == 2
    assert table["end_frame"].values.tolist() == frames["structure_id"].values.tolist()


def test_walk__of_one_among_several(argon, grid, make_potential):
    both = concat([grid, argon])
    one = walk(both, 1, calculator=make_potential, settings=NPT, seed=1)
    two = walk(argon, 0, calculator=make_potential, settings=NPT, seed=1)
    same(one, two)


def test_walk__positions_stay_continuous(argon, make_potential):
    result = walk(argon, calculator=make_potential, settings=NPT, seed=1)
    start, end = argon["cell"].values[0], result.frame["cell"].values[0]
    carried = argon["positions"].values @ np.linalg.solve(start, end)
    assert np.abs(result.frame["positions"].values - carried).max() < 1.5


def test_walk__cell_does_not_rotate(argon, make_potential):
    settings = replace(NPT, temperature_K=60.0, length_fs=2000.0)
    result = walk(argon, calculator=make_potential, settings=settings, seed=2)
    assert result.record["walk_status"].item() == "finished"
    gradient = np.linalg.solve(argon["cell"].values[0], result.frame["cell"].values[0])
    left, stretches, right = np.linalg.svd(gradient)
    angle = np.arccos(np.clip((np.trace(left @ right) - 1.0) / 2.0, -1.0, 1.0))
    assert np.abs(stretches - 1.0).max() > 0.01
    assert np.degrees(angle) < 0.5


# -- interruption


@pytest.mark.parametrize("settings", [NPT, NVT], ids=["npt", "nvt"])
@pytest.mark.parametrize("at", [5, 25, 45, 60])
def test_walk__resumed_is_the_walk_that_would_have_been(
    settings, at, argon, make_potential, tmp_path
):
    whole = walk(argon, calculator=make_potential, settings=settings, seed=9)

    def stop(self, atoms):
        raise Stop

    out = tmp_path / "walks" / "one.npz"
    with pytest.raises(Stop):
        walk(
            argon,
            calculator=breaking(make_potential, at, stop),
            settings=settings,
            seed=9,
            out=out,
        )
    potential = make_potential()
    resumed = walk(argon, calculator=potential, settings=settings, seed=9, out=out)
    same(resumed, whole)
    n_steps = settings.n_steps()
    assert potential.n_calls <= n_steps + 2 - 10 * ((at - 2) // 10)
    assert [p.name for p in out.parent.iterdir()] == ["one.npz"]


def test_walk__killed_process_resumes(argon, make_potential, tmp_path):
    out = tmp_path / "killed.npz"
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import time
from conftest import PairPotential
from mofal.data import read
from mofal.data.sealed import read_sealed, write_sealed
from mofal.dynamics import WalkSettings, walk
from mofal.dynamics.checkpoint import load_checkpoint, save_checkpoint

class Slow(PairPotential):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.n_calls == 35:
            print("here", flush=True)
            time.sleep(60)

walk(read({str(tmp_path / "start.xyz")!r}), calculator=Slow, seed=4, out={str(out)!r},
     settings=WalkSettings(**{NPT.__dict__!r}))
"""
    from mofal.data import write

    write(argon, tmp_path / "start.xyz")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "here"
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    potential = make_potential()
    resumed = walk(argon, calculator=potential, settings=NPT, seed=4, out=out)
    assert potential.n_calls < 35
    same(resumed, walk(argon, calculator=make_potential, settings=NPT, seed=4))


def unsealed(path):
    content, fault = read_sealed(path)
    assert not fault
    return content


def test_walk__ended_walk_is_not_walked_again(argon, make_potential, tmp_path):
    out = tmp_path / "walk.npz"
    first = walk(argon, calculator=make_potential, settings=NPT, seed=9, out=out)
    potential = make_potential()
    again = walk(argon, calculator=potential, settings=NPT, seed=9, out=out)
    same(first, again)
    assert potential.n_calls == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 10}, "seed"),
        ({"settings": replace(NPT, temperature_K=41.0)}, "settings"),
        ({"length_fs": 200.0}, "n_steps"),
    ],
)
def test_walk__checkpoint_of_another_walk(change, word, argon, make_potential, tmp_path):
    out = tmp_path / "walk.npz"
    given = {"settings": NPT, "seed": 9, "out": out, "calculator": make_potential}
    walk(argon, **given)
    before = out.read_bytes()
    with pytest.raises(StoreError, match=f"another walk.*{word}"):
        walk(argon, **{**given, **change})
    assert out.read_bytes() == before


@pytest.mark.parametrize("quantile", [0.005, 0.0])
def test_walk__unwatched_checkpoint_with_the_defaults_of_before(
    quantile, argon, make_potential, tmp_path
):
    """What is not watched decides nothing: holding and P(V) runs go on after an upgrade."""
    given = {"seed": 9, "out": tmp_path / "walk.npz", "calculator": make_potential}
    before = walk(
        argon, settings=replace(NPT, unfamiliar_quantile=quantile, unfamiliar_fs=20.0), **given
    )
    now = NPT if quantile else replace(NPT, unfamiliar_quantile=0.0)
    assert now.unfamiliar_fs == 10.0
    same(before, walk(argon, settings=now, **given))


def test_walk__checkpoint_of_a_newer_version(argon, make_potential, tmp_path):
    out = tmp_path / "walk.npz"
    walk(argon, calculator=make_potential, settings=NPT, seed=9, out=out)
    with np.load(io.BytesIO(unsealed(out))) as stored:
        entries = dict(stored)
    entries["format"] = np.int64(99)
    buffer = io.BytesIO()
    np.savez(buffer, **entries)
    write_sealed(buffer.getvalue(), out)
    with pytest.raises(StoreError, match="format 99"):
        walk(argon, calculator=make_potential, settings=NPT, seed=9, out=out)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_walk__damaged_checkpoint_starts_over(keep, argon, make_potential, tmp_path):
    out = tmp_path / "walk.npz"
    first = walk(argon, calculator=make_potential, settings=NPT, seed=9, out=out)
    content = out.read_bytes()
    out.write_bytes(content[: int(keep * len(content))])
    potential = make_potential()
    lines: list[str] = []
    again = walk(argon, calculator=potential, settings=NPT, seed=9, out=out, progress=lines.append)
    same(again, first)
    assert potential.n_calls > 0
    assert sum(line.endswith("the walk starts over") for line in lines) == 1


def test_load_checkpoint__a_flipped_bit_anywhere_is_met(argon, make_potential, tmp_path):
    """Every byte of the file once, a seeded bit in it: none is taken for the walk's own."""
    out = tmp_path / "walk.npz"
    identity = '{"model": "m", "seed": 1}'
    save_checkpoint(out, identity, {"positions": np.arange(6.0)}, {"step": 3, "status": ""})
    content = out.read_bytes()
    assert load_checkpoint(out, identity) is not None
    rng = np.random.default_rng(0)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        out.write_bytes(bytes(damaged))
        lines: list[str] = []
        assert load_checkpoint(out, identity, say=lines.append) is None, place
        assert len(lines) == 1


def test_load_checkpoint__of_the_version_before_goes_on(tmp_path):
    """Without a checksum, and without the name of the potential."""
    out = tmp_path / "walk.npz"
    old = {"format": np.int64(1), "meta": '{"step": 3}', "array_positions": np.arange(6.0)}
    np.savez(out, identity=np.array('{"model": "", "seed": 1}'), **old)
    arrays, meta = load_checkpoint(out, '{"model": "m", "seed": 1}')
    assert arrays["positions"].tolist() == list(range(6))
    assert meta == {"step": 3}
    with pytest.raises(StoreError, match=r"another walk.*seed"):
        load_checkpoint(out, '{"model": "m", "seed": 2}')
    lines: list[str] = []
    changed = '{"model": "m", "seed": 1, "settings": {"new": 1}}'
    assert load_checkpoint(out, changed, say=lines.append) is None
    assert "other rules" in lines[0]
    assert load_checkpoint(out, '{"model": "m", "seed": 1, "density": ""}') is not None


def test_walk__checkpoint_holds_no_pickle(argon, make_potential, tmp_path):
    out = tmp_path / "walk.npz"
    walk(argon, calculator=make_potential, settings=NPT, seed=9, out=out)
    with np.load(io.BytesIO(unsealed(out)), allow_pickle=False) as stored:
        for name in stored.files:
            assert stored[name].dtype.kind in "fiuUb"


# -- explosions


def squeeze(self, atoms):
    """Pushes atoms onto each other while the forces look harmless."""
    atoms.positions[1] = atoms.positions[0] + [0.5, 0.0, 0.0]


def hot(self, atoms):
    self.results["forces"] = 3.0 * np.ones_like(atoms.positions)


def wild(self, atoms):
    self.results["forces"][2, 0] = 1e4


def lost(self, atoms):
    self.results["forces"][2, 0] = np.nan


def collapse(self, atoms):
    self.results["stress"] = np.array([8.0, 8.0, 8.0, 0.0, 0.0, 0.0])


def refuse(self, atoms):
    raise RuntimeError("no convergence\nafter 500 iterations")


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        (squeeze, "exploded", "Å apart, limit 2 Å"),
        (hot, "exploded", "temperature"),
        (wild, "exploded", "force 10000"),
        (lost, "exploded", "not a finite number"),
        (collapse, "exploded", "cell stretched by"),
        (refuse, "crashed", "RuntimeError: no convergence"),
    ],
)
def test_walk__explosion_ends_at_the_last_checkpoint(
    how, status, reason, argon, make_potential, tmp_path
):
    at = 33
    result = walk(
        argon,
        calculator=breaking(make_potential, at, how),
        settings=NPT,
        seed=9,
        out=tmp_path / "walk.npz",
    )
    record = result.record.isel(walk=0)
    assert record["walk_status"].item() == status
    assert reason in record["walk_reason"].item()
    assert "\n" not in record["walk_reason"].item()
    reached = record["length_fs"].item()
    assert reached % 40.0 == 0.0
    assert 40.0 <= reached < record["stopped_fs"] <= 240.0
    # The frame kept is the frame of the undisturbed walk at that time.
    short = walk(argon, calculator=make_potential, settings=NPT, seed=9, length_fs=reached)
    if reached == 120.0:
        np.testing.assert_array_equal(result.frame["positions"], short.frame["positions"])
    assert np.isfinite(result.trace["temperature_K"]).all()
    again = walk(argon, calculator=make_potential, settings=NPT, seed=9, out=tmp_path / "walk.npz")
    same(again, result)


def test_walk__start_frame_that_is_not_sane(argon, make_potential):
    atoms = atom_slice(argon, 0)
    broken = argon.copy(deep=True)
    broken["positions"][atoms.start + 1] = broken["positions"][atoms.start] + 0.8
    result = walk(broken, calculator=make_potential, settings=NVT, seed=1)
    record = result.record.isel(walk=0)
    assert record["walk_status"].item() == "exploded"
    assert record["walk_reason"].item().startswith("start frame: ")
    assert record["length_fs"] == 0.0
    np.testing.assert_array_equal(result.frame["positions"], broken["positions"])
    assert result.frame["parent"].values[0] == ""


def test_walk__set_up_that_cannot_work_is_raised(argon, make_potential):
    with pytest.raises(RuntimeError, match="no convergence"):
        walk(argon, calculator=breaking(make_potential, 1, refuse), settings=NVT, seed=1)


def test_walk__cluster(grid, make_potential):
    with pytest.raises(StructureError, match="ensemble='nvt'"):
        walk(grid, calculator=make_potential, settings=NPT, seed=1)
    result = walk(grid, calculator=make_potential, settings=NVT, seed=1, length_fs=40.0)
    assert result.record["walk_status"].item() == "finished"
    assert result.frame["cell"].values.tolist() == grid["cell"].values.tolist()
    assert np.isnan(result.trace["pressure_GPa"]).all()


def test_walk__shorter_than_the_barostat(argon, make_potential):
    with pytest.raises(ConfigError, match="does not feel the pressure"):
        walk(argon, calculator=make_potential, settings=NPT, seed=1, length_fs=80.0)


def test_walk__with_a_calculator_of_ase():
    from ase.build import bulk

    copper = from_atoms([bulk("Cu", cubic=True)], system="Cu")
    settings = replace(NPT, temperature_K=300.0, pressure_GPa=1.0, length_fs=120.0)
    result = walk(copper, calculator=EMT, settings=settings, seed=1)
    assert result.record["walk_status"].item() == "finished"
    assert result.record["pressure_GPa"].item() == 1.0


def test_walk__ends_where_its_bonds_last_held(argon, make_potential, tmp_path):
    """Neighbours count as bonds here, which heat breaks; distances by ASE are the judge."""
    atoms = to_atoms(argon, 0)
    pairs = np.array([[0, j] for j in range(1, 32) if atoms.get_distance(0, j, mic=True) < 4.0])
    # The lattice shift that takes a partner to its nearest image.
    near = np.array([atoms.get_distance(0, j, mic=True, vector=True) for _, j in pairs])
    plain = atoms.positions[pairs[:, 1]] - atoms.positions[0]
    shifts = np.rint((near - plain) @ np.linalg.inv(atoms.cell.array)).astype(int)
    expected = np.linalg.norm(near, axis=1)
    settings = replace(NPT, temperature_K=120.0, max_bond_strain=0.12, length_fs=2000.0)
    how = {"calculator": make_potential, "settings": settings, "seed": 5}
    result = walk(argon, bonds=(pairs, shifts, expected), **how)
    record = result.record.isel(walk=0)
    assert record["walk_status"].item() == "bond_broken"
    assert "the bond of atoms 0 and" in record["walk_reason"].item()
    assert "limit 12%" in record["walk_reason"].item()
    assert 0 < record["length_fs"] < record["stopped_fs"] < 2000
    assert record["stopped_fs"] - record["length_fs"] <= 4 * 4.0  # the last sample before
    end = to_atoms(result.frame, 0)
    strain = [end.get_distance(0, j, mic=True) for _, j in pairs] / expected - 1
    assert 0.05 < np.abs(strain).max() <= 0.12
    unasked = walk(argon, **how).record.isel(walk=0)
    assert unasked["length_fs"] > record["length_fs"]
    assert "bond" not in unasked["walk_reason"].item()

    file = tmp_path / "walk.npz"
    with pytest.raises(Stop):
        walk(argon, bonds=(pairs, shifts, expected), out=file, progress=_stop_at(2), **how)
    same(result, walk(argon, bonds=(pairs, shifts, expected), out=file, **how))


def _stop_at(number):
    """End the process, as it were, at so many checkpoints."""
    seen = []

    def say(line):
        seen.append(line)
        if len(seen) == number:
            raise Stop

    return say
