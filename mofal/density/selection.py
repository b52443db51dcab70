"""How many components: BIC or AIC over a range, in passes that all candidates share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from mofal.density import survey as surveys
from mofal.density.basis import Projection
from mofal.density.em import Progress, Run, fit_runs
from mofal.density.inputs import check_rows, open_rows
from mofal.density.mixture import GaussianMixture, check_settings
from mofal.density.parameters import free_parameters
from mofal.density.rows import Rows
from mofal.density.start import Spec
from mofal.errors import DataError

CRITERIA = ("bic", "aic")


@dataclass
class Curve:
    """Everything the search has seen, in the order of the number of components.

    Attributes
    ----------
    criterion : {"bic", "aic"}
    n_components, bic, aic, log_likelihood, n_iter, converged : list
        One entry for each candidate: both criteria (lower is better), the weighted sum of the
        log-likelihoods, the iterations taken, and whether they were enough.
    """

    criterion: str
    n_components: list[int] = field(default_factory=list)
    bic: list[float] = field(default_factory=list)
    aic: list[float] = field(default_factory=list)
    log_likelihood: list[float] = field(default_factory=list)
    n_iter: list[int] = field(default_factory=list)
    converged: list[bool] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Number of components with the lowest criterion."""
        return self.n_components[int(np.argmin(getattr(self, self.criterion)))]

    def add(self, run: Run, weight: float) -> None:
        """Enter the best start of one candidate."""
        free, total = free_parameters(run.parameters), run.log_likelihood
        self.n_components.append(run.spec.n_components)
        self.bic.append(-2.0 * total + free * float(np.log(weight)))
        self.aic.append(-2.0 * total + 2.0 * free)
        self.log_likelihood.append(total)
        self.n_iter.append(len(run.lower_bounds))
        self.converged.append(run.converged)

    def is_clear(self, patience: int) -> bool:
        """Whether the last `patience` candidates are all worse than one before them."""
        values = getattr(self, self.criterion)
        return len(values) - 1 - int(np.argmin(values)) >= patience

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Search:
    """Settings of a search.

    Attributes
    ----------
    counts : tuple of int
        Candidate numbers of components, ascending.
    criterion : {"bic", "aic"}
    patience : int
        Stop when so many candidates in a row are no better than the best before them.
    batch : int
        Candidates that are fitted together.
    """

    counts: tuple[int, ...]
    criterion: str = "bic"
    patience: int = 3
    batch: int = 4


def search(
    rows: Rows,
    survey: Any,
    makers: dict[int, Any],
    limits: dict[int, tuple[int, float]],
    settings: Search,
    *,
    tolerance: float,
    max_iter: int,
    projection: Projection = None,
    progress: Progress = None,
) -> dict[int, tuple[Run, Curve]]:
    """Search for several labels at once; each stops when its own answer is clear.

    Parameters
    ----------
    makers : dict
        Label to a function that lists the fits (one for each start) of a number of components.
    limits : dict
        Label to the largest number of components worth trying and the weight of its rows.
    """
    best: dict[int, Run] = {}
    curves = {label: Curve(settings.criterion) for label in makers}
    queues = {
        label: [k for k in settings.counts if k <= limits[label][0]] or [limits[label][0]]
        for label in makers
    }
    while queues:
        asked = {label: queue[: settings.batch] for label, queue in queues.items()}
        plan = {label: [s for k in ks for s in makers[label](k)] for label, ks in asked.items()}
        if progress is not None:
            text = ", ".join(f"{label}: {ks[0]} to {ks[-1]}" for label, ks in asked.items())
            progress(f"components of label {text}")
        fitted = fit_runs(
            rows,
            survey,
            plan,
            tolerance=tolerance,
            max_iter=max_iter,
            projection=projection,
            settle=True,
            progress=progress,
        )
        for label, ks in asked.items():
            curve = curves[label]
            for k in ks:
                run = max(
                    (r for r in fitted[label] if r.spec.n_components == k),
                    key=lambda r: r.log_likelihood,
                )
                curve.add(run, limits[label][1])
                if curve.best == k:
                    best[label] = run
            queues[label] = queues[label][len(ks) :]
            if not queues[label] or curve.is_clear(settings.patience):
                del queues[label]
    return {label: (best[label], curves[label]) for label in makers}


def candidate_counts(counts: Any, max_components: int) -> tuple[int, ...]:
    """Ascending candidates: those given, or all up to `max_components`."""
    chosen = range(1, max_components + 1) if counts is None else counts
    out = tuple(sorted({int(k) for k in chosen}))
    if not out or out[0] < 1:
        raise DataError(f"found candidates {list(chosen)!r}, expected whole numbers >= 1")
    return out


def select_components(
    X: Any,
    *,
    sample_weight: Any = None,
    criterion: str = "bic",
    max_components: int = 20,
    counts: Any = None,
    patience: int = 3,
    batch: int = 4,
    progress: Progress = None,
    **settings: Any,
) -> tuple[GaussianMixture, Curve]:
    """Fit mixtures of several sizes and keep the one with the lowest criterion.

    Candidates are fitted `batch` at a time in shared passes over the rows, from few components to
    many, until `patience` of them in a row are no better than the best before them.

    Parameters
    ----------
    X : array-like or dask.array.Array, shape (n, d)
    sample_weight : array-like, shape (n,), optional
    criterion : {"bic", "aic"}
    max_components : int
        Largest number tried.
    counts : sequence of int, optional
        Numbers tried, instead of all up to `max_components`.
    patience, batch : int
    progress : callable, optional
        Is given one line per pass.
    **settings
        Of `GaussianMixture`.

    Returns
    -------
    model : GaussianMixture
        The best one, fitted.
    curve : Curve
        Every candidate with its criteria.

    Raises
    ------
    DataError
        Settings that cannot be meant, NaN or infinity.
    """
    if criterion not in CRITERIA:
        raise DataError(f"found criterion={criterion!r}, expected one of {CRITERIA}")
    model = GaussianMixture(1, **settings)
    X = check_rows(model, X, reset=True)
    check_settings(model)
    rows = open_rows(X, sample_weight, least=2)
    wanted = candidate_counts(counts, max_components)
    seeds = check_random_state(model.random_state).randint(2**31 - 1, size=1 + model.n_init)
    survey = surveys.take(rows, int(seeds[0]), max(surveys.SAMPLE, 256 * wanted[-1]))
    count, weight = rows.get(rows.apply(surveys.counts, survey)).get(0, (0, 0.0))
    if not count:
        raise DataError("the weight of every row is zero; expected at least one row that counts")
    reg = np.broadcast_to(np.asarray(model.reg_covar, np.float64), (rows.n_features,)).copy()

    def specs(k: int) -> list[Spec]:
        return [
            Spec(k, model.covariance_type, reg, model.init_params, int(seed)) for seed in seeds[1:]
        ]

    run, curve = search(
        rows,
        survey,
        {0: specs},
        {0: (count, weight)},
        Search(wanted, criterion, patience, batch),
        tolerance=model.tol,
        max_iter=model.max_iter,
        progress=progress,
    )[0]
    model.set_params(n_components=run.spec.n_components)
    model._adopt(run)
    return model, curve
