"""`mofal doctor`: what works on this machine, and how to mend what does not."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mofal.campaign.loading import load_config
from mofal.data import from_atoms
from mofal.reference.doctor import checks
from mofal.schedule.doctor import doctor_slurm

Say = Callable[[str], None]


class Finding(NamedTuple):
    """One thing looked at: its name, whether it works, what was seen, how to mend it."""

    name: str
    ok: bool
    detail: str
    mend: str


def doctor(*, slurm: str | None = None, say: Say = print) -> int:
    """Look at everything a campaign may need.

    Parameters
    ----------
    slurm : str, optional
        A campaign file whose pools are checked against SLURM; ``""`` for SLURM alone.

    Returns
    -------
    int
        0 where the embedded default (NequIP, GFN1-xTB, local workers) works, else 1.
    """
    needed = True
    findings = [look_at_torch(), look_at_nequip(), look_at_disk(), look_at_cores()]
    for finding in findings:
        tell(finding, say)
        needed = needed and finding.ok
    for check in checks():
        finding = Finding(*check)
        tell(finding, say)
        if "xtb" in finding.name.lower():
            needed = needed and finding.ok
    if slurm is None:
        tell(look_for_slurm(), say)
    else:
        settings = load_config(slurm).schedule if slurm else None
        for found in doctor_slurm(settings):
            finding = Finding(*found)
            tell(finding, say)
            needed = needed and finding.ok
    return 0 if needed else 1


def tell(finding: Finding, say: Say) -> None:
    """Say one finding, and the mend where there is something to mend."""
    mark = "ok  " if finding.ok else "FAIL"
    say(f"{mark} {finding.name:<24} {finding.detail}")
    if not finding.ok and finding.mend:
        say(f"     {'':<24} mend: {finding.mend}")


def look_at_torch() -> Finding:
    """Torch, and the GPU it sees."""
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", False, "not installed", "pip install 'mofal[potential]'")
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU: trains on CPUs"
    return Finding("torch", True, f"{torch.__version__}, {gpu}", "")


def look_at_nequip() -> Finding:
    """NequIP: a tiny potential is built and evaluated."""
    if importlib.util.find_spec("nequip") is None:
        return Finding("nequip", False, "not installed", "pip install 'mofal[potential]'")
    from importlib.metadata import version

    from ase.build import molecule

    from mofal.potential import create

    try:
        create("tiny", ["H", "O"], seed=0).evaluate(from_atoms(molecule("H2O")))
    except Exception as error:
        return Finding("nequip", False, f"{type(error).__name__}: {error}", "pip install -U nequip")
    return Finding("nequip", True, f"{version('nequip')}, a tiny potential works", "")


def look_for_slurm() -> Finding:
    """Whether there is a SLURM at all; it is asked only with ``--slurm``."""
    there = shutil.which("sbatch")
    detail = f"{there}; look closer: mofal doctor --slurm" if there else "none here: local workers"
    return Finding("slurm", True, detail, "")


def look_at_disk() -> Finding:
    """Room in the current directory."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    detail = f"{free:.0f} GB free in {Path.cwd()}"
    return Finding("disk", free > 5, detail, "free some space, or run elsewhere")


def look_at_cores() -> Finding:
    """Cores that this process may use."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", n > 0, f"{n}", "")
