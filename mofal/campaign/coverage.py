"""How often the bound of the force error held on the cores of a cycle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths

if TYPE_CHECKING:
    from mofal.campaign.directory import Site
    from mofal.density import Coverage


def core_coverage(site: Site, cycle: int) -> dict[str, Coverage]:
    """Coverage that the bound of a cycle met on its cores, by how they were chosen.

    The bound of an atom is that of its environment in the frame that it was cut from, its error
    that of the model that proposed the cluster, against its label, before it learnt from it. Only
    atoms of cores count. On ``drawn`` cores the bound can be held to its word, as far as they are
    like the structures that made it; ``selected`` ones were chosen for being unlike them.

    Parameters
    ----------
    site : Site
    cycle : int

    Returns
    -------
    dict of str to Coverage
        Empty where the cycle has no bound, or no labels yet.
    """
    from mofal.density import coverage

    proposal = paths.place(cycle, "proposal.zarr")
    if not site.exists(proposal) or "numbers" not in site.group(proposal):
        return {}
    predicted = site.group(proposal).load()
    forces = _by_structure(predicted["structure_id"].values, predicted["n_atoms"].values)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"drawn": [], "selected": []}
    stated = 0.0
    for system in site.config.explored:
        scored = paths.place(cycle, system, "scores.zarr")
        scores = site.group(scored)
        if "error_bound" not in scores:
            continue
        stated = float(scores.attrs["error_coverage"])
        parents = _by_structure(scores["structure_id"].values, scores["n_atoms"].values)
        labels = site.group(paths.place(cycle, system, "labels.zarr")).load()
        start = np.concatenate([[0], np.cumsum(labels["n_atoms"].values)])
        drawn = labels["drawn"].values if "drawn" in labels else np.zeros(len(start) - 1, bool)
        for k, identity in enumerate(map(str, labels["structure_id"].values)):
            parent = parents.get(str(labels["parent"].values[k]))
            if parent is None or identity not in forces:
                continue  # late, from an earlier cycle; or without a label
            atoms = slice(start[k], start[k + 1])
            core = np.flatnonzero(labels["region"].values[atoms] == 0)
            there = labels["parent_atom"].values[atoms][core]
            bound = scores["error_bound"].isel(atom=parent).values[there]
            difference = (
                predicted["predicted_forces"].values[forces[identity]]
                - labels["forces"].values[atoms]
            )
            error = np.linalg.norm(difference[core], axis=1)
            found["drawn" if drawn[k] else "selected"].append((bound, error))
    return {
        how: coverage(
            np.concatenate([bound for bound, _ in parts]),
            np.concatenate([error for _, error in parts]),
            np.repeat(np.arange(len(parts)), [len(error) for _, error in parts]),
            stated=stated,
        )
        for how, parts in found.items()
        if parts
    }


def _by_structure(ids: np.ndarray, n_atoms: np.ndarray) -> dict[str, slice]:
    """Where the atoms of each structure are, by its hash."""
    start = np.concatenate([[0], np.cumsum(n_atoms)]).tolist()
    return {str(s): slice(a, b) for s, a, b in zip(ids, start, start[1:])}
