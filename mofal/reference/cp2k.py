"""CP2K, for clusters and crystals alike, in a process of its own.

Each label is one run of the program: an input is written, its output is read. The interactive shell
that ASE drives would keep one process over many structures, through the standard input of `mpirun`:
what it is told would depend on the launcher, one label's density would be the next one's start, a
density that did not converge would be a number, and a process that is ended would take the state of
all with it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.electrons import electronic_state
from mofal.errors import DependencyError, ReferenceError
from mofal.reference.base import (
    Attempt,
    fail,
    finish,
    isolated_cache_file,
    package_versions,
    tail,
)
from mofal.reference.child import Finished, describe_exit, last_line, read_tail
from mofal.reference.cp2k_data import (
    ARRAYS_CLUSTER,
    ARRAYS_CRYSTAL,
    ARRAYS_MESH,
    Cp2kCost,
    Cp2kData,
    cube_cluster,
    data_directory,
    estimate_cp2k,
    grid_crystal,
    read_kinds,
    read_xtb,
    spacing_of,
)
from mofal.reference.cp2k_files import read_output, write_input
from mofal.reference.faults import machine_error, machine_in, refuse_full
from mofal.reference.options import check_known, number
from mofal.reference.processes import machine_memory_bytes
from mofal.reference.program import PROGRAM_OPTIONS, Box, ProgramReference

if TYPE_CHECKING:
    from ase import Atoms

INSTALL = "apt-get install cp2k"
PROGRAMS = ("cp2k.psmp", "cp2k.popt", "cp2k")
POTENTIAL = "GTH-PBE"
SMOOTHING = {
    "nn50": {"XC_SMOOTH_RHO": "NN50", "XC_DERIV": "NN50_SMOOTH"},
    "nn10": {"XC_SMOOTH_RHO": "NN10", "XC_DERIV": "NN10_SMOOTH"},
    "none": None,
}
"""CP2K's words for `Cp2kPreset.smooth`."""
BASES = ("SZV-MOLOPT-SR-GTH", "DZVP-MOLOPT-SR-GTH")
EPS_SCF = 1e-6
EPS_SCF_XTB = 1e-7
D3_CUTOFF_A = 25.0
# D3 of PBE with Becke-Johnson damping: s6, a1, s8, a2, in CP2K's order.
# Grimme, Ehrlich, Goerigk, J. Comput. Chem. 2011, 32, 1456, Table 2.
D3BJ_PBE = "1.0 0.4289 0.7875 4.4407"
# Of the Ewald sum, per Å, with three points of its mesh for each Å. CP2K's own value on a mesh of
# 0.5 Å is off by 10 eV for the brick in a cube of 22 Å; this one agrees with finer meshes there.
EWALD_ALPHA = 0.35
POINTS_PER_A = 3
TEMPERATURE_K = 300.0  # of the occupations of GFN1-xTB, as in its parametrisation


@dataclass(frozen=True)
class Cp2kPreset:
    """Parameters of one level.

    Attributes
    ----------
    method : {"PBE-D3(BJ)", "GFN1-xTB"}
    basis : str
        Family of the basis sets; empty for GFN1-xTB, as the cutoffs are zero.
    cutoff, rel_cutoff : float
        Of the density's finest grid, and of what is put on it, Ry.
    vacuum : float
        Least distance of an atom of a cluster to the side of its cube, Å.
    smooth : {"nn50", "nn10", "none"}
        How many neighbours on the grid the density is smoothed over before PBE sees it, and its
        derivatives with it: what an atom's place on the grid does to its force comes from there.
    """

    method: str
    basis: str = ""
    cutoff: float = 0.0
    rel_cutoff: float = 0.0
    vacuum: float = 5.0
    smooth: str = "none"


PRESETS: dict[str, Cp2kPreset] = {
    "pbe": Cp2kPreset("PBE-D3(BJ)", basis=BASES[1], cutoff=400.0, rel_cutoff=50.0, smooth="nn50"),
    "gfn1-xtb": Cp2kPreset("GFN1-xTB"),
}
# How the same answer is reached when the first way fails. None of these is part of the level.
_OT: tuple[dict[str, Any], ...] = (
    {"name": "default", "OT": {"MINIMIZER": "DIIS", "PRECONDITIONER": "FULL_ALL"}},
    {
        "name": "conjugate gradients",
        "OT": {
            "MINIMIZER": "CG",
            "LINESEARCH": "3PNT",
            "PRECONDITIONER": "FULL_SINGLE_INVERSE",
            "ENERGY_GAP": 0.05,
        },
    },
    {
        "name": "conjugate gradients, random start",
        "guess": "RANDOM",
        "OT": {
            "MINIMIZER": "CG",
            "LINESEARCH": "3PNT",
            "PRECONDITIONER": "FULL_KINETIC",
        },
    },
)
_MIXING: tuple[dict[str, Any], ...] = (
    {"name": "default", "ALPHA": 0.3},
    {"name": "slower mixing", "ALPHA": 0.05},
)


class Cp2kReference(ProgramReference):
    """Label structures with CP2K in its own process, on several ranks.

    Parameters
    ----------
    preset : Cp2kPreset
        The level.
    name : str
        How it is asked for.
    program : str
        CP2K's executable.
    data : str, optional
        Directory of its basis sets and parameters, where it is not found by itself.
    **options
        See `mofal.reference.program.ProgramReference`.
    """

    def __init__(
        self,
        preset: Cp2kPreset,
        *,
        name: str,
        program: str,
        data: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        self.preset = preset
        self.program = program
        self._data = data

    @property
    def is_xtb(self) -> bool:
        """Whether it is GFN1-xTB: no density on a grid, another input."""
        return self.preset.method == "GFN1-xTB"

    @cached_property
    def data(self) -> Cp2kData:
        """Basis sets and potentials, or the parameters of GFN1-xTB, by element."""
        place = data_directory(self.program, self._data)
        return read_xtb(place) if self.is_xtb else read_kinds(place, self.preset.basis, POTENTIAL)

    @cached_property
    def level_of_theory(self) -> dict[str, Any]:
        """Method, every parameter, and the hash of the data."""
        p = self.preset
        common = {
            "method": p.method,
            "program": "cp2k",
            "sampling": "gamma point",
            # Where the structure states none; what it states is part of its own identity.
            "spin": "paired",
            "data_sha256": self.data.sha256,
            "units": "Å, eV",
        }
        if self.is_xtb:
            return {
                **common,
                "eps_scf": EPS_SCF_XTB,
                "electronic_temperature_K": TEMPERATURE_K,
                # The lattice sum of its kernel depends on where it is cut off: never tightened.
                "coulomb_short_range": "CP2K's COULOMB_SR_CUT and COULOMB_SR_EPS by default",
                "cluster": "no images",
                "crystal": {
                    "ewald": "smooth particle mesh",
                    "alpha_per_A": EWALD_ALPHA,
                    "points_per_A": POINTS_PER_A,
                },
                "energy_zero": "nothing",
            }
        return {
            **common,
            "basis": p.basis,
            "potential": POTENTIAL,
            "cutoff_Ry": p.cutoff,
            "rel_cutoff_Ry": p.rel_cutoff,
            "grids": 4,
            **({"xc_smoothing": p.smooth} if p.smooth != "none" else {}),
            "eps_default": 1e-12,
            "eps_scf": EPS_SCF,
            "occupations": "fixed",
            "cluster": {
                "boundaries": "free (wavelets), in a cube",
                "vacuum": p.vacuum,
                "grid": "exact, fixed in space",
            },
            "crystal": {"grid": "as fine as the cutoff or finer"},
            "dispersion": {"damping": "d3bj", "parameters": D3BJ_PBE, "cutoff": D3_CUTOFF_A},
            "energy_zero": "nothing",
        }

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the codes; CP2K's own one is read from its output."""
        return package_versions()

    def lacks(self, atoms: Atoms) -> str:
        """Say for which elements there is no data; "" where there is all."""
        missing = sorted(set(atoms.get_chemical_symbols()) - set(self.data.kinds))
        if not missing:
            return ""
        what = "parameters" if self.is_xtb else f"{self.preset.basis} with {POTENTIAL}"
        return f"no {what} for {', '.join(missing)} in {self.data.directory}"

    def box(self, atoms: Atoms) -> Box:
        """Cell and grid that a structure is calculated in."""
        h = 1 / POINTS_PER_A if self.is_xtb else spacing_of(self.preset.cutoff)
        if atoms.pbc.any():
            return grid_crystal(atoms.positions, atoms.cell[:], h=h)
        return cube_cluster(atoms.positions, h=h, vacuum=self.preset.vacuum)

    def cost(self, atoms: Atoms) -> Cp2kCost:
        """Grid, basis functions and memory of a calculation before it starts.

        Raises
        ------
        ReferenceError
            There is no data for an element.
        """
        missing = self.lacks(atoms)
        if missing:
            raise ReferenceError(missing)
        return estimate_cp2k(
            self.box(atoms),
            [self.data.kinds[s] for s in atoms.get_chemical_symbols()],
            ranks=self.ranks,
            arrays=self._arrays(periodic=bool(atoms.pbc.any())),
            spins=2 if electronic_state(atoms)[1] else 1,
        )

    def _arrays(self, *, periodic: bool) -> float:
        if self.is_xtb:
            return ARRAYS_MESH if periodic else 0.0
        return ARRAYS_CRYSTAL if periodic else ARRAYS_CLUSTER

    def isolated_atom_energies(
        self, elements: Iterable[str], *, cache: str | os.PathLike[str] | None = None
    ) -> dict[str, float]:
        """Energies of isolated atoms at this level, eV.

        PBE: the spherical, spin-paired atom of the same basis set and pseudopotential, from CP2K's
        atomic code (as GPAW's energies are relative to such atoms). GFN1-xTB: one atom with as few
        unpaired electrons as it can have.

        Parameters
        ----------
        elements : iterable of str
            Chemical symbols.
        cache : path, optional
            Directory that keeps them; default: the user's cache directory.

        Raises
        ------
        ReferenceError
            An element without data, or an atom that fails.
        """
        from mofal.reference.isolated import isolated_energies

        file = isolated_cache_file(self.level_hash, cache)
        return isolated_energies(elements, self._isolated, file=file)

    def _isolated(self, symbol: str) -> float:
        from ase import Atoms as AseAtoms

        atom = AseAtoms(symbol)
        missing = self.lacks(atom)
        if missing:
            raise ReferenceError(f"{self.name}: {missing}")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            if self.is_xtb:
                atom.info["n_unpaired"] = int(atom.numbers[0]) % 2
                attempt = self.calculate(atom, directory=scratch)
                energy, why = attempt.energy, f"{attempt.status}: {attempt.reason}"
            else:
                energy, why = self._atomic_code(symbol, int(atom.numbers[0]), Path(scratch))
        if not np.isfinite(energy):
            raise ReferenceError(
                f"{self.name} gives no energy of an isolated {symbol} atom ({why})"
            )
        return energy

    def _atomic_code(self, symbol: str, z: int, place: Path) -> tuple[float, str]:
        from ase.units import Hartree

        kind = self.data.kinds[symbol]
        valence, core = kind.configuration(z)
        given = {
            "GLOBAL": {"PROJECT": "atom", "PROGRAM_NAME": "ATOM"},
            "ATOM": {
                "ELEMENT": symbol,
                "RUN_TYPE": "ENERGY",
                "ELECTRON_CONFIGURATION": f"CORE {valence}" if core else valence,
                "CORE": core or "none",
                "METHOD": {
                    "METHOD_TYPE": "KOHN-SHAM",
                    "XC": {"XC_FUNCTIONAL PBE": {}},
                },
                "PP_BASIS": {
                    "BASIS_TYPE": "CONTRACTED_GTO",
                    "BASIS_SET_FILE_NAME": self.data.directory / "BASIS_MOLOPT",
                    "BASIS_SET": kind.basis,
                },
                "POTENTIAL": {
                    "PSEUDO_TYPE": "GTH",
                    "POTENTIAL_FILE_NAME": self.data.directory / "GTH_POTENTIALS",
                    "POTENTIAL_NAME": kind.potential,
                },
            },
        }
        (place / "atom.inp").write_text(write_input(given))
        self._launch([self.program, "-i", "atom.inp", "-o", "atom.out"], place, 300.0)
        text = (place / "atom.out").read_text() if (place / "atom.out").is_file() else ""
        found = re.findall(r"Total Energy ::\s+(-?\d+\.\d+)", text)
        return (float(found[-1]) * Hartree if found else float("nan")), last_line(text)

    # ------------------------------------------------------------------------ one calculation
    def _routes(self) -> tuple[dict[str, Any], ...]:
        return _MIXING if self.is_xtb else _OT

    def _run(
        self,
        attempt: Attempt,
        atoms: Atoms,
        route: Mapping[str, Any],
        place: Path,
        time_limit_s: float | None,
    ) -> Attempt:
        box = self.box(atoms)
        (place / "cp2k.inp").write_text(write_input(self._input(attempt, atoms, box, route)))
        ended = self._launch(
            [self.program, "-i", "cp2k.inp", "-o", "cp2k.out"], place, time_limit_s
        )
        return self._judge(attempt, ended, place)

    def _judge(self, attempt: Attempt, ended: Finished, place: Path) -> Attempt:
        """Turn what a process left behind into an attempt."""
        written = place / "cp2k.out"
        log = tail("\n".join(t for t in (read_tail(written), ended.log) if t))
        more: dict[str, Any] = {"log_tail": log}
        stopped = self._ended(attempt, ended, more)
        if stopped is not None:
            return stopped
        out = read_output(written)
        if out.version:
            more["versions"] = {**attempt.versions, "cp2k": out.version}
        if out.ranks and out.ranks != self.ranks:
            raise machine_error(
                f"{self.name}: asked for {self.ranks} ranks, CP2K runs on {out.ranks}: "
                "built without MPI, or another one than the launcher's"
            )
        if out.ended and not out.converged and out.begun:
            why = f"the density did not converge in {self.max_iterations} iterations"
            return fail(attempt, "not_converged", why, **more)
        if not out.ended:
            if "SCF run NOT converged" in out.complaint:
                return fail(attempt, "not_converged", out.complaint, **more)
            fault = machine_in(log)
            killed = not 0 < ended.returncode < 128
            if fault or not (out.begun or out.complaint or killed):
                raise machine_error(fault or last_line(ended.log))
            refuse_full(place)
            if ended.peak_memory_bytes > 0.9 * machine_memory_bytes():
                return fail(attempt, "out_of_memory", describe_exit(ended.returncode), **more)
            why = out.complaint or describe_exit(ended.returncode)
            return fail(attempt, "crashed", why, **more)
        return finish(attempt, energy=out.energy, forces=out.forces, stress=out.stress, **more)

    def _input(
        self, attempt: Attempt, atoms: Atoms, box: Box, route: Mapping[str, Any]
    ) -> dict[str, Any]:
        periodic = bool(atoms.pbc.any())
        along = "XYZ" if periodic else "NONE"
        vectors = {k: " ".join(map(repr, v.tolist())) for k, v in zip("ABC", box.cell)}
        symbols = atoms.get_chemical_symbols()
        lines = [
            f"{s} {' '.join(repr(x) for x in p.tolist())}" for s, p in zip(symbols, box.positions)
        ]
        dft = self._dft_xtb(attempt, box, route, periodic) if self.is_xtb else self._dft_pbe(route)
        if not self.is_xtb:
            dft["POISSON"] = {
                "PERIODIC": along,
                "POISSON_SOLVER": "PERIODIC" if periodic else "WAVELET",
            }
        kinds = (
            {}
            if self.is_xtb
            else {
                f"KIND {s}": {
                    "ELEMENT": s,
                    "BASIS_SET": self.data.kinds[s].basis,
                    "POTENTIAL": self.data.kinds[s].potential,
                }
                for s in sorted(set(symbols))
            }
        )
        return {
            "GLOBAL": {
                "PROJECT": "label",
                "RUN_TYPE": "ENERGY_FORCE",
                "PRINT_LEVEL": "LOW",
            },
            "FORCE_EVAL": {
                "METHOD": "QS",
                "STRESS_TENSOR": "ANALYTICAL" if periodic else None,
                "DFT": {
                    "CHARGE": attempt.charge,
                    "MULTIPLICITY": attempt.n_unpaired + 1,
                    "UKS": True if attempt.n_unpaired else None,
                    **dft,
                },
                "PRINT": {
                    "FORCES ON": {"NDIGITS": 12},
                    **({"STRESS_TENSOR ON": {}} if periodic else {}),
                },
                "SUBSYS": {
                    "CELL": {**vectors, "PERIODIC": along},
                    "COORD": {"": lines},
                    **kinds,
                },
            },
        }

    def _dft_pbe(self, route: Mapping[str, Any]) -> dict[str, Any]:
        p, place = self.preset, self.data.directory
        inner = min(self.max_iterations, 25)
        return {
            "BASIS_SET_FILE_NAME": place / "BASIS_MOLOPT",
            "POTENTIAL_FILE_NAME": place / "GTH_POTENTIALS",
            "MGRID": {"CUTOFF": p.cutoff, "REL_CUTOFF": p.rel_cutoff, "NGRIDS": 4},
            "QS": {"EPS_DEFAULT": 1e-12},
            "SCF": {
                "SCF_GUESS": route.get("guess", "ATOMIC"),
                "EPS_SCF": EPS_SCF,
                "MAX_SCF": inner,
                "OT": route["OT"],
                "OUTER_SCF": {
                    "EPS_SCF": EPS_SCF,
                    "MAX_SCF": max(0, -(-self.max_iterations // inner) - 1),
                },
                "PRINT": {"RESTART OFF": {}},
            },
            "XC": {
                "XC_FUNCTIONAL PBE": {},
                "XC_GRID": SMOOTHING[p.smooth],
                "VDW_POTENTIAL": {
                    "POTENTIAL_TYPE": "PAIR_POTENTIAL",
                    "PAIR_POTENTIAL": {
                        "TYPE": "DFTD3(BJ)",
                        "PARAMETER_FILE_NAME": place / "dftd3.dat",
                        "REFERENCE_FUNCTIONAL": "PBE",
                        "D3BJ_SCALING": D3BJ_PBE,
                        "R_CUTOFF": f"[angstrom] {D3_CUTOFF_A}",
                    },
                },
            },
        }

    def _dft_xtb(
        self, attempt: Attempt, box: Box, route: Mapping[str, Any], periodic: bool
    ) -> dict[str, Any]:
        place = self.data.directory
        poisson: dict[str, Any] = {"PERIODIC": "NONE", "POISSON_SOLVER": "ANALYTIC"}
        if periodic:
            lengths = np.linalg.norm(box.cell, axis=1)
            points = 2 * np.ceil(POINTS_PER_A * lengths / 2).astype(int) + 1  # odd ones
            poisson = {
                "PERIODIC": "XYZ",
                "POISSON_SOLVER": "PERIODIC",
                "EWALD": {
                    "EWALD_TYPE": "SPME",
                    "ALPHA": EWALD_ALPHA,
                    "GMAX": " ".join(map(str, points)),
                },
            }
        smear = {
            "METHOD": "FERMI_DIRAC",
            "ELECTRONIC_TEMPERATURE": TEMPERATURE_K,
            "FIXED_MAGNETIC_MOMENT": float(attempt.n_unpaired) if attempt.n_unpaired else None,
        }
        return {
            "QS": {
                "METHOD": "xTB",
                "xTB": {
                    "DO_EWALD": periodic,
                    "CHECK_ATOMIC_CHARGES": False,
                    "PARAMETER": {
                        "PARAM_FILE_PATH": f"{place}{os.sep}",
                        "PARAM_FILE_NAME": "xTB_parameters",
                        "DISPERSION_PARAMETER_FILE": place / "dftd3.dat",
                    },
                },
            },
            "POISSON": poisson,
            "SCF": {
                "SCF_GUESS": "MOPAC",
                "EPS_SCF": EPS_SCF_XTB,
                "MAX_SCF": self.max_iterations,
                "ADDED_MOS": "-1 -1" if attempt.n_unpaired else -1,
                "DIAGONALIZATION": {},
                "MIXING": {"METHOD": "DIRECT_P_MIXING", "ALPHA": route["ALPHA"]},
                "SMEAR ON": smear,
                "PRINT": {"RESTART OFF": {}},
            },
        }


_OF_THE_LEVEL = ("cutoff", "rel_cutoff", "vacuum")


def cp2k_reference(variant: str = "pbe", *, spec: str = "", **options: Any) -> Cp2kReference:
    """Make a CP2K reference: ``cp2k:pbe``, ``cp2k:pbe?ranks=4&cutoff=600``, ``cp2k:gfn1-xtb``.

    Parameters
    ----------
    variant : str
        A preset: `pbe` or `gfn1-xtb`.
    **options
        Of `pbe`: `basis` (a family of BASIS_MOLOPT), `cutoff` and `rel_cutoff` in Ry, `vacuum` in
        Å and `smooth` (nn50, nn10, none), where another value than the preset's is another level
        of theory. The others see `Cp2kReference`.

    Raises
    ------
    DependencyError
        CP2K, its data or MPI is not installed.
    ReferenceError
        No such preset or option, or a value that cannot be meant.
    """
    variant = variant or "pbe"
    if variant not in PRESETS:
        raise ReferenceError(f"cp2k:{variant} is no preset; there are {', '.join(PRESETS)}")
    name, preset = f"cp2k:{variant}", PRESETS[variant]
    of_the_level = () if variant == "gfn1-xtb" else ("basis", "smooth", *_OF_THE_LEVEL)
    check_known(name, options, [*of_the_level, "program", "data", *PROGRAM_OPTIONS])
    changed: dict[str, Any] = {
        key: number(name, key, options.pop(key)) for key in _OF_THE_LEVEL if key in options
    }
    basis = options.pop("basis", preset.basis)
    if preset.basis and basis not in BASES:
        raise ReferenceError(f"{name}: basis = {basis!r}; expected one of {', '.join(BASES)}")
    smooth = str(options.pop("smooth", preset.smooth))
    if smooth not in SMOOTHING:
        raise ReferenceError(f"{name}: smooth = {smooth!r}; expected one of {', '.join(SMOOTHING)}")
    program = options.pop("program", None) or next(filter(shutil.which, PROGRAMS), None)
    if program is None or shutil.which(str(program)) is None:
        what = f"there is no {program}" if program else "there is no cp2k.psmp on the path"
        raise DependencyError(f"{name} needs CP2K, and {what}; type: {INSTALL}")
    if options.get("launcher") is None and shutil.which("mpirun") is None:
        raise DependencyError(f"{name} needs mpirun; type: apt-get install openmpi-bin")
    made = Cp2kReference(
        replace(preset, basis=basis, smooth=smooth, **changed),
        name=name,
        spec=spec or name,
        program=str(program),
        **options,
    )
    _check(made.preset, name)
    return made


def _check(preset: Cp2kPreset, name: str) -> None:
    if preset.basis and not (50 <= preset.cutoff <= 3000 and 10 <= preset.rel_cutoff <= 500):
        raise ReferenceError(
            f"{name}: cutoff = {preset.cutoff:g}, rel_cutoff = {preset.rel_cutoff:g} Ry; "
            "expected 50 to 3000, and 10 to 500"
        )
