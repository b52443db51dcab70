"""A campaign's directory: where things are, and how they are read together."""

from __future__ import annotations

import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths, plan
from mofal.campaign.aside import absurdities, by_hand
from mofal.campaign.config import CampaignConfig
from mofal.campaign.devices import device_of
from mofal.campaign.loading import completed, differences, dump_config, load_config
from mofal.data import open_group, read_json, select
from mofal.data.ragged import TEXT
from mofal.data.store import atomic_path
from mofal.errors import CampaignError, ConfigError, DataError, StoreError
from mofal.potential import split_structures
from mofal.potential.directory import read_provenance
from mofal.reference import LabelCache, get_reference, merge_labels

if TYPE_CHECKING:
    import xarray as xr

    from mofal.reference import Reference

CONFIG = "campaign.yaml"
FACTS = "campaign.json"
RECORDS = "label-records"
WORK = "work"
ISOLATED = "isolated-atoms"
_FACTS = ("name", "identity", "elements", "level_hash")


COMMON = (
    "numbers",
    "positions",
    "cell",
    "pbc",
    "n_atoms",
    "structure_index",
    "structure_id",
    "system",
    "parent",
    "region",
    "parent_atom",
    "force_weight",
    "charge",
    "n_unpaired",
    "n_electrons",
    "drawn",
    "energy",
    "forces",
    "stress",
    "status",
    "reason",
    "wall_time",
)
"""Variables that structures and labels of all stages share; a stage's own stay in its group."""


class Site:
    """The directory of one campaign.

    Parameters
    ----------
    root : path
        It must hold a validated `campaign.yaml` (`Site.prepare` puts it there).

    Raises
    ------
    CampaignError
        There is no campaign in it.
    """

    def __init__(self, root: str | os.PathLike[str], config: CampaignConfig | None = None) -> None:
        self.root = Path(root).absolute()
        if config is None:
            if not (self.root / CONFIG).is_file():
                raise CampaignError(
                    f"{root} holds no campaign (it has no {CONFIG}); "
                    "start one: mofal run campaign.yaml"
                )
            config = load_config(self.root / CONFIG)
        self.config = config

    @cached_property
    def identity(self) -> str:
        """Hash of all that decides the results, of the settings that are at work here."""
        return self.config.identity()

    def refuse_changed(self, identity: str) -> None:
        """Refuse to work with other settings than the driver's.

        Raises
        ------
        CampaignError
            The campaign file in the directory was changed while the campaign runs.
        """
        if self.identity == identity:
            return
        changed = differences(self.config.deciding(), completed(self.facts.get("settings", {})))
        what = f" ({'; '.join(changed[:4])})" if changed else ""
        raise CampaignError(
            f"{self.root / CONFIG} is not what the campaign runs with{what}: it, or a file that it "
            "names, was changed; nothing is computed with it. Undo that, or start the campaign "
            "again from the file that it began with"
        )

    # -- places
    def path(self, relative: str) -> Path:
        """Absolute path of something in the campaign."""
        return self.root / relative

    def exists(self, relative: str) -> bool:
        """Whether a step's product is there (and so is complete)."""
        return self.path(paths.marker(relative)).exists()

    def work(self, *parts: str) -> Path:
        """Directory for what is not finished; may be deleted when no driver runs."""
        return self.root.joinpath(WORK, *parts)

    # -- randomness
    def seed(self, *words: str | int) -> tuple[int, ...]:
        """Seed of one piece of work, from the campaign's one seed and the names of the work.

        Names instead of a counter: adding a system or a cycle leaves all other seeds as they are.
        """
        return (
            self.config.seed,
            *(w if isinstance(w, int) else zlib.crc32(w.encode()) for w in words),
        )

    def rng(self, *words: str | int) -> np.random.Generator:
        """Random generator of one piece of work."""
        return np.random.default_rng(self.seed(*words))

    def integer_seed(self, *words: str | int) -> int:
        """Seed as one integer below 2³¹, for libraries that take no more."""
        return int(np.random.SeedSequence(self.seed(*words)).generate_state(1)[0] % 2**31)

    # -- facts
    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was found out when the campaign was prepared: elements, systems, identity."""
        if not (self.root / FACTS).exists():
            raise CampaignError(
                f"{self.root} holds a campaign file and nothing of a campaign (it has no {FACTS}); "
                f"start it, or go on with it: mofal run {self.root / CONFIG} --directory DIR"
            )
        mend = "restore it from a copy, or start anew: mofal run campaign.yaml --directory NEW"
        content = read_json(self.root / FACTS, needs=_FACTS, mend=mend)
        elements = content["elements"]
        if not isinstance(elements, list) or not all(isinstance(e, str) for e in elements):
            raise StoreError(f"{self.root / FACTS} is damaged (its elements are none); {mend}")
        settings = content.get("settings", {})
        if not isinstance(settings, dict) or not isinstance(settings.get("exploration", {}), dict):
            raise StoreError(f"{self.root / FACTS} is damaged (its settings are none); {mend}")
        return dict(content)

    @property
    def elements(self) -> tuple[str, ...]:
        """Types of the potential: every element of the whole campaign."""
        return tuple(self.facts["elements"])

    # -- methods
    def device(self, kind: str) -> str:
        """Where tasks of a kind compute with the potential; looked up on the worker."""
        return device_of(self.config, kind)

    def reference(self) -> Reference:
        """Return the reference of the campaign file."""
        options: dict[str, Any] = {}
        if self.config.reference.time_limit_s is not None:
            options["time_limit_s"] = self.config.reference.time_limit_s
        return get_reference(self.config.reference.name, **options)

    def cache(self) -> LabelCache:
        """Return the campaign's label records, with those of other campaigns behind them."""
        for cache in self.config.reference.caches:
            if cache.mode == "rw":
                cache.path.mkdir(parents=True, exist_ok=True)
        shared = [LabelCache(c.path, c.mode) for c in self.config.reference.caches]
        return LabelCache(self.root / RECORDS, shared=shared)

    # -- data
    def group(self, relative: str) -> xr.Dataset:
        """Open one group lazily, checked."""
        return open_group(self.path(relative))

    def structure(self, system: str) -> xr.Dataset:
        """Structure of a system as it was built or read."""
        return self.group(paths.system_place(system, "structure.zarr")).load()

    def blocks(self, system: str) -> xr.Dataset:
        """Blocks of a system."""
        return self.group(paths.system_place(system, "blocks.zarr")).load()

    def finished_cycles(self) -> int:
        """Last cycle whose model is there, -1 before the seed model."""
        c = -1
        while self.exists(paths.model(c + 1)):
            c += 1
        return c

    def label_groups(self, last: int, *, whole: bool = False) -> list[tuple[int, str]]:
        """Cycle and path of every labels group up to a cycle, hold-out aside.

        Parameters
        ----------
        last : int
        whole : bool
            Also those that are not there: to open one is an error then, for work that must not go
            on with less.
        """
        out = [(0, paths.seed(k, "labels.zarr")) for k in range(len(self.config.seed_sources))]
        for c in range(1, last + 1):
            out += [(c, paths.place(c, s, "labels.zarr")) for s in self.config.explored]
        return [(c, p) for c, p in out if whole or self.exists(p)]

    @cached_property
    def by_hand(self) -> dict[str, str]:
        """Structures whose labels a person has set aside, and why."""
        return by_hand(self.root)

    def usable(self, labels: xr.Dataset) -> np.ndarray:
        """Which labels are learnt from and judged by: (structure,) of bool.

        Those that converged, and that neither the limits nor a person set aside.
        """
        ids = [str(s) for s in labels["structure_id"].values]
        fine = [
            not why and s not in self.by_hand
            for s, why in zip(ids, absurdities(labels, self.config.reference))
        ]
        return (labels["status"].values == "converged") & np.array(fine, bool)

    def training_set(self, last: int, *, whole: bool = False) -> xr.Dataset:
        """Labels that the model of a cycle learns from, with `split` and `cycle`.

        Only converged labels within the limits, without what `mofal set-aside` took out; each
        cycle's structures are divided over training and validation when they join, and stay there.

        Parameters
        ----------
        last : int
        whole : bool
            Refuse to go on where labels of a cycle are not there; else they are what there is.

        Raises
        ------
        DataError
            There is not one usable label.
        """
        seed = self.integer_seed("split")
        fraction = self.config.potential.validation_fraction
        out: xr.Dataset | None = None
        by_cycle: dict[int, list[xr.Dataset]] = {}
        for c, relative in self.label_groups(last, whole=whole):
            ds = self.group(relative).load()
            converged = np.flatnonzero(ds["status"].values == "converged")
            if len(converged):
                # Only an example's labels are divided already.
                part = select(ds[[v for v in COMMON if v in ds]], converged)
                if any(source.seed_data.example for source in self.config.seed_sources):
                    given = (
                        ds["split"].values[converged] if "split" in ds else [""] * len(converged)
                    )
                    part["split"] = ("structure", np.array(given, TEXT))
                part["cycle"] = ("structure", np.full(len(converged), c, np.int64))
                by_cycle.setdefault(c, []).append(part)
        for c in sorted(by_cycle):
            new = by_cycle[c]
            merged = merge_labels(*([out] if out is not None else []), *new)
            out = split_structures(merged, fraction=fraction, seed=seed)
        # What is set aside goes after the division: the others stay where they were without it.
        kept = np.flatnonzero([] if out is None else self.usable(out))
        if out is None or not len(kept):
            raise DataError(
                "no label can be learnt from: every one failed or was set aside "
                "(mofal status shows the reasons)"
            )
        return out if len(kept) == out.sizes["structure"] else select(out, kept)

    def model_record(self, relative: str) -> dict[str, Any]:
        """What a training left about itself: steps, atoms seen, losses."""
        return read_provenance(self.path(relative))

    def proposal_error_meV(self, cycle: int) -> float | None:
        """MAE_P95 of the model that proposed a cycle's clusters on their labels, in meV/Å."""
        relative = paths.place(cycle, "proposal.zarr")
        if not self.exists(relative):
            return None
        value = self.group(relative).attrs.get("mae_p95_meV_per_A")
        return None if value is None else float(value)

    def last_cycle(self) -> int:
        """Last cycle of this campaign as things stand."""
        return plan.last_cycle(self.config, self.proposal_error_meV)

    def steps(self) -> list[plan.Step]:
        """Every step of this campaign as things stand."""
        return plan.steps(self.config, cycles=self.last_cycle())


def write_config(root: Path, config: CampaignConfig) -> None:
    """Put the validated campaign file into its directory.

    What a pool is given as its environment or its prologue may be a token, and then the file is
    nobody else's to read.
    """
    with atomic_path(root / CONFIG, private=config.schedule.holds_secrets) as temporary:
        temporary.write_text(
            "# The campaign as it was validated, with every default written out.\n"
            + dump_config(config),
            encoding="utf-8",
        )


def changed_file(site: Site) -> str:
    """What somebody changed in the campaign's own file since it was written, in one line."""
    try:
        there = load_config(site.root / CONFIG)
        changed = differences(there.deciding(), site.config.deciding())
    except (ConfigError, OSError) as error:
        return f"the campaign's own {CONFIG} cannot be used as it is and is written anew ({error})"
    if not changed:
        return ""
    return (
        f"{CONFIG} had been changed ({'; '.join(changed[:4])}) and is written anew as the campaign "
        "began"
    )
