"""Amounts of memory and time as people, SLURM and YAML write them."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

#: A worker takes about 60 MB before it has a task, and the keeper takes its share.
LEAST_MEMORY = 150 * 10**6


def parse_memory(value: Any) -> int:
    """Bytes of "4GB", "4 GiB", "900M" or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(value).upper())
    if match is None:
        raise ValueError(f"found {value!r}; expected an amount of memory such as 4GB or 900MiB")
    number, unit = match.groups()
    factor = {**_UNITS, **_BINARY}.get(unit)
    if factor is None:
        raise ValueError(f"found {value!r}; expected an amount of memory such as 4GB or 900MiB")
    amount = int(float(number) * factor)
    if amount < LEAST_MEMORY:
        raise ValueError(
            f"found {value!r}, {amount} bytes; expected {LEAST_MEMORY // 10**6}MB or more, which a "
            "worker takes by itself (4GB, 900MiB), or no memory: at all for no limit"
        )
    return amount


def parse_walltime(value: Any) -> int:
    """Seconds of "12:00:00", "2-00:00:00" (days first), "90m", "24h", or a number of seconds.

    Two fields are refused: "30:00" is half an hour to SLURM and to YAML, and thirty hours to most.
    """
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text)
    if match is not None:
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    else:
        if short := re.fullmatch(r"(\d+):(\d\d)", text):
            raise ValueError(
                f"found {value!r}, which may be hours and minutes or minutes and seconds; expected "
                f'all fields: "{short[1]}:{short[2]}:00" or "00:{short[1]}:{short[2]}" '
                "(or 30h, 30m)"
            )
        match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text)
        if match is None:
            raise ValueError(f"found {value!r}; expected a time such as 12:00:00, 2-00:00:00, 24h")
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + rest
    if seconds <= 0:
        raise ValueError(f"found {value!r}; expected a time longer than zero")
    return int(seconds)


def format_walltime(seconds: float) -> str:
    """``D-HH:MM:SS`` as SLURM reads it."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02d}:{minute:02d}:{second:02d}"


def parse_limit(text: str) -> int | None:
    """Seconds of a limit as SLURM prints it: ``[days-]hours:minutes:seconds``, ``minutes:seconds``,
    ``minutes``; None where there is none ("infinite", "n/a")."""
    match = re.fullmatch(r"(?:(\d+)-)?((?:\d+:){0,2}\d+)", text)
    if match is None:
        return None
    fields = [int(field) for field in match[2].split(":")]
    if match[1]:
        fields += [0] * (3 - len(fields))  # after days come hours
    elif len(fields) == 1:
        fields = [0, *fields, 0]
    hours, minutes, seconds = [0] * (3 - len(fields)) + fields
    return int(match[1] or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
