"""Does a campaign's potential pull back what strays? Forces along long bonds of oxygen to metal.

    python benchmarks/potential_stretched.py CAMPAIGN [--model DIR ...] [--crystals]

Of every label that the campaign has learnt from: each O of a carboxylate with its nearest metal. By
the length of that bond, in crystals and clusters and for linkers and formates: the force on the O
along the bond, away from the metal, of the reference (mean and spread), and the model's error of it
(mean and RMS). Negative forces pull back; a positive mean error is a pull that the model lacks.

--model: others than the campaign's last. --crystals: labels the ends of walks in which a metal's
bond is beyond five standard deviations of its kind whole, and prints the force there in the crystal
beside that in the cluster that was cut there (with GFN1-xTB three seconds a frame of 106 atoms).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

EDGES = (0.0, 2.1, 2.3, 2.5, 2.7, 2.9, 3.1, 3.4, 3.7)
"""Å, of UiO-66, whose Zr-O of a carboxylate is 2.19 Å."""
FAR = 5.0
METALS = (40, 72)


def long_bonds(ds: xr.Dataset) -> dict[str, NDArray[Any]]:
    """O of carboxylates, their nearest metal, the unit vector away from it, length; formate or not.

    Parameters
    ----------
    ds : xarray.Dataset
        Structures.
    """
    from ase.neighborlist import neighbor_list

    from mofal.data import offsets, to_atoms

    first = offsets(ds["n_atoms"].values)
    found: dict[str, list[Any]] = {"atom": [], "away": [], "length": [], "formate": []}
    for k in range(ds.sizes["structure"]):
        atoms = to_atoms(ds, k)
        i, j, vector, length = neighbor_list("ijDd", atoms, EDGES[-1])
        z = atoms.numbers
        to_carbon = (z[i] == 8) & (z[j] == 6) & (length < 1.7)
        carries_h = np.zeros(len(atoms), bool)
        carries_h[i[(z[i] == 6) & (z[j] == 1) & (length < 1.4)]] = True
        for o, carbon in dict(zip(i[to_carbon], j[to_carbon])).items():
            metal = np.flatnonzero((i == o) & np.isin(z[j], METALS))
            if len(metal) == 0:
                continue
            nearest = metal[np.argmin(length[metal])]
            found["atom"].append(first[k] + o)
            found["away"].append(-vector[nearest] / length[nearest])
            found["length"].append(length[nearest])
            found["formate"].append(carries_h[carbon])
    return {name: np.array(values) for name, values in found.items()}


def table(labels: xr.Dataset, predicted: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """A row for each kind and length: how many, the force along the bond, errors of the models."""
    bonds = long_bonds(labels)
    atom, away = bonds["atom"], bonds["away"]
    reference = (labels["forces"].values[atom] * away).sum(axis=1)
    in_crystal = labels["pbc"].values.all(axis=1)[labels["structure_index"].values][atom]
    rows = []
    for crystal in (True, False):
        for formate in (False, True):
            kind = (in_crystal == crystal) & (bonds["formate"] == formate)
            for low, high in pairwise(EDGES):
                here = kind & (bonds["length"] >= low) & (bonds["length"] < high)
                if not here.any():
                    continue
                row = {
                    "of": ("crystals" if crystal else "clusters")
                    + (", formates" if formate else ", linkers"),
                    "length": f"{low:.1f} to {high:.1f}",
                    "n": int(here.sum()),
                    "force": (float(reference[here].mean()), float(reference[here].std())),
                }
                for name, forces in predicted.items():
                    error = (forces[atom] * away).sum(axis=1) - reference
                    row[name] = (
                        float(error[here].mean()),
                        float(np.sqrt((error[here] ** 2).mean())),
                    )
                rows.append(row)
    return rows


def crystals(campaign: Path, potential: Any, place: Path) -> list[dict[str, Any]]:
    """Force along the longest bond of each walk's end that strays far: crystal, clusters, model."""
    import mofal
    from mofal.campaign import paths
    from mofal.campaign.steps.walk import bonds_of
    from mofal.data import select
    from mofal.reference import LabelCache, gather, label_one

    view = mofal.open(campaign)
    site = view.site
    labels = view.labels.load()
    ids = [str(v) for v in labels["structure_id"].values]
    cache, rows = LabelCache(place), []
    for system in site.config.explored:
        limits = bonds_of(site, system, site.config.exploration.temperature_K)
        numbers = site.structure(system)["numbers"].values
        metal = np.isin(numbers[limits.bonds], METALS).any(axis=1)
        for cycle in range(1, site.last_cycle() + 1):
            if not site.exists(paths.place(cycle, system, "clusters.zarr")):
                continue
            samples = site.group(paths.place(cycle, system, "samples.zarr")).load()
            clusters = site.group(paths.place(cycle, system, "clusters.zarr")).load()
            for k in range(samples.sizes["structure"]):
                frame = select(samples, k)
                x, cell = frame["positions"].values, frame["cell"].values[0]
                vector = x[limits.bonds[:, 1]] - x[limits.bonds[:, 0]] + limits.shifts @ cell
                length = np.linalg.norm(vector, axis=1)
                z = np.where(metal, abs(length / limits.expected - 1) / limits.spread, 0.0)
                worst = int(z.argmax())
                if z[worst] < FAR:
                    continue
                label_one(frame, site.reference(), directory=cache)
                whole = gather(frame, cache, reference=site.reference())
                if str(whole["status"].values[0]) != "converged":
                    continue
                a, b = limits.bonds[worst]
                o, sign = (b, 1.0) if numbers[b] == 8 else (a, -1.0)
                away = sign * vector[worst] / length[worst]
                row = {
                    "cycle": cycle, "walk": k, "length": float(length[worst]),
                    "spreads": float(z[worst]),
                    "crystal": float(whole["forces"].values[o] @ away),
                    "model": float(potential.evaluate(frame)["forces"].values[o] @ away),
                    "cluster": [],
                }  # fmt: skip
                for q in np.flatnonzero(clusters["parent_structure"].values == k):
                    one = select(clusters, int(q))
                    sid = str(one["structure_id"].values[0])
                    here = np.flatnonzero(one["parent_atom"].values == o)
                    if sid not in ids or len(here) == 0:
                        continue
                    label = select(labels, ids.index(sid))
                    if str(label["status"].values[0]) == "converged":
                        row["cluster"] += [float(v) for v in label["forces"].values[here] @ away]
                rows.append(row)
                shown = ", ".join(f"{v:+.2f}" for v in row["cluster"]) or "none labelled"
                print(
                    f"cycle {cycle}, walk {k}: {row['length']:.2f} Å, {z[worst]:.1f} spreads: "
                    f"crystal {row['crystal']:+.2f}, model {row['model']:+.2f}, clusters {shown}",
                    flush=True,
                )
    return rows


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the tables."""
    import mofal
    from mofal.data import select
    from mofal.errors import MofalError
    from mofal.potential import load

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    parser.add_argument("--crystals", action="store_true")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        view = mofal.open(options.campaign)
        labels = view.labels.load()
        models = {str(m): load(m) for m in options.model} or {"model": view.potential()}
    except MofalError as error:
        raise SystemExit(f"potential_stretched: {error}") from None
    labels = select(labels, np.flatnonzero(labels["status"].values.astype(str) == "converged"))
    predicted = {name: m.evaluate(labels)["forces"].values for name, m in models.items()}
    rows = table(labels, predicted)
    print("of, bond (Å), how many: force on O along the bond (spread), eV/Å; error (RMS)")
    for row in rows:
        errors = "   ".join(f"{row[n][0]:+.3f} ({row[n][1]:.3f})" for n in predicted)
        force = f"{row['force'][0]:+.2f} ({row['force'][1]:.2f})"
        print(f"{row['of']:20s} {row['length']} {row['n']:5d}: {force}   {errors}")
    if options.crystals:
        with tempfile.TemporaryDirectory() as scratch:
            return crystals(options.campaign, next(iter(models.values())), Path(scratch))
    return rows


if __name__ == "__main__":
    main()
