"""The commands of what a potential moves: hold, watch, mechanics."""

from __future__ import annotations

import argparse
from typing import Any

from mofal.commands.line.parser import command, say
from mofal.errors import ConfigError


def add_hold(commands: Any) -> None:
    p = command(commands, "hold", run_hold, "how long does a potential hold a structure?")
    p.add_argument("structure", help="a system of the UiO-66 family, or a file")
    p.add_argument("--potential", required=True, help="directory of a model, or of a campaign")
    p.add_argument("--cell", default="primitive", choices=["conventional", "primitive"])
    p.add_argument("--rule", help="how blocks are cut, where the default does not fit")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--length", type=float, default=1000.0, metavar="FS")
    p.add_argument("--temperature", type=float, default=600.0, metavar="K")
    p.add_argument("--timestep", type=float, default=0.5, metavar="FS")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=int, help="default: as many as there are cores")
    p.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (default: cpu)")
    p.add_argument(
        "--engine", default="eager", choices=["eager", "compiled"],
        help="network: compiled is three times as fast, and made in minutes the first time",
    )  # fmt: skip
    p.add_argument("--directory", help="of runs and checkpoints; default: STRUCTURE.hold")


def run_hold(args: argparse.Namespace) -> int:
    """`mofal hold`: exit status 0 where every run held, 1 where a bond broke."""
    from mofal.campaign.steps.label import local_schedule
    from mofal.commands.hold import hold_file
    from mofal.commands.label import check_seed

    check_seed(args.seed)
    records = hold_file(
        args.structure,
        potential=args.potential,
        cell=args.cell,
        rule=args.rule,
        runs=args.runs,
        length_fs=args.length,
        temperature_K=args.temperature,
        timestep_fs=args.timestep,
        seed=args.seed,
        device=args.device,
        engine=args.engine,
        directory=args.directory,
        schedule=local_schedule(args.workers),
    )
    return int(any(str(s) != "finished" for s in records["walk_status"].values))


def add_watch(commands: Any) -> None:
    from mofal.commands.options import add_options

    p = command(commands, "watch", run_watch, "what did a trajectory meet that is unknown?")
    add_options(p)


def run_watch(args: argparse.Namespace) -> int:
    """`mofal watch`."""
    from mofal.commands.options import options_of, unpaired_of
    from mofal.commands.watch import watch_file

    given = options_of(args)
    watch_file(args.trajectory, unpaired=unpaired_of(args.unpaired) or None, say=say, **given)
    return 0


def add_mechanics(commands: Any) -> None:
    p = command(commands, "mechanics", run_mechanics, "E(V), bulk modulus, and what moves")
    p.add_argument("systems", nargs="+", metavar="SYSTEM", help="names (S_pr), or structure files")
    p.add_argument("--potential", metavar="MODEL", help="a model directory, or a campaign")
    p.add_argument("--reference", help="a reference in its place, e.g. gfn1-xtb")
    p.add_argument(
        "--trained-on", metavar="GROUP",
        help="of a model: its labels with `split`, to tell what it knows from guesses",
    )  # fmt: skip
    p.add_argument("--what", nargs="+", default=["eos"], help="eos, elastic, pv (default: eos)")
    p.add_argument("--cell", choices=["primitive", "conventional"], default="conventional")
    p.add_argument("--rule", default="auto", help="how to cut blocks; none: no blocks")
    p.add_argument("--volumes", type=int, default=9, help="of E(V), an odd number (default: 9)")
    p.add_argument("--spacing", type=float, default=0.005, help="relative (default: 0.005)")
    p.add_argument("--grid", type=float, nargs="+", default=[], help="volumes in Å³ instead")
    p.add_argument("--one-way", action="store_true", help="no way back, no hysteresis")
    p.add_argument("--max-force", type=float, default=1.0, help="meV/Å per component (default: 1)")
    p.add_argument("--max-stress", type=float, default=1.0, help="MPa (default: 1)")
    p.add_argument("--max-steps", type=int, default=2000, help="of a relaxation")
    p.add_argument("--displacement", type=float, default=0.01, help="that breaks symmetry, Å")
    p.add_argument(
        "--strains", type=float, nargs="+", default=[0.0025, 0.005], help="(default: 0.0025 0.005)"
    )
    p.add_argument("--temperature", type=float, default=300.0, help="of P(V), K (default: 300)")
    p.add_argument("--pressures", type=float, nargs="*", help="GPa, of NPT points of P(V)")
    p.add_argument("--pv-volumes", type=float, nargs="*", help="of P(V), as fractions of V0")
    p.add_argument("--length", type=float, default=50.0, help="of a run, ps (default: 50)")
    p.add_argument("--timestep", type=float, default=0.5, help="fs (default: 0.5)")
    p.add_argument(
        "--barostat", type=float, default=1000.0, metavar="FS",
        help="relaxation time of the cell (default: 1000; shorter for runs of some ps)",
    )  # fmt: skip
    p.add_argument("--runs", type=int, default=1, help="per point of P(V)")
    p.add_argument(
        "--until-converged", action="store_true", help="more runs while K or P_max still move"
    )
    p.add_argument("--max-runs", type=int, default=8, help="of a point, then (default: 8)")
    p.add_argument("--pressure-change", type=float, default=15.0, help="MPa that P_max may move")
    p.add_argument("--modulus-change", type=float, default=1.0, help="GPa that K may move")
    p.add_argument("--realisations", type=int, default=1, help="draws of a disordered system")
    p.add_argument(
        "--engine",
        help="network of a potential: eager, compiled, or auto: compiled where it is worth it "
        "(default: as the directory was begun, else eager)",
    )
    p.add_argument("--directory", default="mechanics", help="results (default: mechanics)")
    p.add_argument("--workers", type=int, help="processes (default: one per core)")
    p.add_argument("--schedule", help="a campaign file whose `schedule` section is used")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--retry-failed", action="store_true", help="try failed points once more")
    p.add_argument("--dry-run", action="store_true", help="check, say how long it takes, and end")


def run_mechanics(args: argparse.Namespace) -> int:
    """`mofal mechanics`."""
    from mofal.commands.mechanics import mechanics
    from mofal.mechanics import Criteria, CurveSettings, ElasticSettings

    return mechanics(
        args.systems,
        potential=args.potential,
        reference=args.reference,
        trained_on=args.trained_on,
        what=args.what,
        cell=args.cell,
        rule=args.rule,
        curve=CurveSettings(
            volumes=args.volumes,
            spacing=args.spacing,
            grid=tuple(args.grid),
            both_ways=not args.one_way,
            displacement=args.displacement,
            seed=args.seed,
            criteria=Criteria(
                max_force=args.max_force / 1000.0,
                max_stress_MPa=args.max_stress,
                max_steps=args.max_steps,
            ),
        ),
        strains=ElasticSettings(
            amplitudes=tuple(args.strains),
            criteria=Criteria(max_force=args.max_force / 2000.0, max_steps=args.max_steps),
        ),
        pressure=pressure_of(args),
        realisations=args.realisations,
        engine=args.engine,
        directory=args.directory,
        workers=args.workers,
        schedule=args.schedule,
        retry_failed=args.retry_failed,
        dry_run=args.dry_run,
        say=say,
    )


def pressure_of(args: argparse.Namespace) -> Any:
    """Settings of P(V) as they were typed."""
    from mofal.mechanics import PressureSettings

    given: dict[str, Any] = {
        "temperature_K": args.temperature,
        "length_fs": 1000.0 * args.length,
        "timestep_fs": args.timestep,
        "barostat_fs": args.barostat,
        "runs": args.runs,
        "both_ways": not args.one_way,
        "until_converged": args.until_converged,
        "max_runs": args.max_runs,
        "pressure_change_GPa": args.pressure_change / 1000.0,
        "modulus_change_GPa": args.modulus_change,
        "seed": args.seed,
    }
    if args.pressures is not None:
        given["pressures_GPa"] = tuple(args.pressures)
    if args.pv_volumes is not None:
        given["volumes"] = tuple(args.pv_volumes)
    try:
        return PressureSettings(**given)
    except ConfigError as error:
        told = str(error).replace("write barostat_fs=", "write --barostat ")
        raise ConfigError(told.replace("barostat_fs is", "--barostat is")) from None
