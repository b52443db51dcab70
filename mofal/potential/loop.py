"""The training loop: NequIP's Lightning module, a clock that stops it, checkpoints that resume it.

Lightning's own checkpoints are not used: one that is written at the end of an epoch lacks that
epoch's step of the plateau scheduler, so a resumed training would not be the training that would
have been. Ours is written before an epoch begins, when all of the one before is done. Nothing here
draws from torch's global generator (which threads share): the only random thing, the order of an
epoch, follows from the seed and the number of that epoch, so these two are the whole random state.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from nequip.train import EMALightningModule

from mofal.data.sealed import read_sealed, starts_over, write_sealed
from mofal.errors import PotentialError, StoreError
from mofal.potential.devices import resolve_device
from mofal.potential.metrics import loss_config
from mofal.potential.network import Graph, allow_any_order, collate, put_weights, weights_of
from mofal.potential.settings import TrainingSettings

CHECKPOINT = "checkpoint.pt"
_VAL = "val0_epoch/"


class Batches:
    """Graphs in memory, in batches; a new seeded order each epoch, or always the same.

    The order of an epoch follows from the seed and the number of that epoch alone, so that a
    resumed training sees what the uninterrupted one would have seen.
    """

    def __init__(self, graphs: Sequence[Graph], size: int, *, seed: int | None) -> None:
        self.graphs = list(graphs)
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(len(self.graphs) / self.size)

    def __iter__(self) -> Iterator[Graph]:
        order = np.arange(len(self.graphs))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        for start in range(0, len(order), self.size):
            yield collate([self.graphs[i] for i in order[start : start + self.size]])


class Module(EMALightningModule):
    """NequIP's module; the plateau scheduler waits while the clock says so."""

    scheduler_engaged = True

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Log what the scheduler and the clock read: each line less saves time in every step."""
        kept = {k: v for k, v in dictionary.items() if k.startswith(_VAL)}
        if kept:
            super().log_dict(kept, *args, **kwargs)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step the scheduler, unless the warm-up is still on."""
        if self.scheduler_engaged:
            super().lr_scheduler_step(scheduler, metric)


def make_module(
    model_config: dict[str, Any], settings: TrainingSettings, *, energies_masked: bool = False
) -> Module:
    """NequIP's EMA module with the paper's loss, optimiser and scheduler."""
    return Module(
        ema_decay=settings.ema_decay,
        model={
            "_target_": "nequip.model.NequIPGNNModel",
            **model_config,
            "compile_mode": "compile" if settings.engine == "compiled" else "eager",
        },
        num_datasets={"train": 1, "val": 1, "test": 0},
        optimizer={"_target_": "torch.optim.Adam", "lr": settings.learning_rate},
        lr_scheduler={
            "scheduler": {
                "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                "factor": settings.plateau_factor,
                "patience": settings.plateau_patience,
            },
            "monitor": f"{_VAL}weighted_sum",
            "interval": "epoch",
            "frequency": 1,
        },
        loss=loss_config(settings, with_mae=False, energies_masked=energies_masked),
        val_metrics=loss_config(settings, with_mae=True, energies_masked=energies_masked),
    )


def network_of(module: Module) -> torch.nn.Module:
    """Return the network inside NequIP's module."""
    return module.model["sole_model"]


def set_weights(module: Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights in, and start the moving average at them."""
    put_weights(network_of(module), weights)
    module.ema.num_updates = 0
    module.ema.update_parameters(module.model)


def averaged_weights(module: Module) -> dict[str, torch.Tensor]:
    """Moving average of the weights, a copy, wherever it is now."""
    state = weights_of(network_of(module))
    if module.ema.is_holding_ema_weights:
        names = [name for name, _ in network_of(module).named_parameters()]
        for name, value in zip(names, module.ema.ema_weights, strict=True):
            state[name] = value.detach().clone().cpu()
    return state


class Clock(lightning.Callback):
    """Counts epochs, steps and atoms; warms up, stops, keeps the best, reports, checkpoints.

    It counts on its own and does not ask the trainer, whose counters start at zero when a training
    is resumed.

    Parameters
    ----------
    settings : TrainingSettings
    batches : Batches
        Of the training; its epoch is set from here.
    work : pathlib.Path
        Directory of the checkpoint.
    identity : str
        Hash of everything that decides the result; a checkpoint of another training is refused.
    also : sequence of str
        Identities that earlier versions gave the same training.
    warm : bool
        Whether this is a warm start.
    checkpoint_every : int
        Optimiser steps between checkpoints, at least.
    progress : callable, optional
    """

    def __init__(
        self,
        settings: TrainingSettings,
        batches: Batches,
        *,
        work: Path,
        identity: str,
        also: Sequence[str] = (),
        warm: bool,
        checkpoint_every: int,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.settings = settings
        self.batches = batches
        self.work = work
        self.identity = identity
        self.known = (identity, *also)
        self.checkpoint_every = checkpoint_every
        self.progress = progress
        self.warm_epochs = settings.warm_up_epochs if warm else 0
        self.epoch = 0
        self.step = 0
        self.atoms_seen = 0
        self.best_loss = math.inf
        self.best_weights: dict[str, torch.Tensor] = {}
        self.best_epoch = 0
        self.reference_loss = math.inf
        self.reference_epoch = 0
        self.history: list[dict[str, Any]] = []
        self.stopped_by = ""
        self._losses: list[float] = []
        self._saved_step = -1
        self._clock = (time.monotonic(), 0.0)
        self._said = 0.0

    # ------------------------------------------------------------------ hooks
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Resume from a checkpoint, if there is one."""
        path = self.work / CHECKPOINT
        content, fault = read_checkpoint(path) if path.exists() else (None, "")
        if fault:
            self._say(starts_over(path, "training", fault))
        if content is not None:
            self._restore(path, content, trainer, pl_module)
            self._say(f"resumed at epoch {self.epoch}, step {self.step}")
        self._clock = (time.monotonic(), self._fraction())

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Everything of the epoch before is done: checkpoint, then set the order of this one."""
        if self._saved_step < 0 or self.step - self._saved_step >= self.checkpoint_every:
            self._store(trainer, pl_module)
        self.batches.epoch = self.epoch
        plateau = self.settings.decay == "plateau"
        pl_module.scheduler_engaged = plateau and self.epoch >= self.warm_epochs
        self._losses = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raise the rate linearly during a warm-up; let it fall where it follows a cosine."""
        warm_steps = self.warm_epochs * len(self.batches)
        cosine = self.settings.decay == "cosine"
        if not cosine and self.step >= warm_steps:
            return  # the plateau scheduler's
        rate = self.settings.learning_rate * min(1.0, (self.step + 1) / max(warm_steps, 1))
        if cosine:
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(1.0, self._fraction())))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count; stop at the step where a bound is reached."""
        self.step += 1
        self.atoms_seen += int(batch["num_atoms"].sum())
        self._losses.append(float(outputs["loss"]) * self.settings.loss_weight)
        if not math.isfinite(self._losses[-1]):
            raise PotentialError(
                f"the training diverged at step {self.step}: its loss is {self._losses[-1]}; lower "
                f"learning_rate (now {self.settings.learning_rate:g}), or look for a label that is "
                "wrong (overlapping atoms, another unit)"
            )
        limit = self._limit()
        if limit:
            self._stop(trainer, limit)
        elif time.monotonic() - self._said > 15:
            self._report(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the losses of an epoch; keep the best; stop when nothing more is learnt."""
        if trainer.sanity_checking:
            return
        values = {
            k[len(_VAL) :]: float(v)
            for k, v in trainer.callback_metrics.items()
            if k.startswith(_VAL)
        }
        loss = values["weighted_sum"] * self.settings.loss_weight
        epoch = self.epoch + 1
        self.history.append(
            {
                "epoch": epoch,
                "step": self.step,
                "atoms_seen": self.atoms_seen,
                "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
                "train_loss": float(np.mean(self._losses)),
                "validation_loss": loss,
                "validation_force_mae": values["forces_mae"],
                "validation_energy_mae_per_atom": values["per_atom_energy_mae"],
                **(
                    {"validation_stress_mae": values["stress_mae"]}
                    if "stress_mae" in values
                    else {}
                ),
            }
        )
        if not math.isfinite(loss):
            raise PotentialError(
                f"the training diverged in epoch {epoch}: its validation loss is {loss}; lower "
                f"learning_rate (now {self.settings.learning_rate:g})"
            )
        if loss < self.best_loss or self.settings.keep == "last":
            self.best_loss, self.best_epoch = loss, epoch
            self.best_weights = averaged_weights(pl_module)
        if loss < self.reference_loss - self.settings.stop_delta:
            self.reference_loss, self.reference_epoch = loss, epoch

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Close the epoch."""
        self.epoch += 1
        s = self.settings
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        if not trainer.should_stop:
            if self.epoch - self.reference_epoch >= s.stop_patience:
                self._stop(
                    trainer,
                    f"the validation loss fell by less than {s.stop_delta:g} "
                    f"in {s.stop_patience} epochs",
                )
            elif (
                s.decay == "plateau"
                and self.epoch > self.warm_epochs
                and rate < s.min_learning_rate
            ):
                self._stop(trainer, f"the learning rate fell below {s.min_learning_rate:g}")
            elif s.max_epochs is not None and self.epoch >= s.max_epochs:
                self._stop(trainer, f"max_epochs {s.max_epochs}")
        if trainer.should_stop or time.monotonic() - self._said > 5:
            self._report(trainer)

    # ------------------------------------------------------------------ stopping
    def _limit(self) -> str:
        s = self.settings
        if s.max_steps is not None and self.step >= s.max_steps:
            return f"max_steps {s.max_steps}"
        if s.max_atoms_seen is not None and self.atoms_seen >= s.max_atoms_seen:
            return f"max_atoms_seen {s.max_atoms_seen}"
        return ""

    def _stop(self, trainer: lightning.Trainer, why: str) -> None:
        self.stopped_by = why
        trainer.should_stop = True

    def _fraction(self) -> float:
        """How much of the training is done, 0 where nothing bounds it."""
        s = self.settings
        bounds = (
            (self.step, s.max_steps),
            (self.atoms_seen, s.max_atoms_seen),
            (self.step, None if s.max_epochs is None else s.max_epochs * len(self.batches)),
        )
        return max((done / bound for done, bound in bounds if bound), default=0.0)

    # ------------------------------------------------------------------ progress
    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        if self.progress is not None:
            self.progress(line)

    def _report(self, trainer: lightning.Trainer) -> None:
        bound = f"/{self.settings.max_steps}" if self.settings.max_steps else ""
        line = f"epoch {self.epoch}, step {self.step}{bound}"
        if self._losses:
            line += f", loss {np.mean(self._losses):.3g}"
        if self.history:
            last = self.history[-1]
            line += (
                f", validation {last['validation_loss']:.3g}"
                f", force MAE {1000 * last['validation_force_mae']:.0f} meV/Å"
                f", energy MAE {1000 * last['validation_energy_mae_per_atom']:.1f} meV/atom"
                f", rate {last['learning_rate']:.2g}"
            )
        if trainer.should_stop:
            line += f"; stopped: {self.stopped_by}"
        else:
            start, before = self._clock
            gained = self._fraction() - before
            if gained > 0:
                left = (time.monotonic() - start) * (1 - self._fraction()) / gained
                line += f", {left:.0f} s left" if left < 600 else f", {left / 60:.0f} min left"
        self._say(line)

    # ------------------------------------------------------------------ checkpoints
    def _store(self, trainer: lightning.Trainer, module: Any) -> None:
        content = {
            "identity": self.identity,
            "module": module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "best_weights": self.best_weights,
            "history": self.history,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_sealed(buffer.getvalue(), self.work / CHECKPOINT)
        self._saved_step = self.step

    def _restore(
        self, path: Path, content: dict[str, Any], trainer: lightning.Trainer, module: Any
    ) -> None:
        if content["identity"] not in self.known:
            raise StoreError(
                f"{path} is the checkpoint of another training (other data, settings, seed or "
                f"start model); delete it if it is not wanted: rm -r {path.parent}"
            )
        module.load_state_dict(content["module"])
        trainer.optimizers[0].load_state_dict(content["optimizer"])
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(content["scheduler"])
        self.best_weights = {k: v.cpu() for k, v in content["best_weights"].items()}
        self.history = content["history"]
        for name in _COUNTERS:
            setattr(self, name, content["counters"][name])
        self._saved_step = self.step


def read_checkpoint(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Read the checkpoint of a training.

    Returns
    -------
    content, fault
        None where it is damaged, and what is wrong with it: nothing of it is used then.

    Raises
    ------
    StoreError
        The system does not give the file.
    """
    raw, fault = read_sealed(path)
    if fault and not _sound_archive(raw):
        return None, fault
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        missing = {"identity", "module", "optimizer", "scheduler", "counters"} - set(content)
    except Exception as error:
        # It was written by another torch, or before there were checksums: what torch says of such
        # a file is any exception, with the advice to load it by pickle.
        return None, f"it cannot be loaded, {type(error).__name__}"
    return (None, f"it lacks {sorted(missing)[0]}") if missing else (content, "")


def _sound_archive(raw: bytes) -> bool:
    """Whether bytes are a checkpoint of before there were seals, with all its CRCs right."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return raw.startswith(b"PK") and archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError):
        return False


_COUNTERS = (
    "epoch",
    "step",
    "atoms_seen",
    "best_loss",
    "best_epoch",
    "reference_loss",
    "reference_epoch",
)


def run(
    module: Module,
    clock: Clock,
    validation: Sequence[Graph],
    *,
    settings: TrainingSettings,
) -> None:
    """Train until the clock stops it."""
    device = resolve_device(settings.device)
    allow_any_order(device)
    trainer = lightning.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1 if device == "cpu" else [int(device.partition(":")[2] or 0)],
        max_epochs=-1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        default_root_dir=str(clock.work),
    )
    trainer.fit(
        module,
        train_dataloaders=clock.batches,
        val_dataloaders=Batches(validation, settings.batch_size, seed=None),
    )
    if trainer.interrupted:
        raise KeyboardInterrupt
