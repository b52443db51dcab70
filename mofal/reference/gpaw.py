"""GPAW, for clusters and crystals alike, in a process of its own.

One set of parameters serves both boundary conditions (paper, Section SI.1): a cluster sits in a box
with walls of zero value, whose grid has exactly the spacing asked for and whose electrostatic
potential reaches further out; a crystal has its own cell. Everything else is the same.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import DependencyError, ReferenceError
from mofal.reference.base import (
    Attempt,
    begin,
    fail,
    finish,
    hash_level,
    package_versions,
    tail,
    why_not,
)
from mofal.reference.child import (
    Finished,
    beyond_pool,
    describe_exit,
    last_line,
    read_tail,
    run_process,
)
from mofal.reference.faults import machine_error, machine_in, refuse_full
from mofal.reference.gpaw_memory import (
    Box,
    Cost,
    PawData,
    box_cluster,
    box_crystal,
    estimate_cost,
    find_paw_data,
    machine_memory_bytes,
    read_paw_atom,
)
from mofal.reference.options import check_known, flag, number, whole_number
from mofal.reference.processes import pool_memory_bytes

if TYPE_CHECKING:
    from ase import Atoms

SCRIPT = Path(__file__).with_name("gpaw_script.py")
INSTALL = "sh scripts/gpaw/install.sh .venv/bin/python"

# D3 of PBE with Becke-Johnson damping, without three-body terms.
# Grimme, Ehrlich, Goerigk, J. Comput. Chem. 2011, 32, 1456, Table 2.
D3BJ_PBE = {"s6": 1.0, "s8": 0.7875, "s9": 0.0, "a1": 0.4289, "a2": 4.4407}
CONVERGENCE = {"energy": 5e-4, "density": 1e-4, "eigenstates": 4e-8}


@dataclass(frozen=True)
class Preset:
    """Parameters of one level, and the noise of its forces.

    Attributes
    ----------
    mode : {"fd", "lcao"}
    h : float
        Grid spacing, Å.
    stencil : int
        Range of the finite-difference stencils of the kinetic energy, 1 to 6.
    interpolation : int
        Range of the interpolation of the density: 3 quintic, 4 heptic.
    vacuum, poisson_extension : float
        Å on each side of a cluster.
    noise_rmse, noise_max : float
        eV/Å: what a shift by a part of h changes forces by, RMSE and largest component.
    """

    mode: str
    h: float
    stencil: int = 6
    interpolation: int = 4
    basis: str | None = None
    vacuum: float = 4.0
    poisson_extension: float = 8.0
    coarsenings: int = 2
    noise_rmse: float = 0.02
    noise_max: float = 0.1


PRESETS: dict[str, Preset] = {
    # The paper, Section SI.1; its noise is stated there for each factor alone.
    "paper": Preset(mode="fd", h=0.175, noise_rmse=0.02, noise_max=0.1),
    # First looks and tests; the noise is a bound, held by a test, and far above the paper's level.
    "coarse": Preset(mode="fd", h=0.25, noise_rmse=0.8, noise_max=2.5),
    "lcao": Preset(mode="lcao", h=0.2, basis="dzp", noise_rmse=0.1, noise_max=0.3),
}

# How the same answer is reached when the first way fails. None of these is part of the level.
ROUTES: tuple[dict[str, Any], ...] = (
    {"name": "default"},
    {"name": "slower mixing", "mixer": {"name": "pulay", "beta": 0.03, "nmaxold": 8}},
    {
        "name": "other eigensolver, random start, slower mixing",
        "mixer": {"name": "pulay", "beta": 0.03, "nmaxold": 8},
        "eigensolver": {"name": "rmm-diis"},
        "random": True,
    },
)


class GpawReference:
    """Label structures with GPAW in its own process, on several ranks.

    Parameters
    ----------
    preset : Preset
        The level.
    name, spec : str
        How to ask for it again.
    ranks, threads : int
        MPI ranks, and threads of each.
    time_limit_s : float, optional
        Wall time of one attempt, retries included; its whole process group is ended there.
    memory_limit_GB : float, optional
        A job whose estimate is above is refused; one that grows beyond is ended. Default: the
        machine's memory, for the refusal only.
    max_iterations : int
        Of the density, for each way of reaching it.
    max_retries : int
        How many other ways are tried when the density does not converge.
    launcher : str
        Command line before the Python of GPAW, with ``{ranks}``.
    python : str, optional
        The Python that has GPAW, where it is not this one.
    keep : bool
        Keep the directory of each calculation.
    """

    def __init__(
        self,
        preset: Preset,
        *,
        name: str,
        spec: str,
        ranks: int = 1,
        threads: int = 1,
        time_limit_s: float | None = None,
        memory_limit_GB: float | None = None,
        max_iterations: int = 200,
        max_retries: int = 2,
        launcher: str | None = None,
        python: str | None = None,
        keep: bool = False,
    ) -> None:
        _check_preset(preset, name)
        if time_limit_s is not None:
            time_limit_s = number(name, "time_limit_s", time_limit_s)
        if memory_limit_GB is not None:
            memory_limit_GB = number(name, "memory_limit_GB", memory_limit_GB)
        if launcher is not None:
            _check_launcher(launcher, name)
        self.preset = preset
        self.name = name
        self.spec = spec
        self.ranks = whole_number(name, "ranks", ranks)
        self.threads = whole_number(name, "threads", threads)
        self.time_limit_s = time_limit_s
        self.memory_limit_GB = memory_limit_GB
        self.max_iterations = whole_number(name, "max_iterations", max_iterations)
        self.max_retries = whole_number(name, "max_retries", max_retries, least=0)
        self.launcher = launcher
        self.python = python or sys.executable
        self.keep = flag(name, "keep", keep)

    def __repr__(self) -> str:
        return f"GpawReference({self.spec!r}, ranks={self.ranks})"

    def __reduce__(self) -> tuple[Any, ...]:
        from mofal.reference.registry import get_reference

        return get_reference, (self.spec,)

    @cached_property
    def paw_data(self) -> PawData:
        """PAW data (and basis sets) that GPAW will find."""
        return find_paw_data(setup_directories(self.python), xc="PBE", basis=self.preset.basis)

    @cached_property
    def level_of_theory(self) -> dict[str, Any]:
        """Method, every parameter, and the hash of the PAW data."""
        p = self.preset
        return {
            "method": "PBE-D3(BJ)",
            "program": "gpaw",
            "mode": p.mode,
            "h": p.h,
            "stencil": p.stencil if p.mode == "fd" else None,
            "basis": p.basis,
            "interpolation": p.interpolation,
            "sampling": "gamma point",
            "spin": "paired",
            "symmetry": "off",
            "occupations": {"name": "fermi-dirac", "width": 0.0},
            "convergence": dict(CONVERGENCE),
            "cluster": {
                "walls": "zero value",
                "vacuum": p.vacuum,
                "poisson_extension": p.poisson_extension,
                "poisson_coarsenings": p.coarsenings if p.poisson_extension > 0 else 0,
                "grid": "exact, fixed in space",
            },
            "crystal": {"grid": "nearest multiple of four points"},
            "dispersion": {"damping": "d3bj", **D3BJ_PBE},
            "paw_data_sha256": self.paw_data.sha256,
            "energy_zero": "the program's reference atoms",
            "units": "Å, eV",
        }

    @property
    def stated_noise(self) -> float | None:
        """RMSE between two labels that the preset states, eV/Å; None at any other level.

        Besides the preset only the PAW data make the level; ranks and limits are no part of either.
        """
        return self.preset.noise_rmse if self.preset in PRESETS.values() else None

    @cached_property
    def level_hash(self) -> str:
        """Hash of the level of theory."""
        return hash_level(self.level_of_theory)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the codes, as far as they are known before a calculation."""
        return package_versions("gpaw", "gpaw-data", "dftd3", "scipy")

    def isolated_atom_energies(
        self, elements: Iterable[str], *, cache: str | os.PathLike[str] | None = None
    ) -> dict[str, float]:
        """Zero for every element: GPAW's energies are relative to its own reference atoms.

        These are spin-paired, spherical and at the same functional, so nothing is calculated and
        `cache` is not used. D3 of a lone atom is zero.
        """
        from ase.data import atomic_numbers

        wanted = sorted(set(elements), key=lambda s: atomic_numbers.get(s, 0))
        unknown = [s for s in wanted if atomic_numbers.get(s, 0) < 1]
        if unknown:
            raise ReferenceError(f"{', '.join(map(repr, unknown))} is no chemical symbol")
        return dict.fromkeys(wanted, 0.0)

    def box(self, atoms: Atoms) -> Box:
        """Cell and grid that a structure is calculated in."""
        if atoms.pbc.any():
            return box_crystal(atoms.positions, atoms.cell[:], h=self.preset.h)
        return box_cluster(
            atoms.positions,
            h=self.preset.h,
            vacuum=self.preset.vacuum,
            poisson_extension=self.preset.poisson_extension,
            coarsenings=self.preset.coarsenings,
        )

    def cost(self, atoms: Atoms) -> Cost:
        """Grid, bands, projectors and memory of a calculation before it starts.

        Raises
        ------
        ReferenceError
            There is no PAW data for an element.
        """
        missing = self._missing_elements(atoms)
        if missing:
            raise ReferenceError(f"no PAW data for {', '.join(missing)}")
        files = self.paw_data.files
        return estimate_cost(
            self.box(atoms),
            [read_paw_atom(files[s]) for s in atoms.get_chemical_symbols()],
            mode=self.preset.mode,
            ranks=self.ranks,
            coarsenings=self.preset.coarsenings,
        )

    def _missing_elements(self, atoms: Atoms) -> list[str]:
        known = set(self.paw_data.files)
        if self.preset.basis is not None:
            known &= set(self.paw_data.bases)
        return sorted(set(atoms.get_chemical_symbols()) - known)

    def calculate(self, atoms: Atoms, *, directory: str | os.PathLike[str]) -> Attempt:
        """Label one structure; a failure of any kind is a status with its reason.

        Parameters
        ----------
        atoms : ase.Atoms
            A cluster (periodic nowhere) or a crystal (periodic everywhere), with an even number of
            electrons.
        directory : path
            Where the calculation makes its own directory, removed afterwards unless `keep`.

        Raises
        ------
        OSError
            The machine failed (`mofal.reference.faults`): that is no result.
        """
        attempt = begin(self, atoms)
        reason = why_not(atoms, partly_periodic=False)
        electrons = int(atoms.numbers.sum())
        if not reason and electrons % 2:
            reason = (
                f"it has {electrons} electrons; an odd number needs spin polarisation, "
                "which this level does not have"
            )
        if reason:
            return fail(attempt, "inconsistent", reason)
        missing = self._missing_elements(atoms)
        if missing:
            return fail(attempt, "crashed", f"no PAW data for {', '.join(missing)}")
        cost = self.cost(atoms)
        attempt = replace(attempt, memory_estimate=cost.memory_GB)
        there = machine_memory_bytes() / 1e9
        for limit in (self.memory_limit_GB, _in_GB(pool_memory_bytes())):
            there = there if limit is None else min(there, limit)
        if cost.memory_GB > there:
            why = (
                f"refused: it needs about {cost.memory_GB:.1f} GB, {there:.1f} GB are there "
                f"(grid {'x'.join(map(str, cost.grid_points))}, {cost.bands} bands)"
            )
            return fail(attempt, "out_of_memory", why)
        start = time.perf_counter()
        done = self._calculate(attempt, atoms, Path(directory), start)
        return replace(done, wall_time_s=time.perf_counter() - start)

    def _calculate(self, attempt: Attempt, atoms: Atoms, directory: Path, start: float) -> Attempt:
        directory.mkdir(parents=True, exist_ok=True)
        place = Path(
            tempfile.mkdtemp(prefix=f"{attempt.structure_id[:12]}-", dir=directory)
        ).absolute()
        box = self.box(atoms)
        retries: list[Mapping[str, Any]] = []
        try:
            routes = self._routes()
            for number, route in enumerate(routes):
                here = place / f"try-{number}"
                here.mkdir()
                left = None
                if self.time_limit_s is not None:
                    left = self.time_limit_s - (time.perf_counter() - start)
                done = self._run(attempt, atoms, box, route, here, left)
                attempt = replace(attempt, memory_peak=done.memory_peak, versions=done.versions)
                if done.status != "not_converged":
                    break
                if route is not routes[-1]:
                    retries.append(
                        {"failed": route["name"], "status": done.status, "reason": done.reason}
                    )
            return replace(done, retries=tuple(retries))
        finally:
            if not self.keep:
                shutil.rmtree(place, ignore_errors=True)

    def _routes(self) -> list[dict[str, Any]]:
        """Ways to the same answer, in the order in which they are tried."""
        routes = list(ROUTES)
        if self.preset.mode == "lcao":  # its eigensolver is a direct one
            routes = [r for r in routes if "eigensolver" not in r]
        return routes[: 1 + self.max_retries]

    def _run(
        self,
        attempt: Attempt,
        atoms: Atoms,
        box: Box,
        route: Mapping[str, Any],
        place: Path,
        time_limit_s: float | None,
    ) -> Attempt:
        if time_limit_s is not None and time_limit_s <= 0:
            return fail(attempt, "timed_out", f"not done after {self.time_limit_s:g} s")
        given = {
            "ranks": self.ranks,
            "parameters": self._parameters(box, route),
            "dispersion": {"damping": "d3bj", "parameters": D3BJ_PBE},
        }
        (place / "input.json").write_text(json.dumps(given, indent=1))
        with open(place / "input.npz", "wb") as file:
            np.savez(
                file,
                numbers=attempt.numbers,
                positions=box.positions,
                cell=box.cell,
                pbc=attempt.pbc,
            )
        limits = (self.memory_limit_GB, _in_GB(pool_memory_bytes()))
        limit = min((1e9 * x for x in limits if x is not None), default=None)
        ended = run_process(
            [*self._launcher(), self.python, "-m", "gpaw", "python", str(SCRIPT), str(place)],
            directory=place,
            time_limit_s=time_limit_s,
            memory_limit_bytes=limit,
            environment={
                "OMP_NUM_THREADS": str(self.threads),
                "OPENBLAS_NUM_THREADS": str(self.threads),
            },
            watch_memory=True,
        )
        return self._judge(attempt, box, ended, place, limit)

    def _judge(
        self, attempt: Attempt, box: Box, ended: Finished, place: Path, limit: float | None
    ) -> Attempt:
        """Turn what a process left behind into an attempt."""
        log = tail("\n".join(t for t in (read_tail(place / "gpaw.txt"), ended.log) if t))
        more: dict[str, Any] = {"log_tail": log}
        if ended.peak_memory_bytes:
            more["memory_peak"] = ended.peak_memory_bytes / 1e9
        if ended.timed_out:
            return fail(attempt, "timed_out", f"not done after {self.time_limit_s:g} s", **more)
        if ended.out_of_memory:
            assert limit is not None
            own = self.memory_limit_GB
            grown = (
                f"it grew beyond {own:g} GB and was ended"
                if own is not None and limit == 1e9 * own
                else beyond_pool(limit)
            )
            return fail(attempt, "out_of_memory", grown, **more)
        failures = sorted(place.glob("failure-*.json"))
        outcome = _read_json(place / "outcome.json")
        if outcome is None:
            said = [str((_read_json(f) or {}).get("reason", "")) for f in failures]
            fault = machine_in("\n".join([*said, ended.log]))
            begun = (place / "started").exists() or not 0 < ended.returncode < 128
            if fault or not begun:
                raise machine_error(fault or last_line("\n".join([ended.log, *said])))
            if not failures:
                refuse_full(place)
        if outcome is None and failures:
            found = _read_json(failures[0]) or {"status": "crashed", "reason": "no word left"}
            return fail(attempt, found["status"], found["reason"], **more)
        if outcome is None:
            if ended.peak_memory_bytes > 0.9 * machine_memory_bytes():
                return fail(attempt, "out_of_memory", describe_exit(ended.returncode), **more)
            why = describe_exit(ended.returncode) if ended.returncode else "it left no result"
            return fail(attempt, "crashed", why, **more)
        more["versions"] = {**attempt.versions, **outcome["versions"]}
        if outcome["status"] != "converged":
            return fail(attempt, outcome["status"], outcome["reason"], **more)
        try:
            with np.load(place / "output.npz", allow_pickle=False) as found_arrays:
                result = {name: found_arrays[name] for name in found_arrays.files}
            energy, forces = float(result["energy"]), result["forces"]
            positions = result["positions"] - box.shift
        except (OSError, ValueError, KeyError, EOFError) as error:
            return fail(attempt, "crashed", f"its output cannot be read: {error}", **more)
        if tuple(outcome["grid"]["points"]) != box.grid_points:
            found_grid = f"the grid is {outcome['grid']['points']}, not {list(box.grid_points)}"
            return fail(attempt, "inconsistent", found_grid, **more)
        # Neither finite differences nor LCAO give a stress.
        return finish(attempt, energy=energy, forces=forces, positions=positions, **more)

    def _parameters(self, box: Box, route: Mapping[str, Any]) -> dict[str, Any]:
        p = self.preset
        parameters: dict[str, Any] = {
            "mode": {"name": "fd", "nn": p.stencil} if p.mode == "fd" else {"name": "lcao"},
            "gpts": list(box.grid_points),
            "xc": "PBE",
            "kpts": [1, 1, 1],
            "interpolation": p.interpolation,
            "symmetry": "off",
            "occupations": {"name": "fermi-dirac", "width": 0.0},
            "convergence": dict(CONVERGENCE),
            "maxiter": self.max_iterations,
            **{key: value for key, value in route.items() if key != "name"},
        }
        if p.basis is not None:
            parameters["basis"] = p.basis
        if box.poisson_points is not None:
            parameters["poissonsolver"] = {
                "name": "ExtraVacuumPoissonSolver",
                "gpts": list(box.poisson_points),
                "coarses": p.coarsenings,
                "poissonsolver_large": {"name": "fast"},
                "poissonsolver_small": {"name": "fast"},
            }
        else:
            parameters["poissonsolver"] = {"name": "fast"}
        return parameters

    def _launcher(self) -> list[str]:
        if self.launcher is not None:
            return shlex.split(self.launcher.format(ranks=self.ranks))
        # Without binding: several jobs of one machine would else all sit on its first cores.
        command = ["mpirun", "--oversubscribe", "--bind-to", "none"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-run-as-root")
        return [*command, "-np", str(self.ranks)]


def gpaw_reference(
    variant: str = "paper",
    *,
    spec: str = "",
    **options: Any,
) -> GpawReference:
    """Make a GPAW reference: ``gpaw:paper``, ``gpaw:coarse?ranks=2&time_limit_s=3600``.

    Parameters
    ----------
    variant : str
        A preset: `paper`, `coarse` or `lcao`.
    **options
        `h`, `vacuum` and `poisson_extension` in Å, where another value than the preset's is another
        level of theory; the others see `GpawReference`.

    Raises
    ------
    DependencyError
        GPAW, MPI or D3 is not installed.
    ReferenceError
        No such preset or option, or a value that cannot be meant.
    """
    variant = variant or "paper"
    if variant not in PRESETS:
        raise ReferenceError(f"gpaw:{variant} is no preset; there are {', '.join(PRESETS)}")
    name = f"gpaw:{variant}"
    known = [p for p in inspect.signature(GpawReference).parameters if p not in _SET_BY_NAME]
    check_known(name, options, [*_OF_THE_LEVEL, *known])
    changed = {
        key: number(name, key, options.pop(key), zero=key == "poisson_extension")
        for key in _OF_THE_LEVEL
        if key in options
    }
    if options.get("python") is None:
        absent = [m for m in ("gpaw", "dftd3", "gpaw_data") if find_spec(m) is None]
        if absent:
            raise DependencyError(f"gpaw:{variant} needs {', '.join(absent)}; type: {INSTALL}")
    if options.get("launcher") is None and shutil.which("mpirun") is None:
        raise DependencyError(f"gpaw:{variant} needs mpirun; type: {INSTALL}")
    return GpawReference(
        replace(PRESETS[variant], **changed),  # type: ignore[arg-type]
        name=name,
        spec=spec or name,
        **options,
    )


# What the specification itself gives.
_SET_BY_NAME = frozenset({"preset", "name", "spec"})
_OF_THE_LEVEL = ("h", "vacuum", "poisson_extension")


def _check_preset(preset: Preset, name: str) -> None:
    if preset.mode not in ("fd", "lcao"):
        raise ReferenceError(f"{name}: mode {preset.mode!r}; expected 'fd' or 'lcao'")
    if not 0.05 <= preset.h <= 0.5:
        raise ReferenceError(
            f"{name}: h = {preset.h} Å; expected a grid spacing from 0.05 to 0.5 Å"
        )
    if not (preset.vacuum > 0 and preset.poisson_extension >= 0):
        raise ReferenceError(
            f"{name}: vacuum = {preset.vacuum} Å, "
            f"poisson_extension = {preset.poisson_extension} Å; expected above zero, and zero or "
            "more"
        )


def _check_launcher(launcher: Any, name: str) -> None:
    try:
        one, two = (shlex.split(launcher.format(ranks=ranks)) for ranks in (1, 2))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        one = two = []  # no text, another placeholder, or a quotation mark that is not closed
    if one == two:
        raise ReferenceError(
            f"{name}: launcher = {launcher!r}; expected a command line with {{ranks}} in it and no "
            "other placeholder, e.g. 'srun -n {ranks}'"
        )


@lru_cache(maxsize=8)
def setup_directories(python: str) -> tuple[Path, ...]:
    """Where GPAW looks for PAW data, in its order, without importing it here."""
    places = [Path(p) for p in os.environ.get("GPAW_SETUP_PATH", "").split(os.pathsep) if p]
    if python == sys.executable:
        spec = find_spec("gpaw_data")
        if spec is not None and spec.origin is not None:
            places.append(Path(spec.origin).parent / "setups")
    else:
        code = "import gpaw_data; print(gpaw_data.datapath())"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            places.append(Path(done.stdout.strip()))
    return tuple(places)


def _in_GB(amount: float | None) -> float | None:
    return None if amount is None else amount / 1e9


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
