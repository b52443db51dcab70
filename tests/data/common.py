"""Datasets for the tests of this room: drawn by hypothesis, or made from a seed."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import xarray as xr
from hypothesis.extra import numpy as hnp

from mofal.data import STATUSES, make_structures

AWKWARD_TEXT = (
    "",
    " ",
    "  two  spaces ",
    "12",
    "1e5",
    "123e4567890123456789",
    "00000000000000000012",
    "1 2 3",
    "1,2",
    "nan",
    "-inf",
    "T",
    "F T",
    "true",
    'quoted "word"',
    "it's",
    "back\\slash\\",
    '\\"',
    "a=b c=d",
    "{curly} [square]",
    "_JSON 1",
    "_JSON",
    "line\nbreak\r\n",
    "tab\tand\x00zero",
    "UiO-66 Å Ω 金属 🧊",
    "\u2028\x85",
    "S_pr^hf",
    "#!%@;,:",
    "pbc",
)

floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=64),
    st.sampled_from([0.0, -0.0, 5e-324, -1e-310, 1.7976931348623157e308, 0.1 + 0.2, 1e22, 1e16]),
)
texts = st.one_of(
    st.sampled_from(AWKWARD_TEXT),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)


def arrays(dtype: Any, shape: Any, elements: Any) -> Any:
    return hnp.arrays(dtype, shape, elements=elements, fill=st.nothing())


@st.composite
def datasets(draw: Any, *, labels: bool | None = None, max_structures: int = 4) -> xr.Dataset:
    """Structures with any finite numbers, any periodicity and any text; labels if asked for."""
    n_atoms = draw(st.lists(st.integers(1, 4), min_size=1, max_size=max_structures))
    n, total = len(n_atoms), sum(n_atoms)

    def per_structure(elements: Any) -> list[Any]:
        return draw(st.lists(elements, min_size=n, max_size=n))

    more: dict[str, Any] = {}
    if draw(st.booleans()):
        more["region"] = draw(arrays(np.int8, total, st.integers(0, 2)))
        more["parent_atom"] = draw(arrays(np.int64, total, st.integers(-1, 2**31 - 1)))
        more["charge"] = draw(arrays(np.int32, n, st.integers(-(2**31), 2**31 - 1)))
        more["n_electrons"] = draw(arrays(np.int64, n, st.integers(-1, 2**63 - 1)))
    if draw(st.booleans()):
        more["masked"] = draw(arrays(np.bool_, total, st.booleans()))
        more["split"] = per_structure(texts)
        more["cycle"] = draw(arrays(np.int64, n, st.integers(0, 2**62)))
    attrs = {}
    if draw(st.booleans()) if labels is None else labels:
        status = per_structure(st.sampled_from([*STATUSES, ""]))
        certain = [s == "converged" or (s != "" and draw(st.booleans())) for s in status]
        energy = [draw(floats) if there else np.nan for there in certain]
        holes = draw(arrays(np.bool_, (total, 3), st.booleans()))
        no_stress = draw(arrays(np.bool_, (n, 6), st.booleans()))
        unlabelled = np.array([s == "" for s in status])
        holes[np.repeat(unlabelled, n_atoms)] = True
        no_stress[unlabelled] = True
        more |= {
            "energy": energy,
            "forces": np.where(holes, np.nan, draw(arrays(np.float64, (total, 3), floats))),
            "stress": np.where(no_stress, np.nan, draw(arrays(np.float64, (n, 6), floats))),
            "status": status,
            "reason": per_structure(texts),
            "wall_time": draw(arrays(np.float64, n, st.floats(0, 1e9))),
        }
        attrs = {
            "level_of_theory": draw(texts.filter(bool)),
            "level_hash": draw(texts.filter(bool)),
            "isolated_atom_energies": json.dumps({"H": draw(floats)}),
        }
    ds = make_structures(
        draw(arrays(np.int32, total, st.integers(1, 118))),
        draw(arrays(np.float64, (total, 3), floats)),
        n_atoms=n_atoms,
        cell=draw(arrays(np.float64, (n, 3, 3), floats)) * draw(st.sampled_from([0.0, 1.0])),
        pbc=draw(arrays(np.bool_, (n, 3), st.booleans())),
        system=per_structure(texts),
        parent=per_structure(texts),
        **more,
    )
    return ds.assign_attrs(attrs)


def labelled(n: int = 7, *, seed: int = 0, atoms: int = 9) -> xr.Dataset:
    """Labelled clusters of 1 to `atoms` atoms."""
    rng = np.random.default_rng(seed)
    n_atoms = rng.integers(1, atoms + 1, n)
    total = int(n_atoms.sum())
    forces = rng.normal(size=(total, 3))
    forces[rng.random(total) < 0.3] = np.nan
    ds = make_structures(
        rng.choice([1, 6, 8, 40], total),
        rng.normal(scale=4, size=(total, 3)),
        n_atoms=n_atoms,
        cell=rng.normal(scale=9, size=(n, 3, 3)),
        pbc=rng.random((n, 3)) < 0.5,
        system=[f"system {k % 3}" for k in range(n)],
        parent=[f"{k:020x}" for k in range(n)],
        region=rng.integers(0, 3, total),
        parent_atom=rng.integers(-1, 999, total),
        energy=rng.normal(scale=1e4, size=n),
        forces=forces,
        stress=rng.normal(size=(n, 6)),
        status=["converged"] * n,
        reason=[""] * n,
        wall_time=rng.random(n),
    )
    return ds.assign_attrs(
        level_of_theory='{"method": "test"}',
        level_hash="0123456789abcdef0123",
        isolated_atom_energies='{"C": -1.5, "H": -0.5, "O": -2.25, "Zr": -40.125}',
    )


def features(n: int = 40, *, seed: int = 0, width: int = 5) -> xr.Dataset:
    """Features of `n` structures of 1 to 30 atoms."""
    rng = np.random.default_rng(seed)
    n_atoms = rng.integers(1, 31, n)
    total = int(n_atoms.sum())
    return xr.Dataset(
        {
            "numbers": ("atom", rng.choice([1, 6, 8, 40], total).astype(np.int32)),
            "n_atoms": ("structure", n_atoms.astype(np.int64)),
            "structure_index": ("atom", np.repeat(np.arange(n), n_atoms)),
            "features": (("atom", "feature"), rng.normal(size=(total, width)).astype(np.float32)),
        },
        attrs={"model_hash": "ab" * 10},
    )
