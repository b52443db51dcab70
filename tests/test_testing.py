"""The conformance checks accept what ships with mofal and refuse what breaks a protocol."""

from __future__ import annotations

import numpy as np
import pytest

from mofal import testing
from mofal.data import validate


def test_simulate_structures__is_sane_and_reproducible() -> None:
    one, other = testing.simulate_structures(seed=1), testing.simulate_structures(seed=1)
    validate(one, "structures")
    assert one["structure_id"].values.tolist() == other["structure_id"].values.tolist()
    assert one["n_atoms"].values.tolist() == [8, 9, 10]


@pytest.mark.parametrize("spec", ["gfn1-xtb", "ase:ase.calculators.emt:EMT"])
def test_check_reference__accepts(spec: str) -> None:
    testing.check_reference(spec)


@pytest.mark.slow
def test_check_potential__accepts_nequip_and_refuses_a_liar() -> None:
    from mofal.potential import create

    potential = create("tiny", ["H", "C", "O"], seed=0)
    testing.check_potential(potential)

    class Liar:
        def __getattr__(self, name: str) -> object:
            return getattr(potential, name)

        elements, model_hash = potential.elements, potential.model_hash
        feature_dim, r_max = potential.feature_dim, potential.r_max
        featurize, calculator, save = potential.featurize, potential.calculator, potential.save

        def evaluate(self, ds: object) -> object:
            out = potential.evaluate(ds)  # type: ignore[arg-type]
            return out.assign(forces=out["forces"] * np.array([1.0, 2.0, 1.0]))

    with pytest.raises(AssertionError, match=r"forces|energy falls"):
        testing.check_potential(Liar())  # type: ignore[arg-type]
