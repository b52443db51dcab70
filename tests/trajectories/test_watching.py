"""Watched trajectories: scores are the density room's, kills and growth change nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from ase import Atoms

from mofal.cli import main
from mofal.data import atom_slice, from_atoms, open_group, read, select
from mofal.data.variables import VARIABLES
from mofal.density import PerElementDensity, fit_density, score
from mofal.errors import MofalError
from mofal.frameworks import find_blocks
from mofal.potential import Architecture, create, domains
from mofal.potential.model import NequIPPotential
from mofal.trajectories import (
    FittedKnown,
    Trajectory,
    WatchSettings,
    cutting,
    open_trajectory,
    read_frame,
    watch,
)
from mofal.trajectories.cutting import cut_unfamiliar
from mofal.trajectories.scores import Scores
from tests.helpers import assert_same_bits
from tests.trajectories.material import dump_text, frames_of, write_dump

SMALL = Architecture(
    r_max=3.2, n_layers=2, n_features=4, radial_layers=1, radial_neurons=8, feature_dim=4
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NequIPPotential, Path]:
    """A potential and the density of frames of the perfect crystal, on the disk."""
    place = tmp_path_factory.mktemp("known")
    potential = create(SMALL, ["H", "C", "O", "Zr"], seed=4, avg_num_neighbors=12.0)
    potential.save(place / "model")
    seen = from_atoms(frames_of(6, name="S_pr", seed=1), system="S_pr")
    density = fit_density(potential.featurize(seen), n_components=3, random_state=0)
    density.save(place / "density.zarr")
    return place / "model", potential, place / "density.zarr"


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    return frames_of(5)


def command(file: Path, known: tuple[Path, NequIPPotential, Path], place: Path) -> list[str]:
    return [
        *("watch", str(file), "--potential", str(known[0]), "--density", str(known[2])),
        *("--directory", str(place), "--clusters", "4", "--workers", "2"),
    ]


def scores_in(place: Path) -> dict[int, xr.Dataset]:
    """All scores of a directory, by frame."""
    parts = [open_group(p).load() for p in sorted((place / "scores").iterdir())]
    singles = [select(p, k) for p in parts for k in range(p.sizes["structure"])]
    return {int(s["frame_number"].values[0]): s for s in singles}


def test_watch__scores_summary_and_clusters_are_those_of_the_rooms(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = write_dump(tmp_path / "a.dump", frames, shuffle=2)
    place = tmp_path / "out"
    assert main([*command(file, known, place), "--timestep", "0.5"]) == 0
    said = capsys.readouterr().out
    density = PerElementDensity.load(known[2])
    wanted = score(known[1].featurize(from_atoms(frames, system="a")), density)
    found = scores_in(place)
    assert list(found) == [0, 1, 2, 3, 4]
    for k, ds in found.items():
        own = atom_slice(wanted, k)
        for name in ("log_likelihood", "quantile"):
            np.testing.assert_allclose(ds[name], wanted[name][own], rtol=2e-4, atol=1e-7)
        assert ds.attrs["density_hash"] == density.density_hash
    # When and where, counted anew.
    summary = open_group(place / "watched.zarr").load()
    quantile = np.array([ds["quantile"].values for ds in found.values()])
    below = quantile < 0.001
    assert below.any()
    assert int(summary["unfamiliar_atoms"].sum()) == below.sum()
    for k, z in enumerate(summary["element_number"].values.tolist()):
        expected = below[:, frames[0].numbers == z].sum(axis=1)
        np.testing.assert_array_equal(summary["unfamiliar_atoms"].values[:, k], expected)
    np.testing.assert_array_equal(summary["unfamiliar_frames"], below.sum(axis=0))
    np.testing.assert_array_equal(summary["unfamiliar_in_block"].sum("block"), below.sum(axis=1))
    np.testing.assert_allclose(summary["least_quantile"], quantile.min(axis=1))
    np.testing.assert_allclose(summary["md_time"], [0.0, 0.05, 0.1, 0.15, 0.2])
    for name in summary.variables:
        assert summary[name].attrs["units"] == VARIABLES[str(name)].units, name
    assert (place / "watch.png").read_bytes()[:4] == b"\x89PNG"
    assert f"{100 * below.mean():.2f} % of atoms below" in said
    # Clusters: cores hold the least familiar atoms, and lie where their frame has them.
    clusters = read(place / "clusters.extxyz")
    assert clusters.sizes["structure"] == 4
    assert_same_bits(
        clusters, open_group(place / "clusters.zarr").load()[list(map(str, clusters.variables))]
    )
    k = quantile.min(axis=1).argmin()
    assert float(clusters["least_quantile"].min()) == quantile.min()
    assert int(k) in clusters["frame_number"].values
    for c in range(4):
        own = select(clusters, c)
        frame = frames[int(own["frame_number"].values[0])]
        inner = own["region"].values < 2
        away = own["positions"].values[inner] - frame.positions[own["parent_atom"].values[inner]]
        away = away @ np.linalg.inv(frame.cell.array)
        np.testing.assert_allclose(away, np.rint(away), atol=1e-6)


def test_watch__killed_while_the_file_grows_goes_on_with_the_same_result(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path
) -> None:
    texts = [dump_text(f, 100 * k) for k, f in enumerate(frames)]
    grows, place = tmp_path / "grows" / "a.dump", tmp_path / "killed"
    grows.parent.mkdir()
    grows.write_text(texts[0] + texts[1] + texts[2][:2000])
    process = subprocess.Popen(
        [sys.executable, "-m", "mofal", *command(grows, known, place), "--follow"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        until = time.monotonic() + 120
        while not list(place.glob("scores/frames-*.zarr")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert set(scores_in(place)) == {0, 1}
    before = {p.name: p.stat().st_mtime_ns for p in (place / "scores").iterdir()}
    grows.write_text("".join(texts))
    assert main(command(grows, known, place)) == 0
    assert main(command(write_dump(tmp_path / "a.dump", frames), known, tmp_path / "once")) == 0
    after = {p.name: p.stat().st_mtime_ns for p in (place / "scores").iterdir()}
    assert before.items() <= after.items()  # nothing was scored twice
    one, other = scores_in(place), scores_in(tmp_path / "once")
    assert one.keys() == other.keys() == set(range(5))
    for k in other:
        assert_same_bits(one[k], other[k])
    for name in ("watched.zarr", "clusters.zarr"):
        assert_same_bits(
            open_group(place / name).load(), open_group(tmp_path / "once" / name).load()
        )


def test_watch__on_workers_and_from_the_disk_it_is_the_same(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Scores by a Dask client; clusters chosen from scores that stay on the disk."""
    from distributed import Client

    fitted = FittedKnown(known[1], PerElementDensity.load(known[2]))
    file = write_dump(tmp_path / "a.dump", frames[:3])
    chosen = WatchSettings(clusters=3)
    client = Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0")
    with client:
        watch(
            open_trajectory(file), fitted, directory=tmp_path / "out", settings=chosen,
            workers=2, say=lambda line: None,
        )  # fmt: skip
    found = scores_in(tmp_path / "out")
    alone = fitted.score(
        frames[1].numbers, *(read_frame(seen(file), 1).__dict__[n] for n in ("positions", "cell")),
        np.ones(3, bool),
    )  # fmt: skip
    np.testing.assert_array_equal(found[1]["log_likelihood"].values, alone["log_likelihood"])
    before = open_group(tmp_path / "out" / "clusters.zarr").load()
    shutil.rmtree(tmp_path / "out" / "clusters.zarr")
    monkeypatch.setattr(cutting, "IN_MEMORY", 0)
    scores = Scores(tmp_path / "out", fitted, seen(file), frames[0].numbers, every=1, system="a")
    assert scores.joined()["features"].chunks is not None
    structure = from_atoms(frames[:1], system="a")
    cut_unfamiliar(scores, find_blocks(structure), chosen, say=lambda line: None)
    assert_same_bits(open_group(tmp_path / "out" / "clusters.zarr").load(), before)


def test_known__large_frames_in_domains(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = FittedKnown(known[1], PerElementDensity.load(known[2]))
    large = frames[0].repeat((2, 2, 1))
    arrays = large.numbers, large.positions, large.cell.array, np.ones(3, bool)
    whole = fitted.score(*arrays)
    monkeypatch.setattr(domains, "LARGEST", {"featurize_arrays": 300})
    parts = fitted.score(*arrays)
    np.testing.assert_allclose(parts["features"], whole["features"], atol=1e-5)
    np.testing.assert_allclose(parts["quantile"], whole["quantile"], rtol=1e-2, atol=1e-6)


def seen(file: Path) -> Trajectory:
    trajectory = open_trajectory(file)
    trajectory.look()
    return trajectory


def follow(
    file: Path,
    known: tuple[Path, NequIPPotential, Path],
    place: Path,
    say: object,
    **options: float,
) -> xr.Dataset:
    fitted = FittedKnown(known[1], PerElementDensity.load(known[2]))
    return watch(
        open_trajectory(file), fitted, directory=place, settings=WatchSettings(clusters=0),
        follow=True, workers=1, say=say, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_follow__takes_frames_as_they_come_until_none_does(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path
) -> None:
    """The file is not there yet; then frames come, the second in two halves."""
    file = tmp_path / "later.dump"
    texts = [dump_text(f, 100 * k) for k, f in enumerate(frames[:2])]
    pieces = [texts[0] + texts[1][:3000], texts[1][3000:]]
    heard: list[str] = []

    def say(line: str) -> None:
        heard.append(line)
        if line.startswith("waiting") and pieces:
            with file.open("a") as stream:
                stream.write(pieces.pop(0))

    summary = follow(file, known, tmp_path / "out", say, until_idle_s=0.5)
    assert summary["md_step"].values.tolist() == [0, 100]
    assert [line for line in heard if "half-written" in line]
    with pytest.raises(MofalError, match="does not exist"):
        follow(tmp_path / "never.dump", known, tmp_path / "none", heard.append, until_idle_s=0.0)


def test_follow__ctrl_c_keeps_everything(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path
) -> None:
    file = write_dump(tmp_path / "a.dump", frames[:2])

    def say(line: str) -> None:
        if line.startswith("waiting"):
            raise KeyboardInterrupt

    summary = follow(file, known, tmp_path / "out", say)
    assert summary.sizes["structure"] == 2
    assert set(scores_in(tmp_path / "out")) == {0, 1}


def test_bad_input__is_one_line_and_a_status(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A potential without density, an element without a type, no whole frame, foreign scores."""

    def refused(arguments: list[str]) -> str:
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("mofal: ")
        assert said.count("\n") == 1
        return said

    file = write_dump(tmp_path / "a.dump", frames[:1])
    place = tmp_path / "out"
    assert "a model without its density" in refused(
        ["watch", str(file), "--potential", str(known[0]), "--directory", str(place)]
    )
    (tmp_path / "half.dump").write_text(file.read_text()[:-20])
    assert "holds only a half-written frame" in refused(
        command(tmp_path / "half.dump", known, place)
    )
    (tmp_path / "hf.dump").write_text(file.read_text().replace(" Zr ", " Hf "))
    assert "no type for Hf" in refused(command(tmp_path / "hf.dump", known, place))
    assert main(command(file, known, place)) == 0
    (tmp_path / "more").mkdir()
    other = write_dump(tmp_path / "more" / "a.dump", frames[1:2])
    capsys.readouterr()
    assert "another trajectory took its place" in refused(command(other, known, place))
    assert "another every (1; now 2)" in refused([*command(file, known, place), "--every", "2"])
    assert "unfamiliar_quantile is 0.7" in refused(
        [*command(file, known, place), "--unfamiliar-quantile", "0.7"]
    )


def test_unseen__an_element_that_the_density_lacks_is_said_and_is_least_familiar(
    known: tuple[Path, NequIPPotential, Path], frames: list[Atoms], tmp_path: Path
) -> None:
    potential = create(SMALL, ["H", "C", "O", "Zr", "Hf"], seed=4, avg_num_neighbors=12.0)
    seen = from_atoms(frames_of(2, name="S_pr", seed=1), system="S_pr")
    density = fit_density(potential.featurize(seen), n_components=1, random_state=0)
    changed = frames[0].copy()
    changed.numbers[np.flatnonzero(changed.numbers == 40)[0]] = 72
    symbols = ("Zr", "C", "O", "H", "Hf")
    file = write_dump(tmp_path / "a.dump", [changed], symbols=symbols)
    heard: list[str] = []
    summary = watch(
        open_trajectory(file), FittedKnown(potential, density), directory=tmp_path / "out",
        settings=WatchSettings(clusters=1), workers=1, say=heard.append,
    )  # fmt: skip
    assert [line for line in heard if "never seen Hf: each of its 1 atoms" in line]
    assert float(summary["least_quantile"].min()) == 0.0
    clusters = open_group(tmp_path / "out" / "clusters.zarr").load()
    assert 72 in clusters["numbers"].values[clusters["region"].values == 0]
