"""Narrow components: the product form says which of them matter, and nothing else is lost."""

from __future__ import annotations

import numpy as np
import pytest

from mofal.density import kernels
from mofal.density.em import maximise
from mofal.density.kernels import Evaluator
from mofal.density.parameters import COVARIANCE_TYPES, make
from mofal.density.scoring import evaluator_of, log_likelihood_rows, responsibility_rows
from tests.density.mixtures import draw, exact_log_likelihood, random_parameters, relative_error


@pytest.fixture
def counted(monkeypatch):
    """How many pairs of component and row were evaluated, block by block."""
    pairs: list[int] = []
    plain = kernels.evaluate_entries

    def spy(*args):
        entries = plain(*args)
        pairs.append(entries.rows.size)
        return entries

    sparse = kernels.evaluate_pairs

    def spy_on_sparse(*args):
        found = sparse(*args)
        pairs.append(found.rows.size)
        return found

    monkeypatch.setattr(kernels, "evaluate_entries", spy)
    monkeypatch.setattr(kernels, "evaluate_pairs", spy_on_sparse)
    return pairs


def _narrow(kind: str, **settings):
    p = random_parameters(
        1, n_components=20, n_features=6, condition=1e6, kind=kind, spread=3.0, **settings
    )
    return p, draw(p, 3000)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_evaluate__few_pairs_and_nothing_lost(kind, counted):
    p, x = _narrow(kind)
    e = evaluator_of(p)
    assert e.guided
    exact = exact_log_likelihood(p, x)
    assert relative_error(log_likelihood_rows(e, x), exact) < 1e-11
    assert 1000 <= sum(counted) < 0.2 * 20 * 3000
    stable = responsibility_rows(evaluator_of(p, form="stable"), x)
    np.testing.assert_allclose(responsibility_rows(e, x), stable, atol=1e-10)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_maximise__few_pairs_give_the_parameters_of_all(kind, weighted, counted):
    p, x = _narrow(kind)
    w = np.random.default_rng(0).uniform(0.5, 2.0, size=3000) if weighted else None
    found = []
    for form in ("auto", "stable"):
        e = Evaluator([p], evaluator_of(p).basis, form=form)
        statistics = e.new_statistics()
        e.evaluate(x, weights=w, statistics=statistics)
        found.append((statistics.log_likelihood[0], maximise(e, 0, statistics, np.zeros(6))))
    assert counted
    (la, a), (lb, b) = found
    assert la == pytest.approx(lb, rel=1e-12)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_evaluate__far_rows_take_the_whole_block(kind, counted):
    """Where the product form errs by more than it may, it does not guide."""
    p, x = _narrow(kind)
    x[::20] *= 1e5
    exact = exact_log_likelihood(p, x)
    assert relative_error(log_likelihood_rows(evaluator_of(p), x), exact) < 1e-10
    # Full covariances are evaluated by pairs all the same, all of those of the rows far out.
    assert 20 * 150 < sum(counted) < 0.1 * 20 * 3000 if kind == "full" else not counted
    x[7] = 1e200
    scores = log_likelihood_rows(evaluator_of(p), x)
    assert scores[7] == -np.inf
    assert relative_error(np.delete(scores, 7), np.delete(exact, 7)) < 1e-10


def test_evaluate__overlapping_components_take_the_whole_block(counted):
    """Sheets through one point: most of them matter to most rows that are near it."""
    p = random_parameters(1, n_components=8, n_features=3, condition=1e6, spread=0.0)
    x = 1e-3 * draw(p, 1500)
    assert evaluator_of(p).guided
    found = log_likelihood_rows(evaluator_of(p), x)
    assert relative_error(found, exact_log_likelihood(p, x)) < 1e-10
    assert not counted


def test_evaluate__pairs_of_several_models_and_of_mixed_forms(counted):
    narrow, x = _narrow("full")
    wide = random_parameters(2, n_components=7, n_features=6)
    both = Evaluator([wide, narrow, wide], evaluator_of(narrow).basis)
    assert both.guided
    assert both.n_product == 14
    out = np.empty((3, 3000))
    both.evaluate(x, out=out)
    assert counted
    for row, p in zip(out, (wide, narrow, wide)):
        assert relative_error(row, exact_log_likelihood(p, x)) < 1e-9


def test_evaluate__one_row_and_rows_that_are_not_finite(counted):
    p, x = _narrow("full")
    alone = log_likelihood_rows(evaluator_of(p), x[:1])
    assert alone[0] == pytest.approx(float(exact_log_likelihood(p, x[:1])[0]), rel=1e-11)
    x[2500, 3] = np.nan
    with pytest.raises(ValueError, match="row 2500 contains NaN"):
        log_likelihood_rows(evaluator_of(p), x)


# ------------------------------------------------------------------ components of ordinary shape
def _ordinary(n_components: int = 24, n_features: int = 6, *, n: int = 3000):
    """Covariances L Lᵀ with L = 1 + 0.4 N(0, 1): some fit the product form, some do not."""
    rng = np.random.default_rng(3)
    k, d = n_components, n_features
    means = 6.0 * rng.normal(size=(k, d)) + 50.0
    lower = np.eye(d) + 0.4 * rng.normal(size=(k, d, d))
    p = make("full", rng.dirichlet(np.full(k, 5.0)), means, lower @ np.swapaxes(lower, 1, 2))
    return p, draw(p, n)


@pytest.mark.parametrize("weighted", [False, True])
def test_evaluate__ordinary_shapes_by_pairs_of_both_forms(weighted, counted):
    """Scores against 80 bits, parameters against all pairs in the stable form."""
    p, x = _ordinary()
    w = np.random.default_rng(0).uniform(0.5, 2.0, size=3000) if weighted else None
    e = Evaluator([p], evaluator_of(p).basis)
    assert 0 < e.n_product < 24  # both kinds are gathered
    assert relative_error(log_likelihood_rows(e, x), exact_log_likelihood(p, x)) < 1e-12
    found = []
    for form in ("auto", "stable"):
        e = Evaluator([p], evaluator_of(p).basis, form=form)
        statistics = e.new_statistics()
        e.evaluate(x, weights=w, statistics=statistics)
        found.append((statistics, maximise(e, 0, statistics, np.zeros(6))))
    assert 3000 <= counted[-1] < 0.1 * 24 * 3000
    (a, pa), (b, pb) = found
    assert a.weight == pytest.approx(b.weight)
    assert a.log_likelihood[0] == pytest.approx(b.log_likelihood[0], rel=1e-12)
    for name in ("weights", "means", "covariances"):
        np.testing.assert_allclose(getattr(pa, name), getattr(pb, name), rtol=1e-8, atol=1e-12)


def test_evaluate__ordinary_shapes_of_two_models_with_rows_far_out(counted):
    """A row for which the product form says nothing is met by every component of every model."""
    p, x = _ordinary()
    x[7] = 1e200
    x[11] = 1e7
    other = make("full", p.weights[::-1], p.means + 0.2, p.covariances)
    both = Evaluator([p, other], evaluator_of(p).basis)
    out = np.empty((2, 3000))
    statistics = both.new_statistics()
    both.evaluate(x, out=out, statistics=statistics)
    assert counted
    for row, model in zip(out, both.models):
        exact = exact_log_likelihood(model, x)
        assert row[7] == -np.inf
        kept = np.arange(3000) != 7
        assert relative_error(row[kept], exact[kept]) < 1e-10
    assert np.isfinite(statistics.product).all()
    assert np.isfinite(statistics.stable).all()
    x[2100, 2] = np.inf
    with pytest.raises(ValueError, match="row 2100 contains NaN or infinity"):
        both.evaluate(x, out=out)
