"""What tests/data/format-1/labels.zarr holds. Neither that group nor this file may ever change.

The group was written by the first version of mofal that had format 1::

    write_group(content(), "tests/data/format-1/labels.zarr", kind="labels", rows_per_shard=4)
"""

from __future__ import annotations

import numpy as np
import xarray as xr

TEXT = np.dtypes.StringDType()
NAN = np.nan


def content() -> xr.Dataset:
    """A piece of crystal, a cluster cut from it, and a label that failed."""
    return xr.Dataset(
        {
            "numbers": ("atom", np.array([40, 8, 1, 6, 8, 8, 1, 72], np.int32)),
            "positions": (
                ("atom", "xyz"),
                np.array(
                    [
                        [0.0, -0.0, 2.496],
                        [0.1 + 0.2, 1 / 3, -1e-17],
                        [5e-324, 1.0, -1.0],
                        [0.0, 0.0, 0.0],
                        [1.19, 0.0, 0.0],
                        [-0.66, 1.17, 0.0],
                        [-0.5, -1.0, 1e300],
                        [1.0, 2.0, 3.0],
                    ]
                ),
            ),
            "cell": (
                ("structure", "cell_vector", "xyz"),
                np.array([np.diag([20.75, 20.75, 0.0]), np.zeros((3, 3)), np.eye(3) * 7]),
            ),
            "pbc": (
                ("structure", "cell_vector"),
                np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool),
            ),
            "n_atoms": ("structure", np.array([3, 4, 1])),
            "structure_index": ("atom", np.array([0, 0, 0, 1, 1, 1, 1, 2])),
            "structure_id": (
                "structure",
                np.array(
                    ["690c2875272d21f567da", "4082424ae00e9a762127", "cec5400af40fa3e496bd"], TEXT
                ),
            ),
            "system": ("structure", np.array(["S_pr", "UiO-66 Å 金属", ""], TEXT)),
            "parent": ("structure", np.array(["", "690c2875272d21f567da", ""], TEXT)),
            "region": ("atom", np.array([0, 0, 0, 0, 1, 1, 2, 0], np.int8)),
            "parent_atom": ("atom", np.array([0, 1, 2, 0, 1, 2, -1, 0])),
            "charge": ("structure", np.array([0, -1, 0], np.int32)),
            "n_electrons": ("structure", np.array([49, 24, -1])),
            "masked": ("atom", np.array([0, 0, 0, 0, 0, 0, 1, 1], bool)),
            "energy": ("structure", np.array([-1234.5678901234567, -0.1, NAN])),
            "forces": (
                ("atom", "xyz"),
                np.array([[0.25, -0.0, 1e-9]] * 6 + [[NAN] * 3] * 2),
            ),
            "stress": (
                ("structure", "voigt"),
                np.array([[1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3], [NAN] * 6, [NAN] * 6]),
            ),
            "status": ("structure", np.array(["converged", "converged", "timed_out"], TEXT)),
            "reason": ("structure", np.array(["", "", 'no "answer"\nafter 60 s'], TEXT)),
        },
        attrs={
            "level_of_theory": '{"method": "GFN1-xTB"}',
            "level_hash": "0123456789abcdef0123",
            "isolated_atom_energies": '{"H": -10.9, "Zr": -30.25}',
        },
    )
