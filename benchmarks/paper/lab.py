"""The lab: names of the paper (D_ld^T, mlp_mix^c) to the artefacts that they are."""

from __future__ import annotations

from typing import Any

import xarray as xr

from mofal.data import open_group
from mofal.potential import NequIPPotential, load
from paper import data, models
from paper.settings import LEVELS, SUPER, TEMPERATURE_K, Size, base_settings
from paper.store import Node, Store

DEFECTS = ("S_ld", "S_hf", "S_reo")
SYSTEMS = ("S_pr", *DEFECTS)
SEED = 20250404
"""Of everything; streams of it are numbered below."""
STREAMS = {"train": 1, "test": 2, "pool": 3, "direct": 4, "judge": 5}
BATCH = 6
"""Structures whose labels are one task."""


class Lab:
    """Everything that the claims are made of, planned on demand.

    Parameters
    ----------
    store : Store
    size : Size
    level : str
        Of `LEVELS`.
    """

    def __init__(self, store: Store, size: Size, level: str) -> None:
        self.store = store
        self.size = size
        self.level_name = level
        self.level = LEVELS[level]
        self.used: list[Node] = []

    def scaled(self) -> list[str]:
        """What is smaller than in the paper, for every claim."""
        size = self.size
        small = [s for s, cell in size.cells.items() if cell == "primitive"]
        out = [
            f"frames of the harmonic sampler at {TEMPERATURE_K:g} K around the level's S_pr "
            "(paper: MD)",
            f"D_pr^T {size.train}, D {size.test} frames (paper: 200, 100); architecture "
            f"{size.architecture}; mlp_pr saw {size.atoms_seen:,} atoms, each training from it "
            f"{size.more_atoms_seen:,}",
        ]
        return out + ([f"primitive cells of {', '.join(small)}"] if small else [])

    # -- structures
    def relaxed(self) -> Node:
        """S_pr's primitive cell at the level's minimum."""
        return self.store.node(
            "relaxed.S_pr",
            data.make_relaxed,
            reference=self.level.reference,
            relaxes=self.level.relaxes,
        )

    def cell_of(self, name: str) -> str:
        """Which cell stands for a system at this size."""
        return self.size.cells.get(name, "conventional")

    def system(self, name: str, **options: Any) -> Node:
        """A structure; `options` for supercells with disorder."""
        return self.store.node(
            f"system.{name}".replace("*", "-star"),
            data.make_system,
            self.relaxed(),
            name=name,
            cell=self.cell_of(name) if not options else "conventional",
            options=options,
        )

    def frames(self, system: Node, n: int, stream: str, which: int = 0) -> Node:
        """Perturbed frames of a structure."""
        return self.store.node(
            "frames." + system.name.partition(".")[2],
            data.make_frames,
            system,
            n=n,
            stream=[SEED, STREAMS[stream], which],
        )

    def disordered(self, repeat: tuple[int, int, int], which: int) -> Node:
        """A realisation of S_sup's disorder."""
        return self.system("S_sup", repeat=list(repeat), seed=SEED + which, **SUPER)

    # -- labels
    def label(self, structures: Node, n: int) -> Node:
        """Labels of `n` structures, in tasks of a few."""
        where = {"cache": str(self.store.work / "labels")}
        reference = self.level.reference
        kind = structures.name.replace("frames.", "").replace("clusters.", "c-")
        parts = [
            self.store.node(
                f"part.{kind}",
                data.make_labels_part,
                structures,
                suffix=".json",
                where=where,
                reference=reference,
                first=first,
                last=min(first + BATCH, n),
            )
            for first in range(0, n, BATCH)
        ]
        return self.store.node(
            f"labels.{kind}",
            data.make_labels,
            structures,
            *parts,
            where=where,
            reference=reference,
        )

    def training_set(self, name: str) -> Node:
        """D^T of a system."""
        n = self.size.train if name == "S_pr" else self.size.periodic
        return self.label(self.frames(self.system(name), n, "train"), n)

    def test_set(self, name: str) -> Node:
        """D of a system; D_cl by the name ``"cl"``."""
        if name == "cl":
            return self.pool("S_sup", judge=True)
        n = self.size.test
        return self.label(self.frames(self.system(name), n, "test"), n)

    def direct_sets(self) -> list[Node]:
        """One labelled frame for each of some realisations of S_sup's disorder."""
        return [
            self.label(
                self.frames(self.disordered(self.size.super_frame, 100 + k), 1, "direct", k), 1
            )
            for k in range(self.size.super_frames)
        ]

    def cluster_structures(self, name: str, *, judge: bool = False) -> tuple[Node, int]:
        """Clusters of a system, unlabelled, and how many."""
        if name != "S_sup":
            n = self.size.pool
            system = self.system(name)
            sources = [system, self.frames(system, n, "pool")]
        else:
            n = self.size.super_test if judge else self.size.super_clusters
            draws = range(200, 201) if judge else range(min(3, n))
            systems = [self.disordered(self.size.super_cell, k) for k in draws]
            bricks = 4 * self.size.super_cell[0] * self.size.super_cell[1]
            each = max(2, -(-2 * n // (len(systems) * bricks)))
            sources = [
                *systems,
                *(
                    self.frames(s, each, "judge" if judge else "pool", k)
                    for k, s in enumerate(systems)
                ),
            ]
        clusters = self.store.node(
            f"clusters.{name}",
            data.make_clusters,
            *sources,
            n=n,
            seed=SEED,
            every=name == "S_sup",
        )
        return clusters, n

    def pool(self, name: str, *, judge: bool = False) -> Node:
        """Labelled clusters of a system."""
        return self.label(*self.cluster_structures(name, judge=judge))

    # -- models
    def model(
        self,
        name: str,
        *sets: tuple[Node, list[int] | None],
        seed: int = 1,
        warm: bool = True,
        factor: int = 1,
        larger: bool = False,
        **training: Any,
    ) -> Node:
        """A model trained on labelled sets; `warm`: from mlp_pr; `training` over the settings."""
        settings = base_settings(self.size, more=warm, factor=factor, larger=larger)
        start = self.pristine() if warm else self.relaxed()
        plan = {k: v for k, v in settings.model_dump().items() if k not in ("threads", "device")}
        plan |= training
        return self.store.node(
            f"model.{name}",
            models.make_model,
            start,
            *(s[0] for s in sets),
            suffix="",
            settings=plan,
            seed=seed,
            warm=warm,
            subsets=[s[1] for s in sets],
        )

    def pristine(self) -> Node:
        """mlp_pr."""
        return self.model("mlp_pr", (self.training_set("S_pr"), None), warm=False)

    def untrained(self) -> Node:
        """The checkpoint of mlp_pr before its training."""
        return self.store.node(
            "model.untrained", models.make_untrained, self.pristine(), suffix="", seed=1
        )

    def periodic(self, name: str, seed: int = 1) -> Node:
        """mlp_ld and so on: from mlp_pr on the periodic set of the system alone."""
        return self.model(f"mlp_{name[2:]}", (self.training_set(name), None), seed=seed)

    def cluster_model(self, name: str, count: int, which: int = 0, *, factor: int = 1) -> Node:
        """mlp_ld^c and so on, of a subset of the pool."""
        return self.model(
            f"mlp_{name[2:]}-c{count}",
            (self.training_set("S_pr"), None),
            (self.pool(name), [count, which, SEED]),
            factor=factor,
        )

    def mixed(self, count: int) -> Node:
        """mlp_mix^c: `count` clusters of each kind."""
        sets = [(self.pool(name), [count, 0, SEED]) for name in DEFECTS]
        return self.model("mlp_mix-c", (self.training_set("S_pr"), None), *sets)

    def super_model(self, *, larger: bool = False) -> Node:
        """mlp_sup^c* (the architecture of the others), or mlp_sup^c (`larger`), which is larger
        where the size has a larger one, and learns for longer where it says so."""
        sets = ((self.training_set("S_pr"), None), (self.pool("S_sup"), None))
        if larger and self.size.larger != self.size.architecture:
            return self.model("mlp_sup-c", *sets, warm=False, larger=True)
        if larger and self.size.longer > 1:
            return self.model("mlp_sup-c", *sets, factor=self.size.longer)
        return self.model("mlp_sup-c-star", *sets)

    # -- what they say
    def prediction(self, model: Node, labels: Node) -> Node:
        """Energies and forces of a model on a labelled set."""
        name = f"prediction.{model.name[6:]}-on-{labels.name[7:]}"
        return self.store.node(name, models.make_prediction, model, labels)

    def features(self, model: Node, structures: Node) -> Node:
        """Features of a model on structures."""
        name = f"features.{model.name[6:]}-on-{structures.name.partition('.')[2]}"
        return self.store.node(name, models.make_features, model, structures)

    def get(self, *nodes: Node) -> list[xr.Dataset]:
        """Make groups and load them."""
        self.used += nodes
        return [open_group(p).load() for p in self.store.make(*nodes)]

    def potential(self, node: Node) -> NequIPPotential:
        """Make a model and load it."""
        self.used.append(node)
        return load(self.store.make(node)[0])
