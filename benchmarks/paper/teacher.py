"""A level of theory that costs nothing, for the tests: a potential that travels with mofal."""

from __future__ import annotations

from typing import Any


def seed_potential() -> Any:
    """ASE calculator of the seed potential (its type for Hf has never been trained)."""
    from mofal.campaign.examples import seed_place
    from mofal.potential import load

    return load(seed_place("uio66-gfn1") / "model").calculator()
