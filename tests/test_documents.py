"""What the pages and docstrings show does what they say: examples run, names exist."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mofal
from mofal.campaign.config import CampaignConfig
from mofal.campaign.loading import dump_config
from mofal.errors import DependencyError
from tests.campaign.conftest import finished  # noqa: F401

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)


# ---------------------------------------------------------------------------------- docstrings
def modules_with_examples() -> list[str]:
    found = []
    for module in pkgutil.walk_packages(mofal.__path__, "mofal."):
        file = ROOT / Path(*module.name.split("."))
        source = file / "__init__.py" if module.ispkg else file.with_suffix(".py")
        if ">>>" in source.read_text():
            found.append(module.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", modules_with_examples())
def test_docstrings__examples_run(
    name: str,
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my-campaign").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


# ---------------------------------------------------------------------------------- pages
def imported_names(page: Path) -> Iterator[tuple[str, str]]:
    for block in blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mofal"):
                yield from ((node.module or "", alias.name) for alias in node.names)
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Attribute)
                and isinstance(node.value.value, ast.Name)
                and node.value.value.id == "mofal"
            ):
                yield f"mofal.{node.value.attr}", node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages__python_parses_and_its_names_exist(page: Path) -> None:
    for module, name in imported_names(page):
        found = importlib.import_module(module)
        try:
            there = hasattr(found, name)
        except DependencyError:  # of an extra that is not installed
            there = name in found.__all__
        assert there, f"{page.name}: {module}.{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages__links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links {target}"


@pytest.mark.slow
def test_readme__python_runs(
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a campaign that is over: a run of it finds everything and reads on."""
    shutil.copytree(finished, tmp_path / "my-first", symlinks=True)
    config = CampaignConfig.model_validate(
        yaml.safe_load((tmp_path / "my-first" / "campaign.yaml").read_text())
    )
    (tmp_path / "campaign.yaml").write_text(dump_config(config))
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "README.md")
    printed = io.StringIO()
    space: dict[str, object] = {"__name__": "readme"}
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(block, "README.md", "exec"), space)
        finally:
            if "client" in space:
                space["client"].shutdown()  # type: ignore[attr-defined]
    energy = space["atoms"].get_potential_energy()  # type: ignore[attr-defined]
    assert f"{energy} {float(space['worst'])} [" in printed.getvalue()  # type: ignore[arg-type]
    assert os.path.isdir("my-first")


def test_site__every_page_is_in_its_navigation() -> None:
    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for value in entry.values() if isinstance(entry, dict) else ():
            yield from pages(value)
        for value in entry if isinstance(entry, list) else ():
            yield from pages(value)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert set(pages(site["nav"])) == there
