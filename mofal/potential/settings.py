"""What a potential looks like and how it is trained: validated, hashable, free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

DEVICE = r"cpu|cuda(:[0-9]{1,3})?|auto"
"""Words for where a potential computes."""

Device = Annotated[str, Field(pattern=f"^({DEVICE})$")]
"""``cpu``, ``cuda`` (a worker's first GPU), ``cuda:1``, or ``auto``: a GPU where there is one."""


class Architecture(BaseModel):
    """Size and shape of a NequIP potential (Section SI.2 of the paper).

    Attributes
    ----------
    r_max : float
        Radius of an environment per convolution, in Å.
    n_layers, n_features, l_max, parity
        Convolutions; multiplicity of each irrep; highest rotation order; whether odd irreps too.
    radial_layers, radial_neurons
        Hidden layers of the radial network, and their width.
    feature_dim : int
        Length of F: the hidden layer of the readout, right before the energy of an atom.
    n_bessel, cutoff_exponent
        Radial basis functions, and exponent of the polynomial that takes them to zero at `r_max`.
    dtype : str
        Precision inside the network; energies are summed in float64 whatever it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    r_max: float = Field(gt=0.5, le=12)
    n_layers: int = Field(ge=1, le=8)
    n_features: int = Field(ge=1, le=1024)
    l_max: int = Field(default=1, ge=0, le=4)
    parity: bool = True
    radial_layers: int = Field(default=2, ge=1, le=32)
    radial_neurons: int = Field(default=32, ge=1, le=4096)
    feature_dim: int = Field(default=8, ge=1, le=4096)
    n_bessel: int = Field(default=8, ge=1, le=256)
    cutoff_exponent: int = Field(default=6, ge=2, le=100)
    dtype: Literal["float32", "float64"] = "float32"


ARCHITECTURES: dict[str, Architecture] = {
    "tiny": Architecture(r_max=4.0, n_layers=3, n_features=16, feature_dim=8),
    "base": Architecture(r_max=4.5, n_layers=5, n_features=16, feature_dim=8),
    "extended": Architecture(r_max=5.0, n_layers=4, n_features=32, feature_dim=16),
}
"""Presets: `base` and `extended` are the paper's; `tiny` is for a laptop and for tests."""


class TrainingSettings(BaseModel):
    """How a potential is trained. The defaults are the paper's (Section SI.2).

    Attributes
    ----------
    architecture : Architecture or str
        A preset's name, or its own numbers. A warm start keeps the architecture of its start.
    learning_rate, batch_size, ema_decay
        Of Adam; structures per step; of the moving average of the weights, which is what is kept.
    force_weight, energy_weight : float
        Of the mean squared errors of forces ((eV/Å)²) and of energies per atom ((eV/atom)²).
    stress_weight : float
        Of the mean squared error of the components of stresses ((eV/Å³)²), where a crystal's label
        has one; 0 (the paper's, whose labels have none): not learnt. 1000 makes an error of
        0.1 GPa weigh as much as one of 20 meV/Å.
    energy_shift : str
        Energy of an atom that the network starts from, the same for every type and fixed for good:
        ``"mean"`` of the energies per atom of the first training set, or ``"isolated"``: zero, an
        isolated atom.
    plateau_factor, plateau_patience
        The rate is multiplied by the factor after so many epochs without a better validation loss.
    decay : str
        ``"plateau"``: the paper's, as above. ``"cosine"``: from `learning_rate` to nothing over the
        whole of a training that is bounded in steps, epochs or atoms seen. It helps one that starts
        from a trained model; a first one that is far from its end does better at a constant rate.
    warm_up_epochs : int
        Epochs of a warm start in which the rate rises linearly, before the scheduler engages.
    stop_delta, stop_patience
        Stop when the validation loss fell by less than `stop_delta` over so many epochs. The loss
        is meant as `force_weight` times one plus `energy_weight` times the other, not normalised.
    min_learning_rate : float
        Stop when the scheduler has brought the rate below it.
    align_energies : bool
        In a warm start, first take the shifts per type by their smallest change to the mean
        energies of the data; forces, and energies of compositions that the model knows, stay.
    max_steps, max_epochs, max_atoms_seen : int, optional
        Stop after so many optimiser steps, epochs, or atoms in training batches (counted each time
        they are used), whichever comes first.
    keep : str
        ``"best"``: the averaged weights at the lowest validation loss; ``"last"``: at the end.
    regions : str
        Which forces of clusters count: ``"all"`` atoms; ``"core"`` only; or ``"weighted"``: by the
        variable `force_weight(atom)` where the data has it, else by region with the two weights
        that follow. Crystals always count with all their atoms.
    mantle_weight, termination_weight : float
        Weights of squared force errors of these regions where ``regions="weighted"``; the core's
        is 1.
    validation_fraction : float
        Part of each source that validates, where the data comes without `split(structure)`.
    threads : int
        CPU threads of this training. The same seed gives the same bits whatever it is, with the
        eager network.
    engine : str
        ``"eager"``, or ``"compiled"``: steps through NequIP's compiled network, which take
        half of the time on a CPU, and give the same to rounding (docs/potential.md). It wants
        a C++ compiler and some minutes before the first step, fewer the next time. Its bits belong
        to a machine and a number of threads.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``. It decides where a training runs and not
        which one it is; the same bits are promised on CPUs only.
    allow_other_level : bool
        Let a warm start move to labels of another level of theory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: Architecture = Field(default=ARCHITECTURES["base"])
    learning_rate: float = Field(default=0.004, gt=0, lt=1)
    batch_size: int = Field(default=5, ge=1)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    force_weight: float = Field(default=1.0, gt=0)
    energy_weight: float = Field(default=100.0, ge=0)
    stress_weight: float = Field(default=0.0, ge=0)
    energy_shift: Literal["mean", "isolated"] = "mean"
    plateau_factor: float = Field(default=0.75, gt=0, lt=1)
    plateau_patience: int = Field(default=25, ge=1)
    decay: Literal["plateau", "cosine"] = "plateau"
    warm_up_epochs: int = Field(default=10, ge=0)
    stop_delta: float = Field(default=1e-5, ge=0)
    stop_patience: int = Field(default=250, ge=1)
    min_learning_rate: float = Field(default=1e-5, ge=0)
    align_energies: bool = True
    max_steps: int | None = Field(default=None, ge=1)
    max_epochs: int | None = Field(default=None, ge=1)
    max_atoms_seen: int | None = Field(default=None, ge=1)
    keep: Literal["best", "last"] = "best"
    regions: Literal["all", "core", "weighted"] = "all"
    mantle_weight: float = Field(default=0.5, ge=0)
    termination_weight: float = Field(default=0.0, ge=0)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    threads: int = Field(default=1, ge=1)
    engine: Literal["eager", "compiled"] = "eager"
    device: Device = "cpu"
    allow_other_level: bool = False

    @field_validator("architecture", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in ARCHITECTURES:
                raise ValueError(
                    f"no architecture {value!r}; presets: {', '.join(ARCHITECTURES)}, "
                    "or give r_max, n_layers, n_features, ..."
                )
            return ARCHITECTURES[value]
        return value

    @model_validator(mode="after")
    def _rates(self) -> TrainingSettings:
        if self.min_learning_rate >= self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is not below "
                f"learning_rate {self.learning_rate:g}: training would stop at once"
            )
        if self.decay == "cosine" and not any(
            (self.max_steps, self.max_epochs, self.max_atoms_seen)
        ):
            raise ValueError(
                "decay cosine takes the rate to nothing at the end of a training, and this one has "
                "no end: give max_epochs, max_steps or max_atoms_seen"
            )
        return self

    @model_validator(mode="after")
    def _engine(self) -> TrainingSettings:
        if self.engine == "compiled" and self.batch_size == 1:
            raise ValueError(
                "engine compiled takes two structures a step or more (NequIP compiles no batch of "
                "one), and batch_size is 1: raise it, or write engine: eager"
            )
        return self

    @property
    def loss_weight(self) -> float:
        """Sum of the loss weights: what NequIP 0.19 divides the loss by (101 in the paper)."""
        return self.force_weight + self.energy_weight + self.stress_weight

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Trainings and campaigns begun before there were these stay what they are.
        out: dict[str, Any] = serialize(self)
        if out.get("stress_weight") == 0.0:
            del out["stress_weight"]
        if out.get("engine") == "eager":
            del out["engine"]
        return out


TRAININGS: dict[str, TrainingSettings] = {
    "paper": TrainingSettings(),
    "cycle": TrainingSettings(
        learning_rate=0.008, plateau_patience=10, stop_patience=50, stop_delta=1e-4
    ),
    "demo": TrainingSettings(
        architecture=ARCHITECTURES["tiny"],
        learning_rate=0.01,
        plateau_patience=10,
        stop_patience=50,
        stop_delta=1e-4,
        max_steps=600,
    ),
}
"""Presets: `paper` trains to the full criterion, `cycle` stops early as a campaign's intermediate
models do, `demo` is bounded in steps for a laptop. Vary one: ``TRAININGS["demo"].model_copy(...)``.
"""
