"""What a potential costs: a step of training, forces, features, the neighbour list.

    python benchmarks/potential_speed.py [--size tiny|full] [--threads 1 2]

Each line is measured in this run on this machine; the peer is NequIP's own ASE calculator on the
same network. Times are medians of repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from mofal.data import select, to_atoms
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build
from mofal.potential import ARCHITECTURES, NequIPPotential, TrainingSettings, create

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"presets": ("tiny",), "cells": ("primitive",), "repeats": 2, "frames": 3},
    "full": {
        "presets": ("tiny", "base", "extended"),
        "cells": ("primitive", "conventional"),
        "repeats": 7,
        "frames": 5,
    },
}
ELEMENTS = ("H", "C", "O", "Zr", "Hf")


def median_s(function: Callable[[], Any], repeats: int) -> float:
    """Median wall time of a call, s; the first call is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def nequips_calculator(potential: NequIPPotential) -> Any:
    """Peer: NequIP's own calculator on the same network."""
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.integrations.ase import NequIPCalculator

    mapper = ChemicalSpeciesToAtomTypeMapper(
        model_type_names=list(potential.elements),
        chemical_species_to_atom_type_map={e: e for e in potential.elements},
    )
    neighbours = NeighborListTransform(r_max=potential.r_max)
    return NequIPCalculator(potential.network, device="cpu", transforms=[mapper, neighbours])


def training_step(frames: xr.Dataset, architecture: str, batch: int) -> Callable[[], None]:
    """One optimiser step on `batch` structures, as training does it, without Lightning."""
    import torch

    from mofal.potential.loop import make_module
    from mofal.potential.network import builder_config, collate, make_graph, type_table

    settings = TrainingSettings(architecture=architecture)
    a = settings.architecture
    module = make_module(builder_config(a, ELEMENTS, avg_num_neighbors=20.0), settings)
    optimizer = torch.optim.Adam(module.model.parameters(), lr=1e-4)
    graphs = []
    for i in range(batch):
        one = select(frames, i)
        graph = make_graph(
            one["numbers"].values,
            one["positions"].values,
            one["cell"].values[0],
            one["pbc"].values[0],
            types=type_table(ELEMENTS),
            r_max=a.r_max,
        )
        graph["total_energy"] = torch.zeros(1, 1, dtype=torch.float64)
        graph["forces"] = torch.zeros_like(graph["pos"])
        graphs.append(graph)
    module.train()

    def step() -> None:
        batch_graph = collate(graphs)
        out = module(batch_graph)
        loss = module.loss(out, batch_graph)["weighted_sum"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.ema.update_parameters(module.model)

    return step


def move_and(frame: Any, read: Callable[[], Any]) -> Callable[[], None]:
    """Move an atom a little, so that nothing is remembered, and read."""

    def call() -> None:
        frame.positions[0, 0] += 1e-7
        read()

    return call


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the table; return its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    options = parser.parse_args(argv)
    size = SIZES[options.size]

    from mofal.potential.network import neighbour_edges, prepare, threads

    prepare()
    found: dict[str, dict[str, float]] = {}
    head = "preset cell atoms edges threads | step of 5 (s)  forces (s)  NequIP's (s)  ratio"
    print(head + "  features (s)  neighbours (s)")
    for cell in size["cells"]:
        frames = sample_harmonic(build("UiO-66", cell=cell), n=size["frames"], seed=1)
        batch = size["frames"]
        for name in size["presets"]:
            potential = create(ARCHITECTURES[name], ELEMENTS, seed=0, avg_num_neighbors=20.0)
            frame = to_atoms(select(frames, 0), 0)
            arrays = frame.positions, frame.cell.array, np.asarray(frame.pbc)
            edges = neighbour_edges(*arrays, potential.r_max)[0].shape[1]
            for n in options.threads:
                with threads(n):
                    ours, theirs = frame.copy(), frame.copy()
                    ours.calc, theirs.calc = potential.calculator(), nequips_calculator(potential)
                    row = {
                        "step": median_s(training_step(frames, name, batch), size["repeats"])
                        * 5
                        / batch,
                        "forces": median_s(move_and(ours, ours.get_forces), size["repeats"]),
                        "peer": median_s(move_and(theirs, theirs.get_forces), size["repeats"]),
                        "features": median_s(
                            lambda p=potential, ds=frames: p.featurize(ds),  # type: ignore[misc]
                            size["repeats"],
                        )
                        / size["frames"],
                        "neighbours": median_s(
                            lambda a=arrays, r=potential.r_max: neighbour_edges(*a, r),  # type: ignore[misc]
                            size["repeats"],
                        ),
                    }
                found[f"{name} {cell} {n}"] = row
                print(
                    f"{name:8s} {cell:12s} {len(frame):5d} {edges:6d} {n} | {row['step']:8.3f} "
                    f"{row['forces']:12.4f} {row['peer']:12.4f} "
                    f"{row['peer'] / row['forces']:9.2f} {row['features']:12.4f} "
                    f"{row['neighbours']:12.4f}",
                    flush=True,
                )
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
