"""The paper's twelve claims, one command each, at a level of theory that two cores can afford.

    python benchmarks/paper.py --claim 4 [--size tiny|small|medium|full] [--work DIR]
        [--level sevennet0|gfn1-xtb|gpaw:lcao|gpaw:paper] [--workers 1 | --scheduler ADDRESS]
        [--results DIR]
    python benchmarks/paper.py --table DIR          the table of docs/paper.md, of findings in DIR
    python benchmarks/paper.py --table DIR --figure FILE.png        and the figure of the README

Without --claim: all of them. Each prints the paper's numbers, ours, the verdict and the cost. What
a claim needs (structures, labels, models, predictions) is made as Dask tasks and kept in DIR under
addresses of its content: the same command goes on where it was ended, and claims and sizes share
what is the same. --results keeps the findings as JSON, figures and small Zarr groups. `sevennet0`
needs the extra `teacher` (pip install 'mofal[teacher]').
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

CLAIMS = tuple(range(1, 16))
"""The paper's twelve, and three questions beyond it."""
HERE = Path(__file__).resolve().parent


def claim_function(number: int) -> Callable[..., Any]:
    """The function of a claim."""
    from paper import beyond, cutting, elastic, forces

    others = {5: cutting, 10: cutting, 11: elastic, 12: elastic, 13: beyond, 14: beyond, 15: beyond}
    module = others.get(number, forces)
    return getattr(module, f"claim_{number}")  # type: ignore[no-any-return]


def scheduler(workers: int, address: str | None) -> Callable[..., Any]:
    """Dask's ``compute`` here, in processes, or on a cluster of the user's."""
    import dask

    if address is not None:
        from distributed import Client

        client = Client(address)
        return lambda *tasks: client.gather(client.compute(list(tasks)))
    if workers == 1:
        return lambda *tasks: dask.compute(*tasks, scheduler="synchronous")
    options = {"scheduler": "processes", "num_workers": workers, "chunksize": 1}
    return lambda *tasks: dask.compute(*tasks, **options)


def show(finding: Any, level: str, size: str) -> str:
    """A finding as text."""
    lines = [f"claim {finding.claim}: {finding.title}", f"  at {level}, size {size}"]
    keys = list(dict.fromkeys([*finding.paper, *finding.ours]))
    width = max(map(len, keys))
    lines.append(f"  {'':{width}}  {'paper':>10}  here")
    for key in keys:
        here = finding.ours.get(key, "")
        lines.append(f"  {key:{width}}  {finding.paper.get(key, '')!s:>10}  {here}")
    lines.append(f"  verdict: {finding.verdict} ({finding.why})")
    lines += [f"  note: {text}" for text in finding.caveats]
    lines += [f"  scaled: {text}" for text in finding.scaled]
    spent = ", ".join(f"{kind} {value:.0f}" for kind, value in sorted(finding.cost.items()))
    lines.append(f"  cost, CPU seconds of all that it needs: {spent or 'none'}")
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """The same with null for numbers that are none: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def keep(result: Any, place: Path, name: str) -> None:
    """JSON, figures and tables of one claim."""
    from mofal.data import atomic_path

    finding, figures, tables = result
    place.mkdir(parents=True, exist_ok=True)
    for title, figure in figures.items():
        figure.savefig(place / f"{name}-{title}.png", dpi=110)
    for title, table in tables.items():
        # Small tables, replaced by a later run; everything else is in the work directory.
        clean = table.drop_encoding()
        clean.to_zarr(place / f"{name}-{title}.zarr", mode="w", consolidated=False)
    with atomic_path(place / f"{name}.json") as temporary:
        text = json.dumps(plain(asdict(finding)), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n")


def run(lab: Any, number: int, *, results: Path | None, size: str) -> Any:
    """One claim: make what it needs, judge, print, keep."""
    from mofal.errors import MofalError

    lab.used.clear()
    before = time.perf_counter()
    try:
        result = claim_function(number)(lab)
    except MofalError as error:
        raise SystemExit(f"claim {number} cannot be judged: {error}") from None
    finding = result[0]
    finding.cost = lab.store.cost(*lab.store.needed(*lab.used))
    finding.caveats.insert(0, f"level: {lab.level.says}")
    finding.scaled = [*lab.scaled(), *finding.scaled]
    print(show(finding, lab.level_name, size))
    print(f"  this run: {time.perf_counter() - before:.0f} s", flush=True)
    if results is not None:
        keep(result, results, f"claim-{number:02d}")
    return finding


def main(argv: list[str] | None = None) -> list[Any]:
    """Judge the claims; return the findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--claim", type=int, nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--size", choices=("tiny", "small", "medium", "full"), default="tiny")
    parser.add_argument("--level", help="default: seed for tiny, sevennet0 for the others")
    parser.add_argument("--work", help="kept; default: a temporary one")
    parser.add_argument("--results", help="findings as JSON, figures, small Zarr groups")
    parser.add_argument("--workers", type=int, default=1, help="processes of this machine")
    parser.add_argument("--scheduler", help="address of a Dask scheduler of yours")
    parser.add_argument("--table", help="print the table of the findings in a directory, and end")
    parser.add_argument("--figure", help="with --table: a picture of claims 2, 3, 11 and 12")
    options = parser.parse_args(argv)
    # Workers import the package beside this file, and have one thread each.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    if options.table:
        from paper.report import table

        if not Path(options.table).is_dir():
            parser.error(f"--table {options.table}: there is no such directory")
        print(table(Path(options.table)))
        if options.figure:
            from paper.figure import first_screen

            first_screen(Path(options.table)).savefig(options.figure, dpi=130)
        return []
    from paper.lab import Lab
    from paper.settings import LEVELS, SIZES
    from paper.store import Store

    level = options.level or ("seed" if options.size == "tiny" else "sevennet0")
    if level not in LEVELS:
        parser.error(f"--level {level}: expected one of {', '.join(LEVELS)}")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: expected at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(options.work or scratch, scheduler(options.workers, options.scheduler))
        lab = Lab(store, SIZES[options.size], level)
        results = None if options.results is None else Path(options.results)
        return [run(lab, k, results=results, size=options.size) for k in options.claim]


if __name__ == "__main__":
    main()
