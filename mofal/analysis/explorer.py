"""The explorer: one self-contained page of atoms, a map of their features beside their structure.

The drawing is chemiscope's (https://chemiscope.org); its script is taken from the installed package
and becomes part of the page, so that the page needs no network and no server.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.errors import DataError, DependencyError

if TYPE_CHECKING:
    import xarray as xr

MAPPED = ("PC 1", "PC 2")
"""Names of the coordinates of the map."""
STEPS = (100, 500, 2000)
"""Numbers of least familiar atoms that the page offers."""
LARGE = 5000
"""Atoms of a structure beyond which the page draws the surroundings of the chosen atom alone, and
begins with the least familiar atoms (chemiscope's time to choose an atom is that of all atoms times
those on the map)."""
RADIUS, SURROUNDINGS = 4.0, 9.0
"""Å around the chosen atom: what is drawn in full colour; what is drawn of a large structure."""


@dataclass
class Column:
    """One value of every atom, to colour by and to read.

    Attributes
    ----------
    values : (atom,) array
        Numbers (NaN: not known) or text.
    meaning : str
        For a reader of the page.
    units : str
        Empty where there are none.
    limits : tuple of float, optional
        Of the colours.
    palette : str
        Of chemiscope.
    """

    values: NDArray[Any]
    meaning: str
    units: str = ""
    limits: tuple[float, float] | None = None
    palette: str = "viridis"


@dataclass
class Exploration:
    """What a page of the explorer shows.

    Attributes
    ----------
    structures : xarray.Dataset
        Structures of the data contract; with `parent_atom` where clusters among them were cut.
    names : sequence of str
        One for each structure.
    features : (atom, feature) array
        Of one model.
    columns : mapping of str to Column
        In the order in which colours are offered; ``element`` is added.
    parents : (structure,) array of int, optional
        Place in `structures` that a cluster was cut from, -1 for none.
    unfamiliarity : (atom,) array, optional
        Atoms with the lowest value come first wherever a part is shown (log-likelihoods,
        quantiles). Default: the order of the atoms.
    title, notes : str
    """

    structures: xr.Dataset
    names: Sequence[str]
    features: NDArray[Any]
    columns: Mapping[str, Column]
    parents: NDArray[Any] | None = None
    unfamiliarity: NDArray[Any] | None = None
    title: str = "mofal explorer"
    notes: str = ""
    start: str = field(default="")


def write_explorer(exploration: Exploration, path: str | Path) -> Path:
    """Write a page, or a file for chemiscope.

    Parameters
    ----------
    exploration : Exploration
        What is shown.
    path : path
        ``*.html``: one self-contained page that opens offline. ``*.json`` or ``*.json.gz``: a
        file of environments for chemiscope.org, its widget in notebooks, and its desktop uses.

    Returns
    -------
    path

    Raises
    ------
    DependencyError
        chemiscope is not installed.
    DataError
        The parts do not belong together, or the path ends in neither.
    """
    from mofal.data import atomic_path

    out = Path(path)
    kinds = (".html", ".json", ".json.gz")
    if not out.name.endswith(kinds):
        raise DataError(f"{path} ends in none of {', '.join(kinds)}; try: -o explore.html")
    data = chemiscope_dataset(exploration)
    if out.name.endswith(".html"):
        content = _page(exploration, data).encode("utf-8")
    else:
        content = json.dumps(data).encode("utf-8")
        content = gzip.compress(content, 6, mtime=0) if out.suffix == ".gz" else content
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    return out


def chemiscope_dataset(exploration: Exploration) -> dict[str, Any]:
    """Make a chemiscope dataset: every atom an environment, its columns as properties.

    Parameters
    ----------
    exploration : Exploration
        What is shown.

    Returns
    -------
    dict
        As `chemiscope.create_input` returns it; ready for `chemiscope.show` and JSON (with NaN).

    Raises
    ------
    DependencyError
        chemiscope is not installed.
    DataError
        The parts do not belong together.
    """
    try:
        from chemiscope import create_input
    except ImportError:
        raise DependencyError(
            "the explorer needs chemiscope; install it: pip install 'mofal[explore]'"
        ) from None

    ds = exploration.structures
    n_atoms = ds["n_atoms"].values
    total = int(n_atoms.sum())
    reach = SURROUNDINGS if n_atoms.max() > LARGE else RADIUS
    _check(exploration, total)
    elements = _elements(ds)
    features = np.asarray(exploration.features, dtype=float)
    plane = _plane(features)
    properties: dict[str, Any] = {
        name: {
            "target": "atom",
            "values": _short(plane[:, k]),
            "description": "principal component of the features",
        }
        for k, name in enumerate(MAPPED)
    }
    for name, column in exploration.columns.items():
        text = column.values.dtype.kind in "OUT"
        if not text and not np.isfinite(column.values).any():
            continue
        properties[name] = {
            "target": "atom",
            "values": [str(v) for v in column.values] if text else _short(column.values),
            "description": column.meaning,
            **({"units": column.units} if column.units else {}),
        }
    properties["element"] = {"target": "atom", "values": elements, "description": "element"}
    count = range(len(n_atoms))
    return dict(
        create_input(
            structures=_structures(ds, elements),
            environments=[(i, k, reach) for i in count for k in range(int(n_atoms[i]))],
            properties=properties,
            metadata={"name": exploration.title, "description": exploration.notes or " "},
        )
    )


def _check(exploration: Exploration, total: int) -> None:
    ds = exploration.structures
    wrong = {
        "names": (len(exploration.names), ds.sizes["structure"]),
        "features": (len(exploration.features), total),
        **{name: (len(c.values), total) for name, c in exploration.columns.items()},
    }
    for name, (found, expected) in wrong.items():
        if found != expected:
            raise DataError(f"{name} has {found} entries, expected {expected}")
    if total < 2:
        raise DataError(f"{total} atoms are no map; give a structure")
    if not np.isfinite(exploration.features).all():
        raise DataError("features hold values that are NaN or infinite")


def _elements(ds: xr.Dataset) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in ds["numbers"].values]


def _structures(ds: xr.Dataset, elements: Sequence[str]) -> list[dict[str, Any]]:
    from mofal.data import offsets

    xyz = np.round(ds["positions"].values, 3)
    out = []
    for k, (a, b) in enumerate(pairwise(offsets(ds["n_atoms"].values))):
        entry: dict[str, Any] = {"size": int(b - a), "names": list(elements[a:b])}
        entry |= {axis: xyz[a:b, j].tolist() for j, axis in enumerate("xyz")}
        if ds["pbc"].values[k].all():
            entry["cell"] = ds["cell"].values[k].ravel().tolist()
        out.append(entry)
    return out


def _plane(features: NDArray[Any]) -> NDArray[Any]:
    """First two principal components: (atom, 2)."""
    from mofal.density import PCA

    out = np.zeros((len(features), 2))
    if len(features) > 2:
        components = min(2, features.shape[1])
        out[:, :components] = PCA(components).fit(features).transform(features)
    return out


def _short(values: NDArray[Any]) -> list[float]:
    """Numbers as JSON shall hold them: five digits, NaN for all that is not finite."""
    x = np.asarray(values, dtype=float)
    x = np.where(np.isfinite(x), x, np.nan)
    return [float(f"{v:.5g}") for v in x]


# ---------------------------------------------------------------------------------- the page
def _page(exploration: Exploration, data: dict[str, Any]) -> str:
    script, version, licence = _chemiscope()
    packed = {**data, "mofal": _own(exploration, data)}
    text = json.dumps(_without_nan(packed), separators=(",", ":"), allow_nan=False)
    template = files("mofal.analysis").joinpath("explorer.html").read_text("utf-8")
    own = files("mofal.analysis").joinpath("explorer.js").read_text("utf-8")
    parts = {
        "TITLE": html.escape(exploration.title),
        "NOTES": html.escape(exploration.notes),
        "VERSION": html.escape(version),
        # A comment of HTML ends at two dashes and a bracket.
        "LICENSE": licence.replace("--", "- -"),
        "DATA": base64.b64encode(gzip.compress(text.encode("utf-8"), 6, mtime=0)).decode("ascii"),
        # What a script may not hold inside a page.
        "CHEMISCOPE": script.replace("</script", "<\\/script").replace("<!--", "<\\!--"),
        "SCRIPT": own,
    }
    # In one pass: what is put in is not looked at again.
    return re.sub("@([A-Z]+)@", lambda m: parts.get(m[1], m[0]), template)


def _chemiscope() -> tuple[str, str, str]:
    """Script, version and licence of the installed chemiscope."""
    try:
        package = distribution("chemiscope")
        script = files("chemiscope").joinpath("sphinx", "static", "chemiscope.min.js")
        text = script.read_text("utf-8")
    except (PackageNotFoundError, ModuleNotFoundError):
        raise DependencyError(
            "the explorer needs chemiscope; install it: pip install 'mofal[explore]'"
        ) from None
    except OSError:
        raise DependencyError(
            "chemiscope is installed without sphinx/static/chemiscope.min.js, which the page is "
            "made of; version 1.1 has it: pip install 'chemiscope>=1.1'"
        ) from None
    licences = sorted(str(p.locate()) for p in package.files or [] if "LICENSE" in p.name)
    licence = "\n".join(Path(p).read_text("utf-8") for p in licences if Path(p).is_file())
    return text, package.version, licence


def _own(exploration: Exploration, data: dict[str, Any]) -> dict[str, Any]:
    """What the page knows beyond chemiscope: links, orders, axes of each element."""
    from mofal.data import offsets

    ds = exploration.structures
    first = offsets(ds["n_atoms"].values)
    total = int(first[-1])
    elements = np.array(data["properties"]["element"]["values"])
    features = np.asarray(exploration.features, dtype=float)
    maps = {"all": [data["properties"][name]["values"] for name in MAPPED]}
    rank = np.zeros(total, int)
    for element in dict.fromkeys(sorted(elements)):
        mine = np.flatnonzero(elements == element)
        rank[mine] = np.arange(len(mine))
        plane = _plane(features[mine])
        maps[str(element)] = [_short(plane[:, k]) for k in range(2)]
    least = _order(exploration, total)
    parents = _parents(exploration)
    parent_atom = ds["parent_atom"].values if "parent_atom" in ds else np.full(total, -1)
    children: dict[int, list[int]] = {}
    for structure in np.flatnonzero(parents >= 0):
        for row in range(int(first[structure]), int(first[structure + 1])):
            if parent_atom[row] >= 0:
                target = int(first[parents[structure]] + parent_atom[row])
                children.setdefault(target, []).append(row)
    columns = exploration.columns
    views: dict[str, Any] = {
        name: {
            "palette": column.palette,
            "limits": None if column.limits is None else list(column.limits),
            "element": False,
        }
        for name, column in columns.items()
        if name in data["properties"]
    }
    views["element"] = {"palette": "viridis", "limits": None, "element": True}
    steps = [n for n in STEPS if n < total] if exploration.unfamiliarity is not None else []
    large = bool(ds["n_atoms"].values.max() > LARGE)
    start = exploration.start or (f"least:{steps[-1]}" if large and steps else "all")
    return {
        "names": list(exploration.names),
        "first": first[:-1].tolist(),
        "element": elements.tolist(),
        "maps": maps,
        "rank": rank.tolist(),
        "least": least.tolist(),
        "steps": steps,
        "start": start,
        "parent": parents.tolist(),
        "parent_atom": parent_atom.tolist(),
        "children": children,
        "views": views,
        "told": [name for name in views if name != "element"],
        "large": large,
        "cutoff": SURROUNDINGS if large else RADIUS,
        "size": 40 if total < LARGE else 25,
    }


def _order(exploration: Exploration, total: int) -> NDArray[Any]:
    """Atoms, the least familiar first; of an element never seen before all others."""
    if exploration.unfamiliarity is None:
        return np.arange(total)
    key = np.asarray(exploration.unfamiliarity, dtype=float)
    return np.argsort(np.where(np.isnan(key), np.inf, key), kind="stable")


def _parents(exploration: Exploration) -> NDArray[Any]:
    n = exploration.structures.sizes["structure"]
    if exploration.parents is None:
        return np.full(n, -1)
    parents = np.asarray(exploration.parents, int)
    if parents.shape != (n,) or (parents >= n).any():
        raise DataError(f"parents are {parents.tolist()}, expected {n} places below {n}, or -1")
    return parents


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null, which the page turns back."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [None if isinstance(v, float) and v != v else _without_nan(v) for v in value]
    return value
