"""Blocks as a chemist would draw them, and what is refused by name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mofal.data import from_atoms, to_atoms
from mofal.errors import ConfigError, StructureError
from mofal.frameworks import (
    build,
    check_structure,
    find_blocks,
    find_bonds,
    register_rule,
    rule_names,
)
from mofal.frameworks.molecule import H_CAP, Cut
from mofal.frameworks.partition import net_labels
from tests.frameworks import published


def dataset(atoms, system="test"):
    return from_atoms(atoms, system=system)


def kinds(blocks):
    """(count, formula, role, charge, coordination) of every kind."""
    _, first, count = np.unique(blocks["kind"].values, return_index=True, return_counts=True)
    return [
        (
            int(n),
            str(blocks["formula"].values[b]),
            str(blocks["role"].values[b]),
            int(blocks["charge"].values[b]),
            int(blocks["coordination"].values[b]),
        )
        for b, n in zip(first, count)
    ]


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


CHEMIST = [
    (
        "HKUST-1", published.hkust1, "carboxylate",
        [(24, "C4Cu2O8", "node", 0, 4), (32, "C6H3", "linker", 0, 3)],
    ),
    (
        "zinc bispyrazolate, whole rings", published.pyrazolate_chain, "azolate-ring",
        [(1, "C6H4N4Zn", "node", 0, 2), (1, "C6H4", "linker", 0, 2)],
    ),
    (
        "zinc bispyrazolate", published.pyrazolate_chain, "azolate",
        [(1, "Zn", "node", 2, 2), (1, "C12H8N4", "linker", -2, 2)],
    ),
    (
        "MOF-5", published.mof5, "carboxylate",
        [(8, "C6O13Zn4", "node", 0, 6), (24, "C6H4", "linker", 0, 2)],
    ),
    (
        "MIL-125", published.mil125, "carboxylate",
        [(2, "C12H4O36Ti8", "node", 0, 12), (12, "C6H4", "linker", 0, 2)],
    ),
    (
        "MIL-88B", published.mil88b, "carboxylate",
        [(2, "C6H5Cr3O16", "node", 0, 6), (6, "C6H4", "linker", 0, 2)],
    ),
    (
        "ZIF-8", published.zif, "azolate",
        [(12, "Zn", "node", 2, 4), (24, "C4H5N2", "linker", -1, 2)],
    ),
    (
        "Co(bdp)", published.cobdp, "azolate",
        [(4, "Co", "node", 2, 4), (4, "C12H8N4", "linker", -2, 4)],
    ),
    (
        "DMOF-1", published.dmof, "pillar",
        [(1, "C4O8Zn2", "node", 0, 6), (1, "C6H12N2", "linker", 0, 2),
         (2, "C6H4", "linker", 0, 2)],
    ),
    (
        "sulfonate", lambda: published.acid_chain("sulfonate"), "sulfonate",
        [(1, "O6S2Zn", "node", 0, 2), (1, "C6H4", "linker", 0, 2)],
    ),
    (
        "phosphonate", lambda: published.acid_chain("phosphonate"), "phosphonate",
        [(1, "H2O6P2Zn", "node", 0, 2), (1, "C6H4", "linker", 0, 2)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "rule", "expected"), CHEMIST, ids=[c[0] for c in CHEMIST])
def test_find_blocks__as_a_chemist_draws(name, make, rule, expected):
    blocks = check_structure(dataset(make(), name), rule=rule)
    assert kinds(blocks) == expected
    assert blocks.attrs["rule"] == rule
    assert blocks.attrs["n_nets"] == 1


REFUSED = [
    (published.mil53, "carboxylate", r"Cr node is a rod, infinite along \[0 0 1\]"),
    (published.mof74, "carboxylate", r"Mg node is a rod, infinite along \[0 0 1\]"),
    (published.zif, "carboxylate", r"infinite along all three directions.*rule='azolate'"),
    (published.dmof, "carboxylate", r"infinite along \[0 0 1\].*rule='pillar'"),
    (published.cobdp, "pillar", r"rule='azolate'"),
]


@pytest.mark.parametrize(("make", "rule", "message"), REFUSED)
def test_find_blocks__refuses_what_is_endless(make, rule, message):
    with pytest.raises(StructureError, match=message):
        find_blocks(dataset(make()), rule=rule)


def test_find_blocks__rod_direction_follows_the_cell():
    turned = published.mil53()
    turned = Atoms(
        turned.numbers,
        positions=turned.positions[:, [2, 0, 1]],
        cell=turned.cell.array[[2, 0, 1]][:, [2, 0, 1]],
        pbc=True,
    )
    with pytest.raises(StructureError, match=r"infinite along \[1 0 0\]"):
        find_blocks(dataset(turned), rule="carboxylate")


@pytest.mark.parametrize(
    ("kwargs", "n_blocks"),
    [({}, 28), ({"cell": "primitive"}, 7), ({"linker": "BPDC", "cell": "primitive"}, 7)],
)
def test_find_blocks__members_bonds_and_links_fit_together(kwargs, n_blocks):
    ds = build("S_pr", **kwargs)
    blocks = find_blocks(ds)
    x, cell = ds["positions"].values, ds["cell"].values[0]
    n = ds.sizes["atom"]
    assert blocks.sizes["block"] == n_blocks
    member = blocks["member_atom"].values
    assert np.array_equal(np.sort(member), np.arange(n))
    size = blocks["block_n_atoms"].values
    assert size.sum() == n
    label = np.empty(n, int)
    label[member] = np.repeat(np.arange(n_blocks), size)
    shift = np.empty((n, 3), int)
    shift[member] = blocks["member_shift"].values

    # Within blocks, the shifted positions alone give every bond its length.
    pair, bond_shift = blocks["bond_atom"].values, blocks["bond_shift"].values
    raw = x[pair[:, 1]] + bond_shift @ cell - x[pair[:, 0]]
    inside = np.ones(len(pair), bool)
    links = {
        (*sorted(p), *np.abs(s)) for p, s in
        zip(blocks["link_atom"].values.tolist(), blocks["link_shift"].values.tolist())
    }  # fmt: skip
    for k, (p, s) in enumerate(zip(pair.tolist(), bond_shift.tolist())):
        inside[k] = (*sorted(p), *np.abs(s)) not in links
    assert (~inside).sum() == blocks.sizes["link"]
    assert np.array_equal(label[pair[inside, 0]], label[pair[inside, 1]])
    whole = x + shift @ cell
    assert np.allclose((whole[pair[:, 1]] - whole[pair[:, 0]])[inside], raw[inside], atol=1e-9)

    # Links: the broken bond by raw positions, and the image of the far block.
    atom, link_shift = blocks["link_atom"].values, blocks["link_shift"].values
    vector = x[atom[:, 1]] + link_shift @ cell - x[atom[:, 0]]
    assert np.allclose(np.linalg.norm(vector, axis=1), 1.5, atol=0.01)  # C-C
    assert np.array_equal(blocks["link_block"].values, label[atom])
    image = blocks["link_image"].values
    through = whole[atom[:, 1]] + image @ cell - whole[atom[:, 0]]
    assert np.allclose(through, vector, atol=1e-9)
    assert np.all(blocks["role"].values[blocks["link_block"].values] == ["node", "linker"])


def test_find_blocks__caps_of_the_carboxylate_rule():
    blocks = find_blocks(build("S_pr"))
    assert np.all(blocks["link_cap"].values == 1)
    assert np.all(blocks["link_cap_length"].values == [1.10, 1.09])
    assert np.all(blocks["link_cap_charge"].values == 0)


def test_find_blocks__brick_meets_its_own_image():
    # In the primitive cell each linker joins the one brick to an image of itself.
    blocks = find_blocks(build("S_pr", cell="primitive"))
    ends = {}
    for (brick, linker), image in zip(
        blocks["link_block"].values.tolist(), blocks["link_image"].values.tolist()
    ):
        ends.setdefault(linker, []).append((brick, *image))
    assert len(ends) == 6
    for pair in ends.values():
        assert len(set(pair)) == 2
        assert pair[0][0] == pair[1][0]


def test_find_blocks__kinds_tell_defects_apart():
    found = kinds(find_blocks(build("S_ld")))
    assert found == [
        (2, "C12H5O32Zr6", "node", 0, 11),
        (2, "C12H4O32Zr6", "node", 0, 12),
        (23, "C6H4", "linker", 0, 2),
    ]
    one = find_blocks(build("S_pr"))["kind_hash"].values
    other = find_blocks(build("S_pr", cell="primitive", repeat=(2, 1, 1)))["kind_hash"].values
    assert set(one.tolist()) == set(other.tolist())


WARM = [
    (lambda: published.hkust1(), "carboxylate"),
    (lambda: published.mof5(), "carboxylate"),
    (lambda: published.mil88b(), "carboxylate"),
    (lambda: published.dmof(), "pillar"),
    (lambda: published.cobdp(), "azolate"),
]


@pytest.mark.parametrize(("make", "rule"), WARM)
def test_find_blocks__warm_frames_keep_their_blocks(make, rule):
    # 0.04 Å on every coordinate stretches bonds by about as much as 600 K does.
    ds = dataset(make())
    still = find_blocks(ds, rule=rule)
    for seed in range(3):
        warm = ds.copy(deep=True)
        warm["positions"].values[:] += np.random.default_rng(seed).normal(
            0, 0.04, warm["positions"].shape
        )
        blocks = find_blocks(warm, rule=rule)
        for name in ("kind_hash", "member_atom", "link_atom", "charge"):
            assert np.array_equal(blocks[name].values, still[name].values), name


def recapped(ds, cap):
    """Put other caps in place of the formates: "OH + H2O", "2 H2O", "acetate" or "CF3CO2"."""
    blocks = find_blocks(ds)
    x, cell = ds["positions"].values, ds["cell"].values[0]
    bonds = find_bonds(ds)
    pair, shift = bonds["bond_atom"].values, bonds["bond_shift"].values
    pair = np.vstack([pair, pair[:, ::-1]])
    shift = np.vstack([shift, -shift])
    vector = x[pair[:, 1]] + shift @ cell - x[pair[:, 0]]
    atoms = to_atoms(ds, 0)
    new, symbols, gone = [], [], []
    for carbon, hydrogen in zip(
        blocks["defect_atom"].values.tolist(), blocks["defect_hydrogen"].values.tolist()
    ):
        mine = np.flatnonzero((pair[:, 0] == carbon) & (atoms.numbers[pair[:, 1]] == 8))
        # Out of the plane of the two O.
        side = np.cross(vector[mine[0]], vector[mine[1]])
        side /= np.linalg.norm(side)
        if "H2O" not in cap:
            gone.append(hydrogen)
            out = vector[(pair[:, 0] == carbon) & (pair[:, 1] == hydrogen)][0]
            out /= np.linalg.norm(out)
            methyl = x[carbon] + 1.51 * out
            across = np.cross(out, side)
            new.append(methyl)
            symbols.append("C")
            end, length = ("F", 1.34) if cap == "CF3CO2" else ("H", 1.09)
            for turn in np.radians([0.0, 120.0, 240.0]):
                away = out / 3 + np.sqrt(8) / 3 * (np.cos(turn) * side + np.sin(turn) * across)
                new.append(methyl + length * away)
                symbols.append(end)
            continue
        gone += [carbon, hydrogen]
        for count, edge in zip((2, 2) if cap == "2 H2O" else (1, 2), mine):
            oxygen = int(pair[edge, 1])
            away = -vector[edge] / np.linalg.norm(vector[edge])
            for sign in (1, -1)[:count]:
                new.append(x[oxygen] + 0.97 * (0.6 * away + sign * 0.8 * side))
                symbols.append("H")
    atoms += Atoms(symbols, positions=new)
    del atoms[gone]
    return dataset(atoms)


def test_find_blocks__hydroxide_and_water_in_place_of_formate():
    # NU-1000, MOF-808 and many defects: OH on one metal, H2O on the next.
    found = kinds(check_structure(recapped(build("S_ld", cell="primitive"), "OH + H2O")))
    assert found[0] == (1, "C10H10O32Zr6", "node", 0, 10)


@pytest.mark.parametrize(
    ("cap", "formula"),
    [("OH + H2O", "H3O2"), ("2 H2O", "H4O2"), ("acetate", "C2H3O2"), ("CF3CO2", "C2F3O2")],
)
@pytest.mark.parametrize("name", ["S_ld", "S_reo", "S_scu"])
def test_find_blocks__defect_labels_whatever_caps_the_site(name, cap, formula):
    formate = find_blocks(build(name))
    other = recapped(build(name), cap)
    found = find_blocks(other)
    assert set(found["defect_cap"].values.tolist()) == {formula}
    assert found.sizes["defect"] == formate.sizes["defect"]
    for variable in ("coordination", "n_missing"):
        bricks = found["role"].values == "node"
        assert sorted(found[variable].values[bricks]) == sorted(
            formate[variable].values[formate["role"].values == "node"]
        )
    for variable in ("defect_label", "defect_hole"):
        a, b = (sorted(d[variable].values.tolist()) for d in (formate, found))
        assert a == b, variable
    partner = found["defect_partner"].values
    paired = np.flatnonzero(partner >= 0)
    assert np.array_equal(partner[partner[paired]], paired)
    assert len(paired) == (formate["defect_partner"].values >= 0).sum()
    z = other["numbers"].values
    if "H2O" in cap:
        assert set(z[found["defect_atom"].values]) == set(z[found["defect_other"].values]) == {8}
        assert set(z[found["defect_hydrogen"].values]) == {1}
    else:
        assert set(z[found["defect_atom"].values]) == set(z[found["defect_hydrogen"].values]) == {6}
        assert set(found["defect_other"].values.tolist()) == {-1}


def test_find_blocks__nitriles_are_pillars():
    blocks = find_blocks(dataset(published.nitrile_chain()), rule="pillar")
    assert kinds(blocks) == [(1, "Ag", "node", 1, 2), (1, "C8H4N2", "linker", 0, 2)]
    with pytest.raises(StructureError, match="anion is missing"):
        check_structure(dataset(published.nitrile_chain()), rule="pillar")


def test_find_blocks__water_on_paddlewheels_and_trimers_is_no_defect():
    # Open metal sites, not places of a linker.
    assert find_blocks(dataset(published.mil88b())).sizes["defect"] == 0
    assert find_blocks(dataset(published.hkust1())).sizes["defect"] == 0


def test_find_blocks__isomers_are_different_kinds():
    # The same formula, other bonds: two neighbouring Hf in a brick, or two opposite ones.
    from mofal.frameworks import substitute

    ds = build("S_pr", cell="primitive")
    a = find_blocks(substitute(ds, [0, 1], "Hf"))
    b = find_blocks(substitute(ds, [0, 3], "Hf"))
    c = find_blocks(substitute(ds, [1, 2], "Hf"))
    assert a["formula"].values[0] == b["formula"].values[0]
    assert a["kind_hash"].values[0] != b["kind_hash"].values[0]
    assert a["kind_hash"].values[0] == c["kind_hash"].values[0]


def test_find_blocks__defect_labels():
    ds = build("S_ld")
    blocks = find_blocks(ds)
    assert blocks["defect_label"].values.tolist() == ["missing linker"] * 2
    assert blocks["defect_partner"].values.tolist() == [1, 0]
    bricks = blocks["defect_block"].values
    assert bricks[0] != bricks[1]
    assert blocks["coordination"].values[bricks].tolist() == [11, 11]
    assert blocks["n_missing"].values[bricks].tolist() == [1, 1]
    reo = find_blocks(build("S_reo"))
    assert reo["defect_label"].values.tolist() == ["missing brick"] * 12
    assert set(reo["defect_hole"].values.tolist()) == {0}
    scu = find_blocks(build("S_scu"))["defect_label"].values
    assert [(scu == t).sum() for t in ("missing brick", "missing linker")] == [12, 8]


def test_find_blocks__defect_labels_hold_in_a_warm_frame():
    ds = build("S_scu", repeat=(2, 1, 1))
    rng = np.random.default_rng(1)
    warm = ds.copy(deep=True)
    warm["positions"].values[:] += rng.normal(0, 0.05, warm["positions"].shape)
    a, b = find_blocks(ds), find_blocks(warm)
    assert np.array_equal(a["defect_label"].values, b["defect_label"].values)
    assert np.array_equal(a["defect_partner"].values, b["defect_partner"].values)


def test_find_blocks__guests_are_blocks_of_their_own():
    host = published.mof5()
    pores = host.cell.lengths()[0] / 2 * np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]])
    for name, pore in zip(("H2O", "CO2", "C6H6", "N2"), pores):
        guest = molecule(name)
        guest.positions += pore
        host += guest
    blocks = check_structure(dataset(host))
    guests = [k for k in kinds(blocks) if k[2] == "guest"]
    assert sorted(g[1] for g in guests) == ["C6H6", "CO2", "H2O", "N2"]
    assert all(g[3] == 0 and g[4] == 0 for g in guests)
    assert "4 guest molecules" in blocks.attrs["notes"]
    assert set(blocks["net"].values[blocks["role"].values == "guest"].tolist()) == {-1}


def test_find_blocks__interpenetrated_nets():
    one = published.mof5()
    a = one.cell.lengths()[0]
    other = one.copy()
    other.positions += a / 4
    both = one + other
    blocks = check_structure(dataset(both))
    assert blocks.attrs["n_nets"] == 2
    assert "2 interpenetrated nets" in blocks.attrs["notes"]
    label = blocks["net"].values
    of_atom = np.empty(len(both), int)
    of_atom[blocks["member_atom"].values] = np.repeat(label, blocks["block_n_atoms"].values)
    assert len(set(of_atom[: len(one)].tolist())) == 1
    assert of_atom[0] != of_atom[-1]


def test_net_labels__net_interwoven_with_its_own_translate():
    # One block per cell, linked to itself along vectors that span only half of the lattice.
    pair = np.zeros((3, 2), int)
    assert net_labels(1, pair, np.array([[1, 1, 0], [1, -1, 0], [0, 0, 1]]))[1:] == (2, 3)
    assert net_labels(1, pair, np.eye(3, dtype=int))[1:] == (1, 3)
    assert net_labels(1, pair[:2], np.array([[1, 0, 0], [0, 1, 0]]))[1:] == (1, 2)
    label, n, dimension = net_labels(3, np.array([[0, 1]]), np.zeros((1, 3), int))
    assert label.tolist() == [0, 0, -1]
    assert (n, dimension) == (1, 0)


def test_check_structure__layers_are_not_interpenetrated():
    # The paddlewheel sheets of DMOF-1 without their pillars, two of them stacked.
    sheet = published.dmof()[:34]
    assert "N" not in sheet.get_chemical_symbols()
    blocks = check_structure(dataset(sheet * (1, 1, 2)))
    assert blocks.attrs["net_dimension"] == 2
    assert "2 layers" in blocks.attrs["notes"]


def test_find_blocks__pendant_ligands_stay_with_their_node():
    # An acetate in place of one linker's end: two blocks of a cut would join nothing.
    ds = build("S_ld", cell="primitive")
    blocks = find_blocks(ds)
    h = int(blocks["defect_hydrogen"].values[0])
    c = int(blocks["defect_atom"].values[0])
    x, cell = ds["positions"].values, ds["cell"].values[0]
    gap = np.linalg.solve(cell.T, x[h] - x[c])
    out = (gap - np.rint(gap)) @ cell
    out /= np.linalg.norm(out)
    side = np.cross(out, [0.1, 0.7, 0.7])
    side /= np.linalg.norm(side)
    third = np.cross(out, side)
    z = ds["numbers"].values.copy()
    z[h] = 6
    x = x.copy()
    x[h] = x[c] + 1.5 * out
    turns = np.radians([0, 120, 240])[:, None]
    hydrogens = x[h] + 1.09 * (
        out / 3 + np.sqrt(8) / 3 * (np.cos(turns) * side + np.sin(turns) * third)
    )
    atoms = Atoms(np.append(z, [1, 1, 1]), positions=np.vstack([x, hydrogens]), cell=cell, pbc=True)
    found = kinds(check_structure(dataset(atoms)))
    assert found[0] == (1, "C13H8O32Zr6", "node", 0, 10)
    assert len(found) == 2


def test_find_blocks__oxalate_joins_two_nodes():
    # A chain of Zn and oxalate: the cut bond has a node on both sides.
    x = [[0.0, 0, 0], [2.35, 0, 0], [3.9, 0, 0]]
    symbols = ["Zn", "C", "C"]
    oxygens = [[1.75, 1.1, 0], [1.75, -1.1, 0], [4.5, 1.1, 0], [4.5, -1.1, 0]]
    chain = Atoms(symbols + ["O"] * 4, positions=x + oxygens, cell=[6.25, 12, 12], pbc=True)
    blocks = find_blocks(dataset(chain), rule="carboxylate")
    assert blocks["role"].values.tolist() == ["node"]
    assert blocks["formula"].values.tolist() == ["C2O4Zn"]
    assert blocks["charge"].values.tolist() == [0]
    assert blocks["link_cap_length"].values.tolist() == [[1.10, 1.10]]
    assert blocks["coordination"].values.tolist() == [2]


def test_find_blocks__finite_cluster():
    brick = build("S_ld", cell="primitive")
    blocks = find_blocks(brick)
    # One brick alone, made whole, its cut bonds capped: one node, nothing to link.
    size = int(blocks["block_n_atoms"].values[0])
    atoms = blocks["member_atom"].values[:size]
    cell = brick["cell"].values[0]
    x = brick["positions"].values[atoms] + blocks["member_shift"].values[:size] @ cell
    found = find_blocks(dataset(Atoms(brick["numbers"].values[atoms], positions=x)))
    assert found["role"].values.tolist() == ["node"]
    assert found.sizes["link"] == 0


def test_find_blocks__linker_with_a_metal_is_a_linker():
    # One ring H replaced by HgCl: a metal that no rule cuts off belongs to its linker.
    ds = build("S_pr", cell="primitive")
    z, x, cell = ds["numbers"].values, ds["positions"].values, ds["cell"].values[0]
    bonds = find_bonds(ds)
    h = int(np.flatnonzero(z == 1)[-1])
    at = np.flatnonzero((bonds["bond_atom"].values == h).any(axis=1))[0]
    carbon = int(bonds["bond_atom"].values[at].sum()) - h
    out = np.linalg.solve(cell.T, x[h] - x[carbon])
    out = (out - np.rint(out)) @ cell
    out /= np.linalg.norm(out)
    z, x = z.copy(), x.copy()
    z[h], x[h] = 80, x[carbon] + 2.08 * out
    atoms = Atoms(
        np.append(z, 17), positions=np.vstack([x, x[carbon] + 4.38 * out]), cell=cell, pbc=True
    )
    found = kinds(check_structure(dataset(atoms)))
    assert (1, "C6H3ClHg", "linker", 0, 2) in found
    assert (5, "C6H4", "linker", 0, 2) in found


def test_register_rule__a_few_lines():
    @register_rule("nitrile")
    def nitrile(m):
        return [Cut(m.between(m.metal, (m.z == 7) & (m.degree == 2)), H_CAP, H_CAP)]

    assert "nitrile" in rule_names()
    blocks = find_blocks(build("S_pr", cell="primitive"), rule="carboxylate+nitrile")
    assert blocks.sizes["block"] == 7
    with pytest.raises(ConfigError, match="taken are carboxylate"):
        register_rule("nitrile")(nitrile)
    with pytest.raises(ConfigError, match=r"'\+' joins"):
        register_rule("a+b")(nitrile)
    with pytest.raises(ConfigError, match=r"unknown rule 'amide'.*carboxylate"):
        find_blocks(build("S_pr", cell="primitive"), rule="amide")


def test_find_blocks__open_shells_are_marked():
    copper = find_blocks(dataset(published.hkust1()))
    assert np.array_equal(copper["open_shell"].values, copper["role"].values == "node")
    assert not find_blocks(build("S_pr"))["open_shell"].values.any()


def test_find_blocks__electrons_of_method():
    # method.md: brick with 12 carboxylates 572 electrons with its caps, linker 40; both neutral.
    ds = build("S_pr")
    blocks = find_blocks(ds)
    z = ds["numbers"].values[blocks["member_atom"].values]
    start = np.concatenate([[0], np.cumsum(blocks["block_n_atoms"].values)])[:-1]
    electrons = np.add.reduceat(z, start) - blocks["charge"].values
    assert set(electrons[blocks["role"].values == "node"].tolist()) == {572}
    assert set(electrons[blocks["role"].values == "linker"].tolist()) == {40}
    # With one H per cut bond: 584 and 42, closed shells.
    ends = np.bincount(blocks["link_block"].values.ravel(), minlength=blocks.sizes["block"])
    capped = electrons + ends
    assert set(capped.tolist()) == {584, 42}
