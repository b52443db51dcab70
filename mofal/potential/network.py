"""NequIP's network from our architecture, and structures as its graphs. Imports torch."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mofal.data.locks import TORCH_DEFAULTS
from mofal.errors import DataError
from mofal.potential.settings import Architecture
from mofal.potential.standalone import neighbour_edges

Graph = dict[str, torch.Tensor]

SHIFTS = "model.func.per_type_energy_scale_shift.shifts"
"""Name of the shifts per type among the weights of a network."""

_NOISY = ("lightning", "lightning.pytorch", "lightning.fabric", "nequip", "torch.distributed")


# ---------------------------------------------------------------------------------- environment
BUILDING = TORCH_DEFAULTS
"""Held while a network is built: NequIP changes torch's default dtype and random state for that
time, which two threads that build (or make metrics) at once would take from each other."""


class _Quiet:
    """Counts who wants silence: threads come and go in any order, the first and the last act."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._levels: dict[str, int] = {}
        self._filters = contextlib.ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._depth == 0:
                named = [n for n in logging.root.manager.loggerDict if n.startswith("nequip.")]
                self._levels = {n: logging.getLogger(n).level for n in (*_NOISY, *named)}
                for name in self._levels:
                    logging.getLogger(name).setLevel(logging.ERROR)
                self._filters.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            self._depth += 1

    def leave(self) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._filters.close()
                for name, level in self._levels.items():
                    logging.getLogger(name).setLevel(level)


_silence = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the INFO lines and hints of Lightning and NequIP; errors still come through."""
    _silence.enter()
    try:
        yield
    finally:
        _silence.leave()


_prepared = False


def prepare() -> None:
    """Set up torch and NequIP once per process: global state, deterministic algorithms.

    NequIP's set-up seeds the global generators; their state is put back, since a library that is
    merely used must not change anyone's random numbers.
    """
    with BUILDING:
        _prepare()


def _prepare() -> None:
    global _prepared
    if _prepared:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    numpy_state = np.random.get_state()  # noqa: NPY002
    states = random.getstate(), torch.get_rng_state()
    with quiet():
        # Importing draws random numbers too.
        from nequip.utils.global_state import set_global_state

        set_global_state()
    random.setstate(states[0])
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(states[1])
    torch.use_deterministic_algorithms(True)
    # What deterministic mode fills new memory with is overwritten anyway; it costs a few per cent.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _prepared = True


def allow_any_order(device: str) -> None:
    """Let operations that have no deterministic form run on a GPU, where bits are not promised."""
    if device != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Run with so many CPU threads, and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_thread() -> None:
    """Have the thread that calls compute on one CPU thread from now on."""
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------------- network
def builder_config(
    architecture: Architecture,
    elements: Sequence[str],
    *,
    avg_num_neighbors: float,
    seed: int = 0,
    scales: Mapping[str, float] | float = 1.0,
    shifts: Mapping[str, float] | float = 0.0,
) -> dict[str, Any]:
    """Arguments of `nequip.model.NequIPGNNModel` for an architecture.

    The readout has one hidden layer without a nonlinearity, whose values are F. Scales per type are
    trainable; shifts are not, and stay over a campaign (method.md, Energy zero).
    """
    a = architecture

    def per_type(value: Mapping[str, float] | float) -> dict[str, float]:
        return {e: float(value if isinstance(value, (int, float)) else value[e]) for e in elements}

    return {
        "seed": int(seed),
        "model_dtype": a.dtype,
        "r_max": float(a.r_max),
        "type_names": list(elements),
        "num_layers": a.n_layers,
        "l_max": a.l_max,
        "parity": a.parity,
        "num_features": a.n_features,
        "radial_mlp_depth": a.radial_layers,
        "radial_mlp_width": a.radial_neurons,
        "num_bessels": a.n_bessel,
        "polynomial_cutoff_p": a.cutoff_exponent,
        "readout_mlp_hidden_layers_depth": 1,
        "readout_mlp_hidden_layers_width": a.feature_dim,
        "readout_mlp_nonlinearity": None,
        "avg_num_neighbors": float(avg_num_neighbors),
        "per_type_energy_scales": per_type(scales),
        "per_type_energy_shifts": per_type(shifts),
        "per_type_energy_scales_trainable": True,
        "per_type_energy_shifts_trainable": False,
    }


def build_network(config: Mapping[str, Any]) -> torch.nn.Module:
    """Build NequIP's model from `builder_config`, in evaluation mode."""
    prepare()
    from nequip.model import NequIPGNNModel

    with BUILDING, quiet():
        network = NequIPGNNModel(**config)
    network.eval()
    return network


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights, scales and shifts by name, copies on the CPU: all that the architecture leaves open.

    Masks, Bessel roots and the like follow from the architecture and are not among them, so that
    the identity of a model does not hang on what a version of NequIP registers as a buffer.
    """
    found: dict[str, torch.Tensor] = dict(network.named_parameters())
    found.update((k, v) for k, v in network.named_buffers() if k == SHIFTS)
    return {name: found[name].detach().clone().cpu() for name in sorted(found)}


def put_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put in what `weights_of` gave.

    Raises
    ------
    ValueError
        Names or shapes are not those of the network.
    """
    expected = weights_of(network)
    odd = sorted(set(expected) ^ set(weights))
    if odd:
        raise ValueError(f"weights named {odd[0]} are missing or foreign")
    wrong = [n for n in expected if expected[n].shape != weights[n].shape]
    if wrong:
        shapes = tuple(weights[wrong[0]].shape), tuple(expected[wrong[0]].shape)
        raise ValueError(f"{wrong[0]} has shape {shapes[0]}, expected {shapes[1]}")
    network.load_state_dict(dict(weights), strict=False)


def energy_part(network: torch.nn.Module) -> torch.nn.Module:
    """Return the part that ends at the energies, without derivatives."""
    return network.model.func  # type: ignore[union-attr, return-value]


def readout_weights(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Both linear maps of the readout: (n_features, feature_dim) and (feature_dim, 1).

    NequIP multiplies the two into one before it applies them, because nothing nonlinear is between
    them; F is what the first alone gives. Each layer is normalised by the square root of its width.
    """
    readout = energy_part(network).per_atom_energy_readout  # type: ignore[union-attr]
    first, last = readout.mlp_module.mlp.weights  # type: ignore[union-attr, misc]
    return first / math.sqrt(first.shape[0]), last / math.sqrt(last.shape[0])


# ---------------------------------------------------------------------------------- graphs
def make_graph(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    *,
    types: np.ndarray,
    r_max: float,
) -> Graph:
    """One structure as NequIP's dict of tensors, not batched.

    Parameters
    ----------
    numbers, positions, cell, pbc
        Of one structure: (atom,), (atom, 3) Å, (3, 3) Å, (3,).
    types : (119,) int64
        Type of each atomic number.
    r_max : float, Å

    Raises
    ------
    DataError
        Positions or cell that are not finite.
    """
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        raise DataError(
            "positions or cell hold NaN or infinities: this structure has exploded; leave it out"
        )
    periodic = np.asarray(pbc, bool)
    edges, shifts = neighbour_edges(positions, cell, periodic, r_max)
    lattice = np.asarray(cell, np.float64) if periodic.any() else np.zeros((3, 3))
    return {
        "pos": torch.tensor(np.asarray(positions, np.float64)),
        "atom_types": torch.from_numpy(types[np.asarray(numbers, np.int64)]),
        "cell": torch.tensor(lattice).view(1, 3, 3),
        "edge_index": torch.from_numpy(edges),
        "edge_cell_shift": torch.from_numpy(shifts),
    }


def collate(graphs: Sequence[Graph]) -> Graph:
    """Join graphs into one batch, crystals and clusters alike."""
    counts = [len(g["pos"]) for g in graphs]
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    out = {
        key: torch.cat([g[key] for g in graphs], dim=0) for key in graphs[0] if key != "edge_index"
    }
    out["edge_index"] = torch.cat([g["edge_index"] + int(k) for g, k in zip(graphs, first)], dim=1)
    out["num_atoms"] = torch.tensor(counts)
    out["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), out["num_atoms"])
    return out


def type_table(elements: Sequence[str]) -> np.ndarray:
    """Type of each atomic number, shape (119,); -1 for an element without one."""
    from ase.data import atomic_numbers

    table = np.full(119, -1, np.int64)
    for i, symbol in enumerate(elements):
        table[atomic_numbers[symbol]] = i
    return table
