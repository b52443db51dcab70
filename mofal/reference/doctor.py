"""What of the references works on this machine, and how to mend what does not."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mofal.errors import MofalError
from mofal.reference.blas import is_slow
from mofal.reference.cp2k import INSTALL as CP2K_INSTALL
from mofal.reference.cp2k import Cp2kReference
from mofal.reference.gpaw import INSTALL, setup_directories
from mofal.reference.gpaw_memory import find_paw_data
from mofal.reference.processes import machine_memory_bytes
from mofal.reference.registry import get_reference


class Check(NamedTuple):
    """One thing that was looked at.

    Attributes
    ----------
    name : str
    ok : bool
    detail : str
        What was found.
    mend : str
        The line to type where it is not well; empty where it is.
    """

    name: str
    ok: bool
    detail: str
    mend: str


def checks(
    *, run: bool = True, ranks: int = 2, directory: str | os.PathLike[str] | None = None
) -> list[Check]:
    """Look at xTB, GPAW and CP2K on several ranks, PAW data, D3, memory and scratch space.

    Parameters
    ----------
    run : bool
        Calculate a small molecule with each reference (some seconds), not only look for it.
    ranks : int
        MPI ranks to try GPAW and CP2K on.
    directory : path, optional
        Where scratch space is wanted; default: the directory of temporary files.

    Returns
    -------
    list of Check
        Never an exception: what is broken is a line of the list.
    """
    place = Path(tempfile.gettempdir() if directory is None else directory)
    out = []
    for name, look in (
        ("GFN1-xTB", lambda: _xtb(run, place)),
        ("MPI", _mpi),
        ("PAW data", _paw_data),
        ("D3", _dispersion),
        ("GPAW", lambda: _gpaw(run, ranks, place)),
        ("CP2K", lambda: _cp2k(run, ranks, place)),
        ("memory", _memory),
        ("scratch", lambda: _scratch(place)),
    ):
        out.append(_guarded(name, look))
    return out


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except MofalError as error:
        return Check(name, False, str(error), _mend_of(name))
    except Exception as error:  # the doctor has to survive the illness
        return Check(name, False, f"{type(error).__name__}: {error}", _mend_of(name))


def _mend_of(name: str) -> str:
    return {"GFN1-xTB": "pip install 'mofal[xtb]'", "CP2K": CP2K_INSTALL}.get(name, INSTALL)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _xtb(run: bool, place: Path) -> Check:
    name = "GFN1-xTB"
    if find_spec("tblite") is None:
        return Check(name, False, "tblite is not installed", _mend_of(name))
    found = f"tblite {_version('tblite')}"
    if run:
        failure = _try("gfn1-xtb?time_limit_s=120", place)
        if failure:
            mend = "pip install --force-reinstall tblite"
            return Check(name, False, f"{found} fails on water: {failure}", mend)
        found += ", water converges"
    if is_slow():
        found += (
            ", on the slow BLAS of its wheel (large cells take several times as long); faster: "
            f"{sys.executable} -m mofal.reference.blas"
        )
    return Check(name, True, found, "")


def _mpi() -> Check:
    path = shutil.which("mpirun")
    if path is None:
        return Check("MPI", False, "there is no mpirun", "apt-get install openmpi-bin")
    return Check("MPI", True, path, "")


def _paw_data() -> Check:
    found = find_paw_data(setup_directories(sys.executable), xc="PBE", basis="dzp")
    detail = f"{len(found.files)} elements for PBE, {len(found.bases)} dzp basis sets"
    return Check("PAW data", True, f"{detail}, sha256 {found.sha256[:12]}", "")


def _dispersion() -> Check:
    if find_spec("dftd3") is None:
        return Check("D3", False, "dftd3 is not installed", "pip install dftd3")
    return Check("D3", True, f"dftd3 {_version('dftd3')}", "")


def _gpaw(run: bool, ranks: int, place: Path) -> Check:
    if find_spec("gpaw") is None:
        return Check("GPAW", False, "it is not installed", INSTALL)
    found = f"version {_version('gpaw')}"
    if run:
        failure = _try(
            f"gpaw:coarse?h=0.3&vacuum=2.5&poisson_extension=2&ranks={ranks}&time_limit_s=300",
            place,
        )
        if failure:
            return Check("GPAW", False, f"{found} fails on {ranks} ranks: {failure}", INSTALL)
        found += f", water converges on {ranks} ranks"
    return Check("GPAW", True, found, "")


def _cp2k(run: bool, ranks: int, place: Path) -> Check:
    reference = get_reference(f"cp2k:gfn1-xtb?ranks={ranks}&time_limit_s=120")
    assert isinstance(reference, Cp2kReference)
    found = f"{shutil.which(reference.program)}, data in {reference.data.directory}"
    if run:
        failure = _try(reference.spec, place)
        if failure:
            return Check(
                "CP2K", False, f"{found} fails on {ranks} ranks: {failure}", _mend_of("CP2K")
            )
        found += f", water converges on {ranks} ranks"
    return Check("CP2K", True, found, "")


def _try(spec: str, place: Path) -> str:
    """Label water; return why it failed, or an empty string."""
    from ase.build import molecule

    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as scratch:
        attempt = get_reference(spec).calculate(molecule("H2O"), directory=scratch)
    return "" if attempt.converged else f"{attempt.status}, {attempt.reason}"


def _memory() -> Check:
    there = machine_memory_bytes() / 1e9
    ok = there >= 8
    mend = "" if ok else "use fewer ranks, gpaw:coarse, or smaller clusters"
    return Check("memory", ok, f"{there:.1f} GB", mend)


def _scratch(place: Path) -> Check:
    free = shutil.disk_usage(place).free / 1e9
    ok = free >= 2
    return Check("scratch", ok, f"{free:.1f} GB free in {place}", "" if ok else f"empty {place}")
