"""The BLAS that tblite runs on: linked where it answers the same, left alone where it does not."""

import os
import subprocess
import sys

import pytest

from mofal.reference import blas


@pytest.fixture
def wheel(tmp_path):
    """The folder of libraries of a wheel as PyPI has it, and a library of the system."""
    folder = tmp_path / "tblite.libs"
    folder.mkdir()
    for name in ("libblas-1.so.3", "liblapack-2.so.3", "libgfortran-3.so.5"):
        (folder / name).write_text(name)
    system = tmp_path / "libopenblas.so.0"
    system.write_text("fast")
    return folder, system


def test_link__the_system_library_takes_the_places(wheel):
    folder, system = wheel
    assert blas.is_slow(folder)
    assert blas.link(system, folder=folder, check=lambda: "-42") == ""
    assert not blas.is_slow(folder)
    assert (folder / "libblas-1.so.3").read_text() == "fast"
    assert (folder / "liblapack-2.so.3").resolve() == system
    assert (folder / "libgfortran-3.so.5").read_text() == "libgfortran-3.so.5"
    # Once more: there is nothing left to do.
    assert blas.link(system, folder=folder, check=lambda: "-42") == ""
    assert (folder / ("libblas-1.so.3" + blas.KEPT)).read_text() == "libblas-1.so.3"


@pytest.mark.parametrize("after", ["-41", OSError("no such symbol")])
def test_link__another_answer_is_undone(wheel, after):
    folder, system = wheel
    answers = iter(["-42", after])

    def check():
        value = next(answers)
        if isinstance(value, Exception):
            raise value
        return value

    said = blas.link(system, folder=folder, check=check)
    assert "-42" in said
    assert sorted(p.name for p in folder.iterdir()) == [
        "libblas-1.so.3",
        "libgfortran-3.so.5",
        "liblapack-2.so.3",
    ]
    assert blas.is_slow(folder)
    assert (folder / "libblas-1.so.3").read_text() == "libblas-1.so.3"


@pytest.mark.slow
def test_answer__is_that_of_a_bare_calculator():
    """The check compares numbers that a wrong BLAS would change: it is a real calculation."""
    pytest.importorskip("tblite")
    energy, _, forces = blas.answer().partition(" ")
    assert -3600 < float(energy) < -2000
    assert forces.count(",") == 8


WIDE = ["sse2", "avx2", "fma", "avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"]


@pytest.mark.parametrize(
    ("core", "flags", "wanted"),
    [
        ("Prescott", WIDE, "SKYLAKEX"),  # a processor younger than the library
        ("Prescott", ["sse2", "avx2", "fma"], "HASWELL"),
        ("Prescott", ["sse2", "sse3"], None),  # it is one
        ("SandyBridge", ["sse2", "avx"], None),
        ("SkylakeX", WIDE, None),
        ("Zen", ["avx2", "fma"], None),
    ],
)
def test_better_kernels(core, flags, wanted):
    assert blas.better_kernels(core, flags) == wanted


def test_core_type__is_one_that_this_library_runs(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    library = blas.openblas()
    if library is None:
        pytest.skip("no OpenBLAS of the system's here")
    blas.core_type.cache_clear()
    kernels = blas.core_type()
    command = [sys.executable, "-I", "-c", blas.CORE, str(library)]
    chosen = {**os.environ, **({"OPENBLAS_CORETYPE": kernels} if kernels else {})}
    core = subprocess.run(command, env=chosen, capture_output=True, text=True, check=True).stdout
    assert kernels is None or core.strip().upper() == kernels
    # What a user has set is left alone.
    monkeypatch.setenv("OPENBLAS_CORETYPE", "HASWELL")
    blas.core_type.cache_clear()
    assert blas.core_type() is None
    blas.core_type.cache_clear()
