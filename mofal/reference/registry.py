"""References by name: a specification is a string, so that it travels between workers as one.

A specification is ``name``, ``name:variant`` or ``name:variant?option=value&option=value``; the
name is looked up in the entry points `mofal.references`. Values are read as JSON where they can
be, and as text otherwise.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast
from urllib.parse import quote, unquote

from mofal.data.documents import parse_json
from mofal.errors import ConfigError, ReferenceError
from mofal.reference.base import Reference

GROUP = "mofal.references"

# Known without an installation of mofal (a source tree on the path); entry points come first.
_BUILT_IN = {
    "gfn1-xtb": "mofal.reference.xtb:gfn1_xtb",
    "gfn2-xtb": "mofal.reference.xtb:gfn2_xtb",
    "ase": "mofal.reference.ase_calculator:ase_reference",
    "gpaw": "mofal.reference.gpaw:gpaw_reference",
    "cp2k": "mofal.reference.cp2k:cp2k_reference",
}


def available_references() -> dict[str, str]:
    """Names of all references and where their factories are."""
    return {**_BUILT_IN, **{p.name: p.value for p in entry_points(group=GROUP)}}


def get_reference(spec: str | Mapping[str, Any] | Reference, **options: Any) -> Reference:
    """Make a reference from its specification.

    Parameters
    ----------
    spec : str, mapping or Reference
        ``"gfn1-xtb"``, ``"gpaw:paper?ranks=4"``, ``"ase:module:Factory?argument=1"``; or a mapping
        with a key ``name`` and the options beside it; a reference is returned as it is.
    **options
        Further options; they win over those of the specification.

    Raises
    ------
    ReferenceError
        No such name, or an option that it does not have.

    Examples
    --------
    >>> get_reference("gfn1-xtb").level_of_theory["method"]
    'GFN1-xTB'
    """
    if isinstance(spec, Mapping):
        given = dict(spec)
        name = given.pop("name", None)
        if not isinstance(name, str):
            raise ReferenceError('a reference given as a mapping needs a "name", e.g. "gfn1-xtb"')
        return get_reference(name, **{**given, **options})
    if not isinstance(spec, str):
        if options:
            raise ReferenceError("options belong to a specification, not to a made reference")
        if not isinstance(spec, Reference):
            raise ReferenceError(f"{type(spec).__name__} is no reference; expected e.g. 'gfn1-xtb'")
        return spec
    name, variant, own = parse_spec(spec)
    merged = {**own, **options}
    full = format_spec(name, variant, merged)
    return _make(name, variant, json.dumps(merged, sort_keys=True), full)


@functools.lru_cache(maxsize=64)
def _make(name: str, variant: str, options_text: str, full: str) -> Reference:
    # Kept per process: a calculator is set up once, however many labels it makes.
    factory = _factory(name)
    options = json.loads(options_text)
    accepted = inspect.signature(factory).parameters
    if "spec" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        options["spec"] = full
    try:
        inspect.signature(factory).bind(variant, **options)
        reference = factory(variant, **options)
    except TypeError as error:
        raise ReferenceError(f"reference {full!r}: {error}") from error
    return cast(Reference, reference)


def _factory(name: str) -> Any:
    for point in entry_points(group=GROUP):
        if point.name == name:
            return point.load()
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(__import__(module, fromlist=[attribute]), attribute)
    raise ReferenceError(
        f"no reference is called {name!r}; there are: {', '.join(sorted(available_references()))}"
    )


def parse_spec(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Split a specification into name, variant and options."""
    head, _, query = spec.strip().partition("?")
    name, _, variant = head.partition(":")
    if not name:
        raise ReferenceError(f"{spec!r} names no reference; expected e.g. 'gfn1-xtb'")
    options: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not key.isidentifier() or not equals:
            raise ReferenceError(f"{spec!r}: {part!r} is no option; expected option=value")
        if key in options:
            raise ReferenceError(f"{spec!r} gives {key} twice")
        options[key] = _plain(unquote(value), where=f"reference {_short(spec)}: {key}")
    return name, variant, options


def _plain(text: str, *, where: str) -> Any:
    """An option: JSON where it is meant as such, text otherwise.

    Raises
    ------
    ReferenceError
        JSON that no calculator can be given: NaN, a number without end, keys twice.
    """
    try:
        json.loads(text, parse_int=str, parse_float=str)
    except ValueError:
        return text
    except RecursionError:
        pass  # said below
    try:
        return parse_json(text, where=where)
    except ConfigError as error:
        raise ReferenceError(str(error)) from None


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def format_spec(name: str, variant: str, options: Mapping[str, Any]) -> str:
    """Write a specification that `parse_spec` reads back to the same."""
    head = f"{name}:{variant}" if variant else name
    try:
        query = "&".join(f"{k}={_value(v)}" for k, v in sorted(options.items()))
    except TypeError as error:
        raise ReferenceError(
            f"reference {head!r}: options must be plain values ({error})"
        ) from error
    return f"{head}?{query}" if query else head


def _value(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    if isinstance(value, str):
        try:
            json.loads(value, parse_int=str, parse_float=str)
        except ValueError:
            text = value  # reads back as text without its quotes
        except RecursionError:
            pass
    return quote(text, safe='/:.,-+_{}[]"()')
