"""`mofal init`: write a campaign file to edit."""

from __future__ import annotations

import os
from pathlib import Path

from mofal.campaign.examples import example_text
from mofal.errors import ConfigError


def write_example(path: str | os.PathLike[str], name: str) -> Path:
    """Write an example campaign file; one that is there is left alone.

    Raises
    ------
    ConfigError
        The file exists, or there is no such example.
    """
    target = Path(path)
    text = example_text(name)
    if target.exists():
        raise ConfigError(f"{target} exists already; give another name, or delete it first")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is no directory; make it first: mkdir {target.parent}")
    target.write_text(text, encoding="utf-8")
    return target
