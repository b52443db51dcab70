"""Expectation maximisation of many mixtures at once: every pass over the rows serves them all.

What is fitted together (restarts, candidate numbers of components, elements) shares the reading of
the rows, the columns of the product form and the tasks. The state of the fits stays where the work
is done; the driver sees a line of numbers per pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mofal.density.basis import Basis, Projection, make_basis, project
from mofal.density.columns import pair_indices
from mofal.density.kernels import FIT_TOLERANCE, Evaluator, Statistics
from mofal.density.parameters import Parameters
from mofal.density.rows import Chunk, Rows
from mofal.density.start import EPS, Spec, begin, finish, pool
from mofal.density.survey import Survey

Progress = Callable[[str], None] | None


@dataclass(frozen=True)
class Run:
    """One fit: where it stands, and the lower bound at every iteration."""

    spec: Spec
    parameters: Parameters
    lower_bounds: tuple[float, ...] = ()
    converged: bool = False
    log_likelihood: float = float("nan")
    """Weighted sum over all rows under the final parameters, once `settle` has run."""


@dataclass(frozen=True)
class State:
    """All fits, by label, and the evaluators of those that still run.

    Where there is a projection, it is done in the task of each chunk, never stored.
    """

    runs: dict[int, list[Run]]
    bases: dict[int, Basis]
    tolerance: float
    max_iter: int
    projection: Projection = None
    active: dict[int, list[int]] = field(default_factory=dict)
    evaluators: dict[int, Evaluator] = field(default_factory=dict)
    eps: dict[int, float] = field(default_factory=dict)
    """What is added to the weights of the components of a label; see `start.EPS`."""

    def prepared(self) -> State:
        """The same with evaluators of what has not converged."""
        active = {
            label: [
                i
                for i, run in enumerate(runs)
                if not run.converged and len(run.lower_bounds) < self.max_iter
            ]
            for label, runs in self.runs.items()
        }
        active = {label: indices for label, indices in active.items() if indices}
        evaluators = {
            label: Evaluator(
                [self.runs[label][i].parameters for i in indices],
                self.bases[label],
                tolerance=FIT_TOLERANCE,
            )
            for label, indices in active.items()
        }
        return replace(self, active=active, evaluators=evaluators)


def start_state(
    survey: Survey,
    plan: dict[int, list[Spec]],
    tolerance: float,
    max_iter: int,
    projection: Projection = None,
) -> State:
    """Starts of every fit of the plan; the sample of the survey is projected already."""
    runs = {
        label: [Run(spec, begin(spec, survey[label])) for spec in specs]
        for label, specs in plan.items()
    }
    bases = {
        label: make_basis(*survey[label].moments(), specs[0].covariance_type)
        for label, specs in plan.items()
    }
    eps = {label: EPS * survey[label].mean_weight for label in plan}
    return State(runs, bases, tolerance, max_iter, projection, eps=eps).prepared()


def em_chunk(chunk: Chunk, state: State) -> dict[int, Statistics]:
    """Statistics of one chunk under every fit that still runs."""
    out: dict[int, Statistics] = {}
    for label, part in chunk.by_label():
        evaluator = state.evaluators.get(label)
        if evaluator is None:
            continue
        statistics = evaluator.new_statistics()
        evaluator.evaluate(
            project(state.projection, part.x),
            weights=part.weights,
            statistics=statistics,
            numbers=part.numbers,
        )
        out[label] = statistics
    return out


def em_combine(a: dict[int, Statistics], b: dict[int, Statistics]) -> dict[int, Statistics]:
    """Add the statistics of two sets of rows."""
    return {
        label: a[label] + b[label] if label in a and label in b else a.get(label) or b[label]
        for label in sorted({*a, *b})
    }


def em_step(state: State, statistics: dict[int, Statistics]) -> State:
    """M-step of every fit, and the decision which ones have converged."""
    runs = {label: list(of_label) for label, of_label in state.runs.items()}
    for label, indices in state.active.items():
        stats, evaluator = statistics[label], state.evaluators[label]
        for model, i in enumerate(indices):
            run = runs[label][i]
            bound = float(stats.log_likelihood[model] / stats.weight)
            previous = run.lower_bounds[-1] if run.lower_bounds else -np.inf
            runs[label][i] = replace(
                run,
                parameters=maximise(
                    evaluator, model, stats, run.spec.reg_covar, eps=state.eps[label]
                ),
                lower_bounds=(*run.lower_bounds, bound),
                converged=abs(bound - previous) < state.tolerance,
            )
    return replace(state, runs=runs).prepared()


def maximise(
    evaluator: Evaluator,
    model: int,
    statistics: Statistics,
    reg_covar: np.ndarray,
    *,
    eps: float = EPS,
) -> Parameters:
    """New parameters of one model from its statistics."""
    e, old = evaluator, evaluator.models[model]
    share = e.shares[model]
    k, d = old.means.shape
    number, means = np.empty(k), np.empty((k, d))
    scatter = np.empty((k, d, d) if e.matrix else (k, d))
    n_product = share.product.stop - share.product.start
    first, second = share.order[:n_product], share.order[n_product:]
    if n_product:
        sums = statistics.product[share.product]
        n, mean_z = _divide(sums[:, 0], sums[:, 1 : 1 + d], eps)
        number[first] = n
        if e.matrix:
            means[first] = e.basis.centre + mean_z @ e.basis.backward.T
        else:
            means[first] = e.basis.centre + mean_z * e.basis.backward
        scatter[first] = _product_scatter(e, sums, n, mean_z, statistics)
    if second.size:
        chosen = e.stable_index[share.stable]
        sums = statistics.stable[share.stable]
        if e.matrix:
            n, mean_y = _divide(sums[:, d, d], sums[:, :d, d], eps)
            # Rows of y are in units of the old component: μ + L y with L Lᵀ its covariance.
            lower = np.linalg.inv(e.factors[chosen][:, :d, :d])
            means[second] = old.means[second] + np.einsum("kij,kj->ki", lower, mean_y)
            inner = sums[:, :d, :d] / n[:, None, None] - mean_y[:, :, None] * mean_y[:, None, :]
            scatter[second] = lower @ inner @ np.swapaxes(lower, 1, 2)
        else:
            n, mean_y = _divide(sums[:, 2, 0], sums[:, 1], eps)
            sigma = 1.0 / e.factors[chosen]
            means[second] = old.means[second] + sigma * mean_y
            scatter[second] = sigma**2 * (sums[:, 0] / n[:, None] - mean_y**2)
        number[second] = n
    if e.matrix:
        scatter = 0.5 * (scatter + np.swapaxes(scatter, 1, 2))
    return finish(number, means, pool(scatter, number, reg_covar, e.kind), e.kind)


def _divide(number: np.ndarray, first: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    n = number + eps
    return n, first / n[:, None]


def _product_scatter(
    e: Evaluator, sums: np.ndarray, n: np.ndarray, mean_z: np.ndarray, statistics: Statistics
) -> np.ndarray:
    """Covariances (k, d, d) or variances (k, d) from moments in whitened coordinates."""
    d = e.n_features
    if not e.matrix:
        return e.basis.backward**2 * (sums[:, 1 + d :] / n[:, None] - mean_z**2)
    if e.kind == "tied":
        # Only the sum over components is needed, and it needs no second moments of its own.
        between = (n[:, None] * mean_z).T @ mean_z
        inner = np.broadcast_to((statistics.total - between) / n.sum(), (n.size, d, d))
    else:
        inner = np.empty((n.size, d, d))
        rows, columns = pair_indices(d)
        inner[:, rows, columns] = sums[:, 1 + d :] / n[:, None]
        inner[:, columns, rows] = inner[:, rows, columns]
        inner -= mean_z[:, :, None] * mean_z[:, None, :]
    return e.basis.backward @ inner @ e.basis.backward.T


def summary(state: State) -> tuple[int, int, int]:
    """Fits that still run, fits in all, and the most iterations of any."""
    everything = [run for runs in state.runs.values() for run in runs]
    running = sum(len(indices) for indices in state.active.values())
    return running, len(everything), max((len(r.lower_bounds) for r in everything), default=0)


def settle_state(state: State) -> State:
    """Evaluators of all fits, as a last pass wants them that only scores."""
    return replace(
        state,
        active={label: list(range(len(runs))) for label, runs in state.runs.items()},
        evaluators={
            label: Evaluator(
                [run.parameters for run in runs], state.bases[label], tolerance=FIT_TOLERANCE
            )
            for label, runs in state.runs.items()
        },
    )


def score_chunk(chunk: Chunk, state: State) -> dict[int, np.ndarray]:
    """Weighted sum of the log-likelihoods of one chunk under every fit."""
    out: dict[int, np.ndarray] = {}
    for label, part in chunk.by_label():
        evaluator = state.evaluators.get(label)
        if evaluator is None:
            continue
        scores = np.empty((len(evaluator.models), part.x.shape[0]))
        x = project(state.projection, part.x)
        evaluator.evaluate(x, out=scores, numbers=part.numbers)
        out[label] = scores.sum(1) if part.weights is None else scores @ part.weights
    return out


def score_combine(a: dict[int, np.ndarray], b: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Add two sums."""
    return {
        label: np.sum([part[label] for part in (a, b) if label in part], axis=0)
        for label in sorted({*a, *b})
    }


def score_step(state: State, sums: dict[int, np.ndarray]) -> State:
    """Keep the sums with the fits."""
    runs = {
        label: [
            replace(run, log_likelihood=float(sums[label][i])) for i, run in enumerate(of_label)
        ]
        for label, of_label in state.runs.items()
    }
    return replace(state, runs=runs, active={}, evaluators={})


def fit_runs(
    rows: Rows,
    survey: Any,
    plan: dict[int, list[Spec]],
    *,
    tolerance: float,
    max_iter: int,
    projection: Projection = None,
    settle: bool = False,
    progress: Progress = None,
) -> dict[int, list[Run]]:
    """Fit everything that is planned, in shared passes over the rows.

    Parameters
    ----------
    rows : Rows
    survey : handle
        From `survey.take` on the same rows.
    plan : dict
        Label to the fits asked for it.
    tolerance : float
        A fit has converged when its lower bound changes by less.
    max_iter : int
        Iterations at most.
    projection : tuple of ndarray, optional
        What rows are projected on.
    settle : bool
        Add one pass that gives the log-likelihood of all rows under the final parameters.
    progress : callable, optional
        Is given one line per pass.
    """
    settings = (plan, tolerance, max_iter, projection)
    state = rows.keep(rows.apply(start_state, survey, *map(rows.put, settings)))
    for _ in range(max_iter):
        statistics = rows.reduce(em_chunk, em_combine, state)
        state = rows.keep(rows.apply(em_step, state, statistics))
        running, total, iterations = rows.get(rows.apply(summary, state))
        if progress is not None:
            progress(f"iteration {iterations}: {total - running} of {total} fits converged")
        if not running:
            break
    if settle:
        state = rows.keep(rows.apply(settle_state, state))
        sums = rows.reduce(score_chunk, score_combine, state)
        state = rows.apply(score_step, state, sums)
    return rows.get(rows.apply(_runs, state))


def _runs(state: State) -> dict[int, list[Run]]:
    return state.runs
