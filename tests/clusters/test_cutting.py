"""Clusters: composition, geometry, electrons, and what is refused."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from ase.data import covalent_radii

from mofal.clusters import blueprint, check_bonds, cut, random_cores
from mofal.clusters.electrons import electron_reasons, unpaired_electrons
from mofal.data import (
    concat,
    make_structures,
    open_group,
    read,
    to_atoms,
    validate,
    write,
    write_group,
)
from mofal.errors import ConfigError, DataError
from mofal.frameworks import build, find_blocks
from tests.clusters.common import (
    atoms_of,
    benchmark,
    blocks_dataset,
    cluster,
    cores_of,
    count_tasks,
    fingerprint,
    first_of,
    shaken,
    system,
    with_positions,
)
from tests.helpers import assert_same_bits, chunked

EXACT = 1e-12
GEOMETRY = 1e-9

# role of the core, shells -> atoms, electrons (method.md, Systems)
PRISTINE = [
    ("node", 0, 66, 584),
    ("node", 1, 186, 1064),
    ("linker", 0, 12, 42),
    ("linker", 1, 140, 1206),
]


@pytest.mark.parametrize("cell", ["primitive", "conventional"])
@pytest.mark.parametrize(("role", "shells", "n_atoms", "n_electrons"), PRISTINE)
def test_cut__pristine_counts(cell, role, shells, n_atoms, n_electrons):
    ds, blocks = system("S_pr", cell)
    core = first_of(blocks, role)
    clusters, refused = cut(ds, {"S_pr": blocks}, cores_of([0], [core]), shells=shells)
    assert refused.sizes["core"] == 0
    assert clusters["n_atoms"].values.tolist() == [n_atoms]
    assert clusters["n_electrons"].values.tolist() == [n_electrons]
    assert clusters["charge"].values.tolist() == [0]
    assert clusters["n_unpaired"].values.tolist() == [0]
    assert not clusters["open_shell"].values.any()


@pytest.mark.parametrize("cell", ["primitive", "conventional"])
def test_cut__linker_defect_large(cell):
    ds, blocks = system("S_ld", cell)
    n_linkers = 10 if cell == "primitive" else 11
    core = int(np.flatnonzero(blocks["coordination"].values == n_linkers)[0])
    clusters, _ = cut(ds, {"S_ld": blocks}, cores_of([0], [core]))
    expected = (166, 984) if cell == "primitive" else (176, 1024)
    assert (int(clusters["n_atoms"][0]), int(clusters["n_electrons"][0])) == expected


def test_cut__hafnium_adds_32_electrons_per_atom():
    ds, blocks = system("S_pr^hf")
    clusters, _ = cut(ds, {"S_pr^hf": blocks}, cores_of([0], [first_of(blocks, "node")]), shells=0)
    assert int(clusters["n_electrons"][0]) == 584 + 6 * 32


def test_cut__is_a_structures_dataset():
    ds, blocks = system("S_ld", "primitive")
    clusters, _ = cut(ds, {"S_ld": blocks}, cores_of([0, 0], [0, 1]))
    validate(clusters, "structures")
    assert not clusters["pbc"].values.any()
    assert not clusters["cell"].values.any()
    assert [str(s) for s in clusters["system"].values] == ["S_ld", "S_ld"]
    assert {str(s) for s in clusters["parent"].values} == {str(ds["structure_id"].values[0])}
    assert clusters["core_index"].values.tolist() == [0, 1]
    assert "formal charges" in clusters.attrs["electrons"]
    frames = to_atoms(clusters)
    assert [len(f) for f in frames] == clusters["n_atoms"].values.tolist()
    assert frames[0].info["n_electrons"] == int(clusters["n_electrons"][0])


@pytest.mark.parametrize("name", ["S_pr", "S_ld", "S_reo", "S_scu", "UiO-67", "UiO-66-NH2"])
def test_cut__every_block_once_and_connected(name):
    """Connectivity is proven from distances alone, with networkx."""
    ds, blocks = system(name)
    n = blocks.sizes["block"]
    clusters, refused = cut(ds, {name: blocks}, cores_of([0] * n, range(n)))
    assert refused.sizes["core"] == 0
    for k in range(n):
        one = cluster(clusters, k)
        z, x = one["numbers"], one["positions"]
        distance = np.linalg.norm(x[:, None] - x[None], axis=2)
        limit = 1.25 * (covalent_radii[z][:, None] + covalent_radii[z][None])
        metal = z > 20
        bonded = (distance < limit) & (distance > 0) & ~(metal[:, None] & metal[None])
        assert nx.is_connected(nx.from_numpy_array(bonded))
        address = np.column_stack([one["parent_atom"], one["parent_shift"]])
        real = address[one["region"] != 2]
        assert len(np.unique(real, axis=0)) == len(real)


@pytest.mark.parametrize("cell", ["primitive", "conventional"])
@pytest.mark.parametrize("shells", [0, 1, 2])
def test_cut__positions_are_those_of_the_parent(cell, shells):
    ds, blocks = system("S_ld", cell)
    frames = shaken(ds, 3, n=2)
    clusters, _ = cut(frames, {"S_ld": blocks}, cores_of([0, 1, 1], [0, 1, 2]), shells=shells)
    start = np.concatenate([[0], np.cumsum(frames["n_atoms"].values)])
    for k, parent in enumerate(clusters["parent_structure"].values):
        one = cluster(clusters, k)
        real = one["region"] != 2
        origin = frames["positions"].values[start[parent] + one["parent_atom"][real]]
        lattice = one["parent_shift"][real] @ frames["cell"].values[parent]
        assert np.abs(one["positions"][real] - origin - lattice).max() < EXACT
        assert (one["numbers"][real] == frames["numbers"].values[one["parent_atom"][real]]).all()
        assert (one["parent_atom"][~real] == -1).all()


def test_cut__regions_are_core_mantle_termination():
    ds, blocks = system("S_pr", "primitive")
    core = first_of(blocks, "node")
    clusters, _ = cut(ds, {"S_pr": blocks}, cores_of([0], [core]))
    one = cluster(clusters, 0)
    assert np.bincount(one["region"]).tolist() == [54, 120, 12]
    assert set(one["parent_atom"][one["region"] == 0]) == set(atoms_of(blocks, core))
    assert (np.diff(one["region"]) >= 0).all()


def test_cut__caps_sit_on_the_broken_bonds():
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 5)
    bonds = _bonds(blocks)
    cell = frames["cell"].values[0]
    for shells in (0, 1):
        clusters, _ = cut(frames, {"S_ld": blocks}, cores_of([0], [0]), shells=shells)
        one = cluster(clusters, 0)
        caps = np.flatnonzero(one["region"] == 2)
        assert len(caps) == 10
        here = {
            (int(a), *map(int, s)): x
            for a, s, x, r in zip(
                one["parent_atom"], one["parent_shift"], one["positions"], one["region"]
            )
            if r != 2
        }
        expected = []
        for (atom, *shift), x in here.items():
            for other, step in bonds[atom]:
                there = tuple(np.add(shift, step).tolist())
                if (other, *there) not in here:
                    end = frames["positions"].values[other] + np.array(there) @ cell
                    length = 1.10 if shells == 0 else 1.09
                    expected.append(x + length * (end - x) / np.linalg.norm(end - x))
        found = one["positions"][caps]
        gap = np.linalg.norm(found[:, None] - np.array(expected)[None], axis=2)
        assert (gap.min(axis=1) < GEOMETRY).all()
        assert len(set(gap.argmin(axis=1))) == len(caps)


def _bonds(blocks):
    out = {}
    for (i, j), shift in zip(blocks["bond_atom"].values.tolist(), blocks["bond_shift"].values):
        out.setdefault(i, []).append((j, shift))
        out.setdefault(j, []).append((i, -shift))
    return out


@pytest.mark.parametrize("cell", ["primitive", "conventional"])
def test_cut__distances_are_minimum_image_distances(cell):
    ds, blocks = system("S_pr", cell)
    frames = shaken(ds, 7)
    clusters, _ = cut(frames, {"S_pr": blocks}, cores_of([0], [0]))
    one = cluster(clusters, 0)
    core = one["region"] == 0
    x, lattice = one["positions"][core], frames["cell"].values[0]
    vector = (x[:, None] - x[None]).reshape(-1, 3)
    images = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3) @ lattice
    nearest = np.linalg.norm(vector[:, None] + images[None], axis=2).min(axis=1)
    reach = np.linalg.norm(vector, axis=1)
    height = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    inside = reach < height.min() / 2
    assert inside.sum() > 1000
    assert np.abs(nearest - reach)[inside].max() < GEOMETRY


def test_cut__images_are_distinct_blocks_in_small_cells():
    _ds, blocks = system("S_pr", "primitive")
    bp = blueprint(blocks, first_of(blocks, "node"))
    assert bp["n_pieces"].values.tolist() == [13]
    assert len(np.unique(bp["piece_block"].values)) == 7
    pieces = np.column_stack([bp["piece_block"].values, bp["piece_shift"].values])
    assert len(np.unique(pieces, axis=0)) == 13


def _chain(cell):
    """A chain of one block per cell, C2H2: every neighbour of a block is an image of it."""
    x = np.array([[0.0, 0.0, 0.0], [1.2, 0.0, 0.0], [0.0, 1.1, 0.0], [1.2, 1.1, 0.0]])
    ds = make_structures([6, 6, 1, 1], x, n_atoms=[4], cell=np.diag(cell)[None], system="chain")
    none = (0, 0, 0)
    blocks = blocks_dataset(
        [[0, 1, 2, 3]], [(1, 0, (1, 0, 0))], bonds=[(0, 1, none), (0, 2, none), (1, 3, none)]
    )
    return ds, blocks


def test_cut__wrapped_wire_without_other_cell_vectors():
    """Periodic along one direction only: there is no inverse of the cell to wrap with."""
    ds, blocks = _chain([2.6, 0.0, 0.0])
    assert ds["pbc"].values.tolist() == [[True, False, False]]
    expected, _ = cut(ds, {"chain": blocks}, cores_of([0], [0]))
    x = ds["positions"].values.copy()
    x[[1, 3], 0] -= 2.6
    wrapped = with_positions(ds, x)
    assert check_bonds(wrapped, {"chain": blocks})["wrapped"].values.all()
    clusters, refused = cut(wrapped, {"chain": blocks}, cores_of([0], [0]))
    assert refused.sizes["core"] == 0
    np.testing.assert_allclose(clusters["positions"].values, expected["positions"].values)


def test_cut__block_bound_to_its_own_image():
    ds, blocks = _chain([2.6, 9.0, 9.0])
    sizes = []
    for shells in (0, 1, 2, 3):
        clusters, refused = cut(ds, {"chain": blocks}, cores_of([0], [0]), shells=shells)
        assert refused.sizes["core"] == 0
        sizes.append(int(clusters["n_atoms"][0]))
        one = cluster(clusters, 0)
        assert np.ptp(one["positions"][:, 0]) == pytest.approx(1.2 + 2.6 * 2 * shells + 2 * 1.09)
    assert sizes == [4 + 2, 12 + 2, 20 + 2, 28 + 2]


def test_cut__same_as_networkx():
    peer_module = benchmark("clusters_scale")
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 11)
    peer = peer_module.Peer(frames, blocks)
    for core in range(blocks.sizes["block"]):
        for shells in (0, 1, 2):
            clusters, _ = cut(frames, {"S_ld": blocks}, cores_of([0], [core]), shells=shells)
            z, x, electrons, nearest = peer.cluster(int(atoms_of(blocks, core)[0]), shells)
            one = cluster(clusters, 0)
            assert int(clusters["n_electrons"][0]) == electrons
            assert float(clusters["smallest_distance"][0]) == pytest.approx(nearest, abs=1e-8)
            mine = fingerprint(one["numbers"], one["positions"])
            np.testing.assert_allclose(mine, fingerprint(z, x), atol=1e-8)


# ------------------------------------------------------------------------- blueprints and frames
def test_cut__blueprint_reused_over_frames():
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 1, n=3)
    cores = cores_of([2, 0, 1, 0], [0, 3, 0, 0])
    ready = blueprint(blocks, [3, 0])
    direct, _ = cut(frames, {"S_ld": blocks}, cores)
    reused, _ = cut(frames, {"S_ld": blocks}, cores, blueprints={"S_ld": ready})
    partly, _ = cut(frames, {"S_ld": blocks}, cores, blueprints={"S_ld": blueprint(blocks, 0)})
    assert_same_bits(reused, direct)
    assert_same_bits(partly, direct)


def test_cut__partial_mantle():
    ds, blocks = system("S_pr", "primitive")
    core = first_of(blocks, "node")
    links = np.flatnonzero((blocks["link_block"].values == core).any(axis=1))
    bp = blueprint(blocks, core, links=links[:5])
    assert int(bp["n_atoms"][0]) == 54 + 5 * 10 + 12
    clusters, _ = cut(ds, {"S_pr": blocks}, cores_of([0], [core]), blueprints={"S_pr": bp})
    assert int(clusters["n_atoms"][0]) == 116
    assert int(clusters["n_electrons"][0]) == 572 + 5 * 40 + 12


def test_cut__wrapped_frames_give_the_same_clusters():
    for cell in ("primitive", "conventional"):
        ds, blocks = system("S_ld", cell)
        frame = shaken(ds, 2)
        lattice = frame["cell"].values[0]
        scaled = frame["positions"].values @ np.linalg.inv(lattice)
        wrapped = with_positions(frame, (scaled % 1.0) @ lattice)
        n = blocks.sizes["block"]
        before, _ = cut(frame, {"S_ld": blocks}, cores_of([0] * n, range(n)))
        after, refused = cut(wrapped, {"S_ld": blocks}, cores_of([0] * n, range(n)))
        assert refused.sizes["core"] == 0
        for k in range(n):
            a, b = cluster(before, k), cluster(after, k)
            assert (a["parent_atom"] == b["parent_atom"]).all()
            shift = (b["positions"] - a["positions"]) @ np.linalg.inv(lattice)
            assert np.abs(shift - np.rint(shift[0])).max() < 1e-9
        assert check_bonds(wrapped, {"S_ld": blocks})["wrapped"].values.all()
        assert not check_bonds(frame, {"S_ld": blocks})["wrapped"].values.any()


def test_cut__several_systems_in_the_order_of_the_cores():
    pristine, its_blocks = system("S_pr", "primitive")
    defective, others = system("S_ld", "primitive")
    both = concat([shaken(pristine, 0), shaken(defective, 1)])
    by_system = {"S_pr": its_blocks, "S_ld": others}
    clusters, _ = cut(both, by_system, cores_of([1, 0, 1], [0, 0, 1]))
    assert [str(s) for s in clusters["system"].values] == ["S_ld", "S_pr", "S_ld"]
    assert clusters["n_atoms"].values.tolist()[:2] == [166, 186]
    ids = [str(s) for s in both["structure_id"].values]
    assert [str(s) for s in clusters["parent"].values] == [ids[1], ids[0], ids[1]]


@pytest.mark.parametrize("rows", [50, 106, 137])
def test_cut__lazy_equals_in_memory(rows):
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 4, n=6)
    cores = random_cores(frames, {"S_ld": blocks}, n=9, seed=0)
    expected, _ = cut(frames, {"S_ld": blocks}, cores)
    lazy, _ = cut(chunked(frames, rows), {"S_ld": blocks}, cores, task_mb=0.2)
    assert_same_bits(lazy, expected)


def test_cut__tasks_do_not_grow_with_frames():
    ds, blocks = system("S_ld", "primitive")
    tasks = {}
    for n in (8, 32):
        frames = shaken(ds, 4, n=n)
        lazy = chunked(frames, 106 * n // 4)
        cores = cores_of(range(n), [0] * n)
        tasks[n] = count_tasks(lambda lazy=lazy, cores=cores: cut(lazy, {"S_ld": blocks}, cores))
        # Every other frame: slices of their own, yet not one task per cluster.
        half = cores_of(list(range(0, n, 2)) * 3, [0] * (3 * n // 2))
        some = count_tasks(lambda lazy=lazy, half=half: cut(lazy, {"S_ld": blocks}, half))
        assert some <= 8 * n
    assert tasks[8] == tasks[32] <= 30


def test_cut__lazy_frame_whose_bonds_changed():
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 4, n=6)
    cap = int(np.flatnonzero(frames["numbers"].values[:106] == 1)[-1])
    frames["positions"].values[3 * 106 + cap] += [4.0, 0.0, 0.0]
    n = blocks.sizes["block"]
    cores = cores_of(np.repeat(np.arange(6), n), list(range(n)) * 6)
    by_system = {"S_ld": blocks}
    expected, refused = cut(frames, by_system, cores, shells=0)
    lazy, also = cut(chunked(frames, 150), by_system, cores, shells=0, task_mb=0.02)
    assert_same_bits(lazy, expected)
    assert set(refused["core_structure"].values.tolist()) == {3}
    assert 0 < refused.sizes["core"] < n
    assert also["reason"].values.tolist() == refused["reason"].values.tolist()
    held = check_bonds(chunked(frames, 150), by_system)
    assert held["holds"].values.tolist() == [k != 3 for k in range(6)]


def test_cut__from_and_to_the_store(tmp_path):
    """Structures, blocks, blueprints and clusters through stored groups, and a text file."""
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 4, n=3)
    cores = random_cores(frames, {"S_ld": blocks}, n=5, seed=0)
    expected, _ = cut(frames, {"S_ld": blocks}, cores)
    ready = blueprint(blocks, np.unique(cores["core_block"].values))
    write_group(frames, tmp_path / "frames.zarr")
    for name, table in (("blocks", blocks), ("cores", cores), ("blueprint", ready)):
        write_group(table, tmp_path / f"{name}.zarr", kind="table")
    opened = {n: open_group(tmp_path / f"{n}.zarr") for n in ("blocks", "cores", "blueprint")}
    stored, _ = cut(
        open_group(tmp_path / "frames.zarr"),
        {"S_ld": opened["blocks"]},
        opened["cores"],
        blueprints={"S_ld": opened["blueprint"]},
    )
    assert_same_bits(stored, expected)
    write_group(stored, tmp_path / "clusters.zarr")
    assert_same_bits(open_group(tmp_path / "clusters.zarr").load(), expected)
    write(stored, tmp_path / "clusters.extxyz")
    again = read(tmp_path / "clusters.extxyz")
    assert again["structure_id"].values.tolist() == expected["structure_id"].values.tolist()
    assert (again["parent_atom"].values == expected["parent_atom"].values).all()
    assert (again["region"].values == expected["region"].values).all()


def test_cut__no_cores():
    ds, blocks = system("S_ld", "primitive")
    clusters, refused = cut(ds, {"S_ld": blocks}, cores_of([], []))
    assert clusters.sizes["structure"] == 0
    assert refused.sizes["core"] == 0


# ------------------------------------------------------------------------- refusals
def _moved(ds, atom, vector):
    x = ds["positions"].values.copy()
    x[atom] += vector
    return with_positions(ds, x)


def _neighbour(blocks, atom, numbers, z):
    return next(int(j) for j, _ in _bonds(blocks)[atom] if numbers[j] == z)


def test_cut__refuses_a_broken_ring():
    ds, blocks = system("S_ld", "primitive")
    linker = first_of(blocks, "linker")
    numbers = ds["numbers"].values
    hydrogen = next(a for a in atoms_of(blocks, linker) if numbers[a] == 1)
    two = _neighbour(blocks, hydrogen, numbers, 6)
    broken = _moved(ds, [two, hydrogen], np.array([1.2, 1.2, 1.2]))
    _clusters, refused = cut(broken, {"S_ld": blocks}, cores_of([0, 0], [linker, 0]))
    assert refused["core"].values[0] == 0
    assert "broken ring" in str(refused["reason"].values[0])
    assert f"C{two}" in str(refused["reason"].values[0])
    table = check_bonds(broken, {"S_ld": blocks})
    assert not table["holds"].values[0]
    assert int(table["n_broken"][0]) >= 1


def test_cut__refuses_a_broken_bond_and_cuts_the_rest():
    ds, blocks = system("S_pr")
    numbers = ds["numbers"].values
    linker = first_of(blocks, "linker")
    hydrogen = next(a for a in atoms_of(blocks, linker) if numbers[a] == 1)
    carbon = _neighbour(blocks, hydrogen, numbers, 6)
    out = ds["positions"].values[hydrogen] - ds["positions"].values[carbon]
    broken = _moved(ds, hydrogen, 0.8 * out)
    n = blocks.sizes["block"]
    clusters, refused = cut(broken, {"S_pr": blocks}, cores_of([0] * n, range(n)))
    reasons = {int(k): str(r) for k, r in zip(refused["core"].values, refused["reason"].values)}
    assert all("broken bond: " in r for r in reasons.values())
    # The linker itself, the two bricks it joins, and nothing else.
    bricks = {
        int(b)
        for pair in blocks["link_block"].values
        if linker in pair
        for b in pair
        if b != linker
    }
    assert bricks | {linker} <= set(reasons)
    assert all(blocks["role"].values[k] == "linker" or k in bricks for k in reasons)
    assert clusters.sizes["structure"] + len(reasons) == n
    assert sorted([*clusters["core_index"].values.tolist(), *reasons]) == list(range(n))


def test_cut__refuses_a_broken_bond_between_blocks():
    ds, blocks = system("S_pr", "primitive")
    linker = first_of(blocks, "linker")
    away = _moved(ds, atoms_of(blocks, linker), np.array([0.0, 0.0, 2.5]))
    _, refused = cut(away, {"S_pr": blocks}, cores_of([0], [linker]), shells=0)
    assert "broken bond between blocks" in str(refused["reason"].values[0])


def test_cut__refuses_atoms_too_close():
    ds, blocks = system("S_pr", "primitive")
    numbers, x = ds["numbers"].values, ds["positions"].values
    linker = first_of(blocks, "linker")
    hydrogen = next(a for a in atoms_of(blocks, linker) if numbers[a] == 1)
    carbon = _neighbour(blocks, hydrogen, numbers, 6)
    near = x[carbon] + 0.5 * (x[hydrogen] - x[carbon])
    squeezed = _moved(ds, hydrogen, near - x[hydrogen])
    _, refused = cut(squeezed, {"S_pr": blocks}, cores_of([0], [linker]))
    assert "atoms too close: " in str(refused["reason"].values[0])
    assert float(refused["smallest_distance"][0]) == pytest.approx(0.545, abs=1e-3)
    _clusters, refused = cut(squeezed, {"S_pr": blocks}, cores_of([0], [linker]), nearest=0.3)
    assert refused.sizes["core"] == 0


def test_cut__refuses_positions_that_are_not_finite():
    ds, blocks = system("S_pr", "primitive")
    bad = ds.copy(deep=True)
    bad["positions"].values[int(atoms_of(blocks, 0)[0])] = np.nan
    _, refused = cut(bad, {"S_pr": blocks}, cores_of([0], [0]))
    assert "not finite" in str(refused["reason"].values[0])
    assert not check_bonds(bad, {"S_pr": blocks})["holds"].values[0]


def test_cut__refuses_coinciding_ends_of_a_cut_bond():
    ds, blocks = system("S_pr", "primitive")
    i, j = blocks["link_atom"].values[0]
    x = ds["positions"].values
    lattice = blocks["link_shift"].values[0] @ ds["cell"].values[0]
    flat = _moved(ds, j, x[i] - lattice - x[j])
    _, refused = cut(flat, {"S_pr": blocks}, cores_of([0], [0]), shells=0)
    assert refused.sizes["core"] == 1


def test_cut__refuses_odd_electrons():
    ds, blocks = system("S_pr", "primitive")
    charge = blocks["charge"].values.copy()
    charge[first_of(blocks, "node")] = 1
    odd = blocks.assign(charge=("block", charge))
    _, refused = cut(ds, {"S_pr": odd}, cores_of([0], [0]))
    assert "odd number of electrons: 1063" in str(refused["reason"].values[0])
    assert int(refused["n_electrons"][0]) == 1063


def test_cut__charge_is_the_sum_of_the_blocks():
    ds, blocks = system("S_pr", "primitive")
    charge = blocks["charge"].values.copy()
    charge[first_of(blocks, "node")] = -4
    ionic = blocks.assign(charge=("block", charge))
    clusters, _ = cut(ds, {"S_pr": ionic}, cores_of([0, 0], [0, 1]))
    assert clusters["charge"].values.tolist() == [-4, -8]
    assert clusters["n_electrons"].values.tolist() == [1068, 1214]


def _copper():
    """The brick with copper for zirconium: a stand-in for a paddlewheel, even and open."""
    ds, blocks = system("S_pr", "primitive")
    numbers = np.where(ds["numbers"].values == 40, 29, ds["numbers"].values)
    copper = with_positions(ds, ds["positions"].values, numbers=numbers)
    return copper, blocks.assign(open_shell=("block", blocks["role"].values == "node"))


def test_cut__open_shells_need_a_spin():
    ds, blocks = _copper()
    core = cores_of([0], [0])
    _, refused = cut(ds, {"S_pr": blocks}, core)
    assert "partly filled d or f shell on Cu" in str(refused["reason"].values[0])
    assert 'unpaired={"Cu": 1}' in str(refused["reason"].values[0])
    assert refused["open_shell"].values[0]
    assert int(refused["n_electrons"][0]) % 2 == 0
    clusters, _ = cut(ds, {"S_pr": blocks}, core, unpaired={"Cu": 1})
    assert int(clusters["n_unpaired"][0]) == 6
    assert clusters["open_shell"].values[0]
    clusters, _ = cut(ds, {"S_pr": blocks}, core, unpaired={"Cu": 0})
    assert int(clusters["n_unpaired"][0]) == 0


def test_unpaired_electrons__of_two_states_the_open_one_counts():
    # Two clusters: Cu(II) beside Cu(I), and two Cu(I) that the user says are open.
    numbers, owner = np.array([29, 29, 8, 29, 29]), np.array([0, 0, 0, 1, 1])
    is_open = np.array([True, False, False, False, False])
    counted = unpaired_electrons(numbers, owner, 2, {"Cu": 1}, is_open)
    assert counted.tolist() == [1, 2]
    assert unpaired_electrons(numbers, owner, 2, {"Cu": 1}).tolist() == [2, 2]
    # 95 electrons and one of them unpaired: nothing to refuse.
    electrons = np.array([95, 116])
    _, n, reasons = electron_reasons(numbers, owner, is_open, electrons, {"Cu": 1})
    assert (n.tolist(), reasons) == ([1, 2], ["", ""])


def test_cut__open_shells_are_seen_without_oxidation_states():
    ds, blocks = _copper()
    _, refused = cut(ds, {"S_pr": blocks.drop_vars("open_shell")}, cores_of([0], [0]))
    assert "on Cu" in str(refused["reason"].values[0])
    zirconium, closed = system("S_pr", "primitive")
    clusters, _ = cut(zirconium, {"S_pr": closed.drop_vars("open_shell")}, cores_of([0], [0]))
    assert clusters.sizes["structure"] == 1


def test_cut__unusual_state_names_a_metal_that_is_usually_closed():
    ds, blocks = system("S_pr", "primitive")
    is_open = blocks.assign(open_shell=("block", blocks["role"].values == "node"))
    _, refused = cut(ds, {"S_pr": is_open}, cores_of([0], [0]))
    assert "on Zr" in str(refused["reason"].values[0])


# ------------------------------------------------------------------------- caps that a rule forbids
def _azolate_chain():
    """Zn - N...N - Zn -: a node that may not be capped, a linker whose ends take a proton."""
    x = np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [3.3, 0.0, 0.0]])
    ds = make_structures(
        [30, 7, 7], x, n_atoms=[1 * 3], cell=np.diag([5.3, 9.0, 9.0])[None], pbc=True, system="z"
    )
    blocks = blocks_dataset(
        [[0], [1, 2]],
        [(0, 1, (0, 0, 0)), (0, 2, (-1, 0, 0))],
        bonds=[(1, 2, (0, 0, 0))],
        role=["node", "linker"],
        kind=[0, 1],
        charge=[2, -2],
        link_cap=[[-1, 1], [-1, 1]],
        link_cap_length=[[np.nan, 1.01], [np.nan, 1.01]],
        link_cap_charge=[[0, 1], [0, 1]],
    )
    return ds, blocks


@pytest.mark.parametrize(
    ("core", "shells", "n_zinc", "n_linkers"),
    [(0, 0, 1, 2), (0, 1, 1, 2), (1, 0, 0, 1), (1, 1, 2, 3), (0, 2, 3, 4)],
)
def test_cut__ends_that_may_not_be_capped_take_the_next_block(core, shells, n_zinc, n_linkers):
    ds, blocks = _azolate_chain()
    clusters, _ = cut(ds, {"z": blocks}, cores_of([0], [core]), shells=shells)
    z = clusters["numbers"].values
    assert (z == 30).sum() == n_zinc
    assert (z == 7).sum() == 2 * n_linkers
    assert (z == 1).sum() == 2
    # Each cap brings the charge of its proton.
    assert int(clusters["charge"][0]) == 2 * n_zinc - 2 * n_linkers + 2
    assert int(clusters["n_electrons"][0]) == z.sum() - int(clusters["charge"][0])


def test_cut__cluster_without_end_is_an_error():
    ds, blocks = _azolate_chain()
    never = blocks.assign(link_cap=blocks["link_cap"] * 0 - 1)
    with pytest.raises(DataError, match="does not end"):
        cut(ds, {"z": never}, cores_of([0], [0]))


def test_cut__open_ends_stay_open():
    ds, blocks = _azolate_chain()
    pillar = blocks.assign(link_cap=blocks["link_cap"] * 0)
    clusters, _ = cut(ds, {"z": pillar}, cores_of([0], [1]), shells=0)
    assert clusters["numbers"].values.tolist() == [7, 7]


# ------------------------------------------------------------------------- errors
def test_cut__errors_name_what_is_wrong():
    ds, blocks = system("S_ld", "primitive")
    core = cores_of([0], [0])
    _pristine, others = system("S_pr", "primitive")
    table = [
        (lambda: cut(ds, {}, core), DataError, "no blocks for system 'S_ld'"),
        (lambda: cut(ds, {"S_ld": others}, core), DataError, "106 atoms.*114"),
        (
            lambda: cut(ds, {"S_ld": blocks}, cores_of([1], [0])),
            DataError,
            "there are 1 structures",
        ),
        (lambda: cut(ds, {"S_ld": blocks}, cores_of([0], [6])), DataError, "blocks 0 to 5"),
        (lambda: cut(ds, {"S_ld": blocks}, cores_of([0], [-1])), DataError, "core -1"),
        (lambda: cut(ds, {"S_ld": blocks}, core, shells=-1), DataError, "shells=-1"),
        (lambda: cut(ds, {"S_ld": blocks}, core, shells=0.5), DataError, "shells=0.5"),
        (lambda: cut(ds, {"S_ld": blocks}, ds), DataError, "not a cores Dataset"),
        (lambda: cut(ds, {"S_ld": ds}, core), DataError, "not a blocks Dataset"),
        (lambda: cut(ds, {"S_ld": blocks}, core, unpaired={"Xx": 1}), ConfigError, "'Xx'"),
        (lambda: cut(ds, {"S_ld": blocks}, core, unpaired={"Cu": -1}), ConfigError, "-1"),
        (
            lambda: cut(ds, {"S_ld": blocks}, core, blueprints={"S_ld": blocks}),
            DataError,
            "not a blueprint",
        ),
        (
            lambda: cut(ds, {"S_ld": blocks}, core.assign(core_blueprint=("core", [0]))),
            DataError,
            "pass blueprints=",
        ),
        (lambda: blueprint(blocks, 99), DataError, "core 99"),
        (lambda: blueprint(blocks, [0, 1], links=[0]), DataError, "needs one core"),
        (lambda: blueprint(blocks, 1, links=[99]), DataError, "link 99"),
    ]
    for call, error, text in table:
        with pytest.raises(error, match=text):
            call()


def test_block_graph__damaged_blocks():
    ds, blocks = system("S_ld", "primitive")
    core = cores_of([0], [0])
    twice = blocks.copy(deep=True)
    twice["member_atom"].values[0] = twice["member_atom"].values[1]
    with pytest.raises(DataError, match="two blocks"):
        cut(ds, {"S_ld": twice}, core)
    swapped = blocks.assign(link_block=blocks["link_block"][:, ::-1].copy())
    with pytest.raises(DataError, match="disagree"):
        cut(ds, {"S_ld": swapped}, core)
    short = blocks.assign(block_n_atoms=blocks["block_n_atoms"] - 1)
    with pytest.raises(DataError, match="sums to"):
        cut(ds, {"S_ld": short}, core)


def test_cut__many_clusters_are_split_without_a_trace(monkeypatch):
    """The packed keys of a plan overflow for many cores: it is split, the result is the same."""
    from mofal.clusters import blueprints as module

    _ds, blocks = system("S_pr")
    n = blocks.sizes["block"]
    expected = blueprint(blocks, np.arange(n), shells=2)
    monkeypatch.setattr(module, "LARGEST_KEY", 28 * 90**3 * 4)
    assert_same_bits(blueprint(blocks, np.arange(n), shells=2), expected)


def test_cut__build_and_find_again_for_a_supercell():
    ds = build("S_pr", repeat=(2, 1, 1))
    blocks = find_blocks(ds)
    name = str(ds["system"].values[0])
    clusters, _ = cut(ds, {name: blocks}, cores_of([0], [first_of(blocks, "node")]))
    small, its_blocks = system("S_pr", "primitive")
    other, _ = cut(small, {"S_pr": its_blocks}, cores_of([0], [first_of(its_blocks, "node")]))
    a, b = cluster(clusters, 0), cluster(other, 0)
    np.testing.assert_allclose(
        fingerprint(a["numbers"], a["positions"]),
        fingerprint(b["numbers"], b["positions"]),
        atol=1e-8,
    )
