"""Motion of blocks: what is turned by hand is what is told."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mofal.data import concat, from_atoms, to_atoms
from mofal.frameworks import build, find_blocks
from mofal.mechanics import block_motion


@pytest.fixture(scope="module")
def framework():
    structure = build("S_pr", cell="primitive")
    return to_atoms(structure, 0), find_blocks(structure)


def motion_of(atoms, changed, blocks):
    curve = concat([from_atoms([a], system="S_pr") for a in (atoms, changed)])
    volumes = [abs(np.linalg.det(a.cell.array)) for a in (atoms, changed)]
    curve = curve.assign(relaxed_volume=("structure", volumes))
    return block_motion(curve, np.array([0, 1]), blocks)


def members(blocks, block):
    first = np.concatenate([[0], np.cumsum(blocks["block_n_atoms"].values)])
    rows = slice(first[block], first[block + 1])
    return blocks["member_atom"].values[rows], blocks["member_shift"].values[rows]


def turned(atoms, blocks, block, angle, axis=(1, 2, 3)):
    """One block turned about its centre."""
    out = atoms.copy()
    atom, shift = members(blocks, block)
    whole = atoms.positions[atom] + shift @ atoms.cell.array
    axis = np.array(axis) / np.linalg.norm(axis)
    turn = Rotation.from_rotvec(np.radians(angle) * axis)
    moved = turn.apply(whole - whole.mean(axis=0)) + whole.mean(axis=0)
    out.positions[atom] = moved - shift @ atoms.cell.array
    return out


def test_motion__of_one_brick(framework):
    atoms, blocks = framework
    node = [str(r) for r in blocks["role"].values].index("node")
    found = motion_of(atoms, turned(atoms, blocks, node, 7.0), blocks)
    expected = np.zeros(blocks.sizes["block"])
    expected[node] = 7.0
    np.testing.assert_allclose(found["block_rotation"].values[1], expected, atol=1e-5)
    np.testing.assert_allclose(found["block_tilt"].values[0][expected == 0], 0.0, atol=1e-4)


def test_motion__tilt_and_buckling_of_one_linker(framework):
    atoms, blocks = framework
    linker = [str(r) for r in blocks["role"].values].index("linker")
    atom, shift = members(blocks, linker)
    whole = atoms.positions[atom] + shift @ atoms.cell.array
    _, _, axes = np.linalg.svd(whole - whole.mean(axis=0))
    # About the normal of its plane: the axis leaves the line between the bricks by the angle.
    found = motion_of(atoms, turned(atoms, blocks, linker, 5.0, axes[2]), blocks)
    assert found["block_tilt"].values[1, linker] == pytest.approx(5.0, abs=0.05)
    assert found["block_buckling"].values[1, linker] == pytest.approx(0.0, abs=1e-6)
    lifted = atoms.copy()
    lifted.positions[atom] += 0.3 * axes[2]
    bent = motion_of(atoms, lifted, blocks)["block_buckling"].values[1]
    assert bent[linker] > 0.05
    others = np.delete(bent, linker)
    np.testing.assert_allclose(others[np.isfinite(others)], 0.0, atol=1e-6)


def test_motion__a_turned_cell_is_no_motion(framework):
    atoms, blocks = framework
    whole = atoms.copy()
    whole.rotate(20, (1, 1, 0), rotate_cell=True)
    whole.set_cell(1.01 * whole.cell.array, scale_atoms=True)
    found = motion_of(atoms, whole, blocks)
    np.testing.assert_allclose(found["block_rotation"].values, 0.0, atol=1e-5)
    np.testing.assert_allclose(found["lattice_angle"].values, 60.0, atol=1e-6)
