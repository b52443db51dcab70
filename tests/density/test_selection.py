"""The search finds how many components there are, keeps its curve, and stops when it is clear."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture as Reference

import mofal.density.selection as selection
from mofal.density import GaussianMixture, select_components
from mofal.errors import DataError
from tests.density.mixtures import draw, random_parameters

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def x():
    p = random_parameters(3, n_components=4, n_features=3, spread=8.0)
    return draw(p, 4000)


@pytest.mark.parametrize("criterion", ["bic", "aic"])
def test_select_components__finds_the_number(x, criterion):
    model, curve = select_components(
        x, criterion=criterion, max_components=12, random_state=0, patience=2
    )
    assert curve.best == model.n_components
    if criterion == "bic":
        assert model.n_components == 4
    assert curve.criterion == criterion
    assert model.bic(x) == pytest.approx(min(curve.bic), rel=1e-9) or criterion == "aic"


def test_select_components__curve_holds_what_each_model_says_of_itself(x):
    """Criteria are those of the final parameters, as `bic` and `aic` of a fitted model."""
    _, curve = select_components(x, counts=[1, 3], random_state=7)
    assert curve.n_components == [1, 3]
    seeds = np.random.RandomState(7).randint(2**31 - 1, size=2)
    for i, k in enumerate(curve.n_components):
        model = GaussianMixture(k, random_state=7).fit(x)
        assert seeds.size == 2
        assert curve.bic[i] == pytest.approx(model.bic(x), rel=1e-9)
        assert curve.aic[i] == pytest.approx(model.aic(x), rel=1e-9)
        assert curve.log_likelihood[i] == pytest.approx(model.score(x) * len(x), rel=1e-9)
        assert curve.n_iter[i] == model.n_iter_
    assert curve.bic[0] == pytest.approx(Reference(1).fit(x).bic(x), rel=1e-9)


def test_select_components__stops_when_it_is_clear(x):
    _, curve = select_components(x, max_components=30, patience=3, batch=2, random_state=0)
    assert max(curve.n_components) <= 4 + 3 + 1
    assert curve.n_components == list(range(1, len(curve.n_components) + 1))
    _, whole = select_components(x, max_components=9, patience=100, random_state=0)
    assert whole.n_components == list(range(1, 10))


def test_select_components__candidates_share_the_passes(x, monkeypatch):
    """Four candidates take as many passes as the slowest of them, not as all together."""
    passes = 0
    plain = selection.fit_runs

    def counting(rows, *args, **kwargs):
        reduce = rows.reduce

        def spy(*a):
            nonlocal passes
            passes += 1
            return reduce(*a)

        monkeypatch.setattr(rows, "reduce", spy)
        try:
            return plain(rows, *args, **kwargs)
        finally:
            monkeypatch.setattr(rows, "reduce", reduce)

    monkeypatch.setattr(selection, "fit_runs", counting)
    _, curve = select_components(x, counts=[2, 3, 4, 5], batch=4, random_state=0, tol=1e-5)
    assert passes == max(curve.n_iter) + 1
    assert passes < sum(curve.n_iter)


def test_select_components__dask_and_weights(x):
    half = np.ones(len(x))
    half[::2] = 0.0
    lazy = da.from_array(x, chunks=(700, 3))
    model, curve = select_components(lazy, sample_weight=half, max_components=6, random_state=0)
    _, expected = select_components(x[1::2], max_components=6, random_state=0)
    assert model.n_components == 4
    assert curve.bic[0] == pytest.approx(expected.bic[0], rel=1e-9)


def test_select_components__fewer_rows_than_candidates():
    rows = np.random.default_rng(0).normal(size=(5, 2))
    _, curve = select_components(rows, max_components=20, random_state=0)
    assert max(curve.n_components) <= 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "cic"}, "criterion='cic'"),
        ({"counts": [0, 1]}, "expected whole numbers >= 1"),
        ({"counts": []}, "expected whole numbers >= 1"),
        ({"sample_weight": np.zeros(4000)}, "every row is zero"),
    ],
)
def test_select_components__settings_that_cannot_be_meant(x, settings, message):
    with pytest.raises(DataError, match=message):
        select_components(x, **settings)


def test_curve__survives_json(x):
    import json

    _, curve = select_components(x, counts=[1, 2], random_state=0)
    assert selection.Curve(**json.loads(json.dumps(curve.to_dict()))) == curve
