"""For those who extend mofal: simulated datasets, and checks that a plug-in can run on itself.

A package with a reference, a ranking or a potential of its own calls the check in its tests; what
breaks the protocol is an AssertionError that says how.
"""

from __future__ import annotations

import pickle
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.clusters.rankings import check_ranking

if TYPE_CHECKING:
    import xarray as xr

    from mofal.potential import Potential

__all__ = ["check_potential", "check_ranking", "check_reference", "simulate_structures"]


def simulate_structures(
    n: int = 3, *, n_atoms: int = 8, periodic: bool = True, seed: int = 0
) -> xr.Dataset:
    """Simulate structures of C, H and O on a jittered grid: sane distances, no chemistry.

    Parameters
    ----------
    n : int
        Structures.
    n_atoms : int
        Atoms of the first; each further one has one more.
    periodic : bool
        In a cubic cell, or finite.
    seed : int
    """
    from mofal.data import concat, make_structures

    rng = np.random.default_rng(seed)
    parts = []
    for k in range(n):
        count = n_atoms + k
        side = int(np.ceil(count ** (1 / 3)))
        grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
        positions = 2.0 * grid[:count] + rng.uniform(-0.15, 0.15, (count, 3))
        cell = np.eye(3)[None] * 2.0 * side if periodic else None
        numbers = rng.choice([1, 6, 8], count)
        parts.append(make_structures(numbers, positions, n_atoms=[count], cell=cell, system="sim"))
    return concat(parts)


def check_reference(spec: str, *, structures: xr.Dataset | None = None) -> None:
    """Check that a reference keeps its protocol (docs/reference.md).

    Parameters
    ----------
    spec : str
        As in a campaign file.
    structures : Dataset, optional
        Structures it can label; default: one water molecule.
    """
    from ase.build import molecule

    from mofal.data import from_atoms, to_atoms
    from mofal.reference import get_reference
    from mofal.reference.base import STATUSES, Reference, hash_level, structure_id_of

    reference = get_reference(spec)
    assert isinstance(reference, Reference), f"{spec} lacks a part of the protocol Reference"
    assert reference.level_hash == hash_level(reference.level_of_theory), (
        "level_hash is not the hash of level_of_theory"
    )
    again = pickle.loads(pickle.dumps(spec))
    assert get_reference(again).level_hash == reference.level_hash, (
        "the specification gives another level the second time"
    )
    ds = structures if structures is not None else from_atoms(molecule("H2O"))
    with tempfile.TemporaryDirectory() as directory:
        for atoms in to_atoms(ds):
            before = atoms.positions.copy()
            attempt = reference.calculate(atoms, directory=directory)
            assert attempt.status in STATUSES, f"unknown status {attempt.status!r}"
            assert attempt.structure_id == structure_id_of(atoms), "another structure was labelled"
            assert np.array_equal(before, atoms.positions), "the structure was changed"
            assert attempt.converged or attempt.reason, "a failure without a reason"
            if attempt.converged:
                assert np.isfinite(attempt.energy), "converged without an energy"
                assert attempt.forces.shape == (len(atoms), 3), "forces of another shape"
                assert np.isfinite(attempt.forces).all(), "converged with forces that are NaN"
                net = np.abs(attempt.forces.sum(axis=0)).max()
                assert net < 0.05 * len(atoms), f"the forces add up to {net:.3f} eV/Å"
        ion = to_atoms(ds, 0)
        neutral = reference.calculate(ion, directory=directory)
        ion.info["charge"] = 2
        attempt = reference.calculate(ion, directory=directory)
        assert not attempt.converged or abs(attempt.energy - neutral.energy) > 1e-3, (
            "an ion got the label of the neutral structure; refuse what has a charge "
            "(mofal.reference.base.why_not) or take it (mofal.data.electrons)"
        )
        broken = to_atoms(ds, 0)
        broken.positions[0] = np.nan
        attempt = reference.calculate(broken, directory=directory)
        assert not attempt.converged, "positions that are NaN were labelled"
        energies = reference.isolated_atom_energies(["H"], cache=directory)
        assert set(energies) == {"H"}, "isolated_atom_energies of H gives other elements"
        assert np.isfinite(energies["H"]), "the isolated-atom energy of H is not finite"


def check_potential(potential: Potential, *, structures: xr.Dataset | None = None) -> None:
    """Check that a potential keeps its protocol: shapes, symmetries, forces as gradients.

    Parameters
    ----------
    potential : Potential
    structures : Dataset, optional
        Structures of its elements; default: simulated ones of C, H and O.
    """
    from mofal.data import from_atoms, select, to_atoms
    from mofal.potential import Potential

    assert isinstance(potential, Potential), "a part of the protocol Potential is missing"
    ds = structures if structures is not None else simulate_structures()
    n, m = ds.sizes["structure"], ds.sizes["atom"]
    result: Any = potential.evaluate(ds)
    assert result["energy"].shape == (n,), "one energy per structure"
    assert result["forces"].shape == (m, 3), "one force per atom"
    features = potential.featurize(ds)
    assert features["features"].shape == (m, potential.feature_dim), "features of another shape"
    assert features.attrs.get("model_hash") == potential.model_hash, "features without their model"

    one = to_atoms(select(ds, 0), 0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    turned = one.copy()
    turned.positions = one.positions @ turn.T
    turned.cell = one.cell.array @ turn.T
    same = potential.evaluate(from_atoms([one, turned]))
    k = len(one)
    assert abs(float(same["energy"][0] - same["energy"][1])) < 1e-3, "turning changes the energy"
    difference = same["forces"].values[:k] @ turn.T - same["forces"].values[k:]
    assert np.abs(difference).max() < 1e-2, "turning does not turn the forces"

    step = 1e-2
    shifted = []
    for sign in (1, -1):
        moved = one.copy()
        moved.positions[0, 0] += sign * step
        shifted.append(moved)
    energy = potential.evaluate(from_atoms(shifted))["energy"].values
    slope = -(energy[0] - energy[1]) / (2 * step)
    force = float(same["forces"].values[0, 0])
    assert abs(slope - force) < 0.05 * max(1.0, abs(force)), (
        f"a force of {force:.4f} eV/Å where the energy falls by {slope:.4f} eV/Å"
    )
