"""Pieces of work: each writes one group, complete and once; those it needs come before.

The room knows what is to be done and in which order, never where: `run_serial` does it here, the
campaign room hands the same pieces to its pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

CALLS = {"relax": 20, "strain": 10}
"""Force calls that a relaxation is taken to want (docs/mechanics.md)."""


@dataclass(frozen=True)
class Piece:
    """One durable piece of work.

    Attributes
    ----------
    kind : str
        ``"relax"``, ``"strain"`` or ``"walk"``; a schedule maps it to a pool.
    name : str
        What a person calls it.
    function : callable
        Importable; called with `kwargs`, writes `output` and returns a small summary.
    kwargs : mapping
        Plain values.
    output : Path
        It exists if and only if the piece is done.
    needs : tuple of Path
        Outputs of others that must exist before.
    cost : float
        Relative length: force calls times atoms, about.
    """

    kind: str
    name: str
    function: Callable[..., dict[str, Any]]
    kwargs: Mapping[str, Any]
    output: Path
    needs: tuple[Path, ...] = ()
    cost: float = 1.0
    key: str = field(default="")

    @property
    def done(self) -> bool:
        """Whether its output is there."""
        return self.output.exists()

    @property
    def ready(self) -> bool:
        """Whether it can begin."""
        return not self.done and all(need.exists() for need in self.needs)


class Plan(Protocol):
    """Something made of pieces, some of which are known only when others are done."""

    def prepare(self) -> None:
        """Write what the pieces start from."""

    def pieces(self) -> list[Piece]:
        """All pieces that are known now, done or not, in an order in which they can be done."""


@runtime_checkable
class Extensible(Protocol):
    """A plan that may want more pieces once all it had are done."""

    def extend(self) -> list[str]:
        """Decide on more pieces; lines on what was decided."""


def extend_all(plans: Iterable[Plan], say: Callable[[str], None] | None = None) -> bool:
    """Let the plans that are done decide on more pieces; whether there are any."""
    before = after = 0
    for plan in plans:
        if isinstance(plan, Extensible):
            before += len(plan.pieces())
            for line in plan.extend():
                if say is not None:
                    say(line)
            after += len(plan.pieces())
    return after > before


def run_serial(plan: Plan, say: Callable[[str], None] | None = None) -> None:
    """Do what is not done yet, one piece after another, in this process."""
    plan.prepare()
    while True:
        ready = next((piece for piece in plan.pieces() if piece.ready), None)
        if ready is None:
            if extend_all([plan], say):
                continue
            return
        summary = ready.function(**ready.kwargs)
        if say is not None:
            say(describe_outcome(ready.name, summary))


def describe_outcome(name: str, summary: Mapping[str, Any]) -> str:
    """One line on a piece that is done."""
    status, reason = summary.get("status", ""), summary.get("reason", "")
    line = f"{name}: {summary.get('text', status)}"
    return line + (f" ({status}: {reason})" if reason else "")
