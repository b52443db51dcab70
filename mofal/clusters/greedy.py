"""A batch of cores, each chosen by what the ones before it leave uncovered, in bounded memory.

A pick never makes a block more wanted (`Ranking.wanted`): what a block was worth when it was last
looked at is a bound for ever after. Blocks lie in pieces; a piece is brought up to date when one of
its blocks leads by its bound, and a block that leads and is up to date is the next pick. That is
exact, whatever the pieces are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from mofal.clusters.coverage import FeatureCoverage, Kernel, sample_stride
from mofal.clusters.graph import FloatArray, IntArray
from mofal.clusters.pool import Pool, gather, score_arrays
from mofal.clusters.rankings import Ranking, reduce_blocks
from mofal.errors import DataError

FRONT_FACTOR, FRONT_LEAST = 10, 1000
"""How many of the first candidates are the first piece: per core wanted, and at least."""
HELD, PASSING = 1_000_000, 250_000
"""Atoms whose features stay in memory, the first in order; and those of a piece that does not."""


@dataclass
class Order:
    """Candidates, most wanted first, before any pick.

    Attributes
    ----------
    candidate : (place,) number in the pool
    value, unseen : (place,) what `weigh` makes of it
    cost : (place,) relative to the median, or None
    typical : value of the median candidate of the pool
    """

    candidate: IntArray
    value: FloatArray
    unseen: FloatArray
    cost: FloatArray | None
    typical: float


def weigh(
    wanted: FloatArray, unseen: FloatArray, cost: FloatArray | None, typical: float
) -> tuple[FloatArray, FloatArray]:
    """Values of candidates per cost.

    What counts is how far a block is more wanted than the typical one; that excess is divided by
    the cost. A block less wanted than the typical one is punished by its cost instead, so that
    the order stays monotonic in both.

    Parameters
    ----------
    wanted, unseen : (candidate,) value of the ranking; atoms at minus infinity
    cost : (candidate,) relative to the median, or None
    typical : value of the median candidate of the pool
    """
    if cost is None:
        return wanted, unseen
    excess = wanted - typical
    return np.where(excess > 0, excess / cost, excess * cost), unseen / cost


@dataclass
class _Piece:
    """Candidates that are looked at together.

    Attributes
    ----------
    place : (block,) in the order
    stays : whether its features stay in memory
    seen : picks that its bounds account for, -1 before the first look
    """

    place: IntArray
    stays: bool
    seen: int = -1
    atoms: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    raised: FloatArray | None = None
    held: tuple[FloatArray, FeatureCoverage, FloatArray, IntArray] | None = None


class Batch:
    """Picks, and what they leave of the values of all others.

    Parameters
    ----------
    pool, ranking, scores, order
        Candidates, and how they are ranked.
    features : Dataset with `features` (atom, feature), in memory or lazy
    n : cores wanted
    bandwidth : multiplies the width of what a pick covers

    Raises
    ------
    DataError
        If features or scores do not belong to the pool.
    """

    def __init__(
        self,
        pool: Pool,
        ranking: Ranking,
        scores: xr.Dataset,
        order: Order,
        features: xr.Dataset,
        *,
        n: int,
        bandwidth: float,
    ) -> None:
        n_atoms = int(pool.atom_start[-1])
        if "features" not in features.variables or features["features"].shape[0] != n_atoms:
            raise DataError(
                "features do not belong to these structures: expected a variable features "
                f"(atom, feature) with {n_atoms} rows"
            )
        self._score, self._numbers = score_arrays(pool, ranking, scores)
        if "log_likelihood" not in scores.variables:
            raise DataError(
                f"coverage by features needs log_likelihood beside {ranking.variable} in the "
                "scores; or use coverage='blocks'"
            )
        self._density = scores["log_likelihood"].data
        self._features: Any = features["features"].data
        self.pool, self.ranking, self.order = pool, ranking, order
        stride = sample_stride(n_atoms)
        some = np.arange(0, n_atoms, stride)
        sample, numbers = gather(self._features, some), gather(self._numbers, some)
        self._kernel = Kernel(sample, numbers, stride=stride, bandwidth=bandwidth)
        #: (place,) bounds from above; exact for a piece that has seen all picks.
        self._value, self._unseen = order.value.copy(), order.unseen.copy()
        self._left = np.ones(len(order.candidate), dtype=np.bool_)
        self._pieces = list(_pieces(pool, order, first=max(FRONT_FACTOR * n, FRONT_LEAST)))
        self._piece_of = np.empty(len(order.candidate), dtype=np.int32)
        for k, piece in enumerate(self._pieces):
            self._piece_of[piece.place] = k
        self._picks: list[tuple[FloatArray, IntArray]] = []

    def choose(
        self, n: int, progress: Callable[[str], None] | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The first n picks: places in the order (pick,), and their values at that moment."""
        picked: list[int] = []
        at_pick: list[float] = []
        while len(picked) < n:
            best = self._leader()
            piece = self._pieces[self._piece_of[best]]
            if piece.seen < len(picked):
                self._look(piece)
                continue
            self._left[best] = False
            picked.append(best)
            at_pick.append(float(self._value[best]))
            self._picks.append(self._atoms(best))
            if progress is not None and len(picked) % 100 == 0:
                progress(f"chose {len(picked)} of {n} cores")
        return np.array(picked, dtype=np.int64), np.array(at_pick)

    def _leader(self) -> int:
        """Most wanted by its bound; ties by unseen atoms, then by place in the order."""
        among = np.flatnonzero(self._left)
        value = self._value[among]
        among = among[value == value.max()]
        return int(among[self._unseen[among].argmax()])

    def _atoms(self, place: int) -> tuple[FloatArray, IntArray]:
        """Features and atomic numbers of a block."""
        atoms = self.pool.atoms_of(self.order.candidate[[place]])[0]
        piece = self._pieces[self._piece_of[place]]
        if piece.held is not None:
            rows = np.searchsorted(piece.atoms, atoms)
            return piece.held[0][rows], piece.held[1].numbers[rows]
        return gather(self._features, atoms), gather(self._numbers, atoms)

    def _look(self, piece: _Piece) -> None:
        """Let a piece account for all picks."""
        x, held, own, owner = piece.held or self._load(piece)
        for picked in self._picks[max(piece.seen, 0) :]:
            held.pick(*picked)
        piece.seen = len(self._picks)
        likely = self.ranking.variable == "log_likelihood"
        effective = held.effective if likely else own
        terms = reduce_blocks(
            self.ranking,
            effective,
            held.numbers,
            owner,
            len(piece.place),
            counts=None if likely else held.counts,
        )
        lost = np.isneginf(effective)
        unseen = np.bincount(owner, weights=lost, minlength=len(piece.place)).astype(float)
        raw = np.asarray(self.ranking.wanted(terms), dtype=float)
        cost = None if self.order.cost is None else self.order.cost[piece.place]
        value, unseen = weigh(raw, unseen, cost, self.order.typical)
        self._value[piece.place], self._unseen[piece.place] = value, unseen
        if piece.stays:
            piece.held = x, held, own, owner
        else:
            piece.raised = held.raised

    def _load(self, piece: _Piece) -> tuple[FloatArray, FeatureCoverage, FloatArray, IntArray]:
        """Features, coverage, score and block of each atom of a piece."""
        piece.atoms, owner = self.pool.atoms_of(self.order.candidate[piece.place])
        x, numbers = gather(self._features, piece.atoms), gather(self._numbers, piece.atoms)
        held = FeatureCoverage(self._kernel, x, numbers, gather(self._density, piece.atoms))
        if piece.raised is not None:
            held.raised = piece.raised
        return x, held, gather(self._score, piece.atoms), owner


def _pieces(pool: Pool, order: Order, *, first: int) -> Iterator[_Piece]:
    """Ever longer pieces along the order as long as they can stay in memory; then by storage.

    Without ties all that matters lies in the first ones. Where values tie, the rest matters too:
    blocks whose atoms lie side by side are read together.
    """
    n, begin, end, held = len(order.candidate), 0, first, 0
    while begin < n:
        places = np.arange(begin, min(end, n))
        held += int(pool.n_atoms_of(order.candidate[places]).sum())
        if held > HELD and begin:
            break
        yield _Piece(places, stays=True)
        begin, end = len(places) + begin, 2 * end
    if begin < n:
        rest = begin + np.argsort(order.candidate[begin:], kind="stable")
        count = np.cumsum(pool.n_atoms_of(order.candidate[rest]))
        cuts = np.searchsorted(count, np.arange(PASSING, int(count[-1]), PASSING))
        for places in np.split(rest, np.unique(cuts)):
            if len(places):
                yield _Piece(np.sort(places), stays=False)
