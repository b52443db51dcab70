"""`mofal noise`: what no potential can beat at these settings of a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mofal.campaign.label import forces_of, label_structures, local_schedule

Say = Callable[[str], None]


def noise(
    path: str,
    *,
    reference: str,
    repeats: int = 4,
    directory: str = "noise",
    workers: int | None = None,
    seed: int = 0,
    say: Say = print,
) -> int:
    """Label shifted, turned and regridded copies of structures; print the floor per factor.

    Returns
    -------
    int
        0
    """
    from mofal.data import read, write_json
    from mofal.reference import get_reference, noise_floor, noise_variants
    from mofal.reference.noise import variant_specs

    method = get_reference(reference)
    structures = read(path)
    structures = structures.drop_vars(
        [
            v
            for v in ("energy", "forces", "stress", "status", "reason", "wall_time")
            if v in structures
        ]
    )
    spacing = method.level_of_theory.get("h")
    variants = noise_variants(
        structures,
        spacing=None if spacing is None else float(spacing),
        repeats=repeats,
        seed=seed,
    )
    attempts = label_structures(
        variants,
        variant_specs(variants, reference),
        directory=directory,
        schedule=local_schedule(workers),
        say=say,
    )
    labelled = variants.assign(forces=(("atom", "xyz"), forces_of(attempts)))
    floor = noise_floor(labelled)
    say("")
    say(f"noise floor of {reference}, meV/Å (standard deviation about the per-atom mean)")
    say(f"{'factor':<12}{'floor':>9}{'pair RMSE':>12}{'largest':>10}{'repeats':>9}")
    table = {}
    for k, factor in enumerate(str(f) for f in floor["factor"].values):
        row = {
            "floor": 1000 * float(floor["floor"][k]),
            "pair_rmse": 1000 * float(floor["pair_rmse"][k]),
            "largest": 1000 * float(floor["largest"][k]),
            "repeats": int(floor["repeats"][k]),
        }
        table[factor] = row
        say(
            f"{factor:<12}{row['floor']:>9.2f}{row['pair_rmse']:>12.2f}{row['largest']:>10.2f}"
            f"{row['repeats']:>9d}"
        )
    quadrature = 1000 * float(floor.attrs.get("quadrature", np.nan))
    if np.isfinite(quadrature):
        say(f"shift, rotation and grid added in variance: {quadrature:.2f}")
        table["quadrature"] = {"floor": quadrature}
    write_json(
        {k: {n: None if v != v else v for n, v in r.items()} for k, r in table.items()},
        Path(directory) / "noise.json",
    )
    return 0
