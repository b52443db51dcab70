"""A trained potential for programs that have never heard of mofal: ASE and LAMMPS through NequIP.

The model goes through NequIP's own scripts, each in a process of its own: `nequip-package` makes an
archive that holds code and weights and that any later NequIP reads; `nequip-compile` makes from it
what `NequIPCalculator.from_compiled_model` and LAMMPS' `pair_style nequip` run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mofal.data.sealed import digest
from mofal.data.store import atomic_path
from mofal.errors import PotentialError, StoreError
from mofal.potential.compile_script import run_compiler

if TYPE_CHECKING:
    from mofal.density import ErrorBound, PerElementDensity
    from mofal.potential.model import NequIPPotential

PACKAGE, COMPILED = ".nequip.zip", ".nequip.pt2"
DENSITY, CALCULATOR = ".density.npz", "_calculator.py"
"""End the names of what an export with a density writes beside its network."""
CHECKSUM = ".sha256"
"""Ends the name of the file beside it that ``sha256sum -c`` reads."""
_TARGETS = {"ase": "ase", "lammps": "pair_nequip", "batch": "batch"}


def export(
    model: NequIPPotential | str | Path,
    path: str | Path,
    *,
    energies: Literal["relative", "total"] = "relative",
    target: Literal["ase", "lammps", "batch"] = "ase",
    device: str = "cpu",
    density: PerElementDensity | str | Path | None = None,
    error_bound: ErrorBound | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a potential as a file that runs without mofal, and its checksum beside it.

    The checksum is in ``<path>.sha256``, for ``sha256sum -c``: no program that runs the file looks
    for flipped bits.

    Parameters
    ----------
    model : NequIPPotential or path
        The potential, or its directory.
    path : path
        What it ends in decides what it becomes. ``.nequip.zip``: an archive for
        `nequip.integrations.ase.NequIPCalculator`, for further training and for `nequip-compile`
        on another machine. ``.nequip.pt2``: compiled for this machine and torch version (needs a
        C++ compiler and about a minute).
    energies : str
        ``"relative"``: to isolated atoms, as in mofal. ``"total"``: the isolated-atom energies of
        the training's level of theory are added back as shifts per type, so that energies are
        comparable with the reference's own. Forces are the same.
    target : str
        What a compiled file is for: ``"ase"``, ``"lammps"`` (``pair_style nequip``) or ``"batch"``
        (torch-sim).
    device : str
        Device that a compiled file runs on: ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
    density : PerElementDensity or path, optional
        What the potential knows: mixtures and calibration go into ``<stem>.density.npz`` and an ASE
        calculator that gives the `quantile` of every atom into ``<stem>_calculator.py``, a Python
        file that needs NequIP and neither mofal nor a campaign. A compiled file returns the hidden
        layer too and is opened by that calculator alone. Target ``ase`` only.
    error_bound : ErrorBound, optional
        Calibrated with that density: the calculator gives `error_bound` (eV/Å) as well.
    progress : callable, optional
        Is given lines of text.

    Returns
    -------
    pathlib.Path
        `path`.

    Raises
    ------
    PotentialError
        A foreign ending, a device that is not there, totals without isolated-atom energies, or a
        script of NequIP that failed.
    StoreError
        `path` exists.
    """
    import torch

    from mofal.potential.checkpoint import write_checkpoint
    from mofal.potential.devices import resolve_device
    from mofal.potential.model import NequIPPotential, load

    out = Path(path)
    beside = check_export(out, target=target, density=density is not None)
    if error_bound is not None and density is None:
        raise PotentialError("an error bound needs its density: give density= too")
    # What is compiled runs on any GPU of its kind, whatever its number.
    device = resolve_device(device).partition(":")[0]
    potential = model if isinstance(model, NequIPPotential) else load(model)
    arrays = None if density is None else _carried(potential, density, error_bound)
    shifts = _shifts(potential, energies)
    with tempfile.TemporaryDirectory(prefix="mofal-export-") as directory:
        work = Path(directory)
        checkpoint = write_checkpoint(potential, work, shifts)
        made = work / f"model{PACKAGE}"
        compiled = out.name.endswith(COMPILED)
        if not (compiled and arrays is not None):
            _say(progress, f"packaging model {potential.model_hash} ...")
            _run_script("package", ["build", str(checkpoint), str(made)])
        if compiled:
            source, made = made, work / f"model{COMPILED}"
            _say(progress, f"compiling it for {target} on {device} (about a minute) ...")
            if arrays is not None:
                threads = torch.get_num_threads()
                place = work / "constants.json"
                run_compiler(checkpoint, made, constants=place, device=device, threads=threads)
            else:
                options = ["--mode", "aotinductor", "--device", device]
                options += ["--target", _TARGETS[target]]
                _run_script("compile", [str(source), str(made), *options])
        content = made.read_bytes()
        # The checksum comes first: a file without one is never there.
        with atomic_path(out.with_name(out.name + CHECKSUM)) as temporary:
            temporary.write_text(f"{digest(content)}  {out.name}\n")
        if arrays is not None:
            _write_beside(beside[0], beside[1], arrays, _stem(out))
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
    return out


def check_export(path: str | Path, *, target: str, density: bool) -> list[Path]:
    """Refuse what cannot be written, before anything is computed.

    Parameters
    ----------
    path : path
        Of the network.
    target : str
    density : bool
        Whether a density goes with it.

    Returns
    -------
    list of Path
        Files that a density writes beside the network.

    Raises
    ------
    PotentialError
        A foreign ending or target, or a target that a density does not go with.
    StoreError
        A file is there already.
    """
    out = Path(path)
    if not out.name.endswith((PACKAGE, COMPILED)):
        raise PotentialError(
            f"{out.name} ends in neither {PACKAGE} (archive) nor {COMPILED} (compiled); "
            f"NequIP knows its files by their endings: {out.stem}{PACKAGE}"
        )
    if target not in _TARGETS:
        raise PotentialError(f"no target {target!r}; targets: {', '.join(_TARGETS)}")
    if density and target != "ase":
        raise PotentialError(
            f"a density goes with the calculator of ASE, not with target {target!r}: write "
            "target='ase', or leave the density out"
        )
    beside = [out.with_name(_stem(out) + DENSITY), out.with_name(_stem(out) + CALCULATOR)]
    for file in (out, *(beside if density else ())):
        if file.exists():
            raise StoreError(f"{file} exists; delete it, or give another name")
    return beside


def _stem(out: Path) -> str:
    return out.name.removesuffix(PACKAGE).removesuffix(COMPILED)


def _carried(
    potential: NequIPPotential,
    density: PerElementDensity | str | Path,
    error_bound: ErrorBound | None,
) -> dict[str, Any]:
    """Arrays of a density, checked against the potential."""
    from mofal.density import PerElementDensity as Fitted
    from mofal.potential.onboard import exported_arrays

    fitted = Fitted.load(density) if isinstance(density, (str, Path)) else density
    return exported_arrays(potential, fitted, error_bound)


def _write_beside(numbers: Path, program: Path, arrays: dict[str, Any], stem: str) -> None:
    """Write the density and the calculator that reads it."""
    import numpy as np

    from mofal.potential import standalone

    with atomic_path(numbers) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **arrays)
    text = Path(standalone.__file__).read_text(encoding="utf-8")
    text = text.replace('NAME = ""\n', f"NAME = {stem!r}\n", 1).replace("NAME_", f"{stem}_", 1)
    with atomic_path(program) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _say(progress: Callable[[str], None] | None, line: str) -> None:
    if progress is not None:
        progress(line)


def _shifts(potential: NequIPPotential, energies: str) -> dict[str, float]:
    if energies == "relative":
        return dict.fromkeys(potential.elements, 0.0)
    if energies != "total":
        raise PotentialError(f"energies={energies!r}; expected 'relative' or 'total'")
    known = potential.isolated_atom_energies or {}
    missing = [e for e in potential.elements if e not in known]
    if missing:
        raise PotentialError(
            f"totals need the isolated-atom energy of {', '.join(missing)}, which this model's "
            "training data did not carry; export with energies='relative', or set "
            'potential.provenance["isolated_atom_energies"]'
        )
    return {e: known[e] for e in potential.elements}


def _run_script(name: str, arguments: list[str]) -> None:
    environment = {**os.environ, "_NEQUIP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", f"nequip.scripts.{name}", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        hint = (
            " (is there a C++ compiler? apt-get install g++)"
            if name == "compile" and "compiler" in done.stderr.lower()
            else ""
        )
        raise PotentialError(
            f"nequip-{name} failed: {lines[-1] if lines else 'no message'}{hint}; the command was "
            f"python -m nequip.scripts.{name} {' '.join(arguments)}"
        )
