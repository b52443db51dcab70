"""The report: one page of figures and tables, complete in one file, and its pictures beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mofal.analysis import pictures, plots
from mofal.analysis.data import HeldOut, ReportData
from mofal.analysis.holding import plot_holding
from mofal.analysis.metrics import atom_errors, force_errors
from mofal.analysis.tables import (
    attempt_rows,
    compose_lead,
    cycle_rows,
    held_out_table,
    plain_rows,
    walk_rows,
)
from mofal.errors import DataError, DependencyError
from mofal.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTION = 150
"""Dots per inch of the PNG files."""
SUSPECTS = 8
"""Least likely atoms that are ringed where no cores are given."""


@dataclass
class Picture:
    """A figure as the page shows it."""

    name: str
    png: bytes
    caption: str
    alt: str
    width: int
    height: int

    @property
    def base64(self) -> str:
        """The PNG as text."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass
class Table:
    """A table as the page shows it; columns in `text` are set flush left."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[str] = ()
    caption: str = ""
    strong: Sequence[int] = ()
    wrap: bool = False


@dataclass
class Section:
    """A heading with what is below it."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    pictures_first: bool = False

    def draw(self, name: str, figure: Figure, caption: str, alt: str) -> None:
        """Render a figure and put it below."""
        stream = io.BytesIO()
        # No date and no version in the file: the same data make the same bytes.
        figure.savefig(stream, format="png", dpi=RESOLUTION, metadata={"Software": None})
        width, height = (round(96 * float(inches)) for inches in figure.get_size_inches())
        self.pictures.append(Picture(name, stream.getvalue(), caption, alt, width, height))


def write_report(
    data: ReportData,
    directory: str | Path,
    *,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write ``report.html``, one file that needs nothing else, and its figures as PNG files.

    Sections whose data are missing are left out.

    Parameters
    ----------
    data
        What to show.
    directory
        Where to; made if need be. Files of an earlier report are replaced.
    progress
        Called with one line per section.

    Returns
    -------
    path
        Of ``report.html``.

    Raises
    ------
    DependencyError
        Matplotlib or Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise DependencyError(
            "the report needs jinja2; install it: pip install 'mofal[report]'"
        ) from None
    from mofal import __version__

    # What the campaign is about comes first: systems with a defect.
    order = sorted(data.held_out, key=lambda name: data.held_out[name].defect is None)
    data = replace(data, held_out={name: data.held_out[name] for name in order})
    sections = []
    for make in _SECTIONS:
        section = make(data)
        if section is not None and (section.tables or section.pictures or section.text):
            sections.append(section)
            if progress is not None:
                progress(f"report: {section.title}")
    template = files("mofal.analysis").joinpath("report.html.j2").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        data=data,
        lead=data.lead or compose_lead(data.held_out),
        sections=sections,
        version=__version__,
    )
    out = Path(directory)
    out.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for picture in section.pictures:
            write_bytes(out / f"{picture.name}.png", picture.png, durable=False)
    path = out / "report.html"
    write_bytes(path, page.encode("utf-8"), durable=False)
    return path


# -- sections, in the order of the page


def _held_out_section(data: ReportData) -> Section | None:
    shown = {name: held for name, held in data.held_out.items() if held.predictions}
    if not shown:
        return None
    section = Section("held-out", "Errors on held-out frames")
    section.text.append(
        "The frames come from a sampler that uses no model, with a seed of its own, labelled with "
        "the same reference. No model has seen them."
    )
    rows = held_out_table(shown)
    models = list(dict.fromkeys(name for row in rows for name in row["errors"]))
    ratios = any(row["ratio"] is not None for row in rows)
    control = next(iter(shown.values())).control
    header = ["system", "atoms", "frames", "metric (meV/Å)", *models]
    if ratios:
        header.append(f"{control} / {models[-1]}")
    cells = [
        [
            row["system"],
            row["atoms"],
            str(row["n_frames"]),
            row["metric"],
            *(_error(row["errors"].get(name)) for name in models),
            *([_ratio(row["ratio"])] if ratios else []),
        ]
        for row in rows
    ]
    strong = [k for k, row in enumerate(rows) if row["atoms"] != "all" and row["metric"] == "MAE"]
    section.tables.append(
        Table(header, cells, text=("system", "atoms", "metric (meV/Å)"), strong=strong)
    )
    section.draw(
        "force-errors",
        plots.plot_force_errors(shown),
        "Force errors per element"
        + (
            ", and on the atoms of the defect (shaded)"
            if any(h.subsets for h in shown.values())
            else ""
        )
        + ". A bar for each model.",
        "Bar charts of force errors per element and model",
    )
    return section


def _error(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _holding_section(data: ReportData) -> Section | None:
    if not any(data.holding.values()):
        return None
    section = Section("holding", "How long it holds", pictures_first=True)
    section.draw(
        "holding",
        plot_holding(data.holding),
        "Runs at one temperature, each from the ideal structure with velocities of its own, the "
        "same for every model. A run ends (×) where a bond strays beyond what its kind does at "
        "that temperature: a potential that cannot hold the structure cannot be used for dynamics, "
        "however small its errors are.",
        "Largest bond strain against time, a line for each run",
    )
    section.text += list(data.holding_lines)
    return section


def _curve_section(data: ReportData) -> Section | None:
    section = Section("learning-curve", "Learning curve", pictures_first=True)
    try:
        figure = plots.plot_learning_curve(data.cycles, data.held_out)
    except DataError:
        figure = None
    if figure is not None:
        section.draw(
            "learning-curve",
            figure,
            "Each cycle's clusters test the model that proposed them before it learns from them: "
            "an honest error on what was least familiar. It falls as less remains unfamiliar.",
            "Force errors over the cycles of the campaign",
        )
    if data.cycles:
        header, rows = cycle_rows(data.cycles)
        section.tables.append(Table(header, rows, text=("model",)))
    return section


def _unfamiliar_section(data: ReportData) -> Section | None:
    section = Section("unfamiliar", "What was unfamiliar")
    if data.frame is not None and data.frame_scores is not None:
        n = int(data.frame["n_atoms"].values[0])
        numbers = data.frame["numbers"].values[:n]
        likelihood = np.asarray(data.frame_scores["log_likelihood"].values[:n], dtype=float)
        below = _below_median(likelihood, numbers)
        rings = np.zeros(n, bool)
        rings[np.argsort(below, kind="stable")[:SUSPECTS]] = True
        section.draw(
            "suspects",
            pictures.plot_structure(
                data.frame,
                values=below,
                label="log-likelihood above the element's median",
                high_is_bad=False,
                rings=rings,
                ring_label=f"{SUSPECTS} least familiar atoms",
                outlined=data.frame_cores,
                outline_label="core of a cluster",
            ),
            f"One frame of {data.frame['system'].values[0]}. Colours say how far the "
            "log-likelihood of an atom lies from the median of its element in this frame: red "
            "atoms have environments that the training data do not hold, black ones are of an "
            "element never seen. Pale discs are neighbours across the cell's boundary.",
            "Structure with atoms coloured by log-likelihood",
        )
    if data.clusters is not None and data.clusters.sizes.get("structure", 0):
        section.draw(
            "clusters",
            pictures.plot_clusters(data.clusters),
            "Clusters cut for the reference: the core that is wanted, its neighbour blocks as "
            "mantle, and hydrogen on each broken bond.",
            "Clusters with core, mantle and termination",
        )
    if data.training_features is not None:
        section.draw(
            "feature-map",
            plots.plot_feature_map(data.training_features, data.new_features),
            "Features of atoms on two principal axes (both sets counting the same). Shades hold "
            "50, 80, 95 and 99 % of the training data; orange atoms outside them are new.",
            "Maps of atomic features per element",
        )
    return section


def _below_median(likelihood: NDArray, numbers: NDArray) -> NDArray:
    """Log-likelihoods minus the median of the element: elements differ by what is usual for them.

    Atoms of an element whose median is not finite (never seen) stay at -inf.
    """
    out = np.array(likelihood, dtype=float)
    for number in np.unique(numbers):
        mine = numbers == number
        usual = np.median(out[mine])
        out[mine] = out[mine] - usual if np.isfinite(usual) else -np.inf
    return out


def _likelihood_section(data: ReportData) -> Section | None:
    section = Section("likelihood", "Does the likelihood foretell the error?")
    for system, held in data.held_out.items():
        for model, scores in held.scores.items():
            if model not in held.predictions:
                continue
            errors = force_errors(held.labels, held.predictions[model])
            section.draw(
                f"likelihood-{_slug(system)}-{_slug(model)}",
                plots.plot_likelihood_errors(
                    errors,
                    scores["log_likelihood"],
                    held.labels["numbers"].values,
                    highlight=held.defect,
                ),
                f"Force error against log-likelihood on held-out frames of {system}, model "
                f"{model}: Pearson's r and R² of a straight line, per element.",
                f"Force error against log-likelihood, {system}, {model}",
            )
    return section


def _where_section(data: ReportData) -> Section | None:
    section = Section("where", "Where the errors are")
    for system, held in data.held_out.items():
        if not held.predictions:
            continue
        by_model = _errors_by_atom(held)
        n = int(held.labels["n_atoms"].values[0])
        if by_model:
            rings = held.defect[1][:n] if held.defect else None
            section.draw(
                f"atom-errors-{_slug(system)}",
                pictures.plot_atom_errors(
                    held.labels,
                    by_model,
                    rings=rings,
                    ring_label=f"{held.defect[0]} atoms" if held.defect else "",
                ),
                f"MAE_P95 of the force on each atom over the held-out frames of {system}, on one "
                "colour scale.",
                f"Structure of {system} coloured by force error, one picture per model",
            )
        section.draw(
            f"parity-{_slug(system)}",
            plots.plot_parity(held, system=system),
            f"Predicted against reference force components on held-out frames of {system}.",
            f"Parity plot of forces, {system}",
        )
    return section


def _errors_by_atom(held: HeldOut) -> dict[str, np.ndarray]:
    try:
        return {
            name: 1000.0 * atom_errors(held.labels, predicted).values
            for name, predicted in held.predictions.items()
        }
    except DataError:
        # Frames of different atoms have errors, but no common structure to show them on.
        return {}


def _walks_section(data: ReportData) -> Section | None:
    section = Section("walks", "Walks", pictures_first=True)
    if data.walks is not None and data.walks.sizes.get("walk", 0):
        header, rows = walk_rows(data.walks)
        section.tables.append(Table(header, rows))
    traces = [trace for trace in data.traces if trace.sizes.get("sample", 0)]
    if traces:
        section.draw(
            "walks",
            plots.plot_traces(traces, data.walks),
            "Volume and temperature along the walks.",
            "Volume and temperature along walks",
        )
    return section


def _mechanics_section(data: ReportData) -> Section | None:
    section = Section("mechanics", "Mechanics")
    if data.mechanics:
        header, rows = plain_rows(data.mechanics)
        section.text.append(
            "Of the last model. Nuclei are classical; UiO-66 in experiment: K 37.9 GPa, "
            "V0 9,009 Å³ of the 456-atom cell. The paper's K at 0 K is that of E(V)."
        )
        section.tables.append(Table(header, rows, text=header))
    for name, figure in data.mechanics_figures.items():
        label = name.replace("-", " ")
        section.draw(_slug(f"mechanics-{name}"), figure, f"Mechanics: {label}.", label)
    return section


def _account_section(data: ReportData) -> Section | None:
    section = Section("account", "Systems, labels, facts")
    if data.systems:
        header, rows = plain_rows(data.systems)
        text = [name for name in header if any(isinstance(r.get(name), str) for r in data.systems)]
        section.tables.append(Table(header, rows, text=text))
    if data.attempts is not None and data.attempts.sizes.get("attempt", 0):
        header, rows = attempt_rows(data.attempts)
        section.tables.append(Table(header, rows, caption="Attempts at labels, by outcome."))
    if data.facts:
        rows = [[name, str(value)] for name, value in data.facts.items()]
        section.tables.append(Table(["", "value"], rows, text=("value",), wrap=True))
    return section


def _slug(name: str) -> str:
    """A name that may be part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


_SECTIONS: tuple[Callable[[ReportData], Section | None], ...] = (
    _held_out_section,
    _holding_section,
    _curve_section,
    _unfamiliar_section,
    _likelihood_section,
    _where_section,
    _walks_section,
    _mechanics_section,
    _account_section,
)
