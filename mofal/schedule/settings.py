"""The `schedule` section of a campaign file: which pools there are and which kinds go where."""

from __future__ import annotations

import os
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mofal.errors import ConfigError
from mofal.schedule.jobqueue import complete_driver, complete_pool, interface
from mofal.schedule.sections import DriverSettings, PoolSettings, Seconds, WorkerRange, _Settings


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


AS_OTHERS = {"gather": "select"}
"""Kinds of task that are younger than campaign files, and the kind with which they go where a file
names no pool for them."""


class ScheduleSettings(_Settings):
    """Where a campaign's tasks run.

    Attributes
    ----------
    backend
        "inline" (in the driver, one after the other), "threads" (in the driver), "local" (processes
        on this machine), "slurm" (jobs), "client" (workers of a Dask cluster that runs already).
    address
        Of the scheduler of backend "client": ``tcp://host:8786``, ``tls://...``, or the path of a
        scheduler file; None: as Dask's configuration says (``DASK_SCHEDULER_ADDRESS``).
    resources
        Names of pools that are resources of workers which backend "client" is still to get; those
        of workers that are there are found by themselves.
    workers
        Of the default pool, where `pools` is not given; None: one per core.
    pools
        By name. Without any there is one pool, `local`, for all kinds.
    tls
        Encrypt and authenticate everything between driver, scheduler and workers; None: yes.
        Without it every user who reaches the scheduler's port, those of the same machine included,
        can run code as the driver's user.
    interface
        Network interface of the scheduler (``ib0``, ``lo``); None: the address that this machine's
        name resolves to, or the loopback where all pools are local.
    dashboard_port
        Of the Dask dashboard, on 127.0.0.1 only; 0: any free port, None: no dashboard.
    kills
        A task that ended this many workers is quarantined.
    deaths
        A pool whose jobs end this many times in a row before their worker connects is given up.
    poll_interval
        Seconds between two looks at the queue of jobs.
    idle_time
        A worker without work for this long is given back.
    linger
        How long workers on SLURM wait for a new driver when theirs is gone, before they end.
    driver
        The batch job of the driver itself.
    lengths
        What a task of a kind is expected to take (``{label: 2h}``): for the estimates of a dry run,
        as long as this campaign has done none.
    performance_reports
        Write Dask's performance report of each cycle into ``schedule/performance/`` (needs bokeh).
    """

    backend: Literal["inline", "threads", "local", "slurm", "client"] = "local"
    address: str | None = None
    resources: tuple[str, ...] = ()
    workers: int | None = Field(None, ge=1, le=100_000)
    pools: dict[str, PoolSettings] = Field(default_factory=dict)
    tls: bool | None = None
    interface: str | None = None
    dashboard_port: int | None = Field(0, ge=0, le=65535)
    kills: int = Field(3, ge=1)
    deaths: int = Field(3, ge=1)
    poll_interval: float = Field(15.0, gt=0)
    idle_time: float = Field(30.0, ge=0)
    linger: float = Field(300.0, ge=0)
    driver: DriverSettings | None = None
    lengths: dict[str, Seconds] = Field(default_factory=dict)
    performance_reports: bool = False

    @field_validator("pools")
    @classmethod
    def _names(cls, value: dict[str, PoolSettings]) -> dict[str, PoolSettings]:
        taken: dict[str, str] = {}
        for name, pool in value.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
                raise ValueError(
                    f"found a pool named {name!r}; expected letters, digits and _ (e.g. dft)"
                )
            for kind in pool.kinds:
                if kind in taken:
                    raise ValueError(
                        f"found kind {kind!r} in the pools {taken[kind]!r} and {name!r}; expected "
                        "it in one"
                    )
                taken[kind] = name
        return value

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSettings:
        if self.pools and self.workers is not None:
            raise ValueError("found both workers and pools; expected workers inside each pool")
        if self.backend != "client" and (self.address is not None or self.resources):
            word = "address" if self.address is not None else "resources"
            raise ValueError(f"found {word} with backend {self.backend}; expected backend: client")
        unknown = [name for name in self.resources if name not in self.pools]
        if unknown:
            raise ValueError(
                f"found resources {', '.join(unknown)}, which no pool is called; expected names "
                f"among pools: ({', '.join(self.pools) or 'none is given'})"
            )
        if self.backend == "slurm" and not self.pools:
            raise ValueError(
                "found backend slurm without pools; expected e.g. pools: {cpu: {partition: ...}}"
            )
        return self

    @property
    def encrypted(self) -> bool:
        """Whether driver, scheduler and workers talk TLS, with keys of this campaign alone."""
        return self.tls is not False

    @property
    def holds_secrets(self) -> bool:
        """Whether an environment or lines of a job script, which may hold a token, are given."""
        pools = any(p.environment or p.prologue or p.job_extra for p in self.pools.values())
        driver = self.driver
        return pools or bool(driver is not None and (driver.prologue or driver.job_extra))

    def on_client(self) -> ScheduleSettings:
        """The same work on the workers of a Dask client, whatever backend was meant."""
        return self.model_copy(update={"backend": "client"})

    def effective_pools(self) -> dict[str, PoolSettings]:
        """The pools as they are: with their backends, the one default pool where none is given,
        and on SLURM with what the user's and the site's `jobqueue.yaml` state."""
        if self.backend == "client":
            given = self.pools or {"client": PoolSettings()}
            return {n: pool.model_copy(update={"backend": "client"}) for n, pool in given.items()}
        default: Literal["local", "slurm"] = "slurm" if self.backend == "slurm" else "local"
        pools = self.pools or {
            "local": PoolSettings(workers=WorkerRange(max=self.workers or cpu_count()))
        }
        found = {
            name: pool if pool.backend else pool.model_copy(update={"backend": default})
            for name, pool in pools.items()
        }
        return {n: complete_pool(p) if p.backend == "slurm" else p for n, p in found.items()}

    def effective_driver(self) -> DriverSettings | None:
        """The driver's own job with what `jobqueue.yaml` states of it."""
        return None if self.driver is None else complete_driver(self.driver)

    @property
    def scheduler_interface(self) -> str | None:
        """Network interface of the scheduler: the campaign file's, or that of `jobqueue.yaml`."""
        slurm = self.backend == "slurm" or any(p.backend == "slurm" for p in self.pools.values())
        return self.interface or (interface() if slurm else None)

    def pool_of(self, kind: str) -> str:
        """Name of the pool that takes tasks of this kind."""
        pools = self.effective_pools()
        if kind in AS_OTHERS and not any(kind in pool.kinds for pool in pools.values()):
            return self.pool_of(AS_OTHERS[kind])
        for wanted in (kind, "*"):
            for name, pool in pools.items():
                if wanted in pool.kinds:
                    return name
        raise ConfigError(
            f"found a task of kind {kind!r}, which no pool takes ({', '.join(pools)}); expected it "
            f"among the kinds of one: add `kinds: [{kind}]` or `kinds: ['*']`"
        )
