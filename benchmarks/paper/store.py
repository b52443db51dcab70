"""Artefacts: durable, addressed by what they are made of, made as Dask tasks.

An artefact is a file or directory that is put in its place when it is complete. Its address is the
hash of the function that makes it, its arguments, and the addresses of what it is made from; so the
same command goes on where it was ended, and other sizes share what is the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask.delayed import Delayed

from mofal.data import atomic_path, hash_json


@dataclass(frozen=True)
class Node:
    """An artefact to be.

    Attributes
    ----------
    name : str
        For people.
    path : Path
        Where it is, once it is made.
    key : str
    task : dask.delayed.Delayed
        Makes it, with all that it needs, and returns the path.
    needs : tuple of Node
    """

    name: str
    path: Path
    key: str
    task: Delayed
    needs: tuple[Node, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it is there."""
        return self.path.exists()


class Store:
    """A directory of artefacts.

    Parameters
    ----------
    work : path
    compute : callable
        Of Dask's delayed objects: the scheduler of choice.
    """

    def __init__(self, work: str | os.PathLike[str], compute: Callable[..., Any]) -> None:
        self.work = Path(work).absolute()
        self.work.mkdir(parents=True, exist_ok=True)
        self._compute = compute
        self._nodes: dict[str, Node] = {}

    def node(
        self,
        name: str,
        make: Callable[..., Any],
        /,
        *needs: Node,
        suffix: str = ".zarr",
        where: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Node:
        """Plan an artefact.

        Parameters
        ----------
        name : str
            Begins the name of the file.
        make : callable
            ``make(path, *paths of needs, **arguments, **where)``; importable on every worker;
            `path` must appear whole or not at all.
        needs : Node
        where : dict, optional
            Arguments that say where and not what: they are no part of the address.
        arguments
            JSON only.
        """
        content = [make.__module__, make.__qualname__, arguments, [n.key for n in needs]]
        key = hash_json(json.loads(json.dumps(content)))
        if key not in self._nodes:
            path = self.work / f"{name}-{key[:12]}{suffix}"
            # What is there needs nothing, whatever has become of what it was made from.
            task = (
                dask.delayed(str(path))
                if path.exists()
                else dask.delayed(_make, pure=True)(
                    str(path),
                    make,
                    [n.task for n in needs],
                    {**arguments, **(where or {})},
                    dask_key_name=f"{name}-{key[:12]}",
                )
            )
            self._nodes[key] = Node(name, path, key, task, needs)
        return self._nodes[key]

    def make(self, *nodes: Node) -> list[Path]:
        """Make what is not there yet; its needs only as far as they are needed."""
        missing = [n.task for n in nodes if not n.done]
        if missing:
            self._compute(*missing)
        return [n.path for n in nodes]

    def cost(self, *nodes: Node) -> dict[str, float]:
        """Seconds that artefacts took, by kind (the part of the name before the first dot)."""
        out: dict[str, float] = {}
        for n in {n.key: n for n in nodes}.values():
            record = cost_file(n.path)
            if record.exists():
                kind = n.name.partition(".")[0]
                out[kind] = out.get(kind, 0.0) + json.loads(record.read_text())["cpu_s"]
        return out

    @staticmethod
    def needed(*nodes: Node) -> list[Node]:
        """These and all that they were made from, each once."""
        found: dict[str, Node] = {}
        front = list(nodes)
        while front:
            node = front.pop()
            if node.key not in found:
                found[node.key] = node
                front += node.needs
        return list(found.values())


def cost_file(path: Path) -> Path:
    """Where the cost of an artefact stands."""
    return path.parent / "cost" / f"{path.name}.json"


def _make(path: str, make: Callable[..., Any], needs: list[str], arguments: dict[str, Any]) -> str:
    target = Path(path)
    if target.exists():
        return path
    wall, cpu = time.perf_counter(), time.process_time()
    make(target, *(Path(n) for n in needs), **arguments)
    if not target.exists():
        raise RuntimeError(f"{make.__name__} did not make {target}")
    # Of the part that ended it: a training that was killed and went on counts from there.
    spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    record = cost_file(target)
    record.parent.mkdir(exist_ok=True)
    with atomic_path(record) as temporary:
        temporary.write_text(json.dumps(spent))
    print(f"  made {target.name} ({spent['wall_s']:.0f} s)", flush=True)
    return path
