"""Rankings of cores: from the scores of its atoms to how much a block is wanted.

A ranking is written as *terms* per atom, a *reduction* of each term over the atoms of a block, and
the value of a block. That form runs over chunks of a lazy array as well as in memory. Outsiders add
theirs as entry points of the group ``mofal.rankings``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mofal.clusters.graph import FloatArray, IntArray
from mofal.errors import ConfigError

REDUCTIONS: dict[str, tuple[np.ufunc, float]] = {
    "min": (np.minimum, np.inf),
    "max": (np.maximum, -np.inf),
    "sum": (np.add, 0.0),
    "total": (np.add, 0.0),
}
"""How a term is reduced over a block, and the value of a block none of whose atoms counts.

``total`` is a sum over all atoms of the block, also those that no longer count (its size)."""

SAMPLE = 200_000
"""Scores that a percentile is estimated from."""


@runtime_checkable
class Ranking(Protocol):
    """How much a block is wanted as a core.

    Attributes
    ----------
    variable : which variable of the scores Dataset it reads
    reductions : for each term a key of `REDUCTIONS`, over the atoms of a block
    cost : ``"atoms"``, ``"electrons"``, ... or None: the cost that it weighs by default
    sample : how many of all scores, evenly spaced, `fit` wants to see; 0: it is not called
    """

    variable: str
    reductions: Mapping[str, str]
    cost: str | None
    sample: int

    def fit(self, score: FloatArray) -> None:
        """Look at a sample of all scores before the first block is ranked."""

    def terms(self, score: FloatArray, numbers: IntArray) -> Mapping[str, FloatArray]:
        """Terms of every atom: (atom,) each."""

    def wanted(self, reduced: Mapping[str, FloatArray]) -> FloatArray:
        """How much each block is wanted: (block,), higher is more, infinite is allowed.

        It must not grow when atoms of a block become likelier, or stop to count: what is covered
        by earlier picks never makes a block more wanted.
        """


class LeastLikelyAtom:
    """The paper's rule: the block that holds the least likely atom (SI.5)."""

    variable = "log_likelihood"
    reductions: Mapping[str, str] = {"least": "min"}
    cost: str | None = None
    sample = 0

    def fit(self, score: FloatArray) -> None:
        """Nothing to learn."""

    def terms(self, score: FloatArray, numbers: IntArray) -> Mapping[str, FloatArray]:
        """The log-likelihood itself."""
        return {"least": score}

    def wanted(self, reduced: Mapping[str, FloatArray]) -> FloatArray:
        """Minus the smallest log-likelihood."""
        return -reduced["least"]


class PerCost(LeastLikelyAtom):
    """The paper's rule, weighed by the cost of the cluster (atoms, unless said otherwise)."""

    cost: str | None = "atoms"


class SumBelowThreshold:
    """Sum of how far the log-likelihoods of a block fall below a threshold (SI.5).

    Parameters
    ----------
    threshold : log-likelihood; default: what 5 % of all scored atoms fall below
    """

    variable = "log_likelihood"
    reductions: Mapping[str, str] = {"deficit": "sum"}
    cost: str | None = None
    sample = SAMPLE

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold
        self.threshold_ = threshold

    def fit(self, score: FloatArray) -> None:
        """Place the threshold at the fifth percentile of the finite scores."""
        if self.threshold is None:
            finite = score[np.isfinite(score)]
            self.threshold_ = float(np.quantile(finite, 0.05)) if len(finite) else 0.0

    def terms(self, score: FloatArray, numbers: IntArray) -> Mapping[str, FloatArray]:
        """How far each atom is below the threshold."""
        if self.threshold_ is None:
            raise ConfigError("sum_below_threshold: no threshold; call fit or give threshold=-20.0")
        return {"deficit": np.maximum(self.threshold_ - score, 0.0)}

    def wanted(self, reduced: Mapping[str, FloatArray]) -> FloatArray:
        """The sum."""
        return reduced["deficit"]


class MeanWithoutHydrogen:
    """Minus the mean log-likelihood of a block, hydrogen left out (SI.5).

    Atoms that no longer count keep their place in the number of atoms, as if they were as likely
    as the median atom, so that a block does not become more wanted when part of it is covered.
    """

    variable = "log_likelihood"
    reductions: Mapping[str, str] = {"excess": "sum", "count": "total"}
    cost: str | None = None
    sample = SAMPLE

    def __init__(self) -> None:
        self.median_ = 0.0

    def fit(self, score: FloatArray) -> None:
        """Median of the finite scores: the level of an atom that no longer counts."""
        finite = score[np.isfinite(score)]
        self.median_ = float(np.median(finite)) if len(finite) else 0.0

    def terms(self, score: FloatArray, numbers: IntArray) -> Mapping[str, FloatArray]:
        """Unlikelihood against the median, and the atom, if it is no hydrogen."""
        heavy = numbers != 1
        return {
            "excess": np.where(heavy, self.median_ - score, 0.0),
            "count": heavy.astype(float),
        }

    def wanted(self, reduced: Mapping[str, FloatArray]) -> FloatArray:
        """The mean; a block of hydrogen alone is as wanted as the median atom."""
        return reduced["excess"] / np.maximum(reduced["count"], 1.0)


class CalibratedScore:
    """The block with the largest bound of the force error.

    Reads `error_bound` (atom) in eV/Å, as `mofal.density.PerElementDensity.error_bound` gives it;
    atoms of an element never seen have an infinite one. Where features cover an atom, its bound
    counts as nothing.
    """

    variable = "error_bound"
    reductions: Mapping[str, str] = {"largest": "max"}
    cost: str | None = None
    sample = 0

    def fit(self, score: FloatArray) -> None:
        """Nothing to learn."""

    def terms(self, score: FloatArray, numbers: IntArray) -> Mapping[str, FloatArray]:
        """The score itself."""
        return {"largest": score}

    def wanted(self, reduced: Mapping[str, FloatArray]) -> FloatArray:
        """The largest score."""
        return reduced["largest"]


class LowestQuantile:
    """The block with the lowest quantile among familiar atoms of its element.

    Reads `quantile` (atom) from 0, as unfamiliar as can be, to 1, as
    `mofal.density.PerElementDensity.quantile` gives it: elements are on one footing even where
    their densities are not.
    """

    variable = "quantile"
    reductions: Mapping[str, str] = {"least": "min"}
    cost: str | None = None
    sample = 0

    def fit(self, score: FloatArray) -> None:
        """Nothing to learn."""

    def terms(self, score: FloatArray, numbers: IntArray) -> Mapping[str, FloatArray]:
        """The quantile itself."""
        return {"least": score}

    def wanted(self, reduced: Mapping[str, FloatArray]) -> FloatArray:
        """One minus the lowest quantile; zero where no atom counts any more."""
        return 1.0 - np.minimum(reduced["least"], 1.0)


_BUILT_IN: dict[str, Callable[[], Ranking]] = {
    "least_likely_atom": LeastLikelyAtom,
    "calibrated_score": CalibratedScore,
    "lowest_quantile": LowestQuantile,
    "sum_below_threshold": SumBelowThreshold,
    "mean_without_hydrogen": MeanWithoutHydrogen,
    "per_cost": PerCost,
}


def ranking_names() -> list[str]:
    """Names that `get_ranking` knows: built in, and those of installed plug-ins."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group="mofal.rankings"))})


def get_ranking(ranking: str | Ranking, **options: Any) -> Ranking:
    """Make a ranking from its name.

    Parameters
    ----------
    ranking : name, or a ranking, which is returned as it is
    **options : arguments of the ranking, for example ``threshold=-20.0``

    Raises
    ------
    ConfigError
        If no ranking has that name, or a plug-in is not a ranking.
    """
    if not isinstance(ranking, str):
        made: Any = ranking
    elif ranking in _BUILT_IN:
        try:
            made = _BUILT_IN[ranking](**options)
        except TypeError as error:
            raise ConfigError(f"ranking {ranking!r}: {error}") from None
    else:
        found = [p for p in entry_points(group="mofal.rankings") if p.name == ranking]
        if not found:
            raise ConfigError(f"unknown ranking {ranking!r}; known: {', '.join(ranking_names())}")
        made = found[0].load()(**options)
    if not isinstance(made, Ranking) or set(made.reductions.values()) - set(REDUCTIONS):
        raise ConfigError(
            f"{ranking!r} is not a ranking: it needs variable, reductions (each one of "
            f"{', '.join(REDUCTIONS)}), cost, sample, fit, terms and wanted; see Ranking in "
            "mofal.clusters.rankings"
        )
    return made


def reduce_blocks(
    ranking: Ranking,
    score: FloatArray,
    numbers: IntArray,
    block: IntArray,
    n: int,
    *,
    counts: np.ndarray | None = None,
) -> dict[str, FloatArray]:
    """Terms of a ranking reduced over blocks: (block,) each.

    Parameters
    ----------
    score, numbers, block : (atom,) score, atomic number, and the block of each atom (any order)
    n : number of blocks
    counts : (atom,) bool, atoms that still count; default: all
    """
    out: dict[str, FloatArray] = {}
    terms = ranking.terms(score, numbers)
    for name, how in ranking.reductions.items():
        ufunc, empty = REDUCTIONS[how]
        value = np.asarray(terms[name], dtype=float)
        if counts is not None and how != "total":
            value = np.where(counts, value, empty)
        if ufunc is np.add:
            out[name] = np.bincount(block, weights=value, minlength=n).astype(float)
        else:
            out[name] = np.full(n, empty)
            ufunc.at(out[name], block, value)
    return out


def check_ranking(ranking: str | Ranking, *, seed: int = 0) -> None:
    """Check that a ranking keeps what `select` relies on; a plug-in's tests call this.

    Random blocks are ranked whole and in pieces (the same result: chunks may split a block), and
    after some of their atoms became likelier (never more wanted than before).

    Raises
    ------
    ConfigError
        With what was found.
    """
    made = get_ranking(ranking)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    n_blocks, n_atoms = 40, 2000
    block = rng.integers(0, n_blocks, size=n_atoms)
    numbers = rng.choice([1, 6, 8, 40], size=n_atoms)
    score = rng.normal(size=n_atoms) * 5.0
    if made.variable == "log_likelihood":
        score[rng.random(n_atoms) < 0.01] = -np.inf
    if made.sample > 0:
        made.fit(score)

    def value(changed: FloatArray) -> FloatArray:
        return np.asarray(made.wanted(reduce_blocks(made, changed, numbers, block, n_blocks)))

    whole = value(score)
    if whole.shape != (n_blocks,) or np.isnan(whole).any():
        raise ConfigError(f"{ranking!r}: wanted gave {whole!r}, expected a number for each block")
    halves = [slice(0, n_atoms // 3), slice(n_atoms // 3, None)]
    parts = [
        reduce_blocks(made, score[part], numbers[part], block[part], n_blocks) for part in halves
    ]
    joined = {
        name: REDUCTIONS[how][0](parts[0][name], parts[1][name])
        for name, how in made.reductions.items()
    }
    if not np.allclose(np.asarray(made.wanted(joined)), whole, rtol=1e-9):
        raise ConfigError(
            f"{ranking!r}: terms of an atom depend on other atoms; blocks come in pieces"
        )
    raised = np.where(rng.random(n_atoms) < 0.3, np.maximum(score, 0.0) + 1.0, score)
    if made.variable == "log_likelihood" and (value(raised) > whole + 1e-9).any():
        raise ConfigError(
            f"{ranking!r}: a block became more wanted when its atoms became likelier; what is "
            "covered by earlier picks must never count more than before"
        )
