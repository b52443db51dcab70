"""Which network the mechanics of a potential run, eager or compiled: chosen once, and kept.

The choice is written beside the results before the first point is begun. The same command goes on
with it, and points of the two never meet: the engine is part of the key of a compiled one's groups.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms

from mofal.data import read_json, write_json
from mofal.errors import ConfigError
from mofal.mechanics.levels import Level
from mofal.mechanics.pieces import CALLS
from mofal.reference.ase_calculator import limit_threads

if TYPE_CHECKING:
    from mofal.mechanics.curve import CurveSettings
    from mofal.mechanics.elastic import ElasticSettings
    from mofal.mechanics.pressure_settings import PressureSettings

FILE = "engine.json"
"""Of a directory of results: the engine, and why, by the hash of the model."""
ENGINES = ("auto", "eager", "compiled")


def recorded_engine(place: str | Path, identity: str) -> str | None:
    """Engine that the mechanics of a model in a directory were begun with; None where none is."""
    file = Path(place) / FILE
    if not file.exists():
        return None
    found = read_json(file).get(identity)
    return None if found is None else str(found["engine"])


def check_engine(level: Level, place: str | Path, wanted: str | None, *, mend: str) -> str | None:
    """Engine that goes on, None where there is none yet.

    Parameters
    ----------
    level : Level
    place : path
        Directory of the results.
    wanted : str or None
        Of `ENGINES`; None: what was begun with, else eager.
    mend : str
        What to do, where another one was begun with.

    Raises
    ------
    ConfigError
        No engine of this name, a reference that is to be compiled, or another engine than the
        results of this model were begun with.
    """
    if wanted is not None and wanted not in ENGINES:
        raise ConfigError(f"the engine is {wanted!r}; expected {', '.join(ENGINES)}")
    if level.kind != "potential":
        if wanted == "compiled":
            raise ConfigError(
                f"{level.spec} is a reference, and only the network of a potential can be compiled;"
                " leave the engine out"
            )
        return "eager"
    found = recorded_engine(place, level.identity)
    if found is not None and wanted not in (None, "auto", found):
        raise ConfigError(
            f"the mechanics in {place} were begun with the {found} network of this potential, not "
            f"the {wanted} one; {mend}"
        )
    return found


def choose_engine(
    level: Level,
    place: str | Path,
    wanted: str | None = None,
    *,
    atoms: Sequence[Atoms],
    evaluations: float,
    here: bool = True,
    workers: int = 1,
    mend: str = "say the engine that it was begun with, or give another directory",
) -> tuple[Level, str]:
    """The level with the engine that its results in a directory are made with, and why.

    Nothing is written: `keep_engine` does.

    Parameters
    ----------
    level, place, wanted, mend
        See `check_engine`.
    atoms : sequence of ase.Atoms
        The structures.
    evaluations : float
        Energies and forces that are to be computed, of each structure.
    here : bool
        Whether they are computed on this machine; elsewhere a compiler is not looked for here.
    workers : int
        Evaluations at the same time.

    Raises
    ------
    ConfigError
        See `check_engine`.
    PotentialError
        Compiled is wanted where nothing can compile.
    """
    found = check_engine(level, place, wanted, mend=mend)
    if found is not None:
        return replace(level, engine=found), "as it was begun"
    if wanted in (None, "eager") or (wanted == "compiled" and not here):
        return replace(level, engine=wanted or "eager"), "asked for"
    from mofal.potential import choose
    from mofal.potential.compiling import GAIN, USUAL_SECONDS

    largest = max(atoms, key=len)
    with limit_threads(1):
        seconds = 0.0
        if wanted == "auto":
            trial = largest.copy()
            trial.calc = level.calculator()
            for _ in range(2):  # the first one prepares
                trial.positions += 1e-6
                start = time.perf_counter()
                trial.get_forces()
                seconds = time.perf_counter() - start
        total = evaluations * sum(len(a) for a in atoms) / len(largest)
        if wanted == "auto" and not here:  # whose compiler and cache are not known here
            saved = GAIN * total * seconds
            engine = "compiled" if saved > USUAL_SECONDS else "eager"
            return replace(level, engine=engine), f"saves about {saved:.0f} s of processor time"
        choice = choose(
            level.potential(),
            str(wanted),
            evaluations=total / workers,
            seconds_each=seconds,
        )
    return replace(level, engine=choice.engine), choice.reason


def keep_engine(level: Level, place: str | Path, reason: str) -> None:
    """Write down the engine of a level for a directory; nobody else works in it.

    Raises
    ------
    ConfigError
        Another one was written down since it was chosen.
    """
    if level.kind != "potential":
        return
    found = recorded_engine(place, level.identity)
    if found == level.engine:
        return
    if found is not None:
        raise ConfigError(
            f"another command began the mechanics in {place} with the {found} network meanwhile; "
            "run the same command again"
        )
    file = Path(place) / FILE
    known = read_json(file) if file.exists() else {}
    write_json({**known, level.identity: {"engine": level.engine, "reason": reason}}, file)


def prepare_engine(level: Level, say: Callable[[str], None] | None = None) -> None:
    """Have the compiled network of a level made, where it is wanted and not there yet.

    Raises
    ------
    PotentialError
        It cannot be compiled.
    """
    if level.engine == "compiled":
        with limit_threads(1):
            level.potential().engine("compiled", progress=say)


def evaluations_of(
    what: Iterable[str],
    *,
    curve: CurveSettings,
    strains: ElasticSettings | None = None,
    pressure: PressureSettings | None = None,
) -> float:
    """Energies and forces that the mechanics of one structure want, about."""
    from mofal.mechanics.elastic import ElasticSettings
    from mofal.mechanics.pressure_settings import PressureSettings

    relaxations, strained, steps = 2.0, 0.0, 0.0
    if "eos" in what:
        relaxations += (len(set(curve.grid)) or curve.volumes) * (2 if curve.both_ways else 1)
    if "elastic" in what:
        strained += 12 * len((strains or ElasticSettings()).amplitudes)
    if "pv" in what:
        p = pressure or PressureSettings()
        ways = 2 if p.both_ways else 1
        relaxations += len(p.volumes) * ways
        runs = p.runs * (len(p.pressures_GPa) + ways * len(p.volumes))
        steps = runs * p.length_fs / p.timestep_fs
    return CALLS["relax"] * relaxations + CALLS["strain"] * strained + steps
