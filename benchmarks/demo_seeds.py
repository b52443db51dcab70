"""The demo with several seeds: is the defect learnt, and not just more training?

    python benchmarks/demo_seeds.py                  three seeds, about half an hour on two cores
    python benchmarks/demo_seeds.py --size tiny      one seed, one cycle, nothing to conclude from

Prints for each seed, on held-out frames labelled with the same reference: force MAE on the formate
atoms and MAE_P95 over the cell for the seed model, the control (the same number of atoms seen, the
seed data alone) and the campaign's model, with the ratio of control to campaign.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mofal.campaign.config import CampaignConfig
from mofal.campaign.driver import Campaign
from mofal.campaign.view import format_table, holdout_table
from mofal.commands.demo import demo_config


def tiny(config: CampaignConfig) -> CampaignConfig:
    """Shrink the demo to what a test can afford."""
    assert config.holdout is not None
    assert config.holding is not None
    short = {"max_epochs": 2}
    return config.model_copy(
        update={
            "cycles": 1,
            "seed_data": config.seed_data.model_copy(update={"frames": 6}),
            "holding": config.holding.model_copy(update={"runs": 1, "length_fs": 5.0}),
            "selection": config.selection.model_copy(update={"clusters": 1}),
            "exploration": config.exploration.model_copy(
                update={"walks": 1, "length_fs": 60.0, "barostat_fs": 20.0}
            ),
            "holdout": config.holdout.model_copy(update={"frames": 1}),
            "potential": config.potential.model_copy(
                update={
                    k: getattr(config.potential, k).model_copy(update=short)
                    for k in ("seed", "cycle", "final")
                }
            ),
        }
    )


def main(argv: Sequence[str] | None = None) -> list[float]:
    """Run the benchmark; return the ratio on the formate atoms of each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--directory", help="keep the campaigns here (default: a temporary place)")
    args = parser.parse_args(argv)
    seeds = args.seeds[:1] if args.size == "tiny" else args.seeds
    ratios: list[float] = []
    pristine: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.directory or temporary)
        for seed in seeds:
            config = demo_config(seed=seed)
            config = tiny(config) if args.size == "tiny" else config
            begun = time.perf_counter()
            view = Campaign(config, directory=root / f"seed-{seed}").run(
                progress=lambda line: print(line, flush=True)
            )
            took = time.perf_counter() - begun
            rows = holdout_table(view)
            print(f"\nseed {seed}, {took:.0f} s")
            print("\n".join(format_table(rows)), flush=True)
            ratios += [r.ratio for r in rows if r.atoms == "defect" and r.metric == "MAE"]
            pristine += [
                r.values["campaign"] / r.values["control"]
                for r in rows
                if r.system == "pristine" and r.metric == "MAE"
            ]
    shown = ", ".join(f"{r:.2f}" for r in ratios)
    print(f"\ncontrol / campaign on the formate atoms: {shown}; ", end="")
    print(f"median {statistics.median(ratios):.2f}, least {min(ratios):.2f}")
    print("campaign / control on the pristine cell: " + ", ".join(f"{r:.2f}" for r in pristine))
    return ratios


if __name__ == "__main__":
    main()
