"""Where a potential computes: one word, looked up on the machine that computes."""

from __future__ import annotations

import re

from mofal.errors import PotentialError
from mofal.potential.settings import DEVICE


def resolve_device(device: str) -> str:
    """Device of this machine that a word means: ``cpu``, ``cuda`` or ``cuda:1``.

    Parameters
    ----------
    device : str
        One of these, or ``auto``: ``cuda`` where there is a GPU, else ``cpu``.

    Raises
    ------
    PotentialError
        The word means nothing, or this machine has no such device.
    """
    if not isinstance(device, str) or not re.fullmatch(DEVICE, device):
        raise PotentialError(f"the device is {device!r}; expected cpu, cuda, cuda:0 or auto")
    if device == "cpu":
        return device
    number = count_gpus()
    if device == "auto":
        return "cuda" if number else "cpu"
    if number == 0:
        raise PotentialError(
            f"the device is {device}, and torch finds no GPU here ({_why_none()}); "
            "write cpu, or auto"
        )
    index = int(device.partition(":")[2] or 0)
    if index >= number:
        last = f"cuda:{number - 1}"
        raise PotentialError(
            f"the device is {device}, and torch finds {number} GPU{'s' if number > 1 else ''} "
            f"here, the last is {last}; write {last}, cuda or auto"
        )
    return device


def count_gpus() -> int:
    """Return how many GPUs torch can use on this machine."""
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _why_none() -> str:
    import os

    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "no driver or no GPU" if visible is None else f"CUDA_VISIBLE_DEVICES is {visible!r}"
