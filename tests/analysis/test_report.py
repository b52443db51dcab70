"""The report: complete, self-contained, and graceful where data are missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

from mofal.analysis import HeldOut, ReportData, write_report
from mofal.analysis.tables import (
    attempt_rows,
    cell,
    compose_lead,
    cycle_rows,
    held_out_table,
    walk_rows,
)
from mofal.errors import DataError

from .material import features, held_out, report_data


class Page(HTMLParser):
    """Headings, tables and links of a page; unbalanced tags are an error."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.sources: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append((name, value or ""))
            if name in ("src", "href"):
                self.sources.append(value)
            if tag == "img" and name == "alt":
                assert value

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    lines = []
    path = write_report(report_data(), tmp_path_factory.mktemp("report"), progress=lines.append)
    return path, path.read_text("utf-8"), lines


def test_write_report__sections(written):
    _, text, lines = written
    page = Page(text)
    assert page.headings == [
        "Errors on held-out frames",
        "Learning curve",
        "What was unfamiliar",
        "Does the likelihood foretell the error?",
        "Where the errors are",
        "Walks",
        "Systems, labels, facts",
    ]
    assert len(lines) == 7
    for word in ("410", "1500", "a3f5c2d1", "GFN1-xTB (tblite 0.8.0)", "not converged"):
        assert word in page.cells


def test_write_report__needs_nothing_else(written):
    path, text, _ = written
    page = Page(text)
    for source in page.sources:
        assert source.startswith(("data:image/png;base64,", "#"))
    assert "<script" not in text
    assert "@import" not in text
    assert not re.search(r"url\(", text)
    embedded = sum(source.startswith("data:") for source in page.sources)
    pictures = sorted(p.name for p in path.parent.glob("*.png"))
    assert embedded == len(pictures) == 12
    assert {"learning-curve.png", "suspects.png", "feature-map.png", "clusters.png"} <= set(
        pictures
    )
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in path.parent.glob("*.png"))
    assert not list(path.parent.glob(".*"))
    assert path.stat().st_size < 6e6


def test_write_report__numbers_are_those_of_the_metrics(written):
    _, text, _ = written
    page = Page(text)
    rows = held_out_table(report_data().held_out)
    for row in rows:
        for value in row["errors"].values():
            assert f"{value:.0f}" in page.cells
    assert f"{rows[0]['ratio']:.2f}" in page.cells


@pytest.mark.slow
def test_write_report__same_data_same_bytes(written, tmp_path):
    _, text, _ = written
    again = write_report(report_data(), tmp_path)
    assert again.read_text("utf-8") == text


FEW = {"walks": None, "traces": (), "training_features": None, "frame": None, "clusters": None}


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"held_out": {}, "cycles": ()}, "Errors on held-out frames"),
        ({"held_out": {}, "attempts": None, "facts": {}, "systems": ()}, "Systems, labels, facts"),
        ({"held_out": {}}, "Walks"),
        ({"held_out": {}}, "What was unfamiliar"),
        ({"held_out": {}}, "Does the likelihood foretell the error?"),
        ({"held_out": {}, "cycles": ()}, "Learning curve"),
    ],
)
def test_write_report__sections_vanish(change, gone, tmp_path):
    path = write_report(replace(report_data(), **FEW, **change), tmp_path)
    assert gone not in Page(path.read_text("utf-8")).headings


def test_write_report__nothing_but_a_title(tmp_path):
    path = write_report(ReportData(title="Empty & <new>"), tmp_path)
    text = path.read_text("utf-8")
    assert Page(text).headings == []
    assert "Empty &amp; &lt;new&gt;" in text


def test_write_report__seed_alone(tmp_path):
    """A campaign that has only trained its seed model."""
    full = held_out()
    seed = HeldOut(
        labels=full.labels,
        predictions={"seed": full.predictions["seed"]},
        subsets=full.subsets,
        by_cycle={0: full.predictions["seed"]},
    )
    data = ReportData(title="Seed", held_out={"S_ld": seed}, cycles=report_data().cycles[:1])
    page = Page(write_report(data, tmp_path).read_text("utf-8"))
    assert page.headings[:2] == ["Errors on held-out frames", "Learning curve"]


def test_write_report__text_is_escaped(tmp_path):
    nasty = "<script>alert('x')</script>"
    data = ReportData(title=nasty, lead=nasty, summary=[nasty], facts={nasty: nasty})
    text = write_report(data, tmp_path).read_text("utf-8")
    assert "<script" not in text
    Page(text)


def test_compose_lead__says_the_ratio():
    held = held_out()
    (row,) = [
        r for r in held_out_table({"S_ld": held}, metrics=("mae",)) if r["atoms"] == "formate"
    ]
    lead = compose_lead({"S_ld": held})
    assert f"{row['errors']['seed']:.0f} meV/Å (seed)" in lead
    assert f"{row['ratio']:.1f} times as much" in lead
    assert compose_lead({}) == ""


def test_held_out_table__ratio_is_control_over_last():
    rows = held_out_table({"S_ld": held_out()}, metrics=("mae", "rmse"))
    assert [(r["atoms"], r["metric"]) for r in rows] == [
        ("formate", "MAE"), ("formate", "RMSE"), ("all", "MAE"), ("all", "RMSE"),
    ]  # fmt: skip
    for row in rows:
        assert row["ratio"] == row["errors"]["control"] / row["errors"]["campaign"]


def test_cycle_rows__columns_without_a_value_are_left_out():
    header, rows = cycle_rows(
        [{"cycle": 0, "labelled": 3, "set_aside": None}, {"cycle": 1, "x": 2}]
    )
    assert header == ["cycle", "clusters labelled", "x"]
    assert rows == [["0", "3", "–"], ["1", "–", "2"]]


def test_walk_and_attempt_rows__counts():
    data = report_data()
    header, rows = walk_rows(data.walks)
    assert header == ["system", "finished", "exploded", "length (fs)", "pressure (GPa)"]
    assert rows[0][:4] == ["S_ld", "5", "1", "250 to 500"]
    # Every walk is in a column: those that end as unfamiliar, and what nobody has thought of.
    walks = data.walks.assign(walk_status=("walk", ["unfamiliar"] * 3 + ["finished"] * 2 + ["new"]))
    header, rows = walk_rows(walks)
    assert header[1:4] == ["finished", "unfamiliar", "new"]
    assert rows[0][1:4] == ["2", "3", "1"]
    _, rows = attempt_rows(data.attempts)
    assert [row[:3] for row in rows] == [
        ["converged", "36", "114 to 166"],
        ["not converged", "1", "166"],
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (np.nan, "–"), (True, "yes"), (3, "3"), (1234.5, "1234"), (0.01234, "0.0123"),
     ("x", "x")],
)  # fmt: skip
def test_cell__formats(value, expected):
    assert cell(value) == expected


def test_held_out__refuses_foreign_predictions():
    held = held_out()
    with pytest.raises(DataError, match="'seed' speaks of 5 atoms"):
        HeldOut(labels=held.labels, predictions={"seed": held.labels.isel(atom=slice(5))})
    with pytest.raises(DataError, match="subset 'formate'"):
        HeldOut(labels=held.labels, subsets={"formate": np.ones(3, bool)})


def test_report_data__refuses_features_of_two_models():
    other: xr.Dataset = features(2, n=5)
    other.attrs["model_hash"] = "def"
    with pytest.raises(DataError, match="not comparable"):
        ReportData(title="", training_features=features(1, n=5), new_features=other)
