"""Pretrained potentials as they are, against DFT, where a campaign's potential is judged.

    pip install sevenn chgnet
    python benchmarks/potential_as_is.py [--size tiny|full]

SevenNet-0, CHGNet and the potential of `example:uio66-gpaw-lcao` on the frames that the campaign of
that example held out (four of UiO-66's perfect primitive cell, four with a linker missing): errors
of forces against GPAW, PBE, double-zeta orbitals; D3 is taken off the labels for the first two,
which were trained without. What is not installed is left out. Most of a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from paper.masks import formate_mask  # noqa: E402

from mofal.campaign.examples import seed_place  # noqa: E402
from mofal.data import open_group, select, to_atoms  # noqa: E402
from mofal.errors import MofalError, ReferenceError  # noqa: E402
from mofal.potential import load  # noqa: E402
from mofal.reference import get_reference  # noqa: E402
from mofal.reference.gpaw import D3BJ_PBE  # noqa: E402

AS_THEY_ARE = {
    "SevenNet-0": "ase:sevenn.calculator:SevenNetCalculator?model=7net-0&device=cpu",
    "CHGNet": "ase:chgnet.model.dynamics:CHGNetCalculator?use_device=cpu",
}
"""Name and specification; both are trained on PBE without D3 (Materials Project)."""
PLACE = seed_place("uio66-gpaw-lcao")


def dispersion(ds: xr.Dataset) -> np.ndarray:
    """Forces of D3(BJ) for PBE, eV/Å (atom, 3)."""
    from dftd3.ase import DFTD3

    out = []
    for k in range(ds.sizes["structure"]):
        atoms = to_atoms(ds, k)
        atoms.calc = DFTD3(damping="d3bj", params_tweaks=D3BJ_PBE)
        out.append(atoms.get_forces())
    return np.vstack(out)


def as_is(ds: xr.Dataset, level: str) -> np.ndarray:
    """Forces of a pretrained potential, eV/Å (atom, 3)."""
    reference = get_reference(f"{level}&electrons=ignore")
    found = []
    with tempfile.TemporaryDirectory() as place:
        for k in range(ds.sizes["structure"]):
            attempt = reference.calculate(to_atoms(ds, k), directory=place)
            if attempt.status != "converged":
                raise ReferenceError(f"{attempt.status}: {attempt.reason}")
            found.append(attempt.forces)
    return np.vstack(found)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print and return the table: MAE in meV/Å, NaN where there are no formates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    options = parser.parse_args(argv)
    campaign = load(PLACE / "model")
    rows: dict[str, dict[str, float]] = {}
    print(f"{'MAE of forces (meV/Å)':<34}{'formates':>10}{'other atoms':>13}")
    for system in ("pristine", "defective"):
        ds = open_group(PLACE / f"holdout-{system}.zarr").load()
        if options.size == "tiny":
            ds = select(ds, [0])
        truth, formate = ds["forces"].values, formate_mask(ds)
        found = {"the campaign's": campaign.evaluate(ds)["forces"].values - truth}
        for name, level in AS_THEY_ARE.items():
            try:
                found[f"{name} as it is"] = as_is(ds, level) - (truth - dispersion(ds))
            except MofalError as error:
                print(f"  ({name} is left out: {error})")
        for name, difference in found.items():
            error = 1000.0 * np.abs(difference)
            row = {
                "formates": float(error[formate].mean()) if formate.any() else float("nan"),
                "others": float(error[~formate].mean()),
            }
            rows[f"{system}, {name}"] = row
            there = f"{row['formates']:10.0f}" if formate.any() else f"{'–':>10}"
            print(f"{system + ', ' + name:<34}{there}{row['others']:13.0f}")
    return rows


if __name__ == "__main__":
    main()
