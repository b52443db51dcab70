"""Campaign files to start from."""

from __future__ import annotations

import difflib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mofal.errors import ConfigError


def _directory() -> Traversable:
    return files("mofal") / "examples"


def example_names() -> list[str]:
    """Names of the example campaign files, which travel in the package."""
    names = (file.name for file in _directory().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def seed_names() -> list[str]:
    """Names of the example seeds: labels and a potential that campaigns can start from."""
    return sorted(place.name for place in (_directory() / "seeds").iterdir() if place.is_dir())


def seed_place(name: str) -> Path:
    """Directory of an example seed, with ``labels.zarr`` and ``model``.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    names = seed_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ConfigError(f"no example seed is called {name!r}{hint} There are: {', '.join(names)}")
    return Path(str(_directory() / "seeds" / name))


def example_text(name: str) -> str:
    """Text of an example campaign file.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    names = example_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no example is called {name!r}{hint} There are: {', '.join(names)}")
    return (_directory() / f"{name}.yaml").read_text(encoding="utf-8")
