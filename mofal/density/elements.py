"""One mixture for each label of the rows, fitted together and scored in one pass."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from mofal.density import storage
from mofal.density import survey as surveys
from mofal.density.basis import Projection, project
from mofal.density.calibration import QuantileScale
from mofal.density.conformal import AtomBound, ErrorBound
from mofal.density.em import Progress, Run
from mofal.density.graphs import is_dask, plain
from mofal.density.inputs import open_rows, unwrap
from mofal.density.kernels import Evaluator
from mofal.density.mixture import GaussianMixture, check_settings
from mofal.density.parameters import Parameters
from mofal.density.pca import count_directions, eigen
from mofal.density.rows import group_rows, walk
from mofal.density.scoring import (
    evaluator_of,
    log_likelihood_rows,
    on_chunks,
    pieces,
)
from mofal.density.selection import CRITERIA, Curve, Search, candidate_counts, search
from mofal.density.start import Spec
from mofal.density.survey import Survey
from mofal.errors import DataError


class PerElementDensity(BaseEstimator):
    """A Gaussian mixture for each label; for features of atoms the label is the atomic number.

    All labels keep the same number of dimensions, so that their log-likelihoods are on one footing.

    Parameters
    ----------
    n_components : int, "bic" or "aic"
        Components for each label, or the criterion that chooses them by itself for each.
    max_components : int
        Largest number that a search tries.
    counts : sequence of int, optional
        Numbers that a search tries, instead of all up to `max_components`.
    pca : None, int or float
        Project all rows on so many principal directions, or those that explain this fraction of
        the variance within labels (every label counts the same).
    covariance_type, tol, max_iter, n_init : as in `GaussianMixture`
    reg_covar : float
        Smallest variance of a component, *relative to the scale of each feature* (its variance
        within labels); see Notes.
    patience : int
        A search stops after so many candidates without gain.
    random_state : int, RandomState or None

    Attributes
    ----------
    mixtures_ : dict of int to GaussianMixture
    curves_ : dict of int to Curve
        The whole search for each label (a single entry when the number was given).
    counts_ : dict of int to int
        Rows of each label.
    projection_ : tuple of ndarray or None
        Mean (d,) and directions (d, k).
    quantiles_ : QuantileScale
        Of the training rows (a sample), or of what `calibrate` was given.
    training_quantiles_ : QuantileScale
        Of the training rows in any case (of a density from disk only where it keeps a bound).
    bound_ : AtomBound or None
        Bound of the force error, once `bound_errors` has made it.
    density_hash : str
        Hash of all parameters.
    fitted_on : dict
        What it was fitted on: rows and weight of each label, features, and what the caller adds.
    model_hash : str
        Of the potential whose features these are, if there is one.

    Notes
    -----
    Repairs, so that no covariance is ever singular. The scale of a feature is its variance within
    labels, averaged over those with more rows than features, and at least 1e-6 of its mean square
    (so that a constant feature is known to 1e-6 of its size, a few roundings of float32); a feature
    that is zero everywhere is given 1e-6 of the mean scale. A label with n rows of d features gets
    ``max(reg_covar, min(1, ((d + 1)/n)²))`` times that scale on its diagonal: with plenty of rows
    reg_covar, with a handful as much as all labels vary. A label gets at most
    ``n // (2 (d + 1))`` components, and at least one.
    """

    bound_: AtomBound | None

    def __init__(
        self,
        n_components: int | str = "bic",
        *,
        max_components: int = 20,
        counts: Any = None,
        pca: int | float | None = None,
        covariance_type: str = "full",
        reg_covar: float = 1e-6,
        tol: float = 1e-3,
        max_iter: int = 200,
        n_init: int = 1,
        patience: int = 3,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.max_components = max_components
        self.counts = counts
        self.pca = pca
        self.covariance_type = covariance_type
        self.reg_covar = reg_covar
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.patience = patience
        self.random_state = random_state

    # ------------------------------------------------------------------------- fitting
    def fit(
        self,
        features: Any,
        labels: Any,
        *,
        sample_weight: Any = None,
        model_hash: str = "",
        fitted_on: dict[str, Any] | None = None,
        progress: Progress = None,
    ) -> PerElementDensity:
        """Fit to rows; computes, all labels in shared passes.

        Parameters
        ----------
        features : array-like or dask.array.Array, shape (n, d)
        labels : array-like or dask.array.Array of int, shape (n,)
        sample_weight : array-like, shape (n,), optional
        model_hash : str
            Of the potential whose features these are.
        fitted_on : dict, optional
            What the caller wants kept about the data (JSON).
        progress : callable, optional
            Is given one line per pass.

        Raises
        ------
        DataError
            NaN or infinity, no rows, or settings that cannot be meant.
        """
        features, labels = self._check(features, labels)
        template = self._template(int(features.shape[1]))
        rows = open_rows(features, sample_weight, labels)
        wanted = self._wanted()
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=1 + self.n_init)
        size = max(surveys.SAMPLE, 256 * wanted[-1])
        surveyed = surveys.take(rows, int(seeds[0]), size)
        overview = rows.get(rows.apply(_overview, surveyed))
        overview = {label: entry for label, entry in overview.items() if entry[0] > 0}
        if not overview:
            raise DataError(
                "the weight of every row is zero; expected at least one row that counts"
            )
        if max(overview) > np.iinfo(np.int64).max:
            raise DataError(f"found label {max(overview)}, expected numbers below 2⁶³")
        self.n_features_in_ = rows.n_features
        self.projection_ = self._project(overview)
        if self.projection_ is not None:
            surveyed = rows.keep(rows.apply(_project_survey, surveyed, rows.put(self.projection_)))
        reg = self._regularisation(overview)
        d = next(iter(reg.values())).size

        def maker(label: int) -> Any:
            def specs(k: int) -> list[Spec]:
                return [
                    Spec(k, template.covariance_type, reg[label], "kmeans", int(seed))
                    for seed in seeds[1:]
                ]

            return specs

        criterion = self.n_components if self.n_components in CRITERIA else "bic"
        found = search(
            rows,
            surveyed,
            {label: maker(label) for label in overview},
            {
                label: (max(1, count // (2 * (d + 1))), weight)
                for label, (count, weight, _) in overview.items()
            },
            Search(wanted, str(criterion), self.patience),
            tolerance=self.tol,
            max_iter=self.max_iter,
            projection=self.projection_,
            progress=progress,
        )
        self._adopt(found, reg)
        self.counts_ = {label: entry[0] for label, entry in overview.items()}
        self.model_hash = model_hash
        self.fitted_on = {
            "rows": {str(label): entry[0] for label, entry in overview.items()},
            "weight": {str(label): entry[1] for label, entry in overview.items()},
            "n_features": self.n_features_in_,
            **(fitted_on or {}),
        }
        json.dumps(self.fitted_on)
        evaluators = {label: m._evaluator() for label, m in self.mixtures_.items()}
        values, of_label = rows.get(rows.apply(_score_survey, surveyed, rows.put(evaluators)))
        self.quantiles_ = self.training_quantiles_ = QuantileScale().fit(values, of_label)
        self.bound_ = None
        self._hash()
        return self

    def _check(self, features: Any, labels: Any) -> tuple[Any, Any]:
        features, labels = unwrap(features), unwrap(labels)
        if not is_dask(features):
            features = plain(features)
            if is_dask(labels):
                labels = labels.compute()
        if features.ndim != 2:
            raise DataError(f"found features of {features.ndim} dims, expected 2: rows, features")
        if features.dtype.kind not in "fiu":
            raise DataError(f"found features of dtype {features.dtype}, expected real numbers")
        if features.dtype not in (np.float32, np.float64):
            features = features.astype(np.float64)
        if not is_dask(labels):
            labels = plain(labels)
        if labels.dtype.kind not in "iu":
            raise DataError(f"found labels of dtype {labels.dtype}, expected whole numbers")
        sizes = (features.shape[0], *labels.shape)
        if not np.isnan(sizes).any() and labels.shape != (features.shape[0],):
            raise DataError(
                f"labels have shape {labels.shape}, expected ({features.shape[0]},): one per row"
            )
        return features, labels

    def _template(self, d: int) -> GaussianMixture:
        model = GaussianMixture(
            1,
            covariance_type=self.covariance_type,
            tol=self.tol,
            reg_covar=self.reg_covar,
            max_iter=self.max_iter,
            n_init=self.n_init,
        )
        model.n_features_in_ = d
        check_settings(model)
        return model

    def _wanted(self) -> tuple[int, ...]:
        n = self.n_components
        if isinstance(n, str):
            if n not in CRITERIA:
                raise DataError(f"found n_components={n!r}, expected 'bic', 'aic' or a number")
            return candidate_counts(self.counts, self.max_components)
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
            raise DataError(f"found n_components={n!r}, expected 'bic', 'aic' or a number >= 1")
        return (int(n),)

    def _project(self, overview: dict[int, Any]) -> Projection:
        if self.pca is None:
            return None
        known = _well_known(overview)
        within = np.mean([covariance for _, covariance in known], axis=0)
        mean = np.mean([m for m, _ in known], axis=0)
        variances, directions = eigen(within)
        k = count_directions(variances, self.pca)
        return mean, np.ascontiguousarray(directions[:k].T)

    def _regularisation(self, overview: dict[int, Any]) -> dict[int, np.ndarray]:
        known = _well_known(overview)
        means = [mean for mean, _ in known]
        covariances = [covariance for _, covariance in known]
        if self.projection_ is not None:
            matrix = self.projection_[1]
            means = [project(self.projection_, m) for m in means]
            covariances = [matrix.T @ c @ matrix for c in covariances]
        variance = np.mean([np.diagonal(c) for c in covariances], axis=0)
        square = variance + np.mean(np.square(means), axis=0)
        scale = np.maximum(variance, 1e-6 * square)
        if not scale.any():
            scale = np.ones_like(scale)
        scale = np.where(scale > 0, scale, 1e-6 * scale.mean())
        d = scale.size
        return {
            label: scale * max(self.reg_covar, min(1.0, ((d + 1) / count) ** 2))
            for label, (count, _, _) in overview.items()
        }

    def _adopt(self, found: dict[int, tuple[Run, Curve]], reg: dict[int, np.ndarray]) -> None:
        self.mixtures_: dict[int, GaussianMixture] = {}
        self.curves_: dict[int, Curve] = {}
        for label, (run, curve) in found.items():
            model = GaussianMixture(
                run.spec.n_components,
                covariance_type=self.covariance_type,
                tol=self.tol,
                reg_covar=reg[label],
                max_iter=self.max_iter,
            )
            model._adopt(run)
            self.mixtures_[label] = model
            self.curves_[label] = curve

    def calibrate(self, features: Any, labels: Any) -> PerElementDensity:
        """Take the quantiles from other rows than the training rows, best from validation rows.

        Labels that were never fitted are passed over. Computes.
        """
        labels = unwrap(labels)
        values = self.score_samples(features, labels)
        if is_dask(values):
            import dask

            values, labels = dask.compute(values, labels)
        self.quantiles_ = QuantileScale().fit(values, labels)
        return self

    def bound_errors(
        self,
        features: Any,
        labels: Any,
        error: Any,
        structure_index: Any,
        *,
        coverage: float = 0.9,
        random_state: int = 0,
    ) -> PerElementDensity:
        """Make and keep a bound of the force error; see `mofal.density.ErrorBound`. Computes.

        Parameters
        ----------
        features, labels : array-like, shapes (n, d) and (n,)
            Of labelled structures that the potential was not trained on, and this density was not
            fitted to.
        error : array-like, shape (n,)
            Norm of the force error of each atom, eV/Å; NaN (masked) rows are passed over.
        structure_index : array-like of int, shape (n,)
        coverage : float
            Of the bound, in (0, 1).
        random_state : int
            Which structures go into which half.

        Raises
        ------
        DataError
            Too few structures for this coverage.
        """
        values, labels = plain(self.score_samples(features, labels)), plain(unwrap(labels))
        quantile = self.training_quantiles_.transform(values, labels)
        bound = ErrorBound(coverage, random_state=random_state)
        bound.fit(quantile, error, structure_index)
        self.bound_ = AtomBound(bound, self.training_quantiles_)
        return self

    def error_bound(self, log_likelihood: Any, labels: Any) -> Any:
        """Upper bound (n,) of the force error of each atom, eV/Å; lazy on Dask input.

        Raises
        ------
        DataError
            No bound was made.
        """
        if self.bound_ is None:
            raise DataError(
                "this density keeps no bound of the force error; make one of labelled structures: "
                "density.bound_errors(features, labels, error, structure_index)"
            )
        return self.bound_.predict(unwrap(log_likelihood), unwrap(labels))

    # ------------------------------------------------------------------------- using
    @property
    def labels_(self) -> np.ndarray:
        """Labels that were fitted, ascending."""
        return np.array(sorted(self.mixtures_), np.int64)

    def score_samples(self, features: Any, labels: Any) -> Any:
        """Log-likelihood (n,) of each row under the density of its label; lazy on Dask input.

        Labels never seen get -inf. All labels of a chunk are served in one pass over it.
        """
        features, labels = self._ready(features, labels)
        shared = self._scorer()
        if is_dask(features):
            return on_chunks(_score_rows, shared, features, labels, dtype=np.float64)
        return _in_pieces(shared, features, labels)

    def predict(self, features: Any, labels: Any) -> Any:
        """Most responsible component (n,) of the row's label, -1 for labels never seen; lazy."""
        features, labels = self._ready(features, labels)
        if is_dask(features):
            return on_chunks(_predict_rows, self._scorer(), features, labels, dtype=np.int64)
        return _predict_rows(self._scorer(), features, labels)

    def quantile(self, log_likelihood: Any, labels: Any) -> Any:
        """Quantiles in (0, 1) of log-likelihoods, comparable between labels and models; lazy.

        Strictly monotonic for each label, also below everything met in training.
        """
        return self.quantiles_.transform(unwrap(log_likelihood), unwrap(labels))

    def _ready(self, features: Any, labels: Any) -> tuple[Any, Any]:
        if not hasattr(self, "mixtures_"):
            raise DataError(
                "this density is not fitted; fit it first: density.fit(features, labels)"
            )
        features, labels = self._check(features, labels)
        if features.shape[1] != self.n_features_in_:
            raise DataError(
                f"found {features.shape[1]} features, the density was fitted with "
                f"{self.n_features_in_}"
            )
        return features, labels

    def _scorer(self) -> Scorer:
        return Scorer(
            self.projection_,
            {label: evaluator_of(m._parameters()) for label, m in self.mixtures_.items()},
        )

    def _hash(self) -> None:
        from mofal.data.hashing import hash_arrays

        arrays: list[np.ndarray] = [self.labels_]
        for label in self.labels_:
            m = self.mixtures_[int(label)]
            arrays += [m.weights_, m.means_, m.covariances_, m.precisions_cholesky_]
        if self.projection_ is not None:
            arrays += list(self.projection_)
        self.density_hash = hash_arrays(*arrays)

    # ------------------------------------------------------------------------- keeping
    def save(self, path: Any) -> None:
        """Write as a plain Zarr group; see `mofal.density.storage`."""
        storage.save(self, path, from_parts)

    @classmethod
    def load(cls, path: Any) -> PerElementDensity:
        """Read a group that `save` wrote; scores are equal bit for bit."""
        return storage.load(path, from_parts)


class Scorer:
    """What a chunk needs to be scored: projection and evaluators."""

    def __init__(self, projection: Projection, evaluators: dict[int, Evaluator]) -> None:
        self.projection, self.evaluators = projection, evaluators


def _score_rows(shared: Scorer, x: np.ndarray, labels: np.ndarray, *, first: int = 0) -> np.ndarray:
    out = np.full(x.shape[0], -np.inf)
    for label, rows in group_rows(labels):
        if label in shared.evaluators:
            part = project(shared.projection, x[rows])
            score = np.empty((1, rows.size))
            shared.evaluators[label].evaluate(part, out=score, numbers=first + rows)
            out[rows] = score[0]
    return out


def _in_pieces(shared: Scorer, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out = np.empty(x.shape[0])

    def work(rows: slice) -> None:
        out[rows] = _score_rows(shared, x[rows], labels[rows], first=rows.start)

    for _ in walk(pieces(x.shape[0]), work):
        pass
    return out


def _predict_rows(
    shared: Scorer, x: np.ndarray, labels: np.ndarray, *, first: int = 0
) -> np.ndarray:
    from mofal.density.scoring import component_rows

    out = np.full(x.shape[0], -1, np.int64)
    for label, rows in group_rows(labels):
        if label in shared.evaluators:
            part = project(shared.projection, x[rows])
            out[rows] = component_rows(shared.evaluators[label], part, numbers=first + rows)
    return out


def _overview(survey: Survey) -> dict[int, tuple[int, float, tuple[np.ndarray, np.ndarray]]]:
    """Count, weight, and moments of each label: all that the driver sees of the rows."""
    return {
        label: (sample.count, sample.weight, sample.moments())
        for label, sample in survey.items()
        if sample.count
    }


def _well_known(overview: dict[int, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Moments of the labels with more rows than features; of all, if there is none."""
    every = list(overview.values())
    return [entry[2] for entry in every if entry[0] > entry[2][0].size] or [e[2] for e in every]


def _project_survey(survey: Survey, projection: Projection) -> Survey:
    return {
        label: replace(sample, x=project(projection, sample.x)) for label, sample in survey.items()
    }


def _score_survey(
    survey: Survey, evaluators: dict[int, Evaluator]
) -> tuple[np.ndarray, np.ndarray]:
    values, labels = [], []
    for label, evaluator in evaluators.items():
        scores = log_likelihood_rows(evaluator, survey[label].x)
        values.append(scores)
        labels.append(np.full(scores.size, label))
    return np.concatenate(values), np.concatenate(labels)


def from_parts(
    settings: dict[str, Any],
    parameters: dict[int, Parameters],
    curves: dict[int, Curve],
    **attributes: Any,
) -> PerElementDensity:
    """A fitted density from its parts, as storage reads them."""
    density = PerElementDensity(**settings)
    density.mixtures_ = {
        label: GaussianMixture.from_parameters(p) for label, p in parameters.items()
    }
    density.curves_ = curves
    for name, value in attributes.items():
        setattr(density, name, value)
    density._hash()
    return density
