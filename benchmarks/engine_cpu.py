"""Walks on a CPU: the engine against NequIP's compiled ASE calculator with ASE's integrator.

    python benchmarks/engine_cpu.py [--size tiny|full] [--potential DIR]

Two processes of one thread each walk half of the walkers (S_ld primitive, 106 atoms, the seed
potential of UiO-66), one after another kind, in one run. Prints milliseconds of CPU time per
walker-step (median over blocks of steps) of

- NequIP's `NequIPCalculator` on the compiled network with ASE's `LangevinBAOAB`, NVT;
- mofal's calculator on the eager network with the same integrator: what walks were before;
- walks of the engine: compiled and eager, checks and bonds included; NVT, NPT, NVST; with the
  density on board; in batches of 1 and 8;

and, apart, what the integrator costs for 16 systems beside forces, and the mixture for 106 atoms.
Compiling (minutes, once for each machine) is not counted. `tiny` compiles nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]
SEED = HERE / "mofal" / "examples" / "seeds" / "uio66-gfn1"
SIZES = {
    "tiny": {"walkers": 2, "steps": 6, "compiled": False, "systems": 4, "integrations": 20},
    "full": {"walkers": 16, "steps": 60, "compiled": True, "systems": 16, "integrations": 200},
}


def prepare(potential: Path) -> tuple[Any, Any, Any, Any]:
    """Potential, start frame, bonds with their spread, and a density of the seed data."""
    from mofal.data import open_group, select
    from mofal.density import PerElementDensity
    from mofal.dynamics import bond_limits, sample_harmonic
    from mofal.frameworks import build
    from mofal.frameworks.bonds import find_bonds
    from mofal.potential import load

    model = load(potential)
    structure = build("S_ld", cell="primitive")
    found = find_bonds(structure)
    bonds = {"bonds": found["bond_atom"].values, "shifts": found["bond_shift"].values}
    limits = bond_limits(structure, temperature_K=600.0, **bonds)
    frame = sample_harmonic(structure, n=1, temperature_K=300.0, seed=1)
    seeds = select(open_group(SEED / "labels.zarr").load(), list(range(0, 160, 8)))
    features = model.featurize(seeds)
    density = PerElementDensity(8, random_state=0).fit(
        features["features"].values, features["numbers"].values, model_hash=model.model_hash
    )
    return model, frame, limits, density


def ase_steps(calculator: Any, frame: Any, steps: int, seed: int) -> list[float]:
    """Milliseconds of each step of ASE's integrator."""
    from ase import units
    from ase.md.langevinbaoab import LangevinBAOAB

    from mofal.data import to_atoms

    atoms = to_atoms(frame, 0)
    atoms.calc = calculator
    rng = np.random.default_rng(seed)
    spread = np.sqrt(units.kB * 300.0 * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * rng.normal(size=(len(atoms), 3)))
    run = LangevinBAOAB(atoms, 0.5 * units.fs, temperature_K=300.0, T_tau=100 * units.fs, rng=rng)
    run.step()
    return timed(run.step, steps)


def timed(function: Callable[[], Any], n: int) -> list[float]:
    """CPU milliseconds of each of n calls."""
    out = []
    for _ in range(n):
        start = time.process_time()
        function()
        out.append(1000.0 * (time.process_time() - start))
    return out


def engine_steps(
    engine: Any,
    frame: Any,
    limits: Any,
    steps: int,
    walkers: range,
    *,
    ensemble: str,
    together: int,
    density: Any = None,
) -> list[float]:
    """Milliseconds of each walker-step of the engine, with all that walks check and keep."""
    from mofal.dynamics import WalkSettings
    from mofal.dynamics.crew import Crew
    from mofal.dynamics.walking import Plan, _walker

    settings = WalkSettings(
        ensemble=ensemble, temperature_K=300.0, pressure_GPa=0.0, unfamiliar_quantile=1e-9
    )
    out: list[float] = []
    for first in walkers[::together]:
        count = min(together, walkers.stop - first)
        crew = Crew(engine, ensemble)
        fresh = []
        for k in range(count):
            plan = Plan(0, (1, first + k), bonds=limits, settings=settings)
            walker = _walker(frame, plan, engine, density, None)
            member = walker.member()
            assert member is not None
            member.key = k
            fresh.append((walker, member))
        crew.join(fresh)
        crew._step()
        out += [ms / count for ms in timed(crew._step, steps)]
        assert not any(w.ended for w in crew.walkers), [w.reason for w in crew.walkers]
    return out


def nequip_calculator(model: Any) -> Any:
    """NequIP's own calculator on the compiled network (the same code with one output more)."""
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms

    from mofal.potential.compiling import compiled_network

    network = compiled_network(model)

    class Module:
        training = False

        def to(self, device: Any) -> Any:
            return self

        def __call__(self, data: Any) -> Any:
            return network(data)

    elements = list(model.elements)
    metadata = {"r_max": model.r_max, "type_names": elements, "per_edge_type_cutoff": None}
    transforms = basic_transforms(metadata, model.r_max, elements, {e: e for e in elements})
    return NequIPCalculator(Module(), device=model.device, transforms=transforms)


def work(task: tuple[str, str, int, bool, int]) -> dict[str, float]:
    """All kinds, in one process."""
    import torch

    potential, _, walkers, compiled, steps = task
    torch.set_num_threads(1)
    model, frame, limits, density = prepare(Path(potential))
    eager = model.engine("eager")
    kinds: dict[str, Callable[[int], list[float]]] = {}

    def engine(made: Any, **how: Any) -> Callable[[int], list[float]]:
        how = {"ensemble": "nvt", "together": 1} | how

        def steps_of(k: int) -> list[float]:
            together = int(how["together"])
            mine = range(k, min(k + together, walkers)) if k % together == 0 else range(0)
            return engine_steps(made, frame, limits, steps, mine, **how)

        return steps_of

    def ase(calculator: Any) -> Callable[[int], list[float]]:
        return lambda k: ase_steps(calculator, frame, steps, k)

    kinds["eager, ASE"] = ase(model.calculator())
    kinds["eager, engine"] = engine(eager)
    if compiled:
        fast = model.engine("compiled")
        known = fast.with_density(density)
        kinds["NequIP compiled, ASE"] = ase(nequip_calculator(model))
        kinds["engine nvt"] = engine(fast)
        kinds["engine nvt, density"] = engine(known, density=density)
        kinds["engine nvt, 8 together"] = engine(fast, together=8)
        kinds["engine npt"] = engine(fast, ensemble="npt")
        kinds["engine nvst"] = engine(fast, ensemble="nvst")
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for k in range(walkers):
        for name, run in kinds.items():
            found[name] += run(k)
    return {name: float(np.median(ms)) for name, ms in found.items()}


class Free:
    """Forces that cost nothing."""

    model_hash, name, device = "", "free", "cpu"

    def evaluate(self, systems: Any, *, stress: bool = True) -> Any:
        from mofal.dynamics.engine import Outcome

        n = len(systems.keys)
        zero = np.zeros((len(systems.numbers), 3))
        return Outcome(np.zeros(n), zero, np.zeros((n, 3, 3)), shortest=np.full(n, 9.0))


def overhead(frame: Any, limits: Any, systems: int, n: int) -> dict[str, float]:
    """Milliseconds of a step of so many systems beside forces, checks and samples included."""
    return {
        ensemble: systems
        * float(
            np.mean(
                engine_steps(
                    Free(), frame, None, n, range(systems), ensemble=ensemble, together=systems
                )
            )
        )
        for ensemble in ("nvt", "npt", "nvst")
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--potential", default=str(SEED / "model"))
    given = parser.parse_args(arguments)
    size: dict[str, Any] = SIZES[given.size]
    task = (given.potential, "", size["walkers"] // 2, size["compiled"], size["steps"])
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        halves = pool.map(work, [task, task])
    mean = {name: float(np.mean([h[name] for h in halves])) for name in halves[0]}
    print(f"{'ms of CPU time per walker-step':<34}{'':>8}")
    for name, value in mean.items():
        print(f"{name:<34}{value:8.2f}")
    if size["compiled"]:
        for peer in ("NequIP compiled, ASE", "eager, ASE"):
            print(f"engine against {peer}: {mean[peer] / mean['engine nvt']:.2f} times as fast")
        cost = mean["engine nvt, density"] / mean["engine nvt"] - 1.0
        print(f"density on board: {cost:+.1%} of a step")
    import torch

    torch.set_num_threads(1)
    _, frame, limits, _ = prepare(Path(given.potential))
    print(f"integrator beside forces, {size['systems']} systems, ms a step:")
    for name, value in overhead(frame, limits, size["systems"], size["integrations"]).items():
        print(f"{name:<34}{value:8.2f}")


if __name__ == "__main__":
    main()
