"""Make an example seed of a finished campaign: what its last model has learnt from, and the model.

Held-out frames of each system lie beside them; no campaign reads those.

    python scripts/seed/from_campaign.py CAMPAIGN NAME [--into mofal/examples/seeds]

`seed_data: {example: NAME}` and `potential: {start: example:NAME}` of campaign files name it then.
`uio66-gpaw-lcao` was made so of the campaign of `mofal demo --dft`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

import mofal
from mofal.campaign import paths
from mofal.data import open_group, write_group
from mofal.data.store import atomic_path
from mofal.errors import MofalError


def main(argv: list[str] | None = None) -> None:
    """Write NAME/labels.zarr and NAME/model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("campaign", type=Path)
    parser.add_argument("name")
    parser.add_argument("--into", type=Path, default=Path("mofal/examples/seeds"))
    options = parser.parse_args(argv)
    place = options.into / options.name
    if place.exists():
        raise SystemExit(f"{place} is there already: remove it, or choose another name")
    try:
        site = mofal.open(options.campaign).site
        last = site.last_cycle()
        model = site.path(paths.model(last))
        if not model.exists():
            raise SystemExit(f"{options.campaign} has no model of cycle {last}: let it end first")
        labels = site.training_set(last, whole=True).load()
        held_out = {
            system: site.group(paths.holdout(system, "labels.zarr")).load()
            for system in site.config.holdout_systems
        }
    except MofalError as error:
        raise SystemExit(f"from_campaign: {error}") from None
    with atomic_path(place) as temporary:
        write_group(labels.drop_vars("cycle"), temporary / "labels.zarr", kind="labels")
        shutil.copytree(model, temporary / "model")
        for system, ds in held_out.items():
            write_group(ds, temporary / f"holdout-{system}.zarr", kind="labels")
    written = open_group(place / "labels.zarr")
    split = written["split"].values.astype(str)
    sizes = sorted(set(written["n_atoms"].values.tolist()))
    print(
        f"{place}: {written.sizes['structure']} structures of {sizes} atoms, "
        f"{int(np.sum(split == 'validation'))} of them validate"
    )


if __name__ == "__main__":
    main()
