"""The explorer: what a page holds, and that a browser draws it, lets one click, and asks nobody."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mofal.analysis.explorer import Column, Exploration, chemiscope_dataset, write_explorer
from mofal.clusters import cut, random_cores
from mofal.data import concat
from mofal.errors import DataError
from mofal.frameworks import build, find_blocks
from tests.browser import Browser, chromium

pytest.importorskip("chemiscope", reason="chemiscope is missing: pip install 'mofal[explore]'")


@pytest.fixture(scope="module")
def exploration() -> Exploration:
    """A frame, a cluster that was cut from it, and features that tell elements apart."""
    frame = build("S_ld", cell="primitive")
    blocks = {str(frame["system"].values[0]): find_blocks(frame)}
    clusters, _ = cut(frame, blocks, random_cores(frame, blocks, n=1, seed=0))
    names = ("numbers", "positions", "cell", "pbc", "n_atoms", "structure_index", "structure_id")
    both = concat(
        [
            ds[[*names, "system", "parent", *(v for v in ("region", "parent_atom") if v in ds)]]
            for ds in (frame, clusters)
        ]
    )
    n = both.sizes["atom"]
    rng = np.random.default_rng(0)
    likelihood = rng.normal(size=n)
    likelihood[7] = -np.inf
    error = np.where(both["structure_index"].values == 1, 100.0 * rng.random(n), np.nan)
    features = rng.normal(size=(n, 4)) + both["numbers"].values[:, None] * [1.0, 0.1, 0, 0]
    return Exploration(
        structures=both,
        names=["frame <0>", "cluster 0"],
        features=features,
        columns={
            "log-likelihood": Column(likelihood, "how familiar"),
            "force error": Column(error, "of the force", "meV/Å", palette="magma"),
            "nothing": Column(np.full(n, np.nan), "what nobody knows"),
            "region": Column(np.array(["core", "mantle"], object)[np.arange(n) % 2], "part"),
        },
        parents=np.array([-1, 0]),
        unfamiliarity=likelihood,
        title="A frame & its cluster",
    )


def unpacked(page: Path) -> dict[str, Any]:
    """What a page carries."""
    text = page.read_text("utf-8")
    found = re.search(r'id="data">([^<]*)<', text)
    assert found
    out: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    return out


def test_chemiscope_dataset__holds_what_was_given(exploration: Exploration) -> None:
    ds = exploration.structures
    data = chemiscope_dataset(exploration)
    assert [s["size"] for s in data["structures"]] == ds["n_atoms"].values.tolist()
    assert len(data["environments"]) == ds.sizes["atom"]
    np.testing.assert_allclose(
        data["structures"][0]["x"], ds["positions"].values[:106, 0], atol=6e-4
    )
    assert "cell" in data["structures"][0]
    assert "cell" not in data["structures"][1]
    assert "nothing" not in data["properties"]
    assert np.isnan(data["properties"]["log-likelihood"]["values"][7])
    # Principal components, from the eigenvectors of the covariance.
    x = exploration.features - exploration.features.mean(axis=0)
    axis = np.linalg.eigh(x.T @ x)[1][:, -1]
    found = np.array(data["properties"]["PC 1"]["values"])
    np.testing.assert_allclose(np.abs(found), np.abs(x @ axis), rtol=1e-3, atol=1e-3)


def test_page__links_clusters_to_where_they_were_cut(
    exploration: Exploration, tmp_path: Path
) -> None:
    page = write_explorer(exploration, tmp_path / "x.html")
    own = unpacked(page)["mofal"]
    ds = exploration.structures
    assert own["parent"] == [-1, 0]
    assert own["least"][0] == 7
    rows = [(int(target), row) for target, found in own["children"].items() for row in found]
    assert len(rows) == int((ds["parent_atom"].values[106:] >= 0).sum())
    numbers = ds["numbers"].values
    assert all(numbers[target] == numbers[row] for target, row in rows)
    text = page.read_text("utf-8")
    assert "A frame &amp; its cluster" in text
    assert "BSD" in text or "Redistribution and use" in text


def test_write_explorer__other_forms_and_mistakes(exploration: Exploration, tmp_path: Path) -> None:
    file = write_explorer(exploration, tmp_path / "x.json.gz")
    assert json.loads(gzip.decompress(file.read_bytes()))["meta"]["name"] == exploration.title
    with pytest.raises(DataError, match=r"ends in none of .html"):
        write_explorer(exploration, tmp_path / "x.png")
    with pytest.raises(DataError, match="names has 1 entries, expected 2"):
        write_explorer(replace(exploration, names=["one"]), tmp_path / "y.html")
    assert not (tmp_path / "y.html").exists()


def colours(png: bytes, left: float, right: float) -> int:
    """Different colours in a part of a picture, its left and right border as fractions."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    box = (int(left * image.width), image.height // 4, int(right * image.width), image.height // 2)
    return len(image.crop(box).getcolors(1 << 20) or [])


WHERE = """(() => {
  const {visualizer, all} = window.explorer, plot = visualizer.map._plot;
  const box = plot.getBoundingClientRect(), of = plot._fullLayout;
  const x = all.properties["PC 1"].values, y = all.properties["PC 2"].values;
  return x.map((v, i) => [box.left + of.xaxis._offset + of.xaxis.l2p(v),
                          box.top + of.yaxis._offset + of.yaxis.l2p(y[i])]);
})()"""


@pytest.mark.slow
@pytest.mark.skipif(
    chromium() is None, reason="chromium is missing: apt-get install chromium (make test does)"
)
def test_page__draws_and_is_clicked_and_asks_nobody(
    exploration: Exploration, tmp_path: Path
) -> None:
    page = write_explorer(exploration, tmp_path / "page.html")
    with Browser(tmp_path / "profile", width=800, height=600) as browser:
        browser.open(page)
        browser.wait("!!window.explorer", limit_s=300)
        text = "document.getElementById('selected').textContent"
        assert " 7 of frame <0>: log-likelihood not known" in browser.ask(text)
        # The map and the structure are more than white paper.
        png = browser.picture()
        assert colours(png, 0.0, 0.45) > 50
        assert colours(png, 0.55, 1.0) > 50

        # The point that lies most alone, of the cluster, clicked where it is drawn.
        at = np.array(browser.ask(WHERE))
        apart = np.hypot(*(at[:, None] - at[None]).T) + 1e9 * np.eye(len(at))
        alone = np.where(np.arange(len(at)) >= 106, apart.min(axis=0), -1.0)
        row = int(alone.argmax())
        browser.click(*at[row])
        browser.wait(f"document.getElementById('selected').dataset.row === '{row}'", limit_s=60)
        assert f" {row - 106} of cluster 0" in browser.ask(text)
        # chemiscope itself says so too: this environment is what its viewer shows.
        assert browser.ask("window.explorer.visualizer.saveSettings().pinned") == [row]

        parent = int(exploration.structures["parent_atom"].values[row])
        if parent >= 0:
            browser.ask("document.querySelector('#selected button').click()")
            browser.wait(f"document.getElementById('selected').dataset.row === '{parent}'")
        # On a phone both are large enough to be pointed at, upright and on its side.
        for width, height, least in ((390, 844, 260), (844, 390, 340)):
            browser.resize(width, height, mobile=True)
            for panel in ("map", "structure"):
                browser.wait(f"document.getElementById('{panel}').offsetHeight >= {least}")
            assert browser.ask("document.getElementById('which').offsetHeight") >= 34
        assert [r for r in browser.requests if not r.startswith(("data:", "blob:"))] == [
            page.as_uri()
        ]
        assert browser.complaints == []
