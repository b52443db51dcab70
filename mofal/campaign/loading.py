"""From the text of a campaign file to a validated campaign, and back: one message a mistake.

`load_config` names the place in the file, its line, and the mend.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mofal.campaign.config import (
    _FREE,
    _SHARED,
    CampaignConfig,
    _known,
    _without_devices,
    _without_free,
    _without_shared,
    _without_unset,
)
from mofal.clusters.matched import read_blueprints
from mofal.data.documents import dump_yaml, parse_yaml, read_text
from mofal.dynamics.settings import FORMER_DEFAULTS
from mofal.errors import ConfigError


def load_config(path: str | Path, *, base: Path | None = None) -> CampaignConfig:
    """Read and validate a campaign file.

    Paths in it are taken relative to the file (or to `base`).

    Raises
    ------
    ConfigError
        With the place in the file, what was found and what was expected.
    """
    file = Path(path)
    if file.is_dir():
        raise ConfigError(
            f"{file} is a directory; name the campaign file: {file / 'campaign.yaml'}"
        )
    try:
        text = read_text(file)
    except FileNotFoundError:
        raise ConfigError(
            f"{file} does not exist; write one with: mofal init {file.name}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    document = parse_yaml(text, where=str(file))
    if not isinstance(document.content, dict):
        raise ConfigError(f"{file} holds no keys; a campaign file begins with `name: ...`")
    config = parse_config(document.content, where=str(file), line=document.line)
    return _resolve(config, (base or file.parent).resolve(), where=str(file))


def parse_config(
    content: Mapping[str, Any],
    *,
    where: str = "campaign",
    line: Callable[[tuple[Any, ...]], int | None] | None = None,
) -> CampaignConfig:
    """Validate the content of a campaign file: a boolean is no number, and neither is text.

    Parameters
    ----------
    content : mapping
    where : str
        Name of the file, for messages.
    line : callable, optional
        Line of a place of the file (`mofal.data.documents.Document.line`), for messages.

    Raises
    ------
    ConfigError
        One line for each mistake.
    """
    try:
        return CampaignConfig.model_validate(_frozen(content), strict=True)
    except ValidationError as error:
        several = isinstance(content.get("seed_data"), list | tuple)
        lines = [_explain(_placed(e, several), line) for e in _once(error.errors())]
        if len(lines) > MOST_MISTAKES:
            lines[MOST_MISTAKES:] = [f"... and {len(lines) - MOST_MISTAKES} more"]
        shown = lines[0] if len(lines) == 1 else "\n  " + "\n  ".join(lines)
        separator = ", " if len(lines) == 1 and shown.startswith("line ") else ": "
        raise ConfigError(f"{where}{separator}{shown}") from None
    except RecursionError:
        raise ConfigError(f"{where}: too many levels inside each other") from None
    except OverflowError as error:
        raise ConfigError(f"{where}: a number is too large ({error})") from None


def _once(errors: list[Any]) -> list[Any]:
    """Mistakes less those that what holds for all trainings is said to make in each of them."""
    places = {tuple(e["loc"][:2]) for e in errors}
    return [
        e
        for e in errors
        if len(e["loc"]) < 3
        or (e["loc"][0], e["loc"][2]) not in places
        or e["loc"][2] not in _SHARED
    ]


#: Mistakes that one message names.
MOST_MISTAKES = 10


def _frozen(content: Any) -> Any:
    """Lists as tuples, which strict validation wants."""
    if isinstance(content, Mapping):
        return {key: _frozen(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return tuple(_frozen(value) for value in content)
    return content


def _placed(error: Any, several: bool) -> Any:
    """Say the place of a mistake as the file has it: sources of seed data are one list there."""
    place = tuple(error["loc"])
    if place[:1] == ("more_seed_data",) and len(place) > 1:
        place = ("seed_data", place[1] + 1, *place[2:])
    elif place[:1] == ("seed_data",) and several:
        place = ("seed_data", 0, *place[1:])
    return {**error, "loc": place}


def _explain(error: Any, line: Callable[[tuple[Any, ...]], int | None] | None) -> str:
    text = " ".join(_complaint(error).split())
    text = text if text.isprintable() else repr(text)
    number = line(tuple(error["loc"])) if line is not None else None
    text = text if len(text) <= 400 else f"{text[:390]}..."
    return text if number is None else f"line {number}: {text}"


def _complaint(error: Any) -> str:
    parts = [
        str(p) for p in error["loc"] if not str(p).startswith(("constrained", "function-", "[key]"))
    ]
    place = ".".join(parts) or "the file"
    kind = error["type"]
    if kind == "extra_forbidden":
        fields = _fields(error["loc"][:-1])
        return f"unknown key {place}; {_known(str(error['loc'][-1]), fields)}"
    if kind == "missing":
        return f"{place} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{place}: {message}" if parts else message
    found = error.get("input")
    text = f"{found!r}"
    shown = text if len(text) < 80 else text[:77] + "..."
    return f"{place} is {shown}: {message[:1].lower()}{message[1:]}"


def _fields(location: tuple[Any, ...]) -> list[str]:
    """Names of the keys that may stand at a place of the file."""
    model: Any = CampaignConfig
    for part in location:
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return []
        if part in fields:
            model = _section_of(fields[part].annotation)
    return [f for f in getattr(model, "model_fields", {}) if f != "more_seed_data"]


def _section_of(annotation: Any) -> Any:
    from typing import get_args

    if hasattr(annotation, "model_fields"):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None


def _resolve(config: CampaignConfig, base: Path, *, where: str) -> CampaignConfig:
    """Make the file names in a campaign absolute, and see that they exist."""

    def found(path: Path, place: str) -> Path:
        full = path if path.is_absolute() else base / path
        if not full.exists():
            raise ConfigError(
                f"{where}: {place} is {path}, which does not exist (looked for {full})"
            )
        return full

    systems = {
        name: s.model_copy(update={"file": found(s.file, f"systems.{name}.file")}) if s.file else s
        for name, s in config.systems.items()
    }
    seeds = [
        s.model_copy(update={"file": found(s.file, "seed_data.file")}) if s.file is not None else s
        for s in (config.seed_data, *config.more_seed_data)
    ]
    potential = config.potential
    for key in ("start", "pretrained"):
        given = getattr(potential, key)
        if given is not None and not given.startswith("example:"):
            place = found(Path(given), f"potential.{key}")
            if not (place / "model.json").is_file():
                raise ConfigError(f"{where}: potential.{key} is {place}, which holds no model.json")
            potential = potential.model_copy(update={key: str(place)})
    caches = []
    for cache in config.reference.caches:
        full = cache.path if cache.path.is_absolute() else base / cache.path
        if cache.mode == "r" or full.exists():  # one to write into is made
            full = found(cache.path, "reference.caches")
        if full.exists() and not full.is_dir():
            raise ConfigError(f"{where}: reference.caches is {full}, a file; expected a directory")
        caches.append(cache.model_copy(update={"path": full}))
    blueprints = config.selection.blueprints
    if blueprints is not None:
        blueprints = found(blueprints, "selection.blueprints")
        try:
            read_blueprints(blueprints)
        except ConfigError as error:
            raise ConfigError(f"{where}: selection.blueprints: {error}") from None
    return config.model_copy(
        update={
            "systems": systems,
            "seed_data": seeds[0],
            "more_seed_data": tuple(seeds[1:]),
            "potential": potential,
            "reference": config.reference.model_copy(update={"caches": tuple(caches)}),
            "selection": config.selection.model_copy(update={"blueprints": blueprints}),
        }
    )


def dump_config(config: CampaignConfig) -> str:
    """Write a campaign file with every setting in it, as it was validated.

    Of the schedule only what is stated: where it says nothing, the cluster's `jobqueue.yaml` may.
    """
    for exclude_none in (True, False):
        content = _without_shared(config.model_dump(mode="json", exclude_none=exclude_none))
        more = content.pop("more_seed_data")
        if more:
            content["seed_data"] = [content["seed_data"], *more]
        content["schedule"] = config.schedule.model_dump(mode="json", exclude_unset=True)
        text = dump_yaml(content)
        if not exclude_none or parse_config(parse_yaml(text, where="campaign").content) == config:
            break  # an explicit null means something where the default is another
    return text


def as_begun(config: CampaignConfig, deciding: dict[str, Any]) -> CampaignConfig:
    """Settings of a campaign that has begun, which keeps the defaults of its time.

    Parameters
    ----------
    config : CampaignConfig
        The file as this version reads it.
    deciding : dict
        What `CampaignConfig.deciding` gave when the campaign began.

    Returns
    -------
    CampaignConfig
        Where the file says nothing and the campaign has a former default, that one.
    """
    begun = deciding.get("exploration")
    if begun is None:
        return config
    kept = {
        name: former
        for name, former in FORMER_DEFAULTS.items()
        if name not in config.exploration.model_fields_set and begun.get(name, former) == former
    }
    exploration = config.exploration.model_copy(update=kept)
    return config.model_copy(update={"exploration": exploration}) if kept else config


def completed(deciding: dict[str, Any]) -> dict[str, Any]:
    """What `CampaignConfig.deciding` gave once, with the defaults of settings it did not know."""
    content = _without_shared(copy.deepcopy(deciding))
    for name, former in FORMER_DEFAULTS.items():
        content.get("exploration", {}).setdefault(name, former)
    try:
        config = CampaignConfig.model_validate({**content, "cycles": 1})
    except ValidationError:
        return deciding  # a setting that this version does not know any more
    out = _without_free(config.model_dump(mode="json", exclude=set(_FREE)))
    if "bond_z" not in deciding.get("exploration", {}):
        # Of a version whose defaults were others; what they decided is on the disk.
        if out["exploration"]["max_bond_strain"] == 0.3:
            out["exploration"]["max_bond_strain"] = None
        for system in out["systems"].values():
            if system.get("rule") == "carboxylate":
                system["rule"] = "auto"
    _without_unset(out)
    return _without_devices(out)


def differences(new: Any, old: Any, place: str = "") -> list[str]:
    """What differs between two contents, one line for each place: ``place: old -> new``."""
    if isinstance(new, dict) and isinstance(old, dict):
        out = []
        for key in dict.fromkeys([*new, *old]):
            inner = f"{place}.{key}" if place else str(key)
            out += differences(new.get(key), old.get(key), inner)
        return out
    if new == old:
        return []
    if place.rsplit(".", 1)[-1] in ("file", "blueprints") and None not in (new, old):
        return [f"{place}: another content"]
    return [f"{place}: {old} -> {new}"]
