"""How large each size is, which level each name means, and how models are trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mofal.potential import ARCHITECTURES, Architecture, TrainingSettings

ELEMENTS = ("H", "C", "O", "Zr", "Hf")
"""Types of every model: Hf from the start, as in the paper."""
TEMPERATURE_K = 600.0
VOLUMES = (8500.0 / 9110.0, 9700.0 / 9110.0)
"""The paper's range of volumes over its V0 of S_pr (about 100 Å³ above the experiment's 9009)."""
SUPER = {"hf": 0.2, "linker": 0.2, "brick": 0.1}
"""Fractions that S_sup is drawn with."""
SUPER_STAR = {"hf": 0.1, "linker": 0.1, "brick": 0.05}
"""The same of S_sup*."""


@dataclass(frozen=True)
class Level:
    """A level of theory.

    Attributes
    ----------
    reference : str
        Specification for `mofal.reference.get_reference`.
    relaxes : bool
        Whether it gives the stress that a free cell needs; otherwise the ideal geometry is
        scaled to the volume of the paper.
    says : str
        What a table must say beside its numbers.
    """

    reference: str
    relaxes: bool
    says: str


LEVELS = {
    "sevennet0": Level(
        "ase:sevenn.calculator:SevenNetCalculator?model=7net-0&device=cpu&electrons=ignore",
        True,
        "SevenNet-0 in the place of DFT: strictly local, free of noise, indifferent to spin and to "
        "dangling bonds",
    ),
    "gfn1-xtb": Level(
        "gfn1-xtb", True, "GFN1-xTB, whose crystals and clusters are not one level on Zr"
    ),
    "gpaw:lcao": Level("gpaw:lcao", False, "GPAW, PBE-D3(BJ), LCAO dzp, h = 0.18 Å"),
    "gpaw:paper": Level("gpaw:paper", False, "the paper's own level, PBE-D3(BJ), h = 0.175 Å"),
    "seed": Level(
        "ase:paper.teacher:seed_potential?electrons=ignore",
        True,
        "the potential that travels with mofal as a teacher (it has never seen Hf): for tests",
    ),
}


@dataclass(frozen=True)
class Size:
    """Numbers of frames, clusters and atoms seen.

    Attributes
    ----------
    cells : mapping
        ``"primitive"`` or ``"conventional"`` of S_pr, S_ld, S_hf (S_reo has one cell only).
    train, periodic, test : int
        Frames of D_pr^T, of the other D^T, and of each D.
    counts : tuple of int
        Clusters per learning curve.
    subsets : tuple of int
        Disjoint random subsets at each of these counts.
    cross : int
        Clusters of each kind in the models of the cross-validation (claims 6, 7) and of the mix.
    pool : int
        Clusters of each kind that are labelled; the subsets are drawn from them.
    super_clusters, super_test, super_frames : int
        Clusters of S_sup's disorder to learn from, to judge by (D_cl), and whole frames of it.
    super_cell, super_frame : tuple of int
        Supercells that the clusters are cut from, and that are labelled whole.
    seeds : int
        Seeds of the periodic marks.
    atoms_seen, more_atoms_seen : int
        Of mlp_pr, and of each training that goes on from it.
    longer : int
        Factor by which mlp_sup^c, which relaxes crystals, learns for longer than the others, where
        it is no larger than they are.
    check : int
        Factor by which one training is longer, as a check.
    match_frames : int
        Frames of force matching.
    box_steps : int
        Of the optimiser that moves the border of a periodic box into what is known (claim 14).
    training : mapping
        Of `TrainingSettings`, over those of `base_settings`.
    curve : mapping
        Volumes, spacing, largest force (eV/Å) and steps of E(V).
    curve_systems : tuple of str
        Systems of claim 11.
    pressure : mapping
        Of `PressureSettings`: P(V) in claim 11, over those of the paper.
    pressure_systems : tuple of str
        Systems whose P(V) is run there.
    pressure_engine : str
        Network that moves them: ``"eager"`` or ``"compiled"``.
    realisations : int
        Draws of S_sup* and S_sup in claim 12.
    mechanics_cell : tuple of int
        Supercell of claim 12.
    """

    cells: dict[str, str]
    train: int
    periodic: int
    test: int
    counts: tuple[int, ...]
    subsets: tuple[int, ...]
    cross: int
    pool: int
    super_clusters: int
    super_test: int
    super_frames: int
    super_cell: tuple[int, int, int]
    super_frame: tuple[int, int, int]
    seeds: int
    atoms_seen: int
    more_atoms_seen: int
    check: int
    match_frames: int
    curve: dict[str, Any]
    curve_systems: tuple[str, ...]
    realisations: int
    mechanics_cell: tuple[int, int, int]
    pressure: dict[str, Any]
    pressure_systems: tuple[str, ...] = ("S_pr", "S_ld", "S_scu")
    pressure_engine: str = "compiled"
    architecture: str = "tiny"
    larger: str = "tiny"
    longer: int = 1
    box_steps: int = 60
    training: dict[str, Any] = field(default_factory=dict)


_PAPER_CELLS = {"S_pr": "conventional", "S_ld": "conventional", "S_hf": "conventional"}
_MIXED = {**_PAPER_CELLS, "S_pr": "primitive"}
_TOPOLOGIES = ("S_pr", "S_ld", "S_ld-2-1", "S_reo", "S_bcu", "S_scu", "S_pr^hf")
_ARCHITECTURES = {**ARCHITECTURES, "least": Architecture(r_max=4.0, n_layers=1, n_features=4)}
_FEW = {
    "pressures_GPa": (),
    "volumes": (0.91, 0.925, 0.94, 0.955, 0.97, 0.985, 1.0, 1.015),
    "both_ways": False,
}
_SHORT = {"learning_rate": 0.01, "batch_size": 2, "ema_decay": 0.99, "energy_weight": 10.0}

SIZES: dict[str, Size] = {
    # Everything once, nothing to conclude from.
    "tiny": Size(
        cells={"S_pr": "primitive", "S_ld": "primitive", "S_hf": "primitive"},
        train=5,
        periodic=5,
        test=2,
        counts=(1,),
        subsets=(1,),
        cross=1,
        pool=1,
        super_clusters=1,
        super_test=1,
        super_frames=1,
        super_cell=(1, 1, 1),
        super_frame=(1, 1, 1),
        seeds=1,
        atoms_seen=1500,
        more_atoms_seen=600,
        check=1,
        match_frames=1,
        curve={"volumes": 5, "spacing": 0.01, "max_force": 0.5, "max_steps": 3},
        curve_systems=("S_pr", "S_reo"),
        realisations=1,
        mechanics_cell=(1, 1, 1),
        pressure={
            "pressures_GPa": (),
            "volumes": (0.97, 0.98, 0.99, 1.0),
            "length_fs": 4.0,
            "barostat_fs": 2.0,
            "both_ways": False,
            "sample_every": 1,
            "blocks": 4,
        },
        pressure_systems=("S_reo",),
        pressure_engine="eager",
        # Most of what a model costs here is to build its network, which goes with the layers.
        architecture="least",
        larger="least",
        box_steps=2,
        training=_SHORT,
    ),
    # About an hour of one core.
    "small": Size(
        cells=_MIXED,
        train=40,
        periodic=16,
        test=8,
        counts=(10, 30),
        subsets=(2, 2),
        cross=30,
        pool=60,
        super_clusters=90,
        super_test=10,
        super_frames=3,
        super_cell=(2, 2, 1),
        super_frame=(2, 1, 1),
        seeds=1,
        atoms_seen=1_500_000,
        more_atoms_seen=100_000,
        check=3,
        match_frames=3,
        curve={"volumes": 5, "spacing": 0.01, "max_force": 0.02, "max_steps": 400},
        curve_systems=_TOPOLOGIES,
        realisations=3,
        mechanics_cell=(2, 2, 2),
        pressure={
            "pressures_GPa": (),
            "volumes": (0.9, 0.92, 0.94, 0.96, 0.98, 1.0),
            "both_ways": False,
            "length_fs": 1000.0,
            "barostat_fs": 300.0,
        },
        # Its mlp_sup^c holds no crystal at 300 K (docs/paper.md); name systems here to see it.
        pressure_systems=(),
        longer=8,
        training=_SHORT,
    ),
    # Two idle cores, about five hours, and three and a half of one core for P(V) (estimates).
    "medium": Size(
        cells=_MIXED,
        train=60,
        periodic=60,
        test=30,
        counts=(10, 30, 100),
        subsets=(3, 3, 3),
        cross=100,
        pool=300,
        super_clusters=300,
        super_test=60,
        super_frames=5,
        super_cell=(2, 2, 2),
        super_frame=(2, 2, 2),
        seeds=3,
        atoms_seen=1_800_000,
        more_atoms_seen=600_000,
        check=3,
        match_frames=10,
        curve={"volumes": 9, "spacing": 0.005, "max_force": 0.002, "max_steps": 2000},
        curve_systems=_TOPOLOGIES,
        realisations=5,
        mechanics_cell=(2, 2, 2),
        pressure={**_FEW, "length_fs": 10_000.0},
        training=_SHORT,
    ),
    # The paper's sizes, for a GPU or a cluster.
    "full": Size(
        cells=_PAPER_CELLS,
        train=200,
        periodic=200,
        test=100,
        counts=(2, 5, 10, 20, 50, 100, 200, 500),
        subsets=(3,) * 8,
        cross=500,
        pool=1500,
        super_clusters=1500,
        super_test=500,
        super_frames=5,
        super_cell=(4, 4, 4),
        super_frame=(2, 2, 2),
        seeds=3,
        atoms_seen=100_000_000,
        more_atoms_seen=60_000_000,
        check=1,
        match_frames=100,
        curve={"volumes": 17, "spacing": 0.005, "max_force": 0.001, "max_steps": 4000},
        curve_systems=(*_TOPOLOGIES[:2], *(f"S_ld-2-{k}" for k in range(1, 8)), *_TOPOLOGIES[3:]),
        realisations=5,
        mechanics_cell=(4, 4, 4),
        pressure={
            # At fixed volumes alone: what S_pr withstands in NPT is twenty times what S_scu does.
            "pressures_GPa": (),
            "volumes": tuple(round(0.9 + 0.01 * k, 2) for k in range(14)),
            "length_fs": 50_000.0,
            "until_converged": True,
        },
        architecture="base",
        larger="extended",
        training={"learning_rate": 0.004, "batch_size": 5, "energy_weight": 100.0},
    ),
}


def base_settings(size: Size, *, more: bool, factor: int = 1, larger: bool = False) -> Any:
    """Settings of mlp_pr, or (`more`) of a training that goes on from it."""
    seen = factor * (size.more_atoms_seen if more else size.atoms_seen)
    rate = float(size.training["learning_rate"])
    values = {
        **size.training,
        "architecture": _ARCHITECTURES[size.larger if larger else size.architecture],
        "decay": "cosine",
        "max_atoms_seen": seen,
        "stop_patience": 100_000,
        "threads": 1,
    }
    if more:
        values |= {"learning_rate": 0.7 * rate, "warm_up_epochs": 2}
    return TrainingSettings(**values)
