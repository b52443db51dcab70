"""`nequip-compile` with one more target: what a walk needs of one pass, the hidden layer included.

Runs as a process of its own (``python -m mofal.potential.compile_script CONSTANTS ARGUMENTS``) with
the arguments of `nequip-compile`, and writes into the JSON file CONSTANTS which constant of the
compiled network is which weight, so that one compiled network serves all weights of its
architecture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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
        tensors = {name: value for name, value in attributes}
        for node in graph.graph.nodes:
            if node.op == "get_attr":
                tensors[str(node.target)] = getattr(graph, str(node.target))
        for name, value in tensors.items():
            if value.data_ptr() in names:
                into[name] = names[value.data_ptr()]
        return graph

    aot.nequip_make_fx = traced


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
