"""A GPU, checked and measured in one call of under nine minutes; the same code runs on a CPU.

    python benchmarks/engine_gpu.py [--device cuda|cpu] [--size tiny|full] [--output FILE.json]

Checks, against a CPU: energies, forces, stress, features and log-likelihoods in double precision,
forces in single precision; ten steps of the integrator in all three ensembles with the same noise;
a frame by domains. Then measures walker-steps a second of batches of 1 to 64 walkers of 106 and 456
atoms (`tiny` and `base`), a frame of 23,700 atoms, epochs of training, and, with the network
compiled (`tiny` only, compiled meanwhile in other processes), a batch of 50 walkers of 456 atoms
against NequIP's compiled ASE calculator with ASE's integrator, one walker after another. What the
nine minutes have no time for is left out, with a line that says so. A check that fails is said and
makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SEED = HERE.parent / "mofal" / "examples" / "seeds" / "uio66-gfn1"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "seconds": 900.0, "walkers": (1, 2), "cells": ("primitive",), "presets": ("tiny",),
        "steps": 2, "repeat": 1, "epochs": 1, "frames": 4, "compiled": False,
    },
    "full": {
        "seconds": 510.0, "walkers": (1, 4, 16, 64), "cells": ("primitive", "conventional"),
        "presets": ("tiny", "base"), "steps": 20, "repeat": 4, "epochs": 5, "frames": 160,
        "compiled": True,
    },
}  # fmt: skip
TOGETHER = 50
"""Walkers of 456 atoms that are compared with one by one."""


class Report:
    """Lines, numbers and verdicts, and the time that is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.rows: dict[str, float] = {}
        self.failed: list[str] = []

    def left(self, need: float, what: str) -> bool:
        """Whether there is time for something."""
        if time.monotonic() + need <= self.end:
            return True
        print(f"left out, no time: {what}", flush=True)
        return False

    def number(self, name: str, value: float, unit: str) -> None:
        """Print and keep a measurement."""
        self.rows[f"{name} ({unit})"] = value
        print(f"{name:<58}{value:12.4g} {unit}", flush=True)

    def check(self, name: str, difference: float, most: float) -> None:
        """Print and keep a verdict."""
        good = bool(difference <= most)
        self.rows[f"{name} (difference)"] = difference
        print(f"{name:<58}{difference:12.2e} {'ok' if good else f'FAILED: {most:g} at most'}")
        if not good:
            self.failed.append(name)


def has_gpu() -> bool:
    """Whether torch sees one."""
    import torch

    return bool(torch.cuda.is_available())


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: str) -> float:
    """Wall seconds of a call."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def frame_of(cell: str, repeat: int | None = None) -> Any:
    """S_ld at rest, every atom displaced by 0.05 Å; a disordered supercell with `repeat`."""
    from mofal.data import make_structures
    from mofal.frameworks import build, disorder

    if repeat is None:
        ds = build("S_ld" if cell == "primitive" else "S_pr", cell=cell)
    else:
        ds = build("S_pr", repeat=(repeat,) * 3)
        ds = disorder(ds, linker=0.2, brick=0.1, seed=0) if repeat > 1 else ds
    rng = np.random.default_rng(1)
    return make_structures(
        ds["numbers"].values,
        ds["positions"].values + rng.normal(scale=0.05, size=ds["positions"].shape),
        n_atoms=ds["n_atoms"].values,
        cell=ds["cell"].values,
    )


# ---------------------------------------------------------------------------------- checks
def in_double(model: Any) -> Any:
    """The same network and weights in double precision."""
    from mofal.potential import create
    from mofal.potential.network import put_weights, weights_of

    exact = create(
        model.architecture.model_copy(update={"dtype": "float64"}),
        list(model.elements),
        seed=0,
        avg_num_neighbors=model.avg_num_neighbors,
    )
    weights = weights_of(model.network)
    wanted = weights_of(exact.network)
    put_weights(exact.network, {k: v.to(wanted[k].dtype) for k, v in weights.items()})
    return exact


def largest(one: Any, two: Any) -> float:
    """Largest difference."""
    return float(np.nanmax(np.abs(np.asarray(one) - np.asarray(two))))


def checks(model: Any, device: str, report: Report) -> None:
    """The device against a CPU."""
    from mofal.data import concat
    from mofal.density import PerElementDensity
    from mofal.potential.onboard import density_arrays
    from mofal.potential.standalone import Mixtures

    frames = concat([frame_of("primitive"), frame_of("primitive", 1)])
    exact, there = in_double(model), in_double(model).to(device)
    wanted, found = exact.evaluate(frames), there.evaluate(frames)
    for name in ("energy", "forces", "stress"):
        report.check(f"{name}, double precision", largest(wanted[name], found[name]), 1e-8)
    features = exact.featurize(frames)
    x, labels = features["features"].values, features["numbers"].values
    report.check("features, single", largest(x, there.featurize(frames)["features"]), 1e-4)
    density = PerElementDensity(2, random_state=0).fit(x, labels)
    likely = Mixtures(density_arrays(density), device)
    import torch

    got = likely.log_likelihood(torch.as_tensor(x, device=device), labels).cpu().numpy()
    scores = density.score_samples(x, labels)
    report.check("log-likelihood, relative", largest(got / scores, np.ones(len(scores))), 1e-5)
    single = model.evaluate(frames)["forces"]
    moved = pickle.loads(pickle.dumps(model)).to(device)
    report.check(
        "forces, single precision", largest(single, moved.evaluate(frames)["forces"]), 1e-4
    )
    cut = there.evaluate(frames, domains=(2, 1, 1))
    report.check("forces by domains, double", largest(wanted["forces"], cut["forces"]), 1e-8)
    for ensemble in ("nvt", "npt", "nvst"):
        places = [moves(p, frames, ensemble, 10) for p in (exact, there)]
        report.check(f"ten steps, {ensemble}, double, positions", largest(*places), 1e-7)


def integrator(potential: Any, frame: Any, ensemble: str, walkers: int, engine: Any = None) -> Any:
    """Walkers of one frame with seeds of their own."""
    from ase.data import atomic_masses

    from mofal.dynamics.integrator import Integrator, Member

    members = []
    for k in range(walkers):
        n = int(frame["n_atoms"].values[0])
        rng = np.random.default_rng(k)
        numbers = frame["numbers"].values[:n]
        member = Member(
            numbers, np.ones(3, bool), atomic_masses[numbers], 0.5, 300.0, 100.0, rng, key=k
        )
        member.place(frame["positions"].values[:n], frame["cell"].values[0])
        member.draw_momenta(rng, ensemble=ensemble)
        members.append(member)
    return Integrator(engine or potential.engine(), ensemble, members)


def moves(potential: Any, frame: Any, ensemble: str, steps: int) -> np.ndarray:
    """Positions after so many steps of two walkers."""
    run = integrator(potential, frame, ensemble, 2)
    for _ in range(steps):
        run.step()
    return np.array(run.xp.host(run.positions))


# ---------------------------------------------------------------------------------- speed
def per_second(run: Any, walkers: int, steps: int, device: str) -> float:
    """Walker-steps a second."""
    for _ in range(2):
        run.step()

    def several() -> None:
        for _ in range(steps):
            run.step()

    return walkers * steps / timed(several, device)


def batches(model: Any, device: str, size: dict[str, Any], report: Report) -> None:
    """Walker-steps a second of batches."""
    from mofal.potential import ARCHITECTURES, create

    for preset in size["presets"]:
        potential = model
        if preset != "tiny":  # its forces mean nothing and cost the same
            how = {"seed": 0, "avg_num_neighbors": model.avg_num_neighbors}
            potential = create(ARCHITECTURES[preset], list(model.elements), **how).to(device)
        for cell in size["cells"]:
            frame = frame_of(cell)
            for walkers in size["walkers"]:
                what = f"{preset}, {frame.sizes['atom']} atoms, {walkers} walkers, eager"
                if not report.left(20.0, what):
                    continue
                run = integrator(potential, frame, "nvt", walkers)
                steps = max(2, size["steps"] // (1 + walkers // 16))
                report.number(what, per_second(run, walkers, steps, device), "walker-steps/s")


def large(model: Any, device: str, size: dict[str, Any], report: Report) -> None:
    """A frame of 23,700 atoms in one pass."""
    import torch

    frame = frame_of("", size["repeat"])
    n = frame.sizes["atom"]
    if not report.left(60.0, f"{n} atoms"):
        return
    for name, run in (("features", model.featurize), ("energy, forces, stress", model.evaluate)):
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        run(frame)
        report.number(f"{n} atoms, {name}", timed(lambda run=run: run(frame), device), "s")
        if device != "cpu":
            used = torch.cuda.max_memory_allocated(device) / 1e9
            report.number(f"{n} atoms, {name}, memory of the GPU", used, "GB")


def epochs(device: str, size: dict[str, Any], report: Report) -> None:
    """An epoch of training on the seed data of UiO-66."""
    from mofal.data import open_group, select
    from mofal.potential import TRAININGS, train

    if not report.left(60.0, "training"):
        return
    labels = open_group(SEED / "labels.zarr").load()
    ds = select(labels, np.arange(min(size["frames"], labels.sizes["structure"])))

    def run(n: int) -> float:
        settings = TRAININGS["demo"].model_copy(
            update={"max_steps": None, "max_epochs": n, "device": device}
        )
        with tempfile.TemporaryDirectory() as place:
            return timed(lambda: train(ds, settings, out=Path(place) / "m", seed=1), device)

    first = run(1)
    many = 1 + size["epochs"]
    report.number(
        f"training, an epoch of {ds.sizes['atom']} atoms", (run(many) - first) / (many - 1), "s"
    )


# ---------------------------------------------------------------------------------- compiled
def compile_one(task: tuple[str, str, bool]) -> str:
    """Compile in a process of its own; what went wrong, or nothing."""
    from mofal.potential import load
    from mofal.potential.compiling import compiled_network

    path, device, batched = task
    try:
        compiled_network(load(path, device=device), batched=batched)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def compiled(model: Any, device: str, report: Report) -> None:
    """A batch of 50 compiled walkers against NequIP's compiled calculator, one by one."""
    sys.path.insert(0, str(HERE))
    from engine_cpu import ase_steps, nequip_calculator

    frame = frame_of("conventional")
    together = TOGETHER if device != "cpu" else 2
    engine = model.engine("compiled")
    run = integrator(model, frame, "nvt", together, engine)
    many = per_second(run, together, 20, device)
    report.number(f"tiny, 456 atoms, {together} walkers, compiled", many, "walker-steps/s")
    calculator = nequip_calculator(model)
    ase_steps(calculator, frame, 3, 0)
    seconds = timed(lambda: ase_steps(calculator, frame, 50, 0), device)
    one = 51 / seconds
    report.number("tiny, 456 atoms, NequIP compiled, ASE, one by one", one, "walker-steps/s")
    report.number("batch over one by one (10 is asked of a GPU)", many / one, "times")


# ---------------------------------------------------------------------------------- all
def main(arguments: list[str] | None = None) -> Report | None:
    """Check and measure; None where there is no GPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=None)
    parser.add_argument("--potential", default=str(SEED / "model"))
    parser.add_argument("--output", help="numbers as JSON")
    given = parser.parse_args(arguments)
    if given.device is None and given.size == "tiny":
        given.device = "cuda" if has_gpu() else "cpu"
    device = given.device or "cuda"
    if device == "cuda" and not has_gpu():
        print(
            "no GPU that torch can use here, so nothing was measured; on a machine with one: "
            "python benchmarks/engine_gpu.py, and --device cpu runs the same code on a CPU"
        )
        return None
    import torch

    from mofal.potential import load

    size, start = SIZES[given.size], time.monotonic()
    report = Report(size["seconds"])
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    context = multiprocessing.get_context("spawn")
    tasks = [(given.potential, device, batched) for batched in (True, False)]
    if device == "cpu":
        tasks = tasks[1:]
    pool = context.Pool(len(tasks)) if size["compiled"] else None
    ready = pool.map_async(compile_one, tasks) if pool is not None else None
    model = load(given.potential)
    checks(model, device, report)
    model = load(given.potential, device=device)
    batches(model, device, size, report)
    large(model, device, size, report)
    epochs(device, size, report)
    if ready is not None and pool is not None:
        ready.wait(max(0.0, report.end - time.monotonic() - 30.0))
        if not ready.ready():
            print("left out, no time: compiled networks", flush=True)
        else:
            wrong = [text for text in ready.get() if text]
            for text in wrong:
                report.failed.append(f"compiling: {text}")
                print(f"compiling FAILED: {text}", flush=True)
            if not wrong:
                compiled(model, device, report)
        pool.terminate()
    print(f"{time.monotonic() - start:.0f} s; {len(report.failed)} checks failed", flush=True)
    if given.output:
        Path(given.output).write_text(
            json.dumps({"device": name, "rows": report.rows, "failed": report.failed}, indent=1)
        )
    return report


if __name__ == "__main__":
    done = main()
    sys.exit(1 if done is not None and done.failed else 0)
