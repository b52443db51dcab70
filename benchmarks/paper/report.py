"""The table of the twelve claims from the findings that were kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TITLES = {
    1: "Carbon types separate in feature space; formate is a fourth cloud",
    2: "The pristine model fails locally",
    3: "Ten clusters repair most of it",
    4: "A cluster model passes the periodic one",
    5: "Labels cost a fifth at equal accuracy",
    6: "Linker and node defects teach each other",
    7: "Only the mix of all kinds gets the energy of every system right",
    8: "S_sup's clusters beat all others without having seen their systems",
    9: "The likelihood foretells the error where environments are new",
    10: "Force matching: the core's first neighbours are enough",
    11: "K falls in the order pr, ld, ld-2, reo, bcu, scu",
    12: "K of the disordered supercell falls threefold",
    13: "Half the labels: choosing by likelihood and coverage",
    14: "Blocks against the cutters of others",
    15: "A tenth of the cost: bare bricks",
}
SHOWN: dict[int, tuple[str, ...]] = {
    1: ("silhouette, untrained", "silhouette, trained (mlp_pr)", "purity of formate"),
    2: ("ratio S_ld", "ratio S_hf", "ratio S_reo"),
    3: tuple(f"excess error repaired, S_{s}" for s in ("ld", "hf", "reo")),
    4: tuple(f"passes at N, S_{s}" for s in ("ld", "hf", "reo")),
    5: tuple(f"cost at equal accuracy, GPAW model, S_{s}" for s in ("ld", "hf", "reo")),
    6: ("mlp_ld^c on S_reo (meV/Å)", "mlp_reo^c on S_reo (meV/Å)",
        "mlp_reo^c on S_ld (meV/Å)", "mlp_ld^c on S_ld (meV/Å)"),
    8: tuple(f"gain at the same architecture, {s} (%)" for s in ("S_pr", "S_ld", "S_hf", "S_reo",
                                                                "D_cl", "S_sup, whole")),
    9: ("r of O on S_pr", "r of O on S_hf"),
    10: tuple(f"level, {c}, {a} (meV/Å)" for c in ("small", "large")
              for a in ("all", "Zr", "formate")),
    11: tuple(f"K of {s} (GPa)" for s in ("S_pr", "S_ld", "S_ld-2-1", "S_reo", "S_bcu", "S_scu")),
    12: ("K of S_pr (GPa)", "K of S_sup* (GPa)", "K of S_sup (GPa)"),
    13: tuple(f"{r}, N = 10, {s} (meV/Å)" for s in ("S_ld", "S_hf", "S_reo")
              for r in ("random", "paper", "covering")),
    14: tuple(f"{k}, {c}{u}" for k, u in (("labelled by GFN1-xTB", ""),
                                          ("MAE_P95 after N = 10", " (meV/Å)"))
              for c in ("sphere", "whole blocks", "boxes", "blocks")),
    15: tuple(f"cost at equal accuracy, GPAW model, S_{s}" for s in ("ld", "hf", "reo")),
}  # fmt: skip
"""Numbers of the table; the findings hold all."""
PAPER: dict[int, str] = {
    1: "three clouds, a fourth for formate", 2: "3.4, 13.8, 15", 3: "0.88, 0.95, 0.93",
    4: "200, 200, 50", 5: "0.2", 6: "81, 69, 63, 67", 7: "530, 298, 406, 538; mix 0.4",
    8: "2, 4, 3, 9, 29, –", 9: "-0.26, -0.84", 10: "456, 114, 41; 200, 67, 31",
    11: "38.1, 32, 28, 17.7, 10.7, 4.9", 12: "38.1, –, 12.5",
    13: "not asked", 14: "not asked", 15: "not asked",
}  # fmt: skip
UNITS: dict[int, str] = {
    1: "silhouette before and after; purity of formate",
    2: "MAE_P95 over that on D_pr: ld, hf, reo",
    3: "share of the excess MAE_P95 gone: ld, hf, reo",
    4: "N: ld, hf, reo",
    5: "cost over that of the periodic labels: ld, hf, reo",
    6: "MAE_P95, meV/Å: ld on reo, reo on reo, reo on ld, ld on ld",
    7: "largest absolute ΔE_avg, meV/atom: pr, ld, hf, reo; mix",
    8: "gain in MAE_P95, %: pr, ld, hf, reo, D_cl, whole frames",
    9: "r of O: D_pr, D_hf",
    10: "RMSE, meV/Å: all, Zr, formate; small, then large",
    11: "K, GPa",
    12: "K, GPa: pr, sup*, sup",
    13: "MAE_P95, meV/Å, N = 10: any brick, the paper's rule, coverage; ld, hf, reo",
    14: "share labelled by GFN1-xTB, then MAE_P95 (meV/Å): spheres, whole blocks, boxes, blocks",
    15: "cost over that of the periodic labels: ld, hf, reo",
}


def largest_energies(ours: dict[str, Any]) -> str:
    """Largest |ΔE_avg| of each model of claim 7."""
    by_model: dict[str, float] = {}
    for key, value in ours.items():
        model = key.removeprefix("ΔE_avg of ").partition(" on ")[0]
        by_model[model] = max(by_model.get(model, 0.0), abs(float(value)))
    mix = by_model.pop("mlp_mix^c", float("nan"))
    return ", ".join(f"{v:.1f}" for v in by_model.values()) + f"; mix {mix:.1f}"


def numbers(claim: int, ours: dict[str, Any]) -> str:
    """What stands in the table for a finding."""
    if claim == 7:
        return largest_energies(ours)
    cells = []
    for key in SHOWN[claim]:
        value = ours.get(key)
        if isinstance(value, list):
            cells.append(" / ".join(f"{v:g}" for v in value))
        else:
            cells.append("–" if value is None else str(value))
    return ", ".join(cells)


def table(results: Path) -> str:
    """A row for each claim, in Markdown; claims without a finding are "not run"."""
    lines = [
        "| claim | what | in numbers | paper | here | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for claim, title in TITLES.items():
        file = results / f"claim-{claim:02d}.json"
        here, verdict = "–", "not run"
        if file.exists():
            found = json.loads(file.read_text())
            here, verdict = numbers(claim, found["ours"]), found["verdict"]
        lines.append(
            f"| {claim} | {title} | {UNITS[claim]} | {PAPER[claim]} | {here} | {verdict} |"
        )
    return "\n".join(lines)
