"""The doctor of the room never falls ill itself."""

import pytest

from mofal.reference import doctor


def by_name(found):
    return {check.name: check for check in found}


def test_checks__look_only(tmp_path):
    found = by_name(doctor.checks(run=False, directory=tmp_path))
    assert set(found) == {"GFN1-xTB", "MPI", "PAW data", "D3", "GPAW", "CP2K", "memory", "scratch"}
    assert found["GFN1-xTB"].ok
    assert str(tmp_path) in found["scratch"].detail
    for check in found.values():
        assert check.ok or check.mend


def test_checks__nothing_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "setup_directories", lambda python: ())
    found = by_name(doctor.checks(directory=tmp_path))
    for name in ("GFN1-xTB", "MPI", "PAW data", "D3", "GPAW"):
        assert not found[name].ok
        assert found[name].mend


def test_checks__what_fails_is_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_try", lambda spec, place: "crashed, no luck")
    monkeypatch.setattr(doctor, "_memory", lambda: 1 / 0)
    found = by_name(doctor.checks(directory=tmp_path))
    assert "no luck" in found["GFN1-xTB"].detail
    assert "ZeroDivisionError" in found["memory"].detail


@pytest.mark.slow
@pytest.mark.gpaw
def test_checks__gpaw_runs_on_two_ranks(gpaw, tmp_path):
    found = by_name(doctor.checks(directory=tmp_path))
    assert found["GPAW"].ok, found["GPAW"].detail
    assert "2 ranks" in found["GPAW"].detail
    assert found["GFN1-xTB"].ok
