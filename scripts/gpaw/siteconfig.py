"""Build GPAW with MPI, ScaLAPACK, FFTW and libxc; found by pip through GPAW_CONFIG.

ScaLAPACK is not a luxury: without it the finite-difference mode cannot run on more than one rank.
GPAW executes this file inside its setup.py, where the lists below exist already.
"""

from pathlib import Path


def _first_found(names: list[str]) -> str:
    """First of these library names that the linker's usual directories hold."""
    directories = [Path(d) for d in ("/usr/lib", "/usr/lib64", "/usr/local/lib")]
    directories += sorted(Path("/usr/lib").glob("*-linux-gnu"))
    for name in names:
        if any((d / f"lib{name}.so").exists() for d in directories):
            return name
    return names[-1]


mpi = True
compiler = "mpicxx"
fftw = True
scalapack = True
libraries = [
    "xc",
    _first_found(["openblas", "blas"]),
    "fftw3",
    _first_found(["scalapack-openmpi", "scalapack"]),  # Debian names it after the MPI it is for
]
