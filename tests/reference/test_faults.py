"""Every way a calculation can fail is a recorded attempt with a status."""

import threading
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mofal.errors import ReferenceError
from mofal.reference import LabelCache, get_reference, hash_level, label_one
from mofal.reference.ase_calculator import limit_threads
from mofal.reference.child import describe_exit, run_process


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("nan-forces", "inconsistent", "1 of 3 atoms"),
        ("nan-energy", "inconsistent", "energy is nan"),
        ("shape", "inconsistent", "shape"),
        ("move", "inconsistent", "positions that came back"),
        ("raise", "crashed", "the basis set fell over"),
        ("scf", "not_converged", "no luck"),
        ("memory", "out_of_memory", "2 TB"),
    ],
)
def test_label_one__fault_in_the_calculator(faulty, tmp_path, fault, status, words):
    attempt = label_one(molecule("H2O"), f"{faulty}?fault={fault}", directory=tmp_path)
    assert attempt.status == status
    assert words in attempt.reason
    (recorded,) = LabelCache(tmp_path).records()
    assert (recorded.status, recorded.reason) == (status, attempt.reason)
    if status != "converged":
        assert np.isnan(recorded.energy)
        assert np.isnan(recorded.forces).all()


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("kill", "crashed", "SIGKILL"),
        ("exit", "crashed", "without a result"),
        ("sleep", "timed_out", "3 s"),
        ("nan-forces", "inconsistent", "1 of 3 atoms"),
        ("raise", "crashed", "fell over"),
    ],
)
def test_label_one__fault_in_a_process_of_its_own(faulty, tmp_path, fault, status, words):
    # A process may take seconds to start: only what sleeps is meant to run out of time.
    limit = 3 if status == "timed_out" else 120
    spec = f"{faulty}?fault={fault}&time_limit_s={limit}"
    start = time.perf_counter()
    attempt = label_one(molecule("H2O"), spec, directory=tmp_path)
    assert time.perf_counter() - start < 60
    assert attempt.status == status
    assert words in attempt.reason
    assert len(list(LabelCache(tmp_path).records())) == 1


def test_label_one__killed_once_from_outside_is_made_all_the_same(faulty, tmp_path):
    """A process that somebody else kills did not fail; three times is a result."""
    marks = tmp_path / "marks"
    marks.mkdir()
    spec = f"{faulty}?fault=kill-twice&count_in={marks}&isolated=true"
    attempt = label_one(molecule("H2O"), spec, directory=tmp_path / "labels")
    assert attempt.converged
    assert [r["reason"] for r in attempt.retries] == ["it was ended by SIGKILL"] * 2
    (recorded,) = LabelCache(tmp_path / "labels").records()
    assert recorded.retries == attempt.retries


MACHINE = [
    # fault, isolated, words
    ("full", False, "No space left"),
    ("full", True, "No space left"),
    ("forbidden", False, "Permission denied"),
    ("program", True, "no-such-program"),
    ("import", False, "no_such_module"),
    ("import", True, "no_such_module"),
]


@pytest.mark.parametrize(("fault", "isolated", "words"), MACHINE)
def test_label_one__fault_of_the_machine_is_no_result(faulty, tmp_path, fault, isolated, words):
    spec = f"{faulty}?fault={fault}&isolated={str(isolated).lower()}"
    with pytest.raises((OSError, ImportError, ReferenceError), match=words):
        label_one(molecule("H2O"), spec, directory=tmp_path)
    assert list(LabelCache(tmp_path).records()) == []


def test_label_one__calculator_that_cannot_be_made_is_no_result(faulty, tmp_path):
    spec = faulty.replace("Springs", "NeedsFile") + f"?path={tmp_path / 'weights'}"
    with pytest.raises((OSError, ReferenceError), match="weights"):
        label_one(molecule("H2O"), spec, directory=tmp_path / "labels")
    (tmp_path / "weights").touch()
    assert label_one(molecule("H2O"), spec, directory=tmp_path / "labels").converged
    assert len(list(LabelCache(tmp_path / "labels").records())) == 1


@pytest.fixture
def doubles():
    """Torch's default as NequIP's set-up leaves it, whatever other tests of the process did."""
    import torch

    from mofal.potential.network import prepare

    before = torch.get_default_dtype()
    prepare()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


@pytest.mark.parametrize("network", ["SinglePrecision", "SingleWhenAsked"])
def test_calculator__is_made_as_torch_starts_also_beside_nequip(network, faulty, tmp_path, doubles):
    """NequIP sets double precision for the whole process; another network wants single."""
    name = faulty.replace("Springs", network)
    reference = get_reference(name)
    attempts = [None] * 8

    def label(k):
        h = Atoms("H", [[0.0, 0.0, 1.0 + k]])
        attempts[k] = label_one(h, reference, directory=tmp_path)

    threads = [threading.Thread(target=label, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, attempt in enumerate(attempts):
        assert (attempt.status, attempt.reason) == ("converged", "")
        assert attempt.energy == pytest.approx(0.5 * (1 + k) ** 2)
    assert doubles.get_default_dtype() == doubles.float64


def test_calculate__directory_that_cannot_be_made(faulty, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        get_reference(f"{faulty}?isolated=true").calculate(
            molecule("H2O"), directory=tmp_path / "file" / "below"
        )


def test_attempts__a_record_that_cannot_be_read_now_is_not_missing(faulty, tmp_path):
    label_one(molecule("H2O"), faulty, directory=tmp_path)
    (record,) = tmp_path.rglob("*.npz")
    aside = record.rename(record.with_suffix(".aside"))
    record.mkdir()  # any read of it is an error of the system
    with pytest.raises(OSError, match="directory"):
        label_one(molecule("H2O"), faulty, directory=tmp_path)
    record.rmdir()
    aside.rename(record)
    assert label_one(molecule("H2O"), faulty, directory=tmp_path).converged
    assert len(list(LabelCache(tmp_path).records())) == 1


def test_label_one__relative_directory(faulty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt = label_one(molecule("H2O"), f"{faulty}?isolated=true", directory="labels")
    assert attempt.converged, attempt.log_tail
    assert len(list(LabelCache("labels").records())) == 1


def test_label_one__reference_that_breaks_the_protocol(tmp_path):
    class Rude:
        name = spec = "rude"

        def __init__(self):
            self.level_of_theory = {"method": "rude"}
            self.level_hash = hash_level(self.level_of_theory)
            self.versions = {}

        def calculate(self, atoms, *, directory):
            if len(atoms) == 3:
                raise ValueError("not in the mood")
            return {"energy": 0.0}

        def isolated_atom_energies(self, elements, *, cache=None):
            return {}

    raised = label_one(molecule("H2O"), Rude(), directory=tmp_path)
    assert raised.status == "crashed"
    assert "not in the mood" in raised.reason
    returned = label_one(molecule("CH4"), Rude(), directory=tmp_path)
    assert returned.status == "inconsistent"
    assert "dict" in returned.reason


def test_label_one__other_structure_came_back(tmp_path):
    class Absent(type(get_reference("gfn1-xtb"))):
        def calculate(self, atoms, *, directory):
            return self.calculate_here(molecule("CH4"))

    base = get_reference("gfn1-xtb")
    absent = Absent(base._make, name="x", spec="gfn1-xtb", level_of_theory=base.level_of_theory)
    attempt = label_one(molecule("H2O"), absent, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert "another structure" in attempt.reason


def test_run_process__memory_limit(tmp_path):
    code = "x = bytearray(300_000_000); import time; time.sleep(30)"
    ended = run_process(
        ["python3", "-c", code],
        directory=tmp_path,
        time_limit_s=20,
        watch_memory=True,
        memory_limit_bytes=100e6,
    )
    assert ended.out_of_memory
    assert not ended.timed_out
    assert ended.peak_memory_bytes > 100e6


@pytest.mark.parametrize(
    ("code", "words"), [(-9, "SIGKILL"), (137, "SIGKILL"), (-11, "SIGSEGV"), (3, "status 3")]
)
def test_describe_exit__says_what_it_means(code, words):
    assert words in describe_exit(code)


def test_calculate__threads_side_by_side(tmp_path):
    """Threads of one worker share no calculator: each gets the label of its own structure."""
    reference = get_reference("gfn1-xtb")
    names = ["H2O", "CH4", "NH3", "C2H4", "HCOOH", "C2H2"] * 3
    expected = {n: reference.calculate(molecule(n), directory=tmp_path).energy for n in names}
    found: dict[int, tuple[str, float]] = {}

    def work(i, name):
        found[i] = (name, reference.calculate(molecule(name), directory=tmp_path).energy)

    threads = [threading.Thread(target=work, args=(i, n)) for i, n in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(names)
    for name, energy in found.values():
        assert energy == pytest.approx(expected[name], abs=1e-8)


def test_limit_threads__restored_after_the_last_one():
    from threadpoolctl import threadpool_info

    def blas():
        return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]

    before = blas()
    with limit_threads(1):
        with limit_threads(1):
            assert set(blas()) <= {1}
        assert set(blas()) <= {1}
    assert blas() == before


def test_calculate__stress_that_the_calculator_does_not_know(faulty, tmp_path):
    cell = Atoms("H", [[0.1, 0, 0]], cell=[3, 3, 3], pbc=True)
    with_stress = get_reference(faulty).calculate(cell, directory=tmp_path)
    np.testing.assert_array_equal(with_stress.stress, np.arange(6.0))
    without = get_reference("ase:faulty_calculators:NoStress").calculate(cell, directory=tmp_path)
    assert without.converged
    assert np.isnan(without.stress).all()
