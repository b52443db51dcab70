"""The campaign file: everything a campaign does, as pydantic models that refuse unknown keys.

`mofal.campaign.loading` reads one and turns every mistake into one message.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from mofal.campaign.examples import seed_place
from mofal.campaign.names import check_name, check_taken
from mofal.data.hashing import hash_json
from mofal.dynamics.settings import WalkSettings, walk_length
from mofal.errors import ConfigError
from mofal.potential.settings import (
    ARCHITECTURES,
    TRAININGS,
    Architecture,
    Device,
    TrainingSettings,
)
from mofal.schedule.settings import ScheduleSettings


class Section(BaseModel):
    """A part of the campaign file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(
            f"found [{value[0]:g}, {value[1]:g}]; expected the lower end first: "
            f"[{value[1]:g}, {value[0]:g}]"
        )
    return value


def _path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value or not value.isprintable():
        raise ValueError(f"found {value!r}; expected the name of a file")
    return Path(value)


# Bounds far above what anyone means: a slip of the hand (cycles: 1e9) is a message, and no driver
# that fills the memory with steps.
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, lt=1e9)]
Temperature = Annotated[float, Field(gt=0, le=100_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Cycles = Annotated[int, Field(ge=0, le=10_000)]
Strain = Annotated[float, Field(gt=-0.3, lt=0.3)]
Name = Annotated[str, AfterValidator(check_name)]
StrainRange = Annotated[tuple[Strain, Strain], AfterValidator(_ordered)]
Pressure = Annotated[float, Field(gt=-1000, lt=1000)]
File = Annotated[Path, BeforeValidator(_path)]


class DisorderSettings(Section):
    """Disorder drawn into a system (`mofal.frameworks.disorder`); its seed is the system's."""

    hf: Annotated[float, Field(ge=0, le=1)] = 0.0
    linker: Annotated[float, Field(ge=0, le=1)] = 0.0
    brick: Annotated[float, Field(ge=0, le=1)] = 0.0
    exact: bool = Field(False, description="fractions are exact numbers, not probabilities")
    pattern: Literal["independent", "reo", "bcu"] = "independent"
    domain_size: Positive | None = Field(None, description="diameter of nanodomains, Å")


class SystemSettings(Section):
    """A system: built by name, or read from a file."""

    build: str | None = Field(None, description="name of a framework mofal builds, e.g. S_ld")
    file: File | None = Field(None, description="CIF, extended XYZ, or anything ASE reads")
    cell: Literal["primitive", "conventional"] = "conventional"
    repeat: tuple[Count, Count, Count] | None = None
    seed: Seed = Field(0, description="of the disorder")
    disorder: DisorderSettings | None = None
    rule: str = Field("auto", description="rule that cuts the framework into blocks")
    charge: int | None = Field(
        0, description="formal charge of the cell of the file; null: whatever it is"
    )
    alternatives: Literal["refuse", "major"] = Field(
        "refuse", description="of a disordered CIF; major: the larger one of each"
    )
    add_hydrogens: bool = Field(
        False, description="complete the file where geometry and charge leave one way"
    )
    explore: bool = Field(True, description="false: serves seed data and hold-out only")

    @model_validator(mode="after")
    def _one_source(self) -> SystemSettings:
        if (self.build is None) == (self.file is None):
            raise ValueError("give either `build: NAME` or `file: PATH`, and not both")
        return self


class FrameSettings(Section):
    """Frames drawn without any potential from a network of springs (`mofal.dynamics`)."""

    frames: Count = 20
    temperature_K: Temperature = 600.0
    volume_strain: StrainRange = Field(
        (-0.03, 0.05), description="range of the relative change of volume"
    )
    shear: Annotated[float, Field(ge=0, lt=0.1)] = 0.01


class PerturbedSettings(FrameSettings):
    """Frames of one system."""

    system: Name


class SeedClusterSettings(FrameSettings):
    """Random clusters cut from perturbed frames of every explored system."""

    per_system: Count = 20
    frames: Count = 10


class SeedKeys(Section):
    """Names under which another program wrote the labels of a seed file."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = Field(None, description="eV/Å³, sign of ASE")


class SeedSettings(Section):
    """Where the first potential learns from: exactly one of the four."""

    example: str | None = Field(
        None,
        description="labels that travel with mofal, e.g. uio66-gfn1 (see also potential.start)",
    )
    frames: Count | None = Field(
        None, description="so many structures of `example`, spread over all; default: all"
    )
    file: File | None = Field(None, description="structures, labelled or not")
    labels: Literal["reference", "ignore"] | None = Field(
        None,
        description="of `file`: made at the reference's level, or to be made anew; "
        "default: the file itself says its level, or has no labels",
    )
    keys: SeedKeys | None = Field(
        None, description="names of the labels in `file`, e.g. {energy: REF_energy}"
    )
    perturbed: PerturbedSettings | None = None
    clusters: SeedClusterSettings | None = None

    @model_validator(mode="after")
    def _one_source(self) -> SeedSettings:
        sources = ("example", "file", "perturbed", "clusters")
        given = [k for k in sources if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of `example`, `file`, `perturbed` or `clusters`"
                + (f", not {' and '.join(given)}" if given else "")
            )
        if self.frames is not None and self.example is None:
            raise ValueError(
                f"`frames` says how many structures of an `example` are taken; beside `{given[0]}` "
                "it means nothing"
            )
        if self.example is not None:
            try:
                seed_place(self.example)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        if self.labels is not None and self.file is None:
            raise ValueError(
                f"`labels` says what the labels of a `file` are, and `{given[0]}` has none; "
                "take `labels` out"
            )
        if self.keys is not None and (self.file is None or self.labels == "ignore"):
            why = "`labels: ignore`" if self.file is not None else f"`{given[0]}`"
            raise ValueError(f"`keys` names the labels of a `file`, beside {why} it means nothing")
        return self


class CacheSettings(Section):
    """A label cache that several campaigns share."""

    path: File
    mode: Literal["r", "rw"] = Field("r", description="rw: it is given the labels of this campaign")


class ReferenceSettings(Section):
    """Where labels come from."""

    name: str = "gfn1-xtb"
    time_limit_s: Positive | None = None
    attempts: Count = Field(1, description="tries at one label before its failure stands")
    caches: tuple[CacheSettings, ...] = Field(
        (), description="shared label caches: PATH (read only), or {path: PATH, mode: rw}"
    )
    max_force_eV_per_A: Positive = Field(
        50.0, description="a label with a larger force is set aside, and said"
    )
    max_energy_eV_per_atom: Positive = Field(
        # Twenty times what holds the strongest solids together (tungsten: 9 eV per atom).
        200.0,
        description="a label further from its isolated atoms, either way, is set aside, and said",
    )

    @field_validator("caches", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple({"path": c} if isinstance(c, (str, Path)) else c for c in value)
        return value


class PotentialSettings(Section):
    """The NequIP model and how it is trained.

    `architecture` and the options beside it hold for all three trainings; `seed`, `cycle` and
    `final` take every other key of `mofal.potential.TrainingSettings`.
    """

    architecture: Architecture = ARCHITECTURES["base"]
    elements: tuple[str, ...] = Field((), description="beside those of systems and seed data")
    start: str | None = Field(
        None,
        description="a model directory, or example:NAME: the campaign's first model as it is, "
        "instead of training one on the seed data",
    )
    pretrained: str | None = Field(
        None,
        description="a model directory, or example:NAME, of any level of theory: the training on "
        "the seed data begins with its weights (and has its architecture)",
    )
    like: dict[str, str] = Field(
        {},
        description="elements that the given potential has not learnt, each with a known one that "
        "it begins as: {Hf: Zr}",
    )
    validation_fraction: Fraction = 0.2
    regions: Literal["all", "core", "weighted"] = "all"
    threads: Count = Field(1, description="of a training task; features and walks take one")
    device: Device = Field(
        "cpu",
        description="where all stages compute with the potential: cpu, cuda, cuda:1, auto; "
        "a pool may have its own",
    )
    seed: TrainingSettings = TRAININGS["paper"]
    cycle: TrainingSettings = TRAININGS["cycle"]
    final: TrainingSettings = TRAININGS["paper"]

    @model_validator(mode="before")
    @classmethod
    def _trainings(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        out = dict(content)
        shared = {k: content[k] for k in _SHARED if k in content}
        for stage, preset in (("seed", "paper"), ("cycle", "cycle"), ("final", "paper")):
            given = content.get(stage, {})
            if not isinstance(given, dict):
                continue
            clash = [k for k in given if k in _SHARED]
            if clash:
                raise ValueError(
                    f"{stage}.{clash[0]} belongs one level up: potential.{clash[0]} holds for "
                    "all trainings"
                )
            out[stage] = {**TRAININGS[preset].model_dump(), **shared, **given}
        return out

    @model_validator(mode="after")
    def _one_beginning(self) -> PotentialSettings:
        if self.start is not None and self.pretrained is not None:
            raise ValueError(
                "give `start` (the first model, as it is) or `pretrained` (weights that the first "
                "training begins with), and not both"
            )
        if self.like and not self.begins:
            raise ValueError(
                "like says what elements begin as in a potential that is given: give `start` or "
                "`pretrained` with it"
            )
        return self

    @property
    def begins(self) -> bool:
        """Whether a potential is given, as the first model or to train it from."""
        return self.start is not None or self.pretrained is not None

    @field_validator("architecture", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in ARCHITECTURES:
                raise ValueError(_known(value, ARCHITECTURES))
            return ARCHITECTURES[value]
        return value

    @field_validator("elements", "like")
    @classmethod
    def _symbols(cls, value: Any) -> Any:
        from ase.data import chemical_symbols

        for symbol in [*value, *value.values()] if isinstance(value, dict) else value:
            if symbol not in chemical_symbols[1:]:
                raise ValueError(f"{symbol!r} is no chemical symbol")
        return value


_STAGES = ("seed", "cycle", "final")
_SHARED = ("architecture", "validation_fraction", "regions", "threads", "device")


class DensitySettings(Section):
    """One Gaussian mixture per element on the features of the training part of the data."""

    components: Literal["bic", "aic"] | Count = "bic"
    max_components: Annotated[int, Field(ge=1, le=1000)] = 12
    pca: Fraction | Count | None = Field(None, description="explained variance, or dimension")
    in_memory: Annotated[int, Field(ge=100, le=10**9)] = Field(
        2_000_000,
        description="atoms whose features are held in memory at most; more stay on disk, in shards "
        "of no more atoms than that",
    )
    coverage: Fraction = Field(0.9, description="of the bound of the force error")


class ExplorationSettings(Section):
    """Walks that look for environments the potential has not met."""

    walks: Count = Field(50, description="per system and cycle")
    engine: Literal["auto", "eager", "compiled"] = Field(
        "eager", description="auto: the network is compiled where a cycle's walks are worth it"
    )
    ensemble: Literal["npt", "nvt"] = "npt"
    temperature_K: Temperature = 600.0
    pressure_GPa: tuple[Pressure, Pressure] | Pressure = (-1.5, 1.5)
    timestep_fs: Annotated[float, Field(ge=0.001, le=2)] = 0.5
    length_fs: Positive = 500.0
    thermostat_fs: Positive = 100.0
    barostat_fs: Positive = 100.0
    max_temperature: Annotated[float, Field(gt=1)] = 4.0
    min_distance: Positive = 0.6
    max_force: Positive = 50.0
    max_stretch: Annotated[float, Field(gt=1)] = 1.25
    bond_z: Positive | None = Field(
        6.5, description="standard deviations of its kind that a bond may stray at most"
    )
    bond_mean_z: Positive | None = Field(5.5, description="and in its mean over bond_mean_fs")
    bond_mean_fs: Positive = 50.0
    max_bond_strain: Fraction | None = Field(
        None, description="one limit for all bonds besides, whatever their kind"
    )
    unfamiliar_quantile: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.001, description="a walk ends where atoms stay below it; 0: walks are not watched"
    )
    unfamiliar_fs: Positive = Field(10.0, description="and for how long")
    when_unfamiliar: Literal["stop", "mark"] = Field(
        "stop", description="mark: the walk goes on, its record names the atoms"
    )
    sample_every: Count = Field(10, description="steps between samples of a walk's trace")
    checkpoint_every: Count = Field(
        50, description="steps between checkpoints; an exploded walk ends where its last one was"
    )
    ramp_cycles: Count = Field(3, description="cycles over which walks grow to their full length")

    @model_validator(mode="after")
    def _walkable(self) -> ExplorationSettings:
        settings = self.walk_settings()
        first = walk_length(1, settings)
        if self.ensemble == "npt" and first <= self.barostat_fs:
            raise ValueError(
                f"the walks of the first cycle last {first:g} fs (length_fs / ramp_cycles) and "
                f"would not feel a barostat of {self.barostat_fs:g} fs; "
                f"write barostat_fs: {first / 3:.0f}"
            )
        return self

    def walk_settings(self) -> WalkSettings:
        """As the dynamics room takes them."""
        return WalkSettings(**self.model_dump(exclude={"walks", "engine"}))


class SelectionSettings(Section):
    """Which clusters are cut."""

    clusters: Count = 150
    ranking: str = "least_likely_atom"
    shells: Annotated[int, Field(ge=0, le=4)] = 1
    shells_along_rods: Annotated[int, Field(ge=0, le=4)] = Field(
        2, description="around metals of rods and their bridges, up to 250 atoms: else `shells`"
    )
    max_atoms: Count | None = Field(
        None,
        description="of a cluster, with caps: larger ones get the part of their mantle that fits",
    )
    drawn: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="fraction of the clusters whose cores are drawn at random where there is a "
        "bound of the force error: they tell how often it holds",
    )
    blueprints: File | None = Field(
        None, description="what `mofal match` found: shells by kind of core, before `shells`"
    )
    unpaired: dict[str, Annotated[int, Field(ge=0, le=100)]] = Field(
        {}, description="unpaired electrons per atom of open-shell elements, e.g. {Cu: 1}"
    )


class HoldoutSettings(FrameSettings):
    """Frames no model has seen or made, labelled to judge all of them."""

    systems: tuple[Name, ...] = Field((), description="default: every system")
    frames: Count = 10


class HoldingSettings(Section):
    """Runs that see how long the seed model, the control and the last model hold a structure."""

    systems: tuple[Name, ...] = Field((), description="default: every explored system")
    runs: Count = 3
    length_fs: Positive = 1000.0
    temperature_K: Positive = 600.0
    timestep_fs: Annotated[float, Field(gt=0, le=2)] = 0.5
    engine: Literal["eager", "compiled"] = Field(
        "eager", description="compiled: the network is compiled first, for long runs"
    )


class StopSettings(Section):
    """When a campaign ends before its last cycle."""

    proposal_mae_p95_meV_per_A: Positive | None = Field(
        None, description="error on a cycle's clusters before learning from them"
    )


class MechanicsSettings(Section):
    """Mechanics of systems with the campaign's last model (`mofal.mechanics`)."""

    systems: tuple[Name, ...] = Field((), description="default: every system")
    what: tuple[Literal["eos", "elastic", "pv"], ...] = ("eos",)
    engine: Literal["auto", "eager", "compiled"] = Field(
        "eager", description="auto: the network is compiled where the work is worth it"
    )
    realisations: Count = Field(1, description="draws of systems with disorder, E(V) of each")
    volumes: Count = 9
    spacing: Fraction = Field(0.005, description="of the volumes of E(V), relative")
    both_ways: bool = True
    max_force_meV_per_A: Positive = 1.0
    max_stress_MPa: Positive = 1.0
    max_steps: Count = 2000
    strains: tuple[Fraction, ...] = Field((0.0025, 0.005), description="of elastic constants")
    temperature_K: Positive = Field(300.0, description="of P(V)")
    pressures_GPa: tuple[float, ...] = (-0.4, -0.2, 0.0, 0.2, 0.4)
    pv_volumes: tuple[Positive, ...] = (0.92, 0.94, 0.96, 0.98, 1.0)
    length_ps: Positive = 50.0
    timestep_fs: Annotated[float, Field(gt=0, le=2)] = 0.5
    runs: Count = 1
    until_converged: bool = Field(False, description="more runs where K or P_max still move")
    max_runs: Count = Field(8, description="of a point of P(V), where until_converged")
    pressure_change_MPa: Positive = Field(15.0, description="of P_max, 40 to 80 % of the data")
    modulus_change_GPa: Positive = Field(1.0, description="of K, likewise")

    @model_validator(mode="after")
    def _meant(self) -> MechanicsSettings:
        self.settings(0)
        return self

    def settings(self, seed: int) -> dict[str, Any]:
        """As `mofal.mechanics` takes them: ``curve``, ``strains`` and ``pressure``."""
        from mofal.mechanics import Criteria, CurveSettings, ElasticSettings, PressureSettings

        force = self.max_force_meV_per_A / 1000.0
        return {
            "curve": CurveSettings(
                volumes=self.volumes,
                spacing=self.spacing,
                both_ways=self.both_ways,
                seed=seed,
                criteria=Criteria(
                    max_force=force,
                    max_stress_MPa=self.max_stress_MPa,
                    max_steps=self.max_steps,
                ),
            ),
            "strains": ElasticSettings(
                amplitudes=self.strains,
                criteria=Criteria(max_force=force / 2.0, max_steps=self.max_steps),
            ),
            "pressure": PressureSettings(
                temperature_K=self.temperature_K,
                pressures_GPa=self.pressures_GPa,
                volumes=self.pv_volumes,
                length_fs=1000.0 * self.length_ps,
                timestep_fs=self.timestep_fs,
                runs=self.runs,
                both_ways=self.both_ways,
                until_converged=self.until_converged,
                max_runs=self.max_runs,
                pressure_change_GPa=self.pressure_change_MPa / 1000.0,
                modulus_change_GPa=self.modulus_change_GPa,
                seed=seed,
            ),
        }


class CampaignConfig(Section):
    """A campaign file, validated."""

    name: Name
    seed: Seed
    systems: Annotated[dict[Name, SystemSettings], Field(min_length=1)]
    seed_data: SeedSettings = Field(description="one source, or a list of them")
    more_seed_data: tuple[SeedSettings, ...] = Field(
        (), description="those of the list `seed_data` after the first; not written by hand"
    )
    cycles: Cycles
    reference: ReferenceSettings = ReferenceSettings()
    potential: PotentialSettings = PotentialSettings()
    density: DensitySettings = DensitySettings()
    exploration: ExplorationSettings = ExplorationSettings()
    selection: SelectionSettings = SelectionSettings()
    holdout: HoldoutSettings | None = None
    holding: HoldingSettings | None = None
    control: bool = Field(
        False, description="also train the seed model as long on the seed data alone"
    )
    quorum: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="fraction of a cycle's labels that training waits for; the last cycle: all",
    )
    stop: StopSettings = StopSettings()
    mechanics: MechanicsSettings | None = Field(
        None, description="E(V), elastic constants, P(V) after the last cycle"
    )
    schedule: ScheduleSettings = ScheduleSettings()

    @model_validator(mode="before")
    @classmethod
    def _sources(cls, content: Any) -> Any:
        """`seed_data` may be a list: its first source stands where the only one does."""
        given = content.get("seed_data") if isinstance(content, Mapping) else None
        if not isinstance(given, list | tuple):
            return content
        if not given:
            raise ValueError("`seed_data` is an empty list; give at least one source")
        return {**content, "seed_data": given[0], "more_seed_data": tuple(given[1:])}

    @model_validator(mode="after")
    def _consistent(self) -> CampaignConfig:
        def known(name: str, where: str) -> None:
            if name not in self.systems:
                raise ValueError(f"{where} names the system {name!r}; {_known(name, self.systems)}")

        check_taken(self.systems)
        sources = [source.seed_data for source in self.seed_sources]
        for source in sources:
            if source.perturbed is not None:
                known(source.perturbed.system, "seed_data.perturbed.system")
        for name in self.holdout.systems if self.holdout else ():
            known(name, "holdout.systems")
        for name in self.holding.systems if self.holding else ():
            known(name, "holding.systems")
        if self.mechanics is not None:
            for name in self.mechanics.systems:
                known(name, "mechanics.systems")
            self.schedule.pool_of("mechanics")  # a pool must take its tasks
        if not any(s.explore for s in self.systems.values()) and self.cycles > 0:
            raise ValueError("every system has `explore: false`, so a cycle has nothing to walk")
        if self.control and self.cycles == 0 and any(s.clusters is not None for s in sources):
            raise ValueError("a control needs at least one cycle to be compared with")
        return self

    @property
    def explored(self) -> tuple[str, ...]:
        """Names of the systems that walk."""
        return tuple(n for n, s in self.systems.items() if s.explore)

    @property
    def seed_sources(self) -> tuple[CampaignConfig, ...]:
        """The campaign with each source of seed data as its only one."""
        if not self.more_seed_data:
            return (self,)
        return tuple(
            self.model_copy(update={"seed_data": source, "more_seed_data": ()})
            for source in (self.seed_data, *self.more_seed_data)
        )

    @property
    def holdout_systems(self) -> tuple[str, ...]:
        """Names of the systems that are held out for testing."""
        if self.holdout is None:
            return ()
        return self.holdout.systems or tuple(self.systems)

    @property
    def weights(self) -> Path | None:
        """Table of force matching that weighs the atoms of clusters; None where none does."""
        return self.selection.blueprints if self.potential.regions == "weighted" else None

    def deciding(self) -> dict[str, Any]:
        """All that decides the results; where things run and how many cycles may change."""
        content = _without_devices(_without_free(self.model_dump(mode="json", exclude=set(_FREE))))
        _without_unset(content)
        for key in ("start", "pretrained"):
            given = content["potential"].get(key)
            if given is not None and not given.startswith("example:"):
                content["potential"][key] = _content_hash(Path(given) / "model.json")
        for part in (*_seeds(content), *content["systems"].values()):
            # The same file under another name is the same campaign.
            if part.get("file") is not None:
                part["file"] = _content_hash(part["file"])
        if content["selection"]["blueprints"] is not None:
            content["selection"]["blueprints"] = _content_hash(content["selection"]["blueprints"])
        return content

    def identity(self) -> str:
        """Hash of all that decides the results."""
        return hash_json(self.deciding())


_FREE = ("schedule", "cycles", "stop", "quorum", "holding", "mechanics")
"""What may change between two runs of one campaign."""
_FREE_OF_REFERENCE = ("caches", "attempts", "time_limit_s")
"""Of a reference: how often and how long it tries decides no label that it gives."""


def _without_free(content: dict[str, Any]) -> dict[str, Any]:
    for name in _FREE_OF_REFERENCE:
        content["reference"].pop(name, None)
    return content


def _without_unset(content: dict[str, Any]) -> None:
    """Campaigns from before there was such a setting keep their identity."""
    for part, name in (
        *((s, n) for s in _seeds(content) for n in ("labels", "keys", "example", "frames")),
        (content["potential"], "start"),
        (content["potential"], "pretrained"),
        (content["selection"], "max_atoms"),
    ):
        if part.get(name) is None:
            part.pop(name, None)
    if not content["potential"].get("like"):
        content["potential"].pop("like", None)
    if not content.get("more_seed_data"):
        content.pop("more_seed_data", None)
    walks = content.get("exploration", {})
    for name in ("sample_every", "checkpoint_every", "engine", "when_unfamiliar"):
        if walks.get(name) == ExplorationSettings.model_fields[name].default:
            del walks[name]


def _seeds(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Every source of seed data of a campaign's content."""
    return [content["seed_data"], *content.get("more_seed_data", ())]


def _without_devices(content: dict[str, Any]) -> dict[str, Any]:
    """Say ``cpu`` for each device: where a potential computes does not make another campaign.

    Nor does the engine of its trainings, so that one whose compiler fails may go on without.
    """
    for part in (content["potential"], *(content["potential"][s] for s in _STAGES)):
        part["device"] = "cpu"
        part.pop("engine", None)
    return content


def _content_hash(path: str | Path) -> str:
    """Hash of a file; every task of a campaign asks for it, and reads it once per process."""
    now = os.stat(path)
    return _hash_of(str(path), now.st_ino, now.st_mtime_ns, now.st_size)


@functools.lru_cache(maxsize=64)
def _hash_of(path: str, *_: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _without_shared(content: dict[str, Any]) -> dict[str, Any]:
    """Take what holds for all trainings out of each of them, where a campaign file has it not."""
    for stage in _STAGES:
        for key in _SHARED:
            content["potential"][stage].pop(key, None)
    return content


def _known(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(map(str, names))}"
