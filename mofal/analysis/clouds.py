"""Atoms in feature space: clouds by kind of atom, and maps of likelihoods (paper, Fig. 4, SI.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.metrics import atom_errors, force_errors, likelihood_correlation
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

SAMPLE = 1500
"""Points that separation is measured on: its cost is quadratic."""
NEIGHBOURS = 10
"""Neighbours in feature space whose kinds make the purity."""


def bonded_kinds(structures: xr.Dataset) -> NDArray:
    """Kind of each atom by its element and those of its bonded neighbours: (atom,), e.g. C-COO.

    In UiO-66 the carbons are C-COO (carboxylate), C-CCC and C-HCC (ring), C-HOO (formate).
    """
    from ase.data import chemical_symbols

    from mofal.data import atom_slice
    from mofal.frameworks.bonds import bonds_of

    out: list[str] = []
    for i in range(structures.sizes["structure"]):
        span = atom_slice(structures, i)
        numbers = structures["numbers"].values[span]
        bonds = bonds_of(
            numbers,
            structures["positions"].values[span],
            structures["cell"].values[i],
            structures["pbc"].values[i],
        )
        for atom, z in enumerate(numbers.tolist()):
            near = sorted(numbers[bonds.j[bonds.indptr[atom] : bonds.indptr[atom + 1]]].tolist())
            name = "".join(chemical_symbols[n] for n in near)
            out.append(f"{chemical_symbols[z]}-{name}" if name else chemical_symbols[z])
    return np.array(out, dtype=object)


def feature_clouds(
    features: Mapping[str, xr.Dataset],
    kinds: Mapping[str, NDArray],
    *,
    element: str = "C",
    basis: str | None = None,
) -> xr.Dataset:
    """Features of the atoms of an element on two principal axes, and how well kinds separate.

    Parameters
    ----------
    features
        Features Datasets by name, e.g. ``"untrained"``, ``"trained"``, ``"with defects"``.
    kinds
        By the same names: kind of each atom (atom,), such as `bonded_kinds` gives.
    element
        Chemical symbol.
    basis
        Name of the set whose principal axes all sets of the same model are drawn on; default: the
        first of each model. Sets of another model have axes of their own: features of two models
        are not comparable.

    Returns
    -------
    clouds
        Dim ``point``: `x`, `y` (principal axes, in the features' own unit), `kind`, `panel` (index
        along ``cloud``). Dim ``cloud``: `cloud` names; `purity`, the mean share of the 10 nearest
        neighbours in all feature dimensions that are of an atom's own kind; `silhouette`
        (Rousseeuw, J. Comput. Appl. Math. 20, 53, 1987), mean over all points; `spread`, root mean
        square distance from the centre. Dims ``cloud``, ``kind_name``: `kind_purity`,
        `kind_silhouette`, `n_points`; NaN where a set lacks the kind.

    Raises
    ------
    DataError
        No atom of the element, or kinds that do not belong to the features.
    """
    import xarray as xr
    from ase.data import atomic_numbers

    number = atomic_numbers[element]
    points: dict[str, NDArray] = {}
    named: dict[str, NDArray] = {}
    for name, ds in features.items():
        mine = ds["numbers"].values == number
        given = np.asarray(kinds[name], dtype=object)
        if given.shape != mine.shape:
            raise DataError(
                f"{len(given)} kinds for {len(mine)} atoms of {name!r}: give one for each atom"
            )
        if mine.sum() < 3:
            raise DataError(f"{name!r} holds {mine.sum()} atoms of {element}, expected at least 3")
        points[name] = np.asarray(ds["features"].values[mine], float)
        named[name] = given[mine]
    axes = _axes(features, points, basis)
    every = sorted({str(k) for one in named.values() for k in one})
    x, y, panel, label, rows = [], [], [], [], []
    for k, (name, values) in enumerate(points.items()):
        plane, centre = axes[name]
        flat = (values - centre) @ plane
        x.append(flat[:, 0])
        y.append(flat[:, 1])
        panel.append(np.full(len(values), k))
        label += [str(kind) for kind in named[name]]
        rows.append(_separation(values, named[name], every))
    kind_dims = ("cloud", "kind_name")
    return xr.Dataset(
        {
            "x": ("point", np.concatenate(x)),
            "y": ("point", np.concatenate(y)),
            "kind": ("point", np.array(label, dtype=np.dtypes.StringDType())),  # type: ignore[attr-defined]
            "panel": ("point", np.concatenate(panel)),
            **{
                key: ("cloud", [r[key] for r in rows]) for key in ("purity", "silhouette", "spread")
            },
            **{
                key: (kind_dims, np.array([r[key] for r in rows]))
                for key in ("kind_purity", "kind_silhouette", "n_points")
            },
        },
        coords={"cloud": list(features), "kind_name": every},
        attrs={"element": element},
    )


def _axes(
    features: Mapping[str, xr.Dataset], points: Mapping[str, NDArray], basis: str | None
) -> dict[str, tuple[NDArray, NDArray]]:
    """Two principal axes and centre for each set, one for all sets of a model."""
    if basis is not None and basis not in points:
        raise DataError(f"basis {basis!r} is none of {', '.join(points)}")
    by_model: dict[str, tuple[NDArray, NDArray]] = {}
    names = list(points) if basis is None else [basis, *(n for n in points if n != basis)]
    out = {}
    for name in names:
        model = str(features[name].attrs.get("model_hash", name))
        if model not in by_model:
            values = points[name]
            centre = values.mean(axis=0)
            _, _, rows = np.linalg.svd(values - centre, full_matrices=False)
            plane = np.zeros((values.shape[1], 2))
            plane[:, : min(2, len(rows))] = rows[:2].T
            # The sign of an axis is arbitrary: its largest component points up.
            largest = np.argmax(np.abs(plane), axis=0)
            by_model[model] = plane * np.where(plane[largest, [0, 1]] < 0, -1.0, 1.0), centre
        out[name] = by_model[model]
    return out


def _separation(values: NDArray, kinds: NDArray, every: list[str]) -> dict[str, Any]:
    """Purity and silhouette, over all points and for each kind; whitened by the total spread."""
    from sklearn.metrics import silhouette_samples
    from sklearn.neighbors import NearestNeighbors

    spread = float(np.sqrt(((values - values.mean(axis=0)) ** 2).sum(axis=1).mean()))
    if len(values) > SAMPLE:
        # Rare kinds keep all of their points, as far as their share of the sample allows.
        rng = np.random.default_rng(0)
        chosen = []
        for kind in np.unique(kinds):
            mine = np.flatnonzero(kinds == kind)
            most = SAMPLE // len(np.unique(kinds))
            chosen.append(mine if len(mine) <= most else rng.choice(mine, most, replace=False))
        rows = np.sort(np.concatenate(chosen))
        values, kinds = values[rows], kinds[rows]
    present = [k for k in every if (kinds == k).sum() > 1]
    kept = np.isin(kinds, present)
    values, kinds = values[kept], kinds[kept]
    near = min(NEIGHBOURS, len(values) - 1)
    found = NearestNeighbors(n_neighbors=near + 1).fit(values).kneighbors(values)[1][:, 1:]
    purity = (kinds[found] == kinds[:, None]).mean(axis=1)
    alone = len(present) < 2
    width = np.full(len(values), np.nan) if alone else silhouette_samples(values, kinds.astype(str))
    by_kind = [kinds == k for k in every]
    return {
        "purity": float(purity.mean()),
        "silhouette": float(width.mean()),
        "spread": spread,
        "kind_purity": [float(purity[m].mean()) if m.any() else np.nan for m in by_kind],
        "kind_silhouette": [float(width[m].mean()) if m.any() else np.nan for m in by_kind],
        "n_points": [int(m.sum()) for m in by_kind],
    }


def likelihood_maps(
    labels: xr.Dataset, predicted: xr.Dataset, scores: xr.Dataset, *, k: float = 95.0
) -> xr.Dataset:
    """Error and familiarity of each atom over the frames of one system (paper, Figure SI.3).

    Parameters
    ----------
    labels, predicted
        Labelled frames of one system, and a model on them.
    scores
        `log_likelihood` of the same atoms under the density of the model's training data.
    k
        Percentile of the errors.

    Returns
    -------
    maps
        Dim ``atom`` (of the first frame): `mae_p`, eV/Å; `log_likelihood`, mean over the frames,
        -inf where the element was never seen; `numbers`. Dim ``element``: `pearson_r`,
        `r_squared`, `n_atoms`, `n_unseen` over all atoms of all frames. Dim ``atom_of_frames``:
        `error_size` (eV/Å), `score`, `number`, the points of the scatter.
    """

    errors = np.asarray(force_errors(labels, predicted).values, float)
    likelihood = np.asarray(scores["log_likelihood"].values, float)
    numbers = labels["numbers"].values
    if likelihood.shape != numbers.shape:
        raise DataError(
            f"{len(likelihood)} log-likelihoods for {len(numbers)} atoms: score the very frames "
            "that are labelled"
        )
    mae_p = atom_errors(labels, predicted, k=k)
    n = mae_p.sizes["atom"]
    table = likelihood_correlation(errors, likelihood, numbers)
    return table.assign(
        mae_p=("atom", mae_p.values, {"units": "eV/Å", "long_name": f"force MAE_P{k:g}"}),
        log_likelihood=("atom", likelihood.reshape(-1, n).mean(axis=0)),
        numbers=("atom", numbers[:n]),
        error_size=("atom_of_frames", np.linalg.norm(errors, axis=1), {"units": "eV/Å"}),
        score=("atom_of_frames", likelihood),
        number=("atom_of_frames", numbers),
    ).assign_attrs(n_frames=labels.sizes["structure"], percentile=float(k))
