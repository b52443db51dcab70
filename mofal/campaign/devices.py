"""Where each stage of a campaign computes with the potential, and whether it can."""

from __future__ import annotations

from mofal.campaign.config import CampaignConfig
from mofal.errors import ConfigError, PotentialError
from mofal.potential.devices import resolve_device

KINDS = ("train", "density", "walk", "propose", "judge")
"""Kinds of task that compute with a potential (the control trains)."""


def device_of(config: CampaignConfig, kind: str) -> str:
    """Device of tasks of a kind: their pool's, else the potential's.

    Returns
    -------
    str
        ``cpu``, ``cuda``, ``cuda:1`` or ``auto``; looked up on the worker.
    """
    return _stated(config, kind)[0]


def _stated(config: CampaignConfig, kind: str) -> tuple[str, str]:
    """Device of a kind, and where in the campaign file it stands."""
    name = config.schedule.pool_of(kind)
    own = config.schedule.effective_pools()[name].device
    if own is not None:
        return own, f"schedule.pools.{name}.device"
    return config.potential.device, "potential.device"


def check_devices(config: CampaignConfig) -> None:
    """Refuse a device that cannot be there, before anything is paid for.

    What runs on this machine is looked up here; of a job on SLURM it is known only whether it books
    a GPU, and the worker looks for the rest.

    Raises
    ------
    ConfigError
        With the place in the campaign file and the mend.
    """
    for kind in KINDS:
        if (kind == "judge" and not config.holdout_systems) or (
            kind not in ("train", "judge") and config.cycles == 0
        ):
            continue
        device, place = _stated(config, kind)
        if device in ("cpu", "auto"):
            continue
        name = config.schedule.pool_of(kind)
        pool = config.schedule.effective_pools()[name]
        here = config.schedule.backend in ("inline", "threads") or pool.backend == "local"
        if not here and not pool.gpus:
            raise ConfigError(
                f"{place} is {device}, and {kind} runs in pool {name}, which books no GPU; write "
                f"gpus: 1 or device: cpu into that pool, or {kind} into the kinds of a pool that "
                "has GPUs"
            )
        index = int(device.partition(":")[2] or 0)
        if pool.gpus and index >= pool.gpus:
            raise ConfigError(
                f"{place} is {device}, and a worker of pool {name}, where {kind} runs, sees "
                f"{pool.gpus} GPU{'s' if pool.gpus > 1 else ''}, counted from 0; write cuda"
            )
        if here:
            try:
                resolve_device(device)
            except PotentialError as error:
                raise ConfigError(f"{place} (for {kind}): {error}") from None


def describe_devices(config: CampaignConfig) -> str:
    """Say where each kind computes; "" where all do on CPUs."""
    devices = {kind: device_of(config, kind) for kind in KINDS}
    if set(devices.values()) == {"cpu"}:
        return ""
    return "potential on: " + ", ".join(f"{kind} {device}" for kind, device in devices.items())
