"""New potentials: with random weights, or grown from one that lacks an element. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mofal.errors import PotentialError
from mofal.potential.model import NequIPPotential
from mofal.potential.network import build_network, builder_config, put_weights, weights_of
from mofal.potential.settings import ARCHITECTURES, Architecture


def create(
    architecture: Architecture | str,
    elements: Sequence[str],
    *,
    seed: int,
    avg_num_neighbors: float = 20.0,
    scale: float = 1.0,
    device: str = "cpu",
) -> NequIPPotential:
    """Make an untrained potential with random weights.

    Parameters
    ----------
    architecture : Architecture or str
        Or the name of a preset.
    elements : sequence of str
        All elements of the campaign; they become types in order of atomic number.
    seed : int
        Of the weights.
    avg_num_neighbors : float
        Mean number of neighbours within `r_max` in the data to come.
    scale : float
        Start of the trainable energy scales, eV; the RMS of the forces is a good one.
    device : str
        ``cpu``, ``cuda``, ``cuda:1`` or ``auto``.
    """
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            raise PotentialError(
                f"no architecture {architecture!r}; presets: {', '.join(ARCHITECTURES)}"
            )
        architecture = ARCHITECTURES[architecture]
    names = order_elements(elements)
    config = builder_config(
        architecture, names, avg_num_neighbors=avg_num_neighbors, seed=seed, scales=scale
    )
    return NequIPPotential(
        build_network(config),
        architecture,
        names,
        avg_num_neighbors=avg_num_neighbors,
        device=device,
    )


def order_elements(elements: Sequence[str]) -> list[str]:
    """Distinct symbols by atomic number.

    Raises
    ------
    PotentialError
        Something that is no chemical symbol, or none at all.
    """
    from ase.data import atomic_numbers

    foreign = [e for e in elements if e not in atomic_numbers or e == "X"]
    if foreign or not elements:
        found = repr(foreign[0]) if foreign else "no element"
        raise PotentialError(f"{found} is no chemical symbol; expected such as ['H', 'C', 'O']")
    return sorted(set(elements), key=lambda e: atomic_numbers[e])


def begin_as(potential: NequIPPotential, like: Mapping[str, str]) -> NequIPPotential:
    """Let elements that a potential has not learnt begin as elements that it has.

    An element without a type is given one (`grow`); the weights of one that has a type (untrained:
    elements of a whole campaign are types from the start) become those of the known one. Two
    neighbours of a group are a better beginning than a random embedding; what they differ by is for
    labels to teach.

    Parameters
    ----------
    potential : NequIPPotential
    like : mapping of str to str
        Element to the known one that it begins as, such as ``{"Hf": "Zr"}``.

    Raises
    ------
    PotentialError
        A known element that it has no type for, or one that is to begin as something itself.
    """
    wrong = [old for old in like.values() if old in like or old not in potential.elements]
    if wrong:
        known = ", ".join(e for e in potential.elements if e not in like)
        raise PotentialError(
            f"nothing can begin as {wrong[0]}: this potential knows {known}, and one is to be taken"
        )
    new = {k: v for k, v in like.items() if k not in potential.elements}
    grown = grow(potential, list(new), like=new) if new else potential
    old = {k: v for k, v in like.items() if k not in new}
    state = weights_of(grown.network)
    for key in _of_types(grown):
        for element, known in old.items():
            row, source = (grown.elements.index(e) for e in (element, known))
            state[key][row] = state[key][source]
    config = builder_config(
        grown.architecture, grown.elements, avg_num_neighbors=grown.avg_num_neighbors
    )
    network = build_network(config)
    put_weights(network, state)
    return NequIPPotential(
        network,
        grown.architecture,
        list(grown.elements),
        avg_num_neighbors=grown.avg_num_neighbors,
        provenance={
            **grown.provenance,
            "begins_as": {**grown.provenance.get("begins_as", {}), **like},
        },
        history=grown.history,
        batch_atoms=grown.batch_atoms,
        device=grown.device,
    )


def _of_types(potential: NequIPPotential) -> list[str]:
    """Names of the weights that have a row for each type: those that one more type changes."""
    from ase.data import chemical_symbols

    other = next(s for s in chemical_symbols[1:] if s not in potential.elements)
    config = builder_config(
        potential.architecture,
        [*potential.elements, other],
        avg_num_neighbors=potential.avg_num_neighbors,
    )
    wider = weights_of(build_network(config))
    return [k for k, v in weights_of(potential.network).items() if v.shape != wider[k].shape]


def grow(
    potential: NequIPPotential,
    elements: Sequence[str],
    *,
    seed: int = 0,
    like: Mapping[str, str] | None = None,
) -> NequIPPotential:
    """Give a potential types for further elements; what it knew stays exactly as it was.

    The only weights that belong to a type are its embedding, its scale and its shift (the same
    for all). A new embedding is drawn at random, or copied from a known element; it means
    nothing until data with the element is trained on.

    Parameters
    ----------
    potential : NequIPPotential
    elements : sequence of str
        New chemical symbols.
    seed : int
        Of random embeddings.
    like : mapping of str to str, optional
        New symbol to the known one that it starts as, such as ``{"Hf": "Zr"}``.

    Raises
    ------
    PotentialError
        An element that it has already, or a start that it does not have.
    """
    names = order_elements(elements)
    present = [e for e in names if e in potential.elements]
    if present:
        raise PotentialError(f"this potential has a type for {', '.join(present)} already")
    starts = dict(like or {})
    for new, old in starts.items():
        if new not in names or old not in potential.elements:
            raise PotentialError(
                f"like={{{new!r}: {old!r}}} cannot be: {new} must be among {', '.join(names)} and "
                f"{old} among {', '.join(potential.elements)}"
            )
    together = [*potential.elements, *names]
    config = builder_config(
        potential.architecture,
        together,
        avg_num_neighbors=potential.avg_num_neighbors,
        seed=seed,
    )
    network = build_network(config)
    state = weights_of(network)
    n_old = len(potential.elements)
    for key, value in weights_of(potential.network).items():
        if state[key].shape == value.shape:
            state[key] = value
        else:
            state[key][:n_old] = value
            for k, new in enumerate(names):
                if new in starts:
                    state[key][n_old + k] = value[potential.elements.index(starts[new])]
                elif key.endswith((".scales", ".shifts")):
                    state[key][n_old + k] = value.mean()
    put_weights(network, state)
    return NequIPPotential(
        network,
        potential.architecture,
        together,
        avg_num_neighbors=potential.avg_num_neighbors,
        provenance={"grown_from": potential.model_hash, **potential.provenance},
        history=potential.history,
        batch_atoms=potential.batch_atoms,
        device=potential.device,
    )
