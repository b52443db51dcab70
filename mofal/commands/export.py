"""`mofal export`: a potential for programs without mofal, with what it knows if asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mofal.campaign import paths
from mofal.campaign.directory import CONFIG, Site
from mofal.campaign.familiar import campaign_known
from mofal.campaign.view import open_campaign
from mofal.density import PerElementDensity
from mofal.errors import ConfigError, StoreError
from mofal.potential import export, load
from mofal.potential.exporting import CALCULATOR, COMPILED, DENSITY, PACKAGE, check_export

Say = Callable[[str], None]


def export_potential(
    model: str,
    output: str,
    *,
    energies: Any = "relative",
    target: Any = "ase",
    device: str = "cpu",
    density: str | None = None,
    say: Say = print,
) -> None:
    """Export a model, or the last model of a campaign.

    Parameters
    ----------
    model : path
        Directory of a model, or of a campaign.
    output : path
        See `mofal.potential.export`, as `energies`, `target` and `device`.
    density : path, optional
        What the potential knows, to be exported with it: a density that was saved, or a campaign.
        Of a campaign it is that of all that its last model has learnt from, fitted here where no
        cycle has it.
    say : callable
        Takes lines.

    Raises
    ------
    ConfigError
        The density is of another potential than the one that is exported.
    MofalError
        See `mofal.potential.export`.
    """
    check_export(output, target=target, density=density is not None)
    where = Path(model)
    if (where / CONFIG).is_file():
        site = Site(where)
        last = site.finished_cycles()
        if last < 0:
            raise StoreError(f"the campaign {where} has no model yet; run it first")
        where = site.path(paths.model(last))
    potential = load(where)
    export(
        potential,
        output,
        energies=energies,
        target=target,
        device=device,
        density=None if density is None else _density(density, potential.model_hash, say),
        progress=say,
    )
    say(f"wrote {output}, and its checksum: sha256sum -c {output}.sha256")
    if density is not None:
        stem = output.removesuffix(PACKAGE).removesuffix(COMPILED)
        say(f"beside it, what it knows: {stem}{DENSITY}; its calculator: {stem}{CALCULATOR}")


def _density(density: str, model_hash: str, say: Say) -> PerElementDensity:
    if not (Path(density) / CONFIG).is_file():
        return PerElementDensity.load(density)
    view = open_campaign(density)
    last = view.site.finished_cycles()
    theirs = load(view.site.path(paths.model(last))).model_hash if last >= 0 else ""
    if theirs and theirs != model_hash:
        raise ConfigError(
            f"--density {density}: its last model is {theirs}, and {model_hash} is exported; "
            "export the campaign itself, or give the density of that model (cycle-NNN/density.zarr)"
        )
    with tempfile.TemporaryDirectory(prefix="mofal-export-") as place:
        return campaign_known(view, Path(place), device="cpu", say=say).density
