"""A potential as the checkpoint that NequIP's scripts take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mofal.potential.base import Networked
from mofal.potential.network import (
    BUILDING,
    SHIFTS,
    builder_config,
    put_weights,
    quiet,
    weights_of,
)


def write_checkpoint(potential: Networked, work: Path, shifts: dict[str, float]) -> Path:
    """Write what `nequip-train` would have left behind: the scripts take nothing else."""
    frame = work / "example.xyz"
    _write_example(potential, frame)
    module_name = "nequip.train.NequIPLightningModule"
    config = builder_config(
        potential.architecture,
        potential.elements,
        avg_num_neighbors=potential.avg_num_neighbors,
        shifts=shifts,
    )
    transforms: list[dict[str, Any]] = [
        {
            "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
            "model_type_names": list(potential.elements),
        },
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": potential.r_max},
    ]
    data = {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 0,
        "train_file_path": str(frame),
        "val_file_path": str(frame),
        "transforms": transforms,
    }
    import lightning
    from nequip.train import NequIPLightningModule
    from nequip.utils import get_current_code_versions

    with BUILDING, quiet():
        module = NequIPLightningModule(
            model={"_target_": "nequip.model.NequIPGNNModel", **config},
            num_datasets={"train": 1, "val": 0, "test": 0},
            info_dict={
                "versions": get_current_code_versions(verbose=False),
                "data": data,
                "training_module": {"_target_": module_name},
            },
        )
        weights = weights_of(potential.network)
        per_type = [[shifts[e]] for e in potential.elements]
        weights[SHIFTS] = weights[SHIFTS] + torch.tensor(per_type, dtype=weights[SHIFTS].dtype)
        put_weights(module.model["sole_model"], weights)
        trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(work),
        )
        trainer.strategy.connect(module)
        path = work / "model.ckpt"
        trainer.save_checkpoint(path, weights_only=True)
    return path


def _write_example(potential: Networked, path: Path) -> None:
    """Write one frame of the model's elements: compilation traces the network on it."""
    corners = np.indices((3, 3, 3)).reshape(3, -1).T
    spacing = 0.45 * potential.r_max
    symbols = [potential.elements[i % len(potential.elements)] for i in range(len(corners))]
    frame = Atoms(symbols, positions=spacing * corners, cell=np.eye(3) * 3 * spacing, pbc=True)
    frame.calc = SinglePointCalculator(frame, energy=0.0, forces=np.zeros((len(frame), 3)))
    write(path, frame, format="extxyz")
