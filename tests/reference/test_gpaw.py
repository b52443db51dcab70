"""Real GPAW calculations: molecules and a crystal, ranks, forces, eggbox, faults."""

import os
import pickle
import re
import signal
import threading
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mofal.clusters import compare_forces
from mofal.data import from_atoms
from mofal.errors import DependencyError, ReferenceError
from mofal.reference import LabelCache, get_reference, label_one
from mofal.reference import gpaw as gpaw_module
from mofal.reference.gpaw import PRESETS
from mofal.reference.processes import descendants

pytestmark = [pytest.mark.gpaw, pytest.mark.usefixtures("gpaw")]

# The cheapest that is still real: atomic orbitals on a coarse grid in a small box.
CHEAP = "gpaw:lcao?h=0.3&vacuum=3&poisson_extension=3"
# Finite differences on a grid that carries hydrogen, in a box that is too small for anything else.
FINITE = "gpaw:coarse?h=0.2&vacuum=2&poisson_extension=2"


def h2(distance=0.8):
    return Atoms("H2", [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3 + distance]])


def crystal():
    """Diamond's primitive cell, whose angles are 60 degrees, off its symmetric positions."""
    atoms = bulk("C")
    atoms.rattle(0.05, seed=2)
    return atoms


def cubic_crystal():
    """Diamond's cubic cell, eight atoms: atomic orbitals on two ranks need the room."""
    atoms = bulk("C", cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_level_of_theory__one_set_of_parameters(preset):
    reference = get_reference(f"gpaw:{preset}")
    level = reference.level_of_theory
    assert level["occupations"]["width"] == 0.0
    assert level["symmetry"] == "off"
    assert len(level["paw_data_sha256"]) == 64
    assert level["dispersion"]["s9"] == 0.0
    cluster, cell = reference.box(molecule("H2O")), reference.box(crystal())
    one = reference._parameters(cluster, {"name": "default"})
    other = reference._parameters(cell, {"name": "default"})
    assert one.pop("poissonsolver")["name"] == "ExtraVacuumPoissonSolver"
    assert other.pop("poissonsolver") == {"name": "fast"}
    del one["gpts"], other["gpts"]
    assert one == other
    assert reference.isolated_atom_energies(["Zr", "H"]) == {"H": 0.0, "Zr": 0.0}


def test_level_of_theory__paper():
    level = get_reference("gpaw:paper").level_of_theory
    assert (level["mode"], level["h"], level["stencil"]) == ("fd", 0.175, 6)
    assert level["interpolation"] == 4  # heptic
    assert level["cluster"]["vacuum"] == 4.0
    assert level["cluster"]["poisson_extension"] == 8.0
    assert level["method"] == "PBE-D3(BJ)"


def test_level_hash__resources_are_no_part_of_it():
    base = get_reference("gpaw:paper")
    same = get_reference("gpaw:paper?ranks=4&time_limit_s=10&max_iterations=5&memory_limit_GB=3")
    assert same.level_hash == base.level_hash
    assert get_reference("gpaw:paper?h=0.18").level_hash != base.level_hash
    # Labels of the preset's former spacing are those of a level that can still be named.
    new, old = get_reference("gpaw:lcao"), get_reference("gpaw:lcao?h=0.2")
    assert new.level_hash != old.level_hash
    assert {**new.level_of_theory, "h": 0.2} == old.level_of_theory
    assert pickle.loads(pickle.dumps(same)).ranks == 4


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gpaw:paper?ranks=0", "ranks = 0; expected a whole number from 1 up"),
        ("gpaw:paper?ranks=true", "ranks = True; expected a whole number"),
        ("gpaw:paper?ranks=null", "ranks = None; expected a whole number"),
        ("gpaw:paper?h=2", "0.05 to 0.5"),
        ("gpaw:lcao?h=abc", "gpaw:lcao: h = 'abc'; expected a number above zero"),
        ("gpaw:lcao?h=null", "h = None; expected a number above zero"),
        ("gpaw:lcao?h=true", "h = True; expected a number above zero"),
        ("gpaw:lcao?h=-0.2", "h = -0.2; expected a number above zero"),
        ("gpaw:paper?vacuum=0", "vacuum = 0; expected a number above zero"),
        ("gpaw:paper?poisson_extension=-1", "expected a number from zero up"),
        ("gpaw:paper?smearing=0.1", "'smearing'; there are h, vacuum"),
        ("gpaw:paper?rank=2", "'rank'; did you mean 'ranks'"),
        ("gpaw:paper?time_limit_s=-1", "time_limit_s = -1; expected a number above zero"),
        ("gpaw:paper?memory_limit_GB=abc", "memory_limit_GB = 'abc'; expected a number"),
        ("gpaw:paper?max_retries=-1", "max_retries = -1; expected a whole number from 0 up"),
        ("gpaw:paper?keep=no", "keep = 'no'; expected true or false"),
        ("gpaw:paper?launcher=srun", "launcher = 'srun'; expected a command line with {ranks}"),
        ("gpaw:paper?launcher=srun {x}", "launcher = 'srun {x}'; expected"),
        ("gpaw:paper?launcher=srun {ranks} {}", "no other placeholder"),
        ("gpaw:paper?launcher=srun {", "launcher = 'srun {'; expected"),
        ("gpaw:paper?launcher=srun -n {ranks} 'x", "expected a command line"),
        ("gpaw:paper?launcher=4", "launcher = 4; expected a command line"),
    ],
)
def test_gpaw_reference__refuses(spec, words):
    with pytest.raises(ReferenceError, match=re.escape(words)):
        get_reference(spec)


def test_gpaw_reference__launcher_is_told_the_ranks():
    reference = get_reference("gpaw:paper?ranks=3&launcher=srun -n {ranks} --exact")
    assert reference._launcher() == ["srun", "-n", "3", "--exact"]


@pytest.mark.parametrize(
    ("spec", "stated"),
    [
        ("gpaw:paper", 0.02),
        ("gpaw:lcao?ranks=2&time_limit_s=9&max_iterations=3", 0.05),
        ("gpaw:lcao?h=0.18", 0.05),  # the preset's own
        ("gpaw:lcao?h=0.2", None),
        ("gpaw:lcao?h=0.3", None),
        ("gpaw:paper?vacuum=5", None),
        ("gpaw:coarse?poisson_extension=0", None),
    ],
)
def test_stated_noise__is_that_of_the_very_level(spec, stated):
    reference = get_reference(spec)
    assert reference.stated_noise == stated
    bare = get_reference(spec.partition("?")[0])
    assert (reference.level_hash == bare.level_hash) == (stated is not None)


def test_gpaw_reference__without_mpi(monkeypatch):
    monkeypatch.setattr(gpaw_module.shutil, "which", lambda name: None)
    with pytest.raises(DependencyError, match=r"install\.sh"):
        gpaw_module.gpaw_reference("paper")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "make"), [(CHEAP, h2), (CHEAP, cubic_crystal), (FINITE, h2), (FINITE, crystal)]
)
def test_calculate__one_and_two_ranks_agree(mode, make, tmp_path):
    one = get_reference(f"{mode}&ranks=1").calculate(make(), directory=tmp_path)
    two = get_reference(f"{mode}&ranks=2").calculate(make(), directory=tmp_path)
    assert one.status == two.status == "converged", (one.reason, two.reason)
    np.testing.assert_allclose(one.forces, two.forces, atol=1e-6)
    assert one.energy == pytest.approx(two.energy, abs=1e-6)
    assert np.isnan(one.stress).all()
    assert one.retries == ()
    for attempt in (one, two):
        assert attempt.memory_peak < attempt.memory_estimate < 1.5 * attempt.memory_peak
    assert "gpaw" in one.versions
    assert "iter" in one.log_tail


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("make", [h2, crystal])
def test_calculate__forces_are_the_energy_gradient(make, tmp_path):
    """Central differences over 0.02 Å with the grid fixed in space: 0.02 eV/Å.

    That is what a grid of 0.2 Å allows: with it the forces are those of the energy on this grid,
    eggbox and all, up to what the interpolation between the two grids leaves out.
    """
    reference = get_reference(FINITE)
    atoms = make()
    a, c, step = 1, 2, 0.01
    forces = reference.calculate(atoms, directory=tmp_path).forces
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[a, c] += sign * step
        energies.append(reference.calculate(moved, directory=tmp_path).energy)
    numeric = -(energies[0] - energies[1]) / (2 * step)
    assert forces[a, c] == pytest.approx(numeric, abs=0.02)
    assert abs(forces[a, c]) > 0.1


@pytest.mark.slow
@pytest.mark.physics
@pytest.mark.parametrize("preset", ["lcao", "coarse"])
def test_calculate__eggbox_is_below_the_noise_that_the_preset_states(preset, tmp_path):
    reference = get_reference(f"gpaw:{preset}?poisson_extension=3&vacuum=3")
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=3)
    moved = atoms.copy()
    moved.positions += 0.4 * reference.preset.h
    one = reference.calculate(atoms, directory=tmp_path)
    other = reference.calculate(moved, directory=tmp_path)
    difference = one.forces - other.forces
    assert 1e-5 < np.sqrt((difference**2).mean()) < reference.preset.noise_rmse
    assert np.abs(difference).max() < reference.preset.noise_max


@pytest.mark.slow
@pytest.mark.physics
def test_calculate__crystal_and_cluster_agree_where_they_are_the_same(tmp_path):
    """A molecule in a large periodic cell on the same grid feels what it feels between walls."""
    reference = get_reference("gpaw:lcao?h=0.25")
    atoms = h2(0.9)
    cluster = reference.calculate(atoms, directory=tmp_path)
    periodic = atoms.copy()
    periodic.set_cell([9.0, 9.0, 9.0])
    periodic.pbc = True
    crystal_like = reference.calculate(periodic, directory=tmp_path)
    np.testing.assert_allclose(cluster.forces, crystal_like.forces, atol=5e-3)
    assert cluster.energy == pytest.approx(crystal_like.energy, abs=5e-3)


def chain(repeats=4):
    """All-trans polyethylene along z, CH2 by CH2 (C, H, H), in a cell of its own."""
    half = np.radians(112.0) / 2
    rise, aside = 1.53 * np.sin(half), 0.5 * 1.53 * np.cos(half)
    symbols, positions = [], []
    for k in range(2 * repeats):
        side = 1 if k % 2 else -1
        carbon = np.array([side * aside, 0.0, k * rise])
        symbols += ["C", "H", "H"]
        out = 1.10 * np.array([side * np.cos(np.radians(53.5)), np.sin(np.radians(53.5)), 0.0])
        positions += [carbon, carbon + out, carbon + out * [1, -1, 1]]
    cell = [7.0, 7.0, 2 * repeats * rise]
    atoms = Atoms(symbols, positions, cell=cell, pbc=True)
    atoms.positions += [3.5, 3.5, 0.0]
    atoms.rattle(0.04, seed=3)
    return atoms


def cut_chain(parent, middle, shells):
    """CH2 number `middle` with so many neighbours on each side, capped with H along cut bonds."""
    units = np.arange(middle - shells, middle + shells + 1)
    members = (3 * units[:, None] + np.arange(3)).ravel()
    caps = []
    for inside, outside in ((units[0], units[0] - 1), (units[-1], units[-1] + 1)):
        bond = parent.positions[3 * outside] - parent.positions[3 * inside]
        caps.append(parent.positions[3 * inside] + 1.09 * bond / np.linalg.norm(bond))
    atoms = parent[members]
    atoms.pbc, atoms.cell = False, None
    atoms += Atoms("HH", positions=caps)
    core = members // 3 == middle
    atoms.arrays["region"] = np.r_[np.where(core, 0, 1), 2, 2].astype("i1")
    atoms.arrays["parent_atom"] = np.r_[members, -1, -1]
    return atoms


@pytest.mark.slow
@pytest.mark.physics
def test_calculate__crystal_and_what_is_cut_from_it_agree_on_the_core(tmp_path):
    """Force matching of a chain of CH2 at one level for both boundary conditions.

    With two neighbours on either side the core feels what it feels in the crystal (the tolerance of
    `mofal match`), with one it does not. On a grid of 0.25 Å the noise of the grid hides it.
    """
    reference = get_reference("gpaw:lcao?h=0.18&vacuum=3&poisson_extension=3")
    parent = chain()
    whole = from_atoms([parent], system="chain")
    forces = reference.calculate(parent, directory=tmp_path).forces
    whole = whole.assign(forces=(("atom", "xyz"), forces))
    cut = [cut_chain(parent, 4, shells) for shells in (1, 2)]
    clusters = from_atoms(cut, system="chain")
    clusters["parent"] = ("structure", np.repeat(whole["structure_id"].values, 2))
    clusters["candidate"] = ("structure", np.array(["small", "large"]))
    clusters["n_electrons"] = ("structure", np.array([int(a.numbers.sum()) for a in cut]))
    found = [reference.calculate(atoms, directory=tmp_path).forces for atoms in cut]
    table = compare_forces(whole, clusters, np.concatenate(found))
    rmse = dict(zip(table["candidate"].values.tolist(), table["rmse_core"].values.tolist()))
    assert rmse["large"] < 0.1
    assert rmse["small"] > 2 * rmse["large"]
    assert table["rmse_all"].values[-1] > rmse["large"]


@pytest.mark.slow
def test_calculate__not_converging_input(tmp_path):
    attempt = label_one(h2(), f"{CHEAP}&max_iterations=2", directory=tmp_path)
    assert attempt.status == "not_converged"
    assert [r["failed"] for r in attempt.retries] == ["default"]
    assert "iter" in attempt.log_tail
    (recorded,) = LabelCache(tmp_path).records()
    assert recorded.retries == attempt.retries


@pytest.mark.slow
def test_calculate__retry_reaches_the_same_answer(tmp_path, monkeypatch):
    """A first way that cannot converge, a second one that does: the same label, and it says so."""
    straight = get_reference(f"{CHEAP}&threads=1").calculate(h2(), directory=tmp_path)
    hopeless = {"name": "hopeless", "maxiter": 2}
    monkeypatch.setattr(gpaw_module, "ROUTES", (hopeless, *gpaw_module.ROUTES[1:]))
    attempt = get_reference(CHEAP).calculate(h2(), directory=tmp_path)
    assert attempt.converged
    assert [r["failed"] for r in attempt.retries] == ["hopeless"]
    assert attempt.level_hash == straight.level_hash
    assert attempt.energy == pytest.approx(straight.energy, abs=2e-3)
    np.testing.assert_allclose(attempt.forces, straight.forces, atol=1e-2)


def test_calculate__time_limit_ends_every_rank(tmp_path):
    start = time.perf_counter()
    attempt = label_one(molecule("C6H6"), "gpaw:paper?ranks=2&time_limit_s=4", directory=tmp_path)
    assert time.perf_counter() - start < 15
    assert attempt.status == "timed_out"
    assert "4 s" in attempt.reason
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
def test_calculate__killed_rank(tmp_path):
    """The second rank is killed as it works: mpirun takes the others down, the attempt says so."""
    killed = []

    def kill_one():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not killed:
            time.sleep(0.2)
            for entry in os.listdir("/proc"):
                if not entry.isdigit():
                    continue
                try:
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        line = file.read().split(b"\0")
                    with open(f"/proc/{entry}/environ", "rb") as file:
                        rank = b"OMPI_COMM_WORLD_RANK=1\0" in file.read()
                except OSError:
                    continue
                place = str(tmp_path).encode()
                started = list(tmp_path.rglob("gpaw.txt"))
                if rank and started and any(w.startswith(place) for w in line):
                    os.kill(int(entry), signal.SIGKILL)
                    killed.append(int(entry))
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    attempt = label_one(
        molecule("C6H6"), "gpaw:coarse?ranks=2&time_limit_s=120", directory=tmp_path
    )
    killer.join()
    assert killed
    assert attempt.status == "crashed"
    assert "SIGKILL" in attempt.reason or "status" in attempt.reason
    assert "signal 9" in attempt.log_tail
    assert not [p for p in descendants(os.getpid()) if "gpaw" in " ".join(p.cmdline())]
    assert len(list(LabelCache(tmp_path).records())) == 1


@pytest.mark.slow
def test_calculate__filled_disk(tmp_path):
    """No file of a rank may grow beyond half a kilobyte: the log of GPAW does, and it fails.

    That says nothing about the structure, so it is no result.
    """
    launcher = "mpirun --oversubscribe --bind-to none -np {ranks}"
    if os.geteuid() == 0:
        launcher += " --allow-run-as-root"
    launcher += " sh -c 'ulimit -f 1; exec \"$@\"' sh"
    reference = get_reference(f"{CHEAP}&time_limit_s=60", launcher=launcher)
    with pytest.raises(OSError, match="File too large"):
        label_one(h2(), reference, directory=tmp_path)
    assert list(LabelCache(tmp_path).records()) == []


@pytest.mark.slow
def test_calculate__launcher_that_starts_nothing(tmp_path):
    reference = get_reference(f"{CHEAP}&time_limit_s=60", launcher="false {ranks}")
    with pytest.raises(ReferenceError):
        label_one(h2(), reference, directory=tmp_path)
    assert list(LabelCache(tmp_path).records()) == []


def test_calculate__unknown_element_in_the_paw_data(tmp_path):
    atoms = Atoms("UO", [[0, 0, 0], [0, 0, 1.8]])
    attempt = label_one(atoms, "gpaw:paper", directory=tmp_path)
    assert attempt.status == "crashed"
    assert attempt.reason == "no PAW data for U"
    with pytest.raises(ReferenceError, match="for U"):
        get_reference("gpaw:paper").cost(atoms)


def test_calculate__job_that_cannot_fit_is_refused_at_once(tmp_path):
    start = time.perf_counter()
    attempt = label_one(molecule("C6H6"), "gpaw:paper?memory_limit_GB=0.3", directory=tmp_path)
    assert time.perf_counter() - start < 2
    assert attempt.status == "out_of_memory"
    assert "refused" in attempt.reason
    assert attempt.memory_estimate > 0.3


def test_calculate__periodic_along_one_direction_only(tmp_path):
    atoms = h2()
    atoms.set_cell([5, 5, 5])
    atoms.pbc = [True, False, False]
    attempt = get_reference("gpaw:paper").calculate(atoms, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert "some directions" in attempt.reason


@pytest.mark.parametrize(("symbols", "electrons"), [("H", 1), ("OH", 9), ("NO", 15)])
def test_calculate__odd_number_of_electrons_is_refused_at_once(tmp_path, symbols, electrons):
    atoms = Atoms(symbols, [[0.0, 0.0, k] for k in range(len(symbols))])
    attempt = label_one(atoms, "gpaw:paper", directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert f"{electrons} electrons; an odd number needs spin polarisation" in attempt.reason
    assert not (tmp_path / "scratch").exists()  # nothing was started
    # The zero of energies is no calculation of such an atom.
    assert set(get_reference("gpaw:paper").isolated_atom_energies(symbols).values()) == {0.0}
