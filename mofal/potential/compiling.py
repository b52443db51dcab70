"""Compiled networks (AOT Inductor), made once for each architecture and machine, and kept.

One compiled network serves all weights of its architecture: constants are swapped when it is
loaded, and its forces are compared with the eager network's each time. So what takes minutes is
paid once, and not by every model of a campaign.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mofal.data import hash_json
from mofal.data.store import atomic_path
from mofal.errors import PotentialError
from mofal.potential.base import Networked
from mofal.potential.checkpoint import write_checkpoint
from mofal.potential.compile_script import HIDDEN, run_compiler
from mofal.potential.network import Graph, collate, weights_of

FORMAT = 1
PLACE = "MOFAL_COMPILED"
"""Environment variable with the folder of compiled networks."""
FORCE_TOLERANCE = 1e-5
"""eV/Å: largest difference between forces of the compiled and the eager network."""
USUAL_SECONDS = 180.0
"""What compiling is taken to last where none has been compiled yet."""
GAIN = 0.5
"""Share of an eager evaluation that a compiled one saves, at the least (docs/engine.md)."""
_INPUTS = ("pos", "edge_index", "atom_types", "cell", "edge_cell_shift")
_BATCHED = (*_INPUTS, "batch", "num_atoms")
_OUTPUTS = ("atomic_energy", "total_energy", "forces", "stress", HIDDEN)
_NETWORK, _CONSTANTS, _ABOUT = "network.nequip.pt2", "constants.json", "about.json"

Progress = Callable[[str], None]


class CompiledNetwork:
    """A compiled network with the weights of one potential.

    Called with a graph it returns what the eager network returns: energies, forces, stress and the
    hidden layer.
    """

    def __init__(self, runner: Any, *, batched: bool, about: dict[str, Any]) -> None:
        self._runner = runner
        self.batched = batched
        self.about = about
        self._inputs = _BATCHED if batched else _INPUTS

    def __call__(self, graph: Graph) -> Graph:
        with torch.inference_mode():
            out = self._runner([graph[name] for name in self._inputs])
        return dict(zip(_OUTPUTS, out))


@dataclass(frozen=True)
class Choice:
    """Which network a step runs, and why.

    Attributes
    ----------
    engine : str
        ``"compiled"`` or ``"eager"``.
    reason : str
    """

    engine: str
    reason: str


def cache_folder(folder: str | Path | None = None) -> Path:
    """Where compiled networks are kept: `folder`, $MOFAL_COMPILED, or the user's cache."""
    if folder is not None:
        return Path(folder)
    if os.environ.get(PLACE):
        return Path(os.environ[PLACE])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mofal" / "compiled"


def has_compiler(device: str = "cpu") -> bool:
    """Whether this machine can compile: a C++ compiler is found (a GPU brings Triton)."""
    found = os.environ.get("CXX") or "g++"
    return any(shutil.which(name) for name in (found.split()[0], "g++", "clang++", "c++"))


def identity(potential: Networked, *, batched: bool) -> dict[str, Any]:
    """What a compiled network depends on: everything but weights."""
    from importlib.metadata import version

    device = potential.device.partition(":")[0]
    return {
        "format": FORMAT,
        **potential.description(),
        "device": device,
        "batched": batched,
        "torch": torch.__version__,
        "nequip": version("nequip"),
        # Loops of compiled code are shared out among the threads that it was compiled for.
        "threads": torch.get_num_threads() if device == "cpu" else 0,
        "hardware": hardware(potential.device),
    }


def hardware(device: str) -> str:
    """What code is generated for: instruction sets of a CPU, kind of a GPU."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "")
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind} {hash_json(sorted(flags.split()))[:10]}" if flags else kind


def entry(potential: Networked, *, batched: bool = False, folder: str | Path | None = None) -> Path:
    """Where the compiled network of a potential is, or would be."""
    key = hash_json(identity(potential, batched=batched))
    return cache_folder(folder) / key[:20]


def is_compiled(
    potential: Networked, *, batched: bool = False, folder: str | Path | None = None
) -> bool:
    """Whether a compiled network of this architecture is there for this machine."""
    return (entry(potential, batched=batched, folder=folder) / _ABOUT).is_file()


def compile_seconds(folder: str | Path | None = None) -> float:
    """How long compiling takes here: the median of those that are kept."""
    found = []
    for path in sorted(cache_folder(folder).glob(f"*/{_ABOUT}")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(float(json.loads(path.read_text())["seconds"]))
    return float(np.median(found)) if found else USUAL_SECONDS


def choose(
    potential: Networked,
    wanted: str = "auto",
    *,
    evaluations: float,
    seconds_each: float,
    batched: bool = False,
    folder: str | Path | None = None,
) -> Choice:
    """Which network the work ahead is done with; asked once, when a step starts.

    Parameters
    ----------
    potential : NequIPPotential
    wanted : str
        ``"eager"``, ``"compiled"``, or ``"auto"``: compiled where it is there already, or where the
        work saves more time than compiling takes.
    evaluations : float
        Energies and forces that the step will ask for on this machine.
    seconds_each : float
        Of the eager network.

    Raises
    ------
    PotentialError
        `wanted` is none of these, or compiled where nothing can compile.
    """
    if wanted not in ("auto", "eager", "compiled"):
        raise PotentialError(f"the engine is {wanted!r}; expected auto, eager or compiled")
    if wanted == "eager":
        return Choice("eager", "asked for")
    if is_compiled(potential, batched=batched, folder=folder):
        return Choice("compiled", "kept from before")
    able = has_compiler(potential.device)
    if wanted == "compiled":
        if not able:
            raise PotentialError(
                "a compiled network wants a C++ compiler, and none is found here: "
                "apt-get install g++, or write engine: eager"
            )
        return Choice("compiled", "asked for")
    if not able:
        return Choice("eager", "no C++ compiler here")
    saved, cost = GAIN * evaluations * seconds_each, compile_seconds(folder)
    if saved > cost:
        return Choice("compiled", f"saves about {saved:.0f} s, compiling takes {cost:.0f} s")
    return Choice("eager", f"would save {saved:.0f} s, compiling takes {cost:.0f} s")


def compiled_network(
    potential: Networked,
    *,
    batched: bool = False,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> CompiledNetwork:
    """Load the compiled network of a potential, and make it first where there is none.

    Parameters
    ----------
    potential : NequIPPotential
        Its device and torch's number of threads are what is compiled for.
    batched : bool
        For batches of at least two structures instead of single ones.
    folder : path, optional
        Of compiled networks (see `cache_folder`).
    progress : callable, optional
        Is given lines of text.

    Raises
    ------
    PotentialError
        No compiler, a script that failed, or forces that are not the eager network's.
    """
    place = entry(potential, batched=batched, folder=folder)
    with _alone(place):
        if not (place / _ABOUT).is_file():
            _make(potential, place, batched=batched, progress=progress)
    about = json.loads((place / _ABOUT).read_text())
    network = _load(potential, place, batched=batched, about=about)
    difference = largest_difference(potential, network)
    if not difference <= FORCE_TOLERANCE:
        raise PotentialError(
            f"the compiled network in {place} gives forces {difference:.1e} eV/Å off the eager "
            f"network's, expected {FORCE_TOLERANCE:g} at most; compile it anew: rm -r {place}"
        )
    network.about["force_difference"] = difference
    return network


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Two processes that want the same network: one compiles, the other waits."""
    if (place / _ABOUT).is_file():
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(place.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def _make(potential: Networked, place: Path, *, batched: bool, progress: Progress | None) -> None:
    if not has_compiler(potential.device):
        raise PotentialError(
            "a compiled network wants a C++ compiler, and none is found here: apt-get install g++"
        )
    if progress is not None:
        progress(f"compiling the network of {potential.model_hash} (minutes, once) ...")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mofal-compile-") as directory:
        work = Path(directory)
        shifts = dict.fromkeys(potential.elements, 0.0)
        checkpoint = write_checkpoint(potential, work, shifts)
        run_compiler(
            checkpoint,
            work / _NETWORK,
            constants=work / _CONSTANTS,
            device=potential.device.partition(":")[0],
            threads=torch.get_num_threads(),
            batched=batched,
        )
        about: dict[str, Any] = {
            **identity(potential, batched=batched),
            "model_hash": potential.model_hash,
        }
        network = _load(potential, work, batched=batched, about=about)
        difference = largest_difference(potential, network)
        if not difference <= FORCE_TOLERANCE:
            raise PotentialError(
                f"the compiled network's forces are {difference:.1e} eV/Å off the eager network's, "
                f"expected {FORCE_TOLERANCE:g} at most; write engine: eager"
            )
        about |= {"seconds": time.monotonic() - start, "force_difference": difference}
        with atomic_path(place) as temporary:
            temporary.mkdir()
            shutil.copy(work / _NETWORK, temporary / _NETWORK)
            shutil.copy(work / _CONSTANTS, temporary / _CONSTANTS)
            (temporary / _ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    if progress is not None:
        progress(
            f"compiled in {about['seconds']:.0f} s; forces equal the eager network's to "
            f"{difference:.0e} eV/Å"
        )


def _load(
    potential: Networked, place: Path, *, batched: bool, about: dict[str, Any]
) -> CompiledNetwork:
    """Load a compiled network and put in the weights of this potential."""
    runner = torch._inductor.aoti_load_package(str(place / _NETWORK))
    constants = json.loads((place / _CONSTANTS).read_text())
    weights = {k: v.to(potential.device) for k, v in weights_of(potential.network).items()}
    there = set(runner.get_constant_fqns())
    given = {k: weights[v] for k, v in constants.items() if k in there and v in weights}
    missing = sorted(set(weights) - {constants[k] for k in given})
    if missing and about["model_hash"] != potential.model_hash:
        raise PotentialError(
            f"the compiled network in {place} holds {missing[0]} as a fixed number and serves only "
            f"{about['model_hash']}; write engine: eager"
        )
    # The container refers to these tensors from now on; `_Runner` keeps them.
    runner.load_constants(given, check_full_update=False)
    return CompiledNetwork(_Runner(runner, given), batched=batched, about=dict(about))


class _Runner:
    """A loaded package with the tensors that it computes with."""

    def __init__(self, package: Any, weights: dict[str, torch.Tensor]) -> None:
        self.package, self.weights = package, weights

    def __call__(self, inputs: list[torch.Tensor]) -> Any:
        return self.package(inputs)


def largest_difference(potential: Networked, network: CompiledNetwork) -> float:
    """Largest difference (eV/Å) of forces between compiled and eager, on a frame of all elements.

    Differences are relative where forces of the frame are beyond 10 eV/Å, which single precision
    does not hold to 1e-5.
    """
    rng = np.random.default_rng(0)
    n = 40
    corners = np.indices((4, 4, 3)).reshape(3, -1).T[:n]
    spacing = 0.5 * potential.r_max
    positions = spacing * corners + rng.normal(0.0, 0.08, (n, 3))
    numbers = np.resize(_numbers(potential.elements), n)
    cell = np.diag(spacing * np.array([4.0, 4.0, 3.0]))
    graph = potential.graph(numbers, positions, cell, np.ones(3, bool))
    if network.batched:
        other = potential.graph(numbers[:-4], positions[:-4], 1.02 * cell, np.ones(3, bool))
        graph = {k: v.to(potential.device) for k, v in collate([graph, other]).items()}
    wanted = potential.network(dict(graph))["forces"].detach()
    found = network(graph)["forces"]
    scale = max(1.0, float(wanted.abs().max()) / 10.0)
    return float((found - wanted).abs().max()) / scale


def _numbers(elements: tuple[str, ...]) -> np.ndarray:
    from ase.data import atomic_numbers

    return np.array([atomic_numbers[symbol] for symbol in elements])
