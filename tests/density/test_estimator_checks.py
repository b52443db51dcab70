"""scikit-learn's own checks of estimators: all pass, so the list of expected failures is empty."""

from __future__ import annotations

import warnings

from sklearn.utils.estimator_checks import parametrize_with_checks

from mofal.density import PCA, GaussianMixture


def _expected_to_fail(estimator: object) -> dict[str, str]:
    """Checks that are not for us, with the argument why. There are none."""
    return {}


@parametrize_with_checks(
    [GaussianMixture(), PCA()], expected_failed_checks=_expected_to_fail, xfail_strict=True
)
def test_estimator__keeps_the_conventions_of_sklearn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
