"""A fast BLAS for tblite: ``python -m mofal.reference.blas`` links it, or says why it cannot.

tblite's wheels on PyPI bring netlib's reference BLAS and LAPACK, on which a cell of 448 atoms takes
about eight times as long as on OpenBLAS (docs/reference.md). Loading OpenBLAS before tblite, for
the whole process, would put it under torch too, whose training would then depend on whether a label
was made in the same process before. So the files in the wheel's own folder become links to the
system's OpenBLAS, which nobody else sees.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Collection
from functools import cache
from importlib.util import find_spec
from pathlib import Path

KEPT = ".netlib"
"""Added to the names of the wheel's own files."""
PACKAGE = "libopenblas0-pthread"
"""Of Debian and its children."""


def bundled(folder: Path | None = None) -> list[Path]:
    """BLAS and LAPACK that tblite's wheel brings; none where it was built against the system's.

    Parameters
    ----------
    folder : path, optional
        Where a wheel keeps its libraries; default: that of the installed tblite.
    """
    if folder is None:
        spec = find_spec("tblite")
        if spec is None or spec.origin is None:
            return []
        folder = Path(spec.origin).parent.parent / "tblite.libs"
    return sorted(
        p
        for pattern in ("libblas-*", "liblapack-*")
        for p in folder.glob(pattern)
        if not p.name.endswith(KEPT)
    )


def is_slow(folder: Path | None = None) -> bool:
    """Whether tblite runs on the reference BLAS that its wheel brings."""
    return any(not p.is_symlink() for p in bundled(folder))


def openblas() -> Path | None:
    """The system's OpenBLAS with 32-bit integers, None where there is none."""
    machine = os.uname().machine
    places = [f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"]
    for place in places:
        path = Path(place) / "libopenblas.so.0"
        if path.exists():
            return path
    return None


CORE = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.openblas_get_corename.restype = ctypes.c_char_p
print(library.openblas_get_corename().decode())
"""
BEFORE_AVX2 = frozenset(
    {"prescott", "core2", "penryn", "dunnington", "nehalem", "sandybridge", "generic", "barcelona"}
)
"""What OpenBLAS calls kernels that use neither AVX2 nor FMA."""


def better_kernels(core: str, flags: Collection[str]) -> str | None:
    """Kernels that a processor could run where OpenBLAS took others; None where it chose well.

    Parameters
    ----------
    core : str
        What OpenBLAS chose (`openblas_get_corename`).
    flags : collection of str
        The processor's, as Linux names them.

    Returns
    -------
    str or None
        A value for ``OPENBLAS_CORETYPE``.
    """
    have = set(flags)
    if core.lower() not in BEFORE_AVX2 or not {"avx2", "fma"} <= have:
        return None
    wide = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
    return "SKYLAKEX" if wide <= have else "HASWELL"


@cache
def core_type() -> str | None:
    """Value of ``OPENBLAS_CORETYPE`` for programs on the system's OpenBLAS; None: leave it alone.

    OpenBLAS knows processors by their model. One that is younger than the library gets the kernels
    of 2004: Debian 12's 0.3.21 multiplies matrices six times as slowly then as it can
    (docs/reference.md). For programs in processes of their own only: within this process the
    choice would hold for every OpenBLAS that is loaded later, and results depend on the order.
    """
    library = openblas()
    if library is None or "OPENBLAS_CORETYPE" in os.environ:
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(
            (line.partition(":")[2].split() for line in lines if line.startswith("flags")), []
        )
        wanted = better_kernels(_core(library), flags)
        # A library that was built for one processor does not listen.
        if wanted and _core(library, OPENBLAS_CORETYPE=wanted).upper() != wanted:
            return None
    except (OSError, subprocess.SubprocessError):
        return None
    return wanted


def _core(library: Path, **environment: str) -> str:
    """Kernels that an OpenBLAS runs in an environment."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", CORE, str(library)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()


def install() -> str:
    """Install OpenBLAS where this is Debian and we are root; return why not, or nothing."""
    line = f"apt-get install {PACKAGE}"
    if os.geteuid() != 0:
        return f"OpenBLAS is not installed; ask an administrator: {line}"
    command = ["apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for words in (["update"], ["install", "--no-install-recommends", PACKAGE]):
            done = subprocess.run(
                [*command, *words], env=environment, capture_output=True, text=True, check=False
            )
    except FileNotFoundError:
        return "OpenBLAS (libopenblas.so.0) is not installed, and this is no Debian"
    return "" if done.returncode == 0 else f"{line} failed: {done.stderr.strip()[-300:]}"


def link(target: Path, *, folder: Path | None = None, check: Callable[[], str]) -> str:
    """Link the wheel's BLAS and LAPACK to a library; undo it if tblite then answers otherwise.

    Parameters
    ----------
    target : path
        The library.
    folder : path, optional
        See `bundled`.
    check : callable
        Returns what tblite answers, in a process of its own.

    Returns
    -------
    str
        Why it was undone, or nothing.
    """
    before = check()
    files = [p for p in bundled(folder) if not p.is_symlink()]
    for path in files:
        path.rename(path.with_name(path.name + KEPT))
        path.symlink_to(target)
    try:
        after = check()
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        after = str(error)
    if after == before:
        return ""
    for path in files:
        path.unlink()
        path.with_name(path.name + KEPT).rename(path)
    return f"with {target} tblite answers {after!r}, with its own BLAS {before!r}"


ANSWER = """
import numpy as np
from ase.build import molecule
from tblite.ase import TBLite
atoms = molecule("C60")
atoms.positions += 0.02 * np.sin(np.arange(180.0)).reshape(60, 3)
atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
print(round(atoms.get_potential_energy(), 5), np.round(atoms.get_forces()[:3], 3).tolist())
"""


def answer() -> str:
    """Energy (eV, 5 digits) and forces (eV/Å, 3 digits) of a crumpled C60 by this tblite."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWER], capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout.strip()


def main() -> int:
    """Link a fast BLAS under tblite, say what was done; never a failure of the set-up."""
    if not bundled():
        print("tblite: not installed, or it brings no BLAS of its own; nothing to link")
        return 0
    if not is_slow():
        print("tblite: runs on the system's OpenBLAS")
        return 0
    trouble = "" if openblas() else install()
    found = openblas()
    if found is not None:
        try:
            trouble = link(found, check=answer)
        except OSError as error:
            trouble = f"the environment cannot be changed: {error}"
        except subprocess.SubprocessError as error:
            trouble = f"tblite does not run: {error}"
    if trouble or found is None:
        print(f"tblite: stays on the slow BLAS that its wheel brings; {trouble}")
        print("tblite: everything works, labels of large cells take several times as long")
    else:
        print(f"tblite: runs on {found} now")
    return 0


if __name__ == "__main__":
    sys.exit(main())
