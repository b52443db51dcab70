"""A walk that knows what its potential has seen: densities on board.

Features come from the same pass as forces; their quantile under the density of the atom's element
says how familiar its environment is. Single atoms dip below any threshold now and then, so what
ends a walk is an atom that was familiar when it began and has stayed unfamiliar for some time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Density(Protocol):
    """What of `mofal.density.PerElementDensity` is needed."""

    def score_samples(self, features: Any, labels: Any) -> Any:
        """Log-likelihood of each row."""

    def quantile(self, log_likelihood: Any, labels: Any) -> Any:
        """Quantile of each log-likelihood, best calibrated on rows that trained nothing."""


class Place(NamedTuple):
    """A frame that may have to be gone back to: step, positions (n, 3) and cell (3, 3) in Å."""

    step: int
    positions: NDArray
    cell: NDArray


@dataclass
class Watch:
    """Follows how long each atom has been unfamiliar.

    Parameters
    ----------
    quantile
        Below it an atom is unfamiliar.
    patience
        Steps after which an atom that was familiar at the start counts.
    """

    quantile: float
    patience: int
    since: NDArray = field(default_factory=lambda: np.zeros(0, np.int64))
    from_start: NDArray = field(default_factory=lambda: np.zeros(0, bool))
    noted: NDArray = field(default_factory=lambda: np.zeros(0, bool))
    places: list[Place] = field(default_factory=list)

    def begin(self, quantile: NDArray) -> None:
        """Note which atoms (n,) are unfamiliar before the first step."""
        self.from_start = self.below(quantile)
        self.since = np.zeros(len(quantile), np.int64)
        self.noted = np.zeros(len(quantile), bool)

    def below(self, quantile: NDArray) -> NDArray:
        """Mask (n,) of unfamiliar atoms; those of an element without a density always are."""
        return ~(quantile >= self.quantile)

    def step(self, quantile: NDArray) -> NDArray:
        """Follow one step; return the atoms that have been unfamiliar for too long."""
        below = self.below(quantile) & ~self.from_start
        self.since = np.where(below, self.since + 1, 0)
        return np.flatnonzero(self.since >= self.patience)

    def note(self, atoms: NDArray) -> bool:
        """Remember atoms of a walk that goes on; whether one of them is new."""
        new = not self.noted[atoms].all()
        self.noted[atoms] = True
        return new

    def sample(self, place: Place) -> None:
        """Keep a frame as long as the end of the walk may be found to lie there."""
        self.places = [p for p in self.places if p.step >= place.step - self.patience]
        self.places.append(place)

    def first(self, step: int) -> Place | None:
        """The first frame kept in which an atom that has ended the walk was unfamiliar."""
        began = step - int(self.since.max()) + 1
        return next((p for p in self.places if p.step >= began), None)

    # -- for checkpoints: restarts are bit for bit
    def state(self) -> dict[str, NDArray]:
        """Arrays that `restore` takes."""
        n = len(self.since)
        return {
            "watch_since": self.since,
            "watch_from_start": self.from_start,
            "watch_noted": self.noted.copy(),
            "watch_steps": np.array([p.step for p in self.places], np.int64),
            "watch_positions": np.array([p.positions for p in self.places]).reshape(
                len(self.places), n, 3
            ),
            "watch_cells": np.array([p.cell for p in self.places]).reshape(len(self.places), 3, 3),
        }

    def restore(self, state: dict[str, NDArray]) -> None:
        """Go on where a checkpoint was."""
        self.since = state["watch_since"]
        self.from_start = state["watch_from_start"]
        self.noted = state.get("watch_noted", np.zeros(len(self.since), bool))
        parts = (state["watch_steps"], state["watch_positions"], state["watch_cells"])
        self.places = [Place(int(s), x, c) for s, x, c in zip(*parts)]
