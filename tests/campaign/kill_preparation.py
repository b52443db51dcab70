"""Run by a test: prepare a campaign in a child that is killed before its n-th file operation.

``kill_preparation.py CAMPAIGN_FILE PLACE STRIDE``; every STRIDE-th moment is tried, and each of
those at which a file of the directory's own top level is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import mofal.campaign.driver as driver
from mofal.campaign.directory import Site
from mofal.campaign.prepare import examine
from mofal.data import check_group, read_json, write_group  # noqa: F401  imported before the fork

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")


def prepare(file: Path, directory: Path) -> None:
    driver._Driver.run = lambda self: None  # type: ignore[method-assign]
    driver.Campaign(file, directory=directory).run()


def child(file: Path, directory: Path, fatal: int, found: Path) -> int:
    """Prepare in a process of its own; returns its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    counter = count(1)  # threads write too, and each takes another number
    notes = os.open(found, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not arguments:
            return
        path = arguments[0]
        if not isinstance(path, str | os.PathLike) or not str(path).startswith(str(directory)):
            return
        number = next(counter)
        os.write(notes, f"{event} {os.path.relpath(str(path), directory)}\n".encode())
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        prepare(file, directory)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(1)


def contents(directory: Path) -> dict[str, Any]:
    return {
        "facts": read_json(directory / "campaign.json"),
        "config": (directory / "campaign.yaml").read_text(),
    }


def main() -> None:
    file, place, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    examine(Site(place / "nowhere", driver.Campaign(file).config))  # imports, nothing else
    found = place / "found"
    shutil.rmtree(place / "whole", ignore_errors=True)
    assert child(file, place / "whole", 0, found) == 0
    moments = found.read_text().splitlines()
    expected = contents(place / "whole")
    tried = set()
    for n, what in enumerate(moments, start=1):
        plain = re.sub(r"[0-9a-f]{4,}", "N", what)
        if n % stride and ("/" in what or plain in tried):
            continue
        tried.add(plain)
        directory = place / "killed"
        shutil.rmtree(directory, ignore_errors=True)
        status = child(file, directory, n, found)
        # Threads make the number of operations vary a little: the last moment may not come.
        assert os.WIFSIGNALED(status) or (status == 0 and n > 0.9 * len(moments)), (n, what)
        status = child(file, directory, 0, found)
        assert status == 0, (n, what, status)
        assert contents(directory) == expected, (n, what)
        left = [p for p in directory.rglob(".*") if p.name.endswith(".tmp")]
        assert not left, (n, what, left)
        for group in directory.glob("systems/*/*.zarr"):
            assert (place / "whole" / group.relative_to(directory)).exists()
        print(f"killed before {n}: {what}", flush=True)


if __name__ == "__main__":
    main()
