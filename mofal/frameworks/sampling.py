"""Disorder: missing linkers, missing bricks and exchanged metals, drawn for a whole supercell.

Drawing works on blocks alone (fast enough for statistics over seeds); atoms are made afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.blocks import blocks_from_bonds
from mofal.frameworks.bonds import IS_METAL, Bonds, bond_lengths, bonds_of, structure_arrays
from mofal.frameworks.components import components
from mofal.frameworks.defects import one_structure, remove_blocks, substitute
from mofal.frameworks.domains import BlockNet, bcu_domains, reo_domains
from mofal.frameworks.leavings import is_bridge

if TYPE_CHECKING:
    import xarray as xr

PATTERNS = ("independent", "reo", "bcu")


@dataclass(frozen=True)
class Draw:
    """One realisation of disorder, before any atom is moved.

    Attributes
    ----------
    removed : (block,) bool array
        Blocks that go: drawn ones, the ligands of missing bricks, and what comes unconnected.
    exchanged : (n,) int array
        Metal atoms that are exchanged, of those that stay.
    n_atoms : int
        Atoms of the result, caps included.
    c_hf, c_brick, c_linker : float
        Exchanged fraction of the metal sites that stay; missing fraction of the pristine bricks,
        and of the pristine linkers.
    coordination : float
        Mean number of linkers on a brick that stays.
    n_unconnected : int
        Blocks that were discarded because nothing joined them to the framework any more.
    """

    removed: NDArray[np.bool_]
    exchanged: NDArray[np.int64]
    n_atoms: int
    c_hf: float
    c_brick: float
    c_linker: float
    coordination: float
    n_unconnected: int


def seed_sequence(seed: int) -> np.random.SeedSequence:
    """Source of all random numbers of one seed.

    Raises
    ------
    StructureError
        When the seed is no whole number from 0 on: nothing could be drawn again.
    """
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        raise StructureError(f"seed={seed!r}: expected a whole number from 0 on, e.g. seed=0")
    return np.random.SeedSequence(int(seed))


def _plain(value: object) -> object:
    """A number that JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _count(amount: float | int, n: int, name: str, exact: bool) -> int | None:
    """Exact number of sites, or None where each site is drawn by itself."""
    number = isinstance(amount, Real) and not isinstance(amount, bool | np.bool_)
    if not number or not np.isfinite(amount) or amount < 0:
        raise StructureError(
            f"{name}={amount!r}: expected a fraction from 0 to 1, or an integer count, e.g. "
            f"{name}=0.2"
        )
    if isinstance(amount, int | np.integer) and amount != 0:
        if amount > n:
            raise StructureError(f"{name}={amount} of {n} sites: give at most {n}")
        return int(amount)
    if amount > 1:
        raise StructureError(
            f"{name}={amount!r} is more than all: expected a fraction from 0 to 1, or an integer "
            f"count of the {n} sites"
        )
    if not exact:
        return None
    if amount and not round(amount * n):
        raise StructureError(
            f"{name}={amount!r} of {n} sites is none of them: give a count, {name}=1, more sites "
            "(a supercell), or exact=False, which draws each site by itself"
        )
    return round(amount * n)


def _pick(rng: np.random.Generator, n: int, amount: float, count: int | None) -> NDArray[np.bool_]:
    # The same uniform numbers serve both ways, so that a seed means the same sites first.
    u = rng.random(n)
    if count is None:
        return u < amount
    out = np.zeros(n, bool)
    out[np.argsort(u, kind="stable")[:count]] = True
    return out


class Sampler:
    """Draws disorder on the blocks of one pristine framework.

    Parameters
    ----------
    ds : Dataset of one structure
    blocks : Dataset
        Its blocks.
    metal : str
        Symbol of the metal that is put in.
    """

    def __init__(self, ds: xr.Dataset, blocks: xr.Dataset, *, metal: str = "Hf") -> None:
        one_structure(ds)
        if metal not in atomic_numbers or not IS_METAL[atomic_numbers[metal]]:
            raise StructureError(f"{metal!r} is no metal: give a symbol, such as 'Hf'")
        self.metal = metal
        numbers, positions, cell, _ = structure_arrays(ds, 0)
        self.net = BlockNet.of(blocks, positions, cell)
        role = blocks["role"].values
        self.nodes = np.flatnonzero(role == "node")
        # A ligand on one brick only joins nothing: it is no linker that could be missing.
        # Nor is one that holds a rod together, such as an OH.
        joins = (role == "linker") & (blocks["coordination"].values > 1) & ~is_bridge(blocks)
        self.linkers = np.flatnonzero(joins)
        if not len(self.nodes) or not len(self.linkers):
            raise StructureError(
                "this structure has no bricks joined by linkers, so none can be missing; look at "
                "its blocks: mofal.frameworks.find_blocks(ds)"
            )
        self.pair = blocks["link_block"].values
        self.image = blocks["link_image"].values
        self.cap = blocks["link_cap"].values
        self.size = blocks["block_n_atoms"].values
        label = np.empty(len(numbers), np.int64)
        label[blocks["member_atom"].values] = np.repeat(np.arange(len(self.size)), self.size)
        self.metals = np.flatnonzero(IS_METAL[numbers] & (role[label] == "node"))
        self.metals = self.metals[numbers[self.metals] != atomic_numbers[metal]]
        self.metal_block = label[self.metals]
        foreign = IS_METAL[numbers] & (numbers == atomic_numbers[metal]) & (role[label] == "node")
        self.foreign_block = label[foreign]
        self.guest = role == "guest"
        self.endless = self._endless(np.zeros(len(self.size), bool))

    def _graph(self, removed: NDArray[np.bool_]) -> Bonds:
        keep = ~removed[self.pair].any(axis=1)
        pair, image = self.pair[keep], self.image[keep]
        start = np.concatenate([pair[:, 0], pair[:, 1]])
        order = np.argsort(start, kind="stable")
        end = np.concatenate([pair[:, 1], pair[:, 0]])[order]
        shift = np.concatenate([image, -image])[order]
        return Bonds(
            len(removed), start[order].astype(np.int32), end.astype(np.int32), shift.astype(int)
        )

    def _endless(self, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Blocks of pieces that go on for ever: (block,)."""
        graph = self._graph(removed)
        pieces = components(graph)
        return np.isin(pieces.label, pieces.endless(graph))

    def unconnected(self, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Blocks that hang on nothing after a removal: of an endless net only endless parts stay.

        Where no endless part is left, the largest piece stays.
        """
        graph = self._graph(removed)
        pieces = components(graph)
        stays = np.isin(pieces.label, pieces.endless(graph))
        if not stays[~removed & self.endless].any():
            count = np.bincount(pieces.label[~removed], minlength=pieces.n)
            stays = pieces.label == count.argmax()
        return ~removed & ~stays & ~self.guest & self.endless

    def draw(
        self,
        *,
        hf: float = 0.0,
        linker: float = 0.0,
        brick: float = 0.0,
        seed: int | np.random.SeedSequence = 0,
        exact: bool = False,
        pattern: str = "independent",
        domain_size: float | None = None,
    ) -> Draw:
        """Draw one realisation; the parameters are those of `disorder`."""
        if pattern not in PATTERNS:
            raise StructureError(
                f"unknown pattern {pattern!r}; patterns: {', '.join(PATTERNS)}: "
                "disorder(ds, brick=0.1, pattern='reo', domain_size=60)"
            )
        if (pattern != "independent") != (domain_size is not None):
            raise StructureError(
                "domains need a pattern and a size, independent draws neither: "
                "disorder(ds, brick=0.1, pattern='reo', domain_size=60)"
            )
        drawn = {"reo": ("brick", brick), "bcu": ("linker", linker)}.get(pattern)
        if drawn is not None and not drawn[1]:
            raise StructureError(
                f"{pattern} domains are made of missing {drawn[0]}s, but {drawn[0]}={drawn[1]!r}: "
                f"disorder(ds, {drawn[0]}=0.1, pattern={pattern!r}, domain_size=60)"
            )
        if domain_size is not None and not (
            isinstance(domain_size, Real) and 0 < float(domain_size) < np.inf
        ):
            raise StructureError(f"domain_size={domain_size!r}: expected a length in Å, e.g. 60")
        size = 0.0 if domain_size is None else float(domain_size)
        root = seed if isinstance(seed, np.random.SeedSequence) else seed_sequence(seed)
        # One stream per kind of defect: a change of one fraction leaves the other draws alone.
        rngs = [np.random.default_rng(s) for s in root.spawn(3)]
        if hf and not len(self.metals):
            raise StructureError(
                f"hf={hf!r}, but every metal of the bricks is {self.metal} already; name another, "
                "disorder(ds, hf=0.2, metal='Hf')"
            )
        n_hf = _count(hf, len(self.metals), "hf", exact)
        n_linker = _count(linker, len(self.linkers), "linker", exact)
        n_brick = _count(brick, len(self.nodes), "brick", exact)
        metal_drawn = _pick(rngs[0], len(self.metals), hf, n_hf)
        removed = np.zeros(len(self.size), bool)
        if pattern == "bcu" and linker:
            target = n_linker if n_linker is not None else round(linker * len(self.linkers))
            removed[bcu_domains(self.net, self.linkers, target, size, rngs[1])] = True
        else:
            removed[self.linkers[_pick(rngs[1], len(self.linkers), linker, n_linker)]] = True
        if pattern == "reo" and brick:
            target = n_brick if n_brick is not None else round(brick * len(self.nodes))
            bricks = reo_domains(self.net, self.nodes, target, size, rngs[2])
        else:
            bricks = self.nodes[_pick(rngs[2], len(self.nodes), brick, n_brick)]
        removed[bricks] = True
        touched = removed[self.pair] & np.isin(self.pair, self.nodes)
        ligand = self.pair[touched.any(axis=1)]
        removed[ligand[np.isin(ligand, self.linkers)]] = True
        # Ligands that held only on to what is gone go with it.
        loose = self.unconnected(removed)
        removed |= loose
        return self._describe(removed, metal_drawn, int(loose.sum()))

    def _describe(
        self, removed: NDArray[np.bool_], metal_drawn: NDArray[np.bool_], n_unconnected: int
    ) -> Draw:
        stays = ~removed[self.metal_block]
        exchanged = self.metals[metal_drawn & stays]
        foreign = int((~removed[self.foreign_block]).sum())
        sites = int(stays.sum()) + foreign
        end_gone = removed[self.pair]
        caps = (end_gone[:, ::-1] & ~end_gone) & (self.cap > 0)
        is_linker = np.zeros(len(removed), bool)
        is_linker[self.linkers] = True
        nodes_left = int((~removed[self.nodes]).sum())
        n_ends = int((~end_gone.any(axis=1) & is_linker[self.pair].any(axis=1)).sum())
        return Draw(
            removed=removed,
            exchanged=exchanged,
            n_atoms=int(self.size[~removed].sum() + caps.sum()),
            c_hf=(len(exchanged) + foreign) / sites if sites else 0.0,
            c_brick=1.0 - nodes_left / len(self.nodes),
            c_linker=float(removed[self.linkers].mean()),
            coordination=n_ends / nodes_left if nodes_left else 0.0,
            n_unconnected=n_unconnected,
        )


def disorder(
    ds: xr.Dataset,
    *,
    hf: float = 0.0,
    linker: float = 0.0,
    brick: float = 0.0,
    seed: int = 0,
    exact: bool = False,
    pattern: str = "independent",
    domain_size: float | None = None,
    metal: str = "Hf",
    rule: str = "auto",
    system: str | None = None,
    blocks: xr.Dataset | None = None,
) -> xr.Dataset:
    """Put disorder into a pristine framework (paper, section 4.3).

    Missing linkers leave formates; a missing brick takes all its ligands with it; what then hangs
    on nothing is discarded.

    Parameters
    ----------
    ds : Dataset of one structure
        A supercell large enough for the disorder.
    hf, linker, brick : float or int
        Fraction of metal sites to exchange, of linkers and of bricks to remove: every site is
        drawn by itself. An integer is an exact number of sites: 1 is one site, 1.0 all of them.
    seed : int
        Seed of all draws; metals, linkers and bricks have streams of their own.
    exact : bool
        Fractions mean exact numbers too.
    pattern : str
        ``"independent"``; ``"reo"``: bricks go in nanodomains of reo order (Cliffe et al., Nat.
        Commun. 5, 4176, 2014); ``"bcu"``: linkers go in nanodomains of bcu order. Numbers are
        exact for the kind that is drawn in domains.
    domain_size : float
        Diameter of a nanodomain, Å.
    metal : str
        Symbol of the metal that is put in.
    rule : str
        Rule that cuts blocks.
    system : str, optional
        Name of the result; default: that of `ds`.
    blocks : Dataset, optional
        Blocks of `ds` where they are known already.

    Returns
    -------
    Dataset
        One structure; its attribute ``disorder`` is JSON of what was asked and what came out:
        ``c_hf``, ``c_brick``, ``c_linker``, ``coordination``, ``n_unconnected``.

    Raises
    ------
    StructureError
        When a fraction is none, or the pattern cannot hold it.
    """
    one_structure(ds)
    found = _blocks(ds, rule) if blocks is None else blocks
    draw = Sampler(ds, found, metal=metal).draw(
        hf=hf,
        linker=linker,
        brick=brick,
        seed=seed,
        exact=exact,
        pattern=pattern,
        domain_size=domain_size,
    )
    if draw.removed.all():
        raise StructureError(
            f"nothing is left at linker={linker}, brick={brick}: lower them, or choose another seed"
        )
    mixed = substitute(ds, draw.exchanged, metal)
    out = remove_blocks(mixed, found, draw.removed, system=system)
    asked = {
        "hf": hf,
        "linker": linker,
        "brick": brick,
        "seed": seed,
        "exact": exact,
        "pattern": pattern,
        "domain_size": domain_size,
        "metal": metal,
    }
    asked = {name: _plain(value) for name, value in asked.items()}
    out.attrs["disorder"] = json.dumps({**asked, **realised(draw)}, sort_keys=True)
    return out


def realised(draw: Draw) -> dict[str, float]:
    """What came out of a draw, by name."""
    return {
        "c_hf": draw.c_hf,
        "c_brick": draw.c_brick,
        "c_linker": draw.c_linker,
        "coordination": draw.coordination,
        "n_unconnected": draw.n_unconnected,
    }


def _blocks(ds: xr.Dataset, rule: str) -> xr.Dataset:
    numbers, positions, cell, pbc = structure_arrays(ds, 0)
    bonds = bonds_of(numbers, positions, cell, pbc)
    return blocks_from_bonds(numbers, bonds, rule=rule, length=bond_lengths(bonds, positions, cell))


def disorder_statistics(
    ds: xr.Dataset,
    *,
    seeds: Iterable[int],
    hf: float = 0.0,
    linker: float = 0.0,
    brick: float = 0.0,
    exact: bool = False,
    pattern: str = "independent",
    domain_size: float | None = None,
    metal: str = "Hf",
    rule: str = "auto",
    blocks: xr.Dataset | None = None,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """What `disorder` would realise for each of many seeds, without making atoms.

    Parameters
    ----------
    ds : Dataset of one structure
    seeds : iterable of int
        One draw each; the other parameters are those of `disorder`.
    progress : callable, optional
        Told how far it is, in words.

    Returns
    -------
    Dataset
        ``n_atoms(seed)``, ``c_hf(seed)``, ``c_brick(seed)``, ``c_linker(seed)``,
        ``coordination(seed)`` and ``n_unconnected(seed)``.
    """
    import xarray as xr

    sampler = Sampler(ds, _blocks(ds, rule) if blocks is None else blocks, metal=metal)
    chosen = [int(s) for s in seeds]
    draws = []
    for k, seed in enumerate(chosen):
        draws.append(
            sampler.draw(
                hf=hf,
                linker=linker,
                brick=brick,
                seed=seed,
                exact=exact,
                pattern=pattern,
                domain_size=domain_size,
            )
        )
        if progress is not None and (k + 1) % 100 == 0:
            progress(f"{k + 1} of {len(chosen)} draws")
    names = ("n_atoms", "c_hf", "c_brick", "c_linker", "coordination", "n_unconnected")
    return xr.Dataset(
        {name: ("seed", np.array([getattr(d, name) for d in draws])) for name in names},
        coords={"seed": np.array(chosen, np.int64)},
    )
