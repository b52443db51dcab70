"""CP2K: what it is told, what is read back, and real labels against independent numbers."""

import pickle
import re
import shutil

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mofal.errors import DependencyError, ReferenceError
from mofal.reference import cp2k as cp2k_module
from mofal.reference import get_reference, label_one
from mofal.reference.cp2k_data import Kind, data_directory, fft_length, spacing_of
from mofal.reference.cp2k_files import read_output, write_input

# A real density on a grid, as cheap as one can be.
CHEAP = "cp2k:pbe?basis=SZV-MOLOPT-SR-GTH&cutoff=150&rel_cutoff=40"
DZVP = "cp2k:pbe?cutoff=250&rel_cutoff=40&vacuum=3"
XTB = "cp2k:gfn1-xtb"


@pytest.fixture
def cp2k():
    """Skip, and say so, where CP2K is not installed."""
    if not any(map(shutil.which, cp2k_module.PROGRAMS)) or shutil.which("mpirun") is None:
        pytest.skip("CP2K IS NOT INSTALLED, its labels are not tested: make cp2k")


def water():
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=3)
    return atoms


def diamond():
    atoms = bulk("C", cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


# ------------------------------------------------------------------------------ without CP2K
def test_write_input__sections_keywords_and_repetitions():
    text = write_input({"A": {"X": True, "Y": None, "KIND O": {"N": 1.5}, "C": ["1 2", "3 4"]}})
    assert text == "&A\n  X T\n  &KIND O\n    N 1.5\n  &END KIND\n  C 1 2\n  C 3 4\n&END A\n"


HEAD = " CP2K| version string:        CP2K version 2024.3\n SCF WAVEFUNCTION OPTIMIZATION\n"
ENERGY = " ENERGY| Total FORCE_EVAL ( QS ) energy [hartree]         -1.000000000000000\n"
NEW = HEAD + "  *** SCF run converged in 9 steps ***\n" + ENERGY
NEW += """
 FORCES| Atomic forces [hartree/bohr]
 FORCES| Atom x               y               z               |f|
 FORCES|    1  1.00000000E-02  2.00000000E-02 -3.00000000E-02  3.7E-02
 FORCES|    2 -1.00000000E-02 -2.00000000E-02  3.00000000E-02  3.7E-02
 FORCES| Sum   0.00000000E+00  0.00000000E+00  0.00000000E+00  0.0E+00
  **** **** ******  **  PROGRAM ENDED AT                 2026-01-01
"""


def test_read_output__the_form_of_2024(tmp_path):
    (tmp_path / "out").write_text(NEW)
    out = read_output(tmp_path / "out")
    assert (out.converged, out.ended, out.version) == (True, True, "2024.3")
    assert out.energy == pytest.approx(-27.2114, abs=1e-4)
    # 1 hartree/bohr is 51.4221 eV/Å.
    np.testing.assert_allclose(out.forces[0], 51.4221 * np.array([0.01, 0.02, -0.03]), rtol=1e-5)
    assert out.forces.shape == (2, 3)


@pytest.mark.parametrize(
    ("said", "converged"),
    [
        ("*** SCF run NOT converged ***\n outer SCF loop converged in 2 iterations", True),
        ("*** SCF run converged in 3 steps\n outer SCF loop FAILED to converge after 9", False),
        ("*** SCF run NOT converged ***", False),
        ("No outer SCF\n *** SCF run converged in 3 steps", True),
        ("", False),
    ],
)
def test_read_output__converged_or_not(said, converged, tmp_path):
    (tmp_path / "out").write_text(f"{HEAD}{said}\n{ENERGY} PROGRAM ENDED AT\n")
    assert read_output(tmp_path / "out").converged is converged


def test_read_output__nothing_there(tmp_path):
    out = read_output(tmp_path / "out")
    assert (out.begun, out.ended, out.converged, len(out.forces)) == (False, False, False, 0)
    assert np.isnan(out.energy)


def test_grid__carries_the_cutoff():
    assert spacing_of(400.0) == pytest.approx(0.08312, abs=1e-4)  # π/√400 bohr
    assert [fft_length(n) for n in (2, 7, 97, 121)] == [2, 8, 100, 128]


@pytest.mark.parametrize(
    ("z", "per_l", "valence", "core"),
    [
        (8, (2, 4), "2s2 2p4", "1s2"),
        (1, (1,), "1s1", ""),
        (40, (4, 6, 2), "4s2 5s2 4p6 4d2", "1s2 2s2 2p6 3s2 3p6 3d10"),
        (30, (2, 0, 10), "4s2 3d10", "1s2 2s2 2p6 3s2 3p6"),
    ],
)
def test_kind__configuration_of_the_atom(z, per_l, valence, core):
    assert Kind("b", "p", per_l, 1).configuration(z) == (valence, core)


def test_cp2k_reference__not_installed(monkeypatch):
    monkeypatch.setattr(cp2k_module.shutil, "which", lambda name: None)
    with pytest.raises(DependencyError, match=r"cp2k:pbe needs CP2K.*apt-get install cp2k"):
        cp2k_module.cp2k_reference("pbe")
    with pytest.raises(DependencyError, match="there is no /opt/none"):
        cp2k_module.cp2k_reference("pbe", program="/opt/none")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cp2k:b3lyp", "no preset; there are pbe, gfn1-xtb"),
        ("cp2k:pbe?cutof=300", "did you mean 'cutoff'"),
        ("cp2k:pbe?cutoff=abc", "cutoff = 'abc'; expected a number above zero"),
        ("cp2k:pbe?cutoff=5", "cutoff = 5, rel_cutoff = 50 Ry; expected 50 to 3000"),
        ("cp2k:pbe?basis=6-31G", "basis = '6-31G'; expected one of SZV"),
        ("cp2k:gfn1-xtb?cutoff=300", "no option 'cutoff'"),
        ("cp2k:pbe?smooth=nn5", "smooth = 'nn5'; expected one of nn50, nn10, none"),
        ("cp2k:pbe?ranks=0", "ranks = 0; expected a whole number"),
        ("cp2k:pbe?launcher=srun", "expected a command line with {ranks}"),
    ],
)
def test_cp2k_reference__refuses(cp2k, spec, words):
    with pytest.raises(ReferenceError, match=re.escape(words)):
        get_reference(spec)


# ------------------------------------------------------------------------------ its level
def test_level__data_and_resources(cp2k):
    base = get_reference("cp2k:pbe")
    same = get_reference("cp2k:pbe?ranks=4&time_limit_s=10&max_iterations=5&max_retries=0")
    assert same.level_hash == base.level_hash
    assert pickle.loads(pickle.dumps(same)).ranks == 4
    others = [
        "cutoff=600", "rel_cutoff=60", "vacuum=6", "basis=SZV-MOLOPT-SR-GTH", "smooth=none",
    ]  # fmt: skip
    hashes = {get_reference(f"cp2k:pbe?{o}").level_hash for o in others}
    assert len(hashes | {base.level_hash, get_reference(XTB).level_hash}) == 7
    assert "xc_smoothing" not in get_reference("cp2k:pbe?smooth=none").level_of_theory
    zr = base.data.kinds["Zr"]
    assert (zr.basis, zr.potential, zr.valence) == (
        "DZVP-MOLOPT-SR-GTH-q12", "GTH-PBE-q12", 12,
    )  # fmt: skip
    assert {"H", "C", "O", "Hf"} <= set(base.data.kinds) & set(get_reference(XTB).data.kinds)


def test_data__not_there(cp2k, tmp_path):
    with pytest.raises(ReferenceError, match="CP2K_DATA_DIR"):
        data_directory("cp2k.psmp", str(tmp_path))


def test_box__same_grid_wherever_a_cluster_sits(cp2k):
    reference = get_reference("cp2k:pbe")
    h = spacing_of(400.0)
    atoms = water()
    one = reference.box(atoms)
    atoms.positions += 7 * h
    other = reference.box(atoms)
    np.testing.assert_allclose(one.positions, other.positions, atol=1e-9)
    low, high = one.positions.min(axis=0), one.cell.diagonal() - one.positions.max(axis=0)
    assert min(low.min(), high.min()) >= 5.0 - h
    assert one.cell[0, 0] == pytest.approx(one.grid_points[0] * h)


# ------------------------------------------------------------------------------ labels
def test_xtb__clusters_are_those_of_tblite(cp2k, tmp_path):
    """Two programs, one method: 5 meV and 15 meV/Å on water, as an ion and as a triplet too."""
    oxygen = Atoms("O2", [[0, 0, 0], [0, 0, 1.25]], info={"n_unpaired": 2})
    ion = Atoms("OH", [[0, 0, 0], [0, 0, 0.98]], info={"charge": -1})
    for atoms, energy, forces in ((water(), 5e-3, 0.015), (oxygen, 0.1, 0.1), (ion, 0.05, 0.1)):
        ours = label_one(atoms, XTB, directory=tmp_path)
        theirs = get_reference("gfn1-xtb").calculate(atoms, directory=tmp_path)
        assert ours.converged, ours.log_tail
        assert ours.energy == pytest.approx(theirs.energy, abs=energy)
        np.testing.assert_allclose(ours.forces, theirs.forces, atol=forces)
        assert np.isnan(ours.stress).all()
        assert ours.memory_peak < ours.memory_estimate


def test_xtb__stress_is_that_of_the_energy(cp2k, tmp_path):
    """Central differences over a strain of 0.004, and over 0.01 Å for a force."""
    reference, atoms = get_reference(XTB), diamond()
    label = reference.calculate(atoms, directory=tmp_path)
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell[:] @ np.diag([1 + sign * 0.002, 1, 1]), scale_atoms=True)
        energies.append(reference.calculate(strained, directory=tmp_path).energy)
    numeric = (energies[0] - energies[1]) / 0.004 / atoms.get_volume()
    assert label.stress[0] == pytest.approx(numeric, abs=1e-3)
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * 0.005
        energies.append(reference.calculate(moved, directory=tmp_path).energy)
    assert label.forces[1, 2] == pytest.approx(-(energies[0] - energies[1]) / 0.01, abs=5e-3)
    assert abs(label.forces[1, 2]) > 0.1


def test_isolated_atoms__spin_paired_as_gpaw_counts_them(cp2k, tmp_path):
    """Hydrogen, spherical and spin-paired, has -12.5 eV with PBE; zirconium has 12 electrons."""
    found = get_reference("cp2k:pbe").isolated_atom_energies(["H", "Zr"], cache=tmp_path)
    assert found["H"] == pytest.approx(-12.49, abs=0.05)
    assert -1300 < found["Zr"] < -1250
    assert list(tmp_path.glob("*.json"))


def test_xtb__water_in_a_lattice_is_water(cp2k, tmp_path):
    """In a cube of 15 Å it feels nearly nothing of its images; a mesh too coarse made it 0.3 eV."""
    reference, atoms = get_reference(XTB), water()
    alone = reference.calculate(atoms, directory=tmp_path)
    atoms.set_cell([15.0, 15.0, 15.0])
    atoms.pbc = True
    lattice = reference.calculate(atoms, directory=tmp_path)
    assert lattice.energy == pytest.approx(alone.energy, abs=0.02)
    np.testing.assert_allclose(lattice.forces, alone.forces, atol=0.02)


def test_two_ranks(cp2k, tmp_path):
    one, two = (
        get_reference(f"{XTB}?ranks={n}").calculate(water(), directory=tmp_path) for n in (1, 2)
    )
    assert one.status == two.status == "converged", (one.reason, two.reason)
    assert one.energy == pytest.approx(two.energy, abs=1e-6)
    np.testing.assert_allclose(one.forces, two.forces, atol=1e-5)
    assert one.versions["cp2k"]


@pytest.mark.slow
def test_pbe__forces_and_stress_are_those_of_the_energy(cp2k, tmp_path):
    """Hydrogen in a lattice; central differences over 0.02 Å and over a strain of 0.01."""
    reference = get_reference(CHEAP)
    atoms = Atoms("H2", [[0.1, 0.2, 0.3], [0.1, 0.25, 1.15]], cell=[4.5, 5, 5], pbc=True)
    label = label_one(atoms, reference, directory=tmp_path)
    assert label.converged, label.log_tail
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell[:] @ np.diag([1, 1, 1 + sign * 0.005]), scale_atoms=True)
        energies.append(reference.calculate(strained, directory=tmp_path).energy)
    numeric = (energies[0] - energies[1]) / 0.01 / atoms.get_volume()
    assert label.stress[2] == pytest.approx(numeric, abs=5e-4)
    assert label.stress[2] > 0.02
    assert label.memory_peak < label.memory_estimate
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.gpaw
def test_pbe__water_is_that_of_gpaw(cp2k, gpaw, tmp_path):
    """One functional, two programs: other basis, pseudopotentials and grid, all of them coarse.

    Energies are relative to spin-paired, spherical atoms in both; CP2K's come from its atomic code,
    which knows no grid: smoothing over this coarse one shifts each O by some tenths of an eV.
    """
    atoms = water()
    ours, theirs = (
        get_reference(spec).calculate(atoms, directory=tmp_path)
        for spec in (DZVP, "gpaw:coarse?h=0.18&vacuum=3&poisson_extension=3")
    )
    assert ours.status == theirs.status == "converged", (ours.reason, theirs.reason)
    zero = get_reference(DZVP).isolated_atom_energies("HO", cache=tmp_path)
    assert ours.energy - zero["O"] - 2 * zero["H"] == pytest.approx(theirs.energy, abs=0.6)
    np.testing.assert_allclose(ours.forces, theirs.forces, atol=0.15)
    assert np.abs(ours.forces).max() > 1.0


def test_not_converging(cp2k, tmp_path):
    attempt = label_one(water(), f"{XTB}?max_iterations=2", directory=tmp_path)
    assert attempt.status == "not_converged"
    assert np.isnan(attempt.energy)
    assert [r["failed"] for r in attempt.retries] == ["default"]


def test_refused_before_it_starts(cp2k, tmp_path):
    reference = get_reference("cp2k:pbe?memory_limit_GB=0.2")
    assert reference.calculate(water(), directory=tmp_path).status == "out_of_memory"
    odd = Atoms("OH", [[0, 0, 0], [0, 0, 0.98]])
    assert "n_unpaired=1" in reference.refusal(odd)
    assert "no DZVP-MOLOPT-SR-GTH" in reference.refusal(Atoms("Es2", [[0, 0, 0], [0, 0, 3.0]]))


def test_time_limit_ends_it(cp2k, tmp_path):
    attempt = label_one(molecule("C6H6"), "cp2k:pbe?ranks=2&time_limit_s=3", directory=tmp_path)
    assert attempt.status == "timed_out"
    assert list((tmp_path / "scratch").iterdir()) == []


def test_what_cannot_start_is_no_result(cp2k, tmp_path):
    broken = get_reference(f"{XTB}?time_limit_s=60", launcher="false {ranks}")
    with pytest.raises(ReferenceError):
        label_one(water(), broken, directory=tmp_path)
    assert not list(tmp_path.glob("*.npz"))
