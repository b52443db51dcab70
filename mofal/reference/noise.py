"""Noise floor of a reference: what no potential can beat at its settings.

Forces of a grid method depend a little on where the grid is. Repeats under shifts against the grid,
rotations and small changes of its spacing show how much (paper, Section SI.1): the floor is the
standard deviation about the per-atom mean over the repeats, which is the RMSE between pairs of
repeats over the square root of two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.ragged import TEXT
from mofal.errors import DataError
from mofal.reference.base import Reference

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

FACTORS = ("shift", "rotation", "grid", "combined")


# ---------------------------------------------------------------------------------- arrays
def standard_deviation(forces: np.ndarray) -> float:
    """Noise of repeated forces: standard deviation about the per-atom mean.

    Parameters
    ----------
    forces : ndarray, shape (repeat, atom, 3)
        eV/Å, of the same atoms in the same frame of reference.

    Returns
    -------
    float
        eV/Å per component, with the number of repeats less one in the denominator.
    """
    return float(np.sqrt(_variance(forces).mean()))


def pair_rmse(forces: np.ndarray) -> float:
    """RMSE over all pairs of repeats, eV/Å: √2 times `standard_deviation`."""
    n = len(forces)
    pairs = [(forces[i] - forces[j]) ** 2 for i in range(n) for j in range(i)]
    return float(np.sqrt(np.mean(pairs)))


def _variance(forces: np.ndarray) -> np.ndarray:
    if forces.ndim != 3 or len(forces) < 2:
        raise DataError(
            f"forces of shape {forces.shape}; expected (repeat, atom, 3), two repeats up"
        )
    return forces.var(axis=0, ddof=1)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Rotation matrix, uniform over all rotations: shape (3, 3), for row vectors ``x @ R.T``."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(rng.normal(size=4)).as_matrix()


# ---------------------------------------------------------------------------------- verbs
def noise_variants(
    structures: xr.Dataset,
    *,
    spacing: float | None,
    factors: Sequence[str] = FACTORS,
    repeats: int = 4,
    grid_change: float = 0.03,
    seed: int = 0,
) -> xr.Dataset:
    """Make variants of structures whose true forces are the same, up to a rotation.

    Parameters
    ----------
    structures : Dataset of kind ``structures``
    spacing : float or None
        Grid spacing of the reference, Å; None for a reference without a grid.
    factors : sequence of str
        Of ``"shift"`` (by less than the spacing, along each axis), ``"rotation"`` (clusters only:
        the grid of a crystal turns with its cell), ``"grid"`` (another spacing) and
        ``"combined"`` (all that apply at once).
    repeats : int
        Variants per structure and factor, beside the structure itself. A crystal has no more
        variants on other grids than its cell allows grids near its own: two labels on one grid
        are no independent repeats. Where there is none, "grid" is left out and "combined" is
        without it. More repeats keep the earlier variants as they are.
    grid_change : float
        Largest relative change of the spacing. A crystal takes the grids that its cell allows next
        to its own, each once, up to 15 %.
    seed : int

    Returns
    -------
    Dataset
        Structures, the originals first, with `original(structure)` the index of the original,
        `factor(structure)` (empty for the originals), `rotation(structure, row, column)` and
        `spacing(structure)` in Å (NaN for the reference's own).
    """
    from mofal.data import from_atoms, to_atoms

    unknown = [f for f in factors if f not in FACTORS]
    if unknown or not factors:
        raise DataError(f"factors {list(factors)}; expected some of {', '.join(FACTORS)}")
    if repeats < 1:
        raise DataError(f"repeats = {repeats}; expected 1 or more")
    originals = to_atoms(structures)
    made: list[tuple[Atoms, int, str, np.ndarray, float]] = [
        (atoms, i, "", np.eye(3), np.nan) for i, atoms in enumerate(originals)
    ]
    for i, atoms in enumerate(originals):
        # Both factors with other grids share them: each is a level of theory of its own.
        on_grids = [_generator(seed, i, "grid", k) for k in range(repeats)]
        spacings = _spacings(atoms, spacing, grid_change, on_grids)
        for factor in factors:
            for k in range(repeats):
                rng = _generator(seed, i, factor, k)
                variant = _vary(atoms, factor, k, spacing, spacings, rng)
                if variant is not None:
                    made.append((variant[0], i, factor, variant[1], variant[2]))
    out = from_atoms([m[0] for m in made])
    return out.assign(
        original=("structure", np.array([m[1] for m in made])),
        factor=("structure", np.array([m[2] for m in made], TEXT)),
        rotation=(("structure", "row", "column"), np.array([m[3] for m in made])),
        spacing=("structure", np.array([m[4] for m in made], float), {"units": "Å"}),
    )


def _generator(seed: int, structure: int, factor: str, k: int) -> np.random.Generator:
    """One of its own for each variant, so that none depends on how many others there are."""
    key = (structure, FACTORS.index(factor), k)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _vary(
    atoms: Atoms,
    factor: str,
    k: int,
    spacing: float | None,
    spacings: Sequence[float],
    rng: np.random.Generator,
) -> tuple[Atoms, np.ndarray, float] | None:
    finite = not atoms.pbc.any()
    rotate = factor in ("rotation", "combined") and finite
    shift = factor in ("shift", "combined")
    grid = factor in ("grid", "combined") and len(spacings) > 0
    if not (rotate or shift or grid) or (grid and k >= len(spacings)):
        return None
    work = atoms.copy()
    work.calc = None
    turn = random_rotation(rng) if rotate else np.eye(3)
    work.positions = work.positions @ turn.T
    if shift:
        work.positions += rng.uniform(0.0, spacing or 0.5, size=3)
    return work, turn, spacings[k] if grid else np.nan


def _spacings(
    atoms: Atoms,
    spacing: float | None,
    grid_change: float,
    generators: Sequence[np.random.Generator],
) -> list[float]:
    """Other spacings whose grids all differ, one for each generator or as many as there are."""
    if spacing is None:
        return []
    if not atoms.pbc.any():
        changes = [rng.uniform(-grid_change, grid_change) for rng in generators]
        return [float(spacing * (1 + change)) for change in changes]
    from mofal.reference.gpaw_memory import box_crystal

    seen = {box_crystal(atoms.positions, atoms.cell[:], h=spacing).grid_points}
    found = []
    # Nearest changes first, finer before coarser.
    for step in range(1, 61):
        for sign in (-1, 1):
            other = spacing * (1 + sign * step * 0.0025)
            points = box_crystal(atoms.positions, atoms.cell[:], h=other).grid_points
            if points not in seen:
                seen.add(points)
                found.append(float(other))
    return found[: len(generators)]


def variant_specs(variants: xr.Dataset, spec: str) -> list[str]:
    """Specification of the reference for each variant: its own grid spacing where it has one."""
    from mofal.reference.registry import format_spec, parse_spec

    name, preset, options = parse_spec(spec)
    return [
        spec if np.isnan(h) else format_spec(name, preset, {**options, "h": round(float(h), 6)})
        for h in variants["spacing"].values
    ]


def noise_floor(variants: xr.Dataset) -> xr.Dataset:
    """Compute the noise floor per factor and combined, from labelled variants.

    Parameters
    ----------
    variants : Dataset
        As `noise_variants` makes it, with `forces`; those that failed are left out.

    Returns
    -------
    Dataset
        Dims `factor` and `element`; `floor(factor)` in eV/Å (standard deviation about the per-atom
        mean over repeats), `pair_rmse(factor)` (√2 as large), `largest(factor)` (largest deviation
        of a component from its mean), `repeats(factor)` (how many sets of forces there were, which
        may be fewer than asked for), and `element_floor(factor, element)`.
        ``attrs["quadrature"]`` is the root of the summed variances of the single factors that
        ``attrs["quadrature_of"]`` names ("shift, rotation, grid"), to compare with the factor
        "combined"; NaN where there is one alone.

    Raises
    ------
    DataError
        Fewer than two repeats of everything.
    """
    import xarray as xr
    from ase.data import chemical_symbols

    groups = _group(variants)
    if not groups:
        raise DataError("no structure has two converged repeats; there is no noise to measure")
    z_all = np.unique(np.concatenate([z for *_, z in groups]))
    names = [f for f in FACTORS if any(g[0] == f for g in groups)]
    floor, pairs, largest, repeats = [], [], [], []
    by_element = np.full((len(names), len(z_all)), np.nan)
    for row, name in enumerate(names):
        parts = [(f, z) for g, f, z in groups if g == name]
        variance = np.concatenate([_variance(f) for f, _ in parts])
        numbers = np.concatenate([z for _, z in parts])
        floor.append(np.sqrt(variance.mean()))
        count = [3 * f.shape[1] for f, _ in parts]
        pairs.append(np.sqrt(np.average([pair_rmse(f) ** 2 for f, _ in parts], weights=count)))
        largest.append(max(float(np.abs(f - f.mean(axis=0)).max()) for f, _ in parts))
        repeats.append(sum(len(f) for f, _ in parts))
        for column, z in enumerate(z_all):
            chosen = numbers == z
            if chosen.any():
                by_element[row, column] = np.sqrt(variance[chosen].mean())
    unit = {"units": "eV/Å"}
    single = {name: f for name, f in zip(names, floor, strict=True) if name != "combined"}
    sum_of_squares = np.sum(np.square(list(single.values())))
    return xr.Dataset(
        {
            "floor": ("factor", np.array(floor), unit),
            "pair_rmse": ("factor", np.array(pairs), unit),
            "largest": ("factor", np.array(largest), unit),
            "repeats": ("factor", np.array(repeats)),
            "element_floor": (("factor", "element"), by_element, unit),
        },
        coords={
            "factor": np.array(names, TEXT),
            "element": np.array([chemical_symbols[z] for z in z_all], TEXT),
        },
        attrs={
            "quadrature": float(np.sqrt(sum_of_squares)) if len(single) > 1 else np.nan,
            "quadrature_of": ", ".join(single),
        },
    )


def _group(variants: xr.Dataset) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Factor, un-rotated forces (repeat, atom, 3) and atomic numbers of each set of repeats."""
    from mofal.data import atom_slice

    factor = np.array([str(f) for f in variants["factor"].values])
    original = variants["original"].values
    rotation = variants["rotation"].values
    forces = []
    for i in range(variants.sizes["structure"]):
        # Forces turn with the positions: x' = x R^T, so F = F' R.
        forces.append(variants["forces"].values[atom_slice(variants, i)] @ rotation[i])
    whole = np.array([np.isfinite(f).all() for f in forces])
    out = []
    for i in np.unique(original):
        own = np.flatnonzero((original == i) & (factor == "") & whole)
        for name in FACTORS:
            members = [*own, *np.flatnonzero((original == i) & (factor == name) & whole)]
            if len(members) < 2 or len(members) == len(own):
                continue
            numbers = variants["numbers"].values[atom_slice(variants, int(i))]
            out.append((name, np.stack([forces[m] for m in members]), numbers))
    return out


def measure_noise(
    structures: xr.Dataset,
    reference: Reference | str,
    *,
    directory: str | os.PathLike[str],
    factors: Sequence[str] = FACTORS,
    repeats: int = 4,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Label all variants one after the other, durably, and compute the noise floor.

    Parameters
    ----------
    structures : Dataset of kind ``structures``
    reference : Reference or str
    directory : path
        The label cache; started again, it goes on where it was.
    factors, repeats, seed
        See `noise_variants`.
    progress : callable, optional
        Called with a line of text after each label.

    Returns
    -------
    Dataset
        See `noise_floor`; ``attrs["failed"]`` counts the labels that did not converge.
    """
    from mofal.reference.cache import LabelCache, label_one
    from mofal.reference.registry import get_reference

    method = get_reference(reference)
    spacing = method.level_of_theory.get("h")
    variants = noise_variants(
        structures, spacing=spacing, factors=factors, repeats=repeats, seed=seed
    )
    cache = LabelCache(directory)
    from mofal.data import select

    forces: list[Any] = []
    specs = variant_specs(variants, method.spec)
    failed = 0
    for i, spec in enumerate(specs):
        attempt = label_one(select(variants, i), spec, directory=cache)
        failed += not attempt.converged
        forces.append(attempt.forces)
        if progress is not None:
            progress(f"noise: {i + 1} of {len(specs)} labels, {failed} failed")
    labelled = variants.assign(forces=(("atom", "xyz"), np.concatenate(forces)))
    return noise_floor(labelled).assign_attrs(
        failed=failed, level_hash=method.level_hash, reference=method.spec
    )
