"""The BLAS that tblite runs on: linked where it answers the same, left alone where it does not."""

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
