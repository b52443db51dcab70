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

if TYPE_CHECKING:
    from mofal.potential.model import NequIPPotential

PACKAGE, COMPILED = ".nequip.zip", ".nequip.pt2"
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
    from mofal.potential.devices import resolve_device
    from mofal.potential.model import NequIPPotential, load

    out = Path(path)
    if not out.name.endswith((PACKAGE, COMPILED)):
        raise PotentialError(
            f"{out.name} ends in neither {PACKAGE} (archive) nor {COMPILED} (compiled); "
            f"NequIP knows its files by their endings: {out.stem}{PACKAGE}"
        )
    if target not in _TARGETS:
        raise PotentialError(f"no target {target!r}; targets: {', '.join(_TARGETS)}")
    # What is compiled runs on any GPU of its kind, whatever its number.
    device = resolve_device(device).partition(":")[0]
    if out.exists():
        raise StoreError(f"{out} exists; delete it, or give another name")
    potential = model if isinstance(model, NequIPPotential) else load(model)
    shifts = _shifts(potential, energies)
    with tempfile.TemporaryDirectory(prefix="mofal-export-") as directory:
        work = Path(directory)
        checkpoint = write_checkpoint(potential, work, shifts)
        package = work / f"model{PACKAGE}"
        _say(progress, f"packaging model {potential.model_hash} ...")
        _run_script("package", ["build", str(checkpoint), str(package)])
        made = package
        if out.name.endswith(COMPILED):
            made = work / f"model{COMPILED}"
            _say(progress, f"compiling it for {target} on {device} (about a minute) ...")
            options = ["--mode", "aotinductor", "--device", device, "--target", _TARGETS[target]]
            _run_script("compile", [str(package), str(made), *options])
        content = made.read_bytes()
        # The checksum comes first: a file without one is never there.
        with atomic_path(out.with_name(out.name + CHECKSUM)) as temporary:
            temporary.write_text(f"{digest(content)}  {out.name}\n")
        with atomic_path(out) as temporary:
            temporary.write_bytes(content)
    return out


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


def write_checkpoint(potential: NequIPPotential, work: Path, shifts: dict[str, float]) -> Path:
    """Write what `nequip-train` would have left behind: the scripts take nothing else."""
    import lightning
    import torch
    from nequip.train import NequIPLightningModule
    from nequip.utils import get_current_code_versions

    from mofal.potential.network import (
        BUILDING,
        SHIFTS,
        builder_config,
        put_weights,
        quiet,
        weights_of,
    )

    frame = work / "example.xyz"
    _write_example(potential, frame)
    module_name = "nequip.train.NequIPLightningModule"
    config = builder_config(
        potential.architecture,
        potential.elements,
        avg_num_neighbors=potential.avg_num_neighbors,
        shifts=shifts,
    )
    transforms: list[dict[str, Any]] = [
        {
            "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
            "model_type_names": list(potential.elements),
        },
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": potential.r_max},
    ]
    data = {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 0,
        "train_file_path": str(frame),
        "val_file_path": str(frame),
        "transforms": transforms,
    }
    with BUILDING, quiet():
        module = NequIPLightningModule(
            model={"_target_": "nequip.model.NequIPGNNModel", **config},
            num_datasets={"train": 1, "val": 0, "test": 0},
            info_dict={
                "versions": get_current_code_versions(verbose=False),
                "data": data,
                "training_module": {"_target_": module_name},
            },
        )
        weights = weights_of(potential.network)
        per_type = [[shifts[e]] for e in potential.elements]
        weights[SHIFTS] = weights[SHIFTS] + torch.tensor(per_type, dtype=weights[SHIFTS].dtype)
        put_weights(module.model["sole_model"], weights)
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(work),
        )
        trainer.strategy.connect(module)
        path = work / "model.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
    return path


def _write_example(potential: NequIPPotential, path: Path) -> None:
    """Write one frame of the model's elements: compilation traces the network on it."""
    import numpy as np
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    corners = np.indices((3, 3, 3)).reshape(3, -1).T
    spacing = 0.45 * potential.r_max
    symbols = [potential.elements[i % len(potential.elements)] for i in range(len(corners))]
    frame = Atoms(symbols, positions=spacing * corners, cell=np.eye(3) * 3 * spacing, pbc=True)
    frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.zeros((len(frame), 3)))
    write(path, frame, format="extxyz")


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
