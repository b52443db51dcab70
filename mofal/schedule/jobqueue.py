"""What the user's or the site's ``jobqueue.yaml`` says of jobs on SLURM.

People who use dask-jobqueue have written down once which queue, account and modules their jobs
take. mofal's pools read the same files: the campaign file goes before them, and they go before
mofal's defaults. Only what a file states counts (the library's own defaults, half an hour of
walltime among them, do not), so the library itself is neither needed nor imported: it would write
a file into the user's configuration folder.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mofal.errors import ConfigError
from mofal.schedule.units import parse_limit, parse_memory

if TYPE_CHECKING:
    from mofal.schedule.sections import DriverSettings, PoolSettings

#: Keys that say the same in both, theirs and ours; where two of theirs do, the first one counts.
SAME = {
    "queue": "partition",
    "account": "account",
    "project": "account",
    "python": "python",
    "interface": "interface",
    "shebang": "shebang",
    "job-script-prologue": "prologue",
    "env-extra": "prologue",
    "job-extra-directives": "job_extra",
    "job-extra": "job_extra",
    "job-directives-skip": "job_skip",
}
#: Keys that are read and are not the same word for word.
READ = ("walltime", "cores", "processes", "job-cpu", "memory", "job-mem", "local-directory")
#: Settings of a pool that say how many workers and cores a job has: stated together or not at all.
SHAPE = frozenset({"threads", "mpi_ranks", "nodes", "workers_per_job"})


@dataclass(frozen=True)
class Stated:
    """What is stated, and where.

    Attributes
    ----------
    values
        By key of the section ``jobqueue.slurm``.
    places
        The file of each key, or its environment variable.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    def where(self, *keys: str) -> str:
        """Where the first of these keys is stated."""
        return next((self.places[key] for key in keys if key in self.places), "jobqueue.yaml")


@functools.cache
def stated() -> Stated:
    """What the files of Dask's configuration and the environment state; read once.

    Files go before those that come earlier (the user's before the site's), the environment
    (``DASK_JOBQUEUE__SLURM__QUEUE``) before all of them. A null states nothing.
    """
    import dask  # not before it is needed: to import mofal is quick

    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    sources = [
        (str(path), content)
        for path, content in dask.config.collect_yaml(dask.config.paths, return_paths=True)
    ]
    for place, content in [*sources, ("DASK_JOBQUEUE__SLURM__...", dask.config.collect_env())]:
        section: Any = content
        for name in ("jobqueue", "slurm"):
            section = section.get(name) if isinstance(section, Mapping) else None
        if not isinstance(section, Mapping):
            continue
        for key, value in section.items():
            name = str(key).replace("_", "-")
            values.pop(name, None)
            places.pop(name, None)
            if value is not None:
                values[name], places[name] = value, place
    return Stated(values, places)


def complete_pool(pool: PoolSettings, known: Stated | None = None) -> PoolSettings:
    """A pool on SLURM with what its campaign file leaves open and `jobqueue.yaml` states.

    Raises
    ------
    ConfigError
        What is stated cannot be meant; names the file, the key and what was expected.
    """
    known = stated() if known is None else known
    given = known.values
    if not given:
        return pool
    own = pool.model_fields_set
    new: dict[str, Any] = {}
    for theirs, ours in SAME.items():
        if theirs in given and ours not in own and ours not in new:
            new[ours] = _lines(given[theirs]) if ours in LISTS else given[theirs]
    if "walltime" in given and "walltime" not in own:
        new["walltime"] = _walltime(given["walltime"], known.where("walltime"))
    if not own & SHAPE:
        workers = _number(given, "processes", known) or 1
        cores = _number(given, "job-cpu", known) or _number(given, "cores", known)
        if cores:
            new["threads"] = max(cores // workers, 1)
        if "processes" in given:
            new["workers_per_job"] = workers
    if "memory" not in own and ("job-mem" in given or "memory" in given):
        new["memory"] = _memory(given, known) // new.get("workers_per_job", pool.workers_per_job)
    if "local-directory" in given and "TMPDIR" not in pool.environment:
        line = f'export TMPDIR="{given["local-directory"]}"; mkdir -p "$TMPDIR"'
        new["prologue"] = (*new.get("prologue", pool.prologue), line)
    return _validated(pool, new, known)


LISTS = frozenset({"prologue", "job_extra", "job_skip"})


def complete_driver(driver: DriverSettings, known: Stated | None = None) -> DriverSettings:
    """The driver's own job, with the account, queue and prologue that `jobqueue.yaml` states.

    Not with its walltime and memory: those are meant for workers.
    """
    known = stated() if known is None else known
    new: dict[str, Any] = {}
    for theirs, ours in SAME.items():
        wanted = ours in ("account", "partition", "prologue") and ours not in new
        if wanted and theirs in known.values and ours not in driver.model_fields_set:
            value = known.values[theirs]
            new[ours] = _lines(value) if ours in LISTS else value
    return _validated(driver, new, known) if new else driver


def interface(known: Stated | None = None) -> str | None:
    """Network interface of the scheduler as `jobqueue.yaml` states it, None if it does not."""
    given = (stated() if known is None else known).values
    options = given.get("scheduler-options")
    own = options.get("interface") if isinstance(options, Mapping) else None
    value = own or given.get("interface")
    return None if value is None else str(value)


def describe(pool: PoolSettings, known: Stated | None = None) -> list[str]:
    """Lines that say what of a pool comes from where, and what is stated and not used."""
    known = stated() if known is None else known
    if not known.values:
        return []
    before, after = pool.model_dump(), complete_pool(pool, known).model_dump()
    taken = [name for name in after if after[name] != before[name]]
    lines = []
    files = ", ".join(dict.fromkeys(known.places.values()))
    if taken:
        lines.append(f"from {files}: {', '.join(taken)}")
    unused = [k for k in known.values if k not in SAME and k not in READ and k != LOOKED_AT]
    if unused:
        lines.append(f"not used of {files}: {', '.join(unused)} (mofal starts its own workers)")
    return lines


LOOKED_AT = "scheduler-options"


def _validated(settings: Any, new: dict[str, Any], known: Stated) -> Any:
    """Settings with new values that have been through validation."""
    if not new:
        return settings
    content = settings.model_dump(exclude_unset=True) | new
    if "backend" in type(settings).model_fields:
        content["backend"] = settings.backend
    try:
        return type(settings).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        ours = str(first["loc"][0]) if first["loc"] else ""
        theirs = [key for key, name in SAME.items() if name == ours and key in known.values]
        said = str(first["msg"]).removeprefix("Value error, ")
        key, place = theirs[0] if theirs else ours, known.where(*theirs, ours)
        raise ConfigError(f"{place}: jobqueue: slurm: {key}: {said}") from error


def _lines(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _number(given: Mapping[str, Any], key: str, known: Stated) -> int:
    value = given.get(key, 0)
    if isinstance(value, bool) or not str(value).isdecimal():
        raise ConfigError(
            f"{known.where(key)}: jobqueue: slurm: {key}: found {value!r}; expected a whole number"
        )
    return int(value)


def _walltime(value: Any, place: str) -> int:
    """Seconds of a time as SLURM reads it: "30:00" is half an hour, "60" an hour."""
    seconds = parse_limit(value.strip()) if isinstance(value, str) else None
    if not seconds:
        hint = (
            ", which YAML makes of 12:00:00 without quotes, and which SLURM reads as minutes"
            if isinstance(value, int)
            else ""
        )
        raise ConfigError(
            f"{place}: jobqueue: slurm: walltime: found {value!r}{hint}; expected a time in "
            "quotes, such as '12:00:00' or '2-00:00:00'"
        )
    return seconds


def _memory(given: Mapping[str, Any], known: Stated) -> int:
    """Bytes of a job: `job-mem` in SLURM's units (its G is GiB), or `memory` in Dask's."""
    key = "job-mem" if "job-mem" in given else "memory"
    text = str(given[key]).strip()
    if key == "job-mem":
        text = text.upper().removesuffix("B").removesuffix("I")
        text = text + "iB" if text[-1:] in ("K", "M", "G", "T") else text + "MiB"
    try:
        return parse_memory(text)
    except ValueError as error:
        raise ConfigError(f"{known.where(key)}: jobqueue: slurm: {key}: {error}") from error
