"""Guessing or knowing: what was fitted on is inside, what was never met is outside."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from mofal.data import from_atoms
from mofal.density import PerElementDensity
from mofal.errors import ConfigError
from mofal.mechanics.domain import describe_domain, domain_of

from .crystals import fcc_argon


class Volumes:
    """A potential whose features are the volume per atom and a jitter, so that all is known."""

    def featurize(self, structures):
        rng = np.random.default_rng(0)
        index = structures["structure_index"].values
        volume = np.abs(np.linalg.det(structures["cell"].values))[index] / 32
        values = np.column_stack([volume, np.zeros(len(index))])
        values += 0.5 * rng.standard_normal(values.shape)
        return structures.assign(features=(("atom", "feature"), values.astype(np.float32)))


def frames(scales):
    out = []
    for s in scales:
        atoms = fcc_argon(2)
        atoms.set_cell(s ** (1 / 3) * atoms.cell.array, scale_atoms=True)
        out.append(atoms)
    return from_atoms(out, system="argon")


def test_domain__is_where_the_density_was_fitted():
    potential = Volumes()
    learnt = potential.featurize(frames(np.linspace(0.97, 1.03, 30)))
    density = PerElementDensity(n_components=2, random_state=0)
    density.fit(learnt["features"].values.astype(float), learnt["numbers"].values)
    scales = np.array([0.8, 0.98, 1.0, 1.02, 1.25])
    found = domain_of(frames(scales), potential, density)
    np.testing.assert_array_equal(found.known, [False, True, True, True, False])
    assert found.share[0] > 0.9
    assert found.log_likelihood[0] < found.log_likelihood[2] - 2
    lines = describe_domain(37.2 * scales, found)
    assert "OUTSIDE" in lines[0]
    assert "29.8, 46.5" in lines[0]
    assert "inside" in describe_domain(scales[1:3], found.select(np.array([1, 2])))[0]
    assert isinstance(learnt, xr.Dataset)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_domain__refuses_other_thresholds(threshold):
    with pytest.raises(ConfigError):
        domain_of(frames([1.0]), Volumes(), None, threshold=threshold)
