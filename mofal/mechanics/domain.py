"""Guessing or knowing: is a structure of a curve among what the potential has learnt?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

TOLERATED = 5.0
"""Times the share that is expected of known structures before a structure counts as unknown."""


@dataclass(frozen=True)
class Domain:
    """How familiar each structure is.

    Attributes
    ----------
    share : (n,) array
        Share of atoms whose quantile lies below the threshold; `threshold` where all is known.
    log_likelihood : (n,) array
        Mean over atoms.
    threshold : float
        Quantile of the log-likelihood, per element.
    """

    share: NDArray[np.float64]
    log_likelihood: NDArray[np.float64]
    threshold: float

    @property
    def known(self) -> NDArray[np.bool_]:
        """Structures with no more unfamiliar atoms than `TOLERATED` times the expected share."""
        return self.share <= TOLERATED * self.threshold

    def select(self, rows: NDArray) -> Domain:
        """The domain of some of the structures."""
        return Domain(self.share[rows], self.log_likelihood[rows], self.threshold)


def domain_of(
    structures: xr.Dataset, potential: Any, density: Any, *, threshold: float = 0.01
) -> Domain:
    """Score structures with a density of the potential's features.

    Parameters
    ----------
    structures : Dataset of structures
    potential : Potential
        Whose features the density was fitted on.
    density : PerElementDensity
        Calibrated, so that it knows quantiles.
    threshold : float
        Quantile below which an atom counts as unfamiliar.
    """
    if not 0 < threshold < 0.2:
        raise ConfigError(f"the threshold is {threshold}, expected a quantile between 0 and 0.2")
    features = potential.featurize(structures)
    numbers = features["numbers"].values
    values = np.asarray(features["features"].values, np.float64)
    likelihood = np.asarray(density.score_samples(values, numbers))
    quantile = np.asarray(density.quantile(likelihood, numbers))
    index = features["structure_index"].values
    n = features.sizes["structure"]
    atoms = np.bincount(index, minlength=n)
    low = np.bincount(index, weights=(quantile < threshold).astype(float), minlength=n)
    with np.errstate(invalid="ignore"):
        total = np.bincount(index, weights=likelihood, minlength=n)
    return Domain(low / atoms, total / atoms, threshold)


def describe_domain(volume: NDArray, domain: Domain) -> list[str]:
    """One verdict in words, and a row per volume."""
    known = domain.known
    if known.all():
        lines = ["  inside what the potential has learnt, at every volume"]
    elif not known.any():
        lines = ["  OUTSIDE what the potential has learnt, at every volume: a guess"]
    else:
        text = ", ".join(f"{v:.1f}" for v in volume[~known])
        lines = [f"  OUTSIDE what the potential has learnt, a guess, at {text} Å³"]
    start = int(np.argmax(domain.log_likelihood))
    for v, share, value in zip(volume, domain.share, domain.log_likelihood):
        drift = value - domain.log_likelihood[start]
        lines.append(
            f"    {v:10.2f} Å³: {100 * share:5.1f} % of atoms below the {domain.threshold:g} "
            f"quantile, log-likelihood per atom {drift:+.2f}"
        )
    return lines
