"""What scores frames: a potential with the density of the data that it learnt from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mofal.errors import PotentialError

if TYPE_CHECKING:
    from mofal.density import PerElementDensity
    from mofal.potential import NequIPPotential


class Known(Protocol):
    """A potential and its density, as frames are scored by them; can be pickled."""

    elements: tuple[str, ...]
    known: tuple[int, ...]
    model_hash: str
    density_hash: str
    error_coverage: float | None

    def score(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Features and scores of one structure: `features` (n, f), and (n,) each
        `log_likelihood`, `quantile` and maybe `error_bound`."""


class FittedKnown:
    """A potential of mofal and a density in its features.

    Parameters
    ----------
    potential : NequIPPotential
    density : PerElementDensity

    Raises
    ------
    PotentialError
        The density was fitted on features of another potential.
    """

    def __init__(self, potential: NequIPPotential, density: PerElementDensity) -> None:
        if density.model_hash and density.model_hash != potential.model_hash:
            raise PotentialError(
                f"the density was fitted on features of potential {density.model_hash}, this one "
                f"is {potential.model_hash}; features of two potentials are not comparable: give "
                "the density of this one"
            )
        self.potential, self.density = potential, density
        self.elements = tuple(potential.elements)
        self.known = tuple(int(z) for z in density.labels_)
        self.model_hash, self.density_hash = potential.model_hash, density.density_hash
        bound = density.bound_
        self.error_coverage = None if bound is None else float(bound.bound.coverage)

    def score(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Features and scores of one structure."""
        features = self._features(numbers, positions, cell, pbc)
        values = self.density.score_samples(features, numbers)
        out = {
            "features": features,
            "log_likelihood": values,
            "quantile": self.density.quantile(values, numbers),
        }
        if self.error_coverage is not None:
            out["error_bound"] = self.density.error_bound(values, numbers)
        return {name: np.asarray(value) for name, value in out.items()}

    def _features(
        self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> np.ndarray:
        from mofal.potential.domains import LARGEST

        if len(numbers) <= LARGEST["featurize_arrays"]:
            count = np.array([len(numbers)])
            (found,) = self.potential.featurize_arrays(
                numbers, positions, cell[None], np.asarray(pbc)[None], count
            )
            return found
        from mofal.data import make_structures

        whole = make_structures(
            numbers, positions, n_atoms=[len(numbers)], cell=cell[None], pbc=np.asarray(pbc)[None]
        )
        # One domain after the other: frames are what is computed side by side.
        lazy = self.potential.featurize(whole.chunk({"atom": -1}), domains="auto")
        return np.asarray(lazy["features"].data.compute(scheduler="synchronous"))


def open_known(
    potential: str | Path, density: str | Path | None = None, *, device: str = "cpu"
) -> Known:
    """Open a potential and its density from the disk.

    Parameters
    ----------
    potential : path
        An export (``NAME.nequip.zip``, ``NAME.nequip.pt2``) with its density beside it, or a model
        directory.
    density : path, optional
        Of a model directory: the group that `PerElementDensity.save` wrote.
    device : str

    Raises
    ------
    PotentialError
        A potential without a density, or with that of another.
    """
    from mofal.density import PerElementDensity
    from mofal.potential import load
    from mofal.potential.directory import is_model
    from mofal.potential.exporting import COMPILED, PACKAGE

    where = Path(potential)
    if where.name.endswith((PACKAGE, COMPILED)):
        from mofal.potential.exported import ExportedPotential

        if density is not None:
            raise PotentialError(
                f"{where} is an export, which has its density beside it: leave out --density"
            )
        return ExportedPotential(where, device=device)
    if not is_model(where):
        raise PotentialError(
            f"{where} is no potential; expected a campaign, a model directory, or an export "
            f"(*{PACKAGE}, *{COMPILED})"
        )
    if density is None:
        raise PotentialError(
            f"{where} is a model without its density, so nothing tells what it has seen; give one: "
            "--density CAMPAIGN/cycle-001/density.zarr, or give the campaign: --potential CAMPAIGN"
        )
    return FittedKnown(load(where, device=device), PerElementDensity.load(Path(density)))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Networks on one CPU thread each, and the number put back at the end.

    Frames are computed side by side instead, and to the same bits however many workers there are.
    """
    from mofal.potential.network import threads

    with threads(1):
        yield


def single_thread() -> None:
    """Say so to the thread that a task runs in: torch keeps the number for each by itself."""
    from mofal.potential.network import single_thread as here

    here()


def unseen(known: Known, numbers: np.ndarray) -> list[str]:
    """Elements of some atoms that the density has never seen."""
    from ase.data import chemical_symbols

    present: Any = np.unique(numbers)
    return [chemical_symbols[z] for z in present.tolist() if z not in known.known]
