"""Verdicts: from numbers to words, with the thresholds in one place.

A claim holds where its sense is met, not where a number is hit: other level, other sizes. What is
asked for is said in each `why`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from mofal.analysis import likelihood_correlation

HOLDS, PART, NOT, NOT_RUN = "holds", "holds in part", "does not hold here", "not run"
Verdict = tuple[str, str]
"""The word, and why."""


@dataclass
class Finding:
    """What came out of one claim.

    Attributes
    ----------
    claim : int
    title : str
    paper, ours : mapping
        Numbers by what they are, units in the key.
    verdict, why : str
    caveats : list of str
        What makes it easier or harder here than in the paper.
    scaled : list of str
        What is smaller than in the paper.
    cost : mapping
        CPU seconds by kind of artefact.
    """

    claim: int
    title: str
    paper: dict[str, Any]
    ours: dict[str, Any]
    verdict: str
    why: str
    caveats: list[str] = field(default_factory=list)
    scaled: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)


def graded(good: Sequence[bool], why: str) -> Verdict:
    """All: holds; some: in part; none: does not hold here."""
    word = HOLDS if all(good) else PART if any(good) else NOT
    return word, f"{why}: {sum(good)} of {len(good)}"


def judge_clouds(clouds: xr.Dataset, *, formate: str, last: str) -> Verdict:
    """Claim 1: training separates the kinds of carbon, and formate is a cloud of its own."""
    before, after = float(clouds["silhouette"][0]), float(clouds["silhouette"][1])
    purity = clouds["kind_purity"].sel(cloud=last, kind_name=formate)
    return graded(
        [
            after > before,
            float(clouds["purity"][1]) > 0.95,
            float(clouds["spread"][1]) > float(clouds["spread"][0]),
            float(purity) > 0.9,
        ],
        "the silhouette grows with training, the purity is above 0.95, the clouds spread, and "
        "nine in ten neighbours of a formate C are formate C",
    )


def judge_failure(mae_p95: Mapping[str, float], far: Mapping[str, float]) -> Verdict:
    """Claim 2: mlp_pr is wrong on every defective set, and only near the defect.

    `mae_p95` by system, with S_pr; `far` the same over atoms beyond 8 Å of a defect.
    """
    pristine = mae_p95["S_pr"]
    good = [mae_p95[s] > 2.0 * pristine for s in mae_p95 if s != "S_pr"]
    good += [value < 1.5 * pristine for value in far.values()]
    return graded(
        good, "MAE_P95 more than doubles on each, and stays within a half beyond 8 Å of the defect"
    )


def repaired(start: float, after: float, pristine: float) -> float:
    """Share of the error beyond that on pristine frames that is gone; NaN where there is none."""
    return (start - after) / (start - pristine) if start > pristine else float("nan")


def judge_repair(shares: Mapping[str, Sequence[float]]) -> Verdict:
    """Claim 3: ten clusters repair most; the worst subset counts. Paper: 88 to 95 %."""
    worst = {s: min(v) for s, v in shares.items()}
    word, why = graded(
        [v > 0.8 for v in worst.values()], "four fifths of the excess error are gone, every subset"
    )
    if word == NOT and any(v > 0.5 for v in worst.values()):
        word = PART
    return word, why + "; half of it on " + str(sum(v > 0.5 for v in worst.values()))


def judge_crossing(
    curves: Mapping[str, Mapping[int, Sequence[float]]], marks: Mapping[str, Any]
) -> Verdict:
    """Claim 4: with enough clusters the cluster model is below the periodic one (all seeds)."""
    passed = {s: crossing(curve, float(np.min(marks[s]))) for s, curve in curves.items()}
    text = ", ".join(f"{s[2:]} {'never' if n is None else n}" for s, n in passed.items())
    word, why = graded(
        [n is not None for n in passed.values()], "every subset below the best periodic mark"
    )
    return word, f"{why} (N: {text})"


def crossing(curve: Mapping[int, Sequence[float]], mark: float) -> int | None:
    """The smallest number of clusters at which every subset is below a mark."""
    below = [n for n, values in sorted(curve.items()) if max(values) <= mark]
    return below[0] if below else None


def judge_teaching(mae_p95: Mapping[tuple[str, str], float]) -> Verdict:
    """Claim 6: ld and reo teach each other; neither teaches hf. Keys: (kind of clusters, set)."""
    good = [
        mae_p95["S_ld", "S_reo"] < 1.5 * mae_p95["S_reo", "S_reo"],
        mae_p95["S_reo", "S_ld"] < 1.5 * mae_p95["S_ld", "S_ld"],
        mae_p95["S_ld", "S_hf"] > 3.0 * mae_p95["S_hf", "S_hf"],
        mae_p95["S_reo", "S_hf"] > 3.0 * mae_p95["S_hf", "S_hf"],
    ]
    return graded(
        good, "ld within a half of reo on D_reo, reo of ld on D_ld, and three times hf on D_hf"
    )


def judge_energies(average: Mapping[str, Sequence[float]], mixed: str) -> Verdict:
    """Claim 7: the largest |ΔE_avg| of the mix is far below that of any other model."""
    largest = {m: max(abs(v) for v in values) for m, values in average.items()}
    others = [v for m, v in largest.items() if m != mixed]
    good = [largest[mixed] < v / 5.0 for v in others]
    return graded(good, "its largest |ΔE_avg| is below a fifth of that of the other models")


def judge_mesoscale(sup: Mapping[str, float], mix: Mapping[str, float]) -> Verdict:
    """Claim 8: at the same architecture mlp_sup^c* is no worse than mlp_mix^c on each set."""
    good = [sup[s] <= 1.02 * mix[s] for s in sup]
    return graded(good, "MAE_P95 of mlp_sup^c* at most 2 % above that of mlp_mix^c")


def judge_likelihood(
    errors: Mapping[str, Any],
    scores: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    known: str = "S_pr",
    unknown: str = "S_hf",
) -> tuple[Verdict, dict[str, float]]:
    """Claim 9: on oxygen, r is weakly negative where all is known, strongly where it is not."""
    r = {
        s: float(
            likelihood_correlation(errors[s], scores[s], numbers[s])["pearson_r"].sel(element="O")
        )
        for s in (known, unknown)
    }
    good = [r[known] < 0.0, r[unknown] < -0.6, r[unknown] < r[known]]
    return graded(good, "r < 0 on D_pr, r < -0.6 on D_hf, and lower there"), r


def judge_match(rmse: Mapping[tuple[str, str, str], float]) -> Verdict:
    """Claim 10: keys (level or model, candidate, atoms)."""
    good = []
    for who in ("level", "mlp"):
        good += [
            rmse[who, "large", "all"] < rmse[who, "small", "all"],
            rmse[who, "large", "Zr"] < 0.75 * rmse[who, "small", "Zr"],
            rmse[who, "large", "formate"] < rmse[who, "small", "formate"],
        ]
    good.append(rmse["level", "small", "formate"] < rmse["level", "small", "Zr"])
    return graded(
        good,
        "the large blueprint beats the small one on all, Zr (by a quarter) and formate atoms, for "
        "level and model, and the small one is least wrong on the formate",
    )


ORDER = ("S_pr", "S_ld", "S_ld-2-1", "S_reo", "S_bcu", "S_scu")
"""Falling bulk modulus in the paper (Table 5 and Section SI.9.4)."""


def judge_order(
    modulus: Mapping[str, float], largest: Mapping[str, tuple[float, bool]] | None = None
) -> Verdict:
    """Claim 11: K and P_max fall in the paper's order; every pair of neighbours counts.

    `largest` are P_max (GPa), and whether it is a lower bound; two of which one is may not decide.
    """
    found = [s for s in ORDER if np.isfinite(modulus.get(s, np.nan))]
    good = [modulus[a] > modulus[b] for a, b in pairwise(found)]
    if not good:
        return NOT_RUN, "fewer than two bulk moduli"
    why = "K falls from one to the next of " + ", ".join(s[2:] for s in found)
    largest = largest or {}
    for a, b in pairwise(s for s in ORDER if s in largest):
        (high, at_least), (low, low_at_least) = largest[a], largest[b]
        falls = high > low
        # A bound from below can confirm that the first is higher, or refute it, and not both.
        if (low_at_least and falls) or (at_least and not falls):
            why += f"; P_max of {a[2:]} and {b[2:]}: undecided"
            continue
        good.append(falls)
        why += f"; P_max falls from {a[2:]} to {b[2:]}"
    return graded(good, why)


def judge_fall(modulus: Mapping[str, float]) -> Verdict:
    """Claim 12: S_sup keeps a third of the K of S_pr (38.1 to 12.5 GPa), S_sup* lies between."""
    if any(not np.isfinite(modulus.get(s, np.nan)) for s in ("S_pr", "S_sup")):
        return NOT_RUN, "a bulk modulus is missing"
    good = [2.0 < modulus["S_pr"] / modulus["S_sup"] < 4.5]
    if np.isfinite(modulus.get("S_sup*", np.nan)):
        good.append(modulus["S_sup"] < modulus["S_sup*"] < modulus["S_pr"])
    return graded(good, "K of S_pr is 2 to 4.5 times that of S_sup, S_sup* lies between")


def judge_selection(
    chosen: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Mapping[int, Sequence[float]]]
) -> Verdict:
    """Half the labels: what coverage chooses is no worse than twice as many, drawn, and no other
    rule is better. `chosen`: by system and rule; `drawn`: curves of defective bricks at random."""
    good = []
    for name, row in chosen.items():
        most = drawn[name][max(drawn[name])]
        good += [row["covering"] <= min(row["random"], row["paper"]), row["covering"] <= max(most)]
    return graded(
        good,
        "coverage is below both other rules at the same N, and below the largest N of defective "
        "bricks at random",
    )


def judge_cutters(values: Mapping[str, Mapping[str, float]], error: Mapping[str, float]) -> Verdict:
    """Blocks can be labelled where others cannot, and teach no less."""
    others = [c for c in values if c != "blocks"]
    key = "labelled by GFN1-xTB"
    good = [values["blocks"][key] == 1.0]
    good += [values["blocks"][key] > values[c][key] for c in others if c != "centre alone"]
    good += [error["blocks"] <= error[c] for c in others]
    return graded(
        good,
        "GFN1-xTB labels all blocks, and fewer of the others; models of blocks are no worse on "
        "held-out frames",
    )


def judge_tenth(shares: Mapping[str, float | None]) -> Verdict:
    """A tenth of the cost of the periodic labels at equal accuracy."""
    return graded(
        [v is not None and v < 0.1 for v in shares.values()],
        "labels of bare bricks that equal the periodic model cost under a tenth of its own",
    )
