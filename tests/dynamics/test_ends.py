"""Walks end for a reason: bonds beyond what their kind does, environments that are not known."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import all_changes

from mofal.data import atom_slice, concat, from_atoms, to_atoms
from mofal.density import PerElementDensity
from mofal.dynamics import Network, WalkSettings, bond_limits, sample_harmonic, walk
from mofal.dynamics.checks import bond_lengths
from mofal.dynamics.limits import SOFT, SOFT_METAL
from mofal.errors import ConfigError, StructureError
from mofal.frameworks import build
from mofal.frameworks.bonds import find_bonds
from tests.dynamics.test_walker import NPT, Stop, _stop_at, same

HOT = WalkSettings(
    ensemble="nvt", temperature_K=40.0, timestep_fs=4.0, length_fs=2000.0, thermostat_fs=100.0,
    min_distance=2.0, sample_every=2, checkpoint_every=10, unfamiliar_quantile=1e-3,
    unfamiliar_fs=40.0,
)  # fmt: skip


def bonds_of(ds):
    found = find_bonds(ds)
    return found["bond_atom"].values, found["bond_shift"].values


@pytest.fixture(scope="module")
def cell():
    return build("S_ld", cell="primitive")


def test_bond_limits__as_frames_of_the_sampler_say(cell):
    """The sampler draws whole frames another way: volume fixed, no strain."""
    bonds, shifts = bonds_of(cell)
    limits = bond_limits(cell, temperature_K=600.0, bonds=bonds, shifts=shifts)
    frames = sample_harmonic(
        cell, n=60, temperature_K=600, seed=3, volume_strain=0.0, shear=0.0, farthest=3, closest=0.1
    )
    strain = np.array(
        [
            bond_lengths(
                frames["positions"].values[atom_slice(frames, k)],
                frames["cell"].values[k], bonds, shifts,
            ) / limits.expected - 1.0
            for k in range(60)
        ]
    )  # fmt: skip
    found = np.sqrt((strain**2).mean(axis=0))
    numbers = cell["numbers"].values
    for pair in ((1, 6), (6, 6), (6, 8), (8, 40)):
        of = (np.sort(numbers[bonds], axis=1) == pair).all(axis=1)
        soft = SOFT_METAL if 40 in pair else SOFT
        assert limits.spread[of].mean() == pytest.approx(soft * found[of].mean(), rel=0.08)


def test_bond_limits__a_bond_of_one_spring():
    """Two atoms on one spring: kT/k, and the floor, which both ends share."""
    from ase import Atoms

    pair = from_atoms([Atoms("C2", [[0, 0, 0], [1.5, 0, 0]])], system="pair")
    how = {"bonds": np.array([[0, 1]]), "shifts": np.zeros((1, 3), int)}
    stiff = Network(stretch=3000.0, floor=600.0)
    limits = bond_limits(pair, temperature_K=300.0, network=stiff, **how)
    expected = np.sqrt(units.kB * 300.0 / (3000.0 + 600.0 / 2)) / 1.5 * SOFT
    assert limits.spread[0] == pytest.approx(expected, rel=0.2)  # of 64 draws
    hotter = bond_limits(pair, temperature_K=1200.0, network=stiff, **how)
    assert hotter.spread[0] == pytest.approx(2 * limits.spread[0], rel=0.02)


def test_bond_limits__refusals(cell):
    bonds, shifts = bonds_of(cell)
    with pytest.raises(ConfigError, match="temperature_K"):
        bond_limits(cell, temperature_K=0.0, bonds=bonds, shifts=shifts)
    with pytest.raises(StructureError, match="without bonds"):
        bond_limits(cell, temperature_K=1.0, bonds=bonds[:0], shifts=shifts[:0])


def test_walk__a_bond_beyond_its_kind(argon, make_potential, tmp_path):
    """Neighbours count as bonds with a given spread; a second limit on their running mean."""
    atoms = to_atoms(argon, 0)
    pairs = np.array([[0, j] for j in range(1, 32) if atoms.get_distance(0, j, mic=True) < 4.0])
    near = np.array([atoms.get_distance(0, j, mic=True, vector=True) for _, j in pairs])
    plain = atoms.positions[pairs[:, 1]] - atoms.positions[0]
    shifts = np.rint((near - plain) @ np.linalg.inv(atoms.cell.array)).astype(int)
    from mofal.dynamics import BondLimits

    limits = BondLimits(
        pairs, shifts, np.linalg.norm(near, axis=1), np.full(len(pairs), 0.12 / 6.5)
    )
    settings = replace(NPT, temperature_K=120.0, length_fs=2000.0, bond_mean_z=None)
    how = {"calculator": make_potential, "settings": settings, "seed": 5}
    result = walk(argon, bonds=limits, **how)
    strained = replace(settings, bond_z=None, max_bond_strain=0.12)
    other = walk(argon, bonds=limits, **{**how, "settings": strained})
    assert result.record["walk_status"].item() == "bond_broken"
    assert "standard deviations of its kind" in result.record["walk_reason"].item()
    # The same limit said another way: the same walk.
    assert result.record["stopped_fs"].item() == other.record["stopped_fs"].item()
    np.testing.assert_array_equal(result.frame["positions"].values, other.frame["positions"].values)
    meant = replace(settings, bond_z=None, bond_mean_z=1.0, bond_mean_fs=200.0)
    result = walk(argon, bonds=limits, **{**how, "settings": meant})
    assert "in the mean" in result.record["walk_reason"].item()
    file = tmp_path / "walk.npz"
    with pytest.raises(Stop):
        walk(argon, bonds=limits, out=file, progress=_stop_at(2), **{**how, "settings": meant})
    same(result, walk(argon, bonds=limits, out=file, **{**how, "settings": meant}))


@pytest.fixture
def described(make_potential):
    """The pair potential with two features of its own: sums over neighbours of each atom."""

    class Described(make_potential):
        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            from matscipy.neighbours import neighbour_list

            i, d = neighbour_list("id", atoms, 6.0)
            self.results["features"] = np.stack(
                [
                    np.bincount(i, weights=np.exp(-((d / w) ** 2)), minlength=len(atoms))
                    for w in (2.0, 3.0)
                ],
                axis=1,
            )

    return Described


KNOWN: dict[float, PerElementDensity] = {}


def known(argon, described, temperature_K):
    """A density of what walks at a temperature meet; made once."""
    if temperature_K in KNOWN:
        return KNOWN[temperature_K]
    calculator, rows = described(), []
    settings = replace(HOT, temperature_K=temperature_K, length_fs=80.0)
    frame = argon
    for k in range(20):
        frame = walk(frame, calculator=described, settings=settings, seed=(9, k)).frame
        atoms = to_atoms(frame, 0)
        calculator.calculate(atoms)
        rows.append(calculator.results["features"])
    x, labels = np.concatenate(rows), np.full(20 * 32, 18)
    density = PerElementDensity(n_components=1, random_state=0).fit(x, labels)
    KNOWN[temperature_K] = density.calibrate(x, labels)
    return KNOWN[temperature_K]


def test_walk__unfamiliar(argon, described, tmp_path):
    """What was met at 40 K is familiar; at 200 K the crystal leaves it, and says where."""
    density = known(argon, described, 40.0)
    calm = walk(argon, calculator=described, settings=HOT, seed=2, density=density)
    assert calm.record["walk_status"].item() == "finished"
    assert calm.record["unfamiliar_atoms"].item() == "[]"
    hot = replace(HOT, temperature_K=200.0)
    how = {"calculator": described, "settings": hot, "seed": 2, "density": density}
    result = walk(argon, **how)
    record = result.record.isel(walk=0)
    assert record["walk_status"].item() == "unfamiliar"
    assert "below the quantile 0.001 for 40 fs" in record["walk_reason"].item()
    # The frame kept is the first of the forty femtoseconds, to a sample.
    assert 40 - 4 - 8 <= record["stopped_fs"] - record["length_fs"] <= 40
    atoms = np.array(json.loads(record["unfamiliar_atoms"].item()))
    calculator = described()
    calculator.calculate(to_atoms(result.frame, 0))
    x = calculator.results["features"]
    quantile = density.quantile(density.score_samples(x, np.full(32, 18)), np.full(32, 18))
    assert (quantile[atoms] < 1e-3).all()

    file = tmp_path / "walk.npz"
    with pytest.raises(Stop):
        walk(argon, out=file, progress=_stop_at(2), **how)
    same(result, walk(argon, out=file, **how))
    same(result, walk(argon, out=file, **how))  # an ended one is recalled


def test_walk__unfamiliar_from_the_start_is_recorded(argon, described):
    density = known(argon, described, 40.0)
    squeezed = to_atoms(argon, 0)
    squeezed.positions[5] += [0.9, 0.4, 0.0]
    ds = concat([from_atoms([squeezed], system="argon")])
    short = replace(HOT, length_fs=60.0)
    result = walk(ds, calculator=described, settings=short, seed=2, density=density)
    assert result.record["unfamiliar_at_start"].item() > 0
    assert 5 not in json.loads(result.record["unfamiliar_atoms"].item())


def test_walk__a_density_of_another_potential_is_refused(argon, described):
    density = copy.copy(known(argon, described, 40.0))
    density.model_hash = "another"
    calculator = described()
    calculator.model_hash = "this one"
    with pytest.raises(ConfigError, match="potential another, this walk's is this one"):
        walk(argon, calculator=calculator, settings=HOT, seed=2, density=density)


def test_walk__a_density_wants_features(argon, described, make_potential):
    density = known(argon, described, 40.0)
    with pytest.raises(ConfigError, match=r"calculator\(features=True\)"):
        walk(argon, calculator=make_potential, settings=HOT, seed=2, density=density)
