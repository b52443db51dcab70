"""Steps of a training through NequIP's compiled network. Imports torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nequip.train import EMALightningModule

from mofal.data import hash_json
from mofal.errors import PotentialError
from mofal.potential.compiling import cache_folder, hardware, has_compiler
from mofal.potential.devices import resolve_device
from mofal.potential.loop import network_of
from mofal.potential.network import Graph, allow_any_order, collate
from mofal.potential.settings import TrainingSettings

FOLDER = "steps"
"""Of the generated code, beside the compiled networks of walks."""
ONE_AT_A_TIME = threading.Lock()
"""Held for the whole of a compiled training: while one thread of a process traces a network, torch
refuses compiled functions to all others."""
ATTEMPTS = 4
DUMP = "nequip_fx_dump_"
"""How folders begin that NequIP leaves behind where its traces differ."""
MOST_KEPT = 4
_WEIGHTS = frozenset({"seed", "per_type_energy_scales", "per_type_energy_shifts"})
"""Of a network's configuration: what decides weights alone."""
_KEPT: dict[str, tuple[dict[Any, Any], list[str], list[str]]] = {}
"""Compiled functions of this process, with the names of the weights that they are called with."""
FRAMES = 7
"""In the batch that is compiled with: dimensions of equal length there are taken for the same one,
and two (ends of an edge), three or the number of elements would have it compiled anew."""


def compile_steps(
    module: EMALightningModule,
    graphs: Sequence[Graph],
    settings: TrainingSettings,
    *,
    config: Mapping[str, Any],
    progress: Callable[[str], None] | None,
) -> None:
    """Have the network's forward and backward pass compiled; weights stay.

    NequIP compiles at the first batch. Here it happens at one place: one process after the other
    (the second finds what the first has generated), announced, and with one message where it fails.
    A later training of this process with a network of the same shape takes what is there: weights
    are arguments of the compiled function.

    Parameters
    ----------
    module : EMALightningModule
        On `device` only for as long as this takes.
    graphs : sequence of graph
        Of the training; the smallest of them is looked at.
    settings : TrainingSettings
    config : mapping
        What the network was built from (`builder_config`).
    progress : callable, optional

    Raises
    ------
    PotentialError
        No compiler, a compiler that fails, or a compiled network that computes something else.
    """
    device = resolve_device(settings.device)
    if not has_compiler(device):
        raise PotentialError(
            "a compiled training wants a C++ compiler, and none is found here: "
            "apt-get install g++, or write engine: eager"
        )
    network: Any = network_of(module)
    key = hash_json(
        {
            "network": {k: v for k, v in config.items() if k not in _WEIGHTS},
            "device": device,
            "threads": settings.threads,
        }
    )
    if key in _KEPT:
        functions, network.weight_names, network.buffer_names = _KEPT[key]
        network._compiled_cache[0].update(functions)
        return
    # Generated code is for one kind of processor, and a home may be shared by nodes of several.
    versions = f"{torch.__version__} {version('nequip')}"
    place = cache_folder() / FOLDER / hash_json([hardware(device), versions])[:20]
    begun = time.monotonic()
    if progress is not None:
        progress("compiling the steps of the training (minutes the first time on a machine)")
    allow_any_order(device)  # before, since functions are compiled for it
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place / "lock"), _generated(place, settings.threads):
            module.to(device)
            # Where there is next to nothing NequIP stays eager.
            large = [g for g in graphs if len(g["pos"]) > 1 and g["edge_index"].shape[1] > 1]
            smallest = min(large or graphs, key=lambda graph: len(graph["pos"]))
            batch = {k: v.to(device) for k, v in collate([smallest] * FRAMES).items()}
            out = _compiled(module, batch)
            (out["total_energy"].sum() + out["forces"].square().sum()).backward()
    except Exception as error:  # of torch, of the compiler, of NequIP's comparison: any kind
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        raise PotentialError(
            f"compiling the training failed: {type(error).__name__}: "
            f"{lines[0][:300] if lines else 'no message'}; write engine: eager to do without"
        ) from error
    finally:
        module.to("cpu")
        module.zero_grad(set_to_none=True)
    if network._compiled_cache[0]:
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)), None)
        _KEPT[key] = (dict(network._compiled_cache[0]), network.weight_names, network.buffer_names)
    if progress is not None:
        progress(f"compiled in {time.monotonic() - begun:.0f} s")


def _compiled(module: EMALightningModule, batch: Graph) -> Graph:
    """One forward pass, which compiles.

    NequIP traces the network twice, with batches of different sizes, and refuses traces that
    differ. Now and then one of them has a needless `alias` of a tensor in it
    (torch 2.13, NequIP 0.19, in a worker); the next time they agree.
    """
    for attempt in range(ATTEMPTS):
        try:
            return module(dict(batch))
        except (RuntimeError, PermissionError) as error:
            # The files are written where the command was started, if that may be written to.
            if "do not agree" not in str(error) and DUMP not in str(error):
                raise
            for path in re.findall(rf"files in (.*{DUMP}[0-9a-f-]+)", str(error)):
                shutil.rmtree(path, ignore_errors=True)
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _generated(place: Path, threads: int) -> Iterator[None]:
    """Keep generated code in a folder of the user's, and take no more cores than a training has."""
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    # torch puts its own default (a folder of /tmp) in where there is nothing.
    if before is None or Path(before) == Path(default_cache_dir()):
        os.environ[name] = str(place)
    try:
        with config.patch(compile_threads=threads):
            yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
