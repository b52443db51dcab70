"""The plan, pure: what a campaign consists of, and what comes next given what the store holds.

A campaign is a graph of steps. A step needs paths and makes one path; it is done when that path
exists. So resuming is looking, and nothing here touches a disk: `exists` is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mofal.campaign.config import CampaignConfig
from mofal.campaign.paths import control, holding, holdout, model, place, seed

StageName = Literal[
    "sample", "label", "train", "density", "walk", "select", "propose", "judge", "hold", "control"
]


@dataclass(frozen=True)
class Step:
    """One step of a campaign.

    Attributes
    ----------
    stage : str
        What is done.
    cycle : int
        Cycle it belongs to; 0 is the seed data.
    system : str
        System it is about, empty where it is about all.
    needs : tuple of str
        Paths, relative to the campaign's directory, that must exist before.
    makes : str
        Path that exists when it is done.
    holdout : bool
        Whether it serves judging only.
    source : int
        Which source of seed data it is about, where it is about one.
    """

    stage: StageName
    cycle: int
    system: str
    needs: tuple[str, ...]
    makes: str
    holdout: bool = False
    source: int = 0

    @property
    def name(self) -> str:
        """What a person calls it."""
        where = f"hold-out {self.system}" if self.holdout else self.system
        return " ".join(p for p in (f"cycle {self.cycle}", where, self.stage) if p)


# ---------------------------------------------------------------------------------- places
# ---------------------------------------------------------------------------------- steps
def steps(config: CampaignConfig, *, cycles: int | None = None) -> list[Step]:
    """Every step of a campaign of so many cycles, in an order in which they could be done.

    Parameters
    ----------
    config : CampaignConfig
    cycles : int, optional
        Fewer than the file says where the campaign stopped early.
    """
    n = config.cycles if cycles is None else cycles
    out, seeds = [], []
    for k in range(len(config.seed_sources)):
        sampled, labelled = seed(k, "samples.zarr"), seed(k, "labels.zarr")
        title = f"source {k + 1}" if k else ""
        out += [
            Step("sample", 0, title, (), sampled, source=k),
            Step("label", 0, title, (sampled,), labelled, source=k),
        ]
        seeds.append(labelled)
    for s in config.holdout_systems:
        out += [
            Step("sample", 0, s, (), holdout(s, "samples.zarr"), holdout=True),
            Step(
                "label",
                0,
                s,
                (holdout(s, "samples.zarr"), place(0, "samples.zarr")),
                holdout(s, "labels.zarr"),
                holdout=True,
            ),
        ]
    out.append(Step("train", 0, "", tuple(seeds), model(0)))
    for c in range(1, n + 1):
        previous = model(c - 1)
        density = place(c, "density.zarr")
        out.append(Step("density", c, "", (previous,), density))
        labels = []
        for s in config.explored:
            walked, cut = place(c, s, "samples.zarr"), place(c, s, "clusters.zarr")
            label = place(c, s, "labels.zarr")
            out += [
                Step("walk", c, s, (previous, density), walked),
                Step("select", c, s, (walked, density), cut),
                Step("label", c, s, (cut,), label),
            ]
            labels.append(label)
        proposal = place(c, "proposal.zarr")
        out += [
            Step("propose", c, "", (previous, *labels), proposal),
            Step("train", c, "", (previous, *labels, proposal), model(c)),
        ]
        if config.control:
            # Where the length of the training is known beforehand, the control runs beside it.
            bounded = length_is_known(config, is_final=c == n)
            wait = (*labels, proposal) if bounded else (model(c),)
            out.append(Step("control", c, "", (control(c - 1), *wait), control(c)))
    for tag, made in judged(config, n).items():
        for s in config.holdout_systems:
            needs = (made, holdout(s, "labels.zarr"))
            out.append(Step("judge", n, s, needs, holdout(s, f"{tag}.zarr"), holdout=True))
    return out + holding_steps(config, n)


def holding_steps(config: CampaignConfig, cycles: int) -> list[Step]:
    """Steps that see how long the seed model, the control and the last model hold."""
    settings = config.holding
    if settings is None:
        return []
    made = judged(config, cycles)
    wanted = ("model-000", f"model-{cycles:03d}", f"control-{cycles:03d}")
    return [
        Step("hold", cycles, s, (made[tag],), holding(settings, s, tag), holdout=True)
        for tag in dict.fromkeys(wanted)
        if tag in made
        for s in settings.systems or config.explored
    ]


def length_is_known(config: CampaignConfig, *, is_final: bool) -> bool:
    """Whether the campaign file bounds the training of a cycle in epochs or atoms seen."""
    training = config.potential.final if is_final else config.potential.cycle
    return training.max_epochs is not None or training.max_atoms_seen is not None


def judged(config: CampaignConfig, cycles: int) -> dict[str, str]:
    """Models that are judged on the held-out frames, by the name of the judgement."""
    out = {f"model-{c:03d}": model(c) for c in range(cycles + 1)}
    if config.control and cycles > 0:
        out[f"control-{cycles:03d}"] = control(cycles)
    return out


def ready(all_steps: Iterable[Step], exists: Callable[[str], bool]) -> list[Step]:
    """Steps that are not done and whose needs are met."""
    return [
        step
        for step in all_steps
        if not exists(step.makes) and all(exists(need) for need in step.needs)
    ]


def unfinished(all_steps: Iterable[Step], exists: Callable[[str], bool]) -> list[Step]:
    """Steps that are not done."""
    return [step for step in all_steps if not exists(step.makes)]


def last_cycle(config: CampaignConfig, proposal_error_meV: Callable[[int], float | None]) -> int:
    """Last cycle of a campaign: what the file says, or the first that was accurate enough.

    Parameters
    ----------
    proposal_error_meV : callable
        MAE_P95 (meV/Å) of the model that proposed a cycle's clusters on their labels, before it
        learnt from them; None where it is not known yet.
    """
    threshold = config.stop.proposal_mae_p95_meV_per_A
    if threshold is not None:
        for c in range(1, config.cycles + 1):
            error = proposal_error_meV(c)
            if error is not None and error <= threshold:
                return c
    return config.cycles


def is_final(config: CampaignConfig, cycle: int, last: int) -> bool:
    """Whether the training of this cycle runs to the full criterion."""
    return cycle == last and cycle > 0
