"""`nequip-compile` with one more target: what a walk needs of one pass, the hidden layer included.

Runs as a process of its own (``python -m mofal.potential.compile_script CONSTANTS ARGUMENTS``) with
the arguments of `nequip-compile`, and writes into the JSON file CONSTANTS which constant of the
compiled network is which weight, so that one compiled network serves all weights of its
architecture.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mofal.errors import PotentialError

SINGLE, BATCH = "mofal", "mofal_batch"
"""Names of the targets: one structure, and batches of at least two."""
HIDDEN = "node_features"
"""NequIP's name of what the readout is given; its product with the readout's first map is F."""


def _register() -> None:
    from nequip.scripts import _compile_utils as targets

    outputs = [*targets.ASE_OUTPUTS, HIDDEN]
    targets.register_compile_targets(
        {
            SINGLE: {**targets.ASE_TARGET, "output": outputs},
            BATCH: {**targets.BATCH_TARGET, "output": outputs},
        }
    )


def _record(into: dict[str, str]) -> None:
    """Have the tracing of the network note which of its attributes is which weight."""
    from nequip.utils import aot

    trace = aot.nequip_make_fx

    def traced(*, model: Any, **others: Any) -> Any:
        graph = trace(model=model, **others)
        names = {
            value.data_ptr(): name.removeprefix("model.")
            for name, value in (*model.named_parameters(), *model.named_buffers())
            if value.numel()
        }
        attributes = (*graph.named_parameters(), *graph.named_buffers())
        tensors: dict[str, Any] = dict(attributes)
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                tensors[str(node.target)] = getattr(graph, str(node.target))
        for name, value in tensors.items():
            if value.data_ptr() in names:
                into[name] = names[value.data_ptr()]
        return graph

    aot.nequip_make_fx = traced


def run_compiler(
    source: Path, target: Path, *, constants: Path, device: str, threads: int, batched: bool = False
) -> None:
    """`nequip-compile` with the hidden layer among its outputs, in a process of its own.

    Raises
    ------
    PotentialError
        With the last line that it said.
    """
    name = BATCH if batched else SINGLE
    arguments = [str(constants), str(source), str(target), "--mode", "aotinductor"]
    arguments += ["--device", device, "--target", name]
    environment = {
        **os.environ,
        "_NEQUIP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mofal.potential.compile_script", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise PotentialError(
            f"compiling the network failed: {lines[-1] if lines else 'no message'}; "
            "write engine: eager to do without"
        )


def main(arguments: list[str]) -> None:
    """Compile, and write down the constants."""
    constants: dict[str, str] = {}
    _register()
    _record(constants)
    from nequip.scripts.compile import main as compile_network

    compile_network(arguments[1:])
    Path(arguments[0]).write_text(json.dumps(constants, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
