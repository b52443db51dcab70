"""Parts of the `schedule` section: a pool of workers, the driver's own job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from mofal.potential.settings import Device
from mofal.schedule.units import LEAST_MEMORY, parse_memory, parse_walltime

#: What a job's keeper takes of the memory that SLURM gives the job (16 MB, and room).
KEEPER_MEMORY = 50 * 10**6

Bytes = Annotated[int, BeforeValidator(parse_memory)]
Seconds = Annotated[int, BeforeValidator(parse_walltime)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WorkerRange(_Settings):
    """How many workers a pool has at least and at most."""

    min: int = Field(0, ge=0)
    max: int = Field(1, ge=1, le=100_000)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"min": 0, "max": value} if isinstance(value, int) else value

    @model_validator(mode="after")
    def _ordered(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"found min {self.min} above max {self.max}; expected min <= max")
        return self


class PoolSettings(_Settings):
    """One kind of worker.

    Attributes
    ----------
    kinds
        Kinds of task that go to this pool; "*" takes every kind that no other pool names.
    backend
        "local" or "slurm"; None: that of the schedule.
    workers
        ``{min, max}`` number of workers, or one number for the maximum. A worker runs one task at
        a time.
    threads
        Cores of a worker, and threads of BLAS, OpenMP and torch in it, however many workers run.
    mpi_ranks
        MPI ranks that a task of this pool starts; its worker then has ``mpi_ranks x threads``
        cores, all of them the task's.
    nodes
        Nodes over which the ranks of an MPI pool are spread.
    memory
        Of a worker with everything that it starts. None: not limited (local), or the partition's
        default (SLURM). On SLURM the job books this, and what its keeper needs comes off it.
    gpus
        GPUs of a worker, its own alone.
    device
        Where its tasks compute with a potential: "cpu", "cuda", "cuda:1" or "auto"; None: as
        ``potential: device`` says.
    walltime
        Of a job (SLURM).
    partition, account, qos
        As SLURM knows them; None where the site's default is meant.
    workers_per_job
        Workers in one job, for partitions that hand out whole nodes.
    prologue
        Lines of shell before the worker starts (``module load ...``).
    job_extra
        Further directives, as they follow ``#SBATCH``.
    python
        Interpreter of the workers, where it is not the driver's.
    interface
        Network interface of the workers, where the scheduler's does not fit (``ib0``).
    environment
        Further environment variables of the workers.
    """

    kinds: tuple[str, ...] = ("*",)
    backend: Literal["local", "slurm"] | None = None
    workers: WorkerRange = WorkerRange()
    threads: int = Field(1, ge=1)
    mpi_ranks: int = Field(1, ge=1)
    nodes: int = Field(1, ge=1)
    memory: Bytes | None = None
    gpus: int = Field(0, ge=0)
    device: Device | None = None
    walltime: Seconds = 12 * 3600
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    workers_per_job: int = Field(1, ge=1)
    prologue: tuple[str, ...] = ()
    job_extra: tuple[str, ...] = ()
    job_skip: tuple[str, ...] = ()
    shebang: str = Field("#!/bin/bash", pattern=r"^#![^\n]+$")
    python: str | None = None
    interface: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("job_extra")
    @classmethod
    def _directives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not line.startswith("-") or "\n" in line:
                raise ValueError(f"found {line!r}; expected a directive such as --constraint=milan")
        return value

    @model_validator(mode="after")
    def _spread(self) -> PoolSettings:
        if self.mpi_ranks > 1 and self.workers_per_job > 1:
            raise ValueError(
                "found mpi_ranks and workers_per_job above 1; expected one MPI worker per job"
            )
        if self.nodes > self.mpi_ranks:
            raise ValueError(
                f"found {self.nodes} nodes for {self.mpi_ranks} MPI ranks; expected a rank per node"
            )
        if self.memory is not None and self.memory // self.nodes < LEAST_MEMORY:
            raise ValueError(
                f"found {self.memory / 1e6:.0f} MB of memory over {self.nodes} nodes; expected "
                f"{LEAST_MEMORY // 10**6}MB or more on each"
            )
        return self

    def worker_limit(self, *, workers: int, local: bool) -> int | None:
        """Bytes on one machine beyond which a worker of a job of so many is ended; None: none."""
        if self.memory is None or local:
            return self.memory
        return self.memory // self.nodes - KEEPER_MEMORY // workers

    @property
    def cores(self) -> int:
        """Cores of one worker."""
        return self.threads * self.mpi_ranks


class DriverSettings(_Settings):
    """The batch job in which the driver itself may run (`mofal run --submit`).

    Attributes
    ----------
    partition, account, qos, memory, walltime, prologue, job_extra
        As in a pool.
    margin
        How long before its walltime the driver hands over to a successor.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    memory: Bytes | None = None
    walltime: Seconds = 24 * 3600
    margin: Seconds = 600
    prologue: tuple[str, ...] = ()
    job_extra: tuple[str, ...] = ()
