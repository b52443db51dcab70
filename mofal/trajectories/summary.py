"""What was unfamiliar, when and where: counts over frames, elements, blocks and atoms."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from mofal.data import describe
from mofal.data.ragged import TEXT
from mofal.trajectories.frames import NO_STEP, Frame


class Tally:
    """Counts the unfamiliar atoms of frames as they come; a frame that comes twice counts once.

    Parameters
    ----------
    first : Frame
        The first frame: elements, and where atoms are shown.
    threshold : float
        Quantile below which an atom is unfamiliar.
    blocks : xarray.Dataset, optional
        Of the structure.
    """

    def __init__(self, first: Frame, threshold: float, blocks: xr.Dataset | None) -> None:
        self.first, self.threshold, self.blocks = first, threshold, blocks
        self.elements = np.unique(first.numbers)
        n = len(first.numbers)
        self.site = np.zeros(n, np.int64)
        self._rows: dict[int, dict[str, Any]] = {}
        self._is = first.numbers[:, None] == self.elements[None, :]
        self.owner: NDArray | None = None
        if blocks is not None:
            count = blocks["block_n_atoms"].values
            self.owner = np.empty(n, np.int64)
            self.owner[blocks["member_atom"].values] = np.repeat(np.arange(len(count)), count)

    def add(self, scores: xr.Dataset) -> None:
        """Take the scores of some frames."""
        n = len(self.first.numbers)
        quantile = np.asarray(scores["quantile"].values).reshape(-1, n)
        frames = scores["frame_number"].values.tolist()
        below = quantile < self.threshold
        for k, (frame, step) in enumerate(zip(frames, scores["md_step"].values.tolist())):
            if frame in self._rows:
                continue
            self.site += below[k]
            row: dict[str, Any] = {
                "md_step": step,
                "structure_id": str(scores["structure_id"].values[k]),
                "least_quantile": float(quantile[k].min()),
                "unfamiliar_atoms": below[k].astype(np.int64) @ self._is,
            }
            if self.owner is not None and self.blocks is not None:
                row["unfamiliar_in_block"] = np.bincount(
                    self.owner, weights=below[k], minlength=self.blocks.sizes["block"]
                ).astype(np.int32)
            self._rows[frame] = row

    @property
    def frames(self) -> set[int]:
        """Numbers of the frames that were counted."""
        return set(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def dataset(self, *, timestep_fs: float | None = None) -> xr.Dataset:
        """What was counted so far.

        Parameters
        ----------
        timestep_fs : float, optional
            Of the simulation: gives each frame its time, where its file states steps.

        Returns
        -------
        xarray.Dataset
            Along ``structure`` (frames): `frame_number`, `md_step`, `structure_id`,
            `least_quantile`, with a time step `md_time` in ps; `unfamiliar_atoms`
            (structure, element), `unfamiliar_in_block` (structure, block). Along ``element``:
            `element_number`, `element_atoms`. Along ``block``: `block_formula`, `block_role`,
            `block_size`, `block_centre` (fractional). Along ``site``, the atoms of a frame:
            `site_number`, `site_position` (fractional, of the first frame), `unfamiliar_frames`.
            Attribute `unfamiliar_quantile`.
        """
        frames = sorted(self._rows)
        rows = [self._rows[k] for k in frames]
        inside = self.first.positions @ np.linalg.inv(self.first.cell)
        inside -= np.floor(inside)
        step = np.array([r["md_step"] for r in rows], np.int64)
        out: dict[str, Any] = {
            "frame_number": ("structure", np.array(frames, np.int64)),
            "md_step": ("structure", step),
            "structure_id": ("structure", np.array([r["structure_id"] for r in rows], TEXT)),
            "least_quantile": ("structure", np.array([r["least_quantile"] for r in rows])),
            "unfamiliar_atoms": (
                ("structure", "element"),
                np.array([r["unfamiliar_atoms"] for r in rows]).reshape(len(rows), -1),
            ),
            "element_number": ("element", self.elements.astype(np.int32)),
            "element_atoms": ("element", self._is.sum(axis=0)),
            "site_number": ("site", self.first.numbers.astype(np.int32)),
            "site_position": (("site", "xyz"), inside),
            "unfamiliar_frames": ("site", self.site.copy()),
        }
        if timestep_fs is not None and (step != NO_STEP).all():
            out["md_time"] = ("structure", step * timestep_fs / 1000.0)
        if self.blocks is not None and self.owner is not None:
            size = self.blocks["block_n_atoms"].values
            out |= {
                "unfamiliar_in_block": (
                    ("structure", "block"),
                    np.array([r["unfamiliar_in_block"] for r in rows]).reshape(len(rows), -1),
                ),
                "block_formula": ("block", _text(self.blocks["formula"])),
                "block_role": ("block", _text(self.blocks["role"])),
                "block_coordination": ("block", self.blocks["coordination"].values),
                "block_size": ("block", size),
                "block_centre": (("block", "xyz"), _centres(inside, self.owner, size)),
            }
        attrs = {"unfamiliar_quantile": self.threshold}
        return describe(xr.Dataset(out, attrs=attrs))


def _text(values: xr.DataArray) -> NDArray:
    return np.array([str(v) for v in values.values], TEXT)


def _centres(inside: NDArray, owner: NDArray, size: NDArray) -> NDArray:
    """Centres of blocks on the torus of fractional coordinates: (block, 3) in [0, 1)."""
    angle = 2.0 * np.pi * inside
    out = np.empty((len(size), 3))
    for x in range(3):
        s = np.bincount(owner, weights=np.sin(angle[:, x]), minlength=len(size))
        c = np.bincount(owner, weights=np.cos(angle[:, x]), minlength=len(size))
        out[:, x] = np.arctan2(s, c) / (2.0 * np.pi) % 1.0
    return out


def lines(summary: xr.Dataset) -> list[str]:
    """The summary for a person, in some lines."""
    from ase.data import chemical_symbols

    counts, atoms = summary["unfamiliar_atoms"].values, summary["element_atoms"].values
    threshold = float(summary.attrs["unfamiliar_quantile"])
    share = counts.sum(axis=1) / atoms.sum()
    worst = int(share.argmax())
    frames = summary["frame_number"].values
    said = [
        f"{len(frames)} frames of {int(atoms.sum()):,} atoms: {100 * share.mean():.2f} % of atoms "
        f"below the quantile {threshold:g} ({100 * threshold:g} % would be, were all of it known); "
        f"most in frame {frames[worst]}: {100 * share[worst]:.2f} %"
    ]
    of_element = counts.sum(axis=0) / (atoms * max(len(frames), 1))
    order = np.argsort(-of_element)
    said.append(
        "by element: "
        + ", ".join(
            f"{chemical_symbols[summary['element_number'].values[k]]} {100 * of_element[k]:.2f} %"
            for k in order.tolist()
        )
    )
    if "unfamiliar_in_block" in summary:
        kinds, values, number = by_kind(summary, most=4)
        some = ", ".join(
            f"{kind} {100 * v:.2f} % ({n} of them)" for kind, v, n in zip(kinds, values, number)
        )
        said.append(f"least familiar kinds of blocks: {some}")
    return said


def by_kind(summary: xr.Dataset, most: int = 8) -> tuple[list[str], NDArray, NDArray]:
    """Kinds of blocks, least familiar first: name, share of unfamiliar atoms, how many blocks."""
    names = np.array(
        [
            f"{f}, {c}-connected" if c else str(f)
            for f, c in zip(summary["block_formula"].values, summary["block_coordination"].values)
        ]
    )
    counts = summary["unfamiliar_in_block"].values.sum(axis=0)
    kinds, which = np.unique(names, return_inverse=True)
    n_frames = max(summary.sizes["structure"], 1)
    atoms = np.bincount(which, weights=summary["block_size"].values) * n_frames
    share = np.bincount(which, weights=counts) / atoms
    order = np.argsort(-share, kind="stable")[:most]
    return [str(kinds[k]) for k in order], share[order], np.bincount(which)[order]
