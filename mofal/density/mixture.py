"""Gaussian mixtures on NumPy and Dask arrays, with the interface of scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mofal.density import survey
from mofal.density.em import Progress, Run, fit_runs
from mofal.density.graphs import is_dask
from mofal.density.inputs import check_rows, open_rows
from mofal.density.kernels import Evaluator
from mofal.density.parameters import COVARIANCE_TYPES, Parameters, free_parameters, precisions
from mofal.density.scoring import (
    component_rows,
    evaluator_of,
    log_likelihood_rows,
    on_chunks,
    responsibility_rows,
)
from mofal.density.start import INIT_PARAMS, Spec
from mofal.errors import DataError


class GaussianMixture(DensityMixin, BaseEstimator):
    """Gaussian mixture fitted by expectation maximisation, in memory or larger than memory.

    The interface, the attributes and the results are those of
    ``sklearn.mixture.GaussianMixture``; the differences: Dask arrays and `sample_weight` are
    accepted, arithmetic is float64 whatever the input, starts are taken from a sample of the rows,
    and `reg_covar` may differ between features.

    Parameters
    ----------
    n_components : int
        Number of components K.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Shape of the covariances.
    tol : float
        Converged when the lower bound (mean log-likelihood) changes by less.
    reg_covar : float or array of shape (d,)
        Added to the diagonal of the covariances, in squared units of the features.
    max_iter : int
        Iterations at most; 0 keeps the start.
    n_init : int
        Starts, fitted in shared passes over the rows; the best is kept.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}
        How to start, on at most 16,384 rows (256 per component if that is more) chosen by their
        number: the same for every chunking. The two last-but-one assign each row to its nearest
        seed.
    weights_init, means_init, precisions_init : array-like, optional
        Given parts of the start, shapes as in scikit-learn.
    random_state : int, RandomState or None
        Seed of the starts and of `sample`.
    warm_start : bool
        Continue from the last fit.

    Attributes
    ----------
    weights_, means_, covariances_, precisions_, precisions_cholesky_ : ndarray
        Shapes as in scikit-learn.
    lower_bound_ : float
        Mean log-likelihood at the last iteration.
    lower_bounds_ : list of float
        The same at each iteration of the best start.
    converged_ : bool
    n_iter_ : int
    n_features_in_ : int
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float | np.ndarray = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start

    # ------------------------------------------------------------------------- fitting
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, progress: Progress = None
    ) -> GaussianMixture:
        """Fit to rows; computes.

        Parameters
        ----------
        X : array-like or dask.array.Array, shape (n, d)
        y : ignored
        sample_weight : array-like or dask.array.Array, shape (n,), optional
            A row of weight 2 counts as two rows.
        progress : callable, optional
            Is given one line per iteration.

        Raises
        ------
        DataError
            NaN or infinity, fewer rows than components, or a singular component.
        """
        X = check_rows(self, X, reset=True)
        check_settings(self)
        rows = open_rows(X, sample_weight, least=2)
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=1 + self.n_init)
        size = max(survey.SAMPLE, 256 * self.n_components)
        surveyed = survey.take(rows, int(seeds[0]), size)
        count = rows.get(rows.apply(survey.counts, surveyed)).get(0, (0, 0.0))[0]
        if count == 0:
            raise DataError(
                "the weight of every row is zero; expected at least one row that counts"
            )
        if count < self.n_components:
            raise DataError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, "
                f"n_samples = {count}; use fewer components"
            )
        specs = self._specs(rows.n_features, seeds[1:])
        runs = fit_runs(
            rows,
            surveyed,
            {0: specs},
            tolerance=self.tol,
            max_iter=self.max_iter,
            progress=progress,
        )[0]
        self._adopt(max(runs, key=_last_bound))
        if not self.converged_ and self.max_iter > 0:
            warnings.warn(
                f"no convergence in {self.n_iter_} iterations; increase max_iter or tol, or check "
                "the data for copies of rows",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit, then the component of each row."""
        return self.fit(X, y, sample_weight).predict(X)

    def _specs(self, d: int, seeds: np.ndarray) -> list[Spec]:
        reg = np.broadcast_to(np.asarray(self.reg_covar, np.float64), (d,)).copy()
        if self.warm_start and hasattr(self, "converged_"):
            start = self._parameters()
            found = (*start.means.shape, start.covariances.shape)
            shape = covariance_shape(self.covariance_type, self.n_components, d)
            if found != (self.n_components, d, shape):
                raise DataError(
                    f"warm_start continues from {found[0]} components of {found[1]} features with "
                    f"covariances of shape {found[2]}, found settings or rows that want "
                    f"{self.n_components}, {d} and {shape}; fit a new estimator"
                )
            return [Spec(self.n_components, self.covariance_type, reg, start=start)]
        weights, means, precisions_ = check_start(self, d)
        return [
            Spec(
                self.n_components,
                self.covariance_type,
                reg,
                self.init_params,
                int(seed),
                weights,
                means,
                precisions_,
            )
            for seed in seeds
        ]

    def _adopt(self, run: Run) -> None:
        self._set_parameters(run.parameters)
        self.converged_ = run.converged
        self.n_iter_ = len(run.lower_bounds)
        self.lower_bounds_ = list(run.lower_bounds)
        self.lower_bound_ = _last_bound(run)

    def _set_parameters(self, p: Parameters) -> None:
        self.weights_, self.means_ = p.weights, p.means
        self.covariances_, self.precisions_cholesky_ = p.covariances, p.precisions_cholesky
        self.precisions_ = precisions(p)
        self.n_features_in_ = p.n_features

    @classmethod
    def from_parameters(cls, parameters: Parameters, **settings: Any) -> GaussianMixture:
        """A fitted mixture from parameters that are known."""
        model = cls(parameters.n_components, covariance_type=parameters.covariance_type, **settings)
        model._set_parameters(parameters)
        model.converged_, model.n_iter_ = True, 0
        model.lower_bound_, model.lower_bounds_ = float("nan"), []
        return model

    def _parameters(self) -> Parameters:
        check_is_fitted(self)
        return Parameters(
            self.covariance_type,
            self.weights_,
            self.means_,
            self.covariances_,
            self.precisions_cholesky_,
        )

    def _evaluator(self) -> Evaluator:
        return evaluator_of(self._parameters())

    # ------------------------------------------------------------------------- using
    def score_samples(self, X: Any) -> Any:
        """Log-likelihood of each row, shape (n,); lazy on Dask input."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        if is_dask(X):
            return on_chunks(log_likelihood_rows, self._evaluator(), X, dtype=np.float64)
        return log_likelihood_rows(self._evaluator(), X)

    def predict(self, X: Any) -> Any:
        """Most responsible component of each row, shape (n,); lazy on Dask input."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        if is_dask(X):
            return on_chunks(component_rows, self._evaluator(), X, dtype=np.int64)
        return component_rows(self._evaluator(), X)

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities of the components, shape (n, K); lazy on Dask input."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        if is_dask(X):
            return on_chunks(
                responsibility_rows, self._evaluator(), X, width=self.n_components, dtype=np.float64
            )
        return responsibility_rows(self._evaluator(), X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of the rows; computes."""
        total, n = self._total(X)
        return total / n

    def _total(self, X: Any) -> tuple[float, int]:
        """Sum of the log-likelihoods, and how many rows there are."""
        scores = self.score_samples(X)
        if not is_dask(scores):
            return float(scores.sum()), scores.size
        import dask

        count = scores.map_blocks(np.ones_like, dtype=np.float64).sum()
        total, n = dask.compute(scores.sum(), count)
        return float(total), int(n)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on X (lower is better); computes."""
        total, n = self._total(X)
        return -2.0 * total + free_parameters(self._parameters()) * float(np.log(n))

    def aic(self, X: Any) -> float:
        """Akaike information criterion on X (lower is better); computes."""
        return -2.0 * self._total(X)[0] + 2.0 * free_parameters(self._parameters())

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows, shape (n, d), and their components, shape (n,)."""
        check_is_fitted(self)
        if n_samples < 1:
            raise DataError(f"found n_samples = {n_samples}, expected at least 1")
        rng = check_random_state(self.random_state)
        counts = rng.multinomial(n_samples, self.weights_ / self.weights_.sum())
        d = self.means_.shape[1]
        parts = []
        for k, count in enumerate(counts):
            if self.covariance_type in ("full", "tied"):
                cov = self.covariances_ if self.covariance_type == "tied" else self.covariances_[k]
                parts.append(rng.multivariate_normal(self.means_[k], cov, int(count)))
            else:
                noise = rng.standard_normal(size=(count, d))
                parts.append(self.means_[k] + noise * np.sqrt(self.covariances_[k]))
        return np.vstack(parts), np.repeat(np.arange(counts.size), counts)


def _last_bound(run: Run) -> float:
    return run.lower_bounds[-1] if run.lower_bounds else float("-inf")


def check_settings(model: GaussianMixture) -> None:
    """Refuse settings that cannot be meant, one line each."""
    whole = (("n_components", 1), ("n_init", 1), ("max_iter", 0))
    for name, least in whole:
        value = getattr(model, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise DataError(f"found {name}={value!r}, expected a whole number >= {least}")
    if model.covariance_type not in COVARIANCE_TYPES:
        raise DataError(
            f"found covariance_type={model.covariance_type!r}, expected one of {COVARIANCE_TYPES}"
        )
    if model.init_params not in INIT_PARAMS:
        raise DataError(f"found init_params={model.init_params!r}, expected one of {INIT_PARAMS}")
    if not model.tol >= 0:
        raise DataError(f"found tol={model.tol!r}, expected a number >= 0")
    reg = np.asarray(model.reg_covar, np.float64)
    if not (np.isfinite(reg).all() and (reg >= 0).all()):
        raise DataError(f"found reg_covar={model.reg_covar!r}, expected numbers >= 0")
    if reg.ndim and reg.shape != (model.n_features_in_,):
        raise DataError(
            f"reg_covar has shape {reg.shape}, expected a number or ({model.n_features_in_},)"
        )


def covariance_shape(kind: str, k: int, d: int) -> tuple[int, ...]:
    """Shape of the covariances of k components of d features."""
    return {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind]


def check_start(
    model: GaussianMixture, d: int
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Given parts of the start as arrays of the right shape."""
    k, kind = model.n_components, model.covariance_type
    out: list[np.ndarray | None] = []
    expected = {
        "weights_init": (k,),
        "means_init": (k, d),
        "precisions_init": covariance_shape(kind, k, d),
    }
    for name, shape in expected.items():
        value = getattr(model, name)
        array = None if value is None else np.array(value, np.float64)
        if array is not None and array.shape != shape:
            raise DataError(f"{name} has shape {array.shape}, expected {shape}")
        out.append(array)
    weights, means, given = out
    if weights is not None and (weights.min() < 0 or abs(weights.sum() - 1) > 1e-6):
        raise DataError(
            f"weights_init adds up to {weights.sum():g} (smallest {weights.min():g}), expected "
            "numbers >= 0 that add up to 1"
        )
    if given is not None:
        _check_precisions(given, kind)
    return weights, means, given


def _check_precisions(given: np.ndarray, kind: str) -> None:
    good = (given > 0).all() if kind in ("diag", "spherical") else _positive_definite(given)
    if not good:
        raise DataError(f"precisions_init is not symmetric positive definite, as {kind} must be")


def _positive_definite(stack: np.ndarray) -> bool:
    if not np.allclose(stack, np.swapaxes(stack, -1, -2)):
        return False
    return bool((np.linalg.eigvalsh(stack) > 0).all())
