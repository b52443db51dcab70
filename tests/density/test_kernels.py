"""Log-likelihoods equal scikit-learn's and the truth; which form is used is decided by a bound."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.mixture._gaussian_mixture import _estimate_log_gaussian_prob

from mofal.density.em import maximise
from mofal.density.kernels import Evaluator
from mofal.density.parameters import COVARIANCE_TYPES, Parameters
from mofal.density.scoring import evaluator_of, log_likelihood_rows
from mofal.errors import DataError
from tests.density.mixtures import (
    draw,
    exact_log_likelihood,
    random_parameters,
    relative_error,
)

EQUAL = 1e-10
"""Largest |Δℓ| / max(1, |ℓ|) to scikit-learn that is allowed."""
CONDITIONS = (1.0, 1e2, 1e4, 1e6, 1e8)


def _sklearn(p: Parameters, x: np.ndarray) -> np.ndarray:
    joint = _estimate_log_gaussian_prob(x, p.means, p.precisions_cholesky, p.covariance_type)
    return logsumexp(joint + np.log(p.weights), axis=1)


def _scores(evaluator: Evaluator, x: np.ndarray) -> np.ndarray:
    out = np.empty((len(evaluator.models), x.shape[0]))
    evaluator.evaluate(x, out=out)
    return out[0]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", ["full", "tied"])
@pytest.mark.parametrize(("d", "k"), [(8, 10), (16, 40), (3, 5)])
def test_evaluate__equals_sklearn_for_any_condition(kind, d, k, condition):
    p = random_parameters(1, n_components=k, n_features=d, condition=condition, kind=kind)
    x = draw(p, 3001, far=30.0)
    found = log_likelihood_rows(evaluator_of(p), x)
    assert relative_error(found, _sklearn(p, x)) < EQUAL


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_evaluate__equals_extended_precision(kind, condition):
    """For diagonal types scikit-learn itself loses digits; the truth is the reference."""
    p = random_parameters(2, n_components=12, n_features=6, condition=condition, kind=kind)
    x = draw(p, 1501, far=30.0)
    exact = exact_log_likelihood(p, x)
    assert relative_error(log_likelihood_rows(evaluator_of(p), x), exact) < EQUAL
    of_sklearn = relative_error(_sklearn(p, x), exact)
    ours = relative_error(log_likelihood_rows(evaluator_of(p), x), _sklearn(p, x))
    assert ours < EQUAL + 1.01 * of_sklearn


def test_evaluate__product_form_alone_would_fail():
    """The bound is needed: without it an ill-conditioned mixture is wrong by far more."""
    p = random_parameters(1, n_components=10, n_features=8, condition=1e8)
    x = draw(p, 2000)
    exact = exact_log_likelihood(p, x)
    assert relative_error(_scores(evaluator_of(p, form="product"), x), exact) > 1e-9
    assert relative_error(_scores(evaluator_of(p, form="stable"), x), exact) < 1e-10


def test_evaluate__form_follows_the_condition():
    well = random_parameters(1, n_components=10, n_features=8, condition=4.0)
    ill = random_parameters(1, n_components=10, n_features=8, condition=1e8)
    assert evaluator_of(well).n_stable == 0
    assert evaluator_of(ill).n_product == 0


@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_evaluate__forms_mix_within_a_model(kind):
    """One narrow component among wide ones: only that one takes the stable form."""
    wide = random_parameters(3, n_components=9, n_features=5, kind=kind)
    narrow = random_parameters(4, n_components=9, n_features=5, kind=kind)
    pick = np.arange(9) == 4
    shrink = {"full": pick[:, None, None], "diag": pick[:, None], "spherical": pick}[kind]
    p = Parameters(
        kind,
        wide.weights,
        np.where(pick[:, None], narrow.means, wide.means),
        np.where(shrink, 1e-8 * narrow.covariances, wide.covariances),
        np.where(shrink, 1e4 * narrow.precisions_cholesky, wide.precisions_cholesky),
    )
    e = evaluator_of(p)
    assert (e.n_product, e.n_stable) == (8, 1)
    x = np.concatenate([draw(wide, 500), p.means[4] + 1e-4 * draw(narrow, 500)])
    assert relative_error(_scores(e, x), exact_log_likelihood(p, x)) < EQUAL
    probabilities = np.empty((1000, 9))

    def visit(_, rows, responsibilities):
        probabilities[rows] = responsibilities.T

    e.evaluate(x, visit=visit)
    joint = _estimate_log_gaussian_prob(x, p.means, p.precisions_cholesky, kind)
    joint += np.log(p.weights)
    expected = np.exp(joint - logsumexp(joint, axis=1)[:, None])
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_evaluate__far_rows_are_repeated_in_the_stable_form():
    """A row whose own error bound is too large does not keep the product form's result."""
    p = random_parameters(5, n_components=6, n_features=4, condition=30.0)
    e = evaluator_of(p)
    assert e.n_product == 6
    x = draw(p, 400)
    x[:7] *= 1e6
    repeated = []
    plain = e._repeat

    def spy(model, rows, t):
        repeated.append(t.shape[1])
        return plain(model, rows, t)

    e._repeat = spy
    e.tolerance = 1e-14
    found = _scores(e, x)
    assert sum(repeated) > 0
    assert relative_error(found, exact_log_likelihood(p, x)) < 1e-13


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_evaluate__error_bound_holds(kind, seed):
    """Row by row, the product form errs by no more than the bound that decides about it.

    Rounding of the rows themselves, which no form avoids, is allowed for separately.
    """
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 17))
    p = random_parameters(
        seed, n_components=5, n_features=d, condition=10 ** rng.uniform(0, 4), kind=kind
    )
    x = draw(p, 600, far=10.0)
    e = evaluator_of(p, form="product")
    responsibilities = np.empty((5, 600))

    def visit(_, rows, r):
        responsibilities[:, rows] = r

    out = np.empty((1, 600))
    e.evaluate(x, out=out, visit=visit)
    centred = x - e.basis.centre
    z = centred * e.basis.forward if e.basis.diagonal else centred @ e.basis.forward.T
    a, b, c = e.amplification @ responsibilities[e.shares[0].order]
    bound = a * (z**2).sum(1) + b * np.sqrt((z**2).sum(1)) + c
    exact = exact_log_likelihood(p, x)
    unavoidable = np.abs(_scores(evaluator_of(p, form="stable"), x) - exact)
    error = np.abs(out[0] - exact)
    assert (error <= bound + 4.0 * unavoidable.max()).all()


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_maximise__both_forms_give_the_same_parameters(kind):
    p = random_parameters(7, n_components=6, n_features=4, kind=kind)
    x = draw(p, 3000).astype(np.float32)
    w = np.random.default_rng(0).uniform(0.5, 2.0, size=3000)
    results = []
    for form in ("product", "stable"):
        e = evaluator_of(p, form=form)
        statistics = e.new_statistics()
        e.evaluate(x, weights=w, statistics=statistics)
        results.append((statistics.log_likelihood[0], maximise(e, 0, statistics, np.zeros(4))))
    (la, a), (lb, b) = results
    assert la == pytest.approx(lb, rel=1e-12)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-10)


def test_statistics__add_up_over_any_cut():
    p = random_parameters(8, n_components=4, n_features=3)
    x = draw(p, 1000)
    e = evaluator_of(p)
    whole = e.new_statistics()
    e.evaluate(x, statistics=whole)
    parts = []
    for rows in np.split(np.arange(1000), [1, 333, 334, 900]):
        part = e.new_statistics()
        e.evaluate(x[rows], statistics=part)
        parts.append(part)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.weight == whole.weight
    np.testing.assert_allclose(total.product, whole.product, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(total.log_likelihood, whole.log_likelihood, rtol=1e-13)


def test_evaluate__several_models_at_once():
    """Models of different sizes share the columns and give what each gives alone."""
    models = [random_parameters(s, n_components=k, n_features=4) for s, k in ((1, 2), (2, 7))]
    x = draw(models[1], 700)
    both = Evaluator(models, evaluator_of(models[1]).basis)
    out = np.empty((2, 700))
    both.evaluate(x, out=out)
    for row, p in zip(out, models):
        assert relative_error(row, exact_log_likelihood(p, x)) < EQUAL


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("condition", [1.0, 1e8])
def test_evaluate__names_the_row_that_is_not_finite(bad, condition):
    p = random_parameters(1, n_components=5, n_features=3, condition=condition)
    x = draw(p, 5000)
    x[4321, 1] = bad
    with pytest.raises(DataError, match="row 4321 contains NaN or infinity"):
        log_likelihood_rows(evaluator_of(p), x)


def test_evaluate__values_near_the_end_of_the_range_are_minus_infinity_and_not_nan():
    p = random_parameters(1, n_components=5, n_features=3)
    x = draw(p, 50)
    x[3] = 1e200
    found = log_likelihood_rows(evaluator_of(p), x)
    assert found[3] == -np.inf
    assert np.isfinite(np.delete(found, 3)).all()


def test_evaluate__component_of_weight_zero():
    p = random_parameters(1, n_components=4, n_features=3)
    q = p.with_weights(np.array([0.5, 0.0, 0.25, 0.25]))
    x = draw(p, 300)
    assert relative_error(_scores(evaluator_of(q), x), exact_log_likelihood(q, x)) < EQUAL


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_evaluate__components_far_apart_in_units_of_their_widths(kind):
    """A million widths between components: the mean is subtracted before anything is multiplied."""
    p = random_parameters(6, n_components=6, n_features=5, kind=kind, spread=1e6)
    x = draw(p, 600)
    exact = exact_log_likelihood(p, x)
    assert relative_error(log_likelihood_rows(evaluator_of(p), x), exact) < 1e-14
    assert relative_error(_sklearn(p, x), exact) > 1e-12
    e = evaluator_of(p)
    statistics = e.new_statistics()
    e.evaluate(x, statistics=statistics)
    found = maximise(e, 0, statistics, np.zeros(5))
    owner = np.linalg.norm(x[:, None] - p.means, axis=2).argmin(1)
    for k in range(6):
        own = x[owner == k]
        np.testing.assert_allclose(found.means[k], own.mean(0), rtol=1e-13)
        if kind == "full":
            near = own - p.means[k]
            np.testing.assert_allclose(found.covariances[k], np.cov(near.T, bias=True), rtol=1e-9)
