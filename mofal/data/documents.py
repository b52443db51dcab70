"""Strict reading of what people write: YAML of campaign files, JSON of tables and options.

YAML leaves much to the reader: `yes` is true to one and text to another, `010` is 8 or 10, `1:30`
is 90, the second of two equal keys wins in silence, and ten lines of aliases are a billion
entries. Here a value has one meaning or is refused with its line: booleans are `true` and `false`,
numbers are decimal, times and dates are text, keys are text and stand once, and size and depth are
bounded, so that reading ends.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mofal.errors import ConfigError

#: Bytes of a YAML file. PyYAML reads about 100 kB in a second.
MOST_BYTES = 2**18
#: Levels of lists and mappings inside each other.
MOST_LEVELS = 20
#: Values, with everything that aliases repeat.
MOST_VALUES = 50_000
#: Digits of a whole number.
MOST_DIGITS = 18

Path = tuple[str | int, ...]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_BOOLEAN_ONCE = frozenset(w for b in ("yes", "no", "on", "off") for w in (b, b.title(), b.upper()))
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_ZEROS = re.compile(r"[-+]?0[0-9_]+(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?")
_BASES = re.compile(r"[-+]?0[xXoObB][0-9a-fA-F_]+")
_GROUPED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_TEXT_TAG = "tag:yaml.org,2002:str"


@dataclass
class Document:
    """What a file holds.

    Attributes
    ----------
    content
        Mappings, lists, text, numbers, booleans and None.
    lines
        Line (from 1) of each place: ``("systems", "ld", "cell")``, ``("elements", 0)``.
    """

    content: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, place: tuple[Any, ...]) -> int | None:
        """Line of a place, or of the nearest one around it."""
        for n in range(len(place), 0, -1):
            if place[:n] in self.lines:
                return self.lines[place[:n]]
        return None


def parse_yaml(text: str, *, where: str, what: str = "a campaign file") -> Document:
    """Read YAML as a person means it.

    Parameters
    ----------
    text : str
    where : str
        Name of the file, for messages.
    what : str
        What the file should be, for messages.

    Raises
    ------
    ConfigError
        It is no YAML, or something in it could be meant in two ways, is there twice, or is too
        large; with its line.
    """
    import yaml

    if len(text) > MOST_BYTES:
        raise ConfigError(
            f"{where} has {len(text)} characters; {what} has at most {MOST_BYTES}: put data into "
            "files of their own"
        )
    try:
        return _Reader(yaml.parse(text, Loader=yaml.SafeLoader), where).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        position = getattr(error, "position", None)
        if mark is None and isinstance(position, int):
            place = f", line {text.count(chr(10), 0, position) + 1}"
        raise ConfigError(f"{where}{place}: {problem}; {what} is YAML") from None
    except RecursionError:
        raise ConfigError(f"{where}: too many levels inside each other") from None


class _Reader:
    """Builds a document from the events of PyYAML's parser, which come one by one: what is too
    deep or too large is refused before all of it has been read."""

    def __init__(self, events: Iterator[Any], where: str) -> None:
        self.events = events
        self.where = where
        self.lines: dict[Path, int] = {}
        self.anchors: dict[str, tuple[Any, int] | None] = {}
        self.values = 0

    def document(self) -> Document:
        import yaml

        content: Any = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self.refuse(event, "a second document begins here; expected one in a file")
                content, _ = self.value(next(self.events), ())
        return Document(content, self.lines)

    def refuse(self, event: Any, text: str) -> None:
        raise ConfigError(f"{self.where}, line {event.start_mark.line + 1}: {text}")

    def value(self, event: Any, place: Path) -> tuple[Any, int]:
        """One value, and how many values it holds with all that aliases repeat."""
        import yaml

        if isinstance(event, yaml.AliasEvent):
            found = self.anchors.get(str(event.anchor))
            if event.anchor not in self.anchors:
                self.refuse(event, f"*{event.anchor} is not given before; write &{event.anchor}")
            if found is None:
                self.refuse(event, f"*{event.anchor} stands inside itself")
            assert found is not None
            self.count(event, found[1])
            return found
        if event.anchor is not None:
            if event.anchor in self.anchors:
                self.refuse(event, f"&{event.anchor} is given twice; give it another name")
            self.anchors[event.anchor] = None
        before = self.values
        self.count(event, 1)
        if len(place) > MOST_LEVELS:
            self.refuse(event, f"more than {MOST_LEVELS} levels inside each other")
        plain_tag = event.tag in (None, "!", _TEXT_TAG)
        if not plain_tag:
            self.refuse(event, f"the tag {_short(event.tag)} is not known; take it out")
        content: Any
        if isinstance(event, yaml.ScalarEvent):
            text = event.tag is not None or event.style is not None
            content = event.value if text else self.plain(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            content = []
            while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
                here = (*place, len(content))
                self.lines[here] = inner.start_mark.line + 1
                content.append(self.value(inner, here)[0])
        else:
            content = self.mapping(place)
        weight = self.values - before
        if event.anchor is not None:
            self.anchors[event.anchor] = (content, weight)
        return content, weight

    def count(self, event: Any, values: int) -> None:
        self.values += values
        if self.values > MOST_VALUES:
            self.refuse(event, f"more than {MOST_VALUES} values; aliases repeat too much, perhaps")

    def mapping(self, place: Path) -> dict[str, Any]:
        import yaml

        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(event, "a key is a word, not a list, a mapping or an alias")
            if event.anchor is not None or event.tag not in (None, "!", _TEXT_TAG):
                self.refuse(event, "a key has no anchor and no tag; take them out")
            key = event.value
            if not key.strip():
                self.refuse(event, "a key is missing before the colon")
            if key in first:
                self.refuse(
                    event,
                    f"{_short(key)} stands twice (first in line {first[key]}); take one of them "
                    "out",
                )
            first[key] = line
            here = (*place, key)
            if key == "<<" and event.style is None:
                for name, value in self.merge(event, here).items():
                    merged.setdefault(name, value)
                    self.lines.setdefault((*place, name), line)
                continue
            self.lines[here] = line
            own[key] = self.value(next(self.events), here)[0]
        return {**merged, **own}

    def merge(self, key: Any, place: Path) -> dict[str, Any]:
        """What `<<:` takes over: a mapping, or several of which the first wins."""
        content, _ = self.value(next(self.events), place)
        parts = content if isinstance(content, list) else [content]
        out: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, dict):
                self.refuse(key, "`<<:` takes over mappings; expected e.g. `<<: *name`")
            out = {**part, **out}
        return out

    def plain(self, event: Any) -> Any:
        """Meaning of a word without quotes."""
        word = event.value
        if word in _NULL:
            return None
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        if word in _BOOLEAN_ONCE:
            meant = "true" if word.lower() in ("yes", "on") else "false"
            self.refuse(
                event,
                f'{word} is true or false to some, a word to others: write {meant}, or "{word}"',
            )
        if _NOT_FINITE.fullmatch(word):
            self.refuse(event, f'{word} is no number to calculate with; write one, or "{word}"')
        if _INTEGER.fullmatch(word):
            if len(word.lstrip("+-")) > MOST_DIGITS:
                self.refuse(
                    event,
                    f"{_short(word)} has {len(word.lstrip('+-'))} digits; expected at most "
                    f"{MOST_DIGITS}, or quotes around a text",
                )
            return int(word)
        if _FLOAT.fullmatch(word):
            number = float(word)
            if not math.isfinite(number):
                self.refuse(event, f"{_short(word)} is too large for a number")
            return number
        if _ZEROS.fullmatch(word):
            bare = word.lstrip("+-0_")
            bare = ("-" if word[0] == "-" else "") + (bare if bare[:1].isdigit() else f"0{bare}")
            self.refuse(
                event,
                f"{_short(word)} begins with 0 and could be meant in two ways: write "
                f'{_short(bare)}, or "{_short(word)}" for the text',
            )
        if _BASES.fullmatch(word) or _GROUPED.fullmatch(word):
            self.refuse(
                event,
                f"{_short(word)} is no decimal number: write its digits alone, or "
                f'"{_short(word)}" for the text',
            )
        return word


def parse_json(text: str, *, where: str) -> Any:
    """Read JSON that a person may have written: keys once, numbers finite, bounded.

    Raises
    ------
    ConfigError
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            keys = [k for k, _ in pairs]
            twice = next(k for k in keys if keys.count(k) > 1)
            raise ConfigError(f"{where}: {_short(twice)} stands twice; take one of them out")
        return out

    def no_number(word: str) -> Any:
        raise ConfigError(f"{where}: {word} is no number to calculate with")

    def whole(word: str) -> int:
        if len(word.lstrip("-")) > MOST_DIGITS:
            raise ConfigError(
                f"{where}: {_short(word)} has {len(word.lstrip('-'))} digits; expected at most "
                f"{MOST_DIGITS}"
            )
        return int(word)

    def finite(word: str) -> float:
        number = float(word)
        if not math.isfinite(number):
            raise ConfigError(f"{where}: {_short(word)} is too large for a number")
        return number

    try:
        return json.loads(
            text,
            object_pairs_hook=once,
            parse_constant=no_number,
            parse_int=whole,
            parse_float=finite,
        )
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}, line {error.lineno}: {error.msg}; expected JSON") from None
    except RecursionError:
        raise ConfigError(f"{where}: too many levels inside each other") from None


def dump_yaml(content: Any) -> str:
    """Write YAML that `parse_yaml` reads back to the same."""
    import yaml

    return yaml.dump(content, Dumper=_dumper(), sort_keys=False, allow_unicode=True)


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what PyYAML takes for text and YAML 1.2 for a number, `1e5`, and repeats
        instead of giving names to what is there twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    digits = list("-+.0123456789")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _whole(_FLOAT), digits)
    for refused in (_ZEROS, _BASES, _GROUPED):
        Dumper.add_implicit_resolver("tag:mofal,2026:refused", _whole(refused), digits)
    return Dumper


def _whole(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"^(?:{pattern.pattern})$")


def read_text(path: str | os.PathLike[str], *, most: int = MOST_BYTES) -> str:
    """Text of a file, in UTF-8 wherever this runs, and at most `most` bytes and one of it.

    Raises
    ------
    OSError, UnicodeDecodeError
    """
    with open(path, "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        return content.decode("utf-8", errors="replace")  # who parses it refuses the length
    return content.decode("utf-8")


def _short(text: str) -> str:
    """At most some words of a text, in one line."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 40 else f"{text[:30]}..."
