"""What CP2K reads and writes: its input from nested mappings, its output to numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.units import Bohr, GPa, Hartree


def write_input(sections: Mapping[str, Any], depth: int = 0) -> str:
    """Write an input of CP2K.

    A mapping is a section; its key is the section's name with the parameter after it (``"KIND O"``,
    ``"FORCES ON"``); a list repeats a keyword; None leaves one out.
    """
    out = []
    indent = "  " * depth
    for key, value in sections.items():
        if isinstance(value, Mapping):
            body = write_input(value, depth + 1)
            out.append(f"{indent}&{key}\n{body}{indent}&END {key.split()[0]}\n")
        elif value is not None:
            for one in value if isinstance(value, list) else [value]:
                out.append(f"{indent}{key} {_word(one)}\n".replace(" \n", "\n"))
    return "".join(out)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    return repr(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Output:
    """What CP2K said.

    Attributes
    ----------
    begun, ended : bool
        Whether it got beyond its input, and to its regular end.
    converged : bool
        Of the density.
    energy : float
        eV; NaN where it says none.
    forces : ndarray, shape (n, 3)
        eV/Å.
    stress : ndarray, shape (6,), or None
        eV/Å³, sign and Voigt order of ASE.
    version : str
    ranks : int
        Processes that it found itself on; 0 where it does not say.
    complaint : str
        Why it stopped, in its own words.
    """

    begun: bool
    ended: bool
    converged: bool
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    version: str
    ranks: int
    complaint: str


_NUMBER = r"[-+]?\d*\.\d+(?:[EeDd][-+]?\d+)?"
_NOT = ("SCF run NOT converged", "SCF loop FAILED to converge", "did NOT converge")


def read_output(file: Path) -> Output:
    """Read an output of CP2K (2023.1 and the form of 2024 and later); what is missing is NaN."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    energy = re.search(rf"ENERGY\| Total FORCE_EVAL [^\n]*?({_NUMBER})\s*$", text, re.M)
    version = re.search(r"CP2K\| version string:\s*(?:CP2K version )?(.+)", text)
    ranks = re.search(r"Total number of message passing processes\s+(\d+)", text)
    said_no = any(words in text for words in _NOT)
    said_yes = "SCF run converged" in text or "outer SCF loop converged" in text
    return Output(
        begun="SCF WAVEFUNCTION OPTIMIZATION" in text,
        ended="PROGRAM ENDED AT" in text,
        # An inner loop that ends early is mended by the outer one, which says how that went.
        converged=_converged(text) if "outer SCF loop" in text else said_yes and not said_no,
        energy=float(energy[1]) * Hartree if energy else float("nan"),
        forces=_forces(text),
        stress=_stress(text),
        version=version[1].strip() if version else "",
        ranks=int(ranks[1]) if ranks else 0,
        complaint=_complaint(text),
    )


def _converged(text: str) -> bool:
    last = re.findall(r"outer SCF loop (converged|FAILED to converge)", text)
    return bool(last) and last[-1] == "converged"


def _forces(text: str) -> np.ndarray:
    """Forces in eV/Å: after their headline, a line for each atom that ends before their sum."""
    start = re.search(
        r"^ ATOMIC FORCES in \[a\.u\.\]|^ FORCES\| Atomic forces \[hartree", text, re.M
    )
    rows = []
    if start is not None:
        for line in text[start.end() :].splitlines()[1:]:
            if re.search(r"sum of atomic forces", line, re.I) or line.startswith(" FORCES| Sum"):
                break
            numbers = re.findall(_NUMBER, line)
            if len(numbers) >= 3 and "#" not in line:
                rows.append([float(x) for x in numbers[:3]])
    return np.array(rows, np.float64).reshape(-1, 3) * (Hartree / Bohr)


def _stress(text: str) -> np.ndarray | None:
    """Stress in eV/Å³: CP2K prints its negative, the pressure tensor, in GPa."""
    start = re.search(r"STRESS\| Analytical stress tensor \[GPa\]", text)
    if start is None:
        return None
    rows = re.findall(
        rf"STRESS\|\s+[xyz]\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})", text[start.end() :]
    )[:3]
    if len(rows) < 3:
        return None
    full = -np.array(rows, np.float64) * GPa
    return np.array([full[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))])


def _complaint(text: str) -> str:
    """The text in the box that CP2K draws around the reason of a stop."""
    start = text.rfind("[ABORT]")
    if start < 0:
        return ""
    # Beside the text stands a drawing.
    lines = []
    for line in text[start:].splitlines()[1:9]:
        found = re.match(r"^ \*\s{1,2}(?:\\___/|\||O/\||/\| \||/ \\)?\s{2,}(.*?)\s*\*$", line)
        if found and not set(found[1]) <= set("*"):
            lines.append(found[1].strip())
    return " ".join(part for part in lines if part)
